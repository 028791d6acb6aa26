"""Networks of one stack with rates and decays of their own, against networks trained alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from memlens.ensembles import own_configs
from memlens.ensembles.model_ensemble import ModelEnsemble, StepRecorder, train_ensemble
from memlens.ensembles.own_configs import RowOptimizer, configs_of, stack_optimizer
from memlens.training.config import OPTIMIZERS, TrainConfig

SHORT = TrainConfig(epochs=5, batch_size=16, lr=0.1)
SEEDS = [11, 12, 13, 14]
RATES, DECAYS = (0.02, 0.1, 0.05, 0.1), (0.0, 1e-2, 1e-3, 0.0)
OWN = [replace(SHORT, lr=lr, weight_decay=wd) for lr, wd in zip(RATES, DECAYS, strict=True)]
CLOSE = {"rtol": 1e-6, "atol": 1e-8}


def trained(model, data, configs, seeds=SEEDS, **options):
    ensemble = ModelEnsemble.build(model, data, seeds)
    masks = np.ones((len(seeds), len(data.train)), dtype=bool)
    train_ensemble(ensemble, data, masks, configs, seeds, **options)
    return {name: stack.detach() for name, stack in ensemble.weights.items()}


@pytest.mark.parametrize("model", ["mlp", "mlp_bn", "small_cnn"])  # in turn; together, with buffers
def test_each_network_is_the_one_trained_alone_with_its_rate_and_decay(double, train_alone, model):
    found = trained(model, double, OWN)
    everybody = np.ones(len(double.train), dtype=bool)
    for i, (config, seed) in enumerate(zip(OWN, SEEDS, strict=True)):
        alone = dict(train_alone(model, double, everybody, config, seed).named_parameters())
        other = dict(train_alone(model, double, everybody, OWN[i - 1], seed).named_parameters())
        for name, stack in found.items():
            assert torch.allclose(stack[i].double(), alone[name].double(), **CLOSE), (i, name)
        assert not all(torch.allclose(found[n][i], other[n].double(), **CLOSE) for n in found)


def test_perceptrons_are_the_same_bit_for_bit_whatever_their_company(tiny):
    together = trained("mlp", tiny, OWN)
    for company in ([0], [3, 1], [2, 0, 3]):
        found = trained("mlp", tiny, [OWN[i] for i in company], [SEEDS[i] for i in company])
        for name, stack in found.items():
            assert torch.equal(stack, together[name][company]), name


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_rows_are_updated_as_a_network_alone_bit_for_bit(optimizer):
    """Three steps from the same gradients."""
    own = [replace(config, optimizer=optimizer) for config in OWN[:3]]
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((3, 5, 4), (3, 5))]
    stacks = [w.clone().requires_grad_() for w in start]
    together = RowOptimizer(stacks, own)
    alone = [[w[i].clone().requires_grad_() for w in start] for i in range(3)]
    optimizers = [c.build_optimizer(weights) for c, weights in zip(own, alone, strict=True)]
    for _ in range(3):
        gradients = [torch.randn(w.shape, generator=generator) for w in start]
        together.zero_grad()
        assert all(stack.grad is None for stack in stacks)
        for k, gradient in enumerate(gradients):
            stacks[k].grad = gradient.clone()
            for i, weights in enumerate(alone):
                weights[k].grad = gradient[i].clone()
        for made in (together, *optimizers):
            made.step()
    for i, weights in enumerate(alone):
        for k, weight in enumerate(weights):
            assert torch.equal(stacks[k][i], weight)
            assert not torch.equal(weight, start[k][i])


def test_one_optimizer_serves_networks_that_agree():
    stacks = [torch.zeros(2, 3, requires_grad=True)]
    assert isinstance(stack_optimizer(stacks, OWN[:2]), RowOptimizer)
    alike = stack_optimizer(stacks, [SHORT, replace(SHORT, seed=7)])
    assert isinstance(alike, torch.optim.SGD)
    assert len(alike.param_groups) == 1


def test_rates_fall_where_the_configuration_says(double, train_alone):
    """A cut in the second of five epochs, by other factors than the default."""
    cut = [replace(config, milestones=(0.2,), gamma=0.5) for config in OWN[:2]]
    found = trained("mlp_bn", double, cut, SEEDS[:2])
    everybody = np.ones(len(double.train), dtype=bool)
    for i, config in enumerate(cut):
        alone = dict(train_alone("mlp_bn", double, everybody, config, SEEDS[i]).named_parameters())
        for name, stack in found.items():
            assert torch.allclose(stack[i].double(), alone[name].double(), **CLOSE), name


@pytest.mark.parametrize("model", ["mlp", "mlp_bn"])
def test_a_network_that_diverges_leaves_the_others_alone(tiny, model):
    wild = [OWN[0], replace(SHORT, lr=1e20), OWN[2]]
    recorder = StepRecorder(3, len(tiny.train), torch.device("cpu"))
    ends = []
    options = {"recorder": recorder, "after_epoch": lambda: ends.append(recorder.end_epoch())}
    found = trained(model, tiny, wild, SEEDS[:3], **options)
    calm = trained(model, tiny, [OWN[0], OWN[1], OWN[2]], SEEDS[:3])
    assert not all(stack[1].isfinite().all() for stack in found.values())
    for name, stack in found.items():
        assert torch.equal(stack[[0, 2]], calm[name][[0, 2]]), name
    gradient = ends[-1]["input_gradient"]
    assert np.isfinite(gradient[[0, 2]]).all()


def test_configurations_that_cannot_be_trained_together_are_refused(tiny):
    with pytest.raises(ValueError, match="3 configurations for 4 networks"):
        trained("mlp", tiny, OWN[:3])
    with pytest.raises(ValueError, match="may differ in lr and weight_decay alone"):
        trained("mlp", tiny, [*OWN[:3], replace(OWN[3], momentum=0.5)])
    with pytest.raises(ValueError, match="with SAM share one learning rate"):
        trained("mlp", tiny, [replace(config, sam_rho=0.05) for config in OWN])
    alike = [replace(SHORT, sam_rho=0.05, seed=seed) for seed in range(2)]
    assert configs_of(alike, 2) == alike
    assert own_configs.alike(alike)
