"""``memlens audit``: from a path to a folder of results, and back.

The folder holds ``scores.csv`` (and ``.parquet`` where pyarrow is), ``report.html``,
``duplicates.csv``, ``passed_over.csv``, ``calibration.csv`` if it was asked for, and ``run/``:
the trainings and how they were asked for, so that `load_audit` finds all of it again and an
interrupted call goes on.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from memlens.audit import findings
from memlens.audit.audit_data import AuditData, load_audit_data
from memlens.audit.config import AuditConfig, choose_config, seconds_of
from memlens.audit.pipeline import AuditResult, Work
from memlens.audit.report import write_report
from memlens.storage import store
from memlens.training.config import TrainConfig
from memlens.training.progress import Progress

LONG = 3600.0  # seconds from which a person is asked first
ASKED = "asked.json"  # how a run was asked for


def audit_path(
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
) -> AuditResult | None:
    """Read labelled images, score them, and write everything that was found into a folder.

    Parameters
    ----------
    path, size, classes
        As in `owndata.load_audit_data`.
    out : str or Path
        The folder of the results. What an interrupted call left there is gone on with.
    model, epochs, device, seed
        As in `plans.plan_for`.
    calibrate : bool
        Whether to measure how often suggestions are right, on planted flips: twice the time.
    confirm : callable
        Asked with a sentence before work that would take more than an hour.
    tell : callable
        Told, in sentences, what is going on.

    Returns
    -------
    AuditResult, or None if it was not confirmed

    Raises
    ------
    ValueError, FileNotFoundError, MemoryError
        As `owndata.load_audit_data` and `plans.plan_for`.
    OSError
        If the folder cannot be written: before any work.
    """
    out = _writable(Path(out).expanduser())
    own = load_audit_data(path, size=size, classes=classes, beside=out)
    tell(_read(own))
    cache = store.Store(out / "run")
    asked = {
        "path": str(Path(path).expanduser().resolve()), "size": size,
        "classes": None if classes is None else list(classes),
        "data": store.fingerprint(own.data), "calibrate": calibrate,
        "options": {"model": model, "epochs": epochs, "device": device, "seed": seed},
    }  # fmt: skip
    plan = _planned(out, asked) or choose_config(own.data, **asked["options"])
    work = Work(own, plan, cache=cache, calibrate=calibrate)
    if not _agreed(work, confirm, tell):
        return None
    _record(out, asked | {"plan": asdict(plan)})
    progress = Progress(plan.config.epochs)
    scored = work.do(progress)
    progress.close()
    write_outputs(scored, out)
    _record(out, asked | {"plan": asdict(plan), "keys": work.keys})
    tell(_found(scored, out))
    return scored


def _agreed(work: Work, confirm: Callable[[str], bool], tell: Callable[[str], None]) -> bool:
    """Say what is to be done; whether it may be, as a person is asked if it takes long."""
    n, n_samples = work.missing()
    if not n:
        tell("all trainings are done")
        return True
    seconds = seconds_of(work.plan, work.own.data, n_samples)
    config = work.plan.config
    tell(f"{n} trainings of {work.plan.model} on {config.device}, up to {_time(seconds)}")
    return seconds <= LONG or confirm(f"This takes up to {_time(seconds)}.")


def _record(out: Path, asked: dict[str, Any]) -> None:
    store.write_atomic(out / "run" / ASKED, json.dumps(asked, indent=1).encode())


def _recorded(out: Path) -> dict[str, Any] | None:
    """How the run in a folder was asked for; None if there is none, or it cannot be read."""
    try:
        return json.loads((out / "run" / ASKED).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _plan_of(asked: dict[str, Any]) -> AuditConfig:
    return AuditConfig(**asked["plan"] | {"config": TrainConfig(**asked["plan"]["config"])})


def _planned(out: Path, asked: dict[str, Any]) -> AuditConfig | None:
    """The plan of an earlier call that asked for the same: it is gone on with.

    Made anew it could be another one, by the memory or the cores that are free by now.
    """
    before = _recorded(out)
    same = before and all(before.get(name) == asked[name] for name in ("data", "options"))
    return _plan_of(before) if same and "plan" in before else None


def load_audit(out: str | Path, *, path: str | Path | None = None) -> AuditResult:
    """What `audit_path` found, from its folder; nothing is trained.

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
        If the work was not finished, or the images are not those that were scored.
    """
    out = Path(out).expanduser()
    asked = _recorded(out)
    if asked is None:
        raise FileNotFoundError(f"{out} holds no results of `memlens audit`: no run/{ASKED}")
    if "keys" not in asked:
        raise ValueError(f"the work in {out} was not finished: call `memlens audit` again")
    place = path or asked["path"]
    own = load_audit_data(place, size=asked["size"], classes=asked["classes"], beside=out)
    if store.fingerprint(own.data) != asked["data"]:
        raise ValueError(
            f"the images of {place} are not those that were scored: some were added, removed or "
            "changed; score them again"
        )
    cache = store.Store(out / "run")
    work = Work(own, _plan_of(asked), cache=cache, calibrate=asked["calibrate"])
    return work.found(asked["keys"])


def write_outputs(scored: AuditResult, out: Path) -> None:
    """Write the tables and the report; each file is whole or as it was before."""
    tables = {"scores": scored.table, "duplicates": scored.pairs,
              "passed_over": scored.own.passed_over}  # fmt: skip
    if scored.calibration is not None:
        tables["calibration"] = scored.calibration
    for stale in ("calibration.csv", "scores.parquet"):  # of an earlier call
        (out / stale).unlink(missing_ok=True)
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


def _read(own: AuditData) -> str:
    data = own.data
    size = f"{data.in_shape[2]} x {data.in_shape[1]}"
    told = f"{len(own):,} images in {data.n_classes:,} classes, {size} pixels"
    told += "".join(f"; {note}" for note in own.notes)
    if len(own.passed_over):
        reasons = own.passed_over["reason"].value_counts()
        parts = "; ".join(f"{n:,} {reason}" for reason, n in reasons.head(5).items())
        told += f"\nleft out: {parts}"
    return told


def _found(scored: AuditResult, out: Path) -> str:
    table = scored.table
    told = [f"{len(scored.suspects):,} labels to look at"]
    told += [f"{len(scored.pairs):,} pairs of duplicates"]
    for name in findings.READINGS[2:]:
        n = int(table["reading"].str.contains(name, regex=False).sum())
        told.append(f"{n:,} {name.rstrip('?')}")
    lines = [", ".join(told)]
    if scored.calibration is not None:
        last = scored.calibration.iloc[-1]
        lines.append(
            f"with planted flips {last.precision:.0%} to {last.at_most:.0%} of such labels are "
            f"wrong, and {last.recall:.0%} of the flips are among them"
        )
    lines.append(f"open {out / 'report.html'}; all scores are in {out / 'scores.csv'}")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
