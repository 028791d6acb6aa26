"""Learning rates and weight decays of their own for networks that are trained as one stack."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from memlens.training.config import TrainConfig


def configs_of(config: TrainConfig | Sequence[TrainConfig], n_models: int) -> list[TrainConfig]:
    """Return one configuration a network; check that they can be trained together.

    Raises
    ------
    ValueError
        If there are not ``n_models``, or they differ in anything else than learning rate, weight
        decay and seed, or differ and take the second pass of SAM.
    """
    if isinstance(config, TrainConfig):
        return [config] * n_models
    if len(config) != n_models:
        raise ValueError(f"{len(config)} configurations for {n_models} networks: pass one each")
    first, *others = config
    for other in others:
        if replace(other, lr=first.lr, weight_decay=first.weight_decay, seed=first.seed) != first:
            raise ValueError(
                "networks trained together may differ in lr and weight_decay alone; got "
                f"{first} and {other}"
            )
    if first.sam_rho and not alike(config):
        raise ValueError(
            f"sam_rho is {first.sam_rho}: networks with SAM share one learning rate and decay"
        )
    return list(config)


def alike(configs: Sequence[TrainConfig]) -> bool:
    """Return whether all configurations have the same learning rate and weight decay."""
    return len({(config.lr, config.weight_decay) for config in configs}) == 1


class RowOptimizer:
    """An optimizer of stacked weights in which each network has its own configuration.

    The rows of one network are a parameter group, so that any optimizer of `config.OPTIMIZERS`
    updates them as it would update the network alone, bit for bit from the same gradients. It costs
    one fused update for each network; where all configurations are equal, one optimizer of the
    whole stacks does the same in one.

    Parameters
    ----------
    stacks : iterable of Tensor (n_models, ...)
        Leaves that require a gradient.
    configs : sequence of TrainConfig, one a network
        They differ in learning rate and weight decay alone.
    """

    def __init__(self, stacks: Iterable[Tensor], configs: Sequence[TrainConfig]) -> None:
        self.stacks = list(stacks)
        groups = [
            {
                "params": [stack.detach()[number] for stack in self.stacks],  # views of the rows
                "lr": config.lr,
                "weight_decay": config.weight_decay,
            }
            for number, config in enumerate(configs)
        ]
        self.optimizer = configs[0].build_optimizer(groups)
        self.param_groups = self.optimizer.param_groups

    def zero_grad(self) -> None:
        """Remove the gradients of the stacks."""
        for stack in self.stacks:
            stack.grad = None

    def step(self) -> None:
        """Update the rows of every network by its own rate and decay."""
        for number, group in enumerate(self.param_groups):
            for row, stack in zip(group["params"], self.stacks, strict=True):
                row.grad = stack.grad[number]
        self.optimizer.step()


def stack_optimizer(
    stacks: Iterable[Tensor], configs: Sequence[TrainConfig]
) -> "torch.optim.Optimizer | RowOptimizer":
    """Return the optimizer of stacked weights: of the whole stacks where configurations agree.

    Its parameter groups are one for all networks, or one a network, in their order.
    """
    return configs[0].build_optimizer(stacks) if alike(configs) else RowOptimizer(stacks, configs)
