"""Networks trained together over the same nets one by one, with the same cores.

    python benchmarks/sweep.py [N_MODELS]

Both sides use one process a core and one thread a process; both train on the same subsets in the
same order. The one-by-one side is the textbook loop on a plain module. The target is 2.5.
"""

import os
import sys
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from common import interleaved, ratios, save
from joblib import Parallel, delayed

import memlens as ml
from memlens.ensembles import subsets
from memlens.ensembles.model_ensemble import ModelEnsemble, train_ensemble
from memlens.models import registry
from memlens.training.config import OPTIMIZERS
from memlens.training.devices import thread_count
from memlens.training.loop import shuffled

RECIPE = subsets.SWEEP_CONFIG
ROUNDS = 3


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
    data, cores = ml.load("digits"), os.cpu_count() or 1
    masks = subsets.subset_masks(n_models, len(data.train), 0.7)
    seeds = np.arange(n_models)
    single = np.array_split(seeds, cores)
    stacks = np.array_split(seeds, -(-n_models // subsets.CPU_ENSEMBLE_SIZE))
    pool = Parallel(n_jobs=cores)

    def together() -> None:
        pool(delayed(all_at_once)(data, masks[s], s) for s in stacks)

    def alone() -> None:
        pool(delayed(one_by_one)(data, masks[s], s) for s in single)

    pool(delayed(one_by_one)(data, masks[:1], [0]) for _ in range(cores))  # processes, imports
    seconds = interleaved({"together": together, "one by one": alone}, ROUNDS, warmup=0)
    save("sweep", ratios(seconds, base="together").assign(n_models=n_models))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
