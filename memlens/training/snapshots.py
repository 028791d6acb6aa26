"""When the weights of a network are worth keeping: the rule of one network and of many."""

import math

from memlens.tracking.peaks import PeakDetector

SNAPSHOTS = ("peak", "best_val", "last")


class SnapshotRule:
    """Tells after each epoch which snapshots the weights of a network replace now.

    "peak" is the peak of the weight norm until it is detected, "best_val" the lowest validation
    loss.

    >>> rule = SnapshotRule(patience=2)
    >>> [rule.update(norm, loss) for norm, loss in [(5.0, 2.3), (6.0, 2.4), (5.9, 2.2)]]
    [['peak', 'best_val'], ['peak'], ['best_val']]

    Parameters
    ----------
    patience : int
        Epochs without a new maximum before the peak is detected; see `PeakDetector`.
    """

    def __init__(self, patience: int) -> None:
        self.detector = PeakDetector(patience=patience)
        self.lowest = math.inf

    def update(self, weight_norm: float, val_loss: float) -> list[str]:
        """Return the snapshots to replace after an epoch.

        Without a validation loss so far (NaN), "best_val" is the last epoch.
        """
        self.detector.update(weight_norm)
        due = ["peak"] if self.detector.at_best else []
        unknown = math.isnan(val_loss) and self.lowest == math.inf
        if val_loss < self.lowest or unknown:
            due.append("best_val")
        if val_loss < self.lowest:
            self.lowest = val_loss
        return due
