"""The notebook report: the profile of a notebook, and where its figures, checks and claims go.

    report = ml.open_report("02_similarity", profile)

nbval compares text, not images, and a trained number differs in its last digits on another machine.
Checks are therefore printed as yes or NO. A check must be far enough from its threshold to have the
same result on every machine; anything closer is an observation, which is not compared.
"""

import re
import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from memlens.evaluation import plots
from memlens.evaluation.plots import Drawing
from memlens.experiments import claims, margins, paper, profiles
from memlens.experiments.claims import NOTEBOOKS
from memlens.experiments.claims_file import RESULT
from memlens.experiments.margins import Comparison, Estimate
from memlens.storage import store

Comparisons = Comparison | Sequence[Comparison]

ENFORCED_PROFILE = "fashion_small"  # the thresholds were measured on it, so its checks must hold
WIDTH = 100  # letters in a line of text below a cell
DPI = 200  # of saved figures: sharp on a page, and small enough to keep in git


def open_report(
    notebook: str, profile: str, scale: float = 1.0, n_samples: int = 0
) -> "NotebookReport":
    """Open the report of a notebook, and set the plot style.

    Parameters
    ----------
    notebook : str
        Name of the notebook, one of `claims.NOTEBOOKS`.
    profile : str
        A name from `profiles.PROFILES`.
    scale : float in (0, 1]
        Below 1: a first look with fewer epochs and networks, see `profiles.Profile.scaled`.
    n_samples : int
        Training samples to use; 0: all. Every figure states the reductions.

    Raises
    ------
    ValueError
        For an unknown notebook or profile, or a scale outside (0, 1].

    Examples
    --------
    >>> import memlens as ml
    >>> report = ml.open_report("02_similarity", "fashion_small")
    >>> report.profile.model
    'mlp'
    """
    if notebook not in NOTEBOOKS:
        raise ValueError(f"unknown notebook {notebook!r}; there are: {', '.join(NOTEBOOKS)}")
    report = NotebookReport(notebook, profile, scale, n_samples)
    plots.apply_style()
    pd.set_option("display.max_colwidth", None)  # the results of claims are sentences
    return report


class NotebookReport:
    """The profile of a notebook, and the files that it writes to ``figures/<profile>/``.

    Attributes
    ----------
    notebook : str
        Name of the notebook; its number starts the name of every file.
    profile : Profile
        Data set, networks and configurations.
    folder : Path
        The folder of the files; it does not depend on the working directory.
    """

    def __init__(self, notebook: str, profile: str, scale: float = 1.0, n_samples: int = 0) -> None:
        self.notebook = notebook
        self.profile = profiles.get_profile(profile)
        if scale != 1 or n_samples:
            self.profile = self.profile.scaled(scale, n_samples or None)
        self.folder = store.figures_dir(profile)
        self._enforced = profile == ENFORCED_PROFILE and not self.profile.reductions
        self._results: dict[tuple[str, str], tuple[str, str, tuple[Comparison, ...]]] = {}
        self._checks: dict[tuple[str, str], tuple[Comparison, ...]] = {}

    def save(self, drawing: Drawing, name: str, caption: str) -> None:
        """Save a figure as ``NN_name.png``, and the numbers that it draws as ``NN_name.csv``.

        The figure stays open, so that the notebook shows it below the cell. The CSV starts with the
        caption in lines of ``#``; read it with ``pd.read_csv(path, comment="#")``.

        Parameters
        ----------
        drawing : Drawing
            The figure, and the numbers drawn. The index of its table is written unless it only
            counts the rows.
        name : str
            Lower-case letters, digits and underscores.
        caption : str
            The message, the number of seeds, and the figure of the paper if there is one.

        Raises
        ------
        ValueError
            For a bad name, an empty table or an empty caption; nothing is written.
        """
        figure, data = drawing
        if not re.fullmatch(r"[a-z0-9_]+", name) or name in ("claims", "checks"):
            raise ValueError(
                f"figure name {name!r}: use a-z, 0-9 and _, but not 'claims' or 'checks'"
            )
        if data.empty or not caption.strip():
            raise ValueError(f"figure {name!r} needs the numbers it draws and a caption")
        image = BytesIO()
        if self.profile.name != ENFORCED_PROFILE and self.notebook in NOTEBOOKS:
            caption = f"{caption.strip()}\nThis caption was written for {ENFORCED_PROFILE}."
        if self.profile.reductions:
            note = f"First look, not the whole profile: {', '.join(self.profile.reductions)}."
            plots.footnote(figure, note)
            caption = f"{caption.strip()}\n{note}"
        # matplotlib's version would otherwise be written into the file and change its bytes
        figure.savefig(image, format="png", dpi=DPI, metadata={"Software": None})
        header = "".join(f"# {line.strip()}\n" for line in caption.strip().splitlines())
        counts_rows = data.index.equals(pd.RangeIndex(len(data))) and data.index.name is None
        table = data.to_csv(index=not counts_rows, lineterminator="\n")
        store.write_atomic(self._path(f"{name}.csv"), (header + table).encode())
        store.write_atomic(self._path(f"{name}.png"), image.getvalue())

    def check(self, text: str, comparison: Comparison) -> None:
        """Print ``text: yes``, or raise if the comparison fails on the default profile.

        Use it for results that are the same on every machine: on the default profile the margin
        must be at least `margins.MIN_MARGIN` spreads, which a test of the stored results verifies.
        Use `observe` for smaller margins.

        Parameters
        ----------
        text : str
            The check with its threshold, such as ``"CSG Pearson at least 0.70"``; unique in a
            notebook.
        comparison : Comparison
            The measured value and its threshold, see `margins.above`, `below`, `between`, `close`
            and `exact`.

        Raises
        ------
        AssertionError
            If it fails on the whole default profile. On other profiles and in a first look
            ``text: NO`` is printed, because the thresholds were set on all of it.
        """
        self._record("check", text, comparison)
        if comparison.holds:
            print(f"{text}: yes")
            return
        message = f"{text}: NO (measured {comparison})"
        if self._enforced:
            raise AssertionError(message)
        print(message)

    def observe(self, text: str, comparison: Comparison) -> None:
        """Print ``text: yes`` or ``NO`` with the measured value and its margin; never raise.

        Another seed or processor may change the result, so do not use it in a cell whose output is
        compared. Parameters as in `check`.
        """
        self._record("observation", text, comparison)
        print(f"{text}: {'yes' if comparison.holds else 'NO'} ({comparison})")

    def judge(self, name: str, **measured: ArrayLike | Estimate) -> None:
        """Judge a claim of the papers by measured values, and print its verdict and its parts.

        Parameters
        ----------
        name : str
            Id of a claim that this notebook judges, see `claims.claims`. Judging it again replaces
            the earlier result.
        **measured : Estimate, array-like of shape (n_seeds,) or float
            One for each part of the claim: a value with its interval, one value per seed, whose
            mean is compared and whose range is the interval, or a value without interval.

        Raises
        ------
        ValueError
            For an unknown claim, one of another notebook, one that cannot be tested here, parts
            that are missing or unknown, or a value that is not finite on the whole default profile
            (elsewhere that part does not hold); nothing is recorded.
        """
        claim = claims.claim(name)
        if claim.notebook != self.notebook:
            raise ValueError(f"{name!r} is judged by {claim.notebook}, not by {self.notebook}")
        if claim.needs:
            raise ValueError(f"{name!r} cannot be tested here: it needs {claim.needs}")
        if set(measured) != set(claim.parts):
            raise ValueError(
                f"{name!r} was given {', '.join(measured) or 'nothing'}; its parts are: "
                f"{', '.join(claim.parts)}"
            )
        estimates = {key: _estimate(value) for key, value in measured.items()}
        unknown = [key for key, estimate in estimates.items() if not np.isfinite(estimate.value)]
        if unknown and self._enforced:
            raise ValueError(f"{name!r}: {', '.join(unknown)} is not finite")
        comparisons = tuple(
            Comparison(_compared(measured[key]), *part.expected)
            for key, part in claim.parts.items()
        )
        lines = [
            f"{part.quantity}: {estimates[key]}, expected {part.expected}"
            for key, part in claim.parts.items()
        ]
        verdict = paper.verdict([comparison.holds for comparison in comparisons])
        self._results["claim", name] = ("; ".join(lines), verdict, comparisons)
        _print(f"{claim.paper} {claim.where}. {claim.statement}")
        print(f"  -> {verdict}")
        for line in lines:
            _print(line, indent="  ")

    def discrepancy(
        self,
        name: str,
        measured: str,
        comparisons: Comparisons | None,
        *,
        in_print: bool = False,
    ) -> None:
        """Record our result on a discrepancy of the papers, and print it with its verdict.

        Parameters
        ----------
        name : str
            An id of `paper.discrepancies`. The same name replaces the earlier record.
        measured : str
            The result with its numbers, or the reason why it cannot be tested here.
        comparisons : Comparison, sequence of Comparison or None
            The measured value and threshold of each part; None: cannot be tested here. See
            `paper.discrepancy_verdict`.
        in_print : bool
            The parts compare printed numbers alone. If all hold, the verdict is "seen in print".

        Raises
        ------
        ValueError
            For an unknown name, or an empty result.
        """
        names = list(paper.discrepancies()["id"])
        if name not in names:
            raise ValueError(
                f"unknown discrepancy {name!r}; the discrepancies are: {', '.join(names)}"
            )
        if not measured.strip():
            raise ValueError(
                f"discrepancy {name!r} has no text; pass the result, or why it cannot be tested"
            )
        parts = () if comparisons is None else _as_parts(comparisons)
        holds = None if comparisons is None else [part.holds for part in parts]
        verdict = paper.discrepancy_verdict(holds)
        if in_print and holds is not None and all(holds):
            verdict = paper.DISCREPANCY_VERDICTS[4]
        self._results["discrepancy", name] = (measured, verdict, parts)
        _print(f"{name}: {verdict}. {measured}")

    def _record(self, kind: str, text: str, comparison: Comparison) -> None:
        if not isinstance(comparison, Comparison):
            raise TypeError(
                f"{text}: got {type(comparison).__name__}; pass above(values, threshold), below, "
                "between, close or exact of memlens.experiments.margins"
            )
        self._checks[kind, text] = (comparison,)

    def results(self) -> pd.DataFrame:
        """Return the judged claims and discrepancies of this notebook, and write them to files.

        ``NN_claims.csv`` holds a row for each (columns kind, id, measured, verdict).
        ``NN_checks.csv`` holds every check, observation, claim and discrepancy with its margin (see
        `margins.margin_table`). Files of a first look end in ``_first_look.csv``;
        `claims_file.claims_table` does not read them.
        """
        rows = [(*key, text, verdict) for key, (text, verdict, _) in self._results.items()]
        results = pd.DataFrame(rows, columns=list(RESULT))
        entries = self._checks | {key: parts for key, (_, _, parts) in self._results.items()}
        checks = margins.margin_table((*key, parts) for key, parts in entries.items())
        suffix = "_first_look" if self.profile.reductions else ""
        for name, table in (("claims", results), ("checks", checks)):
            text = table.to_csv(index=False, lineterminator="\n")
            store.write_atomic(self._path(f"{name}{suffix}.csv"), text.encode())
        return results

    def _path(self, name: str) -> Path:
        return self.folder / f"{self.notebook.split('_')[0]}_{name}"


def _print(text: str, indent: str = "") -> None:
    """Print text in lines that fit the page of a notebook."""
    print(textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  "))


def _compared(measured: ArrayLike | Estimate) -> tuple[float, ...]:
    """Return the values that a claim's range is compared with."""
    value = measured.value if isinstance(measured, Estimate) else measured
    return tuple(map(float, np.atleast_1d(np.asarray(value, dtype=float))))


def _estimate(measured: ArrayLike | Estimate) -> Estimate:
    """Return a value with its interval; one value per seed becomes their mean and range."""
    if isinstance(measured, Estimate):
        return measured
    if np.ndim(measured):
        return margins.over(measured)
    return Estimate(float(measured), float(measured), float(measured), "")


def _as_parts(comparisons: Comparisons) -> tuple[Comparison, ...]:
    """Return the parts of a claim as a tuple of comparisons."""
    parts = (comparisons,) if isinstance(comparisons, Comparison) else tuple(comparisons)
    if wrong := [part for part in parts if not isinstance(part, Comparison)]:
        raise TypeError(
            f"a part of the claim is {wrong[0]!r}; pass above(values, threshold), below, between, "
            "close or exact of memlens.experiments.margins"
        )
    return parts
