"""Similarity of scores, means over seeds, binned fits, and associations with tests.

Arrays have one finite value per sample, ``(n_samples,)``, see `validation`. Higher scores mean more
memorized or more suspicious. Bootstraps resample whole samples; with one seed, all scores get the
same resamples.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import betainc

from memlens.evaluation.validation import aligned, paired, vector, vectors


class LinearFit(NamedTuple):
    """A fitted line; r2 in [0, 1] is the share of the variance of y that it explains."""

    slope: float
    intercept: float
    r2: float


def _similar(statistic: Callable[..., float], rows: np.ndarray) -> np.ndarray:
    """Return the statistic of each row (k, n) with the last row, (k - 1,); NaN for a constant."""
    if statistic is spearman:
        rows = np.stack([_ranks(row) for row in rows])
    if statistic is not cosine:
        constant = np.ptp(rows, axis=1) == 0  # exact, unlike the norm
        rows = rows - rows.mean(axis=1, keepdims=True)
    else:
        constant = ~rows.any(axis=1)
    norm = np.where(constant, np.nan, np.sqrt(np.einsum("kn,kn->k", rows, rows)))
    rows = rows / norm[:, None]
    return np.clip(np.einsum("kn,n->k", rows[:-1], rows[-1]), -1, 1)


def _ranks(codes: np.ndarray) -> np.ndarray:
    """Return mean ranks (n,) of codes 0, 1, ... (n,), by counting: faster than sorting."""
    counts = np.bincount(codes)
    return (counts.cumsum() - (counts - 1) / 2)[codes]


def _prepared(statistic: Callable[..., float], rows: Iterable[np.ndarray]) -> np.ndarray:
    """Return rows (k, n) that `_similar` takes, also after resampling."""
    if statistic is spearman:
        return np.stack([np.unique(row, return_inverse=True)[1] for row in rows])
    # scaled, so that squares neither overflow nor underflow
    return np.stack([row / (np.abs(row).max() or 1.0) for row in rows])


def _correlation(statistic: Callable[..., float], a: ArrayLike, b: ArrayLike) -> float:
    return float(_similar(statistic, _prepared(statistic, paired(a, b, "a", "b")))[0])


def cosine(a: ArrayLike, b: ArrayLike) -> float:
    """Return the cosine of two vectors (n_samples,), in [-1, 1]; NaN if one is all zero.

    Vectors are not centred, so a constant can have a cosine near 1: report it for comparison.

    Raises
    ------
    ValueError, TypeError
        On values that are not finite numbers, other lengths, or Series with different indices.
    """
    return _correlation(cosine, a, b)


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    """Return the Pearson correlation, in [-1, 1]; NaN if one is constant. Raises as `cosine`."""
    return _correlation(pearson, a, b)


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Return the Pearson correlation of the ranks; tied values share their mean rank."""
    return _correlation(spearman, a, b)


def _bootstrap(
    measure: Callable[[np.ndarray], ArrayLike],
    n_samples: int,
    confidence: float,
    n_resamples: int,
    seed: int,
) -> np.ndarray:
    """Return percentile intervals (k, 2) of the k values of ``measure(rows)``, rows (n_samples,).

    Resamples with a NaN value are ignored.
    """
    # Not scipy.stats.bootstrap: its percentile intervals differ by less than 1e-14, but it draws
    # resamples for each score anew. 25 scores of 1,437 samples: 18 s, against 1 s here.
    if not 0 < confidence < 1 or n_resamples < 1:
        raise ValueError(
            f"confidence is {confidence}, n_resamples {n_resamples}; expected a share such as 0.95 "
            "and at least 1"
        )
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(n_samples, size=n_samples) for _ in range(n_resamples))
    columns = np.array([measure(rows) for rows in drawn], float).T
    known, tails = [x[~np.isnan(x)] for x in columns], [(1 - confidence) / 2, (1 + confidence) / 2]
    return np.array([np.quantile(x, tails) if x.size else [np.nan, np.nan] for x in known])


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval (low, high) of ``statistic(*arrays)``.

    Arrays are (n_samples, ...) and are resampled together. Resamples whose statistic is NaN are
    ignored. An error of the statistic, such as that of ``auroc`` without a positive, is raised.

    >>> bootstrap_interval(np.mean, [0.0, 1.0, 1.0, 2.0], n_resamples=200)
    (0.25, 1.5)
    """
    samples = [np.asarray(array) for array in arrays]
    if len({x.shape[:1] for x in samples}) != 1 or samples[0].shape[:1] in ((), (0,)):
        raise ValueError(f"found shapes {[x.shape for x in samples]}: pass arrays of one length")
    measure = lambda drawn: [statistic(*(x[drawn] for x in samples))]  # noqa: E731
    if statistic in (cosine, pearson, spearman) and len(arrays) == 2:
        rows = _prepared(statistic, paired(*arrays, "array 0", "array 1"))  # checked once
        measure = lambda drawn: _similar(statistic, rows[:, drawn])  # noqa: E731
    ((low, high),) = _bootstrap(measure, len(samples[0]), confidence, n_resamples, seed).tolist()
    return low, high


def _table(
    statistic: Callable[..., float], columns: dict[str, np.ndarray], y: np.ndarray, n_resamples: int
) -> pd.DataFrame:
    rows, name = _prepared(statistic, [*columns.values(), y]), statistic.__name__
    table = pd.DataFrame({name: _similar(statistic, rows)}, index=list(columns))
    measure = lambda drawn: _similar(statistic, rows[:, drawn])  # noqa: E731
    table[[f"{name}_low", f"{name}_high"]] = _bootstrap(measure, y.size, 0.95, n_resamples, seed=0)
    return table


def compare(
    scores: pd.DataFrame,
    truth: pd.Series | ArrayLike,
    *,
    top_k: int | None = None,
    printed: pd.DataFrame | None = None,
    n_resamples: int = 1000,
) -> pd.DataFrame:
    """Compare each score with a ground truth: correlations and 95 % bootstrap intervals.

    Parameters
    ----------
    scores : DataFrame (n_samples, n_scores)
        Finite; higher = more memorized.
    truth : Series, matched by index, or array in row order
        Samples without truth (NaN, or absent from the Series) are left out; at least 3 remain.
    top_k : int, optional
        Only the k samples with the highest truth; of equal ones, those in the first rows.
    printed : DataFrame, index score, optional
        Columns cosine and pearson, such as the numbers of a paper
        (`memlens.experiments.paper.printed_similarity`); NaN or absent where there are none.
    n_resamples : int
        Of the bootstrap; 1 saves time where no interval is needed.

    Returns
    -------
    DataFrame, index "score"
        n_samples; cosine, in [-1, 1]; constant_cosine, that of a constant score; pearson and
        spearman, in [-1, 1], each with _low and _high. With ``printed`` also printed_cosine,
        printed_pearson, and gap = pearson - printed_pearson.

    Raises
    ------
    ValueError
        If fewer than 3 samples have a truth, or top_k is not between 3 and their number.

    Examples
    --------
    >>> scores = pd.DataFrame({"csg": [0.1, 0.4, 0.3, 2.0], "csl": [0.5, 0.1, 0.2, 0.9]})
    >>> table = compare(scores, [0.0, 0.1, 0.2, 0.9])
    >>> table["pearson"].round(2).to_dict()
    {'csg': 0.99, 'csl': 0.8}
    """
    columns, target = vectors(scores, "score"), aligned(truth, scores, "truth")
    kept = np.flatnonzero(~np.isnan(target))
    if not 3 <= (kept.size if top_k is None else top_k) <= kept.size:
        raise ValueError(
            f"{kept.size} of {len(scores)} samples have a truth and top_k is {top_k}; expected at "
            "least 3 of each: check that scores and truth have the same index"
        )
    kept = np.sort(kept[np.argsort(-target[kept], kind="stable")[:top_k]])
    target, columns = vector("truth", target[kept]), {name: x[kept] for name, x in columns.items()}
    table = pd.DataFrame({"n_samples": target.size}, index=list(columns))
    table["cosine"] = [cosine(column, target) for column in columns.values()]
    table["constant_cosine"] = cosine(np.ones_like(target), target)
    intervals = [_table(x, columns, target, n_resamples) for x in (pearson, spearman)]
    table = pd.concat([table, *intervals], axis=1).rename_axis("score")
    if printed is None:
        return table
    theirs = printed[["cosine", "pearson"]].reindex(table.index).add_prefix("printed_")
    return table.join(theirs).assign(gap=table["pearson"] - theirs["printed_pearson"])


def _of_rows(statistic: Callable[..., float], rows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the statistic of each row (r, n) with the truth (n,)."""
    if statistic not in (cosine, pearson, spearman):
        return np.array([statistic(truth, row) for row in rows])
    return _similar(statistic, _prepared(statistic, [*rows, truth]))


def by_epoch(
    values: ArrayLike, truth: ArrayLike, statistic: Callable[..., float] = pearson
) -> np.ndarray:
    """Compare each epoch, and the sum of the epochs up to it, with a truth.

    Parameters
    ----------
    values : array (..., n_epochs, n_samples)
        One signal, such as of each run; finite. A row of NaN is an epoch that was not measured: its
        own value is NaN, and sums skip it.
    truth : array (n_samples,), in the order of the values
        Samples whose truth is NaN are left out.
    statistic : callable
        Called as ``statistic(truth, row)``: a correlation of this module, or `detection.auroc`.

    Returns
    -------
    ndarray (2, ..., n_epochs)
        ``alone, summed = by_epoch(...)``. NaN where the statistic is, and before the first
        measured epoch.

    Raises
    ------
    ValueError
        If the shapes differ, or a measured epoch has values that are not finite.
    """
    values, truth = np.asarray(values, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if values.ndim < 2 or truth.shape != values.shape[-1:]:
        raise ValueError(
            f"values have shape {values.shape}, truth {truth.shape}; expected (..., n_epochs, "
            "n_samples) and (n_samples,)"
        )
    kept = ~np.isnan(truth)
    values, truth = values[..., kept], vector("truth", truth[kept])
    measured = ~np.isnan(values).all(axis=-1)
    if n_bad := int((~np.isfinite(values[measured])).sum()):
        raise ValueError(
            f"values have {n_bad} non-finite numbers in measured epochs: drop those samples, or "
            "set the whole epoch to NaN"
        )
    begun = np.logical_or.accumulate(measured, axis=-1)
    summed = np.where(measured[..., None], values, 0).cumsum(axis=-2)
    found = np.full((2, *measured.shape), np.nan)
    found[0][measured] = _of_rows(statistic, values[measured], truth)
    found[1][begun] = _of_rows(statistic, summed[begun], truth)
    return found


class Spread(NamedTuple):
    """Mean and standard deviation over seeds, as two frames of the same shape."""

    mean: pd.DataFrame
    std: pd.DataFrame

    def of(self, column: Hashable) -> pd.DataFrame:
        """Return mean and std of one column, one row per index entry, for `plots.bars`."""
        return pd.DataFrame({"mean": self.mean[column], "std": self.std[column]})

    def text(self, digits: int = 2) -> pd.DataFrame:
        """Return cells such as "0.79 ± 0.01"; a cell without a mean is empty."""
        mean, std = (frame.map(f"{{:.{digits}f}}".format) for frame in self)
        return (mean + (" ± " + std).where(self.std.notna(), "")).where(self.mean.notna(), "")


def mean_over(frames: Iterable[pd.DataFrame]) -> Spread:
    """Return mean and std over seeds of numeric tables with equal rows and columns, one per seed.

    The divisor of the std is n - 1; it is NaN for one table. A cell that is NaN in any table is NaN
    in both results.

    Raises
    ------
    ValueError
        If there is no table, or rows or columns differ, also in their order.
    TypeError
        If a table has a column that is not numeric.

    >>> mean, std = mean_over([pd.DataFrame({"csg": [1.0]}), pd.DataFrame({"csg": [3.0]})])
    >>> mean.loc[0, "csg"]
    np.float64(2.0)
    """
    if not (frames := list(frames)):
        raise ValueError("found no table; expected one per seed")
    rows, columns = frames[0].index, frames[0].columns
    for i, frame in enumerate(frames):
        if not (frame.index.equals(rows) and frame.columns.equals(columns)):
            raise ValueError(
                f"rows or columns of table {i} differ from those of table 0, or from their order: "
                "reindex it"
            )
    try:
        cells = np.stack([frame.to_numpy(dtype=np.float64) for frame in frames])
    except (TypeError, ValueError) as error:
        raise TypeError(f"a table is not numeric ({error}): drop the columns of text") from None
    std = cells.std(axis=0, ddof=1) if len(frames) > 1 else np.full_like(cells[0], np.nan)
    return Spread(*(pd.DataFrame(part, rows, columns) for part in (cells.mean(axis=0), std)))


def bins_of(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the bin of each value, (n_samples,) int64; bins are [left, right), the last closed.

    ``edges`` (n_bins + 1,) are sorted. Values below all edges get -1, values above them n_bins.
    """
    bins = np.searchsorted(edges, x, side="right") - 1
    bins[x == edges[-1]] = len(edges) - 2
    return bins


def binned_mean(x: ArrayLike, y: ArrayLike, n_bins: int = 15) -> pd.DataFrame:
    """Return the mean of y in equal-width bins of x, as in the CSG paper's Fig. 4.

    Bins are [left, right), the last closed; empty bins are dropped, and a constant x has one bin.
    The columns are left, right, x_mean, y_mean, y_std (divisor n) and n.
    """
    x, y = paired(x, y, "x", "y")
    if n_bins < 1:
        raise ValueError(f"n_bins is {n_bins}: pass at least 1")
    edges = np.linspace(x.min(), x.max(), n_bins + 1)
    bins = bins_of(x, edges)
    samples = pd.DataFrame({"left": edges[bins], "right": edges[bins + 1], "x": x, "y": y})
    return samples.groupby(["left", "right"], as_index=False).agg(
        x_mean=("x", "mean"),
        y_mean=("y", "mean"),
        y_std=("y", lambda y: y.std(ddof=0)),
        n=("y", "size"),
    )


def linear_fit(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> LinearFit:
    """Return the least-squares line; weights >= 0, such as counts. A constant x is a ValueError."""
    x, y = paired(x, y, "x", "y")
    weights = np.ones_like(x) if weights is None else paired(weights, x, "weights", "x")[0]
    used = weights > 0
    if weights.min() < 0 or not used.any() or np.ptp(x[used]) == 0:
        raise ValueError(
            f"{used.sum()} samples have a positive weight and the lowest weight is "
            f"{weights.min()}; expected weights >= 0 and at least two different x"
        )
    (sxx, sxy), (_, syy) = np.cov(x, y, aweights=weights, ddof=0)
    slope, r2 = sxy / sxx, sxy**2 / (sxx * syy) if np.ptp(y[used]) else np.nan
    return LinearFit(float(slope), float(np.average(y - slope * x, weights=weights)), float(r2))


def group_fits(x: ArrayLike, y: ArrayLike, n_bins: int = 15) -> dict[str, float]:
    """Return how close group means of y come to a line in x, for several choices of the groups.

    Parameters
    ----------
    x, y : (n_samples,)
        x groups the samples.
    n_bins : int
        Groups of equal width of x, as in `binned_mean`, or of equal size.

    Returns
    -------
    dict
        ``order``, the rank correlation of the means, in [-1, 1]; R squared of the line through
        them, in [0, 1]: ``line``, all groups alike as in the papers, ``by_count``, weighted by the
        number of samples, ``swapped``, grouped by y, ``equal_groups``, of equal size. NaN where
        fewer than two different means are left.
    """
    x, y = paired(x, y, "x", "y")
    groups, swapped = binned_mean(x, y, n_bins), binned_mean(y, x, n_bins)
    parts = np.array_split(np.argsort(x, kind="stable"), min(n_bins, x.size))
    equal = np.array([[x[part].mean(), y[part].mean()] for part in parts]).T
    x_mean, y_mean = groups["x_mean"].to_numpy(), groups["y_mean"].to_numpy()
    return {
        "order": spearman(x_mean, y_mean) if len(groups) > 1 else np.nan,
        "line": _r2(x_mean, y_mean),
        "by_count": _r2(x_mean, y_mean, groups["n"].to_numpy()),
        "swapped": _r2(swapped["x_mean"].to_numpy(), swapped["y_mean"].to_numpy()),
        "equal_groups": _r2(*equal),
    }


def _r2(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    return linear_fit(x, y, weights).r2 if np.ptp(x) > 0 else np.nan


def holm(p_values: ArrayLike) -> np.ndarray:
    """Return p-values (n_tests,) after Holm's correction, which bounds the familywise error rate.

    NaN, for a test that could not be made, stays NaN and does not count as a test.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    if p_values.ndim != 1 or ((p_values < 0) | (p_values > 1)).any():
        raise ValueError(f"p_values have shape {p_values.shape}: expected (n_tests,), in [0, 1]")
    order = np.argsort(p_values)[: int((~np.isnan(p_values)).sum())]  # nan sorts last
    corrected, weights = np.full_like(p_values, np.nan), np.arange(order.size, 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * weights), 1.0)
    return corrected


def associations(
    score: pd.Series | ArrayLike,
    attributes: pd.DataFrame,
    *,
    n_resamples: int = 1000,
) -> pd.DataFrame:
    """Test the rank correlation of each attribute with a score, corrected for multiple tests.

    Parameters
    ----------
    score : Series, matched by index, or array in row order
    attributes : DataFrame (n_samples, n_attributes), at least 3 samples
    n_resamples : int
        Of the bootstrap interval.

    Returns
    -------
    DataFrame, index "attribute"
        spearman (effect size, [-1, 1]), low and high (95 % interval), p_value (two-sided, t
        approximation) and p_holm (corrected over all attributes); NaN for a constant attribute.

    Raises
    ------
    ValueError
        If there are fewer than 3 samples.
    """
    columns = vectors(attributes, "attribute")
    target = vector("score", aligned(score, attributes, "score"))
    if target.size < 3:
        raise ValueError(f"found {target.size} samples; a rank correlation needs at least 3")
    table = _table(spearman, columns, target, n_resamples)
    table.columns = ["spearman", "low", "high"]
    p_values = betainc((target.size - 2) / 2, 0.5, 1 - table["spearman"].to_numpy() ** 2)
    return table.assign(p_value=p_values, p_holm=holm(p_values)).rename_axis("attribute")
