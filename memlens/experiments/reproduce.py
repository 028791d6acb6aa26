"""The main job: run the notebooks in order, headless, and say what came of it.

papermill executes a copy of each notebook; the notebook itself is never written to while it runs.
Each executed copy lies in ``figures/<profile>/notebooks/``, also when the notebook failed. A copy
that is still what a new run would give is not made again.
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

from memlens.experiments import differences, stored_notebooks
from memlens.storage import store

HEAD_LINES = 6  # of a failing cell


@dataclass(frozen=True)
class Outcome:
    """What came of one notebook: no `failure` means that it ran to its end.

    `reused`: an earlier run still stands, and nothing was run. `figure_changes`
    and `verdict_changes` compare with what stood in the figures folder before the run.
    """

    notebook: str
    seconds: float
    figures: int
    claims: int
    hold: int
    failure: str
    reused: bool = False
    figure_changes: differences.Figures = field(default_factory=dict)
    verdict_changes: list[str] = field(default_factory=list)


def reproduce(
    profile: str = "digits",
    only: Sequence[str] = (),
    fresh: bool = False,
    save: bool = False,
    parameters: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> pd.DataFrame:
    """Run the notebooks in order and print the closing table.

    Parameters
    ----------
    profile : name in `memlens.experiments.profiles.PROFILES`: data set, net and configs
    only : numbers or beginnings of notebook names (``"02"``); none means all
    fresh : empty the cache and run all notebooks, so that everything is computed again
    save : store the outputs in the notebooks themselves; only with their own default parameters
    parameters : further notebook parameters; every notebook that is run must declare them
    folder : where the notebooks lie; the checkout's ``notebooks/`` by default

    Returns
    -------
    DataFrame
        A row per notebook: notebook, seconds, figures, claims, hold, failure ("" when it passed),
        reused (whether an earlier run still stands), figure_changes and verdict_changes
        (from what stood in the figures folder before, see `memlens.experiments.differences`).
        A notebook that fails does not stop those after it.

    Raises
    ------
    ValueError, FileNotFoundError
        If a profile, notebook or parameter is unknown, or no notebook is there; nothing was run.
    """
    paths = select(folder or store.root() / "notebooks", only)
    given = {**(parameters or {}), "profile": check_profile(profile)}
    changes = {path: changed_parameters(path, given) for path in paths}
    if save:
        check_defaults(changes)
    if fresh:
        print(f"cache emptied: {store.Store().clear()} artifacts")
    again = fresh or save
    outcomes = [
        (None if again else standing(path, changes[path], profile))
        or run(path, changes[path], profile, save)
        for path in with_progress(paths)
    ]
    report = pd.DataFrame(outcomes)
    print(closing_table(report, store.figures_dir(profile)))
    compared = {
        name: found for outcome in outcomes for name, found in outcome.figure_changes.items()
    }
    changed = [sentence for outcome in outcomes for sentence in outcome.verdict_changes]
    print(f"\n{differences.report(compared, changed)}")
    return report


def select(folder: Path, only: Sequence[str]) -> list[Path]:
    """The notebooks of the folder in order, or those whose names begin as `only` says."""
    paths = sorted(folder.glob("[0-9]*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"no notebooks in {folder}; run from a checkout of memlens")
    unknown = [start for start in only if not any(p.name.startswith(start) for p in paths)]
    if unknown:
        names = ", ".join(p.stem for p in paths)
        raise ValueError(f"no notebook begins with {', '.join(unknown)}; there are: {names}")
    return [p for p in paths if not only or p.name.startswith(tuple(only))]


def check_profile(profile: str) -> str:
    """The name itself, if it is a profile."""
    from memlens.experiments.profiles import PROFILES

    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; there are: {', '.join(PROFILES)}")
    return profile


def changed_parameters(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those given parameters that differ from the notebook's defaults.

    papermill only warns about a parameter that the notebook does not know, and the default then
    stands in silence; here it is an error, and so is a value of another type than the default's.
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
                f"{path.stem}: parameter {name!r} is {type(default).__name__} {default!r}, "
                f"given was {type(value).__name__} {value!r}"
            )
        if value != default:
            changed[name] = value
    return changed


def check_defaults(changes: Mapping[Path, Mapping[str, Any]]) -> None:
    """Refuse to store outputs that the notebook, run as it stands, would not give."""
    for path, changed in changes.items():
        if changed:
            what = ", ".join(f"{name}={value!r}" for name, value in changed.items())
            raise ValueError(
                f"only outputs of its own defaults can be stored in a notebook; {path.stem} "
                f"would run with {what}. Leave out --save: the executed copy is kept anyway"
            )


def with_progress(paths: Sequence[Path]) -> Iterator[Path]:
    """The paths one by one, under a progress bar; where there is no terminal, a line each."""
    with tqdm(paths, disable=None, unit="notebook", leave=False) as bar:
        for number, path in enumerate(bar, 1):
            bar.set_description(path.stem)
            if bar.disable:
                print(f"{number}/{len(paths)} {path.stem}", flush=True)
            yield path


def standing(path: Path, changed: Mapping[str, Any], profile: str) -> Outcome | None:
    """The outcome of an earlier run, if running the notebook again would change nothing."""
    start = time.perf_counter()
    copy = store.figures_dir(profile) / "notebooks" / path.name
    earlier = stored_notebooks.recall(copy, stored_notebooks.key_of(path, changed, profile))
    if earlier is None:
        return None
    return Outcome(path.stem, time.perf_counter() - start, reused=True, failure="", **earlier)


def run(path: Path, changed: Mapping[str, Any], profile: str, save: bool) -> Outcome:
    """Run one notebook; whatever goes wrong in it ends in the outcome, not in an exception."""
    figures, number = store.figures_dir(profile), path.stem.split("_")[0]
    before, stored = ages(figures, number), differences.read(figures, number)
    start = time.perf_counter()
    key = stored_notebooks.key_of(
        path, changed, profile
    )  # as it is now: it may be edited meanwhile
    notebook, failure = execute(path, changed)
    seconds = time.perf_counter() - start
    made = {p for p, age in ages(figures, number).items() if before.get(p) != age}
    tables = differences.read(figures, number)
    claims = [p for p in made if re.fullmatch(r"\d+_claims(_first_look)?\.csv", p.name)]
    entries = pd.read_csv(claims[0]) if claims else pd.DataFrame({"kind": [], "verdict": []})
    verdicts = entries.loc[entries["kind"] == "claim", "verdict"]  # the rest are discrepancies
    result = {
        "figures": sum(p.suffix == ".png" for p in made),
        "claims": len(verdicts),
        "hold": int((verdicts == "holds").sum()),
        "figure_changes": differences.figures(stored, tables),
        "verdict_changes": differences.verdicts(stored, tables),
    }
    if notebook is not None:
        copy = figures / "notebooks" / path.name
        store.write_atomic(copy, stored_notebooks.as_bytes(notebook))
    if failure:
        tqdm.write(f"\n{path.stem} failed {failure}\n", file=sys.stderr)
    elif notebook is not None:
        stored_notebooks.remember(copy, key, made, result)
        if save:
            store.write_atomic(path, copy.read_bytes())
    return Outcome(path.stem, seconds, failure=failure, **result)


def ages(figures: Path, number: str) -> dict[Path, int]:
    """When each file of one notebook was last written, in ns."""
    return {p: p.stat().st_mtime_ns for p in figures.glob(f"{number}_*")}


def execute(path: Path, changed: Mapping[str, Any]) -> tuple[NotebookNode | None, str]:
    """The executed notebook, as far as it came, and what stopped it ("" for nothing)."""
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
            failure = describe(error, injected=bool(changed))
        except Exception as error:  # the kernel died, or never started
            failure = f"outside its cells: {type(error).__name__}: {error}"
        notebook = nbformat.read(out, as_version=4) if out.exists() else None
    return notebook, failure


def describe(error: PapermillExecutionError, injected: bool) -> str:
    """Where the notebook stopped: cell number (from 1, as in the file), its head, the error."""
    number = error.cell_index + (0 if injected else 1)
    lines = error.source.splitlines()
    head = [f"    {line}" for line in lines[:HEAD_LINES]]
    if len(lines) > HEAD_LINES:
        head.append("    ...")
    return "\n".join([f"in cell {number}:", *head, f"{error.ename}: {error.evalue}"])


@contextmanager
def kernel_environment() -> Iterator[None]:
    """Start kernels with this Python and this memlens, whatever the user's own settings are.

    A kernelspec of the user's, or a JUPYTER_PATH, would replace the kernel; an MPLBACKEND would
    keep the figures out of the notebook.
    """
    before = dict(os.environ)
    for name in ("JUPYTER_PATH", "MPLBACKEND"):
        os.environ.pop(name, None)
    package = str(store.PACKAGE.parent)
    places = [package, *filter(None, [before.get("PYTHONPATH")])]
    os.environ.update(JUPYTER_PREFER_ENV_PATH="1", PYTHONPATH=os.pathsep.join(places))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def closing_table(report: pd.DataFrame, figures: Path) -> str:
    """A line per notebook, and the sum; failures are marked, their reasons were shown before."""
    table = pd.DataFrame(
        {
            "notebook": report["notebook"],
            "seconds": report["seconds"].map("{:.1f}".format),
            "figures": report["figures"],
            "claims that hold": [
                f"{h} of {c}" for h, c in zip(report["hold"], report["claims"], strict=True)
            ],
            "": [
                "FAILED" if failure else "unchanged" if reused else ""
                for failure, reused in zip(report["failure"], report["reused"], strict=True)
            ],
        }
    )
    total = report[["seconds", "figures", "hold", "claims"]].sum()
    return (
        f"\n{table.to_string(index=False)}\n\n"
        f"{len(report)} notebooks, {total['seconds']:.0f} s; {total['figures']:.0f} figures, with "
        f"their numbers, in {figures}; {total['hold']:.0f} of {total['claims']:.0f} claims hold"
    )
