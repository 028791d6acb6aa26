"""Image files and ``.npz`` arrays: listed with their classes, then decoded to one shape."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import cpu_count
from PIL import Image, ImageOps

from memlens.data.folders import class_folders, image_names, some_of

FILE_COLUMNS = ("file", "path", "filepath", "file_path", "filename", "file_name", "image",
                "image_path")  # fmt: skip
LABEL_COLUMNS = ("label", "class", "class_name", "target", "category", "y")
SPLITS = {"train", "training", "val", "valid", "validation", "test"}  # folders that are no classes
MAX_KEPT = 64  # pixels: images of one common size up to this keep it
DEFAULT_SIDE = 64  # pixels, of the square that larger images, or images of many sizes, become
COMMON_SHARE = 0.9  # of the images must have one size for it to be the common size
MIN_SIDE = 5  # pixels: the networks halve an image twice
TOLERANCE = 0.01  # by which pixels in [0, 1] may exceed 1 after arithmetic
GREY = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I")  # modes without a colour
SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I")  # modes of PNG with 16 bits
ARRAYS = (("x", "y"), ("X", "y"), ("images", "labels"), ("x_train", "y_train"),
          ("data", "target"))  # fmt: skip


class Listing(NamedTuple):
    """Files with their class names, and the skipped files as (file, reason)."""

    names: list[str]
    labels: list[str]
    skipped: list[tuple[str, str]]


def list_folder(root: Path, exclude: Path | None) -> Listing:
    """List all image files in the class folders, sorted by class and name.

    ``exclude`` is a folder that is no class although it may be in ``root``.
    """
    results = exclude and exclude.resolve()
    classes = [name for name in class_folders(root) if (root / name).resolve() != results]
    if not classes:
        raise ValueError(
            f"{root} has no class folders; move the images of each class to a folder of its name"
        )
    lower = {name.lower() for name in classes}
    if len(lower & SPLITS) > 1 or lower <= SPLITS:
        raise ValueError(
            f"{root} has the folders {some_of(classes)}, which are splits of a data set, not "
            f"classes; pass one of them, such as {root / classes[0]}"
        )
    names, labels, skipped = [], [], []
    for name in sorted(set(os.listdir(root)) - set(classes)):
        if not name.startswith(".") and (root / name).resolve() != results:
            skipped.append((name, "not in a class folder"))
    for label in classes:
        others: list[str] = []
        images = image_names(root, label, others)
        skipped += [(name, "not an image by its extension") for name in others]
        if not images:
            skipped.append((f"{label}/", "a class folder without images: the class is left out"))
        names += images
        labels += [label] * len(images)
    return Listing(names, labels, skipped)


def list_table(path: Path) -> Listing:
    """List the rows of a table that name an existing file and a class."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with warnings.catch_warnings():  # a trailing separator in every row is harmless
            warnings.simplefilter("ignore", pd.errors.ParserWarning)
            table = pd.read_csv(
                path, sep=separator, dtype=str, keep_default_na=False, index_col=False,
                encoding="utf-8-sig",
            )  # fmt: skip
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(
            f"{path} cannot be read as a table ({error}); save it as UTF-8 with a header"
        ) from error
    columns = [_column(path, table, known) for known in (FILE_COLUMNS, LABEL_COLUMNS)]
    names, labels, skipped = [], [], []
    for name, label in zip(*(table[column].str.strip() for column in columns)):
        if not label:
            skipped.append((name, "no label in its row"))
        elif not name or not _is_file(path.parent / name):
            skipped.append((name, "no such file"))
        else:
            names.append(name)
            labels.append(label)
    return Listing(names, labels, skipped)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file system allows
        return False


def _column(path: Path, table: pd.DataFrame, known: Sequence[str]) -> str:
    by_name = {str(column).strip().lower(): column for column in table}
    for name in known:
        if name in by_name:
            return by_name[name]
    separator = "tabs" if path.suffix.lower() == ".tsv" else "commas"
    raise ValueError(
        f"{path} has the columns {some_of([*map(str, table)])}; expected one named "
        f"{', '.join(known)}: rename one in its first row, and separate columns by {separator}"
    )


class Header(NamedTuple):
    """Size and mode from the header of an image file."""

    size: tuple[int, int]  # width, height after rotation by the camera's orientation
    mode: str


def read_header(root: Path, name: str) -> Header:
    """Read the header of a file without decoding it; pixels of floats are a ValueError."""
    with Image.open(root / name) as image:
        if image.mode == "F":
            raise ValueError("its pixels are floats of unknown range: save it with 8 bits")
        rotated = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientation by 90 degrees
        mode = "RGB" if image.mode == "P" else image.mode
        return Header(image.size[::-1] if rotated else image.size, mode)


def map_files(
    function: Callable[[str], object], names: Sequence[str]
) -> tuple[dict[int, object], dict[int, str]]:
    """Apply a function to files, in threads: return results and reasons of failure by position."""

    def attempt(name: str) -> object:
        try:
            return function(name)
        except MemoryError:
            raise
        except Exception as error:  # PIL raises nearly any exception for a damaged file
            return _Failure(f"cannot be decoded ({_shorten(error)})")

    Image.init()  # its formats: while one thread loads them, others may not find theirs
    with ThreadPoolExecutor(cpu_count()) as pool:  # decoding releases the GIL
        results = dict(enumerate(pool.map(attempt, names, chunksize=64)))
    failed = {i: str(r.reason) for i, r in results.items() if isinstance(r, _Failure)}
    return {i: r for i, r in results.items() if i not in failed}, failed


class _Failure(NamedTuple):
    reason: str


def _shorten(error: Exception) -> str:
    # PIL's "cannot identify image file '/a/long/path'" repeats the path, which is in the table.
    return "unknown image format" if "identify" in str(error) else str(error)[:120]


def common_shape(sizes: Sequence[tuple[int, int]], size: int | None) -> tuple[int, int]:
    """Return the (height, width) for all images; ``sizes`` are (width, height)."""
    if size is not None or not sizes:
        return (size or DEFAULT_SIDE,) * 2
    (width, height), n = Counter(sizes).most_common(1)[0]
    if n < COMMON_SHARE * len(sizes) or max(width, height) > MAX_KEPT:
        return DEFAULT_SIDE, DEFAULT_SIDE
    if min(width, height) < MIN_SIDE:
        raise ValueError(
            f"images are {width} x {height} pixels; expected at least {MIN_SIDE} x {MIN_SIDE}: "
            "pass a larger size to enlarge them"
        )
    return height, width


def decode(root: Path, name: str, *, height: int, width: int, grey: bool) -> np.ndarray:
    """Return the image, (channels, height, width) uint8."""
    with Image.open(root / name) as file:
        image = ImageOps.exif_transpose(_eight_bits(file))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if grey else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if grey else array.transpose(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode not in SIXTEEN_BIT:
        image.load()
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))


def read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of an ``.npz``, unchanged; ValueError if there are none."""
    try:
        with open(path, "rb") as source, np.load(source, allow_pickle=False) as file:
            for x, y in ARRAYS:
                if x in file and y in file:
                    return file[x], file[y]
            names = some_of(file.files)
    except MemoryError:
        raise
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); save it with numpy.savez(x=..., y=...), plain "
            "arrays without objects"
        ) from error
    except Exception as error:  # from zipfile, for a truncated file
        raise ValueError(f"{path} is damaged ({error}); save it again") from error
    raise ValueError(f"{path} has the arrays {names}; expected images x and labels y")


def channels_first(path: Path, x: np.ndarray) -> np.ndarray:
    """Return images (n, h, w), (n, h, w, c) or (n, c, h, w) as (n, c, h, w); c is 1 or 3.

    A fourth channel of uint8 images, their opacity, is composited on white.
    """
    if x.ndim == 4 and x.shape[3] == 4 and x.shape[1] not in (1, 3) and x.dtype == np.uint8:
        alpha = x[..., 3:] / np.float32(255)
        x = (x[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[1] in (1, 3):
        return x
    if x.ndim == 4 and x.shape[3] in (1, 3):
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    raise ValueError(
        f"images of {path} have shape {x.shape}; expected (n, h, w), (n, h, w, c) or "
        "(n, c, h, w), with one channel or three"
    )


def pixel_range(path: Path, x: np.ndarray) -> tuple[np.ndarray, float]:
    """Return images as uint8 or float32, and the value of white."""
    if x.dtype.kind not in "buif":
        raise ValueError(f"pixels of {path} are {x.dtype}; expected numbers from 0 to 255")
    if x.dtype.kind == "b":
        return x.astype(np.uint8) * 255, 255.0
    if x.dtype == np.uint16:
        return (x // 257).astype(np.uint8), 255.0
    low, high = float(x.min()), float(x.max())
    if x.dtype.kind in "ui" and low >= 0 and high <= 255:
        return x.astype(np.uint8), 255.0
    if x.dtype.kind == "f" and low >= 0 and high <= 255:
        return x.astype(np.float32), 1.0 if high <= 1 + TOLERANCE else 255.0
    raise ValueError(
        f"pixels of {path} are {x.dtype} from {low:g} to {high:g}; expected 0 to 255, or 0 to 1 "
        "as floats: undo the normalisation"
    )


def crop_and_resize(x: np.ndarray, size: int) -> np.ndarray:
    """Return centre squares of images (n, c, h, w), resized to ``size``; the dtype is kept."""
    short = min(x.shape[2:])
    top, left = ((side - short) // 2 for side in x.shape[2:])
    square = torch.as_tensor(x[:, :, top : top + short, left : left + short])
    resized = torch.nn.functional.interpolate(
        square.float(), (size, size), mode="bilinear", antialias=True
    )
    return (resized.round() if x.dtype == np.uint8 else resized).numpy().astype(x.dtype)
