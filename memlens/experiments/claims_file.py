"""The results of all notebooks: one table of claims and discrepancies, and its copy in CLAIMS.md.

Each notebook writes its results to ``figures/<profile>/NN_claims.csv`` (see
`NotebookReport.judge` and `NotebookReport.discrepancy`). `claims_table` joins these files with the
claims and discrepancies themselves, `to_markdown` renders them, and `write_claims` replaces the
text between two markers in CLAIMS.md. That text is never edited by hand.
"""

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from memlens.experiments import paper
from memlens.experiments.claims import NOTEBOOKS, claims
from memlens.storage import store

RESULT = ("kind", "id", "measured", "verdict")  # columns of NN_claims.csv
COLUMNS = ("notebook", "kind", "id", "paper", "where", "claim", "measured", "verdict")
CLAIMS_FILE = "CLAIMS.md"  # in the root of the checkout
START, END = "<!-- claims:start -->", "<!-- claims:end -->"
_VERDICTS = {"claim": paper.VERDICTS, "discrepancy": paper.DISCREPANCY_VERDICTS}
_NOT_TAKEN_UP = "not taken up"
_UNTESTABLE = paper.VERDICTS[3]


def claims_table(profile: str = "fashion_small") -> pd.DataFrame:
    """Join the claims and discrepancies with the results of a profile's notebooks.

    Parameters
    ----------
    profile : str
        Reads ``figures/<profile>/NN_claims.csv``. A notebook without this file has no results.

    Returns
    -------
    DataFrame
        `COLUMNS`, all text, with a row for each claim and then each discrepancy, in the order of
        their tables. ``claim`` is the statement, ``where`` the place in the paper (of a
        discrepancy its id). Without a result, measured and verdict are empty.

    Raises
    ------
    FileNotFoundError
        If no notebook of the profile has written results.
    ValueError
        If a file has other columns, holds an unknown id or verdict, or two notebooks report on one
        discrepancy.
    """
    folder = store.figures_dir(profile)
    files = {name: folder / f"{name.split('_')[0]}_claims.csv" for name in NOTEBOOKS}
    found = {name: file for name, file in files.items() if file.is_file()}
    if not found:
        raise FileNotFoundError(
            f"no claims in {folder}; run `memlens reproduce --profile {profile}` first"
        )
    results = pd.concat([_read(file, name) for name, file in found.items()], ignore_index=True)
    if (twice := results.duplicated(["kind", "id"])).any():
        names = ", ".join(results.loc[twice, "id"])
        raise ValueError(f"two notebooks report on {names}; let one of them do it")
    every = pd.concat([_all_claims(), _all_discrepancies()], ignore_index=True)
    joined = every.merge(results, on=["kind", "id"], how="left", suffixes=("", "_of")).fillna("")
    for column in ("measured", "verdict", "notebook"):
        joined[column] = joined[column].where(joined[column] != "", joined[f"{column}_of"])
    return joined[list(COLUMNS)]


def _all_claims() -> pd.DataFrame:
    """Return every claim; those that cannot be tested here have their verdict already."""
    rows = [
        {
            "notebook": entry.notebook, "kind": "claim", "id": entry.id, "paper": entry.paper,
            "where": entry.where, "claim": entry.statement,
            "measured": f"needs {entry.needs}" if entry.needs else "",
            "verdict": _UNTESTABLE if entry.needs else "",
        }
        for entry in claims().values()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _all_discrepancies() -> pd.DataFrame:
    listed = paper.discrepancies()
    renamed = listed.rename(columns={"discrepancy": "claim"})[["id", "paper", "claim"]]
    empty = {"notebook": "", "measured": "", "verdict": ""}
    return renamed.assign(kind="discrepancy", where=listed["id"], **empty)


def _read(file: Path, notebook: str) -> pd.DataFrame:
    """Read the results of one notebook, and refuse files of another version."""
    advice = f"run `memlens reproduce --only {file.name.split('_')[0]}` again"
    try:
        rows = pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise ValueError(f"{file} is not a table of claims ({error}); {advice}") from error
    if list(rows.columns) != list(RESULT):
        raise ValueError(
            f"{file} has the columns {', '.join(rows.columns)}; expected {', '.join(RESULT)}; "
            f"{advice}"
        )
    ids = {"discrepancy": set(paper.discrepancies()["id"])}
    ids["claim"] = {name for name, entry in claims().items() if entry.notebook == notebook}
    for row in rows.itertuples():
        if row.id not in ids.get(row.kind, ()) or row.verdict not in _VERDICTS[row.kind]:
            raise ValueError(
                f"{file} has an unknown kind, id or verdict: {row.kind}, {row.id}: {row.verdict}; "
                f"{advice}"
            )
    return rows.assign(notebook=notebook)


def summary(table: pd.DataFrame) -> str:
    """Count the claims by paper and verdict, and the discrepancies by verdict; plain text."""
    verdicts = table.loc[table["kind"] == "discrepancy", "verdict"]
    return (
        f"{_counts(table).to_string()}\n\ndiscrepancies: {_count_verdicts(verdicts)}"
        f"{_missing(table)}"
    )


def _counts(table: pd.DataFrame) -> pd.DataFrame:
    """Count claims by verdict and paper."""
    entries = table[table["kind"] == "claim"]
    counts = pd.DataFrame(
        {p: entries.loc[entries["paper"] == p, "verdict"].value_counts() for p in paper.PAPERS},
        index=pd.Index(paper.VERDICTS, name="claims"),
    )
    counts = counts.fillna(0).astype(int)
    return counts.assign(all=counts.sum(axis=1))


def _count_verdicts(verdicts: pd.Series) -> str:
    """Count each verdict that occurs, in a fixed order."""
    ours, printed = paper.DISCREPANCY_VERDICTS[:3], paper.DISCREPANCY_VERDICTS[4]
    order = dict.fromkeys((*ours, printed, *paper.VERDICTS, _NOT_TAKEN_UP))
    counts = verdicts.replace("", _NOT_TAKEN_UP).value_counts()
    return ", ".join(f"{verdict} {counts[verdict]}" for verdict in order if verdict in counts)


def _missing(table: pd.DataFrame) -> str:
    judged = set(table.loc[~table["verdict"].isin(["", _UNTESTABLE]), "notebook"])
    missing = [name for name in NOTEBOOKS if name not in judged]
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
    columns = ["where", "claim", "measured", "verdict"]
    for name, title in paper.PAPERS.items():
        rows = table[(table["kind"] == "claim") & (table["paper"] == name)]
        rows = rows[rows["verdict"] != ""]
        if len(rows):
            verdicts = _count_verdicts(rows["verdict"])
            head = f"<b>{name}</b>, <i>{html.escape(title)}</i>: {verdicts}"
            blocks.append(_folded(head, rows, columns, columns))
    discrepancies = table[table["kind"] == "discrepancy"]
    head = f"<b>What does not add up in the papers</b>: {_count_verdicts(discrepancies['verdict'])}"
    columns = ["where", "paper", "claim", "measured", "verdict"]
    names = ["discrepancy", "papers", "what does not add up", "our runs", "verdict"]
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
