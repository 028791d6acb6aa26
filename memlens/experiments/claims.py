"""The ledger: the claims of all notebooks in one table, and the copy of it in a page.

A notebook enters claims, and what its runs say about the discrepancies of `paper.discrepancies`, through its page
into ``figures/<profile>/NN_claims.csv``; `ledger` gathers these files, `render` writes the table as
markdown, and `update_page` puts it between two markers: it is never edited by hand.
"""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from memlens.experiments import paper
from memlens.experiments.margins import Comparison
from memlens.storage import store

NOTEBOOKS = (
    "00_primer", "01_validate_theory", "02_similarity", "03_early_stopping", "04_mislabel",
    "05_bias", "06_optimizers",
)  # fmt: skip
COLUMNS = (
    "notebook", "kind", "paper", "where", "claim", "measured", "interval", "margin", "verdict",
)  # fmt: skip
PAGE = "CLAIMS.md"  # holds the rendered ledger, in the root of the checkout
START, END = "<!-- ledger:start -->", "<!-- ledger:end -->"
_WORDS = {"claim": paper.VERDICTS, "discrepancy": paper.DOUBT_VERDICTS}
_NOT_TAKEN_UP = "not taken up"

Interval = str | tuple[float, float] | Sequence[float] | np.ndarray | pd.Series


@dataclass(frozen=True)
class Claim:
    """What a paper claims, or what does not add up in it, and what was measured here.

    Attributes
    ----------
    kind : str
        ``"claim"`` or ``"discrepancy"``.
    paper : str
        A key of `paper.PAPERS`; a discrepancy may name several, comma-separated.
    where : str
        Table, figure or section in the paper; of a discrepancy its id.
    statement : str
        The claim in our words, or the discrepancy.
    measured : str
        What was measured, with its numbers.
    interval : str
        Its spread, see `interval_text`; may be empty.
    margin : str
        How far it lies from its threshold, see `margin_text`; may be empty.
    verdict : str
        One of `paper.VERDICTS`, for a discrepancy of `paper.DOUBT_VERDICTS`.
    """

    kind: str
    paper: str
    where: str
    statement: str
    measured: str
    interval: str
    margin: str
    verdict: str


def interval_text(interval: Interval, of: str = "seed") -> str:
    """Write an interval, or the range of the values of several seeds, or of what else there is.

    Parameters
    ----------
    interval : str, tuple (low, high), or array-like of shape (n_seeds,)
        A text stays as it is. A tuple is an interval; a list, array or Series has a value a seed.
    of : str
        What there is a value of, if not of each seed: "target", say.

    Returns
    -------
    str
        Rounded to one digit of its width, or two if the first is 1 or 2; whole numbers stay whole.

    Raises
    ------
    ValueError
        For no values, values that are not finite, low above high, or a tuple of another length.

    Examples
    --------
    >>> interval_text([0.7634, 0.7988, 0.7712])
    '0.76 to 0.80, 3 seeds'
    >>> interval_text((-0.0041, 0.0123))
    '-0.004 to 0.012'
    """
    if isinstance(interval, str):
        return interval.strip()
    values, pair = np.asarray(interval, dtype=float), isinstance(interval, tuple)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"an interval is text, (low, high) or a finite value a seed, got {interval!r}"
        )
    if pair and (len(values) != 2 or values[0] > values[1]):
        raise ValueError(f"a tuple is an interval (low, high), got {interval!r}")
    low, high = _rounded(values.min(), values.max(), bool((values == np.round(values)).all()))
    spread = low if low == high else f"{low} to {high}"
    return spread if pair else f"{spread}, {len(values)} {of}{'s' * (len(values) > 1)}"


def margin_text(parts: Iterable[Comparison]) -> str:
    """Write the smallest known margin of the parts, in spreads; empty where none is known.

    Examples
    --------
    >>> from memlens.experiments.margins import above
    >>> margin_text([above([0.79, 0.80, 0.81], 0.7), above([0.79, 0.80, 0.81], 0.5)])
    '10'
    """
    known = [part.margin for part in parts if not np.isnan(part.margin)]
    if not known or np.isinf(min(known)):
        return "exact" if known else ""
    return f"{min(known):.2g}" if min(known) < 100 else "over 100"


def _rounded(low: float, high: float, whole: bool) -> tuple[str, str]:
    """Write both ends, no finer than their distance and four digits of the larger can tell."""
    size = max(abs(low), abs(high))
    digits = 0 if whole else 3 - int(f"{size:.3e}".split("e")[1])
    if high > low and not whole:
        first, exponent = f"{high - low:.1e}".split("e")
        digits = min(digits, (float(first) < 3) - int(exponent))
    digits = max(digits, 0)
    low_text, high_text = (f"{round(end, digits) + 0.0:.{digits}f}" for end in (low, high))
    return low_text, high_text  # + 0.0: no minus before a zero


def as_table(claims: Iterable[Claim]) -> pd.DataFrame:
    """One row an entry, one column a field of `Claim`."""
    return pd.DataFrame([asdict(entry) for entry in claims], columns=_fields())


def ledger(profile: str = "digits") -> pd.DataFrame:
    """Gather the claims of all notebooks of a profile.

    Parameters
    ----------
    profile : str
        Whose ``figures/<profile>/NN_claims.csv`` to read. A notebook without one has no rows.

    Returns
    -------
    DataFrame
        `COLUMNS`, all text. First the claims in notebook order, then the discrepancies in the order of
        `paper.discrepancies`; one that no notebook took up has an empty notebook, measured, interval,
        margin and verdict, one that two took up two rows.

    Raises
    ------
    FileNotFoundError
        If no notebook of the profile has left claims.
    ValueError
        If a file is of an earlier form, or holds a paper, discrepancy or verdict that is not known.
    """
    folder = store.figures_dir(profile)
    files = {name: folder / f"{name.split('_')[0]}_claims.csv" for name in NOTEBOOKS}
    there = {name: file for name, file in files.items() if file.is_file()}
    if not there:
        raise FileNotFoundError(
            f"no claims in {folder}; run `memlens reproduce --profile {profile}` first"
        )
    frames = [_read(file).assign(notebook=name) for name, file in there.items()]
    rows = pd.concat(frames, ignore_index=True).rename(columns={"statement": "claim"})
    claims = rows[rows["kind"] == "claim"]
    return pd.concat([claims, _with_untaken(rows)], ignore_index=True)[list(COLUMNS)]


def _with_untaken(rows: pd.DataFrame) -> pd.DataFrame:
    """Put what the notebooks say beside every discrepancy; its text is that of today."""
    said = rows.loc[rows["kind"] == "discrepancy"].drop(columns=["kind", "paper", "claim"])
    listed = paper.discrepancies().rename(columns={"id": "where", "discrepancy": "claim"})
    return listed.assign(kind="discrepancy").merge(said, on="where", how="left").fillna("")


def _fields() -> list[str]:
    return list(Claim.__dataclass_fields__)


def _read(file: Path) -> pd.DataFrame:
    """Read one notebook's claims, if they are what this version writes."""
    again = f"run `memlens reproduce --only {file.name.split('_')[0]}` again"
    try:
        rows = pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise ValueError(f"{file} is no table of claims ({error}); {again}") from error
    if list(rows.columns) != _fields():
        found = ", ".join(rows.columns)
        raise ValueError(f"{file} has the columns {found}: not of this version; {again}")
    ids = set(paper.discrepancies()["id"])
    for row in rows.itertuples():
        known = row.paper in paper.PAPERS if row.kind == "claim" else row.where in ids
        if not known or row.verdict not in _WORDS.get(row.kind, ()):
            what = f"{row.kind}, {row.paper}, {row.where}: {row.verdict}"
            raise ValueError(f"{file} holds an unknown kind, paper, discrepancy or verdict: {what}")
    return rows


def summary(table: pd.DataFrame) -> str:
    """Count the claims of each paper by verdict, and the discrepancies; plain text."""
    discrepancies = table.loc[table["kind"] == "discrepancy", "verdict"]
    return f"{_counts(table).to_string()}\n\ndoubts: {_tally(discrepancies)}{_missing(table)}"


def _counts(table: pd.DataFrame) -> pd.DataFrame:
    """Count claims by verdict and paper."""
    claims = table[table["kind"] == "claim"]
    counts = pd.DataFrame(
        {p: claims.loc[claims["paper"] == p, "verdict"].value_counts() for p in paper.PAPERS},
        index=pd.Index(paper.VERDICTS, name="claims"),
    )
    counts = counts.fillna(0).astype(int)
    return counts.assign(all=counts.sum(axis=1))


def _tally(verdicts: pd.Series) -> str:
    """Count words in their fixed order; those that do not occur are left out."""
    order = (*paper.VERDICTS, *paper.DOUBT_VERDICTS, _NOT_TAKEN_UP)
    counts = verdicts.replace("", _NOT_TAKEN_UP).value_counts()
    return ", ".join(f"{word} {counts[word]}" for word in order if word in counts)


def _missing(table: pd.DataFrame) -> str:
    missing = [name for name in NOTEBOOKS if name not in set(table["notebook"])]
    return f"\n\nNothing from {', '.join(missing)}." if missing else ""


def render(table: pd.DataFrame) -> str:
    """Write the ledger as GitHub markdown: counts, then a folded table a paper, then the discrepancies.

    Parameters
    ----------
    table : DataFrame
        As `ledger` returns it.

    Returns
    -------
    str
        Links to notebooks are relative to the checkout's root. Text is escaped.
    """
    counts = _counts(table).reset_index()
    blocks = [_table([*counts], [map(str, row) for row in counts.itertuples(index=False)])]
    columns = ["where", "claim", "measured", "interval", "margin", "verdict"]
    for name, title in paper.PAPERS.items():
        rows = table[(table["kind"] == "claim") & (table["paper"] == name)]
        if len(rows):
            head = f"<b>{name}</b>, <i>{html.escape(title)}</i>: {_tally(rows['verdict'])}"
            blocks.append(_folded(head, rows, columns, columns))
    discrepancies = table[table["kind"] == "discrepancy"]
    head = f"<b>What does not add up in the papers</b>: {_tally(discrepancies['verdict'])}"
    columns = ["where", "paper", "claim", "measured", "interval", "margin", "verdict"]
    names = [
        "discrepancy", "papers", "what does not add up", "our runs", "interval", "margin", "verdict",
    ]  # fmt: skip
    blocks.append(_folded(head, discrepancies, columns, names))
    return "\n\n".join(blocks) + _missing(table)


def _folded(head: str, rows: pd.DataFrame, columns: Sequence[str], names: Sequence[str]) -> str:
    """Fold a table under its headline; its last column links to the notebook."""
    cells = [
        [*(_escaped(text) for text in row[:-1]), _link(row[-1])]
        for row in rows[[*columns, "notebook"]].itertuples(index=False)
    ]
    body = _table([*names, "notebook"], cells)
    return f"<details>\n<summary>{head}</summary>\n\n{body}\n\n</details>"


def _table(names: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _link(notebook: str) -> str:
    return f"[{notebook.split('_')[0]}](notebooks/{notebook}.ipynb)" if notebook else ""


def _escaped(text: str) -> str:
    """Write text as a cell of a table that shows exactly it, on one line."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*\[|~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)


def update_page(path: Path, profile: str = "digits") -> bool:
    """Put the rendered ledger between the two markers of a page; True if that changed it.

    Raises
    ------
    ValueError
        If a marker is missing, there twice, or in the wrong order; nothing is written.
    FileNotFoundError
        If there is no such page, or no claims; see `ledger`.
    """
    old = path.read_bytes().decode()
    new = _with_ledger(old, render(ledger(profile)), path)
    if new != old:
        store.write_atomic(path, new.encode())
    return new != old


def is_current(path: Path, profile: str = "digits") -> bool:
    """Whether the page holds what the ledger says today. Raises as `update_page`."""
    old = path.read_bytes().decode()
    return _with_ledger(old, render(ledger(profile)), path) == old


def _with_ledger(text: str, rendered: str, path: Path) -> str:
    for marker in (START, END):
        if text.count(marker) != 1:
            raise ValueError(f"{path} has {marker} {text.count(marker)} times, needed is once")
    before, rest = text.split(START)
    if END not in rest:
        raise ValueError(f"{path} has {END} before {START}")
    block = f"\n\n{rendered}\n\n"
    if "\r\n" in text:  # a checkout with the line ends of Windows
        block = block.replace("\n", "\r\n")
    return before + START + block + END + rest.split(END)[1]
