"""Each figure of notebook 07 draws the right values at the right places."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from memlens.evaluation.plots import label_of, style_of, styled
from memlens.evaluation.plots import privacy as draw


@pytest.fixture(autouse=True)
def style():
    with styled():
        yield
    plt.close("all")


def title(ax):
    return ax.get_title("left") + ax.get_title()


def lines(ax):
    """The points of each named line, as lists."""
    return {line.get_label(): line.get_xydata().tolist() for line in ax.get_lines()
            if not line.get_label().startswith("_")}  # fmt: skip


def bars_of(ax):
    """Names, points and bar ends of the error bars."""
    return {bar.get_label(): (bar[0].get_xydata(), *[lines.get_segments() for lines in bar[2]])
            for bar in ax.containers}  # fmt: skip


def test_log_odds_of_networks_with_and_without_a_sample():
    phi = np.array([[0.0, 3.0], [1.0, 4.0], [8.0, 5.0], [10.0, 5.0]])
    mask = np.array([[0, 1], [0, 0], [1, 1], [1, 0]], dtype=bool)
    figure, data = draw.log_odds(phi, mask, np.array([9.0, 4.5]), ["hard", "easy"], n_bins=2)
    assert data["panel"].tolist() == ["hard", "hard", "easy", "easy"]
    assert data["n_with"].tolist() == [0, 2, 1, 1]
    assert data["n_without"].tolist() == [2, 0, 0, 2]
    assert data["attacked"].tolist() == [9.0, 9.0, 4.5, 4.5]
    for ax, name in zip(figure.axes, ["hard", "easy"], strict=True):
        heights = [patch.get_height() for patch in ax.patches]
        part = data[data["panel"] == name]
        assert heights == [*part["n_without"], *part["n_with"]]
        assert ax.get_lines()[0].get_xdata()[0] == part["attacked"].iloc[0]


def test_attacks_at_stops_share_one_scale_with_the_printed_values():
    index = pd.MultiIndex.from_product(
        [["best_val", "last"], [0, 1], ["yeom", "lira"]], names=["stop", "target", "attack"]
    )
    auroc = pd.Series([0.5, 0.58, 0.6, 0.62, 0.6, 0.65, 0.7, 0.75], index)
    printed = pd.DataFrame({"last": [0.9], "best_val": [0.8]}, index=["lira"])
    rows = ["lira", "yeom"]
    figure, data = draw.attacks_by_stop(auroc, printed, rows, ours="ours", theirs="paper")
    left, right = figure.axes
    assert left.get_xlim() == right.get_xlim() and right.get_xlim()[1] > 0.9
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["LiRA", "Yeom"] and [title(left), title(right)] == ["ours", "paper"]
    drawn = bars_of(left)
    assert [*drawn] == ["best val", "last"]
    assert drawn["last"][0][:, 0] == pytest.approx([0.7, 0.65])
    half = 0.1 / 2**0.5
    assert drawn["last"][1][0][:, 0] == pytest.approx([0.7 - half, 0.7 + half])
    assert [*bars_of(right)] == ["best val", "last"]
    assert data.loc["lira", "printed_last"] == 0.9 and np.isnan(data.loc["yeom", "printed_last"])
    assert data.loc["yeom", "std_best_val"] == pytest.approx(half)


def test_roc_curves_begin_at_one_false_positive():
    members = np.array([[1, 1, 0, 0], [1, 1, 0, 0]], dtype=bool)
    perfect, turned = members * 1.0, 1.0 - members
    figure, data = draw.roc_at_low_rates(
        members, {"last": {"lira": perfect, "yeom": turned}, "best_val": {"lira": perfect}}
    )
    assert data["fpr"].min() == pytest.approx(0.25)
    found = data.set_index(["panel", "series"])["tpr"]
    assert (found["last", "lira"] == 1).all()
    assert found["last", "yeom"].tolist()[:-1] == [0.0] * 39
    assert found["last", "yeom"].iloc[-1] == 1
    assert {ax.get_xlim() for ax in figure.axes} == {(0.25, 1.0)}
    assert [title(ax) for ax in figure.axes] == ["last epoch", "validation loss"]


def test_strength_starts_where_an_attack_is_defined():
    table = pd.DataFrame({1: [np.nan, 0.6], 2: [0.7, 0.65], 64: [0.9, 0.7]}, ["lira", "rmia"])
    figure, data = draw.strength_by_references({"AUROC": table}, chance={"AUROC": 0.5})
    drawn = lines(figure.axes[0])
    assert drawn["LiRA"] == [[2, 0.7], [64, 0.9]]
    assert drawn["RMIA"] == [[1, 0.6], [2, 0.65], [64, 0.7]]
    assert data.loc[data["series"] == "lira", "n_references"].tolist() == [2, 64]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1", "2", "64"]
    unresolved = {"AUROC": table, "TPR": table * np.nan}
    figure, data = draw.strength_by_references(unresolved, chance={"AUROC": 0.5, "TPR": 0.01})
    assert len(figure.axes[1].get_lines()) == 1 and data["panel"].unique().tolist() == ["AUROC"]


def test_auroc_by_bin_has_the_bounds_of_its_table():
    table = pd.DataFrame({"value": [0.0, 0.9], "auroc": [0.5, 0.9], "auroc_low": [0.4, 0.85],
                          "auroc_high": [0.7, 0.92]})  # fmt: skip
    figure, data = draw.auroc_by_bin(
        {"memorization": {"lira": table}, "csg": {"lira": table + 0.0}}
    )
    points, ends = bars_of(figure.axes[0])["LiRA"]
    assert points.tolist() == [[0.0, 0.5], [0.9, 0.9]]
    assert ends[0][:, 1] == pytest.approx([0.4, 0.7])
    assert data[["panel", "series"]].drop_duplicates().to_numpy().tolist() == [
        ["memorization", "lira"], ["csg", "lira"]
    ]  # fmt: skip
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert [ax.get_xscale() for ax in figure.axes] == ["linear", "log"]


def test_distances_are_means_of_each_bin():
    distance = np.array([[1.0, 3.0, 5.0, 7.0], [3.0, 5.0, 7.0, 9.0]])  # means 2, 4, 6, 8
    score = np.array([0.0, 0.1, 0.5, 1.0])
    edges = {"csg": [0, 0.5, 1]}
    figure, data = draw.distance_by_bin(distance, {"csg": score}, edges)
    assert data["mean"].tolist() == [3.0, 7.0]
    assert data["value"].tolist() == [0.05, 0.75] and data["n_samples"].tolist() == [2, 2]
    assert data["std"].tolist() == pytest.approx([2**0.5, 2**0.5])
    assert figure.axes[0].get_ylim()[0] == 0
    distance[0, 2] = np.nan
    with pytest.raises(ValueError, match="1 distances are NaN"):
        draw.distance_by_bin(distance, {"csg": score}, edges)


def test_the_best_score_at_the_top_comes_first():
    mean = pd.DataFrame({"top 1 %": [0.2, 0.9], "top 5 %": [0.3, 0.5]}, index=["csl", "lt_iqr"])
    figure, data = draw.precision_at_the_top(mean, mean * 0.1, chance=0.1)
    assert data.index.tolist() == ["lt_iqr", "csl"]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [label_of("lt_iqr"), label_of("csl")]
    assert bars_of(figure.axes[0])["top 1 %"][0][:, 0].tolist() == [0.9, 0.2]
    assert data.loc["csl", "std_top 5 %"] == pytest.approx(0.03)


def test_the_trade_shows_stops_beside_fixed_lengths():
    fixed = pd.DataFrame({"epochs": [2, 10], "accuracy": [0.7, 0.8], "auroc": [0.52, 0.64]})
    stops = pd.DataFrame(
        {"epochs": [7.5], "accuracy": [0.78], "auroc": [0.6], "auroc_std": [0.03]},
        index=["input_gradient"],
    )
    figure, data = draw.trade(fixed, stops)
    left, right = figure.axes
    assert lines(left)["fixed length"] == [[2, 0.52], [10, 0.64]]
    assert lines(right)["fixed length"] == [[0.7, 0.52], [0.8, 0.64]]
    assert bars_of(right)["sample gradient"][0].tolist() == [[0.78, 0.6]]
    assert left.containers[0][0].get_color() == style_of("input_gradient")["color"]
    assert [text.get_text() for text in right.texts] == ["2", "10"]
    assert len(data) == 3 and left.get_ylim() == right.get_ylim()
