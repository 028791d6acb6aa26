"""The plots draw the numbers they are given, all of them, and alter nothing."""

from functools import partial

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex, to_rgba
from sklearn.metrics import roc_auc_score

from memlens import metrics, plots

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
TABLE = pd.DataFrame(
    {"mean": [0.8, 0.7, 0.4], "std": [0.01, np.nan, 0.05], "paper": [0.72, 0.79, np.nan]},
    index=["csg", "csl", "something_else"],
)
EFFECTS = pd.DataFrame(
    {"spearman": [0.5, -0.2, 0.1], "low": [0.4, -0.3, -0.1], "high": [0.6, -0.1, 0.3]},
    index=["brightness", "contrast", "stroke_width"],
)
BINS = pd.DataFrame(
    {"left": [0, 0.25, 0.5, 0.75], "right": [0.25, 0.5, 0.75, 1], "n": [0, 5, 10, 20],
     "confidence": [np.nan, 0.4, 0.6, 0.9], "accuracy": [np.nan, 0.5, 0.6, 0.7]}
)  # fmt: skip
ROC = plots.roc_points(NOISY, {"csg": VALUES, "aum": RNG.random(300)})
DRAWINGS = {
    "curves": (plots.curves, BANDS),
    "binned_scatter": (plots.binned_scatter, BINNED),
    "histogram": (plots.histogram, COUNTS),
    "heatmap": (plots.heatmap, EFFECTS),
    "bars": (partial(plots.bars, printed="paper"), TABLE),
    "forest": (plots.forest, EFFECTS),
    "reliability": (plots.reliability_diagram, BINS),
    "roc": (plots.roc, ROC),
}


@pytest.fixture(autouse=True)
def house_style():
    with matplotlib.rc_context():
        plots.apply_style()
        yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


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
    for group in (looks[:17], plots._OTHERS):
        assert len({(color, marker) for color, marker, _ in group}) == len(group)
        assert len({(color, style) for color, _, style in group}) == len(group)
    scores = {color for name, (color, *_) in plots.PALETTE.items() if name not in NOT_SCORES}
    assert scores.isdisjoint(color for color, *_ in plots._OTHERS)


NOT_SCORES = {"weight_norm", "input_gradient", "val_loss", "train_loss", "peak", "best_val", "last"}


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
    with pytest.raises(ValueError, match=r"csg has shape \(3, 29\): x asks for \(n_seeds, 30\)"):
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


def test_image_grid_refuses_wrong_shapes():
    with pytest.raises(ValueError, match=r"images have shape \(8, 8\)"):
        plots.image_grid(plt.figure(), np.zeros((8, 8)))
    with pytest.raises(ValueError, match="shorter"):
        plots.image_grid(plt.figure(), np.zeros((3, 1, 8, 8)), titles=["one"])


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


def test_bars_without_spread_or_paper_are_just_bars(ax):
    plots.bars(ax, TABLE[["mean"]])
    assert len(ax.patches) == 3 and not ax.collections


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
    score = pd.Series(RNG.random(60))
    table = metrics.associations(score, pd.DataFrame({"brightness": score + 1}), n_resamples=20)
    dots = plots.forest(ax, table).collections[1]
    assert dots.get_offsets()[0, 0] == pytest.approx(1)


def test_reliability_diagram_leaves_empty_bins_out(ax):
    plots.reliability_diagram(ax, BINS)
    bars = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in ax.patches]
    assert bars == [(0.25, 0.25, 0.5), (0.5, 0.25, 0.6), (0.75, 0.25, 0.7)]
    np.testing.assert_array_equal(line(ax, "confidence").get_xdata(), [0.4, 0.6, 0.9])
    gaps = [segment[:, 1].tolist() for segment in ax.collections[0].get_segments()]
    assert gaps == [[0.5, 0.4], [0.6, 0.6], [0.7, 0.9]]


def test_reliability_diagram_takes_the_table_of_calibration(ax):
    from memlens.calibration import reliability

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
