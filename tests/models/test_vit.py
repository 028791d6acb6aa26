"""The vision transformer, compared with torchvision's blocks."""

import pytest
import torch
from torch import nn

from memlens.models import registry
from memlens.models.vit import DIM, HEADS, LAYER_SCALE, Branch
from memlens.tracking import signals


def size(classes, channels, tokens):
    patches, places = channels * 16 * 16 * 512 + 512, tokens * 512
    attention = 512 * 3 * 512 + 512 * 512 + 512  # no bias for queries, keys and values
    mlp = 512 * 2048 + 2048 + 2048 * 512 + 512
    layer = 2 * 2 * 512 + 2 * 512 + attention + mlp  # two layer norms, two scales
    return patches + places + 12 * layer + 2 * 512 + 512 * classes + classes


def test_number_of_parameters():
    assert size(1000, 3, 256) == 38_861_288  # timm's card says 38.9 million
    assert size(100, 3, 256) == 38_399_588
    for in_shape, tokens in (((3, 256, 256), 256), ((1, 32, 64), 8)):
        net = registry.build("vit_medium", 100, in_shape)
        assert sum(p.numel() for p in net.parameters()) == size(100, in_shape[0], tokens)


@pytest.fixture(scope="module")
def net():
    return registry.build("vit_medium", 5, (3, 32, 32)).double().eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()


def test_a_layer_is_torchvisions_with_scales_and_without_three_biases(net):
    from torchvision.models.vision_transformer import EncoderBlock

    torch.manual_seed(0)
    ours = list(net.body[:2])
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


def test_layer_scale_starts_small(net):
    branches = [layer for layer in net.modules() if isinstance(layer, Branch)]
    assert len(branches) == 24
    x = torch.randn(1, 3, DIM).double()
    for branch in branches:
        assert torch.equal(branch.scale, torch.full((DIM,), LAYER_SCALE).double())
        with torch.no_grad():
            step = branch(x) - x
            assert torch.allclose(step, LAYER_SCALE * branch.inner(branch.norm(x)), atol=1e-12)
            assert step.any()


def test_only_the_position_embedding_distinguishes_patches(net, images):
    """The mean over tokens does not depend on their order."""
    swapped = images.roll(16, 3)  # left and right patches change places
    with torch.no_grad():
        assert not torch.allclose(net(images), net(swapped))
        without = registry.build("vit_medium", 5, (3, 32, 32)).double().eval()
        nn.init.zeros_(without.places)
        assert torch.allclose(without(images), without(swapped), rtol=1e-9)


def test_weights_are_initialised_as_in_timm(net):
    def assert_drawn(weights):  # within four standard errors of the deviation of so many
        error = 0.02 / (2 * weights.numel()) ** 0.5
        assert float(weights.detach().std()) == pytest.approx(0.02, abs=4 * error)

    assert_drawn(net.places)
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            assert_drawn(layer.weight)
            assert layer.bias is None or not layer.bias.any()


def test_curvature_by_second_derivatives(net, images):
    y = torch.tensor([0, 3])
    exact = signals.curvature(net, images, y, n_directions=2, exact=True).norm
    close = signals.curvature(net, images, y, n_directions=2, step=1e-4).norm
    assert torch.allclose(exact, close, rtol=1e-3)
    assert (exact > 0).all()


@pytest.mark.parametrize("in_shape", [(3, 250, 256), (1, 28, 28), (3, 0, 16), (256, 256)])
def test_images_that_are_not_whole_patches_are_refused(in_shape):
    found = ", ".join(map(str, in_shape))
    with pytest.raises(ValueError, match=rf"vit_medium needs .* 16x16 patches, .* \({found}\)"):
        registry.build("vit_medium", 10, in_shape)
