"""Per-sample signals, scattered by sample index while any loop trains.

The step pays for nothing but the input gradient itself: `Recorder.update` keeps references to
tensors that the step made anyway, and the norms and the scatter are done in bulk, once an epoch or
whenever the references hold more than ``flush_bytes``. Nothing in a step waits for the device.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from memlens.tracking.epochs import Epoch
from memlens.tracking.scores import score_frame
from memlens.tracking.stopping import Peak, peak_within
from memlens.tracking.traces import SIGNALS, Trace
from memlens.tracking.visits import Sums, over_processes, world_size

FLUSH_BYTES = 64 << 20


class Recorder:
    """Records signals in a training loop of any kind.

    >>> recorder = Recorder(n_samples=3)
    >>> x, y = recorder.watch(torch.eye(3)), torch.tensor([0, 1, 1])  # the last one is wrong
    >>> logits = 2 * x
    >>> torch.nn.functional.cross_entropy(logits, y).backward()
    >>> recorder.update(torch.tensor([2, 0, 1]), x, logits, y)
    >>> means = recorder.end_epoch()
    >>> recorder.trace
    Trace(1 epochs, 3 samples: loss, grad_l2, grad_l1, margin, el2n)
    >>> recorder.scores()["csl"].round(2).tolist()  # its position is 1
    [0.24, 2.24, 0.24]

    Parameters
    ----------
    n_samples : int
        Size of the training set; indices given to `update` lie in [0, n_samples).
    reduction : "mean" or "sum"
        How the loop's loss is reduced over the batch. With "mean" the gradient is multiplied by
        the actual batch size, so that a short last batch is right.
    complete : bool
        Whether every sample is visited once an epoch. False: a recorder that sees only its share
        (one process of several) holds NaN elsewhere, until `merge`.
    visits : "once" or "any"
        "once": a sample visited twice an epoch, or never, is an error. "any": samplers that draw
        with weights, pad, or drop the last batch. A row then holds the mean over a sample's visits
        in that epoch (of the L2 norm the root of the mean square: CSG stays exact), NaN without
        one, and the trace how many they were.
    flush_bytes : int
        References held before they are worked off. 0: each step at once, for a net that writes its
        next outputs over the last ones, as ``torch.compile(mode="reduce-overhead")`` does by CUDA
        graphs.

    Attributes
    ----------
    n_epochs : int, finished ones
    merged : bool, whether it was put together from several, by `merge` or `gathered`
    """

    def __init__(
        self,
        n_samples: int,
        *,
        reduction: str = "mean",
        complete: bool = True,
        visits: str = "once",
        flush_bytes: int = FLUSH_BYTES,
    ) -> None:
        if n_samples < 1:
            raise ValueError(f"n_samples is {n_samples}; expected the size of the training set")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {reduction!r}; expected 'mean' or 'sum'")
        if visits not in ("once", "any"):
            raise ValueError(f"visits is {visits!r}; expected 'once' or 'any'")
        self.n_samples, self.reduction, self.complete = n_samples, reduction, complete
        self.flush_bytes, self.counted = flush_bytes, visits == "any"
        self.merged = False
        self._rows: list[Tensor] = []  # (n_signals, n_samples) for each finished epoch, on the CPU
        self._counts: list[Tensor] = []  # (n_samples,) for each, where visits are counted
        self._epoch = self._new_epoch(0)

    def __repr__(self) -> str:
        return f"Recorder({self.n_samples:,} samples, {self.n_epochs} epochs finished)"

    @property
    def n_epochs(self) -> int:
        """Finished epochs."""
        return len(self._rows)

    @property
    def trace(self) -> Trace:
        """What the finished epochs hold."""
        if not self.n_epochs:
            raise ValueError("nothing recorded yet: call end_epoch() after each epoch")
        whole = torch.stack(self._rows, 1).numpy()  # (n_signals, n_epochs, n_samples)
        visits = torch.stack(self._counts).numpy() if self.counted else None
        return Trace(dict(zip(SIGNALS, whole, strict=True)), visits=visits)

    def scores(self, peak: Peak | int | None = None) -> pd.DataFrame:
        """Score every sample by what the finished epochs hold.

        Call it whenever at least one epoch is finished, in the middle of the next one, too. Where
        samples are visited unequally, an epoch that left a sample out counts as one in which
        nothing changed: it holds the sample's last value, and before the first visit that of the
        first. So sums are over all epochs, however often a sample was seen; `by_visits` has those
        over the visits really made.

        >>> recorder = Recorder(n_samples=2)
        >>> y = torch.tensor([0, 1])  # two samples that look the same; the second label is wrong
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
            Where SGAL and early CSG stop adding up, that epoch included: ``stop.peak`` of a
            `PeakStop`, or an epoch counted from 0. Without one there are no such columns.

        Returns
        -------
        DataFrame (n_samples,), index "index": position in the training set; a column a score,
            float64, the higher the more memorized. They are those of ``ml.catalogue()`` that need
            no pass of their own. A sample that was never visited is NaN throughout.

        Raises
        ------
        ValueError
            If no epoch is finished, or the peak is none of those that are.
        TypeError
            If the peak is neither a `Peak` nor a whole number.

        Warns
        -----
        UserWarning
            If this is one process's share: call it on ``recorder.gathered()``.
        """
        if world_size() > 1 and not self.merged:
            told = "these are the scores of one process's share: call recorder.gathered().scores()"
            warnings.warn(told, stacklevel=2)
        trace = self.trace
        stop = None if peak is None else peak_within(peak, trace.n_epochs)
        return score_frame(trace, stop, np.arange(trace.n_samples))

    @property
    def visits(self) -> Tensor:
        """How often each finished epoch visited each sample, (n_epochs, n_samples) int64."""
        if not self.n_epochs:
            return torch.zeros(0, self.n_samples, dtype=torch.int64)
        return torch.from_numpy(self.trace.visits)

    def last(self, name: str) -> Tensor:
        """A signal in the last finished epoch, (n_samples,), on the CPU."""
        return self._rows[-1][SIGNALS.index(name)]

    def watch(self, x: Tensor) -> Tensor:
        """``x`` as a leaf that autograd fills with the input gradient; call before the forward."""
        return x.detach().requires_grad_(True)

    def update(
        self,
        index: Tensor,
        x: Tensor,
        logits: Tensor,
        y: Tensor,
        *,
        loss_scale: float | Tensor = 1.0,
    ) -> None:
        """Take in one step, after ``loss.backward()``.

        Parameters
        ----------
        index : Tensor (b,), int64: positions of the batch's samples in the training set, as the
            loader gives them or on the net's device
        x : Tensor (b, ...): what `watch` returned
        logits : Tensor (b, n_classes), of this step's forward pass
        y : Tensor (b,), int64
        loss_scale : float or Tensor ()
            What the loss was multiplied by before ``backward()``, beyond its reduction: 1/k where
            gradients of k batches are accumulated; what a GradScaler multiplies by, as
            ``scaler.scale(torch.ones((), device=device))``, which does not wait for the device as
            ``get_scale()`` does. Take it before ``scaler.update()``. Gradients are divided by it.
            With one, gradients that overflow are not measured (NaN); without, they are an error.

        Raises
        ------
        ValueError
            If ``x`` was not watched or has no gradient yet, or the lengths differ.
        """
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
        self._epoch.add(index, x.grad, logits, y, loss_scale)
        if self._epoch.pending_bytes > self.flush_bytes:
            self._epoch.flush()

    def end_epoch(self, *, shared: bool = False) -> dict[str, float]:
        """Close the epoch; returns each signal's mean over its samples.

        Parameters
        ----------
        shared : bool
            Whether this is one epoch of all processes of `torch.distributed`, each of which has
            recorded its share (``complete=False``). All of them call it, and hold the whole then.

        Raises
        ------
        ValueError
            If a sample was visited twice, or never (and the recorder is complete); with
            ``visits="any"``, if none was.
        FloatingPointError
            If a signal is NaN or infinite: the training has diverged.
        """
        row, visits, means = self._epoch.close()
        if shared:
            merged = Recorder(self.n_samples, visits="any" if self.counted else "once")
            merged._append(Sums(*map(over_processes, Sums.of_means(row, visits))))
            merged._check_merged()
            (row,), visits = merged._rows, merged.visits[0]
            seen = row[:, visits > 0]
            means = dict(zip(SIGNALS, seen.nanmean(1).tolist(), strict=True))
        self._rows.append(row)
        if self.counted:
            self._counts.append(visits)
        self._epoch = self._new_epoch(self.n_epochs)
        return means

    @property
    def in_epoch(self) -> bool:
        """Whether an epoch has begun that `end_epoch` has not closed."""
        return self._epoch.begun

    def state_dict(self, *, unfinished: bool = False) -> dict[str, Any]:
        """Everything the finished epochs hold, as tensors; take it between epochs.

        With ``unfinished`` it can be taken within one, and holds what that epoch has so far.
        """
        if self.in_epoch and not unfinished:
            raise ValueError("state_dict() in the middle of an epoch: call it after end_epoch()")
        state: dict[str, Any] = {"rows": list(self._rows)}
        if self.counted:
            state["visits"] = list(self._counts)
        if self.in_epoch:
            state["unfinished"] = self._epoch.state()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises
        ------
        ValueError
            If it is of another number of samples, or of visits that this recorder does not count;
            before anything is taken up.
        """
        rows = [row.cpu() for row in state["rows"]]
        if wrong := {tuple(row.shape) for row in rows} - {(len(SIGNALS), self.n_samples)}:
            n_signals, n_samples = wrong.pop()
            raise ValueError(
                f"the state has {n_samples} samples and {n_signals} signals, the recorder "
                f"{self.n_samples} and {len(SIGNALS)}"
            )
        if "visits" in state and not self.counted:
            raise ValueError('the state counts visits: load it into a Recorder with visits="any"')
        counts = list(state.get("visits", map(_seen, rows))) if self.counted else []
        begun = self._new_epoch(len(rows))
        if "unfinished" in state:
            begun.load(**state["unfinished"])
        self._rows, self._counts, self._epoch = rows, counts, begun

    @classmethod
    def merge(cls, *recorders: "Recorder") -> "Recorder":
        """One complete recorder from the shares of several (``complete=False``) ones.

        Where visits are counted, a sample that several have seen gets the mean over all its visits.

        Raises
        ------
        ValueError
            If a sample of an epoch was seen by two of them, or by none, and visits are not counted.
        """
        shares = [torch.stack(r._rows) for r in recorders]  # (n_epochs, n_signals, n_samples)
        if len({s.shape for s in shares}) != 1:
            raise ValueError(f"shares differ in shape: {[tuple(s.shape) for s in shares]}")
        counted = any(r.counted for r in recorders)
        merged = cls(recorders[0].n_samples, visits="any" if counted else "once")
        merged.merged = True
        for epoch in range(recorders[0].n_epochs):
            parts = zip(*(r._sums(epoch) for r in recorders), strict=True)
            merged._append(Sums(*(torch.stack(part).sum(0) for part in parts)))
        merged._check_merged()
        return merged

    def gathered(self) -> "Recorder":
        """The recorders of all processes of `torch.distributed` merged; alone, the recorder itself.

        Every process calls it, after the same number of epochs, and gets the same. It moves sums of
        one epoch at a time. A sample that a padded sampler gave to two processes is averaged, and
        not counted as two.

        Raises
        ------
        ValueError
            If the processes recorded different numbers of epochs; see also `merge`.
        """
        if world_size() == 1 or self.merged:
            return self
        n_epochs = torch.tensor(self.n_epochs)
        low, high = (int(over_processes(n_epochs, how=how)) for how in ("min", "max"))
        if low != high:
            raise ValueError(f"processes recorded from {low} to {high} epochs; expected the same")
        merged = Recorder(self.n_samples, visits="any" if self.counted else "once")
        merged.merged = True
        for epoch in range(self.n_epochs):
            merged._append(Sums(*map(over_processes, self._sums(epoch))))
        merged._check_merged()
        return merged

    def _sums(self, epoch: int) -> Sums:
        row = self._rows[epoch]
        return Sums.of_means(row, self._counts[epoch] if self.counted else _seen(row))

    def _append(self, sums: Sums) -> None:
        self._rows.append(sums.means())
        self._counts.append(sums.visits)

    def _check_merged(self) -> None:
        if self.counted:
            return
        visits, self._counts = torch.stack(self._counts), []
        if (visits != 1).any():
            raise ValueError(
                f"{int((visits > 1).sum())} sample visits were recorded by several recorders and "
                f"{int((visits == 0).sum())} by none; expected each exactly once"
            )

    def _new_epoch(self, number: int) -> Epoch:
        return Epoch(
            self.n_samples,
            number,
            reduction=self.reduction,
            complete=self.complete,
            counted=self.counted,
        )


def _seen(row: Tensor) -> Tensor:
    """Visits of an epoch in which they were not counted, as its trace has them, (n_samples,)."""
    alone = Trace(dict(zip(SIGNALS, row[:, None].numpy(), strict=True)))
    return torch.from_numpy(alone.visits[0])
