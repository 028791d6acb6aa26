"""The plots draw the numbers they are given, all of them, and alter nothing."""

from itertools import pairwise

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
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
DRAWINGS = {
    "curves": (plots.curves, BANDS),
    "binned_scatter": (plots.binned_scatter, BINNED),
    "histogram": (plots.histogram, COUNTS),
    "reliability": (plots.reliability_diagram, BINS),
    "roc": (plots.roc, ROC),
}


pytestmark = pytest.mark.usefixtures("house_style")


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


NOT_SCORES = {
    "weight_norm", "input_gradient", "val_loss", "train_loss", "peak", "best_val", "last",
    "lira", "lira_offline", "lira_csg", "mast", "calibrated_loss", "yeom",
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
