"""One sweep of nets trained on random subsets, kept as masks and logits.

A sample's memorization is how much likelier a net is to get it right when it was trained on it
(Feldman and Zhang 2020). The sweep trains many small nets together, and what they answer serves the
C-score and membership inference as well.
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping
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
from memlens.training.jobs import described
from memlens.training.memory import check
from memlens.training.parallel import KeyedArtifact, on_cluster, run_parallel, store_or_return

# ModelEnsemble trained together by one process. More nets a pass share the cost of its calls, until their
# weights, gradients and momenta leave the cache: 16, 25, 40, 50 nets took 175, 140, 128, 114 ms of
# processor time a net.
CPU_ENSEMBLE_SIZE = 50
SWEEP_CONFIG = TrainConfig(
    epochs=20
)  # long enough to fit digits; a sweep pays it hundreds of times
SWEEP_VERSION = 1  # part of every key, see `jobs.RUN_VERSION`


def subset_masks(n_models: int, n_samples: int, keep: float, *, seed: int = 0) -> np.ndarray:
    """Which model is trained on which sample, (n_models, n_samples) bool.

    Every model gets round(keep * n_samples) samples, uniform without replacement.
    """
    size = round(keep * n_samples) if np.isfinite(keep) else keep
    if not 0 < size < n_samples:
        raise ValueError(
            f"keep={keep} of {n_samples} samples is {size}; expected at least one kept and one "
            "left out: give a share between 0 and 1"
        )
    masks = np.zeros((n_models, n_samples), dtype=bool)
    for m in range(n_models):
        chosen = np.random.default_rng([seed, m]).choice(n_samples, size, replace=False)
        masks[m, chosen] = True
    return masks


def memorization(
    masks: np.ndarray, correct: np.ndarray, index: np.ndarray | None = None
) -> pd.DataFrame:
    """Feldman-Zhang memorization from masks and correctness (their Eq. 1, subset estimator).

    Parameters
    ----------
    masks : ndarray (n_models, n_samples), bool
        Whether the model was trained on the sample.
    correct : ndarray (n_models, n_samples), bool or float in [0, 1]
        Whether the model gets the sample's label right (or with which probability).
    index : ndarray (n_samples,), optional
        Index of the frame.

    Returns
    -------
    DataFrame
        memorization in [-1, 1] (higher = more memorized), standard_error, n_in, n_out,
        in_accuracy, out_accuracy. A sample that was never left out, or never in, is NaN: nothing
        is known about it. The standard error is that of a difference of two independent shares.
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
        of_in = accuracy_in * (1 - accuracy_in) / n_in
        of_out = accuracy_out * (1 - accuracy_out) / n_out
    columns = {
        "memorization": accuracy_in - accuracy_out,
        "standard_error": np.sqrt(of_in + of_out),
        "n_in": n_in,
        "n_out": n_out,
        "in_accuracy": accuracy_in,
        "out_accuracy": accuracy_out,
    }
    return pd.DataFrame(columns, index=None if index is None else pd.Index(index, name="index"))


def c_score(sweeps: Iterable["Sweep"]) -> pd.Series:
    """C-score of each sample: held-out accuracy, meaned over sweeps of several shares kept.

    In [0, 1], and *high* for regular samples, as its authors define it (Jiang et al. 2021, over
    shares of 0.1 to 0.9): 1 - C is the score that is high for memorized ones. NaN where a sample
    was never left out.

    Raises
    ------
    ValueError
        If there is no sweep, or they are of other samples.
    """
    found = [sweep.c_score() for sweep in sweeps]
    if not found or any(not scores.index.equals(found[0].index) for scores in found):
        raise ValueError(f"found {len(found)} sweeps: pass one or more, of the same samples")
    return pd.concat(found, axis=1).mean(axis=1, skipna=False).rename("c_score")


class HeldOut(NamedTuple):
    """Predictions of nets for samples they were not trained on, a row a pair of net and sample.

    sample (n_pairs,), int64, is the position among the sweep's samples; y_true (n_pairs,), int64,
    its label; logits (n_pairs, n_classes), float32, what the net says.
    """

    sample: np.ndarray
    y_true: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes
    ----------
    masks : ndarray (n_models, n_samples), bool: trained on it?
    y_true : ndarray (n_samples,), int64
    index : ndarray (n_samples,), int64: original index
    queries : Queries, at which snapshots the nets were asked, in which augmentations
    arrays : dict of ndarray, as `answers.train_and_query` returns them
    settings : dict, how the nets were trained: what shadows must share with the target of an attack
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
        return f"Sweep({n_models:,} nets on {n_samples:,} samples, asked at {snapshots})"

    def logits_at(self, snapshot: Snapshot) -> np.ndarray:
        """Logits at a stop, (n_models, n_augmentations, n_samples, n_classes), float32.

        Raises
        ------
        ValueError
            If the nets were not asked there; the message lists where they were.
        """
        if snapshot not in self.queries.snapshots:
            raise ValueError(
                f"nothing was asked at {snapshot!r}; there is: {self.queries.snapshots}"
            )
        return self.arrays[f"logits/{snapshot}"]

    @property
    def logits(self) -> np.ndarray:
        """Logits at the end of the training, first view, (n_models, n_samples, n_classes)."""
        return self.logits_at("last")[:, 0]

    @property
    def correct(self) -> np.ndarray:
        """Whether each model gets each sample right at the end, (n_models, n_samples) bool."""
        return self.logits.argmax(2) == self.y_true

    def memorization(self, n_models: int | None = None) -> pd.DataFrame:
        """`memorization` from the first ``n_models`` models (default: all)."""
        return memorization(self.masks[:n_models], self.correct[:n_models], self.index)

    def held_out(self, stop: Snapshot = "last", models: ArrayLike | None = None) -> HeldOut:
        """Predictions at a stop, first view, of the given models (default: all) for what they miss.

        Thousands of honest predictions where a test set has hundreds; those for one sample come
        from nets that differ in the rest of their data.
        """
        chosen = np.arange(len(self.masks)) if models is None else np.asarray(models)
        out = ~self.masks[chosen]
        y_true = np.broadcast_to(self.y_true, out.shape)[out]
        return HeldOut(np.nonzero(out)[1], y_true, self.logits_at(stop)[chosen, 0][out])

    def c_score(self) -> pd.Series:
        """Held-out accuracy of each sample: see `c_score`, here at the one share of this sweep."""
        return self.memorization()["out_accuracy"].rename("c_score")


def subset_sweep(
    model: str,
    data: Dataset,
    *,
    n_models: int = 400,
    keep: float = 0.7,
    config: TrainConfig = SWEEP_CONFIG,
    queries: Queries = Queries(),
    seed: int = 0,
    n_jobs: int | None = None,
) -> Sweep:
    """Train ``n_models`` nets on random subsets of the training samples.

    One sweep serves many uses: memorization, the C-score, and the shadow models and targets of
    membership inference (`privacy.stage`).

    Parameters
    ----------
    model : str
        A name from ``models.MODELS``.
    keep : float
        Share of the samples each model is trained on; 0.7 as Feldman and Zhang, 0.5 for attacks.
    config : TrainConfig
        Its seed is not used: model m has weights and order from (seed, m).
    queries : Queries
        At which snapshots the nets are asked, in which augmentations; by default at the end, as they are.
    n_jobs : int, optional
        Processes; by default as in `jobs.train_many`. The results do not depend on it.
    """
    settings = {"model": model, "keep": keep, **_flat(config), "data": store.fingerprint(data)}
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
                artifact = _sweep(key, cache, (model, data, config, queries), masks, seed, n_jobs)
    cache.tidy(key)
    y_true, index = data.train.labels.numpy(), data.train.index.numpy()
    return Sweep(masks, y_true, index, queries, artifact.arrays, settings)


def _sweep(
    key: str,
    cache: store.Store,
    asked: tuple[str, Dataset, TrainConfig, Queries],
    masks: np.ndarray,
    seed: int,
    n_jobs: int | None,
) -> store.Artifact:
    """Train the sweep's chunks that are not there, and keep all of them as one artifact."""
    model, data, config, queries = asked
    n_models, n_samples = masks.shape
    check(
        {"answers of the nets": 2 * queries.nbytes(n_models, n_samples, data.n_classes)},
        torch.device("cpu"),
        f"a sweep of {n_models} nets over {n_samples:,} samples",
        "ask at fewer snapshots, in fewer augmentations, or train fewer nets",
    )
    n_chunks = -(-n_models // ensemble_size(model, data, config, CPU_ENSEMBLE_SIZE))
    chunks = np.array_split(np.arange(n_models), n_chunks)
    parts = {f"{key}.{c[0]}-{c[-1]}": c for c in chunks}  # a sweep of hours goes on where it was
    near = None if on_cluster(n_jobs) else cache
    calls = {
        part: delayed(_train_chunk)(
            part, near, model, data, masks[c], c + (seed << 20), config, queries
        )
        for part, c in parts.items()
    }
    done = run_parallel(calls, cache, n_jobs, [config])
    names = done[next(iter(parts))].arrays
    arrays = {name: np.concatenate([done[part].arrays[name] for part in parts]) for name in names}
    what = f"{n_models} x {described(model, data, config)}"
    seconds = sum(part.seconds or 0.0 for part in done.values())
    artifact = store.Artifact(arrays, {"n_models": n_models}, what, seconds)
    cache.put(key, artifact)
    return artifact


def _flat(config: TrainConfig) -> dict[str, object]:
    """What of the config two nets of one kind share: not its seed, nor where it was trained."""
    settings = dataclasses.asdict(config)
    own = ("seed", "threads", "stop", "device", "channels_last", "compiled")
    return {name: settings[name] for name in settings if name not in own}


def _train_chunk(
    key: str,
    cache: store.Store | None,
    model: str,
    data: Dataset,
    masks: np.ndarray,
    seeds: np.ndarray,
    config: TrainConfig,
    queries: Queries,
) -> KeyedArtifact:
    """Train a net on each row of ``masks``, ask it, and keep its answers, or hand them over."""
    start = time.perf_counter()
    ensemble = ModelEnsemble.build(model, data, seeds)
    arrays = train_and_query(ensemble, data, masks, config, seeds, queries)
    what = f"{len(masks)} x {described(model, data, config)}"
    seconds = time.perf_counter() - start
    artifact = store.Artifact(arrays, {"seeds": seeds.tolist()}, what, seconds)
    return store_or_return(key, artifact, cache)
