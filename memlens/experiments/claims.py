"""The claims of the three papers, each once: what is measured, and the range that it must lie in.

    report.judge("csg-table1-agreement", csg=pearson_csg, sgal=pearson_sgal, csl=pearson_csl)

The table is ``claims.toml`` beside this file, written before any run. The notebooks give measured
values to `NotebookReport.judge`, and `memlens.experiments.claims_file` gathers the results.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from memlens.experiments import paper

NOTEBOOKS = (
    "00_primer", "01_validate_theory", "02_similarity", "03_early_stopping", "04_mislabel",
    "05_bias", "06_optimizers", "07_privacy", "08_discrepancies",
)  # fmt: skip
_NUMBER = r"(-?\d+(?:\.\d+)?)"


class Range(NamedTuple):
    """The range, both ends included, in which a measured quantity must lie."""

    low: float = -np.inf
    high: float = np.inf

    @classmethod
    def parse(cls, text: str) -> "Range":
        """Read ``"at least 0.6"``, ``"at most 0.1"`` or ``"-3 to 3"``.

        Raises
        ------
        ValueError
            For any other text, or a lower end that is not below the upper one.

        Examples
        --------
        >>> Range.parse("-3 to 3")
        Range(low=-3.0, high=3.0)
        """
        if found := re.fullmatch(rf"at least {_NUMBER}", text):
            return cls(low=float(found[1]))
        if found := re.fullmatch(rf"at most {_NUMBER}", text):
            return cls(high=float(found[1]))
        found = re.fullmatch(rf"{_NUMBER} to {_NUMBER}", text)
        if found and float(found[1]) < float(found[2]):
            return cls(float(found[1]), float(found[2]))
        raise ValueError(f"range {text!r}: write 'at least 0.6', 'at most 0.1' or '-3 to 3'")

    def __str__(self) -> str:
        """Write the range as `parse` reads it."""
        if np.isinf(self.low):
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if np.isinf(self.high) else f"{self.low:g} to {self.high:g}"


class Part(NamedTuple):
    """A quantity that decides a claim, and the range in which the claim says that it lies."""

    quantity: str
    expected: Range


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, and what decides it.

    Attributes
    ----------
    id : str
        Begins with the paper and the place.
    paper : str
        A key of `paper.PAPERS`.
    where : str
        Table, figure or section of the paper.
    statement : str
        The claim in one sentence, in our words.
    notebook : str
        The one notebook that judges it, one of `NOTEBOOKS`.
    parts : mapping from str to Part
        By keyword in `NotebookReport.judge`. The claim holds if all parts do, and in part if some
        do.
    needs : str
        What the default profile lacks: then no notebook judges the claim, and its verdict is
        ``"cannot be tested here"``. Empty for all other claims.
    """

    id: str
    paper: str
    where: str
    statement: str
    notebook: str
    parts: Mapping[str, Part]
    needs: str = ""


@cache
def claims() -> Mapping[str, Claim]:
    """Return every claim by its id, in the order of the table.

    Raises
    ------
    ValueError
        If the table has an unknown paper, notebook, field or range, or a claim that has neither
        parts nor a need, or both.
    """
    text = files("memlens.experiments").joinpath("claims.toml").read_text(encoding="utf-8")
    return {name: _claim(name, fields) for name, fields in tomllib.loads(text).items()}


def _claim(name: str, fields: dict[str, Any]) -> Claim:
    known = {"source", "statement", "notebook", "parts", "needs"}
    if unknown := set(fields) - known:
        raise ValueError(f"claim {name!r} has the unknown fields {', '.join(sorted(unknown))}")
    if missing := known - {"parts", "needs"} - set(fields):
        raise ValueError(f"claim {name!r} lacks {', '.join(sorted(missing))}")
    if fields["notebook"] not in NOTEBOOKS:
        raise ValueError(f"claim {name!r}: {fields['notebook']!r} is no notebook")
    if ("parts" in fields) == bool(fields.get("needs")):
        raise ValueError(f"claim {name!r}: give it parts, or what it needs to be tested")
    parts = {k: Part(text, Range.parse(r)) for k, (text, r) in fields.get("parts", {}).items()}
    place = paper.split_source(fields["source"])
    rest = fields["statement"], fields["notebook"], parts, fields.get("needs", "")
    return Claim(name, *place, *rest)


def claim(name: str) -> Claim:
    """Return a claim by its id.

    Raises
    ------
    ValueError
        If there is none; the message lists the ids of the same paper and place, or all.

    Examples
    --------
    >>> claim("csg-table8-overhead").where
    'Table 8'
    """
    table = claims()
    if name not in table:
        near = [k for k in table if k.split("-")[:2] == name.split("-")[:2]] or list(table)
        raise ValueError(f"unknown claim {name!r}; the claims are: {', '.join(near)}")
    return table[name]
