"""How scores agree with memorization, seed by seed: the tables behind notebook 02.

A table "by seed" has a row for each score and a column for each seed, so that
``table.loc["csg"]`` is what `NotebookReport.judge` and `margins.above` take.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from torch import nn

from memlens.data.samples import Dataset
from memlens.evaluation import metrics, plots
from memlens.experiments import paper
from memlens.tracking import signals
from memlens.training.runs import Run

END_STOPS = ("input_gradient", "weight_norm", "last")  # where `curvature_settings` measures


def by_seed(
    frames: Sequence[pd.DataFrame],
    truth: pd.Series,
    *,
    top_k: int | None = None,
    statistic: str = "pearson",
) -> pd.DataFrame:
    """Return the agreement of each score with the truth, a column for each seed.

    Parameters
    ----------
    frames : sequence of DataFrame (n_samples, n_scores), one per seed
    truth : Series (n_samples,)
    top_k : int, optional
        Only the samples with the highest truth.
    statistic : str
        "pearson", "spearman" or "cosine".

    >>> truth = pd.Series([0.0, 0.5, 1.0])
    >>> frames = [pd.DataFrame({"csg": [1.0, 2.0, 3.0]}), pd.DataFrame({"csg": [3.0, 2.0, 1.0]})]
    >>> by_seed(frames, truth).loc["csg"].round(6).tolist()
    [1.0, -1.0]
    """
    tables = [metrics.compare(frame, truth, top_k=top_k, n_resamples=1) for frame in frames]
    return pd.DataFrame({seed: table[statistic] for seed, table in enumerate(tables)})


def printed_pearson(scores: Sequence[str] | pd.Index) -> pd.DataFrame:
    """Return the printed correlations: of CSG Table 1, and of the CSL poster's top 5,000.

    Columns "all samples" and "most memorized tenth"; NaN for scores that are not printed.
    """
    whole = paper.printed_similarity(scores)["pearson"]
    top = paper.printed_similarity(scores, "csl_poster_similarity", top=True)["pearson"]
    return pd.DataFrame({"all samples": whole, "most memorized tenth": top})


def only_top(truth: pd.Series, top_k: int) -> pd.Series:
    """Return the truth with NaN for all but the k highest; of equal ones the first rows stay.

    >>> only_top(pd.Series([0.1, 0.9, 0.9]), 1).tolist()
    [nan, 0.9, nan]
    """
    return truth.where(truth.rank(method="first", ascending=False) <= top_k)


def batch_leak(nets: Mapping[str, nn.Module], data: Dataset, n_samples: int = 64) -> pd.DataFrame:
    """Return gradient norms of the samples of one batch in train mode: own loss, batch's loss.

    Columns network, own and batch. They differ where the forward pass couples samples (batch norm).
    The networks are left in train mode.
    """
    x, y = data.normalise(data.train.images[:n_samples]), data.train.labels[:n_samples]
    parts = []
    for name, net in nets.items():
        own = signals.own_loss_gradient(net.train(), x, y)
        batch = signals.input_gradient(net, x, y)
        norms = {"own": signals.gradient_norms(own).l2.detach().numpy(),
                 "batch": signals.gradient_norms(batch).l2.detach().numpy()}  # fmt: skip
        parts.append(pd.DataFrame(norms).assign(network=name))
    return pd.concat(parts, ignore_index=True)[["network", "own", "batch"]]


def ladder(
    label_errors: Sequence[pd.Series], few_networks: pd.DataFrame, truth: pd.Series
) -> pd.DataFrame:
    """Return the Pearson correlation with the truth by number of trained networks.

    Parameters
    ----------
    label_errors : sequence of Series, one for each split into folds
        1 - held-out p(label); averaged over the splits so far.
    few_networks : DataFrame
        As of `proxies.few_model_memorization` for the same splits: a column per number of networks.
    truth : Series

    Returns
    -------
    DataFrame, index "networks"
        held_out_probability and few_network_memorization.
    """
    averaged = pd.concat(label_errors, axis=1).T.expanding().mean().T
    averaged.columns = few_networks.columns
    table = {"held_out_probability": averaged.corrwith(truth),
             "few_network_memorization": few_networks.corrwith(truth)}  # fmt: skip
    return pd.DataFrame(table).rename_axis("networks")


def curvature_forms(run: Run, *, device: str = "auto") -> pd.DataFrame:
    """Return five forms of curvature, as in Table 4 of the curvature paper.

    curvature and curvature_norm (mean of ||Hv||^2, Eq. 6, and of ||Hv||, averaged over the measured
    epochs), end and end_norm (the same at the last epoch), garg_roy (along the signs of the
    gradient, at the last epoch). One row per training sample; higher = more memorized.
    """
    frame = run.posthoc_scores[["curvature", "curvature_norm"]].copy()
    norms = run.evaluate(signals.product_norms, device=device)  # (n_samples, 10)
    garg_roy = run.evaluate(signals.adversarial_curvature, device=device)
    return frame.assign(end=(norms**2).mean(1), end_norm=norms.mean(1), garg_roy=garg_roy)


def curvature_cosines(
    groups: Mapping[str, Sequence[Run]], truth: pd.Series, top_k: int
) -> dict[tuple[str, str], pd.DataFrame]:
    """Return the cosine of each of `curvature_forms` with the truth, by seed.

    Keys (group, samples), where samples is "all", or "top" for the k highest of the truth.
    """
    found = {}
    for name, runs in groups.items():
        forms = [curvature_forms(run) for run in runs]
        for part, k in (("all", None), ("top", top_k)):
            found[name, part] = by_seed(forms, truth, top_k=k, statistic="cosine")
    return found


def beside_printed(cosines: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Return the means over seeds of `curvature_cosines` beside Table 4 of the paper."""
    ours = pd.DataFrame({key: table.mean(axis=1) for key, table in cosines.items()})
    return pd.concat({"ours": ours, "printed": printed_curvature()}, axis=1)


def printed_curvature() -> pd.DataFrame:
    """Return Table 4 of the curvature paper under the names of `curvature_forms`.

    Columns (decay, samples): "no decay" and "decay", "all" and "top". The paper does not say which
    of the two forms it prints, so both get the same numbers.
    """
    table = paper.table("curvature_table4_end_of_training").set_index("method")
    rows = {
        "curvature": "averaged_over_training", "curvature_norm": "averaged_over_training",
        "end": "n10_end_of_training", "end_norm": "n10_end_of_training",
        "garg_roy": "garg_roy_2023",
    }  # fmt: skip
    columns = {
        ("no decay", "all"): "cosine_wd0", ("no decay", "top"): "top5k_cosine_wd0",
        ("decay", "all"): "cosine_wd1e-4", ("decay", "top"): "top5k_cosine_wd1e-4",
    }  # fmt: skip
    printed = table.loc[list(rows.values()), list(columns.values())]
    return printed.set_axis(list(rows)).set_axis(pd.MultiIndex.from_tuples(columns), axis=1)


def curvature_settings(
    runs: Sequence[Run],
    truth: pd.Series,
    *,
    steps: Sequence[float] = (1e-2, 1e-3, 1e-4),
    n_directions: Sequence[int] = (5, 10, 20),
    device: str = "auto",
) -> pd.DataFrame:
    """Return the cosine with the truth for each step h and number of directions n.

    Curvature is averaged over the weights at `END_STOPS`. Of more directions the first are those of
    fewer.

    Returns
    -------
    DataFrame, index (seed, h, n)
        Columns "Eq. 6" (mean of ||Hv||^2) and "norm" (mean of ||Hv||).
    """
    rows = {}
    for seed, run in enumerate(runs):
        target = truth.loc[run.data.train.index.numpy()].to_numpy()
        for h in steps:
            options = {"n_directions": max(n_directions), "step": h, "device": device}
            each = [run.evaluate(signals.product_norms, stop, **options) for stop in END_STOPS]
            norms = np.stack(each)  # (3, n_samples, n_directions)
            for n in n_directions:
                first = norms[:, :, :n]
                forms = {"Eq. 6": (first**2).mean((0, 2)), "norm": first.mean((0, 2))}
                rows[seed, h, n] = {k: metrics.cosine(v, target) for k, v in forms.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["seed", "h", "n"])


def largest_difference(table: pd.DataFrame, over: str) -> pd.Series:
    """Return for each seed by how much Eq. 6 differs at most when one setting varies.

    ``table`` is that of `curvature_settings`, ``over`` "h" or "n".
    """
    fixed = [name for name in table.index.names if name != over]
    ranges = table["Eq. 6"].groupby(fixed).agg(np.ptp)
    return ranges.groupby("seed").max()


def squared_gradients(runs: Sequence[Run]) -> np.ndarray:
    """Return the squared norm of each sample's gradient in each epoch, whose sum is CSG.

    As recorded during training: (n_seeds, n_epochs, n_samples), float64.
    """
    return np.stack([run.trace.grad_l2.astype(np.float64) ** 2 for run in runs])


def posthoc_rows(runs: Sequence[Run], signal: str) -> np.ndarray:
    """Return a post-hoc signal of each run, (n_seeds, n_epochs, n_samples), float64.

    NaN in epochs in which it was not measured. Names as in `Run.posthoc_trace`.
    """
    return np.stack([run.posthoc_trace[signal] for run in runs]).astype(np.float64)


def epoch_bands(
    rows: Mapping[str, ArrayLike],
    truth: ArrayLike,
    statistic: Callable[..., float] = metrics.pearson,
) -> pd.DataFrame:
    """Return the agreement of one epoch and of the sum so far, as a `plots.bands` table.

    Parameters
    ----------
    rows : mapping from name to array (n_seeds, n_epochs, n_samples)
        A row of NaN is an epoch that was not measured. The name begins that of the series; it may
        be empty.
    truth : array (n_samples,)
        Samples whose truth is NaN are left out.
    statistic : callable
        A correlation of `metrics`.
    """
    lines = {}
    for name, values in rows.items():
        alone, summed = metrics.by_epoch(values, truth, statistic)
        begin = f"{name}, " if name else ""
        lines |= {f"{begin}one epoch": alone, f"{begin}sum": summed}
    n_epochs = len(next(iter(lines.values()))[0])
    return plots.bands(lines, np.arange(n_epochs))


def mean_stops(runs: Sequence[Run]) -> dict[str, float]:
    """Return the mean epoch of the lowest validation loss and of the gradient's peak, by label."""
    epochs = pd.DataFrame([run.stops["epoch"] for run in runs]).mean()
    return {"lowest validation loss": epochs["best_val"], "peak": epochs["input_gradient"]}


def at_stop(rows: ArrayLike, runs: Sequence[Run], stop: str) -> np.ndarray:
    """Return for each run its value at its own stop, (n_seeds,), from rows (n_seeds, n_epochs)."""
    return np.array([row[run.snapshot_epoch(stop)] for row, run in zip(rows, runs, strict=True)])


def measured_epochs(rows: np.ndarray) -> np.ndarray:
    """Return the epochs that were measured, of rows (n_seeds, n_epochs, n_samples)."""
    return np.flatnonzero(~np.isnan(rows).all(axis=(0, 2)))


def sum_minus_epoch(rows: np.ndarray, truth: ArrayLike, epochs: ArrayLike) -> np.ndarray:
    """Return Pearson of the sum so far minus that of one epoch, (n_seeds,).

    Taken at the last measured epoch up to ``epochs`` (n_seeds,), or at the first one.
    """
    measured = measured_epochs(rows)
    alone, summed = metrics.by_epoch(rows[:, measured], truth)
    places = np.searchsorted(measured, np.asarray(epochs), side="right").clip(1) - 1
    return (summed - alone)[np.arange(len(rows)), places]


def share_of_largest(values: ArrayLike, top_k: int) -> float:
    """Return the share of the sum that the k largest values hold, in [0, 1].

    >>> share_of_largest([1.0, 8.0, 1.0], 1)
    0.8
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    return float(ordered[-top_k:].sum() / ordered.sum())


def rise_and_fall(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the epoch in which the mean over samples is highest, and the last over the highest.

    Of rows (n_seeds, n_epochs, n_samples), measured epochs only; (n_seeds,) each.
    """
    measured = measured_epochs(rows)
    means = rows[:, measured].mean(axis=2)
    return measured[means.argmax(axis=1)], means[:, -1] / means.max(axis=1)


def history_bands(runs: Sequence[Run]) -> pd.DataFrame:
    """Return training loss, validation loss and mean curvature by epoch, as `plots.bands`."""
    values = {name: [run.history[name] for run in runs] for name in ("train_loss", "val_loss")}
    values["curvature"] = [run.posthoc_trace.curvature_squared.mean(axis=1) for run in runs]
    return plots.bands(values, runs[0].history["epoch"])


COMPARED = (
    "early_csg", "sgal", "csg", "csl", "loss_sensitivity", "forgetting", "final_loss", "confidence",
    "variability", "lt_iqr", "vog", "grand", "tracin", "curvature", "average_probability_margin",
    "label_error", "samis_loss",
)  # fmt: skip


def cost_table(cost: pd.Series, pearson: pd.Series) -> pd.DataFrame:
    """Return cost and agreement of the `COMPARED` scores beside the printed ones, by cost.

    Parameters
    ----------
    cost : Series, index score
        In plain trainings.
    pearson : Series, index score

    Returns
    -------
    DataFrame, index "score"
        cost, compute_low and compute_high (printed; the paper's cheap CSG is `early_csg`, so `csg`
        has none), pearson, printed_pearson.
    """
    theirs = paper.printed(COMPARED, "csg_table1_similarity")
    table = theirs[["compute_low", "compute_high"]].copy()
    table.loc["csg"] = np.nan
    table = table.assign(cost=cost, pearson=pearson, printed_pearson=theirs["cifar100_pearson"])
    return table.sort_values("cost", kind="stable")
