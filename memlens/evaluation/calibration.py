"""Calibration: reliability bins and the errors of Eq. 11 to 14 of the CSG paper.

The confidence is that of the top class. Bins have equal width and are [left, right), the last one
[left, 1]: late in training a float32 softmax saturates at exactly 1.0, and a separate bin for 1.0
(as in torchmetrics 1.9) would change every error.

"Mean over bins" has two interpretations. ``msce`` and ``uce`` divide by all ``n_bins`` bins, as in
the equations, where an empty bin has no error; ``uce`` can also divide by the bins in use
(``divide_by="non_empty"``). ``msce_sum`` and ``uce_sum`` do not divide: MSCE and UCE in the paper's
Table 2 exceed its MCE, which no mean can, and are such sums if its M is 15.

In all functions ``y_true`` is (n_samples,) integer labels in 0 .. n_classes - 1 and ``y_prob`` is
(n_samples, n_classes), probabilities in [0, 1] whose rows sum to 1 within 0.001. Other input raises
a ValueError or TypeError. All errors are 0 for perfect calibration.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import scipy.special
from numpy.typing import ArrayLike
from scipy.stats import binned_statistic

_SUM_TOLERANCE = 1e-3  # ours: float16 rounding over 1,000 classes passes, logits do not
_RANGE_TOLERANCE = 1e-6  # float32 softmax may overshoot 1 by a rounding


def softmax(logits: ArrayLike) -> np.ndarray:
    """Return float64 probabilities (n_samples, n_classes) of finite logits of the same shape.

    float64 distinguishes confidences that float32 rounds to exactly 1.0.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise ValueError(
            f"logits have shape {logits.shape} and {int((~np.isfinite(logits)).sum())} non-finite "
            "values; expected (n_samples, n_classes), all finite"
        )
    return scipy.special.softmax(logits, axis=1)


def _checked_probabilities(y_prob: ArrayLike) -> np.ndarray:
    prob = np.asarray(y_prob, dtype=np.float64)
    if prob.ndim != 2 or prob.shape[0] < 1 or prob.shape[1] < 2:
        raise ValueError(
            f"y_prob has shape {prob.shape}; expected (n_samples, n_classes) with at least two "
            "classes"
        )
    low, high = prob.min(), prob.max()
    # written so that NaN fails too
    if not (low >= -_RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE):
        raise ValueError(
            f"y_prob ranges from {low:.4g} to {high:.4g}; expected values in [0, 1]: of logits "
            "pass softmax(logits)"
        )
    sums = prob.sum(axis=1)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > _SUM_TOLERANCE:
        raise ValueError(
            f"row {worst} of y_prob sums to {sums[worst]:.4f}; expected 1: of logits pass "
            "softmax(logits)"
        )
    return prob


def _checked_labels(y_true: ArrayLike, n_samples: int, n_classes: int) -> np.ndarray:
    labels = np.asarray(y_true)
    if labels.shape != (n_samples,):
        raise ValueError(
            f"y_true has shape {labels.shape}, y_prob {n_samples} rows; expected one label per row"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"y_true has dtype {labels.dtype}; expected integer class labels")
    outside = labels[(labels < 0) | (labels >= n_classes)]
    if outside.size:
        raise ValueError(
            f"y_true holds {outside.size} labels outside 0 .. {n_classes - 1}, such as "
            f"{outside[0]}: number the classes like the columns of y_prob"
        )
    return labels


def _confidence_and_correct(y_true: ArrayLike, y_prob: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return top-1 confidence (n,) and correctness (n,) bool; the first of tied classes counts."""
    prob = _checked_probabilities(y_prob)
    labels = _checked_labels(y_true, *prob.shape)
    return np.minimum(prob.max(axis=1), 1.0), prob.argmax(axis=1) == labels


def reliability(y_true: ArrayLike, y_prob: ArrayLike, n_bins: int = 15) -> pd.DataFrame:
    """Return the reliability diagram as a table: confidence and accuracy of each bin.

    Returns
    -------
    DataFrame, index "bin" 0 .. n_bins - 1
        left and right (edges), confidence and accuracy (means in [0, 1], NaN for an empty bin), and
        n (int64).

    >>> reliability([0, 1], [[1.0, 0.0], [0.9, 0.1]], n_bins=2)["n"].tolist()
    [0, 2]
    """
    if n_bins < 1:
        raise ValueError(f"n_bins is {n_bins}; expected at least 1")
    confidence, correct = _confidence_and_correct(y_true, y_prob)
    edges = np.arange(n_bins + 1) / n_bins  # 6 / 10 is 0.6, linspace's 6 * 0.1 is above it
    means, _, _ = binned_statistic(confidence, [confidence, correct], "mean", bins=edges)
    return pd.DataFrame(
        {
            "left": edges[:-1],
            "right": edges[1:],
            "confidence": means[0],
            "accuracy": means[1],
            "n": np.histogram(confidence, edges)[0],
        }
    ).rename_axis("bin")


def errors_of(table: pd.DataFrame) -> pd.Series:
    """Return accuracy, ece, mce, msce, uce, msce_sum and uce_sum of a table of bins.

    Parameters
    ----------
    table : DataFrame
        As `reliability` and `pooled_bins` return it. A bin without predictions has no gap; it
        counts in the means of msce and uce.
    """
    used = table[table["n"] > 0]
    gaps, counts = (used["accuracy"] - used["confidence"]).abs().to_numpy(), used["n"].to_numpy()
    squares, total, n_bins = float((gaps**2).sum()), float(gaps.sum()), len(table)
    values = {
        "accuracy": float(used["accuracy"] @ counts / counts.sum()),
        "ece": float(gaps @ counts / counts.sum()),
        "mce": float(gaps.max()),
        "msce": squares / n_bins,
        "uce": total / n_bins,
        "msce_sum": squares,
        "uce_sum": total,
    }
    return pd.Series(values, name="value")


def ece(y_true: ArrayLike, y_prob: ArrayLike, n_bins: int = 15) -> float:
    """Return the expected calibration error (Eq. 11), in [0, 1]: mean gap, weighted by count."""
    return float(errors_of(reliability(y_true, y_prob, n_bins))["ece"])


def mce(y_true: ArrayLike, y_prob: ArrayLike, n_bins: int = 15) -> float:
    """Return the maximum calibration error (Eq. 12), in [0, 1]: the largest gap of a bin in use."""
    return float(errors_of(reliability(y_true, y_prob, n_bins))["mce"])


def msce(y_true: ArrayLike, y_prob: ArrayLike, n_bins: int = 15) -> float:
    """Return the mean squared calibration error (Eq. 13), in [0, 1], over all bins."""
    return msce_sum(y_true, y_prob, n_bins) / n_bins


def uce(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    n_bins: int = 15,
    *,
    divide_by: Literal["bins", "non_empty"] = "bins",
) -> float:
    """Return the uniform calibration error (Eq. 14), in [0, 1]: the unweighted mean gap of bins."""
    if divide_by not in ("bins", "non_empty"):
        raise ValueError(f'divide_by is {divide_by!r}; expected "bins" or "non_empty"')
    table = reliability(y_true, y_prob, n_bins)
    used = table if divide_by == "bins" else table[table["n"] > 0]
    return float(errors_of(used)["uce"])


def msce_sum(y_true: ArrayLike, y_prob: ArrayLike, n_bins: int = 15) -> float:
    """Return the sum of the squared gaps, in [0, n_bins]: probably the MSCE of Table 2."""
    return float(errors_of(reliability(y_true, y_prob, n_bins))["msce_sum"])


def uce_sum(y_true: ArrayLike, y_prob: ArrayLike, n_bins: int = 15) -> float:
    """Return the sum of the gaps, in [0, n_bins]: probably the UCE of Table 2."""
    return float(errors_of(reliability(y_true, y_prob, n_bins))["uce_sum"])


def calibration_errors(y_true: ArrayLike, y_prob: ArrayLike, n_bins: int = 15) -> pd.Series:
    """Return a Series of accuracy, ece, mce, msce, uce, msce_sum and uce_sum.

    msce and uce divide by all bins. Higher is better only for accuracy.
    """
    return errors_of(reliability(y_true, y_prob, n_bins))


def network_bins(
    y_true: ArrayLike, logits: ArrayLike, chosen: ArrayLike, n_bins: int = 15
) -> np.ndarray:
    """Return the sums that the errors of several networks are computed from.

    Bins are few and predictions many, so that errors of any pool of the networks are cheap.

    Parameters
    ----------
    y_true : (n_samples,), labels of the samples that all networks predict
    logits : (n_models, n_samples, n_classes)
    chosen : (n_models, n_samples), bool
        The predictions to use, such as those of held-out samples, ``~sweep.masks``.

    Returns
    -------
    ndarray (n_models, n_bins, 3), float64
        Of each network and bin: number of predictions, sum of their confidences, number that are
        right.
    """
    labels, chosen = np.asarray(y_true), np.asarray(chosen, dtype=bool)
    sums = np.zeros((len(chosen), n_bins, 3))
    for number, (own, which) in enumerate(zip(np.asarray(logits), chosen, strict=True)):
        if which.any():
            table = reliability(labels[which], softmax(own[which]), n_bins)
            means = table[["confidence", "accuracy"]].fillna(0).to_numpy()
            counts = table[["n"]].to_numpy()
            sums[number] = np.hstack([counts, counts * means])
    return sums


def pooled_bins(sums: np.ndarray) -> pd.DataFrame:
    """Return the table of `reliability` for the predictions of all networks together.

    ``sums`` are (n_models, n_bins, 3), as `network_bins` returns them.
    """
    counts, confidences, right = sums.sum(axis=0).T
    n_bins = len(counts)
    with np.errstate(invalid="ignore"):
        means = {"confidence": confidences / counts, "accuracy": right / counts}
    edges = np.arange(n_bins + 1) / n_bins
    table = {"left": edges[:-1], "right": edges[1:]} | means | {"n": counts.astype(np.int64)}
    return pd.DataFrame(table).rename_axis("bin")


def error_ratio(
    measure: str, sums: np.ndarray, others: np.ndarray, *, n_resamples: int = 500, seed: int = 0
) -> tuple[float, float, float]:
    """Return an error over another one, each of all networks together, and its interval.

    MCE and UCE weight a bin of one prediction like a full one. Predictions of few networks leave
    such bins, so the networks are pooled, and drawn anew for the interval.

    Parameters
    ----------
    measure : str
        An entry of `errors_of`, such as "mce".
    sums, others : ndarray (n_models, n_bins, 3)
        As `network_bins` returns them, of the same networks: at two stops, or of two groups of
        samples.

    Returns
    -------
    (value, low, high)
        The ratio, and its 95 % percentile bootstrap interval over networks.
    """
    if sums.shape != others.shape:
        raise ValueError(f"the sums have shapes {sums.shape} and {others.shape}; expected one")

    def ratio(which: np.ndarray) -> float:
        first, second = (errors_of(pooled_bins(part[which])) for part in (sums, others))
        return float(first[measure] / second[measure])

    networks, rng = np.arange(len(sums)), np.random.default_rng(seed)
    drawn = [ratio(rng.choice(networks, len(networks))) for _ in range(n_resamples)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return ratio(networks), float(low), float(high)


def errors_by(
    y_true: ArrayLike, y_prob: ArrayLike, groups: ArrayLike, n_bins: int = 15
) -> pd.DataFrame:
    """Return accuracy and errors of each group of samples, such as each class.

    Parameters
    ----------
    groups : (n_samples,), without NaN
        A group chosen by the errors of networks, such as by memorization, depends on the labels:
        a network that is perfectly calibrated overall is overconfident in it.

    Returns
    -------
    DataFrame, index "group" (sorted)
        n, overconfidence (mean confidence minus accuracy, [-1, 1], 0 is best), then the columns of
        `calibration_errors`

    Raises
    ------
    ValueError
        If there is not one group per sample, or a group is NaN.
    """
    prob, labels = _checked_probabilities(y_prob), np.asarray(y_true)
    groups = pd.Series(np.asarray(groups))
    if groups.shape != prob.shape[:1] or groups.isna().any():
        raise ValueError(
            f"groups have shape {groups.shape} with {int(groups.isna().sum())} NaN; expected one "
            f"for each of {len(prob)} samples"
        )
    confidence, correct = _confidence_and_correct(labels, prob)
    rows = {}
    for group, where in groups.groupby(groups).indices.items():
        start = {"n": where.size, "overconfidence": (confidence - correct)[where].mean()}
        rows[group] = start | calibration_errors(labels[where], prob[where], n_bins).to_dict()
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group")
