"""Configuration of a training, and of what is measured after its epochs."""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from memlens.tracking.peaks import STOPS
from memlens.training.devices import PRECISIONS, Engine

AUGMENTS = ("none", "crop", "crop_flip")

# Fused kernels update a small network in one call; RMSProp has none on a CPU.
OPTIMIZERS: dict[str, Callable[[Iterable[Tensor], "TrainConfig"], torch.optim.Optimizer]] = {
    "sgd": lambda p, c: torch.optim.SGD(
        p, c.lr, momentum=c.momentum, weight_decay=c.weight_decay, fused=True
    ),
    "adam": lambda p, c: torch.optim.Adam(p, c.lr, weight_decay=c.weight_decay, fused=True),
    "adamw": lambda p, c: torch.optim.AdamW(p, c.lr, weight_decay=c.weight_decay, fused=True),
    "adagrad": lambda p, c: torch.optim.Adagrad(p, c.lr, weight_decay=c.weight_decay, fused=True),
    "rmsprop": lambda p, c: torch.optim.RMSprop(
        p, c.lr, momentum=c.momentum, weight_decay=c.weight_decay
    ),
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training; the defaults are those of the profile fashion_small.

    >>> config = TrainConfig(epochs=10, lr=0.5)
    >>> [config.lr_at(epoch) for epoch in (0, 6)]
    [0.5, 0.05]
    """

    epochs: int = 60
    batch_size: int = 64
    optimizer: str = "sgd"  # a key of OPTIMIZERS
    lr: float = 0.05
    momentum: float = 0.9  # SGD and RMSProp
    weight_decay: float = 1e-3  # on all parameters, as in the authors' code
    milestones: tuple[float, ...] = (0.6, 0.8)  # shares of the epochs where lr is multiplied
    gamma: float = 0.1
    sam_rho: float = 0.0  # radius of sharpness-aware minimization, usually 0.05; 0: none
    augment: str = "none"  # one of AUGMENTS
    seed: int = 0  # initial weights, order of the samples, augmentation
    stop: str | None = None  # one of `peaks.STOPS`: end when it is detected; None: the last epoch
    patience: int = 5  # epochs without a new best value before a peak or lowest loss is detected
    threads: int | None = 1  # None: torch's own setting; other thread counts round differently
    device: str = "cpu"  # "cuda", "cuda:1"; "auto": a GPU where there is one
    precision: str = "float32"  # of training passes, or "bfloat16"; "auto": bfloat16 on a GPU
    channels_last: bool | None = False  # store images pixel by pixel; None: on a GPU
    compiled: bool | None = False  # use torch.compile; None: on a GPU

    def __post_init__(self) -> None:
        # Plain numbers: a checkpoint with one of NumPy's could not be loaded safely.
        for name in ("lr", "momentum", "weight_decay", "gamma", "sam_rho"):
            object.__setattr__(self, name, float(getattr(self, name)))
        for name in ("epochs", "batch_size", "seed", "patience"):
            object.__setattr__(self, name, operator.index(getattr(self, name)))
        object.__setattr__(self, "milestones", tuple(map(float, self.milestones)))
        if self.optimizer not in OPTIMIZERS:
            known = ", ".join(OPTIMIZERS)
            raise ValueError(f"unknown optimizer {self.optimizer!r}; known: {known}")
        if self.augment not in AUGMENTS:
            raise ValueError(f"unknown augment {self.augment!r}; known: {', '.join(AUGMENTS)}")
        if self.stop not in (None, *STOPS):
            raise ValueError(f"unknown stop {self.stop!r}; expected None or one of {STOPS}")
        object.__setattr__(self, "stop", None if self.stop == "last" else self.stop)
        if self.epochs < 1 or self.batch_size < 1 or not self.lr > 0:
            raise ValueError(
                f"epochs={self.epochs}, batch_size={self.batch_size}, lr={self.lr}: "
                "expected at least one epoch, one sample a batch and a learning rate above 0"
            )
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ValueError(f"unknown precision {self.precision!r}; known: {known}")
        if not self.sam_rho >= 0:
            raise ValueError(f"sam_rho is {self.sam_rho}; expected a radius, or 0 for none")

    def engine(self) -> Engine:
        """Return device, precision, layout and compilation on this machine."""
        return Engine.of(self.device, self.precision, self.channels_last, self.compiled)

    def build_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameters; `lr_at` gives its learning rate by epoch."""
        return OPTIMIZERS[self.optimizer](parameters, self)

    @property
    def drops(self) -> tuple[int, ...]:
        """Epochs, counted from 0, that begin with a lower learning rate; never the first one."""
        return tuple(max(1, int(share * self.epochs)) for share in self.milestones)

    def lr_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        return self.lr * self.gamma ** sum(epoch >= drop for drop in self.drops)


@dataclass(frozen=True)
class MeasureConfig:
    """Measurements after each epoch, in addition to those recorded during training.

    Every other setting needs ``posthoc=True``.

    >>> MeasureConfig(posthoc=True, n_directions=10).n_directions
    10
    """

    posthoc: bool = False  # the same signals in eval mode on clean inputs, as in the authors' code
    n_directions: int = 0  # of the curvature, 10 in the paper; 0: no curvature
    curvature_step: float = 1e-3  # h, in normalised input units
    weight_gradients: bool = False  # per-sample norms, for GraNd and TracIn
    logit_gradients: bool = False  # their variance over the epochs, for VoG
    every: int = 1  # epochs between two measurements of curvature and gradients

    def __post_init__(self) -> None:
        requested = [
            name
            for name in ("n_directions", "weight_gradients", "logit_gradients")
            if getattr(self, name)
        ]
        if requested and not self.posthoc:
            raise ValueError(f"{', '.join(requested)} needs the post-hoc pass: set posthoc=True")
        if self.every < 1 or self.n_directions < 0 or not self.curvature_step > 0:
            raise ValueError(
                f"every={self.every}, n_directions={self.n_directions}, curvature_step="
                f"{self.curvature_step}: expected every >= 1, n_directions >= 0, curvature_step > 0"
            )


def mixed_seed(*numbers: int) -> int:
    """Return one seed from several numbers, without the collisions of a sum.

    Trailing zeros are ignored: (5,) and (5, 0) give the same seed.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
