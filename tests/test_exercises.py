"""What the notebooks' exercises say to the stub, to the folded solution and to a wrong answer.

The code is read from the notebooks; what it needs of them is built here, small.
"""

import ast
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from test_notebooks import FOLDER, NAMES, code_cells, notebooks

import memlens as ml
from memlens.attacks import membership
from memlens.evaluation import calibration, metrics
from memlens.tracking import stopping

RNG = np.random.default_rng(0)
HEADING = re.compile(r"^#+ .*Exercises$", re.MULTILINE)


def part_of_exercises(name):
    """Text and code from the heading of the exercises on."""
    cells = notebooks(FOLDER)[name].cells
    start = next(i for i, c in enumerate(cells) if HEADING.search(c.source))
    text = "\n".join(c.source for c in cells[start:] if c.cell_type == "markdown")
    return text, "\n\n".join(c.source for c in cells[start:] if c.cell_type == "code")


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


def primer():
    trace = SimpleNamespace(n_samples=8, grad_l1=RNG.random((20, 8)))
    bent, calm = np.ones((150, 30)), np.geomspace(9, 0.1, 150)[:, None].repeat(30, 1)
    run = {k: SimpleNamespace(posthoc_trace=SimpleNamespace(curvature=v))
           for k, v in {"bent": bent, "calm": calm}.items()}  # fmt: skip
    scores = SimpleNamespace(loss_sensitivity=lambda trace: trace.grad_l1.mean(0))
    fake = SimpleNamespace(Trace=ml.Trace, train=lambda *_: run["calm"])
    samples = SimpleNamespace(from_arrays=lambda *_, **__: None)
    return {
        "ml": fake, "scores": scores, "samples": samples, "trace": trace, "n_seeds": 3,
        "clouds": lambda *_: None, "toy_net": None, "replace": lambda config, **_: config,
        "toy_recipe": None, "measure": None, "runs": [run["bent"]],
    }  # fmt: skip


def theory():
    truth = np.r_[np.zeros(30), np.linspace(0.1, 1, 10)]
    noise = np.linspace(0.1, 2, 12)[:, None] * RNG.random((12, 40))
    norms = truth + np.r_[noise[6:], noise[:6]]  # nearest to the truth in the middle
    norms[3] = truth**0.5 + 0.01 * RNG.random(40)  # squared, nearest here
    trace = SimpleNamespace(grad_l2=norms)
    return {"torch": torch, "weight": torch.randn(128, 64, generator=torch.Generator()),
            "runs": [SimpleNamespace(trace=trace)], "memorized": truth}  # fmt: skip


def similarity():
    mem = pd.Series(np.r_[np.zeros(4000), np.linspace(0.1, 1, 1000)])
    frames = [pd.DataFrame({"csg": mem + RNG.normal(size=5000) / 2}) for _ in range(3)]
    alone = np.mean([metrics.pearson(frame["csg"], mem) for frame in frames])
    return {"mem": mem, "frames": frames, "flat": metrics.cosine(np.ones(5000), mem),
            "pearson": {"csg": alone}}  # fmt: skip


def early():
    masks = RNG.random((20, 12)) < 0.5
    y, phi = np.zeros(12, dtype=int), RNG.normal(size=(20, 1, 12))
    sides = [SimpleNamespace(phi=p, masks=masks, y_true=y) for p in (RNG.normal(size=(1, 12)), phi)]
    fake = SimpleNamespace(
        Target=membership.Target, Shadows=membership.Shadows,
        calibrated_loss=lambda target, shadows: (
            np.logaddexp(0, -shadows.phi[:, 0]).mean(axis=0, where=~shadows.masks)
            - np.logaddexp(0, -target.phi[0])
        ),
    )  # fmt: skip
    sure = np.array([0.55, 0.60, 0.65, 0.70, 0.80, 0.90, 0.95, 1.00])
    return {"targets": sides[:1], "shadows": sides[1], "membership": fake, "stopping": stopping,
            "calibration": calibration, "y_prob": np.column_stack([sure, 1 - sure])}  # fmt: skip


def mislabel():
    truth = np.arange(40) % 10 == 0
    score = truth + RNG.random(40)
    trained = SimpleNamespace(history=pd.DataFrame({"val_accuracy": [0.9]}))
    better = SimpleNamespace(history=pd.DataFrame({"val_accuracy": [0.95]}))
    fake = SimpleNamespace(train_many=lambda jobs: [better])
    samples = pd.Series(range(40))
    profile = SimpleNamespace(job=lambda *_, **__: None)
    return {"truth": truth, "frame": pd.DataFrame({"csl": score}), "samples": samples, "ml": fake,
            "ranked": score.argsort()[::-1].copy(), "noisy": {(0.1, 0): None}, "shown_noise": 0.1,
            "replace": lambda *_, **__: None, "page": SimpleNamespace(profile=profile),
            "runs": {(0.1, 0): trained}, "quick": None}  # fmt: skip


def bias():
    x, labels = RNG.random((12, 64)), pd.Series(np.repeat([0, 1, 2], 4))
    away = [np.linalg.norm(v - x[labels == c].mean(0)) for v, c in zip(x, labels)]
    images = torch.randint(0, 9, (6, 1, 8, 8), dtype=torch.uint8)
    data = SimpleNamespace(train=SimpleNamespace(images=images), pixel_max=16)
    return {"x": x, "y": labels.to_numpy(), "labels": labels, "data": data,
            "table": pd.DataFrame({"class_distance": away})}  # fmt: skip


def optimizers():
    b = np.array([0.80, 0.84, 0.88, 0.92, 0.92, 0.88, 0.84, 0.80])
    return {"find_peak": stopping.find_peak, "b": b}


WRONG = {
    "00_primer": """
def my_sensitivity(trace):
    return trace.grad_l1.sum(0)
my_nets = 143
calm_runs = runs""",
    "01_validate_theory": """
direction = torch.linalg.svd(weight).U[:, 1]
best_epoch = int(np.argmax(metrics.by_epoch(runs[0].trace.grad_l2**2, memorized)[0]))""",
    "02_similarity": """
def constant_cosine(mean, std):
    return mean / std
def combined(frames):
    return frames[1]["csg"]""",
    "03_early_stopping": """
def trained_share(norms, patience):
    return stopping.find_peak(list(norms), patience=patience).peak_epoch / len(norms)
def uce_used(table):
    return float((table.accuracy - table.confidence).abs().fillna(0).mean())
def calibrated(target, shadows):
    return -membership.calibrated_loss(target, shadows)""",
    "04_mislabel": """
def to_read(y_true, y_score, found=0.95):
    return len(y_true)
kept = np.ones(len(truth), dtype=bool)
kept[ranked[-tenth:]] = False""",
    "05_bias": """
def distance_to_others(images, y):
    return table["class_distance"].to_numpy()
def add_patch(images, white):
    return torch.full_like(images, int(white))""",
    "06_optimizers": """
def largest_rise(norms):
    return max(norms) / norms[0] - 1
answer = b.copy()""",
}
PLACES = (primer, theory, similarity, early, mislabel, bias, optimizers)


@pytest.fixture(params=zip(NAMES, PLACES), ids=NAMES)
def place(request):
    name, build = request.param
    known = {"np": np, "pd": pd, "torch": torch, "ml": ml, "metrics": metrics} | build()
    text, code = part_of_exercises(name)
    return name, text, code, known


def verdicts(said, code, known):
    """The lines that a checker prints, as right or not."""
    exec(code, known)  # the notebooks' own
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
    stub, told = verdicts(capsys, code, dict(known))
    right, lines = verdicts(capsys, answered(code, WRONG[name]), known)
    assert not any(right) and len(lines) == len(told)
    assert not set(lines) & set(told), "a wrong answer and the stub are told the same"


def test_stored_stubs_are_told_not_yet():
    shown = dict.fromkeys(NAMES, 0)
    for where, cell in code_cells(FOLDER):
        for output in cell.outputs:
            shown[where.split(" cell ")[0]] += output.get("text", "").count("not yet")
    assert min(shown.values()) >= 2, shown
