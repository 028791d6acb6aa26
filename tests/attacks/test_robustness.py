"""Adversarial distances against closed forms, a loop over single samples, and foolbox."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import memlens as ml
from memlens.attacks import robustness
from memlens.attacks.robustness import adversarial_distance, deepfool
from memlens.models import registry

FAR = (-1e3, 1e3)  # bounds that never bind
SHORT = ml.TrainConfig(epochs=10, batch_size=16, lr=0.1, weight_decay=1e-4)
N, CLASSES, SHAPE = 40, 4, (2, 3, 3)


def lengths(change):
    return change.flatten(1).double().norm(dim=1)


@pytest.fixture
def linear():
    """A linear network in float64, and samples in [0, 1] that it classifies correctly."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(18, CLASSES)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(CLASSES, 18, generator=generator))
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)  # no class wins in the middle of the box
        x = torch.rand(N, *SHAPE, generator=generator, dtype=torch.float64)
        y = net(x).argmax(1)
    assert len(y.unique()) == CLASSES
    return net, x, y


def to_planes(net, x, y):
    """Distance to the plane between a sample's class and each other one, (n, n_classes - 1)."""
    logits, weight = net(x).detach(), net[1].weight.detach()
    rows = [
        [
            float((logits[i, label] - logits[i, k]) / (weight[label] - weight[k]).norm())
            for k in range(CLASSES)
            if k != label
        ]
        for i, label in enumerate(y.tolist())
    ]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture
def trained(double):
    """An MLP trained in float64 on the tiny digits, and the same as a function of [0, 1]."""
    net = ml.train("mlp", double, SHORT).snapshot("last")
    mean, std = (torch.tensor(part)[:, None, None] for part in (double.mean, double.std))
    return net, double, lambda x: net((x - mean) / std)


@pytest.fixture
def pixels(trained):
    return trained[1].train.images / 16.0, trained[1].train.labels


@pytest.fixture
def fitted(tiny):
    """The same in float32."""
    return ml.train("mlp", tiny, SHORT).snapshot("last")


class Constant(nn.Module):
    """A network that predicts class 0 for every input."""

    def forward(self, x):
        return torch.eye(3, dtype=x.dtype)[:1] + 0 * x.flatten(1).sum(1, keepdim=True)


# ---------------------------------------------------------------------------- closed forms


def test_a_linear_network_has_a_closed_form(linear):
    net, x, y = linear
    exact = to_planes(net, x, y).amin(1)
    whole = lengths(deepfool(net, x, y, bounds=FAR, n_bisections=0) - x)
    assert torch.allclose(whole, 1.02 * (exact + 1e-4), rtol=1e-9, atol=0)
    for n_bisections, error in ((10, 1.5e-3), (40, 1e-9)):
        moved = deepfool(net, x, y, bounds=FAR, n_bisections=n_bisections)
        excess = lengths(moved - x) / exact - 1
        assert excess.min() >= -1e-12
        assert excess.max() < error


def test_one_step_suffices_for_a_linear_network_and_none_does_not(linear):
    net, x, y = linear
    assert torch.equal(deepfool(net, x, y, bounds=FAR, n_steps=1), deepfool(net, x, y, bounds=FAR))
    assert deepfool(net, x, y, n_steps=0).isnan().all()


def test_with_one_candidate_only_the_runner_up_is_tried(linear):
    net, x, y = linear
    planes = to_planes(net, x, y)
    others = torch.stack([logits[torch.arange(CLASSES) != k] for logits, k in zip(net(x), y)])
    second = planes.gather(1, others.argmax(1)[:, None])[:, 0]
    found = lengths(deepfool(net, x, y, bounds=FAR, n_candidates=1, n_bisections=30) - x)
    assert (found <= second * (1 + 1e-8)).all()  # another class may be nearer on the line
    assert (found >= planes.amin(1) * (1 - 1e-12)).all()
    assert (found > planes.amin(1) * 1.01).any()


def shortest_in_the_box(x, normal, gap):
    """Length of the shortest change to the plane in [0, 1]: a multiple of the normal, clipped."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        change = (x + middle * normal).clamp(0, 1) - x
        low, high = (low, middle) if change @ normal >= gap else (middle, high)
    return float(((x + high * normal).clamp(0, 1) - x).norm())


def test_with_bounds_the_change_is_longer_and_the_shortest_within_them(linear):
    four, x, _ = linear
    net = nn.Sequential(nn.Flatten(), nn.Linear(18, 2).double())
    net[1].load_state_dict({name: part[:2] for name, part in four[1].state_dict().items()})
    x = torch.where(x < 0.5, 0, x)  # black pixels cannot get darker
    logits, weight = net(x).detach(), net[1].weight.detach()
    y = logits.argmax(1)
    gap = (logits[:, 0] - logits[:, 1]).abs()
    normal = weight[1 - y] - weight[y]
    free = gap / normal.norm(dim=1)
    boxed = [shortest_in_the_box(*row) for row in zip(x.flatten(1), normal, gap, strict=True)]
    boxed = torch.tensor(boxed, dtype=torch.float64)
    moved = deepfool(net, x, y, n_bisections=30)
    found = lengths(moved - x)
    reachable = ~found.isnan()
    assert reachable.sum() > N / 2
    assert moved[reachable].min() >= 0 and moved[reachable].max() <= 1
    assert (boxed > 1.2 * free)[reachable].sum() >= 5  # the box matters
    assert (found >= boxed * (1 - 1e-7))[reachable].all()
    assert (found <= boxed * 1.01)[reachable].all()


def test_a_sample_on_the_boundary_hardly_moves():
    net = nn.Linear(2, 2).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        net.bias.zero_()
    x = torch.tensor([[0.25, 0.25], [0.25, 0.25]], dtype=torch.float64)
    y = torch.tensor([0, 1])
    assert net(x).argmax(1).tolist() == [0, 0]  # argmax of a tie is the first
    moved = deepfool(net, x, y)
    assert net(moved).argmax(1).tolist() == [1, 0]
    assert 0 < lengths(moved - x)[0] < 1e-5
    assert torch.equal(moved[1], x[1])


# ---------------------------------------------------------------------------- trained nets


def one_by_one(model, x, y):
    """The oracle: DeepFool for one sample, with full Jacobians, then bisection."""
    for start, label in zip(x, y.tolist(), strict=True):

        def wrong(at, label=label):
            return int(model(at[None])[0].argmax()) != label

        here, total = start, torch.zeros_like(start)
        for _ in range(50):
            if wrong(here):
                break
            logits = model(here[None])[0].detach()
            jacobian = torch.autograd.functional.jacobian(lambda v: model(v[None])[0], here)
            steps = [
                (float(logits[label] - logits[k]) / float(slope.norm()), slope / slope.norm())
                for k in range(len(logits))
                if k != label
                for slope in [jacobian[k] - jacobian[label]]
            ]
            length, direction = min(steps, key=lambda step: step[0])
            total = total + (length + 1e-4) * direction
            here = (start + 1.02 * total).clamp(0, 1)
        right_until, wrong_from = 0.0, 1.0
        for _ in range(10):
            middle = (right_until + wrong_from) / 2
            if wrong(start + middle * (here - start)):
                wrong_from = middle
            else:
                right_until = middle
        yield float((wrong_from * (here - start)).norm())


def test_a_batch_equals_single_samples(trained, pixels):
    net, data, model = trained
    found = adversarial_distance(net, data)[:30]
    alone = list(one_by_one(model, pixels[0][:30], pixels[1][:30]))
    assert (found > 0).sum() > 20
    np.testing.assert_allclose(found, alone, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("n_bisections", [0, 10, 60])
def test_every_moved_sample_is_wrong_inside_the_bounds_and_near_a_right_one(fitted, n_bisections):
    data = ml.load("digits")
    x, y = data.train.images / 16.0, data.train.labels.remainder(3)

    def model(x):
        return fitted(data.normalise(x * 16.0))

    moved = deepfool(model, x, y, n_bisections=n_bisections)
    right = model(x).argmax(1) == y
    assert 100 < right.sum() < len(y)
    assert torch.equal(moved[~right], x[~right])
    assert (model(moved).argmax(1) != y).all()
    assert moved.min() >= 0 and moved.max() <= 1
    back = model(x.lerp(moved, 0.9))[right].argmax(1) == y[right]
    assert back.float().mean() > 0.97


def test_no_misclassified_sample_in_other_directions_is_nearer(trained, pixels):
    net, data, model = trained
    found = adversarial_distance(net, data)
    generator = torch.Generator().manual_seed(0)
    shares = torch.linspace(0, 1, 201)[1:, None, None, None]
    for i in range(0, 60, 6):
        start, label = pixels[0][i], int(pixels[1][i])
        noise = torch.randn(20, *start.shape, generator=generator)
        ends = [*pixels[0][pixels[1] != label], *(start + 20 * noise)]
        for end in ends:
            line = (start + shares * (end - start)).clamp(0, 1)
            wrong = model(line).argmax(1) != label
            if wrong.any():
                assert found[i] <= float((line[wrong][0] - start).norm())


def test_a_misclassified_sample_is_at_distance_0(trained):
    net, data, _ = trained
    labels = data.train.labels.clone()
    labels[:10] = (labels[:10] + 1) % 3
    mislabelled = adversarial_distance(net, data, replace(data.train, labels=labels))
    before = adversarial_distance(net, data)
    assert (before > 0).all()
    assert (mislabelled[:10] == 0).all()
    np.testing.assert_allclose(mislabelled[10:], before[10:], rtol=1e-9)


def test_distances_depend_neither_on_the_batch_nor_on_the_order(trained, monkeypatch):
    net, data, _ = trained
    whole = adversarial_distance(net, data)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled = adversarial_distance(net, data, data.train[order])
    np.testing.assert_allclose(shuffled, whole[order], rtol=1e-9)
    monkeypatch.setattr(robustness, "BATCH", 7)
    np.testing.assert_allclose(adversarial_distance(net, data), whole, rtol=1e-9)


def test_the_distance_is_in_pixels_however_the_data_are_scaled_and_normalised(trained):
    net, data, _ = trained
    brighter = replace(data.train, images=data.train.images * 15)
    other = replace(data, train=brighter, pixel_max=240.0, mean=(0.1,), std=(0.7,))

    class Adapted(nn.Module):
        def forward(self, x):
            return net((x * 0.7 + 0.1 - data.mean[0]) / data.std[0])

    expected = adversarial_distance(net, data)
    found = adversarial_distance(Adapted().eval(), other)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    unadapted = adversarial_distance(net, other)
    assert np.median(np.abs(unadapted / expected - 1)) > 0.01


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_distance_does_not_depend_on_the_scale_of_the_logits(trained, scale):
    net, data, _ = trained
    expected = adversarial_distance(net, data)
    with torch.no_grad():
        net[-1].weight *= scale
        net[-1].bias *= scale
    np.testing.assert_allclose(adversarial_distance(net, data), expected, rtol=1e-6)


def test_there_is_one_distance_per_requested_sample(fitted, tiny):
    for samples, n in ((None, 60), (tiny.test, 20)):
        found = adversarial_distance(fitted, tiny, samples)
        assert found.shape == (n,) and found.dtype == np.float64
        assert (found >= 0).all() and found.max() < 8  # the diagonal of the box of 64 pixels
    assert deepfool(fitted, torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64)).numel() == 0


def test_network_and_samples_are_unchanged(fitted, tiny):
    before = [p.clone() for p in fitted.parameters()]
    x, y = fitted_input = tiny.normalise(tiny.train.images), tiny.train.labels
    kept = [part.clone() for part in fitted_input]
    deepfool(fitted, x, y, bounds=(-9, 9))
    assert not deepfool(fitted, x.clone().requires_grad_(True), y, bounds=(-9, 9)).requires_grad
    with torch.no_grad():  # must not matter
        found = adversarial_distance(fitted, tiny)
    np.testing.assert_array_equal(found, adversarial_distance(fitted, tiny))
    assert all(torch.equal(a, b) for a, b in zip(before, fitted.parameters(), strict=True))
    assert all(p.grad is None for p in fitted.parameters())
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1])
    assert not x.requires_grad


# ---------------------------------------------------------------------------- errors and warnings


def test_a_constant_network_has_no_boundary_and_the_warning_counts_the_samples(tiny):
    zeros = (tiny.train.labels == 0).numpy()
    with pytest.warns(
        UserWarning, match=rf"no misclassified sample near {zeros.sum()} of 60 .* is NaN"
    ):
        found = adversarial_distance(Constant(), tiny)
    assert np.isnan(found[zeros]).all()
    assert (found[~zeros] == 0).all()


def test_a_sample_without_enough_steps_is_nan(fitted, tiny):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [adversarial_distance(fitted, tiny, n_steps=n) for n in (0, 1, 50)]
    missed = [int(np.isnan(distances).sum()) for distances in found]
    assert missed[0] > missed[1] > missed[2] == 0
    assert [re.findall(r"near (\d+) of", str(w.message)) for w in caught] == [
        [str(n)] for n in missed[:2]
    ]
    assert all(w.filename == __file__ for w in caught)


def test_a_network_in_train_mode_gives_a_warning(tiny):
    net = registry.build("mlp_bn", 3, tiny.in_shape)
    with (
        pytest.warns(UserWarning, match="no misclassified sample near"),
        pytest.warns(UserWarning, match=r"has BatchNorm1d: .* model.eval\(\) first"),
    ):
        adversarial_distance(net.train(), tiny, n_steps=0)
    adversarial_distance(net.eval(), tiny)


def test_pixels_outside_the_bounds_are_refused(fitted, tiny):
    with pytest.raises(ValueError, match=r"range from 0 to 4, outside the bounds \(0.*pixel_max"):
        adversarial_distance(fitted, replace(tiny, pixel_max=4.0))


def test_a_nan_pixel_is_refused(linear):
    net, x, y = linear
    x[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="range from nan"):
        deepfool(net, x, y)


@pytest.mark.parametrize(
    "bad", [{"n_steps": -1}, {"overshoot": -0.1}, {"n_candidates": 0}, {"n_bisections": -1}]
)
def test_bad_options_are_refused(linear, bad):
    with pytest.raises(ValueError, match="expected n_candidates above 0, the others 0 or more"):
        deepfool(*linear, **bad)


def test_a_network_with_nan_logits_is_refused(tiny):
    net = registry.build("mlp", 3, (1, 8, 8)).eval()
    with torch.no_grad():
        net[1].weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite: did its training diverge"):
        adversarial_distance(net, tiny)


# ---------------------------------------------------------------------------- foolbox


@pytest.fixture
def foolbox(monkeypatch):
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
    with warnings.catch_warnings():  # about a deprecated import path of scipy
        warnings.simplefilter("ignore")
        return pytest.importorskip("foolbox")


def by_foolbox(foolbox, attack, net, data):
    """Distances by an attack of foolbox, of the samples that the network classifies correctly."""
    x, y = data.train.images / data.pixel_max, data.train.labels

    class Unnormalised(nn.Module):
        def forward(self, x):
            return net(data.normalise(x * data.pixel_max))

    model = foolbox.PyTorchModel(Unnormalised().eval(), bounds=(0, 1))
    correct = net(data.normalise(data.train.images)).argmax(1) == y
    _, moved, found = attack(model, x[correct], y[correct], epsilons=None)
    assert found.all()
    return lengths(moved - x[correct]).numpy(), correct.numpy()


@pytest.fixture(scope="module")
def digits():
    """A network trained on digits, and the data."""
    data = ml.load("digits")
    config = ml.TrainConfig(epochs=20, lr=0.1, weight_decay=1e-4)
    return ml.train("mlp", data, config).snapshot("last"), data


def test_without_bisection_it_equals_deepfool_of_foolbox(digits, foolbox):
    for overshoot in (0.1, 0.02):
        attack = foolbox.attacks.L2DeepFoolAttack(overshoot=overshoot)
        theirs, correct = by_foolbox(foolbox, attack, *digits)
        ours = adversarial_distance(*digits, n_bisections=0, overshoot=overshoot)
        assert correct.mean() > 0.95
        np.testing.assert_allclose(ours[correct], theirs, rtol=1e-3)
    shortened = adversarial_distance(*digits)
    assert (shortened <= ours * (1 + 1e-6)).all()
    assert np.median(shortened) < 0.99 * np.median(ours)


@pytest.mark.slow
def test_distances_are_close_to_those_of_a_stronger_attack(digits, foolbox):
    ddn, correct = by_foolbox(foolbox, foolbox.attacks.DDNAttack(), *digits)
    ours = adversarial_distance(*digits)[correct]
    assert 0.9 * np.median(ddn) < np.median(ours) < 1.03 * np.median(ddn)
