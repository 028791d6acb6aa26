"""Score every sample of a Lightning training; it needs lightning.

python examples/lightning_loop.py
"""

import logging

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import memlens as ml


class Classifier(LightningModule):
    """A usual Lightning module; the batch has the index in addition."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.net(x)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch."""
        _, x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main() -> None:
    """Train with accumulated gradients, and print the most memorized samples."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seed_everything(0, verbose=False)
    digits = load_digits()
    x = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    dataset = ml.with_index(TensorDataset(x, torch.tensor(digits.target)))

    callback = ml.LightningRecorder(len(dataset), stop=ml.PeakStop("input_gradient"))
    trainer = Trainer(
        max_epochs=12,
        accumulate_grad_batches=2,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), DataLoader(dataset, batch_size=32, shuffle=True))

    scores = callback.recorder.scores(callback.stop.peak)
    print(f"{callback.recorder.n_epochs} epochs, {callback.stop.peak}")
    print(scores.nlargest(5, "csg")[["csg", "csl", "forgetting"]].round(3))


if __name__ == "__main__":
    main()
