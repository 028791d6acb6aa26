"""Reading labelled images: class folders, a table of files and labels, or an ``.npz``.

Images are read in a reproducible order. Files that cannot be read are skipped and listed with the
reason, so that a broken file among thousands stops nothing but is reported.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from memlens.audit import arrays, image_files
from memlens.audit.listings import Listing, list_folder
from memlens.audit.tables import list_table
from memlens.data.folders import EXTENSIONS, some_of
from memlens.data.samples import Dataset, from_arrays
from memlens.training import memory

MIN_IMAGES = 20


@dataclass(frozen=True)
class AuditData:
    """Labelled images that were read, and the files that were skipped.

    Attributes
    ----------
    name : str
        Of the folder or file.
    dataset : Dataset
        All readable samples as ``train``; ``index`` is the position in the listing. ``test`` is
        empty.
    files : tuple of str, one per sample
        As listed: relative to ``root``, or as in the table; for an ``.npz``, ``name.npz[row]``.
        Bytes that are not UTF-8 are escaped.
    root : Path
    skipped : DataFrame
        Columns file and reason; one row per skipped file, folder or row.
    notes : tuple of str
        Changes made to the images.
    pictures : Tensor (n_samples, channels, height, width) or None
        What is shown of each sample, and compared to find duplicates; None if there are only
        features. By default the images that the network is trained on.
    split : tuple of str, one per sample, or None
        The part of the data ("train", "test", ...) that each sample belongs to, if it is known.
    """

    name: str
    dataset: Dataset
    files: tuple[str, ...]
    root: Path
    skipped: pd.DataFrame
    notes: tuple[str, ...]
    pictures: Tensor | None = None
    split: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.pictures is None and not self.is_features:
            object.__setattr__(self, "pictures", self.dataset.train.images)

    @property
    def is_features(self) -> bool:
        """Whether the samples are vectors, stored as images of one pixel with d channels."""
        return self.dataset.in_shape[1:] == (1, 1)

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        counts = f"{len(self):,} images, {self.dataset.n_classes} classes"
        return f"AuditData({self.name}: {counts}, {len(self.skipped)} skipped)"


def load_audit_data(
    path: str | Path,
    *,
    size: int | None = None,
    classes: Sequence[str] | None = None,
    exclude: Path | None = None,
) -> AuditData:
    """Read labelled images.

    Transparent images are composited on white. Images are grey if all of them are, otherwise RGB.
    Images of 16 bits are reduced to their upper 8, EXIF rotation is applied, and only the first
    frame of an animation is read.

    Parameters
    ----------
    path : str or Path
        A folder of class folders (searched to any depth); a ``.csv`` or ``.tsv`` with a column of
        files, relative to it, and one of labels; or an ``.npz`` with images ``x`` (n, h, w),
        (n, h, w, c) or (n, c, h, w), uint8 or float, c 1 or 3, and labels ``y`` (n,).
    size : int, optional
        In pixels: the shorter side is resized to it and the centre square cut out. By default
        images of one common size up to 64 pixels keep it, and the few others are resized to it;
        otherwise all images become 64 x 64.
    classes : sequence of str, optional
        The known classes, in order; samples of other classes are skipped. By default all classes,
        sorted.
    exclude : Path, optional
        A folder of results that must not be read as a class.

    Raises
    ------
    FileNotFoundError
        If ``path`` does not exist.
    ValueError
        If it is none of the three kinds, has fewer than 20 readable images or a single class, or
        a table lacks its columns.
    MemoryError
        If the images do not fit in memory; the message suggests a size.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "images.npz"
    >>> x = np.arange(24 * 8 * 8).reshape(24, 8, 8) % 256
    >>> np.savez(path, x=x, y=["cat", "dog"] * 12)
    >>> audit_data = load_audit_data(path)
    >>> len(audit_data), audit_data.dataset.class_names, audit_data.files[0]
    (24, ('cat', 'dog'), 'images.npz[0]')
    """
    path = Path(path).expanduser().resolve()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; pass a folder, a .csv, a .tsv or an .npz")
    if size is not None and size < image_files.MIN_SIDE:
        raise ValueError(f"size is {size}; expected at least {image_files.MIN_SIDE} pixels")
    if classes is not None and len(set(classes)) < len(classes):
        repeated = [c for c, n in Counter(classes).items() if n > 1]
        raise ValueError(f"classes has {some_of(repeated)} more than once; name each once")
    if path.suffix.lower() == ".npz":
        return _from_arrays(path, size, classes)
    if path.is_dir():
        root, listing = path, list_folder(path, exclude)
    elif path.suffix.lower() in (".csv", ".tsv"):
        root, listing = path.parent, list_table(path)
    else:
        raise ValueError(
            f"{path} is no folder, .csv, .tsv or .npz; pass a folder with one folder of images per "
            "class, a table of files and labels, or an .npz with x and y"
        )
    return _from_files(path.name, root, listing, size, classes)


def _from_files(
    name: str, root: Path, listing: Listing, size: int | None, classes: Sequence[str] | None
) -> AuditData:
    """Read the listed files."""
    skipped = list(listing.skipped)
    position = np.arange(len(listing.names))  # of the samples, in the listing
    if classes is not None:
        position, skipped = _select_classes(
            listing.names, listing.labels, position, classes, skipped
        )
    names = [listing.names[i] for i in position]
    headers, broken = image_files.map_files(partial(image_files.read_header, root), names)
    skipped += [(names[i], reason) for i, reason in broken.items()]
    height, width = image_files.common_shape([header.size for header in headers.values()], size)
    grey = all(header.mode in image_files.GREY for header in headers.values())
    n_bytes = 2 * len(headers) * (1 if grey else 3) * height * width
    needed = {f"{len(headers):,} images of {width} x {height}": n_bytes}
    what, remedy = f"reading {root}", "pass a smaller size (--size)"
    memory.require_memory(needed, torch.device("cpu"), what, remedy)
    good = list(headers)
    decode = partial(image_files.decode, root, height=height, width=width, grey=grey)
    decoded, broken = image_files.map_files(decode, [names[i] for i in good])
    skipped += [(names[good[i]], reason) for i, reason in broken.items()]
    kept = [good[i] for i in decoded]
    _require_enough(root, len(kept), skipped)
    images = np.stack(list(decoded.values()))
    labels = [_printable(listing.labels[position[i]]) for i in kept]
    n_resized = sum(headers[i].size != (width, height) for i in kept)
    notes = [f"{n_resized:,} of {len(kept):,} images were resized to {width} x {height} pixels"]
    dataset = _dataset(images, labels, position[kept], classes)
    files = tuple(_printable(names[i]) for i in kept)
    notes = tuple(notes if n_resized else ())
    return AuditData(name, dataset, files, root, _skipped_table(skipped), notes)


def _select_classes(
    names: Sequence[str],
    labels: Sequence[str],
    position: np.ndarray,
    classes: Sequence[str],
    skipped: list[tuple[str, str]],
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Return the positions of samples of the given classes, and add the others to ``skipped``."""
    given = set(classes)
    if not given & set(labels):
        raise ValueError(
            f"none of classes ({some_of(sorted(given))}) is among the labels "
            f"({some_of(sorted(set(labels)))}); use the same spelling"
        )
    wrong = [i for i in position if labels[i] not in given]
    skipped = skipped + [(names[i], f"class {labels[i]!r} is not in classes") for i in wrong]
    return np.setdiff1d(position, np.array(wrong, dtype=int)), skipped


def _from_arrays(path: Path, size: int | None, classes: Sequence[str] | None) -> AuditData:
    """Read an ``.npz``, without unpickling."""
    x, y = arrays.read_arrays(path)
    x = arrays.channels_first(path, x)
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y  # some data sets have a column
    if y.ndim != 1 or len(x) != len(y):
        raise ValueError(
            f"{path} has images of shape {x.shape} and labels of shape {y.shape}; expected one "
            "label per image"
        )
    names = [f"{path.name}[{i}]" for i in range(len(y))]
    skipped, position = [], np.arange(len(y))
    if x.dtype.kind == "f":
        finite = np.isfinite(x).reshape(len(x), -1).all(1)
        skipped += [(names[i], "has NaN or infinite pixels") for i in np.flatnonzero(~finite)]
        position = np.flatnonzero(finite)
    if y.dtype.kind == "f":
        unlabelled = np.isnan(y[position])
        skipped += [(names[i], "no label") for i in position[unlabelled]]
        position = position[~unlabelled]
        whole = (np.nan_to_num(y) == np.nan_to_num(y).astype(np.int64)).all()
        y = np.nan_to_num(y).astype(np.int64) if whole else y
    labels = [x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x) for x in y.tolist()]
    if classes is not None:
        position, skipped = _select_classes(names, labels, position, classes, skipped)
    _require_enough(path, len(position), skipped)
    x, white = arrays.pixel_range(path, x[position])
    height, width = image_files.common_shape([x.shape[:1:-1]] * len(x), size)
    notes = ()
    if x.shape[2:] != (height, width):
        x = arrays.crop_and_resize(x, height)
        notes = (f"images were resized to {width} x {height}",)
    dataset = _dataset(x, [labels[i] for i in position], position, classes, white)
    files = tuple(names[i] for i in position)
    return AuditData(path.name, dataset, files, path.parent, _skipped_table(skipped), notes)


def _require_enough(path: Path, n: int, skipped: Sequence[tuple[str, str]]) -> None:
    if n >= MIN_IMAGES:
        return
    reasons = Counter(reason for _, reason in skipped).most_common(3)
    text = "; ".join(f"{count:,} {reason}" for reason, count in reasons)
    raise ValueError(
        f"{path} has {n} readable images with a label; expected at least {MIN_IMAGES}"
        + (f" (skipped: {text})" if text else "")
        + f"; image files are {', '.join(EXTENSIONS)}"
    )


def _dataset(
    images: np.ndarray,
    labels: Sequence[str],
    index: np.ndarray,
    classes: Sequence[str] | None,
    white: float = 255.0,
) -> Dataset:
    present = set(labels)
    known = [c for c in classes if c in present] if classes else _sort_classes(present)
    if len(known) < 2:
        raise ValueError(
            f"there is only the class {known[0]!r}; expected at least two, or no label can be wrong"
        )
    if images.min() == images.max():
        raise ValueError("all pixels of all images have the same value; check the files")
    number = {c: i for i, c in enumerate(known)}
    y = np.array([number[label] for label in labels])
    none = images[:0], y[:0]
    # The name does not depend on the path, so that trainings are found after the data is moved.
    dataset = from_arrays(
        "your images", (images, y), none, class_names=tuple(known), pixel_max=white
    )
    std = tuple(s or 1.0 for s in dataset.std)  # of a constant channel
    train = replace(dataset.train, index=torch.as_tensor(index))
    return replace(dataset, train=train, std=std)


def _sort_classes(classes: Iterable[str]) -> list[str]:
    """Sort class names, by value if all of them are integers: 10 comes after 9."""
    if all(re.fullmatch(r"-?\d+", c) for c in classes):
        return sorted(classes, key=lambda c: (int(c), c))
    return sorted(classes)


def _skipped_table(skipped: Iterable[tuple[str, str]]) -> pd.DataFrame:
    rows = [(_printable(name), _printable(reason)) for name, reason in skipped]
    return pd.DataFrame(rows, columns=["file", "reason"])


def _printable(name: str) -> str:
    """Escape the bytes of a file name that are not UTF-8, so that it can be written anywhere."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
