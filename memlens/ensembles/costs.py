"""The catalogue of all scores, and the cost of each.

The cost of a score is a multiple of one plain training of the network on all samples for all
epochs, that training included. It is counted (in forward passes, a training step is three, a
gradient with respect to the input is three, a backward pass alone is two) and measured (in rounds
that run all cost models in turn).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from memlens.data.samples import Dataset
from memlens.ensembles.proxies import PROXIES
from memlens.ensembles.retrainings import KINDS, retrain
from memlens.storage.store import Store
from memlens.tracking.scores import CATALOGUE, EARLY_EPOCH, Score
from memlens.tracking.traces import SIGNALS
from memlens.training.config import MeasureConfig, TrainConfig
from memlens.training.devices import thread_count
from memlens.training.jobs import on_gpu
from memlens.training.loop import train

EVERY_SCORE: dict[str, Score] = CATALOGUE | PROXIES
IN_STEP = "in-step (train mode, augmented, before the update)"
POST_HOC = "post-hoc (eval mode, clean, after the epoch)"
RETRAINED = "after more trainings (eval mode, clean)"
N_DIRECTIONS = 10

Work = Callable[[str, Dataset, TrainConfig], object]


@dataclass(frozen=True)
class CostModel:
    """The cost of measuring a group of signals.

    Attributes
    ----------
    run : (model, data, config) -> None
        The measurement itself, without the cache.
    counted : (epochs) -> float
        Its cost in plain trainings.
    formula : str
        The count as text.
    fixed : bool
        True if the work does not grow with the epochs of the config.
    """

    run: Work
    counted: Callable[[int], float]
    formula: str
    fixed: bool = False


def _training(record: bool = True, **measure: object) -> Work:
    return lambda model, data, config: train(
        model, data, config, MeasureConfig(**measure), record=record
    )


def _retraining(kind: str) -> Work:
    def run(model: str, data: Dataset, config: TrainConfig) -> None:
        with TemporaryDirectory() as folder:  # an empty cache, so that everything is trained
            cache = Store(Path(folder))
            retrain(kind, model, [data], config, seeds=[config.seed], n_jobs=1, cache=cache)

    return run


def _constant(value: float) -> Callable[[int], float]:
    return lambda epochs: value


# fmt: off
COST_MODELS: dict[str, CostModel] = {
    "plain": CostModel(_training(record=False), _constant(1), "1"),
    "step": CostModel(_training(), _constant(1), "1"),
    "post-hoc": CostModel(_training(posthoc=True), _constant(2), "1 + 1"),
    "curvature": CostModel(_training(posthoc=True, n_directions=N_DIRECTIONS),
                           _constant(2 + N_DIRECTIONS + 1), "1 + 1 + (n + 1), n = 10"),
    "weight gradients": CostModel(_training(posthoc=True, weight_gradients=True), _constant(2),
                                  "1 + 1"),
    "logit gradients": CostModel(_training(posthoc=True, logit_gradients=True),
                                 _constant(2 + 2 / 3), "1 + 1 + 2/3"),
    "folds": CostModel(_retraining("folds"), _constant(KINDS["folds"].trainings), "3 x 2/3"),
    "second_split": CostModel(_retraining("second_split"),
                              _constant(KINDS["second_split"].trainings),
                              "2 x (1/2 + 1/2) + 2/3"),
    "samis": CostModel(_retraining("samis"), _constant(KINDS["samis"].trainings),
                       "10 x 0.9 x (1 + 2)"),
    "repeats": CostModel(_retraining("repeats"),
                         lambda epochs: KINDS["repeats"].trainings / max(epochs, EARLY_EPOCH + 1),
                         "10 x 11 / T", fixed=True),
}
# fmt: on
SIGNAL_COST_MODELS = dict.fromkeys(SIGNALS, "step") | {
    "curvature_norm": "curvature",
    "curvature_squared": "curvature",
    "probability_margin": "post-hoc",
    "vog": "logit gradients",
    "vog_last": "logit gradients",
    "weight_grad": "weight gradients",
    "weight_grad_last": "weight gradients",
    **{kind: kind for kind in KINDS},
}


def cost_models_of(name: str) -> list[str]:
    """Return the names of the cost models of a score, in-step where that is available."""
    return sorted({SIGNAL_COST_MODELS[need] for need in EVERY_SCORE[name].needs})


def measure_costs(
    model: str, data: Dataset, config: TrainConfig, *, epochs: int = 12, n_rounds: int = 3
) -> pd.DataFrame:
    """Time every cost model, in several rounds that run all of them in turn.

    Parameters
    ----------
    model : str
        A name from ``registry.MODELS``.
    data : Dataset
    config : TrainConfig
        Configuration of a plain training.
    epochs : int
        Number of epochs timed; relative costs hardly depend on it.
    n_rounds : int
        Number of rounds; medians over rounds are returned.

    Returns
    -------
    DataFrame
        One row per cost model: seconds (processor time of the whole config on this machine; with a
        GPU, elapsed time), measured and counted (in plain trainings).

    Raises
    ------
    ValueError
        If ``epochs`` or ``n_rounds`` is below 1.
    """
    if epochs < 1 or n_rounds < 1:
        raise ValueError(f"epochs={epochs}, n_rounds={n_rounds}: expected 1 or more of each")
    short = replace(config, epochs=min(epochs, config.epochs))
    scale = config.epochs / short.epochs
    train(model, data, replace(config, epochs=1), record=False)  # the first training is slower
    rounds = []
    with thread_count(config.threads):  # processor time includes every thread
        for _ in range(n_rounds):
            seconds = {
                name: _seconds(cost, model, data, config)
                if cost.fixed
                else scale * _seconds(cost, model, data, short)
                for name, cost in COST_MODELS.items()
            }
            rounds.append(seconds)
    table = pd.DataFrame(rounds)
    return pd.DataFrame({
        "seconds": table.median(),
        "measured": table.div(table["plain"], axis=0).median(),
        "counted": {name: cost.counted(config.epochs) for name, cost in COST_MODELS.items()},
    }).rename_axis("cost_model")  # fmt: skip


def _seconds(cost: CostModel, model: str, data: Dataset, config: TrainConfig) -> float:
    # Other processes do not affect processor time, but it does not include a GPU.
    clock = time.perf_counter if on_gpu([config]) else time.process_time
    start = clock()
    cost.run(model, data, config)
    return clock() - start


def cost_of_scores(costs: pd.DataFrame, *, stopped: float = 1.0) -> pd.DataFrame:
    """Return the cost of each score: the sum over its cost models.

    Parameters
    ----------
    costs : DataFrame
        From `measure_costs`.
    stopped : float
        Share of the epochs after which the peak was detected: SGAL and early CSG stop there.

    Returns
    -------
    DataFrame
        One row per score: seconds, measured and counted (in plain trainings, including the
        training itself where the score needs it), forwards (forward passes per sample and epoch in
        addition to plain training, from ``measured``; negative for scores that stop early).

    Raises
    ------
    ValueError
        If ``stopped`` is not a share of the epochs.
    """
    if not 0 < stopped <= 1:
        raise ValueError(f"stopped is {stopped}; expected a share of the epochs, above 0, up to 1")
    rows = {
        name: costs.loc[cost_models_of(name)].sum() * (stopped if score.until_peak else 1)
        for name, score in EVERY_SCORE.items()
    }
    table = pd.DataFrame(rows).T.rename_axis("score")
    return table.assign(forwards=3 * (table["measured"] - 1))


def catalogue() -> pd.DataFrame:
    """Return one row per score: formula, measurement, direction, cost and source.

    >>> import memlens as ml
    >>> ml.catalogue().loc["csg", ["direction", "cost"]].tolist()
    ['higher = more memorized', '1']
    """
    rows = {
        name: {
            "formula": score.formula,
            "variant": score.variant,
            "measured": _measured(score),
            "input": "normalised pixels, as the network gets them",
            "direction": "higher = more memorized",
            "never learned": score.never_learned,
            "cost": _counted(name),
            "source": score.source,
        }
        for name, score in EVERY_SCORE.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("score")


def families() -> pd.Series:
    """Return what each score needs, index score, for the figures.

    "recorded during training", "needs extra passes" or "needs more trainings".
    """
    needs = {POST_HOC: "needs extra passes", RETRAINED: "needs more trainings"}
    measured = {name: _measured(score) for name, score in EVERY_SCORE.items()}
    return pd.Series({k: needs.get(v, "recorded during training") for k, v in measured.items()})


def _measured(score: Score) -> str:
    if set(score.needs) & set(KINDS):
        return RETRAINED
    return POST_HOC if score.post_hoc_only else f"{IN_STEP} or {POST_HOC}"


def _counted(name: str) -> str:
    formula = " + ".join(COST_MODELS[cost].formula for cost in cost_models_of(name))
    return f"({formula}) x peak / T" if EVERY_SCORE[name].until_peak else formula
