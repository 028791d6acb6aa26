"""Figures of notebook 07: membership inference, who is found, and what privacy costs."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from memlens.evaluation import detection, plots
from memlens.evaluation.plots import Drawing


def _chance(ax: Axes, value: float = 0.5) -> None:
    ax.axhline(value, color=plots.CHANCE, linestyle="--", linewidth=1, zorder=1)


def log_odds(
    phi: Mapping[str, np.ndarray],
    trained_on: Mapping[str, np.ndarray],
    target: Mapping[str, float],
    *,
    n_bins: int = 24,
) -> Drawing:
    """Draw what LiRA compares: log odds of the label in networks with a sample, and without it.

    Parameters
    ----------
    phi : mapping of panel title to ndarray (n_models,)
        Log odds of the label of one sample in each shadow network.
    trained_on : mapping of ndarray (n_models,), bool
        True where the network was trained on the sample; same keys.
    target : mapping of float
        Log odds in the attacked network, drawn as a line; same keys.
    n_bins : int

    Returns
    -------
    Drawing
        Columns panel, left, right, n_with, n_without and target.
    """
    figure, axes = plt.subplots(1, len(phi), figsize=plots.figsize(len(phi), aspect=0.5))
    parts = []
    for ax, (title, values) in zip(np.ravel(axes), phi.items(), strict=True):
        table = plots.counts(values, np.asarray(trained_on[title]), n_bins=n_bins)
        table["n_without"] = table.pop("n") - table["n_marked"]
        table = table.rename(columns={"n_marked": "n_with"})
        width = table["right"] - table["left"]
        for column, color, hatch in (("n_without", plots.FILL, ""), ("n_with", plots.MARKED, "//")):
            label = f"networks {column[2:]} the sample"
            ax.bar(
                table["left"], table[column], width, align="edge", color=color, alpha=0.8,
                hatch=hatch, edgecolor="white", linewidth=0, label=label,
            )  # fmt: skip
        ax.axvline(target[title], color="black", linewidth=1.2, label="the attacked network")
        ax.set(title=title, xlabel="log odds of the label", ylabel="shadow networks")
        parts.append(table.assign(panel=title, target=target[title]))
    np.ravel(axes)[0].legend(loc="upper left")
    columns = ["panel", "left", "right", "n_with", "n_without", "target"]
    return Drawing(figure, pd.concat(parts, ignore_index=True)[columns])


def attacks_by_stop(
    mean: pd.DataFrame, std: pd.DataFrame, printed: pd.DataFrame, *, ours: str, theirs: str
) -> Drawing:
    """Draw the AUROC of each attack at each stop, ours beside the paper's, on one scale.

    Parameters
    ----------
    mean, std : DataFrame (n_attacks, n_stops)
        Over targets.
    printed : DataFrame (n_attacks, n_printed_stops)
        In [0, 1]; NaN or an absent attack is not drawn.
    ours, theirs : str
        Titles of the panels.

    Returns
    -------
    Drawing
        A row for each attack, columns such as mean_last, std_last and printed_last.
    """
    printed = printed.reindex(mean.index)
    width, height = plots.listsize(4 * len(mean), 2)
    figure, axes = plt.subplots(1, 2, figsize=(width, height), sharey=True)
    plots.dots(axes[0], mean, std, reference=0.5).set_title(ours)
    plots.dots(axes[1], printed, reference=0.5).set_title(theirs)
    drawn = np.concatenate([(mean + std).to_numpy(), printed.to_numpy()], axis=1)
    for ax in axes:
        ax.set(xlabel="AUROC of membership", xlim=(0.48, np.nanmax(drawn) + 0.02))
    axes[1].get_legend().remove()
    axes[0].legend(loc="lower right")
    tables = {"mean": mean, "std": std, "printed": printed}
    named = [table.add_prefix(f"{name}_") for name, table in tables.items()]
    return Drawing(figure, pd.concat(named, axis=1))


def roc_at_low_rates(
    members: np.ndarray, scores: Mapping[str, Mapping[str, np.ndarray]], *, n_points: int = 40
) -> Drawing:
    """Draw ROC curves on log axes, one panel a stop, all targets as one.

    Parameters
    ----------
    members : ndarray (n_targets, n_samples), bool
    scores : mapping of stop to mapping of attack to ndarray (n_targets, n_samples)
    n_points : int
        False positive rates, from the lowest that the non-members resolve to 1.

    Returns
    -------
    Drawing
        Columns panel, series, fpr and tpr.
    """
    truth = members.ravel()
    lowest = 1 / (~truth).sum()
    rates = np.geomspace(lowest, 1, n_points)
    figure, axes = plt.subplots(
        1, len(scores), figsize=plots.figsize(len(scores), aspect=0.8), sharey=True, squeeze=False
    )
    parts = []
    for ax, (stop, attacks) in zip(axes[0], scores.items(), strict=True):
        for name, values in attacks.items():
            found = detection.tprs_at(truth, values.ravel(), rates)
            style = plots.style_of(name)
            ax.plot(rates, found, **style, markevery=6, label=plots.label_of(name))
            part = {"panel": stop, "series": name, "fpr": rates, "tpr": found}
            parts.append(pd.DataFrame(part))
        ax.plot([lowest, 1], [lowest, 1], color=plots.CHANCE, linestyle="--", linewidth=1)
        ax.set(xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest, 1))
        ax.set(title=plots.label_of(stop), xlabel="false positive rate")
    axes[0, 0].set_ylabel("members found")
    axes[0, -1].legend(loc="lower right")
    return Drawing(figure, pd.concat(parts, ignore_index=True))


def strength_by_references(
    tables: Mapping[str, pd.DataFrame], *, chance: Mapping[str, float]
) -> Drawing:
    """Draw the strength of attacks against their number of reference networks.

    Parameters
    ----------
    tables : mapping of panel title to DataFrame (n_attacks, n_sizes)
        Columns are numbers of networks; NaN where an attack is not defined for so few.
    chance : mapping of float
        What guessing reaches, drawn as a dashed line; same keys.

    Returns
    -------
    Drawing
        Columns panel, n_references, series and mean; undefined points are left out.
    """
    figure, axes = plt.subplots(1, len(tables), figsize=plots.figsize(len(tables), aspect=0.85))
    parts = []
    for ax, (title, table) in zip(np.ravel(axes), tables.items(), strict=True):
        sizes = table.columns.to_numpy()
        frame = plots.bands(table.T.to_dict("list"), sizes, "n_references")
        frame = frame.dropna(subset="mean").drop(columns=["std", "n_seeds"])
        ax.set(xscale="log", xlim=(sizes[0] / 1.15, sizes[-1] * 1.15), title=title)
        ax.set_ylim(chance[title] - 0.02, frame["mean"].max() + 0.02)
        _chance(ax, chance[title])
        plots.curves(ax, frame)
        ax.set(xticks=sizes, xticklabels=sizes, xlabel="reference networks")
        ax.minorticks_off()
        parts.append(frame.assign(panel=title))
    columns = ["panel", "n_references", "series", "mean"]
    return Drawing(figure, pd.concat(parts, ignore_index=True)[columns])


def auroc_by_bin(tables: Mapping[str, Mapping[str, pd.DataFrame]]) -> Drawing:
    """Draw the AUROC of attacks in bins of a score, one panel a score (CSG Fig. 9).

    Parameters
    ----------
    tables : mapping of score to mapping of attack to DataFrame
        As `privacy.auroc_by` returns it: columns value, auroc, auroc_low and auroc_high.

    Returns
    -------
    Drawing
        Columns panel, series and those of the tables.
    """
    figure, axes = plt.subplots(1, len(tables), figsize=plots.figsize(2), sharey=True)
    parts = []
    for ax, (score, attacks) in zip(np.ravel(axes), tables.items(), strict=True):
        for name, table in attacks.items():
            bars = table["auroc"] - table["auroc_low"], table["auroc_high"] - table["auroc"]
            label = plots.label_of(name)
            ax.errorbar(table["value"], table["auroc"], bars, **plots.style_of(name), label=label)
            parts.append(table.assign(panel=score, series=name))
        _chance(ax)
        ax.set_xlabel(f"{plots.label_of(score)} (mean of the bin)")
    first = np.ravel(axes)[0]
    first.set(ylabel="AUROC of membership", ylim=(0.45, 1.02))
    first.legend(loc="lower right")
    drawn = pd.concat(parts, ignore_index=True)
    return Drawing(figure, drawn[["panel", "series", *drawn.columns.drop(["panel", "series"])]])


def distance_by_bin(
    distance: np.ndarray, scores: Mapping[str, np.ndarray], edges: Mapping[str, Sequence[float]]
) -> Drawing:
    """Draw the distance to the decision boundary in bins of a score (CSG Fig. 7).

    Parameters
    ----------
    distance : ndarray (n_seeds, n_samples)
    scores : mapping of ndarray (n_samples,)
    edges : mapping of (n_bins + 1,), increasing
        Bins are [left, right), the last closed; same keys.

    Returns
    -------
    Drawing
        Columns panel, bin, value, mean, std (over the samples of a bin, of their mean over seeds)
        and n_samples.

    Raises
    ------
    ValueError
        If a distance is NaN.
    """
    if np.isnan(distance).any():
        raise ValueError(f"{np.isnan(distance).sum()} distances are NaN: leave the samples out")
    figure, axes = plt.subplots(1, len(scores), figsize=plots.figsize(2), sharey=True)
    parts = []
    for ax, (name, values) in zip(np.ravel(axes), scores.items(), strict=True):
        bins = np.digitize(values, np.asarray(edges[name])[1:-1])
        frame = pd.DataFrame({"bin": bins, "value": values, "distance": distance.mean(axis=0)})
        grouped = frame.groupby("bin")
        table = grouped["distance"].agg(["mean", "std"]).assign(n_samples=grouped.size())
        table.insert(0, "value", grouped["value"].mean())
        ax.errorbar(table["value"], table["mean"], table["std"], **plots.style_of(name))
        ax.set_xlabel(f"{plots.label_of(name)} (mean of the bin)")
        parts.append(table.reset_index().assign(panel=name))
    np.ravel(axes)[0].set(ylabel="distance to the boundary", ylim=(0, None))
    drawn = pd.concat(parts, ignore_index=True)
    return Drawing(figure, drawn[["panel", *drawn.columns.drop("panel")]])


def precision_at_the_top(mean: pd.DataFrame, std: pd.DataFrame, *, chance: float) -> Drawing:
    """Draw which share of the highest scores an attack finds, a row a score, best first.

    Parameters
    ----------
    mean, std : DataFrame (n_scores, n_fractions)
        In [0, 1], over seeds; std may be NaN. Sorted here by the first column.
    chance : float
        The share of members that the attack finds.

    Returns
    -------
    Drawing
        Columns such as mean_top 1 % and std_top 1 %.
    """
    mean = mean.sort_values(mean.columns[0], ascending=False, kind="stable")
    std = std.loc[mean.index]
    figure, ax = plt.subplots(figsize=plots.listsize(2 * len(mean) + 4, 2))
    plots.dots(ax, mean, std, reference=chance)
    ax.set(xlim=(0, 1.02), xlabel="members at the top that LiRA finds")
    ax.legend(loc="lower right")
    return Drawing(figure, pd.concat([mean.add_prefix("mean_"), std.add_prefix("std_")], axis=1))


def trade(fixed: pd.DataFrame, stops: pd.DataFrame) -> Drawing:
    """Draw the leak at each stop beside networks of fixed lengths, by epochs and by accuracy.

    Parameters
    ----------
    fixed : DataFrame (n_lengths,)
        Networks after a fixed number of epochs, columns epochs, accuracy and auroc, increasing in
        epochs.
    stops : DataFrame (n_stops,)
        Index the names of the stops, the same columns and auroc_std.

    Returns
    -------
    Drawing
        Both tables, one above the other.
    """
    figure, axes = plt.subplots(1, 2, figsize=plots.figsize(2, aspect=0.75), sharey=True)
    for ax, column in zip(axes, ("epochs", "accuracy"), strict=True):
        ax.plot(fixed[column], fixed["auroc"], ".-", color=plots.INK, label="fixed length")
        for name, row in stops.iterrows():
            style = plots.style_of(name) | {"linestyle": "none"}
            label = plots.label_of(name)
            ax.errorbar(row[column], row["auroc"], row["auroc_std"], **style, label=label)
        _chance(ax)
    for _, row in fixed.iterrows():
        place = (row["accuracy"], row["auroc"])
        axes[1].annotate(
            f"{row['epochs']:.0f}", place, (-4, 4), textcoords="offset points", fontsize=7,
            ha="right", color=plots.INK,
        )  # fmt: skip
    axes[0].set(xlabel="epochs", ylabel="AUROC of LiRA", ylim=(0.48, None))
    axes[1].set(xlabel="accuracy on samples that were left out")
    axes[0].legend(loc="lower right")
    return Drawing(figure, pd.concat([fixed, stops]))
