"""The printed numbers are what the papers print, and ours are put beside the right ones."""

import numpy as np
import pandas as pd
import pytest

import memlens as ml
from memlens.evaluation import metrics
from memlens.experiments import paper
from memlens.experiments.paper import evidence

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
    columns = {"csg": 0.1, "early_csg": 0.2, "csl": 0.3, "csg_plain": 0.4, "vog": 0.5}
    frame = {name: truth + noise * rng.random(200) for name, noise in columns.items()}
    return pd.DataFrame(frame), truth


def value(name, column, **where):
    rows = paper.table(name, **where)
    assert len(rows) == 1
    return rows[column].item()


def test_every_table_is_there_with_every_row():
    tables = paper.tables()
    assert list(tables.columns) == ["name", "paper", "title"]
    assert {name: len(paper.table(name)) for name in tables["name"]} == ROWS
    assert set(tables["paper"]) == set(paper.PAPERS)
    assert tables["title"].is_unique


@pytest.mark.parametrize(
    ("name", "column", "where", "expected"),
    [
        ("csg_table1_similarity", "cifar100_cosine", {"proxy": "csg"}, 0.84),
        ("csg_table1_similarity", "cifar100_pearson", {"proxy": "csg"}, 0.72),
        ("csg_table1_similarity", "imagenet_pearson", {"proxy": "csl"}, 0.64),
        ("csg_table2_calibration", "std", {"metric": "uce", "snapshot": "peak_stop"}, 0.4648),
        ("csg_table4_mislabel_auroc", "mean",
         {"dataset": "cifar100", "method": "csg", "noise": 0.1}, 0.9904),
        ("csg_table6_optimizers", "pearson",
         {"proxy": "csg", "subset": "top5k", "optimizer": "adagrad"}, 0.54),
        ("csg_table7_adam_gradient_norm", "input_gradient_norm", {"epoch": 100}, 3.6039),
        ("csg_table9_tpr_at_low_fpr", "mean_percent",
         {"attack": "lira", "snapshot": "last_epoch", "fpr": 1e-2}, 22.77),
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
    with pytest.raises(ValueError, match="unknown table 'discrepancies'"):
        paper.table("discrepancies")


def test_an_unknown_column_or_value_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match="has no column 'score'; it has: proxy"):
        paper.table("csg_table1_similarity", score="csg")
    with pytest.raises(ValueError, match="no row with proxy = 'cgs'; it has: final_loss"):
        paper.table("csg_table1_similarity", proxy="cgs")


def test_reading_a_table_gives_a_fresh_one():
    first = paper.table("csg_table5_architecture")
    first.loc[0, "cosine"] = 0
    assert paper.table("csg_table5_architecture").loc[0, "cosine"] == 0.84


# ---------------------------------------------------------------- what does not add up


def of(discrepancy):
    """The text of a discrepancy; the test that asks for it recomputes the numbers in it."""
    return paper.discrepancies().set_index("id").loc[discrepancy, "discrepancy"]


def all_in(text, *numbers):
    return all(number in text for number in numbers)


def test_discrepancies_have_a_short_id_a_kind_papers_a_table_a_text_and_a_remedy():
    discrepancies = paper.discrepancies()
    columns = ["id", "kind", "paper", "table", "discrepancy", "resolved_by"]
    assert list(discrepancies.columns) == columns
    for unique in ("id", "discrepancy", "resolved_by"):
        assert discrepancies[unique].is_unique
    assert discrepancies["id"].str.fullmatch(r"[a-z0-9]+(-[a-z0-9]+){1,4}").all()
    assert set(discrepancies["kind"]) == set(paper.KINDS)
    assert set(discrepancies["table"]) <= {*ROWS, ""}
    assert not discrepancies.isna().any(axis=None)
    for papers in discrepancies["paper"]:
        assert set(papers.split(", ")) <= set(paper.PAPERS)
    owner = paper.tables().set_index("name")["paper"]
    for row in discrepancies[discrepancies["table"] != ""].itertuples():
        assert owner[row.table] in row.paper.split(", ")  # the table is of one of its papers


def test_discrepancies_of_one_kind():
    listed = pd.concat([paper.discrepancies(kind) for kind in paper.KINDS])
    assert sorted(listed["id"]) == sorted(paper.discrepancies()["id"])
    assert list(paper.discrepancies("data")["id"])[0] == "csg-fz-architecture"
    with pytest.raises(ValueError, match="no row with kind = 'date'"):
        paper.discrepancies("date")


def test_discrepancy_ids_stay_as_they_are_because_notebooks_name_them():
    assert list(paper.discrepancies()["id"]) == [
        "csg-table2-sums", "csg-table2-ece", "csg-table5-resnet50", "csg-table4-csl-shifted",
        "csg-table4-confident-learning", "curvature-table2-auroc", "curvature-table1-cosine",
        "csg-table8-140-times", "csg-table8-trainings", "csg-fz-architecture", "csg-table1-samis",
        "csg-table1-exchanged", "csg-table6-forgetting",
        "csl-poster-learning-time", "cosine-of-a-constant",
        "csg-table3-order", "csg-table9-lira-concave", "csg-a1-curvature-sign",
        "csg-c2-algebra", "csg-table8-five-orders", "csg-table6-top5k", "csg-table2-spread",
        "csg-table4-matching", "curvature-table2-outperforms", "csg-table7-adam-peak",
        "csg-eq3-norm", "csg-eq4-learning-time", "curvature-eq6-norm", "csg-c3-covariance",
        "csg-theorem4-2-constant", "csg-fig15-whale", "curvature-sec4-2-duplicates",
    ]  # fmt: skip


@pytest.mark.parametrize("snapshot", ["peak_stop", "val_loss_stop", "last_epoch"])
def test_discrepancy_table_2_prints_sums_over_bins(snapshot):
    def mean(metric):
        return value("csg_table2_calibration", "mean", metric=metric, snapshot=snapshot)

    mce, msce, uce = mean("mce"), mean("msce"), mean("uce")
    assert msce > mce**2 and uce > mce  # no mean over bins exceeds the largest bin
    assert uce**2 > 10 * msce  # a sum over M bins: at most M times the sum of squares (Cauchy)
    assert uce**2 < 15 * msce
    assert msce < 15 * mce**2 and uce < 15 * mce
    if snapshot == "peak_stop":
        assert all_in(of("csg-table2-sums"), f"{msce:.2f}", f"{uce:.2f}", f"{mce:.2f}")


def test_discrepancy_ece_is_worse_at_the_early_stop():
    ece = paper.table("csg_table2_calibration", metric="ece").set_index("snapshot")["mean"]
    assert ece["peak_stop"] > ece["last_epoch"]
    assert all_in(of("csg-table2-ece"), f"{ece['peak_stop']:.3f}", f"{ece['last_epoch']:.3f}")


def test_discrepancy_the_csl_row_of_table_4_is_the_poster_shifted():
    def means(name, dataset, method):
        rows = paper.table(name, dataset=dataset, method=method)
        return rows.set_index("noise")["mean"].to_dict()

    table, poster = "csg_table4_mislabel_auroc", "csl_poster_mislabel_auroc"
    late, early = means(table, "cifar10", "csl"), means(poster, "cifar10", "csl")
    assert [late[n] for n in (0.05, 0.1, 0.2)] == [early[n] for n in (0.01, 0.02, 0.05)]
    late, early = means(table, "cifar100", "csl"), means(poster, "cifar100", "csl")
    assert [late[n] for n in (0.05, 0.1)] == [early[n] for n in (0.01, 0.02)]
    for dataset in ("cifar10", "cifar100"):
        for method in ("cl", "in_confidence", "ssft", "curvature", "csl"):
            late, early = means(table, dataset, method), means(poster, dataset, method)
            same = [late[n] == early[n] for n in (0.05, 0.1)]
            assert same == ([False, False] if method == "csl" else [True, True]), (dataset, method)


def test_discrepancy_attacks_that_model_more_find_less_at_the_early_stop():
    rows = paper.table("csg_table3_privacy", metric="auroc")
    auroc = rows.pivot(index="attack", columns="snapshot", values="mean_percent")
    simple, modelled = ["mast", "calibrated_loss"], ["curvature", "lira"]
    for stop in ("peak_stop", "val_loss_stop"):
        assert auroc.loc[simple, stop].min() > auroc.loc[modelled, stop].max()
    assert auroc.loc[simple, "last_epoch"].max() < auroc.loc[modelled, "last_epoch"].min()
    named = auroc.loc[[*simple, *modelled], ["peak_stop", "last_epoch"]].to_numpy().ravel()
    assert all_in(of("csg-table3-order"), *(f"{number:.1f}" for number in named))


def test_discrepancy_the_rates_of_lira_are_no_concave_curve():
    where = {"attack": "lira", "snapshot": "last_epoch"}
    low, high = (
        value("csg_table9_tpr_at_low_fpr", "mean_percent", fpr=fpr, **where) for fpr in (1e-3, 1e-2)
    )
    assert low < high * 1e-3 / 1e-2  # the chord from the origin lies above the curve
    mixed = high / 10
    assert all_in(of("csg-table9-lira-concave"), f"{high:.1f} %", f"{low:.1f} %", f"{mixed:.1f} %")


def test_discrepancy_confident_learning_collapses():
    rows = paper.table("csg_table4_mislabel_auroc", method="cl")
    assert rows["mean"].min() == 0.6662 and rows["std"].max() == 0.1565
    assert (rows.loc[rows["noise"] <= 0.1, "std"] < 0.01).all()
    assert all_in(of("csg-table4-confident-learning"), "0.67", "0.16")


def test_discrepancy_resnet50_has_two_similarities():
    here = {"dataset": "imagenet", "architecture": "resnet50"}
    five = value("csg_table5_architecture", "cosine", **here)
    one, sgal = (
        value("csg_table1_similarity", "imagenet_cosine", proxy=p) for p in ("csg", "sgal")
    )
    assert one < five == sgal
    assert all_in(of("csg-table5-resnet50"), f"{five}", f"{one}", f"{sgal}")


def test_discrepancy_the_auroc_of_curvature_falls_in_one_paper_and_rises_in_two():
    where = {"dataset": "cifar100", "method": "curvature"}
    own = paper.table("curvature_table2_mislabel_auroc", **where)["auroc_percent"] / 100
    poster = paper.table("csl_poster_mislabel_auroc", **where)["mean"]
    later = paper.table("csg_table4_mislabel_auroc", **where)["mean"]
    assert own.is_monotonic_decreasing
    assert poster.is_monotonic_increasing and later.is_monotonic_increasing
    ends = [f"{x:.3f}" for s in (own, poster) for x in (s.iloc[0], s.iloc[-1])]
    assert all_in(of("curvature-table2-auroc"), *ends, f"{later.iloc[-1]:.3f}")


def test_discrepancy_the_cosine_of_curvature_differs_between_the_papers():
    own = value("curvature_table1_similarity", "cosine", dataset="cifar100", weight_decay=1e-4)
    csg = value("csg_table1_similarity", "cifar100_cosine", proxy="curvature")
    where = {"dataset": "cifar100", "subset": "all", "proxy": "curvature"}
    poster = paper.table("csl_poster_similarity", **where)
    assert poster["cosine"].item() == csg
    assert poster["architecture"].item() == "inception"
    assert all_in(of("curvature-table1-cosine"), f"{own}", f"{csg}")


def test_discrepancy_140_times_compares_two_lengths():
    cost = paper.table("csg_table8_compute").set_index("method")
    full, stopped = cost.loc["curvature", "relative_high"], cost.loc["csg", "relative_low"]
    assert 140 < full / stopped < 145
    assert round(full / 1) == 14  # CSG of a whole training costs one training
    assert full == pytest.approx((3 + 4 * 10) / 3, abs=0.01)  # n = 10, a step is 3 forwards
    assert all_in(of("csg-table8-140-times"), f"{full}", f"{stopped}", "n = 10", "14")


def test_discrepancy_30000_are_forwards_not_trainings():
    cost = paper.table("csg_table8_compute").set_index("method").loc["feldman_zhang"]
    assert cost["cost_low_in_FTm"] / 3 == cost["relative_low"]
    assert cost["cost_high_in_FTm"] / 3 == 10_000 != cost["relative_high"]
    assert cost["relative_high"] == cost["cost_high_in_FTm"]


def test_discrepancy_the_nets_of_the_published_memorization():
    assert "small_inception" in set(paper.table("csg_table5_architecture")["architecture"])
    assert all_in(of("csg-fz-architecture"), "Inception", "4,000 ResNet50", "70 %")


def test_discrepancy_samis_has_two_similarities():
    row = paper.table("csg_table1_similarity", proxy="samis").iloc[0]
    printed = f"{row['cifar100_cosine']}", f"{row['cifar100_pearson']}"
    assert all_in(of("csg-table1-samis"), *printed, "0.92", "0.87")


def test_discrepancy_grand_and_samis_have_each_others_pearson():
    table = paper.table("csg_table1_similarity").set_index("proxy")
    cosine, pearson = table["cifar100_cosine"], table["cifar100_pearson"]

    def bounds(r):
        return paper.possible_cosines(r, 0.615)

    assert cosine["grand"] > bounds(pearson["grand"] + 0.005)[1] + 0.005
    assert cosine["samis"] < bounds(pearson["samis"] - 0.005)[0] - 0.004
    for score, other in (("grand", "samis"), ("samis", "grand")):
        low, high = bounds(pearson[other])
        assert low < cosine[score] < high
    again = paper.table("csg_table6_optimizers", proxy="grand", subset="all", optimizer="adam")
    assert again[["cosine", "pearson"]].values.tolist() == [[cosine["grand"], pearson["samis"]]]
    ends = [f"{bounds(pearson['grand'])[1]:.2f}", f"{bounds(pearson['samis'])[0]:.2f}"]
    assert all_in(of("csg-table1-exchanged"), *ends, "0.615", "0.81", "0.53", "0.36", "0.69")


def test_discrepancy_forgetting_stands_alone_under_adamw_and_adagrad():
    rows = paper.table("csg_table6_optimizers", subset="top5k").set_index(["optimizer", "proxy"])
    text = of("csg-table6-forgetting")
    ratio = rows["pearson"] / rows["cosine"]
    odd = ratio[rows["cosine"] > 0.7].sort_values().index[:2]
    assert set(odd) == {("adamw", "forgetting"), ("adagrad", "forgetting")}
    for optimizer in ("adam", "adamw", "adagrad", "rmsprop"):
        row = rows.loc[(optimizer, "forgetting")]
        assert all_in(text, f"{row['cosine']:.2f}", f"{row['pearson']:.2f}")


def test_discrepancy_the_learning_time_of_the_poster_is_near_chance():
    auroc = paper.table("csl_poster_mislabel_auroc", method="learning_time")["mean"]
    text = of("csl-poster-learning-time")
    assert all_in(text, f"{auroc.min():.2f}", f"{auroc.max():.2f}")
    first = value(
        "csl_poster_mislabel_auroc", "mean", dataset="cifar10", method="learning_time", noise=0.01
    )
    assert all_in(text, f"{first:.3f}", f"{1 - first:.3f}")


def test_discrepancy_a_constant_has_a_cosine():
    assert all_in(of("cosine-of-a-constant"), "0.615", "0.9998")
    printed = paper.table("csl_poster_similarity", dataset="cifar100", subset="top5k")
    assert (printed["cosine"] < 0.9998).all()  # what all of them print is below a constant's


def test_discrepancy_equation_26_has_another_factor_than_25():
    rng = np.random.default_rng(0)
    time, eta, kappa, step, rho, variance, drop = rng.uniform(0.5, 2, 7)
    tau = kappa / (time * eta) * drop + kappa * step * rho * variance / 2  # Eq. 25
    right = eta * tau / kappa - eta * step * rho * variance / 2
    printed = eta * tau / kappa - kappa * step * rho * variance / 2
    assert time * right == pytest.approx(drop)
    assert time * printed != pytest.approx(drop, rel=0.01)
    assert all_in(of("csg-c2-algebra"), "τη/κ - η η_s ρ Γ²/2", "τη/κ - κ η_s ρ Γ²/2")


def test_discrepancy_five_orders_take_ten_thousand_trainings():
    cost = paper.table("csg_table8_compute").set_index("method")
    stopped = cost.loc["csg", "relative_low"]
    assert cost.loc["feldman_zhang", "cost_high_in_FTm"] / 3 / stopped == pytest.approx(1e5)
    published = 4000 * 0.7
    assert all_in(of("csg-table8-five-orders"), f"{published / stopped:,.0f}", f"{published:,.0f}")


def test_discrepancy_the_top_5k_of_table_6_are_not_those_of_the_poster():
    late = paper.table("csg_table6_optimizers", subset="top5k", proxy="csl")["pearson"]
    where = {"dataset": "cifar100", "subset": "top5k", "proxy": "csl"}
    poster = value("csl_poster_similarity", "pearson", **where)
    everything = paper.table("csg_table6_optimizers", subset="all", proxy="csl")["pearson"]
    left = evidence.pearson_left_on_top(everything.max())
    assert left < 0.1 < poster < late.min()
    numbers = [late.min(), late.max(), poster, everything.max(), left]
    assert all_in(of("csg-table6-top5k"), *(f"{number:.2f}" for number in numbers), "0.9998")


def test_discrepancy_calibration_improves_by_less_than_its_spread():
    table = paper.table("csg_table2_calibration").set_index(["metric", "snapshot"])
    for metric in ("mce", "msce", "uce"):
        early, late = table.loc[(metric, "peak_stop")], table.loc[(metric, "last_epoch")]
        gain = late["mean"] - early["mean"]
        assert 0 < gain < early["std"] / 4
        numbers = f"{gain:.3f}", f"{early['std']:.3f}"
        assert all_in(of("csg-table2-spread"), *numbers), metric


def test_discrepancy_csl_is_ahead_of_csg_where_they_are_said_to_match():
    rows = paper.table("csg_table4_mislabel_auroc", dataset="cifar10")
    table = rows.set_index(["method", "noise"])
    text = of("csg-table4-matching")
    for noise in (0.05, 0.1):
        csl, csg = table.loc[("csl", noise)], table.loc[("csg", noise)]
        assert csl["mean"] - csg["mean"] >= 4.99 * csg["std"]
        assert f"{csl['mean'] - csg['mean']:.4f}" in text
    leads = [table.loc[("csg", n), "mean"] - table.loc[("curvature", n), "mean"]
             for n in (0.2, 0.25, 0.3)]  # fmt: skip
    assert all_in(text, f"{min(leads):.4f}", f"{max(leads):.4f}")


def test_discrepancy_confident_learning_beats_curvature_at_ten_percent():
    name, text = "curvature_table2_mislabel_auroc", of("curvature-table2-outperforms")
    for dataset in ("cifar10", "cifar100"):
        where = {"dataset": dataset, "noise": 0.1}
        curvature, rival = (
            value(name, "auroc_percent", method=method, **where) for method in ("curvature", "cl")
        )
        assert curvature < rival
        assert all_in(text, f"{curvature} %", f"{rival} %")


def test_discrepancy_the_gradient_under_adam_is_largest_in_the_middle():
    norms = paper.table("csg_table7_adam_gradient_norm").set_index("epoch")["input_gradient_norm"]
    assert norms.idxmax() == 100 and norms.index[-1] == 180
    assert norms[1] < norms[10] > norms[50] < norms[80] < norms[100] > norms[120]
    text = of("csg-table7-adam-peak")
    assert all_in(text, *(f"{norms[epoch]:.2f}" for epoch in (10, 50, 100)))


def test_discrepancy_two_forms_of_csg():
    table = paper.table("csg_table1_similarity").set_index("proxy")["cifar100_pearson"]
    assert table["loss_sensitivity"] > table["csg"]
    assert all_in(of("csg-eq3-norm"), f"{table['loss_sensitivity']}", f"{table['csg']}")


def test_discrepancy_two_forms_of_curvature():
    own = value("curvature_table1_similarity", "cosine", dataset="cifar100", weight_decay=1e-4)
    later = value("csg_table1_similarity", "cifar100_cosine", proxy="curvature")
    assert all_in(of("curvature-eq6-norm"), f"{own}", f"{later}")


def test_discrepancy_a_bound_on_means_says_nothing_of_a_covariance():
    csg, time = np.array([2.0, 1.0]), np.array([1.0, 2.0])
    assert (csg <= 2 * time).all() and np.cov(csg, time)[0, 1] < 0
    assert all_in(of("csg-c3-covariance"), "CSG 2 and 1", "T 1 and 2", "CSG <= 2 T")


def test_discrepancy_the_bound_grows_with_the_training():
    def second(length):  # C2 with every other constant 1 and η the root of the length
        return (1 + length / 2) / length**0.5

    assert second(10_000) > 9 * second(100)
    assert "T_max" in of("csg-theorem4-2-constant")
    assert all_in(of("csg-eq4-learning-time"), "1 to T_max", "1 to T:")


def test_discrepancy_no_pair_of_duplicates_can_be_right_twice():
    pairs = paper.duplicates()
    means = pairs[["memorization", "other_memorization"]].mean(axis=1)
    keep = 0.7  # both are in a training set with this chance, given that one is
    assert len(pairs) == 9 and means.max() <= 1 - keep / 2 + 0.015 / 2**0.5
    text = of("curvature-sec4-2-duplicates")
    assert all_in(text, f"{1 - keep / 2:.2f}", f"{means.min():.2f}", f"{means.max():.2f}")
    whale = pairs[pairs["label"] == "whale"].iloc[0]
    assert whale["other_label"] == "shark"
    numbers = [str(whale["index"]), str(whale["other_index"])]
    assert all_in(of("csg-fig15-whale"), *numbers, "31487", "shrew")


# ---------------------------------------------------------------- the evidence of the notebook


def test_two_pairs_of_table_1_are_impossible():
    pairs = evidence.similarity_pairs()
    assert list(pairs.index[~pairs["possible"]]) == ["grand", "samis"]
    assert pairs.loc["csg", ["pearson", "cosine"]].tolist() == [0.72, 0.84]


def test_the_rows_of_a_method_come_from_every_paper():
    rows = evidence.mislabel_auroc("curvature")
    assert list(rows["source"].unique()) == ["curvature paper", "CSL poster", "CSG Table 4"]
    assert set(rows["dataset"]) == {"CIFAR-10", "CIFAR-100"} and rows["auroc"].max() <= 1
    own = rows[(rows["source"] == "curvature paper") & (rows["dataset"] == "CIFAR-100")]
    assert own["auroc"].iloc[0] == pytest.approx(0.909)
    csl = evidence.mislabel_auroc("csl")
    assert list(csl["source"].unique()) == ["CSL poster", "CSG Table 4"]
    equal = evidence.equal_values(csl, "CSL poster", "CSG Table 4")
    assert equal["CIFAR-10"] == [(0.01, 0.05), (0.02, 0.1), (0.05, 0.2)]
    assert (0.01, 0.05) in equal["CIFAR-100"] and (0.02, 0.1) in equal["CIFAR-100"]


def test_the_tables_of_the_figures():
    gaps = evidence.calibration_gaps()
    assert list(gaps.index) == ["early stop", "validation loss", "last epoch"]
    assert gaps.loc["early stop", "uce"] == 2.0821
    cosines = evidence.poster_cosines()
    assert cosines.loc["csl"].tolist() == [0.87, 0.93]
    tops = evidence.top_pairs()
    assert tops[tops["marked"]]["cosine"].tolist() == [0.93, 0.89]
    assert tops["source"].value_counts().to_dict() == {"CSG Table 6": 40, "CSL poster": 5}
    seeds = evidence.confident_learning_seeds()
    assert list(seeds.index)[::5] == ["CIFAR-10, 20 %", "CIFAR-100, 30 %"] and len(seeds) == 6
    assert seeds.loc["CIFAR-10, 25 %", "apart"] == pytest.approx(0.5, abs=0.001)
    attacks = evidence.attack_auroc()
    assert attacks.loc["mast", ["early stop", "last epoch"]].tolist() == [70.70, 78.56]
    assert evidence.lira_rates().to_dict() == pytest.approx({1e-4: 0.003, 1e-3: 0.01, 1e-2: 0.2277})


# ---------------------------------------------------------------- the arithmetic of the notebook


def test_no_score_has_a_cosine_outside_of_the_possible():
    rng = np.random.default_rng(0)
    truth = rng.random(50) ** 3
    constant = metrics.cosine(np.ones(50), truth)
    for _ in range(300):
        score = np.maximum(0, rng.normal(size=50) * rng.random() + truth * rng.random() + 0.3)
        pearson = metrics.pearson(score, truth)
        if pearson >= 0:
            low, high = paper.possible_cosines(pearson, constant)
            assert low - 1e-9 <= metrics.cosine(score, truth) <= high + 1e-9
    low, high = paper.possible_cosines([0.0, 1.0], 0.6)
    np.testing.assert_allclose([low, high], [[0, 0.6], [0.6, 1]])


def test_a_restricted_range_weakens_a_correlation():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200_000)
    score = truth + rng.normal(size=truth.size)
    narrow = np.abs(truth) < 0.2
    ratio = truth[narrow].std() / truth.std()
    left = paper.restricted_pearson(metrics.pearson(score, truth), ratio)
    assert left == pytest.approx(metrics.pearson(score[narrow], truth[narrow]), abs=0.01)
    assert paper.restricted_pearson(0.5, 1) == pytest.approx(0.5)


def test_two_seeds_agree_and_one_is_apart():
    equal, apart = paper.one_apart([0.7, 0.5], [0.1, 0.0])
    values = np.stack([equal, equal, apart])
    np.testing.assert_allclose(values.mean(axis=0), [0.7, 0.5])
    np.testing.assert_allclose(values.std(axis=0), [0.1, 0.0])
    assert apart[0] < equal[0]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([True], "holds"),
        ([True, True], "holds"),
        ([True, False], "holds in part"),
        ((np.True_, np.False_), "holds in part"),
        ([False, False], "does not hold here"),
        (np.array([False]), "does not hold here"),
        (True, "holds"),
        (np.False_, "does not hold here"),
    ],
)
def test_a_claim_holds_wholly_in_part_or_not_as_its_parts_do(parts, expected):
    assert paper.verdict(parts) == expected


def test_verdict_refuses_no_parts_and_numbers():
    with pytest.raises(ValueError, match="at least one part"):
        paper.verdict([])
    with pytest.raises(TypeError, match=r"is 0\.79; expected True or False"):
        paper.verdict([True, 0.79])


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (True, "seen here too"),
        ([True, False], "seen here in part"),
        (np.False_, "not seen here"),
        (None, "cannot be tested here"),
    ],
)
def test_verdict_on_a_discrepancy(parts, expected):
    assert paper.discrepancy_verdict(parts) == expected


def test_verdict_on_a_discrepancy_refuses_numbers():
    with pytest.raises(TypeError, match=r"is 0\.5; expected True or False"):
        paper.discrepancy_verdict([0.5])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("CSG Table 1", ("CSG", "Table 1")),
        ("Curvature Table 4", ("curvature", "Table 4")),
        ("CSL poster", ("CSL", "poster")),
        ("csg abstract", ("CSG", "abstract")),
        ("curvature 4.4, test points", ("curvature", "section 4.4, test points")),
        ("CSG Sec. 4.3", ("CSG", "section 4.3")),
        ("CSG section 4.3, mirror", ("CSG", "section 4.3, mirror")),
        ("CSG Section 5", ("CSG", "section 5")),
        ("CSG Fig. 1a, 1b, 16", ("CSG", "Fig. 1a, 1b, 16")),
        ("Curvature App. D.4", ("curvature", "App. D.4")),
        ("CSL theorem 5.3", ("CSL", "theorem 5.3")),
        ("CSG sectional view", ("CSG", "sectional view")),
    ],
)
def test_a_source_is_a_paper_and_a_place(source, expected):
    assert paper.split_source(source) == expected


@pytest.mark.parametrize("source", ["", "CSG", "CSG ", "Table 1", "CGS Table 1", "CSGTable 1"])
def test_a_source_without_paper_or_place_is_refused(source):
    with pytest.raises(ValueError, match="begin with CSG, CSL, curvature"):
        paper.split_source(source)


RIVALS = {
    "csg": "csg", "early_csg": "csg", "sgal": "sgal", "csl": "csl", "forgetting": "forgetting",
    "final_loss": "final_loss", "loss_sensitivity": "loss_sensitivity", "vog": "vog_all",
    "vog_last5": "vog_last5", "grand": "grand", "tracin": "tracin", "samis_loss": "samis",
    "curvature": "curvature",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "where", "absent"),
    [
        ("csg_table1_similarity", {}, set()),
        ("csg_table6_optimizers", {"subset": "all", "optimizer": "adam"}, {"curvature", "samis"}),
        ("csg_table6_optimizers", {"subset": "top5k", "optimizer": "adagrad"},
         {"curvature", "samis"}),
        ("csl_poster_similarity", {"dataset": "cifar100", "subset": "all"},
         {"csg", "sgal", "vog_all", "vog_last5", "grand", "tracin", "samis"}),
    ],
)  # fmt: skip
def test_every_printed_proxy_is_found_by_our_name(name, where, absent):
    raw = paper.table(name, **where).set_index("proxy")
    assert set(raw.index) == set(RIVALS.values()) - absent
    found = paper.printed(RIVALS, name, **where)
    assert list(found.index) == list(RIVALS) and found.index.name == "score"
    column = next(c for c in ("cifar100_cosine", "cosine") if c in raw)
    for ours, theirs in RIVALS.items():
        if theirs in absent:
            assert found.loc[ours].isna().all()
        else:
            assert found.loc[ours, column] == raw.loc[theirs, column]


@pytest.mark.parametrize(
    ("name", "where", "learned"),
    [
        ("csl_poster_mislabel_auroc", {"dataset": "cifar10", "noise": 0.01}, "first_correct"),
        ("csl_poster_duplicates_auroc", {"dataset": "cifar100"}, "first_correct"),
        ("curvature_table2_mislabel_auroc", {"dataset": "mnist", "noise": 0.1}, "last_wrong"),
        ("csg_table4_mislabel_auroc", {"dataset": "cifar100", "noise": 0.3}, None),
    ],
)
def test_every_printed_method_is_found_by_our_name(name, where, learned):
    raw = paper.table(name, **where).set_index("method")
    ours = {
        "curvature": "curvature", "in_confidence": "in_confidence", "ssft": "ssft",
        "ssft_mean": "ssft", "confident_learning": "cl", "in_confidence_max": "in_confidence",
    }  # fmt: skip
    ours |= {s: s for s in ("csl", "csg", "sgal", "curvature_ssft") if s in raw.index}
    ours |= {learned: "learning_time"} if learned else {}
    assert set(raw.index) == set(ours.values())
    found = paper.printed(ours, name, **where)
    column = next(c for c in ("mean", "auroc_percent") if c in raw)
    assert found[column].to_dict() == {s: raw.loc[theirs, column] for s, theirs in ours.items()}


def test_scores_that_no_paper_prints_have_none():
    where = {"dataset": "cifar10", "noise": 0.01}
    none = ["learning_time_share", "last_wrong", "label_error", "samis_prob", "el2n"]
    assert paper.printed(none, "csl_poster_mislabel_auroc", **where)["mean"].isna().all()
    assert paper.printed(none, "csg_table1_similarity").isna().all(axis=None)
    assert paper.printed_name("samis_prob", "csg_table1_similarity") != "samis"


def test_printed_refuses_tables_without_one_row_a_score():
    with pytest.raises(ValueError, match="several rows for one score"):
        paper.printed(["csl"], "csl_poster_mislabel_auroc")
    with pytest.raises(ValueError, match="no row per score; its columns are: metric"):
        paper.printed(["csl"], "csg_table2_calibration")
    with pytest.raises(ValueError, match="unknown table"):
        paper.printed(["csl"], "csl_table")


def test_compare_takes_the_printed_similarity(scores):
    frame, truth = scores
    table = ml.compare(frame, truth, printed=paper.printed_similarity(frame), n_resamples=20)
    assert table.loc["csl", ["printed_cosine", "printed_pearson"]].tolist() == [0.87, 0.79]
    assert table.loc["early_csg", "printed_pearson"] == 0.72  # the papers' cheap CSG
    assert table.loc["vog", ["printed_cosine", "printed_pearson"]].tolist() == [0.80, 0.67]
    assert table.loc["csg_plain", ["printed_cosine", "printed_pearson", "gap"]].isna().all()
    gap = table.loc["csg", "pearson"] - 0.72
    assert table.loc["csg", "gap"] == pytest.approx(gap, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dataset": "imagenet"}, 0.52),
        ({"top": True}, np.nan),
        ({"name": "csg_table6_optimizers", "optimizer": "adam"}, 0.74),
        ({"name": "csg_table6_optimizers", "optimizer": "adam", "top": True}, 0.64),
    ],
)
def test_printed_similarity_selects_data_set_subset_and_optimizer(options, expected):
    table = paper.printed_similarity(["csg"], **options)
    assert table.loc["csg", "pearson"] == pytest.approx(expected, nan_ok=True)
    assert list(table) == ["cosine", "pearson"] and table.index.name == "score"


def test_printed_similarity_has_the_poster_s_top_rows():
    table = paper.printed_similarity(["csl"], "csl_poster_similarity", top=True)
    assert table.loc["csl", "pearson"] == 0.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "csg_table6_optimizers"}, "several rows for one score"),
        ({"name": "csg_table2_calibration"}, "has no similarity of scores"),
        ({"dataset": "mnist"}, "no similarity for the data set 'mnist'"),
        ({"name": "csg_table6_optimizers", "dataset": "imagenet"}, "data set 'imagenet'"),
        ({"name": "csl_poster_similarity", "dataset": "mnist"}, "no row with dataset = 'mnist'"),
    ],
)
def test_printed_similarity_refuses_a_table_without_one_number_for_a_score(options, message):
    with pytest.raises(ValueError, match=message):
        paper.printed_similarity(["csg"], **options)


def test_our_values_stand_beside_the_printed_ones_under_the_printed_name():
    index = pd.MultiIndex.from_tuples(
        [(0.05, 0), (0.05, 1), (0.07, 0), (0.3, 0)], names=["noise", "seed"]
    )
    columns = {"csg": [0.8, 0.9, 0.1, 0.7], "confident_learning": [0.5, 0.7, 0.1, np.nan],
               "aum": [0.9] * 4}  # fmt: skip
    name = "csg_table4_mislabel_auroc"
    table = paper.beside(name, pd.DataFrame(columns, index=index), "clothes")
    printed = paper.table(name)
    assert len(table) == len(printed) + 3  # 7 % is not printed, nor is AUM
    np.testing.assert_array_equal(table["mean"][: len(printed)], printed["mean"])
    ours = table[table["dataset"] == "clothes"].set_index(["method", "noise"])
    assert ours.index.tolist() == [("cl", 0.05), ("csg", 0.05), ("csg", 0.3)]
    np.testing.assert_allclose(ours["mean"], [0.6, 0.85, 0.7])
    np.testing.assert_allclose(ours["std"], [0.2 / np.sqrt(2), 0.1 / np.sqrt(2), np.nan])


def test_printed_percentages_become_shares():
    auroc = pd.DataFrame({"curvature": [0.9]}, index=pd.Index([0.01], name="noise"))
    table = paper.beside("curvature_table2_mislabel_auroc", auroc, "clothes")
    mnist = table.query("dataset == 'mnist' and method == 'in_confidence' and noise == 0.01")
    assert mnist["mean"].item() == pytest.approx(0.994) and table["mean"].max() <= 1


@pytest.mark.parametrize(
    ("name", "ssft", "learning_time"),
    [("csl_poster_mislabel_auroc", "ssft_mean", "first_correct"),
     ("curvature_table2_mislabel_auroc", "ssft", "last_wrong")],
)  # fmt: skip
def test_each_method_is_compared_with_the_form_of_its_paper(name, ssft, learning_time):
    ours = {m: paper.our_name(m, name) for m in ("ssft", "learning_time", "cl", "curvature")}
    assert list(ours.values()) == [ssft, learning_time, "confident_learning", "curvature"]
    assert all(paper.printed_name(score, name) == method for method, score in ours.items())


def test_a_table_without_noise_rates_is_refused():
    auroc = pd.DataFrame({"csg": [0.9]}, index=pd.Index([0.05], name="noise"))
    with pytest.raises(ValueError, match="has no noise rates"):
        paper.beside("csg_table1_similarity", auroc, "clothes")


def test_data_sets_stand_side_by_side_at_each_noise_rate():
    auroc = pd.DataFrame({"csg": [0.91234]}, index=pd.Index([0.05], name="noise"))
    table = paper.beside("csg_table4_mislabel_auroc", auroc, "clothes")
    wide = paper.side_by_side(table, "cifar100", "clothes")
    assert list(wide.columns) == [
        (5, "cifar100"), (5, "clothes"), *[(rate, "cifar100") for rate in (10, 20, 25, 30)]
    ]  # fmt: skip
    assert wide.loc["csg", (5, "clothes")] == 0.912 and wide.loc["csg", (5, "cifar100")] == 0.99
