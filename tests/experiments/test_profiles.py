"""The table of profiles."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import memlens as ml
from memlens.ensembles import costs
from memlens.tracking.peaks import STOPS
from memlens.training.config import MeasureConfig, TrainConfig


def test_the_digits_profile_is_the_papers_config_at_the_size_of_digits():
    profile = ml.get_profile("digits")
    data = profile.load()
    assert profile.top_k(data) == 143
    assert profile.sweep_models >= 400
    job = profile.job(data, seed=2, lr=0.05, measure=MeasureConfig())
    assert (job.config.seed, job.config.lr, job.config.momentum) == (2, 0.05, 0.9)
    assert job.measure == MeasureConfig()
    assert profile.job(data).measure == MeasureConfig(
        posthoc=True, n_directions=10, weight_gradients=True, logit_gradients=True
    )
    for changes in profile.optimizers.values():
        assert profile.job(data, **changes).config


@pytest.fixture
def short(monkeypatch, tmp_path):
    """The digits profile in a few epochs, with a cache of its own."""
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    config = TrainConfig(epochs=3, batch_size=16)
    return replace(ml.get_profile("digits"), config=config, sweep_config=config, sweep_models=4)


def test_runs_and_extra_scores_make_every_score(short, tiny):
    data = [tiny, tiny.with_noise(0.2)]
    runs = [short.runs(d, seeds=1)[0] for d in data]
    extra = short.extra_scores(data, seeds=[0, 7])
    for run, frame, samples in zip(runs, extra, data, strict=True):
        assert set(ml.every_score(run, frame)) == set(costs.EVERY_SCORE)
        assert len(run.history) == 3
        assert frame.index.tolist() == samples.train.index.tolist()
    alone = ml.extra_scores("mlp", data[1:], short.config, seeds=[7], kinds=["folds"])[0]
    assert extra[1][list(alone)].equals(alone)
    other = short.extra_scores(data[:1], seeds=[0], kinds=["folds"], model="mlp_bn")[0]
    assert not other.equals(extra[0][list(other)])


def test_a_sweep_is_that_of_the_profile_unless_changed(short, tiny):
    assert short.sweep(tiny).masks.shape == (4, 60)
    changed = short.sweep(tiny, n_models=2, keep=0.5)
    assert torch.tensor(changed.masks).sum(1).tolist() == [30, 30]


def test_the_half_sweep_has_the_profiles_targets_and_shadows(short, tiny):
    queries = replace(ml.get_profile("digits").queries, snapshots=("last", 2), n_directions=1)
    profile = replace(short, queries=queries, n_shadows=3, n_targets=2)
    half = profile.half_sweep(tiny)
    assert half.masks.shape == (5, 60)
    assert (half.masks.sum(1) == 30).all()
    assert half.settings["epochs"] == 3  # the whole config, not the sweep's
    assert half.logits_at("last").shape == (5, 3, 60, 3)
    assert ml.get_profile("digits").n_shadows == 64  # as in the papers


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match=r"unknown profile 'cifar'; known: fashion_small, digits"):
        ml.get_profile("cifar")
    with pytest.raises(TypeError, match="learning_rate"):
        ml.get_profile("digits").job(ml.load("digits"), learning_rate=0.1)


def test_a_first_look_is_smaller_down_to_the_minima():
    whole = ml.get_profile("fashion_mnist")
    look = whole.scaled(0.03, 600)
    assert (look.config.epochs, look.sweep_config.epochs) == (6, 6)
    assert (look.config.batch_size, look.n_samples) == (24, 600)  # 25 steps an epoch
    assert (look.sweep_models, look.n_shadows, look.n_targets) == (44, 32, 3)
    assert look.measure.every == 1 and whole.measure.every == 4
    assert {*look.queries.snapshots} >= {*STOPS, 1}
    assert look.queries.n_directions == look.measure.n_directions == 2
    assert look.reductions == (
        "6 of 200 epochs",
        "44 of 400 networks",
        "2 of 10 curvature directions",
        "600 samples in batches of 24",
    )
    half = whole.scaled(0.5)
    assert (half.config.epochs, half.config.batch_size, half.sweep_models) == (100, 128, 200)
    with pytest.raises(ValueError, match="scale is 2"):
        whole.scaled(2)


def test_samples_without_a_published_truth_are_left_out(monkeypatch, pets):
    found, path = pets
    certain = np.arange(30) % 10 != 3
    np.savez(path, **found, order_certain_train=certain)
    np.savez(path.with_name("pets_fz.npz"), tr_mem=np.linspace(0, 1, 30))
    profile = replace(ml.get_profile("digits"), dataset="pets", published=True)
    data = profile.load()
    assert data.train.index.tolist() == np.flatnonzero(certain).tolist()
    truth = profile.memorization(data)
    assert truth["memorization"].tolist() == np.linspace(0, 1, 30)[certain].tolist()
    assert truth.drop(columns="memorization").isna().all(axis=None)
    assert len(replace(profile, published=False).load().train) == 30
    assert len(replace(profile, n_samples=9).load().train) == 9


def test_too_few_samples_of_a_class_are_refused_before_any_training():
    profile = replace(ml.get_profile("digits"), n_samples=20)
    assert profile.load(per_class=2).train.labels.bincount().tolist() == [2] * 10
    with pytest.raises(ValueError, match=r"has 2 training samples; 3 are needed: .* to 30 or"):
        profile.load(per_class=3)
