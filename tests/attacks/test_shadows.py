"""Log odds of the label, fitted normal distributions, and refusals."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest

from memlens.attacks import membership
from memlens.attacks import shadows as module
from memlens.attacks.shadows import Target


def test_log_odds_are_exact_where_a_softmax_rounds_to_one():
    logits = np.array([[60.0, 0.0, 1.0], [80.0, 0.0, 1.0]], dtype=np.float32)
    found = module.true_class_logit(logits, np.array([0, 0]))
    rest = math.log(1 + math.e)
    assert found == pytest.approx([60 - rest, 80 - rest], rel=1e-12)
    assert module.true_class_logit(logits, np.array([1, 2]))[0] == pytest.approx(-60)


def test_centres_and_spreads_are_those_of_the_chosen_networks():
    rng = np.random.default_rng(0)
    values, masks = rng.normal(size=(9, 2, 5)), rng.random((9, 5)) < 0.5
    masks[:2], masks[2:4] = True, False
    for centre, oracle in (("median", np.median), ("mean", np.mean)):
        found = module.fit_normals(values, masks, "per_sample", centre=centre)
        for i in range(5):
            inside, outside = values[masks[:, i], :, i], values[~masks[:, i], :, i]
            assert found.mean_in[:, i] == pytest.approx(oracle(inside, axis=0))
            assert found.mean_out[:, i] == pytest.approx(oracle(outside, axis=0))
            assert found.std_in[:, i] == pytest.approx(inside.std(axis=0))
            assert found.std_out[:, i] == pytest.approx(outside.std(axis=0))


def test_a_target_has_no_membership():
    assert [field.name for field in fields(Target)] == ["logits", "y_true", "settings", "curvature"]


def test_a_copy_with_other_predictions_is_fitted_again(setup):
    target, shadows = setup()
    before = membership.lira(target, shadows)
    others = replace(shadows, logits=shadows.logits[::-1].copy())
    flipped = replace(shadows, masks=~shadows.masks)
    for copy in (others, flipped):
        fresh = module.Shadows(copy.masks, copy.logits, copy.y_true, copy.settings, copy.curvature)
        expected = membership.lira(target, fresh)
        assert np.array_equal(membership.lira(target, copy), expected)
        assert not np.array_equal(expected, before)
    assert np.array_equal(membership.lira(target, shadows), before)


def test_predictions_for_other_samples_are_refused(setup):
    target, shadows = setup()
    with pytest.raises(
        ValueError, match=r"target's logits have shape \(1, 50, 4\).*same augmentations"
    ):
        membership.lira(replace(target, logits=target.logits[:1]), shadows)
    with pytest.raises(ValueError, match="different labels"):
        membership.lira(replace(target, y_true=target.y_true[::-1].copy()), shadows)
    with pytest.raises(ValueError, match="target or the shadows have no curvature"):
        membership.curvature_lr(replace(target, curvature=None), shadows)
    with pytest.raises(ValueError, match="variance is \"local\"|variance is 'local'"):
        membership.lira(target, shadows, variance="local")


def test_malformed_predictions_are_refused(setup):
    target, shadows = setup()
    with pytest.raises(ValueError, match=r"logits have shape \(2, 50, 4\) for y_true \(49,\)"):
        replace(target, y_true=target.y_true[1:])
    with pytest.raises(ValueError, match=r"curvature has shape \(50, 1\): expected \(50,\)"):
        replace(target, curvature=target.curvature[:, None])
    with pytest.raises(ValueError, match="NaN or infinite"):
        replace(target, logits=target.logits * np.inf)
    for wrong in (target.y_true + 4, target.y_true - 1, target.y_true.astype(float)):
        with pytest.raises(ValueError, match=r"y_true is .* expected integer labels from 0 to"):
            replace(target, y_true=wrong)
    with pytest.raises(ValueError, match=r"masks are int64 \(24, 50\): expected bool"):
        replace(shadows, masks=shadows.masks.astype(np.int64))
    masks = shadows.masks.copy()
    masks[1:, 13] = False
    with pytest.raises(
        module.TooFewShadows, match="1 samples, the first at 13, have fewer than 2 shadows"
    ):
        membership.lira(target, replace(shadows, masks=masks))


def test_paired_references_are_the_first_networks_of_each_side(setup):
    _, shadows = setup(n_models=40)
    few = module.paired_references(shadows, 5)
    assert few.masks.tolist() == [[True] * 50] * 2 + [[False] * 50] * 3
    for i in range(50):
        inside, outside = (np.flatnonzero(side[:, i]) for side in (shadows.masks, ~shadows.masks))
        chosen = np.r_[inside[:2], outside[:3]]
        assert np.array_equal(few.logits[:, :, i], shadows.logits[chosen, :, i])
        assert np.array_equal(few.curvature[:, i], shadows.curvature[chosen, i])
    one = module.paired_references(shadows, 1)
    assert one.masks.shape == (1, 50) and not one.masks.any()
    with pytest.raises(module.TooFewShadows, match="0 references"):
        module.paired_references(shadows, 0)
    with pytest.raises(module.TooFewShadows, match="have fewer than 20 shadows"):
        module.paired_references(shadows, 40)
