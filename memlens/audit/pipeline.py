"""Your own data, scored: one training, a few more that leave samples out, and what they say.

The net that trains on everything gives the memorization scores. ModelEnsemble that train on all but a fold
say of every sample what a net makes of it that never saw it, nor a copy of it: without that, a net
which has memorized a wrong label would confirm it. All of them are kept as they are finished, so
that a call after an interruption goes on where the last one stopped.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from memlens.audit import duplicates, findings
from memlens.audit.audit_data import AuditData
from memlens.audit.config import AuditConfig, choose_config, folds
from memlens.data.samples import Dataset, Samples
from memlens.storage import store
from memlens.training import devices
from memlens.training.jobs import Job, train_many
from memlens.training.loop import Watch, predict
from memlens.training.runs import Run, history_of

PLANTED = 0.05  # share of the labels of each class that is flipped for a calibration
COMPARED = 5e13  # products of pixels, minutes of work: beyond, no near duplicates are looked for

Watcher = Callable[[str, int, int], Watch]  # (what, number, of how many) -> told of each epoch


@dataclass(frozen=True)
class AuditResult:
    """What was found out about data of your own.

    Attributes
    ----------
    own : Own
    plan : Plan
    run : Run, the training on everything
    histories : tuple of DataFrame, of the trainings that left out a fold each, whose loss and
        accuracy on it are ``val_loss`` and ``val_accuracy``
    inside : ndarray (n_samples, n_classes), probabilities by the net that trained on everything
    held_out : the same by nets that never saw the sample nor a copy; NaN where there was none
    pairs : DataFrame, duplicates as `duplicates.find` gives them, with file_a and file_b
    near : bool, whether near duplicates were looked for, and not only exact ones
    calibration : DataFrame or None, what `findings.precision` measured on planted flips
    """

    own: AuditData
    plan: AuditConfig
    run: Run
    histories: tuple[pd.DataFrame, ...]
    inside: np.ndarray
    held_out: np.ndarray
    pairs: pd.DataFrame
    near: bool
    calibration: pd.DataFrame | None = None

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row a sample, by its index: what ``scores.csv`` holds.

        file, label, predicted_label, p_predicted, p_label (held out), reading, evidence,
        memorization (what training on it adds to the probability of its label: one net with it
        against one without, so a rough estimate), duplicate_of, class_size, then every in-step
        score; and the rank of each score and of memorization (1 = highest).
        """
        data, y = self.own.data, self.own.data.train.labels.numpy()
        names = np.array(data.class_names, dtype=object)
        rows, judged = np.arange(len(y)), ~np.isnan(self.held_out[:, 0])
        top = np.where(judged, np.nan_to_num(self.held_out).argmax(1), -1)
        table = pd.DataFrame({
            "file": self.own.files,
            "label": names[y],
            "predicted_label": np.where(judged, names[top], ""),
            "p_predicted": np.where(judged, self.held_out[rows, top], np.nan),
            "p_label": self.held_out[rows, y],
        }, index=self.run.scores.index)  # fmt: skip
        table["memorization"] = self.inside[rows, y] - table["p_label"]
        table["duplicate_of"] = self._partners()
        table["class_size"] = np.bincount(y)[y]
        table = table.join(self.run.scores)
        for place, (name, column) in enumerate(findings.suggest(table).items(), start=5):
            table.insert(place, name, column)
        ranked = table[["memorization", *self.run.scores]].rank(ascending=False, method="min")
        return table.join(ranked.astype("Int64").add_suffix("_rank"))

    def _partners(self) -> list[str]:
        """Of each sample the file of the first one it looks like, or ""."""
        partners = [""] * len(self.own)
        for a, b in zip(self.pairs["row_a"], self.pairs["row_b"]):
            for one, other in ((a, b), (b, a)):
                partners[one] = partners[one] or self.own.files[other]
        return partners

    @cached_property
    def suspects(self) -> pd.DataFrame:
        """The rows of the table read as mislabelled, the most suspicious first."""
        return findings.in_order(self.table)


class Work:
    """What has to be trained for data of your own, and what of it is done.

    Parameters
    ----------
    own : Own
    plan : Plan, optional
        By default `plan_for`.
    cache : Store, optional
        Where trainings are kept; by default the cache.
    calibrate : bool
        Whether to plant flips in a copy of the data, score that as well, and measure how often the
        suggestions are right. It doubles the time.

    Raises
    ------
    ValueError
        If a calibration is asked for and no class is large enough to plant a flip in.

    Attributes
    ----------
    keys : list of str, of the trainings that `do` has done, in the order of `jobs`
    """

    def __init__(
        self,
        own: AuditData,
        plan: AuditConfig | None = None,
        *,
        cache: store.Store | None = None,
        calibrate: bool = False,
    ) -> None:
        self.own, self.plan, self.cache = (
            own,
            plan or choose_config(own.data),
            cache or store.Store(),
        )
        images = own.data.train.images
        n, d = len(images), images[0].numel()
        free = devices.free_memory(torch.device("cpu"))
        self.near = n * n * d <= COMPARED and 16 * n * d <= free
        self.pairs = _pairs(own, self.near)
        self.alike = duplicates.groups(self.pairs) if len(self.pairs) else []
        self.flipped = self._planted() if calibrate else None
        self.keys: list[str] = []

    def _planted(self) -> Dataset:
        """A copy with flips, none of them in a sample that there is another copy of."""
        flipped = self.own.data.with_noise(PLANTED, seed=self.plan.config.seed, per_class=True)
        labels = flipped.train.labels.clone()
        for group in self.alike:
            rows = torch.tensor(group.tolist())
            labels[rows] = self.own.data.train.labels[rows]
        if torch.equal(labels, self.own.data.train.labels):
            raise ValueError(
                f"no class has the {round(1 / PLANTED)} images that it takes to plant a wrong "
                "label in: score without a calibration"
            )
        return replace(flipped, train=replace(flipped.train, labels=labels))

    def jobs(self) -> Iterator[Job]:
        """All trainings, in their order."""
        for data in filter(None, (self.own.data, self.flipped)):
            yield from self.plan.jobs(data, self.alike)

    def missing(self) -> tuple[int, int]:
        """How many trainings are not done, and the samples that they see in all their epochs."""
        sizes = [len(job.data.train) for job in self.jobs() if job.key not in self.cache]
        return len(sizes), sum(sizes) * self.plan.config.epochs

    def do(self, watch: Watcher | None = None) -> AuditResult:
        """Train what is not done yet, and put together what was found."""
        watch, self.keys = watch or (lambda *_: None), []
        n = (1 + self.plan.n_folds) * (1 if self.flipped is None else 2)
        for number, job in enumerate(self.jobs()):
            twin, fold = divmod(number, 1 + self.plan.n_folds)
            what = ("your images", "planted flips")[twin]
            what += f", all but fold {fold} of {self.plan.n_folds}" if fold else ""
            told = watch(what, number + 1, n)
            (run,) = train_many([job], n_jobs=1, cache=self.cache, watch=told)
            self._ask(job, run, job.data.test if fold else job.data.train)
            self.keys.append(job.key)
        return self.found(self.keys)

    def _ask(self, job: Job, run: Run, samples: Samples) -> None:
        """Keep what the net, as it ended, says of samples."""
        if not len(samples) or self.cache.get(_answers_of(job.key)) is not None:
            return
        net = run.snapshot("last", device=job.config.device)
        logits = predict(net, job.data, samples).double()
        artifact = store.Artifact({"probability": logits.softmax(1).cpu().numpy()}, {})
        self.cache.put(_answers_of(job.key), artifact)

    def found(self, keys: Sequence[str]) -> AuditResult:
        """What finished trainings left, by their keys in the order of `jobs`; none is trained.

        Raises
        ------
        ValueError
            If one of them is not there, or damaged.
        """
        n = 1 + self.plan.n_folds
        scored = self._found(self.own.data, keys[:n])
        if self.flipped is None:
            return scored
        twin = self._found(self.flipped, keys[n:])
        planted = pd.Series(self.flipped.train.is_noisy.numpy(), twin.table.index)
        known = findings.mislabelled(scored.table)
        return replace(scored, calibration=findings.precision(twin.table, planted, known))

    def _found(self, data: Dataset, keys: Sequence[str]) -> AuditResult:
        held_out, histories = np.full((len(data.train), data.n_classes), np.nan), []
        whole = self._piece(keys[0])
        run = Run(self.plan.model, data, whole.arrays, whole.meta)
        inside = self._piece(_answers_of(keys[0])).arrays["probability"]
        parts = folds(data, self.alike, self.plan.n_folds)
        for fold, key in zip(parts, keys[1:], strict=True):
            if fold.any():
                held_out[fold] = self._piece(_answers_of(key)).arrays["probability"]
            histories.append(history_of(self._piece(key).arrays))
        own = replace(self.own, data=data)
        return AuditResult(
            own, self.plan, run, tuple(histories), inside, held_out, self.pairs, self.near
        )

    def _piece(self, key: str) -> store.Artifact:
        artifact = self.cache.get(key)
        if artifact is None:
            raise ValueError(
                f"{self.cache.folder} lacks the finished training {key}: score the images again, "
                "which does only what is missing"
            )
        return artifact


def _answers_of(key: str) -> str:
    return key.replace("run-", "answers-", 1)


def run_audit(
    own: AuditData,
    plan: AuditConfig | None = None,
    *,
    cache: store.Store | None = None,
    calibrate: bool = False,
    watch: Watcher | None = None,
) -> AuditResult:
    """Train as planned, or go on where an earlier call stopped, and put together what was found.

    Parameters
    ----------
    own, plan, cache, calibrate
        As `Work`.
    watch : callable, optional
        (what, number, of how many) -> what is told of each epoch of that training.
    """
    return Work(own, plan, cache=cache, calibrate=calibrate).do(watch)


def _pairs(own: AuditData, near: bool) -> pd.DataFrame:
    pairs = duplicates.find(own.data.train, near=near)
    for place, end in enumerate("ab"):
        files = [own.files[row] for row in pairs[f"row_{end}"]]
        pairs.insert(place, f"file_{end}", files)
    return pairs
