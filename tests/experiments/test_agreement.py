"""The tables behind notebook 02, against small ones made by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import memlens as ml
from memlens.ensembles import costs
from memlens.evaluation import metrics
from memlens.experiments import agreement, paper
from memlens.tracking import signals

RNG = np.random.default_rng(0)
TRUTH = pd.Series(RNG.random(12), index=np.arange(100, 112))
FRAMES = [pd.DataFrame(RNG.random((12, 2)), TRUTH.index, ["csg", "csl"]) for _ in range(3)]


@pytest.fixture(scope="module")
def run():
    data = ml.load("digits").subset(60)
    measure = ml.MeasureConfig(posthoc=True, n_directions=2, every=2)
    return ml.train("mlp", data, ml.TrainConfig(epochs=5, batch_size=16), measure)


@pytest.mark.parametrize("statistic", ["pearson", "spearman", "cosine"])
def test_by_seed_has_a_row_for_each_score_and_a_column_for_each_seed(statistic):
    table = agreement.by_seed(FRAMES, TRUTH, statistic=statistic)
    assert table.shape == (2, 3)
    expected = getattr(metrics, statistic)(FRAMES[2]["csl"], TRUTH)
    assert table.loc["csl", 2] == pytest.approx(expected)
    top = agreement.by_seed(FRAMES, TRUTH, top_k=5, statistic=statistic)
    kept = TRUTH.nlargest(5).index
    expected = getattr(metrics, statistic)(FRAMES[0]["csg"].loc[kept], TRUTH.loc[kept])
    assert top.loc["csg", 0] == pytest.approx(expected)


def test_printed_correlations_stand_under_our_names():
    printed = agreement.printed_pearson(["csg", "csl", "curvature_norm", "label_error"])
    assert printed["all samples"].tolist()[:3] == [0.72, 0.79, 0.49]
    assert printed.loc["csl", "most memorized tenth"] == 0.4
    assert printed.loc["label_error"].isna().all()


def test_a_batch_leaks_only_through_batch_norm():
    data = ml.load("digits").subset(40)
    nets = {name: ml.build(name, data.n_classes, data.in_shape) for name in ("mlp", "mlp_bn")}
    leak = agreement.batch_leak(nets, data, n_samples=16)
    assert leak["network"].tolist() == ["mlp"] * 16 + ["mlp_bn"] * 16
    plain, normed = (leak[leak["network"] == name] for name in nets)
    np.testing.assert_allclose(plain["batch"], plain["own"], rtol=1e-4)
    assert (normed["batch"] / normed["own"] - 1).abs().max() > 0.01


def test_the_ladder_averages_the_splits_so_far():
    errors = [frame["csg"] for frame in FRAMES]
    few = pd.DataFrame({3: FRAMES[0]["csl"], 6: FRAMES[1]["csl"], 9: FRAMES[2]["csl"]})
    table = agreement.ladder(errors, few, TRUTH)
    assert table.index.tolist() == [3, 6, 9] and table.index.name == "networks"
    mean = (errors[0] + errors[1]) / 2
    assert table.loc[6, "held_out_probability"] == pytest.approx(metrics.pearson(mean, TRUTH))
    assert table.loc[9, "few_network_memorization"] == pytest.approx(few[9].corr(TRUTH))


def test_the_forms_of_curvature_are_those_of_the_last_epoch_and_of_the_mean(run):
    forms = agreement.curvature_forms(run)
    x, y = run.data.normalise(run.data.train.images), run.data.train.labels
    end = signals.curvature(run.snapshot("last"), x, y)
    np.testing.assert_allclose(forms["end"], end.squared, rtol=1e-3)
    np.testing.assert_allclose(forms["end_norm"], end.norm, rtol=1e-3)
    np.testing.assert_allclose(forms["curvature"], run.posthoc_scores["curvature"])
    garg_roy = signals.adversarial_curvature(run.snapshot("last"), x, y)
    np.testing.assert_allclose(forms["garg_roy"], garg_roy, rtol=1e-3)


def test_curvature_cosines_stand_beside_the_printed_table(run):
    truth = pd.Series(RNG.random(60), run.data.train.index.numpy())
    cosines = agreement.curvature_cosines({"no decay": [run], "decay": [run, run]}, truth, 6)
    assert cosines["decay", "all"].shape == (5, 2)
    kept = truth.nlargest(6).index
    expected = metrics.cosine(agreement.curvature_forms(run)["end"].loc[kept], truth.loc[kept])
    assert cosines["no decay", "top"].loc["end", 0] == pytest.approx(expected)
    table = agreement.beside_printed(cosines)
    assert table.loc["curvature", ("printed", "decay", "all")] == 0.82
    assert table.loc["end_norm", ("printed", "no decay", "top")] == 0.06
    assert table.loc["garg_roy", ("printed", "decay", "top")] == 0.24
    assert table.loc["end", ("ours", "no decay", "top")] == pytest.approx(expected)


def test_settings_of_curvature_share_their_first_directions(run):
    truth = pd.Series(RNG.random(60), run.data.train.index.numpy())
    table = agreement.curvature_settings([run], truth, steps=(1e-2, 1e-3), n_directions=(1, 3))
    assert table.index.tolist() == [(0, 1e-2, 1), (0, 1e-2, 3), (0, 1e-3, 1), (0, 1e-3, 3)]
    norms = [run.evaluate(signals.product_norms, stop, n_directions=1, step=1e-3)[:, 0]
             for stop in agreement.END_STOPS]  # fmt: skip
    expected = metrics.cosine(np.mean(np.square(norms), 0), truth.to_numpy())
    assert table.loc[(0, 1e-3, 1), "Eq. 6"] == pytest.approx(expected)
    expected = metrics.cosine(np.mean(norms, 0), truth.to_numpy())
    assert table.loc[(0, 1e-3, 1), "norm"] == pytest.approx(expected)


def test_the_largest_difference_varies_one_setting_only():
    index = pd.MultiIndex.from_product([[0, 1], [1, 2], [5, 9]], names=["seed", "h", "n"])
    table = pd.DataFrame({"Eq. 6": [0.1, 0.2, 0.5, 0.3, 0.0, 0.0, 0.0, 0.7]}, index)
    assert agreement.largest_difference(table, "h").to_dict() == pytest.approx({0: 0.4, 1: 0.7})
    assert agreement.largest_difference(table, "n").to_dict() == pytest.approx({0: 0.2, 1: 0.7})


ROWS = RNG.random((2, 6, 12))
ROWS[:, [1, 4]] = np.nan


def test_bands_of_an_epoch_and_of_the_sum():
    bands = agreement.epoch_bands({"decay": ROWS}, TRUTH.to_numpy())
    assert bands["series"].unique().tolist() == ["decay, one epoch", "decay, sum"]
    alone, summed = metrics.by_epoch(ROWS, TRUTH.to_numpy())
    means = bands.groupby("series", sort=False)["mean"].apply(list)
    np.testing.assert_allclose(means["decay, one epoch"], alone.mean(0))
    np.testing.assert_allclose(means["decay, sum"], summed.mean(0))
    assert agreement.epoch_bands({"": ROWS}, TRUTH.to_numpy())["series"].iloc[0] == "one epoch"


def test_the_difference_to_the_sum_is_taken_at_the_last_measured_epoch():
    alone, summed = metrics.by_epoch(ROWS, TRUTH.to_numpy())
    found = agreement.sum_minus_epoch(ROWS, TRUTH.to_numpy(), [4, 99])  # 3 was measured, and 5
    expected = [summed[0, 3] - alone[0, 3], summed[1, 5] - alone[1, 5]]
    np.testing.assert_allclose(found, expected)


def test_rise_and_fall_look_at_measured_epochs_only():
    rows = np.full((1, 5, 2), np.nan)
    rows[0, [0, 2, 3]] = [[1, 1], [2, 6], [1, 3]]
    peak, fall = agreement.rise_and_fall(rows)
    assert peak.tolist() == [2] and fall.tolist() == [0.5]
    assert agreement.measured_epochs(rows).tolist() == [0, 2, 3]


def test_each_run_is_read_at_its_own_stop():
    runs = [SimpleNamespace(snapshot_epoch=lambda stop, e=e: e) for e in (2, 0)]
    assert agreement.at_stop([[1, 2, 3], [4, 5, 6]], runs, "last").tolist() == [3, 4]


def test_squared_gradients_sum_up_to_csg_and_the_stops_are_means(run):
    rows = agreement.squared_gradients([run, run])
    assert rows.shape == (2, 5, 60)
    np.testing.assert_allclose(rows[0].sum(0), run.scores["csg"], rtol=1e-6)
    curvature = agreement.posthoc_rows([run], "curvature_norm")
    assert curvature.shape == (1, 5, 60) and curvature.dtype == np.float64
    np.testing.assert_array_equal(curvature[0], run.posthoc_trace.curvature_norm)
    stops = agreement.mean_stops([run, run])
    assert stops["lowest validation loss"] == run.snapshot_epoch("best_val")
    history = agreement.history_bands([run])
    curvature = history[history["series"] == "curvature"]["mean"]
    assert curvature.notna().tolist() == [True, False, True, False, True]


def test_costs_stand_beside_the_printed_ones_in_their_order():
    names = list(agreement.COMPARED)
    cost = pd.Series(np.arange(len(names), 0, -1.0), names)
    table = agreement.cost_table(cost, pd.Series(0.5, names))
    assert table.index.tolist() == names[::-1]
    assert table.loc["early_csg", ["compute_low", "compute_high"]].tolist() == [0.1, 0.3]
    assert table.loc["csg", ["compute_low", "compute_high"]].isna().all()
    assert table.loc["samis_loss", "printed_pearson"] == 0.69
    assert set(names) <= set(costs.families().index)


def test_families_say_what_a_score_needs():
    families = costs.families()
    assert families["csg"] == families["early_csg"] == "recorded during training"
    assert families["curvature"] == families["tracin"] == "needs extra passes"
    assert families["label_error"] == families["samis_loss"] == "needs more trainings"
    printed = paper.printed(families.index, "csg_table1_similarity")
    assert printed["cifar100_pearson"].notna().sum() >= 12


def test_only_the_top_has_a_truth():
    top = agreement.only_top(TRUTH, 4)
    assert top.dropna().index.tolist() == sorted(TRUTH.nlargest(4).index)
    assert top.isna().sum() == 8
