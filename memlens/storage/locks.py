"""Who computes a artifact: one process at a time, however that process ends.

The lock is the kernel's (``flock``) on a small file: it is gone with the process that holds it,
even one that is killed. Where there is none (Windows, some network file systems) both processes
compute the artifact and the first to finish keeps it: time is lost, nothing else. The same holds where
a network file system does not tell one machine of the locks of another.
"""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PATIENCE = 3.0  # seconds of waiting from which a person is told why
STEP = 0.05  # seconds between two tries until then
# What a file system says that has no such locks.
_NONE = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def locked(path: Path, what: str, meanwhile: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """Hold the lock inside; wait for it first, and after some seconds say for whom.

    Yields whether there is a lock at all. ``meanwhile`` is called again and again while it waits.

    Raises
    ------
    OSError
        If the file of the lock cannot be made.
    """
    file = _acquire(path, what, meanwhile)
    try:
        yield file is not None
    finally:
        if file is not None:
            _release(file, path)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if fcntl is None:
        return False
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return _try(file) is False
    finally:
        os.close(file)


def _acquire(path: Path, what: str, meanwhile: Callable[[], object]) -> int | None:
    """The descriptor of the locked file, or None where there are no locks."""
    if fcntl is None:
        return None
    since, told = time.monotonic(), False
    while True:
        file = _open(path)
        try:
            got = _try(file)
            if got is None:
                os.close(file)
                return None
            if got and _is_at(file, path):  # its last owner may have removed it meanwhile
                with contextlib.suppress(OSError):  # a full disk: only a courtesy to who waits
                    os.truncate(file, 0)
                    os.pwrite(file, str(os.getpid()).encode(), 0)
                return file
        except BaseException:
            os.close(file)
            raise
        if not got and not told and time.monotonic() - since > PATIENCE:
            told = True
            owner = os.pread(file, 20, 0).decode(errors="replace") or "another"
            print(f"waiting for {what}: process {owner} is at it", file=sys.stderr, flush=True)
        os.close(file)
        if not got:
            meanwhile()
            time.sleep(STEP)


def _open(path: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the folder was cleared this very moment
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _try(file: int) -> bool | None:
    """Whether the lock was free, and is ours now; None: there are no locks here."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    ours = os.fstat(file)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _release(file: int, path: Path) -> None:
    with contextlib.suppress(OSError):  # while it is held: whoever waits then opens a new one
        if _is_at(file, path):
            os.unlink(path)
    fcntl.flock(file, fcntl.LOCK_UN)  # also where a forked child has the file open
    os.close(file)
