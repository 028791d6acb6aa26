"""What is measured after an epoch, against a slow loop over the weights that each epoch left."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import memlens as ml
from memlens.models import registry
from memlens.tracking import signals
from memlens.training import devices, posthoc
from memlens.training.config import MeasureConfig, TrainConfig, mixed_seed
from memlens.training.loop import train
from memlens.training.posthoc import (
    PosthocEvaluator,
    RunningVariance,
    evaluate_batched,
    variance_of_gradients,
)

ALL = MeasureConfig(posthoc=True, n_directions=2, weight_gradients=True, logit_gradients=True)
SHORT = TrainConfig(epochs=7, batch_size=16, lr=0.05, weight_decay=1e-4, seed=3)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=9), st.sampled_from([0.0, 1e6]))
def test_the_running_deviation_is_that_of_the_whole_stream(values, far):
    running = RunningVariance()
    for value in values:
        running.update(torch.tensor([far + value, 2 * value, 7.0], dtype=torch.float64))
    columns = far + np.array(values), 2 * np.array(values), np.full(len(values), 7.0)
    assert running.std.numpy() == pytest.approx([c.std() for c in columns], rel=1e-4, abs=1e-8)
    assert running.count == len(values)


def test_the_stream_is_not_kept_nor_changed():
    running, first = RunningVariance(), torch.tensor([1.0])
    running.update(first)
    assert running.std.item() == 0
    running.update(torch.tensor([3.0]))
    assert first.item() == 1
    assert (running.mean.item(), running.std.item()) == (2, 1)


def test_vog_by_hand():
    """Two snapshots, two samples of two channels of two pixels."""
    first = torch.tensor([[[[1.0, 2.0]], [[3.0, 2.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]])
    second = torch.tensor([[[[5.0, 2.0]], [[7.0, 4.0]]], [[[9.0, 1.0]], [[-9.0, -1.0]]]])
    # The channels' means: pixels (2, 2) then (6, 3); deviations 2 and 0.5. Then what the second
    # sample's channels do cancels.
    assert variance_of_gradients([first, second]).tolist() == [1.25, 0]


def test_vog_of_a_gradient_that_never_changes_is_zero():
    gradient = torch.randn(4, 3, 5, 5)
    assert variance_of_gradients([gradient] * 6).tolist() == [0] * 4


def test_vog_is_zero_where_only_other_samples_change(tiny):
    """The same net throughout but for its biases: no logit's gradient by the input changes."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    found = PosthocEvaluator(tiny, ALL, seed=0)
    for epoch in range(6):
        with torch.no_grad():
            net[1].bias.copy_(torch.tensor([epoch, 1.0, 0.0]))
            net[1].weight[2] *= 1 + epoch  # the logit of twos alone
        found.after_epoch(net, epoch)
    arrays = found.finish(net)
    others = tiny.train.labels.numpy() != 2
    for vog in (arrays["vog"][-1], arrays["vog_last"][-1]):
        assert vog[others] == pytest.approx(0, abs=1e-6)
        assert (vog[~others] > 0.01).all()


ROWS = 25  # samples in a pass: three passes over the sixty, the last one short


@pytest.fixture
def measured(tiny, monkeypatch):
    """Train and measure; the run, and the net as every epoch left it."""
    monkeypatch.setattr(devices, "EVAL_ROWS", ROWS)

    def work(model, config, measure):
        nets, real = [], PosthocEvaluator.after_epoch

        def keep(self, net, epoch):
            nets.append(copy.deepcopy(net))
            real(self, net, epoch)

        monkeypatch.setattr(PosthocEvaluator, "after_epoch", keep)
        return train(model, tiny, config, measure), nets

    return work


def alone(net, data):
    """The oracle: logits' gradients (n, h, w) and weight norms (2, n), a sample at a time."""
    net = copy.deepcopy(net).eval()
    last = [p for _, p in list(net.named_parameters())[-2:]]
    images, norms = [], []
    for image, label in zip(data.normalise(data.train.images), data.train.labels, strict=True):
        x = image[None].clone().requires_grad_(True)
        images.append(torch.autograd.grad(net(x)[0, label], x)[0][0].mean(0))
        net.zero_grad()
        F.cross_entropy(net(image[None]), label[None]).backward()
        parts = list(net.parameters()), last
        norms.append([float(sum((p.grad**2).sum() for p in part)) ** 0.5 for part in parts])
    return torch.stack(images).numpy(), np.array(norms).T


def check(data, run, nets, measure):
    trace, due = run.posthoc_trace, range(0, len(nets), measure.every)
    images, norms = zip(*(alone(nets[epoch], data) for epoch in due), strict=True)
    x, y = data.normalise(data.train.images), data.train.labels
    for k, epoch in enumerate(due):
        assert trace.weight_grad[epoch] == pytest.approx(norms[k][0], rel=2e-3, abs=1e-5)
        assert trace.weight_grad_last[epoch] == pytest.approx(norms[k][1], rel=2e-3, abs=1e-5)
        vog = np.std(images[: k + 1], axis=0).mean((1, 2))
        assert trace.vog[epoch] == pytest.approx(vog, rel=2e-3, abs=1e-6)
        found = [
            signals.curvature(nets[epoch].eval(), *batch, n_directions=2, seed=mixed_seed(*numbers))
            for batch, numbers in zip(
                zip(x.split(ROWS), y.split(ROWS), strict=True),
                [(SHORT.seed, epoch, *own) for own in ((), (3, 1), (3, 2))],
                strict=True,
            )
        ]
        norm, squared = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
        assert trace.curvature_norm[epoch] == pytest.approx(norm, rel=0.05, abs=1e-2)
        assert trace.curvature_squared[epoch] == pytest.approx(squared, rel=0.1, abs=1e-2)
    late = np.std(images[-5:], axis=0).mean((1, 2))
    assert trace.vog_last[-1] == pytest.approx(late, rel=2e-3, abs=1e-6)
    for name in ("weight_grad", "weight_grad_last", "vog", "curvature_norm", "curvature_squared"):
        rows = np.isfinite(trace[name])
        assert (rows.all(1) == np.isin(np.arange(len(nets)), due)).all(), name
        assert (rows.all(1) == rows.any(1)).all(), name
    assert np.isfinite(trace.vog_last).all(1).tolist() == [False] * (len(nets) - 1) + [True]


CASES = {
    "all epochs": ("mlp", SHORT, ALL),
    "batch norm": ("small_cnn_bn", replace(SHORT, epochs=2), ALL),
    "fewer than five": ("mlp", replace(SHORT, epochs=3), ALL),
    "every second": ("mlp", SHORT, replace(ALL, every=2)),
    "once": ("mlp", replace(SHORT, epochs=3), replace(ALL, every=9)),
    "sharpness-aware": ("mlp", replace(SHORT, epochs=2, sam_rho=0.05), ALL),
}


def test_probabilities_are_averaged_first_and_compared_then(tiny, measured):
    run, nets = measured("small_cnn_bn", replace(SHORT, epochs=4), MeasureConfig(posthoc=True))
    total, x, y = np.zeros((60, 3)), tiny.normalise(tiny.train.images), tiny.train.labels
    for epoch, net in enumerate(nets):
        with torch.no_grad():
            total += net.eval()(x).double().softmax(1).numpy()
        for i, label in enumerate(y.tolist()):
            others = max(total[i, k] for k in range(3) if k != label)
            expected = np.log(total[i, label]) - np.log(others)
            found = run.posthoc_trace.probability_margin[epoch, i]
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    found = run.posthoc_scores["average_probability_margin"].to_numpy()
    assert np.array_equal(found, -run.posthoc_trace.probability_margin[-1].astype(float))


def test_mean_probabilities_that_need_too_much_memory_are_left_out(tiny, monkeypatch):
    monkeypatch.setattr(posthoc, "MOST_PROBABILITIES", 3 * 60 - 1)
    run = train("mlp", tiny, replace(SHORT, epochs=1), MeasureConfig(posthoc=True))
    assert set(run.posthoc_trace) == set(run.trace)
    assert "average_probability_margin" not in run.posthoc_scores


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_the_net_after_the_epoch(tiny, measured, case):
    model, config, measure = CASES[case]
    check(tiny, *measured(model, config, measure), measure)


def test_a_training_that_stops_has_the_variance_of_its_own_last_epochs(tiny, measured):
    config = replace(SHORT, epochs=60, weight_decay=0.1, stop="weight_norm", patience=2)
    run, nets = measured("mlp", config, replace(ALL, every=2))
    assert 10 < len(nets) < 40
    check(tiny, run, nets, replace(ALL, every=2))


def test_the_net_is_left_as_it_was(tiny):
    net = registry.build("small_cnn_bn", 3, tiny.in_shape).train()
    F.cross_entropy(net(tiny.normalise(tiny.train.images)), tiny.train.labels).backward()
    state = copy.deepcopy(net.state_dict())
    gradients = [p.grad.clone() for p in net.parameters()]
    for training in (True, False):
        found = PosthocEvaluator(tiny, ALL, seed=0)
        found.after_epoch(net.train(training), 0)
        found.finish(net)
        assert net.training == training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))


MEASURES = [
    MeasureConfig(posthoc=True),
    MeasureConfig(posthoc=True, n_directions=1),
    MeasureConfig(posthoc=True, weight_gradients=True),
    MeasureConfig(posthoc=True, logit_gradients=True),
    replace(ALL, every=2),  # all at once
]


@pytest.mark.parametrize("model", ["mlp", "small_cnn_bn"])
def test_no_measurement_changes_the_training_by_a_bit(tiny, model):
    config = replace(SHORT, epochs=2, augment="crop_flip")
    bare = train(model, tiny, config)
    for measure in MEASURES:
        run = train(model, tiny, config, measure)
        for key in (k for k in bare.arrays if k.startswith(("snapshot/", "trace/"))):
            assert np.array_equal(run.arrays[key], bare.arrays[key]), key


def test_only_what_is_asked_for_is_measured(tiny):
    extra = [{"curvature_norm", "curvature_squared"}, {"weight_grad", "weight_grad_last"}]
    for measure, names in zip(MEASURES, [set(), *extra, {"vog", "vog_last"}], strict=False):
        run = train("mlp", tiny, replace(SHORT, epochs=1), measure)
        assert set(run.posthoc_trace) - set(run.trace) == names | {"probability_margin"}


@pytest.mark.parametrize("signal", [signals.input_gradient, signals.logit_gradient])
def test_parts_are_the_whole(tiny, monkeypatch, signal):
    net = registry.build("small_cnn_bn", 3, tiny.in_shape).eval()
    x, y = tiny.normalise(tiny.train.images), tiny.train.labels
    sizes = []

    def counted(net, x, y):
        sizes.append(len(x))
        return signal(net, x, y)

    monkeypatch.setattr(devices, "EVAL_ROWS", 25)
    found = evaluate_batched(counted, net, x, y)
    assert sizes == [25, 25, 10]
    assert not found.requires_grad
    assert torch.allclose(found, signal(net, x, y), atol=1e-6)


def test_options_go_to_the_signal(tiny):
    net = registry.build("mlp", 3, tiny.in_shape).eval()
    x, y = tiny.normalise(tiny.train.images), tiny.train.labels

    def norm(net, x, y, **options):
        return signals.curvature(net, x, y, **options).norm

    found = evaluate_batched(norm, net, x, y, n_directions=3, seed=5)
    assert torch.equal(found, signals.curvature(net, x, y, n_directions=3, seed=5).norm)


def test_every_sample_keeps_its_place(tiny, monkeypatch):
    monkeypatch.setattr(devices, "EVAL_ROWS", 7)
    net = registry.build("mlp", tiny.n_classes, tiny.in_shape)
    x, y = tiny.normalise(tiny.train.images), tiny.train.labels
    given = evaluate_batched(lambda _, x, y, factor: factor * y, net, x, y, factor=3)
    assert given.tolist() == (3 * y).tolist()


def test_a_run_evaluates_at_its_stops_as_by_hand_and_leaves_the_threads_alone():
    data = ml.load("digits").subset(60)
    run = train("mlp", data, TrainConfig(epochs=2, batch_size=16))
    before = torch.get_num_threads()
    for stop in ("last", "best_val"):
        x, net = data.normalise(data.train.images), run.snapshot(stop)
        expected = signals.product_norms(net, x, data.train.labels, n_directions=2, seed=1)
        found = run.evaluate(signals.product_norms, stop, n_directions=2, seed=1)
        assert found.shape == (60, 2) and found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="unknown stop"):
        run.evaluate(signals.product_norms, "first")
