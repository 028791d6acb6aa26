"""A subset sweep: networks trained on random subsets of the samples, stored as masks and logits.

The memorization of a sample is the accuracy on it of networks trained with it minus that of
networks trained without it (Feldman and Zhang 2020). The same sweep gives the C-score, and the
targets and shadow models of membership inference.
"""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import delayed
from numpy.typing import ArrayLike

from memlens.data.samples import Dataset
from memlens.ensembles.model_ensemble import ModelEnsemble, ensemble_size
from memlens.ensembles.queries import Queries, Snapshot, train_and_query
from memlens.storage import store
from memlens.training.config import TrainConfig
from memlens.training.jobs import (
    KeyedArtifact,
    described,
    on_cluster,
    run_parallel,
    store_or_return,
)
from memlens.training.memory import require_memory

# Networks that one process trains together on a CPU. In one pass, more of them share the cost of
# each call, until weights, gradients and momenta no longer fit in the processor's cache.
CPU_ENSEMBLE_SIZE = 50
SWEEP_VERSION = 2  # part of every key, see `jobs.RUN_VERSION`
# Fields of the config that do not distinguish a shadow model from its target.
_NOT_COMPARED = ("seed", "threads", "stop", "device", "channels_last", "compiled")


def subset_masks(n_models: int, n_samples: int, keep: float, *, seed: int = 0) -> np.ndarray:
    """Draw the training subset of each model, (n_models, n_samples) bool.

    Every subset has round(keep * n_samples) samples, drawn uniformly without replacement.

    Raises
    ------
    ValueError
        If a subset would have no sample, or all of them.
    """
    size = round(keep * n_samples) if np.isfinite(keep) else keep
    if not 0 < size < n_samples:
        raise ValueError(
            f"keep={keep} of {n_samples} samples is {size}; expected at least one kept and one "
            "left out: pass a share between 0 and 1"
        )
    masks = np.zeros((n_models, n_samples), dtype=bool)
    for m in range(n_models):
        chosen = np.random.default_rng([seed, m]).choice(n_samples, size, replace=False)
        masks[m, chosen] = True
    return masks


def subset_memorization(
    masks: np.ndarray, correct: np.ndarray, index: np.ndarray | None = None
) -> pd.DataFrame:
    """Return Feldman-Zhang memorization (their Eq. 1, subset estimator).

    Parameters
    ----------
    masks : ndarray (n_models, n_samples), bool
        True where the model was trained on the sample.
    correct : ndarray (n_models, n_samples), bool or float in [0, 1]
        True where the model predicts the label of the sample, or the probability of that.
    index : ndarray (n_samples,), optional
        Index of the frame.

    Returns
    -------
    DataFrame
        memorization in [-1, 1] (higher = more memorized), standard_error, n_in, n_out,
        in_accuracy, out_accuracy. The standard error is that of a difference of two independent
        proportions. Memorization is NaN for a sample that is in all subsets, or in none.

    Raises
    ------
    ValueError
        If the shapes differ, or the masks are not boolean.
    """
    if masks.shape != correct.shape or masks.dtype != bool:
        raise ValueError(
            f"masks {masks.dtype} {masks.shape} and correct {correct.shape}: expected bool masks "
            "and one shape (n_models, n_samples)"
        )
    n_in, n_out = masks.sum(0), (~masks).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy_in = np.where(masks, correct, 0.0).sum(0) / n_in
        accuracy_out = np.where(masks, 0.0, correct).sum(0) / n_out
        variance_in = accuracy_in * (1 - accuracy_in) / n_in
        variance_out = accuracy_out * (1 - accuracy_out) / n_out
    columns = {
        "memorization": accuracy_in - accuracy_out,
        "standard_error": np.sqrt(variance_in + variance_out),
        "n_in": n_in,
        "n_out": n_out,
        "in_accuracy": accuracy_in,
        "out_accuracy": accuracy_out,
    }
    return pd.DataFrame(columns, index=None if index is None else pd.Index(index, name="index"))


class HeldOut(NamedTuple):
    """Predictions of networks for samples that they were not trained on, one row per pair.

    sample (n_pairs,), int64, is the position of the sample in the sweep; y_true (n_pairs,), int64,
    its label; logits (n_pairs, n_classes), float32, the prediction.
    """

    sample: np.ndarray
    y_true: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class Sweep:
    """A finished subset sweep, as `subset_sweep` returns it.

    >>> import memlens as ml
    >>> digits, config = ml.load("digits").subset(100), ml.TrainConfig(epochs=1)
    >>> sweep = ml.subset_sweep("mlp", digits, n_models=3, keep=0.5, config=config, n_jobs=1)
    >>> sweep.logits.shape, sweep.masks.sum(axis=1).tolist()
    ((3, 100, 10), [50, 50, 50])

    Attributes
    ----------
    masks : ndarray (n_models, n_samples), bool
        True where the model was trained on the sample.
    y_true : ndarray (n_samples,), int64
    index : ndarray (n_samples,), int64
        Original index of each sample.
    queries : Queries
        The snapshots and augmentations of the predictions.
    arrays : dict of ndarray
        As `queries.train_and_query` returns them.
    settings : dict
        Training settings, which shadow models must share with the target of an attack.
    """

    masks: np.ndarray
    y_true: np.ndarray
    index: np.ndarray
    queries: Queries
    arrays: Mapping[str, np.ndarray]
    settings: Mapping[str, object]

    def __repr__(self) -> str:
        n_models, n_samples = self.masks.shape
        snapshots = ", ".join(map(str, self.queries.snapshots))
        return f"Sweep({n_models:,} networks, {n_samples:,} samples, snapshots: {snapshots})"

    def logits_at(self, snapshot: Snapshot) -> np.ndarray:
        """Return logits at a snapshot, (n_models, n_augmentations, n_samples, n_classes), float32.

        Raises
        ------
        ValueError
            If the sweep has no predictions at this snapshot.
        """
        if snapshot not in self.queries.snapshots:
            raise ValueError(
                f"no predictions at snapshot {snapshot!r}; available: {self.queries.snapshots}"
            )
        return self.arrays[f"logits/{snapshot}"]

    @property
    def logits(self) -> np.ndarray:
        """Logits at the end, first augmentation, (n_models, n_samples, n_classes), float32."""
        return self.logits_at("last")[:, 0]

    @property
    def correct(self) -> np.ndarray:
        """True where a model predicts the label at the end, (n_models, n_samples), bool."""
        return self.logits.argmax(2) == self.y_true

    def memorization(self, models: int | slice | None = None) -> pd.DataFrame:
        """Return `subset_memorization` from the first ``models`` networks, or a slice of them."""
        chosen = models if isinstance(models, slice) else slice(models)
        return subset_memorization(self.masks[chosen], self.correct[chosen], self.index)

    def held_out(self, snapshot: Snapshot = "last", models: ArrayLike | None = None) -> HeldOut:
        """Return the held-out predictions of some models (default: all), first augmentation.

        There are far more of them than test samples; those of one sample come from networks that
        differ in the rest of their training subsets.

        Raises
        ------
        ValueError
            If the sweep has no predictions at this snapshot.
        """
        chosen = np.arange(len(self.masks)) if models is None else np.asarray(models)
        out = ~self.masks[chosen]
        y_true = np.broadcast_to(self.y_true, out.shape)[out]
        return HeldOut(np.nonzero(out)[1], y_true, self.logits_at(snapshot)[chosen, 0][out])

    def c_score(self) -> pd.Series:
        """Return the held-out accuracy of each sample, in [0, 1], higher = more regular.

        It is the C-score (Jiang et al. 2021) at the share of samples of this sweep; theirs is its
        mean over shares of 0.1 to 0.9. 1 - C is higher for memorized samples. NaN where no subset
        leaves the sample out.
        """
        return self.memorization()["out_accuracy"].rename("c_score")


def subset_sweep(
    model: str,
    data: Dataset,
    *,
    n_models: int = 400,
    keep: float = 0.7,
    config: TrainConfig = TrainConfig(),
    queries: Queries = Queries(),
    seed: int = 0,
    n_jobs: int | None = None,
) -> Sweep:
    """Train networks on random subsets of the training samples, or load them from the cache.

    >>> import memlens as ml
    >>> digits, config = ml.load("digits").subset(100), ml.TrainConfig(epochs=2)
    >>> sweep = ml.subset_sweep("mlp", digits, n_models=4, config=config, n_jobs=1)
    >>> sweep
    Sweep(4 networks, 100 samples, snapshots: last)
    >>> sweep.memorization().shape
    (100, 6)

    Parameters
    ----------
    model : str
        A name from ``registry.MODELS``.
    data : Dataset
    n_models : int
        Number of networks.
    keep : float
        Share of the samples in each subset; 0.7 as Feldman and Zhang, 0.5 for attacks.
    config : TrainConfig
        Its seed is not used: weights and sample order of model m depend on (seed, m).
    queries : Queries
        Snapshots and augmentations of the predictions; by default at the last epoch, without
        augmentation.
    seed : int
        Seed of the subsets, the weights and the sample order.
    n_jobs : int, optional
        Number of processes; by default as in `jobs.train_many`. It does not affect the results.

    Raises
    ------
    ValueError
        If ``keep`` leaves no sample in, or none out, or a snapshot is beyond the last epoch.
    MemoryError
        If the predictions do not fit in memory.
    """
    settings = sweep_settings(model, data, config, keep)
    shaped_by = [settings, dataclasses.replace(config, seed=0), n_models, queries, seed]
    shaped_by.append(config.engine().key)
    key = f"sweep-{store.fingerprint([*shaped_by, SWEEP_VERSION])}"
    masks = subset_masks(n_models, len(data.train), keep, seed=seed)
    cache = store.Store()
    artifact = cache.get(key)
    if artifact is None:
        with cache.claim(key):
            artifact = cache.get(key)  # another process may have finished it meanwhile
            if artifact is None:
                artifact = _sweep(key, cache, model, data, masks, config, queries, seed, n_jobs)
                cache.put(key, artifact)
    cache.tidy(key)
    y_true, index = data.train.labels.numpy(), data.train.index.numpy()
    return Sweep(masks, y_true, index, queries, artifact.arrays, settings)


def _sweep(
    key: str,
    cache: store.Store,
    model: str,
    data: Dataset,
    masks: np.ndarray,
    config: TrainConfig,
    queries: Queries,
    seed: int,
    n_jobs: int | None,
) -> store.Artifact:
    """Train the chunks of the sweep that are not cached, and concatenate all of them."""
    n_models, n_samples = masks.shape
    require_memory(
        {"predictions": 2 * queries.nbytes(n_models, n_samples, data.n_classes)},
        torch.device("cpu"),
        f"a sweep of {n_models} networks over {n_samples:,} samples",
        "use fewer snapshots, fewer augmentations or fewer networks",
    )
    n_chunks = -(-n_models // ensemble_size(model, data, config, CPU_ENSEMBLE_SIZE))
    chunks = np.array_split(np.arange(n_models), n_chunks)
    # Each chunk is cached, so that an interrupted sweep resumes.
    chunk_keys = {f"{key}.{c[0]}-{c[-1]}": c for c in chunks}
    local = None if on_cluster(n_jobs) else cache
    calls = {
        chunk_key: delayed(train_chunk)(
            chunk_key, local, model, data, masks[c], c + (seed << 20), config, queries
        )
        for chunk_key, c in chunk_keys.items()
    }
    done = run_parallel(calls, cache, n_jobs, [config])
    parts = [done[chunk_key] for chunk_key in chunk_keys]
    arrays = {name: np.concatenate([p.arrays[name] for p in parts]) for name in parts[0].arrays}
    what = f"{n_models} x {described(model, data, config)}"
    seconds = sum(part.seconds or 0.0 for part in parts)
    return store.Artifact(arrays, {"n_models": n_models}, what, seconds)


def sweep_settings(
    model: str, data: Dataset, config: TrainConfig, keep: float
) -> dict[str, object]:
    """Return the settings that shadow models must share with their target: all that shape it."""
    fields = dataclasses.asdict(config)
    compared = {name: value for name, value in fields.items() if name not in _NOT_COMPARED}
    return {"model": model, "keep": keep, **compared, "data": store.fingerprint(data)}


def train_chunk(
    key: str,
    cache: store.Store | None,
    model: str,
    data: Dataset,
    masks: np.ndarray,
    seeds: np.ndarray,
    config: TrainConfig,
    queries: Queries,
) -> KeyedArtifact:
    """Train one network on each row of ``masks``; store its predictions, or return them."""
    start = time.perf_counter()
    ensemble = ModelEnsemble.build(model, data, seeds)
    arrays = train_and_query(ensemble, data, masks, config, seeds, queries)
    what = f"{len(masks)} x {described(model, data, config)}"
    seconds = time.perf_counter() - start
    artifact = store.Artifact(arrays, {"seeds": seeds.tolist()}, what, seconds)
    return store_or_return(key, artifact, cache)
