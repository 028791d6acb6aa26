"""Your own data, scored: one training, a few more that leave samples out, and what they say.

The net that trains on everything gives the memorization scores. Nets that train on all but a fold
say of every sample what a net makes of it that never saw it: without that, a net which has
memorized a wrong label would confirm it. All of them are kept as they are finished, so that a call
after an interruption goes on where the last one stopped.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedKFold

from memlens import devices, duplicates, forecast, models, readings, store
from memlens.data import Dataset
from memlens.jobs import Job, train_many
from memlens.owndata import Own
from memlens.recipes import Measure, Recipe
from memlens.runs import Run
from memlens.training import Watch, predict, train

N_FOLDS = 3
STEPS = 2_000  # of a training, about: fewer do not fit even easy data
EPOCHS = (30, 100)  # at least and at most, whatever the steps
BATCH = 64
WEIGHT_DECAY = 1e-3  # strong enough that the weight norm peaks well within the epochs
PLANTED = 0.05  # share of the labels flipped for a calibration
WIDE = 4_000_000_000  # bytes of pixels as floats: of more no near duplicates are looked for
CLASSES_TIMED = 512  # samples, at least, whose training is timed


@dataclass(frozen=True)
class Plan:
    """What is trained: a net by name, its recipe, and in how many folds once more."""

    model: str
    recipe: Recipe
    n_folds: int = N_FOLDS

    def jobs(self, data: Dataset) -> list[Job]:
        """The training on everything, then one that leaves out each fold."""
        parts = [data, *(_without(data, fold) for fold in folds(data, self.n_folds))]
        return [Job(self.model, part, self.recipe) for part in parts]


def plan_for(
    data: Dataset,
    *,
    model: str | None = None,
    epochs: int | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Plan:
    """A plan that suits the images, their number and this machine.

    Parameters
    ----------
    model : str, optional
        A name from ``models.MODELS``; by default a ResNet-18 on a GPU, and elsewhere a small
        convolutional net (`models.strided_cnn`).
    epochs : int, optional
        At most so many: training stops when the weight norm has peaked.
    device : "auto", "cpu", "cuda", ...
    seed : int

    Raises
    ------
    ValueError
        If the model is unknown or cannot take such images, or the device is not there.
    MemoryError
        If not even the smallest batch fits.
    """
    place = devices.resolve(device)
    gpu = place.type == "cuda"
    n = len(data.train)
    model = model or ("resnet18" if gpu and min(data.in_shape[1:]) >= 24 else "strided_cnn")
    batch = min(BATCH, n // 2)
    if epochs is None:
        low, high = EPOCHS
        epochs = int(np.clip(-(-STEPS * batch // n), low, high))
    threads = None if gpu else os.cpu_count()
    fast = {"precision": "auto", "channels_last": None} if gpu else {}
    recipe = Recipe(
        epochs, batch, weight_decay=WEIGHT_DECAY, seed=seed, stop="weight_norm",
        threads=threads, device=str(place), **fast,
    )  # fmt: skip
    return Plan(model, _that_fits(model, data, recipe))


def _that_fits(model: str, data: Dataset, recipe: Recipe) -> Recipe:
    """The recipe, its batch halved until the training fits in memory."""
    net = models.build(model, data.n_classes, data.in_shape)
    x = torch.zeros(1, *data.in_shape)
    net, x = net.to(recipe.engine().device), x.to(recipe.engine().device)
    while True:
        try:
            forecast.check_memory(net, x, data, recipe, Measure())
            return recipe
        except MemoryError:
            if recipe.batch_size <= 8:
                raise
            recipe = replace(recipe, batch_size=recipe.batch_size // 2)


def folds(data: Dataset, n_folds: int = N_FOLDS, *, seed: int = 0) -> list[np.ndarray]:
    """Masks (n_samples,) of the samples that each fold leaves out, stratified by class.

    Samples of a class with fewer than ``n_folds`` are in no fold: without them the class would be
    unknown.
    """
    y = data.train.labels.numpy()
    judged = np.flatnonzero(np.bincount(y)[y] >= n_folds)
    if not judged.size:
        raise ValueError(
            f"no class of {data.name} has {n_folds} images; merge classes or add images"
        )
    splits = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(judged, y[judged])
    return [np.isin(np.arange(len(y)), judged[out]) for _, out in splits]


def _without(data: Dataset, fold: np.ndarray) -> Dataset:
    """The data without a fold, which becomes the test samples."""
    out = torch.as_tensor(fold)
    return replace(data, train=data.train[~out], test=data.train[out])


def seconds_of(plan: Plan, data: Dataset) -> float:
    """About how long the plan takes if no training stops early, from an epoch on a few samples."""
    n = min(len(data.train), max(CLASSES_TIMED, 2 * data.n_classes, 2 * plan.recipe.batch_size))
    few = data.subset(n) if n < len(data.train) else data
    run = train(plan.model, few, replace(plan.recipe, epochs=2, stop=None), watch=lambda _: None)
    per_sample = run.history["seconds"].iloc[-1] / n
    trainings = 1 + (plan.n_folds - 1 if plan.n_folds else 0)  # each fold leaves out its share
    return per_sample * len(data.train) * plan.recipe.epochs * trainings


@dataclass(frozen=True)
class Scored:
    """What was found out about data of your own.

    Attributes
    ----------
    own : Own
    plan : Plan
    run : Run, the training on everything
    fold_runs : tuple of Run, the trainings that left out a fold each (their ``test`` samples)
    pairs : DataFrame, duplicates as `duplicates.find` gives them, with file_a and file_b
    calibration : DataFrame or None, what `readings.precision` measured on planted flips
    """

    own: Own
    plan: Plan
    run: Run
    fold_runs: tuple[Run, ...]
    pairs: pd.DataFrame
    calibration: pd.DataFrame | None = None

    @cached_property
    def held_out(self) -> np.ndarray:
        """What nets that never saw a sample make of it: (n_samples, n_classes), NaN if none did."""
        probability = np.full((len(self.own), self.own.data.n_classes), np.nan)
        position = {int(i): row for row, i in enumerate(self.own.data.train.index)}
        for run in self.fold_runs:
            test = run.data.test
            logits = predict(run.checkpoint("last"), run.data, test)
            rows = [position[int(i)] for i in test.index]
            probability[rows] = logits.double().softmax(1).numpy()
        return probability

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row a sample, by its index: what ``scores.csv`` holds.

        file, label, predicted_label, p_predicted, p_label (held out), reading, evidence,
        memorization (what training on it adds to the probability of its label: one net with it
        against one without, so a rough estimate), duplicate_of, class_size, then every in-step
        score and its rank (1 = highest).
        """
        data, y = self.own.data, self.own.data.train.labels.numpy()
        names = np.array(data.class_names, dtype=object)
        rows = np.arange(len(y))
        judged = ~np.isnan(self.held_out[:, 0])
        top = np.where(judged, np.nan_to_num(self.held_out).argmax(1), -1)
        inside = predict(self.run.checkpoint("last"), data, data.train).double().softmax(1).numpy()
        table = pd.DataFrame({
            "file": self.own.files,
            "label": names[y],
            "predicted_label": np.where(judged, names[top], ""),
            "p_predicted": np.where(judged, self.held_out[rows, top], np.nan),
            "p_label": self.held_out[rows, y],
        }, index=self.run.scores.index)  # fmt: skip
        table["memorization"] = inside[rows, y] - table["p_label"]
        table["duplicate_of"] = self._partners()
        table["class_size"] = np.bincount(y)[y]
        table = table.join(self.run.scores)
        told = readings.suggest(table)
        for place, column in enumerate(told, start=5):
            table.insert(place, column, told[column])
        ranks = self.run.scores.rank(ascending=False, method="min").astype(int)
        return table.join(ranks.add_suffix("_rank"))

    def _partners(self) -> list[str]:
        """Of each sample the file of the first one it looks like, or ""."""
        partners = [""] * len(self.own)
        for a, b in zip(self.pairs["row_a"], self.pairs["row_b"]):
            for one, other in ((a, b), (b, a)):
                partners[one] = partners[one] or self.own.files[other]
        return partners

    @property
    def suspects(self) -> pd.DataFrame:
        """The rows of the table read as mislabelled, the most suspicious first."""
        return readings.in_order(self.table)


def score(
    own: Own,
    plan: Plan | None = None,
    *,
    shelf: store.Store | None = None,
    calibrate: bool = False,
    watch: Callable[[str, int, int], Watch] | None = None,
) -> Scored:
    """Train as planned, or go on where an earlier call stopped, and put together what was found.

    Parameters
    ----------
    own : Own
    plan : Plan, optional
        By default `plan_for`.
    shelf : Store, optional
        Where trainings are kept; by default the cache.
    calibrate : bool
        Whether to plant flips in a copy of the data, score that as well, and measure how often the
        suggestions are right. It doubles the time.
    watch : callable, optional
        (what, number, of how many) -> what is told of each epoch of that training.
    """
    plan = plan or plan_for(own.data)
    n_trainings = (1 + plan.n_folds) * (1 + calibrate)
    told = Told(watch, n_trainings)
    runs = _trained(plan, own.data, shelf, told, ("your data", "all but fold"))
    scored = Scored(own, plan, runs[0], tuple(runs[1:]), _pairs(own, runs[0]))
    if not calibrate:
        return scored
    flipped = own.data.with_noise(PLANTED, seed=plan.recipe.seed)
    runs = _trained(plan, flipped, shelf, told, ("planted flips", "planted, all but fold"))
    twin = Scored(replace(own, data=flipped), plan, runs[0], tuple(runs[1:]), scored.pairs)
    planted = pd.Series(flipped.train.is_noisy.numpy(), twin.table.index)
    known = readings.mislabelled(scored.table)
    return replace(scored, calibration=readings.precision(twin.table, planted, known))


class Told:
    """Hands the watcher of each training its name and number."""

    def __init__(self, watch: Callable[[str, int, int], Watch] | None, n: int) -> None:
        self.watch, self.n, self.number = watch, n, 0

    def next(self, what: str) -> Watch | None:
        """The watcher of the next training."""
        self.number += 1
        return self.watch and self.watch(what, self.number, self.n)


def _trained(
    plan: Plan, data: Dataset, shelf: store.Store | None, told: Told, names: Sequence[str]
) -> list[Run]:
    runs = []
    for k, job in enumerate(plan.jobs(data)):
        watch = told.next(f"{names[1]} {k} of {plan.n_folds}" if k else names[0])
        runs += train_many([job], n_jobs=1, shelf=shelf, watch=watch)
    return runs


def _pairs(own: Own, run: Run) -> pd.DataFrame:
    near = 4 * own.data.train.images.numel() <= WIDE
    pairs = duplicates.find(own.data.train, scores=run.scores["aum"], near=near)
    for end in "ab":
        files = [own.files[row] for row in pairs[f"row_{end}"]]
        pairs.insert(0 if end == "a" else 1, f"file_{end}", files)
    return pairs
