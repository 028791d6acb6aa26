"""Finding duplicates: against brute force, planted copies and real data; planting them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import memlens as ml
from memlens.audit import duplicates
from memlens.data.samples import Samples
from memlens.models import registry

COLUMNS = {
    **dict.fromkeys(("index_a", "index_b", "row_a", "row_b", "label_a", "label_b"), np.int64),
    **dict.fromkeys(("conflict", "exact"), bool),
    **dict.fromkeys(("similarity", "false_pairs"), np.float64),
}


@pytest.fixture(scope="module")
def digits():
    return ml.load("digits")


def samples_of(images, labels=None):
    n = len(images)
    labels = torch.zeros(n, dtype=torch.int64) if labels is None else labels
    return Samples(images, labels, torch.arange(n) + 1000, labels.clone())


def random_samples(n=300, shape=(1, 6, 6), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return samples_of(torch.randn(n, *shape, generator=generator))


def pairs_of(frame):
    return {tuple(row) for row in frame[["row_a", "row_b"]].to_numpy().tolist()}


def change(samples, row, image):
    images = samples.images.clone()
    images[row] = image
    return replace(samples, images=images)


# planting


def test_planted_pairs_are_disjoint_and_in_conflict(digits):
    planted = duplicates.plant(digits, 60, seed=4)
    train, before = planted.data.train, digits.train
    a, b = planted.pairs.T
    assert planted.pairs.shape == (60, 2)
    assert len(set(planted.pairs.ravel())) == 120
    assert set(planted.is_duplicate.nonzero()[0]) == set(planted.pairs.ravel())
    assert torch.equal(train.images[a], before.images[b])
    assert torch.equal(train.clean_labels[a], before.labels[b])
    assert (train.labels[a] != train.labels[b]).all()
    assert set(train.is_noisy.nonzero()[:, 0].tolist()) == set(a)
    others = np.setdiff1d(np.arange(len(train)), a)
    assert torch.equal(train.images[others], before.images[others])
    assert torch.equal(train.labels[others], before.labels[others])
    assert torch.equal(train.index, before.index)
    assert not torch.equal(before.images[a], before.images[b])  # the original is left as it was


def test_planted_labels_are_uniform_over_the_others(digits):
    shifts = []
    for seed in range(5):
        planted = duplicates.plant(digits, 700, seed=seed)
        labels = planted.data.train.labels[torch.as_tensor(planted.pairs)]
        shifts.append((labels[:, 0] - labels[:, 1]) % 10)
    counts = torch.bincount(torch.cat(shifts), minlength=10)
    assert counts[0] == 0
    assert counts[1:].min() > 3500 / 9 - 80  # four standard deviations
    assert counts[1:].max() < 3500 / 9 + 80


def test_planting_repeats_with_its_seed_only(digits):
    first, again, other = (duplicates.plant(digits, 9, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.pairs, again.pairs)
    assert torch.equal(first.data.train.labels, again.data.train.labels)
    assert not np.array_equal(first.pairs, other.pairs)
    nothing = duplicates.plant(digits, 0)
    assert nothing.pairs.shape == (0, 2)
    assert not nothing.is_duplicate.any()


@pytest.mark.parametrize("n_pairs", [-1, 719])
def test_impossible_numbers_of_pairs_are_refused(digits, n_pairs):
    with pytest.raises(
        ValueError, match=rf"n_pairs is {n_pairs}; expected 0 to 718, for 1437 samples"
    ):
        duplicates.plant(digits, n_pairs)


def test_one_class_has_no_conflicting_label(digits):
    lone = replace(digits.train, labels=torch.zeros_like(digits.train.labels))
    empty = digits.test[torch.zeros(0, dtype=torch.int64)]
    data = replace(digits, train=lone, test=empty, class_names=("only",))
    with pytest.raises(ValueError, match="one class; a conflicting label needs at least two"):
        duplicates.plant(data, 1)


# exact duplicates


@pytest.mark.parametrize("seed", range(3))
def test_all_planted_pairs_are_found_and_nothing_else(digits, seed):
    planted = duplicates.plant(digits, 250, seed=seed)
    found = duplicates.find(planted.data.train)
    assert pairs_of(found) == {tuple(sorted(pair)) for pair in planted.pairs.tolist()}
    assert found.exact.all()
    assert found.conflict.all()
    assert (found.similarity == 1).all()
    assert (found.false_pairs == 0).all()
    index = planted.data.train.index.numpy()
    assert np.array_equal(found.index_a, index[found.row_a])
    assert np.array_equal(found.index_b, index[found.row_b])


def test_conflicts_come_first_then_exact_ones_then_the_most_similar(digits):
    train, generator = digits.train, torch.Generator().manual_seed(0)
    images, labels = train.images.float(), train.labels.clone()
    for copy, row in enumerate(range(0, 80, 2)):  # 20 exact and 20 near, half with a conflict
        noise = torch.randn(1, 8, 8, generator=generator) * 0.005 * copy
        images[row] = images[row + 1] + (copy % 2) * noise
        labels[row] = (labels[row + 1] + (copy % 4 < 2)) % 10
    found = duplicates.find(replace(train, images=images, labels=labels))
    assert pairs_of(found) == {(row, row + 1) for row in range(0, 80, 2)}
    assert np.array_equal(found.conflict, found.label_a != found.label_b)
    assert np.array_equal(found.exact, found.row_a % 4 == 0)
    keys = list(zip(~found.conflict, ~found.exact, -found.similarity))
    assert keys == sorted(keys)
    blocks = found.groupby(["conflict", "exact"]).size()
    assert (blocks == 10).all()
    scores = np.arange(len(train)) % 7 + 0.5  # now the highest score first
    ranked = duplicates.find(replace(train, images=images, labels=labels), scores=scores)
    assert np.array_equal(ranked.score_a, scores[ranked.row_a])
    assert np.array_equal(ranked.score_b, scores[ranked.row_b])
    assert np.array_equal(ranked.score, np.maximum(ranked.score_a, ranked.score_b))
    keys = list(zip(~ranked.conflict, ~ranked.exact, -ranked.score))
    assert keys == sorted(keys)


def test_each_exact_copy_is_reported_once_beside_the_first():
    samples = random_samples(20)  # too few for near duplicates
    for copy in (7, 12, 15):
        samples = change(samples, copy, samples.images[3])
    samples = change(samples, 18, samples.images[4])
    found = duplicates.find(samples)
    assert pairs_of(found) == {(3, 7), (3, 12), (3, 15), (4, 18)}
    assert [g.tolist() for g in duplicates.groups(found)] == [[3, 7, 12, 15], [4, 18]]


def test_constant_images_are_exact_duplicates_of_their_own_kind_only():
    images = torch.randint(256, (200, 1, 5, 5), dtype=torch.uint8)
    images[10], images[20], images[30], images[40] = 7, 7, 90, 255
    found = duplicates.find(samples_of(images))
    assert pairs_of(found) == {(10, 20)}
    assert found.similarity.tolist() == [1.0]
    grey = torch.linspace(0, 1, 200)[:, None, None, None].expand(-1, 1, 5, 5)
    assert duplicates.find(samples_of(grey)).empty
    black = duplicates.find(samples_of(torch.zeros(200, 1, 5, 5)))
    assert pairs_of(black) == {(0, row) for row in range(1, 200)}


def test_what_rounding_adds_to_a_constant_image_is_no_direction():
    samples = random_samples(200)
    for row, grey in ((5, 0.3), (6, 0.8)):
        image = torch.full((1, 6, 6), grey)
        image[0, 2, 3] = torch.nextafter(image[0, 2, 3], torch.tensor(1.0))
        samples = change(samples, row, image)
    assert duplicates.find(samples).empty


def test_zeros_of_either_sign_are_equal():
    samples = random_samples(20)
    samples = change(samples, 5, torch.zeros(1, 6, 6))
    samples = change(samples, 9, -torch.zeros(1, 6, 6))
    assert pairs_of(duplicates.find(samples)) == {(5, 9)}


# near duplicates


def edited(images, kind, strength, generator):
    images = images.float()
    if kind == "noise":
        images = images + strength * torch.randn(images.shape, generator=generator)
    elif kind == "pixel":
        where = torch.randint(64, (len(images), 1), generator=generator)
        old = images.flatten(1).gather(1, where)
        new = torch.where(old > 8, old - strength, old + strength)
        images = images.flatten(1).scatter(1, where, new).view(images.shape)
    elif kind == "contrast":
        images = images * strength
    return images.round().clamp(0, 16).to(torch.uint8)


@pytest.mark.parametrize(
    ("kind", "strength", "least", "most"),
    [
        ("noise", 0.25, 0.8, 1),
        ("noise", 0.5, 0.3, 0.7),
        ("noise", 2.0, 0, 0.02),  # as far away as honest neighbours: cannot and must not be found
        ("pixel", 1, 0.85, 1),
        ("pixel", 2, 0.75, 0.95),
        ("contrast", 0.9, 0.75, 0.95),
    ],
)
def test_how_many_near_copies_in_digits_are_found(digits, kind, strength, least, most):
    wanted = hits = 0
    for seed in range(3):
        planted = duplicates.plant(digits, 50, seed=seed)
        train, generator = planted.data.train, torch.Generator().manual_seed(seed)
        images, a = train.images.clone(), torch.as_tensor(planted.pairs[:, 0])
        images[a] = edited(images[a], kind, strength, generator)
        found = pairs_of(duplicates.find(replace(train, images=images)))
        truth = {tuple(sorted(pair)) for pair in planted.pairs.tolist()}
        assert found <= truth  # nothing but what was planted
        wanted, hits = wanted + len(truth), hits + len(found & truth)
    assert least <= hits / wanted <= most


@pytest.mark.parametrize("copies", [2, 3, 4, 5])
def test_groups_of_near_copies_are_found_whole(digits, copies):
    images, generator = digits.train.images.float(), torch.Generator().manual_seed(0)
    rows = torch.randperm(len(images), generator=generator)[: 10 * copies].view(10, copies)
    for group in rows:
        noise = 0.05 * torch.randn(copies, 1, 8, 8, generator=generator)
        images[group] = images[group[0]] + noise
    found = duplicates.find(replace(digits.train, images=images))
    groups = {tuple(group) for group in duplicates.groups(found)}
    assert groups == {tuple(sorted(group)) for group in rows.tolist()}
    assert len(found) == 10 * copies * (copies - 1) / 2
    assert not found.exact.any()


def test_brightness_and_contrast_do_not_hide_a_copy():
    samples = random_samples()
    samples = change(samples, 11, 0.5 * samples.images[200] + 3)
    found = duplicates.find(samples)
    assert pairs_of(found) == {(11, 200)}
    assert not found.exact.item()
    assert found.similarity.item() == pytest.approx(1)
    for row, factor in ((50, 2), (60, 0.25)):  # no distance at all between these three
        samples = change(samples, row, factor * samples.images[70])
    found = duplicates.find(samples)
    assert pairs_of(found) == {(11, 200), (50, 60), (50, 70), (60, 70)}
    assert not found.exact.any()


def test_small_sets_are_searched_for_exact_copies_only():
    for n, wanted in ((99, {(8, 9)}), (100, {(3, 4), (8, 9)})):
        samples = random_samples(n + 1)  # one of them an exact copy
        samples = change(samples, 3, samples.images[4] + 0.01 * samples.images[5])
        samples = change(samples, 8, samples.images[9])
        assert pairs_of(duplicates.find(samples)) == wanted


def test_features_find_what_pixels_do_not():
    samples = random_samples()
    features = torch.randn(300, 12, generator=torch.Generator().manual_seed(5))
    features[40] = 3 * features[250] + 1e-3
    assert duplicates.find(samples).empty
    for given in (features, features.numpy()):
        found = duplicates.find(samples, given)
        assert pairs_of(found) == {(40, 250)}
        assert found.feature_similarity.item() == pytest.approx(1, abs=1e-6)
        assert abs(found.similarity.item()) < 0.9
    assert duplicates.find(samples, torch.ones(300, 4)).empty  # features that say nothing
    assert duplicates.find(samples, torch.zeros(300, 4)).empty


def expected_by_hand(vectors):
    """The oracle: every mutual pair and its expected number, in plain loops and float64."""
    n, k, most = len(vectors), 10, 5
    unit = [v / np.sqrt((v * v).sum()) for v in vectors]
    distance = [[np.sqrt(((u - v) ** 2).sum()) for v in unit] for u in unit]
    order = [sorted((j for j in range(n) if j != i), key=distance[i].__getitem__)[:k]
             for i in range(n)]  # fmt: skip
    gap = [[(r + 1) * np.log(distance[i][order[i][r + 1]] / distance[i][order[i][r]])
            for r in range(k - 1)] for i in range(n)]  # fmt: skip
    inverse = [np.mean(gap[i][1:]) for i in range(n)]
    dimension = [min(40, 1 / np.median([inverse[j] for j in (i, *order[i])])) for i in range(n)]
    chance = [{order[i][r]: np.exp(-dimension[i] * max(gap[i][r:most])) for r in range(most)}
              for i in range(n)]  # fmt: skip
    return {
        (i, j): n / 2 * most * max(chance[i][j], chance[j][i])
        for i in range(n) for j in chance[i] if i < j and i in chance[j]
    }  # fmt: skip


@pytest.mark.parametrize("width", [3, 20])
def test_the_finder_equals_brute_force(width):
    samples = random_samples(150, (1, width, width), seed=width)
    samples = change(samples, 3, samples.images[4] + 0.2 * samples.images[5])
    samples = change(samples, 7, samples.images[8] + 1e-4 * samples.images[9])
    found = duplicates.find(samples, false_pairs=np.inf)
    rows = samples.images.flatten(1).double().numpy()
    truth = expected_by_hand(rows - rows.mean(1, keepdims=True))
    assert pairs_of(found) == set(truth)
    for row in found.itertuples():
        expected = np.log(truth[row.row_a, row.row_b])
        assert np.log(row.false_pairs) == pytest.approx(expected, rel=1e-3, abs=1e-3)
        cosine = np.corrcoef(rows[row.row_a], rows[row.row_b])[0, 1]
        assert row.similarity == pytest.approx(cosine, abs=1e-6)


def test_two_spaces_share_what_one_is_allowed():
    samples, other = random_samples(seed=1), random_samples(seed=2).images.flatten(1)
    found = duplicates.find(samples, other, false_pairs=np.inf)
    pixels, other = samples.images.flatten(1).double().numpy(), other.double().numpy()
    apart = [expected_by_hand(v) for v in (pixels - pixels.mean(1, keepdims=True), other)]
    for row in found.itertuples():
        pair = (row.row_a, row.row_b)
        wanted = 2 * min(truth[pair] for truth in apart if pair in truth)
        assert row.false_pairs == pytest.approx(wanted, rel=1e-6)
    assert pairs_of(found) == set(apart[0]) | set(apart[1])


# quiet


def test_real_digits_have_no_duplicates(digits):
    assert duplicates.find(digits.train).empty
    assert duplicates.find(digits.train, false_pairs=1).empty


def test_the_features_of_a_trained_net_are_quiet_and_show_planted_pairs(digits, monkeypatch,
                                                                        tmp_path):  # fmt: skip
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    planted = duplicates.plant(digits, 10)
    net = ml.train("mlp", planted.data, ml.TrainConfig(epochs=5)).snapshot("last")
    seen = [duplicates.features(net, data, data.train.images) for data in (digits, planted.data)]
    assert duplicates.find(digits.train, seen[0]).empty
    found = duplicates.find(planted.data.train, seen[1])
    assert pairs_of(found) == {tuple(sorted(pair)) for pair in planted.pairs.tolist()}
    assert (found.feature_similarity == 1).all()


@pytest.mark.parametrize("shape", [(1, 3, 3), (1, 8, 8), (3, 12, 12)])
def test_random_images_have_no_duplicates(shape):
    for seed, n in enumerate((99, 100, 300, 1000)):
        assert duplicates.find(random_samples(n, shape, seed)).empty


def tight_classes(n, d, generator):
    centres, label = torch.randn(10, d, generator=generator), torch.arange(n) % 10
    return centres[label] + 0.02 * torch.randn(n, d, generator=generator)


def curve(n, d, generator):
    t = 6 * torch.rand(n, 1, generator=generator) * torch.arange(1, 4)
    plane = torch.randn(6, d, generator=generator)
    return torch.cat([t.sin(), t.cos()], 1) @ plane + 1e-3 * torch.randn(n, d, generator=generator)


def uneven(n, d, generator):
    scale = torch.randn(n, 1, generator=generator).exp()
    return scale * torch.randn(n, d, generator=generator) + torch.randn(d, generator=generator)


@pytest.mark.parametrize("make", [tight_classes, curve, uneven])
def test_honest_structure_is_no_duplicate(make):
    samples = random_samples(400)
    for seed in range(5):
        features = make(400, 16, torch.Generator().manual_seed(seed))
        assert duplicates.find(samples, features).empty


@pytest.mark.parametrize("d", [3, 5, 10])
def test_honest_pairs_are_no_more_than_expected(d):
    samples = samples_of(torch.zeros(1500, 1, 1, 1) + torch.arange(1500)[:, None, None, None])
    counts = []
    for seed in range(4):
        even = torch.randn(1500, d, generator=torch.Generator().manual_seed(seed))
        found = duplicates.find(samples, even, false_pairs=200)
        counts.append([(found.false_pairs <= allowed).sum() for allowed in (2, 20, 200)])
    few, some, many = np.mean(counts, axis=0)
    assert few <= 2
    assert 1 <= some <= 20
    assert 40 <= many <= 200  # and the number means something: not always none


def test_a_heap_of_equal_features_makes_no_pair_around_it():
    samples = random_samples(400)
    for seed in range(10):
        around = 0.01 * torch.randn(400, 3, generator=torch.Generator().manual_seed(seed))
        around[200:] = 0
        features = torch.tensor([1.0, 2.0, 3.0]) + around
        assert duplicates.find(samples, features).empty


# what must not matter


@pytest.fixture(scope="module")
def mixed(digits):
    """Digits with twelve exact copies and twelve near ones, and labels that conflict."""
    planted = duplicates.plant(digits, 24, seed=7)
    train, a = planted.data.train, torch.as_tensor(planted.pairs[:12, 0])
    images, generator = train.images.clone(), torch.Generator().manual_seed(0)
    images[a] = edited(images[a], "pixel", 2, generator)
    return replace(train, images=images)


def test_permuting_the_samples_permutes_the_pairs(mixed):
    order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(1))
    found, moved = duplicates.find(mixed), duplicates.find(mixed[order])
    assert len(found) > 20

    def key(frame):
        ends = np.sort(frame[["index_a", "index_b"]].to_numpy(), axis=1)
        return sorted(zip(*ends.T, frame.conflict, frame.exact, frame.similarity.round(9)))

    assert key(found) == key(moved)
    assert np.array_equal(mixed.index[order].numpy()[moved.row_a], moved.index_a)


@pytest.mark.parametrize("scale", [0.25, 7.3, 1e-4])
def test_the_scale_of_the_pixels_does_not_matter(mixed, scale):
    found = duplicates.find(mixed)
    scaled = duplicates.find(replace(mixed, images=mixed.images.float() * scale))
    pd.testing.assert_frame_equal(found, scaled, rtol=1e-4)


@pytest.mark.parametrize("block_size", [1, 37, 5000])
def test_the_size_of_the_blocks_does_not_matter(mixed, block_size, monkeypatch):
    subset = mixed[torch.arange(300)] if block_size == 1 else mixed
    whole = duplicates.find(subset)
    monkeypatch.setattr(duplicates, "BLOCK_SIZE", block_size)
    blocked = duplicates.find(subset)
    pd.testing.assert_frame_equal(whole, blocked, rtol=1e-9)


def test_no_matrix_of_all_pairs_is_ever_formed(monkeypatch):
    samples, shapes = random_samples(400), []
    multiply = torch.Tensor.__matmul__

    def watched(a, b):
        shapes.append((len(a), b.shape[1]))
        return multiply(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    monkeypatch.setattr(duplicates, "BLOCK_SIZE", 64)
    duplicates.find(samples)
    assert shapes == [(64, 400)] * 6 + [(16, 400)]


# frames, features, errors


def test_an_empty_result_has_the_same_columns(mixed):
    for samples in (random_samples(), random_samples(5), random_samples(0)):
        empty = duplicates.find(samples)
        assert empty.empty
        assert dict(empty.dtypes) == {name: np.dtype(kind) for name, kind in COLUMNS.items()}
        assert duplicates.groups(empty) == []
    assert dict(duplicates.find(mixed).dtypes) == dict(empty.dtypes)
    n, more = len(mixed), {"features": torch.randn(len(mixed), 9), "scores": np.ones(len(mixed))}
    full, none = duplicates.find(mixed, **more), duplicates.find(random_samples(n), **more)
    assert dict(full.dtypes) == dict(none.dtypes)
    assert set(full) - set(COLUMNS) == {"feature_similarity", "score_a", "score_b", "score"}


def test_rows_point_at_the_pictures(mixed):
    found = duplicates.find(mixed)
    pictures = mixed.images[found[["row_a", "row_b"]].to_numpy().ravel()]
    assert pictures.shape == (2 * len(found), 1, 8, 8)
    same = (pictures[::2] == pictures[1::2]).flatten(1).all(1)
    assert np.array_equal(same, found.exact)


def test_a_series_of_scores_is_matched_by_original_index(mixed):
    scores = pd.Series(np.arange(len(mixed)) / 2, index=mixed.index.numpy())
    by_array = duplicates.find(mixed, scores=scores.to_numpy())
    shuffled = scores.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(duplicates.find(mixed, scores=shuffled), by_array)
    with pytest.raises(ValueError, match="scores have 1437 NaN"):
        duplicates.find(mixed, scores=scores.set_axis(scores.index + 10_000))


@pytest.mark.parametrize("name", ["mlp", "small_cnn", "mlp_bn"])
def test_features_are_what_the_last_layer_sees(digits, name):
    net = registry.build(name, 10, digits.in_shape).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    images = digits.train.images[:50]
    seen = duplicates.features(net, digits, images)
    assert net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    net.eval()
    with torch.no_grad():
        expected = net[:-1](images / 16)
        assert torch.allclose(seen, expected, atol=1e-6)
        assert not seen.requires_grad
        assert torch.allclose(net[-1](seen), net(images / 16), atol=1e-5)
    assert not net[-1]._forward_pre_hooks


def test_features_come_in_batches(digits, monkeypatch):
    net = registry.build("mlp", 10, digits.in_shape)
    whole = duplicates.features(net, digits, digits.train.images[:100])
    monkeypatch.setattr("memlens.training.devices.EVAL_ROWS", 33)
    assert torch.allclose(duplicates.features(net, digits, digits.train.images[:100]), whole)


def test_bad_input_is_named(digits):
    train = digits.train
    with pytest.raises(ValueError, match=r"features have shape \(9, 4\); expected \(1437, d\)"):
        duplicates.find(train, torch.ones(9, 4))
    with pytest.raises(ValueError, match=r"features have shape \(1437,\); expected \(1437, d\)"):
        duplicates.find(train, np.ones(1437))
    bad = torch.ones(1437, 4)
    bad[3, 2], bad[7, 0] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="features have 2 NaN or infinite values"):
        duplicates.find(train, bad)
    with pytest.raises(ValueError, match=r"scores have shape \(5,\); expected \(1437,\)"):
        duplicates.find(train, scores=np.ones(5))
    with pytest.raises(ValueError, match="scores have 1 NaN"):
        duplicates.find(train, scores=np.where(np.arange(1437) == 2, np.nan, 1.0))
    for false_pairs in (0, np.nan):
        with pytest.raises(ValueError, match="false_pairs is .*; expected a number above 0"):
            duplicates.find(train, false_pairs=false_pairs)
    with pytest.raises(
        ValueError, match=r"Conv2d has no nn.Linear layer: compute features yourself"
    ):
        duplicates.features(nn.Conv2d(1, 1, 3), digits, train.images)


def test_planted_ends_are_found_together_and_alone():
    planted = duplicates.plant(ml.load("digits").subset(100), 10, seed=0)
    copies, originals = planted.pairs.T
    score = np.zeros(100)
    score[copies] = 2  # a score that finds every copy, and puts each original last
    score[originals] = -1
    table = duplicates.evaluate(planted, pd.DataFrame({"csg": score}))
    assert table.index.tolist() == ["both", "copy", "original"]
    assert table["csg"].tolist() == [0.5, 1.0, 0.0]
