"""Batches of samples on the device of a training.

Images in memory are moved to the device once, usually as uint8, and a batch is a gather; those of
a folder are read ahead of the loop. Crops and flips are drawn for a whole epoch at a time and
applied on the device, so that no training step waits for the host.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from memlens.data.samples import Augmentation, Dataset, Samples, augment
from memlens.training.config import TrainConfig, mixed_seed
from memlens.training.devices import Engine

READY_BYTES = 256 << 20  # inputs that never change are normalised once, if they are no larger


class Batches:
    """Batches of the training samples, augmented and normalised as configured.

    Attributes
    ----------
    y : Tensor (n_samples,), int64, on the device
    """

    def __init__(self, data: Dataset, config: TrainConfig, engine: Engine) -> None:
        self.data, self.config, self.engine = data, config, engine
        self.pad = max(1, data.in_shape[-1] // 8)  # 4 pixels at 32x32, as in the papers
        self.y = data.train.labels.to(engine.device)
        self.images, self._ready = data.train.images, None
        if self.in_memory:
            self.images = self.images.to(engine.device)
            floats = 4 * self.images.numel()
            if config.augment == "none" and floats <= READY_BYTES:
                self._ready = data.normalise(self.images)

    @property
    def in_memory(self) -> bool:
        """True if the images are a tensor, not files of a folder."""
        return isinstance(self.images, Tensor)

    def augmentation(self, seeds: Iterable[int], epoch: int) -> Augmentation | None:
        """Return the crops and flips of an epoch, on the device; None without augmentation.

        Takes one seed a network; entries are (n_samples,), or (n_models * n_samples,) for several.
        """
        if self.config.augment == "none":
            return None
        n, flip = len(self.y), self.config.augment == "crop_flip"
        drawn = [
            Augmentation.draw(n, self.pad, flip, mixed_seed(int(seed), epoch, 1)) for seed in seeds
        ]
        return Augmentation(*(torch.cat(parts) for parts in zip(*drawn))).to(self.engine.device)

    def of_epoch(
        self, index_batches: Sequence[Tensor], seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (index, x, y) of each batch of an epoch, on the device.

        Parameters
        ----------
        index_batches : sequence of Tensor (b,), int64, on the CPU
            The samples of each batch.
        seed, epoch : int
            Of the crops and flips.
        """
        augmentation = self.augmentation([seed], epoch)
        sizes = [len(index) for index in index_batches]
        on_device = torch.cat(list(index_batches)).to(self.engine.device).split(sizes)
        if self.in_memory:
            for index in on_device:
                yield index, self.inputs(index, augmentation), self.y[index]
            return
        streamed = self.images.stream(index_batches)
        for index, images in zip(on_device, streamed, strict=True):
            images = images.to(self.engine.device, non_blocking=True)
            yield index, self._shown(images, augmentation and augmentation.of(index)), self.y[index]

    def inputs(self, index: Tensor, augmentation: Augmentation | None) -> Tensor:
        """Return the inputs of samples, (*index.shape, channels, height, width)."""
        own = index.flatten()
        if self._ready is not None:
            x = self._laid_out(self._ready.index_select(0, own))
            return x.unflatten(0, index.shape) if index.ndim > 1 else x
        if augmentation is not None and index.ndim == 2:  # each network has its own
            first = torch.arange(len(index), device=index.device)[:, None] * len(self.y)
            augmentation = augmentation.of((index + first).flatten())
        elif augmentation is not None:
            augmentation = augmentation.of(own)
        x = self._shown(self.images[own], augmentation)
        return x.unflatten(0, index.shape) if index.ndim > 1 else x

    def _shown(self, images: Tensor, augmentation: Augmentation | None) -> Tensor:
        if augmentation is not None:
            images = augment(images, augmentation, self.pad)
        return self._laid_out(self.data.normalise(images))

    def _laid_out(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self.engine.memory_format)


def sequential_batches(
    samples: Samples, rows: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images, labels) of ``rows`` samples at a time, in order, on the device."""
    if isinstance(samples.images, Tensor):
        parts = samples.images.split(rows)
    else:
        parts = samples.images.stream(torch.arange(len(samples)).split(rows))
    for images, y in zip(parts, samples.labels.split(rows), strict=True):
        yield images.to(device), y.to(device)
