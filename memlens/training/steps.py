"""One step of training: of a batch, or of a process's share of one."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from memlens.tracking.recorder import Recorder
from memlens.training.config import ascended


def train_step(
    net: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    recorder: Recorder | None,
    index: Tensor,
    sam_rho: float = 0.0,
    scale: float | None = None,
) -> None:
    """One step of training; with a recorder, one that also leaves each sample's signals there.

    With ``sam_rho`` the weights move by the gradient at the worst point nearby; what is recorded
    belongs to the weights as they were. With ``scale`` the loss is the sum over the batch times it,
    and not the mean: the batch may then be a process's share of a larger one, even none of it.
    """
    if recorder:
        x = recorder.watch(x)
    logits = net(x)
    loss = _batch_loss(logits, y, scale)
    optimizer.zero_grad()
    loss.backward()
    if sam_rho:
        weights = [w for group in optimizer.param_groups for w in group["params"]]
        with ascended(weights, sam_rho):
            _batch_loss(net(x.detach()), y, scale).backward()
    optimizer.step()
    if recorder and len(index):
        recorder.update(index, x, logits, y, loss_scale=1.0 if scale is None else scale)


def _batch_loss(logits: Tensor, y: Tensor, scale: float | None) -> Tensor:
    if scale is None:
        return F.cross_entropy(logits, y)
    return scale * F.cross_entropy(logits, y, reduction="sum")
