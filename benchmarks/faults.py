"""Faults and finished or unfinished work: kills, flipped bytes, a full disk, bad inputs.

    python benchmarks/faults.py                 # every part, about 25 minutes on two cores
    python benchmarks/faults.py flips disk      # these parts; the rows of the others are kept

The targets are in ``GOALS``. A part in miniature is a test of its own (`tests/test_faults.py`).
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import RESULTS, save
from faults_kills import content, kills

import memlens as ml
from memlens.data import samples
from memlens.ensembles import retrainings, subsets
from memlens.storage import checkpoints, inventory
from memlens.storage.checkpoints import TrainingCheckpoint
from memlens.storage.store import Store
from memlens.training.loop import TrainingSession, train

Rows = list[tuple[str, str, float]]  # case, measure, value
SHORT = ml.TrainConfig(epochs=3)
GOALS = {"corrupt": 0, "lost": 0, "differ": 0, "leftovers": 0, "undetected": 0, "unclear": 0,
         "damaged": 0, "unnamed": 0,
         "share of a digits run": 0.05, "share of a CIFAR-sized epoch": 0.01}  # fmt: skip


def filled(folder: Path) -> None:
    """A run, a sweep, a retraining and a checkpoint in a folder."""
    data = ml.load("digits").subset(200)
    with _cache(folder):
        ml.train_many([ml.Job("mlp", data, SHORT)], n_jobs=1)
        ml.subset_sweep("mlp", data, n_models=4, config=SHORT, n_jobs=1)
        retrainings.retrain("folds", "mlp", [data], SHORT, seeds=[0], n_jobs=1)
    TrainingCheckpoint(folder / ".checkpoints" / "run-0123456789abcdef.checkpoint").save(
        {"net": torch.arange(5000.0)}
    )


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    before = os.environ.get("MEMLENS_CACHE")
    os.environ["MEMLENS_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("MEMLENS_CACHE")
        if before is not None:
            os.environ["MEMLENS_CACHE"] = before


def flips(n: int, work: Path, seed: int = 0) -> dict[str, int]:
    """Change one byte at so many random places, each kind of file as often; who notices?

    Returns
    -------
    dict
        flips; undetected (read as if whole); unnamed (no warning, or `inventory.verify` silent).
    """
    filled(work)
    files = sorted(p for p in work.rglob("*") if p.is_file())
    rng, counts = np.random.default_rng(seed), {"flips": n, "undetected": 0, "unnamed": 0}
    for k in range(n):
        path = files[k % len(files)]
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        named = inventory.verify(inventory.entries(work))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            checkpoint = path.suffix == ".checkpoint"
            found = (
                TrainingCheckpoint(path).load() if checkpoint else Store(work).get(path.parent.name)
            )
        counts["undetected"] += found is not None
        counts["unnamed"] += len(named) != 1 or len(said) != 1
        if not path.exists():  # it is set aside: put it back
            back = (
                path.with_suffix(".damaged")
                if checkpoint
                else work / f".damaged-{path.parent.name}"
            )
            os.replace(back, path if checkpoint else path.parent)
        path.write_bytes(whole)
    assert not inventory.verify(inventory.entries(work))
    return counts


@contextmanager
def small_disk(kilobytes: int) -> Iterator[Path]:
    """A file system of that size, in memory.

    Raises
    ------
    PermissionError
        Where none can be mounted.
    """
    folder = tempfile.mkdtemp(prefix="memlens-disk-")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "memlens", folder]
    try:
        if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
            raise PermissionError("no file system can be mounted here: it takes Linux and root")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
    finally:
        os.rmdir(folder)


def full_disk(steps: int) -> dict[str, int]:
    """Train on a disk with ever more space, until it is enough; then free some and go on.

    Returns
    -------
    dict
        failures (calls that met the full disk); unclear (no OSError that says what to do); damaged
        (entries that are not whole afterwards, old ones gone, leftovers); differ (ends other than
        on a disk with space).
    """
    data = ml.load("digits").subset(200)
    calls = {
        "run": lambda: ml.train_many([ml.Job("small_cnn", data, SHORT)], n_jobs=1),
        "sweep": lambda: ml.subset_sweep("mlp", data, n_models=8, config=SHORT, n_jobs=1),
        "folds": lambda: retrainings.retrain("folds", "mlp", [data], SHORT, seeds=[0], n_jobs=1),
    }
    counts = {"failures": 0, "unclear": 0, "damaged": 0, "differ": 0}
    with _every_epoch(), small_disk(4000) as disk:
        for name, call in calls.items():
            with tempfile.TemporaryDirectory() as other, _cache(Path(other)):
                call()
                right = content(Path(other))
                size = sum(p.stat().st_size for p in Path(other).rglob("*") if p.is_file())
            for free in np.linspace(0, 4 * size, steps, dtype=int):
                _meet(disk, name, call, int(free), right, counts)
    return counts


def _meet(
    disk: Path,
    name: str,
    call: Callable[[], object],
    free: int,
    right: dict[str, str],
    counts: dict[str, int],
) -> None:
    cache = disk / name
    with _cache(cache):
        ml.train_many([ml.Job("mlp", ml.load("digits").subset(100), SHORT)], n_jobs=1)  # old work
        old = content(cache)
        filler = disk / "filler"
        space = shutil.disk_usage(disk).free - free
        filler.write_bytes(bytes(max(0, space)))
        try:
            call()
        except Exception as error:
            counts["failures"] += 1
            text = str(error)
            told = isinstance(error, OSError) and "No space left" in text and "free some" in text
            counts["unclear"] += not told
        found = inventory.entries(cache)
        counts["damaged"] += len(inventory.verify(found))
        counts["damaged"] += sum(e.kind in ("damaged", "leftover") for e in found)
        counts["damaged"] += not old.items() <= content(cache).items()
        filler.unlink()
        call()
        counts["differ"] += content(cache) != old | right
    shutil.rmtree(cache)


@contextmanager
def _every_epoch() -> Iterator[None]:
    before = checkpoints.SECONDS, checkpoints.SHARE, subsets.CPU_ENSEMBLE_SIZE
    checkpoints.SECONDS, checkpoints.SHARE, subsets.CPU_ENSEMBLE_SIZE = 0.0, 1e9, 4
    try:
        yield
    finally:
        checkpoints.SECONDS, checkpoints.SHARE, subsets.CPU_ENSEMBLE_SIZE = before


class Timed(TrainingCheckpoint):
    """Counts the time that keeping takes."""

    spent, saves = 0.0, 0

    def save(self, state: dict) -> None:
        start = time.perf_counter()
        super().save(state)
        self.spent, self.saves = self.spent + time.perf_counter() - start, self.saves + 1


def cost_of_digits(rounds: int) -> Rows:
    """Share of a digits run that goes into checkpoints, of the longest of the tests' small nets."""
    rows, data = [], ml.load("digits")
    for model in ("mlp", "small_cnn"):
        shares, saves = [], []
        for seed in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                checkpoint, start = Timed(Path(folder) / "run.checkpoint"), time.perf_counter()
                train(model, data, ml.TrainConfig(seed=seed), checkpoint=checkpoint)
                shares.append(checkpoint.spent / (time.perf_counter() - start))
                saves.append(checkpoint.saves)
        rows += [(model, "share of a digits run", max(shares)), (model, "saves", max(saves))]
    return rows


def cost_of_cifar(
    model: str, config: ml.TrainConfig, n_steps: int, n_samples: int = 50_000
) -> Rows:
    """One save of a training on so many colour images, beside an epoch that is timed in part."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(n_samples, 3, 32, 32), dtype=np.uint8)
    parts = (images, np.arange(n_samples) % 10), (images[:100], np.arange(100) % 10)
    data = samples.from_arrays("noise", *parts)
    few = replace(data, train=data.train[torch.arange(n_steps * config.batch_size)])
    small, session = (
        TrainingSession(model, part, config, ml.MeasureConfig(), config.engine())
        for part in (few, data)
    )
    small.run_epoch(0)
    start = time.perf_counter()
    small.run_epoch(1)
    epoch = (time.perf_counter() - start) * len(data.train) / len(few.train)
    state = session.state_dict() | {"optimizer": small.optimizer.state_dict()}
    # Two other nets, at their worst: tensors that two names share are written once.
    state["kept"] = {
        name: (0, {k: value.clone() for k, value in state["net"].items()})
        for name in ("weight_norm", "best_val")
    }
    state["recorder"] = [torch.rand(9, n_samples) for _ in range(config.epochs)]  # the last epoch's
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Timed(Path(folder) / "run.checkpoint")
        checkpoint.save(state)
        size = (Path(folder) / "run.checkpoint").stat().st_size
    every = max(
        1.0, checkpoints.SECONDS / epoch, checkpoint.spent / checkpoints.SHARE / epoch
    )  # epochs
    return [
        (model, "seconds of an epoch, extrapolated", epoch),
        (model, "seconds of a save", checkpoint.spent),
        (model, "MB of a save", size / 1e6),
        (model, "share of a CIFAR-sized epoch", checkpoint.spent / epoch / every),
    ]


def _kills(job: str, n: int, seed: int = 0) -> Rows:
    with tempfile.TemporaryDirectory() as work:
        return [(job, name, value) for name, value in kills(job, n, Path(work), seed).items()]


def _flips() -> Rows:
    with tempfile.TemporaryDirectory() as work:
        return [("stored files", name, n) for name, n in flips(200, Path(work)).items()]


def _disk() -> Rows:
    return [("a full disk", name, n) for name, n in full_disk(10).items()]


def _fuzz() -> Rows:
    from faults_fuzz import fuzz

    return [("bad inputs", name, n) for name, n in fuzz(1000).items()]


PARTS = {
    # In batches, so that a call that is cut short has left its rows.
    **{f"training {k}": lambda k=k: _kills("training", 10, k) for k in range(1, 11)},
    **{f"sweep {k}": lambda k=k: _kills("sweep", 10, k) for k in range(1, 4)},
    **{f"retraining {k}": lambda k=k: _kills("retraining", 10, k) for k in range(1, 11)},
    **{f"parallel {k}": lambda k=k: _kills("parallel", 10, k) for k in range(1, 4)},
    "flips": _flips,
    "disk": _disk,
    "fuzz": _fuzz,
    "digits": lambda: cost_of_digits(5),
    "small": lambda: cost_of_cifar("small_cnn", ml.TrainConfig(epochs=60), 30),
    "resnet18": lambda: cost_of_cifar("resnet18", ml.TrainConfig(epochs=200, batch_size=128), 2),
}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    if unknown := set(names) - set(PARTS):
        sys.exit(f"unknown parts {sorted(unknown)}; known: {', '.join(PARTS)}")
    for name in names or PARTS:
        rows = pd.DataFrame(PARTS[name](), columns=["case", "measure", "value"])
        rows.insert(0, "part", name)
        rows["most"] = rows["measure"].map(GOALS)
        rows["met"] = np.where(rows["value"] <= rows["most"], "met", "missed")
        rows.loc[rows["most"].isna(), "met"] = ""
        path = RESULTS / "faults.csv"
        if path.exists():
            kept = pd.read_csv(path, keep_default_na=False)
            kept = kept[kept["part"] != name][rows.columns]
            rows = pd.concat([kept.assign(most=pd.to_numeric(kept["most"])), rows])
        save("faults", rows.set_index("part"))


if __name__ == "__main__":
    main(sys.argv[1:])
