"""Online detection of a peak: stop training without a validation set."""

from collections import deque
from typing import NamedTuple

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
