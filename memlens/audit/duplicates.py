"""Duplicates: planting pairs with conflicting labels, and finding pairs in any data.

No fixed threshold of similarity suits all data sets: different images of one class can be very
similar (two digits 1 reach a cosine of 0.99). `find` therefore compares a pair with its own
neighbourhood. Let d[j] be the distance to the j-th nearest neighbour. For samples that are evenly
distributed in m dimensions, m * j * log(d[j + 1] / d[j]) is exponential with mean 1 (Facco et al.
2017 estimate m from j = 1). The farther neighbours give an estimate of the local m, and thus the
probability of the gap behind the nearest ones. The threshold is the expected number of false pairs,
which means the same for every data set.
"""

from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from memlens.data.samples import Dataset, Samples
from memlens.evaluation import detection
from memlens.training import devices
from memlens.training.posthoc import predict

WIDE = 256  # columns; with fewer, neighbours can be too close for float32
SAME = 1e-6  # distance of unit vectors up to which they may differ by rounding alone
# Ours: in more dimensions distances hardly differ, and a slightly closer pair is no duplicate.
MAX_DIMENSION = 40.0
N_NEIGHBOURS = 10  # ours: groups of up to half as many near duplicates are found
MIN_SAMPLES = 10 * N_NEIGHBOURS  # ours: with fewer, the farther neighbours are not a neighbourhood
BLOCK_SIZE = 512  # samples compared with all others at a time


@dataclass(frozen=True)
class Planted:
    """A data set with planted duplicates.

    Attributes
    ----------
    data : Dataset
        The clean label of a copy is that of the copied image; ``index`` is unchanged.
    pairs : ndarray (n_pairs, 2), int64
        Positions in the training set: the overwritten sample, and the sample that was copied.
    """

    data: Dataset
    pairs: np.ndarray

    @property
    def is_duplicate(self) -> np.ndarray:
        """Return a mask (n_samples,), bool, of both samples of every pair."""
        mask = np.zeros(len(self.data.train), dtype=bool)
        mask[self.pairs] = True
        return mask


def plant(data: Dataset, n_pairs: int, *, seed: int = 0) -> Planted:
    """Overwrite training samples with copies of others under a wrong label.

    The protocol of the CSL paper (Ravikumar et al. 2025; 250 pairs in 50,000): disjoint random
    pairs (a, b), where a gets the image of b and a random label other than that of b.

    Raises
    ------
    ValueError
        If there are fewer disjoint pairs, only one class, or a class would lose its last sample.
    """
    train = data.train
    if not 0 <= n_pairs <= len(train) // 2:
        raise ValueError(
            f"n_pairs is {n_pairs}; expected 0 to {len(train) // 2}, for {len(train)} samples"
        )
    if data.n_classes < 2:
        raise ValueError(f"{data.name} has one class; a conflicting label needs at least two")
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randperm(len(train), generator=generator)[: 2 * n_pairs].view(2, n_pairs)
    shift = torch.randint(1, data.n_classes, (n_pairs,), generator=generator)
    images, labels, clean = train.images.clone(), train.labels.clone(), train.clean_labels.clone()
    images[a], clean[a] = images[b], clean[b]
    labels[a] = (labels[b] + shift) % data.n_classes
    samples = replace(train, images=images, labels=labels, clean_labels=clean)
    return Planted(replace(data, train=samples), torch.stack([a, b], 1).numpy())


def evaluate(planted: Planted, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the AUROC with which scores find the ends of planted pairs.

    Parameters
    ----------
    planted : Planted
    scores : DataFrame (n_samples, n_scores)
        Finite, in the order of the training samples; higher = more suspicious.

    Returns
    -------
    DataFrame, index "ends"
        One column per score. "both": both samples of every pair against all others, as in the CSL
        paper. "copy" (overwritten, wrong label) and "original": one of them, without the other.
    """
    columns, rows = {"both": [0, 1], "copy": [0], "original": [1]}, {}
    for name, ends in columns.items():
        positive = np.isin(np.arange(len(scores)), planted.pairs[:, ends])
        among = positive | ~planted.is_duplicate
        table = detection.evaluate_detectors(positive[among], scores[among])
        rows[name] = table["auroc"]
    return pd.DataFrame(rows).T.rename_axis(index="ends", columns=None)


def features(model: nn.Module, data: Dataset, images: Tensor) -> Tensor:
    """Return the inputs of the last linear layer, (n, d), in eval mode, on clean images.

    Raises
    ------
    ValueError
        If the model has no linear layer.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear layer: compute features yourself"
        )
    rows = devices.rows_of(model, data.in_shape)  # before the hook, as it runs the model
    batches: list[Tensor] = []
    keep = lambda _, inputs: batches.append(inputs[0].flatten(1))  # noqa: E731
    handle = layers[-1].register_forward_pre_hook(keep)
    try:
        predict(model, data, images, rows)
    finally:
        handle.remove()
    return torch.cat(batches)


def find(
    samples: Samples,
    features: Tensor | np.ndarray | None = None,
    *,
    scores: pd.Series | ArrayLike | None = None,
    near: bool = True,
    false_pairs: float = 0.1,
) -> pd.DataFrame:
    """Find pairs of exact and near duplicates; pairs with conflicting labels come first.

    Exact duplicates have the same pixels; each copy is reported once, with the first sample of its
    group. Near duplicates are much closer to each other than to their other neighbours, in pixels
    or in features, and each is among the nearest neighbours of the other. Images are compared by
    the cosine of their pixels, less each image's mean, so brightness and contrast have no effect;
    features are compared by cosine. Constant images can only be exact duplicates.

    Measured with the default settings: no pair in digits, by pixels or by features of trained
    networks, and none in MNIST; 63 near pairs in Fashion-MNIST and 342 pairs in CIFAR-100 (14
    exact, 21 in conflict), real duplicates as far as we checked. Of copies planted in digits
    (pixels up to 16) all exact ones are found, 92 % with noise of standard deviation 0.25, 48 % at
    0.5 and 4 % at 1, 94 % with one pixel changed by 1, 86 % by 2, and 86 % at 0.9 of the contrast.

    Parameters
    ----------
    samples : Samples
    features : (n_samples, d), optional
        A second space to search, such as `features` of a network.
    scores : (n_samples,), optional
        Any score, higher = more suspicious; a Series is matched by original index.
    near : bool
        False finds only exact duplicates, in one pass over the pixels.
    false_pairs : float
        Sensitivity: the expected number of false near pairs in all the data. In fewer than 100
        different images no near duplicates are searched, because too little is known of the usual
        distances.

    Returns
    -------
    DataFrame, one row per pair, row_a < row_b
        index_a, index_b (original), row_a, row_b (positions), label_a, label_b, conflict, exact,
        similarity (of pixels, in [-1, 1]), feature_similarity (with features), score_a, score_b and
        score, the larger (with scores), false_pairs: the expected number of false pairs that are as
        close, 0 for exact ones. Sorted by conflict, exact, then score or similarity.

    Raises
    ------
    ValueError
        If features or scores have another length or are not finite, or false_pairs is not positive.
    """
    n = len(samples)
    if not false_pairs > 0:
        raise ValueError(f"false_pairs is {false_pairs}; expected a number above 0")
    spaces = {}
    if near:
        spaces["similarity"] = _directions(samples.images.flatten(1), centre=True)
    if near and features is not None:
        rows = _finite("features", features, n, 2).to(samples.images.device)
        spaces["feature_similarity"] = _directions(rows, centre=False)
    if isinstance(scores, pd.Series):
        scores = scores.reindex(samples.index.cpu().numpy())
    scores = None if scores is None else _finite("scores", scores, n, 1).double().cpu().numpy()
    first = _first_equal(samples.images)
    distinct = (first == np.arange(n)).nonzero()[0]
    candidates = _near_pairs(list(spaces.values()), torch.as_tensor(distinct))
    copies = (first != np.arange(n)).nonzero()[0]
    exact = pd.DataFrame({"row_a": first[copies], "row_b": copies, "false_pairs": 0.0})
    close = candidates[candidates["false_pairs"] <= false_pairs]
    pairs = pd.concat([exact.assign(exact=True), close.assign(exact=False)], ignore_index=True)
    return _describe(pairs, samples, spaces, scores)


def groups(pairs: pd.DataFrame) -> list[np.ndarray]:
    """Return positions of samples connected by pairs, one array per group, largest group first."""
    rows, ends = np.unique(pairs[["row_a", "row_b"]].to_numpy(), return_inverse=True)
    a, b = ends.reshape(-1, 2).T
    links = coo_array((np.ones(len(a)), (a, b)), shape=(len(rows),) * 2)
    _, group = connected_components(links, directed=False)
    parts = [part.to_numpy() for _, part in pd.Series(rows).groupby(group)]
    return sorted(parts, key=len, reverse=True)


def _finite(name: str, values: Tensor | ArrayLike, n: int, ndim: int) -> Tensor:
    # Copy arrays: torch warns about those of pandas, which are read-only.
    values = values if isinstance(values, Tensor) else torch.as_tensor(np.array(values))
    if values.ndim != ndim or len(values) != n:
        shape = f"({n}, d)" if ndim == 2 else f"({n},)"
        raise ValueError(f"{name} have shape {tuple(values.shape)}; expected {shape}")
    if n_bad := int((~values.isfinite()).sum()):
        raise ValueError(f"{name} have {n_bad} NaN or infinite values; expected finite numbers")
    return values


def _directions(rows: Tensor, *, centre: bool) -> Tensor:
    """Return rows of unit length, float32 (float64 if narrow); a row without direction is zero."""
    unit = rows.new_empty(rows.shape, dtype=torch.float64 if rows.shape[1] < WIDE else torch.float)
    for part, into in zip(rows.split(4096), unit.split(4096)):  # float64 needs memory: in parts
        part = part.double()
        size = part.norm(dim=1, keepdim=True)
        part = part - part.mean(1, keepdim=True) if centre else part
        length = part.norm(dim=1, keepdim=True)
        into.copy_(torch.where(length > SAME * size, part / length, 0.0))
    return unit


def _first_equal(images: Tensor) -> np.ndarray:
    """Return the position of the first image with the same pixels, (n,), by hashes."""
    seen: dict[bytes, int] = {}  # adding 0 turns -0.0 into 0.0
    rows = enumerate(images.flatten(1).cpu().numpy())
    return np.array([seen.setdefault(blake2b(row + 0).digest(), i) for i, row in rows], int)


def _near_pairs(spaces: list[Tensor], candidates: Tensor) -> pd.DataFrame:
    """Return pairs of candidates that are mutual neighbours in a space, with ``false_pairs``."""
    tables = []
    for unit in spaces:
        rows = candidates.to(unit.device)
        rows = rows[unit[rows].any(1)]
        if len(rows) < MIN_SAMPLES:
            continue
        distances, neighbours = _neighbours(unit[rows])
        expected = _expected(distances, neighbours) * len(spaces)  # false pairs of each space
        a, rank = (expected < torch.inf).nonzero(as_tuple=True)
        ends = torch.stack([rows[a], rows[neighbours[a, rank]]], 1).sort(1).values
        columns = {"row_a": ends[:, 0], "row_b": ends[:, 1], "false_pairs": expected[a, rank]}
        tables.append(pd.DataFrame({name: v.cpu().numpy() for name, v in columns.items()}))
    empty = pd.DataFrame({"row_a": [], "row_b": [], "false_pairs": []})
    tables = tables or [empty.astype({"row_a": np.int64, "row_b": np.int64, "false_pairs": float})]
    return pd.concat(tables).groupby(["row_a", "row_b"], as_index=False)["false_pairs"].min()


def _neighbours(unit: Tensor) -> tuple[Tensor, Tensor]:
    """Return distances (n, k), float64, and positions (n, k) of the k nearest rows, sorted."""
    # Not scikit-learn's NearestNeighbors: 1.6 times as slow for 10,000 x 784, and not on a GPU.
    distances, neighbours = [], []
    for start in range(0, len(unit), BLOCK_SIZE):
        block = unit[start : start + BLOCK_SIZE]
        cosine = block @ unit.T  # (block, n)
        cosine[torch.arange(len(block)), torch.arange(start, start + len(block))] = -torch.inf
        near = cosine.topk(N_NEIGHBOURS, dim=1).indices
        # From the differences, because 1 - cosine is inexact for small distances.
        length = torch.stack([(block - unit[j]).norm(dim=1) for j in near.T], 1).double()
        order = length.argsort(dim=1, stable=True)
        distances.append(length.gather(1, order))
        neighbours.append(near.gather(1, order))
    return torch.cat(distances), torch.cat(neighbours)


def _expected(distances: Tensor, neighbours: Tensor) -> Tensor:
    """Return the expected number of false pairs as close, (n, k // 2); inf if not mutual.

    The widest gap behind a pair counts: for two of three copies, that behind the third.
    """
    n, k = distances.shape
    n_ranks = k // 2
    rank = torch.arange(1, k, device=distances.device)
    gaps = distances.clamp_min(SAME).log().diff(dim=1) * rank  # each of mean 1 / dimension
    # Among many equal rows, ties would be taken for a high dimension: the dimension is unknown.
    tied = distances[:, -1] <= SAME
    # Without the first gap, which a copy changes; the median, as copies of neighbours change more.
    inverse = gaps[:, 1:].mean(1).masked_fill(tied | tied[neighbours].any(1), torch.inf)
    inverse = torch.cat([inverse[:, None], inverse[neighbours]], 1).median(1, keepdim=True).values
    dimension = (1 / inverse).clamp_max(MAX_DIMENSION)
    log_chance = -dimension * gaps[:, :n_ranks].flip(1).cummax(1).values.flip(1)
    # Both ends must agree: (n, n_ranks, n_ranks), the neighbours' neighbours against this sample.
    neighbours = neighbours[:, :n_ranks]
    is_self = neighbours[neighbours] == torch.arange(n, device=rank.device)[:, None, None]
    other = log_chance[neighbours].masked_fill(~is_self, torch.inf).amin(2)
    # Every pair can be found from both ends, each of which has n_ranks gaps.
    return n * n_ranks / 2 * torch.maximum(log_chance, other).exp()


def _describe(
    pairs: pd.DataFrame, samples: Samples, spaces: dict[str, Tensor], scores: np.ndarray | None
) -> pd.DataFrame:
    rows = {end: torch.as_tensor(pairs[f"row_{end}"].to_numpy(copy=True)) for end in "ab"}
    table = {f"index_{end}": samples.index.cpu()[rows[end]].numpy() for end in "ab"}
    table |= {f"row_{end}": rows[end].numpy() for end in "ab"}
    table |= {f"label_{end}": samples.labels.cpu()[rows[end]].numpy() for end in "ab"}
    table["conflict"] = table["label_a"] != table["label_b"]
    table["exact"] = pairs["exact"].to_numpy()
    table["similarity"] = 1.0  # of exact duplicates; replaced for the others
    for name, unit in spaces.items():
        a, b = (unit[rows[end].to(unit.device)].double() for end in "ab")
        cosine = (a * b).sum(1).clamp(-1, 1).cpu().numpy()
        table[name] = np.where(table["exact"], 1.0, cosine)  # also for constant images
    if scores is not None:
        table |= {f"score_{end}": scores[rows[end].numpy()] for end in "ab"}
        table["score"] = np.maximum(table["score_a"], table["score_b"])
    table["false_pairs"] = pairs["false_pairs"].to_numpy()
    by = {"conflict": False, "exact": False, "similarity" if scores is None else "score": False}
    by |= {"row_a": True, "row_b": True}
    return pd.DataFrame(table).sort_values([*by], ascending=[*by.values()], ignore_index=True)
