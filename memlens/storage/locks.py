"""Locks between processes: only one process at a time computes an artifact.

The operating system holds the lock and releases it when the process ends, even by a kill. On a file
system without locks (some network file systems) two processes may compute the same artifact, and
the first to finish stores it: this costs time and nothing else.
"""

import errno
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

NOTICE_AFTER = 3.0  # seconds of waiting after which a message gives the reason
# filelock takes 3.0 ms for a lock and its release, a direct flock 2.5 ms. In return, a forked child
# that outlives its killed parent does not keep the lock, and Windows has locks.
#
# The errors of a file system without locks. filelock's fallback, a file that marks the lock, would
# outlive a killed process.
_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


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
