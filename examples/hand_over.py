"""Use scores in pandas, in FiftyOne (a CSV of image files) and in cleanlab, which is needed here.

    python examples/hand_over.py [FOLDER]

FiftyOne opens the CSV, with the types of the columns in ``fields``, by
``fo.Dataset.from_dir(labels_path="FOLDER/scores.csv", dataset_type=fo.types.CSVDataset,
fields={"label": str, "csl": float, "csg": float})``.
"""

import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from cleanlab import rank
from cleanlab.classification import CleanLearning
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import memlens as ml


def scores_of_digits(x: torch.Tensor, y: torch.Tensor) -> pd.DataFrame:
    """Return all scores of a short training, a row per sample."""
    torch.manual_seed(0)
    dataset = ml.with_index(TensorDataset(x, y))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    recorder = ml.Recorder(n_samples=len(dataset))
    for _ in range(8):
        for index, x, y in DataLoader(dataset, batch_size=64, shuffle=True):
            x = recorder.watch(x)
            logits = model(x)
            optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()
            optimizer.step()
            recorder.update(index, x, logits, y)
        recorder.end_epoch()
    return recorder.scores()


def main() -> None:
    """Score digits of which one label in twenty is wrong, and pass the scores on."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    digits = load_digits()
    x = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    wrong = torch.rand(len(x), generator=torch.Generator().manual_seed(1)) < 0.05
    y = torch.where(wrong, torch.tensor(digits.target + 3) % 10, torch.tensor(digits.target))

    scores = scores_of_digits(x, y).assign(label=y.numpy())  # pandas: they are a DataFrame
    print(scores.groupby("label")[["csl", "csg"]].mean().round(2).head(3))

    paths = [folder / f"{i:04d}.png" for i in scores.index]
    for path, image in zip(paths, digits.images, strict=True):
        Image.fromarray((image * 15).astype("uint8")).save(path)
    table = scores.assign(filepath=[str(path.resolve()) for path in paths])
    table.to_csv(folder / "scores.csv", index=False)
    print(f"{len(table)} rows with file paths in scores.csv")

    quality = ml.label_quality(scores["csl"])  # in (0, 1), lower is more suspicious
    top = rank.find_top_issues(quality.to_numpy(), top=50)
    print(f"{int(wrong[top].sum())} of cleanlab's 50 top issues are wrong labels")

    flat = digits.images.reshape(len(x), -1) / 16
    for name, share in (("all labels", 0.0), ("without the worst twentieth", 0.05)):
        issues = pd.DataFrame({"is_label_issue": quality < share, "label_quality": quality})
        learner = CleanLearning(LogisticRegression(max_iter=300))
        learner.fit(flat, y.numpy(), label_issues=issues)
        print(f"accuracy on the true labels, {name}: {learner.score(flat, digits.target):.3f}")


if __name__ == "__main__":
    main()
