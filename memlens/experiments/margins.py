"""Measured quantities beside their thresholds, and the margin by which they lie on one side.

    report.check("CSG: Pearson with memorization over 0.7", above(pearson_by_seed, 0.7))

A margin is the distance from the measured value to the threshold, divided by the spread of the
measured value: over seeds, and over the machines of ``margins.csv``. A fact is only checked if its
margin is at least `LEAST`; see `NotebookReport.check` and `NotebookReport.observe`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

LEAST = 3.0  # spreads between a checked fact and its threshold
KEYS = ["kind", "name", "part"]
COLUMNS = [*KEYS, "measured", "low", "high", "spread", "n_values", "margin"]


@dataclass(frozen=True)
class Comparison:
    """A measured quantity and the range in which it is expected.

    Made by `above`, `below`, `between`, `close` and `exact`.

    Attributes
    ----------
    values : tuple of float
        One value a seed, or a single one.
    low, high : float
        The expected range, both ends included; infinite where it has no end.
    is_exact : bool
        Whether no processor and no seed can change the answer, see `exact`.
    """

    values: tuple[float, ...]
    low: float = -np.inf
    high: float = np.inf
    is_exact: bool = False

    @property
    def measured(self) -> float:
        """Mean of the values."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """Standard deviation of the values (n - 1 in the denominator); NaN for a single one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else np.nan

    @property
    def holds(self) -> bool:
        """Whether the mean lies in the expected range; not if it is NaN."""
        return bool(self.low <= self.measured <= self.high)

    @property
    def margin(self) -> float:
        """Distance from the mean to the nearest threshold in spreads; NaN if there is no spread."""
        if self.is_exact:
            return np.inf
        return float(margin(self.measured, self.low, self.high, self.spread))

    def __str__(self) -> str:
        """Write the measured value and, where it is known, the margin."""
        if np.isnan(self.margin) or self.is_exact:
            return f"{self.measured:.3g}"
        return f"{self.measured:.3g}, {self.margin:.1f} spreads from the threshold"


def above(values: ArrayLike, threshold: float) -> Comparison:
    """Expect a quantity to be at least the threshold.

    Parameters
    ----------
    values : float or array-like of shape (n_seeds,)
        What was measured; its mean is judged, its standard deviation is the spread.
    threshold : float

    Raises
    ------
    ValueError
        For no values, more than one dimension, or a threshold that is not finite.

    Examples
    --------
    >>> check = above([0.79, 0.80, 0.81], 0.7)
    >>> check.holds, round(check.margin, 1)
    (True, 10.0)
    """
    return Comparison(_values(values), low=_threshold(threshold))


def below(values: ArrayLike, threshold: float) -> Comparison:
    """Expect a quantity to be at most the threshold; otherwise as `above`.

    Examples
    --------
    >>> check = below([0.79, 0.80, 0.81], 0.7)
    >>> check.holds, round(check.margin, 1)
    (False, 10.0)
    """
    return Comparison(_values(values), high=_threshold(threshold))


def between(values: ArrayLike, low: float, high: float) -> Comparison:
    """Expect a quantity to lie from low to high; otherwise as `above`."""
    if not _threshold(low) < _threshold(high):
        raise ValueError(f"low must be below high, got {low!r} and {high!r}")
    return Comparison(_values(values), float(low), float(high))


def close(
    found: ArrayLike, expected: ArrayLike, *, rtol: float = 1e-5, atol: float = 1e-8
) -> Comparison:
    """Expect two arrays of one shape to be equal up to rounding.

    Parameters
    ----------
    found, expected : array-like of one shape
        NaN equals NaN.
    rtol, atol : float
        Each pair may differ by ``atol + rtol * abs(expected)``, as in `numpy.allclose`.

    Returns
    -------
    Comparison
        Its measured value is the largest difference, as a share of what is allowed.

    Raises
    ------
    ValueError
        If the shapes differ, or there is nothing to compare.
    """
    x, y = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    if x.shape != y.shape or not x.size:
        raise ValueError(f"cannot compare shapes {x.shape} and {y.shape}: pass two equal ones")
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(same, 0.0, np.abs(x - y) / (atol + rtol * np.abs(y)))
    return Comparison((float(share.max()),), high=1.0)


def exact(holds: bool) -> Comparison:
    """Judge what neither a seed nor a processor can change: a count of data, a printed number.

    Raises
    ------
    TypeError
        For anything but one True or False.
    """
    if not isinstance(holds, bool | np.bool_):
        raise TypeError(f"exact takes one True or False, got {holds!r}")
    return Comparison((float(holds),), low=0.5, is_exact=True)


def margin(measured: ArrayLike, low: ArrayLike, high: ArrayLike, spread: ArrayLike) -> np.ndarray:
    """Return the distance to the nearest threshold in spreads, elementwise.

    Infinite where the spread is zero and the value lies off the threshold; NaN where the spread or
    the value is NaN.
    """
    measured, spread = np.asarray(measured, dtype=float), np.asarray(spread, dtype=float)
    nearest = np.minimum(np.abs(measured - low), np.abs(measured - high))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where((nearest == 0) & (spread == 0), 0.0, nearest / spread)
    return np.where(np.isnan(measured), np.nan, found)


def as_table(entries: Iterable[tuple[str, str, Sequence[Comparison]]]) -> pd.DataFrame:
    """Make a table of checks: `COLUMNS`, a row for each part of each (kind, name, parts)."""
    rows = [
        [kind, name, number, part.measured, part.low, part.high, part.spread, len(part.values),
         part.margin]
        for kind, name, parts in entries
        for number, part in enumerate(parts)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def over_machines(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Join the checks of the same notebooks on several machines.

    Parameters
    ----------
    tables : mapping from machine to DataFrame
        Each with a column notebook and the columns of `as_table`. The first is the reference: a
        check that it lacks is left out.

    Returns
    -------
    DataFrame
        notebook, kind, name, part, measured, low, high, over_seeds, over_machines (standard
        deviations; NaN for fewer than two values), n_machines, margin. The margin is measured in
        the larger of the two spreads, and infinite for an exact check that agrees everywhere.
    """
    keys = ["notebook", *KEYS]
    reference, *_ = tables.values()
    if (twice := reference.duplicated(keys)).any():
        raise ValueError(f"two checks share a name: {reference.loc[twice, 'name'].tolist()}")
    measured = pd.concat(
        {machine: table.set_index(keys)["measured"] for machine, table in tables.items()}, axis=1
    )
    joined = reference.set_index(keys)[["measured", "low", "high", "spread"]]
    joined = joined.rename(columns={"spread": "over_seeds"})
    joined["over_machines"] = measured.std(axis=1)
    joined["n_machines"] = measured.count(axis=1)
    widest = joined[["over_seeds", "over_machines"]].max(axis=1)
    joined["margin"] = margin(joined["measured"], joined["low"], joined["high"], widest)
    return joined.reset_index()


def _values(values: ArrayLike) -> tuple[float, ...]:
    found = np.asarray(values, dtype=float)
    if found.ndim > 1 or not found.size:
        raise ValueError(f"a check takes one number, or one a seed; got shape {found.shape}")
    return tuple(map(float, np.atleast_1d(found)))


def _threshold(value: float) -> float:
    if not np.isfinite(value):
        raise ValueError(f"a threshold is a finite number, got {value!r}")
    return float(value)
