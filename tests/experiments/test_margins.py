"""Margins by hand, what has none, and the stored margins of every notebook."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from memlens.experiments import margins
from memlens.experiments.margins import (
    MIN_MARGIN,
    Estimate,
    above,
    below,
    between,
    close,
    exact,
    margin_table,
    over,
)

ROOT = Path(__file__).resolve().parents[2]


# ---------------------------------------------------------------- comparisons


@pytest.mark.parametrize(
    ("check", "holds", "margin"),
    [
        (above([2.0, 4.0, 6.0], 3), True, 0.5),  # mean 4, spread 2
        (above([2.0, 4.0, 6.0], 10), False, 3.0),
        (below([2.0, 4.0, 6.0], 10), True, 3.0),
        (between([2.0, 4.0, 6.0], 0, 5), True, 0.5),
        (between([2.0, 4.0, 6.0], -9, -4), False, 4.0),
        (above(torch.tensor([2.0, 4.0, 6.0]), 3), True, 0.5),
        (above(pd.Series([2, 4, 6]), 3), True, 0.5),
        (above(4.0, 3), True, np.nan),  # one number has no spread
        (above([1, 1, 1], 0.5), True, np.inf),
        (above([1, 1, 1], 1), True, 0.0),
        (above([np.nan, 1.0], 0), False, np.nan),
        (exact(True), True, np.inf),
        (exact(np.False_), False, np.inf),
    ],
)
def test_a_comparison_by_hand(check, holds, margin):
    assert check.holds is holds
    np.testing.assert_allclose(check.margin, margin)


def test_both_ends_belong_to_the_range():
    assert above(1, 1).holds and below(1, 1).holds and between(0, 0, 1).holds


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.7634, 0.7988, 0.7712], "0.78 (0.76 to 0.80, 3 seeds)"),
        (pd.Series([0.7634, 0.8012], index=["b", "a"]), "0.78 (0.76 to 0.80, 2 seeds)"),
        ([-0.0004, 0.0123], "0.006 (0.000 to 0.012, 2 seeds)"),  # no minus before a zero
        ([0.78], "0.780 (0.780 to 0.780, 1 seed)"),
        ([19, 26, 24], "23.0 (19.0 to 26.0, 3 seeds)"),
        ([0, 0], "0 (0 to 0, 2 seeds)"),
        ([1234.5, 98765.4], "50000 (1234 to 98765, 2 seeds)"),
        ([0.7, np.nan], "not measured"),
    ],
)
def test_values_of_seeds_are_written_as_mean_and_range(values, expected):
    assert str(over(values)) == expected


def test_an_estimate_names_what_varies():
    assert str(over([1.5, 2.5], "target")) == "2.0 (1.5 to 2.5, 2 targets)"
    assert str(Estimate(0.914, 0.9021, 0.9312, "samples")) == "0.914 (0.902 to 0.931, samples)"
    assert over([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0, "3 seeds")


@pytest.mark.parametrize("values", [[], [[1.0]]])
def test_values_of_another_shape_are_refused(values):
    with pytest.raises(ValueError, match="shape"):
        over(values)


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e9])
def test_a_margin_has_no_unit(factor):
    values = np.array([1.0, 2.0, 4.0])
    assert above(values * factor, 0.5 * factor).margin == pytest.approx(above(values, 0.5).margin)
    assert below(-values, -0.5).margin == pytest.approx(above(values, 0.5).margin)


@pytest.mark.parametrize(
    ("found", "share"),
    [([1.0, 2.0], 0.0), ([1.0, 2.001], 0.5), ([1.0, 2.004], 2.0), ([1.0, np.nan], np.nan)],
)
def test_close_measures_the_largest_difference_in_tolerances(found, share):
    check = close(found, [1.0, 2.0], rtol=1e-3, atol=0)
    np.testing.assert_allclose(check.measured, share, atol=1e-9)
    assert check.holds == np.allclose(found, [1.0, 2.0], rtol=1e-3, atol=0)


def test_close_takes_what_is_equal_without_a_tolerance():
    assert close([0.0, np.nan, np.inf], [0.0, np.nan, np.inf], rtol=0, atol=0).measured == 0
    assert not close([0.1], [0.0], rtol=1, atol=0).holds


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: above([], 0), "one number, or one per seed"),
        (lambda: above([[1.0, 2.0]], 0), r"shape \(1, 2\)"),
        (lambda: above(1, np.nan), "expected a finite number"),
        (lambda: between(1, 2, 2), "low must be below high"),
        (lambda: close([1, 2], [1]), "shapes"),
        (lambda: close([], []), "shapes"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("answer", [1, "yes", None, np.array([True])])
def test_exact_takes_one_truth_value(answer):
    with pytest.raises(TypeError, match="one True or False"):
        exact(answer)


# ---------------------------------------------------------------- over machines


def machine(*measured):
    checks = [above([m - 0.1, m + 0.1], 0.5) for m in measured[:-1]]
    entries = [("check", f"f{k}", [check]) for k, check in enumerate(checks)]
    single = ("claim", "one number", [above(measured[-1], 0), exact(True)])
    return margin_table([*entries, single]).assign(notebook="03")


def test_the_margin_takes_the_larger_spread():
    joined = margins.over_machines(
        {"here": machine(1.0, 1.0, 3.0), "there": machine(1.0, 2.0, 5.0)}
    )
    seeds, machines = 0.1 * 2**0.5, 0.5 * 2**0.5
    np.testing.assert_allclose(joined["over_seeds"], [seeds, seeds, np.nan, 0])
    np.testing.assert_allclose(joined["over_machines"], [0, machines, 2 * machines, 0])
    np.testing.assert_allclose(
        joined["margin"], [0.5 / seeds, 0.5 / machines, 3 / (2 * machines), np.inf]
    )
    assert list(joined["n_machines"]) == [2, 2, 2, 2]


def test_a_check_that_a_machine_lacks_is_counted():
    joined = margins.over_machines({"here": machine(1.0, 1.0, 3.0), "there": machine(1.0, 3.0)})
    assert list(joined["n_machines"]) == [2, 1, 2, 2]


def test_two_checks_of_one_name_are_refused():
    twice = pd.concat([machine(1.0, 3.0), machine(1.0, 3.0)])
    with pytest.raises(ValueError, match="share a name: .*'f0'"):
        margins.over_machines({"here": twice})


# ---------------------------------------------------------------- the notebooks


def unsafe_checks(stored, checks):
    """Checks of a notebook that are too close to their threshold, or without a stored margin."""
    current = checks.loc[checks["kind"] == "check", ["notebook", "name", "low", "high"]]
    known = stored[stored["kind"] == "check"]
    for table in (current := current.copy(), known := known.copy()):
        ends = table[["low", "high"]]
        table[["low", "high"]] = ends.map(lambda end: float(f"{end:.6g}"))  # as they are stored
    joined = current.merge(known, on=["notebook", "name", "low", "high"], how="left")
    n_machines = known["n_machines"].max()  # a check that one of them lacks is not safe
    bad = ~(joined["margin"] >= MIN_MARGIN) | ~(joined["n_machines"] >= n_machines)
    return joined.loc[bad, ["notebook", "name", "margin", "n_machines"]].values.tolist()


def stored_checks():
    files = sorted((ROOT / "figures/fashion_small").glob("[0-9]*_checks.csv"))
    tables = [pd.read_csv(file).assign(notebook=file.name[:2]) for file in files]
    return pd.concat(tables, ignore_index=True)


def test_every_check_of_every_notebook_is_far_enough_from_its_threshold():
    stored = pd.read_csv(ROOT / "figures/fashion_small/margins.csv", dtype={"notebook": str})
    checks = stored_checks()
    numbers = {path.name[:2] for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert set(checks["notebook"]) == numbers
    assert unsafe_checks(stored, checks) == [], (
        "too close: use report.observe, or run make test-elsewhere"
    )


def test_every_claim_of_every_notebook_has_its_margin_recorded():
    stored = pd.read_csv(ROOT / "figures/fashion_small/margins.csv", dtype={"notebook": str})
    claims = stored[stored["kind"].isin(["claim", "discrepancy"])]
    spread = claims["over_seeds"].notna() | (claims["n_machines"] > 1)  # else there is one value
    assert spread.mean() > 0.5 and claims.loc[spread, "margin"].notna().all()


def test_a_check_that_is_too_close_or_unknown_is_found():
    reference = machine(1.0, 0.6, 3.0)
    stored = margins.over_machines(dict.fromkeys("abcd", reference))
    entries = [("check", f"f{k}", [above(1, 0.5)]) for k in range(3)]
    checks = margin_table(entries).assign(notebook="03")
    found = [name for _, name, *_ in unsafe_checks(stored, checks)]
    assert found == ["f1", "f2"]  # 0.7 spreads; not there
    lacking = stored.assign(n_machines=[3, 4, 4, 4][: len(stored)])
    assert unsafe_checks(lacking, checks[:1])
    moved = checks.assign(low=0.4)  # a threshold that was changed since
    assert len(unsafe_checks(stored, moved)) == 3


def test_checks_are_printed_in_compared_cells_and_observations_in_others():
    """Each stored check is printed in a compared cell, each observation in another."""
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        checked, other = "", ""
        for cell in cells:
            text = "".join("".join(o.get("text", "")) for o in cell.get("outputs", []))
            if "nbval-check-output" in cell["metadata"].get("tags", []):
                checked += text
            else:
                other += text
        checks = stored_checks().query("notebook == @path.name[:2]")
        for check in checks.query("kind == 'check'").itertuples():
            assert f"{check.name}: yes" in checked.splitlines(), check.name
        for check in checks.query("kind == 'observation'").itertuples():
            assert f"{check.name}: " in other and f"{check.name}: " not in checked, check.name
