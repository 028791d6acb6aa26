"""Networks from names and seeds."""

import subprocess
import sys

import pytest
import torch

from memlens.models import registry

COUNTS = {"mlp": 64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10}


@pytest.mark.parametrize("name", sorted(registry.SMALL))
def test_every_small_model_maps_images_to_logits(name):
    net = registry.build(name, 10, (1, 8, 8))
    assert net(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert registry.build(name, 7, (3, 12, 12))(torch.zeros(2, 3, 12, 12)).shape == (2, 7)


def test_parameter_count_of_the_mlp():
    assert (
        sum(p.numel() for p in registry.build("mlp", 10, (1, 8, 8)).parameters()) == COUNTS["mlp"]
    )


def test_weights_follow_the_seed_and_leave_the_callers_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (
        registry.build("mlp", 10, (1, 8, 8), seed=s)[1].weight for s in (1, 1, 2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_builder_of_your_own_is_a_plain_function():
    def linear(n_classes, in_shape):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, n_classes))

    net = registry.build(linear, 2, (1, 2, 2))
    assert net(torch.zeros(5, 1, 2, 2)).shape == (5, 2)


def test_an_unknown_model_is_refused_with_the_known_ones():
    known = ", ".join(sorted(registry.MODELS))
    with pytest.raises(ValueError, match=rf"unknown model 'resnet'; known: {known}$"):
        registry.build("resnet", 10, (1, 8, 8))


def test_without_torchvision_the_message_has_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.models", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'memlens\[audit\]', or choose one of mlp"):
        registry.build("resnet50", 10, (3, 64, 64))


@pytest.mark.slow
def test_small_networks_do_not_import_torchvision():
    code = (
        "import sys; from memlens.models import registry; registry.build('mlp', 2, (1, 8, 8))\n"
        "print('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
