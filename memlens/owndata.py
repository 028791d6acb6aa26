"""Your own data: a folder of class folders, a table of files and labels, or an ``.npz``.

What can be read is read, in a stable order; what cannot is left out and listed with its reason, so
that one broken file among thousands stops nothing and is not lost from sight either.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from memlens import forecast, pictures
from memlens.data import Dataset, from_arrays
from memlens.folders import EXTENSIONS, class_folders, image_names, some_of

FEWEST = 20  # images; of fewer nothing is learned
FILE_COLUMNS = ("file", "path", "filepath", "file_path", "filename", "file_name", "image",
                "image_path")  # fmt: skip
LABEL_COLUMNS = ("label", "class", "class_name", "target", "category", "y")
PARTS = {"train", "training", "val", "valid", "validation", "test"}  # of a root, not classes


@dataclass(frozen=True)
class Own:
    """Images that were read, and what became of the rest.

    Attributes
    ----------
    data : Dataset
        All readable samples as ``train``, in the order of the listing, whose positions are their
        ``index``; ``test`` is empty.
    files : tuple of str, one a sample
        Relative to ``root``; of an ``.npz``, ``name.npz[row]``.
    root : Path
    passed_over : DataFrame, a row a file, folder or row left out: file, reason
    notes : tuple of str
        What was done to the images, in words.
    """

    data: Dataset
    files: tuple[str, ...]
    root: Path
    passed_over: pd.DataFrame
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)


class _Listed(NamedTuple):
    """Files and the names of their classes before anything is opened; what was passed over."""

    names: list[str]
    labels: list[str]
    passed: list[tuple[str, str]]


def load_own(
    path: str | Path, *, size: int | None = None, classes: Sequence[str] | None = None
) -> Own:
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
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"there is nothing at {place}; pass a folder, a .csv or an .npz")
    if size is not None and size < 4:
        raise ValueError(f"size is {size}; expected at least 4 pixels")
    if place.suffix.lower() == ".npz":
        return _of_arrays(place, size, classes)
    if place.is_dir():
        root, listed = place, _list_folder(place)
    elif place.suffix.lower() in (".csv", ".tsv"):
        root, listed = place.parent, _list_table(place)
    else:
        raise ValueError(
            f"{place} is no folder, .csv, .tsv or .npz; pass a folder with a folder of images a "
            "class, a table of files and labels, or an .npz with x and y"
        )
    return _of_files(place.stem, root, listed, size, classes)


def _list_folder(root: Path) -> _Listed:
    """All image files below the class folders, class by class, sorted."""
    found = class_folders(root)
    if {name.lower() for name in found} <= PARTS:
        raise ValueError(
            f"{root} holds {some_of(found)}: parts of a data set, not classes; pass one of them, "
            f"such as {root / found[0]}"
        )
    names, labels, passed = [], [], []
    for name in sorted(os.listdir(root)):
        if name not in found and not name.startswith("."):
            passed.append((name, "lies in no class folder"))
    for label in found:
        others: list[str] = []
        own = image_names(root, label, others)
        passed += [(name, "no image by its extension") for name in others]
        if not own:
            passed.append((f"{label}/", "a class folder without an image: the class is left out"))
        names += own
        labels += [label] * len(own)
    return _Listed(names, labels, passed)


def _list_table(path: Path) -> _Listed:
    """The rows of a table that name a file and a class."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(
            f"{path} cannot be read as a table ({error}); save it as UTF-8 with a header"
        ) from error
    columns = [_column(path, table, known) for known in (FILE_COLUMNS, LABEL_COLUMNS)]
    names, labels, passed = [], [], []
    for name, label in zip(*(table[column].str.strip() for column in columns)):
        if not label:
            passed.append((name, "no label in its row"))
        elif not name or not (path.parent / name).is_file():
            passed.append((name, "there is no such file"))
        else:
            names.append(name)
            labels.append(label)
    return _Listed(names, labels, passed)


def _column(path: Path, table: pd.DataFrame, known: Sequence[str]) -> str:
    by_name = {str(column).strip().lower(): column for column in table}
    for name in known:
        if name in by_name:
            return by_name[name]
    raise ValueError(
        f"{path} has the columns {some_of([*map(str, table)])}, none of them one of "
        f"{', '.join(known)}; name its first row so"
    )


def _of_files(
    name: str, root: Path, listed: _Listed, size: int | None, classes: Sequence[str] | None
) -> Own:
    """Open, fit and stack the listed files."""
    passed = list(listed.passed)
    position = np.arange(len(listed.names))
    if classes is not None:
        position, passed = _known(listed.names, listed.labels, position, classes, passed)
    names = [listed.names[i] for i in position]
    looks, broken = pictures.each(partial(pictures.look, root), names)
    passed += [(names[i], reason) for i, reason in broken.items()]
    height, width = pictures.fitting([look.size for look in looks.values()], size)
    channels = 1 if all(look.mode in pictures.GREY for look in looks.values()) else 3
    needed = {
        f"{len(looks):,} images of {width} x {height}": len(looks) * channels * height * width
    }
    what, remedy = f"reading {root}", "pass a smaller size (--size)"
    forecast.check(needed, torch.device("cpu"), what, remedy)
    good = list(looks)
    read = partial(pictures.pixels, root, height=height, width=width, grey=channels == 1)
    decoded, broken = pictures.each(read, [names[i] for i in good])
    passed += [(names[good[i]], reason) for i, reason in broken.items()]
    kept = [good[i] for i in decoded]
    _require_enough(root, len(kept), passed)
    images = np.stack(list(decoded.values()))
    labels = [listed.labels[position[i]] for i in kept]
    fitted = sum(looks[i].size != (width, height) for i in kept)
    notes = [f"{fitted:,} of {len(kept):,} images were fitted to {width} x {height} pixels"]
    data = _dataset(name, images, labels, position[kept], classes)
    files = tuple(names[i] for i in kept)
    return Own(data, files, root, _table_of(passed), tuple(notes if fitted else ()))


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


def _of_arrays(path: Path, size: int | None, classes: Sequence[str] | None) -> Own:
    """Images and labels of an ``.npz``; nothing in it is unpickled."""
    x, y = pictures.read_arrays(path)
    x = pictures.channels_first(path, x)
    if len(x) != len(y) or y.ndim != 1:
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
    labels = [str(label) for label in y.tolist()]
    if classes is not None:
        position, passed = _known(names, labels, position, classes, passed)
    _require_enough(path, len(position), passed)
    x, white = pictures.pixel_range(path, x[position])
    notes = ()
    if size is not None and x.shape[2:] != (size, size):
        x, notes = pictures.resized(x, size), (f"images were fitted to {size} x {size} pixels",)
    data = _dataset(path.stem, x, [labels[i] for i in position], position, classes, white)
    files = tuple(names[i] for i in position)
    return Own(data, files, path.parent, _table_of(passed), notes)


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
    name: str,
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
            f"{name} has the single class {known[0]!r}; expected two at least: there is nothing "
            "to learn, and no label can be wrong"
        )
    if images.min() == images.max():
        raise ValueError(f"all images of {name} are one and the same colour; check the files")
    number = {c: i for i, c in enumerate(known)}
    y = np.array([number[label] for label in labels])
    none = images[:0], y[:0]
    data = from_arrays(name, (images, y), none, class_names=tuple(known), pixel_max=white)
    std = tuple(s or 1.0 for s in data.std)  # a channel that never varies stays as it is
    return replace(data, train=replace(data.train, index=torch.as_tensor(index)), std=std)


def _in_order(classes: Iterable[str]) -> list[str]:
    """Sorted; by value where all of them are numbers, so that 10 comes after 9."""
    try:
        return sorted(classes, key=float)
    except ValueError:
        return sorted(classes)


def _table_of(passed: Iterable[tuple[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(list(passed), columns=["file", "reason"])
