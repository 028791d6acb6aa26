"""Train many small networks together.

The weights of the networks are stacked along a first axis, and one forward and one backward pass
serve them all. Each network has its own samples, labels, seed and batch norm statistics. A stack of
one is trained without vmap, at no extra cost: large networks take the same path. Multilayer
perceptrons on a CPU train in turn, an epoch each (`perceptron`), which is faster still.

A network of a stack equals the same network trained alone: in turn, bit for bit; in one pass, up to
the order of sums. Predictions on a CPU are those of each network alone, bit for bit.
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
from memlens.ensembles import perceptron
from memlens.ensembles.own_configs import configs_of, stack_optimizer
from memlens.ensembles.perceptron import Perceptron
from memlens.models import registry
from memlens.storage.store import Arrays
from memlens.tracking import signals
from memlens.training import devices
from memlens.training.batches import Batches, sequential_batches
from memlens.training.config import TrainConfig, mixed_seed
from memlens.training.devices import Engine, thread_count
from memlens.training.loop import shuffled, train_step

# Input values in one pass without gradients: the outputs of the layers then stay in a CPU's cache.
# Eight nets with convolutions on 2,000 images of 28x28: 2^18 took 1.4 s, 2^20 2.5 s, 2^22 4.4 s.
# A GPU is faster with more, and takes all networks in one pass.
VALUES_ON_CPU, VALUES_ON_GPU = 2**18, 2**25
STACK_ON_GPU = 1000  # small networks: a step of so many launches as many kernels as a step of one


def ensemble_size(model: str, data: Dataset, config: TrainConfig, on_cpu: int) -> int:
    """Return how many networks one process trains in one pass.

    Large networks train one by one: each fills the processor alone, and vmap turns their
    convolutions into grouped ones, which are slow. Small ones fill a GPU only by the hundred; there
    it is as many as its memory holds.

    Parameters
    ----------
    model : str
    data : Dataset
    config : TrainConfig
    on_cpu : int
        Number of small networks on a CPU.
    """
    if model not in registry.SMALL:
        return 1
    device = config.engine().device
    if not devices.is_gpu(device):
        return on_cpu
    net = registry.build(model, data.n_classes, data.in_shape)
    sample = devices.bytes_per_sample(net, torch.zeros(1, *data.in_shape))
    needed = 4 * sample * config.batch_size  # outputs, their gradients, and as much to spare
    return int(min(STACK_ON_GPU, max(1, devices.free_memory(device) // needed)))


class StepRecorder:
    """Records mean input gradients and changes of predicted classes of many networks.

    As a `Recorder` does for one: its tensors have a first axis for the networks. The loss must be
    the sum over networks of the mean over the batch.
    """

    def __init__(self, n_models: int, n_samples: int, device: torch.device) -> None:
        self.before = torch.full((n_models, n_samples), -1, dtype=torch.int16, device=device)
        self.now, self.n_epochs = self.before.clone(), 0
        self._clear()

    def _clear(self) -> None:
        device, n_models = self.now.device, len(self.now)
        self.norms = torch.zeros(n_models, dtype=torch.float64, device=device)
        self.visits = torch.zeros_like(self.norms)

    def watch(self, x: Tensor) -> Tensor:
        """Return inputs (n_models, b, ...) that require a gradient."""
        return x.detach().requires_grad_(True)

    def update(self, index: Tensor, x: Tensor, logits: Tensor, y: Tensor) -> None:
        """Record a step of all networks, after its backward pass."""
        norms = x.grad.float().flatten(2).norm(dim=2)
        self.norms += norms.sum(1) * index.shape[1]
        self.visits += index.shape[1]
        self.now.scatter_(1, index, logits.detach().argmax(2).to(self.now.dtype))

    def record(self, number: int, index: Tensor, gradient: Tensor, logits: Tensor) -> None:
        """Record a step of one network.

        Parameters
        ----------
        number : int
            Of the network.
        index : Tensor (b,), int64
        gradient : Tensor (b, ...)
            Of the mean loss of the batch with respect to the inputs.
        logits : Tensor (b, n_classes)
        """
        self.norms[number] += gradient.float().flatten(1).norm(dim=1).sum() * len(index)
        self.visits[number] += len(index)
        self.now[number, index] = logits.argmax(1).to(self.now.dtype)

    def end_epoch(self) -> Arrays:
        """Return input_gradient (mean L2 norm) and label_changes of the epoch, (n_models,) each."""
        changes = (self.now != self.before).sum(1).double()  # samples of no subset are -1 in both
        if not self.n_epochs:
            changes.fill_(torch.nan)
        gradient = self.norms / self.visits
        self.before, self.n_epochs = self.now.clone(), self.n_epochs + 1
        self._clear()
        return {"input_gradient": gradient.cpu().numpy(), "label_changes": changes.cpu().numpy()}


@dataclass
class ModelEnsemble:
    """Networks of one architecture, with weights and buffers stacked along a first axis.

    Attributes
    ----------
    base : nn.Module
        The architecture; its own weights are not used.
    weights, buffers : dict of Tensor (n_models, ...)
    """

    base: nn.Module
    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]

    @classmethod
    def build(cls, model: str, data: Dataset, seeds: Iterable[int]) -> "ModelEnsemble":
        """Build untrained networks, one a seed, with the weights that `registry.build` gives."""
        nets = [registry.build(model, data.n_classes, data.in_shape, seed=int(s)) for s in seeds]
        return cls(nets[0], *stack_module_state(nets))

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(iter(self.weights.values())).device

    def place(self, engine: Engine) -> None:
        """Move the weights to the engine's device, in its memory layout."""
        move = lambda t: _laid_out(t.detach().to(engine.device), engine)  # noqa: E731
        self.weights = {k: move(w).requires_grad_(w.requires_grad) for k, w in self.weights.items()}
        self.buffers = {name: move(b) for name, b in self.buffers.items()}

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits (n_models, n, n_classes).

        Parameters
        ----------
        x : Tensor (n_models, n, channels, height, width) or (n, channels, height, width)
            Inputs of each network, or inputs that all networks share. They are evaluated in the
            mode of ``base``.
        """
        shared = x.ndim == 4
        if len(self) == 1:  # vmap would turn its convolutions into grouped ones
            return self._one(*self._state(0), x if shared else x[0])[None]
        forward = vmap(self._one, in_dims=(0, 0, None if shared else 0), randomness="different")
        return forward(self.weights, self.buffers, x)

    def _one(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.base, (weights, buffers), (x,))

    def predict(self, data: Dataset, samples: Samples | Tensor | None = None) -> Tensor:
        """Return logits (n_models, n, n_classes) in eval mode.

        Parameters
        ----------
        data : Dataset
        samples : Samples, or Tensor (n, channels, height, width) in the units of the data
            By default the training samples.
        """
        samples = data.train if samples is None else samples
        if isinstance(samples, Samples):
            rows = self._rows(prod(data.in_shape))
            batches = sequential_batches(samples, rows, self.device)
            return self._evaluate_batches(data.normalise(images) for images, _ in batches)
        return self.evaluate(data.normalise(samples.to(self.device)))

    def evaluate(self, x: Tensor) -> Tensor:
        """Return logits (n_models, n, n_classes) in eval mode, of inputs (n, ...) of all."""
        return self._evaluate_batches(x.split(self._rows(x.shape[1:].numel())))

    @torch.no_grad()
    def _evaluate_batches(self, batches: Iterable[Tensor]) -> Tensor:
        was_training = self.base.training
        self.base.eval()
        forward = self.__call__ if devices.is_gpu(self.device) else self._one_by_one
        logits = [forward(batch) for batch in batches]
        self.base.train(was_training)
        return torch.cat(logits, 1)

    def _one_by_one(self, x: Tensor) -> Tensor:
        """Return what `__call__` does of shared inputs; no operation sees two networks."""
        return torch.stack([self._one(*self._state(i), x) for i in range(len(self))])

    def _state(self, i: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return weights and buffers of network ``i``."""
        weights, buffers = (
            {name: stack[i] for name, stack in part.items()}
            for part in (self.weights, self.buffers)
        )
        return weights, buffers

    def _rows(self, values: int) -> int:
        """Return the number of samples, of so many values each, in one pass."""
        if devices.is_gpu(self.device):
            return max(1, VALUES_ON_GPU // (len(self) * values))
        return max(1, VALUES_ON_CPU // values)

    def weight_norms(self) -> Tensor:
        """Return `signals.weight_norm` of each network, (n_models,)."""
        norms = [w.detach().float().flatten(1).norm(dim=1) for w in self.weights.values()]
        return torch.stack(norms).norm(dim=0)

    def double(self) -> "ModelEnsemble":
        """Return a copy with weights and buffers in float64."""
        parts = (self.weights, self.buffers)
        as_double = lambda t: t.detach().double() if t.is_floating_point() else t.clone()  # noqa: E731
        copies = ({k: as_double(v) for k, v in part.items()} for part in parts)
        return ModelEnsemble(self.base, *copies)

    def member(self, i: int) -> nn.Module:
        """Return network ``i`` in eval mode; the next call overwrites it."""
        state = {name: stack[i].detach() for name, stack in (self.weights | self.buffers).items()}
        self.base.to(self.device).load_state_dict(state)
        return self.base.eval()


def train_ensemble(
    ensemble: ModelEnsemble,
    data: Dataset,
    masks: np.ndarray,
    config: TrainConfig | Sequence[TrainConfig],
    seeds: Sequence[int],
    *,
    labels: Tensor | None = None,
    epochs: int | None = None,
    recorder: StepRecorder | None = None,
    after_epoch: Callable[[], Any] = lambda: None,
) -> None:
    """Train all networks of an ensemble in place: in one batched pass, or perceptrons in turn.

    Parameters
    ----------
    ensemble : ModelEnsemble
    data : Dataset
    masks : ndarray (n_models, n_samples), bool
        Training samples of each network, the same number for all.
    config : TrainConfig, or a sequence of them, one a network
        Its seed is not used. Those of a sequence may differ in learning rate and weight decay.
    seeds : sequence of int, one a network
        Of the order of the samples, and of crops and flips.
    labels : Tensor (n_models, n_samples), int64, optional
        Labels of each network; by default those of the data.
    epochs : int, optional
        Stop after so many epochs, with the learning rates of the whole configuration.
    recorder : StepRecorder, optional
        Records every step; its epochs are ended by the caller, in ``after_epoch``.
    after_epoch : callable
        Called after each epoch.

    Raises
    ------
    ValueError
        If the networks have different numbers of samples, the configuration stops early, or
        configurations differ in anything else than learning rate and weight decay.
    TypeError
        If the images are not in memory.
    """
    if not isinstance(data.train.images, Tensor):
        raise TypeError(f"images of {data.name} are read from a folder: take a subset into memory")
    configs = configs_of(config, len(ensemble))
    config = configs[0]
    if config.stop is not None:
        raise ValueError(f"an ensemble trains to the end; stop is {config.stop!r}: set it to None")
    if len(sizes := np.unique(masks.sum(1))) > 1:
        raise ValueError(f"networks have {sizes.tolist()} samples; group them by their number")
    engine = config.engine()
    ensemble.place(engine)
    batches = Batches(data, config, engine)
    members = torch.stack([torch.as_tensor(m).nonzero()[:, 0] for m in masks])  # (m, kept)
    y = batches.y.expand(len(masks), -1) if labels is None else labels.to(engine.device)
    way = _in_turn if perceptron.suits(ensemble.base, config, engine) else _together
    train_epoch = way(ensemble, batches, y, configs, seeds, recorder)
    with thread_count(config.threads), engine.tuned():
        for epoch in range(config.epochs if epochs is None else epochs):
            ensemble.base.train()  # `after_epoch` may have left it in eval mode
            orders = torch.stack([shuffled(members.shape[1], int(s), epoch) for s in seeds])
            train_epoch(members.gather(1, orders), epoch)
            after_epoch()


# Trains all networks on their samples in the given order, (n_models, kept), in the given epoch.
_TrainEpoch = Callable[[Tensor, int], None]


def _together(
    ensemble: ModelEnsemble,
    batches: Batches,
    y: Tensor,
    configs: Sequence[TrainConfig],
    seeds: Sequence[int],
    recorder: StepRecorder | None,
) -> _TrainEpoch:
    """Return how to train all networks for an epoch in one pass; labels y (n_models, n_samples)."""
    config, stacks = configs[0], ensemble.weights.values()
    forward = batches.engine.forward(ensemble.__call__)
    optimizer = stack_optimizer(stacks, configs)

    def train_epoch(order: Tensor, epoch: int) -> None:
        torch.manual_seed(mixed_seed(*map(int, seeds), epoch))  # of dropout
        for group, own in zip(optimizer.param_groups, configs):  # a single group, if all are alike
            group["lr"] = own.lr_at(epoch)
        augmentation = batches.augmentation(seeds, epoch)
        for index in order.to(y.device).split(config.batch_size, dim=1):  # (m, b)
            x = batches.inputs(index, augmentation)
            train_step(
                forward, optimizer, x, y.gather(1, index), loss=sum_of_mean_losses,
                recorder=recorder, index=index, sam_rho=config.sam_rho, stacked=True,
            )  # fmt: skip

    return train_epoch


def _in_turn(
    ensemble: ModelEnsemble,
    batches: Batches,
    y: Tensor,
    configs: Sequence[TrainConfig],
    seeds: Sequence[int],
    recorder: StepRecorder | None,
) -> _TrainEpoch:
    """Return how to train one perceptron after the other for an epoch; otherwise as `_together`."""
    stacks = list(ensemble.weights.values())
    rows = zip(*stacks, strict=True)
    nets = [Perceptron(weights, config) for weights, config in zip(rows, configs, strict=True)]

    def train_epoch(order: Tensor, epoch: int) -> None:
        for number, (net, own, labels) in enumerate(zip(nets, order, y, strict=True)):
            config = configs[number]
            shown = batches.of_epoch(own.split(config.batch_size), int(seeds[number]), epoch)
            for index, x, _ in shown:
                logits, gradient = net.step(x, labels[index], config.lr_at(epoch), bool(recorder))
                if recorder:
                    recorder.record(number, index, gradient, logits)
            net.copy_to(stacks, number)

    return train_epoch


def sum_of_mean_losses(logits: Tensor, y: Tensor) -> Tensor:
    """Return the sum over networks of the mean loss of each: their gradients stay separate.

    Parameters
    ----------
    logits : Tensor (n_models, b, n_classes)
    y : Tensor (n_models, b), int64
    """
    return signals.loss(logits.flatten(0, 1), y.flatten()).sum() / y.shape[1]


def _laid_out(stack: Tensor, engine: Engine) -> Tensor:
    """Return a tensor of one network's convolution, (1, out, in, h, w), in the engine's layout."""
    if stack.ndim == 5 and len(stack) == 1:
        return stack[0].contiguous(memory_format=engine.memory_format)[None]
    return stack
