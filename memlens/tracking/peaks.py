"""When to stop a training: peaks and minima of curves, detected while the curves are recorded."""

import math
import operator
from collections.abc import Mapping
from typing import NamedTuple

PEAKS = ("weight_norm", "input_gradient")  # the curves that have a peak
# The stops, each with the column of the history that it is detected in.
CURVES = {
    "input_gradient": "input_gradient",
    "weight_norm": "weight_norm",
    "label_wave": "label_changes",
    "best_val": "val_loss",
}
STOPS = (*CURVES, "last")


class Peak(NamedTuple):
    """A stop: the peak or minimum of a curve, and the epoch in which it was detected, from 0.

    >>> Peak(peak_epoch=3, detected_epoch=8).epochs_trained(60)
    9

    Attributes
    ----------
    peak_epoch : int
        Epoch of the highest (of `LabelWave` and `Lowest`: lowest) value, from which weights and
        scores are taken.
    detected_epoch : int or None
        Epoch in which it is detected, after waiting to see that the curve has passed it. None if
        the training ended before; ``peak_epoch`` is then the epoch of the best value so far.
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
        """Epoch of the highest value so far, and the epoch in which the peak was detected."""
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


class LabelWave:
    """Detector of the first local minimum of the smoothed number of changed predictions.

    Label Wave (Yuan, Feng and Liu, ICLR 2024) counts the training samples whose predicted class
    changes from one epoch to the next, averages the last ``window`` counts, and stops where this
    average rises for the first time. It needs no validation set. Equal averages are no rise; the
    first of them is the minimum.

    >>> wave = LabelWave()
    >>> counts = (math.nan, 90, 50, 40, 30, 35, 60)  # means of three: 60 40 35 41.7
    >>> [wave.update(count) for count in counts]
    [False, False, False, False, False, False, True]
    >>> wave.peak
    Peak(peak_epoch=5, detected_epoch=6)

    Parameters
    ----------
    window : int
        Counts to average.
    """

    def __init__(self, *, window: int = 3) -> None:
        if window < 1:
            raise ValueError(f"window is {window}; expected at least 1")
        self.window = window
        self._counts: list[float] = []
        self._epoch, self._lowest_epoch, self._lowest = -1, 0, math.inf
        self._detected: int | None = None

    @property
    def peak(self) -> Peak:
        """Epoch of the lowest average (before there is one, the last epoch), and detection."""
        return Peak(self._lowest_epoch, self._detected)

    @property
    def at_best(self) -> bool:
        """True if the weights of the last epoch are worth keeping."""
        return self._detected is None and self._lowest_epoch == self._epoch

    def update(self, value: float) -> bool:
        """Add the number of changes of the next epoch; return True once the minimum is detected.

        The first epoch has no number: pass NaN.

        Raises
        ------
        ValueError
            If the number of any other epoch is not finite, or that of the first one is given.
        """
        self._epoch += 1
        if math.isfinite(value) == (self._epoch == 0):
            raise ValueError(
                f"the changes of epoch {self._epoch} are {value}; expected NaN in epoch 0, where "
                "there is none before it, and a number in every other"
            )
        if self._epoch and self._detected is None:
            self._counts = [*self._counts, value][-self.window :]
        if self._detected is None:
            self._compare()
        return self._detected is not None

    def _compare(self) -> None:
        if len(self._counts) < self.window:  # no average yet
            self._lowest_epoch = self._epoch
            return
        average = sum(self._counts)  # of counts, so that equal averages are equal
        if average < self._lowest:
            self._lowest, self._lowest_epoch = average, self._epoch
        elif average > self._lowest:
            self._detected = self._epoch


class Lowest:
    """The lowest value of a curve so far, such as a validation loss.

    >>> lowest = Lowest(patience=2)
    >>> [lowest.update(loss) for loss in (2.0, 1.0, 1.5, 1.4, 0.9)]
    [False, False, False, True, False]
    >>> lowest.peak
    Peak(peak_epoch=4, detected_epoch=None)

    A training that stops by it ends ``patience`` epochs after the lowest value. In one that goes
    on, a later value may be lower. While all values are NaN (no validation samples), it is the last
    epoch.
    """

    def __init__(self, *, patience: int = 5) -> None:
        self.patience = patience
        self._epoch, self._lowest_epoch, self._lowest = -1, 0, math.inf

    @property
    def peak(self) -> Peak:
        """Epoch of the lowest value so far, and the one ``patience`` later, once it is over."""
        called = self._lowest_epoch + self.patience
        return Peak(self._lowest_epoch, called if called <= self._epoch else None)

    @property
    def at_best(self) -> bool:
        """True if the last epoch is the lowest so far, so that its weights are worth keeping."""
        return self._lowest_epoch == self._epoch

    def update(self, value: float) -> bool:
        """Add the value of the next epoch; return True ``patience`` epochs after the lowest one."""
        self._epoch += 1
        if value < self._lowest or (math.isnan(value) and self._lowest == math.inf):
            self._lowest_epoch = self._epoch
        if value < self._lowest:
            self._lowest = value
        return self.peak.detected_epoch is not None


class StopRules:
    """All stops of one training, from the rows of its history.

    >>> rules = StopRules(patience=1)
    >>> for norm, loss in [(5.0, 2.3), (6.0, 2.4), (5.9, 2.2)]:
    ...     print(rules.update({"weight_norm": norm, "val_loss": loss}))
    ['weight_norm', 'best_val']
    ['weight_norm']
    ['best_val']
    >>> rules.peaks["weight_norm"]
    Peak(peak_epoch=1, detected_epoch=2)

    Parameters
    ----------
    patience : int
        Epochs without a new best value before a peak or the lowest loss is detected.
    """

    def __init__(self, patience: int) -> None:
        self.patience, self._n_epochs = patience, 0
        self._detectors: dict[str, PeakDetector | LabelWave | Lowest] = {}

    def update(self, row: Mapping[str, float]) -> list[str]:
        """Add an epoch; return the stops for which its weights are the ones to keep so far.

        Stops whose column (`CURVES`) is not in the row are left out.
        """
        self._n_epochs += 1
        measured = {stop: row[column] for stop, column in CURVES.items() if column in row}
        for stop, value in measured.items():
            if stop not in self._detectors:
                self._detectors[stop] = self._detector(stop)
            self._detectors[stop].update(value)
        return [stop for stop in measured if self._detectors[stop].at_best]

    def _detector(self, stop: str) -> "PeakDetector | LabelWave | Lowest":
        if stop == "label_wave":
            return LabelWave()
        return (PeakDetector if stop in PEAKS else Lowest)(patience=self.patience)

    def detected(self, stop: str | None) -> bool:
        """Return whether a stop is detected."""
        return stop in self._detectors and self._detectors[stop].peak.detected_epoch is not None

    @property
    def peaks(self) -> dict[str, Peak]:
        """Epoch and detection of each stop that was measured; "last" is the last epoch."""
        last = Peak(self._n_epochs - 1, self._n_epochs - 1)
        return {stop: detector.peak for stop, detector in self._detectors.items()} | {"last": last}


def find_peak(values: "list[float]", **settings: float) -> Peak:
    """Return the peak that a `PeakDetector` detects in a curve; ``settings`` are its parameters."""
    detector = PeakDetector(**settings)
    for value in values:
        detector.update(float(value))
    return detector.peak
