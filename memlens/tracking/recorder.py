"""Record per-sample signals in any training loop.

`Recorder.update` keeps references to the step's input gradient and logits, and copies of its labels
and indices. The signals are computed from them in bulk, at the end of the epoch or when they hold
more than ``flush_bytes``, and are stored by sample index. No step waits for the device.

Loops that visit samples unequally, or in several processes, use `counting.CountingRecorder`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from memlens.tracking import recorded, signals
from memlens.tracking.traces import SIGNALS

FLUSH_BYTES = 64 << 20
INFINITE = (math.inf, math.inf, -math.inf)  # for nan_to_num_: NaN means "not measured"


class Step(NamedTuple):
    """Tensors of one recorded training step; their axis 0 is the batch."""

    index: Tensor
    gradient: Tensor
    logits: Tensor
    y: Tensor
    loss_scale: float | Tensor


class Recorder(recorded.RecordedEpochs):
    """Recorder of every training sample's signals in each epoch, for any training loop.

    >>> recorder = Recorder(n_samples=3)
    >>> x, y = recorder.watch(torch.eye(3)), torch.tensor([0, 1, 1])  # the last label is wrong
    >>> logits = 2 * x
    >>> torch.nn.functional.cross_entropy(logits, y).backward()
    >>> recorder.update(torch.tensor([2, 0, 1]), x, logits, y)
    >>> means = recorder.end_epoch()
    >>> recorder.trace
    Trace(1 epochs, 3 samples: loss, grad_l2, grad_l1, margin, el2n, predicted)
    >>> recorder.scores()["csl"].round(2).tolist()  # the wrong label has index 1
    [0.24, 2.24, 0.24]

    Parameters
    ----------
    n_samples : int
        Size of the training set. Each sample is visited exactly once an epoch.
    reduction : "mean" or "sum"
        Reduction of the training loss over the batch.
    flush_bytes : int
        Bytes of references to keep before the signals are computed. Pass 0 to compute them in
        every step, for networks that overwrite their outputs
        (``torch.compile(mode="reduce-overhead")``, CUDA graphs).
    """

    def __init__(
        self, n_samples: int, *, reduction: str = "mean", flush_bytes: int = FLUSH_BYTES
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {reduction!r}; expected 'mean' or 'sum'")
        super().__init__(n_samples)
        self.reduction, self.flush_bytes = reduction, flush_bytes
        self._begin_epoch()

    @property
    def in_epoch(self) -> bool:
        """True if anything was recorded since the last `end_epoch`."""
        return bool(self._pending) or self._visits is not None

    def watch(self, x: Tensor) -> Tensor:
        """Return ``x`` as a leaf, so that backward() fills its ``grad``; call before forward."""
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
        """Record one training step; call it after ``loss.backward()``.

        Parameters
        ----------
        index : Tensor (b,), int64
            Position of each sample in the training set, on any device.
        x : Tensor (b, ...)
            The tensor returned by `watch`.
        logits : Tensor (b, n_classes)
            Output of this step's forward pass.
        y : Tensor (b,), int64
            Labels.
        loss_scale : float or Tensor ()
            Factor that the loss was multiplied by, beyond its reduction; it is undone here. 1/k
            where the gradients of k batches are accumulated, or
            ``scaler.scale(torch.ones((), device=device))`` with a GradScaler, taken before
            ``scaler.update()``. Gradients that overflow under a scale are stored as NaN; without
            one they are an error.

        Raises
        ------
        ValueError
            If ``x`` was not watched or has no gradient, the lengths differ, or an index is out of
            range (checked in bulk).
        """
        recorded.check_step(index, x, logits, y)
        y = y.to(logits.device, non_blocking=True, copy=True)  # the loop may overwrite its buffers
        if isinstance(loss_scale, Tensor):
            loss_scale = loss_scale.detach().clone()
        self._pending.append(Step(index.clone(), x.grad, logits.detach(), y, loss_scale))
        self._pending_bytes += x.grad.nbytes + logits.nbytes
        if self._pending_bytes > self.flush_bytes:
            self._flush()

    def _flush(self) -> None:
        """Compute the signals of all pending steps, and store them by sample index."""
        if not self._pending:
            return
        *columns, scales = zip(*self._pending, strict=True)
        sizes = [len(step.y) for step in self._pending]
        index, gradient, logits, y = (torch.cat(parts) for parts in columns)
        index = self._check_index(index, logits.device)
        logits = logits.float()

        # The input gradient of each sample's loss (with batch norm, of the batch's loss). A mean
        # over b samples divides it by b: multiply. Its squared L2 norm, summed over epochs, is CSG
        # (`scores.csg`).
        norms = signals.gradient_norms(gradient.float())
        batch_size = 1.0
        if self.reduction == "mean":
            batch_size = torch.cat([y.new_full((size,), size) for size in sizes])
        grad_l2, grad_l1 = norms.l2 * batch_size, norms.l1 * batch_size

        loss = signals.loss(logits, y)  # summed over epochs, this is CSL
        values = [loss, grad_l2, grad_l1, signals.margin(logits, y), signals.el2n(logits, y)]
        values = torch.stack(values).nan_to_num_(*INFINITE)
        self._scaled |= signals.unscale(values, scales, sizes)
        self._store(index, values, logits.argmax(1).to(torch.int16))
        self._pending, self._pending_bytes = [], 0

    def _store(self, index: Tensor, values: Tensor, predicted: Tensor) -> None:
        """Store values (n_signals, b) and predicted classes (b,) of samples (b,)."""
        if self._visits is None:
            self._values = values.new_full((len(SIGNALS), self.n_samples), torch.nan)
            self._visits = index.new_zeros(self.n_samples)
            self._predicted = predicted.new_full((self.n_samples,), -1)
        elif self._visits.device != values.device:  # loaded from a checkpoint
            self._set_tensors([tensor.to(values.device) for tensor in self._tensors()])
        self._visits.scatter_add_(0, index, torch.ones_like(index))  # bincount waits
        self._values[:, index] = values
        self._predicted[index] = predicted

    def end_epoch(self) -> dict[str, float]:
        """Close the epoch, and return the mean of each signal over the samples.

        Raises
        ------
        ValueError
            If a sample was visited more than once or never, or an index is out of range.
        FloatingPointError
            If a signal is NaN or infinite: training has diverged.
        """
        row, means = self._close_epoch()
        self._rows.append(row)
        self._predictions.append(self._predicted.cpu())
        self._begin_epoch()
        return means

    def _close_epoch(self) -> tuple[Tensor, dict[str, float]]:
        self._flush()
        self._check_bounds()
        recorded.check_visits(self._visits, self.n_epochs)
        return self._values.cpu(), self._means(self._values)

    def _means(self, row: Tensor) -> dict[str, float]:
        means = row.nanmean(1) if self._scaled else row.mean(1)
        means = dict(zip(SIGNALS, means.tolist(), strict=True))
        if not all(map(math.isfinite, means.values())):
            recorded.raise_divergence(row, self.n_epochs)
        return means

    def _begin_epoch(self) -> None:
        self._pending: list[Step] = []
        self._pending_bytes = 0
        self._bounds: list[Tensor] = []  # lowest and highest index, not yet checked
        self._values: Tensor | None = None  # (n_signals, n_samples)
        self._visits: Tensor | None = None  # (n_samples,)
        self._predicted: Tensor | None = None  # (n_samples,), int16; -1: not visited
        self._scaled = False  # True if the loss was scaled, so that gradients may be missing

    def _tensors(self) -> list[Tensor]:
        """Return the tensors of the unfinished epoch, for a checkpoint."""
        return [self._values, self._visits, self._predicted]

    def _set_tensors(self, tensors: list[Tensor]) -> None:
        self._values, self._visits, self._predicted = tensors

    def _check_index(self, index: Tensor, device: torch.device) -> Tensor:
        self._bounds.append(torch.stack(index.aminmax()))
        if index.device.type == "cpu":
            self._check_bounds()
            return index.to(device, non_blocking=True)
        return index.clamp(0, self.n_samples - 1)  # a check here would wait for the device

    def _check_bounds(self) -> None:
        if self._bounds:
            recorded.check_range(torch.stack(self._bounds), self.n_samples)
            self._bounds = []
