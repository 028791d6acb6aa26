"""Trainings as jobs: done once, side by side, and found again in the store."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from joblib import Parallel, delayed
from tqdm import tqdm

from memlens import store
from memlens.data import Dataset
from memlens.drafts import Draft
from memlens.recipes import Measure, Recipe
from memlens.runs import Run
from memlens.training import Watch, train

_ROOMS = (
    "data", "folders", "architectures", "vit", "models", "signals", "weightgrads", "traces",
    "visits", "epochs", "recorder", "stopping", "devices", "recipes", "feeds", "probes", "runs",
    "training",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A training to be done, or found done: the model must be a name from ``models.MODELS``."""

    model: str
    data: Dataset
    recipe: Recipe = Recipe()
    measure: Measure = Measure()

    @property
    def key(self) -> str:
        """Name of the finished piece: the hash of everything that shapes it."""
        shaped_by = [self, self.recipe.engine().key, store.code_version(*_ROOMS)]
        return f"run-{store.fingerprint(shaped_by)}"


def train_many(
    jobs: Sequence[Job],
    *,
    n_jobs: int | None = None,
    shelf: store.Store | None = None,
    watch: Watch | None = None,
) -> list[Run]:
    """The runs of all jobs, in their order; finished ones come from the store.

    One that another process trains at this moment is waited for, and not trained twice.

    Parameters
    ----------
    jobs : sequence of Job
    n_jobs : int, optional
        Trainings side by side, each in a process of its own; by default one a core. The results
        do not depend on it.
    shelf : Store, optional
        Where finished and unfinished trainings are kept; by default in the cache.
    watch : callable, optional
        As in `train`, of one training after the other: it needs ``n_jobs=1``.

    Raises
    ------
    ValueError
        If several trainings at once were to be watched.
    """
    if watch and n_jobs != 1:
        raise ValueError(f"watch sees one training at a time: pass n_jobs=1, not {n_jobs}")
    keys = [job.key for job in jobs]
    shelf = shelf or store.Store()
    pieces = {key: shelf.get(key) for key in keys}
    missing = {k: j for k, j in zip(keys, jobs, strict=True) if pieces[k] is None}
    if missing:
        calls = [delayed(_train_and_keep)(k, j, shelf, watch) for k, j in missing.items()]
        side_by_side(calls, n_jobs, on_gpu(job.recipe for job in missing.values()))
        pieces |= {key: shelf.get(key) for key in missing}
    for key in keys:
        shelf.tidy(key)
    lost = [key for key in keys if pieces[key] is None]
    if lost:
        raise OSError(f"finished pieces vanished from the cache while they were read: {lost}")
    found = zip(jobs, (pieces[key] for key in keys), strict=True)
    return [Run(job.model, job.data, piece.arrays, piece.meta) for job, piece in found]


def on_gpu(recipes: Iterable[Recipe]) -> bool:
    """Whether any of the trainings takes a GPU."""
    return any(recipe.engine().device.type == "cuda" for recipe in recipes)


def side_by_side(calls: Sequence[Any], n_jobs: int | None = None, one: bool = False) -> list[Any]:
    """Results of joblib's ``delayed`` calls in their order, by default in one process a core.

    With ``one``, which is for work on a GPU, the default is this process alone.
    """
    if not calls:
        return []
    n_jobs = n_jobs or (1 if one else os.cpu_count() or 1)
    done = Parallel(n_jobs=min(n_jobs, len(calls)), return_as="generator")(calls)
    return list(tqdm(done, total=len(calls), **BAR))


BAR = {"unit": "training", "leave": False, "delay": 5, "disable": None}  # only where a person looks


def _train_and_keep(key: str, job: Job, shelf: store.Store, watch: Watch | None) -> None:
    # The shelf comes along: a worker that was started earlier may know another MEMLENS_CACHE.
    with shelf.claim(key):
        if key in shelf:  # another process has trained it meanwhile
            return
        draft = Draft.of(shelf, key)
        run = train(job.model, job.data, job.recipe, job.measure, draft=draft, watch=watch)
        what = described(job.model, job.data, job.recipe)
        shelf.put(key, store.Piece(run.arrays, run.meta, what, draft.seconds))
        draft.discard()


def described(model: str, data: Dataset, recipe: Recipe) -> str:
    """A training in words, for a person who looks through the store."""
    return f"{model}, {len(data.train):,} samples of {data.name}, {recipe.epochs} epochs"
