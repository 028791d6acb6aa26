"""Trainings are collected at their stops, with the right epoch, accuracy and sums."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import memlens as ml
from memlens.ensembles.queries import Queries
from memlens.ensembles.subsets import Sweep
from memlens.evaluation import calibration, detection, metrics
from memlens.experiments import stops
from memlens.experiments.profiles import get_profile
from memlens.tracking.peaks import STOPS, Peak


@pytest.fixture(scope="module")
def profile():
    return get_profile("digits").scaled(0.1, 100)


@pytest.fixture(scope="module")
def data(profile):
    return profile.load()


@pytest.fixture(scope="module")
def noisy(profile, data):
    return stops.flipped_runs(profile, data, 0.3, seeds=2)


def test_each_seed_is_trained_on_other_flips(profile, data, noisy):
    flips = [run.data.train.is_noisy.numpy() for run in noisy]
    assert [flip.sum() for flip in flips] == [30, 30] and (flips[0] != flips[1]).any()
    assert [run.posthoc_trace for run in noisy] == [None, None]
    for seed, run in enumerate(noisy):
        same = ml.train_many([profile.job(data.with_noise(0.3, seed=seed), seed=seed,
                                          measure=ml.MeasureConfig())])[0]  # fmt: skip
        pd.testing.assert_frame_equal(run.scores, same.scores)


def test_without_flips_the_labels_stay_and_changes_reach_the_config(profile, data):
    (run,) = stops.flipped_runs(profile, data, 0.0, seeds=1, epochs=2)
    assert len(run.history) == 2 and not run.data.train.is_noisy.any()


def test_planned_accuracy_is_that_of_the_last_epoch(profile, data):
    found = stops.planned_accuracy(profile, data, 0.3, [1, 3], seeds=2)
    assert list(found) == [1, 3]
    runs = stops.flipped_runs(profile, data, 0.3, seeds=2, epochs=3)
    assert found[3].tolist() == [run.history["val_accuracy"].iloc[2] for run in runs]


def test_the_stop_table_has_the_accuracy_of_each_stop(noisy):
    table = stops.stop_table({("default", 0.3): noisy})
    assert table.index.names == ["variant", "flipped", "seed", "stop"] and len(table) == 2 * 5
    for seed, run in enumerate(noisy):
        for stop in STOPS:
            row = table.loc["default", 0.3, seed, stop]
            assert row["epoch"] == run.stops.loc[stop, "epoch"]
            assert row["accuracy"] == run.history["val_accuracy"][row["epoch"]]


def test_curves_come_with_the_stop_that_is_detected_in_them(noisy):
    curves, epochs = stops.watched_curves(noisy)
    assert curves["val_loss"].shape == (2, len(noisy[0].history))
    lowest = curves["val_loss"].argmin(axis=1)
    assert epochs["val_loss"].tolist() == lowest.tolist()
    norm = [run.peaks["weight_norm"].peak_epoch for run in noisy]
    assert epochs["weight_norm"].tolist() == norm


def hand_made(csg, grad_l2, **history):
    return SimpleNamespace(
        scores=pd.DataFrame({"csg": csg}), trace=SimpleNamespace(grad_l2=np.asarray(grad_l2)),
        history=pd.DataFrame(history), peak=Peak(3, 4),
    )  # fmt: skip


def test_the_easiest_samples_are_those_with_the_lowest_csg():
    run = hand_made([3.0, 1.0, 2.0], [[9.0, 1.0, 3.0], [9.0, 5.0, 1.0]])
    assert stops.easiest_gradient(run, 2).tolist() == [2.0, 3.0]


def test_the_gradient_follows_the_first_descent_and_not_the_second():
    loss = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0.5, 4, 5, 6, 7, 8]
    gradient = np.arange(15.0, 0, -1)[:, None]  # falls to the end
    run = hand_made([1.0], gradient, val_loss=loss)
    first, second = stops.follows_the_loss(run, 1)
    assert first == pytest.approx(1) and second == pytest.approx(
        metrics.spearman(gradient[5:, 0], loss[5:]))  # fmt: skip
    assert second < 0


def test_the_mirror_is_split_at_the_peak_of_the_norm():
    run = hand_made([1.0], [[1.0]], weight_norm=[1, 2, 3, 4, 3, 2, 1],
                    input_gradient=[4, 3, 2, 1, 0.5, 0.4, 0.3])  # fmt: skip
    assert stops.mirror(run) == pytest.approx((-1, 1))


def test_descents_are_means_over_seeds_by_rate_and_share():
    one = hand_made([1.0], [[2.0], [4.0]], val_loss=[1.0, 3.0])
    two = hand_made([1.0], [[4.0], [8.0]], val_loss=[3.0, 5.0])
    table = stops.descents({"cut": {0.0: [one, two]}, "constant": {0.4: [two]}}, 1)
    cut = table[(table["rate"] == "cut") & (table["curve"] == "easiest_gradient")]
    assert cut["mean"].tolist() == [3.0, 6.0] and set(cut["flipped"]) == {0.0}
    constant = table[(table["rate"] == "constant") & (table["curve"] == "val_loss")]
    assert constant["mean"].tolist() == [3.0, 5.0] and set(constant["flipped"]) == {0.4}


def test_sums_at_stops_are_compared_with_truth_and_flips(noisy):
    truth = noisy[0].scores["csl"] ** 2
    agreement, found = stops.agreement_at_stops(noisy, truth), stops.flips_found_at_stops(noisy)
    assert list(agreement.columns) == list(found.columns) == stops.SUMS
    assert set(agreement.index) == set(found.index) == {(s, seed) for s in STOPS for seed in (0, 1)}
    at = noisy[1].scores_at("label_wave")
    assert agreement.loc[("label_wave", 1), "csg"] == pytest.approx(at["csg"].corr(truth))
    flipped = noisy[1].data.train.is_noisy.numpy()
    assert found.loc[("label_wave", 1), "csl"] == detection.auroc(flipped, at["csl"])


def sweep():
    logits = np.random.default_rng(0).normal(size=(6, 1, 20, 3)) * 2
    masks = np.random.default_rng(1).random((6, 20)) < 0.5
    y_true = np.random.default_rng(2).integers(0, 3, 20)
    settings = {"queries": Queries(), "arrays": {"logits/last": logits}}
    index = np.arange(20)
    return Sweep(masks, y_true, index, **settings, settings={})


def test_held_out_bins_count_each_held_out_prediction_once():
    half = sweep()
    members = np.arange(20) < 7
    for chosen, expected in ((None, ~half.masks), (members, ~half.masks & members)):
        sums = stops.held_out_bins(half, "last", chosen)
        assert sums[:, :, 0].sum(axis=1).tolist() == expected.sum(axis=1).tolist()
        right = (half.logits.argmax(2) == half.y_true) & expected
        np.testing.assert_allclose(sums[:, :, 2].sum(axis=1), right.sum(axis=1))


def test_heads_and_tails_are_complements_and_tails_are_the_extremes():
    half = sweep()
    memorization = pd.Series(np.arange(20.0))
    groups = stops.heads_and_tails(half, memorization, 4)
    assert list(groups) == ["all", "memorized, head", "memorized, tail", "unsure, head",
                            "unsure, tail"]  # fmt: skip
    assert np.flatnonzero(groups["memorized, tail"]).tolist() == [16, 17, 18, 19]
    for name in ("memorized", "unsure"):
        assert (groups[f"{name}, head"] ^ groups[f"{name}, tail"]).all()
    sample, _, logits = half.held_out("last")
    proba = calibration.softmax(logits)
    means = [proba[sample == i].mean(axis=0).max() for i in range(20) if (sample == i).any()]
    tail = groups["unsure, tail"]
    own = [proba[sample == i].mean(axis=0).max() for i in np.flatnonzero(tail)]
    assert sorted(own) == sorted(means)[:4]
