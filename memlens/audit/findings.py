"""Findings: samples that may be mislabelled, duplicate, rare or easy, with the evidence.

A finding is a suggestion to review, not a verdict. It is based on held-out predictions, from
networks trained without the sample and its duplicates, and on how the network trained with the
sample learned it. The precision depends on the data; `precision` measures it on planted flips.
"""

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from memlens.evaluation.validation import aligned

# Ours, and simple enough to check by eye. A sample is not called mislabelled only for being hard.
ODDS = 10.0  # held-out probability of another class over that of the label, at least
MEMORIZED = 0.25  # memorization from which Feldman and Zhang 2020 call a sample memorized
CERTAIN = 0.95  # held-out probability of its label from which a sample is easy
FINDINGS = ("mislabelled?", "duplicate?", "rare?", "easy")
CUTS = (0.1, 0.25, 0.5, 1.0)  # shares of the list of suspects whose precision is measured


def mislabelled(table: pd.DataFrame) -> pd.Series:
    """Return which labels to review, bool, one per row of the table, see `suggest`.

    The held-out predictions make another class ``ODDS`` times as likely as the label, and the
    network trained with the sample preferred another class on average over the training (negated
    AUM above 0; Pleiss et al. 2020). False without a held-out prediction.
    """
    odds = table["p_predicted"] >= ODDS * table["p_label"]
    return odds & (table["predicted_label"] != table["label"]) & (table["aum"] > 0)


def suggest(table: pd.DataFrame) -> pd.DataFrame:
    """Return the findings and the evidence for every sample.

    Parameters
    ----------
    table : DataFrame, one row per sample
        label, predicted_label (text, "" without a held-out prediction), p_label, p_predicted (held
        out, [0, 1] or NaN), aum (negated: higher = more suspicious), memorization ([-1, 1] or NaN),
        duplicate_of (text, "" without a duplicate), class_size.

    Returns
    -------
    DataFrame, same index
        finding: one of `FINDINGS`, two joined by ", " (a duplicate can also be mislabelled), or ""
        for an ordinary sample; evidence: a sentence with the numbers.
    """
    wrong, copy = mislabelled(table), table["duplicate_of"] != ""
    is_held_out = table["predicted_label"] != ""
    rare = ~wrong & ((table["memorization"] >= MEMORIZED) | ~is_held_out)
    easy = ~wrong & ~rare & ~copy & (table["p_label"] >= CERTAIN)
    masks = pd.concat([wrong, copy, rare, easy], axis=1).to_numpy()
    found = [", ".join(np.array(FINDINGS)[row]) for row in masks]
    evidence = [_evidence(row) for row in table.to_dict("records")]
    return pd.DataFrame({"finding": found, "evidence": evidence}, index=table.index)


def _evidence(row: dict) -> str:
    parts = []
    if not row["predicted_label"]:
        parts.append(f"one of {row['class_size']} of its class: too few for a held-out prediction")
    elif row["predicted_label"] == row["label"]:
        parts.append(f"held-out prediction: its label ({row['p_label']:.2f})")
    else:
        parts.append(
            f"held-out prediction: {row['predicted_label']!r} ({row['p_predicted']:.2f}), "
            f"not {row['label']!r} ({row['p_label']:.2f})"
        )
    if row["aum"] > 0:
        parts.append(f"in training another class led by {row['aum']:.1f} on average")
    if row["predicted_label"] and row["memorization"] >= MEMORIZED:
        parts.append(f"training on it raises its probability by {row['memorization']:.2f}")
    if row["duplicate_of"]:
        parts.append(f"looks like {row['duplicate_of']}")
    return "; ".join(parts)


def sort_suspects(table: pd.DataFrame) -> pd.DataFrame:
    """Return the samples suggested as mislabelled, most suspicious (by negated AUM) first."""
    return table[mislabelled(table)].sort_values("aum", ascending=False, kind="stable")


def precision(table: pd.DataFrame, planted: pd.Series, already_suspect: pd.Series) -> pd.DataFrame:
    """Measure lower and upper bounds of the precision of the suggestions, on planted flips.

    A label that is also suspicious without the flips may be right or wrong. Such samples make the
    difference between the bounds.

    Parameters
    ----------
    table : DataFrame
        As for `suggest`, of the data with flips.
    planted : Series of bool, by the index of the table
        The flips.
    already_suspect : Series of bool, by the index of the table
        The suggestions without the flips.

    Returns
    -------
    DataFrame, one row per share in `CUTS`, counted from the top of the list
        share, suggested (count), planted (flips among them), already_suspect (of the others),
        precision (only flips are right), low, high (its 95 % Wilson interval), at_most (the already
        suspect are right as well), recall (of all flips); shares in [0, 1], NaN if none is
        suggested.
    """
    flips = aligned(planted, table, "planted").astype(bool)
    others = aligned(already_suspect, table, "already_suspect").astype(bool)
    planted, before = pd.Series(flips, table.index), pd.Series(others, table.index)
    suspects = sort_suspects(table).index
    is_flip = planted[suspects].to_numpy()
    is_open = before[suspects].to_numpy() & ~is_flip
    rows = []
    for share in CUTS:
        n = max(1, round(share * len(suspects))) if len(suspects) else 0
        flips, open_ = int(is_flip[:n].sum()), int(is_open[:n].sum())
        low, high = (np.nan, np.nan)
        if n:
            low, high = binomtest(flips, n).proportion_ci(method="wilson")
        rows.append({"share": share, "suggested": n, "planted": flips, "already_suspect": open_,
                     "precision": flips / n if n else np.nan, "low": low, "high": high,
                     "at_most": (flips + open_) / n if n else np.nan,
                     "recall": flips / max(1, planted.sum())})  # fmt: skip
    return pd.DataFrame(rows)
