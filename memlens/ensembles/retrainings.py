"""Extra trainings that some scores need: folds, SGD and SAM, a second split, repeats.

Each kind trains several networks for a data set and a seed. Networks for many data sets (noise
rates, seeds) that share their images are trained together as one `ModelEnsemble`. The results are
cached, so that new scores need no new training. Each ensemble is cached as well until all are done,
so that an interruption loses only the ensemble in training.

kind              trainings per seed                   arrays
``folds``         3 folds                              ``logits`` (n_samples, n_classes), held out;
                                                       ``p_label`` and ``masks`` (3, n_samples), of
                                                       every network, and its training samples
``samis``         10 folds, each with SGD and SAM      ``sgd``, ``sam``: held-out logits
``second_split``  each half, then the other half       ``correct`` (n_epochs, n_samples), of the
                                                       first half while training on the second
``repeats``       10 networks, stopped early           ``el2n``, ``weight_grad`` (10, n_samples)
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from joblib import delayed
from scipy.special import softmax
from torch import Tensor

from memlens.data.samples import Dataset, stratified_folds
from memlens.ensembles.model_ensemble import ModelEnsemble, ensemble_size, train_ensemble
from memlens.storage import store
from memlens.storage.store import Arrays
from memlens.tracking import signals
from memlens.tracking.scores import EARLY_EPOCH
from memlens.tracking.weightgrads import weight_gradient_norm
from memlens.training import devices
from memlens.training.batches import sequential_batches
from memlens.training.config import TrainConfig, mixed_seed
from memlens.training.jobs import (
    KeyedArtifact,
    described,
    on_cluster,
    run_parallel,
    store_or_return,
)

SAM_RHO = 0.05  # Agiollo et al. 2024, as Foret et al. 2021
N_REPEATS = 10  # Paul et al. 2021
# Fewer than a sweep's 50: a few dozen networks have to occupy every core.
CPU_ENSEMBLE_SIZE = 20
RETRAINING_VERSION = 3  # part of every key, see `jobs.RUN_VERSION`


@dataclass(frozen=True)
class Member:
    """One network to train: its samples, the labels (n_samples,) and its seed.

    ``mask`` (n_samples,), bool, is True for the samples that it is trained on.
    """

    mask: np.ndarray
    labels: Tensor
    seed: int


class Request(NamedTuple):
    """A data set to retrain on, and the seed of its split, its weights and its sample order."""

    data: Dataset
    seed: int


Place = tuple[str, int]  # of a member: the key of its request, and its number there


@dataclass(frozen=True)
class RetrainingKind:
    """One kind of extra training.

    Attributes
    ----------
    members : (data, seed) -> list of Member
    train : (ensemble, data, members, config) -> arrays of each member
    combine : (members, their arrays) -> the arrays of the request
    trainings : float
        Cost for one seed, in trainings on all samples for all epochs; of ``repeats``, which stop
        early, in epochs.
    """

    members: Callable[[Dataset, int], list[Member]]
    train: Callable[[ModelEnsemble, Dataset, list[Member], TrainConfig], list[Arrays]]
    combine: Callable[[list[Member], list[Arrays]], Arrays]
    trainings: float


def retrain(
    kind: str,
    model: str,
    datasets: Sequence[Dataset],
    config: TrainConfig,
    *,
    seeds: Sequence[int],
    n_jobs: int | None = None,
    cache: store.Store | None = None,
) -> list[Arrays]:
    """Run the extra trainings of one kind for each data set, or load them from the cache.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    model : str
        A name from ``registry.MODELS``.
    datasets : sequence of Dataset
        Those that share their images, and differ only in their labels, are trained together.
    config : TrainConfig
        Its seed is not used.
    seeds : sequence of int, one per data set
        Seeds of the split, the weights and the sample order.
    n_jobs : int, optional
        Number of processes; by default as in `jobs.train_many`.
    cache : Store, optional
        Storage of finished and unfinished trainings; by default the cache.

    Returns
    -------
    list of dict, one per data set
        The arrays of the kind, and ``y_true`` (n_samples,), int64.

    Raises
    ------
    ValueError
        If the kind or the model is unknown, or the numbers of data sets and seeds differ.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    if len(datasets) != len(seeds):
        raise ValueError(f"{len(datasets)} data sets and {len(seeds)} seeds: pass one seed each")
    cache, version = cache or store.Store(), RETRAINING_VERSION
    engine = config.engine().key
    keys = [
        f"{kind}-{store.fingerprint([model, data, replace(config, seed=0), engine, seed, version])}"
        for data, seed in zip(datasets, seeds)
    ]
    artifacts = {key: cache.get(key) for key in keys}
    if claimed := [key for key in keys if artifacts[key] is None]:
        with cache.claim(*claimed):
            # Another process may have finished some of them meanwhile.
            artifacts = {key: artifacts[key] or cache.get(key) for key in keys}
            for group in _by_images(dict(zip(keys, map(Request, datasets, seeds)))):
                if missing := [key for key in group if artifacts[key] is None]:
                    artifacts |= _finish(kind, model, group, missing, config, n_jobs, cache)
    for key in keys:
        cache.tidy(key)
    labels = [data.train.labels.numpy() for data in datasets]
    return [artifacts[key].arrays | {"y_true": y} for key, y in zip(keys, labels)]


def _by_images(requests: dict[str, Request]) -> list[dict[str, Request]]:
    """Group requests that can be trained together: same images, scale and classes."""
    groups: dict[tuple, dict[str, Request]] = {}
    for key, request in requests.items():
        data = request.data
        scale = data.pixel_max, data.mean, data.std, data.class_names
        groups.setdefault((id(data.train.images), *scale), {})[key] = request
    return list(groups.values())


def _finish(
    kind: str,
    model: str,
    group: dict[str, Request],
    missing: list[str],
    config: TrainConfig,
    n_jobs: int | None,
    cache: store.Store,
) -> dict[str, store.Artifact]:
    """Train the missing requests of a group and store their artifacts."""
    data = next(iter(group.values())).data
    size = ensemble_size(model, data, config, CPU_ENSEMBLE_SIZE)
    members = {key: KINDS[kind].members(*request) for key, request in group.items()}
    ensembles = _ensembles(members, size)
    # A process that was killed while it stored the artifacts has left all its ensembles: reuse
    # them. Otherwise train the missing requests without the others.
    if not all(name in cache for name in ensembles):
        members = {key: members[key] for key in missing}
        ensembles = _ensembles(members, size)
    arrays, seconds = _train_ensembles(kind, model, data, members, ensembles, config, n_jobs, cache)
    finished = {}
    for key in missing:
        places = [(key, k) for k in range(len(members[key]))]
        combined = KINDS[kind].combine(members[key], [arrays[place] for place in places])
        what = f"{kind}: {described(model, group[key].data, config)}"
        spent = sum(seconds[place] for place in places)
        finished[key] = store.Artifact(combined, {"kind": kind}, what, spent)
        cache.put(key, finished[key])
    return finished


def _ensembles(members: dict[str, list[Member]], size: int) -> dict[str, list[Place]]:
    """Divide members into ensembles of at most ``size``, by the key of each ensemble's artifact.

    All members of an ensemble have the same number of samples. The key depends on the members, as
    the composition of an ensemble affects floating-point rounding. It begins with the key of the
    request that is stored last: once that one is stored, all others are, and `Store.tidy` may
    remove the ensembles.
    """
    by_samples: dict[int, list[Place]] = {}
    for key, planned in members.items():
        for k, member in enumerate(planned):
            by_samples.setdefault(int(member.mask.sum()), []).append((key, k))
    ensembles = {}
    for places in by_samples.values():
        for rows in np.array_split(np.arange(len(places)), -(-len(places) // size)):
            chosen = [places[i] for i in rows]
            name = f"{list(members)[-1]}.{len(chosen)}-nets-{store.fingerprint(chosen)}"
            ensembles[name] = chosen
    return ensembles


def _train_ensembles(
    kind: str,
    model: str,
    data: Dataset,
    members: dict[str, list[Member]],
    ensembles: dict[str, list[Place]],
    config: TrainConfig,
    n_jobs: int | None,
    cache: store.Store,
) -> tuple[dict[Place, Arrays], dict[Place, float]]:
    """Train the ensembles that are not cached; return arrays and seconds of every member."""
    local = None if on_cluster(n_jobs) else cache
    calls = {
        name: delayed(_train_and_store)(
            name, local, kind, model, data, [members[key][k] for key, k in places], config
        )
        for name, places in ensembles.items()
    }
    done = run_parallel(calls, cache, n_jobs, [config])
    arrays, seconds = {}, {}
    for name, places in ensembles.items():
        stored = done[name].arrays
        for i, place in enumerate(places):
            prefix = f"{i}/"
            arrays[place] = {
                path.removeprefix(prefix): values
                for path, values in stored.items()
                if path.startswith(prefix)
            }
            seconds[place] = done[name].seconds / len(places)
    return arrays, seconds


def _train_and_store(
    name: str,
    cache: store.Store | None,
    kind: str,
    model: str,
    data: Dataset,
    members: list[Member],
    config: TrainConfig,
) -> KeyedArtifact:
    """Train one ensemble; store its arrays as ``<member>/<array>``, or return them."""
    start = time.perf_counter()
    ensemble = ModelEnsemble.build(model, data, [member.seed for member in members])
    with devices.exact_float32():
        trained = KINDS[kind].train(ensemble, data, members, config)
    arrays = {f"{i}/{k}": values for i, rows in enumerate(trained) for k, values in rows.items()}
    what = f"{len(members)} x {described(model, data, config)}"
    artifact = store.Artifact(arrays, {}, what, time.perf_counter() - start)
    return store_or_return(name, artifact, cache)


def _train_members(
    ensemble: ModelEnsemble,
    data: Dataset,
    members: list[Member],
    config: TrainConfig,
    **options: object,
) -> None:
    """Train each network as its member prescribes; options as in `train_ensemble`."""
    masks, labels = np.stack([m.mask for m in members]), torch.stack([m.labels for m in members])
    seeds = [member.seed for member in members]
    train_ensemble(ensemble, data, masks, config, seeds, labels=labels, **options)


def fold_members(data: Dataset, seed: int, n_folds: int = 3) -> list[Member]:
    """Return one member per fold, stratified by the given labels, noise included.

    The network of fold k has the seed (seed, k). There are at most as many folds as the largest
    class has samples.

    Raises
    ------
    ValueError
        If no class has two samples, one for training and one to hold out.
    """
    y, n = data.train.labels, len(data.train)
    n_folds = min(n_folds, int(torch.bincount(y).max()))
    if n_folds < 2:
        raise ValueError(
            f"the {n} training samples of {data.name} have {n} different labels; expected a class "
            "with two or more samples, so that a fold can hold one out: use more samples"
        )
    folds = stratified_folds(y.numpy(), n_folds, seed=seed)
    return [Member(~mask, y, mixed_seed(seed, k)) for k, mask in enumerate(folds)]


def _ten_folds(data: Dataset, seed: int) -> list[Member]:
    return fold_members(data, seed, n_folds=10)


def _logits(
    ensemble: ModelEnsemble, data: Dataset, members: list[Member], config: TrainConfig
) -> list[Arrays]:
    _train_members(ensemble, data, members, config)
    return [{"logits": logits.cpu().numpy()} for logits in ensemble.predict(data)]


def _sgd_and_sam(
    ensemble: ModelEnsemble, data: Dataset, members: list[Member], config: TrainConfig
) -> list[Arrays]:
    # Both start from the same weights and use the same order: only the optimizer differs.
    ensemble.place(config.engine())  # before the copy, as training moves the weights there
    state = ensemble.weights | ensemble.buffers
    start = {name: values.detach().clone() for name, values in state.items()}
    sgd = _logits(ensemble, data, members, replace(config, sam_rho=0.0))
    with torch.no_grad():
        for name, values in start.items():
            state[name].copy_(values)
    sam = _logits(ensemble, data, members, replace(config, sam_rho=SAM_RHO))
    return [{"sgd": a["logits"], "sam": b["logits"]} for a, b in zip(sgd, sam)]


def _held_out(members: list[Member], arrays: list[Arrays]) -> Arrays:
    """Take the rows of each sample from the network that was trained without it."""
    whole = {name: np.zeros_like(rows) for name, rows in arrays[0].items()}
    for member, rows in zip(members, arrays):
        for name, values in rows.items():
            whole[name][~member.mask] = values[~member.mask]
    return whole


def _fold_arrays(members: list[Member], arrays: list[Arrays]) -> Arrays:
    """Return the held-out logits, and p(label) of every network, in and out of its folds."""
    y = members[0].labels.numpy()[:, None]
    logits = np.stack([rows["logits"] for rows in arrays]).astype(np.float64)
    p_label = np.take_along_axis(softmax(logits, 2), y[None], 2)[..., 0]
    masks = np.stack([member.mask for member in members])
    return _held_out(members, arrays) | {"p_label": p_label.astype(np.float32), "masks": masks}


def half_members(data: Dataset, seed: int) -> list[Member]:
    """Return two members, each with one random half of the samples, from the same weights."""
    half = np.zeros(len(data.train), dtype=bool)
    half[np.random.default_rng(seed).permutation(half.size)[: half.size // 2]] = True
    return [Member(mask, data.train.labels, seed) for mask in (half, ~half)]


def _second_split(
    ensemble: ModelEnsemble, data: Dataset, members: list[Member], config: TrainConfig
) -> list[Arrays]:
    _train_members(ensemble, data, members, config)
    y, correct = torch.stack([member.labels for member in members]), []
    # Train on with the same weights, on the other half, with a new optimizer and learning rate
    # schedule.
    others = [replace(m, mask=~m.mask, seed=mixed_seed(m.seed, 1)) for m in members]
    after_epoch = lambda: correct.append(ensemble.predict(data).argmax(2).cpu() == y)  # noqa: E731
    _train_members(ensemble, data, others, config, after_epoch=after_epoch)
    return [{"correct": rows.numpy()} for rows in torch.stack(correct, 1)]


def _first_half(members: list[Member], arrays: list[Arrays]) -> Arrays:
    """Take the column of each sample from the network that was trained on it first."""
    first, second = (rows["correct"] for rows in arrays)
    return {"correct": np.where(members[0].mask, first, second)}


def repeat_members(data: Dataset, seed: int) -> list[Member]:
    """Return `N_REPEATS` members with all samples; the seed of number k is (seed, k)."""
    every = np.ones(len(data.train), dtype=bool)
    return [Member(every, data.train.labels, mixed_seed(seed, k)) for k in range(N_REPEATS)]


def _early_signals(
    ensemble: ModelEnsemble, data: Dataset, members: list[Member], config: TrainConfig
) -> list[Arrays]:
    """Train for a few epochs, then return EL2N and weight gradient norms, in eval mode."""
    _train_members(ensemble, data, members, config, epochs=min(EARLY_EPOCH + 1, config.epochs))
    rows = []
    for i, (member, logits) in enumerate(zip(members, ensemble.predict(data))):
        y = member.labels.to(ensemble.device)
        arrays = {
            "el2n": signals.el2n(logits, y),
            "weight_grad": _weight_gradient_norms(ensemble, i, data, y),
        }
        rows.append({name: values.detach().cpu().numpy() for name, values in arrays.items()})
    return rows


def _weight_gradient_norms(ensemble: ModelEnsemble, i: int, data: Dataset, y: Tensor) -> Tensor:
    net = ensemble.member(i)
    size = devices.rows_of(net, data.in_shape)
    batches = zip(sequential_batches(data.train, size, ensemble.device), y.split(size), strict=True)
    norms = [weight_gradient_norm(net, data.normalise(x), labels) for (x, _), labels in batches]
    return torch.cat(norms)


def _stacked(_: list[Member], arrays: list[Arrays]) -> Arrays:
    return {name: np.stack([rows[name] for rows in arrays]) for name in arrays[0]}


KINDS: dict[str, RetrainingKind] = {
    "folds": RetrainingKind(fold_members, _logits, _fold_arrays, 3 * 2 / 3),
    "samis": RetrainingKind(  # a SAM step costs two
        _ten_folds, _sgd_and_sam, _held_out, 10 * 0.9 * (1 + 2)
    ),
    "second_split": RetrainingKind(
        half_members, _second_split, _first_half, 2 * (1 / 2 + 1 / 2) + 2 / 3
    ),
    "repeats": RetrainingKind(
        repeat_members, _early_signals, _stacked, N_REPEATS * (EARLY_EPOCH + 1)
    ),
}
