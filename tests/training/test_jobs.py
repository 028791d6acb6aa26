"""Trainings mapped on processes and on a Dask cluster; a worker is killed for real."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from joblib import delayed

import memlens as ml
from memlens import __main__
from memlens.ensembles import retrainings, subsets
from memlens.storage import store
from memlens.training import jobs
from memlens.training.config import TrainConfig

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
pytestmark = pytest.mark.slow
SHORT = TrainConfig(epochs=3, batch_size=16)


def started(folder, kind, *options, cache=None):
    """A process of Dask's; it finds the scheduler by a file; by default it has its own cache."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard", *options]
    own = cache or folder / "of_workers"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}",
                   "OMP_NUM_THREADS": "1", "MEMLENS_CACHE": str(own)}  # fmt: skip
    environment.pop(jobs.SCHEDULER, None)
    return subprocess.Popen(
        [*command, "--scheduler-file", str(folder / "scheduler.json")], cwd=folder,
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler's address and two workers, each a process with one thread."""
    folder = tmp_path_factory.mktemp("cluster")
    processes = [
        started(folder, "scheduler", "--port", "0", "--host", "127.0.0.1"),
        *(started(folder, "worker", "--nthreads", "1", "--no-nanny") for _ in range(2)),
    ]
    try:
        yield _address(folder), processes[1:]
    finally:
        for process in processes[::-1]:
            process.kill()
            process.wait()


def _address(folder):
    path, end = folder / "scheduler.json", time.monotonic() + 60
    while time.monotonic() < end:
        if path.exists() and path.read_text():
            return json.loads(path.read_text())["address"]
        time.sleep(0.05)
    pytest.fail("the scheduler did not start")


def wait_for_workers(address, n):
    import distributed

    with distributed.Client(address, set_as_default=False) as client:
        client.wait_for_workers(n, timeout=60)


@pytest.fixture
def asked(monkeypatch, cluster, tmp_path):
    """The environment that gives trainings to the cluster; a cache of this test's own."""
    wait_for_workers(cluster[0], 2)
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(jobs.SCHEDULER, cluster[0])
    return cluster


def test_runs_and_retrainings_of_a_cluster_are_those_of_this_process(tiny, tmp_path, asked):
    wanted = [jobs.Job("mlp", tiny, TrainConfig(epochs=3, batch_size=16, seed=s)) for s in range(3)]
    far = ml.train_many(wanted)
    here = ml.train_many(wanted, n_jobs=1, cache=store.Store(tmp_path / "serial"))
    for one, other in zip(far, here, strict=True):
        for name, values in other.arrays.items():
            if name != "history/seconds":
                np.testing.assert_array_equal(one.arrays[name], values, err_msg=name)
    assert all(job.key in store.Store() for job in wanted)  # kept here, whoever trained
    assert not list((tmp_path / "cache").glob(".checkpoints/*"))
    folds = retrainings.retrain("folds", "mlp", [tiny], SHORT, seeds=[0])
    store.Store().clear()
    (serial,) = retrainings.retrain("folds", "mlp", [tiny], SHORT, seeds=[0], n_jobs=1)
    assert np.array_equal(folds[0]["logits"], serial["logits"])


def test_a_cluster_with_one_worker_trains_on_that_worker(tiny, monkeypatch, tmp_path):
    folder = tmp_path / "cluster"
    folder.mkdir()
    processes = [started(folder, "scheduler", "--port", "0", "--host", "127.0.0.1")]
    try:
        processes.append(started(folder, "worker", "--nthreads", "1", "--no-nanny"))
        monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv(jobs.SCHEDULER, _address(folder))
        job = jobs.Job("mlp", tiny, TrainConfig(epochs=1, batch_size=16))
        (run,) = ml.train_many([job])
        assert len(run.history) == 1 and job.key in store.Store()
    finally:
        for process in processes[::-1]:
            process.kill()
            process.wait()


def test_workers_may_share_the_cache_of_the_caller(tiny, monkeypatch, tmp_path):
    """The caller claims the key in the folder in which the worker keeps its checkpoint."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / "shared"))
    processes = [started(folder, "scheduler", "--port", "0", "--host", "127.0.0.1")]
    try:
        options, shared = ("--nthreads", "1", "--no-nanny"), tmp_path / "shared"
        processes.append(started(folder, "worker", *options, cache=shared))
        monkeypatch.setenv(jobs.SCHEDULER, _address(folder))
        job = jobs.Job("mlp", tiny, TrainConfig(epochs=1, batch_size=16))
        (run,) = ml.train_many([job])
        assert len(run.history) == 1 and job.key in store.Store()
        assert not list((tmp_path / "shared").glob(".checkpoints/*"))
    finally:
        for process in processes[::-1]:
            process.kill()
            process.wait()


def test_a_training_that_kills_every_worker_is_named(monkeypatch, tmp_path):
    class Killed(Exception):
        pass

    future = SimpleNamespace(result=lambda: (_ for _ in ()).throw(Killed("run-0")))
    fake = SimpleNamespace(as_completed=lambda futures, loop: [future], KilledWorker=Killed)
    client = SimpleNamespace(
        wait_for_workers=lambda n, timeout: None, submit=lambda *_, **__: future, loop=None
    )
    monkeypatch.setattr(jobs, "_distributed", lambda: fake)
    monkeypatch.setattr(jobs, "_client", lambda: nullcontext(client))
    monkeypatch.setenv(jobs.SCHEDULER, "tcp://there")
    with pytest.raises(RuntimeError, match=r"killed.*\(0 of 1 artifacts\): repeat it"):
        jobs.run_parallel({"run-0": delayed(len)("x")}, store.Store(tmp_path))


def test_retrainings_of_a_cluster_are_kept_as_they_come(tiny, monkeypatch, asked):
    """What stops the caller half-way costs the stacks in hand, not those that have come back."""
    monkeypatch.setattr(retrainings, "CPU_ENSEMBLE_SIZE", 1)
    put = store.Store.put

    def stopped(cache, key, artifact):
        put(cache, key, artifact)
        if ".1-nets" in key:
            raise KeyboardInterrupt

    monkeypatch.setattr(store.Store, "put", stopped)
    for n in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            retrainings.retrain("folds", "mlp", [tiny], SHORT, seeds=[0])
        assert len(list(store.cache_dir().glob("folds-*.1-nets-*"))) == n
    monkeypatch.setattr(store.Store, "put", put)
    (left,) = retrainings.retrain("folds", "mlp", [tiny], SHORT, seeds=[0])
    store.Store().clear()
    (serial,) = retrainings.retrain("folds", "mlp", [tiny], SHORT, seeds=[0], n_jobs=1)
    assert np.array_equal(left["logits"], serial["logits"])


def test_what_differs_on_a_worker_is_told(asked, monkeypatch):
    real = jobs._setting
    monkeypatch.setattr(jobs, "_setting", lambda *args: real(*args) | {"torch": "9.9"})
    with pytest.raises(RuntimeError, match=r"from its caller: torch .*, not 9\.9\. Install"):
        list(jobs._results([delayed(store.fingerprint)([1])]))
    monkeypatch.undo()
    monkeypatch.setenv(jobs.SCHEDULER, asked[0])
    with pytest.raises(TypeError, match="cannot make a cache key from function"):
        list(jobs._results([delayed(store.fingerprint)(test_what_differs_on_a_worker_is_told)]))


def test_a_worker_with_several_threads_is_refused(monkeypatch):
    """Trainings in threads of one process would draw from one source of random numbers."""
    several = SimpleNamespace(state=SimpleNamespace(nthreads=2))
    monkeypatch.setattr(jobs, "_distributed", lambda: SimpleNamespace(get_worker=lambda: several))
    with pytest.raises(RuntimeError, match="2 threads.*dask worker --nthreads 1"):
        jobs._checked({}, [], print, (), {})


def test_a_scheduler_that_does_not_answer_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setattr(jobs, "SECONDS", 0.3)
    monkeypatch.setenv(jobs.SCHEDULER, "tcp://127.0.0.1:9")
    with pytest.raises(OSError, match="no Dask scheduler answers at tcp://127.0.0.1:9.*dask sched"):
        list(jobs._results([delayed(abs)(-1)]))
    assert list(jobs._results([delayed(abs)(-1)], n_jobs=1)) == [1]  # one process is this one


def test_what_is_asked_for_holds_inside_only(monkeypatch):
    for name in (jobs.JOBS, jobs.SCHEDULER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(jobs.SCHEDULER, "tcp://a:1")
    with jobs.parallel_settings(scheduler="tcp://b:2"):
        assert jobs.scheduler() == "tcp://b:2" and jobs.on_cluster(None)
        assert not jobs.on_cluster(1)
    assert jobs.scheduler() == "tcp://a:1"
    monkeypatch.delenv(jobs.SCHEDULER)
    with jobs.parallel_settings(n_jobs=3):
        assert jobs.default_n_jobs(one=True) == 3
    assert jobs.default_n_jobs(one=True) == 1 and jobs.JOBS not in os.environ
    monkeypatch.setenv(jobs.JOBS, "many")
    with pytest.raises(ValueError, match="MEMLENS_JOBS is 'many'; expected a number"):
        list(jobs._results([delayed(abs)(-1)]))


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"n_jobs": 0}, ValueError, "n_jobs is 0"),
        ({"n_jobs": 2, "scheduler": "tcp://a:1"}, ValueError, "pass one of the two"),
    ],
)
def test_bad_requests_are_named(settings, error, words):
    with pytest.raises(error, match=words), jobs.parallel_settings(**settings):
        pass


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ImportError, match=r"pip install 'memlens\[cluster\]'"),
        jobs.parallel_settings(scheduler="tcp://a:1"),
    ):
        pass


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [(("--jobs", "2"), jobs.JOBS, "2"),
     (("--scheduler", "tcp://a:1"), jobs.SCHEDULER, "tcp://a:1")],
)  # fmt: skip
def test_the_command_line_tells_the_kernels_of_notebooks(monkeypatch, option, name, value):
    from memlens.experiments import reproduce

    seen = []

    def run(*_):
        with reproduce.kernel_environment():
            seen.append(os.environ[name])
        return pd.DataFrame({"failure": [""]})

    monkeypatch.setattr(reproduce, "reproduce", run)
    assert __main__.main(["reproduce", *option]) == 0
    assert seen == [value] and name not in os.environ


# Last: the cluster has one worker afterwards.
def _made(key, folder, killed):
    """A artifact, or this process's sudden end once the first artifact is kept."""
    cache = store.Store(folder)
    while killed and key != "run-0" and "run-0" not in cache:
        time.sleep(0.01)
    if killed and key != "run-0":
        os.kill(os.getpid(), signal.SIGKILL)
    return jobs.store_or_return(key, store.Artifact({"x": np.arange(3)}, {}), cache)


@pytest.mark.filterwarnings("ignore:resource_tracker")  # joblib's, of the process that was killed
def test_a_process_that_is_killed_is_told_and_its_fellows_work_is_kept(tmp_path):
    cache = store.Store(tmp_path)
    calls = lambda killed: {  # noqa: E731
        f"run-{k}": delayed(_made)(f"run-{k}", tmp_path, killed) for k in range(3)
    }
    with pytest.raises(RuntimeError, match=r"was killed.*\(1 of 3 artifacts\): repeat it, with"):
        jobs.run_parallel(calls(True), cache, n_jobs=2)
    assert set(jobs.run_parallel(calls(False), cache, n_jobs=2)) == set(calls(False))


def test_a_worker_that_is_killed_in_mid_sweep_changes_no_bit(tiny, monkeypatch, tmp_path, asked):
    _, (victim, _) = asked
    monkeypatch.setattr(subsets, "CPU_ENSEMBLE_SIZE", 2)
    settings = {"n_models": 24, "config": TrainConfig(epochs=8, batch_size=4), "seed": 3}
    put, kept = store.Store.put, []

    def killing(cache, key, artifact):
        put(cache, key, artifact)
        kept.append(key)
        if len(kept) == 3:  # nine chunks are left, of which each worker has one in hand
            victim.send_signal(signal.SIGKILL)
            victim.wait()

    monkeypatch.setattr(store.Store, "put", killing)
    far = ml.subset_sweep("mlp", tiny, **settings)
    assert victim.returncode == -signal.SIGKILL and len(kept) == 13  # 12 chunks and the whole
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / "serial"))
    here = ml.subset_sweep("mlp", tiny, n_jobs=1, **settings)
    assert len(kept) == 26
    assert np.array_equal(far.masks, here.masks)
    for name, values in here.arrays.items():
        assert np.array_equal(far.arrays[name], values), name
