"""The task of `foreign_loops`, trained by Lightning."""

import warnings

import torch
import torch.nn.functional as F
from foreign_loops import EPOCHS, RATE, SIZE, N, build, dataset
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from memlens.tracking.integrations import LightningRecorder


class Classifier(LightningModule):
    def __init__(self, reduction="mean", smoothing=0.0):
        super().__init__()
        self.net, self.reduction, self.smoothing = build(), reduction, smoothing

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        _, x, y = batch
        logits = self(x)
        return F.cross_entropy(
            logits, y, reduction=self.reduction, label_smoothing=self.smoothing
        )  # fmt: skip

    def validation_step(self, batch, batch_idx):
        _, x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), RATE)


def trainer(callbacks, **settings):
    settings = {
        "max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, **settings,
    }  # fmt: skip
    return Trainer(callbacks=callbacks, **settings)


def loader(data=None, **how):
    return DataLoader(dataset() if data is None else data, SIZE, **how)


def fit(callback=None, net=None, train=None, validate=None, ckpt_path=None, **settings):
    callback = LightningRecorder(N) if callback is None else callback
    callbacks = callback if isinstance(callback, list) else [callback]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and log intervals
        trainer(callbacks, **settings).fit(
            Classifier() if net is None else net, train or loader(), validate, ckpt_path=ckpt_path
        )
    return callback
