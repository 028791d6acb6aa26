"""Image files: headers, decoding to one shape, and what was changed."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from joblib import cpu_count
from PIL import Image, ImageOps

MAX_KEPT = 64  # pixels: images of one common size up to this keep it
DEFAULT_SIDE = 64  # pixels, of the square that larger images, or images of many sizes, become
COMMON_SHARE = 0.9  # of the images must have one size for it to be the common size
MIN_SIDE = 5  # pixels: the networks halve an image twice
GREY = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I")  # modes without a colour
SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I")  # modes of PNG with 16 bits


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
