import doctest

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve

from memlens.evaluation import calibration

ERRORS = [
    calibration.ece,
    calibration.mce,
    calibration.msce,
    calibration.uce,
    calibration.msce_sum,
    calibration.uce_sum,
]


def two_class(confidence, correct):
    """Predict class 0 with this confidence, at least a half; the label says if that is right."""
    confidence = np.asarray(confidence, dtype=float)
    return 1 - np.asarray(correct, dtype=int), np.stack([confidence, 1 - confidence], axis=1)


def random_predictions(seed=0, n=500, n_classes=10, sharpness=2.0):
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.normal(size=(n, n_classes))
    y_true = np.where(rng.random(n) < 0.6, logits.argmax(axis=1), rng.integers(n_classes, size=n))
    return y_true, calibration.softmax(logits)


def loop_oracle(y_true, y_prob, n_bins):
    """Every error, one bin after the other, written without the module's binning."""
    gaps, shares = [], []
    for m in range(n_bins):
        inside = []
        for label, row in zip(y_true, y_prob):
            last_and_one = m == n_bins - 1 and row.max() == 1
            if m / n_bins <= row.max() < (m + 1) / n_bins or last_and_one:
                inside.append((row.max(), row.argmax() == label))
        if inside:
            confidence, correct = np.mean(inside, axis=0)
            gaps.append(abs(correct - confidence))
            shares.append(len(inside) / len(y_true))
    gaps = np.array(gaps)
    return {
        "ece": gaps @ shares,
        "mce": gaps.max(),
        "msce": (gaps**2).sum() / n_bins,
        "uce": gaps.sum() / n_bins,
        "msce_sum": (gaps**2).sum(),
        "uce_sum": gaps.sum(),
    }


# reliability --------------------------------------------------------------------------------------


def test_reliability_by_hand():
    y_true, y_prob = two_class([0.6, 0.7, 0.9, 1.0], [1, 0, 1, 1])
    table = calibration.reliability(y_true, y_prob, n_bins=4)
    assert table.index.name == "bin"
    assert list(table.columns) == ["left", "right", "confidence", "accuracy", "n"]
    assert table["left"].tolist() == [0, 0.25, 0.5, 0.75]
    assert table["right"].tolist() == [0.25, 0.5, 0.75, 1]
    assert table["n"].tolist() == [0, 0, 2, 2]  # empty bins are kept
    assert table["confidence"].tolist() == pytest.approx([np.nan, np.nan, 0.65, 0.95], nan_ok=True)
    assert table["accuracy"].tolist() == pytest.approx([np.nan, np.nan, 0.5, 1], nan_ok=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n_bins", [1, 7, 15])
def test_reliability_matches_scikit_learn(seed, n_bins):
    y_true, y_prob = random_predictions(seed)
    correct = y_prob.argmax(axis=1) == y_true
    accuracy, confidence = calibration_curve(correct, y_prob.max(axis=1), n_bins=n_bins)
    table = calibration.reliability(y_true, y_prob, n_bins)
    used = table[table["n"] > 0]
    assert used["accuracy"].to_numpy() == pytest.approx(accuracy)
    assert used["confidence"].to_numpy() == pytest.approx(confidence)
    assert table["n"].sum() == 500 and len(table) == n_bins


@pytest.mark.parametrize("n_bins", [2, 4, 5, 10, 15, 20])
def test_an_edge_belongs_to_the_bin_on_its_right_and_one_to_the_last(n_bins):
    for k in range(-(-n_bins // 2), n_bins + 1):  # confidences of two classes start at a half
        table = calibration.reliability(*two_class([k / n_bins], [1]), n_bins)
        assert table["n"].to_numpy().nonzero()[0].tolist() == [min(k, n_bins - 1)]


def test_tied_classes_are_decided_for_the_first():
    table = calibration.reliability([0, 1], [[0.5, 0.5], [0.5, 0.5]], n_bins=2)
    assert table.loc[1, "accuracy"] == 0.5


def test_a_prediction_just_above_one_is_counted_as_one():
    y_prob = np.array([[1 + 1e-7, 0.0]])
    table = calibration.reliability([0], y_prob, n_bins=3)
    assert table.loc[2, ["confidence", "n"]].tolist() == [1, 1]


def test_saturated_float32_softmax_lands_in_the_last_bin():
    logits = np.array([[40.0, 0.0], [0.0, 5.0]], dtype=np.float32)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    y_prob = odds / odds.sum(axis=1, keepdims=True)
    assert y_prob.dtype == np.float32 and y_prob[0, 0] == 1
    assert calibration.reliability([0, 1], y_prob)["n"].tolist() == [0] * 14 + [2]


# errors -------------------------------------------------------------------------------------------


def test_confidence_of_exactly_one_shares_the_last_bin():
    # A phantom bin for 1.0 gives 1/2 * |0 - 1.0| + 1/2 * |1 - 0.95| = 0.525 instead.
    y_true, y_prob = two_class([1.0, 0.95], [0, 1])
    expected = abs(0.5 - 0.975)
    assert expected == pytest.approx(0.475)
    assert calibration.ece(y_true, y_prob) == pytest.approx(0.475)
    assert calibration.mce(y_true, y_prob) == pytest.approx(0.475)
    assert calibration.uce_sum(y_true, y_prob) == pytest.approx(0.475)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n_bins", [1, 10, 15])
def test_all_errors_match_a_loop_over_bins(seed, n_bins):
    y_true, y_prob = random_predictions(seed, n=200, sharpness=4.0)
    y_prob[:3] = np.eye(10)[:3]  # some confidences of exactly 1
    expected = loop_oracle(y_true, y_prob, n_bins)
    for error in ERRORS:
        assert error(y_true, y_prob, n_bins) == pytest.approx(expected[error.__name__])


def test_errors_by_hand():
    # bins of a quarter: [0.5, 0.75) has 0.6 (right): gap 0.4; [0.75, 1] has 0.8, 0.8, 1.0
    # (right, wrong, wrong): accuracy 1/3, confidence 2.6/3: gap 1.6/3
    y_true, y_prob = two_class([0.6, 0.8, 0.8, 1.0], [1, 1, 0, 0])
    gap = 1.6 / 3
    expected = {
        "ece": 0.25 * 0.4 + 0.75 * gap,
        "mce": gap,
        "msce": (0.16 + gap**2) / 4,
        "uce": (0.4 + gap) / 4,
        "msce_sum": 0.16 + gap**2,
        "uce_sum": 0.4 + gap,
    }
    for error in ERRORS:
        assert error(y_true, y_prob, 4) == pytest.approx(expected[error.__name__])


def test_means_divide_by_all_bins_or_by_those_in_use():
    y_true, y_prob = two_class([0.6, 0.9], [1, 0])
    assert calibration.uce(y_true, y_prob, 10) == pytest.approx((0.4 + 0.9) / 10)
    assert calibration.uce(y_true, y_prob, 10, divide_by="non_empty") == pytest.approx(0.65)
    assert calibration.msce(y_true, y_prob, 10) == pytest.approx((0.16 + 0.81) / 10)
    with pytest.raises(ValueError, match='divide_by is \'n\'; expected "bins" or "non_empty"'):
        calibration.uce(y_true, y_prob, 10, divide_by="n")


@pytest.mark.parametrize("seed", range(4))
def test_no_mean_exceeds_the_maximum_but_the_sums_may(seed):
    values = calibration.calibration_errors(*random_predictions(seed))
    assert calibration.uce(*random_predictions(seed), divide_by="non_empty") <= values["mce"]
    assert values["uce"] <= values["mce"] and values["msce"] <= values["mce"] ** 2
    assert values["ece"] <= values["mce"] < values["uce_sum"]
    assert values["uce_sum"] == pytest.approx(15 * values["uce"])
    assert values["msce_sum"] == pytest.approx(15 * values["msce"])


def test_perfect_calibration_has_no_error():
    y_true, y_prob = two_class([0.75] * 4 + [1.0] * 2, [1, 1, 0, 1, 1, 1])
    for error in ERRORS:
        assert error(y_true, y_prob) == pytest.approx(0, abs=1e-15)


def test_labels_drawn_from_the_probabilities_are_almost_calibrated_and_sharpened_ones_are_not():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 5))
    y_prob = calibration.softmax(logits)
    y_true = (rng.random((20_000, 1)) > y_prob.cumsum(axis=1)).sum(axis=1).clip(max=4)
    assert calibration.ece(y_true, y_prob) < 0.02
    assert calibration.ece(y_true, calibration.softmax(3 * logits)) > 0.2


@pytest.mark.parametrize("error", ERRORS)
def test_errors_ignore_the_order_of_samples_and_of_classes(error):
    y_true, y_prob = random_predictions(2)
    rng = np.random.default_rng(0)
    samples, classes = rng.permutation(500), rng.permutation(10)
    expected = pytest.approx(error(y_true, y_prob))
    assert error(y_true[samples], y_prob[samples]) == expected
    assert error(classes.argsort()[y_true], y_prob[:, classes]) == expected


def test_calibration_errors_collects_them_all():
    y_true, y_prob = random_predictions(1)
    values = calibration.calibration_errors(y_true, y_prob, n_bins=10)
    assert isinstance(values, pd.Series)
    assert values.index.tolist() == ["accuracy", *(error.__name__ for error in ERRORS)]
    assert values["accuracy"] == (y_prob.argmax(axis=1) == y_true).mean()
    for error in ERRORS:
        assert values[error.__name__] == error(y_true, y_prob, 10)


# input --------------------------------------------------------------------------------------------


def test_softmax_is_a_float64_distribution_that_ignores_a_shift():
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    prob = calibration.softmax(logits)
    assert prob.dtype == np.float64 and prob.sum(axis=1) == pytest.approx(1)
    assert prob == pytest.approx(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    assert calibration.softmax(logits.astype(float) + 1000) == pytest.approx(prob)
    assert calibration.softmax([[20.0, 0.0]])[0, 0] < 1  # 1 exactly in float32
    assert np.float32(calibration.softmax([[20.0, 0.0]])[0, 0]) == 1


def test_softmax_refuses_bad_logits():
    with pytest.raises(ValueError, match=r"shape \(1, 2\) and 1 non-finite"):
        calibration.softmax([[np.nan, 1.0]])
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        calibration.softmax([0.0, 1.0])


def test_float16_probabilities_over_many_classes_pass():
    logits = np.random.default_rng(0).normal(size=(50, 1000))
    y_prob = calibration.softmax(logits).astype(np.float16)
    assert calibration.reliability(np.zeros(50, int), y_prob)["n"].sum() == 50


def test_rows_may_miss_one_by_a_thousandth():
    assert calibration.ece([0], [[0.7, 0.3009]]) == pytest.approx(0.3)
    with pytest.raises(ValueError, match=r"row 0 of y_prob sums to 1.0011"):
        calibration.ece([0], [[0.7, 0.3011]])


def test_a_negative_probability_is_refused_even_if_its_row_sums_to_one():
    with pytest.raises(ValueError, match=r"ranges from -0.2 to 0.7"):
        calibration.ece([0], [[0.7, 0.5, -0.2]])


@pytest.mark.parametrize(
    "function", [calibration.reliability, calibration.calibration_errors, *ERRORS]
)
def test_bad_input_is_refused_with_its_name(function):
    good = np.array([[0.2, 0.8], [0.7, 0.3]])
    with pytest.raises(
        ValueError, match=r"y_prob has shape \(2,\); expected \(n_samples, n_classes\)"
    ):
        function([0, 1], good[:, 1])
    with pytest.raises(ValueError, match=r"y_prob has shape \(0, 2\)"):
        function([], good[:0])
    with pytest.raises(ValueError, match=r"ranges from -1 to 2; .* softmax\(logits\)"):
        function([0, 1], np.array([[-1.0, 2.0], [0.5, 0.5]]))
    with pytest.raises(ValueError, match="ranges from nan to nan"):
        function([0, 1], np.where(good == 0.2, np.nan, good))
    with pytest.raises(ValueError, match=r"row 1 of y_prob sums to 0.9900"):
        function([0, 1], good - [[0, 0], [0.01, 0]])
    with pytest.raises(ValueError, match=r"y_true has shape \(3,\), y_prob 2 rows"):
        function([0, 1, 1], good)
    with pytest.raises(TypeError, match="y_true has dtype float64; expected integer"):
        function([0.0, 1.0], good)
    with pytest.raises(ValueError, match=r"holds 1 labels outside 0 .. 1, such as 2"):
        function([0, 2], good)
    with pytest.raises(ValueError, match=r"outside 0 .. 1, such as -1"):
        function([0, -1], good)
    with pytest.raises(ValueError, match="n_bins is 0"):
        function([0, 1], good, n_bins=0)


def test_the_example_in_the_module_holds():
    result = doctest.testmod(calibration)
    assert result.attempted >= 1 and result.failed == 0


def test_errors_by_group_are_those_of_each_group_alone():
    rng = np.random.default_rng(0)
    y_prob = rng.dirichlet(np.ones(4), size=200)
    y_true, groups = rng.integers(4, size=200), rng.choice(["head", "tail"], size=200)
    table = calibration.errors_by(y_true, y_prob, groups, n_bins=10)
    assert table.index.tolist() == ["head", "tail"]
    for group, row in table.iterrows():
        own = groups == group
        expected = calibration.calibration_errors(y_true[own], y_prob[own], n_bins=10)
        pd.testing.assert_series_equal(row[expected.index], expected, check_names=False)
        right = y_prob[own].argmax(1) == y_true[own]
        gap = y_prob[own].max(1).mean() - right.mean()
        assert row["overconfidence"] == pytest.approx(gap)
        assert row["n"] == own.sum()
    whole = calibration.errors_by(y_true, y_prob, np.zeros(200))
    assert whole["ece"].item() == calibration.ece(y_true, y_prob)


def test_groups_that_know_the_labels_make_a_calibrated_net_look_overconfident():
    """What the docstring warns of: labels drawn from the net's own probabilities."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 20_000)
    y_prob, y_true = np.column_stack([p, 1 - p]), (rng.random(20_000) > p).astype(int)
    by_input = calibration.errors_by(y_true, y_prob, p > 0.75)
    assert by_input["overconfidence"].abs().max() < 0.01
    by_loss = calibration.errors_by(y_true, y_prob, y_prob[np.arange(20_000), y_true] < 0.4)
    assert by_loss["overconfidence"][True] > 0.5


@pytest.mark.parametrize("groups", [np.zeros(3), [0.0, np.nan]])
def test_groups_that_do_not_fit_are_named(groups):
    with pytest.raises(
        ValueError, match=r"groups have shape .* expected one for each of 2 samples"
    ):
        calibration.errors_by([0, 1], [[0.5, 0.5], [0.5, 0.5]], groups)


# ---------------------------------------------------------------- many networks


def networks():
    """Logits of three networks for forty samples, and which of them are held out."""
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(3, 40, 4)) * 2, rng.integers(0, 4, 40)
    return labels, logits, rng.random((3, 40)) < 0.6


def test_pooled_bins_are_the_reliability_of_all_predictions_together():
    labels, logits, chosen = networks()
    sums = calibration.network_bins(labels, logits, chosen, n_bins=5)
    everyone = np.broadcast_to(labels, chosen.shape)[chosen]
    prob = calibration.softmax(logits[chosen])
    expected = calibration.reliability(everyone, prob, n_bins=5)
    pd.testing.assert_frame_equal(calibration.pooled_bins(sums), expected)
    errors = calibration.errors_of(calibration.pooled_bins(sums))
    for name, measure in {"mce": calibration.mce, "uce": calibration.uce}.items():
        assert errors[name] == pytest.approx(measure(everyone, prob, 5))


def test_a_network_without_a_chosen_prediction_adds_nothing():
    labels, logits, chosen = networks()
    chosen[1] = False
    sums = calibration.network_bins(labels, logits, chosen)
    assert not sums[1].any() and sums[:, :, 0].sum() == chosen.sum()


def test_the_ratio_of_errors_is_pooled_and_its_interval_is_over_networks():
    labels, logits, chosen = networks()
    sums = calibration.network_bins(labels, logits, chosen)
    sharper = calibration.network_bins(labels, 3 * logits, chosen)
    value, low, high = calibration.error_ratio("ece", sharper, sums)
    errors = [calibration.errors_of(calibration.pooled_bins(part)) for part in (sharper, sums)]
    assert value == errors[0]["ece"] / errors[1]["ece"] > 1
    assert low < value < high
    assert calibration.error_ratio("mce", sums, sums) == (1.0, 1.0, 1.0)
    alike = np.repeat(sums[:1], 3, axis=0), np.repeat(sharper[:1], 3, axis=0)
    _, low, high = calibration.error_ratio("uce", *alike)
    assert low == pytest.approx(high)  # equal networks: nothing to draw anew


def test_sums_of_other_networks_are_refused():
    with pytest.raises(ValueError, match="expected one"):
        calibration.error_ratio("ece", np.ones((2, 5, 3)), np.ones((3, 5, 3)))
