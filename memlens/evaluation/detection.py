"""Detection measures: the agreement of a score's ranking with known labels, such as wrong labels.

``y_true`` is (n_samples,), 1 for positives and 0 for negatives, both present; ``y_score`` is
(n_samples,), finite, higher = more suspicious. Tied samples share one threshold, so the order of
the samples does not matter. Every function raises a ValueError if a class is absent or a score is
not finite.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import ndtri
from sklearn import config_context
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix_at_thresholds,
    roc_auc_score,
)

from memlens.evaluation.validation import aligned, paired, vectors


def _classes(y_true: ArrayLike, y_score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    labels, score = paired(y_true, y_score, "y_true", "y_score")
    if (found := np.unique(labels).tolist()) != [0, 1]:
        raise ValueError(f"y_true holds {found[:3]}; expected both 0 and 1, where 1 is positive")
    return labels == 1, score


def threshold_counts(y_true: ArrayLike, y_score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the false and the true positives of each threshold, both (n_thresholds + 1,).

    The thresholds fall, from above the highest score (0 of both) to the lowest (all). Divided by
    their last values, the counts are the ROC curve.
    """
    _, false, _, true, _ = confusion_matrix_at_thresholds(*_classes(y_true, y_score))
    return np.append(0, false), np.append(0, true)


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; expected a share between 0 and 1")
    return value


def auroc(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Return the area under the ROC curve, in [0, 1]; by chance 0.5.

    It is the probability that a positive has a higher score than a negative; ties count half.

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    return float(roc_auc_score(*_classes(y_true, y_score)))


def average_precision(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Return the average precision, in (0, 1]; by chance the share of positives."""
    return float(average_precision_score(*_classes(y_true, y_score)))


def fpr_at_tpr(y_true: ArrayLike, y_score: ArrayLike, tpr: float = 0.95) -> float:
    """Return the lowest false positive rate of all thresholds with a true positive rate >= tpr.

    In [0, 1]; lower is better.
    """
    false, true = threshold_counts(y_true, y_score)
    return float(false[true / true[-1] >= _share("tpr", tpr)][0] / false[-1])


def tpr_at_fpr(y_true: ArrayLike, y_score: ArrayLike, fpr: float) -> float:
    """Return the highest true positive rate, [0, 1], with a false positive rate <= fpr."""
    return float(tprs_at(y_true, y_score, [fpr])[0])


def tprs_at(y_true: ArrayLike, y_score: ArrayLike, fprs: Sequence[float]) -> np.ndarray:
    """Return `tpr_at_fpr` of several rates, (n_rates,): the ROC curve at chosen points."""
    false, true = threshold_counts(y_true, y_score)
    allowed = [_share("fpr", fpr) for fpr in fprs]
    return true[np.searchsorted(false / false[-1], allowed, side="right") - 1] / true[-1]


def balanced_accuracy(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Return the mean of true positive and true negative rate at the best threshold, [0.5, 1].

    As in the papers, the threshold is chosen on the samples that it is evaluated on, so the value
    of a random score exceeds 0.5 on small samples.
    """
    false, true = threshold_counts(y_true, y_score)
    return float((1 + true / true[-1] - false / false[-1]).max() / 2)


def equal_error_accuracy(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Return the mean of true positive and true negative rate at the equal error rate, [0, 1].

    The balanced accuracy of the privacy papers' code, at the (first) point of the ROC curve where
    FPR + TPR is closest to 1. By chance 0.5, also on small samples.
    """
    false, true = threshold_counts(y_true, y_score)
    fpr, tpr = false / false[-1], true / true[-1]
    at = np.abs(fpr + tpr - 1).argmin()
    return float((1 + tpr[at] - fpr[at]) / 2)


def precision_at(y_true: ArrayLike, y_score: ArrayLike, fraction: float = 0.01) -> float:
    """Return the share of positives, [0, 1], in the fraction of samples with the highest scores.

    The number of samples is rounded down, as for label noise, to at least 1; samples that are tied
    at the threshold count by their mean.
    """
    false, true = threshold_counts(y_true, y_score)
    k = max(1, int(_share("fraction", fraction) * (true + false)[-1] + 1e-9))  # 0.29 * 100 < 29
    return float(np.interp(k, true + false, true) / k)


def auroc_by_epoch(y_true: ArrayLike, values: ArrayLike) -> np.ndarray:
    """Return the AUROC of the sum up to each epoch, (n_epochs,).

    ``values`` is (n_epochs, n_samples), such as ``trace.loss``: its sums up to an epoch are CSL as
    if the training had ended there.

    >>> auroc_by_epoch([0, 1], [[1, 0], [0, 1], [0, 1]]).tolist()
    [0.0, 0.5, 1.0]
    """
    sums = np.asarray(values, dtype=np.float64).cumsum(axis=0)
    return np.array([auroc(y_true, row) for row in sums])


def auroc_interval(
    y_true: ArrayLike, y_score: ArrayLike, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the lower and upper bound of the AUROC over samples, for the scores of one training.

    The variance is DeLong's (DeLong, DeLong and Clarke-Pearson 1988): the placement of a positive
    is the share of negatives below it, that of a negative the share of positives above it, and the
    variances of the mean placements add up. Two pseudo-samples of maximal variance are added to
    each class (our choice), and the bounds are Wilson's (1927) for a proportion of this variance,
    so they are in [0, 1] and have a positive width also for a perfect ranking.

    In simulations with normal scores, 14 positives or more and an AUROC up to 0.999, a nominal 0.95
    covers 0.93 to 0.99.
    """
    # Not DeLong's bounds or scipy.stats.bootstrap (percentile): they cover as little as 0.6 and
    # 0.78, with 14 positives or an AUROC of 0.999.
    if not 0 < confidence < 1:
        raise ValueError(
            f"confidence is {confidence}; expected a share between 0 and 1, such as 0.95"
        )
    labels, score = _classes(y_true, y_score)
    positive, negative = score[labels], score[~labels]
    # The placements of negatives are 1 minus the second array, which has the same variance.
    placements = _placements(positive, negative), _placements(negative, positive)
    area = placements[0].mean()
    maximal = area * (1 - area)  # variance of placements that are all 0 or 1
    shares = [(x.var() / (maximal or 1) + 2 / x.size) / x.size for x in placements]
    z2 = ndtri((1 + confidence) / 2) ** 2 * sum(shares)  # 1 / sum: effective number of samples
    centre, half = area + z2 / 2, np.sqrt(z2 * maximal + z2**2 / 4)
    return float((centre - half) / (1 + z2)), float((centre + half) / (1 + z2))


def _placements(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the share of ``others`` below each value, ties half, (n_values,)."""
    others = np.sort(others)
    both = others.searchsorted(values, "left") + others.searchsorted(values, "right")
    return both / (2 * others.size)


METRICS: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "auroc": auroc, "average_precision": average_precision, "fpr_at_95_tpr": fpr_at_tpr,
    "precision_at_1_percent": precision_at,
}  # fmt: skip


def evaluate_detectors(
    y_true: pd.Series | ArrayLike, scores: pd.DataFrame, *,
    metrics: Mapping[str, Callable[[ArrayLike, ArrayLike], float]] = METRICS,
    confidence: float | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Evaluate how well each score detects the positives.

    Parameters
    ----------
    y_true : Series, matched by index, or array in row order
        1 or True for positives.
    scores : DataFrame (n_samples, n_scores)
        Finite; higher = more suspicious.
    metrics : mapping of column name to function of (y_true, y_score)
    confidence : float, optional
        Such as 0.95: adds auroc_low and auroc_high, see `auroc_interval`.

    Returns
    -------
    DataFrame, index "score"
        By default auroc, average_precision, fpr_at_95_tpr (lower is better) and
        precision_at_1_percent.

    Examples
    --------
    >>> scores = pd.DataFrame({"csl": [0.1, 0.4, 0.35, 0.8], "el2n": [0.2, 0.1, 0.6, 0.9]})
    >>> evaluate_detectors([0, 0, 1, 1], scores)["auroc"].to_dict()
    {'csl': 0.75, 'el2n': 1.0}
    """
    columns, truth = vectors(scores, "score"), aligned(y_true, scores, "y_true")
    with config_context(assume_finite=True, skip_parameter_validation=True):  # checked above, once
        rows = [{k: f(truth, column) for k, f in metrics.items()} for column in columns.values()]
    table = pd.DataFrame(rows, index=pd.Index(columns, name="score"), dtype=np.float64)
    if confidence is not None:
        bounds = [auroc_interval(truth, x, confidence=confidence) for x in columns.values()]
        table[["auroc_low", "auroc_high"]] = bounds
    return table


def evaluate_many(
    y_true: Mapping[Hashable, ArrayLike],
    scores: Mapping[Hashable, pd.DataFrame],
    names: Sequence[str],
) -> pd.DataFrame:
    """Evaluate the scores of several trainings, each by its own positives.

    Parameters
    ----------
    y_true : mapping of key to positives, as in `evaluate_detectors`
    scores : mapping of key to DataFrame (n_samples, n_scores)
        The keys are those of ``y_true``, or some of them; the scores may differ.
    names : sequence of str
        Of the levels of the keys, such as ``["noise", "seed"]``.

    Returns
    -------
    DataFrame
        The tables of `evaluate_detectors`, one below the other. Index: the levels, then "score".
    """
    tables = {key: evaluate_detectors(y_true[key], frame) for key, frame in scores.items()}
    return pd.concat(tables, names=[*names, "score"])
