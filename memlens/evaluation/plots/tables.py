"""Axes-level plots of tables, a row an entry, and grids of images."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike

from memlens.evaluation.plots.style import (
    CHANCE,
    COLUMN,
    FILL,
    FULL,
    INK,
    MARKED,
    PALETTE,
    label_of,
    style_of,
)


def image_grid(
    figure: FigureBase,
    images: ArrayLike,
    *,
    titles: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    columns: int = 8,
    pixel_max: float = 255,
    marked: ArrayLike | None = None,
) -> np.ndarray:
    """Show images in a grid on an empty figure; return its axes, (rows, columns).

    images are (n, 1 or 3, h, w), uint8 arrays or tensors, and ``pixel_max`` is white. ``titles``
    has one entry per image, ``rows`` one label per row. ``marked``, bool (n,), frames images in
    orange. ``figsize(columns, rows, 1.25)`` is a suitable size.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {images.shape}: expected (n, 1 or 3, h, w)")
    titles = [""] * len(images) if titles is None else titles
    marked = np.zeros(len(images), bool) if marked is None else np.asarray(marked)
    n_rows, bare = -(-len(images) // columns), {"xticks": [], "yticks": [], "frame_on": False}
    axes = figure.subplots(n_rows, columns, squeeze=False, subplot_kw=bare)
    for ax, name in zip(axes[:, 0], [""] * n_rows if rows is None else rows, strict=True):
        ax.set_ylabel(label_of(name), fontsize=7)
    each = zip(images, titles, marked, strict=True)
    for ax, (image, title, framed) in zip(axes.flat, each, strict=False):
        shown = np.squeeze(image.transpose(1, 2, 0) / pixel_max)  # (c, h, w) -> (h, w[, 3])
        ax.imshow(shown, cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize=7, loc="center", pad=2)
        ax.set_frame_on(bool(framed))
        ax.spines[:].set(visible=True, color=MARKED, linewidth=2.5)
    return axes


_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "||||", "----", "oooo")  # double the colours


def listsize(n_rows: int, columns: int = 1) -> tuple[float, float]:
    """Return (width, height) in inches for `bars` or a `forest` of ``n_rows``.

    For a legend of groups, add a row or two, and another row for every two groups.
    """
    return (COLUMN if columns == 1 else FULL), round(0.55 + 0.155 * n_rows, 3)


def largest_rows(values: pd.Series, n: int = 10) -> pd.Index:
    """Return the n index entries with the largest absolute values, in their original order.

    Use it to choose rows to draw where all would be too many, such as 100 classes. NaN comes last.
    """
    largest = values.abs().fillna(-1).nlargest(n).index
    return values.index[values.index.isin(largest)]


def common_limits(tables: Iterable[pd.DataFrame], *, signed: bool = False) -> tuple[float, float]:
    """Return the lowest and highest value of all tables, so that heat maps can share one scale.

    ``signed`` makes the limits symmetric about 0. NaN is ignored; all NaN is a ValueError.
    """
    values = np.concatenate([table.to_numpy(dtype=np.float64).ravel() for table in tables])
    if np.isnan(values).all():
        raise ValueError(f"found {values.size} cells, none with a value: nothing to colour")
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return (-max(-low, high), max(-low, high)) if signed else (low, high)


def heatmap(
    ax: Axes, frame: pd.DataFrame, *, signed: bool = False, digits: int | None = 2,
    limits: tuple[float, float] | None = None,
) -> Axes:  # fmt: skip
    """Draw a table as coloured cells with their numbers; a NaN cell stays empty.

    ``signed`` centres the colours at 0; ``limits`` (low, high) fixes them, see `common_limits`. In
    narrow cells numbers are shortened: .50 for 0.50, and 1.0 for 1.00. ``digits=None`` draws a
    colour bar instead of numbers. ``figsize(2, 2)`` is enough for 35 x 35 cells.
    """
    low, high = common_limits([frame], signed=signed) if limits is None else limits
    named = frame.rename(index=label_of, columns=label_of)
    text, size = (None, None) if digits is None else _numbers(ax, frame, digits)
    import seaborn as sns  # slow to import, and training imports this module

    sns.heatmap(
        named,
        ax=ax,
        vmin=low,
        vmax=high,
        cmap="PuOr" if signed else "cividis",
        fmt="",
        annot=text,
        annot_kws={"fontsize": size},
        cbar=digits is None,
        cbar_kws={"shrink": 0.6, "aspect": 30},
        xticklabels=True,
        yticklabels=True,
    )
    width, height = _cell(ax, frame)
    long = max(map(len, named.columns)) * 4.5 > width  # points: a letter of a tick label takes 4.5
    angle = 0 if not long else 30 if width > 25 else 90
    ax.set_xticklabels(named.columns, rotation=angle, ha="right" if angle == 30 else "center")
    ax.set_yticklabels(named.index, rotation=0)
    for axis, space in (("x", width), ("y", height)):
        usual = mpl.rcParams[f"{axis}tick.labelsize"]
        size = usual if axis == "x" and angle < 90 else min(usual, 0.8 * space)
        ax.tick_params(axis, length=0, labelsize=size)
    ax.set(xlabel="", ylabel="")
    return ax


def _cell(ax: Axes, frame: pd.DataFrame) -> tuple[float, float]:
    """Return width and height of a cell in points, before the layout makes space for labels."""
    figure, spec = ax.get_figure(), ax.get_subplotspec()
    box = ax.get_position() if spec is None else spec.get_position(figure)
    points = 72 / figure.dpi
    return (box.width * figure.bbox.width * points / frame.shape[1],
            box.height * figure.bbox.height * points / frame.shape[0])  # fmt: skip


def _numbers(ax: Axes, frame: pd.DataFrame, digits: int) -> tuple[np.ndarray, float]:
    """Return the text of the cells and the font size at which it fits."""
    (width, height), usual = _cell(ax, frame), mpl.rcParams["font.size"]
    for short in (False, True):
        text = frame.map(partial(_format, digits=digits, short=short)).to_numpy()
        ems = max(0.36 * len(t) + 0.28 * sum(map(str.isdigit, t)) for t in text.ravel())
        size = min(usual, 0.93 * width / max(ems, 0.1), 0.8 * height)
        if size == usual:
            break
    return text, size


def _format(value: float, digits: int, short: bool) -> str:
    """Format a number; ``short`` saves one character: .50 for 0.50 and 1.0 for 1.00."""
    if pd.isna(value):
        return ""
    number = f"{value:z.{digits}f}"  # z: no -0.00
    if not short or not digits:
        return number
    bare = re.sub(r"^(-?)0\.", r"\1.", number)
    return bare if bare != number else f"{value:z.{digits - 1}f}"


def _name_rows(ax: Axes, index: pd.Index) -> np.ndarray:
    """Label the rows on the y axis, the first at the top; return their positions."""
    ax.set_yticks(range(len(index)), [label_of(name) for name in index])
    ax.set_ylim(len(index) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    return np.arange(len(index))


def bars(
    ax: Axes, frame: pd.DataFrame, *, printed: str | None = None,
    groups: Mapping[str, str] | pd.Series | None = None,
) -> Axes:  # fmt: skip
    """Draw a bar from 0 to the column mean for each index entry, with its number; std: error bars.

    A row whose mean is NaN stays empty. ``printed`` names a column with the paper's numbers, drawn
    as hollow diamonds; our numbers are then aligned at the right, so that none is taken for a
    diamond's. ``groups`` maps an index entry to its group: bars are then coloured by group, with a
    legend below; otherwise each score has its colour of `PALETTE`.
    """
    rows = _name_rows(ax, frame.index)
    spread = frame["std"].fillna(0) if "std" in frame else pd.Series(0.0, frame.index)
    drawn = ax.barh(
        rows,
        frame["mean"],
        0.6,
        xerr=spread if spread.any() else None,
        color=[PALETTE[name][0] if name in PALETTE else FILL for name in frame.index],
        error_kw={"ecolor": INK, "elinewidth": 0.8},
    )
    handles = [] if groups is None else _paint(drawn.patches, [groups[n] for n in frame.index])
    # Numbers are beside the bars (of negative ones, right of 0), or aligned at the right border.
    ends, transform = np.fmax(frame["mean"] + spread, 0), ax.transData
    if printed is not None:
        handles.append(
            ax.scatter(
                frame[printed],
                rows,
                24,
                marker="D",
                facecolor="white",
                edgecolor="black",
                linewidth=0.9,
                zorder=4,
                label="paper",
            )
        )
        ends, transform = pd.Series(1.0, frame.index), ax.get_yaxis_transform()
    for row, mean, end in zip(rows, frame["mean"], ends, strict=True):
        if not np.isnan(mean):
            beside = {"textcoords": "offset points", "xycoords": transform, "va": "center"}
            ax.annotate(f"{mean:z.2f}", (end, row), (5, 0), **beside)
    if groups is not None:  # a legend of many rows: below the label of the x axis
        below = ScaledTranslation(0, -32 / 72, ax.get_figure(root=True).dpi_scale_trans)
        ax.legend(
            handles=handles,
            loc="upper right",
            bbox_to_anchor=(1, 0),
            ncols=2,
            borderpad=0,
            bbox_transform=ax.transAxes + below,
        )
    elif handles:
        ax.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    return ax


def _paint(patches: Iterable[Patch], groups: list[str]) -> list[Patch]:
    """Colour and hatch each bar by its group; return a legend handle per group, in order."""
    styles = {
        group: (style_of("", i)["color"], _HATCHES[i % len(_HATCHES)])
        for i, group in enumerate(dict.fromkeys(groups))
    }
    for patch, group in zip(patches, groups, strict=True):
        color, hatch = styles[group]
        patch.set(facecolor=color, hatch=hatch, edgecolor="white", linewidth=0)
    return [
        Patch(facecolor=color, hatch=hatch, edgecolor="white", linewidth=0, label=group)
        for group, (color, hatch) in styles.items()
    ]


def forest(ax: Axes, frame: pd.DataFrame) -> Axes:
    """Draw effect sizes (first column) with intervals low to high, see `metrics.associations`.

    Dots are filled for p_holm < 0.05 or, without that column, for intervals that exclude 0.
    """
    rows, effect = _name_rows(ax, frame.index), frame.columns[0]
    found = (frame["low"] > 0) | (frame["high"] < 0)
    found = frame["p_holm"] < 0.05 if "p_holm" in frame else found
    ax.axvline(0, color=CHANCE, linestyle="--", linewidth=0.8)
    ax.hlines(rows, frame["low"], frame["high"], color=INK, linewidth=1.2)
    ax.scatter(frame[effect], rows, 26, c=np.where(found, INK, "white"), edgecolor=INK, zorder=3)
    ax.set_xlabel(label_of(effect))
    return ax


def dots(
    ax: Axes, mean: pd.DataFrame, std: pd.DataFrame | None = None, *, reference: float = 0.0
) -> Axes:
    """Draw a dot for each cell: a row for each index entry, a colour and marker for each column.

    The dots of a row are drawn one below the other; ``std``, of the same shape, gives error bars.
    ``reference``, such as chance level, is drawn as a dashed line.
    """
    rows = _name_rows(ax, mean.index)
    gap = 0.66 / mean.shape[1]
    for i, name in enumerate(mean.columns):
        style = style_of(str(name), i) | {"linestyle": "none"}
        places = rows + gap * (i - (mean.shape[1] - 1) / 2)
        ax.errorbar(
            mean[name],
            places,
            xerr=None if std is None else std[name].fillna(0),
            **style,
            elinewidth=0.9,
            label=label_of(name),
        )
    ax.axvline(reference, color=CHANCE, linestyle="--", linewidth=0.8, zorder=1)
    ax.legend()
    return ax
