"""Figures of the notebook on early stopping: curves, the five stops, and what they are worth.

Each function takes arrays or tables and returns a `Drawing`. Epochs are counted from 0. The stops
are named as in `peaks.STOPS`, and each has its colour and marker of `plots.PALETTE`.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from memlens.evaluation import plots
from memlens.evaluation.plots import STOP_NAMES, Drawing

TITLES = {
    "val_loss": "validation loss",
    "input_gradient": "mean input gradient",
    "weight_norm": "weight norm",
    "easiest_gradient": "input gradient, easiest",
}
RATES = {"cut": ("#882255", "-"), "constant": (plots.INK, "--")}


def flip_label(rate: float) -> str:
    """Return how figures name a share of flipped labels."""
    return f"{100 * rate:.0f} % flipped" if rate else "no flips"


def training_curves(
    curves: Mapping[str, ArrayLike], stops: Mapping[str, ArrayLike], cuts: Sequence[int] = ()
) -> Drawing:
    """Draw a panel for each curve: a thin line for each seed, their mean, and each seed's stop.

    Parameters
    ----------
    curves : mapping of name to array (n_seeds, n_epochs)
    stops : mapping of the same names to array (n_seeds,) of int
        Epoch of each seed that is marked by a dot on its curve: of "val_loss" its lowest value, of
        others their peak.
    cuts : sequence of int
        First epochs with a lower learning rate, drawn as labelled dotted lines.

    Returns
    -------
    Drawing
        Its table has the columns curve, epoch, seed (a number, or "mean"), value and stop (bool).
    """
    figure, axes = plt.subplots(1, len(curves), figsize=plots.figsize(3, aspect=0.95))
    parts = []
    for ax, (name, values) in zip(np.ravel(axes), curves.items(), strict=True):
        values, color = np.asarray(values, dtype=float), plots.style_of(name)["color"]
        mean, epochs = values.mean(axis=0), np.arange(values.shape[1])
        for seed, (line, stop) in enumerate(zip(values, stops[name], strict=True)):
            ax.plot(epochs, line, color=color, linewidth=0.6, alpha=0.45)
            ax.plot(stop, line[stop], "o", color=color, markeredgecolor="white", zorder=4)
            parts.append(_rows(name, line, seed, epochs == stop))
        ax.plot(epochs, mean, color=color, linewidth=1.8)
        parts.append(_rows(name, mean, "mean", np.zeros(len(mean), dtype=bool)))
        ax.set(title=TITLES.get(name, plots.label_of(name)), xlabel="epoch")
        low, high = values.min(), values.max()
        ax.set_ylim(low - 0.06 * (high - low), high + 0.14 * (high - low))
        marked = "lowest" if name == "val_loss" else "peak"
        ax.plot([], [], "o", color=color, label=f"{marked} of each seed")
        place = "lower left" if name == "input_gradient" else "lower right"
        ax.legend(loc=place, handlelength=1, handletextpad=0.4, borderpad=0.1)
        _mark_cuts(ax, cuts, label="rate cuts")
    return Drawing(figure, pd.concat(parts, ignore_index=True))


def _rows(curve: str, values: np.ndarray, seed: int | str, stop: np.ndarray) -> pd.DataFrame:
    table = {"curve": curve, "epoch": np.arange(len(values)), "seed": seed, "value": values}
    return pd.DataFrame(table | {"stop": stop})


def _mark_cuts(ax: Axes, cuts: Sequence[int], label: str = "") -> None:
    """Draw dotted lines where the learning rate is cut, with a label at the top of the first."""
    for number, cut in enumerate(cuts):
        ax.axvline(cut, color=plots.INK, linestyle=":", linewidth=0.8, zorder=1.5)
        if label and number == 0:
            ax.annotate(
                label, (cut, 1), (3, -1), xycoords=("data", "axes fraction"), va="top",
                textcoords="offset points", color=plots.INK, fontsize=7, zorder=5,
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
            )  # fmt: skip


def descents(curves: pd.DataFrame, cuts: Sequence[int] = ()) -> Drawing:
    """Draw curves with and without cuts of the learning rate: a row a curve, a column a data set.

    Parameters
    ----------
    curves : DataFrame
        Columns flipped (share of the labels), curve, rate (a key of `RATES`), epoch, mean and std,
        as a `plots.bands` table has them.
    cuts : sequence of int
        As in `training_curves`.
    """
    names, columns = list(curves["curve"].unique()), list(curves["flipped"].unique())
    size = plots.figsize(max(2, len(columns)), len(names), 0.5)
    figure, axes = plt.subplots(
        len(names), len(columns), figsize=size, sharex=True, sharey="row", squeeze=False
    )
    for (row, column), ax in np.ndenumerate(axes):
        chosen = (curves["curve"] == names[row]) & (curves["flipped"] == columns[column])
        if names[row] == "easiest_gradient":
            ax.set_yscale("log")
        for rate, part in curves[chosen].groupby("rate", sort=False):
            color, line = RATES[rate]
            ax.plot(part["epoch"], part["mean"], color=color, linestyle=line, label=f"rate {rate}")
            _band(ax, part["epoch"], part, color, floor=part["mean"].min() / 2)
        _mark_cuts(ax, cuts, label="rate cuts" if row == 0 else "")
        if row == 0:
            ax.set_title(flip_label(columns[column]))
    for row, name in enumerate(names):
        axes[row, 0].set_ylabel(TITLES.get(name, plots.label_of(name)))
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    axes[-1, 0].legend(loc="lower left")
    return Drawing(figure, curves.reset_index(drop=True))


def _band(
    ax: Axes, x: pd.Series, part: pd.DataFrame, color: str, floor: float | None = None
) -> None:
    low, high = part["mean"] - part["std"], part["mean"] + part["std"]
    ax.fill_between(x, low.clip(lower=floor), high, color=color, alpha=0.18, linewidth=0)


def stops_on_curves(
    accuracy: Mapping[tuple[str, float], ArrayLike], stops: pd.DataFrame
) -> Drawing:
    """Draw test accuracy by epoch, and where each stop ends each seed.

    A row of panels for each variant, a column for each share of flipped labels, all on one scale.

    Parameters
    ----------
    accuracy : mapping of (variant, share of flipped labels) to array (n_seeds, n_epochs)
    stops : DataFrame
        Columns variant, flipped, seed, stop, epoch and accuracy; a row for each marker.

    Returns
    -------
    Drawing
        The table has the columns variant, flipped, seed ("mean" for the curve), stop (empty for the
        curve), epoch and accuracy.
    """
    variants = list(dict.fromkeys(variant for variant, _ in accuracy))
    shares = list(dict.fromkeys(flipped for _, flipped in accuracy))
    figure, axes = plt.subplots(
        len(variants), len(shares), sharex=True, sharey=True, squeeze=False,
        figsize=plots.figsize(max(2, len(shares)), len(variants), 1.05),
    )  # fmt: skip
    parts = []
    for (row, column), ax in np.ndenumerate(axes):
        variant, flipped = variants[row], shares[column]
        mean = np.asarray(accuracy[variant, flipped], dtype=float).mean(axis=0)
        ax.plot(np.arange(len(mean)), mean, color=plots.CHANCE, linewidth=1.4, zorder=1,
                label="mean of the seeds")  # fmt: skip
        here = stops[(stops["variant"] == variant) & (stops["flipped"] == flipped)]
        for name, part in here.groupby("stop", sort=False):
            style = plots.style_of(name) | {"linestyle": "none", "markeredgecolor": "white"}
            ax.plot(part["epoch"], part["accuracy"], **style, markersize=5, markeredgewidth=0.5,
                    label=STOP_NAMES.get(name, name))  # fmt: skip
        place = {"variant": variant, "flipped": flipped}
        curve = {"seed": "mean", "stop": "", "epoch": np.arange(len(mean)), "accuracy": mean}
        parts += [pd.DataFrame(place | curve), here[[*place, *curve]]]
        if row == 0:
            ax.set_title(flip_label(flipped))
        if row == len(variants) - 1:
            ax.set_xlabel("epoch")
    for row, variant in enumerate(variants):
        axes[row, 0].set_ylabel(f"{plots.label_of(variant)}:\ntest accuracy")
    _legend_below(figure, axes[0, 0], columns=6)
    return Drawing(figure, pd.concat(parts, ignore_index=True))


def _legend_below(figure: Figure, ax: Axes, columns: int) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, columnspacing=1.2,
        handlelength=1.4, handletextpad=0.5,
    )  # fmt: skip


def equal_length(
    planned: Mapping[float, Mapping[int, ArrayLike]],
    cut_off: Mapping[float, ArrayLike],
    stops: pd.DataFrame,
) -> Drawing:
    """Draw accuracy by length of training: of the stops, and of two controls of the same length.

    Parameters
    ----------
    planned : mapping of the share of flipped labels to a mapping of length to array (n_seeds,)
        Final test accuracy of trainings whose learning rate was planned for this length. There is a
        panel for each share.
    cut_off : mapping of the same shares, or more, to array (n_seeds, n_epochs)
        Test accuracy after each epoch of one long training.
    stops : DataFrame
        Columns flipped, stop, trained (epochs until the stop is detected) and accuracy; a row for
        each stop and seed.

    Returns
    -------
    Drawing
        The table has the columns flipped, name, length, mean and std (over seeds).
    """
    figure, axes = plt.subplots(
        1, len(planned), figsize=plots.figsize(2, aspect=0.72), sharey=True, squeeze=False
    )
    parts = []
    for ax, (flipped, by_length) in zip(axes[0], planned.items(), strict=True):
        values = np.asarray(cut_off[flipped], dtype=float)
        lengths, ends = list(by_length), list(by_length.values())
        long = _mean_line("cut off after this length", np.arange(1, values.shape[1] + 1), values.T)
        short = _mean_line("planned for this length", lengths, ends)
        for line, color, marker in ((short, "#0072B2", "D"), (long, plots.CHANCE, None)):
            ax.plot(line["length"], line["mean"], color=color, marker=marker, label=line["name"][0])
            _band(ax, line["length"], line, color)
        groups = stops[stops["flipped"] == flipped].groupby("stop", sort=False)
        marks = groups["accuracy"].agg(["mean", "std"]).assign(length=groups["trained"].mean())
        for name, row in marks.iterrows():
            style = plots.style_of(str(name)) | {"linestyle": "none"}
            ax.errorbar(row["length"], row["mean"], np.nan_to_num(row["std"]), **style,
                        markersize=6, elinewidth=0.9, label=STOP_NAMES.get(str(name), name),
                        zorder=4)  # fmt: skip
        ax.set(title=flip_label(flipped), xlabel="epochs trained", xlim=(0, None))
        marks = marks.rename_axis("name").reset_index()
        parts += [part.assign(flipped=flipped) for part in (short, long, marks)]
    axes[0, 0].set_ylabel("test accuracy")
    _legend_below(figure, axes[0, 0], columns=4)
    drawn = pd.concat(parts, ignore_index=True)
    return Drawing(figure, drawn[["flipped", "name", "length", "mean", "std"]])


def _mean_line(name: str, lengths: Sequence[int], values: ArrayLike) -> pd.DataFrame:
    """Return mean and standard deviation over seeds of ``values`` (n_lengths, n_seeds)."""
    rows = np.asarray(values, dtype=float)
    std = rows.std(axis=1, ddof=1) if rows.shape[1] > 1 else np.nan
    return pd.DataFrame({"name": name, "length": lengths, "mean": rows.mean(axis=1), "std": std})


def scores_at_stops(panels: Mapping[str, pd.DataFrame], measures: Sequence[str]) -> Drawing:
    """Draw what the scores summed up to each stop are worth: a panel a measure, a row a stop.

    Parameters
    ----------
    panels : mapping of title to DataFrame
        Index: two levels, of which one is "stop" and the other one the seed; a column a score.
    measures : sequence of str
        Label of the x axis of each panel, in the order of ``panels``.

    Returns
    -------
    Drawing
        The table has the columns panel, stop, score, mean and std (over seeds).
    """
    figure, axes = plt.subplots(1, len(panels), figsize=plots.figsize(2, aspect=0.7), sharey=True)
    parts = []
    for ax, (title, table), measure in zip(np.ravel(axes), panels.items(), measures, strict=True):
        mean, std = _mean_and_std(table, "stop")
        _dots(ax, mean.rename(index=STOP_NAMES), std.rename(index=STOP_NAMES))
        ax.set(title=title, xlabel=measure)
        parts.append(_cells(mean, std, ["stop", "score"], panel=title))
    _legend_below(figure, np.ravel(axes)[0], columns=len(mean.columns))
    return Drawing(figure, pd.concat(parts, ignore_index=True))


def _mean_and_std(table: pd.DataFrame, level: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    groups = table.groupby(level=level, sort=False)
    return groups.mean(), groups.std()


def _dots(ax: Axes, mean: pd.DataFrame, std: pd.DataFrame) -> None:
    """Draw `plots.dots` without its legend and with limits that fit the dots alone."""
    low, high = (mean - std.fillna(0)).min(axis=None), (mean + std.fillna(0)).max(axis=None)
    room = 0.06 * (high - low) or 0.01
    plots.dots(ax, mean, std, reference=low - 2 * room)
    ax.set_xlim(low - room, high + room)
    ax.get_legend().remove()


def _cells(
    mean: pd.DataFrame, std: pd.DataFrame, names: Sequence[str], **beside: str
) -> pd.DataFrame:
    """Return a row for each cell of two tables of one shape, NaN kept."""
    table = {
        "mean": mean.rename_axis(columns=names[1]).stack(future_stack=True),
        "std": std.rename_axis(columns=names[1]).stack(future_stack=True),
    }
    rows = pd.DataFrame(table).rename_axis(list(names)).reset_index().assign(**beside)
    return rows[[*beside, *names, "mean", "std"]]


def reliability_by_stop(tables: Mapping[str, pd.DataFrame]) -> Drawing:
    """Draw a reliability diagram for each stop, and below it how many predictions each bin holds.

    Parameters
    ----------
    tables : mapping of stop to DataFrame
        As `calibration.reliability` returns them.
    """
    figure, axes = plt.subplots(
        2, len(tables), figsize=plots.figsize(len(tables), 1, 1.8), sharex=True, sharey="row",
        height_ratios=(2.4, 1), squeeze=False,
    )  # fmt: skip
    for (stop, table), upper, lower in zip(tables.items(), axes[0], axes[1], strict=True):
        plots.reliability_diagram(upper, table)
        upper.set(title=STOP_NAMES.get(stop, stop), xlabel="", ylabel="")
        width = table["right"] - table["left"]
        lower.bar(table["left"], table["n"] / table["n"].sum(), width, align="edge",
                  color=plots.FILL, edgecolor="white", linewidth=0.6)  # fmt: skip
        lower.set(yscale="log", ylim=(1e-4, 1), yticks=[1e-4, 1e-2, 1], xticks=[0, 0.5, 1])
        lower.set_xlabel("confidence")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("share of all")
    _legend_below(figure, axes[0, 0], columns=2)
    return Drawing(figure, pd.concat(tables, names=["stop", "bin"]).reset_index())


def head_and_tail(errors: pd.DataFrame) -> Drawing:
    """Draw errors of groups of samples at every stop: a panel a measure, a row a group.

    Parameters
    ----------
    errors : DataFrame
        Index: (group, stop), two levels. A column for each measure, named as in
        `calibration.errors_of`; all panels have one scale.

    Returns
    -------
    Drawing
        The table has the columns measure, group, stop and error.
    """
    size = plots.figsize(2, aspect=0.62)
    figure, axes = plt.subplots(1, errors.shape[1], figsize=size, sharex=True, sharey=True)
    for ax, measure in zip(np.ravel(axes), errors, strict=True):
        groups = list(errors.index.unique("group"))
        table = errors[measure].unstack("stop").loc[groups, list(errors.index.unique("stop"))]
        plots.dots(ax, table)
        ax.get_legend().remove()
        ax.set(xlabel=plots.label_of(measure), xlim=(0, 1.06 * errors.max(axis=None)))
    handles, labels = np.ravel(axes)[0].get_legend_handles_labels()
    names = {plots.label_of(stop): name for stop, name in STOP_NAMES.items()}
    labels = [names.get(label, label) for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=5, handlelength=1.4)
    drawn = errors.rename_axis(columns="measure").stack(future_stack=True).rename("error")
    return Drawing(figure, drawn.reset_index()[["measure", "group", "stop", "error"]])
