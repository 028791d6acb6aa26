"""``memlens train``: one training with a profile's config, on one device or several.

Under ``torchrun`` several processes train one network; otherwise one process does. The result is
cached, and an interrupted training resumes from its last checkpoint.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from memlens.data.folders import folder_dataset
from memlens.data.imagesets import load
from memlens.data.samples import Dataset
from memlens.experiments.profiles import Profile, get_profile
from memlens.storage import store
from memlens.storage.checkpoints import TrainingCheckpoint
from memlens.training.config import MeasureConfig
from memlens.training.distributed import ProcessGroup, process_group, train_in_group
from memlens.training.jobs import Job, described, train_many
from memlens.training.runs import Run

RESIZE = 8 / 7  # shorter side before the crop, over the side of the crop: 256 for 224


def make_job(
    profile: str = "fashion_small",
    *,
    data: str | None = None,
    root: Path | None = None,
    size: int | None = None,
    n_samples: int | None = None,
    model: str | None = None,
    measured: bool = False,
    **changes: Any,
) -> Job:
    """Return a training job with a profile's config and changes to it.

    Parameters
    ----------
    profile : str
        A name from `profiles.PROFILES`.
    data : str, optional
        An image set other than the profile's, by its name in `imagesets.load`.
    root : Path, optional
        A folder of images, with ``train/<class>/`` and ``val/<class>/``.
    size : int, optional
        Side in pixels of a folder's images, by default 224.
    n_samples : int, optional
        Training samples to use, the same share of every class.
    model : str, optional
        A network other than the profile's, from `registry.MODELS`.
    measured : bool
        Record the post-hoc signals of the notebooks, after each epoch.
    **changes
        Changes to the config; those that are None are ignored. If the batch size changes and the
        learning rate is not given, the rate is scaled with the batch size (Goyal et al. 2017).

    Raises
    ------
    ValueError, FileNotFoundError
        For an unknown name, missing files, or an invalid config.
    """
    chosen = get_profile(profile)
    changes = {name: value for name, value in changes.items() if value is not None}
    if "batch_size" in changes and "lr" not in changes:
        changes["lr"] = chosen.config.lr * changes["batch_size"] / chosen.config.batch_size
    dataset = _load(chosen, data or chosen.dataset, root, size)
    if n_samples is not None:
        dataset = dataset.subset(n_samples)
    measure = chosen.measure if measured else MeasureConfig()
    return Job(model or chosen.model, dataset, replace(chosen.config, **changes), measure)


def _load(profile: Profile, name: str, root: Path | None, size: int | None) -> Dataset:
    if root is None and size is not None:
        raise ValueError(f"size={size} applies to images of a folder only; pass its root")
    if root is None or (name == "imagenet" and size is None):
        return profile.load(root) if name == profile.dataset else load(name, root=root)
    side = 224 if size is None else size
    return folder_dataset(Path(root).name, root, size=side, resize=round(side * RESIZE))


def train_here(
    job: Job, *, own_statistics: bool = False, log: Callable[[str], Any] = print
) -> Run | None:
    """Train a job in the processes that ``torchrun`` started, or load its run from the cache.

    Parameters
    ----------
    job : Job
    own_statistics : bool
        On CPUs, let each process use the batch norm statistics of its share, as in
        `distributed.ProcessGroup`.
    log : callable
        Called in the first process with a line of text that describes the training.

    Returns
    -------
    Run or None
        None in all processes but the first.
    """
    with process_group(job.config, own_statistics=own_statistics) as group:
        if group is None:
            log(_summary(job))
            return train_many([job], n_jobs=1)[0]
        if group.rank == 0:
            log(_summary(job, group.world_size))
        return _train_together(job, group, store.Store())


def _summary(job: Job, n_processes: int = 1) -> str:
    config, n = job.config, len(job.data.train)
    each = f", in {n_processes} processes" if n_processes > 1 else ""
    return (
        f"{job.model} on {n:,} samples of {job.data.name}, {config.epochs} epochs, batches of "
        f"{config.batch_size}{each}, learning rate {config.lr:g}, {config.engine().device.type}"
    )


def _train_together(job: Job, group: ProcessGroup, cache: store.Store) -> Run | None:
    # Only one process computes the key, because it visits every file of a folder.
    first = group.rank == 0
    key = group.broadcast(group_key(job, group) if first else None)
    artifact = cache.get(key) if first else None
    if not group.broadcast(artifact is not None):
        with _claimed(key, group, cache):
            artifact = cache.get(key) if first else None  # finished by another call meanwhile
            if not group.broadcast(artifact is not None):
                artifact = _trained(key, job, group, cache)
    if not first:
        return None
    cache.tidy(key)
    return Run(job.model, job.data, artifact.arrays, artifact.meta)


@contextmanager
def _claimed(key: str, group: ProcessGroup, cache: store.Store) -> Iterator[None]:
    """Claim the artifact in the first process, while the others wait.

    The first process keeps sending messages, because the others fail after a long silence.
    """
    if group.rank:
        while not group.broadcast(None):
            pass
        yield
    else:
        with cache.claim(key, meanwhile=lambda: group.broadcast(False)):
            group.broadcast(True)
            yield


def _trained(key: str, job: Job, group: ProcessGroup, cache: store.Store) -> store.Artifact | None:
    checkpoint = TrainingCheckpoint.of(cache, key)
    run = train_in_group(group, job.model, job.data, job.config, job.measure, checkpoint=checkpoint)
    if group.rank:
        return None
    text = f"{described(job.model, job.data, job.config)}, {group.world_size} processes"
    artifact = store.Artifact(run.arrays, run.meta, text, checkpoint.seconds)
    cache.put(key, artifact)
    checkpoint.discard()
    return artifact


def group_key(job: Job, group: ProcessGroup) -> str:
    """Return the cache key; the number of processes is part of it, because it affects rounding."""
    return f"run-{store.fingerprint([job.key, group.world_size, group.own_statistics])}"


def write_tables(run: Run, out: Path) -> None:
    """Write ``scores.csv`` and ``history.csv`` of a run to a folder."""
    for name, table, index in (("scores", run.scores, True), ("history", run.history, False)):
        store.write_atomic(out / f"{name}.csv", table.to_csv(index=index).encode())
