"""What is trained for data of your own: a net and a config that suit it, and which folds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from joblib import cpu_count
from sklearn.model_selection import StratifiedKFold

from memlens.data.samples import Dataset
from memlens.models import registry
from memlens.training import devices, memory
from memlens.training.config import MeasureConfig, TrainConfig
from memlens.training.jobs import Job
from memlens.training.loop import train

N_FOLDS = 3
STEPS = 2_000  # of a training, about: fewer do not fit even easy data
EPOCHS = (30, 100)  # at least and at most, whatever the steps
BATCH = 64
WEIGHT_DECAY = 1e-3  # strong enough that the weight norm peaks well within the epochs
TIMED = 512  # samples, at least, whose training is timed


@dataclass(frozen=True)
class AuditConfig:
    """What is trained: a net by name, its config, and in how many folds once more."""

    model: str
    config: TrainConfig
    n_folds: int = N_FOLDS

    def jobs(self, data: Dataset, alike: Sequence[np.ndarray]) -> Iterator[Job]:
        """The training on everything, then one that leaves out each fold; one at a time.

        ``alike`` are positions of samples that no fold may part, an array a group.
        """
        yield Job(self.model, data, self.config)
        for fold in folds(data, alike, self.n_folds):
            out = torch.as_tensor(fold)
            part = replace(data, train=data.train[~out], test=data.train[out])
            yield Job(self.model, part, self.config)


def choose_config(
    data: Dataset,
    *,
    model: str | None = None,
    epochs: int | None = None,
    device: str = "auto",
    seed: int = 0,
) -> AuditConfig:
    """A plan that suits the images, their number and this machine.

    Parameters
    ----------
    model : str, optional
        A name from ``models.MODELS``; by default a ResNet-18 on a GPU, and elsewhere a small
        convolutional net (`models.strided_cnn`).
    epochs : int, optional
        At most so many: training stops when the weight norm has peaked.
    device : "auto", "cpu", "cuda", ...
    seed : int

    Raises
    ------
    ValueError
        If the model is unknown or cannot take such images, or the device is not there.
    MemoryError
        If not even the smallest batch fits.
    """
    place = devices.resolve(device)
    gpu = devices.is_gpu(place)
    n = len(data.train)
    model = model or ("resnet18" if gpu and min(data.in_shape[1:]) >= 24 else "strided_cnn")
    batch = min(BATCH, n // 2)
    if epochs is None:
        low, high = EPOCHS
        epochs = int(np.clip(-(-STEPS * batch // n), low, high))
    fast = {"precision": "auto", "channels_last": None} if gpu else {}
    config = TrainConfig(
        epochs, batch, weight_decay=WEIGHT_DECAY, seed=seed, stop="weight_norm",
        threads=None if gpu else cpu_count(), device=str(place), **fast,
    )  # fmt: skip
    return AuditConfig(model, _that_fits(model, data, config))


def _that_fits(model: str, data: Dataset, config: TrainConfig) -> TrainConfig:
    """The config, its batch halved until the training fits in memory."""
    device = config.engine().device
    net = registry.build(model, data.n_classes, data.in_shape).to(device)
    x = torch.zeros(1, *data.in_shape, device=device)
    while True:
        try:
            memory.check_memory(net, x, data, config, MeasureConfig())
            return config
        except MemoryError:
            if config.batch_size <= 8:
                raise
            config = replace(config, batch_size=config.batch_size // 2)


def folds(
    data: Dataset, alike: Sequence[np.ndarray] = (), n_folds: int = N_FOLDS, *, seed: int = 0
) -> list[np.ndarray]:
    """Masks (n_samples,) of the samples that each fold leaves out, stratified by class.

    Samples that are alike leave together. Those of a class with fewer than ``n_folds`` are in no
    fold: without them the class would be unknown.

    Raises
    ------
    ValueError
        If no class has so many samples.
    """
    y, first = data.train.labels.numpy(), np.arange(len(data.train))
    for group in alike:
        first[group] = group.min()
    alone = first == np.arange(len(first))  # one of each group stands for it
    judged = alone & (np.bincount(y[alone], minlength=data.n_classes)[y] >= n_folds)
    rows = np.flatnonzero(judged)
    if not rows.size:
        raise ValueError(f"no class has {n_folds} different images; merge classes or add images")
    splits = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(rows, y[rows])
    masks = [np.isin(first, rows[out]) for _, out in splits]
    for mask in masks:  # a copy under another label may be the last one of its class
        gone = np.flatnonzero(np.bincount(y[~mask], minlength=data.n_classes) == 0)
        mask &= ~np.isin(first, first[np.isin(y, gone)])
    return masks


def seconds_of(plan: AuditConfig, data: Dataset, n_samples: int) -> float:
    """About how long a plan takes, by the time of an epoch on a few of the samples.

    ``n_samples`` is how many all its trainings see in all their epochs, if none stops early.
    """
    n = min(len(data.train), max(TIMED, 2 * data.n_classes, 2 * plan.config.batch_size))
    few = data.subset(n) if n < len(data.train) else data
    run = train(plan.model, few, replace(plan.config, epochs=2, stop=None), watch=lambda _: None)
    return float(run.history["seconds"].iloc[-1]) / n * n_samples
