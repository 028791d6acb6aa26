"""Trainings as jobs: done once, side by side, and found again in the store."""

from collections.abc import Sequence
from dataclasses import dataclass

from joblib import delayed

from memlens.data.samples import Dataset
from memlens.storage import store
from memlens.storage.checkpoints import TrainingCheckpoint
from memlens.training.config import MeasureConfig, TrainConfig
from memlens.training.loop import train
from memlens.training.parallel import KeyedArtifact, on_cluster, run_parallel, store_or_return
from memlens.training.progress import Watch
from memlens.training.runs import Run

# Part of the key of every run. Raise it when a change of code changes what a training gives, so
# that no earlier result is taken for one of today; `tests/test_versions.py` notices.
RUN_VERSION = 1


@dataclass(frozen=True)
class Job:
    """A training to be done, or found done: the model must be a name from ``models.MODELS``."""

    model: str
    data: Dataset
    config: TrainConfig = TrainConfig()
    measure: MeasureConfig = MeasureConfig()

    @property
    def key(self) -> str:
        """Name of the finished artifact: the hash of everything that shapes it."""
        shaped_by = [self, self.config.engine().key, RUN_VERSION]
        return f"run-{store.fingerprint(shaped_by)}"


def train_many(
    jobs: Sequence[Job],
    *,
    n_jobs: int | None = None,
    cache: store.Store | None = None,
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
    cache : Store, optional
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
    cache = cache or store.Store()
    near = None if on_cluster(n_jobs) else cache
    calls = {
        k: delayed(_train_and_keep)(k, j.model, j.data, j.config, j.measure, near, watch)
        for k, j in zip(keys, jobs, strict=True)
    }
    # A process of this machine claims what it trains; for a cluster the caller does.
    claimed = () if near else [key for key in keys if key not in cache]
    with cache.claim(*claimed):
        artifacts = run_parallel(calls, cache, n_jobs, [job.config for job in jobs])
    for key in keys:
        cache.tidy(key)
    found = zip(jobs, (artifacts[key] for key in keys), strict=True)
    return [Run(job.model, job.data, artifact.arrays, artifact.meta) for job, artifact in found]


def _train_and_keep(
    key: str,
    model: str,
    data: Dataset,
    config: TrainConfig,
    measure: MeasureConfig,
    cache: store.Store | None,
    watch: Watch | None,
) -> KeyedArtifact:
    # The cache comes along: a process that was started earlier may know another MEMLENS_CACHE. To
    # another machine it does not: the caller keeps the artifact, checkpoints lie in the worker's own cache.
    own = cache or store.Store()
    with own.claim(key):
        if cache and key in cache:  # another process has trained it meanwhile
            return key, None
        checkpoint = TrainingCheckpoint.of(own, key)
        run = train(model, data, config, measure, checkpoint=checkpoint, watch=watch)
        what = described(model, data, config)
        artifact = store.Artifact(run.arrays, run.meta, what, checkpoint.seconds)
        made = store_or_return(key, artifact, cache)
        checkpoint.discard()
    return made


def described(model: str, data: Dataset, config: TrainConfig) -> str:
    """A training in words, for a person who looks through the store."""
    return f"{model}, {len(data.train):,} samples of {data.name}, {config.epochs} epochs"
