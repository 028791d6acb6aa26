"""Similarity of scores, detection quality, binned fits and tested associations.

Arrays hold one finite value per sample, ``(n_samples,)``, and are read as float64; scores point
upwards (higher = more memorized, more suspicious). What cannot be scored (NaN, infinite, another
length, one class) raises a ValueError or TypeError that says what was found and what to do.
Bootstraps draw whole samples, and the same seed draws the same ones for every score.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import betainc
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

_CHUNK = 2**15  # values per block of resamples; ours: a quarter MB of float64 stays in the cache
Draws = Callable[[np.ndarray], np.ndarray]  # takes drawn sample indices (r, n) to rows or values


class LinearFit(NamedTuple):
    """A line; r2 in [0, 1] is the share of the variance of y that it explains."""

    slope: float
    intercept: float
    r2: float


def _vector(name: str, values: ArrayLike) -> np.ndarray:
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} is not numeric ({error}): pass one number per sample") from None
    if vector.ndim != 1 or not vector.size:
        raise ValueError(f"{name} has shape {vector.shape}: pass (n_samples,), at least one sample")
    if n_bad := int((~np.isfinite(vector)).sum()):
        raise ValueError(f"{name} holds {n_bad} non-finite values (NaN or infinite) among "
                         f"{vector.size}: drop those samples, or find out where they come from")
    return vector


def _pair(x: ArrayLike, y: ArrayLike, x_name: str, y_name: str) -> tuple[np.ndarray, np.ndarray]:
    first, second = _vector(x_name, x), _vector(y_name, y)
    if first.size != second.size:
        raise ValueError(f"{x_name} has {first.size} samples, {y_name} {second.size}: pass pairs")
    # Two Series in another order would be paired by position, sample i with sample j: refuse.
    if isinstance(x, pd.Series) and isinstance(y, pd.Series) and not x.index.equals(y.index):
        raise ValueError(f"{x_name} and {y_name} have different indices: align them first")
    return first, second


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
    x, y = _pair(a, b, "a", "b")
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


def _bootstrap(measure: Draws, n_samples: int, confidence: float, n_resamples: int,
               seed: int) -> list[tuple[float, float]]:
    if not 0 < confidence < 1 or n_resamples < 1:
        raise ValueError(f"confidence {confidence}, n_resamples {n_resamples}: try 0.95 and 1000")
    rng, rows = np.random.default_rng(seed), max(1, _CHUNK // n_samples)
    sizes = [min(rows, n_resamples - start) for start in range(0, n_resamples, rows)]
    found = [measure(rng.integers(n_samples, size=(size, n_samples))) for size in sizes]
    known = [values[~np.isnan(values)] for values in np.concatenate(found, axis=1)]
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    return [tuple(np.quantile(v, tails).tolist()) if v.size else (np.nan, np.nan) for v in known]


def bootstrap_interval(
    statistic: Callable[..., float], *arrays: ArrayLike, confidence: float = 0.95,
    n_resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap (low, high) of ``statistic(*arrays)`` over samples drawn together.

    Arrays are (n_samples, ...). Resamples where the statistic is nan are left out; where it raises,
    as ``auroc`` without a positive, so does this. cosine, pearson and spearman of two vectors take
    a vectorised way to the same values from the same draws.
    """
    samples = [np.asarray(array) for array in arrays]
    if len({x.shape[:1] for x in samples}) != 1 or samples[0].shape[:1] in ((), (0,)):
        raise ValueError(f"found shapes {[x.shape for x in samples]}: pass arrays of one length")
    if statistic in (cosine, pearson, spearman) and len(arrays) == 2:
        x, y = _pair(*arrays, "array 0", "array 1")
        measure = _measure(statistic, [x], y)
    else:
        def measure(drawn: np.ndarray) -> np.ndarray:
            return np.array([[statistic(*(x[row] for x in samples)) for row in drawn]], float)
    return _bootstrap(measure, len(samples[0]), confidence, n_resamples, seed)[0]


def _table(statistic: Callable[..., float], columns: dict[str, np.ndarray], y: np.ndarray,
           *options: float) -> pd.DataFrame:
    measure, name = _measure(statistic, columns.values(), y), statistic.__name__
    table = pd.DataFrame({name: measure(np.arange(y.size)[None])[:, 0]}, index=list(columns))
    table[[f"{name}_low", f"{name}_high"]] = _bootstrap(measure, y.size, *options)
    return table


def _columns(frame: pd.DataFrame, kind: str) -> dict[str, np.ndarray]:
    if not isinstance(frame, pd.DataFrame) or frame.columns.empty or frame.columns.has_duplicates:
        raise TypeError(f"found {type(frame).__name__}: pass a DataFrame, each {kind} column once")
    return {name: _vector(f"{kind} column {name!r}", frame[name]) for name in frame.columns}


def _aligned(values: pd.Series | ArrayLike, frame: pd.DataFrame, name: str) -> np.ndarray:
    if isinstance(values, pd.Series):
        if values.index.has_duplicates or frame.index.has_duplicates:
            raise ValueError(f"{name} or its frame has an index label twice: keep each sample once")
        values = values.reindex(frame.index)  # NaN for a row that the Series does not know
    if np.shape(values) != (len(frame),):
        raise ValueError(f"{name} has shape {np.shape(values)}: pass ({len(frame)},) or a Series")
    return np.asarray(values, dtype=np.float64)


def compare(scores: pd.DataFrame, truth: pd.Series | ArrayLike, *, top_k: int | None = None,
            n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
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
    columns, target = _columns(scores, "score"), _aligned(truth, scores, "truth")
    kept = np.flatnonzero(~np.isnan(target))
    if not 3 <= (kept.size if top_k is None else top_k) <= kept.size:
        raise ValueError(f"{kept.size} of {len(scores)} samples have a truth and top_k is {top_k}: "
                         "compare 3 or more of them; do scores and truth share the sample index?")
    kept = np.sort(kept[np.argsort(-target[kept], kind="stable")[:top_k]])
    target, columns = _vector("truth", target[kept]), {name: x[kept] for name, x in columns.items()}
    table = pd.DataFrame({"n_samples": target.size}, index=list(columns))
    table["cosine"] = [cosine(column, target) for column in columns.values()]
    table["constant_cosine"] = cosine(np.ones_like(target), target)
    intervals = [_table(x, columns, target, 0.95, n_resamples, seed) for x in (pearson, spearman)]
    return pd.concat([table, *intervals], axis=1).rename_axis("score")


def _detect(y_true: ArrayLike, y_score: ArrayLike, share: float = 0) -> tuple[np.ndarray, ...]:
    labels, score = _pair(y_true, y_score, "y_true", "y_score")
    if (found := np.unique(labels).tolist()) != [0, 1] or not 0 <= share <= 1:
        raise ValueError(f"y_true holds {found[:3]}, the rate asked for is {share}: pass both "
                         "classes as 0 and 1 (1 = looked for), and a share between 0 and 1")
    return labels == 1, score


def auroc(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Chance that a positive (y_true 1) outranks a negative (0), ties half; in [0, 1], chance 0.5.

    Raises, as all detection metrics here, when one class is absent or a score is not finite.
    """
    return float(roc_auc_score(*_detect(y_true, y_score)))


def average_precision(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the precision-recall steps, in (0, 1]; by chance the share of positives."""
    return float(average_precision_score(*_detect(y_true, y_score)))


def fpr_at_tpr(y_true: ArrayLike, y_score: ArrayLike, tpr: float = 0.95) -> float:
    """Lowest false positive rate, [0, 1], of a threshold with at least this true positive rate."""
    fprs, tprs, _ = roc_curve(*_detect(y_true, y_score, tpr), drop_intermediate=False)
    return float(fprs[tprs >= tpr].min())


def tpr_at_fpr(y_true: ArrayLike, y_score: ArrayLike, fpr: float) -> float:
    """Highest true positive rate, [0, 1], of a threshold with at most this false positive rate."""
    fprs, tprs, _ = roc_curve(*_detect(y_true, y_score, fpr), drop_intermediate=False)
    return float(tprs[fprs <= fpr].max())


def precision_at(y_true: ArrayLike, y_score: ArrayLike, fraction: float = 0.01) -> float:
    """Share of positives, [0, 1], among the fraction of samples with the highest score.

    Rounded down, as label noise is, to at least 1; samples tied at the cut count by their mean.
    """
    labels, score = _detect(y_true, y_score, fraction)
    k = max(1, int(fraction * labels.size + 1e-9))  # 0.29 * 100 is below 29 in floats
    cut = np.sort(score)[-k]
    above, tied = score > cut, score == cut
    return float((labels[above].sum() + (k - above.sum()) * labels[tied].mean()) / k)


def binned_mean(x: ArrayLike, y: ArrayLike, n_bins: int = 15) -> pd.DataFrame:
    """Mean of y in equal-width bins of x, the form of the CSG paper's Fig. 4.

    Bins are [left, right), the last closed; empty ones are absent; a constant x makes one bin.
    Columns left, right, x_mean, y_mean, y_std (divisor n), n.
    """
    x, y = _pair(x, y, "x", "y")
    if n_bins < 1:
        raise ValueError(f"n_bins is {n_bins}: pass at least 1")
    edges = np.linspace(x.min(), x.max(), n_bins + 1)
    bins = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, n_bins - 1)
    samples = pd.DataFrame({"left": edges[bins], "right": edges[bins + 1], "x": x, "y": y})
    return samples.groupby(["left", "right"], as_index=False).agg(
        x_mean=("x", "mean"), y_mean=("y", "mean"), y_std=("y", lambda y: y.std(ddof=0)),
        n=("y", "size"))


def linear_fit(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> LinearFit:
    """Least-squares line; weights are not negative, e.g. counts. Raises when x is constant."""
    x, y = _pair(x, y, "x", "y")
    weights = np.ones_like(x) if weights is None else _pair(weights, x, "weights", "x")[0]
    used = weights > 0
    if weights.min() < 0 or not used.any() or np.ptp(x[used]) == 0:
        raise ValueError(f"x is constant in {used.sum()} weighted samples, or the least weight, "
                         f"{weights.min()}, is negative: a line needs two different x")
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


def associations(score: pd.Series | ArrayLike, attributes: pd.DataFrame, *, seed: int = 0,
                 n_resamples: int = 1000, confidence: float = 0.95) -> pd.DataFrame:
    """Rank correlation of each attribute column with a score, tested and corrected for many tests.

    The score is a Series, matched by index, or an array in row order; the attributes have a row per
    sample, at least 3. Index "attribute", columns spearman (effect size), low, high (bootstrap),
    p_value (two-sided t approximation), p_holm (over all); nan for a constant attribute.
    """
    columns = _columns(attributes, "attribute")
    target = _vector("score", _aligned(score, attributes, "score"))
    if target.size < 3:
        raise ValueError(f"found {target.size} samples: a rank correlation needs at least 3")
    table = _table(spearman, columns, target, confidence, n_resamples, seed)
    table.columns = ["spearman", "low", "high"]
    p_values = betainc((target.size - 2) / 2, 0.5, 1 - table["spearman"].to_numpy() ** 2)
    return table.assign(p_value=p_values, p_holm=holm(p_values)).rename_axis("attribute")
