"""The figures of the notebook on early stopping draw the right values at the right places."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from memlens.evaluation import plots
from memlens.evaluation.plots import stopping as draw
from memlens.tracking.peaks import STOPS

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed():
    with plots.styled():
        yield
    plt.close("all")


def line_of(ax, label):
    (found,) = [line for line in ax.get_lines() if line.get_label() == label]
    return found


def markers(ax):
    """Points of the lines that are markers alone, without the caps of error bars."""
    lines = [line for line in ax.get_lines() if line.get_linestyle() == "None"]
    lines = [line for line in lines if line.get_marker() not in ("|", "_")]
    return [tuple(point) for line in lines for point in line.get_xydata()]


def test_every_stop_has_a_name_a_colour_and_a_look_of_its_own():
    assert tuple(draw.STOP_NAMES) == STOPS
    looks = [plots.style_of(stop) for stop in STOPS]
    assert len({look["color"] for look in looks}) == len({look["marker"] for look in looks}) == 5


def test_training_curves_mark_the_stop_of_each_seed_on_its_own_curve():
    curves = {"val_loss": [[3.0, 1.0, 2.0], [5.0, 3.0, 1.0]], "weight_norm": [[1, 2, 1], [3, 2, 1]]}
    stops = {"val_loss": [1, 2], "weight_norm": [1, 0]}
    figure, data = draw.training_curves(curves, stops, cuts=(1, 2))
    loss, norm = figure.axes
    assert markers(loss) == [(1, 1.0), (2, 1.0)] and markers(norm) == [(1, 2.0), (0, 3.0)]
    assert [loss.get_title(loc="left"), norm.get_title(loc="left")] == [
        "validation loss", "weight norm"]  # fmt: skip
    assert loss.get_legend().get_texts()[0].get_text() == "lowest of each seed"
    assert norm.get_legend().get_texts()[0].get_text() == "peak of each seed"
    for ax in figure.axes:  # no dash without a label
        dashes = [line.get_xdata()[0] for line in ax.get_lines() if line.get_linestyle() == ":"]
        assert dashes == [1, 2] and [text.get_text() for text in ax.texts] == ["rate cuts"]
    marked = data[data["stop"]][["curve", "seed", "epoch", "value"]].values.tolist()
    assert marked == [["val_loss", 0, 1, 1.0], ["val_loss", 1, 2, 1.0],
                      ["weight_norm", 0, 1, 2.0], ["weight_norm", 1, 0, 3.0]]  # fmt: skip
    mean = data[(data["seed"] == "mean") & (data["curve"] == "val_loss")]
    assert mean["value"].tolist() == [4.0, 2.0, 1.5] and not mean["stop"].any()


def descent_table():
    rows = []
    for flipped in (0.0, 0.4):
        for rate in ("cut", "constant"):
            for curve in ("val_loss", "easiest_gradient"):
                base = 1 + flipped + (rate == "constant")
                values = {"epoch": [0, 1], "mean": [base, base / 2], "std": [0.1, 2 * base]}
                place = {"flipped": flipped, "rate": rate, "curve": curve}
                rows.append(pd.DataFrame(values).assign(**place))
    return pd.concat(rows, ignore_index=True)


def test_descents_have_a_row_a_curve_and_a_column_a_share_of_flips_on_one_scale():
    figure, data = draw.descents(descent_table(), cuts=(1,))
    axes = np.reshape(figure.axes, (2, 2))
    assert [ax.get_title(loc="left") for ax in axes[0]] == ["no flips", "40 % flipped"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["validation loss", "input gradient, easiest"]
    assert line_of(axes[0, 1], "rate constant").get_ydata().tolist() == [2.4, 1.2]
    assert line_of(axes[1, 0], "rate cut").get_ydata().tolist() == [1.0, 0.5]
    for row, scale in zip(axes, ("linear", "log"), strict=True):
        assert row[0].get_ylim() == row[1].get_ylim()
        assert {ax.get_yscale() for ax in row} == {scale}
    pd.testing.assert_frame_equal(data, descent_table())


def stop_rows():
    rows = [("default", 0.0, 0, "last", 2, 0.8), ("default", 0.0, 1, "last", 2, 0.6),
            ("default", 0.4, 0, "label_wave", 0, 0.3), ("strong", 0.0, 0, "best_val", 1, 0.5),
            ("strong", 0.4, 0, "best_val", 0, 0.4)]  # fmt: skip
    columns = ["variant", "flipped", "seed", "stop", "epoch", "accuracy"]
    return pd.DataFrame(rows, columns=columns)


def test_stops_are_drawn_in_the_panel_of_their_variant_and_share():
    keys = [("default", 0.0), ("default", 0.4), ("strong", 0.0), ("strong", 0.4)]
    accuracy = {key: [[0.1, 0.3, 0.5], [0.3, 0.5, 0.7]] for key in keys}
    figure, data = draw.stops_on_curves(accuracy, stop_rows())
    axes = np.reshape(figure.axes, (2, 2))
    assert markers(axes[0, 0]) == [(2, 0.8), (2, 0.6)] and markers(axes[0, 1]) == [(0, 0.3)]
    assert markers(axes[1, 0]) == [(1, 0.5)] and markers(axes[1, 1]) == [(0, 0.4)]
    np.testing.assert_allclose(
        line_of(axes[1, 1], "mean of the seeds").get_ydata(), [0.2, 0.4, 0.6]
    )
    assert len({ax.get_ylim() for ax in axes.flat}) == 1
    assert line_of(axes[0, 1], "Label Wave").get_marker() == plots.PALETTE["label_wave"][1]
    assert (data["seed"] == "mean").sum() == 4 * 3 and len(data) == 12 + len(stop_rows())
    assert not data.isna().any(axis=None)


def test_equal_length_compares_mean_costs_with_both_controls():
    stops = pd.DataFrame({"flipped": [0.0, 0.0, 0.4], "stop": ["last", "last", "best_val"],
                          "trained": [2, 4, 1], "accuracy": [0.5, 0.7, 0.9]})  # fmt: skip
    planned = {0.0: {1: [0.4, 0.6], 3: [0.8, 0.8]}, 0.4: {2: [0.1, 0.3]}}
    cut_off = {0.0: [[0.2, 0.4], [0.4, 0.6]], 0.1: [[0, 0]], 0.4: [[0.1, 0.1], [0.3, 0.3]]}
    figure, data = draw.equal_length(planned, cut_off, stops)
    clean, noisy = figure.axes
    assert clean.get_ylim() == noisy.get_ylim()
    np.testing.assert_allclose(line_of(clean, "planned for this length").get_xydata(),
                               [[1, 0.5], [3, 0.8]])  # fmt: skip
    np.testing.assert_allclose(line_of(clean, "cut off after this length").get_xydata(),
                               [[1, 0.3], [2, 0.5]])  # fmt: skip
    np.testing.assert_allclose(markers(clean), [(3, 0.6)])
    np.testing.assert_allclose(markers(noisy), [(1, 0.9)])
    one = data[(data["name"] == "best_val")].iloc[0]  # a single seed has no spread, and is kept
    assert one["mean"] == 0.9 and np.isnan(one["std"])
    assert data["flipped"].tolist() == [0.0] * 5 + [0.4] * 4


def test_scores_at_stops_are_means_over_seeds_in_the_order_given():
    index = pd.MultiIndex.from_product([["last", "label_wave"], [0, 1]], names=["stop", "seed"])
    table = pd.DataFrame({"csl": [0.1, 0.3, 0.5, 0.7], "csg": [0.2, 0.2, 0.8, 0.6]}, index=index)
    figure, data = draw.scores_at_stops({"a": table, "b": 1 - table}, ["first", "second"])
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["last epoch", "Label Wave"]
    assert [left.get_xlabel(), right.get_xlabel()] == ["first", "second"]
    np.testing.assert_allclose([x for x, _ in markers(left)], [0.2, 0.6, 0.2, 0.7])  # csl, then csg
    low, high = left.get_xlim()
    assert low < 0.2 - np.std([0.1, 0.3], ddof=1) and high > 0.7
    first = data[(data["panel"] == "a") & (data["stop"] == "label_wave")]
    np.testing.assert_allclose(first["mean"], [0.6, 0.7])
    np.testing.assert_allclose(first["std"], np.std([[0.5, 0.7], [0.8, 0.6]], axis=1, ddof=1))
    assert left.get_legend() is None and right.get_legend() is None
    (legend,) = left.figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {"CSL", "CSG"}


def test_scores_of_one_seed_are_drawn_without_spread():
    index = pd.MultiIndex.from_tuples([("last", 0)], names=["stop", "seed"])
    _, data = draw.scores_at_stops({"a": pd.DataFrame({"csl": [0.5]}, index=index)}, ["x"])
    assert data["mean"].tolist() == [0.5] and data["std"].isna().all()


def test_reliability_shows_how_few_predictions_a_bin_holds():
    table = pd.DataFrame({"left": [0.0, 0.5], "right": [0.5, 1.0], "confidence": [np.nan, 0.9],
                          "accuracy": [np.nan, 0.6], "n": [0, 8]}).rename_axis("bin")  # fmt: skip
    other = table.assign(n=[2, 6], confidence=[0.4, 0.9], accuracy=[0.5, 0.6])
    figure, data = draw.reliability_by_stop({"best_val": table, "last": other})
    upper, lower = np.reshape(figure.axes, (2, 2))
    assert [ax.get_title(loc="left") for ax in upper] == ["validation loss", "last epoch"]
    assert [bar.get_height() for bar in upper[0].patches] == [0.6]  # an empty bin has no accuracy
    assert [bar.get_height() for bar in lower[1].patches] == [0.25, 0.75]
    assert lower[0].get_ylim() == lower[1].get_ylim()
    assert data["stop"].tolist() == ["best_val"] * 2 + ["last"] * 2 and data["n"].sum() == 16


def test_head_and_tail_share_one_axis_and_keep_the_order_of_the_groups():
    index = pd.MultiIndex.from_product([["all", "tail"], ["last", "best_val"]])
    errors = pd.DataFrame({"ece": [0.1, 0.2, 0.3, 0.4], "uce": [0.5, 0.6, 0.7, 0.8]}, index=index)
    figure, data = draw.head_and_tail(errors.rename_axis(["group", "stop"]))
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["all", "tail"]
    assert left.get_xlim() == right.get_xlim() and right.get_xlim()[1] > 0.8
    assert [x for x, _ in markers(right)] == [0.5, 0.7, 0.6, 0.8]  # last, then lowest loss
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["last epoch", "validation loss"]
    tail = data[(data["measure"] == "uce") & (data["group"] == "tail")]
    assert tail[["stop", "error"]].values.tolist() == [["last", 0.7], ["best_val", 0.8]]
