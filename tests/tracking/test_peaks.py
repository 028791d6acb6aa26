"""Stops: Label Wave on curves made by hand, the lowest loss, and all stops of one training."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlens.tracking.peaks import CURVES, LabelWave, Lowest, Peak, StopRules

# Changes from epoch 1 on; where the mean of three has its first minimum, and where it is detected.
WAVES = {
    # 60 50 40 43: rises at epoch 6
    "a valley": ([80, 60, 40, 50, 30, 50], Peak(5, 6)),
    # 2 2 2 2 2.3: equal means are no rise, and the first of them is taken
    "a plateau, then a rise": ([2, 2, 2, 2, 2, 2, 3], Peak(3, 7)),
    # 3 2 2 2 1 1.3
    "a plateau on the way down": ([4, 3, 2, 1, 3, 2, -2, 4], Peak(7, 8)),
    "the first mean is the lowest": ([1, 2, 3, 4, 9], Peak(3, 4)),
    # the second valley is deeper, but the first one counts
    "two valleys": ([9, 6, 3, 6, 9, 3, 0, 0, 0], Peak(4, 5)),
    # single counts go up and down, their means only down: 50 46.7 43.3 40
    "noise that the mean removes": ([60, 30, 60, 50, 20, 50], Peak(6, None)),
    "falls to the end": ([90, 80, 70, 60, 50], Peak(5, None)),
    "never changes": ([0] * 9, Peak(3, None)),
    "too short for one mean": ([5, 9], Peak(2, None)),
    "too short for a rise": ([5, 9, 12], Peak(3, None)),
    "one epoch": ([], Peak(0, None)),
}


def wave_of(changes, **settings):
    wave = LabelWave(**settings)
    marks = []
    for value in (math.nan, *changes):
        result = wave.update(value)
        assert result == (wave.peak.detected_epoch is not None)
        marks.append(wave.at_best)
    return wave.peak, marks


@pytest.mark.parametrize("case", WAVES)
def test_label_wave_stops_at_the_first_minimum_of_the_mean(case):
    changes, expected = WAVES[case]
    found, marks = wave_of(changes)
    assert found == expected
    kept = max(epoch for epoch, mark in enumerate(marks) if mark)
    assert kept == expected.peak_epoch  # its weights are those that were kept last


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 4))
def test_label_wave_is_its_definition(changes, window):
    means = {t: np.mean(changes[t - window : t]) for t in range(window, len(changes) + 1)}
    rises = [t for t in means if t - 1 in means and means[t] > means[t - 1] + 1e-9]
    found, _ = wave_of(changes, window=window)
    assert found.detected_epoch == (rises[0] if rises else None)
    seen = [t for t in means if not rises or t < rises[0]]
    if seen:
        lowest = min(means[t] for t in seen)
        assert found.peak_epoch == next(t for t in seen if means[t] < lowest + 1e-9)
    else:
        assert found.peak_epoch == len(changes)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_later_changes_cannot_change_a_label_wave_that_is_detected(changes):
    whole, _ = wave_of(changes)
    if whole.detected_epoch is not None:
        assert wave_of(changes[: whole.detected_epoch])[0] == whole
        assert wave_of([*changes, 0, 0, 0, 0])[0] == whole


def test_changes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"changes of epoch 0 are 3; expected NaN in epoch 0"):
        LabelWave().update(3)
    wave = LabelWave()
    wave.update(math.nan)
    with pytest.raises(ValueError, match="changes of epoch 1 are nan; .* a number in every other"):
        wave.update(math.nan)
    with pytest.raises(ValueError, match="window is 0; expected at least 1"):
        LabelWave(window=0)


def kept(losses, norms=None):
    """The epoch whose weights are kept at each stop in the end."""
    rules, epochs = StopRules(patience=3), {}
    for epoch, loss in enumerate(losses):
        norm = norms[epoch] if norms else 1.0
        row = {"weight_norm": norm, "val_loss": loss, "epoch": epoch}
        epochs |= dict.fromkeys(rules.update(row), epoch)
    assert epochs == {k: p.peak_epoch for k, p in rules.peaks.items() if k != "last"}
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
    assert kept([1.0] * 8, norms=[1, 3, 5, 4, 3, 2, 9, 9])["weight_norm"] == 2


def test_the_lowest_loss_is_detected_after_patience_epochs_and_again_if_a_lower_one_follows():
    lowest, found = Lowest(patience=2), []
    for loss in (3.0, 2.0, 2.5, 2.4, 2.6, 1.0, 1.5):
        lowest.update(loss)
        found.append(tuple(lowest.peak))
    late = [(1, None), (1, None), (1, 3), (1, 3), (5, None), (5, None)]
    assert found == [(0, None), *late]


def test_rules_know_the_stops_whose_curves_they_get():
    rules = StopRules(patience=2)
    assert rules.peaks == {"last": Peak(-1, -1)}
    rows = zip([1.0, 3.0, 2.0, 1.5], [math.nan, 9, 5, 3], strict=True)
    for norm, changes in rows:
        rules.update({"weight_norm": norm, "label_changes": changes})
    assert rules.peaks == {
        "weight_norm": Peak(1, 3), "label_wave": Peak(3, None), "last": Peak(3, 3)
    }  # fmt: skip
    assert [rules.detected(stop) for stop in (*CURVES, "last", None)] == [
        False, True, False, False, False, False
    ]  # fmt: skip
