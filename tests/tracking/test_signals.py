"""Signals against for-loops of single-sample backward passes, closed forms and exact Hessians."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memlens.models import registry
from memlens.tracking import scores, signals
from memlens.tracking.traces import Trace

N, CLASSES, SHAPE = 37, 5, (2, 3, 3)


@pytest.fixture(params=["mlp", "small_cnn"])
def net(request):
    return registry.build(request.param, CLASSES, SHAPE, seed=1).double().eval()


@pytest.fixture
def smooth_net(batch):
    """A net without kinks, whose second differences are second derivatives, and its batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(18, 12), nn.Tanh(), nn.Linear(12, CLASSES))
    return net.double(), *batch


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, *SHAPE, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (N,), generator=generator)


def one_by_one(net, x, y):
    """The oracle: one sample, one forward pass, one backward pass, nothing shared."""
    for xi, yi in zip(x, y, strict=True):
        xi = xi.clone()[None].requires_grad_(True)
        net.zero_grad()
        logits = net(xi)
        by_logit = torch.autograd.grad(logits[0, yi], xi, retain_graph=True)[0][0]
        loss = -logits[0].log_softmax(0)[yi]
        loss.backward()
        yield loss.item(), logits[0].detach(), xi.grad[0], by_logit


def test_all_signals_against_single_samples(net, batch):
    x, y = batch
    logits = net(x).detach()
    losses, margins, errors = (f(logits, y) for f in (signals.loss, signals.margin, signals.el2n))
    gradient = signals.input_gradient(net, x, y)
    norms = signals.gradient_norms(gradient)
    slopes = signals.logit_gradient(net, x, y)
    for i, (loss, z, by_x, by_logit) in enumerate(one_by_one(net, x, y)):
        assert losses[i].item() == pytest.approx(loss, rel=1e-10)
        rest = max(float(z[k]) for k in range(CLASSES) if k != y[i])
        assert margins[i].item() == pytest.approx(float(z[y[i]]) - rest, rel=1e-9, abs=1e-12)
        p = [math.exp(v) for v in z.log_softmax(0).tolist()]
        distance = math.sqrt(sum((p[k] - int(k == y[i])) ** 2 for k in range(CLASSES)))
        assert errors[i].item() == pytest.approx(distance, rel=1e-9)
        assert torch.allclose(gradient[i], by_x, rtol=1e-9, atol=1e-12)
        assert norms.l2[i].item() == pytest.approx(math.sqrt((by_x**2).sum()), rel=1e-9)
        assert norms.l1[i].item() == pytest.approx(float(by_x.abs().sum()), rel=1e-9)
        assert torch.allclose(slopes[i], by_logit, rtol=1e-9, atol=1e-12)


def test_linear_model_has_the_closed_form(batch):
    x, y = batch
    net = nn.Sequential(nn.Flatten(), nn.Linear(18, CLASSES)).double()
    weight = net[1].weight
    error = net(x).softmax(1) - F.one_hot(y, CLASSES)
    expected = (error @ weight).reshape(x.shape)
    assert torch.allclose(signals.input_gradient(net, x, y), expected)
    slope = signals.logit_gradient(net, x, y)
    assert torch.allclose(slope, weight[y].reshape(x.shape))
    assert not slope.requires_grad


def test_the_slope_of_the_logit_does_not_vanish_where_the_loss_is_fitted(batch):
    x, y = batch
    net = nn.Sequential(nn.Flatten(), nn.Linear(18, CLASSES)).double()
    with torch.no_grad():
        net[1].bias[0] = 1e3  # every sample is of class 0 for sure
    y = torch.zeros_like(y)
    assert signals.input_gradient(net, x, y).abs().max() == 0
    assert signals.logit_gradient(net, x, y).flatten(1).norm(dim=1).min() > 0.1


def test_gradients_do_not_depend_on_the_batch(net, batch):
    x, y = batch
    whole = signals.input_gradient(net, x, y)
    parts = torch.cat([
        signals.input_gradient(net, xs, ys)
        for xs, ys in zip(x.split(8), y.split(8), strict=True)
    ])  # fmt: skip
    order = torch.randperm(N)
    assert torch.allclose(parts, whole, rtol=1e-10, atol=1e-14)
    shuffled = signals.input_gradient(net, x[order], y[order])
    assert torch.allclose(shuffled, whole[order], rtol=1e-10, atol=1e-14)


def test_norms_do_not_change_under_a_flip(batch):
    x, _ = batch
    norms, flipped = signals.gradient_norms(x), signals.gradient_norms(x.flip(-1))
    assert torch.allclose(norms.l2, flipped.l2)
    assert torch.allclose(norms.l1, flipped.l1)


def test_signals_leave_model_and_input_alone(net, batch):
    x, y = batch
    before = [p.clone() for p in net.parameters()]
    signals.input_gradient(net, x, y)
    with torch.no_grad():  # the caller's setting must not matter
        signals.logit_gradient(net, x, y)
    signals.curvature(net, x, y, n_directions=1)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert all(p.grad is None for p in net.parameters())
    assert not x.requires_grad


def test_margin_of_a_tie_is_zero_and_el2n_of_a_sure_miss_is_root_two():
    y = torch.tensor([1, 0])
    assert signals.margin(torch.tensor([[2.0, 2.0], [0.0, 5.0]]), y).tolist() == [0, -5]
    assert signals.el2n(torch.tensor([[100.0, 0.0]]), y[:1]).item() == pytest.approx(math.sqrt(2))


def test_weight_norm_is_that_of_the_flat_vector(net):
    flat = torch.cat([p.flatten() for p in net.parameters()])
    assert signals.weight_norm(net).item() == pytest.approx(flat.norm().item(), rel=1e-6)


class Smooth(nn.Module):
    """A net with curvature everywhere, so that the Hessian can be worked out exactly."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.first = nn.Parameter(torch.randn(6, 4, generator=generator, dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(3, 6, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return (x.flatten(1) @ self.first.T).tanh() @ self.second.T


@pytest.fixture
def smooth():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 1, 2, 2, generator=generator, dtype=torch.float64)
    return Smooth(), x, torch.tensor([0, 1, 2, 0, 1])


def exact_hessians(net, x, y):
    def loss(flat, label):
        return F.cross_entropy(net(flat.reshape(1, 1, 2, 2)), label[None])

    return [torch.autograd.functional.hessian(lambda v, c=c: loss(v, c), xi.flatten())
            for xi, c in zip(x, y, strict=True)]  # fmt: skip


def test_exact_curvature_converges_to_the_trace_of_the_squared_hessian(smooth):
    net, x, y = smooth
    truth = torch.stack([(h @ h).trace() for h in exact_hessians(net, x, y)]).detach()
    errors = [
        (signals.curvature(net, x, y, n_directions=n, exact=True).squared / truth - 1).abs().max()
        for n in (4, 4000)
    ]
    assert errors[1] < 0.05
    assert errors[1] < errors[0]


@pytest.mark.parametrize("options", [{"exact": True}, {"step": 1e-4}])
def test_eq_6_over_all_sign_vectors_is_the_trace_of_the_squared_hessian(
    smooth, monkeypatch, options
):
    """E v v' is the identity over the 16 vectors of signs, so that no draw is left to chance."""
    net, x, y = smooth
    every = iter(itertools.product((0, 1), repeat=4))
    bits = lambda *_, **__: torch.tensor(next(every)).view(1, 2, 2).expand(x.shape)  # noqa: E731
    monkeypatch.setattr(torch, "randint", bits)
    found = signals.curvature(net, x, y, n_directions=16, **options)
    assert next(every, None) is None
    hessians = exact_hessians(net, x, y)
    truth = np.array([float((h @ h).trace()) for h in hessians])
    assert found.squared.numpy() == pytest.approx(truth, rel=1e-9 if "exact" in options else 1e-3)
    assert (found.norm.numpy() ** 2 < truth * (1 - 1e-6)).all()  # means of norms differ
    rows = {"curvature_squared": np.stack([found.squared, np.full(5, np.nan), 3 * found.squared])}
    assert scores.mean_curvature(Trace(rows)) == pytest.approx(2 * truth, rel=1e-3)


def test_one_exact_direction_gives_the_norm_of_a_hessian_vector_product(smooth):
    net, x, y = smooth
    found = signals.curvature(net, x, y, n_directions=1, exact=True, seed=7)
    signs = torch.randint(2, x.shape, generator=torch.Generator().manual_seed(7)) * 2.0 - 1
    for i, hessian in enumerate(exact_hessians(net, x, y)):
        product = hessian @ signs[i].flatten().double()
        assert found.norm[i].item() == pytest.approx(product.norm().item(), rel=1e-9)
        assert found.squared[i].item() == pytest.approx(float(product @ product), rel=1e-9)


def test_finite_differences_approach_the_exact_product(smooth):
    net, x, y = smooth
    exact = signals.curvature(net, x, y, n_directions=3, exact=True)
    gaps = [
        (signals.curvature(net, x, y, n_directions=3, step=h).norm / exact.norm - 1).abs().max()
        for h in (1e-1, 1e-3, 1e-5)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-4


def test_float32_finite_differences_at_the_papers_step(smooth):
    net, x, y = smooth
    exact = signals.curvature(net, x, y, exact=True)
    rough = signals.curvature(net.float(), x.float(), y, step=1e-3)
    assert torch.allclose(rough.norm.double(), exact.norm, rtol=0.02)


def test_curvature_costs_n_plus_1_gradients(smooth, monkeypatch):
    net, x, y = smooth
    calls = []
    real = signals.input_gradient
    monkeypatch.setattr(signals, "input_gradient", lambda *a: calls.append(1) or real(*a))
    signals.curvature(net, x, y, n_directions=10)
    assert len(calls) == 11


@pytest.mark.parametrize("bad", [{"n_directions": 0}, {"step": 0.0}, {"step": float("nan")}])
def test_bad_curvature_arguments_are_refused(smooth, bad):
    with pytest.raises(ValueError, match=r"expected at least 1 direction, step > 0"):
        signals.curvature(*smooth, **bad)


def test_curvature_is_the_mean_over_the_directions_of_which_fewer_are_the_first(smooth):
    net, x, y = smooth
    norms = signals.product_norms(net, x, y, n_directions=7, exact=True, seed=3)
    assert norms.shape == (5, 7)
    for n in (1, 4, 7):
        found = signals.curvature(net, x, y, n_directions=n, exact=True, seed=3)
        assert torch.allclose(found.norm, norms[:, :n].mean(1))
        assert torch.allclose(found.squared, (norms[:, :n] ** 2).mean(1))
    with pytest.raises(ValueError, match="expected at least 1 direction"):
        signals.product_norms(net, x, y, n_directions=0)


def test_adversarial_curvature_is_along_the_signs_of_the_gradient(smooth):
    net, x, y = smooth
    found = signals.adversarial_curvature(net, x, y, exact=True)
    signs = signals.input_gradient(net, x, y).sign().flatten(1)
    for i, hessian in enumerate(exact_hessians(net, x, y)):
        product = hessian @ signs[i] / 2  # four pixels: the signs have length 2
        assert found[i].item() == pytest.approx(float(product @ product), rel=1e-9)
    near = signals.adversarial_curvature(net, x, y, step=1e-6)
    assert torch.allclose(near, found, rtol=1e-4)


def test_adversarial_curvature_without_a_gradient_is_0_and_bad_steps_are_refused(smooth):
    net, x, y = smooth
    with torch.no_grad():
        net.second.zero_()
    assert signals.adversarial_curvature(net, x, y).tolist() == [0] * 5
    with pytest.raises(ValueError, match="expected a length above 0"):
        signals.adversarial_curvature(net, x, y, step=0)


def test_batch_norm_couples_samples_and_own_loss_gradient_shows_it(batch):
    x, y = batch
    net = registry.build("mlp_bn", CLASSES, SHAPE).double().train()
    buffers = [b.clone() for b in net.buffers()]
    own = signals.own_loss_gradient(net, x, y)
    assert all(torch.equal(a, b) for a, b in zip(buffers, net.buffers(), strict=True))
    batch_loss = signals.input_gradient(net, x, y)
    assert (own - batch_loss).norm() > 0.01 * own.norm()
    plain = registry.build("mlp", CLASSES, SHAPE).double().train()
    assert torch.allclose(
        signals.own_loss_gradient(plain, x, y), signals.input_gradient(plain, x, y)
    )


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(CLASSES), nn.Dropout(0.5)])
def test_a_model_that_couples_samples_or_is_random_raises_a_warning(batch, layer):
    x, y = batch
    net = nn.Sequential(nn.Flatten(), nn.Linear(18, CLASSES), layer).double()
    with pytest.warns(UserWarning, match=rf"has {type(layer).__name__}: .* model.eval\(\) first"):
        signals.curvature(net.train(), x, y, n_directions=1)
    signals.curvature(net.eval(), x, y, n_directions=1)


def test_zero_order_curvature_of_a_quadratic_loss_is_that_of_its_hessian():
    """Softmax over two classes of a linear net: H = p (1 - p) w w', so u'Hv = p (1 - p) (u'w)(v'w).

    The mean over many draws of |u'w| |v'w| p (1 - p) is p (1 - p) times the square of E |u'w|; its
    standard error follows from E |u'w|^2 in the same way.
    """
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 2).double()
    x, y = torch.randn(8, 6).double(), torch.tensor([0, 1] * 4)
    n_directions = 4000
    found = signals.zero_order_curvature(net, x, y, n_directions=n_directions)
    w = (net.weight[0] - net.weight[1]).detach()
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6))).double()
    p = net(x).softmax(1)[:, 0].detach()
    first, second = ((signs @ w).abs().pow(k).mean() for k in (1, 2))
    expected = p * (1 - p) * first**2
    error = p * (1 - p) * ((second**2 - first**4) / n_directions).sqrt()
    assert ((found - expected).abs() < 4 * error).all()
    assert ((found - expected.flip(0)).abs() > 4 * error).any()


def test_zero_order_curvature_is_the_second_differential(smooth_net):
    net, x, y = smooth_net
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randint(2, x.shape, generator=generator).double() * 2 - 1 for _ in range(2))
    leaf = x.clone().requires_grad_(True)
    slope = torch.autograd.grad(signals.loss(net(leaf), y).sum(), leaf, create_graph=True)[0]
    exact = (torch.autograd.grad(slope, leaf, v)[0] * u).flatten(1).sum(1).abs()
    found = signals.zero_order_curvature(net, x, y, n_directions=1)
    assert torch.allclose(found, exact, rtol=1e-3, atol=1e-6)
    # in float32 rounding is a large part of it, so that it is refused
    single = copy.deepcopy(net).float()
    moved = [x + a * 1e-3 * u + b * 1e-3 * v for a in (1, -1) for b in (1, -1)]
    losses = [signals.loss(single(part.float()), y).detach().double() for part in moved]
    rounded = (losses[0] - losses[1] - losses[2] + losses[3]).abs() / 4e-6
    assert (rounded - found).abs().median() > 0.01 * found.median()
    with pytest.raises(TypeError, match="x is torch.float32: second differences need float64"):
        signals.zero_order_curvature(single, x.float(), y)
    with pytest.warns(UserWarning, match="train mode"):
        signals.zero_order_curvature(nn.Sequential(net, nn.BatchNorm1d(CLASSES).double()), x, y)


def test_zero_order_curvature_takes_several_nets_at_once_and_refuses_bad_input(smooth_net):
    net, x, y = smooth_net
    both = lambda x: torch.stack([net(x), 2 * net(x)])  # noqa: E731
    found = signals.zero_order_curvature(both, x, y, n_directions=3, seed=1)
    assert found.shape == (2, len(x))
    assert torch.equal(found[0], signals.zero_order_curvature(net, x, y, n_directions=3, seed=1))
    assert not torch.equal(found[0], found[1])
    with pytest.raises(ValueError, match="n_directions=0"):
        signals.zero_order_curvature(net, x, y, n_directions=0)
