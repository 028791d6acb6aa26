"""``memlens reproduce``: run the notebooks in order, headless, and report the results.

papermill executes a copy of each notebook; the notebook itself is not changed. Executed copies are
stored in ``figures/<profile>/notebooks/``, even if the notebook failed. An earlier run is reused if
nothing that determines its outputs has changed.
"""

import ast
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import papermill
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from memlens.experiments import stored_runs
from memlens.storage import store

HEAD_LINES = 6  # of a failing cell


@dataclass(frozen=True)
class Outcome:
    """The outcome of one notebook.

    Attributes
    ----------
    notebook : str
    seconds : float
    figures, claims, hold : int
        Numbers of figures, of claims, and of claims that hold.
    failure : str
        Empty if the notebook ran to its end.
    reused : bool
        True if an earlier run was reused.
    figure_changes, verdict_changes
        Differences from the files in the figures folder before the run, see `stored_runs`.
    """

    notebook: str
    seconds: float
    figures: int
    claims: int
    hold: int
    failure: str
    reused: bool = False
    figure_changes: stored_runs.Differences = field(default_factory=dict)
    verdict_changes: list[str] = field(default_factory=list)


def reproduce(
    profile: str = "fashion_small",
    only: Sequence[str] = (),
    fresh: bool = False,
    save: bool = False,
    parameters: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> pd.DataFrame:
    """Run the notebooks in order and print a summary.

    Parameters
    ----------
    profile : str
        A name from `profiles.PROFILES`.
    only : sequence of str
        Numbers or beginnings of notebook names, such as ``"02"``; empty: all.
    fresh : bool
        Empty the cache first, so that everything is computed again.
    save : bool
        Store the outputs in the notebooks themselves; only with their default parameters.
    parameters : mapping, optional
        Further notebook parameters; every notebook that is run must declare them.
    folder : Path, optional
        The folder of the notebooks, by default ``notebooks/`` of the checkout.

    Returns
    -------
    DataFrame
        One row per notebook, one column per field of `Outcome`. A notebook that fails does not stop
        the following ones.

    Raises
    ------
    ValueError, FileNotFoundError
        If a profile, notebook or parameter is unknown, or there are no notebooks; nothing was run.
    """
    paths = select(folder or store.root() / "notebooks", only)
    check_profile(profile)
    given = {**(parameters or {}), "profile": profile}
    changes = {path: changed_parameters(path, given) for path in paths}
    if save:
        check_defaults(changes)
    if fresh:
        print(f"cache emptied: {store.Store().clear()} artifacts")
    outcomes = []
    for path in with_progress(paths):
        outcome = None if fresh or save else reuse(path, changes[path], profile)
        outcomes.append(outcome or run(path, changes[path], profile, save))
    table = pd.DataFrame(outcomes)
    print(closing_summary(table, store.figures_dir(profile)))
    figures = {name: d for outcome in outcomes for name, d in outcome.figure_changes.items()}
    verdicts = [sentence for outcome in outcomes for sentence in outcome.verdict_changes]
    print(f"\n{stored_runs.describe(figures, verdicts)}")
    return table


def select(folder: Path, only: Sequence[str]) -> list[Path]:
    """Return the notebooks of a folder in order, or those that begin with one of `only`."""
    paths = sorted(folder.glob("[0-9]*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"no notebooks in {folder}; run from a checkout of memlens")
    unknown = [start for start in only if not any(p.name.startswith(start) for p in paths)]
    if unknown:
        names = ", ".join(p.stem for p in paths)
        raise ValueError(f"no notebook begins with {', '.join(unknown)}; there are: {names}")
    return [p for p in paths if not only or p.name.startswith(tuple(only))]


def check_profile(profile: str) -> None:
    """Refuse a name that is not a profile."""
    from memlens.experiments.profiles import PROFILES

    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; there are: {', '.join(PROFILES)}")


def changed_parameters(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given parameters that differ from the notebook's defaults.

    Raises
    ------
    ValueError
        For a parameter that the notebook does not declare (papermill would only warn and use the
        default), or a value of another type than the default.
    """
    declared = papermill.inspect_notebook(str(path))
    changed = {}
    for name, value in given.items():
        if name not in declared:
            raise ValueError(
                f"{path.stem} has no parameter {name!r}; it has: {', '.join(declared) or 'none'}"
            )
        default = ast.literal_eval(declared[name]["default"])
        as_float = isinstance(default, float) and type(value) is int
        if default is not None and not as_float and type(value) is not type(default):
            raise ValueError(
                f"{path.stem}: parameter {name!r} is {type(value).__name__} {value!r}; expected "
                f"{type(default).__name__}, as its default {default!r}"
            )
        if value != default:
            changed[name] = value
    return changed


def check_defaults(changes: Mapping[Path, Mapping[str, Any]]) -> None:
    """Refuse to store outputs of other parameters than the notebook's defaults."""
    for path, changed in changes.items():
        if changed:
            values = ", ".join(f"{name}={value!r}" for name, value in changed.items())
            raise ValueError(
                f"{path.stem} would run with {values}, but only outputs of the default parameters "
                "can be stored in a notebook. Leave out --save: the executed copy is kept anyway"
            )


def with_progress(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the paths with a progress bar, or, without a terminal, with a line for each."""
    with tqdm(paths, disable=None, unit="notebook", leave=False) as bar:
        for number, path in enumerate(bar, 1):
            bar.set_description(path.stem)
            if bar.disable:
                print(f"{number}/{len(paths)} {path.stem}", flush=True)
            yield path


def reuse(path: Path, changed: Mapping[str, Any], profile: str) -> Outcome | None:
    """Return the outcome of an earlier run, if nothing has changed since; otherwise None."""
    start = time.perf_counter()
    copy = store.figures_dir(profile) / "notebooks" / path.name
    key = stored_runs.notebook_key(path, changed, profile)
    earlier = stored_runs.read_stamp(copy, key)
    if earlier is None:
        return None
    return Outcome(path.stem, time.perf_counter() - start, reused=True, failure="", **earlier)


def run(path: Path, changed: Mapping[str, Any], profile: str, save: bool) -> Outcome:
    """Run one notebook; an error in it is reported in the outcome, not raised."""
    figures, number = store.figures_dir(profile), path.stem.split("_")[0]
    before = modification_times(figures, number)
    stored = stored_runs.read_tables(figures, number)
    start = time.perf_counter()
    # before the run, during which the notebook may be edited
    key = stored_runs.notebook_key(path, changed, profile)
    notebook, failure = execute(path, changed)
    seconds = time.perf_counter() - start
    after = modification_times(figures, number)
    written = {p for p, time_ns in after.items() if before.get(p) != time_ns}
    tables = stored_runs.read_tables(figures, number)
    claims = [p for p in written if re.fullmatch(r"\d+_claims(_first_look)?\.csv", p.name)]
    entries = pd.read_csv(claims[0]) if claims else pd.DataFrame({"kind": [], "verdict": []})
    verdicts = entries.loc[entries["kind"] == "claim", "verdict"]  # the rest are discrepancies
    result = {
        "figures": sum(p.suffix == ".png" for p in written),
        "claims": len(verdicts),
        "hold": int((verdicts == "holds").sum()),
        "figure_changes": stored_runs.figure_differences(stored, tables),
        "verdict_changes": stored_runs.changed_verdicts(stored, tables),
    }
    if notebook is not None:
        copy = figures / "notebooks" / path.name
        store.write_atomic(copy, stored_runs.as_bytes(notebook))
    if failure:
        tqdm.write(f"\n{path.stem} failed {failure}\n", file=sys.stderr)
    elif notebook is not None:
        stored_runs.write_stamp(copy, key, written, result)
        if save:
            store.write_atomic(path, copy.read_bytes())
    return Outcome(path.stem, seconds, failure=failure, **result)


def modification_times(figures: Path, number: str) -> dict[Path, int]:
    """Return the modification time of each file of one notebook, in ns."""
    return {p: p.stat().st_mtime_ns for p in figures.glob(f"{number}_*")}


def execute(path: Path, changed: Mapping[str, Any]) -> tuple[NotebookNode | None, str]:
    """Return the executed notebook, complete or not, and the reason for a failure (or "")."""
    failure = ""
    with tempfile.TemporaryDirectory(prefix="memlens-") as scratch, kernel_environment():
        out = Path(scratch) / "executed.ipynb"
        try:
            papermill.execute_notebook(
                path,
                out,
                parameters=dict(changed),
                kernel_name="python3",
                cwd=path.parent,
                progress_bar={"disable": None, "leave": False, "desc": path.stem},
                coalesce_streams=True,
                # hides a warning about TCP, and the kernel's own traceback after Ctrl-C
                extra_arguments=["--IPKernelApp.log_level=50"],
            )
        except PapermillExecutionError as error:
            failure = explain_failure(error, injected=bool(changed))
        except Exception as error:  # the kernel died, or never started
            failure = f"outside its cells: {type(error).__name__}: {error}"
        notebook = nbformat.read(out, as_version=4) if out.exists() else None
    return notebook, failure


def explain_failure(error: PapermillExecutionError, injected: bool) -> str:
    """Return the number of the failing cell (from 1, as in the file), its head and the error."""
    number = error.cell_index + (0 if injected else 1)
    lines = error.source.splitlines()
    head = [f"    {line}" for line in lines[:HEAD_LINES]]
    if len(lines) > HEAD_LINES:
        head.append("    ...")
    return "\n".join([f"in cell {number}:", *head, f"{error.ename}: {error.evalue}"])


@contextmanager
def kernel_environment() -> Iterator[None]:
    """Start kernels with this Python and this memlens, regardless of the user's settings.

    A kernelspec of the user or a JUPYTER_PATH would replace the kernel. An MPLBACKEND would keep
    figures out of the notebook.
    """
    before = dict(os.environ)
    for name in ("JUPYTER_PATH", "MPLBACKEND"):
        os.environ.pop(name, None)
    package = str(store.PACKAGE.parent)
    folders = [package, *filter(None, [before.get("PYTHONPATH")])]
    os.environ.update(JUPYTER_PREFER_ENV_PATH="1", PYTHONPATH=os.pathsep.join(folders))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def closing_summary(outcomes: pd.DataFrame, figures: Path) -> str:
    """Format a line per notebook and the totals; the reasons of failures were printed before."""
    table = pd.DataFrame(
        {
            "notebook": outcomes["notebook"],
            "seconds": outcomes["seconds"].map("{:.1f}".format),
            "figures": outcomes["figures"],
            "claims that hold": [
                f"{h} of {c}" for h, c in zip(outcomes["hold"], outcomes["claims"], strict=True)
            ],
            "": [
                "FAILED" if failure else "unchanged" if reused else ""
                for failure, reused in zip(outcomes["failure"], outcomes["reused"], strict=True)
            ],
        }
    )
    total = outcomes[["seconds", "figures", "hold", "claims"]].sum()
    return (
        f"\n{table.to_string(index=False)}\n\n"
        f"{len(outcomes)} notebooks, {total['seconds']:.0f} s; {total['figures']:.0f} figures, "
        f"with their numbers, in {figures}; {total['hold']:.0f} of {total['claims']:.0f} claims "
        "hold"
    )
