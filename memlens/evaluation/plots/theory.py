"""The figures of notebook 01: the lemma, learning time and the theorems."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter
from numpy.typing import ArrayLike

from memlens.evaluation import plots
from memlens.evaluation.plots import Drawing

SMALL = 7  # points: labels beside what they name
_BOUNDS = {
    "all_weights": ("all weights", "#332288"),
    "first_layer": ("first layer", "#44AA99"),
    "first_layer_spectral": ("first layer, spectral", "#CC6677"),
}


def bound_percentiles(shares: Mapping[str, Sequence[pd.DataFrame]]) -> Drawing:
    """Draw how much of each bound of lemma 4.1 the samples reach, one panel a network.

    Parameters
    ----------
    shares : mapping from the panel's title to DataFrames (n_samples,), one per seed
        Columns of `memlens.tracking.bounds.bound_shares`. A share of NaN, of a sample without any
        gradient, is left out of the percentiles; infinite shares are refused.

    Returns
    -------
    Drawing
        Data: panel, percentile, series, mean, std, n_seeds.

    Raises
    ------
    ValueError
        If a share is infinite.
    """
    levels = np.linspace(0, 1, 101)
    figure, axes = plt.subplots(
        1, len(shares), figsize=plots.figsize(2, 1, 0.75), sharey=True, squeeze=False
    )
    parts = {}
    for ax, (title, frames) in zip(axes[0], shares.items(), strict=True):
        if any(np.isinf(frame).any(axis=None) for frame in frames):
            raise ValueError(f"{title} has an infinite share: its bound is 0")
        curves = {name: [frame[name].quantile(levels) for frame in frames] for name in _BOUNDS}
        parts[title] = plots.bands(curves, 100 * levels, "percentile")
        _percentiles(ax, parts[title])
        ax.set_title(title)
    axes[0, 0].set_ylabel("input gradient / bound")
    axes[0, -1].legend(loc="lower right")
    data = pd.concat(parts, names=["panel", "row"]).reset_index("panel").reset_index(drop=True)
    return Drawing(figure, data)


def _percentiles(ax: Axes, table: pd.DataFrame) -> None:
    ax.set(yscale="log", xlim=(0, 100), xlabel="percentile of the samples")
    for style, (name, (label, color)) in zip(("-", "--", ":"), _BOUNDS.items(), strict=True):
        part = table[table["series"] == name]
        ax.plot(part["percentile"], part["mean"], style, color=color, label=label, linewidth=1.6)
    ax.axhline(1, color=plots.INK, linewidth=0.8)
    ax.text(3, 1.12, "bound", size=SMALL, color=plots.INK)


def cancelling_patches(image: ArrayLike, by_pixel: ArrayLike, by_patch: ArrayLike) -> Drawing:
    """Draw an image, the gradient by each pixel, and what each pixel adds to the kernel's gradient.

    Parameters
    ----------
    image, by_pixel, by_patch : (h, w)
        The three share no scale; each is symmetric about 0.

    Returns
    -------
    Drawing
        Data: row, column, image, by_pixel, by_patch.
    """
    panels = {
        "image": np.asarray(image, dtype=float),
        "by_pixel": np.asarray(by_pixel, dtype=float),
        "by_patch": np.asarray(by_patch, dtype=float),
    }
    titles = ["image", "gradient by the pixels", "parts of the kernel's gradient"]
    figure, axes = plt.subplots(1, 3, figsize=plots.figsize(3, 1, 1.15))
    for ax, title, values in zip(axes, titles, panels.values(), strict=True):
        largest = np.abs(values).max() or 1.0
        ax.imshow(values, cmap="PuOr", vmin=-1.3 * largest, vmax=1.3 * largest)
        ax.set(title=title, xticks=[], yticks=[])
        norm = np.linalg.norm(values)
        ax.set_xlabel(f"sum {values.sum():z.3f}, norm {norm:.3f}")
    rows, columns = np.indices(panels["image"].shape)
    data = pd.DataFrame({"row": rows.ravel(), "column": columns.ravel()})
    return Drawing(figure, data.assign(**{name: v.ravel() for name, v in panels.items()}))


def easy_and_hard(easy: pd.DataFrame, hard: pd.DataFrame) -> Drawing:
    """Draw the input gradient and the loss of an easy and a hard sample by epoch (CSG Fig. 2).

    Parameters
    ----------
    easy, hard : DataFrame (n_epochs,), index epoch
        Columns gradient (L2 norm) and loss (nats).

    Returns
    -------
    Drawing
        Data: signal, sample, epoch, value, mean_so_far.
    """
    texts = {"gradient": "norm of the input gradient", "loss": "loss (nats)"}
    figure, axes = plt.subplots(1, 2, figsize=plots.figsize(2, 1, 0.7))
    samples = {"easy": (easy, "#0072B2"), "hard": (hard, "#D55E00")}
    rows = []
    for ax, (signal, text) in zip(axes, texts.items(), strict=True):
        for name, (frame, color) in samples.items():
            values = frame[signal]
            mean = values.cumsum() / np.arange(1, len(values) + 1)
            ax.plot(values.index, values, color=color, linewidth=1, label=name)
            ax.plot(values.index, mean, color=color, linestyle="--", linewidth=1.6)
            part = {"signal": signal, "sample": name, "epoch": values.index}
            rows.append(pd.DataFrame(part | {"value": values.array, "mean_so_far": mean.array}))
        ax.set(xlabel="epoch", ylabel=text, ylim=(None, 1.12 * max(hard[signal].max(), 1e-9)))
    axes[1].plot([], [], color=plots.INK, linestyle="--", linewidth=1.6, label="mean so far")
    axes[1].legend(loc="upper right")
    return Drawing(figure, pd.concat(rows, ignore_index=True))


def threshold_sweep(sweep: pd.DataFrame, share_form: float) -> Drawing:
    """Draw which samples pass a threshold of Eq. 4 when, and how that agrees with the truth.

    Parameters
    ----------
    sweep : DataFrame, index threshold (ascending)
        Columns at_once, later and never (shares of the samples, which add up to 1), first and
        for_good (rank correlation with memorization of the two readings; NaN for a constant).
    share_form : float
        Rank correlation of the authors' form, a share of epochs.

    Returns
    -------
    Drawing
        Data: the sweep, with the column share_form.
    """
    figure, axes = plt.subplots(1, 2, figsize=plots.figsize(2, 1, 0.75), sharex=True)
    threshold, bottom = sweep.index.to_numpy(), np.zeros(len(sweep))
    colors = {"at_once": "#DDCC77", "later": "#882255", "never": "#88CCEE"}
    names = {"at_once": "in the first epoch", "later": "later", "never": "never"}
    for name, color in colors.items():
        top = bottom + sweep[name].to_numpy()
        axes[0].fill_between(threshold, bottom, top, color=color, linewidth=0, label=names[name])
        bottom = top
    axes[0].set(ylabel="share of the samples", ylim=(0, 1), xscale="log", title="first below τ")
    axes[0].legend(loc="lower right", frameon=True, framealpha=0.9)
    lines = {"first": ("below τ for the first time", "#0072B2", "-"),
             "for_good": ("below τ for good", "#009E73", "--")}  # fmt: skip
    for name, (label, color, style) in lines.items():
        axes[1].plot(threshold, sweep[name], style, color=color, linewidth=1.6, label=label)
    axes[1].axhline(share_form, color=plots.INK, linestyle=":", label="the authors' code")
    low = min(0.0, float(np.nanmin(sweep[["first", "for_good"]])))
    axes[1].set(ylabel="rank correlation\nwith memorization", ylim=(low - 0.05, 1.45))
    axes[1].set_yticks(np.arange(0, 1.01, 0.2))
    axes[1].legend(loc="upper left")
    for ax in axes:
        ax.set(xlabel="threshold τ", xlim=(threshold[0], threshold[-1]))
    return Drawing(figure, sweep.assign(share_form=share_form))


def convergence(by_length: pd.DataFrame, running: pd.DataFrame) -> Drawing:
    """Draw the mean squared input gradient of trainings of several lengths, and within one.

    Parameters
    ----------
    by_length : DataFrame (n_seeds, n_lengths)
        Columns are the lengths in epochs; a value is the mean over all epochs and samples.
    running : DataFrame (n_epochs, n_seeds), index epoch
        The mean over the epochs so far of one length.

    Returns
    -------
    Drawing
        Data: panel, x (epochs), series, mean, std, n_seeds.
    """
    figure, axes = plt.subplots(1, 2, figsize=plots.figsize(2, 1, 0.75), sharey=True)
    lengths = by_length.columns.to_numpy(dtype=float)
    across = plots.bands({"measured": by_length.to_numpy()}, lengths, "x")
    # guides through the first point: what the theorem allows at most
    first = across["mean"].iloc[0]
    rate = plots.bands({"root of T": first * (lengths / lengths[0]) ** -0.5}, lengths, "x")
    within = plots.bands({"measured": running.T.to_numpy()}, running.index + 1, "x")
    axes[0].errorbar(lengths, across["mean"], across["std"], marker="o", color="#0072B2")
    axes[0].plot(lengths, rate["mean"], color=plots.INK, linestyle="--")
    end = {"textcoords": "offset points", "ha": "right", "size": SMALL, "color": plots.INK}
    axes[0].annotate("as the root of T", (lengths[-1], rate["mean"].iloc[-1]), (-14, -3), **end)
    axes[1].plot(within["x"], within["mean"], color="#0072B2")
    low, high = within["mean"] - within["std"], within["mean"] + within["std"]
    axes[1].fill_between(within["x"], low, high, color="#0072B2", alpha=0.2, linewidth=0)
    axes[0].set(title="trainings of T epochs", ylabel="mean squared input gradient")
    axes[1].set(title="one training, up to epoch T")
    for ax, ticks in zip(axes, (lengths, [1, 3, 10, 30]), strict=True):
        ax.set(xscale="log", yscale="log", xlabel="T (epochs)")
        for axis, places in ((ax.xaxis, ticks), (ax.yaxis, [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5])):
            axis.set_major_locator(FixedLocator(list(places)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(ScalarFormatter())
    parts = {"lengths": pd.concat([across, rate]), "within one": within}
    data = pd.concat(parts, names=["panel", "row"]).reset_index("panel").reset_index(drop=True)
    return Drawing(figure, data)


def group_means(
    groups: Mapping[str, pd.DataFrame], axes_of: Mapping[str, Sequence[str]]
) -> Drawing:
    """Draw the group means of each theorem with the line through them (CSG Fig. 4).

    Parameters
    ----------
    groups : mapping from the panel's title to a `plots.binned` table
    axes_of : mapping from the same titles to the names (x, y) of the scores

    Returns
    -------
    Drawing
        Data: the tables, with the columns panel, x and y first.
    """
    n_rows = -(-len(groups) // 3)
    figure, axes = plt.subplots(n_rows, 3, figsize=plots.figsize(3, n_rows, 0.95), squeeze=False)
    tables = []
    for ax, (title, table) in zip(axes.flat, groups.items(), strict=False):
        x, y = axes_of[title]
        plots.binned_scatter(ax, table, color=plots.style_of(y)["color"])
        ax.set(title=title, xlabel=_spelled(x), ylabel=f"mean {_spelled(y)}")
        tables.append(pd.DataFrame({"panel": title, "x": x, "y": y}, table.index).join(table))
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    return Drawing(figure, pd.concat(tables, ignore_index=True))


def _spelled(name: str) -> str:
    return {"learning_time_share": "learning time"}.get(name, plots.label_of(name))


def largest_losses(losses: pd.DataFrame, guess: float) -> Drawing:
    """Draw quantiles of the samples' losses by epoch, against the loss of a uniform guess.

    Parameters
    ----------
    losses : DataFrame (n_epochs, n_quantiles), index epoch
        Columns are the names of the quantiles, the largest first.
    guess : float
        Loss of a uniform guess, log of the number of classes (nats).

    Returns
    -------
    Drawing
        Data: the losses, with the column guess.
    """
    figure, ax = plt.subplots(figsize=plots.figsize(1, 1, 0.75))
    for i, name in enumerate(losses):
        style = plots.style_of("", i) | {"marker": ""}
        ax.plot(losses.index, losses[name], **style, label=name)
    ax.axhline(guess, color=plots.INK, linewidth=0.8, label="uniform guess")
    ax.set(xlabel="epoch", ylabel="loss of a sample (nats)", ylim=(0, None))
    ax.legend()
    return Drawing(figure, losses.assign(guess=guess))
