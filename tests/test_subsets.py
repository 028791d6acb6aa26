"""Memorization on masks worked out by hand; the batched sweep against single trainings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import memlens as ml
from memlens import models, subsets
from memlens.recipes import Recipe
from memlens.training import shuffled

SHORT = Recipe(epochs=3, batch_size=16)


@pytest.fixture(scope="module")
def small():
    data = ml.load("digits")
    return replace(data, train=data.train[torch.arange(80)])


def test_memorization_by_hand():
    masks = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 0, 1]], dtype=bool)
    correct = np.array([[1, 1, 0], [1, 0, 1], [0, 0, 1], [0, 1, 1]], dtype=bool)
    table = subsets.memorization(masks, correct, index=np.array([5, 6, 7]))
    assert table.memorization.iloc[:2].tolist() == [1.0, 0.0]  # 1 - 0, 1/2 - 1/2
    assert np.isnan(table.memorization.iloc[2])  # never left out: unknown, not 0
    assert table.n_in.tolist() == [2, 2, 4]
    assert table.n_out.tolist() == [2, 2, 0]
    assert table.in_accuracy.tolist() == [1, 0.5, 0.75]
    assert table.standard_error.iloc[0] == 0
    assert table.standard_error.iloc[1] == pytest.approx(np.sqrt(0.25 / 2 + 0.25 / 2))
    assert table.index.tolist() == [5, 6, 7]


def test_the_standard_error_is_that_of_repeated_sweeps():
    rng = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(400):
        masks = rng.random((200, 1)) < 0.7
        correct = rng.random((200, 1)) < np.where(masks, 0.95, 0.4)
        table = subsets.memorization(masks, correct)
        values.append(table.memorization[0])
        errors.append(table.standard_error[0])
    assert np.mean(values) == pytest.approx(0.55, abs=0.01)
    assert np.std(values) == pytest.approx(np.mean(errors), rel=0.1)


def test_masks_hold_the_share_exactly_and_differ():
    masks = subsets.subset_masks(50, 101, 0.7, seed=3)
    assert (masks.sum(1) == 71).all()
    assert len({m.tobytes() for m in masks}) == 50
    assert np.array_equal(masks[:10], subsets.subset_masks(10, 101, 0.7, seed=3))
    assert not np.array_equal(masks, subsets.subset_masks(50, 101, 0.7, seed=4))


def alone(data, mask, recipe, seed):
    """The oracle: one net, its own optimizer, the same subset and the same batches."""
    net = models.build("mlp", data.n_classes, data.in_shape, seed=seed)
    optimizer = torch.optim.SGD(
        net.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    members = torch.as_tensor(mask).nonzero()[:, 0]
    x = data.train.images.float() / data.pixel_max
    for epoch in range(recipe.epochs):
        optimizer.param_groups[0]["lr"] = recipe.lr_at(epoch)
        for i in members[shuffled(len(members), seed, epoch)].split(recipe.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(net(x[i]), data.train.labels[i]).backward()
            optimizer.step()
    return net(x).detach().numpy()


def test_nets_trained_together_equal_nets_trained_alone(small):
    masks = subsets.subset_masks(4, 80, 0.7)
    together = subsets.train_together("mlp", small, masks, SHORT, [11, 12, 13, 14])
    for m, seed in enumerate((11, 12, 13, 14)):
        expected = alone(small, masks[m], SHORT, seed)
        assert together[m] == pytest.approx(expected, rel=1e-3, abs=1e-3)
    wrong = alone(small, masks[1], SHORT, 11)
    assert np.abs(together[0] - wrong).max() > 0.1  # the comparison can fail


def test_convolutions_train_together_too(small):
    masks = subsets.subset_masks(2, 80, 0.7)
    logits = subsets.train_together("small_cnn", small, masks, replace(SHORT, epochs=1), [0, 1])
    assert logits.shape == (2, 80, 10)


def test_a_sweep_does_not_depend_on_its_processes_and_is_found_again(small, tmp_path, monkeypatch):
    monkeypatch.setattr(subsets, "TOGETHER", 4)
    sweeps = []
    for n in (1, 2):
        monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / str(n)))
        sweeps.append(ml.subset_sweep("mlp", small, n_models=8, recipe=SHORT, n_jobs=n))
    assert np.array_equal(sweeps[0].logits, sweeps[1].logits)
    monkeypatch.setattr(subsets, "train_together", lambda *_: pytest.fail("trained again"))
    again = ml.subset_sweep("mlp", small, n_models=8, recipe=SHORT)
    assert np.array_equal(again.logits, sweeps[0].logits)


def test_a_sweep_of_the_same_pixels_on_another_scale_is_another_sweep(
    small, tmp_path, monkeypatch
):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    settings = {"n_models": 2, "recipe": SHORT, "n_jobs": 1}
    first = ml.subset_sweep("mlp", small, **settings)
    other = ml.subset_sweep("mlp", replace(small, pixel_max=255.0), **settings)
    assert not np.array_equal(first.logits, other.logits)


def test_a_sweep_finds_a_planted_mislabelled_sample(small, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    labels = small.train.labels.clone()
    labels[7] = (labels[7] + 1) % 10
    noisy = replace(small, train=replace(small.train, labels=labels))
    recipe = Recipe(epochs=80, batch_size=16)  # until the flipped label is fitted
    sweep = ml.subset_sweep("mlp", noisy, n_models=32, recipe=recipe, n_jobs=1)
    table = sweep.memorization()
    planted = table.iloc[7]
    assert planted.in_accuracy == 1
    assert planted.memorization > 5 * planted.standard_error  # about ten nets were without it
    assert (table.memorization > planted.memorization).sum() < 8  # among eighty, some hard ones
    assert sweep.memorization(16).n_in.max() <= 16


def test_bad_input_is_named(small):
    with pytest.raises(ValueError, match=r"keep=1.0 of 80 samples is 80; expected"):
        subsets.subset_masks(2, 80, 1.0)
    with pytest.raises(ValueError, match=r"expected bool masks and one shape"):
        subsets.memorization(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"model 'mlp_bn' has buffers"):
        subsets.train_together("mlp_bn", small, subsets.subset_masks(1, 80, 0.5), SHORT, [0])
    with pytest.raises(ValueError, match=r"clean inputs; augment is 'crop'"):
        ml.subset_sweep("mlp", small, recipe=replace(SHORT, augment="crop"))
