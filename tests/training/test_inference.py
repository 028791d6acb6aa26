"""Signals of many samples, a part at a time."""

import pytest
import torch

from memlens.models import registry
from memlens.tracking import signals
from memlens.training import devices
from memlens.training.inference import evaluate_batched


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
