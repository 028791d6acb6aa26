"""Printed numbers side by side: the tables behind the figures of notebook 08."""

import pandas as pd

from memlens.experiments import paper

CONSTANT, CONSTANT_TOP = 0.615, 0.9998  # cosine of a constant with the published memorization of
# CIFAR-100, all samples and the 5,000 most memorized
CONSTANTS = {"all samples": CONSTANT, "top 5,000": CONSTANT_TOP}
MEAN, MEAN_TOP = 0.275, 0.980  # mean of the published memorization, likewise
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
STOPS = {"peak_stop": "early stop", "val_loss_stop": "validation loss", "last_epoch": "last epoch"}
_MISLABEL = {
    "curvature paper": "curvature_table2_mislabel_auroc",
    "CSL poster": "csl_poster_mislabel_auroc",
    "CSG Table 4": "csg_table4_mislabel_auroc",
}


def similarity_pairs() -> pd.DataFrame:
    """Return the cosines and Pearson correlations of CSG Table 1 (CIFAR-100), and what is possible.

    Returns
    -------
    DataFrame, index "proxy"
        pearson, cosine, least and most (of the cosine, see `paper.possible_cosines`), and possible
        (bool), which allows for the rounding of both values.
    """
    table = paper.table("csg_table1_similarity").set_index("proxy")
    pairs = pd.DataFrame({"pearson": table["cifar100_pearson"], "cosine": table["cifar100_cosine"]})
    pairs["least"], _ = paper.possible_cosines(pairs["pearson"] - 0.005, CONSTANT)
    _, pairs["most"] = paper.possible_cosines(pairs["pearson"] + 0.005, CONSTANT)
    pairs["possible"] = pairs["cosine"].between(pairs["least"] - 0.005, pairs["most"] + 0.005)
    return pairs


def mislabel_auroc(method: str) -> pd.DataFrame:
    """Return the printed AUROC of a method on CIFAR under label noise, from every paper.

    Returns
    -------
    DataFrame
        dataset, source, noise (share) and auroc (in [0, 1]); sources that do not print the method
        are left out.
    """
    parts = []
    for source, name in _MISLABEL.items():
        rows = paper.table(name)
        rows = rows[(rows["method"] == method) & rows["dataset"].isin(list(DATASETS))]
        auroc = rows["mean"] if "mean" in rows else rows["auroc_percent"] / 100
        parts.append(rows.assign(source=source, auroc=auroc).replace({"dataset": DATASETS}))
    columns = ["dataset", "source", "noise", "auroc"]
    return pd.concat(parts, ignore_index=True)[columns]


def equal_values(rows: pd.DataFrame, first: str, second: str) -> dict[str, list]:
    """Return the pairs of noise rates at which two sources print the same number.

    Parameters
    ----------
    rows : DataFrame
        As `mislabel_auroc` returns it.
    first, second : str
        Sources. A pair is (noise in the first, noise in the second); of equal rates none counts.
    """
    pairs = {}
    for dataset, part in rows.groupby("dataset", sort=False):
        own, other = part[part["source"] == first], part[part["source"] == second]
        joined = own.merge(other, on="auroc")
        joined = joined[joined["noise_x"] != joined["noise_y"]]
        pairs[dataset] = list(zip(joined["noise_x"], joined["noise_y"], strict=True))
    return pairs


def calibration_gaps() -> pd.DataFrame:
    """Return the means of CSG Table 2: a row for each stop, a column for each measure."""
    table = paper.table("csg_table2_calibration")
    gaps = table.pivot(index="snapshot", columns="metric", values="mean")
    return gaps.loc[list(STOPS)].rename(index=STOPS)


def poster_cosines() -> pd.DataFrame:
    """Return the cosines of the CSL poster on CIFAR-100: "all samples" and "top 5,000"."""
    printed = paper.table("csl_poster_similarity", dataset="cifar100")
    cosines = printed.pivot(index="proxy", columns="subset", values="cosine")
    return cosines.rename(columns={"all": "all samples", "top5k": "top 5,000"})


def top_pairs() -> pd.DataFrame:
    """Return the printed pairs of the 5,000 most memorized: source, score, cosine, pearson, marked.

    ``marked`` are the two of CSG Table 6 that stand apart.
    """
    late = paper.table("csg_table6_optimizers", subset="top5k").assign(source="CSG Table 6")
    poster = paper.table("csl_poster_similarity", dataset="cifar100", subset="top5k")
    rows = pd.concat([late, poster.assign(source="CSL poster")], ignore_index=True)
    rows = rows.rename(columns={"proxy": "score"})
    marked = (rows["score"] == "forgetting") & (rows["pearson"] < 0.1)
    return rows.assign(marked=marked)[["source", "score", "cosine", "pearson", "marked"]]


def pearson_left_on_top(everywhere: float) -> float:
    """Return the Pearson correlation that a line leaves on the 5,000 most memorized of CIFAR-100.

    Parameters
    ----------
    everywhere : float
        Pearson correlation on all samples.
    """
    spread, top = (
        mean * (1 / constant**2 - 1) ** 0.5
        for mean, constant in ((MEAN, CONSTANT), (MEAN_TOP, CONSTANT_TOP))
    )
    return paper.restricted_pearson(everywhere, top / spread)


def confident_learning_seeds() -> pd.DataFrame:
    """Return mean and std of confident learning from 20 % noise on (CSG Table 4), and `one_apart`.

    Returns
    -------
    DataFrame
        Index such as "CIFAR-10, 20 %"; columns mean, std, equal and apart.
    """
    rows = paper.table("csg_table4_mislabel_auroc", method="cl")
    rows = rows[rows["noise"] >= 0.2].replace({"dataset": DATASETS})
    names = rows["dataset"] + rows["noise"].map(", {:.0%}".format).str.replace("%", " %")
    seeds = rows.set_index(names)[["mean", "std"]].rename_axis(None)
    seeds["equal"], seeds["apart"] = paper.one_apart(seeds["mean"], seeds["std"])
    return seeds


def attack_auroc() -> pd.DataFrame:
    """Return the AUROC (percent) of CSG Table 3: a row for each attack, a column for each stop."""
    rows = paper.table("csg_table3_privacy", metric="auroc")
    auroc = rows.pivot(index="attack", columns="snapshot", values="mean_percent")
    return auroc[list(STOPS)].rename(columns=STOPS)


def lira_rates() -> pd.Series:
    """Return the true positive rates (shares) of LiRA at the last epoch (CSG Table 9), by FPR."""
    rows = paper.table("csg_table9_tpr_at_low_fpr", attack="lira", snapshot="last_epoch")
    return rows.set_index("fpr")["mean_percent"].sort_index() / 100
