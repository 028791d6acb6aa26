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
from memlens.training.distributed import Processes, ProcessGroup, process_group
from memlens.training.jobs import Job, described, train_many
from memlens.training.loop import train
from memlens.training.runs import Run

Tell = Callable[[str], Any]
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


def train_here(job: Job, *, own_statistics: bool = False, tell: Tell = print) -> Run | None:
    """The run of a job, found in the store or trained and kept there.

    Parameters
    ----------
    job : Job
    own_statistics : bool
        As in `ranks.Group`: batch norm on CPUs.
    tell : callable
        Told by the first process what is being done.

    Returns
    -------
    Run
        None in all processes but the first.
    """
    with process_group(job.config, own_statistics=own_statistics) as processes:
        if processes.rank == 0:
            tell(_plan(job, processes))
        if not isinstance(processes, ProcessGroup):
            return train_many([job], n_jobs=1)[0]
        return _train_together(job, processes, store.Store())


def _plan(job: Job, processes: Processes) -> str:
    config, n = job.config, len(job.data.train)
    each = f", in {processes.world} processes" if processes.world > 1 else ""
    return (
        f"{job.model} on {n:,} samples of {job.data.name}, {config.epochs} epochs, batches of "
        f"{config.batch_size}{each}, learning rate {config.lr:g}, {config.engine().device.type}"
    )


def _train_together(job: Job, processes: ProcessGroup, cache: store.Store) -> Run | None:
    # One process asks: a key takes a look at every file of a folder.
    key = processes.same(None if processes.rank else key_of(job, processes))
    artifact = cache.get(key) if processes.rank == 0 else None
    if not processes.same(artifact is not None):
        with _claimed(key, processes, cache):
            artifact = cache.get(key) if processes.rank == 0 else None  # or finished meanwhile
            if not processes.same(artifact is not None):
                artifact = _trained(key, job, processes, cache)
    if processes.rank:
        return None
    cache.tidy(key)
    return Run(job.model, job.data, artifact.arrays, artifact.meta)


@contextmanager
def _claimed(key: str, processes: ProcessGroup, cache: store.Store) -> Iterator[None]:
    """The first process claims the artifact, the others wait with it.

    It tells them all the while: processes that hear nothing of each other for long give up.
    """
    if processes.rank:
        while not processes.same(None):
            pass
        yield
    else:
        with cache.claim(key, meanwhile=lambda: processes.same(False)):
            processes.same(True)
            yield


def _trained(
    key: str, job: Job, processes: ProcessGroup, cache: store.Store
) -> store.Artifact | None:
    checkpoint = TrainingCheckpoint.of(cache, key)
    run = train(
        job.model, job.data, job.config, job.measure, checkpoint=checkpoint, processes=processes
    )
    if processes.rank:
        return None
    what = f"{described(job.model, job.data, job.config)}, {processes.world} processes"
    artifact = store.Artifact(run.arrays, run.meta, what, checkpoint.seconds)
    cache.put(key, artifact)
    checkpoint.discard()
    return artifact


def key_of(job: Job, processes: ProcessGroup) -> str:
    """Name of the finished artifact: so many processes round as no other number of them does."""
    return f"run-{store.fingerprint([job.key, processes.world, processes.own_statistics])}"


def write(run: Run, out: Path) -> None:
    """The scores and the history of a run as tables in a folder."""
    for name, table, index in (("scores", run.scores, True), ("history", run.history, False)):
        store.write_atomic(out / f"{name}.csv", table.to_csv(index=index).encode())
