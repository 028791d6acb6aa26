"""The papers' networks as functions ``(n_classes, in_shape) -> nn.Module``.

Networks that torchvision has are torchvision's, with the changes that their docstrings describe;
weights are initialised as in torchvision (He et al. 2015), those of a changed stem included.

In train mode, batch norm couples the samples of a batch: the gradient of a sample's loss with
respect to its input does not include the sample's effect on the losses of the others. In eval mode
the samples are independent.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# torchvision is imported inside the functions that need it: the import takes about a second, which
# each parallel process that trains a small network would spend, and small networks run without it.

# Stages of Feldman and Zhang's network: widths of the 1x1 and 3x3 branch of each block, and of the
# convolution of stride 2 that follows (0: none).
SMALL_INCEPTION: tuple[tuple[tuple[tuple[int, int], ...], int], ...] = (
    (((32, 32), (32, 48)), 160),
    (((112, 48), (96, 64), (80, 80), (48, 96)), 240),
    (((176, 160), (176, 160)), 0),
)
# MobileNetV2's rows of expansion, width, blocks, stride; the second row's stride is 2 at 224x224.
MOBILENET_V2 = (
    (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip
# The vision transformer, ViT-M/16.
PATCH, DIM, DEPTH, HEADS = 16, 512, 12, 8
LAYER_SCALE = 1e-6  # initial scale of every branch (Touvron et al. 2021)
EPS = 1e-6  # of its layer norms, as in the original; PyTorch's default is 1e-5
INIT_STD = 0.02  # of its weights


def resnet18(n_classes: int, in_shape: tuple[int, ...]) -> nn.Module:
    """ResNet-18 for small images (He et al. 2016, in the form of kuangliu's pytorch-cifar).

    torchvision's with another stem: a 3x3 convolution of stride 1 without max pool. (The stem for
    ImageNet reduces a 32x32 image to 8x8.) Any size from 8x8; the feature maps of a 32x32 image
    have 32, 16, 8, 4 pixels per side. 11,220,132 parameters with 100 classes, 11,173,962 with 10
    (3 channels). Has batch norm.
    """
    from torchvision.models.resnet import BasicBlock, ResNet

    _check_size("resnet18", in_shape, least=8)
    net = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=n_classes)
    net.conv1 = _stem(in_shape[0], 64)
    net.maxpool = nn.Identity()
    return net


def resnet50(n_classes: int, in_shape: tuple[int, ...]) -> nn.Module:
    """ResNet-50 for ImageNet (He et al. 2016): torchvision's, stride in the 3x3 convolutions.

    The stem changes only for images without 3 channels. Any size from 64x64, designed for 224x224;
    use `resnet18` for smaller images. 25,557,032 parameters with 1,000 classes. Has batch norm.
    """
    from torchvision import models

    _check_size("resnet50", in_shape, least=64)  # at 32x32 the last feature map is one pixel
    net = models.resnet50(weights=None, num_classes=n_classes)
    if in_shape[0] != 3:
        net.conv1 = _stem(in_shape[0], 64, kernel=7, stride=2)
    return net


def vgg13_bn(n_classes: int, in_shape: tuple[int, ...]) -> nn.Sequential:
    """VGG-13 with batch norm for small images (Simonyan and Zisserman 2015, as pytorch-cifar).

    torchvision's convolutions with another head: one linear layer on 512 values, without dropout,
    in place of three layers with 120 million weights. The biases before batch norm have no effect
    in train mode. Weights as PyTorch initialises them. Any size from 32x32, of which the five pools
    leave one pixel; the last feature map of a larger image is averaged. 9,462,180 parameters with
    100 classes, 9,416,010 with 10 (3 channels). Has batch norm.
    """
    from torchvision.models import vgg

    _check_size("vgg13_bn", in_shape, least=32)
    layers = vgg.make_layers(vgg.cfgs["B"], batch_norm=True)
    if in_shape[0] != 3:
        layers[0] = nn.Conv2d(in_shape[0], 64, 3, padding=1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, n_classes))


def densenet121(n_classes: int, in_shape: tuple[int, ...]) -> nn.Module:
    """DenseNet-121 for small images (Huang et al. 2017, as pytorch-cifar): growth 32.

    torchvision's with another stem: a 3x3 convolution of stride 1 without batch norm, ReLU and max
    pool. Any size from 8x8; the feature maps of a 32x32 image have 32, 16, 8, 4 pixels per side.
    7,048,548 parameters with 100 classes, 6,956,298 with 10 (3 channels). Has batch norm, no
    dropout.
    """
    from torchvision.models import DenseNet

    _check_size("densenet121", in_shape, least=8)
    net = DenseNet(32, (6, 12, 24, 16), 64, num_classes=n_classes)
    net.features.conv0 = _stem(in_shape[0], 64, fan="fan_in")
    del net.features.norm0, net.features.relu0, net.features.pool0
    return net


def mobilenet_v2(n_classes: int, in_shape: tuple[int, ...]) -> nn.Module:
    """MobileNetV2 for small images (Sandler et al. 2018).

    torchvision's with stride 1 instead of 2 in the stem and in the second row of blocks, and
    without the dropout before the head, so that scores of train and eval mode are comparable.
    pytorch-cifar has the same strides, but adds shortcuts with weights and an expansion in the
    first block, and uses ReLU instead of ReLU6 (2,296,922 parameters with 10 classes). Any size
    from 8x8; the last feature map of a 32x32 image is 4x4. 2,351,972 parameters with 100 classes,
    2,236,682 with 10 (3 channels). Has batch norm.
    """
    from torchvision.models import MobileNetV2

    _check_size("mobilenet_v2", in_shape, least=8)
    rows = [list(row) for row in MOBILENET_V2]
    net = MobileNetV2(n_classes, inverted_residual_setting=rows)
    net.features[0][0] = _stem(in_shape[0], 32)
    net.classifier = net.classifier[1]
    return net


class Branches(nn.Module):
    """A 1x1 and a 3x3 convolution of the same input, side by side."""

    def __init__(self, channels: int, by_1x1: int, by_3x3: int) -> None:
        super().__init__()
        self.by_1x1 = nn.Sequential(nn.Conv2d(channels, by_1x1, 1, bias=False), *_norm(by_1x1))
        self.by_3x3 = nn.Sequential(
            nn.Conv2d(channels, by_3x3, 3, padding=1, bias=False), *_norm(by_3x3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, by_1x1 + by_3x3, h, w)."""
        return torch.cat([self.by_1x1(x), self.by_3x3(x)], 1)


class SmallInception(nn.Module):
    """Stages of `Branches`, a global max pool, a linear layer."""

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], head: nn.Linear) -> None:
        super().__init__()
        self.stem, self.stages, self.head = stem, nn.Sequential(*stages), head

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, n_classes)."""
        # amax shares the gradient among ties, as TensorFlow's reduce_max; a pooling layer does not.
        return self.head(self.stages(self.stem(x)).amax((2, 3)))


def small_inception(n_classes: int, in_shape: tuple[int, ...]) -> SmallInception:
    """SmallInception, the network of Feldman and Zhang's (2020) CIFAR scores.

    As in their published TensorFlow code: no bias before batch norm, no shortcuts, a global *max*
    pool, stride 2 with TensorFlow's padding, weights from a normal distribution of variance
    1 / fan-in truncated at two standard deviations, biases 0. The momentum of batch norm is
    PyTorch's 0.1, theirs is 0.001. Any size from 4x4; the feature maps of a 32x32 image have
    32, 16, 8 pixels per side. 1,926,116 parameters with 100 classes, 1,895,786 with 10 (3
    channels). Has batch norm.
    """
    _check_size("small_inception", in_shape, least=4)
    channels, *size = in_shape
    stem = nn.Sequential(nn.Conv2d(channels, 96, 3, padding=1, bias=False), *_norm(96))
    channels, stages = 96, []
    for blocks, narrowed in SMALL_INCEPTION:
        stage: list[nn.Module] = []
        for widths in blocks:
            stage.append(Branches(channels, *widths))
            channels = sum(widths)
        if narrowed:
            stage += [same_padding(size), nn.Conv2d(channels, narrowed, 3, stride=2, bias=False)]
            stage += _norm(narrowed)
            channels, size = narrowed, [-(-side // 2) for side in size]
        stages.append(nn.Sequential(*stage))
    net = SmallInception(stem, stages, nn.Linear(channels, n_classes))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            std = layer.weight[0].numel() ** -0.5
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(net.head.bias)
    return net


def same_padding(size: Sequence[int]) -> nn.ZeroPad2d:
    """Pad as TensorFlow's 'SAME' before a 3x3 convolution of stride 2, for a (height, width).

    An even side gets one zero, after the last pixel, and not one at each end as with PyTorch's
    ``padding=1``, so the kernels cover other pixels. On an odd side the two agree.
    """
    height, width = size
    return nn.ZeroPad2d((width % 2, 1, height % 2, 1))  # left, right, top, bottom


def _norm(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def _stem(
    channels: int, width: int, kernel: int = 3, stride: int = 1, fan: str = "fan_out"
) -> nn.Conv2d:
    """Make a first convolution; ``fan`` is the initialisation mode of torchvision's network."""
    conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode=fan, nonlinearity="relu")
    return conv


def _check_size(name: str, in_shape: tuple[int, ...], *, least: int) -> None:
    """Refuse images with a side below ``least``, which some feature maps cannot halve."""
    if len(in_shape) != 3 or in_shape[0] < 1 or min(in_shape[1:]) < least:
        raise ValueError(
            f"{name} needs images (channels, height, width) of at least {least}x{least} pixels, "
            f"got in_shape {tuple(in_shape)}"
        )


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values without bias."""

    def __init__(self, dim: int = DIM, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, dim) -> the same shape."""
        n, tokens, dim = x.shape
        shape = n, tokens, 3, self.heads, dim // self.heads
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4)  # (n, heads, tokens, dim) each
        # PyTorch's fused attention has no second derivative, which curvature needs.
        weights = (q * (dim // self.heads) ** -0.5 @ k.mT).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Branch(nn.Module):
    """A residual branch x + scale * inner(norm(x)), with one scale per channel."""

    def __init__(self, inner: nn.Module, dim: int = DIM, scale: float = LAYER_SCALE) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(dim, eps=EPS), inner
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, dim) -> the same shape."""
        return x + self.scale * self.inner(self.norm(x))


class VisionTransformer(nn.Module):
    """Patch embedding, alternating attention and MLP, mean over tokens, a linear layer.

    The patch size divides both sides of the images, and ``heads`` divides ``dim``.
    """

    def __init__(
        self,
        n_classes: int,
        in_shape: tuple[int, ...],
        *,
        patch: tuple[int, int] = (PATCH, PATCH),
        dim: int = DIM,
        depth: int = DEPTH,
        heads: int = HEADS,
        layer_scale: float = LAYER_SCALE,
    ) -> None:
        super().__init__()
        channels, height, width = in_shape
        tokens = (height // patch[0]) * (width // patch[1])
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.places = nn.Parameter(torch.empty(1, tokens, dim))
        branches = [
            Branch(inner, dim, layer_scale)
            for _ in range(depth)
            for inner in (Attention(dim, heads), _mlp(dim))
        ]
        self.body = nn.Sequential(*branches, nn.LayerNorm(dim, eps=EPS))
        self.head = nn.Linear(dim, n_classes)
        nn.init.trunc_normal_(self.places, std=INIT_STD)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=INIT_STD)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, n_classes)."""
        tokens = self.patches(x).flatten(2).mT  # (n, dim, h', w') -> (n, tokens, dim)
        return self.head(self.body(tokens + self.places).mean(1))


def vit_medium(n_classes: int, in_shape: tuple[int, ...]) -> VisionTransformer:
    """ViT-M/16 (Dosovitskiy et al. 2021, in the form of timm's ``vit_medium_patch16_gap_256``).

    Width 512, 12 layers, 8 heads; queries, keys and values without bias, LayerScale from 1e-6, and
    the mean over the normalised tokens in place of a class token. Weights as in timm: normal of
    standard deviation 0.02, biases 0, the patch embedding as in PyTorch. Designed for 256x256 (256
    tokens); any height and width that are multiples of 16. 38,399,588 parameters with 100 classes,
    38,861,288 with 1,000 (3 channels, 256x256). No batch norm, so samples are independent; no
    dropout, no stochastic depth.
    """
    # torchvision's VisionTransformer is another network (38,406,756 parameters: a class token, more
    # biases, no LayerScale, a head of zeros), and its fused attention has no second derivative.
    if len(in_shape) != 3 or min(in_shape) < 1 or in_shape[1] % PATCH or in_shape[2] % PATCH:
        raise ValueError(
            f"vit_medium needs images (channels, height, width) of whole {PATCH}x{PATCH} patches, "
            f"got in_shape {tuple(in_shape)}"
        )
    return VisionTransformer(n_classes, in_shape)


def vit_tiny(n_classes: int, in_shape: tuple[int, ...]) -> VisionTransformer:
    """A vision transformer that a CPU trains in a minute: 16 patches, width 64, 2 layers, 4 heads.

    A patch is a quarter of each side (7x7 pixels at 28x28), so both sides are multiples of 4.
    Otherwise `vit_medium`, but the branches start with scale 1: so few layers need no LayerScale.
    Weights of standard deviation 0.02 as there. 104,842 parameters with 10 classes (1 channel,
    28x28). No batch norm, no dropout.
    """
    if len(in_shape) != 3 or min(in_shape) < 1 or in_shape[1] % 4 or in_shape[2] % 4:
        raise ValueError(
            f"vit_tiny needs images (channels, height, width) whose sides are multiples of 4, got "
            f"in_shape {tuple(in_shape)}"
        )
    patch = in_shape[1] // 4, in_shape[2] // 4
    size = {"dim": 64, "depth": 2, "heads": 4, "layer_scale": 1.0}
    return VisionTransformer(n_classes, in_shape, patch=patch, **size)


def _mlp(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
