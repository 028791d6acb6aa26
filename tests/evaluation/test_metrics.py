import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.spatial.distance
import scipy.stats
from sklearn.linear_model import LinearRegression

from memlens.evaluation import metrics

CORRELATIONS = [metrics.cosine, metrics.pearson, metrics.spearman]
ORACLES = {
    metrics.cosine: lambda a, b: 1 - scipy.spatial.distance.cosine(a, b),
    metrics.pearson: lambda a, b: scipy.stats.pearsonr(a, b).statistic,
    metrics.spearman: lambda a, b: scipy.stats.spearmanr(a, b).statistic,
}


def related(seed=0, n=60, ties=False):
    rng = np.random.default_rng(seed)
    a = rng.exponential(size=n) ** 2
    b = a + rng.normal(size=n)
    return (a.round(), b.round()) if ties else (a, b)


# cosine, pearson, spearman ------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", CORRELATIONS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_correlation_matches_scipy(statistic, ties, seed):
    a, b = related(seed, ties=ties)
    assert statistic(a, b) == pytest.approx(ORACLES[statistic](a, b), abs=1e-12)


@pytest.mark.parametrize("statistic", CORRELATIONS)
def test_correlation_is_symmetric_and_ignores_sample_order(statistic):
    a, b = related()
    order = np.random.default_rng(1).permutation(a.size)
    assert statistic(a, b) == pytest.approx(statistic(b, a), abs=1e-14)
    assert statistic(a, b) == pytest.approx(statistic(a[order], b[order]), abs=1e-12)
    assert statistic(a, b) == pytest.approx(-statistic(a, -b), abs=1e-14)


def test_each_correlation_has_its_own_invariance():
    a, b = related()
    assert metrics.cosine(3 * a, b) == pytest.approx(metrics.cosine(a, b))
    assert metrics.cosine(a + 5, b) != pytest.approx(metrics.cosine(a, b), abs=0.01)
    assert metrics.pearson(3 * a + 5, b) == pytest.approx(metrics.pearson(a, b))
    assert metrics.pearson(np.exp(a), b) != pytest.approx(metrics.pearson(a, b), abs=0.01)
    assert metrics.spearman(np.exp(a), b) == metrics.spearman(a, b)


def test_correlations_by_hand():
    assert metrics.cosine([1, 1], [1, 0]) == pytest.approx(np.sqrt(0.5))
    assert metrics.pearson([1, 2, 3], [5, 3, 1]) == pytest.approx(-1)
    assert metrics.spearman([1, 2, 3], [1, 10, 1000]) == pytest.approx(1)
    # ranks 1.5, 1.5, 3 against 1, 2, 3: 1.5 / sqrt(1.5 * 2)
    assert metrics.spearman([7, 7, 9], [1, 2, 3]) == pytest.approx(np.sqrt(0.75))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9])
@pytest.mark.parametrize("statistic", [metrics.pearson, metrics.spearman])
def test_a_constant_has_no_correlation_and_no_warning(statistic, constant):
    a = np.full(7, constant)  # the mean of seven 0.1 is not 0.1 in floats
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(statistic(a, np.arange(7)))
        assert np.isnan(statistic(np.arange(7), a))


def test_cosine_of_zeros_is_nan_and_of_constants_one():
    assert np.isnan(metrics.cosine([0, 0], [1, 2]))
    assert metrics.cosine([3, 3], [0.1, 0.1]) == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
@pytest.mark.parametrize("statistic", CORRELATIONS)
def test_extreme_scales_neither_overflow_nor_vanish(statistic, scale):
    a, b = related()
    assert statistic(a * scale, b) == pytest.approx(statistic(a, b), abs=1e-12)


@pytest.mark.parametrize("statistic", CORRELATIONS)
def test_correlation_refuses_bad_input(statistic):
    with pytest.raises(ValueError, match=r"b holds 2 non-finite values .* among 3"):
        statistic([1, 2, 3], [np.nan, 1, np.inf])
    with pytest.raises(ValueError, match=r"a has 3 samples, b 2"):
        statistic([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match=r"a has shape \(1, 2\): pass \(n_samples,\)"):
        statistic([[1, 2]], [1, 2])
    with pytest.raises(ValueError, match="at least one sample"):
        statistic([], [])
    with pytest.raises(TypeError, match="a is not numeric"):
        statistic(["cat", "dog"], [1, 2])


def test_two_series_in_another_order_are_refused_and_in_the_same_order_accepted():
    a = pd.Series([1.0, 2.0, 4.0], index=[10, 11, 12])
    with pytest.raises(ValueError, match="a and b have different indices"):
        metrics.pearson(a, a[::-1])
    assert metrics.pearson(a, a.copy()) == pytest.approx(1)


# bootstrap ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", CORRELATIONS)
@pytest.mark.parametrize("ties", [False, True])
def test_the_vectorised_bootstrap_equals_a_loop_over_scipy(statistic, ties):
    a, b = related(n=40, ties=ties)
    slow = metrics.bootstrap_interval(ORACLES[statistic], a, b, n_resamples=300)
    fast = metrics.bootstrap_interval(statistic, a, b, n_resamples=300)
    assert fast == pytest.approx(slow, abs=1e-12)
    assert fast[0] < statistic(a, b) < fast[1]


def test_the_seed_decides_the_interval():
    a, b = related()
    once, again, other = (
        metrics.bootstrap_interval(metrics.pearson, a, b, seed=s) for s in (0, 0, 1)
    )
    assert once == again != other


def test_the_interval_of_a_mean_matches_its_closed_form_and_narrows_with_confidence():
    x = np.random.default_rng(0).normal(size=2000)
    spread = x.std() / np.sqrt(x.size)
    for confidence in (0.95, 0.5):
        low, high = metrics.bootstrap_interval(np.mean, x, confidence=confidence, n_resamples=4000)
        tail, z = (1 - confidence) / 2, scipy.stats.norm.ppf((1 + confidence) / 2)
        # the standard error of a quantile of 4,000 draws
        error = np.sqrt(tail * (1 - tail) / 4000) / scipy.stats.norm.pdf(z) * spread
        wanted = (x.mean() - z * spread, x.mean() + z * spread)
        assert (low, high) == pytest.approx(wanted, abs=4 * error)


def test_the_interval_covers_the_true_correlation_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for seed in range(200):
        a, noise = rng.normal(size=(2, 150))
        b = 0.6 * a + 0.8 * noise  # true correlation 0.6
        low, high = metrics.bootstrap_interval(metrics.pearson, a, b, n_resamples=300, seed=seed)
        hits += low <= 0.6 <= high
    assert 0.89 <= hits / 200 <= 0.99  # 0.95, four standard errors and percentile bias


def test_samples_stay_whole_whatever_the_array():
    x = np.arange(10.0)
    rows = np.stack([x, 2 * x], axis=1)
    low, high = metrics.bootstrap_interval(
        lambda x, rows: np.abs(rows[:, 1] - 2 * x).max(), x, rows, n_resamples=20
    )
    assert (low, high) == (0, 0)


def test_undefined_resamples_are_left_out():
    # three samples: one resample in nine draws a single value, where Pearson is nan
    low, high = metrics.bootstrap_interval(metrics.pearson, [1, 2, 3], [1, 2, 3])
    assert (low, high) == pytest.approx((1, 1))
    assert np.isnan(metrics.bootstrap_interval(metrics.pearson, [1, 1, 1], [1, 2, 3])).all()


def test_a_resample_of_equal_values_is_undefined_although_its_mean_is_rounded():
    x = np.r_[np.full(12, 0.1), 5.3]  # a third of the resamples miss the 5.3
    y = np.random.default_rng(0).normal(size=13)
    assert (x / 5.3)[:1].repeat(13).mean() != x[0] / 5.3

    def slow(a, b):
        return np.nan if np.ptp(a) == 0 else np.corrcoef(a, b)[0, 1]

    assert metrics.bootstrap_interval(metrics.pearson, x, y, n_resamples=200) == pytest.approx(
        metrics.bootstrap_interval(slow, x, y, n_resamples=200)
    )


def test_a_resample_has_as_many_samples_and_reaches_each():
    x = np.arange(25)
    assert metrics.bootstrap_interval(len, x, n_resamples=10) == (25, 25)
    low, high = metrics.bootstrap_interval(np.max, x, confidence=0.999)
    assert high == 24 and low > 10
    low, high = metrics.bootstrap_interval(np.min, x, confidence=0.999)
    assert low == 0 and high < 14


def test_bootstrap_refuses_bad_input():
    with pytest.raises(ValueError, match=r"found shapes \[\(3,\), \(2,\)\]"):
        metrics.bootstrap_interval(np.mean, [1, 2, 3], [1, 2])
    for nothing in ([], [[]], [3.0]):
        with pytest.raises(ValueError, match="found shapes"):
            metrics.bootstrap_interval(np.mean, *nothing)
    with pytest.raises(
        ValueError, match="confidence is 95, n_resamples 1000; expected a share such as 0.95"
    ):
        metrics.bootstrap_interval(np.mean, [1, 2], confidence=95)
    with pytest.raises(ValueError, match="n_resamples 0; .* at least 1"):
        metrics.bootstrap_interval(metrics.pearson, [1, 2], [1, 2], n_resamples=0)
    with pytest.raises(ValueError, match="array 1 holds 1 non-finite"):
        metrics.bootstrap_interval(metrics.pearson, [1, 2], [1, np.nan])


# compare ------------------------------------------------------------------------------------------


def scores_and_truth(n=80):
    a, b = related(3, n)
    index = pd.Index(np.random.default_rng(0).permutation(1000)[:n], name="sample")
    scores = pd.DataFrame({"good": b, "bad": np.sin(37 * a), "flat": 2.5}, index=index)
    return scores, pd.Series(a, index=index)


def test_compare_has_the_promised_form_and_matches_scipy():
    scores, truth = scores_and_truth()
    table = metrics.compare(scores, truth, n_resamples=50)
    assert table.index.name == "score" and list(table.index) == ["good", "bad", "flat"]
    assert list(table.columns) == [
        "n_samples",
        "cosine",
        "constant_cosine",
        "pearson",
        "pearson_low",
        "pearson_high",
        "spearman",
        "spearman_low",
        "spearman_high",
    ]
    for name in ("good", "bad"):
        for statistic in CORRELATIONS:
            assert table.loc[name, statistic.__name__] == pytest.approx(
                ORACLES[statistic](scores[name], truth), abs=1e-12
            )
    for statistic in (metrics.pearson, metrics.spearman):
        bounds = table.loc["bad", [f"{statistic.__name__}_low", f"{statistic.__name__}_high"]]
        assert tuple(bounds) == metrics.bootstrap_interval(
            statistic, scores["bad"], truth, n_resamples=50
        )
    assert (table["n_samples"] == 80).all()


def test_a_constant_score_gets_the_constant_cosine_and_nothing_else():
    scores, truth = scores_and_truth()
    table = metrics.compare(scores, truth, n_resamples=20)
    closed_form = truth.mean() / np.sqrt((truth**2).mean())
    assert table["constant_cosine"].to_numpy() == pytest.approx(closed_form)
    assert table.loc["flat", "cosine"] == pytest.approx(closed_form)
    assert table.loc["flat", "pearson":].isna().all()


def test_truth_is_matched_by_index_and_arrays_by_row():
    scores, truth = scores_and_truth()
    table = metrics.compare(scores, truth, n_resamples=20)
    shuffled = truth.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(metrics.compare(scores, shuffled, n_resamples=20), table)
    pd.testing.assert_frame_equal(metrics.compare(scores, truth.to_numpy(), n_resamples=20), table)
    wrong = metrics.compare(scores, shuffled.to_numpy(), n_resamples=20)
    assert abs(wrong.loc["good", "pearson"]) < 0.5 < table.loc["good", "pearson"]


def test_row_order_of_the_scores_moves_no_estimate():
    scores, truth = scores_and_truth()
    for top_k in (None, 20):
        one = metrics.compare(scores, truth, top_k=top_k, n_resamples=5)
        two = metrics.compare(
            scores.sample(frac=1, random_state=1), truth, top_k=top_k, n_resamples=5
        )
        names = ["cosine", "constant_cosine", "pearson", "spearman"]
        pd.testing.assert_frame_equal(one[names], two[names])


def test_samples_without_truth_are_left_out_and_counted():
    scores, truth = scores_and_truth()
    expected = metrics.compare(scores.iloc[12:], truth.iloc[12:], n_resamples=20)
    unknown, absent = truth.copy(), truth.iloc[12:]
    unknown.iloc[:12] = np.nan
    for holes in (unknown, absent, pd.concat([absent, pd.Series({5000: 1.0})])):
        table = metrics.compare(scores, holes, n_resamples=20)
        pd.testing.assert_frame_equal(table, expected)
    assert (expected["n_samples"] == 68).all()


def test_top_k_keeps_the_samples_with_the_highest_truth():
    truth = np.arange(20.0)
    score = np.where(truth < 15, truth, 34 - truth)  # rises with the truth, falls over the top 5
    table = metrics.compare(pd.DataFrame({"s": score}), truth, top_k=5, n_resamples=20)
    assert table.loc["s", "pearson"] == pytest.approx(-1)
    assert table.loc["s", "n_samples"] == 5
    truth[3] = np.nan  # a sample without truth is never among the top
    table = metrics.compare(pd.DataFrame({"s": score}), truth, top_k=5, n_resamples=20)
    assert table.loc["s", "spearman"] == pytest.approx(-1)


def test_of_equal_truths_the_first_rows_are_kept():
    truth = np.r_[np.full(50, 0.9), 1.0, 1.1, np.full(50, 0.9)]
    scores = pd.DataFrame({"s": -np.arange(102.0)})
    scores.loc[[0, 1, 2, 3, 50, 51], "s"] = [1, 1, 1, 1, 2, 3]
    table = metrics.compare(scores, truth, top_k=6, n_resamples=5)
    assert table.loc["s", "pearson"] == pytest.approx(1)


def test_a_truth_that_is_all_ones_makes_every_cosine_look_good():
    # the trap of a top-k by cosine: nothing is left to rank
    rng = np.random.default_rng(0)
    scores = pd.DataFrame({"noise": 1 + 0.1 * rng.random(30)})
    table = metrics.compare(scores, np.ones(30), n_resamples=5)
    assert table.loc["noise", "cosine"] > 0.99
    assert table.loc["noise", "constant_cosine"] == pytest.approx(1)
    assert np.isnan(table.loc["noise", "pearson"])


def test_printed_numbers_are_matched_by_score_and_the_gap_is_ours_minus_theirs():
    scores, truth = scores_and_truth()
    printed = pd.DataFrame({"cosine": [0.8, 0.9], "pearson": [0.7, 0.6], "note": "x"}, ["bad", "x"])
    table = metrics.compare(scores, truth, printed=printed, n_resamples=5)
    plain = metrics.compare(scores, truth, n_resamples=5)
    pd.testing.assert_frame_equal(table[plain.columns], plain)
    assert list(table.columns[-3:]) == ["printed_cosine", "printed_pearson", "gap"]
    assert table.loc["bad", ["printed_cosine", "printed_pearson"]].tolist() == [0.8, 0.7]
    assert table.loc["bad", "gap"] == table.loc["bad", "pearson"] - 0.7
    assert table.loc[["good", "flat"], ["printed_cosine", "gap"]].isna().all(axis=None)


def test_compare_refuses_bad_input():
    scores, truth = scores_and_truth()
    holed = scores.assign(bad=scores["bad"].where(scores["bad"] > 0))
    with pytest.raises(ValueError, match=r"score column 'bad' holds \d+ non-finite values"):
        metrics.compare(holed, truth)
    with pytest.raises(TypeError, match="score column 'name' is not numeric"):
        metrics.compare(scores.assign(name="cat"), truth)
    with pytest.raises(ValueError, match="0 of 80 samples have a truth .* have the same index"):
        metrics.compare(scores, truth.set_axis(truth.index + 10_000))
    for top_k in (81, 2, 0, -1):
        with pytest.raises(ValueError, match=rf"80 of 80 .* top_k is {top_k}"):
            metrics.compare(scores, truth, top_k=top_k)
    with pytest.raises(ValueError, match=r"truth has shape \(79,\): pass \(80,\) or a Series"):
        metrics.compare(scores, truth.to_numpy()[1:])
    with pytest.raises(ValueError, match=r"truth has shape \(80, 1\)"):
        metrics.compare(scores, truth.to_frame())
    with pytest.raises(ValueError, match="truth holds 1 non-finite"):
        metrics.compare(scores, truth.where(truth < truth.max(), np.inf))
    with pytest.raises(ValueError, match="index label twice"):
        metrics.compare(scores, pd.concat([truth, truth]))
    with pytest.raises(TypeError, match="found ndarray: pass a DataFrame"):
        metrics.compare(scores.to_numpy(), truth)
    with pytest.raises(TypeError, match="each score column once"):
        metrics.compare(pd.concat([scores, scores], axis=1), truth)


# epochs, seeds ------------------------------------------------------------------------------------


def epochs_and_truth(ties=False, shape=(2, 6, 40)):
    rng = np.random.default_rng(5)
    values, truth = rng.exponential(size=shape), rng.exponential(size=shape[-1])
    return (values.round(), truth.round()) if ties else (values, truth)


def slow_by_epoch(values, truth, statistic):
    """One run: epoch by epoch, sample by sample, in plain Python."""
    known = [i for i, t in enumerate(truth) if t == t]
    alone, summed, total = [], [], None
    for row in values:
        measured = row[0] == row[0]
        if measured:
            total = [a + b for a, b in zip(total or [0.0] * len(row), row)]
        for found, part in ((alone, row if measured else None), (summed, total)):
            found.append(
                np.nan
                if part is None
                else statistic(
                    np.array([truth[i] for i in known]), np.array([part[i] for i in known])
                )
            )
    return [alone, summed]


@pytest.mark.parametrize("statistic", CORRELATIONS)
@pytest.mark.parametrize("ties", [False, True])
def test_by_epoch_equals_a_slow_loop_with_scipy(statistic, ties):
    values, truth = epochs_and_truth(ties)
    truth[[3, 17]] = np.nan
    values[0, [0, 3]] = values[1, 5] = np.nan  # epochs not measured: the first, inside, the last
    found = metrics.by_epoch(values, truth, statistic)
    assert found.shape == (2, 2, 6)
    for run in range(2):
        slow = slow_by_epoch(values[run], truth, ORACLES[statistic])
        one = metrics.by_epoch(values[run], truth, statistic)
        for each in (found[:, run], one):
            np.testing.assert_allclose(each, slow, atol=1e-12)
    assert np.isnan(found[:, 0, 0]).all()
    assert np.isnan(found[0, 0, 3]) and found[1, 0, 3] == found[1, 0, 2]


def test_by_epoch_takes_any_statistic_truth_first():
    values, truth = epochs_and_truth()
    values[1, 2] = np.nan
    for statistic in (lambda y_true, score: score @ y_true**2, lambda y_true, score: score.max()):
        found = metrics.by_epoch(values, truth, statistic)
        for run in range(2):
            np.testing.assert_allclose(found[:, run], slow_by_epoch(values[run], truth, statistic))


def test_by_epoch_sums_in_float64_whatever_it_is_given():
    truth = np.arange(5.0)
    values = np.float32([[1e8] * 5, truth])  # in float32 the second epoch would be lost
    assert metrics.by_epoch(values, truth)[1] == pytest.approx([np.nan, 1], nan_ok=True)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_by_epoch_neither_overflows_nor_vanishes(scale):
    values, truth = epochs_and_truth()
    np.testing.assert_allclose(
        metrics.by_epoch(values * scale, truth), metrics.by_epoch(values, truth), atol=1e-12
    )


def test_by_epoch_finds_the_epoch_that_was_planted():
    values, truth = epochs_and_truth()
    values[1, 4] = 1000 * truth
    alone, summed = metrics.by_epoch(values, pd.Series(truth))
    assert np.argmax(alone[1]) == 4 and alone[1, 4] == pytest.approx(1)
    assert summed[1, 4] > 0.99 > 0.9 > summed[1, 3]


def test_by_epoch_refuses_bad_input():
    values, truth = epochs_and_truth()
    with pytest.raises(ValueError, match=r"values have shape \(2, 6, 40\), truth \(39,\)"):
        metrics.by_epoch(values, truth[1:])
    with pytest.raises(ValueError, match=r"values have shape \(40,\)"):
        metrics.by_epoch(truth, truth)
    for hole in (np.nan, np.inf):
        holed = values.copy()
        holed[1, 2, 7] = hole
        with pytest.raises(ValueError, match="values have 1 non-finite numbers in measured epochs"):
            metrics.by_epoch(holed, truth)
    with pytest.raises(ValueError, match="truth has shape .* at least one sample"):
        metrics.by_epoch(values, truth * np.nan)


def frames_of_seeds(n=3):
    rng = np.random.default_rng(0)
    index = pd.Index(["csg", "csl"], name="score")
    return [pd.DataFrame(rng.normal(size=(2, 3)), index, ["auroc", "low", "n"]) for _ in range(n)]


def test_mean_over_seeds_by_hand():
    mean, std = metrics.mean_over(frames := frames_of_seeds())
    for row in ("csg", "csl"):
        for column in ("auroc", "low", "n"):
            cells = [frame.loc[row, column] for frame in frames]
            centre = sum(cells) / 3
            assert mean.loc[row, column] == pytest.approx(centre)
            assert std.loc[row, column] == pytest.approx(
                (sum((cell - centre) ** 2 for cell in cells) / 2) ** 0.5
            )
    assert mean.index.name == std.index.name == "score"
    assert metrics.mean_over(iter(frames)).mean.equals(mean)


def test_a_hole_in_one_seed_is_no_mean_of_the_others():
    frames = frames_of_seeds()
    frames[1].loc["csl", "low"] = np.nan
    mean, std = metrics.mean_over(frames)
    assert np.isnan(mean.loc["csl", "low"]) and np.isnan(std.loc["csl", "low"])
    assert mean.notna().sum().sum() == std.notna().sum().sum() == 5


def test_one_seed_has_a_mean_and_no_spread():
    frame = frames_of_seeds(1)[0]
    mean, std = metrics.mean_over([frame])
    pd.testing.assert_frame_equal(mean, frame)
    assert std.isna().all(axis=None)


def test_a_spread_gives_one_column_and_text():
    frames = [pd.DataFrame({"pearson": [a, 0.5], "gap": [np.nan, 0]}) for a in (0.70, 0.80, 0.81)]
    spread = metrics.mean_over(frames)
    column = spread.of("pearson")
    assert list(column.columns) == ["mean", "std"]
    assert column["mean"].tolist() == pytest.approx([0.77, 0.5])
    assert spread.text()["pearson"].tolist() == ["0.77 ± 0.06", "0.50 ± 0.00"]
    assert spread.text()["gap"].tolist() == ["", "0.00 ± 0.00"]
    assert spread.text(3).iloc[0, 0] == "0.770 ± 0.061"
    assert metrics.mean_over(frames[:1]).text().iloc[0, 0] == "0.70"


def test_mean_over_refuses_frames_that_do_not_match():
    first, second, _ = frames_of_seeds()
    for other in (
        second[::-1],
        second[["low", "auroc", "n"]],
        second.iloc[:1],
        second.rename(index={"csl": "aum"}),
        second.drop(columns="n"),
    ):
        with pytest.raises(
            ValueError, match="rows or columns of table 1 differ from those of table 0"
        ):
            metrics.mean_over([first, other])
    with pytest.raises(ValueError, match="found no table"):
        metrics.mean_over([])
    with pytest.raises(TypeError, match=r"a table is not numeric \(.*\): drop the columns"):
        metrics.mean_over([first.assign(verdict="holds")])


# binned mean, line --------------------------------------------------------------------------------


def test_binned_mean_matches_scipy():
    x, y = related(2, 400)
    table = metrics.binned_mean(x, y, 12)
    assert list(table.columns) == ["left", "right", "x_mean", "y_mean", "y_std", "n"]
    for column, values, what in (
        ("y_mean", y, "mean"),
        ("y_std", y, "std"),
        ("x_mean", x, "mean"),
        ("n", y, "count"),
    ):
        oracle, edges, _ = scipy.stats.binned_statistic(x, values, what, bins=12)
        used = scipy.stats.binned_statistic(x, y, "count", bins=12).statistic > 0
        assert table[column].to_numpy() == pytest.approx(oracle[used])
        assert table["left"].to_numpy() == pytest.approx(edges[:-1][used])
        assert table["right"].to_numpy() == pytest.approx(edges[1:][used])
    assert 0 < len(table) < 12  # the long tail leaves bins empty: they are absent


def test_bins_hold_their_left_edge_and_the_last_both():
    table = metrics.binned_mean([0, 1, 2, 3, 4], [0, 10, 20, 30, 50], n_bins=2)
    assert table["n"].tolist() == [2, 3]
    assert table["y_mean"].tolist() == [5, pytest.approx(100 / 3)]
    order = [4, 2, 0, 3, 1]
    again = metrics.binned_mean(np.arange(5)[order], np.array([0, 10, 20, 30, 50])[order], 2)
    pd.testing.assert_frame_equal(again, table)


def test_a_constant_x_is_one_bin_and_a_single_sample_has_no_spread():
    table = metrics.binned_mean([2, 2, 2], [1, 2, 3], n_bins=5)
    assert table[["left", "right", "y_mean", "n"]].to_numpy().tolist() == [[2, 2, 2, 3]]
    assert metrics.binned_mean([0, 1], [5, 7], n_bins=2)["y_std"].tolist() == [0, 0]


def test_binned_mean_refuses_bad_input():
    with pytest.raises(ValueError, match="n_bins is 0"):
        metrics.binned_mean([1, 2], [1, 2], n_bins=0)
    with pytest.raises(ValueError, match="x holds 1 non-finite"):
        metrics.binned_mean([1, np.nan], [1, 2])


def test_linear_fit_matches_scipy():
    x, y = related(4)
    fit, oracle = metrics.linear_fit(x, y), scipy.stats.linregress(x, y)
    assert fit == pytest.approx((oracle.slope, oracle.intercept, oracle.rvalue**2))
    assert fit._fields == ("slope", "intercept", "r2")


def test_weighted_fit_matches_scikit_learn_and_repeated_samples():
    x, y = related(5)
    weights = np.random.default_rng(0).integers(0, 5, size=x.size)
    fit = metrics.linear_fit(x, y, weights)
    model = LinearRegression().fit(x[:, None], y, weights)
    assert fit == pytest.approx(
        (model.coef_[0], model.intercept_, model.score(x[:, None], y, weights))
    )
    assert fit == pytest.approx(metrics.linear_fit(x.repeat(weights), y.repeat(weights)))
    assert metrics.linear_fit(x, y, 7 * weights) == pytest.approx(fit)


def test_linear_fit_of_a_line_is_the_line():
    x = np.arange(5)
    assert metrics.linear_fit(x, 3 * x - 2) == pytest.approx((3, -2, 1))
    flat = metrics.linear_fit(x, np.full(5, 0.1))
    assert flat[:2] == pytest.approx((0, 0.1)) and np.isnan(flat.r2)


def test_linear_fit_refuses_bad_input():
    for x, weights in (([2, 2, 2], None), ([1, 1, 5], [1, 1, 0]), ([1, 2, 3], [0, 0, 0])):
        with pytest.raises(
            ValueError, match="samples have a positive weight .* at least two different x"
        ):
            metrics.linear_fit(x, [1, 2, 3], weights)
    with pytest.raises(ValueError, match=r"lowest weight is -1.0; expected weights >= 0"):
        metrics.linear_fit([1, 2, 3], [1, 2, 3], [1, -1, 1])
    with pytest.raises(ValueError, match="weights has 2 samples, x 3"):
        metrics.linear_fit([1, 2, 3], [1, 2, 3], [1, 1])


# associations -------------------------------------------------------------------------------------


def test_holm_by_hand():
    # sorted .005, .01, .03, .04 times 4, 3, 2, 1 is .02, .03, .06, .04; .04 is lifted to .06
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.6, 0.7]).tolist() == [1, 1]
    assert metrics.holm([]).size == 0


def test_holm_rejects_what_the_step_down_rule_rejects():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p_values = rng.random(8) ** 3
        rejected, order = np.zeros(8, bool), np.argsort(p_values)
        for step, i in enumerate(order):  # stop at the first that fails alpha / tests left
            if p_values[i] > 0.1 / (8 - step):
                break
            rejected[i] = True
        assert ((metrics.holm(p_values) <= 0.1) == rejected).all()


def test_holm_leaves_out_tests_that_could_not_be_made():
    corrected = metrics.holm([0.01, np.nan, 0.02])
    assert corrected[[0, 2]] == pytest.approx([0.02, 0.02]) and np.isnan(corrected[1])
    with pytest.raises(ValueError, match=r"expected \(n_tests,\), in \[0, 1\]"):
        metrics.holm([0.5, 1.2])


def attributes_and_score(seed, n=300, n_attributes=10, strength=0.0):
    rng = np.random.default_rng(seed)
    attributes = pd.DataFrame(rng.normal(size=(n, n_attributes))).add_prefix("a")
    return attributes, np.exp(strength * attributes["a3"] + rng.normal(size=n)).rename("csg")


def test_associations_match_scipy_and_the_bootstrap():
    attributes, score = attributes_and_score(0, strength=0.3)
    table = metrics.associations(score, attributes, n_resamples=50)
    assert table.index.name == "attribute"
    assert list(table.columns) == ["spearman", "low", "high", "p_value", "p_holm"]
    for name in attributes:
        oracle = scipy.stats.spearmanr(attributes[name], score)
        assert table.loc[name, "spearman"] == pytest.approx(oracle.statistic)
        assert table.loc[name, "p_value"] == pytest.approx(oracle.pvalue, rel=1e-9)
        assert tuple(table.loc[name, ["low", "high"]]) == metrics.bootstrap_interval(
            metrics.spearman, attributes[name], score, n_resamples=50
        )
    assert table["p_holm"].to_numpy() == pytest.approx(metrics.holm(table["p_value"]))


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_association_is_found_and_gone_when_shuffled(seed):
    attributes, score = attributes_and_score(seed, strength=0.5)
    table = metrics.associations(score, attributes, n_resamples=200)
    assert table.index[table["p_holm"] < 0.01].tolist() == ["a3"]
    assert table.loc["a3", "low"] > 0
    rng = np.random.default_rng(seed)
    shuffled = metrics.associations(rng.permutation(score), attributes, n_resamples=200)
    assert (shuffled["p_holm"] > 0.01).all()


def test_holm_keeps_false_findings_at_the_level_where_raw_p_values_do_not():
    raw = corrected = 0
    for seed in range(200):
        attributes, score = attributes_and_score(seed, n=100)
        table = metrics.associations(score, attributes, n_resamples=1)
        raw += (table["p_value"] < 0.05).any()
        corrected += (table["p_holm"] < 0.05).any()
    assert raw / 200 > 0.3  # 1 - 0.95^10 = 0.40
    assert corrected / 200 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_associations_match_samples_by_index():
    attributes, score = attributes_and_score(1, strength=0.5)
    table = metrics.associations(score, attributes, n_resamples=5)
    moved = metrics.associations(score.sample(frac=1, random_state=0), attributes, n_resamples=5)
    pd.testing.assert_frame_equal(moved, table)


def test_perfect_and_constant_attributes():
    score = np.arange(30.0)
    attributes = pd.DataFrame({"same": score**3, "back": -score, "flat": 1.0})
    table = metrics.associations(score, attributes, n_resamples=50)
    assert table.loc["same", ["spearman", "p_value"]].tolist() == pytest.approx([1, 0], abs=1e-9)
    assert table.loc["back", ["spearman", "p_holm"]].tolist() == pytest.approx([-1, 0], abs=1e-9)
    assert table.loc["flat"].isna().all()


def test_associations_refuse_bad_input():
    attributes, score = attributes_and_score(0, n=20)
    with pytest.raises(ValueError, match="attribute column 'a2' holds 20 non-finite"):
        metrics.associations(score, attributes.assign(a2=np.nan))
    with pytest.raises(ValueError, match="score holds 5 non-finite"):
        metrics.associations(score.iloc[5:], attributes)
    with pytest.raises(ValueError, match="found 2 samples; .* at least 3"):
        metrics.associations(score[:2], attributes[:2])
    with pytest.raises(TypeError, match="found Series: pass a DataFrame"):
        metrics.associations(score, attributes["a1"])


def test_group_fits_by_hand():
    x = np.array([0.0, 0.1, 0.2, 0.9, 1.0])
    y = np.array([0.0, 1.0, 2.0, 5.0, 4.0])
    fits = metrics.group_fits(x, y, n_bins=3)  # groups of three and two samples, one is empty
    for name in ("order", "line", "by_count"):  # two means are on a line
        assert fits[name] == pytest.approx(1)
    thirds = metrics.linear_fit([0.05, 0.55, 1.0], [0.5, 3.5, 4.0]).r2
    assert fits["equal_groups"] == pytest.approx(thirds)
    swapped = metrics.linear_fit([0.5, 2.0, 4.5], [0.05, 0.2, 0.95]).r2
    assert fits["swapped"] == pytest.approx(swapped)


def test_group_fits_of_a_line_and_of_a_constant():
    x = np.linspace(0, 1, 300)
    assert all(value == pytest.approx(1) for value in metrics.group_fits(x, 3 * x - 1).values())
    falling = metrics.group_fits(x, -x)
    assert falling["order"] == -1 and falling["line"] == pytest.approx(1)
    constant = metrics.group_fits(np.zeros(9), np.arange(9.0))
    assert all(np.isnan(value) for name, value in constant.items() if name != "swapped")
