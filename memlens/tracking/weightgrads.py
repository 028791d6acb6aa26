"""Per-sample norms of the weight gradient, without the gradients themselves.

A sample's gradient by the weights of a linear layer is the outer product of what came back to the
layer's output and what went into it, so its norm is the product of two norms that one forward and
one backward pass of the whole batch know anyway (Goodfellow 2015, arXiv 1510.01799). Convolutions
are linear layers over patches: there the smaller of two matrix products is taken. Layers of other
kinds fall back on one gradient a sample.

    with LayerHooks(net) as taps:
        logits = net(x)
    back = torch.autograd.grad(loss_sum, taps.edges)
    squares = taps.squared_norms(back)  # parameter name -> (n,)
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from memlens.tracking.signals import loss, warn_if_train_mode

# Floats that a layer's per-sample gradients may take at once (64 MB): larger batches are split.
BLOCK = 2**24


def weight_gradient_norm(model: nn.Module, x: Tensor, y: Tensor, *, only: str = "") -> Tensor:
    """L2 norm of each sample's loss gradient by the weights, in the mode the model is in.

    This is GraNd (Paul et al. 2021) where the model is in eval mode; its square times the learning
    rate is a checkpoint's share of TracIn self-influence (Pruthi et al. 2020).

    Parameters
    ----------
    model : nn.Module
        Warned about if it is in train mode and has batch norm or dropout.
    x : Tensor (n, ...)
    y : Tensor (n,), int64
    only : str
        Restricts it to the parameters whose names start so, such as one layer's.

    Returns
    -------
    Tensor (n,), 0 or more

    Raises
    ------
    ValueError
        If no parameter has such a name, or a batch norm with weights is in train mode.
    """
    warn_if_train_mode(model)
    with LayerHooks(model) as taps, torch.enable_grad():
        total = loss(model(x), y).sum()
    back = torch.autograd.grad(total, taps.edges) if taps.edges else ()
    squares = taps.squared_norms(back, x, y)
    chosen = [square for name, square in squares.items() if name.startswith(only)]
    if not chosen:
        raise ValueError(f"no parameter of the model has a name that starts with {only!r}")
    return torch.stack(chosen).sum(0).sqrt()


class LayerHooks:
    """Listens to the layers of a model during one forward pass; to none if the model is None.

    Attributes
    ----------
    edges : list of GradientEdge
        Where the gradient by each layer's output is to be taken, in the order of the calls. An edge
        is not moved by an activation that overwrites the layer's output in place.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.model = model
        self.edges: list[GradientEdge] = []
        self._calls: list[tuple[str, nn.Module, Tensor]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> "LayerHooks":
        for name, layer in self.model.named_modules() if self.model else ():
            if _kernel_of(layer):
                self._hooks.append(layer.register_forward_hook(self._listen(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _listen(self, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._calls.append((name, layer, inputs[0].detach()))
            self.edges.append(get_gradient_edge(output))

        return hook

    @property
    def last(self) -> str:
        """Name of the layer that was called last: the classifier, in the nets known here."""
        return self._calls[-1][0]

    @torch.no_grad()
    def squared_norms(
        self, gradients: Sequence[Tensor], x: Tensor | None = None, y: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Squared norm of each sample's gradient by each parameter, name -> (n,).

        Parameters
        ----------
        gradients : sequence of Tensor
            Of the summed loss by `edges`, in their order.
        x, y : Tensor
            The batch; only needed for parameters of layers that are not linear, convolution or
            norm, or that serve more than once: these get one gradient a sample.
        """
        names = [name for name, _, _ in self._calls]
        squares: dict[str, Tensor] = {}
        for (name, layer, inputs), back in zip(self._calls, gradients, strict=True):
            if names.count(name) == 1:
                found = zip(("weight", "bias"), _kernel_of(layer)(layer, inputs, back), strict=True)
                squares |= {f"{name}.{part}".lstrip("."): square for part, square in found}
        own = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        # Two layers may share a tensor, and a layer's formula knows of its own use alone.
        uses = Counter(id(p) for _, p in self.model.named_parameters(remove_duplicate=False))
        others = {name: p for name, p in own.items() if name not in squares or uses[id(p)] > 1}
        if others:
            if x is None or y is None:
                raise ValueError(f"pass x and y: {sorted(others)} need one gradient a sample")
            squares |= _one_by_one(self.model, others, x, y)
        return {name: squares[name] for name in own}


Squares = tuple[Tensor, Tensor]  # of the weight and of the bias, (n,) each


def _linear(layer: nn.Linear, inputs: Tensor, back: Tensor) -> Squares:
    if inputs.ndim > 2:  # tokens: the weights are used once a token
        inputs, back = (t.flatten(1, -2).transpose(1, 2) for t in (inputs, back))
        return _over_places(inputs, back), back.sum(2).pow(2).sum(1)
    square = back.pow(2).sum(1)
    return square * inputs.pow(2).sum(1), square


def _convolution(layer: nn.Conv2d, inputs: Tensor, back: Tensor) -> Squares:
    options = {"padding": layer.padding, "stride": layer.stride, "dilation": layer.dilation}
    patches = F.unfold(inputs, layer.kernel_size, **options)  # (n, c * k * k, places)
    n, groups, places = len(inputs), layer.groups, patches.shape[-1]
    parts = [t.reshape(n * groups, -1, places) for t in (patches, back.flatten(2))]
    return _over_places(*parts).reshape(n, groups).sum(1), back.flatten(2).sum(2).pow(2).sum(1)


def _over_places(inputs: Tensor, back: Tensor) -> Tensor:
    """Squared norm of back @ inputs.T for each sample; (n, i, t) and (n, o, t) -> (n,)."""
    (_, i, t), o = inputs.shape, back.shape[1]
    small = t * (i + o) < i * o  # the products of places with places are the cheaper ones
    rows, join = max(1, BLOCK // (t * t if small else i * o)), _by_places if small else _by_weights
    return torch.cat([join(a, b) for a, b in zip(inputs.split(rows), back.split(rows))])


def _by_places(inputs: Tensor, back: Tensor) -> Tensor:
    return ((inputs.transpose(1, 2) @ inputs) * (back.transpose(1, 2) @ back)).sum((1, 2))


def _by_weights(inputs: Tensor, back: Tensor) -> Tensor:
    return (back @ inputs.transpose(1, 2)).pow(2).sum((1, 2))


def _batch_norm(layer: _BatchNorm, inputs: Tensor, back: Tensor) -> Squares:
    shape = (1, -1) + (1,) * (inputs.ndim - 2)
    mean, var = (s.view(shape) for s in (layer.running_mean, layer.running_var))
    normal = (inputs - mean) * (var + layer.eps).rsqrt()
    scale, shift = (t.flatten(2).sum(2) if t.ndim > 2 else t for t in (normal * back, back))
    return scale.pow(2).sum(1), shift.pow(2).sum(1)


def _layer_norm(layer: nn.LayerNorm, inputs: Tensor, back: Tensor) -> Squares:
    normal = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    size = layer.weight.numel()
    scale, shift = (t.reshape(len(t), -1, size).sum(1) for t in (normal * back, back))
    return scale.pow(2).sum(1), shift.pow(2).sum(1)


def _kernel_of(layer: nn.Module) -> Callable[[Any, Tensor, Tensor], Squares] | None:
    """How a layer's norms are found; None where it has to be one gradient a sample."""
    own = list(layer.parameters(recurse=False))
    if not own or not all(p.requires_grad for p in own):
        return None
    if type(layer) is nn.Linear:
        return _linear
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
        return None if isinstance(layer.padding, str) else _convolution
    if isinstance(layer, _BatchNorm) and layer.track_running_stats and not layer.training:
        return _batch_norm
    return _layer_norm if type(layer) is nn.LayerNorm and layer.weight is not None else None


def _one_by_one(
    model: nn.Module, chosen: Mapping[str, Tensor], x: Tensor, y: Tensor
) -> dict[str, Tensor]:
    if any(isinstance(m, _BatchNorm) and m.training for m in model.modules()):
        raise ValueError("batch norm in train mode needs more than one sample: call model.eval()")
    weights = {name: p.detach() for name, p in chosen.items()}
    fixed = {name: p.detach() for name, p in model.named_parameters() if name not in weights}
    fixed |= dict(model.named_buffers())

    def one_loss(weights: dict[str, Tensor], xi: Tensor, yi: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, fixed | weights, (xi[None],)), yi[None])

    rows = max(1, BLOCK // sum(p.numel() for p in weights.values()))
    with torch.enable_grad():
        one_by_one = vmap(grad(one_loss), in_dims=(None, 0, 0), chunk_size=rows)
        gradients = one_by_one(weights, x, y)
    return {name: g.flatten(1).pow(2).sum(1) for name, g in gradients.items()}
