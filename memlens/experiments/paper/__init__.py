"""The numbers that the papers print, ours beside them, and verdicts on what they claim.

This folder has one CSV file per table. `tables` lists them, `table` reads one, `printed` and
`printed_similarity` return the printed numbers under our names, and `discrepancies` lists what does
not add up in them.
A number here is what was printed, right or wrong: nothing is corrected.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files

import numpy as np
import pandas as pd

PAPERS = {
    "CSG": "Memorization Through the Lens of Sample Gradients",
    "CSL": "Towards Memorization Estimation: Fast, Formal and Free",
    "curvature": "Memorization Through the Lens of Curvature of Loss Function Around Samples",
}
VERDICTS = ("holds", "holds in part", "does not hold here")
DOUBT_VERDICTS = (
    "seen here too", "seen here in part", "not seen here", "cannot be tested here",
)  # fmt: skip

# Our names where the papers print another; None where no table prints the score.
# * The papers' cheap CSG (0.1 to 0.3 of a training) is the sum up to the peak, our `early_csg`;
#   they print the same name for the sum over the whole run, so both of ours stand beside it.
# * They do not say which form of SAMIS they print; the loss form is taken to be it.
# * They print one SSFT: "forgotten for ever" in the curvature paper, in the later ones (going by
#   their authors' code) the share of wrong predictions. Both of ours stand beside it.
# * In-confidence is 1 - p_y in their text and 1 - max p in their code: both of ours, as well.
# * Our `learning_time` is Eq. 4 of CSG; what the tables print by that name, see `printed_name`.
_PRINTED_AS = {
    "early_csg": "csg", "vog": "vog_all", "samis_loss": "samis", "ssft_mean": "ssft",
    "confident_learning": "cl", "in_confidence_max": "in_confidence", "learning_time": None,
}  # fmt: skip


def verdict(parts: bool | Sequence[bool]) -> str:
    """Verdict on a claim of one part or several: all, some or none of them hold.

    Parameters
    ----------
    parts : bool or sequence of bool
        The answer, or one for each part of the claim, at least one.

    Returns
    -------
    str
        One of `VERDICTS`.

    Examples
    --------
    >>> verdict([True, False])
    'holds in part'
    """
    answers = [parts] if isinstance(parts, bool | np.bool_) else list(parts)
    if not answers:
        raise ValueError("a verdict needs at least one part, got none")
    wrong = [part for part in answers if not isinstance(part, bool | np.bool_)]
    if wrong:
        raise TypeError(f"each part of a verdict is True or False, got {wrong[0]!r}")
    return VERDICTS[0 if all(answers) else 1 if any(answers) else 2]


def discrepancy_verdict(bears_out: bool | Sequence[bool] | None) -> str:
    """Verdict on a discrepancy: what our runs say about something that does not add up.

    Parameters
    ----------
    bears_out : bool, sequence of bool or None
        Whether our runs show it too, or each part of it; None where they cannot tell.

    Returns
    -------
    str
        One of `DOUBT_VERDICTS`.
    """
    if bears_out is None:
        return DOUBT_VERDICTS[3]
    return DOUBT_VERDICTS[VERDICTS.index(verdict(bears_out))]


def split_source(source: str) -> tuple[str, str]:
    """Split ``"CSG Sec. 4.3"`` into a paper and a place in it: ``("CSG", "section 4.3")``.

    Raises
    ------
    ValueError
        If it does not start with a key of `PAPERS` (in any case), or names no place.
    """
    if not isinstance(source, str):
        raise TypeError(f"source is {type(source).__name__}: pass text such as 'CSG Table 1'")
    name, _, place = source.strip().partition(" ")
    papers = {known.lower(): known for known in PAPERS}
    if name.lower() not in papers or not place.strip():
        raise ValueError(
            f"source {source!r}: begin with {', '.join(PAPERS)}, and go on with the place, "
            "such as 'CSG Table 1'"
        )
    # sections are written in several ways: "4.3", "Sec. 4.3", "Section 4.3"
    place = re.sub(r"^(sec\.|section)?\s*(?=\d)", "section ", place.strip(), flags=re.IGNORECASE)
    return papers[name.lower()], place


def tables() -> pd.DataFrame:
    """List the printed tables: columns name, paper (a key of `PAPERS`), title, rows."""
    index = _read("tables")
    return index.assign(rows=[len(_read(name)) for name in index["name"]])


def discrepancies() -> pd.DataFrame:
    """List what does not add up in the printed numbers.

    Returns
    -------
    DataFrame
        Columns id (what `Page.discrepancy` takes it up by), paper (keys of `PAPERS`, comma-separated),
        table (listed by `tables`) and discrepancy.
    """
    return _read("discrepancies")


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


def printed_name(score: str, name: str) -> str | None:
    """Under which name a table prints one of our scores; None where it is known not to.

    The tables print two learning times: the curvature paper that of Maini et al., learned for good
    (our `last_wrong`), the others the first right prediction (our `first_correct`).
    """
    if score in ("first_correct", "last_wrong"):
        theirs = "last_wrong" if name.startswith("curvature") else "first_correct"
        return "learning_time" if score == theirs else None
    return _PRINTED_AS.get(score, score)


def printed(scores: Iterable[str], name: str, **where: object) -> pd.DataFrame:
    """Rows of a printed table under our names of the scores.

    Parameters
    ----------
    scores : iterable of str
        Our names.
    name : str
        A table with a row a score: a column ``proxy`` or ``method``.
    **where
        Column and value to keep, such as ``dataset="cifar100", noise=0.1``.

    Returns
    -------
    DataFrame, index "score"
        The other columns of the table; NaN for a score that it does not have.

    Raises
    ------
    ValueError
        As `table`; if the table has no row a score, or several for one.
    """
    return _by_score(table(name, **where), scores, name)


def _by_score(frame: pd.DataFrame, scores: Iterable[str], name: str) -> pd.DataFrame:
    """Take the rows of printed scores by our names."""
    key = next((column for column in ("proxy", "method") if column in frame), None)
    if key is None:
        raise ValueError(f"{name} has no row a score; it has: {', '.join(frame)}")
    if frame[key].duplicated().any():
        raise ValueError(f"{name} has several rows for one score: fix more columns with `where`")
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
    """Keep one data set's rows or columns; a table that names none is about CIFAR-100."""
    if "proxy" not in frame:
        raise ValueError(f"{name} prints no similarity of scores; csg_table1_similarity does")
    if "dataset" in frame:
        return _rows(frame, {"dataset": dataset}, name)
    wide = {f"{dataset}_{column}": column for column in ("cosine", "pearson")}
    if not (set(wide) <= set(frame) or ("cosine" in frame and dataset == "cifar100")):
        raise ValueError(f"{name} prints no similarity for the data set {dataset!r}")
    return frame.rename(columns=wide)
