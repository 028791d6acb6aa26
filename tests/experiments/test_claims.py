"""The table of claims: every claim once, with ranges that can be read and be missed."""

import re
import tomllib
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlens.experiments import claims as claims_module
from memlens.experiments import paper
from memlens.experiments.claims import NOTEBOOKS, Claim, Part, Range, claim, claims

NUMBERS = st.floats(-1e3, 1e3).map(lambda x: float(f"{x:.3f}"))


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("at least 0.62", 0.62, np.inf), ("at most -3", -np.inf, -3), ("-3 to 3.5", -3, 3.5)],
)
def test_a_range_is_read_and_written(text, low, high):
    assert Range.parse(text) == (low, high)
    assert str(Range.parse(text)) == text


@given(NUMBERS, NUMBERS)
def test_reading_undoes_writing(a, b):
    for expected in (Range(low=a), Range(high=b), Range(min(a, b), max(a, b) + 1)):
        np.testing.assert_allclose(Range.parse(str(expected)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "text", ["", "0.6", "above 0.6", "at least", "3 to -3", "1 to 1", "at least 0.6 "]
)
def test_another_range_is_refused(text):
    with pytest.raises(ValueError, match="write 'at least 0.6'"):
        Range.parse(text)


def test_claims_are_read_in_order_with_their_papers():
    table = claims()
    assert len(table) > 70
    order = [NOTEBOOKS.index(entry.notebook) for entry in table.values()]
    assert order == sorted(order)
    first = table["csg-table1-agreement"]
    assert isinstance(first, Claim) and (first.paper, first.where) == ("CSG", "Table 1")
    assert first.parts["csg"] == Part("Pearson of CSG", Range(low=0.62))
    assert {entry.paper for entry in table.values()} == set(paper.PAPERS)


def test_statements_are_sentences_and_stand_once():
    statements = [entry.statement for entry in claims().values()]
    assert len(set(statements)) == len(statements)
    for statement in statements:
        assert statement[0].isupper() and statement[-1] in ".)" and len(statement.split()) > 3


def test_an_id_begins_with_the_paper():
    for name, entry in claims().items():
        assert re.fullmatch(r"[a-zA-Z0-9]+(-[a-zA-Z0-9]+)+", name)
        assert name.split("-")[0] == entry.paper.lower()


def test_every_part_can_be_missed():
    for entry in claims().values():
        for part in entry.parts.values():
            assert np.isfinite(part.expected).any() and part.quantity


def test_an_unknown_claim_names_those_of_the_place():
    with pytest.raises(ValueError, match=r"'csg-table1-x'; .*csg-table1-agreement.*csg-table1-vog"):
        claim("csg-table1-x")
    with pytest.raises(ValueError, match="curvature-fig7"):
        claim("nothing")


GOOD = {
    "source": "CSG Table 1", "statement": "It holds here.", "notebook": "02_similarity",
    "parts": {"csg": ["Pearson", "at least 0.6"]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "CGS Table 1"}, "begin with CSG"),
        ({"notebook": "02"}, "'02' is no notebook"),
        ({"needs": "a GPU"}, "give it parts, or"),
        ({"parts": {"csg": ["Pearson", "high"]}}, "range 'high'"),
        ({"verdict": "holds"}, "unknown fields verdict"),
        ({"statement": None}, "lacks statement"),
        ({"parts": None}, "give it parts, or"),
    ],
)
def test_a_row_with_a_fault_is_named(change, message):
    fields = {k: v for k, v in (GOOD | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        claims_module._claim("csg-x", fields)
    claims_module._claim("csg-x", GOOD)


def test_the_table_has_each_id_once():
    text = files("memlens.experiments").joinpath("claims.toml").read_text(encoding="utf-8")
    heads = re.findall(r"^\[([^\]]+)\]$", text, flags=re.MULTILINE)
    assert heads == list(tomllib.loads(text))
