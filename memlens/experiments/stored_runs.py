"""Stored runs of notebooks: what a later run reuses, and what it is compared with.

The executed copy of a notebook has a stamp, a JSON file beside it. The copy is reused if the cells,
the parameters, the package and the numerical libraries are unchanged, and every file written by the
run still has the same content. The stamp is written last, so an interrupted run leaves none.

The numbers of a figure are stored beside it as a table. Two machines round differently, so trained
numbers differ in their last digits. Larger differences, and each changed verdict, are reported.
"""

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
from nbformat import NotebookNode

from memlens.storage import store

WIDGET = "application/vnd.jupyter.widget-view+json"
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LIBRARIES = ("torch", "numpy", "pandas", "scikit-learn", "matplotlib")
CLAIM = ["kind", "id"]  # columns that identify a claim or discrepancy

Tables = Mapping[str, pd.DataFrame]
Differences = dict[str, tuple[float, str]]


def clean(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook without timings, versions and widget states, which change every run.

    Two runs with the same outputs then give the same bytes.
    """
    cells = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "papermill-error-cell-tag" in tags:
            continue
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
        cells.append(cell)
    metadata = {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    return NotebookNode({**notebook, "cells": cells, "metadata": metadata})


def as_bytes(notebook: NotebookNode) -> bytes:
    """Return the content of the file of a cleaned notebook."""
    text = nbformat.writes(nbformat.from_dict(clean(notebook)))
    return (text.rstrip("\n") + "\n").encode()


def notebook_key(path: Path, changed: Mapping[str, Any], profile: str) -> str:
    """Return a hash of everything that determines the outputs of a notebook."""
    cells = [(c.cell_type, c.source) for c in nbformat.read(path, as_version=4).cells]
    package = sorted(p for p in store.PACKAGE.rglob("*") if p.is_file() and p.suffix != ".pyc")
    code = [hashlib.sha256(p.read_bytes()).hexdigest() for p in package]
    libraries = [platform.python_version(), *map(version, LIBRARIES)]
    return store.fingerprint([cells, dict(changed), profile, code, libraries])


def write_stamp(copy: Path, key: str, files: Iterable[Path], outcome: Mapping[str, Any]) -> None:
    """Write the stamp of an executed copy: its key, the checksums of its files, its outcome."""
    sums = {str(p.relative_to(copy.parent.parent)): _checksum(p) for p in (copy, *files)}
    stamp = {"key": key, "files": sums, "outcome": dict(outcome)}
    store.write_atomic(_stamp(copy), json.dumps(stamp, indent=1).encode())


def read_stamp(copy: Path, key: str) -> dict[str, Any] | None:
    """Return the outcome of an earlier run; None if its key or a file of it has changed."""
    try:
        stamp = json.loads(_stamp(copy).read_text())
        if stamp["key"] != key:
            return None
        folder = copy.parent.parent
        same = all(
            _checksum(folder / name) == checksum for name, checksum in stamp["files"].items()
        )
        return stamp["outcome"] if same else None
    except (OSError, ValueError, KeyError, AttributeError):  # no stamp, or a damaged one
        return None


def _stamp(copy: Path) -> Path:
    return copy.with_suffix(".json")


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_tables(folder: Path, number: str) -> dict[str, pd.DataFrame]:
    """Read the tables that a notebook has written.

    Parameters
    ----------
    folder : Path
        ``figures/<profile>/``.
    number : str
        Number of the notebook, such as ``"03"``.

    Returns
    -------
    dict of DataFrame
        By name without ending, such as ``"03_trade"``. Files that cannot be read as a table are
        left out.
    """
    tables = {}
    for file in sorted(folder.glob(f"{number}_*.csv")):
        try:
            tables[file.stem] = pd.read_csv(file, comment="#", na_values=[""])
        except (ValueError, UnicodeDecodeError):
            continue
    return tables


def figure_differences(old: Tables, new: Tables) -> Differences:
    """Return the largest difference of each figure that both hold.

    Returns
    -------
    dict
        By figure: the difference and its place, see `largest_difference`.
    """
    both = [name for name in new if name in old and not re.match(r"\d+_(claims|checks)", name)]
    return {name: largest_difference(old[name], new[name]) for name in both}


def largest_difference(old: pd.DataFrame, new: pd.DataFrame) -> tuple[float, str]:
    """Return the largest difference between two tables.

    Rows are matched by their text columns if these identify each row, otherwise by position.

    Returns
    -------
    difference : float
        As a share of the range of its column in the old table, or of the size of the column if the
        range is 0. Infinite if rows, columns, text or missing values differ.
    where : str
        The column, or what differs; empty if nothing does.
    """
    if list(old.columns) != list(new.columns):
        return np.inf, "other columns"
    if len(old) != len(new):
        return np.inf, f"{len(new)} rows, before {len(old)}"
    old, new = _sorted_by_text(old), _sorted_by_text(new)
    difference, where = 0.0, ""
    for column in old:
        share = _column_difference(old[column], new[column])
        if share > difference:
            difference, where = share, column
    return difference, where


def _sorted_by_text(table: pd.DataFrame) -> pd.DataFrame:
    """Sort the rows by their text columns, if these identify each row."""
    columns = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    if not columns or table.duplicated(columns).any():
        return table
    return table.sort_values(columns, ignore_index=True)


def _column_difference(old: pd.Series, new: pd.Series) -> float:
    """Return the largest difference of one column; infinite if text or missing values differ."""
    x, y = (pd.to_numeric(column, errors="coerce").to_numpy(float) for column in (old, new))
    is_text = np.isnan(x) & np.isnan(y)  # a table with several header rows mixes text and numbers
    if any(a != b for a, b in zip(_as_text(old[is_text]), _as_text(new[is_text]))):
        return np.inf
    finite = np.isfinite(x) & np.isfinite(y)
    if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return np.inf
    if not finite.any():
        return 0.0
    size = np.ptp(x[finite]) or np.abs(x[finite]).max() or 1.0
    return float(np.abs(x - y)[finite].max() / size)


def changed_verdicts(old: Tables, new: Tables) -> list[str]:
    """List the claims and discrepancies whose verdict has changed, a sentence each."""
    changed = []
    for name in new:
        if not re.fullmatch(r"\d+_claims", name) or name not in old:
            continue
        if not {*CLAIM, "verdict"} <= set(old[name]) & set(new[name]):
            continue
        pairs = old[name].merge(new[name], on=CLAIM, suffixes=("", "_now"))
        pairs = pairs[pairs["verdict"] != pairs["verdict_now"]]
        changed += [
            f"{row.id}: {row.verdict_now}, before: {row.verdict}" for row in pairs.itertuples()
        ]
    return changed


def _as_text(values: pd.Series) -> list[str]:
    return values.astype(object).where(values.notna(), "").astype(str).tolist()


def describe(differences: Differences, verdicts: Sequence[str]) -> str:
    """Format the figures that differ, the largest difference first, then the changed verdicts."""
    if not differences:
        return "No stored figures to compare with."
    changed = sorted(
        ((share, name, where) for name, (share, where) in differences.items() if share > 0),
        reverse=True,
    )
    n_equal = len(differences) - len(changed)
    lines = [f"Compared with the stored numbers: {n_equal} of {len(differences)} figures equal"]
    if changed:
        lines[0] += "; largest difference of the others, as a share of its column's range:"
    width = max((len(name) for _, name, _ in changed), default=0)
    for share, name, where in changed:
        size = "other rows or text" if np.isinf(share) else _percent(share)
        lines.append(f"  {name:<{width}}  {size:>8}  {where}")
    lines.append(f"Verdicts that changed: {len(verdicts) or 'none'}")
    lines += [f"  {sentence}" for sentence in verdicts]
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else "< 0.1%"
