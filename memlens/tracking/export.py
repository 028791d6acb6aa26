"""What a loop of your own hands over: all its scores, sums over its visits, label quality."""

import numpy as np
import pandas as pd

from memlens.tracking.recorder import Recorder
from memlens.tracking.stopping import Peak
from memlens.tracking.traces import Trace


def scores_of(
    recorder: Recorder,
    peak: Peak | int | None = None,
    *,
    index: np.ndarray | None = None,
) -> pd.DataFrame:
    """Hand over `Recorder.scores` under an index of your own, with the number of visits.

    Where visits are counted, the last column, ``visits``, says how many were made; it is no score.

    Parameters
    ----------
    recorder : Recorder
    peak : Peak or int, optional
        As in `Recorder.scores`.
    index : ndarray (n_samples,), optional
        Index of the frame; by default positions in the training set.
    """
    frame, trace = recorder.scores(peak), recorder.trace
    if index is not None:
        frame = frame.set_axis(pd.Index(index, name="index"))
    return frame.assign(visits=trace.visits.sum(0)) if trace.counted else frame


def by_visits(trace: Trace) -> pd.DataFrame:
    """Sums and means over the visits really made, where samples are visited unequally.

    A sum grows with the number of visits, a mean does not. With one visit an epoch the sums are
    `csl` and `csg`, and the mean L1 norm is `loss_sensitivity`.

    Returns
    -------
    DataFrame (n_samples,): visits, and csl, csg, loss_sensitivity, each as _sum and _mean; the mean
    of a sample that was never visited is NaN, its sum 0.
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
    """A score as label quality, as cleanlab has it: in (0, 1), the lower the more suspicious.

    By rank, so that it does not depend on the unit of the score; equal values get one rank. A
    sample without a score keeps NaN.

    >>> label_quality(pd.Series([3.0, 1.0, 2.0, 9.0])).tolist()
    [0.375, 0.875, 0.625, 0.125]
    """
    return 1 - (score.rank() - 0.5) / score.count()
