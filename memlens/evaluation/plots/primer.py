"""The figures of notebook 00: leaving samples out, the toy in two dimensions, extreme images."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from memlens.evaluation import plots
from memlens.evaluation.plots import Drawing

LABELS = {0: ("#E08214", "o"), 1: ("#8073AC", "s")}  # colour and marker of the toy's classes
X1, X2 = (-3, 3), (-2, 2)


def leave_one_out(left_out: pd.DataFrame, subsets: pd.DataFrame) -> Drawing:
    """Draw memorization by its definition against the estimate from random subsets.

    Parameters
    ----------
    left_out, subsets : DataFrame
        Columns memorization and standard_error, as `truth.leave_one_out` and `truth.memorization`
        return them. Those rows of ``subsets`` are drawn that ``left_out`` has.
    """
    columns = ["memorization", "standard_error"]
    both = left_out[columns].add_suffix("_left_out").join(subsets[columns].add_suffix("_subsets"))
    figure, ax = plt.subplots(figsize=plots.figsize(1, 1, 0.8))
    ax.plot([0, 1], [0, 1], color=plots.CHANCE, linestyle="--", linewidth=1)
    ax.errorbar(
        both["memorization_subsets"],
        both["memorization_left_out"],
        xerr=both["standard_error_subsets"],
        yerr=both["standard_error_left_out"],
        fmt="o",
        color="#0072B2",
        elinewidth=0.8,
    )
    ax.set(xlabel="memorization from random subsets", ylabel="memorization by leaving one out")
    ax.text(0.1, 0.16, "equal", color=plots.INK, ha="right", fontsize=7.5)
    return Drawing(figure, both)


def toy_points(train: pd.DataFrame, test: pd.DataFrame) -> Drawing:
    """Draw the toy's training and test points side by side (columns x1, x2, label, is_flipped)."""
    both = pd.concat({"training": train, "test": test}, names=["part", "position"])
    figure, axes = plt.subplots(1, 2, figsize=plots.figsize(2, 1), sharey=True)
    for ax, name, size in zip(axes, ("training", "test"), (26, 12)):
        _draw_points(ax, both.loc[name], size)
        ax.set_title(f"{name} points")
        ax.label_outer()
    return Drawing(figure, both)


def _draw_points(
    ax: Axes, points: pd.DataFrame, size: float | np.ndarray, names: tuple[str, str] = ("x1", "x2")
) -> None:
    """Draw circles for label 0 and squares for label 1; a flipped label has a dark rim."""
    sizes = np.broadcast_to(size, len(points))
    for label, (color, marker) in LABELS.items():
        part = (points["label"] == label).to_numpy()
        rims = np.where(points["is_flipped"][part], "black", "white")
        x, y = (points[name][part] for name in names)
        ax.scatter(x, y, sizes[part], color, marker=marker, edgecolor=rims, linewidth=0.9, zorder=3)
    if names == ("x1", "x2"):
        ax.set(xlabel="$x_1$", ylabel="$x_2$", xlim=X1, ylim=X2)


def toy_curves(
    losses: Mapping[str, ArrayLike], curvature: ArrayLike, fitted: Sequence[int]
) -> Drawing:
    """Draw the losses and the curvature of the training points by epoch, on log axes.

    Parameters
    ----------
    losses : mapping of "train_loss" and "val_loss" to array (n_seeds, n_epochs)
    curvature : array (n_seeds, n_epochs, n_points)
    fitted : sequence of int, one a seed
        Epoch in which all labels are fitted; their median is marked.
    """
    curvature = np.asarray(curvature)
    values = dict(losses) | {"mean": curvature.mean(2), "median": np.median(curvature, axis=2)}
    epochs = np.arange(curvature.shape[1])
    logs = {name: np.log10(np.maximum(value, 1e-6)) for name, value in values.items()}
    drawn = plots.bands(logs, epochs)
    figure, axes = plt.subplots(1, 2, figsize=plots.figsize(2, 1))
    for ax, names, title in (
        (axes[0], ("train_loss", "val_loss"), "log10 of the loss (val: test points)"),
        (axes[1], ("mean", "median"), "log10 of the curvature of training points"),
    ):
        ax.set(xlim=(0, len(epochs)), title=title)
        plots.curves(ax, drawn[drawn["series"].isin(names)])
        plots.mark_epoch(ax, float(np.median(fitted)), "all labels fitted", height=0.12)
    return Drawing(figure, drawn)


def toy_boundaries(probability: pd.DataFrame, points: pd.DataFrame) -> Drawing:
    """Draw the probability of class 1 over the plane, a panel per snapshot, and the boundary.

    Parameters
    ----------
    probability : DataFrame
        Columns x1, x2 and one per snapshot, as `toy.probability_map` returns it.
    points : DataFrame
        Training points: x1, x2, label, is_flipped.
    """
    snapshots = [name for name in probability if name not in ("x1", "x2")]
    shape = probability["x1"].nunique(), probability["x2"].nunique()
    figure, axes = plt.subplots(
        -(-len(snapshots) // 3), 3, figsize=plots.figsize(3, 2, 0.72), sharex=True, sharey=True,
        squeeze=False,
    )  # fmt: skip
    x1, x2 = (probability[name].to_numpy().reshape(shape) for name in ("x1", "x2"))
    for ax, name in zip(axes.flat, snapshots):
        p = probability[name].to_numpy().reshape(shape)
        image = ax.pcolormesh(x1, x2, p, cmap="PuOr", vmin=0, vmax=1, shading="nearest", alpha=0.4,
                              rasterized=True, linewidth=0)  # fmt: skip
        if p.min() < 0.5 < p.max():
            ax.contour(x1, x2, p, [0.5], colors="0.2", linewidths=0.9)
        _draw_points(ax, points, 20)
        ax.set_title(f"after {name} epochs")
        ax.label_outer()
    figure.colorbar(image, ax=axes, shrink=0.6, label="probability of class 1 (squares)")
    return Drawing(figure, probability)


def toy_logits(logits: pd.DataFrame) -> Drawing:
    """Draw the two logits of each training point, a panel per snapshot, all with the same limits.

    ``logits`` has the columns epoch, logit_0, logit_1, label and is_flipped. The diagonal is the
    decision boundary. The axes are linear between -1 and 1, and logarithmic outside.
    """
    epochs = logits["epoch"].unique()
    values = logits[["logit_0", "logit_1"]].to_numpy()
    limits = 1.5 * np.abs(values).max() * np.array([-1, 1])
    figure, axes = plt.subplots(
        -(-len(epochs) // 3), 3, figsize=plots.figsize(3, 2, 0.85), sharex=True, sharey=True,
        squeeze=False,
    )  # fmt: skip
    for ax, epoch in zip(axes.flat, epochs):
        part = logits[logits["epoch"] == epoch]
        ax.plot(limits, limits, color="0.2", linewidth=0.9)
        _draw_points(ax, part, 18, ("logit_0", "logit_1"))
        ax.set_xscale("symlog", linthresh=1)
        ax.set_yscale("symlog", linthresh=1)
        ax.set(xlim=limits, ylim=limits, title=f"after {epoch} epochs")
        ax.set(xlabel="logit of class 0 (circles)", ylabel="logit of class 1 (squares)")
        ax.label_outer()
    return Drawing(figure, logits)


def toy_score(points: pd.DataFrame, score: ArrayLike, name: str) -> Drawing:
    """Draw the training points with areas that grow with the rank of a score, (n_points,)."""
    drawn = points.assign(**{name: np.asarray(score)})
    figure, ax = plt.subplots(figsize=plots.figsize(1, 1, 0.7))
    _draw_points(ax, drawn, 4 + 130 * drawn[name].rank(pct=True).to_numpy() ** 3)
    ax.set_title(f"larger: higher {plots.label_of(name)}")
    return Drawing(figure, drawn)


def extremes(
    images: ArrayLike, table: pd.DataFrame, scores: Sequence[str], *, n: int = 9,
    pixel_max: float = 255,
) -> Drawing:  # fmt: skip
    """Show the n images with the lowest, and the n with the highest, of each score.

    Parameters
    ----------
    images : array or tensor (n_samples, 1 or 3, height, width)
    table : DataFrame (n_samples rows)
        The scores, and the column "class", the name of each sample's class.
    scores : sequence of str
    n : int
    pixel_max : float
        The value of a white pixel.
    """
    parts = {}
    for score in scores:
        order = np.argsort(table[score].to_numpy(), kind="stable")
        parts[f"lowest {score}"], parts[f"highest {score}"] = order[:n], order[::-1][:n]
    positions = np.concatenate(list(parts.values()))
    shown = table.iloc[positions].assign(row=np.repeat(list(parts), n))
    figure = plt.figure(figsize=plots.figsize(n + 1, len(parts), 1.35))
    plots.image_grid(
        figure,
        np.asarray(images)[positions],
        titles=[plots.shortened(name, 12) for name in shown["class"]],
        rows=[
            f"{end}\n{plots.label_of(score)}" for score in scores for end in ("lowest", "highest")
        ],
        columns=n,
        pixel_max=pixel_max,
    )
    return Drawing(figure, shown)
