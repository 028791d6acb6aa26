"""Samples and data sets: images, labels, original indices and clean labels as tensors.

Images keep the units of their source (usually uint8 pixels); `Dataset.normalise` converts them to
the float input of a network. Every sample keeps its index in the original data, so that a score can
be traced to its image.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TEST_SHARE = 0.2  # of digits: 1,437 training and 360 test samples
SPLIT_SEED = 0  # the split is part of the data, not a parameter


@dataclass(frozen=True)
class Samples:
    """A set of labelled images.

    Attributes
    ----------
    images : Tensor (n_samples, channels, height, width), uint8 or float32
        Or a `memlens.data.folders.FolderImages`, which decodes on indexing.
    labels : Tensor (n_samples,), int64
        The labels to train on.
    index : Tensor (n_samples,), int64
        Position in the original data.
    clean_labels : Tensor (n_samples,), int64
        Labels before noise was added.

    Raises
    ------
    ValueError, TypeError
        On a wrong shape, dtype or length, negative labels, NaN or infinite pixels.

    Examples
    --------
    >>> import memlens as ml
    >>> train = ml.load("digits").with_noise(0.1).train
    >>> train[train.is_noisy]
    Samples(143 images (1, 8, 8) uint8, 143 labels changed)
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
        return f"Samples({len(self):,} images {_described(self.images)}{_noise_note(self)})"

    def __getitem__(self, which: Tensor) -> "Samples":
        """Return the samples of a mask or of positions, each with its original index."""
        images = self.images[which] if torch.is_tensor(self.images) else self.images.subset(which)
        return Samples(images, self.labels[which], self.index[which], self.clean_labels[which])

    @property
    def is_noisy(self) -> Tensor:
        """Mask (n_samples,), bool, of the samples with a changed label."""
        return self.labels != self.clean_labels


def _described(images: Tensor) -> str:
    return f"{tuple(images.shape[1:])} {str(images.dtype).removeprefix('torch.')}"


def _noise_note(samples: Samples) -> str:
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
    """Training and test samples of one source, with the normalisation of its pixels.

    Attributes
    ----------
    name : str
    train, test : Samples
    class_names : tuple of str
        One per class.
    pixel_max : float
        The value of a white pixel (255 for most uint8 images, 16 for digits).
    mean, std : tuple of float
        Subtracted from, and divided into, pixels scaled to [0, 1]; one per channel.

    Raises
    ------
    ValueError
        If a label has no class name, a class has no training sample, or the image shapes differ.

    Examples
    --------
    >>> import memlens as ml
    >>> data = ml.load("digits").subset(300)
    >>> data.n_classes, data.in_shape, len(data.train)
    (10, (1, 8, 8), 300)
    >>> data.normalise(data.train.images).max().item()
    1.0
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
        # Label noise may flip the last label of a class: its clean label still counts.
        both = torch.cat([self.train.labels, self.train.clean_labels])
        counts = torch.bincount(both, minlength=self.n_classes)[: self.n_classes]
        if (counts == 0).any():
            empty = [self.class_names[i] for i in (counts == 0).nonzero()[:, 0]]
            raise ValueError(f"classes without a training sample in {self.name}: {empty}")

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name}: {len(self.train):,} training samples{_noise_note(self.train)}, "
            f"{len(self.test):,} test samples, {self.n_classes} classes, "
            f"images {_described(self.train.images)})"
        )

    @property
    def n_classes(self) -> int:
        """Number of class names."""
        return len(self.class_names)

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape (channels, height, width) of one image."""
        return tuple(self.train.images.shape[1:])

    def normalise(self, images: Tensor) -> Tensor:
        """Return the input of a network: (pixel / pixel_max - mean) / std.

        Parameters
        ----------
        images : Tensor (..., channels, height, width)

        Returns
        -------
        Tensor, float32
            Of the same shape, on the same device.
        """
        if images.device not in self._affine:
            # Computed once per device: a copy in each training step would wait for the device.
            mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
            parts = 1 / (self.pixel_max * std), -mean / std
            self._affine[images.device] = [part.to(images.device) for part in parts]
        scale, offset = self._affine[images.device]
        return images * scale + offset

    @cached_property
    def _affine(self) -> dict[torch.device, list[Tensor]]:
        return {}

    def subset(self, n_samples: int, *, seed: int = 0) -> "Dataset":
        """Return ``n_samples`` training samples, and at most as many test samples.

        Each class keeps its share, to within one sample, and has at least one sample. Samples keep
        their order and their original index.

        Raises
        ------
        ValueError
            If ``n_samples`` is below the number of classes or above that of training samples.
        """
        if not self.n_classes <= n_samples <= len(self.train):
            raise ValueError(
                f"n_samples is {n_samples}; expected {self.n_classes} (one per class) to "
                f"{len(self.train)} (the training samples of {self.name})"
            )
        parts = {"train": self.train, "test": self.test}
        return replace(self, **{k: _share(part, n_samples, seed) for k, part in parts.items()})

    def reduced(self, factor: int) -> "Dataset":
        """Return the data with smaller images: means of ``factor`` x ``factor`` pixels.

        Means of whole numbers are rounded to whole numbers. The mean and standard deviation that
        images are normalised with stay the same.

        Raises
        ------
        ValueError
            If the sides of the images are no multiple of the factor.
        """
        _, height, width = self.in_shape
        if factor < 1 or height % factor or width % factor:
            raise ValueError(
                f"factor is {factor}; expected a divisor of both sides of {height}x{width} images"
            )
        parts = {"train": self.train, "test": self.test}
        return replace(self, **{name: _reduced(part, factor) for name, part in parts.items()})

    def with_noise(self, rate: float, *, seed: int = 0, per_class: bool = False) -> "Dataset":
        """Return the data with symmetric label noise: a flipped label is uniform over the others.

        Parameters
        ----------
        rate : float in [0, 1)
            Share of training labels to flip, rounded down to whole samples.
        seed : int
            Determines the samples and their new labels.
        per_class : bool
            False: the share holds over the whole set (CSG paper, B.6). True: the same share in
            every class (curvature paper, section 4.3).

        Returns
        -------
        Dataset
            With new ``train.labels`` and the same ``train.clean_labels``.

        Raises
        ------
        ValueError
            If the rate is outside [0, 1).
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
            # In floating point, 0.29 * 100 is 28.999999999999996.
            chosen = group[order[: int(rate * len(group) + 1e-9)]]
            shift = torch.randint(1, self.n_classes, (len(chosen),), generator=generator)
            labels[chosen] = (labels[chosen] + shift) % self.n_classes
        return replace(self, train=replace(self.train, labels=labels))


def _reduced(samples: Samples, factor: int) -> Samples:
    """Return the samples with the means of blocks of pixels."""
    means = F.avg_pool2d(samples.images.float(), factor)
    whole = not samples.images.is_floating_point()
    images = (means.round() if whole else means).to(samples.images.dtype)
    return replace(samples, images=images)


def _share(samples: Samples, n_samples: int, seed: int) -> Samples:
    """Return ``n_samples`` samples, the same share of every class, in their order; or all."""
    if n_samples >= len(samples):
        return samples
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    labels = samples.labels[order]
    wanted = _shares(torch.bincount(labels), n_samples)
    chosen = [order[labels == c][:n] for c, n in enumerate(wanted.tolist())]
    return samples[torch.cat(chosen).sort().values]


def _shares(counts: Tensor, total: int) -> Tensor:
    """Split ``total`` in proportion to the counts by largest remainders, at least one per class."""
    # train_test_split(stratify=...) refuses a class of one sample and a subset of all samples, and
    # leaves rare classes out.
    exact = counts.double() * total / counts.sum()
    shares = exact.floor().long().clamp(min=1).minimum(counts)
    while (missing := total - int(shares.sum())) != 0:
        lacking = (exact - shares) * (1 if missing > 0 else -1)
        full = shares >= counts if missing > 0 else shares <= counts.clamp(max=1)
        lacking[full] = -torch.inf
        shares[lacking.argmax()] += 1 if missing > 0 else -1
    return shares


def stratified_folds(
    labels: np.ndarray,
    n_folds: int,
    *,
    seed: int,
    first: np.ndarray | None = None,
    eligible: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Return masks (n_samples,), bool, of the samples that each fold holds out, by label.

    Parameters
    ----------
    labels : array (n_samples,), int
    n_folds : int
    seed : int
    first : array (n_samples,), int, optional
        Position of the first member of each sample's group; a group is held out as a whole, by the
        label of its first member. By default every sample is its own group.
    eligible : array (n_samples,), bool, optional
        False: the sample's group is in no fold. Read at the first member of each group.
    """
    from sklearn.model_selection import StratifiedKFold

    # Folds of first members: StratifiedGroupKFold takes 6.4 s for 50,000 samples, this 0.05 s.
    positions = np.arange(len(labels))
    first = positions if first is None else first
    rows = np.flatnonzero((first == positions) & (True if eligible is None else eligible))
    splits = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(rows, labels[rows])
    return [np.isin(first, rows[held_out]) for _, held_out in splits]


def from_arrays(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    class_names: tuple[str, ...] | None = None,
    pixel_max: float = 255.0,
    standardise: bool = True,
) -> Dataset:
    """Make a `Dataset` from arrays in their original order.

    Parameters
    ----------
    name : str
    train, test : (images, labels)
        Images (n, channels, height, width), uint8 or float32; labels (n,), integers from 0.
    class_names : tuple of str, optional
        By default "0", "1", ...
    pixel_max : float
        The value of a white pixel.
    standardise : bool
        Standardise each channel of a network's input by its mean and standard deviation over the
        training images. False: inputs are pixels in [0, 1].

    Raises
    ------
    ValueError, TypeError
        As `Samples` and `Dataset`.

    Examples
    --------
    >>> import numpy as np, memlens as ml
    >>> x, y = np.zeros((6, 1, 4, 4), np.uint8), np.array([0, 1, 2, 0, 1, 2])
    >>> ml.from_arrays("mine", (x, y), (x[:3], y[:3]), standardise=False)
    Dataset(mine: 6 training samples, 3 test samples, 3 classes, images (1, 4, 4) uint8)
    """
    parts = [_samples(images, labels) for images, labels in (train, test)]
    if class_names is None:
        class_names = tuple(str(c) for c in range(int(parts[0].labels.max()) + 1))
    mean, std = (0.0,) * parts[0].images.shape[1], (1.0,) * parts[0].images.shape[1]
    if standardise:
        mean, std = _moments(parts[0].images, pixel_max)
    return Dataset(name, *parts, tuple(class_names), float(pixel_max), mean, std)


def _moments(images: Tensor, pixel_max: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel's pixels, scaled to [0, 1]."""
    channels = images.transpose(0, 1).flatten(1)  # (c, n * h * w)
    if images.dtype == torch.uint8:  # a histogram: a float64 copy would take eight times the memory
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
    """Load the 1,797 handwritten digits (8x8 pixels) of scikit-learn, split 1,437 / 360.

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
        standardise=False,  # inputs in [0, 1], as in Feldman and Zhang's trainings
    )
    return replace(dataset, train=whole[train], test=whole[test])


class Augmentation(NamedTuple):
    """The crop offset and the mirroring of each sample.

    Attributes
    ----------
    rows, columns : Tensor (...,), int64, in [0, 2 pad]
    mirrored : Tensor (...,), bool
    """

    rows: Tensor
    columns: Tensor
    mirrored: Tensor

    @classmethod
    def draw(cls, n: int, pad: int, flip: bool, seed: int) -> "Augmentation":
        """Draw the augmentation of ``n`` samples, determined by the arguments."""
        generator = torch.Generator().manual_seed(seed)
        rows, columns = (torch.randint(2 * pad + 1, (n,), generator=generator) for _ in range(2))
        mirrored = torch.randint(1 + flip, (n,), generator=generator).bool()
        return cls(rows, columns, mirrored)

    def to(self, device: torch.device) -> "Augmentation":
        """Copy to a device."""
        return Augmentation(*(part.to(device) for part in self))

    def of(self, index: Tensor) -> "Augmentation":
        """Return the augmentation of the samples at ``index``, in its order."""
        return Augmentation(*(part[index] for part in self))


def augment(images: Tensor, augmentation: Augmentation, pad: int) -> Tensor:
    """Crop zero-padded images and mirror some of them: (n, c, h, w) -> same shape and dtype.

    All samples are gathered at once on the device of ``images`` and ``augmentation``. The padding
    is black, as in the papers' code, which crops before it normalises.
    """
    n, _, height, width = images.shape
    rows = torch.arange(height, device=images.device) + augmentation.rows[:, None]  # (n, h)
    columns = torch.arange(width, device=images.device) + augmentation.columns[:, None]  # (n, w)
    columns = torch.where(augmentation.mirrored[:, None], columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, (pad,) * 4).permute(0, 2, 3, 1)
    sample = torch.arange(n, device=images.device)[:, None, None]
    return padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
