"""Every score that falls out of one training, as a pure function of a `Trace`; the catalogue.

All scores are (n_samples,) float64 and oriented so that higher means more memorized, or more
suspicious. The same functions serve the in-step trace (train mode, augmented inputs, before each
update) and the post-hoc trace (eval mode, clean inputs, after each epoch). T is the number of
epochs, t counts them from 0, g is the gradient of a sample's loss by its normalised input.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from memlens.recorder import Trace
from memlens.stopping import Peak

IN_STEP = "in-step (train mode, augmented, before the update)"
POST_HOC = "post-hoc (eval mode, clean, after the epoch)"
EL2N_EPOCH = 10  # early in training, as Paul et al. 2021 (epochs 10 to 20 of 200)


def csg(trace: Trace) -> np.ndarray:
    """CSG: sum of squared L2 norms of the input gradient (Ravikumar 2026, Eq. 3)."""
    return (trace.grad_l2.astype(np.float64) ** 2).sum(0)


def csg_plain(trace: Trace) -> np.ndarray:
    """The same sum of plain L2 norms, as the CSG authors' public code adds them up."""
    return trace.grad_l2.sum(0, dtype=np.float64)


def loss_sensitivity(trace: Trace) -> np.ndarray:
    """Mean L1 norm of the input gradient (Arpit et al. 2017)."""
    return trace.grad_l1.mean(0, dtype=np.float64)


def csl(trace: Trace) -> np.ndarray:
    """CSL: sum of the losses (Ravikumar et al. 2025)."""
    return trace.loss.sum(0, dtype=np.float64)


def forgetting(trace: Trace) -> np.ndarray:
    """How often a right prediction turned wrong; T for a sample never right (Toneva 2019)."""
    correct = trace.correct
    events = (correct[:-1] & ~correct[1:]).sum(0)
    return np.where(correct.any(0), events, trace.n_epochs).astype(np.float64)


def first_correct(trace: Trace) -> np.ndarray:
    """First epoch with a right prediction; T for a sample never right."""
    correct = trace.correct
    return np.where(correct.any(0), correct.argmax(0), trace.n_epochs).astype(np.float64)


def last_wrong(trace: Trace) -> np.ndarray:
    """Last epoch with a wrong prediction, + 1; 0 for a sample that never was wrong."""
    wrong = ~trace.correct
    last = trace.n_epochs - wrong[::-1].argmax(0)
    return np.where(wrong.any(0), last, 0).astype(np.float64)


def learning_time(trace: Trace) -> np.ndarray:
    """Share of epochs at which the running mean gradient norm is not below its grand mean.

    The form in which the CSG authors compute Eq. 4; the threshold is the mean over all samples and
    epochs.
    """
    epochs = np.arange(1, trace.n_epochs + 1)[:, None]
    running_mean = trace.grad_l2.cumsum(0, dtype=np.float64) / epochs  # (n_epochs, n_samples)
    return 1 - (running_mean < running_mean.mean()).mean(0)


def aum(trace: Trace) -> np.ndarray:
    """Minus the mean margin (area under the margin, Pleiss et al. 2020, negated)."""
    return -trace.margin.mean(0, dtype=np.float64)


def el2n(trace: Trace) -> np.ndarray:
    """Norm of the error vector at one early epoch of one run (Paul et al. 2021 average ten)."""
    return trace.el2n[min(EL2N_EPOCH, trace.n_epochs - 1)].astype(np.float64)


def final_loss(trace: Trace) -> np.ndarray:
    """Loss in the last epoch."""
    return trace.loss[-1].astype(np.float64)


def in_confidence(trace: Trace) -> np.ndarray:
    """1 minus the probability of the true class in the last epoch (Carlini et al. 2019)."""
    return -np.expm1(-trace.loss[-1].astype(np.float64))


def curvature(trace: Trace) -> np.ndarray:
    """Mean over epochs and probes of the norm ||Hv||; epochs not measured are left out."""
    return np.nanmean(trace.curvature, axis=0, dtype=np.float64)


def curvature_squared(trace: Trace) -> np.ndarray:
    """Mean over epochs and probes of ||Hv||^2 (Garg et al. 2024, Eq. 6)."""
    return np.nanmean(trace.curvature_squared, axis=0, dtype=np.float64)


@dataclass(frozen=True)
class Score:
    """What a score column is.

    ``extra_forwards``: cost beyond plain training, in forward passes a sample and epoch, where a
    training step counts 3 (forward and backward). ``n`` stands for the curvature probes.
    """

    function: Callable[[Trace], np.ndarray]
    formula: str
    variant: str
    never_learned: str
    extra_forwards: str
    source: str
    until_peak: bool = False
    post_hoc_only: bool = False


# fmt: off
CATALOGUE: dict[str, Score] = {
    "csg": Score(csg, "sum_t ||g||_2^2", "squared L2, summed", "-", "0", "Ravikumar 2026, Eq. 3"),
    "csg_plain": Score(csg_plain, "sum_t ||g||_2", "L2 not squared, summed", "-", "0",
                       "Ravikumar 2026, public code"),
    "loss_sensitivity": Score(loss_sensitivity, "mean_t ||g||_1", "L1, mean", "-", "0",
                              "Arpit 2017"),
    "csl": Score(csl, "sum_t loss", "cross-entropy, summed", "-", "0", "Ravikumar 2025"),
    "forgetting": Score(forgetting, "count of right -> wrong", "events", "T", "0", "Toneva 2019"),
    "first_correct": Score(first_correct, "first t with a right prediction",
                           "threshold learning time", "T", "0", "Ravikumar 2026, B.6.1"),
    "last_wrong": Score(last_wrong, "last t with a wrong prediction, + 1", "learned for good",
                        "T", "0", "Toneva 2019; Maini 2022"),
    "learning_time": Score(learning_time, "share of t with mean_{s<=t} ||g||_2 >= its grand mean",
                           "running mean of gradients", "-", "0", "Ravikumar 2026, Eq. 4"),
    "aum": Score(aum, "- mean_t (z_y - max_{k != y} z_k)", "logit margin, negated", "-", "0",
                 "Pleiss 2020"),
    "el2n": Score(el2n, f"||softmax - onehot||_2 at t = {EL2N_EPOCH}", "one early epoch, one run",
                  "-", "0", "Paul 2021"),
    "final_loss": Score(final_loss, "loss at t = T - 1", "cross-entropy", "-", "0",
                        "Ravikumar 2026, Tab. 1"),
    "in_confidence": Score(in_confidence, "1 - p_y at t = T - 1", "true class", "-", "0",
                           "Carlini 2019"),
    "sgal": Score(csl, "sum_{t <= peak} loss", "CSL up to the peak of the weight norm", "-",
                  "< 0: stops early", "Ravikumar 2026, 4.3", until_peak=True),
    "early_csg": Score(csg, "sum_{t <= peak} ||g||_2^2", "CSG up to the peak of the weight norm",
                       "-", "< 0: stops early", "Ravikumar 2026, 4.3", until_peak=True),
    "curvature": Score(curvature, "mean_{t,v} ||H v||_2", "norm, mean", "-", "3 (n + 1)",
                       "Garg 2024, public code", post_hoc_only=True),
    "curvature_squared": Score(curvature_squared, "mean_{t,v} ||H v||_2^2", "squared norm, mean",
                               "-", "3 (n + 1)", "Garg 2024, Eq. 6", post_hoc_only=True),
}
# fmt: on


def score_frame(trace: Trace, peak: Peak, index: np.ndarray) -> pd.DataFrame:
    """All scores that the trace has the signals for.

    Parameters
    ----------
    trace : Trace
    peak : Peak
        Where SGAL and early CSG stop adding up.
    index : ndarray (n_samples,)
        Original index of each sample: the index of the frame.
    """
    early = trace.until(peak.peak_epoch + 1)
    columns = {
        name: score.function(early if score.until_peak else trace)
        for name, score in CATALOGUE.items()
        if not score.post_hoc_only or name in trace
    }
    return pd.DataFrame(columns, index=pd.Index(index, name="index"))


def catalogue() -> pd.DataFrame:
    """One row a score: how it is computed, when it is measured, its direction, cost and source."""
    rows = {
        name: {
            "formula": score.formula,
            "variant": score.variant,
            "measured": POST_HOC if score.post_hoc_only else f"{IN_STEP} or {POST_HOC}",
            "input": "normalised as the net sees it",
            "direction": "higher = more memorized",
            "never learned": score.never_learned,
            "extra forwards": score.extra_forwards,
            "source": score.source,
        }
        for name, score in CATALOGUE.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("score")
