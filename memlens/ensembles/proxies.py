"""The scores that need more trainings than one, as pure functions of what those trainings left.

All are (n_samples,) float64, higher = more memorized or more suspicious. ``left`` is what
`retrainings.retrain` gives for one data set and seed. `every_score` puts them beside the scores of
a run; `aum_flags` and `grand_mean` are procedures of their own.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import rankdata

from memlens.data.samples import Dataset
from memlens.ensembles.model_ensemble import ModelEnsemble
from memlens.ensembles.retrainings import (
    KINDS,
    early_signals,
    train_members,
    repeat_members,
    retrain,
)
from memlens.tracking import scores
from memlens.tracking.scores import Score
from memlens.training.config import TrainConfig
from memlens.training.jobs import Job, train_many
from memlens.training.runs import Run

Left = Mapping[str, np.ndarray]


def el2n_mean(left: Left) -> np.ndarray:
    """EL2N early in training, mean of ten runs (Paul et al. 2021)."""
    return left["el2n"].mean(0, dtype=np.float64)


def grand_mean(left: Left) -> np.ndarray:
    """GraNd early in training, mean of ten runs (Paul et al. 2021)."""
    return left["weight_grad"].mean(0, dtype=np.float64)


def samis_loss(left: Left) -> np.ndarray:
    """|loss by SGD - loss by SAM| of the held-out sample (Agiollo et al. 2024)."""
    losses = [-_own(log_softmax(left[k].astype(np.float64), 1), left) for k in ("sgd", "sam")]
    return np.abs(losses[0] - losses[1])


def samis_prob(left: Left) -> np.ndarray:
    """L1 distance of the two probability vectors of the held-out sample, in [0, 2]."""
    probabilities = [softmax(left[k].astype(np.float64), 1) for k in ("sgd", "sam")]
    return np.abs(probabilities[0] - probabilities[1]).sum(1)


def ssft(left: Left) -> np.ndarray:
    """Minus the epoch of the second split from which the sample stays wrong (Maini et al. 2022).

    Epochs count from 0, so 0 means forgotten at once, or never learned; a sample never forgotten
    gets -T.
    """
    correct = left["correct"]
    after_last = len(correct) - correct[::-1].argmax(0)
    return -np.where(correct.any(0), after_last, 0).astype(np.float64)


def ssft_mean(left: Left) -> np.ndarray:
    """Share of the second split's epochs with a wrong prediction, as the CSL authors' code."""
    return 1 - left["correct"].mean(0)


def confident_learning(left: Left) -> np.ndarray:
    """Rank among the samples that confident learning flags, in (0, 1]; 0 for every other sample.

    The papers' form (Northcutt et al. 2021, ranked by self-confidence), as cleanlab flags: without
    samples that are predicted as labelled. Samples not flagged cannot be told apart.
    """
    filters = _cleanlab().filter
    ranked = filters.find_label_issues(
        left["y_true"], _held_out_probabilities(left), filter_by="confident_learning",
        return_indices_ranked_by="self_confidence", n_jobs=1,
    )  # fmt: skip
    score = np.zeros(len(left["y_true"]))
    score[ranked] = np.arange(len(ranked), 0, -1) / max(1, len(ranked))
    return score


def label_quality(left: Left) -> np.ndarray:
    """1 minus the label quality of confident learning, continuous, in [0, 1]: 1 - held-out p_y."""
    quality = _cleanlab().rank.get_label_quality_scores
    probabilities = _held_out_probabilities(left)
    return 1 - quality(left["y_true"], probabilities, method="self_confidence")


def rank_mean(*columns: pd.Series | np.ndarray) -> np.ndarray:
    """Mean of the columns' ranks, each in (0, 1], ties sharing theirs: scores on one scale."""
    return np.mean([rankdata(column) / len(column) for column in columns], axis=0)


def _own(rows: np.ndarray, left: Left) -> np.ndarray:
    return np.take_along_axis(rows, left["y_true"][:, None], 1)[:, 0]


def _held_out_probabilities(left: Left) -> np.ndarray:
    return softmax(left["logits"].astype(np.float64), 1)


def _cleanlab() -> object:
    try:
        with warnings.catch_warnings():  # its progress bars miss widgets that it does not need
            warnings.simplefilter("ignore")
            import cleanlab.filter
            import cleanlab.rank
    except ImportError:
        raise ImportError(
            "confident learning needs cleanlab: pip install 'memlens[confident]'"
        ) from None
    return cleanlab


# fmt: off
PROXIES: dict[str, Score] = {
    "el2n_mean": Score(el2n_mean, f"mean_runs ||softmax - onehot||_2 at t = {scores.EARLY_EPOCH}",
                       "mean of ten runs", "-", "Paul 2021", ("repeats",)),
    "grand_mean": Score(grand_mean, f"mean_runs ||dl/dw||_2 at t = {scores.EARLY_EPOCH}",
                        "all weights, mean of ten runs", "-", "Paul 2021", ("repeats",)),
    "samis_loss": Score(samis_loss, "|loss_sgd - loss_sam|", "held out, ten folds", "-",
                        "Agiollo 2024", ("samis",)),
    "samis_prob": Score(samis_prob, "sum_k |p_sgd,k - p_sam,k|", "held out, ten folds", "-",
                        "Agiollo 2024", ("samis",)),
    "ssft": Score(ssft, "- first second-split t from which wrong for ever", "forgotten for good",
                  "0", "Maini 2022", ("second_split",)),
    "ssft_mean": Score(ssft_mean, "mean_t [prediction wrong] in the second split", "mean", "1",
                       "Ravikumar 2025, public code", ("second_split",)),
    "confident_learning": Score(confident_learning, "rank among the flagged, else 0",
                                "truncated ranking, three folds", "-",
                                "Northcutt 2021; Ravikumar 2025", ("folds",)),
    "label_quality": Score(label_quality, "1 - held-out p_y", "continuous, three folds", "-",
                           "Northcutt 2021", ("folds",)),
    "curvature_ssft": Score(rank_mean, "mean of the ranks of curvature and ssft_mean",
                            "the paper does not say how they are combined", "-",
                            "Garg 2024, Table 2", ("curvature", "second_split")),
}
# fmt: on


def extra_scores(
    model: str,
    datasets: Sequence[Dataset],
    config: TrainConfig,
    *,
    seeds: Sequence[int],
    kinds: Sequence[str] = tuple(KINDS),
    n_jobs: int | None = None,
) -> list[pd.DataFrame]:
    """The scores of extra trainings for each data set; finished trainings come from the store.

    Parameters
    ----------
    model, datasets, config, seeds, n_jobs
        As in `retrainings.retrain`.
    kinds : sequence of str
        Which trainings to make.

    Returns
    -------
    list of DataFrame, one a data set
        A row a training sample (original index), a column a score.
    """
    frames = [pd.DataFrame(index=pd.Index(d.train.index.numpy(), name="index")) for d in datasets]
    for kind in kinds:
        left = retrain(kind, model, datasets, config, seeds=seeds, n_jobs=n_jobs)
        for name, score in PROXIES.items():
            if score.needs == (kind,):
                for frame, arrays in zip(frames, left):
                    frame[name] = score.function(arrays)
    return frames


def every_score(run: Run, extra: pd.DataFrame | None = None) -> pd.DataFrame:
    """All scores of a run in one frame: in-step where the step gives them, otherwise post-hoc.

    Parameters
    ----------
    run : Run
    extra : DataFrame, optional
        From `extra_scores` on the same data; with curvature and SSFT both there, their combination
        is added.

    Raises
    ------
    ValueError
        If the two are not of the same samples.
    """
    frame = run.scores.copy()
    if run.posthoc_trace is not None:
        later = run.posthoc_scores
        frame = frame.join(later[[name for name in later if name not in frame]])
    if extra is None:
        return frame
    if not extra.index.equals(frame.index):
        raise ValueError("extra holds other samples than the run: compute it on run.data")
    frame = frame.join(extra)
    if {"curvature", "ssft_mean"} <= set(frame):
        frame["curvature_ssft"] = rank_mean(frame["curvature"], frame["ssft_mean"])
    return frame


def grand_at(
    model: str, data: Dataset, config: TrainConfig, *, epochs: int, n_runs: int = 10, seed: int = 0
) -> pd.DataFrame:
    """EL2N and GraNd after so many epochs, mean of several runs (Paul et al. 2021).

    Parameters
    ----------
    epochs : int
        Epochs trained before the measurement. With 0, at initialisation, it warns: what was first
        reported there does not reproduce (Kirsch 2023, arXiv 2303.14753), and GraNd of an untrained
        net is mostly the norm of the input.

    Returns
    -------
    DataFrame
        A row a training sample (original index); columns el2n, grand.
    """
    if not 0 <= epochs <= config.epochs:
        raise ValueError(f"epochs is {epochs}; the config has 0 to {config.epochs}")
    if epochs == 0:
        warnings.warn(
            "GraNd at initialisation does not reproduce (Kirsch 2023): it mostly measures the norm "
            "of the input; take it after some epochs",
            stacklevel=2,
        )
    parts = repeat_members(data, seed, n_runs)
    ensemble = ModelEnsemble.build(model, data, [part.seed for part in parts])
    train_members(ensemble, data, parts, config, epochs=epochs)
    rows = early_signals(ensemble, data, parts)
    means = {k: np.mean([r[k] for r in rows], axis=0) for k in ("el2n", "weight_grad")}
    frame = pd.DataFrame(means, index=pd.Index(data.train.index.numpy(), name="index"))
    return frame.rename(columns={"weight_grad": "grand"})


def aum_flags(
    model: str, data: Dataset, config: TrainConfig, *, percentile: float = 99.0, seed: int = 0
) -> pd.DataFrame:
    """AUM with its threshold samples: which labels to call wrong (Pleiss et al. 2020, section 3.2).

    N / (C + 1) random samples are given a class that does not exist. They can only be memorized, so
    a real sample whose AUM is below the percentile of theirs is called mislabelled. A second
    training with other threshold samples judges those that served in the first.

    Returns
    -------
    DataFrame
        A row a training sample (original index): score (minus AUM, higher = more suspicious),
        threshold (on that scale, of the training that judged it), flagged (bool).
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}; expected a value above 0 and up to 100")
    n, fake = len(data.train), data.n_classes
    order, size = np.random.default_rng(seed).permutation(n), n // (fake + 1)
    if not size:
        raise ValueError(f"{n} samples of {fake} classes leave no threshold sample")
    serving = [order[:size], order[size : 2 * size]]
    judged = [order[size:], order[:size]]  # every sample once
    jobs = [Job(model, _with_fake(data, rows), replace(config, seed=seed)) for rows in serving]
    score, threshold = np.empty(n), np.empty(n)
    for run, rows, who in zip(train_many(jobs), serving, judged):
        suspicion = run.scores["aum"].to_numpy()  # minus AUM: the percentile turns round with it
        score[who], threshold[who] = (
            suspicion[who],
            np.percentile(suspicion[rows], 100 - percentile),
        )
    columns = {"score": score, "threshold": threshold, "flagged": score > threshold}
    return pd.DataFrame(columns, index=pd.Index(data.train.index.numpy(), name="index"))


def _with_fake(data: Dataset, rows: np.ndarray) -> Dataset:
    labels = data.train.labels.clone()
    labels[torch.as_tensor(rows)] = data.n_classes
    train = replace(data.train, labels=labels)
    return replace(data, train=train, class_names=(*data.class_names, "threshold sample"))
