"""Image sets read, checked and refused."""

import os
import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import memlens as ml
from memlens.data import imagesets
from memlens.data.imagesets import SETS, load
from memlens.data.samples import load_digits
from memlens.storage import store


def test_a_file_is_loaded_in_its_order(pets):
    found, _ = pets
    data = load("pets")
    for part, samples in (("train", data.train), ("test", data.test)):
        x = torch.as_tensor(found[f"x_{part}"])
        x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x[:, None]
        assert torch.equal(samples.images, x)
        assert samples.labels.tolist() == found[f"y_{part}"].tolist()
        assert samples.index.tolist() == list(range(len(x)))
    assert data.class_names == ("cat", "dog", "owl")
    assert data.name == "pets" and data.pixel_max == 255
    inputs = data.normalise(data.train.images).transpose(0, 1).flatten(1).double()
    assert torch.allclose(inputs.mean(1), torch.zeros(1).double(), atol=1e-6)
    assert torch.allclose(inputs.std(1), torch.ones(1).double(), atol=1e-6)


def test_digits_are_loaded_by_name():
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
        ("x_train", lambda x: x[:-1], r"images are uint8 \(29, .* expected uint8 \(30, 6, 6"),
        ("x_train", lambda x: x.astype(np.float32), "images are float32"),
        ("x_test", lambda x: x[:, :-1], r"test part: images are uint8 \(9, 5, 6"),
        ("x_train", lambda x: (x // 2).astype(np.uint8), "the mean of the pixels is"),
        ("y_train", lambda y: y[:-1], r"labels are int64 \(29,\), expected integers \(30,\)"),
        ("y_train", lambda y: y.astype(float), "labels are float64"),
        ("y_train", lambda y: y + 1, "labels range from 1 to 3, expected 0 to 2"),
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
    assert str(path) in str(error.value) and "replace it with the original" in str(error.value)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    "change", [swapped, lambda x: x[::-1], lambda x: x.swapaxes(1, 2)], ids=["two", "all", "turned"]
)
def test_images_under_the_labels_of_others_are_refused(pets, part, change):
    found, path = pets
    x = found[f"x_{part}"]
    np.savez(path, **(found | {f"x_{part}": change(x)}))
    with pytest.raises(ValueError, match=f"{part} part: the images' checksum differs"):
        load("pets")


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    ("change", "places"),
    [
        (lambda x: swapped(x, 0, len(x) - 1), r"\[0\]"),
        (lambda x: x[::-1], r"\[0, "),
        (lambda x: x.swapaxes(1, 2), r"\[0, "),
        (lambda x: x[..., ::-1] if x.ndim == 4 else x[:, ::-1], r"\[0, "),
    ],
    ids=["two", "all", "turned", "channels"],
)
def test_without_a_checksum_some_images_are_compared(pets, monkeypatch, part, change, places):
    found, path = pets
    monkeypatch.setattr(imagesets, "N_COMPARED", 4)
    means = tuple(
        tuple(by_hand(found[f"x_{p}"], step).round(4)) for p, step in (("train", 7), ("test", 2))
    )
    monkeypatch.setitem(SETS, "pets", replace(SETS["pets"], images_sha256=None, image_means=means))
    load("pets")
    np.savez(path, **(found | {f"x_{part}": change(found[f"x_{part}"])}))
    problem = "the mean of the pixels|" if part == "train" else ""  # of channels, swapped in colour
    with pytest.raises(ValueError, match=f"{part} part: ({problem}the images at {places}.*differ)"):
        load("pets")
    uncertain = found["x_train"].copy()
    uncertain[[1, 2]] = uncertain[[2, 1]]  # two that are not compared
    np.savez(path, **(found | {"x_train": uncertain}))
    load("pets")


def by_hand(x, step):
    """Upper half of the first channel of four images, each on its own."""
    first = x[..., 0] if x.ndim == 4 else x
    return np.array([first[i * step][:3].mean() / 255 for i in range(4)])


def test_a_damaged_file_is_named_and_nothing_in_it_runs(pets):
    found, path = pets
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not an archive", pickle.dumps({"x": 1})):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"pets.npz cannot be read .* replace it with a good copy"
        ):
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
    calls = []

    class Download:
        def __init__(self, root, train, download):
            calls.append((root, train, download))
            part = "train" if train else "test"
            self.data, self.targets = found[f"x_{part}"], found[f"y_{part}"].tolist()

    monkeypatch.setattr(datasets, "CIFAR10", Download)
    assert load("pets").train.labels.tolist() == found["y_train"].tolist()
    assert calls == [(str(path.parent), True, True), (str(path.parent), False, True)]
    found["y_train"] = later_swap(found["y_train"])
    with pytest.raises(ValueError, match="the download of pets, train part: the labels' checksum"):
        load("pets")


def test_without_a_network_the_message_has_the_path_of_the_file(pets, monkeypatch):
    from torchvision import datasets

    _, path = pets
    path.unlink()

    def fail(**_):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "CIFAR10", fail)
    with pytest.raises(FileNotFoundError, match=r"pets.npz, and cannot .*no route.*x_train, y_tr"):
        load("pets")


def test_without_torchvision_the_message_has_the_extra_and_the_path(pets, monkeypatch):
    _, path = pets
    path.unlink()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"pets.npz, .* pip install 'memlens\[notebooks\]'"):
        load("pets")


def test_moments_of_whole_pixels_are_counted_exactly(pets):
    found, _ = pets
    data = load("pets")
    pixels = found["x_train"].reshape(-1, data.in_shape[0]) / 255
    assert data.mean == pytest.approx(pixels.mean(0), rel=1e-12)
    assert data.std == pytest.approx(pixels.std(0, ddof=1), rel=1e-12)


# ---------------------------------------------------------------- the shipped set


def test_the_shipped_clothes_have_their_checksums_and_need_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_DATA", str(tmp_path))  # an empty data folder
    data = load("fashion_small")
    assert imagesets.FASHION_SMALL.stat().st_size <= 3e6
    assert torch.bincount(data.train.labels).tolist() == [200] * 10
    assert torch.bincount(data.test.labels).tolist() == [200] * 10
    for samples in (data.train, data.test):
        assert (samples.index.diff() > 0).all()  # the original order
    assert data.class_names[9] == "Ankle boot"
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_copy_of_the_shipped_clothes_is_refused_by_name(tmp_path, monkeypatch):
    whole, path = imagesets.FASHION_SMALL.read_bytes(), tmp_path / "copy.npz"
    arrays = imagesets.read_npz(imagesets.FASHION_SMALL)
    monkeypatch.setattr(imagesets, "FASHION_SMALL", path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (whole[:-1000], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"copy\.npz cannot be read"):
            load("fashion_small")
    for name in ("x_train", "y_test", "index_train"):
        np.savez(path, **(arrays | {name: swapped(arrays[name], 0, 1500)}))
        with pytest.raises(ValueError, match=r"copy\.npz"):
            load("fashion_small")


def test_the_first_of_each_class_are_selected_in_order():
    y = np.array([2, 0, 0, 1, 0, 2, 1, 2, 1])
    x = np.arange(9, dtype=np.uint8)[:, None, None]
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y[::-1]}
    selected = imagesets.first_of_each_class(arrays, 2)
    assert selected["index_train"].tolist() == [0, 1, 2, 3, 5, 6]
    assert selected["y_train"].tolist() == [2, 0, 0, 1, 2, 1]
    assert selected["x_train"].ravel().tolist() == [0, 1, 2, 3, 5, 6]
    assert selected["index_test"].tolist() == [0, 1, 2, 3, 4, 6]


@pytest.mark.skipif(
    not (store.data_dir() / "fashion_mnist.npz").exists(), reason="needs fashion_mnist.npz"
)
def test_the_shipped_clothes_follow_the_rule_of_selection():
    whole = imagesets.read_npz(store.data_dir() / "fashion_mnist.npz")
    shipped = imagesets.read_npz(imagesets.FASHION_SMALL)
    for name, expected in imagesets.first_of_each_class(whole, imagesets.PER_CLASS).items():
        assert np.array_equal(shipped[name], expected), name


# ---------------------------------------------------------------- the real sets, where they are


@pytest.mark.parametrize("name", sorted(SETS))
def test_the_real_files_pass_where_they_are(name):
    if not (store.data_dir() / f"{name}.npz").exists():
        pytest.skip(f"no {name}.npz in the data folder")
    data = load(name)
    assert len(data.train) in (50_000, 60_000) and len(data.test) == 10_000
    assert data.mean == pytest.approx(SETS[name].mean, abs=5e-4)


@pytest.mark.parametrize("name", sorted(SETS))
def test_the_real_files_are_refused_when_shuffled(name):
    path = store.data_dir() / f"{name}.npz"
    if not path.exists() or name == "cifar10":
        pytest.skip(f"no {name}.npz in the data folder, or nothing known of its images")
    found = imagesets.read_npz(path)
    order = np.random.default_rng(0).permutation(10_000)
    for changed in (found["x_test"][order], np.zeros_like(found["x_test"])):
        with pytest.raises(ValueError, match="test part: the images"):
            imagesets.check_images(found | {"x_test": changed}, SETS[name], "it")


def test_the_specifications_are_consistent():
    for name, spec in SETS.items():
        n_classes = len(spec.class_names)
        assert len(set(spec.class_names)) == n_classes
        totals = [np.broadcast_to(counts, n_classes).sum() for counts in spec.counts]
        assert totals == [60_000 if "mnist" in name else 50_000, 10_000]
        assert all(0 <= y < n_classes for first in spec.first for y in first)
        assert len(spec.mean) == (1 if len(spec.shape) == 2 else 3)
        assert (
            spec.image_means is None
            or [len(part) for part in spec.image_means] == [imagesets.N_COMPARED] * 2
        )
        assert (spec.image_means or spec.images_sha256) or name == "cifar10"
