"""The notebook report: the profile of a notebook, and where its figures, checks and claims go.

    report = ml.open_report("02_similarity", profile)

nbval compares text, not images, and a trained number differs in its last digits on another machine.
Checks are therefore printed as yes or NO. A check must be far enough from its threshold to have the
same result on every machine; anything closer is an observation, which is not compared.
"""

import re
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

Comparisons = Comparison | Sequence[Comparison]

ENFORCED_PROFILE = "fashion_small"  # the thresholds were measured on it, so its checks must hold
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
        self._claims: dict[tuple[str, str, str], Claim] = {}
        self._checks: dict[tuple[str, str], tuple[Comparison, ...]] = {}

    def figure(
        self, drawing: Figure | Axes | np.ndarray, name: str, data: pd.DataFrame, caption: str
    ) -> None:
        """Save a figure as ``NN_name.png``, and the numbers that it draws as ``NN_name.csv``.

        The figure stays open, so that the notebook shows it below the cell. The CSV starts with the
        caption in lines of ``#``; read it with ``pd.read_csv(path, comment="#")``.

        Parameters
        ----------
        drawing : Figure, Axes or array of Axes
            The figure, or axes of it.
        name : str
            Lower-case letters, digits and underscores.
        data : DataFrame
            The numbers drawn, unrounded. The index is written unless it only counts the rows.
        caption : str
            The message, the number of seeds, and the figure of the paper if there is one.

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
        image, figure = BytesIO(), _figure_of(drawing)
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

    def claim(
        self,
        source: str,
        statement: str,
        measured: str,
        comparisons: Comparisons,
        interval: Interval = "",
        *,
        unit: str = "seed",
    ) -> None:
        """Record a claim of a paper, and print ``source: verdict``.

        Parameters
        ----------
        source : str
            The paper and the place in it, such as ``"CSG Table 1"``; see `paper.split_source`.
        statement : str
            The claim in our words. The same source and statement replace the earlier record.
        measured : str
            The result, with its numbers.
        comparisons : Comparison or sequence of Comparison
            The measured value and threshold of each part of the claim; see `paper.verdict`.
        interval : str, tuple (low, high), or array-like of shape (n_seeds,)
            Interval or range of the result; see `claims.interval_text`.
        unit : str
            What the values of an array are counted in.
        """
        place, parts = paper.split_source(source), _as_parts(comparisons)
        texts = self._interval_text(interval, unit), margin_text(parts)
        verdict = paper.verdict([part.holds for part in parts])
        claim = Claim("claim", *place, statement, measured, *texts, verdict)
        self._add(claim, f"{claim.paper} {claim.where}: {statement}", parts)
        print(f"{source}: {verdict}")

    def discrepancy(
        self,
        name: str,
        measured: str,
        comparisons: Comparisons | None,
        interval: Interval = "",
        *,
        unit: str = "seed",
    ) -> None:
        """Record our result on a discrepancy of the papers, and print ``name: verdict``.

        Parameters
        ----------
        name : str
            An id of `paper.discrepancies`. The same name replaces the earlier record.
        measured : str
            The result with its numbers, or the reason why it cannot be tested here.
        comparisons : Comparison, sequence of Comparison or None
            The measured value and threshold of each part; None: cannot be tested here. See
            `paper.discrepancy_verdict`.
        interval, unit
            As in `claim`.

        Raises
        ------
        ValueError
            For an unknown name, or an empty result.
        """
        listed = paper.discrepancies().set_index("id")
        if name not in listed.index:
            raise ValueError(
                f"unknown discrepancy {name!r}; the discrepancies are: {', '.join(listed.index)}"
            )
        if not measured.strip():
            raise ValueError(
                f"discrepancy {name!r} has no text; pass the result, or why it cannot be tested"
            )
        papers, text = listed.loc[name, ["paper", "discrepancy"]]
        parts = () if comparisons is None else _as_parts(comparisons)
        holds = None if comparisons is None else [part.holds for part in parts]
        texts = self._interval_text(interval, unit), margin_text(parts)
        verdict = paper.discrepancy_verdict(holds)
        claim = Claim("discrepancy", papers, name, text, measured, *texts, verdict)
        self._add(claim, name, parts)
        print(f"{name}: {verdict}")

    def _interval_text(self, interval: Interval, unit: str) -> str:
        """Format an interval; in a first look drop the values that could not be measured."""
        if self._enforced or isinstance(interval, str):
            return interval_text(interval, unit)
        finite = np.isfinite(values := np.asarray(interval, dtype=float))
        if not finite.any() or (isinstance(interval, tuple) and not finite.all()):
            return ""
        return interval_text(interval if finite.all() else values[finite], unit)

    def _add(self, claim: Claim, name: str, parts: tuple[Comparison, ...]) -> None:
        self._claims[claim.paper, claim.where, claim.statement] = claim
        self._checks[claim.kind, name] = parts

    def _record(self, kind: str, text: str, comparison: Comparison) -> None:
        if not isinstance(comparison, Comparison):
            raise TypeError(
                f"{text}: got {type(comparison).__name__}; pass above(values, threshold), below, "
                "between, close or exact of memlens.experiments.margins"
            )
        self._checks[kind, text] = (comparison,)

    def claims(self) -> pd.DataFrame:
        """Return the claims and discrepancies of this notebook, and write them to files.

        ``NN_claims.csv`` holds a row per claim or discrepancy (see `claims.Claim`).
        ``NN_checks.csv`` holds every check, observation, claim and discrepancy with its margin (see
        `margins.margin_table`). Files of a first look end in ``_first_look.csv``;
        `claims.claims_table` does not read them.
        """
        claims = as_table(self._claims.values())
        checks = margins.margin_table((*key, parts) for key, parts in self._checks.items())
        suffix = "_first_look" if self.profile.reductions else ""
        for name, table in (("claims", claims), ("checks", checks)):
            text = table.to_csv(index=False, lineterminator="\n")
            store.write_atomic(self._path(f"{name}{suffix}.csv"), text.encode())
        return claims

    def _path(self, name: str) -> Path:
        return self.folder / f"{self.notebook.split('_')[0]}_{name}"


def _as_parts(comparisons: Comparisons) -> tuple[Comparison, ...]:
    """Return the parts of a claim as a tuple of comparisons."""
    parts = (comparisons,) if isinstance(comparisons, Comparison) else tuple(comparisons)
    if wrong := [part for part in parts if not isinstance(part, Comparison)]:
        raise TypeError(
            f"a part of the claim is {wrong[0]!r}; pass above(values, threshold), below, between, "
            "close or exact of memlens.experiments.margins"
        )
    return parts


def _figure_of(drawing: Artist | np.ndarray) -> Figure:
    """Return the whole figure that contains the given part."""
    part = np.ravel(drawing)[0] if isinstance(drawing, np.ndarray) else drawing
    return part if isinstance(part, Figure) else part.get_figure(root=True)
