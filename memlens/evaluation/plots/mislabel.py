"""Figures of notebook 04: scores that find wrong labels and duplicates.

Detection errors are drawn as 1 - AUROC, the share of pairs (a positive, a negative) in the wrong
order, on a logarithmic axis: AUROC of 0.97 and 0.99 differ by a factor of three there, and look
alike on a linear axis.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from memlens.evaluation import plots
from memlens.evaluation.plots import STOP_NAMES, Drawing

WRONG_ORDER = "1 - AUROC"
OURS = "#0072B2"
PRINTED = {  # grey levels, markers and line styles of the printed data sets
    "mnist": ("0.7", "^", ":"), "cifar10": ("0.55", "s", "--"), "cifar100": ("0.35", "D", "-."),
}  # fmt: skip
RATES = ("#88CCEE", "#0072B2", "#332288")  # from little to much noise, light to dark
TICKS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


def all_scores(auroc: pd.DataFrame, precision: pd.DataFrame) -> Drawing:
    """Draw two measures of many scores at several noise rates, a row for each score.

    Parameters
    ----------
    auroc : DataFrame (n_scores, n_rates)
        One column per noise rate (a share), three at most.
    precision : DataFrame
        Precision among the highest 1 %, with the same rows and columns.

    Returns
    -------
    Drawing
        Rows are sorted by the mean AUROC, best first. Data: score, noise, wrong_order (1 - AUROC),
        precision.

    Raises
    ------
    ValueError
        If rows or columns differ, or there are more than three rates.
    """
    if not (auroc.index.equals(precision.index) and auroc.columns.equals(precision.columns)):
        raise ValueError("auroc and precision differ in rows or columns; pass the same of both")
    if auroc.shape[1] > len(RATES):
        raise ValueError(f"{auroc.shape[1]} noise rates; expected {len(RATES)} at most")
    order = auroc.mean(axis=1).sort_values(ascending=False, kind="stable").index
    wrong, precision = 1 - auroc.loc[order], precision.loc[order]
    height = plots.listsize(len(order))[1] + 0.3
    figure, (left, right) = plt.subplots(1, 2, figsize=(plots.FULL, height), sharey=True)
    _dots_by_rate(left, _drawn(wrong, _lowest(wrong)))
    _log_errors(left, "x", wrong.to_numpy())
    left.set_xlabel(f"{WRONG_ORDER} (left is better)")
    _dots_by_rate(right, precision)
    right.set(xlim=(-0.03, 1.03), xlabel="precision in the highest 1 % (right is better)")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    data = pd.DataFrame({"wrong_order": wrong.stack(), "precision": precision.stack()})
    return Drawing(figure, data.rename_axis(["score", "noise"]).reset_index())


def _dots_by_rate(ax: Axes, frame: pd.DataFrame) -> None:
    """Draw a row for each index entry: a line over the range, and a dot for each noise rate."""
    rows = np.arange(len(frame))
    ax.hlines(rows, frame.min(axis=1), frame.max(axis=1), color="0.8", linewidth=1, zorder=1)
    for (rate, values), color, marker in zip(frame.items(), RATES, "osD", strict=False):
        ax.plot(values, rows, marker, color=color, markersize=4, label=f"{rate:.0%} flipped")
    ax.set_yticks(rows, [plots.label_of(name) for name in frame.index])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color="0.93", linewidth=0.6)


def _drawn(values: pd.DataFrame | pd.Series, lowest: float) -> pd.DataFrame | pd.Series:
    """Return 1 - AUROC for a log axis: a perfect order, 0, comes just below the lowest value."""
    return values.clip(lower=lowest / 1.15)


def _lowest(values: ArrayLike) -> float:
    """Return the lowest positive value."""
    values = np.asarray(values, dtype=float)
    return float(np.nanmin(np.where(values > 0, values, np.nan), initial=0.5))


def _log_errors(ax: Axes, axis: str, values: ArrayLike) -> None:
    """Make an axis of 1 - AUROC logarithmic, with ticks as plain numbers and a line at chance."""
    lowest, highest = _lowest(values), max(0.5, np.nanmax(values, initial=0.5))
    getattr(ax, f"set_{axis}scale")("log")
    getattr(ax, f"set_{axis}lim")(lowest / 1.3, highest * 1.25)
    shown = [tick for tick in TICKS if lowest / 1.3 <= tick]
    getattr(ax, f"set_{axis}ticks")(shown, [f"{tick:g}" for tick in shown])
    getattr(ax, f"set_{axis}ticks")([], minor=True)
    line = ax.axvline if axis == "x" else ax.axhline
    line(0.5, color=plots.CHANCE, linestyle="--", linewidth=0.8, zorder=0.5)


def printed_and_ours(table: pd.DataFrame, *, columns: int = 4) -> Drawing:
    """Draw 1 - AUROC by noise rate, a panel for each method, printed lines beside ours.

    Parameters
    ----------
    table : DataFrame
        Columns method, dataset, noise (a share), mean (AUROC) and std, as `paper.beside` returns
        it. Data sets that are not `PRINTED` are ours.
    columns : int
        Panels in a row.

    Returns
    -------
    Drawing
        All panels share both axes. An AUROC of 1 is drawn at the lower end. Data: the table, with
        wrong_order (1 - AUROC).
    """
    table = table.assign(wrong_order=1 - table["mean"])
    methods, lowest = list(dict.fromkeys(table["method"])), _lowest(table["wrong_order"])
    n_rows = -(-len(methods) // columns)
    size = plots.figsize(columns, n_rows, 0.85)
    figure, axes = plt.subplots(n_rows, columns, figsize=size, sharex=True, sharey=True,
                                squeeze=False)  # fmt: skip
    for ax, method in zip(axes.flat, methods, strict=False):
        of_method = table[table["method"] == method]
        for dataset, part in of_method.groupby("dataset", sort=False):
            color, marker, line = PRINTED.get(dataset, (OURS, "o", "-"))
            label = f"{dataset}, printed" if dataset in PRINTED else f"{dataset}, ours"
            values = _drawn(part["wrong_order"], lowest)
            ax.plot(100 * part["noise"], values, marker=marker, linestyle=line, color=color,
                    markersize=3.5, label=label)  # fmt: skip
        ax.set_title(METHODS.get(method, plots.label_of(method)))
    for ax in axes.flat[: len(methods)]:
        _log_errors(ax, "y", table["wrong_order"])
        rates = 100 * table["noise"].drop_duplicates().sort_values()
        ax.set_xticks(rates, [f"{rate:.0f}" for rate in rates])
    for ax in axes.flat[len(methods) :]:
        ax.set_axis_off()
    _name_outer(axes, len(methods), "flipped labels, %", WRONG_ORDER)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return Drawing(figure, table.reset_index(drop=True))


METHODS = {
    "cl": "confident learning", "in_confidence": "in-confidence", "ssft": "SSFT",
    "learning_time": "learning time", "curvature_ssft": "curvature + SSFT",
}  # fmt: skip


def _name_outer(axes: np.ndarray, n_used: int, x: str, y: str) -> None:
    """Name the x axis below the lowest used panel of each column, and the y axis at the left."""
    n_columns = axes.shape[1]
    for position, ax in enumerate(axes.flat[:n_used]):
        if position + n_columns >= n_used:
            ax.set_xlabel(x)
            ax.tick_params(labelbottom=True)
        if position % n_columns == 0:
            ax.set_ylabel(y)


def flips_in_histograms(scores: pd.DataFrame, flipped: ArrayLike) -> Drawing:
    """Draw the histogram of each score with its flipped samples (curvature paper, Fig. 5).

    ``scores`` is (n_samples, n_scores), positive, a panel for each; ``flipped`` is bool
    (n_samples,). Bins are equally wide in the logarithm of the score, as a few samples are far
    above all others. Data: panel, left, right (log10), n (all samples), n_marked (the flipped).

    Raises
    ------
    ValueError
        If a score is not positive.
    """
    if not (scores > 0).all(axis=None):
        raise ValueError("a score is 0, negative or NaN, and has no logarithm")
    figure, axes = plt.subplots(1, scores.shape[1], figsize=plots.figsize(scores.shape[1]),
                                sharey=True, squeeze=False)  # fmt: skip
    tables = {name: plots.counts(np.log10(scores[name]), np.asarray(flipped))
              for name in scores}  # fmt: skip
    data = plots.panels(axes, plots.histogram, tables, marked_label="flipped")
    for ax, name in zip(axes.flat, tables, strict=True):
        ax.set(xlabel=f"log10 of {plots.label_of(name)}", title="")
        ax.label_outer()
    for ax in axes.flat[1:]:
        ax.get_legend().remove() if ax.get_legend() else None
    return Drawing(figure, data)


def sums_by_epoch(auroc: pd.DataFrame, stops: pd.DataFrame) -> Drawing:
    """Draw 1 - AUROC of the sums up to each epoch, a panel for each noise rate, and the stops.

    Parameters
    ----------
    auroc : DataFrame
        Columns noise (a share), score, seed, epoch (from 0) and auroc of the sum up to it.
    stops : DataFrame
        Columns noise, seed, stop (a key of `STOP_NAMES`) and epoch.

    Returns
    -------
    Drawing
        Lines are means over seeds, bands one standard deviation; a stop is marked on each line at
        its median epoch. Data: panel, epochs (summed, from 1), series, mean, std, n_seeds; the
        stops are rows of the series "stop: NAME", without std.
    """
    rates, data = list(dict.fromkeys(auroc["noise"])), []
    figure, axes = plt.subplots(1, len(rates), figsize=plots.figsize(len(rates), 1, 1.05),
                                sharey=True, squeeze=False)  # fmt: skip
    for ax, rate in zip(axes.flat, rates, strict=True):
        of_rate = auroc[auroc["noise"] == rate]
        median = stops[stops["noise"] == rate].groupby("stop")["epoch"].median()
        for score, part in of_rate.groupby("score", sort=False):
            wrong = 1 - part.pivot(index="seed", columns="epoch", values="auroc")
            bands = plots.bands({score: wrong.to_numpy()}, wrong.columns + 1, "epochs")
            _line_with_stops(ax, bands, median + 1)
            at = np.interp(median + 1, bands["epochs"], bands["mean"])
            names = [f"stop: {name}" for name in median.index]
            marks = {"epochs": median + 1, "mean": at, "series": names}
            data += [bands.assign(panel=rate), pd.DataFrame(marks).assign(panel=rate)]
        _log_errors(ax, "y", 1 - auroc["auroc"])
        shown = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200) if tick <= of_rate["epoch"].max()]
        ax.set_xscale("log")
        ax.set_xticks(shown, [str(tick) for tick in shown])
        ax.set_xticks([], minor=True)
        ax.set(title=f"{rate:.0%} flipped", xlabel="epochs in the sum")
    axes.flat[0].set_ylabel(f"{WRONG_ORDER} of the sum")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    stop_legend = dict(zip(labels, handles, strict=True))  # the stops once, not for every score
    figure.legend(stop_legend.values(), stop_legend, loc="outside upper center", ncols=5,
                  title="sum up to", columnspacing=1.2)  # fmt: skip
    return Drawing(figure, pd.concat(data, ignore_index=True))


def _line_with_stops(ax: Axes, bands: pd.DataFrame, epochs: pd.Series) -> None:
    """Draw one score with its name, and a marker at each stop."""
    score = str(bands["series"].iloc[0])
    color = plots.style_of(score)["color"]
    ax.plot(bands["epochs"], bands["mean"], color=color)
    low, high = bands["mean"] - bands["std"], bands["mean"] + bands["std"]
    ax.fill_between(bands["epochs"], low, high, color=color, alpha=0.2, linewidth=0)
    for name, epoch in epochs.reindex([stop for stop in STOP_NAMES if stop in epochs]).items():
        at = np.interp(epoch, bands["epochs"], bands["mean"])
        ax.plot(epoch, at, STOP_MARKERS[name], color=plots.style_of(name)["color"], markersize=5,
                markeredgecolor="white", markeredgewidth=0.6, linestyle="none",
                label=STOP_NAMES[name])  # fmt: skip
    middle = bands.iloc[len(bands) // 3]
    ax.annotate(plots.label_of(score), (middle["epochs"], middle["mean"]), (0, 7), color=color,
                textcoords="offset points", ha="center", fontsize=8)  # fmt: skip


STOP_MARKERS = {"label_wave": "D", "best_val": "^", "input_gradient": "s", "weight_norm": "o",
                "last": "X"}  # fmt: skip


def boxes_by_group(
    samples: pd.DataFrame, labels: Mapping[str, str], *, logarithmic: Sequence[str] = ()
) -> Drawing:
    """Draw a panel for each column, with a box for each group of samples.

    Parameters
    ----------
    samples : DataFrame
        A categorical column group, and a numeric column for each panel.
    labels : mapping of column to its axis label
    logarithmic : sequence of str
        Columns with a logarithmic axis.

    Returns
    -------
    Drawing
        A box holds the middle half of the samples, its line is the median, and the whiskers end at
        the 5 and 95 % quantiles. Data: panel, group, n, and these five quantiles.
    """
    groups = samples.groupby("group", observed=True)
    sizes = groups.size()
    width = len(labels)
    figure, axes = plt.subplots(1, width, figsize=(plots.FULL, 0.75 + 0.32 * len(sizes)),
                                sharey=True, squeeze=False)  # fmt: skip
    parts = []
    for ax, (column, label) in zip(axes.flat, labels.items(), strict=True):
        quantiles = groups[column].quantile(QUANTILES).unstack()
        boxes = [dict(zip(("whislo", "q1", "med", "q3", "whishi"), row, strict=True))
                 for row in quantiles.to_numpy()]  # fmt: skip
        drawn = ax.bxp(boxes, positions=range(len(boxes)), orientation="horizontal", widths=0.6,
                       showfliers=False, patch_artist=True,
                       medianprops={"color": "black"})  # fmt: skip
        for box, color in zip(drawn["boxes"], (plots.FILL, plots.MARKED, "#F6D79A"), strict=False):
            box.set(facecolor=color, linewidth=0.6)
        ax.set_xscale("log" if column in logarithmic else "linear")
        ax.set_xlabel(label)
        ax.set_xticks([], minor=True)
        if column not in logarithmic:
            ax.xaxis.set_major_locator(MaxNLocator(3))
        quantiles.columns = [f"q{round(100 * q)}" for q in QUANTILES]
        parts.append(quantiles.assign(panel=column, n=sizes).reset_index())
    names = [f"{name} ({n:,})" for name, n in sizes.items()]
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    return Drawing(figure, pd.concat(parts, ignore_index=True))


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def duplicates_found(auroc: pd.DataFrame, printed: pd.DataFrame) -> Drawing:
    """Draw how well each score finds planted duplicates, beside the printed values.

    Parameters
    ----------
    auroc : DataFrame (n_scores, n_columns)
        Our AUROC, such as of both ends of the pairs, of the copies and of the originals.
    printed : DataFrame (n_scores, n_datasets)
        Printed AUROC with the same rows; NaN where nothing is printed.

    Returns
    -------
    Drawing
        Rows sorted by the first column, best first. Data: 1 - AUROC of all columns.
    """
    order = auroc.iloc[:, 0].sort_values(ascending=False, kind="stable").index
    wrong = 1 - auroc.join(printed).loc[order]
    rows = np.arange(len(wrong))
    size = (plots.FULL, plots.listsize(len(wrong))[1] + 0.35)
    figure, ax = plt.subplots(figsize=size)
    colors = dict(zip(auroc, (OURS, plots.MARKED, "#009E73"), strict=False))
    markers = dict(zip(wrong, "osdDv^", strict=False))
    for name, values in _drawn(wrong, _lowest(wrong)).items():
        face = colors.get(name, "white")
        ax.scatter(values, rows, 26, marker=markers[name], facecolor=face, zorder=3,
                   edgecolor=colors.get(name, "black"), linewidth=0.9, label=name)  # fmt: skip
    ax.set_yticks(rows, [plots.label_of(name) for name in wrong.index])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color="0.93", linewidth=0.6)
    _log_errors(ax, "x", wrong.to_numpy())
    ax.set_xlabel(f"{WRONG_ORDER} (left is better)")
    figure.legend(loc="outside upper center", ncols=len(wrong.columns), columnspacing=1.2)
    return Drawing(figure, wrong.rename_axis("score").reset_index())


def highest_with_duplicates(
    images: ArrayLike,
    scores: ArrayLike,
    labels: Sequence[str],
    pairs: ArrayLike,
    *,
    n: int = 32,
    pixel_max: float = 255,
) -> Drawing:
    """Show the images with the highest scores, duplicates framed and lettered (CSG Fig. 15).

    Parameters
    ----------
    images : (n_samples, 1 or 3, h, w)
    scores : (n_samples,)
    labels : sequence of n_samples texts
        The given labels.
    pairs : int array (n_pairs, 2)
        Positions of the two samples of each pair. Pairs of which both are shown share a letter.
    n : int
        Images to show, 8 in a row.

    Returns
    -------
    Drawing
        Data: position, score, is_duplicate, pair (its letter; "" without), label.
    """
    scores, pairs = np.asarray(scores, dtype=float), np.asarray(pairs)
    shown = np.argsort(-scores, kind="stable")[:n]
    rank = {position: place for place, position in enumerate(shown.tolist())}
    letters, marked = [""] * len(shown), np.isin(shown, pairs)
    both = [pair for pair in pairs.tolist() if pair[0] in rank and pair[1] in rank]
    for letter, pair in zip(_LETTERS, sorted(both, key=lambda pair: min(map(rank.get, pair)))):
        for position in pair:
            letters[rank[position]] = letter
    titles = [
        f"{letter + ' ' if letter else ''}#{position}\n{plots.shortened(labels[position], 13)}"
        for letter, position in zip(letters, shown.tolist(), strict=True)
    ]
    figure = plt.figure(figsize=plots.figsize(8, -(-len(shown) // 8), 1.45))
    pictures = np.asarray(images)[shown]
    plots.image_grid(figure, pictures, titles=titles, pixel_max=pixel_max, marked=marked)
    data = {"position": shown, "score": scores[shown], "is_duplicate": marked, "pair": letters}
    data["label"] = [labels[position] for position in shown]
    return Drawing(figure, pd.DataFrame(data))


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
