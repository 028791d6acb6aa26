"""Measured values, their thresholds, and the margin between the two.

    report.check("CSG: Pearson with memorization over 0.7", above(pearson_by_seed, 0.7))

A margin is the distance from the measured value to the threshold, divided by the spread (standard
deviation) of the measured value: over seeds, and over the machines of ``margins.csv``. A check
needs a margin of at least `MIN_MARGIN`; see `NotebookReport.check` and `NotebookReport.observe`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

MIN_MARGIN = 3.0  # spreads between a check and its threshold
KEYS = ["kind", "name", "part"]
COLUMNS = [*KEYS, "measured", "low", "high", "spread", "n_values", "margin"]


class Estimate(NamedTuple):
    """A measured value with its interval, and what the interval is over.

    Attributes
    ----------
    value, low, high : float
        The value, and the ends of its interval.
    over : str
        What varies, such as ``"5 seeds"`` or ``"samples"``.
    """

    value: float
    low: float
    high: float
    over: str

    def __str__(self) -> str:
        """Write value and interval with the digits that its width justifies."""
        if not np.isfinite([self.value, self.low, self.high]).all():
            return "not measured"
        digits = _digits(self.low, self.high)
        value, low, high = (f"{round(x, digits) + 0.0:.{digits}f}" for x in self[:3])
        return f"{value} ({low} to {high}, {self.over})" if self.over else value


def over(values: ArrayLike, unit: str = "seed") -> Estimate:
    """Return the mean of several values with their range.

    The range of five independent values holds the median with a probability of 94 %.

    Parameters
    ----------
    values : array-like of shape (n,)
        One value per unit.
    unit : str
        Singular, such as ``"target"``.

    Examples
    --------
    >>> print(over([0.7634, 0.7988, 0.7712]))
    0.78 (0.76 to 0.80, 3 seeds)
    """
    array = np.array(_values(values))
    count = f"{len(array)} {unit}{'s' * (len(array) > 1)}"
    return Estimate(float(array.mean()), float(array.min()), float(array.max()), count)


def _digits(low: float, high: float) -> int:
    """Return the decimals that the width of an interval justifies, four significant at most."""
    if low == round(low) and high == round(high) and high > low:
        return 1  # counts: the mean of counts needs one decimal
    size, width = max(abs(low), abs(high)), high - low
    digits = 2 - int(f"{size:.3e}".split("e")[1]) if size else 0
    if width:
        first, exponent = f"{width:.1e}".split("e")
        digits = min(digits, (float(first) < 3) - int(exponent))
    return max(digits, 0)


@dataclass(frozen=True)
class Comparison:
    """A measured value and its expected range.

    Created by `above`, `below`, `between`, `close` and `exact`.

    Attributes
    ----------
    values : tuple of float
        One value per seed, or a single value.
    low, high : float
        The expected range, both ends included; infinite if it has no bound.
    is_exact : bool
        True if neither processor nor seed can change the result, see `exact`.
    is_rounding : bool
        True for a difference that comes from rounding alone, see `close`.
    """

    values: tuple[float, ...]
    low: float = -np.inf
    high: float = np.inf
    is_exact: bool = False
    is_rounding: bool = False

    @property
    def measured(self) -> float:
        """The mean of the values."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """The standard deviation of the values (divisor n - 1); NaN for a single value.

        That of an exact result is 0, and that of a rounding difference its own size.
        """
        if self.is_exact or self.is_rounding:
            return 0.0 if self.is_exact else self.measured
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else np.nan

    @property
    def holds(self) -> bool:
        """True if the mean lies in the expected range; False for NaN."""
        return bool(self.low <= self.measured <= self.high)

    @property
    def margin(self) -> float:
        """The distance from the mean to the nearest threshold in spreads; NaN without a spread."""
        if self.is_exact:
            return np.inf
        return float(distance_in_spreads(self.measured, self.low, self.high, self.spread))

    def __str__(self) -> str:
        """Format the measured value and, if it is known, the margin."""
        if np.isnan(self.margin) or self.is_exact:
            return f"{self.measured:.3g}"
        return f"{self.measured:.3g}, {self.margin:.1f} spreads from the threshold"


def above(values: ArrayLike, threshold: float) -> Comparison:
    """Expect a value to be at least the threshold.

    Parameters
    ----------
    values : float or array-like of shape (n_seeds,)
        The measured values. Their mean is compared; their standard deviation is the spread.
    threshold : float

    Raises
    ------
    ValueError
        For an empty array, more than one dimension, or a threshold that is not finite.

    Examples
    --------
    >>> check = above([0.79, 0.80, 0.81], 0.7)
    >>> check.holds, round(check.margin, 1)
    (True, 10.0)
    """
    return Comparison(_values(values), low=_threshold(threshold))


def below(values: ArrayLike, threshold: float) -> Comparison:
    """Expect a value to be at most the threshold; otherwise as `above`.

    Examples
    --------
    >>> check = below([0.79, 0.80, 0.81], 0.7)
    >>> check.holds, round(check.margin, 1)
    (False, 10.0)
    """
    return Comparison(_values(values), high=_threshold(threshold))


def between(values: ArrayLike, low: float, high: float) -> Comparison:
    """Expect a value to lie between low and high; otherwise as `above`."""
    if not _threshold(low) < _threshold(high):
        raise ValueError(f"low is {low!r} and high is {high!r}; low must be below high")
    return Comparison(_values(values), float(low), float(high))


def close(
    measured: ArrayLike, expected: ArrayLike, *, rtol: float = 1e-5, atol: float = 1e-8
) -> Comparison:
    """Expect two arrays of the same shape to be equal up to rounding.

    Parameters
    ----------
    measured, expected : array-like of the same shape
        NaN equals NaN.
    rtol, atol : float
        Each pair may differ by ``atol + rtol * abs(expected)``, as in `numpy.allclose`.

    Returns
    -------
    Comparison
        Its measured value is the largest difference, as a share of the allowed difference.

    Raises
    ------
    ValueError
        If the shapes differ, or the arrays are empty.
    """
    x, y = np.asarray(measured, dtype=float), np.asarray(expected, dtype=float)
    if x.shape != y.shape or not x.size:
        raise ValueError(f"the shapes are {x.shape} and {y.shape}; pass equal ones, not empty")
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(same, 0.0, np.abs(x - y) / (atol + rtol * np.abs(y)))
    return Comparison((float(share.max()),), high=1.0, is_rounding=True)


def exact(holds: bool) -> Comparison:
    """Compare a result that neither seed nor processor can change, such as a printed number.

    Raises
    ------
    TypeError
        For any other argument than True or False.
    """
    if not isinstance(holds, bool | np.bool_):
        raise TypeError(f"got {holds!r}; exact takes one True or False")
    return Comparison((float(holds),), low=0.5, is_exact=True)


def distance_in_spreads(
    measured: ArrayLike, low: ArrayLike, high: ArrayLike, spread: ArrayLike
) -> np.ndarray:
    """Return the distance to the nearest threshold in spreads, elementwise.

    Infinite if the spread is zero and the value is not on the threshold; NaN if the spread or the
    value is NaN.
    """
    measured, spread = np.asarray(measured, dtype=float), np.asarray(spread, dtype=float)
    nearest = np.minimum(np.abs(measured - low), np.abs(measured - high))
    with np.errstate(divide="ignore", invalid="ignore"):
        result = np.where((nearest == 0) & (spread == 0), 0.0, nearest / spread)
    return np.where(np.isnan(measured), np.nan, result)


def margin_table(entries: Iterable[tuple[str, str, Sequence[Comparison]]]) -> pd.DataFrame:
    """Return a table with `COLUMNS`, one row for each part of each (kind, name, parts)."""
    rows = [
        [kind, name, number, part.measured, part.low, part.high, part.spread, len(part.values),
         part.margin]
        for kind, name, parts in entries
        for number, part in enumerate(parts)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def over_machines(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Join the checks of the same notebooks from several machines.

    Parameters
    ----------
    tables : mapping from machine to DataFrame
        Each with a column notebook and the columns of `margin_table`. The first is the reference:
        checks that are not in it are left out.

    Returns
    -------
    DataFrame
        notebook, kind, name, part, measured, low, high, over_seeds, over_machines (standard
        deviations; NaN for fewer than two values), n_machines, margin. The unit of the margin is
        the larger of the two spreads; the margin of an exact check that agrees on all machines is
        infinite.
    """
    keys = ["notebook", *KEYS]
    reference, *_ = tables.values()
    if (repeated := reference.duplicated(keys)).any():
        raise ValueError(f"two checks share a name: {reference.loc[repeated, 'name'].tolist()}")
    measured = pd.concat(
        {machine: table.set_index(keys)["measured"] for machine, table in tables.items()}, axis=1
    )
    joined = reference.set_index(keys)[["measured", "low", "high", "spread"]]
    joined = joined.rename(columns={"spread": "over_seeds"})
    joined["over_machines"] = measured.std(axis=1)
    joined["n_machines"] = measured.count(axis=1)
    widest = joined[["over_seeds", "over_machines"]].max(axis=1)
    joined["margin"] = distance_in_spreads(
        joined["measured"], joined["low"], joined["high"], widest
    )
    return joined.reset_index()


def _values(values: ArrayLike) -> tuple[float, ...]:
    array = np.asarray(values, dtype=float)
    if array.ndim > 1 or not array.size:
        raise ValueError(
            f"the values have shape {array.shape}; expected one number, or one per seed"
        )
    return tuple(map(float, np.atleast_1d(array)))


def _threshold(value: float) -> float:
    if not np.isfinite(value):
        raise ValueError(f"the threshold is {value!r}; expected a finite number")
    return float(value)
