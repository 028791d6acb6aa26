"""The signals of every sample at every epoch, as arrays: what a recorder leaves."""

from collections.abc import Iterator, Mapping

import numpy as np

SIGNALS = ("loss", "grad_l2", "grad_l1", "margin", "el2n")


class Trace(Mapping[str, np.ndarray]):
    """Signals of every sample at every epoch: name -> (n_epochs, n_samples) float32.

    The sample axis is last; rows are epochs from 0; a row of NaN was not measured, and a NaN in a
    row that holds values is a gap: a sample that was not visited in that epoch. ``trace["loss"]``
    and ``trace.loss`` are the same array. `until` gives the first epochs as a trace of their own,
    `filled` one without gaps.

    Attributes
    ----------
    lr : ndarray (n_epochs,) or None: learning rate of each epoch, for scores that weigh by it
    y_true : ndarray (n_samples,) or None: labels, for scores that compare within a class
    visits : ndarray (n_epochs, n_samples) int64: how often the epoch visited the sample; a value is
        the mean over those visits. Where they were not counted, one for each loss that is there
    counted : bool, whether visits were counted
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
        for name, beside, shape in (
            ("lr", lr, epochs),
            ("y_true", y_true, samples),
            ("visits", visits, epochs + samples),
        ):
            if beside is not None and np.shape(beside) != shape:
                raise ValueError(f"{name} has shape {np.shape(beside)}; expected {shape}")
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
        """Whether visits were counted."""
        return self._visits is not None

    @property
    def visits(self) -> np.ndarray:
        """How often each epoch visited each sample, (n_epochs, n_samples) int64."""
        return self._seen.astype(np.int64) if self._visits is None else self._visits

    @property
    def visited(self) -> np.ndarray:
        """Whether a sample was ever visited, bool (n_samples,)."""
        return (self._seen if self._visits is None else self._visits).any(0)

    @property
    def _seen(self) -> np.ndarray:
        signal = next((name for name in SIGNALS if name in self), next(iter(self)))
        return ~np.isnan(self[signal])

    @property
    def correct(self) -> np.ndarray:
        """Whether the prediction was right, bool; a tie of logits counts as wrong."""
        return self.margin > 0

    def until(self, n_epochs: int) -> "Trace":
        """The first ``n_epochs`` epochs.

        Raises
        ------
        ValueError
            If the trace does not have that many.
        """
        if not 1 <= n_epochs <= self.n_epochs:
            raise ValueError(f"asked for {n_epochs} epochs of a trace of {self.n_epochs}")
        arrays = {name: array[:n_epochs] for name, array in self.items()}
        lr = None if self.lr is None else self.lr[:n_epochs]
        visits = None if self._visits is None else self._visits[:n_epochs]
        return Trace(arrays, lr=lr, y_true=self.y_true, visits=visits)

    def of(self, samples: np.ndarray) -> "Trace":
        """The trace of some samples alone: a boolean mask (n_samples,), or positions."""
        arrays = {name: array[:, samples] for name, array in self.items()}
        y_true = None if self.y_true is None else np.asarray(self.y_true)[samples]
        visits = None if self._visits is None else self._visits[:, samples]
        return Trace(arrays, lr=self.lr, y_true=y_true, visits=visits)

    def filled(self) -> "Trace":
        """A trace without gaps: each holds the sample's last earlier value, as if seen unchanged.

        Before its first visit a sample holds the value of that visit, so that no score takes an
        event from there. A sample that was never visited stays NaN, and so does, where visits are
        not counted, a row that was not measured at all. A trace without gaps is returned as it is.
        """
        arrays = {name: _carried(array, whole=self.counted) for name, array in self.items()}
        if all(arrays[name] is array for name, array in self.items()):
            return self
        return Trace(arrays, lr=self.lr, y_true=self.y_true, visits=self._visits)


def _carried(rows: np.ndarray, whole: bool) -> np.ndarray:
    """Rows (n_epochs, n_samples) with every gap filled; the same object where there is none.

    ``whole``: a row of NaN is a row of gaps, and not one that was never measured.
    """
    holes = np.isnan(rows)
    if not holes.any():
        return rows
    measured = np.flatnonzero(whole | ~holes.all(1))
    if not holes[measured].any():
        return rows
    part, gaps = rows[measured], holes[measured]
    row = np.where(gaps, -1, np.arange(len(part))[:, None])
    row = np.maximum.accumulate(row, axis=0)  # the last visit up to each epoch
    row = np.where(row < 0, (~gaps).argmax(0), row)  # none yet: the first one
    filled = rows.copy()
    filled[measured] = np.take_along_axis(part, row, axis=0)
    return filled
