"""Curvature on a GPU, ours against the authors' scheme: part `curvature` of `gpu.py`.

Both take the paper's finite differences in float32, without TF32, along the same directions. Ours
takes the gradient at the clean input once for all n probes, theirs once a probe.
"""

import torch
from common import interleaved
from gpu_speed import Loop
from gpu_table import Bench, Goal
from torch import Tensor, nn

import memlens as ml
from memlens.evaluation import metrics
from memlens.tracking import signals
from memlens.training import devices
from memlens.training.batches import sequential_batches
from memlens.training.config import mixed_seed
from memlens.training.posthoc import PosthocEvaluator

PROBES = 10
STEP = ml.MeasureConfig().curvature_step
EPOCHS = 3  # a net of random weights bends nothing
EXACT = 256  # samples whose Hessian-vector products are taken exactly
ROUNDS = 3
CASE = f"resnet18, n = {PROBES}"
GOALS = [
    Goal("curvature", CASE, *rest)
    for rest in (
        ("ours, an epoch", "s"),
        ("authors' scheme, an epoch", "s"),
        ("times faster than the authors' scheme", "", ">= 1.8"),
        ("Spearman of ours and theirs",),
        ("Spearman of ours and exact products",),
        ("Spearman of theirs and exact products",),
    )
]


def authors_curvature(
    model: nn.Module, x: Tensor, y: Tensor, n_directions: int, step: float, seed: int
) -> Tensor:
    """Mean over probes of ||Hv||, (n,): two forward passes a probe and one backward through both.

    The directions are those of `signals.curvature` with the same seed.
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    x, norm = x.detach().requires_grad_(True), x.new_zeros(len(x))
    for _ in range(n_directions):
        signs = torch.randint(2, x.shape, generator=generator, device=x.device).to(x) * 2 - 1
        moved = signals.loss(model(x + step * signs), y).sum()
        (change,) = torch.autograd.grad(moved - signals.loss(model(x), y).sum(), x)
        norm += change.flatten(1).norm(dim=1) / (step * n_directions)
    return norm


def authors_epoch(net: nn.Module, data: ml.Dataset, rows: int, epoch: int) -> Tensor:
    """Curvature of all training samples as the authors compute it, along our directions."""
    device, found = next(net.parameters()).device, []
    for number, (images, y) in enumerate(sequential_batches(data.train, rows, device)):
        seed = mixed_seed(0, epoch, *((number,) if number else ()))
        x = data.normalise(images)
        found.append(authors_curvature(net, x, y, PROBES, STEP, seed))
    return torch.cat(found)


def against_exact(net: nn.Module, data: ml.Dataset) -> dict[str, float]:
    """Spearman of either scheme with exact products along the same directions."""
    device = next(net.parameters()).device
    x = data.normalise(data.train.images[:EXACT].to(device))
    y = data.train.labels[:EXACT].to(device)
    exact = signals.curvature(net, x, y, n_directions=PROBES, exact=True).norm.cpu()
    ours = signals.curvature(net, x, y, n_directions=PROBES, step=STEP).norm.cpu()
    theirs = authors_curvature(net, x, y, PROBES, STEP, 0).cpu()
    pairs = {"ours": ours, "theirs": theirs}
    return {name: metrics.spearman(values, exact) for name, values in pairs.items()}


def measure(bench: Bench) -> None:
    """Train for a few epochs, then measure the net both ways, in turns."""
    data = bench.data
    loop = Loop(bench.model("resnet18"), data, bench.config(), record=False)
    for _ in range(bench.less(EPOCHS, 1)):
        loop()
    net, rows = loop.net.eval(), devices.rows_of(loop.net, data.in_shape)
    passing = PosthocEvaluator(data, ml.MeasureConfig(posthoc=True), 0, rows)
    probing = PosthocEvaluator(data, ml.MeasureConfig(posthoc=True, n_directions=PROBES), 0, rows)
    theirs: list[Tensor] = []
    variants = {
        "pass": lambda: passing.after_epoch(net, 0),
        "ours": lambda: probing.after_epoch(net, 0),
        "theirs": lambda: theirs.append(authors_epoch(net, data, rows, 0)),
    }
    with loop.engine.tuned():
        seconds = interleaved(variants, bench.less(ROUNDS, 1), warmup=1, until=bench.until)
        exact = against_exact(net, data)
    ours = seconds["ours"] - seconds["pass"]  # the post-hoc pass is no part of the curvature
    add = lambda name, value, note="": bench.table.add(  # noqa: E731
        "curvature", CASE, name, value, epochs=bench.less(EPOCHS, 1), note=note
    )
    stated = f"median of {len(seconds)} rounds, float32 without TF32"
    add("ours, an epoch", ours.median(), f"{stated}; epoch with a pass less one without")
    add("authors' scheme, an epoch", seconds["theirs"].median(), stated)
    add("times faster than the authors' scheme", (seconds["theirs"] / ours).median())
    same = metrics.spearman(probing.rows["curvature_norm"][0].cpu(), theirs[-1].cpu())
    add("Spearman of ours and theirs", same, "same directions")
    for name, value in exact.items():
        add(f"Spearman of {name} and exact products", value, f"{EXACT} samples, same directions")


def run(bench: Bench) -> None:
    """The one case."""
    bench.attempt("curvature", CASE, lambda: measure(bench))
