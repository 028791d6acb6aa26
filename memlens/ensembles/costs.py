"""The catalogue of all scores, and what each of them costs.

A cost is a multiple of one plain training of the net on all samples for all epochs, that training
included. It is counted (a training step is three forward passes of its samples, a gradient by the
input is three, a backward pass alone two) and measured, in rounds that take all ways in turn.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from memlens.data.samples import Dataset
from memlens.ensembles.proxies import PROXIES
from memlens.ensembles.retrainings import KINDS, train_kind
from memlens.storage.store import Store
from memlens.tracking.scores import CATALOGUE, EARLY_EPOCH, Score
from memlens.tracking.traces import SIGNALS
from memlens.training.config import MeasureConfig, TrainConfig
from memlens.training.loop import thread_count, train
from memlens.training.parallel import on_gpu

EVERY_SCORE: dict[str, Score] = CATALOGUE | PROXIES
IN_STEP = "in-step (train mode, augmented, before the update)"
POST_HOC = "post-hoc (eval mode, clean, after the epoch)"
RETRAINED = "after more trainings (eval mode, clean)"
N_DIRECTIONS = 10


@dataclass(frozen=True)
class CostModel:
    """A way of getting at signals.

    Attributes
    ----------
    run : (model, data, config) -> None, the work itself, with nothing taken from the store
    counted : (epochs) -> float, in plain trainings
    formula : str, the count in words
    fixed : bool, whether its work does not grow with the epochs of the config
    """

    run: Callable[[str, Dataset, TrainConfig], object]
    counted: Callable[[int], float]
    formula: str
    fixed: bool = False


def _training(
    record: bool = True, **measure: object
) -> Callable[[str, Dataset, TrainConfig], object]:
    return lambda model, data, config: train(
        model, data, config, MeasureConfig(**measure), record=record
    )


def _again(kind: str) -> Callable[[str, Dataset, TrainConfig], object]:
    def run(model: str, data: Dataset, config: TrainConfig) -> None:
        with TemporaryDirectory() as folder:  # nothing that was trained before is there
            wanted = {kind: (data, config.seed)}
            train_kind(KINDS[kind], model, wanted, config, 1, Store(Path(folder)))

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
    "logit gradients": CostModel(_training(posthoc=True, logit_gradients=True), _constant(2 + 2 / 3),
                           "1 + 1 + 2/3"),
    "folds": CostModel(_again("folds"), _constant(KINDS["folds"].trainings), "3 x 2/3"),
    "second_split": CostModel(_again("second_split"), _constant(KINDS["second_split"].trainings),
                        "2 x (1/2 + 1/2) + 2/3"),
    "samis": CostModel(_again("samis"), _constant(KINDS["samis"].trainings), "10 x 0.9 x (1 + 2)"),
    "repeats": CostModel(_again("repeats"),
                   lambda epochs: KINDS["repeats"].trainings / max(epochs, EARLY_EPOCH + 1),
                   "10 x 11 / T", fixed=True),
}
# fmt: on
SIGNAL_COST_MODELS = dict.fromkeys(SIGNALS, "step") | {
    "curvature": "curvature",
    "curvature_squared": "curvature",
    "vog": "logit gradients",
    "vog_last": "logit gradients",
    "weight_grad": "weight gradients",
    "weight_grad_last": "weight gradients",
    **{kind: kind for kind in KINDS},
}


def cost_models_of(name: str) -> list[str]:
    """The ways that a score needs, cheapest form: in-step where the step gives it."""
    return sorted({SIGNAL_COST_MODELS[need] for need in EVERY_SCORE[name].needs})


def measure_costs(
    model: str, data: Dataset, config: TrainConfig, *, epochs: int = 12, n_rounds: int = 3
) -> pd.DataFrame:
    """Time every way of getting signals, in turns.

    Parameters
    ----------
    model : str
        A name from ``models.MODELS``.
    config : TrainConfig
        What a plain training is.
    epochs : int
        Epochs of the trainings that are timed: costs over plain training hardly depend on it.
    n_rounds : int
        Times that all ways are taken in turn; medians count.

    Returns
    -------
    DataFrame
        A row a way: seconds (processor time of the whole config on this machine), measured and
        counted (in plain trainings).
    """
    if epochs < 1 or n_rounds < 1:
        raise ValueError(f"epochs={epochs}, n_rounds={n_rounds}: expected at least one of each")
    short = replace(config, epochs=min(epochs, config.epochs))
    longer = config.epochs / short.epochs
    train(model, data, replace(config, epochs=1), record=False)  # the first one pays for start-up
    rounds = []
    with thread_count(config.threads):  # processor time counts every thread
        for _ in range(n_rounds):
            seconds = {
                name: _seconds(way, model, data, config if way.fixed else short)
                for name, way in COST_MODELS.items()
            }
            rounds.append(
                {k: s if COST_MODELS[k].fixed else s * longer for k, s in seconds.items()}
            )
    table = pd.DataFrame(rounds)
    return pd.DataFrame({
        "seconds": table.median(),
        "measured": table.div(table["plain"], axis=0).median(),
        "counted": {name: way.counted(config.epochs) for name, way in COST_MODELS.items()},
    }).rename_axis("way")  # fmt: skip


def _seconds(way: CostModel, model: str, data: Dataset, config: TrainConfig) -> float:
    # Processor time does not mind what else runs, but knows nothing of a GPU.
    clock = time.perf_counter if on_gpu([config]) else time.process_time
    start = clock()
    way.run(model, data, config)
    return clock() - start


def cost_of_scores(ways: pd.DataFrame, *, stopped: float = 1.0) -> pd.DataFrame:
    """What each score costs, from what its ways cost.

    Parameters
    ----------
    ways : DataFrame
        From `measure_costs`.
    stopped : float
        Share of the epochs after which the peak was called: what SGAL and early CSG train.

    Returns
    -------
    DataFrame
        A row a score: seconds, measured and counted (in plain trainings, the training itself
        included where the score needs it), forwards (forward passes a sample and epoch beyond plain
        training, from what was measured; below 0 for what stops early).
    """
    if not 0 < stopped <= 1:
        raise ValueError(f"stopped is {stopped}; expected a share of the epochs, above 0, up to 1")
    rows = {
        name: ways.loc[cost_models_of(name)].sum() * (stopped if score.until_peak else 1)
        for name, score in EVERY_SCORE.items()
    }
    table = pd.DataFrame(rows).T.rename_axis("score")
    return table.assign(forwards=3 * (table["measured"] - 1))


def catalogue() -> pd.DataFrame:
    """One row a score: how it is computed, when it is measured, its direction, cost and source."""
    rows = {
        name: {
            "formula": score.formula,
            "variant": score.variant,
            "measured": _measured(score),
            "input": "normalised as the net sees it",
            "direction": "higher = more memorized",
            "never learned": score.never_learned,
            "cost": _counted(name),
            "source": score.source,
        }
        for name, score in EVERY_SCORE.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("score")


def _measured(score: Score) -> str:
    if set(score.needs) & set(KINDS):
        return RETRAINED
    return POST_HOC if score.post_hoc_only else f"{IN_STEP} or {POST_HOC}"


def _counted(name: str) -> str:
    formula = " + ".join(COST_MODELS[way].formula for way in cost_models_of(name))
    return f"({formula}) x peak / T" if EVERY_SCORE[name].until_peak else formula
