"""The figures, checks and claims of a notebook report, alone and in a kernel run by papermill."""

import base64
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

from memlens.evaluation import plots
from memlens.experiments import profiles
from memlens.experiments.margins import above, below, exact
from memlens.experiments.notebook import NOTEBOOKS, open_report

COLUMNS = ["kind", "paper", "where", "statement", "measured", "interval", "margin", "verdict"]
DATA = pd.DataFrame({"epoch": [1, 2, 3], "csg": [0.1, 1 / 3, np.pi]})


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_FIGURES", str(tmp_path / "figures"))
    other = replace(profiles.PROFILES["fashion_small"], name="other")
    monkeypatch.setitem(profiles.PROFILES, "other", other)
    with matplotlib.rc_context():
        yield
    plt.close("all")


@pytest.fixture
def report():
    return open_report("02_similarity", "fashion_small")


def drawing():
    fig, ax = plt.subplots(figsize=plots.figsize())
    ax.plot(DATA["epoch"], DATA["csg"], label="CSG")
    ax.set(xlabel="epoch", title="a curve")
    return fig, ax


def test_open_report_gives_the_profile_the_style_and_a_folder_by_profile(report, tmp_path):
    assert report.profile is profiles.get_profile("fashion_small")
    assert report.folder == tmp_path / "figures" / "fashion_small"
    assert plt.rcParams["figure.constrained_layout.use"]
    assert not plt.rcParams["axes.spines.top"]
    assert open_report("02_similarity", "other").folder.name == "other"


def test_open_report_refuses_unknown_names():
    with pytest.raises(ValueError, match="unknown notebook '07_more'.*00_primer"):
        open_report("07_more", "fashion_small")
    with pytest.raises(ValueError, match="unknown profile 'didgits'.*fashion_small"):
        open_report("02_similarity", "didgits")
    assert len(NOTEBOOKS) == 7


def test_a_figure_is_a_picture_and_a_table_with_the_caption(report):
    fig, _ = drawing()
    assert report.figure(fig, "curve", DATA, "CSG rises.\nThree seeds.") is None
    png, csv = report.folder / "02_curve.png", report.folder / "02_curve.csv"
    assert plt.imread(png).shape[:2] == (int(2.108 * 200), 680)
    assert plt.imread(png).std() > 0.01
    assert csv.read_text().startswith("# CSG rises.\n# Three seeds.\nepoch,csg\n1,0.1\n")
    pd.testing.assert_frame_equal(pd.read_csv(csv, comment="#"), DATA, check_exact=True)
    assert sorted(p.name for p in report.folder.iterdir()) == ["02_curve.csv", "02_curve.png"]
    assert plt.fignum_exists(fig.number)  # the notebook shows it after the cell


def test_the_same_drawing_gives_the_same_bytes(report):
    pictures = []
    for name in ("first", "second"):
        fig, _ = drawing()
        report.figure(fig, name, DATA, "caption")
        pictures.append((report.folder / f"02_{name}.png").read_bytes())
    assert pictures[0] == pictures[1]
    assert b"Software" not in pictures[0]


@pytest.mark.parametrize("part", ["ax", "array", "subfigure"])
def test_a_figure_may_be_named_by_a_part_of_it(report, part):
    fig = plt.figure()
    if part == "subfigure":
        given = fig.subfigures(1, 2)[0].subplots()
    else:
        given = fig.subplots(1, 2)
        given = given[1] if part == "ax" else given
    report.figure(given, "part", DATA, "caption")
    width, height = fig.get_size_inches()
    assert plt.imread(report.folder / "02_part.png").shape[:2] == (int(height * 200), width * 200)


def test_a_named_index_is_written_and_a_counting_one_is_not(report):
    fig, _ = drawing()
    table = pd.DataFrame({"pearson": [0.7, 0.8]}, index=pd.Index(["csg", "csl"], name="score"))
    report.figure(fig, "by_score", table, "caption")
    back = pd.read_csv(report.folder / "02_by_score.csv", comment="#", index_col="score")
    pd.testing.assert_frame_equal(back, table, check_index_type=False)
    chosen = DATA[DATA["epoch"] > 1]
    report.figure(fig, "chosen", chosen, "caption")
    back = pd.read_csv(report.folder / "02_chosen.csv", comment="#", index_col=0)
    assert list(back.index) == [1, 2]


def test_drawing_again_replaces_the_figure(report):
    fig, ax = drawing()
    report.figure(fig, "curve", DATA, "caption")
    before = (report.folder / "02_curve.png").read_bytes()
    ax.set_title("another")
    report.figure(fig, "curve", DATA.head(2), "caption")
    assert (report.folder / "02_curve.png").read_bytes() != before
    assert len(pd.read_csv(report.folder / "02_curve.csv", comment="#")) == 2


@pytest.mark.parametrize(
    ("name", "data", "caption", "message"),
    [
        ("Fig 4", DATA, "caption", "figure name 'Fig 4'"),
        ("../out", DATA, "caption", "figure name"),
        ("claims", DATA, "caption", "but not 'claims'"),
        ("curve", DATA.head(0), "caption", "needs the numbers"),
        ("curve", DATA, " ", "and a caption"),
    ],
)
def test_a_figure_without_its_numbers_is_refused_and_nothing_is_written(
    report, name, data, caption, message
):
    with pytest.raises(ValueError, match=message):
        report.figure(drawing()[0], name, data, caption)
    assert not report.folder.exists()


def test_a_check_that_holds_is_printed(report, capsys):
    report.check("CSG Pearson at least 0.70", above([0.78, 0.80], 0.70))
    assert capsys.readouterr().out == "CSG Pearson at least 0.70: yes\n"


def test_a_check_that_fails_stops_the_default_profile(report, capsys):
    with pytest.raises(AssertionError, match=r"at least 0\.70: NO \(measured 0\.61\)"):
        report.check("CSG Pearson at least 0.70", above(0.61, 0.70))
    assert capsys.readouterr().out == ""


def test_a_check_that_fails_is_printed_on_other_profiles(capsys):
    report = open_report("02_similarity", "other")
    report.check("CSG Pearson at least 0.70", above([np.nan, 0.8], 0.70))
    report.check("CSG Pearson at least 0.80", above([0.60, 0.62], 0.80))
    printed = (
        "CSG Pearson at least 0.70: NO (measured nan)\nCSG Pearson at least 0.80: NO (measured "
        "0.61, 13.4 spreads from the threshold)\n"
    )
    assert capsys.readouterr().out == printed


def test_an_observation_never_fails_and_shows_what_was_measured(report, capsys):
    report.observe("CSG Pearson at least 0.70", above([0.60, 0.62], 0.70))
    report.observe("CSG Pearson at most 0.70", below(0.61, 0.70))
    assert capsys.readouterr().out == (
        "CSG Pearson at least 0.70: NO (0.61, 6.4 spreads from the threshold)\n"
        "CSG Pearson at most 0.70: yes (0.61)\n"
    )


@pytest.mark.parametrize("check", [True, np.True_, 0.79, None, "yes"])
def test_what_has_no_threshold_is_refused(report, check):
    for enter in (report.check, report.observe):
        with pytest.raises(TypeError, match="pass above"):
            enter("CSG Pearson", check)
    with pytest.raises(TypeError, match="a part of the claim is .*pass above"):
        report.claim("CSG Table 1", "CSG agrees", "0.79", [above(1, 0), check])
    assert report.claims().empty


def test_every_check_is_written_with_its_margin(report):
    report.check("Pearson", above([0.8, 0.9], 0.7))
    report.observe("one number", below(0.1, 0.2))
    report.claim("CSG Table 1", "CSG agrees", "0.8", [above([0.8, 0.9], 0.7), exact(True)])
    report.discrepancy("csg-table2-ece", "0.02", below([0.1, 0.3], 0.1))
    claims = report.claims()
    assert list(claims["margin"]) == ["2.1", "0.71"]
    checks = pd.read_csv(report.folder / "02_checks.csv")
    assert checks[["kind", "name", "part"]].values.tolist() == [
        ["check", "Pearson", 0], ["observation", "one number", 0],
        ["claim", "CSG Table 1: CSG agrees", 0], ["claim", "CSG Table 1: CSG agrees", 1],
        ["discrepancy", "csg-table2-ece", 0],
    ]  # fmt: skip
    np.testing.assert_allclose(
        checks["margin"], [1.5 * 2**0.5, np.nan, 1.5 * 2**0.5, np.inf, 0.5**0.5]
    )
    np.testing.assert_allclose(checks["low"], [0.7, -np.inf, 0.7, 0.5, -np.inf])


def test_claims_are_printed_recorded_and_written(report, capsys):
    report.claim("CSG Table 1", "CSG beats curvature", "0.79 against 0.60", exact(True))
    report.claim("CSG Fig. 4", "linear, in both", "R² 0.9, 0.2", [exact(np.True_), exact(False)])
    report.claim("CSG Table 2", "calibration improves", "ECE 0.14 against 0.10", (exact(False),))
    printed = "CSG Table 1: holds\nCSG Fig. 4: holds in part\nCSG Table 2: does not hold here\n"
    assert capsys.readouterr().out == printed
    claims = report.claims()
    assert list(claims.columns) == COLUMNS
    assert set(claims["kind"]) == {"claim"} and set(claims["paper"]) == {"CSG"}
    assert list(claims["where"]) == ["Table 1", "Fig. 4", "Table 2"]
    assert list(claims["verdict"]) == ["holds", "holds in part", "does not hold here"]
    assert claims["measured"][1] == "R² 0.9, 0.2"
    back = pd.read_csv(report.folder / "02_claims.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(back, claims)


def test_running_a_claim_again_replaces_it(report):
    report.claim("CSG Table 1", "CSG beats curvature", "0.5", exact(False))
    report.claim("CSG Table 1", "CSG is cheap", "1.05", exact(True))
    report.claim("CSG Table 1", "CSG beats curvature", "0.8", exact(True))
    assert report.claims()[["measured", "verdict"]].values.tolist() == [
        ["0.8", "holds"], ["1.05", "holds"],
    ]  # fmt: skip


def test_two_spellings_of_a_place_are_one_claim(report, capsys):
    report.claim("Curvature 4.3", "falls", "0.5", exact(False))
    report.claim("curvature Sec. 4.3", "falls", "0.8", exact(True))
    assert report.claims()[["paper", "where", "measured"]].values.tolist() == [
        ["curvature", "section 4.3", "0.8"],
    ]  # fmt: skip
    printed = "Curvature 4.3: does not hold here\ncurvature Sec. 4.3: holds\n"
    assert capsys.readouterr().out == printed  # as written, because stored outputs compare it


@pytest.mark.parametrize("source", ["here", "Table 1", "CSG"])
def test_a_claim_without_paper_or_place_is_refused_and_not_entered(report, source):
    with pytest.raises(ValueError, match="begin with CSG, CSL, curvature"):
        report.claim(source, "drawn", "1", exact(True))
    assert report.claims().empty


def test_a_claim_may_have_an_interval(report):
    report.claim("CSG Table 1", "a", "1", exact(True), interval="95 %: 0.1 to 0.2")
    report.claim("CSG Table 1", "b", "1", exact(True), interval=(0.7634, 0.8012))
    report.claim("CSG Table 1", "c", "1", exact(True), interval=np.array([0.78, 0.76, 0.80]))
    report.claim("CSG Table 1", "d", "1", exact(True), (0.1, 0.2))
    assert list(report.claims()["interval"]) == [
        "95 %: 0.1 to 0.2", "0.76 to 0.80", "0.76 to 0.80, 3 seeds", "0.10 to 0.20",
    ]  # fmt: skip


def test_discrepancies_are_printed_recorded_and_written_with_the_claims(report, capsys):
    report.claim("CSG Table 2", "calibration improves", "0.14, 0.10", exact(False))
    report.discrepancy(
        "csg-table2-ece", "0.018 and 0.019", [exact(True), exact(False)], interval=[0.01, 0.02]
    )
    report.discrepancy("csg-fz-architecture", "no published scores for clothes", None)
    report.discrepancy("csg-table2-ece", "0.018 and 0.012", exact(True))
    assert capsys.readouterr().out == (
        "CSG Table 2: does not hold here\ncsg-table2-ece: seen here in part\n"
        "csg-fz-architecture: cannot be tested here\ncsg-table2-ece: seen here too\n"
    )
    table = report.claims()
    assert table[["kind", "where", "measured", "interval", "verdict"]].values.tolist() == [
        ["claim", "Table 2", "0.14, 0.10", "", "does not hold here"],
        ["discrepancy", "csg-table2-ece", "0.018 and 0.012", "", "seen here too"],
        ["discrepancy", "csg-fz-architecture", "no published scores for clothes", "",
         "cannot be tested here"],
    ]  # fmt: skip
    assert table["statement"][1].startswith("ECE is worse at the early stop (0.138)")
    back = pd.read_csv(report.folder / "02_claims.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(back, table)


def test_an_unknown_discrepancy_or_one_without_text_is_refused(report):
    with pytest.raises(ValueError, match="unknown discrepancy 'csg-table2'; .*csg-table2-sums"):
        report.discrepancy("csg-table2", "0.1", exact(True))
    with pytest.raises(ValueError, match="'csg-table2-sums' has no text; pass the result"):
        report.discrepancy("csg-table2-sums", " ", None)
    with pytest.raises(TypeError, match=r"a part of the claim is 0\.1; pass above"):
        report.discrepancy("csg-table2-sums", "0.1", [0.1])
    assert report.claims().empty


def test_a_notebook_without_claims_writes_an_empty_table(report):
    assert report.claims().empty
    assert (report.folder / "02_claims.csv").read_text() == ",".join(COLUMNS) + "\n"


SET_UP = 'import memlens as ml\nreport = ml.open_report("00_primer", profile)'


def notebook(path, *cells):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.cells[0].metadata["tags"] = ["parameters"]
    book.metadata["language_info"] = {"name": "python"}
    nbformat.write(book, path)


def papermill_run(folder, *cells, **parameters):
    work = folder / "elsewhere"
    work.mkdir()
    notebook(folder / "in.ipynb", 'profile: str = "fashion_small"\nseeds: int = 3', SET_UP, *cells)
    papermill.execute_notebook(
        folder / "in.ipynb", folder / "out.ipynb", parameters=parameters, cwd=work,
        kernel_name="python3", progress_bar=False, log_output=False,
        extra_arguments=["--IPKernelApp.log_level=40"],
    )  # fmt: skip
    assert not list(work.iterdir())  # nothing depends on the working directory
    return nbformat.read(folder / "out.ipynb", as_version=4)


@pytest.mark.slow
def test_in_a_kernel_the_figure_is_shown_once_and_saved(tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)
    draw = (
        "import pandas as pd\nimport matplotlib.pyplot as plt\nfig, ax = plt.subplots()\n"
        'frame = pd.DataFrame({"x": [1, 2], "y": [3, seeds]})\nax.plot(frame["x"], frame["y"])\n'
        'report.figure(ax, "line", frame, "a line")'
    )
    checks = (
        "from memlens.experiments.margins import exact\n"
        'report.check("two seeds", exact(seeds == 2))\n'
        'report.claim("CSG here", "drawn", "1", exact(True))'
    )
    book = papermill_run(tmp_path, draw, checks, "report.claims()", seeds=2)
    shown, printed = book.cells[3].outputs, book.cells[4].outputs
    assert [output.output_type for output in shown] == ["display_data"]
    picture = base64.b64decode(shown[0].data["image/png"])
    width = int.from_bytes(picture[16:20])
    assert 380 < width < 430  # 3.4 in at the style's 120 dots an inch: the style was in force
    assert printed[0].text == "two seeds: yes\nCSG here: holds\n"
    folder = tmp_path / "figures" / "fashion_small"
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["00_checks.csv", "00_claims.csv", "00_line.csv", "00_line.png"]
    assert list(pd.read_csv(folder / "00_line.csv", comment="#")["y"]) == [3, 2]


def test_a_caption_of_another_profile_is_marked():
    for name, marked in (("fashion_small", False), ("other", True)):
        report = open_report("02_similarity", name)
        report.figure(drawing()[0], "curve", DATA, "CSG rises.")
        text = (report.folder / "02_curve.csv").read_text()
        assert ("# This caption was written for fashion_small.\n" in text) == marked


def test_only_the_whole_default_profile_must_have_something_to_measure(report):
    with pytest.raises(ValueError, match="finite"):
        report.claim("CSG Table 1", "CSG agrees.", "0.8", exact(True), [0.7, np.nan])
    look = open_report("02_similarity", "fashion_small", scale=0.5)
    look.claim("CSG Table 1", "CSG agrees.", "0.8", exact(True), [0.7, np.nan, 0.8])
    look.claim("CSG Table 5", "CSG agrees.", "nan", exact(False), [np.nan])
    look.claim("CSG Table 6", "CSG agrees.", "nan", exact(False), (np.nan, 0.1))
    assert look.claims()["interval"].tolist() == ["0.70 to 0.80, 2 seeds", "", ""]
