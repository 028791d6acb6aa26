"""What the numbers of a sample suggest, with the evidence: mislabelled, duplicate, rare, easy.

A reading is a suggestion for a person to look at, never a verdict, and says what it rests on: what
nets that never saw the sample make of it, and how the net that trained on it went along. How often
it is right depends on the data; `precision` measures it on flips planted there.
"""

import operator

import numpy as np
import pandas as pd

from memlens.evaluation.validation import aligned

# Ours, and plain enough to be checked by eye: no sample is called wrong for being hard alone.
ODDS = 10.0  # another class must be so many times as likely as the label, to nets that never saw it
MEMORIZED = 0.25  # memorization from which Feldman and Zhang 2020 call a sample memorized
CERTAIN = 0.95  # held-out probability of its label from which a sample is easy
READINGS = ("mislabelled?", "duplicate?", "rare?", "easy")
CUTS = (0.1, 0.25, 0.5, 1.0)  # shares of the list of suggestions whose precision is told


def mislabelled(table: pd.DataFrame) -> pd.Series:
    """Which labels to look at, bool, a row a sample.

    ModelEnsemble that never saw the sample hold another class for ``ODDS`` times as likely as its label, and
    the net that trained on it preferred another class on average over the training (AUM, negated,
    is above 0; Pleiss et al. 2020). Samples without a held-out prediction are not called.
    """
    odds = table["p_predicted"] >= ODDS * table["p_label"]
    return odds & (table["predicted_label"] != table["label"]) & (table["aum"] > 0)


def suggest(table: pd.DataFrame) -> pd.DataFrame:
    """A reading and its evidence for every sample.

    Parameters
    ----------
    table : DataFrame, a row a sample
        label, predicted_label (text, "" where no net was kept from the sample), p_label,
        p_predicted (held out, [0, 1] or NaN), aum (negated: higher = more suspicious),
        memorization ([-1, 1] or NaN), duplicate_of (text, "" where there is none), class_size.

    Returns
    -------
    DataFrame, the same index
        reading: one of `READINGS`, two of them joined by ", " (a duplicate can be mislabelled,
        too), or "" for an ordinary sample; evidence: a sentence with the numbers.
    """
    wrong, copy = mislabelled(table), table["duplicate_of"] != ""
    judged = table["predicted_label"] != ""
    rare = ~wrong & ((table["memorization"] >= MEMORIZED) | ~judged)
    easy = ~wrong & ~rare & ~copy & (table["p_label"] >= CERTAIN)
    chosen = zip(*(mask.to_numpy() for mask in (wrong, copy, rare, easy)), strict=True)
    reading = [", ".join(r for r, on in zip(READINGS, row) if on) for row in chosen]
    evidence = [_evidence(row) for row in table.to_dict("records")]
    return pd.DataFrame({"reading": reading, "evidence": evidence}, index=table.index)


def _evidence(row: dict) -> str:
    parts = []
    if not row["predicted_label"]:
        parts.append(f"one of {row['class_size']} of its class: too few to judge it without itself")
    elif row["predicted_label"] == row["label"]:
        parts.append(f"nets that never saw it agree with its label ({row['p_label']:.2f})")
    else:
        parts.append(
            f"nets that never saw it say {row['predicted_label']!r} ({row['p_predicted']:.2f}), "
            f"not {row['label']!r} ({row['p_label']:.2f})"
        )
    if row["aum"] > 0:
        parts.append(f"in training another class led by {row['aum']:.1f} on average")
    if row["predicted_label"] and row["memorization"] >= MEMORIZED:
        parts.append(f"training on it raises its probability by {row['memorization']:.2f}")
    if row["duplicate_of"]:
        parts.append(f"looks like {row['duplicate_of']}")
    return "; ".join(parts)


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The samples called mislabelled, the most suspicious (by AUM, negated) first."""
    return table[mislabelled(table)].sort_values("aum", ascending=False, kind="stable")


def precision(table: pd.DataFrame, planted: pd.Series, known: pd.Series) -> pd.DataFrame:
    """How often the suggestions are right, at least and at most, measured on planted flips.

    Whether a label that is suspicious without the flips, too, is wrong is what the person wants to
    know, and cannot be known from here: such samples make the two bounds.

    Parameters
    ----------
    table : DataFrame
        As `suggest` takes it, of the data with the flips.
    planted : Series of bool, by the index of the table: what was flipped
    known : Series of bool
        What is suggested without the flips, too.

    Returns
    -------
    DataFrame, a row a `CUTS` share of the list, from its top
        share, suggested (count), planted (of them), known (of them, not planted), precision (the
        planted alone are right), low, high (its 95 % interval, Wilson's), at_most (the known are
        right as well), recall (of all that was planted)
    """
    planted = pd.Series(aligned(planted, table, "planted").astype(bool), table.index)
    known = pd.Series(aligned(known, table, "known").astype(bool), table.index)
    called = in_order(table).index
    hits = planted[called].to_numpy()
    before = known[called].to_numpy() & ~hits
    rows = []
    for share in CUTS:
        n = max(1, round(share * len(called))) if len(called) else 0
        right, open_ = int(hits[:n].sum()), int(before[:n].sum())
        low, high = wilson(right, n)
        rows.append({"share": share, "suggested": n, "planted": right, "known": open_,
                     "precision": right / n if n else np.nan, "low": low, "high": high,
                     "at_most": (right + open_) / n if n else np.nan,
                     "recall": right / max(1, planted.sum())})  # fmt: skip
    return pd.DataFrame(rows)


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Bounds of a share that was seen ``successes`` times in ``n`` (Wilson 1927); NaN for none."""
    if not 0 <= operator.index(successes) <= operator.index(n):
        raise ValueError(f"{successes} successes in {n}: pass counts, at most as many as there are")
    if not n:
        return np.nan, np.nan
    share = successes / n
    centre, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return float((centre - half) / (1 + z**2 / n)), float((centre + half) / (1 + z**2 / n))
