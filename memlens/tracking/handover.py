"""What a loop of your own hands over: all its scores, sums over its visits, label quality."""

import warnings

import numpy as np
import pandas as pd

from memlens.tracking.recorder import Recorder
from memlens.tracking.scores import score_frame
from memlens.tracking.stopping import Peak
from memlens.tracking.traces import Trace
from memlens.tracking.visits import world_size


def scores_of(
    recorder: Recorder,
    peak: Peak | None = None,
    *,
    index: np.ndarray | None = None,
) -> pd.DataFrame:
    """All scores of a loop of your own that need no second pass over the data.

    Where samples are visited unequally, an epoch that left a sample out counts as one in which
    nothing changed: it holds the sample's last value, and before the first visit that of the first.
    So sums are over all epochs, however often a sample was seen; `by_visits` has those over the
    visits really made. The last column, ``visits``, says how many they were.

    Parameters
    ----------
    recorder : Recorder
        After the training; of several processes, ``recorder.gathered()``.
    peak : Peak, optional
        Where SGAL and early CSG stop adding up: ``stop.peak`` of a `PeakStop`; by default the last
        epoch.
    index : ndarray (n_samples,), optional
        Index of the frame; by default positions in the training set.
    """
    if world_size() > 1 and not recorder.merged:
        warnings.warn(
            "these are the scores of one process's share: give recorder.gathered()", stacklevel=2
        )
    trace = recorder.trace
    index = np.arange(trace.n_samples) if index is None else index
    frame = score_frame(trace, peak or Peak(trace.n_epochs - 1, None), index)
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
