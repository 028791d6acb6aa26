"""Many trainings at their stops: the bookkeeping of the notebook on early stopping.

One training gives all stops of `peaks.STOPS`, see `Run.stops`. The functions here collect them over
seeds, label noise and configurations.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from memlens.data.samples import Dataset
from memlens.ensembles.subsets import Sweep
from memlens.evaluation import calibration, detection, metrics, plots
from memlens.experiments.profiles import Profile
from memlens.training.config import MeasureConfig
from memlens.training.jobs import train_many
from memlens.training.runs import Run

WATCHED = {
    "val_loss": "best_val", "input_gradient": "input_gradient", "weight_norm": "weight_norm",
}  # fmt: skip # columns of the history, each with the stop that is detected in it
SUMS = ["csl", "csg"]  # scores that add up over epochs: at a stop they are SGAL and early CSG


def flipped_runs(
    profile: Profile, data: Dataset, rate: float, *, seeds: int, **changes: object
) -> list[Run]:
    """Train with seeds 0 to ``seeds - 1``, each on other flipped labels; record nothing post-hoc.

    Parameters
    ----------
    profile : Profile
    data : Dataset
    rate : float in [0, 1)
        Share of the training labels that are flipped; 0: none.
    seeds : int
    **changes
        To the configuration, as in `Profile.job`.
    """
    jobs = []
    for seed in range(seeds):
        noisy = data.with_noise(rate, seed=seed) if rate else data
        jobs.append(profile.job(noisy, seed=seed, measure=MeasureConfig(), **changes))
    return train_many(jobs)


def history_by_seed(runs: Sequence[Run], column: str) -> np.ndarray:
    """Return a column of the history of each run, (n_seeds, n_epochs)."""
    return np.stack([run.history[column].to_numpy() for run in runs])


def epochs_of(runs: Sequence[Run], stop: str) -> np.ndarray:
    """Return the epoch of a stop in each run, counted from 0, (n_seeds,)."""
    return np.array([run.stops.loc[stop, "epoch"] for run in runs])


def watched_curves(runs: Sequence[Run]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the curves of `WATCHED`, (n_seeds, n_epochs) each, and their stops, (n_seeds,)."""
    curves = {column: history_by_seed(runs, column) for column in WATCHED}
    return curves, {column: epochs_of(runs, stop) for column, stop in WATCHED.items()}


def planned_accuracy(
    profile: Profile, data: Dataset, rate: float, lengths: Sequence[int], *, seeds: int
) -> dict[int, np.ndarray]:
    """Return final test accuracies, (n_seeds,), of trainings planned for each length in epochs.

    The learning rate is cut at the same shares of the epochs as in the whole training.
    """
    accuracy = {}
    for length in lengths:
        runs = flipped_runs(profile, data, rate, seeds=seeds, epochs=length)
        accuracy[length] = history_by_seed(runs, "val_accuracy")[:, -1]
    return accuracy


def stop_table(trained: Mapping[tuple[str, float], Sequence[Run]]) -> pd.DataFrame:
    """Return all stops of many trainings, and the test accuracy at each.

    Parameters
    ----------
    trained : mapping of (variant, share of flipped labels) to runs, one per seed

    Returns
    -------
    DataFrame
        Index: variant, flipped, seed, stop. Columns: those of `Run.stops`, and accuracy, in [0, 1].
    """
    tables = {}
    for (variant, flipped), runs in trained.items():
        for seed, run in enumerate(runs):
            accuracy = run.history["val_accuracy"].to_numpy()
            stops = run.stops
            tables[variant, flipped, seed] = stops.assign(accuracy=accuracy[stops["epoch"]])
    return pd.concat(tables, names=["variant", "flipped", "seed"])


def easiest_gradient(run: Run, n_easiest: int = 100) -> np.ndarray:
    """Return the mean input gradient of the samples with the lowest CSG (Fig. 3a), (n_epochs,)."""
    easiest = np.argsort(run.scores["csg"].to_numpy(), kind="stable")[:n_easiest]
    return run.trace.grad_l2[:, easiest].mean(axis=1)


def descents(trained: Mapping[str, Mapping[float, Sequence[Run]]], n_easiest: int) -> pd.DataFrame:
    """Return validation loss and gradient of the easiest samples, for `stopping.descents`.

    Parameters
    ----------
    trained : mapping of learning rate ("cut", "constant") to runs by share of flipped labels
    n_easiest : int
        As in `easiest_gradient`.
    """
    tables = []
    for rate, by_share in trained.items():
        for flipped, runs in by_share.items():
            easiest = np.stack([easiest_gradient(run, n_easiest) for run in runs])
            curves = {"val_loss": history_by_seed(runs, "val_loss"), "easiest_gradient": easiest}
            table = plots.bands(curves, np.arange(easiest.shape[1]))
            named = table.rename(columns={"series": "curve"})
            tables.append(named.assign(flipped=flipped, rate=rate))
    return pd.concat(tables, ignore_index=True)


def follows_the_loss(run: Run, n_easiest: int) -> tuple[float, float]:
    """Return the rank correlations of Fig. 3a, in the first and in the second descent.

    They are of validation loss and gradient of the easiest samples: up to the lowest loss, but over
    ten epochs at least, and over the last two thirds of the epochs.
    """
    loss, gradient = run.history["val_loss"].to_numpy(), easiest_gradient(run, n_easiest)
    first, third = max(10, loss.argmin() + 1), len(loss) // 3
    return (
        metrics.spearman(gradient[:first], loss[:first]),
        metrics.spearman(gradient[third:], loss[third:]),
    )


def mirror(run: Run) -> tuple[float, float]:
    """Return rank correlations of weight norm and mean gradient, up to the norm's peak and after.

    Each is over three epochs at least.
    """
    norm, gradient = run.history["weight_norm"], run.history["input_gradient"]
    peak = int(np.clip(run.peak.peak_epoch, 2, len(norm) - 3))
    return (
        metrics.spearman(norm[: peak + 1], gradient[: peak + 1]),
        metrics.spearman(norm[peak:], gradient[peak:]),
    )


def agreement_at_stops(runs: Sequence[Run], truth: pd.Series) -> pd.DataFrame:
    """Return the Pearson correlation of the sums up to each stop with memorization.

    Returns
    -------
    DataFrame
        Index: stop, seed. Columns: `SUMS`.
    """
    rows = {
        (stop, seed): run.scores_at(stop)[SUMS].corrwith(truth)
        for seed, run in enumerate(runs)
        for stop in run.stops.index
    }
    return pd.DataFrame(rows).T.rename_axis(["stop", "seed"])


def flips_found_at_stops(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the AUROC with which the sums up to each stop find the flipped labels.

    Returns
    -------
    DataFrame
        As of `agreement_at_stops`.
    """
    rows = {}
    for seed, run in enumerate(runs):
        flipped = run.data.train.is_noisy.numpy()
        for stop in run.stops.index:
            scores = run.scores_at(stop)
            found = {name: detection.auroc(flipped, scores[name]) for name in SUMS}
            rows[stop, seed] = pd.Series(found)
    return pd.DataFrame(rows).T.rename_axis(["stop", "seed"])


def held_out_bins(half: Sweep, stop: str, members: np.ndarray | None = None) -> np.ndarray:
    """Return `calibration.network_bins` of held-out predictions at a stop.

    Parameters
    ----------
    half : Sweep
    stop : str
    members : ndarray (n_samples,), bool, optional
        The samples whose predictions are used; by default all.
    """
    held_out = ~half.masks if members is None else ~half.masks & members
    return calibration.network_bins(half.y_true, half.logits_at(stop)[:, 0], held_out)


def heads_and_tails(half: Sweep, memorization: pd.Series, n_tail: int) -> dict[str, np.ndarray]:
    """Return masks, (n_samples,) bool, of all samples and of two heads and tails.

    The tail "memorized" has the highest memorization, the tail "unsure" the lowest confidence of
    the mean held-out prediction at the last epoch, whatever the labels are.
    """
    sample, _, logits = half.held_out("last")
    mean = pd.DataFrame(calibration.softmax(logits)).groupby(sample).mean()
    confidence = mean.max(axis=1).reindex(range(len(half.y_true)), fill_value=1.0)
    tails = {"memorized": -memorization.to_numpy(), "unsure": confidence.to_numpy()}
    groups = {"all": np.ones(len(half.y_true), dtype=bool)}
    for name, values in tails.items():
        chosen = np.argsort(values, kind="stable")[:n_tail]
        tail = np.isin(np.arange(len(values)), chosen)
        groups |= {f"{name}, head": ~tail, f"{name}, tail": tail}
    return groups
