"""Plots in one style.

The functions here are at axes level: each takes axes and a table, and returns the axes. The modules
beside this one draw whole figures, one module a notebook: each function takes arrays or tables, and
returns a `Drawing`.

No function shows or closes a figure, or modifies its input. Where the plotted values are computed,
a second function returns them as a table (`bands`, `binned`, `counts`, `roc_points`), so that the
same table is drawn and saved as the figure's CSV file. Each colour is doubled by a marker, a hatch
or a line style.
"""

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike
from sklearn.metrics import roc_curve

from memlens.evaluation import metrics

COLUMN, FULL = 3.4, 6.9  # inches: one column of a page, the whole width
LINE, LETTER = 0.12, 0.042  # inches: line height and letter width of a footnote
MARKED, CHANCE, INK, FILL, GAP = "#E69F00", "0.6", "0.25", "#9FB8CC", "#882255"

# Scores have Okabe and Ito's colours, everything else Tol's muted ones, so that a loss curve cannot
# be mistaken for a score. Variants of a score share its colour and differ in marker and line style.
PALETTE: dict[str, tuple[str, str, str]] = {
    "csg": ("#0072B2", "o", "-"), "early_csg": ("#0072B2", "p", "--"),
    "csg_plain": ("#0072B2", "h", ":"), "memorization": ("#000000", "D", "-"),
    "csl": ("#D55E00", "s", "-"), "sgal": ("#D55E00", "d", "--"),
    "final_loss": ("#D55E00", "H", ":"),
    "curvature": ("#009E73", "^", "-"), "curvature_norm": ("#009E73", "v", ":"),
    "loss_sensitivity": ("#56B4E9", "<", "-"), "learning_time_share": ("#56B4E9", ">", "--"),
    "first_correct": ("#56B4E9", "8", ":"), "last_wrong": ("#56B4E9", "*", "-."),
    "forgetting": ("#CC79A7", "X", "-"), "aum": ("#CC79A7", "P", "--"),
    "el2n": ("#CC79A7", "p", ":"), "in_confidence": ("#CC79A7", "d", "-."),
    "weight_norm": ("#332288", "o", "-"), "input_gradient": ("#117733", "s", "-"),
    "val_loss": ("#882255", "^", "-"), "train_loss": ("#999933", "v", "--"),
    "label_wave": ("#AA4499", "D", ":"), "best_val": ("#882255", "^", "-."),
    "last": ("#44AA99", "s", "--"),
    "lira": ("#CC6677", "o", "-"), "lira_offline": ("#CC6677", "D", ":"),
    "lira_csg": ("#CC6677", "X", "--"), "mast": ("#AA4499", "s", "-."),
    "calibrated_loss": ("#999933", "v", "--"), "yeom": ("#88CCEE", "<", "-"),
}  # fmt: skip
_OTHERS = (
    ("#332288", "o", "-"), ("#44AA99", "s", "--"), ("#882255", "^", "-."), ("#999933", "D", ":"),
    ("#CC6677", "v", "-"), ("#117733", "X", "--"), ("#AA4499", "P", "-."), ("#88CCEE", "<", ":"),
)  # fmt: skip
_SPELLINGS = [
    "CSG", "CSL", "SGAL", "AUM", "EL2N", "AUROC", "ECE", "MCE", "MSCE", "UCE", "MLP", "CNN",
    "SGD", "Adam", "AdamW", "Adagrad", "RMSProp", "Pearson", "Spearman", "VoG", "GraNd", "TracIn",
    "SAMIS", "SSFT", "LiRA", "MAST", "Yeom", "TPR", "FPR", "LT", "IQR",
]  # fmt: skip


STYLE = Path(__file__).parents[1] / "memlens.mplstyle"


class Drawing(NamedTuple):
    """A figure, and a table of exactly the numbers that it draws, unrounded."""

    figure: Figure
    data: pd.DataFrame


def apply_style() -> None:
    """Make the project's style, ``memlens.mplstyle``, matplotlib's default."""
    mpl.style.use(STYLE)


@contextmanager
def styled() -> Iterator[None]:
    """Use the project's style inside a ``with`` block."""
    # Leaving the context would also undo a backend that was loaded inside it, and a notebook would
    # then show no more figures: load the backend first.
    plt.draw_if_interactive()
    with mpl.style.context(STYLE):
        yield


def figsize(columns: int = 1, rows: int = 1, aspect: float = 0.62) -> tuple[float, float]:
    """Return (width, height) in inches for a grid of panels, each ``aspect`` times as high as wide.

    One column of panels gets the width of a text column, more columns the full page width.
    """
    width = COLUMN if columns == 1 else FULL
    return width, round(width / columns * aspect * rows, 3)


def footnote(figure: Figure, text: str) -> None:
    """Write a footnote in small print below the whole figure, which grows by its height."""
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(text, int(width / LETTER))
    added = LINE * len(lines)
    figure.set_size_inches(width, height := height + added)
    if engine := figure.get_layout_engine():
        engine.set(rect=(0, added / height, 1, 1 - added / height))
    for legend in figure.legends:  # the layout engine does not move legends of the whole figure
        legend.borderaxespad += 72 * added / legend.prop.get_size_in_points()
    figure.text(0.01, 0.2 * LINE / height, "\n".join(lines), size=5.5, color=INK, va="bottom")


def style_of(name: str, position: int = 0) -> dict[str, str]:
    """Return color, marker and linestyle of a series: from `PALETTE`, or else by its position."""
    style = PALETTE.get(name, _OTHERS[position % len(_OTHERS)])
    return dict(zip(("color", "marker", "linestyle"), style, strict=True))


def label_of(name: object) -> str:
    """Return the spelling of a name in figures: ``early_csg`` becomes ``early CSG``."""
    words = {word.lower(): word for word in _SPELLINGS}
    return " ".join(words.get(word, word) for word in str(name).split("_"))


def shortened(name: str, n_letters: int) -> str:
    """Cut a name to ``n_letters`` and escape each $, which would begin a formula."""
    short = name if len(name) <= n_letters else f"{name[: n_letters - 1]}…"
    return short.replace("$", r"\$")


def panels(
    axes: np.ndarray,
    draw: Callable[..., object],
    tables: Mapping[str, pd.DataFrame],
    **options: object,
) -> pd.DataFrame:
    """Draw one table per panel, titled by its name; return all tables as one, to save as CSV.

    ``draw(ax, table, **options)`` is a function of this module; there is one of ``axes`` for each
    table, in the same order. The first column, or index level, of the result is "panel".
    """
    for ax, (title, table) in zip(np.ravel(axes), tables.items(), strict=True):
        draw(ax, table, **options)
        ax.set_title(label_of(title))
    index = next(iter(tables.values())).index
    drawn = pd.concat(tables, names=["panel", *(name or "row" for name in index.names)])
    if isinstance(index, pd.RangeIndex) and index.name is None:  # mere row numbers
        drawn = drawn.reset_index("panel").reset_index(drop=True)
    return drawn


def bands(values: Mapping[str, ArrayLike], x: ArrayLike, x_name: str = "epoch") -> pd.DataFrame:
    """Return mean and standard deviation over seeds, the table that `curves` draws.

    Parameters
    ----------
    values : mapping of series name to array (n_seeds, n) or (n,)
    x : (n,)
    x_name : str

    Returns
    -------
    DataFrame
        Columns x_name, series, mean, std (divisor n_seeds - 1; NaN for one seed) and n_seeds.

    Raises
    ------
    ValueError
        If the last axis of an array does not have the length of x.
    """
    x, parts = np.asarray(x), []
    for name, value in values.items():
        runs = np.atleast_2d(np.asarray(value, dtype=float))  # (n_seeds, n)
        if runs.shape[1:] != x.shape:
            raise ValueError(
                f"{name} has shape {np.shape(value)}: expected (n_seeds, {x.size}), as x"
            )
        std = runs.std(axis=0, ddof=1) if len(runs) > 1 else np.nan
        part = {x_name: x, "series": name, "mean": runs.mean(axis=0), "std": std}
        parts.append(pd.DataFrame(part).assign(n_seeds=len(runs)))
    return pd.concat(parts, ignore_index=True)


def curves(ax: Axes, frame: pd.DataFrame, *, labels: str = "direct") -> Axes:
    """Draw the mean of each series of a `bands` table, with a band of ± one standard deviation.

    The first column is x; the others are series, mean and, optionally, std. ``labels`` is "direct"
    (names at the line ends, for up to about five lines; set limits and log scale before), "legend"
    or "none". On a log axis, a band that reaches 0 or less is cut at the lower limit, or at half
    the smallest mean. Values whose mean is NaN are skipped and the line joins their neighbours.
    """
    if labels not in ("direct", "legend", "none"):
        raise ValueError(f"labels is {labels!r}: pass 'direct', 'legend' or 'none'")
    x, lines, floor = frame.columns[0], [], _floor(ax, frame)
    for i, (name, part) in enumerate(frame.groupby("series", sort=False)):
        part = part[part["mean"].notna()]
        style, every = style_of(str(name), i), max(1, len(part) // 7)
        lines += ax.plot(
            part[x], part["mean"], **style, label=label_of(name), markevery=(i % every, every)
        )
        if "std" in part and part["std"].notna().any():
            low, high = part["mean"] - part["std"], part["mean"] + part["std"]
            ax.fill_between(
                part[x], low.clip(lower=floor), high, color=style["color"], alpha=0.2, linewidth=0
            )
    ax.set_xlabel(label_of(x))
    if labels == "direct":
        _label_ends(ax, lines)
    elif labels == "legend":
        ax.legend()
    return ax


def _floor(ax: Axes, frame: pd.DataFrame) -> float | None:
    """Return the value at which bands are cut on a log axis, where 0 is infinitely far below."""
    if ax.get_yscale() != "log":
        return None
    if not ax.get_autoscaley_on():  # limits were set
        return ax.get_ylim()[0]
    return frame["mean"].where(frame["mean"] > 0).min() / 2


def _label_ends(ax: Axes, lines: list) -> None:
    """Write each line's name at its right end; move names apart that would overlap."""
    size = mpl.rcParams["legend.fontsize"]
    lines = [line for line in lines if len(line.get_xdata())]
    ends = [tuple(line.get_xydata()[-1]) for line in lines]
    points = 72 / ax.get_figure(root=True).dpi
    wanted = ax.transData.transform(np.reshape(ends, (-1, 2)))[:, 1] * points
    placed, gap = wanted.copy(), 1.5 * size  # above 1: the layout engine shrinks the axes later
    for _ in range(100):  # move neighbours that are too close apart, each by half the overlap
        order = np.argsort(placed, kind="stable")
        push = np.clip(gap - np.diff(placed[order]), 0, None) / 2
        placed[order[1:]] += push
        placed[order[:-1]] -= push
    for line, end, shift in zip(lines, ends, placed - wanted, strict=True):
        ax.annotate(
            line.get_label(),
            end,
            (5, shift),
            textcoords="offset points",
            va="center",
            color=line.get_color(),
            fontsize=size,
            annotation_clip=False,
        )


def mark_epoch(ax: Axes, epoch: float, label: str, *, height: float = 0.97) -> Axes:
    """Draw a dashed vertical line at an epoch, labelled at ``height`` (in axes coordinates)."""
    ax.axvline(epoch, color=INK, linestyle=(0, (4, 3)), linewidth=0.8, zorder=1.5)
    box = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    ax.annotate(
        label,
        (epoch, height),
        (4, 0),
        xycoords=("data", "axes fraction"),
        va="top",
        textcoords="offset points",
        color=INK,
        fontsize=7,
        bbox=box,
        zorder=5,
    )
    return ax


CURVES = {
    "loss": ("train_loss", "val_loss"),
    "mean input gradient": ("input_gradient",),
    "weight norm": ("weight_norm",),
}


def training_figure(history: pd.DataFrame, peaks: Mapping[str, int] | None = None) -> Figure:
    """Draw loss, mean input gradient and weight norm by epoch on a new figure.

    ``history`` is ``Run.history``; absent columns and columns of NaN are skipped. ``peaks`` maps
    a column to the epoch to mark on its curve.
    """
    with styled():
        figure, axes = plt.subplots(1, len(CURVES), figsize=figsize(3, 1, 0.8))
        return _draw_training(figure, axes, history, peaks or {})


def _draw_training(
    figure: Figure, axes: np.ndarray, history: pd.DataFrame, peaks: Mapping[str, int]
) -> Figure:
    for ax, (title, names) in zip(axes, CURVES.items(), strict=True):
        values = {n: history[n] for n in names if n in history and history[n].notna().any()}
        ax.set_title(title)
        if values:
            labels = "legend" if len(names) > 1 else "none"
            curves(ax, bands(values, history["epoch"]), labels=labels)
        for name in set(names) & set(peaks):
            mark_epoch(ax, peaks[name], f"peak: {peaks[name]}", height=0.2)
    plt.close(figure)  # else a notebook shows it twice: as an open figure and as the cell's value
    return figure


def binned(x: ArrayLike, y: ArrayLike, *, n_bins: int = 15, weighted: bool = False) -> pd.DataFrame:
    """Return means of y in equal-width bins of x and a line through them, for `binned_scatter`.

    x and y are (n_samples,). ``weighted`` weights the bins by their counts; the papers weight them
    equally. The columns are those of `metrics.binned_mean`, then fit (the line at x_mean) and r2
    (one value), both NaN if all samples are in one bin.
    """
    frame = metrics.binned_mean(x, y, n_bins=n_bins)
    if len(frame) == 1:
        return frame.assign(fit=np.nan, r2=np.nan)
    line = metrics.linear_fit(frame["x_mean"], frame["y_mean"], frame["n"] if weighted else None)
    return frame.assign(fit=line.intercept + line.slope * frame["x_mean"], r2=line.r2)


def binned_scatter(ax: Axes, frame: pd.DataFrame, *, color: str = "#0072B2") -> Axes:
    """Draw the bin means of a `binned` table (larger dots: more samples), its line and its R²."""
    size = 12 + 60 * np.sqrt(frame["n"] / frame["n"].max())
    ax.plot(
        frame["x_mean"],
        frame["fit"],
        color=INK,
        linestyle="--",
        linewidth=1,
        zorder=1.5,
        label=f"line, R² = {frame['r2'].iloc[0]:.2f}",
    )
    ax.scatter(frame["x_mean"], frame["y_mean"], size, color=color, edgecolor="white")
    ax.legend()
    return ax


def counts(values: ArrayLike, marked: ArrayLike | None = None, *, n_bins: int = 40) -> pd.DataFrame:
    """Return counts in equal-width bins, for `histogram`: columns left, right, n (all), n_marked.

    values are (n_samples,), finite; marked is bool of the same shape, such as ``is_noisy``.
    """
    values = np.asarray(values, dtype=float)
    mask = np.zeros(values.shape, bool) if marked is None else np.asarray(marked)
    if mask.shape != values.shape or mask.dtype != bool:
        raise ValueError(f"marked is {mask.dtype} of shape {mask.shape}: pass bool {values.shape}")
    n, edges = np.histogram(values, bins=n_bins)
    frame = pd.DataFrame({"left": edges[:-1], "right": edges[1:], "n": n})
    return frame.assign(n_marked=np.histogram(values[mask], bins=edges)[0])


def histogram(
    ax: Axes, frame: pd.DataFrame, *, label: str = "all samples", marked_label: str = "mislabelled"
) -> Axes:
    """Draw a `counts` table on a log axis, the marked samples hatched in orange."""
    width = frame["right"] - frame["left"]
    ax.bar(frame["left"], frame["n"], width, align="edge", color=FILL, label=label)
    if frame["n_marked"].any():
        ax.bar(
            frame["left"],
            frame["n_marked"],
            width,
            align="edge",
            color=MARKED,
            hatch="////",
            edgecolor="white",
            linewidth=0,
            label=marked_label,
        )
        ax.legend()
    ax.set(yscale="log", ylim=(0.7, None), ylabel="samples")
    return ax


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


def reliability_diagram(ax: Axes, frame: pd.DataFrame) -> Axes:
    """Draw accuracy by bin of confidence (bars) and its gap to the mean confidence (dots).

    The table is that of `calibration.reliability`: left, right, confidence, accuracy, n.
    """
    used = frame[frame["n"] > 0]
    ax.bar(
        used["left"],
        used["accuracy"],
        used["right"] - used["left"],
        align="edge",
        color=FILL,
        edgecolor="white",
        linewidth=0.6,
        label="accuracy",
    )
    ax.plot([0, 1], [0, 1], color=CHANCE, linestyle="--", linewidth=1)
    ax.vlines(used["confidence"], used["accuracy"], used["confidence"], color=GAP, linewidth=1)
    ax.plot(used["confidence"], used["confidence"], "o", color=GAP, label="confidence")
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy")
    return ax


def roc_points(y_true: ArrayLike, scores: Mapping[str, ArrayLike] | pd.DataFrame) -> pd.DataFrame:
    """Return ROC curves, for `roc`, of scores (n_samples,): columns series, fpr and tpr."""
    y_true = np.asarray(y_true, bool)
    parts = []
    for name, score in scores.items():
        fpr, tpr, _ = roc_curve(y_true, score)
        parts.append(pd.DataFrame({"series": name, "fpr": fpr, "tpr": tpr}))
    return pd.concat(parts, ignore_index=True)


def roc(ax: Axes, frame: pd.DataFrame) -> Axes:
    """Draw the ROC curves of a `roc_points` table, their areas in the legend, and chance."""
    ax.plot([0, 1], [0, 1], color=CHANCE, linestyle="--", linewidth=1)
    for i, (name, part) in enumerate(frame.groupby("series", sort=False)):
        ax.plot(
            part["fpr"],
            part["tpr"],
            **style_of(str(name), i),
            markevery=0.15,
            label=f"{label_of(name)}  {np.trapezoid(part['tpr'], part['fpr']):.3f}",
        )
    ax.set(xlim=(-0.02, 1), xlabel="false positive rate", ylabel="true positive rate")
    ax.legend(title="AUROC", loc="lower right", alignment="left")
    return ax


# Plots with names along an axis: one row per index entry, in order. ------------------------------

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
