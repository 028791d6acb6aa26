"""Duplicates: pairs planted with conflicting labels, and a finder that needs no ground truth.

Which distance is small enough? Honest images of one class can be very alike (two digits 1 reach a
cosine of 0.99), so no fixed threshold serves two data sets. `find` asks instead how far a pair
stands out from its own neighbourhood. Where samples lie evenly in m dimensions, m * j * log(d[j+1]
/ d[j]) is exponential with mean 1, d[j] being the distance to the j-th nearest neighbour (Facco
et al. 2017 measure m by j = 1). The neighbours further out tell the local m, and the gap behind
the nearest ones then has a probability. The threshold is the number of honest pairs that one is
willing to see, and means the same for every data set.
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
from memlens.training import devices
from memlens.training.loop import predict

WIDE = 256  # columns; in fewer, neighbours can lie too close for float32 to tell them apart
SAME = 1e-6  # distance of unit vectors that rounding alone can make
# Ours: with more, distances hardly differ, and a pair a little closer than others is no copy.
MOST_DIMENSIONS = 40.0
SAMPLES_A_NEIGHBOUR = 10  # ours: in fewer samples, neighbours further out are no neighbourhood
FEWEST_NEIGHBOURS = 3  # one gap to judge, one to tell the dimension, and the end of that gap


@dataclass(frozen=True)
class Planted:
    """A data set with planted duplicates.

    Attributes
    ----------
    data : Dataset
        The clean label of a planted copy is that of the image it now shows; ``index`` is kept.
    pairs : ndarray (n_pairs, 2), int64
        Positions in the training set: the sample that was overwritten, and the one it copies.
    """

    data: Dataset
    pairs: np.ndarray

    @property
    def is_duplicate(self) -> np.ndarray:
        """Mask (n_samples,), bool: both samples of every pair."""
        mask = np.zeros(len(self.data.train), dtype=bool)
        mask[self.pairs] = True
        return mask


def plant(data: Dataset, n_pairs: int, *, seed: int = 0) -> Planted:
    """Training samples overwritten by copies of others under a wrong label.

    The protocol of the CSL paper (Ravikumar et al. 2025; 250 pairs in 50,000): disjoint random
    pairs (a, b); a gets the image of b and a label uniform over all but the label of b.

    Raises
    ------
    ValueError
        If there are not so many disjoint pairs, only one class, or a class loses its last sample.
    """
    train = data.train
    if not 0 <= n_pairs <= len(train) // 2:
        raise ValueError(
            f"n_pairs is {n_pairs}; {len(train)} samples make 0 to {len(train) // 2} disjoint pairs"
        )
    if data.n_classes < 2:
        raise ValueError(f"{data.name} has one class: a copy cannot have a conflicting label")
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randperm(len(train), generator=generator)[: 2 * n_pairs].view(2, n_pairs)
    shift = torch.randint(1, data.n_classes, (n_pairs,), generator=generator)
    images, labels, clean = train.images.clone(), train.labels.clone(), train.clean_labels.clone()
    images[a], clean[a] = images[b], clean[b]
    labels[a] = (labels[b] + shift) % data.n_classes
    samples = replace(train, images=images, labels=labels, clean_labels=clean)
    return Planted(replace(data, train=samples), torch.stack([a, b], 1).numpy())


def features(model: nn.Module, data: Dataset, images: Tensor) -> Tensor:
    """What the net's last linear layer sees, (n, d): eval mode, clean inputs, in batches.

    Raises
    ------
    ValueError
        If the net has no linear layer.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no nn.Linear: pass features of your own")
    rows = devices.rows_of(model, data.in_shape)  # before the hook, which it would go through
    seen: list[Tensor] = []
    keep = lambda _, inputs: seen.append(inputs[0].flatten(1))  # noqa: E731
    handle = layers[-1].register_forward_pre_hook(keep)
    try:
        predict(model, data, images, rows)
    finally:
        handle.remove()
    return torch.cat(seen)


def find(
    samples: Samples,
    features: Tensor | np.ndarray | None = None,
    *,
    scores: pd.Series | ArrayLike | None = None,
    near: bool = True,
    false_pairs: float = 0.1,
    n_neighbours: int = 10,
    block_size: int = 512,
) -> pd.DataFrame:
    """Pairs of exact and near duplicates, conflicting labels first.

    Exact: the same pixels; each copy is reported once, beside the first of its group. Near: a pair
    much closer to each other than the neighbours around them are, by pixels or by features, each
    end being among the nearest of the other. Images are compared by direction, each less its own
    mean, so brightness and contrast do not matter; features by direction too. Constant images have
    no direction and can only be exact duplicates.

    Measured at the defaults: no pair in digits, by pixels or by the features of trained nets, and
    none in MNIST; 63 near pairs in Fashion-MNIST, 342 pairs in CIFAR-100 (14 exact, 21 in
    conflict), real ones as far as we looked. Of copies planted in digits (pixels up to 16) all are
    found if exact, 92 % with noise of standard deviation 0.25, 48 % at 0.5 and 4 % at 1, 94 % with
    one pixel off by 1, 86 % by 2, and 86 % at 0.9 of the contrast, rounded.

    Parameters
    ----------
    features : (n_samples, d), optional
        What else to compare by, such as `features` of a net.
    scores : (n_samples,), optional
        Any score, higher = more suspicious; a Series is matched by original index.
    near : bool
        False looks for exact duplicates alone, in one pass over the pixels.
    false_pairs : float
        The sensitivity: how many near pairs of honest samples may be expected, in all.
    n_neighbours : int
        Neighbours that make a neighbourhood. Groups of up to half as many near copies are seen
        (of exact ones, any number). In fewer than ten times as many different images no near
        duplicates are looked for: too little is known of how close honest ones come.
    block_size : int
        Samples compared with all others at a time; memory is block_size x n_samples.

    Returns
    -------
    DataFrame, a row a pair, row_a < row_b
        index_a, index_b (original), row_a, row_b (positions), label_a, label_b, conflict, exact,
        similarity (of pixels, in [-1, 1]), feature_similarity (if given), score_a, score_b and
        score, the larger (if given), false_pairs: how many honest pairs would be expected to
        stand out as far, 0 for exact ones. Sorted by conflict, exact, then score or similarity.

    Raises
    ------
    ValueError
        On features or scores of another length or not finite, or settings without a meaning.
    """
    n = len(samples)
    if not false_pairs > 0 or n_neighbours < FEWEST_NEIGHBOURS or block_size < 1:
        raise ValueError(
            f"false_pairs={false_pairs}, n_neighbours={n_neighbours}, block_size={block_size}: "
            f"expected above 0, at least {FEWEST_NEIGHBOURS} and at least 1"
        )
    spaces = {}
    if near:
        spaces["similarity"] = _directions(samples.images.flatten(1), centre=True)
    if near and features is not None:
        rows = _finite("features", features, n, 2).to(samples.images.device)
        spaces["feature_similarity"] = _directions(rows, centre=False)
    if isinstance(scores, pd.Series):
        scores = scores.reindex(samples.index.cpu().numpy())
    scores = None if scores is None else _finite("scores", scores, n, 1).double().cpu().numpy()
    first = _first_alike(samples.images)
    alone = (first == np.arange(n)).nonzero()[0]
    found = _near_pairs(list(spaces.values()), torch.as_tensor(alone), n_neighbours, block_size)
    copies = (first != np.arange(n)).nonzero()[0]
    exact = pd.DataFrame({"row_a": first[copies], "row_b": copies, "false_pairs": 0.0})
    close = found[found["false_pairs"] <= false_pairs]
    pairs = pd.concat([exact.assign(exact=True), close.assign(exact=False)], ignore_index=True)
    return _described(pairs, samples, spaces, scores)


def groups(pairs: pd.DataFrame) -> list[np.ndarray]:
    """Positions of the samples that pairs connect, an array a group, the largest group first."""
    rows, ends = np.unique(pairs[["row_a", "row_b"]].to_numpy(), return_inverse=True)
    a, b = ends.reshape(-1, 2).T
    links = coo_array((np.ones(len(a)), (a, b)), shape=(len(rows),) * 2)
    _, group = connected_components(links, directed=False)
    found = [part.to_numpy() for _, part in pd.Series(rows).groupby(group)]
    return sorted(found, key=len, reverse=True)


def _finite(name: str, values: Tensor | ArrayLike, n: int, ndim: int) -> Tensor:
    # A copy of an array, because torch warns of those of pandas, which must not be written to.
    values = values if isinstance(values, Tensor) else torch.as_tensor(np.array(values))
    if values.ndim != ndim or len(values) != n:
        wanted = f"({n}, d)" if ndim == 2 else f"({n},)"
        raise ValueError(f"{name} have shape {tuple(values.shape)} for {n} samples; pass {wanted}")
    if n_bad := int((~values.isfinite()).sum()):
        raise ValueError(f"{name} hold {n_bad} NaN or infinite values; repair or drop them")
    return values


def _directions(rows: Tensor, *, centre: bool) -> Tensor:
    """Rows of unit length, float32 (float64 if narrow); zero where there is no direction."""
    unit = rows.new_empty(rows.shape, dtype=torch.float64 if rows.shape[1] < WIDE else torch.float)
    for part, into in zip(rows.split(4096), unit.split(4096)):  # float64 of a part at a time
        part = part.double()
        size = part.norm(dim=1, keepdim=True)
        part = part - part.mean(1, keepdim=True) if centre else part
        length = part.norm(dim=1, keepdim=True)
        into.copy_(torch.where(length > SAME * size, part / length, 0.0))
    return unit


def _first_alike(images: Tensor) -> np.ndarray:
    """Position of the first image with the same pixels, (n,), by hashes."""
    seen: dict[bytes, int] = {}  # adding 0 makes -0.0 the same as 0.0
    rows = enumerate(images.flatten(1).cpu().numpy())
    return np.array([seen.setdefault(blake2b(row + 0).digest(), i) for i, row in rows], int)


def _near_pairs(
    spaces: list[Tensor], candidates: Tensor, n_neighbours: int, block_size: int
) -> pd.DataFrame:
    """Pairs of candidates that are mutual neighbours in a space, with their ``false_pairs``."""
    tables = []
    for unit in spaces:
        rows = candidates.to(unit.device)
        rows = rows[unit[rows].any(1)]
        if len(rows) < SAMPLES_A_NEIGHBOUR * n_neighbours:
            continue
        distances, who = _neighbours(unit[rows], n_neighbours, block_size)
        expected = _expected(distances, who) * len(spaces)  # looked twice: twice as many by chance
        a, rank = (expected < torch.inf).nonzero(as_tuple=True)
        ends = torch.stack([rows[a], rows[who[a, rank]]], 1).sort(1).values
        columns = {"row_a": ends[:, 0], "row_b": ends[:, 1], "false_pairs": expected[a, rank]}
        tables.append(pd.DataFrame({name: v.cpu().numpy() for name, v in columns.items()}))
    empty = pd.DataFrame({"row_a": [], "row_b": [], "false_pairs": []})
    tables = tables or [empty.astype({"row_a": np.int64, "row_b": np.int64, "false_pairs": float})]
    return pd.concat(tables).groupby(["row_a", "row_b"], as_index=False)["false_pairs"].min()


def _neighbours(unit: Tensor, k: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Distances (n, k), float64, and positions (n, k) of the nearest rows, the nearest first."""
    distances, who = [], []
    for start in range(0, len(unit), block_size):
        block = unit[start : start + block_size]
        cosine = block @ unit.T  # (block, n)
        cosine[torch.arange(len(block)), torch.arange(start, start + len(block))] = -torch.inf
        near = cosine.topk(k, dim=1).indices
        # Again from the differences: 1 - cosine has lost the digits of a small distance.
        length = torch.stack([(block - unit[j]).norm(dim=1) for j in near.T], 1).double()
        order = length.argsort(dim=1, stable=True)
        distances.append(length.gather(1, order))
        who.append(near.gather(1, order))
    return torch.cat(distances), torch.cat(who)


def _expected(distances: Tensor, who: Tensor) -> Tensor:
    """How many honest pairs would stand out as far, (n, k // 2); inf if not mutual.

    A pair is as conspicuous as the widest gap behind it: behind the second of three copies, say.
    """
    n, k = distances.shape
    most = k // 2
    rank = torch.arange(1, k, device=distances.device)
    gaps = distances.clamp_min(SAME).log().diff(dim=1) * rank  # each of mean 1 / dimension
    # Beside a heap of equal rows, ties would pass for a high dimension: nothing is known there.
    heap = distances[:, -1] <= SAME
    # The first gap is what a copy changes; the median, because copies of copies change others.
    inverse = gaps[:, 1:].mean(1).masked_fill(heap | heap[who].any(1), torch.inf)
    inverse = torch.cat([inverse[:, None], inverse[who]], 1).median(1, keepdim=True).values
    dimension = (1 / inverse).clamp_max(MOST_DIMENSIONS)
    log_chance = -dimension * gaps[:, :most].flip(1).cummax(1).values.flip(1)
    # The other end must agree: (n, most, most), where its neighbours are compared with this one.
    who = who[:, :most]
    back = who[who] == torch.arange(n, device=who.device)[:, None, None]
    other = log_chance[who].masked_fill(~back, torch.inf).amin(2)
    # Each pair has two ends that would report it, each end as many gaps to look at.
    return n * most / 2 * torch.maximum(log_chance, other).exp()


def _described(
    pairs: pd.DataFrame, samples: Samples, spaces: dict[str, Tensor], scores: np.ndarray | None
) -> pd.DataFrame:
    rows = {end: torch.as_tensor(pairs[f"row_{end}"].to_numpy(copy=True)) for end in "ab"}
    table = {f"index_{end}": samples.index.cpu()[rows[end]].numpy() for end in "ab"}
    table |= {f"row_{end}": rows[end].numpy() for end in "ab"}
    table |= {f"label_{end}": samples.labels.cpu()[rows[end]].numpy() for end in "ab"}
    table["conflict"] = table["label_a"] != table["label_b"]
    table["exact"] = pairs["exact"].to_numpy()
    table["similarity"] = 1.0  # of exact ones; the others are compared
    for name, unit in spaces.items():
        a, b = (unit[rows[end].to(unit.device)].double() for end in "ab")
        cosine = (a * b).sum(1).clamp(-1, 1).cpu().numpy()
        table[name] = np.where(table["exact"], 1.0, cosine)  # constant images too
    if scores is not None:
        table |= {f"score_{end}": scores[rows[end].numpy()] for end in "ab"}
        table["score"] = np.maximum(table["score_a"], table["score_b"])
    table["false_pairs"] = pairs["false_pairs"].to_numpy()
    by = {"conflict": False, "exact": False, "similarity" if scores is None else "score": False}
    by |= {"row_a": True, "row_b": True}
    return pd.DataFrame(table).sort_values([*by], ascending=[*by.values()], ignore_index=True)
