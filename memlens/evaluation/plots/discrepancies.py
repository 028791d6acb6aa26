"""The figures of notebook 08: what does not add up in the papers."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from numpy.typing import ArrayLike

from memlens.evaluation import plots
from memlens.evaluation.plots import Drawing

SMALL = 7  # points: labels beside what they name
BLUE, RED, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.6"


def _note(ax: Axes, text: str, place: tuple[float, float], shift: tuple[float, float],
          **options: object) -> None:  # fmt: skip
    """Write a small label beside a point, shifted by points."""
    style = {"size": SMALL, "color": plots.INK, "textcoords": "offset points"} | options
    ax.annotate(text, place, shift, **style)


def shifted_columns(values: pd.DataFrame, pairs: Mapping[str, Sequence[tuple[float, float]]]
                    ) -> Drawing:  # fmt: skip
    """Draw a score's AUROC by noise rate in two papers, and join the values that are equal.

    Parameters
    ----------
    values : DataFrame
        Columns dataset (one panel each), source (two of them), noise (share) and auroc.
    pairs : mapping from dataset to (noise in the first source, noise in the second)
        The noise rates whose values are equal.

    Returns
    -------
    Drawing
        Data: the values.
    """
    figure, axes = plt.subplots(1, 2, figsize=plots.figsize(2, 1, 0.7), sharex=True, sharey=True)
    sources = list(values["source"].unique())
    for ax, (dataset, part) in zip(axes, values.groupby("dataset", sort=False), strict=True):
        for source, color, marker in zip(sources, (BLUE, RED), "os", strict=True):
            line = part[part["source"] == source]
            ax.plot(line["noise"], line["auroc"], marker=marker, color=color, label=source)
        by_source = [part[part["source"] == s].set_index("noise")["auroc"] for s in sources]
        for first, second in pairs[dataset]:
            height = by_source[0][first], by_source[1][second]
            ax.plot((first, second), height, ":", color=plots.INK, linewidth=1.2, zorder=1)
        ax.set(title=dataset, xscale="log", xlabel="flipped labels")
        ax.xaxis.set_major_locator(FixedLocator([0.01, 0.02, 0.05, 0.1, 0.2, 0.3]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].set_ylabel("AUROC of CSL")
    axes[0].plot([], [], ":", color=plots.INK, label="equal to all four digits")
    axes[0].legend(loc="upper left")
    return Drawing(figure, values)


def possible_pairs(
    table: pd.DataFrame, low: ArrayLike, high: ArrayLike, moved: Mapping[str, float]
) -> Drawing:
    """Draw printed cosines against Pearson correlations, and the region that is possible.

    Parameters
    ----------
    table : DataFrame, index score
        Columns pearson and cosine.
    low, high : (101,)
        Lowest and highest cosine for Pearson correlations of 0, 0.01, ... 1.
    moved : mapping from a score to the Pearson correlation with which it would be possible
        An arrow leads there.

    Returns
    -------
    Drawing
        Data: the table, with the column moved_to.
    """
    figure, ax = plt.subplots(figsize=plots.figsize(1, 1, 0.85))
    ax.fill_between(np.linspace(0, 1, 101), low, high, color="#DDEEF8", linewidth=0)
    ax.text(0.05, 0.46, "possible", color=BLUE, size=SMALL)
    rest = table.drop(index=list(moved))
    ax.scatter(rest["pearson"], rest["cosine"], 14, color=GREY, zorder=3)
    for (name, target), shift in zip(moved.items(), ((-4, 5), (6, -10)), strict=True):
        pearson, cosine = table.loc[name, "pearson"], table.loc[name, "cosine"]
        ax.scatter(pearson, cosine, 26, color=RED, marker="D", zorder=4)
        ax.scatter(target, cosine, 26, facecolor="white", edgecolor=RED, marker="D", zorder=4)
        arrow = {"arrowstyle": "->", "color": RED, "shrinkA": 4, "shrinkB": 4}
        ax.annotate("", (target, cosine), (pearson, cosine), arrowprops=arrow)
        _note(ax, plots.label_of(name), (pearson, cosine), shift, color=RED)
    ax.set(xlabel="Pearson correlation", ylabel="cosine", xlim=(0, 1), ylim=(0, 1))
    return Drawing(figure, table.assign(moved_to=pd.Series(moved)))


def bin_sums(table: pd.DataFrame, n_bins: Sequence[int]) -> Drawing:
    """Draw printed calibration errors against the largest mean, and how many bins a sum needs.

    Parameters
    ----------
    table : DataFrame, index stop
        Columns mce, msce and uce.
    n_bins : sequence of int
        Numbers of bins to mark.

    Returns
    -------
    Drawing
        Data: the table, with the column least_bins, uce^2 / msce.
    """
    figure, axes = plt.subplots(1, 2, figsize=plots.figsize(2, 1, 0.62))
    data = table.assign(least_bins=table["uce"] ** 2 / table["msce"])
    rows = np.arange(len(data))
    colors = {"mce": (GREY, "MCE, the largest bin"), "msce": (BLUE, "MSCE"), "uce": (RED, "UCE")}
    for i, (name, (color, label)) in enumerate(colors.items()):
        axes[0].barh(rows + 0.26 * (i - 1), data[name], 0.24, color=color, label=label)
    right = 2.2 * data[list(colors)].max(axis=None)  # leaves space for the legend
    axes[0].set(xlabel="printed error", title="no mean exceeds the largest bin", xlim=(0, right))
    axes[0].legend(loc="center right")
    axes[1].scatter(data["least_bins"], rows, 30, color=RED, zorder=3)
    axes[1].set(xlim=(8, 16.5), xlabel="bins that the sums need at least", title="UCE² / MSCE")
    for number in n_bins:
        axes[1].axvline(number, color=plots.INK, linestyle="--", linewidth=0.8)
        axes[1].text(number, 1.02, f" {number}", size=SMALL, va="top",
                     transform=axes[1].get_xaxis_transform())  # fmt: skip
    for ax in axes:
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_yticks(rows, list(data.index) if ax is axes[0] else [""] * len(rows))
    return Drawing(figure, data)


def cosine_of_a_constant(table: pd.DataFrame, constants: Mapping[str, float]) -> Drawing:
    """Draw printed cosines of scores, with that of a constant score as a line.

    Parameters
    ----------
    table : DataFrame, index score
        A column for each key of ``constants``; NaN is not drawn.
    constants : mapping from the panel's title to the cosine of a constant

    Returns
    -------
    Drawing
        Data: the table, and a row "constant".
    """
    size = (plots.FULL, plots.listsize(len(table) + 2)[1])
    figure, axes = plt.subplots(1, len(constants), figsize=size, sharey=True)
    rows = np.arange(len(table))
    for ax, (title, constant) in zip(axes, constants.items(), strict=True):
        below = table[title] < constant
        ax.scatter(table[title], rows, 30, c=np.where(below, RED, BLUE), zorder=3)
        ax.axvline(constant, color=plots.INK, linestyle="--", linewidth=1)
        ax.text(constant, 1.0, "constant ", ha="right", va="bottom", size=SMALL,
                transform=ax.get_xaxis_transform())  # fmt: skip
        ax.set(xlim=(0, 1.05), xlabel="cosine", ylim=(len(table) - 0.5, -0.5))
        ax.set_title(title, pad=12)
    axes[0].set_yticks(rows, [plots.label_of(name) for name in table.index])
    return Drawing(figure, pd.concat([table, pd.DataFrame(constants, index=["constant"])]))


def top_pairs(table: pd.DataFrame, expected: float) -> Drawing:
    """Draw cosine and Pearson correlation of scores on the most memorized samples, by source.

    Parameters
    ----------
    table : DataFrame
        Columns source (two of them), score, cosine, pearson and marked (bool, labelled).
    expected : float
        Pearson correlation that a restricted range leaves.

    Returns
    -------
    Drawing
        Data: the table.
    """
    figure, ax = plt.subplots(figsize=plots.figsize(1, 1, 0.85))
    styles = zip(table.groupby("source", sort=False), ((BLUE, "o"), (RED, "s")), strict=True)
    for (source, part), (color, marker) in styles:
        ax.scatter(part["cosine"], part["pearson"], 18, color=color, marker=marker, label=source)
    for row in table[table["marked"]].nlargest(1, "pearson").itertuples():
        _note(ax, plots.label_of(row.score), (row.cosine, row.pearson), (-3, 6), ha="right")
    ax.axhline(expected, color=plots.INK, linestyle="--", linewidth=0.8)
    _note(ax, "a line with 0.78 on all samples", (0.38, expected), (0, -9))
    ax.set(xlabel="cosine", ylabel="Pearson correlation", xlim=(0, 1.02), ylim=(0, 0.85))
    ax.legend(loc="upper left")
    return Drawing(figure, table)


def auroc_by_source(values: pd.DataFrame) -> Drawing:
    """Draw the AUROC of one method by noise rate, a line a source, labelled at its end.

    Parameters
    ----------
    values : DataFrame
        Columns source, noise (share) and auroc.

    Returns
    -------
    Drawing
        Data: the values.
    """
    figure, ax = plt.subplots(figsize=plots.figsize(1, 1, 0.7))
    styles = ((RED, "s", "-"), (BLUE, "o", "--"), (GREEN, "^", ":"))
    for (source, line), (color, marker, style) in zip(
        values.groupby("source", sort=False), styles, strict=True
    ):
        ax.plot(line["noise"], line["auroc"], style, marker=marker, color=color, label=source)
    ax.set(xscale="log", xlabel="flipped labels", ylabel="AUROC of curvature", ylim=(0.8, 1.01))
    ax.xaxis.set_major_locator(FixedLocator([0.01, 0.02, 0.05, 0.1, 0.3]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.legend(loc="center right")
    return Drawing(figure, values)


def attack_order(auroc: pd.DataFrame, modelled: Sequence[str]) -> Drawing:
    """Draw the AUROC of attacks at two stops, a line an attack.

    Parameters
    ----------
    auroc : DataFrame, index attack
        Two columns, in percent, named as the stops.
    modelled : sequence of str
        The attacks that model most: drawn solid, the others dashed.

    Returns
    -------
    Drawing
        Data: auroc, with the column modelled (bool).
    """
    figure, ax = plt.subplots(figsize=plots.figsize(1, 1, 0.85))
    for name, row in auroc.iterrows():
        strong = name in modelled
        style = {"color": BLUE if strong else RED, "linestyle": "-" if strong else "--"}
        ax.plot([0, 1], row, marker="o", **style)
        up = 3 if name == modelled[0] else -6 if name == modelled[-1] else -3
        _note(ax, plots.label_of(name), (1, row.iloc[1]), (6, up), color=style["color"])
    ax.set(xlim=(-0.1, 1.55), xticks=[0, 1], ylabel="AUROC (%)")
    ax.set_xticklabels(list(auroc.columns))
    return Drawing(figure, auroc.assign(modelled=auroc.index.isin(modelled)))


def one_seed_apart(table: pd.DataFrame) -> Drawing:
    """Draw printed means and deviations, and two equal seeds and a third that have them.

    Parameters
    ----------
    table : DataFrame
        Index of row labels; columns mean, std, equal and apart.

    Returns
    -------
    Drawing
        Data: the table.
    """
    figure, ax = plt.subplots(figsize=plots.listsize(len(table) + 4))
    rows = np.arange(len(table))
    ax.errorbar(table["mean"], rows, xerr=table["std"], fmt="o", color=GREY, label="printed")
    ax.scatter(table["equal"], rows - 0.1, 26, color=BLUE, marker="s", label="two seeds", zorder=3)
    ax.scatter(table["apart"], rows, 26, color=RED, marker="D", label="the third", zorder=3)
    ax.axvline(0.5, color=plots.INK, linestyle="--", linewidth=0.8)
    ax.text(0.503, len(table) - 0.55, "chance", size=SMALL)
    ax.set(xlabel="AUROC", xlim=(0.45, 0.95), ylim=(len(table) - 0.4, -0.7))
    ax.set_yticks(rows, list(table.index))
    figure.legend(loc="outside upper center", ncols=3)
    return Drawing(figure, table)


def duplicate_pairs(pairs: pd.DataFrame, cap: float, single: float) -> Drawing:
    """Draw the memorization of pairs of identical images under two labels.

    Parameters
    ----------
    pairs : DataFrame
        Columns label, other_label, memorization, other_memorization.
    cap : float
        The largest possible mean of a pair.
    single : float
        Memorization of a sample that no network gets right without it.

    Returns
    -------
    Drawing
        Data: the pairs, with the column mean.
    """
    figure, ax = plt.subplots(figsize=plots.listsize(len(pairs) + 5))
    rows = np.arange(len(pairs))
    means = pairs[["memorization", "other_memorization"]].mean(axis=1)
    ax.hlines(rows, pairs["memorization"], pairs["other_memorization"], color=GREY, linewidth=1)
    for name in ("memorization", "other_memorization"):
        ax.scatter(pairs[name], rows, 14, color=GREY, zorder=2)
    ax.scatter(means, rows, 26, color=BLUE, marker="D", zorder=3)
    for place, text in ((cap, "pair: mean at most "), (single, "one label: up to ")):
        ax.axvline(place, color=plots.INK, linestyle="--", linewidth=0.8)
        ax.text(place, 1.0, text, size=SMALL, ha="right", va="bottom",
                transform=ax.get_xaxis_transform())  # fmt: skip
    ax.set(xlim=(0.3, 1.03), xlabel="published memorization", ylim=(len(rows) - 0.4, -0.6))
    ax.set_yticks(rows, [f"{a}, {b}" for a, b in pairs[["label", "other_label"]].to_numpy()])
    return Drawing(figure, pairs.assign(mean=means))
