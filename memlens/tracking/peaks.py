"""Peaks of a curve, detected while the curve is being recorded."""

import operator
from typing import NamedTuple

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
        Epoch in which the peak is detected, after waiting to see that the curve has passed it. None
        if the training ended before; ``peak_epoch`` is then the epoch of the highest value so far.
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


def find_peak(values: "list[float]", **settings: float) -> Peak:
    """Return the peak that a `PeakDetector` detects in a curve; ``settings`` are its parameters."""
    detector = PeakDetector(**settings)
    for value in values:
        detector.update(float(value))
    return detector.peak
