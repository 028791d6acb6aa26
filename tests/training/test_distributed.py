"""One training in two processes: what one process would compute, to float32's rounding."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import rank_tasks
import torch
import torch.nn.functional as F
from PIL import Image

import memlens as ml
from memlens import __main__
from memlens.experiments import launch
from memlens.models import registry
from memlens.storage import files, store
from memlens.tracking.counting import CountingRecorder
from memlens.training import distributed
from memlens.training.config import OPTIMIZERS, TrainConfig
from memlens.training.distributed import ProcessGroup
from memlens.training.loop import shuffled, train

ROOT = Path(__file__).resolve().parents[2]


def two_processes(folder, *arguments):
    """Let ``torchrun`` start two processes on this machine; what they print."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MEMLENS_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [*command, "2", *map(str, arguments)], env=environment, cwd=folder, text=True, timeout=600,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def train_on(images):
    """The command line of a training on a folder."""
    options = ["train", "--profile", "imagenet", "--root", images, "--size", "24",
               "--model", "small_cnn", "--epochs", "2", "--batch-size", "32", "--device", "cpu",
               "--seed", "4"]  # fmt: skip
    return [str(option) for option in options]


def test_each_group_meets_under_a_name_of_its_own(monkeypatch):
    """Else a second group finds the addresses of the first, where nobody listens any more."""
    left, met = distributed.dist.HashStore(), []

    def init_process_group(backend, store, rank, world_size):
        met.append(store.check(["address"]))
        store.set("address", "of this group")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed.dist, "rendezvous", lambda where: iter([(left, 0, 2)]))
    monkeypatch.setattr(distributed.dist, "init_process_group", init_process_group)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(distributed, "ProcessGroup", lambda own_statistics: None)
    for _ in range(2):
        with distributed.process_group(TrainConfig()):
            pass
    assert met == [False, False]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The folder of two processes that did `rank_tasks`, then a command; what they printed."""
    folder = tmp_path_factory.mktemp("ranks")
    plant(folder / "images", 90)
    command = [*train_on(folder / "images"), "--out", folder / "two"]
    return folder, two_processes(folder, rank_tasks.__file__, folder, *command)


@pytest.fixture(scope="module")
def both(started):
    """What each of two processes found."""
    folder, _ = started
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


def part(found, name):
    return {key[len(name) + 1 :]: v for key, v in found.items() if key.startswith(f"{name}/")}


def assert_close(found, run):
    assert set(found) == set(run.arrays)
    for name, values in run.arrays.items():
        if name != "history/seconds":
            np.testing.assert_allclose(found[name], values, rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("name", "model", "config"),
    [("uneven", "mlp", rank_tasks.UNEVEN), ("stopped", "small_cnn", rank_tasks.STOPPED)],
)
@pytest.mark.slow
def test_two_processes_train_as_one_does(both, name, model, config):
    """Crops, an ascent, an empty share of the last batch; a stop that both have to call alike."""
    run = train(model, rank_tasks.few(), config)
    assert config.stop is None or len(run.history) < config.epochs
    for found in both:
        assert_close(part(found, name), run)


@pytest.mark.slow
def test_both_processes_hold_the_same(both):
    for key, values in both[0].items():
        if not key.endswith("history/seconds"):
            np.testing.assert_array_equal(values, both[1][key], err_msg=key)


def test_what_was_interrupted_goes_on_in_both(both):
    for found in both:
        whole, resumed = part(found, "uneven"), part(found, "resumed")
        for name, values in whole.items():
            if name != "history/seconds":
                np.testing.assert_array_equal(resumed[name], values, err_msg=name)


def test_what_several_processes_cannot_do_is_refused(both):
    words = {
        "batch_norm": "batch norm, which torch cannot compute over several processes on a CPU",
        "posthoc": "2 processes record during training only",
        "large": "101 training samples are fewer than a batch of 200",
        "small": "a batch of 1 has no sample for each of 2 processes",
    }
    assert {
        key: words[key] in str(v) for key, v in part(both[0], "refused").items()
    } == dict.fromkeys(words, True)


def plant(root, n, side=40):
    """A folder of JPEGs: two classes, light and dark."""
    rng = np.random.default_rng(0)
    for part, count in (("train", n), ("val", n // 4)):
        for i in range(count):
            place = root / part / f"class{i % 2}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 128, (side, side, 3)) + 100 * (i % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i:05}.jpg")


@pytest.mark.slow
def test_the_command_trains_on_a_folder_in_two_processes(started, tmp_path, monkeypatch):
    folder, said = started
    assert said.count("in 2 processes, learning rate 0.0125, cpu") == 1  # one of them speaks
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    assert __main__.main([*train_on(folder / "images"), "--out", str(folder / "one")]) == 0
    for name in ("scores", "history"):
        one, two = (pd.read_csv(folder / kind / f"{name}.csv") for kind in ("one", "two"))
        one, two = (table.drop(columns="seconds", errors="ignore") for table in (one, two))
        pd.testing.assert_frame_equal(one, two, rtol=1e-3, atol=1e-4)
    assert len(one) == 2


def test_one_process_computes_the_textbook_bits():
    """No scale, no share, no wrapper: not even a rounding differs from the plain loop."""
    data, config = rank_tasks.few(), TrainConfig(epochs=3, batch_size=16)
    run = train("mlp", data, config)
    net = registry.build("mlp", data.n_classes, data.in_shape, seed=0)
    optimizer = OPTIMIZERS["sgd"](net.parameters(), config)
    x, y = data.normalise(data.train.images), data.train.labels
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = config.lr_at(epoch)
        for i in shuffled(101, 0, epoch).split(16):
            optimizer.zero_grad()
            F.cross_entropy(net(x[i]), y[i]).backward()
            optimizer.step()
    for name, values in net.state_dict().items():
        assert np.array_equal(run.arrays[f"snapshot/last/{name}"], values.numpy()), name


def test_every_sample_of_a_batch_is_one_processs():
    groups = []
    for rank in range(3):
        group = ProcessGroup.__new__(ProcessGroup)
        group.rank, group.world_size = rank, 3
        groups.append(group)
    for n in (1, 2, 7, 9):
        shares = [group.share(torch.arange(n)) for group in groups]
        assert torch.cat(shares).tolist() == list(range(n))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_an_epoch_of_one_process_may_be_called_shared():
    """Alone, the whole is the own share: to the bit."""
    found = []
    for shared in (False, True):
        recorder = CountingRecorder(3)
        x = recorder.watch(torch.eye(3))
        y, logits = torch.tensor([0, 1, 2]), 2 * x
        F.cross_entropy(logits, y).backward()
        recorder.update(torch.tensor([2, 0, 1]), x, logits, y)
        found.append((recorder.end_epoch(shared=shared), recorder.trace))
    assert found[0][0] == pytest.approx(found[1][0])
    for name, values in found[0][1].items():
        assert np.array_equal(values, found[1][1][name]), name


def test_a_job_is_the_profiles_with_changes(tmp_path):
    job = launch.make_job(epochs=2, batch_size=32, seed=None)
    assert (job.config.epochs, job.config.batch_size, job.config.lr) == (2, 32, 0.025)
    assert job.model == "mlp" and not job.measure.posthoc
    assert launch.make_job(batch_size=32, lr=0.2, measured=True).config.lr == 0.2
    plant(tmp_path, 8)
    large = launch.make_job("imagenet", root=tmp_path)
    assert (large.model, large.data.in_shape) == ("resnet50", (3, 224, 224))
    assert (large.config.epochs, large.config.batch_size, large.config.lr) == (200, 256, 0.1)
    assert replace(large.config, batch_size=1024).milestones == (0.6, 0.8)
    with pytest.raises(ValueError, match="size=32 applies to images of a folder"):
        launch.make_job(size=32)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.local_gpu() == 1
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 2 of this machine has no GPU: there are 2"):
        distributed.local_gpu()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # each is shown one
    assert distributed.local_gpu() == 0


def test_a_piece_that_others_train_is_waited_for_by_all(tmp_path):
    """The first process waits for the lock, and tells the others until it has it."""
    cache, told = store.Store(tmp_path), []
    with ThreadPoolExecutor(1) as other:  # a second claim of the same thread would be refused
        claim = cache.claim("run-0")
        other.submit(claim.__enter__).result()
        said = []
        first = SimpleNamespace(rank=0, broadcast=lambda value: said.append(value) or _enough(said))
        with pytest.raises(RuntimeError, match="enough"), launch._claimed("run-0", first, cache):
            pytest.fail("it was not waited for")
        assert said == [False] * 4
        other.submit(claim.__exit__, None, None, None).result()
    first.broadcast = told.append
    with launch._claimed("run-0", first, cache):
        assert told == [True] and files.is_held(cache.lock_of("run-0"))
    heard = iter([False, False, True])
    with launch._claimed("run-0", SimpleNamespace(rank=1, broadcast=lambda _: next(heard)), cache):
        assert not list(heard) and not files.is_held(cache.lock_of("run-0"))


def _enough(said):
    if len(said) == 4:
        raise RuntimeError("enough")


def test_a_training_in_one_process_is_the_stores_as_always(monkeypatch, tmp_path):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    job = ml.Job("mlp", rank_tasks.few(), TrainConfig(epochs=1))
    told = []
    run = launch.train_here(job, log=told.append)
    assert job.key in store.Store() and "learning rate 0.05, cpu" in told[0]
    assert np.array_equal(run.trace.loss, train("mlp", job.data, job.config).trace.loss)
