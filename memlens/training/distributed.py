"""Train one network in several processes, one a device, started by ``torchrun``.

Each process takes its share of every batch of the same shuffled order, DistributedDataParallel sums
their gradients, and what they record is merged by sample index. So several processes compute what
one would, up to float32 rounding.
"""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from memlens.data.samples import Dataset
from memlens.models import registry
from memlens.storage.checkpoints import TrainingCheckpoint
from memlens.tracking.counting import CountingRecorder, over_processes
from memlens.training import devices
from memlens.training.config import MeasureConfig, TrainConfig, mixed_seed
from memlens.training.devices import Engine, thread_count
from memlens.training.loop import TrainingSession, shuffled, train_step
from memlens.training.progress import Watch
from memlens.training.runs import Run

BATCH_NORM = nn.modules.batchnorm._BatchNorm
_GROUPS = itertools.count()  # groups that this process has joined so far


class ProcessGroup:
    """The processes of `torch.distributed`, which make the same calls in the same order.

    Attributes
    ----------
    rank, world_size : int
    own_statistics : bool
        Whether batch norm on a CPU may normalise each process's share by itself.
    """

    def __init__(self, own_statistics: bool = False) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.own_statistics = own_statistics

    def share(self, items: Tensor) -> Tensor:
        """Return this process's share: one of ``world_size`` runs of nearly equal length.

        The share of a short batch may be empty.
        """
        return items.tensor_split(self.world_size)[self.rank]

    def broadcast(self, value: Any) -> Any:
        """Return the first process's value: tensors and plain values."""
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]


class ShareRecorder(CountingRecorder):
    """Records this process's share of each batch; a share may be empty."""

    loss_scale = 1.0  # of the current batch

    def update(self, index: Tensor, x: Tensor, logits: Tensor, y: Tensor, **options: Any) -> None:
        """Record a step; see `Recorder.update`."""
        if len(index):
            super().update(index, x, logits, y, loss_scale=self.loss_scale)


class DistributedSession(TrainingSession):
    """One training of one network by several processes; see `TrainingSession`."""

    def __init__(self, group: ProcessGroup, *args: Any) -> None:
        self.group, self.n_processes = group, group.world_size
        super().__init__(*args)

    def set_up(self, net: nn.Module, record: bool) -> None:
        """Place the network where this process computes, and join its batch norm and gradients."""
        self.net = synchronised(self.engine.place(net), self.group).train()
        places = [self.engine.device] if devices.is_gpu(self.engine.device) else None
        joined = nn.parallel.DistributedDataParallel(self.net, device_ids=places)
        self.forward = self.engine.forward(joined)
        if record:
            self.recorder = ShareRecorder(len(self.data.train), reduction="sum")

    def run(self, checkpoint: TrainingCheckpoint | None, watch: Watch | None) -> Run:
        """Run the epochs that are left; the first process loads, saves and reports."""
        if self.group.rank:
            checkpoint, watch = None, None
        if state := self.group.broadcast(checkpoint.load() if checkpoint else None):
            self.load_state_dict(state)
        return self.run_epochs(checkpoint, watch, hidden=bool(watch or self.group.rank))

    def measured_epoch(self, epoch: int) -> dict[str, float]:
        """Train for an epoch and evaluate; returns the first process's values in all of them."""
        return self.group.broadcast(super().measured_epoch(epoch))

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Take this process's share of every step of an epoch."""
        seed = self.config.seed
        torch.manual_seed(mixed_seed(seed, epoch, 2, self.group.rank))  # for dropout
        order = shuffled(len(self.data.train), seed, epoch)
        whole = order.split(self.config.batch_size)
        shares = [self.group.share(index) for index in whole]
        batches = self.batches.of_epoch(shares, seed, epoch)
        for full, (index, x, y) in zip(whole, batches, strict=True):
            # DistributedDataParallel averages gradients over processes: so that their sums over
            # shares become a mean over the batch, each is multiplied by this.
            scale = self.n_processes / len(full)
            if self.recorder:
                self.recorder.loss_scale = scale
            train_step(
                self.forward, self.optimizer, x, y, loss=ScaledSum(scale),
                recorder=self.recorder, index=index, sam_rho=self.config.sam_rho,
            )  # fmt: skip
        return self.recorded(self.recorder.end_epoch(shared=True)) if self.recorder else {}

    def evaluate(self) -> dict[str, float]:
        """Return loss and accuracy on all validation samples, each evaluated by one process."""
        everyone = self.data.test
        if not len(everyone):
            return super().evaluate()
        share = self.group.share(torch.arange(len(everyone)))
        sums = {"val_loss": 0.0, "val_accuracy": 0.0}
        if len(share):
            means = self.evaluate_on(everyone[share])
            sums = {name: mean * len(share) for name, mean in means.items()}
        totals = over_processes(torch.tensor(list(sums.values()), dtype=torch.float64))
        return dict(zip(sums, (totals / len(everyone)).tolist(), strict=True))


class ScaledSum:
    """The sum of the cross-entropy over a batch, times a factor."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        return self.scale * F.cross_entropy(logits, y, reduction="sum")


def train_in_group(
    group: ProcessGroup,
    model: str | registry.Builder,
    data: Dataset,
    config: TrainConfig = TrainConfig(),
    measure: MeasureConfig = MeasureConfig(),
    *,
    checkpoint: TrainingCheckpoint | None = None,
    watch: Watch | None = None,
) -> Run:
    """Train one network in all processes of a group, each of which calls this.

    Parameters are those of `loop.train`; ``config.batch_size`` counts the samples of all processes.
    The first process keeps the checkpoint and calls ``watch``.

    Raises
    ------
    ValueError
        If a batch has no sample for each process, the network has batch norm that these processes
        cannot compute together, or something is to be measured after the epochs; see also
        `loop.train`.
    """
    check_group(group, config, measure)
    engine = own_engine(config.engine())
    with thread_count(config.threads), engine.tuned():
        session = DistributedSession(group, model, data, config, measure, engine)
        return session.run(checkpoint, watch)


def check_group(group: ProcessGroup, config: TrainConfig, measure: MeasureConfig) -> None:
    """Raise ValueError for a batch with too few samples, and for measures after an epoch."""
    if config.batch_size < group.world_size:
        raise ValueError(
            f"a batch of {config.batch_size} has no sample for each of {group.world_size} "
            "processes; raise batch_size, which counts the samples of all of them"
        )
    if measure.posthoc:
        raise ValueError(
            f"{group.world_size} processes record during training only: pass MeasureConfig(), and "
            "measure after the epochs on one device"
        )


def own_engine(engine: Engine) -> Engine:
    """Return the engine on the GPU with this process's number; on a CPU, the engine itself."""
    if not devices.is_gpu(engine.device):
        return engine
    own = replace(engine, device=torch.device("cuda", local_gpu()))
    torch.cuda.set_device(own.device)
    return own


def synchronised(net: nn.Module, group: ProcessGroup) -> nn.Module:
    """Return the network with batch norm over all processes.

    Raises
    ------
    ValueError
        On a CPU, where torch has no such batch norm, unless each process may have its own.
    """
    if not any(isinstance(layer, BATCH_NORM) for layer in net.modules()):
        return net
    if devices.is_gpu(next(net.parameters()).device):
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)
    if group.own_statistics:
        return net
    raise ValueError(
        "this network has batch norm, which torch cannot compute over several processes on a CPU: "
        "each would normalise its share of a batch by itself, and train another network than one "
        "process does. Pass --own-statistics to accept that; or use one process, GPUs, or a "
        "network without batch norm"
    )


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
def process_group(
    config: TrainConfig, *, own_statistics: bool = False
) -> Iterator[ProcessGroup | None]:
    """Join the processes that ``torchrun`` started, by its variables; None in a single process.

    Parameters
    ----------
    config : TrainConfig
        Its device decides how they communicate: NCCL between GPUs, gloo between CPUs.
    own_statistics : bool
        As in `ProcessGroup`.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield None
        return
    # DistributedDataParallel imports it. If that happens while there is a group, defaults of its
    # functions keep the group alive: its threads may then abort the interpreter as it exits.
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
