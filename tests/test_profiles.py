"""The table of profiles."""

import pytest

import memlens as ml
from memlens.recipes import Measure


def test_the_digits_profile_is_the_papers_recipe_at_the_size_of_digits():
    profile = ml.get_profile("digits")
    data = profile.load()
    assert profile.top_k(data) == 143
    assert profile.sweep_models >= 400
    job = profile.job(data, seed=2, lr=0.05, measure=Measure())
    assert (job.recipe.seed, job.recipe.lr, job.recipe.momentum) == (2, 0.05, 0.9)
    assert job.measure == Measure()
    assert profile.job(data).measure == Measure(posthoc=True, curvature_probes=10)
    for changes in profile.optimizers.values():
        assert profile.job(data, **changes).recipe


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match=r"unknown profile 'cifar'; known: digits"):
        ml.get_profile("cifar")
    with pytest.raises(TypeError, match="learning_rate"):
        ml.get_profile("digits").job(ml.load("digits"), learning_rate=0.1)
