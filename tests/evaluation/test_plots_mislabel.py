"""The figures of notebook 04 draw the given numbers in the right places."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hand_made import title_of

from memlens.evaluation.plots import mislabel as draw

AUROC = pd.DataFrame({0.01: [0.9, 0.98], 0.1: [0.8, 0.96]}, index=["csg", "csl"])
PRECISION = pd.DataFrame({0.01: [0.2, 0.7], 0.1: [0.5, 1.0]}, index=["csg", "csl"])


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def names(ax, axis="y"):
    return [text.get_text() for text in getattr(ax, f"get_{axis}ticklabels")()]


def test_all_scores_are_sorted_by_their_mean_auroc_best_first():
    figure, data = draw.all_scores(AUROC, PRECISION)
    left, right = figure.axes
    assert names(left) == ["CSL", "CSG"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "1% flipped", "10% flipped"
    ]  # fmt: skip
    assert left.get_xscale() == "log" and left.get_ylim()[0] > left.get_ylim()[1]
    few, many = left.lines[:2]
    np.testing.assert_allclose(few.get_xdata(), [0.02, 0.1])
    np.testing.assert_allclose(many.get_xdata(), [0.04, 0.2])
    np.testing.assert_allclose(right.lines[0].get_xdata(), [0.7, 0.2])
    row = data.set_index(["score", "noise"]).loc[("csg", 0.1)]
    assert row["wrong_order"] == pytest.approx(0.2) and row["precision"] == 0.5


def test_two_measures_of_other_scores_are_refused():
    with pytest.raises(ValueError, match="differ in rows"):
        draw.all_scores(AUROC, PRECISION.iloc[::-1])
    four = pd.concat([AUROC] * 2, axis=1)
    with pytest.raises(ValueError, match="4 noise rates"):
        draw.all_scores(four, four)


def printed_table():
    rows = [
        ("csg", "cifar10", 0.05, 0.98, 0.001), ("csg", "cifar10", 0.1, 0.99, 0.001),
        ("csl", "cifar10", 0.05, 0.96, 0.001),
        ("csg", "clothes", 0.05, 0.9, 0.01), ("csg", "clothes", 0.1, 0.8, 0.01),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["method", "dataset", "noise", "mean", "std"])


def test_a_panel_for_each_method_with_printed_lines_and_ours():
    figure, data = draw.printed_and_ours(printed_table(), columns=2)
    first, second = figure.axes
    assert [title_of(first), title_of(second)] == ["CSG", "CSL"]
    lines = {line.get_label(): line for line in first.lines if "," in line.get_label()}
    assert list(lines) == ["cifar10, printed", "clothes, ours"]
    ours = lines["clothes, ours"]
    np.testing.assert_allclose(ours.get_xdata(), [5, 10])
    np.testing.assert_allclose(ours.get_ydata(), [0.1, 0.2])
    assert first.get_ylim() == second.get_ylim() and first.get_yscale() == "log"
    assert first.get_ylim()[0] < 0.01 < 0.2 < first.get_ylim()[1]
    np.testing.assert_allclose(data["wrong_order"], 1 - data["mean"])


def test_a_perfect_order_stays_within_the_axis():
    table = printed_table().assign(mean=[1.0, 0.99, 0.96, 0.9, 0.8])
    figure, data = draw.printed_and_ours(table, columns=2)
    assert data["wrong_order"].min() == 0
    printed = next(line for line in figure.axes[0].lines if "printed" in line.get_label())
    assert 0 < figure.axes[0].get_ylim()[0] < printed.get_ydata()[0] < 0.01


def test_flips_are_marked_in_each_histogram():
    scores = pd.DataFrame({"curvature": [0.01, 0.1, 1, 100], "csg": [0.1, 3.0, 1.0, 2.0]})
    flipped = [False, False, False, True]
    figure, data = draw.flips_in_histograms(scores, flipped)
    assert [ax.get_xlabel() for ax in figure.axes] == [
        "log10 of curvature", "log10 of CSG"
    ]  # fmt: skip
    assert data.groupby("panel")["n"].sum().tolist() == [4, 4]
    marked = data[data["n_marked"] > 0].set_index("panel")
    assert marked["n_marked"].tolist() == [1, 1]
    assert marked.loc["curvature", "right"] == 2.0
    assert marked.loc["csg", "left"] <= np.log10(2.0) <= marked.loc["csg", "right"]
    with pytest.raises(ValueError, match="no logarithm"):
        draw.flips_in_histograms(scores - 0.01, flipped)


def test_sums_by_epoch_have_means_over_seeds_and_stops_at_their_median():
    auroc = pd.DataFrame(
        [(0.1, "csl", seed, epoch, 0.9 + 0.02 * seed - 0.1 * epoch)
         for seed in (0, 1) for epoch in (0, 1)],
        columns=["noise", "score", "seed", "epoch", "auroc"],
    )  # fmt: skip
    stops = pd.DataFrame(
        [(0.1, 0, "last", 1), (0.1, 1, "last", 1), (0.1, 0, "label_wave", 0),
         (0.1, 1, "label_wave", 1), (0.1, 2, "label_wave", 0)],
        columns=["noise", "seed", "stop", "epoch"],
    )  # fmt: skip
    figure, data = draw.sums_by_epoch(auroc, stops)
    (ax,) = figure.axes
    assert title_of(ax) == "10% flipped" and ax.get_yscale() == "log"
    drawn = data[data["series"] == "csl"].set_index("epochs")
    np.testing.assert_allclose(drawn["mean"], [0.09, 0.19])
    assert drawn.index.tolist() == [1, 2] and (drawn["n_seeds"] == 2).all()
    stopped = data[data["series"].str.startswith("stop")].set_index("series")
    assert stopped["epochs"].to_dict() == {"stop: label_wave": 1.0, "stop: last": 2.0}
    assert stopped["mean"].to_dict() == pytest.approx(
        {"stop: label_wave": 0.09, "stop: last": 0.19}
    )
    marked = {
        line.get_label(): line.get_xydata()[0] for line in ax.lines if len(line.get_xdata()) < 2
    }
    np.testing.assert_allclose(marked["Label Wave"], [1, 0.09])
    np.testing.assert_allclose(marked["last epoch"], [2, 0.19])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["Label Wave", "last epoch"]


def test_boxes_hold_the_quantiles_of_their_group_in_the_given_order():
    group = pd.Categorical(["flipped"] * 5 + ["clean"] * 5, ["clean", "flipped"])
    samples = pd.DataFrame({"group": group, "gradient": [*range(10, 15), *range(1, 6)]})
    figure, data = draw.boxes_by_group(samples, {"gradient": "norm"}, logarithmic=["gradient"])
    (ax,) = figure.axes
    assert names(ax) == ["clean (5)", "flipped (5)"] and ax.get_xscale() == "log"
    assert data["group"].tolist() == ["clean", "flipped"]
    assert data["q50"].tolist() == [3, 12] and data["q25"].tolist() == [2, 11]
    assert data["n"].tolist() == [5, 5]
    assert ax.get_xlabel() == "norm"


def test_duplicates_are_sorted_by_our_first_column_and_keep_missing_prints():
    ours = pd.DataFrame({"both": [0.8, 0.9], "copy": [0.95, 0.99]}, index=["csg", "csl"])
    printed = pd.DataFrame({"CIFAR-10": [np.nan, 0.98]}, index=["csg", "csl"])
    figure, data = draw.duplicates_found(ours, printed)
    assert names(figure.axes[0]) == ["CSL", "CSG"]
    assert data["score"].tolist() == ["csl", "csg"]
    np.testing.assert_allclose(data["both"], [0.1, 0.2])
    np.testing.assert_allclose(data["CIFAR-10"], [0.02, np.nan])
    points = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points, [[0.1, 0], [0.2, 1]])


def test_the_highest_scores_come_first_and_twins_share_a_letter():
    images = np.zeros((6, 1, 2, 2), dtype=np.uint8)
    scores, labels = [0, 5, 4, 3, 2, 1], list("uvwxyz")
    pairs = np.array([[1, 3], [0, 2]])  # sample 0 is not among the four highest
    figure, data = draw.highest_with_duplicates(images, scores, labels, pairs, n=4)
    assert data["position"].tolist() == [1, 2, 3, 4]
    assert data["is_duplicate"].tolist() == [True, True, True, False]
    assert data["pair"].tolist() == ["A", "", "A", ""]
    titles = [title_of(ax) for ax in figure.axes if title_of(ax)]
    assert titles == ["A #1\nv", "#2\nw", "A #3\nx", "#4\ny"]
    framed = [ax.get_frame_on() for ax in figure.axes][:4]
    assert framed == [True, True, True, False]
