"""Samples, data sets, label noise, augmentation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits as sklearn_digits

from memlens.data.samples import (
    Augmentation,
    Dataset,
    Samples,
    augment,
    from_arrays,
    load_digits,
    stratified_folds,
)
from memlens.training.config import TrainConfig
from memlens.training.loop import train


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def samples(n=6, **changes):
    parts = {
        "images": torch.zeros(n, 1, 2, 2, dtype=torch.uint8),
        "labels": torch.arange(n) % 3,
        "index": torch.arange(n),
        "clean_labels": torch.arange(n) % 3,
    }
    return Samples(**(parts | changes))


def test_digits_are_scikit_learns_in_original_order(digits):
    images, labels = sklearn_digits(return_X_y=True)
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    for part in (digits.train, digits.test):
        assert np.array_equal(part.images.flatten(1).numpy(), images[part.index])
        assert np.array_equal(part.labels.numpy(), labels[part.index])
        assert (part.index.diff() > 0).all()
    both = torch.cat([digits.train.index, digits.test.index]).sort().values
    assert torch.equal(both, torch.arange(1797))


def test_the_split_is_stratified_and_fixed(digits):
    shares = [torch.bincount(p.labels) / len(p) for p in (digits.train, digits.test)]
    assert (shares[0] - shares[1]).abs().max() < 0.002
    assert torch.equal(load_digits().train.index, digits.train.index)


def test_normalise_maps_white_to_one(digits):
    x = digits.normalise(digits.train.images)
    assert (x.min(), x.max(), x.dtype) == (0, 1, torch.float32)


def test_standardised_data_have_mean_0_and_std_1():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 3, 4, 4)).astype(np.uint8)
    images[:, 1] //= 2
    data = from_arrays("x", (images, np.arange(50) % 5), (images[:5], np.arange(5)))
    x = data.normalise(data.train.images).transpose(0, 1).flatten(1)
    assert torch.allclose(x.mean(1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.std(1), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.29, 0.3])
def test_noise_flips_the_share_and_keeps_the_clean_labels(digits, rate):
    noisy = digits.with_noise(rate, seed=1).train
    assert int(noisy.is_noisy.sum()) == int(rate * 1437)
    assert torch.equal(noisy.clean_labels, digits.train.labels)
    assert torch.equal(noisy.images, digits.train.images)


def test_noise_per_class_holds_in_every_class(digits):
    noisy = digits.with_noise(0.1, per_class=True).train
    counts = torch.bincount(noisy.clean_labels)
    flipped = torch.bincount(noisy.clean_labels[noisy.is_noisy], minlength=10)
    assert torch.equal(flipped, (counts * 0.1 + 1e-9).long())


def test_noise_is_uniform_over_the_other_classes():
    labels = np.zeros(90_000, dtype=np.int64)
    labels[:2] = 1, 2
    images = np.zeros((90_000, 1, 1, 1), np.uint8)
    data = from_arrays("flat", (images, labels), (images[:3], labels[:3]), class_names=tuple("abc"))
    noisy = data.with_noise(0.5).train
    share = (noisy.labels[noisy.is_noisy] == 1).double().mean()
    assert abs(share - 0.5) < 0.01


def test_noise_may_take_a_class_its_last_label(digits):
    few = digits.subset(30)
    emptied = [
        noisy
        for seed in range(40)
        if (noisy := few.with_noise(0.5, seed=seed)).train.labels.bincount(minlength=10).min() == 0
    ]
    assert emptied  # three samples a class: it happens
    train("mlp", emptied[0], TrainConfig(epochs=1, batch_size=10))


def test_noise_follows_its_seed(digits):
    first, again, other = (digits.with_noise(0.1, seed=s).train.labels for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_chosen_samples_keep_their_index(digits):
    part = digits.train[digits.train.labels == 3]
    assert torch.equal(part.index, digits.train.index[digits.train.labels == 3])
    assert len(part) == int((digits.train.labels == 3).sum())


def reference_crop(image, pad, row, column, flip):
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    out = padded[:, row : row + image.shape[1], column : column + image.shape[2]]
    return out[:, :, ::-1] if flip else out


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augment_equals_a_per_image_reference(flip, dtype):
    x = torch.randint(1, 256, (40, 2, 5, 6)).to(dtype)  # no black pixel but in the padding
    augmentation = Augmentation.draw(40, 2, flip, seed=3)
    out = augment(x, augmentation, pad=2)
    assert out.dtype == dtype
    for i, (image, result) in enumerate(zip(x.numpy(), out.numpy(), strict=True)):
        move = (int(part[i]) for part in augmentation)
        assert np.array_equal(reference_crop(image, 2, *move), result)
    assert {len(set(part.tolist())) for part in augmentation[:2]} == {5}
    assert len(set(augmentation.mirrored.tolist())) == 1 + flip


def test_the_augmentation_of_a_sample_does_not_depend_on_its_batch():
    x = torch.randint(256, (9, 3, 4, 4), dtype=torch.uint8)
    augmentation, index = Augmentation.draw(9, 1, True, seed=0), torch.tensor([7, 2, 2, 0])
    whole = augment(x, augmentation, pad=1)
    assert torch.equal(augment(x[index], augmentation.of(index), pad=1), whole[index])
    assert not torch.equal(augment(x, Augmentation.draw(9, 1, True, seed=1), pad=1), whole)


def test_without_padding_and_flip_augment_changes_nothing():
    x = torch.randn(4, 1, 3, 3)
    assert torch.equal(augment(x, Augmentation.draw(4, 0, False, seed=0), pad=0), x)


@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=8),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_a_subset_keeps_every_class_in_its_share(counts, share, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    images = np.zeros((len(labels), 1, 2, 2), dtype=np.uint8)
    data = from_arrays("some", (images, labels), (images[:3], labels[:3]))
    n = round(len(counts) + share * (len(labels) - len(counts)))
    part = data.subset(n, seed=seed).train
    assert len(part) == n
    assert (part.index.diff() > 0).all()  # in their order, each once
    assert torch.equal(part.labels, data.train.labels[part.index])
    found = torch.bincount(part.labels, minlength=len(counts)).numpy()
    exact = np.array(counts) * n / len(labels)
    assert (found >= 1).all()
    small = exact < 1  # each gets one at the expense of the others
    assert (np.abs(found - exact) <= 1 + small.sum()).all()


def test_folds_are_stratified_and_keep_groups_together():
    labels = np.arange(60) % 3
    plain = stratified_folds(labels, 3, seed=1)
    assert np.array_equal(np.sum(plain, 0), np.ones(60))
    for mask in plain:
        assert abs(np.bincount(labels[mask]) - 20 / 3).max() < 1
    first, eligible = np.arange(60), labels != 2
    first[[0, 7, 30]], first[[4, 5]] = 0, 4
    folds = stratified_folds(labels, 4, seed=0, first=first, eligible=eligible)
    held_out = np.sum(folds, 0)
    assert np.array_equal(held_out, eligible | (np.arange(60) == 5))  # 5 goes with 4
    for group in ([0, 7, 30], [4, 5]):
        assert all(len(set(mask[group])) == 1 for mask in folds)


def test_subsets_of_uneven_classes():
    def counts(sizes, n):
        labels = np.repeat(np.arange(len(sizes)), sizes)
        images = np.zeros((len(labels), 1, 2, 2), dtype=np.uint8)
        part = from_arrays("some", (images, labels), (images[:1], labels[:1])).subset(n)
        return torch.bincount(part.train.labels).tolist()

    assert counts((18, 1, 1), 10) == [8, 1, 1]
    assert counts((90, 10), 2) == [1, 1]
    assert counts((100, 100), 51) in ([25, 26], [26, 25])
    digits = load_digits()
    assert torch.equal(digits.subset(1437).train.index, digits.train.index)
    with pytest.raises(ValueError, match=r"n_samples is 9; expected 10 \(one per class\) to 1437"):
        digits.subset(9)
    assert not torch.equal(digits.subset(99).train.index, digits.subset(99, seed=1).train.index)


BAD = [
    ({"images": torch.zeros(6, 2, 2, dtype=torch.uint8)}, ValueError, r"add the channel axis"),
    ({"images": torch.zeros(6, 1, 2, 2, dtype=torch.float64)}, TypeError, r"uint8 or float32"),
    ({"labels": torch.arange(5)}, ValueError, r"labels have shape \(5,\) for 6 images"),
    ({"labels": torch.zeros(6)}, TypeError, r"labels are torch.float32; convert them to int64"),
    ({"labels": torch.tensor([0, 1, 2, -1, 0, 1])}, ValueError, r"labels go down to -1"),
    ({"index": torch.arange(7)}, ValueError, r"index have shape \(7,\)"),
    (
        {"images": torch.full((6, 1, 2, 2), torch.nan)},
        ValueError,
        r"6 images hold NaN or infinite pixels, the first at position 0",
    ),
    (
        {"images": torch.tensor([0.0, 0, 0, torch.inf, 0, 0]).reshape(6, 1, 1, 1)},
        ValueError,
        r"1 images hold NaN or infinite pixels, the first at position 3",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_bad_samples_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        samples(**changes)


def test_bad_data_sets_are_refused():
    good = samples()
    with pytest.raises(ValueError, match=r"train labels of x go up to 2, but there are 2 class"):
        Dataset("x", good, good, ("a", "b"))
    with pytest.raises(ValueError, match=r"classes without a training sample in x: \['d'\]"):
        Dataset("x", good, good, tuple("abcd"))
    wide = samples(images=torch.zeros(6, 1, 2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"train images are \(1, 2, 2\), test images \(1, 2, 3\)"):
        Dataset("x", good, wide, tuple("abc"))
    with pytest.raises(ValueError, match=r"noise rate is 10; expected a share in \[0, 1\)"):
        Dataset("x", good, good, tuple("abc")).with_noise(10)


def test_the_repr_is_one_line_without_pixels(digits):
    noisy = digits.with_noise(0.1)
    assert repr(noisy) == (
        "Dataset(digits: 1,437 training samples, 143 labels changed, 360 test samples, 10 classes, "
        "images (1, 8, 8) uint8)"
    )
    assert repr(noisy.train) == "Samples(1,437 images (1, 8, 8) uint8, 143 labels changed)"
    assert repr(noisy.test) == "Samples(360 images (1, 8, 8) uint8)"


def test_data_are_editable_copies(digits):
    darker = replace(digits.train, images=digits.train.images // 2)
    assert int(digits.train.images.max()) == 16
    assert int(darker.images.max()) == 8


def test_reduced_images_are_means_of_blocks():
    images = np.arange(32, dtype=np.uint8).reshape(1, 4, 8)  # a row of 8 pixels, then the next
    train, test = (np.stack([images] * 2), np.array([0, 1])), (images[None], np.array([1]))
    data = from_arrays("steps", train, test)
    half = data.reduced(2)
    assert half.in_shape == (1, 2, 4)
    assert half.train.images.dtype == data.train.images.dtype
    # The first block holds 0, 1, 8, 9: 4.5, which is rounded to the even number.
    assert half.test.images[0, 0].tolist() == [[4, 6, 8, 10], [20, 22, 24, 26]]
    assert (half.mean, half.std) == (data.mean, data.std)
    assert torch.equal(half.train.labels, data.train.labels)
    assert torch.equal(data.reduced(1).train.images, data.train.images)
    for factor in (0, 3, 8):
        with pytest.raises(ValueError, match=f"factor is {factor}; expected a divisor of both"):
            data.reduced(factor)
