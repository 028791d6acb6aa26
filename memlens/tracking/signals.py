"""Per-sample quantities as pure functions: each is defined here, once.

Shapes: ``logits`` (n, n_classes), ``y`` (n,) int64, ``x`` (n, ...) a net's input. Every function
returns one number a sample, (n,), unless it says otherwise. Functions that take a model call it in
the mode it is in and assume that samples do not touch each other: with batch norm in train mode
they do, and `own_loss_gradient` is there to measure by how much.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


def loss(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, in nats, 0 or more."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """True-class logit minus the largest other logit; above 0 where the prediction is right.

    On logits, not probabilities (Pleiss et al. 2020). A tie counts as wrong.
    """
    true = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -torch.inf)
    return true - others.amax(1)


def el2n(logits: Tensor, y: Tensor) -> Tensor:
    """L2 norm of softmax minus one-hot label, in [0, sqrt 2] (Paul et al. 2021)."""
    # Not F.one_hot, which looks at the labels: on a GPU that is to wait for it.
    one_hot = torch.zeros_like(logits).scatter(1, y[:, None], 1.0)
    return (logits.softmax(1) - one_hot).norm(dim=1)


class GradientNorms(NamedTuple):
    """L2 and L1 norm of each sample's gradient, (n,) each; the L2 norm is not squared."""

    l2: Tensor
    l1: Tensor


def gradient_norms(gradient: Tensor) -> GradientNorms:
    """Norms of per-sample gradients (n, ...)."""
    flat = gradient.flatten(1)
    return GradientNorms(flat.norm(dim=1), flat.abs().sum(1))


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of each sample's loss by its own input, (n, ...), in the space of ``x``."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        return torch.autograd.grad(loss(model(x), y).sum(), x)[0]


def own_loss_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """As `input_gradient`, with the other samples' losses left out: n backward passes.

    The two differ where samples touch each other in the forward pass (batch norm, train mode).
    The buffers of the model (running statistics) are left as they were.
    """
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = x.detach().requires_grad_(True)
    losses = loss(functional_call(model, state, (x,)), y)
    rows = [
        torch.autograd.grad(value, x, retain_graph=True)[0][i] for i, value in enumerate(losses)
    ]
    return torch.stack(rows)


def logit_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of each sample's true-class logit by its own input, (n, ...), in the space of ``x``.

    Of the logit, not of the loss, so that it does not vanish for a fitted sample (Agarwal, D'souza
    and Hooker 2022: the gradients whose variance is VoG).
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(x)
        return torch.autograd.grad(logits.gather(1, y[:, None]).sum(), x)[0]


def weight_norm(model: nn.Module) -> Tensor:
    """L2 norm of all parameters together, a scalar."""
    return torch.stack([p.detach().float().norm() for p in model.parameters()]).norm()


class Curvature(NamedTuple):
    """Input-loss curvature of each sample, (n,) each, 0 or more.

    ``norm``: mean over probes of ||Hv||, what the authors' code averages.
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
    """Curvature of the loss around each input (Garg, Ravikumar and Roy 2024, Eq. 3 to 6).

    H is the Hessian of a sample's loss by its input, v a vector of random signs. The paper's
    finite difference takes (gradient at x + h v) - (gradient at x); here it is divided by h, so
    that it estimates Hv at any h. The clean gradient is shared by all probes: n + 1 gradients,
    not 2 n. Eval mode, float32 or float64; the perturbation is in the space of ``x``.

    Parameters
    ----------
    n_directions : int
        Random directions to average over.
    step : float
        h, the size of the step in each coordinate; ignored when ``exact``.
    exact : bool
        Exact Hessian-vector products by differentiating the gradient instead.
    seed : int
        Of the random directions.
    """
    if n_directions < 1 or not step > 0:
        raise ValueError(
            f"n_directions={n_directions}, step={step}: expected at least one probe, step > 0"
        )
    warn_if_train_mode(model)
    generator = torch.Generator(x.device).manual_seed(seed)
    product = _hessian_product(model, x, y) if exact else _difference(model, x, y, step)
    norm, squared = x.new_zeros(len(x)), x.new_zeros(len(x))
    for _ in range(n_directions):
        signs = torch.randint(2, x.shape, generator=generator, device=x.device).to(x) * 2 - 1
        length = gradient_norms(product(signs)).l2
        norm += length / n_directions
        squared += length**2 / n_directions
    return Curvature(norm, squared)


def _difference(model: nn.Module, x: Tensor, y: Tensor, step: float) -> Callable[[Tensor], Tensor]:
    clean = input_gradient(model, x, y)
    return lambda v: (input_gradient(model, x + step * v, y) - clean) / step


def _hessian_product(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        gradient = torch.autograd.grad(loss(model(x), y).sum(), x, create_graph=True)[0]
    return lambda v: torch.autograd.grad(gradient, x, grad_outputs=v, retain_graph=True)[0]


def zero_order_curvature(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    n_directions: int = 10,
    step: float = 1e-3,
    seed: int = 0,
) -> Tensor:
    """Curvature of the loss around each input from losses alone, without any gradient; 0 or more.

    The mean over draws of |l(x + u + v) - l(x + u - v) - l(x - u + v) + l(x - u - v)| / (4 h^2),
    with u and v vectors of random signs times h: each is an estimate of |u' H v| / h^2 (Ravikumar
    et al. 2024, Curvature Clues, who divide by 4 h, which changes no order). Four forward passes a
    draw. The differences are of the order of h^2: in float32 with h = 1e-3 they drown in rounding.

    Parameters
    ----------
    model : callable, (n, ...) -> logits (..., n, n_classes)
        One net, or several at once; the result has the leading axes of the logits.
    x, y : Tensor (n, ...), float64, and (n,)
    n_directions : int
        Pairs of random directions to average over.
    step : float
        h, the size of a step in each coordinate.
    seed : int
        Of the random directions.
    """
    if n_directions < 1 or not step > 0:
        raise ValueError(
            f"n_directions={n_directions}, step={step}: expected at least one draw, step > 0"
        )
    if x.dtype != torch.float64:
        raise TypeError(f"x is {x.dtype}: second differences need float64, in the model as well")
    if isinstance(model, nn.Module):
        warn_if_train_mode(model)
    generator = torch.Generator(x.device).manual_seed(seed)

    def at(moved: Tensor) -> Tensor:
        logits = model(moved)
        labels = y.expand(logits.shape[:-1])
        return loss(logits.flatten(0, -2), labels.flatten()).view(labels.shape)

    total, options = 0.0, {"generator": generator, "device": x.device}
    with torch.no_grad():
        for _ in range(n_directions):
            u, v = (step * (torch.randint(2, x.shape, **options).to(x) * 2 - 1) for _ in range(2))
            mixed = at(x + u + v) - at(x + u - v) - at(x - u + v) + at(x - u - v)
            total = total + mixed.abs() / (4 * step**2 * n_directions)
    return total


def warn_if_train_mode(model: nn.Module) -> None:
    """Warn about layers in train mode that make one sample's signals depend on others, or chance.

    The warning names the caller's caller.
    """
    layers = [m for m in model.modules() if m.training and isinstance(m, _BatchNorm | _DropoutNd)]
    if layers:
        names = ", ".join(sorted({type(layer).__name__ for layer in layers}))
        warnings.warn(
            f"the model is in train mode and has {names}: what is measured for one sample then "
            "depends on the others, or on chance; call model.eval() first",
            stacklevel=3,
        )
