"""The result of one training: scores, history, stops, and the weights at each stop."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from memlens.data.samples import Dataset
from memlens.evaluation import plots
from memlens.models import registry
from memlens.tracking import scores
from memlens.tracking.peaks import PEAKS, STOPS, Peak
from memlens.tracking.traces import Trace
from memlens.training import devices
from memlens.training.posthoc import PerSample, evaluate_batched


class Run:
    """One finished training: scores, history and snapshots.

    >>> import memlens as ml
    >>> run = ml.train("mlp", ml.load("digits").subset(100), ml.TrainConfig(epochs=2))
    >>> run.scores["csg"].idxmax() in run.data.train.index  # the most memorized sample
    True
    >>> run.history["epoch"].tolist()
    [0, 1]

    Attributes
    ----------
    trace : Trace, in-step (train mode, augmented inputs, before each update)
    posthoc_trace : Trace or None (eval mode, clean inputs, after each epoch)
    history : DataFrame, one row per epoch: epoch, lr, train_loss, train_accuracy, val_loss,
        val_accuracy, weight_norm, input_gradient (mean L2 norm), label_changes (samples whose
        predicted class changed since the epoch before; NaN in epoch 0), seconds
    peaks : dict of `Peak`, by "weight_norm" and "input_gradient"
    arrays, meta : dict, all of the above as the cache stores it
    """

    def __init__(
        self,
        model: str | registry.Builder,
        data: Dataset,
        arrays: dict[str, np.ndarray],
        meta: dict[str, Any],
    ) -> None:
        self.model, self.data, self.arrays, self.meta = model, data, arrays, meta
        self.history = history_of(arrays)
        beside = {"lr": self.history["lr"].to_numpy(), "y_true": data.train.labels.numpy()}
        self.trace = Trace(_group(arrays, "trace/"), **beside)
        posthoc = _group(arrays, "posthoc/")
        self.posthoc_trace = Trace(posthoc, **beside) if posthoc else None
        self._stops = {name: Peak(*meta["stops"][name]) for name in STOPS if name in meta["stops"]}
        self.peaks = {name: self._stops[name] for name in PEAKS if name in self._stops}

    def __repr__(self) -> str:
        last = self.history.iloc[-1]
        return (
            f"Run({self.model} on {self.data.name}, {len(self.history)} epochs, "
            f"validation accuracy {last.val_accuracy:.3f}, {self.peak})"
        )

    @property
    def peak(self) -> Peak:
        """Peak of the weight norm; `stops` has all stops."""
        return self.peaks["weight_norm"]

    @property
    def stops(self) -> pd.DataFrame:
        """The stops of the training: one row per stop, epochs counted from 0.

        Index "stop": "input_gradient" and "weight_norm" (peaks), "label_wave" (`LabelWave`),
        "best_val" (lowest validation loss) and "last"; those that were measured. Columns: epoch,
        whose weights and sums are taken; detected, the epoch in which it is known (NA if the
        training ended before); trained, the number of epochs until then.
        """
        rows = {name: [*peak, peak.epochs_trained(len(self.history))]
                for name, peak in self._stops.items()}  # fmt: skip
        columns = ["epoch", "detected", "trained"]
        table = pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype="Int64")
        return table.astype({"epoch": int, "trained": int}).rename_axis("stop")

    @cached_property
    def scores(self) -> pd.DataFrame:
        """In-step scores: one row per training sample (original index), one column per score.

        SGAL and early CSG are sums up to the peak of the input gradient.
        """
        return self._scores(self.trace, self.peaks.get("input_gradient"))

    @cached_property
    def posthoc_scores(self) -> pd.DataFrame:
        """The same scores from the post-hoc signals, and those that need a post-hoc pass.

        Raises
        ------
        ValueError
            If the run was not measured post-hoc.
        """
        return self._scores(self._posthoc(), self.peaks.get("input_gradient"))

    def scores_at(self, stop: str, *, posthoc: bool = False) -> pd.DataFrame:
        """Return the scores of the epochs up to a stop, as if the training had ended there.

        Every score is one of these epochs: ``csl`` at "input_gradient" is SGAL, the sums at "last"
        are those of `scores`. Scores of signals that were measured only later are left out.

        Parameters
        ----------
        stop : str
            One of ``run.stops.index``.
        posthoc : bool
            From the post-hoc signals instead of the in-step ones.

        Raises
        ------
        ValueError
            If the stop is unknown, or the run was not measured post-hoc.
        """
        trace, peak = self._posthoc() if posthoc else self.trace, self._stop(stop)
        return self._scores(trace.until(peak.peak_epoch + 1), peak)

    def _scores(self, trace: Trace, peak: Peak | None) -> pd.DataFrame:
        return scores.score_frame(trace, peak, self.data.train.index.numpy())

    def _posthoc(self) -> Trace:
        if self.posthoc_trace is None:
            raise ValueError("no post-hoc signals: train with MeasureConfig(posthoc=True)")
        return self.posthoc_trace

    def _stop(self, name: str) -> Peak:
        if name not in self._stops:
            raise ValueError(f"unknown stop {name!r}; this run has {', '.join(self._stops)}")
        return self._stops[name]

    def plot(self) -> Figure:
        """Plot losses, mean input gradient and weight norm by epoch, with the detected peaks."""
        peaks = {n: p.peak_epoch for n, p in self.peaks.items() if p.detected_epoch is not None}
        return plots.training_figure(self.history, peaks)

    def show(self, score: str = "csg", n: int = 8) -> Figure:
        """Show the training samples with the highest and the lowest score.

        Parameters
        ----------
        score : str, a column of `scores`
        n : int
            Images in a row, each with its index, label and score; an orange frame marks those
            whose label was changed.

        Raises
        ------
        ValueError
            If there is no such score, or fewer than ``n`` samples.
        """
        if score not in self.scores:
            raise ValueError(f"unknown score {score!r}; this run has {', '.join(self.scores)}")
        if not 1 <= n <= len(self.data.train):
            raise ValueError(f"n is {n}; expected 1 to {len(self.data.train)} samples")
        values = self.scores[score].to_numpy()
        order = np.argsort(-values, kind="stable")
        rows = np.concatenate([order[:n], order[::-1][:n]])
        shown, names = self.data.train[torch.as_tensor(rows)], self.data.class_names
        titles = [
            f"{index}: {plots.shortened(names[label], 14)}\n{value:.3g}"
            for index, label, value in zip(shown.index.tolist(), shown.labels, values[rows])
        ]
        figure = plt.figure(figsize=plots.figsize(n, 2, 1.45))
        plots.image_grid(
            figure, shown.images[:], titles=titles, rows=[f"highest_{score}", f"lowest_{score}"],
            columns=n, pixel_max=self.data.pixel_max, marked=shown.is_noisy.numpy(),
        )  # fmt: skip
        plt.close(figure)  # a notebook would show it twice
        return figure

    def snapshot(self, name: str, *, device: str = "cpu") -> nn.Module:
        """Return the network in eval mode with its weights at a stop.

        Parameters
        ----------
        name : str
            One of ``run.stops.index``.
        device : str
            As in `TrainConfig`; `posthoc.predict` and `posthoc.evaluate_batched` compute on it.

        Raises
        ------
        ValueError
            If there is no such stop, or no such device.
        """
        self._stop(name)
        place = devices.resolve(device)
        net = registry.build(self.model, self.data.n_classes, self.data.in_shape)
        weights = _group(self.arrays, f"snapshot/{name}/")
        net.load_state_dict({k: torch.as_tensor(v) for k, v in weights.items()})
        return net.eval().to(place)

    def evaluate(
        self, function: PerSample, stop: str = "last", *, device: str = "auto", **options: object
    ) -> np.ndarray:
        """Evaluate a per-sample function at the weights of a stop, on all training samples.

        Computed with one thread, as the trainings by default: other numbers round differently.

        >>> import memlens as ml
        >>> from memlens.tracking import signals
        >>> run = ml.train("mlp", ml.load("digits").subset(100), ml.TrainConfig(epochs=2))
        >>> run.evaluate(signals.product_norms, n_directions=3).shape
        (100, 3)

        Parameters
        ----------
        function : callable, (net, x, y, **options) -> Tensor (n, ...)
            As in `posthoc.evaluate_batched`, such as `signals.product_norms`.
        stop : str
            One of ``run.stops.index``.
        device : str
            As in `TrainConfig`.
        **options
            Passed to the function.

        Returns
        -------
        ndarray (n_samples, ...), float64
            In the order of the training samples.
        """
        train, net = self.data.train, self.snapshot(stop, device=device)
        with devices.thread_count(1):
            x, y = self.data.normalise(train.images), train.labels
            return evaluate_batched(function, net, x, y, **options).double().numpy()

    def snapshot_epoch(self, name: str) -> int:
        """Return the epoch of a stop, counted from 0."""
        return self._stop(name).peak_epoch


def history_of(arrays: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return the history, one row per epoch, from the arrays of a run."""
    return pd.DataFrame(_group(arrays, "history/")).astype({"epoch": int})


def _group(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
