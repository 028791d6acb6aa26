"""Attributes of drawn images by hand, and tests inside classes that a pooled test would miss."""

import numpy as np
import pandas as pd
import pytest

from memlens.evaluation import attributes, metrics
from memlens.evaluation.attributes import (
    ALL,
    IN_CLASS,
    POOLED,
    association_tests,
    extremes,
    image_attributes,
    means_of_ends,
    nearest_means,
    rank_in_class,
)


def drawn(*images):
    return np.array(images, dtype=np.uint8)[:, None]


BLACK = [[0, 0], [0, 0]]
CORNER = [[8, 0], [0, 0]]
GREY = [[4, 4], [4, 4]]


def test_attributes_of_drawn_images_by_hand():
    labels = pd.Series([0, 0, 1], index=[7, 3, 5])
    table = image_attributes(drawn(BLACK, CORNER, GREY), labels, 8)
    assert table.index.tolist() == [7, 3, 5]
    np.testing.assert_allclose(table["brightness"], [0, 0.25, 0.5])
    np.testing.assert_allclose(table["contrast"], [0, np.sqrt(3) / 4, 0], rtol=1e-6)
    np.testing.assert_allclose(table["area"], [0, 0.25, 1])
    np.testing.assert_allclose(table["tone"], [0, 1, 0.5])
    np.testing.assert_allclose(table["class_distance"], [0.5, 0.5, 0])


def test_darkening_changes_tone_and_not_area():
    images = np.random.default_rng(0).random((5, 1, 6, 6)) * (np.arange(6) > 2)
    labels = pd.Series(range(5))
    before, after = (image_attributes(images * factor, labels, 1) for factor in (1, 0.3))
    np.testing.assert_allclose(after["area"], before["area"])
    for name in ("brightness", "contrast", "tone"):
        np.testing.assert_allclose(after[name], 0.3 * before[name], rtol=1e-5)


def test_colour_images_have_a_saturation():
    red, grey = np.zeros((3, 2, 2)), np.full((3, 2, 2), 0.5)
    red[0] = 1
    table = image_attributes(np.stack([red, grey]), pd.Series([0, 1]), 1)
    assert "tone" not in table and table["saturation"].tolist() == [1, 0]


def test_the_rival_is_the_nearest_other_class():
    dots = np.array([0, 0, 9, 9, 4, 5]).reshape(6, 1, 1, 1)
    labels = pd.Series(list("cchhff"), index=list("uvwxyz"))
    table = nearest_means(dots, labels, 9)
    assert table["label"].tolist() == list("cchhff")
    assert table["rival"].tolist() == list("ffffch")
    assert table["pair"].tolist() == ["c / f", "c / f", "f / h", "f / h", "c / f", "f / h"]
    assert not table["ambiguous"].any()
    odd = nearest_means(dots, pd.Series([2, 7, 7, 7, 2, 2], index=labels.index), 9)
    assert odd["ambiguous"].tolist() == [False, True, False, False, False, True]  # means 3 and 6


def test_extremes_are_sorted_within_each_class():
    score = pd.Series([3.0, 1, 2, 30, 10, 20], index=[5, 4, 3, 2, 1, 0])
    labels = pd.Series([1, 1, 1, 0, 0, 0], index=score.index)
    lowest, highest = extremes(score, labels, 2)
    assert lowest.index.tolist() == [0, 1]
    assert lowest.to_numpy().tolist() == [[1, 0], [4, 3]]
    assert highest.to_numpy().tolist() == [[2, 0], [5, 3]]
    ties = extremes(score * 0, labels, 2)
    assert ties.lowest.equals(ties.highest)  # the first rows, both times
    for k in (0, 4):
        with pytest.raises(ValueError, match="size of the smallest class"):
            extremes(score, labels, k)


def test_ranks_ignore_differences_between_classes():
    labels = pd.Series([0, 0, 0, 1, 1, 1])
    values = pd.DataFrame({"a": [1, 2, 3, 101, 102, 103], "b": [3, 3, 1, 0, 5, 9]})
    ranks = rank_in_class(values, labels)
    assert ranks["a"].tolist() == pytest.approx([1 / 3, 2 / 3, 1] * 2)
    assert ranks["b"].tolist()[:3] == pytest.approx([2.5 / 3, 2.5 / 3, 1 / 3])


def test_means_of_ends_over_all_and_inside_each_class():
    score = pd.Series([5.0, 1, 3, 2, 4, 10, 30, 20], index=list("abcdefgh"))
    labels = pd.Series([0] * 5 + [1] * 3, index=score.index)
    values = pd.DataFrame({"position": np.arange(8), "one": 1}, index=score.index)
    lowest, highest = means_of_ends(values, score, labels, share=0.25)
    assert lowest.index.tolist() == highest.index.tolist() == [ALL, 0, 1]
    assert lowest["position"].tolist() == [2, 1, 5]  # b and d; b; f
    assert highest["position"].tolist() == [6.5, 0, 6]  # g and h; a; g
    assert (lowest["one"] == 1).all()
    assert means_of_ends(values["one"], score).lowest.index.tolist() == [ALL]


def test_opposite_classes_cancel_when_pooled_and_are_found_by_class():
    rng = np.random.default_rng(0)
    tone, labels = rng.random(400), pd.Series([0, 1] * 200)
    score = pd.Series(np.where(labels == 0, tone, -tone) + 0.1 * rng.random(400))
    score += 2 * labels  # the second class is the harder one
    table = pd.DataFrame({"tone": tone, "noise": rng.random(400)})
    tests = association_tests(score, table, labels)
    assert tests.index.unique("samples").tolist() == [POOLED, IN_CLASS, 0, 1]
    assert tests.loc[[(POOLED, "tone"), (IN_CLASS, "tone")], "spearman"].abs().max() < 0.1
    assert tests.loc[(0, "tone"), "spearman"] > 0.9 and tests.loc[(1, "tone"), "spearman"] < -0.9
    of_classes = tests.loc[[0, 1]]
    np.testing.assert_allclose(of_classes["p_holm"], metrics.holm(of_classes["p_value"]))
    assert of_classes["p_holm"].xs("tone", level="attribute").max() < 1e-6
    assert of_classes["p_holm"].xs("noise", level="attribute").min() > 0.05


def test_the_pooled_sign_can_be_that_of_the_classes_alone():
    rng = np.random.default_rng(0)
    labels = pd.Series([0, 1] * 100)
    tone = pd.Series(rng.random(200) + 2 * labels)
    score = -tone + 6 * labels  # inside each class the dark ones are hard; class 1 is hard, bright
    tests = association_tests(score, tone.to_frame("tone"), labels)["spearman"]
    assert tests[(POOLED, "tone")] > 0.4 and tests[(IN_CLASS, "tone")] == pytest.approx(-1)


def test_classes_of_two_are_left_out():
    labels = pd.Series([0, 0, 0, 1, 1])
    table = pd.DataFrame({"a": np.arange(5.0)})
    tests = association_tests(table["a"], table, labels)
    assert tests.index.unique("samples").tolist() == [POOLED, IN_CLASS, 0]


@pytest.mark.parametrize(
    ("images", "labels", "pixel_max", "message"),
    [
        (np.zeros((2, 2, 2)), [0, 1], 1, "have shape"),
        (np.zeros((2, 2, 2, 2)), [0, 1], 1, "have shape"),
        (np.zeros((2, 1, 2, 2)), [0], 1, "2 images and 1 labels"),
        (np.full((1, 1, 2, 2), 255), [0], 1, "go from 255 to 255"),
        (np.full((1, 1, 2, 2), np.nan), [0], 1, "expected 0 to"),
    ],
)
def test_what_is_no_image_is_refused(images, labels, pixel_max, message):
    with pytest.raises(ValueError, match=message):
        image_attributes(images, pd.Series(labels), pixel_max)


def test_the_examples_of_the_docstrings():
    import doctest

    names = {"np": np, "pd": pd}
    assert doctest.testmod(attributes, extraglobs=names).failed == 0
