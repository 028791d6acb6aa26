"""Samples visited unequally: means over visits, over recorders and over processes.

What can be added up is not a mean but a sum and the number of visits behind it. The L2 norm of a
gradient is averaged as its square, so that the sum of squares (CSG) over all visits is exact.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from memlens.tracking.traces import SIGNALS

L2 = SIGNALS.index("grad_l2")
GRADIENTS = slice(L2, L2 + 2)  # what an overflow of a loss scaler leaves unmeasured


class Sums(NamedTuple):
    """Signals added up over visits: what two shares of an epoch can be added in.

    Attributes
    ----------
    values : Tensor (n_signals, n_samples), the L2 norm of the gradient squared
    weights : Tensor (n_signals, n_samples), visits in which the signal was measured
    visits : Tensor (n_samples,) int64
    """

    values: Tensor
    weights: Tensor
    visits: Tensor

    @classmethod
    def empty(cls, n_samples: int, like: Tensor) -> "Sums":
        """No visits yet, in the number format and on the device of ``like``."""
        shape = (len(SIGNALS), n_samples)
        visits = torch.zeros(n_samples, dtype=torch.int64, device=like.device)
        return cls(like.new_zeros(shape), like.new_zeros(shape), visits)

    @classmethod
    def of_means(cls, row: Tensor, visits: Tensor) -> "Sums":
        """What these means (n_signals, n_samples) over so many visits (n_samples,) came from.

        In float64, where the square of a float32 is exact: one visit comes back to the bit.
        """
        weights = visits * row.isfinite().double()
        values = row.double().nan_to_num(0.0)
        values[L2] = values[L2].square()
        return cls(values * weights, weights, visits)

    def add(self, index: Tensor, values: Tensor) -> None:
        """Add a batch of visits, (n_signals, b); NaN was not measured."""
        self.visits.scatter_add_(0, index, torch.ones_like(index))
        self.weights.index_add_(1, index, (~values.isnan()).to(values.dtype))
        values = values.clone()
        values[L2] = values[L2].square()
        unmeasured = values.isnan()
        self.values.index_add_(1, index, values.masked_fill_(unmeasured, 0.0))

    def means(self) -> Tensor:
        """Mean over the visits (root of the mean square for the L2 norm); NaN without one."""
        means = self.values / self.weights
        means[L2] = means[L2].sqrt()
        return means.float()


def world_size() -> int:
    """Processes of the default group of torch.distributed; 1 where there is none."""
    ready = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if ready else 1


def over_processes(values: Tensor, *, how: str = "sum") -> Tensor:
    """Sum, "min" or "max" of a tensor over all processes, on the CPU; alone, the tensor itself."""
    if world_size() == 1:
        return values
    on_gpu = "nccl" in dist.get_backend()  # which moves tensors of a GPU only
    total = values.to("cuda" if on_gpu else "cpu", copy=True)
    dist.all_reduce(total, getattr(dist.ReduceOp, how.upper()))
    return total.cpu()
