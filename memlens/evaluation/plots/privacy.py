"""Figures of notebook 07: membership inference, who is found, and what privacy costs."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from memlens.evaluation import detection, plots
from memlens.evaluation.plots import STOP_NAMES, Drawing


def _chance(ax: Axes, value: float = 0.5) -> None:
    ax.axhline(value, color=plots.CHANCE, linestyle="--", linewidth=1, zorder=1)


def _name_score(ax: Axes, score: str) -> None:
    """Name the x axis, on a log scale for a score without an upper end."""
    ax.set_xlabel(f"{plots.label_of(score)} (mean of the bin)")
    if score != "memorization":
        ax.set_xscale("log")


def log_odds(
    phi: np.ndarray,
    trained_on: np.ndarray,
    attacked: np.ndarray,
    titles: Sequence[str],
    *,
    n_bins: int = 24,
) -> Drawing:
    """Draw what LiRA compares: log odds of the label in networks with a sample, and without it.

    Parameters
    ----------
    phi : ndarray (n_models, n_samples)
        Log odds of the label in the shadow networks; one panel a sample.
    trained_on : ndarray (n_models, n_samples), bool
        True where the network was trained on the sample.
    attacked : ndarray (n_samples,)
        Log odds in the attacked network, drawn as a line.
    titles : sequence of str (n_samples,)
    n_bins : int

    Returns
    -------
    Drawing
        Columns panel, left, right, n_with, n_without and attacked.
    """
    figure, axes = plt.subplots(1, len(titles), figsize=plots.figsize(len(titles), aspect=0.5))
    parts, looks = [], {"n_without": (plots.FILL, ""), "n_with": (plots.MARKED, "//")}
    for i, (ax, title) in enumerate(zip(np.ravel(axes), titles, strict=True)):
        table = plots.counts(phi[:, i], trained_on[:, i], n_bins=n_bins)
        table["n_without"] = table.pop("n") - table["n_marked"]
        table = table.rename(columns={"n_marked": "n_with"})
        width = table["right"] - table["left"]
        for column, (color, hatch) in looks.items():
            label = f"networks {column[2:]} the sample"
            ax.bar(
                table["left"], table[column], width, align="edge", color=color, alpha=0.8,
                hatch=hatch, edgecolor="white", linewidth=0, label=label,
            )  # fmt: skip
        ax.axvline(attacked[i], color="black", linewidth=1.2, label="the attacked network")
        ax.set(title=title, xlabel="log odds of the label", ylabel="shadow networks")
        parts.append(table.assign(panel=title, attacked=attacked[i]))
        ax.yaxis.get_major_locator().set_params(integer=True)
    np.ravel(axes)[0].legend(loc="best")
    columns = ["panel", "left", "right", "n_with", "n_without", "attacked"]
    return Drawing(figure, pd.concat(parts, ignore_index=True)[columns])


def attacks_by_stop(
    auroc: pd.Series, printed: pd.DataFrame, attacks: Sequence[str], *, ours: str, theirs: str
) -> Drawing:
    """Draw the AUROC of each attack at each stop, ours beside the paper's, on one scale.

    Parameters
    ----------
    auroc : Series, index (stop, target, attack)
        Mean and standard deviation over targets are drawn, stops in their order.
    printed : DataFrame (n_attacks, n_stops)
        In [0, 1]; an absent attack or stop is not drawn.
    attacks : sequence of str
        Rows, the first at the top.
    ours, theirs : str
        Titles of the panels.

    Returns
    -------
    Drawing
        A row for each attack, columns such as mean_last, std_last and printed_last.
    """
    stops, names = auroc.index.unique("stop"), list(attacks)
    grouped = auroc.groupby(level=["attack", "stop"])
    mean, std = (grouped.agg(how).unstack().loc[names, stops] for how in ("mean", "std"))
    printed = printed.loc[:, [stop for stop in stops if stop in printed]].reindex(names)
    width, height = plots.listsize(4 * len(names), 2)
    figure, axes = plt.subplots(1, 2, figsize=(width, height), sharey=True)
    plots.dots(axes[0], mean, std, reference=0.5).set_title(ours)
    plots.dots(axes[1], printed, reference=0.5).set_title(theirs)
    highest = np.nanmax(np.concatenate([(mean + std).to_numpy(), printed.to_numpy()], axis=1))
    for ax in axes:
        ax.set(xlabel="AUROC of membership", xlim=(0.48, highest + 0.02))
    axes[1].get_legend().remove()
    handles, stop_labels = axes[0].get_legend_handles_labels()
    axes[0].legend(handles, [STOP_NAMES.get(stop, stop) for stop in stops], loc="lower right")
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
        ax.set(title=STOP_NAMES.get(stop, stop), xlabel="false positive rate")
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
        What guessing reaches, drawn as a dashed line; same keys. A panel of NaN shows it alone.

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
        highest = max(frame["mean"], default=chance[title])  # no attack may be defined
        ax.set_ylim(chance[title] - 0.02, highest + 0.02)
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
        _name_score(ax, score)
    first = np.ravel(axes)[0]
    first.set(ylabel="AUROC of membership", ylim=(0.45, 1.02))
    first.legend(loc="center right")
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
        _name_score(ax, name)
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

    The first fixed length, whose accuracy is low, may lie outside the panel of accuracies.

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
            label = STOP_NAMES.get(str(name), name)
            ax.errorbar(row[column], row["auroc"], row["auroc_std"], **style, label=label)
        _chance(ax)
    accuracy = fixed["accuracy"].to_numpy()
    farthest = (
        np.r_[False, accuracy[1:] > accuracy[:-1]] & np.r_[accuracy[:-1] > accuracy[1:], True]
    )
    for (_, row), is_farthest in zip(fixed.iterrows(), farthest, strict=True):
        place = (row["accuracy"], row["auroc"])
        offset, side = ((5, 0), "left") if is_farthest else ((-5, 5), "right")
        axes[1].annotate(
            f"{row['epochs']:.0f}", place, offset, textcoords="offset points", fontsize=7,
            ha=side, va="center", color=plots.INK, annotation_clip=True,
        )  # fmt: skip
    seen = np.concatenate([fixed["accuracy"].iloc[1:], stops["accuracy"]])
    axes[1].set_xlim(seen.min() - 0.01, seen.max() + 0.006)
    axes[0].set(xlabel="epochs", ylabel="AUROC of LiRA", ylim=(0.48, None))
    axes[1].set(xlabel="accuracy on samples that were left out")
    axes[0].legend(loc="lower right", frameon=True, framealpha=1, edgecolor="none")
    return Drawing(figure, pd.concat([fixed, stops]))
