"""The explorer's page: a scatter plot of samples with hovering, brushing, menus and a legend.

Plotting libraries lost the images, the link between the plots or the interaction offline, after a
notebook was reopened, or at 10,000 samples. So this is one HTML page of our own without any
dependency: `page` fills the template ``explorer.html.j2`` with the data, one sheet of all images,
``explorer.css`` and ``explorer.js``. The bytes depend on the data alone.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from memlens.evaluation import pages, plots

# Okabe and Ito's colours, without the yellow that is too light on white, and one of Tol's. Two
# groups of one colour differ in shape: forty combinations come before the first repetition.
COLORS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999933",
)  # fmt: skip
SHAPES = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "cross": "P"}
STYLES = [(color, list(SHAPES)[(i + j) % len(SHAPES)])
          for j in range(len(SHAPES)) for i, color in enumerate(COLORS)]  # fmt: skip
IMAGE_SIZE = 64  # pixels, at most, of the longer side of an image
SHEET_BYTES = 450_000  # of the sheet, if one of the qualities achieves it
QUALITIES = (90, 80, 70, 50)  # of WebP, if the sheet without loss is too large
N_CODES = 254  # steps from the lowest to the highest value of a curve; 255 means "not measured"
CELL_HEIGHT = 620  # pixels of the frame in a notebook
PICTURE_DPI = 90  # of the static picture
MESSAGE = (
    "The interactive explorer is not shown here. In JupyterLab, choose File > Trust Notebook, or "
    'run this cell again. For any other viewer, save it as a page with .save("page.html"), and '
    "open that in a browser."
)
_TEMPLATES = pages.templates(Path(__file__).parent)


@dataclass(frozen=True)
class Points:
    """What the explorer shows of n samples.

    Attributes
    ----------
    images : array or tensor (n, 1 or 3, height, width)
    index : array (n,), int
        The number by which Python knows each sample, usually its original index.
    scores : DataFrame (n, n_scores), numeric
        Choices for the axes. NaN and infinite values are not drawn.
    groups : DataFrame (n, n_groups)
        Choices for the colour: one category per sample. NaN becomes the category "none".
    curves : mapping of name to array (n_epochs, n)
        Curves over epochs, such as the losses; NaN and infinite values are gaps. Stored with 254
        steps of the square root: enough for a drawing, not for a calculation.
    pixel_max : float
        The value of a white pixel.

    Raises
    ------
    ValueError
        If there is no sample, score, group or curve, or if lengths or shapes differ.
    """

    images: ArrayLike
    index: np.ndarray
    scores: pd.DataFrame
    groups: pd.DataFrame
    curves: Mapping[str, np.ndarray]
    pixel_max: float = 255.0

    def __post_init__(self) -> None:
        n, shape = len(self.index), np.shape(self.images)
        if not n:
            raise ValueError("there are no samples to explore")
        if len(shape) != 4 or shape[1] not in (1, 3):
            raise ValueError(f"images have shape {shape}; expected (n, 1 or 3, height, width)")
        for name, rows in (("images", shape[0]), ("scores", len(self.scores)),
                           ("groups", len(self.groups))):  # fmt: skip
            if rows != n:
                raise ValueError(f"{name} have {rows} rows for {n} samples; expected one for each")
        for name in ("scores", "groups"):
            frame = getattr(self, name)
            if not frame.shape[1]:
                raise ValueError(f"{name} have no column; expected at least one")
            if frame.columns.has_duplicates:
                raise ValueError(f"{name} have two columns of one name: {list(frame)}")
        if not self.curves:
            raise ValueError("there are no curves; pass at least one array (n_epochs, n_samples)")
        for name, values in self.curves.items():
            if np.ndim(values) != 2 or np.shape(values)[1] != n or not len(values):
                raise ValueError(
                    f"the curves {name!r} have shape {np.shape(values)}; expected (n_epochs, {n})"
                )

    def check_columns(self, x: str, y: str, color: str) -> None:
        """Raise a ValueError if a column does not exist."""
        for what, name, frame in (("x", x, self.scores), ("y", y, self.scores),
                                  ("color", color, self.groups)):  # fmt: skip
            if name not in frame:
                known = ", ".join(map(str, frame))
                raise ValueError(f"{what} is {name!r}; expected one of {known}")

    @cached_property
    def categories(self) -> dict[str, pd.Categorical]:
        """The groups as ordered text categories, by the column's name."""
        return {str(name): _categories(self.groups[name]) for name in self.groups}


def _categories(values: pd.Series) -> pd.Categorical:
    """Return text categories, in the order of a categorical column, else of the sorted values."""
    order = pd.Categorical(values).categories
    texts = [str(value) for value in order]
    text = values.astype(object).map(dict(zip(order, texts))).where(values.notna(), "none")
    return pd.Categorical(text, list(dict.fromkeys([*texts, *text])))


def page(points: Points, x: str, y: str, color: str, title: str = "explorer") -> str:
    """Return the page, HTML.

    Parameters
    ----------
    points : Points
    x, y : str
        Columns of ``points.scores`` that the axes show first.
    color : str
        The column of ``points.groups`` that the colour shows first.
    title : str
        Of the browser's window.

    Raises
    ------
    ValueError
        If a column does not exist.
    """
    points.check_columns(x, y, color)
    sheet, layout = _sheet(points)
    values = points.scores.to_numpy(dtype="<f4", na_value=np.nan)
    groups = [
        {"name": name, "names": list(group.categories), "codes": group.codes.tolist()}
        for name, group in points.categories.items()
    ]
    data = {
        "index": np.asarray(points.index).tolist(),
        "x": x,
        "y": y,
        "color": color,
        "scores": {"names": list(map(str, points.scores)), "values": _base64(values.T)},
        "groups": groups,
        "curves": [{"name": name, **_encode(curve)} for name, curve in points.curves.items()],
        "sheet": layout,
        "styles": [{"color": color, "shape": shape} for color, shape in STYLES],
    }
    return _TEMPLATES.get_template("explorer.html.j2").render(
        title=title,
        n_samples=len(points.index),
        curve_names=list(points.curves),
        sheet_address=pages.data_address(sheet, "webp"),
        data=data,
    )


def cell(page: str, picture: bytes = b"", title: str = "explorer") -> str:
    """Return a page as the output of a notebook's cell, HTML.

    JupyterLab removes the frame of a notebook that is not trusted, and other viewers remove every
    frame; they remove style sheets too, which hide a message and the static picture otherwise.

    Parameters
    ----------
    page : str
    picture : bytes
        A PNG file; without one there is only the message.
    title : str
        What a screen reader says of the frame.
    """
    # Style rules apply to a whole notebook: each page hides its own message only.
    key = f"memlens-explorer-{hashlib.sha256(page.encode()).hexdigest()[:12]}"
    return _TEMPLATES.get_template("explorer_cell.html.j2").render(
        key=key,
        message=MESSAGE,
        picture=pages.data_address(picture) if picture else "",
        title=title,
        height=CELL_HEIGHT,
        page=page,
    )


def static_figure(points: Points, x: str, y: str, color: str) -> Figure:
    """Return the scatter plot, and the images of the highest and the lowest y, as a figure.

    Raises
    ------
    ValueError
        If a column does not exist.
    """
    points.check_columns(x, y, color)
    with plots.styled():
        figure = plt.figure(figsize=plots.figsize(2, 1, 0.9))
        left, right = figure.subfigures(1, 2, width_ratios=[5, 4])
        ax = left.subplots()
        group = points.categories[color]
        shown = points.scores[[x, y]].replace([np.inf, -np.inf], np.nan).to_numpy(dtype=float)
        for code, name in enumerate(group.categories):
            if (members := group.codes == code).any():
                paint, shape = STYLES[code % len(STYLES)]
                name = plots.shortened(str(name), 20)
                ax.scatter(*shown[members].T, 9, color=paint, marker=SHAPES[shape],
                           linewidth=0, alpha=0.8, label=name)  # fmt: skip
        ax.set(xlabel=plots.label_of(x), ylabel=plots.label_of(y))
        if len(group.categories) <= 12:
            left.legend(loc="outside lower center", ncols=4, handletextpad=0.2, columnspacing=1)
        _draw_extremes(right, points, shown[:, 1], plots.label_of(y))
    plt.close(figure)  # a notebook would show it twice
    return figure


def _draw_extremes(figure: Any, points: Points, values: np.ndarray, name: str) -> None:
    order = np.argsort(-values, kind="stable")[: np.isfinite(values).sum()]  # NaN comes last
    parts = figure.subfigures(2, 1)
    for part, which, title in zip(parts, (order[:12], order[::-1][:12]), ("highest", "lowest")):
        part.suptitle(f"{title} {name}", fontsize=8)
        if len(which):
            images = np.stack([np.asarray(points.images[int(i)]) for i in which])
            plots.image_grid(part, images, columns=6, pixel_max=points.pixel_max)


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file, of the same bytes each time."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=PICTURE_DPI, metadata={"Software": None})
    return file.getvalue()


def _sheet(points: Points) -> tuple[bytes, dict[str, int]]:
    """Return all images as one WebP file, row by row, and the layout that finds them again."""
    tiles = [pages.picture(image, points.pixel_max, IMAGE_SIZE) for image in points.images]
    width, height = tiles[0].size
    columns = int(np.ceil(len(tiles) ** 0.5))
    size = (columns * width, -(-len(tiles) // columns) * height)
    sheet = Image.new(tiles[0].mode, size)
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * width, i // columns * height))
    file = pages.encoded(sheet, "WEBP", lossless=True)
    for quality in QUALITIES:
        if len(file) <= SHEET_BYTES:
            break
        file = pages.encoded(sheet, "WEBP", quality=quality, method=6)
    return file, {"columns": columns, "width": width, "height": height}


def _encode(curve: np.ndarray) -> dict[str, Any]:
    """Return curves (n_epochs, n) as one byte per value, in steps of the square root."""
    values = np.asarray(curve, dtype=np.float64).T  # (n, n_epochs)
    measured = np.isfinite(values)
    low, high = (values[measured].min(), values[measured].max()) if measured.any() else (0.0, 1.0)
    share = np.where(measured, values - low, 0.0) / (high - low or 1.0)
    codes = np.where(measured, np.round(N_CODES * np.sqrt(share)), 255).astype(np.uint8)
    return {
        "low": float(low),
        "high": float(high),
        "n_epochs": values.shape[1],
        "codes": _base64(codes),
    }


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
