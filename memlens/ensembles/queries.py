"""What nets that train together answer about every sample: at which snapshot, in which view.

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
from memlens.ensembles.model_ensemble import ModelEnsemble, train_ensemble
from memlens.storage.store import Arrays
from memlens.tracking import signals
from memlens.tracking.stopping import PeakDetector
from memlens.training.batches import in_order
from memlens.training.config import TrainConfig
from memlens.training.devices import EVAL_ROWS, exact_float32
from memlens.training.loop import thread_count
from memlens.training.runs import SNAPSHOTS

Snapshot = str | int


def _shifted(rows: int, columns: int) -> Callable[[Tensor], Tensor]:
    """Move images (n, c, h, w) by whole pixels; what comes in at the edge is 0."""

    def shift(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = F.pad(images, (1, 1, 1, 1))
        return padded[..., 1 - rows : 1 - rows + height, 1 - columns : 1 - columns + width]

    return shift


# How a sample may be shown to a net, as functions of images in the units of the data.
AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda images: images,
    "flip": lambda images: images.flip(-1),
    "left": _shifted(0, -1),
    "right": _shifted(0, 1),
    "up": _shifted(-1, 0),
    "down": _shifted(1, 0),
}


@dataclass(frozen=True)
class Queries:
    """What the nets of a sweep are asked about every sample, and when.

    Attributes
    ----------
    snapshots : names of `runs.SNAPSHOTS`, each net at its own, or numbers of epochs, all nets alike
    augmentations : keys of `AUGMENTATIONS`: how a sample is shown at the named snapshots; after a number of epochs only
        the first view is
    n_directions : random directions of the zero-order curvature at the named snapshots; 0: none

    Raises
    ------
    ValueError
        For an unknown snapshot or view, none at all, or one twice.
    """

    snapshots: tuple[Snapshot, ...] = ("last",)
    augmentations: tuple[str, ...] = ("identity",)
    n_directions: int = 0

    def __post_init__(self) -> None:
        for name, found in (("snapshots", self.snapshots), ("augmentations", self.augmentations)):
            if not isinstance(found, tuple) or not found or len(set(found)) < len(found):
                raise ValueError(f"{name} are {found!r}: pass a tuple of one or more, each once")
        wrong = [s for s in self.snapshots if type(s) not in (str, int)]  # a bool is no number here
        if wrong or type(self.n_directions) is not int:
            raise ValueError(
                f"snapshots {wrong} or n_directions {self.n_directions!r} are neither names nor "
                "whole numbers: pass int(...)"
            )
        numbers = [snapshot for snapshot in self.snapshots if not isinstance(snapshot, str)]
        if unknown := ({*self.snapshots} - {*numbers, *SNAPSHOTS}) | {*self.augmentations} - {
            *AUGMENTATIONS
        }:
            known = ", ".join([*SNAPSHOTS, "a number of epochs"])
            raise ValueError(
                f"unknown: {', '.join(sorted(unknown))}; snapshots are {known}; augmentations "
                f"{', '.join(AUGMENTATIONS)}"
            )
        if any(snapshot < 1 for snapshot in numbers) or self.n_directions < 0:
            raise ValueError(
                f"snapshots {numbers}, n_directions {self.n_directions}: a net snapshots after 1 "
                "epoch or more, and draws are not negative"
            )

    def augmentations_at(self, snapshot: Snapshot) -> tuple[str, ...]:
        """The augmentations asked at a snapshot: all at a named one, the first after a number of epochs."""
        return self.augmentations if isinstance(snapshot, str) else self.augmentations[:1]

    def nbytes(self, n_models: int, n_samples: int, n_classes: int) -> int:
        """Bytes of the logits that so many nets answer with."""
        n_shown = sum(len(self.augmentations_at(snapshot)) for snapshot in self.snapshots)
        return 4 * n_models * n_shown * n_samples * n_classes


def train_and_query(
    ensemble: ModelEnsemble,
    data: Dataset,
    masks: np.ndarray,
    config: TrainConfig,
    seeds: Sequence[int],
    queries: Queries,
) -> Arrays:
    """Train nets together, and ask them at every snapshot.

    Parameters
    ----------
    nets, data, masks, config, seeds
        As in `together.train_ensemble`.
    queries : Queries

    Returns
    -------
    dict of ndarray
        For each snapshot: ``logits/<snapshot>`` (n_models, n_augmentations, n_samples, n_classes), float32, eval
        mode; ``epochs/<snapshot>`` (n_models,), how many epochs each net was trained; where it was
        asked, ``curvature/<snapshot>`` (n_models, n_samples), float64. If there is more than the end to
        ask at: ``val_accuracy`` and ``val_loss`` (n_models, n_epochs), ``weight_norm`` alike.

    Raises
    ------
    ValueError
        If a snapshot lies beyond the config's epochs.
    ValueError, TypeError
        See `together.train_ensemble`.
    FloatingPointError
        If a training diverges.
    """
    if late := [s for s in queries.snapshots if not isinstance(s, str) and s > config.epochs]:
        raise ValueError(f"snapshots after {late} epochs; the config has {config.epochs}")
    with thread_count(config.threads), exact_float32():
        if queries.snapshots == ("last",):
            train_ensemble(ensemble, data, masks, config, seeds)
            return _asked(ensemble, data, "last", queries, np.full(len(ensemble), config.epochs))
        watch = _Watch(ensemble, data, config, queries)
        train_ensemble(ensemble, data, masks, config, seeds, after_epoch=watch.after_epoch)
        return watch.finish()


class _Watch:
    """Follows nets through their training, and keeps the weights of each at its own snapshots."""

    def __init__(
        self, ensemble: ModelEnsemble, data: Dataset, config: TrainConfig, queries: Queries
    ) -> None:
        self.ensemble, self.data, self.queries = ensemble, data, queries
        self.detectors = [PeakDetector(patience=config.patience) for _ in range(len(ensemble))]
        self.history: dict[str, list[np.ndarray]] = {}
        self.kept: dict[str, dict[str, Tensor]] = {}
        self.epochs: dict[str, np.ndarray] = {}
        self.arrays: Arrays = {}

    @property
    def n_epochs(self) -> int:
        return len(self.history["val_loss"])

    def after_epoch(self) -> None:
        row = self._validate() | {"weight_norm": self.ensemble.weight_norms().cpu().numpy()}
        for name, values in row.items():
            self.history.setdefault(name, []).append(values)
        _refuse_divergence(np.isfinite(row["weight_norm"]), self.n_epochs)
        self._keep("peak", self._at_peak(row["weight_norm"]))
        earlier = self.history["val_loss"][:-1]
        lowest = np.min(earlier, axis=0) if earlier else np.inf
        self._keep("best_val", ~(row["val_loss"] >= lowest))  # NaN is kept, as `training` does
        if self.n_epochs in self.queries.snapshots:
            self._ask(self.n_epochs, np.full(len(self.ensemble), self.n_epochs))

    def _validate(self) -> Arrays:
        logits = self.ensemble.predict(self.data, self.data.test)
        y = self.data.test.labels.to(logits.device)
        losses = signals.loss(logits.flatten(0, 1), y.repeat(len(logits))).view(len(logits), -1)
        accuracy = (logits.argmax(2) == y).float().mean(1)
        return {"val_loss": losses.mean(1).cpu().numpy(), "val_accuracy": accuracy.cpu().numpy()}

    def _at_peak(self, norms: np.ndarray) -> np.ndarray:
        for detector, norm in zip(self.detectors, norms.tolist()):
            detector.update(norm)
        return np.array([detector.at_best for detector in self.detectors])

    def _keep(self, snapshot: str, which: np.ndarray) -> None:
        if snapshot not in self.queries.snapshots:
            return
        state = self.ensemble.weights | self.ensemble.buffers
        if snapshot not in self.kept:
            self.kept[snapshot] = {name: torch.empty_like(stack) for name, stack in state.items()}
            self.epochs[snapshot] = np.zeros(len(self.ensemble), dtype=np.int64)
        chosen = torch.as_tensor(which, device=self.ensemble.device)
        for name, stack in state.items():
            self.kept[snapshot][name][chosen] = stack.detach()[chosen]
        self.epochs[snapshot][which] = self.n_epochs

    def _ask(
        self, snapshot: Snapshot, epochs: np.ndarray, ensemble: ModelEnsemble | None = None
    ) -> None:
        self.arrays |= _asked(ensemble or self.ensemble, self.data, snapshot, self.queries, epochs)

    def finish(self) -> Arrays:
        history = {name: np.stack(rows, axis=1) for name, rows in self.history.items()}
        if "last" in self.queries.snapshots:
            self._ask("last", np.full(len(self.ensemble), self.n_epochs))
        for snapshot, state in self.kept.items():
            parts = (
                {k: state[k] for k in own} for own in (self.ensemble.weights, self.ensemble.buffers)
            )
            self._ask(snapshot, self.epochs[snapshot], ModelEnsemble(self.ensemble.base, *parts))
        return self.arrays | history


def _refuse_divergence(finite: np.ndarray, epoch: int) -> None:
    if not finite.all():
        raise FloatingPointError(
            f"{(~finite).sum()} of {len(finite)} nets trained together have diverged by epoch "
            f"{epoch}, the first is number {finite.argmin()}; lower the learning rate"
        )


def _asked(
    ensemble: ModelEnsemble, data: Dataset, snapshot: Snapshot, queries: Queries, epochs: np.ndarray
) -> Arrays:
    shown = (AUGMENTATIONS[view](data.train.images) for view in queries.augmentations_at(snapshot))
    logits = torch.stack([ensemble.predict(data, images).cpu() for images in shown], 1)
    _refuse_divergence(logits.isfinite().flatten(1).all(1).numpy(), int(epochs.max()))
    found = {f"logits/{snapshot}": logits.numpy(), f"epochs/{snapshot}": epochs}
    if isinstance(snapshot, str) and queries.n_directions:
        bent = curvature_of(ensemble, data, queries.n_directions)
        found[f"curvature/{snapshot}"] = bent.cpu().numpy()
    return found


def curvature_of(ensemble: ModelEnsemble, data: Dataset, n_directions: int) -> Tensor:
    """`signals.zero_order_curvature` of every training sample in every net, in float64.

    Returns (n_models, n_samples), 0 or more; eval mode, clean samples.
    """
    double, found = ensemble.double(), []
    for number, (images, y) in enumerate(in_order(data.train, EVAL_ROWS, ensemble.device)):
        x = data.normalise(images).double()
        options = {"n_directions": n_directions, "seed": number}
        found.append(signals.zero_order_curvature(double.evaluate, x, y, **options))
    return torch.cat(found, 1)
