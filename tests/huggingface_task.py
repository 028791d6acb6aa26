"""The task of `foreign_loops`, trained by the Hugging Face Trainer."""

import warnings

import torch
import torch.nn.functional as F
from foreign_loops import EPOCHS, RATE, SIZE, Dicts, N, build
from torch import nn
from transformers import Trainer, TrainingArguments

from memlens.tracking.indexing import with_index
from memlens.tracking.integrations import TrainerRecorder


class Classifier(nn.Module):
    """A network whose loss is a mean: the Trainer divides it by the number of batches."""

    def __init__(self):
        super().__init__()
        self.net = build()

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Counting(Classifier):
    """A network that divides by ``num_items_in_batch``, like those of transformers."""

    def forward(self, pixel_values, labels=None, num_items_in_batch=None, **kwargs):
        logits = self.net(pixel_values)
        assert not kwargs, kwargs
        if num_items_in_batch is None:
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}
        total = F.cross_entropy(logits, labels, reduction="sum")
        return {"loss": total / num_items_in_batch, "logits": logits}


def fit(
    folder, callback=None, net=None, train=None, validate=None, resume=None, loss=None, **settings
):
    callback, net = callback or TrainerRecorder(N), net or Classifier()
    settings = {
        "num_train_epochs": EPOCHS, "per_device_train_batch_size": SIZE, "use_cpu": True,
        "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "report_to": "none",
        "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no",
        "remove_unused_columns": False, "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False, **settings,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(
            net,
            TrainingArguments(str(folder), **settings),
            train_dataset=train or with_index(Dicts()),
            eval_dataset=validate,
            callbacks=callback if isinstance(callback, list) else [callback],
            compute_loss_func=loss,
            optimizers=(torch.optim.SGD(net.parameters(), RATE), None),
        ).train(resume_from_checkpoint=resume)
    return callback
