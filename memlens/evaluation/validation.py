"""Validation of the input of all measures: finite vectors of one length, and frames of them.

Invalid input (NaN, infinite, another length, text) raises a ValueError or TypeError that describes
what was found and what to do. All values are converted to float64.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


def vector(name: str, values: ArrayLike) -> np.ndarray:
    """Return finite numbers (n_samples,), at least one; ``name`` is used in error messages."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} is not numeric ({error}): pass one number per sample") from None
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} has shape {array.shape}: pass (n_samples,), at least one sample")
    if n_bad := int((~np.isfinite(array)).sum()):
        raise ValueError(
            f"{name} holds {n_bad} non-finite values (NaN or infinite) among {array.size}: drop "
            "these samples, or find the cause"
        )
    return array


def paired(x: ArrayLike, y: ArrayLike, x_name: str, y_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return two finite vectors of one length; two Series must have the same index."""
    first, second = vector(x_name, x), vector(y_name, y)
    if first.size != second.size:
        raise ValueError(f"{x_name} has {first.size} samples, {y_name} {second.size}: pass pairs")
    # Series in different orders would be paired by position, not by index.
    if isinstance(x, pd.Series) and isinstance(y, pd.Series) and not x.index.equals(y.index):
        raise ValueError(f"{x_name} and {y_name} have different indices: align them first")
    return first, second


def vectors(frame: pd.DataFrame, kind: str) -> dict[str, np.ndarray]:
    """Return the columns of a frame as finite vectors; errors name the column and ``kind``."""
    if not isinstance(frame, pd.DataFrame) or frame.columns.empty or frame.columns.has_duplicates:
        raise TypeError(f"found {type(frame).__name__}: pass a DataFrame, each {kind} column once")
    return {name: vector(f"{kind} column {name!r}", frame[name]) for name in frame.columns}


def aligned(values: pd.Series | ArrayLike, frame: pd.DataFrame, name: str) -> np.ndarray:
    """Return one float64 per row of the frame, from a Series (by index) or an array (by row)."""
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"found {type(frame).__name__} for {name}: pass a DataFrame")
    if isinstance(values, pd.Series):
        if values.index.has_duplicates or frame.index.has_duplicates:
            raise ValueError(f"{name} or its frame has an index label twice: keep each sample once")
        values = values.reindex(frame.index)  # NaN where the Series has no such index
    if np.shape(values) != (len(frame),):
        raise ValueError(f"{name} has shape {np.shape(values)}: pass ({len(frame)},) or a Series")
    return np.asarray(values, dtype=np.float64)
