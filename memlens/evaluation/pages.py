"""Pieces of HTML pages that open without a network connection: templates, images, addresses.

The report of an audit and the explorer are made of them. Templates escape every value, so that the
name of a file or of a class cannot become HTML.
"""

import base64
from io import BytesIO
from pathlib import Path

import jinja2
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image


def templates(folder: Path) -> jinja2.Environment:
    """Return an environment of the templates in a folder; unknown names are errors."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def picture(image: ArrayLike, pixel_max: float, size: int) -> Image.Image:
    """Return an image (1 or 3, h, w) as 8-bit pixels, its longer side at most ``size`` pixels.

    ``pixel_max`` is white. Larger images are reduced, smaller ones stay as they are.
    """
    pixels = np.asarray(image) * (255 / pixel_max)
    pixels = pixels.round().clip(0, 255).astype(np.uint8)
    result = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    result.thumbnail((size, size))
    return result


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Return the bytes of an image file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def data_address(file: bytes, kind: str = "png") -> str:
    """Return an address that holds an image file itself, for the src of an HTML element."""
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"
