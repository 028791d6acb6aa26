"""What others published, joined to the samples of an image set, or refused."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from memlens.data.imagesets import load
from memlens.data.published import load_fz, noisy_labels, order_is_certain
from memlens.data.samples import load_digits
from memlens.storage import store


def later_swap(y):
    """Two labels exchanged behind the first eight."""
    order, j = np.arange(len(y)), next(j for j in range(9, len(y)) if y[j] != y[9])
    order[[9, j]] = j, 9
    return y[order]


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
    assert load_fz(data, path=plain).equals(found) and load_fz("pets").equals(found)


def test_samples_of_uncertain_order_have_no_score(scored, pets):
    data, _, _ = scored
    found, path = pets
    certain = np.ones(30, dtype=bool)
    certain[[4, 8]] = False
    np.savez(path, **found, order_certain_train=certain)
    assert np.flatnonzero(load_fz(data).isna()).tolist() == [4, 8]
    other = np.arange(30) != 5
    assert np.flatnonzero(load_fz(data, certain=other).isna()).tolist() == [5]
    some = replace(data, train=data.train[torch.tensor([8, *range(10, 30)])])
    assert load_fz(some).isna().tolist() == [True] + [False] * 20
    assert order_is_certain(data).tolist() == certain.tolist()
    assert order_is_certain(some).tolist() == [False] + [True] * 20


def test_a_mask_that_does_not_fit_is_refused(scored, pets):
    data, _, _ = scored
    found, path = pets
    for mask in (np.ones(29, bool), np.ones(1, bool), np.ones(30, int)):
        with pytest.raises(ValueError, match=r"the mask has shape .* pets needs bool \(30,\)"):
            load_fz(data, certain=mask)
        np.savez(path, **found, order_certain_train=mask)
        with pytest.raises(ValueError, match=r"order_certain_train of .*pets.npz has shape"):
            load_fz(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tr_mem": np.zeros(29)}, r"tr_mem of shape \(29,\) \(float64\), pets needs"),
        ({"tr_mem": np.full(30, 1.5)}, r"memorization outside \[-1, 1\]: 1.5 to 1.5"),
        ({"tr_mem": np.full(30, np.nan)}, r"memorization outside \[-1, 1\]: nan"),
        ({"tr_mem": np.full(30, "0.5")}, r"\(<U3\), pets needs numbers \(30,\)"),
        ({"tr_labels": np.zeros(29, int)}, r"tr_labels of shape \(29,\)"),
        ({"tr_labels": "swap"}, r"\(tr_labels\) than pets for 2 samples, the first at 9"),
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


# ---------------------------------------------------------------- labels that people gave


@pytest.fixture
def relabelled(pets):
    """The set, and what people said of its training images, as the authors keep it."""
    found, path = pets
    given = {"clean_label": found["y_train"], "worse_label": (found["y_train"] + 1) % 3}
    return load("pets"), given, path.with_name("CIFAR-10_human.pt")


@pytest.mark.parametrize("plain", [lambda y: y, torch.as_tensor], ids=["numpy", "torch"])
def test_human_labels_go_to_samples_by_their_index(relabelled, plain):
    data, given, place = relabelled
    torch.save({name: plain(values) for name, values in given.items()}, place)
    found = noisy_labels("pets", "worse_label")
    assert found.dtype == torch.int64 and found.tolist() == given["worse_label"].tolist()
    some = replace(data, train=data.train[torch.tensor([7, 3, *range(10, 30)])])
    assert noisy_labels(some, "worse_label")[:2].tolist() == given["worse_label"][[7, 3]].tolist()
    noisy = replace(data, train=replace(data.train, labels=found))
    assert noisy.train.is_noisy.all() and not data.train.is_noisy.any()
    place.unlink()
    np.savez(place.with_name("pets_human.npz"), **given)
    assert torch.equal(noisy_labels(data, "worse_label"), found)


def test_a_file_of_older_writers_is_read(relabelled):
    data, given, place = relabelled
    torch.save(given, place, _use_new_zipfile_serialization=False)
    written = place.read_bytes()
    assert b"numpy._core.multiarray\n_reconstruct" in written
    place.write_bytes(written.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert noisy_labels(data, "worse_label").tolist() == given["worse_label"].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: {"clean_label": later_swap(given["clean_label"])}, "for 2 samples"),
        (lambda given: {"clean_label": given["clean_label"][:-1]}, r"clean_label of shape \(29,"),
        (lambda given: {"worse_label": given["worse_label"][:-1]}, r"worse_label of shape \(29,"),
        (lambda given: {"worse_label": given["worse_label"] + 1}, "from 1 to 3, pets .* 0 to 2"),
        (lambda given: {"worse_label": given["worse_label"] / 2}, "whole numbers"),
    ],
)
def test_human_labels_of_another_set_or_order_are_refused(relabelled, change, message):
    data, given, place = relabelled
    given = {name: values.astype(np.int64) for name, values in given.items()}
    np.savez(place.with_suffix(".npz"), **(given | change(given)))
    with pytest.raises(ValueError, match=message):
        noisy_labels(data, "worse_label", path=place.with_suffix(".npz"))


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_in_a_file_of_human_labels_runs(relabelled):
    data, given, place = relabelled
    trace = place.with_name("ran")
    torch.save(given | {"worse_label": Touch(trace)}, place)
    with pytest.raises(ValueError, match=r"CIFAR-10_human.pt cannot be read .* put a good copy"):
        noisy_labels(data, "worse_label")
    assert not trace.exists()
    torch.save(given, place)
    whole = place.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no pickle", pickle.dumps([1, 2], protocol=2)):
        place.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read"):
            noisy_labels(data, "worse_label")


def test_missing_human_labels_are_named(relabelled):
    data, given, place = relabelled
    with pytest.raises(FileNotFoundError, match=r"CIFAR-10_human.pt or .*pets_human.npz; put"):
        noisy_labels(data)
    torch.save(given, place)
    with pytest.raises(ValueError, match="has no noisy_label; it has: clean_label, worse_label"):
        noisy_labels(data)
    with pytest.raises(ValueError, match="human labels of mnist; known: cifar10, cifar100"):
        noisy_labels(replace(data, name="mnist"))


# ---------------------------------------------------------------- the real scores, where they are


def test_the_real_scores_fit_the_real_set():
    folder = store.data_dir()
    if not all((folder / f"cifar100{end}.npz").exists() for end in ("", "_fz")):
        pytest.skip("no cifar100.npz and cifar100_fz.npz in the data folder")
    scores = load_fz("cifar100")
    assert len(scores) == 50_000 and scores.notna().sum() >= 49_900
    assert scores.mean() == pytest.approx(0.275, abs=0.001)
