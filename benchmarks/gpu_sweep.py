"""Sweeps of nets on random subsets, on a GPU: part `sweep` of `gpu.py`.

Memorization of CIFAR-100 from small fast nets, beside the published one, as their number grows; and
the thousands of small nets of the digits sweep, which train together. Of the nets of CIFAR-100 only
masks and correctness are kept; a later call adds to them.
"""

import time
from dataclasses import replace
from io import BytesIO

import numpy as np
import torch
from common import interleaved
from gpu_table import Bench, Goal, OutOfTime, say
from sweep import RECIPE, one_by_one

import memlens as ml
from memlens.ensembles import subsets
from memlens.ensembles.model_ensemble import ModelEnsemble, ensemble_size, train_ensemble
from memlens.evaluation import metrics
from memlens.storage import store

KEEP = 0.7
EPOCHS = 16  # a few: more nets are worth more than better ones
BATCH = 512
COUNTS = (2, 5, 10, 20, 50, 100, 200)  # nets after which the likeness is written down for good
MODEL = "small_inception"
TOGETHER, ONE_PROCESS = 4000, 8
ROUNDS = 3
DIGITS = f"digits, {TOGETHER} MLPs"
SO_FAR = f"cifar100, {MODEL}, so far"
GOALS = [
    Goal("sweep", DIGITS, "together, a net", "s"),
    Goal("sweep", DIGITS, "one by one, a net", "s"),
    Goal("sweep", DIGITS, "times faster together", "", ">= 50"),
    Goal("sweep", DIGITS, "accuracy together, training samples left out"),
    *(
        Goal("sweep", f"cifar100, {MODEL}, {count} nets", f"memorization, {name}")
        for count in COUNTS
        for name in ("pearson", "spearman")
    ),
    Goal("sweep", SO_FAR, "nets"),
    Goal("sweep", SO_FAR, "nets an hour", "1/h"),
    Goal("sweep", SO_FAR, "memorization, pearson"),
    Goal("sweep", SO_FAR, "memorization, spearman"),
    Goal("sweep", SO_FAR, "accuracy, training samples left out"),
]


def digits(bench: Bench) -> None:
    """Thousands of small nets together against a few one by one, all on the GPU."""
    data, n, alone = ml.load("digits"), bench.less(TOGETHER, 12), bench.less(ONE_PROCESS, 2)
    config = replace(RECIPE, device="auto", epochs=bench.less(RECIPE.epochs, 2))
    masks, seeds = subsets.subset_masks(n, len(data.train), KEEP), np.arange(n)
    stacks = np.array_split(
        seeds, -(-n // ensemble_size("mlp", data, config, subsets.CPU_ENSEMBLE_SIZE))
    )
    right: list[np.ndarray] = []

    def together() -> None:
        right.clear()
        for stack in stacks:
            ensemble = ModelEnsemble.build("mlp", data, stack)
            train_ensemble(ensemble, data, masks[stack], config, stack)
            guesses = ensemble.predict(data).argmax(2).cpu()
            right.append((guesses == data.train.labels).numpy())

    variants = {
        "together": together,
        "alone": lambda: one_by_one(data, masks[:alone], seeds[:alone], config),
    }
    seconds = interleaved(variants, bench.less(ROUNDS, 1), warmup=1, until=bench.until)
    seconds = seconds / [n, alone]
    add = lambda name, value, note="": bench.table.add(  # noqa: E731
        "sweep", DIGITS, name, value, epochs=config.epochs, note=note
    )
    stated = f"median of {len(seconds)} rounds"
    add("together, a net", seconds["together"].median(), f"{n} nets, {stated}")
    add("one by one, a net", seconds["alone"].median(), f"{alone} nets, {stated}")
    add("times faster together", (seconds["alone"] / seconds["together"]).median())
    left_out = np.concatenate(right)[~masks].mean()
    add("accuracy together, training samples left out", float(left_out))


class Answers:
    """Membership and correctness of each network and sample, (n_nets, n_samples) uint8 each."""

    def __init__(self, bench: Bench, n_samples: int) -> None:
        self.path = bench.work / "sweep.npz"
        empty = np.zeros((0, n_samples), np.uint8)
        self.masks, self.correct, self.seconds = empty, empty, np.zeros(0)
        if self.path.exists():
            with np.load(self.path) as kept:
                self.masks, self.correct = kept["masks"], kept["correct"]
                self.seconds = kept["seconds"]

    def __len__(self) -> int:
        return len(self.masks)

    def add(self, mask: np.ndarray, correct: np.ndarray, seconds: float) -> None:
        """Keep the answers of one more net, and write all of them."""
        self.masks = np.concatenate([self.masks, mask[None].astype(np.uint8)])
        self.correct = np.concatenate([self.correct, correct[None].astype(np.uint8)])
        self.seconds = np.append(self.seconds, seconds)
        buffer = BytesIO()
        kept = {"masks": self.masks, "correct": self.correct, "seconds": self.seconds}
        np.savez_compressed(buffer, **kept)
        store.write_atomic(self.path, buffer.getvalue())


def cifar(bench: Bench) -> None:
    """Net after net, until there are enough or the time is up."""
    data = bench.data
    truth, predictions = bench.published(data), Answers(bench, len(data.train))
    epochs, most = bench.less(EPOCHS, 2), bench.less(COUNTS[-1], 3)
    config = bench.config(epochs=epochs, batch_size=BATCH)
    last = 0.0
    while len(predictions) < most:
        if time.perf_counter() + last > bench.until:
            raise OutOfTime(f"{len(predictions)} of {most} nets are done")
        start, number = time.perf_counter(), len(predictions)
        ensemble = ModelEnsemble.build(bench.model(MODEL), data, [number])
        mask = subsets.subset_masks(number + 1, len(data.train), KEEP)[-1]
        train_ensemble(ensemble, data, mask[None], config, [number])
        right = (ensemble.predict(data)[0].argmax(1).cpu() == data.train.labels).numpy()
        last = time.perf_counter() - start
        predictions.add(mask, right, last)
        tell(bench, predictions, truth, epochs)


def tell(bench: Bench, predictions: Answers, truth: np.ndarray, epochs: int) -> None:
    """Write the results of the networks so far into the table."""
    masks, correct, n = (
        predictions.masks.astype(bool),
        predictions.correct.astype(bool),
        len(predictions),
    )
    out = correct[~masks].mean()
    # The first net of a call compiles: the median of several does not see it.
    note = f"keep {KEEP}, batch {BATCH}, median {np.median(predictions.seconds):.3g} s a net"
    say(f"  net {n}: {predictions.seconds[-1]:.1f} s")
    add = lambda case, name, value: bench.table.add(  # noqa: E731
        "sweep", case, name, value, epochs=epochs, note=note
    )
    add(SO_FAR, "nets", n)
    add(SO_FAR, "nets an hour", 3600 / np.median(predictions.seconds))
    add(SO_FAR, "accuracy, training samples left out", float(out))
    ours = subsets.subset_memorization(masks, correct)["memorization"].to_numpy()
    known = ~np.isnan(ours) & ~np.isnan(truth)
    if known.sum() < 3:  # of one net, no sample was both in and out
        return
    cases = [SO_FAR, *([f"cifar100, {MODEL}, {n} nets"] if n in COUNTS else [])]
    for name in ("pearson", "spearman"):
        value = getattr(metrics, name)(ours[known], truth[known])
        for case in cases:
            add(case, f"memorization, {name}", value)


def run(bench: Bench) -> None:
    """Digits first, which take seconds; then as many nets of CIFAR-100 as there is time for."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if bench.attempt("sweep", DIGITS, lambda: digits(bench)):
        bench.attempt("sweep", SO_FAR, lambda: cifar(bench))
