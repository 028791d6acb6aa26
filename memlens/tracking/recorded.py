"""The finished epochs of a recorder: trace, scores, checkpoints."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from memlens.tracking import validation
from memlens.tracking.peaks import Peak, peak_within
from memlens.tracking.scores import score_frame
from memlens.tracking.traces import SIGNALS, Trace


class RecordedEpochs:
    """The finished epochs of a `Recorder`."""

    n_tensors = 2  # of an unfinished epoch: values and visits

    def __init__(self, n_samples: int) -> None:
        if n_samples < 1:
            raise ValueError(f"n_samples is {n_samples}; expected the size of the training set")
        self.n_samples = n_samples
        self._rows: list[Tensor] = []  # (n_signals, n_samples) of each epoch, on the CPU

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.n_samples:,} samples, {self.n_epochs} epochs finished)"

    @property
    def n_epochs(self) -> int:
        """Number of finished epochs."""
        return len(self._rows)

    @property
    def trace(self) -> Trace:
        """The signals of all finished epochs."""
        if not self.n_epochs:
            raise ValueError("nothing recorded yet: call end_epoch() after each epoch")
        rows = torch.stack(self._rows, 1).numpy()  # (n_signals, n_epochs, n_samples)
        return Trace(dict(zip(SIGNALS, rows, strict=True)))

    def last(self, name: str) -> Tensor:
        """Return a signal in the last finished epoch, (n_samples,), on the CPU."""
        return self._rows[-1][SIGNALS.index(name)]

    def scores(self, peak: Peak | int | None = None) -> pd.DataFrame:
        """Score every sample from the finished epochs; it may be called at any time.

        >>> from memlens.tracking.recorder import Recorder
        >>> recorder = Recorder(n_samples=2)
        >>> y = torch.tensor([0, 1])  # two equal samples; the second label is wrong
        >>> for certainty in (0.0, 1.0, 2.0):
        ...     x = recorder.watch(torch.tensor([[certainty, 0.0], [certainty, 0.0]]))
        ...     torch.nn.functional.cross_entropy(x, y).backward()
        ...     recorder.update(torch.arange(2), x, x, y)
        ...     means = recorder.end_epoch()
        >>> scores = recorder.scores(peak=1)
        >>> scores["csl"].round(2).tolist(), scores["sgal"].round(2).tolist()
        ([1.13, 4.13], [1.01, 2.01])

        Parameters
        ----------
        peak : Peak or int, optional
            Last epoch, counted from 0, of the sums SGAL and early CSG: ``stop.peak`` of a
            `PeakStop`, or a number. Without it these two scores are left out.

        Returns
        -------
        DataFrame (n_samples,)
            Index "index" (position in the training set); one float64 column per score of
            ``ml.catalogue()`` that needs no second pass. Higher means more memorized.

        Raises
        ------
        ValueError
            If no epoch is finished, or the peak is not a finished epoch.
        TypeError
            If the peak is neither a `Peak` nor a whole number.
        """
        trace = self.trace
        stop = None if peak is None else peak_within(peak, trace.n_epochs)
        return score_frame(trace, stop, np.arange(trace.n_samples))

    def state_dict(self, *, unfinished: bool = False) -> dict[str, Any]:
        """Return everything recorded so far as tensors on the CPU.

        Call it between epochs, or within one with ``unfinished=True``.

        Raises
        ------
        ValueError
            If an epoch has begun and ``unfinished`` is False.
        """
        if self.in_epoch and not unfinished:
            raise ValueError("state_dict() in the middle of an epoch: call it after end_epoch()")
        state: dict[str, Any] = {"kind": type(self).__name__, "rows": list(self._rows)}
        if self.in_epoch:
            state["unfinished"] = [tensor.to("cpu", copy=True) for tensor in self._tensors()]
            state["scaled"] = self._scaled
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises
        ------
        ValueError
            If the state has another number of samples, or is that of another kind of recorder; the
            recorder is then left as it was.
        """
        shape = len(SIGNALS), self.n_samples
        validation.check_state(state, type(self).__name__, shape, self.n_tensors)
        self._begin_epoch()
        self._rows = [row.cpu() for row in state["rows"]]
        if "unfinished" in state:
            self._set_tensors([tensor.clone() for tensor in state["unfinished"]])
            self._scaled = state["scaled"]
