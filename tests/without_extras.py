"""What `pip install memlens` is for, in a process that has none of the extras' packages.

python without_extras.py FOLDER
"""

import importlib
import os
import pkgutil
import sys
from importlib.machinery import PathFinder
from pathlib import Path

EXTRAS = (
    "torchvision", "seaborn", "jupyterlab", "papermill", "nbformat", "nbval", "IPython",
    "cleanlab", "foolbox", "lightning", "transformers", "accelerate", "dask", "distributed",
    "pytest", "hypothesis", "playwright",
)  # fmt: skip


class Without(PathFinder):
    """Finds all but these packages."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in EXTRAS else super().find_spec(name, path, target)


def loop_of_ones_own():
    import torch
    import torch.nn.functional as F

    import memlens as ml

    torch.manual_seed(0)
    x, y = torch.randn(96, 1, 8, 8), torch.randint(3, (96,))
    dataset = ml.with_index(torch.utils.data.TensorDataset(x, y))
    loader = torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = ml.Recorder(n_samples=len(dataset))
    for _ in range(3):
        for index, x, y in loader:
            x = recorder.watch(x)
            loss = F.cross_entropy(logits := model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.update(index, x, logits, y)
        recorder.end_epoch()
    scores = recorder.scores()
    assert len(scores) == 96 and scores["csg"].gt(0).all()
    print("own loop works")


def training_on_digits():
    import memlens as ml

    run = ml.train("mlp", ml.load("digits"))
    assert len(run.scores) == len(ml.load("digits").train)
    assert run.history["val_accuracy"].iloc[-1] > 0.9
    print("training works")


def audit(folder):
    import numpy as np
    from PIL import Image

    from memlens.__main__ import main

    pixels = np.random.default_rng(0).integers(256, size=(60, 16, 16, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        place = folder / "images" / f"class {i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{i}.png")
    where = [str(folder / "images"), "--out", str(folder / "out")]
    assert main(["audit", *where, "--device", "cpu", "--epochs", "2", "--yes"]) == 0
    assert (folder / "out" / "report.html").stat().st_size > 10_000
    print("audit works")


def every_module():
    """All import, but for the frameworks' callbacks and what runs the notebooks."""
    import memlens

    for found in pkgutil.walk_packages(memlens.__path__, "memlens."):
        try:
            importlib.import_module(found.name)
        except ImportError as error:
            print("needs an extra:", found.name)
            cause = error.__cause__ or error.__context__ or error
            assert cause.name.partition(".")[0] in EXTRAS, error


def an_absent_extra_is_named(folder):
    from memlens.__main__ import main

    os.environ["MEMLENS_DATA"] = str(folder)
    for call in (  # resnet18 and the download are torchvision's
        ["reproduce"],
        ["train", "--model", "resnet18", "--epochs", "1"],
        ["train", "--data", "cifar10", "--epochs", "1"],
    ):
        assert main(call) == 2, call


if __name__ == "__main__":
    sys.meta_path[sys.meta_path.index(PathFinder)] = Without
    target = Path(sys.argv[1])
    loop_of_ones_own()
    training_on_digits()
    audit(target)
    every_module()
    an_absent_extra_is_named(target)
