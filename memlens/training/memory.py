"""Estimate the memory that a training needs, and refuse it before it starts if it is too much."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from memlens.data.samples import Dataset
from memlens.tracking.traces import SIGNALS
from memlens.training import devices
from memlens.training.batches import READY_BYTES
from memlens.training.config import MeasureConfig, TrainConfig
from memlens.training.posthoc import LAST, keeps_probabilities

STATES = {"adam": 2, "adamw": 2}  # tensors as large as the weights that an optimizer keeps, or 1
KEPT = 6  # copies of the weights beside those in training: gradients, and those at five stops
GB = 1e9


def of_scores(n_samples: int, n_epochs: int, measure: MeasureConfig) -> int:
    """Return the bytes of the signals of a whole training."""
    n_signals = len(SIGNALS) * (1 + measure.posthoc) + measure.posthoc
    n_signals += 2 * bool(measure.n_directions) + 2 * measure.weight_gradients
    n_signals += 2 * measure.logit_gradients
    predicted = 2 * (1 + measure.posthoc)  # two bytes each
    return (4 * n_signals + predicted) * n_samples * n_epochs


def of_training(
    net: nn.Module, x: Tensor, data: Dataset, config: TrainConfig, measure: MeasureConfig
) -> dict[str, int]:
    """Return the peak memory of a training on its device in bytes, by purpose, without scores.

    Parameters
    ----------
    net : nn.Module
    x : Tensor (1, ...), an input on the device
    data, config, measure
        Of the training.
    """
    weights = sum(p.nbytes for p in net.parameters())
    sample, rows = devices.bytes_per_sample(net, x), devices.rows_at_once(net, x)
    train = data.train.images
    copies = 1 + KEPT + STATES.get(config.optimizer, 1) + LAST * measure.logit_gradients
    # Outputs are kept for the backward pass, whose gradients are freed as soon as they are used: a
    # quarter is added for those alive at once. Training and post-hoc evaluation take turns.
    width = 0.5 if config.engine().bfloat16 else 1.0
    passes = {
        f"layers' outputs of a batch of {config.batch_size}": width * sample * config.batch_size,
        f"layers' outputs of {rows} samples after an epoch": sample * rows * measure.posthoc,
    }
    largest = max(passes, key=passes.get)
    needs = {"weights and their copies": weights * copies, largest: int(1.25 * passes[largest])}
    if isinstance(train, Tensor):
        floats = 4 * train.numel()
        moved = train.nbytes if devices.is_gpu(x.device) else 0  # on a CPU they are there
        ready = floats if config.augment == "none" and floats <= READY_BYTES else 0
        needs["images"] = moved + ready
    if measure.posthoc and keeps_probabilities(data):
        needs["mean probabilities"] = 4 * len(data.train) * data.n_classes
    if measure.logit_gradients:
        needs["mean and variance of gradients"] = 2 * x[0, 0].nbytes * len(data.train)
    return needs


def check_memory(
    net: nn.Module,
    x: Tensor,
    data: Dataset,
    config: TrainConfig,
    measure: MeasureConfig,
    *,
    n_processes: int = 1,
) -> None:
    """Refuse a training that does not fit; arguments as in `of_training`.

    Parameters
    ----------
    n_processes : int
        Processes that share each batch.

    Raises
    ------
    MemoryError
        The message lists what is needed, what for, and what to do.
    """
    config = replace(config, batch_size=-(-config.batch_size // n_processes))
    needs = of_training(net, x, data, config, measure)
    # Scores are in the memory of the host: as rows, and again when they become a trace.
    scores = 2 * of_scores(len(data.train), config.epochs, measure)
    kept = {f"scores of {config.epochs} epochs": scores}
    cpu = torch.device("cpu")
    both = [(needs | kept, cpu)] if x.device == cpu else [(needs, x.device), (kept, cpu)]
    for part, device in both:
        require_memory(
            part,
            device,
            f"training on {len(data.train):,} samples of {data.name}",
            "take a smaller batch, fewer samples or epochs, or measure less",
        )


def require_memory(needs: Mapping[str, int], device: torch.device, what: str, remedy: str) -> None:
    """Raise an error for work that needs more bytes than are free on a device.

    Raises
    ------
    MemoryError
        The message lists what is needed, largest first, and the remedy.
    """
    needed, free = sum(needs.values()), devices.free_memory(device)
    if needed <= free:
        return
    parts = sorted(needs.items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name} {size / GB:.1f}" for name, size in parts if size >= 0.05 * GB)
    raise MemoryError(
        f"{what} needs about {needed / GB:.1f} GB on {device}, where {free / GB:.1f} GB are free "
        f"({listed}); {remedy}"
    )
