"""Detection measures, also with ties, against scikit-learn; the interval by simulation."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import ndtr
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from memlens.evaluation import detection


def labels_and_score(seed=0, n=300, ties=False):
    rng = np.random.default_rng(seed)
    y_true = rng.random(n) < 0.2
    y_score = rng.normal(size=n) + y_true
    return y_true, y_score.round() if ties else y_score


def rates_of_all_thresholds(y_true, y_score):
    flagged = [y_score >= cut for cut in [*np.unique(y_score), np.inf]]
    return [
        ((f & ~y_true).sum() / (~y_true).sum(), (f & y_true).sum() / y_true.sum()) for f in flagged
    ]


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_the_chance_to_outrank_and_matches_scikit_learn(ties):
    y_true, y_score = labels_and_score(ties=ties)
    positive, negative = y_score[y_true][:, None], y_score[~y_true]
    wins = (positive > negative).mean() + 0.5 * (positive == negative).mean()
    assert detection.auroc(y_true, y_score) == pytest.approx(wins)
    assert detection.auroc(y_true, y_score) == pytest.approx(roc_auc_score(y_true, y_score))
    assert detection.auroc(y_true, -y_score) == pytest.approx(1 - wins)
    assert detection.auroc(y_true.astype(int).tolist(), np.ones(300)) == 0.5


def test_average_precision_matches_scikit_learn_and_chance():
    y_true, y_score = labels_and_score(ties=True)
    oracle = average_precision_score(y_true, y_score)
    assert detection.average_precision(y_true, y_score) == pytest.approx(oracle)
    assert detection.average_precision(y_true, np.ones(300)) == pytest.approx(y_true.mean())
    assert detection.average_precision([0, 1, 0, 1], [4, 3, 2, 1]) == pytest.approx(0.5)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("target", [0, 0.001, 0.05, 0.5, 0.95, 1])
def test_operating_points_match_a_search_over_all_thresholds(ties, target):
    y_true, y_score = labels_and_score(ties=ties)
    points = rates_of_all_thresholds(y_true, y_score)
    assert detection.fpr_at_tpr(y_true, y_score, target) == pytest.approx(
        min(fpr for fpr, tpr in points if tpr >= target)
    )
    assert detection.tpr_at_fpr(y_true, y_score, target) == pytest.approx(
        max(tpr for fpr, tpr in points if fpr <= target)
    )


def test_several_rates_are_read_off_at_once():
    y_true, y_score = labels_and_score(ties=True)
    rates = [0.5, 0, 0.013, 1]
    each = [detection.tpr_at_fpr(y_true, y_score, rate) for rate in rates]
    assert detection.tprs_at(y_true, y_score, rates).tolist() == each
    with pytest.raises(ValueError, match="fpr is 1.5"):
        detection.tprs_at(y_true, y_score, [0.1, 1.5])


def test_operating_points_by_hand():
    y_true, y_score = [1, 1, 0, 1, 0], [5, 4, 3, 2, 1]
    assert detection.fpr_at_tpr(y_true, y_score) == 0.5  # the third positive costs one negative
    assert detection.fpr_at_tpr(y_true, y_score, 0.6) == 0
    assert detection.tpr_at_fpr(y_true, y_score, 0) == pytest.approx(2 / 3)
    assert detection.tpr_at_fpr(y_true, y_score, 0.5) == 1
    twenty = np.r_[np.ones(20), np.zeros(10)]
    score = np.r_[np.full(19, 2.0), 0.0, np.ones(10)]
    assert detection.fpr_at_tpr(twenty, score) == 0  # 19 of 20 is 95 %, exactly enough
    # tied pairs make a straight diagonal, whose inner points are thresholds too
    y_true, y_score = [0, 1] * 4, [4, 4, 3, 3, 2, 2, 1, 1]
    assert detection.fpr_at_tpr(y_true, y_score, 0.5) == 0.5
    assert detection.tpr_at_fpr(y_true, y_score, 0.5) == 0.5


def test_balanced_accuracy_is_that_of_the_best_threshold():
    for ties in (False, True):
        y_true, y_score = labels_and_score(ties=ties)
        rates = rates_of_all_thresholds(y_true, y_score)
        best = max((tpr + 1 - fpr) / 2 for fpr, tpr in rates)
        assert detection.balanced_accuracy(y_true, y_score) == pytest.approx(best)
    assert detection.balanced_accuracy([0, 0, 1, 1], [1, 2, 3, 4]) == 1
    assert detection.balanced_accuracy([1, 1, 0, 0], [1, 2, 3, 4]) == 0.5  # all or none
    assert detection.balanced_accuracy([0, 1, 0], [1, 2, 3]) == 0.75


def test_equal_error_accuracy_is_taken_where_both_errors_are_nearest():
    y_true, y_score = labels_and_score()
    rates = rates_of_all_thresholds(y_true, y_score)
    fpr, tpr = min(rates, key=lambda point: abs(point[0] + point[1] - 1))
    found = detection.equal_error_accuracy(y_true, y_score)
    assert found == pytest.approx((tpr + 1 - fpr) / 2, abs=2 / 60)  # ties of the distance
    assert found <= detection.balanced_accuracy(y_true, y_score)
    # a lopsided curve: one positive in two is found at once, the others come last
    lopsided = [1, 1, 0, 0, 0, 0, 1, 1], [8, 7, 6, 5, 4, 3, 2, 1]
    assert detection.balanced_accuracy(*lopsided) == 0.75
    assert detection.equal_error_accuracy(*lopsided) == 0.5  # at FPR and TPR of one half


def test_precision_at_counts_the_top():
    y_true, y_score = [1, 0, 1, 1, 0, 0, 0, 0, 0, 0], np.arange(10, 0, -1)
    assert detection.precision_at(y_true, y_score, 0.1) == 1
    assert detection.precision_at(y_true, y_score, 0.4) == 0.75
    assert detection.precision_at(y_true, y_score, 1) == pytest.approx(0.3)
    assert detection.precision_at(y_true, y_score) == 1  # at least one sample
    assert detection.precision_at(y_true, y_score, 0.29) == 0.5  # rounded down to 2


def test_precision_at_the_noise_rate_is_one_for_a_perfect_score():
    for n, rate in ((100, 0.29), (1437, 0.1), (1437, 0.01)):
        y_true = np.arange(n) < int(n * rate + 1e-9)
        assert detection.precision_at(y_true, y_true + 0.0, rate) == 1
    hundred = np.arange(100) < 29
    assert detection.precision_at(~hundred, -np.arange(100.0), 0.29) == 0
    # 0.29 * 100 is 28.999999999999996: cut short, the 29th of the top would not be looked at
    assert detection.precision_at(np.arange(100) == 28, -np.arange(100.0), 0.29) == 1 / 29


def test_precision_at_counts_ties_by_their_mean_in_any_order():
    y_true, y_score = np.array([1, 0, 1, 0, 0]), np.array([9, 5, 5, 5, 1])
    expected = (1 + 1 * (1 / 3)) / 2  # one above the cut, a third of a positive per tied place
    assert detection.precision_at(y_true, y_score, 0.4) == pytest.approx(expected)
    order = [3, 4, 2, 0, 1]
    assert detection.precision_at(y_true[order], y_score[order], 0.4) == pytest.approx(expected)


@pytest.mark.parametrize(
    "measure",
    [
        detection.auroc,
        detection.average_precision,
        detection.fpr_at_tpr,
        detection.precision_at,
        lambda y_true, y_score: detection.tpr_at_fpr(y_true, y_score, 0.1),
        detection.auroc_interval,
    ],
)
def test_detection_refuses_bad_input(measure):
    with pytest.raises(ValueError, match=r"y_true holds \[0.0\]; expected both 0 and 1"):
        measure([0, 0, 0], [1, 2, 3])
    with pytest.raises(ValueError, match=r"y_true holds \[1.0\]; expected both 0 and 1"):
        measure([True, True], [1, 2])
    with pytest.raises(ValueError, match=r"y_true holds \[-1.0, 1.0\]; expected both 0 and 1"):
        measure([-1, 1, 1], [1, 2, 3])
    with pytest.raises(ValueError, match="y_true has 3 samples, y_score 2"):
        measure([0, 1, 1], [1, 2])
    with pytest.raises(ValueError, match="y_score holds 1 non-finite"):
        measure([0, 1, 1], [1, 2, np.nan])


@pytest.mark.parametrize(
    "measure", [detection.fpr_at_tpr, detection.tpr_at_fpr, detection.precision_at]
)
@pytest.mark.parametrize("percent", [95, -0.1])
def test_a_percentage_is_no_share(measure, percent):
    with pytest.raises(ValueError, match=f" is {percent}; expected a share between 0 and 1"):
        measure([0, 1], [1, 2], percent)


# interval of the AUROC ----------------------------------------------------------------------------


def slow_interval(y_true, y_score, z=1.959964):
    """Places pair by pair, two samples of variance A (1 - A) added to each class, Wilson's form."""
    positive, negative = y_score[y_true == 1], y_score[y_true == 0]
    won = [[(p > n) + 0.5 * (p == n) for n in negative] for p in positive]
    of_positive = [sum(row) / len(negative) for row in won]
    of_negative = [sum(row[j] for row in won) / len(positive) for j in range(len(negative))]
    area = sum(of_positive) / len(positive)
    variance = 0.0
    for places in (of_positive, of_negative):
        squares = sum((place - area) ** 2 for place in places) + 2 * area * (1 - area)
        variance += squares / len(places) ** 2
    n = area * (1 - area) / variance  # as many independent samples
    centre = (area + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(area * (1 - area) / n + z**2 / (4 * n**2))
    return centre - half, centre + half


@pytest.mark.parametrize("ties", [False, True])
def test_the_interval_equals_a_slow_loop_and_holds_the_auroc(ties):
    for seed in range(5):
        y_true, y_score = labels_and_score(seed, 60, ties)
        low, high = detection.auroc_interval(y_true, y_score)
        assert (low, high) == pytest.approx(slow_interval(y_true, y_score), abs=1e-7)
        assert low < detection.auroc(y_true, y_score) < high
        flipped = detection.auroc_interval(y_true, -y_score)
        assert flipped == pytest.approx((1 - high, 1 - low))
        assert detection.auroc_interval(~y_true, -y_score) == pytest.approx((low, high))


def test_the_interval_is_close_to_that_of_delong_where_samples_are_many():
    y_true, y_score = labels_and_score(n=4000)
    positive, negative = y_score[y_true], y_score[~y_true]
    above = (positive[:, None] > negative).astype(float)
    variance = above.mean(1).var(ddof=1) / len(positive) + above.mean(0).var(ddof=1) / len(negative)
    low, high = detection.auroc_interval(y_true, y_score)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.03)


@pytest.mark.parametrize(("n_positive", "n_negative"), [(14, 400), (72, 400), (200, 200)])
@pytest.mark.parametrize("distance", [0.0, 1.2, 2.7])  # AUROC 0.5, 0.8, 0.97
def test_the_interval_covers_the_true_auroc_as_often_as_it_says(n_positive, n_negative, distance):
    # the AUROC of two normals at this distance is Phi(distance / sqrt 2)
    true, y_true = ndtr(distance / np.sqrt(2)), np.repeat([1, 0], [n_positive, n_negative])
    rng, hits, n_trials = np.random.default_rng(0), 0, 400
    for _ in range(n_trials):
        score = rng.normal(size=y_true.size) + distance * y_true
        low, high = detection.auroc_interval(y_true, score)
        hits += low <= true <= high
    assert 0.91 <= hits / n_trials <= 0.995  # 0.95, within 4 standard errors to the low side


def test_a_perfect_order_and_a_constant_score_have_an_interval_too():
    y_true = np.repeat([1, 0], [14, 400])
    low, high = detection.auroc_interval(y_true, y_true)
    assert 0.9 < low < 1 and high == pytest.approx(1)
    one_wrong = y_true + np.r_[-0.5, np.zeros(12), 0, 0.7, np.zeros(399)]  # of 5,600 pairs
    assert detection.auroc_interval(y_true, one_wrong)[0] == pytest.approx(low, abs=0.01)
    low, high = detection.auroc_interval(y_true, np.ones(414))
    assert (low + high) / 2 == pytest.approx(0.5) and 0.1 < high - low < 0.5


def test_the_interval_widens_with_confidence_and_shrinks_with_samples():
    y_true, y_score = labels_and_score(n=1000)
    widths = [
        np.ptp(detection.auroc_interval(y_true, y_score, confidence=c))
        for c in (0.5, 0.9, 0.95, 0.99)
    ]
    assert widths == sorted(widths) and widths[0] > 0
    assert np.ptp(detection.auroc_interval(y_true[:250], y_score[:250])) > 1.5 * widths[2]
    for confidence in (0, 1, 95):
        with pytest.raises(ValueError, match=f"confidence is {confidence}; .* such as 0.95"):
            detection.auroc_interval(y_true, y_score, confidence=confidence)


# evaluate_detectors -------------------------------------------------------------------------------


def frame_of_scores(n=300):
    y_true, good = labels_and_score(n=n)
    rng = np.random.default_rng(1)
    scores = pd.DataFrame(
        {
            "good": good,
            "tied": good.round(),
            "chance": rng.normal(size=n),
            "constant": 1.0,
            "backwards": -good,
        }
    )
    return y_true, scores.set_axis(rng.permutation(1000)[:n])


def test_evaluate_detectors_matches_scikit_learn_on_ties_too():
    y_true, scores = frame_of_scores()
    table = detection.evaluate_detectors(y_true, scores)
    assert table.index.tolist() == list(scores) and table.index.name == "score"
    assert list(table) == ["auroc", "average_precision", "fpr_at_95_tpr", "precision_at_1_percent"]
    for name, column in scores.items():
        row, (fpr, tpr, _) = table.loc[name], roc_curve(y_true, column, drop_intermediate=False)
        assert row["auroc"] == pytest.approx(roc_auc_score(y_true, column))
        assert row["average_precision"] == pytest.approx(average_precision_score(y_true, column))
        assert row["fpr_at_95_tpr"] == pytest.approx(fpr[tpr >= 0.95].min())
        assert row["precision_at_1_percent"] == detection.precision_at(y_true, column, 0.01)
    first = np.argsort(-scores["good"].to_numpy())[:3]
    assert table.loc["good", "precision_at_1_percent"] == y_true[first].mean()


def test_evaluate_detectors_ranks_what_was_planted():
    y_true, scores = frame_of_scores()
    table = detection.evaluate_detectors(y_true, scores)
    assert table["auroc"].idxmax() == "good" and table["auroc"].idxmin() == "backwards"
    assert table["fpr_at_95_tpr"].idxmin() == "good"
    assert table.loc["constant"].tolist() == pytest.approx([0.5, y_true.mean(), 1, y_true.mean()])
    assert table.loc["good", "auroc"] + table.loc["backwards", "auroc"] == pytest.approx(1)


def test_evaluate_detectors_does_not_depend_on_the_order_of_samples():
    y_true, scores = frame_of_scores()
    table = detection.evaluate_detectors(y_true, scores, confidence=0.9)
    truth = pd.Series(y_true, index=scores.index)
    for moved in (truth, truth.sample(frac=1, random_state=0), torch.tensor(y_true)):
        pd.testing.assert_frame_equal(
            detection.evaluate_detectors(moved, scores, confidence=0.9), table
        )
    shuffled = scores.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(
        detection.evaluate_detectors(truth, shuffled, confidence=0.9), table
    )
    by_position = detection.evaluate_detectors(y_true, shuffled)  # rows no longer belong together
    assert by_position.loc["good", "auroc"] < 0.65 < table.loc["good", "auroc"]


def test_evaluate_detectors_adds_intervals_and_takes_other_measures():
    y_true, scores = frame_of_scores()
    table = detection.evaluate_detectors(
        y_true, scores, metrics={"auroc": detection.auroc}, confidence=0.9
    )
    assert list(table) == ["auroc", "auroc_low", "auroc_high"]
    for name, column in scores.items():
        bounds = detection.auroc_interval(y_true, column, confidence=0.9)
        assert tuple(table.loc[name, ["auroc_low", "auroc_high"]]) == bounds


def test_evaluate_detectors_refuses_bad_input():
    y_true, scores = frame_of_scores()
    for hole in (np.nan, np.inf):
        with pytest.raises(ValueError, match="score column 'chance' holds 1 non-finite"):
            detection.evaluate_detectors(y_true, scores.assign(chance=np.r_[hole, np.zeros(299)]))
    with pytest.raises(TypeError, match="score column 'name' is not numeric"):
        detection.evaluate_detectors(y_true, scores.assign(name="cat"))
    with pytest.raises(ValueError, match=r"y_true holds \[0.0\]; expected both 0 and 1"):
        detection.evaluate_detectors(np.zeros(300), scores)
    with pytest.raises(ValueError, match=r"y_true has shape \(299,\): pass \(300,\)"):
        detection.evaluate_detectors(y_true[1:], scores)
    with pytest.raises(ValueError, match="y_true holds 10 non-finite"):
        detection.evaluate_detectors(pd.Series(y_true, scores.index)[10:], scores)
    with pytest.raises(TypeError, match="found ndarray: pass a DataFrame"):
        detection.evaluate_detectors(y_true, scores.to_numpy())


def test_the_area_by_epoch_is_that_of_the_sum_so_far():
    rng = np.random.default_rng(0)
    values, truth = rng.random((4, 50)), rng.random(50) < 0.3
    expected = [detection.auroc(truth, values[:n].sum(0)) for n in (1, 2, 3, 4)]
    np.testing.assert_allclose(detection.auroc_by_epoch(truth, values), expected)


def test_several_trainings_are_evaluated_by_their_own_positives():
    truth = {(0.1, 0): [0, 1, 1], (0.1, 1): [1, 0, 0]}
    scores = {key: pd.DataFrame({"csg": [1.0, 2.0, 3.0]}) for key in truth}
    table = detection.evaluate_many(truth, scores, ["noise", "seed"])
    assert table.index.names == ["noise", "seed", "score"]
    assert table["auroc"].to_dict() == {(0.1, 0, "csg"): 1.0, (0.1, 1, "csg"): 0.0}
