"""The bound of lemma 4.1: what is reached of it, and a network that breaks it."""

import numpy as np
import pytest
import torch
from torch import nn

from memlens.tracking import signals
from memlens.tracking.bounds import bound_shares, smallest_singular_value


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))


def test_the_shares_by_hand(mlp):
    x, y = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    shares = bound_shares(mlp, x, y)
    for i in range(5):
        mlp.zero_grad()
        one = x[i : i + 1].clone().requires_grad_(True)
        signals.loss(mlp(one), y[i : i + 1]).sum().backward()
        reached = (one.grad.norm() * x[i].norm()).item()
        weight = mlp[0].weight
        whole = torch.cat([p.grad.flatten() for p in mlp.parameters()]).norm().item()
        every = torch.cat([p.detach().flatten() for p in mlp.parameters()]).norm().item()
        layer = weight.grad.norm().item()
        expected = [
            reached / (every * whole),
            reached / (weight.norm().item() * layer),
            reached / (torch.linalg.svdvals(weight.detach())[0].item() * layer),
        ]
        np.testing.assert_allclose(shares.iloc[i], expected, rtol=1e-4)
    assert list(shares) == ["all_weights", "first_layer", "first_layer_spectral"]


def test_no_share_exceeds_one_behind_a_fully_connected_layer(mlp):
    shares = bound_shares(mlp, torch.randn(200, 6), torch.randint(3, (200,)))
    assert (shares <= 1 + 1e-6).all(axis=None)
    assert (np.diff(shares, axis=1) >= 0).all()  # each bound is tighter than the one before


def test_the_sharp_bound_is_reached():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 3, bias=False))
    x, y = torch.zeros(1, 6), torch.tensor([0])
    u, _, v = torch.linalg.svd(net[0].weight.detach())
    x[0] = v[-1] * 1e-3  # nearly no logits: the gradient at them is softmax(0) minus one-hot
    gap = torch.full((3,), 1 / 3) - torch.tensor([1.0, 0.0, 0.0])
    expected = (net[0].weight.T @ gap).norm() / (
        torch.linalg.svdvals(net[0].weight)[0] * gap.norm()
    )
    share = bound_shares(net, x, y)["first_layer_spectral"].item()
    assert share == pytest.approx(expected.item(), rel=1e-3)


def test_a_convolution_breaks_every_bound():
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(1, 2, bias=False))  # fmt: skip
    nn.init.ones_(net[0].weight)
    net[3].weight.data = torch.tensor([[1.0], [-1.0]])
    signs = torch.tensor([[1.0], [-1.0]])
    board = (signs @ signs.T).repeat(4, 4)[None, None]
    assert np.isinf(bound_shares(net, board, torch.tensor([0]))).all(axis=None)
    assert (bound_shares(net, board + 0.01, torch.tensor([0])) > 10).all(axis=None)


def test_a_model_without_a_matrix_is_refused():
    with pytest.raises(ValueError, match="no weight matrix"):
        bound_shares(nn.Flatten(), torch.ones(1, 2), torch.tensor([0]))


def test_dependent_inputs_leave_no_bound():
    torch.manual_seed(0)
    batch = torch.randn(4, 1, 3, 3)
    assert smallest_singular_value(batch) == pytest.approx(1)
    assert smallest_singular_value(torch.cat([batch, batch[:1]])) == pytest.approx(0, abs=1e-6)
