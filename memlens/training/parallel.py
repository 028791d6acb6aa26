"""Where a list of trainings is mapped: processes of this machine, or the workers of a cluster.

joblib maps either way. What nobody asks for otherwise is said by the environment, which kernels of
notebooks inherit: ``MEMLENS_SCHEDULER``, the address of a Dask scheduler, and ``MEMLENS_JOBS``, how
many processes. A worker hands its results to the caller, who keeps them: no folder need be shared.
When one dies, Dask gives its trainings to another, and they give the same bits there.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from memlens.data.samples import Dataset
from memlens.storage import store
from memlens.training import devices
from memlens.training.config import TrainConfig

SCHEDULER, JOBS = "MEMLENS_SCHEDULER", "MEMLENS_JOBS"
BAR = {"unit": "training", "leave": False, "delay": 5, "disable": None}  # only where a person looks
SECONDS = 10  # to wait for a scheduler that does not answer

Call = tuple[Callable[..., Any], tuple, dict[str, Any]]  # as joblib's ``delayed`` makes it
KeyedArtifact = tuple[
    str, store.Artifact | None
]  # a key, and its artifact where the caller has to keep it


def on_gpu(configs: Iterable[TrainConfig]) -> bool:
    """Whether any of the trainings takes a GPU."""
    return any(devices.is_gpu(config.engine().device) for config in configs)


def scheduler() -> str | None:
    """Address of the Dask scheduler that trainings are given to, or None."""
    return os.environ.get(SCHEDULER) or None


@contextmanager
def parallel_settings(*, n_jobs: int | None = None, scheduler: str | None = None) -> Iterator[None]:
    """Inside, trainings are mapped so where nothing else is asked for, in notebooks, too.

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
        If there is less than one process, or both are given.
    ImportError
        If a scheduler is given and Dask is not installed.
    """
    if n_jobs is not None and scheduler is not None:
        raise ValueError(f"n_jobs={n_jobs} and scheduler={scheduler!r}: a cluster says itself how "
                         "many workers it has; pass one of the two")  # fmt: skip
    if n_jobs is not None and n_jobs < 1:
        raise ValueError(f"n_jobs is {n_jobs}; expected one process or more")
    if scheduler is not None:
        _distributed()
    asked = {JOBS: n_jobs and str(n_jobs), SCHEDULER: scheduler}
    before = {name: os.environ.get(name) for name in asked}
    _set({name: value for name, value in asked.items() if value})
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
    """Whether trainings go to a cluster, whose workers need not see this machine's folders.

    One process, if it is asked for, is this one.
    """
    return scheduler() is not None and n_jobs != 1


def run_parallel(
    calls: Mapping[str, Call],
    cache: store.Store,
    n_jobs: int | None = None,
    configs: Sequence[TrainConfig] = (),
) -> dict[str, store.Artifact]:
    """The artifacts of that many keys: those on the cache, and the others made and kept as they come.

    Parameters
    ----------
    calls : mapping of key to call
        As joblib's ``delayed`` makes them, of one function, which a worker can import and which
        returns what `store_or_return` gives: what is not yet kept, this process keeps.
    cache : Store
    n_jobs : int, optional
        Processes. By default a cluster's workers, else ``MEMLENS_JOBS``, else one a core, and this
        process alone where a config takes a GPU.
    configs : sequence of TrainConfig
        Of the trainings; a worker has to compute by them as this machine does.

    Raises
    ------
    ValueError
        If ``MEMLENS_JOBS`` is no number of processes.
    RuntimeError
        If a worker has other code or another device, trains in several threads, or is killed.
    OSError
        If no scheduler answers, or artifacts were removed meanwhile.
    """
    found = {key: cache.get(key) for key in calls}
    missing = [key for key in calls if found[key] is None]
    try:
        for key, artifact in _results([calls[key] for key in missing], n_jobs, configs):
            if artifact is not None:
                cache.put(key, artifact)
    except BrokenProcessPool as error:
        n_kept = sum(key in cache for key in calls)
        raise RuntimeError(
            "a process that trained was killed, as when memory runs out; the same call goes "
            f"on from what is kept ({n_kept} of {len(calls)} artifacts): make it again, with fewer "
            "processes (n_jobs, or --jobs) if it happens again"
        ) from error
    found |= {key: cache.get(key) for key in missing}
    if lost := [key for key in missing if found[key] is None]:
        raise OSError(f"finished work vanished from the cache meanwhile: {lost}; run it again")
    return found


def store_or_return(key: str, artifact: store.Artifact, cache: store.Store | None) -> KeyedArtifact:
    """A finished artifact, kept on the cache; without one (a cluster's worker) the caller keeps it."""
    if cache is None:
        return key, artifact
    cache.put(key, artifact)
    return key, None


def _results(
    calls: Sequence[Call], n_jobs: int | None = None, configs: Sequence[TrainConfig] = ()
) -> Iterator[Any]:
    """What the calls return, as it comes."""
    if not calls:
        return
    if on_cluster(n_jobs):
        done = _on_cluster(calls, configs)
    else:
        n_jobs = n_jobs or _processes(on_gpu(configs))
        done = Parallel(n_jobs=min(n_jobs, len(calls)), return_as="generator_unordered")(calls)
    yield from tqdm(done, total=len(calls), **BAR)


def _processes(one: bool) -> int:
    text = os.environ.get(JOBS)
    if not text:
        return 1 if one else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{JOBS} is {text!r}; expected a number of processes, 1 or more")
    return int(text)


def _on_cluster(calls: Sequence[Call], configs: Sequence[TrainConfig]) -> Iterator[Any]:
    with _client() as client:
        shared: dict[int, Any] = {}  # data sets travel to a worker once, not with every call

        def sent(value: Any) -> Any:
            if not isinstance(value, Dataset):
                return value
            if id(value) not in shared:
                # Not scattered: what lies on a worker is lost with it, what a task gave is not.
                shared[id(value)] = client.submit(_itself, value, pure=False)
            return shared[id(value)]

        setting = _setting(configs)
        asked = [
            delayed(_checked)(setting, configs, function, tuple(map(sent, args)), kwargs)
            for function, args, kwargs in calls
        ]
        with parallel_config("dask", client=client, wait_for_workers_timeout=SECONDS):
            # One call at a time: what is rerun after a worker's death is as little as can be.
            yield from Parallel(n_jobs=-1, batch_size=1, return_as="generator_unordered")(asked)


def _client() -> Any:
    """A client of the scheduler that was asked for."""
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


def _itself(value: Any) -> Any:
    return value


def _setting(configs: Iterable[TrainConfig]) -> dict[str, Any]:
    """What shapes the results of a call beside its arguments."""
    engines = {tuple(config.engine().key) for config in configs}
    return {
        "memlens": _version(),
        "torch": torch.__version__,
        "computes on": sorted(map(str, engines)),
    }


_version = cache(store.code_version)  # a worker asks before every training


def _checked(
    setting: dict[str, Any],
    configs: Sequence[TrainConfig],
    function: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
) -> Any:
    """The call, on a worker that computes as its caller would."""
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
