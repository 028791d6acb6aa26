"""One process computes an artifact, however it ends, and the others find it."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memlens.storage import files
from memlens.storage.store import Artifact, Store

SPAWN = multiprocessing.get_context("spawn")


def _hold(path, ready):
    with files.locked(path, "it"):
        ready.set()
        time.sleep(600)


@pytest.fixture
def held(tmp_path):
    """A lock that another process holds, and that process."""
    ready, path = SPAWN.Event(), tmp_path / "a.lock"
    owner = SPAWN.Process(target=_hold, args=(path, ready))
    owner.start()
    assert ready.wait(60)
    yield path, owner
    owner.kill()
    owner.join()


def test_a_lock_is_gone_with_its_owner_however_it_ends(held):
    path, owner = held
    assert files.is_held(path)
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    assert path.exists() and not files.is_held(path)
    with files.locked(path, "it") as is_lock:
        assert is_lock and files.is_held(path)
    assert not path.exists()


def test_a_process_that_waits_prints_a_message_once(held, monkeypatch, capsys):
    path, owner = held
    monkeypatch.setattr(files, "NOTICE_AFTER", 0.1)
    calls = []

    def end_owner():
        calls.append(time.monotonic())
        if len(calls) == 5:
            owner.kill()

    with files.locked(path, "run-1", end_owner) as is_lock:
        assert is_lock and len(calls) >= 5
    assert capsys.readouterr().err == "waiting for run-1: another process computes it\n"


def _die_with_a_child(path, ready):
    with files.locked(path, "it"):
        if not os.fork():  # as a worker of a data loader
            ready.set()
            time.sleep(600)
        time.sleep(600)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_does_not_keep_the_lock_of_its_killed_parent(tmp_path):
    ready, path = SPAWN.Event(), tmp_path / "a.lock"
    owner = SPAWN.Process(target=_die_with_a_child, args=(path, ready))
    owner.start()
    assert ready.wait(60) and files.is_held(path)
    children = Path(f"/proc/{owner.pid}/task/{owner.pid}/children")
    child = int(children.read_text().split()[0]) if children.exists() else None
    owner.kill()
    owner.join()
    assert not files.is_held(path)
    if child:
        os.kill(child, signal.SIGKILL)


def test_a_second_claim_of_the_same_thread_is_refused(tmp_path):
    with (
        files.locked(tmp_path / "a.lock", "it"),
        pytest.raises(RuntimeError, match="already held"),
        files.locked(tmp_path / "a.lock", "it"),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_work_goes_on(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    (tmp_path / ".run-1.77.part").mkdir()
    cache = Store(tmp_path)
    with cache.claim("run-1"), cache.claim("run-1"):
        cache.put("run-1", Artifact({}, {}))
    assert "run-1" in cache
    assert (tmp_path / ".run-1.77.part").exists()  # another process may be writing it
    assert not files.is_held(cache.lock_of("run-1"))


def test_other_errors_of_the_lock_are_raised(tmp_path, monkeypatch):
    (tmp_path / ".locks").write_text("")
    with (
        pytest.raises(OSError, match="cannot write .*run-1"),
        Store(tmp_path).claim("run-1"),
    ):
        pass


def test_a_claim_removes_what_killed_writers_left(tmp_path):
    left = [".run-1.77.part", ".checkpoints/.run-1.checkpoint.77.part", ".run-1.0-3.77.part"]
    kept = [".run-12.77.part", ".checkpoints/run-1.checkpoint", "run-1.0-3"]
    for name in (*left, *kept):
        (tmp_path / name).mkdir(parents=True)
    with Store(tmp_path).claim("run-1"):
        assert not [name for name in left if (tmp_path / name).exists()]
        assert [name for name in kept if (tmp_path / name).exists()] == kept


def test_tidy_removes_leftovers_unless_the_artifact_is_claimed(tmp_path):
    cache = Store(tmp_path)
    cache.put("run-1", Artifact({}, {}))
    left = [
        ".run-1.77.part",
        ".checkpoints/.run-1.checkpoint.77.part",
        "run-1.0-3",
        ".checkpoints/run-1.checkpoint",
    ]
    kept = ["run-1", ".run-12.77.part", "run-12.0-3", ".checkpoints/run-12.checkpoint"]
    for name in (*left, *kept[1:]):
        (tmp_path / name).mkdir(parents=True)
    with cache.claim("run-1"):
        (tmp_path / left[0]).mkdir()  # a claim removes what was left when it began
        cache.tidy("run-1")
        assert all((tmp_path / name).exists() for name in (left[0], left[2], left[3], *kept))
    cache.tidy("run-1")
    assert not [name for name in left if (tmp_path / name).exists()]
    assert [name for name in kept if (tmp_path / name).exists()] == kept


def _race(folder, name, barrier):
    barrier.wait()
    cache = Store(folder)
    for k in range(20):
        with cache.claim(f"run-{k}", "run-x"):
            if f"run-{k}" not in cache:
                with open(folder / "log", "a") as log:
                    log.write(f"{k}\n")
                cache.put(f"run-{k}", Artifact({}, {}))


def test_many_processes_compute_each_artifact_once(tmp_path):
    barrier = SPAWN.Barrier(3)
    crowd = [SPAWN.Process(target=_race, args=(tmp_path, k, barrier)) for k in range(3)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(20))
    assert list((tmp_path / ".locks").iterdir()) == []


SCRIPT = """
import sys
import memlens as ml
from memlens.ensembles import subsets
from memlens.training import jobs

def counted(module, name):
    real = getattr(module, name)
    def call(*given, **options):
        with open(sys.argv[1], "a") as log:
            log.write(name + "\\n")
        return real(*given, **options)
    setattr(module, name, call)

counted(jobs, "train"), counted(subsets, "train_chunk")
data = ml.load("digits").subset(200)
config = ml.TrainConfig(epochs=8)
(run,) = ml.train_many([ml.Job("small_cnn_bn", data, config)], n_jobs=1)
sweep = ml.subset_sweep("mlp", data, n_models=4, config=config, n_jobs=1)
print(run.trace.loss.sum(dtype=float).hex(), sweep.logits.sum(dtype=float).hex())
"""


@pytest.mark.slow
def test_two_processes_with_the_same_job_train_it_once(tmp_path):
    environment = os.environ | {"MEMLENS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-c", SCRIPT, str(tmp_path / "log")]
    two = [subprocess.Popen(call, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    ends = [process.communicate(timeout=120)[0] for process in two]
    assert ends[0] == ends[1] != b""
    assert sorted((tmp_path / "log").read_text().split()) == ["train", "train_chunk"]


def test_a_lock_keeps_to_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        with files.locked(tmp_path / "a.lock", "it"):
            assert (tmp_path / "a.lock").stat().st_mode & 0o077 == 0
    finally:
        os.umask(before)
