"""Per-sample signals as pure functions.

Shapes: ``logits`` (n, n_classes), ``y`` (n,) int64, ``x`` (n, ...) the input of a network. Results
have shape (n,) unless documented otherwise. Functions that take a model call it in its current mode
and assume that its output for a sample depends on that sample only. Batch norm in train mode breaks
this assumption; `own_loss_gradient` measures by how much. Only `unscale` works in place.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from memlens.tracking.traces import GRADIENTS

UNSCALED = 0.01  # a scale this close to 1 counts as 1: it may be measured from rounded gradients


def loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy, in nats, 0 or more."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the label's logit minus the largest other logit (Pleiss et al. 2020).

    It is above 0 where the prediction is right; a tie counts as wrong.
    """
    true = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -torch.inf)
    return true - others.amax(1)


def el2n(logits: Tensor, y: Tensor) -> Tensor:
    """Return the L2 norm of softmax minus one-hot label, in [0, sqrt 2] (Paul et al. 2021)."""
    # F.one_hot reads the labels, which on a GPU would synchronise with the host.
    one_hot = torch.zeros_like(logits).scatter(1, y[:, None], 1.0)
    return (logits.softmax(1) - one_hot).norm(dim=1)


class GradientNorms(NamedTuple):
    """L2 norm (not squared) and L1 norm of each sample's gradient, (n,) each."""

    l2: Tensor
    l1: Tensor


def gradient_norms(gradient: Tensor) -> GradientNorms:
    """Return the norms of per-sample gradients (n, ...)."""
    flat = gradient.flatten(1)
    return GradientNorms(flat.norm(dim=1), flat.abs().sum(1))


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


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of each sample's loss with respect to its input, (n, ...)."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        return torch.autograd.grad(loss(model(x), y).sum(), x)[0]


def own_loss_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of each sample's own loss, excluding the other losses of the batch.

    It differs from `input_gradient` where the forward pass couples samples (batch norm in train
    mode), and takes n backward passes. The buffers of the model (running statistics) are not
    changed.
    """
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = x.detach().requires_grad_(True)
    losses = loss(functional_call(model, state, (x,)), y)
    rows = [
        torch.autograd.grad(value, x, retain_graph=True)[0][i] for i, value in enumerate(losses)
    ]
    return torch.stack(rows)


def logit_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the label's logit with respect to the input, (n, ...).

    Unlike the gradient of the loss, it does not vanish for a fitted sample. Its variance is VoG
    (Agarwal, D'souza and Hooker 2022).
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(x)
        return torch.autograd.grad(logits.gather(1, y[:, None]).sum(), x)[0]


def weight_norm(model: nn.Module) -> Tensor:
    """Return the L2 norm of all parameters together, a scalar."""
    return torch.stack([p.detach().float().norm() for p in model.parameters()]).norm()


class Curvature(NamedTuple):
    """Input-loss curvature of each sample, (n,) each, 0 or more.

    ``norm``: mean of ||Hv|| over random directions v, as in the authors' code.
    ``squared``: mean of ||Hv||^2, an estimate of the trace of H squared (Eq. 3 and 6).
    """

    norm: Tensor
    squared: Tensor


def curvature(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    n_directions: int = 10,
    step: float = 1e-3,
    exact: bool = False,
    seed: int = 0,
) -> Curvature:
    """Return the curvature of the loss around each input (Garg et al. 2024, Eq. 3 to 6).

    H is the Hessian of a sample's loss with respect to its input, v a vector of random signs. The
    paper's finite difference is (gradient at x + h v) - (gradient at x); here it is divided by h,
    so that it estimates Hv for any h. All directions share the gradient at x, so the cost is
    n_directions + 1 gradients.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    x : Tensor (n, ...), float32 or float64
    y : Tensor (n,), int64
    n_directions : int
        Random directions to average over.
    step : float
        h, the step in each coordinate of ``x``; not used if ``exact``.
    exact : bool
        Compute Hv by differentiating the gradient, in place of the finite difference.
    seed : int
        Seed of the random directions.
    """
    warn_if_train_mode(model)
    norm, squared = x.new_zeros(len(x)), x.new_zeros(len(x))
    for length in _product_norms(model, x, y, n_directions, step, exact, seed):
        norm += length / n_directions
        squared += length**2 / n_directions
    return Curvature(norm, squared)


def product_norms(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    n_directions: int = 10,
    step: float = 1e-3,
    exact: bool = False,
    seed: int = 0,
) -> Tensor:
    """Return ||Hv|| of each sample for each random direction v, (n, n_directions).

    `curvature` is their mean, or the mean of their squares, over the directions. Arguments as
    there; the first directions of more are those of fewer.
    """
    warn_if_train_mode(model)
    norms = _product_norms(model, x, y, n_directions, step, exact, seed)
    return torch.stack(list(norms), dim=1)


def _product_norms(
    model: nn.Module, x: Tensor, y: Tensor, n_directions: int, step: float, exact: bool, seed: int
) -> Iterator[Tensor]:
    """Yield ||Hv|| of each sample, (n,), one direction v after the other."""
    if n_directions < 1 or not step > 0:
        raise ValueError(
            f"n_directions={n_directions}, step={step}: expected at least 1 direction, step > 0"
        )
    generator = torch.Generator(x.device).manual_seed(seed)
    product = _hessian_product(model, x, y) if exact else _difference(model, x, y, step)
    for _ in range(n_directions):
        signs = torch.randint(2, x.shape, generator=generator, device=x.device).to(x) * 2 - 1
        yield gradient_norms(product(signs)).l2


def _difference(model: nn.Module, x: Tensor, y: Tensor, step: float) -> Callable[[Tensor], Tensor]:
    clean = input_gradient(model, x, y)
    return lambda v: (input_gradient(model, x + step * v, y) - clean) / step


def _hessian_product(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        gradient = torch.autograd.grad(loss(model(x), y).sum(), x, create_graph=True)[0]
    return lambda v: torch.autograd.grad(gradient, x, grad_outputs=v, retain_graph=True)[0]


def adversarial_curvature(
    model: nn.Module, x: Tensor, y: Tensor, *, step: float = 1e-3, exact: bool = False
) -> Tensor:
    """Return ||H z||^2 along the signs z of each sample's gradient, scaled to length 1; (n,).

    Garg and Roy (2023, SLo-Curves) measure it once, at the end of training, as the finite
    difference ||gradient at x + h z - gradient at x||^2, in the form of Moosavi-Dezfooli et al.
    (2019). Here it is divided by h^2, which changes no order. A sample without gradient gets 0.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    x : Tensor (n, ...), float32 or float64
    y : Tensor (n,), int64
    step : float
        h, the length of the step; not used if ``exact``.
    exact : bool
        Differentiate the gradient in place of the finite difference.

    Raises
    ------
    ValueError
        If the step is not above 0.
    """
    if not step > 0:
        raise ValueError(f"step is {step}: expected a length above 0")
    warn_if_train_mode(model)
    signs = input_gradient(model, x, y).sign()
    length = gradient_norms(signs).l2.clamp_min(1).view(-1, *[1] * (x.dim() - 1))  # (n, 1, ...)
    product = _hessian_product(model, x, y) if exact else _difference(model, x, y, step)
    return gradient_norms(product(signs / length)).l2 ** 2


def zero_order_curvature(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    n_directions: int = 10,
    step: float = 1e-3,
    seed: int = 0,
) -> Tensor:
    """Return the curvature of the loss around each input, from losses alone; 0 or more.

    It is the mean of |l(x + u + v) - l(x + u - v) - l(x - u + v) + l(x - u - v)| / (4 h^2), where u
    and v are vectors of random signs times h. Each term estimates |u' H v| / h^2 (Ravikumar et al.
    2024, Curvature Clues, who divide by 4 h, which does not change the order). Each pair of
    directions takes four forward passes. The differences are of the order of h^2, so that float32
    rounding at h = 1e-3 would dominate them.

    Parameters
    ----------
    model : callable, (n, ...) -> logits (..., n, n_classes)
        One network, or several at once; the result has the leading axes of the logits.
    x : Tensor (n, ...), float64
    y : Tensor (n,), int64
    n_directions : int
        Pairs of random directions to average over.
    step : float
        h, the step in each coordinate of ``x``.
    seed : int
        Seed of the random directions.

    Raises
    ------
    TypeError
        If ``x`` is not float64.
    """
    if n_directions < 1 or not step > 0:
        raise ValueError(
            f"n_directions={n_directions}, step={step}: expected at least 1 direction, step > 0"
        )
    if x.dtype != torch.float64:
        raise TypeError(f"x is {x.dtype}: second differences need float64, in the model as well")
    if isinstance(model, nn.Module):
        warn_if_train_mode(model)
    generator = torch.Generator(x.device).manual_seed(seed)

    def loss_at(moved: Tensor) -> Tensor:
        logits = model(moved)
        labels = y.expand(logits.shape[:-1])
        return loss(logits.flatten(0, -2), labels.flatten()).view(labels.shape)

    total, options = 0.0, {"generator": generator, "device": x.device}
    with torch.no_grad():
        for _ in range(n_directions):
            u, v = (step * (torch.randint(2, x.shape, **options).to(x) * 2 - 1) for _ in range(2))
            difference = loss_at(x + u + v) - loss_at(x + u - v)
            difference = difference - loss_at(x - u + v) + loss_at(x - u - v)
            total = total + difference.abs() / (4 * step**2 * n_directions)
    return total


def warn_if_train_mode(model: nn.Module) -> None:
    """Warn if layers in train mode couple samples (batch norm) or are random (dropout).

    The warning points to the caller's caller.
    """
    layers = [m for m in model.modules() if m.training and isinstance(m, _BatchNorm | _DropoutNd)]
    if layers:
        names = ", ".join(sorted({type(layer).__name__ for layer in layers}))
        warnings.warn(
            f"the model is in train mode and has {names}: the signals of a sample then depend "
            "on the other samples, or are random; call model.eval() first",
            stacklevel=3,
        )
