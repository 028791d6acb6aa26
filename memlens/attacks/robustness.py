"""How far a sample is from the nearest one that the net gets wrong, in pixels.

The distance is the L2 norm of a change of the pixels, which are scaled to [0, 1] and stay there; 0
for a sample that is wrong already. An attack finds a wrong sample nearby, not for sure the nearest:
what it measures is an upper bound.
"""

import os
import warnings
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from memlens.data.samples import Dataset, Samples
from memlens.tracking.signals import warn_if_samples_touch
from memlens.training import devices
from memlens.training.batches import sequential_batches

BATCH = 512  # samples attacked at once; ours
HAIR = 1e-4  # pixels by which a step goes past the boundary, so that a tie moves too; foolbox's
Logits = Callable[[Tensor], Tensor]
PerturbationAttack = Callable[
    [Logits, Tensor, Tensor], Tensor
]  # (model, x, y) -> wrong samples, or NaN


def deepfool(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    n_steps: int = 50,
    overshoot: float = 0.02,
    n_candidates: int = 10,
    n_bisections: int = 10,
) -> Tensor:
    """Move each sample over the nearest boundary of a net (Moosavi-Dezfooli et al. 2016), L2.

    Each step goes where the nearest boundary would be if the net were linear, and a little beyond;
    for a linear net without bounds the first step is exact. Ours: the way from the sample is
    halved until the overshoot is gone.

    Parameters
    ----------
    model : callable, (n, ...) -> logits (n, n_classes)
        Its samples must not touch each other: eval mode.
    x, y : Tensor (n, ...) and (n,)
    bounds : (low, high)
        Moved samples are clipped to them.
    n_steps : int
        Steps at most.
    overshoot : float
        Share by which the way goes on beyond the boundary.
    n_candidates : int
        Other classes that are tried, those with the highest logits at the start.
    n_bisections : int
        Halvings of the way; 10 find its end to a thousandth of it. 0: none.

    Returns
    -------
    Tensor of the shape of x
        Samples that are got wrong; NaN where none was found. A sample that is wrong at the start is
        itself.

    Raises
    ------
    ValueError
        If samples lie outside the bounds, an option is below what makes sense, or the net answers
        NaN.
    """
    if n_steps < 0 or overshoot < 0 or n_candidates < 1 or n_bisections < 0:
        raise ValueError(
            f"n_steps={n_steps}, overshoot={overshoot}, n_candidates={n_candidates}, "
            f"n_bisections={n_bisections}: expected one candidate or more, the others not below 0"
        )
    _check_bounds(x, bounds)
    x = x.detach()
    moved, total = x.clone(), torch.zeros_like(x)
    with torch.no_grad():
        logits = _finite(model(x))
    right = logits.argmax(1) == y
    rivals = logits.scatter(1, y[:, None], -torch.inf)
    rivals = rivals.topk(min(n_candidates, logits.shape[1] - 1)).indices  # (n, k)
    for _ in range(n_steps):
        todo = right.nonzero()[:, 0]
        if not len(todo):
            break
        # What the bounds cut off stays in the total: the shortest way inside the bounds to a plane
        # is its normal, as long as it takes, clipped.
        total[todo] += _step(model, moved[todo], y[todo], rivals[todo])
        moved[todo] = (x[todo] + (1 + overshoot) * total[todo]).clamp(*bounds)
        right[todo] = _right(model, moved[todo], y[todo])
    moved = _shortened(model, x, moved, y, n_bisections)
    moved[right] = torch.nan
    return moved


def _check_bounds(x: Tensor, bounds: tuple[float, float]) -> None:
    low, high = bounds
    if x.numel() and not (x.min() >= low and x.max() <= high):  # NaN is outside, too
        raise ValueError(
            f"samples range from {x.min():.4g} to {x.max():.4g}, outside the bounds {bounds}: "
            "scale them, or the pixel_max of their Dataset, to the bounds"
        )


def _finite(logits: Tensor) -> Tensor:
    if not logits.isfinite().all():
        raise ValueError("the net's logits are NaN or infinite: did its training diverge?")
    return logits


def _right(model: Logits, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) == y


def _step(model: Logits, x: Tensor, y: Tensor, rivals: Tensor) -> Tensor:
    """The shortest change after which a rival would win if the net were linear, (n, ...).

    0 where the net is flat.
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(x)
        gaps = logits.gather(1, rivals) - logits.gather(1, y[:, None])  # (n, k), 0 or below
        slopes = [torch.autograd.grad(gap.sum(), x, retain_graph=True)[0] for gap in gaps.T]
    slope = torch.stack(slopes, 1).flatten(2)  # (n, k, d)
    steepness = slope.norm(dim=2)
    away, nearest = torch.where(steepness > 0, gaps.detach().abs() / steepness, torch.inf).min(1)
    chosen = (torch.arange(len(x), device=x.device), nearest)
    step = (away + HAIR)[:, None] * (slope[chosen] / steepness[chosen][:, None])  # (n, d)
    return torch.where(away.isfinite()[:, None], step, 0).view_as(x)


def _shortened(model: Logits, x: Tensor, moved: Tensor, y: Tensor, n_bisections: int) -> Tensor:
    """The nearest wrong sample on the way from x to moved, which is wrong, by bisection."""
    # In `lerp` a share of 1 is exactly moved, nothing leaves the bounds, and a sample that is wrong
    # at the start, where moved is x, is exactly x.
    share = x.new_ones(len(x), *[1] * (x.ndim - 1))
    for halving in range(1, n_bisections + 1):
        less = share - 0.5**halving
        right = _right(model, x.lerp(moved, less), y)
        share = torch.where(right.view_as(share), share, less)
    return x.lerp(moved, share)


def adversarial_distance(
    net: nn.Module,
    data: Dataset,
    samples: Samples | None = None,
    *,
    attack: str = "deepfool",
    **options: object,
) -> np.ndarray:
    """L2 distance of each sample to a near one that the net gets wrong, in pixels.

    Parameters
    ----------
    net : nn.Module, in eval mode
        The attack computes where the net is.
    data : Dataset
        How pixels become the net's input.
    samples : Samples, optional
        By default the training samples.
    attack : str
        "deepfool" for `deepfool`, or the name of a minimal-norm L2 attack of foolbox, such as
        "DDNAttack" or "L2CarliniWagnerAttack"; foolbox is the extra [adversarial]. L2FMNAttack of
        foolbox 3.3.4 never projects, and measures too far.
    **options
        Of the attack.

    Returns
    -------
    ndarray (n_samples,), float64
        0 or more, low = near a boundary = hard. 0 for a sample that is wrong as it is; NaN, with a
        warning, where the attack found nothing.

    Raises
    ------
    ImportError
        If foolbox is asked for and cannot be imported; the message says how to install it.
    ValueError
        If the attack is unknown, pixels lie outside of 0 to ``data.pixel_max``, or the net answers
        NaN.
    """
    warn_if_samples_touch(net)
    samples = data.train if samples is None else samples
    find = _attack(attack, options)
    forward = lambda x: net(data.normalise(x * data.pixel_max))  # noqa: E731
    found, weight = [], next(net.parameters(), samples.labels)  # a net may have none
    with devices.exact_float32():
        for images, y in sequential_batches(samples, BATCH, weight.device):
            x = images / data.pixel_max
            found.append((find(forward, x, y) - x).flatten(1).double().norm(dim=1))
    distances = torch.cat(found).cpu().numpy()
    if n_missed := int(np.isnan(distances).sum()):
        warnings.warn(
            f"{attack} found no wrong sample near {n_missed} of {len(distances)} samples; their "
            "distance is NaN: allow more steps",
            stacklevel=2,
        )
    return distances


def _attack(name: str, options: dict[str, object]) -> PerturbationAttack:
    if name == "deepfool":
        return lambda model, x, y: deepfool(model, x, y, **options)
    foolbox = _foolbox(name)
    minimal = foolbox.attacks.base.MinimizationAttack
    known = {
        key: kind
        for key, kind in vars(foolbox.attacks).items()
        if isinstance(kind, type) and issubclass(kind, minimal)
        if kind.distance is foolbox.distances.l2
    }
    if name not in known:
        raise ValueError(f"unknown attack {name!r}; known: deepfool, {', '.join(sorted(known))}")
    attack = known[name](**options)
    return lambda model, x, y: _by_foolbox(foolbox, attack, model, x, y)


def _foolbox(name: str) -> ModuleType:
    # It imports git, which fails without a binary that is not needed here, unless told not to look.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    try:
        with warnings.catch_warnings():  # it takes a function of scipy from its old place
            warnings.simplefilter("ignore")
            import foolbox
    except ImportError as error:
        raise ImportError(
            f"attack {name!r} is not 'deepfool', and so needs foolbox, which cannot be imported "
            f"({error}): pip install 'memlens[adversarial]'"
        ) from error
    return foolbox


class _Module(nn.Module):
    """A function as the module that foolbox asks for."""

    def __init__(self, function: Logits) -> None:
        super().__init__()
        self.forward = function


def _by_foolbox(
    foolbox: ModuleType,
    attack: Callable[..., tuple[Tensor, Tensor, Tensor]],
    model: Logits,
    x: Tensor,
    y: Tensor,
) -> Tensor:
    _check_bounds(x, (0, 1))
    with torch.no_grad():
        found, right = x.clone(), _finite(model(x)).argmax(1) == y
    if right.any():
        wrapped = foolbox.PyTorchModel(_Module(model).eval(), bounds=(0, 1), device=x.device)
        _, moved, success = attack(wrapped, x[right], y[right], epsilons=None)
        success = success.view(-1, *[1] * (x.ndim - 1))
        found[right] = torch.where(success, moved.detach(), torch.nan)
    return found
