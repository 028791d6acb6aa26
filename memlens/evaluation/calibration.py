"""How far confidence can be trusted: reliability bins and the errors of the CSG paper's Eq. 11-14.

The confidence is that of the top class. Bins have equal width and hold [left, right), the last one
[left, 1]: float32 softmax saturates at exactly 1.0 late in training, and a bin rule that sends 1.0
to a bin of its own moves every error below (torchmetrics 1.9 does).

Two readings of "mean over bins" exist, so both are here. ``msce`` and ``uce`` divide by all
``n_bins`` bins as the equations say, an empty bin counting as no error, or by the bins in use
(``divide_by="non_empty"``). ``msce_sum`` and ``uce_sum`` do not divide: the MSCE and UCE that the
paper's Table 2 prints exceed its MCE, which no mean can, and are such sums if its M is 15.

In all functions ``y_true`` is (n_samples,) integer labels in 0 .. n_classes - 1 and ``y_prob``
(n_samples, n_classes) probabilities in [0, 1] whose rows sum to 1 within 0.001. Anything else
raises a ValueError or TypeError that names what was found. Errors are 0 for perfect calibration.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import scipy.special
from numpy.typing import ArrayLike

DivideBy = Literal["bins", "non_empty"]
_SUM_TOLERANCE = 1e-3  # ours: float16 rounding over 1,000 classes passes, logits do not
_RANGE_TOLERANCE = 1e-6  # float32 softmax may overshoot 1 by a rounding


def softmax(logits: ArrayLike) -> np.ndarray:
    """Probabilities (n_samples, n_classes) in float64 from finite logits of the same shape.

    float64 keeps apart confidences that float32 would round to exactly 1.0.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise ValueError(
            f"logits have shape {logits.shape} and "
            f"{int((~np.isfinite(logits)).sum())} non-finite values: pass finite "
            "(n_samples, n_classes)"
        )
    return scipy.special.softmax(logits, axis=1)


def _checked_probabilities(y_prob: ArrayLike) -> np.ndarray:
    prob = np.asarray(y_prob, dtype=np.float64)
    if prob.ndim != 2 or prob.shape[0] < 1 or prob.shape[1] < 2:
        raise ValueError(
            f"y_prob has shape {prob.shape}: pass (n_samples, n_classes), a column "
            "for each of two or more classes"
        )
    low, high = prob.min(), prob.max()
    # written so that NaN fails too
    if not (low >= -_RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE):
        raise ValueError(
            f"y_prob ranges from {low:.4g} to {high:.4g}: probabilities lie in "
            "[0, 1]; for logits pass softmax(logits)"
        )
    sums = prob.sum(axis=1)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > _SUM_TOLERANCE:
        raise ValueError(
            f"row {worst} of y_prob sums to {sums[worst]:.4f}: rows must sum to 1; "
            "for logits pass softmax(logits)"
        )
    return prob


def _checked_labels(y_true: ArrayLike, n_samples: int, n_classes: int) -> np.ndarray:
    labels = np.asarray(y_true)
    if labels.shape != (n_samples,):
        raise ValueError(
            f"y_true has shape {labels.shape}, y_prob has {n_samples} rows: pass one label per row"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"y_true has dtype {labels.dtype}: pass integer class labels")
    outside = labels[(labels < 0) | (labels >= n_classes)]
    if outside.size:
        raise ValueError(
            f"y_true holds {outside.size} labels outside 0 .. {n_classes - 1}, such "
            f"as {outside[0]}: number the classes like the columns of y_prob"
        )
    return labels


def _confidence_and_correct(y_true: ArrayLike, y_prob: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return top-1 confidence (n,) and correctness (n,) bool; of tied classes the first counts."""
    prob = _checked_probabilities(y_prob)
    labels = _checked_labels(y_true, *prob.shape)
    return np.minimum(prob.max(axis=1), 1.0), prob.argmax(axis=1) == labels


def reliability(y_true: ArrayLike, y_prob: ArrayLike, n_bins: int = 15) -> pd.DataFrame:
    """Reliability diagram as a table: confidence against accuracy, a row per bin.

    Returns
    -------
    DataFrame, index "bin" 0 .. n_bins - 1: left, right (edges), confidence and accuracy (means in
    [0, 1], NaN in an empty bin), n (int64 count, 0 in an empty bin)

    >>> reliability([0, 1], [[1.0, 0.0], [0.9, 0.1]], n_bins=2)["n"].tolist()
    [0, 2]
    """
    if n_bins < 1:
        raise ValueError(f"n_bins is {n_bins}: pass at least 1")
    confidence, correct = _confidence_and_correct(y_true, y_prob)
    edges = np.arange(n_bins + 1) / n_bins  # 6 / 10 is 0.6; linspace's 6 * 0.1 lies above it
    bins = np.minimum(np.searchsorted(edges, confidence, side="right") - 1, n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    divisor = np.where(counts > 0, counts, np.nan)
    return pd.DataFrame(
        {
            "left": edges[:-1],
            "right": edges[1:],
            "confidence": np.bincount(bins, weights=confidence, minlength=n_bins) / divisor,
            "accuracy": np.bincount(bins, weights=correct, minlength=n_bins) / divisor,
            "n": counts,
        }
    ).rename_axis("bin")


def _gaps(y_true: ArrayLike, y_prob: ArrayLike, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Return |accuracy - confidence| and the count of each bin in use, in bin order."""
    table = reliability(y_true, y_prob, n_bins)
    used = table[table["n"] > 0]
    return (used["accuracy"] - used["confidence"]).abs().to_numpy(), used["n"].to_numpy()


def _mean_over_bins(values: np.ndarray, n_bins: int, divide_by: DivideBy) -> float:
    if divide_by not in ("bins", "non_empty"):
        raise ValueError(f'divide_by is {divide_by!r}: pass "bins" or "non_empty"')
    return float(values.sum() / (n_bins if divide_by == "bins" else values.size))


def ece(y_true: ArrayLike, y_prob: ArrayLike, n_bins: int = 15) -> float:
    """Expected calibration error (Eq. 11), in [0, 1]: mean gap of the bins, weighted by count."""
    gaps, counts = _gaps(y_true, y_prob, n_bins)
    return float(gaps @ counts / counts.sum())


def mce(y_true: ArrayLike, y_prob: ArrayLike, n_bins: int = 15) -> float:
    """Maximum calibration error (Eq. 12), in [0, 1]: the largest gap of a bin in use."""
    gaps, _ = _gaps(y_true, y_prob, n_bins)
    return float(gaps.max())


def msce(
    y_true: ArrayLike, y_prob: ArrayLike, n_bins: int = 15, *, divide_by: DivideBy = "bins"
) -> float:
    """Mean squared calibration error (Eq. 13), in [0, 1]: mean of the squared gaps of the bins."""
    gaps, _ = _gaps(y_true, y_prob, n_bins)
    return _mean_over_bins(gaps**2, n_bins, divide_by)


def uce(
    y_true: ArrayLike, y_prob: ArrayLike, n_bins: int = 15, *, divide_by: DivideBy = "bins"
) -> float:
    """Uniform calibration error (Eq. 14), in [0, 1]: mean gap of the bins, whatever their count."""
    gaps, _ = _gaps(y_true, y_prob, n_bins)
    return _mean_over_bins(gaps, n_bins, divide_by)


def msce_sum(y_true: ArrayLike, y_prob: ArrayLike, n_bins: int = 15) -> float:
    """Sum, not mean, of the squared gaps, in [0, n_bins]: what Table 2 seems to print as MSCE."""
    gaps, _ = _gaps(y_true, y_prob, n_bins)
    return float((gaps**2).sum())


def uce_sum(y_true: ArrayLike, y_prob: ArrayLike, n_bins: int = 15) -> float:
    """Sum, not mean, of the gaps, in [0, n_bins]: what Table 2 seems to print as UCE."""
    gaps, _ = _gaps(y_true, y_prob, n_bins)
    return float(gaps.sum())


def calibration_errors(y_true: ArrayLike, y_prob: ArrayLike, n_bins: int = 15) -> pd.Series:
    """Accuracy and every error above as a Series: accuracy, ece, mce, msce, uce and the two sums.

    msce and uce divide by all bins. Only accuracy is better when higher.
    """
    measures = (ece, mce, msce, uce, msce_sum, uce_sum)
    _, correct = _confidence_and_correct(y_true, y_prob)
    values = {measure.__name__: measure(y_true, y_prob, n_bins) for measure in measures}
    return pd.Series({"accuracy": float(correct.mean()), **values}, name="value")


def errors_by(
    y_true: ArrayLike, y_prob: ArrayLike, groups: ArrayLike, n_bins: int = 15
) -> pd.DataFrame:
    """Accuracy and errors of each group of samples, such as a class, or the memorized and the rest.

    Parameters
    ----------
    groups : (n_samples,), one label a sample without NaN
        Where a group is chosen by what nets get wrong, as by memorization, a net that is perfectly
        calibrated overall is overconfident in it: the group knows the labels, the net does not.

    Returns
    -------
    DataFrame, index "group" (sorted)
        n, overconfidence (mean confidence minus accuracy, [-1, 1], 0 is best), then the columns of
        `calibration_errors`

    Raises
    ------
    ValueError
        If there is not one group a sample, or a group is NaN.
    """
    prob, labels = _checked_probabilities(y_prob), np.asarray(y_true)
    groups = pd.Series(np.asarray(groups))
    if groups.shape != prob.shape[:1] or groups.isna().any():
        raise ValueError(
            f"groups have shape {groups.shape} with {int(groups.isna().sum())} NaN: "
            f"pass one for each of {len(prob)} samples"
        )
    confidence, correct = _confidence_and_correct(labels, prob)
    rows = {}
    for group, where in groups.groupby(groups).indices.items():
        start = {"n": where.size, "overconfidence": (confidence - correct)[where].mean()}
        rows[group] = start | calibration_errors(labels[where], prob[where], n_bins).to_dict()
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group")
