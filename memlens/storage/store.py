"""The cache of finished work: artifacts by key.

An artifact (a run, a sweep) is a folder named by its kind and the hash of everything that its
content depends on. It holds three files: ``arrays.npz``, ``config.json`` and ``SHA256SUMS``, the
checksums of the other two. It is written under a temporary name, flushed and renamed, so that a
kill never leaves an incomplete artifact. Nothing is pickled: opening an artifact runs no code.
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

from memlens.storage import files
from memlens.storage.files import write_atomic

Arrays = dict[str, np.ndarray]
ARRAYS, CONFIG, SUMS = "arrays.npz", "config.json", "SHA256SUMS"  # the files of an artifact
PACKAGE = Path(__file__).resolve().parents[1]  # the folder of memlens
LOCKS, CHECKPOINTS = ".locks", ".checkpoints"  # subfolders of the cache
# The errors of reading an incomplete artifact. Any other error (no permission, too many open files)
# is no reason to discard finished work.
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO}


def root() -> Path:
    """Return the folder of ``data/`` and ``figures/``: the checkout, or the working directory."""
    here = PACKAGE.parent
    return here if (here / "pyproject.toml").is_file() else Path.cwd()


def data_dir() -> Path:
    """Return the folder of the image sets; ``MEMLENS_DATA`` overrides it."""
    return Path(os.environ.get("MEMLENS_DATA") or root() / "data")


def cache_dir() -> Path:
    """Return the folder of the cache; ``MEMLENS_CACHE`` overrides it."""
    return Path(os.environ.get("MEMLENS_CACHE") or root() / "data" / "cache")


def figures_dir(profile: str) -> Path:
    """Return the folder of a profile's figures; ``MEMLENS_FIGURES`` overrides its parent."""
    return Path(os.environ.get("MEMLENS_FIGURES") or root() / "figures") / profile


def _plain(value: Any) -> Any:
    """Convert a value to JSON types; arrays and tensors become the hash of their bytes.

    An object with a ``fingerprint`` method (images in files) is replaced by its result.
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
    """Return a hash (16 hex digits) of a value.

    Parameters
    ----------
    value : dataclass, mapping, sequence, scalar, array or tensor
        Nested as needed.

    Raises
    ------
    TypeError
        If it contains anything else.
    """
    text = json.dumps(_plain(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_version() -> str:
    """Return a hash of the package's code without comments and layout.

    Machines that share the work of one call compare it. Keys do not contain it: they contain the
    version number of their kind, such as `jobs.RUN_VERSION`.
    """
    sources = sorted(PACKAGE.rglob("*.py"))
    return fingerprint([ast.dump(ast.parse(path.read_text("utf-8"))) for path in sources])


class Artifact(NamedTuple):
    """A finished result: named arrays and their metadata.

    Attributes
    ----------
    arrays : dict of str to array
    meta : dict
        Values that JSON can hold.
    what : str
        Description for a person, "" if unknown.
    seconds : float or None
        Computing time in one process, None if unknown.
    """

    arrays: Arrays
    meta: dict[str, Any]
    what: str = ""
    seconds: float | None = None


class Store:
    """A folder of artifacts by key.

    Parameters
    ----------
    folder : Path, optional
        By default ``cache_dir()``.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_dir()

    def get(self, key: str) -> Artifact | None:
        """Return an artifact; None if it does not exist, or is damaged and was set aside.

        Raises
        ------
        OSError
            If it cannot be read for a reason other than damage, such as a permission.
        MemoryError
            If its arrays do not fit in memory.
        """
        place = self.folder / key
        if not place.exists():
            return None
        try:
            config = verified(place)
            with np.load(place / ARRAYS, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return Artifact(arrays, config["meta"], config.get("what", ""), config.get("seconds"))
        except Exception as error:  # a damaged file can raise almost anything
            if not is_damage(error):
                raise
            self._set_aside(place, error)
            return None

    def put(self, key: str, artifact: Artifact) -> None:
        """Write an artifact as a whole; an artifact that exists is kept.

        Raises
        ------
        OSError
            If the cache cannot be written; the message has the folder and how to change it.
        """
        place = self.folder / key
        part = files.part_of(place)
        try:
            shutil.rmtree(part, ignore_errors=True)
            files.make_folder(part)
            _write_artifact(part, key, artifact)
            if not place.is_dir():  # else another process finished the same artifact first
                self._move(part, place)
        except (OSError, ValueError) as error:  # on a full disk, zipfile raises ValueError
            raise unwritable(place, error) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _move(self, part: Path, place: Path) -> None:
        if place.exists():
            self._set_aside(place, "it is not a folder")
        try:
            os.replace(part, place)
        except OSError:
            if not place.is_dir():  # else another process has just finished the same artifact
                raise
        files.flush_folder(self.folder)

    @contextmanager
    def claim(self, *keys: str, meanwhile: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Hold the locks of artifacts: another process that claims one of them waits.

        Check inside whether they exist by now: the previous holder may have finished them. Files
        that killed writers of these artifacts left are removed. `memlens.storage.files` describes
        file systems without locks.

        Parameters
        ----------
        *keys : str
        meanwhile : callable
            Called about 20 times a second while this process waits.

        Raises
        ------
        OSError
            If the folder cannot be written.
        """
        with ExitStack() as held:
            for key in sorted(set(keys)):  # the same order everywhere prevents deadlocks
                try:
                    is_lock = held.enter_context(files.locked(self.lock_of(key), key, meanwhile))
                except OSError as error:
                    raise unwritable(self.folder / key, error) from error
                if is_lock:
                    for part in (*self.folder.glob(f".{key}.*part"),
                                 *self.folder.glob(f"{CHECKPOINTS}/.{key}.*part")):  # fmt: skip
                        files.remove_part(part)
            yield

    def lock_of(self, key: str) -> Path:
        """Return the path of an artifact's lock."""
        return self.folder / LOCKS / f"{key}.lock"

    def __contains__(self, key: str) -> bool:
        """Return True if the artifact exists, damaged or not."""
        return (self.folder / key).is_dir()

    def remove(self, key: str) -> None:
        """Remove an artifact as a whole, if it exists."""
        files.remove(self.folder / key)

    def tidy(self, key: str) -> None:
        """Remove the parts, checkpoint and temporary files of a finished artifact.

        They exist if a process was killed. Nothing is removed while a process holds the claim.
        """
        left = [
            f"{key}.*",
            f".{key}.*part",
            f"{CHECKPOINTS}/{key}.checkpoint",
            f"{CHECKPOINTS}/.{key}.*part",
        ]
        if not any(any(self.folder.glob(pattern)) for pattern in left):
            return
        if files.is_held(self.lock_of(key)):
            return
        with suppress(OSError), self.claim(key):  # a cache that cannot be written is left as it is
            for path in (*self.folder.glob(left[0]), *self.folder.glob(left[2])):
                files.remove(path)

    def clear(self) -> int:
        """Remove all artifacts and unfinished work; return the number of artifacts."""
        if not self.folder.is_dir():
            return 0
        entries = [p for p in self.folder.iterdir() if p.is_dir() and p.name != LOCKS]
        for entry in entries:
            files.remove(entry)
        with suppress(OSError):  # not empty: a process holds a claim
            (self.folder / LOCKS).rmdir()
        return sum(not p.name.startswith(".") for p in entries)

    def _set_aside(self, place: Path, why: Exception | str) -> None:
        aside = place.with_name(f".damaged-{place.name}")
        files.remove(aside)
        with suppress(FileNotFoundError):  # another process found it at the same time
            os.replace(place, aside)
        warnings.warn(
            f"the cached artifact {place.name} is damaged ({why}); it was renamed to {aside.name} "
            "and is computed again",
            stacklevel=3,
        )


def is_damage(error: Exception) -> bool:
    """Return True if an error of a read means damage, and not a missing permission or memory."""
    if isinstance(error, OSError):
        return error.errno in _DAMAGE
    return not isinstance(error, MemoryError)


def unwritable(place: Path, error: Exception) -> OSError:
    """Return an error with the path that could not be written, the cause and the remedies."""
    cause: BaseException | None = error
    while cause and not isinstance(cause, OSError):  # torch and zipfile wrap it
        cause = cause.__cause__ or cause.__context__
    number, why = (cause.errno, cause.strerror) if cause else (errno.EIO, error)
    return OSError(
        number,
        f"cannot write to {place} ({why}); free some space, or choose a folder that can be written "
        "(MEMLENS_CACHE, --out). Earlier results are intact, and the same call continues from them",
    )


def verified(place: Path) -> dict[str, Any]:
    """Verify every byte of an artifact's files and return its config.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError
        If a file was changed or is another artifact's.
    OSError
        If a file is missing or cannot be read.
    """
    config = json.loads((place / CONFIG).read_bytes())
    if (place / SUMS).read_bytes() != _sums(place):
        raise ValueError(f"checksums differ from those in {SUMS}")
    if config["key"] != place.name:
        raise ValueError(f"it is the artifact {config['key']}")
    return config


def _write_artifact(folder: Path, key: str, artifact: Artifact) -> None:
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
    """Return the versions of Python, NumPy and torch: other versions may round differently."""
    versions = {name: metadata.version(name) for name in ("numpy", "torch")}
    return {"python": platform.python_version(), **versions}


def _sums(folder: Path) -> bytes:
    """Return the checksums of an artifact's files in the format of ``sha256sum -c``."""
    lines = (f"{files.checksum(folder / name)}  {name}\n" for name in (ARRAYS, CONFIG))
    return "".join(lines).encode()
