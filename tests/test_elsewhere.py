"""Notebooks as other machines run them: what differs there is found, what is close is named."""

import shutil

import nbformat
import pandas as pd
import pytest

from memlens.experiments import margins
from memlens.experiments.margins import above, margin_table
from tools import elsewhere

LEAVE = """import os, pathlib
from memlens.experiments.margins import above, margin_table
folder = pathlib.Path(os.environ["MEMLENS_FIGURES"]) / "fashion_small"
folder.mkdir(parents=True)
threads = int(os.environ["OMP_NUM_THREADS"])
checks = margin_table([("check", "safe", [above(9, 1)]), ("check", "close", [above(threads, 0)])])
checks.to_csv(folder / "03_checks.csv", index=False)
print("ok")"""


def notebook(folder, source):
    """A notebook whose stored output is ok."""
    output = nbformat.v4.new_output("stream", name="stdout", text="ok\n")
    cell = nbformat.v4.new_code_cell(
        source, execution_count=1, outputs=[output], metadata={"tags": ["nbval-check-output"]}
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
    folder.mkdir()
    shutil.copy(elsewhere.ROOT / "conftest.py", folder)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), folder / "03_a.ipynb")
    return folder


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setattr(elsewhere, "WORK", tmp_path / "work")
    folder = tmp_path / "figures" / "fashion_small"
    folder.mkdir(parents=True)
    checks = margin_table([("check", "safe", [above(9, 1)]), ("check", "close", [above(2, 0)])])
    checks.to_csv(folder / "03_checks.csv", index=False)
    return folder


@pytest.mark.slow
def test_a_check_that_moves_from_machine_to_machine_is_named(stored, tmp_path, capsys):
    books = notebook(tmp_path / "books", LEAVE)
    assert elsewhere.main(["--machines", "sse", "--notebooks", str(books)]) == 1
    told = capsys.readouterr().out
    assert "2 checks, 1 closer than 3 spreads" in told
    assert "sse: checked outputs as stored" in told
    joined = pd.read_csv(stored / "margins.csv", dtype={"notebook": str}).set_index("name")
    assert joined.loc["close", "over_machines"] == pytest.approx(0.5**0.5, abs=1e-5)  # 2 and 1
    assert joined.loc["close", "margin"] == pytest.approx(2 * 2**0.5, abs=1e-4)
    assert joined.loc["safe", "margin"] == float("inf")


@pytest.mark.slow
def test_an_output_that_differs_elsewhere_is_found(stored, tmp_path, capsys):
    books = notebook(tmp_path / "books", LEAVE + '\nprint("but", threads)')
    assert elsewhere.main(["--machines", "avx2", "--notebooks", str(books)]) == 1
    assert "avx2: OTHER checked outputs" in capsys.readouterr().out


def test_all_safe_and_equal_is_success(capsys):
    table = margin_table([("check", "safe", [above([2, 2.1], 1)])]).assign(notebook="03")
    joined = margins.over_machines({"a": table, "b": table})
    assert elsewhere.report(joined, {"sse": True}) == 0
    assert elsewhere.report(joined, {"sse": False}) == 1


def test_the_machines_differ_in_instructions_and_threads():
    assert len(elsewhere.MACHINES) >= 3
    for place in ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "OMP_NUM_THREADS"):
        assert len({machine[place] for machine in elsewhere.MACHINES.values()}) == 3


def test_without_stored_checks_it_says_what_to_do(tmp_path):
    with pytest.raises(SystemExit, match="run `make notebooks` first"):
        elsewhere.checks_in(tmp_path)
