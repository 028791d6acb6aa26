"""Sharpness-aware minimization (Foret et al. 2021), for one network or a stack of networks."""

from collections.abc import Callable

import torch
from torch import Tensor


def replace_gradients(
    optimizer: torch.optim.Optimizer,
    rho: float,
    loss: Callable[[], Tensor],
    *,
    stacked: bool = False,
) -> None:
    """Replace the gradients by those at the weights where the loss rises most nearby (Eq. 2).

    The weights climb by ``rho`` along the gradients they hold, the loss is computed and
    differentiated there, and the weights return to their exact values.

    Parameters
    ----------
    optimizer : Optimizer
        Its parameters hold the gradients of the loss; those without one are frozen.
    rho : float
        Radius, above 0.
    loss : callable
        Compute the loss again, at the weights as they are then.
    stacked : bool
        Whether the first axis of each parameter is one of networks, each with a norm of its own.
    """
    groups = optimizer.param_groups
    weights = [w for group in groups for w in group["params"] if w.grad is not None]
    gradients = [w.grad for w in weights]
    squares = [g.flatten(1).pow(2).sum(1) if stacked else g.pow(2).sum() for g in gradients]
    scale = rho / (torch.stack(squares).sum(0).sqrt() + 1e-12)
    before = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            factor = scale.view(-1, *[1] * (gradient.ndim - 1)) if stacked else scale
            weight.add_(factor * gradient)
            weight.grad = None
    try:
        loss().backward()
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)  # subtracting would round
