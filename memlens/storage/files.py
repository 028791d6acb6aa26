"""Files that are complete or absent, and locks between the processes that write them.

An interrupted write leaves the old state or the new one: a file is written under a temporary name,
flushed and renamed; then its folder is flushed, so that the new name is on the disk. A sealed file
starts with the SHA-256 of its name and content, which detects a file that was truncated, changed or
renamed.

With a lock, only one process at a time computes an artifact. The operating system holds the lock
and releases it when the process ends, even by a kill. On a file system without locks (some network
file systems) two processes may compute the same artifact, and the first to finish stores it: this
costs time and nothing else.
"""

import errno
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

SEAL = 32  # bytes of the checksum at the start of a sealed file
NOTICE_AFTER = 3.0  # seconds of waiting after which a message gives the reason
# filelock takes 3.0 ms for a lock and its release, a direct flock 2.5 ms. In return, a forked child
# that outlives its killed parent does not keep the lock, and Windows has locks.
#
# The errors of a file system without locks. filelock's fallback, a file that marks the lock, would
# outlive a killed process.
_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


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
    with suppress(FileNotFoundError):  # another process removed it first
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


@contextmanager
def locked(path: Path, name: str, meanwhile: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """Hold a lock; wait for it first, and print a message if that takes seconds.

    Parameters
    ----------
    path : Path
        The file of the lock, removed when the lock is released.
    name : str
        The artifact, for the message.
    meanwhile : callable
        Called about 20 times a second while this process waits.

    Yields
    ------
    bool
        False if the file system has no locks.

    Raises
    ------
    OSError
        If the file cannot be created.
    RuntimeError
        If this thread holds the lock already.
    """
    deadline, noticed = time.monotonic() + NOTICE_AFTER, False

    def keep_waiting() -> bool:
        nonlocal noticed
        if not noticed and time.monotonic() > deadline:
            noticed = True
            print(f"waiting for {name}: another process computes it", file=sys.stderr, flush=True)
        meanwhile()
        return False  # do not cancel

    lock = _lock(path)
    try:
        while not lock.is_locked:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process removed the folder: make it again
                lock.acquire(cancel_check=keep_waiting)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):  # before the release: a waiting process then creates a new file
            path.unlink()
        lock.release()


def is_held(path: Path) -> bool:
    """Return True if a running process holds the lock."""
    if not path.exists():
        return False
    try:
        with _lock(path).acquire(blocking=False):
            return False
    except Timeout:  # a subclass of OSError
        return True
    except OSError:  # no locks here, or no permission
        return False


def _lock(path: Path) -> FileLock:
    return FileLock(path, fallback_to_soft=False)  # with a mode, it would ignore the umask
