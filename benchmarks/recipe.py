"""Choose the configuration of the profile fashion_small, by held-out accuracy alone.

    MEMLENS_DATA=... python benchmarks/recipe.py

Each configuration trains the MLP on the 2,000 training images of fashion_small, with three seeds.
Held-out are 5,000 other images of the training part of Fashion-MNIST (the next 500 of each class),
so that the choice uses neither the test images nor any memorization score. The best configuration
is that of the highest mean held-out accuracy at the last epoch among those that fit the training
images (accuracy at least 0.98). Results are in `results/recipe.csv`.
"""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import memlens as ml
from memlens.data.imagesets import PER_CLASS
from memlens.training.jobs import Job, train_many

SEEDS = range(3)
HELD_OUT = 500  # of each class
LEARNING_RATES = (0.02, 0.05, 0.1)
WEIGHT_DECAYS = (1e-4, 5e-4, 1e-3, 2e-3)
BATCH_SIZES = (32, 64)
FITTED = 0.98


def main() -> None:
    small, whole = ml.load("fashion_small"), ml.load("fashion_mnist")
    labels = whole.train.labels.numpy()
    rows = [np.flatnonzero(labels == c)[PER_CLASS : PER_CLASS + HELD_OUT] for c in range(10)]
    data = replace(small, test=whole.train[np.sort(np.concatenate(rows))])
    settings = list(itertools.product(LEARNING_RATES, WEIGHT_DECAYS, BATCH_SIZES))
    jobs = [
        Job("mlp", data, ml.TrainConfig(lr=lr, weight_decay=decay, batch_size=size, seed=seed))
        for lr, decay, size in settings
        for seed in SEEDS
    ]
    runs = train_many(jobs)
    table = []
    for i, (lr, decay, size) in enumerate(settings):
        mine = [run.history for run in runs[i * len(SEEDS) : (i + 1) * len(SEEDS)]]
        last = pd.DataFrame([history.iloc[-1] for history in mine])
        table.append(
            {
                "lr": lr,
                "weight_decay": decay,
                "batch_size": size,
                "train_accuracy": last.train_accuracy.mean(),
                "held_out_accuracy": last.val_accuracy.mean(),
                "held_out_std": last.val_accuracy.std(),
                "best_held_out": np.mean([h.val_accuracy.max() for h in mine]),
                "lowest_loss_epoch": np.median([h.val_loss.idxmin() for h in mine]),
                "gradient_peak_epoch": np.median([h.input_gradient.idxmax() for h in mine]),
                "norm_peak_epoch": np.median([h.weight_norm.idxmax() for h in mine]),
            }
        )
    frame = pd.DataFrame(table).sort_values("held_out_accuracy", ascending=False)
    frame["fits"] = frame.train_accuracy >= FITTED
    frame.round(4).to_csv(Path(__file__).with_name("results") / "recipe.csv", index=False)
    print(frame.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
