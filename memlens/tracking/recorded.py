"""The base of a recorder: its finished epochs (trace, scores, checkpoints), and its errors."""

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from memlens.tracking.peaks import Peak, peak_within
from memlens.tracking.scores import score_frame
from memlens.tracking.traces import GRADIENTS, SIGNALS, Trace


class RecordedEpochs:
    """The finished epochs of a `Recorder`."""

    n_tensors = 3  # of an unfinished epoch: values, visits and predictions

    def __init__(self, n_samples: int) -> None:
        if n_samples < 1:
            raise ValueError(f"n_samples is {n_samples}; expected the size of the training set")
        self.n_samples = n_samples
        self._rows: list[Tensor] = []  # (n_signals, n_samples) of each epoch, on the CPU
        self._predictions: list[Tensor] = []  # (n_samples,) int16 of each epoch, on the CPU

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
        arrays = dict(zip(SIGNALS, rows, strict=True))
        return Trace(arrays | {"predicted": torch.stack(self._predictions).numpy()})

    def last(self, name: str) -> Tensor:
        """Return a signal in the last finished epoch, (n_samples,), on the CPU."""
        return self._rows[-1][SIGNALS.index(name)]

    def label_changes(self) -> float:
        """Return the number of samples whose predicted class changed in the last epoch.

        NaN after the first epoch. A sample counts if it was visited in both epochs. All processes
        of `torch.distributed` call it together, and get the same number.
        """
        if self.n_epochs < 2:
            return math.nan
        before, now = self._last_predictions()
        return float(((before != now) & (before >= 0) & (now >= 0)).sum())

    def _last_predictions(self) -> list[Tensor]:
        return self._predictions[-2:]

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
        state["predicted"] = list(self._predictions)
        if self.in_epoch:
            self._flush()
            self._check_bounds()
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
        check_state(state, type(self).__name__, shape, self.n_tensors)
        self._begin_epoch()
        self._rows = [row.cpu() for row in state["rows"]]
        self._predictions = [row.cpu() for row in state["predicted"]]
        if "unfinished" in state:
            self._set_tensors([tensor.clone() for tensor in state["unfinished"]])
            self._scaled = state["scaled"]


def check_step(index: Tensor, x: Tensor, logits: Tensor, y: Tensor) -> None:
    """Raise ValueError if ``x`` has no gradient, or the lengths of a step's tensors differ."""
    if getattr(x, "grad", None) is None:
        raise ValueError(
            "x has no gradient: call x = recorder.watch(x) before the forward pass and "
            "update() after loss.backward()"
        )
    if not len(index) == len(x) == len(logits) == len(y):
        raise ValueError(
            f"index, x, logits and y have lengths {len(index)}, {len(x)}, {len(logits)}, "
            f"{len(y)}; expected the same batch"
        )


def check_range(bounds: Tensor, n_samples: int) -> None:
    """Raise ValueError if an index is outside the training set; bounds are rows of (low, high)."""
    low, high = bounds.amin().item(), bounds.amax().item()
    if low < 0 or high >= n_samples:
        raise ValueError(
            f"indices run from {low} to {high}; expected 0 to {n_samples - 1}: pass the position "
            "in the training set as the index, and the size of the training set as n_samples"
        )


def check_visits(visits: Tensor | None, epoch: int) -> None:
    """Raise ValueError unless each sample was visited exactly once; visits is (n_samples,)."""
    if visits is None:
        raise ValueError("end_epoch() without an update() in this epoch")
    if bool((visits == 1).all()):
        return
    twice, never = (mask.nonzero()[:, 0] for mask in (visits > 1, visits == 0))
    raise ValueError(
        f"epoch {epoch}: {len(twice)} samples were visited more than once (first: "
        f"{twice[:3].tolist()}) and {len(never)} never (first: {never[:3].tolist()}); visit each "
        "sample once an epoch, without drop_last or a sampler with replacement, or use "
        "CountingRecorder, which counts visits and supports several processes"
    )


def check_state(
    state: Mapping[str, Any], kind: str, shape: tuple[int, int], n_tensors: int
) -> None:
    """Raise ValueError unless a state is of this kind of recorder and of this shape.

    Parameters
    ----------
    state : mapping
        From `Recorder.state_dict`.
    kind : str
        Class name of the recorder that loads it.
    shape : (n_signals, n_samples)
    n_tensors : int
        Tensors of an unfinished epoch; the last two are of visits and predictions.
    """
    found = state.get("kind", "Recorder")
    if found != kind:
        raise ValueError(f"the state is of a {found}; expected that of a {kind}")
    n_epochs, rows = len(state["rows"]), [*state["rows"], *state.get("predicted", ())]
    expected, found = [shape] * n_epochs + [shape[1:]] * n_epochs, [tuple(r.shape) for r in rows]
    if "unfinished" in state:
        expected += [shape] * (n_tensors - 2) + [shape[1:]] * 2
        found += [tuple(tensor.shape) for tensor in state["unfinished"]]
    if found != expected:
        raise ValueError(
            f"the state has tensors of shapes {sorted({*found})}; this recorder has {shape[1]} "
            f"samples and {shape[0]} signals, predictions of each of {n_epochs} epochs, and "
            f"{n_tensors} tensors in an epoch that has begun"
        )


def raise_divergence(row: Tensor, epoch: int) -> NoReturn:
    """Raise FloatingPointError for the signals of an epoch, (n_signals, n_samples)."""
    bad = {k: int((~values.isfinite()).sum()) for k, values in zip(SIGNALS, row, strict=True)}
    name = max(bad, key=bad.get)
    if bad["loss"] == 0 and bool(row[GRADIENTS].isnan().all()):
        raise FloatingPointError(
            f"every gradient of epoch {epoch} overflowed under its loss scale: give the "
            "GradScaler a lower init_scale, or lower the learning rate"
        )
    raise FloatingPointError(
        f"{name} is NaN or infinite for {bad[name]} samples in epoch {epoch}: training has "
        "diverged; lower the learning rate"
    )
