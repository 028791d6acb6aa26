"""The set-up files agree with each other, and with what the set-up script does."""

import ast
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from sklearn.datasets import load_digits
from without_extras import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EVERY = sorted(PROJECT["optional-dependencies"])


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def name_of(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement).group().lower().replace("_", "-")


# ---------------------------------------------------------------------------- versions


def test_every_constraint_is_a_bare_exact_pin():
    assert len(pins()) > 100
    for line in pins():
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][0-9a-z.]*", line), line


def test_constraints_are_sorted_and_name_each_package_once():
    names = [name_of(line) for line in pins()]
    assert len(names) == len(set(names))
    assert pins() == sorted(pins())


def test_each_dependency_is_bounded_on_both_sides_and_pinned_inside_its_bounds():
    packaging = pytest.importorskip("packaging.requirements")
    exact = dict(line.split("==") for line in pins())
    extras = sum(PROJECT["optional-dependencies"].values(), [])
    for text in PROJECT["dependencies"] + extras:
        requirement = packaging.Requirement(text)
        assert {"<", ">="} <= {s.operator for s in requirement.specifier}, text
        assert exact[name_of(text)] in requirement.specifier, text


def test_what_runs_here_is_what_was_pinned():
    from importlib.metadata import version

    exact = dict(line.split("==") for line in pins())
    names = map(name_of, PROJECT["dependencies"])
    found = {name: version(name).split("+")[0] for name in names}
    assert found == {name: exact[name] for name in found}


def test_the_script_without_extras_refuses_the_packages_of_every_extra():
    commands = {"ruff", "import-linter"}  # nothing imports them
    extras = {name_of(text) for text in sum(PROJECT["optional-dependencies"].values(), [])}
    assert extras - commands <= set(EXTRAS)
    assert set(EXTRAS).isdisjoint(map(name_of, PROJECT["dependencies"]))


def test_environment_yml_lists_what_pyproject_lists():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    *from_conda, pip = dependencies
    assert [name_of(text) for text in from_conda] == ["python", "pip"]
    first, *names, last = pip["pip"]
    assert (first, last) == ("-c constraints.txt", f"-e .[{','.join(EVERY)}]")
    assert names == [name_of(text) for text in PROJECT["dependencies"]]


def test_environment_yml_says_who_needs_each_package():
    text = (ROOT / "environment.yml").read_text()
    packages = re.findall(r"^      - (.*)$", text, re.MULTILINE)
    assert len(packages) == len(PROJECT["dependencies"]) + 2
    assert all(re.search(r" # \S", line) for line in packages)


def registry_hosts():
    """Built from artifacts, so that this file itself names none."""
    indexes = [".".join(p) for p in (("pypi", "org"), ("pythonhosted", "org"), ("anaconda", "org"))]
    return [
        *indexes,
        "download" + ".pytorch",
        "--" + "index-url",
        "--extra" + "-index",
        "find" + "-links",
    ]


def tracked_text():
    kinds = {".py", ".toml", ".txt", ".yml", ".md", ".cff", ".ipynb", ".mplstyle", ""}
    skipped = {
        ".git",
        ".venv",
        "cache",
        "__pycache__",
        ".ruff_cache",
        ".pytest_cache",
        ".hypothesis",
    }
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        ours = parts[0] != "data" or parts == ("data", "README.md")
        if path.is_file() and path.suffix in kinds and ours and not skipped & set(parts):
            yield path


def test_no_file_names_a_package_registry():
    paths = list(tracked_text())
    assert len(paths) > 20
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        found = [host for host in registry_hosts() if host in text]
        assert not found, f"{path.relative_to(ROOT)} names {found}"


# ---------------------------------------------------------------------------- make and CI


def test_ci_is_make_test_and_nothing_else():
    run = ROOT / ".ci" / "run"
    lines = [line for line in run.read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ["set -e", 'cd "$(dirname "$0")/.."', "make test"]
    assert run.stat().st_mode & 0o111


def test_help_is_the_default_and_names_every_target():
    text = subprocess.run(["make", "-C", ROOT], capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: help (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in phony.group(1).split():
        assert f"make {target} " in text


@pytest.mark.parametrize(
    ("targets", "purpose"),
    [("figures lab notebooks claims", "figures"), ("test test-fast test-elsewhere env", "test")],
)
def test_each_command_sets_up_what_it_needs(targets, purpose):
    for target in targets.split():
        plan = ["make", "-n", "-C", ROOT, target]
        shown = subprocess.run(plan, capture_output=True, text=True, check=True).stdout
        assert re.findall(r"setup_env.py .*--for (\w+)", shown) == [purpose], target


def test_make_test_stops_at_a_failure():
    plan = subprocess.run(
        ["make", "-n", "-C", ROOT, "test"], capture_output=True, text=True, check=True
    ).stdout
    assert "ruff check" in plan and "--nbval-lax --nbval-current-env" in plan
    config = (ROOT / "Makefile").read_text().split("\ntest:")[1].split("\n\n")[0]
    assert not re.search(r"^\t-|\|\||; *true", config, re.MULTILINE)


def test_make_test_runs_all_and_make_test_fast_what_is_not_slow():
    def plan(target):
        command = ["make", "-n", "-C", ROOT, target]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return shown[shown.index("ruff check") :]

    assert "pytest memlens tests notebooks" in plan("test") and "slow" not in plan("test")
    fast = plan("test-fast")
    assert '-m "not slow"' in fast and "--doctest-modules" in fast and "notebooks" not in fast


@pytest.fixture
def setup_env(tmp_path, monkeypatch):
    """The set-up script on a copy of the set-up files, with installs replaced by a note."""
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "tools" / "setup_env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    module.ROOT, module.VENV = tmp_path, tmp_path / ".venv"
    module.STAMP, module.ran = module.VENV / "memlens.stamp", []

    def call(command, **_):
        module.ran.append(command)
        (module.VENV / "bin").mkdir(parents=True, exist_ok=True)
        (module.VENV / "bin" / "python").touch()
        return 0

    monkeypatch.setattr(module.subprocess, "call", call)
    monkeypatch.setattr(module.sys, "argv", ["setup_env.py"])
    return module


def make(setup_env, purpose):
    """What a command of the Makefile has set up: the commands that ran."""
    setup_env.sys.argv[1:] = ["--for", purpose]
    setup_env.ran.clear()
    assert setup_env.main() == 0
    return setup_env.ran.copy()


def test_a_finished_environment_is_left_alone(setup_env):
    for purpose in ("figures", "test"):
        assert make(setup_env, purpose)
        assert make(setup_env, purpose) == []


def test_a_half_made_environment_is_removed_and_made_again(setup_env):
    (setup_env.VENV / "bin").mkdir(parents=True)
    (setup_env.VENV / "bin" / "python").touch()
    leftover = setup_env.VENV / "half-installed"
    leftover.touch()
    make(setup_env, "figures")
    assert not leftover.exists()
    assert setup_env.is_ready(["notebooks"])


def test_the_notebooks_get_the_extras_that_they_need_and_the_tests_get_all(setup_env):
    for purpose, extras in (("figures", ["confident", "notebooks"]), ("test", EVERY)):
        shutil.rmtree(setup_env.VENV, ignore_errors=True)
        _, fill, _ = make(setup_env, purpose)
        assert fill[-4:] == ["-c", "constraints.txt", "-e", f".[{','.join(extras)}]"]
        assert setup_env.installed() == extras


def test_the_rest_is_added_to_the_environment_of_the_notebooks(setup_env):
    make(setup_env, "figures")
    kept = setup_env.VENV / "installed for the notebooks"
    kept.touch()
    (added,) = make(setup_env, "test")  # no new environment, and memlens itself is not touched
    missing = set(EVERY) - {"confident", "notebooks"}
    further = [text for name in missing for text in PROJECT["optional-dependencies"][name]]
    assert added[-2 - len(further) :] == ["-c", "constraints.txt", *sorted(further)]
    assert kept.exists()
    assert setup_env.installed() == EVERY
    assert make(setup_env, "figures") == []  # a part of what is there


@pytest.mark.parametrize(("code", "usable"), [(1, True), (-9, False)])
def test_an_environment_that_could_not_be_added_to_is_kept_unless_that_was_killed(
    setup_env, monkeypatch, code, usable
):
    make(setup_env, "figures")
    monkeypatch.setattr(setup_env.subprocess, "call", lambda command, **_: code)
    with pytest.raises(SystemExit, match=f"(?s)failed .{code}.*network"):
        make(setup_env, "test")
    assert setup_env.is_ready(["confident", "notebooks"]) == usable
    assert not setup_env.is_ready(EVERY)


def test_there_is_no_stamp_while_something_is_added(setup_env, monkeypatch):
    make(setup_env, "figures")

    def die(command, **_):
        assert not setup_env.STAMP.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(setup_env.subprocess, "call", die)
    setup_env.sys.argv[1:] = ["--for", "test"]
    assert setup_env.main() == 130
    assert setup_env.installed() is None


@pytest.mark.parametrize(
    ("name", "old", "new", "remade"),
    [
        ("constraints.txt", "papermill==", "papermill==9", True),
        ("constraints.txt", "# The", "# Still the", False),
        ("pyproject.toml", "papermill>=", "papermill>=1.", True),
        ("pyproject.toml", "line-length = 100", "line-length = 99", False),
    ],
)
def test_a_new_pin_asks_for_a_new_environment_and_a_lint_setting_does_not(
    setup_env, name, old, new, remade
):
    make(setup_env, "figures")
    path = setup_env.ROOT / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert setup_env.is_ready(["notebooks"]) != remade


def test_a_failed_install_leaves_no_stamp_and_says_what_to_do(setup_env, monkeypatch):
    ok = setup_env.subprocess.call

    def fail(command, **_):
        ok(command)
        return 2 if "install" in command else 0

    monkeypatch.setattr(setup_env.subprocess, "call", fail)
    with pytest.raises(SystemExit, match="(?s)failed .2.*Running make again.*network") as stop:
        setup_env.main()
    assert stop.value.code != 0
    assert setup_env.installed() is None


def test_uv_is_used_where_it_is_and_pip_where_it_is_not(setup_env, monkeypatch):
    monkeypatch.setattr(setup_env.shutil, "which", lambda name: f"/bin/{name}")
    assert setup_env.commands("auto")[1][:3] == ["uv", "pip", "install"]
    assert setup_env.commands("pip")[1][1:4] == ["-m", "pip", "install"]
    monkeypatch.setattr(setup_env.shutil, "which", lambda name: None)
    assert setup_env.commands("auto")[1][1:4] == ["-m", "pip", "install"]
    for installer in ("uv", "pip"):
        assert setup_env.commands(installer)[1][-2:] == ["-c", "constraints.txt"]


def test_an_old_python_is_told_what_is_needed(setup_env, monkeypatch):
    monkeypatch.setattr(setup_env.sys, "version_info", (3, 9, 1))
    monkeypatch.setattr(setup_env.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="needs Python 3.11 or newer.* is 3.9"):
        setup_env.main()


def test_the_setup_script_needs_the_standard_library_only():
    tree = ast.parse((ROOT / "tools" / "setup_env.py").read_text(), feature_version=(3, 7))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [getattr(n, "module", None) or n.names[0].name for n in imports]
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


# ---------------------------------------------------------------------------- data


def test_the_digits_are_those_that_the_data_page_describes():
    page = (ROOT / "data" / "README.md").read_text()
    digits = load_digits()
    for array in (digits.images, digits.target):
        assert hashlib.sha256(array.astype("uint8").tobytes()).hexdigest() in page
