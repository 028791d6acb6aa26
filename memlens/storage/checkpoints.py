"""Checkpoints: the resumable state of unfinished work.

A checkpoint is one file with a checksum that holds model, optimizer, accumulators and history
together, so that all of them are of the same epoch. Loading it runs no code.
"""

import os
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from memlens.storage import files, store

# At most max(SECONDS, one epoch, the time of a save / SHARE) of work is lost by an interruption.
SECONDS = 1.0
SHARE = 0.01  # of the running time that saving may take


class TrainingCheckpoint:
    """The checkpoint of one training: a file that each save replaces as a whole.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started = self._saved = time.perf_counter()
        self._cost = self._earlier = 0.0

    @classmethod
    def of(cls, cache: store.Store, key: str) -> "TrainingCheckpoint":
        """Return the checkpoint of the unfinished artifact with that key."""
        return cls(cache.folder / store.CHECKPOINTS / f"{key}.checkpoint")

    def is_due(self) -> bool:
        """Return True if the work since the last `save` is worth another one."""
        return time.perf_counter() - self._saved >= max(SECONDS, self._cost / SHARE)

    @property
    def seconds(self) -> float:
        """Computing time so far, that of interrupted processes up to their last save included."""
        return self._earlier + time.perf_counter() - self._started

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the saved state.

        Parameters
        ----------
        state : mapping
            Tensors, numbers, text, None, and lists, tuples and dicts of them.

        Raises
        ------
        OSError
            If the file cannot be written; the last saved state is intact.
        """
        start = time.perf_counter()
        whole = {"state": dict(state), "seconds": self.seconds, "by": store.software()}
        try:
            with files.replacing(self.path) as file:  # no copy in memory: it may be a gigabyte
                files.begin_sealed(file)
                torch.save(whole, file)
                files.seal(file, self.path.name)
        except (OSError, RuntimeError) as error:  # torch turns an OSError into a RuntimeError
            raise store.unwritable(self.path, error) from error
        self._saved = time.perf_counter()
        self._cost = self._saved - start

    def load(self) -> dict[str, Any] | None:
        """Return the saved state; None if there is none, or if it is damaged and was set aside.

        Raises
        ------
        OSError
            If the file cannot be read for a reason other than damage, such as a permission.
        """
        try:
            with open(self.path, "rb") as file:
                files.check_seal(file, self.path.name)
                whole = torch.load(file, map_location="cpu", weights_only=True)
            state, self._earlier = whole["state"], float(whole["seconds"])
            self._warn_of_other_software(whole.get("by", {}))
            return state
        except FileNotFoundError:
            return None
        except Exception as error:  # a damaged file can raise almost anything
            if not store.is_damage(error):
                raise
            aside = self.path.with_suffix(".damaged")
            with suppress(FileNotFoundError):  # another process found it at the same time
                os.replace(self.path, aside)
            warnings.warn(
                f"the checkpoint {self.path} is damaged ({error}); it was renamed to {aside.name}, "
                "and the work starts again",
                stacklevel=2,
            )
            return None

    def _warn_of_other_software(self, by: Mapping[str, str]) -> None:
        if other := {k: v for k, v in by.items() if v != store.software()[k]}:
            warnings.warn(
                f"the checkpoint {self.path} was written with {other} and is continued with "
                f"{store.software()}: the last digits of the results may equal those of neither",
                stacklevel=4,
            )

    def discard(self) -> None:
        """Remove the checkpoint: the work is finished."""
        self.path.unlink(missing_ok=True)
