"""Stop a training at a peak, or by Label Wave, without a validation set."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from memlens.tracking import signals
from memlens.tracking.counting import over_processes
from memlens.tracking.peaks import LabelWave, Peak, PeakDetector
from memlens.tracking.recorder import Recorder

DETECTORS = {"weight_norm": PeakDetector, "input_gradient": PeakDetector, "label_wave": LabelWave}


class PeakStop:
    """Early stopping at a peak or by Label Wave, for any loop, without a validation set.

    >>> net, stop = nn.Linear(1, 2), PeakStop("weight_norm", patience=1)
    >>> for norm in (1.0, 2.0, 1.5):
    ...     _ = [nn.init.constant_(weight, norm) for weight in net.parameters()]
    ...     if stop.update(net):
    ...         break
    >>> stop.peak
    Peak(peak_epoch=1, detected_epoch=2)
    >>> stop.restore(net)
    >>> net.bias.tolist()
    [2.0, 2.0]

    Parameters
    ----------
    curve : "weight_norm", "input_gradient" or "label_wave"
        Curve to detect the peak of: the L2 norm of all weights, or the mean over samples of the L2
        norm of the input gradient. By Label Wave: the number of samples whose predicted class
        changed since the epoch before, whose smoothed curve has its first minimum there.
    patience, min_rise
        See `PeakDetector`; of Label Wave ``window``, see `LabelWave`.

    Attributes
    ----------
    values : list of float
        The curve so far; of Label Wave it begins with NaN.
    best_state : dict or None
        Weights at the epoch of the best value, on the CPU, named without wrappers.
    """

    def __init__(self, curve: str = "weight_norm", **settings: float) -> None:
        if curve not in DETECTORS:
            raise ValueError(f"curve is {curve!r}; expected one of {tuple(DETECTORS)}")
        self.curve, self.settings = curve, settings
        self.values: list[float] = []
        self.best_state: dict[str, Tensor] | None = None
        self._detector = DETECTORS[curve](**settings)

    @property
    def peak(self) -> Peak:
        """Epoch of the best value so far, and the epoch in which the stop was detected."""
        return self._detector.peak

    def update(self, model: nn.Module, recorder: Recorder | None = None) -> bool:
        """Add an epoch, after ``recorder.end_epoch()``; return True if the training should stop.

        All processes of `torch.distributed` call it together, and get the same result.

        Raises
        ------
        ValueError
            If the curve needs a recorder and there is none; if the recorder's epoch is not closed,
            or it has not finished exactly one epoch more than this stop; if the value is not
            finite.
        """
        self._check(recorder)
        value = self._value(model, recorder)
        detected = self._detector.update(value)
        self.values.append(value)
        if self._detector.at_best:
            state = unwrapped(model).state_dict()
            self.best_state = {k: v.detach().to("cpu", copy=True) for k, v in state.items()}
        return detected

    def restore(self, model: nn.Module) -> None:
        """Load the weights at the peak into the network.

        Raises
        ------
        ValueError
            If there was no update.
        """
        if self.best_state is None:
            raise ValueError("no weights were kept yet: call update() after each epoch")
        unwrapped(model).load_state_dict(self.best_state)

    def state_dict(self) -> dict[str, Any]:
        """Return the curve and the kept weights, for a checkpoint."""
        return {"values": list(self.values), "best_state": self.best_state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned, with the same settings."""
        self.values, self.best_state = list(state["values"]), state["best_state"]
        self._detector = DETECTORS[self.curve](**self.settings)
        for value in self.values:
            self._detector.update(value)

    def _check(self, recorder: Recorder | None) -> None:
        usage = "call update(model, recorder) once an epoch, after recorder.end_epoch()"
        if recorder is None:
            if self.curve != "weight_norm":
                raise ValueError(f"the curve {self.curve!r} needs the recorder: {usage}")
        elif recorder.in_epoch or recorder.n_epochs != len(self.values) + 1:
            raise ValueError(
                f"the recorder has finished {recorder.n_epochs} epochs, this stop "
                f"{len(self.values)}: {usage}, and resume both or none"
            )

    def _value(self, model: nn.Module, recorder: Recorder | None) -> float:
        if self.curve == "weight_norm":
            return self._weight_norm(model)
        if self.curve == "label_wave":
            return recorder.label_changes()
        return self._mean_gradient(recorder)

    def _weight_norm(self, model: nn.Module) -> float:
        norm = signals.weight_norm(model).detach()
        return over_processes(norm, how="min").item()  # processes may differ in the last bit

    def _mean_gradient(self, recorder: Recorder) -> float:
        norms = recorder.last("grad_l2").double()
        total = torch.stack([norms.nansum(), norms.isfinite().sum()])
        sums, count = over_processes(total).tolist()
        return sums / count


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network within the wrappers of `torch.compile` and of data parallelism."""
    parallel = (nn.parallel.DistributedDataParallel, nn.parallel.DataParallel)
    while hasattr(model, "_orig_mod") or isinstance(model, parallel):
        model = model.module if isinstance(model, parallel) else model._orig_mod
    return model
