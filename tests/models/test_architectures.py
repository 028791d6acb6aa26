"""The papers' networks: parameter counts, feature maps, refused sizes."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memlens.models import registry
from memlens.models.architectures import (
    DIM,
    HEADS,
    LAYER_SCALE,
    Attention,
    Branch,
    same_padding,
)
from memlens.tracking import signals

# a small image that the network accepts
SHAPES = {
    "densenet121": (3, 32, 32),
    "mobilenet_v2": (3, 32, 32),
    "resnet18": (3, 32, 32),
    "resnet50": (3, 64, 64),
    "small_inception": (3, 32, 32),
    "strided_cnn": (3, 32, 32),
    "vgg13_bn": (3, 32, 32),
    "vit_medium": (3, 32, 32),
    "vit_tiny": (3, 32, 32),
}
every_net = pytest.mark.parametrize("name", sorted(SHAPES))


def test_every_model_is_tested():
    assert {*SHAPES, *registry.SMALL} == set(registry.MODELS)
    assert not {*SHAPES} & set(registry.SMALL)


def conv(before, after, kernel):
    return before * after * kernel**2


def conv_norm(before, after, kernel):
    return conv(before, after, kernel) + 2 * after


def linear(before, after):
    return before * after + after


def size_of_resnet18(classes, channels):
    total, before = conv_norm(channels, 64, 3) + linear(512, classes), 64
    for width in (64, 128, 256, 512):
        total += conv_norm(before, width, 3) + 3 * conv_norm(width, width, 3)
        total += conv_norm(before, width, 1) if before != width else 0
        before = width
    return total


def size_of_resnet50(classes, channels):
    total, before = conv_norm(channels, 64, 7) + linear(2048, classes), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        total += conv_norm(before, 4 * width, 1)  # the shortcut of the first block
        for _ in range(blocks):
            total += conv_norm(before, width, 1) + conv_norm(width, width, 3)
            total += conv_norm(width, 4 * width, 1)
            before = 4 * width
    return total


def size_of_vgg13_bn(classes, channels):
    widths = (channels, 64, 64, 128, 128, 256, 256, 512, 512, 512, 512)
    body = sum(conv_norm(before, after, 3) + after for before, after in pairwise(widths))
    return body + linear(512, classes)


def size_of_densenet121(classes, channels):
    total, width = conv(channels, 64, 3), 64
    for i, layers in enumerate((6, 12, 24, 16)):
        for _ in range(layers):
            total += 2 * width + conv(width, 128, 1) + 2 * 128 + conv(128, 32, 3)
            width += 32
        if i < 3:
            total += 2 * width + conv(width, width // 2, 1)
            width //= 2
    return total + 2 * width + linear(width, classes)


def size_of_mobilenet_v2(classes, channels):
    total, before = conv_norm(channels, 32, 3), 32
    rows = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    for expansion, width, blocks in rows:
        for _ in range(blocks):
            inner = expansion * before
            total += conv_norm(before, inner, 1) if expansion > 1 else 0
            total += conv_norm(1, inner, 3)  # depthwise
            total += conv_norm(inner, width, 1)
            before = width
    return total + conv_norm(320, 1280, 1) + linear(1280, classes)


def size_of_small_inception(classes, channels):
    blocks = [  # input, 1x1, 3x3
        (96, 32, 32), (64, 32, 48),
        (160, 112, 48), (160, 96, 64), (160, 80, 80), (160, 48, 96),
        (240, 176, 160), (336, 176, 160),
    ]  # fmt: skip
    total = sum(conv_norm(c, a, 1) + conv_norm(c, b, 3) for c, a, b in blocks)
    total += conv_norm(80, 160, 3) + conv_norm(144, 240, 3)  # the two of stride 2
    return total + conv_norm(channels, 96, 3) + linear(336, classes)


def size_of_strided_cnn(classes, channels):
    widths = (channels, 32, 64, 128)
    return sum(conv_norm(a, b, 3) for a, b in pairwise(widths)) + linear(16 * 128, classes)


@pytest.mark.parametrize(
    ("name", "classes", "published"),
    [
        ("resnet18", 10, 11_173_962),  # pytorch-cifar
        ("resnet18", 100, 11_220_132),
        ("resnet50", 1000, 25_557_032),  # torchvision
        ("vgg13_bn", 10, 9_416_010),
        ("vgg13_bn", 100, 9_462_180),
        ("densenet121", 10, 6_956_298),  # pytorch-cifar
        ("densenet121", 100, 7_048_548),
        ("mobilenet_v2", 10, 2_236_682),
        ("mobilenet_v2", 100, 2_351_972),
        ("small_inception", 10, 1_895_786),  # Feldman and Zhang
        ("small_inception", 100, 1_926_116),
    ],
)
def test_number_of_parameters(name, classes, published):
    by_arithmetic = globals()[f"size_of_{name}"]
    assert by_arithmetic(classes, 3) == published
    for channels in (1, 3):
        net = registry.build(name, classes, (channels, *SHAPES[name][1:]))
        assert sum(p.numel() for p in net.parameters()) == by_arithmetic(classes, channels)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
@every_net
def test_every_net_maps_images_to_logits(name, shape):
    if name in ("resnet50", "vgg13_bn", "vit_medium") and shape[1] == 28:
        pytest.raises(ValueError, registry.build, name, 7, shape)
        return
    shape = SHAPES[name] if shape[1] == 32 else shape
    net = registry.build(name, 7, shape).eval()
    with torch.no_grad():
        assert net(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "side", "maps"),
    [
        ("resnet18", 32, {"maxpool": 32, "layer1": 32, "layer2": 16, "layer3": 8, "layer4": 4}),
        ("resnet18", 28, {"maxpool": 28, "layer1": 28, "layer2": 14, "layer3": 7, "layer4": 4}),
        ("resnet50", 224, {"maxpool": 56, "layer1": 56, "layer2": 28, "layer3": 14, "layer4": 7}),
        ("vgg13_bn", 32, {"5": 32, "6": 16, "13": 8, "20": 4, "27": 2, "34": 1}),
        ("vgg13_bn", 64, {"6": 32, "34": 2}),
        ("densenet121", 32, {f"features.denseblock{i}": 64 >> i for i in (1, 2, 3, 4)}),
        ("densenet121", 28, {f"features.denseblock{i}": 56 >> i for i in (1, 2, 3, 4)}),
        ("mobilenet_v2", 32, {f"features.{i}": side for i, side in
                              {0: 32, 3: 32, 4: 16, 7: 8, 13: 8, 14: 4, 18: 4}.items()}),
        ("small_inception", 32, {"stem": 32, "stages.0.1": 32, "stages.0": 16, "stages.1.3": 16,
                                 "stages.1": 8, "stages.2": 8}),
        ("small_inception", 28, {"stem": 28, "stages.0": 14, "stages.1": 7, "stages.2": 7}),
        ("small_inception", 27, {"stem": 27, "stages.0": 14, "stages.1": 7, "stages.2": 7}),
    ],
)  # fmt: skip
def test_sides_of_the_maps(name, side, maps):
    """The stems keep the size of a 32x32 image; MobileNetV2 and VGG number their layers."""
    net = registry.build(name, 10, (3, side, side)).eval()
    found = {}
    for path in maps:
        keep = lambda _, __, out, path=path: found.update({path: out.shape[2:]})  # noqa: E731
        net.get_submodule(path).register_forward_hook(keep)
    with torch.no_grad():
        net(torch.rand(1, 3, side, side))
    assert found == {path: (expected, expected) for path, expected in maps.items()}


def as_after_training(net):
    """Give batch norm statistics other than 0 and 1."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias, std=0.1)
    return net


def tensorflow_same(x):
    """Pad before a 3x3 convolution of stride 2 by TensorFlow's rule for 'SAME'."""
    total = [max((-(-side // 2) - 1) * 2 + 3 - side, 0) for side in x.shape[2:]]
    (top, bottom), (left, right) = ((t // 2, t - t // 2) for t in total)
    return F.pad(x, (left, right, top, bottom))


def small_inception_by_hand(net, x):
    """Evaluate Feldman and Zhang's network layer by layer from its weights, in eval mode."""
    convs = iter([layer for layer in net.modules() if isinstance(layer, nn.Conv2d)])
    norms = iter([layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)])

    def step(x, padding=0, stride=1):
        y, norm = F.conv2d(x, next(convs).weight, None, stride, padding), next(norms)
        scale = norm.weight / (norm.running_var + 1e-5).sqrt()
        y = (y - norm.running_mean[:, None, None]) * scale[:, None, None]
        return (y + norm.bias[:, None, None]).clamp(min=0)

    x = step(x, padding=1)
    for blocks, narrows in ((2, True), (4, True), (2, False)):
        for _ in range(blocks):
            x = torch.cat([step(x), step(x, padding=1)], 1)
        x = step(tensorflow_same(x), stride=2) if narrows else x
    return F.linear(x.flatten(2).max(2).values, net.head.weight, net.head.bias)


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (27, 30)])
def test_small_inception_by_hand(size):
    torch.manual_seed(0)
    net = as_after_training(registry.build("small_inception", 5, (2, *size))).double().eval()
    x = torch.randn(2, 2, *size).double()
    with torch.no_grad():
        assert torch.allclose(net(x), small_inception_by_hand(net, x), rtol=1e-9)


@pytest.mark.parametrize(("side", "agrees"), [(6, False), (7, True)])
def test_tensorflows_padding_differs_from_pytorchs_on_even_sides(side, agrees):
    torch.manual_seed(0)
    x, weight = torch.randn(1, 2, side, side), torch.randn(3, 2, 3, 3)
    found = F.conv2d(same_padding((side, side))(x), weight, stride=2)
    assert torch.allclose(found, F.conv2d(tensorflow_same(x), weight, stride=2))
    around = F.conv2d(x, weight, stride=2, padding=1)
    assert found.shape == around.shape
    assert torch.allclose(found, around, atol=1e-5) == agrees


def test_small_inception_starts_from_sonnets_weights():
    net = registry.build("small_inception", 100, (3, 32, 32))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            std = layer.weight[0].numel() ** -0.5
            assert float(layer.weight.detach().abs().max()) <= 2 * std
            if layer.weight.numel() > 10_000:  # a normal cut off at 2 deviations: 0.880 of them
                assert float(layer.weight.detach().std()) == pytest.approx(0.880 * std, rel=0.03)
    assert not net.head.bias.any()


@every_net
@pytest.mark.slow
def test_samples_depend_on_each_other_only_by_batch_norm_in_train_mode(name):
    torch.manual_seed(0)
    net = as_after_training(registry.build(name, 5, SHAPES[name])).double().eval()
    x = torch.randn(4, *SHAPES[name]).double()
    with torch.no_grad():
        together, alone = net(x), torch.cat([net(xi[None]) for xi in x])
        assert torch.allclose(together, alone, rtol=1e-8)
        net.train()
        halves = torch.cat([net(half) for half in x.split(2)])
        batch_norm = not name.startswith("vit")
        assert torch.allclose(net(x), halves, rtol=1e-8) != batch_norm
        assert torch.equal(net(x), net(x))  # no dropout
    has_norm = any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
    assert has_norm == batch_norm


@every_net
@pytest.mark.slow
def test_gradient_flows_to_every_parameter(name):
    """In eval mode: a bias before batch norm has none in train mode."""
    torch.manual_seed(0)
    net = as_after_training(registry.build(name, 5, SHAPES[name])).double().eval()
    F.cross_entropy(net(torch.randn(2, *SHAPES[name]).double()), torch.tensor([0, 3])).backward()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@every_net
@pytest.mark.slow
def test_weights_follow_the_seed(name):
    nets = [registry.build(name, 5, SHAPES[name], seed=seed) for seed in (1, 1, 2)]
    first, again, other = (net.state_dict() for net in nets)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    drawn = [key for key, value in first.items() if value.dim() > 1]
    assert drawn
    assert not any(torch.equal(first[key], other[key]) for key in drawn)


def test_resnet50_is_torchvisions():
    from torchvision.models import resnet50

    torch.manual_seed(3)
    expected = resnet50(num_classes=10).state_dict()
    found = registry.build("resnet50", 10, (3, 224, 224), seed=3).state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


@pytest.mark.parametrize(
    ("name", "fan"), [("resnet18", 9 * 64), ("densenet121", 9 * 3), ("mobilenet_v2", 9 * 32)]
)
def test_a_changed_stem_is_initialised_as_the_rest_of_the_network(name, fan):
    net = registry.build(name, 10, (3, 32, 32))
    stem = next(layer for layer in net.modules() if isinstance(layer, nn.Conv2d))
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
    error = (2 * stem.weight.numel()) ** -0.5  # of the standard deviation of so many
    assert float(stem.weight.detach().std()) == pytest.approx((2 / fan) ** 0.5, rel=4 * error)


@pytest.mark.parametrize(
    ("name", "in_shape", "needed"),
    [
        ("resnet18", (3, 7, 32), "8x8"),
        ("resnet50", (3, 32, 32), "64x64"),
        ("vgg13_bn", (1, 28, 28), "32x32"),
        ("densenet121", (3, 7, 7), "8x8"),
        ("mobilenet_v2", (3, 32, 4), "8x8"),
        ("small_inception", (3, 3, 3), "4x4"),
        ("resnet18", (32, 32), "8x8"),
        ("small_inception", (0, 32, 32), "4x4"),
    ],
)
def test_a_size_that_a_network_does_not_accept_is_refused(name, in_shape, needed):
    found = ", ".join(map(str, in_shape))
    with pytest.raises(ValueError, match=rf"{name} needs images .*{needed}.* \({found}\)"):
        registry.build(name, 10, in_shape)


@pytest.mark.parametrize(
    ("name", "side"), [("resnet18", 8), ("densenet121", 8), ("mobilenet_v2", 8),
                       ("small_inception", 4), ("vgg13_bn", 32), ("resnet50", 64)]
)  # fmt: skip
def test_the_smallest_accepted_size_works(name, side):
    net = registry.build(name, 10, (1, side, side)).train()
    logits = net(torch.rand(2, 1, side, side))
    assert logits.isfinite().all()


def size_of_vit_medium(classes, channels, tokens):
    patches, places = channels * 16 * 16 * 512 + 512, tokens * 512
    attention = 512 * 3 * 512 + 512 * 512 + 512  # no bias for queries, keys and values
    mlp = 512 * 2048 + 2048 + 2048 * 512 + 512
    layer = 2 * 2 * 512 + 2 * 512 + attention + mlp  # two layer norms, two scales
    return patches + places + 12 * layer + 2 * 512 + 512 * classes + classes


def test_number_of_parameters_of_the_vit():
    assert size_of_vit_medium(1000, 3, 256) == 38_861_288  # timm's card says 38.9 million
    assert size_of_vit_medium(100, 3, 256) == 38_399_588
    for in_shape, tokens in (((3, 256, 256), 256), ((1, 32, 64), 8)):
        net = registry.build("vit_medium", 100, in_shape)
        assert sum(p.numel() for p in net.parameters()) == size_of_vit_medium(
            100, in_shape[0], tokens
        )


def test_the_tiny_vit_has_sixteen_patches_and_the_layers_of_the_medium_one():
    for in_shape, patch in (((1, 28, 28), (7, 7)), ((3, 32, 16), (8, 4)), ((1, 8, 8), (2, 2))):
        net = registry.build("vit_tiny", 10, in_shape)
        patches = in_shape[0] * patch[0] * patch[1] * 64 + 64 + 16 * 64
        layer = 4 * 64 + 2 * 64 + 4 * 64 * 64 + 64 + 2 * 4 * 64 * 64 + 4 * 64 + 64
        expected = patches + 2 * layer + 2 * 64 + 64 * 10 + 10
        assert sum(p.numel() for p in net.parameters()) == expected
        assert net.patches(torch.zeros(1, *in_shape)).shape == (1, 64, 4, 4)
    branches = [layer for layer in net.modules() if isinstance(layer, Branch)]
    assert [type(branch.inner) for branch in branches] == [Attention, nn.Sequential] * 2
    assert all((branch.scale == 1).all() for branch in branches)
    assert all(branch.inner.heads == 4 for branch in branches[::2])
    for in_shape in ((1, 30, 28), (28, 28), (1, 0, 4)):
        with pytest.raises(ValueError, match="vit_tiny needs .* multiples of 4"):
            registry.build("vit_tiny", 10, in_shape)


@pytest.fixture(scope="module")
def vit():
    return registry.build("vit_medium", 5, (3, 32, 32)).double().eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()


def test_a_layer_is_torchvisions_with_scales_and_without_three_biases(vit):
    from torchvision.models.vision_transformer import EncoderBlock

    torch.manual_seed(0)
    ours = list(vit.body[:2])
    theirs = EncoderBlock(HEADS, DIM, 4 * DIM, 0.0, 0.0).double().eval()
    theirs.load_state_dict({
        "self_attention.in_proj_weight": ours[0].inner.qkv.weight,
        "self_attention.in_proj_bias": torch.zeros(3 * DIM),
        "self_attention.out_proj.weight": ours[0].inner.out.weight,
        "self_attention.out_proj.bias": ours[0].inner.out.bias,
        "mlp.0.weight": ours[1].inner[0].weight, "mlp.0.bias": ours[1].inner[0].bias,
        "mlp.3.weight": ours[1].inner[2].weight, "mlp.3.bias": ours[1].inner[2].bias,
        **{f"ln_{i + 1}.{key}": value for i in (0, 1)
           for key, value in ours[i].norm.state_dict().items()},
    })  # fmt: skip
    x = torch.randn(2, 7, DIM).double()
    with torch.no_grad():
        h = x + ours[0].inner(ours[0].norm(x))
        assert torch.allclose(h + ours[1].inner(ours[1].norm(h)), theirs(x), rtol=1e-6)


def test_layer_scale_starts_small(vit):
    branches = [layer for layer in vit.modules() if isinstance(layer, Branch)]
    assert len(branches) == 24
    x = torch.randn(1, 3, DIM).double()
    for branch in branches:
        assert torch.equal(branch.scale, torch.full((DIM,), LAYER_SCALE).double())
        with torch.no_grad():
            step = branch(x) - x
            assert torch.allclose(step, LAYER_SCALE * branch.inner(branch.norm(x)), atol=1e-12)
            assert step.any()


def test_only_the_position_embedding_distinguishes_patches(vit, images):
    """The mean over tokens does not depend on their order."""
    swapped = images.roll(16, 3)  # left and right patches change places
    with torch.no_grad():
        assert not torch.allclose(vit(images), vit(swapped))
        without = registry.build("vit_medium", 5, (3, 32, 32)).double().eval()
        nn.init.zeros_(without.places)
        assert torch.allclose(without(images), without(swapped), rtol=1e-9)


def test_weights_are_initialised_as_in_timm(vit):
    def assert_drawn(weights):  # within four standard errors of the deviation of so many
        error = 0.02 / (2 * weights.numel()) ** 0.5
        assert float(weights.detach().std()) == pytest.approx(0.02, abs=4 * error)

    assert_drawn(vit.places)
    for layer in vit.modules():
        if isinstance(layer, nn.Linear):
            assert_drawn(layer.weight)
            assert layer.bias is None or not layer.bias.any()


def test_curvature_by_second_derivatives(vit, images):
    y = torch.tensor([0, 3])
    exact = signals.curvature(vit, images, y, n_directions=2, exact=True).norm
    close = signals.curvature(vit, images, y, n_directions=2, step=1e-4).norm
    assert torch.allclose(exact, close, rtol=1e-3)
    assert (exact > 0).all()


@pytest.mark.parametrize("in_shape", [(3, 250, 256), (1, 28, 28), (3, 0, 16), (256, 256)])
def test_images_that_are_not_whole_patches_are_refused(in_shape):
    found = ", ".join(map(str, in_shape))
    with pytest.raises(ValueError, match=rf"vit_medium needs .* 16x16 patches, .* \({found}\)"):
        registry.build("vit_medium", 10, in_shape)
