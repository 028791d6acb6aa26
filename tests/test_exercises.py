"""What the notebooks' exercises say to the stub, to the folded solution and to a wrong answer.

Each notebook is run up to its exercises at the smallest scale; its checkers then see what they see
in the notebook.
"""

import ast
import re

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.display import display
from test_notebooks import FOLDER, NAMES, code_cells, notebooks, tags

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

SMALLEST = {"scale": 0.02, "n_samples": 100}
HEADING = re.compile(r"^#+ .*Exercises$", re.MULTILINE)


def parts(name):
    """The code cells before the exercises; the text and the code of the exercises."""
    cells = notebooks(FOLDER)[name].cells
    start = next(i for i, c in enumerate(cells) if HEADING.search(c.source))
    text = "\n".join(c.source for c in cells[start:] if c.cell_type == "markdown")
    before, after = (
        [c for c in some if c.cell_type == "code"] for some in (cells[:start], cells[start:])
    )
    return before, text, "\n\n".join(c.source for c in after)


def defined(node):
    """Names that a statement defines."""
    targets = getattr(node, "targets", [])
    return {node.name} if isinstance(node, ast.FunctionDef) else {ast.unparse(t) for t in targets}


def answered(code, answer):
    """The code with each stub replaced by the answer's; what the answer does after is left out."""
    body, chunks, ready = ast.parse(code).body, {}, []
    stubs = set().union(*map(defined, body))
    for node in ast.parse(answer).body:
        names = {name.split("[")[0] for name in defined(node)} & stubs
        ready.append(node)
        if names:
            (stub,) = names
            chunks.setdefault(stub, []).extend(ready)
            ready = []
    done = []
    for node in body:
        (stub,) = (defined(node) & chunks.keys()) or {""}
        done += chunks.pop(stub, [node])
    return ast.unparse(ast.Module(done, []))


WRONG = {
    "00_primer": """
def my_sensitivity(trace):
    return trace.grad_l1.sum(0)
my_networks = 143
my_brush = truth.index[~memorized][:4].tolist()""",
    "01_validate_theory": """
direction = torch.linalg.svd(weight).U[:, 1]
def smallest_offset(x, y, slope):
    return (y - slope * x).mean()""",
    "02_similarity": """
def constant_cosine(mean, std):
    return mean / std
def combined(frames):
    return frames[1]["csg"]""",
    "03_early_stopping": """
def trained_share(norms, patience):
    return find_peak(list(norms), patience=patience).peak_epoch / len(norms)
def uce_used(table):
    return float((table.accuracy - table.confidence).abs().fillna(0).mean())""",
    "04_mislabel": """
my_index = runs[0.10, 0].scores["csl"].idxmin()
repaired = suggested.copy()""",
    "05_bias": """
whole_person = 865
two_pairs = 850
def add_square(images, white):
    return images.clone().fill_(int(white))""",
    "06_optimizers": """
def largest_rise(norms):
    return max(norms) / norms[0] - 1
def time_constant(lr, weight_decay, momentum, n_steps):
    return 1 / (lr * weight_decay * n_steps)""",
    "07_privacy": """
def members_found(member, score, fpr):
    others = np.sort(score[~member])
    return float(np.mean(score[member] > others[int(fpr * len(others))]))
def calibrated(target, shadows):
    return -membership.calibrated_loss(target, shadows)""",
    "08_discrepancies": """
def cap_of_pair(keep):
    return 1 - keep
def least_bins(uce, msce):
    return int(uce / msce)""",
}


@pytest.fixture(scope="module", params=NAMES)
def place(request, tmp_path_factory):
    """A notebook's exercises, and the names that it has defined until then."""
    before, text, code = parts(request.param)
    known = {"display": display}
    with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context():
        patch.chdir(FOLDER)
        patch.setenv("MEMLENS_FIGURES", str(tmp_path_factory.mktemp("figures")))
        for number, cell in enumerate(before, 1):
            exec(compile(cell.source, f"{request.param} code {number}", "exec"), known)
            known |= SMALLEST if "parameters" in tags(cell) else {}
            plt.close("all")
        if request.param == "02_similarity":
            # a hundred digits do not decide what three seeds gain, noise as large as the truth does
            rng, mem = np.random.default_rng(0), known["mem"]
            noise = np.column_stack([np.ones(len(mem)), mem, rng.normal(size=(len(mem), 3))])
            noise = np.linalg.qr(noise)[0].T[2:]  # of equal size, and orthogonal to all else
            noisy = [mem + mem.std() * np.sqrt(len(mem)) * values for values in noise]
            known["frames"] = [pd.DataFrame({"csg": values}) for values in noisy]
            known["pearson"] = {"csg": np.mean([np.corrcoef(v, mem)[0, 1] for v in noisy])}
        yield request.param, text, code, known


def verdicts(said, code, known):
    """The lines that a checker prints, as right or not."""
    exec(code, dict(known))  # the notebooks' own
    lines = [line.split(": ", 1)[-1] if line[:8] == "exercise" else line
             for line in said.readouterr().out.splitlines()]  # fmt: skip
    assert all(line.startswith(("right", "not yet")) for line in lines), lines
    return [line.startswith("right") for line in lines], lines


def test_each_exercise_has_minutes_a_stub_a_checker_and_a_folded_solution(place, capsys):
    name, text, code, known = place
    count = len(re.findall(r"\(\d+ minutes\)", text))
    assert 2 <= count <= 3
    folded = "".join(re.findall(r"<details>(.*?)</details>", text, re.DOTALL))
    assert len(re.findall("```python", folded)) == len(re.findall("```python", text)) >= 1
    right, lines = verdicts(capsys, code, known)
    assert len(right) == count and not any(right), "the stub must be told not yet"
    assert all(len(line) > len("not yet: ") for line in lines), lines


def test_the_folded_solution_is_right(place, capsys):
    name, text, code, known = place
    solution = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    right, lines = verdicts(capsys, answered(code, solution), known)
    assert all(right), lines


def test_a_wrong_answer_is_told_what_is_wrong(place, capsys):
    name, text, code, known = place
    stub, told = verdicts(capsys, code, known)
    right, lines = verdicts(capsys, answered(code, WRONG[name]), known)
    assert not any(right) and len(lines) == len(told)
    assert not set(lines) & set(told), "a wrong answer and the stub are told the same"


def test_stored_stubs_are_told_not_yet():
    shown = dict.fromkeys(NAMES, 0)
    for where, cell in code_cells(FOLDER):
        for output in cell.outputs:
            shown[where.split(" cell ")[0]] += output.get("text", "").count("not yet")
    assert min(shown.values()) >= 2, shown
