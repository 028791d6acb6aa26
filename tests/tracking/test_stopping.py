"""Peak detection: position of the peak, epoch of its detection, curves without a peak."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from memlens.tracking import counting, signals
from memlens.tracking.counting import CountingRecorder
from memlens.tracking.peaks import Peak, PeakDetector, find_peak
from memlens.tracking.recorder import Recorder
from memlens.tracking.stopping import PeakStop, unwrapped


def test_the_peak_is_detected_after_patience_epochs_without_a_new_best():
    assert find_peak([1, 2, 3, 2.9, 2.8, 2.7], patience=3) == Peak(2, 5)
    assert find_peak([1, 2, 3, 2.9, 2.8], patience=3) == Peak(2, None)


def test_a_first_small_bump_does_not_hide_a_later_higher_peak():
    assert find_peak([1, 2, 1.9, 3, 4, 3, 2], patience=2) == Peak(4, 6)


def test_a_curve_that_only_falls_has_no_peak():
    assert find_peak([9, 8, 7, 6, 5, 4, 3, 2], patience=2).detected_epoch is None


def test_under_strong_decay_the_peak_is_that_after_the_first_fall():
    falls_first = [9, 7, 5, 4, 5, 6, 7, 6, 5, 4]
    assert find_peak(falls_first, patience=2) == Peak(6, 8)


def test_a_rise_below_min_rise_is_noise():
    wobble = [5, 4, 4.02, 4.01, 4.0, 4.0, 4.0]
    assert find_peak(wobble, patience=2, min_rise=0.01).detected_epoch is None
    assert find_peak(wobble, patience=2, min_rise=0.001) == Peak(2, 4)


def test_the_result_is_constant_after_detection():
    detector = PeakDetector(patience=1)
    results = [detector.update(v) for v in (1, 2, 1, 50, 60)]
    assert results == [False, False, True, True, True]
    assert detector.peak == Peak(1, 2)
    assert not detector.at_best


def test_at_best_marks_the_epochs_whose_weights_are_worth_keeping():
    detector = PeakDetector(patience=2)
    marks = []
    for value in (1, 3, 2, 4, 3, 2):
        detector.update(value)
        marks.append(detector.at_best)
    assert marks == [True, True, False, True, False, False]


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=40), st.integers(1, 5))
def test_online_means_later_values_cannot_change_a_result(values, patience):
    detector = PeakDetector(patience=patience)
    for n, value in enumerate(values, 1):
        detector.update(value)
        assert detector.peak == find_peak(values[:n], patience=patience)
        peak, detected = detector.peak
        assert peak < n
        assert detected is None or detected - peak >= patience


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.floats(0.5, 20))
def test_the_unit_of_the_curve_does_not_matter_where_values_are_apart(values, factor):
    rounded = [round(v) + 1.0 for v in values]
    scaled = find_peak([factor * v for v in rounded])
    assert scaled.peak_epoch == find_peak(rounded).peak_epoch


@pytest.mark.parametrize("bad", [{"patience": 0}, {"min_rise": -0.1}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match="expected at least 1 and at least 0"):
        PeakDetector(**bad)


def test_a_value_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"the value of epoch 1 is nan"):
        find_peak([1.0, float("nan")])


def test_a_stop_costs_the_epochs_until_detection_or_all_of_them():
    assert Peak(3, 8).epochs_trained(60) == 9
    assert Peak(59, None).epochs_trained(60) == 60


# ---------------------------------------------------------------------------- PeakStop

CURVE = [1.0, 3.0, 2.0, 4.0, 3.5, 3.0, 9.0]


def set_norm(net, norm):
    """Give a net weights of this L2 norm, all alike."""
    n = sum(weight.numel() for weight in net.parameters())
    for weight in net.parameters():
        nn.init.constant_(weight, norm / math.sqrt(n))


def test_a_stop_by_the_weight_norm_is_that_of_the_detector_and_keeps_the_peaks_weights():
    net, stop = nn.Linear(3, 2), PeakStop(patience=2)
    results = []
    for norm in CURVE:
        set_norm(net, norm)
        results.append(stop.update(net))
    assert stop.values == pytest.approx(CURVE)
    assert stop.peak == find_peak(CURVE, patience=2) == Peak(3, 5)
    assert results == [False] * 5 + [True, True]
    stop.restore(net)
    assert signals.weight_norm(net).item() == pytest.approx(4)
    assert all(not tensor.requires_grad for tensor in stop.best_state.values())


def test_kept_weights_are_a_copy():
    net, stop = nn.Linear(1, 1), PeakStop()
    set_norm(net, 2.0)
    stop.update(net)
    set_norm(net, 0.1)
    assert float(stop.best_state["bias"][0]) == pytest.approx(math.sqrt(2))


def test_wrappers_do_not_change_the_names_of_weights():
    net = nn.Linear(2, 2)
    wrapped = nn.parallel.DataParallel(torch.compile(net))
    assert unwrapped(wrapped) is net and unwrapped(net) is net
    stop = PeakStop()
    stop.update(wrapped)
    assert list(stop.best_state) == ["weight", "bias"]
    set_norm(net, 9.0)
    stop.restore(wrapped)
    assert torch.equal(net.weight.detach(), stop.best_state["weight"])


def recorded(recorder, slope):
    """An epoch in which the L2 norm of every measured input gradient is this slope."""
    x = recorder.watch(torch.zeros(3, 1))
    logits, y = torch.cat([slope * x, -slope * x], 1), torch.zeros(3, dtype=torch.int64)
    nn.functional.cross_entropy(logits, y, reduction="sum").backward()
    recorder.update(torch.arange(3), x, logits, y)
    recorder.end_epoch()


def test_a_stop_by_the_input_gradient_takes_the_mean_over_what_was_visited():
    net, stop = nn.Linear(1, 1), PeakStop("input_gradient", patience=2)
    recorder = CountingRecorder(5, reduction="sum")  # two samples are never visited
    for slope in CURVE:
        recorded(recorder, slope)
        stop.update(net, recorder)
    assert stop.values == pytest.approx(CURVE)
    assert stop.peak == Peak(3, 5)


LABELS = [[0, 0, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 1]]  # 3 2 1 0 3 changes
WAVE = [math.nan, 3, 2, 1, 0, 3]  # means of three: 2 1 1.33


def predicting(recorder, labels, index=None):
    """An epoch in which each of the visited samples is predicted to be of this class."""
    index = torch.arange(len(labels)) if index is None else index
    x = recorder.watch(torch.nn.functional.one_hot(torch.tensor(labels), 2).float())
    nn.functional.cross_entropy(x, torch.zeros(len(labels), dtype=torch.int64)).backward()
    recorder.update(index, x, x, torch.zeros(len(labels), dtype=torch.int64))
    recorder.end_epoch()


def test_a_stop_by_label_wave_counts_the_changes_and_keeps_the_weights_of_the_minimum():
    net, stop, recorder = nn.Linear(1, 1), PeakStop("label_wave"), Recorder(3)
    results = []
    for epoch, labels in enumerate(LABELS):
        set_norm(net, 1.0 + epoch)
        predicting(recorder, labels)
        results.append(stop.update(net, recorder))
        state, stop = stop.state_dict(), PeakStop("label_wave")
        stop.load_state_dict(state)  # it continues from its state
    assert stop.values == pytest.approx(WAVE, nan_ok=True)
    assert stop.peak == Peak(4, 5)
    assert results == [False] * 5 + [True]
    stop.restore(net)
    assert signals.weight_norm(net).item() == pytest.approx(5.0)
    with pytest.raises(ValueError, match="curve 'label_wave' needs the recorder"):
        PeakStop("label_wave").update(net)


def test_label_wave_counts_samples_that_were_visited_in_both_epochs():
    recorder = CountingRecorder(4)
    predicting(recorder, [0, 0, 0], torch.tensor([0, 1, 2]))
    predicting(recorder, [1, 0, 1, 0], torch.tensor([0, 1, 3, 3]))  # 3: of two classes, the higher
    assert recorder.label_changes() == 1  # sample 0
    assert recorder.trace.predicted.tolist() == [[0, 0, 0, -1], [1, 0, -1, 1]]
    assert recorder.trace.filled().predicted.tolist() == [[0, 0, 0, 1], [1, 0, 0, 1]]
    again = CountingRecorder(4)
    again.load_state_dict(recorder.state_dict())
    assert again.label_changes() == 1


def test_label_changes_take_the_classes_that_other_processes_predicted(monkeypatch):
    """Each process visits what the other one did in the epoch before."""
    left, right = CountingRecorder(4), CountingRecorder(4)
    predicting(left, [0, 1], torch.tensor([0, 1])), predicting(left, [1, 1], torch.tensor([2, 3]))
    predicting(right, [0, 1], torch.tensor([2, 3])), predicting(right, [1, 1], torch.tensor([0, 1]))
    assert left.label_changes() == right.label_changes() == 0  # alone, it sees no sample twice
    merged = CountingRecorder.merge(left, right)
    assert merged.trace.predicted.tolist() == [[0, 1, 0, 1], [1, 1, 1, 1]]
    assert merged.label_changes() == 2
    others = iter(right._predictions)
    highest = lambda values, how: torch.maximum(values, next(others).int())  # noqa: E731
    monkeypatch.setattr(counting, "over_processes", highest)
    assert left.label_changes() == 2


def test_a_stop_continues_from_its_state():
    net, stop = nn.Linear(3, 2), PeakStop(patience=2)
    for norm in CURVE:
        set_norm(net, norm)
        stop.update(net)
        state, stop = stop.state_dict(), PeakStop(patience=2)
        stop.load_state_dict(state)
    assert stop.peak == Peak(3, 5)
    assert float(stop.best_state["bias"][0]) == pytest.approx(4 / math.sqrt(8))


@pytest.mark.parametrize("curve", ["weight_norm", "input_gradient", "label_wave"])
def test_a_new_stop_beside_a_resumed_recorder_is_refused(curve):
    net, recorder = nn.Linear(1, 1), Recorder(3, reduction="sum")
    recorded(recorder, 1.0), recorded(recorder, 2.0)
    with pytest.raises(ValueError, match=r"finished 2 epochs, this stop 0: .* resume both or"):
        PeakStop(curve).update(net, recorder)
    stop = PeakStop(curve)
    first = math.nan if curve == "label_wave" else 1.0
    stop.load_state_dict({"values": [first], "best_state": net.state_dict()})
    assert stop.update(net, recorder) is False


def test_misuse_of_a_stop_is_refused():
    net, stop, recorder = nn.Linear(1, 1), PeakStop("input_gradient"), Recorder(3, reduction="sum")
    with pytest.raises(ValueError, match=r"curve is 'loss'; expected one of"):
        PeakStop("loss")
    with pytest.raises(ValueError, match=r"no weights were kept yet: call update\(\)"):
        stop.restore(net)
    for given_recorder in (None, recorder):
        with pytest.raises(ValueError, match=r"once an epoch, after recorder.end_epoch\(\)"):
            stop.update(net, given_recorder)
    recorded(recorder, 1.0)
    assert stop.update(net, recorder) is False
    with pytest.raises(ValueError, match=r"once an epoch, after recorder.end_epoch\(\)"):
        stop.update(net, recorder)  # a second time for one epoch
    with pytest.raises(ValueError, match="expected at least 1 and at least 0"):
        PeakStop(patience=0)
