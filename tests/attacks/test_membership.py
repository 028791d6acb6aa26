"""Each attack by hand, against a slow loop and against SciPy; refusals."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from memlens.attacks import membership
from memlens.attacks.membership import ATTACKS
from memlens.attacks.shadows import (
    Shadows,
    Target,
    TooFewShadows,
    fit_normals,
    paired_references,
)

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

    def probability(self, z, i):
        return 1 / (1 + math.exp(-self.phi(z, i)))

    def rmia(self, i, slope=None):
        """The share of samples whose ratio is not above that of sample i."""
        found = []
        for v in range(self.n_augmentations):
            ratios = []
            for j in range(self.n_samples):
                inside, outside = map(mean, self.sides(self.probability, j, v))
                if slope is not None:
                    inside = slope * outside + 1 - slope
                own = self.probability(self.target.logits[v, j], j)
                ratios.append(own / ((inside + outside) / 2))
            found.append(mean([ratio <= ratios[i] for ratio in ratios]))
        return mean(found)

    def common_variances(self):
        """The variance within samples on each side, of all deviations from each sample's mean."""
        squares, freedom = [0.0, 0.0], [0, 0]
        for i in range(self.n_samples):
            for v in range(self.n_augmentations):
                for side, values in enumerate(self.sides(self.phi, i, v)):
                    squares[side] += sum((x - mean(values)) ** 2 for x in values)
                    freedom[side] += len(values) - 1
        return [s / f for s, f in zip(squares, freedom)]

    def bavaria(self, i, commons, prior=8):
        found = []
        for v in range(self.n_augmentations):
            x, logs = self.phi(self.target.logits[v, i], i), []
            for values, common in zip(self.sides(self.phi, i, v), commons):
                n, centre = len(values), mean(values)
                freedom = prior + n - 1
                squares = prior * common + sum((value - centre) ** 2 for value in values)
                scale = math.sqrt(squares / freedom * (1 + 1 / n))
                logs.append(stats.t.logpdf((x - centre) / scale, freedom) - math.log(scale))
            found.append(logs[0] - logs[1])
        return mean(found)

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
    losses, commons = [slow.losses(i) for i in n], slow.common_variances()
    return {
        "lira": [slow.lira(i, stds) for i in n],
        "lira_offline": [slow.offline(i, stds, False) for i in n],
        "lira_csg": [slow.csg(i) for i in n],
        "bavaria": [slow.bavaria(i, commons) for i in n],
        "rmia": [slow.rmia(i) for i in n],
        "rmia_offline": [slow.rmia(i, slope=0.3) for i in n],
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


def of_probabilities(target, inside, outside):
    """A target and two shadows, one on each side, from probabilities of each sample's label."""
    odds = [np.log(p) - np.log1p(-np.asarray(p)) for p in (target, inside, outside)]
    y = np.zeros(len(target), dtype=int)
    masks = np.array([[True] * len(target), [False] * len(target)])
    shadows = Shadows(masks, two_classes([[odds[1]], [odds[2]]]), y, SETTINGS)
    return Target(two_classes([odds[0]]), y, SETTINGS), shadows


def test_rmia_by_hand():
    """Ratios 0.9 / 0.6 = 1.5, 0.8 / 0.8 = 1, 0.3003 / 0.2 (above 1.5) and 0.2 / 0.5 = 0.4."""
    target, shadows = of_probabilities(
        [0.9, 0.8, 0.3003, 0.2], [0.8, 0.9, 0.3, 0.7], [0.4, 0.7, 0.1, 0.3]
    )
    assert membership.rmia(target, shadows) == pytest.approx([0.75, 0.5, 1, 0.25])
    # with gamma = 1.5, z = 1 (ratio 1) and 3 (0.4) are exceeded by the first and the third sample
    assert membership.rmia(target, shadows, gamma=1.4999) == pytest.approx([0.5, 0.25, 0.5, 0])
    # offline, a = 0.5: the mean with the sample is taken as 0.7, 0.85, 0.55 and 0.65, so the ratios
    # are 0.9 / 0.55, 0.8 / 0.775, 0.3003 / 0.325 and 0.2 / 0.475
    offline = membership.rmia_offline(target, shadows, slope=0.5)
    assert offline == pytest.approx([1, 0.75, 0.5, 0.25])


def test_rmia_orders_a_target_by_its_ratio(setup):
    target, shadows = setup(n_augmentations=1)
    p, masks = 1 / (1 + np.exp(-shadows.phi[:, 0])), shadows.masks
    marginal = (p.mean(0, where=masks) + p.mean(0, where=~masks)) / 2
    ratio = 1 / (1 + np.exp(-target.phi[0])) / marginal
    assert np.array_equal(np.argsort(membership.rmia(target, shadows)), np.argsort(ratio))
    coarse = membership.rmia(target, shadows, gamma=2)[np.argsort(ratio)]
    assert (np.diff(coarse) >= 0).all() and (coarse == 0).sum() > 1  # ties, but no other order


def test_bavaria_by_hand():
    """Each side has mean 4 or 0, squares 2, so a common variance of 2, which is also its own.

    The predictive scale is sqrt(2 * (1 + 1 / 2)), with 8 + 2 - 1 degrees of freedom.
    """
    target, shadows = by_hand()
    nearer = replace(target, logits=two_classes([[3.5]]))
    expected = -5 * (math.log(1 + 0.25 / 27) - math.log(1 + 12.25 / 27))
    assert membership.bavaria(nearer, shadows) == pytest.approx([expected])
    assert membership.bavaria(target, shadows) == pytest.approx([0], abs=1e-12)


def test_bavaria_tends_to_one_spread_and_to_a_spread_per_sample(setup):
    """A heavy prior is one normal variance for all; many networks outweigh a light one."""
    target, shadows = setup(n_augmentations=1)
    phi, masks = shadows.phi[:, 0], shadows.masks
    logs = []
    for side in (masks, ~masks):
        n, centre = side.sum(0), phi.mean(0, where=side)
        common = ((phi - centre) ** 2).sum(where=side) / (n - 1).sum()
        logs.append(stats.norm.logpdf(target.phi[0], centre, np.sqrt(common * (1 + 1 / n))))
    heavy = membership.bavaria(target, shadows, prior_networks=1e9)
    np.testing.assert_allclose(heavy, logs[0] - logs[1], rtol=1e-5, atol=1e-6)
    gaps = []
    for n_models in (50, 4000):
        target, shadows = setup(n_models=n_models, n_augmentations=1)
        fits = fit_normals(shadows.phi, shadows.masks, "per_sample", centre="mean")
        own = stats.norm.logpdf(target.phi, fits.mean_in, fits.std_in)
        own -= stats.norm.logpdf(target.phi, fits.mean_out, fits.std_out)
        gaps.append(np.abs(membership.bavaria(target, shadows) - own[0]).max())
    assert gaps[1] < 0.05 < gaps[0]


def test_a_lucky_spread_misleads_lira_and_not_bavaria(setup):
    """Two networks agree by chance on one sample: its spread is 0, its true one is that of all."""
    target, shadows = setup(n_models=24, n_augmentations=1)
    chosen = np.r_[0:4]  # two with every sample, two without
    few = replace(shadows, masks=shadows.masks[chosen], logits=shadows.logits[chosen].copy(),
                  curvature=None)  # fmt: skip
    few.logits[1, :, 7] = few.logits[0, :, 7] * 1.0001
    naive = np.abs(membership.lira(target, few, variance="per_sample"))
    assert naive.argmax() == 7 and naive[7] > 1e4
    assert np.abs(membership.bavaria(target, few))[7] < 10


@pytest.mark.parametrize(
    ("name", "least"),
    [("rmia_offline", 1), ("calibrated_loss", 1), ("yeom", 1), ("rmia", 2), ("mast", 2),
     ("lira_offline", 3), ("lira", 4), ("lira_csg", 4), ("bavaria", 4), ("curvature", 4),
     ("curvature_lr", 4)],
)  # fmt: skip
def test_attacks_refuse_fewer_networks_than_they_are_defined_for(name, least, setup):
    target, shadows = setup(n_models=60)
    for n_references in (1, 2, 3, 4):
        few = paired_references(shadows, n_references)
        if n_references >= least:
            assert np.isfinite(ATTACKS[name](target, few)).all()
        else:
            with pytest.raises(TooFewShadows):
                ATTACKS[name](target, few)


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
    """The sign of every attack: two targets with complementary members, half of the samples each.

    Their predictions are those of networks with the sample, or without it.
    """
    _, shadows = setup(n_models=200, n_augmentations=1)
    i, member = np.arange(50), np.random.default_rng(2).random(50) < 0.5
    half = replace(shadows, masks=shadows.masks[:100], logits=shadows.logits[:100],
                   curvature=shadows.curvature[:100])  # fmt: skip
    targets = []
    for inside in (member, ~member):
        pick = np.argmax(shadows.masks[100:] == inside, axis=0) + 100
        logits = shadows.logits[pick, 0, i][None]
        curvature = shadows.curvature[pick, i]
        targets.append(Target(logits, shadows.y_true, shadows.settings, curvature))
    for name, attack in ATTACKS.items():
        first, second = (attack(target, half) for target in targets)
        higher = np.where(member, first > second, second > first)
        assert higher.mean() > 0.6, name


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
