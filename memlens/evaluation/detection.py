"""How well a score finds what was planted, such as wrong labels: its order against the truth.

``y_true`` is (n_samples,), 1 for what is looked for and 0 for the rest, both present; ``y_score``
is (n_samples,), finite, higher = more suspicious. Samples with one score share a step of every
curve, so that their order in the file plays no role.
"""

from collections.abc import Callable, Mapping, Sequence

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
        raise ValueError(f"y_true holds {found[:3]}: pass both classes as 0 and 1, 1 = looked for")
    return labels == 1, score


def steps(y_true: ArrayLike, y_score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """False and true positives of each threshold, two arrays of counts, (n_thresholds + 1,).

    From none, above the highest score, to all: divided by their last, they are the ROC curve.
    """
    _, false, _, true, _ = confusion_matrix_at_thresholds(*_classes(y_true, y_score))
    return np.append(0, false), np.append(0, true)


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}: pass a share between 0 and 1")
    return value


def auroc(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Chance that a positive (y_true 1) outranks a negative (0), ties half; in [0, 1], chance 0.5.

    Raises, as all measures here, when one class is absent or a score is not finite.
    """
    return float(roc_auc_score(*_classes(y_true, y_score)))


def average_precision(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the precision-recall steps, in (0, 1]; by chance the share of positives."""
    return float(average_precision_score(*_classes(y_true, y_score)))


def fpr_at_tpr(y_true: ArrayLike, y_score: ArrayLike, tpr: float = 0.95) -> float:
    """Lowest false positive rate, [0, 1], of a threshold with at least this true positive rate.

    Here lower is better: what has to be looked at in vain.
    """
    false, true = steps(y_true, y_score)
    return float(false[true / true[-1] >= _share("tpr", tpr)][0] / false[-1])


def tpr_at_fpr(y_true: ArrayLike, y_score: ArrayLike, fpr: float) -> float:
    """Highest true positive rate, [0, 1], of a threshold with at most this false positive rate."""
    return float(tprs_at(y_true, y_score, [fpr])[0])


def tprs_at(y_true: ArrayLike, y_score: ArrayLike, fprs: Sequence[float]) -> np.ndarray:
    """`tpr_at_fpr` of several rates at once, (n_rates,): a ROC curve read off at chosen places."""
    false, true = steps(y_true, y_score)
    allowed = [_share("fpr", fpr) for fpr in fprs]
    return true[np.searchsorted(false / false[-1], allowed, side="right") - 1] / true[-1]


def balanced_accuracy(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Mean of true positive and true negative rate at the best threshold, [0.5, 1], chance 0.5.

    The threshold is chosen on the samples it is judged on, as attacks are judged in the papers; by
    chance a small sample lifts it above 0.5.
    """
    false, true = steps(y_true, y_score)
    return float((1 + true / true[-1] - false / false[-1]).max() / 2)


def equal_error_accuracy(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Mean of true positive and true negative rate where the two are nearest, [0, 1], chance 0.5.

    The balanced accuracy of the privacy papers' code: of the point of the ROC curve where FPR + TPR
    is closest to 1, of equals the first. Unlike the best threshold it is not lifted by chance.
    """
    false, true = steps(y_true, y_score)
    fpr, tpr = false / false[-1], true / true[-1]
    at = np.abs(fpr + tpr - 1).argmin()
    return float((1 + tpr[at] - fpr[at]) / 2)


def precision_at(y_true: ArrayLike, y_score: ArrayLike, fraction: float = 0.01) -> float:
    """Share of positives, [0, 1], among the fraction of samples with the highest score.

    What a person meets who relabels by hand from the top. The fraction is rounded down, as label
    noise is, to at least 1; samples tied at the cut count by their mean.
    """
    false, true = steps(y_true, y_score)
    k = max(1, int(_share("fraction", fraction) * (true + false)[-1] + 1e-9))  # 0.29 * 100 < 29
    return float(np.interp(k, true + false, true) / k)


def auroc_interval(
    y_true: ArrayLike, y_score: ArrayLike, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Low and high bound of the AUROC over samples drawn anew, for the scores of one training.

    DeLong, DeLong and Clarke-Pearson (1988): each positive has a place, the share of negatives
    below it, each negative the share of positives above it; either mean is the AUROC. The variances
    of the places, each over the size of its class, add up to that of the AUROC. Ours: to either
    class two samples are added with the largest variance that places of this mean can have, and
    the bounds are Wilson's (1927) for a share with that variance. So they stay in [0, 1], and a
    perfect order has an interval too. By simulation with normal scores 0.95 covers 0.93 to 0.99,
    for 14 positives and more and AUROCs up to 0.999; DeLong's own bounds cover 0.6 at worst. Where
    one positive in a hundred ranks like a negative, a small sample shows none: then no interval
    from the sample alone is wide enough.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: pass a share between 0 and 1, such as 0.95")
    labels, score = _classes(y_true, y_score)
    positive, negative = score[labels], score[~labels]
    # the negatives' places are 1 minus these, with the same variance
    places = _places(positive, negative), _places(negative, positive)
    area = places[0].mean()
    widest = area * (1 - area)  # variance of places that are all 0 or 1, or 1 where it is 0 / 0
    shares = [(place.var() / (widest or 1) + 2 / place.size) / place.size for place in places]
    z2 = ndtri((1 + confidence) / 2) ** 2 * sum(shares)  # 1 / sum: as many independent samples
    centre, half = area + z2 / 2, np.sqrt(z2 * widest + z2**2 / 4)
    return float((centre - half) / (1 + z2)), float((centre + half) / (1 + z2))


def _places(of: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Share of ``among`` below each of ``of``, ties half, (n_of,)."""
    among = np.sort(among)
    both = among.searchsorted(of, "left") + among.searchsorted(of, "right")
    return both / (2 * among.size)


METRICS: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "auroc": auroc, "average_precision": average_precision, "fpr_at_95_tpr": fpr_at_tpr,
    "precision_at_1_percent": precision_at,
}  # fmt: skip


def evaluate_detectors(
    y_true: pd.Series | ArrayLike, scores: pd.DataFrame, *,
    metrics: Mapping[str, Callable[[ArrayLike, ArrayLike], float]] = METRICS,
    confidence: float | None = None,
) -> pd.DataFrame:  # fmt: skip
    """How well each score column finds the positives.

    Parameters
    ----------
    y_true : Series, matched by index, or array in row order; 1 or True for what is looked for
    scores : DataFrame, a row per sample, a finite column per score, higher = more suspicious
    metrics : what to measure: a column's name and its function of y_true and y_score
    confidence : if given, such as 0.95, auroc_low and auroc_high follow: see `auroc_interval`

    Returns
    -------
    DataFrame, index "score", a row a score; by default auroc, average_precision, fpr_at_95_tpr
    (lower is better) and precision_at_1_percent (of the first 1 % of the list)
    """
    columns, truth = vectors(scores, "score"), aligned(y_true, scores, "y_true")
    with config_context(assume_finite=True, skip_parameter_validation=True):  # checked above, once
        rows = [{k: f(truth, column) for k, f in metrics.items()} for column in columns.values()]
    table = pd.DataFrame(rows, index=pd.Index(columns, name="score"), dtype=np.float64)
    if confidence is not None:
        bounds = [auroc_interval(truth, x, confidence=confidence) for x in columns.values()]
        table[["auroc_low", "auroc_high"]] = bounds
    return table
