"""The configuration of an audit: network, training, and folds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from joblib import cpu_count

from memlens.data.samples import Dataset, stratified_folds
from memlens.models import registry
from memlens.training import devices, memory
from memlens.training.config import MeasureConfig, TrainConfig
from memlens.training.jobs import Job
from memlens.training.loop import train

N_FOLDS = 3
N_STEPS = 2_000  # of a training, about: fewer do not fit even easy data
EPOCH_RANGE = (30, 100)  # minimum and maximum, whatever the steps
BATCH_SIZE = 64
LEARNING_RATE = 0.1
WEIGHT_DECAY = 1e-3  # strong enough that the weight norm peaks well within the epochs
N_TIMED = 512  # samples, at least, whose training is timed


@dataclass(frozen=True)
class AuditConfig:
    """A network by name, its training, and the number of folds of the cross-validation."""

    model: str
    train_config: TrainConfig
    n_folds: int = N_FOLDS

    def jobs(self, dataset: Dataset, groups: Sequence[np.ndarray]) -> Iterator[Job]:
        """Yield the training on all samples, then one without each fold.

        ``groups`` are positions of samples that folds keep together, one array per group.
        """
        yield Job(self.model, dataset, self.train_config)
        for fold in folds(dataset, groups, self.n_folds):
            out = torch.as_tensor(fold)
            part = replace(dataset, train=dataset.train[~out], test=dataset.train[out])
            yield Job(self.model, part, self.train_config)


def choose_config(
    dataset: Dataset,
    *,
    model: str | None = None,
    epochs: int | None = None,
    device: str = "auto",
    seed: int = 0,
) -> AuditConfig:
    """Choose a configuration that suits the images, their number and this machine.

    Parameters
    ----------
    dataset : Dataset
    model : str, optional
        A name from ``models.registry``; by default a ResNet-18 on a GPU, for images of 24 pixels or
        more, and otherwise a small convolutional network (``"strided_cnn"``).
    epochs : int, optional
        Maximum; training stops when the weight norm has peaked.
    device : "auto", "cpu", "cuda", ...
    seed : int

    Raises
    ------
    ValueError
        If the model is unknown or cannot take such images, or the device is not available.
    MemoryError
        If not even the smallest batch fits.

    Examples
    --------
    >>> import memlens as ml
    >>> choose_config(ml.load("digits"), device="cpu").model
    'strided_cnn'
    """
    torch_device = devices.resolve(device)
    gpu = devices.is_gpu(torch_device)
    n = len(dataset.train)
    model = model or ("resnet18" if gpu and min(dataset.in_shape[1:]) >= 24 else "strided_cnn")
    batch_size = min(BATCH_SIZE, n // 2)
    if epochs is None:
        epochs = int(np.clip(-(-N_STEPS * batch_size // n), *EPOCH_RANGE))
    fast = {"precision": "auto", "channels_last": None} if gpu else {}
    config = TrainConfig(
        epochs, batch_size, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, seed=seed,
        stop="weight_norm", threads=None if gpu else cpu_count(), device=str(torch_device), **fast,
    )  # fmt: skip
    return AuditConfig(model, _fit_memory(model, dataset, config))


def _fit_memory(model: str, dataset: Dataset, config: TrainConfig) -> TrainConfig:
    """Halve the batch size until the training fits in memory."""
    device = config.engine().device
    net = registry.build(model, dataset.n_classes, dataset.in_shape).to(device)
    x = torch.zeros(1, *dataset.in_shape, device=device)
    while True:
        try:
            memory.check_memory(net, x, dataset, config, MeasureConfig())
            return config
        except MemoryError:
            if config.batch_size <= 8:
                raise
            config = replace(config, batch_size=config.batch_size // 2)


def folds(
    dataset: Dataset, groups: Sequence[np.ndarray] = (), n_folds: int = N_FOLDS
) -> list[np.ndarray]:
    """Return masks (n_samples,) of the samples that each fold holds out, stratified by class.

    Samples of a group are held out together. Classes with fewer than ``n_folds`` samples are in no
    fold: without them the class would be unknown.

    Raises
    ------
    ValueError
        If all classes are smaller than ``n_folds``.
    """
    y, first = dataset.train.labels.numpy(), np.arange(len(dataset.train))
    for group in groups:
        first[group] = group.min()
    is_first = first == np.arange(len(first))
    sizes = np.bincount(y[is_first], minlength=dataset.n_classes)
    eligible = is_first & (sizes[y] >= n_folds)
    if not eligible.any():
        raise ValueError(f"no class has {n_folds} different images; merge classes or add images")
    masks = stratified_folds(y, n_folds, seed=0, first=first, eligible=eligible)
    for mask in masks:  # a duplicate with another label may be the last sample of its class
        gone = np.flatnonzero(np.bincount(y[~mask], minlength=dataset.n_classes) == 0)
        mask &= ~np.isin(first, first[np.isin(y, gone)])
    return masks


def estimate_seconds(config: AuditConfig, dataset: Dataset, n_samples: int) -> float:
    """Estimate the duration of an audit by timing an epoch on some of the samples.

    ``n_samples`` is the number of samples that all trainings process in all epochs together,
    without early stopping.
    """
    train_config = replace(config.train_config, epochs=2, stop=None)
    n = min(len(dataset.train), max(N_TIMED, 2 * dataset.n_classes, 2 * train_config.batch_size))
    subset = dataset.subset(n) if n < len(dataset.train) else dataset
    run = train(config.model, subset, train_config, watch=lambda _: None)
    return float(run.history["seconds"].iloc[-1]) / n * n_samples
