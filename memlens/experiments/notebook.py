"""What a notebook opens in its set-up cell: its profile, and where figures, facts and claims go.

    report = ml.open_report("02_similarity", profile)

Facts are printed as yes or NO, because nbval compares text, not pictures, and a trained number is
not the same to the last digit on another machine. A fact must be far enough from its threshold to
be the same everywhere; what is closer is an observation, and is not compared.
"""

import ast
import re
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memlens.evaluation import plots
from memlens.experiments import margins, paper, profiles
from memlens.experiments.claims import (
    NOTEBOOKS,
    Claim,
    Interval,
    as_table,
    interval_text,
    margin_text,
)
from memlens.experiments.margins import Comparison
from memlens.storage import store

Parts = Comparison | Sequence[Comparison]

CHECKED = "digits"  # the profile whose facts must hold: the thresholds were measured on it
DPI = 200  # of the saved pictures: sharp on a page, and small enough to keep in git


def open_report(
    notebook: str, profile: str, scale: float = 1.0, n_samples: int = 0
) -> "NotebookReport":
    """Open a notebook's page, and set the house style.

    Parameters
    ----------
    notebook : str
        Name of the notebook, one of `NOTEBOOKS`.
    profile : str
        Name of a profile, as the parameters cell says.
    scale : float in (0, 1]
        Below 1: a first look with fewer epochs and nets, see `profiles.Profile.scaled`.
    n_samples : int
        Training samples to take; 0: all. What is left out stands on every figure.

    Raises
    ------
    ValueError
        For an unknown notebook or profile, or when papermill was given a parameter that the
        parameters cell does not declare; papermill itself would only warn and go on.
    """
    if notebook not in NOTEBOOKS:
        raise ValueError(f"unknown notebook {notebook!r}; there are: {', '.join(NOTEBOOKS)}")
    unknown, known = unknown_parameters(_input_history())
    if unknown:
        raise ValueError(
            f"unknown parameter {', '.join(unknown)}; {notebook} has: {', '.join(known) or 'none'}"
        )
    report = NotebookReport(notebook, profile, scale, n_samples)
    plots.apply_style()
    return report


class NotebookReport:
    """A notebook's profile, and what it leaves behind in ``figures/<profile>/``.

    Attributes
    ----------
    notebook : str
        Name of the notebook; its number starts the name of every file.
    profile : Profile
        Data set, nets and configs to run with.
    folder : Path
        Where the files go; independent of the working directory.
    """

    def __init__(self, notebook: str, profile: str, scale: float = 1.0, n_samples: int = 0) -> None:
        self.notebook = notebook
        self.profile = profiles.get_profile(profile)
        if scale != 1 or n_samples:
            self.profile = self.profile.scaled(scale, n_samples or None)
        self.folder = store.figures_dir(profile)
        self._must_hold = profile == CHECKED and not self.profile.cuts
        self._claims: dict[tuple[str, str, str], Claim] = {}
        self._checks: dict[tuple[str, str], tuple[Comparison, ...]] = {}

    def figure(
        self, drawing: Figure | Axes | np.ndarray, name: str, data: pd.DataFrame, caption: str
    ) -> None:
        """Save a figure as ``NN_name.png``, and exactly what it draws as ``NN_name.csv``.

        The figure stays open, so that the notebook shows it below the cell. The CSV starts with the
        caption in lines of ``#`` and reads back with ``pd.read_csv(path, comment="#")``.

        Parameters
        ----------
        drawing : Figure, Axes or array of Axes
            What was drawn on.
        name : str
            Lower-case letters, digits and underscores.
        data : DataFrame
            The numbers drawn, unrounded; its index is written unless it only counts the rows.
        caption : str
            The message, the number of seeds, and the paper's figure where there is one.

        Raises
        ------
        ValueError
            For a bad name, an empty table or an empty caption; nothing is written.
        """
        if not re.fullmatch(r"[a-z0-9_]+", name) or name in ("claims", "checks"):
            raise ValueError(
                f"figure name {name!r}: use a-z, 0-9 and _, but not 'claims' or 'checks'"
            )
        if data.empty or not caption.strip():
            raise ValueError(f"figure {name!r} needs the numbers it draws and a caption")
        picture, figure = BytesIO(), _figure_of(drawing)
        if self.profile.name != CHECKED and self.notebook in NOTEBOOKS:
            caption = f"{caption.strip()}\nThe words are those for {CHECKED}, the numbers are not."
        if self.profile.cuts:
            mark = f"First look, not the whole profile: {', '.join(self.profile.cuts)}."
            plots.footnote(figure, mark)
            caption = f"{caption.strip()}\n{mark}"
        # matplotlib's version would otherwise be written into the file and change its bytes
        figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
        header = "".join(f"# {line.strip()}\n" for line in caption.strip().splitlines())
        counts_rows = data.index.equals(pd.RangeIndex(len(data))) and data.index.name is None
        table = data.to_csv(index=not counts_rows, lineterminator="\n")
        store.write_atomic(self._path(f"{name}.csv"), (header + table).encode())
        store.write_atomic(self._path(f"{name}.png"), picture.getvalue())

    def check(self, text: str, comparison: Comparison) -> None:
        """Print ``text: yes``, or fail where the digits profile says otherwise.

        Use it for what is the same on every machine: on the digits profile its margin must be at
        least `margins.LEAST` spreads, which a test of the stored results holds. What is closer is
        shown by `observe`.

        Parameters
        ----------
        text : str
            The fact with its threshold, such as ``"CSG Pearson at least 0.70"``; once a notebook.
        comparison : Comparison
            What was measured, see `margins.above`, `below`, `between`, `close` and `exact`.

        Raises
        ------
        AssertionError
            On the whole digits profile, if it does not hold. On other profiles and in a first look
            ``text: NO`` is printed: the thresholds were set on all of digits.
        """
        self._record("check", text, comparison)
        if comparison.holds:
            print(f"{text}: yes")
            return
        answer = f"{text}: NO (measured {comparison})"
        if self._must_hold:
            raise AssertionError(answer)
        print(answer)

    def observe(self, text: str, check: Comparison) -> None:
        """Print ``text: yes`` or ``NO`` with the measured value and its margin; never fail.

        Another seed or another processor may change the answer, so it has no place in a cell whose
        output is compared. Parameters as in `check`.
        """
        self._record("observation", text, check)
        print(f"{text}: {'yes' if check.holds else 'NO'} ({check})")

    def claim(
        self,
        source: str,
        statement: str,
        measured: str,
        holds: Parts,
        interval: Interval = "",
        *,
        of: str = "seed",
    ) -> None:
        """Print ``source: verdict`` and enter the claim in the ledger.

        Parameters
        ----------
        source : str
            The paper and the place in it, such as ``"CSG Table 1"``; see `paper.split_source`.
        statement : str
            The claim in our words; the same source and statement again replace the entry.
        measured : str
            What was measured, with its numbers.
        holds : Comparison or sequence of Comparison
            Each part of the claim beside its threshold; see `paper.verdict`.
        interval : str, tuple (low, high), or array-like of shape (n_seeds,)
            The spread of what was measured; see `ledger.interval_text`.
        of : str
            What the values of an array are of, if not of each seed.
        """
        place, parts = paper.split_source(source), _parts(holds)
        words = self._spread(interval, of), margin_text(parts), paper.verdict(_answers(parts))
        self._enter(source, Claim("claim", *place, statement, measured, *words), parts)

    def discrepancy(
        self,
        name: str,
        ours: str,
        bears_out: Parts | None,
        interval: Interval = "",
        *,
        of: str = "seed",
    ) -> None:
        """Print ``name: verdict`` and enter what our runs say about a discrepancy.

        Parameters
        ----------
        name : str
            An id of `paper.discrepancies`; the same again replaces the entry.
        ours : str
            What was measured, with its numbers, or why it cannot be.
        bears_out : Comparison, sequence of Comparison or None
            What our runs show beside its threshold, part by part; None: they cannot tell. See
            `paper.discrepancy_verdict`.
        interval, of
            As in `claim`.
        """
        listed = paper.discrepancies().set_index("id")
        if name not in listed.index:
            raise ValueError(
                f"unknown discrepancy {name!r}; the discrepancies are: {', '.join(listed.index)}"
            )
        if not ours.strip():
            raise ValueError(
                f"discrepancy {name!r}: say what our runs show, or why they cannot tell"
            )
        papers, text = listed.loc[name, ["paper", "discrepancy"]]
        parts = () if bears_out is None else _parts(bears_out)
        verdict = paper.discrepancy_verdict(None if bears_out is None else _answers(parts))
        words = self._spread(interval, of), margin_text(parts), verdict
        self._enter(name, Claim("discrepancy", papers, name, text, ours, *words), parts)

    def _spread(self, interval: Interval, of: str) -> str:
        """The interval in words; a first look may have nothing to measure, and then has none."""
        if self._must_hold or isinstance(interval, str):
            return interval_text(interval, of)
        known = np.isfinite(values := np.asarray(interval, dtype=float))
        if not known.any() or (isinstance(interval, tuple) and not known.all()):
            return ""
        return interval_text(interval if known.all() else values[known], of)

    def _enter(self, shown: str, entry: Claim, parts: Sequence[Comparison]) -> None:
        self._claims[entry.paper, entry.where, entry.statement] = entry
        name = (
            shown
            if entry.kind == "discrepancy"
            else f"{entry.paper} {entry.where}: {entry.statement}"
        )
        self._checks[entry.kind, name] = tuple(parts)
        print(f"{shown}: {entry.verdict}")

    def _record(self, kind: str, text: str, check: Comparison) -> None:
        if not isinstance(check, Comparison):
            raise TypeError(
                f"{text}: pass above(values, threshold), below, between, close or exact of "
                f"memlens.experiments.margins, got {type(check).__name__}"
            )
        self._checks[kind, text] = (check,)

    def claims(self) -> pd.DataFrame:
        """Return the claims and discrepancies, a row each (see `ledger.Claim`).

        Writes them to NN_claims.csv, and every fact, observation, claim and discrepancy with its margin
        to NN_checks.csv (see `margins.as_table`). Those of a first look go to files that end in
        ``_first_look.csv``, which no ledger takes up.
        """
        claims = as_table(self._claims.values())
        checks = margins.as_table((*key, parts) for key, parts in self._checks.items())
        suffix = "_first_look" if self.profile.cuts else ""
        for name, table in (("claims", claims), ("checks", checks)):
            text = table.to_csv(index=False, lineterminator="\n")
            store.write_atomic(self._path(f"{name}{suffix}.csv"), text.encode())
        return claims

    def _path(self, name: str) -> Path:
        return self.folder / f"{self.notebook.split('_')[0]}_{name}"


def _parts(holds: Parts) -> tuple[Comparison, ...]:
    """Return the parts of a claim as a tuple, if each has a threshold."""
    parts = (holds,) if isinstance(holds, Comparison) else tuple(holds)
    if wrong := [part for part in parts if not isinstance(part, Comparison)]:
        raise TypeError(
            "each part of a claim is above(values, threshold), below, between, close or exact of "
            f"memlens.experiments.margins, got {wrong[0]!r}"
        )
    return parts


def _answers(parts: Sequence[Comparison]) -> list[bool]:
    return [part.holds for part in parts]


def _figure_of(drawing: Artist | np.ndarray) -> Figure:
    """Return the whole figure, whichever part of it is given."""
    part = np.ravel(drawing)[0] if isinstance(drawing, np.ndarray) else drawing
    return part if isinstance(part, Figure) else part.get_figure(root=True)


def unknown_parameters(cells: Sequence[str]) -> tuple[list[str], list[str]]:
    """Find injected parameters that the notebook does not declare.

    papermill puts a cell that starts with ``# Parameters`` after the parameters cell, which is the
    one that assigns ``profile``. Only injections after the last parameters cell count: a reader in
    JupyterLab may have run, changed and run again.

    Parameters
    ----------
    cells : sequence of str
        Sources in the order in which they ran.

    Returns
    -------
    unknown, known : list of str
        Injected names that are not declared; declared names.
    """
    known, injected = [], []
    for cell in cells:
        names = _assigned(cell)
        if cell.startswith("# Parameters") and (known or "profile" not in names):
            injected = names
        elif "profile" in names:
            known, injected = names, []
    return [name for name in injected if name not in known], known


def _assigned(source: str) -> list[str]:
    """Return the names that a cell assigns at its top level, in order."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # not Python: a magic of another kernel
        return []
    targets = [node.targets if isinstance(node, ast.Assign) else [node.target] for node in body
               if isinstance(node, ast.Assign | ast.AnnAssign)]  # fmt: skip
    return [name.id for group in targets for target in group for name in ast.walk(target)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]  # fmt: skip


def _input_history() -> list[str]:
    """Return the sources of the cells that ran so far; empty outside a kernel."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return list(shell.user_ns.get("In", [])) if shell else []
