"""How the numbers of a new run differ from those that stood in the figures folder before.

A figure's numbers lie beside it as a table. Two machines round differently, so trained numbers move
in their last digits; what is larger, and each verdict that changed, should not pass unseen.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

CLAIM = ["kind", "paper", "where", "statement"]

Tables = Mapping[str, pd.DataFrame]
Figures = dict[str, tuple[float, str]]


def read(folder: Path, number: str) -> dict[str, pd.DataFrame]:
    """Read the tables that a notebook left, by name: of its figures, and of its claims.

    Parameters
    ----------
    folder : Path
        ``figures/<profile>/``.
    number : str
        Number of the notebook, such as ``"03"``.

    Returns
    -------
    dict of DataFrame
        By name without ending, such as ``"03_trade"``. A file that is no table is left out, as if
        it had not been there.
    """
    tables = {}
    for file in sorted(folder.glob(f"{number}_*.csv")):
        try:
            tables[file.stem] = pd.read_csv(file, comment="#", na_values=[""])
        except (ValueError, UnicodeDecodeError):
            continue
    return tables


def figures(old: Tables, new: Tables) -> Figures:
    """Find the largest difference of each figure that was there before.

    Returns
    -------
    dict
        By figure: the difference and where it is, see `largest`.
    """
    both = [name for name in new if name in old and not re.match(r"\d+_(claims|checks)", name)]
    return {name: largest(old[name], new[name]) for name in both}


def largest(old: pd.DataFrame, new: pd.DataFrame) -> tuple[float, str]:
    """Find the largest difference between two tables of numbers.

    Rows that words name uniquely are compared by name, in whatever order they stand; others by
    their place.

    Returns
    -------
    difference : float
        As a share of its column's range in the old table, or of its size where the range is 0;
        infinite if rows, columns, words or gaps differ.
    where : str
        The column, or what differs; empty if nothing does.
    """
    if list(old.columns) != list(new.columns):
        return np.inf, "other columns"
    if len(old) != len(new):
        return np.inf, f"{len(new)} rows, before {len(old)}"
    old, new = _by_name(old), _by_name(new)
    found = 0.0, ""
    for column in old:
        share = _share(old[column], new[column])
        if share > found[0]:
            found = share, column
    return found


def _by_name(table: pd.DataFrame) -> pd.DataFrame:
    """Sort the rows by their words, if no two rows have the same."""
    words = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    if not words or table.duplicated(words).any():
        return table
    return table.sort_values(words, ignore_index=True)


def _share(old: pd.Series, new: pd.Series) -> float:
    """Return the largest difference of one column; infinite where words or gaps differ."""
    x, y = (pd.to_numeric(column, errors="coerce").to_numpy(float) for column in (old, new))
    words = np.isnan(x) & np.isnan(y)  # a table with several lines of names has both in a column
    if any(a != b for a, b in zip(_text(old[words]), _text(new[words]))):
        return np.inf
    finite = np.isfinite(x) & np.isfinite(y)
    if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return np.inf
    if not finite.any():
        return 0.0
    size = np.ptp(x[finite]) or np.abs(x[finite]).max() or 1.0
    return float(np.abs(x - y)[finite].max() / size)


def verdicts(old: Tables, new: Tables) -> list[str]:
    """List the claims and discrepancies whose verdict is another than before, a sentence each."""
    changed = []
    for name in new:
        if not re.fullmatch(r"\d+_claims", name) or name not in old:
            continue
        if not {*CLAIM, "verdict"} <= set(old[name]) & set(new[name]):
            continue
        pairs = old[name].merge(new[name], on=CLAIM, suffixes=("", "_now"))
        pairs = pairs[pairs["verdict"] != pairs["verdict_now"]]
        changed += [
            f"{row.paper} {row.where} ({row.statement}): {row.verdict_now}, before: {row.verdict}"
            for row in pairs.itertuples()
        ]
    return changed


def _text(values: pd.Series) -> list[str]:
    return values.astype(object).where(values.notna(), "").astype(str).tolist()


def report(differences: Figures, changed: Sequence[str]) -> str:
    """Write both as text: the figures that differ, the largest first, then the verdicts."""
    if not differences:
        return "No figure stood there before to compare with."
    moved = sorted(
        ((share, name, where) for name, (share, where) in differences.items() if share > 0),
        reverse=True,
    )
    same = len(differences) - len(moved)
    lines = [f"Compared with the numbers stored before: {same} of {len(differences)} figures equal"]
    if moved:
        lines[0] += "; largest difference of the others, as a share of its column's range:"
    width = max((len(name) for _, name, _ in moved), default=0)
    for share, name, where in moved:
        size = "other rows or words" if np.isinf(share) else _percent(share)
        lines.append(f"  {name:<{width}}  {size:>8}  {where}")
    lines.append(f"Verdicts that changed: {len(changed) or 'none'}")
    lines += [f"  {sentence}" for sentence in changed]
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else "< 0.1%"
