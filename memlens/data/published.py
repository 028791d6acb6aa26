"""Published memorization scores of an image set.

Scores are joined by position in the original order, so a file of another length or with other
labels is refused.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from memlens.data.imagesets import SETS, load, plain_arrays
from memlens.data.samples import Dataset
from memlens.storage import store


def load_fz(data: Dataset | str, path: str | Path | None = None) -> pd.Series:
    """Return the published Feldman-Zhang memorization of an image set's training samples.

    Source: Feldman and Zhang (2020), "What Neural Networks Memorize and Why". A sample whose
    position in the original order is uncertain gets NaN: see `order_is_certain`.

    Parameters
    ----------
    data : Dataset or str
        A data set or its name. Scores are joined to its training samples by original index.
    path : path, optional
        An .npz with ``tr_mem`` (n,), as on the authors' site, and optionally ``tr_labels`` (n,).
        By default ``<name>_infl_matrix.npz`` or ``<name>_fz.npz`` in the data folder.

    Returns
    -------
    Series, index "index" (original)
        Memorization in [-1, 1], higher = more memorized.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message has the expected path.
    ValueError
        If the set is unknown; if the file is damaged, lacks ``tr_mem``, has another length or
        other labels than the set, or has values outside [-1, 1].

    Examples
    --------
    >>> import tempfile, numpy as np, memlens as ml
    >>> images, labels = np.zeros((10, 1, 28, 28), np.uint8), np.arange(10)
    >>> data = ml.from_arrays("mnist", (images, labels), (images, labels))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/scores.npz", tr_mem=np.linspace(0, 1, 60_000))
    ...     scores = ml.load_fz(data, f"{folder}/scores.npz")
    >>> scores.size, scores.name
    (10, 'memorization')
    """
    data = _dataset(data)
    names = (f"{data.name}_infl_matrix.npz", f"{data.name}_fz.npz")
    places = [Path(path)] if path else [store.data_dir() / name for name in names]
    file = next((place for place in places if place.exists()), None)
    if file is None:
        raise FileNotFoundError(
            f"no published memorization of {data.name} at {' or '.join(map(str, places))}; put the "
            "authors' file there"
        )
    arrays = plain_arrays(file)
    values = arrays.get("tr_mem", np.empty(0))
    _check_vector(values, "tr_mem", "fiu", data, file)
    low, high = values.min(), values.max()
    if not (low >= -1 and high <= 1):  # also if they are NaN
        raise ValueError(f"{file} has memorization from {low:.3g} to {high:.3g}; expected [-1, 1]")
    if "tr_labels" in arrays:
        _check_order(arrays["tr_labels"], data, file)
    values = np.where(_certain(data), values.astype(np.float64), np.nan)
    index = data.train.index.numpy()
    return pd.Series(values[index], index=pd.Index(index, name="index"), name="memorization")


def order_is_certain(data: Dataset) -> np.ndarray:
    """Return a mask (n_samples,) of the training samples with a certain position in the original.

    It is the array ``order_certain_train`` of ``<name>.npz`` in the data folder; without it, all
    positions are certain.

    Raises
    ------
    ValueError
        If the array has another shape or dtype.
    """
    return _certain(data)[data.train.index.numpy()]


def _dataset(data: Dataset | str) -> Dataset:
    name = data if isinstance(data, str) else data.name
    if name not in SETS:
        raise ValueError(f"nothing is published for {name!r}; known: {', '.join(SETS)}")
    return load(data) if isinstance(data, str) else data


def _size(data: Dataset) -> int:
    """Return the number of training samples of the whole set, of which ``data`` may be a subset."""
    return int(np.broadcast_to(SETS[data.name].counts[0], data.n_classes).sum())


def _check_vector(values: np.ndarray, name: str, kinds: str, data: Dataset, path: Path) -> None:
    if values.shape != (_size(data),) or values.dtype.kind not in kinds:
        raise ValueError(
            f"{path} has {name} of shape {values.shape} ({values.dtype}); {data.name} needs "
            f"{'integers' if kinds == 'iu' else 'numbers'} ({_size(data)},)"
        )


def _check_order(labels: np.ndarray, data: Dataset, path: Path) -> None:
    _check_vector(labels, "tr_labels", "iu", data, path)
    index = data.train.index.numpy()
    wrong = index[labels[index] != data.train.clean_labels.numpy()]
    if len(wrong):
        raise ValueError(
            f"{path} has other labels (tr_labels) than {data.name} for {len(wrong)} samples, the "
            f"first at {wrong.min()}; put a file in the original order in its place"
        )


def _certain(data: Dataset) -> np.ndarray:
    """Return the mask of certain positions in the whole set."""
    path, certain = store.data_dir() / f"{data.name}.npz", None
    if path.exists():
        certain = plain_arrays(path, only="order_certain_train").get("order_certain_train")
    if certain is None:
        return np.ones(_size(data), dtype=bool)
    if certain.shape != (_size(data),) or certain.dtype != bool:
        raise ValueError(
            f"order_certain_train of {path} has shape {certain.shape} ({certain.dtype}); "
            f"{data.name} needs bool ({_size(data)},)"
        )
    return certain
