"""Errors of a recorder: wrong steps, indices, visits and states; divergence."""

from collections.abc import Mapping
from typing import Any, NoReturn

from torch import Tensor

from memlens.tracking.loss_scale import GRADIENTS
from memlens.tracking.traces import SIGNALS


def check_step(index: Tensor, x: Tensor, logits: Tensor, y: Tensor) -> None:
    """Raise ValueError if ``x`` has no gradient, or the lengths of a step's tensors differ."""
    if getattr(x, "grad", None) is None:
        raise ValueError(
            "x has no gradient: call x = recorder.watch(x) before the forward pass and "
            "update() after loss.backward()"
        )
    if not len(index) == len(x) == len(logits) == len(y):
        raise ValueError(
            f"index, x, logits and y have lengths {len(index)}, {len(x)}, {len(logits)}, "
            f"{len(y)}; expected the same batch"
        )


def check_range(bounds: Tensor, n_samples: int) -> None:
    """Raise ValueError if an index is outside the training set; bounds are rows of (low, high)."""
    low, high = bounds.amin().item(), bounds.amax().item()
    if low < 0 or high >= n_samples:
        raise ValueError(
            f"indices run from {low} to {high}; expected 0 to {n_samples - 1}: pass the position "
            "in the training set as the index, and the size of the training set as n_samples"
        )


def check_visits(visits: Tensor | None, epoch: int) -> None:
    """Raise ValueError unless each sample was visited exactly once; visits is (n_samples,)."""
    if visits is None:
        raise ValueError("end_epoch() without an update() in this epoch")
    if bool((visits == 1).all()):
        return
    twice, never = (mask.nonzero()[:, 0] for mask in (visits > 1, visits == 0))
    raise ValueError(
        f"epoch {epoch}: {len(twice)} samples were visited more than once (first: "
        f"{twice[:3].tolist()}) and {len(never)} never (first: {never[:3].tolist()}); visit each "
        "sample once an epoch, without drop_last or a sampler with replacement, or use "
        "CountingRecorder, which counts visits and supports several processes"
    )


def check_state(
    state: Mapping[str, Any], kind: str, shape: tuple[int, int], n_tensors: int
) -> None:
    """Raise ValueError unless a state is of this kind of recorder and of this shape.

    Parameters
    ----------
    state : mapping
        From `Recorder.state_dict`.
    kind : str
        Class name of the recorder that loads it.
    shape : (n_signals, n_samples)
    n_tensors : int
        Tensors of an unfinished epoch; the last one is of visits.
    """
    found = state.get("kind", "Recorder")
    if found != kind:
        raise ValueError(f"the state is of a {found}; expected that of a {kind}")
    expected, found = [shape] * len(state["rows"]), [tuple(row.shape) for row in state["rows"]]
    if "unfinished" in state:
        expected += [shape] * (n_tensors - 1) + [shape[1:]]
        found += [tuple(tensor.shape) for tensor in state["unfinished"]]
    if found != expected:
        raise ValueError(
            f"the state has tensors of shapes {sorted({*found})}; this recorder has {shape[1]} "
            f"samples and {shape[0]} signals, {n_tensors} tensors in an epoch that has begun"
        )


def raise_divergence(row: Tensor, epoch: int) -> NoReturn:
    """Raise FloatingPointError for the signals of an epoch, (n_signals, n_samples)."""
    bad = {k: int((~values.isfinite()).sum()) for k, values in zip(SIGNALS, row, strict=True)}
    name = max(bad, key=bad.get)
    if bad["loss"] == 0 and bool(row[GRADIENTS].isnan().all()):
        raise FloatingPointError(
            f"every gradient of epoch {epoch} overflowed under its loss scale: give the "
            "GradScaler a lower init_scale, or lower the learning rate"
        )
    raise FloatingPointError(
        f"{name} is NaN or infinite for {bad[name]} samples in epoch {epoch}: training has "
        "diverged; lower the learning rate"
    )
