"""What callbacks keep of a training in a checkpoint, and which training may go on from it."""

from collections.abc import Mapping
from typing import Any

from memlens.tracking.recorder import Recorder
from memlens.tracking.stopping import PeakStop


def check_new(recorder: Recorder, step: int) -> None:
    """Raise ValueError where a training begins with what another one recorded."""
    if step == 0 and (recorder.n_epochs or recorder.in_epoch):
        raise ValueError(
            f"this callback holds {recorder.n_epochs} epochs of another training: make a new "
            "callback for each training"
        )


def kept(recorder: Recorder, stop: PeakStop | None, world_size: int) -> dict[str, Any]:
    """What a checkpoint keeps of a training in so many processes, of one of them."""
    return {
        "recorder": recorder.state_dict(unfinished=True),
        "stop": stop.state_dict() if stop else None,
        "world_size": world_size,
    }


def take_up(
    state: Mapping[str, Any], recorder: Recorder, stop: PeakStop | None, world_size: int
) -> None:
    """Go on from what was `kept`.

    Raises
    ------
    ValueError
        If it is of another number of processes, or holds no stop where one is wanted.
    """
    if (before := state.get("world_size", world_size)) != world_size:
        raise ValueError(
            f"the checkpoint was recorded by {before} processes, this training has {world_size}: "
            "resume with as many, or without this callback"
        )
    if stop and not state["stop"]:
        raise ValueError(
            "the checkpoint was written without a PeakStop, whose curve begins with the training: "
            "resume without one"
        )
    recorder.load_state_dict(state["recorder"])
    if stop:
        stop.load_state_dict(state["stop"])
