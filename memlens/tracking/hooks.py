"""`RecorderHooks`: record a loop that cannot be changed between its forward and backward pass."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlens.tracking.indexing import KEY
from memlens.tracking.recorder import Recorder

# Largest relative error of a gradient, beyond its rounding, that still counts as cross-entropy.
RELATIVE_TOLERANCE = 0.01
BFLOAT16_TOLERANCE = 0.05  # the same where the gradient is in bfloat16
SMALLEST_ERROR = 0.01  # steps with a smaller mean error (or loss) are dominated by rounding

_HOOKS: "WeakKeyDictionary[nn.Module, RecorderHooks]" = WeakKeyDictionary()


class RecorderHooks:
    """Hooks on a network that record each training step of any loop around it.

    In train mode, the input of the network is replaced by `Recorder.watch` of it, and the logits
    are kept; `update` passes both to the recorder after each backward pass. A keyword argument
    ``index`` is removed before the network receives it. In eval mode, or without gradients, nothing
    is recorded.

    >>> net, recorder = nn.Linear(3, 2), Recorder(n_samples=4)
    >>> with RecorderHooks(net, recorder) as hooks:
    ...     F.cross_entropy(net(torch.rand(4, 3)), torch.tensor([0, 1, 0, 1])).backward()
    ...     hooks.update(torch.arange(4), torch.tensor([0, 1, 0, 1]))
    ...     _ = hooks.end_epoch()
    >>> recorder.n_epochs
    1

    The scale of the loss (accumulated gradients, a GradScaler, several processes, a sum in place of
    a mean) is measured as the ratio of the gradient at the logits to that of the unscaled
    cross-entropy. A network that returns ``loss`` may have no gradient at the logits beside it
    (mixed precision, compilation); there the gradient at the loss is used. Steps whose samples are
    nearly all fitted are not checked.

    A network has one `RecorderHooks` at a time: a new one removes the hooks of an older one.

    Parameters
    ----------
    module : nn.Module
        From images to logits: a tensor (b, n_classes), or an object or dict with ``logits``. Its
        input must not need a gradient, since layers before it would not be trained.
    recorder : Recorder
    input : str, optional
        Keyword of the input; by default the first floating-point tensor among the arguments.
    loss_scale : float, optional
        Scale of the loss, as in `Recorder.update`, in place of measuring it: needed for a loss
        that is not the cross-entropy.

    Attributes
    ----------
    index, y : Tensor (b,) or None
        The keyword arguments ``index`` and ``labels`` of the last forward pass.
    """

    # The scale is measured rather than passed in, because only the measurement detects a loss that
    # is not the plain cross-entropy: smoothed labels, class weights, mixed images.

    def __init__(
        self,
        module: nn.Module,
        recorder: Recorder,
        *,
        input: str | None = None,
        loss_scale: float | None = None,
    ) -> None:
        self.recorder, self.input, self.loss_scale = recorder, input, loss_scale
        self._errors: list[Tensor] = []  # of each step: squared error, its limit, squared size
        self.reset()
        if older := _HOOKS.pop(module, None):  # of a training that was interrupted
            older.remove()
        _HOOKS[module] = self
        # Not compiled: a leaf that is made within a graph keeps no gradient.
        before, after = map(torch.compiler.disable, (self._before, self._after))
        self._handles = [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]

    def __enter__(self) -> "RecorderHooks":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the hooks from the network."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def reset(self) -> None:
        """Drop a forward pass that no `update` followed."""
        self._x: Tensor | None = None
        self._logits: Tensor | None = None
        self._loss: Tensor | None = None
        self._n_items: Tensor | int | None = None  # by which the network divides a summed loss
        self._gradients: dict[str, Tensor] = {}  # at the logits and at the loss
        self.index: Tensor | None = None
        self.y: Tensor | None = None

    def update(self, index: Tensor | None = None, y: Tensor | None = None) -> None:
        """Record one training step; call it after the backward pass.

        Parameters
        ----------
        index, y : Tensor (b,), optional
            Positions in the training set, and labels; by default the keyword arguments ``index``
            and ``labels`` of the network.

        Raises
        ------
        ValueError
            If the network did not run in train mode, if there is no index or no labels, or if no
            gradient arrived.
        """
        index, y = (self.index if index is None else index), (self.y if y is None else y)
        if self._logits is None:
            raise ValueError(
                "the network has not run in train mode since the last update(): register the "
                "hooks on the module that the training step calls with images"
            )
        for name, tensor, advice in (
            ("index", index, "wrap the training set with ml.with_index"),
            ("labels", y, "pass them to update()"),
        ):
            if tensor is None:
                raise ValueError(f"the batch has no {name}: {advice}")
        x, logits = self._x, self._logits
        index, y = (t.to(x.device, non_blocking=True).long() for t in (index, y))
        scale = self._measure_scale(logits, y) if self.loss_scale is None else self.loss_scale
        self.reset()
        self.recorder.update(index, x, logits, y, loss_scale=scale)

    def end_epoch(self) -> dict[str, float]:
        """Close the recorder's epoch, and return the mean of each signal over the samples.

        Raises
        ------
        ValueError
            If the loss was not the cross-entropy of the logits and the labels.
        """
        if self._errors:
            error, limit, size = torch.stack(self._errors).sum(0).tolist()
            self._errors = []
            if error > limit:
                share = (error / size) ** 0.5
                raise ValueError(
                    f"the gradient at the logits differs by {share:.0%} from that of the "
                    "cross-entropy: expected the labels of the batch, and no smoothed labels, "
                    "class weights or mixed images; pass loss_scale to record another loss"
                )
        return self.recorder.end_epoch()

    @torch.no_grad()
    def _measure_scale(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the scale of the loss beyond the recorder's reduction, a scalar."""
        logits = logits.detach().float()
        if "logits" in self._gradients:
            measured_at = self._gradients["logits"]
            scale, error, size = scale_from_logits(logits, y, measured_at)
            smallest = len(y) * SMALLEST_ERROR**2
        elif "loss" in self._gradients:
            measured_at = self._loss.detach()
            scale, error, size = scale_from_loss(logits, y, measured_at, self._n_items)
            scale, smallest = scale * self._gradients["loss"].float(), SMALLEST_ERROR**2
        else:
            raise ValueError("no gradient at the logits: call update() after the backward pass")
        bfloat16 = measured_at.dtype == torch.bfloat16
        tolerance = BFLOAT16_TOLERANCE if bfloat16 else RELATIVE_TOLERANCE
        errors = torch.stack([error, tolerance**2 * size, size])
        unchecked = ~errors.isfinite().all() | (size < smallest)  # overflow, or mostly rounding
        self._errors.append(errors.masked_fill(unchecked, 0.0))
        return scale if self.recorder.reduction == "mean" else scale / len(y)

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        index = kwargs.pop(KEY, None)
        if not (module.training and torch.is_grad_enabled()):
            return args, kwargs
        key = self._input_key(args, kwargs)
        if key is None:
            return args, kwargs
        if self._x is not None:
            raise ValueError(
                "the network ran twice in one step: a recorder takes one forward pass per step"
            )
        x = args[key] if isinstance(key, int) else kwargs[key]
        if x.requires_grad:
            raise ValueError(
                "the input of the network needs a gradient, so the layers before the network would "
                "not be trained: register the hooks on the module that receives the images, or on "
                "the whole network"
            )
        self.index, self.y = index, kwargs.get("labels")
        self._n_items = kwargs.get("num_items_in_batch")
        self._x = self.recorder.watch(x)
        if isinstance(key, int):
            return (*args[:key], self._x, *args[key + 1 :]), kwargs
        return args, {**kwargs, key: self._x}

    def _input_key(self, args: tuple, kwargs: dict) -> int | str | None:
        """Return position or keyword of the input; None if the call has none, as in a wrapper."""
        if self.input is not None:
            return self.input if self.input in kwargs else None
        for name, value in (*enumerate(args), *kwargs.items()):
            if isinstance(value, Tensor) and value.is_floating_point():
                return name
        return None

    def _after(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._x is None or self._logits is not None or not torch.is_grad_enabled():
            return
        logits = output.get("logits") if isinstance(output, Mapping) else output
        logits = getattr(logits, "logits", logits)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
            raise ValueError(
                f"the network returned {found}; expected logits of shape (b, n_classes), as a "
                "tensor or under the name logits"
            )
        self._logits = logits
        self._loss = output.get("loss") if isinstance(output, Mapping) else None
        for name, tensor in (("logits", logits), ("loss", self._loss)):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(partial(self._keep_gradient, name))

    def _keep_gradient(self, name: str, gradient: Tensor | None) -> None:
        if gradient is not None:  # None for an output of a compiled network outside the loss
            self._gradients[name] = gradient


class MeasuredScale(NamedTuple):
    """Scale of a loss relative to the mean cross-entropy; three scalar tensors.

    ``squared_error`` is the squared distance from a scaled cross-entropy, beyond rounding, and
    ``squared_size`` the square of the quantity that it is relative to.
    """

    scale: Tensor
    squared_error: Tensor
    squared_size: Tensor


def scale_from_logits(logits: Tensor, y: Tensor, gradient: Tensor) -> MeasuredScale:
    """Measure the scale of the mean cross-entropy from the gradient (b, n_classes) at logits."""
    rounding = torch.finfo(gradient.dtype).eps / 2  # of probabilities just below 1, twice
    gradient = gradient.float()
    expected = F.log_softmax(logits, 1).exp()  # in the form in which autograd computes it
    expected.scatter_add_(1, y[:, None], -torch.ones_like(expected[:, :1]))
    size = expected.square().sum()
    measurable = (size > 0) & gradient.any()  # otherwise every gradient to be scaled is 0
    factor = torch.where(measurable, (gradient * expected).sum() / size, 1.0)
    error = ((gradient / factor - expected).abs() - rounding).clamp_min(0)
    return MeasuredScale(factor * len(y), error.square().sum(), size)


def scale_from_loss(
    logits: Tensor, y: Tensor, loss: Tensor, n_items: Tensor | float | None
) -> MeasuredScale:
    """Measure the scale of the mean cross-entropy from the ``loss`` that a network returned.

    The scale is 1 (a mean over b samples), b (a sum) or b / ``n_items``, whichever is nearest.
    """
    rounding = torch.finfo(loss.dtype).eps
    mean, b = F.cross_entropy(logits, y), len(y)
    scales = [mean.new_full((), 1.0), mean.new_full((), float(b))]
    if isinstance(n_items, Tensor):
        n_items = n_items.to(mean, non_blocking=True).reshape(())
    if n_items is not None:
        scales.append(mean.new_full((), float(b)) / n_items)
    scales = torch.stack(scales)
    errors = ((loss.reshape(()).float() / scales - mean).abs() - rounding).clamp_min(0)
    nearest = errors.argmin(0, keepdim=True)
    scale, error = scales.gather(0, nearest)[0], errors.gather(0, nearest)[0]
    return MeasuredScale(scale, error.square(), mean.square())
