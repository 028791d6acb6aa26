"""What others published about the samples of an image set: memorization.

All of it is joined by position in the original order, so that a file of another length or with
other labels is refused. Nothing in a file is run when it is opened.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from memlens import store
from memlens.data import Dataset
from memlens.imagesets import SETS, load, plain_arrays


def load_fz(
    data: Dataset | str, path: Path | None = None, certain: np.ndarray | None = None
) -> pd.Series:
    """Published Feldman-Zhang memorization of the training samples of an image set.

    Parameters
    ----------
    data : Dataset or str
        Whose training samples are scored, or its name; the scores go to them by original index.
    path : Path, optional
        An .npz with ``tr_mem`` (n,), as the authors' site has it, and optionally ``tr_labels``
        (n,). By default ``<name>_infl_matrix.npz`` or ``<name>_fz.npz`` in the data folder.
    certain : array (n,), bool, optional
        False: the sample's place in the original order is not sure, and it gets NaN. By default
        ``order_certain_train`` of ``<name>.npz`` in the data folder, where it is there.

    Returns
    -------
    Series, index "index" (original)
        Memorization in [-1, 1], higher = more memorized.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message says where to put it.
    ValueError
        If the set is unknown, or the file damaged, without ``tr_mem``, of another length or with
        other labels than the set, or has values that are no numbers in [-1, 1]; if the mask does
        not fit.
    """
    data = _dataset(data)
    usual = [f"{data.name}_infl_matrix.npz", f"{data.name}_fz.npz"]
    found = _find(data, path, usual, "memorization")
    kept = plain_arrays(found)
    values = kept.get("tr_mem", np.empty(0))
    _check_vector(values, "tr_mem", "fiu", data, found)
    low, high = values.min(), values.max()
    if not (low >= -1 and high <= 1):  # NaN fails, too
        raise ValueError(f"{found} has memorization outside [-1, 1]: {low:.3g} to {high:.3g}")
    if "tr_labels" in kept:
        _check_order(kept["tr_labels"], "tr_labels", data, found)
    values = np.where(_certain(data, certain), values.astype(np.float64), np.nan)
    index = data.train.index.numpy()
    return pd.Series(values[index], index=pd.Index(index, name="index"), name="memorization")


def _dataset(data: Dataset | str) -> Dataset:
    name = data if isinstance(data, str) else data.name
    if name not in SETS:
        raise ValueError(f"nothing is published for {name!r}; known: {', '.join(SETS)}")
    return load(data) if isinstance(data, str) else data


def _find(data: Dataset, path: Path | None, usual: list[str], what: str) -> Path:
    places = [path] if path else [store.data_dir() / name for name in usual]
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(
        f"no published {what} of {data.name} at {' or '.join(map(str, places))}; put the authors' "
        "file there"
    )


def _size(data: Dataset) -> int:
    """How many training samples the whole set has: ``data`` may hold a part of them."""
    return int(np.broadcast_to(SETS[data.name].counts[0], data.n_classes).sum())


def _check_vector(values: np.ndarray, what: str, kinds: str, data: Dataset, path: Path) -> None:
    if values.shape != (_size(data),) or values.dtype.kind not in kinds:
        raise ValueError(
            f"{path} has {what} of shape {values.shape} ({values.dtype}), {data.name} needs "
            f"{'whole ' if kinds == 'iu' else ''}numbers ({_size(data)},)"
        )


def _check_order(labels: np.ndarray, what: str, data: Dataset, path: Path) -> None:
    _check_vector(labels, what, "iu", data, path)
    index = data.train.index.numpy()
    wrong = index[labels[index] != data.train.clean_labels.numpy()]
    if len(wrong):
        raise ValueError(
            f"{path} has other labels ({what}) than {data.name} for {len(wrong)} samples, the "
            f"first at {wrong.min()}: its order is another"
        )


def _certain(data: Dataset, certain: np.ndarray | None) -> np.ndarray:
    """Mask of the samples whose place in the original order is sure: all, where nothing is said."""
    source, own = "the mask", store.data_dir() / f"{data.name}.npz"
    if certain is None and own.exists():
        source = f"order_certain_train of {own}"
        certain = plain_arrays(own, only="order_certain_train").get("order_certain_train")
    if certain is None:
        return np.ones(_size(data), dtype=bool)
    certain = np.asarray(certain)
    if certain.shape != (_size(data),) or certain.dtype != bool:
        raise ValueError(
            f"{source} has shape {certain.shape} ({certain.dtype}), {data.name} needs bool "
            f"({_size(data)},)"
        )
    return certain
