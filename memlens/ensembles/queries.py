"""Query the networks of a sweep about every sample, at snapshots of their training.

A membership inference attack needs predictions of many networks that were stopped by one rule. Each
network is stopped where it would have stopped alone: at one of `peaks.STOPS` (the peak of its input
gradient or weight norm, Label Wave, its lowest validation loss, the last epoch), or after a number
of epochs that is the same for all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from memlens.data.samples import Dataset
from memlens.ensembles.model_ensemble import ModelEnsemble, StepRecorder, train_ensemble
from memlens.storage.store import Arrays
from memlens.tracking import signals
from memlens.tracking.peaks import CURVES, STOPS, StopRules
from memlens.training.batches import sequential_batches
from memlens.training.config import TrainConfig
from memlens.training.devices import EVAL_ROWS, exact_float32, thread_count

Snapshot = str | int  # a name of `peaks.STOPS`, or a number of epochs
IN_STEP = {"input_gradient", "label_wave"}  # stops that need what a step computes


def _shifted(rows: int, columns: int) -> Callable[[Tensor], Tensor]:
    """Return a function that moves images (n, c, h, w) by whole pixels, and fills with 0."""

    def shift(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = F.pad(images, (1, 1, 1, 1))
        return padded[..., 1 - rows : 1 - rows + height, 1 - columns : 1 - columns + width]

    return shift


# Test-time augmentations, as functions of images in the units of the data.
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
    """The predictions to take from each network of a sweep, and when.

    >>> Queries(snapshots=("weight_norm", "last"), augmentations=("identity", "flip"))
    Queries(snapshots=('weight_norm', 'last'), augmentations=('identity', 'flip'), n_directions=0)

    Attributes
    ----------
    snapshots : tuple of str or int
        Names of `peaks.STOPS`, each network at its own; or numbers of epochs, the same for all
        networks.
    augmentations : tuple of str
        Keys of `AUGMENTATIONS`, for the named snapshots; after a number of epochs only the first
        is used.
    n_directions : int
        Random directions of the zero-order curvature at the named snapshots; 0: none.

    Raises
    ------
    ValueError
        For an unknown snapshot or augmentation, none at all, or one twice.
    """

    snapshots: tuple[Snapshot, ...] = ("last",)
    augmentations: tuple[str, ...] = ("identity",)
    n_directions: int = 0

    def __post_init__(self) -> None:
        for name, given in (("snapshots", self.snapshots), ("augmentations", self.augmentations)):
            if not isinstance(given, tuple) or not given or len(set(given)) < len(given):
                raise ValueError(f"{name} are {given!r}: pass a tuple of one or more, each once")
        wrong = [s for s in self.snapshots if type(s) not in (str, int)]  # True is no number here
        if wrong or type(self.n_directions) is not int:
            raise ValueError(
                f"snapshots {wrong} or n_directions {self.n_directions!r} are neither names nor "
                "whole numbers: pass int(...)"
            )
        numbers = [snapshot for snapshot in self.snapshots if not isinstance(snapshot, str)]
        unknown = {*self.snapshots} - {*numbers, *STOPS}
        unknown |= {*self.augmentations} - {*AUGMENTATIONS}
        if unknown:
            known = ", ".join([*STOPS, "a number of epochs"])
            raise ValueError(
                f"unknown: {', '.join(sorted(unknown))}; snapshots are {known}; augmentations "
                f"{', '.join(AUGMENTATIONS)}"
            )
        if any(number < 1 for number in numbers) or self.n_directions < 0:
            raise ValueError(
                f"snapshots {numbers}, n_directions {self.n_directions}: expected 1 epoch or more, "
                "and no negative number of directions"
            )

    def augmentations_at(self, snapshot: Snapshot) -> tuple[str, ...]:
        """Return the augmentations at a snapshot: all at a named one, else the first."""
        return self.augmentations if isinstance(snapshot, str) else self.augmentations[:1]

    def nbytes(self, n_models: int, n_samples: int, n_classes: int) -> int:
        """Return the bytes of the logits of ``n_models`` networks."""
        n_queries = sum(len(self.augmentations_at(snapshot)) for snapshot in self.snapshots)
        return 4 * n_models * n_queries * n_samples * n_classes


def train_and_query(
    ensemble: ModelEnsemble,
    data: Dataset,
    masks: np.ndarray,
    config: TrainConfig,
    seeds: Sequence[int],
    queries: Queries,
) -> Arrays:
    """Train the networks of an ensemble, and take their predictions at every snapshot.

    Parameters
    ----------
    ensemble, data, masks, config, seeds
        As in `model_ensemble.train_ensemble`.
    queries : Queries

    Returns
    -------
    dict of ndarray
        For each snapshot, in eval mode: ``logits/<snapshot>`` (n_models, n_augmentations,
        n_samples, n_classes), float32; ``epochs/<snapshot>`` (n_models,), the epochs each network
        was trained; with ``n_directions``, ``curvature/<snapshot>`` (n_models, n_samples), float64.
        With other snapshots than the last: ``val_accuracy``, ``val_loss`` and ``weight_norm``
        (n_models, n_epochs); with "input_gradient" or "label_wave", also ``input_gradient`` and
        ``label_changes``, which take a gradient by the input in every step.

    Raises
    ------
    ValueError
        If a snapshot lies beyond the configuration's epochs; see also `train_ensemble`.
    TypeError
        See `train_ensemble`.
    FloatingPointError
        If a training diverges.
    """
    if late := [s for s in queries.snapshots if not isinstance(s, str) and s > config.epochs]:
        raise ValueError(f"snapshots after {late} epochs; the config has {config.epochs}")
    with thread_count(config.threads), exact_float32():
        if queries.snapshots == ("last",):
            train_ensemble(ensemble, data, masks, config, seeds)
            epochs = np.full(len(ensemble), config.epochs)
            return _predictions(ensemble, data, "last", queries, epochs)
        keeper = _SnapshotKeeper(ensemble, data, config, queries)
        recorder, after = keeper.recorder, keeper.after_epoch
        train_ensemble(ensemble, data, masks, config, seeds, recorder=recorder, after_epoch=after)
        return keeper.finish()


def epoch_row(ensemble: ModelEnsemble, data: Dataset, recorder: StepRecorder | None) -> Arrays:
    """Return what the stops need of an epoch that has just ended, (n_models,) each.

    ``val_loss`` and ``val_accuracy`` of the test samples in eval mode, ``weight_norm``; with a
    recorder, whose epoch ends here, also ``input_gradient`` and ``label_changes``.
    """
    logits = ensemble.predict(data, data.test)
    y = data.test.labels.to(logits.device)
    losses = signals.loss(logits.flatten(0, 1), y.repeat(len(logits))).view(len(logits), -1)
    accuracy = (logits.argmax(2) == y).float().mean(1)
    row = {"val_loss": losses.mean(1).cpu().numpy(), "val_accuracy": accuracy.cpu().numpy()}
    row |= {"weight_norm": ensemble.weight_norms().cpu().numpy()}
    return row | (recorder.end_epoch() if recorder else {})


class _SnapshotKeeper:
    """Keeps the weights of each network at its own snapshots, and queries them."""

    def __init__(
        self, ensemble: ModelEnsemble, data: Dataset, config: TrainConfig, queries: Queries
    ) -> None:
        self.ensemble, self.data, self.queries = ensemble, data, queries
        self.rules = [StopRules(config.patience) for _ in range(len(ensemble))]
        self.recorder: StepRecorder | None = None
        if IN_STEP & {*queries.snapshots}:
            shape = len(ensemble), len(data.train)
            self.recorder = StepRecorder(*shape, config.engine().device)
        self.history: dict[str, list[np.ndarray]] = {}
        self.weights: dict[str, dict[str, Tensor]] = {}  # by snapshot
        self.epochs: dict[str, np.ndarray] = {}
        self.arrays: Arrays = {}

    @property
    def n_epochs(self) -> int:
        return len(self.history["val_loss"])

    def after_epoch(self) -> None:
        row = epoch_row(self.ensemble, self.data, self.recorder)
        for name, values in row.items():
            self.history.setdefault(name, []).append(values)
        _refuse_divergence(np.isfinite(row["weight_norm"]), self.n_epochs)
        rows = [dict(zip(row, values, strict=True)) for values in zip(*row.values(), strict=True)]
        due = [rule.update(values) for rule, values in zip(self.rules, rows, strict=True)]
        for snapshot in CURVES:
            if snapshot in self.queries.snapshots:
                self._keep(snapshot, np.array([snapshot in names for names in due]))
        if self.n_epochs in self.queries.snapshots:
            self._query(self.n_epochs, np.full(len(self.ensemble), self.n_epochs))

    def _keep(self, snapshot: str, which: np.ndarray) -> None:
        """Copy the weights of the networks in the mask ``which``, (n_models,) bool."""
        state = self.ensemble.weights | self.ensemble.buffers
        if snapshot not in self.weights:
            empty = {name: torch.empty_like(stack) for name, stack in state.items()}
            self.weights[snapshot] = empty
            self.epochs[snapshot] = np.zeros(len(self.ensemble), dtype=np.int64)
        chosen = torch.as_tensor(which, device=self.ensemble.device)
        for name, stack in state.items():
            self.weights[snapshot][name][chosen] = stack.detach()[chosen]
        self.epochs[snapshot][which] = self.n_epochs

    def _query(
        self, snapshot: Snapshot, epochs: np.ndarray, ensemble: ModelEnsemble | None = None
    ) -> None:
        ensemble = ensemble or self.ensemble
        self.arrays |= _predictions(ensemble, self.data, snapshot, self.queries, epochs)

    def finish(self) -> Arrays:
        history = {name: np.stack(rows, axis=1) for name, rows in self.history.items()}
        if "last" in self.queries.snapshots:
            self._query("last", np.full(len(self.ensemble), self.n_epochs))
        for snapshot, state in self.weights.items():
            weights = {name: state[name] for name in self.ensemble.weights}
            buffers = {name: state[name] for name in self.ensemble.buffers}
            kept = ModelEnsemble(self.ensemble.base, weights, buffers)
            self._query(snapshot, self.epochs[snapshot], kept)
        return self.arrays | history


def _refuse_divergence(finite: np.ndarray, epoch: int) -> None:
    if not finite.all():
        raise FloatingPointError(
            f"{(~finite).sum()} of {len(finite)} networks trained together have diverged by epoch "
            f"{epoch}, the first is number {finite.argmin()}; lower the learning rate"
        )


def _predictions(
    ensemble: ModelEnsemble, data: Dataset, snapshot: Snapshot, queries: Queries, epochs: np.ndarray
) -> Arrays:
    names = queries.augmentations_at(snapshot)
    augmented = (AUGMENTATIONS[name](data.train.images) for name in names)
    logits = torch.stack([ensemble.predict(data, images).cpu() for images in augmented], 1)
    _refuse_divergence(logits.isfinite().flatten(1).all(1).numpy(), int(epochs.max()))
    arrays = {f"logits/{snapshot}": logits.numpy(), f"epochs/{snapshot}": epochs}
    if isinstance(snapshot, str) and queries.n_directions:
        curvature = curvature_of(ensemble, data, queries.n_directions)
        arrays[f"curvature/{snapshot}"] = curvature.cpu().numpy()
    return arrays


def curvature_of(ensemble: ModelEnsemble, data: Dataset, n_directions: int) -> Tensor:
    """Return `signals.zero_order_curvature` of every training sample in every network.

    Returns
    -------
    Tensor (n_models, n_samples), float64
        0 or more; in eval mode, of clean samples.
    """
    double, parts = ensemble.double(), []
    batches = sequential_batches(data.train, EVAL_ROWS, ensemble.device)
    for number, (images, y) in enumerate(batches):
        x = data.normalise(images).double()
        options = {"n_directions": n_directions, "seed": number}
        parts.append(signals.zero_order_curvature(double.evaluate, x, y, **options))
    return torch.cat(parts, 1)
