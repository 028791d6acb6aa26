"""The processes of `torch.distributed` that train together: their number, and sums over them."""

import torch.distributed as dist
from torch import Tensor


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
