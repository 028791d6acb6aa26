"""Each attack by hand, against a slow copy of its definition, against SciPy; refusals."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from memlens import attacks
from memlens.attacks import ATTACKS, Shadows, Target

ORIGIN = {"model": "mlp", "epochs": 60, "keep": 0.5, "stop": "last"}


def scene(n_models=24, n_views=2, n_samples=50, n_classes=4, seed=0):
    """A target and shadows with logits that know their members, a little."""
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n_samples)
    masks = rng.random((n_models + 1, n_samples)) < 0.5
    masks[:2], masks[2:4] = True, False  # at least two shadows on either side
    logits = rng.normal(scale=2, size=(n_models + 1, n_views, n_samples, n_classes))
    logits += 3 * (np.arange(n_classes) == y[:, None]) * (0.5 + masks)[:, None, :, None]
    logits = logits.astype(np.float32)
    bent = rng.lognormal(size=(n_models + 1, n_samples)) / (1 + masks)
    shadows = Shadows(masks[:-1], logits[:-1], y, ORIGIN, bent[:-1])
    return Target(logits[-1], y, ORIGIN, bent[-1]), shadows


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
    """The attacks from their definitions: one sample, one view, one shadow at a time."""

    def __init__(self, target, shadows):
        self.y = [int(v) for v in target.y_true]
        self.target, self.shadows = target, shadows
        self.n_views, self.n_samples = target.logits.shape[:2]

    def phi(self, z, i):
        return logit_of(z, self.y[i])

    def top(self, z, i):
        return max(logit_of(z, k) for k in range(len(z)))

    def sides(self, value, i, v):
        """Values of the shadows with sample i, and of those without it."""
        pairs = [
            (value(net[v, i], i), bool(mask[i]))
            for net, mask in zip(self.shadows.logits, self.shadows.masks)
        ]
        return [x for x, inside in pairs if inside], [x for x, inside in pairs if not inside]

    def fixed(self):
        """One spread of all deviations from each sample's median, a side."""
        squares = [], []
        for i in range(self.n_samples):
            for v in range(self.n_views):
                for found, values in zip(squares, self.sides(self.phi, i, v)):
                    found += [(x - median(values)) ** 2 for x in values]
        return [math.sqrt(mean(found)) for found in squares]

    def lira(self, i, stds=None):
        found = []
        for v in range(self.n_views):
            x = self.phi(self.target.logits[v, i], i)
            sides = self.sides(self.phi, i, v)
            each = stds or [spread(side, mean(side)) for side in sides]
            with_it, without = (density(x, median(s), e) for s, e in zip(sides, each))
            found.append(math.log(with_it) - math.log(without))
        return mean(found)

    def offline(self, i, stds, two_sided):
        found = []
        for v in range(self.n_views):
            x = self.phi(self.target.logits[v, i], i)
            centre = median(self.sides(self.phi, i, v)[1])
            if two_sided:
                found.append(-math.log(density(x, centre, stds[1])))
            else:
                found.append(-math.log(0.5 * math.erfc((x - centre) / stds[1] / math.sqrt(2))))
        return mean(found)

    def csg(self, i):
        likelihoods = [0.0, 0.0]
        for v in range(self.n_views):
            x = self.top(self.target.logits[v, i], i)
            for side, values in enumerate(self.sides(self.top, i, v)):
                variance = spread(values, mean(values)) ** 2
                likelihoods[side] += density(x, mean(values), variance)
        return math.log(likelihoods[0]) - math.log(likelihoods[1])

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


def test_every_attack_agrees_with_its_definition_taken_slowly():
    target, shadows = scene()
    expected, variants = slow_attacks(target, shadows)
    assert set(expected) == set(ATTACKS)
    for name, attack in ATTACKS.items():
        found = attack(target, shadows)
        assert found.dtype == np.float64 and found.shape == (50,)
        np.testing.assert_allclose(found, expected[name], rtol=1e-8, atol=1e-8, err_msg=name)
    per_sample = attacks.lira(target, shadows, variance="per_sample")
    np.testing.assert_allclose(per_sample, variants["per sample"], rtol=1e-8, atol=1e-8)
    two_sided = attacks.lira_offline(target, shadows, two_sided=True)
    np.testing.assert_allclose(two_sided, variants["two-sided"], rtol=1e-8, atol=1e-8)
    orders = {name: tuple(np.argsort(values)) for name, values in expected.items()}
    assert len(set(orders.values())) == len(orders)  # no two of them are the same


def test_lira_with_a_fixed_variance_is_scipys_log_density():
    target, shadows = scene(n_views=1)
    inside, outside = shadows.masks, ~shadows.masks
    phi = shadows.phi[:, 0]
    centre = [np.array([np.median(phi[m[:, i], i]) for i in range(50)]) for m in (inside, outside)]
    std = [np.sqrt(np.mean((phi - c)[m] ** 2)) for m, c in zip((inside, outside), centre)]
    densities = [stats.norm.logpdf(target.phi[0], c, s) for c, s in zip(centre, std)]
    expected = densities[0] - densities[1]
    np.testing.assert_allclose(attacks.lira(target, shadows), expected, rtol=1e-10)
    tail = -stats.norm.logsf(target.phi[0], centre[1], std[1])
    np.testing.assert_allclose(attacks.lira_offline(target, shadows), tail, rtol=1e-8)


def two_classes(phi, **options):
    """Logits of two classes whose true-class logit is phi, (..., n_samples)."""
    phi = np.asarray(phi, dtype=float)
    return np.stack([phi, np.zeros_like(phi)], axis=-1)


def by_hand():
    """One sample, one view: two shadows with it at 3 and 5, two without it at -1 and 1."""
    masks = np.array([[True], [True], [False], [False]])
    logits = two_classes([[[3.0]], [[5.0]], [[-1.0]], [[1.0]]])
    bent = np.exp([[-2.0], [-4.0], [0.0], [2.0]])
    y = np.array([0])
    shadows = Shadows(masks, logits, y, ORIGIN, bent)
    return Target(two_classes([[2.0]]), y, ORIGIN, np.exp([-1.0])), shadows


def test_each_attack_by_hand():
    """phi 2 lies 2 from either centre, 4 and 0; all spreads are 1; log curvature -1: -3 and 1."""
    target, shadows = by_hand()
    known = shadows.normals("phi", lambda: shadows.phi, "fixed", centre="median")
    assert [float(np.squeeze(part)) for part in known] == [4, 1, 0, 1]
    assert attacks.lira(target, shadows) == pytest.approx([0], abs=1e-12)
    nearer = replace(target, logits=two_classes([[3.5]]))
    assert attacks.lira(nearer, shadows) == pytest.approx([(-0.25 + 12.25) / 2])
    assert attacks.lira_offline(nearer, shadows) == pytest.approx([-np.log(0.00023262907903552504)])
    assert attacks.curvature_nll(target, shadows) == pytest.approx([0], abs=1e-12)
    flat = replace(target, curvature=np.exp([-3.0]))
    assert attacks.curvature_nll(flat, shadows) == pytest.approx([8])
    assert attacks.curvature_lr(flat, shadows) == pytest.approx([8])
    loss = lambda phi: math.log(1 + math.exp(-phi))  # noqa: E731
    inside, outside = (loss(3) + loss(5)) / 2, (loss(-1) + loss(1)) / 2
    assert attacks.yeom(target, shadows) == pytest.approx([-loss(2)])
    assert attacks.calibrated_loss(target, shadows) == pytest.approx([outside - loss(2)])
    assert attacks.mast(target, shadows) == pytest.approx([(inside + outside) / 2 - loss(2)])
    # the largest probability belongs to the other class at -1: 1 and 1 without, which have no
    # spread; with one at -1.5, its logits are 1.5 and 1, mean 1.25, variance 1 / 16
    rough = replace(shadows, logits=two_classes([[[3.0]], [[5.0]], [[-1.5]], [[1.0]]]), _known={})
    expected = stats.norm.logpdf(2, 4, 1) - stats.norm.logpdf(2, 1.25, 1 / 16)
    assert attacks.lira_csg(target, rough) == pytest.approx([expected])


def test_a_member_scores_higher():
    """The sign of every attack: answers like the nets with the sample against those without it."""
    _, shadows = scene(n_models=200, n_views=1)
    for name, attack in ATTACKS.items():
        values = []
        for chosen in (shadows.masks, ~shadows.masks):
            pick = np.argmax(chosen[100:], axis=0) + 100  # a net with, or without, each sample
            i = np.arange(50)
            answers = shadows.logits[pick, 0, i][None]
            target = Target(answers, shadows.y_true, ORIGIN, shadows.curvature[pick, i])
            half = replace(
                shadows, masks=shadows.masks[:100], logits=shadows.logits[:100],
                curvature=shadows.curvature[:100], _known={},
            )  # fmt: skip
            values.append(attack(target, half))
        assert (values[0] > values[1]).mean() > 0.6, name


def test_confidence_survives_where_a_softmax_rounds_it_to_one():
    logits = np.array([[60.0, 0.0, 1.0], [80.0, 0.0, 1.0]], dtype=np.float32)
    found = attacks.true_class_logit(logits, np.array([0, 0]))
    rest = math.log(1 + math.e)
    assert found == pytest.approx([60 - rest, 80 - rest], rel=1e-12)
    assert attacks.true_class_logit(logits, np.array([1, 2]))[0] == pytest.approx(-60)


def test_medians_and_spreads_are_those_of_the_chosen():
    rng = np.random.default_rng(0)
    values, masks = rng.normal(size=(9, 2, 5)), rng.random((9, 5)) < 0.5
    masks[:2], masks[2:4] = True, False
    for centre, oracle in (("median", np.median), ("mean", np.mean)):
        found = attacks.fit_normals(values, masks, "per_sample", centre=centre)
        for i in range(5):
            inside, outside = values[masks[:, i], :, i], values[~masks[:, i], :, i]
            assert found.mean_in[:, i] == pytest.approx(oracle(inside, axis=0))
            assert found.mean_out[:, i] == pytest.approx(oracle(outside, axis=0))
            assert found.std_in[:, i] == pytest.approx(inside.std(axis=0))
            assert found.std_out[:, i] == pytest.approx(outside.std(axis=0))


def test_more_of_the_same_views_change_nothing():
    target, shadows = scene(n_views=1)
    twice = replace(target, logits=target.logits.repeat(3, axis=0))
    others = replace(shadows, logits=shadows.logits.repeat(3, axis=1), _known={})
    for name, attack in ATTACKS.items():
        np.testing.assert_allclose(attack(twice, others), attack(target, shadows), err_msg=name)


def test_samples_do_not_touch_each_other_but_for_the_fixed_spread():
    target, shadows = scene()
    order = np.random.default_rng(1).permutation(50)
    mixed = Target(target.logits[:, order], target.y_true[order], ORIGIN, target.curvature[order])
    others = Shadows(shadows.masks[:, order], shadows.logits[:, :, order], shadows.y_true[order],
                     ORIGIN, shadows.curvature[:, order])  # fmt: skip
    for name, attack in ATTACKS.items():
        np.testing.assert_allclose(
            attack(mixed, others), attack(target, shadows)[order], rtol=1e-9, err_msg=name
        )


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_every_attack_refuses_shadows_of_another_recipe(attack):
    target, shadows = scene()
    for change in ({"epochs": 20}, {"stop": "peak"}, {"weight_decay": 0.1}):
        other = replace(shadows, origin=ORIGIN | change)
        with pytest.raises(ValueError, match=f"not trained like the target: {next(iter(change))}"):
            attack(target, other)
    with pytest.raises(ValueError, match=r"epochs is 60 in the target, 20 in the shadows"):
        attack(target, replace(shadows, origin=ORIGIN | {"epochs": 20}))


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_every_attack_refuses_a_target_among_its_own_shadows(attack):
    _, shadows = scene()
    itself = Target(shadows.logits[7], shadows.y_true, ORIGIN, shadows.curvature[7])
    with pytest.raises(ValueError, match="exactly like shadow 7: it is one of its own shadows"):
        attack(itself, shadows)


def test_a_target_has_no_place_for_its_members():
    assert not {"mask", "masks", "members"} & set(Target.__dataclass_fields__)


def test_answers_about_other_samples_are_refused():
    target, shadows = scene()
    with pytest.raises(ValueError, match=r"target's logits have shape \(1, 50, 4\).*same views"):
        attacks.lira(replace(target, logits=target.logits[:1]), shadows)
    with pytest.raises(ValueError, match="different labels"):
        attacks.lira(replace(target, y_true=target.y_true[::-1].copy()), shadows)
    with pytest.raises(ValueError, match="no curvature was asked"):
        attacks.curvature_lr(replace(target, curvature=None), shadows)
    with pytest.raises(ValueError, match='variance is "local"|variance is \'local\''):
        attacks.lira(target, shadows, variance="local")


def test_malformed_answers_are_named():
    target, shadows = scene()
    with pytest.raises(ValueError, match=r"logits have shape \(2, 50, 4\) for y_true \(49,\)"):
        replace(target, y_true=target.y_true[1:])
    with pytest.raises(ValueError, match=r"curvature has shape \(50, 1\): expected \(50,\)"):
        replace(target, curvature=target.curvature[:, None])
    with pytest.raises(ValueError, match="NaN or infinite"):
        replace(target, logits=target.logits * np.inf)
    with pytest.raises(ValueError, match=r"masks are int64 \(24, 50\): expected bool"):
        replace(shadows, masks=shadows.masks.astype(np.int64))
    masks = shadows.masks.copy()
    masks[1:, 13] = False
    with pytest.raises(ValueError, match="1 samples, the first at 13, have fewer than two shadows"):
        replace(shadows, masks=masks)
