"""How a net is trained and what is measured on the way: frozen tables, one line a setting."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from memlens.stopping import PEAKS

AUGMENTS = ("none", "crop", "crop_flip")

# Fused kernels do the whole update of a small net in one call; RMSProp has none on a CPU.
OPTIMIZERS: dict[str, Callable[[Iterable[Tensor], "Recipe"], torch.optim.Optimizer]] = {
    "sgd": lambda p, r: torch.optim.SGD(
        p, r.lr, momentum=r.momentum, weight_decay=r.weight_decay, fused=True
    ),
    "adam": lambda p, r: torch.optim.Adam(p, r.lr, weight_decay=r.weight_decay, fused=True),
    "adamw": lambda p, r: torch.optim.AdamW(p, r.lr, weight_decay=r.weight_decay, fused=True),
    "adagrad": lambda p, r: torch.optim.Adagrad(p, r.lr, weight_decay=r.weight_decay, fused=True),
    "rmsprop": lambda p, r: torch.optim.RMSprop(
        p, r.lr, momentum=r.momentum, weight_decay=r.weight_decay
    ),
}


@dataclass(frozen=True)
class Recipe:
    """How a net is trained; the defaults are the papers' recipe at the size of digits."""

    epochs: int = 60
    batch_size: int = 64
    optimizer: str = "sgd"  # a key of OPTIMIZERS
    lr: float = 0.1
    momentum: float = 0.9  # SGD and RMSProp
    weight_decay: float = 1e-4  # on all parameters, as in the authors' code
    milestones: tuple[float, ...] = (0.6, 0.8)  # shares of the epochs where lr is multiplied
    gamma: float = 0.1
    augment: str = "none"  # one of AUGMENTS
    seed: int = 0  # initial weights, order of the samples, augmentation
    stop: str | None = None  # "weight_norm" or "input_gradient": really stop at its peak
    patience: int = 5  # epochs without a new best value before a peak is called
    threads: int | None = 1  # None: as torch is set; other thread counts round differently

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            known = ", ".join(OPTIMIZERS)
            raise ValueError(f"unknown optimizer {self.optimizer!r}; known: {known}")
        if self.augment not in AUGMENTS:
            raise ValueError(f"unknown augment {self.augment!r}; known: {', '.join(AUGMENTS)}")
        if self.stop not in (None, *PEAKS):
            raise ValueError(f"unknown stop {self.stop!r}; expected None or one of {PEAKS}")
        if self.epochs < 1 or self.batch_size < 1 or not self.lr > 0:
            raise ValueError(
                f"epochs={self.epochs}, batch_size={self.batch_size}, lr={self.lr}: "
                "expected at least one epoch, one sample a batch and a learning rate above 0"
            )

    def lr_at(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        passed = sum(epoch >= int(share * self.epochs) for share in self.milestones)
        return self.lr * self.gamma**passed


@dataclass(frozen=True)
class Measure:
    """What is measured after an epoch, beside the in-step signals that cost next to nothing."""

    posthoc: bool = False  # the same signals in eval mode on clean inputs, as the authors' code
    curvature_probes: int = 0  # 0: no curvature; the paper takes 10
    curvature_step: float = 1e-3  # h, in normalised input units
    every: int = 1  # epochs between two measurements of curvature
