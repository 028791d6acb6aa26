"""Effect of bfloat16 on the scores: Fashion-MNIST, small CNN, 20 epochs, on a processor.

    python benchmarks/precision.py

Twice the rank correlation with float32. *Measured*: one training in float32, at whose every step a
second pass in bfloat16 measures the same weights. *Trained*: whole trainings in each, beside one in
float32 whose sums are taken in another order (another memory layout), and one from another seed:
trainings are chaotic, so that the last bit of any precision moves them.
"""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from common import save

import memlens as ml
from memlens.evaluation import metrics
from memlens.experiments import profiles
from memlens.models import registry
from memlens.tracking import scores
from memlens.tracking.recorder import Recorder
from memlens.training.batches import Batches
from memlens.training.config import OPTIMIZERS
from memlens.training.devices import Engine
from memlens.training.loop import shuffled, train_step

SCORES = ("csg", "csl", "loss_sensitivity", "aum")
MEASURED, TRAINED = 2_000, 10_000  # samples


def measured(data: ml.Dataset, config: ml.TrainConfig) -> dict[str, float]:
    """Spearman of each score measured in bfloat16 with that in float32, at the same weights."""
    n = len(data.train)
    net = registry.build("small_cnn_bn", data.n_classes, data.in_shape).train()
    optimizer, batches = (
        OPTIMIZERS["sgd"](net.parameters(), config),
        Batches(data, config, Engine()),
    )
    rounded, exact, low = Engine(bfloat16=True).forward(net), Recorder(n), Recorder(n)
    for epoch in range(config.epochs):
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(epoch)
        order = shuffled(n, 0, epoch).split(config.batch_size)
        for index, x, y in batches.of_epoch(order, 0, epoch):
            statistics = [buffer.clone() for buffer in net.buffers()]
            beside = low.watch(x)
            logits = rounded(beside)
            (beside.grad,) = torch.autograd.grad(F.cross_entropy(logits, y), beside)
            low.update(index, beside, logits, y)
            for buffer, value in zip(net.buffers(), statistics, strict=True):
                buffer.copy_(value)
            train_step(net, optimizer, x, y, recorder=exact, index=index)
        exact.end_epoch(), low.end_epoch()
    of = {name: scores.CATALOGUE[name].function for name in SCORES}
    return {k: metrics.spearman(f(exact.trace), f(low.trace)) for k, f in of.items()}


def trained(profile: profiles.Profile) -> dict[str, dict[str, float]]:
    """Spearman of each score with that of a float32 training, for three other trainings."""
    data, quick = profile.load(), ml.MeasureConfig()
    changes = {
        "bfloat16": {"precision": "bfloat16"},
        "float32, channels last": {"channels_last": True},
        "float32, another seed": {"seed": 1},
    }
    jobs = [profile.job(data, measure=quick, **c) for c in ({}, *changes.values())]
    base, *others = (run.scores for run in ml.train_many(jobs))
    return {
        name: {s: metrics.spearman(base[s].to_numpy(), other[s].to_numpy()) for s in SCORES}
        for name, other in zip(changes, others, strict=True)
    }


def main() -> None:
    profile = ml.get_profile("fashion_mnist")
    small, large = (profile.scaled(0.1, n) for n in (MEASURED, TRAINED))
    rows = {f"measured in bfloat16, {MEASURED:,} samples": measured(small.load(), small.config)}
    rows |= {f"trained, {k}, {TRAINED:,} samples": v for k, v in trained(large).items()}
    table = pd.DataFrame(rows).T.rename_axis("against float32")
    assert np.isfinite(table).all(axis=None)
    save("precision", table.assign(epochs=small.config.epochs))


if __name__ == "__main__":
    main()
