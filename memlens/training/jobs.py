"""Trainings as jobs: done once, side by side, and found again in the store."""

from collections.abc import Sequence
from dataclasses import dataclass

from joblib import delayed

from memlens.data.samples import Dataset
from memlens.storage import store
from memlens.storage.drafts import Draft
from memlens.training.loop import Watch, train
from memlens.training.recipes import Measure, Recipe
from memlens.training.runs import Run
from memlens.training.workers import Made, elsewhere, handed_over, side_by_side

# Part of the key of every run. Raise it when a change of code changes what a training gives, so
# that no earlier result is taken for one of today; `tests/test_versions.py` notices.
RUN_VERSION = 1


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
        shaped_by = [self, self.recipe.engine().key, RUN_VERSION]
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
        Trainings side by side, each in a process of its own; by default as `workers` finds: a
        cluster's workers, or one process a core. The results do not depend on it.
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
    near = None if elsewhere(n_jobs) else shelf
    calls = {
        k: delayed(_train_and_keep)(k, j.model, j.data, j.recipe, j.measure, near, watch)
        for k, j in zip(keys, jobs, strict=True)
    }
    # A process of this machine claims what it trains; for a cluster the caller does.
    claimed = () if near else [key for key in keys if key not in shelf]
    with shelf.claim(*claimed):
        pieces = side_by_side(calls, shelf, n_jobs, [job.recipe for job in jobs])
    for key in keys:
        shelf.tidy(key)
    found = zip(jobs, (pieces[key] for key in keys), strict=True)
    return [Run(job.model, job.data, piece.arrays, piece.meta) for job, piece in found]


def _train_and_keep(
    key: str,
    model: str,
    data: Dataset,
    recipe: Recipe,
    measure: Measure,
    shelf: store.Store | None,
    watch: Watch | None,
) -> Made:
    # The shelf comes along: a process that was started earlier may know another MEMLENS_CACHE. To
    # another machine it does not: the caller keeps the piece, drafts lie in the worker's own cache.
    own = shelf or store.Store()
    with own.claim(key):
        if shelf and key in shelf:  # another process has trained it meanwhile
            return key, None
        draft = Draft.of(own, key)
        run = train(model, data, recipe, measure, draft=draft, watch=watch)
        what = described(model, data, recipe)
        piece = store.Piece(run.arrays, run.meta, what, draft.seconds)
        made = handed_over(key, piece, shelf)
        draft.discard()
    return made


def described(model: str, data: Dataset, recipe: Recipe) -> str:
    """A training in words, for a person who looks through the store."""
    return f"{model}, {len(data.train):,} samples of {data.name}, {recipe.epochs} epochs"
