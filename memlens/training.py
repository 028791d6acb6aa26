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
from memlens.data import Dataset, augment
from memlens.probes import EVAL_BATCH, Probes
from memlens.recipes import OPTIMIZERS, Measure, Recipe, ascended, mixed_seed
from memlens.recorder import Recorder
from memlens.runs import Run
from memlens.stopping import PEAKS, PeakDetector


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
        self.name, self.data, self.recipe = model, data, recipe
        self.net = models.build(model, data.n_classes, data.in_shape, seed=recipe.seed).train()
        self.optimizer = OPTIMIZERS[recipe.optimizer](self.net.parameters(), recipe)
        self.recorder = Recorder(len(data.train)) if record else None
        self.probes = Probes(data, measure, recipe.seed) if measure.posthoc else None
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
            batch = self._batch(index, epoch)
            rho = self.recipe.sam_rho
            train_step(self.net, self.optimizer, *batch, self.recorder, index, rho)
        row = {"epoch": epoch, "lr": self.recipe.lr_at(epoch)}
        if self.recorder:
            means = self.recorder.end_epoch()
            row |= {"train_loss": means["loss"], "input_gradient": means["grad_l2"]}
            row["train_accuracy"] = float((self.recorder.last("margin") > 0).float().mean())
        seconds = time.perf_counter() - start
        row |= self._validate() | {"weight_norm": signals.weight_norm(self.net).item()}
        self.history.append(row | {"seconds": seconds})
        self._watch_peaks(epoch, row)
        if self.probes:
            self.probes.after_epoch(self.net, epoch)

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
    sam_rho: float = 0.0,
) -> None:
    """One step of training; with a recorder, one that also leaves each sample's signals there.

    With ``sam_rho`` the weights move by the gradient at the worst point nearby; what is recorded
    belongs to the weights as they were.
    """
    if recorder:
        x = recorder.watch(x)
    logits = net(x)
    loss = F.cross_entropy(logits, y)
    optimizer.zero_grad()
    loss.backward()
    if sam_rho:
        with ascended(list(net.parameters()), sam_rho):
            F.cross_entropy(net(x.detach()), y).backward()
    optimizer.step()
    if recorder:
        recorder.update(index, x, logits, y)
