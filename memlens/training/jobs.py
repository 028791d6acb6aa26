"""Many trainings in parallel, each computed once and stored in the cache.

They run in processes of this machine, or on the workers of a cluster. Two environment variables,
which the kernels of notebooks inherit, set the default: ``MEMLENS_SCHEDULER``, the address of a
Dask scheduler, and ``MEMLENS_JOBS``, a number of processes. A cluster's worker returns its results
to the caller, which stores them: no shared folder is needed. When a worker dies, Dask runs its
trainings on another one, with the same bits.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache as memoize
from typing import Any

import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from memlens.data.samples import Dataset
from memlens.storage import store
from memlens.storage.checkpoints import TrainingCheckpoint
from memlens.training import devices
from memlens.training.config import MeasureConfig, TrainConfig
from memlens.training.loop import train
from memlens.training.progress import Watch
from memlens.training.runs import Run

# Part of the key of every run. Raise it when a change of code changes the results of a training:
# earlier results then are not found any more. `tests/test_versions.py` fails if it was forgotten.
RUN_VERSION = 2
SCHEDULER, JOBS = "MEMLENS_SCHEDULER", "MEMLENS_JOBS"
BAR = {"unit": "training", "leave": False, "delay": 5, "disable": None}  # only on a terminal
SECONDS = 10  # to wait for a scheduler, or for its first worker

Call = tuple[Callable[..., Any], tuple, dict[str, Any]]  # as joblib's ``delayed`` makes it
KeyedArtifact = tuple[str, store.Artifact | None]  # None: the worker has stored it already


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
        (see `run_parallel`). The results do not depend on it.
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


def on_gpu(configs: Iterable[TrainConfig]) -> bool:
    """Return whether any of the trainings uses a GPU."""
    return any(devices.is_gpu(config.engine().device) for config in configs)


def scheduler() -> str | None:
    """Return the address of the Dask scheduler that runs the trainings, or None."""
    return os.environ.get(SCHEDULER) or None


@contextmanager
def parallel_settings(*, n_jobs: int | None = None, scheduler: str | None = None) -> Iterator[None]:
    """Set the default of parallel trainings inside a ``with`` block, notebooks included.

    >>> with parallel_settings(n_jobs=2):
    ...     os.environ["MEMLENS_JOBS"]
    '2'

    Parameters
    ----------
    n_jobs : int, optional
        Processes on this machine.
    scheduler : str, optional
        Address of a Dask scheduler, ``tcp://host:port``.

    Raises
    ------
    ValueError
        If ``n_jobs`` is below 1, or both are given.
    ImportError
        If a scheduler is given and Dask is not installed.
    """
    if n_jobs is not None and scheduler is not None:
        raise ValueError(f"n_jobs={n_jobs} and scheduler={scheduler!r}: the cluster decides how "
                         "many workers it has; pass one of the two")  # fmt: skip
    if n_jobs is not None and n_jobs < 1:
        raise ValueError(f"n_jobs is {n_jobs}; expected one process or more")
    if scheduler is not None:
        _distributed()
    settings = {JOBS: n_jobs and str(n_jobs), SCHEDULER: scheduler}
    before = {name: os.environ.get(name) for name in settings}
    _set({name: value for name, value in settings.items() if value})
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def on_cluster(n_jobs: int | None) -> bool:
    """Return whether trainings run on a cluster, whose workers may not see this machine's folders.

    ``n_jobs=1`` is always this process.
    """
    return scheduler() is not None and n_jobs != 1


def run_parallel(
    calls: Mapping[str, Call],
    cache: store.Store,
    n_jobs: int | None = None,
    configs: Sequence[TrainConfig] = (),
) -> dict[str, store.Artifact]:
    """Return the artifacts of many keys: from the cache, or computed and stored as they finish.

    Parameters
    ----------
    calls : mapping of key to call
        As joblib's ``delayed`` makes them, of a function that a worker can import and that returns
        what `store_or_return` returns.
    cache : Store
    n_jobs : int, optional
        Processes. By default a cluster's workers, else ``MEMLENS_JOBS``, else one a core; on a GPU
        this process alone.
    configs : sequence of TrainConfig
        Of the trainings; a worker must compute them on the same kind of device as this machine.

    Raises
    ------
    ValueError
        If ``MEMLENS_JOBS`` is not a number of processes.
    RuntimeError
        If a worker has other code or another device, runs several threads, or is killed.
    OSError
        If no scheduler answers, or artifacts were removed meanwhile.
    """
    artifacts = {key: cache.get(key) for key in calls}
    missing = [key for key in calls if artifacts[key] is None]
    try:
        for key, artifact in _results([calls[key] for key in missing], n_jobs, configs):
            if artifact is not None:
                cache.put(key, artifact)
    except BrokenProcessPool as error:
        n_kept = sum(key in cache for key in calls)
        raise RuntimeError(
            "a training process was killed, as happens when memory runs out; the same call "
            f"continues from what is stored ({n_kept} of {len(calls)} artifacts): repeat it, with "
            "fewer processes (n_jobs, or --jobs) if it happens again"
        ) from error
    artifacts |= {key: cache.get(key) for key in missing}
    if lost := [key for key in missing if artifacts[key] is None]:
        raise OSError(f"artifacts were removed from the cache meanwhile: {lost}; run it again")
    return artifacts


def store_or_return(key: str, artifact: store.Artifact, cache: store.Store | None) -> KeyedArtifact:
    """Store a finished artifact; without a cache (on a cluster), return it to the caller."""
    if cache is None:
        return key, artifact
    cache.put(key, artifact)
    return key, None


def _results(
    calls: Sequence[Call], n_jobs: int | None = None, configs: Sequence[TrainConfig] = ()
) -> Iterator[Any]:
    """Yield what the calls return, in the order in which they finish."""
    if not calls:
        return
    if on_cluster(n_jobs):
        results = _on_cluster(calls, configs)
    else:
        n_jobs = n_jobs or default_n_jobs(on_gpu(configs))
        results = Parallel(n_jobs=min(n_jobs, len(calls)), return_as="generator_unordered")(calls)
    yield from tqdm(results, total=len(calls), **BAR)


def default_n_jobs(one: bool) -> int:
    """Return ``MEMLENS_JOBS``; by default one process if ``one``, else one a core."""
    text = os.environ.get(JOBS)
    if not text:
        return 1 if one else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{JOBS} is {text!r}; expected a number of processes, 1 or more")
    return int(text)


def _on_cluster(calls: Sequence[Call], configs: Sequence[TrainConfig]) -> Iterator[Any]:
    # Not joblib's Dask backend: with a single worker it computes in this process instead.
    with _client() as client:
        client.wait_for_workers(1, timeout=SECONDS)
        # Each data set is sent once, not with every call. It is submitted as a task, not scattered:
        # when a worker is lost, the result of a task is computed again, scattered data is not.
        datasets = {id(x): x for _, args, _ in calls for x in args if isinstance(x, Dataset)}
        sent = {key: client.submit(_identity, x, pure=False) for key, x in datasets.items()}
        setting, futures = _setting(configs), []
        for function, args, kwargs in calls:
            args = tuple(sent.get(id(x), x) for x in args)
            call = (_checked, setting, configs, function, args, kwargs)
            futures.append(client.submit(*call, pure=False))
        for future in _distributed().as_completed(futures, loop=client.loop):
            try:
                yield future.result()
            except _distributed().KilledWorker as error:
                raise BrokenProcessPool(str(error)) from error
            future.release()


def _client() -> Any:
    """Return a client of the Dask scheduler."""
    address = scheduler()
    try:
        return _distributed().Client(address, set_as_default=False, timeout=SECONDS)
    except (OSError, ValueError) as error:
        raise OSError(
            f"no Dask scheduler answers at {address} ({error}); start one with `dask scheduler`, "
            "and pass the address that it prints, tcp://host:port"
        ) from error


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise ImportError(
            "a scheduler needs Dask, here and on every worker: pip install 'memlens[cluster]'"
        ) from error
    return distributed


def _identity(value: Any) -> Any:
    return value


def _setting(configs: Iterable[TrainConfig]) -> dict[str, Any]:
    """Return what shapes the results of a call beside its arguments."""
    engines = {tuple(config.engine().key) for config in configs}
    return {
        "memlens": _version(),
        "torch": torch.__version__,
        "computes on": sorted(map(str, engines)),
    }


_version = memoize(store.code_version)  # a worker checks it before every training


def _checked(
    setting: dict[str, Any],
    configs: Sequence[TrainConfig],
    function: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
) -> Any:
    """Call the function, if this worker computes as its caller would."""
    threads = _distributed().get_worker().state.nthreads
    if threads != 1:
        raise RuntimeError(
            f"a worker has {threads} threads, whose trainings would share one source of random "
            "numbers; start workers with `dask worker --nthreads 1`, several of them on a machine"
        )
    here = _setting(configs)
    if other := [f"{name} {here[name]}, not {setting[name]}" for name in here
                 if here[name] != setting[name]]:  # fmt: skip
        raise RuntimeError(
            f"a worker differs from its caller: {'; '.join(other)}. Install the same memlens and "
            "torch on both, and call from a machine with a GPU where the workers have one"
        )
    return function(*args, **kwargs)
