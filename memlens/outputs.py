"""``memlens score``: from a path to a folder of results, and back.

The folder holds ``scores.csv`` (and ``.parquet`` where pyarrow is), ``report.html``,
``duplicates.csv``, ``passed_over.csv``, ``calibration.csv`` if it was asked for, and ``run/``:
the trainings and how they were asked for, so that `load_scored` finds all of it again and an
interrupted call goes on.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from memlens import readings, store
from memlens.live import Progress
from memlens.owndata import Own, load_own
from memlens.recipes import Recipe
from memlens.report import write_report
from memlens.scoring import Plan, Scored, plan_for, score, seconds_of

LONG = 3600.0  # seconds from which a person is asked first
ASKED = "asked.json"  # how a run was asked for


def score_path(
    path: str | Path,
    out: str | Path,
    *,
    size: int | None = None,
    classes: Sequence[str] | None = None,
    model: str | None = None,
    epochs: int | None = None,
    device: str = "auto",
    seed: int = 0,
    calibrate: bool = False,
    confirm: Callable[[str], bool] = lambda _: True,
    tell: Callable[[str], None] = print,
) -> Scored | None:
    """Read labelled images, score them, and write everything that was found into a folder.

    Parameters
    ----------
    path, size, classes
        As in `owndata.load_own`.
    out : str or Path
        The folder of the results. What an interrupted call left there is gone on with.
    model, epochs, device, seed
        As in `scoring.plan_for`.
    calibrate : bool
        Whether to measure how often suggestions are right, on planted flips: twice the time.
    confirm : callable
        Asked with a sentence before work that would take more than an hour.
    tell : callable
        Told, in sentences, what is going on.

    Returns
    -------
    Scored, or None if it was not confirmed

    Raises
    ------
    ValueError, FileNotFoundError, MemoryError
        As `owndata.load_own` and `scoring.plan_for`.
    OSError
        If the folder cannot be written: before any work.
    """
    out = _writable(Path(out).expanduser())
    own = load_own(path, size=size, classes=classes)
    tell(_read(own))
    plan = plan_for(own.data, model=model, epochs=epochs, device=device, seed=seed)
    shelf = store.Store(out / "run")
    if any(job.key not in shelf for job in plan.jobs(own.data)):
        seconds = seconds_of(plan, own.data) * (1 + calibrate)
        tell(f"{plan.n_folds + 1} trainings of {plan.model} on {plan.recipe.device}, "
             f"at most {_time(seconds)}")  # fmt: skip
        if seconds > LONG and not confirm(f"This takes up to {_time(seconds)}."):
            return None
    asked = {"path": str(Path(path).expanduser().absolute()), "size": size,
             "classes": None if classes is None else list(classes), "plan": asdict(plan),
             "calibrate": calibrate, "data": store.fingerprint(own.data)}  # fmt: skip
    store.write_atomic(out / "run" / ASKED, json.dumps(asked, indent=1).encode())
    progress = Progress(plan.recipe.epochs)
    scored = score(own, plan, shelf=shelf, calibrate=calibrate, watch=progress)
    progress.close()
    write_outputs(scored, out)
    tell(_found(scored, out))
    return scored


def load_scored(out: str | Path, *, path: str | Path | None = None) -> Scored:
    """What `score_path` found, from its folder; nothing is trained again.

    Parameters
    ----------
    out : str or Path
    path : str or Path, optional
        Where the images lie now, if they were moved.

    Raises
    ------
    FileNotFoundError
        If the folder holds no results, or the images are gone.
    ValueError
        If the images are not those that were scored.
    """
    out = Path(out).expanduser()
    try:
        asked = json.loads((out / "run" / ASKED).read_text())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{out} holds no results of `memlens score`: there is no run/{ASKED}"
        ) from None
    own = load_own(path or asked["path"], size=asked["size"], classes=asked["classes"])
    if store.fingerprint(own.data) != asked["data"]:
        raise ValueError(
            f"the images of {path or asked['path']} are not those that were scored: some were "
            "added, removed or changed; score them again"
        )
    plan = Plan(**asked["plan"] | {"recipe": Recipe(**asked["plan"]["recipe"])})
    return score(own, plan, shelf=store.Store(out / "run"), calibrate=asked["calibrate"])


def write_outputs(scored: Scored, out: Path) -> None:
    """Write the tables and the report; each file is whole or as it was before."""
    tables = {"scores": scored.table, "duplicates": scored.pairs,
              "passed_over": scored.own.passed_over}  # fmt: skip
    if scored.calibration is not None:
        tables["calibration"] = scored.calibration
    for name, table in tables.items():
        store.write_atomic(out / f"{name}.csv", table.to_csv(index=name == "scores").encode())
    if find_spec("pyarrow"):
        file = BytesIO()
        scored.table.to_parquet(file)
        store.write_atomic(out / "scores.parquet", file.getvalue())
    write_report(scored, out / "report.html")


def _writable(out: Path) -> Path:
    try:
        (out / "run").mkdir(parents=True, exist_ok=True)
        store.write_atomic(out / "run" / ".writable", b"")
        os.unlink(out / "run" / ".writable")
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write to {out} ({error.strerror}); pass another --out"
        ) from error
    return out


def _read(own: Own) -> str:
    data = own.data
    size = f"{data.in_shape[2]} x {data.in_shape[1]}"
    told = f"{len(own):,} images in {data.n_classes:,} classes, {size} pixels"
    told += "".join(f"; {note}" for note in own.notes)
    if len(own.passed_over):
        reasons = own.passed_over["reason"].value_counts()
        parts = "; ".join(f"{n:,} {reason}" for reason, n in reasons.head(5).items())
        told += f"\nleft out: {parts}"
    return told


def _found(scored: Scored, out: Path) -> str:
    table = scored.table
    told = [f"{len(scored.suspects):,} labels to look at"]
    told += [f"{len(scored.pairs):,} pairs of duplicates"]
    for name in readings.READINGS[2:]:
        n = int(table["reading"].str.contains(name, regex=False).sum())
        told.append(f"{n:,} {name.rstrip('?')}")
    lines = [", ".join(told)]
    if scored.calibration is not None:
        last = scored.calibration.iloc[-1]
        lines.append(f"on planted flips {last.precision:.0%} of such labels were wrong "
                     f"({last.low:.0%} to {last.high:.0%})")  # fmt: skip
    lines.append(f"open {out / 'report.html'}; all scores are in {out / 'scores.csv'}")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
