"""Findings: the rule by hand, the evidence, and the measured precision."""

import numpy as np
import pandas as pd
import pytest

from memlens.audit import findings


def row(**changes):
    plain = {"label": "cat", "predicted_label": "cat", "p_label": 0.8, "p_predicted": 0.8,
             "aum": -2.0, "memorization": 0.0, "duplicate_of": "", "class_size": 50}  # fmt: skip
    return plain | changes


WRONG = {"predicted_label": "dog", "p_label": 0.05, "p_predicted": 0.5, "aum": 0.1}


def suggested(**changes):
    return findings.suggest(pd.DataFrame([row(**changes)])).iloc[0]


def test_a_label_is_suspicious_only_if_all_three_speak_against_it():
    assert suggested(**WRONG).finding == "mislabelled?"
    assert suggested(**WRONG | {"aum": -0.1}).finding == ""  # the net that trained on it agrees
    assert suggested(**WRONG | {"p_label": 0.051}).finding == ""  # not ten times as likely
    assert suggested(p_label=0.0, p_predicted=0.9, aum=1.0).finding == ""  # predicted as labelled


def test_rare_is_memorized_under_a_label_that_seems_right():
    assert suggested(memorization=0.25).finding == "rare?"
    assert suggested(memorization=0.24).finding == ""
    assert suggested(**WRONG | {"memorization": 0.9}).finding == "mislabelled?"


def test_easy_has_a_certain_held_out_prediction():
    assert suggested(p_label=0.95).finding == "easy"
    assert suggested(p_label=0.95, memorization=0.3).finding == "rare?"
    assert suggested(p_label=0.99, duplicate_of="a.png").finding == "duplicate?"


def test_a_sample_can_have_two_findings():
    both = suggested(**WRONG | {"duplicate_of": "b.png"})
    assert both.finding == "mislabelled?, duplicate?" and "looks like b.png" in both.evidence


def test_the_evidence_is_the_numbers():
    bounds = suggested(**WRONG | {"memorization": 0.6}).evidence
    assert (
        "held-out prediction: 'dog' (0.50), not 'cat' (0.05)" in bounds
        and "led by 0.1 on average" in bounds
    )
    assert "raises its probability by 0.60" in bounds
    assert "held-out prediction: its label (0.80)" in suggested().evidence


def test_a_class_too_small_for_folds_has_no_held_out_evidence():
    alone = suggested(predicted_label="", p_label=np.nan, p_predicted=np.nan, memorization=np.nan,
                    aum=3.0, class_size=2)  # fmt: skip
    assert alone.finding == "rare?" and "one of 2 of its class" in alone.evidence


def many(n_planted, n_called_wrongly, n_missed):
    rows = [row(**WRONG | {"aum": 100.0 - i}) for i in range(n_planted)]
    rows += [row(**WRONG | {"aum": 1.0}) for _ in range(n_called_wrongly)]
    rows += [row() for _ in range(n_missed)]
    planted = [True] * n_planted + [False] * n_called_wrongly + [True] * n_missed
    return pd.DataFrame(rows), pd.Series(planted)


def test_precision_is_counted_from_the_top_of_the_list():
    table, planted = many(30, 10, 5)
    bounds = findings.precision(table, planted, pd.Series(False, table.index))
    assert (bounds["at_most"] == bounds["precision"]).all() and (
        bounds["already_suspect"] == 0
    ).all()
    assert bounds["suggested"].tolist() == [4, 10, 20, 40]
    assert bounds["precision"].tolist() == [1.0, 1.0, 1.0, 0.75]
    assert bounds["recall"].iloc[-1] == 30 / 35
    assert (bounds["low"] < bounds["precision"]).all() and (bounds["high"] <= 1.0).all()


def test_suspects_without_the_flips_make_two_bounds():
    table, planted = many(30, 300, 0)
    known = pd.Series([False] * 30 + [True] * 300)
    row = findings.precision(table, planted, known).iloc[-1]
    assert row.suggested == 330 and row.already_suspect == 300
    assert row.precision == 30 / 330 and row.at_most == 1.0
    known.iloc[:5] = True  # flipped, and suspicious before: it is a flip all the same
    assert findings.precision(table, planted, known).iloc[-1].already_suspect == 300


def test_no_suggestion_has_no_precision():
    table, planted = many(0, 0, 5)
    bounds = findings.precision(table, planted, pd.Series(False, table.index))
    assert bounds["precision"].isna().all() and (bounds["suggested"] == 0).all()


def test_the_interval_is_wilson_s():
    table, planted = many(8, 2, 0)
    row = findings.precision(table, planted, pd.Series(False, table.index)).iloc[-1]
    assert (row.low, row.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # by hand
