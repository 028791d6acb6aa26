"""Many trainings in parallel, each computed once and stored in the cache."""

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

# Part of the key of every run. Raise it when a change of code changes the results of a training:
# earlier results then are not found any more. `tests/test_versions.py` fails if it was forgotten.
RUN_VERSION = 1


@dataclass(frozen=True)
class Job:
    """One training of `train_many`.

    >>> import memlens as ml
    >>> job = ml.Job("mlp", ml.load("digits"), ml.TrainConfig(epochs=2))
    >>> job.key.startswith("run-")
    True

    Attributes
    ----------
    model : str
        A name from ``registry.MODELS``.
    data : Dataset
    config : TrainConfig
    measure : MeasureConfig
    """

    model: str
    data: Dataset
    config: TrainConfig = TrainConfig()
    measure: MeasureConfig = MeasureConfig()

    @property
    def key(self) -> str:
        """Cache key: the hash of everything that shapes the result."""
        shaped_by = [self, self.config.engine().key, RUN_VERSION]
        return f"run-{store.fingerprint(shaped_by)}"


def train_many(
    jobs: Sequence[Job],
    *,
    n_jobs: int | None = None,
    cache: store.Store | None = None,
    watch: Watch | None = None,
) -> list[Run]:
    """Train all jobs in parallel, and return their runs in order.

    Finished runs come from the cache, and unfinished ones resume. A job that another process is
    training is awaited, not trained twice.

    >>> import memlens as ml
    >>> data = ml.load("digits").subset(100)
    >>> jobs = [ml.Job("mlp", data, ml.TrainConfig(epochs=1, seed=seed)) for seed in range(2)]
    >>> [len(run.history) for run in ml.train_many(jobs, n_jobs=1)]
    [1, 1]

    Parameters
    ----------
    jobs : sequence of Job
    n_jobs : int, optional
        Number of parallel processes; by default the workers of a cluster, or one process per core
        (see `parallel.run_parallel`). The results do not depend on it.
    cache : Store, optional
        Where finished and unfinished trainings are stored; by default `store.cache_dir`.
    watch : callable, optional
        As in `loop.train`; it needs ``n_jobs=1``.

    Raises
    ------
    ValueError
        If ``watch`` is given and ``n_jobs`` is not 1.
    """
    if watch and n_jobs != 1:
        raise ValueError(f"watch sees one training at a time: pass n_jobs=1, not {n_jobs}")
    keys = [job.key for job in jobs]
    cache = cache or store.Store()
    local = None if on_cluster(n_jobs) else cache
    calls = {
        k: delayed(_train_and_keep)(k, j.model, j.data, j.config, j.measure, local, watch)
        for k, j in zip(keys, jobs, strict=True)
    }
    # A process of this machine claims what it trains; for a cluster, the caller claims it.
    claimed = () if local else [key for key in keys if key not in cache]
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
    # The cache is passed on: an older worker process may have another MEMLENS_CACHE. A worker of a
    # cluster has none: the caller stores the artifact, its checkpoints are in a cache of its own.
    # Meanwhile the caller claims the key, in what may be the same folder: the worker claims another
    # name.
    own = cache or store.Store()
    with own.claim(key if cache else f"worker-{key}"):
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
    """Return a description of a training, for the list of the cache."""
    return f"{model}, {len(data.train):,} samples of {data.name}, {config.epochs} epochs"
