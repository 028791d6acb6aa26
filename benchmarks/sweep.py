"""A sweep against the time that its matrix products need, and against the same nets one by one.

    python benchmarks/sweep.py [N_MODELS]

Perceptrons on 2,000 grey images of 28 x 28 pixels, of which each sees 70 %. The floor is the number
of float operations, 6 a weight and sample, over the machine's rate in large matrix products. Both
sides use one process a core and one thread a process; both train on the same subsets in the same
order. The one-by-one side is the textbook loop on a plain module. The images are random: their
content does not change the time. The targets are half of the floor's speed, and 1.5 times that of
the same nets one by one.
"""

import os
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from common import interleaved, ratios, save
from joblib import Parallel, delayed

import memlens as ml
from memlens.data.samples import from_arrays
from memlens.ensembles import subsets
from memlens.ensembles.model_ensemble import ModelEnsemble, train_ensemble
from memlens.models import registry
from memlens.training.config import OPTIMIZERS
from memlens.training.devices import thread_count
from memlens.training.loop import shuffled

RECIPE = ml.TrainConfig(epochs=60, batch_size=64, lr=0.05, weight_decay=5e-4)
KEEP = 0.7
ROUNDS = 3
SIDE, SECONDS = 1024, 2.0  # of the matrices that measure the rate, and how long


def images(n_samples: int = 2000) -> ml.Dataset:
    rng, parts = np.random.default_rng(0), []
    for n in (n_samples, 100):
        pixels = rng.integers(256, size=(n, 1, 28, 28), dtype=np.uint8)
        parts.append((pixels, np.arange(n) % 10))
    return from_arrays("random", *parts)


def matrix_rate() -> float:
    """Return the float operations a second of large float32 products on one thread."""
    with thread_count(1):
        a, b, done = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE), 0
        torch.mm(a, b)
        start = time.perf_counter()
        while (seconds := time.perf_counter() - start) < SECONDS:
            torch.mm(a, b)
            done += 1
    return done * 2 * SIDE**3 / seconds


def operations(data: ml.Dataset, n_models: int) -> float:
    """Return the float operations of a sweep, with the input gradient, which it leaves out."""
    net = registry.build("mlp", data.n_classes, data.in_shape)
    n_weights = sum(w.numel() for w in net.parameters())
    return 6.0 * n_weights * round(KEEP * len(data.train)) * RECIPE.epochs * n_models


def one_by_one(
    data: ml.Dataset, masks: np.ndarray, seeds: Sequence[int], config: ml.TrainConfig = RECIPE
) -> None:
    device = config.engine().device
    x, y = data.normalise(data.train.images).to(device), data.train.labels.to(device)
    with thread_count(1):
        for mask, seed in zip(masks, seeds, strict=True):
            net = registry.build("mlp", data.n_classes, data.in_shape, seed=int(seed)).to(device)
            optimizer = OPTIMIZERS[config.optimizer](net.parameters(), config)
            members = torch.as_tensor(mask).nonzero()[:, 0]
            for epoch in range(config.epochs):
                optimizer.param_groups[0]["lr"] = config.lr_at(epoch)
                order = members[shuffled(len(members), int(seed), epoch)].to(device)
                for index in order.split(config.batch_size):
                    optimizer.zero_grad()
                    F.cross_entropy(net(x[index]), y[index]).backward()
                    optimizer.step()
            with torch.no_grad():
                net(x)


def all_at_once(data: ml.Dataset, masks: np.ndarray, seeds: np.ndarray) -> None:
    ensemble = ModelEnsemble.build("mlp", data, seeds)
    train_ensemble(ensemble, data, masks, RECIPE, seeds)
    ensemble.predict(data)


def main(n_models: int) -> None:
    data, cores = images(), os.cpu_count() or 1
    masks = subsets.subset_masks(n_models, len(data.train), KEEP)
    seeds = np.arange(n_models)
    single = np.array_split(seeds, cores)
    n_stacks = max(cores, -(-n_models // subsets.CPU_ENSEMBLE_SIZE))
    stacks = np.array_split(seeds, n_stacks)
    pool = Parallel(n_jobs=cores)

    def together() -> None:
        pool(delayed(all_at_once)(data, masks[s], s) for s in stacks)

    def alone() -> None:
        pool(delayed(one_by_one)(data, masks[s], s) for s in single)

    pool(delayed(one_by_one)(data, masks[:1], [0]) for _ in range(cores))  # processes, imports
    rates = [sum(pool(delayed(matrix_rate)() for _ in range(cores)))]
    seconds = interleaved({"together": together, "one by one": alone}, ROUNDS, warmup=0)
    rates.append(sum(pool(delayed(matrix_rate)() for _ in range(cores))))
    rate = max(rates)  # that of a quiet machine
    floor = operations(data, n_models) / rate
    print(f"large products: {rate / 1e9:.0f} GFLOP/s; floor: {floor:.1f} s", flush=True)
    table = ratios(seconds, base="together")
    table["share_of_floor"] = floor / table["seconds"]
    save("sweep", table.assign(n_models=n_models, floor=floor, gflops=rate / 1e9))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
