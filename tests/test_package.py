"""The package as a whole: its public names, its layers, and what importing it costs."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import memlens

ROOT = Path(__file__).resolve().parents[1]


def lint(folder, *arguments):
    """Run import-linter with the project's contracts on a package in a folder."""
    code = "import sys; from importlinter.cli import lint_imports_command as c; sys.exit(c())"
    command = [sys.executable, "-c", code, str(ROOT / "pyproject.toml"), "--no-cache", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_subpackages_import_downward_only():
    found = lint(ROOT)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("storage/files.py", "from memlens.data import samples"),
        ("tracking/recorder.py", "def f():\n    from memlens.training import loop"),
        ("attacks/shadows.py", "import memlens.audit.config"),
        ("evaluation/validation.py", "from memlens.storage.store import Store"),
    ],
)
def test_an_import_upward_or_sideways_is_found(tmp_path, module, line):
    shutil.copytree(ROOT / "memlens", tmp_path / "memlens")
    path = tmp_path / "memlens" / module
    path.write_text(path.read_text() + f"\n{line}\n")
    found = lint(tmp_path)
    assert found.returncode == 1 and "BROKEN" in found.stdout, found.stdout


def test_every_public_name_is_there_and_no_name_is_public_twice():
    assert len(memlens.__all__) == len(set(memlens.__all__))
    for name in memlens.__all__:
        assert getattr(memlens, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'metrics'"):
        _ = memlens.metrics


def test_there_are_few_public_names_and_each_has_an_example():
    names = set(memlens.__all__) - set(memlens._SUBPACKAGES)
    assert len(names) <= 37
    without = [n for n in names if ">>>" not in (inspect.getdoc(getattr(memlens, n)) or "")]
    assert without == []


def test_importing_memlens_loads_nothing_heavy():
    code = (
        "import sys, memlens, memlens.__main__\n"
        "print(sorted({'torch', 'pandas', 'papermill'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_core_needs_no_package_of_an_extra(tmp_path):
    """A loop of one's own, a training on digits and an audit; what else needs which extra."""
    script = ROOT / "tests" / "without_extras.py"
    environment = os.environ | {"MEMLENS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    for what in ("own loop", "training", "audit"):
        assert f"{what} works" in done.stdout, done.stdout
    needing = re.findall(r"needs an extra: memlens\.(\S+)\.\w+", done.stdout)
    assert set(needing) == {"experiments", "tracking.integrations"}
    named = re.findall(r"error: .*pip install '?memlens\[(\w+)", done.stderr)
    assert named == ["notebooks", "audit", "notebooks"], done.stderr
