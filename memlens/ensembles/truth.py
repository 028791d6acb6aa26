"""The ground truth of memorization: shipped with the package, or from a subset sweep.

The shipped values come from a large sweep with the default configuration (`memlens truth` computes
them again). They are returned only for the data that they were computed on. Leaving out one sample
at a time, which is what the subset estimator stands for, validates a few of them.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import delayed

from memlens.data import imagesets
from memlens.data.samples import Dataset
from memlens.ensembles.model_ensemble import ModelEnsemble, ensemble_size, train_ensemble
from memlens.ensembles.queries import Queries
from memlens.ensembles.subsets import (
    CPU_ENSEMBLE_SIZE,
    Sweep,
    subset_masks,
    subset_memorization,
    subset_sweep,
    sweep_settings,
    train_chunk,
)
from memlens.evaluation import metrics
from memlens.storage import store
from memlens.storage.files import write_atomic
from memlens.training.config import TrainConfig
from memlens.training.jobs import default_n_jobs, on_cluster, on_gpu, run_parallel

FOLDER = Path(imagesets.__file__).parent  # of the shipped files
KEEP = 0.7  # share of the samples in each subset, as Feldman and Zhang
LEAVE_ONE_OUT_VERSION = 1  # part of every key, see `jobs.RUN_VERSION`
N_LEFT_OUT, N_NETWORKS = 20, 60  # of the validation: samples, and networks with and without each


def memorization(
    data: Dataset,
    model: str = "mlp",
    config: TrainConfig = TrainConfig(),
    *,
    keep: float = KEEP,
    n_models: int = 400,
    n_jobs: int | None = None,
) -> pd.DataFrame:
    """Return the Feldman-Zhang memorization of every training sample.

    The shipped values are returned where they were computed on these very samples and labels, with
    this network, configuration and share; otherwise networks are trained on random subsets
    (`subsets.subset_sweep`), or loaded from the cache.

    >>> import memlens as ml
    >>> bool(ml.memorization(ml.load("fashion_small"))["memorization"].between(-1, 1).all())
    True

    Parameters
    ----------
    data : Dataset
    model : str
        A name from ``registry.MODELS``.
    config : TrainConfig
        Should be that of the scored run: networks that train shorter memorize less. Its seed is not
        used.
    keep : float
        Share of the samples in each subset.
    n_models : int
        Networks of the sweep, if there is one.
    n_jobs : int, optional
        Processes of the sweep; see `subsets.subset_sweep`.

    Returns
    -------
    DataFrame, index "index" (original)
        memorization in [-1, 1] (higher = more memorized), standard_error, n_in, n_out, in_accuracy,
        out_accuracy: see `subsets.subset_memorization`. Shipped values have two more columns,
        first_half and second_half: memorization from each half of the networks.

    Raises
    ------
    ValueError
        If the shipped file is damaged; see also `subsets.subset_sweep`.
    """
    shipped = shipped_memorization(data, model, config, keep)
    if shipped is not None:
        return shipped
    settings = {"n_models": n_models, "keep": keep, "config": config, "n_jobs": n_jobs}
    return subset_sweep(model, data, **settings).memorization()


def shipped_memorization(
    data: Dataset, model: str, config: TrainConfig, keep: float
) -> pd.DataFrame | None:
    """Return the shipped memorization; None if there is none for these data and settings.

    Raises
    ------
    ValueError
        If the shipped file is damaged.
    """
    path = FOLDER / f"{data.name}_memorization.csv"
    if not path.exists():
        return None
    settings, table = read_table(path)
    return table if settings["trained"] == trained_settings(model, data, config, keep) else None


def shipped_leave_one_out(data: Dataset) -> pd.DataFrame | None:
    """Return the shipped `leave_one_out` values; None if there are none for these data."""
    path = FOLDER / f"{data.name}_leave_one_out.csv"
    if not path.exists():
        return None
    settings, table = read_table(path)
    return table if settings["trained"]["data"] == store.fingerprint(data) else None


def memorization_table(sweep: Sweep) -> pd.DataFrame:
    """Return the memorization of a sweep, and that of each half of its networks."""
    half = len(sweep.masks) // 2
    halves = {"first_half": slice(None, half), "second_half": slice(half, None)}
    columns = {name: sweep.memorization(part)["memorization"] for name, part in halves.items()}
    return sweep.memorization().assign(**columns)


def ceiling(table: pd.DataFrame) -> float:
    """Return the highest Pearson correlation with the truth to expect of any score.

    The halves of the networks correlate at r; all networks together then have the reliability
    2 r / (1 + r) (Spearman and Brown), and a score without any error reaches its square root.

    Parameters
    ----------
    table : DataFrame
        As `memorization_table`, with columns first_half and second_half.

    Returns
    -------
    float
        In [0, 1]; NaN if the halves are not known, as of published scores.

    >>> import memlens as ml
    >>> from memlens.ensembles.truth import ceiling
    >>> 0.99 < ceiling(ml.memorization(ml.load("fashion_small"))) < 1
    True
    """
    if not {"first_half", "second_half"} <= set(table):
        return np.nan
    r = max(0.0, metrics.pearson(table["first_half"], table["second_half"]))
    return float(np.sqrt(2 * r / (1 + r)))


def leave_one_out(
    model: str,
    data: Dataset,
    positions: Sequence[int],
    *,
    config: TrainConfig = TrainConfig(),
    n_models: int = N_NETWORKS,
    seed: int = 0,
    n_jobs: int | None = None,
) -> pd.DataFrame:
    """Return the memorization of some samples by its definition: train with and without each.

    Networks trained on all samples serve all of them. Finished groups of networks are cached, so
    that an interrupted call resumes.

    Parameters
    ----------
    model : str
        A name from ``registry.MODELS``.
    data : Dataset
    positions : sequence of int
        Positions of the samples in the training set.
    config : TrainConfig
        Its seed is not used.
    n_models : int
        Networks trained on all samples, and networks trained without each one.
    seed : int
    n_jobs : int, optional
        Processes, see `parallel.run_parallel`.

    Returns
    -------
    DataFrame, index "index" (original)
        As `subsets.subset_memorization`: Feldman and Zhang (2020), Eq. 1, with n_models networks
        for each side.

    Raises
    ------
    IndexError
        If a position is not in the training set.
    """
    n_samples = len(data.train)
    if wrong := [p for p in positions if not 0 <= p < n_samples]:
        raise IndexError(f"positions {wrong} are outside the {n_samples} training samples")
    cache = store.Store()
    local = None if on_cluster(n_jobs) else cache
    shaped_by = [model, store.fingerprint(data), dataclasses.replace(config, seed=0)]
    shaped_by += [config.engine().key, n_models, seed, LEAVE_ONE_OUT_VERSION]
    keys = {
        left_out: f"leave_one_out-{store.fingerprint([*shaped_by, left_out])}"
        for left_out in (None, *positions)
    }
    calls = {}
    for left_out, name in keys.items():
        masks = np.ones((n_models, n_samples), dtype=bool)
        if left_out is not None:
            masks[:, left_out] = False
        # Every group has seeds of its own: shared ones would correlate the two sides.
        group = 0 if left_out is None else left_out + 1
        seeds = (seed << 40) + (group << 20) + np.arange(n_models)
        arguments = (name, local, model, data, masks, seeds, config, Queries())
        calls[name] = delayed(train_chunk)(*arguments)
    done = run_parallel(calls, cache, n_jobs, [config])
    y = data.train.labels.numpy()

    def correct(left_out: int | None) -> np.ndarray:
        return done[keys[left_out]].arrays["logits/last"][:, 0].argmax(2) == y

    chosen = list(positions)
    without = np.stack([correct(p)[:, p] for p in chosen], axis=1)
    both = np.concatenate([correct(None)[:, chosen], without])
    is_in = np.repeat([[True], [False]], n_models, axis=0).repeat(len(chosen), axis=1)
    return subset_memorization(is_in, both, data.train.index.numpy()[chosen])


def spread_positions(memorization: pd.Series, n: int = N_LEFT_OUT) -> list[int]:
    """Return the positions of ``n`` samples whose memorization is spread evenly over its range."""
    values = memorization.to_numpy()
    wanted = np.linspace(values.min(), values.max(), n)
    chosen: list[int] = []
    for value in wanted:  # the nearest of those that are left
        distance = np.abs(values - value)
        distance[chosen] = np.inf
        chosen.append(int(distance.argmin()))
    return chosen


def write_truth(
    model: str,
    data: Dataset,
    config: TrainConfig,
    folder: Path = FOLDER,
    *,
    keep: float = KEEP,
    n_models: int = 2_000,
    n_jobs: int | None = None,
    confirm: Callable[[str], bool] = lambda message: True,
    log: Callable[[str], Any] = print,
) -> list[Path]:
    """Compute memorization from a large sweep, validate it by leaving out samples, write both.

    An interrupted call resumes. The files are ``<data>_memorization.csv`` and
    ``<data>_leave_one_out.csv``.

    Parameters
    ----------
    model, data, config, keep, n_models, n_jobs
        As in `memorization`.
    folder : Path
        Where to write; by default the package, from where `memorization` reads them.
    confirm : callable
        Asked with the forecast of the time before anything is trained.
    log : callable
        Called with lines of text about the progress.

    Returns
    -------
    list of Path
        The files; none if the forecast was declined.
    """
    settings = {"keep": keep, "config": config, "n_jobs": n_jobs}
    n_left_out = min(N_LEFT_OUT, len(data.train))
    share = (n_models + (n_left_out + 1) * N_NETWORKS / keep) / n_models
    seconds = share * forecast_seconds(model, data, config, n_models, keep, n_jobs)
    if not confirm(
        f"{n_models:,} networks ({model}, {config.epochs} epochs) on subsets of {data.name}, and "
        f"{n_left_out + 1} x {N_NETWORKS} to validate them, take about {seconds / 60:.0f} minutes."
    ):
        return []
    table = memorization_table(subset_sweep(model, data, n_models=n_models, **settings))
    agreement = table["first_half"].corr(table["second_half"])
    log(f"memorization from {n_models:,} networks; its two halves correlate at {agreement:.4f}")
    positions = spread_positions(table["memorization"], n_left_out)
    left_out = leave_one_out(model, data, positions, config=config, n_jobs=n_jobs)
    named = {"data": data.name, "n_models": n_models}
    named["trained"] = trained_settings(model, data, config, keep)
    paths = [folder / f"{data.name}_{name}.csv" for name in ("memorization", "leave_one_out")]
    for path, rows in zip(paths, (table, left_out), strict=True):
        write_table(path, rows, named)
        log(str(path))
    return paths


def forecast_seconds(
    model: str, data: Dataset, config: TrainConfig, n_models: int, keep: float, n_jobs: int | None
) -> float:
    """Estimate the seconds of training networks on random subsets, from one epoch of a few."""
    n = min(n_models, ensemble_size(model, data, config, CPU_ENSEMBLE_SIZE))
    masks, seconds = subset_masks(n, len(data.train), keep), []
    for _ in range(2):  # the first one warms up
        ensemble = ModelEnsemble.build(model, data, range(n))
        start = time.perf_counter()
        train_ensemble(ensemble, data, masks, config, range(n), epochs=1)
        seconds.append(time.perf_counter() - start)
    n_processes = n_jobs or default_n_jobs(on_gpu([config]))
    return min(seconds) / n * config.epochs * n_models / n_processes


def write_table(path: Path, table: pd.DataFrame, settings: dict[str, Any]) -> None:
    """Write a table as CSV, below one line with its settings as JSON."""
    text = table.round(6).to_csv(lineterminator="\n")
    settings = settings | {"checksum": store.fingerprint([settings, text])}
    header = json.dumps(settings, sort_keys=True)
    write_atomic(path, f"# {header}\n{text}".encode())


def read_table(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the settings and the rows of a file of `write_table`.

    Raises
    ------
    ValueError
        If the file is damaged or was edited.
    """
    first, _, text = path.read_text("utf-8").partition("\n")
    try:
        settings = json.loads(first.removeprefix("# "))
        good = settings.pop("checksum") == store.fingerprint([settings, text])
    except (ValueError, TypeError, KeyError, AttributeError):
        good = False
    if not good:
        raise ValueError(f"{path} is damaged or was edited: replace it with the original")
    return settings, pd.read_csv(StringIO(text), index_col="index")


def trained_settings(
    model: str, data: Dataset, config: TrainConfig, keep: float
) -> dict[str, object]:
    """Return what memorization depends on, as JSON has it: data and settings of the training."""
    return json.loads(json.dumps(sweep_settings(model, data, config, keep)))
