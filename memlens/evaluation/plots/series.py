"""Axes-level plots of curves, bins, counts and rates."""

from collections.abc import Mapping

import matplotlib as mpl
import matplotlib.pyplot as plt
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from sklearn.metrics import roc_curve

from memlens.evaluation import metrics
from memlens.evaluation.plots.style import (
    CHANCE,
    FILL,
    GAP,
    INK,
    MARKED,
    figsize,
    label_of,
    style_of,
    styled,
)


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
