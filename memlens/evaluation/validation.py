"""What the measures take: finite vectors of one length, and frames of them.

What cannot be scored (NaN, infinite, another length, text) raises a ValueError or TypeError that
says what was found, where, and what to do. Everything is read as float64.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


def vector(name: str, values: ArrayLike) -> np.ndarray:
    """One finite number a sample, (n_samples,), at least one; ``name`` is for the error."""
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} is not numeric ({error}): pass one number per sample") from None
    if found.ndim != 1 or not found.size:
        raise ValueError(f"{name} has shape {found.shape}: pass (n_samples,), at least one sample")
    if n_bad := int((~np.isfinite(found)).sum()):
        raise ValueError(
            f"{name} holds {n_bad} non-finite values (NaN or infinite) among "
            f"{found.size}: drop those samples, or find out where they come from"
        )
    return found


def paired(x: ArrayLike, y: ArrayLike, x_name: str, y_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Two such vectors of one length; two Series must have one index."""
    first, second = vector(x_name, x), vector(y_name, y)
    if first.size != second.size:
        raise ValueError(f"{x_name} has {first.size} samples, {y_name} {second.size}: pass pairs")
    # Two Series in another order would be paired by position, sample i with sample j: refuse.
    if isinstance(x, pd.Series) and isinstance(y, pd.Series) and not x.index.equals(y.index):
        raise ValueError(f"{x_name} and {y_name} have different indices: align them first")
    return first, second


def vectors(frame: pd.DataFrame, kind: str) -> dict[str, np.ndarray]:
    """Columns of a frame as such vectors; an error names the column and its ``kind``."""
    if not isinstance(frame, pd.DataFrame) or frame.columns.empty or frame.columns.has_duplicates:
        raise TypeError(f"found {type(frame).__name__}: pass a DataFrame, each {kind} column once")
    return {name: vector(f"{kind} column {name!r}", frame[name]) for name in frame.columns}


def aligned(values: pd.Series | ArrayLike, frame: pd.DataFrame, name: str) -> np.ndarray:
    """One float64 a row of the frame, of a Series matched by index or an array in row order."""
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"{name} belongs to {type(frame).__name__}: pass a DataFrame")
    if isinstance(values, pd.Series):
        if values.index.has_duplicates or frame.index.has_duplicates:
            raise ValueError(f"{name} or its frame has an index label twice: keep each sample once")
        values = values.reindex(frame.index)  # NaN for a row that the Series does not know
    if np.shape(values) != (len(frame),):
        raise ValueError(f"{name} has shape {np.shape(values)}: pass ({len(frame)},) or a Series")
    return np.asarray(values, dtype=np.float64)
