"""What lies in the store: finished artifacts, unfinished work, and what kills and damage left.

Only what the store itself has written there is seen, by its name: nothing else in the folder is
listed or removed.
"""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memlens.storage import files, locks, store

# What the names in the folder stand for; the second group is the artifact they belong to.
_ARTIFACT = r"([a-z_]+)-[0-9a-f]{16}"
_NAMES = {
    "artifact": rf"({_ARTIFACT})",
    "part": rf"({_ARTIFACT})\.[\w-]+",  # nets of a sweep or of retrainings that is not finished
    "damaged": rf"\.damaged-({_ARTIFACT})(\.[\w-]+)?",
    "leftover": rf"\.+(?:damaged-)?({_ARTIFACT})(\.[\w-]+)?\.\d+\.part",
}
_CHECKPOINTS = {
    "checkpoint": rf"({_ARTIFACT})\.checkpoint",
    "damaged": rf"({_ARTIFACT})\.damaged",
    "leftover": rf"\.+({_ARTIFACT})\.(checkpoint|damaged)\.\d+\.part",
}
DAY = 86400.0


@dataclass(frozen=True)
class Entry:
    """One thing in the store.

    Attributes
    ----------
    kind : str
        ``run``, ``sweep``, ``folds``, ... of a finished artifact; ``part``: nets of a sweep or of
        retrainings that is not finished; ``checkpoint``: a training that is not; ``damaged``: set aside;
        ``leftover``: what a killed process was writing, or had finished with.
    path : Path
    key : str, the artifact that it is or belongs to
    nbytes : int
    modified : float, seconds since the epoch
    what : str, in words, "" where it is not known
    seconds : float or None, what it took one process; None where it is not known
    """

    kind: str
    path: Path
    key: str
    nbytes: int
    modified: float
    what: str = ""
    seconds: float | None = None

    @property
    def name(self) -> str:
        """Its name in the folder."""
        return self.path.name

    @property
    def busy(self) -> bool:
        """Whether a living process is at work on it."""
        root = self.path.parent
        root = root.parent if root.name == store.DRAFTS else root
        return locks.is_held(store.Store(root).lock_of(self.key))


def cache_of(folder: Path | None = None) -> Path:
    """The folder of the store: the cache, a given one, or ``run/`` in the results of a score.

    Raises
    ------
    FileNotFoundError
        If the given folder is not there.
    """
    if folder is None:
        return store.cache_dir()
    folder = folder.expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; pass one that holds finished work")
    return folder / "run" if (folder / "run" / "request.json").is_file() else folder


def entries(folder: Path) -> list[Entry]:
    """Everything of the store in a folder, the newest first; an absent folder holds nothing."""
    found = []
    for place, names in ((folder, _NAMES), (folder / store.DRAFTS, _CHECKPOINTS)):
        for path in place.iterdir() if place.is_dir() else ():
            for kind, pattern in names.items():
                if match := re.fullmatch(pattern, path.name):
                    if kind in ("part", "checkpoint") and (folder / match[1]).is_dir():
                        kind = "leftover"  # killed after the last write, before it tidied up
                    found.append(_entry(match[2] if kind == "artifact" else kind, path, match[1]))
    return sorted((e for e in found if e), key=lambda e: (-e.modified, e.name))


def _entry(kind: str, path: Path, key: str) -> Entry | None:
    try:
        inside = [p.stat() for p in path.rglob("*")] if path.is_dir() else []
        own = path.stat()
        nbytes = sum(s.st_size for s in inside) if inside or path.is_dir() else own.st_size
        modified = max(s.st_mtime for s in [own, *inside])
    except FileNotFoundError:  # a process at work has just removed it
        return None
    what, seconds = _told(path / store.CONFIG) if path.is_dir() else ("", None)
    return Entry(kind, path, key, nbytes, modified, what, seconds)


def _told(config: Path) -> tuple[str, float | None]:
    """What a artifact says of itself; a damaged one says nothing, `verify` says why."""
    try:
        told = json.loads(config.read_bytes())
        seconds = told.get("seconds")
        return str(told.get("what", "")), None if seconds is None else float(seconds)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return "", None


def chosen(
    found: Sequence[Entry], kind: str | None = None, older_than: float | None = None
) -> list[Entry]:
    """The entries of one kind, and older than so many days.

    Raises
    ------
    ValueError
        If there are entries, but none of that kind; the message lists the kinds.
    """
    kinds = sorted({entry.kind for entry in found})
    if kind is not None and kinds and kind not in kinds:
        raise ValueError(f"nothing of kind {kind!r} is there; there is: {', '.join(kinds)}")
    before = time.time() - (older_than or 0.0) * DAY
    return [
        entry
        for entry in found
        if kind in (None, entry.kind) and (older_than is None or entry.modified < before)
    ]


def verify(found: Sequence[Entry]) -> list[str]:
    """A line for every artifact, part and checkpoint that is not what was written; nothing is changed."""
    problems = []
    for entry in found:
        if entry.kind in ("damaged", "leftover"):  # known to be no work
            continue
        try:
            if entry.kind == "checkpoint":
                with open(entry.path, "rb") as file:
                    files.check_seal(file, entry.name)
            else:
                store.verified(entry.path)
        except Exception as error:  # whatever a foreign file makes its readers say
            if entry.path.exists():  # else a process at work has just finished with it
                problems.append(f"{entry.path}: {type(error).__name__}: {error}")
    return problems


def clear(found: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Remove entries, each in one move; returns those removed, and those somebody is at work on."""
    removed, busy = [], []
    for entry in found:
        if entry.busy:
            busy.append(entry)
        else:
            (files.remove_part if entry.kind == "leftover" else files.remove)(entry.path)
            removed.append(entry)
    return removed, busy


def total(found: Sequence[Entry]) -> str:
    """How many there are, how large they are together, and what they took."""
    known = [entry.seconds for entry in found if entry.seconds is not None]
    cost = f", {_time(sum(known))} of computing" if known else ""
    return f"{len(found)} {'entry' if len(found) == 1 else 'entries'}, {_size(found)}{cost}"


def table(found: Sequence[Entry], by: str = "age") -> str:
    """The entries as lines for a person, the newest or (by "size") the largest first."""
    order = (lambda e: -e.nbytes) if by == "size" else (lambda e: -e.modified)
    now = time.time()
    rows = [("kind", "name", "size", "age", "cost", "what")]
    for e in sorted(found, key=order):
        cost = "unknown" if e.seconds is None else _time(e.seconds)
        rows.append((e.kind, e.name, _size([e]), _time(max(0.0, now - e.modified)), cost, e.what))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(r, widths)), r[5]]).rstrip() for r in rows]
    return "\n".join([*lines, f"in all {total(found)}"])


def _size(found: Sequence[Entry]) -> str:
    value = float(sum(entry.nbytes for entry in found))
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _time(seconds: float) -> str:
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 2 * DAY)):
        if seconds < most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / DAY:.0f} days"
