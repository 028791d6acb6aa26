"""What others published about the samples of an image set: memorization, and people's labels.

All of it is joined by position in the original order, so that a file of another length or with
other labels is refused. Nothing in a file is run when it is opened.
"""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from memlens.data.imagesets import SETS, load, plain_arrays
from memlens.data.samples import Dataset
from memlens.storage import store
from memlens.storage.store import Arrays

# The authors' files, by the class in torchvision.datasets; with their arrays, from the README of
# the repository UCSC-REAL/cifar-10-100n.
CIFAR_N = {"CIFAR10": "CIFAR-10_human.pt", "CIFAR100": "CIFAR-100_human.pt"}


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


def order_is_certain(data: Dataset) -> np.ndarray:
    """Which training samples' places in the original order are sure, (n_samples,) bool.

    All, where ``<name>.npz`` in the data folder says nothing: see `load_fz`.
    """
    return _certain(data, None)[data.train.index.numpy()]


def noisy_labels(
    data: Dataset | str, kind: str = "noisy_label", path: Path | None = None
) -> Tensor:
    """Labels that people gave the training images of CIFAR-10 or CIFAR-100: real label noise.

    CIFAR-N (Wei et al., Learning with Noisy Labels Revisited, ICLR 2022), in the original order.
    ``replace(data, train=replace(data.train, labels=noisy_labels(data)))`` trains on them.

    Parameters
    ----------
    data : Dataset or str
    kind : str
        Which labels: "noisy_label" of CIFAR-100; "aggre_label", "worse_label" or "random_label1"
        to "random_label3" of CIFAR-10.
    path : Path, optional
        The authors' file, or an .npz of the same arrays, ``clean_label`` (n,) among them. By
        default ``CIFAR-10_human.pt`` or ``CIFAR-100_human.pt``, or ``<name>_human.npz``, in the
        data folder.

    Returns
    -------
    Tensor (n_samples,), int64
        One for each sample of ``data.train``.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message says where to put it.
    ValueError
        If the set is none of CIFAR, or the file damaged, without these labels or ``clean_label``,
        or of another length or order than the set.
    """
    data = _dataset(data)
    if (kind_of_set := SETS[data.name].torchvision) not in CIFAR_N:
        raise ValueError(f"nobody published human labels of {data.name}; known: cifar10, cifar100")
    usual = [CIFAR_N[kind_of_set], f"{data.name}_human.npz"]
    found = _find(data, path, usual, "human labels")
    kept = _plain_tensors(found) if found.suffix == ".pt" else plain_arrays(found)
    if missing := {kind, "clean_label"} - set(kept):
        raise ValueError(f"{found} has no {', '.join(sorted(missing))}; it has: {', '.join(kept)}")
    _check_order(kept["clean_label"], "clean_label", data, found)
    labels = kept[kind]
    _check_vector(labels, kind, "iu", data, found)
    if labels.min() < 0 or labels.max() >= data.n_classes:
        raise ValueError(
            f"{found} has {kind} from {labels.min()} to {labels.max()}, {data.name} has labels 0 "
            f"to {data.n_classes - 1}"
        )
    return torch.as_tensor(labels.astype(np.int64))[data.train.index]


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


def _plain_tensors(path: Path) -> Arrays:
    """The arrays of the authors' file; only whole numbers are unpickled, nothing is run."""
    rebuild = np.ndarray(0).__reduce__()[0]  # NumPy has moved it from numpy.core to numpy._core
    allowed = [
        (rebuild, "numpy.core.multiarray._reconstruct"), rebuild, np.ndarray, np.dtype,
        *(type(np.dtype(code)) for code in ("u1", "i4", "i8")),
    ]  # fmt: skip
    try:
        with torch.serialization.safe_globals(allowed):
            kept = torch.load(path, map_location="cpu", weights_only=True)
        return {name: np.asarray(values) for name, values in kept.items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]  # torch explains at length
        raise ValueError(
            f"{path} cannot be read ({reason}): it is damaged, or holds more "
            "than arrays; put a good copy in its place"
        ) from error
