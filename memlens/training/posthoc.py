"""What is measured after an epoch, in eval mode and on clean inputs.

One pass over the training samples gives the same signals as the training step; on its way it can
also leave the norms of each sample's weight gradient (from the same backward pass) and the running
variance of its logit gradient. Curvature takes passes of its own.
"""

import copy
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlens.data.samples import Dataset
from memlens.tracking import signals
from memlens.tracking.recorder import Recorder
from memlens.tracking.weightgrads import LayerHooks
from memlens.training.batches import sequential_batches
from memlens.training.config import MeasureConfig, mixed_seed
from memlens.training.devices import EVAL_ROWS

LAST = 5  # checkpoints of the late VoG, as in the CSG paper's Table 1


class RunningVariance:
    """Mean and variance of a stream of tensors, without keeping them (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, value: Tensor) -> None:
        """Take in one tensor; all have the same shape."""
        if not self.count:
            self.mean, self.squares = torch.zeros_like(value), torch.zeros_like(value)
        self.count += 1
        # What was kept over an interruption comes back on the CPU.
        self.mean, self.squares = self.mean.to(value.device), self.squares.to(value.device)
        difference = value - self.mean
        self.mean += difference / self.count
        self.squares += difference * (value - self.mean)

    def state_dict(self) -> dict[str, Any]:
        """What it has seen, as tensors and a number."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        vars(self).update(state)

    @property
    def std(self) -> Tensor:
        """Standard deviation (divisor n) of each element; 0 after one tensor."""
        return (self.squares / self.count).sqrt()


def variance_of_gradients(gradients: Iterable[Tensor]) -> Tensor:
    """VoG of each sample: mean over pixels of the standard deviation over checkpoints.

    Agarwal, D'souza and Hooker 2022 as their code has it: the divisor of the variance, too, is the
    number of checkpoints, and the channels are averaged first.

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
    """Measures a net after its epochs, for one training.

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

    def after_epoch(self, net: nn.Module, epoch: int) -> None:
        """Measure the net in eval mode; it is left in the mode it was in."""
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
        """One pass over the clean samples in their order, into the recorder."""
        parts = []
        for index, x, y in self._batches(net):
            x, part = self.recorder.watch(x), {}
            with LayerHooks(net if due and self.measure.weight_gradients else None) as taps:
                logits = net(x)
            if due and self.measure.logit_gradients:
                own = logits.gather(1, y[:, None]).sum()
                (gradient,) = torch.autograd.grad(own, x, retain_graph=True)
                part["logit"] = gradient.mean(1)  # over the channels
            loss = F.cross_entropy(logits, y, reduction="sum")
            # By x and the layers' outputs alone: the weights keep what training left there.
            x.grad, *back = torch.autograd.grad(loss, [x, *taps.edges])
            if taps.edges:
                part |= _weight_norms(taps, back, x.detach(), y)
            self.recorder.update(index, x, logits, y)
            parts.append(part)
        self.recorder.end_epoch()
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _batches(self, net: nn.Module) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(index, x, y) of all clean samples in their order, on the device of the net."""
        device, start = next(net.parameters()).device, 0
        for images, y in sequential_batches(self.data.train, self.rows_at_once, device):
            index = torch.arange(start, start := start + len(y), device=device)
            yield index, self.data.normalise(images), y

    def _curvature(self, net: nn.Module, epoch: int) -> dict[str, Tensor]:
        probes, step = self.measure.n_directions, self.measure.curvature_step
        found = []
        for number, (_, x, y) in enumerate(self._batches(net)):
            # What fits one pass has the seed of the epoch alone; 1 and 2 are of crops and dropout.
            own = (3, number) if number else ()
            seed = mixed_seed(self.seed, epoch, *own)
            found.append(signals.curvature(net, x, y, n_directions=probes, step=step, seed=seed))
        norm, squared = (torch.cat(parts) for parts in zip(*found, strict=True))
        return {"curvature": norm, "curvature_squared": squared}

    def state_dict(self) -> dict[str, Any]:
        """Everything the finished epochs left, as tensors and plain values."""
        return {
            "recorder": self.recorder.state_dict(),
            "rows": self.rows,
            "gradients": self.gradients.state_dict(),
            "last_states": list(self.last_states),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.recorder.load_state_dict(state["recorder"])
        self.rows = {name: dict(rows) for name, rows in state["rows"].items()}
        self.gradients.load_state_dict(state["gradients"])
        self.last_states = deque(state["last_states"], maxlen=LAST)

    def finish(self, net: nn.Module) -> dict[str, np.ndarray]:
        """Every signal, (n_epochs, n_samples) float32; NaN where it was not measured."""
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
        # Which checkpoints are the last is known only at the end, as a training may stop early; so
        # their weights are kept, which are smaller than their gradients.
        net = copy.deepcopy(net).eval()

        def gradients_at(state: dict[str, Tensor]) -> Tensor:
            net.load_state_dict(state)
            parts = (
                signals.logit_gradient(net, x, y).mean(1, True) for _, x, y in self._batches(net)
            )
            return torch.cat(list(parts))  # channels averaged, as `variance_of_gradients` would

        return variance_of_gradients(map(gradients_at, self.last_states))


def _weight_norms(taps: LayerHooks, back: list[Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    squares = taps.squared_norms(back, x, y)
    last = [square for name, square in squares.items() if name.rpartition(".")[0] == taps.last]
    return {
        "weight_grad": torch.stack(list(squares.values())).sum(0).sqrt(),
        "weight_grad_last": torch.stack(last).sum(0).sqrt(),
    }
