"""The examples run as they stand, and say what they promise."""

import os
import re
import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import memlens as ml

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
pytestmark = pytest.mark.slow


def _run(name, arguments, folder):
    """As ``python examples/name`` would, in a process of its own."""
    for stream in (sys.stdout, sys.stderr):
        file = os.open(folder / stream.name.strip("<>"), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream.fileno())
    torch.set_num_threads(1)
    here = Path(__file__).parent
    sys.path[:] = [p for p in sys.path if Path(p) not in (here, here.parent / "benchmarks")]
    sys.path.insert(0, str(EXAMPLES))
    sys.argv = [str(EXAMPLES / name), *map(str, arguments)]
    runpy.run_path(sys.argv[0], run_name="__main__")


@pytest.fixture
def said(ready, tmp_path):
    """Runs an example with arguments; what it prints."""

    def run(name, *arguments):
        process = ready.Process(target=_run, args=(name, arguments, tmp_path))
        process.start()
        process.join(150)
        process.kill()
        out, err = ((tmp_path / name).read_text() for name in ("stdout", "stderr"))
        assert process.exitcode == 0, err[-3000:]
        return out

    return run


def test_each_example_is_short_and_tried_here():
    source = Path(__file__).read_text()
    paths = sorted(EXAMPLES.glob("*.py"))
    assert len(paths) == 4
    for path in paths:
        assert len(path.read_text().splitlines()) <= 80
        assert f'"{path.name}"' in source


@pytest.mark.parametrize("how", [[], ["--accumulate", 2], ["--amp"]])
def test_a_loop_of_ones_own(said, how):
    text = said("own_loop.py", *how)
    assert "Peak(peak_epoch=" in text
    aurocs = [float(value) for value in re.findall(r": (0\.\d+|1\.0+)$", text, re.MULTILINE)]
    assert len(aurocs) == 3 and min(aurocs[:2]) > 0.9


def test_the_readmes_five_lines_run_as_they_stand():
    readme = (EXAMPLES.parent / "README.md").read_text()
    section = readme.split("## Your own loop in five lines")[1]
    block = section.split("```python\n")[1].split("```")[0]
    assert re.findall(r"# (\d)", block) == list("12345")
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    names = {
        "ml": ml, "DataLoader": DataLoader, "F": torch.nn.functional, "model": model, "epochs": 3,
        "dataset": TensorDataset(torch.randn(20, 4), torch.arange(20) % 3),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }  # fmt: skip
    before = model[0].weight.clone()
    exec(block, names)
    assert names["recorder"].n_epochs == len(names["stop"].values) == 3
    assert len(names["scores"]) == 20 and names["scores"].notna().all().all()
    assert not torch.equal(model[0].weight, before)


def test_the_lightning_example_prints_its_peak_and_its_scores(said):
    pytest.importorskip("lightning")
    text = said("lightning_loop.py")
    assert re.match(r"\d+ epochs, Peak\(", text) and "forgetting" in text


def test_the_huggingface_example_prints_its_epochs_and_its_scores(said):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    text = said("huggingface_trainer.py")
    assert "4 epochs" in text and "forgetting" in text


def test_cleanlab_uses_the_scores_that_the_example_hands_over(said, tmp_path):
    pytest.importorskip("cleanlab")
    text = said("hand_over.py", tmp_path)
    table = pd.read_csv(tmp_path / "scores.csv")
    assert len(table) == 1797 and {"filepath", "label", "csl"} <= set(table)
    assert all(Path(path).is_file() for path in table.filepath)
    assert int(re.search(r"(\d+) of cleanlab's 50", text).group(1)) > 40
    before, after = (float(v) for v in re.findall(r"labels, .*: (0\.\d+)$", text, re.MULTILINE))
    assert after > before
