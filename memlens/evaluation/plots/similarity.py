"""Figures of notebook 02: how well scores agree with memorization, and what they cost."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from memlens.evaluation import metrics, plots
from memlens.evaluation.plots import CHANCE, FILL, INK, Drawing

LADDER_STYLE = ("#332288", "o", "-")  # of networks trained on subsets; scores have their own


def truth_and_ceiling(truth: pd.DataFrame, left_out: pd.DataFrame | None = None) -> Drawing:
    """Draw the distribution of memorization, its two halves, and the check by leaving one out.

    Parameters
    ----------
    truth : DataFrame, index sample
        memorization and, where known, standard_error, first_half and second_half.
    left_out : DataFrame, index sample, optional
        memorization and standard_error of a few samples, left out one at a time.
    """
    has_halves = {"first_half", "second_half"} <= set(truth)
    names = ["counts", *["halves"] * has_halves, *["left out"] * (left_out is not None)]
    figure, axes = plt.subplots(1, len(names), figsize=plots.figsize(max(2, len(names)), 1, 0.9),
                                squeeze=False)  # fmt: skip
    panels = dict(zip(names, axes[0], strict=True))
    counts = plots.counts(truth["memorization"], n_bins=25)
    plots.histogram(panels["counts"], counts).set(xlabel="memorization", title="all samples")
    tables = {"counts": counts}
    if has_halves:
        tables["halves"] = _halves(panels["halves"], truth)
    if left_out is not None:
        tables["left out"] = _left_out(panels["left out"], truth, left_out)
    data = pd.concat(tables, names=["panel", "row"]).reset_index("panel")
    return Drawing(figure, data.reset_index(drop=True))


def _halves(ax: Axes, truth: pd.DataFrame) -> pd.DataFrame:
    table = pd.DataFrame({"x": truth["first_half"], "y": truth["second_half"]})
    _diagonal(ax)
    ax.scatter(table["x"], table["y"], 5, color="black", alpha=0.3, linewidth=0, rasterized=True)
    r = metrics.pearson(table["x"], table["y"])
    ax.text(0.05, 0.95, f"Pearson {r:.3f}", transform=ax.transAxes, va="top", fontsize=7)
    ax.set(xlabel="one half of the networks", ylabel="the other half", title="measured twice")
    return table.rename_axis("sample").reset_index()


def _left_out(ax: Axes, truth: pd.DataFrame, left_out: pd.DataFrame) -> pd.DataFrame:
    mine = truth.loc[left_out.index]
    table = pd.DataFrame({"x": left_out["memorization"], "y": mine["memorization"],
                          "x_error": 2 * left_out["standard_error"],
                          "y_error": 2 * mine["standard_error"]})  # fmt: skip
    _diagonal(ax)
    ax.errorbar(table["x"], table["y"], xerr=table["x_error"], yerr=table["y_error"], fmt="o",
                color="black", markersize=3, elinewidth=0.7)  # fmt: skip
    ax.set(xlabel="leaving out this sample alone", ylabel="leaving out 30 %", title="by definition")
    return table.rename_axis("sample").reset_index()


def _diagonal(ax: Axes) -> None:
    ax.axline((0, 0), slope=1, color=CHANCE, linestyle="--", linewidth=0.8, zorder=1)


def two_ways(recorded: pd.DataFrame, posthoc: pd.DataFrame, leak: pd.DataFrame) -> Drawing:
    """Draw scores measured in two ways, and what batch norm adds to the gradient of a sample.

    Parameters
    ----------
    recorded, posthoc : DataFrame, index score
        mean and std over seeds of the Pearson correlation with memorization.
    leak : DataFrame, one row per sample of a batch
        network, own (norm of the gradient of the sample's own loss), batch (of the batch's loss).
    """
    figure, axes = plt.subplots(1, 2, figsize=plots.figsize(2, 1, 0.75), width_ratios=(1.15, 1))
    rows = np.arange(len(recorded))
    axes[0].hlines(rows, recorded["mean"], posthoc["mean"], color=CHANCE, linewidth=1)
    styles = {"recorded during training": ("black", "o", -0.14), "post-hoc": ("white", "s", 0.14)}
    tables = dict(zip(styles, (recorded, posthoc.loc[recorded.index]), strict=True))
    for name, (fill, marker, shift) in styles.items():
        table = tables[name]
        axes[0].errorbar(table["mean"], rows + shift, xerr=table["std"].fillna(0), fmt=marker,
                         color=INK, markerfacecolor=fill, markersize=4.5, elinewidth=0.8,
                         label=name)  # fmt: skip
    axes[0].set_yticks(rows, [plots.label_of(name) for name in recorded.index])
    axes[0].set(ylim=(len(rows) - 0.4, -0.6), xlabel="Pearson with memorization")
    axes[0].legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, borderpad=0,
                   handletextpad=0.2, columnspacing=1)  # fmt: skip
    axes[1].axline((1, 1), slope=1, color=CHANCE, linestyle="--", linewidth=0.8, zorder=1)
    for i, (network, part) in enumerate(leak.groupby("network", sort=False)):
        style = plots.style_of("", 2 * i)
        axes[1].scatter(part["own"], part["batch"], 12, color=style["color"],
                        marker=style["marker"], alpha=0.7, label=plots.label_of(network))  # fmt: skip
    axes[1].set(xscale="log", yscale="log", xlabel="gradient of the sample's own loss",
                ylabel="gradient of the batch's loss")  # fmt: skip
    axes[1].legend(loc="upper left")
    pearson = pd.concat(tables, names=["series", "name"]).reset_index().assign(panel="pearson")
    leak = leak.rename(columns={"network": "series"}).assign(panel="gradients")
    columns = ["panel", "series", "name", "mean", "std", "own", "batch"]
    return Drawing(figure, pd.concat([pearson, leak], ignore_index=True)[columns])


def every_score(tables: Mapping[str, pd.DataFrame], family: pd.Series) -> Drawing:
    """Draw the Pearson correlation of every score with memorization, in one panel per table.

    Parameters
    ----------
    tables : mapping from panel title to DataFrame, index score
        pearson, std (over seeds; NaN without) and printed_pearson, the scores in one order.
    family : Series, index score
        What a score needs; scores of one family share a colour.
    """
    n_rows = len(next(iter(tables.values())))
    size = plots.listsize(n_rows + 2, 2)
    figure, axes = plt.subplots(1, len(tables), figsize=size, squeeze=False)
    lowest = [(table["pearson"] - table["std"].fillna(0)).min() for table in tables.values()]
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        drawn = table.assign(mean=table["pearson"])
        plots.bars(ax, drawn, printed="printed_pearson", groups=family)
        ax.set(xlabel="Pearson with memorization", title=title, xlim=(min(0, 1.1 * min(lowest)), 1))
    axes[0, 0].get_legend().remove()
    for ax in axes[0, 1:]:
        ax.set_yticklabels([])
    data = pd.concat(tables, names=["samples", "score"])[["pearson", "std", "printed_pearson"]]
    return Drawing(figure, data)


def data_map(ax: Axes, table: pd.DataFrame) -> None:
    """Draw confidence against variability (Swayamdipta et al. 2020), coloured by memorization."""
    order = table.sort_values("memorization")  # the memorized ones on top
    dots = ax.scatter(order["variability"], 1 - order["confidence"], 6, c=order["memorization"],
                      cmap="cividis_r", vmin=0, vmax=1, linewidth=0, rasterized=True)  # fmt: skip
    ax.set(xlabel="variability: std of p(label) over epochs", ylabel="mean p(label) over epochs")
    bar = ax.get_figure().colorbar(dots, ax=ax, shrink=0.7, aspect=25)
    bar.set_label("memorization", size=7)


def rivals(samples: pd.DataFrame, ladder: pd.DataFrame, ceiling: float) -> Drawing:
    """Draw the map of the training set, and agreement by the number of trained networks.

    Parameters
    ----------
    samples : DataFrame, index sample
        confidence (1 - mean p), variability and memorization.
    ladder : DataFrame, one row per measured point
        series, networks, pearson (with memorization).
    ceiling : float
        Highest correlation to expect; NaN: not drawn.
    """
    figure, axes = plt.subplots(1, 2, figsize=plots.figsize(2, 1, 0.75))
    data_map(axes[0], samples)
    _ladder(axes[1], ladder, ceiling)
    dots = samples[["confidence", "variability", "memorization"]].reset_index(drop=True)
    data = pd.concat({"map": dots, "ladder": ladder.assign(ceiling=ceiling)}, names=["panel", "row"])
    return Drawing(figure, data.reset_index("panel").reset_index(drop=True))


def _ladder(ax: Axes, ladder: pd.DataFrame, ceiling: float) -> None:
    for i, (name, part) in enumerate(ladder.groupby("series", sort=False)):
        means = part.groupby("networks")["pearson"].agg(["mean", "min", "max"])
        style = plots.style_of(str(name), i)
        ax.vlines(means.index, means["min"], means["max"], color=style["color"], linewidth=1)
        ax.plot(means.index, means["mean"], **style, markersize=4)
        below, above = ((4, -9), (4, 5))
        ax.annotate(plots.label_of(name), (means.index[-1], means["mean"].iloc[-1]),
                    below if i % 2 else above, textcoords="offset points", fontsize=7,
                    color=style["color"], ha="left" if means.index[-1] < 100 else "right")  # fmt: skip
    if np.isfinite(ceiling):
        ax.axhline(ceiling, color=CHANCE, linestyle="--", linewidth=0.8)
        ax.annotate("ceiling", (0.02, ceiling), (0, -2), textcoords="offset points", va="top",
                    xycoords=("axes fraction", "data"), fontsize=7)  # fmt: skip
    ax.set(xscale="log", xlabel="trained networks", ylabel="Pearson with memorization",
           xlim=(0.7, 3500))  # fmt: skip


def by_epoch(
    panels: Mapping[str, pd.DataFrame],
    marks: Mapping[str, float] | None = None,
    *,
    columns: int = 2,
    ylabel: str = "Pearson with memorization",
) -> Drawing:
    """Draw similarity by epoch, a panel per `plots.bands` table, all on the same axes.

    Parameters
    ----------
    panels : mapping from panel title to DataFrame
        The first column is the epoch.
    marks : mapping from label to epoch, optional
        Drawn as vertical lines in every panel, and named in the first one.
    columns : int
        Panels in a row.
    ylabel : str
        Of the first panel of every row.
    """
    n_rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(n_rows, columns, figsize=plots.figsize(columns, n_rows, 0.6),
                                sharex=True, sharey=True, squeeze=False)  # fmt: skip
    parts = []
    for i, (ax, (title, table)) in enumerate(zip(axes.flat, panels.items(), strict=True)):
        plots.curves(ax, table)
        ax.axhline(0, color=CHANCE, linewidth=0.6, zorder=1)
        ax.set(title=title, ylabel="" if i % columns else ylabel)
        ax.set_xlabel(ax.get_xlabel() if i >= columns * (n_rows - 1) else "")
        for number, (label, epoch) in enumerate((marks or {}).items()):
            named = label if i == 0 else ""
            plots.mark_epoch(ax, epoch, named, height=0.32 - 0.1 * number)
        parts.append(table.assign(panel=title))
    data = pd.concat(parts, ignore_index=True)
    return Drawing(figure, data[["panel", *data.columns.drop("panel")]])


def tail_and_dynamics(scores: Mapping[str, ArrayLike], history: pd.DataFrame,
                      overfitting: float) -> Drawing:  # fmt: skip
    """Draw how scores are distributed, and mean curvature by epoch beside the losses.

    Parameters
    ----------
    scores : mapping from name to array (n_samples,)
        Each is divided by its mean; 0 or more.
    history : DataFrame
        `plots.bands` table of losses and curvature by epoch.
    overfitting : float
        Epoch of the lowest validation loss, which is marked.
    """
    figure, axes = plt.subplots(1, 2, figsize=plots.figsize(2, 1, 0.7))
    parts = [_share_by_rank(name, values) for name, values in scores.items()]
    shares = pd.concat(parts, ignore_index=True)
    for i, (name, part) in enumerate(shares.groupby("series", sort=False)):
        style = plots.style_of(str(name), i) | {"marker": "none"}
        axes[0].plot(part["largest"], part["share"], **style, label=plots.label_of(name))
    _diagonal(axes[0])
    axes[0].axvline(0.1, color=CHANCE, linewidth=0.8, linestyle=":")
    axes[0].set(xlabel="share of the samples, largest first", ylabel="share of the sum",
                xlim=(0, 1), ylim=(0, 1.02))  # fmt: skip
    axes[0].legend(loc="lower right")
    axes[1].set(yscale="log", ylabel="loss, or mean curvature")
    plots.curves(axes[1], history)
    plots.mark_epoch(axes[1], overfitting, "lowest validation loss", height=0.99)
    data = pd.concat({"shares": shares, "history": history}, names=["panel", "row"])
    return Drawing(figure, data.reset_index("panel").reset_index(drop=True))


def _share_by_rank(name: str, values: ArrayLike, n_points: int = 101) -> pd.DataFrame:
    """Return the share of the sum that the largest values hold, at ``n_points`` shares of them."""
    ordered = np.sort(np.asarray(values, dtype=float))[::-1]
    held = np.concatenate([[0.0], ordered.cumsum() / ordered.sum()])
    largest = np.linspace(0, 1, n_points)
    share = np.interp(largest, np.linspace(0, 1, len(held)), held)
    return pd.DataFrame({"series": name, "largest": largest, "share": share})


def image_rows(
    images: Mapping[str, ArrayLike],
    titles: Mapping[str, Sequence[str]],
    values: pd.DataFrame,
    *,
    pixel_max: float = 255,
) -> Drawing:
    """Show a row of images for each name, with a title above each image.

    Parameters
    ----------
    images : mapping from row label to array (n, 1 or 3, h, w)
        The same number in every row.
    titles : mapping from row label to n titles
    values : DataFrame
        The numbers in the titles.
    pixel_max : float
        White.
    """
    columns = len(next(iter(images.values())))
    figure = plt.figure(figsize=plots.figsize(columns, len(images), 1.3))
    every = np.concatenate([np.asarray(row) for row in images.values()])
    texts = [title for name in images for title in titles[name]]
    plots.image_grid(figure, every, titles=texts, rows=list(images), columns=columns,
                     pixel_max=pixel_max)  # fmt: skip
    return Drawing(figure, values)


def flipped_labels(scores: Mapping[str, ArrayLike], is_flipped: ArrayLike) -> Drawing:
    """Draw the distribution of each score on a log axis, the flipped samples marked.

    Scores are (n_samples,); values that are not above 0 are drawn at the smallest that is.
    ``is_flipped`` is bool (n_samples,).
    """
    figure, axes = plt.subplots(1, len(scores), figsize=plots.figsize(2, 1, 0.6), squeeze=False)
    parts = []
    for ax, (name, values) in zip(axes[0], scores.items(), strict=True):
        values = np.asarray(values, dtype=float)
        shown = np.log10(np.maximum(values, values[values > 0].min()))
        table = plots.counts(shown, is_flipped, n_bins=30)
        plots.histogram(ax, table, marked_label="flipped")
        ax.set(title=plots.label_of(name), xlabel="log10 of the score")
        parts.append(table.assign(score=name))
    return Drawing(figure, pd.concat(parts, ignore_index=True))


def cost_and_worth(table: pd.DataFrame) -> Drawing:
    """Draw what scores cost beside what they are worth: one named row per score.

    Parameters
    ----------
    table : DataFrame, index score, in the order to draw
        cost (measured, in plain trainings), compute_low and compute_high (printed), pearson (ours),
        printed_pearson; NaN where unknown.
    """
    size = plots.listsize(len(table) + 3, 2)
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True)
    rows = np.arange(len(table))
    axes[0].hlines(rows, table["compute_low"], table["compute_high"], color=CHANCE, linewidth=3)
    for column, label in (("compute_low", "paper"), ("compute_high", None)):
        axes[0].scatter(table[column], rows, 24, marker="D", facecolor="white", edgecolor="black",
                        linewidth=0.9, label=label, zorder=3)  # fmt: skip
    axes[0].scatter(table["cost"], rows, 22, color="black", label="measured here", zorder=4)
    axes[0].axvline(1, color=CHANCE, linestyle="--", linewidth=0.8, zorder=1)
    axes[0].set(xscale="log", xlabel="cost, in plain trainings")
    axes[0].set_yticks(rows, [plots.label_of(name) for name in table.index])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    axes[1].barh(rows, table["pearson"], 0.6, color=FILL)
    axes[1].scatter(table["printed_pearson"], rows, 24, marker="D", facecolor="white",
                    edgecolor="black", linewidth=0.9, zorder=3)  # fmt: skip
    axes[1].set(xlabel="Pearson with memorization", xlim=(0, 1))
    for ax in axes:
        ax.tick_params(axis="y", length=0)
    axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)
    columns = ["cost", "compute_low", "compute_high", "pearson", "printed_pearson"]
    return Drawing(figure, table[columns])
