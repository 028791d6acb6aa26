"""The training loop: `train_step` trains on one batch and records it; `train` runs all epochs.

The `Recorder` is used exactly as in a loop of your own. Every random choice is a function of
(seed, epoch), so recording, other runs, the order of calls and interruptions change
nothing: on one machine, one configuration always gives the same weights. (On a GPU, kernels may sum
in another order from run to run.)
"""

import copy
import math
import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlens.data.samples import Dataset, Samples
from memlens.models import registry
from memlens.storage.checkpoints import TrainingCheckpoint
from memlens.tracking import signals
from memlens.tracking.recorder import Recorder
from memlens.training import sam
from memlens.training.config import MeasureConfig, TrainConfig, mixed_seed
from memlens.training.devices import thread_count
from memlens.training.posthoc import predict
from memlens.training.progress import Watch, advance, epoch_bar
from memlens.training.runs import Run
from memlens.training.state import TrainingState


def train_step(
    forward: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    recorder: Recorder | None = None,
    index: Tensor | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    sam_rho: float = 0.0,
    stacked: bool = False,
) -> None:
    """Train one network, or a stack of networks, on one batch, and record it.

    Parameters
    ----------
    forward : callable
        The network; maps ``x`` to logits.
    optimizer : Optimizer
    x, y : Tensor
        Inputs and labels of the batch.
    recorder, index : Recorder and Tensor (b,), optional
        Where to record the step, and the positions of its samples in the training set.
    loss : callable
        Maps logits and labels to a scalar.
    sam_rho, stacked
        As in `sam.replace_gradients`; a radius of 0 is an ordinary step.
    """
    if recorder:
        x = recorder.watch(x)
    logits = forward(x)
    optimizer.zero_grad()
    loss(logits, y).backward()
    if recorder:
        recorder.update(index, x, logits, y)
    if sam_rho:
        again = lambda: loss(forward(x.detach()), y)  # noqa: E731
        sam.replace_gradients(optimizer, sam_rho, again, stacked=stacked)
    optimizer.step()


def train(
    model: str | registry.Builder,
    data: Dataset,
    config: TrainConfig = TrainConfig(),
    measure: MeasureConfig = MeasureConfig(),
    *,
    record: bool = True,
    checkpoint: TrainingCheckpoint | None = None,
    watch: Watch | None = None,
) -> Run:
    """Train one network, and score every training sample on the way.

    >>> import memlens as ml
    >>> run = ml.train("mlp", ml.load("digits").subset(100), ml.TrainConfig(epochs=2))
    >>> len(run.scores), len(run.history)
    (100, 2)

    Parameters
    ----------
    model : str or callable
        A name from ``registry.MODELS``, or a function ``(n_classes, in_shape) -> nn.Module``.
    data : Dataset
    config : TrainConfig
    measure : MeasureConfig
        Additional measurements after each epoch.
    record : bool
        False: record nothing, to measure the cost of recording. The weights are the same.
    checkpoint : TrainingCheckpoint, optional
        File to save the unfinished training to, and to resume it from; the result is the same.
    watch : callable, optional
        Called after each epoch with its row of ``Run.history``, in place of the progress bar. A
        resumed training first passes the rows of its finished epochs. An exception it raises stops
        the training.

    Raises
    ------
    ValueError
        If there are fewer samples than one batch, or the device is not available.
    MemoryError
        If the training needs more memory than is free; the message lists what needs it.
    FloatingPointError
        If the training diverges.
    """
    engine = config.engine()
    with thread_count(config.threads), engine.tuned():
        return TrainingSession(model, data, config, measure, engine, record).run(checkpoint, watch)


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the samples in an epoch, (n,), int64."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))


class TrainingSession(TrainingState):
    """One training of one network, in one process."""

    def set_up(self, net: nn.Module, record: bool) -> None:
        """Move the network to its device, and create its recorder."""
        self.net = self.engine.place(net).train()
        self.forward = self.engine.forward(self.net)
        if record:
            self.recorder = Recorder(len(self.data.train))

    def run(self, checkpoint: TrainingCheckpoint | None, watch: Watch | None) -> Run:
        """Run the epochs that are left, after those in the checkpoint."""
        if checkpoint and (state := checkpoint.load()):
            self.load_state_dict(state)
        return self.run_epochs(checkpoint, watch, hidden=bool(watch))

    def run_epochs(
        self, checkpoint: TrainingCheckpoint | None, watch: Watch | None, hidden: bool
    ) -> Run:
        """Run the epochs that are left; ``hidden`` hides the progress bar."""
        with epoch_bar(self.config.epochs, done=len(self.history), hidden=hidden) as bar:
            for row in self.history if watch else ():
                watch(row)
            while not self.finished:
                row = self.run_epoch(epoch=len(self.history))
                advance(bar, row)
                if watch:
                    watch(row)
                if checkpoint and checkpoint.is_due():
                    checkpoint.save(self.state_dict())
        return self.result()

    def run_epoch(self, epoch: int) -> dict[str, float]:
        """Train for an epoch, evaluate, and append a row to the history."""
        row = {"epoch": epoch, "lr": self.config.lr_at(epoch)} | self.measured_epoch(epoch)
        self.history.append(row)
        if due := self.stops.update(row):
            self.snapshots |= dict.fromkeys(due, copy.deepcopy(self.net.state_dict()))
        if self.posthoc:
            self.posthoc.after_epoch(self.net, epoch)
        return row

    def measured_epoch(self, epoch: int) -> dict[str, float]:
        """Train for an epoch and evaluate; return the measured columns of the history."""
        start = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(epoch)
        row = self.train_epoch(epoch)
        seconds = time.perf_counter() - start
        row |= self.evaluate() | {"weight_norm": signals.weight_norm(self.net).item()}
        return row | {"seconds": seconds}

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Train on every batch of an epoch; return the recorder's columns of the history."""
        seed = self.config.seed
        torch.manual_seed(mixed_seed(seed, epoch, 2))  # for dropout
        order = shuffled(len(self.data.train), seed, epoch)
        index_batches = order.split(self.config.batch_size)
        for index, x, y in self.batches.of_epoch(index_batches, seed, epoch):
            train_step(
                self.forward, self.optimizer, x, y, recorder=self.recorder, index=index,
                sam_rho=self.config.sam_rho,
            )  # fmt: skip
        return self.recorded(self.recorder.end_epoch()) if self.recorder else {}

    def recorded(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the columns of the history that come from the recorder."""
        correct = self.recorder.last("margin") > 0
        return {
            "train_loss": means["loss"],
            "input_gradient": means["grad_l2"],
            "label_changes": self.recorder.label_changes(),
            "train_accuracy": float(correct.float().mean()),
        }

    def evaluate(self) -> dict[str, float]:
        """Return loss and accuracy on the validation samples; NaN if there are none."""
        if not len(self.data.test):
            return {"val_loss": math.nan, "val_accuracy": math.nan}
        return self.evaluate_on(self.data.test)

    def evaluate_on(self, samples: Samples) -> dict[str, float]:
        """Return loss and accuracy on one or more samples."""
        logits = predict(self.net, self.data, samples, self.rows)
        y = samples.labels.to(logits.device)
        accuracy = (logits.argmax(1) == y).float().mean()
        return {"val_loss": F.cross_entropy(logits, y).item(), "val_accuracy": accuracy.item()}
