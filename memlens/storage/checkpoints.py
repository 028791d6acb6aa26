"""Unfinished work, kept so that an interruption costs seconds and not hours.

A state is one file with its checksum: model, optimizer, accumulators and history together, so that
no two of them can be of different epochs. Reading it runs no code.
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

SECONDS = 1.0  # of work that an interruption may cost, or an epoch where that takes longer
SHARE = 0.01  # of the time that saving may take: what takes long to save is saved less often


class TrainingCheckpoint:
    """Unfinished work: one file, replaced as a whole, which a kill leaves as it was or as it is.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun = self._saved = time.perf_counter()
        self._cost = self._before = 0.0

    @classmethod
    def of(cls, cache: store.Store, key: str) -> "TrainingCheckpoint":
        """Where the unfinished artifact of that key is kept."""
        return cls(cache.folder / store.DRAFTS / f"{key}.checkpoint")

    def is_due(self) -> bool:
        """Whether enough was done since the last `save` to be worth another."""
        return time.perf_counter() - self._saved >= max(SECONDS, self._cost / SHARE)

    @property
    def seconds(self) -> float:
        """How long the work has taken, that of interrupted processes up to their last save."""
        return self._before + time.perf_counter() - self._begun

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace what is kept.

        Parameters
        ----------
        state : mapping
            Tensors, numbers, text, None, and lists, tuples and dicts of them.
        """
        start = time.perf_counter()
        whole = {"state": dict(state), "seconds": self.seconds, "by": store.software()}
        try:
            # Into the file and not by a copy in memory: it may be a gigabyte.
            with files.replacing(self.path) as file:
                files.begin_sealed(file)
                torch.save(whole, file)
                files.seal(file, self.path.name)
        except (OSError, RuntimeError) as error:  # torch makes the one of the other
            raise store.unwritable(self.path, error) from error
        self._saved = time.perf_counter()
        self._cost = self._saved - start

    def load(self) -> dict[str, Any] | None:
        """What was kept, or None: nothing was, or it is damaged, and then set aside.

        Raises
        ------
        OSError
            If it cannot be read for want of a permission, say: that is no damage.
        """
        try:
            with open(self.path, "rb") as file:
                files.check_seal(file, self.path.name)
                whole = torch.load(file, map_location="cpu", weights_only=True)
            state, self._before = whole["state"], float(whole["seconds"])
            self._tell_of_other(whole.get("by", {}))
            return state
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever a foreign file makes its readers say
            if not store.is_damage(error):
                raise
            aside = self.path.with_suffix(".damaged")
            with suppress(FileNotFoundError):  # another process found it at the same time
                os.replace(self.path, aside)
            warnings.warn(
                f"the unfinished work in {self.path} is damaged ({error}); set aside as "
                f"{aside.name} and begun again",
                stacklevel=2,
            )
            return None

    def _tell_of_other(self, by: Mapping[str, str]) -> None:
        if other := {k: v for k, v in by.items() if v != store.software()[k]}:
            warnings.warn(
                f"the unfinished work in {self.path} was begun with {other} and goes on with "
                f"{store.software()}: its last bits may be neither's",
                stacklevel=4,
            )

    def discard(self) -> None:
        """Remove what is kept: the work is finished."""
        self.path.unlink(missing_ok=True)
