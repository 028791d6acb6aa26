"""Signals of many samples, a part at a time."""

import pytest
import torch

import memlens as ml
from memlens import devices, models, signals
from memlens.passes import in_parts


@pytest.mark.parametrize("signal", [signals.input_gradient, signals.logit_gradient])
def test_parts_are_the_whole(tiny, monkeypatch, signal):
    net = models.build("small_cnn_bn", 3, tiny.in_shape).eval()
    x, y = tiny.normalise(tiny.train.images), tiny.train.labels
    sizes = []

    def counted(net, x, y):
        sizes.append(len(x))
        return signal(net, x, y)

    monkeypatch.setattr(devices, "EVAL_ROWS", 25)
    found = in_parts(counted, net, x, y)
    assert sizes == [25, 25, 10]
    assert not found.requires_grad
    assert torch.allclose(found, signal(net, x, y), atol=1e-6)


def test_options_go_to_the_signal(tiny):
    net = models.build("mlp", 3, tiny.in_shape).eval()
    x, y = tiny.normalise(tiny.train.images), tiny.train.labels

    def norm(net, x, y, **options):
        return signals.curvature(net, x, y, **options).norm

    found = in_parts(norm, net, x, y, n_probes=3, seed=5)
    assert torch.equal(found, signals.curvature(net, x, y, n_probes=3, seed=5).norm)
    assert ml.passes.in_parts is in_parts
