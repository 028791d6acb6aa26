"""The toy of two dimensions: its points, its exact curvature, its maps, leaving points out."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from memlens.experiments import toy
from memlens.models import registry


@pytest.fixture(scope="module")
def training():
    return toy.train(toy.clouds(0), 0, epochs=12)


def test_the_toy_has_the_papers_sizes_and_flips_training_labels_only():
    data = toy.clouds(3)
    assert (len(data.train), len(data.test), int(data.train.is_noisy.sum())) == (30, 200, 9)
    assert not data.test.is_noisy.any() and data.train.clean_labels.bincount().tolist() == [15, 15]
    side = data.test.images[:, 0, 0, 0] > 0
    assert ((side.long() == data.test.labels).float().mean() > 0.95).item()
    assert not torch.equal(toy.clouds(4).train.images, data.train.images)


def test_points_are_listed_with_their_places_and_labels():
    train = toy.clouds(0).train
    table = toy.points(train)
    assert table.loc[4, ["x1", "x2"]].tolist() == train.images[4].flatten().tolist()
    assert table["label"].tolist() == train.labels.tolist() and table["is_flipped"].sum() == 9


def test_curvature_is_the_mean_over_sign_vectors_of_the_exact_hessian():
    """Of the Hessian by autograd, for either label: Eq. 6."""
    net = registry.build(toy.network, 2, (2, 1, 1), seed=1).double().eval()
    for layer in net.modules():  # larger weights: else the curvature is nearly zero
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data *= 1.5
    x = torch.randn(8, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double().T
    for label in (torch.tensor([0]), torch.tensor([1])):
        found = []
        for point in x.flatten(1):
            hessian = torch.autograd.functional.hessian(
                lambda p, y=label: F.cross_entropy(net(p.reshape(1, 2, 1, 1)), y), point
            )
            found.append((hessian @ signs).square().sum(0).mean().item())
        np.testing.assert_allclose(toy.curvature(net, x).numpy(), found, rtol=1e-6)
    assert min(found) > 0


def test_a_training_records_every_epoch_and_keeps_its_networks(training):
    assert training.curvature.shape == (12, 30) and list(training.networks) == [5, 10]
    assert training.history["epoch"].tolist() == [*range(12)]
    net = training.networks[10]
    x, y = training.data.train.images, training.data.train.labels
    with torch.no_grad():
        loss = F.cross_entropy(net(x), y).item()
    assert loss == pytest.approx(training.history["train_loss"][9])
    np.testing.assert_allclose(toy.curvature(net, x), training.curvature[9], rtol=1e-4)
    test = toy.curvature(net, training.data.test.images).mean().item()
    assert training.test_curvature[10] == pytest.approx(test, rel=1e-4)


def test_the_first_fitted_epoch_is_found(training):
    history = pd.DataFrame({"train_accuracy": [0.5, 1.0, 0.9, 1.0]})
    fitted = toy.ToyTraining(training.data, history, training.curvature, None, {}).fitted
    assert fitted == 1
    never = toy.ToyTraining(training.data, history[:1], training.curvature, None, {}).fitted
    assert never == 1  # as many as there are epochs


def test_maps_and_logits_are_those_of_the_networks(training):
    table = toy.probability_map(training.networks)
    assert len(table) == toy.N_X1 * toy.N_X2 and list(table) == ["x1", "x2", 5, 10]
    place = torch.tensor(table.loc[700, ["x1", "x2"]].to_numpy(np.float32)).reshape(1, 2, 1, 1)
    with torch.no_grad():
        p = training.networks[5](place).softmax(1)[0, 1].item()
    assert table.loc[700, 5] == pytest.approx(p, rel=1e-4)
    logits = toy.logits(training.networks, training.data.train)
    with torch.no_grad():
        z = training.networks[10](training.data.train.images)
    last = logits[logits["epoch"] == 10]
    np.testing.assert_allclose(last[["logit_0", "logit_1"]], z.numpy(), rtol=1e-5)


def test_the_share_of_the_plane_that_changes_sides_is_counted():
    table = pd.DataFrame({"x1": 0.0, "x2": 0.0, 5: [0.1, 0.9, 0.9, 0.1], 10: [0.9, 0.9, 0.1, 0.1],
                          20: [0.9, 0.9, 0.1, 0.9]})  # fmt: skip
    assert toy.moved(table).to_dict() == {10: 0.5, 20: 0.25}


def test_points_that_are_left_out_are_not_learned(monkeypatch):
    monkeypatch.setattr(toy, "SMALL_CONFIG", toy.TrainConfig(epochs=150, batch_size=30, lr=0.1,
                                                             milestones=()))  # fmt: skip
    data = toy.clouds(0)
    flipped = int(data.train.is_noisy.nonzero()[0])
    both = toy.share_right(data, n_networks=3), toy.share_right(data, [flipped], n_networks=3)
    assert both[0].shape == (30,) and both[0].mean() > both[1].mean() - 0.2
    assert both[1][flipped] <= both[0][flipped]
