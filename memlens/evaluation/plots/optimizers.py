"""Figures of notebook 06: optimizers, architectures, and when a stop can be trusted."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from memlens.evaluation import plots
from memlens.evaluation.plots import INK, Drawing

# Cost of a stop in points of accuracy: the upper end of each class, and its colour.
COSTS: dict[float, str] = {1.0: "#0072B2", 3.0: "#A6CEE3", np.inf: "#E69F00"}
FAILED, NO_PEAK = "0.72", "white"
NEAR = 3  # epochs within which a stop is at the lowest validation loss
SIGNS = {"before": "<", "near": "o", "after": ">"}  # markers in a cell


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
        row[0].set_ylabel(f"{plots.label_of(stop)}\nweight decay")
    for ax, network in zip(axes[0], networks, strict=True):
        ax.set_title(network)
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
