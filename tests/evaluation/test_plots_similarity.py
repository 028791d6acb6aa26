"""The figures of notebook 02 draw the numbers that they are given, each at its place."""

from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest

from memlens.evaluation import plots
from memlens.evaluation.plots import similarity as draw

pytestmark = pytest.mark.usefixtures("house_style")


def labels(axis):
    return [tick.get_text() for tick in axis.get_ticklabels()]


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


TRUTH = pd.DataFrame(
    {"memorization": [0.0, 0.5, 1.0], "standard_error": [0.0, 0.1, 0.2],
     "first_half": [0.0, 0.4, 1.0], "second_half": [0.0, 0.6, 1.0]}, index=[10, 11, 12]
)  # fmt: skip
LEFT_OUT = pd.DataFrame({"memorization": [0.9, 0.3], "standard_error": [0.05, 0.1]}, index=[12, 11])


def test_the_truth_is_drawn_beside_its_halves_and_the_samples_left_out():
    figure, data = draw.truth_and_ceiling(TRUTH, LEFT_OUT)
    counts, halves, left_out = figure.axes
    assert [bar.get_height() for bar in counts.patches if bar.get_height()] == [1, 1, 1]
    np.testing.assert_allclose(halves.collections[0].get_offsets(), [[0, 0], [0.4, 0.6], [1, 1]])
    assert (
        halves.texts[0].get_text() == f"Pearson {np.corrcoef([0, 0.4, 1], [0, 0.6, 1])[0, 1]:.3f}"
    )
    rows = data[data["panel"] == "left out"].set_index("sample")
    assert rows.loc[12, ["x", "y", "x_error", "y_error"]].tolist() == [0.9, 1.0, 0.1, 0.4]
    assert left_out.get_xlabel() == "leaving out this sample alone"


def test_a_truth_without_halves_is_a_histogram():
    figure, data = draw.truth_and_ceiling(TRUTH[["memorization"]])
    assert len(figure.axes) == 1 and data["n"].sum() == 3


RECORDED = pd.DataFrame([[0.7, 0.9], [0.3, 0.3]], index=["csl", "csg"])
POSTHOC = pd.DataFrame([[0.1, 0.3], [0.6, 0.8]], index=["csg", "csl"])
LEAK = pd.DataFrame({"network": ["mlp", "mlp", "mlp_bn"], "own": [1.0, 2.0, 1e-4],
                     "batch": [1.0, 2.0, 0.1]})  # fmt: skip


def test_the_two_ways_stand_in_the_row_of_their_score():
    figure, data = draw.two_ways(RECORDED, POSTHOC, LEAK)
    ax = figure.axes[0]
    assert labels(ax.yaxis) == ["CSL", "CSG"]
    drawn = {c.get_label(): c.lines[0].get_xdata().tolist() for c in ax.containers}
    assert {name: np.round(x, 9).tolist() for name, x in drawn.items()} == {
        "recorded during training": [0.8, 0.3], "post-hoc": [0.7, 0.2]}  # fmt: skip
    rows = data[data["panel"] == "pearson"].set_index(["series", "name"])
    np.testing.assert_allclose(rows.loc[("post-hoc", "csl"), "std"], np.sqrt(0.02))
    gradients = data[data["panel"] == "gradients"]
    assert gradients["batch"].tolist() == [1.0, 2.0, 0.1]
    (leaked,) = [c for c in figure.axes[1].collections if c.get_label() == "MLP bn"]
    np.testing.assert_allclose(leaked.get_offsets(), [[1e-4, 0.1]])


SCORES = ["csg", "label_error", "csl"]
FAMILY = pd.Series({"label_error": "more", "csl": "free", "csg": "free", "unused": "other"})


def test_scores_stand_by_family_and_fall_within_it():
    whole = pd.DataFrame([[0.1, 0.3], [0.9, np.nan], [0.7, 0.7]], index=SCORES)
    top = pd.DataFrame([[0.5, 0.5], [-0.4, np.nan], [0.0, 0.2]], index=SCORES)
    printed = pd.DataFrame({"all": [0.72, np.nan, 0.79], "top": np.nan}, index=SCORES)
    figure, data = draw.every_score({"all": whole, "top": top}, printed, FAMILY)
    assert data.loc["all"].index.tolist() == ["csl", "csg", "label_error"]
    assert data.loc["top"].index.tolist() == ["csl", "csg", "label_error"]
    np.testing.assert_allclose(data.loc["all", "mean"], [0.7, 0.2, 0.9])
    assert np.isnan(data.loc[("all", "label_error"), "std"])  # of one seed
    np.testing.assert_allclose(data.loc["all", "printed"], [0.79, 0.72, np.nan])
    left, right = figure.axes
    assert left.get_xlim() == right.get_xlim() and left.get_xlim()[0] < -0.4
    assert labels(left.yaxis) == ["CSL", "CSG", "label error"]
    assert [round(bar.get_width(), 6) for bar in right.patches[:3]] == [0.1, 0.5, -0.4]


def test_the_map_has_its_colours_and_the_ladder_its_rungs():
    samples = pd.DataFrame({"confidence": [0.9, 0.1], "variability": [0.3, 0.0],
                            "memorization": [1.0, 0.0]}, index=[7, 8])  # fmt: skip
    ladder = pd.DataFrame({"held_out": [0.8, 0.9], "few": [0.85, 0.95]}, index=[3, 6])
    figure, data = draw.rivals(samples, ladder, {"one training": 0.7, "ceiling": np.nan})
    dots = figure.axes[0].collections[0]
    np.testing.assert_allclose(dots.get_offsets(), [[0, 0.9], [0.3, 0.1]])  # memorized on top
    assert dots.get_array().tolist() == [0.0, 1.0] and dots.get_clim() == (0, 1)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    np.testing.assert_allclose(lines["held out"], [0.8, 0.9])
    np.testing.assert_allclose(lines["few"], [0.85, 0.95])
    assert "one training" in texts(figure) and "ceiling" not in texts(figure)
    assert figure.axes[1].get_ylim()[0] < 0.7  # the reference is in view
    rungs = data[data["panel"] == "ladder"]
    assert rungs["networks"].tolist() == [3, 6, 3, 6]


def test_epochs_are_drawn_on_the_same_axes_with_the_marks_of_their_panel():
    epochs = np.arange(4)
    tables = {
        "a": plots.bands({"one": [[0.1, 0.2, 0.3, 0.4], [0.3, 0.4, 0.5, 0.6]]}, epochs),
        "b": plots.bands({"one": [-0.5, 0.0, 0.0, 0.9]}, epochs),
        "c": plots.bands({"one": [0.0, 0.0, np.nan, 0.1]}, epochs),
    }
    figure, data = draw.by_epoch(tables | {"d": tables["a"]}, {"b": {"peak": 2.0}})
    a, b, *_ = figure.axes
    assert a.get_ylim() == b.get_ylim() and a.get_ylim()[0] < -0.5 and a.get_ylim()[1] > 0.9
    np.testing.assert_allclose(a.lines[0].get_ydata(), [0.2, 0.3, 0.4, 0.5])
    assert [t.get_text() for t in b.texts if t.get_text() == "peak"] == ["peak"]
    assert "peak" not in [t.get_text() for t in a.texts]
    assert len(data) == 16 and data.loc[data["panel"] == "c", "mean"].isna().sum() == 1


def test_the_tail_is_the_share_of_the_sum_that_the_largest_hold():
    history = plots.bands(
        {"val_loss": [[3.0, 1.0, 2.0]], "curvature": [[1.0, np.nan, 4.0]]}, range(3)
    )
    scores = {"curvature": [0.0] * 9 + [8.0], "csl": [1.0] * 10}
    figure, data = draw.tail_and_dynamics(scores, history, 1.0)
    shares = data[data["panel"] == "shares"].set_index(["series", "largest"])["share"]
    assert shares["curvature"][0.1] == pytest.approx(1) and shares["csl"][0.1] == pytest.approx(0.1)
    curves = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    np.testing.assert_allclose(curves["val loss"], [3, 1, 2])
    np.testing.assert_allclose(curves["curvature"], [1, 4])  # the gap is joined
    assert figure.axes[1].get_yscale() == "log"
    assert "std" not in data or data["std"].isna().all()


def test_the_highest_images_come_first_in_every_row():
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1) * np.ones((1, 1, 2, 2), np.uint8)
    samples = SimpleNamespace(images=images, labels=np.array([0, 1, 2, 3]))
    rows = {"memorization": (samples, [0.1, 0.9, 0.5, 0.9]), "curvature": (samples, [4, 3, 2, 1])}
    names = ["shirt", "bag", "coat", "sandal"]
    figure, data = draw.highest_images(rows, names, n=3)
    assert data["position"].tolist() == [1, 3, 2, 0, 1, 2]
    assert data["value"].tolist() == [0.9, 0.9, 0.5, 4, 3, 2]
    shown = [ax.images[0].get_array()[0, 0] * 255 for ax in figure.axes]
    np.testing.assert_allclose(shown, [1, 3, 2, 0, 1, 2])
    assert [ax.get_title() for ax in figure.axes] == [names[i] for i in (1, 3, 2, 0, 1, 2)]
    assert [figure.axes[i].get_ylabel() for i in (0, 3)] == ["memorization", "curvature"]


def test_flipped_labels_are_marked_in_every_histogram():
    scores = {"curvature": [1.0, 10.0, 100.0, 0.0], "other": [1.0, 1.0, 2.0, 3.0]}
    figure, data = draw.flipped_labels(scores, np.array([False, False, True, False]))
    table = data[data["score"] == "curvature"]
    assert table["n"].sum() == 4 and table["n_marked"].sum() == 1
    assert table.loc[table["n_marked"] == 1, "right"].item() == pytest.approx(2)  # log10 of 100
    assert table["n"].iloc[0] == 2  # the 0 stands with the smallest that is above 0
    assert [ax.get_title("left") for ax in figure.axes] == ["curvature", "other"]


def test_cost_and_worth_share_the_rows_and_name_each():
    table = pd.DataFrame(
        {"cost": [0.5, 2.0], "compute_low": [0.1, np.nan], "compute_high": [0.3, np.nan],
         "pearson": [0.8, 0.9], "printed_pearson": [0.77, np.nan]}, index=["sgal", "label_error"]
    )  # fmt: skip
    figure, data = draw.cost_and_worth(table)
    cost, worth = figure.axes
    assert labels(cost.yaxis) == ["SGAL", "label error"] and cost.get_xscale() == "log"
    (ours,) = [c for c in cost.collections if c.get_label() == "measured here"]
    np.testing.assert_allclose(ours.get_offsets(), [[0.5, 0.25], [2.0, 1.25]])  # below the paper's
    assert [bar.get_width() for bar in worth.patches] == [0.8, 0.9]
    assert cost.get_ylim() == worth.get_ylim() == (1.6, -0.6)
    pd.testing.assert_frame_equal(data, table)
