"""The table of claims gathers what the notebooks wrote, and its copy in CLAIMS.md is current."""

import re
from decimal import Decimal
from pathlib import Path

import mistune  # comes with jupyter's nbconvert: a parser of markdown that we did not write
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlens.__main__ import main
from memlens.experiments import claims as claims_module
from memlens.experiments import paper
from memlens.experiments.claims import (
    END,
    NOTEBOOKS,
    START,
    Claim,
    claims_table,
    interval_text,
    to_markdown,
)
from memlens.experiments.margins import above, exact
from memlens.experiments.notebook import NotebookReport
from memlens.storage import store

ROOT = Path(__file__).resolve().parents[2]
CONTENT = f"# Title\n\nabove\n\n{START}\nstale\n{END}\n\nbelow\n"


@pytest.fixture
def figures(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures" / "fashion_small"


@pytest.fixture
def left(figures, capsys):
    """The claims of two notebooks, written in the reverse order."""
    late = NotebookReport("04_mislabel", "fashion_small")
    late.claim(
        "CSL poster",
        "CSL finds flips",
        "0.99 | 0.98",
        [exact(True), exact(False)],
        interval=(0.1, 0.4),
    )
    late.claim("CSG Table 4", "CSG finds flips", "0.995", above([0.994, 0.996], 0.99))
    late.discrepancy("csg-table2-ece", "on noise 0.3 and 0.2", exact(False))
    late.claims()
    early = NotebookReport("02_similarity", "fashion_small")
    early.discrepancy("csg-table2-ece", "0.018 and 0.012", exact(True))
    early.discrepancy("csg-fz-architecture", "no published scores here", None)
    early.claim("CSG Table 1", "CSG agrees", "0.78", exact(True), interval=[0.76, 0.8, 0.78])
    early.claim("Curvature 4.3", "it\nfalls", "0.5", exact(False))
    early.claims()
    capsys.readouterr()
    return figures


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ("", ""),
        (" 95 %: 0.1 to 0.2 ", "95 %: 0.1 to 0.2"),
        ((0.7634, 0.8012), "0.76 to 0.80"),
        ([0.7634, 0.7988, 0.7712], "0.76 to 0.80, 3 seeds"),
        (np.array([0.7634, 0.8012]), "0.76 to 0.80, 2 seeds"),  # no interval: a value a seed
        (pd.Series([0.7634, 0.8012], index=["b", "a"]), "0.76 to 0.80, 2 seeds"),
        ((-0.0041, 0.0123), "-0.004 to 0.012"),
        ((-0.0004, 0.0123), "0.000 to 0.012"),  # no minus before a zero
        ((0.9951, 0.9958), "0.9951 to 0.9958"),
        ([0.78], "0.7800, 1 seed"),
        ([0.78, 0.78, 0.78], "0.7800, 3 seeds"),
        ([19, 26, 24], "19 to 26, 3 seeds"),
        (np.array([2, 3, 3]), "2 to 3, 3 seeds"),
        ([2.0, 2.0], "2, 2 seeds"),
        ([0, 0], "0, 2 seeds"),
        ((1234.5, 98765.4), "1234 to 98765"),
        ((0.1, 0.4), "0.1 to 0.4"),
        ((1.5e-6, 2.5e-6), "0.0000015 to 0.0000025"),
        ((0.78, 0.78 + 1e-12), "0.7800"),
    ],
)
def test_intervals_are_written_with_the_digits_that_their_width_allows(interval, expected):
    assert interval_text(interval) == expected


def test_the_unit_of_the_values_is_written():
    assert interval_text([1, 4], unit="target") == "1 to 4, 2 targets"
    assert interval_text((1, 4), unit="target") == "1 to 4"


@pytest.mark.parametrize(
    "interval",
    [(), [], 0.7, None, (0.1,), (0.1, 0.2, 0.3), (0.2, 0.1), [0.1, np.nan], (0, np.inf),
     [[0.1, 0.2]], ["a"]],
)  # fmt: skip
def test_other_values_are_refused(interval):
    with pytest.raises((ValueError, TypeError)):
        interval_text(interval)


@given(st.tuples(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4)))
def test_a_written_interval_is_off_by_less_than_a_tenth_of_its_width(case):
    low, width = case
    high = low + width
    ends = [Decimal(end) for end in interval_text((low, high)).split(" to ")]
    if len(ends) == 2 and width > 1e-3 * max(abs(low), abs(high)):
        allowed = max(0.17 * width, 0.5) if width > 10 else 0.17 * width
        assert abs(float(ends[0]) - low) <= allowed
        assert abs(float(ends[1]) - high) <= allowed


# ---------------------------------------------------------------- gathering


def test_claims_come_in_notebook_order_and_then_every_discrepancy(left):
    table = claims_table("fashion_small")
    assert list(table.columns) == [
        "notebook", "kind", "paper", "where", "claim", "measured", "interval", "margin",
        "verdict",
    ]  # fmt: skip
    claims = table[table["kind"] == "claim"]
    assert list(claims["margin"]) == ["exact", "exact", "exact", "3.5"]
    assert claims.drop(columns=["kind", "margin"]).values.tolist() == [
        ["02_similarity", "CSG", "Table 1", "CSG agrees", "0.78", "0.76 to 0.80, 3 seeds", "holds"],
        ["02_similarity", "curvature", "section 4.3", "it\nfalls", "0.5", "", "does not hold here"],
        ["04_mislabel", "CSL", "poster", "CSL finds flips", "0.99 | 0.98", "0.1 to 0.4",
         "holds in part"],
        ["04_mislabel", "CSG", "Table 4", "CSG finds flips", "0.995", "", "holds"],
    ]  # fmt: skip
    discrepancies = table[table["kind"] == "discrepancy"]
    assert list(table["kind"]) == ["claim"] * 4 + ["discrepancy"] * len(discrepancies)
    assert list(discrepancies["where"].unique()) == list(paper.discrepancies()["id"])
    assert len(discrepancies) == len(paper.discrepancies()) + 1  # two notebooks report on one
    results = discrepancies.set_index("where").loc["csg-table2-ece"]
    assert results[["notebook", "measured", "verdict"]].values.tolist() == [
        ["02_similarity", "0.018 and 0.012", "seen here too"],
        ["04_mislabel", "on noise 0.3 and 0.2", "not seen here"],
    ]
    untaken = discrepancies.set_index("where").loc["csg-table1-samis"]
    assert (untaken[["notebook", "measured", "interval", "verdict"]] == "").all()
    assert untaken["paper"] == "CSG" and "0.53" in untaken["claim"]
    assert not table.isna().any(axis=None)


def test_a_discrepancy_has_its_current_text(left):
    file = left / "02_claims.csv"
    file.write_text(file.read_text().replace("ECE is worse", "an earlier wording"))
    assert not claims_table()["claim"].str.contains("earlier wording").any()


def test_words_that_look_like_missing_values_stay_words(figures):
    report = NotebookReport("00_primer", "fashion_small")
    report.claim("CSG Table 1", "NA", "nan", exact(True))
    report.claims()
    assert claims_table().loc[0, ["claim", "measured"]].tolist() == ["NA", "nan"]


def test_an_error_without_claims_names_the_command(figures):
    message = "no claims in .*fashion_small; run `memlens reproduce"
    with pytest.raises(FileNotFoundError, match=message):
        claims_table()


def test_notebooks_that_left_nothing_are_named(left):
    NotebookReport("00_primer", "fashion_small").claims()  # an empty file is as good as none
    text = to_markdown(claims_table())
    last = text.splitlines()[-1]
    assert last == f"Nothing from {', '.join(n for n in NOTEBOOKS if n[:2] not in ('02', '04'))}."
    assert claims_module.summary(claims_table()).endswith(last)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("source,statement,measured,verdict\na,b,c,holds\n",
         r"02_claims\.csv has the columns source, statement.*memlens reproduce --only 02"),
        ("", r"02_claims\.csv is not a table of claims.*memlens reproduce --only 02"),
        ("claim,CGS,Table 1,a,b,,,holds", "unknown kind, paper.*: claim, CGS, Table 1: holds"),
        ("claim,CSG,Table 1,a,b,,,seems to hold", "unknown.*: seems to hold"),
        ("claim,CSG,Table 1,a,b,,,seen here too", "unknown.*: seen here too"),
        ("discrepancy,CSG,csg-table2,a,b,,,seen here too", "unknown.*: discrepancy, CSG"),
        ("discrepancy,CSG,csg-table2-ece,a,b,,,holds", "unknown.*: holds"),
        ("hunch,CSG,Table 1,a,b,,,holds", "unknown kind.*: hunch"),
        ("claim,CSG,Table 1,a,b", "unknown.*: claim, CSG, Table 1: ; run"),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_named_with_what_to_do(left, content, message):
    header = "kind,paper,where,statement,measured,interval,margin,verdict\n"
    rows = content.startswith(("claim", "discrepancy", "hunch"))
    (left / "02_claims.csv").write_text(header + content + "\n" if rows else content)
    with pytest.raises(ValueError, match=message):
        claims_table()


def test_the_summary_counts_by_verdict_and_paper(left):
    lines = [line.split() for line in claims_module.summary(claims_table()).splitlines()]
    assert lines[0] == ["CSG", "CSL", "curvature", "all"]
    assert lines[2] == ["holds", "2", "0", "0", "2"]
    assert lines[3] == ["holds", "in", "part", "0", "1", "0", "1"]
    assert lines[4] == ["does", "not", "hold", "here", "0", "0", "1", "1"]
    seen = "seen here too 1, not seen here 1, cannot be tested here 1"
    untaken = f"not taken up {len(paper.discrepancies()) - 2}"
    assert f"\ndiscrepancies: {seen}, {untaken}\n" in claims_module.summary(claims_table())


# ---------------------------------------------------------------- markdown


def parsed_tables(text):
    """Tables of a markdown text as lists of rows of plain text, as another parser reads them."""
    parse = mistune.create_markdown(renderer=None, plugins=["table", "strikethrough", "math"])

    def plain(token):
        if token["type"] == "block_html" or token["type"] == "inline_html":
            return f"<<{token['raw']}>>"  # nothing of ours may become HTML
        if token["type"] in (
            "emphasis",
            "strong",
            "codespan",
            "strikethrough",
            "image",
            "inline_math",
        ):
            return f"<<{token['type']}>>"
        return token.get("raw", "") + "".join(map(plain, token.get("children", [])))

    def cells(token):
        return [plain(cell) for cell in token["children"]]

    for token in parse(text):
        if token["type"] == "table":
            head, body = token["children"]
            yield [cells(head), *(cells(row) for row in body["children"])]


def test_the_markdown_has_counts_a_folded_table_a_paper_and_the_discrepancies(left):
    table = claims_table()
    text = to_markdown(table)
    counts, csg, csl, curvature, discrepancies = parsed_tables(text)
    assert counts == [
        ["claims", "CSG", "CSL", "curvature", "all"],
        ["holds", "2", "0", "0", "2"],
        ["holds in part", "0", "1", "0", "1"],
        ["does not hold here", "0", "0", "1", "1"],
    ]
    assert csg == [
        ["where", "claim", "measured", "interval", "margin", "verdict", "notebook"],
        ["Table 1", "CSG agrees", "0.78", "0.76 to 0.80, 3 seeds", "exact", "holds", "02"],
        ["Table 4", "CSG finds flips", "0.995", "", "3.5", "holds", "04"],
    ]
    assert csl[1][2] == "0.99 | 0.98"
    assert curvature[1][:2] == ["section 4.3", "it falls"]
    assert [row[0] for row in discrepancies[1:]] == list(
        table.loc[table["kind"] == "discrepancy", "where"]
    )
    assert discrepancies[2][3:] == ["0.018 and 0.012", "", "exact", "seen here too", "02"]
    folds = re.findall(r"^<details>\n<summary>([^\n]*)</summary>\n\n\|.*?\n\n</details>$", text,
                       re.MULTILINE | re.DOTALL)  # fmt: skip
    assert len(folds) == text.count("<details>") == text.count("</details>") == 4
    title = paper.PAPERS["CSL"]
    assert folds[1] == f"<b>CSL</b>, <i>{title}</i>: holds in part 1"
    assert folds[3].endswith(f"not taken up {len(paper.discrepancies()) - 2}")


def test_links_lead_to_notebooks_that_exist(left):
    for name in NOTEBOOKS:
        report = NotebookReport(name, "fashion_small")
        report.claim("CSG Table 1", "a", "1", exact(True))
        report.claims()
    links = re.findall(r"\[(\d\d)\]\(([^)]*)\)", to_markdown(claims_table()))
    assert {number for number, _ in links} == {name[:2] for name in NOTEBOOKS}
    for number, target in links:
        assert (ROOT / target).is_file() and Path(target).name.startswith(number)


def test_a_paper_without_claims_has_no_table(figures):
    report = NotebookReport("00_primer", "fashion_small")
    report.claim("CSL poster", "a", "1", exact(True))
    report.claims()
    assert "<b>CSL</b>" in to_markdown(claims_table()) and "<b>CSG</b>" not in to_markdown(
        claims_table()
    )


def one_row(text):
    entry = Claim("claim", "CSG", "Table 1", text, text, "", "", "holds")
    table = claims_module.as_table([entry]).rename(columns={"statement": "claim"})
    return to_markdown(table.assign(notebook="02_similarity")[list(claims_module.COLUMNS)])


NASTY = [
    "a | b", "|", "||", "a \\| b", "\\", "a\\", "x \\\\| y", "`code | code`", "*bold* and **bold**",
    "in_confidence, _under_ and __two__", "first_* and last_*", "[0.1, 0.2]", "[a](b)", "![a](b)",
    "a < b > c & d", "<b>bold</b>", "<!-- claims:end -->", "</details>", "&amp; &#124;", "~~no~~",
    "{'sgd': 0.78}", "R² 0.57 ± 0.01", "5 % of $x$ and $y$", "line\none\r\n\ttwo", "# no title",
    "--- | ---",
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY)
def test_text_comes_out_as_it_went_in(text):
    _, claims, _ = parsed_tables(one_row(text))
    assert len(claims) == 2
    shown = " ".join(text.split())
    # entities are what a browser undoes; the parser hands them on
    got = [cell.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
           for cell in claims[1][1:3]]  # fmt: skip
    assert got == [shown, shown]
    assert claims[1][4:] == ["", "holds", "02"]


@given(st.text(alphabet="ab 1|\\`*_[]()<>&~$!#-", max_size=12))
def test_no_text_breaks_the_table(text):
    _, claims, discrepancies = parsed_tables(one_row(text))
    assert [len(row) for row in claims] == [7, 7]
    assert claims[1][4:] == ["", "holds", "02"]
    assert len(discrepancies) == 1


def test_a_marker_in_a_claim_is_no_marker():
    text = one_row(f"{START} and {END}")
    assert START not in text and END not in text


# ---------------------------------------------------------------- the copy in CLAIMS.md


def test_the_claims_are_written_between_the_markers_and_nowhere_else(left, tmp_path):
    file = tmp_path / "claims.md"
    file.write_text(CONTENT)
    assert not claims_module.is_current(file)
    assert claims_module.write_claims(file)
    assert file.read_text() == CONTENT.replace(
        "\nstale\n", f"\n\n{to_markdown(claims_table())}\n\n"
    )
    assert claims_module.is_current(file)


def test_writing_again_changes_nothing(left, tmp_path):
    file = tmp_path / "claims.md"
    file.write_text(CONTENT)
    claims_module.write_claims(file)
    before, age = file.read_bytes(), file.stat().st_mtime_ns
    assert not claims_module.write_claims(file)
    assert (file.read_bytes(), file.stat().st_mtime_ns) == (before, age)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["claims.md", "figures"]


def test_a_new_measurement_makes_the_file_stale(left, tmp_path):
    file = tmp_path / "claims.md"
    file.write_text(CONTENT)
    claims_module.write_claims(file)
    table = left / "04_claims.csv"
    table.write_text(table.read_text().replace("0.995", "0.994"))
    assert not claims_module.is_current(file)


def test_line_ends_of_windows_are_kept(left, tmp_path):
    file = tmp_path / "claims.md"
    file.write_bytes(CONTENT.replace("\n", "\r\n").encode())
    claims_module.write_claims(file)
    assert file.read_bytes().count(b"\n") == file.read_bytes().count(b"\r\n") > 20
    assert claims_module.is_current(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# Title\n", "claims:start --> 0 times"),
        (f"{START}\n", "claims:end --> 0 times"),
        (f"{END}\n", "claims:start --> 0 times"),
        (CONTENT + START, "claims:start --> 2 times"),
        (CONTENT + END, "claims:end --> 2 times"),
        (f"{END}\n{START}\n", "claims:end --> before <!-- claims:start"),
    ],
)
def test_a_file_with_wrong_markers_is_left_alone(left, tmp_path, content, message):
    file = tmp_path / "claims.md"
    file.write_text(content)
    for call in (claims_module.write_claims, claims_module.is_current):
        with pytest.raises(ValueError, match=rf"claims\.md has .*{message}"):
            call(file)
    assert file.read_text() == content


def test_the_command_writes_and_checks(left, tmp_path, capsys):
    file = tmp_path / "claims.md"
    file.write_text(CONTENT)
    assert main(["claims"]) == 0
    assert capsys.readouterr().out == claims_module.summary(claims_table()) + "\n"
    assert main(["claims", "--check", "--file", str(file)]) == 1
    advice = "out of date; run `memlens claims --profile fashion_small --file"
    assert advice in capsys.readouterr().out
    assert file.read_text() == CONTENT
    assert main(["claims", "--file", str(file)]) == 0
    assert capsys.readouterr().out.endswith("claims.md: written\n")
    assert main(["claims", "--check", "--file", str(file)]) == 0
    assert main(["claims", "--file", str(file)]) == 0
    assert capsys.readouterr().out.endswith("claims.md: up to date\n")


def test_the_command_reports_errors(left, tmp_path, capsys):
    file = tmp_path / "claims.md"
    assert main(["claims", "--check", "--file", str(file)]) == 2
    assert "claims.md" in capsys.readouterr().err
    file.write_text("no markers")
    assert main(["claims", "--file", str(file)]) == 2
    assert "claims:start" in capsys.readouterr().err
    assert main(["claims", "--profile", "mnist"]) == 2
    assert "run `memlens reproduce --profile mnist` first" in capsys.readouterr().err


def differing(stored, rendered):
    """Rows of the rendered claims that a file lacks, but for what another machine may change.

    Trained numbers move in their digits, and a verdict may turn where its margin is below three.
    """
    verdicts = "|".join(paper.VERDICTS + paper.DISCREPANCY_VERDICTS)
    numbers = re.compile(rf"\d+|exact|over 100|(?<=: )(({verdicts}) \d+(, )?)+")
    known = {numbers.sub("#", line) for line in stored.splitlines()}
    anyhow = {re.sub(verdicts, "*", line) for line in known}
    missing = []
    for line in rendered.splitlines():
        blank, cells = numbers.sub("#", line), line.split(" | ")
        close = len(cells) > 5 and cells[-3].replace(".", "").isdigit() and float(cells[-3]) < 3
        if blank not in known and not (close and re.sub(verdicts, "*", blank) in anyhow):
            missing.append(line)
    return missing


def test_the_file_holds_the_claims_of_the_stored_figures(monkeypatch):
    monkeypatch.setenv("MEMLENS_FIGURES", str(ROOT / "figures"))
    text = (ROOT / claims_module.CLAIMS_FILE).read_text(encoding="utf-8")
    missing = differing(text, to_markdown(claims_table("fashion_small")))
    assert missing == [], f"{claims_module.CLAIMS_FILE} is out of date: run `make claims`"
    assert all(text.count(marker) == 1 for marker in (START, END))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (
        START not in readme and f"({claims_module.CLAIMS_FILE})" in readme
    )  # it has a link, and no second copy


def test_the_command_takes_the_file_of_the_checkout_by_default(left, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "root", lambda: tmp_path)
    file = tmp_path / "CLAIMS.md"
    file.write_text(CONTENT)
    assert main(["claims"]) == 0
    assert file.read_text() == CONTENT  # without --write it only prints
    assert main(["claims", "--check"]) == 1
    assert main(["claims", "--write"]) == 0
    assert to_markdown(claims_table()) in file.read_text()
    assert main(["claims", "--check"]) == 0
    with pytest.raises(SystemExit):
        main(["claims", "--check", "--write"])
    assert "not allowed with" in capsys.readouterr().err


def test_stale_claims_differ_from_those_of_another_machine(left):
    stored = to_markdown(claims_table())
    assert differing(stored, stored) == []
    assert differing(stored, stored.replace("0.78", "0.77")) == []
    safe, close = above([0.98, 0.99], 0.9), above([0.98, 0.99], 0.984)
    for check, verdict, found in (
        (safe, "does not hold here", 1), (close, "does not hold here", 0), (close, "is unknown", 1),
    ):  # fmt: skip
        late = NotebookReport("04_mislabel", "fashion_small")
        late.claim("CSG Table 4", "CSG finds flips", "0.995", check)
        late.claims()
        fresh = to_markdown(claims_table())
        turned = [
            line.replace("| holds |", f"| {verdict} |") if "Table 4" in line else line
            for line in fresh.splitlines()
        ]
        assert len(differing(fresh, "\n".join(turned))) == found
    assert differing(stored, stored.replace("CSG finds flips", "CSG finds all flips"))
