"""One process computes a artifact, however it ends, and the others find it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from memlens.storage import locks
from memlens.storage.store import Artifact, Store

SPAWN = multiprocessing.get_context("spawn")


def _hold(path, told):
    with locks.locked(path, "it"):
        told.set()
        time.sleep(600)


@pytest.fixture
def held(tmp_path):
    """A lock that another process holds, and that process."""
    told, path = SPAWN.Event(), tmp_path / "a.lock"
    owner = SPAWN.Process(target=_hold, args=(path, told))
    owner.start()
    assert told.wait(60)
    yield path, owner
    owner.kill()
    owner.join()


def test_a_lock_is_gone_with_its_owner_however_it_ends(held):
    path, owner = held
    assert locks.is_held(path)
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    assert path.exists() and not locks.is_held(path)
    with locks.locked(path, "it") as is_lock:
        assert is_lock and locks.is_held(path)
    assert not path.exists()


def test_who_waits_says_for_whom(held, monkeypatch, capsys):
    path, owner = held
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    real = time.sleep

    def patient(seconds):  # ends the owner once something was said
        if "waiting" in (said := capsys.readouterr().err):
            assert said == f"waiting for run-1: process {owner.pid} is at it\n"
            owner.kill()
        real(seconds)

    monkeypatch.setattr(locks.time, "sleep", patient)
    with locks.locked(path, "run-1") as is_lock:
        assert is_lock


@pytest.mark.parametrize("harm", ["no flock", "windows"])
def test_without_locks_work_goes_on(tmp_path, monkeypatch, harm):
    if harm == "windows":
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        monkeypatch.setattr(locks, "_try", lambda _: None)
    (tmp_path / ".run-1.77.part").mkdir()
    cache = Store(tmp_path)
    with cache.claim("run-1"), cache.claim("run-1"):
        cache.put("run-1", Artifact({}, {}))
    assert "run-1" in cache
    assert (tmp_path / ".run-1.77.part").exists()  # it may be another's, who is at work


def test_an_error_of_the_lock_that_is_no_want_of_locks_is_raised(tmp_path, monkeypatch):
    (tmp_path / ".locks").write_text("")
    with (
        pytest.raises(OSError, match="cannot write the work to .*run-1"),
        Store(tmp_path).claim("run-1"),
    ):
        pass


def test_what_killed_writers_left_is_removed_by_who_claims_the_piece(tmp_path):
    left = [".run-1.77.part", ".checkpoints/.run-1.checkpoint.77.part", ".run-1.0-3.77.part"]
    kept = [".run-12.77.part", ".checkpoints/run-1.checkpoint", "run-1.0-3"]
    for name in (*left, *kept):
        (tmp_path / name).mkdir(parents=True)
    with Store(tmp_path).claim("run-1"):
        assert not [name for name in left if (tmp_path / name).exists()]
        assert [name for name in kept if (tmp_path / name).exists()] == kept


def test_what_is_left_of_a_finished_piece_is_removed_unless_somebody_is_at_work(tmp_path):
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


def test_a_crowd_computes_each_piece_once(tmp_path):
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

counted(jobs, "train"), counted(subsets, "_train_chunk")
data = ml.load("digits").subset(200)
config = ml.TrainConfig(epochs=8)
(run,) = ml.train_many([ml.Job("small_cnn_bn", data, config)], n_jobs=1)
sweep = ml.subset_sweep("mlp", data, n_models=4, config=config, n_jobs=1)
print(run.trace.loss.sum(dtype=float).hex(), sweep.logits.sum(dtype=float).hex())
"""


@pytest.mark.slow
def test_two_processes_that_want_the_same_train_it_once(tmp_path):
    environment = os.environ | {"MEMLENS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-c", SCRIPT, str(tmp_path / "log")]
    two = [subprocess.Popen(call, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    ends = [process.communicate(timeout=120)[0] for process in two]
    assert ends[0] == ends[1] != b""
    assert sorted((tmp_path / "log").read_text().split()) == ["_train_chunk", "train"]
