"""Each attack by hand, against a slow loop and against SciPy; refusals."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from memlens.attacks import membership
from memlens.attacks.membership import ATTACKS
from memlens.attacks.shadows import Shadows, Target

SETTINGS = {"model": "mlp"}


def logit_of(z, label):
    p = [math.exp(float(v) - max(map(float, z))) for v in z]
    rest = sum(p) - p[label]
    return math.log(p[label]) - math.log(rest)


def density(x, mean, std):
    return math.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))


def median(values):
    values = sorted(values)
    n = len(values)
    return (values[(n - 1) // 2] + values[n // 2]) / 2


def mean(values):
    return sum(values) / len(values)


def spread(values, centre):
    return math.sqrt(mean([(v - centre) ** 2 for v in values]))


class Slow:
    """The attacks from their definitions: one sample, augmentation and shadow at a time."""

    def __init__(self, target, shadows):
        self.y = [int(v) for v in target.y_true]
        self.target, self.shadows = target, shadows
        self.n_augmentations, self.n_samples = target.logits.shape[:2]

    def phi(self, z, i):
        return logit_of(z, self.y[i])

    def top(self, z, i):
        """The logit of the largest probability of a float32 softmax."""
        z = [np.float32(v) - np.float32(max(z)) for v in z]
        p = [np.exp(v) for v in z]
        largest = float(max(p) / np.float32(sum(p)))
        return math.log(largest / (1 - largest + 1e-22) + 1e-22)

    def sides(self, value, i, v):
        """Values of the shadows with sample i, and of those without it."""
        pairs = [
            (value(net[v, i], i), bool(mask[i]))
            for net, mask in zip(self.shadows.logits, self.shadows.masks)
        ]
        return [x for x, inside in pairs if inside], [x for x, inside in pairs if not inside]

    def fixed(self):
        """One spread per side, of all deviations from each sample's median."""
        squares = [], []
        for i in range(self.n_samples):
            for v in range(self.n_augmentations):
                for found, values in zip(squares, self.sides(self.phi, i, v)):
                    found += [(x - median(values)) ** 2 for x in values]
        return [math.sqrt(mean(found)) for found in squares]

    def lira(self, i, stds=None):
        found = []
        for v in range(self.n_augmentations):
            x = self.phi(self.target.logits[v, i], i)
            sides = self.sides(self.phi, i, v)
            each = stds or [spread(side, mean(side)) for side in sides]
            with_it, without = (density(x, median(s), e) for s, e in zip(sides, each))
            found.append(math.log(with_it) - math.log(without))
        return mean(found)

    def offline(self, i, stds, two_sided):
        found = []
        for v in range(self.n_augmentations):
            x = self.phi(self.target.logits[v, i], i)
            centre = median(self.sides(self.phi, i, v)[1])
            if two_sided:
                found.append(-math.log(density(x, centre, stds[1])))
            else:
                found.append(-math.log(0.5 * math.erfc((x - centre) / stds[1] / math.sqrt(2))))
        return mean(found)

    def csg(self, i):
        likelihoods = [0.0, 0.0]
        for v in range(self.n_augmentations):
            x = self.top(self.target.logits[v, i], i)
            for side, values in enumerate(self.sides(self.top, i, v)):
                variance = spread(values, mean(values)) ** 2
                likelihoods[side] += density(x, mean(values), variance)
        return likelihoods[0] / (likelihoods[1] + 1e-22)

    def loss(self, z, i):
        p = [math.exp(float(v)) for v in z]
        return -math.log(p[self.y[i]] / sum(p))

    def losses(self, i):
        own = self.loss(self.target.logits[0, i], i)
        return own, *(mean(side) for side in self.sides(self.loss, i, 0))

    def curvature(self, i, form):
        logs = [math.log(c) for c in self.shadows.curvature[:, i]]
        sides = [
            [c for c, mask in zip(logs, self.shadows.masks[:, i]) if mask == inside]
            for inside in (True, False)
        ]
        stds = [spread(side, mean(side)) for side in sides]
        if form == "nll":
            stds[1] = stds[0]
        x = math.log(self.target.curvature[i])
        with_it, without = (density(x, mean(s), e) for s, e in zip(sides, stds))
        return math.log(with_it) - math.log(without)


def slow_attacks(target, shadows):
    slow = Slow(target, shadows)
    stds, n = slow.fixed(), range(slow.n_samples)
    losses = [slow.losses(i) for i in n]
    return {
        "lira": [slow.lira(i, stds) for i in n],
        "lira_offline": [slow.offline(i, stds, False) for i in n],
        "lira_csg": [slow.csg(i) for i in n],
        "curvature": [slow.curvature(i, "nll") for i in n],
        "curvature_lr": [slow.curvature(i, "lr") for i in n],
        "mast": [-(own - (inside + outside) / 2) for own, inside, outside in losses],
        "calibrated_loss": [-(own - outside) for own, _, outside in losses],
        "yeom": [-own for own, _, _ in losses],
    }, {
        "per sample": [slow.lira(i) for i in n],
        "two-sided": [slow.offline(i, stds, True) for i in n],
    }


def test_every_attack_equals_its_slow_definition(setup):
    target, shadows = setup()
    expected, variants = slow_attacks(target, shadows)
    assert set(expected) == set(ATTACKS)
    for name, attack in ATTACKS.items():
        found = attack(target, shadows)
        assert found.dtype == np.float64 and found.shape == (50,)
        np.testing.assert_allclose(found, expected[name], rtol=1e-8, atol=1e-8, err_msg=name)
    per_sample = membership.lira(target, shadows, variance="per_sample")
    np.testing.assert_allclose(per_sample, variants["per sample"], rtol=1e-8, atol=1e-8)
    two_sided = membership.lira_offline(target, shadows, two_sided=True)
    np.testing.assert_allclose(two_sided, variants["two-sided"], rtol=1e-8, atol=1e-8)
    orders = {name: tuple(np.argsort(values)) for name, values in expected.items()}
    assert len(set(orders.values())) == len(orders)  # no two of them are the same


def test_lira_with_a_fixed_variance_is_scipys_log_density(setup):
    target, shadows = setup(n_augmentations=1)
    inside, outside = shadows.masks, ~shadows.masks
    phi = shadows.phi[:, 0]
    centre = [np.array([np.median(phi[m[:, i], i]) for i in range(50)]) for m in (inside, outside)]
    std = [np.sqrt(np.mean((phi - c)[m] ** 2)) for m, c in zip((inside, outside), centre)]
    densities = [stats.norm.logpdf(target.phi[0], c, s) for c, s in zip(centre, std)]
    expected = densities[0] - densities[1]
    np.testing.assert_allclose(membership.lira(target, shadows), expected, rtol=1e-10)
    tail = -stats.norm.logsf(target.phi[0], centre[1], std[1])
    np.testing.assert_allclose(membership.lira_offline(target, shadows), tail, rtol=1e-8)


def two_classes(phi):
    """Logits of two classes whose true-class logit is phi, (..., n_samples)."""
    phi = np.asarray(phi, dtype=float)
    return np.stack([phi, np.zeros_like(phi)], axis=-1)


def by_hand():
    """One sample, one augmentation: two shadows with it at 3 and 5, two without at -1 and 1."""
    masks = np.array([[True], [True], [False], [False]])
    logits = two_classes([[[3.0]], [[5.0]], [[-1.0]], [[1.0]]])
    curvature = np.exp([[-2.0], [-4.0], [0.0], [2.0]])
    y = np.array([0])
    shadows = Shadows(masks, logits, y, SETTINGS, curvature)
    return Target(two_classes([[2.0]]), y, SETTINGS, np.exp([-1.0])), shadows


def test_each_attack_by_hand():
    """phi is 2, the centres 4 and 0, all spreads 1; log curvature is -1, the centres -3 and 1."""
    target, shadows = by_hand()
    fits = shadows.normals("phi", lambda: shadows.phi, "fixed", centre="median")
    assert [float(np.squeeze(part)) for part in fits] == [4, 1, 0, 1]
    assert membership.lira(target, shadows) == pytest.approx([0], abs=1e-12)
    nearer = replace(target, logits=two_classes([[3.5]]))
    assert membership.lira(nearer, shadows) == pytest.approx([(-0.25 + 12.25) / 2])
    assert membership.lira_offline(nearer, shadows) == pytest.approx(
        [-np.log(0.00023262907903552504)]
    )
    assert membership.curvature_nll(target, shadows) == pytest.approx([0], abs=1e-12)
    flat = replace(target, curvature=np.exp([-3.0]))
    assert membership.curvature_nll(flat, shadows) == pytest.approx([8])
    assert membership.curvature_lr(flat, shadows) == pytest.approx([8])
    loss = lambda phi: math.log(1 + math.exp(-phi))  # noqa: E731
    inside, outside = (loss(3) + loss(5)) / 2, (loss(-1) + loss(1)) / 2
    assert membership.yeom(target, shadows) == pytest.approx([-loss(2)])
    assert membership.calibrated_loss(target, shadows) == pytest.approx([outside - loss(2)])
    assert membership.mast(target, shadows) == pytest.approx([(inside + outside) / 2 - loss(2)])
    # the largest probability belongs to the other class at -1: 1 and 1 without, which have no
    # spread; with one at -1.5, its logits are 1.5 and 1, mean 1.25, variance 1 / 16
    rough = replace(shadows, logits=two_classes([[[3.0]], [[5.0]], [[-1.5]], [[1.0]]]))
    expected = stats.norm.pdf(2, 4, 1) / (stats.norm.pdf(2, 1.25, 1 / 16) + 1e-22)
    assert membership.lira_csg(target, rough) == pytest.approx([expected], rel=1e-4)


def test_the_csg_form_jumps_where_a_float32_softmax_rounds_to_one():
    """Above 17 the probability is 1 in float32, and the logit that of 1 - 1e-22."""
    target, shadows = by_hand()
    confident = [replace(target, logits=two_classes([[phi]])) for phi in (15.0, 18.0, 40.0)]
    at_15, at_18, at_40 = (membership._top_logit(one.logits) for one in confident)
    ulp = 2**-24  # of float32 below 1, against the 1 - p that is left of it
    assert at_15 == pytest.approx(15, abs=ulp * (1 + math.exp(15)))
    assert at_18 == at_40 == pytest.approx(-np.log(1e-22))
    assert membership.lira(confident[1], shadows) != membership.lira(confident[2], shadows)


def test_scores_are_finite_without_any_spread():
    target, shadows = by_hand()
    still = replace(shadows, logits=two_classes([[[3.0]], [[3.0]], [[1.0]], [[1.0]]]))
    still = replace(still, curvature=np.ones((4, 1)))
    for name, attack in ATTACKS.items():
        assert np.isfinite(attack(target, still)).all(), name


def test_curvature_below_rounding_is_clipped():
    target, shadows = by_hand()
    values = [membership.curvature_nll(replace(target, curvature=np.array([c])), shadows)
              for c in (0.0, 1e-11, 1e-9)]  # fmt: skip
    assert values[0] == values[1] != values[2]


def test_a_member_scores_higher(setup):
    """The sign of every attack, on predictions of networks with the sample and without it."""
    _, shadows = setup(n_models=200, n_augmentations=1)
    for name, attack in ATTACKS.items():
        values = []
        for chosen in (shadows.masks, ~shadows.masks):
            pick = np.argmax(chosen[100:], axis=0) + 100  # a net with, or without, each sample
            i = np.arange(50)
            predictions = shadows.logits[pick, 0, i][None]
            target = Target(
                predictions, shadows.y_true, shadows.settings, shadows.curvature[pick, i]
            )
            half = replace(
                shadows, masks=shadows.masks[:100], logits=shadows.logits[:100],
                curvature=shadows.curvature[:100],
            )  # fmt: skip
            values.append(attack(target, half))
        assert (values[0] > values[1]).mean() > 0.6, name


def test_repeated_augmentations_change_nothing(setup):
    target, shadows = setup(n_augmentations=1)
    twice = replace(target, logits=target.logits.repeat(3, axis=0))
    others = replace(shadows, logits=shadows.logits.repeat(3, axis=1))
    for name, attack in ATTACKS.items():
        np.testing.assert_allclose(attack(twice, others), attack(target, shadows), err_msg=name)


def test_scores_follow_a_permutation_of_the_samples(setup):
    target, shadows = setup()
    order = np.random.default_rng(1).permutation(50)
    mixed = Target(target.logits[:, order], target.y_true[order], SETTINGS, target.curvature[order])
    others = Shadows(shadows.masks[:, order], shadows.logits[:, :, order], shadows.y_true[order],
                     SETTINGS, shadows.curvature[:, order])  # fmt: skip
    for name, attack in ATTACKS.items():
        np.testing.assert_allclose(
            attack(mixed, others), attack(target, shadows)[order], rtol=1e-9, err_msg=name
        )


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_every_attack_refuses_shadows_with_other_settings(attack, setup):
    target, shadows = setup()
    for change in ({"epochs": 20}, {"stop": "weight_norm"}, {"weight_decay": 0.1}):
        other = replace(shadows, settings=dict(shadows.settings) | change)
        with pytest.raises(ValueError, match=f"not trained like the target: {next(iter(change))}"):
            attack(target, other)
    with pytest.raises(ValueError, match=r"epochs is 60 in the target, 20 in the shadows"):
        attack(target, replace(shadows, settings=dict(shadows.settings) | {"epochs": 20}))


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_every_attack_refuses_a_target_among_its_own_shadows(attack, setup):
    _, shadows = setup()
    itself = Target(shadows.logits[7], shadows.y_true, shadows.settings, shadows.curvature[7])
    with pytest.raises(ValueError, match="those of shadow 7: the target is one of its own"):
        attack(itself, shadows)
