"""Scores of extra trainings by hand, confident learning and AUM by slow loops."""

import math
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax

import memlens as ml
from memlens.ensembles import costs, proxies, retrainings
from memlens.ensembles.proxies import (
    PROXIES,
    aum_flags,
    every_score,
    extra_scores,
    few_model_memorization,
    rank_mean,
)
from memlens.ensembles.retrainings import KINDS
from memlens.tracking import scores
from memlens.training.config import MeasureConfig, TrainConfig

SHORT = TrainConfig(epochs=5, batch_size=16, lr=0.1)

# The arrays of each kind, for three samples of two classes.
ARRAYS = {
    "y_true": np.array([0, 0, 1]),
    "el2n": np.array([[0.1, 0.5, 1.0], [0.3, 0.5, 1.4]], dtype=np.float32),
    "weight_grad": np.array([[1, 2, 3], [3, 2, 7]], dtype=np.float32),
    "sgd": np.log(np.array([[0.9, 0.1], [0.5, 0.5], [0.8, 0.2]])).astype(np.float32),
    "sam": np.log(np.array([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])).astype(np.float32),
    # correct to the end, forgotten after the first epoch, never correct
    "correct": np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]], dtype=bool),
    # Thresholds: the mean of 0.9 and 0.2 for class 0, 0.7 for class 1.
    "logits": 5 + np.log(np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])).astype(np.float32),
    "masks": ~np.eye(3, dtype=bool),  # network k was trained without sample k
    "p_label": np.array([[0.3, 0.5, 0.4], [0.8, 0.4, 0.6], [1.0, 0.7, 0.6]], dtype=np.float32),
}
BY_HAND = {
    "el2n_mean": [0.2, 0.5, 1.2],
    "grand_mean": [2, 2, 5],
    "samis_loss": [0, math.log(1.2), math.log(3)],
    "samis_prob": [0, 0.2, 0.8],
    "ssft": [-4, -1, 0],
    "ssft_mean": [0.25, 0.75, 1],
    "confident_learning": [0, 1, 0],
    "label_error": [0.1, 0.8, 0.3],
    "fold_memorization": [0.6, 0.2, -0.1],
    "curvature_ssft": [1 / 3, 5 / 6, 5 / 6],
}


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))


@pytest.mark.parametrize("name", sorted(PROXIES))
def test_score_by_hand(name):
    """Every score in the catalogue needs a value in BY_HAND."""
    if name == "curvature_ssft":  # ranks of curvatures 1, 9, 4 and of ssft
        found = PROXIES[name].function(np.array([1, 9, 4]), np.array([-4, -1, 0]))
    else:
        found = PROXIES[name].function(ARRAYS)
    assert found == pytest.approx(BY_HAND[name], abs=1e-6)
    assert found.dtype == np.float64


def test_a_sample_never_learned_gets_the_value_in_the_catalogue():
    never = ARRAYS | {"correct": np.zeros((4, 3), dtype=bool)}
    for name, score in PROXIES.items():
        if score.never_learned != "-":
            assert (score.function(never) == float(score.never_learned)).all(), name


def test_ssft_counts_from_the_last_right_prediction():
    """Compare with a slow loop over epochs."""
    rng = np.random.default_rng(0)
    correct = rng.random((6, 200)) < 0.4
    expected = []
    for column in correct.T:
        epoch = 6
        while epoch and not column[epoch - 1]:
            epoch -= 1
        expected.append(-epoch)
    assert proxies.ssft({"correct": correct}).tolist() == expected
    assert len(set(expected)) == 7


def held_out(seed, n=150, n_classes=4):
    """Labels, a fifth of them wrong, and logits of a network that is mostly correct."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(n_classes, size=n)
    labels = np.where(rng.random(n) < 0.2, rng.integers(n_classes, size=n), truth)
    logits = rng.normal(size=(n, n_classes)) + 3 * np.eye(n_classes)[truth]
    return labels, logits.astype(np.float32)


def slow_confident_learning(labels, p):
    """Flag labels sample by sample, from the definition."""
    thresholds = [p[labels == k, k].mean() for k in range(p.shape[1])]
    flagged = []
    for i, label in enumerate(labels):
        sure = [k for k in range(p.shape[1]) if p[i, k] >= thresholds[k]]
        if sure and max(sure, key=lambda k: p[i, k]) != label:
            flagged.append(i)
    return flagged


@pytest.mark.parametrize("seed", range(4))
def test_confident_learning_is_the_definition_ranked(seed):
    labels, logits = held_out(seed)
    p = softmax(logits.astype(np.float64), 1)
    score = proxies.confident_learning({"y_true": labels, "logits": logits})
    flagged = slow_confident_learning(labels, p)
    assert np.flatnonzero(score).tolist() == flagged
    assert 10 < len(flagged) < 75
    # Among them, the lowest self-confidence has 1 and the highest 1 / their number.
    order = sorted(flagged, key=lambda i: p[i, labels[i]])
    assert score[order] == pytest.approx(np.arange(len(order), 0, -1) / len(order))


def test_confident_learning_is_what_cleanlab_returns():
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    labels, logits = held_out(9)
    arrays, p = {"y_true": labels, "logits": logits}, softmax(logits.astype(np.float64), 1)
    issues = find_label_issues(
        labels, p, filter_by="confident_learning", return_indices_ranked_by="self_confidence"
    )
    score = proxies.confident_learning(arrays)
    assert np.argsort(-score)[: len(issues)].tolist() == issues.tolist()
    assert (score > 0).sum() == len(issues)
    quality = get_label_quality_scores(labels, p)
    assert proxies.label_error(arrays) == pytest.approx(1 - quality, rel=1e-12)


def test_label_error_is_one_minus_the_held_out_probability():
    labels, logits = held_out(3)
    p = softmax(logits.astype(np.float64), 1)[np.arange(len(labels)), labels]
    found = proxies.label_error({"y_true": labels, "logits": logits})
    assert found == pytest.approx(1 - p, rel=1e-9)
    assert len(np.unique(found)) == len(found)  # no ties


def test_without_a_wrong_label_nothing_is_flagged():
    labels = np.arange(20) % 2
    arrays = {"y_true": labels, "logits": 8.0 * np.eye(2)[labels]}
    assert (proxies.confident_learning(arrays) == 0).all()


def test_missing_cleanlab_is_reported(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "cleanlab"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    for score in (proxies.confident_learning, proxies.label_error):
        with pytest.raises(
            ImportError, match=r"needs cleanlab: pip install 'memlens\[confident\]'"
        ):
            score(ARRAYS)


def test_samis_is_exact_where_a_probability_is_nearly_nothing():
    arrays = {"y_true": np.array([0]), "sgd": np.array([[0, 400]], dtype=np.float32)}
    arrays["sam"] = np.array([[0, 100]], dtype=np.float32)
    assert proxies.samis_loss(arrays) == pytest.approx([300])
    assert proxies.samis_prob(arrays) == pytest.approx([0], abs=1e-30)


def test_few_models_add_up_over_repeated_folds(tiny, own_cache):
    """A slow loop over networks and samples, from the definition."""
    data, seeds = other_index(tiny), [4, 7]
    found = few_model_memorization("mlp", data, SHORT, seeds=seeds, n_jobs=1)
    repeats = retrainings.retrain("folds", "mlp", [data, data], SHORT, seeds=seeds)
    assert list(found) == [3, 6]
    assert found.index.tolist() == data.train.index.tolist()
    for n_repeats, column in ((1, 3), (2, 6)):
        for i in range(len(data.train)):
            inside, outside = [], []
            for arrays in repeats[:n_repeats]:
                for mask, p in zip(arrays["masks"], arrays["p_label"], strict=True):
                    (inside if mask[i] else outside).append(float(p[i]))
            assert len(inside) == 2 * n_repeats and len(outside) == n_repeats
            expected = np.mean(inside) - np.mean(outside)
            assert found[column].iloc[i] == pytest.approx(expected, abs=1e-6)
    (first,) = extra_scores("mlp", [data], SHORT, seeds=[4], kinds=["folds"], n_jobs=1)
    assert first["fold_memorization"].tolist() == found[3].tolist()


def test_more_repeats_come_closer_to_the_memorization_of_many(monkeypatch):
    """Networks whose p(label) is the truth plus noise: the error falls with their number."""
    rng, n = np.random.default_rng(0), 600
    truth = 0.6 * rng.random(n)
    arrays = []
    for _ in range(8):
        masks = np.arange(n) % 3 != np.arange(3)[:, None]
        p = np.where(masks, 0.8, 0.8 - truth) + rng.uniform(-0.18, 0.18, masks.shape)
        arrays.append({"masks": masks, "p_label": p})
    monkeypatch.setattr(proxies, "retrain", lambda *_, **__: arrays)
    data = ml.load("digits").subset(n)
    found = few_model_memorization("mlp", data, SHORT, seeds=range(8))
    errors = found.sub(truth, axis=0).std()
    # The noise of one network, of the mean of 2 r networks and of that of r.
    expected = [0.18 / math.sqrt(3) * math.sqrt(1 / (2 * r) + 1 / r) for r in range(1, 9)]
    assert errors.to_numpy() == pytest.approx(expected, rel=0.1)


def test_rank_mean_puts_scores_on_one_scale():
    one, other = np.array([5.0, 1e9, 7.0, 5.0]), pd.Series([0.1, 0.4, 0.2, 0.3])
    assert rank_mean(one) == pytest.approx([1.5 / 4, 1, 3 / 4, 1.5 / 4])
    assert rank_mean(one, other) == pytest.approx([2.5 / 8, 1, 5 / 8, 4.5 / 8])
    assert rank_mean(one**3, other) == pytest.approx(rank_mean(one, other))


def other_index(data):
    """The same data with other indices, so that positions are not indices."""
    index = 1000 - 7 * torch.arange(len(data.train))
    return replace(data, train=replace(data.train, index=index))


def test_extra_scores_are_functions_of_the_arrays(tiny, own_cache):
    data = other_index(tiny)
    noisy = data.with_noise(0.2)
    frames = extra_scores("mlp", [data, noisy], SHORT, seeds=[0, 3], n_jobs=1)
    for frame, samples, seed in zip(frames, (data, noisy), (0, 3), strict=True):
        assert set(frame) == set(PROXIES) - {"curvature_ssft"}
        assert frame.index.name == "index"
        assert frame.index.tolist() == samples.train.index.tolist()
        assert np.isfinite(frame).all(axis=None)
        for kind in KINDS:
            arrays = retrainings.retrain(kind, "mlp", [samples], SHORT, seeds=[seed])[0]
            for name in (name for name, score in PROXIES.items() if score.needs == (kind,)):
                assert frame[name].tolist() == PROXIES[name].function(arrays).tolist()
    assert not frames[0]["label_error"].equals(frames[1]["label_error"])
    two = extra_scores("mlp", [data], SHORT, seeds=[0], kinds=["second_split"])[0]
    assert list(two) == ["ssft", "ssft_mean"]
    assert two.equals(frames[0][list(two)])


def test_every_score_is_one_frame(tiny, own_cache):
    data, measure = (
        other_index(tiny),
        MeasureConfig(posthoc=True, n_directions=1, logit_gradients=True),
    )
    run = ml.train("mlp", data, SHORT, measure)
    bare = ml.train("mlp", data, SHORT)
    extra = extra_scores("mlp", [data], SHORT, seeds=[0], kinds=["second_split"], n_jobs=1)[0]
    assert every_score(bare).equals(bare.scores)
    whole = every_score(run, extra)
    in_step = [n for n, score in scores.CATALOGUE.items() if not score.post_hoc_only]
    later = [n for n in scores.CATALOGUE if n not in in_step and not n.startswith(("gra", "tra"))]
    assert list(whole) == [*in_step, *later, *extra, "curvature_ssft"]
    assert whole.index.equals(run.scores.index)
    assert whole[in_step].equals(run.scores)  # in-step where available
    assert whole[later].equals(run.posthoc_scores[later])
    assert whole[list(extra)].equals(extra)
    by_rank = rank_mean(run.posthoc_scores["curvature"], extra["ssft"])
    assert whole["curvature_ssft"].tolist() == by_rank.tolist()
    assert "curvature_ssft" not in every_score(bare, extra)
    assert list(run.scores) == in_step  # the frame of the run is unchanged
    with pytest.raises(ValueError, match=r"index of extra is not that of run.scores"):
        every_score(run, extra.iloc[::-1])


def test_with_everything_measured_every_score_is_there(flipped):
    _, frame, _ = flipped
    assert set(frame) == set(costs.EVERY_SCORE)
    assert np.isfinite(frame).all(axis=None)


@pytest.fixture
def trainings(monkeypatch, own_cache):
    """The jobs passed to `train_many`, and their runs."""
    seen, real = [], proxies.train_many

    def spy(jobs):
        runs = real(jobs, n_jobs=1)
        seen.extend(zip(jobs, runs, strict=True))
        return runs

    monkeypatch.setattr(proxies, "train_many", spy)
    return seen


@pytest.mark.parametrize("percentile", [99.0, 60.0])
def test_aum_flags_against_a_slow_loop(tiny, trainings, percentile, monkeypatch):
    monkeypatch.setattr(proxies, "AUM_PERCENTILE", percentile)
    data = other_index(tiny)
    table = aum_flags("mlp", data, SHORT, seed=2)
    assert table.index.tolist() == data.train.index.tolist()
    thresholds = []
    for job, run in trainings:
        assert (job.config.seed, job.data.n_classes) == (2, 4)
        fake = job.data.train.labels.numpy() == 3
        kept = torch.tensor(~fake)
        assert torch.equal(job.data.train.labels[kept], data.train.labels[kept])
        thresholds.append(set(np.flatnonzero(fake)))
        # The percentile by linear interpolation.
        values = sorted(run.trace.margin[:, fake].mean(0, dtype=np.float64))
        place = percentile / 100 * (len(values) - 1)
        low = values[math.floor(place)]
        threshold = low + (values[math.ceil(place)] - low) * (place - math.floor(place))
        second = len(thresholds) == 2
        evaluated = sorted(thresholds[0]) if second else np.flatnonzero(~fake)
        area = run.trace.margin.mean(0, dtype=np.float64)[evaluated]
        rows = table.iloc[evaluated]
        assert rows["score"].to_numpy() == pytest.approx(-area, rel=1e-9)
        assert rows["threshold"].to_numpy() == pytest.approx(-threshold, rel=1e-6)
        assert rows["flagged"].tolist() == (area < threshold).tolist()
    assert [len(rows) for rows in thresholds] == [15, 15]  # 60 / (3 + 1)
    assert (
        not thresholds[0] & thresholds[1]
    )  # so every sample is evaluated once, with its real label
    assert table["threshold"].nunique() == 2
    assert table["flagged"].dtype == bool


def test_aum_flags_flipped_rather_than_clean_labels(flipped, trainings):
    run, _, is_flip = flipped
    table = aum_flags("mlp", run.data, TrainConfig(epochs=30))
    flags = table["flagged"].to_numpy()
    assert flags[is_flip].mean() > 0.6
    assert flags[~is_flip].mean() < 0.15


def test_too_few_samples_for_a_threshold_sample_are_refused(tiny):
    few = replace(tiny, train=tiny.train[torch.tensor([0, 1, 2])])
    with pytest.raises(ValueError, match=r"3 samples of 3 classes leave no threshold sample"):
        aum_flags("mlp", few, replace(SHORT, batch_size=2))


def test_flips_are_forgotten_early_in_the_second_split(flipped):
    _, frame, is_flip = flipped
    epoch = -frame["ssft"].to_numpy()
    assert np.median(epoch[is_flip]) <= 2
    assert np.median(epoch[~is_flip]) == 30
