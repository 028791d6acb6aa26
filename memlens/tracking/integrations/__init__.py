"""Callbacks that record trainings by Lightning and by the Hugging Face Trainer.

`LightningRecorder` needs lightning, `TrainerRecorder` needs transformers and accelerate. Each
framework is imported when its callback is first used. What they share is `RecorderCallback`:
recorder, hooks, end of epochs, checkpoints.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from memlens.tracking.counting import CountingRecorder, world_size
from memlens.tracking.hooks import RecorderHooks
from memlens.tracking.stopping import PeakStop

_HOME = {"LightningRecorder": "lightning", "TrainerRecorder": "huggingface"}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'memlens.tracking.integrations' has no attribute {name!r}")
    return getattr(import_module(f"memlens.tracking.integrations.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class RecorderCallback:
    """Base of the callbacks: records the training of one network, and stops it at a peak.

    Parameters
    ----------
    n_samples : int
        Size of the training set.
    stop : PeakStop or None
    loss_scale : float or None
        See `RecorderHooks`.

    Attributes
    ----------
    recorder : CountingRecorder
        With several processes, this one's share; ``recorder.gathered()`` merges the shares.
    stop : PeakStop or None
    """

    def __init__(self, n_samples: int, stop: PeakStop | None, loss_scale: float | None) -> None:
        self.recorder, self.stop, self.loss_scale = CountingRecorder(n_samples), stop, loss_scale
        self._hooks: RecorderHooks | None = None
        self._stopped = False  # the peak was detected at the start of this epoch: skip its steps

    def _attach(self, network: nn.Module, step: int, **options: Any) -> None:
        """Register the hooks as a training begins, or resumes after ``step`` optimizer steps."""
        if step == 0 and (self.recorder.n_epochs or self.recorder.in_epoch):
            raise ValueError(
                f"this callback holds {self.recorder.n_epochs} epochs of another training: make a "
                "new callback for each training"
            )
        self._detach()
        options["loss_scale"] = self.loss_scale
        self._hooks = RecorderHooks(network, self.recorder, **options)

    def _detach(self) -> None:
        if self._hooks:
            self._hooks.remove()
        self._hooks = None

    def _close_epoch(self, model: nn.Module) -> bool:
        """Close the epoch if one has begun; return whether the peak is detected."""
        if not self.recorder.in_epoch:
            return False
        self._hooks.end_epoch()
        return bool(self.stop) and self.stop.update(model, self.recorder)

    def _checkpoint(self) -> dict[str, Any]:
        """Return the state of this process: all epochs, including an unfinished one."""
        return {
            "recorder": self.recorder.state_dict(unfinished=True),
            "stop": self.stop.state_dict() if self.stop else None,
            "world_size": world_size(),
        }

    def _resume(self, state: Mapping[str, Any]) -> None:
        """Continue from what `_checkpoint` returned.

        Raises
        ------
        ValueError
            If it was written by another number of processes, or without the stop that is used now.
        """
        if (n_before := state["world_size"]) != world_size():
            raise ValueError(
                f"the checkpoint was recorded by {n_before} processes, this training has "
                f"{world_size()}: resume with as many, or without this callback"
            )
        if self.stop and not state["stop"]:
            raise ValueError(
                "the checkpoint was written without a PeakStop, whose curve begins with the "
                "training: resume without one"
            )
        self.recorder.load_state_dict(state["recorder"])
        if self.stop:
            self.stop.load_state_dict(state["stop"])
