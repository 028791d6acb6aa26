"""What tests share: tiny data, a training by hand, one with planted flips."""

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from torch import nn

    from memlens.attacks.shadows import Shadows, Target
    from memlens.data.samples import Dataset
    from memlens.training.runs import Run

with suppress(ImportError):  # a machine that is only there for its GPU may lack it: `test_gpu`
    from hypothesis import settings

    # the same examples on every run and machine; trainings make the time of one example uneven
    settings.register_profile("memlens", deadline=None, derandomize=True, database=None)
    settings.load_profile("memlens")


def pytest_collection_finish() -> None:
    """One thread: the nets of the unit tests are so small that a second one only costs."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ready() -> multiprocessing.context.BaseContext:
    """Starts processes of their own in a moment: torch and memlens are loaded before the fork.

    They have the environment of the first call, and none of this process's memory.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["memlens.training.jobs", "memlens.audit.outputs", "sklearn.metrics"]
    )
    return context


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[[], int]]:
    """From now on nets are traced as a GPU's are, with torch's own kernels: how many graphs so far.

    Takes a backend of ``torch.compile`` that needs no compiler; a break of a graph is an error.
    """
    from functools import partial

    import torch._dynamo
    from torch._dynamo.utils import counters

    def begin(backend: str) -> Callable[[], int]:
        compiled = partial(torch.compile, backend=backend, fullgraph=True)
        monkeypatch.setattr(torch, "compile", compiled)
        torch._dynamo.reset()
        counters.clear()
        return lambda: counters["stats"]["unique_graphs"]

    return begin


@pytest.fixture
def house_style() -> Iterator[None]:
    """Plots in the house style; whatever was drawn is closed afterwards."""
    import matplotlib
    import matplotlib.pyplot as plt

    from memlens.evaluation import plots

    with matplotlib.rc_context():
        plots.apply_style()
        yield
    plt.close("all")


@pytest.fixture
def ax(house_style: None) -> "Axes":
    """Axes of a figure of their own."""
    import matplotlib.pyplot as plt

    return plt.subplots()[1]


@pytest.fixture(params=[True, False], ids=["colour", "grey"])
def pets(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> "tuple[dict[str, np.ndarray], Path]":
    """An image set that ``load`` knows as "pets", and its file in a data folder of its own."""
    import numpy as np

    from memlens.data import imagesets

    found = _pets(colour=request.param)
    monkeypatch.setenv("MEMLENS_DATA", str(tmp_path))
    monkeypatch.setitem(imagesets.SETS, "pets", _spec_of(found))
    np.savez(tmp_path / "pets.npz", **found)
    return found, tmp_path / "pets.npz"


def _pets(colour):
    """Thirty training and nine test images of three classes, as many of each."""
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (6, 6, 3) if colour else (6, 6)
    return {
        "x_train": rng.integers(256, size=(30, *shape), dtype=np.uint8),
        "y_train": rng.permutation(np.repeat(np.arange(3), 10)),
        "x_test": rng.integers(256, size=(9, *shape), dtype=np.uint8),
        "y_test": rng.permutation(np.repeat(np.arange(3), 3)),
    }


def _spec_of(found):
    """Return the specification of these arrays."""
    import hashlib

    from memlens.data.imagesets import ImageSetSpec

    def digest(values):
        return hashlib.sha256(values.astype("uint8").tobytes()).hexdigest()[:16]

    x, parts = found["x_train"], ("train", "test")
    pixels = x.reshape(-1, x.shape[-1] if x.ndim == 4 else 1)
    return ImageSetSpec(
        torchvision="CIFAR10",
        shape=x.shape[1:],
        counts=(10, 3),
        first=tuple(tuple(found[f"y_{part}"][:8].tolist()) for part in parts),
        labels_sha256=tuple(digest(found[f"y_{part}"]) for part in parts),
        mean=tuple((pixels.mean(0) / 255).round(4).tolist()),
        class_names=("cat", "dog", "owl"),
        images_sha256=tuple(digest(found[f"x_{part}"]) for part in parts),
    )


@pytest.fixture(scope="session")
def tiny() -> "Dataset":
    """Sixty zeros, ones and twos: small enough for trainings by the slowest of loops."""
    import torch

    import memlens as ml

    data = ml.load("digits")
    parts = {
        name: samples[(samples.labels < 3).nonzero()[:n, 0]]
        for name, samples, n in (("train", data.train, 60), ("test", data.test, 20))
    }
    assert torch.bincount(parts["train"].labels).min() >= 10  # enough for ten stratified folds
    return replace(data, **parts, class_names=("zero", "one", "two"))


@pytest.fixture
def double(tiny: "Dataset") -> Iterator["Dataset"]:
    """The same, trained in float64: two ways to the same weights then agree to many digits."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield replace(tiny)  # a copy, which has worked out nothing in float32 yet
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def train_alone() -> Callable[..., "nn.Module"]:
    """The oracle of every training: one net, the textbook loop, nothing of memlens's loops.

    Only the initial weights and the order of the samples are asked of memlens: they are its to
    choose, and a training is compared from the same start.
    """
    return _train_alone


def _train_alone(model, data, mask, config, seed, *, labels=None, epochs=None, net=None, each=None):
    import torch
    import torch.nn.functional as F

    from memlens.models import registry
    from memlens.training.loop import shuffled

    net = (net or registry.build(model, data.n_classes, data.in_shape, seed=seed)).train()
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
    x = (data.train.images / data.pixel_max - mean) / std
    y = data.train.labels if labels is None else labels
    members = torch.as_tensor(mask).nonzero()[:, 0]
    weights = list(net.parameters())
    speed = [torch.zeros_like(w) for w in weights]

    def gradients(batch):
        return torch.autograd.grad(F.cross_entropy(net(x[batch]), y[batch]), weights)

    for epoch in range(config.epochs if epochs is None else epochs):
        drops = sum(epoch >= int(share * config.epochs) for share in config.milestones)
        for batch in members[shuffled(len(members), seed, epoch)].split(config.batch_size):
            slopes = gradients(batch)
            if config.sam_rho:
                length = sum(float((g.double() ** 2).sum()) for g in slopes) ** 0.5
                here = [w.detach().clone() for w in weights]
                with torch.no_grad():
                    for w, g in zip(weights, slopes, strict=True):
                        w += config.sam_rho * g / length
                slopes = gradients(batch)
                with torch.no_grad():
                    for w, value in zip(weights, here, strict=True):
                        w.copy_(value)
            with torch.no_grad():
                for w, g, v in zip(weights, slopes, speed, strict=True):
                    v.mul_(config.momentum).add_(g + config.weight_decay * w)
                    w -= config.lr * config.gamma**drops * v
        if each:
            each(net, epoch)
    return net.eval()


@pytest.fixture(scope="session")
def flipped() -> "tuple[Run, pd.DataFrame, np.ndarray]":
    """A training on digits with every tenth label flipped, all its scores, and which are flips."""
    import torch

    import memlens as ml

    data = ml.load("digits")
    data = replace(data, train=data.train[torch.arange(300)]).with_noise(0.1)
    measure = ml.MeasureConfig(
        posthoc=True, n_directions=2, weight_gradients=True, logit_gradients=True
    )
    config = ml.TrainConfig(epochs=30)
    run = ml.train("mlp", data, config, measure)
    extra = ml.extra_scores("mlp", [data], config, seeds=[0], n_jobs=1)[0]
    return run, ml.every_score(run, extra), data.train.is_noisy.numpy()


@pytest.fixture(scope="session")
def setup() -> "Callable[..., tuple[Target, Shadows]]":
    """Makes a target and shadows with logits that know their members, a little."""
    return _scene


def _scene(n_models=24, n_augmentations=2, n_samples=50, n_classes=4, seed=0):
    import numpy as np

    from memlens.attacks.shadows import Shadows, Target

    settings = {"model": "mlp", "epochs": 60, "keep": 0.5, "stop": "last"}
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n_samples)
    masks = rng.random((n_models + 1, n_samples)) < 0.5
    masks[:2], masks[2:4] = True, False  # at least two shadows on either side
    logits = rng.normal(scale=2, size=(n_models + 1, n_augmentations, n_samples, n_classes))
    logits += 3 * (np.arange(n_classes) == y[:, None]) * (0.5 + masks)[:, None, :, None]
    logits = logits.astype(np.float32)
    bent = rng.lognormal(size=(n_models + 1, n_samples)) / (1 + masks)
    shadows = Shadows(masks[:-1], logits[:-1], y, settings, bent[:-1])
    return Target(logits[-1], y, settings, bent[-1]), shadows
