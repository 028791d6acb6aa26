"""What a loop is fed: batches of samples on the device it computes on.

Images in memory are moved there once, as they are (uint8, usually), and a batch is a gather; those
of a folder are read ahead of the loop. Crops and flips, drawn for a whole epoch at a time, are made
there as well, so that no step of a training waits for the host.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from memlens.data.samples import Dataset, Moves, Samples, augment
from memlens.training.devices import Engine
from memlens.training.recipes import Recipe, mixed_seed

READY_BYTES = 256 << 20  # inputs that never change are normalised once, if they are no larger


class Feed:
    """The training samples of a data set, as a recipe shows them to a net.

    Attributes
    ----------
    y : Tensor (n_samples,), int64, on the device
    """

    def __init__(self, data: Dataset, recipe: Recipe, engine: Engine) -> None:
        self.data, self.recipe, self.engine = data, recipe, engine
        self.pad = max(1, data.in_shape[-1] // 8)  # 4 pixels at 32x32, as in the papers
        self.y = data.train.labels.to(engine.device)
        self.images, self._ready = data.train.images, None
        if self.in_memory:
            self.images = self.images.to(engine.device)
            floats = 4 * self.images.numel()
            if recipe.augment == "none" and floats <= READY_BYTES:
                self._ready = data.normalise(self.images)

    @property
    def in_memory(self) -> bool:
        """Whether the images are a tensor, and not read from a folder."""
        return isinstance(self.images, Tensor)

    def moves(self, seeds: Iterable[int], epoch: int) -> Moves | None:
        """The crops and flips of an epoch, on the device; None where nothing is augmented.

        One seed a net; entries are (n_samples,), or for several nets (n_models * n_samples,).
        """
        if self.recipe.augment == "none":
            return None
        n, flip = len(self.y), self.recipe.augment == "crop_flip"
        drawn = [Moves.draw(n, self.pad, flip, mixed_seed(int(seed), epoch, 1)) for seed in seeds]
        return Moves(*(torch.cat(parts) for parts in zip(*drawn))).to(self.engine.device)

    def batches(
        self,
        order: Tensor,
        seed: int,
        epoch: int,
        own: Callable[[Tensor], Tensor] = lambda batch: batch,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(index, x, y) of an epoch, all on the device; ``order`` (n,), int64, on the CPU.

        Of each batch of the order what ``own`` takes of it: a process's share.
        """
        moves = self.moves([seed], epoch)
        size = self.recipe.batch_size
        places = map(own, order.to(self.engine.device).split(size))
        if self.in_memory:
            for index in places:
                yield index, self.inputs(index, moves), self.y[index]
            return
        read = self.images.stream(map(own, order.split(size)))
        for index, images in zip(places, read, strict=True):
            images = images.to(self.engine.device, non_blocking=True)
            yield index, self._shown(images, moves and moves.of(index)), self.y[index]

    def inputs(self, index: Tensor, moves: Moves | None) -> Tensor:
        """A net's input for samples (...,), whatever the shape of ``index``; nets along axis 0."""
        own = index.flatten()
        if self._ready is not None:
            x = self._laid_out(self._ready[own])
            return x.unflatten(0, index.shape) if index.ndim > 1 else x
        if moves is not None and index.ndim == 2:  # each net has moves of its own
            first = torch.arange(len(index), device=index.device)[:, None] * len(self.y)
            moves = moves.of((index + first).flatten())
        elif moves is not None:
            moves = moves.of(own)
        x = self._shown(self.images[own], moves)
        return x.unflatten(0, index.shape) if index.ndim > 1 else x

    def _shown(self, images: Tensor, moves: Moves | None) -> Tensor:
        if moves is not None:
            images = augment(images, moves, self.pad)
        return self._laid_out(self.data.normalise(images))

    def _laid_out(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self.engine.memory_format)


def in_order(samples: Samples, rows: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels) on the device, ``rows`` samples at a time, in their order."""
    if isinstance(samples.images, Tensor):
        parts = samples.images.split(rows)
    else:
        parts = samples.images.stream(torch.arange(len(samples)).split(rows))
    for images, y in zip(parts, samples.labels.split(rows), strict=True):
        yield images.to(device), y.to(device)
