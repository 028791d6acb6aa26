"""Kills, flipped bytes, a full disk, bad inputs: the short form of ``benchmarks/faults.py``."""

import faults
import faults_fuzz
import faults_kills
import numpy as np
import pytest
from faults_fuzz import Call, deadline, fuzz, judge
from faults_kills import JOBS, WHOM, Victims, kills
from hypothesis import strategies as st

import memlens as ml
from memlens.models import registry
from memlens.storage import checkpoints, store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def victims():
    """One server for all jobs: to start it takes as long as several victims live."""
    with Victims() as found:
        yield found


@pytest.mark.parametrize(
    "job, n, seed", [("training", 5, 0), ("sweep", 3, 0), ("retraining", 2, 0), ("parallel", 3, 62)]
)
def test_killed_at_random_instants_it_ends_as_undisturbed(
    tmp_path, victims, monkeypatch, job, n, seed
):
    kill, met = faults_kills._kill, {}  # whom, and whether it was one of a victim's processes

    def watched(pid, whom):
        one = kill(pid, whom)
        met[whom] = met.get(whom, False) or one
        return one

    monkeypatch.setattr(faults_kills, "_kill", watched)
    found = kills(job, n, tmp_path, seed, victims)
    assert found["kills"] == n and found["finished"] >= 1
    faults_seen = {k: found[k] for k in ("corrupt", "lost", "differ", "leftovers")}
    assert not any(faults_seen.values()), faults_seen
    assert met == {whom: whom == "one of its processes" for whom in WHOM.get(job, ("caller",))}


def test_the_kills_notice_a_store_that_loses_work(tmp_path, monkeypatch):
    """Planted: a job that writes other numbers each time is seen to differ."""
    assert set(JOBS) == {"training", "sweep", "retraining", "parallel"}
    monkeypatch.setattr("faults_kills.Victims", _Careless)
    found = kills("training", 2, tmp_path)
    assert found["differ"] == found["finished"] > 0 and found["lost"] > 0


class _Careless:
    """Stands for victims whose artifacts change, and vanish with a kill."""

    def __enter__(self):
        self.n = 0
        return self

    def __exit__(self, *_):
        pass

    def run(self, job, folder, seconds=None, whom="caller"):
        self.n += 1
        cache = store.Store(folder)
        names = [f"run-{k:016x}" for k in range(2)]
        if seconds is not None and names[0] in cache:
            cache.remove(names[0])
            return False
        for name in names[: 1 if seconds is not None else 2]:
            cache.put(name, store.Artifact({"x": np.array([self.n])}, {}))
        return seconds is None


def test_every_flipped_byte_is_detected_and_named(tmp_path):
    assert faults.flips(20, tmp_path) == {"flips": 20, "undetected": 0, "unnamed": 0}


def test_the_flips_notice_a_store_that_checks_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_sums", lambda place: b"same")
    faults.filled(tmp_path / "a")
    found = faults.flips(16, tmp_path / "b")
    assert found["unnamed"] > 0


def test_a_full_disk_is_told_and_gone_on_from():
    try:
        found = faults.full_disk(3)
    except PermissionError as reason:
        pytest.skip(str(reason))
    assert found["failures"] > 0
    assert (found["unclear"], found["damaged"], found["differ"]) == (0, 0, 0), found


def test_bad_inputs_are_named():
    tally = fuzz(200)
    assert tally["returned"] > 10 and tally["raised"] > 50, tally
    assert tally["functions"] > len(faults_fuzz.CALLS) * 2 // 3, tally


@pytest.mark.parametrize(
    "fault, match",
    [
        (lambda folder, x: x.missing, "AttributeError"),
        (lambda folder, x: (_ for _ in ()).throw(ValueError()), "says nothing"),
        (lambda folder, x: (folder / ".x.7.part").write_text(""), "left"),
    ],
)
def test_the_fuzz_notices(fault, match):
    call = Call("planted", fault, st.tuples(st.integers()), in_folder=True)
    with pytest.raises(AssertionError, match=match):
        fuzz(5, [call])


def test_the_fuzz_notices_a_hang(monkeypatch):
    monkeypatch.setattr(faults_fuzz, "deadline", lambda _: deadline(1))
    call = Call("planted", lambda: [None for _ in iter(int, 1)], st.tuples())
    with pytest.raises(AssertionError, match="hangs"):
        judge(call, ())


@pytest.mark.parametrize("cost, most", [(0.002, 0.01), (0.05, 0.011), (2.0, 0.011)])
def test_keeping_costs_a_small_share(tmp_path, monkeypatch, cost, most):
    """By a clock of its own: epochs of 50 ms, saves of 2 ms, 50 ms and 2 s."""
    clock = [0.0]
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(checkpoints.torch, "save", lambda *_: clock.__setitem__(0, clock[0] + cost))
    checkpoint, spent = checkpoints.TrainingCheckpoint(tmp_path / "d.checkpoint"), 0.0
    for _ in range(20_000):
        clock[0] += 0.05
        if checkpoint.is_due():
            checkpoint.save({})
            spent += cost
    assert 0 < spent / clock[0] < most


def test_what_a_save_costs_beside_an_epoch_is_measured():
    rows = faults.cost_of_cifar(
        "small_cnn", ml.TrainConfig(epochs=3, batch_size=64), 2, n_samples=256
    )
    found = {measure: value for _, measure, value in rows}
    weights = sum(p.numel() for p in registry.build("small_cnn", 10, (3, 32, 32)).parameters())
    # the net, its momentum, the nets kept at two peaks; nine numbers a sample and epoch
    assert found["MB of a save"] > 4 * (4 * weights + 9 * 256 * 3) / 1e6
    assert 0 < found["share of a CIFAR-sized epoch"] <= checkpoints.SHARE * (1 + 1e-9)  # by rule
