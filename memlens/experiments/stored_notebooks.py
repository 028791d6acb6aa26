"""Executed copies of notebooks, and the stamps by which a later run reuses them.

A stamp is a JSON file beside the executed copy. The copy is reused if the cells, the parameters,
the package and the numerical libraries are unchanged, and every file written by the run still has
the same content. The stamp is written last, so an interrupted run leaves none.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from memlens.storage import store

WIDGET = "application/vnd.jupyter.widget-view+json"
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LIBRARIES = ("torch", "numpy", "pandas", "scikit-learn", "matplotlib")


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
    package = sorted(p for p in store.PACKAGE.rglob("*") if p.suffix in (".py", ".csv"))
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
