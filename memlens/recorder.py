"""Per-sample signals, scattered by sample index while any loop trains.

The step pays for nothing but the input gradient itself: `Recorder.update` keeps references to
tensors that the step made anyway, and the norms and the scatter are done in bulk, once an epoch or
whenever the references hold more than ``flush_bytes``. Nothing in a step waits for the device.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memlens import signals

SIGNALS = ("loss", "grad_l2", "grad_l1", "margin", "el2n")
FLUSH_BYTES = 64 << 20


class Trace(Mapping[str, np.ndarray]):
    """Signals of every sample at every epoch: name -> (n_epochs, n_samples) float32.

    The sample axis is last; rows are epochs from 0; a row of NaN was not measured.
    ``trace["loss"]`` and ``trace.loss`` are the same array. `until` gives the first epochs as a
    trace of their own.

    Attributes
    ----------
    lr : ndarray (n_epochs,) or None: learning rate of each epoch, for scores that weigh by it
    y_true : ndarray (n_samples,) or None: labels, for scores that compare within a class
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        *,
        lr: np.ndarray | None = None,
        y_true: np.ndarray | None = None,
    ) -> None:
        shapes = {name: array.shape for name, array in arrays.items()}
        if len(set(shapes.values())) != 1 or any(len(s) != 2 for s in shapes.values()):
            raise ValueError(f"expected arrays of one shape (n_epochs, n_samples); got {shapes}")
        self._arrays = dict(arrays)
        self.n_epochs, self.n_samples = next(iter(shapes.values()))
        for name, vector, n in (("lr", lr, self.n_epochs), ("y_true", y_true, self.n_samples)):
            if vector is not None and np.shape(vector) != (n,):
                raise ValueError(f"{name} has shape {np.shape(vector)}; expected ({n},)")
        self.lr, self.y_true = lr, y_true

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __getattr__(self, name: str) -> np.ndarray:
        if name.startswith("_") or name not in self._arrays:
            raise AttributeError(f"the trace has no signal {name!r}")
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"Trace({self.n_epochs} epochs, {self.n_samples} samples: {', '.join(self)})"

    @property
    def correct(self) -> np.ndarray:
        """Whether the prediction was right, bool; a tie of logits counts as wrong."""
        return self.margin > 0

    def until(self, n_epochs: int) -> "Trace":
        """The first ``n_epochs`` epochs.

        Raises
        ------
        ValueError
            If the trace does not have that many.
        """
        if not 1 <= n_epochs <= self.n_epochs:
            raise ValueError(f"asked for {n_epochs} epochs of a trace of {self.n_epochs}")
        arrays = {name: array[:n_epochs] for name, array in self.items()}
        lr = None if self.lr is None else self.lr[:n_epochs]
        return Trace(arrays, lr=lr, y_true=self.y_true)


class Recorder:
    """Records signals in a training loop of any kind.

    >>> recorder = Recorder(n_samples=3)
    >>> x, y = recorder.watch(torch.eye(3)), torch.tensor([0, 1, 2])
    >>> logits = 2 * x
    >>> torch.nn.functional.cross_entropy(logits, y).backward()
    >>> recorder.update(torch.tensor([2, 0, 1]), x, logits, y)
    >>> means = recorder.end_epoch()
    >>> recorder.trace
    Trace(1 epochs, 3 samples: loss, grad_l2, grad_l1, margin, el2n)

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
    flush_bytes : int
        References held before they are worked off.
    """

    def __init__(
        self,
        n_samples: int,
        *,
        reduction: str = "mean",
        complete: bool = True,
        flush_bytes: int = FLUSH_BYTES,
    ) -> None:
        if n_samples < 1:
            raise ValueError(f"n_samples is {n_samples}; expected the size of the training set")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {reduction!r}; expected 'mean' or 'sum'")
        self.n_samples, self.reduction, self.complete = n_samples, reduction, complete
        self.flush_bytes = flush_bytes
        self._rows: list[Tensor] = []  # (n_signals, n_samples) for each finished epoch, on the CPU
        self._start_epoch()

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
        return Trace(dict(zip(SIGNALS, whole, strict=True)))

    def last(self, name: str) -> Tensor:
        """A signal in the last finished epoch, (n_samples,), on the CPU."""
        return self._rows[-1][SIGNALS.index(name)]

    def watch(self, x: Tensor) -> Tensor:
        """``x`` as a leaf that autograd fills with the input gradient; call before the forward."""
        return x.detach().requires_grad_(True)

    def update(self, index: Tensor, x: Tensor, logits: Tensor, y: Tensor) -> None:
        """Take in one step, after ``loss.backward()``.

        Parameters
        ----------
        index : Tensor (b,), int64: positions of the batch's samples in the training set
        x : Tensor (b, ...): what `watch` returned
        logits : Tensor (b, n_classes), of this step's forward pass
        y : Tensor (b,), int64

        Raises
        ------
        ValueError
            If ``x`` was not watched or has no gradient yet, or the lengths differ.
        """
        if x.grad is None:
            raise ValueError(
                "x has no gradient: call x = recorder.watch(x) before the forward pass and "
                "update() after loss.backward()"
            )
        if not len(index) == len(x) == len(logits) == len(y):
            raise ValueError(
                f"index, x, logits and y have lengths {len(index)}, {len(x)}, {len(logits)}, "
                f"{len(y)}; expected the same batch"
            )
        self._pending.append((index, x.grad, logits.detach(), y))
        self._pending_bytes += x.grad.nbytes + logits.nbytes
        if self._pending_bytes > self.flush_bytes:
            self._flush()

    def end_epoch(self) -> dict[str, float]:
        """Close the epoch; returns each signal's mean over its samples.

        Raises
        ------
        ValueError
            If a sample was visited twice, or never (and the recorder is complete).
        FloatingPointError
            If a signal is NaN or infinite: the training has diverged.
        """
        self._flush()
        self._check_bounds()
        self._check_visits()
        values = self._epoch if self.complete else self._epoch[:, self._visits > 0]
        means = dict(zip(SIGNALS, values.mean(1).tolist(), strict=True))
        if not all(map(math.isfinite, means.values())):
            self._tell_divergence(values)
        self._rows.append(self._epoch.cpu())
        self._start_epoch()
        return means

    def state_dict(self) -> dict[str, Any]:
        """Everything the finished epochs hold, as tensors; take it between epochs."""
        if self._pending or self._visits is not None:
            raise ValueError("state_dict() in the middle of an epoch: call it after end_epoch()")
        return {"rows": list(self._rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        rows = [row.cpu() for row in state["rows"]]
        if wrong := {tuple(row.shape) for row in rows} - {(len(SIGNALS), self.n_samples)}:
            n_signals, n_samples = wrong.pop()
            raise ValueError(
                f"the state has {n_samples} samples and {n_signals} signals, the recorder "
                f"{self.n_samples} and {len(SIGNALS)}"
            )
        self._rows = rows
        self._start_epoch()

    @classmethod
    def merge(cls, *recorders: "Recorder") -> "Recorder":
        """One complete recorder from the shares of several (``complete=False``) ones.

        Raises
        ------
        ValueError
            If a sample of an epoch was seen by two of them, or by none.
        """
        shares = [torch.stack(r._rows) for r in recorders]  # (n_epochs, n_signals, n_samples)
        if len({s.shape for s in shares}) != 1:
            raise ValueError(f"shares differ in shape: {[tuple(s.shape) for s in shares]}")
        seen = sum(s[:, 0].isfinite().int() for s in shares)
        if (seen != 1).any():
            raise ValueError(
                f"{int((seen > 1).sum())} sample visits were recorded by several recorders and "
                f"{int((seen == 0).sum())} by none; expected each exactly once"
            )
        merged = cls(recorders[0].n_samples)
        merged._rows = list(sum(s.nan_to_num(0.0) for s in shares))
        return merged

    def _start_epoch(self) -> None:
        self._pending: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._pending_bytes = 0
        self._bounds: list[Tensor] = []  # lowest and highest index of flushed batches
        self._visits: Tensor | None = None
        self._epoch: Tensor | None = None  # (n_signals, n_samples)

    def _flush(self) -> None:
        """Work off the references: norms in bulk, then one scatter."""
        if not self._pending:
            return
        columns = zip(*self._pending, strict=True)
        index, gradient, logits, y = (torch.cat(parts) for parts in columns)
        self._bounds.append(torch.stack(index.aminmax()))
        if index.device.type == "cpu":
            self._check_bounds()
        else:  # to look would be to wait for the device: looked at when the epoch is closed
            index = index.clamp(0, self.n_samples - 1)
        norms = signals.gradient_norms(gradient.float())
        scale = 1.0
        if self.reduction == "mean":  # of a batch, whose loss was divided by its size
            sizes = (torch.full_like(y, len(y), dtype=torch.int64) for *_, y in self._pending)
            scale = torch.cat(list(sizes))
        logits = logits.float()
        values = [
            signals.loss(logits, y),
            norms.l2 * scale,
            norms.l1 * scale,
            signals.margin(logits, y),
            signals.el2n(logits, y),
        ]
        self._scatter(index, torch.stack(values))
        self._pending, self._pending_bytes = [], 0

    def _check_bounds(self) -> None:
        if not self._bounds:
            return
        low, high = (f(torch.stack(self._bounds)).item() for f in (torch.amin, torch.amax))
        self._bounds = []
        if low < 0 or high >= self.n_samples:
            raise ValueError(
                f"indices run from {low} to {high}; expected 0 to {self.n_samples - 1}: give the "
                "position in the training set, and n_samples as its size"
            )

    def _scatter(self, index: Tensor, values: Tensor) -> None:
        if self._epoch is None:
            shape = (len(SIGNALS), self.n_samples)
            self._epoch = values.new_full(shape, torch.nan)
            self._visits = torch.zeros(self.n_samples, dtype=torch.int64, device=index.device)
        self._visits.scatter_add_(0, index, torch.ones_like(index))  # bincount would wait
        self._epoch[:, index] = values

    def _check_visits(self) -> None:
        if self._visits is None:
            raise ValueError("end_epoch() without an update() in this epoch")
        if bool((self._visits == 1).all()):
            return
        twice = (self._visits > 1).nonzero()[:, 0]
        never = (self._visits == 0).nonzero()[:, 0] if self.complete else twice[:0]
        if len(twice) or len(never):
            raise ValueError(
                f"epoch {self.n_epochs}: {len(twice)} samples were visited more than once (first: "
                f"{twice[:3].tolist()}) and {len(never)} never (first: {never[:3].tolist()}); "
                "visit each sample once an epoch, without drop_last or a sampler with replacement"
            )

    def _tell_divergence(self, values: Tensor) -> None:
        bad = {k: int((~v.isfinite()).sum()) for k, v in zip(SIGNALS, values, strict=True)}
        name = max(bad, key=bad.get)
        raise FloatingPointError(
            f"{name} is NaN or infinite for {bad[name]} samples in epoch {self.n_epochs}: training "
            "has diverged; lower the learning rate"
        )
