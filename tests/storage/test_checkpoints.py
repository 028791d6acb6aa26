"""Interrupted work continues from its checkpoint with the same results."""

import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from mortal import Killed, Mortal
from torch import nn

import memlens as ml
from memlens.storage import checkpoints, store
from memlens.storage.checkpoints import TrainingCheckpoint
from memlens.training.config import MeasureConfig, TrainConfig
from memlens.training.loop import train

EVERYTHING = MeasureConfig(
    posthoc=True, n_directions=2, weight_gradients=True, logit_gradients=True, every=2
)
SHORT = TrainConfig(epochs=7, batch_size=16, patience=1)


def with_dropout(n_classes, in_shape):
    n = int(np.prod(in_shape))
    return nn.Sequential(nn.Flatten(), nn.Linear(n, 8), nn.Dropout(0.5), nn.Linear(8, n_classes))


CASES = {
    "numbers of NumPy": (
        "mlp",
        replace(SHORT, lr=np.float64(0.05), seed=np.int64(3), batch_size=np.int32(20)),
        MeasureConfig(),
    ),
    "everything": ("small_cnn_bn", SHORT, EVERYTHING),
    "crops, Adam": (
        "mlp",
        replace(SHORT, augment="crop_flip", optimizer="adam", lr=1e-3),
        MeasureConfig(),
    ),
    "stopped": ("mlp", replace(SHORT, stop="input_gradient", patience=3), MeasureConfig()),
    "dropout": (with_dropout, SHORT, MeasureConfig()),
    "sharpness-aware": ("mlp", replace(SHORT, sam_rho=0.05), MeasureConfig()),
}


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_training_ends_as_it_would_have_ended(tiny, tmp_path, case):
    model, config, measure = CASES[case]
    whole = train(model, tiny, config, measure)
    path = tmp_path / "checkpoint"
    for lives in (2, 1, 1):
        with pytest.raises(Killed):
            train(model, tiny, config, measure, checkpoint=Mortal(path, lives))
    resumed = train(model, tiny, config, measure, checkpoint=TrainingCheckpoint(path))
    assert resumed.meta == whole.meta
    assert set(resumed.arrays) == set(whole.arrays)
    for name, values in whole.arrays.items():
        if name != "history/seconds":
            assert np.array_equal(resumed.arrays[name], values, equal_nan=True), name


def test_dropout_depends_on_seed_and_epoch_only(tiny):
    once = train(with_dropout, tiny, SHORT)
    torch.manual_seed(77)
    state = torch.random.get_rng_state()
    again = train(with_dropout, tiny, SHORT)
    assert np.array_equal(once.trace.loss, again.trace.loss)
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is untouched
    other = train(with_dropout, tiny, replace(SHORT, seed=1))
    assert not np.array_equal(once.trace.loss, other.trace.loss)


def test_a_checkpoint_of_other_software_is_warned_of(tmp_path, monkeypatch):
    checkpoint = TrainingCheckpoint(tmp_path / "a.checkpoint")
    with monkeypatch.context() as patched:
        patched.setattr(store, "software", lambda: {"torch": "1.0", "numpy": np.__version__})
        checkpoint.save({"epoch": 3})
    with pytest.warns(UserWarning, match=r"written with \{'torch': '1.0'\} and is continued"):
        assert checkpoint.load() == {"epoch": 3}
    checkpoint.save({"epoch": 4})
    assert checkpoint.load() == {"epoch": 4}  # no warning: it would be an error in tests


def test_a_damaged_checkpoint_is_set_aside_and_the_training_starts_again(tiny, tmp_path):
    path = tmp_path / "checkpoint.checkpoint"
    with pytest.raises(Killed):
        train("mlp", tiny, SHORT, checkpoint=Mortal(path, 3))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged .*checksum.*renamed to checkpoint.damaged"):
        run = train("mlp", tiny, SHORT, checkpoint=TrainingCheckpoint(path))
    assert np.array_equal(run.trace.loss, train("mlp", tiny, SHORT).trace.loss)
    for rubbish in (b"", b"short"):
        path.write_bytes(rubbish)
        with pytest.warns(UserWarning, match="damaged"):
            assert TrainingCheckpoint(path).load() is None


def test_a_checkpoint_runs_no_code(tmp_path):
    import hashlib
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    data = pickle.dumps(Evil(), protocol=2)
    seal = hashlib.sha256(b"d.checkpoint\0" + data).digest()  # a valid checksum
    (tmp_path / "d.checkpoint").write_bytes(seal + data)
    with pytest.warns(UserWarning, match="damaged .*weights_only|damaged .*Weights only"):
        assert TrainingCheckpoint(tmp_path / "d.checkpoint").load() is None
    assert not (tmp_path / "evil").exists()


def test_a_renamed_checkpoint_is_set_aside(tmp_path):
    TrainingCheckpoint(tmp_path / "a.checkpoint").save({"x": torch.arange(3)})
    os.replace(tmp_path / "a.checkpoint", tmp_path / "b.checkpoint")
    with pytest.warns(UserWarning, match="damaged .*checksum"):
        assert TrainingCheckpoint(tmp_path / "b.checkpoint").load() is None
    assert (tmp_path / "b.damaged").exists()


def test_a_missing_permission_is_not_damage(tmp_path, monkeypatch):
    checkpoint = TrainingCheckpoint(tmp_path / "a.checkpoint")
    checkpoint.save({"x": 1})

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoints.files, "check_seal", refuse)
    with pytest.raises(PermissionError):
        checkpoint.load()
    assert checkpoint.path.exists()


def test_the_time_of_interrupted_processes_counts(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: clock[0])
    first = TrainingCheckpoint(tmp_path / "a.checkpoint")
    clock[0] += 5
    first.save({})
    clock[0] += 100  # lost by a kill
    second = TrainingCheckpoint(tmp_path / "a.checkpoint")
    second.load()
    clock[0] += 2
    assert second.seconds == 7


def test_a_failed_save_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    checkpoint = TrainingCheckpoint(tmp_path / "a.checkpoint")
    checkpoint.save({"x": 1})

    def full(*_):  # as torch raises it
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904

    monkeypatch.setattr(checkpoints.torch, "save", full)
    with pytest.raises(OSError, match=r"No space left on device.*free some space"):
        checkpoint.save({"x": 2})
    assert checkpoint.load() == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.checkpoint"]


def test_saving_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: clock[0])
    checkpoint = TrainingCheckpoint(tmp_path / "d.checkpoint")
    clock[0] = checkpoints.SECONDS - 0.1
    assert not checkpoint.is_due()
    clock[0] = checkpoints.SECONDS
    assert checkpoint.is_due()
    checkpoint._saved, checkpoint._cost = clock[0], 3.0  # a save of three seconds
    clock[0] += 2 * checkpoints.SECONDS
    assert not checkpoint.is_due()
    clock[0] = checkpoint._saved + 3.0 / checkpoints.SHARE
    assert checkpoint.is_due()


def test_a_finished_job_leaves_no_checkpoint(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    job = ml.Job("mlp", tiny, SHORT)
    (run,) = ml.train_many([job], n_jobs=1)
    assert not list((tmp_path / ".checkpoints").iterdir())
    assert store.Store().clear() == 1
    assert np.array_equal(run.trace.loss, train("mlp", tiny, SHORT).trace.loss)


def test_a_checkpoint_of_a_finished_training_is_removed(tiny, tmp_path):
    """It was killed between the last write and the removal."""
    cache, job = store.Store(tmp_path), ml.Job("mlp", tiny, SHORT)
    ml.train_many([job], n_jobs=1, cache=cache)
    TrainingCheckpoint.of(cache, job.key).save({})
    (run,) = ml.train_many([job], n_jobs=1, cache=cache)
    assert not TrainingCheckpoint.of(cache, job.key).path.exists()
    assert len(run.history) == SHORT.epochs


EPOCHS = 15


def _train(folder):
    """Train with a checkpoint after every epoch, and write the result to a file."""
    torch.set_num_threads(1)
    os.environ["MEMLENS_CACHE"] = str(folder)
    checkpoints.SECONDS, checkpoints.SHARE = 0.0, 1e9
    data = ml.load("digits").subset(300)
    (run,) = ml.train_many([ml.Job("small_cnn_bn", data, TrainConfig(epochs=EPOCHS))], n_jobs=1)
    end = f"{run.trace.loss.sum(dtype=float).hex()} {len(run.history)}"
    (folder / "end.txt").write_text(end)


@pytest.mark.slow
def test_a_killed_process_continues(tmp_path, ready):
    """SIGKILL at three moments; the result is that of an uninterrupted process."""

    def start(name):
        process = ready.Process(target=_train, args=(tmp_path / name,))
        process.start()
        return process

    def end(name):
        process = start(name)
        process.join(120)
        assert process.exitcode == 0
        return (tmp_path / name / "end.txt").read_text()

    def checkpoint_age(after):
        while True:
            for path in (tmp_path / "killed" / ".checkpoints").glob("*.checkpoint"):
                if path.stat().st_mtime_ns > after:
                    return path.stat().st_mtime_ns
            assert process.is_alive(), "finished before it could be killed"
            time.sleep(0.002)

    age, states = 0, []
    for wait in (0.0, 0.013, 0.031):
        process = start("killed")
        age = checkpoint_age(age)
        time.sleep(wait)
        process.kill()
        process.join()
        (path,) = (tmp_path / "killed" / ".checkpoints").glob("*.checkpoint")
        states.append(len(TrainingCheckpoint(path).load()["history"]))
    assert states == sorted(states) and states[-1] < EPOCHS
    ends = [end(name) for name in ("killed", "whole")]
    assert ends[0] == ends[1] and ends[0].split()[1] == str(EPOCHS)
