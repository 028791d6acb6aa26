"""Sharpness-aware minimization: a step by hand, the climb and the way back, stacks."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memlens.models import registry
from memlens.training.loop import train_step
from memlens.training.sam import replace_gradients

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


def with_gradients(seed=0):
    net = registry.build("mlp", 3, (1, 3, 3), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(8, 1, 3, 3, generator=generator), torch.arange(8) % 3
    F.cross_entropy(net(x), y).backward()
    return net, x, y


def climb(weights, rho, there, **options):
    """Call ``there`` where the weights stand after the climb."""
    weights = list(weights)

    def loss():
        there()
        return sum(weight.sum() for weight in weights)

    replace_gradients(torch.optim.SGD(weights, 1.0), rho, loss, **options)


def copies(weights):
    return [weight.detach().clone() for weight in weights]


def test_a_step_by_hand():
    weight, bias, x, y = linear_task()
    slope = softmax_slope(weight, bias, x, y)
    length = math.sqrt(sum((part**2).sum() for part in slope))
    there = [w + RHO * g / length for w, g in zip((weight, bias), slope, strict=True)]
    slope = softmax_slope(*there, x, y)
    expected = [w - 0.1 * g for w, g in zip((weight, bias), slope, strict=True)]

    net = nn.Linear(4, 3).double()
    net.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    train_step(net, optimizer, torch.tensor(x), torch.tensor(y), sam_rho=RHO)
    for found, value in zip((net.weight, net.bias), expected, strict=True):
        assert found.detach().numpy() == pytest.approx(value, rel=1e-12)


def test_the_weights_climb_by_the_radius_and_come_back_bit_for_bit():
    net, x, y = with_gradients()
    before, low = copies(net.parameters()), F.cross_entropy(net(x), y)

    def there():
        steps = [w.detach() - b for w, b in zip(net.parameters(), before, strict=True)]
        length = torch.cat([step.flatten() for step in steps]).norm().item()
        assert length == pytest.approx(RHO, rel=1e-4)
        assert F.cross_entropy(net(x), y) > low
        assert all(w.grad is None for w in net.parameters())

    climb(net.parameters(), RHO, there)
    assert all(torch.equal(w, b) for w, b in zip(net.parameters(), before, strict=True))


def test_the_weights_come_back_from_an_error_as_well():
    net, _, _ = with_gradients()
    before = copies(net.parameters())
    with pytest.raises(KeyError):
        climb(net.parameters(), 3.0, lambda: {}["missing"])
    assert all(torch.equal(w, b) for w, b in zip(net.parameters(), before, strict=True))


def test_no_radius_gives_the_gradients_of_a_plain_step():
    net, x, y = with_gradients()
    plain = [w.grad.clone() for w in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    replace_gradients(optimizer, 0.0, lambda: F.cross_entropy(net(x), y))
    assert all(torch.equal(w.grad, g) for w, g in zip(net.parameters(), plain, strict=True))


def test_without_a_slope_the_weights_stay():
    weight = torch.ones(2, 3, requires_grad=True)
    weight.grad = torch.zeros(2, 3)
    stood = []
    climb([weight], RHO, lambda: stood.append(weight.detach().clone()))
    assert torch.equal(stood[0], torch.ones(2, 3))


def test_a_frozen_weight_stays_frozen():
    net, x, y = with_gradients()
    weights = list(net.parameters())
    weights[0].requires_grad_(False)
    weights[0].grad, before = None, weights[0].detach().clone()
    optimizer = torch.optim.SGD(weights, 1.0)
    replace_gradients(optimizer, RHO, lambda: F.cross_entropy(net(x), y))
    assert torch.equal(weights[0], before) and weights[0].grad is None


def test_stacked_networks_climb_each_by_a_radius_of_its_own():
    nets = [with_gradients(seed)[0] for seed in range(3)]
    stacked = []
    for parts in zip(*(net.parameters() for net in nets), strict=True):
        weight = torch.stack([p.detach() for p in parts]).requires_grad_(True)
        weight.grad = torch.stack([p.grad for p in parts])
        stacked.append(weight)
    stacked[0].grad[1] *= 1e-3  # a network with a small slope climbs as far as the others
    next(nets[1].parameters()).grad.mul_(1e-3)
    together = []
    climb(stacked, RHO, lambda: together.extend(copies(stacked)), stacked=True)
    for i, net in enumerate(nets):
        alone = []
        weights = list(net.parameters())
        climb(weights, RHO, lambda at=weights, to=alone: to.extend(copies(at)))
        for stack, weight in zip(together, alone, strict=True):
            assert torch.allclose(stack[i], weight, rtol=1e-6, atol=1e-8)
