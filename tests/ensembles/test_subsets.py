"""Memorization computed by hand; a sweep against trainings of single networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import memlens as ml
from memlens.data import samples
from memlens.ensembles import subsets
from memlens.storage import store
from memlens.training.config import TrainConfig

SHORT = TrainConfig(epochs=3, batch_size=16)


@pytest.fixture(scope="module")
def small():
    data = ml.load("digits")
    return replace(data, train=data.train[torch.arange(80)])


def test_memorization_by_hand():
    masks = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 0, 1]], dtype=bool)
    correct = np.array([[1, 1, 0], [1, 0, 1], [0, 0, 1], [0, 1, 1]], dtype=bool)
    table = subsets.subset_memorization(masks, correct, index=np.array([5, 6, 7]))
    assert table.memorization.iloc[:2].tolist() == [1.0, 0.0]  # 1 - 0, 1/2 - 1/2
    assert np.isnan(table.memorization.iloc[2])  # never left out: NaN, not 0
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
        table = subsets.subset_memorization(masks, correct)
        values.append(table.memorization[0])
        errors.append(table.standard_error[0])
    # within four standard errors of a mean and of a standard deviation of so many
    n, spread = len(values), np.std(values)
    assert np.mean(values) == pytest.approx(0.55, abs=4 * spread / n**0.5)
    assert spread == pytest.approx(np.mean(errors), rel=4 / (2 * n) ** 0.5)


def test_masks_have_exactly_the_share_and_differ():
    masks = subsets.subset_masks(50, 101, 0.7, seed=3)
    assert (masks.sum(1) == 71).all()
    assert len({m.tobytes() for m in masks}) == 50
    assert np.array_equal(masks[:10], subsets.subset_masks(10, 101, 0.7, seed=3))
    assert not np.array_equal(masks, subsets.subset_masks(50, 101, 0.7, seed=4))


def test_a_sweep_equals_its_networks_trained_alone(double, train_alone, tmp_path, monkeypatch):
    """Weights and sample order of model m depend on (seed, m), its samples on its mask."""
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    monkeypatch.setattr(subsets, "CPU_ENSEMBLE_SIZE", 2)
    config = replace(SHORT, epochs=5)
    for model in ("mlp", "small_cnn_bn"):
        settings = {"n_models": 3, "keep": 0.7, "config": config, "seed": 2}
        sweep = ml.subset_sweep(model, double, **settings, n_jobs=1)
        assert np.array_equal(sweep.masks, subsets.subset_masks(3, 60, 0.7, seed=2))
        x = double.normalise(double.train.images)
        for m, mask in enumerate(sweep.masks):
            net = train_alone(model, double, mask, config, (2 << 20) + m)
            assert sweep.logits[m] == pytest.approx(net(x).detach().numpy(), rel=1e-6, abs=1e-8)
        assert np.abs(sweep.logits[0] - sweep.logits[1]).max() > 0.1  # the comparison can fail
        assert np.array_equal(sweep.y_true, double.train.labels.numpy())
        assert np.array_equal(sweep.correct, sweep.logits.argmax(2) == sweep.y_true)


@pytest.mark.slow
def test_a_sweep_does_not_depend_on_processes_and_is_cached(small, tmp_path, monkeypatch):
    monkeypatch.setattr(subsets, "CPU_ENSEMBLE_SIZE", 4)
    sweeps = []
    for n in (1, 2):
        monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / str(n)))
        sweeps.append(ml.subset_sweep("mlp", small, n_models=8, config=SHORT, n_jobs=n))
    assert np.array_equal(sweeps[0].logits, sweeps[1].logits)
    monkeypatch.setattr(subsets, "train_chunk", lambda *_: pytest.fail("trained again"))
    again = ml.subset_sweep("mlp", small, n_models=8, config=SHORT)
    assert np.array_equal(again.logits, sweeps[0].logits)
    assert repr(again) == "Sweep(8 networks, 80 samples, snapshots: last)"


def test_a_sweep_of_the_same_pixels_on_another_scale_is_another_sweep(small, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    settings = {"n_models": 2, "config": SHORT, "n_jobs": 1}
    first = ml.subset_sweep("mlp", small, **settings)
    other = ml.subset_sweep("mlp", replace(small, pixel_max=255.0), **settings)
    assert not np.array_equal(first.logits, other.logits)


def test_a_sweep_finds_a_planted_mislabelled_sample(small, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    labels = small.train.labels.clone()
    labels[7] = (labels[7] + 1) % 10
    noisy = replace(small, train=replace(small.train, labels=labels))
    config = TrainConfig(epochs=80, batch_size=16)  # until the flipped label is fitted
    sweep = ml.subset_sweep("mlp", noisy, n_models=32, config=config, n_jobs=1)
    table = sweep.memorization()
    planted = table.iloc[7]
    assert planted.in_accuracy == 1
    assert (
        planted.memorization > 5 * planted.standard_error
    )  # about ten networks were trained without it
    assert (table.memorization > planted.memorization).sum() < 8  # among eighty, some hard ones
    assert sweep.memorization(16).n_in.max() <= 16


def test_invalid_arguments_are_refused(small):
    with pytest.raises(ValueError, match=r"keep=1.0 of 80 samples is 80; expected"):
        subsets.subset_masks(2, 80, 1.0)
    with pytest.raises(ValueError, match=r"expected bool masks and one shape"):
        subsets.subset_memorization(np.ones((2, 3)), np.ones((2, 3)))


def test_an_interrupted_sweep_resumes(small, tmp_path, monkeypatch):
    whole = ml.subset_sweep("mlp", small, n_models=4, config=SHORT, n_jobs=1)
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(subsets, "CPU_ENSEMBLE_SIZE", 2)
    real, calls = subsets.train_and_query, []

    def interrupted(ensemble, data, masks, config, seeds, queries):
        calls.append(seeds.tolist())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(ensemble, data, masks, config, seeds, queries)

    monkeypatch.setattr(subsets, "train_and_query", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ml.subset_sweep("mlp", small, n_models=4, config=SHORT, n_jobs=1)
    resumed = ml.subset_sweep("mlp", small, n_models=4, config=SHORT, n_jobs=1)
    assert calls == [[0, 1], [2, 3], [2, 3]]
    assert resumed.logits_at("last") == pytest.approx(whole.logits_at("last"), abs=1e-4)
    assert store.Store().clear() == 1  # the sweep only: its chunks are removed


def test_a_sweep_killed_after_its_last_chunk_trains_nothing_again(small, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    monkeypatch.setattr(subsets, "CPU_ENSEMBLE_SIZE", 2)
    real = store.Store.put

    def full(self, key, artifact):
        if "n_models" in artifact.meta:
            raise OSError(28, "no space left")
        real(self, key, artifact)

    monkeypatch.setattr(store.Store, "put", full)
    with pytest.raises(OSError, match="no space left"):
        ml.subset_sweep("mlp", small, n_models=4, config=SHORT, n_jobs=1)
    monkeypatch.setattr(store.Store, "put", real)
    monkeypatch.setattr(subsets, "train_and_query", None)  # nothing is trained again
    sweep = ml.subset_sweep("mlp", small, n_models=4, config=SHORT, n_jobs=1)
    assert sweep.logits_at("last").shape == (4, 1, 80, 10)


def test_chunks_left_after_a_kill_are_removed(small, tmp_path, monkeypatch):
    """A kill between the last write and `Store.tidy`."""
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    ml.subset_sweep("mlp", small, n_models=4, config=SHORT, n_jobs=1)
    (artifact,) = tmp_path.glob("sweep-*")
    for name in (f"{artifact.name}.0-3", f"{artifact.name}0.0-3"):
        store.Store().put(name, store.Artifact({}, {}))
    ml.subset_sweep("mlp", small, n_models=4, config=SHORT, n_jobs=1)
    assert {p.name for p in tmp_path.glob("sweep-*")} == {artifact.name, f"{artifact.name}0.0-3"}


def test_a_damaged_chunk_is_trained_again(small, tmp_path, monkeypatch):
    monkeypatch.setattr(subsets, "CPU_ENSEMBLE_SIZE", 2)
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / "whole"))
    whole = ml.subset_sweep("mlp", small, n_models=4, config=SHORT, n_jobs=1)
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / "other"))
    real, calls = subsets.train_and_query, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(subsets, "train_and_query", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ml.subset_sweep("mlp", small, n_models=4, config=SHORT, n_jobs=1)
    (part,) = (tmp_path / "other").glob("sweep-*.0-1")
    (part / "arrays.npz").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"):
        again = ml.subset_sweep("mlp", small, n_models=4, config=SHORT, n_jobs=1)
    assert len(calls) == 4
    assert np.array_equal(again.logits, whole.logits)


def test_chunks_of_another_size_are_not_reused(small, tmp_path, monkeypatch):
    whole = ml.subset_sweep("mlp", small, n_models=6, config=SHORT, n_jobs=1)
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    real, calls = subsets.train_and_query, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(subsets, "train_and_query", interrupted)
    for size, error in ((2, True), (3, False)):  # as if "auto" were another device
        monkeypatch.setattr(subsets, "CPU_ENSEMBLE_SIZE", size)
        if error:
            with pytest.raises(KeyboardInterrupt):
                ml.subset_sweep("mlp", small, n_models=6, config=SHORT, n_jobs=1)
    sweep = ml.subset_sweep("mlp", small, n_models=6, config=SHORT, n_jobs=1)
    assert sweep.logits_at("last") == pytest.approx(whole.logits_at("last"), abs=1e-4)


def test_large_networks_are_trained_one_by_one_with_crops(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(24, 3, 32, 32), dtype=np.uint8)
    data = samples.from_arrays("noise", (images, np.arange(24) % 2), (images[:4], np.arange(4) % 2))
    config = TrainConfig(epochs=1, batch_size=8, augment="crop_flip", threads=None)
    sweep = ml.subset_sweep("small_inception", data, n_models=2, config=config, n_jobs=1)
    assert sweep.logits_at("last").shape == (2, 1, 24, 2)
    assert sweep.memorization().shape == (24, 6)
