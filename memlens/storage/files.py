"""Files that are whole or not there: what a kill leaves is the old state or the new one.

A file is written under a temporary name, flushed and renamed, and the folder is flushed after it,
so that the name is on the disk as well. A sealed file begins with the checksum of its name and
content: one that was cut, changed or put in another's place does not open.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

SEAL = 32  # bytes of the checksum that a sealed file begins with


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
    make_folder(path.parent)
    part = part_of(path)
    try:
        with open(part, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        flush_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """The temporary name of what this process writes to ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that their names are on the disk as well."""
    missing = [p for p in (folder, *folder.parents) if not p.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        flush_folder(made.parent)


def flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; Windows knows no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder: it is gone in one move, so that a kill leaves no half of it."""
    part = part_of(path)
    with contextlib.suppress(FileNotFoundError):  # another process was quicker
        os.replace(path, part)
    remove_part(part)


def remove_part(part: Path) -> None:
    """Remove what has a temporary name, file or folder, if it is there."""
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def begin_sealed(file: BinaryIO) -> None:
    """Leave room for the seal; the content follows."""
    file.write(bytes(SEAL))


def seal(file: BinaryIO, name: str) -> None:
    """Seal what was written after `begin_sealed`, as the content of the file of that name."""
    digest = _seal_of(file, name)
    file.seek(0)
    file.write(digest)


def check_seal(file: BinaryIO, name: str) -> None:
    """Leave the file at its content, or say that it is not what was sealed under that name.

    Raises
    ------
    ValueError
        If it was cut, changed, or belongs to another name.
    """
    file.seek(0)
    if file.read(SEAL) != _seal_of(file, name):
        raise ValueError("its checksum differs")
    file.seek(SEAL)


def _seal_of(file: BinaryIO, name: str) -> bytes:
    file.seek(SEAL)
    digest = hashlib.sha256(name.encode() + b"\0")
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.digest()
