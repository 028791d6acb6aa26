"""The rooms import only from those above them, and importing memlens costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import memlens

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (*memlens._ROOMS, "__main__")  # from the ground up


def imported_rooms(source):
    """Names of the memlens rooms that a module's source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = "memlens" if node.level else ""
            base = ".".join(filter(None, [package, node.module]))
            names = (
                [f"{base}.{alias.name}" for alias in node.names] if base == "memlens" else [base]
            )
        else:
            continue
        for name in names:
            if name.startswith("memlens."):
                yield name.split(".")[1]


def downward_imports(package, rooms):
    """Problems: a module that is no room, an import from its own floor or below."""
    problems = []
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).with_suffix("").parts[0]
        if room == "__init__":
            continue
        if room not in rooms:
            problems.append(f"{room} is not in the table of rooms")
            continue
        above = {*rooms[: rooms.index(room)], "__version__"}
        wrong = sorted(set(imported_rooms(path.read_text())) - above)
        problems += [f"{room} imports {name}, which is not above it" for name in wrong]
    return problems


def test_each_room_imports_only_from_those_above_it():
    assert downward_imports(ROOT / "memlens", ROOMS) == []


@pytest.mark.parametrize(
    "line",
    ["from memlens import train", "from memlens.train import x", "from . import train",
     "from .train import x", "import memlens.train", "def f():\n    from .train import x"],
)  # fmt: skip
def test_a_downward_import_is_found_however_it_is_written(tmp_path, line):
    (tmp_path / "__init__.py").write_text("from memlens import train")
    (tmp_path / "data.py").write_text(line)
    (tmp_path / "train.py").write_text("import numpy\nfrom memlens.data import load")
    problems = downward_imports(tmp_path, ("data", "train"))
    assert problems == ["data imports train, which is not above it"]


def test_a_module_that_is_no_room_is_found(tmp_path):
    (tmp_path / "helpers.py").write_text("")
    assert downward_imports(tmp_path, ("data",)) == ["helpers is not in the table of rooms"]


def test_importing_memlens_loads_nothing_heavy():
    code = (
        "import sys, memlens, memlens.__main__\n"
        "print(sorted({'torch', 'pandas', 'papermill'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


# What shapes no number of a finished piece: where it lies, how it is shown, what is only asked of
# a finished run, and what refuses to begin.
SHAPELESS = {"store", "drafts", "checks", "metrics", "plots", "scores", "forecast", "passes",
             "jobs", "workers", "imagesets"}  # fmt: skip


def behind(rooms):
    """All rooms that these import, and those that they import."""
    found, left = set(), set(rooms)
    while left:
        room = left.pop()
        found.add(room)
        source = (ROOT / "memlens" / f"{room}.py").read_text()
        left |= {r for r in imported_rooms(source) if r not in found and r not in SHAPELESS}
    return found


@pytest.mark.parametrize("room", ["jobs", "subsets", "retrainings"])
def test_a_key_knows_every_room_that_shapes_the_result(room):
    own = set(getattr(memlens, room)._ROOMS)
    # A sweep and a retraining record nothing in the step, and hand over no run.
    unused = {"traces", "visits", "epochs", "recorder", "stopping", "runs", "probes", "weightgrads",
              "folders", "ranks", "steps"} if room != "jobs" else set()  # fmt: skip
    assert behind(own) - unused - SHAPELESS <= own
