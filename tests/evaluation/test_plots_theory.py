"""The figures of notebook 01 draw the numbers that they are given, all of them."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from memlens.evaluation import plots
from memlens.evaluation.plots import theory as draw


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def shares(factor):
    levels = np.linspace(0.1, 0.9, 5) * factor
    return pd.DataFrame(
        {"all_weights": levels, "first_layer": 2 * levels, "first_layer_spectral": 3 * levels}
    )


def test_the_percentiles_of_each_bound_are_means_over_seeds():
    figure, data = draw.bound_percentiles({"MLP": [shares(1), shares(3)], "CNN": [shares(1)] * 2})
    middle = data[data["percentile"] == 50].set_index(["panel", "series"])["mean"]
    assert middle["MLP", "all_weights"] == pytest.approx(0.5 * 2)
    assert middle["CNN", "first_layer_spectral"] == pytest.approx(1.5)
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata()[[0, 50, 100]], [0.2, 1.0, 1.8])
    low, high = figure.axes[0].get_ylim()
    assert figure.axes[1].get_ylim() == (low, high)
    assert high > data["mean"].max()


def test_a_share_without_a_bound_is_refused_and_one_without_a_gradient_left_out():
    with pytest.raises(ValueError, match="CNN has an infinite share"):
        draw.bound_percentiles({"CNN": [shares(np.inf)]})
    with_nan = pd.concat([shares(1), shares(np.nan)])
    _, data = draw.bound_percentiles({"MLP": [with_nan], "CNN": [shares(1)]})
    parts = [part["mean"].to_numpy() for _, part in data.groupby("panel")]
    np.testing.assert_allclose(*parts)


def test_patches_are_drawn_with_their_sums():
    board = np.array([[1.0, -1.0], [-1.0, 1.0]])
    figure, data = draw.cancelling_patches(board, np.full((2, 2), -0.25), -0.25 * board)
    texts = [ax.get_xlabel() for ax in figure.axes]
    assert texts == ["sum 0.000, norm 2.000", "sum -1.000, norm 0.500", "sum 0.000, norm 0.500"]
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), -0.25 * board)
    assert data[["row", "column"]].values.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert data["by_patch"].tolist() == [-0.25, 0.25, 0.25, -0.25]


def test_the_dashed_line_is_the_mean_so_far():
    easy = pd.DataFrame({"gradient": [1.0, 0.0, 0.0], "loss": [2.0, 0.0, 1.0]})
    hard = pd.DataFrame({"gradient": [1.0, 3.0, 5.0], "loss": [2.0, 4.0, 6.0]})
    figure, data = draw.easy_and_hard(easy, hard)
    solid, dashed = (line.get_ydata() for line in figure.axes[0].lines[2:4])
    assert list(solid) == [1, 3, 5] and list(dashed) == [1, 2, 3]
    rows = data[(data["signal"] == "loss") & (data["sample"] == "easy")]
    assert rows["mean_so_far"].tolist() == [2, 1, 1] and rows["epoch"].tolist() == [0, 1, 2]


def test_the_shares_of_a_threshold_are_stacked_in_order():
    sweep = pd.DataFrame(
        {"at_once": [0.1, 0.6], "later": [0.2, 0.3], "never": [0.7, 0.1], "first": [0.5, np.nan],
         "for_good": [0.6, 0.8]},
        index=pd.Index([0.01, 1.0], name="threshold"),
    )  # fmt: skip
    figure, data = draw.threshold_sweep(sweep, 0.9)
    bands = [band.get_paths()[0].vertices for band in figure.axes[0].collections]
    tops = [band[band[:, 0] == 1.0][:, 1].max() for band in bands]
    np.testing.assert_allclose(tops, [0.6, 0.9, 1.0])
    assert to_hex(figure.axes[0].collections[1].get_facecolor()[0]) == "#882255"
    assert list(data["share_form"]) == [0.9, 0.9]
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), [0.5, np.nan])


def test_the_guide_falls_with_the_root():
    by_length = pd.DataFrame({10: [1.0, 3.0], 40: [2.0, 2.0]})
    running = pd.DataFrame({0: [1.0, 2.0], 1: [3.0, 4.0]})
    figure, data = draw.convergence(by_length, running)
    table = data.set_index(["panel", "series", "x"])
    assert table.loc[("lengths", "measured", 10), "mean"] == 2
    assert table.loc[("lengths", "measured", 10), "n_seeds"] == 2
    assert table.loc[("lengths", "root of T", 40), "mean"] == pytest.approx(1)
    assert table.loc[("within one", "measured", 2), "mean"] == 3
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_each_theorem_has_its_panel_and_its_axes():
    x = np.linspace(0, 1, 100)
    groups = {"a": plots.binned(x, 2 * x), "b": plots.binned(x, x**2)}
    names = {"a": ("learning_time_share", "csg"), "b": ("csl", "memorization")}
    figure, data = draw.group_means(groups, names)
    assert [ax.get_visible() for ax in figure.axes] == [True, True, False]
    assert figure.axes[0].get_xlabel() == "learning time"
    assert figure.axes[1].get_ylabel() == "mean memorization"
    points = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points, groups["a"][["x_mean", "y_mean"]])
    assert data.groupby("panel").size().to_dict() == {"a": 15, "b": 15}
    assert set(data.loc[data["panel"] == "b", "y"]) == {"memorization"}


def test_the_losses_are_drawn_against_a_guess():
    losses = pd.DataFrame({"largest": [4.0, 3.0], "median": [1.0, 0.5]})
    figure, data = draw.largest_losses(losses, 2.3)
    drawn = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert drawn["largest"] == [4, 3] and drawn["median"] == [1, 0.5]
    assert drawn["uniform guess"] == [2.3, 2.3] and list(data["guess"]) == [2.3, 2.3]
