"""Recipes: the ascent of SAM worked out by hand, learning rates, seeds, refusals."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memlens.models import registry
from memlens.training import steps
from memlens.training.config import MeasureConfig, TrainConfig, ascended, mixed_seed

RHO = 0.05


def softmax_slope(weight, bias, x, y):
    """Gradient of the mean cross-entropy of a linear net, written out; NumPy."""
    z = x @ weight.T + bias
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return p.T @ x / len(y), p.mean(0)


def linear_task():
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 4)), rng.normal(size=3)
    return weight, bias, rng.normal(size=(7, 4)), rng.integers(3, size=7)


def test_a_step_of_sam_by_hand():
    weight, bias, x, y = linear_task()
    slope = softmax_slope(weight, bias, x, y)
    length = math.sqrt(sum((part**2).sum() for part in slope))
    there = [w + RHO * g / length for w, g in zip((weight, bias), slope, strict=True)]
    slope = softmax_slope(*there, x, y)
    expected = [w - 0.1 * g for w, g in zip((weight, bias), slope, strict=True)]

    net = nn.Linear(4, 3).double()
    net.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    batch = torch.tensor(x), torch.tensor(y)
    steps.train_step(net, optimizer, *batch, None, torch.arange(7), RHO)
    for found, value in zip((net.weight, net.bias), expected, strict=True):
        assert found.detach().numpy() == pytest.approx(value, rel=1e-12)


def with_gradients(seed=0):
    net = registry.build("mlp", 3, (1, 3, 3), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(8, 1, 3, 3, generator=generator), torch.arange(8) % 3
    F.cross_entropy(net(x), y).backward()
    return net, x, y


def test_the_weights_climb_by_the_radius_and_come_back_bit_for_bit():
    net, x, y = with_gradients()
    before = [w.detach().clone() for w in net.parameters()]
    low = F.cross_entropy(net(x), y)
    with ascended(list(net.parameters()), RHO):
        augmentation = [w.detach() - b for w, b in zip(net.parameters(), before, strict=True)]
        assert torch.cat([m.flatten() for m in augmentation]).norm().item() == pytest.approx(
            RHO, rel=1e-4
        )
        assert F.cross_entropy(net(x), y) > low
        assert all(w.grad is None for w in net.parameters())
    assert all(torch.equal(w, b) for w, b in zip(net.parameters(), before, strict=True))


def test_the_weights_come_back_from_an_error_too():
    net, _, _ = with_gradients()
    before = [w.detach().clone() for w in net.parameters()]
    with pytest.raises(KeyError), ascended(list(net.parameters()), 3.0):
        raise KeyError
    assert all(torch.equal(w, b) for w, b in zip(net.parameters(), before, strict=True))


def test_no_radius_is_no_move():
    net, x, y = with_gradients()
    plain = [w.grad.clone() for w in net.parameters()]
    with ascended(list(net.parameters()), 0.0):
        F.cross_entropy(net(x), y).backward()
    assert all(torch.equal(w.grad, g) for w, g in zip(net.parameters(), plain, strict=True))


def test_without_a_slope_the_weights_stay():
    weight = torch.ones(2, 3, requires_grad=True)
    weight.grad = torch.zeros(2, 3)
    with ascended([weight], RHO):
        assert torch.equal(weight, torch.ones(2, 3))


def test_stacked_nets_climb_each_by_a_radius_of_its_own():
    nets = [with_gradients(seed)[0] for seed in range(3)]
    stacked = []
    for parts in zip(*(net.parameters() for net in nets), strict=True):
        weight = torch.stack([p.detach() for p in parts]).requires_grad_(True)
        weight.grad = torch.stack([p.grad for p in parts])
        stacked.append(weight)
    stacked[0].grad[1] *= 1e-3  # a net that hardly slopes climbs as far as the others
    next(nets[1].parameters()).grad.mul_(1e-3)
    with ascended(stacked, RHO, stacked=True):
        for i, net in enumerate(nets):
            with ascended(list(net.parameters()), RHO):
                for together, alone in zip(stacked, net.parameters(), strict=True):
                    assert torch.allclose(together[i], alone, rtol=1e-6, atol=1e-8)


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
    with pytest.raises(ValueError, match=r"expected every >= 1, no negative probes, a step above"):
        replace(MeasureConfig(posthoc=True), **bad)


@pytest.mark.parametrize("radius", [-0.1, math.nan])
def test_a_bad_radius_is_refused(radius):
    with pytest.raises(ValueError, match=rf"sam_rho is {radius}; expected a radius"):
        TrainConfig(sam_rho=radius)


def test_frozen_weights_do_not_climb():
    net, x, y = with_gradients()
    frozen = next(net.parameters())
    frozen.grad = None
    before = frozen.detach().clone()
    with ascended(list(net.parameters()), RHO):
        assert torch.equal(frozen, before)
