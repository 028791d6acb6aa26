"""Cost of a training as samples, epochs, models and processes grow, and a forecast of large ones.

    python benchmarks/growth.py [--counts 500 1000 2000 5000] [--parts train folder] [--out DIR]

``train``: one net on images in memory, in one process and, by torchrun, in two. ``folder``:
`memlens train` by the ImageNet profile on a folder of 2,000 JPEGs, likewise, with a small net and
with ResNet-50 (in two processes each then has its own batch norm). ``sweep``: nets on
random subsets, in one process and in two. ``step``: a step of the papers' large nets on one core.
``forecast``: those numbers, multiplied; nothing of what it says was trained. All on a CPU, with one
thread a process.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from common import machine, seconds_of
from PIL import Image

import memlens as ml
from memlens.data.samples import Dataset, from_arrays
from memlens.ensembles import subsets
from memlens.models import registry
from memlens.storage import store
from memlens.training.config import MeasureConfig, TrainConfig
from memlens.training.distributed import process_group, train_in_group
from memlens.training.loop import train_step
from memlens.training.memory import of_scores

COUNTS, PROCESSES = (500, 1_000, 2_000, 5_000), (1, 2)
SIDE, EPOCHS, BATCH, CLASSES = 32, 4, 100, 10  # of the images that are trained on
JPEGS = 2_000
FOLDER = {"small_cnn": (SIDE, EPOCHS), "resnet50": (64, 2)}  # side of the images, epochs
PARTS = ["train", "folder", "sweep", "step"]
COLUMNS = ["part", "case", "n", "processes", "measure", "value", "unit"]
SWEEP_NETS, SWEEP_EPOCHS = 40, 4
ROUNDS = 3
YEAR, DAY, GB = 365.25 * 86_400, 86_400, 1e9
# A large net, the side of its images, its classes, and samples in the step that is timed.
STEPS = {"resnet50, ImageNet": ("resnet50", 224, 1_000, 4),
         "resnet18, CIFAR-100": ("resnet18", 32, 100, 16),
         "small_inception, CIFAR-100": ("small_inception", 32, 100, 64)}  # fmt: skip
IMAGENET = {"n": 1_281_167, "epochs": 200}
SWEEP = {"n": 50_000, "keep": 0.7, "nets": 4_000, "epochs": 160, "classes": 100}


def plant(root: Path, n: int) -> None:
    """A folder of JPEGs in classes, and a tenth as many to validate on."""
    rng = np.random.default_rng(0)
    for part, count in (("train", n), ("val", max(CLASSES, n // 10))):
        for i in range(count):
            place = root / part / f"class{i % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 128, (SIDE + 8, SIDE + 8, 3)) + 12 * (i % CLASSES)
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i:05}.jpg")


def call(processes: int, arguments: list, work: Path) -> float:
    """Seconds of a command in so many processes, with one thread each and a cache of its own."""
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    line = [sys.executable, *(many if processes > 1 else []), *arguments]
    paths = [str(store.root()), os.environ.get("PYTHONPATH", "")]
    own = {"OMP_NUM_THREADS": "1", "MEMLENS_CACHE": str(work / "cache"),
           "PYTHONPATH": os.pathsep.join(paths)}  # fmt: skip
    run = partial(subprocess.run, stdout=subprocess.DEVNULL, check=True)
    return seconds_of(lambda: run([*map(str, line)], env={**os.environ, **own}))


def train_in_memory(n: int, out: Path) -> None:
    """A process's share of one training; the first writes its history."""
    config = TrainConfig(epochs=EPOCHS, batch_size=BATCH)
    data = in_memory(n, SIDE)
    with process_group(config) as group:
        start = time.process_time()
        if group:
            run = train_in_group(group, "small_cnn", data, config)
        else:
            run = ml.train("small_cnn", data, config)
        busy = (time.process_time() - start) * (group.world_size if group else 1)
        if group is None or group.rank == 0:
            out.mkdir(parents=True, exist_ok=True)
            run.history.assign(busy=busy).to_csv(out / "history.csv", index=False)
            store.Store().put("growth", store.Artifact(run.arrays, run.meta))


def measure_trainings(counts: tuple[int, ...], work: Path) -> list[dict]:
    """Images in memory, at every count."""
    rows = []
    for n in counts:
        rows += trained("train", n, work, lambda out, n=n: [__file__, "--share", n, "--out", out])
    kept = slope(rows, "kept in the store", EPOCHS, "kept for a further sample and epoch")
    busy = "processor time of a further sample and epoch, of all processes"
    return rows + kept + slope(rows, "processor time", EPOCHS, busy)


def measure_folder(counts: tuple[int, ...], work: Path) -> list[dict]:
    """A folder of JPEGs, by the command that ImageNet takes, with a small net and with its own."""
    n, rows = max(n for n in counts if n <= JPEGS), []
    plant(work / "images", n)
    for model, (side, epochs) in FOLDER.items():
        options = ["--profile", "imagenet", "--root", work / "images", "--size", side]
        options += ["--device", "cpu", "--model", model, "--epochs", epochs]
        options += ["--batch-size", BATCH, "--own-statistics", "--out"]
        command = ["-m", "memlens", "train", *options]
        rows += trained("folder", n, work, lambda out, c=command: [*c, out], model)
        peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        own = {"part": "folder", "case": model, "n": n, "unit": "GB"}
        rows.append({**own, "measure": "memory of the largest process so far", "value": peak / GB})
    return rows


def trained(
    part: str, n: int, work: Path, arguments: Callable[[Path], list], model: str = "small_cnn"
) -> list[dict]:
    """The fastest epoch of a training, the whole command, and what it keeps."""
    rows = []
    for processes in PROCESSES:
        place = work / f"{part}-{model}-{n}-{processes}"
        seconds = call(processes, arguments(place / "out"), place)
        history = pd.read_csv(place / "out" / "history.csv")
        epoch = history["seconds"].iloc[1:].min()
        kept = sum(path.stat().st_size for path in (place / "cache").rglob("*.npz"))
        own = {"part": part, "case": model, "n": n, "processes": processes}
        rows += [
            {**own, "measure": "a sample and epoch", "value": 1e6 * epoch / n, "unit": "us"},
            {**own, "measure": "the whole command", "value": seconds, "unit": "s"},
            {**own, "measure": "kept in the store", "value": kept, "unit": "bytes"},
        ]
        if "busy" in history:
            busy = history["busy"].iloc[0]
            rows.append({**own, "measure": "processor time", "value": busy, "unit": "s"})
    return rows


def slope(rows: list[dict], measure: str, per: int, name: str) -> list[dict]:
    """Return the growth of a measure for each sample, from the fewest to the most samples.

    In one process and in two; ``per``, so many epochs or nets.
    """
    found = []
    for processes in PROCESSES:
        own = [r for r in rows if (r["measure"], r["processes"]) == (measure, processes)]
        low, high = (pick(own, key=lambda row: row["n"]) for pick in (min, max))
        value = (high["value"] - low["value"]) / (high["n"] - low["n"]) / per
        unit, factor = ("us", 1e6) if high["unit"] == "s" else (high["unit"], 1)
        found.append({**high, "measure": name, "value": factor * value, "unit": unit})
    return found


def measure_sweeps(counts: tuple[int, ...], work: Path) -> list[dict]:
    """ModelEnsemble on random subsets; in two processes each has half of the chunks of them."""
    rows = []
    for n in counts:
        data = in_memory(n, 8)
        for processes in PROCESSES:
            place = work / f"sweep{n}-{processes}"
            # The first of the rounds starts the processes: the fastest has none of that.
            # As many chunks for one process as for two.
            few = patch.object(subsets, "CPU_ENSEMBLE_SIZE", SWEEP_NETS // 4)
            with few, patch.dict(os.environ, MEMLENS_CACHE=str(place)):
                seconds = min(seconds_of_sweep(data, processes, seed) for seed in range(ROUNDS))
            visits = SWEEP_NETS * SWEEP_EPOCHS * round(0.7 * n)
            kept = sum(path.stat().st_size for path in place.rglob("*.npz")) / ROUNDS
            own = {"part": "sweep", "case": "mlp", "n": n, "processes": processes}
            rows += [
                {**own, "measure": "a net", "value": seconds / SWEEP_NETS, "unit": "s"},
                {**own, "measure": "a sample, epoch and net", "value": 1e6 * seconds / visits,
                 "unit": "us"},
                {**own, "measure": "kept in the store", "value": kept, "unit": "bytes"},
            ]  # fmt: skip
    return rows + slope(rows, "kept in the store", SWEEP_NETS, "kept for a further sample and net")


def in_memory(n: int, side: int) -> Dataset:
    """Noise, lighter in the later classes; a tenth as many to validate on."""
    labels = np.arange(n) % CLASSES
    images = np.random.default_rng(0).integers(0, 128, (n, 1, side, side))
    images = (images + 12 * labels[:, None, None, None]).astype(np.uint8)
    tenth = max(CLASSES, n // 10)
    return from_arrays("growth", (images, labels), (images[:tenth], labels[:tenth]))


def seconds_of_sweep(data: Dataset, processes: int, seed: int) -> float:
    settings = {"n_models": SWEEP_NETS, "config": TrainConfig(epochs=SWEEP_EPOCHS), "seed": seed}
    return seconds_of(lambda: ml.subset_sweep("mlp", data, n_jobs=processes, **settings))


def seconds_a_sample(model: str, side: int, n_classes: int, rows: int) -> float:
    """A step of training with its recorder, on one core: the fastest of a few."""
    net = registry.build(model, n_classes, (3, side, side)).train()
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)
    x, y, found = torch.rand(rows, 3, side, side), torch.arange(rows) % n_classes, []
    for _ in range(ROUNDS):
        recorder, start = ml.Recorder(rows), time.perf_counter()
        train_step(net, optimizer, x, y, recorder=recorder, index=torch.arange(rows))
        recorder.end_epoch()
        found.append(time.perf_counter() - start)
    return min(found) / rows


def measure_steps(tiny: bool) -> list[dict]:
    torch.set_num_threads(1)
    rows = []
    for case, (model, side, n_classes, batch) in STEPS.items():
        if tiny:
            model, side, batch = "small_cnn", 8, 4
        value = seconds_a_sample(model, side, n_classes, batch)
        rows.append({"part": "step", "case": case, "n": batch, "processes": 1,
                     "measure": "a sample", "value": value, "unit": "s"})  # fmt: skip
    return rows


def forecast(table: pd.DataFrame) -> list[dict]:
    """ImageNet and the 4,000 models by the measured steps, on one core like this one."""
    step = table[table["part"] == "step"].set_index("case")["value"]
    n, epochs, rows = IMAGENET["n"], IMAGENET["epochs"], []
    ensemble = SWEEP["nets"] * SWEEP["epochs"] * round(SWEEP["keep"] * SWEEP["n"])
    for case, seconds in step.items():
        count = n * epochs if case.endswith("ImageNet") else ensemble
        own = {"part": "forecast", "case": case}
        rows += [
            {**own, "processes": 1, "measure": "all trainings", "value": seconds * count / YEAR,
             "unit": "core years"},
            {**own, "measure": "for one day, all devices together", "value": count / DAY,
             "unit": "samples a second"},
        ]  # fmt: skip
    predictions = 4 * SWEEP["nets"] * SWEEP["n"] * SWEEP["classes"]
    scores = of_scores(n, epochs, MeasureConfig())
    return rows + [
        {"part": "forecast", "case": "resnet50, ImageNet", "n": n, "measure":
         "in-step scores, in each process", "value": scores / GB, "unit": "GB"},
        {"part": "forecast", "case": "resnet18, CIFAR-100", "n": SWEEP["n"], "measure":
         "answers of all nets", "value": predictions / GB, "unit": "GB"},
    ]  # fmt: skip


def measure(parts: list[str], counts: tuple[int, ...], tiny: bool) -> list[dict]:
    """The rows of the parts that are asked for."""
    of = {"train": measure_trainings, "folder": measure_folder, "sweep": measure_sweeps}
    with tempfile.TemporaryDirectory() as scratch:
        rows = [row for part in of if part in parts for row in of[part](counts, Path(scratch))]
    return rows + (measure_steps(tiny) if "step" in parts else [])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, metavar="N")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--tiny", action="store_true", help="small nets in place of the large ones")
    parser.add_argument("--share", type=int, metavar="N", help="(a process's part of ``train``)")
    options = parser.parse_args(arguments)
    if options.share:
        train_in_memory(options.share, options.out)
        return 0
    table = pd.DataFrame(measure(options.parts, tuple(options.counts), options.tiny))
    table, path = table.reindex(columns=COLUMNS).assign(**machine()), options.out / "growth.csv"
    if path.exists():  # the other parts stay as they are
        earlier = pd.read_csv(path, keep_default_na=False, na_values={"n": "", "processes": ""})
        stays = ~earlier["part"].isin([*options.parts, "forecast"])
        table = pd.concat([earlier[stays], table])
    if (table["part"] == "step").any():
        table = pd.concat([table, pd.DataFrame(forecast(table)).assign(**machine())])
    table[["n", "processes"]] = table[["n", "processes"]].astype("Int64")
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4g")
    print(table[COLUMNS].to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
