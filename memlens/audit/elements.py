"""Pieces of an HTML page that needs nothing beside itself: pictures, plots and tables as data."""

import base64
from collections.abc import Iterable
from html import escape
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

DPI = 200  # of a plot: sharp where a screen has two points a pixel
LARGEST = 96  # pixels, the longer side of a picture
SCALE = 110  # pixels on the screen an inch of a plot: its letters are as large as the text's


def picture(pixels: np.ndarray, name: str) -> str:
    """An image, (1 or 3, h, w) uint8, under its name; not larger than a page of many can hold."""
    shown = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    shown.thumbnail((LARGEST, LARGEST))
    file = BytesIO()
    shown.save(file, "PNG")
    return f'<img alt="{escape(name)}" src="{_address(file)}">'


def plot(figure: Figure, caption: str) -> str:
    """A figure with its caption; the figure is closed."""
    figure.set_layout_engine("constrained")
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    plt.close(figure)
    width = int(figure.get_figwidth() * SCALE)
    return (
        f'<figure class="plot"><img alt="{escape(caption)}" width="{width}" src="{_address(file)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _address(file: BytesIO) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def table(frame: pd.DataFrame) -> str:
    """The columns of a frame, without its index; numbers stand at the right."""
    right = [pd.api.types.is_numeric_dtype(frame[column]) for column in frame]
    head = _row("th", map(str, frame), right)
    rows = (_row("td", map(str, row), right) for row in frame.itertuples(index=False))
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _row(tag: str, values: Iterable[str], right: Iterable[bool]) -> str:
    cells = (
        f"<{tag}{' class=number' if end else ''}>{escape(value)}</{tag}>"
        for value, end in zip(values, right)
    )
    return f"<tr>{''.join(cells)}</tr>"


def bars(shares: pd.Series) -> str:
    """Shares in [0, 1] as bars beside their names, which may be in any script: so it is no plot."""
    largest = shares.max() or 1.0
    rows = (
        f"<tr><td>{escape(str(name))}</td><td class=bar>"
        f"<i style='width:{100 * share / largest:.1f}%'></i></td>"
        f"<td class=number>{share:.1%}</td></tr>"
        for name, share in shares.items()
    )
    return f"<div class='scroll'><table class=bars>{''.join(rows)}</table></div>"
