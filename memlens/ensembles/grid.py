"""Networks over a grid of learning rates and weight decays, and where each would be stopped.

All networks of a grid are trained together as `ModelEnsemble`s, each with its own rate and decay.
What is recorded after every epoch is what the stops of `peaks.STOPS` need; no scores are kept. The
result is cached, and so is every ensemble until the last one is done.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
from joblib import delayed

from memlens.data.samples import Dataset
from memlens.ensembles.model_ensemble import (
    ModelEnsemble,
    StepRecorder,
    ensemble_size,
    train_ensemble,
)
from memlens.ensembles.queries import epoch_row
from memlens.storage import store
from memlens.storage.store import Arrays
from memlens.tracking.peaks import CURVES, PEAKS, Peak, StopRules
from memlens.training.config import TrainConfig
from memlens.training.devices import exact_float32, thread_count
from memlens.training.jobs import (
    KeyedArtifact,
    described,
    on_cluster,
    run_parallel,
    store_or_return,
)

GRID_VERSION = 1  # part of every key, see `jobs.RUN_VERSION`
# A stack of 48 narrow perceptrons with batch norm takes 270 us a network and step, one of 8 370 us.
CPU_ENSEMBLE_SIZE = 48
LEARNED = 0.1  # of the way from the accuracy of a guess to 1; a network that stays below has failed


@dataclass(frozen=True)
class Grid:
    """The finished networks of a grid, as `train_grid` returns them.

    Attributes
    ----------
    networks : DataFrame
        ``lr``, ``weight_decay`` and ``seed`` of each network.
    curves : dict of ndarray (n_networks, n_epochs)
        ``input_gradient``, ``label_changes``, ``weight_norm``, ``val_loss`` and ``val_accuracy``
        of every epoch; not finite after a training has diverged.
    n_classes : int
    patience : int
        Epochs without a new best value before a stop is called.
    """

    networks: pd.DataFrame
    curves: Mapping[str, np.ndarray]
    n_classes: int
    patience: int

    def __repr__(self) -> str:
        n_networks, n_epochs = self.curves["val_loss"].shape
        counts = self.networks.nunique()
        return (
            f"Grid({counts['lr']} learning rates x {counts['weight_decay']} weight decays x "
            f"{counts['seed']} seeds: {n_networks} networks, {n_epochs} epochs)"
        )

    @property
    def failed(self) -> np.ndarray:
        """True for networks that diverged or never learned, (n_networks,), bool.

        A curve is not finite, or the accuracy never comes `LEARNED` of the way from a guess to 1.
        """
        measured = {name: rows for name, rows in self.curves.items() if name != "label_changes"}
        finite = np.all([np.isfinite(rows).all(axis=1) for rows in measured.values()], axis=0)
        best = self.curves["val_accuracy"].max(axis=1)  # a guess, where logits are not finite
        guess = 1 / self.n_classes
        return ~finite | (best < guess + LEARNED * (1 - guess))

    def stops(self) -> pd.DataFrame:
        """Return where each network would be stopped, and its accuracy there.

        Returns
        -------
        DataFrame, one row a network
            ``lr``, ``weight_decay``, ``seed``; ``failed``; for each stop, ``<stop>_epoch`` (from 0;
            of a peak, where its weights would be taken) and ``<stop>_accuracy`` (of the test
            samples, in [0, 1]). Both are NaN for a stop that is not called within the training
            (the lowest validation loss and the last epoch always exist), and where ``failed``.
        """
        n_networks, n_epochs = self.curves["val_loss"].shape
        table = self.networks.assign(failed=self.failed)
        rows = [self._stops_of(i) for i in range(n_networks)]
        for stop in (*CURVES, "last"):
            epochs = np.array([row.get(stop, np.nan) for row in rows])
            taken = np.nan_to_num(epochs, nan=n_epochs - 1).astype(int)
            accuracy = self.curves["val_accuracy"][np.arange(n_networks), taken]
            table[f"{stop}_epoch"] = epochs
            table[f"{stop}_accuracy"] = np.where(np.isnan(epochs), np.nan, accuracy)
        return table

    def _stops_of(self, number: int) -> dict[str, float]:
        """Return the epoch of every stop of a network that exists or is called."""
        if self.failed[number]:
            return {}
        rules, own = StopRules(self.patience), {k: v[number] for k, v in self.curves.items()}
        for epoch in range(len(own["val_loss"])):
            rules.update({name: float(values[epoch]) for name, values in own.items()})
        return {
            stop: float(peak.peak_epoch)
            for stop, peak in rules.peaks.items()
            if _called(stop, peak)
        }


def _called(stop: str, peak: Peak) -> bool:
    return peak.detected_epoch is not None or stop not in (*PEAKS, "label_wave")


def stop_map(stops: pd.DataFrame, stop: str) -> pd.DataFrame:
    """Summarise over seeds, for every cell of a grid, what one stop does.

    >>> row = {"lr": 0.1, "weight_decay": 0.0, "seed": 0, "failed": False, "last_accuracy": 0.8}
    >>> row |= {"best_val_epoch": 9.0, "best_val_accuracy": 0.83}
    >>> row |= {"weight_norm_epoch": 12.0, "weight_norm_accuracy": 0.82}
    >>> cells = stop_map(pd.DataFrame([row]), "weight_norm")
    >>> cells[["state", "distance", "cost"]].round(3).to_dict("records")
    [{'state': 'called', 'distance': 3.0, 'cost': 0.01}]

    Parameters
    ----------
    stops : DataFrame
        As of `Grid.stops`.
    stop : str
        A key of `peaks.CURVES`.

    Returns
    -------
    DataFrame, one row a cell, by ``lr`` and ``weight_decay``
        ``state``: "failed" where half of the networks or more have not learned; "no peak" where the
        stop is not called in most of the others; else "called". ``distance``: median over seeds of
        the epochs from the lowest validation loss to the stop, below 0 = before it. ``cost``: mean
        over seeds of the accuracy lost against the better of the lowest validation loss and the
        last epoch; ``cost_best_val`` and ``cost_last`` against each alone. NaN unless "called".
    """
    best, last, own = (stops[f"{name}_accuracy"] for name in ("best_val", "last", stop))
    each = stops[["lr", "weight_decay", "failed"]].assign(
        called=stops[f"{stop}_epoch"].notna(),
        distance=stops[f"{stop}_epoch"] - stops["best_val_epoch"],
        cost=np.maximum(best, last) - own,
        cost_best_val=best - own,
        cost_last=last - own,
    )
    groups = each.groupby(["lr", "weight_decay"])
    shares = groups[["failed", "called"]].mean()
    called = shares["called"] > (1 - shares["failed"]) / 2
    state = np.where(shares["failed"] >= 0.5, "failed", np.where(called, "called", "no peak"))
    costs = groups[["cost", "cost_best_val", "cost_last"]].mean()
    cells = pd.concat([groups["distance"].median(), costs], axis=1)
    cells[state != "called"] = np.nan
    return cells.assign(state=state)[["state", *cells.columns]].reset_index()


def train_grid(
    model: str,
    data: Dataset,
    config: TrainConfig,
    *,
    lrs: Sequence[float],
    weight_decays: Sequence[float],
    seeds: Sequence[int] = (0, 1, 2),
    n_jobs: int | None = None,
) -> Grid:
    """Train a network for every learning rate, weight decay and seed, or load them from the cache.

    >>> import memlens as ml
    >>> digits, config = ml.load("digits").subset(100), ml.TrainConfig(epochs=2)
    >>> train_grid("mlp", digits, config, lrs=[0.1, 0.2], weight_decays=[0.0], seeds=[0], n_jobs=1)
    Grid(2 learning rates x 1 weight decays x 1 seeds: 2 networks, 2 epochs)

    Parameters
    ----------
    model : str
        A name from ``registry.MODELS``.
    data : Dataset
    config : TrainConfig
        Everything but learning rate, weight decay and seed; its learning rate drops hold for all.
    lrs, weight_decays : sequence of float
        The axes of the grid.
    seeds : sequence of int
        Of weights and sample order: the network is that of ``train`` with these settings.
    n_jobs : int, optional
        Number of processes; by default as in `jobs.train_many`. It does not affect the results.

    Raises
    ------
    ValueError
        If an axis is empty or has a value twice, a learning rate is not above 0, or the
        configuration stops early.
    """
    for name, axis in (("lrs", lrs), ("weight_decays", weight_decays), ("seeds", seeds)):
        if not len(axis) or len({*axis}) < len(axis):
            raise ValueError(f"{name} are {list(axis)}: pass one or more, each once")
    places = list(product(map(float, lrs), map(float, weight_decays), map(int, seeds)))
    networks = pd.DataFrame(places, columns=["lr", "weight_decay", "seed"])
    configs = [replace(config, lr=lr, weight_decay=wd, seed=seed) for lr, wd, seed in places]
    shaped_by = [model, data, configs, config.engine().key, GRID_VERSION]
    key, cache = f"grid-{store.fingerprint(shaped_by)}", store.Store()
    artifact = cache.get(key)
    if artifact is None:
        with cache.claim(key):
            artifact = cache.get(key)  # another process may have finished it meanwhile
            if artifact is None:
                artifact = _train(key, cache, model, data, configs, n_jobs)
                cache.put(key, artifact)
    cache.tidy(key)
    return Grid(networks, artifact.arrays, data.n_classes, config.patience)


def _train(
    key: str,
    cache: store.Store,
    model: str,
    data: Dataset,
    configs: Sequence[TrainConfig],
    n_jobs: int | None,
) -> store.Artifact:
    """Train the ensembles that are not cached, and concatenate the curves of all."""
    size = ensemble_size(model, data, configs[0], CPU_ENSEMBLE_SIZE)
    chunks = np.array_split(np.arange(len(configs)), -(-len(configs) // size))
    local = None if on_cluster(n_jobs) else cache
    calls = {}
    for chunk in chunks:
        name = f"{key}.{chunk[0]}-{chunk[-1]}"
        own = [configs[number] for number in chunk]
        calls[name] = delayed(_train_ensemble)(name, local, model, data, own)
    done = run_parallel(calls, cache, n_jobs, [configs[0]])
    parts = [done[name] for name in calls]
    curves = {name: np.concatenate([p.arrays[name] for p in parts]) for name in parts[0].arrays}
    what = f"grid of {len(configs)} x {described(model, data, configs[0])}"
    seconds = sum(part.seconds or 0.0 for part in parts)
    return store.Artifact(curves, {}, what, seconds)


def _train_ensemble(
    key: str,
    cache: store.Store | None,
    model: str,
    data: Dataset,
    configs: Sequence[TrainConfig],
) -> KeyedArtifact:
    """Train one ensemble; store its curves, or return them."""
    start = time.perf_counter()
    curves = epoch_curves(model, data, configs)
    what = f"{len(configs)} x {described(model, data, configs[0])}"
    artifact = store.Artifact(curves, {}, what, time.perf_counter() - start)
    return store_or_return(key, artifact, cache)


def epoch_curves(model: str, data: Dataset, configs: Sequence[TrainConfig]) -> Arrays:
    """Train one network with each configuration, together, and return their curves.

    A network that diverges keeps its place: its curves are not finite from there on, and the others
    are not affected.

    Returns
    -------
    dict of ndarray (n_networks, n_epochs)
        As `Grid.curves`: those of `loop.train` with the same configuration, up to rounding.
    """
    first, seeds = configs[0], [config.seed for config in configs]
    ensemble = ModelEnsemble.build(model, data, seeds)
    recorder = StepRecorder(len(configs), len(data.train), first.engine().device)
    rows: list[Arrays] = []
    everybody = np.ones((len(configs), len(data.train)), dtype=bool)
    with thread_count(first.threads), exact_float32():
        train_ensemble(
            ensemble, data, everybody, configs, seeds, recorder=recorder,
            after_epoch=lambda: rows.append(epoch_row(ensemble, data, recorder)),
        )  # fmt: skip
    return {name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]}
