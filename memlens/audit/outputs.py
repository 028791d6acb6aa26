"""``memlens audit``: from a path to a folder of results, and back.

The folder has ``scores.csv`` (and ``scores.parquet``, if pyarrow is installed), ``report.html``,
``duplicates.csv``, ``skipped.csv``, ``calibration.csv`` if a calibration was requested, and
``run/`` with the trainings and the request. From ``run/``, `load_audit` loads the results and an
interrupted call resumes.
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
from memlens.audit.config import AuditConfig, choose_config, estimate_seconds
from memlens.audit.pipeline import Audit, AuditResult
from memlens.audit.report import write_report
from memlens.storage import store
from memlens.training.config import TrainConfig
from memlens.training.progress import Progress

LONG = 3600.0  # seconds above which a confirmation is needed
REQUEST = "request.json"  # in run/: the arguments of the call, its configuration and its trainings


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
    log: Callable[[str], None] = print,
) -> AuditResult | None:
    """Read labelled images, score them, and write all findings to a folder.

    Parameters
    ----------
    path, size, classes
        As in `load_audit_data`.
    out : str or Path
        The folder of the results. If an interrupted call left trainings there, it is resumed.
    model, epochs, device, seed
        As in `choose_config`.
    calibrate : bool
        Measure the precision of the suggestions on planted flips: twice the time.
    confirm : callable
        Called with a sentence before more than an hour of work; False cancels it.
    log : callable
        Called with messages about the progress.

    Returns
    -------
    AuditResult, or None if it was cancelled

    Raises
    ------
    ValueError, FileNotFoundError, MemoryError
        As `load_audit_data` and `choose_config`.
    OSError
        If the folder cannot be written; raised before any work.
    """
    out = _make_writable(Path(out).expanduser())
    audit_data = load_audit_data(path, size=size, classes=classes, exclude=out)
    log(_describe_data(audit_data))
    request = {
        "path": str(Path(path).expanduser().resolve()), "size": size,
        "classes": None if classes is None else list(classes),
        "data": store.fingerprint(audit_data.dataset), "calibrate": calibrate,
        "options": {"model": model, "epochs": epochs, "device": device, "seed": seed},
    }  # fmt: skip
    config = _earlier_config(out, request)
    config = config or choose_config(audit_data.dataset, **request["options"])
    audit = Audit(audit_data, config, cache=store.Store(out / "run"), calibrate=calibrate)
    if not _confirmed(audit, confirm, log):
        return None
    _write_request(out, request | {"config": asdict(config)})
    progress = Progress(config.train_config.epochs)
    result = audit.run(progress)
    progress.close()
    write_outputs(result, out)
    _write_request(out, request | {"config": asdict(config), "keys": audit.keys})
    log(_describe_result(result, out))
    return result


def _confirmed(audit: Audit, confirm: Callable[[str], bool], log: Callable[[str], None]) -> bool:
    """Log the work to be done, and return whether it may start."""
    n, n_samples = audit.missing()
    if not n:
        log("all trainings are done")
        return True
    seconds = estimate_seconds(audit.config, audit.audit_data.dataset, n_samples)
    device = audit.config.train_config.device
    log(f"{n} trainings of {audit.config.model} on {device}, up to {_duration(seconds)}")
    return seconds <= LONG or confirm(f"This takes up to {_duration(seconds)}.")


def _write_request(out: Path, request: dict[str, Any]) -> None:
    store.write_atomic(out / "run" / REQUEST, json.dumps(request, indent=1).encode())


def _read_request(out: Path) -> dict[str, Any] | None:
    """Return the request of the run in a folder; None if there is none, or it is not readable."""
    try:
        return json.loads((out / "run" / REQUEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _config_of(request: dict[str, Any]) -> AuditConfig:
    fields = request["config"]
    return AuditConfig(**fields | {"train_config": TrainConfig(**fields["train_config"])})


def _earlier_config(out: Path, request: dict[str, Any]) -> AuditConfig | None:
    """Return the configuration of an earlier call with the same request.

    A new one could differ, because it depends on the available memory and cores.
    """
    earlier = _read_request(out)
    same = earlier and all(earlier.get(name) == request[name] for name in ("data", "options"))
    return _config_of(earlier) if same and "config" in earlier else None


def load_audit(out: str | Path, *, path: str | Path | None = None) -> AuditResult:
    """Load the result of `audit_path` from its folder; nothing is trained.

    Parameters
    ----------
    out : str or Path
        The folder of the results.
    path : str or Path, optional
        The new place of the images, if they were moved.

    Raises
    ------
    FileNotFoundError
        If the folder has no results, or the images are not found.
    ValueError
        If the audit was not finished, or the images have changed.

    Examples
    --------
    >>> load_audit("no-such-folder")
    Traceback (most recent call last):
    FileNotFoundError: no-such-folder has no results of `memlens audit`: no run/request.json
    """
    out = Path(out).expanduser()
    request = _read_request(out)
    if request is None:
        raise FileNotFoundError(f"{out} has no results of `memlens audit`: no run/{REQUEST}")
    if "keys" not in request:
        raise ValueError(f"the audit in {out} was not finished: run `memlens audit` again")
    path = path or request["path"]
    audit_data = load_audit_data(
        path, size=request["size"], classes=request["classes"], exclude=out
    )
    if store.fingerprint(audit_data.dataset) != request["data"]:
        raise ValueError(
            f"the images of {path} have changed since the audit (added, removed or edited): run "
            "`memlens audit` again"
        )
    cache, calibrate = store.Store(out / "run"), request["calibrate"]
    audit = Audit(audit_data, _config_of(request), cache=cache, calibrate=calibrate)
    return audit.load(request["keys"])


def write_outputs(result: AuditResult, out: Path) -> None:
    """Write the tables and the report, each file atomically."""
    tables = {"scores": result.table, "duplicates": result.pairs,
              "skipped": result.audit_data.skipped}  # fmt: skip
    if result.calibration is not None:
        tables["calibration"] = result.calibration
    for stale in ("calibration.csv", "scores.parquet"):  # of an earlier call
        (out / stale).unlink(missing_ok=True)
    for name, table in tables.items():
        store.write_atomic(out / f"{name}.csv", table.to_csv(index=name == "scores").encode())
    if find_spec("pyarrow"):
        file = BytesIO()
        result.table.to_parquet(file)
        store.write_atomic(out / "scores.parquet", file.getvalue())
    write_report(result, out / "report.html")


def _make_writable(out: Path) -> Path:
    try:
        (out / "run").mkdir(parents=True, exist_ok=True)
        store.write_atomic(out / "run" / ".writable", b"")
        os.unlink(out / "run" / ".writable")
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write to {out} ({error.strerror}); pass another --out"
        ) from error
    return out


def _describe_data(audit_data: AuditData) -> str:
    dataset, skipped = audit_data.dataset, audit_data.skipped
    size = f"{dataset.in_shape[2]} x {dataset.in_shape[1]}"
    text = f"{len(audit_data):,} images in {dataset.n_classes:,} classes, {size} pixels"
    text += "".join(f"; {note}" for note in audit_data.notes)
    if len(skipped):
        reasons = skipped["reason"].value_counts()
        text += "\nskipped: " + "; ".join(
            f"{n:,} {reason}" for reason, n in reasons.head(5).items()
        )
    return text


def _describe_result(result: AuditResult, out: Path) -> str:
    parts = [f"{len(result.suspects):,} labels to review"]
    parts.append(f"{len(result.pairs):,} pairs of duplicates")
    for name in findings.FINDINGS[2:]:
        n = int(result.table["finding"].str.contains(name, regex=False).sum())
        parts.append(f"{n:,} {name.rstrip('?')}")
    lines = [", ".join(parts)]
    if result.calibration is not None:
        last = result.calibration.iloc[-1]
        lines.append(
            f"with planted flips, {last.precision:.0%} to {last.at_most:.0%} of such labels are "
            f"wrong, and {last.recall:.0%} of the flips are among them"
        )
    lines.append(f"open {out / 'report.html'}; all scores are in {out / 'scores.csv'}")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
