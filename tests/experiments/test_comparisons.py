"""Curves, peaks and scores of several variants, against runs and by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import memlens as ml
from memlens.evaluation import metrics
from memlens.experiments import comparisons
from memlens.tracking import signals

CONFIG = ml.TrainConfig(epochs=8, batch_size=16, lr=0.1, weight_decay=1e-2, patience=2)


@pytest.fixture(scope="module")
def runs():
    data = ml.load("digits").subset(100)
    return [ml.train("mlp", data, replace(CONFIG, seed=seed)) for seed in range(2)]


def test_variants_trained_at_once_are_those_of_the_profile(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    profile = ml.get_profile("digits").scaled(0.02, 100)
    data, bare = profile.load(), ml.MeasureConfig()
    calls, train_many = [], comparisons.train_many
    monkeypatch.setattr(
        comparisons, "train_many", lambda jobs: calls.append(jobs) or train_many(jobs, n_jobs=1)
    )
    variants = {
        "slow": {"model": "narrow_mlp", "measure": bare, "seeds": 1},
        "adam": profile.optimizers["adam"] | {"measure": bare, "seeds": 2},
    }
    found = comparisons.train_variants(profile, data, variants)
    assert len(calls) == 1
    assert [job.model for job in calls[0]] == ["narrow_mlp", "mlp", "mlp"]
    assert {name: len(runs) for name, runs in found.items()} == {"slow": 1, "adam": 2}
    for name, arguments in variants.items():
        for run, expected in zip(found[name], profile.runs(data, **arguments), strict=True):
            pd.testing.assert_frame_equal(run.scores, expected.scores)
    assert not found["adam"][0].scores.equals(found["adam"][1].scores)


def test_curves_begin_before_training(runs):
    top = np.zeros(100, dtype=bool)
    top[[3, 50]] = True
    curves = comparisons.curves_from_start(runs, top)
    for seed, run in enumerate(runs):
        norms = curves["weight_norm"][seed]
        net = ml.build("mlp", 10, run.data.in_shape, seed=seed)
        assert norms[0] == signals.weight_norm(net).item()
        assert norms[1:] == pytest.approx(run.history["weight_norm"].to_numpy())
        for name in ("input_gradient", "val_loss"):
            assert np.isnan(curves[name][seed, 0])
            assert curves[name][seed, 1:] == pytest.approx(run.history[name].to_numpy())
        both = run.trace.grad_l2[:, [3, 50]].mean(axis=1)
        assert curves["input_gradient_top"][seed, 1:] == pytest.approx(both)
    assert not np.allclose(curves["weight_norm"][0], curves["weight_norm"][1])


def test_the_mean_over_all_samples_is_the_curve_of_the_history(runs):
    curves = comparisons.curves_from_start(runs, np.ones(100, dtype=bool))
    assert curves["input_gradient_top"] == pytest.approx(
        curves["input_gradient"], rel=1e-5, nan_ok=True
    )


def test_peaks_count_epochs_done_and_are_nan_where_none_is_called(runs):
    peaks = comparisons.called_peaks({"a": runs, "b": runs[:1]})
    assert peaks["variant"].tolist() == ["a", "a", "b"]
    for row, run in zip(peaks.itertuples(), [*runs, runs[0]], strict=True):
        for name in ("input_gradient", "weight_norm"):
            peak = run.peaks[name]
            expected = np.nan if peak.detected_epoch is None else peak.peak_epoch + 1
            assert getattr(row, name) == pytest.approx(expected, nan_ok=True)
    assert peaks["input_gradient"].notna().any()


def test_similarity_is_that_of_each_optimizer_and_seed():
    rng = np.random.default_rng(0)
    truth = pd.Series(rng.random(30), index=range(100, 130))
    tables = {
        name: [pd.DataFrame({"csg": rng.random(30), "csl": rng.random(30)}, truth.index)
               for _ in range(2)]
        for name in ("sgd", "adam")
    }  # fmt: skip
    found = comparisons.similarity_by_seed(tables, truth)
    assert found.loc[("adam", 1), "csl"] == pytest.approx(
        np.corrcoef(tables["adam"][1]["csl"], truth)[0, 1]
    )
    cosines = comparisons.similarity_by_seed(tables, truth, measure="cosine")
    assert cosines.loc[("sgd", 0), "csg"] == pytest.approx(
        metrics.cosine(tables["sgd"][0]["csg"], truth)
    )
    top = comparisons.similarity_by_seed(tables, truth, top_k=5)
    chosen = truth.nlargest(5).index
    assert top.loc[("sgd", 0), "csg"] == pytest.approx(
        np.corrcoef(tables["sgd"][0]["csg"][chosen], truth[chosen])[0, 1]
    )


def test_agreement_of_pairs_and_its_ceiling():
    a, b = np.array([1.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0])
    scores = {"mlp": [a, b, a], "cnn": [b, b]}
    pairs = comparisons.pair_values(scores)
    assert sorted(pairs["mlp", "mlp"]) == pytest.approx([0.5, 0.5, 1.0])
    assert pairs["cnn", "cnn"] == pytest.approx([1.0])
    assert len(pairs["mlp", "cnn"]) == len(pairs["cnn", "mlp"]) == 6
    table = comparisons.agreement(pairs)
    assert list(table.index) == list(table.columns) == ["mlp", "cnn"]
    assert table.loc["mlp", "mlp"] == pytest.approx(2 / 3)
    assert table.loc["mlp", "cnn"] == table.loc["cnn", "mlp"] == pytest.approx(2 / 3)
    assert comparisons.ceilings(pairs).to_dict() == pytest.approx(
        {"mlp": np.sqrt(2 / 3), "cnn": 1.0}
    )
    ratio = comparisons.over_ceiling(pairs)
    assert ratio.loc["mlp", "cnn"] == pytest.approx((2 / 3) / np.sqrt(2 / 3))
    assert np.diag(ratio) == pytest.approx([1, 1])
    across = comparisons.ratios_across(pairs)
    assert sorted(across) == pytest.approx(sorted(pairs["cnn", "mlp"] / np.sqrt(2 / 3)))


def test_one_seed_has_no_ceiling():
    one = {"mlp": [np.arange(4.0)], "cnn": [np.arange(4.0) ** 2]}
    pairs = comparisons.pair_values(one, metrics.pearson)
    table = comparisons.agreement(pairs)
    assert np.isnan(np.diag(table)).all()
    assert table.loc["mlp", "cnn"] == pytest.approx(metrics.pearson(*one["mlp"], *one["cnn"]))
    assert comparisons.over_ceiling(pairs).isna().all(axis=None)


def test_what_is_left_of_the_gradient():
    gradient = np.array([[np.nan, 1.0, 4.0, 1.0], [np.nan, 2.0, 1.0, 1.0]])
    assert comparisons.left_at_end({"input_gradient": gradient}).tolist() == [0.25, 0.5]


def test_the_norm_falls_rises_to_its_called_peak_and_falls_again():
    norms = [[9.0, 9.5, 6.0, 7.0, 4.0], [9.0, 8.0, 7.0, 8.0, 6.0], [1.0, 2.0, 3.0, 4.0, 5.0]]
    losses = [[np.nan, 3.0, 2.0, 1.0, 0.5]] * 3
    found = comparisons.norm_phases(norms, losses, [3, 1, np.nan])
    assert found.iloc[0].tolist() == [3, 1, 3, 2, 3]  # not the highest of all, 9.5
    assert found.iloc[1].tolist() == [1, 0, 2, 1, 1]
    assert found.iloc[2].isna().all()


def test_one_column_of_the_tables_and_the_largest_gap():
    a, b = pd.DataFrame({"x": [1.0, 0.0, 2.0]}), pd.DataFrame({"x": [0.0, 1.0, 2.0]})
    pairs = comparisons.pairs_of({"mlp": [a, b], "cnn": [b]}, "x")
    assert pairs["mlp", "mlp"] == pytest.approx([4 / 5])
    top = comparisons.pairs_of({"mlp": [a, b]}, "x", np.array([True, True, False]))
    assert top["mlp", "mlp"] == pytest.approx([0.0])
    index = pd.MultiIndex.from_tuples(
        [("mlp", 0), ("mlp", 1), ("cnn", 0), ("bn", 0)], names=["variant", "seed"]
    )
    gaps = comparisons.largest_gap(pd.Series([0.9, 0.7, 0.5, 0.6], index))
    assert sorted(gaps) == pytest.approx([0.2, 0.4])


def test_printed_numbers_stand_under_our_names():
    table = comparisons.printed_optimizers(["csg", "vog", "aum"], ["sgd", "adam"])
    assert table.loc["csg"].tolist() == [0.72, 0.74]
    assert table.loc["vog", "adam"] == 0.66
    assert table.loc["aum"].isna().all()
    top = comparisons.printed_optimizers(["csg"], ["rmsprop"], top=True)
    assert top.loc["csg", "rmsprop"] == 0.64
