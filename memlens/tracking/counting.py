"""Record loops that visit samples unequally, or that run in several processes.

Means cannot be added, sums can: an epoch is kept as sums over visits until it is closed. The L2
norm of a gradient is averaged as its square, so that the sum of squares (CSG) over all visits is
exact. Sums are float64, where the square of a float32 number is exact: a sample visited once has
the same bits as in a `Recorder`. `over_processes` sums over the processes of `torch.distributed`.
"""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor

from memlens.tracking.peaks import Peak
from memlens.tracking.recorder import Recorder
from memlens.tracking.traces import L2, SIGNALS, Trace


class Sums(NamedTuple):
    """Signals summed over visits.

    Attributes
    ----------
    values : Tensor (n_signals, n_samples), float64
        Sums, that of the L2 norm over its squares.
    weights : Tensor (n_signals, n_samples), float64
        Visits in which the signal was measured.
    visits : Tensor (n_samples,), int64
    """

    values: Tensor
    weights: Tensor
    visits: Tensor

    @classmethod
    def empty(cls, n_samples: int, device: torch.device) -> "Sums":
        """Return the sums of no visit."""
        zeros = torch.zeros(len(SIGNALS), n_samples, dtype=torch.float64, device=device)
        visits = torch.zeros(n_samples, dtype=torch.int64, device=device)
        return cls(zeros, zeros.clone(), visits)

    @classmethod
    def of_means(cls, row: Tensor, visits: Tensor) -> "Sums":
        """Return the sums behind means (n_signals, n_samples) over ``visits`` (n_samples,)."""
        weights = visits * row.isfinite().double()
        values = row.double().nan_to_num(0.0)
        values[L2] = values[L2].square()
        return cls(values * weights, weights, visits)

    def add(self, index: Tensor, values: Tensor) -> None:
        """Add visits of samples (b,) with values (n_signals, b); NaN was not measured."""
        self.visits.scatter_add_(0, index, torch.ones_like(index))
        measured = (~values.isnan()).double()
        self.weights.index_add_(1, index, measured)
        values = values.double().masked_fill(measured == 0, 0.0)
        values[L2] = values[L2].square()
        self.values.index_add_(1, index, values)

    def means(self) -> Tensor:
        """Return the mean over visits, float32; NaN for a sample without one."""
        means = self.values / self.weights
        means[L2] = means[L2].sqrt()
        return means.float()


class CountingRecorder(Recorder):
    """Recorder for loops in which a sample may be visited any number of times per epoch.

    Use it for samplers that draw with weights, pad, or drop the last batch, and in each process of
    several. A signal of an epoch is the mean over the sample's visits (for the L2 norm, the root
    mean square), and NaN without a visit; `Trace.visits` holds their number. The predicted class is
    the highest one of the visits, whatever their order, and -1 without a visit. In the scores, an
    epoch that left a sample out counts as one in which nothing changed.

    >>> recorder = CountingRecorder(n_samples=3)
    >>> x, y = recorder.watch(torch.eye(3)[[0, 2, 2]]), torch.tensor([0, 1, 1])
    >>> torch.nn.functional.cross_entropy(2 * x, y).backward()
    >>> recorder.update(torch.tensor([0, 2, 2]), x, 2 * x, y)
    >>> means = recorder.end_epoch()
    >>> recorder.visits.tolist()
    [[1, 0, 2]]

    Parameters and methods are those of `Recorder`. In addition:

    Attributes
    ----------
    merged : bool
        True if it was merged from the recorders of several processes.
    """

    n_tensors = 4  # of an unfinished epoch: those of `Sums`, and predictions

    def __init__(self, n_samples: int, **options: Any) -> None:
        super().__init__(n_samples, **options)
        self.merged = False
        self._counts: list[Tensor] = []  # (n_samples,) of each finished epoch

    @property
    def visits(self) -> Tensor:
        """Visits of each sample in each finished epoch, (n_epochs, n_samples), int64."""
        if not self._counts:
            return torch.zeros(0, self.n_samples, dtype=torch.int64)
        return torch.stack(self._counts)

    @property
    def trace(self) -> Trace:
        """The signals of all finished epochs, with the number of visits."""
        return Trace(dict(super().trace), visits=self.visits.numpy())

    def _store(self, index: Tensor, values: Tensor, predicted: Tensor) -> None:
        if values.device.type == "mps":  # which has no float64
            index, values, predicted = index.cpu(), values.cpu(), predicted.cpu()
        if self._visits is None:
            self._values = Sums.empty(self.n_samples, values.device)
            self._predicted = predicted.new_full((self.n_samples,), -1)
        elif self._visits.device != values.device:  # loaded from a checkpoint
            self._set_tensors([tensor.to(values.device) for tensor in self._tensors()])
        self._visits = self._values.visits
        self._values.add(index, values)
        self._predicted.scatter_reduce_(0, index, predicted, "amax")

    def _close_epoch(self) -> tuple[Tensor, dict[str, float]]:
        self._flush()
        self._check_bounds()
        if self._visits is None:
            raise ValueError("end_epoch() without an update() in this epoch")
        row = self._values.means()
        means = self._means(row[:, self._visits > 0])
        self._counts.append(self._visits.cpu())
        return row.cpu(), means

    def end_epoch(self, *, shared: bool = False) -> dict[str, float]:
        """Close the epoch, and return the mean of each signal over the samples visited.

        Parameters
        ----------
        shared : bool
            True if each process of `torch.distributed` recorded its share of the epoch. All
            processes call it, and then have the whole epoch.

        Raises
        ------
        ValueError
            If no sample was visited.
        FloatingPointError
            If a signal is NaN or infinite: training has diverged.
        """
        means = super().end_epoch()
        if shared and world_size() > 1:
            self.merged = True
            predicted = _highest_class(self._predictions[-1])
            self._replace_last(Sums(*map(over_processes, self._sums(-1))), predicted)
            seen = self._rows[-1][:, self._counts[-1] > 0]
            means = dict(zip(SIGNALS, seen.nanmean(1).tolist(), strict=True))
        return means

    def scores(self, peak: Peak | int | None = None) -> pd.DataFrame:
        """Score every sample as `Recorder.scores` does; a sample that was never visited is NaN.

        Warns
        -----
        UserWarning
            If this is one process's share; call it on ``recorder.gathered()``.
        """
        if world_size() > 1 and not self.merged:
            message = "scores of one process's share: call recorder.gathered().scores()"
            warnings.warn(message, stacklevel=2)
        return super().scores(peak)

    @classmethod
    def merge(cls, *recorders: "CountingRecorder") -> "CountingRecorder":
        """Merge recorders of several processes into one.

        A sample that several of them visited gets the mean over all its visits.

        Raises
        ------
        ValueError
            If the recorders have different numbers of epochs or samples.
        """
        shapes = {(recorder.n_epochs, recorder.n_samples) for recorder in recorders}
        if len(shapes) != 1:
            raise ValueError(f"recorders differ in (epochs, samples): {sorted(shapes)}")
        merged = cls(recorders[0].n_samples)
        for epoch in range(recorders[0].n_epochs):
            shares = zip(*(recorder._sums(epoch) for recorder in recorders), strict=True)
            predicted = torch.stack([recorder._predictions[epoch] for recorder in recorders])
            sums = Sums(*(torch.stack(tensors).sum(0) for tensors in shares))
            merged._append(sums, predicted.amax(0))
        merged.merged = True
        return merged

    def gathered(self) -> "CountingRecorder":
        """Merge the recorders of all processes of `torch.distributed`.

        Every process calls it after the same number of epochs, and gets the same recorder. In a
        single process it returns the recorder itself.

        Raises
        ------
        ValueError
            If the processes recorded different numbers of epochs.
        """
        if world_size() == 1 or self.merged:
            return self
        n_epochs = torch.tensor(self.n_epochs)
        low, high = (int(over_processes(n_epochs, how=how)) for how in ("min", "max"))
        if low != high:
            raise ValueError(f"processes recorded from {low} to {high} epochs; expected the same")
        merged = CountingRecorder(self.n_samples)
        for epoch in range(self.n_epochs):  # one epoch at a time, to save memory
            predicted = _highest_class(self._predictions[epoch])
            merged._append(Sums(*map(over_processes, self._sums(epoch))), predicted)
        merged.merged = True
        return merged

    def state_dict(self, *, unfinished: bool = False) -> dict[str, Any]:
        """Return everything recorded so far; see `Recorder.state_dict`."""
        state = super().state_dict(unfinished=unfinished)
        return state | {"visits": list(self._counts), "merged": self.merged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned; see `Recorder.load_state_dict`."""
        super().load_state_dict(state)
        self._counts, self.merged = list(state["visits"]), state["merged"]

    def _last_predictions(self) -> list[Tensor]:
        # Another process may have visited a sample in the epoch before.
        rows = super()._last_predictions()
        return rows if self.merged else [_highest_class(row) for row in rows]

    def _tensors(self) -> list[Tensor]:
        return [*self._values, self._predicted]

    def _set_tensors(self, tensors: list[Tensor]) -> None:
        *sums, self._predicted = tensors
        self._values = Sums(*sums)
        self._visits = self._values.visits

    def _sums(self, epoch: int) -> Sums:
        return Sums.of_means(self._rows[epoch], self._counts[epoch])

    def _append(self, sums: Sums, predicted: Tensor) -> None:
        self._rows.append(sums.means())
        self._counts.append(sums.visits)
        self._predictions.append(predicted)

    def _replace_last(self, sums: Sums, predicted: Tensor) -> None:
        del self._rows[-1], self._counts[-1], self._predictions[-1]
        self._append(sums, predicted)


def _highest_class(predicted: Tensor) -> Tensor:
    """Return the highest class that any process has predicted, (n_samples,), int16."""
    return over_processes(predicted.int(), how="max").to(torch.int16)  # no backend sends int16


def world_size() -> int:
    """Return the number of processes of torch.distributed's default group; 1 without a group."""
    ready = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if ready else 1


def over_processes(values: Tensor, *, how: str = "sum") -> Tensor:
    """Reduce a tensor over all processes.

    Parameters
    ----------
    values : Tensor
    how : "sum", "min" or "max"

    Returns
    -------
    Tensor
        On the CPU; with a single process, ``values`` itself.
    """
    if world_size() == 1:
        return values
    on_gpu = "nccl" in dist.get_backend()  # which moves tensors of a GPU only
    total = values.to("cuda" if on_gpu else "cpu", copy=True)
    dist.all_reduce(total, getattr(dist.ReduceOp, how.upper()))
    return total.cpu()
