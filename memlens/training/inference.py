"""What a finished net says about many samples, a part at a time, so that whole image sets fit."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from memlens.training import devices

Signal = Callable[..., Tensor]  # such as `signals.logit_gradient`


def evaluate_batched(
    signal: Signal, net: nn.Module, x: Tensor, y: Tensor, **options: object
) -> Tensor:
    """A signal of all samples, detached, on the CPU; each part is computed where the net is.

    Float32 keeps all its bits on a GPU, too.

    Parameters
    ----------
    signal : (net, x, y, **options) -> Tensor (n, ...)
        Samples must not touch each other: eval mode.
    x, y : Tensor (n, ...) and (n,)
    **options
        Handed on to the signal.
    """
    device = next(net.parameters()).device
    rows = devices.rows_at_once(net, x[:1].to(device))
    parts = zip(x.split(rows), y.split(rows), strict=True)
    with devices.exact_float32():
        found = [signal(net, a.to(device), b.to(device), **options) for a, b in parts]
    return torch.cat([part.detach().cpu() for part in found])
