"""Similarity of scores, means over seeds, binned fits and tested associations.

Arrays hold one finite value per sample, ``(n_samples,)``, as `checks` has it; scores point upwards
(higher = more memorized, more suspicious). Bootstraps draw whole samples, and the same seed draws
the same ones for every score.
"""

from collections.abc import Callable, Collection, Hashable, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import betainc

from memlens.evaluation.validation import aligned, paired, vector, vectors

_CHUNK = 2**15  # values per block of resamples; ours: a quarter MB of float64 stays in the cache
Draws = Callable[[np.ndarray], np.ndarray]  # takes drawn sample indices (r, n) to rows or values


class LinearFit(NamedTuple):
    """A line; r2 in [0, 1] is the share of the variance of y that it explains."""

    slope: float
    intercept: float
    r2: float


def _unit(rows: np.ndarray, centre: bool) -> np.ndarray:
    rows = rows - centre * rows.mean(axis=1, keepdims=True)
    spread = np.ptp(rows, axis=1) if centre else np.abs(rows).max(axis=1)  # exact, unlike the norm
    norm = np.sqrt(np.einsum("rn,rn->r", rows, rows))
    return rows / np.where(spread > 0, norm, np.nan)[:, None]


def _lens(statistic: Callable[..., float], x: np.ndarray) -> Draws:
    """Rows (r, n) of unit length, or NaN: their dot products are, and define, the statistic."""
    if statistic is not spearman:
        x = x / (np.abs(x).max() or 1.0)  # so that squares neither overflow nor vanish
        return lambda drawn: _unit(x[drawn], centre=statistic is pearson)
    unique, codes = np.unique(x, return_inverse=True)

    def look(drawn: np.ndarray) -> np.ndarray:
        # The mid-ranks of each resample itself, without a sort: count each value, accumulate.
        cells = codes[drawn] + np.arange(len(drawn))[:, None] * unique.size  # (r, n)
        counts = np.bincount(cells.ravel(), minlength=len(drawn) * unique.size)
        counts = counts.reshape(len(drawn), -1)
        ranks = counts.cumsum(axis=1) - (counts - 1) / 2
        return _unit(ranks.ravel()[cells], centre=True)

    return look


def _measure(statistic: Callable[..., float], xs: Collection[np.ndarray], y: np.ndarray) -> Draws:
    """Values (k, r) of the statistic of each of the k vectors with y."""
    x_lenses, y_lens = [_lens(statistic, x) for x in xs], _lens(statistic, y)

    def measure(drawn: np.ndarray) -> np.ndarray:
        y_rows = y_lens(drawn)  # once for all vectors
        return np.clip([np.einsum("rn,rn->r", look(drawn), y_rows) for look in x_lenses], -1, 1)

    return measure


def _correlation(statistic: Callable[..., float], a: ArrayLike, b: ArrayLike) -> float:
    x, y = paired(a, b, "a", "b")
    return float(_measure(statistic, [x], y)(np.arange(x.size)[None])[0, 0])


def cosine(a: ArrayLike, b: ArrayLike) -> float:
    """Cosine of two vectors, in [-1, 1]; nan if one is all zero.

    Not centred: a constant can come close to 1, so print it beside the cosine of a constant.
    Raises on non-finite values, on other lengths, and on two Series with different indices.
    """
    return _correlation(cosine, a, b)


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson correlation of two vectors, in [-1, 1]; nan if one is constant. Raises as cosine."""
    return _correlation(pearson, a, b)


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson correlation of the ranks, ties sharing their mean rank. Otherwise as pearson."""
    return _correlation(spearman, a, b)


def _bootstrap(
    measure: Draws, n_samples: int, confidence: float, n_resamples: int, seed: int
) -> list[tuple[float, float]]:
    if not 0 < confidence < 1 or n_resamples < 1:
        raise ValueError(f"confidence {confidence}, n_resamples {n_resamples}: try 0.95 and 1000")
    rng, rows = np.random.default_rng(seed), max(1, _CHUNK // n_samples)
    sizes = [min(rows, n_resamples - start) for start in range(0, n_resamples, rows)]
    found = [measure(rng.integers(n_samples, size=(size, n_samples))) for size in sizes]
    known = [values[~np.isnan(values)] for values in np.concatenate(found, axis=1)]
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    return [tuple(np.quantile(v, tails).tolist()) if v.size else (np.nan, np.nan) for v in known]


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap (low, high) of ``statistic(*arrays)`` over samples drawn together.

    Arrays are (n_samples, ...). Resamples where the statistic is nan are left out; where it raises,
    as ``auroc`` without a positive, so does this. cosine, pearson and spearman of two vectors take
    a vectorised way to the same values from the same draws.
    """
    samples = [np.asarray(array) for array in arrays]
    if len({x.shape[:1] for x in samples}) != 1 or samples[0].shape[:1] in ((), (0,)):
        raise ValueError(f"found shapes {[x.shape for x in samples]}: pass arrays of one length")
    if statistic in (cosine, pearson, spearman) and len(arrays) == 2:
        x, y = paired(*arrays, "array 0", "array 1")
        measure = _measure(statistic, [x], y)
    else:

        def measure(drawn: np.ndarray) -> np.ndarray:
            return np.array([[statistic(*(x[row] for x in samples)) for row in drawn]], float)

    return _bootstrap(measure, len(samples[0]), confidence, n_resamples, seed)[0]


def _table(
    statistic: Callable[..., float], columns: dict[str, np.ndarray], y: np.ndarray, *options: float
) -> pd.DataFrame:
    measure, name = _measure(statistic, columns.values(), y), statistic.__name__
    table = pd.DataFrame({name: measure(np.arange(y.size)[None])[:, 0]}, index=list(columns))
    table[[f"{name}_low", f"{name}_high"]] = _bootstrap(measure, y.size, *options)
    return table


def compare(
    scores: pd.DataFrame,
    truth: pd.Series | ArrayLike,
    *,
    top_k: int | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Similarity of each score column to a ground truth, with 95 % bootstrap intervals.

    Parameters
    ----------
    scores : DataFrame, a row per sample, a finite column per score, higher = more memorized
    truth : Series, matched by index, or array in row order; samples without truth (NaN, or absent
        from the Series) are left out, and n_samples counts the rest, at least 3
    top_k : keep the k samples with the highest truth only; of equals, those in the first rows

    Returns
    -------
    DataFrame, index "score": n_samples, cosine, constant_cosine (what a constant score gets: mean
    over root mean square of the truth), pearson, spearman, each with _low and _high
    """
    columns, target = vectors(scores, "score"), aligned(truth, scores, "truth")
    kept = np.flatnonzero(~np.isnan(target))
    if not 3 <= (kept.size if top_k is None else top_k) <= kept.size:
        raise ValueError(
            f"{kept.size} of {len(scores)} samples have a truth and top_k is {top_k}: "
            "compare 3 or more of them; do scores and truth share the sample index?"
        )
    kept = np.sort(kept[np.argsort(-target[kept], kind="stable")[:top_k]])
    target, columns = vector("truth", target[kept]), {name: x[kept] for name, x in columns.items()}
    table = pd.DataFrame({"n_samples": target.size}, index=list(columns))
    table["cosine"] = [cosine(column, target) for column in columns.values()]
    table["constant_cosine"] = cosine(np.ones_like(target), target)
    intervals = [_table(x, columns, target, 0.95, n_resamples, seed) for x in (pearson, spearman)]
    return pd.concat([table, *intervals], axis=1).rename_axis("score")


def _of_rows(statistic: Callable[..., float], rows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Statistic of each row (r, n) with the truth (n,): the values of a loop, without the loop."""
    if statistic not in (cosine, pearson, spearman):
        return np.array([statistic(truth, row) for row in rows])
    both = np.vstack([rows, truth])
    both = pd.DataFrame(both).rank(axis=1).to_numpy() if statistic is spearman else both
    scale = np.abs(both).max(axis=1, keepdims=True)  # so that squares neither overflow nor vanish
    both = _unit(both / np.where(scale > 0, scale, 1), centre=statistic is not cosine)
    return np.clip(both[:-1] @ both[-1], -1, 1)


def by_epoch(
    values: ArrayLike, truth: ArrayLike, statistic: Callable[..., float] = pearson
) -> np.ndarray:
    """Likeness to a truth of each epoch alone, and of the sum of the epochs up to it.

    Parameters
    ----------
    values : (..., n_epochs, n_samples), such as one signal of each run, finite. A row of NaN is an
        epoch that was not measured: nan alone, and left out of the sum
    truth : (n_samples,) in the order of the values; samples whose truth is NaN are left out
    statistic : called as ``statistic(truth, row)``: a correlation above, or ``detection.auroc``

    Returns
    -------
    ndarray (2, ..., n_epochs): ``alone, summed = by_epoch(...)``; nan where the statistic is, and
    for a sum of nothing yet
    """
    values, truth = np.asarray(values, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if values.ndim < 2 or truth.shape != values.shape[-1:]:
        raise ValueError(
            f"values have shape {values.shape}, the truth {truth.shape}: pass (..., "
            "n_epochs, n_samples) and (n_samples,)"
        )
    kept = ~np.isnan(truth)
    values, truth = values[..., kept], vector("truth", truth[kept])
    measured = ~np.isnan(values).all(axis=-1)
    if n_bad := int((~np.isfinite(values[measured])).sum()):
        raise ValueError(
            f"values hold {n_bad} non-finite numbers in epochs that were measured: "
            "leave out those samples, or make the whole epoch NaN"
        )
    begun = np.logical_or.accumulate(measured, axis=-1)
    summed = np.where(measured[..., None], values, 0).cumsum(axis=-2)
    found = np.full((2, *measured.shape), np.nan)
    found[0][measured] = _of_rows(statistic, values[measured], truth)
    found[1][begun] = _of_rows(statistic, summed[begun], truth)
    return found


class Spread(NamedTuple):
    """Mean and standard deviation over seeds, cell by cell, as two frames of one shape."""

    mean: pd.DataFrame
    std: pd.DataFrame

    def of(self, column: Hashable) -> pd.DataFrame:
        """Mean and std of one column, a row each: the form that ``bars`` draws."""
        return pd.DataFrame({"mean": self.mean[column], "std": self.std[column]})

    def text(self, digits: int = 2) -> pd.DataFrame:
        """Cells such as "0.79 ± 0.01", to print; a cell without a mean is empty."""
        mean, std = (frame.map(f"{{:.{digits}f}}".format) for frame in self)
        return (mean + (" ± " + std).where(self.std.notna(), "")).where(self.mean.notna(), "")


def mean_over(frames: Iterable[pd.DataFrame]) -> Spread:
    """Mean and std over seeds of frames with the same rows and columns, one a seed.

    Score frames, `compare` or ``judge`` tables: ``mean, std = mean_over(...)``. The divisor of the
    std is n - 1, so that it is NaN for one frame. A cell that is NaN in any frame is NaN in both.
    Raises a ValueError for other rows or columns, in another order too; a TypeError for text.
    """
    if not (frames := list(frames)):
        raise ValueError("found no frame: pass one a seed")
    rows, columns = frames[0].index, frames[0].columns
    for i, frame in enumerate(frames):
        if not (frame.index.equals(rows) and frame.columns.equals(columns)):
            raise ValueError(
                f"frame {i} has not the rows and columns of frame 0 in the same order:"
                " reindex it like frame 0"
            )
    try:
        cells = np.stack([frame.to_numpy(dtype=np.float64) for frame in frames])
    except (TypeError, ValueError) as error:
        raise TypeError(f"a frame holds what is no number ({error}): drop those columns") from None
    std = cells.std(axis=0, ddof=1) if len(frames) > 1 else np.full_like(cells[0], np.nan)
    return Spread(*(pd.DataFrame(part, rows, columns) for part in (cells.mean(axis=0), std)))


def bins_of(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin of each value, (n_samples,) int64, of bins [left, right), the last closed.

    ``edges`` (n_bins + 1,) do not fall; -1 is below them all, n_bins above.
    """
    bins = np.searchsorted(edges, x, side="right") - 1
    bins[x == edges[-1]] = len(edges) - 2
    return bins


def binned_mean(x: ArrayLike, y: ArrayLike, n_bins: int = 15) -> pd.DataFrame:
    """Mean of y in equal-width bins of x, the form of the CSG paper's Fig. 4.

    Bins are [left, right), the last closed; empty ones are absent; a constant x makes one bin.
    Columns left, right, x_mean, y_mean, y_std (divisor n), n.
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
    """Least-squares line; weights are not negative, e.g. counts. Raises when x is constant."""
    x, y = paired(x, y, "x", "y")
    weights = np.ones_like(x) if weights is None else paired(weights, x, "weights", "x")[0]
    used = weights > 0
    if weights.min() < 0 or not used.any() or np.ptp(x[used]) == 0:
        raise ValueError(
            f"x is constant in {used.sum()} weighted samples, or the least weight, "
            f"{weights.min()}, is negative: a line needs two different x"
        )
    (sxx, sxy), (_, syy) = np.cov(x, y, aweights=weights, ddof=0)
    slope, r2 = sxy / sxx, sxy**2 / (sxx * syy) if np.ptp(y[used]) else np.nan
    return LinearFit(float(slope), float(np.average(y - slope * x, weights=weights)), float(r2))


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's correction of (n_tests,) p-values: bounds the chance of any false finding; [0, 1].

    nan, a test that could not be made, stays nan and does not count.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    if p_values.ndim != 1 or ((p_values < 0) | (p_values > 1)).any():
        raise ValueError(f"p_values has shape {p_values.shape}: pass (n_tests,), each in [0, 1]")
    order = np.argsort(p_values)[: int((~np.isnan(p_values)).sum())]  # nan sorts last
    corrected, weights = np.full_like(p_values, np.nan), np.arange(order.size, 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * weights), 1.0)
    return corrected


def associations(
    score: pd.Series | ArrayLike,
    attributes: pd.DataFrame,
    *,
    seed: int = 0,
    n_resamples: int = 1000,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Rank correlation of each attribute column with a score, tested and corrected for many tests.

    The score is a Series, matched by index, or an array in row order; the attributes have a row per
    sample, at least 3. Index "attribute", columns spearman (effect size), low, high (bootstrap),
    p_value (two-sided t approximation), p_holm (over all); nan for a constant attribute.
    """
    columns = vectors(attributes, "attribute")
    target = vector("score", aligned(score, attributes, "score"))
    if target.size < 3:
        raise ValueError(f"found {target.size} samples: a rank correlation needs at least 3")
    table = _table(spearman, columns, target, confidence, n_resamples, seed)
    table.columns = ["spearman", "low", "high"]
    p_values = betainc((target.size - 2) / 2, 0.5, 1 - table["spearman"].to_numpy() ** 2)
    return table.assign(p_value=p_values, p_holm=holm(p_values)).rename_axis("attribute")
