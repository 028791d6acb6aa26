"""The recorder: scatter under shuffling, short batches, resume, merge, foreign loops, bad input."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from memlens import models, signals
from memlens.recorder import SIGNALS, Recorder, Trace

N, CLASSES, SHAPE = 37, 3, (1, 4, 4)


@pytest.fixture
def task():
    generator = torch.Generator().manual_seed(0)
    net = models.build("mlp", CLASSES, SHAPE, seed=3).double()
    x = torch.randn(N, *SHAPE, generator=generator, dtype=torch.float64)
    return net, x, torch.randint(CLASSES, (N,), generator=generator)


def visit(recorder, task, indices, reduction="mean"):
    """One batch through a loop that does not train, so that the oracle is one pass."""
    net, x, y = task
    batch = recorder.watch(x[indices])
    logits = net(batch)
    F.cross_entropy(logits, y[indices], reduction=reduction).backward()
    recorder.update(indices, batch, logits, y[indices])


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


def test_a_wrong_scatter_would_be_seen(task):
    """The oracle test can fail: writing by loader position instead of index does not pass it."""
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


def test_resume_goes_on_where_it_was(task):
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
    whole, left, right = Recorder(N), Recorder(N, complete=False), Recorder(N, complete=False)
    for seed in range(2):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        epoch_of(whole, task, order, 8)
        epoch_of(left, task, order[:16], 8)
        epoch_of(right, task, order[16:], 8)
    merged = Recorder.merge(left, right)
    for name in SIGNALS:
        assert torch.allclose(*(torch.tensor(r.trace[name]) for r in (whole, merged)))
    with pytest.raises(
        ValueError, match=r"32 sample visits were recorded by several .* 42 by none"
    ):
        Recorder.merge(left, left)


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


def test_a_forgotten_watch_is_named(task):
    net, x, y = task
    recorder = Recorder(N)
    logits = net(x)
    F.cross_entropy(logits, y).backward()
    with pytest.raises(ValueError, match=r"call x = recorder.watch\(x\) before the forward pass"):
        recorder.update(torch.arange(N), x, logits, y)
    watched = recorder.watch(x)
    with pytest.raises(ValueError, match=r"update\(\) after loss.backward\(\)"):
        recorder.update(torch.arange(N), watched, net(watched), y)


def test_other_bad_input_is_named(task):
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


def test_divergence_is_named(task):
    net, x, y = task
    with torch.no_grad():
        next(net.parameters()).fill_(torch.nan)
    recorder = Recorder(N)
    visit(recorder, (net, x, y), torch.arange(N))
    with pytest.raises(FloatingPointError, match=r"37 samples in epoch 0: .* lower the learning"):
        recorder.end_epoch()


def test_a_trace_checks_its_shapes_and_gives_prefixes():
    with pytest.raises(ValueError, match=r"one shape \(n_epochs, n_samples\)"):
        Trace({"loss": np.zeros((2, 3)), "margin": np.zeros((3, 2))})
    trace = Trace({"loss": np.arange(6.0).reshape(2, 3)})
    assert trace.until(1).loss.tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match=r"asked for 3 epochs of a trace of 2"):
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
