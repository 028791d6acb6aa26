"""Networks that memorize nothing, or everything; planted leaks; metrics by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import memlens as ml
from memlens.attacks import membership, privacy, shadows
from memlens.ensembles import subsets
from memlens.ensembles.model_ensemble import ModelEnsemble, train_ensemble
from memlens.ensembles.queries import Queries
from memlens.ensembles.subsets import subset_masks
from memlens.evaluation import detection
from memlens.storage import store
from memlens.training.config import TrainConfig

N_MODELS = 44
LONG = TrainConfig(epochs=150, batch_size=16, lr=0.05)
SETTING = {"n_targets": 12, "n_shadows": 32}


@pytest.fixture(scope="module")
def noise():
    """Two hundred digits with random labels, which can only be memorized."""
    data = ml.load("digits")
    train = data.train[torch.arange(200)]
    labels = torch.randint(10, (200,), generator=torch.Generator().manual_seed(0))
    return replace(data, train=replace(train, labels=labels), test=data.test[torch.arange(40)])


@pytest.fixture(scope="module")
def memorizing(noise, tmp_path_factory):
    """A sweep of networks on halves of it, trained until they memorize every label."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        queries = Queries(("last", "weight_norm", 1), ("identity", "left"), n_directions=2)
        return ml.subset_sweep(
            "mlp", noise, n_models=N_MODELS, keep=0.5, config=LONG, queries=queries, n_jobs=1
        )


@pytest.mark.slow
def test_networks_that_memorize_everything_leak_everything(memorizing):
    assert memorizing.correct[memorizing.masks].mean() > 0.99
    setup = privacy.attack_setup(memorizing, augmentations=["identity"], **SETTING)
    table = privacy.evaluate_attacks(setup.members, privacy.run_attacks(setup))
    auroc = table["auroc"].groupby(level="attack").mean()
    assert set(auroc.index) == set(membership.ATTACKS)
    assert auroc[["lira", "lira_offline", "mast", "yeom"]].min() > 0.95
    assert auroc["lira"] > 0.99
    # it subtracts the mean loss without the sample, which differs between samples by chance
    assert auroc["calibrated_loss"] > 0.9
    # these do not use the label: confidence and flatness are as high for a wrong prediction
    assert auroc[["curvature", "curvature_lr", "lira_csg"]].min() > 0.75
    assert table["balanced_accuracy"].xs("lira", level="attack").min() > 0.95
    assert memorizing.memorization()["memorization"].mean() > 0.7


@pytest.mark.slow
def test_random_members_are_at_chance(memorizing):
    """The same attacks and networks, but members independent of the training."""
    setup = privacy.attack_setup(memorizing, augmentations=["identity"], **SETTING)
    anew = subset_masks(len(setup.members), setup.members.shape[1], 0.5, seed=99)
    scores = privacy.run_attacks(setup._replace(members=anew))
    for name, rows in scores.items():
        low, high = detection.auroc_interval(anew.ravel(), rows.ravel(), confidence=0.999)
        assert low < 0.5 < high, name


@pytest.mark.slow
def test_networks_that_memorize_nothing_leak_nothing(noise):
    """Labels are drawn anew after each epoch, so that nothing can be memorized."""
    masks = subset_masks(N_MODELS, 200, 0.5)
    seeds = np.arange(N_MODELS)
    labels = noise.train.labels.repeat(N_MODELS, 1)
    generator = torch.Generator().manual_seed(1)
    redraw = lambda: labels.random_(0, 10, generator=generator)  # noqa: E731
    ensemble = ModelEnsemble.build("mlp", noise, seeds)
    train_ensemble(ensemble, noise, masks, replace(LONG, lr=0.02), seeds, labels=labels,
                   after_epoch=redraw)  # fmt: skip
    logits = ensemble.predict(noise).numpy()[:, None]
    first, y, settings = N_MODELS - 12, noise.train.labels.numpy(), {"labels": "redrawn"}
    of_shadows = shadows.Shadows(masks[:first], logits[:first], y, settings)
    targets = [shadows.Target(logits[t], y, settings) for t in range(first, N_MODELS)]
    setup = privacy.AttackSetup(targets, masks[first:], of_shadows)
    for name, rows in privacy.run_attacks(setup).items():
        low, high = detection.auroc_interval(setup.members.ravel(), rows.ravel(), confidence=0.999)
        assert low < 0.5 < high, name


@pytest.mark.slow
def test_longer_training_leaks_more(memorizing):
    table = privacy.evaluate_snapshots(
        memorizing, augmentations=["identity"], attacks={"lira": membership.lira}, **SETTING
    )
    assert list(table.index.names) == ["snapshot", "target", "attack"]
    auroc = table["auroc"].groupby(level="snapshot").mean()
    assert auroc[1] < 0.7 < auroc["last"]


@pytest.mark.slow
def test_leak_and_accuracy_are_those_of_the_targets(memorizing):
    options = {"n_targets": 3, "n_shadows": 24, "augmentations": ["identity"]}
    table = privacy.leak_and_accuracy(memorizing, (1, "last"), **options)
    assert table.index.tolist() == [(s, t) for s in (1, "last") for t in range(3)]
    assert table.loc[1, "epochs"].tolist() == [1, 1, 1]
    left_out = memorizing.held_out(1, models=[41, 42, 43])
    right = (left_out.logits.argmax(1) == left_out.y_true).reshape(3, -1).mean(axis=1)
    assert table.loc[1, "accuracy"].to_numpy() == pytest.approx(right)
    attacks = {"lira": membership.lira}
    leak = privacy.evaluate_snapshots(memorizing, ("last",), attacks=attacks, **options)["auroc"]
    assert table.loc["last", "auroc"].to_numpy() == pytest.approx(leak.to_numpy())
    by_yeom = privacy.leak_and_accuracy(memorizing, ("last",), attack=membership.yeom, **options)
    assert not np.allclose(by_yeom["auroc"], table.loc["last", "auroc"])


@pytest.mark.slow
def test_targets_and_shadows_are_disjoint_networks_of_one_sweep(memorizing):
    targets, members, known = privacy.attack_setup(
        memorizing, "weight_norm", n_targets=3, n_shadows=24
    )
    assert np.array_equal(members, memorizing.masks[-3:])
    assert np.array_equal(known.masks, memorizing.masks[:24])
    assert np.array_equal(known.logits, memorizing.logits_at("weight_norm")[:24])
    assert np.array_equal(targets[0].logits, memorizing.logits_at("weight_norm")[-3])
    assert np.array_equal(targets[2].curvature, memorizing.arrays["curvature/weight_norm"][-1])
    assert targets[0].settings["snapshot"] == known.settings["snapshot"] == "weight_norm"
    assert targets[0].settings["weight_decay"] == 1e-3
    one = privacy.attack_setup(memorizing, augmentations=["left"], n_targets=1, n_shadows=24)
    assert np.array_equal(one.shadows.logits[:, 0], memorizing.logits_at("last")[:24, 1])
    early = privacy.attack_setup(memorizing, 1, n_targets=1, n_shadows=24)
    assert early.targets[0].curvature is None
    assert "curvature" not in privacy.run_attacks(early)


@pytest.mark.slow
def test_shadows_of_another_snapshot_are_refused_unless_requested(memorizing):
    options = {"n_targets": 2, "n_shadows": 24, "augmentations": ["identity"]}
    here, there = (
        privacy.attack_setup(memorizing, stop, **options) for stop in ("weight_norm", "last")
    )
    with pytest.raises(
        ValueError, match="snapshot is 'weight_norm' in the target, 'last' in the shadows"
    ):
        membership.lira(here.targets[0], there.shadows)
    posing = privacy.attack_setup(memorizing, "weight_norm", shadow_snapshot="last", **options)
    assert np.array_equal(posing.shadows.logits, there.shadows.logits)
    assert np.array_equal(posing.targets[1].logits, here.targets[1].logits)
    membership.lira(posing.targets[0], posing.shadows)


@pytest.mark.slow
def test_masks_that_leak_the_members_are_refused(memorizing):
    setup = privacy.attack_setup(memorizing, **SETTING)
    privacy.check_leak(setup.members, setup.shadows)  # independent ones pass
    for leaked, what in ((setup.members[3], "members"), (~setup.members[3], "non-members")):
        masks = setup.shadows.masks.copy()
        masks[5] = leaked
        planted = setup._replace(shadows=replace(setup.shadows, masks=masks))
        with pytest.raises(ValueError, match=f"shadow 5 .* exactly the {what} of target 3"):
            privacy.run_attacks(planted)
    rng = np.random.default_rng(0)
    known = setup.shadows.masks ^ (rng.random(setup.shadows.masks.shape) < 0.2)
    known = np.where(rng.random(known.shape) < 0.2, setup.members[1], known)  # each a little
    planted = setup._replace(shadows=replace(setup.shadows, masks=known))
    with pytest.raises(
        ValueError, match=r"the shadows leak the members of target 1: .* membership \(\+0"
    ):
        privacy.run_attacks(planted)


@pytest.mark.slow
def test_a_target_among_the_shadows_is_refused(memorizing):
    setup = privacy.attack_setup(memorizing, n_targets=2, n_shadows=24)
    mixed = replace(setup.shadows, logits=memorizing.logits_at("last")[-24:])
    with pytest.raises(ValueError, match="those of shadow 22: the target is one of its own"):
        privacy.run_attacks(setup._replace(shadows=mixed))


def test_metrics_depend_on_the_resolution_of_the_samples():
    """5,000 non-members resolve 1e-3 and 1e-2, not 1e-4; 1,000 members rank first."""
    member = np.r_[np.ones(2000, bool), np.zeros(5000, bool)]
    score = np.r_[np.full(1000, 2.0), np.linspace(0.001, 1, 1000), np.linspace(0, 1.0005, 5000)]
    table = privacy.evaluate_attacks(member[None], {"attack": score[None]}).iloc[0]
    assert np.isnan(table["tpr_at_0.0001"])
    assert table["tpr_at_0"] == 0.5
    assert table["tpr_at_0.001"] == pytest.approx(detection.tpr_at_fpr(member, score, 0.001))
    assert table["tpr_at_0.01"] == pytest.approx(0.505, abs=0.001)
    assert table["finest_fpr"] == 1 / 5000
    assert table["auroc"] == pytest.approx(detection.auroc(member, score))
    few = privacy.evaluate_attacks(member[None, :2700], {"attack": score[None, :2700]}).iloc[0]
    assert few[["tpr_at_0.0001", "tpr_at_0.001"]].isna().all() and few["finest_fpr"] == 1 / 700


def test_pooled_targets_are_evaluated_as_one_and_resolve_more():
    rng = np.random.default_rng(0)
    members = rng.random((3, 400)) < 0.5
    scores = {"attack": rng.normal(size=(3, 400)) + members}
    table = privacy.evaluate_attacks(members, scores, pooled=True)
    assert table.index.tolist() == [("all", "attack")]
    row, score = table.iloc[0], scores["attack"].ravel()
    assert row["auroc"] == pytest.approx(detection.auroc(members.ravel(), score))
    assert row["tpr_at_0.01"] == pytest.approx(detection.tpr_at_fpr(members.ravel(), score, 0.01))
    assert row["finest_fpr"] == 1 / (~members).sum()
    assert row["finest_fpr"] < privacy.evaluate_attacks(members, scores)["finest_fpr"].min() / 2


def test_each_attack_is_evaluated_from_the_number_of_references_that_it_needs(setup):
    target, shadows = setup(n_models=64, n_samples=400)
    member = np.random.default_rng(0).random(400) < 0.5
    logits = target.logits.copy()  # planted: members are fitted, others are not
    logits[:, np.arange(400), target.y_true] += np.where(member, 2.0, -2.0)
    planted = privacy.AttackSetup([replace(target, logits=logits)], member[None], shadows)
    attacks = {name: membership.ATTACKS[name] for name in ("lira", "mast", "rmia_offline")}
    table = privacy.evaluate_references(planted, (1, 2, 4, 64), attacks=attacks)["auroc"]
    defined = {size: set(rows.index.get_level_values("attack"))
               for size, rows in table.groupby(level="n_references")}  # fmt: skip
    assert defined == {1: {"rmia_offline"}, 2: {"rmia_offline", "mast"},
                       4: {*attacks}, 64: {*attacks}}  # fmt: skip
    whole = privacy.evaluate_attacks(planted.members, privacy.run_attacks(planted, attacks))
    assert table.loc[64].equals(whole["auroc"])
    assert table.min() > 0.7  # a chance of 0.5
    both = privacy.evaluate_references(planted, (2, 62), attacks=attacks)
    assert both.index.unique("n_references").tolist() == [2]  # no sample has 31 on each side
    with pytest.raises(ValueError, match="128 references of 64 shadows"):
        privacy.evaluate_references(planted, (128,))


def test_members_found_at_a_rate_by_hand():
    """Two targets of one scale: with 4 non-members, one false positive is a rate of 0.25."""
    members = np.array([[1, 1, 0, 0], [0, 1, 1, 0]], dtype=bool)
    scores = np.array([[0.9, 0.2, 0.5, 0.1], [0.8, 0.85, 0.6, 0.0]])
    strict = privacy.found_members(members, scores, 0.0)
    assert strict.tolist() == [[True, False, False, False], [False, True, False, False]]
    assert privacy.found_members(members, scores, 0.24).tolist() == strict.tolist()
    one = privacy.found_members(members, scores, 0.25)  # above 0.5, the next non-member
    assert one.tolist() == [[True, False, False, False], [False, True, True, False]]
    assert np.array_equal(privacy.found_members(members, scores, 1.0), members)
    rate = detection.tpr_at_fpr(members.ravel(), scores.ravel(), 0.25)
    assert one.sum() / members.sum() == rate
    tied = np.where(members, 0.5, 0.5)
    assert not privacy.found_members(members, tied, 0.5).any()


def test_precision_of_scores_is_the_mean_over_targets():
    """Half of six members: the good score has all three found ones first, the bad one none."""
    members = np.array([[1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1]], dtype=bool)
    found = np.array([[1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 1, 0, 0]], dtype=bool)
    scores = pd.DataFrame({"good": [8, 7, 6, 3, 2, 1, 9, 9], "bad": [1, 2, 3, 7, 8, 6, 0, 0.5]})
    table = privacy.precision_of_scores(scores, members, found, (0.5,))
    # target 1: members 2 to 7 by "good": 6, 7 (9 each), 2 (found), ...; by "bad": 4, 3, 5 (found)
    assert table["precision_at_0.5"].to_dict() == pytest.approx(
        {"good": (1 + 1 / 3) / 2, "bad": (0 + 1 / 3) / 2}
    )
    nothing = privacy.precision_of_scores(scores, members, found & False)
    assert nothing.isna().all(axis=None) and nothing.index.tolist() == ["good", "bad"]


def test_auroc_by_groups_is_auroc_of_each_group():
    rng = np.random.default_rng(0)
    values, members = rng.random(300), rng.random((4, 300)) < 0.5
    scores = rng.normal(size=(4, 300)) + members * 3 * values
    edges = np.array([0, 0.25, 0.5, 1])
    table = privacy.auroc_by(values, members, scores, edges)
    for b, row in table.iterrows():
        chosen = (values >= edges[b]) & (values < edges[b + 1])
        expected = detection.auroc(members[:, chosen].ravel(), scores[:, chosen].ravel())
        assert row["auroc"] == pytest.approx(expected)
        assert row["auroc_low"] < expected < row["auroc_high"]
        assert row["n_samples"] == chosen.sum()
        assert row["value"] == pytest.approx(values[chosen].mean())
    assert table["auroc"].is_monotonic_increasing
    last = privacy.auroc_by(np.full(300, 1.0), members, scores, edges)
    assert last["left"].tolist() == [0.5]  # the last bin is closed, empty ones are absent
    rest = np.where(values < 0.25, -1.0, values)
    assert privacy.auroc_by(rest, members, scores, edges)["n_samples"].sum() < 300


@pytest.mark.slow
def test_the_c_score_is_held_out_accuracy(memorizing):
    table = memorizing.memorization()
    assert np.array_equal(memorizing.c_score(), table["out_accuracy"], equal_nan=True)
    never_out = memorizing.masks.copy()
    never_out[:, 0] = True
    assert np.isnan(replace(memorizing, masks=never_out).c_score().iloc[0])


@pytest.mark.slow
def test_held_out_predictions_are_those_of_networks_without_the_sample(memorizing):
    pairs = memorizing.held_out("weight_norm")
    assert len(pairs.sample) == (~memorizing.masks).sum() == 44 * 100
    k, logits = 0, memorizing.logits_at("weight_norm")
    for m, mask in enumerate(memorizing.masks):
        for i in np.flatnonzero(~mask):
            assert (pairs.sample[k], pairs.y_true[k]) == (i, memorizing.y_true[i])
            assert np.array_equal(pairs.logits[k], logits[m, 0, i])
            k += 1
    some = memorizing.held_out("weight_norm", models=[3, 5])
    assert np.array_equal(some.logits, np.r_[pairs.logits[300:400], pairs.logits[500:600]])


def test_queries_are_part_of_the_key(noise, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    short = {"n_models": 2, "config": TrainConfig(epochs=2), "n_jobs": 1}
    first = ml.subset_sweep("mlp", noise, **short)
    other = ml.subset_sweep("mlp", noise, queries=Queries(("last", 1)), **short)
    assert np.array_equal(first.logits, other.logits)
    assert len(list(store.Store().folder.glob("sweep-*"))) == 2
    with pytest.raises(ValueError, match=r"no predictions at snapshot 1; available: \('last',\)"):
        first.logits_at(1)
    again = ml.subset_sweep("mlp", noise, **(short | {"config": TrainConfig(epochs=2, seed=7)}))
    assert np.array_equal(first.logits, again.logits)  # the config's seed is not used


@pytest.mark.slow
def test_impossible_setups_are_refused(memorizing):
    with pytest.raises(ValueError, match="40 targets and 8 shadows of a sweep of 44 networks"):
        privacy.attack_setup(memorizing, n_targets=40, n_shadows=8)
    with pytest.raises(ValueError, match="no predictions at snapshot 'best_val'"):
        privacy.attack_setup(memorizing, "best_val", **SETTING)
    with pytest.raises(
        ValueError, match=r"augmentations \['flip'\] at snapshot 'last'; .* identity"
    ):
        privacy.attack_setup(memorizing, augmentations=["flip"], **SETTING)
    with pytest.raises(ValueError, match=r"augmentations \['left'\] at snapshot 1; .* identity"):
        privacy.attack_setup(memorizing, 1, augmentations=["identity", "left"], **SETTING)
    with pytest.raises(ValueError, match="4 targets and 3 shadows"):
        privacy.attack_setup(memorizing, n_targets=4, n_shadows=3)


@pytest.mark.slow
def test_shadows_with_other_augmentations_are_refused(memorizing):
    here, there = (
        privacy.attack_setup(memorizing, augmentations=[v], **SETTING) for v in ("identity", "left")
    )
    with pytest.raises(
        ValueError, match=r"augmentations is \('identity',\) in the target, \('left',\)"
    ):
        membership.lira(here.targets[0], there.shadows)


def test_invalid_scores_and_edges_are_refused():
    members, scores = np.eye(2, 4, dtype=bool), np.zeros((3, 4))
    with pytest.raises(ValueError, match=r"members have shape \(2, 4\), scores .*\(3, 4\)"):
        privacy.evaluate_attacks(members, {"attack": scores})
    with pytest.raises(ValueError, match="expected two or more, increasing"):
        privacy.auroc_by(np.zeros(4), members, scores[:2], np.array([1.0, 0.0]))


def test_a_rate_of_one_false_positive_is_resolved():
    """1,000 non-members resolve 1e-3, with one false positive; 999 do not."""
    for n_others, shown in ((1000, True), (999, False)):
        member = np.r_[np.ones(10, bool), np.zeros(n_others, bool)][None]
        score = np.r_[np.full(10, 0.5), 1.0, np.zeros(n_others - 1)][None]
        rate = privacy.evaluate_attacks(member, {"attack": score})["tpr_at_0.001"].item()
        assert rate == 1 if shown else np.isnan(rate)


def test_values_on_an_edge_are_in_the_bin_to_its_right():
    values = np.array([0.0, 0.5, 0.5, 0.5, 1.0, 1.0])
    members = np.array([[1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]], dtype=bool)
    table = privacy.auroc_by(values, members, members.astype(float), np.array([0, 0.5, 1]))
    assert table["n_samples"].tolist() == [1, 5]


@pytest.mark.parametrize("change", [{"seed": 1}, {"n_models": 3}, {"keep": 0.5}])
def test_arguments_are_part_of_the_key(noise, tmp_path, monkeypatch, change):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    setting = {"n_models": 2, "config": TrainConfig(epochs=1), "n_jobs": 1}
    first = ml.subset_sweep("mlp", noise, **setting)
    other = ml.subset_sweep("mlp", noise, **(setting | change))
    assert len(list(store.Store().folder.glob("sweep-*"))) == 2
    assert not np.array_equal(first.logits, other.logits)


@pytest.mark.slow
def test_a_sweep_with_snapshots_does_not_depend_on_processes(noise, tmp_path, monkeypatch):
    monkeypatch.setattr(subsets, "CPU_ENSEMBLE_SIZE", 2)
    queries = Queries(("weight_norm", "best_val", "last", 1), ("identity", "left"), 1)
    found = []
    for n in (1, 2):
        monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / str(n)))
        setting = {"n_models": 4, "config": TrainConfig(epochs=3), "queries": queries}
        found.append(ml.subset_sweep("mlp_bn", noise, n_jobs=n, **setting).arrays)
    assert found[0].keys() == found[1].keys()
    for name, array in found[0].items():
        assert np.array_equal(array, found[1][name], equal_nan=True), name
