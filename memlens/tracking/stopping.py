"""Online detection of a peak: stop training without a validation set."""

import operator
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from memlens.tracking import signals
from memlens.tracking.processes import over_processes

if TYPE_CHECKING:  # a recorder's scores may stop at a peak: it imports this module
    from memlens.tracking.recorder import Recorder

PEAKS = ("weight_norm", "input_gradient")  # the curves of a training that are watched


class Peak(NamedTuple):
    """Where a curve peaked, and when that could be known; epochs count from 0.

    ``detected_epoch`` is None when the training ended before the peak could be called;
    ``peak_epoch`` is then the best epoch so far.
    """

    peak_epoch: int
    detected_epoch: int | None

    def epochs_trained(self, n_epochs: int) -> int:
        """Epochs that a stop here costs: up to the call, or all ``n_epochs`` without one."""
        return n_epochs if self.detected_epoch is None else self.detected_epoch + 1


def peak_within(peak: Peak | int, n_epochs: int) -> Peak:
    """Return a peak, or an epoch counted from 0, as a `Peak` within ``n_epochs``.

    >>> peak_within(3, n_epochs=5)
    Peak(peak_epoch=3, detected_epoch=None)

    Raises
    ------
    TypeError
        If it is no whole number: NaN, text, True, a `PeakStop` in place of its ``peak``.
    ValueError
        If it is a whole number and no epoch of these.
    """
    found = peak if isinstance(peak, Peak) else Peak(peak, None)
    expected = f"expected a Peak, as stop.peak is, or an int from 0 to {n_epochs - 1}"
    try:
        if isinstance(found.peak_epoch, bool):  # to `index` it is 0 or 1
            raise TypeError
        epoch = operator.index(found.peak_epoch)
    except TypeError:
        raise TypeError(f"peak is {peak!r}; {expected}") from None
    if not 0 <= epoch < n_epochs:
        raise ValueError(f"peak is {peak!r}, and {n_epochs} epochs are finished; {expected}")
    return found._replace(peak_epoch=epoch)


class PeakDetector:
    """Calls the peak of a rising and falling curve while it is being drawn.

    A peak can only be called once it has passed: ``detected_epoch`` is where training would really
    stop and what the cost is counted to, ``peak_epoch`` is where scores and weights are taken from.

    >>> detector = PeakDetector(patience=2, warmup=0)
    >>> [detector.update(v) for v in (5, 4, 6, 8, 7, 6)]
    [False, False, False, False, False, True]
    >>> detector.peak
    Peak(peak_epoch=3, detected_epoch=5)

    Parameters
    ----------
    patience : int
        Epochs without a new best value before the peak is called.
    warmup : int
        First epochs that are not looked at.
    smoothing : int
        Values are averaged over this many epochs, the current one the last.
    min_rise : float
        The peak must exceed the lowest value before it by this share. A curve that only falls
        (the weight norm under strong weight decay, CSG paper Fig. 13) has no peak until it rises.
    """

    def __init__(
        self, *, patience: int = 5, warmup: int = 0, smoothing: int = 1, min_rise: float = 0.01
    ) -> None:
        if patience < 1 or smoothing < 1 or warmup < 0 or min_rise < 0:
            raise ValueError(
                f"patience={patience}, smoothing={smoothing} must be at least 1; "
                f"warmup={warmup}, min_rise={min_rise} at least 0"
            )
        self.patience, self.warmup, self.min_rise = patience, warmup, min_rise
        self._window: deque[float] = deque(maxlen=smoothing)
        self._epoch, self._peak_epoch = -1, 0
        self._low = self._best = float("nan")
        self._detected: int | None = None

    @property
    def peak(self) -> Peak:
        """The best epoch so far, and when it was called."""
        return Peak(self._peak_epoch, self._detected)

    @property
    def at_best(self) -> bool:
        """Whether the last update set the best value: the moment to keep a copy of the weights."""
        return self._detected is None and self._peak_epoch == self._epoch

    def update(self, value: float) -> bool:
        """Take in the value of the next epoch; True from the epoch on where the peak is called.

        Raises
        ------
        ValueError
            If the value is not finite.
        """
        if not abs(value) < float("inf"):
            raise ValueError(f"the value of epoch {self._epoch + 1} is {value}; expected a number")
        self._epoch += 1
        self._window.append(value)
        if self._detected is None:
            self._look(sum(self._window) / len(self._window))
        return self._detected is not None

    def _look(self, value: float) -> None:
        first = self._epoch <= self.warmup
        risen = self._best > self._low * (1 + self.min_rise)
        if first or (value < self._low and not risen):  # still on the way down: no peak behind us
            self._low = self._best = value
            self._peak_epoch = self._epoch
        elif value > self._best:
            self._best, self._peak_epoch = value, self._epoch
        elif risen and self._epoch - self._peak_epoch >= self.patience:
            self._detected = self._epoch


def find_peak(values: "list[float]", **settings: float) -> Peak:
    """The peak that a `PeakDetector` with these settings would have called on a finished curve."""
    detector = PeakDetector(**settings)
    for value in values:
        detector.update(float(value))
    return detector.peak


class PeakStop:
    """Early stopping for any loop, without a validation set: ends a training at a peak.

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
    curve : "weight_norm" or "input_gradient"
        What has to peak: the L2 norm of all weights, or the mean L2 norm of the input gradients
        of the epoch.
    patience, warmup, smoothing, min_rise
        See `PeakDetector`.

    Attributes
    ----------
    values : list of float, the curve so far
    best_state : dict or None: weights at the peak so far, on the CPU, under the bare net's names
    """

    def __init__(self, curve: str = "weight_norm", **settings: float) -> None:
        if curve not in PEAKS:
            raise ValueError(f"curve is {curve!r}; expected one of {PEAKS}")
        self.curve, self.settings = curve, settings
        self.values: list[float] = []
        self.best_state: dict[str, Tensor] | None = None
        self._detector = PeakDetector(**settings)

    @property
    def peak(self) -> Peak:
        """The best epoch so far, and when it was called."""
        return self._detector.peak

    def update(self, model: nn.Module, recorder: "Recorder | None" = None) -> bool:
        """Look at an epoch, once, after ``recorder.end_epoch()``; True: stop the training.

        Processes of `torch.distributed` have to call it together, and get one answer.

        Raises
        ------
        ValueError
            If the curve needs a recorder and there is none; if a recorder's epoch is not closed, or
            it has not finished exactly one epoch more than was looked at; if the value is not
            finite.
        """
        self._check(recorder)
        by_weights = self.curve == "weight_norm"
        value = self._norm(model) if by_weights else self._gradient(recorder)
        called = self._detector.update(value)
        self.values.append(value)
        if self._detector.at_best:
            state = unwrapped(model).state_dict()
            self.best_state = {k: v.detach().to("cpu", copy=True) for k, v in state.items()}
        return called

    def restore(self, model: nn.Module) -> None:
        """Give the net its weights at the peak.

        Raises
        ------
        ValueError
            If no epoch was looked at yet.
        """
        if self.best_state is None:
            raise ValueError("no weights were kept yet: call update() after each epoch")
        unwrapped(model).load_state_dict(self.best_state)

    def state_dict(self) -> dict[str, Any]:
        """What later epochs depend on."""
        return {"values": list(self.values), "best_state": self.best_state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, with the same settings."""
        self.values, self.best_state = list(state["values"]), state["best_state"]
        self._detector = PeakDetector(**self.settings)
        for value in self.values:  # a detector is what it has seen
            self._detector.update(value)

    def _check(self, recorder: "Recorder | None") -> None:
        once = "call update(model, recorder) once an epoch, after recorder.end_epoch()"
        if recorder is None:
            if self.curve != "weight_norm":
                raise ValueError(f"the curve {self.curve!r} comes from the recorder: {once}")
        elif recorder.in_epoch or recorder.n_epochs != len(self.values) + 1:
            raise ValueError(
                f"the recorder has finished {recorder.n_epochs} epochs, and this stop has looked "
                f"at {len(self.values)}: {once}, and resume both or none"
            )

    def _norm(self, model: nn.Module) -> float:
        norm = signals.weight_norm(model).detach()
        return over_processes(norm, how="min").item()  # they may differ in the last bit

    def _gradient(self, recorder: "Recorder") -> float:
        norms = recorder.last("grad_l2").double()
        total = torch.stack([norms.nansum(), norms.isfinite().sum()])
        sums, count = over_processes(total).tolist()
        return sums / count


def unwrapped(model: nn.Module) -> nn.Module:
    """The net inside of what `torch.compile` and data parallelism wrap around it."""
    parallel = (nn.parallel.DistributedDataParallel, nn.parallel.DataParallel)
    while hasattr(model, "_orig_mod") or isinstance(model, parallel):
        model = model.module if isinstance(model, parallel) else model._orig_mod
    return model
