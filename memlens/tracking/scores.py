"""The scores of one training as pure functions of a `Trace`, and their catalogue.

All scores are (n_samples,) float64, and higher means more memorized, or more suspicious. The same
functions take the trace recorded during training (train mode, augmented inputs, before each update)
and the post-hoc trace (eval mode, clean inputs, after each epoch). T is the number of epochs, t
counts them from 0, g is the gradient of a sample's loss with respect to its normalised input. A
signal that is not measured in every epoch is used in the epochs in which it is. For traces with
gaps, pass `Trace.filled`, as `score_frame` does.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from memlens.tracking.peaks import Peak
from memlens.tracking.traces import SIGNALS, Trace

EARLY_EPOCH = 10  # of EL2N and GraNd: early in training, as Paul et al. 2021 (10 to 20 of 200)


def csg(trace: Trace) -> np.ndarray:
    """Return CSG: the sum of squared L2 norms of the input gradient (Ravikumar 2026, Eq. 3)."""
    return (trace.grad_l2.astype(np.float64) ** 2).sum(0)


def csg_plain(trace: Trace) -> np.ndarray:
    """Return the sum of L2 norms, not squared, as in the CSG authors' public code."""
    return trace.grad_l2.sum(0, dtype=np.float64)


def loss_sensitivity(trace: Trace) -> np.ndarray:
    """Return the mean L1 norm of the input gradient (Arpit et al. 2017)."""
    return trace.grad_l1.mean(0, dtype=np.float64)


def csl(trace: Trace) -> np.ndarray:
    """Return CSL: the sum of the losses (Ravikumar et al. 2025)."""
    return trace.loss.sum(0, dtype=np.float64)


def forgetting(trace: Trace, never_learned: float | None = None) -> np.ndarray:
    """Return the number of changes from a right to a wrong prediction (Toneva et al. 2019).

    A sample that was never right gets ``never_learned``, by default T as in the paper. Other
    implementations use 0, 1000 or infinity.
    """
    correct = trace.correct
    events = (correct[:-1] & ~correct[1:]).sum(0)
    never = trace.n_epochs if never_learned is None else never_learned
    return np.where(correct.any(0), events, never).astype(np.float64)


def first_correct(trace: Trace, never_learned: float | None = None) -> np.ndarray:
    """Return the first epoch with a right prediction; without one ``never_learned``, or T."""
    correct = trace.correct
    never = trace.n_epochs if never_learned is None else never_learned
    return np.where(correct.any(0), correct.argmax(0), never).astype(np.float64)


def share_wrong(trace: Trace) -> np.ndarray:
    """Return the share of epochs with a wrong prediction, in [0, 1]."""
    return 1 - trace.correct.mean(0)


def last_wrong(trace: Trace) -> np.ndarray:
    """Return the last epoch with a wrong prediction, + 1; 0 for a sample that was never wrong."""
    wrong = ~trace.correct
    last = trace.n_epochs - wrong[::-1].argmax(0)
    return np.where(wrong.any(0), last, 0).astype(np.float64)


def learning_time(
    trace: Trace,
    threshold: float,
    *,
    for_good: bool = False,
    never_learned: float | None = None,
) -> np.ndarray:
    """Return the first epoch at which a sample's mean squared gradient norm is low enough.

    It is the first-passage time of Eq. 4 (Ravikumar et al. 2026), min {t : mean_{s <= t} ||g||^2
    <= threshold}, with equal weights of all epochs. Gradients begin small, before anything is
    learned, so that nearly all samples pass at once or never, whatever the threshold: on digits
    with 10 % flipped labels its AUROC is 0.50, with ``for_good`` up to 0.95. It is no column.

    Parameters
    ----------
    trace : Trace
    threshold : float
        In squared units of ``grad_l2``: (nats per normalised input unit) squared.
    for_good : bool
        Return the first epoch from which the mean stays low to the end, not the first passage.
    never_learned : float, optional
        Value for a sample without such an epoch; by default T, as in `first_correct`.

    Returns
    -------
    ndarray (n_samples,)
        From 0 to T; NaN for a sample whose gradient was not measured.
    """
    running_mean, _ = _running_mean(trace.grad_l2.astype(np.float64) ** 2)
    low = running_mean <= threshold
    if for_good:
        low = np.logical_and.accumulate(low[::-1])[::-1]
    never = trace.n_epochs if never_learned is None else never_learned
    return _known(running_mean, np.where(low.any(0), low.argmax(0), never))


def learning_time_share(trace: Trace) -> np.ndarray:
    """Return the share of epochs in which the running mean gradient norm is not below its mean.

    This is how the CSG authors compute Eq. 4: norms are not squared, and the threshold is the mean
    over all samples and epochs. A sample whose gradient was not measured is NaN.
    """
    running_mean, grand_mean = _running_mean(trace.grad_l2)
    return _known(running_mean, 1 - (running_mean < grand_mean).mean(0))


def _running_mean(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Return means over the epochs so far (n_epochs, n_samples), and the mean of the known ones."""
    epochs = np.arange(1, len(values) + 1)[:, None]
    running_mean = values.cumsum(0, dtype=np.float64) / epochs
    unknown = np.isnan(running_mean[-1])
    if unknown.all():
        return running_mean, np.nan
    return running_mean, running_mean[:, ~unknown].mean() if unknown.any() else running_mean.mean()


def _known(running_mean: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(running_mean[-1]), np.nan, values)


def confidence(trace: Trace) -> np.ndarray:
    """Return the mean over epochs of 1 - p(label), in [0, 1] (Swayamdipta et al. 2020).

    Their confidence is the mean of p(label), which is low for hard samples; it is turned here.
    """
    return -np.expm1(-trace.loss.astype(np.float64)).mean(0)


def variability(trace: Trace) -> np.ndarray:
    """Return the standard deviation over epochs of p(label), divisor T (Swayamdipta et al. 2020).

    In [0, 0.5]. It is high for samples learned late or off and on, and low for those never learned.
    """
    return np.exp(-trace.loss.astype(np.float64)).std(0)


def lt_iqr(trace: Trace) -> np.ndarray:
    """Return the interquartile range of the loss over the epochs (LT-IQR, arXiv 2411.05743)."""
    low, high = np.percentile(trace.loss.astype(np.float64), [25, 75], axis=0)
    return high - low


def average_probability_margin(trace: Trace) -> np.ndarray:
    """Return minus (log mean p(label) - log largest mean p of another class), means over epochs.

    Probabilities are averaged first, then compared (arXiv 2510.16211, negated).
    """
    return -_latest(trace.probability_margin)


def aum(trace: Trace) -> np.ndarray:
    """Return minus the mean margin (area under the margin, Pleiss et al. 2020, negated)."""
    return -trace.margin.mean(0, dtype=np.float64)


def early_el2n(trace: Trace) -> np.ndarray:
    """Return EL2N in one early epoch of one run (Paul et al. 2021 average ten runs)."""
    return trace.el2n[min(EARLY_EPOCH, trace.n_epochs - 1)].astype(np.float64)


def final_loss(trace: Trace) -> np.ndarray:
    """Return the loss in the last epoch."""
    return trace.loss[-1].astype(np.float64)


def in_confidence(trace: Trace) -> np.ndarray:
    """Return 1 minus the probability of the label in the last epoch (Carlini et al. 2019)."""
    return -np.expm1(-trace.loss[-1].astype(np.float64))


def in_confidence_max(trace: Trace) -> np.ndarray:
    """Return 1 minus the largest probability of any class in the last epoch.

    This is the form of the CSL authors' public code. A sample with a certain but wrong prediction
    gets 0 here, and 1 from `in_confidence`.
    """
    log_largest = np.maximum(-trace.margin[-1].astype(np.float64), 0) - trace.loss[-1]
    return -np.expm1(np.minimum(log_largest, 0))


def mean_curvature(trace: Trace) -> np.ndarray:
    """Return the mean of ||Hv||^2 over epochs and random directions v (Garg et al. 2024, Eq. 6).

    It estimates the mean over epochs of the trace of H squared, in (nats per squared normalised
    input unit) squared. The paper does not divide by h^2, which changes no order of samples.
    """
    return np.nanmean(trace.curvature_squared, axis=0, dtype=np.float64)


def curvature_norm(trace: Trace) -> np.ndarray:
    """Return the mean of ||Hv||, not squared, as in the curvature authors' public code."""
    return np.nanmean(trace.curvature_norm, axis=0, dtype=np.float64)


def curvature_last(trace: Trace) -> np.ndarray:
    """Return the mean of ||Hv||^2 at the end of training (Garg et al. 2024, Table 4)."""
    return _latest(trace.curvature_squared)


def vog(trace: Trace) -> np.ndarray:
    """Return the variance of the label's logit gradient over all epochs (Agarwal et al. 2022)."""
    return _latest(trace.vog)


def vog_last5(trace: Trace) -> np.ndarray:
    """Return VoG over the last five epochs."""
    return _latest(trace.vog_last)


def vog_class(trace: Trace) -> np.ndarray:
    """Return VoG over all epochs, standardised within the class, as its authors rank it."""
    return class_normalised(vog(trace), trace.y_true)


def vog_last5_class(trace: Trace) -> np.ndarray:
    """Return VoG over the last five epochs, standardised within the class."""
    return class_normalised(vog_last5(trace), trace.y_true)


def grand(trace: Trace) -> np.ndarray:
    """Return GraNd: the norm of the weight gradient in one early epoch (Paul et al. 2021)."""
    return _latest(trace.weight_grad[: EARLY_EPOCH + 1])


def tracin(trace: Trace) -> np.ndarray:
    """Return TracIn self-influence, sum of lr ||weight gradient||^2 (Pruthi et al. 2020)."""
    return _self_influence(trace.weight_grad, trace.lr)


def tracin_last_layer(trace: Trace) -> np.ndarray:
    """Return TracIn self-influence of the last layer's weights, a common approximation."""
    return _self_influence(trace.weight_grad_last, trace.lr)


def class_normalised(values: np.ndarray, y_true: np.ndarray) -> np.ndarray:
    """Return values (n_samples,) minus the mean of their class, divided by its standard deviation.

    In a class without variation they are 0.
    """
    if np.shape(y_true) != values.shape:
        raise ValueError(
            f"y_true has shape {np.shape(y_true)}; expected {values.shape}: pass y_true to Trace"
        )
    y_true, normal = np.asarray(y_true), np.zeros_like(values, dtype=np.float64)
    for label in np.unique(y_true):
        of_class = values[y_true == label]
        normal[y_true == label] = (of_class - of_class.mean()) / (of_class.std() or 1.0)
    return normal


def _latest(rows: np.ndarray) -> np.ndarray:
    """Return the last row that was measured, (n_samples,)."""
    measured = np.flatnonzero(~np.isnan(rows).any(1))
    if not measured.size:
        raise ValueError(f"none of {len(rows)} epochs was measured: lower `every` in MeasureConfig")
    return rows[measured[-1]].astype(np.float64)


def _self_influence(norms: np.ndarray, lr: np.ndarray) -> np.ndarray:
    if lr is None:
        raise ValueError("the trace has no learning rates: pass lr to Trace")
    return np.nansum(lr[:, None] * norms.astype(np.float64) ** 2, axis=0)


@dataclass(frozen=True)
class Score:
    """A row of the catalogue: a score and its documentation.

    Attributes
    ----------
    function : callable
        From a `Trace`, or from the outputs of extra trainings (`ensembles.proxies`).
    formula, variant, source : str
    never_learned : str
        Value for a sample that was never predicted right; "-" if that is no special case.
    needs : tuple of str
        Signals that it is computed from.
    until_peak : bool
        True if the sum ends at the peak of a curve.
    """

    function: Callable[..., np.ndarray]
    formula: str
    variant: str
    never_learned: str
    source: str
    needs: tuple[str, ...]
    until_peak: bool = False

    @property
    def post_hoc_only(self) -> bool:
        """True if it needs signals that are not recorded during training."""
        return not set(self.needs) <= set(SIGNALS)


# fmt: off
CATALOGUE: dict[str, Score] = {
    "csg": Score(csg, "sum_t ||g||_2^2", "squared L2, summed", "-", "Ravikumar 2026, Eq. 3",
                 ("grad_l2",)),
    "csg_plain": Score(csg_plain, "sum_t ||g||_2", "L2 not squared, summed", "-",
                       "Ravikumar 2026, public code", ("grad_l2",)),
    "loss_sensitivity": Score(loss_sensitivity, "mean_t ||g||_1", "L1, mean", "-", "Arpit 2017",
                              ("grad_l1",)),
    "csl": Score(csl, "sum_t loss", "cross-entropy, summed", "-", "Ravikumar 2025", ("loss",)),
    "forgetting": Score(forgetting, "count of right -> wrong", "events", "T", "Toneva 2019",
                        ("margin",)),
    "first_correct": Score(first_correct, "first t with a right prediction",
                           "threshold learning time", "T", "Ravikumar 2026, B.6.1", ("margin",)),
    "last_wrong": Score(last_wrong, "last t with a wrong prediction, + 1", "learned for good",
                        "T", "Toneva 2019; Maini 2022", ("margin",)),
    "share_wrong": Score(share_wrong, "mean_t [prediction wrong]", "0-1 loss, mean", "1",
                         "Ravikumar 2025, public code", ("margin",)),
    "learning_time_share": Score(learning_time_share,
                                 "share of t with mean_{s<=t} ||g||_2 >= its grand mean",
                                 "running mean of gradients", "-",
                                 "Ravikumar 2026, public code", ("grad_l2",)),
    "confidence": Score(confidence, "mean_t (1 - p_y)", "confidence, turned", "-",
                        "Swayamdipta 2020", ("loss",)),
    "variability": Score(variability, "std_t p_y", "standard deviation", "-",
                         "Swayamdipta 2020", ("loss",)),
    "lt_iqr": Score(lt_iqr, "75 % - 25 % quantile over t of the loss", "interquartile range",
                    "-", "arXiv 2411.05743", ("loss",)),
    "aum": Score(aum, "- mean_t (z_y - max_{k != y} z_k)", "logit margin, negated", "-",
                 "Pleiss 2020", ("margin",)),
    "el2n": Score(early_el2n, f"||softmax - onehot||_2 at t = {EARLY_EPOCH}",
                  "one early epoch, one run", "-", "Paul 2021", ("el2n",)),
    "final_loss": Score(final_loss, "loss at t = T - 1", "cross-entropy", "-",
                        "Ravikumar 2026, Tab. 1", ("loss",)),
    "in_confidence": Score(in_confidence, "1 - p_y at t = T - 1", "true class", "-",
                           "Carlini 2019", ("loss",)),
    "in_confidence_max": Score(in_confidence_max, "1 - max_k p_k at t = T - 1", "largest class",
                               "-", "Ravikumar 2025, public code", ("loss", "margin")),
    "sgal": Score(csl, "sum_{t <= peak} loss", "CSL up to the peak of the gradient", "-",
                  "Ravikumar 2026, 4.3", ("loss",), until_peak=True),
    "early_csg": Score(csg, "sum_{t <= peak} ||g||_2^2", "CSG up to the peak of the gradient",
                       "-", "Ravikumar 2026, 4.3", ("grad_l2",), until_peak=True),
    "curvature": Score(mean_curvature, "mean_{t,v} ||H v||_2^2", "squared norm, mean", "-",
                       "Garg 2024, Eq. 6", ("curvature_squared",)),
    "curvature_norm": Score(curvature_norm, "mean_{t,v} ||H v||_2", "norm not squared, mean", "-",
                            "Garg 2024, public code", ("curvature_norm",)),
    "curvature_last": Score(curvature_last, "mean_v ||H v||_2^2 at t = T - 1",
                            "squared norm, end of training", "-", "Garg 2024, Table 4",
                            ("curvature_squared",)),
    "average_probability_margin": Score(average_probability_margin,
                                        "log max_{k != y} mean_t p_k - log mean_t p_y",
                                        "mean first, margin then, negated", "-",
                                        "arXiv 2510.16211", ("probability_margin",)),
    "vog": Score(vog, "mean_pixels std_t dz_y/dx", "all checkpoints, raw", "-", "Agarwal 2022",
                 ("vog",)),
    "vog_last5": Score(vog_last5, "mean_pixels std_{last 5 t} dz_y/dx", "last five, raw", "-",
                       "Ravikumar 2026, Tab. 1", ("vog_last",)),
    "vog_class": Score(vog_class, "(vog - mean of class) / std of class",
                       "all checkpoints, class-normalised", "-", "Agarwal 2022", ("vog",)),
    "vog_last5_class": Score(vog_last5_class, "(vog_last5 - mean of class) / std of class",
                             "last five, class-normalised", "-", "Agarwal 2022", ("vog_last",)),
    "grand": Score(grand, f"||dl/dw||_2 at t = {EARLY_EPOCH}", "all weights, one run", "-",
                   "Paul 2021", ("weight_grad",)),
    "tracin": Score(tracin, "sum_t lr_t ||dl/dw||_2^2", "self-influence, all weights", "-",
                    "Pruthi 2020", ("weight_grad",)),
    "tracin_last_layer": Score(tracin_last_layer, "sum_t lr_t ||dl/dw_last||_2^2",
                               "self-influence, last layer", "-", "Pruthi 2020",
                               ("weight_grad_last",)),
}
# fmt: on


def score_frame(trace: Trace, peak: Peak | None, index: np.ndarray) -> pd.DataFrame:
    """Compute every score whose signals are in the trace.

    Gaps in the trace are filled; scores that end at the peak use values up to the peak only. A
    sample that was never visited is NaN in every score, and one first visited after the peak in
    those that end there. Neither changes the scores of other samples.

    Parameters
    ----------
    trace : Trace
    peak : Peak or None
        Last epoch of the sums SGAL and early CSG; None leaves these two out.
    index : ndarray (n_samples,)
        Original index of each sample.

    Returns
    -------
    DataFrame (n_samples,)
        Index "index"; one float64 column a score.
    """
    named = pd.Index(index, name="index")
    visited = trace.visited
    if not visited.all():
        part = score_frame(trace.of(visited), peak, np.flatnonzero(visited))
        return part.reindex(np.arange(trace.n_samples)).set_axis(named)
    early = None if peak is None else trace.until(peak.peak_epoch + 1).filled()
    trace = trace.filled()
    columns = {}
    for name, score in CATALOGUE.items():
        part = early if score.until_peak else trace
        if part is not None and all(signal in part for signal in score.needs):
            columns[name] = score.function(part)
    return pd.DataFrame(columns, index=named)


def visit_sums(trace: Trace) -> pd.DataFrame:
    """Return sums and means over visits, for samples that are visited unequally.

    A sum grows with the number of visits, a mean does not. With one visit per epoch, the sums are
    `csl` and `csg`, and the mean L1 norm is `loss_sensitivity`.

    >>> signals = {name: np.array([[1.0, 3.0]]) for name in ("loss", "grad_l2", "grad_l1")}
    >>> sums = visit_sums(Trace(signals, visits=np.array([[2, 1]])))
    >>> sums[["visits", "csl_sum", "csl_mean"]].values.tolist()
    [[2.0, 2.0, 1.0], [1.0, 3.0, 3.0]]

    Parameters
    ----------
    trace : Trace
        Of a `CountingRecorder`.

    Returns
    -------
    DataFrame (n_samples,)
        Columns visits, and csl, csg and loss_sensitivity, each as _sum and _mean. For a sample
        that was never visited the sum is 0 and the mean NaN.
    """
    visits = trace.visits
    columns = {"visits": visits.sum(0)}
    for name, signal, power in (
        ("csl", "loss", 1),
        ("csg", "grad_l2", 2),
        ("loss_sensitivity", "grad_l1", 1),
    ):
        values = trace[signal].astype(np.float64) ** power
        weights = np.where(np.isnan(values), 0, visits)
        columns[f"{name}_sum"] = np.nansum(weights * values, axis=0)
        total = weights.sum(0).astype(np.float64)
        total[total == 0] = np.nan
        columns[f"{name}_mean"] = columns[f"{name}_sum"] / total
    return pd.DataFrame(columns, index=pd.RangeIndex(trace.n_samples, name="index"))


def label_quality(score: pd.Series) -> pd.Series:
    """Return a score as cleanlab's label quality: lower means more suspicious.

    It is computed from ranks, so the unit of the score does not matter. Equal scores get equal
    values; NaN stays NaN.

    >>> label_quality(pd.Series([3.0, 1.0, 2.0, 9.0])).tolist()
    [0.375, 0.875, 0.625, 0.125]

    Parameters
    ----------
    score : Series (n_samples,)
        Higher means more memorized.

    Returns
    -------
    Series (n_samples,)
        In (0, 1).
    """
    return 1 - (score.rank() - 0.5) / score.count()
