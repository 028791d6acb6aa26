"""The gradients that are written out, against autograd; and nets in turn, against nets alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memlens.ensembles import model_ensemble, perceptron
from memlens.ensembles.model_ensemble import ModelEnsemble, train_ensemble
from memlens.ensembles.perceptron import Perceptron
from memlens.ensembles.queries import Queries, train_and_query
from memlens.ensembles.subsets import subset_masks
from memlens.models import registry
from memlens.training.config import TrainConfig
from memlens.training.devices import Engine

RECIPE = TrainConfig(epochs=6, batch_size=16, lr=0.05, weight_decay=5e-4)
SEEDS = np.array([11, 12, 13, 14, 15])
FLOAT32_BOUND = 1e-5  # of the path from the first weights to the last; found: 2e-7


def trained(data, config, seeds=SEEDS[:3], *, in_turn=True, labels=None):
    masks = subset_masks(len(SEEDS), len(data.train), 0.7)[seeds - SEEDS[0]]
    ensemble = ModelEnsemble.build("mlp", data, seeds)
    with pytest.MonkeyPatch.context() as patch:
        if not in_turn:
            patch.setattr(perceptron, "suits", lambda *_: False)
        train_ensemble(ensemble, data, masks, config, seeds, labels=labels)
    return {name: stack.detach() for name, stack in ensemble.weights.items()}


def relative_difference(found, expected, start):
    """The largest distance of a net, over how far it has come."""
    flat = [torch.cat([w.flatten(1) for w in state.values()], 1) for state in (found, expected)]
    first = torch.cat([w.detach().flatten(1) for w in start.weights.values()], 1)
    return float(((flat[0] - flat[1]).norm(dim=1) / (flat[1] - first).norm(dim=1)).max())


@pytest.mark.parametrize("hidden", [(), (7,), (9, 5, 6)])
def test_gradients_are_those_of_autograd(hidden):
    torch.manual_seed(0)
    net = registry.mlp(3, (1, 2, 4), hidden=hidden).double()
    assert perceptron.suits(net, RECIPE, Engine())
    x, y = torch.randn(10, 1, 2, 4, dtype=torch.float64), torch.arange(10) % 3
    x.requires_grad_()
    F.cross_entropy(net(x), y).backward()
    own = Perceptron(net.parameters(), RECIPE)
    with torch.no_grad():
        logits, by_input = own._set_gradients(x.flatten(1), y, with_input=True)
    assert torch.equal(logits, net(x).detach())
    assert torch.allclose(by_input, x.grad.flatten(1), rtol=1e-12, atol=1e-15)
    for w, gradient in zip(net.parameters(), own.gradients, strict=True):
        assert torch.allclose(gradient, w.grad, rtol=1e-12, atol=1e-15)
        assert not torch.allclose(gradient, w.grad * (1 + 1e-9), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("changes", [
    {}, {"momentum": 0.0}, {"weight_decay": 0.0}, {"augment": "crop_flip"}, {"batch_size": 42},
])  # fmt: skip
def test_nets_in_turn_equal_nets_in_one_pass(double, changes):
    config = replace(RECIPE, **changes)
    found, expected = (trained(double, config, in_turn=way) for way in (True, False))
    start = ModelEnsemble.build("mlp", double, SEEDS[:3])
    assert relative_difference(found, expected, start) < 1e-12
    other = trained(double, replace(config, lr=config.lr * (1 + 1e-9)), in_turn=False)
    assert relative_difference(found, other, start) > 1e-10  # the comparison can fail


def test_nets_in_turn_equal_nets_in_one_pass_with_labels_of_their_own(double):
    labels = torch.stack([(double.train.labels + shift) % 3 for shift in range(3)])
    start = ModelEnsemble.build("mlp", double, SEEDS[:3])
    found, expected = (trained(double, RECIPE, in_turn=b, labels=labels) for b in (True, False))
    assert relative_difference(found, expected, start) < 1e-12
    assert relative_difference(found, trained(double, RECIPE), start) > 1e-3


def test_what_a_step_records_is_the_same_in_turn_and_in_one_pass(double):
    masks = subset_masks(3, len(double.train), 0.7)
    queries, found = Queries(("input_gradient", "label_wave", "last")), []
    for in_turn in (True, False):
        ensemble = ModelEnsemble.build("mlp", double, SEEDS[:3])
        with pytest.MonkeyPatch.context() as patch:
            if not in_turn:
                patch.setattr(perceptron, "suits", lambda *_: False)
            found.append(train_and_query(ensemble, double, masks, RECIPE, SEEDS[:3], queries))
    for name in ("input_gradient", "label_changes"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-6, nan_ok=True), name
    assert np.diff(found[0]["input_gradient"], axis=1).any()


def test_in_float32_the_two_ways_agree_up_to_rounding(tiny):
    start = ModelEnsemble.build("mlp", tiny, SEEDS[:3])
    found, expected = (trained(tiny, RECIPE, in_turn=way) for way in (True, False))
    assert relative_difference(found, expected, start) < FLOAT32_BOUND


def test_a_net_is_the_same_bit_for_bit_whatever_its_company(tiny):
    """Weights, predictions and snapshots; three classes leave some stacks unaligned in memory."""
    snapshots = ("input_gradient", "label_wave", "last", 2)
    queries = Queries(snapshots, ("identity", "left"), n_directions=2)
    masks = subset_masks(len(SEEDS), len(tiny.train), 0.7)

    def queried(chosen):
        ensemble = ModelEnsemble.build("mlp", tiny, SEEDS[chosen])
        given = (ensemble, tiny, masks[chosen], RECIPE, SEEDS[chosen], queries)
        return train_and_query(*given) | {k: w.detach() for k, w in ensemble.weights.items()}

    together = queried([0, 1, 2, 3, 4])
    for company in ([0], [3], [4, 2], [1, 0, 3]):
        found = queried(company)
        assert found.keys() == together.keys()
        for name, values in found.items():
            np.testing.assert_array_equal(values, together[name][company], err_msg=name)
    assert not np.array_equal(together["logits/last"][0], together["logits/last"][1])


@pytest.mark.parametrize("model", sorted(registry.SMALL))
def test_predictions_are_the_same_bit_for_bit_whatever_the_company(tiny, model):
    together = ModelEnsemble.build(model, tiny, SEEDS).predict(tiny)
    for company in ([0], [3], [4, 2]):
        alone = ModelEnsemble.build(model, tiny, SEEDS[company]).predict(tiny)
        assert torch.equal(alone, together[company])


def test_only_what_is_written_out_is_trained_in_turn(tiny, monkeypatch):
    net = registry.build("mlp", 3, tiny.in_shape)
    assert perceptron.suits(net, RECIPE, Engine())
    for changes in ({"sam_rho": 0.05}, {"optimizer": "adam"}):
        assert not perceptron.suits(net, replace(RECIPE, **changes), Engine())
    for engine in (Engine(torch.device("cuda")), Engine(bfloat16=True), Engine(compiled=True)):
        assert not perceptron.suits(net, RECIPE, engine)
    assert perceptron.suits(registry.build("narrow_mlp", 3, tiny.in_shape), RECIPE, Engine())
    for model in {*registry.SMALL} - {"mlp", "narrow_mlp"}:
        assert not perceptron.suits(registry.build(model, 3, tiny.in_shape), RECIPE, Engine())
    linear, relu = nn.Linear(4, 4), nn.ReLU()
    for layers in (
        [linear], [nn.Flatten()], [nn.Flatten(), linear, relu], [nn.Flatten(), linear, linear],
        [nn.Flatten(), linear, nn.Tanh(), linear], [nn.Flatten(), nn.Linear(4, 4, bias=False)],
    ):  # fmt: skip
        assert not perceptron.suits(nn.Sequential(*layers), RECIPE, Engine())
    assert not perceptron.suits(linear, RECIPE, Engine())
    monkeypatch.setattr(model_ensemble, "_together", lambda *_: pytest.fail("in one pass"))
    trained(tiny, replace(RECIPE, epochs=1))
