"""``memlens train``: one training by a profile's config, on one device or on many.

Started by ``torchrun``, its processes train one net together; by itself it is one process. What it
leaves is in the store either way, and a call that was interrupted goes on from its last checkpoint.
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

RESIZE = 8 / 7  # the shorter side before the cut, over that of the cut: 256 for 224


def make_job(
    profile: str = "digits",
    *,
    data: str | None = None,
    root: Path | None = None,
    size: int | None = None,
    n_samples: int | None = None,
    model: str | None = None,
    measured: bool = False,
    **changes: Any,
) -> Job:
    """A training by a profile's config, with changes.

    Parameters
    ----------
    profile : str, a name from `profiles.PROFILES`
    data : str, optional
        Another image set than the profile's, as `imagesets.load` knows it.
    root : Path, optional
        A folder of images, with ``train/<class>/`` and ``val/<class>/``.
    size : int, optional
        Side in pixels of a folder's images, by default 224.
    n_samples : int, optional
        Training samples to take, the same share of every class.
    model : str, optional
        Another net, from `models.MODELS`.
    measured : bool
        Whether what the notebooks measure after each epoch is measured, too.
    **changes
        Of the config; those that are None are left out. With another batch size and no rate, the
        learning rate grows in proportion to the batch (Goyal et al. 2017).

    Raises
    ------
    ValueError, FileNotFoundError
        For an unknown name, or what the data's loader and `TrainConfig` refuse.
    """
    found = get_profile(profile)
    changes = {name: value for name, value in changes.items() if value is not None}
    if "batch_size" in changes and "lr" not in changes:
        changes["lr"] = found.config.lr * changes["batch_size"] / found.config.batch_size
    samples = _data(found, data or found.dataset, root, size)
    if n_samples is not None:
        samples = samples.subset(n_samples)
    measure = found.measure if measured else MeasureConfig()
    return Job(model or found.model, samples, replace(found.config, **changes), measure)


def _data(profile: Profile, name: str, root: Path | None, size: int | None) -> Dataset:
    if root is None and size is not None:
        raise ValueError(f"size={size} is of the images of a folder: pass its root, too")
    if root is None or (name == "imagenet" and size is None):
        return profile.load(root) if name == profile.dataset else load(name, root=root)
    side = 224 if size is None else size
    return folder_dataset(Path(root).name, root, size=side, resize=round(side * RESIZE))


def train_here(
    job: Job, *, own_statistics: bool = False, log: Callable[[str], Any] = print
) -> Run | None:
    """Train a job in the processes that ``torchrun`` started, or find its run in the cache.

    Parameters
    ----------
    job : Job
    own_statistics : bool
        As in `distributed.ProcessGroup`: batch norm on CPUs.
    log : callable
        The first process passes it a line of text on what it trains.

    Returns
    -------
    Run
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
    # Only one process computes the key, which reads every file of a folder.
    first = group.rank == 0
    key = group.broadcast(key_of(job, group) if first else None)
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

    The first one sends them a message in every round: processes that receive none for long fail.
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
    what = f"{described(job.model, job.data, job.config)}, {group.world_size} processes"
    artifact = store.Artifact(run.arrays, run.meta, what, checkpoint.seconds)
    cache.put(key, artifact)
    checkpoint.discard()
    return artifact


def key_of(job: Job, group: ProcessGroup) -> str:
    """Return the cache key of a run, which rounding makes one of the number of processes."""
    return f"run-{store.fingerprint([job.key, group.world_size, group.own_statistics])}"


def write(run: Run, out: Path) -> None:
    """The scores and the history of a run as tables in a folder."""
    for name, table, index in (("scores", run.scores, True), ("history", run.history, False)):
        store.write_atomic(out / f"{name}.csv", table.to_csv(index=index).encode())
