"""The recorder: scatter under shuffling, short batches, resume, merge, scaled losses, bad input."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hand_made import SCORES, TRACE

from memlens.models import registry
from memlens.tracking import signals
from memlens.tracking.counting import CountingRecorder
from memlens.tracking.peaks import Peak
from memlens.tracking.recorder import Recorder
from memlens.tracking.stopping import PeakStop
from memlens.tracking.traces import SIGNALS, Trace

N, CLASSES, SHAPE = 37, 3, (1, 4, 4)


@pytest.fixture
def task():
    generator = torch.Generator().manual_seed(0)
    net = registry.build("mlp", CLASSES, SHAPE, seed=3).double()
    x = torch.randn(N, *SHAPE, generator=generator, dtype=torch.float64)
    return net, x, torch.randint(CLASSES, (N,), generator=generator)


def visit(recorder, task, indices, reduction="mean", factor=1.0, **how):
    """Record a batch without training, so that the oracle is one pass."""
    net, x, y = task
    batch = recorder.watch(x[indices])
    logits = net(batch)
    (factor * F.cross_entropy(logits, y[indices], reduction=reduction)).backward()
    recorder.update(indices, batch, logits, y[indices], **how)


def epoch_of(recorder, task, order, size, **how):
    for indices in order.split(size):
        visit(recorder, task, indices, **how)
    recorder.end_epoch()


def oracle(task):
    net, x, y = task
    logits = net(x).detach()
    norms = signals.gradient_norms(signals.input_gradient(net, x, y))
    return {
        "loss": signals.loss(logits, y),
        "grad_l2": norms.l2,
        "grad_l1": norms.l1,
        "margin": signals.margin(logits, y),
        "el2n": signals.el2n(logits, y),
    }


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("size", [1, 8, 36, 37])
def test_scatter_is_right_for_any_order_and_an_uneven_last_batch(task, size, reduction):
    recorder = Recorder(N, reduction=reduction)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(size))
    epoch_of(recorder, task, order, size, reduction=reduction)
    for name, values in oracle(task).items():
        found = torch.from_numpy(recorder.trace[name][0]).double()
        assert torch.allclose(found, values, rtol=1e-5, atol=1e-6), name


def test_flushing_early_changes_nothing(task):
    traces = []
    for budget in (1, 64 << 20):
        recorder = Recorder(N, flush_bytes=budget)
        epoch_of(recorder, task, torch.arange(N), 8)
        traces.append(recorder.trace)
    assert all((traces[0][k] == traces[1][k]).all() for k in SIGNALS)


def test_the_means_are_those_of_the_epoch(task):
    recorder = Recorder(N)
    for indices in torch.arange(N).split(8):
        visit(recorder, task, indices)
    means = recorder.end_epoch()
    assert means == pytest.approx({k: float(v.mean()) for k, v in oracle(task).items()}, rel=1e-5)
    assert repr(recorder) == f"Recorder({N} samples, 1 epochs finished)"


def test_a_wrong_scatter_fails(task):
    """The oracle test can fail: values stored by loader position instead of index do not pass."""
    recorder = Recorder(N)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    net, x, y = task
    for position, indices in zip(torch.arange(N).split(8), order.split(8), strict=True):
        batch = recorder.watch(x[indices])
        logits = net(batch)
        F.cross_entropy(logits, y[indices]).backward()
        recorder.update(position, batch, logits, y[indices])
    recorder.end_epoch()
    found = torch.from_numpy(recorder.trace.loss[0]).double()
    assert not torch.allclose(found, oracle(task)["loss"], rtol=1e-3)


def test_a_resumed_recorder_gives_the_same_trace(task):
    whole, first = Recorder(N), Recorder(N)
    for seed in range(3):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        epoch_of(whole, task, order, 8)
        epoch_of(first, task, order, 8)
        state, first = first.state_dict(), Recorder(N)
        first.load_state_dict(state)
    assert first.n_epochs == 3
    assert all((whole.trace[k] == first.trace[k]).all() for k in SIGNALS)


def test_two_halves_merge_to_the_whole(task):
    whole, left, right = Recorder(N), CountingRecorder(N), CountingRecorder(N)
    for seed in range(2):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        epoch_of(whole, task, order, 8)
        epoch_of(left, task, order[:16], 8)
        epoch_of(right, task, order[16:], 8)
    merged = CountingRecorder.merge(left, right)
    for name in SIGNALS:
        assert torch.allclose(*(torch.tensor(r.trace[name]) for r in (whole, merged)))
    with pytest.raises(ValueError, match=r"recorders differ in \(epochs, samples\): "):
        CountingRecorder.merge(left, CountingRecorder(N))


def test_visits_are_counted(task):
    recorder = Recorder(N)
    visit(recorder, task, torch.arange(N - 2))
    visit(recorder, task, torch.tensor([4]))
    with pytest.raises(
        ValueError,
        match=r"epoch 0: 1 samples were visited more than once \(first: \[4\]\) and 2 never "
        r"\(first: \[35, 36\]\); visit each sample once an epoch, without drop_last",
    ):
        recorder.end_epoch()


def test_a_missing_watch_is_reported(task):
    net, x, y = task
    recorder = Recorder(N)
    logits = net(x)
    F.cross_entropy(logits, y).backward()
    with pytest.raises(ValueError, match=r"call x = recorder.watch\(x\) before the forward pass"):
        recorder.update(torch.arange(N), x, logits, y)
    watched = recorder.watch(x)
    with pytest.raises(ValueError, match=r"update\(\) after loss.backward\(\)"):
        recorder.update(torch.arange(N), watched, net(watched), y)


def test_other_bad_input_is_refused(task):
    net, x, y = task
    with pytest.raises(ValueError, match=r"n_samples is 0"):
        Recorder(0)
    with pytest.raises(ValueError, match=r"reduction is 'none'; expected 'mean' or 'sum'"):
        Recorder(3, reduction="none")
    with pytest.raises(ValueError, match=r"nothing recorded yet"):
        _ = Recorder(3).trace
    with pytest.raises(ValueError, match=r"end_epoch\(\) without an update\(\)"):
        Recorder(3).end_epoch()
    recorder = Recorder(N - 1)
    visit(recorder, task, torch.arange(N))
    with pytest.raises(ValueError, match=r"indices run from 0 to 36; expected 0 to 35"):
        recorder.end_epoch()
    recorder = Recorder(N)
    visit(recorder, task, torch.arange(5))
    with pytest.raises(ValueError, match=r"middle of an epoch"):
        recorder.state_dict()
    batch = recorder.watch(x)
    net(batch).sum().backward()
    with pytest.raises(ValueError, match=r"lengths 36, 37, 37, 37; expected the same batch"):
        recorder.update(torch.arange(N - 1), batch, net(batch), y)


def test_divergence_is_reported(task):
    net, x, y = task
    with torch.no_grad():
        next(net.parameters()).fill_(torch.nan)
    recorder = Recorder(N)
    visit(recorder, (net, x, y), torch.arange(N))
    with pytest.raises(FloatingPointError, match=r"37 samples in epoch 0: .* lower the learning"):
        recorder.end_epoch()


def test_a_trace_checks_its_shapes_and_returns_prefixes():
    with pytest.raises(ValueError, match=r"one shape \(n_epochs, n_samples\)"):
        Trace({"loss": np.zeros((2, 3)), "margin": np.zeros((3, 2))})
    trace = Trace({"loss": np.arange(6.0).reshape(2, 3)})
    assert trace.until(1).loss.tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match=r"n_epochs is 3; expected 1 to 2"):
        trace.until(3)
    with pytest.raises(AttributeError, match=r"no signal 'margin'"):
        _ = trace.margin


def test_a_trace_carries_rates_by_epoch_and_labels_by_sample():
    rows = {"loss": np.arange(6.0).reshape(2, 3)}
    trace = Trace(rows, lr=np.array([0.1, 0.01]), y_true=np.array([4, 5, 6]))
    first = trace.until(1)
    assert first.lr.tolist() == [0.1]
    assert first.y_true.tolist() == [4, 5, 6]
    bare = Trace(rows).until(1)
    assert bare.lr is None
    assert bare.y_true is None
    assert list(trace) == ["loss"]  # they are not signals
    with pytest.raises(ValueError, match=r"lr has shape \(3,\); expected \(2,\)"):
        Trace(rows, lr=np.zeros(3))
    with pytest.raises(ValueError, match=r"y_true has shape \(2,\); expected \(3,\)"):
        Trace(rows, y_true=np.zeros(2))


# ---------------------------------------------------------------------------- unequal visits


def assert_is_oracle(recorder, task, seen=slice(None), rtol=1e-5):
    for name, values in oracle(task).items():
        found = torch.from_numpy(recorder.trace[name][0]).double()[seen]
        assert torch.allclose(found, values[seen], rtol=rtol, atol=1e-6), name


def test_counted_visits_of_one_net_give_the_values_of_one_visit(task):
    recorder = CountingRecorder(N)
    order = torch.tensor([0, 5, 5, 5, 9, 0, 20])
    for indices in order.split(3):  # two visits within a batch, and in another one
        visit(recorder, task, indices)
    means = recorder.end_epoch()
    seen = torch.tensor([0, 5, 9, 20])
    assert_is_oracle(recorder, task, seen)
    expected = torch.bincount(order, minlength=N)
    assert recorder.visits.tolist() == [expected.tolist()]
    assert recorder.trace.visits.tolist() == [expected.tolist()]
    assert recorder.trace.visits.dtype == np.int64
    assert (np.isnan(recorder.trace.loss[0]) == (expected == 0).numpy()).all()
    assert means["loss"] == pytest.approx(float(oracle(task)["loss"][seen].mean()), rel=1e-5)


def test_a_mean_is_over_visits_and_that_of_the_l2_norm_over_its_squares():
    recorder = CountingRecorder(2, reduction="sum")
    for slope in (3.0, 4.0):  # the logits of sample 0 change between its visits
        x = recorder.watch(torch.zeros(1, 1))
        logits = torch.cat([slope * x, -slope * x], 1)
        F.cross_entropy(logits, torch.tensor([0]), reduction="sum").backward()
        recorder.update(torch.tensor([0]), x, logits, torch.tensor([0]))
    recorder.end_epoch()  # |dl/dx| = slope at x = 0
    assert recorder.trace.grad_l1[0, 0] == pytest.approx(3.5)
    assert recorder.trace.grad_l2[0, 0] == pytest.approx(12.5**0.5)
    assert np.isnan(recorder.trace.grad_l2[0, 1])


def test_one_visit_each_is_the_same_counted_or_not(task):
    plain, counted = Recorder(N), CountingRecorder(N, flush_bytes=1)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    epoch_of(plain, task, order, 8)
    epoch_of(counted, task, order, 8)
    for name in SIGNALS:
        np.testing.assert_array_equal(counted.trace[name], plain.trace[name])
    assert counted.trace.counted and not plain.trace.counted
    assert (plain.trace.visits == counted.trace.visits).all() and plain.trace.visited.all()
    assert plain.trace.visits.tolist() == counted.visits.tolist() == [[1] * N]
    assert CountingRecorder(N).visits.shape == (0, N)


@pytest.mark.parametrize("kind", [Recorder, CountingRecorder])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_scaled_loss_gives_the_same_gradients(task, kind, as_tensor):
    recorder = kind(N)
    for step, indices in enumerate(torch.arange(N).split(8)):
        factor = (0.25, 1.0, 1024.0)[step % 3]
        scale = torch.tensor(factor, dtype=torch.float64) if as_tensor else factor
        visit(recorder, task, indices, factor=factor, loss_scale=scale)
        if as_tensor:
            scale.fill_(7.0)  # the caller reuses it
    recorder.end_epoch()
    assert_is_oracle(recorder, task)


def test_a_missing_loss_scale_fails(task):
    recorder = Recorder(N)
    visit(recorder, task, torch.arange(N), factor=0.5)
    recorder.end_epoch()
    with pytest.raises(AssertionError, match="grad_l2"):
        assert_is_oracle(recorder, task)


def overflow(recorder, task, indices, factor, **how):
    net, x, y = task
    batch = recorder.watch(x[indices])
    logits = net(batch)
    (factor * F.cross_entropy(logits, y[indices])).backward()
    batch.grad[0] = torch.inf
    recorder.update(indices, batch, logits, y[indices], **how)


@pytest.mark.parametrize("kind", [Recorder, CountingRecorder])
def test_gradients_that_overflow_under_a_scaler_are_not_measured(task, kind):
    recorder = kind(N)
    overflow(recorder, task, torch.arange(8), 64.0, loss_scale=torch.tensor(64.0))
    visit(recorder, task, torch.arange(8, N))
    means = recorder.end_epoch()
    assert np.isnan(recorder.trace.grad_l2[0, 0]) and np.isnan(recorder.trace.grad_l1[0, 0])
    assert not np.isnan(recorder.trace.loss).any()
    assert_is_oracle(recorder, task, torch.arange(1, N))
    norms = oracle(task)["grad_l2"][1:]
    assert means["grad_l2"] == pytest.approx(float(norms.mean()), rel=1e-5)


@pytest.mark.parametrize("kind", [Recorder, CountingRecorder])
@pytest.mark.parametrize("scale", [torch.inf, torch.nan])
def test_a_scale_that_is_not_finite_leaves_its_batch_unmeasured(task, kind, scale):
    recorder = kind(N)
    visit(recorder, task, torch.arange(8), loss_scale=torch.tensor(scale))
    visit(recorder, task, torch.arange(8, N))
    recorder.end_epoch()
    assert np.isnan(recorder.trace.grad_l2[0, :8]).all()
    assert_is_oracle(recorder, task, torch.arange(8, N))


@pytest.mark.parametrize("kind", [Recorder, CountingRecorder])
def test_overflow_without_a_scaler_or_of_everything_is_divergence(task, kind):
    recorder = kind(N)
    visit(recorder, task, torch.arange(8), factor=2.0, loss_scale=2.0)
    overflow(recorder, task, torch.arange(8, N), 1.0)
    with pytest.raises(FloatingPointError, match=r"grad_l\d is NaN or infinite for 1 samples"):
        recorder.end_epoch()
    recorder = kind(N)
    visit(recorder, task, torch.arange(N), loss_scale=torch.nan)
    with pytest.raises(FloatingPointError, match=r"every gradient of epoch 0 .* lower init_scale"):
        recorder.end_epoch()
    recorder = kind(N)  # a scale that was measured, of a loss that had none
    visit(recorder, task, torch.arange(8), loss_scale=torch.tensor(1.0002))
    overflow(recorder, task, torch.arange(8, N), 1.0, loss_scale=torch.tensor(0.9998))
    with pytest.raises(FloatingPointError, match=r"is NaN or infinite for 1 samples"):
        recorder.end_epoch()
    net, x, y = task
    recorder = kind(N)
    hot = x.clone()
    hot[3] = torch.nan
    visit(recorder, (net, hot, y), torch.arange(N), loss_scale=2.0)
    with pytest.raises(FloatingPointError, match=r"is NaN or infinite for 1 samples"):
        recorder.end_epoch()


@pytest.mark.parametrize("kind", [Recorder, CountingRecorder])
def test_resuming_within_an_epoch_gives_the_same_trace(task, kind):
    whole, first = kind(N), kind(N)
    for epoch in range(2):
        for step, indices in enumerate(torch.arange(N).split(8)):
            visit(whole, task, indices)
            visit(first, task, indices)
            if step == 2:
                state, first = first.state_dict(unfinished=True), kind(N)
                first.load_state_dict(state)
                visit(kind(N), task, indices)
        assert first.in_epoch
        whole.end_epoch(), first.end_epoch()
        assert first.n_epochs == epoch + 1 and not first.in_epoch
    assert whole.trace.visits.tolist() == first.trace.visits.tolist()
    for name in SIGNALS:
        np.testing.assert_array_equal(whole.trace[name], first.trace[name])


def test_a_state_is_a_copy_that_later_steps_do_not_write_to(task):
    recorder = CountingRecorder(N)
    visit(recorder, task, torch.arange(8))
    state = recorder.state_dict(unfinished=True)
    visit(recorder, task, torch.arange(8))
    recorder.end_epoch()
    again = CountingRecorder(N)
    again.load_state_dict(state)
    again.end_epoch()
    assert int(again.visits.sum()) == 8


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(task):
    counting, larger, recorder = CountingRecorder(N), Recorder(N + 1), Recorder(N)
    for begun in (counting, larger):
        visit(begun, task, torch.arange(8))
    epoch_of(recorder, task, torch.arange(N), 8)
    for begun, message in (
        (counting, "the state is of a CountingRecorder; expected that of a Recorder"),
        (larger, r"shapes \[\(5, 38\), \(38,\)\]; this recorder has 37 samples and 5 signals"),
    ):
        with pytest.raises(ValueError, match=message):
            recorder.load_state_dict(begun.state_dict(unfinished=True))
        assert recorder.n_epochs == 1 and not recorder.in_epoch


@pytest.mark.parametrize("kind", [Recorder, CountingRecorder])
@pytest.mark.parametrize("left", [0, 1, -1])
def test_a_state_that_lost_a_tensor_is_refused_and_changes_nothing(task, kind, left):
    begun, recorder = kind(N), kind(N)
    epoch_of(recorder, task, torch.arange(N), 8)
    visit(begun, task, torch.arange(8))
    state = begun.state_dict(unfinished=True)
    state["unfinished"] = state["unfinished"][:left]
    with pytest.raises(ValueError, match=r"tensors in an epoch that has begun"):
        recorder.load_state_dict(state)
    assert recorder.n_epochs == 1 and not recorder.in_epoch


def test_visits_of_another_length_are_refused(task):
    begun, recorder = Recorder(N), Recorder(N)
    visit(begun, task, torch.arange(8))
    state = begun.state_dict(unfinished=True)
    state["unfinished"][1] = state["unfinished"][1][:-1]
    with pytest.raises(ValueError, match=r"shapes \[\(5, 37\), \(36,\), \(37,\)\]"):
        recorder.load_state_dict(state)


def test_buffers_that_a_loop_writes_to_again_are_not_read_later(task):
    net, x, y = task
    recorder, index, label = Recorder(N), torch.empty(1, dtype=torch.int64), y[:1].clone()
    for i in range(N):
        index[0], label[0] = i, y[i]
        batch = recorder.watch(x[index])
        logits = net(batch)
        F.cross_entropy(logits, label).backward()
        recorder.update(index, batch, logits, label)
    recorder.end_epoch()
    assert_is_oracle(recorder, task)


def test_with_flush_bytes_0_no_tensor_of_a_step_is_kept(task):
    recorder = Recorder(N, flush_bytes=0)
    net, x, y = task
    for indices in torch.arange(N).split(8):
        batch = recorder.watch(x[indices])
        logits = net(batch)
        F.cross_entropy(logits, y[indices]).backward()
        recorder.update(indices, batch, logits, y[indices])
        logits.detach().fill_(torch.nan), batch.grad.fill_(torch.nan)  # as a CUDA graph does
    recorder.end_epoch()
    assert_is_oracle(recorder, task)


def test_shares_that_overlap_are_averaged_and_not_doubled(task):
    left, right = CountingRecorder(N), CountingRecorder(N)
    epoch_of(left, task, torch.tensor([0, 1, 2, 2]), 2)
    epoch_of(right, task, torch.tensor([0, 3]), 2)  # a padded sampler gives 0 to both
    merged = CountingRecorder.merge(left, right)
    assert_is_oracle(merged, task, torch.arange(4))
    assert merged.visits[0, :5].tolist() == [2, 1, 2, 1, 0]
    assert np.isnan(merged.trace.loss[0, 4:]).all()


def test_merged_halves_keep_every_bit(task):
    whole, left, right = Recorder(N), CountingRecorder(N), CountingRecorder(N)
    for indices in torch.arange(N).split(8):
        visit(whole, task, indices)
        visit(left if indices[0] < 16 else right, task, indices)
    for recorder in (whole, left, right):
        recorder.end_epoch()
    merged = CountingRecorder.merge(left, right)
    for name in SIGNALS:
        assert (merged.trace[name] == whole.trace[name]).all(), name


def test_in_one_process_gathered_is_the_recorder_itself(task):
    recorder = CountingRecorder(N)
    assert recorder.gathered() is recorder and not recorder.merged


def test_a_share_counts_its_visits_only(task):
    left, right = CountingRecorder(N), CountingRecorder(N)
    epoch_of(left, task, torch.arange(8), 8)
    epoch_of(right, task, torch.arange(8, N), 8)
    assert left.visits.tolist() == left.trace.visits.tolist() == [[1] * 8 + [0] * (N - 8)]
    assert left.trace.visited.tolist() == [True] * 8 + [False] * (N - 8)
    assert CountingRecorder.merge(left, right).merged


# ---------------------------------------------------------------------------- scores

STOPPED = {"sgal", "early_csg"}  # they add up to a peak


@pytest.fixture
def by_hand():
    """A recorder with the in-step signals of the trace worked out by hand."""
    recorder = Recorder(3)
    rows = np.stack([TRACE[name] for name in SIGNALS], 1)  # (n_epochs, n_signals, n_samples)
    predicted = torch.zeros(len(rows), 3, dtype=torch.int16)
    recorder.load_state_dict({"rows": list(torch.from_numpy(rows)), "predicted": list(predicted)})
    return recorder


@pytest.mark.parametrize("peak", [Peak(1, 3), Peak(1, None), 1, np.int64(1), torch.tensor(1)])
def test_scores_are_those_worked_out_by_hand(by_hand, peak):
    found = by_hand.scores(peak)
    assert STOPPED <= set(found) <= set(SCORES) and not {"curvature", "vog"} & set(found)
    for name in found:
        assert found[name].to_numpy() == pytest.approx(SCORES[name], abs=1e-6), name
    rising = found.drop(columns=["variability", "lt_iqr"])  # a loss that never moves has none
    assert (rising.loc[2] > rising.loc[0]).all()  # never learned, and learned at once
    assert set(found.dtypes) == {np.dtype(np.float64)}
    assert found.index.tolist() == [0, 1, 2] and found.index.name == "index"


def test_without_a_peak_only_the_scores_that_end_there_are_missing(by_hand):
    expected = by_hand.scores(1).drop(columns=list(STOPPED))
    pd.testing.assert_frame_equal(by_hand.scores(), expected, check_exact=True)


def test_a_peak_in_the_first_and_in_the_last_epoch(by_hand):
    assert by_hand.scores(0)["sgal"].to_numpy() == pytest.approx([0.2, 1.0, 2.0])
    assert by_hand.scores(0)["early_csg"].tolist() == [1, 16, 25]
    last = by_hand.scores(3)
    assert (last["sgal"] == last["csl"]).all() and (last["early_csg"] == last["csg"]).all()


def test_scores_are_available_after_each_epoch_and_within_the_next(task):
    """Without training every epoch is the same: sums grow, means stay."""
    recorder, expected, before = Recorder(N), oracle(task), None
    for n_epochs in (1, 2, 3):
        visit(recorder, task, torch.arange(5))
        if before is not None:
            pd.testing.assert_frame_equal(recorder.scores(n_epochs - 2), before, check_exact=True)
            with pytest.raises(ValueError, match="expected a Peak, such as stop.peak, or an int"):
                recorder.scores(n_epochs - 1)  # the epoch that has begun is not finished
        epoch_of(recorder, task, torch.arange(5, N), 8)
        before = recorder.scores(n_epochs - 1)
        for name, values in (
            ("csl", n_epochs * expected["loss"]),
            ("sgal", n_epochs * expected["loss"]),
            ("csg", n_epochs * expected["grad_l2"] ** 2),
            ("loss_sensitivity", expected["grad_l1"]),
            ("aum", -expected["margin"]),
            ("el2n", expected["el2n"]),
        ):
            assert before[name].to_numpy() == pytest.approx(values.numpy(), 1e-4, 1e-6), name


def test_scores_with_counted_visits_have_no_column_of_visits(task):
    recorder = CountingRecorder(N)
    for order in ([0, 1, 1], [2, 0, 0]):
        epoch_of(recorder, task, torch.tensor(order), 2)
    found, loss = recorder.scores(0), oracle(task)["loss"].numpy()
    assert "visits" not in found
    assert found["csl"][:3].to_numpy() == pytest.approx(2 * loss[:3], rel=1e-5)
    assert found["sgal"][:2].to_numpy() == pytest.approx(loss[:2], rel=1e-5)
    assert np.isnan(found["sgal"][2])  # first visited after the peak
    assert found[3:].isna().all().all()


def test_scores_of_nothing_are_refused(task):
    recorder = Recorder(N)
    visit(recorder, task, torch.arange(5))
    for peak in (None, 0, Peak(0, None), "last"):
        with pytest.raises(ValueError, match="nothing recorded yet: call end_epoch"):
            recorder.scores(peak)


@pytest.mark.parametrize("peak", [4, -1, 10**30, Peak(4, 6), Peak(-1, None), np.int64(7)])
def test_a_peak_outside_of_the_finished_epochs_is_refused(by_hand, peak):
    with pytest.raises(ValueError, match=r"peak is .*4 epochs are finished; .* int from 0 to 3"):
        by_hand.scores(peak)


@pytest.mark.parametrize(
    "peak",
    [np.nan, 1.0, "1", "weight_norm", True, (1, 3), [1], Peak(np.nan, None), Peak("1", 3),
     PeakStop()],
)  # fmt: skip
def test_a_peak_that_is_no_number_of_an_epoch_is_refused(by_hand, peak):
    with pytest.raises(TypeError, match=r"peak is .*expected a Peak, such as stop.peak, or an int"):
        by_hand.scores(peak)


# ---------------------------------------------------------------------------- traces with gaps

NAN = np.nan


def test_a_gap_holds_the_last_earlier_value_and_before_the_first_visit_that_one():
    rows = np.array([[NAN, 1, NAN], [2, NAN, NAN], [NAN, 3, NAN]])
    trace = Trace({"loss": rows}, lr=np.ones(3), visits=(~np.isnan(rows)).astype(np.int64))
    filled = trace.filled()
    np.testing.assert_array_equal(filled.loss, [[2, 1, NAN], [2, 1, NAN], [2, 3, NAN]])
    assert filled.visits is trace.visits and filled.counted and filled.lr is trace.lr


def test_a_trace_without_gaps_is_filled_already():
    trace = Trace({"loss": np.ones((2, 2)), "curvature": np.array([[NAN, NAN], [1, 2]])})
    assert trace.filled() is trace  # a row that was not measured is no gap
    mixed = Trace({"loss": np.array([[NAN, NAN], [1, NAN], [2, 3]])}).filled()
    np.testing.assert_array_equal(mixed.loss, [[NAN, NAN], [1, 3], [2, 3]])


def test_visits_are_cut_and_checked_with_the_trace():
    rows = {"loss": np.arange(6.0).reshape(2, 3)}
    trace = Trace(rows, y_true=np.array([4, 5, 6]), visits=np.arange(6).reshape(2, 3))
    assert trace.until(1).visits.tolist() == [[0, 1, 2]]
    part = trace.of(np.array([True, False, True]))
    assert part.visits.tolist() == [[0, 2], [3, 5]]
    assert part.loss.tolist() == [[0, 2], [3, 5]] and part.y_true.tolist() == [4, 6]
    with pytest.raises(ValueError, match=r"visits has shape \(3,\); expected \(2, 3\)"):
        Trace(rows, visits=np.zeros(3))
