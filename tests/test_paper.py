"""The printed numbers are what the papers print, and ours are put beside the right ones."""

import numpy as np
import pandas as pd
import pytest

from memlens import metrics, paper

ROWS = {
    "csg_table1_similarity": 12,
    "csg_table2_calibration": 15,
    "csg_table3_privacy": 30,
    "csg_table4_mislabel_auroc": 70,
    "csg_table5_architecture": 4,
    "csg_table6_optimizers": 80,
    "csg_table7_adam_gradient_norm": 8,
    "csg_table8_compute": 3,
    "csg_table9_tpr_at_low_fpr": 45,
    "csl_poster_duplicates_auroc": 12,
    "csl_poster_mislabel_auroc": 48,
    "csl_poster_similarity": 20,
    "curvature_table1_similarity": 4,
    "curvature_table2_mislabel_auroc": 102,
    "curvature_table3_hyperparameters": 9,
    "curvature_table4_end_of_training": 3,
    "curvature_table5_architectures": 4,
    "curvature_table6_7_cross_architecture": 32,
}


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    truth = pd.Series(rng.random(200))
    columns = {"csg": 0.1, "early_csg": 0.2, "csl": 0.3, "csg_plain": 0.4}
    frame = {name: truth + noise * rng.random(200) for name, noise in columns.items()}
    return pd.DataFrame(frame), truth


def value(name, column, **where):
    rows = paper.table(name, **where)
    assert len(rows) == 1
    return rows[column].item()


def test_every_table_is_there_with_every_row():
    tables = paper.tables()
    assert list(tables.columns) == ["name", "paper", "title", "rows"]
    assert dict(zip(tables["name"], tables["rows"], strict=True)) == ROWS
    assert set(tables["paper"]) == set(paper.PAPERS)
    assert tables["title"].is_unique


@pytest.mark.parametrize(
    ("name", "column", "where", "expected"),
    [
        ("csg_table1_similarity", "cifar100_cosine", {"proxy": "csg"}, 0.84),
        ("csg_table1_similarity", "cifar100_pearson", {"proxy": "csg"}, 0.72),
        ("csg_table1_similarity", "imagenet_pearson", {"proxy": "csl"}, 0.64),
        ("csg_table2_calibration", "std", {"metric": "uce", "checkpoint": "peak_stop"}, 0.4648),
        ("csg_table4_mislabel_auroc", "mean",
         {"dataset": "cifar100", "method": "csg", "noise": 0.1}, 0.9904),
        ("csg_table6_optimizers", "pearson",
         {"proxy": "csg", "subset": "top5k", "optimizer": "adagrad"}, 0.54),
        ("csg_table7_adam_gradient_norm", "input_gradient_norm", {"epoch": 100}, 3.6039),
        ("csg_table9_tpr_at_low_fpr", "mean_percent",
         {"attack": "lira", "checkpoint": "last_epoch", "fpr": 1e-2}, 22.77),
        ("csl_poster_duplicates_auroc", "mean", {"dataset": "cifar100", "method": "csl"}, 0.9886),
        ("curvature_table1_similarity", "cosine",
         {"dataset": "cifar100", "weight_decay": 1e-4}, 0.82),
        ("curvature_table2_mislabel_auroc", "auroc_percent",
         {"dataset": "cifar100", "method": "curvature", "noise": 0.1}, 84.3),
    ],
)  # fmt: skip
def test_printed_values(name, column, where, expected):
    assert value(name, column, **where) == expected


def test_a_dagger_is_nan():
    grand = paper.table("csg_table1_similarity", proxy="grand")
    assert grand[["imagenet_cosine", "imagenet_pearson"]].isna().all(axis=None)


def test_an_unknown_table_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match="unknown table 'csg_table11'.*csg_table1_similarity"):
        paper.table("csg_table11")
    with pytest.raises(ValueError, match="unknown table 'doubts'"):
        paper.table("doubts")


def test_an_unknown_column_or_value_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match="has no column 'score'; it has: proxy"):
        paper.table("csg_table1_similarity", score="csg")
    with pytest.raises(ValueError, match="no row with proxy = 'cgs'; it has: final_loss"):
        paper.table("csg_table1_similarity", proxy="cgs")


def test_reading_a_table_gives_a_fresh_one():
    first = paper.table("csg_table5_architecture")
    first.loc[0, "cosine"] = 0
    assert paper.table("csg_table5_architecture").loc[0, "cosine"] == 0.84


def test_doubts_name_tables_and_their_numbers_are_in_them():
    doubts = paper.doubts()
    assert set(doubts["table"]) <= set(ROWS)
    assert not doubts.duplicated().any()
    calibration = {"checkpoint": "peak_stop"}
    mce = value("csg_table2_calibration", "mean", metric="mce", **calibration)
    for metric in ("msce", "uce"):  # a mean over bins cannot exceed the largest bin; sums fit
        printed = value("csg_table2_calibration", "mean", metric=metric, **calibration)
        assert mce < printed < 15 * mce
    ece = paper.table("csg_table2_calibration", metric="ece").set_index("checkpoint")["mean"]
    assert ece["peak_stop"] > ece["last_epoch"]


def test_doubt_the_csl_row_of_table_4_is_the_poster_shifted():
    late = paper.table("csg_table4_mislabel_auroc", dataset="cifar10", method="csl")
    early = paper.table("csl_poster_mislabel_auroc", dataset="cifar10", method="csl")
    assert list(late["mean"][:3]) == list(early["mean"][:3])
    assert list(late["noise"][:3]) == [0.05, 0.1, 0.2]
    assert list(early["noise"][:3]) == [0.01, 0.02, 0.05]


def test_doubt_the_papers_disagree_with_each_other():
    ours, here = "csg_table1_similarity", {"dataset": "imagenet", "architecture": "resnet50"}
    assert value("csg_table5_architecture", "cosine", **here) == 0.78
    assert value(ours, "imagenet_cosine", proxy="csg") == 0.71
    assert value(ours, "imagenet_cosine", proxy="sgal") == 0.78
    assert value(ours, "cifar100_cosine", proxy="curvature") == 0.69
    cost = paper.table("csg_table8_compute").set_index("method")
    assert cost.loc["curvature", "relative_high"] / cost.loc["csg", "relative_low"] > 140
    assert paper.table("csg_table4_mislabel_auroc", method="cl")["std"].max() > 0.15
    where = {"dataset": "cifar100", "method": "curvature", "noise": 0.01}
    assert value("csl_poster_mislabel_auroc", "mean", **where) == 0.9856
    assert value("curvature_table2_mislabel_auroc", "auroc_percent", **where) == 90.9


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([True], "holds"),
        ([True, True], "holds"),
        ([True, False], "holds in part"),
        ((np.True_, np.False_), "holds in part"),
        ([False, False], "does not hold here"),
        (np.array([False]), "does not hold here"),
    ],
)
def test_verdict(parts, expected):
    assert paper.verdict(parts) == expected


def test_verdict_refuses_no_parts_and_numbers():
    with pytest.raises(ValueError, match="at least one part"):
        paper.verdict([])
    with pytest.raises(TypeError, match=r"True or False, got 0\.79"):
        paper.verdict([True, 0.79])


def test_compare_puts_the_printed_numbers_beside_ours(scores):
    frame, truth = scores
    table = paper.compare(frame, truth, n_resamples=20)
    ours = metrics.compare(frame, truth, n_resamples=20)
    pd.testing.assert_frame_equal(table[ours.columns], ours)
    assert list(table.columns[-3:]) == ["printed_cosine", "printed_pearson", "gap"]
    assert table.loc["csl", ["printed_cosine", "printed_pearson"]].tolist() == [0.87, 0.79]
    assert table.loc["early_csg", "printed_pearson"] == 0.72  # the papers' cheap CSG
    assert table.loc["csg_plain", ["printed_cosine", "printed_pearson", "gap"]].isna().all()
    assert table.loc["csg", "gap"] == pytest.approx(ours.loc["csg", "pearson"] - 0.72, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dataset": "imagenet"}, 0.52),
        ({"top_k": 50}, np.nan),
        ({"table": "csg_table6_optimizers", "where": {"optimizer": "adam"}}, 0.74),
        ({"table": "csg_table6_optimizers", "where": {"optimizer": "adam"}, "top_k": 50}, 0.64),
    ],
)
def test_compare_picks_data_set_subset_and_optimizer(scores, options, expected):
    table = paper.compare(*scores, n_resamples=5, **options)
    assert table.loc["csg", "printed_pearson"] == pytest.approx(expected, nan_ok=True)


def test_compare_takes_the_poster_s_top_rows(scores):
    table = paper.compare(*scores, table="csl_poster_similarity", top_k=50, n_resamples=5)
    assert table.loc["csl", "printed_pearson"] == 0.4
    assert table.loc["csl", "n_samples"] == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "csg_table6_optimizers"}, "several rows for one score"),
        ({"table": "csg_table2_calibration"}, "prints no similarity of scores"),
        ({"dataset": "mnist"}, "no similarity for the data set 'mnist'"),
        ({"table": "csg_table6_optimizers", "dataset": "imagenet"}, "data set 'imagenet'"),
        ({"table": "csl_poster_similarity", "dataset": "mnist"}, "no row with dataset = 'mnist'"),
    ],
)
def test_compare_refuses_a_table_without_one_number_for_a_score(scores, options, message):
    with pytest.raises(ValueError, match=message):
        paper.compare(*scores, n_resamples=5, **options)
