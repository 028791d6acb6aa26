"""The headless run, on small notebooks written for each test; and the limits of nbval."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat import v4

from memlens import __main__
from memlens.experiments import reproduce
from memlens.storage import store

ROOT = Path(__file__).resolve().parents[2]
PROFILE = 'profile: str = "fashion_small"  # which data'
PARAMETERS = f"{PROFILE}\nseeds: int = 3  # how many\nrate: float = 0.1"
CLAIMS = """import csv, os, pathlib
folder = pathlib.Path(os.environ["MEMLENS_FIGURES"]) / profile
folder.mkdir(parents=True, exist_ok=True)
for name in ("00_a.png", "00_b.png", "00_a.csv", "01_other.png"):
    (folder / name).write_bytes(b"x")
verdicts = ["kind,verdict", "claim,holds", "claim,holds in part", "claim,holds",
            "claim,does not hold here", "discrepancy,seen here too"]
(folder / "00_claims.csv").write_text("\\n".join(verdicts))
"""


def notebook(folder, name, *sources, tag="nbval-check-output", parameters=PARAMETERS):
    """Write a notebook with a parameters cell and one cell per source; returns its path."""
    cells = [v4.new_markdown_cell("# A title", id="title")]
    cells.append(v4.new_code_cell(parameters, id="first", metadata={"tags": ["parameters"]}))
    for number, source in enumerate(sources):
        cells.append(v4.new_code_cell(source, id=f"c{number}", metadata={"tags": [tag]}))
    metadata = {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
    folder.mkdir(exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells, metadata=metadata), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty notebooks folder of a checkout of its own, with two profiles."""
    profiles = SimpleNamespace(PROFILES={"fashion_small": None, "mnist": None})
    monkeypatch.setitem(sys.modules, "memlens.experiments.profiles", profiles)
    monkeypatch.setattr(store, "root", lambda: tmp_path)
    monkeypatch.setenv("MEMLENS_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks"


def executed_copy(folder, name, profile="fashion_small"):
    path = folder.parent / "figures" / profile / "notebooks" / f"{name}.ipynb"
    return nbformat.read(path, as_version=4)


# ---------------------------------------------------------------------------- a run


def test_a_run_counts_figures_and_claims_and_leaves_the_notebook_alone(folder, capsys):
    source = notebook(folder, "00_primer", CLAIMS)
    before = source.read_bytes()
    assert __main__.main(["reproduce"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"00_primer +\d+\.\d +2 +2 of 4", out)
    assert "2 of 4 claims hold" in out
    assert source.read_bytes() == before
    assert executed_copy(folder, "00_primer").cells[2].execution_count == 2


def test_a_failure_is_shown_and_does_not_stop_the_others(folder, capsys):
    notebook(folder, "00_primer", "x = 1", "y = x - 1\nprint(x / y)")
    notebook(folder, "01_next", "print('still here')")
    assert __main__.main(["reproduce"]) == 1
    shown = capsys.readouterr()
    for part in ("00_primer failed in cell 4", "print(x / y)", "ZeroDivisionError"):
        assert part in shown.err
    assert re.search(r"00_primer .*FAILED", shown.out)
    assert re.search(r"01_next .*0 of 0 *\n", shown.out)
    assert executed_copy(folder, "01_next").cells[2].outputs[0].text == "still here\n"


def test_the_cell_number_is_that_of_the_file_when_parameters_are_injected(folder, capsys):
    notebook(folder, "00_primer", "x = 1", "raise ValueError(f'{profile} {seeds}')")
    assert __main__.main(["reproduce", "--profile", "mnist", "-p", "seeds=5"]) == 1
    shown = capsys.readouterr().err
    assert "in cell 4" in shown
    assert "ValueError: mnist 5" in shown


def test_a_kernel_that_dies_is_a_failure_like_any_other(folder, capsys):
    notebook(folder, "00_primer", "import os\nos._exit(3)")
    assert __main__.main(["reproduce"]) == 1
    assert "00_primer failed outside its cells: DeadKernelError" in capsys.readouterr().err


def test_the_kernel_is_ours_whatever_the_user_has_set(folder, monkeypatch, tmp_path):
    kernel = tmp_path / "evil" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text('{"argv": ["false"], "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "evil"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook(
        folder,
        "00_primer",
        "import os, sys, memlens\nprint(sys.executable)\nprint(memlens.__file__)",
        "assert 'inline' in os.environ['MPLBACKEND'], os.environ['MPLBACKEND']",
    )
    report = reproduce.reproduce()
    assert report["failure"].tolist() == [""]
    lines = executed_copy(folder, "00_primer").cells[2].outputs[0].text.splitlines()
    assert lines == [sys.executable, str(ROOT / "memlens" / "__init__.py")]
    assert os.environ["JUPYTER_PATH"] == str(tmp_path / "evil")  # put back afterwards


DRAWN = """import os, pathlib
folder = pathlib.Path(os.environ["MEMLENS_FIGURES"]) / profile
(folder / "00_a.csv").write_text(f"# a caption\\nx,y\\n1,0.5\\n2,{rate * 15}\\n")
(folder / "00_claims.csv").write_text(
    "kind,id,verdict\\nclaim,csg-table1-agreement,holds in part\\n")
"""


def test_the_summary_lists_what_differs_from_the_stored_numbers(folder, capsys):
    figures = folder.parent / "figures" / "fashion_small"
    figures.mkdir(parents=True)
    (figures / "00_a.csv").write_text("x,y\n1,0.5\n2,1.0\n")
    (figures / "00_claims.csv").write_text("kind,id,verdict\nclaim,csg-table1-agreement,holds\n")
    notebook(folder, "00_primer", DRAWN)
    assert __main__.main(["reproduce"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "00_a    100.0%  y" in lines
    assert "Verdicts that changed: 1" in lines
    assert "csg-table1-agreement: holds in part, before: holds" in lines
    assert __main__.main(["reproduce"]) == 0  # nothing is run, and the same is printed
    assert [line.strip() for line in capsys.readouterr().out.splitlines()][-3:] == lines[-3:]


@pytest.mark.slow
def test_a_second_call_runs_only_what_would_come_out_differently(folder, capsys):
    source = notebook(folder, "00_primer", CLAIMS, "import os; os.mkdir('ran')")
    figure = folder.parent / "figures" / "fashion_small" / "00_a.png"

    def again(*arguments):
        (folder / "ran").rmdir() if (folder / "ran").exists() else None
        assert __main__.main(["reproduce", *arguments]) == 0
        return (folder / "ran").exists(), capsys.readouterr().out

    assert again()[0]
    ran, out = again()
    assert not ran
    assert re.search(r"00_primer +0\.\d +2 +2 of 4 +unchanged", out)
    figure.write_bytes(b"touched up")
    assert again()[0]
    assert figure.read_bytes() == b"x"
    figure.unlink()
    assert again()[0]
    assert again("-p", "seeds=4")[0]
    assert again()[0]
    assert again("--fresh")[0]
    assert not again()[0]
    source.write_text(source.read_text().replace("00_b.png", "00_c.png"))
    assert again()[0]


def test_a_failed_notebook_is_run_again(folder):
    notebook(folder, "00_primer", "import os; os.mkdir('ran')", "1 / 0")
    for _ in range(2):
        assert __main__.main(["reproduce"]) == 1
        (folder / "ran").rmdir()


def test_fresh_empties_the_cache(folder, capsys):
    store.Store().put("0" * 16, store.Artifact({}, {}))
    notebook(folder, "00_primer", "x = 1")
    assert __main__.main(["reproduce", "--fresh"]) == 0
    assert "cache emptied: 1 artifacts" in capsys.readouterr().out
    assert store.Store().get("0" * 16) is None


@pytest.mark.slow
def test_an_interrupt_stops_cleanly(folder, tmp_path):
    source = notebook(folder, "00_primer", "import time\nopen('started', 'w')\ntime.sleep(60)")
    before = source.read_bytes()
    code = f"""
import sys, pathlib, types
profiles = types.SimpleNamespace(PROFILES={{"fashion_small": None}})
sys.modules["memlens.experiments.profiles"] = profiles
from memlens import __main__
from memlens.storage import store
store.root = lambda: pathlib.Path({str(folder.parent)!r})
sys.exit(__main__.main(["reproduce"]))
"""
    # A shell starts what runs in its background with interrupts ignored, and children inherit it.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    ) as job:
        deadline = time.monotonic() + 60
        while not (folder / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        job.send_signal(signal.SIGINT)
        try:
            _, shown = job.communicate(timeout=30)
        finally:
            job.kill()
    assert job.returncode == 130, shown
    assert "memlens: stopped" in shown
    assert "Traceback" not in shown
    assert source.read_bytes() == before


# ---------------------------------------------------------------------------- wrong use


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "07"], "no notebook begins with 07; there are: 00_primer, 01_next"),
        (["--profile", "cifar"], "unknown profile 'cifar'; there are: fashion_small, mnist"),
        (["-p", "sedes=3"], "00_primer has no parameter 'sedes'; it has: profile, seeds, rate"),
        (["-p", "seeds=many"], "parameter 'seeds' is str 'many'; expected int, as its default 3"),
        (
            ["--save", "-p", "seeds=4"],
            "00_primer would run with seeds=4, but only outputs of the default",
        ),
        (["--save", "--profile", "mnist"], "would run with profile='mnist'"),
    ],
)
def test_wrong_use_is_refused_before_anything_runs(folder, capsys, arguments, message):
    for name in ("00_primer", "01_next"):
        notebook(folder, name, "open('ran', 'w')")
    assert __main__.main(["reproduce", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "ran").exists()


def test_a_notebook_without_a_profile_is_refused(folder, capsys):
    notebook(folder, "00_primer", "x = 1", parameters="seeds = 3")
    assert __main__.main(["reproduce"]) == 2
    assert "00_primer has no parameter 'profile'; it has: seeds" in capsys.readouterr().err


def test_an_empty_folder_is_named(folder, capsys):
    assert __main__.main(["reproduce"]) == 2
    assert f"no notebooks in {folder}" in capsys.readouterr().err


def test_only_takes_numbers_and_names(folder):
    for name in ("00_primer", "01_theory", "02_similarity"):
        notebook(folder, name)
    assert [p.stem for p in reproduce.select(folder, ["02", "00_pr"])] == [
        "00_primer",
        "02_similarity",
    ]


def test_a_whole_number_is_welcome_where_a_float_stands(folder):
    path = notebook(folder, "00_primer")
    assert reproduce.changed_parameters(path, {"rate": 1, "seeds": 3}) == {"rate": 1}


@pytest.mark.parametrize(
    ("text", "pair"),
    [("seeds=3", ("seeds", 3)), ("name=mlp", ("name", "mlp")), ("x=a=b", ("x", "a=b")),
     ("rates=[0.1, 0.2]", ("rates", [0.1, 0.2]))],
)  # fmt: skip
def test_parameters_are_read_as_literals_else_text(text, pair):
    assert __main__.parse_parameter(text) == pair


def test_a_parameter_without_value_is_refused(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["reproduce", "-p", "seeds"])
    assert "expected NAME=VALUE, found 'seeds'" in capsys.readouterr().err


# ---------------------------------------------------------------------------- saving


def test_saving_twice_gives_the_same_bytes_without_volatile_lines(folder):
    source = notebook(folder, "00_primer", "import sys\nprint(seeds)\nprint('e', file=sys.stderr)")
    assert __main__.main(["reproduce", "--save"]) == 0
    first = source.read_bytes()
    assert __main__.main(["reproduce", "--save"]) == 0
    assert source.read_bytes() == first
    for volatile in (b"papermill", b'execution"', b"version", b"start_time", b"injected"):
        assert volatile not in first
    saved = nbformat.read(source, as_version=4)
    assert [c.get("execution_count") for c in saved.cells] == [None, 1, 2]
    assert saved.cells[2].metadata == {"tags": ["nbval-check-output"]}
    assert saved.cells[2].outputs[0].text == "3\n"


def test_a_failed_notebook_is_not_saved_but_its_copy_is_kept(folder):
    source = notebook(folder, "00_primer", "print('so far')", "1 / 0")
    before = source.read_bytes()
    assert __main__.main(["reproduce", "--save"]) == 1
    assert source.read_bytes() == before
    copy = executed_copy(folder, "00_primer")
    assert [c.source for c in copy.cells] == [
        c.source for c in nbformat.read(source, as_version=4).cells
    ]
    assert copy.cells[3].outputs[0].ename == "ZeroDivisionError"


# ---------------------------------------------------------------------------- the command line


def test_the_catalogue_is_printed(capsys):
    assert __main__.main(["catalogue"]) == 0
    assert "csg" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["score", "scores"])
def test_an_unknown_command_lists_the_commands(name, capsys):
    """These were two commands in version 0.1."""
    with pytest.raises(SystemExit) as stop:
        __main__.main([name])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert f"invalid choice: '{name}'" in error
    listed = error.split("choose from")[1]
    found = re.findall(r"\w+", listed)
    assert found == ["audit", "train", "truth", "reproduce", "claims", "catalogue", "cache"]


@pytest.mark.slow
def test_a_reader_that_stops_early_gets_no_traceback():
    command = f"{sys.executable} -m memlens catalogue | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""


def test_help_is_there(capsys):
    with pytest.raises(SystemExit) as stop:
        __main__.main(["--help"])
    assert stop.value.code == 0
    assert "reproduce" in capsys.readouterr().out


# ---------------------------------------------------------------------------- nbval

SCORE = """import numpy as np

def csg(gradients):
    return SIGN * (gradients**2).sum(axis=0)
"""
CHECKED = """from score import csg
scores = csg(np.array([[0.1, 0.5, 0.2], [0.0, 0.4, 0.3]]))
print("the hard sample scores highest:", "yes" if scores.argmax() == 1 else "NO")
"""


def nbval(*paths):
    at = paths[0].parent
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", at, *paths]
    command += ["--nbval-lax", "--nbval-current-env", "--color=no", "-p", "no:cacheprovider", "-v"]
    return subprocess.run(command, capture_output=True, text=True, cwd=at)


@pytest.mark.slow
def test_a_broken_score_makes_nbval_fail(folder):
    """The same notebook twice: beside the score that it was saved with, and beside another."""
    (folder / "score.py").write_text(SCORE.replace("SIGN", "+1"))
    path = notebook(folder, "00_primer", "import numpy as np", CHECKED)
    assert __main__.main(["reproduce", "--save"]) == 0
    other = folder / "broken" / path.name
    other.parent.mkdir()
    other.write_bytes(path.read_bytes())
    (other.parent / "score.py").write_text(SCORE.replace("SIGN", "-1"))
    done = nbval(path, other)
    assert done.returncode == 1
    outcomes = re.findall(r"^(\S+)::ipynb::Cell \d+ (PASSED|FAILED)", done.stdout, re.MULTILINE)
    failed = {name for name, outcome in outcomes if outcome == "FAILED"}
    assert len(outcomes) == 6 and failed == {f"broken/{path.stem}"}
    assert "the hard sample scores highest: NO" in done.stdout


@pytest.mark.slow
def test_nbval_passes_a_notebook_without_outputs_and_our_gate_does_not(folder):
    from test_notebooks import executed

    path = notebook(folder, "00_primer", "print('never compared')")
    assert nbval(path).returncode == 0
    assert executed(folder) == ["00_primer was not run from top to bottom: [None, None]"]
    assert __main__.main(["reproduce", "--save"]) == 0
    assert executed(folder) == []


@pytest.mark.slow
def test_the_notebooks_take_a_first_look_in_a_moment(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEMLENS_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("MEMLENS_JOBS", "1")  # processes take longer to start than so few nets
    size = {"scale": 0.1, "n_samples": 100}
    report = reproduce.reproduce(only=["01", "03"], parameters=size)
    assert report["failure"].tolist() == ["", ""]
    assert (report["figures"] >= 7).all() and (report["claims"] >= 8).all()
    text = (tmp_path / "figures" / "fashion_small" / "01_threshold.csv").read_text()
    assert "# First look, not the whole profile: 6 of 60 epochs, 44 of 400 networks" in text
