"""`ml.explore`: which samples, scores and groups of a run it shows, and what it refuses."""

import base64

import numpy as np
import pandas as pd
import pytest

import memlens as ml
from memlens.audit import explore


@pytest.fixture(scope="module")
def run():
    data = ml.load("digits").subset(120).with_noise(0.1)
    return ml.train("mlp", data, ml.TrainConfig(epochs=3))


def test_it_shows_the_scores_images_and_curves_of_the_run(run):
    shown = ml.explore(run)
    assert (shown.x, shown.y, shown.color) == ("csg", "csl", "class")
    pd.testing.assert_frame_equal(shown.points.scores, run.scores)
    assert shown.points.index.tolist() == run.data.train.index.tolist()
    assert (np.asarray(shown.points.images) == run.data.train.images.numpy()).all()
    curves = shown.points.curves
    np.testing.assert_array_equal(curves["loss"], run.trace.loss)
    np.testing.assert_array_equal(curves["input gradient (L2)"], run.trace.grad_l2)


def test_changed_labels_become_groups(run):
    groups = ml.explore(run, color="label noise").points.groups
    train = run.data.train
    assert ((groups["label noise"] == "label changed") == train.is_noisy.numpy()).all()
    names = np.array(run.data.class_names)
    assert groups["class"].tolist() == names[train.labels].tolist()
    assert groups["class before"].tolist() == names[train.clean_labels].tolist()


def test_truth_and_extra_columns_are_matched_by_original_index(run):
    index = run.scores.index
    truth = pd.DataFrame({"memorization": index / 2, "n_in": 1}, index=index)[::-1]
    extra = pd.DataFrame({"margin": [2.0, 1.0], "suggestion": ["a", "b"]}, index=index[[7, 3]])
    shown = ml.explore(run, truth, extra=extra)
    assert shown.y == "memorization" and "n_in" not in shown.points.scores
    assert (shown.points.scores["memorization"] == index / 2).all()
    margin = shown.points.scores["margin"]
    assert margin.iloc[[3, 7]].tolist() == [1.0, 2.0] and margin.isna().sum() == len(index) - 2
    assert shown.points.categories["suggestion"].value_counts()["none"] == len(index) - 2
    as_series = ml.explore(run, truth["memorization"], extra=extra["suggestion"])
    assert "suggestion" in as_series.points.groups and "memorization" in as_series.points.scores


def test_samples_are_chosen_by_index_or_at_random_with_a_seed(run):
    highest = run.scores["csg"].nlargest(10).index
    assert set(ml.explore(run, samples=highest).points.index) == set(highest)
    first, again, other = (ml.explore(run, n_max=30, seed=s).points for s in (0, 0, 1))
    assert len(first.index) == 30 and first.index.tolist() == again.index.tolist()
    assert first.index.tolist() != other.index.tolist()
    rows = run.data.train.index.tolist().index(int(first.index[4]))
    assert (np.asarray(first.images[4]) == run.data.train.images[rows].numpy()).all()
    assert first.curves["loss"][:, 4].tolist() == run.trace.loss[:, rows].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": "cgs"}, "x is 'cgs'; expected one of csg"),
        ({"color": "label noize"}, "expected one of class, label noise"),
        ({"truth": pd.Series(np.ones(5))}, "the index of truth must hold original indices"),
        ({"truth": pd.DataFrame({"mem": [1.0]})}, "no column 'memorization'"),
        ({"extra": pd.Series([1.0, 2.0], index=[-1, -2], name="a")}, "2 of its 2 rows"),
        ({"samples": [-1]}, "1 samples are not in the run, such as -1"),
        ({"samples": []}, "no samples"),
        ({"n_max": 0}, "n_max is 0"),
    ],
)
def test_what_does_not_fit_is_refused(run, arguments, message):
    if "truth" in arguments and isinstance(arguments["truth"], pd.Series):
        arguments["truth"].index = [10**6 + i for i in range(5)]  # as of other data
    with pytest.raises(ValueError, match=message):
        ml.explore(run, **arguments)


def test_a_column_that_is_there_already_is_refused(run):
    with pytest.raises(ValueError, match="already: csg; rename"):
        ml.explore(run, extra=run.scores[["csg"]])


def test_a_run_without_measured_curves_is_refused(run, monkeypatch):
    monkeypatch.setattr(explore, "CURVES", {"not_there": "nothing"})
    with pytest.raises(ValueError, match="no curves"):
        ml.explore(run)


def test_it_is_saved_as_a_page_and_shown_as_page_picture_and_text(run, tmp_path):
    shown = ml.explore(run)
    path = shown.save(tmp_path / "page.html")
    assert path.read_text(encoding="utf-8") == shown.page
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    bundle = shown._repr_mimebundle_()
    assert list(bundle) == ["text/html", "image/png", "text/plain"]
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert "srcdoc" in bundle["text/html"]
    assert bundle == ml.explore(run)._repr_mimebundle_()  # the same bytes
    assert bundle["text/plain"] == "Explorer(digits: 120 samples, csl by csg, colour: class)"


def test_a_page_that_cannot_be_written_leaves_the_old_one(run, tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OSError):
        ml.explore(run).save(tmp_path / "page.html")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
