"""Compare runs of several optimizers or networks: their curves, their peaks, their scores."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from memlens.data.samples import Dataset
from memlens.evaluation import metrics
from memlens.experiments import paper
from memlens.experiments.agreement import by_seed
from memlens.experiments.profiles import Profile
from memlens.models import registry
from memlens.tracking import signals
from memlens.tracking.peaks import PEAKS
from memlens.training.jobs import train_many
from memlens.training.runs import Run


def train_variants(
    profile: Profile, data: Dataset, variants: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[Run]]:
    """Train the runs of several variants at once, so that no core waits between them.

    Parameters
    ----------
    profile : Profile
    data : Dataset
    variants : mapping of name to arguments of `Profile.runs`
        ``seeds`` is the number of runs; slow variants first keep all cores busy to the end.

    Returns
    -------
    dict of list of Run
        ``profile.runs(data, **arguments)`` of each variant.
    """
    jobs, owners = [], []
    for name, arguments in variants.items():
        changes = dict(arguments)
        for seed in range(changes.pop("seeds")):
            jobs.append(profile.job(data, seed=seed, **changes))
            owners.append(name)
    trained: dict[str, list[Run]] = {name: [] for name in variants}
    for name, run in zip(owners, train_many(jobs)):
        trained[name].append(run)
    return trained


def curves_from_start(runs: Sequence[Run], top: ArrayLike) -> dict[str, np.ndarray]:
    """Return the curves of runs with one value before training, (n_runs, n_epochs + 1) each.

    Parameters
    ----------
    runs : sequence of Run
        Trained with the seeds 0, 1, 2 and so on, for equal numbers of epochs.
    top : array (n_samples,), bool
        The samples of ``input_gradient_top``.

    Returns
    -------
    dict of ndarray
        ``input_gradient``, the mean L2 norm over the samples; ``input_gradient_top``, over those of
        ``top`` alone; ``weight_norm``; ``val_loss``. Column k is after k epochs; column 0 is that
        of the untrained network for the weight norm, and NaN for the others.
    """
    chosen = np.flatnonzero(top)
    curves = {
        "input_gradient": [run.history["input_gradient"] for run in runs],
        "input_gradient_top": [run.trace.grad_l2[:, chosen].mean(axis=1) for run in runs],
        "weight_norm": [run.history["weight_norm"] for run in runs],
        "val_loss": [run.history["val_loss"] for run in runs],
    }
    padded = {
        name: np.insert(np.array(rows, dtype=np.float64), 0, np.nan, axis=1)
        for name, rows in curves.items()
    }
    padded["weight_norm"][:, 0] = [_start_norm(run, seed) for seed, run in enumerate(runs)]
    return padded


def _start_norm(run: Run, seed: int) -> float:
    data = run.data
    return signals.weight_norm(
        registry.build(run.model, data.n_classes, data.in_shape, seed=seed)
    ).item()


def called_peaks(groups: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Return the epochs done at the peaks of each run; NaN where none is called.

    Returns
    -------
    DataFrame, one row a run
        ``variant``, a key of the groups; ``input_gradient`` and ``weight_norm``, from 1.
    """
    rows = []
    for name, runs in groups.items():
        for run in runs:
            stops = run.stops.loc[list(PEAKS)]
            epochs = stops["epoch"].where(stops["detected"].notna()) + 1.0
            rows.append({"variant": name} | epochs.astype(float).to_dict())
    return pd.DataFrame(rows)[["variant", "input_gradient", "weight_norm"]]


def left_at_end(curves: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the input gradient at the end over its highest value, in (0, 1], one a run."""
    gradient = curves["input_gradient"]
    return gradient[:, -1] / np.nanmax(gradient, axis=1)


def norm_phases(norms: ArrayLike, losses: ArrayLike, peaks: ArrayLike) -> pd.DataFrame:
    """Return how far the weight norm falls, rises to its called peak, and falls again.

    >>> norm_phases([[5, 3, 4, 6, 5]], [[np.nan, 2.0, 1.0, 1.5, 0.5]], [3]).iloc[0].to_dict()
    {'fall': 2.0, 'rise': 3.0, 'second_fall': 1.0, 'norm_minimum': 1.0, 'loss_minimum': 2.0}

    Parameters
    ----------
    norms, losses : array (n_runs, n_epochs + 1)
        Column 0 is before training, see `curves_from_start`.
    peaks : array (n_runs,)
        Epochs done at the called peak of the norm, see `called_peaks`.

    Returns
    -------
    DataFrame, one row a run; NaN where no peak is called
        ``fall``, from the start to the lowest norm before the peak; ``rise``, from there to the
        peak; ``second_fall``, from the peak to the end. ``norm_minimum`` and ``loss_minimum``: the
        epochs done at the lowest norm, and at the lowest validation loss, up to the peak.
    """
    names = ["fall", "rise", "second_fall", "norm_minimum", "loss_minimum"]
    rows = []
    for norm, loss, peak in zip(np.asarray(norms), np.asarray(losses), np.asarray(peaks)):
        if np.isnan(peak):
            rows.append([np.nan] * len(names))
            continue
        until = int(peak) + 1
        lowest = norm[:until].argmin()
        moves = norm[0] - norm[lowest], norm[until - 1] - norm[lowest], norm[until - 1] - norm[-1]
        rows.append([*moves, lowest, 1 + loss[1:until].argmin()])
    return pd.DataFrame(rows, columns=names, dtype=float)


def similarity_by_seed(
    scores: Mapping[str, Sequence[pd.DataFrame]],
    truth: pd.Series,
    *,
    top_k: int | None = None,
    measure: str = "pearson",
) -> pd.DataFrame:
    """Return the agreement of every score of every run with a ground truth.

    Parameters
    ----------
    scores : mapping of variant to one table of scores for each seed
    truth : Series
        Matched by index.
    top_k : int, optional
        Only the samples with the highest truth.
    measure : str
        A column of `metrics.compare`: "pearson", "spearman" or "cosine".

    Returns
    -------
    DataFrame
        Rows (variant, seed), columns the scores.
    """
    tables = {
        name: by_seed(frames, truth, top_k=top_k, statistic=measure).T
        for name, frames in scores.items()
    }
    return pd.concat(tables, names=["variant", "seed"])


def printed_optimizers(
    scores: Iterable[str], optimizers: Iterable[str], *, top: bool = False
) -> pd.DataFrame:
    """Return the Pearson correlations of the CSG paper's Table 6, and of its Table 1 for SGD.

    Parameters
    ----------
    scores : iterable of str
        Our names, the rows of the result.
    optimizers : iterable of str
        The columns of the result, such as "sgd", "adam".
    top : bool
        Of the 5,000 most memorized samples.
    """
    scores, columns = list(scores), {}
    for name in optimizers:
        options = {} if name == "sgd" else {"name": "csg_table6_optimizers", "optimizer": name}
        columns[name] = paper.printed_similarity(scores, top=top, **options)["pearson"]
    return pd.DataFrame(columns)


def pair_values(
    scores: Mapping[str, Sequence[ArrayLike]],
    statistic: Callable[[ArrayLike, ArrayLike], float] = metrics.cosine,
) -> dict[tuple[str, str], np.ndarray]:
    """Return the agreement of every pair of runs, by their two networks.

    Two runs of one network differ in their seeds: their agreement is what noise leaves, the ceiling
    for any other.

    Parameters
    ----------
    scores : mapping of network to one score (n_samples,) for each seed
    statistic : callable
        Symmetric, of two scores.
    """
    pairs = {}
    for a, b in product(scores, scores):
        runs = combinations(scores[a], 2) if a == b else product(scores[a], scores[b])
        pairs[a, b] = np.array([statistic(x, y) for x, y in runs])
    return pairs


def pairs_of(
    tables: Mapping[str, Sequence[pd.DataFrame]], score: str, chosen: ArrayLike | None = None
) -> dict[tuple[str, str], np.ndarray]:
    """Return `pair_values` of one column of the score tables, of all samples or a mask of them."""
    rows = slice(None) if chosen is None else np.flatnonzero(chosen)
    return pair_values(
        {name: [t[score].to_numpy()[rows] for t in each] for name, each in tables.items()}
    )


def agreement(pairs: Mapping[tuple[str, str], np.ndarray]) -> pd.DataFrame:
    """Return the mean of `pair_values` as a square table; NaN on the diagonal for one seed."""
    means = {names: values.mean() if values.size else np.nan for names, values in pairs.items()}
    table = pd.Series(means).unstack(sort=False)
    return table.loc[
        list(dict.fromkeys(a for a, _ in means)), list(dict.fromkeys(b for _, b in means))
    ]


def ceilings(pairs: Mapping[tuple[str, str], np.ndarray]) -> pd.Series:
    """Return what noise leaves of the agreement of each network with anything else.

    The square root of the agreement of its seeds with each other (Spearman's correction for
    attenuation); NaN for one seed.
    """
    table = agreement(pairs)
    return pd.Series(np.sqrt(np.diag(table)), table.index)


def over_ceiling(pairs: Mapping[tuple[str, str], np.ndarray]) -> pd.DataFrame:
    """Return `agreement` divided by the `ceilings` of both networks; the diagonal is 1."""
    own = ceilings(pairs)
    return agreement(pairs) / np.outer(own, own)


def ratios_across(pairs: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
    """Return the agreement of each pair of runs of different networks over both `ceilings`."""
    own = ceilings(pairs)
    ratios = [values / (own[a] * own[b]) for (a, b), values in pairs.items() if a < b]
    return np.concatenate(ratios)


def largest_gap(values: pd.Series) -> np.ndarray:
    """Return all differences between the runs of the variant with the highest mean and the lowest.

    ``values`` have the index (variant, seed).
    """
    order = values.groupby("variant").mean().sort_values().index
    highest, lowest = values[order[-1]].to_numpy(), values[order[0]].to_numpy()
    return np.subtract.outer(highest, lowest).ravel()
