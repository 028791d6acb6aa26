"""Online peak detection: stop a training without a validation set."""

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from memlens.tracking import signals
from memlens.tracking.processes import over_processes

if TYPE_CHECKING:  # the recorder imports this module, because its scores may stop at a peak
    from memlens.tracking.recorder import Recorder

PEAKS = ("weight_norm", "input_gradient")  # the curves whose peak may stop a training


class Peak(NamedTuple):
    """Peak of a curve, and the epoch in which it was detected; epochs count from 0.

    >>> Peak(peak_epoch=3, detected_epoch=8).epochs_trained(60)
    9

    Attributes
    ----------
    peak_epoch : int
        Epoch of the highest value, from which weights and scores are taken.
    detected_epoch : int or None
        Epoch in which an online detector stops, since it has to wait until the peak has passed.
        None if the training ended before; ``peak_epoch`` is then the highest epoch so far.
    """

    peak_epoch: int
    detected_epoch: int | None

    def epochs_trained(self, n_epochs: int) -> int:
        """Return the epochs trained until detection: all ``n_epochs`` if there was none."""
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
        If it is not an epoch from 0 to ``n_epochs - 1``.
    """
    result = peak if isinstance(peak, Peak) else Peak(peak, None)
    expected = f"expected a Peak, such as stop.peak, or an int from 0 to {n_epochs - 1}"
    try:
        if isinstance(result.peak_epoch, bool):  # operator.index would return 0 or 1
            raise TypeError
        epoch = operator.index(result.peak_epoch)
    except TypeError:
        raise TypeError(f"peak is {peak!r}; {expected}") from None
    if not 0 <= epoch < n_epochs:
        raise ValueError(f"peak is {peak!r}, and {n_epochs} epochs are finished; {expected}")
    return result._replace(peak_epoch=epoch)


class PeakDetector:
    """Detector of the peak of a curve from one value per epoch.

    >>> detector = PeakDetector(patience=2)
    >>> [detector.update(value) for value in (5, 4, 6, 8, 7, 6)]
    [False, False, False, False, False, True]
    >>> detector.peak
    Peak(peak_epoch=3, detected_epoch=5)

    Parameters
    ----------
    patience : int
        Epochs without a new maximum before the peak is detected.
    min_rise : float
        Share by which the peak must exceed the lowest value before it. A curve that only falls
        (the weight norm under strong weight decay, CSG paper Fig. 13) has no peak until it rises.
    """

    def __init__(self, *, patience: int = 5, min_rise: float = 0.01) -> None:
        if patience < 1 or min_rise < 0:
            raise ValueError(
                f"patience is {patience}, min_rise {min_rise}; expected at least 1 and at least 0"
            )
        self.patience, self.min_rise = patience, min_rise
        self._epoch, self._peak_epoch = -1, 0
        self._lowest = self._highest = float("nan")
        self._detected: int | None = None

    @property
    def peak(self) -> Peak:
        """The highest epoch so far, and the epoch in which it was detected as the peak."""
        return Peak(self._peak_epoch, self._detected)

    @property
    def at_best(self) -> bool:
        """True if the last epoch is the highest so far, so that its weights are worth keeping."""
        return self._detected is None and self._peak_epoch == self._epoch

    def update(self, value: float) -> bool:
        """Add the value of the next epoch; return True once the peak is detected.

        Raises
        ------
        ValueError
            If the value is not finite.
        """
        if not abs(value) < float("inf"):
            raise ValueError(f"the value of epoch {self._epoch + 1} is {value}; expected a number")
        self._epoch += 1
        if self._detected is None:
            self._compare(value)
        return self._detected is not None

    def _compare(self, value: float) -> None:
        risen = self._highest > self._lowest * (1 + self.min_rise)
        if self._epoch == 0 or (value < self._lowest and not risen):  # still falling: no peak yet
            self._lowest = self._highest = value
            self._peak_epoch = self._epoch
        elif value > self._highest:
            self._highest, self._peak_epoch = value, self._epoch
        elif risen and self._epoch - self._peak_epoch >= self.patience:
            self._detected = self._epoch


def find_peak(values: "list[float]", **settings: float) -> Peak:
    """Return the peak that a `PeakDetector` detects in a curve; ``settings`` are its parameters."""
    detector = PeakDetector(**settings)
    for value in values:
        detector.update(float(value))
    return detector.peak


class PeakStop:
    """Early stopping at a peak, for any training loop, without a validation set.

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
        Curve to detect the peak of: the L2 norm of all weights, or the mean over samples of the L2
        norm of the input gradient.
    patience, min_rise
        See `PeakDetector`.

    Attributes
    ----------
    values : list of float
        The curve so far.
    best_state : dict or None
        Weights at the highest epoch so far, on the CPU, named without wrappers.
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
        """The highest epoch so far, and the epoch in which it was detected as the peak."""
        return self._detector.peak

    def update(self, model: nn.Module, recorder: "Recorder | None" = None) -> bool:
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
        by_weights = self.curve == "weight_norm"
        value = self._weight_norm(model) if by_weights else self._mean_gradient(recorder)
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
        self._detector = PeakDetector(**self.settings)
        for value in self.values:
            self._detector.update(value)

    def _check(self, recorder: "Recorder | None") -> None:
        usage = "call update(model, recorder) once an epoch, after recorder.end_epoch()"
        if recorder is None:
            if self.curve != "weight_norm":
                raise ValueError(f"the curve {self.curve!r} needs the recorder: {usage}")
        elif recorder.in_epoch or recorder.n_epochs != len(self.values) + 1:
            raise ValueError(
                f"the recorder has finished {recorder.n_epochs} epochs, this stop "
                f"{len(self.values)}: {usage}, and resume both or none"
            )

    def _weight_norm(self, model: nn.Module) -> float:
        norm = signals.weight_norm(model).detach()
        return over_processes(norm, how="min").item()  # processes may differ in the last bit

    def _mean_gradient(self, recorder: "Recorder") -> float:
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
