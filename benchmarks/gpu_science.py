"""The papers' trainings on CIFAR-100, beside what they print: part `science` of `gpu.py`.

Each training is a unit that later calls resume from the checkpoint of its last epochs; finished, it
leaves its scores and history in the work folder. How many epochs it takes is decided once: as many
as a call has time for, going by a few that are timed first, and no more than the papers' 200.
"""

import json
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from gpu_table import Bench, Goal, OutOfTime, say

import memlens as ml
from memlens.evaluation import detection, metrics
from memlens.experiments import paper
from memlens.storage import store
from memlens.storage.checkpoints import TrainingCheckpoint
from memlens.storage.store import Arrays

# early_csg is what the papers print as CSG: the sum up to the peak of the weight norm.
SCORES = ("csg", "early_csg", "sgal", "csl", "loss_sensitivity", "forgetting")
STATISTICS = {"cosine": metrics.cosine, "pearson": metrics.pearson, "spearman": metrics.spearman}
TABLE_1, TABLE_4 = "csg_table1_similarity", "csg_table4_mislabel_auroc"
NOISE = 0.1
SHORT = 20  # epochs of the trainings whose precision is compared
TIMED = 4  # epochs by whose time the number of epochs is chosen
LEAST = 6
SHARE = 0.9  # of the time that a training is planned for


@dataclass(frozen=True)
class Unit:
    """One training; ``epochs`` None: as many as a call has time for."""

    case: str
    model: str = "resnet18"
    epochs: int | None = None
    noise: float = 0.0
    precision: str = "auto"
    seed: int = 0

    @property
    def slug(self) -> str:
        """Its name as a file."""
        return self.case.replace(" ", "-").replace("%", "percent")


SIMILARITY = (Unit("resnet18"), Unit("small_inception", model="small_inception"))
NOISY = Unit("resnet18 10 % noise", noise=NOISE)
FLOAT32 = Unit("float32", epochs=SHORT, precision="float32")
# What differs from the float32 run, and how alike the scores should be: to the order in which a GPU
# adds, and to chance, the difference of bfloat16 is compared.
OTHERS = {
    "bfloat16 and float32": (Unit("bfloat16", epochs=SHORT, precision="bfloat16"), ">= 0.995"),
    "float32 twice": (Unit("float32 again", epochs=SHORT, precision="float32"), ""),
    "float32, two seeds": (Unit("float32 seed 1", epochs=SHORT, precision="float32", seed=1), ""),
}


def _printed(score: str, table: str, column: str, **where: Any) -> str:
    value = paper.printed([score], table, **where).loc[score, column]
    return "" if np.isnan(value) else f"printed {value:.4g}"


def _similarity_goals(case: str) -> list[Goal]:
    goals = []
    for score in SCORES:
        for name in STATISTICS:
            column = f"cifar100_{name}"
            target = "" if name == "spearman" else _printed(score, TABLE_1, column)
            goals.append(Goal("science", case, f"{score}, {name}", "", target))
    peaks = ("peak of the weight norm", "first minimum of the validation loss",
             "lowest validation loss")  # fmt: skip
    goals += [Goal("science", case, name, "epoch") for name in peaks]
    return [*goals, Goal("science", case, "validation accuracy")]


def _noise_goals() -> list[Goal]:
    where = {"dataset": "cifar100", "noise": NOISE}
    return [
        Goal("science", NOISY.case, f"{s}, AUROC", "", _printed(s, TABLE_4, "mean", **where))
        for s in SCORES
    ]


GOALS = [
    *(goal for unit in SIMILARITY for goal in _similarity_goals(unit.case)),
    *_noise_goals(),
    *(
        Goal("science", case, f"{score}, spearman", "", target)
        for case, (_, target) in OTHERS.items()
        for score in ("csg", "csl")
    ),
]


class TimedDraft(TrainingCheckpoint):
    """A checkpoint that ends the call once its time is up, after it has saved."""

    def __init__(self, path: Path, until: float) -> None:
        super().__init__(path)
        self.until = until

    def is_due(self) -> bool:
        return super().is_due() or time.perf_counter() > self.until

    def save(self, state: Any) -> None:
        super().save(state)
        say(f"  {len(state['history'])} epochs: {_short(state['history'][-1])}")
        if time.perf_counter() > self.until:
            raise OutOfTime(f"{len(state['history'])} epochs are done")


def _short(row: Any) -> str:
    return ", ".join(f"{k} {row[k]:.3g}" for k in ("train_loss", "val_accuracy", "weight_norm"))


def trained(bench: Bench, unit: Unit) -> Arrays:
    """Scores and history of a unit: as it was finished, or after its training has gone on.

    Arrays are ``scores/<name>`` (n_samples,), ``history/<name>`` (n_epochs,) and ``noisy``.
    """
    path = bench.work / f"{unit.slug}.npz"
    if path.exists():
        with np.load(path) as kept:
            return dict(kept)
    data = bench.data.with_noise(unit.noise)
    config = {"precision": unit.precision, "seed": unit.seed}
    config = bench.config(epochs=planned(bench, unit, data), **config)
    checkpoint = TimedDraft(bench.work / f"{unit.slug}.checkpoint", bench.until)
    say(f"  {unit.case}: {config.epochs} epochs, {config.engine()}")
    run = ml.train(bench.model(unit.model), data, config, checkpoint=checkpoint)
    arrays = {f"scores/{name}": run.scores[name].to_numpy() for name in SCORES}
    arrays |= {f"history/{name}": run.history[name].to_numpy() for name in run.history}
    arrays |= {"noisy": data.train.is_noisy.numpy(), "peak": np.array(run.peak.peak_epoch)}
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)
    store.write_atomic(path, buffer.getvalue())
    checkpoint.discard()
    return arrays


def planned(bench: Bench, unit: Unit, data: ml.Dataset) -> int:
    """Epochs of a unit: decided once and kept, as all learning rates depend on their number."""
    path = bench.work / "epochs.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    if unit.slug not in kept:
        epochs = unit.epochs or affordable(bench, unit, data)
        kept[unit.slug] = bench.less(epochs, min(epochs, 3))
        store.write_atomic(path, json.dumps(kept, indent=1).encode())
    return kept[unit.slug]


def affordable(bench: Bench, unit: Unit, data: ml.Dataset) -> int:
    """As many epochs as there is time for, at most those of the papers.

    The time is what is left of this call or, where less than half is left, that of the next.
    """
    start = time.perf_counter()
    config = bench.config(epochs=TIMED, precision=unit.precision)
    seconds = ml.train(bench.model(unit.model), data, config).history["seconds"].to_numpy()
    compiling = max(0.0, seconds[0] - np.median(seconds[1:]))
    each = (time.perf_counter() - start - compiling) / TIMED
    whole, left = 60 * bench.minutes, bench.until - time.perf_counter()
    epochs = int(SHARE * (left if left > whole / 2 else whole - compiling) / each)
    say(f"  {each:.2f} s an epoch, {compiling:.0f} s of compilation: time for {epochs} epochs")
    return min(max(epochs, LEAST), bench.config().epochs)


def first_minimum(values: np.ndarray, patience: int = 5) -> int:
    """First epoch whose value the next ``patience`` epochs do not undercut."""
    for epoch, value in enumerate(values):
        if not (values[epoch + 1 : epoch + 1 + patience] < value).any():
            return epoch
    raise ValueError("no values")


def _epochs(bench: Bench, found: Arrays) -> dict[str, Any]:
    n = len(found["history/epoch"])
    whole = bench.config().epochs
    return {"epochs": n, "note": f"{n} of the papers' {whole} epochs" if n < whole else ""}


def similarity(bench: Bench, unit: Unit) -> None:
    """Scores beside published memorization, and the peak beside the validation loss."""
    found = trained(bench, unit)
    truth, about = bench.published(bench.data), _epochs(bench, found)
    sure = ~np.isnan(truth)
    tell = lambda name, value, note="": bench.table.add(  # noqa: E731
        "science", unit.case, name, value, epochs=about["epochs"],
        note="; ".join(filter(None, [about["note"], note])),
    )  # fmt: skip
    theirs = "" if unit.model == "small_inception" else "printed of Inception"
    for score in SCORES:
        for name, statistic in STATISTICS.items():
            value = statistic(found[f"scores/{score}"][sure], truth[sure])
            tell(f"{score}, {name}", value, f"{sure.sum()} samples, in-step; {theirs}".rstrip("; "))
    losses = found["history/val_loss"]
    tell("peak of the weight norm", float(found["peak"]), "counted from 0")
    tell("first minimum of the validation loss", first_minimum(losses), "of the next 5 epochs")
    tell("lowest validation loss", float(losses.argmin()))
    tell("validation accuracy", float(found["history/val_accuracy"][-1]))


def noise(bench: Bench) -> None:
    """Measure how well scores find flipped labels."""
    found = trained(bench, NOISY)
    for score in SCORES:
        value = detection.auroc(found["noisy"], found[f"scores/{score}"])
        about = _epochs(bench, found)
        bench.table.add("science", NOISY.case, f"{score}, AUROC", value, **about)


def precision(bench: Bench, case: str) -> None:
    """Measure how similar the scores of two trainings are."""
    one, other = trained(bench, FLOAT32), trained(bench, OTHERS[case][0])
    for score in ("csg", "csl"):
        value = metrics.spearman(one[f"scores/{score}"], other[f"scores/{score}"])
        n = len(one["history/epoch"])
        bench.table.add("science", case, f"{score}, spearman", value, epochs=n)


def run(bench: Bench) -> None:
    """All units, until the time is up."""
    works = {unit.case: (lambda unit=unit: similarity(bench, unit)) for unit in SIMILARITY}
    works[NOISY.case] = lambda: noise(bench)
    works |= {case: (lambda case=case: precision(bench, case)) for case in OTHERS}
    for case, work in works.items():
        if not bench.attempt("science", case, work):
            return
