"""Names along an axis: each row in its place, and legible from three rows to thirty-five."""

from functools import partial

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgba

from memlens.evaluation import charts, metrics, plots

TABLE = pd.DataFrame(
    {"mean": [0.8, 0.7, 0.4], "std": [0.01, np.nan, 0.05], "paper": [0.72, 0.79, np.nan]},
    index=["csg", "csl", "something_else"],
)
EFFECTS = pd.DataFrame(
    {"spearman": [0.5, -0.2, 0.1], "low": [0.4, -0.3, -0.1], "high": [0.6, -0.1, 0.3]},
    index=["brightness", "contrast", "stroke_width"],
)
DRAWINGS = {
    "heatmap": (charts.heatmap, EFFECTS),
    "heatmap without numbers": (partial(charts.heatmap, digits=None), EFFECTS),
    "bars": (partial(charts.bars, printed="paper"), TABLE),
    "bars in groups": (partial(charts.bars, groups=dict.fromkeys(TABLE.index, "all")), TABLE),
    "forest": (charts.forest, EFFECTS),
    "dots": (charts.dots, EFFECTS),
}
SCORES = [f"a_score_with_a_name_{i}" for i in range(35)]


pytestmark = pytest.mark.usefixtures("house_style")


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


def boxes(texts):
    """Where each text lies on the picture, in pixels; the figure has been drawn."""
    return [text.get_window_extent() for text in texts if text.get_text()]


def touching(found):
    """Pairs of boxes that share more than a pixel of width and of height."""
    pairs = [(a, b) for i, a in enumerate(found) for b in found[i + 1 :]]
    return [
        (a, b)
        for a, b in pairs
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_chart_returns_its_axes_draws_something_and_alters_nothing(name, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("showed the figure"))
    draw, frame = DRAWINGS[name]
    before, (figure, ax) = frame.copy(deep=True), plt.subplots()
    empty, settings = pixels(figure).copy(), dict(plt.rcParams)
    assert draw(ax, frame) is ax
    assert (pixels(figure) != empty).any()
    pd.testing.assert_frame_equal(frame, before, check_exact=True)
    assert plt.fignum_exists(figure.number)
    assert dict(plt.rcParams) == settings


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_chart_is_the_same_twice(name):
    draw, frame = DRAWINGS[name]
    first, second = plt.subplots(), plt.subplots()
    draw(first[1], frame), draw(second[1], frame)
    np.testing.assert_array_equal(pixels(first[0]), pixels(second[0]))


# heat maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
def test_heatmap_writes_the_numbers_into_their_cells(ax, signed):
    frame = pd.DataFrame([[0.5, -0.25], [np.nan, 1]], index=["csg", "csl"], columns=["adam", "sgd"])
    charts.heatmap(ax, frame, signed=signed)
    assert [text.get_text() for text in ax.texts] == ["0.50", "-0.25", "1.00"]
    np.testing.assert_array_equal(ax.collections[0].get_array().filled(np.nan), frame)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["Adam", "SGD"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["CSG", "CSL"]
    if signed:
        assert ax.collections[0].get_clim() == (-1, 1)


def test_limits_are_common_to_all_tables():
    tables = [pd.DataFrame({"a": [0.2, np.nan]}), pd.DataFrame({"b": [-0.7, 0.1], "c": [0, 0.3]})]
    assert charts.common_limits(tables) == (-0.7, 0.3)
    assert charts.common_limits(tables, signed=True) == (-0.7, 0.7)
    assert charts.common_limits(tables[:1], signed=True) == (-0.2, 0.2)
    with pytest.raises(ValueError, match="found 2 cells, none with a value"):
        charts.common_limits([tables[0] * np.nan])


@pytest.mark.parametrize("signed", [False, True])
def test_heat_maps_with_common_limits_give_a_value_one_colour(signed):
    tables = {"one": EFFECTS, "two": 2 * EFFECTS + 0.3}
    limits = charts.common_limits(tables.values(), signed=signed)
    axes = plt.subplots(1, 2)[1]
    plots.panels(axes, charts.heatmap, tables, limits=limits, signed=signed)
    assert [ax.collections[0].get_clim() for ax in axes] == [limits, limits]
    first, second = (ax.collections[0].to_rgba(0.4) for ax in axes)
    assert first == second
    apart = plt.subplots(1, 2)[1]
    plots.panels(apart, charts.heatmap, tables, signed=signed)
    first, second = (ax.collections[0].to_rgba(0.4) for ax in apart)
    assert first != second  # the check can fail


@pytest.mark.parametrize(("value", "digits", "wide", "narrow"), [
    (0.5, 2, "0.50", ".50"), (-0.25, 2, "-0.25", "-.25"), (1, 2, "1.00", "1.0"),
    (0.996, 2, "1.00", "1.0"), (-0.001, 2, "0.00", ".00"), (10.58, 2, "10.58", "10.6"),
    (-1, 1, "-1.0", "-1"), (0.04, 1, "0.0", ".0"), (7, 0, "7", "7"), (np.nan, 2, None, None),
])  # fmt: skip
def test_numbers_are_shortened_where_cells_are_narrow(value, digits, wide, narrow):
    for n, written in ((2, wide), (40, narrow)):
        frame = pd.DataFrame(np.full((2, n), -20.125)).add_prefix("c")
        frame.iloc[0, 0] = value
        ax = charts.heatmap(plt.subplots()[1], frame, digits=digits)
        drawn = {t.get_position(): t.get_text() for t in ax.texts}
        assert drawn.get((0.5, 0.5)) == written


def test_a_heat_map_of_35_scores_is_legible():
    values = np.random.default_rng(0).uniform(-1, 1, (35, 35)).round(2)
    frame = pd.DataFrame(values, SCORES, SCORES)
    figure, ax = plt.subplots(figsize=plots.figsize(2, 2, 0.9))
    charts.heatmap(ax, frame, signed=True)
    figure.canvas.draw()
    assert len(ax.texts) == 35 * 35 and not touching(boxes(ax.texts[:140]))
    assert min(text.get_fontsize() for text in ax.texts) >= 4.5
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [label.get_text() for label in labels] == [plots.label_of(s) for s in SCORES]
        assert not touching(boxes(labels))
        assert min(label.get_fontsize() for label in labels) >= 6
    cell = ax.get_window_extent().width / 35
    assert max(box.width for box in boxes(ax.texts)) <= cell


def test_names_shrink_where_rows_and_columns_are_narrow():
    figure, ax = plt.subplots(figsize=plots.figsize(2, 1, 1.0))
    charts.heatmap(ax, pd.DataFrame(np.zeros((35, 60)), SCORES).add_prefix("column_"), digits=None)
    figure.canvas.draw()
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert len(labels) in (35, 60) and not touching(boxes(labels))


def test_panels_of_one_figure_write_their_numbers_alike():
    # a layout that is made between two panels would measure their cells differently
    frame = pd.DataFrame(np.full((35, 7), 0.5), SCORES)
    axes = plt.subplots(1, 3, figsize=charts.listsize(35, 2), sharey=True)[1]
    plots.panels(axes, charts.heatmap, dict.fromkeys("abc", frame))
    looks = {(text.get_text(), text.get_fontsize()) for ax in axes for text in ax.texts}
    assert len(looks) == 1


def test_a_heat_map_without_numbers_has_a_colour_bar(ax):
    charts.heatmap(ax, EFFECTS, digits=None, limits=(-1, 1))
    assert not ax.texts
    (bar,) = [other for other in ax.figure.axes if other is not ax]
    assert bar.get_ylim() == (-1, 1)


# bars, forests ------------------------------------------------------------------------------------


def test_bars_draw_means_spreads_and_the_printed_numbers(ax):
    charts.bars(ax, TABLE, printed="paper")
    bars = ax.patches
    assert [bar.get_width() for bar in bars] == TABLE["mean"].tolist()
    assert [bar.get_x() for bar in bars] == [0, 0, 0]
    assert to_hex(bars[0].get_facecolor()).upper() == "#0072B2"
    spans = [segment[:, 0].tolist() for segment in ax.collections[0].get_segments()]
    np.testing.assert_allclose(spans, [[0.79, 0.81], [0.7, 0.7], [0.35, 0.45]])
    offsets = ax.collections[1].get_offsets()
    np.testing.assert_array_equal(offsets[:2], [[0.72, 0], [0.79, 1]])
    assert [text.get_text() for text in ax.texts] == ["0.80", "0.70", "0.40"]
    top, *_, bottom = ax.get_yticks()
    assert ax.transData.transform((0, top))[1] > ax.transData.transform((0, bottom))[1]


def test_numbers_beside_diamonds_stand_in_a_column(ax):
    """Right of all bars and diamonds, however far the paper's number lies from ours."""
    frame = pd.DataFrame({"mean": [0.1, -0.2], "paper": [0.9, 0.3]}, ["csg", "csl"])
    charts.bars(ax, frame, printed="paper").set(xlim=(-0.3, 1))
    ax.figure.canvas.draw()
    lefts = [text.get_window_extent().x0 for text in ax.texts]
    assert lefts[0] == pytest.approx(lefts[1], abs=5) and min(lefts) > ax.bbox.x1


def test_bars_without_spread_or_paper_are_just_bars(ax):
    charts.bars(ax, TABLE[["mean"]])
    assert len(ax.patches) == 3 and not ax.collections


def test_a_bar_to_the_left_has_its_number_beside_it_and_nan_keeps_its_row(ax):
    names = ["csg", "csl", "aum", "el2n"]
    charts.bars(ax, pd.DataFrame({"mean": [0.5, -0.4, np.nan, -0.04]}, index=names), digits=1)
    assert [text.get_text() for text in ax.texts] == ["0.5", "-0.4", "0.0"]
    assert [text.xy for text in ax.texts] == [(0.5, 0), (0, 1), (0, 3)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["CSG", "CSL", "AUM", "EL2N"]


@pytest.mark.parametrize("kind", [dict, pd.Series])
def test_groups_colour_and_hatch_the_bars_and_have_a_key(ax, kind):
    groups = {"csl": "loss", "csg": "gradient", "something_else": "loss", "absent": "none"}
    charts.bars(ax, TABLE, printed="paper", groups=kind(groups))
    looks = [(to_hex(bar.get_facecolor()), bar.get_hatch()) for bar in ax.patches]
    assert looks[1] == looks[2] != looks[0]
    assert looks[0][0] != looks[1][0] and looks[0][1] != looks[1][1]
    key = ax.get_legend()
    assert [text.get_text() for text in key.get_texts()] == ["gradient", "loss", "paper"]
    shown = [(to_hex(p.get_facecolor()), p.get_hatch()) for p in key.get_patches()]
    assert shown == looks[:2]
    with pytest.raises(KeyError, match="something_else"):
        charts.bars(ax, TABLE, groups=kind({"csl": "loss", "csg": "gradient"}))


def test_bars_of_35_scores_in_one_column_are_legible():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"mean": rng.random(35), "std": 0.02, "paper": rng.random(35)}, SCORES)
    groups = dict(zip(SCORES, np.resize(["loss", "gradient", "counts"], 35), strict=True))
    figure, ax = plt.subplots(figsize=charts.listsize(38))
    charts.bars(ax, frame, printed="paper", groups=groups).set(xlim=(0, 1.3), xlabel="Pearson")
    figure.canvas.draw()
    labels = ax.get_yticklabels()
    assert not touching(boxes(labels)) and not touching(boxes(ax.texts))
    assert min(label.get_fontsize() for label in labels) >= 7
    key, below = ax.get_legend().get_window_extent(), ax.xaxis.label.get_window_extent()
    assert key.y1 < below.y0 and key.y0 >= 0
    assert ax.get_window_extent().width > 0.3 * figure.bbox.width


def test_listsize_grows_with_its_rows_and_has_two_widths():
    assert charts.listsize(4)[0] == 3.4 and charts.listsize(4, 3)[0] == 6.9
    heights = [charts.listsize(n)[1] for n in (4, 20, 36)]
    assert np.diff(heights) == pytest.approx(16 * 0.155)


def test_forest_draws_intervals_and_fills_what_is_found(ax):
    charts.forest(ax, EFFECTS)
    lines, dots = ax.collections
    spans = [segment[:, 0].tolist() for segment in lines.get_segments()]
    assert spans == EFFECTS[["low", "high"]].values.tolist()
    np.testing.assert_array_equal(dots.get_offsets()[:, 0], EFFECTS["spearman"])
    filled = [tuple(color) != to_rgba("white") for color in dots.get_facecolors()]
    assert filled == [True, True, False]
    corrected = charts.forest(plt.subplots()[1], EFFECTS.assign(p_holm=[0.001, 0.2, 0.9]))
    filled = [tuple(c) != to_rgba("white") for c in corrected.collections[1].get_facecolors()]
    assert filled == [True, False, False]


def test_forest_takes_what_associations_gives(ax):
    score = pd.Series(np.random.default_rng(0).random(60))
    table = metrics.associations(score, pd.DataFrame({"brightness": score + 1}), n_resamples=20)
    dots = charts.forest(ax, table).collections[1]
    assert dots.get_offsets()[0, 0] == pytest.approx(1)


# dots ---------------------------------------------------------------------------------------------


def test_dots_stand_at_their_values_one_below_the_other_with_their_spread(ax):
    mean = pd.DataFrame({"peak": [0.5, 0.6], "last": [0.7, np.nan]}, index=["csg", "csl"])
    std = pd.DataFrame({"peak": [0.1, 0.2], "last": [np.nan, 0.1]}, index=["csg", "csl"])
    charts.dots(ax, mean, std, reference=0.5)
    series = {c.get_label(): c for c in ax.containers}
    assert list(series) == ["peak", "last"]
    for name, widths in (("peak", [0.1, 0.2]), ("last", [0, np.nan])):
        line, _, (error,) = series[name]
        np.testing.assert_array_equal(np.array(line.get_xdata(), float), mean[name])
        assert line.get_color() == plots.PALETTE[name][0]
        ends = [segment[:, 0] if len(segment) else [np.nan] for segment in error.get_segments()]
        found = [np.ptp(pair) / 2 for pair in ends]
        np.testing.assert_allclose(found, widths, atol=1e-12)
    first, second = (series[name][0].get_ydata() for name in ("peak", "last"))
    assert (first < second).all() and (second - first < 1).all()  # in one row, top to bottom
    assert [t.get_text() for t in ax.get_yticklabels()] == ["CSG", "CSL"]
    assert any(list(line.get_xdata()) == [0.5, 0.5] for line in ax.lines)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["peak", "last"]


def test_the_most_telling_rows_are_those_of_the_largest_size_in_their_order():
    values = pd.Series([0.1, -0.9, np.nan, 0.5, 0.2], index=list("abcde"))
    assert charts.telling(values, 2).tolist() == ["b", "d"]
    assert charts.telling(values, 4).tolist() == ["a", "b", "d", "e"]  # NaN comes last
    assert charts.telling(values).tolist() == list("abcde")
