"""Images and labels from the arrays of an ``.npz``."""

from pathlib import Path

import numpy as np
import torch

from memlens.data.folders import some_of

TOLERANCE = 0.01  # by which pixels in [0, 1] may exceed 1 after arithmetic
ARRAYS = (("x", "y"), ("X", "y"), ("images", "labels"), ("x_train", "y_train"),
          ("data", "target"))  # fmt: skip


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
