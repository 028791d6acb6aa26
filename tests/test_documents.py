"""Links, paths, names and commands in the documents exist, and the README is short.

Each check is a function of a text that returns the problems it finds, and is shown to find one.
"""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import memlens
from memlens.__main__ import build_parser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md",
                    ROOT / "data/README.md"])  # fmt: skip
MOST_WORDS = 1_000
FOLDERS = ("memlens", "tests", "figures", "docs", "benchmarks", "examples", "tools", "notebooks",
           "data", "results", ".ci")  # fmt: skip
WRITTEN_LATER = {"data/cache/", "results/"}  # by commands

each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS]
)


def words(text):
    """Words are what holds a letter or a digit: no bars of tables, no marks of headings."""
    return [token for token in text.split() if re.search(r"\w", token)]


def blocks(text, *languages):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for language, block in found if language in languages]


def prose(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# ---------------------------------------------------------------- the checks


def broken_links(text, path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        page = path.parent / file if file else path
        if not page.exists():
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(text if page == path else page.read_text()):
            yield f"{target}: no such heading"


def missing_paths(text, path):
    """Paths in backticks; NN stands for a notebook's number, name and <...> for any."""
    for name in re.findall(r"`([\w.]+/[\w./<>-]*)`", prose(text)):
        pattern = re.sub(r"<\w+>|(?<=NN_)name", "*", name).replace("NN", "[0-9][0-9]")
        if name.split("/")[0] not in FOLDERS or name in WRITTEN_LATER:
            continue
        if not any([*ROOT.glob(pattern), *path.parent.glob(pattern)]):
            yield f"{name}: no such file"


def unknown_names(text):
    """Code that does not compile, and names of memlens that are not public."""
    for block in blocks(text, "python"):
        try:
            tree = ast.parse(block)
        except SyntaxError as error:
            yield f"does not compile: {error}"
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "memlens":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from (name for name in names if not exists(name))
    for name in re.findall(r"\bml\.(\w+)", text):
        if name not in memlens.__all__:
            yield f"ml.{name}"
    for name in re.findall(r"`memlens\.([\w.]+)", prose(text)):
        if not exists(f"memlens.{name}"):
            yield f"memlens.{name}"


def exists(name):
    """Return True if a dotted name is a module of memlens, or in one."""
    place, _, leaf = name.rpartition(".")
    if place and hasattr(import_module(place), leaf):
        return True
    try:
        return bool(import_module(name))
    except ModuleNotFoundError:
        return False


def unknown_commands(text):
    """Subcommands of memlens with their options, and targets of make."""
    known = build_parser()._subparsers._group_actions[0].choices
    for name, rest in re.findall(r"\bmemlens ([a-z]+)([^\n`#]*)", code(text)):
        parser = known.get(name)
        if parser is None:
            yield f"memlens {name}"
            continue
        options = re.findall(r"(?<!\S)--[a-z-]+", rest)
        yield from (
            f"memlens {name} {o}" for o in options if o not in parser._option_string_actions
        )
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    for name in re.findall(r"(?:^|`)make ([\w-]+)", code(text), re.MULTILINE):
        if name not in targets.split():
            yield f"make {name}"


def code(text):
    """Blocks of code that are not Python, and what stands between backticks, a line each."""
    lines = re.findall(r"`[^`]+`", re.sub(r"\n(?=\S)", " ", prose(text)))
    return "\n".join([*blocks(text, "", "bash"), *lines])


def misplaced(text):
    """Names and lines of code that are not in the file that the same row or bullet names."""
    for row in re.findall(r"^(?:\||\* ).*$", text, re.MULTILINE):
        quoted = re.findall(r"`([^`]+)`", row)
        files = [ROOT / name for name in quoted if re.fullmatch(r"memlens/[\w/]+\.py", name)]
        source = "\n".join(file.read_text() for file in files)
        for name in quoted if files else ():
            if re.fullmatch(r"[\w.]+", name):
                leaf = re.escape(name.split(".")[-1])
                found = re.search(rf"^ *(?:def|class) {leaf}\b|^{leaf}\b", source, re.MULTILINE)
            else:
                found = name in source or name.startswith("memlens/")
            if not found:
                yield f"{name}: not in {', '.join(file.name for file in files)}"


# ---------------------------------------------------------------- what they find


def test_the_documents_are_there():
    names = {str(path.relative_to(ROOT)) for path in DOCUMENTS}
    assert names >= {"README.md", "CLAIMS.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md",
                     "TEACHING.md", "docs/own_data.md", "docs/own_loop.md"}  # fmt: skip


@each_document
def test_what_a_document_mentions_exists(path):
    text = path.read_text(encoding="utf-8")
    assert list(broken_links(text, path)) == []
    assert list(missing_paths(text, path)) == []
    assert list(unknown_names(text)) == []
    assert list(unknown_commands(text)) == []


@each_document
def test_every_document_is_named_in_the_readme_or_in_one_that_is(path):
    texts = [page.read_text() for page in DOCUMENTS if page != path]
    assert path.name == "README.md" or any(path.name in text for text in texts)


def test_the_readme_is_short():
    assert len(words((ROOT / "README.md").read_text())) <= MOST_WORDS


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_functions_are_where_the_tables_place_them(name):
    assert list(misplaced((ROOT / name).read_text())) == []


def test_the_layers_are_those_that_are_checked():
    drawn = re.search(r"^```\n(.*?)^```$", (ROOT / "ARCHITECTURE.md").read_text(), re.M | re.S)[1]
    layers = []  # from the top; a row without a number belongs to the layer above it
    for number, name in re.findall(r"^(\d| )  (\w+) {2,}", drawn, re.MULTILINE):
        layers += [set()] if number != " " else []
        layers[-1].add(f"memlens.{name}")
    contract = re.search(r"^layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    checked = [set(line.split(" | ")) for line in re.findall(r'"(.*)"', contract[1])]
    assert layers == checked


@pytest.mark.parametrize(
    ("check", "text", "found"),
    [
        (broken_links, "[a](nowhere.md)", "nowhere.md"),
        (broken_links, "![a](figures/none.png)", "none.png"),
        (broken_links, "# One\n[a](#two)", "#two"),
        (broken_links, "[a](CLAIMS.md#nowhere)", "no such heading"),
        (missing_paths, "see `memlens/nowhere.py`", "nowhere.py"),
        (missing_paths, "see `figures/digits/NN_nothing.csv`", "NN_nothing.csv"),
        (unknown_names, "```python\nml.nothing()\n```", "ml.nothing"),
        (unknown_names, "```python\nfor x in:\n```", "does not compile"),
        (unknown_names, "```python\nfrom memlens.audit import no\n```", "memlens.audit.no"),
        (unknown_names, "call `ml.nothing`", "ml.nothing"),
        (unknown_names, "call `memlens.data.samples.nothing`", "samples.nothing"),
        (unknown_commands, "```\nmemlens divine PATH\n```", "memlens divine"),
        (unknown_commands, "run `memlens cache --forever`", "--forever"),
        (unknown_commands, "run `make\nsense`", "make sense"),
        (misplaced, "| csg | `csg` | `memlens/tracking/signals.py` |", "csg"),
        (misplaced, "* `memlens/tracking/scores.py`: `return 2 * csg(trace)`", "return 2"),
    ],
)  # fmt: skip
def test_each_check_finds_a_planted_problem(check, text, found):
    with_path = check in (broken_links, missing_paths)
    problems = list(check(text, ROOT / "README.md") if with_path else check(text))
    assert len(problems) == 1 and found in problems[0]


def test_bars_and_marks_are_no_words():
    assert words("## A table\n\n| one | 2 |\n|---|---|\n") == ["A", "table", "one", "2"]
