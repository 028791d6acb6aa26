"""The two-dimensional toy of the curvature paper: two clouds of points, some labels flipped.

Garg et al. (2024), Fig. 7, section 4.4 and appendix A. The paper does not say how its points are
distributed. Here each class is a round cloud with a standard deviation of 0.5, and the centres are
2 apart, so that a straight line between them is right for 98 % of new points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlens.data import samples
from memlens.data.samples import Dataset, Samples
from memlens.ensembles.model_ensemble import ModelEnsemble, train_ensemble
from memlens.models import registry
from memlens.training.config import TrainConfig
from memlens.training.devices import thread_count

N_TRAIN, N_TEST = 15, 100  # points of each class
NOISE = 0.3  # share of flipped training labels
EPOCHS, SNAPSHOTS = 150, (5, 10, 20, 30, 50, 150)  # snapshot 5 is the network after 5 epochs
X1, X2 = (-3.0, 3.0), (-2.0, 2.0)  # the part of the plane that is shown
N_X1, N_X2 = 49, 41  # grid points of `probability_map`
# Appendix A: six hidden layers, each with batch norm and ReLU. SGD with one batch an epoch,
# learning rate 0.1, momentum 0.9, weight decay 5e-4.
network = partial(registry.mlp, hidden=(100, 100, 500, 200, 100, 1000), batch_norm=True)
# Of `share_right`: a small network is enough, and many train in a moment. Without weight decay,
# after 600 epochs of one batch, they fit the flipped labels.
SMALL_CONFIG = TrainConfig(
    epochs=600, batch_size=2 * N_TRAIN, lr=0.1, weight_decay=0.0, milestones=()
)


@dataclass(frozen=True)
class ToyTraining:
    """One training of the paper's network on the toy.

    Attributes
    ----------
    data : Dataset
    history : DataFrame
        A row per epoch: epoch, train_loss, val_loss (test points) and train_accuracy, all in eval
        mode after the epoch.
    curvature : ndarray (n_epochs, n_points)
        Of each training point after each epoch, see `curvature`.
    test_curvature : Series
        Mean over the test points, by snapshot.
    networks : dict of nn.Module, in eval mode
        The network after so many epochs, see `SNAPSHOTS`.
    """

    data: Dataset
    history: pd.DataFrame
    curvature: np.ndarray
    test_curvature: pd.Series
    networks: dict[int, nn.Module]

    @property
    def fitted(self) -> int:
        """Number of the first epoch after which every training label is fitted; else of epochs."""
        right = (self.history["train_accuracy"] == 1).to_numpy()
        return int(right.argmax()) if right.any() else len(right)


def clouds(seed: int, noise: float = NOISE) -> Dataset:
    """Return the toy: points as images of two channels and one pixel; 30 to train, 200 to test.

    Class 0 lies around (-1, 0), class 1 around (1, 0); only training labels are flipped.
    """
    parts = [_cloud(N_TRAIN, seed), _cloud(N_TEST, 100 + seed)]
    clean = samples.from_arrays("toy", *parts, pixel_max=1, standardise=False)
    return clean.with_noise(noise, seed=seed)


def _cloud(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat([0, 1], n)
    places = 0.5 * np.random.default_rng(seed).normal(size=(2 * n, 2))
    places[:, 0] += 2 * labels - 1
    return places.astype(np.float32)[:, :, None, None], labels


def points(part: Samples) -> pd.DataFrame:
    """Return a row per point: x1, x2, label, is_flipped."""
    x1, x2 = part.images.flatten(1).T.numpy()
    columns = {"x1": x1, "x2": x2, "label": part.labels.numpy()}
    return pd.DataFrame({**columns, "is_flipped": part.is_noisy.numpy()})


def train(data: Dataset, seed: int, *, epochs: int = EPOCHS) -> ToyTraining:
    """Train the paper's network on the toy, and measure it after each epoch."""
    net = registry.build(network, data.n_classes, data.in_shape, seed=seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    x, y = data.train.images, data.train.labels
    test, test_y = data.test.images, data.test.labels
    rows, curved, of_test, networks = [], [], {}, {}
    with thread_count(1):  # so small a network is fastest so, and another count rounds differently
        for epoch in range(epochs):
            net.train()
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            net.eval()
            with torch.no_grad():
                found, loss = net(x), F.cross_entropy(net(test), test_y).item()
            accuracy = (found.argmax(1) == y).float().mean().item()
            rows.append((epoch, F.cross_entropy(found, y).item(), loss, accuracy))
            curved.append(curvature(net, x).numpy())
            if epoch + 1 in SNAPSHOTS:
                of_test[epoch + 1] = curvature(net, test).mean().item()
                networks[epoch + 1] = _copy(net, data)
    history = pd.DataFrame(rows, columns=["epoch", "train_loss", "val_loss", "train_accuracy"])
    return ToyTraining(data, history, np.array(curved), pd.Series(of_test, dtype=float), networks)


def _copy(net: nn.Module, data: Dataset) -> nn.Module:
    copy = registry.build(network, data.n_classes, data.in_shape)
    copy.load_state_dict(net.state_dict())
    return copy.eval()


def curvature(net: nn.Module, x: Tensor) -> Tensor:
    """Return the exact curvature of the loss around each point: Eq. 6, the mean of ||Hv||^2.

    Between its kinks a network of ReLUs is linear in its input. So the Hessian of a two-class loss
    is H = p (1 - p) g g', where g is the gradient of the difference of the logits and p the
    probability of class 1. The mean over the sign vectors v is then (p (1 - p) g'g)^2, for either
    label. No finite difference is taken, which would jump at the kinks.

    Parameters
    ----------
    net : nn.Module
        In eval mode, with two outputs.
    x : Tensor (n, 2, 1, 1)

    Returns
    -------
    Tensor (n,), 0 or more
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        z = net(x)
        difference = z[:, 1] - z[:, 0]
        (g,) = torch.autograd.grad(difference.sum(), x)
    difference = difference.detach()
    variance = torch.sigmoid(difference) * torch.sigmoid(-difference)  # exact for large logits
    return (variance * g.flatten(1).square().sum(1)).square()


def probability_map(networks: dict[int, nn.Module]) -> pd.DataFrame:
    """Return the probability of class 1 on a grid: columns x1, x2 and one per snapshot."""
    lines = torch.linspace(*X1, N_X1), torch.linspace(*X2, N_X2)
    grid = torch.cartesian_prod(*lines)
    table = pd.DataFrame(grid.numpy(), columns=["x1", "x2"])
    for epoch, net in networks.items():
        with torch.no_grad():
            table[epoch] = net(grid[:, :, None, None]).softmax(1)[:, 1].numpy()
    return table


def moved(table: pd.DataFrame) -> pd.Series:
    """Return the share of the grid that changes sides from the snapshot before to each snapshot."""
    sides = table.drop(columns=["x1", "x2"]) > 0.5
    names = list(sides)
    changed = {now: (sides[now] != sides[before]).mean() for before, now in zip(names, names[1:])}
    return pd.Series(changed)


def logits(networks: dict[int, nn.Module], part: Samples) -> pd.DataFrame:
    """Return a row per snapshot and point: epoch, logit 0, logit 1, label, is_flipped."""
    tables = []
    for epoch, net in networks.items():
        with torch.no_grad():
            z0, z1 = net(part.images).T.numpy()
        table = points(part)[["label", "is_flipped"]]
        tables.append(table.assign(epoch=epoch, logit_0=z0, logit_1=z1))
    return pd.concat(tables, ignore_index=True)


def share_right(data: Dataset, left_out: Sequence[int] = (), n_networks: int = 10) -> np.ndarray:
    """Return the share of small networks, trained without some points, that is right about each.

    Parameters
    ----------
    data : Dataset
    left_out : sequence of int
        Positions of training points that no network trains on.
    n_networks : int
        They differ in their first weights.

    Returns
    -------
    ndarray (n_points,), in [0, 1]
    """
    mask = np.ones(len(data.train), dtype=bool)
    mask[list(left_out)] = False
    masks = np.tile(mask, (n_networks, 1))
    ensemble = ModelEnsemble.build("mlp", data, range(n_networks))
    train_ensemble(ensemble, data, masks, SMALL_CONFIG, range(n_networks))
    predicted = ensemble.predict(data).argmax(2).numpy()  # of logits (n_networks, n_points, 2)
    return (predicted == data.train.labels.numpy()).mean(0)
