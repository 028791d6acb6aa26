"""Compare runs of several optimizers or networks: their curves, their peaks, their scores."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from memlens.evaluation import metrics
from memlens.models import registry
from memlens.tracking import signals
from memlens.tracking.peaks import PEAKS
from memlens.training.runs import Run


def curves_from_start(runs: Sequence[Run], top: ArrayLike) -> dict[str, np.ndarray]:
    """Return the curves of runs with one value before training, (n_runs, n_epochs + 1) each.

    Parameters
    ----------
    runs : sequence of Run
        Trained with the seeds 0, 1, 2 and so on, for equal numbers of epochs.
    top : array (n_samples,), bool
        The samples of ``input_gradient_top``.

    Returns
    -------
    dict of ndarray
        ``input_gradient``, the mean L2 norm over the samples; ``input_gradient_top``, over those of
        ``top`` alone; ``weight_norm``; ``val_loss``. Column k is after k epochs; column 0 is that
        of the untrained network for the weight norm, and NaN for the others.
    """
    chosen = np.flatnonzero(top)
    curves = {
        "input_gradient": [run.history["input_gradient"] for run in runs],
        "input_gradient_top": [run.trace.grad_l2[:, chosen].mean(axis=1) for run in runs],
        "weight_norm": [run.history["weight_norm"] for run in runs],
        "val_loss": [run.history["val_loss"] for run in runs],
    }
    padded = {
        name: np.insert(np.array(rows, dtype=np.float64), 0, np.nan, axis=1)
        for name, rows in curves.items()
    }
    padded["weight_norm"][:, 0] = [_start_norm(run, seed) for seed, run in enumerate(runs)]
    return padded


def _start_norm(run: Run, seed: int) -> float:
    data = run.data
    return signals.weight_norm(
        registry.build(run.model, data.n_classes, data.in_shape, seed=seed)
    ).item()


def called_peaks(groups: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Return the epochs done at the peaks of each run; NaN where none is called.

    Returns
    -------
    DataFrame, one row a run
        ``variant``, a key of the groups; ``input_gradient`` and ``weight_norm``, from 1.
    """
    rows = []
    for name, runs in groups.items():
        for run in runs:
            stops = run.stops.loc[list(PEAKS)]
            epochs = stops["epoch"].where(stops["detected"].notna()) + 1.0
            rows.append({"variant": name} | epochs.astype(float).to_dict())
    return pd.DataFrame(rows)[["variant", "input_gradient", "weight_norm"]]


def similarity_by_seed(
    scores: Mapping[str, Sequence[pd.DataFrame]],
    truth: pd.Series,
    *,
    top_k: int | None = None,
    measure: str = "pearson",
) -> pd.DataFrame:
    """Return the agreement of every score of every run with a ground truth.

    Parameters
    ----------
    scores : mapping of variant to one table of scores for each seed
    truth : Series
        Matched by index.
    top_k : int, optional
        Only the samples with the highest truth.
    measure : str
        A column of `metrics.compare`: "pearson", "spearman" or "cosine".

    Returns
    -------
    DataFrame
        Rows (variant, seed), columns the scores.
    """
    rows = {
        (name, seed): metrics.compare(table, truth, top_k=top_k, n_resamples=1)[measure]
        for name, tables in scores.items()
        for seed, table in enumerate(tables)
    }
    return pd.DataFrame(rows).T.rename_axis(["variant", "seed"])


def pair_values(
    scores: Mapping[str, Sequence[ArrayLike]],
    statistic: Callable[[ArrayLike, ArrayLike], float] = metrics.cosine,
) -> dict[tuple[str, str], np.ndarray]:
    """Return the agreement of every pair of runs, by their two networks.

    Two runs of one network differ in their seeds: their agreement is what noise leaves, the ceiling
    for any other.

    Parameters
    ----------
    scores : mapping of network to one score (n_samples,) for each seed
    statistic : callable
        Symmetric, of two scores.
    """
    pairs = {}
    for a, b in product(scores, scores):
        runs = combinations(scores[a], 2) if a == b else product(scores[a], scores[b])
        pairs[a, b] = np.array([statistic(x, y) for x, y in runs])
    return pairs


def agreement(pairs: Mapping[tuple[str, str], np.ndarray]) -> pd.DataFrame:
    """Return the mean of `pair_values` as a square table; NaN on the diagonal for one seed."""
    means = {names: values.mean() if values.size else np.nan for names, values in pairs.items()}
    table = pd.Series(means).unstack(sort=False)
    return table.loc[
        list(dict.fromkeys(a for a, _ in means)), list(dict.fromkeys(b for _, b in means))
    ]


def over_ceiling(table: pd.DataFrame) -> pd.DataFrame:
    """Divide the agreement of two networks by what noise allows.

    The ceiling of a pair is the geometric mean of the two diagonal entries (Spearman's correction
    for attenuation). The diagonal becomes 1.

    >>> table = pd.DataFrame([[0.8, 0.4], [0.4, 0.2]], index=["a", "b"], columns=["a", "b"])
    >>> over_ceiling(table).round(2).to_numpy().tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    own = np.sqrt(np.diag(table))
    return table / np.outer(own, own)
