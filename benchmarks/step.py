"""Cost of recording: an epoch of training with every in-step score over a plain one.

    python benchmarks/step.py

The targets are 1.15 on the MLP and 1.06 on the small CNN. An epoch includes closing the recorder's
epoch, where the norms are worked out: nothing is left out of the count.
"""

import pandas as pd
import torch
from common import interleaved, ratios, save

import memlens as ml
from memlens.models import registry
from memlens.tracking.recorder import Recorder
from memlens.training.config import OPTIMIZERS, TrainConfig
from memlens.training.loop import shuffled, train_step

ROUNDS = 41


class Loop:
    """One net that trains an epoch whenever it is called."""

    def __init__(self, model: str, data: ml.Dataset, record: bool) -> None:
        config = TrainConfig()
        self.net = registry.build(model, data.n_classes, data.in_shape)
        self.optimizer = OPTIMIZERS[config.optimizer](self.net.parameters(), config)
        self.data, self.record, self.size = data, record, config.batch_size

    def __call__(self) -> None:
        train = self.data.train
        recorder = Recorder(len(train)) if self.record else None
        for index in shuffled(len(train), 0, 0).split(self.size):
            x = self.data.normalise(train.images[index])
            y = train.labels[index]
            train_step(self.net, self.optimizer, x, y, recorder=recorder, index=index)
        if recorder:
            recorder.end_epoch()


def main() -> None:
    torch.set_num_threads(1)
    data = ml.load("digits")
    tables = {}
    for model in ("mlp", "small_cnn"):
        loops = {"plain": Loop(model, data, False), "recorded": Loop(model, data, True)}
        tables[model] = ratios(interleaved(loops, ROUNDS), base="plain")
    save("step", pd.concat(tables, names=["model"]))


if __name__ == "__main__":
    main()
