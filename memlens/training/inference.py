"""Evaluate trained networks on many samples, in batches that fit into memory."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from memlens.data.samples import Dataset, Samples
from memlens.training import devices
from memlens.training.batches import sequential_batches

PerSample = Callable[..., Tensor]  # such as `signals.logit_gradient`


@torch.no_grad()
def predict(
    model: nn.Module, data: Dataset, samples: Samples | Tensor, rows: int | None = None
) -> Tensor:
    """Return logits of clean inputs in eval mode, on the model's device.

    Parameters
    ----------
    model : nn.Module
    data : Dataset
        How to normalise the images.
    samples : Samples, or Tensor (n, channels, height, width)
        Samples, or images in the units of the data.
    rows : int, optional
        Batch size; by default as many as fit.

    Returns
    -------
    Tensor (n, n_classes), float32
        In full precision on a GPU as well.
    """
    device = next(model.parameters()).device
    rows = rows or devices.rows_of(model, data.in_shape)
    was_training = model.training
    model.eval()
    if isinstance(samples, Samples):
        batches = (images for images, _ in sequential_batches(samples, rows, device))
    else:
        batches = (images.to(device) for images in samples.split(rows))
    with devices.exact_float32():
        logits = [model(data.normalise(images)) for images in batches]
    model.train(was_training)
    return torch.cat(logits)


def evaluate_batched(
    function: PerSample, net: nn.Module, x: Tensor, y: Tensor, **options: object
) -> Tensor:
    """Evaluate a per-sample function in batches on the network's device.

    Parameters
    ----------
    function : callable, (net, x, y, **options) -> Tensor (n, ...)
        Must treat samples independently, as networks in eval mode do.
    net : nn.Module
    x, y : Tensor (n, ...) and (n,)
    **options
        Passed to the function.

    Returns
    -------
    Tensor (n, ...)
        Detached, on the CPU; computed in full float32 precision on a GPU as well.
    """
    device = next(net.parameters()).device
    rows = devices.rows_at_once(net, x[:1].to(device))
    batches = zip(x.split(rows), y.split(rows), strict=True)
    with devices.exact_float32():
        values = [function(net, a.to(device), b.to(device), **options) for a, b in batches]
    return torch.cat([value.detach().cpu() for value in values])
