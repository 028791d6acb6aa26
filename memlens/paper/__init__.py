"""The numbers that the papers print, ours beside them, and the ledger of their claims.

One CSV a table lies in this folder; `tables` lists them, `table` reads one, `compare` puts our
similarities beside the printed ones, and `doubts` says what does not add up in the printed numbers.
A number here is what was printed, right or wrong: nothing is corrected.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pandas as pd

from memlens import metrics

PAPERS = {
    "CSG": "Memorization Through the Lens of Sample Gradients",
    "CSL": "Towards Memorization Estimation: Fast, Formal and Free",
    "curvature": "Memorization Through the Lens of Curvature of Loss Function Around Samples",
}

# The papers' cheap CSG (0.1 to 0.3 of a training) is the sum up to the peak, our `early_csg`; they
# print the same name for the sum over the whole run, so both of ours stand beside it.
_PRINTED_AS = {"early_csg": "csg"}


@dataclass(frozen=True)
class Claim:
    """A sentence that a paper claims, what was measured here, and the verdict.

    Attributes
    ----------
    source : str
        Where the paper says it, such as ``"CSG Table 1"``.
    statement : str
        The claim in our words.
    measured : str
        What was measured, with its numbers.
    verdict : str
        One of the three answers of `verdict`.
    """

    source: str
    statement: str
    measured: str
    verdict: str


def verdict(parts: Sequence[bool]) -> str:
    """Verdict on a claim of several parts: all, some or none of them hold.

    Parameters
    ----------
    parts : sequence of bool
        One answer for each part of the claim, at least one.

    Returns
    -------
    str
        ``"holds"``, ``"holds in part"`` or ``"does not hold here"``.

    Examples
    --------
    >>> verdict([True, False])
    'holds in part'
    """
    answers = list(parts)
    if not answers:
        raise ValueError("a verdict needs at least one part, got none")
    wrong = [part for part in answers if not isinstance(part, bool | np.bool_)]
    if wrong:
        raise TypeError(f"each part of a verdict is True or False, got {wrong[0]!r}")
    return "holds" if all(answers) else "holds in part" if any(answers) else "does not hold here"


def tables() -> pd.DataFrame:
    """List the printed tables: columns name, paper (a key of `PAPERS`), title, rows."""
    index = _read("tables")
    return index.assign(rows=[len(_read(name)) for name in index["name"]])


def doubts() -> pd.DataFrame:
    """List what does not add up in the printed numbers: columns table, doubt."""
    return _read("doubts")


def table(name: str, **where: object) -> pd.DataFrame:
    """One printed table, or its rows where the named columns have the given values.

    Parameters
    ----------
    name : str
        A name listed by `tables`.
    **where
        Column and value to keep, such as ``dataset="cifar100", noise=0.1``.

    Returns
    -------
    DataFrame
        The printed rows in printed order; NaN where the paper prints none.

    Raises
    ------
    ValueError
        For an unknown table or column, or where no row is left.

    Examples
    --------
    >>> csg = table("csg_table1_similarity", proxy="csg")
    >>> csg[["cifar100_cosine", "cifar100_pearson"]].values.tolist()
    [[0.84, 0.72]]
    """
    names = list(_read("tables")["name"])
    if name not in names:
        raise ValueError(f"unknown table {name!r}; the tables are: {', '.join(names)}")
    return _rows(_read(name), where, name)


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


def compare(
    scores: pd.DataFrame,
    truth: pd.Series | np.ndarray,
    *,
    table: str = "csg_table1_similarity",
    dataset: str = "cifar100",
    top_k: int | None = None,
    where: Mapping[str, object] | None = None,
    **options: object,
) -> pd.DataFrame:
    """Similarity of our scores to memorization, beside what a paper prints.

    Parameters
    ----------
    scores : DataFrame of shape (n_samples, n_scores)
        One column a score, higher = more memorized.
    truth : array-like of shape (n_samples,)
        Memorization of each sample; NaN where it was never left out.
    table : str
        A printed table with cosine and pearson for each ``proxy``.
    dataset : str
        Whose printed numbers: ``"cifar100"`` or ``"imagenet"``.
    top_k : int, optional
        Only the ``top_k`` most memorized; the printed side is then the table's top 5k or 50k,
        NaN where the table has none.
    where : mapping, optional
        More columns to fix, such as ``{"optimizer": "adam"}``.
    **options
        Handed on to `metrics.compare`.

    Returns
    -------
    DataFrame
        The columns of `metrics.compare`, then printed_cosine, printed_pearson and
        gap = pearson - printed_pearson. NaN for a score that the table does not have.

    Raises
    ------
    ValueError
        If the table prints no similarity, or several for one score.
    """
    ours = metrics.compare(scores, truth, top_k=top_k, **options)
    printed = _printed_similarity(table, dataset, top_k is not None, where or {})
    joined = printed.reindex([_PRINTED_AS.get(score, score) for score in ours.index])
    out = ours.assign(**{f"printed_{column}": joined[column].to_numpy() for column in printed})
    return out.assign(gap=out["pearson"] - out["printed_pearson"])


def _printed_similarity(
    name: str, dataset: str, top: bool, where: Mapping[str, object]
) -> pd.DataFrame:
    """Read printed cosine and pearson, indexed by score, of one data set and one subset."""
    frame = _of_dataset(table(name, **where), dataset, name)
    if "subset" in frame:
        frame = frame[frame["subset"].str.startswith("top") == top]
    elif top:
        frame = frame.iloc[:0]
    if frame["proxy"].duplicated().any():
        raise ValueError(f"{name} has several rows for one score: fix more columns with `where`")
    return frame.set_index("proxy")[["cosine", "pearson"]]


def _of_dataset(frame: pd.DataFrame, dataset: str, name: str) -> pd.DataFrame:
    """Keep one data set's rows or columns; a table that names none is about CIFAR-100."""
    if "proxy" not in frame:
        raise ValueError(f"{name} prints no similarity of scores; csg_table1_similarity does")
    if "dataset" in frame:
        return _rows(frame, {"dataset": dataset}, name)
    wide = {f"{dataset}_{column}": column for column in ("cosine", "pearson")}
    if not (set(wide) <= set(frame) or ("cosine" in frame and dataset == "cifar100")):
        raise ValueError(f"{name} prints no similarity for the data set {dataset!r}")
    return frame.rename(columns=wide)
