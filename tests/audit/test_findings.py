"""What scores suggest: the rule by hand, the words, and how its precision is counted."""

import numpy as np
import pandas as pd
import pytest

from memlens.audit import findings


def row(**changes):
    plain = {"label": "cat", "predicted_label": "cat", "p_label": 0.8, "p_predicted": 0.8,
             "aum": -2.0, "memorization": 0.0, "duplicate_of": "", "class_size": 50}  # fmt: skip
    return plain | changes


WRONG = {"predicted_label": "dog", "p_label": 0.05, "p_predicted": 0.5, "aum": 0.1}


def reading(**changes):
    return findings.suggest(pd.DataFrame([row(**changes)])).iloc[0]


def test_a_label_is_suspicious_only_if_all_three_speak_against_it():
    assert reading(**WRONG).reading == "mislabelled?"
    assert reading(**WRONG | {"aum": -0.1}).reading == ""  # the net that trained on it agrees
    assert reading(**WRONG | {"p_label": 0.051}).reading == ""  # not ten times as likely
    assert reading(p_label=0.0, p_predicted=0.9, aum=1.0).reading == ""  # predicted as labelled


def test_rare_is_memorized_under_a_label_that_seems_right():
    assert reading(memorization=0.25).reading == "rare?"
    assert reading(memorization=0.24).reading == ""
    assert reading(**WRONG | {"memorization": 0.9}).reading == "mislabelled?"


def test_easy_is_what_nets_know_without_having_seen_it():
    assert reading(p_label=0.95).reading == "easy"
    assert reading(p_label=0.95, memorization=0.3).reading == "rare?"
    assert reading(p_label=0.99, duplicate_of="a.png").reading == "duplicate?"


def test_two_readings_stand_side_by_side():
    both = reading(**WRONG | {"duplicate_of": "b.png"})
    assert both.reading == "mislabelled?, duplicate?" and "looks like b.png" in both.evidence


def test_the_evidence_is_the_numbers():
    told = reading(**WRONG | {"memorization": 0.6}).evidence
    assert "'dog' (0.50), not 'cat' (0.05)" in told and "led by 0.1 on average" in told
    assert "raises its probability by 0.60" in told
    assert "agree with its label (0.80)" in reading().evidence


def test_nothing_is_made_up_about_a_class_too_small_to_be_left_out():
    alone = reading(predicted_label="", p_label=np.nan, p_predicted=np.nan, memorization=np.nan,
                    aum=3.0, class_size=2)  # fmt: skip
    assert alone.reading == "rare?" and "one of 2 of its class" in alone.evidence


def many(n_planted, n_called_wrongly, n_missed):
    rows = [row(**WRONG | {"aum": 100.0 - i}) for i in range(n_planted)]
    rows += [row(**WRONG | {"aum": 1.0}) for _ in range(n_called_wrongly)]
    rows += [row() for _ in range(n_missed)]
    planted = [True] * n_planted + [False] * n_called_wrongly + [True] * n_missed
    return pd.DataFrame(rows), pd.Series(planted)


def test_precision_is_counted_from_the_top_of_the_list():
    table, planted = many(30, 10, 5)
    told = findings.precision(table, planted, pd.Series(False, table.index))
    assert (told["at_most"] == told["precision"]).all() and (told["known"] == 0).all()
    assert told["suggested"].tolist() == [4, 10, 20, 40]
    assert told["precision"].tolist() == [1.0, 1.0, 1.0, 0.75]
    assert told["recall"].iloc[-1] == 30 / 35
    assert (told["low"] < told["precision"]).all() and (told["high"] <= 1.0).all()


def test_what_was_suspicious_without_the_flips_makes_two_bounds_and_no_confidence():
    table, planted = many(30, 300, 0)
    known = pd.Series([False] * 30 + [True] * 300)
    told = findings.precision(table, planted, known).iloc[-1]
    assert told.suggested == 330 and told.known == 300
    assert told.precision == 30 / 330 and told.at_most == 1.0
    known.iloc[:5] = True  # flipped, and suspicious before: it is a flip all the same
    assert findings.precision(table, planted, known).iloc[-1].known == 300


def test_no_suggestion_has_no_precision():
    table, planted = many(0, 0, 5)
    told = findings.precision(table, planted, pd.Series(False, table.index))
    assert told["precision"].isna().all() and (told["suggested"] == 0).all()


def test_wilson_interval_by_hand():
    low, high = findings.wilson(8, 10)
    assert low == pytest.approx(0.4901, abs=2e-4) and high == pytest.approx(0.9433, abs=2e-4)
    assert findings.wilson(10, 10)[1] == pytest.approx(1.0)
    assert np.isnan(findings.wilson(0, 0)).all()
