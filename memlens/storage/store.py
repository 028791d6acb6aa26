"""Where finished work lies, and how it gets there.

A finished artifact (a run, a sweep) is a folder named by the hash of everything that shaped it, with
three files: ``arrays.npz``, ``config.json`` and ``SHA256SUMS``, the checksums of both. It is
written under a temporary name, flushed and renamed, so that a kill at any moment leaves no half
artifact. Nothing in it is pickled: opening a artifact never runs code.
"""

import ast
import dataclasses
import errno
import hashlib
import json
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memlens.storage import files, locks
from memlens.storage.files import write_atomic

Arrays = dict[str, np.ndarray]
ARRAYS, CONFIG, SUMS = "arrays.npz", "config.json", "SHA256SUMS"  # the files of a artifact
PACKAGE = Path(__file__).resolve().parents[1]  # the folder of memlens itself
LOCKS, DRAFTS = ".locks", ".checkpoints"  # where locks and unfinished work lie
# What the system says of a artifact that is not whole; anything else (no permission, too many open
# files) is no reason to throw finished work away.
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO}


def root() -> Path:
    """Folder that holds ``data/`` and ``figures/``: the checkout, else the working directory."""
    here = PACKAGE.parent
    return here if (here / "pyproject.toml").is_file() else Path.cwd()


def data_dir() -> Path:
    """Folder of the image sets; ``MEMLENS_DATA`` overrides it."""
    return Path(os.environ.get("MEMLENS_DATA") or root() / "data")


def cache_dir() -> Path:
    """Folder of finished artifacts; ``MEMLENS_CACHE`` overrides it."""
    return Path(os.environ.get("MEMLENS_CACHE") or root() / "data" / "cache")


def figures_dir(profile: str) -> Path:
    """Folder of one profile's figures; ``MEMLENS_FIGURES`` overrides its parent."""
    return Path(os.environ.get("MEMLENS_FIGURES") or root() / "figures") / profile


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it; arrays and tensors become the hash of their bytes.

    What has a ``fingerprint`` method is known by that: images that lie in files, say.
    """
    if hasattr(value, "fingerprint"):
        return {"type": type(value).__name__, "fingerprint": value.fingerprint()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **_plain(fields)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "numpy"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value)).hexdigest()
        return {"array": digest, "shape": list(value.shape), "dtype": str(value.dtype)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot make a cache key from {type(value).__name__}: {value!r}")


def fingerprint(value: Any) -> str:
    """Hash (16 hex digits) of dataclasses, mappings, sequences, scalars, arrays and tensors."""
    text = json.dumps(_plain(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_version() -> str:
    """Return a hash of the whole package's code, blind to comments and layout.

    Two machines that work on the same thing compare it. Keys do not hold it: they hold the version
    number of their kind, such as `jobs.RUN_VERSION`.
    """
    sources = sorted(PACKAGE.rglob("*.py"))
    return fingerprint([ast.dump(ast.parse(path.read_text("utf-8"))) for path in sources])


class Artifact(NamedTuple):
    """A finished artifact of work: named arrays, and what a person wants to know about them.

    ``what`` says in words what it is, ``seconds`` what it took one process; both may be unknown.
    """

    arrays: Arrays
    meta: dict[str, Any]
    what: str = ""
    seconds: float | None = None


class Store:
    """Finished artifacts by key, in ``cache_dir()`` unless another folder is given."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_dir()

    def get(self, key: str) -> Artifact | None:
        """The artifact, or None when it is not there or turns out damaged (then it is set aside).

        Raises
        ------
        OSError
            If it cannot be read for want of a permission, say: that is no damage.
        MemoryError
            If there is no room for its arrays.
        """
        place = self.folder / key
        if not place.exists():
            return None
        try:
            config = verified(place)
            with np.load(place / ARRAYS, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return Artifact(arrays, config["meta"], config.get("what", ""), config.get("seconds"))
        except Exception as error:  # whatever a foreign file makes its readers say
            if not is_damage(error):
                raise
            self._set_aside(place, error)
            return None

    def put(self, key: str, artifact: Artifact) -> None:
        """Write the artifact; a reader finds all of it or nothing.

        Raises
        ------
        OSError
            If the cache cannot be written; the message says where and how to move it.
        """
        place = self.folder / key
        part = files.part_of(place)
        try:
            shutil.rmtree(part, ignore_errors=True)
            files.make_folder(part)
            _write_piece(part, key, artifact)
            if not place.is_dir():  # else another process finished the same artifact first
                self._move(part, place)
        except (OSError, ValueError) as error:  # a full disk makes zipfile say ValueError
            raise unwritable(place, error) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _move(self, part: Path, place: Path) -> None:
        if place.exists():
            self._set_aside(place, "it is no folder")
        try:
            os.replace(part, place)
        except OSError:
            if not place.is_dir():  # else another process was quicker by a moment
                raise
        files.flush_folder(self.folder)

    @contextmanager
    def claim(self, *keys: str, meanwhile: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Compute these artifacts alone: another process that claims one of them waits outside.

        Look again inside whether they are there: who held the claim before may have finished them.
        While it waits, ``meanwhile`` is called some times a second.
        What killed writers of the same artifacts left is removed. See `locks` for where there is no
        lock.

        Raises
        ------
        OSError
            If the folder cannot be written.
        """
        with ExitStack() as held:
            for key in sorted(set(keys)):  # in one order, so that no two wait for each other
                try:
                    alone = held.enter_context(locks.locked(self.lock_of(key), key, meanwhile))
                except OSError as error:
                    raise unwritable(self.folder / key, error) from error
                if alone:
                    for part in (*self.folder.glob(f".{key}.*part"),
                                 *self.folder.glob(f"{DRAFTS}/.{key}.*part")):  # fmt: skip
                        files.remove_part(part)
            yield

    def lock_of(self, key: str) -> Path:
        """The file that stands for who computes the artifact."""
        return self.folder / LOCKS / f"{key}.lock"

    def __contains__(self, key: str) -> bool:
        """Whether a artifact lies there, damaged or not."""
        return (self.folder / key).is_dir()

    def remove(self, key: str) -> None:
        """Remove a artifact, if it is there, so that a kill leaves all of it or nothing."""
        files.remove(self.folder / key)

    def tidy(self, key: str) -> None:
        """Remove what kills have left of a finished artifact, unless somebody is at work on it.

        That is its parts, its checkpoint, and what was being written or removed.
        """
        left = [f"{key}.*", f".{key}.*part", f"{DRAFTS}/{key}.checkpoint", f"{DRAFTS}/.{key}.*part"]
        if not any(any(self.folder.glob(pattern)) for pattern in left):
            return
        if locks.is_held(self.lock_of(key)):
            return
        with suppress(OSError), self.claim(key):  # of a store that is only read: not our business
            for path in (*self.folder.glob(left[0]), *self.folder.glob(left[2])):
                files.remove(path)

    def clear(self) -> int:
        """Remove every artifact, and what interrupted writers left; returns how many artifacts."""
        if not self.folder.is_dir():
            return 0
        entries = [p for p in self.folder.iterdir() if p.is_dir() and p.name != LOCKS]
        for entry in entries:
            files.remove(entry)
        with suppress(OSError):  # not empty: somebody is at work
            (self.folder / LOCKS).rmdir()
        return sum(not p.name.startswith(".") for p in entries)

    def _set_aside(self, place: Path, why: Exception | str) -> None:
        aside = place.with_name(f".damaged-{place.name}")
        files.remove(aside)
        with suppress(FileNotFoundError):  # another process found it at the same time
            os.replace(place, aside)
        warnings.warn(
            f"the cached artifact {place.name} is damaged ({why}); set aside as {aside.name} and "
            "computed again",
            stacklevel=3,
        )


def is_damage(error: Exception) -> bool:
    """Whether what was read is damaged; no permission or no memory says nothing against it."""
    if isinstance(error, OSError):
        return error.errno in _DAMAGE
    return not isinstance(error, MemoryError)


def unwritable(place: Path, error: Exception) -> OSError:
    """The error that says what could not be written, why, and the ways out."""
    cause: BaseException | None = error
    while cause and not isinstance(cause, OSError):  # torch and zipfile hide it behind their own
        cause = cause.__cause__ or cause.__context__
    number, why = (cause.errno, cause.strerror) if cause else (errno.EIO, error)
    return OSError(
        number,
        f"cannot write the work to {place} ({why}); free some space, or keep it in a folder that "
        "can be written (MEMLENS_CACHE, --out). What was there before is intact: the same call "
        "goes on from it",
    )


def verified(place: Path) -> dict[str, Any]:
    """The configuration of the artifact in a folder, after every byte of its files was checked.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError
        If a file is not what was written, or is another artifact's.
    OSError
        If a file is missing or cannot be read.
    """
    text = (place / CONFIG).read_bytes()
    config = json.loads(text)
    if "sha256" in config:  # a artifact of before there were sums: only its arrays can be checked
        if files.checksum(place / ARRAYS) != config["sha256"]:
            raise ValueError(f"checksum of {ARRAYS} differs")
        return config
    if (place / SUMS).read_bytes() != _sums(place):
        raise ValueError(f"checksums differ from those in {SUMS}")
    if config["key"] != place.name:
        raise ValueError(f"it is the artifact {config['key']}")
    return config


def _write_piece(folder: Path, key: str, artifact: Artifact) -> None:
    with open(folder / ARRAYS, "wb") as file:
        np.savez(file, **artifact.arrays)
        file.flush()
        os.fsync(file.fileno())
    config = {"key": key, "what": artifact.what, "seconds": artifact.seconds, "meta": artifact.meta,
              "made_by": software()}  # fmt: skip
    write_atomic(folder / CONFIG, json.dumps(config, indent=1, sort_keys=True).encode())
    write_atomic(folder / SUMS, _sums(folder))


@cache
def software() -> dict[str, str]:
    """Versions of what computes, by name: other ones may round otherwise."""
    versions = {name: metadata.version(name) for name in ("numpy", "torch")}
    return {"python": platform.python_version(), **versions}


def _sums(folder: Path) -> bytes:
    """What ``sha256sum`` prints of the files of a artifact: ``sha256sum -c`` can check it, too."""
    lines = (f"{files.checksum(folder / name)}  {name}\n" for name in (ARRAYS, CONFIG))
    return "".join(lines).encode()
