"""`RecorderHooks`: hooks on a net, for loops that cannot be changed between forward and backward pass."""

from collections.abc import Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlens.tracking.indexing import KEY
from memlens.tracking.recorder import Recorder

TOLERANCE = 0.01  # of a gradient, beyond its rounding; another loss is further off than this
COARSE = 0.05  # the same where it arrives in bfloat16
JUDGED = 0.01  # a mean error (or loss) below this is mostly rounding, and tells nothing

_WATCHED: "WeakKeyDictionary[nn.Module, RecorderHooks]" = WeakKeyDictionary()


class RecorderHooks:
    """Hooks on a net that let a recorder see a loop which knows nothing of it.

    While the net trains, its input is replaced by one that autograd fills with the input gradient,
    and its logits are kept; `update` hands both to the recorder, after each backward pass. A
    keyword ``index`` is taken away before the net sees it. In eval mode and without gradients
    nothing else happens.

    >>> net, recorder = nn.Linear(3, 2), Recorder(n_samples=4)
    >>> with RecorderHooks(net, recorder) as watched:
    ...     F.cross_entropy(net(torch.rand(4, 3)), torch.tensor([0, 1, 0, 1])).backward()
    ...     watched.update(torch.arange(4), torch.tensor([0, 1, 0, 1]))
    ...     _ = watched.end_epoch()
    >>> recorder.n_epochs
    1

    Nobody says what a framework multiplies the loss by: accumulation, a loss scaler, processes, a
    sum in place of a mean. So it is measured: the gradient that arrived at the logits over that of
    the summed cross-entropy; or, where a net returns ``loss`` and no gradient comes through the
    logits beside it (mixed precision, compilation), the gradient that arrived at the loss. A loss
    that is something else (smoothed labels, class weights, mixed images) is found in this way, and
    refused when the epoch ends; steps whose samples the net knows nearly all are not judged.

    A net is watched by one at a time: a new one takes the hooks of an older one off.

    Parameters
    ----------
    module : nn.Module
        From images to logits: a tensor (b, n_classes), or an object or dict with ``logits``. What
        lies before it would not train: the input must not need a gradient.
    recorder : Recorder
    input : str, optional
        Keyword of the input; by default the first argument that is a tensor of floats.
    loss_scale : float, optional
        What the loss is multiplied by, as in `Recorder.update`, in place of measuring it: for a
        loss that is not the cross-entropy.
    """

    def __init__(
        self,
        module: nn.Module,
        recorder: Recorder,
        *,
        input: str | None = None,
        loss_scale: float | None = None,
    ) -> None:
        self.recorder, self.input, self.loss_scale = recorder, input, loss_scale
        self._misfit: list[Tensor] = []
        self.reset()
        if older := _WATCHED.pop(module, None):  # of a training that was interrupted
            older.remove()
        _WATCHED[module] = self
        # compilers leave hooks as they are: a leaf made within a graph would keep no gradient
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
        """Take the hooks off the net."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def reset(self) -> None:
        """Forget a forward pass that had no `update`."""
        self._x: Tensor | None = None
        self._logits: Tensor | None = None
        self._loss: Tensor | None = None
        self._items: Tensor | int | None = None  # what the net is to divide a summed loss by
        self._arrived: dict[str, Tensor] = {}  # gradients
        self.index: Tensor | None = None
        self.y: Tensor | None = None

    def update(self, index: Tensor | None = None, y: Tensor | None = None) -> None:
        """Hand a step to the recorder, after its backward pass.

        Parameters
        ----------
        index, y : Tensor (b,), optional
            Positions and labels; by default what the net was given as ``index`` and ``labels``.

        Raises
        ------
        ValueError
            If the net has not run in train mode, no index or labels are known, or no backward pass
            has come through.
        """
        index, y = (self.index if index is None else index), (self.y if y is None else y)
        if self._logits is None:
            raise ValueError(
                "the watched net has not run in train mode since the last update(): watch the "
                "module that the training step calls with images"
            )
        for name, given, advice in (
            ("index", index, "wrap the training set with ml.with_index"),
            ("labels", y, "give them to update()"),
        ):
            if given is None:
                raise ValueError(f"the batch holds no {name}: {advice}")
        x, logits = self._x, self._logits
        index, y = (t.to(x.device, non_blocking=True).long() for t in (index, y))
        scale = self._measured(logits, y) if self.loss_scale is None else self.loss_scale
        self.reset()
        self.recorder.update(index, x, logits, y, loss_scale=scale)

    def end_epoch(self) -> dict[str, float]:
        """Close the recorder's epoch; returns each signal's mean over its samples.

        Raises
        ------
        ValueError
            If the loss was not the cross-entropy of the logits and the labels.
        """
        if self._misfit:
            apart, allowed, whole = torch.stack(self._misfit).sum(0).tolist()
            self._misfit = []
            if apart > allowed:
                share = (apart / whole) ** 0.5
                raise ValueError(
                    f"the gradient at the logits differs by {share:.0%} from that of the "
                    "cross-entropy: are labels smoothed, classes weighted, images mixed, or are "
                    "these not the labels? Give loss_scale if another loss is meant"
                )
        return self.recorder.end_epoch()

    @torch.no_grad()
    def _measured(self, logits: Tensor, y: Tensor) -> Tensor:
        """What the loss was multiplied by beyond the recorder's reduction, a scalar."""
        logits = logits.detach().float()
        if "logits" in self._arrived:
            said = self._arrived["logits"]
            scale, apart, whole = scale_from_logits(logits, y, said)
            enough = len(y) * JUDGED**2
        elif "loss" in self._arrived:
            said = self._loss.detach()
            scale, apart, whole = scale_from_loss(logits, y, said, self._items)
            scale, enough = scale * self._arrived["loss"].float(), JUDGED**2
        else:
            raise ValueError("no backward pass came through the logits: call update() after it")
        tolerance = COARSE if said.dtype == torch.bfloat16 else TOLERANCE
        found = torch.stack([apart, tolerance**2 * whole, whole])
        unknown = ~found.isfinite().all() | (whole < enough)  # an overflow, or nearly nothing
        self._misfit.append(found.masked_fill(unknown, 0.0))
        return scale if self.recorder.reduction == "mean" else scale / len(y)

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        index = kwargs.pop(KEY, None)
        if not (module.training and torch.is_grad_enabled()):
            return args, kwargs
        where = self._where(args, kwargs)
        if where is None:
            return args, kwargs
        if self._x is not None:
            raise ValueError(
                "the watched net ran twice in one step: a recorder takes one forward pass a step"
            )
        given = args[where] if isinstance(where, int) else kwargs[where]
        if given.requires_grad:
            raise ValueError(
                "the input of the watched net needs a gradient, so that what lies before the net "
                "would not train: watch the module that gets the images, or the whole net"
            )
        self.index, self.y = index, kwargs.get("labels")
        self._items = kwargs.get("num_items_in_batch")
        self._x = self.recorder.watch(given)
        if isinstance(where, int):
            return (*args[:where], self._x, *args[where + 1 :]), kwargs
        return args, {**kwargs, where: self._x}

    def _where(self, args: tuple, kwargs: dict) -> int | str | None:
        """Place or keyword of the input; None where the call has none, as a wrapper's own call."""
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
                f"the watched net returned {found}; expected logits of shape (b, n_classes), as a "
                "tensor or under the name logits"
            )
        self._logits = logits
        self._loss = output.get("loss") if isinstance(output, Mapping) else None
        for name, tensor in (("logits", logits), ("loss", self._loss)):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(partial(self._keep, name))

    def _keep(self, name: str, gradient: Tensor | None) -> None:
        if gradient is not None:  # compiled nets say None of an output that the loss does not use
            self._arrived[name] = gradient


def scale_from_logits(logits: Tensor, y: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the mean cross-entropy was multiplied by, from the gradient (b, n_classes) at logits.

    Returns
    -------
    Three scalars: the factor; the squared distance of the gradient from that of a cross-entropy,
    as far as it is more than rounding; what that is relative to.
    """
    rounding = torch.finfo(gradient.dtype).eps / 2  # of probabilities just below 1, twice
    gradient = gradient.float()
    error = F.log_softmax(logits, 1).exp()  # as autograd has it
    error.scatter_add_(1, y[:, None], -torch.ones_like(error[:, :1]))
    whole = error.square().sum()
    known = (whole > 0) & gradient.any()  # else all that would be scaled is 0
    factor = torch.where(known, (gradient * error).sum() / whole, 1.0)
    apart = ((gradient / factor - error).abs() - rounding).clamp_min(0)
    return factor * len(y), apart.square().sum(), whole


def scale_from_loss(
    logits: Tensor, y: Tensor, loss: Tensor, items: Tensor | float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What a net multiplied the mean cross-entropy by to get its ``loss``.

    By 1 (a mean), by b (a sum) or by b over ``items``, whichever is nearest.

    Returns
    -------
    Three scalars: the factor; the squared distance of the loss from that, as far as it is more than
    rounding; what it is relative to.
    """
    rounding = torch.finfo(loss.dtype).eps
    mean, size = F.cross_entropy(logits, y), len(y)
    factors = [mean.new_full((), 1.0), mean.new_full((), float(size))]
    if items is not None:
        items = (
            items.to(mean, non_blocking=True).reshape(())
            if isinstance(items, Tensor)
            else float(items)
        )
        factors.append(mean.new_full((), float(size)) / items)
    factors = torch.stack(factors)
    apart = ((loss.reshape(()).float() / factors - mean).abs() - rounding).clamp_min(0)
    nearest = apart.argmin(0, keepdim=True)
    return factors.gather(0, nearest)[0], apart.gather(0, nearest)[0].square(), mean.square()
