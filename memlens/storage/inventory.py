"""Contents of a cache folder for ``memlens cache``: list, verify and clear.

Only files with names that memlens writes are listed, verified or removed.
"""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memlens.storage import files, store

# Names by kind. Group 1 is the key of the artifact, group 2 its kind.
_KEY = r"(([a-z_]+)-[0-9a-f]{16})"
_NAMES = {
    "artifact": _KEY,
    "part": rf"{_KEY}\.[\w-]+",
    "damaged": rf"\.damaged-{_KEY}(\.[\w-]+)?",
    "leftover": rf"\.+(?:damaged-)?{_KEY}(\.[\w-]+)?\.\d+\.part",
}
_CHECKPOINT_NAMES = {
    "checkpoint": rf"{_KEY}\.checkpoint",
    "damaged": rf"{_KEY}\.damaged",
    "leftover": rf"\.+{_KEY}\.(checkpoint|damaged)\.\d+\.part",
}
DAY = 86400.0  # seconds


@dataclass(frozen=True)
class Entry:
    """A file or folder of the cache.

    Attributes
    ----------
    kind : str
        ``run``, ``sweep``, ``folds``, ...: a finished artifact; ``part``: some networks of an
        unfinished sweep or of unfinished retrainings; ``checkpoint``: an unfinished training;
        ``damaged``: set aside; ``leftover``: not removed by a process that was killed.
    path : Path
    key : str
        The artifact that it is or belongs to.
    nbytes : int
    modified : float
        Seconds since the Unix epoch.
    what : str
        Description, "" if unknown.
    seconds : float or None
        Computing time in one process, None if unknown.
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
        """Name of the file or folder."""
        return self.path.name


def cache_of(folder: Path | None = None) -> Path:
    """Return the cache folder: the default, a given one, or ``run/`` in the output of an audit.

    Raises
    ------
    FileNotFoundError
        If the given folder does not exist.
    """
    if folder is None:
        return store.cache_dir()
    folder = folder.expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; pass a cache folder or the --out of `memlens audit`"
        )
    return folder / "run" if (folder / "run" / "request.json").is_file() else folder


def entries(folder: Path) -> list[Entry]:
    """List the entries of a cache folder, the newest first; none if the folder does not exist."""
    listed = []
    for place, names in ((folder, _NAMES), (folder / store.CHECKPOINTS, _CHECKPOINT_NAMES)):
        for path in place.iterdir() if place.is_dir() else ():
            for kind, pattern in names.items():
                if match := re.fullmatch(pattern, path.name):
                    if kind in ("part", "checkpoint") and (folder / match[1]).is_dir():
                        kind = "leftover"  # the artifact is finished, its process was killed
                    listed.append(_entry(match[2] if kind == "artifact" else kind, path, match[1]))
    return sorted((e for e in listed if e), key=lambda e: (-e.modified, e.name))


def _entry(kind: str, path: Path, key: str) -> Entry | None:
    try:
        stats = [p.stat() for p in (path, *path.rglob("*"))]
    except FileNotFoundError:  # another process has just removed it
        return None
    nbytes = sum(s.st_size for s in (stats[1:] if path.is_dir() else stats))
    what, seconds = _described(path / store.CONFIG)
    return Entry(kind, path, key, nbytes, max(s.st_mtime for s in stats), what, seconds)


def _described(config: Path) -> tuple[str, float | None]:
    """Return description and seconds from an artifact's config; unknown if it cannot be read."""
    try:
        values = json.loads(config.read_bytes())
        seconds = values.get("seconds")
        return str(values.get("what", "")), None if seconds is None else float(seconds)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return "", None


def chosen(
    listed: Sequence[Entry], kind: str | None = None, older_than: float | None = None
) -> list[Entry]:
    """Select the entries of one kind that are older than a number of days.

    Raises
    ------
    ValueError
        If there are entries, but none of that kind; the message lists the kinds.
    """
    kinds = sorted({entry.kind for entry in listed})
    if kind is not None and kinds and kind not in kinds:
        raise ValueError(f"no entry of kind {kind!r}; the kinds here are: {', '.join(kinds)}")
    before = time.time() - (older_than or 0.0) * DAY
    return [
        entry
        for entry in listed
        if kind in (None, entry.kind) and (older_than is None or entry.modified < before)
    ]


def verify(listed: Sequence[Entry]) -> list[str]:
    """Return a line for each artifact, part and checkpoint that fails its checksum.

    Nothing is changed. Entries that are ``damaged`` or ``leftover`` are not verified.
    """
    problems = []
    for entry in listed:
        if entry.kind in ("damaged", "leftover"):
            continue
        try:
            if entry.kind == "checkpoint":
                with open(entry.path, "rb") as file:
                    files.check_seal(file, entry.name)
            else:
                store.verified(entry.path)
        except Exception as error:  # a damaged file can raise almost anything
            if entry.path.exists():  # otherwise a running process has just removed it
                problems.append(f"{entry.path}: {type(error).__name__}: {error}")
    return problems


def clear(listed: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Remove entries; return those removed, and those kept because a process computes them."""
    removed, busy = [], []
    for entry in listed:
        place = entry.path.parent
        place = place.parent if place.name == store.CHECKPOINTS else place
        if files.is_held(store.Store(place).lock_of(entry.key)):
            busy.append(entry)
        else:
            (files.remove_part if entry.kind == "leftover" else files.remove)(entry.path)
            removed.append(entry)
    return removed, busy


def total(listed: Sequence[Entry]) -> str:
    """Describe entries together: their number, size and computing time."""
    known = [entry.seconds for entry in listed if entry.seconds is not None]
    cost = f", {_time(sum(known))} of computing" if known else ""
    return f"{len(listed)} {'entry' if len(listed) == 1 else 'entries'}, {_size(listed)}{cost}"


def format_table(listed: Sequence[Entry], by: str = "age") -> str:
    """Format entries as a table, the newest or (``by="size"``) the largest first."""
    order = (lambda e: -e.nbytes) if by == "size" else (lambda e: -e.modified)
    now = time.time()
    rows = [("kind", "name", "size", "age", "cost", "what")]
    for e in sorted(listed, key=order):
        cost = "unknown" if e.seconds is None else _time(e.seconds)
        rows.append((e.kind, e.name, _size([e]), _time(max(0.0, now - e.modified)), cost, e.what))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(r, widths)), r[5]]).rstrip() for r in rows]
    return "\n".join([*lines, f"in all {total(listed)}"])


def _size(listed: Sequence[Entry]) -> str:
    value = float(sum(entry.nbytes for entry in listed))
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
