"""The table of claims gathers what the notebooks wrote, and its copy in CLAIMS.md is current."""

import re
from pathlib import Path

import mistune  # comes with jupyter's nbconvert: a parser of markdown that we did not write
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlens.__main__ import main
from memlens.experiments import claims_file, paper
from memlens.experiments.claims import NOTEBOOKS, claims
from memlens.experiments.claims_file import END, START, claims_table, to_markdown
from memlens.experiments.margins import exact
from memlens.experiments.notebook import NotebookReport
from memlens.storage import store

ROOT = Path(__file__).resolve().parents[2]
CONTENT = f"# Title\n\nabove\n\n{START}\nstale\n{END}\n\nbelow\n"


@pytest.fixture
def figures(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures" / "fashion_small"


RIVALS = ("curvature", "in_confidence", "learning_time", "ssft", "confident_learning")


@pytest.fixture
def left(figures, capsys):
    """The results of three notebooks, not written in their order."""
    late = NotebookReport("04_mislabel", "fashion_small")
    late.judge("csl-poster-mislabelled", **dict.fromkeys(RIVALS, 0.1) | {"ssft": -0.1})
    late.judge("csg-sec5-4-more-noise", gain=[0.1, 0.2])
    late.results()
    early = NotebookReport("02_similarity", "fashion_small")
    early.judge("csg-table1-agreement", csg=[0.76, 0.8, 0.78], sgal=0.8, csl=0.8)
    early.judge("curvature-table1-decay", gain=0.0)
    early.results()
    last = NotebookReport("08_discrepancies", "fashion_small")
    last.discrepancy("csg-table2-ece", "0.018 and 0.012", exact(True))
    last.discrepancy("csg-fz-architecture", "no published scores here", None)
    last.results()
    capsys.readouterr()
    return figures


# ---------------------------------------------------------------- gathering


def test_every_claim_comes_in_order_and_then_every_discrepancy(left):
    table = claims_table("fashion_small")
    assert list(table.columns) == [
        "notebook", "kind", "id", "paper", "where", "claim", "measured", "verdict",
    ]  # fmt: skip
    entries = table[table["kind"] == "claim"]
    assert list(entries["id"]) == list(claims())
    judged = entries[(entries["verdict"] != "") & ~entries["measured"].str.startswith("needs")]
    assert judged.drop(columns=["kind", "claim"]).values.tolist() == [
        ["02_similarity", "csg-table1-agreement", "CSG", "Table 1",
         "Pearson of CSG: 0.78 (0.76 to 0.80, 3 seeds), expected at least 0.62; "
         "Pearson of SGAL: 0.800, expected at least 0.67; "
         "Pearson of CSL: 0.800, expected at least 0.69", "holds"],
        ["02_similarity", "curvature-table1-decay", "curvature", "Table 1",
         "gain in cosine: 0, expected at least 0.045", "does not hold here"],
        ["04_mislabel", "csg-sec5-4-more-noise", "CSG", "section 5.4",
         "AUROC at 30 % minus that at 5 %: 0.15 (0.10 to 0.20, 2 seeds), expected at least 0",
         "holds"],
        ["04_mislabel", "csl-poster-mislabelled", "CSL", "poster, mislabelled",
         judged["measured"].iloc[-1], "holds in part"],
    ]  # fmt: skip
    discrepancies = table[table["kind"] == "discrepancy"]
    assert list(discrepancies["where"]) == list(paper.discrepancies()["id"])
    results = discrepancies.set_index("where")[["notebook", "measured", "verdict"]]
    assert list(results.loc["csg-table2-ece"]) == [
        "08_discrepancies", "0.018 and 0.012", "seen here too",
    ]  # fmt: skip
    assert (results.loc["csg-table1-samis"] == "").all()
    assert not table.isna().any(axis=None)


def test_a_claim_that_cannot_be_tested_says_what_it_needs(left):
    table = claims_table().set_index("id")
    for name, entry in claims().items():
        if entry.needs:
            row = table.loc[name]
            assert row["verdict"] == "cannot be tested here" and entry.needs in row["measured"]


def test_two_notebooks_cannot_report_on_one_discrepancy(left):
    other = NotebookReport("02_similarity", "fashion_small")
    other.discrepancy("csg-table2-ece", "0.018", exact(True))
    other.results()
    with pytest.raises(ValueError, match="two notebooks report on csg-table2-ece"):
        claims_table()


def test_words_that_look_like_missing_values_stay_words(figures):
    report = NotebookReport("08_discrepancies", "fashion_small")
    report.discrepancy("csg-table2-ece", "NA", exact(True))
    report.results()
    assert claims_table().set_index("id").loc["csg-table2-ece", "measured"] == "NA"


def test_an_error_without_claims_names_the_command(figures):
    message = "no claims in .*fashion_small; run `memlens reproduce"
    with pytest.raises(FileNotFoundError, match=message):
        claims_table()


def test_notebooks_that_left_nothing_are_named(left):
    NotebookReport("00_primer", "fashion_small").results()  # an empty file is as good as none
    text = to_markdown(claims_table())
    last = text.splitlines()[-1]
    assert (
        last
        == f"Nothing from {', '.join(n for n in NOTEBOOKS if n[:2] not in ('02', '04', '08'))}."
    )
    assert claims_file.summary(claims_table()).endswith(last)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("source,statement,measured,verdict\na,b,c,holds\n",
         r"02_claims\.csv has the columns source, statement.*memlens reproduce --only 02"),
        ("", r"02_claims\.csv is not a table of claims.*memlens reproduce --only 02"),
        ("claim,csg-table9,a,holds", "unknown kind, id or verdict: claim, csg-table9: holds"),
        ("claim,csg-sec5-4-more-noise,a,holds", "unknown.*: claim, csg-sec5"),  # of notebook 04
        ("claim,csg-table1-vog,a,seems to hold", "unknown.*: seems to hold"),
        ("claim,csg-table1-vog,a,seen here too", "unknown.*: seen here too"),
        ("discrepancy,csg-table2,a,seen here too", "unknown.*: discrepancy, csg-table2"),
        ("discrepancy,csg-table2-ece,a,holds", "unknown.*: holds"),
        ("hunch,csg-table1-vog,a,holds", "unknown kind.*: hunch"),
        ("claim,csg-table1-vog,a", "unknown.*: claim, csg-table1-vog: ; run"),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_named_with_what_to_do(left, content, message):
    header = "kind,id,measured,verdict\n"
    rows = content.startswith(("claim", "discrepancy", "hunch"))
    (left / "02_claims.csv").write_text(header + content + "\n" if rows else content)
    with pytest.raises(ValueError, match=message):
        claims_table()


def test_the_summary_counts_by_verdict_and_paper(left):
    lines = [line.split() for line in claims_file.summary(claims_table()).splitlines()]
    untestable = sum(bool(entry.needs) for entry in claims().values())
    assert lines[0] == ["CSG", "CSL", "curvature", "all"]
    assert lines[2] == ["holds", "2", "0", "0", "2"]
    assert lines[3] == ["holds", "in", "part", "0", "1", "0", "1"]
    assert lines[4] == ["does", "not", "hold", "here", "0", "0", "1", "1"]
    assert lines[5][-1] == str(untestable)
    seen = "seen here too 1, cannot be tested here 1"
    untaken = f"not taken up {len(paper.discrepancies()) - 2}"
    assert f"\ndiscrepancies: {seen}, {untaken}\n" in claims_file.summary(claims_table())


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
    assert counts[:2] == [["claims", *paper.PAPERS, "all"], ["holds", "2", "0", "0", "2"]]
    assert counts[3] == ["does not hold here", "0", "0", "1", "1"]
    assert csg[0] == ["where", "claim", "measured", "verdict", "notebook"]
    assert [row[0] for row in csg[1:] if not row[2].startswith("needs")] == [
        "Table 1", "section 5.4",
    ]  # fmt: skip
    assert csg[1][3:] == ["holds", "02"] and "0.76 to 0.80, 3 seeds" in csg[1][2]
    assert csl[1][3:] == ["holds in part", "04"]
    assert curvature[1][0] == "Table 1"
    assert [row[0] for row in discrepancies[1:]] == list(paper.discrepancies()["id"])
    row = next(row for row in discrepancies if row[0] == "csg-table2-ece")
    assert row[3:] == ["0.018 and 0.012", "seen here too", "08"]
    folds = re.findall(r"^<details>\n<summary>([^\n]*)</summary>\n\n\|.*?\n\n</details>$", text,
                       re.MULTILINE | re.DOTALL)  # fmt: skip
    assert len(folds) == text.count("<details>") == text.count("</details>") == 4
    title = paper.PAPERS["CSL"]
    assert folds[1] == f"<b>CSL</b>, <i>{title}</i>: holds in part 1"
    assert folds[3].endswith(f"not taken up {len(paper.discrepancies()) - 2}")


def test_links_lead_to_notebooks_that_exist(left):
    links = re.findall(r"\[(\d\d)\]\(([^)]*)\)", to_markdown(claims_table()))
    assert {number for number, _ in links} >= {"02", "04", "08"}
    for number, target in links:
        assert (ROOT / target).is_file() and Path(target).name.startswith(number)


def one_row(text):
    entry = dict.fromkeys(claims_file.COLUMNS, text) | {
        "notebook": "02_similarity", "kind": "claim", "paper": "CSG", "where": "Table 1",
        "verdict": "holds",
    }  # fmt: skip
    return to_markdown(pd.DataFrame([entry]))


NASTY = [
    "a | b", "|", "||", "a \\| b", "\\", "a\\", "x \\\\| y", "`code | code`", "*bold* and **bold**",
    "in_confidence, _under_ and __two__", "first_* and last_*", "[0.1, 0.2]", "[a](b)", "![a](b)",
    "a < b > c & d", "<b>bold</b>", "<!-- claims:end -->", "</details>", "&amp; &#124;", "~~no~~",
    "{'sgd': 0.78}", "R² 0.57 ± 0.01", "5 % of $x$ and $y$", "line\none\r\n\ttwo", "# no title",
    "--- | ---",
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY)
def test_text_comes_out_as_it_went_in(text):
    _, rows, _ = parsed_tables(one_row(text))
    assert len(rows) == 2
    shown = " ".join(text.split())
    # entities are what a browser undoes; the parser hands them on
    got = [cell.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
           for cell in rows[1][1:3]]  # fmt: skip
    assert got == [shown, shown]
    assert rows[1][3:] == ["holds", "02"]


@given(st.text(alphabet="ab 1|\\`*_[]()<>&~$!#-", max_size=12))
def test_no_text_breaks_the_table(text):
    _, rows, discrepancies = parsed_tables(one_row(text))
    assert [len(row) for row in rows] == [5, 5]
    assert rows[1][3:] == ["holds", "02"]
    assert len(discrepancies) == 1


def test_a_marker_in_a_claim_is_no_marker():
    text = one_row(f"{START} and {END}")
    assert START not in text and END not in text


# ---------------------------------------------------------------- the copy in CLAIMS.md


def test_the_claims_are_written_between_the_markers_and_nowhere_else(left, tmp_path):
    file = tmp_path / "claims.md"
    file.write_text(CONTENT)
    assert not claims_file.is_current(file)
    assert claims_file.write_claims(file)
    assert file.read_text() == CONTENT.replace(
        "\nstale\n", f"\n\n{to_markdown(claims_table())}\n\n"
    )
    assert claims_file.is_current(file)


def test_writing_again_changes_nothing(left, tmp_path):
    file = tmp_path / "claims.md"
    file.write_text(CONTENT)
    claims_file.write_claims(file)
    before, age = file.read_bytes(), file.stat().st_mtime_ns
    assert not claims_file.write_claims(file)
    assert (file.read_bytes(), file.stat().st_mtime_ns) == (before, age)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["claims.md", "figures"]


def test_a_new_measurement_makes_the_file_stale(left, tmp_path):
    file = tmp_path / "claims.md"
    file.write_text(CONTENT)
    claims_file.write_claims(file)
    table = left / "04_claims.csv"
    table.write_text(table.read_text().replace("0.15", "0.14"))
    assert not claims_file.is_current(file)


def test_line_ends_of_windows_are_kept(left, tmp_path):
    file = tmp_path / "claims.md"
    file.write_bytes(CONTENT.replace("\n", "\r\n").encode())
    claims_file.write_claims(file)
    assert file.read_bytes().count(b"\n") == file.read_bytes().count(b"\r\n") > 20
    assert claims_file.is_current(file)


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
    for call in (claims_file.write_claims, claims_file.is_current):
        with pytest.raises(ValueError, match=rf"claims\.md has .*{message}"):
            call(file)
    assert file.read_text() == content


def test_the_command_writes_and_checks(left, tmp_path, capsys):
    file = tmp_path / "claims.md"
    file.write_text(CONTENT)
    assert main(["claims"]) == 0
    assert capsys.readouterr().out == claims_file.summary(claims_table()) + "\n"
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


def differing(stored, rendered, unsure=()):
    """Rows of the rendered claims that a file lacks, but for what another machine may change.

    Trained numbers move in their digits; the verdict on an unsure statement may turn.
    """
    verdicts = "|".join(paper.VERDICTS + paper.DISCREPANCY_VERDICTS)
    numbers = re.compile(rf"-?\d+(\.\d+)?|(?<=: )(({verdicts}) \d+(, )?)+")
    known = {numbers.sub("#", line) for line in stored.splitlines()}
    anyhow = {re.sub(verdicts, "*", line) for line in known}
    missing = []
    for line in rendered.splitlines():
        blank = numbers.sub("#", line)
        turned = line.count(" | ") == 4 and line.split(" | ")[1] in unsure
        if blank not in known and not (turned and re.sub(verdicts, "*", blank) in anyhow):
            missing.append(line)
    return missing


def unsure_statements(folder):
    """Statements of the claims of which a part lies within three spreads of its threshold."""
    checks = pd.concat([pd.read_csv(file) for file in sorted(folder.glob("*_checks.csv"))])
    near = checks[(checks["kind"] == "claim") & ~(checks["margin"] >= 3)]
    return {claims()[name].statement for name in near["name"]}


def test_the_file_holds_the_claims_of_the_stored_figures(monkeypatch):
    monkeypatch.setenv("MEMLENS_FIGURES", str(ROOT / "figures"))
    text = (ROOT / claims_file.CLAIMS_FILE).read_text(encoding="utf-8")
    unsure = unsure_statements(ROOT / "figures" / "fashion_small")
    missing = differing(text, to_markdown(claims_table("fashion_small")), unsure)
    assert missing == [], f"{claims_file.CLAIMS_FILE} is out of date: run `make claims`"
    assert all(text.count(marker) == 1 for marker in (START, END))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (
        START not in readme and f"({claims_file.CLAIMS_FILE})" in readme
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
    fresh = stored.replace("at least 0 | holds |", "at least 0 | does not hold here |")
    statement = claims()["csg-sec5-4-more-noise"].statement
    assert fresh != stored and len(differing(stored, fresh)) == 1
    assert differing(stored, fresh, {statement}) == []
    assert len(differing(stored, fresh.replace("does not hold here", "unknown"), {statement})) > 0


def test_claims_near_their_threshold_are_unsure(left):
    assert unsure_statements(left) == {
        claims()[name].statement
        for name in (
            "csg-sec5-4-more-noise", "csl-poster-mislabelled", "csg-table1-agreement",
            "curvature-table1-decay",
        )
    }  # fmt: skip
