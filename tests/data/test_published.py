"""Published scores are joined to the samples of an image set, or refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from memlens.data.imagesets import load
from memlens.data.published import load_fz, order_is_certain
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
    some = replace(data, train=data.train[torch.tensor([8, *range(10, 30)])])
    assert load_fz(some).isna().tolist() == [True] + [False] * 20
    assert order_is_certain(data).tolist() == certain.tolist()
    assert order_is_certain(some).tolist() == [False] + [True] * 20


def test_a_mask_that_does_not_fit_is_refused(scored, pets):
    data, _, _ = scored
    found, path = pets
    for mask in (np.ones(29, bool), np.ones(1, bool), np.ones(30, int)):
        np.savez(path, **found, order_certain_train=mask)
        with pytest.raises(
            ValueError, match=r"order_certain_train of .*pets.npz has shape .*bool \(30,\)"
        ):
            load_fz(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tr_mem": np.zeros(29)}, r"tr_mem of shape \(29,\) \(float64\); pets needs"),
        ({"tr_mem": np.full(30, 1.5)}, r"memorization from 1.5 to 1.5; expected \[-1, 1\]"),
        ({"tr_mem": np.full(30, np.nan)}, r"memorization from nan to nan"),
        ({"tr_mem": np.full(30, "0.5")}, r"\(<U3\); pets needs numbers \(30,\)"),
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


# ---------------------------------------------------------------- the real scores, where they are


def test_the_real_scores_fit_the_real_set():
    folder = store.data_dir()
    if not all((folder / f"cifar100{end}.npz").exists() for end in ("", "_fz")):
        pytest.skip("no cifar100.npz and cifar100_fz.npz in the data folder")
    scores = load_fz("cifar100")
    assert len(scores) == 50_000 and scores.notna().sum() >= 49_900
    assert scores.mean() == pytest.approx(0.275, abs=0.001)
