"""What nets that train together answer about every sample: at which stop, in which view.

An attack on a net's privacy needs answers of many nets that were stopped by one rule. Each net is
stopped where it would have stopped alone: at the peak of its own weight norm, at its own lowest
validation loss, or after a number of epochs that is the same for all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from memlens.data.samples import Dataset
from memlens.ensembles.together import Nets, train_together
from memlens.storage.store import Arrays
from memlens.tracking import signals
from memlens.tracking.stopping import PeakDetector
from memlens.training.devices import EVAL_ROWS, exact_float32
from memlens.training.feeds import in_order
from memlens.training.loop import thread_count
from memlens.training.recipes import Recipe
from memlens.training.runs import CHECKPOINTS

Stop = str | int


def _shifted(rows: int, columns: int) -> Callable[[Tensor], Tensor]:
    """Move images (n, c, h, w) by whole pixels; what comes in at the edge is 0."""

    def shift(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = F.pad(images, (1, 1, 1, 1))
        return padded[..., 1 - rows : 1 - rows + height, 1 - columns : 1 - columns + width]

    return shift


# How a sample may be shown to a net, as functions of images in the units of the data.
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda images: images,
    "flip": lambda images: images.flip(-1),
    "left": _shifted(0, -1),
    "right": _shifted(0, 1),
    "up": _shifted(-1, 0),
    "down": _shifted(1, 0),
}


@dataclass(frozen=True)
class Questions:
    """What the nets of a sweep are asked about every sample, and when.

    Attributes
    ----------
    stops : names of `runs.CHECKPOINTS`, each net at its own, or numbers of epochs, all nets alike
    views : keys of `VIEWS`: how a sample is shown at the named stops; after a number of epochs only
        the first view is
    curvature_draws : random directions of the zero-order curvature at the named stops; 0: none

    Raises
    ------
    ValueError
        For an unknown stop or view, none at all, or one twice.
    """

    stops: tuple[Stop, ...] = ("last",)
    views: tuple[str, ...] = ("identity",)
    curvature_draws: int = 0

    def __post_init__(self) -> None:
        for name, found in (("stops", self.stops), ("views", self.views)):
            if not isinstance(found, tuple) or not found or len(set(found)) < len(found):
                raise ValueError(f"{name} are {found!r}: pass a tuple of one or more, each once")
        wrong = [s for s in self.stops if type(s) not in (str, int)]  # a bool is no number here
        if wrong or type(self.curvature_draws) is not int:
            raise ValueError(
                f"stops {wrong} or curvature_draws {self.curvature_draws!r} are neither names nor "
                "whole numbers: pass int(...)"
            )
        numbers = [stop for stop in self.stops if not isinstance(stop, str)]
        if unknown := ({*self.stops} - {*numbers, *CHECKPOINTS}) | {*self.views} - {*VIEWS}:
            known = ", ".join([*CHECKPOINTS, "a number of epochs"])
            raise ValueError(
                f"unknown: {', '.join(sorted(unknown))}; stops are {known}; views "
                f"{', '.join(VIEWS)}"
            )
        if any(stop < 1 for stop in numbers) or self.curvature_draws < 0:
            raise ValueError(
                f"stops {numbers}, curvature_draws {self.curvature_draws}: a net stops after 1 "
                "epoch or more, and draws are not negative"
            )

    def views_at(self, stop: Stop) -> tuple[str, ...]:
        """The views asked at a stop: all at a named one, the first after a number of epochs."""
        return self.views if isinstance(stop, str) else self.views[:1]

    def nbytes(self, n_models: int, n_samples: int, n_classes: int) -> int:
        """Bytes of the logits that so many nets answer with."""
        n_shown = sum(len(self.views_at(stop)) for stop in self.stops)
        return 4 * n_models * n_shown * n_samples * n_classes


def train_and_ask(
    nets: Nets,
    data: Dataset,
    masks: np.ndarray,
    recipe: Recipe,
    seeds: Sequence[int],
    questions: Questions,
) -> Arrays:
    """Train nets together, and ask them at every stop.

    Parameters
    ----------
    nets, data, masks, recipe, seeds
        As in `together.train_together`.
    questions : Questions

    Returns
    -------
    dict of ndarray
        For each stop: ``logits/<stop>`` (n_models, n_views, n_samples, n_classes), float32, eval
        mode; ``epochs/<stop>`` (n_models,), how many epochs each net was trained; where it was
        asked, ``curvature/<stop>`` (n_models, n_samples), float64. If there is more than the end to
        ask at: ``val_accuracy`` and ``val_loss`` (n_models, n_epochs), ``weight_norm`` alike.

    Raises
    ------
    ValueError
        If a stop lies beyond the recipe's epochs.
    ValueError, TypeError
        See `together.train_together`.
    FloatingPointError
        If a training diverges.
    """
    if late := [s for s in questions.stops if not isinstance(s, str) and s > recipe.epochs]:
        raise ValueError(f"stops after {late} epochs; the recipe has {recipe.epochs}")
    with thread_count(recipe.threads), exact_float32():
        if questions.stops == ("last",):
            train_together(nets, data, masks, recipe, seeds)
            return _asked(nets, data, "last", questions, np.full(len(nets), recipe.epochs))
        watch = _Watch(nets, data, recipe, questions)
        train_together(nets, data, masks, recipe, seeds, after_epoch=watch.after_epoch)
        return watch.finish()


class _Watch:
    """Follows nets through their training, and keeps the weights of each at its own stops."""

    def __init__(self, nets: Nets, data: Dataset, recipe: Recipe, questions: Questions) -> None:
        self.nets, self.data, self.questions = nets, data, questions
        self.detectors = [PeakDetector(patience=recipe.patience) for _ in range(len(nets))]
        self.history: dict[str, list[np.ndarray]] = {}
        self.kept: dict[str, dict[str, Tensor]] = {}
        self.epochs: dict[str, np.ndarray] = {}
        self.arrays: Arrays = {}

    @property
    def n_epochs(self) -> int:
        return len(self.history["val_loss"])

    def after_epoch(self) -> None:
        row = self._validate() | {"weight_norm": self.nets.weight_norms().cpu().numpy()}
        for name, values in row.items():
            self.history.setdefault(name, []).append(values)
        _refuse_divergence(np.isfinite(row["weight_norm"]), self.n_epochs)
        self._keep("peak", self._at_peak(row["weight_norm"]))
        earlier = self.history["val_loss"][:-1]
        lowest = np.min(earlier, axis=0) if earlier else np.inf
        self._keep("best_val", ~(row["val_loss"] >= lowest))  # NaN is kept, as `training` does
        if self.n_epochs in self.questions.stops:
            self._ask(self.n_epochs, np.full(len(self.nets), self.n_epochs))

    def _validate(self) -> Arrays:
        logits = self.nets.predict(self.data, self.data.test)
        y = self.data.test.labels.to(logits.device)
        losses = signals.loss(logits.flatten(0, 1), y.repeat(len(logits))).view(len(logits), -1)
        accuracy = (logits.argmax(2) == y).float().mean(1)
        return {"val_loss": losses.mean(1).cpu().numpy(), "val_accuracy": accuracy.cpu().numpy()}

    def _at_peak(self, norms: np.ndarray) -> np.ndarray:
        for detector, norm in zip(self.detectors, norms.tolist()):
            detector.update(norm)
        return np.array([detector.at_best for detector in self.detectors])

    def _keep(self, stop: str, which: np.ndarray) -> None:
        if stop not in self.questions.stops:
            return
        state = self.nets.weights | self.nets.buffers
        if stop not in self.kept:
            self.kept[stop] = {name: torch.empty_like(stack) for name, stack in state.items()}
            self.epochs[stop] = np.zeros(len(self.nets), dtype=np.int64)
        chosen = torch.as_tensor(which, device=self.nets.device)
        for name, stack in state.items():
            self.kept[stop][name][chosen] = stack.detach()[chosen]
        self.epochs[stop][which] = self.n_epochs

    def _ask(self, stop: Stop, epochs: np.ndarray, nets: Nets | None = None) -> None:
        self.arrays |= _asked(nets or self.nets, self.data, stop, self.questions, epochs)

    def finish(self) -> Arrays:
        history = {name: np.stack(rows, axis=1) for name, rows in self.history.items()}
        if "last" in self.questions.stops:
            self._ask("last", np.full(len(self.nets), self.n_epochs))
        for stop, state in self.kept.items():
            parts = ({k: state[k] for k in own} for own in (self.nets.weights, self.nets.buffers))
            self._ask(stop, self.epochs[stop], Nets(self.nets.base, *parts))
        return self.arrays | history


def _refuse_divergence(finite: np.ndarray, epoch: int) -> None:
    if not finite.all():
        raise FloatingPointError(
            f"{(~finite).sum()} of {len(finite)} nets trained together have diverged by epoch "
            f"{epoch}, the first is number {finite.argmin()}; lower the learning rate"
        )


def _asked(
    nets: Nets, data: Dataset, stop: Stop, questions: Questions, epochs: np.ndarray
) -> Arrays:
    shown = (VIEWS[view](data.train.images) for view in questions.views_at(stop))
    logits = torch.stack([nets.predict(data, images).cpu() for images in shown], 1)
    _refuse_divergence(logits.isfinite().flatten(1).all(1).numpy(), int(epochs.max()))
    found = {f"logits/{stop}": logits.numpy(), f"epochs/{stop}": epochs}
    if isinstance(stop, str) and questions.curvature_draws:
        bent = curvature_of(nets, data, questions.curvature_draws)
        found[f"curvature/{stop}"] = bent.cpu().numpy()
    return found


def curvature_of(nets: Nets, data: Dataset, n_draws: int) -> Tensor:
    """`signals.zero_order_curvature` of every training sample in every net, in float64.

    Returns (n_models, n_samples), 0 or more; eval mode, clean samples.
    """
    double, found = nets.double(), []
    for number, (images, y) in enumerate(in_order(data.train, EVAL_ROWS, nets.device)):
        x = data.normalise(images).double()
        options = {"n_draws": n_draws, "seed": number}
        found.append(signals.zero_order_curvature(double.evaluate, x, y, **options))
    return torch.cat(found, 1)
