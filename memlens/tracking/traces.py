"""The recorded signals of every sample in every epoch, as arrays."""

from collections.abc import Iterator, Mapping

import numpy as np

SIGNALS = ("loss", "grad_l2", "grad_l1", "margin", "el2n")
L2 = SIGNALS.index("grad_l2")
GRADIENTS = slice(L2, L2 + 2)  # the L2 and the L1 norm


class Trace(Mapping[str, np.ndarray]):
    """Signals of every sample in every epoch: name -> (n_epochs, n_samples), float32.

    ``trace["loss"]`` and ``trace.loss`` are the same array. Row t is epoch t, counted from 0. A row
    of NaN is an epoch in which the signal was not measured. A NaN in any other row is a gap: the
    sample was not visited in that epoch. ``predicted`` is int16, the class of the largest logit,
    and -1 in place of NaN: two bytes, as one has no room for both -1 and 256 classes. (Classes over
    32,767 wrap around; only their changes are used.)

    >>> trace = Trace({"loss": np.array([[2.0, 0.5], [1.0, np.nan]])})
    >>> trace
    Trace(2 epochs, 2 samples: loss)
    >>> trace.filled().loss.tolist()
    [[2.0, 0.5], [1.0, 0.5]]

    Attributes
    ----------
    n_epochs, n_samples : int
    lr : ndarray (n_epochs,) or None
        Learning rate of each epoch, for scores that are weighted by it.
    y_true : ndarray (n_samples,) or None
        Labels, for scores that compare samples of one class.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        *,
        lr: np.ndarray | None = None,
        y_true: np.ndarray | None = None,
        visits: np.ndarray | None = None,
    ) -> None:
        shapes = {name: array.shape for name, array in arrays.items()}
        if len(set(shapes.values())) != 1 or any(len(s) != 2 for s in shapes.values()):
            raise ValueError(f"expected arrays of one shape (n_epochs, n_samples); got {shapes}")
        self._arrays = dict(arrays)
        self.n_epochs, self.n_samples = next(iter(shapes.values()))
        epochs, samples = (self.n_epochs,), (self.n_samples,)
        for name, array, shape in (
            ("lr", lr, epochs),
            ("y_true", y_true, samples),
            ("visits", visits, epochs + samples),
        ):
            if array is not None and np.shape(array) != shape:
                raise ValueError(f"{name} has shape {np.shape(array)}; expected {shape}")
        self.lr, self.y_true, self._visits = lr, y_true, visits

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __getattr__(self, name: str) -> np.ndarray:
        if name.startswith("_") or name not in self._arrays:
            raise AttributeError(f"the trace has no signal {name!r}")
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"Trace({self.n_epochs} epochs, {self.n_samples} samples: {', '.join(self)})"

    @property
    def counted(self) -> bool:
        """True if visits were counted, as by a `CountingRecorder`."""
        return self._visits is not None

    @property
    def visits(self) -> np.ndarray:
        """Visit counts of each sample in each epoch, (n_epochs, n_samples) int64.

        The value of a signal is the mean over these visits. If visits were not counted, every
        measured value counts as one visit.
        """
        return self._measured.astype(np.int64) if self._visits is None else self._visits

    @property
    def visited(self) -> np.ndarray:
        """True for samples with at least one visit, bool (n_samples,)."""
        return (self._measured if self._visits is None else self._visits).any(0)

    @property
    def _measured(self) -> np.ndarray:
        signal = next((name for name in SIGNALS if name in self), next(iter(self)))
        return ~np.isnan(self[signal])

    @property
    def correct(self) -> np.ndarray:
        """True where the prediction was right, bool (n_epochs, n_samples); a tie is wrong."""
        return self.margin > 0

    def until(self, n_epochs: int) -> "Trace":
        """Return the trace of the first ``n_epochs`` epochs, without signals measured only later.

        Raises
        ------
        ValueError
            If the trace has fewer epochs, or ``n_epochs`` is below 1.
        """
        if not 1 <= n_epochs <= self.n_epochs:
            raise ValueError(f"n_epochs is {n_epochs}; expected 1 to {self.n_epochs}")
        arrays = {name: array[:n_epochs] for name, array in self.items()}
        later = {name for name in arrays if _empty(arrays[name]) and not _empty(self[name])}
        arrays = {name: array for name, array in arrays.items() if name not in later}
        lr = None if self.lr is None else self.lr[:n_epochs]
        visits = None if self._visits is None else self._visits[:n_epochs]
        return Trace(arrays, lr=lr, y_true=self.y_true, visits=visits)

    def of(self, samples: np.ndarray) -> "Trace":
        """Return the trace of some samples: a boolean mask (n_samples,), or positions."""
        arrays = {name: array[:, samples] for name, array in self.items()}
        y_true = None if self.y_true is None else np.asarray(self.y_true)[samples]
        visits = None if self._visits is None else self._visits[:, samples]
        return Trace(arrays, lr=self.lr, y_true=y_true, visits=visits)

    def filled(self) -> "Trace":
        """Return the trace with each gap filled by the sample's last earlier value.

        Gaps before the first visit get its value, so that no score counts a change there. A sample
        that was never visited stays NaN. If visits were not counted, rows that were not measured
        stay NaN as well. A trace without gaps is returned as it is.
        """
        arrays = {name: _fill(array, all_rows=self.counted) for name, array in self.items()}
        if all(arrays[name] is array for name, array in self.items()):
            return self
        return Trace(arrays, lr=self.lr, y_true=self.y_true, visits=self._visits)


def _missing(rows: np.ndarray) -> np.ndarray:
    """Return where rows (n_epochs, n_samples) were not measured: NaN, or a negative class."""
    return rows < 0 if rows.dtype.kind == "i" else np.isnan(rows)


def _empty(rows: np.ndarray) -> bool:
    return bool(_missing(rows).all())


def _fill(rows: np.ndarray, all_rows: bool) -> np.ndarray:
    """Return (n_epochs, n_samples) with its gaps filled; the array itself if there are none.

    ``all_rows``: a row of NaN is a row of gaps, not one that was not measured.
    """
    missing = _missing(rows)
    if not missing.any():
        return rows
    measured = np.flatnonzero(all_rows | ~missing.all(1))
    if not missing[measured].any():
        return rows
    part, gaps = rows[measured], missing[measured]
    source = np.where(gaps, -1, np.arange(len(part))[:, None])
    source = np.maximum.accumulate(source, axis=0)  # the last visit up to each epoch
    source = np.where(source < 0, (~gaps).argmax(0), source)  # before the first visit: that one
    filled = rows.copy()
    filled[measured] = np.take_along_axis(part, source, axis=0)
    return filled
