"""When weights are kept: the peak of the norm, the lowest validation loss, NaN losses."""

import math

from memlens.training.runs import SnapshotRule


def kept(losses, norms=None):
    """The epoch whose weights each snapshot holds in the end."""
    rule, epochs = SnapshotRule(patience=3), {}
    for epoch, loss in enumerate(losses):
        norm = norms[epoch] if norms else 1.0
        epochs |= dict.fromkeys(rule.update(norm, loss), epoch)
    return epochs


def test_the_lowest_loss_is_kept_and_of_equal_ones_the_first():
    assert kept([2.0, 1.0, 1.5, 1.0])["best_val"] == 1


def test_a_loss_of_nan_does_not_hide_the_lowest():
    assert kept([2.1, 1.2, math.nan, 2.2, 1.3])["best_val"] == 1


def test_without_any_loss_the_last_epoch_is_kept():
    assert kept([math.nan] * 4)["best_val"] == 3


def test_a_loss_after_nan_is_the_lowest_so_far():
    assert kept([math.nan, 2.0, 3.0])["best_val"] == 1


def test_the_highest_norm_is_kept_until_it_is_detected():
    assert kept([1.0] * 8, norms=[1, 3, 5, 4, 3, 2, 9, 9])["peak"] == 2
