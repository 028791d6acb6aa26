"""The examples run as they stand, and say what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import memlens as ml

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def said(name, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True, text=True, timeout=150, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_each_example_is_short_and_tried_here():
    source = Path(__file__).read_text()
    paths = sorted(EXAMPLES.glob("*.py"))
    assert len(paths) == 4
    for path in paths:
        assert len(path.read_text().splitlines()) <= 80
        assert f'"{path.name}"' in source


@pytest.mark.parametrize("how", [[], ["--accumulate", 2], ["--amp"]])
def test_a_loop_of_ones_own(how):
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


def test_lightning():
    pytest.importorskip("lightning")
    text = said("lightning_loop.py")
    assert re.match(r"\d+ epochs, Peak\(", text) and "forgetting" in text


def test_huggingface():
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    text = said("huggingface_trainer.py")
    assert "4 epochs" in text and "forgetting" in text


def test_handing_over(tmp_path):
    pytest.importorskip("cleanlab")
    text = said("hand_over.py", tmp_path)
    table = pd.read_csv(tmp_path / "scores.csv")
    assert len(table) == 1797 and {"filepath", "label", "csl"} <= set(table)
    assert all(Path(path).is_file() for path in table.filepath)
    assert int(re.search(r"(\d+) of cleanlab's 50", text).group(1)) > 40
    before, after = (float(v) for v in re.findall(r"labels, .*: (0\.\d+)$", text, re.MULTILINE))
    assert after > before
