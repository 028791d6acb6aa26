"""The one training loop: a recipe in, a run out.

The loop is plain and does nothing that a `Recorder` could not do in a loop of your own. Every
random choice is a function of (seed, epoch), so that recording, other runs or the order of calls
cannot change it: the same recipe gives the same weights, bit for bit, on one machine.
"""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlens import models, signals
from memlens.data import Dataset, Samples, augment
from memlens.recipes import OPTIMIZERS, Measure, Recipe
from memlens.recorder import Recorder
from memlens.runs import Run
from memlens.stopping import PEAKS, PeakDetector

EVAL_BATCH = 4096


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """Order of the samples in an epoch, (n,) int64: a function of (n, seed, epoch) alone."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))


def mixed_seed(*numbers: int) -> int:
    """One seed from several, without the collisions that a sum would have."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


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
def predict(model: nn.Module, data: Dataset, images: Tensor) -> Tensor:
    """Logits (n, n_classes) in eval mode, on clean inputs."""
    was_training = model.training
    model.eval()
    parts = [model(data.normalise(part)) for part in images.split(EVAL_BATCH)]
    model.train(was_training)
    return torch.cat(parts)


def train(
    model: str | models.Builder,
    data: Dataset,
    recipe: Recipe = Recipe(),
    measure: Measure = Measure(),
    *,
    record: bool = True,
) -> Run:
    """Train one net and score every training sample on the way.

    Parameters
    ----------
    model : str or builder
        A name from ``models.MODELS`` or a function ``(n_classes, in_shape) -> nn.Module``.
    data : Dataset
    recipe : Recipe
    measure : Measure
    record : bool
        False trains the same weights without the input gradient; for measuring what it costs.

    Raises
    ------
    ValueError
        If there are fewer samples than one batch.
    FloatingPointError
        If the training diverges.
    """
    if len(data.train) < recipe.batch_size:
        raise ValueError(
            f"{len(data.train)} training samples are fewer than a batch of {recipe.batch_size}; "
            "lower batch_size in the recipe"
        )
    with thread_count(recipe.threads):
        session = _Session(model, data, recipe, measure, record)
        for epoch in range(recipe.epochs):
            session.run_epoch(epoch)
            if recipe.stop and session.detectors[recipe.stop].peak.detected_epoch is not None:
                break
        return session.finish()


class _Session:
    """What a training holds between epochs."""

    def __init__(
        self,
        model: str | models.Builder,
        data: Dataset,
        recipe: Recipe,
        measure: Measure,
        record: bool,
    ) -> None:
        self.name, self.data, self.recipe, self.measure = model, data, recipe, measure
        self.net = models.build(model, data.n_classes, data.in_shape, seed=recipe.seed).train()
        self.optimizer = OPTIMIZERS[recipe.optimizer](self.net.parameters(), recipe)
        self.recorder = Recorder(len(data.train)) if record else None
        self.posthoc = Recorder(len(data.train), reduction="sum") if measure.posthoc else None
        self.curvature: list[signals.Curvature] = []
        self.detectors = {name: PeakDetector(patience=recipe.patience) for name in PEAKS}
        self.history: list[dict[str, float]] = []
        self.kept: dict[str, tuple[int, dict[str, Tensor]]] = {}

    def run_epoch(self, epoch: int) -> None:
        start = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(epoch)
        for index in shuffled(len(self.data.train), self.recipe.seed, epoch).split(
            self.recipe.batch_size
        ):
            train_step(self.net, self.optimizer, *self._batch(index, epoch), self.recorder, index)
        row = {"epoch": epoch, "lr": self.recipe.lr_at(epoch)}
        if self.recorder:
            means = self.recorder.end_epoch()
            row |= {"train_loss": means["loss"], "input_gradient": means["grad_l2"]}
            row["train_accuracy"] = float((self.recorder.last("margin") > 0).float().mean())
        seconds = time.perf_counter() - start
        row |= self._validate() | {"weight_norm": signals.weight_norm(self.net).item()}
        self.history.append(row | {"seconds": seconds})
        self._watch_peaks(epoch, row)
        self._measure(epoch)

    def _batch(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        train = self.data.train
        x = self.data.normalise(train.images[index])
        if self.recipe.augment != "none":
            seed = mixed_seed(self.recipe.seed, epoch, int(index[0]))
            x = augment(
                x,
                pad=max(1, x.shape[-1] // 8),  # 4 pixels at 32x32, as in the papers
                flip=self.recipe.augment == "crop_flip",
                generator=torch.Generator().manual_seed(seed),
            )
        return x, train.labels[index]

    def _validate(self) -> dict[str, float]:
        test = self.data.test
        if not len(test):
            return {"val_loss": math.nan, "val_accuracy": math.nan}
        logits = predict(self.net, self.data, test.images)
        return {
            "val_loss": F.cross_entropy(logits, test.labels).item(),
            "val_accuracy": (logits.argmax(1) == test.labels).float().mean().item(),
        }

    def _watch_peaks(self, epoch: int, row: dict[str, float]) -> None:
        for name, detector in self.detectors.items():
            if name in row:
                detector.update(row[name])
        if self.detectors["weight_norm"].at_best:
            self._keep("peak", epoch)
        if not row["val_loss"] >= min((r["val_loss"] for r in self.history[:-1]), default=math.inf):
            self._keep("best_val", epoch)

    def _keep(self, name: str, epoch: int) -> None:
        self.kept[name] = (epoch, copy.deepcopy(self.net.state_dict()))

    def _measure(self, epoch: int) -> None:
        if not (self.posthoc or self.measure.curvature_probes):
            return
        self.net.eval()
        if self.posthoc:
            record_pass(self.net, self.data, self.data.train, self.posthoc)
        if self.measure.curvature_probes:
            self.curvature.append(self._curvature(epoch))
        self.net.train()

    def _curvature(self, epoch: int) -> signals.Curvature:
        train, n = self.data.train, len(self.data.train)
        if epoch % self.measure.every:
            return signals.Curvature(torch.full((n,), math.nan), torch.full((n,), math.nan))
        return signals.curvature(
            self.net,
            self.data.normalise(train.images),
            train.labels,
            n_probes=self.measure.curvature_probes,
            step=self.measure.curvature_step,
            seed=mixed_seed(self.recipe.seed, epoch),
        )

    def finish(self) -> Run:
        self._keep("last", len(self.history) - 1)
        history = pd.DataFrame(self.history)
        arrays = {f"history/{k}": history[k].to_numpy() for k in history}
        n_epochs = len(history)
        if self.recorder:
            arrays |= {f"trace/{k}": v for k, v in self.recorder.trace.items()}
        else:  # a run without scores still has a trace of the right shape
            arrays["trace/loss"] = np.full((n_epochs, len(self.data.train)), np.nan, np.float32)
        if self.posthoc:
            arrays |= {f"posthoc/{k}": v for k, v in self.posthoc.trace.items()}
        if self.curvature:
            for name, column in zip(
                ("curvature", "curvature_squared"), zip(*self.curvature, strict=True), strict=True
            ):
                arrays[f"posthoc/{name}"] = torch.stack(column).numpy()
        for name, (_, state) in self.kept.items():
            arrays |= {f"checkpoint/{name}/{k}": v.numpy() for k, v in state.items()}
        meta = {
            "peaks": {name: tuple(d.peak) for name, d in self.detectors.items()},
            "checkpoints": {name: epoch for name, (epoch, _) in self.kept.items()},
        }
        return Run(self.name, self.data, arrays, meta)


def train_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    recorder: Recorder | None,
    index: Tensor,
) -> None:
    """One step of training; with a recorder, one that also leaves each sample's signals there."""
    if recorder:
        x = recorder.watch(x)
    logits = net(x)
    loss = F.cross_entropy(logits, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if recorder:
        recorder.update(index, x, logits, y)


def record_pass(net: nn.Module, data: Dataset, samples: Samples, recorder: Recorder) -> None:
    """One pass over clean samples in their order, in the mode the net is in, into a recorder."""
    for index in torch.arange(len(samples)).split(EVAL_BATCH):
        x = recorder.watch(data.normalise(samples.images[index]))
        logits = net(x)
        y = samples.labels[index]
        # The gradient by x alone: the weights keep what training left there.
        (x.grad,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
        recorder.update(index, x, logits, y)
    recorder.end_epoch()
