"""The plots draw the numbers they are given, all of them, and alter nothing."""

from functools import partial
from itertools import pairwise

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex, to_rgba
from sklearn.metrics import roc_auc_score

from memlens.evaluation import metrics, plots

X = np.arange(1, 31)
RNG = np.random.default_rng(0)
RUNS = {
    "csg": RNG.random((3, 30)),
    "csl": 2 + RNG.random((3, 30)),
    "val_loss": RNG.random(30),
}
BANDS = plots.bands(RUNS, X)
BINNED = plots.binned(RNG.random(300), RNG.random(300))
NOISY = RNG.random(300) < 0.2
VALUES = RNG.random(300) + NOISY
COUNTS = plots.counts(VALUES, NOISY, n_bins=20)
BINS = pd.DataFrame(
    {"left": [0, 0.25, 0.5, 0.75], "right": [0.25, 0.5, 0.75, 1], "n": [0, 5, 10, 20],
     "confidence": [np.nan, 0.4, 0.6, 0.9], "accuracy": [np.nan, 0.5, 0.6, 0.7]}
)  # fmt: skip
ROC = plots.roc_points(NOISY, {"csg": VALUES, "aum": RNG.random(300)})
TABLE = pd.DataFrame(
    {"mean": [0.8, 0.7, 0.4], "std": [0.01, np.nan, 0.05], "paper": [0.72, 0.79, np.nan]},
    index=["csg", "csl", "something_else"],
)
EFFECTS = pd.DataFrame(
    {"spearman": [0.5, -0.2, 0.1], "low": [0.4, -0.3, -0.1], "high": [0.6, -0.1, 0.3]},
    index=["brightness", "contrast", "stroke_width"],
)
SCORES = [f"a_score_with_a_name_{i}" for i in range(35)]
DRAWINGS = {
    "curves": (plots.curves, BANDS),
    "binned_scatter": (plots.binned_scatter, BINNED),
    "histogram": (plots.histogram, COUNTS),
    "reliability": (plots.reliability_diagram, BINS),
    "roc": (plots.roc, ROC),
    "heatmap": (plots.heatmap, EFFECTS),
    "heatmap without numbers": (partial(plots.heatmap, digits=None), EFFECTS),
    "bars": (partial(plots.bars, printed="paper"), TABLE),
    "bars in groups": (partial(plots.bars, groups=dict.fromkeys(TABLE.index, "all")), TABLE),
    "forest": (plots.forest, EFFECTS),
    "dots": (plots.dots, EFFECTS),
}


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


def line(ax, label):
    return next(line for line in ax.get_lines() if line.get_label() == label)


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_plot_returns_its_axes_draws_something_and_alters_nothing(name, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("showed the figure"))
    draw, frame = DRAWINGS[name]
    before, (figure, ax) = frame.copy(deep=True), plt.subplots()
    empty = pixels(figure).copy()
    limits = dict(plt.rcParams)
    assert draw(ax, frame) is ax
    assert (pixels(figure) != empty).any()
    pd.testing.assert_frame_equal(frame, before, check_exact=True)
    assert plt.fignum_exists(figure.number)
    assert dict(plt.rcParams) == limits


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_plot_is_the_same_twice(name):
    draw, frame = DRAWINGS[name]
    first, second = plt.subplots(), plt.subplots()
    draw(first[1], frame), draw(second[1], frame)
    np.testing.assert_array_equal(pixels(first[0]), pixels(second[0]))


def test_figures_have_two_widths_and_a_height_for_their_panels():
    assert plots.figsize() == (3.4, 2.108)
    assert plots.figsize(2, aspect=0.5) == (6.9, 1.725)
    assert plots.figsize(3, rows=2, aspect=1) == (6.9, 4.6)


def test_colours_keep_their_meaning_and_are_doubled_by_a_marker_or_a_line():
    assert plots.style_of("csg") == {"color": "#0072B2", "marker": "o", "linestyle": "-"}
    assert plots.style_of("csl")["color"] == "#D55E00"
    assert plots.style_of("curvature")["color"] == "#009E73"
    assert plots.style_of("memorization")["color"] == "#000000"
    looks = list(plots.PALETTE.values())
    for group in (looks[:17], plots.style._OTHERS):
        assert len({(color, marker) for color, marker, _ in group}) == len(group)
        assert len({(color, style) for color, _, style in group}) == len(group)
    scores = {color for name, (color, *_) in plots.PALETTE.items() if name not in NOT_SCORES}
    assert scores.isdisjoint(color for color, *_ in plots.style._OTHERS)


NOT_SCORES = {
    "weight_norm", "input_gradient", "val_loss", "train_loss", "label_wave", "best_val", "last",
    "lira", "lira_offline", "lira_csg", "lira_per_sample", "mast", "calibrated_loss", "yeom",
    "bavaria", "rmia", "rmia_offline",
}  # fmt: skip


def test_every_look_of_a_name_without_one_is_another_until_they_run_out():
    looks = [tuple(plots.style_of(f"run {i}", i).values()) for i in range(8)]
    assert len(set(looks)) == 8
    assert plots.style_of("run 8", 8) == plots.style_of("run 0", 0)


@pytest.mark.parametrize(
    ("name", "written"),
    [("early_csg", "early CSG"), ("adamw", "AdamW"), ("val_loss", "val loss"), (3, "3")],
)
def test_names_are_written_for_readers(name, written):
    assert plots.label_of(name) == written


def test_bands_are_mean_and_std_over_seeds():
    frame = plots.bands({"csg": [[1.0, 4.0], [3.0, 8.0]]}, [10, 20], "noise")
    assert list(frame.columns) == ["noise", "series", "mean", "std", "n_seeds"]
    assert frame["mean"].tolist() == [2, 6]
    np.testing.assert_allclose(frame["std"], [np.sqrt(2), np.sqrt(8)])
    assert frame["noise"].tolist() == [10, 20]
    assert (frame["n_seeds"] == 2).all()


def test_one_seed_has_no_band():
    frame = plots.bands({"csg": [1.0, 4.0]}, [10, 20])
    assert frame["std"].isna().all()
    assert not plots.curves(plt.subplots()[1], frame).collections


def test_bands_refuses_another_length():
    with pytest.raises(ValueError, match=r"csg has shape \(3, 29\): expected \(n_seeds, 30\)"):
        plots.bands({"csg": np.zeros((3, 29))}, X)


def test_curves_draw_each_mean_and_a_band_one_std_to_each_side(ax):
    plots.curves(ax, BANDS)
    for name in RUNS:
        part = BANDS[BANDS["series"] == name]
        drawn = line(ax, plots.label_of(name))
        np.testing.assert_array_equal(drawn.get_xydata(), part[["epoch", "mean"]].to_numpy())
        assert drawn.get_color() == plots.PALETTE[name][0]
    assert len(ax.collections) == 2  # val_loss has one seed
    corners = ax.collections[0].get_paths()[0].vertices
    mean, std = RUNS["csg"].mean(axis=0), RUNS["csg"].std(axis=0, ddof=1)
    for edge in (mean - std, mean + std):
        found = np.isclose(corners[:, None, 1], edge) & (corners[:, None, 0] == X)
        assert found.any(axis=0).all()
    assert ax.get_xlabel() == "epoch"


FALLING = plots.bands({"csg": [[3.0, 2.0, 0.02], [1.0, 0.1, 0.04]], "csl": [1.0, 0.5, 0.2]}, X[:3])


def lower_edge(ax):
    """Lowest point of the band at each x, of the band and its outline as they are drawn."""
    corners = ax.collections[0].get_paths()[0].vertices
    return [corners[corners[:, 0] == x, 1].min() for x in (1, 2, 3)]


@pytest.mark.parametrize(("limits", "floor"), [(None, 0.03 / 2), ((1e-4, 5), 1e-4)])
def test_a_band_that_reaches_zero_does_not_tear_on_a_log_axis(ax, limits, floor):
    ax.set_yscale("log")
    if limits:
        ax.set_ylim(limits)
    plots.curves(ax, FALLING, labels="none")
    # mean - std is 2 - 1.41, 1.05 - 1.34 < 0 and 0.03 - 0.014
    assert lower_edge(ax) == pytest.approx([2 - np.sqrt(2), floor, 0.03 - np.sqrt(2e-4)])
    shown = ax.get_ylim()
    assert shown == limits if limits else 0.005 < shown[0] <= floor
    assert np.isfinite(ax.transData.transform(ax.collections[0].get_paths()[0].vertices)).all()


def test_on_a_linear_axis_the_band_goes_below_zero(ax):
    plots.curves(ax, FALLING, labels="none")
    assert lower_edge(ax)[1] == pytest.approx(1.05 - 1.9 / np.sqrt(2))


def test_panels_draw_a_table_each_and_return_them_as_one():
    axes = plt.subplots(1, 2)[1]
    tables = {"csg": BANDS, "without_csl": BANDS[BANDS["series"] != "csl"].reset_index(drop=True)}
    drawn = plots.panels(axes, plots.curves, tables, labels="none")
    assert [ax.get_title(loc="left") for ax in axes] == ["CSG", "without CSL"]
    assert [len(ax.get_lines()) for ax in axes] == [3, 2]
    assert not any(ax.texts for ax in axes)  # the option arrived
    assert list(drawn) == ["panel", *BANDS] and isinstance(drawn.index, pd.RangeIndex)
    for name, table in tables.items():
        part = drawn[drawn["panel"] == name].drop(columns="panel").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, table)


def test_panels_keep_an_index_that_means_something():
    table = BINS.set_axis(list("abcd"))
    for name, found in (("score", "score"), (None, "row")):
        axes = plt.subplots(2, 1)[1]
        tables = {"one": table.rename_axis(name), "two": table.rename_axis(name)}
        drawn = plots.panels(axes, plots.reliability_diagram, tables)
        assert drawn.index.names == ["panel", found]
        assert drawn.loc["two"].index.tolist() == list("abcd")


def test_panels_want_as_many_axes_as_tables():
    with pytest.raises(ValueError, match="longer|shorter"):
        plots.panels(plt.subplots(1, 2)[1], plots.curves, {"one": BANDS})


def test_curves_name_the_lines_at_their_ends_in_their_colours(ax):
    plots.curves(ax, BANDS)
    named = {text.get_text(): text.get_color() for text in ax.texts}
    assert named == {"CSG": "#0072B2", "CSL": "#D55E00", "val loss": "#882255"}
    assert all(text.xy[0] == 30 for text in ax.texts)
    assert ax.get_legend() is None


def test_end_labels_do_not_touch_even_where_the_lines_end_together():
    figure, axes = plt.subplots(1, 2, figsize=plots.figsize(2))
    frame = plots.bands({n: np.ones((3, 30)) for n in ("csg", "csl", "sgal", "aum", "el2n")}, X)
    plots.curves(axes[0], frame)
    figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in axes[0].texts), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 for low, high in zip(boxes, boxes[1:], strict=False))


def test_curves_may_have_a_legend_or_no_names(ax):
    plots.curves(ax, BANDS, labels="legend")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["CSG", "CSL", "val loss"]
    bare = plots.curves(plt.subplots()[1], BANDS, labels="none")
    assert bare.get_legend() is None and not bare.texts
    with pytest.raises(ValueError, match="labels is 'left'"):
        plots.curves(ax, BANDS, labels="left")


def test_mark_epoch_stands_at_the_epoch_with_its_name(ax):
    plots.curves(ax, BANDS)
    plots.mark_epoch(ax, 20, "peak")
    assert list(ax.get_lines()[-1].get_xdata()) == [20, 20]
    assert ax.texts[-1].get_text() == "peak"


def test_binned_holds_the_means_and_the_line_through_them():
    x = np.linspace(0, 1, 100)
    frame = plots.binned(x, 3 * x + 1, n_bins=5)
    means = metrics.binned_mean(x, 3 * x + 1, n_bins=5)
    pd.testing.assert_frame_equal(frame[means.columns], means)
    np.testing.assert_allclose(frame["fit"], 3 * frame["x_mean"] + 1)
    np.testing.assert_allclose(frame["r2"], 1)


def test_binned_may_weigh_the_bins_by_their_counts():
    x, y = np.r_[np.zeros(98), 1, 2], np.r_[np.zeros(98), 1, 5]
    alike, weighed = (plots.binned(x, y, n_bins=3, weighted=w) for w in (False, True))
    # through (0, 0), (1, 1), (2, 5): least squares by hand
    np.testing.assert_allclose(alike["fit"], [-0.5, 2, 4.5])
    assert abs(weighed["fit"][0]) < 0.1
    assert alike["r2"][0] == pytest.approx(12.5 / 14)


def test_binned_scatter_draws_means_line_and_r2(ax):
    plots.binned_scatter(ax, BINNED)
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), BINNED[["x_mean", "y_mean"]])
    np.testing.assert_array_equal(ax.get_lines()[0].get_xydata(), BINNED[["x_mean", "fit"]])
    sizes = ax.collections[0].get_sizes()
    assert sizes.argmax() == BINNED["n"].argmax()
    assert f"{BINNED['r2'][0]:.2f}" in ax.get_legend().get_texts()[0].get_text()


def test_counts_hold_every_sample_once():
    n, edges = np.histogram(VALUES, bins=20)
    np.testing.assert_array_equal(COUNTS["n"], n)
    np.testing.assert_array_equal(COUNTS["left"], edges[:-1])
    assert COUNTS["n"].sum() == 300 and COUNTS["n_marked"].sum() == NOISY.sum()
    assert (COUNTS["n_marked"] <= COUNTS["n"]).all()
    assert plots.counts(VALUES)["n_marked"].sum() == 0


def test_counts_refuses_marks_that_are_no_mask():
    for wrong in (NOISY[:5], NOISY.astype(int), np.flatnonzero(NOISY)):
        with pytest.raises(ValueError, match=r"pass bool \(300,\)"):
            plots.counts(VALUES, wrong)


def test_histogram_draws_all_and_the_marked_on_a_log_axis(ax):
    plots.histogram(ax, COUNTS)
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == [*COUNTS["n"], *COUNTS["n_marked"]]
    assert all(bar.get_y() == 0 for bar in ax.patches)
    np.testing.assert_allclose([b.get_x() for b in ax.patches[:20]], COUNTS["left"])
    assert ax.get_yscale() == "log"
    front = ax.patches[20]
    assert front.get_hatch() and to_hex(front.get_facecolor()).upper() == plots.MARKED
    assert len(plots.histogram(plt.subplots()[1], plots.counts(VALUES)).patches) == 40


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_image_grid_shows_each_image_as_it_is(kind):
    images = RNG.integers(0, 17, (5, 1, 8, 8)).astype(np.uint8)
    before, figure = images.copy(), plt.figure()
    marked = np.array([False, True, False, False, False])
    axes = plots.image_grid(figure, kind(images), titles=list("abcde"), columns=3, pixel_max=16,
                            marked=marked)  # fmt: skip
    assert axes.shape == (2, 3)
    for ax, image, title, framed in zip(axes.flat, images, "abcde", marked, strict=False):
        np.testing.assert_array_equal(ax.images[0].get_array(), image[0] / 16)
        assert ax.images[0].get_clim() == (0, 1)
        assert ax.get_title() == title
        assert ax.get_frame_on() == framed
    assert not axes[1, 2].images and not axes[1, 2].get_frame_on()
    np.testing.assert_array_equal(images, before)


def test_image_grid_shows_colour_images_channels_last():
    images = RNG.integers(0, 256, (2, 3, 4, 4)).astype(np.uint8)
    axes = plots.image_grid(plt.figure(), images)
    np.testing.assert_allclose(axes[0, 1].images[0].get_array(), images[1].transpose(1, 2, 0) / 255)


def test_image_grid_names_its_rows():
    images = np.zeros((5, 1, 8, 8))
    axes = plots.image_grid(plt.figure(), images, columns=2, rows=["lowest", "highest", "csl"])
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["lowest", "highest", "CSL"]
    assert not any(ax.get_ylabel() for ax in axes[:, 1])
    assert all(ax.yaxis.label.get_visible() for ax in axes[:, 0])
    with pytest.raises(ValueError, match="shorter"):
        plots.image_grid(plt.figure(), images, columns=2, rows=["lowest"])


def test_image_grid_refuses_wrong_shapes():
    with pytest.raises(ValueError, match=r"images have shape \(8, 8\)"):
        plots.image_grid(plt.figure(), np.zeros((8, 8)))
    with pytest.raises(ValueError, match="shorter"):
        plots.image_grid(plt.figure(), np.zeros((3, 1, 8, 8)), titles=["one"])


def test_reliability_diagram_leaves_empty_bins_out(ax):
    plots.reliability_diagram(ax, BINS)
    bars = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in ax.patches]
    assert bars == [(0.25, 0.25, 0.5), (0.5, 0.25, 0.6), (0.75, 0.25, 0.7)]
    np.testing.assert_array_equal(line(ax, "confidence").get_xdata(), [0.4, 0.6, 0.9])
    gaps = [segment[:, 1].tolist() for segment in ax.collections[0].get_segments()]
    assert gaps == [[0.5, 0.4], [0.6, 0.6], [0.7, 0.9]]


def test_reliability_diagram_takes_the_table_of_calibration(ax):
    from memlens.evaluation.calibration import reliability

    y_prob = RNG.dirichlet(np.ones(3), 200)
    table = reliability(RNG.integers(0, 3, 200), y_prob)
    assert len(plots.reliability_diagram(ax, table).patches) == (table["n"] > 0).sum()


def test_roc_draws_its_points_and_the_area_under_them(ax):
    plots.roc(ax, ROC)
    csg = ROC[ROC["series"] == "csg"]
    area = roc_auc_score(NOISY, VALUES)
    drawn = line(ax, f"CSG  {area:.3f}")
    np.testing.assert_array_equal(drawn.get_xydata(), csg[["fpr", "tpr"]])
    assert np.trapezoid(csg["tpr"], csg["fpr"]) == pytest.approx(area)
    assert len(ax.get_legend().get_texts()) == 2


def test_roc_points_take_a_frame_of_scores():
    frame = pd.DataFrame({"csg": VALUES, "csl": -VALUES})
    assert list(plots.roc_points(NOISY, frame)["series"].unique()) == ["csg", "csl"]


def test_samples_of_one_bin_have_no_line(ax):
    frame = plots.binned(np.ones(5), np.arange(5))
    assert frame["y_mean"].tolist() == [2] and frame[["fit", "r2"]].isna().all(axis=None)
    plots.binned_scatter(ax, frame)


def test_curves_pass_over_what_was_not_measured(ax):
    values = {"csg": [1, np.nan, 3, np.nan], "csl": [np.nan] * 4, "aum": [1, 2, 3, 4]}
    plots.curves(ax, plots.bands(values, range(4)))
    csg, csl, aum = (line.get_xydata().tolist() for line in ax.get_lines())
    assert csg == [[0, 1], [2, 3]] and csl == [] and len(aum) == 4
    assert [text.get_text() for text in ax.texts] == ["CSG", "AUM"]


@pytest.mark.parametrize("outside", [True, False])
def test_small_print_lies_below_all_that_is_drawn(house_style, outside):
    figure, axes = plt.subplots(1, 2, figsize=plots.figsize(2))
    lines = axes[0].plot([0, 1], label="a line")
    axes[0].set_xlabel("epoch")
    if outside:
        figure.legend(handles=lines, loc="outside lower center")
    before = figure.get_size_inches()[1]
    plots.footnote(figure, "a first look, " * 30)
    figure.draw_without_rendering()
    (text,) = figure.texts
    assert text.get_text().count("\n") >= 2
    boxes = [text.get_window_extent(), *(a.get_tightbbox() for a in (*figure.legends, axes[0]))]
    for lower, upper in pairwise(boxes):
        assert lower.y1 <= upper.y0
    assert figure.get_size_inches()[1] > before


# heat maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
def test_heatmap_writes_the_numbers_into_their_cells(ax, signed):
    frame = pd.DataFrame([[0.5, -0.25], [np.nan, 1]], index=["csg", "csl"], columns=["adam", "sgd"])
    plots.heatmap(ax, frame, signed=signed)
    assert [text.get_text() for text in ax.texts] == ["0.50", "-0.25", "1.00"]
    np.testing.assert_array_equal(ax.collections[0].get_array().filled(np.nan), frame)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["Adam", "SGD"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["CSG", "CSL"]
    if signed:
        assert ax.collections[0].get_clim() == (-1, 1)


def test_limits_are_common_to_all_tables():
    tables = [pd.DataFrame({"a": [0.2, np.nan]}), pd.DataFrame({"b": [-0.7, 0.1], "c": [0, 0.3]})]
    assert plots.common_limits(tables) == (-0.7, 0.3)
    assert plots.common_limits(tables, signed=True) == (-0.7, 0.7)
    assert plots.common_limits(tables[:1], signed=True) == (-0.2, 0.2)
    with pytest.raises(ValueError, match="found 2 cells, none with a value"):
        plots.common_limits([tables[0] * np.nan])


@pytest.mark.parametrize("signed", [False, True])
def test_heat_maps_with_common_limits_give_a_value_one_colour(signed):
    tables = {"one": EFFECTS, "two": 2 * EFFECTS + 0.3}
    limits = plots.common_limits(tables.values(), signed=signed)
    axes = plt.subplots(1, 2)[1]
    plots.panels(axes, plots.heatmap, tables, limits=limits, signed=signed)
    assert [ax.collections[0].get_clim() for ax in axes] == [limits, limits]
    first, second = (ax.collections[0].to_rgba(0.4) for ax in axes)
    assert first == second
    apart = plt.subplots(1, 2)[1]
    plots.panels(apart, plots.heatmap, tables, signed=signed)
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
        ax = plots.heatmap(plt.subplots()[1], frame, digits=digits)
        drawn = {t.get_position(): t.get_text() for t in ax.texts}
        assert drawn.get((0.5, 0.5)) == written


def test_a_heat_map_of_35_scores_is_legible():
    values = np.random.default_rng(0).uniform(-1, 1, (35, 35)).round(2)
    frame = pd.DataFrame(values, SCORES, SCORES)
    figure, ax = plt.subplots(figsize=plots.figsize(2, 2, 0.9))
    plots.heatmap(ax, frame, signed=True)
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
    plots.heatmap(ax, pd.DataFrame(np.zeros((35, 60)), SCORES).add_prefix("column_"), digits=None)
    figure.canvas.draw()
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert len(labels) in (35, 60) and not touching(boxes(labels))


def test_panels_of_one_figure_write_their_numbers_alike():
    # a layout that is made between two panels would measure their cells differently
    frame = pd.DataFrame(np.full((35, 7), 0.5), SCORES)
    axes = plt.subplots(1, 3, figsize=plots.listsize(35, 2), sharey=True)[1]
    plots.panels(axes, plots.heatmap, dict.fromkeys("abc", frame))
    looks = {(text.get_text(), text.get_fontsize()) for ax in axes for text in ax.texts}
    assert len(looks) == 1


def test_a_heat_map_without_numbers_has_a_colour_bar(ax):
    plots.heatmap(ax, EFFECTS, digits=None, limits=(-1, 1))
    assert not ax.texts
    (bar,) = [other for other in ax.figure.axes if other is not ax]
    assert bar.get_ylim() == (-1, 1)


# bars, forests ------------------------------------------------------------------------------------


def test_bars_draw_means_spreads_and_the_printed_numbers(ax):
    plots.bars(ax, TABLE, printed="paper")
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
    plots.bars(ax, frame, printed="paper").set(xlim=(-0.3, 1))
    ax.figure.canvas.draw()
    lefts = [text.get_window_extent().x0 for text in ax.texts]
    assert lefts[0] == pytest.approx(lefts[1], abs=5) and min(lefts) > ax.bbox.x1


def test_bars_without_spread_or_paper_are_just_bars(ax):
    plots.bars(ax, TABLE[["mean"]])
    assert len(ax.patches) == 3 and not ax.collections


def test_a_bar_to_the_left_has_its_number_beside_it_and_nan_keeps_its_row(ax):
    names = ["csg", "csl", "aum", "el2n"]
    plots.bars(ax, pd.DataFrame({"mean": [0.5, -0.4, np.nan, -0.04]}, index=names))
    assert [text.get_text() for text in ax.texts] == ["0.50", "-0.40", "-0.04"]
    assert [text.xy for text in ax.texts] == [(0.5, 0), (0, 1), (0, 3)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["CSG", "CSL", "AUM", "EL2N"]


@pytest.mark.parametrize("kind", [dict, pd.Series])
def test_groups_colour_and_hatch_the_bars_and_have_a_key(ax, kind):
    groups = {"csl": "loss", "csg": "gradient", "something_else": "loss", "absent": "none"}
    plots.bars(ax, TABLE, printed="paper", groups=kind(groups))
    looks = [(to_hex(bar.get_facecolor()), bar.get_hatch()) for bar in ax.patches]
    assert looks[1] == looks[2] != looks[0]
    assert looks[0][0] != looks[1][0] and looks[0][1] != looks[1][1]
    key = ax.get_legend()
    assert [text.get_text() for text in key.get_texts()] == ["gradient", "loss", "paper"]
    shown = [(to_hex(p.get_facecolor()), p.get_hatch()) for p in key.get_patches()]
    assert shown == looks[:2]
    with pytest.raises(KeyError, match="something_else"):
        plots.bars(ax, TABLE, groups=kind({"csl": "loss", "csg": "gradient"}))


def test_bars_of_35_scores_in_one_column_are_legible():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"mean": rng.random(35), "std": 0.02, "paper": rng.random(35)}, SCORES)
    groups = dict(zip(SCORES, np.resize(["loss", "gradient", "counts"], 35), strict=True))
    figure, ax = plt.subplots(figsize=plots.listsize(38))
    plots.bars(ax, frame, printed="paper", groups=groups).set(xlim=(0, 1.3), xlabel="Pearson")
    figure.canvas.draw()
    labels = ax.get_yticklabels()
    assert not touching(boxes(labels)) and not touching(boxes(ax.texts))
    assert min(label.get_fontsize() for label in labels) >= 7
    key, below = ax.get_legend().get_window_extent(), ax.xaxis.label.get_window_extent()
    assert key.y1 < below.y0 and key.y0 >= 0
    assert ax.get_window_extent().width > 0.3 * figure.bbox.width


def test_listsize_grows_with_its_rows_and_has_two_widths():
    assert plots.listsize(4)[0] == 3.4 and plots.listsize(4, 3)[0] == 6.9
    heights = [plots.listsize(n)[1] for n in (4, 20, 36)]
    assert np.diff(heights) == pytest.approx(16 * 0.155)


def test_forest_draws_intervals_and_fills_what_is_found(ax):
    plots.forest(ax, EFFECTS)
    lines, dots = ax.collections
    spans = [segment[:, 0].tolist() for segment in lines.get_segments()]
    assert spans == EFFECTS[["low", "high"]].values.tolist()
    np.testing.assert_array_equal(dots.get_offsets()[:, 0], EFFECTS["spearman"])
    filled = [tuple(color) != to_rgba("white") for color in dots.get_facecolors()]
    assert filled == [True, True, False]
    corrected = plots.forest(plt.subplots()[1], EFFECTS.assign(p_holm=[0.001, 0.2, 0.9]))
    filled = [tuple(c) != to_rgba("white") for c in corrected.collections[1].get_facecolors()]
    assert filled == [True, False, False]


def test_forest_takes_what_associations_gives(ax):
    score = pd.Series(np.random.default_rng(0).random(60))
    table = metrics.associations(score, pd.DataFrame({"brightness": score + 1}), n_resamples=20)
    dots = plots.forest(ax, table).collections[1]
    assert dots.get_offsets()[0, 0] == pytest.approx(1)


# dots ---------------------------------------------------------------------------------------------


def test_dots_stand_at_their_values_one_below_the_other_with_their_spread(ax):
    mean = pd.DataFrame({"memorization": [0.5, 0.6], "last": [0.7, np.nan]}, index=["csg", "csl"])
    std = pd.DataFrame({"memorization": [0.1, 0.2], "last": [np.nan, 0.1]}, index=["csg", "csl"])
    plots.dots(ax, mean, std, reference=0.5)
    series = {c.get_label(): c for c in ax.containers}
    assert list(series) == ["memorization", "last"]
    for name, widths in (("memorization", [0.1, 0.2]), ("last", [0, np.nan])):
        line, _, (error,) = series[name]
        np.testing.assert_array_equal(np.array(line.get_xdata(), float), mean[name])
        assert line.get_color() == plots.PALETTE[name][0]
        ends = [segment[:, 0] if len(segment) else [np.nan] for segment in error.get_segments()]
        found = [np.ptp(pair) / 2 for pair in ends]
        np.testing.assert_allclose(found, widths, atol=1e-12)
    first, second = (series[name][0].get_ydata() for name in ("memorization", "last"))
    assert (first < second).all() and (second - first < 1).all()  # in one row, top to bottom
    assert [t.get_text() for t in ax.get_yticklabels()] == ["CSG", "CSL"]
    assert any(list(line.get_xdata()) == [0.5, 0.5] for line in ax.lines)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["memorization", "last"]


def test_the_most_telling_rows_are_those_of_the_largest_size_in_their_order():
    values = pd.Series([0.1, -0.9, np.nan, 0.5, 0.2], index=list("abcde"))
    assert plots.largest_rows(values, 2).tolist() == ["b", "d"]
    assert plots.largest_rows(values, 4).tolist() == ["a", "b", "d", "e"]  # NaN comes last
    assert plots.largest_rows(values).tolist() == list("abcde")
