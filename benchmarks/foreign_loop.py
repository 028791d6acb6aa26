"""Cost of recording in other loops: plain PyTorch, Lightning, Hugging Face.

    python benchmarks/foreign_loop.py

The net is that of PyTorch's own MNIST example, on 28 x 28 images in its batches of 64: 1.2 million
weights, two convolutions. The aim is at most 1.10 over the same loop without recording. A narrower
net is measured beside it: the first layer is a larger share of it, and what recording asks for is
the gradient of that layer's input ("input gradient": a loop that asks for this alone). Counted with
the recorder are the index of every sample, the callback, and the closing of its epoch. A round is
one training of an epoch with each variant, made anew; ratios are taken within each framework.
"""

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from common import interleaved, ratios, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import memlens as ml

ROUNDS, N, BATCH = 7, 1280, 64
X = torch.rand(N, 1, 28, 28, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 10


def mnist_example() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.25), nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(128, 10),
    )  # fmt: skip


def narrow() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def batches(record: bool) -> DataLoader:
    data = TensorDataset(X, Y)
    return DataLoader(ml.with_index(data) if record else data, BATCH, shuffle=True)


def plain(build: Callable[[], nn.Module], how: str) -> None:
    """An epoch, bare, with a recorder in the loop ("recorded") or through hooks ("watched")."""
    net = build()
    optimizer = sgd(net)
    recorder = ml.Recorder(N) if how in ("recorded", "watched") else None
    watched = ml.RecorderHooks(net, recorder) if how == "watched" else None
    for *index, x, y in batches(recorder is not None):
        if how == "input gradient":
            x.requires_grad_()
        elif how == "recorded":
            x = recorder.watch(x)
        logits = net(x)
        optimizer.zero_grad()
        F.cross_entropy(logits, y).backward()
        optimizer.step()
        if how == "recorded":
            recorder.update(*index, x, logits, y)
        elif watched:
            watched.update(*index, y)
    if recorder:
        (watched or recorder).end_epoch()


def lightning() -> dict[str, Callable[[], None]]:
    from lightning.pytorch import LightningModule, Trainer

    class Classifier(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mnist_example()

        def training_step(self, batch, batch_idx):
            *_, x, y = batch
            return F.cross_entropy(self.net(x), y)

        def configure_optimizers(self):
            return sgd(self)

    def fit(record: bool) -> None:
        recording = [ml.LightningRecorder(N, module="net")] if record else []
        Trainer(
            max_epochs=1, accelerator="cpu", callbacks=recording, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(Classifier(), batches(record))  # fmt: skip

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return {"plain": lambda: fit(False), "callback": lambda: fit(True)}


class Dicts(Dataset):
    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"pixel_values": X[i], "labels": Y[i]}


def huggingface(folder: str) -> dict[str, Callable[[], None]]:
    from transformers import Trainer, TrainingArguments, logging

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mnist_example()

        def forward(self, pixel_values, labels=None):
            logits = self.net(pixel_values)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    def fit(record: bool) -> None:
        net = Classifier()
        Trainer(
            net,
            TrainingArguments(
                folder, num_train_epochs=1, per_device_train_batch_size=BATCH, use_cpu=True,
                remove_unused_columns=False, save_strategy="no", logging_strategy="no",
                report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
                log_level="error",
            ),
            train_dataset=ml.with_index(Dicts()) if record else Dicts(),
            callbacks=[ml.TrainerRecorder(N)] if record else [],
            optimizers=(sgd(net), None),
        ).train()  # fmt: skip

    logging.set_verbosity_error()
    return {"plain": lambda: fit(False), "callback": lambda: fit(True)}


def pytorch(build: Callable[[], nn.Module]) -> dict[str, Callable[[], None]]:
    ways = ("plain", "input gradient", "recorded", "watched")
    return {how: partial(plain, build, how) for how in ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        loops = {
            "pytorch": pytorch(mnist_example),
            "lightning": lightning(),
            "huggingface": huggingface(folder),
            "pytorch, narrow net": pytorch(narrow),
        }
        tables = {k: ratios(interleaved(v, rounds, 1), base="plain") for k, v in loops.items()}
    save("foreign_loop", pd.concat(tables, names=["loop"]))


if __name__ == "__main__":
    main()
