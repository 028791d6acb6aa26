"""The figures of notebook 00 draw the numbers that they are given, at their places."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from memlens.evaluation import plots
from memlens.evaluation.plots import primer as draw

POINTS = pd.DataFrame({
    "x1": [-1.0, -0.5, 1.0, 1.5], "x2": [0.0, 0.3, -0.2, 1.0],
    "label": [0, 1, 1, 0], "is_flipped": [False, True, False, True],
})  # fmt: skip


@pytest.fixture(autouse=True)
def styled():
    with plots.styled():
        yield
    plt.close("all")


def places(ax):
    """Where the markers are: label 0 first."""
    return [collection.get_offsets().tolist() for collection in ax.collections]


def test_leaving_out_is_drawn_against_the_same_samples_of_the_subsets():
    left_out = pd.DataFrame({"memorization": [0.9, 0.1], "standard_error": [0.1, 0.2]}, [7, 3])
    subsets = pd.DataFrame(
        {"memorization": [0.2, 0.5, 0.8], "standard_error": [0.01, 0.02, 0.03]}, [3, 5, 7]
    )
    figure, data = draw.leave_one_out(left_out, subsets)
    line = figure.axes[0].containers[0][0]
    assert line.get_xdata().tolist() == [0.8, 0.2] and line.get_ydata().tolist() == [0.9, 0.1]
    assert data.loc[7].tolist() == [0.9, 0.1, 0.8, 0.03]


def test_points_are_at_their_places_and_flipped_ones_have_a_dark_rim():
    figure, data = draw.toy_points(POINTS, POINTS[:2])
    train, test = figure.axes
    assert places(train) == [[[-1.0, 0.0], [1.5, 1.0]], [[-0.5, 0.3], [1.0, -0.2]]]
    assert places(test) == [[[-1.0, 0.0]], [[-0.5, 0.3]]]
    rims = train.collections[0].get_edgecolor()
    np.testing.assert_array_equal(rims, [to_rgba("white"), to_rgba("black")])
    assert len(data) == 6 and train.get_xlim() == test.get_xlim()


def test_curves_are_logarithms_with_the_median_of_the_fitted_epochs_marked():
    losses = {"train_loss": [[10.0, 1.0]] * 3, "val_loss": [[100.0, 10.0]] * 3}
    curvature = np.ones((3, 2, 5))
    curvature[:, :, 0] = 96.0  # the mean is 20, the median 1
    figure, data = draw.toy_curves(losses, curvature, [0, 1, 1])
    mean = data.set_index(["series", "epoch"])["mean"]
    assert mean["train_loss", 0] == 1 and mean["val_loss", 0] == 2 and mean["median", 1] == 0
    assert mean["mean", 1] == pytest.approx(np.log10(20))
    dashed = [line for line in figure.axes[0].lines if list(line.get_xdata()) == [1.0, 1.0]]
    assert len(dashed) == 1


def test_boundaries_have_a_panel_for_each_snapshot_with_all_points():
    grid = pd.DataFrame(
        [(a, b) for a in (-1.0, 0.0, 1.0) for b in (0.0, 1.0)], columns=["x1", "x2"]
    )
    grid[5], grid[10] = [0.1] * 6, [0.1, 0.2, 0.4, 0.6, 0.8, 0.9]
    figure, data = draw.toy_boundaries(grid, POINTS)
    first, second = figure.axes[:2]
    assert [ax.get_title(loc="left") for ax in (first, second)] == [
        "after 5 epochs",
        "after 10 epochs",
    ]
    np.testing.assert_allclose(np.ravel(second.collections[0].get_array()), grid[10])
    assert places(first)[-2:] == [[[-1.0, 0.0], [1.5, 1.0]], [[-0.5, 0.3], [1.0, -0.2]]]
    assert len(second.collections) == len(first.collections) + 1  # the boundary
    pd.testing.assert_frame_equal(data, grid)


def test_logits_share_their_limits_and_lie_at_their_places():
    table = POINTS[["label", "is_flipped"]]
    logits = pd.concat([
        table.assign(epoch=5, logit_0=[1, 2, 3, 4], logit_1=[4, 3, 2, 1]),
        table.assign(epoch=150, logit_0=[10, 20, 30, 40], logit_1=[-40, -30, -20, -10]),
    ])  # fmt: skip
    figure, data = draw.toy_logits(logits)
    first, second = figure.axes[:2]
    assert places(first) == [[[1, 4], [4, 1]], [[2, 3], [3, 2]]]
    assert places(second) == [[[10, -40], [40, -10]], [[20, -30], [30, -20]]]
    assert first.get_xlim() == second.get_xlim() == first.get_ylim()
    assert len(data) == 8


def test_larger_marks_have_higher_scores():
    figure, data = draw.toy_score(POINTS, [1, 5, 3, 4], "curvature")
    circles, squares = (collection.get_sizes() for collection in figure.axes[0].collections)
    assert circles[0] < squares[1] < circles[1] < squares[0]  # 1, 3, 4, 5
    assert data["curvature"].tolist() == [1, 5, 3, 4]


def test_extremes_are_the_lowest_and_the_highest_in_order():
    images = np.arange(6, dtype=np.uint8).repeat(4).reshape(6, 1, 2, 2) * 40
    table = pd.DataFrame({"csg": [3.0, 1.0, 6.0, 2.0, 5.0, 4.0], "class": list("abcdef")})
    figure, data = draw.extremes(images, table, ["csg"], n=2)
    shown = [float(ax.images[0].get_array()[0, 0]) * 255 for ax in figure.axes]
    np.testing.assert_allclose(shown, [40, 120, 80, 160])  # samples 1, 3 and 2, 4
    assert data["class"].tolist() == ["b", "d", "c", "e"]
    assert data["row"].tolist() == ["lowest csg"] * 2 + ["highest csg"] * 2
    assert figure.axes[0].get_ylabel() == "lowest\nCSG"
