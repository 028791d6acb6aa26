"""Divide recorded gradients by the scale of the loss at its backward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from memlens.tracking.traces import SIGNALS

L2 = SIGNALS.index("grad_l2")
GRADIENTS = slice(L2, L2 + 2)  # the L2 and the L1 norm
UNSCALED = 0.01  # a scale this close to 1 counts as 1: it may be measured from rounded gradients


def unscale(values: Tensor, scales: Sequence[float | Tensor], sizes: Sequence[int]) -> bool:
    """Divide the gradient norms of several steps by their loss scales, in place.

    A norm that overflowed under a scale becomes NaN, which means "not measured".

    Parameters
    ----------
    values : Tensor (n_signals, b)
        Signals of the samples of all steps, in order.
    scales : sequence of float or Tensor ()
        Loss scale of each step.
    sizes : sequence of int
        Number of samples of each step; they sum to b.

    Returns
    -------
    bool
        True if any scale was not 1.
    """
    if not any(isinstance(scale, Tensor) or scale != 1.0 for scale in scales):
        return False
    pairs = zip(scales, sizes, strict=True)
    scale = torch.cat([_repeated(scale, size, values) for scale, size in pairs])
    gradients = values[GRADIENTS] / scale
    scaled = ~((scale - 1).abs() <= UNSCALED)  # true for a scale of NaN as well
    overflow = scaled & ~(gradients.isfinite() & scale.isfinite())
    values[GRADIENTS] = gradients.masked_fill_(overflow, torch.nan)
    return True


def _repeated(scale: float | Tensor, size: int, like: Tensor) -> Tensor:
    """Return the scale once a sample, (size,), without waiting for the device."""
    if isinstance(scale, Tensor):
        return scale.to(like, non_blocking=True).reshape(()).expand(size)
    return like.new_full((size,), scale)
