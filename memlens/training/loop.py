"""The one training loop: a config in, a run out.

The loop is plain and does nothing that a `Recorder` could not do in a loop of your own. Every
random choice is a function of (seed, epoch), so that recording, other runs, the order of calls or
an interruption cannot change it: the same config gives the same weights, bit for bit, on one
machine. (On a GPU kernels may add in another order from run to run.)
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from memlens.data.samples import Dataset, Samples
from memlens.models import registry
from memlens.storage.checkpoints import TrainingCheckpoint
from memlens.tracking import signals
from memlens.tracking.stopping import PEAKS, PeakDetector
from memlens.training import devices
from memlens.training.batches import Batches, in_order
from memlens.training.config import OPTIMIZERS, MeasureConfig, TrainConfig, mixed_seed
from memlens.training.devices import Engine
from memlens.training.distributed import ONE_PROCESS, Processes, sizes
from memlens.training.memory import check_memory
from memlens.training.posthoc import PosthocEvaluator
from memlens.training.runs import Run
from memlens.training.steps import train_step

Watch = Callable[[Mapping[str, float]], None]  # what is told of every epoch: a row of the history


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """Order of the samples in an epoch, (n,) int64: a function of (n, seed, epoch) alone."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))


@contextmanager
def thread_count(n: int | None) -> Iterator[None]:
    """Torch computes with ``n`` threads inside, and as before outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def predict(
    model: nn.Module, data: Dataset, samples: Samples | Tensor, rows: int | None = None
) -> Tensor:
    """Logits (n, n_classes), float32, in eval mode, on clean inputs; on the device of the model.

    Of samples, or of images (n, channels, height, width) in the units of the data; ``rows`` at a
    time, by default as many as fit. Float32 keeps all its bits on a GPU, too.
    """
    device = next(model.parameters()).device
    rows = rows or devices.rows_of(model, data.in_shape)
    was_training = model.training
    model.eval()
    if isinstance(samples, Samples):
        parts = (images for images, _ in in_order(samples, rows, device))
    else:
        parts = (images.to(device) for images in samples.split(rows))
    with devices.exact_float32():
        logits = [model(data.normalise(images)) for images in parts]
    model.train(was_training)
    return torch.cat(logits)


def train(
    model: str | registry.Builder,
    data: Dataset,
    config: TrainConfig = TrainConfig(),
    measure: MeasureConfig = MeasureConfig(),
    *,
    record: bool = True,
    checkpoint: TrainingCheckpoint | None = None,
    watch: Watch | None = None,
    processes: Processes = ONE_PROCESS,
) -> Run:
    """Train one net and score every training sample on the way.

    Parameters
    ----------
    model : str or builder
        A name from ``models.MODELS`` or a function ``(n_classes, in_shape) -> nn.Module``.
    data : Dataset
    config : TrainConfig
    measure : MeasureConfig
    record : bool
        False trains the same weights without the input gradient; for measuring what it costs.
    checkpoint : TrainingCheckpoint, optional
        Where the unfinished training is kept after an epoch, and gone on from: it ends as it would
        have ended without the interruption.
    watch : callable, optional
        Called after every epoch with its row of ``Run.history``, in place of the progress bar;
        first with the rows of a training that is gone on with. It changes nothing in the training;
        what it raises stops it.
    ranks : Processes
        The processes that train it together (`ranks.joined`), each of which calls this; the config
        is that of all together, and so is the run that each returns. The first keeps the checkpoint.

    Raises
    ------
    ValueError
        If there are fewer samples than one batch, the config's device is not there, or several
        processes cannot train so.
    MemoryError
        If it needs more memory than there is; the message says what for.
    FloatingPointError
        If the training diverges.
    """
    if len(data.train) < config.batch_size:
        raise ValueError(
            f"{len(data.train)} training samples are fewer than a batch of {config.batch_size}; "
            "lower batch_size in the config"
        )
    processes.check(config, measure)
    engine = processes.engine(config.engine())
    checkpoint, watch = (None if processes.rank else helper for helper in (checkpoint, watch))
    with thread_count(config.threads), engine.tuned():
        session = _Session(model, data, config, measure, record, engine, processes)
        if state := processes.same(checkpoint.load() if checkpoint else None):
            session.load_state_dict(state)
        silent = bool(watch or processes.rank)
        with tqdm(total=config.epochs, initial=session.epoch, **_bar(silent)) as bar:
            for row in session.history if watch else ():
                watch(row)
            while not session.finished:
                session.run_epoch()
                bar.set_postfix(told(session.history[-1]), refresh=False)
                bar.update()
                if watch:
                    watch(session.history[-1])
                if checkpoint and checkpoint.is_due():
                    checkpoint.save(session.state_dict())
        return session.finish()


def _bar(silent: bool) -> dict[str, Any]:
    # Only where a person looks, and where nothing else shows how far it is.
    return {"unit": "epoch", "leave": False, "delay": 5, "disable": silent or None}


TOLD = {"loss": "train_loss", "gradient": "input_gradient", "weight norm": "weight_norm"}


def told(row: Mapping[str, float]) -> dict[str, str]:
    """What a progress bar says of an epoch: loss, mean input gradient, weight norm."""
    return {name: f"{row[column]:.3g}" for name, column in TOLD.items() if column in row}


class _Session:
    """What a training holds between epochs."""

    def __init__(
        self,
        model: str | registry.Builder,
        data: Dataset,
        config: TrainConfig,
        measure: MeasureConfig,
        record: bool,
        engine: Engine,
        processes: Processes,
    ) -> None:
        self.name, self.data, self.config, self.processes = model, data, config, processes
        net = registry.build(model, data.n_classes, data.in_shape, seed=config.seed)
        self.net = processes.prepare(engine.place(net)).train()
        one = torch.zeros(1, *data.in_shape, device=engine.device)
        share = replace(config, batch_size=-(-config.batch_size // processes.world))
        check_memory(self.net, one, data, share, measure)
        self.rows = devices.rows_at_once(self.net, one)
        self.forward = engine.forward(processes.wrap(self.net))
        self.batches = Batches(data, config, engine)
        self.optimizer = OPTIMIZERS[config.optimizer](self.net.parameters(), config)
        self.recorder = processes.recorder(len(data.train)) if record else None
        self.probes = (
            PosthocEvaluator(data, measure, config.seed, self.rows) if measure.posthoc else None
        )
        self.detectors = {name: PeakDetector(patience=config.patience) for name in PEAKS}
        self.history: list[dict[str, float]] = []
        self.kept: dict[str, tuple[int, dict[str, Tensor]]] = {}

    @property
    def epoch(self) -> int:
        """The next epoch: as many are finished."""
        return len(self.history)

    @property
    def finished(self) -> bool:
        """Whether no epoch is left, or training was to stop at a peak which is called."""
        stop = self.config.stop
        called = stop and self.detectors[stop].peak.detected_epoch is not None
        return self.epoch >= self.config.epochs or bool(called)

    def run_epoch(self) -> None:
        epoch, seed, start = self.epoch, self.config.seed, time.perf_counter()
        torch.manual_seed(mixed_seed(seed, epoch, 2, self.processes.rank))  # of dropout
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(epoch)
        order = shuffled(len(self.data.train), seed, epoch)
        batches = self.batches.batches(order, seed, epoch, self.processes.own)
        whole = sizes(len(order), self.config.batch_size)
        for size, (index, x, y) in zip(whole, batches, strict=True):
            rho, scale = self.config.sam_rho, self.processes.scale(size)
            train_step(self.forward, self.optimizer, x, y, self.recorder, index, rho, scale)
        row = {}
        if self.recorder:
            means = self.processes.end_epoch(self.recorder)
            row |= {"train_loss": means["loss"], "input_gradient": means["grad_l2"]}
            row["train_accuracy"] = float((self.recorder.last("margin") > 0).float().mean())
        seconds = time.perf_counter() - start
        row |= self._validate() | {"weight_norm": signals.weight_norm(self.net).item()}
        row = {"epoch": epoch, "lr": self.config.lr_at(epoch)} | self.processes.agreed(row)
        self.history.append(row | {"seconds": seconds})
        self._watch_peaks(epoch, row)
        if self.probes:
            self.probes.after_epoch(self.net, epoch)

    def _validate(self) -> dict[str, float]:
        test = self.data.test
        if not len(test):
            return {"val_loss": math.nan, "val_accuracy": math.nan}
        if self.processes.world > 1:
            test = test[self.processes.own(torch.arange(len(test)))]
        logits = predict(self.net, self.data, test, self.rows)
        y = test.labels.to(logits.device)
        means = {
            "val_loss": F.cross_entropy(logits, y).item(),
            "val_accuracy": (logits.argmax(1) == y).float().mean().item(),
        }
        return self.processes.mean(means, len(test))

    def _watch_peaks(self, epoch: int, row: Mapping[str, float]) -> None:
        self._update_detectors(row)
        if self.detectors["weight_norm"].at_best:
            self._keep("peak", epoch)
        if not row["val_loss"] >= min((r["val_loss"] for r in self.history[:-1]), default=math.inf):
            self._keep("best_val", epoch)

    def _update_detectors(self, row: Mapping[str, float]) -> None:
        for name, detector in self.detectors.items():
            if name in row:
                detector.update(row[name])

    def _keep(self, name: str, epoch: int) -> None:
        self.kept[name] = (epoch, copy.deepcopy(self.net.state_dict()))

    def state_dict(self) -> dict[str, Any]:
        """All that the next epochs depend on, as tensors and plain values."""
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "recorder": self.recorder.state_dict() if self.recorder else None,
            "probes": self.probes.state_dict() if self.probes else None,
            "history": self.history,
            "kept": self.kept,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.recorder:
            self.recorder.load_state_dict(state["recorder"])
        if self.probes:
            self.probes.load_state_dict(state["probes"])
        self.history, self.kept = list(state["history"]), dict(state["kept"])
        for row in self.history:  # a detector is what it has seen
            self._update_detectors(row)

    def finish(self) -> Run:
        self._keep("last", len(self.history) - 1)
        history = pd.DataFrame(self.history)
        arrays = {f"history/{k}": history[k].to_numpy() for k in history}
        n_epochs = len(history)
        if self.recorder:
            arrays |= {f"trace/{k}": v for k, v in self.recorder.trace.items()}
        else:  # a run without scores still has a trace of the right shape
            arrays["trace/loss"] = np.full((n_epochs, len(self.data.train)), np.nan, np.float32)
        if self.probes:
            arrays |= {f"posthoc/{k}": v for k, v in self.probes.finish(self.net).items()}
        for name, (_, state) in self.kept.items():
            arrays |= {f"snapshot/{name}/{k}": v.cpu().numpy() for k, v in state.items()}
        meta = {
            "peaks": {name: tuple(d.peak) for name, d in self.detectors.items()},
            "snapshots": {name: epoch for name, (epoch, _) in self.kept.items()},
        }
        return Run(self.name, self.data, arrays, meta)
