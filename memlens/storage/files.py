"""Files that are complete or absent: an interrupted write leaves the old state or the new one.

A file is written under a temporary name, flushed and renamed; then its folder is flushed, so that
the new name is on the disk. A sealed file starts with the SHA-256 of its name and content, which
detects a file that was truncated, changed or renamed.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

SEAL = 32  # bytes of the checksum at the start of a sealed file


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``; a reader sees the old file or the new one, never a part.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full; the old file is intact.
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open an empty file for writing and reading that replaces ``path`` when the block ends.

    Raises
    ------
    OSError
        As `write_atomic`. If it is raised, or the block raises, the old file is intact.
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
    """Return the temporary name under which this process writes ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, and flush their names to the disk."""
    missing = [p for p in (folder, *folder.parents) if not p.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        flush_folder(made.parent)


def flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk (does nothing on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or folder by renaming it first, so that a kill leaves no half of it."""
    part = part_of(path)
    with contextlib.suppress(FileNotFoundError):  # another process removed it first
        os.replace(path, part)
    remove_part(part)


def remove_part(part: Path) -> None:
    """Remove a temporary file or folder, if it exists."""
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def begin_sealed(file: BinaryIO) -> None:
    """Reserve space for the checksum; the content follows."""
    file.write(bytes(SEAL))


def seal(file: BinaryIO, name: str) -> None:
    """Write the checksum of the file's name and of the content after `begin_sealed`."""
    digest = _seal_of(file, name)
    file.seek(0)
    file.write(digest)


def check_seal(file: BinaryIO, name: str) -> None:
    """Verify the checksum of a sealed file and move to the start of its content.

    Raises
    ------
    ValueError
        If the file was truncated, changed or sealed under another name.
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
