"""Scores that need more than one training, as pure functions of the arrays of `retrain`.

All return (n_samples,), float64, higher = more memorized or more suspicious. ``arrays`` is what
`retrainings.retrain` returns for one data set and seed. `every_score` joins them with the scores of
a run. `aum_flags` runs its trainings itself.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import rankdata

from memlens.data.samples import Dataset
from memlens.ensembles.retrainings import KINDS, retrain
from memlens.ensembles.subsets import subset_memorization
from memlens.storage.store import Arrays
from memlens.tracking import scores
from memlens.tracking.scores import Score
from memlens.training.config import TrainConfig
from memlens.training.jobs import Job, train_many
from memlens.training.runs import Run

AUM_PERCENTILE = 99.0  # of the threshold samples' AUM; Pleiss et al. 2020, section 3.2


def el2n_mean(arrays: Arrays) -> np.ndarray:
    """Return EL2N early in training, mean of ten runs (Paul et al. 2021)."""
    return arrays["el2n"].mean(0, dtype=np.float64)


def grand_mean(arrays: Arrays) -> np.ndarray:
    """Return GraNd early in training, mean of ten runs (Paul et al. 2021)."""
    return arrays["weight_grad"].mean(0, dtype=np.float64)


def samis_loss(arrays: Arrays) -> np.ndarray:
    """Return |loss with SGD - loss with SAM| of held-out samples (Agiollo et al. 2024)."""
    columns = arrays["y_true"][:, None]
    sgd, sam = (log_softmax(arrays[k].astype(np.float64), 1) for k in ("sgd", "sam"))
    return np.abs(np.take_along_axis(sgd - sam, columns, 1))[:, 0]


def samis_prob(arrays: Arrays) -> np.ndarray:
    """Return the L1 distance of held-out probabilities with SGD and with SAM, in [0, 2]."""
    probabilities = [softmax(arrays[k].astype(np.float64), 1) for k in ("sgd", "sam")]
    return np.abs(probabilities[0] - probabilities[1]).sum(1)


def ssft(arrays: Arrays) -> np.ndarray:
    """Return minus the epoch of the second split after which a sample stays wrong.

    Maini et al. 2022. Epochs count from 0: 0 for a sample that is forgotten at once or was never
    learned, -n_epochs for one that is never forgotten.
    """
    correct = arrays["correct"]
    after_last = len(correct) - correct[::-1].argmax(0)
    return -np.where(correct.any(0), after_last, 0).astype(np.float64)


def ssft_mean(arrays: Arrays) -> np.ndarray:
    """Return the share of the second split's epochs with a wrong prediction, in [0, 1].

    As in the public code of the CSL authors (Ravikumar 2025).
    """
    return 1 - arrays["correct"].mean(0)


def confident_learning(arrays: Arrays) -> np.ndarray:
    """Return the rank among samples flagged by confident learning, in (0, 1]; 0 for the others.

    As in the papers (Northcutt et al. 2021, ranked by self-confidence), with cleanlab's flags,
    which leave out samples predicted as labelled. Samples that are not flagged are tied.

    Raises
    ------
    ImportError
        If cleanlab is not installed.
    """
    filters = _cleanlab().filter
    ranked = filters.find_label_issues(
        arrays["y_true"], _held_out_probabilities(arrays), filter_by="confident_learning",
        return_indices_ranked_by="self_confidence", n_jobs=1,
    )  # fmt: skip
    score = np.zeros(len(arrays["y_true"]))
    score[ranked] = np.arange(len(ranked), 0, -1) / max(1, len(ranked))
    return score


def label_error(arrays: Arrays) -> np.ndarray:
    """Return 1 - held-out p_y, in [0, 1], higher = more likely a label error.

    It is 1 minus the label quality of confident learning (Northcutt et al. 2021), where low quality
    is suspicious, and does not truncate the ranking as `confident_learning` does.

    Raises
    ------
    ImportError
        If cleanlab is not installed.
    """
    quality = _cleanlab().rank.get_label_quality_scores
    probabilities = _held_out_probabilities(arrays)
    return 1 - quality(arrays["y_true"], probabilities, method="self_confidence")


def fold_memorization(arrays: Arrays) -> np.ndarray:
    """Return p(label) of the folds' networks trained with a sample, minus held-out p(label).

    It is Feldman-Zhang memorization from three networks, with probabilities in place of right and
    wrong predictions, in [-1, 1]; `few_model_memorization` takes more networks.
    """
    return subset_memorization(arrays["masks"], arrays["p_label"])["memorization"].to_numpy()


def few_model_memorization(
    model: str,
    data: Dataset,
    config: TrainConfig,
    *,
    seeds: Sequence[int],
    n_jobs: int | None = None,
) -> pd.DataFrame:
    """Return Feldman-Zhang memorization from a few networks: three folds, repeated.

    The mean p(label) of the networks trained with a sample minus the mean held-out p(label). The
    folds are those of `label_error`: seeds for which that is known take no more training.

    >>> import memlens as ml
    >>> from memlens.ensembles.proxies import few_model_memorization
    >>> digits, config = ml.load("digits").subset(100), ml.TrainConfig(epochs=2)
    >>> list(few_model_memorization("mlp", digits, config, seeds=[0, 1], n_jobs=1))
    [3, 6]

    Parameters
    ----------
    model, data, config, n_jobs
        As in `retrainings.retrain`.
    seeds : sequence of int
        One split into three folds each.

    Returns
    -------
    DataFrame
        One row per training sample (original index), one column per number of networks, in [-1, 1].
    """
    repeats = retrain("folds", model, [data] * len(seeds), config, seeds=seeds, n_jobs=n_jobs)
    masks, p_label = (np.concatenate([a[k] for a in repeats]) for k in ("masks", "p_label"))
    sizes = np.cumsum([len(a["masks"]) for a in repeats]).tolist()
    columns = {
        n: subset_memorization(masks[:n], p_label[:n])["memorization"].to_numpy() for n in sizes
    }
    return pd.DataFrame(columns, index=pd.Index(data.train.index.numpy(), name="index"))


def rank_mean(*columns: pd.Series | np.ndarray) -> np.ndarray:
    """Return the mean of the columns' ranks, each in (0, 1]; ties share their mean rank."""
    return np.mean([rankdata(column) / len(column) for column in columns], axis=0)


def _held_out_probabilities(arrays: Arrays) -> np.ndarray:
    return softmax(arrays["logits"].astype(np.float64), 1)


def _cleanlab() -> object:
    try:
        with warnings.catch_warnings():  # about progress bars, which are not used here
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
    "ssft": Score(ssft, "- first t of the second split from which always wrong",
                  "forgotten permanently", "0", "Maini 2022", ("second_split",)),
    "ssft_mean": Score(ssft_mean, "mean_t [prediction wrong] in the second split", "mean", "1",
                       "Ravikumar 2025, public code", ("second_split",)),
    "confident_learning": Score(confident_learning, "rank among the flagged, else 0",
                                "truncated ranking, three folds", "-",
                                "Northcutt 2021; Ravikumar 2025", ("folds",)),
    # High = suspicious, as in all columns; cleanlab's label quality is the opposite.
    "label_error": Score(label_error, "1 - held-out p_y", "continuous, three folds", "-",
                         "Northcutt 2021", ("folds",)),
    "fold_memorization": Score(fold_memorization, "mean p_y trained with - mean p_y held out",
                               "probabilities, three folds", "-", "Feldman 2020, few networks",
                               ("folds",)),
    "curvature_ssft": Score(rank_mean, "mean of the ranks of curvature and ssft",
                            "mean of ranks, as the paper states no combination", "-",
                            "Garg 2024, Table 2", ("curvature_squared", "second_split")),
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
    """Return the scores of extra trainings, which are run or loaded from the cache.

    >>> import memlens as ml
    >>> digits, config = ml.load("digits").subset(100), ml.TrainConfig(epochs=2)
    >>> (frame,) = ml.extra_scores("mlp", [digits], config, seeds=[0], kinds=["second_split"],
    ...                            n_jobs=1)
    >>> frame.shape, list(frame)
    ((100, 2), ['ssft', 'ssft_mean'])

    Parameters
    ----------
    model, datasets, config, seeds, n_jobs
        As in `retrainings.retrain`.
    kinds : sequence of str
        Kinds of trainings, names from `retrainings.KINDS`.

    Returns
    -------
    list of DataFrame, one per data set
        One row per training sample (original index), one column per score.

    Raises
    ------
    ValueError, ImportError
        As `retrainings.retrain`, and if cleanlab is not installed and ``kinds`` has "folds".
    """
    frames = [pd.DataFrame(index=pd.Index(d.train.index.numpy(), name="index")) for d in datasets]
    for kind in kinds:
        trained = retrain(kind, model, datasets, config, seeds=seeds, n_jobs=n_jobs)
        for name, score in PROXIES.items():
            if score.needs == (kind,):
                for frame, arrays in zip(frames, trained):
                    frame[name] = score.function(arrays)
    return frames


def every_score(run: Run, extra: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return all scores of a run in one frame: in-step where available, otherwise post-hoc.

    >>> import memlens as ml
    >>> digits, config = ml.load("digits").subset(100), ml.TrainConfig(epochs=2)
    >>> run = ml.train("mlp", digits, config, ml.MeasureConfig(posthoc=True, n_directions=1))
    >>> scores = ml.every_score(run)
    >>> "csg" in scores, "curvature" in scores, "curvature" in run.scores
    (True, True, False)

    Parameters
    ----------
    run : Run
    extra : DataFrame, optional
        From `extra_scores` on the same data. If curvature and ``ssft_mean`` are available, their
        combination ``curvature_ssft`` is added.

    Returns
    -------
    DataFrame
        One row per training sample (original index), one column per score, higher = more memorized.

    Raises
    ------
    ValueError
        If the samples of ``extra`` are not those of the run.
    """
    frame = run.scores.copy()
    if run.posthoc_trace is not None:
        posthoc = run.posthoc_scores
        frame = frame.join(posthoc[[name for name in posthoc if name not in frame]])
    if extra is None:
        return frame
    if not extra.index.equals(frame.index):
        raise ValueError(
            "the index of extra is not that of run.scores: compute extra_scores on run.data"
        )
    frame = frame.join(extra)
    if {"curvature", "ssft"} <= set(frame):
        frame["curvature_ssft"] = rank_mean(frame["curvature"], frame["ssft"])
    return frame


def aum_flags(model: str, data: Dataset, config: TrainConfig, *, seed: int = 0) -> pd.DataFrame:
    """Flag wrong labels by AUM with threshold samples (Pleiss et al. 2020, section 3.2).

    N / (C + 1) random samples get the label of an additional class, so that they can only be
    memorized. A sample is flagged if its AUM is below the `AUM_PERCENTILE` of theirs. A second
    training with other threshold samples evaluates those of the first.

    Returns
    -------
    DataFrame
        One row per training sample (original index): score (minus AUM, higher = more suspicious),
        threshold (minus the percentile, of the training that evaluated the sample), flagged
        (bool).

    Raises
    ------
    ValueError
        If there are too few samples for a threshold sample.
    """
    n, n_classes = len(data.train), data.n_classes
    order, size = np.random.default_rng(seed).permutation(n), n // (n_classes + 1)
    if not size:
        raise ValueError(
            f"{n} samples of {n_classes} classes leave no threshold sample; expected at least "
            f"{n_classes + 1} samples"
        )
    thresholds = [order[:size], order[size : 2 * size]]
    evaluated = [order[size:], order[:size]]  # each sample once
    jobs = [Job(model, _with_fake(data, rows), replace(config, seed=seed)) for rows in thresholds]
    score, threshold = np.empty(n), np.empty(n)
    for run, fake, real in zip(train_many(jobs), thresholds, evaluated):
        suspicion = run.scores["aum"].to_numpy()  # minus AUM, which also reverses the percentile
        score[real] = suspicion[real]
        threshold[real] = np.percentile(suspicion[fake], 100 - AUM_PERCENTILE)
    columns = {"score": score, "threshold": threshold, "flagged": score > threshold}
    return pd.DataFrame(columns, index=pd.Index(data.train.index.numpy(), name="index"))


def _with_fake(data: Dataset, rows: np.ndarray) -> Dataset:
    """Return the data with an additional class, which is the label of the given rows."""
    labels = data.train.labels.clone()
    labels[torch.as_tensor(rows)] = data.n_classes
    train = replace(data.train, labels=labels)
    return replace(data, train=train, class_names=(*data.class_names, "threshold sample"))
