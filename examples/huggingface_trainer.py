"""Score every sample of a Hugging Face training; it needs transformers and accelerate.

python examples/huggingface_trainer.py
"""

import tempfile
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import memlens as ml


class Digits(Dataset):
    """The digits as dicts of the arguments of the network, for the Trainer."""

    def __init__(self) -> None:
        digits = load_digits()
        self.images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
        self.labels = digits.target.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"pixel_values": self.images[i], "labels": self.labels[i]}


def main() -> None:
    """Train a small vision transformer, and print the most memorized samples."""
    torch.manual_seed(0)
    dataset = ml.with_index(Digits())
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        image_size=8, patch_size=2, num_channels=1, num_labels=10,
    )  # fmt: skip
    callback = ml.TrainerRecorder(len(dataset), input="pixel_values")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            remove_unused_columns=False,  # otherwise the Trainer removes the index
            num_train_epochs=4,
            per_device_train_batch_size=32,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        net = ViTForImageClassification(config)
        Trainer(net, arguments, train_dataset=dataset, callbacks=[callback]).train()

    scores = callback.recorder.scores()
    print(f"{callback.recorder.n_epochs} epochs")
    print(scores.nlargest(5, "csg")[["csg", "csl", "forgetting"]].round(3))


if __name__ == "__main__":
    main()
