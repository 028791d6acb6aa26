"""``memlens train``: one training by a profile's recipe, on one device or on many.

Started by ``torchrun``, its processes train one net together; by itself it is one process. What it
leaves is in the store either way, and a call that was interrupted goes on from its last draft.
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
from memlens.storage.drafts import Draft
from memlens.training.jobs import Job, described, train_many
from memlens.training.loop import train
from memlens.training.ranks import Group, Ranks, joined
from memlens.training.recipes import Measure
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
    """A training by a profile's recipe, with changes.

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
        Of the recipe; those that are None are left out. With another batch size and no rate, the
        learning rate grows in proportion to the batch (Goyal et al. 2017).

    Raises
    ------
    ValueError, FileNotFoundError
        For an unknown name, or what the data's loader and `Recipe` refuse.
    """
    found = get_profile(profile)
    changes = {name: value for name, value in changes.items() if value is not None}
    if "batch_size" in changes and "lr" not in changes:
        changes["lr"] = found.recipe.lr * changes["batch_size"] / found.recipe.batch_size
    samples = _data(found, data or found.dataset, root, size)
    if n_samples is not None:
        samples = samples.subset(n_samples)
    measure = found.measure if measured else Measure()
    return Job(model or found.model, samples, replace(found.recipe, **changes), measure)


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
    with joined(job.recipe, own_statistics=own_statistics) as ranks:
        if ranks.rank == 0:
            tell(_plan(job, ranks))
        if not isinstance(ranks, Group):
            return train_many([job], n_jobs=1)[0]
        return _train_together(job, ranks, store.Store())


def _plan(job: Job, ranks: Ranks) -> str:
    recipe, n = job.recipe, len(job.data.train)
    each = f", in {ranks.world} processes" if ranks.world > 1 else ""
    return (
        f"{job.model} on {n:,} samples of {job.data.name}, {recipe.epochs} epochs, batches of "
        f"{recipe.batch_size}{each}, learning rate {recipe.lr:g}, {recipe.engine().device.type}"
    )


def _train_together(job: Job, ranks: Group, shelf: store.Store) -> Run | None:
    # One process asks: a key takes a look at every file of a folder.
    key = ranks.same(None if ranks.rank else key_of(job, ranks))
    piece = shelf.get(key) if ranks.rank == 0 else None
    if not ranks.same(piece is not None):
        with _claimed(key, ranks, shelf):
            piece = shelf.get(key) if ranks.rank == 0 else None  # or finished meanwhile
            if not ranks.same(piece is not None):
                piece = _trained(key, job, ranks, shelf)
    if ranks.rank:
        return None
    shelf.tidy(key)
    return Run(job.model, job.data, piece.arrays, piece.meta)


@contextmanager
def _claimed(key: str, ranks: Group, shelf: store.Store) -> Iterator[None]:
    """The first process claims the piece, the others wait with it.

    It tells them all the while: processes that hear nothing of each other for long give up.
    """
    if ranks.rank:
        while not ranks.same(None):
            pass
        yield
    else:
        with shelf.claim(key, meanwhile=lambda: ranks.same(False)):
            ranks.same(True)
            yield


def _trained(key: str, job: Job, ranks: Group, shelf: store.Store) -> store.Piece | None:
    draft = Draft.of(shelf, key)
    run = train(job.model, job.data, job.recipe, job.measure, draft=draft, ranks=ranks)
    if ranks.rank:
        return None
    what = f"{described(job.model, job.data, job.recipe)}, {ranks.world} processes"
    piece = store.Piece(run.arrays, run.meta, what, draft.seconds)
    shelf.put(key, piece)
    draft.discard()
    return piece


def key_of(job: Job, ranks: Group) -> str:
    """Name of the finished piece: so many processes round as no other number of them does."""
    return f"run-{store.fingerprint([job.key, ranks.world, ranks.own_statistics])}"


def write(run: Run, out: Path) -> None:
    """The scores and the history of a run as tables in a folder."""
    for name, table, index in (("scores", run.scores, True), ("history", run.history, False)):
        store.write_atomic(out / f"{name}.csv", table.to_csv(index=index).encode())
