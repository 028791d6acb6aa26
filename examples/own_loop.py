"""Score every sample in a plain PyTorch loop, with gradient accumulation or mixed precision.

python examples/own_loop.py
python examples/own_loop.py --accumulate 4
python examples/own_loop.py --amp
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import memlens as ml


def digits_with_noise() -> tuple[TensorDataset, torch.Tensor]:
    """Return the digits with one label in twenty wrong, and a mask of these."""
    digits = load_digits()
    x = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    wrong = torch.rand(len(y), generator=torch.Generator().manual_seed(0)) < 0.05
    return TensorDataset(x, torch.where(wrong, (y + 1) % 10, y)), wrong


def main() -> None:
    """Train until the input gradient peaks, and compare the scores of wrong and right labels."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--accumulate", type=int, default=1, help="batches in a step")
    parser.add_argument("--amp", action="store_true", help="float16 and a GradScaler")
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()

    torch.manual_seed(0)
    data, wrong = digits_with_noise()
    dataset = ml.with_index(data)  # every batch begins with the index
    loader = DataLoader(dataset, batch_size=64, shuffle=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    scaler = torch.amp.GradScaler("cpu") if args.amp else None

    recorder = ml.Recorder(n_samples=len(dataset))
    stop = ml.PeakStop("input_gradient", patience=3)
    for _ in range(args.epochs):
        for step, (index, x, y) in enumerate(loader):
            x = recorder.watch(x)
            with torch.autocast("cpu", torch.float16, enabled=args.amp):
                logits = model(x)
                loss = F.cross_entropy(logits, y) / args.accumulate
            if scaler is None:
                loss.backward()
                recorder.update(index, x, logits, y, loss_scale=1 / args.accumulate)
            else:
                scaler.scale(loss).backward()
                scale = scaler.scale(torch.tensor(1 / args.accumulate))  # in all
                recorder.update(index, x, logits, y, loss_scale=scale)
            if (step + 1) % args.accumulate == 0 or step + 1 == len(loader):
                if scaler is None:
                    optimizer.step()
                else:
                    scaler.step(optimizer)
                    scaler.update()
                optimizer.zero_grad()
        recorder.end_epoch()
        if stop.update(model, recorder):
            stop.restore(model)
            break

    scores = recorder.scores(stop.peak)
    print(f"{recorder.n_epochs} epochs, {stop.peak}")
    for name in ("csl", "csg", "forgetting"):
        print(f"AUROC of {name} for wrong labels: {roc_auc_score(wrong, scores[name]):.3f}")


if __name__ == "__main__":
    main()
