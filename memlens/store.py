"""Where finished work lies, and how it gets there.

A finished piece (a run, a sweep) is a folder named by the hash of everything that shaped it, with
two files: ``arrays.npz`` and ``config.json``, which holds the checksum of the first. It is written
under a temporary name, flushed and renamed, so that a kill at any moment leaves no half piece.
Nothing in it is pickled: opening a piece never runs code.
"""

import ast
import dataclasses
import hashlib
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


def root() -> Path:
    """Folder that holds ``data/`` and ``figures/``: the checkout, else the working directory."""
    here = Path(__file__).resolve().parents[1]
    return here if (here / "pyproject.toml").is_file() else Path.cwd()


def data_dir() -> Path:
    """Folder of the image sets; ``MEMLENS_DATA`` overrides it."""
    return Path(os.environ.get("MEMLENS_DATA") or root() / "data")


def cache_dir() -> Path:
    """Folder of finished pieces; ``MEMLENS_CACHE`` overrides it."""
    return Path(os.environ.get("MEMLENS_CACHE") or root() / "data" / "cache")


def figures_dir(profile: str) -> Path:
    """Folder of one profile's figures; ``MEMLENS_FIGURES`` overrides its parent."""
    return Path(os.environ.get("MEMLENS_FIGURES") or root() / "figures") / profile


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never a part.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full; the old file is intact.
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """An empty file to write and read, which takes the place of ``path`` at the end, in one move.

    Raises
    ------
    OSError
        As `write_atomic`; then, or if the body raises, the old file is intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


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


def code_version(*rooms: str) -> str:
    """Hash of the named rooms' code, blind to comments and layout.

    It is part of every key, so that a changed definition never meets an old result.
    """
    trees = [ast.dump(ast.parse(Path(__file__).with_name(f"{r}.py").read_text())) for r in rooms]
    return fingerprint(trees)


class Piece(NamedTuple):
    """A finished piece of work: named arrays, and what a person wants to know about them."""

    arrays: Arrays
    meta: dict[str, Any]


class Store:
    """Finished pieces by key, in ``cache_dir()`` unless another folder is given."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_dir()

    def get(self, key: str) -> Piece | None:
        """The piece, or None when it is not there or turns out damaged (then it is set aside)."""
        place = self.folder / key
        if not place.is_dir():
            return None
        try:
            config = json.loads((place / "config.json").read_text())
            data = (place / "arrays.npz").read_bytes()
            if hashlib.sha256(data).hexdigest() != config["sha256"]:
                raise ValueError("checksum of arrays.npz differs")
            with np.load(place / "arrays.npz", allow_pickle=False) as file:
                return Piece({name: file[name] for name in file.files}, config["meta"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            self._set_aside(place, error)
            return None

    def put(self, key: str, piece: Piece) -> None:
        """Write the piece; a reader finds all of it or nothing.

        Raises
        ------
        OSError
            If the cache cannot be written; the message says where and how to move it.
        """
        place, part = self.folder / key, self.folder / f".{key}.{os.getpid()}.part"
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            _write_piece(part, piece)
            if place.exists():  # another process finished the same piece first
                return
            os.replace(part, place)
            _flush_folder(self.folder)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write the finished work to {place} ({error.strerror}); free some space, "
                "or set MEMLENS_CACHE to a folder that can be written",
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def __contains__(self, key: str) -> bool:
        """Whether a piece lies there, damaged or not."""
        return (self.folder / key).is_dir()

    def remove(self, key: str) -> None:
        """Remove a piece, if it is there."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def clear(self) -> int:
        """Remove every piece, and what interrupted writers left; returns how many pieces."""
        if not self.folder.is_dir():
            return 0
        entries = [p for p in self.folder.iterdir() if p.is_dir()]
        for entry in entries:
            shutil.rmtree(entry)
        return sum(not p.name.startswith(".") for p in entries)

    def _set_aside(self, place: Path, error: Exception) -> None:
        aside = place.with_name(f".damaged-{place.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(place, aside)
        warnings.warn(
            f"the cached piece {place.name} is damaged ({error}); set aside as {aside.name} and "
            "computed again",
            stacklevel=3,
        )


def _write_piece(folder: Path, piece: Piece) -> None:
    with open(folder / "arrays.npz", "wb") as file:
        np.savez(file, **piece.arrays)
        file.flush()
        os.fsync(file.fileno())
    digest = hashlib.sha256((folder / "arrays.npz").read_bytes()).hexdigest()
    config = json.dumps({"sha256": digest, "meta": piece.meta}, indent=1, sort_keys=True)
    write_atomic(folder / "config.json", config.encode())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
