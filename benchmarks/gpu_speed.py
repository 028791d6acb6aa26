"""Cost of scoring on a GPU, and speed of the training loop: part `speed` of `gpu.py`.

Plain training, training with the in-step recorder, and training with a pass of its own after each
epoch, all by the package's own steps; beside them the loop as it is usually written. An epoch
includes the drawing of its order and the closing of the recorder.
"""

import os
from collections.abc import Iterator, Sized
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from common import interleaved, ratios, seconds_of
from gpu_table import Bench, Goal, say
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

import memlens as ml
from memlens.models import registry
from memlens.tracking.recorder import Recorder
from memlens.training import devices
from memlens.training.batches import Batches
from memlens.training.config import OPTIMIZERS
from memlens.training.loop import shuffled, train_step
from memlens.training.posthoc import PosthocEvaluator

BATCHES = (128, 512)
CASES = {f"resnet18, batch {size}": size for size in BATCHES}
ROUNDS = 7
SIDE = 8192  # of the matrices whose product says how fast the GPU multiplies
PRODUCTS = 20
# The in-step recorder has one form, which records five signals: both names are the same number.
RECORDED = {"CSG + CSL": "<= 1.03", "every in-step score": ""}
# Ours keeps all bits of float32; torch's default, the authors', rounds convolutions to TF32.
POSTHOC = {"post-hoc pass": "exact float32", "post-hoc pass, TF32": "as torch has it by default"}
GOALS = [
    Goal("speed", case, *rest)
    for case in CASES
    for rest in (
        ("plain", "images/s"),
        *((name, "images/s") for name in RECORDED),
        *((f"{name}, time over plain", "", target) for name, target in RECORDED.items()),
        *((name, "images/s") for name in POSTHOC),
        *((f"{name}, time over plain",) for name in POSTHOC),
        ("conventional loop", "images/s"),
        ("plain, times the conventional loop's speed", "", ">= 10"),
        ("compilation, plain", "s"),
        ("compilation, recorded", "s"),
        ("bfloat16 matrix product", "TFLOP/s"),
        ("plain, share of the matrix product's rate",),
        ("waits for the GPU in the steps of an epoch", "", "<= 0"),
    )
]


class Loop:
    """One net that trains an epoch whenever it is called, as `memlens.training.loop` does.

    With ``posthoc`` ("exact" or "tf32"), a pass over all samples follows each epoch.
    """

    def __init__(
        self, model: str, data: ml.Dataset, config: ml.TrainConfig, record: bool, posthoc: str = ""
    ) -> None:
        self.engine, self.data, self.epoch = config.engine(), data, 0
        self.config = config
        net = registry.build(model, data.n_classes, data.in_shape, seed=config.seed)
        self.net = self.engine.place(net).train()
        self.forward = self.engine.forward(self.net)
        self.source = Batches(data, config, self.engine)
        self.optimizer = OPTIMIZERS[config.optimizer](self.net.parameters(), config)
        self.recorder = Recorder(len(data.train)) if record else None
        rows = devices.rows_of(self.net, data.in_shape)
        self.probes = (
            PosthocEvaluator(data, ml.MeasureConfig(posthoc=True), 0, rows) if posthoc else None
        )
        self.rounded = posthoc == "tf32"

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(index, x, y) of the next epoch."""
        order = shuffled(len(self.data.train), 0, self.epoch)
        return self.source.of_epoch(order.split(self.config.batch_size), 0, self.epoch)

    def step(self, index: Tensor, x: Tensor, y: Tensor) -> None:
        train_step(self.forward, self.optimizer, x, y, recorder=self.recorder, index=index)

    def close(self) -> None:
        if self.recorder:
            self.recorder.end_epoch()
        if self.probes:
            if self.rounded:  # the engine sets it back after the epoch
                torch.backends.cudnn.conv.fp32_precision = "tf32"
            self.probes.after_epoch(self.net, self.epoch)
        self.epoch += 1

    def __call__(self) -> None:
        with self.engine.tuned():
            for batch in self.batches():
                self.step(*batch)
            self.close()


class Pictures(torch.utils.data.Dataset):
    """Samples one by one, cropped, mirrored and normalised as pictures are: by PIL on the CPU."""

    def __init__(self, data: ml.Dataset, config: ml.TrainConfig) -> None:
        self.arrays, self.labels = data.train.images.numpy(), data.train.labels.tolist()
        side = data.in_shape[-1]
        augmentation = [
            transforms.RandomCrop(side, max(1, side // 8)),
            transforms.RandomHorizontalFlip(),
        ]
        self.show = transforms.Compose(
            [
                transforms.ToPILImage(),
                *(augmentation if config.augment == "crop_flip" else []),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.show(self.arrays[i].transpose(1, 2, 0)), self.labels[i]


class Order(Sampler):
    """The samples in the order in which `Loop` takes them."""

    def __init__(self, data: Sized) -> None:
        self.n, self.epoch = len(data), 0

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        order = shuffled(self.n, 0, self.epoch)
        self.epoch += 1
        return iter(order.tolist())


class Conventional:
    """The loop as it is usually written: a DataLoader with workers, PIL, float32, no compilation.

    Torch's settings are its own: on a GPU float32 convolutions may round to TF32.
    """

    def __init__(self, model: str, data: ml.Dataset, config: ml.TrainConfig, workers: int) -> None:
        self.device = config.engine().device
        net = registry.build(model, data.n_classes, data.in_shape, seed=config.seed)
        self.net = net.to(self.device).train()
        decay = {"momentum": config.momentum, "weight_decay": config.weight_decay}
        self.optimizer = torch.optim.SGD(self.net.parameters(), config.lr, **decay)
        self.loader = DataLoader(
            pictures := Pictures(data, config),
            config.batch_size,
            sampler=Order(pictures),
            num_workers=workers,
            pin_memory=devices.is_gpu(self.device),
            persistent_workers=workers > 0,
        )

    def __call__(self) -> None:
        for x, y in self.loader:
            x, y = (part.to(self.device, non_blocking=True) for part in (x, y))
            self.optimizer.zero_grad()
            F.cross_entropy(self.net(x), y).backward()
            self.optimizer.step()


def flops_per_sample(model: str, data: ml.Dataset, n: int = 2) -> float:
    """Multiplications and additions of a forward and backward pass, two for a product's term."""
    net = registry.build(model, data.n_classes, data.in_shape).train()
    x, y = data.normalise(data.train.images[:n]), data.train.labels[:n]
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(net(x), y).backward()
    return counter.get_total_flops() / n


def matrix_rate(device: torch.device, side: int) -> float:
    """Multiplications and additions a second in products of bfloat16 matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, b)

    seconds = interleaved({"product": multiply}, rounds=5)["product"].median()
    return PRODUCTS * 2 * side**3 / seconds


def waits(loop: Loop) -> str:
    """Return what made the host wait for the GPU after an epoch's first step; "" if nothing did.

    The epoch's order is copied to the GPU before the first step, and the closing reads the means:
    both wait, once an epoch, and are left out.
    """
    with loop.engine.tuned():
        batches = loop.batches()
        loop.step(*next(batches))
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in batches:
                loop.step(*batch)
        except RuntimeError as error:
            return str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        loop.close()
    return ""


def measure(bench: Bench, case: str) -> None:
    """All numbers of one batch size, each written once it is known."""
    data, config = bench.data, bench.config(batch_size=CASES[case])
    model, table = bench.model("resnet18"), bench.table
    loops = {
        "plain": Loop(model, data, config, record=False),
        "recorded": Loop(model, data, config, record=True),
        "post-hoc pass": Loop(model, data, config, record=False, posthoc="exact"),
        "post-hoc pass, TF32": Loop(model, data, config, record=False, posthoc="tf32"),
    }
    first = {name: seconds_of(loop) for name, loop in loops.items()}
    say(f"first epochs, with compilation: { {k: round(v, 1) for k, v in first.items()} } s")
    if devices.is_gpu(bench.device):
        found = waits(loops["recorded"])
        measured = "waits for the GPU in the steps of an epoch"
        table.add("speed", case, measured, float(bool(found)), note=found[:200])
        if found:  # the recorder is in the middle of an epoch
            loops["recorded"] = Loop(model, data, config, record=True)
            loops["recorded"]()
    workers = bench.less(os.cpu_count() or 1, 0)
    usual, broken = Conventional(model, data, config, workers), None
    try:
        usual()
        loops["conventional"] = usual
    except (RuntimeError, OSError) as error:  # workers out of shared memory, say
        broken = error
    seconds = interleaved(loops, bench.less(ROUNDS, 2), warmup=1, until=bench.until)
    for name in ("plain", "recorded"):
        lost = max(0.0, first[name] - seconds[name].median())
        table.add("speed", case, f"compilation, {name}", lost, note="first epoch less a later one")
    report(bench, case, seconds, workers)
    rate = matrix_rate(bench.device, bench.less(SIDE, 128))
    table.add("speed", case, "bfloat16 matrix product", rate / 1e12)
    done = flops_per_sample(model, data) * len(data.train) / seconds["plain"].median()
    measured = "plain, share of the matrix product's rate"
    table.add("speed", case, measured, done / rate, note=f"{done / 1e12:.3g} TFLOP/s")
    if broken:  # told only now: it must not cost the other numbers
        raise broken


def report(bench: Bench, case: str, seconds: pd.DataFrame, workers: int) -> None:
    """Speeds, and ratios to the plain loop, which are taken within each round."""
    table, n = ratios(seconds, base="plain"), len(bench.data.train)
    names = {
        "plain": ("plain", ""),
        **dict.fromkeys(RECORDED, ("recorded", "one recorder for both, five signals")),
        **{name: (name, f"eval mode, after each epoch; {note}") for name, note in POSTHOC.items()},
        "conventional loop": ("conventional", f"{workers} workers, PIL, torch's float32"),
    }
    for name, (variant, note) in names.items():
        if variant not in table.index:
            continue
        row = table.loc[variant]
        note = f"median of {row['rounds']:.0f} rounds; {note}".removesuffix("; ")
        bench.table.add("speed", case, name, n / row["seconds"], note=note)
        relative = f"{name}, time over plain"
        if variant == "conventional":
            relative = "plain, times the conventional loop's speed"
        if variant != "plain":
            spread = f"quartiles {row['q25']:.3g} to {row['q75']:.3g}"
            bench.table.add("speed", case, relative, row["median"], note=spread)


def run(bench: Bench) -> None:
    """Each batch size in turn."""
    for case in bench.new_first("speed", CASES):
        if not bench.attempt("speed", case, partial(measure, bench, case)):
            return
