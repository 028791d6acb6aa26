"""The result of one training: scores, history, peaks, and the snapshots worth keeping."""

import math
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
from memlens.tracking.peaks import PEAKS, Peak, PeakDetector
from memlens.tracking.traces import Trace
from memlens.training import devices

SNAPSHOTS = ("peak", "best_val", "last")


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
        val_accuracy, weight_norm, input_gradient (mean L2 norm), seconds
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
        self.peaks = {name: Peak(*meta["peaks"][name]) for name in PEAKS}

    def __repr__(self) -> str:
        last = self.history.iloc[-1]
        return (
            f"Run({self.model} on {self.data.name}, {len(self.history)} epochs, "
            f"validation accuracy {last.val_accuracy:.3f}, {self.peak})"
        )

    @property
    def peak(self) -> Peak:
        """Peak of the weight norm, where the sums SGAL and early CSG end."""
        return self.peaks["weight_norm"]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """In-step scores: one row per training sample (original index), one column per score."""
        return self.scores_at("weight_norm")

    @cached_property
    def posthoc_scores(self) -> pd.DataFrame:
        """The same scores from the post-hoc signals, and those that need a post-hoc pass.

        Raises
        ------
        ValueError
            If the run was not measured post-hoc.
        """
        return self.scores_at("weight_norm", posthoc=True)

    def scores_at(self, peak: str, *, posthoc: bool = False) -> pd.DataFrame:
        """Return all scores, with SGAL and early CSG summed up to the named peak.

        Parameters
        ----------
        peak : "weight_norm" or "input_gradient"
        posthoc : bool
            From the post-hoc signals instead of the in-step ones.

        Raises
        ------
        ValueError
            If the peak is unknown, or the run was not measured post-hoc.
        """
        if peak not in self.peaks:
            raise ValueError(f"unknown peak {peak!r}; known: {', '.join(self.peaks)}")
        trace = self.posthoc_trace if posthoc else self.trace
        if trace is None:
            raise ValueError("no post-hoc signals: train with MeasureConfig(posthoc=True)")
        return scores.score_frame(trace, self.peaks[peak], self.data.train.index.numpy())

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
        """Return the network in eval mode with the weights of a snapshot.

        Parameters
        ----------
        name : "peak", "best_val" or "last"
            Peak of the weight norm, lowest validation loss, or end of the training.
        device : str
            As in `TrainConfig`; `posthoc.predict` and `posthoc.evaluate_batched` compute on it.

        Raises
        ------
        ValueError
            If there is no such snapshot, or no such device.
        """
        if name not in SNAPSHOTS:
            raise ValueError(f"unknown snapshot {name!r}; known: {', '.join(SNAPSHOTS)}")
        place = devices.resolve(device)
        net = registry.build(self.model, self.data.n_classes, self.data.in_shape)
        weights = _group(self.arrays, f"snapshot/{name}/")
        net.load_state_dict({k: torch.as_tensor(v) for k, v in weights.items()})
        return net.eval().to(place)

    def snapshot_epoch(self, name: str) -> int:
        """Return the epoch, counted from 0, after which the snapshot was taken."""
        return self.meta["snapshots"][name]


def history_of(arrays: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return the history, one row per epoch, from the arrays of a run."""
    return pd.DataFrame(_group(arrays, "history/")).astype({"epoch": int})


def _group(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


class SnapshotRule:
    """Tells after each epoch which snapshots the weights of a network replace now.

    "peak" is the peak of the weight norm until it is detected, "best_val" the lowest validation
    loss.

    >>> rule = SnapshotRule(patience=2)
    >>> [rule.update(norm, loss) for norm, loss in [(5.0, 2.3), (6.0, 2.4), (5.9, 2.2)]]
    [['peak', 'best_val'], ['peak'], ['best_val']]

    Parameters
    ----------
    patience : int
        Epochs without a new maximum before the peak is detected; see `PeakDetector`.
    """

    def __init__(self, patience: int) -> None:
        self.detector = PeakDetector(patience=patience)
        self.lowest = math.inf

    def update(self, weight_norm: float, val_loss: float) -> list[str]:
        """Return the snapshots to replace after an epoch.

        Without a validation loss so far (NaN), "best_val" is the last epoch.
        """
        self.detector.update(weight_norm)
        due = ["peak"] if self.detector.at_best else []
        unknown = math.isnan(val_loss) and self.lowest == math.inf
        if val_loss < self.lowest or unknown:
            due.append("best_val")
        if val_loss < self.lowest:
            self.lowest = val_loss
        return due
