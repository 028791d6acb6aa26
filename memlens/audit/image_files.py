"""Pictures as arrays of one shape: files of every mode, size and depth, and ``.npz``."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from joblib import cpu_count
from PIL import Image, ImageOps

from memlens.data.folders import some_of

LARGEST = 64  # pixels: images of one size up to this are taken as they are
ROUNDING = 0.01  # above 1, that pixels from 0 to 1 may reach by arithmetic
SIDE = 64  # of the square that larger or mixed images become
COMMON = 0.9  # of the images must have one size for it to be the size of the data
SMALLEST = 5  # pixels: the nets halve an image twice, and something has to be left
GREY = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I")  # modes without a colour
DEEP = ("I;16", "I;16B", "I;16L", "I")  # PNG's sixteen bits, of which eight are kept
ARRAYS = (("x", "y"), ("X", "y"), ("images", "labels"), ("x_train", "y_train"),
          ("data", "target"))  # fmt: skip


class Look(NamedTuple):
    """What the head of an image file says."""

    size: tuple[int, int]  # width, height, as a person sees it
    mode: str


def look(root: Path, name: str) -> Look:
    """The head of a file, without decoding it; ValueError for pixels of floats."""
    with Image.open(root / name) as image:
        if image.mode == "F":
            raise ValueError("its pixels are floats of unknown range: save it with 8 bits")
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # orientation: on its side
        mode = "RGB" if image.mode == "P" else image.mode
        return Look(image.size[::-1] if turned else image.size, mode)


def each(
    work: Callable[[str], object], names: Sequence[str]
) -> tuple[dict[int, object], dict[int, str]]:
    """Results and reasons of failure by position; threads, as decoding lets go of Python's lock."""

    def attempt(name: str) -> object:
        try:
            return work(name)
        except MemoryError:
            raise
        except Exception as error:  # a damaged file makes PIL raise nearly anything
            return _Failed(f"cannot be decoded ({_short(error)})")

    with ThreadPoolExecutor(cpu_count()) as pool:
        results = dict(enumerate(pool.map(attempt, names, chunksize=64)))
    failed = {i: str(r.reason) for i, r in results.items() if isinstance(r, _Failed)}
    return {i: r for i, r in results.items() if i not in failed}, failed


class _Failed(NamedTuple):
    reason: str


def _short(error: Exception) -> str:
    # PIL's "cannot identify image file '/a/very/long/path'" says the path, which the table has.
    return "no image that can be identified" if "identify" in str(error) else str(error)[:120]


def fitting(sizes: Sequence[tuple[int, int]], size: int | None) -> tuple[int, int]:
    """(height, width) that all images get; ``sizes`` are (width, height)."""
    if size is not None or not sizes:
        return (size or SIDE,) * 2
    (width, height), n = Counter(sizes).most_common(1)[0]
    if n < COMMON * len(sizes) or max(width, height) > LARGEST:
        return SIDE, SIDE
    if min(width, height) < SMALLEST:
        raise ValueError(
            f"images are {width} x {height} pixels; expected {SMALLEST} x {SMALLEST} at least: "
            "pass a larger size to enlarge them"
        )
    return height, width


def pixels(root: Path, name: str, *, height: int, width: int, grey: bool) -> np.ndarray:
    """The image, (channels, height, width) uint8."""
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
    if image.mode not in DEEP:
        image.load()
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))


def read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of an ``.npz``, as they are; ValueError if there are none."""
    try:
        with open(path, "rb") as source, np.load(source, allow_pickle=False) as file:
            for x, y in ARRAYS:
                if x in file and y in file:
                    return file[x], file[y]
            found = some_of(file.files)
    except MemoryError:
        raise
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); save it with numpy.savez(x=..., y=...), plain "
            "arrays without objects"
        ) from error
    except Exception as error:  # zipfile's own, of a truncated file
        raise ValueError(f"{path} is damaged ({error}); save it again") from error
    raise ValueError(f"{path} holds {found}; expected images x and labels y")


def channels_first(path: Path, x: np.ndarray) -> np.ndarray:
    """Images (n, h, w), (n, h, w, c) or (n, c, h, w) as the last of them; c is 1 or 3.

    A fourth channel, which says how transparent a pixel of uint8 is, is laid on white.
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
    """Images as uint8 or float32, and the value of white."""
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
        return x.astype(np.float32), 1.0 if high <= 1 + ROUNDING else 255.0
    raise ValueError(
        f"pixels of {path} are {x.dtype} from {low:g} to {high:g}; expected 0 to 255, or 0 to 1 "
        "as floats: undo the normalisation"
    )


def resized(x: np.ndarray, size: int) -> np.ndarray:
    """Centre squares of side ``size``, (n, c, size, size), of (n, c, h, w); dtype kept."""
    short = min(x.shape[2:])
    top, left = ((side - short) // 2 for side in x.shape[2:])
    square = torch.as_tensor(x[:, :, top : top + short, left : left + short])
    fitted = torch.nn.functional.interpolate(
        square.float(), (size, size), mode="bilinear", antialias=True
    )
    return (fitted.round() if x.dtype == np.uint8 else fitted).numpy().astype(x.dtype)
