"""Plots with names along an axis: heat maps, bars, forests, dots; a row an index entry, in order.

Axes-level and in the look of `plots`: each takes axes and a table, draws the table, and returns
the axes. They stay legible from two scores to forty: `listsize` gives a figure its height, and a
heat map shrinks its numbers to its cells.
"""

import re
from collections.abc import Iterable, Mapping
from functools import partial

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from memlens.evaluation.plots import CHANCE, COLUMN, FILL, FULL, INK, PALETTE, label_of, style_of

_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "||||", "----", "oooo")  # double the colours


def listsize(n_rows: int, columns: int = 1) -> tuple[float, float]:
    """Inches for `bars` or a `forest` of so many rows: one column wide, else full width.

    A key of groups takes the height of a row or two, and of one more for every two groups.
    """
    return (COLUMN if columns == 1 else FULL), round(0.55 + 0.155 * n_rows, 3)


def telling(values: pd.Series, n: int = 10) -> pd.Index:
    """The n index entries with the largest sizes, in the order in which they stand; NaN is least.

    Which rows to draw where all would be too many, such as a hundred classes; up to n, all.
    """
    largest = values.abs().fillna(-1).nlargest(n).index
    return values.index[values.index.isin(largest)]


def common_limits(tables: Iterable[pd.DataFrame], *, signed: bool = False) -> tuple[float, float]:
    """Lowest and highest value of all tables, for heat maps that are to share their colours.

    ``signed`` takes the largest size to both sides of 0. NaN is left out; ValueError if all are.
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

    ``signed`` centres the colours at 0; ``limits`` (low, high) fixes them, as `common_limits` gives
    for several panels. Where cells are narrow, numbers are small: .50 for 0.50, and 1.0 for 1.00.
    ``digits=None`` writes none and draws a colour bar instead. ``figsize(2, 2)`` fits 35 x 35.
    """
    import seaborn as sns  # here alone: it is an extra, [notebooks]

    low, high = common_limits([frame], signed=signed) if limits is None else limits
    named = frame.rename(index=label_of, columns=label_of)
    text, size = (None, None) if digits is None else _numbers(ax, frame, digits)
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
    turned = 0 if not long else 30 if width > 25 else 90
    ax.set_xticklabels(named.columns, rotation=turned, ha="right" if turned == 30 else "center")
    ax.set_yticklabels(named.index, rotation=0)
    for axis, room in (("x", width), ("y", height)):
        usual = mpl.rcParams[f"{axis}tick.labelsize"]
        fits = usual if axis == "x" and turned < 90 else min(usual, 0.8 * room)
        ax.tick_params(axis, length=0, labelsize=fits)
    ax.set(xlabel="", ylabel="")
    return ax


def _cell(ax: Axes, frame: pd.DataFrame) -> tuple[float, float]:
    """Points that a cell is wide and high, before the layout makes room for the labels."""
    figure, spec = ax.get_figure(), ax.get_subplotspec()
    box = ax.get_position() if spec is None else spec.get_position(figure)
    points = 72 / figure.dpi
    return (box.width * figure.bbox.width * points / frame.shape[1],
            box.height * figure.bbox.height * points / frame.shape[0])  # fmt: skip


def _numbers(ax: Axes, frame: pd.DataFrame, digits: int) -> tuple[np.ndarray, float]:
    """The numbers as they are written into the cells, and the font size at which they fit."""
    (width, height), usual = _cell(ax, frame), mpl.rcParams["font.size"]
    for short in (False, True):
        text = frame.map(partial(_written, digits=digits, short=short)).to_numpy()
        ems = max(0.36 * len(t) + 0.28 * sum(map(str.isdigit, t)) for t in text.ravel())
        fits = min(usual, 0.93 * width / max(ems, 0.1), 0.8 * height)
        if fits == usual:
            break
    return text, fits


def _written(value: float, digits: int, short: bool) -> str:
    """A number with so many digits; short, a letter less: .50 for 0.50 and 1.0 for 1.00."""
    if pd.isna(value):
        return ""
    number = f"{value:z.{digits}f}"  # z: no -0.00
    if not short or not digits:
        return number
    bare = re.sub(r"^(-?)0\.", r"\1.", number)
    return bare if bare != number else f"{value:z.{digits - 1}f}"


def _name_rows(ax: Axes, index: pd.Index) -> np.ndarray:
    """Name the rows on the y axis, the first on top; returns their positions."""
    ax.set_yticks(range(len(index)), [label_of(name) for name in index])
    ax.set_ylim(len(index) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    return np.arange(len(index))


def bars(
    ax: Axes, frame: pd.DataFrame, *, printed: str | None = None,
    groups: Mapping[str, str] | pd.Series | None = None, digits: int = 2,
) -> Axes:  # fmt: skip
    """Bars from 0 to the column mean, numbered, a row for each index entry; std is an error bar.

    A row whose mean is NaN keeps its place, empty. ``printed`` names a column with the paper's
    numbers, drawn as hollow diamonds; ours then stand in a column of their own, so that none of
    them is read as a diamond's. ``groups``, index entry -> group, colours by group, such as a
    family of scores, with a key below; else each score has its own colour of `plots.PALETTE`.
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
    # Beside a bar, also of one to the left, or in a column at the right border.
    ends, across = np.fmax(frame["mean"] + spread, 0), ax.transData
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
        ends, across = pd.Series(1.0, frame.index), ax.get_yaxis_transform()
    for row, mean, end in zip(rows, frame["mean"], ends, strict=True):
        if not np.isnan(mean):
            beside = {"textcoords": "offset points", "xycoords": across, "va": "center"}
            ax.annotate(f"{mean:z.{digits}f}", (end, row), (5, 0), **beside)
    if groups is not None:  # a key of many lines has its place below the label of the axis
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
    """Colour and hatch each bar by its group; returns a key for each group, in order."""
    looks = {
        group: (style_of("", i)["color"], _HATCHES[i % len(_HATCHES)])
        for i, group in enumerate(dict.fromkeys(groups))
    }
    for patch, group in zip(patches, groups, strict=True):
        color, hatch = looks[group]
        patch.set(facecolor=color, hatch=hatch, edgecolor="white", linewidth=0)
    return [
        Patch(facecolor=color, hatch=hatch, edgecolor="white", linewidth=0, label=group)
        for group, (color, hatch) in looks.items()
    ]


def forest(ax: Axes, frame: pd.DataFrame, *, zero: float = 0.0) -> Axes:
    """Effect sizes (first column) with intervals low to high, as `metrics.associations` gives.

    A filled dot is a finding: p_holm below 0.05 where there is one, else an interval without zero.
    """
    rows, effect = _name_rows(ax, frame.index), frame.columns[0]
    found = (frame["low"] > zero) | (frame["high"] < zero)
    found = frame["p_holm"] < 0.05 if "p_holm" in frame else found
    ax.axvline(zero, color=CHANCE, linestyle="--", linewidth=0.8)
    ax.hlines(rows, frame["low"], frame["high"], color=INK, linewidth=1.2)
    ax.scatter(frame[effect], rows, 26, c=np.where(found, INK, "white"), edgecolor=INK, zorder=3)
    ax.set_xlabel(label_of(effect))
    return ax


def dots(
    ax: Axes, mean: pd.DataFrame, std: pd.DataFrame | None = None, *, reference: float = 0.0
) -> Axes:
    """A dot for each cell, a row for each index entry, a look for each column, with a key.

    The columns of a row stand one below the other; ``std``, of the same shape, is an error bar.
    ``reference`` is a value to compare with, such as chance, drawn as a dashed line.
    """
    rows = _name_rows(ax, mean.index)
    gap = 0.66 / mean.shape[1]
    for i, name in enumerate(mean.columns):
        look = style_of(str(name), i) | {"linestyle": "none"}
        places = rows + gap * (i - (mean.shape[1] - 1) / 2)
        ax.errorbar(
            mean[name],
            places,
            xerr=None if std is None else std[name].fillna(0),
            **look,
            elinewidth=0.9,
            label=label_of(name),
        )
    ax.axvline(reference, color=CHANCE, linestyle="--", linewidth=0.8, zorder=1)
    ax.legend()
    return ax
