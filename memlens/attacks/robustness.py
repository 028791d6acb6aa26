"""Adversarial distance: how far a sample is from the decision boundary, in pixels.

The distance is the L2 norm of a change of the pixels, which are scaled to [0, 1] and stay in that
range; 0 for a misclassified sample. DeepFool finds a misclassified sample nearby, not necessarily
the nearest: the distance is an upper bound.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from memlens.data.samples import Dataset, Samples
from memlens.tracking.signals import warn_if_train_mode
from memlens.training import devices
from memlens.training.batches import sequential_batches

BATCH = 512  # samples per batch; ours
STEP_MARGIN = 1e-4  # pixels added to a step, so that it leaves a tie; as foolbox
Logits = Callable[[Tensor], Tensor]


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
    """Move each sample across a nearby decision boundary (Moosavi-Dezfooli et al. 2016), L2.

    Each step goes to the nearest boundary of the linearised network, and slightly beyond; for a
    linear network without bounds the first step is exact. Ours: a bisection then removes the
    overshoot.

    Parameters
    ----------
    model : callable, (n, ...) -> logits (n, n_classes)
        Samples must not affect each other: use eval mode.
    x, y : Tensor (n, ...) and (n,)
    bounds : (low, high)
        Moved samples are clipped to them.
    n_steps : int
        Maximum number of steps.
    overshoot : float
        Share of the change that is added to it, to cross the boundary.
    n_candidates : int
        Number of other classes considered, those with the highest logits at the start.
    n_bisections : int
        Number of bisections; 10 find the boundary to a thousandth of the distance. 0 for none.

    Returns
    -------
    Tensor of the shape of x
        Misclassified samples; NaN where none was found. A sample that is misclassified at the start
        is returned unchanged.

    Raises
    ------
    ValueError
        If samples lie outside the bounds, an option is out of range, or a logit is not finite.
    """
    if n_steps < 0 or overshoot < 0 or n_candidates < 1 or n_bisections < 0:
        raise ValueError(
            f"n_steps={n_steps}, overshoot={overshoot}, n_candidates={n_candidates}, "
            f"n_bisections={n_bisections}: expected n_candidates above 0, the others 0 or more"
        )
    _check_bounds(x, bounds)
    x = x.detach()
    moved, total = x.clone(), torch.zeros_like(x)
    with torch.no_grad():
        logits = _finite(model(x))
    correct = logits.argmax(1) == y
    others = logits.scatter(1, y[:, None], -torch.inf)
    others = others.topk(min(n_candidates, logits.shape[1] - 1)).indices  # (n, k)
    for _ in range(n_steps):
        todo = correct.nonzero()[:, 0]
        if not len(todo):
            break
        # The total keeps what the bounds clip: within the bounds, the shortest change that reaches
        # a plane is a multiple of its normal, clipped.
        total[todo] += _linear_step(model, moved[todo], y[todo], others[todo])
        moved[todo] = (x[todo] + (1 + overshoot) * total[todo]).clamp(*bounds)
        correct[todo] = _is_correct(model, moved[todo], y[todo])
    moved = _bisected(model, x, moved, y, n_bisections)
    moved[correct] = torch.nan
    return moved


def _check_bounds(x: Tensor, bounds: tuple[float, float]) -> None:
    low, high = bounds
    if x.numel() and not (x.min() >= low and x.max() <= high):  # also true for NaN
        raise ValueError(
            f"samples range from {x.min():.4g} to {x.max():.4g}, outside the bounds {bounds}: "
            "scale them, or the pixel_max of their Dataset, to the bounds"
        )


def _finite(logits: Tensor) -> Tensor:
    if not logits.isfinite().all():
        raise ValueError("the network's logits are NaN or infinite: did its training diverge?")
    return logits


def _is_correct(model: Logits, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) == y


def _linear_step(model: Logits, x: Tensor, y: Tensor, others: Tensor) -> Tensor:
    """Return the shortest change to another class if the network were linear, (n, ...).

    0 where the gradients are 0.
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(x)
        gaps = logits.gather(1, others) - logits.gather(1, y[:, None])  # (n, k), 0 or below
        slopes = [torch.autograd.grad(gap.sum(), x, retain_graph=True)[0] for gap in gaps.T]
    slope = torch.stack(slopes, 1).flatten(2)  # (n, k, d)
    steepness = slope.norm(dim=2)
    distance, nearest = torch.where(steepness > 0, gaps.detach().abs() / steepness, torch.inf).min(
        1
    )
    chosen = (torch.arange(len(x), device=x.device), nearest)
    step = (distance + STEP_MARGIN)[:, None] * (
        slope[chosen] / steepness[chosen][:, None]
    )  # (n, d)
    return torch.where(distance.isfinite()[:, None], step, 0).view_as(x)


def _bisected(model: Logits, x: Tensor, moved: Tensor, y: Tensor, n_bisections: int) -> Tensor:
    """Bisect between x and the misclassified ``moved``; return a misclassified sample."""
    # With `lerp`, a share of 1 is exactly ``moved``, all samples are within the bounds, and a
    # sample that is misclassified at the start (``moved`` is x) stays exactly x.
    share = x.new_ones(len(x), *[1] * (x.ndim - 1))
    for halving in range(1, n_bisections + 1):
        smaller = share - 0.5**halving
        correct = _is_correct(model, x.lerp(moved, smaller), y)
        share = torch.where(correct.view_as(share), share, smaller)
    return x.lerp(moved, share)


def adversarial_distance(
    net: nn.Module,
    data: Dataset,
    samples: Samples | None = None,
    **options: object,
) -> np.ndarray:
    """Return the L2 distance of each sample to a misclassified one nearby, in pixels.

    Parameters
    ----------
    net : nn.Module, in eval mode
        `deepfool` runs on its device.
    data : Dataset
        Defines how pixels are normalised.
    samples : Samples, optional
        By default the training samples.
    **options
        Options of `deepfool`.

    Returns
    -------
    ndarray (n_samples,), float64
        0 or more, low = near a boundary = hard. 0 for a misclassified sample; NaN, with a warning,
        where `deepfool` found no misclassified sample.

    Raises
    ------
    ValueError
        If pixels lie outside 0 to ``data.pixel_max``, or a logit is not finite.
    """
    warn_if_train_mode(net)
    samples = data.train if samples is None else samples
    forward = lambda x: net(data.normalise(x * data.pixel_max))  # noqa: E731
    distances, weight = [], next(net.parameters(), samples.labels)  # a network may have none
    with devices.exact_float32():
        for images, y in sequential_batches(samples, BATCH, weight.device):
            x = images / data.pixel_max
            change = deepfool(forward, x, y, **options) - x
            distances.append(change.flatten(1).double().norm(dim=1))
    distances = torch.cat(distances).cpu().numpy()
    if n_missed := int(np.isnan(distances).sum()):
        warnings.warn(
            f"found no misclassified sample near {n_missed} of {len(distances)} samples; "
            "their distance is NaN: allow more steps",
            stacklevel=2,
        )
    return distances
