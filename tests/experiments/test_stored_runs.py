"""Comparison of new numbers with stored ones: each planted difference is found and named."""

import numpy as np
import pandas as pd
import pytest

from memlens.experiments import stored_runs
from memlens.experiments.stored_runs import (
    changed_verdicts,
    describe,
    figure_differences,
    largest_difference,
)

OLD = pd.DataFrame({"epoch": [0, 1, 2], "loss": [2.0, 1.0, 0.0], "net": ["a", "a", "b"]})


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (OLD, (0.0, "")),
        (OLD.assign(loss=[2.0, 1.1, 0.0]), (0.05, "loss")),  # of a range of 2
        (OLD.assign(loss=[2.0, 1.1, 0.0], epoch=[0, 1, 3]), (0.5, "epoch")),
        (OLD.assign(loss=[2.0, np.nan, 0.0]), (np.inf, "loss")),
        (OLD.assign(loss=[2.0, np.inf, 0.0]), (np.inf, "loss")),
        (OLD.assign(net=["a", "b", "b"]), (np.inf, "net")),
        (OLD[:2], (np.inf, "2 rows, before 3")),
        (OLD.rename(columns={"loss": "cost"}), (np.inf, "other columns")),
    ],
)
def test_the_largest_difference_is_found_and_named(new, expected):
    share, where = largest_difference(OLD, new)
    assert (pytest.approx(share), where) == expected


def test_rows_with_names_are_compared_by_name():
    old = pd.DataFrame({"score": ["csg", "csl"], "pearson": [0.8, 0.7]})
    assert largest_difference(old, old[::-1]) == (0.0, "")
    assert largest_difference(old, old[::-1].assign(pearson=[0.7, 0.85]))[0] == pytest.approx(0.5)
    twice = pd.DataFrame({"net": ["a", "a"], "loss": [1.0, 2.0]})
    assert largest_difference(twice, twice[::-1].reset_index(drop=True)) == (1.0, "loss")


def test_a_column_with_several_lines_of_names_is_still_one_of_numbers():
    old = pd.DataFrame({"mean": ["peak", "1.0", "3.0"]})
    assert largest_difference(old, old.assign(mean=["peak", "1.0", "2.0"])) == (0.5, "mean")
    assert largest_difference(old, old.assign(mean=["last", "1.0", "3.0"])) == (np.inf, "mean")


def test_a_constant_column_is_measured_by_its_size():
    one, two = (pd.DataFrame({"x": [value, value]}) for value in (4.0, 5.0))
    assert largest_difference(one, two) == (0.25, "x")
    assert largest_difference(one * 0, two)[0] == 5.0
    gaps = pd.DataFrame({"x": [np.nan, np.nan]})
    assert largest_difference(gaps, gaps) == (0.0, "")


def test_only_figures_that_were_there_before_are_compared():
    old = {"03_trade": OLD, "03_claims": OLD, "03_gone": OLD}
    new = {"03_trade": OLD * 1, "03_claims": OLD[:1], "03_checks": OLD, "03_new": OLD}
    assert figure_differences(old, new) == {"03_trade": (0.0, "")}


def claims(**of):
    rows = [["claim", text, verdict] for text, verdict in of.items()]
    return {"02_claims": pd.DataFrame(rows, columns=[*stored_runs.CLAIM, "verdict"])}


def test_a_verdict_that_changed_is_listed_with_both():
    old = claims(agrees="holds", cheap="holds", gone="holds")
    new = claims(agrees="holds in part", cheap="holds", new="holds")
    assert changed_verdicts(old, new) == ["agrees: holds in part, before: holds"]
    assert changed_verdicts(old, old) == changed_verdicts({}, new) == []
    assert changed_verdicts({"02_claims": OLD}, new) == []  # of another form


def test_the_report_names_the_largest_first():
    found = {
        "a": (0.0, ""), "b": (1e-6, "x"), "c": (np.inf, "2 rows, before 3"),
        "long_name": (0.25, "loss"),
    }  # fmt: skip
    text = describe(found, ["CSG Table 1 (agrees): a, before: b"])
    assert text.splitlines() == [
        "Compared with the stored numbers: 1 of 4 figures equal; largest difference of the "
        "others, as a share of its column's range:",
        "  c          other rows or text  2 rows, before 3",
        "  long_name     25.0%  loss",
        "  b            < 0.1%  x",
        "Verdicts that changed: 1",
        "  CSG Table 1 (agrees): a, before: b",
    ]
    assert describe({"a": (0.0, "")}, []).endswith(
        "1 of 1 figures equal\nVerdicts that changed: none"
    )
    assert describe({}, []) == "No stored figures to compare with."


def test_tables_are_read_by_number_and_other_files_are_left_out(tmp_path):
    (tmp_path / "03_a.csv").write_text("# a caption\n# of two lines\nx,y\n1,NA\n")
    (tmp_path / "03_empty.csv").write_text("")
    (tmp_path / "03_binary.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "04_b.csv").write_text("x\n1\n")
    found = stored_runs.read_tables(tmp_path, "03")
    assert list(found) == ["03_a"]
    assert stored_runs.read_tables(tmp_path / "nowhere", "03") == {}
