"""The figures of notebook 08 draw the printed numbers, all of them."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hand_made import title_of
from matplotlib.colors import to_hex

from memlens.evaluation.plots import discrepancies as draw


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_equal_values_are_joined():
    rows = [("A", "old", 0.01, 0.9), ("A", "old", 0.02, 0.95), ("A", "new", 0.1, 0.9),
            ("B", "old", 0.01, 0.7), ("B", "new", 0.1, 0.8)]  # fmt: skip
    values = pd.DataFrame(rows, columns=["dataset", "source", "noise", "auroc"])
    figure, data = draw.shifted_columns(values, {"A": [(0.01, 0.1)], "B": []})
    dotted = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert list(dotted[0].get_xdata()) == [0.01, 0.1]
    assert list(dotted[0].get_ydata()) == [0.9, 0.9]
    assert [title_of(ax) for ax in figure.axes] == ["A", "B"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    pd.testing.assert_frame_equal(data, values)


def test_arrows_lead_to_the_exchanged_values():
    table = pd.DataFrame({"pearson": [0.3, 0.7, 0.5], "cosine": [0.9, 0.4, 0.6]}, ["a", "b", "c"])
    grid = np.linspace(0, 1, 101)
    figure, data = draw.possible_pairs(table, grid * 0.5, grid, {"a": 0.7, "b": 0.3})
    points = [tuple(p.get_offsets()[0]) for p in figure.axes[0].collections[1:]]
    assert points == [(0.5, 0.6), (0.3, 0.9), (0.7, 0.9), (0.7, 0.4), (0.3, 0.4)]
    assert data["moved_to"].fillna(-1).tolist() == [0.7, 0.3, -1]


def test_the_bins_that_sums_need():
    table = pd.DataFrame({"mce": [0.2], "msce": [0.4], "uce": [2.0]}, ["early stop"])
    figure, data = draw.bin_sums(table, [10, 15])
    assert data["least_bins"].tolist() == [pytest.approx(10)]
    widths = [patch.get_width() for patch in figure.axes[0].patches]
    assert widths == [0.2, 0.4, 2.0]
    marked = [line.get_xdata()[0] for line in figure.axes[1].lines]
    assert marked == [10, 15]
    assert figure.axes[1].collections[0].get_offsets()[0, 0] == pytest.approx(10)


def test_scores_below_a_constant_are_red():
    table = pd.DataFrame({"all": [0.8, 0.3], "top": [0.99, np.nan]}, ["csl", "final_loss"])
    figure, data = draw.cosine_of_a_constant(table, {"all": 0.6, "top": 0.9998})
    colors = [to_hex(c) for c in figure.axes[0].collections[0].get_facecolor()]
    assert colors == [draw.BLUE.lower(), draw.RED.lower()]
    assert figure.axes[0].lines[0].get_xdata()[0] == 0.6
    assert data.loc["constant"].tolist() == [0.6, 0.9998]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["CSL", "final loss"]


def test_marked_scores_are_named():
    table = pd.DataFrame(
        {"source": ["poster", "Table 6", "Table 6"], "score": ["csl", "csl", "forgetting"],
         "cosine": [0.93, 0.83, 0.93], "pearson": [0.4, 0.73, 0.05],
         "marked": [False, False, True]}
    )  # fmt: skip
    figure, data = draw.top_pairs(table, 0.07)
    sizes = [len(points.get_offsets()) for points in figure.axes[0].collections]
    assert sorted(sizes) == [1, 2]
    assert "forgetting" in [text.get_text() for text in figure.axes[0].texts]
    assert figure.axes[0].lines[0].get_ydata()[0] == 0.07
    assert len(data) == 3


def test_a_line_a_source():
    values = pd.DataFrame({"source": ["a", "a", "b", "c"], "noise": [0.01, 0.1, 0.01, 0.1],
                           "auroc": [0.9, 0.85, 0.98, 0.99]})  # fmt: skip
    figure, _ = draw.auroc_by_source(values)
    drawn = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert drawn == {"a": [0.9, 0.85], "b": [0.98], "c": [0.99]}


def test_attacks_that_model_more_are_solid():
    auroc = pd.DataFrame({"early stop": [70.0, 56.0], "last epoch": [79.0, 86.0]}, ["mast", "lira"])
    figure, data = draw.attack_order(auroc, ["lira"])
    assert [line.get_linestyle() for line in figure.axes[0].lines] == ["--", "-"]
    assert list(figure.axes[0].lines[1].get_ydata()) == [56, 86]
    assert data["modelled"].tolist() == [False, True]


def test_three_seeds_and_their_mean():
    table = pd.DataFrame({"mean": [0.7], "std": [0.14], "equal": [0.8], "apart": [0.5]}, ["20 %"])
    figure, _ = draw.one_seed_apart(table)
    places = [points.get_offsets()[0, 0] for points in figure.axes[0].collections[-2:]]
    assert places == [0.8, 0.5]
    bar = figure.axes[0].collections[0].get_segments()[0]
    np.testing.assert_allclose(bar[:, 0], [0.56, 0.84])


def test_a_pair_is_drawn_with_its_mean():
    rows = [("seal", "otter", 0.6, 0.4), ("girl", "baby", 0.5, 0.7)]
    columns = ["label", "other_label", "memorization", "other_memorization"]
    pairs = pd.DataFrame(rows, columns=columns)
    figure, data = draw.duplicate_pairs(pairs, 0.65, 1.0)
    np.testing.assert_allclose(data["mean"], [0.5, 0.6])
    means = figure.axes[0].collections[-1].get_offsets()
    np.testing.assert_allclose(means, [[0.5, 0], [0.6, 1]])
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == [0.65, 1.0]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["seal, otter", "girl, baby"]
