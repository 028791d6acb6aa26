"""Figures of notebook 02: how well scores agree with memorization, and what they cost."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from memlens.evaluation import metrics, plots
from memlens.evaluation.plots import CHANCE, FILL, INK, Drawing


class Samples(Protocol):
    """Images (n_samples, 1 or 3, h, w) with labels (n_samples,), such as `data.samples.Samples`."""

    images: ArrayLike
    labels: ArrayLike


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
    recorded, posthoc : DataFrame (n_scores, n_seeds), index score
        Pearson correlation with memorization; drawn are mean and std over seeds.
    leak : DataFrame, one row per sample of a batch
        network, own (norm of the gradient of the sample's own loss), batch (of the batch's loss).
    """
    figure, axes = plt.subplots(1, 2, figsize=plots.figsize(2, 1, 0.75), width_ratios=(1.15, 1))
    rows = np.arange(len(recorded))
    styles = {"recorded during training": ("black", "o", -0.14), "post-hoc": ("white", "s", 0.14)}
    by_seed = dict(zip(styles, (recorded, posthoc.loc[recorded.index]), strict=True))
    tables = {
        name: pd.DataFrame({"mean": each.mean(axis=1), "std": each.std(axis=1)})
        for name, each in by_seed.items()
    }
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
        look = {"color": style["color"], "marker": style["marker"], "alpha": 0.7}
        axes[1].scatter(part["own"], part["batch"], 12, label=plots.label_of(network), **look)
    axes[1].set(xscale="log", yscale="log", xlabel="gradient of the sample's own loss",
                ylabel="gradient of the batch's loss")  # fmt: skip
    axes[1].legend(loc="upper left")
    pearson = pd.concat(tables, names=["series", "name"]).reset_index().assign(panel="pearson")
    leak = leak.rename(columns={"network": "series"}).assign(panel="gradients")
    columns = ["panel", "series", "name", "mean", "std", "own", "batch"]
    return Drawing(figure, pd.concat([pearson, leak], ignore_index=True)[columns])


def every_score(
    by_seed: Mapping[str, pd.DataFrame], printed: pd.DataFrame, family: pd.Series
) -> Drawing:
    """Draw the mean Pearson correlation of every score with memorization, in a panel per table.

    The scores of a family stand together, the families in the order in which they first appear,
    each from its highest mean in the first table down.

    Parameters
    ----------
    by_seed : mapping from panel title to DataFrame (n_scores, n_seeds)
        Index score, the same in all. A score of one seed is NaN in the others, and has no spread.
    printed : DataFrame, index score
        The papers' numbers, a column for each panel; NaN where there is none.
    family : Series, index score
        What a score needs; scores of one family share a colour.
    """
    first = next(iter(by_seed.values()))
    rows = pd.DataFrame({"family": family.loc[first.index], "mean": first.mean(axis=1)})
    rank = {name: place for place, name in enumerate(dict.fromkeys(rows["family"]))}
    rows = rows.assign(place=rows["family"].map(rank))
    order = rows.sort_values(["place", "mean"], ascending=[True, False]).index
    size = plots.listsize(len(order) + 4, 2)
    figure, axes = plt.subplots(1, len(by_seed), figsize=size, squeeze=False)
    parts = {}
    for title, table in by_seed.items():
        table = table.loc[order]
        parts[title] = pd.DataFrame({"mean": table.mean(axis=1), "std": table.std(axis=1),
                                     "printed": printed.loc[order, title]})  # fmt: skip
    lowest = min((part["mean"] - part["std"].fillna(0)).min() for part in parts.values())
    for ax, (title, part) in zip(axes[0], parts.items(), strict=True):
        plots.bars(ax, part, printed="printed", groups=family)
        ax.set(xlabel="Pearson with memorization", title=title, xlim=(min(0, 1.1 * lowest), 1))
    for ax in axes[0, 1:]:
        ax.get_legend().remove()
        ax.set_yticklabels([])
    return Drawing(figure, pd.concat(parts, names=["samples", "score"]))


def rivals(samples: pd.DataFrame, ladder: pd.DataFrame, references: Mapping[str, float]) -> Drawing:
    """Draw the map of the training set, and agreement by the number of trained networks.

    Parameters
    ----------
    samples : DataFrame, index sample
        confidence (1 - mean p of the label), variability and memorization, as the scores are named.
    ladder : DataFrame, index number of networks
        Pearson correlation with memorization, a column for each way to use the networks.
    references : mapping from label to float
        Drawn as dashed lines; NaN is left out.
    """
    figure, axes = plt.subplots(1, 2, figsize=plots.figsize(2, 1, 0.75))
    table = samples[["confidence", "variability", "memorization"]]
    _data_map(axes[0], table.sort_values("memorization"))  # the memorized ones on top
    rungs = ladder.rename_axis("networks").reset_index().melt("networks", var_name="series",
                                                              value_name="mean")  # fmt: skip
    known = {name: value for name, value in references.items() if np.isfinite(value)}
    low = min(ladder.to_numpy().min(), *known.values())
    axes[1].set(xlim=(0, ladder.index.max() + 1), ylim=(low - 0.05, 1.01))
    axes[1].set_ylabel("Pearson with memorization")
    plots.curves(axes[1], rungs, labels="legend")
    axes[1].get_legend().set_loc("center right")
    axes[1].set(xlabel="trained networks", xticks=list(ladder.index))
    for name, value in known.items():
        axes[1].axhline(value, color=CHANCE, linestyle="--", linewidth=0.8, zorder=1)
        axes[1].annotate(name, (0.02, value), (0, -2), textcoords="offset points", va="top",
                         xycoords=("axes fraction", "data"), fontsize=7, color=INK)  # fmt: skip
    lines = pd.DataFrame({"series": list(references), "mean": list(references.values())})
    parts = {"map": table.rename_axis("sample").reset_index(), "ladder": rungs, "references": lines}
    data = pd.concat(parts, names=["panel", "row"]).reset_index("panel")
    return Drawing(figure, data.reset_index(drop=True))


def _data_map(ax: Axes, table: pd.DataFrame) -> None:
    """Draw a map of the training set as Swayamdipta et al. 2020, coloured by memorization."""
    dots = ax.scatter(table["variability"], 1 - table["confidence"], 6, c=table["memorization"],
                      cmap="cividis_r", vmin=0, vmax=1, linewidth=0, rasterized=True)  # fmt: skip
    ax.set(xlabel="variability: std of p(label)", ylabel="mean p(label) over epochs")
    bar = ax.get_figure().colorbar(dots, ax=ax, aspect=25, pad=0.02)
    bar.set_label("memorization", size=7)
    bar.ax.tick_params(labelsize=7)


def by_epoch(
    panels: Mapping[str, pd.DataFrame],
    marks: Mapping[str, Mapping[str, float]] | None = None,
    *,
    columns: int = 2,
    ylabel: str = "Pearson with memorization",
) -> Drawing:
    """Draw similarity by epoch, a panel per `plots.bands` table, all on the same axes.

    Parameters
    ----------
    panels : mapping from panel title to DataFrame
        The first column is the epoch.
    marks : mapping from panel title to mapping from label to epoch, optional
        Drawn as vertical lines, labelled at the bottom of the panel.
    columns : int
        Panels in a row.
    ylabel : str
        Of the first panel of every row.
    """
    n_rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(n_rows, columns, figsize=plots.figsize(columns, n_rows, 0.66),
                                sharex=True, sharey=True, squeeze=False)  # fmt: skip
    every = pd.concat(panels.values(), ignore_index=True)
    spread = every["std"].fillna(0)
    low, high = (every["mean"] - spread).min(), (every["mean"] + spread).max()
    low, n_marks = min(0, low - 0.02), max(map(len, (marks or {}).values()), default=0)
    axes[0, 0].set_ylim(low, high + (0.05 + 0.13 * n_marks) * (high - low))  # room for labels
    parts = []
    for i, (ax, (title, table)) in enumerate(zip(axes.flat, panels.items(), strict=True)):
        plots.curves(ax, table)
        ax.set(title=title, ylabel="" if i % columns else ylabel)
        ax.set_xlabel(ax.get_xlabel() if i >= columns * (n_rows - 1) else "")
        for number, (label, epoch) in enumerate((marks or {}).get(title, {}).items()):
            plots.mark_epoch(ax, epoch, label, height=0.98 - 0.09 * number)
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
        `plots.bands` table of losses and curvature by epoch; the bands are not drawn.
    overfitting : float
        Epoch of the lowest validation loss, which is marked.
    """
    history = history.drop(columns="std")
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
    plots.mark_epoch(axes[1], overfitting, "lowest validation loss", height=0.1)
    data = pd.concat({"shares": shares, "history": history}, names=["panel", "row"])
    return Drawing(figure, data.reset_index("panel").reset_index(drop=True))


def _share_by_rank(name: str, values: ArrayLike, n_points: int = 101) -> pd.DataFrame:
    """Return the share of the sum that the largest values hold, at ``n_points`` shares of them."""
    ordered = np.sort(np.asarray(values, dtype=float))[::-1]
    held = np.concatenate([[0.0], ordered.cumsum() / ordered.sum()])
    largest = np.linspace(0, 1, n_points)
    share = np.interp(largest, np.linspace(0, 1, len(held)), held)
    return pd.DataFrame({"series": name, "largest": largest, "share": share})


def highest_images(
    rows: Mapping[str, tuple[Samples, ArrayLike]],
    class_names: Sequence[str],
    *,
    n: int = 8,
    pixel_max: float = 255,
) -> Drawing:
    """Show the n samples with the highest values of each row, the highest first.

    Parameters
    ----------
    rows : mapping from row label to (samples, values)
        Samples with images (n_samples, 1 or 3, h, w) and labels (n_samples,), and values
        (n_samples,) in their order.
    class_names : sequence of str
        Shown above the images.
    n : int
        Images in a row.
    pixel_max : float
        White.
    """
    shown, parts = [], []
    for row, (samples, values) in rows.items():
        score = np.asarray(values, dtype=float)
        order = np.argsort(-score, kind="stable")[:n]
        shown.append(np.stack([np.asarray(samples.images[int(i)]) for i in order]))
        names = [class_names[int(samples.labels[int(i)])] for i in order]
        columns = {"row": row, "position": order, "name": names, "value": score[order]}
        parts.append(pd.DataFrame(columns))
    data = pd.concat(parts, ignore_index=True)
    figure = plt.figure(figsize=plots.figsize(n, len(rows), 1.25))
    titles = [plots.shortened(name, 11) for name in data["name"]]
    plots.image_grid(figure, np.concatenate(shown), titles=titles, rows=list(rows), columns=n,
                     pixel_max=pixel_max)  # fmt: skip
    return Drawing(figure, data)


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
    below = rows + 0.25  # a measured cost may equal a printed one
    axes[0].scatter(table["cost"], below, 22, color="black", label="measured here", zorder=4)
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
