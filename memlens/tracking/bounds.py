"""The bound of lemma 4.1 on the input gradient (Ravikumar et al. 2026), and how much is reached.

shares = bound_shares(model, x, y)  # above 1: the bound is violated
"""

import pandas as pd
import torch
from torch import Tensor, nn

from memlens.tracking import signals, weightgrads


def bound_shares(model: nn.Module, x: Tensor, y: Tensor) -> pd.DataFrame:
    """Return each sample's input gradient as a share of three bounds.

    Each bound is a weight norm times a weight gradient norm over the norm of the input (Eq. 5).

    Parameters
    ----------
    model : nn.Module
        In eval mode, or without batch norm and dropout.
    x : Tensor (n, ...)
        Not zero.
    y : Tensor (n,), int64

    Returns
    -------
    DataFrame (n,)
        ``all_weights``, norm and gradient of all parameters, as the lemma states it;
        ``first_layer``, Frobenius norm and gradient of the first weight matrix alone, as its proof
        has it; ``first_layer_spectral``, with the largest singular value of that matrix. Above 1 a
        bound is violated; it is infinite where only the bound is 0, and NaN where the gradient is
        0 as well. Behind a fully connected first layer each share is at least the one before it.

    Raises
    ------
    ValueError
        If no parameter has two or more dimensions.
    """
    first = next((name for name, p in model.named_parameters() if p.ndim > 1), None)
    if first is None:
        raise ValueError("the model has no weight matrix, so that no bound is defined")
    weight = model.get_parameter(first).detach().flatten(1)
    reached = signals.input_gradient(model, x, y).flatten(1).norm(dim=1)
    reached = reached * x.flatten(1).norm(dim=1)
    of_layer = weightgrads.weight_gradient_norm(model, x, y, only=first).detach()
    of_all = weightgrads.weight_gradient_norm(model, x, y).detach()
    bounds = {
        "all_weights": signals.weight_norm(model) * of_all,
        "first_layer": weight.norm() * of_layer,
        "first_layer_spectral": torch.linalg.matrix_norm(weight, 2) * of_layer,
    }
    return pd.DataFrame({name: (reached / bound).numpy() for name, bound in bounds.items()})


def smallest_singular_value(batch: Tensor) -> float:
    """Return s_P of the lemma's mini-batch form; the bound divides by it.

    P = X^T (X^T)^+ is a projection, so that s_P is 1 if the inputs of the batch are linearly
    independent, and 0 if not: then there is no bound.

    Parameters
    ----------
    batch : Tensor (n, ...)
        Inputs; computed in float64.
    """
    rows = batch.flatten(1).double()
    return torch.linalg.svdvals(rows @ torch.linalg.pinv(rows))[-1].item()
