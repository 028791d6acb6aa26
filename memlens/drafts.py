"""Unfinished work, kept so that an interruption costs seconds and not hours.

A state is one file with its checksum: model, optimizer, accumulators and history together, so that
no two of them can be of different epochs. Reading it runs no code.
"""

import hashlib
import os
import pickle
import time
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from memlens import store

SECONDS = 10.0  # of work that an interruption may cost, or an epoch where that takes longer
DIGEST = 32  # bytes of the checksum, which come first
SHARE = 0.02  # of the time that saving may take: a large state is saved less often


class Draft:
    """Unfinished work: one file, replaced as a whole, which a kill leaves as it was or as it is.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._saved, self._cost = time.perf_counter(), 0.0

    @classmethod
    def of(cls, shelf: store.Store, key: str) -> "Draft":
        """Where the unfinished piece of that key is kept."""
        return cls(shelf.folder / ".drafts" / f"{key}.draft")

    def is_due(self) -> bool:
        """Whether enough was done since the last `save` to be worth another."""
        return time.perf_counter() - self._saved >= max(SECONDS, self._cost / SHARE)

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace what is kept.

        Parameters
        ----------
        state : mapping
            Tensors, numbers, text, None, and lists, tuples and dicts of them.
        """
        start = time.perf_counter()
        with store.replacing(self.path) as file:  # not by a copy in memory: it may be a gigabyte
            file.write(bytes(DIGEST))
            torch.save(dict(state), file)
            file.seek(DIGEST)
            digest = hashlib.file_digest(file, "sha256").digest()
            file.seek(0)
            file.write(digest)
        self._saved = time.perf_counter()
        self._cost = self._saved - start

    def load(self) -> dict[str, Any] | None:
        """What was kept, or None: nothing was, or it is damaged, and then set aside."""
        try:
            data = memoryview(self.path.read_bytes())
            if hashlib.sha256(data[DIGEST:]).digest() != data[:DIGEST]:
                raise ValueError("its checksum differs")
            return torch.load(BytesIO(data[DIGEST:]), map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            aside = self.path.with_suffix(".damaged")
            os.replace(self.path, aside)
            warnings.warn(
                f"the unfinished work in {self.path} is damaged ({error}); set aside as "
                f"{aside.name} and begun again",
                stacklevel=2,
            )
            return None

    def discard(self) -> None:
        """Remove what is kept: the work is finished."""
        self.path.unlink(missing_ok=True)
