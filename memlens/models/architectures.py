"""The papers' nets as plain functions ``(n_classes, in_shape) -> nn.Module``.

Where torchvision has the net, it is torchvision's, with the changes that its docstring names; the
weights are drawn as torchvision draws them (He et al. 2015), those of a changed stem too.

A net with batch norm ties the samples of a batch to each other in train mode: the gradient of a
sample's loss by its own input then misses what the sample does to the others' losses. In eval mode
each sample is alone.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

# Functions that need torchvision import it themselves: that takes about a second, which each of the
# processes that train small nets side by side would pay.

VGG13 = ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512))  # widths, pooled after each row
# Feldman and Zhang's stages: widths of the 1x1 and 3x3 branch of each block, and of the convolution
# of stride 2 that follows (none after the last).
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


def resnet18(n_classes: int, in_shape: tuple[int, ...]) -> nn.Module:
    """ResNet-18 for small images (He et al. 2016, in the form of kuangliu's pytorch-cifar).

    torchvision's, but for the stem: a 3x3 convolution of stride 1 and no max pool, where the usual
    7x7 one of stride 2 with its pool would leave 8x8 of a 32x32 image. Any size from 8x8; at 32x32
    the stages see 32, 16, 8, 4 pixels a side. 11,220,132 parameters at 100 classes, 11,173,962 at
    10 (3 channels). Batch norm: yes.
    """
    from torchvision.models.resnet import BasicBlock, ResNet

    _check_size("resnet18", in_shape, least=8)
    net = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=n_classes)
    net.conv1 = _stem(in_shape[0], 64)
    net.maxpool = nn.Identity()
    return net


def resnet50(n_classes: int, in_shape: tuple[int, ...]) -> nn.Module:
    """ResNet-50 for ImageNet (He et al. 2016): torchvision's, stride in the 3x3 convolutions.

    Only the stem changes, and only for images without 3 channels. Any size from 64x64, made for
    224x224; `resnet18` is the one for smaller images, which this stem would shrink to one pixel.
    25,557,032 parameters at 1,000 classes. Batch norm: yes.
    """
    from torchvision.models import resnet50 as torchvisions

    _check_size("resnet50", in_shape, least=64)  # at 32 the last stage sees one pixel
    net = torchvisions(weights=None, num_classes=n_classes)
    if in_shape[0] != 3:
        net.conv1 = _stem(in_shape[0], 64, kernel=7, stride=2)
    return net


def vgg13_bn(n_classes: int, in_shape: tuple[int, ...]) -> nn.Sequential:
    """VGG-13 with batch norm for small images (Simonyan and Zisserman 2015, as pytorch-cifar).

    A single linear layer on 512 values is the head, without dropout, where the usual net has three
    layers with 123 million weights: this is why it is not torchvision's, which would draw them
    first. The convolutions keep the biases of both; with batch norm behind them those have no
    effect in train mode. Weights as PyTorch draws them. From 32x32, which the five pools take to
    one pixel; what is left of a larger image is averaged. 9,462,180 parameters at 100 classes,
    9,416,010 at 10 (3 channels). Batch norm: yes.
    """
    _check_size("vgg13_bn", in_shape, least=32)
    layers: list[nn.Module] = []
    channels = in_shape[0]
    for widths in VGG13:
        for before, width in pairwise((channels, *widths)):
            conv = nn.Conv2d(before, width, 3, padding=1)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(2))
        channels = widths[-1]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes))
    return nn.Sequential(*layers, *head)


def densenet121(n_classes: int, in_shape: tuple[int, ...]) -> nn.Module:
    """DenseNet-121 for small images (Huang et al. 2017, as pytorch-cifar): growth 32.

    torchvision's, but for the stem: a 3x3 convolution of stride 1, without the batch norm, ReLU and
    max pool that follow the usual 7x7 one of stride 2. Any size from 8x8; at 32x32 the blocks see
    32, 16, 8, 4 pixels a side. 7,048,548 parameters at 100 classes, 6,956,298 at 10 (3 channels).
    Batch norm: yes. No dropout.
    """
    from torchvision.models import DenseNet

    _check_size("densenet121", in_shape, least=8)
    net = DenseNet(32, (6, 12, 24, 16), 64, num_classes=n_classes)
    net.features.conv0 = _stem(in_shape[0], 64, fan="fan_in")
    del net.features.norm0, net.features.relu0, net.features.pool0
    return net


def mobilenet_v2(n_classes: int, in_shape: tuple[int, ...]) -> nn.Module:
    """MobileNetV2 for small images (Sandler et al. 2018).

    torchvision's, but for the strides of the stem and of the first widening, 1 instead of 2, and
    the dropout before the head, which is left out so that a score means the same in train and eval
    mode. pytorch-cifar's form has these strides too, but adds shortcuts with weights, an expansion
    in the first block and ReLU for ReLU6: 2,296,922 parameters at 10 classes. Any size from 8x8; at
    32x32 the last map is 4x4. 2,351,972 parameters at 100 classes, 2,236,682 at 10 (3 channels).
    Batch norm: yes.
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
    """Stages of `Branches`, the largest value of each channel, a linear layer."""

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], head: nn.Linear) -> None:
        super().__init__()
        self.stem, self.stages, self.head = stem, nn.Sequential(*stages), head

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, n_classes)."""
        # amax and not a pooling layer: ties share the gradient, as in TensorFlow's reduce_max.
        return self.head(self.stages(self.stem(x)).amax((2, 3)))


def small_inception(n_classes: int, in_shape: tuple[int, ...]) -> SmallInception:
    """Feldman and Zhang's (2020) SmallInception, the net of their CIFAR scores.

    From their published TensorFlow code: no bias before batch norm, no shortcut, a global *max*
    pool, stride 2 with TensorFlow's padding, weights from a normal of variance 1 / fan-in cut off
    at two of its deviations, biases 0. What stays PyTorch's: running statistics of batch norm
    forget at 0.1 a step, theirs at 0.001. Any size from 4x4; 32x32 gives maps of 32, 16, 8 pixels a
    side. 1,926,116 parameters at 100 classes, 1,895,786 at 10 (3 channels). Batch norm: yes.
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
    """TensorFlow's 'SAME' before a 3x3 convolution of stride 2, for maps of this height and width.

    An even side gets its one zero behind the last pixel, and not one at each end as PyTorch's
    ``padding=1`` has it: the kernels look at other pixels. The two agree on an odd side.
    """
    height, width = size
    return nn.ZeroPad2d((width % 2, 1, height % 2, 1))  # left, right, top, bottom


def _norm(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def _stem(
    channels: int, width: int, kernel: int = 3, stride: int = 1, fan: str = "fan_out"
) -> nn.Conv2d:
    """A first convolution; ``fan`` is the one that torchvision scales the net's weights by."""
    conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode=fan, nonlinearity="relu")
    return conv


def _check_size(name: str, in_shape: tuple[int, ...], *, least: int) -> None:
    """``least``: below it, halving leaves a stage without a pixel of its own."""
    if len(in_shape) != 3 or in_shape[0] < 1 or min(in_shape[1:]) < least:
        raise ValueError(
            f"{name} needs images (channels, height, width) of at least {least}x{least} pixels, "
            f"got in_shape {tuple(in_shape)}"
        )
