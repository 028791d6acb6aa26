"""The extra trainings that some scores need: folds, a second split, repeats.

Each kind trains several nets for one (data, seed); the nets of many data sets (noise rates, seeds)
that share their images are stacked and trained together. What a kind leaves is kept in the store,
so that any score can be made of it later; each stack is kept there as well until all are done, so
that an interruption costs the one that is being trained.

kind            trainings for one seed               leaves
``folds``       3 folds                              ``logits`` (n_samples, n_classes), held out
``samis``       10 folds, each by SGD and by SAM     ``sgd``, ``sam``, the same, held out
``second_split``  each half, then the other half     ``correct`` (n_epochs, n_samples) of the first
                                                     half's samples while the second is learned
``repeats``     10 nets, stopped early               ``el2n``, ``weight_grad`` (10, n_samples)
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from joblib import delayed
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from memlens.data.samples import Dataset
from memlens.ensembles.model_ensemble import ModelEnsemble, ensemble_size, train_ensemble
from memlens.storage import store
from memlens.storage.store import Arrays
from memlens.tracking import signals
from memlens.tracking.scores import EARLY_EPOCH
from memlens.tracking.weightgrads import weight_gradient_norm
from memlens.training import devices
from memlens.training.batches import sequential_batches
from memlens.training.config import TrainConfig, mixed_seed
from memlens.training.jobs import described
from memlens.training.parallel import KeyedArtifact, on_cluster, run_parallel, store_or_return

Wanted = dict[str, tuple[Dataset, int]]  # by key: data and seed
SAM_RHO = 0.05  # Agiollo et al. 2024, as Foret et al. 2021
CPU_ENSEMBLE_SIZE = 20  # fewer than a sweep's 50: a few dozen nets have to fill every core
RETRAINING_VERSION = 1  # part of every key, see `jobs.RUN_VERSION`


@dataclass(frozen=True)
class Member:
    """One net to train: on which samples (n_samples,), with which labels, from which seed."""

    mask: np.ndarray
    labels: Tensor
    seed: int


@dataclass(frozen=True)
class RetrainingKind:
    """A way of training again: what to train, how, and what is kept of it.

    Attributes
    ----------
    plan : (data, seed) -> parts
    work : (nets, data, parts, config) -> arrays of each part
    gather : (parts, their arrays) -> what is kept for the (data, seed)
    trainings : float, what it costs for one seed, in trainings of all samples for all epochs; for
        ``repeats``, which stop early, in epochs
    """

    plan: Callable[[Dataset, int], list[Member]]
    work: Callable[[ModelEnsemble, Dataset, list[Member], TrainConfig], list[Arrays]]
    gather: Callable[[list[Member], list[Arrays]], Arrays]
    trainings: float


def retrain(
    kind: str,
    model: str,
    datasets: Sequence[Dataset],
    config: TrainConfig,
    *,
    seeds: Sequence[int],
    n_jobs: int | None = None,
) -> list[Arrays]:
    """The extra trainings of one kind for each data set, or what the store has of them.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    model : str
        A name from ``models.MODELS``.
    datasets : sequence of Dataset
        Those that share their images (only the labels differ) are trained together.
    config : TrainConfig
        Its seed is not used.
    seeds : sequence of int, one a data set
        Of the split, the weights and the order of the samples.
    n_jobs : int, optional
        Processes; by default as in `jobs.train_many`.

    Returns
    -------
    list of dict, one a data set
        The arrays of the kind, and ``y_true`` (n_samples,).

    Raises
    ------
    ValueError
        If the kind is unknown, or there is not one seed a data set.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    if len(datasets) != len(seeds):
        raise ValueError(f"{len(datasets)} data sets and {len(seeds)} seeds: pass one seed each")
    cache, version = store.Store(), RETRAINING_VERSION
    engine = config.engine().key
    keys = [
        f"{kind}-{store.fingerprint([model, data, replace(config, seed=0), engine, seed, version])}"
        for data, seed in zip(datasets, seeds)
    ]
    found = {key: cache.get(key) for key in keys}
    if claimed := [key for key in keys if found[key] is None]:
        with cache.claim(*claimed):
            found = {key: found[key] or cache.get(key) for key in keys}  # or finished meanwhile
            wanted = dict(zip(keys, zip(datasets, seeds)))
            for same in _by_images(wanted):
                if missing := {key: same[key] for key in same if found[key] is None}:
                    found |= _finish(kind, model, same, missing, config, n_jobs, cache)
    for key in keys:
        cache.tidy(key)
    labels = [data.train.labels.numpy() for data in datasets]
    return [found[key].arrays | {"y_true": y} for key, y in zip(keys, labels)]


def _by_images(wanted: Wanted) -> list[Wanted]:
    groups: dict[tuple, Wanted] = {}
    for key, (data, seed) in wanted.items():
        scale = data.pixel_max, data.mean, data.std, data.class_names
        groups.setdefault((id(data.train.images), *scale), {})[key] = (data, seed)
    return list(groups.values())


def _finish(
    kind: str,
    model: str,
    same: Wanted,
    missing: Wanted,
    config: TrainConfig,
    n_jobs: int | None,
    cache: store.Store,
) -> dict[str, store.Artifact]:
    """Train what is missing and keep it; nets that an interrupted call has trained are found."""
    _, chunks = _chunks(KINDS[kind], model, same, config)
    # A call that was killed while it put its artifacts has left all its chunks. To train what is
    # missing alone would be another stack, and other last bits.
    wanted = same if all(name in cache for name in chunks) else missing
    artifacts = train_kind(KINDS[kind], model, wanted, config, n_jobs, cache)
    for key in missing:
        what = f"{kind}: {described(model, wanted[key][0], config)}"
        artifacts[key] = artifacts[key]._replace(meta={"kind": kind}, what=what)
        cache.put(key, artifacts[key])
    return {key: artifacts[key] for key in missing}


def train_kind(
    kind: RetrainingKind,
    model: str,
    wanted: Wanted,
    config: TrainConfig,
    n_jobs: int | None,
    cache: store.Store,
) -> dict[str, store.Artifact]:
    """What a kind leaves for each wanted (data, seed); they share their images.

    Each stack of nets is kept on the cache as a part of the last of them, and taken from there; the
    caller puts that one last, and tidies up after it.
    """
    parts, chunks = _chunks(kind, model, wanted, config)
    data = next(iter(wanted.values()))[0]
    near = None if on_cluster(n_jobs) else cache
    calls = {
        name: delayed(_work)(name, near, kind, model, data, [parts[i][1] for i in chunk], config)
        for name, chunk in chunks.items()
    }
    done = run_parallel(calls, cache, n_jobs, [config])
    left, seconds = {}, {}
    for name, chunk in chunks.items():
        for at, i in enumerate(chunk):
            arrays = done[name].arrays
            left[i] = {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith(f"{at}/")}
            seconds[i] = done[name].seconds / len(chunk)
    rows = {key: [i for i, (k, _) in enumerate(parts) if k == key] for key in wanted}
    gathered = {
        k: kind.gather([parts[i][1] for i in r], [left[i] for i in r]) for k, r in rows.items()
    }
    return {
        key: store.Artifact(arrays, {}, seconds=sum(seconds[i] for i in rows[key]))
        for key, arrays in gathered.items()
    }


def _chunks(
    kind: RetrainingKind, model: str, wanted: Wanted, config: TrainConfig
) -> tuple[list[tuple[str, Member]], dict[str, list[int]]]:
    """All nets to train, and which of them are stacked, by the name under which a stack is kept.

    The name says who is in the stack, as who is beside a net decides the last bits of its weights.
    It makes the stack a part of the artifact that is put last: with that, all others are finished.
    """
    parts = [(key, part) for key, (data, s) in wanted.items() for part in kind.plan(data, s)]
    data = next(iter(wanted.values()))[0]
    by_size: dict[int, list[int]] = {}
    for i, (_, part) in enumerate(parts):
        by_size.setdefault(int(part.mask.sum()), []).append(i)
    stack, chunks = ensemble_size(model, data, config, CPU_ENSEMBLE_SIZE), {}
    first = {key: i for i, (key, _) in reversed(list(enumerate(parts)))}
    for rows in by_size.values():
        for chunk in np.array_split(rows, -(-len(rows) // stack)):
            members = [[parts[i][0], int(i - first[parts[i][0]])] for i in chunk]
            name = f"{list(wanted)[-1]}.{len(members)}-nets-{store.fingerprint(members)}"
            chunks[name] = chunk.tolist()
    return parts, chunks


def _work(
    name: str,
    cache: store.Store | None,
    kind: RetrainingKind,
    model: str,
    data: Dataset,
    parts: list[Member],
    config: TrainConfig,
) -> KeyedArtifact:
    """Train a stack of nets, and keep what they leave, or hand it over."""
    start = time.perf_counter()
    ensemble = ModelEnsemble.build(model, data, [part.seed for part in parts])
    with devices.exact_float32():
        left = kind.work(ensemble, data, parts, config)
    arrays = {f"{at}/{k}": values for at, rows in enumerate(left) for k, values in rows.items()}
    what = f"{len(parts)} x {described(model, data, config)}"
    artifact = store.Artifact(arrays, {}, what, time.perf_counter() - start)
    return store_or_return(name, artifact, cache)


def train_members(
    ensemble: ModelEnsemble,
    data: Dataset,
    parts: list[Member],
    config: TrainConfig,
    **options: object,
) -> None:
    """Train each net on its part; options as in `together.train_ensemble`."""
    masks, labels = np.stack([p.mask for p in parts]), torch.stack([p.labels for p in parts])
    seeds = [part.seed for part in parts]
    train_ensemble(ensemble, data, masks, config, seeds, labels=labels, **options)


def fold_members(data: Dataset, seed: int, n_folds: int = 3) -> list[Member]:
    """One part a fold, stratified by the labels as they are given, noise included.

    Fold k's net has the seed (seed, k). No more folds than the largest class has samples.

    Raises
    ------
    ValueError
        If no class has two samples, one to train on and one to hold out.
    """
    y, n = data.train.labels, len(data.train)
    n_folds = min(n_folds, int(torch.bincount(y).max()))
    if n_folds < 2:
        raise ValueError(
            f"{n} training samples of {data.name} are {n} classes with one each: a fold would hold "
            "out all that there is of a class; take more samples"
        )
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(np.zeros(n), y)
    masks = [~np.isin(np.arange(n), held_out) for _, held_out in folds]
    return [Member(mask, y, mixed_seed(seed, k)) for k, mask in enumerate(masks)]


def _logits(
    ensemble: ModelEnsemble, data: Dataset, parts: list[Member], config: TrainConfig
) -> list[Arrays]:
    train_members(ensemble, data, parts, config)
    return [{"logits": logits.cpu().numpy()} for logits in ensemble.predict(data)]


def _sgd_and_sam(
    ensemble: ModelEnsemble, data: Dataset, parts: list[Member], config: TrainConfig
) -> list[Arrays]:
    # The same initial weights and order for both: the difference is the optimizer's alone.
    ensemble.place(config.engine())  # now, so that what is kept here is what will be trained
    state = ensemble.weights | ensemble.buffers
    start = {name: values.detach().clone() for name, values in state.items()}
    sgd = _logits(ensemble, data, parts, replace(config, sam_rho=0.0))
    with torch.no_grad():
        for name, values in start.items():
            state[name].copy_(values)
    sam = _logits(ensemble, data, parts, replace(config, sam_rho=SAM_RHO))
    return [{"sgd": a["logits"], "sam": b["logits"]} for a, b in zip(sgd, sam)]


def _held_out(parts: list[Member], arrays: list[Arrays]) -> Arrays:
    """Each sample's rows from the net that was not trained on it."""
    whole = {name: np.zeros_like(rows) for name, rows in arrays[0].items()}
    for part, rows in zip(parts, arrays):
        for name, values in rows.items():
            whole[name][~part.mask] = values[~part.mask]
    return whole


def half_members(data: Dataset, seed: int) -> list[Member]:
    """Two parts, each one random half of the samples; both nets start from the same weights."""
    half = np.zeros(len(data.train), dtype=bool)
    half[np.random.default_rng(seed).permutation(half.size)[: half.size // 2]] = True
    return [Member(mask, data.train.labels, seed) for mask in (half, ~half)]


def _second_split(
    ensemble: ModelEnsemble, data: Dataset, parts: list[Member], config: TrainConfig
) -> list[Arrays]:
    train_members(ensemble, data, parts, config)
    y, correct = torch.stack([part.labels for part in parts]), []
    # The same weights go on, on the other half, with a new optimizer and from the first rate again.
    others = [replace(part, mask=~part.mask, seed=mixed_seed(part.seed, 1)) for part in parts]
    note = lambda: correct.append(ensemble.predict(data).argmax(2).cpu() == y)  # noqa: E731
    train_members(ensemble, data, others, config, after_epoch=note)
    return [{"correct": rows.numpy()} for rows in torch.stack(correct, 1)]


def _first_half(parts: list[Member], arrays: list[Arrays]) -> Arrays:
    """Each sample's column from the net that learned it first and then went on without it."""
    first, second = (rows["correct"] for rows in arrays)
    return {"correct": np.where(parts[0].mask, first, second)}


def repeat_members(data: Dataset, seed: int, n_runs: int = 10) -> list[Member]:
    """Parts of all samples that differ in their seed, (seed, k)."""
    every = np.ones(len(data.train), dtype=bool)
    return [Member(every, data.train.labels, mixed_seed(seed, k)) for k in range(n_runs)]


def _early(
    ensemble: ModelEnsemble, data: Dataset, parts: list[Member], config: TrainConfig
) -> list[Arrays]:
    train_members(ensemble, data, parts, config, epochs=min(EARLY_EPOCH + 1, config.epochs))
    return early_signals(ensemble, data, parts)


def early_signals(ensemble: ModelEnsemble, data: Dataset, parts: list[Member]) -> list[Arrays]:
    """EL2N and the norm of the weight gradient of every sample, as each net stands: eval mode."""
    found = []
    for i, (part, logits) in enumerate(zip(parts, ensemble.predict(data))):
        y = part.labels.to(ensemble.device)
        arrays = {
            "el2n": signals.el2n(logits, y),
            "weight_grad": _weight_norms(ensemble, i, data, y),
        }
        found.append({name: values.detach().cpu().numpy() for name, values in arrays.items()})
    return found


def _weight_norms(ensemble: ModelEnsemble, i: int, data: Dataset, y: Tensor) -> Tensor:
    net = ensemble.member(i)
    rows = devices.rows_of(net, data.in_shape)
    parts = zip(sequential_batches(data.train, rows, ensemble.device), y.split(rows), strict=True)
    return torch.cat([weight_gradient_norm(net, data.normalise(x), own) for (x, _), own in parts])


def _stacked(_: list[Member], arrays: list[Arrays]) -> Arrays:
    return {name: np.stack([rows[name] for rows in arrays]) for name in arrays[0]}


def _ten_folds(data: Dataset, seed: int) -> list[Member]:
    return fold_members(data, seed, n_folds=10)


KINDS: dict[str, RetrainingKind] = {
    "folds": RetrainingKind(fold_members, _logits, _held_out, 3 * 2 / 3),
    "samis": RetrainingKind(
        _ten_folds, _sgd_and_sam, _held_out, 10 * 0.9 * (1 + 2)
    ),  # SAM steps twice
    "second_split": RetrainingKind(
        half_members, _second_split, _first_half, 2 * (1 / 2 + 1 / 2) + 2 / 3
    ),
    "repeats": RetrainingKind(repeat_members, _early, _stacked, 10 * (EARLY_EPOCH + 1)),
}
