"""Your own data: a folder of class folders, a table of files and labels, or an ``.npz``.

What can be read is read, in a stable order; what cannot is left out and listed with its reason, so
that one broken file among thousands stops nothing and is not lost from sight either.
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

from memlens.audit import image_files
from memlens.audit.listings import Listed, list_folder, list_table
from memlens.data.folders import EXTENSIONS, some_of
from memlens.data.samples import Dataset, from_arrays
from memlens.training import memory

FEWEST = 20  # images; of fewer nothing is learned


@dataclass(frozen=True)
class AuditData:
    """Images that were read, and what became of the rest.

    Attributes
    ----------
    name : str, of the folder or file
    data : Dataset
        All readable samples as ``train``, in the order of the listing, whose positions are their
        ``index``; ``test`` is empty.
    files : tuple of str, one a sample
        As listed: relative to ``root``, or as a table has it; of an ``.npz``, ``name.npz[row]``.
        Bytes that are no UTF-8 are written as escapes.
    root : Path
    passed_over : DataFrame, a row a file, folder or row left out: file, reason
    notes : tuple of str
        What was done to the images, in words.
    """

    name: str
    data: Dataset
    files: tuple[str, ...]
    root: Path
    passed_over: pd.DataFrame
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)


def load_audit_data(
    path: str | Path,
    *,
    size: int | None = None,
    classes: Sequence[str] | None = None,
    beside: Path | None = None,
) -> AuditData:
    """Read labelled images of your own.

    Parameters
    ----------
    path : str or Path
        A folder of class folders (searched to any depth); a ``.csv`` or ``.tsv`` with a column of
        files, relative to it, and one of labels; or an ``.npz`` with images ``x`` (n, h, w),
        (n, h, w, c) or (n, c, h, w), uint8 or float, c 1 or 3, and labels ``y`` (n,).
    size : int, optional
        Pixels: the shorter side is resized to it and the centre square cut out. By default images
        of one size up to 64 pixels stay as they are, and a few of another size are fitted to it;
        others become 64 x 64.
    classes : sequence of str, optional
        The known classes, in their order; samples of any other are left out and listed. By default
        all classes that are found, sorted.
    beside : Path, optional
        A folder of results, which is no class although it may lie among them.

    Returns
    -------
    Own
        Transparent images stand on white; images are grey if all are, otherwise RGB; of sixteen
        bits the upper eight are kept; a camera's rotation is applied; of a moving image the first
        frame is taken.

    Raises
    ------
    FileNotFoundError
        If there is nothing at ``path``.
    ValueError
        If it is none of the three kinds, holds fewer than 20 readable images or a single class, or
        a table lacks its columns.
    MemoryError
        If the images do not fit; the message says what does.
    """
    place = Path(path).expanduser().resolve()
    if not place.exists():
        raise FileNotFoundError(f"there is nothing at {place}; pass a folder, a .csv or an .npz")
    if size is not None and size < image_files.SMALLEST:
        raise ValueError(f"size is {size}; expected at least {image_files.SMALLEST} pixels")
    if classes is not None and len(set(classes)) < len(classes):
        twice = [c for c, n in Counter(classes).items() if n > 1]
        raise ValueError(f"classes given twice: {some_of(twice)}; name each once")
    if place.suffix.lower() == ".npz":
        return _of_arrays(place, size, classes)
    if place.is_dir():
        root, listed = place, list_folder(place, beside)
    elif place.suffix.lower() in (".csv", ".tsv"):
        root, listed = place.parent, list_table(place)
    else:
        raise ValueError(
            f"{place} is no folder, .csv, .tsv or .npz; pass a folder with a folder of images a "
            "class, a table of files and labels, or an .npz with x and y"
        )
    return _of_files(place.name, root, listed, size, classes)


def _of_files(
    name: str, root: Path, listed: Listed, size: int | None, classes: Sequence[str] | None
) -> AuditData:
    """Open, fit and stack the listed files."""
    passed = list(listed.passed)
    position = np.arange(len(listed.names))
    if classes is not None:
        position, passed = _known(listed.names, listed.labels, position, classes, passed)
    names = [listed.names[i] for i in position]
    looks, broken = image_files.each(partial(image_files.look, root), names)
    passed += [(names[i], reason) for i, reason in broken.items()]
    height, width = image_files.fitting([look.size for look in looks.values()], size)
    channels = 1 if all(look.mode in image_files.GREY for look in looks.values()) else 3
    needed = {
        f"{len(looks):,} images of {width} x {height}": 2 * len(looks) * channels * height * width
    }
    what, remedy = f"reading {root}", "pass a smaller size (--size)"
    memory.check(needed, torch.device("cpu"), what, remedy)
    good = list(looks)
    read = partial(image_files.pixels, root, height=height, width=width, grey=channels == 1)
    decoded, broken = image_files.each(read, [names[i] for i in good])
    passed += [(names[good[i]], reason) for i, reason in broken.items()]
    kept = [good[i] for i in decoded]
    _require_enough(root, len(kept), passed)
    images = np.stack(list(decoded.values()))
    labels = [_printable(listed.labels[position[i]]) for i in kept]
    fitted = sum(looks[i].size != (width, height) for i in kept)
    notes = [f"{fitted:,} of {len(kept):,} images were fitted to {width} x {height} pixels"]
    data = _dataset(images, labels, position[kept], classes)
    files = tuple(_printable(names[i]) for i in kept)
    return AuditData(name, data, files, root, _table_of(passed), tuple(notes if fitted else ()))


def _known(
    names: Sequence[str],
    labels: Sequence[str],
    position: np.ndarray,
    classes: Sequence[str],
    passed: list[tuple[str, str]],
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Positions of the samples of the given classes; the others are passed over."""
    given = set(classes)
    if not given & set(labels):
        raise ValueError(
            f"none of the classes given ({some_of(sorted(given))}) is among those found "
            f"({some_of(sorted(set(labels)))}); write them alike"
        )
    wrong = [i for i in position if labels[i] not in given]
    passed = passed + [(names[i], f"class {labels[i]!r} is not among those given") for i in wrong]
    return np.setdiff1d(position, np.array(wrong, dtype=int)), passed


def _of_arrays(path: Path, size: int | None, classes: Sequence[str] | None) -> AuditData:
    """Images and labels of an ``.npz``; nothing in it is unpickled."""
    x, y = image_files.read_arrays(path)
    x = image_files.channels_first(path, x)
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y  # a column, as some sets have it
    if y.ndim != 1 or len(x) != len(y):
        raise ValueError(
            f"{path} has images of shape {x.shape} and labels of shape {y.shape}; expected one "
            "label an image"
        )
    names = [f"{path.name}[{i}]" for i in range(len(y))]
    passed, position = [], np.arange(len(y))
    if x.dtype.kind == "f":
        finite = np.isfinite(x).reshape(len(x), -1).all(1)
        passed += [(names[i], "holds NaN or infinite pixels") for i in np.flatnonzero(~finite)]
        position = np.flatnonzero(finite)
    if y.dtype.kind == "f":
        unlabelled = np.isnan(y[position])
        passed += [(names[i], "no label") for i in position[unlabelled]]
        position = position[~unlabelled]
        whole = (np.nan_to_num(y) == np.nan_to_num(y).astype(np.int64)).all()
        y = np.nan_to_num(y).astype(np.int64) if whole else y
    labels = [x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x) for x in y.tolist()]
    if classes is not None:
        position, passed = _known(names, labels, position, classes, passed)
    _require_enough(path, len(position), passed)
    x, white = image_files.pixel_range(path, x[position])
    height, width = image_files.fitting([x.shape[:1:-1]] * len(x), size)
    notes = ()
    if x.shape[2:] != (height, width):
        x, notes = image_files.resized(x, height), (f"images were fitted to {width} x {height}",)
    data = _dataset(x, [labels[i] for i in position], position, classes, white)
    files = tuple(names[i] for i in position)
    return AuditData(path.name, data, files, path.parent, _table_of(passed), notes)


def _require_enough(place: Path, n: int, passed: Sequence[tuple[str, str]]) -> None:
    if n >= FEWEST:
        return
    reasons = Counter(reason for _, reason in passed).most_common(3)
    told = "; ".join(f"{count:,} {reason}" for reason, count in reasons)
    raise ValueError(
        f"{n} images of {place} can be read and have a label; expected at least {FEWEST}"
        + (f" (passed over: {told})" if told else "")
        + f"; images are {', '.join(EXTENSIONS)}"
    )


def _dataset(
    images: np.ndarray,
    labels: Sequence[str],
    index: np.ndarray,
    classes: Sequence[str] | None,
    white: float = 255.0,
) -> Dataset:
    present = set(labels)
    known = [c for c in classes if c in present] if classes else _in_order(present)
    if len(known) < 2:
        raise ValueError(
            f"there is the single class {known[0]!r}; expected two at least: there is nothing "
            "to learn, and no label can be wrong"
        )
    if images.min() == images.max():
        raise ValueError("all images are of one and the same colour; check the files")
    number = {c: i for i, c in enumerate(known)}
    y = np.array([number[label] for label in labels])
    none = images[:0], y[:0]
    # By one name wherever it lies: what was finished is found again after a move.
    data = from_arrays("your images", (images, y), none, class_names=tuple(known), pixel_max=white)
    std = tuple(s or 1.0 for s in data.std)  # a channel that never varies stays as it is
    return replace(data, train=replace(data.train, index=torch.as_tensor(index)), std=std)


def _in_order(classes: Iterable[str]) -> list[str]:
    """Sorted; by value where all of them are whole numbers, so that 10 comes after 9."""
    if all(re.fullmatch(r"-?\d+", c) for c in classes):
        return sorted(classes, key=lambda c: (int(c), c))
    return sorted(classes)


def _table_of(passed: Iterable[tuple[str, str]]) -> pd.DataFrame:
    rows = [(_printable(name), _printable(reason)) for name, reason in passed]
    return pd.DataFrame(rows, columns=["file", "reason"])


def _printable(name: str) -> str:
    """A file's name as any file can hold it: bytes that are no UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
