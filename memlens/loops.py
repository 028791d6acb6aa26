"""What a loop of your own needs: a data set that gives its index, a net that is watched.

`with_index` tells a batch which samples it holds. `Watched` is for loops that you cannot change
between the forward pass and the backward pass, as those of frameworks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from memlens.recorder import Recorder

KEY = "index"  # of the position in an item that is a dict, and of the net's argument
TOLERANCE = 0.05  # a loss whose gradient is further from that of the cross-entropy is another one


def with_index(dataset: Dataset) -> "Indexed":
    """The data set with each sample's position: ``(index, *item)``, or a dict with "index" added.

    >>> ds = with_index([("a", 0), ("b", 1)])
    >>> ds[1]
    (1, 'b', 1)

    It goes through a DataLoader with any sampler and any number of workers; positions are those of
    the data set that was wrapped. Wrap last: positions of a `Subset` are those in the subset.

    Raises
    ------
    TypeError
        If it has no length and positions (an IterableDataset), or an item is no tuple, list or
        dict.
    ValueError
        If it is wrapped already, or its dicts have a key "index".
    """
    return Indexed(dataset)


class Indexed(Dataset):
    """A data set whose items hold their position; made by `with_index`.

    Whatever else the wrapped one has (``classes``, ``targets``) can be asked of this one.
    """

    def __init__(self, dataset: Dataset) -> None:
        if isinstance(dataset, Indexed):
            raise ValueError("the data set gives its index already: wrap it once")
        sized = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if isinstance(dataset, IterableDataset) or not sized:
            raise TypeError(
                f"{type(dataset).__name__} has no positions: scores need a map-style data set, "
                "with __len__ and __getitem__"
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> tuple | dict:
        position = self._place(position)
        return _labelled(position, self.dataset[position])

    def __getitems__(self, positions: Sequence[int]) -> list[tuple | dict]:
        """Many items at once, as the wrapped data set gives them at once where it can."""
        positions = [self._place(position) for position in positions]
        if callable(getattr(self.dataset, "__getitems__", None)):
            items = self.dataset.__getitems__(positions)
        else:
            items = [self.dataset[position] for position in positions]
        return [_labelled(*pair) for pair in zip(positions, items, strict=True)]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # asked for while it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def _place(self, position: int) -> int:
        position = int(position)
        return position + len(self) if position < 0 else position


def _labelled(position: int, item: Any) -> tuple | dict:
    if isinstance(item, Mapping):
        if KEY in item:
            raise ValueError(f'the items have a key "{KEY}" already: rename it')
        return {KEY: position, **item}
    if isinstance(item, tuple | list):
        return (position, *item)
    raise TypeError(f"an item is a {type(item).__name__}; expected a tuple, a list or a dict")


class Watched:
    """Hooks on a net that let a recorder see a loop which knows nothing of it.

    While the net trains, its input is replaced by one that autograd fills with the input gradient,
    and its logits are kept; `update` hands both to the recorder, after each backward pass. A
    keyword ``index`` is taken away before the net sees it. In eval mode and without gradients
    nothing else happens.

    >>> net, recorder = nn.Linear(3, 2), Recorder(n_samples=4)
    >>> with Watched(net, recorder) as watched:
    ...     F.cross_entropy(net(torch.rand(4, 3)), torch.tensor([0, 1, 0, 1])).backward()
    ...     watched.update(torch.arange(4), torch.tensor([0, 1, 0, 1]))
    ...     _ = watched.end_epoch()
    >>> recorder.n_epochs
    1

    Nobody says what a framework multiplies the loss by: accumulation, a loss scaler, processes, a
    sum in place of a mean. So it is measured: the gradient that arrived at the logits over that of
    the summed cross-entropy. A loss that is something else (smoothed labels, class weights, mixed
    images) is found in this way, and refused when the epoch ends.

    Parameters
    ----------
    module : nn.Module
        From images to logits: a tensor (b, n_classes), or an object or dict with ``logits``.
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
        # compilers leave hooks as they are: a leaf made within a graph would keep no gradient
        before, after = map(torch.compiler.disable, (self._before, self._after))
        self._handles = [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]

    def __enter__(self) -> "Watched":
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
        index, y = index.to(x.device).long(), y.to(x.device).long()
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
            apart, whole = torch.stack(self._misfit).nansum(0).tolist()
            self._misfit = []
            if apart > TOLERANCE**2 * whole:
                share = (apart / whole) ** 0.5
                raise ValueError(
                    f"the gradient at the logits differs by {share:.0%} from that of the "
                    "cross-entropy: are labels smoothed, classes weighted, images mixed, or are "
                    "these not the labels? Give loss_scale if another loss is meant"
                )
        return self.recorder.end_epoch()

    def _measured(self, logits: Tensor, y: Tensor) -> Tensor:
        """What the loss was multiplied by beyond the recorder's reduction, a scalar."""
        if logits.grad is None:
            raise ValueError("no backward pass came through the logits: call update() after it")
        with torch.no_grad():
            error = F.log_softmax(logits.detach().float(), 1).exp()  # as autograd has it
            error.scatter_add_(1, y[:, None], -torch.ones_like(error[:, :1]))
            found, whole = logits.grad.float(), error.square().sum()
            factor = torch.where(whole > 0, (found * error).sum() / whole, 1.0)
            apart = (found / factor - error).square().sum()
            self._misfit.append(torch.stack([apart, torch.where(apart.isnan(), apart, whole)]))
        return factor * len(y) if self.recorder.reduction == "mean" else factor

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
        self.index, self.y = index, kwargs.get("labels")
        given = args[where] if isinstance(where, int) else kwargs[where]
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
        if logits.requires_grad:
            logits.retain_grad()
        self._logits = logits
