"""What is measured after an epoch, in eval mode and on clean inputs.

One pass over the training samples gives the same signals as the training step; on its way it can
also leave the norms of each sample's weight gradient (from the same backward pass) and the running
variance of its logit gradient. Curvature takes passes of its own.
"""

import copy
import math
from collections import deque
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlens import signals
from memlens.data import Dataset
from memlens.recipes import Measure, mixed_seed
from memlens.recorder import Recorder
from memlens.weightgrads import Taps

EVAL_BATCH = 4096
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
        difference = value - self.mean
        self.mean += difference / self.count
        self.squares += difference * (value - self.mean)

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


class Probes:
    """Measures a net after its epochs, for one training.

    Parameters
    ----------
    data : Dataset
    measure : Measure
    seed : int
        Of the curvature's random directions, mixed with the epoch.
    """

    def __init__(self, data: Dataset, measure: Measure, seed: int) -> None:
        self.data, self.measure, self.seed = data, measure, seed
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
        if due and self.measure.curvature_probes:
            found |= self._curvature(net, epoch)
        for name, values in found.items():
            self.rows.setdefault(name, {})[epoch] = values
        net.train(was_training)

    def _pass(self, net: nn.Module, due: bool) -> dict[str, Tensor]:
        """One pass over the clean samples in their order, into the recorder."""
        train, parts = self.data.train, []
        for index in torch.arange(len(train)).split(EVAL_BATCH):
            x = self.recorder.watch(self.data.normalise(train.images[index]))
            y, part = train.labels[index], {}
            with Taps(net if due and self.measure.weight_gradients else None) as taps:
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

    def _curvature(self, net: nn.Module, epoch: int) -> dict[str, Tensor]:
        train = self.data.train
        norm, squared = signals.curvature(
            net,
            self.data.normalise(train.images),
            train.labels,
            n_probes=self.measure.curvature_probes,
            step=self.measure.curvature_step,
            seed=mixed_seed(self.seed, epoch),
        )
        return {"curvature": norm, "curvature_squared": squared}

    def finish(self, net: nn.Module) -> dict[str, np.ndarray]:
        """Every signal, (n_epochs, n_samples) float32; NaN where it was not measured."""
        n_epochs = self.recorder.n_epochs
        if self.last_states:
            self.rows["vog_last"] = {n_epochs - 1: self._late_variance(net)}
        arrays = dict(self.recorder.trace)
        for name, rows in self.rows.items():
            arrays[name] = np.full((n_epochs, len(self.data.train)), math.nan, np.float32)
            for epoch, values in rows.items():
                arrays[name][epoch] = values.cpu().numpy()
        return arrays

    def _late_variance(self, net: nn.Module) -> Tensor:
        # Which checkpoints are the last is known only at the end, as a training may stop early; so
        # their weights are kept, which are smaller than their gradients.
        net, train = copy.deepcopy(net).eval(), self.data.train

        def gradients_at(state: dict[str, Tensor]) -> Tensor:
            net.load_state_dict(state)
            batches = zip(train.images.split(EVAL_BATCH), train.labels.split(EVAL_BATCH))
            parts = [signals.logit_gradient(net, self.data.normalise(x), y) for x, y in batches]
            return torch.cat(parts)

        return variance_of_gradients(map(gradients_at, self.last_states))


def _weight_norms(taps: Taps, back: list[Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    squares = taps.squared_norms(back, x, y)
    last = [square for name, square in squares.items() if name.rpartition(".")[0] == taps.last]
    return {
        "weight_grad": torch.stack(list(squares.values())).sum(0).sqrt(),
        "weight_grad_last": torch.stack(last).sum(0).sqrt(),
    }
