"""Post-hoc evaluation: signals measured after an epoch, in eval mode and on clean inputs.

One pass over the training samples gives the same signals as the training step. The same pass can
compute the norm of each sample's weight gradient and the running variance of its logit gradient.
Curvature takes passes of its own. `predict` and `evaluate_batched` evaluate any trained network.
"""

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlens.data.samples import Dataset, Samples
from memlens.tracking import signals
from memlens.tracking.recorder import Recorder
from memlens.tracking.weightgrads import LayerHooks
from memlens.training import devices
from memlens.training.batches import sequential_batches
from memlens.training.config import MeasureConfig, mixed_seed
from memlens.training.devices import EVAL_ROWS

LAST = 5  # checkpoints of the late VoG, as in Table 1 of the CSG paper
PerSample = Callable[..., Tensor]  # such as `signals.logit_gradient`
MOST_PROBABILITIES = 2**28  # samples times classes whose running mean is kept: 1 GB


class RunningVariance:
    """Mean and variance of a stream of tensors, without storing them (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, value: Tensor) -> None:
        """Add one tensor; all have the same shape."""
        if not self.count:
            self.mean, self.squares = torch.zeros_like(value), torch.zeros_like(value)
        self.count += 1
        # A checkpoint loads tensors on the CPU.
        self.mean, self.squares = self.mean.to(value.device), self.squares.to(value.device)
        difference = value - self.mean
        self.mean += difference / self.count
        self.squares += difference * (value - self.mean)

    def state_dict(self) -> dict[str, Any]:
        """Return mean, squares and count."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        vars(self).update(state)

    @property
    def std(self) -> Tensor:
        """Standard deviation (divisor n) of each element; 0 after one tensor."""
        return (self.squares / self.count).sqrt()


def variance_of_gradients(gradients: Iterable[Tensor]) -> Tensor:
    """Return VoG of each sample: mean over pixels of the standard deviation over checkpoints.

    It follows the code of Agarwal, D'souza and Hooker (2022): the variance is divided by the number
    of checkpoints, and the channels are averaged first.

    Parameters
    ----------
    gradients : iterable of Tensor (n, channels, ...), one a checkpoint

    Returns
    -------
    Tensor (n,), 0 or more
    """
    running = RunningVariance()
    for gradient in gradients:
        running.update(gradient.mean(1))
    return _mean_std(running)


def _mean_std(gradients: RunningVariance) -> Tensor:
    return gradients.std.flatten(1).mean(1)


class PosthocEvaluator:
    """Measures a network after the epochs of one training.

    Parameters
    ----------
    data : Dataset
    measure : MeasureConfig
    seed : int
        Of the curvature's random directions, mixed with the epoch.
    rows : int
        Samples in one pass.
    """

    def __init__(
        self, data: Dataset, measure: MeasureConfig, seed: int, rows: int = EVAL_ROWS
    ) -> None:
        self.data, self.measure, self.seed, self.rows_at_once = data, measure, seed, rows
        self.recorder = Recorder(len(data.train), reduction="sum")
        self.rows: dict[str, dict[int, Tensor]] = {}  # signal -> epoch -> (n_samples,)
        self.gradients = RunningVariance()  # of the true-class logit, (n_samples, height, width)
        self.last_states: deque[dict[str, Tensor]] = deque(maxlen=LAST)
        self.probabilities: Tensor | None = None  # sums over epochs, (n_samples, n_classes)

    def after_epoch(self, net: nn.Module, epoch: int) -> None:
        """Measure the network in eval mode, and leave it in the mode it was in."""
        was_training = net.training
        net.eval()
        due = epoch % self.measure.every == 0
        found = self._pass(net, due)
        if due and self.measure.logit_gradients:
            self.gradients.update(found.pop("logit"))
            found["vog"] = _mean_std(self.gradients)
            self.last_states.append(copy.deepcopy(net.state_dict()))
        if due and self.measure.n_directions:
            found |= self._curvature(net, epoch)
        for name, values in found.items():
            self.rows.setdefault(name, {})[epoch] = values.cpu()
        net.train(was_training)

    def _pass(self, net: nn.Module, due: bool) -> dict[str, Tensor]:
        """Record one pass over the clean samples in order."""
        parts = []
        for index, x, y in self._batches(net):
            x, part = self.recorder.watch(x), {}
            with LayerHooks(net if due and self.measure.weight_gradients else None) as hooks:
                logits = net(x)
            if due and self.measure.logit_gradients:
                own = logits.gather(1, y[:, None]).sum()
                (gradient,) = torch.autograd.grad(own, x, retain_graph=True)
                part["logit"] = gradient.mean(1)  # over the channels
            if keeps_probabilities(self.data):
                part["probability_margin"] = self._probability_margin(index, logits.detach(), y)
            loss = F.cross_entropy(logits, y, reduction="sum")
            # By x and the layers' outputs only: the weights keep their gradients of training.
            x.grad, *back = torch.autograd.grad(loss, [x, *hooks.edges])
            if hooks.edges:
                part |= _weight_gradient_norms(hooks, back, x.detach(), y)
            self.recorder.update(index, x, logits, y)
            parts.append(part)
        self.recorder.end_epoch()
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _probability_margin(self, index: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """Add an epoch; return log mean p(label) - log largest other mean p, (b,)."""
        if self.probabilities is None:
            self.probabilities = logits.new_zeros(len(self.data.train), logits.shape[1])
        self.probabilities = self.probabilities.to(logits.device)  # a checkpoint loads on the CPU
        self.probabilities[index] += logits.softmax(1)
        sums = self.probabilities[index].clamp_min(torch.finfo(logits.dtype).tiny)
        return signals.margin(sums.log(), y)

    def _batches(self, net: nn.Module) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (index, x, y) of all clean samples in order, on the network's device."""
        device, start = next(net.parameters()).device, 0
        for images, y in sequential_batches(self.data.train, self.rows_at_once, device):
            index = torch.arange(start, start := start + len(y), device=device)
            yield index, self.data.normalise(images), y

    def _curvature(self, net: nn.Module, epoch: int) -> dict[str, Tensor]:
        n_directions, step = self.measure.n_directions, self.measure.curvature_step
        parts = []
        for number, (_, x, y) in enumerate(self._batches(net)):
            # The first batch has the seed of the epoch; 1 and 2 are those of crops and dropout.
            batch = (3, number) if number else ()
            seed = mixed_seed(self.seed, epoch, *batch)
            options = {"n_directions": n_directions, "step": step, "seed": seed}
            parts.append(signals.curvature(net, x, y, **options))
        norm, squared = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return {"curvature_norm": norm, "curvature_squared": squared}

    def state_dict(self) -> dict[str, Any]:
        """Return everything measured so far, as tensors and plain values."""
        return {
            "recorder": self.recorder.state_dict(),
            "rows": self.rows,
            "gradients": self.gradients.state_dict(),
            "last_states": list(self.last_states),
            "probabilities": self.probabilities,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.recorder.load_state_dict(state["recorder"])
        self.rows = {name: dict(rows) for name, rows in state["rows"].items()}
        self.gradients.load_state_dict(state["gradients"])
        self.last_states = deque(state["last_states"], maxlen=LAST)
        self.probabilities = state["probabilities"]

    def finish(self, net: nn.Module) -> dict[str, np.ndarray]:
        """Return every signal, (n_epochs, n_samples), float32; NaN where it was not measured."""
        n_epochs = self.recorder.n_epochs
        if self.last_states:
            self.rows["vog_last"] = {n_epochs - 1: self._late_variance(net).cpu()}
        arrays = dict(self.recorder.trace)
        for name, rows in self.rows.items():
            arrays[name] = np.full((n_epochs, len(self.data.train)), math.nan, np.float32)
            for epoch, values in rows.items():
                arrays[name][epoch] = values.numpy()
        return arrays

    def _late_variance(self, net: nn.Module) -> Tensor:
        # A training may stop early, so the last checkpoints are known only at its end. Until then
        # their weights are kept, which are smaller than their gradients.
        net = copy.deepcopy(net).eval()

        def gradients_at(state: dict[str, Tensor]) -> Tensor:
            net.load_state_dict(state)
            parts = (
                signals.logit_gradient(net, x, y).mean(1, True) for _, x, y in self._batches(net)
            )
            return torch.cat(list(parts))  # channels averaged, as `variance_of_gradients` would

        return variance_of_gradients(map(gradients_at, self.last_states))


def keeps_probabilities(data: Dataset) -> bool:
    """Return whether the mean probabilities of each class, (n_samples, n_classes), are kept."""
    return len(data.train) * data.n_classes <= MOST_PROBABILITIES


def _weight_gradient_norms(
    hooks: LayerHooks, back: list[Tensor], x: Tensor, y: Tensor
) -> dict[str, Tensor]:
    squares = hooks.squared_norms(back, x, y)
    last = [square for name, square in squares.items() if name.rpartition(".")[0] == hooks.last]
    return {
        "weight_grad": torch.stack(list(squares.values())).sum(0).sqrt(),
        "weight_grad_last": torch.stack(last).sum(0).sqrt(),
    }


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
