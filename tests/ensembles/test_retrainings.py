"""Extra trainings: each kind against a slow loop that trains one network at a time."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.model_selection import StratifiedKFold
from torch import nn

from memlens.ensembles import retrainings
from memlens.ensembles.retrainings import KINDS, fold_members, half_members, repeat_members, retrain
from memlens.storage import store
from memlens.tracking.scores import EARLY_EPOCH
from memlens.training.config import TrainConfig, mixed_seed

SHORT = TrainConfig(epochs=5, batch_size=16, lr=0.1)
SEED = 5
CLOSE = {"rel": 1e-6, "abs": 1e-8}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))


@pytest.fixture
def noisy(double):
    return double.with_noise(0.2, seed=1)


def logits_of(net, data):
    with torch.no_grad():
        return net.eval()(data.normalise(data.train.images)).numpy()


def slow_folds(data, n_folds, config, train_alone):
    """Held-out logits (n_samples, n_classes), fold by fold."""
    y, found = data.train.labels, np.full((len(data.train), data.n_classes), np.nan)
    splitter = StratifiedKFold(n_folds, shuffle=True, random_state=SEED)
    for k, (kept, held_out) in enumerate(splitter.split(np.zeros(len(y)), y)):
        mask = np.zeros(len(y), dtype=bool)
        mask[kept] = True
        net = train_alone("mlp", data, mask, config, mixed_seed(SEED, k))
        found[held_out] = logits_of(net, data)[held_out]
    return found


def slow_second_split(data, config, train_alone):
    n = len(data.train)
    half = np.zeros(n, dtype=bool)
    half[np.random.default_rng(SEED).permutation(n)[: n // 2]] = True
    correct = np.zeros((config.epochs, n), dtype=bool)
    for mask in (half, ~half):
        rows = []
        look = lambda net, _, rows=rows: rows.append(logits_of(net, data).argmax(1))  # noqa: E731
        net = train_alone("mlp", data, mask, config, SEED)
        train_alone(
            "mlp", data, ~mask, config, mixed_seed(SEED, 1), net=net, each=in_train_mode(look)
        )
        correct[:, mask] = (np.stack(rows) == data.train.labels.numpy())[:, mask]
    return correct


def in_train_mode(look):
    """Call ``look`` after each epoch, and return the network to train mode."""

    def each(net, epoch):
        look(net, epoch)
        net.train()

    return each


def slow_repeats(data, config, train_alone, n_runs=10):
    every = np.ones(len(data.train), dtype=bool)
    rows = {"el2n": [], "weight_grad": []}
    for k in range(n_runs):
        epochs = min(EARLY_EPOCH + 1, config.epochs)
        net = train_alone("mlp", data, every, config, mixed_seed(SEED, k), epochs=epochs)
        for name, values in zip(rows, slow_early(net, data), strict=True):
            rows[name].append(values)
    return {name: np.array(values) for name, values in rows.items()}


def slow_early(net, data):
    """EL2N and the norm of the weight gradient, one sample at a time."""
    errors, norms = [], []
    for x, y in zip(data.normalise(data.train.images), data.train.labels, strict=True):
        net.zero_grad()
        p = net(x[None]).softmax(1)[0]
        p[y].log().neg().backward()
        errors.append(float((p.detach() - nn.functional.one_hot(y, len(p))).norm()))
        norms.append(float(sum((w.grad**2).sum() for w in net.parameters())) ** 0.5)
    return errors, norms


def test_folds_are_held_out_logits(noisy, train_alone):
    left = retrain("folds", "mlp", [noisy], SHORT, seeds=[SEED], n_jobs=1)[0]
    expected = slow_folds(noisy, 3, SHORT, train_alone)
    assert left["logits"] == pytest.approx(expected, **CLOSE)
    assert np.array_equal(left["y_true"], noisy.train.labels.numpy())
    assert set(left) == {"logits", "y_true", "masks", "p_label"}
    p = softmax(expected, 1)[np.arange(60), left["y_true"]]
    held_out = np.where(left["masks"], 0, left["p_label"]).sum(0)
    assert held_out == pytest.approx(p, rel=1e-5)  # each sample once, by the network without it
    assert left["masks"].sum(0).tolist() == [2] * 60
    assert left["p_label"][left["masks"]].mean() > held_out.mean()  # it knows what it has seen


def test_samis_is_sgd_and_sam_from_the_same_start(noisy, train_alone):
    left = retrain("samis", "mlp", [noisy], SHORT, seeds=[SEED], n_jobs=1)[0]
    assert left["sgd"] == pytest.approx(slow_folds(noisy, 10, SHORT, train_alone), **CLOSE)
    sam = replace(SHORT, sam_rho=0.05)
    assert left["sam"] == pytest.approx(slow_folds(noisy, 10, sam, train_alone), **CLOSE)
    assert np.abs(left["sam"] - left["sgd"]).max() > 0.1
    assert set(left) == {"sgd", "sam", "y_true"}


def test_samis_with_batch_norm_starts_both_from_fresh_statistics(double):
    """SAM must not start from SGD's statistics: with a radius of 0, both are equal."""
    members = fold_members(double, SEED)
    ensemble = retrainings.ModelEnsemble.build(
        "mlp_bn", double, [member.seed for member in members]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrainings, "SAM_RHO", 0.0)
        for left in KINDS["samis"].train(ensemble, double, members, SHORT):
            assert np.array_equal(left["sgd"], left["sam"])


def test_second_split_is_the_first_half_during_training_on_the_other(noisy, train_alone):
    config = replace(SHORT, epochs=8)
    left = retrain("second_split", "mlp", [noisy], config, seeds=[SEED], n_jobs=1)[0]
    expected = slow_second_split(noisy, config, train_alone)
    assert left["correct"].shape == (8, 60)
    assert left["correct"].dtype == bool
    assert np.array_equal(left["correct"], expected)
    assert 0.05 < 1 - expected.mean() < 0.95
    assert set(left) == {"correct", "y_true"}


@pytest.mark.parametrize("epochs", [5, 13])
def test_repeats_are_early_signals_of_ten_networks(noisy, train_alone, epochs):
    """After 11 epochs of 13, or after all of 5."""
    config = replace(SHORT, epochs=epochs, lr=0.01)
    left = retrain("repeats", "mlp", [noisy], config, seeds=[SEED], n_jobs=1)[0]
    for name, rows in slow_repeats(noisy, config, train_alone).items():
        assert left[name].shape == (10, 60)
        assert left[name] == pytest.approx(rows, **CLOSE)
    assert set(left) == {"el2n", "weight_grad", "y_true"}


@pytest.mark.parametrize("n_folds", [3, 10])
def test_every_sample_is_held_out_once_and_the_folds_are_stratified(noisy, n_folds):
    members = fold_members(noisy, SEED, n_folds)
    assert (sum(~member.mask for member in members) == 1).all()
    for label in range(3):
        own = noisy.train.labels.numpy() == label
        held_out = [int((own & ~member.mask).sum()) for member in members]
        assert max(held_out) - min(held_out) <= 1
    assert len({member.seed for member in members}) == n_folds
    assert all(torch.equal(member.labels, noisy.train.labels) for member in members)
    other = fold_members(noisy, SEED + 1, n_folds)
    assert any((a.mask != b.mask).any() for a, b in zip(members, other, strict=True))


def test_halves_are_complements_from_one_start(double):
    odd = replace(double, train=double.train[torch.arange(59)])
    first, second = half_members(odd, SEED)
    assert (first.mask ^ second.mask).all()
    assert (first.mask.sum(), second.mask.sum()) == (29, 30)
    assert first.seed == second.seed
    assert (half_members(odd, SEED + 1)[0].mask != first.mask).any()
    left = retrain("second_split", "mlp", [odd], SHORT, seeds=[SEED], n_jobs=1)[0]
    assert left["correct"].shape == (5, 59)


def test_repeats_have_all_samples_and_different_seeds(double):
    members = repeat_members(double, SEED)
    assert all(member.mask.all() for member in members)
    assert len({member.seed for member in members}) == len(members) == 10


def same(a, b, **close):
    assert set(a) == set(b)
    for name in a:
        assert a[name] == pytest.approx(b[name], **close) if close else (a[name] == b[name]).all()


def recorded_requests(monkeypatch):
    """Return a list that grows by the number of requests of each training."""
    trained, real = [], retrainings._train_ensembles

    def recorded(kind, model, data, members, *rest):
        trained.append(len(members))
        return real(kind, model, data, members, *rest)

    monkeypatch.setattr(retrainings, "_train_ensembles", recorded)
    return trained


def test_finished_trainings_are_cached(double, noisy, monkeypatch):
    first = retrain("folds", "mlp", [double, noisy], SHORT, seeds=[0, 1], n_jobs=1)
    trained = recorded_requests(monkeypatch)
    again = retrain("folds", "mlp", [noisy, double], replace(SHORT, seed=9), seeds=[1, 0], n_jobs=1)
    assert not trained  # in another order, and with another seed in the config
    same(again[0], first[1])
    same(again[1], first[0])
    more = retrain("folds", "mlp", [double, noisy, noisy], SHORT, seeds=[0, 1, 2], n_jobs=1)
    assert trained == [1]  # only the missing one
    same(more[1], first[1])
    for changed in ({"model": "mlp_bn"}, {"config": replace(SHORT, lr=0.01)}, {"kind": "repeats"}):
        settings = {"kind": "folds", "model": "mlp", "config": SHORT} | changed
        retrain(datasets=[double], seeds=[0], n_jobs=1, **settings)
    assert len(trained) == 4


def test_duplicate_requests_are_trained_once(double, monkeypatch):
    trained = recorded_requests(monkeypatch)
    left = retrain("folds", "mlp", [double, double], SHORT, seeds=[0, 0], n_jobs=1)
    assert trained == [1]
    same(*left)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_composition_of_ensembles_does_not_matter(double, noisy, monkeypatch, tmp_path, kind):
    config = replace(SHORT, epochs=3)
    together = retrain(kind, "mlp", [double, noisy, noisy], config, seeds=[0, 0, 1], n_jobs=1)
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(retrainings, "CPU_ENSEMBLE_SIZE", 4)
    for data, seed, left in zip((double, noisy, noisy), (0, 0, 1), together, strict=True):
        same(retrain(kind, "mlp", [data], config, seeds=[seed], n_jobs=1)[0], left, **CLOSE)


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter(tiny, monkeypatch, tmp_path):
    data, found = [tiny, tiny.with_noise(0.2)], []
    monkeypatch.setattr(retrainings, "CPU_ENSEMBLE_SIZE", 2)
    for n_jobs in (1, 2):
        monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / str(n_jobs)))
        left = retrain("folds", "mlp", data, SHORT, seeds=[0, 1], n_jobs=n_jobs)
        found.append(left)
    for one, two in zip(*found, strict=True):
        same(one, two)


def test_data_sets_with_other_images_are_not_mixed(double, monkeypatch, tmp_path):
    darker = replace(double, train=replace(double.train, images=double.train.images // 2))
    both = retrain("folds", "mlp", [double, darker], SHORT, seeds=[0, 0], n_jobs=1)
    assert np.abs(both[0]["logits"] - both[1]["logits"]).max() > 0.1
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / "other"))
    same(retrain("folds", "mlp", [darker], SHORT, seeds=[0], n_jobs=1)[0], both[1], **CLOSE)


def test_the_same_images_on_another_scale_are_not_mixed(double, monkeypatch, tmp_path):
    """Nor those with other classes: AUM's threshold samples have an additional one."""
    paler = replace(double, pixel_max=64.0)
    labels = double.train.labels.clone()
    labels[:6] = 3
    train = replace(double.train, labels=labels)
    more = replace(double, train=train, class_names=(*double.class_names, "three"))
    all_three = [double, paler, more]
    left = retrain("folds", "mlp", all_three, SHORT, seeds=[0, 0, 0], n_jobs=1)
    for i, data in enumerate(all_three):
        monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / str(i)))
        same(retrain("folds", "mlp", [data], SHORT, seeds=[0], n_jobs=1)[0], left[i], **CLOSE)


class Stopped(Exception):
    """Simulates a kill."""


def stopped_after(n, real, calls):
    def work(*given):
        if len(calls) == n:
            raise Stopped
        calls.append(1)
        return real(*given)

    return work


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_interruption_loses_only_the_ensemble_in_training(tiny, monkeypatch, tmp_path, kind):
    data, config = [tiny, tiny.with_noise(0.2)], replace(SHORT, epochs=3)
    settings = {"seeds": [0, 1], "n_jobs": 1}
    monkeypatch.setattr(retrainings, "CPU_ENSEMBLE_SIZE", 2)
    whole = retrain(kind, "mlp", data, config, **settings)
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / "other"))
    real, calls = retrainings._train_and_store, []
    monkeypatch.setattr(retrainings, "_train_and_store", stopped_after(1, real, calls))
    with pytest.raises(Stopped):
        retrain(kind, "mlp", data, config, **settings)
    monkeypatch.setattr(retrainings, "_train_and_store", stopped_after(99, real, calls))
    for one, two in zip(whole, retrain(kind, "mlp", data, config, **settings), strict=True):
        same(one, two)  # bit for bit
    sizes = [len(KINDS[kind].members(d, s)) for d, s in zip(data, (0, 1), strict=True)]
    assert sum(sizes) // 2 <= len(calls) <= sum(sizes) // 2 + 1  # each ensemble once
    assert store.Store().clear() == 2  # the requests only: the ensembles are removed


def test_a_kill_among_the_last_writes_trains_nothing_again(tiny, monkeypatch, tmp_path):
    """The missing request alone would be another ensemble, with other rounding."""
    data, real = [tiny, tiny.with_noise(0.2)], store.Store.put
    settings = {"seeds": [0, 1], "n_jobs": 1}
    whole = retrain("folds", "mlp", data, SHORT, **settings)
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / "other"))
    put = []

    def full(self, key, artifact):
        put.extend([] if "." in key else [key])
        if len(put) == 2:
            raise Stopped
        real(self, key, artifact)

    monkeypatch.setattr(store.Store, "put", full)
    with pytest.raises(Stopped):
        retrain("folds", "mlp", data, SHORT, **settings)
    monkeypatch.setattr(store.Store, "put", real)
    monkeypatch.setattr(retrainings, "_train_and_store", None)
    for one, two in zip(whole, retrain("folds", "mlp", data, SHORT, **settings), strict=True):
        same(one, two)


def test_ensembles_left_after_a_kill_are_removed(tiny, monkeypatch, tmp_path):
    """A kill after the last artifact, and one during the removal of an ensemble."""
    data, real = [tiny, tiny.with_noise(0.2)], store.Store.tidy
    settings = {"seeds": [0, 1], "n_jobs": 1}
    monkeypatch.setattr(retrainings, "CPU_ENSEMBLE_SIZE", 2)
    monkeypatch.setattr(store.Store, "tidy", lambda *_: None)
    retrain("folds", "mlp", data, SHORT, **settings)
    stacks = list(tmp_path.glob("folds-*.*"))
    assert len(stacks) == 3
    os.replace(stacks[0], tmp_path / f".{stacks[0].name}.77.part")
    monkeypatch.setattr(store.Store, "tidy", real)
    retrain("folds", "mlp", data, SHORT, **settings)
    assert sorted(p.name[:6] for p in tmp_path.iterdir()) == [".locks", "folds-", "folds-"]


def test_invalid_arguments_are_refused(double):
    with pytest.raises(ValueError, match=r"unknown kind 'fold'; known: folds, samis, second_split"):
        retrain("fold", "mlp", [double], SHORT, seeds=[0])
    with pytest.raises(ValueError, match=r"1 data sets and 2 seeds: pass one seed each"):
        retrain("folds", "mlp", [double], SHORT, seeds=[0, 1])
    with pytest.raises(ValueError, match=r"unknown model 'vgg'"):
        retrain("folds", "vgg", [double], SHORT, seeds=[0], n_jobs=1)
    single = double.train[
        torch.tensor([int((double.train.labels == c).nonzero()[0]) for c in range(3)])
    ]
    with pytest.raises(ValueError, match=r"the 3 training samples of .* have 3 different labels"):
        fold_members(replace(double, train=single), SEED)
