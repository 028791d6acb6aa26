"""One epoch while it is being recorded: references are kept, and worked off in bulk.

Nothing here waits for the device before the epoch is closed, wherever the index lies.
"""

import math
from typing import Any

import torch
from torch import Tensor

from memlens.tracking import signals
from memlens.tracking.traces import SIGNALS
from memlens.tracking.visits import GRADIENTS, Sums

UNSCALED = 0.01  # a scale this near to 1 is 1, measured by gradients that were rounded
INFINITE = (math.inf, math.inf, -math.inf)  # NaN says "not measured": divergence is infinite


class Epoch:
    """What a `Recorder` holds between two calls of its ``end_epoch``.

    Parameters
    ----------
    n_samples : int
    number : int, of the epoch, for messages
    reduction : "mean" or "sum", of the loop's loss
    complete : bool, whether every sample has to be visited
    counted : bool, whether samples may be visited any number of times
    """

    def __init__(
        self, n_samples: int, number: int, *, reduction: str, complete: bool, counted: bool
    ) -> None:
        self.n_samples, self.number, self.reduction = n_samples, number, reduction
        self.complete, self.counted = complete and not counted, counted
        self.pending_bytes = 0
        self._pending: list[tuple[Tensor, Tensor, Tensor, Tensor, float | Tensor]] = []
        self._bounds: list[Tensor] = []  # lowest and highest index of flushed batches
        self._scaled = False  # whether a loss was scaled, so that gradients may be unmeasured
        self._visits: Tensor | None = None  # (n_samples,)
        self._values: Tensor | Sums | None = None  # (n_signals, n_samples)

    @property
    def begun(self) -> bool:
        """Whether it holds anything."""
        return bool(self._pending) or self._visits is not None

    def add(
        self, index: Tensor, gradient: Tensor, logits: Tensor, y: Tensor, scale: float | Tensor
    ) -> None:
        """Keep references to what a step made; what its owner may write to is copied."""
        if isinstance(scale, Tensor):
            scale = scale.detach().clone()
        y = y.to(logits.device, non_blocking=True, copy=True)
        self._pending.append((index.clone(), gradient, logits.detach(), y, scale))
        self.pending_bytes += gradient.nbytes + logits.nbytes

    def flush(self) -> None:
        """Work off the references: norms in bulk, then one scatter."""
        if not self._pending:
            return
        *columns, scales = zip(*self._pending, strict=True)
        index, gradient, logits, y = (torch.cat(parts) for parts in columns)
        self._bounds.append(torch.stack(index.aminmax()))
        if index.device.type == "cpu":
            self.check_bounds()
            index = index.to(logits.device, non_blocking=True)
        else:  # to look would be to wait for the device: looked at when the epoch is closed
            index = index.clamp(0, self.n_samples - 1)
        norms = signals.gradient_norms(gradient.float())
        scale = 1.0
        if self.reduction == "mean":  # of a batch, whose loss was divided by its size
            sizes = (torch.full_like(y, len(y), dtype=torch.int64) for y in columns[-1])
            scale = torch.cat(list(sizes))
        logits = logits.float()
        values = [
            signals.loss(logits, y),
            norms.l2 * scale,
            norms.l1 * scale,
            signals.margin(logits, y),
            signals.el2n(logits, y),
        ]
        values = torch.stack(values).nan_to_num_(*INFINITE)
        if any(isinstance(factor, Tensor) or factor != 1.0 for factor in scales):
            self._unscale(values, scales)
        self._scatter(index, values)
        self._pending, self.pending_bytes = [], 0

    def close(self) -> tuple[Tensor, Tensor, dict[str, float]]:
        """The row (n_signals, n_samples), the visits (n_samples,), and the mean of each signal."""
        self.flush()
        self.check_bounds()
        self._check_visits()
        row = self._values.means() if self.counted else self._values
        seen = row if self.complete else row[:, self._visits > 0]
        means = seen.nanmean(1) if self._scaled else seen.mean(1)
        means = dict(zip(SIGNALS, means.tolist(), strict=True))
        if not all(map(math.isfinite, means.values())):
            self._tell_divergence(seen)
        return row.cpu(), self._visits.cpu(), means

    def state(self) -> dict[str, Any]:
        """Copies of what it holds so far, on the CPU."""
        self.flush()
        self.check_bounds()
        values = [tensor.to("cpu", copy=True) for tensor in self._tensors()]
        return {"values": values, "scaled": self._scaled}

    def load(self, values: list[Tensor], scaled: bool) -> None:
        """Take up what `state` gave, on the CPU until the first batch comes from elsewhere.

        Raises
        ------
        ValueError
            If it is of another number of samples, or of visits that this epoch does not count.
        """
        found = [tuple(tensor.shape) for tensor in values]
        row = (len(SIGNALS), self.n_samples)
        if len(found) not in (2, 3) or found != [row] * (len(found) - 1) + [row[1:]]:
            raise ValueError(
                f"the unfinished epoch of the state has shapes {found}; expected {self.n_samples} "
                f"samples and {len(SIGNALS)} signals"
            )
        if len(found) == 3 and not self.counted:
            raise ValueError(
                'the unfinished epoch counts visits: load it into a Recorder with visits="any"'
            )
        if len(found) == 2 and self.counted:  # begun by a recorder that did not count
            sums = Sums.of_means(*values)
            values = [sums.values.float(), sums.weights.float(), sums.visits]
        values = [tensor.clone() for tensor in values]  # they will be written to
        self._visits, self._scaled = values[-1], scaled
        self._values = Sums(*values) if self.counted else values[0]

    def check_bounds(self) -> None:
        """Raise ValueError where an index lay outside of the training set."""
        if not self._bounds:
            return
        low, high = (f(torch.stack(self._bounds)).item() for f in (torch.amin, torch.amax))
        self._bounds = []
        if low < 0 or high >= self.n_samples:
            raise ValueError(
                f"indices run from {low} to {high}; expected 0 to {self.n_samples - 1}: give the "
                "position in the training set, and n_samples as its size"
            )

    def _unscale(self, values: Tensor, scales: tuple[float | Tensor, ...]) -> None:
        """Divide gradients by what the loss was multiplied by; an overflow becomes NaN."""
        self._scaled = True
        parts = zip(scales, self._pending, strict=True)
        scale = torch.cat([_spread(factor, len(step[0]), values) for factor, step in parts])
        gradients = values[GRADIENTS] / scale
        scaled = ~((scale - 1).abs() <= UNSCALED)  # a scale that is no number, too
        overflow = scaled & ~(gradients.isfinite() & scale.isfinite())
        values[GRADIENTS] = gradients.masked_fill_(overflow, torch.nan)

    def _tensors(self) -> tuple[Tensor, ...]:
        return tuple(self._values) if self.counted else (self._values, self._visits)

    def _scatter(self, index: Tensor, values: Tensor) -> None:
        self._prepare(values)
        if self.counted:
            self._values.add(index, values)
        else:
            self._visits.scatter_add_(0, index, torch.ones_like(index))  # bincount would wait
            self._values[:, index] = values

    def _prepare(self, values: Tensor) -> None:
        """Have the epoch's tensors, on the device where its batches are."""
        if self._visits is not None:
            if self._visits.device != values.device:  # an epoch taken up from a state
                self.load([tensor.to(values.device) for tensor in self._tensors()], self._scaled)
        elif self.counted:
            self._values = Sums.empty(self.n_samples, values)
            self._visits = self._values.visits
        else:
            self._values = values.new_full((len(SIGNALS), self.n_samples), torch.nan)
            self._visits = torch.zeros(self.n_samples, dtype=torch.int64, device=values.device)

    def _check_visits(self) -> None:
        if self._visits is None:
            raise ValueError("end_epoch() without an update() in this epoch")
        if self.counted or bool((self._visits == 1).all()):
            return
        twice = (self._visits > 1).nonzero()[:, 0]
        never = (self._visits == 0).nonzero()[:, 0] if self.complete else twice[:0]
        if len(twice) or len(never):
            raise ValueError(
                f"epoch {self.number}: {len(twice)} samples were visited more than once (first: "
                f"{twice[:3].tolist()}) and {len(never)} never (first: {never[:3].tolist()}); "
                "visit each sample once an epoch, without drop_last or a sampler with replacement, "
                'or count visits with Recorder(..., visits="any")'
            )

    def _tell_divergence(self, values: Tensor) -> None:
        bad = {k: int((~v.isfinite()).sum()) for k, v in zip(SIGNALS, values, strict=True)}
        name = max(bad, key=bad.get)
        if bad["loss"] == 0 and bool(values[GRADIENTS].isnan().all()):
            raise FloatingPointError(
                f"every gradient of epoch {self.number} overflowed under its loss scale: give the "
                "GradScaler a lower init_scale, or lower the learning rate"
            )
        raise FloatingPointError(
            f"{name} is NaN or infinite for {bad[name]} samples in epoch {self.number}: training "
            "has diverged; lower the learning rate"
        )


def _spread(factor: float | Tensor, size: int, like: Tensor) -> Tensor:
    """One number for each sample of a batch, (size,), without waiting for the device."""
    if isinstance(factor, Tensor):
        return factor.to(like, non_blocking=True).reshape(()).expand(size)
    return like.new_full((size,), factor)
