"""Figures of notebook 06, drawn from tables small enough to know every number."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from memlens.evaluation import plots
from memlens.evaluation.plots import optimizers as draw


@pytest.fixture(autouse=True)
def closed():
    plots.apply_style()
    yield
    plt.close("all")


def series(norms, start=np.nan):
    """Curves of two epochs; column 0 is before training."""
    return {
        "input_gradient": np.array([[np.nan, 2.0, 1.0], [np.nan, 4.0, 1.0]]),
        "input_gradient_top": np.array([[np.nan, 3.0, 3.0], [np.nan, 3.0, 6.0]]),
        "weight_norm": np.array(norms, dtype=float),
        "val_loss": np.array([[np.nan, 1.0, 2.0], [np.nan, 1.0, 3.0]]),
    }


CURVES = {"sgd": series([[4, 5, 4], [8, 10, 6]]), "adam": series([[1, 2, 4], [1, 2, 4]])}
PEAKS = pd.DataFrame({
    "variant": ["sgd", "sgd", "adam", "adam"], "input_gradient": [1.0, 1.0, 1.0, np.nan],
    "weight_norm": [1.0, 3.0, np.nan, np.nan],
})  # fmt: skip


def test_curves_are_shares_of_each_runs_own_extreme():
    figure, data = draw.training_curves(CURVES, PEAKS)
    means = data.set_index(["variant", "series", "epochs done"])["mean"].sort_index()
    assert means["sgd", "input_gradient", 1] == 1  # of both runs the highest
    assert means["sgd", "input_gradient", 2] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert means["sgd", "weight_norm", 0] == pytest.approx(0.8)
    assert means["sgd", "weight_norm", 2] == pytest.approx((4 / 5 + 6 / 10) / 2)
    assert means["adam", "val_loss", 2] == pytest.approx(2.5)
    assert np.isnan(means["adam", "val_loss", 0])  # not known, and not dropped
    assert data["n_seeds"].eq(2).all()
    assert len(data) == 2 * 4 * 3
    axes = np.reshape(figure.axes, (3, 2))
    for row, names in zip(axes, (["input_gradient", "input_gradient_top"], ["weight_norm"],
                                 ["val_loss"]), strict=True):  # fmt: skip
        for ax, variant in zip(row, CURVES, strict=True):
            lines = [line for line in ax.get_lines() if len(line.get_xdata()) > 2
                     or line.get_marker() != "None"]  # fmt: skip
            assert len(lines) == len(names)
            for line, name in zip(lines, names, strict=True):
                known = means[variant, name].dropna()
                assert line.get_xdata().tolist() == known.index.tolist()
                assert line.get_ydata() == pytest.approx(known.to_numpy())
    assert axes[0, 0].get_title(loc="left") == "SGD"


def test_peaks_are_marked_where_most_runs_have_one_and_said_to_be_missing_elsewhere():
    figure, _ = draw.training_curves(CURVES, PEAKS)
    axes = np.reshape(figure.axes, (3, 2))
    said = [[text.get_text() for text in ax.texts] for ax in axes[:2].ravel()]
    assert said == [["peak: 1"], ["no peak called"], ["peak: 2"], ["no peak called"]]
    for row in axes:
        assert row[0].get_ylim() == row[1].get_ylim()
    assert axes[2, 0].get_ylim()[1] == 2.2


def test_adam_printed_and_ours_stand_on_one_axis():
    printed = pd.DataFrame({"share": [0.1, 0.5], "printed": [0.9, 1.0]})
    ours = np.array([[4.0, 2.0], [5.0, 1.0]])
    figure, data = draw.adam_by_share(printed, ours, cut=0.6)
    assert data.query("series == 'printed'")["mean"].tolist() == [0.9, 1.0]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert lines["printed"].get_xdata().tolist() == [0.1, 0.5]
    assert lines["ours"].get_ydata() == pytest.approx([1.0, 0.35])
    assert lines["ours"].get_xdata().tolist() == [0.5, 1.0]
    assert figure.axes[0].get_ylim()[0] == -0.06  # room for the label of the last value


def test_tables_share_one_colour_scale():
    low, high = (pd.DataFrame({"sgd": [v]}, index=["csg"]) for v in (0.1, 0.9))
    figure, data = draw.score_maps({"ours": low, "paper": high})
    limits = [ax.collections[0].get_clim() for ax in figure.axes]
    assert limits == [(0.1, 0.9)] * 2
    assert data.loc[("paper", "csg"), "sgd"] == 0.9
    square = pd.DataFrame([[0.5, 0.25], [0.25, 0.75]], index=["mlp", "cnn"], columns=["mlp", "cnn"])
    figure, data = draw.architectures({"all": square, "top": square / 2, "ratio": square})
    assert [ax.collections[0].get_clim() for ax in figure.axes] == [(0, 1)] * 3
    assert data.loc[("top", "cnn"), "mlp"] == 0.125
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown == ["0.50", "0.25", "0.25", "0.75"]


def cells():
    rows = [
        (0.1, 0.0, "called", -10.0, 0.005), (0.2, 0.0, "called", 3.0, 0.02),
        (0.1, 0.01, "called", 4.0, 0.2), (0.2, 0.01, "no peak", np.nan, np.nan),
        (0.4, 0.0, "failed", np.nan, np.nan), (0.4, 0.01, "called", 0.0, 0.01),
    ]  # fmt: skip
    names = ["lr", "weight_decay", "state", "distance", "cost"]
    return pd.DataFrame(rows, columns=names).assign(stop="weight_norm", network="plain")


def test_cells_of_a_map_have_the_colour_of_their_cost_at_their_place():
    both = pd.concat([cells(), cells().assign(network="batch norm", state="failed")])
    figure, data = draw.stop_maps(both, marked=(0.2, 0.0))
    pd.testing.assert_frame_equal(data, both.reset_index(drop=True))
    ax, other = figure.axes
    (image,) = ax.get_images()
    classes = image.get_array()  # rows are decays from the lowest, columns are rates
    assert classes.tolist() == [[2, 3, 0], [4, 1, 2]]
    colours = image.to_rgba(np.arange(5))
    assert [tuple(c) for c in colours[2:]] == [to_rgba(c) for c in draw.COSTS.values()]
    assert tuple(colours[0]) == to_rgba(draw.FAILED)
    assert image.origin == "lower"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.1", "0.2", "0.4"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0", "0.01"]
    found = {(line.get_xdata()[0], line.get_ydata()[0]): line.get_marker()
             for line in ax.get_lines()}  # fmt: skip
    assert found == {(0, 0): "<", (1, 0): "o", (0, 1): ">", (2, 1): "o"}
    assert other.get_images()[0].get_array().min() == other.get_images()[0].get_array().max() == 0
    assert not other.get_lines()
    frames = [p for p in ax.patches if p.get_edgecolor() == to_rgba("black")]
    assert [frame.get_xy() for frame in frames] == [(0.5, -0.5)]


def test_classes_of_cost_and_place():
    assert draw.cost_class("failed", np.nan) == 0
    assert draw.cost_class("no peak", np.nan) == 1
    assert [draw.cost_class("called", c) for c in (0.0, 0.01, 0.0101, 0.03, 0.031)] == [
        2,
        2,
        3,
        3,
        4,
    ]
    assert [draw.side(d) for d in (-4, -3, 0, 3, 3.5)] == [
        "before",
        "near",
        "near",
        "near",
        "after",
    ]
