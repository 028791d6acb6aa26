"""Train multilayer perceptrons on a CPU with a backward pass that is written out.

A small network spends half of its time outside the matrix products: in autograd, in vmap, in fresh
memory for each gradient, and in moving the weights of all networks through the cache at each step.
Here one network at a time is trained for an epoch, so that its weights, gradients and momenta stay
in the cache, and each product writes to a gradient that is already there. The gradient with respect
to the input is computed only on request. No operation sees two networks: a network gets the same
weights, bit for bit, whatever the others are.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from memlens.training.config import TrainConfig
from memlens.training.devices import Engine, is_gpu


def suits(net: nn.Module, config: TrainConfig, engine: Engine) -> bool:
    """Return whether `Perceptron` trains this network: linear layers and ReLU, on a CPU.

    Batch norm, another optimizer than SGD, the second pass of SAM, bfloat16 and a compiled step are
    left to the general path.
    """
    if is_gpu(engine.device) or engine.bfloat16 or engine.compiled:
        return False
    if config.optimizer != "sgd" or config.sam_rho:
        return False
    layers = list(net) if type(net) is nn.Sequential else []
    kinds = [type(layer) for layer in layers]
    hidden = len(layers) // 2 - 1
    if kinds != [nn.Flatten, *[nn.Linear, nn.ReLU] * hidden, nn.Linear]:
        return False
    return all(layer.bias is not None for layer in layers[1::2])


class Perceptron:
    """One network in training: its weights, their gradients and momenta.

    Parameters
    ----------
    weights : sequence of Tensor
        Matrix (out, in) and bias (out,) of each layer in turn. They are copied: where a tensor
        begins in memory can change how a product is rounded.
    config : TrainConfig
    """

    def __init__(self, weights: Iterable[Tensor], config: TrainConfig) -> None:
        self.weights = [w.detach().clone() for w in weights]
        self.gradients = [torch.empty_like(w) for w in self.weights]
        self.momenta = [torch.zeros_like(w) for w in self.weights]
        self.settings = {"momentum": config.momentum, "weight_decay": config.weight_decay}
        self.settings |= {"dampening": 0.0, "nesterov": False, "maximize": False}
        self.targets = torch.eye(len(self.weights[-1]), dtype=self.weights[-1].dtype)  # by label

    @torch.no_grad()
    def step(
        self, x: Tensor, y: Tensor, lr: float, with_input: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Take one step on a batch.

        Parameters
        ----------
        x : Tensor (b, ...)
        y : Tensor (b,), int64
        lr : float
        with_input : bool
            Compute the gradient with respect to the inputs as well.

        Returns
        -------
        logits : Tensor (b, n_classes)
            Before the step.
        gradient : Tensor (b, n_inputs) or None
            Of the mean cross-entropy with respect to the inputs.
        """
        logits, gradient = self._set_gradients(x.flatten(1), y, with_input)
        # The function behind torch.optim.SGD, whose `step` takes four times as long here.
        sgd(self.weights, self.gradients, self.momenta, fused=True, lr=lr, **self.settings)
        return logits, gradient

    def _set_gradients(
        self, x: Tensor, y: Tensor, with_input: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Set the gradients to those of the mean cross-entropy; return as `step`."""
        matrices, biases = self.weights[::2], self.weights[1::2]
        inputs, last = [x], len(matrices) - 1  # inputs of each layer
        for matrix, bias in zip(matrices[:-1], biases[:-1], strict=True):
            inputs.append(torch.addmm(bias, inputs[-1], matrix.t()).relu_())
        logits = torch.addmm(biases[-1], inputs[-1], matrices[-1].t())
        # d (b, out) is the derivative of the loss by the output of a layer, before its ReLU.
        d = torch.softmax(logits, 1).sub_(self.targets.index_select(0, y)).div_(len(y))
        for i in range(last, -1, -1):
            torch.mm(d.t(), inputs[i], out=self.gradients[2 * i])
            torch.sum(d, 0, out=self.gradients[2 * i + 1])
            if i > 0:
                d = torch.mm(d, matrices[i]).mul_(inputs[i] > 0)
        return logits, torch.mm(d, matrices[0]) if with_input else None

    @torch.no_grad()
    def copy_to(self, stacks: Sequence[Tensor], number: int) -> None:
        """Write the weights to row ``number`` of each stack (n_models, ...)."""
        for stack, w in zip(stacks, self.weights, strict=True):
            stack[number] = w
