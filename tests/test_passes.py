"""A signal taken in parts is the signal of all samples at once."""

import pytest
import torch

from memlens import models, passes, signals


@pytest.mark.parametrize("part_values", [1, 64 * 7, 2**20])  # one sample, seven, all at a time
def test_the_parts_make_the_whole(tiny, monkeypatch, part_values):
    monkeypatch.setattr(passes, "PART_VALUES", part_values)
    net = models.build("mlp_bn", tiny.n_classes, tiny.in_shape).eval()
    x, y = tiny.normalise(tiny.train.images), tiny.train.labels
    found = passes.in_parts(signals.logit_gradient, net, x, y)
    torch.testing.assert_close(found, signals.logit_gradient(net, x, y))
    assert not found.requires_grad


def test_options_go_to_the_signal_and_every_sample_keeps_its_place(tiny, monkeypatch):
    monkeypatch.setattr(passes, "PART_VALUES", 64 * 7)
    net = models.build("mlp", tiny.n_classes, tiny.in_shape)
    x, y = tiny.normalise(tiny.train.images), tiny.train.labels
    given = passes.in_parts(lambda _, x, y, factor: factor * y, net, x, y, factor=3)
    assert given.tolist() == (3 * y).tolist()
