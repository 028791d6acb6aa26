"""What the nine notebooks have to be, read from their files; nbval runs them.

nbval passes a notebook that holds no outputs, never compares pictures, and skips a cell that
asks for it. So each gate here is a function of a folder that returns the problems it found, and
each is shown to find one.
"""

import ast
import copy
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from memlens.experiments.claims import NOTEBOOKS, claims

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = NOTEBOOKS
CHECK = "nbval-check-output"
MEDIAN_LINES, MAX_LINES, MAX_DEF = 5, 15, 10
MIN_CELLS, MAX_CELLS, MAX_WORDS = 30, 45, 1_800


def notebooks(folder):
    return {p.stem: nbformat.read(p, as_version=4) for p in sorted(folder.glob("*.ipynb"))}


def code_cells(folder):
    """(where, cell) for each code cell that holds code."""
    for name, notebook in notebooks(folder).items():
        for number, cell in enumerate(notebook.cells, 1):
            if cell.cell_type == "code" and cell.source.strip():
                yield f"{name} cell {number}", cell


def tags(cell):
    return cell.metadata.get("tags", [])


def trees(folder):
    """(where, syntax tree) for each code cell that is Python; `no_magics` names the others."""
    for where, cell in code_cells(folder):
        try:
            yield where, ast.parse(cell.source)
        except SyntaxError:
            continue


def compared_text(cell):
    """The outputs that nbval compares: all but pictures, and the names of pictures."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        elif not any(kind.startswith("image/") for kind in output.get("data", {})):
            yield from map(str, output.get("data", {}).values())


def all_text(output):
    yield output.get("text", "")
    yield from output.get("traceback", [])
    yield from (str(v) for k, v in output.get("data", {}).items() if not k.startswith("image/"))


# ---------------------------------------------------------------------------- gates


def the_nine(folder):
    """Exactly the nine, by name."""
    found = tuple(notebooks(folder))
    return [] if found == NAMES else [f"expected {NAMES}, found {found}"]


def executed(folder):
    """Each code cell was run, in one go from top to bottom."""
    counts = {}
    for where, cell in code_cells(folder):
        counts.setdefault(where.split(" cell ")[0], []).append(cell.execution_count)
    return [
        f"{name} was not run from top to bottom: {found}"
        for name, found in counts.items()
        if found != list(range(1, len(found) + 1))
    ]


def enough_checked(folder, least=6):
    """At least six checked cells each, and each of those has text that nbval can compare."""
    problems, count = [], dict.fromkeys(notebooks(folder), 0)
    for where, cell in code_cells(folder):
        if CHECK in tags(cell):
            count[where.split(" cell ")[0]] += 1
            if not "".join(compared_text(cell)).strip():
                problems.append(f"{where} is checked, but has no text to compare")
    return problems + [
        f"{k} has {n} checked cells of {least}" for k, n in count.items() if n < least
    ]


def no_verdicts_compared(folder):
    """Verdicts and observations, which another seed may turn, stand in no checked cell."""
    unsafe = {"report.judge", "report.discrepancy", "report.observe", "report.results"}
    problems = []
    for where, cell in code_cells(folder):
        if CHECK in tags(cell):
            calls = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Call)]
            found = sorted(unsafe & {ast.unparse(call.func) for call in calls})
            problems += [f"{where} is checked and calls {name}" for name in found]
    return problems


def no_trained_numbers_compared(folder):
    """A decimal or a percentage in a checked output stands in the source, or is a closed form."""
    number = re.compile(r"\d*\.\d+|\d+(?= ?%)")
    problems = []
    for where, cell in code_cells(folder):
        if CHECK not in tags(cell) or "closed-form" in tags(cell):
            continue
        printed = [text for text in compared_text(cell) if not text.startswith("<Figure size")]
        bare = set(number.findall("\n".join(printed))) - set(number.findall(cell.source))
        problems += [f"{where} is checked and prints {found}" for found in sorted(bare)]
    return problems


def nothing_skipped(folder):
    """No cell asks nbval to look away."""
    bad = {"nbval-skip", "nbval-ignore-output", "raises-exception", "nbval-raises-exception"}
    return [
        f"{where} asks nbval to look away"
        for where, cell in code_cells(folder)
        if bad & set(tags(cell)) or re.search(r"#\s*(NBVAL_|PYTEST_VALIDATE)", cell.source)
    ]


def parameters_first(folder):
    """The first code cell, and no other, is the parameters: literals only, one is the profile."""
    problems = []
    for name, notebook in notebooks(folder).items():
        cells = [c for c in notebook.cells if c.cell_type == "code"]
        marked = [i for i, c in enumerate(cells) if "parameters" in tags(c)]
        if marked != [0]:
            problems.append(f"{name}: parameters must be the first code cell, not {marked}")
        elif "profile" not in (names := literal_names(cells[0].source)):
            problems.append(f"{name}: parameters must be literals, with a profile; found {names}")
    return problems


def literal_names(source):
    """Names that the source gives a literal; empty if it does anything else."""
    names = []
    for node in ast.parse(source).body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        target = node.targets[0] if isinstance(node, ast.Assign) else target
        try:
            ast.literal_eval(node.value)
        except (AttributeError, ValueError):
            return []
        if not isinstance(target, ast.Name):
            return []
        names.append(target.id)
    return names


def any_profile(folder):
    """Profile and size are the first parameters, and the report is opened with them."""
    asked, opened = ["profile", "scale", "n_samples"], dict.fromkeys(notebooks(folder))
    for where, tree in trees(folder):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "ml.open_report":
                opened[where.split(" cell ")[0]] = [ast.unparse(arg) for arg in node.args]
    problems = []
    for name, notebook in notebooks(folder).items():
        first = next((c.source for c in notebook.cells if c.cell_type == "code"), "")
        if literal_names(first)[:3] != asked:
            problems.append(f"{name}: the first parameters must be {', '.join(asked)}")
        if opened[name] != (call := [repr(name), *asked]):
            problems.append(f"{name}: the report must be opened with {', '.join(call)}")
    return problems


def nothing_of_digits_alone(folder):
    """The truth is asked of the profile, which may know it, and no sizes of digits are in words."""
    sizes = re.compile(r"\b(60|20) epochs\b|\b400 nets\b|\b1,437\b|\b8x8\b|\bdigits, MLP\b")
    problems = []
    for where, tree in trees(folder):
        for node in ast.walk(tree):
            swept = isinstance(node, ast.Call) and ast.unparse(node.func)
            if swept and re.search(r"profile\.sweep\(.*\)\.memorization$", swept):
                problems.append(f"{where} trains a sweep for the truth: use profile.memorization")
            if isinstance(node, ast.Constant) and sizes.search(str(node.value)):
                problems.append(f"{where} speaks of digits alone: {node.value!r}")
    return problems


def no_magics(folder):
    """Plain Python only: a cell that starts with an unknown magic and then raises passes nbval."""
    problems = []
    for where, cell in code_cells(folder):
        try:
            ast.parse(cell.source)
        except SyntaxError:
            problems.append(f"{where} is not plain Python")
        if "get_ipython" in cell.source:
            problems.append(f"{where} uses get_ipython")
    return problems


def no_absolute_paths(folder):
    """No string in the code is a path of one machine."""
    path = re.compile(r"(/[\w.]|~[/\\]|[A-Za-z]:[\\/])")
    return [
        f"{where} holds the path {node.value!r}"
        for where, tree in trees(folder)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and path.match(node.value)
    ]


def no_random_output(folder):
    """No `df.style` (its HTML has a random id) and no progress bars in what is stored."""
    problems = []
    for where, tree in trees(folder):
        for node in ast.walk(tree):
            styled = isinstance(node, ast.Attribute) and node.attr == "style"
            if styled and getattr(node.value, "id", "") not in {"plt", "mpl", "matplotlib"}:
                problems.append(f"{where} uses .style")
            if isinstance(node, ast.Name | ast.alias | ast.ImportFrom) and "tqdm" in ast.dump(node):
                problems.append(f"{where} uses tqdm")
    return problems


def short_cells(folder):
    """Cells that can be read at a glance."""
    lengths = {}
    for where, cell in code_cells(folder):
        lines = sum(bool(line.strip()) for line in cell.source.splitlines())
        lengths.setdefault(where.split(" cell ")[0], {})[where] = lines
    problems = [
        f"{where} has {lines} lines, {MAX_LINES} at most"
        for cells in lengths.values()
        for where, lines in cells.items()
        if lines > MAX_LINES
    ]
    for name, cells in lengths.items():
        if (median := statistics.median(cells.values())) > MEDIAN_LINES:
            problems.append(f"{name}: median of {median} lines a cell, {MEDIAN_LINES} at most")
    return problems


def short_notebooks(folder):
    """Notebooks that can be read in one sitting."""
    problems = []
    for name, notebook in notebooks(folder).items():
        words = sum(len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown")
        if not MIN_CELLS <= len(notebook.cells) <= MAX_CELLS:
            problems.append(f"{name} has {len(notebook.cells)} cells, not {MIN_CELLS}-{MAX_CELLS}")
        if words > MAX_WORDS:
            problems.append(f"{name} has {words} words of text, {MAX_WORDS} at most")
    return problems


def plain_code(folder):
    """No comprehension inside another: students read this."""
    kinds = ast.ListComp | ast.DictComp | ast.SetComp | ast.GeneratorExp
    return [
        f"{where} nests comprehensions"
        for where, tree in trees(folder)
        for node in ast.walk(tree)
        if isinstance(node, kinds)
        and any(isinstance(inner, kinds) for inner in ast.walk(node) if inner is not node)
    ]


def each_claim_once(folder):
    """Each claim is judged once, by its own notebook, unless it cannot be tested here."""
    judged = [
        (where.split(" cell ")[0], ast.literal_eval(node.args[0]))
        for where, tree in trees(folder)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "report.judge"
    ]
    expected = [(entry.notebook, name) for name, entry in claims().items() if not entry.needs]
    missing = [f"{notebook} does not judge {name}" for notebook, name in expected
               if (notebook, name) not in judged]  # fmt: skip
    twice = sorted({name for _, name in judged if [n for _, n in judged].count(name) > 1})
    return [*missing, *(f"{name} is judged twice" for name in twice)]


def short_helpers(folder):
    """No helper longer than ten lines: those belong in the package, where they are tested."""
    return [
        f"{where}: {node.name} is longer than {MAX_DEF} lines"
        for where, tree in trees(folder)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and node.end_lineno - node.lineno >= MAX_DEF
    ]


def clean_outputs(folder):
    """No error is stored, and nothing that names the machine that ran it."""
    inline = re.compile(r"data:[\w/+-]+;base64,[A-Za-z0-9+/=]*")  # may spell a path by chance
    place = re.compile(r"/(home|root|tmp|Users|work|usr|opt|mnt|var)/\w|\\Users\\|ipykernel_\d")
    problems = []
    for where, cell in code_cells(folder):
        for output in cell.outputs:
            if output.output_type == "error":
                problems.append(f"{where} holds the error {output.ename}")
            elif found := place.search(inline.sub("", "\n".join(all_text(output)))):
                problems.append(f"{where} holds a machine's path: {found.group()!r}")
    return problems


GATES = (
    the_nine, executed, enough_checked, no_verdicts_compared, no_trained_numbers_compared,
    nothing_skipped, parameters_first, any_profile,
    nothing_of_digits_alone, no_magics, no_absolute_paths, no_random_output, short_cells,
    short_notebooks, short_helpers, plain_code, each_claim_once, clean_outputs,
)  # fmt: skip


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.__name__)
def test_the_notebooks_pass(gate):
    assert gate(FOLDER) == []


# ---------------------------------------------------------------------------- the gates can fail


def cell(source, count, text="ok\n", tag=CHECK):
    outputs = [v4.new_output("stream", name="stdout", text=text)] if text else []
    metadata = {"tags": [tag]} if tag else {}
    return v4.new_code_cell(source, execution_count=count, outputs=outputs, metadata=metadata)


def good_cells():
    given = 'profile: str = "digits"  # data set\nscale: float = 1.0\nn_samples: int = 0\nseeds = 3'
    opened = cell("report = ml.open_report('NAME', profile, scale, n_samples)", 2)
    cells = [v4.new_markdown_cell("# Title"), cell(given, 1, "", "parameters"), opened]
    plain = [cell("x = 1", n, "", "") for n in range(3, MIN_CELLS - 5)]
    return [*cells, *plain, *[cell("print('ok')", n) for n in range(MIN_CELLS - 5, MIN_CELLS)]]


def write(folder, cells, names=NAMES):
    for name in names:
        own = copy.deepcopy(cells)
        for each in own:
            each.source = each.source.replace("NAME", name)
        nbformat.write(v4.new_notebook(cells=own), folder / f"{name}.ipynb")
    return folder


def test_good_notebooks_pass_every_gate(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.claims", dict)  # there is nothing to judge
    write(tmp_path, good_cells())
    assert {gate.__name__: gate(tmp_path) for gate in GATES} == {g.__name__: [] for g in GATES}


def test_a_missing_notebook_is_found(tmp_path):
    assert the_nine(write(tmp_path, good_cells(), NAMES[:-1]))
    assert the_nine(tmp_path / "nowhere")


LONG = "\n".join(f"x{i} = {i}" for i in range(MAX_LINES + 1))
HELPER = "def f():\n" + "\n".join(f"    x{i} = {i}" for i in range(MAX_DEF))
PICTURE = v4.new_output("display_data", {"image/png": "aa", "text/plain": "<Figure size 6x4>"})


@pytest.mark.parametrize(
    ("gate", "bad"),
    [
        (executed, cell("print('ok')", None)),
        (executed, cell("print('ok')", 9)),
        (enough_checked, cell("print('ok')", 6, tag="")),
        (enough_checked, cell("x = 1", 6, text="")),
        (enough_checked, v4.new_code_cell("f()", outputs=[PICTURE], metadata={"tags": [CHECK]})),
        (no_verdicts_compared, cell("report.judge('csg-table1-vog', all=x, fall=y)", 6)),
        (no_verdicts_compared, cell("for d in ids:\n    report.discrepancy(d, 'ours', None)", 6)),
        (no_verdicts_compared, cell("report.observe('a', below(x, 1))", 6)),
        (no_verdicts_compared, cell("report.results()", 6)),
        (no_trained_numbers_compared, cell("print(x)", 6, text="-0.14% to 0.42%")),
        (no_trained_numbers_compared, cell("print(f'{x:.0%}')", 6, text="right: 97%")),
        (no_trained_numbers_compared, cell("print('over 0.7', x)", 6, text="over 0.7 .74")),
        (nothing_skipped, cell("print('ok')", 6, tag="nbval-skip")),
        (nothing_skipped, cell("# NBVAL_IGNORE_OUTPUT\nprint('ok')", 6)),
        (parameters_first, cell("seeds = 3", 6, tag="parameters")),
        (any_profile, cell("report = ml.open_report('NAME', profile)", 6)),
        (nothing_of_digits_alone, cell("report.profile.sweep(data).memorization()", 6)),
        (nothing_of_digits_alone, cell("ax.set_title(f'{n} of 60 epochs')", 6)),
        (no_magics, cell("%matplotlib inline", 6)),
        (no_magics, cell("!ls", 6)),
        (no_magics, cell("get_ipython().run_line_magic('who', '')", 6)),
        (no_absolute_paths, cell("open('/data/x.csv')", 6)),
        (no_absolute_paths, cell("open('~/x.csv')", 6)),
        (no_absolute_paths, cell("open('C:\\\\x.csv')", 6)),
        (no_random_output, cell("table.style.format('{:.2f}')", 6)),
        (no_random_output, cell("from tqdm.auto import trange", 6)),
        (no_random_output, cell("for x in tqdm(y): pass", 6)),
        (short_cells, cell(LONG, 6)),
        (short_notebooks, v4.new_markdown_cell("word " * (MAX_WORDS + 1))),
        (plain_code, cell("x = [[i * j for i in a] for j in b]", 6)),
        (plain_code, cell("x = {k: max(f(i) for i in v) for k, v in a.items()}", 6)),
        (short_helpers, cell(HELPER, 6)),
        (clean_outputs, cell("print('ok')", 6, text="/home/me/x.py:3: Warning")),
        (clean_outputs, v4.new_code_cell("1/0", outputs=[v4.new_output("error", ename="E")])),
    ],
)
def test_each_gate_finds_what_it_is_for(tmp_path, gate, bad):
    assert gate(write(tmp_path, [*good_cells()[:-1], bad])), bad.source


def test_a_notebook_without_a_size_is_found(tmp_path):
    bare = cell('profile: str = "digits"\nseeds: int = 3', 1, "", "parameters")
    assert any_profile(write(tmp_path, [bare, *good_cells()[2:]]))


def test_too_few_and_too_many_cells_are_found(tmp_path):
    assert short_notebooks(write(tmp_path, good_cells()[: MIN_CELLS - 1]))
    assert short_notebooks(write(tmp_path, [*good_cells(), *good_cells()]))


def test_a_claim_that_is_not_judged_or_judged_twice_is_found(tmp_path, monkeypatch):
    table = claims()
    wanted = {name: table[name] for name in ("csg-table1-vog", "csg-table1-imagenet")}
    monkeypatch.setattr(f"{__name__}.claims", lambda: wanted)
    judge = cell("report.judge('csg-table1-vog', all=x, fall=y)", 3, tag="")
    write(tmp_path, [judge], ["02_similarity"])
    assert each_claim_once(tmp_path) == []  # the other one needs ImageNet
    write(tmp_path, [judge, cell(judge.source, 4, tag="")], ["02_similarity"])
    assert each_claim_once(tmp_path) == ["csg-table1-vog is judged twice"]
    write(tmp_path, [], ["02_similarity"])
    assert each_claim_once(tmp_path) == ["02_similarity does not judge csg-table1-vog"]


def test_thresholds_and_closed_forms_are_no_trained_numbers(tmp_path):
    threshold = cell("report.check('over 0.70', above(x, 0.70))", 1, text="over 0.70: yes")
    closed = cell("print(1 / 8)", 2, text="0.125")
    closed.metadata["tags"].append("closed-form")
    shown = cell("print(x)", 3, text="0.7431", tag="")
    assert no_trained_numbers_compared(write(tmp_path, [threshold, closed, shown])) == []


def test_long_cells_throughout_are_found(tmp_path):
    many = "\n".join(f"x{i} = {i}" for i in range(MEDIAN_LINES + 1))
    assert short_cells(write(tmp_path, [cell(many, n) for n in range(1, 6)]))


@pytest.mark.parametrize(
    "source",
    ["profile = 'digits'\nhalf = 0.5 * 2", "import os\nprofile = 'digits'", "seeds = 3",
     "profile = 'digits'\nseeds = range(3)", "a, profile = 1, 'digits'"],
)  # fmt: skip
def test_parameters_that_are_no_literals_are_found(tmp_path, source):
    assert parameters_first(write(tmp_path, [cell(source, 1, tag="parameters")]))


def test_a_slash_in_a_formula_is_no_path(tmp_path):
    source = "print('a / b', '/', r'$\\partial l/\\partial x$')\nplt.style.use('memlens')"
    write(tmp_path, [cell(source, 1)])
    assert no_absolute_paths(tmp_path) == no_random_output(tmp_path) == []


@pytest.mark.slow
def test_a_notebook_that_is_tested_alone_draws_elsewhere():
    alone = [sys.executable, "-m", "pytest", "--collect-only", "--nbval-lax", "00_primer.ipynb"]
    told = subprocess.run(alone, cwd=FOLDER, capture_output=True, text=True, check=True).stdout
    drawn = Path(re.search(r"^figures: (.+)$", told, re.MULTILINE)[1])
    assert not drawn.is_relative_to(FOLDER.parent)
    assert not drawn.exists()  # it is gone with the run
