"""Training configurations: learning rates, seeds, refusals."""

import itertools
import math
from dataclasses import replace

import pytest

from memlens.training.config import MeasureConfig, TrainConfig, mixed_seed


def test_learning_rates_drop_at_shares_of_the_epochs():
    config = TrainConfig(epochs=7, lr=0.5, milestones=(0.5, 0.8), gamma=0.1)
    rates = [config.lr_at(epoch) for epoch in range(7)]  # at int(3.5) = 3 and int(5.6) = 5
    assert rates == pytest.approx([0.5, 0.5, 0.5, 0.05, 0.05, 0.005, 0.005])
    assert config.drops == (3, 5)


def test_the_first_epoch_has_the_whole_learning_rate():
    one, two = (TrainConfig(epochs=n, lr=0.5, milestones=(0.3, 0.6)) for n in (1, 2))
    assert one.lr_at(0) == 0.5
    assert (two.lr_at(0), two.lr_at(1)) == pytest.approx((0.5, 0.005))


def test_mixed_seeds_do_not_collide_where_sums_would():
    grid = list(itertools.product(range(12), repeat=2))
    assert len({mixed_seed(*pair) for pair in grid}) == len(grid)
    assert mixed_seed(1, 2) == mixed_seed(1, 2) != mixed_seed(2, 1)


@pytest.mark.parametrize("name", ["n_directions", "weight_gradients", "logit_gradients"])
def test_what_needs_the_posthoc_pass_says_so(name):
    with pytest.raises(ValueError, match=rf"{name} needs the post-hoc pass: set posthoc=True"):
        MeasureConfig(**{name: 1})
    assert MeasureConfig(posthoc=True, **{name: 1})


@pytest.mark.parametrize(
    "bad", [{"every": 0}, {"n_directions": -1}, {"curvature_step": 0.0}, {"curvature_step": -1}]
)
def test_bad_measures_are_refused(bad):
    with pytest.raises(
        ValueError, match=r"expected every >= 1, n_directions >= 0, curvature_step > 0"
    ):
        replace(MeasureConfig(posthoc=True), **bad)


@pytest.mark.parametrize("radius", [-0.1, math.nan])
def test_a_bad_radius_is_refused(radius):
    with pytest.raises(ValueError, match=rf"sam_rho is {radius}; expected a radius"):
        TrainConfig(sam_rho=radius)
