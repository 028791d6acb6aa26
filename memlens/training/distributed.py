"""One training on many devices: what the loop asks, of one process or of several.

`Processes` answers for one process and changes nothing. `Group` answers for the processes that
``torchrun`` starts, one a device: each takes its share of every batch of the same shuffled order,
DistributedDataParallel adds up their gradients, and what was recorded is merged by sample index.
So several processes compute what one would, to float32's rounding.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from memlens.tracking.recorder import Recorder
from memlens.tracking.visits import over_processes
from memlens.training import devices
from memlens.training.config import MeasureConfig, TrainConfig
from memlens.training.devices import Engine

BATCH_NORM = nn.modules.batchnorm._BatchNorm
_GROUPS = itertools.count()  # groups that this process has joined so far


class Processes:
    """One process: every batch is its own, and nothing has to be agreed on."""

    rank, world = 0, 1

    def check(self, config: TrainConfig, measure: MeasureConfig) -> None:
        """Refuse what several processes cannot do."""

    def engine(self, engine: Engine) -> Engine:
        """Where this process computes."""
        return engine

    def prepare(self, net: nn.Module) -> nn.Module:
        """The net whose weights are trained; it may be changed."""
        return net

    def wrap(self, net: nn.Module) -> nn.Module:
        """The net as a training step calls it."""
        return net

    def own(self, items: Any) -> Any:
        """The share of a batch of indices, or of a range of them, that is this process's."""
        return items

    def scale(self, size: int) -> float | None:
        """What the sum of losses over the own share of a batch is multiplied by.

        None: the loss is the mean over the batch.
        """
        return None

    def recorder(self, n_samples: int) -> Recorder:
        """A recorder for the training samples."""
        return Recorder(n_samples)

    def end_epoch(self, recorder: Recorder) -> dict[str, float]:
        """Close the recorder's epoch; the mean of each signal over all samples."""
        return recorder.end_epoch()

    def mean(self, means: Mapping[str, float], n: int) -> dict[str, float]:
        """Means over all samples, from those over the own ``n`` of them."""
        return dict(means)

    def agreed(self, values: Mapping[str, float]) -> dict[str, float]:
        """The first process's values, so that all decide alike."""
        return dict(values)

    def same(self, value: Any) -> Any:
        """The first process's value."""
        return value


class ProcessGroup(Processes):
    """Several processes of `torch.distributed`, which make the same calls in the same order.

    Parameters
    ----------
    own_statistics : bool
        Whether batch norm on a CPU may normalise each process's share by itself.
    """

    def __init__(self, own_statistics: bool = False) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.own_statistics = own_statistics

    def check(self, config: TrainConfig, measure: MeasureConfig) -> None:
        """Raise ValueError for a batch with too few samples, and for measures after an epoch."""
        if config.batch_size < self.world:
            raise ValueError(
                f"a batch of {config.batch_size} has no sample for each of {self.world} processes; "
                "raise batch_size, which counts the samples of all of them"
            )
        if measure.posthoc:
            raise ValueError(
                f"{self.world} processes record in the step only: train with MeasureConfig(), and "
                "measure after the epochs on one device"
            )

    def engine(self, engine: Engine) -> Engine:
        """The GPU of this process's number on its machine; or the CPU."""
        if not devices.is_gpu(engine.device):
            return engine
        own = replace(engine, device=torch.device("cuda", local_gpu()))
        torch.cuda.set_device(own.device)
        return own

    def prepare(self, net: nn.Module) -> nn.Module:
        """The net with batch norm over all processes.

        Raises
        ------
        ValueError
            On a CPU, for which torch has no such batch norm, unless each process may have its own.
        """
        if not any(isinstance(layer, BATCH_NORM) for layer in net.modules()):
            return net
        if devices.is_gpu(next(net.parameters()).device):
            return nn.SyncBatchNorm.convert_sync_batchnorm(net)
        if self.own_statistics:
            return net
        raise ValueError(
            "this net has batch norm, which torch cannot compute over several processes on a CPU: "
            "each would normalise its share of a batch by itself, and train another net than one "
            "process does. Pass --own-statistics if that is meant; else take one process, GPUs, or "
            "a net without batch norm"
        )

    def wrap(self, net: nn.Module) -> nn.Module:
        """The net whose gradients are those of all processes."""
        device = next(net.parameters()).device
        places = [device] if devices.is_gpu(device) else None
        return nn.parallel.DistributedDataParallel(net, device_ids=places)

    def own(self, items: Tensor) -> Tensor:
        """One of ``world`` runs of nearly the same length; of a short batch it may be empty."""
        return items.tensor_split(self.world)[self.rank]

    def scale(self, size: int) -> float:
        """A gradient is averaged over processes: so the sum of theirs is one over ``size``."""
        return self.world / size

    def recorder(self, n_samples: int) -> Recorder:
        """A recorder that sees its share, of losses that are sums."""
        return Recorder(n_samples, reduction="sum", complete=False)

    def end_epoch(self, recorder: Recorder) -> dict[str, float]:
        """Close the epoch of all processes: afterwards each holds the whole of it."""
        return recorder.end_epoch(shared=True)

    def mean(self, means: Mapping[str, float], n: int) -> dict[str, float]:
        """The mean of all samples, each counted once."""
        values = torch.tensor([*means.values(), 1.0], dtype=torch.float64) * n
        *sums, count = over_processes(values if n else torch.zeros_like(values)).tolist()
        return {name: total / count for name, total in zip(means, sums, strict=True)}

    def agreed(self, values: Mapping[str, float]) -> dict[str, float]:
        """What the first process has found."""
        own = torch.tensor(list(values.values()), dtype=torch.float64)
        found = over_processes(torch.zeros_like(own) if self.rank else own)
        return dict(zip(values, found.tolist(), strict=True))

    def same(self, value: Any) -> Any:
        """What the first process has: tensors and plain values."""
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]


def local_gpu() -> int:
    """Number of the GPU of this process, as ``torchrun`` counts on a machine.

    Raises
    ------
    ValueError
        If there are more processes than GPUs.
    """
    number, n = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if n == 1:  # the batch system shows each process one
        return 0
    if number >= n:
        raise ValueError(
            f"process {number} of this machine has no GPU: there are {n}; start as many processes "
            "with --nproc-per-node"
        )
    return number


@contextmanager
def process_group(config: TrainConfig, *, own_statistics: bool = False) -> Iterator[Processes]:
    """The processes that ``torchrun`` started, by its variables; alone, one that changes nothing.

    Parameters
    ----------
    config : TrainConfig
        By whose device they talk: NCCL between GPUs, gloo between CPUs.
    own_statistics : bool
        As in `Group`.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes()
        return
    # DistributedDataParallel imports it. Imported while there is a group, defaults of its functions
    # would hold that for good: its threads, alive while the interpreter ends, abort it at times.
    import torch._dynamo

    on_gpu = devices.is_gpu(config.engine().device)
    if on_gpu:
        torch.cuda.set_device(local_gpu())  # before NCCL looks which one is in use
    # The processes read each other's addresses from a store that outlives a group. Under one name
    # for all groups, a second one may find the addresses of the first, where nobody listens.
    store, rank, world = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"memlens/{next(_GROUPS)}", store)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    try:
        yield ProcessGroup(own_statistics)
    finally:
        dist.destroy_process_group()


ONE_PROCESS = Processes()


def sizes(n: int, batch_size: int) -> Sequence[int]:
    """How many samples each batch of an epoch has, over all processes."""
    return [min(batch_size, n - start) for start in range(0, n, batch_size)]
