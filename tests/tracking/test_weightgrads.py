"""Weight-gradient norms from hooks, against a for-loop of single-sample backward passes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from memlens.models import registry
from memlens.tracking import weightgrads
from memlens.tracking.weightgrads import LayerHooks, weight_gradient_norm

N, CLASSES, SHAPE = 9, 4, (2, 6, 6)


class Net(nn.Module):
    """A net from a function of its layers and the input."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.rule = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.rule(self, x)


def in_place():
    conv, head = nn.Conv2d(2, 3, 3), nn.Linear(48, CLASSES)
    return nn.Sequential(conv, nn.ReLU(inplace=True), nn.Flatten(), head)


def normalised_layers():
    first, second = nn.LayerNorm(SHAPE), nn.LayerNorm(8, bias=False)
    layers = (first, nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), second, nn.Linear(8, CLASSES))
    return nn.Sequential(*layers)


def tokens():
    """(n, 6, 12), then (n, 2, 3, 12): the same weights for each of six positions."""

    def forward(net, x):
        h = net.norm(torch.tanh(net.first(x.reshape(len(x), 6, 12))))
        return net.last(net.second(h.reshape(len(x), 2, 3, 12)).tanh().mean((1, 2)))

    second = nn.Linear(12, 7, bias=False)
    last = nn.Linear(7, CLASSES)
    return Net(forward, first=nn.Linear(12, 12), norm=nn.LayerNorm(12), second=second, last=last)


def called_twice():
    def forward(net, x):
        return net.last(net.mid(net.mid(net.first(x.flatten(1)).tanh()).tanh()))

    layers = {"first": nn.Linear(72, 8), "mid": nn.Linear(8, 8), "last": nn.Linear(8, CLASSES)}
    return Net(forward, **layers)


def bare_parameter():
    def forward(net, x):
        return net.scale * net.last(x.flatten(1) @ net.weight)

    weight, scale = nn.Parameter(torch.randn(72, 5) / 9), nn.Parameter(torch.tensor([2.0]))
    return Net(forward, weight=weight, scale=scale, last=nn.Linear(5, CLASSES))


def tied():
    """Two layers with one weight between them."""
    layers = [nn.Linear(72, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)]
    layers[2].weight = layers[1].weight
    return nn.Sequential(nn.Flatten(), *(part for layer in layers for part in (layer, nn.Tanh())))


def no_hooked_layer():
    weight = nn.Parameter(torch.randn(72, CLASSES) / 9)
    return Net(lambda net, x: x.flatten(1) @ net.weight, weight=weight)


def frozen():
    """One layer of the net as it is, one without its weight, one without anything to train."""
    layers = [nn.Linear(72, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)]
    layers[0].weight.requires_grad_(False)
    layers[1].requires_grad_(False)
    return nn.Sequential(nn.Flatten(), layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def frozen_start():
    """Layers without a gradient."""
    body = registry.build("small_cnn_bn", CLASSES, SHAPE)
    for layer in body[:6]:
        layer.requires_grad_(False)
    return body


def other_kinds():
    """Layers without a formula: they get one gradient per sample."""
    round_about = nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")
    layers = [round_about, nn.GroupNorm(2, 4), nn.PReLU(), nn.Conv2d(4, 2, 3, padding="same")]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(72, CLASSES))


def convolutions():
    layers = [
        nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(2, 1), bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=3, groups=8),
        nn.BatchNorm2d(8),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def batch_norm_of_sequences():
    layers = (nn.Flatten(2), nn.BatchNorm1d(2), nn.Flatten(), nn.BatchNorm1d(72, affine=False))
    return nn.Sequential(*layers, nn.Linear(72, CLASSES))


NETS = {
    **{name: lambda name=name: registry.build(name, CLASSES, SHAPE) for name in registry.SMALL},
    "convolutions": convolutions,
    "in_place": in_place,
    "normalised_layers": normalised_layers,
    "tokens": tokens,
    "called_twice": called_twice,
    "bare_parameter": bare_parameter,
    "frozen": frozen,
    "frozen_start": frozen_start,
    "tied": tied,
    "no_hooked_layer": no_hooked_layer,
    "other_kinds": other_kinds,
    "batch_norm_of_sequences": batch_norm_of_sequences,
    "one_layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, CLASSES)),
}


@pytest.fixture(params=sorted(NETS))
def net(request):
    torch.manual_seed(5)
    net = NETS[request.param]().double().eval()
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # as after a training, not 0 and 1
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm):
            for parameter in layer.parameters(recurse=False):
                nn.init.normal_(parameter)
    return net


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, *SHAPE, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (N,), generator=generator)


def one_by_one(net, x, y):
    """The oracle: a backward pass for each sample alone; parameter -> squared norms (n,)."""
    squares = {name: [] for name, p in net.named_parameters() if p.requires_grad}
    for xi, yi in zip(x, y, strict=True):
        net.zero_grad()
        (-net(xi[None])[0].log_softmax(0)[yi]).backward()
        for name in squares:
            gradient = net.get_parameter(name).grad
            squares[name].append(float((gradient**2).sum()))
    net.zero_grad()
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in squares.items()}


def squared_norms(net, x, y):
    with LayerHooks(net) as hooks:
        total = F.cross_entropy(net(x), y, reduction="sum")
    back = torch.autograd.grad(total, hooks.edges) if hooks.edges else ()
    return hooks, hooks.squared_norms(back, x, y)


def test_every_parameter_against_single_samples(net, batch):
    truth, (_, found) = one_by_one(net, *batch), squared_norms(net, *batch)
    assert list(found) == list(truth)
    for name, values in found.items():
        assert torch.allclose(values, truth[name], rtol=1e-9, atol=1e-12), name
    whole = sum(truth.values()).sqrt()
    assert torch.allclose(weight_gradient_norm(net, *batch), whole, rtol=1e-9, atol=1e-12)


def test_the_norm_over_some_parameters_is_theirs_alone(net, batch):
    truth = one_by_one(net, *batch)
    for start in {*truth, *(name.split(".")[0] for name in truth)}:
        own = sum(values for name, values in truth.items() if name.startswith(start))
        found = weight_gradient_norm(net, *batch, only=start)
        assert torch.allclose(found, own.sqrt(), rtol=1e-9, atol=1e-12), start
    with pytest.raises(ValueError, match=r"no parameter .* starts with 'nowhere'"):
        weight_gradient_norm(net, *batch, only="nowhere")


@pytest.mark.parametrize("block", [1, 300])
def test_the_size_of_the_blocks_changes_nothing(net, batch, monkeypatch, block):
    whole = weight_gradient_norm(net, *batch)
    monkeypatch.setattr(weightgrads, "BLOCK", block)
    assert torch.allclose(weight_gradient_norm(net, *batch), whole, rtol=1e-12)


def test_the_batch_does_not_matter(net, batch):
    x, y = batch
    whole = weight_gradient_norm(net, x, y)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    parts = [weight_gradient_norm(net, x[i], y[i]) for i in order.split(4)]
    assert torch.allclose(torch.cat(parts), whole[order], rtol=1e-10)


def test_the_model_is_left_as_it_was(net, batch):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():  # the caller's setting must not matter
        found = weight_gradient_norm(net, *batch)
    assert not found.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not any(layer._forward_hooks for layer in net.modules())
    assert not batch[0].requires_grad


def test_both_products_over_positions_are_used_and_agree(batch, monkeypatch):
    """Many channels and few positions, or the reverse: the cheaper product is computed."""
    taken = []
    for name in ("_by_positions", "_by_weights"):
        real = getattr(weightgrads, name)
        monkeypatch.setattr(
            weightgrads, name, lambda *a, name=name, real=real: taken.append(name) or real(*a)
        )
    generator = torch.Generator().manual_seed(0)
    for positions, name in ((2, "_by_positions"), (50, "_by_weights")):
        inputs, back = (torch.randn(3, k, positions, generator=generator) for k in (6, 5))
        found = weightgrads._over_positions(inputs, back)
        slow = [float((b @ i.T).pow(2).sum()) for i, b in zip(inputs, back, strict=True)]
        assert found.tolist() == pytest.approx(slow, rel=1e-5)
        assert set(taken) == {name}
        taken.clear()


@settings(max_examples=40)
@given(
    kernel=st.tuples(*[st.integers(1, 4)] * 2),
    stride=st.tuples(*[st.integers(1, 3)] * 2),
    padding=st.tuples(*[st.integers(0, 3)] * 2),
    dilation=st.tuples(*[st.integers(1, 2)] * 2),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
)
def test_any_convolution_has_the_norms_of_autograd(kernel, stride, padding, dilation, groups, bias):
    assume(all(8 + 2 * p > d * (k - 1) for k, p, d in zip(kernel, padding, dilation, strict=True)))
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias)
    pool = (nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(layer, *pool).double()
    x, y = torch.randn(3, 4, 8, 8).double(), torch.tensor([0, 5, 7])
    hooks, found = squared_norms(net, x, y)
    assert hooks.last == "0"
    for name, values in one_by_one(net, x, y).items():
        assert torch.allclose(found[name], values, rtol=1e-9, atol=1e-14), name


def test_the_last_layer_is_the_classifier(batch):
    for name in ("mlp", "small_cnn_bn"):
        net = registry.build(name, CLASSES, SHAPE).double().eval()
        hooks, _ = squared_norms(net, *batch)
        assert hooks.last == str(len(net) - 1)
    assert squared_norms(tokens().double(), *batch)[0].last == "last"


def test_parameters_without_a_formula_need_the_batch(batch):
    net = called_twice().double()
    with LayerHooks(net) as hooks:
        total = F.cross_entropy(net(batch[0]), batch[1], reduction="sum")
    back = torch.autograd.grad(total, hooks.edges)
    with pytest.raises(ValueError, match=r"pass x and y: \['mid.bias', 'mid.weight'\] need one"):
        hooks.squared_norms(back)


def test_hooks_on_no_model_record_nothing(batch):
    net = registry.build("mlp", CLASSES, SHAPE).double()
    with LayerHooks(None) as hooks:
        net(batch[0])
    assert hooks.edges == []


def test_hooks_go_even_when_the_forward_pass_fails():
    net = registry.build("mlp", CLASSES, SHAPE)
    with pytest.raises(RuntimeError), LayerHooks(net):
        net(torch.zeros(3, 5))
    assert not any(layer._forward_hooks for layer in net.modules())


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(CLASSES, affine=False), nn.Dropout(0.5)])
def test_a_model_that_couples_samples_or_is_random_raises_a_warning(batch, layer):
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, CLASSES), layer).double()
    with pytest.warns(UserWarning, match=rf"has {type(layer).__name__}: .* model.eval\(\) first"):
        weight_gradient_norm(net.train(), *batch)
    weight_gradient_norm(net.eval(), *batch)


@pytest.mark.filterwarnings("ignore:the model is in train mode")
def test_batch_norm_in_train_mode_gives_a_sample_no_gradient_of_its_own(batch):
    net = registry.build("mlp_bn", CLASSES, SHAPE).double()
    with pytest.raises(ValueError, match=r"needs more than one sample: call model.eval\(\)"):
        weight_gradient_norm(net.train(), *batch)


def test_linear_model_has_the_closed_form(batch):
    x, y = batch
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, CLASSES)).double()
    error = (net(x).softmax(1) - F.one_hot(y, CLASSES)).detach()
    by_weight = error.norm(dim=1) * (x.flatten(1).pow(2).sum(1) + 1).sqrt()
    assert torch.allclose(weight_gradient_norm(net, x, y), by_weight)
    no_bias = error.norm(dim=1) * x.flatten(1).norm(dim=1)
    assert torch.allclose(weight_gradient_norm(net, x, y, only="1.weight"), no_bias)
