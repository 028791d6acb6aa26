"""The figures about bias: pictures of low and high scores, their tone, and a planted bias."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from memlens.evaluation import plots
from memlens.evaluation.plots import Drawing

LOW, HIGH, NAME = "#0072B2", "#D55E00", 7  # colours of the two ends; size of a name in points


def lowest_and_highest(
    lowest: pd.DataFrame,
    highest: pd.DataFrame,
    images: ArrayLike,
    *,
    index: ArrayLike,
    pixel_max: float,
    score: str,
    framed: ArrayLike = (),
) -> Drawing:
    """Show the images with the lowest and the highest score of each class, a row for each class.

    Parameters
    ----------
    lowest, highest : DataFrame (n_classes, k)
        Indices of samples, see `attributes.extremes`, with the names of the classes as index.
    images : array (n_samples, 1 or 3, height, width)
    index : array (n_samples,)
        The index of each image.
    pixel_max : float
        The value of a white pixel.
    score : str
        Its name, for the titles.
    framed : array of indices
        Samples that get an orange frame.
    """
    pictures = {end: _by_index(table, images, index, pixel_max)
                for end, table in {"lowest": lowest, "highest": highest}.items()}  # fmt: skip
    n_rows, k = lowest.shape
    width = plots.FULL
    cell = (width - 0.8) / (2 * k + 0.5)
    figure, axes = plt.subplots(1, 2, figsize=(width, n_rows * cell + 0.3))
    parts = []
    for ax, (end, table) in zip(axes, {"lowest": lowest, "highest": highest}.items(), strict=True):
        _mosaic(ax, pictures[end], np.isin(table, framed))
        ax.set_title(f"{end} {score}", color=LOW if end == "lowest" else HIGH)
        part = table.rename_axis("class").melt(ignore_index=False, var_name="rank")
        part = part.rename(columns={"value": "sample"}).reset_index()
        parts.append(part.assign(end=end, framed=part["sample"].isin(np.ravel(framed))))
    _name_rows(axes[0], lowest.index)
    return Drawing(figure, pd.concat(parts, ignore_index=True))


def labelled_pictures(
    table: pd.DataFrame,
    images: ArrayLike,
    *,
    index: ArrayLike,
    pixel_max: float,
    columns: int = 10,
) -> Drawing:
    """Show images with their label above, and the class whose mean is nearest below.

    The name below is orange where that class is nearer than the label's own.

    Parameters
    ----------
    table : DataFrame (n_shown,)
        In the order to show, with indices of samples as index: label and rival, two names, and
        ambiguous, bool. See `attributes.nearest_means`.
    images : array (n_samples, 1 or 3, height, width)
    index : array (n_samples,)
        The index of each image.
    pixel_max : float
    columns : int
    """
    pictures = _by_index(table.index.to_frame(), images, index, pixel_max)[:, 0]
    n_rows = -(-len(table) // columns)
    cell = plots.FULL / columns
    figure, axes = plt.subplots(n_rows, columns, figsize=(plots.FULL, n_rows * (cell + 0.22)),
                                squeeze=False)  # fmt: skip
    for ax in axes.flat:
        ax.set_axis_off()
    shown = zip(axes.flat, pictures, table.itertuples(), strict=False)
    for ax, picture, row in shown:
        ax.imshow(_for_imshow(picture), cmap="gray", vmin=0, vmax=1)
        ax.set_title(plots.shortened(str(row.label), 11), fontsize=NAME, loc="center", pad=2)
        below = plots.shortened(str(row.rival), 11)
        ax.text(0.5, -0.04, below, transform=ax.transAxes, ha="center", va="top", fontsize=NAME,
                color=HIGH if row.ambiguous else "0.45")  # fmt: skip
    return Drawing(figure, table.rename_axis("sample").reset_index())


def picture_rows(
    samples: pd.DataFrame, pictures: Mapping[str, ArrayLike], *, pixel_max: float,
    framed: pd.DataFrame | None = None,
) -> Drawing:  # fmt: skip
    """Show a row of images for each score, the highest first.

    Parameters
    ----------
    samples : DataFrame (n_rows, k)
        Indices of the images, with the names of the rows as index.
    pictures : mapping from the name of a row to an array (k, 1 or 3, height, width)
        In the order of ``samples``.
    pixel_max : float
    framed : DataFrame of bool, as ``samples``, optional
        Images that get an orange frame.
    """
    marks = np.zeros(samples.shape, bool) if framed is None else framed.to_numpy()
    rows = np.stack([np.asarray(pictures[name]) / pixel_max for name in samples.index])
    n_rows, k = samples.shape
    cell = (plots.FULL - 1.4) / k
    figure, ax = plt.subplots(figsize=(plots.FULL, n_rows * cell + 0.1))
    _mosaic(ax, rows, marks)
    ax.set_anchor("E")  # the names need the space at the left
    _name_rows(ax, samples.index)
    drawn = samples.rename_axis("row").melt(ignore_index=False, var_name="rank")
    drawn = drawn.rename(columns={"value": "sample"}).reset_index()
    return Drawing(figure, drawn.assign(framed=marks.ravel(order="F")))


def mean_images(lowest: pd.DataFrame, highest: pd.DataFrame, shape: tuple[int, int]) -> Drawing:
    """Show mean images of the lowest and of the highest scores of each class, and the difference.

    Parameters
    ----------
    lowest, highest : DataFrame (n_classes, n_pixels), in [0, 1]
        The mean pixels of grey images, with the names of the classes as index.
    shape : (height, width)
    """
    names = list(lowest.index)
    means = {
        f"{end} tenth": table.to_numpy(dtype=float).reshape(-1, *shape)
        for end, table in {"lowest": lowest, "highest": highest}.items()
    }
    difference = means["highest tenth"] - means["lowest tenth"]
    reach = float(np.abs(difference).max()) or 1.0
    cell = (plots.FULL - 1.6) / len(names)
    figure, axes = plt.subplots(2, 1, figsize=(plots.FULL, 3 * cell + 0.45), height_ratios=(2, 1))
    drawn = _mosaic(axes[0], np.stack(list(means.values()))[:, :, None])
    signed = _mosaic(axes[1], difference[None, :, None], cmap="PuOr", limits=(-reach, reach))
    _name_rows(axes[0], list(means))
    _name_rows(axes[1], ["highest − lowest"])
    for at, name in zip(_centres(difference.shape[2], len(names)), names, strict=True):
        axes[0].text(at, -2.5, plots.shortened(str(name), 11), ha="center", fontsize=NAME)
    for ax, image, label in zip(axes, (drawn, signed), ("pixel", "difference"), strict=True):
        bar = figure.colorbar(image, ax=ax, pad=0.01, aspect=12, label=label)
        bar.outline.set_visible(False)
    stack = means | {"difference": difference}
    tables = {kind: pd.DataFrame(part.reshape(len(names), -1), names)
              for kind, part in stack.items()}  # fmt: skip
    return Drawing(figure, pd.concat(tables, names=["mean of", "class"]).reset_index())


def shift_by_class(lowest: pd.DataFrame, highest: pd.DataFrame) -> Drawing:
    """Draw how each attribute's mean moves from the lowest to the highest tenth by score.

    Parameters
    ----------
    lowest, highest : DataFrame (n_rows, n_attributes)
        Means of the two tenths: a row for all samples first, then one for each class.
    """
    count = lowest.shape[1]
    size = plots.figsize(count)[0], plots.listsize(len(lowest))[1] + 0.35
    figure, axes = plt.subplots(1, count, figsize=size, sharey=True, squeeze=False)
    rows = np.arange(len(lowest))
    for ax, name in zip(axes[0], lowest.columns, strict=True):
        start, end = lowest[name].to_numpy(), highest[name].to_numpy()
        ax.hlines(rows, start, end, color=np.where(end < start, LOW, HIGH), linewidth=1.6)
        ax.scatter(start, rows, 22, facecolor="white", edgecolor=plots.INK, zorder=3)
        ax.scatter(end, rows, 22, color=plots.INK, zorder=3)
        ax.axhline(0.5, color=plots.CHANCE, linewidth=0.6)
        ax.set(xlabel=f"mean {plots.label_of(name)}", ylim=(len(rows) - 0.4, -1.1))
    axes[0, 0].set_yticks(rows, [plots.label_of(name) for name in lowest.index])
    axes[0, 0].tick_params(axis="y", length=0)
    for x, text in ((lowest.iloc[0, 0], "lowest"), (highest.iloc[0, 0], "highest")):
        left = x == min(lowest.iloc[0, 0], highest.iloc[0, 0])
        axes[0, 0].annotate(text, (x, 0), (-4 if left else 4, 6), textcoords="offset points",
                            ha="right" if left else "left", fontsize=NAME)  # fmt: skip
    tables = {"lowest": lowest, "highest": highest}
    return Drawing(figure, pd.concat(tables, names=["tenth", "samples"]).reset_index())


def associations_by_class(tests: pd.DataFrame, *, n_pooled: int = 2) -> Drawing:
    """Draw the rank correlation of each attribute with the score, by class.

    What is found (p below 0.05 after Holm) is printed in bold; the rest is grey, NaN is empty.

    Parameters
    ----------
    tests : DataFrame, index samples and attribute
        With columns spearman and p_holm, see `attributes.association_tests`. The rows that are
        not of one class come first.
    n_pooled : int
        Their number; a gap separates them from the others.
    """
    spearman, p_holm = (tests[name].unstack(sort=False) for name in ("spearman", "p_holm"))
    size = plots.FULL * 0.72, plots.listsize(len(spearman))[1] * 1.25 + 0.4
    figure, ax = plt.subplots(figsize=size)
    limits = plots.common_limits([spearman], signed=True)
    values = spearman.to_numpy(dtype=float)
    image = ax.imshow(values, cmap="PuOr", vmin=limits[0], vmax=limits[1], aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        found = p_holm.iloc[row, column] < 0.05
        strong = abs(value) > 0.75 * limits[1]
        colour = ("white" if strong else "black") if found else "0.45"
        text = "" if np.isnan(value) else f"{value:z.2f}"
        ax.text(column, row, text, ha="center", va="center", color=colour,
                fontweight="bold" if found else "normal", fontsize=8)  # fmt: skip
    ax.set_xticks(range(spearman.shape[1]), [plots.label_of(name) for name in spearman.columns])
    ax.set_yticks(range(len(spearman)), [plots.label_of(name) for name in spearman.index])
    ax.axhline(n_pooled - 0.5, color="white", linewidth=4)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=ax, pad=0.02, label="Spearman")
    bar.outline.set_visible(False)
    return Drawing(figure, tests.reset_index())


def planted(ranks: Mapping[str, pd.DataFrame]) -> Drawing:
    """Draw the mean rank of the planted images under several conditions.

    Parameters
    ----------
    ranks : mapping from score to DataFrame (n_values, n_conditions), in [0, 1]
        One value for each seed, or a single one. The first table has all conditions, the others may
        lack some.
    """
    conditions = list(next(iter(ranks.values())).columns)
    figure, ax = plt.subplots(figsize=(plots.FULL * 0.72, 0.5 * len(conditions) + 0.75))
    for number, (score, table) in enumerate(ranks.items()):
        style = plots.style_of(score, number)
        places = np.arange(len(conditions)) + 0.14 * (2 * number - len(ranks) + 1)
        for place, name in zip(places, conditions, strict=True):
            if name in table:
                ax.scatter(table[name], np.full(len(table), place), 26, color=style["color"],
                           marker=style["marker"], alpha=0.75, linewidth=0)  # fmt: skip
        last = table.columns[-1]
        right = table[last].max(), places[conditions.index(last)]
        ax.annotate(plots.label_of(score), right, (7, 0), textcoords="offset points",
                    va="center", color=style["color"], fontsize=7.5)  # fmt: skip
    ax.axvline(0.5, color=plots.CHANCE, linestyle="--", linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(conditions)), conditions)
    ax.set(xlim=(0, 1), ylim=(len(conditions) - 0.4, -0.6), xlabel="mean rank in the class")
    ax.tick_params(axis="y", length=0)
    tables = {score: table.melt(var_name="condition", value_name="rank")
              for score, table in ranks.items()}  # fmt: skip
    drawn = pd.concat(tables, names=["score"]).reset_index("score").reset_index(drop=True)
    return Drawing(figure, drawn)


# ---------------------------------------------------------------- pieces


def _by_index(
    table: pd.DataFrame, images: ArrayLike, index: ArrayLike, pixel_max: float
) -> np.ndarray:
    """Return the images of a table of indices, (n_rows, k, channels, h, w), in [0, 1]."""
    places = pd.Index(np.asarray(index)).get_indexer(table.to_numpy().ravel())
    if (places < 0).any():
        raise ValueError(f"{int((places < 0).sum())} samples of the table have no image")
    images = np.asarray(images)[places] / pixel_max
    return images.reshape(*table.shape, *images.shape[1:])


def _for_imshow(image: np.ndarray) -> np.ndarray:
    """Return an image (channels, h, w) as (h, w) or (h, w, 3)."""
    return image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)


def _gap(side: int) -> int:
    return max(1, side // 10)


def _centres(side: int, count: int) -> np.ndarray:
    """Return where the centres of ``count`` tiles of a `_mosaic` are, in pixels."""
    return np.arange(count) * (side + _gap(side)) + (side - 1) / 2


def _mosaic(
    ax: Axes,
    tiles: np.ndarray,
    framed: np.ndarray | None = None,
    *,
    cmap: str = "gray",
    limits: tuple[float, float] = (0, 1),
) -> AxesImage:
    """Draw tiles (n_rows, n_columns, channels, h, w) with gaps between them; frame some."""
    n_rows, n_columns, channels, height, width = tiles.shape
    down, across = height + _gap(height), width + _gap(width)
    # NaN between the tiles is drawn as nothing
    canvas = np.full((n_rows * down, n_columns * across, channels), np.nan)
    for row, column in np.ndindex(n_rows, n_columns):
        top, left = row * down, column * across
        canvas[top : top + height, left : left + width] = tiles[row, column].transpose(1, 2, 0)
    canvas = canvas[: -_gap(height), : -_gap(width)]
    if channels == 3:  # colours have no NaN
        canvas = np.nan_to_num(canvas, nan=1.0)
    image = ax.imshow(canvas.squeeze(-1) if channels == 1 else canvas, cmap=cmap,
                      vmin=limits[0], vmax=limits[1])  # fmt: skip
    for row, column in np.argwhere(np.zeros((n_rows, 0)) if framed is None else framed):
        corner = column * across - 0.5, row * down - 0.5
        ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=plots.MARKED,
                               linewidth=1.6, clip_on=False))  # fmt: skip
    ax.set(xticks=[], yticks=_centres(height, n_rows), yticklabels=[])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def _name_rows(ax: Axes, names: Sequence[object]) -> None:
    """Write a name left of each row of a `_mosaic`."""
    ax.set_yticks(ax.get_yticks(), [plots.label_of(name) for name in names], fontsize=7.5)
