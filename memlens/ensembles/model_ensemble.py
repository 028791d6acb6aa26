"""Many small nets trained in one batched pass.

The weights of the nets are stacked along a first axis, and one forward and one backward pass serve
them all; each net has samples, labels and a seed of its own. Batch norm keeps statistics for each
net. On two cores this trains 400 nets of the digits profile three times as fast as one by one. A
stack of one is a net like any other, at no extra cost: that is how large nets go the same way.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from memlens.data.samples import Dataset, Samples
from memlens.models import registry
from memlens.tracking import signals
from memlens.training import devices
from memlens.training.batches import Batches, in_order
from memlens.training.config import OPTIMIZERS, TrainConfig, ascended, mixed_seed
from memlens.training.devices import Engine
from memlens.training.loop import shuffled, thread_count

# Values of inputs, over all nets, in one pass without gradients: its layers then stay in the cache.
# 50 nets of the digits profile took 2^24: 0.51 s, 2^20: 0.28 s, 2^16: 0.50 s. A GPU wants more.
VALUES_ON_CPU, VALUES_ON_GPU = 2**20, 2**25
STACK_ON_GPU = 1000  # small nets: a step of so many takes as many kernels as a step of one


def ensemble_size(model: str, data: Dataset, config: TrainConfig, on_cpu: int) -> int:
    """How many nets one process trains in one pass.

    Large nets go one by one: each fills the processor alone, and vmap makes grouped convolutions of
    theirs, which are slow. Small ones fill a GPU only by the hundred, as many as its memory holds.
    """
    if model not in registry.SMALL:
        return 1
    device = config.engine().device
    if not devices.is_gpu(device):
        return on_cpu
    net = registry.build(model, data.n_classes, data.in_shape)
    sample = devices.bytes_per_sample(net, torch.zeros(1, *data.in_shape))
    needed = 4 * sample * config.batch_size  # outputs, their gradients, and as much again to spare
    return int(min(STACK_ON_GPU, max(1, devices.free_memory(device) // needed)))


@dataclass
class ModelEnsemble:
    """ModelEnsemble of one architecture, with their weights and buffers stacked along a first axis.

    Attributes
    ----------
    base : nn.Module, whose own weights are not used
    weights, buffers : dict of Tensor (n_models, ...)
    """

    base: nn.Module
    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]

    @classmethod
    def build(cls, model: str, data: Dataset, seeds: Iterable[int]) -> "ModelEnsemble":
        """Fresh nets, one a seed, the same as ``models.build`` gives."""
        ensemble = [
            registry.build(model, data.n_classes, data.in_shape, seed=int(s)) for s in seeds
        ]
        return cls(ensemble[0], *stack_module_state(ensemble))

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.weights.values())).device

    def place(self, engine: Engine) -> None:
        """Move the weights to where they will compute, in the layout of the engine."""
        move = lambda t: _laid_out(t.detach().to(engine.device), engine)  # noqa: E731
        self.weights = {k: move(w).requires_grad_(w.requires_grad) for k, w in self.weights.items()}
        self.buffers = {name: move(b) for name, b in self.buffers.items()}

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (n_models, n, n_classes) of inputs (n_models, n, ...), each net its own.

        Also of inputs (n, ...) that all nets share. Samples meet in the mode ``base`` is in.
        """
        shared = x.ndim == 4
        if len(self) == 1:  # vmap would turn its convolutions into grouped ones
            state = ({k: t[0] for k, t in part.items()} for part in (self.weights, self.buffers))
            return self._one(*state, x if shared else x[0])[None]
        forward = vmap(self._one, in_dims=(0, 0, None if shared else 0), randomness="different")
        return forward(self.weights, self.buffers, x)

    def _one(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.base, (weights, buffers), (x,))

    def predict(self, data: Dataset, samples: Samples | Tensor | None = None) -> Tensor:
        """Logits (n_models, n, n_classes), eval mode, of samples or of images.

        By default of the training samples of the data.
        """
        samples = data.train if samples is None else samples
        if isinstance(samples, Samples):
            parts = in_order(samples, self._rows(prod(data.in_shape)), self.device)
            return self._joined(data.normalise(images) for images, _ in parts)
        return self.evaluate(data.normalise(samples.to(self.device)))

    @torch.no_grad()
    def evaluate(self, x: Tensor) -> Tensor:
        """Logits (n_models, n, n_classes) of inputs (n, ...) that all nets share: eval mode."""
        return self._joined(x.split(self._rows(x.shape[1:].numel())))

    @torch.no_grad()
    def _joined(self, parts: Iterable[Tensor]) -> Tensor:
        was_training = self.base.training
        self.base.eval()
        logits = [self(part) for part in parts]
        self.base.train(was_training)
        return torch.cat(logits, 1)

    def _rows(self, values: int) -> int:
        """Samples of so many values in one pass."""
        most = VALUES_ON_GPU if devices.is_gpu(self.device) else VALUES_ON_CPU
        return max(1, most // (len(self) * values))

    def weight_norms(self) -> Tensor:
        """L2 norm of all parameters of each net, (n_models,): `signals.weight_norm` of each."""
        norms = [w.detach().float().flatten(1).norm(dim=1) for w in self.weights.values()]
        return torch.stack(norms).norm(dim=0)

    def double(self) -> "ModelEnsemble":
        """A copy with weights and buffers in float64."""
        parts = (self.weights, self.buffers)
        as_double = lambda t: t.detach().double() if t.is_floating_point() else t.clone()  # noqa: E731
        return ModelEnsemble(
            self.base, *({k: as_double(v) for k, v in part.items()} for part in parts)
        )

    def member(self, i: int) -> nn.Module:
        """Net ``i`` alone, in eval mode; it is overwritten by the next call."""
        state = {name: stack[i].detach() for name, stack in (self.weights | self.buffers).items()}
        self.base.to(self.device).load_state_dict(state)
        return self.base.eval()


def train_ensemble(
    ensemble: ModelEnsemble,
    data: Dataset,
    masks: np.ndarray,
    config: TrainConfig,
    seeds: Sequence[int],
    *,
    labels: Tensor | None = None,
    epochs: int | None = None,
    after_epoch: Callable[[], Any] = lambda: None,
) -> None:
    """Train nets in place, all in one batched pass.

    Parameters
    ----------
    nets : ModelEnsemble
    data : Dataset
    masks : ndarray (n_models, n_samples), bool
        Samples of each net; all nets have the same number of them.
    config : TrainConfig
        Its seed is not used.
    seeds : sequence of int, one a net
        Of the order of the samples, and of crops and flips.
    labels : Tensor (n_models, n_samples), int64, optional
        Labels of each net; by default those of the data for all.
    epochs : int, optional
        Stop after so many, with the learning rates of the whole config.
    after_epoch : callable
        Called after each epoch.

    Raises
    ------
    ValueError
        If the nets have different numbers of samples, or the config stops early.
    TypeError
        If the images are not in memory.
    """
    if not isinstance(data.train.images, Tensor):
        raise TypeError(f"images of {data.name} are read from a folder: take a subset into memory")
    if config.stop is not None:
        raise ValueError(f"nets train together to the end; stop is {config.stop!r}: set it to None")
    if len(sizes := np.unique(masks.sum(1))) > 1:
        raise ValueError(f"nets have {sizes.tolist()} samples; group them by their number")
    engine = config.engine()
    ensemble.place(engine)
    forward, batches = engine.forward(ensemble.__call__), Batches(data, config, engine)
    optimizer = OPTIMIZERS[config.optimizer](ensemble.weights.values(), config)
    members = torch.stack([torch.as_tensor(m).nonzero()[:, 0] for m in masks])  # (m, kept)
    y = batches.y.expand(len(masks), -1) if labels is None else labels.to(engine.device)
    with thread_count(config.threads), engine.tuned():
        for epoch in range(config.epochs if epochs is None else epochs):
            ensemble.base.train()  # whoever looked after the last epoch may have left it in eval mode
            torch.manual_seed(mixed_seed(*map(int, seeds), epoch))  # of layers that draw: dropout
            for group in optimizer.param_groups:
                group["lr"] = config.lr_at(epoch)
            orders = torch.stack([shuffled(members.shape[1], int(s), epoch) for s in seeds])
            drawn, augmentation = (
                members.gather(1, orders).to(engine.device),
                batches.augmentation(seeds, epoch),
            )
            for index in drawn.split(config.batch_size, dim=1):  # (m, b)
                x = batches.inputs(index, augmentation)
                _step(ensemble, forward, optimizer, x, y.gather(1, index), config.sam_rho)
            after_epoch()


def _step(
    ensemble: ModelEnsemble,
    forward: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    sam_rho: float,
) -> None:
    optimizer.zero_grad()
    _mean_losses(forward, x, y).backward()
    if sam_rho:
        with ascended(list(ensemble.weights.values()), sam_rho, stacked=True):
            _mean_losses(forward, x, y).backward()
    optimizer.step()


def _mean_losses(forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    # Mean over each net's batch, sum over nets: no net sees another's gradient.
    losses = signals.loss(forward(x).flatten(0, 1), y.flatten())
    return losses.sum() / y.shape[1]


def _laid_out(stack: Tensor, engine: Engine) -> Tensor:
    """Weights of convolutions of one net, (1, out, in, height, width), as the engine wants them."""
    if stack.ndim == 5 and len(stack) == 1:
        return stack[0].contiguous(memory_format=engine.memory_format)[None]
    return stack
