"""Shared by the parts of `gpu.py`: the table of results, the clock, data of either size.

The table is rewritten as a whole after every row, so that a kill costs no row that was printed. A
part that was never run has its rows, too, without a value and with the note "not run".
"""

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from common import machine

import memlens as ml
from memlens.data.samples import from_arrays
from memlens.experiments.profiles import COLOUR
from memlens.storage import store

MACHINE = ("machine", "gpu", "torch", "python", "date")
COLUMNS = (
    "part", "case", "measure", "value", "unit", "target", "met", "epochs", "note", *MACHINE,
)  # fmt: skip
KEY = ("part", "case", "measure", "gpu")
NOT_RUN = "not run"
TINY = "tiny: "  # before the case of what was tried in miniature: never mistaken for a result
# The papers' config, as a GPU trains it fastest.
RECIPE = replace(COLOUR, device="auto", precision="auto", channels_last=None, compiled=None)


class OutOfTime(Exception):
    """The call has used its minutes; the work goes on where it was in the next one."""


class Goal(NamedTuple):
    """A number that a part is to find.

    ``target`` is "<= 1.03", ">= 10", or what a paper printed, "printed 0.84"; "": none.
    """

    part: str
    case: str
    measure: str
    unit: str = ""
    target: str = ""


def met(value: float, target: str) -> str:
    """Return "met" or "missed" for a number and its target, "" without a target."""
    sign, _, bound = target.partition(" ")
    if sign not in ("<=", ">="):
        return ""
    holds = value <= float(bound) if sign == "<=" else value >= float(bound)
    return "met" if holds else "missed"


class Table:
    """Rows of results on any number of machines, one for each (part, case, measure, gpu).

    Parameters
    ----------
    path : Path or None
        The file, read if it is there; None: nothing is written.
    goals : sequence of Goal, in the order of the rows
    tiny : str
        "", or what the miniature was, for the note of its rows.
    """

    def __init__(self, path: Path | None, goals: Sequence[Goal], tiny: str = "") -> None:
        self.path, self.tiny, self.here, self.failed = path, tiny, machine(), False
        self.goals = {goal[:3]: goal for goal in goals}
        self.rows: dict[tuple[str, ...], dict[str, str]] = {}
        if path and path.exists():
            kept = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
            self.rows = {_key(row): row for row in kept if row["note"] != NOT_RUN}

    def add(
        self, part: str, case: str, measure: str, value: float, *, epochs: object = "",
        note: str = "",
    ) -> None:  # fmt: skip
        """Put a number in place of an earlier one from this GPU, and write the table."""
        verdict = "" if self.tiny else met(value, self.goals[part, case, measure].target)
        row = self._row(part, case, measure, note)
        row |= {"value": f"{value:.4g}", "met": verdict, "epochs": str(epochs)}
        self._put(row)
        stated = f"target {row['target']} {verdict}" if row["target"] else ""
        say(f"{row['part']} | {row['case']} | {measure}: {row['value']} {row['unit']} {stated}")

    def fail(self, part: str, case: str, reason: str) -> None:
        """Say why a case has no numbers from this GPU; those it has from earlier stay."""
        for own in [goal for goal in self.goals if goal[:2] == (part, case)]:
            row = self._row(*own, reason)
            if not self.rows.get(_key(row), {}).get("value"):
                self._put(row)

    def has(self, part: str, case: str) -> bool:
        """Return whether this GPU has numbers of the case."""
        wanted = (part, self._name(case), self.here["gpu"])
        own = [row for row in self.rows.values() if row["value"]]
        return any((row["part"], row["case"], row["gpu"]) == wanted for row in own)

    def frame(self) -> pd.DataFrame:
        """All rows as text, in the order of the goals, with those of what was never run."""
        known = {key[:3] for key in self.rows}
        absent = [
            {**dict.fromkeys(COLUMNS, ""), **goal._asdict(), "note": NOT_RUN}
            for name, goal in self.goals.items()
            if name not in known
        ]
        place = {name: number for number, name in enumerate(self.goals)}
        of = lambda row: (row["part"], row["case"].removeprefix(TINY), row["measure"])  # noqa: E731
        rows = sorted(
            [*self.rows.values(), *absent],
            key=lambda row: (place.get(of(row), len(place)), row["case"], row["gpu"]),
        )
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def save(self) -> None:
        """Write the whole table, so that a reader sees the old one or the new one."""
        if self.path:
            text = self.frame().to_csv(index=False, lineterminator="\n")
            store.write_atomic(self.path, text.encode())

    def _name(self, case: str) -> str:
        return TINY + case if self.tiny else case

    def _row(self, part: str, case: str, measure: str, note: str) -> dict[str, str]:
        goal = self.goals[part, case, measure]
        note = "; ".join(filter(None, [note, self.tiny]))
        own = goal._asdict() | {"case": self._name(case), "note": note}
        return dict.fromkeys(COLUMNS, "") | own | self.here

    def _put(self, row: dict[str, str]) -> None:
        self.rows[_key(row)] = row
        self.save()


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)


def say(text: str) -> None:
    """Print at once: a log is all that is left of a call that was killed."""
    print(text, flush=True)


class Bench:
    """One call of one part: where its numbers and unfinished work go, and how long it may take.

    Parameters
    ----------
    table : Table
    work : Path, folder of what a later call goes on from
    minutes : float, of this call, from now on
    tiny : bool, whether everything is in miniature
    """

    def __init__(self, table: Table, work: Path, minutes: float, tiny: bool) -> None:
        self.table, self.minutes, self.tiny = table, minutes, tiny
        # By the code and the GPU: what another one left is not gone on with.
        own = store.fingerprint([store.code_version(), machine()["gpu"]])
        self.work = work / ("tiny" if tiny else own)
        self.until = time.perf_counter() + 60 * minutes

    @property
    def device(self) -> torch.device:
        """Device of the part."""
        return RECIPE.engine().device

    def less(self, whole: Any, tiny: Any) -> Any:
        """A setting, and what it is in miniature."""
        return tiny if self.tiny else whole

    @cached_property
    def data(self) -> ml.Dataset:
        """CIFAR-100, or a few random images whose class shows in their brightness."""
        return tiny_images() if self.tiny else ml.load("cifar100")

    def published(self, data: ml.Dataset) -> np.ndarray:
        """Published memorization, (n_samples,); NaN where a sample's place is not certain."""
        if self.tiny:
            return np.random.default_rng(1).random(len(data.train))
        return ml.load_fz(data).to_numpy()

    def model(self, name: str) -> str:
        """The net of that name; one small net stands for all in miniature."""
        return self.less(name, "small_cnn_bn")

    def config(self, **changes: Any) -> ml.TrainConfig:
        """The papers' config on this machine, with changes."""
        config = replace(RECIPE, **changes)
        return replace(config, batch_size=self.less(config.batch_size, config.batch_size // 8))

    def attempt(self, part: str, case: str, work: Callable[[], object]) -> bool:
        """Do a case; False if time ran out. One that fails says so in the table, and no more."""
        try:
            if time.perf_counter() > self.until:
                raise OutOfTime("not begun")
            say(f"{part} | {case}")
            work()
        except OutOfTime as error:
            self.table.fail(part, case, f"unfinished ({error}): call again")
            say(f"{part} | {case}: out of time ({error}); call again to go on")
            return False
        except Exception as error:  # one broken case must not cost the others
            traceback.print_exc()
            self.table.failed = True
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            self.table.fail(part, case, f"failed: {reason}")
            say(f"{part} | {case}: failed ({reason})")
        return True

    def new_first(self, part: str, cases: Iterable[str]) -> list[str]:
        """Cases without numbers from this GPU first: a second call does what the first did not."""
        return sorted(cases, key=lambda case: self.table.has(part, case))


def tiny_images(n: int = 256, n_classes: int = 4, side: int = 8) -> ml.Dataset:
    """Random colour images, brighter from class to class."""
    rng = np.random.default_rng(0)
    parts = []
    for size in (n, n // 4):
        y = np.arange(size) % n_classes
        noise = rng.integers(0, 128, (size, 3, side, side))
        parts.append(((noise + 30 * y[:, None, None, None]).astype(np.uint8), y))
    return from_arrays("tiny", *parts)
