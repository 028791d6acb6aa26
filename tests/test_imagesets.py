"""Image sets read, checked and refused; published memorization joined to them."""

import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

import memlens as ml
from memlens import imagesets
from memlens.data import load_digits
from memlens.imagesets import SETS, Facts, load, load_fz

NAMES = ("cat", "dog", "owl")


def arrays(colour=True, seed=0):
    """Thirty training and nine test images of three classes, three of ten each."""
    rng = np.random.default_rng(seed)
    shape = (6, 5, 3) if colour else (6, 5)
    return {
        "x_train": rng.integers(256, size=(30, *shape), dtype=np.uint8),
        "y_train": rng.permutation(np.repeat(np.arange(3), 10)),
        "x_test": rng.integers(256, size=(9, *shape), dtype=np.uint8),
        "y_test": rng.permutation(np.repeat(np.arange(3), 3)),
    }


def facts_of(found):
    """Facts as they would be written down for these arrays."""
    x = found["x_train"]
    pixels = x.reshape(-1, x.shape[-1] if x.ndim == 4 else 1)
    return Facts(
        torchvision="CIFAR10",
        shape=x.shape[1:],
        counts=(10, 3),
        first=tuple(tuple(found[f"y_{part}"][:8].tolist()) for part in ("train", "test")),
        labels_sha256=tuple(imagesets._sha(found[f"y_{part}"]) for part in ("train", "test")),
        mean=tuple((pixels.mean(0) / 255).round(4).tolist()),
        class_names=NAMES,
    )


@pytest.fixture(params=[True, False], ids=["colour", "grey"])
def pets(request, tmp_path, monkeypatch):
    """A small set that is known by name, and its file in a data folder of its own."""
    monkeypatch.setenv("MEMLENS_DATA", str(tmp_path))
    found = arrays(request.param)
    monkeypatch.setitem(SETS, "pets", facts_of(found))
    path = tmp_path / "pets.npz"
    np.savez(path, **found)
    return found, path


def test_a_file_is_loaded_in_its_order(pets):
    found, _ = pets
    data = load("pets")
    for part, samples in (("train", data.train), ("test", data.test)):
        x = torch.as_tensor(found[f"x_{part}"])
        x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x[:, None]
        assert torch.equal(samples.images, x)
        assert samples.labels.tolist() == found[f"y_{part}"].tolist()
        assert samples.index.tolist() == list(range(len(x)))
    assert data.class_names == NAMES and data.name == "pets" and data.pixel_max == 255
    inputs = data.normalise(data.train.images).transpose(0, 1).flatten(1).double()
    assert torch.allclose(inputs.mean(1), torch.zeros(1).double(), atol=1e-6)
    assert torch.allclose(inputs.std(1), torch.ones(1).double(), atol=1e-6)


def test_digits_are_found_by_name_too():
    assert torch.equal(load("digits").train.images, load_digits().train.images)
    assert ml.load is load
    with pytest.raises(ValueError, match=r"unknown data set 'letters'; known: cifar10, .*mnist"):
        load("letters")


def swapped(values, i=0, j=1):
    order = np.arange(len(values))
    order[[i, j]] = j, i
    return values[order]


def later_swap(y):
    """Two labels exchanged behind the first eight: counts and first labels stay."""
    i = 9
    return swapped(y, i, next(j for j in range(i, len(y)) if y[j] != y[i]))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x_train", lambda x: x[:-1], r"images are uint8 \(29, .* expected uint8 \(30, 6, 5"),
        ("x_train", lambda x: x.astype(np.float32), "images are float32"),
        ("x_test", lambda x: x[:, :-1], r"test part: images are uint8 \(9, 5, 5"),
        ("x_train", lambda x: (x // 2).astype(np.uint8), "the mean of the pixels is"),
        ("y_train", lambda y: y[:-1], r"labels are int64 \(29,\), expected whole numbers \(30,\)"),
        ("y_train", lambda y: y.astype(float), "labels are float64"),
        ("y_train", lambda y: y + 1, "labels go from 1 to 3, expected 0 to 2"),
        ("y_train", lambda y: np.where(y == 2, 1, y), r"classes have \[10, 20, 0\] samples"),
        ("y_test", lambda y: y[::-1], "test part: the first labels are"),
        ("y_train", later_swap, "train part: the labels' checksum differs"),
    ],
)
def test_another_order_or_another_set_is_refused(pets, name, change, message):
    found, path = pets
    np.savez(path, **(found | {name: change(found[name])}))
    with pytest.raises(ValueError, match=message) as error:
        load("pets")
    assert str(path) in str(error.value) and "put the original in its place" in str(error.value)


def test_a_damaged_file_is_named_and_nothing_in_it_runs(pets):
    found, path = pets
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not an archive", pickle.dumps({"x": 1})):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"pets.npz cannot be read .* put a good copy"):
            load("pets")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    path.write_bytes(bytes(flipped))
    with pytest.raises(ValueError, match="cannot be read"):
        load("pets")
    np.savez(path, **(found | {"y_train": np.array([os.system], dtype=object)}))
    with pytest.raises(ValueError, match="cannot be read"):
        load("pets")
    np.savez(path, x_train=found["x_train"])
    with pytest.raises(ValueError, match="has no y_train, x_test, y_test; it has: x_train"):
        load("pets")


def test_a_missing_file_is_downloaded_through_torchvision(pets, monkeypatch):
    from torchvision import datasets

    found, path = pets
    path.unlink()
    asked = []

    class Download:
        def __init__(self, root, train, download):
            asked.append((root, train, download))
            part = "train" if train else "test"
            self.data, self.targets = found[f"x_{part}"], found[f"y_{part}"].tolist()

    monkeypatch.setattr(datasets, "CIFAR10", Download)
    assert load("pets").train.labels.tolist() == found["y_train"].tolist()
    assert asked == [(str(path.parent), True, True), (str(path.parent), False, True)]
    found["y_train"] = later_swap(found["y_train"])
    with pytest.raises(ValueError, match="the download of pets, train part: the labels' checksum"):
        load("pets")


def test_without_a_network_the_place_of_the_file_is_named(pets, monkeypatch):
    from torchvision import datasets

    _, path = pets
    path.unlink()

    def fail(**_):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "CIFAR10", fail)
    with pytest.raises(FileNotFoundError, match=r"pets.npz, and cannot .*no route.*x_train, y_tr"):
        load("pets")


def test_moments_of_whole_pixels_are_counted_exactly():
    found = arrays()
    data = ml.data.from_arrays(
        "x", *((imagesets.as_images(found[f"x_{p}"]), found[f"y_{p}"]) for p in ("train", "test"))
    )
    pixels = found["x_train"].reshape(-1, 3) / 255
    assert data.mean == pytest.approx(pixels.mean(0), rel=1e-12)
    assert data.std == pytest.approx(pixels.std(0, ddof=1), rel=1e-12)


# ---------------------------------------------------------------- published memorization


@pytest.fixture
def scored(pets):
    found, path = pets
    values = np.linspace(-0.1, 1, 30)
    place = path.with_name("pets_infl_matrix.npz")
    np.savez(place, tr_mem=values, tr_labels=found["y_train"], infl=np.zeros(3))
    return load("pets"), values, place


def test_published_scores_go_to_samples_by_their_index(scored):
    data, values, place = scored
    found = load_fz(data)
    assert found.to_numpy() == pytest.approx(values)
    assert found.index.tolist() == list(range(30)) and found.index.name == "index"
    some = replace(data, train=data.train[torch.tensor([7, 3, *range(10, 30)])])
    assert load_fz(some).loc[[7, 3]].tolist() == pytest.approx(values[[7, 3]])
    noisy = data.with_noise(0.3)
    assert load_fz(noisy).equals(found)  # the labels as they were before the noise
    plain = place.rename(place.with_name("pets_fz.npz"))
    np.savez(plain, tr_mem=values)
    assert load_fz(data).equals(found)
    assert load_fz(data, path=plain).equals(found)


def test_samples_of_uncertain_order_have_no_score(scored, pets):
    data, _, _ = scored
    found, path = pets
    certain = np.ones(30, dtype=bool)
    certain[[4, 8]] = False
    np.savez(path, **found, order_certain_train=certain)
    assert np.flatnonzero(load_fz(data).isna()).tolist() == [4, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tr_mem": np.zeros(29)}, r"tr_mem of shape \(29,\), pets needs \(30,\)"),
        ({"tr_mem": np.full(30, 1.5)}, r"memorization outside \[-1, 1\]: 1.5 to 1.5"),
        ({"tr_labels": "swap"}, "other labels than pets for 2 samples, the first at 9"),
    ],
)
def test_scores_of_another_set_or_order_are_refused(scored, change, message):
    data, values, place = scored
    kept = {"tr_mem": values, "tr_labels": data.train.labels.numpy()} | change
    if isinstance(kept["tr_labels"], str):
        kept["tr_labels"] = later_swap(data.train.labels.numpy())
    np.savez(place, **kept)
    with pytest.raises(ValueError, match=message):
        load_fz(data)


def test_missing_or_damaged_scores_are_named(scored):
    data, _, place = scored
    with pytest.raises(ValueError, match=r"nothing is published for 'digits'; known: mnist"):
        load_fz(load_digits())
    np.savez(place, something=np.zeros(3))
    with pytest.raises(ValueError, match=r"tr_mem of shape \(0,\)"):
        load_fz(data)
    place.write_bytes(b"cut off")
    with pytest.raises(ValueError, match="cannot be read"):
        load_fz(data)
    place.unlink()
    with pytest.raises(FileNotFoundError, match=r"pets_infl_matrix.npz or .*pets_fz.npz; put"):
        load_fz(data)


# ---------------------------------------------------------------- the real sets, where they are


@pytest.mark.parametrize("name", sorted(SETS))
def test_the_real_files_pass_where_they_are(name):
    if not (ml.store.data_dir() / f"{name}.npz").exists():
        pytest.skip(f"no {name}.npz in the data folder")
    data = load(name)
    assert len(data.train) in (50_000, 60_000) and len(data.test) == 10_000
    assert data.mean == pytest.approx(SETS[name].mean, abs=5e-4)
    if name == "cifar100" and (ml.store.data_dir() / "cifar100_fz.npz").exists():
        scores = load_fz(data).dropna()
        assert len(scores) >= 49_900 and scores.mean() == pytest.approx(0.275, abs=0.001)


def test_the_facts_fit_each_other():
    for name, facts in SETS.items():
        n_classes = len(facts.class_names)
        assert len(set(facts.class_names)) == n_classes
        totals = [np.broadcast_to(counts, n_classes).sum() for counts in facts.counts]
        assert totals == [60_000 if "mnist" in name else 50_000, 10_000]
        assert all(0 <= y < n_classes for first in facts.first for y in first)
        assert len(facts.mean) == (1 if len(facts.shape) == 2 else 3)
