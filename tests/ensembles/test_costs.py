"""The catalogue is complete, costs are summed correctly, and flipped labels score high."""

import inspect
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import test_proxies
from hand_made import SCORES

import memlens as ml
from memlens.ensembles import costs, proxies
from memlens.ensembles.costs import (
    COST_MODELS,
    EVERY_SCORE,
    SIGNAL_COST_MODELS,
    cost_models_of,
    cost_of_scores,
    measure_costs,
)
from memlens.ensembles.retrainings import KINDS, fold_members, half_members, repeat_members
from memlens.tracking.scores import CATALOGUE, Score
from memlens.training.config import TrainConfig

ORACLES = SCORES | test_proxies.BY_HAND


def problems():
    """Describe what is missing for any score in the catalogue."""
    for name, score in costs.EVERY_SCORE.items():
        texts = (score.formula, score.variant, score.never_learned, score.source)
        if not all(isinstance(text, str) and text for text in texts) or not score.needs:
            yield f"{name} has no complete metadata"
        if not inspect.getdoc(score.function):
            yield f"{name} is not documented"
        if name not in ORACLES:
            yield f"{name} has no oracle"
        if not all(SIGNAL_COST_MODELS.get(need) in COST_MODELS for need in score.needs):
            yield f"{name} has no cost"


def test_every_score_has_metadata_an_oracle_and_a_cost():
    assert list(problems()) == []
    assert set(ORACLES) == set(EVERY_SCORE)
    assert {cost for name in EVERY_SCORE for cost in cost_models_of(name)} | {
        "plain",
        "post-hoc",
    } == set(COST_MODELS)


def documented(trace):
    """A planted score."""


GOOD = Score(documented, "sum", "all", "-", "nobody 2020", ("loss",))


@pytest.mark.parametrize(
    ("planted", "problem"),
    [
        (GOOD, "has no oracle"),
        (replace(GOOD, source=""), "has no complete metadata"),
        (replace(GOOD, never_learned=""), "has no complete metadata"),
        (replace(GOOD, needs=()), "has no complete metadata"),
        (replace(GOOD, needs=("loss", "unknown")), "has no cost"),
        (replace(GOOD, function=lambda trace: trace), "is not documented"),
    ],
)
def test_a_planted_incomplete_score_is_detected(monkeypatch, planted, problem):
    monkeypatch.setitem(costs.EVERY_SCORE, "planted", planted)
    assert f"planted {problem}" in set(problems())


def test_score_names_are_unique():
    assert len(EVERY_SCORE) == len(CATALOGUE) + len(proxies.PROXIES)


def test_the_catalogue_has_all_scores():
    table = ml.catalogue()
    assert list(table.index) == list(EVERY_SCORE)
    assert table.index.name == "score"
    assert (table.map(len) > 0).all(axis=None)
    assert set(table["direction"]) == {"higher = more memorized"}
    measured = table["measured"].str.split(" ").str[0]
    assert measured["csg"] == "in-step"
    assert measured[["curvature", "vog_class", "grand"]].tolist() == ["post-hoc"] * 3
    retrained = ["ssft", "label_error", "curvature_ssft", "grand_mean"]
    assert set(measured[retrained]) == {"after"}
    assert table.loc["csg", "cost"] == "1"
    assert table.loc["sgal", "cost"] == "(1) x peak / T"
    assert table.loc["vog", "cost"] == COST_MODELS["logit gradients"].formula
    both = [COST_MODELS[name].formula for name in ("curvature", "second_split")]
    assert table.loc["curvature_ssft", "cost"] == " + ".join(both)


def test_formulas_equal_counts():
    """The formulas are arithmetic except for n and T."""
    for name, cost in COST_MODELS.items():
        text = cost.formula.replace(", n = 10", "").replace("n", "10").replace("x", "*")
        value = eval(text, {"T": 60, "__builtins__": {}})
        assert cost.counted(60) == pytest.approx(value), name
    assert COST_MODELS["repeats"].counted(5) == 10  # it ends before the early epoch


def test_counts_of_retrainings_are_those_of_their_members(tiny):
    """Samples trained on, in multiples of all samples; a SAM step costs two."""
    share = {
        "folds": sum(member.mask.mean() for member in fold_members(tiny, 0)),
        "samis": sum(3 * member.mask.mean() for member in fold_members(tiny, 0, 10)),
        # each half, then the other, and one prediction (a third of a step) per epoch
        "second_split": sum(member.mask.mean() + 1 / 3 for member in half_members(tiny, 0)) + 1,
        "repeats": sum(member.mask.mean() for member in repeat_members(tiny, 0)) * 11 / 60,
    }
    assert set(share) == set(KINDS)
    for kind, value in share.items():
        assert COST_MODELS[kind].counted(60) == pytest.approx(value, rel=1e-3), kind


def powers_of_two():
    """Costs that are powers of two, so that a sum identifies its terms."""
    powers = 2.0 ** np.arange(len(COST_MODELS))
    columns = {"seconds": 10 * powers, "measured": powers, "counted": powers + 0.5}
    return pd.DataFrame(columns, index=pd.Index(COST_MODELS, name="cost_model"))


def test_the_cost_of_a_score_is_the_sum_of_its_cost_models():
    table_of_models = powers_of_two()
    table = cost_of_scores(table_of_models)
    assert list(table.index) == list(EVERY_SCORE)
    used = {
        "csl": ["step"],
        "in_confidence_max": ["step"],  # two signals, one cost model
        "sgal": ["step"],
        "curvature_last": ["curvature"],
        "curvature_norm": ["curvature"],
        "vog": ["logit gradients"],
        "vog_last5_class": ["logit gradients"],
        "grand": ["weight gradients"],
        "tracin_last_layer": ["weight gradients"],
        "ssft": ["second_split"],
        "samis_prob": ["samis"],
        "confident_learning": ["folds"],
        "el2n_mean": ["repeats"],
        "curvature_ssft": ["curvature", "second_split"],
    }
    for name, needed in used.items():
        expected = table_of_models.loc[needed].sum()
        found = table.loc[name]
        assert found[["seconds", "measured", "counted"]].tolist() == expected.tolist(), name
        assert found["forwards"] == 3 * (expected["measured"] - 1)


def test_scores_that_stop_early_cost_their_share_of_the_epochs():
    whole, stopped = (cost_of_scores(powers_of_two(), stopped=s) for s in (1.0, 0.25))
    for name, score in EVERY_SCORE.items():
        share = 0.25 if score.until_peak else 1
        assert stopped.loc[name, "seconds"] == share * whole.loc[name, "seconds"]
    assert (stopped["forwards"] != whole["forwards"]).sum() == 2
    plain = powers_of_two().assign(measured=1.0)
    assert cost_of_scores(plain, stopped=0.5).loc["sgal", "forwards"] == -1.5
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"stopped is .*; expected a share of the epochs"):
            cost_of_scores(plain, stopped=share)


def test_every_cost_model_is_measured(tiny):
    config = TrainConfig(epochs=4, batch_size=16)
    table = measure_costs("mlp", tiny, config, epochs=2, n_rounds=1)
    assert list(table.index) == list(COST_MODELS)
    assert table.index.name == "cost_model"
    assert (table["seconds"] > 0).all()
    assert table.loc["plain", "measured"] == 1
    assert table["counted"].tolist() == [cost.counted(4) for cost in COST_MODELS.values()]
    assert (table.loc[["curvature", "samis"], "measured"] > 1).all()
    assert np.isfinite(cost_of_scores(table)).all(axis=None)


def test_seconds_are_of_the_whole_config(tiny, monkeypatch):
    """Costs of some seconds per epoch, or of nine at once; the middle round of three is slow."""
    clock, rounds = [0.0], []

    def run(name, pace):
        def work(model, data, config):
            rounds.append(name)
            assert config.epochs == (40 if COST_MODELS[name].fixed else 8)
            slow = 5 if rounds.count(name) == 2 else 1
            clock[0] += slow * (9 if COST_MODELS[name].fixed else pace * config.epochs)

        return work

    for pace, (name, cost) in enumerate(list(COST_MODELS.items()), start=1):
        monkeypatch.setitem(COST_MODELS, name, replace(cost, run=run(name, pace)))
    monkeypatch.setattr(costs.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(costs, "train", lambda *_, **__: None)
    table = measure_costs("mlp", tiny, TrainConfig(epochs=40), epochs=8, n_rounds=3)
    assert rounds == 3 * list(COST_MODELS)  # in turns
    for pace, (name, cost) in enumerate(COST_MODELS.items(), start=1):
        assert table.loc[name, "seconds"] == (9 if cost.fixed else 40 * pace), name
        assert table.loc[name, "measured"] == pytest.approx((9 / 40) if cost.fixed else pace)


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"n_rounds": 0}])
def test_invalid_arguments_are_refused(tiny, bad):
    with pytest.raises(ValueError, match=r"epochs=.*, n_rounds=.*: expected 1 or more of each"):
        measure_costs("mlp", tiny, TrainConfig(), **bad)


VARIANCE = (
    "the variance of logit gradients does not depend on the label: AUROC 0.3 to 0.65 on digits"
)
NO_CLAIM = {
    "vog": VARIANCE,
    "vog_class": VARIANCE,
    "vog_last5": VARIANCE,
    "vog_last5_class": VARIANCE,
    "variability": "low for samples never learned: 0.73 on digits when all are",
    "samis_prob": "compares two held-out predictions, without the label",
}


@pytest.mark.parametrize("name", sorted(EVERY_SCORE))
def test_planted_flips_score_higher_than_clean_samples(flipped, name):
    """The sign of every column, except those that do not use the label."""
    _, frame, is_flip = flipped
    values = frame[name].to_numpy()
    assert values.std() > 0
    if name not in NO_CLAIM:
        assert values[is_flip].mean() > values[~is_flip].mean()


def test_in_step_and_post_hoc_have_the_same_sign(flipped):
    run, _, is_flip = flipped
    frame = run.posthoc_scores.drop(columns=[n for n in NO_CLAIM if n in run.posthoc_scores])
    assert (frame[is_flip].mean() > frame[~is_flip].mean()).all()


def test_the_exceptions_are_scores():
    assert set(NO_CLAIM) < set(EVERY_SCORE)
