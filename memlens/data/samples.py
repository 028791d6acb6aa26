"""Samples that you can see and edit: images, labels, original indices and clean labels as tensors.

Images stay in the units of their source (uint8 pixels, usually); `Dataset.normalise` makes the
float input of a net from them. Every sample keeps the index it has in the original data, so that a
score can always be traced back to its picture.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TEST_SHARE = 0.2  # of digits: 1,437 training and 360 test samples
SPLIT_SEED = 0  # the split is a fixed part of the data, not a parameter of an experiment


@dataclass(frozen=True)
class Samples:
    """A set of labelled images.

    Attributes
    ----------
    images : Tensor (n_samples, channels, height, width), uint8 or float32; or what stands for one
        and decodes when indexed (`memlens.data.folders.FolderImages`)
    labels : Tensor (n_samples,), int64: what a net is trained on
    index : Tensor (n_samples,), int64: position in the original data
    clean_labels : Tensor (n_samples,), int64: labels before noise was added

    Raises
    ------
    ValueError, TypeError
        On wrong shape or dtype, another length, labels below zero, NaN or infinite pixels.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    clean_labels: Tensor

    def __post_init__(self) -> None:
        if not all(hasattr(self.images, name) for name in ("ndim", "shape", "dtype")):
            raise TypeError(f"images are {type(self.images).__name__}; pass a Tensor")
        if self.images.ndim != 4:
            raise ValueError(
                f"images have shape {tuple(self.images.shape)}; expected (n, channels, height, "
                "width): add the channel axis with images[:, None]"
            )
        if self.images.dtype not in (torch.uint8, torch.float32):
            raise TypeError(f"images are {self.images.dtype}; convert them to uint8 or float32")
        for name in ("labels", "index", "clean_labels"):
            _check_vector(name, getattr(self, name), len(self.images))
        if self.images.is_floating_point() and not self.images.isfinite().all():
            bad = (~self.images.isfinite()).flatten(1).any(1).nonzero()[:, 0]
            raise ValueError(
                f"{len(bad)} images hold NaN or infinite pixels, the first at position {bad[0]}; "
                "remove or repair them"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Samples({len(self):,} images {_looks(self.images)}{_changed(self)})"

    def __getitem__(self, which: Tensor) -> "Samples":
        """The chosen samples (mask or positions), each with its original index."""
        images = self.images[which] if torch.is_tensor(self.images) else self.images.subset(which)
        return Samples(images, self.labels[which], self.index[which], self.clean_labels[which])

    @property
    def is_noisy(self) -> Tensor:
        """Mask (n_samples,) of the samples whose label was changed."""
        return self.labels != self.clean_labels


def _looks(images: Tensor) -> str:
    return f"{tuple(images.shape[1:])} {str(images.dtype).removeprefix('torch.')}"


def _changed(samples: Samples) -> str:
    n = int(samples.is_noisy.sum())
    return f", {n:,} labels changed" if n else ""


def _check_vector(name: str, values: Tensor, n: int) -> None:
    if not torch.is_tensor(values):
        raise TypeError(f"{name} are {type(values).__name__}; pass a Tensor of int64")
    if values.shape != (n,):
        raise ValueError(f"{name} have shape {tuple(values.shape)} for {n} images; expected ({n},)")
    if values.dtype != torch.int64:
        raise TypeError(f"{name} are {values.dtype}; convert them to int64")
    if n and values.min() < 0:
        raise ValueError(f"{name} go down to {values.min()}; expected 0 or more")


@dataclass(frozen=True)
class Dataset:
    """Training and test samples of one source, and how its pixels become a net's input.

    Attributes
    ----------
    name : str
    train, test : Samples
    class_names : tuple of str, one a class
    pixel_max : float, the value of a white pixel (255 for most uint8 images, 16 for digits)
    mean, std : tuple of float, one a channel, of the training pixels scaled to [0, 1]

    Raises
    ------
    ValueError
        If labels lie outside the classes, a class has no training sample, or the shapes differ.
    """

    name: str
    train: Samples
    test: Samples
    class_names: tuple[str, ...]
    pixel_max: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            samples = getattr(self, part)
            if len(samples) and samples.labels.max() >= self.n_classes:
                raise ValueError(
                    f"{part} labels of {self.name} go up to {samples.labels.max()}, but there are "
                    f"{self.n_classes} class names: expected labels 0 to {self.n_classes - 1}"
                )
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise ValueError(
                f"train images are {self.in_shape}, test images "
                f"{tuple(self.test.images.shape[1:])}; resize one of them"
            )
        # Label noise may take a class its last label: the sample that it was of is still there.
        both = torch.cat([self.train.labels, self.train.clean_labels])
        counts = torch.bincount(both, minlength=self.n_classes)[: self.n_classes]
        if (counts == 0).any():
            empty = [self.class_names[i] for i in (counts == 0).nonzero()[:, 0]]
            raise ValueError(f"classes without a training sample in {self.name}: {empty}")

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name}: {len(self.train):,} training samples{_changed(self.train)}, "
            f"{len(self.test):,} test samples, {self.n_classes} classes, "
            f"images {_looks(self.train.images)})"
        )

    @property
    def n_classes(self) -> int:
        """How many classes there are names for."""
        return len(self.class_names)

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape (channels, height, width) of one image."""
        return tuple(self.train.images.shape[1:])

    def normalise(self, images: Tensor) -> Tensor:
        """A net's input, float32 of the same shape: (pixel / pixel_max - mean) / std."""
        if images.device not in self._affine:
            # Worked out once a device: a copy in every training step would wait for the device.
            mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
            parts = 1 / (self.pixel_max * std), -mean / std
            self._affine[images.device] = [part.to(images.device) for part in parts]
        scale, offset = self._affine[images.device]
        return images * scale + offset

    @cached_property
    def _affine(self) -> dict[torch.device, list[Tensor]]:
        return {}

    def subset(self, n_samples: int, *, seed: int = 0) -> "Dataset":
        """``n_samples`` of the training samples, and as many test samples where there are more.

        Every class keeps its share, to within a sample, and one at least; order and original
        indices stay.

        Raises
        ------
        ValueError
            If there are fewer samples, or fewer are asked for than there are classes.
        """
        if not self.n_classes <= n_samples <= len(self.train):
            raise ValueError(
                f"asked for {n_samples} of {len(self.train)} training samples of {self.name}; "
                f"expected {self.n_classes} (one a class) to {len(self.train)}"
            )
        parts = {"train": self.train, "test": self.test}
        return replace(self, **{k: _share(part, n_samples, seed) for k, part in parts.items()})

    def with_noise(self, rate: float, *, seed: int = 0, per_class: bool = False) -> "Dataset":
        """The same data with symmetric label noise: a flipped label is uniform over the others.

        Parameters
        ----------
        rate : float in [0, 1)
            Share of labels to flip, rounded down to whole samples.
        seed : int
            Chooses the samples and their new labels.
        per_class : bool
            False: the share holds over the whole set (CSG paper, B.6). True: the same share in
            every class (curvature paper, section 4.3).

        Returns
        -------
        Dataset
            With ``train.labels`` changed and ``train.clean_labels`` kept.
        """
        if not 0 <= rate < 1:
            raise ValueError(f"noise rate is {rate}; expected a share in [0, 1), e.g. 0.1 for 10 %")
        labels = self.train.labels.clone()
        generator = torch.Generator().manual_seed(seed)
        groups = (
            [(labels == c).nonzero()[:, 0] for c in range(self.n_classes)]
            if per_class
            else [torch.arange(len(labels))]
        )
        for group in groups:
            order = torch.randperm(len(group), generator=generator)
            # A hair more than the product: 0.29 * 100 is 28.999999999999996.
            chosen = group[order[: int(rate * len(group) + 1e-9)]]
            shift = torch.randint(1, self.n_classes, (len(chosen),), generator=generator)
            labels[chosen] = (labels[chosen] + shift) % self.n_classes
        return replace(self, train=replace(self.train, labels=labels))


def _share(samples: Samples, n_samples: int, seed: int) -> Samples:
    """``n_samples`` of the samples, the same share of every class, in their order; or all."""
    if n_samples >= len(samples):
        return samples
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    labels = samples.labels[order]
    wanted = _shares(torch.bincount(labels), n_samples)
    chosen = [order[labels == c][:n] for c, n in enumerate(wanted.tolist())]
    return samples[torch.cat(chosen).sort().values]


def _shares(counts: Tensor, total: int) -> Tensor:
    """``total`` split like the counts by largest remainders, with one at least of what is there."""
    exact = counts.double() * total / counts.sum()
    shares = exact.floor().long().clamp(min=1).minimum(counts)
    while (missing := total - int(shares.sum())) != 0:
        lacking = (exact - shares) * (1 if missing > 0 else -1)
        full = shares >= counts if missing > 0 else shares <= counts.clamp(max=1)
        lacking[full] = -torch.inf
        shares[lacking.argmax()] += 1 if missing > 0 else -1
    return shares


def from_arrays(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    class_names: tuple[str, ...] | None = None,
    pixel_max: float = 255.0,
    standardise: bool = True,
) -> Dataset:
    """A `Dataset` from arrays in their original order.

    Parameters
    ----------
    train, test : (images, labels)
        Images (n, channels, height, width), uint8 or float32; labels (n,), integers from 0.
    class_names : tuple of str, optional
        By default the labels' numbers.
    pixel_max : float
        The value of a white pixel.
    standardise : bool
        Whether a net's input has mean 0 and standard deviation 1 in every channel.
    """
    parts = [_samples(images, labels) for images, labels in (train, test)]
    if class_names is None:
        class_names = tuple(str(c) for c in range(int(parts[0].labels.max()) + 1))
    mean, std = (0.0,) * parts[0].images.shape[1], (1.0,) * parts[0].images.shape[1]
    if standardise:
        mean, std = _moments(parts[0].images, pixel_max)
    return Dataset(name, *parts, tuple(class_names), float(pixel_max), mean, std)


def _moments(images: Tensor, pixel_max: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels of each channel, scaled to [0, 1]."""
    channels = images.transpose(0, 1).flatten(1)  # (c, n * h * w)
    if images.dtype == torch.uint8:  # counted: a copy in float64 would be eight times as large
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels])
        values = torch.arange(256, dtype=torch.float64) / pixel_max
        n = counts.sum(1)
        mean = (counts * values).sum(1) / n
        variance = (counts * (values - mean[:, None]) ** 2).sum(1) / (n - 1)
        return tuple(mean.tolist()), tuple(variance.sqrt().tolist())
    scaled = channels.double() / pixel_max
    return tuple(scaled.mean(1).tolist()), tuple(scaled.std(1).tolist())


def _samples(images: np.ndarray, labels: np.ndarray) -> Samples:
    target = torch.as_tensor(np.asarray(labels)).long()
    index = torch.arange(len(target))
    return Samples(torch.as_tensor(np.asarray(images)), target, index, target.clone())


def load_digits() -> Dataset:
    """The 1,797 real 8x8 handwritten digits that scikit-learn ships, split 1,437 / 360.

    The split is stratified by class and fixed; ``index`` is the position in scikit-learn's order.
    """
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    images, labels = datasets.load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8).astype(np.uint8)
    parts = train_test_split(
        np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_SEED
    )
    train, test = (torch.as_tensor(np.sort(part)) for part in parts)
    whole = _samples(images, labels)
    dataset = from_arrays(
        "digits",
        (images[train], labels[train]),
        (images[test], labels[test]),
        pixel_max=16.0,
        standardise=False,  # a net sees pixels in [0, 1], as in Feldman and Zhang's trainings
    )
    return replace(dataset, train=whole[train], test=whole[test])


class Augmentation(NamedTuple):
    """Where each sample is cut out of its padded image, and whether it is mirrored.

    rows, columns (...,), int64, in [0, 2 pad]; mirrored (...,), bool: an entry a sample.
    """

    rows: Tensor
    columns: Tensor
    mirrored: Tensor

    @classmethod
    def draw(cls, n: int, pad: int, flip: bool, seed: int) -> "Augmentation":
        """Augmentation of ``n`` samples: a function of the arguments alone."""
        generator = torch.Generator().manual_seed(seed)
        rows, columns = (torch.randint(2 * pad + 1, (n,), generator=generator) for _ in range(2))
        mirrored = torch.randint(1 + flip, (n,), generator=generator).bool()
        return cls(rows, columns, mirrored)

    def to(self, device: torch.device) -> "Augmentation":
        """The same on another device."""
        return Augmentation(*(part.to(device) for part in self))

    def of(self, index: Tensor) -> "Augmentation":
        """The moves of the samples at ``index``, in the order of its entries."""
        return Augmentation(*(part[index] for part in self))


def augment(images: Tensor, augmentation: Augmentation, pad: int) -> Tensor:
    """Crops of zero-padded images, some mirrored: (n, c, h, w) -> the same, dtype kept.

    All samples move in one gather on the device of ``images``, where ``moves`` have to be, too.
    The padding is black, as in the papers' configs, where pixels are cropped before they are
    normalised.
    """
    n, _, height, width = images.shape
    rows = torch.arange(height, device=images.device) + augmentation.rows[:, None]  # (n, h)
    columns = torch.arange(width, device=images.device) + augmentation.columns[:, None]  # (n, w)
    columns = torch.where(augmentation.mirrored[:, None], columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, (pad,) * 4).permute(0, 2, 3, 1)
    sample = torch.arange(n, device=images.device)[:, None, None]
    return padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
