"""The numbers printed in the papers, comparisons with ours, and verdicts on claims.

Each printed table is a CSV file in this folder. `tables` lists them and `table` reads one.
`printed` and `printed_similarity` return printed numbers under our names. `discrepancies` lists
what does not add up in the papers, and `possible_cosines`, `restricted_pearson` and `one_apart` are
the arithmetic that shows it. The numbers are as printed; nothing is corrected.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

PAPERS = {
    "CSG": "Memorization Through the Lens of Sample Gradients",
    "CSL": "Towards Memorization Estimation: Fast, Formal and Free",
    "curvature": "Memorization Through the Lens of Curvature of Loss Function Around Samples",
}
VERDICTS = ("holds", "holds in part", "does not hold here", "cannot be tested here")
DISCREPANCY_VERDICTS = (
    "seen here too", "seen here in part", "not seen here", "cannot be tested here", "seen in print",
)  # fmt: skip
# Kinds of discrepancies, in the order of the notebook.
KINDS = {
    "slip": "slips of arithmetic and of print",
    "unit": "numbers that measure something else than they seem to",
    "tables": "tables that disagree",
    "sentence": "sentences that their own tables contradict",
    "definition": "definitions that differ between text, proof and code",
    "data": "facts about the data",
}

# Our score names and the printed names, where they differ; None: no table prints the score.
# * The papers' cheap CSG (0.1 to 0.3 of a training) is the sum up to the peak, our `early_csg`.
#   They print the same name for the sum over the whole run, so both of ours are compared with it.
# * The papers do not define which form of SAMIS they print; we assume the loss form.
# * They print one SSFT: "forgotten for ever" in the curvature paper, the share of wrong predictions
#   in the later papers (according to their authors' code). Both of ours are compared with it.
# * In-confidence is 1 - p_y in their text and 1 - max p in their code. Again both are compared.
# * They define curvature by squared norms and average norms in their code. Both are compared.
# * Our `learning_time_share` is Eq. 4 of CSG; for their learning time see `printed_name`.
_PRINTED_AS = {
    "early_csg": "csg", "vog": "vog_all", "samis_loss": "samis", "ssft_mean": "ssft",
    "confident_learning": "cl", "in_confidence_max": "in_confidence",
    "curvature_norm": "curvature",
}  # fmt: skip


def verdict(parts: bool | Sequence[bool]) -> str:
    """Return the verdict on a claim: all, some or none of its parts hold.

    Parameters
    ----------
    parts : bool or sequence of bool
        True for each part that holds; at least one.

    Returns
    -------
    str
        One of the first three of `VERDICTS`.

    Raises
    ------
    ValueError, TypeError
        For no parts, or a part that is not True or False.

    Examples
    --------
    >>> verdict([True, False])
    'holds in part'
    """
    parts = [parts] if isinstance(parts, bool | np.bool_) else list(parts)
    if not parts:
        raise ValueError("a verdict needs at least one part, got none")
    wrong = [part for part in parts if not isinstance(part, bool | np.bool_)]
    if wrong:
        raise TypeError(f"a part of the verdict is {wrong[0]!r}; expected True or False")
    return VERDICTS[0 if all(parts) else 1 if any(parts) else 2]


def discrepancy_verdict(parts: bool | Sequence[bool] | None) -> str:
    """Return the verdict on a discrepancy: our runs show all, some or none of its parts.

    Parameters
    ----------
    parts : bool, sequence of bool or None
        True for each part that our runs show; None if it cannot be tested here.

    Returns
    -------
    str
        One of `DISCREPANCY_VERDICTS`.
    """
    if parts is None:
        return DISCREPANCY_VERDICTS[3]
    return DISCREPANCY_VERDICTS[VERDICTS.index(verdict(parts))]


def split_source(source: str) -> tuple[str, str]:
    """Split ``"CSG Sec. 4.3"`` into a paper and a place in it: ``("CSG", "section 4.3")``.

    Raises
    ------
    ValueError
        If it does not start with a key of `PAPERS` (in any case), or has no place.
    TypeError
        If it is not text.

    Examples
    --------
    >>> split_source("CSG Sec. 4.3")
    ('CSG', 'section 4.3')
    """
    if not isinstance(source, str):
        raise TypeError(f"source is {type(source).__name__}; pass text such as 'CSG Table 1'")
    name, _, place = source.strip().partition(" ")
    papers = {known.lower(): known for known in PAPERS}
    if name.lower() not in papers or not place.strip():
        raise ValueError(
            f"source {source!r}: begin with {', '.join(PAPERS)}, followed by the place, such as "
            "'CSG Table 1'"
        )
    # sections are written in several ways: "4.3", "Sec. 4.3", "Section 4.3"
    place = re.sub(r"^(sec\.|section)?\s*(?=\d)", "section ", place.strip(), flags=re.IGNORECASE)
    return papers[name.lower()], place


def tables() -> pd.DataFrame:
    """List the printed tables: columns name, paper (a key of `PAPERS`), title."""
    return _read("tables")


def discrepancies(kind: str | None = None) -> pd.DataFrame:
    """List what does not add up in the papers.

    Parameters
    ----------
    kind : str, optional
        A key of `KINDS`; by default all.

    Returns
    -------
    DataFrame
        Columns id (the name in `NotebookReport.discrepancy`), kind, paper (keys of `PAPERS`,
        separated by commas), table (listed by `tables`; empty if it concerns the text alone),
        discrepancy, and resolved_by, what would settle it.

    Raises
    ------
    ValueError
        For an unknown kind.
    """
    listed = _read("discrepancies").fillna({"table": ""})
    return listed if kind is None else _rows(listed, {"kind": kind}, "discrepancies")


def duplicates() -> pd.DataFrame:
    """Return the nine pairs of byte-identical training images of CIFAR-100 under two labels.

    Returns
    -------
    DataFrame
        Columns index and other_index (in the original order), label, other_label, memorization and
        other_memorization (published by Feldman and Zhang, three digits).
    """
    return _read("cifar100_duplicates")


def possible_cosines(pearson: ArrayLike, constant: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest cosine that a Pearson correlation with the truth allows.

    For a score without negative values and a truth against which a constant score has the cosine
    c: score and truth are a constant part and a rest, and the Pearson correlation r is that of the
    rests. With a share s of the score in its constant part, the cosine is c s + r sqrt((1 - c^2)(1
    - s^2)); its ends are at s = 0, s = 1 and the s in between where it is largest.

    Parameters
    ----------
    pearson : array-like
        Correlations of 0 or more.
    constant : float
        Cosine of a constant score with the truth, in (0, 1).

    Examples
    --------
    >>> low, high = possible_cosines(0.36, 0.615)
    >>> round(float(low), 2), round(float(high), 2)
    (0.28, 0.68)
    """
    pearson = np.asarray(pearson, dtype=float)
    rest = 1 - constant**2
    low = np.minimum(constant, pearson * np.sqrt(rest))
    return low, np.sqrt(constant**2 + pearson**2 * rest)


def restricted_pearson(pearson: float, ratio: float) -> float:
    """Return the Pearson correlation that a line leaves where one variable varies less.

    The classical correction for a restricted range (Pearson 1903): the line and the scatter around
    it stay, and the standard deviation of the truth shrinks by ``ratio``.

    Examples
    --------
    >>> round(restricted_pearson(0.78, 1.0), 2)
    0.78
    >>> round(restricted_pearson(0.78, 0.06), 2)
    0.07
    """
    kept = pearson * ratio
    return float(kept / np.sqrt(1 - pearson**2 + kept**2))


def one_apart(mean: ArrayLike, std: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the two equal values, and the lower third, that have this mean and deviation.

    Parameters
    ----------
    mean, std : array-like
        Mean and standard deviation of three values; divisor of the variance 3, as NumPy's default.

    Returns
    -------
    equal, apart : ndarray
        The value of the two, and of the one below them.

    Examples
    --------
    >>> equal, apart = one_apart(0.7, 0.2 * 2**0.5 / 2)
    >>> round(float(equal), 2), round(float(apart), 2)
    (0.8, 0.5)
    """
    mean, gap = np.asarray(mean, dtype=float), 3 * np.asarray(std, dtype=float) / np.sqrt(2)
    return mean + gap / 3, mean - 2 * gap / 3


def table(name: str, **where: object) -> pd.DataFrame:
    """Return a printed table, or its rows where the named columns have the given values.

    Parameters
    ----------
    name : str
        A name listed by `tables`.
    **where
        Column and value to keep, such as ``dataset="cifar100", noise=0.1``.

    Returns
    -------
    DataFrame
        The rows in printed order; NaN for values that are not printed.

    Raises
    ------
    ValueError
        For an unknown table or column, or if no row is left.

    Examples
    --------
    >>> csg = table("csg_table1_similarity", proxy="csg")
    >>> csg[["cifar100_cosine", "cifar100_pearson"]].values.tolist()
    [[0.84, 0.72]]
    """
    names = list(tables()["name"])
    if name not in names:
        raise ValueError(f"unknown table {name!r}; the tables are: {', '.join(names)}")
    return _rows(_read(name), where, name)


def printed_name(score: str, name: str) -> str | None:
    """Return the name under which a table prints one of our scores; None if it does not.

    "Learning time" has two meanings: in the curvature paper the epoch from which a sample stays
    right (Maini et al., our `last_wrong`), in the others the first right prediction (our
    `first_correct`).
    """
    if score in ("first_correct", "last_wrong"):
        meant = "last_wrong" if name.startswith("curvature") else "first_correct"
        return "learning_time" if score == meant else None
    return _PRINTED_AS.get(score, score)


def printed(scores: Iterable[str], name: str, **where: object) -> pd.DataFrame:
    """Return the rows of a printed table under our score names.

    Parameters
    ----------
    scores : iterable of str
        Our score names.
    name : str
        A table with one row per score: it has a column ``proxy`` or ``method``.
    **where
        Column and value to keep, such as ``dataset="cifar100", noise=0.1``.

    Returns
    -------
    DataFrame, index "score"
        The other columns of the table; NaN for scores that are not in it.

    Raises
    ------
    ValueError
        As `table`; also if the table has no column of scores, or several rows for one score.
    """
    return _by_score(table(name, **where), scores, name)


def _by_score(frame: pd.DataFrame, scores: Iterable[str], name: str) -> pd.DataFrame:
    """Select the rows of printed scores by our names."""
    key = next((column for column in ("proxy", "method") if column in frame), None)
    if key is None:
        raise ValueError(f"{name} has no row per score; its columns are: {', '.join(frame)}")
    if frame[key].duplicated().any():
        raise ValueError(f"{name} has several rows for one score; fix more columns with `where`")
    ours = pd.Index(list(scores), name="score", dtype=object)
    rows = frame.set_index(key).reindex([printed_name(score, name) for score in ours])
    return rows.set_index(ours)


def _read(name: str) -> pd.DataFrame:
    with files(__name__).joinpath(f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def _rows(frame: pd.DataFrame, where: Mapping[str, object], name: str) -> pd.DataFrame:
    for column, value in where.items():
        if column not in frame:
            raise ValueError(f"{name} has no column {column!r}; it has: {', '.join(frame)}")
        known = ", ".join(map(str, frame[column].unique()))
        frame = frame[frame[column] == value]
        if frame.empty:
            raise ValueError(f"{name} has no row with {column} = {value!r}; it has: {known}")
    return frame.reset_index(drop=True)


def printed_similarity(
    scores: Iterable[str],
    name: str = "csg_table1_similarity",
    *,
    dataset: str = "cifar100",
    top: bool = False,
    **where: object,
) -> pd.DataFrame:
    """Return the printed cosine and Pearson of our scores, for ``compare(..., printed=)``.

    Parameters
    ----------
    scores : iterable of str
        Our names; of a DataFrame, its columns.
    name : str
        A printed table with cosine and pearson for each ``proxy``.
    dataset : str
        ``"cifar100"`` or ``"imagenet"``.
    top : bool
        The table's most memorized 5,000 (50,000 of ImageNet), instead of all samples.
    **where
        More columns and their values, such as ``optimizer="adam"``.

    Returns
    -------
    DataFrame, index "score"
        Columns cosine and pearson; NaN for a score that is not in the table.

    Raises
    ------
    ValueError
        If the table has no similarity, or several for one score.
    """
    frame = _of_dataset(table(name, **where), dataset, name)
    if "subset" in frame:
        frame = frame[frame["subset"].str.startswith("top") == top]
    elif top:
        frame = frame.iloc[:0]
    return _by_score(frame[["proxy", "cosine", "pearson"]], scores, name)


def _of_dataset(frame: pd.DataFrame, dataset: str, name: str) -> pd.DataFrame:
    """Select the rows or columns of a data set; a table that names none is of CIFAR-100."""
    if "proxy" not in frame:
        raise ValueError(f"{name} has no similarity of scores; csg_table1_similarity has")
    if "dataset" in frame:
        return _rows(frame, {"dataset": dataset}, name)
    wide = {f"{dataset}_{column}": column for column in ("cosine", "pearson")}
    if not (set(wide) <= set(frame) or ("cosine" in frame and dataset == "cifar100")):
        raise ValueError(f"{name} has no similarity for the data set {dataset!r}")
    return frame.rename(columns=wide)


def our_name(method: str, name: str) -> str:
    """Return our score that is compared with a method of a printed table; see `printed_name`.

    Of several forms, it is the one that the paper describes or, for SSFT in the later papers, that
    of their authors' code.
    """
    first = name.startswith("curvature")
    forms = {"cl": "confident_learning", "ssft": "ssft" if first else "ssft_mean",
             "learning_time": "last_wrong" if first else "first_correct"}  # fmt: skip
    return forms.get(method, method)


def beside(name: str, auroc: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return a printed table of AUROC by noise rate, with our values as one more data set.

    Parameters
    ----------
    name : str
        A table listed by `tables`, with columns dataset, method and noise.
    auroc : DataFrame (n_rows, n_scores)
        Index "noise" (a share), one row for each training; one column for each of our scores.
        Rates that the table does not print are left out, and methods without an `our_name` column.
    dataset : str
        Name of our data set.

    Returns
    -------
    DataFrame
        Columns method, dataset, noise, mean and std (ours: over the trainings of a rate), AUROC
        in [0, 1]. Printed rows come first.

    Raises
    ------
    ValueError
        For a table without noise rates.
    """
    rows = table(name).rename(columns={"auroc_percent": "mean"})
    columns = ["method", "dataset", "noise", "mean", "std"]
    if not {"method", "dataset", "noise"} <= set(rows):
        raise ValueError(f"{name} has no noise rates; csg_table4_mislabel_auroc has")
    if rows["mean"].max() > 1:  # in percent
        rows["mean"] /= 100
    parts = [rows.reindex(columns=columns)]
    for method in rows["method"].unique():
        score = our_name(method, name)
        if score in auroc:
            by_rate = auroc[score].dropna().groupby(level="noise")
            ours = by_rate.agg(["mean", "std"]).reset_index().assign(method=method, dataset=dataset)
            parts.append(ours[ours["noise"].isin(rows["noise"])][columns])
    return pd.concat(parts, ignore_index=True)


def side_by_side(table: pd.DataFrame, *datasets: str) -> pd.DataFrame:
    """Return the AUROC of some data sets of a `beside` table: methods by noise and data set.

    Noise is in percent. Values are rounded to three digits.
    """
    chosen = table[table["dataset"].isin(datasets)]
    chosen = chosen.assign(noise=(100 * chosen["noise"]).round().astype(int))
    wide = chosen.pivot(index="method", columns=["noise", "dataset"], values="mean")
    return wide.sort_index(axis=1).round(3)
