"""ModelEnsemble as plain functions ``(n_classes, in_shape) -> nn.Module``; `build` makes one from a seed."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
from torch import nn

from memlens.models import architectures, vit

Builder = Callable[[int, tuple[int, ...]], nn.Module]


def mlp(
    n_classes: int,
    in_shape: tuple[int, ...],
    hidden: Sequence[int] = (128, 128),
    batch_norm: bool = False,
) -> nn.Sequential:
    """Fully connected net with ReLU; input flattened, no skip connection."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = prod(in_shape)
    for size in hidden:
        layers.append(nn.Linear(width, size))
        layers += [nn.BatchNorm1d(size)] if batch_norm else []
        layers.append(nn.ReLU())
        width = size
    return nn.Sequential(*layers, nn.Linear(width, n_classes))


def small_cnn(
    n_classes: int, in_shape: tuple[int, ...], width: int = 16, batch_norm: bool = False
) -> nn.Sequential:
    """Three 3x3 convolutions (the last two with stride 2), average pool, linear; no skip."""
    layers: list[nn.Module] = []
    channels = in_shape[0]
    for out, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        layers.append(nn.Conv2d(channels, out, 3, stride, padding=1, bias=not batch_norm))
        layers += [nn.BatchNorm2d(out)] if batch_norm else []
        layers.append(nn.ReLU())
        channels = out
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes))
    return nn.Sequential(*layers, *head)


def strided_cnn(n_classes: int, in_shape: tuple[int, ...], width: int = 32) -> nn.Sequential:
    """Three 3x3 convolutions with batch norm (the outer two with stride 2), 4x4 pool, linear.

    Sees more of an image's parts than `small_cnn`, whose last pool leaves one number a channel, in
    less time, as no convolution works at full resolution.
    """
    layers: list[nn.Module] = []
    channels = in_shape[0]
    for out, stride in ((width, 2), (2 * width, 1), (4 * width, 2)):
        layers += [nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out)]
        layers.append(nn.ReLU())
        channels = out
    head = (nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, n_classes))
    return nn.Sequential(*layers, *head)


# ModelEnsemble of any image size that a processor trains in a moment: the ones that `together` is for, and
# what the tests train over and over in float64. The papers' nets have tests of their own.
SMALL: dict[str, Builder] = {
    "mlp": mlp,
    "mlp_bn": partial(mlp, batch_norm=True),
    "small_cnn": small_cnn,
    "small_cnn_bn": partial(small_cnn, batch_norm=True),
}
MODELS: dict[str, Builder] = {
    **SMALL,
    "strided_cnn": strided_cnn,
    "resnet18": architectures.resnet18,
    "resnet50": architectures.resnet50,
    "vgg13_bn": architectures.vgg13_bn,
    "densenet121": architectures.densenet121,
    "mobilenet_v2": architectures.mobilenet_v2,
    "small_inception": architectures.small_inception,
    "vit_medium": vit.vit_medium,
}


def build(
    model: str | Builder, n_classes: int, in_shape: tuple[int, ...], *, seed: int = 0
) -> nn.Module:
    """A freshly initialised net; the same seed gives the same weights.

    Parameters
    ----------
    model : str or builder
        A name from ``MODELS``, or a function of your own of the same form.

    Raises
    ------
    ValueError
        If the name is unknown, and the message lists the known ones; if the net cannot take images
        of this size, and the message says which it can.
    """
    if isinstance(model, str):
        if model not in MODELS:
            raise ValueError(f"unknown model {model!r}; known: {', '.join(sorted(MODELS))}")
        model = MODELS[model]
    with torch.random.fork_rng(devices=[]):  # the caller's generator stays where it was
        torch.manual_seed(seed)
        try:
            return model(n_classes, in_shape)
        except ModuleNotFoundError as error:
            raise ImportError(
                f"this net needs {error.name}: pip install 'memlens[audit]' adds torchvision"
            ) from error
