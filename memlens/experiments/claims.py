"""The claims of all notebooks: one table, and its copy in CLAIMS.md.

Each notebook writes its claims and its results on `paper.discrepancies` to
``figures/<profile>/NN_claims.csv`` (see `memlens.experiments.notebook`). `claims_table` reads these
files, `to_markdown` renders them, and `write_claims` replaces the text between two markers in
CLAIMS.md. That text is never edited by hand.
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
CLAIMS_FILE = "CLAIMS.md"  # in the root of the checkout
START, END = "<!-- claims:start -->", "<!-- claims:end -->"
_VERDICTS = {"claim": paper.VERDICTS, "discrepancy": paper.DISCREPANCY_VERDICTS}
_NOT_TAKEN_UP = "not taken up"

Interval = str | tuple[float, float] | Sequence[float] | np.ndarray | pd.Series


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, or an inconsistency in one, with the result measured here.

    Attributes
    ----------
    kind : str
        ``"claim"`` or ``"discrepancy"``.
    paper : str
        A key of `paper.PAPERS`; a discrepancy may list several, separated by commas.
    where : str
        Table, figure or section of the paper; for a discrepancy its id.
    statement : str
        The claim in our words, or the discrepancy.
    measured : str
        The result, with its numbers.
    interval : str
        Interval or range of the result, see `interval_text`; may be empty.
    margin : str
        Distance from the threshold, see `margin_text`; may be empty.
    verdict : str
        One of `paper.VERDICTS`; for a discrepancy one of `paper.DISCREPANCY_VERDICTS`.
    """

    kind: str
    paper: str
    where: str
    statement: str
    measured: str
    interval: str
    margin: str
    verdict: str


def interval_text(interval: Interval, unit: str = "seed") -> str:
    """Format an interval, or the range of one value per seed.

    Parameters
    ----------
    interval : str, tuple (low, high), or array-like of shape (n_seeds,)
        Text is returned unchanged. A tuple is an interval. Of a list, array or Series, the range is
        formatted with the number of values.
    unit : str
        What the values of an array are counted in, for example ``"target"``.

    Returns
    -------
    str
        Rounded to one digit of the width, or two if the first digit of the width is 1 or 2.
        Integers stay integers.

    Raises
    ------
    ValueError
        For an empty array, values that are not finite, low above high, or a tuple of other length.

    Examples
    --------
    >>> interval_text([0.7634, 0.7988, 0.7712])
    '0.76 to 0.80, 3 seeds'
    >>> interval_text((-0.0041, 0.0123))
    '-0.004 to 0.012'
    """
    if isinstance(interval, str):
        return interval.strip()
    values, is_pair = np.asarray(interval, dtype=float), isinstance(interval, tuple)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"interval is {interval!r}; expected text, a tuple (low, high), or one finite value "
            f"per {unit}"
        )
    if is_pair and (len(values) != 2 or values[0] > values[1]):
        raise ValueError(f"interval is {interval!r}; expected (low, high) with low <= high")
    low, high = _rounded(values.min(), values.max(), bool((values == np.round(values)).all()))
    text = low if low == high else f"{low} to {high}"
    return text if is_pair else f"{text}, {len(values)} {unit}{'s' * (len(values) > 1)}"


def margin_text(parts: Iterable[Comparison]) -> str:
    """Format the smallest known margin of the parts, in spreads; empty if none is known.

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
    """Format both ends with the digits that their distance justifies, four at most."""
    size = max(abs(low), abs(high))
    digits = 0 if whole else 3 - int(f"{size:.3e}".split("e")[1])
    if high > low and not whole:
        first, exponent = f"{high - low:.1e}".split("e")
        digits = min(digits, (float(first) < 3) - int(exponent))
    digits = max(digits, 0)
    low_text, high_text = (f"{round(end, digits) + 0.0:.{digits}f}" for end in (low, high))
    return low_text, high_text  # + 0.0: no minus before a zero


def as_table(claims: Iterable[Claim]) -> pd.DataFrame:
    """Return one row per claim, one column per field of `Claim`."""
    return pd.DataFrame([asdict(claim) for claim in claims], columns=_fields())


def claims_table(profile: str = "fashion_small") -> pd.DataFrame:
    """Read the claims of all notebooks of a profile.

    Parameters
    ----------
    profile : str
        Reads ``figures/<profile>/NN_claims.csv``. A notebook without this file has no rows.

    Returns
    -------
    DataFrame
        `COLUMNS`, all text. First the claims in the order of the notebooks, then the discrepancies
        in the order of `paper.discrepancies`, one row per notebook that reports on it. For a
        discrepancy that no notebook reports on, notebook, measured, interval, margin and verdict
        are empty.

    Raises
    ------
    FileNotFoundError
        If no notebook of the profile has written claims.
    ValueError
        If a file has other columns, or holds an unknown paper, discrepancy or verdict.
    """
    folder = store.figures_dir(profile)
    files = {name: folder / f"{name.split('_')[0]}_claims.csv" for name in NOTEBOOKS}
    found = {name: file for name, file in files.items() if file.is_file()}
    if not found:
        raise FileNotFoundError(
            f"no claims in {folder}; run `memlens reproduce --profile {profile}` first"
        )
    frames = [_read(file).assign(notebook=name) for name, file in found.items()]
    rows = pd.concat(frames, ignore_index=True).rename(columns={"statement": "claim"})
    claims = rows[rows["kind"] == "claim"]
    return pd.concat([claims, _all_discrepancies(rows)], ignore_index=True)[list(COLUMNS)]


def _all_discrepancies(rows: pd.DataFrame) -> pd.DataFrame:
    """Join every discrepancy, with its current text, with the results of the notebooks."""
    results = rows.loc[rows["kind"] == "discrepancy"].drop(columns=["kind", "paper", "claim"])
    listed = paper.discrepancies().rename(columns={"id": "where", "discrepancy": "claim"})
    return listed.assign(kind="discrepancy").merge(results, on="where", how="left").fillna("")


def _fields() -> list[str]:
    return list(Claim.__dataclass_fields__)


def _read(file: Path) -> pd.DataFrame:
    """Read the claims of one notebook, and refuse files of another version."""
    advice = f"run `memlens reproduce --only {file.name.split('_')[0]}` again"
    try:
        rows = pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise ValueError(f"{file} is not a table of claims ({error}); {advice}") from error
    if list(rows.columns) != _fields():
        raise ValueError(
            f"{file} has the columns {', '.join(rows.columns)}; expected {', '.join(_fields())}; "
            f"{advice}"
        )
    ids = set(paper.discrepancies()["id"])
    for row in rows.itertuples():
        known = row.paper in paper.PAPERS if row.kind == "claim" else row.where in ids
        if not known or row.verdict not in _VERDICTS.get(row.kind, ()):
            found = f"{row.kind}, {row.paper}, {row.where}: {row.verdict}"
            raise ValueError(
                f"{file} has an unknown kind, paper, discrepancy or verdict: {found}; {advice}"
            )
    return rows


def summary(table: pd.DataFrame) -> str:
    """Count the claims by paper and verdict, and the discrepancies by verdict; plain text."""
    verdicts = table.loc[table["kind"] == "discrepancy", "verdict"]
    return (
        f"{_counts(table).to_string()}\n\ndiscrepancies: {_count_verdicts(verdicts)}"
        f"{_missing(table)}"
    )


def _counts(table: pd.DataFrame) -> pd.DataFrame:
    """Count claims by verdict and paper."""
    claims = table[table["kind"] == "claim"]
    counts = pd.DataFrame(
        {p: claims.loc[claims["paper"] == p, "verdict"].value_counts() for p in paper.PAPERS},
        index=pd.Index(paper.VERDICTS, name="claims"),
    )
    counts = counts.fillna(0).astype(int)
    return counts.assign(all=counts.sum(axis=1))


def _count_verdicts(verdicts: pd.Series) -> str:
    """Count each verdict that occurs, in a fixed order."""
    order = (*paper.VERDICTS, *paper.DISCREPANCY_VERDICTS, _NOT_TAKEN_UP)
    counts = verdicts.replace("", _NOT_TAKEN_UP).value_counts()
    return ", ".join(f"{verdict} {counts[verdict]}" for verdict in order if verdict in counts)


def _missing(table: pd.DataFrame) -> str:
    missing = [name for name in NOTEBOOKS if name not in set(table["notebook"])]
    return f"\n\nNothing from {', '.join(missing)}." if missing else ""


def to_markdown(table: pd.DataFrame) -> str:
    """Render the claims as GitHub markdown.

    Counts come first, then a folded table per paper, then the discrepancies.

    Parameters
    ----------
    table : DataFrame
        As `claims_table` returns it.

    Returns
    -------
    str
        Links to notebooks are relative to the root of the checkout. Text is escaped.
    """
    counts = _counts(table).reset_index()
    blocks = [_table([*counts], [map(str, row) for row in counts.itertuples(index=False)])]
    columns = ["where", "claim", "measured", "interval", "margin", "verdict"]
    for name, title in paper.PAPERS.items():
        rows = table[(table["kind"] == "claim") & (table["paper"] == name)]
        if len(rows):
            verdicts = _count_verdicts(rows["verdict"])
            head = f"<b>{name}</b>, <i>{html.escape(title)}</i>: {verdicts}"
            blocks.append(_folded(head, rows, columns, columns))
    discrepancies = table[table["kind"] == "discrepancy"]
    head = f"<b>What does not add up in the papers</b>: {_count_verdicts(discrepancies['verdict'])}"
    columns = ["where", "paper", "claim", "measured", "interval", "margin", "verdict"]
    names = [
        "discrepancy", "papers", "what does not add up", "our runs", "interval", "margin",
        "verdict",
    ]  # fmt: skip
    blocks.append(_folded(head, discrepancies, columns, names))
    return "\n\n".join(blocks) + _missing(table)


def _folded(head: str, rows: pd.DataFrame, columns: Sequence[str], names: Sequence[str]) -> str:
    """Fold a table under its headline; the last column links to the notebook."""
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
    """Escape text so that a table cell shows it unchanged, on one line."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*\[|~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)


def write_claims(path: Path, profile: str = "fashion_small") -> bool:
    """Write the claims between the two markers of a markdown file.

    Returns
    -------
    bool
        True if the file changed.

    Raises
    ------
    ValueError
        If a marker is missing, repeated, or in the wrong order; nothing is written.
    FileNotFoundError
        If there is no such file, or there are no claims; see `claims_table`.
    """
    old = path.read_bytes().decode()
    new = _with_claims(old, to_markdown(claims_table(profile)), path)
    if new != old:
        store.write_atomic(path, new.encode())
    return new != old


def is_current(path: Path, profile: str = "fashion_small") -> bool:
    """Return True if the file holds the current claims. Raises as `write_claims`."""
    old = path.read_bytes().decode()
    return _with_claims(old, to_markdown(claims_table(profile)), path) == old


def _with_claims(text: str, rendered: str, path: Path) -> str:
    for marker in (START, END):
        if text.count(marker) != 1:
            raise ValueError(
                f"{path} has {marker} {text.count(marker)} times; expected once: it marks where "
                "the claims are written"
            )
    before, rest = text.split(START)
    if END not in rest:
        raise ValueError(f"{path} has {END} before {START}; exchange the two markers")
    block = f"\n\n{rendered}\n\n"
    if "\r\n" in text:  # a checkout with Windows line ends
        block = block.replace("\n", "\r\n")
    return before + START + block + END + rest.split(END)[1]
