"""The figures about bias show the right image in each place, and every number they are given."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from memlens.evaluation import plots
from memlens.evaluation.plots import bias as draw

SIDE, INDEX = 4, np.array([40, 41, 42, 43, 50, 51, 52, 53])
IMAGES = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1) * np.ones((1, 1, SIDE, SIDE), np.uint8)
NAMES = ["Trouser", "Bag"]
LOWEST = pd.DataFrame([[41, 40], [53, 50]], NAMES)
HIGHEST = pd.DataFrame([[42, 43], [51, 52]], NAMES)


@pytest.fixture(autouse=True)
def closed_figures():
    with plots.styled():
        yield
    plt.close("all")


def tiles(ax, n_columns):
    """The first pixel of each tile of a mosaic, by row."""
    canvas = ax.images[0].get_array().filled(np.nan)
    step = SIDE + 1
    return canvas[::step, ::step][:, :n_columns].tolist()


def texts(ax):
    return [text.get_text() for text in ax.texts]


def lowest_and_highest(framed=()):
    return draw.lowest_and_highest(LOWEST, HIGHEST, IMAGES, index=INDEX, pixel_max=8, score="CSG",
                                   framed=framed)  # fmt: skip


def test_each_class_shows_its_images_in_order():
    figure, data = lowest_and_highest(framed=[43, 53])
    left, right = figure.axes
    assert tiles(left, 2) == [[1 / 8, 0], [7 / 8, 4 / 8]]
    assert tiles(right, 2) == [[2 / 8, 3 / 8], [5 / 8, 6 / 8]]
    assert [label.get_text() for label in left.get_yticklabels()] == NAMES
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["lowest CSG", "highest CSG"]
    (frame,) = right.patches
    assert frame.get_xy() == (SIDE + 0.5, -0.5)  # the second image of the first row
    assert len(left.patches) == 1
    shown = data.set_index(["end", "class", "rank"])
    assert shown.loc[("highest", "Bag", 1), "sample"] == 52
    assert data.loc[data["framed"], "sample"].tolist() == [53, 43] and len(data) == 8


def test_all_images_share_one_scale():
    figure, _ = lowest_and_highest()
    assert {ax.images[0].get_clim() for ax in figure.axes} == {(0, 1)}


def test_a_sample_without_an_image_is_refused():
    with pytest.raises(ValueError, match="1 samples of the table have no image"):
        draw.lowest_and_highest(LOWEST.replace(53, 99), HIGHEST, IMAGES, index=INDEX, pixel_max=8,
                                score="CSG")  # fmt: skip


def test_gaps_between_images_are_empty():
    figure, _ = lowest_and_highest()
    canvas = figure.axes[0].images[0].get_array().filled(np.nan)
    assert canvas.shape == (2 * SIDE + 1, 2 * SIDE + 1)
    assert np.isnan(canvas[SIDE]).all() and np.isnan(canvas[:, SIDE]).all()
    assert np.isfinite(canvas[:SIDE, :SIDE]).all()


def test_labels_are_above_and_rivals_below_coloured_where_ambiguous():
    table = pd.DataFrame({"label": ["Bag", "Coat", "Coat"], "rival": ["Coat", "Bag", "Shirt"],
                          "ambiguous": [True, False, True]}, index=[41, 50, 42])  # fmt: skip
    figure, data = draw.labelled_pictures(table, IMAGES, index=INDEX, pixel_max=8, columns=2)
    assert [ax.get_title() for ax in figure.axes] == ["Bag", "Coat", "Coat", ""]
    assert [texts(ax) for ax in figure.axes] == [["Coat"], ["Bag"], ["Shirt"], []]
    colours = [ax.texts[0].get_color() for ax in figure.axes[:3]]
    assert colours == [draw.HIGH, "0.45", draw.HIGH]
    assert figure.axes[1].images[0].get_array()[0, 0] == 4 / 8
    pd.testing.assert_frame_equal(data.set_index("sample"), table, check_names=False)


def test_rows_of_pictures_and_their_frames():
    samples = pd.DataFrame([[40, 41], [52, 40]], index=["memorization", "csg"])
    pictures = {"csg": IMAGES[[6, 0]], "memorization": IMAGES[[0, 1]]}
    framed = pd.DataFrame([[True, False], [False, True]], index=samples.index)
    figure, data = draw.picture_rows(samples, pictures, pixel_max=8, framed=framed)
    (ax,) = figure.axes
    assert tiles(ax, 2) == [[0, 1 / 8], [6 / 8, 0]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["memorization", "CSG"]
    assert [patch.get_xy() for patch in ax.patches] == [(-0.5, -0.5), (SIDE + 0.5, SIDE + 0.5)]
    row = data.set_index(["row", "rank"])
    assert row.loc[("csg", 0), "sample"] == 52 and not row.loc[("csg", 0), "framed"]
    assert row.loc[("csg", 1), "framed"] and row["framed"].sum() == 2


def test_colour_images_are_shown_in_colour():
    red = np.zeros((1, 3, SIDE, SIDE), np.uint8)
    red[:, 0] = 8
    samples = pd.DataFrame([[1]], index=["a"])
    figure, _ = draw.picture_rows(samples, {"a": red}, pixel_max=8)
    assert figure.axes[0].images[0].get_array()[0, 0].tolist() == [1, 0, 0]


def test_the_difference_of_mean_images_has_its_own_signed_scale():
    lowest = pd.DataFrame(0.5, NAMES, range(SIDE * SIDE))
    highest = lowest.copy()
    highest.loc["Bag"] = 0.1
    figure, data = draw.mean_images(lowest, highest, (SIDE, SIDE))
    above, below = figure.axes[:2]
    assert tiles(above, 2) == [[0.5, 0.5], [0.5, 0.1]]
    np.testing.assert_allclose(tiles(below, 2), [[0, -0.4]])
    np.testing.assert_allclose(below.images[0].get_clim(), (-0.4, 0.4))
    assert above.images[0].get_clim() == (0, 1)
    assert len(figure.axes) == 4  # a colour bar each
    assert texts(above) == NAMES
    of_bag = data.set_index(["mean of", "class"]).loc[("difference", "Bag")]
    np.testing.assert_allclose(of_bag, -0.4)


def test_the_shift_goes_from_the_lowest_to_the_highest_tenth():
    lowest = pd.DataFrame({"tone": [0.5, 0.6], "area": [0.2, 0.2]}, index=["all", "Bag"])
    highest = pd.DataFrame({"tone": [0.4, 0.7], "area": [0.3, 0.1]}, index=["all", "Bag"])
    figure, data = draw.shift_by_class(lowest, highest)
    tone, area = figure.axes
    assert [line[:, 0].tolist() for line in tone.collections[0].get_segments()] == [
        [0.5, 0.4], [0.6, 0.7],
    ]  # fmt: skip
    hollow, filled = tone.collections[1:3]
    assert hollow.get_offsets()[:, 0].tolist() == [0.5, 0.6]
    assert filled.get_offsets()[:, 0].tolist() == [0.4, 0.7]
    colours = tone.collections[0].get_colors()[:, :3]
    assert not np.allclose(colours[0], colours[1])  # down and up
    assert area.get_xlabel() == "mean area"
    places = {text.get_text(): text.get_ha() for text in tone.texts}
    assert places == {"lowest": "left", "highest": "right"}  # outside of the two dots
    assert data.set_index(["tenth", "samples"]).loc[("highest", "Bag"), "tone"] == 0.7


def test_found_associations_are_bold_and_others_grey():
    rows = pd.MultiIndex.from_product([["all", "Bag"], ["tone", "area"]],
                                      names=["samples", "attribute"])  # fmt: skip
    values = {"spearman": [-0.5, 0.3, 0.2, np.nan], "p_holm": [0.01, 0.04, 0.2, np.nan]}
    tests = pd.DataFrame(values, rows)
    figure, data = draw.associations_by_class(tests, n_pooled=1)
    ax = figure.axes[0]
    assert texts(ax) == ["-0.50", "0.30", "0.20", ""]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["tone", "area"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["all", "Bag"]
    assert [text.get_fontweight() for text in ax.texts] == ["bold", "bold", "normal", "normal"]
    assert ax.images[0].get_clim() == (-0.5, 0.5)
    assert [line.get_ydata()[0] for line in ax.lines] == [0.5]
    assert len(data) == 4 and data["spearman"].isna().sum() == 1


def test_each_seed_of_each_condition_has_a_dot():
    columns = ["bright", "as they were", "dark"]
    ranks = {"csg": pd.DataFrame([[0.1, 0.5, 0.9], [0.2, 0.4, 0.8]], columns=columns),
             "memorization": pd.DataFrame([[0.5, 0.6]], columns=columns[1:])}  # fmt: skip
    figure, data = draw.planted(ranks)
    (ax,) = figure.axes
    found = sorted(round(float(x), 3) for dots in ax.collections for x in dots.get_offsets()[:, 0])
    assert found == [0.1, 0.2, 0.4, 0.5, 0.5, 0.6, 0.8, 0.9]
    assert [label.get_text() for label in ax.get_yticklabels()] == columns
    assert {text.get_text(): text.xy[0] for text in ax.texts} == {"CSG": 0.9, "memorization": 0.6}
    assert data.query("score == 'csg' and condition == 'dark'")["rank"].tolist() == [0.9, 0.8]
