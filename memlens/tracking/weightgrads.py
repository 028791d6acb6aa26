"""Per-sample norms of the weight gradient, without storing per-sample gradients.

A sample's gradient with respect to the weights of a linear layer is the outer product of the
gradient at the layer's output and the layer's input. Its norm is the product of their norms, which
one forward and one backward pass of the batch provide (Goodfellow 2015, arXiv 1510.01799).
Convolutions are linear layers over patches: there the cheaper of two matrix products is computed.
Layers of other kinds need one gradient per sample.
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

# Floats of intermediate results of a layer (64 MB): larger batches are split.
BLOCK = 2**24


def weight_gradient_norm(model: nn.Module, x: Tensor, y: Tensor, *, only: str = "") -> Tensor:
    """Return the L2 norm of each sample's loss gradient with respect to the weights.

    In eval mode this is GraNd (Paul et al. 2021); its square times the learning rate, summed over
    epochs, is TracIn self-influence (Pruthi et al. 2020).

    Parameters
    ----------
    model : nn.Module
        Called in its current mode, with a warning if batch norm or dropout are in train mode.
    x : Tensor (n, ...)
    y : Tensor (n,), int64
    only : str
        Prefix of the names of the parameters to include, such as "0." for one layer.

    Returns
    -------
    Tensor (n,), 0 or more

    Raises
    ------
    ValueError
        If no parameter has such a name, or a batch norm with weights is in train mode.
    """
    warn_if_train_mode(model)
    with LayerHooks(model) as hooks, torch.enable_grad():
        total = loss(model(x), y).sum()
    gradients = torch.autograd.grad(total, hooks.edges) if hooks.edges else ()
    squares = hooks.squared_norms(gradients, x, y)
    chosen = [square for name, square in squares.items() if name.startswith(only)]
    if not chosen:
        raise ValueError(f"no parameter of the model has a name that starts with {only!r}")
    return torch.stack(chosen).sum(0).sqrt()


class LayerHooks:
    """Hooks on the layers of a model during one forward pass; none if the model is None.

    >>> net, x, y = nn.Linear(3, 2), torch.rand(4, 3), torch.tensor([0, 1, 0, 1])
    >>> with LayerHooks(net) as hooks:
    ...     total = F.cross_entropy(net(x), y, reduction="sum")
    >>> squares = hooks.squared_norms(torch.autograd.grad(total, hooks.edges))
    >>> {name: tuple(square.shape) for name, square in squares.items()}
    {'weight': (4,), 'bias': (4,)}

    Attributes
    ----------
    edges : list of GradientEdge
        Position of each layer's output in the autograd graph, in the order of the calls; the
        gradients there are the argument of `squared_norms`. Unlike the output itself, an edge is
        not affected by an activation that overwrites the output in place.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.model = model
        self.edges: list[GradientEdge] = []
        self._calls: list[tuple[str, nn.Module, Tensor]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> "LayerHooks":
        for name, layer in self.model.named_modules() if self.model else ():
            if _formula_of(layer):
                self._hooks.append(layer.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._calls.append((name, layer, inputs[0].detach()))
            self.edges.append(get_gradient_edge(output))

        return hook

    @property
    def last(self) -> str:
        """Name of the layer that was called last: in an image classifier, its output layer."""
        return self._calls[-1][0]

    @torch.no_grad()
    def squared_norms(
        self, gradients: Sequence[Tensor], x: Tensor | None = None, y: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the squared norm of each sample's gradient, parameter name -> (n,).

        Parameters
        ----------
        gradients : sequence of Tensor
            Gradients of the summed loss with respect to `edges`, in their order.
        x, y : Tensor
            The batch. Only needed if there are parameters outside linear, convolution and norm
            layers, or parameters that are used more than once: these need one gradient per sample.
        """
        names = [name for name, _, _ in self._calls]
        squares: dict[str, Tensor] = {}
        for (name, layer, inputs), gradient in zip(self._calls, gradients, strict=True):
            if names.count(name) == 1:
                pair = _formula_of(layer)(layer, inputs, gradient)
                for part, square in zip(("weight", "bias"), pair, strict=True):
                    squares[f"{name}.{part}".lstrip(".")] = square
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        # Two layers may share a tensor, while a layer's formula covers its own use only.
        uses = Counter(id(p) for _, p in self.model.named_parameters(remove_duplicate=False))
        others = {name: p for name, p in trained.items() if name not in squares or uses[id(p)] > 1}
        if others:
            if x is None or y is None:
                raise ValueError(f"pass x and y: {sorted(others)} need one gradient per sample")
            squares |= _per_sample_squares(self.model, others, x, y)
        return {name: squares[name] for name in trained}


Squares = tuple[Tensor, Tensor]  # of the weight and of the bias, (n,) each


def _linear(layer: nn.Linear, inputs: Tensor, gradient: Tensor) -> Squares:
    if inputs.ndim > 2:  # the weights are used once per token
        inputs, gradient = (t.flatten(1, -2).transpose(1, 2) for t in (inputs, gradient))
        return _over_positions(inputs, gradient), gradient.sum(2).pow(2).sum(1)
    square = gradient.pow(2).sum(1)
    return square * inputs.pow(2).sum(1), square


def _convolution(layer: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> Squares:
    options = {"padding": layer.padding, "stride": layer.stride, "dilation": layer.dilation}
    patches = F.unfold(inputs, layer.kernel_size, **options)  # (n, c * k * k, positions)
    n, groups, positions = len(inputs), layer.groups, patches.shape[-1]
    parts = [t.reshape(n * groups, -1, positions) for t in (patches, gradient.flatten(2))]
    weight = _over_positions(*parts).reshape(n, groups).sum(1)
    return weight, gradient.flatten(2).sum(2).pow(2).sum(1)


def _over_positions(inputs: Tensor, gradient: Tensor) -> Tensor:
    """Return squared norms of gradient @ inputs.T; (n, i, t) and (n, o, t) -> (n,)."""
    (_, i, t), o = inputs.shape, gradient.shape[1]
    few_positions = t * (i + o) < i * o  # (t, t) products are then cheaper than (o, i) products
    rows = max(1, BLOCK // (t * t if few_positions else i * o))
    product = _by_positions if few_positions else _by_weights
    return torch.cat([product(a, b) for a, b in zip(inputs.split(rows), gradient.split(rows))])


def _by_positions(inputs: Tensor, gradient: Tensor) -> Tensor:
    return ((inputs.transpose(1, 2) @ inputs) * (gradient.transpose(1, 2) @ gradient)).sum((1, 2))


def _by_weights(inputs: Tensor, gradient: Tensor) -> Tensor:
    return (gradient @ inputs.transpose(1, 2)).pow(2).sum((1, 2))


def _batch_norm(layer: _BatchNorm, inputs: Tensor, gradient: Tensor) -> Squares:
    shape = (1, -1) + (1,) * (inputs.ndim - 2)
    mean, var = (s.view(shape) for s in (layer.running_mean, layer.running_var))
    normal = (inputs - mean) * (var + layer.eps).rsqrt()
    scale, shift = (t.flatten(2).sum(2) if t.ndim > 2 else t for t in (normal * gradient, gradient))
    return scale.pow(2).sum(1), shift.pow(2).sum(1)


def _layer_norm(layer: nn.LayerNorm, inputs: Tensor, gradient: Tensor) -> Squares:
    normal = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    size = layer.weight.numel()
    scale, shift = (t.reshape(len(t), -1, size).sum(1) for t in (normal * gradient, gradient))
    return scale.pow(2).sum(1), shift.pow(2).sum(1)


def _formula_of(layer: nn.Module) -> Callable[[Any, Tensor, Tensor], Squares] | None:
    """Return the function for a layer's squared norms; None if it needs per-sample gradients."""
    parameters = list(layer.parameters(recurse=False))
    if not parameters or not all(p.requires_grad for p in parameters):
        return None
    if type(layer) is nn.Linear:
        return _linear
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
        return None if isinstance(layer.padding, str) else _convolution
    if isinstance(layer, _BatchNorm) and layer.track_running_stats and not layer.training:
        return _batch_norm
    return _layer_norm if type(layer) is nn.LayerNorm and layer.weight is not None else None


def _per_sample_squares(
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
        per_sample = vmap(grad(one_loss), in_dims=(None, 0, 0), chunk_size=rows)
        gradients = per_sample(weights, x, y)
    return {name: g.flatten(1).pow(2).sum(1) for name, g in gradients.items()}
