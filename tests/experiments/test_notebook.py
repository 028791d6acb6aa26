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
from memlens.evaluation.plots import Drawing
from memlens.experiments import profiles
from memlens.experiments.margins import Estimate, above, below, exact
from memlens.experiments.notebook import NOTEBOOKS, open_report

COLUMNS = ["kind", "id", "measured", "verdict"]
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
    with pytest.raises(ValueError, match="unknown notebook '09_more'.*00_primer"):
        open_report("09_more", "fashion_small")
    with pytest.raises(ValueError, match="unknown profile 'didgits'.*fashion_small"):
        open_report("02_similarity", "didgits")
    assert len(NOTEBOOKS) == 9


def test_a_figure_is_a_picture_and_a_table_with_the_caption(report):
    fig, _ = drawing()
    assert report.save(Drawing(fig, DATA), "curve", "CSG rises.\nThree seeds.") is None
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
        report.save(Drawing(fig, DATA), name, "caption")
        pictures.append((report.folder / f"02_{name}.png").read_bytes())
    assert pictures[0] == pictures[1]
    assert b"Software" not in pictures[0]


def test_a_named_index_is_written_and_a_counting_one_is_not(report):
    fig, _ = drawing()
    table = pd.DataFrame({"pearson": [0.7, 0.8]}, index=pd.Index(["csg", "csl"], name="score"))
    report.save(Drawing(fig, table), "by_score", "caption")
    back = pd.read_csv(report.folder / "02_by_score.csv", comment="#", index_col="score")
    pd.testing.assert_frame_equal(back, table, check_index_type=False)
    chosen = DATA[DATA["epoch"] > 1]
    report.save(Drawing(fig, chosen), "chosen", "caption")
    back = pd.read_csv(report.folder / "02_chosen.csv", comment="#", index_col=0)
    assert list(back.index) == [1, 2]


def test_drawing_again_replaces_the_figure(report):
    fig, ax = drawing()
    report.save(Drawing(fig, DATA), "curve", "caption")
    before = (report.folder / "02_curve.png").read_bytes()
    ax.set_title("another")
    report.save(Drawing(fig, DATA.head(2)), "curve", "caption")
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
        report.save(Drawing(drawing()[0], data), name, caption)
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
        report.discrepancy("csg-table2-ece", "0.79", [above(1, 0), check])
    assert report.results().empty


def test_every_check_is_written_with_its_margin(report):
    report.check("Pearson", above([0.8, 0.9], 0.7))
    report.observe("one number", below(0.1, 0.2))
    report.judge(AGREES, csg=[0.8, 0.9], sgal=0.8, csl=[0.6, 0.7])
    report.discrepancy("csg-table2-ece", "0.02", below([0.1, 0.3], 0.1))
    report.results()
    checks = pd.read_csv(report.folder / "02_checks.csv")
    assert checks[["kind", "name", "part"]].values.tolist() == [
        ["check", "Pearson", 0], ["observation", "one number", 0],
        ["claim", AGREES, 0], ["claim", AGREES, 1], ["claim", AGREES, 2],
        ["discrepancy", "csg-table2-ece", 0],
    ]  # fmt: skip
    root2 = 2**0.5
    np.testing.assert_allclose(
        checks["margin"], [1.5 * root2, np.nan, 2.3 * root2, np.nan, 0.4 * root2, 1 / root2]
    )
    np.testing.assert_allclose(checks["low"], [0.7, -np.inf, 0.62, 0.67, 0.69, -np.inf])


AGREES = "csg-table1-agreement"  # parts csg, sgal, csl: at least 0.62, 0.67, 0.69


def test_a_judged_claim_is_printed_recorded_and_written(report, capsys):
    report.judge(AGREES, csg=[0.7, 0.72], sgal=Estimate(0.77, 0.75, 0.79, "samples"), csl=0.5)
    parts = [
        "Pearson of CSG: 0.710 (0.700 to 0.720, 2 seeds), expected at least 0.62",
        "Pearson of SGAL: 0.77 (0.75 to 0.79, samples), expected at least 0.67",
        "Pearson of CSL: 0.500, expected at least 0.69",
    ]
    head, verdict, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("CSG Table 1. CSG, SGAL and CSL agree") and len(head) <= 100
    assert verdict == "  -> holds in part"
    assert lines == [f"  {part}" for part in parts]
    results = report.results()
    assert list(results.columns) == COLUMNS
    assert results.values.tolist() == [["claim", AGREES, "; ".join(parts), "holds in part"]]
    back = pd.read_csv(report.folder / "02_claims.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(back, results)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.62, 0.67, 0.69), "holds"),  # the ends belong to the range
        ((0.9, 0.9, 0.6), "holds in part"),
        ((0.6, 0.6, 0.6), "does not hold here"),
    ],
)
def test_the_verdict_follows_from_the_parts(report, values, verdict):
    report.judge(AGREES, **dict(zip(("csg", "sgal", "csl"), values, strict=True)))
    assert list(report.results()["verdict"]) == [verdict]


def test_the_mean_over_seeds_is_compared_and_not_the_luckiest(report):
    report.judge("csg-table1-final-loss", final_loss=[0.3, 0.3, 0.9])
    assert list(report.results()["verdict"]) == ["does not hold here"]


def test_judging_again_replaces_the_result(report):
    report.judge("csg-table1-final-loss", final_loss=0.5)
    report.judge(AGREES, csg=0.7, sgal=0.7, csl=0.7)
    report.judge("csg-table1-final-loss", final_loss=0.1)
    assert report.results()[["id", "verdict"]].values.tolist() == [
        ["csg-table1-final-loss", "holds"], [AGREES, "holds"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "measured", "message"),
    [
        ("csg-table1", {"csg": 1}, "unknown claim 'csg-table1'"),
        ("csg-table2-accuracy", {"gradient": 0}, "is judged by 03_early_stopping"),
        ("csg-table1-imagenet", {}, "cannot be tested here: it needs ImageNet"),
        (AGREES, {}, "was given nothing; its parts are: csg, sgal, csl"),
        (AGREES, {"csg": 1, "sgal": 1}, "was given csg, sgal; its parts are: csg, sgal, csl"),
        (AGREES, {"csg": 1, "sgal": 1, "csl": 1, "aum": 1}, "was given csg, sgal, csl, aum"),
        (AGREES, {"csg": [], "sgal": 1, "csl": 1}, "shape"),
        (AGREES, {"csg": [[1]], "sgal": 1, "csl": 1}, "shape"),
    ],
)
def test_what_cannot_be_judged_is_refused_and_not_recorded(report, name, measured, message):
    with pytest.raises(ValueError, match=message):
        report.judge(name, **measured)
    assert report.results().empty


def test_discrepancies_are_printed_recorded_and_written_with_the_claims(report, capsys):
    report.judge("csg-table1-final-loss", final_loss=0.5)
    report.discrepancy("csg-table2-ece", "0.018 and 0.019", [exact(True), exact(False)])
    report.discrepancy("csg-fz-architecture", "no published scores for clothes", None)
    report.discrepancy("csg-table2-ece", "0.018 and 0.012", exact(True))
    assert capsys.readouterr().out.splitlines()[3:] == [
        "csg-table2-ece: seen here in part. 0.018 and 0.019",
        "csg-fz-architecture: cannot be tested here. no published scores for clothes",
        "csg-table2-ece: seen here too. 0.018 and 0.012",
    ]
    table = report.results()
    assert table[["kind", "id", "measured", "verdict"]].values.tolist()[1:] == [
        ["discrepancy", "csg-table2-ece", "0.018 and 0.012", "seen here too"],
        ["discrepancy", "csg-fz-architecture", "no published scores for clothes",
         "cannot be tested here"],
    ]  # fmt: skip
    back = pd.read_csv(report.folder / "02_claims.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(back, table)


def test_a_discrepancy_of_printed_numbers_is_seen_in_print(report, capsys):
    report.discrepancy("csg-table2-sums", "2.08 > 0.27", exact(True), in_print=True)
    report.discrepancy("csg-table2-ece", "0.14", [exact(True), exact(False)], in_print=True)
    report.discrepancy("csg-table1-samis", "not released", None, in_print=True)
    assert list(report.results()["verdict"]) == [
        "seen in print", "seen here in part", "cannot be tested here",
    ]  # fmt: skip


def test_an_unknown_discrepancy_or_one_without_text_is_refused(report):
    with pytest.raises(ValueError, match="unknown discrepancy 'csg-table2'; .*csg-table2-sums"):
        report.discrepancy("csg-table2", "0.1", exact(True))
    with pytest.raises(ValueError, match="'csg-table2-sums' has no text; pass the result"):
        report.discrepancy("csg-table2-sums", " ", None)
    with pytest.raises(TypeError, match=r"a part of the claim is 0\.1; pass above"):
        report.discrepancy("csg-table2-sums", "0.1", [0.1])
    assert report.results().empty


def test_a_notebook_without_claims_writes_an_empty_table(report):
    assert report.results().empty
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
        "from memlens.evaluation.plots import Drawing\n"
        'frame = pd.DataFrame({"x": [1, 2], "y": [3, seeds]})\nax.plot(frame["x"], frame["y"])\n'
        'report.save(Drawing(fig, frame), "line", "a line")'
    )
    checks = (
        "from memlens.experiments.margins import exact\n"
        'report.check("two seeds", exact(seeds == 2))\n'
        'report.judge("curvature-sec4-3-toy", auroc=0.99)'
    )
    book = papermill_run(tmp_path, draw, checks, "report.results()", seeds=2)
    shown, printed = book.cells[3].outputs, book.cells[4].outputs
    assert [output.output_type for output in shown] == ["display_data"]
    picture = base64.b64decode(shown[0].data["image/png"])
    width = int.from_bytes(picture[16:20])
    assert 380 < width < 430  # 3.4 in at the style's 120 dots an inch: the style was in force
    assert printed[0].text.startswith("two seeds: yes\ncurvature section 4.3. ")
    folder = tmp_path / "figures" / "fashion_small"
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["00_checks.csv", "00_claims.csv", "00_line.csv", "00_line.png"]
    assert list(pd.read_csv(folder / "00_line.csv", comment="#")["y"]) == [3, 2]


def test_a_caption_of_another_profile_is_marked():
    for name, marked in (("fashion_small", False), ("other", True)):
        report = open_report("02_similarity", name)
        report.save(Drawing(drawing()[0], DATA), "curve", "CSG rises.")
        text = (report.folder / "02_curve.csv").read_text()
        assert ("# This caption was written for fashion_small.\n" in text) == marked


def test_only_the_whole_default_profile_must_have_something_to_measure(report):
    unknown = {"csg": [0.7, np.nan], "sgal": 0.8, "csl": 0.8}
    with pytest.raises(ValueError, match="csg is not finite"):
        report.judge(AGREES, **unknown)
    look = open_report("02_similarity", "fashion_small", scale=0.5)
    look.judge(AGREES, **unknown)
    (row,) = look.results().itertuples()
    assert "Pearson of CSG: not measured" in row.measured and row.verdict == "holds in part"
