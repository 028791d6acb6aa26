"""What one training leaves: scores, history, peaks and checkpoints."""

from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from memlens import models, scores
from memlens.data import Dataset
from memlens.stopping import PEAKS, Peak
from memlens.traces import Trace

CHECKPOINTS = ("peak", "best_val", "last")


class Run:
    """One finished training: scores, history and checkpoints.

    Attributes
    ----------
    trace : Trace, in-step (train mode, augmented inputs, before each update)
    posthoc_trace : Trace or None (eval mode, clean inputs, after each epoch)
    history : DataFrame, a row an epoch: epoch, lr, train_loss, train_accuracy, val_loss,
        val_accuracy, weight_norm, input_gradient (mean L2 norm), seconds
    peaks : dict of `Peak`, by "weight_norm" and "input_gradient"
    arrays, meta : dict, all of the above as the store keeps it
    """

    def __init__(
        self,
        model: str | models.Builder,
        data: Dataset,
        arrays: dict[str, np.ndarray],
        meta: dict[str, Any],
    ) -> None:
        self.model, self.data, self.arrays, self.meta = model, data, arrays, meta
        self.history = pd.DataFrame(self._group("history/")).astype({"epoch": int})
        beside = {"lr": self.history["lr"].to_numpy(), "y_true": data.train.labels.numpy()}
        self.trace = Trace(self._group("trace/"), **beside)
        posthoc = self._group("posthoc/")
        self.posthoc_trace = Trace(posthoc, **beside) if posthoc else None
        self.peaks = {name: Peak(*meta["peaks"][name]) for name in PEAKS}

    def __repr__(self) -> str:
        last = self.history.iloc[-1]
        return (
            f"Run({self.model} on {self.data.name}, {len(self.history)} epochs, "
            f"validation accuracy {last.val_accuracy:.3f}, {self.peak})"
        )

    def _group(self, prefix: str) -> dict[str, np.ndarray]:
        n = len(prefix)
        return {k[n:]: v for k, v in self.arrays.items() if k.startswith(prefix)}

    @property
    def peak(self) -> Peak:
        """Peak of the weight norm: where SGAL and early CSG are taken."""
        return self.peaks["weight_norm"]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """In-step scores: a row a training sample (original index), a column a score."""
        return self.scores_at("weight_norm")

    @cached_property
    def posthoc_scores(self) -> pd.DataFrame:
        """The same scores post-hoc, and those that only a post-hoc pass can give.

        Raises
        ------
        ValueError
            If the run was not measured post-hoc.
        """
        return self.scores_at("weight_norm", posthoc=True)

    def scores_at(self, peak: str, *, posthoc: bool = False) -> pd.DataFrame:
        """All scores, with SGAL and early CSG taken at the named peak.

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
            raise ValueError("no post-hoc signals: train with Measure(posthoc=True)")
        return scores.score_frame(trace, self.peaks[peak], self.data.train.index.numpy())

    def checkpoint(self, name: str) -> nn.Module:
        """The net in eval mode at "peak" (of the weight norm), "best_val" (loss) or "last"."""
        if name not in CHECKPOINTS:
            raise ValueError(f"unknown checkpoint {name!r}; known: {', '.join(CHECKPOINTS)}")
        net = models.build(self.model, self.data.n_classes, self.data.in_shape)
        weights = self._group(f"checkpoint/{name}/")
        net.load_state_dict({k: torch.as_tensor(v) for k, v in weights.items()})
        return net.eval()

    def checkpoint_epoch(self, name: str) -> int:
        """Epoch (from 0) after which the checkpoint was taken."""
        return self.meta["checkpoints"][name]
