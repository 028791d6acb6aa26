"""``memlens cache`` lists, verifies and removes the files of memlens and no others."""

import json
import os
import re

import numpy as np
import pytest
import torch

from memlens.__main__ import main
from memlens.storage import files, inventory
from memlens.storage.checkpoints import TrainingCheckpoint
from memlens.storage.store import Artifact, Store

RUN, SWEEP, FOLDS = (f"{kind}-{k:016x}" for k, kind in enumerate(("run", "sweep", "second_split")))
BEGUN, STARTED = f"sweep-{7:016x}", f"run-{8:016x}"  # both unfinished
OTHERS = ("notes.txt", "run-1", "run-xyz", "request.json", ".hidden", "photos")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An entry of each kind, and files that memlens did not write."""
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    cache = Store(tmp_path)
    big = {"x": np.zeros(20_000)}
    cache.put(RUN, Artifact({"x": np.zeros(20)}, {}, "mlp, 300 samples", 7300.0))
    cache.put(SWEEP, Artifact(big, {}, "4 x mlp", 100.0))
    cache.put(FOLDS, Artifact({}, {}))
    cache.put(f"{BEGUN}.0-49", Artifact({}, {}, "50 x mlp", 20.0))
    cache.put(f"{SWEEP}.0-49", Artifact({}, {}, "50 x mlp"))  # finished
    cache.put(f"folds-{9:016x}.3-nets", Artifact({}, {}, "3 x mlp", 30.0))
    for key in (STARTED, RUN):  # the second is finished
        TrainingCheckpoint.of(cache, key).save({"net": torch.arange(3)})
    (tmp_path / ".checkpoints" / f".{RUN}.checkpoint.77.part").write_bytes(b"half")
    (tmp_path / f".{RUN}.77.part").mkdir()
    (tmp_path / f"..damaged-{RUN}.77.part").mkdir()
    (tmp_path / f".damaged-{RUN}").mkdir()
    (tmp_path / ".checkpoints" / f"{SWEEP}.damaged").write_bytes(b"x")
    for name in OTHERS:
        (tmp_path / name).mkdir()
    for k, name in enumerate((FOLDS, SWEEP, RUN)):  # the run is the oldest
        for path in (tmp_path / name).iterdir():
            os.utime(path, (1e9 - 1000 * k, 1e9 - 1000 * k))
        os.utime(tmp_path / name, (1e9 - 1000 * k, 1e9 - 1000 * k))
    return cache


def kinds(cache):
    return sorted(entry.kind for entry in inventory.entries(cache.folder))


ALL = sorted(["run", "sweep", "second_split", "part", "part", "checkpoint", *["damaged"] * 2,
              *["leftover"] * 5])  # fmt: skip


def test_only_files_of_the_cache_are_listed(cache):
    assert kinds(cache) == ALL
    assert not {e.name for e in inventory.entries(cache.folder)} & set(OTHERS)
    assert inventory.entries(cache.folder / "nowhere") == []


def test_the_table_has_size_age_and_cost(cache, capsys):
    assert main(["cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"run +{RUN} +[\d.]+ k?B +\d+ days +2 h +mlp, 300 samples",
        next(line for line in lines if line.startswith("run ")),
    )
    assert "unknown" in next(line for line in lines if line.startswith("second_split"))
    old = [re.split(" +", line)[0] for line in lines if "days" in line]
    assert old == ["second_split", "sweep", "run"]  # the newest first
    assert lines[-1].startswith("in all 13 entries, ") and lines[-1].endswith("2 h of computing")
    assert main(["cache", "list", "--by", "size"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("sweep ")


def test_verify_lists_damaged_entries(cache, capsys):
    assert main(["cache", "verify"]) == 0
    assert capsys.readouterr().out == "13 verified, 0 damaged\n"
    for path in (cache.folder / RUN / "config.json", TrainingCheckpoint.of(cache, STARTED).path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    (cache.folder / f"{BEGUN}.0-49" / "arrays.npz").unlink()
    before = kinds(cache)
    assert main(["cache", "verify"]) == 1
    printed = capsys.readouterr().out
    for name in (f"{RUN}:", f"{STARTED}.checkpoint:", f"{BEGUN}.0-49: FileNotFoundError"):
        assert name in printed
    assert printed.endswith("13 verified, 3 damaged\n")
    assert kinds(cache) == before  # nothing is changed


def test_clear_removes_all_or_the_chosen_entries(cache, capsys):
    assert main(["cache", "clear", "--kind", "part", "--yes"]) == 0
    assert "removed 2 entries" in capsys.readouterr().out
    assert main(["cache", "clear", "--older-than", "3", "--yes"]) == 0
    assert "removed 3 entries" in capsys.readouterr().out
    assert not {"run", "sweep", "second_split"} & set(kinds(cache))
    assert main(["cache", "clear", "--yes"]) == 0
    assert kinds(cache) == []
    assert {p.name for p in cache.folder.iterdir() if any(p.name == o for o in OTHERS)} == set(
        OTHERS
    )
    assert main(["cache", "clear"]) == 0  # without entries there is no question
    assert "in all 0 entries, 0 B" in capsys.readouterr().out


def test_clear_asks_first(cache, monkeypatch, capsys):
    assert main(["cache", "clear"]) == 2
    assert "Pass --yes to remove it" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, code, left in (("n", 1, ALL), ("y", 0, [])):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert main(["cache", "clear"]) == code
        assert kinds(cache) == left


def test_clear_keeps_what_a_process_computes(cache, capsys):
    with files.locked(cache.lock_of(SWEEP), "it"):
        assert main(["cache"]) == 0
        assert main(["cache", "clear", "--yes"]) == 0
    left = f"in use by a running process, not removed: {SWEEP}"
    assert left in capsys.readouterr().out
    assert set(kinds(cache)) == {"sweep", "leftover", "damaged"}


def test_the_output_folder_of_an_audit_is_accepted(cache, tmp_path, capsys):
    scored = tmp_path / "photos"
    Store(scored / "run").put(RUN, Artifact({}, {}))
    (scored / "run" / "request.json").write_text(json.dumps({}))
    for folder in (scored, scored / "run"):
        assert main(["cache", "--folder", str(folder)]) == 0
        assert "in all 1 entry" in capsys.readouterr().out
    assert main(["cache", "--folder", str(tmp_path / "nowhere")]) == 2
    assert main(["cache", "--kind", "sweeps"]) == 2
    assert "the kinds here are: checkpoint, damaged, leftover, part, run" in capsys.readouterr().err


@pytest.mark.parametrize("config", ["[]", '{"seconds": "long"}', "\0", "[" * 99_999])
def test_a_damaged_artifact_can_be_listed_and_removed(cache, config):
    (cache.folder / RUN / "config.json").write_text(config)
    (entry,) = inventory.chosen(inventory.entries(cache.folder), "run")
    assert entry.seconds is None
    inventory.clear([entry])
    assert RUN not in cache


def test_an_entry_removed_by_another_process_is_not_damaged(cache):
    found = inventory.entries(cache.folder)
    cache.clear()
    assert inventory.verify(found) == []
    inventory.clear(found)
