"""Figures of notebook 06: optimizers, architectures, and when a stop can be trusted."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from memlens.evaluation import plots
from memlens.evaluation.plots import INK, Drawing

ROWS = {  # of `training_curves`: the y label, its limits, and the series of each row
    "gradient": ("input gradient,\nshare of its highest", (0, 1.08)),
    "norm": ("weight norm,\nshare of its highest", (None, 1.03)),
    "loss": ("validation loss\nover its lowest", (0.9, None)),
}
SERIES = {
    "input_gradient": ("gradient", "all samples"),
    "input_gradient_top": ("gradient", "top tenth"),
    "weight_norm": ("norm", ""),
    "val_loss": ("loss", ""),
}
# Cost of a stop in points of accuracy: the upper end of each class, and its colour.
COSTS: dict[float, str] = {1.0: "#0072B2", 3.0: "#A6CEE3", np.inf: "#E69F00"}
FAILED, NO_PEAK = "0.72", "white"
NEAR = 3  # epochs within which a stop is at the lowest validation loss
SIGNS = {"before": "<", "near": "o", "after": ">"}  # markers in a cell


def training_curves(
    curves: Mapping[str, Mapping[str, np.ndarray]],
    peaks: pd.DataFrame,
    *,
    highest_loss: float = 2.2,
) -> Drawing:
    """Draw gradient, weight norm and validation loss by epoch, a column for each variant.

    Every run is divided by its own highest gradient and norm, and by its lowest validation loss, so
    that the limits of a row can be shared. A peak that is called in most runs is marked at its
    median epoch; otherwise the panel says that none is called.

    Parameters
    ----------
    curves : mapping of variant to mapping of series to array (n_seeds, n_epochs + 1)
        The series of `SERIES`; ``input_gradient_top`` is the mean over the most memorized tenth.
        Column 0 is before training; NaN where a series is not known there.
    peaks : DataFrame
        A row a run: ``variant``, and the epochs done at the peak of ``input_gradient`` and of
        ``weight_norm``, NaN where it is not called.
    highest_loss : float
        Upper limit of the lowest row; losses above leave the panel.
    """
    shape = {"nrows": len(ROWS), "ncols": len(curves), "squeeze": False}
    size = plots.FULL, 0.4 + 1.3 * len(ROWS)
    figure, axes = plt.subplots(**shape, figsize=size, sharex=True, sharey="row")
    tables = {}
    for column, (variant, series) in zip(axes.T, curves.items(), strict=True):
        tables[variant] = _relative(series)
        own = peaks[peaks["variant"] == variant]
        for ax, row in zip(column, ROWS, strict=True):
            names = [name for name in series if SERIES[name][0] == row]
            table = tables[variant]
            plots.curves(ax, table[table["series"].isin(names)], labels="none").set_xlabel("")
        _mark_peak(column[0], own["input_gradient"])
        _mark_peak(column[1], own["weight_norm"])
        column[0].set_title(plots.label_of(variant))
        column[-1].set_xlabel("epochs done")
    for ax, (label, limits) in zip(axes[:, 0], ROWS.values(), strict=True):
        ax.set_ylabel(label)
        ax.set_ylim(*limits)
    axes[-1, 0].set_ylim(top=highest_loss)
    handles = axes[0, 0].get_lines()[: len([n for n in SERIES if SERIES[n][0] == "gradient"])]
    names = [text for _, text in SERIES.values() if text]
    figure.legend(handles, names[: len(handles)], loc="outside lower center", ncols=2)
    drawn = pd.concat(tables, names=["variant", "row"]).reset_index("variant")
    return Drawing(figure, drawn.reset_index(drop=True))


def _relative(series: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Divide every run by its highest gradient or norm, or its lowest loss; mean and std."""
    divided = {}
    for name, values in series.items():
        values = np.atleast_2d(np.asarray(values, dtype=float))
        unit = np.nanmin(values, 1) if name == "val_loss" else np.nanmax(values, 1)
        divided[name] = values / unit[:, None]
    return plots.bands(divided, np.arange(values.shape[1]), "epochs done")


def _mark_peak(ax: Axes, epochs: pd.Series) -> None:
    if epochs.notna().mean() > 0.5:
        plots.mark_epoch(ax, epochs.median(), f"peak: {epochs.median():g}", height=0.2)
    else:
        box = {"xycoords": "axes fraction", "ha": "right", "fontsize": 7, "color": INK}
        ax.annotate("no peak called", (0.97, 0.08), **box)


def adam_by_share(printed: pd.DataFrame, gradient: np.ndarray, *, cut: float) -> Drawing:
    """Draw the mean input gradient under Adam, printed and ours, over the share of the epochs.

    Parameters
    ----------
    printed : DataFrame
        ``share`` of the epochs, in [0, 1], and ``printed``, as a share of its highest value.
    gradient : array (n_seeds, n_epochs)
        Ours; each run is divided by its highest value.
    cut : float
        Share at which the learning rate is cut.
    """
    x, n_epochs = "share of the epochs", gradient.shape[1]
    shares = gradient / gradient.max(axis=1, keepdims=True)
    ours = plots.bands({"ours": shares}, np.arange(1, n_epochs + 1) / n_epochs, x)
    points = plots.bands({"printed": printed["printed"]}, printed["share"], x)
    drawn = pd.concat([ours, points], ignore_index=True)
    figure, ax = plt.subplots(figsize=plots.figsize(1, 1, 0.7))
    ax.set_ylim(-0.06, 1.08)  # room below the last printed value for its label
    plots.curves(ax, drawn).set_ylabel("input gradient, share of its highest")
    plots.mark_epoch(ax, cut, "learning rate cut")
    return Drawing(figure, drawn)


def score_maps(maps: Mapping[str, pd.DataFrame]) -> Drawing:
    """Draw tables of correlations, scores by optimizers, as heat maps on one colour scale.

    Parameters
    ----------
    maps : mapping of title to DataFrame
        An even number, with equal rows and columns; NaN cells stay empty.
    """
    rows, size = len(maps) // 2, plots.figsize(2, len(maps) // 2, 0.8)
    figure, axes = plt.subplots(rows, 2, figsize=size, sharex=True, squeeze=False)
    limits = plots.common_limits(maps.values())
    drawn = plots.panels(axes, plots.heatmap, maps, limits=limits)
    for ax in axes[:, 1]:
        ax.set_yticks([])
    return Drawing(figure, drawn)


def architectures(agreements: Mapping[str, pd.DataFrame]) -> Drawing:
    """Draw agreement between architectures as heat maps; the diagonal is that between seeds.

    Parameters
    ----------
    agreements : mapping of title to DataFrame
        A multiple of three, square, with the architectures as rows and columns. Three panels a row;
        all share one colour scale from 0 to 1.
    """
    rows, size = len(agreements) // 3, plots.figsize(3, len(agreements) // 3, 0.75)
    figure, axes = plt.subplots(rows, 3, figsize=size, sharex=True, squeeze=False)
    drawn = plots.panels(axes, plots.heatmap, agreements, limits=(0, 1))
    for ax in axes[:, 1:].ravel():
        ax.set_yticks([])
    return Drawing(figure, drawn)


def stop_maps(cells: pd.DataFrame, *, marked: tuple[float, float] | None = None) -> Drawing:
    """Draw what a stop costs over learning rate and weight decay, and where it falls.

    One panel for each stop (rows) and network (columns); the colour of a cell is the class of its
    cost (`COSTS`), its marker whether the stop falls before, at (within `NEAR` epochs) or after the
    lowest validation loss. Failed cells are grey, cells without a peak white and hatched.

    Parameters
    ----------
    cells : DataFrame
        ``stop``, ``network``, ``lr``, ``weight_decay``, ``state`` ("called", "no peak", "failed"),
        ``distance`` in epochs and ``cost`` as a share of the test samples, as `grid.stop_map`
        returns them.
    marked : tuple (lr, weight_decay), optional
        The cell to frame.
    """
    stops, networks = cells["stop"].unique(), cells["network"].unique()
    size = plots.FULL, 0.62 + 1.62 * len(stops)
    shape = {"nrows": len(stops), "ncols": len(networks), "squeeze": False}
    figure, axes = plt.subplots(**shape, figsize=size, sharex=True, sharey=True)
    for row, stop in zip(axes, stops, strict=True):
        for ax, network in zip(row, networks, strict=True):
            own = cells[(cells["stop"] == stop) & (cells["network"] == network)]
            _stop_map(ax, own, marked)
        row[0].set_ylabel(f"stop: {plots.label_of(stop)}\n\nweight decay")
    for ax, network in zip(axes[0], networks, strict=True):
        ax.set_title(network.replace(", ", ",\n"), fontsize=8)
    for ax in axes[-1]:
        ax.set_xlabel("learning rate")
    handles = _map_legend()
    figure.legend(handles=handles, loc="outside lower center", ncols=4, columnspacing=1.2)
    return Drawing(figure, cells.reset_index(drop=True))


def cost_class(state: str, cost: float) -> int:
    """Return the colour of a cell: 0 failed, 1 no peak, then by cost, as a share, from the lowest.

    >>> [cost_class("called", cost) for cost in (-0.01, 0.01, 0.02, 0.2)]
    [2, 2, 3, 4]
    """
    if state != "called":
        return ["failed", "no peak"].index(state)
    return 2 + int(np.searchsorted(list(COSTS), round(100 * cost, 9)))


def side(distance: float) -> str:
    """Return where a stop falls: before, near or after the lowest validation loss."""
    if abs(distance) <= NEAR:
        return "near"
    return "before" if distance < 0 else "after"


def _stop_map(ax: Axes, cells: pd.DataFrame, marked: tuple[float, float] | None) -> None:
    lrs, decays = np.unique(cells["lr"]), np.unique(cells["weight_decay"])
    classes = np.full((len(decays), len(lrs)), -1)
    for cell in cells.itertuples():
        x, y = np.searchsorted(lrs, cell.lr), np.searchsorted(decays, cell.weight_decay)
        classes[y, x] = cost_class(cell.state, cell.cost)
        if cell.state == "no peak":
            ax.add_patch(
                Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", ec="0.8", lw=0)
            )
        if cell.state == "called":
            colour = "white" if classes[y, x] == 2 else INK
            ax.plot(x, y, SIGNS[side(cell.distance)], color=colour, markersize=3, mew=0)
    colours = ListedColormap([FAILED, NO_PEAK, *COSTS.values()])
    ax.imshow(classes, cmap=colours, vmin=0, vmax=len(COSTS) + 1, origin="lower", aspect="auto")
    ax.set_xticks(range(len(lrs)), [f"{lr:g}" for lr in lrs], rotation=90)
    ax.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if marked is not None:
        x, y = np.searchsorted(lrs, marked[0]), np.searchsorted(decays, marked[1])
        frame = {"fill": False, "ec": "black", "lw": 1.3, "zorder": 4, "clip_on": False}
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **frame))


def _map_legend() -> list[Patch | Line2D]:
    names = ["costs at most 1 point", "1 to 3 points", "more"]
    patches = [Patch(color=c, label=n) for c, n in zip(COSTS.values(), names, strict=True)]
    patches += [Patch(color=FAILED, label="did not learn")]
    patches += [Patch(facecolor=NO_PEAK, hatch="////", edgecolor="0.8", label="never called")]
    texts = {"near": f"within {NEAR} epochs of the lowest validation loss",
             "before": "earlier", "after": "later"}  # fmt: skip
    points = {"linestyle": "none", "color": INK, "markersize": 4, "markeredgewidth": 0}
    return patches + [Line2D([], [], marker=SIGNS[k], label=t, **points) for k, t in texts.items()]
