"""The audit: one training on all images, and cross-validation.

The network trained on all images gives the memorization scores. Cross-validation gives each image a
prediction from a network trained without it and its duplicates; a network that has memorized a
wrong label would confirm it. Each training is stored when it is finished, so an interrupted audit
resumes with the next one.
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
from memlens.training.posthoc import predict
from memlens.training.progress import Watch
from memlens.training.runs import Run, history_of

PLANTED = 0.05  # share of the labels of each class that are flipped for a calibration
MAX_PRODUCTS = 5e13  # products of pixels, minutes of work: above, near duplicates are not searched

# (name of a training, its number, number of trainings) -> callback after each epoch of it
WatchFactory = Callable[[str, int, int], Watch]


@dataclass(frozen=True)
class AuditResult:
    """The findings of an audit.

    Attributes
    ----------
    audit_data : AuditData
    config : AuditConfig
    run : Run
        The training on all images.
    histories : tuple of DataFrame
        Of the trainings without a fold; ``val_loss`` and ``val_accuracy`` are those of the fold.
    in_sample : ndarray (n_samples, n_classes)
        Probabilities from the network trained on all images.
    held_out : ndarray (n_samples, n_classes)
        Probabilities from networks trained without the sample and its duplicates; NaN for classes
        that are too small.
    pairs : DataFrame
        Duplicates as in `duplicates.find`, with file_a and file_b.
    searched_near : bool
        False if only exact duplicates were searched.
    calibration : DataFrame or None
        `findings.precision` measured on planted flips.
    """

    audit_data: AuditData
    config: AuditConfig
    run: Run
    histories: tuple[pd.DataFrame, ...]
    in_sample: np.ndarray
    held_out: np.ndarray
    pairs: pd.DataFrame
    searched_near: bool
    calibration: pd.DataFrame | None = None

    def __repr__(self) -> str:
        data, n_pairs = self.audit_data, len(self.pairs)
        return f"AuditResult({len(data):,} images of {data.name}, {n_pairs} duplicate pairs)"

    @cached_property
    def table(self) -> pd.DataFrame:
        """Return the contents of ``scores.csv``, one row per sample.

        Columns: file, label, predicted_label, p_predicted, p_label (all three held out, in [0, 1]),
        finding, evidence, memorization (p_label of the network trained on all images minus the
        held-out p_label, in [-1, 1]: a rough estimate from one pair of networks), duplicate_of,
        class_size, every score recorded during training (higher = more memorized or suspicious),
        and the rank of each score and of memorization (1 = highest).
        """
        dataset = self.audit_data.dataset
        y, names = dataset.train.labels.numpy(), np.array(dataset.class_names, dtype=object)
        rows, is_held_out = np.arange(len(y)), ~np.isnan(self.held_out[:, 0])
        top = np.where(is_held_out, np.nan_to_num(self.held_out).argmax(1), -1)
        table = pd.DataFrame({
            "file": self.audit_data.files,
            "label": names[y],
            "predicted_label": np.where(is_held_out, names[top], ""),
            "p_predicted": np.where(is_held_out, self.held_out[rows, top], np.nan),
            "p_label": self.held_out[rows, y],
        }, index=self.run.scores.index)  # fmt: skip
        table["memorization"] = self.in_sample[rows, y] - table["p_label"]
        table["duplicate_of"] = self._first_partners()
        table["class_size"] = np.bincount(y)[y]
        table = table.join(self.run.scores)
        for place, (name, column) in enumerate(findings.suggest(table).items(), start=5):
            table.insert(place, name, column)
        ranks = table[["memorization", *self.run.scores]].rank(ascending=False, method="min")
        return table.join(ranks.astype("Int64").add_suffix("_rank"))

    def _first_partners(self) -> list[str]:
        """Return the file of each sample's first duplicate, or ""."""
        partners = [""] * len(self.audit_data)
        for a, b in zip(self.pairs["row_a"], self.pairs["row_b"]):
            partners[a] = partners[a] or self.audit_data.files[b]
            partners[b] = partners[b] or self.audit_data.files[a]
        return partners

    @cached_property
    def suspects(self) -> pd.DataFrame:
        """Return the rows of `table` that are suggested as mislabelled, most suspicious first."""
        return findings.sort_suspects(self.table)


class Audit:
    """The trainings of an audit, finished or not.

    Parameters
    ----------
    audit_data : AuditData
    config : AuditConfig, optional
        By default from `choose_config`.
    cache : Store, optional
        Where trainings are stored; by default `store.cache_dir`.
    calibrate : bool
        Measure the precision of the suggestions on a copy of the data with planted flips. This
        doubles the time.

    Attributes
    ----------
    keys : list of str
        Of the trainings that `run` has finished, in the order of `jobs`.

    Raises
    ------
    ValueError
        If a calibration is requested and every class is too small for a flip.
    """

    def __init__(
        self,
        audit_data: AuditData,
        config: AuditConfig | None = None,
        *,
        cache: store.Store | None = None,
        calibrate: bool = False,
    ) -> None:
        self.audit_data = audit_data
        self.config = config or choose_config(audit_data.dataset)
        self.cache = cache or store.Store()
        images = audit_data.dataset.train.images
        n, d = len(images), images[0].numel()
        free = devices.free_memory(torch.device("cpu"))
        self.search_near = n * n * d <= MAX_PRODUCTS and 16 * n * d <= free
        self.pairs = _find_pairs(audit_data, self.search_near)
        self.groups = duplicates.groups(self.pairs) if len(self.pairs) else []
        self.flipped = self._flip_labels() if calibrate else None
        self.keys: list[str] = []

    def _flip_labels(self) -> Dataset:
        """Return a copy with flipped labels; samples with duplicates keep theirs."""
        original, seed = self.audit_data.dataset, self.config.train_config.seed
        flipped = original.with_noise(PLANTED, seed=seed, per_class=True)
        labels = flipped.train.labels.clone()
        for group in self.groups:
            rows = torch.tensor(group.tolist())
            labels[rows] = original.train.labels[rows]
        if torch.equal(labels, original.train.labels):
            raise ValueError(
                f"no class has {round(1 / PLANTED)} images without duplicates, the minimum for a "
                "flipped label: run the audit without a calibration"
            )
        return replace(flipped, train=replace(flipped.train, labels=labels))

    def jobs(self) -> Iterator[Job]:
        """Yield all trainings, in order."""
        for data in filter(None, (self.audit_data.dataset, self.flipped)):
            yield from self.config.jobs(data, self.groups)

    def missing(self) -> tuple[int, int]:
        """Return the number of unfinished trainings, and of the samples they process in all."""
        sizes = [len(job.data.train) for job in self.jobs() if job.key not in self.cache]
        return len(sizes), sum(sizes) * self.config.train_config.epochs

    def run(self, watch: WatchFactory | None = None) -> AuditResult:
        """Run the trainings that are not finished, and return the findings."""
        watch, self.keys = watch or (lambda *_: None), []
        n_datasets, per_dataset = 1 if self.flipped is None else 2, 1 + self.config.n_folds
        for number, job in enumerate(self.jobs()):
            which, fold = divmod(number, per_dataset)
            name = ("your images", "flipped labels")[which]
            name += f", all but fold {fold} of {self.config.n_folds}" if fold else ""
            callback = watch(name, number + 1, n_datasets * per_dataset)
            (run,) = train_many([job], n_jobs=1, cache=self.cache, watch=callback)
            self._store_predictions(job, run, job.data.test if fold else job.data.train)
            self.keys.append(job.key)
        return self.load(self.keys)

    def _store_predictions(self, job: Job, run: Run, samples: Samples) -> None:
        """Store the predictions of the network at the end of its training."""
        key = _predictions_key(job.key)
        if not len(samples) or self.cache.get(key) is not None:
            return
        net = run.snapshot("last", device=job.config.device)
        logits = predict(net, job.data, samples).double()
        self.cache.put(key, store.Artifact({"probability": logits.softmax(1).cpu().numpy()}, {}))

    def load(self, keys: Sequence[str]) -> AuditResult:
        """Return the findings of finished trainings, from their keys in the order of `jobs`.

        Raises
        ------
        ValueError
            If a training is missing or damaged.
        """
        n = 1 + self.config.n_folds
        result = self._load(self.audit_data.dataset, keys[:n])
        if self.flipped is None:
            return result
        with_flips = self._load(self.flipped, keys[n:])
        planted = pd.Series(self.flipped.train.is_noisy.numpy(), with_flips.table.index)
        suspect = findings.mislabelled(result.table)
        precision = findings.precision(with_flips.table, planted, suspect)
        return replace(result, calibration=precision)

    def _load(self, dataset: Dataset, keys: Sequence[str]) -> AuditResult:
        held_out, histories = np.full((len(dataset.train), dataset.n_classes), np.nan), []
        whole = self._artifact(keys[0])
        run = Run(self.config.model, dataset, whole.arrays, whole.meta)
        in_sample = self._artifact(_predictions_key(keys[0])).arrays["probability"]
        masks = folds(dataset, self.groups, self.config.n_folds)
        for mask, key in zip(masks, keys[1:], strict=True):
            if mask.any():
                predictions = self._artifact(_predictions_key(key))
                held_out[mask] = predictions.arrays["probability"]
            histories.append(history_of(self._artifact(key).arrays))
        audit_data = replace(self.audit_data, dataset=dataset)
        return AuditResult(
            audit_data, self.config, run, tuple(histories), in_sample, held_out, self.pairs,
            self.search_near,
        )  # fmt: skip

    def _artifact(self, key: str) -> store.Artifact:
        artifact = self.cache.get(key)
        if artifact is None:
            raise ValueError(
                f"{self.cache.folder} has no finished training {key}: run the audit again, which "
                "trains only what is missing"
            )
        return artifact


def _predictions_key(key: str) -> str:
    return key.replace("run-", "predictions-", 1)


def run_audit(
    audit_data: AuditData,
    config: AuditConfig | None = None,
    *,
    cache: store.Store | None = None,
    calibrate: bool = False,
    watch: WatchFactory | None = None,
) -> AuditResult:
    """Run an audit, or resume an interrupted one.

    Parameters
    ----------
    audit_data : AuditData
        From `load_audit_data`.
    config : AuditConfig, optional
        By default from `choose_config`.
    cache : Store, optional
        Where trainings are stored; by default `store.cache_dir`.
    calibrate : bool
        Measure the precision of the suggestions on planted flips; twice the time.
    watch : callable, optional
        Called as (name of a training, its number, number of trainings); returns a callback that
        gets a row of the history after each epoch, see `Progress`.

    Returns
    -------
    AuditResult
        Its ``table`` has the scores and findings of every sample.

    Raises
    ------
    ValueError
        If a calibration is requested and every class is too small for a flip.

    Examples
    --------
    >>> import pathlib, tempfile, memlens as ml
    >>> from memlens.audit.config import choose_config
    >>> digits, folder = ml.load("digits").subset(60), pathlib.Path(tempfile.mkdtemp())
    >>> np.savez(folder / "digits.npz", x=digits.train.images[:, 0], y=digits.train.labels)
    >>> audit_data = ml.load_audit_data(folder / "digits.npz")
    >>> config = choose_config(audit_data.dataset, model="mlp", epochs=1, device="cpu")
    >>> result = ml.run_audit(audit_data, config, cache=store.Store(folder))
    >>> result.table.columns[:5].tolist()
    ['file', 'label', 'predicted_label', 'p_predicted', 'p_label']
    """
    return Audit(audit_data, config, cache=cache, calibrate=calibrate).run(watch)


def _find_pairs(audit_data: AuditData, near: bool) -> pd.DataFrame:
    pairs = duplicates.find(audit_data.dataset.train, near=near)
    for place, end in enumerate("ab"):
        files = [audit_data.files[row] for row in pairs[f"row_{end}"]]
        pairs.insert(place, f"file_{end}", files)
    return pairs
