"""Networks by name: functions ``(n_classes, in_shape) -> nn.Module``, initialised by `build`."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
from torch import nn

from memlens.models import architectures

Builder = Callable[[int, tuple[int, ...]], nn.Module]


def mlp(
    n_classes: int,
    in_shape: tuple[int, ...],
    hidden: Sequence[int] = (128, 128),
    batch_norm: bool = False,
) -> nn.Sequential:
    """Fully connected network with ReLU on the flattened input, without skip connections."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = prod(in_shape)
    for size in hidden:
        layers.append(nn.Linear(width, size))
        layers += [nn.BatchNorm1d(size)] if batch_norm else []
        layers.append(nn.ReLU())
        width = size
    return nn.Sequential(*layers, nn.Linear(width, n_classes))


def small_cnn(n_classes: int, in_shape: tuple[int, ...], batch_norm: bool = False) -> nn.Sequential:
    """Three 3x3 convolutions (the last two with stride 2), average pool, a linear layer."""
    layers: list[nn.Module] = []
    channels = in_shape[0]
    for out, stride in ((16, 1), (32, 2), (64, 2)):
        layers.append(nn.Conv2d(channels, out, 3, stride, padding=1, bias=not batch_norm))
        layers += [nn.BatchNorm2d(out)] if batch_norm else []
        layers.append(nn.ReLU())
        channels = out
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes))
    return nn.Sequential(*layers, *head)


def strided_cnn(n_classes: int, in_shape: tuple[int, ...]) -> nn.Sequential:
    """Three 3x3 convolutions with batch norm (first and last with stride 2), 4x4 pool, linear.

    Keeps more spatial information than `small_cnn`, whose pool leaves one number per channel, and
    takes less time, since the first convolution already has stride 2.
    """
    layers: list[nn.Module] = []
    channels = in_shape[0]
    for out, stride in ((32, 2), (64, 1), (128, 2)):
        layers += [nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out)]
        layers.append(nn.ReLU())
        channels = out
    head = (nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, n_classes))
    return nn.Sequential(*layers, *head)


# Networks for any image size that a CPU trains in seconds; only these can be trained as a stack
# (`memlens.ensembles.model_ensemble`).
SMALL: dict[str, Builder] = {
    "mlp": mlp,
    "mlp_bn": partial(mlp, batch_norm=True),
    "narrow_mlp": partial(mlp, hidden=(64, 64)),
    "narrow_mlp_bn": partial(mlp, hidden=(64, 64), batch_norm=True),
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
    "vit_medium": architectures.vit_medium,
    "vit_tiny": architectures.vit_tiny,
}


def build(
    model: str | Builder, n_classes: int, in_shape: tuple[int, ...], *, seed: int = 0
) -> nn.Module:
    """Initialise a network; the same seed gives the same weights.

    Parameters
    ----------
    model : str or callable
        A name in ``MODELS``, or a function ``(n_classes, in_shape) -> nn.Module``.
    n_classes : int
    in_shape : tuple of int
        (channels, height, width).
    seed : int
        Leaves torch's global generator as it is.

    Raises
    ------
    ValueError
        If the name is unknown, or the network does not accept images of this size.
    ImportError
        If the network needs torchvision and it is not installed.

    Examples
    --------
    >>> import memlens as ml
    >>> net = ml.build("mlp", 10, (1, 8, 8), seed=0)
    >>> sum(p.numel() for p in net.parameters())
    26122
    """
    if isinstance(model, str):
        if model not in MODELS:
            raise ValueError(f"unknown model {model!r}; known: {', '.join(sorted(MODELS))}")
        model = MODELS[model]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return model(n_classes, in_shape)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "torchvision":
                raise
            raise ImportError(
                "this network needs torchvision: pip install 'memlens[audit]', or choose one of "
                f"{', '.join(SMALL)}"
            ) from error
