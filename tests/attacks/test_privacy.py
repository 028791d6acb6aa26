"""ModelEnsemble that memorize nothing and nets that memorize everything; planted leaks; measures by hand."""

from dataclasses import replace

import numpy as np
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

N_NETS = 44
LONG = TrainConfig(epochs=150, batch_size=16, lr=0.05)
SETTING = {"n_targets": 12, "n_shadows": 32}


@pytest.fixture(scope="module")
def noise():
    """Two hundred digits with labels at random: nothing about them can be learned but by heart."""
    data = ml.load("digits")
    train = data.train[torch.arange(200)]
    labels = torch.randint(10, (200,), generator=torch.Generator().manual_seed(0))
    return replace(data, train=replace(train, labels=labels), test=data.test[torch.arange(40)])


@pytest.fixture(scope="module")
def by_heart(noise, tmp_path_factory):
    """A sweep of nets on halves of it, trained until they know every label."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        queries = Queries(("last", "peak", 1), ("identity", "left"), n_directions=2)
        return ml.subset_sweep(
            "mlp", noise, n_models=N_NETS, keep=0.5, config=LONG, queries=queries, n_jobs=1
        )


def test_nets_that_memorize_everything_leak_everything(by_heart):
    assert by_heart.correct[by_heart.masks].mean() > 0.99
    setup = privacy.attack_setup(by_heart, augmentations=["identity"], **SETTING)
    table = privacy.evaluate_attacks(setup.members, privacy.run_attacks(setup))
    auroc = table["auroc"].groupby(level="attack").mean()
    assert set(auroc.index) == set(membership.ATTACKS)
    assert auroc[["lira", "lira_offline", "mast", "yeom"]].min() > 0.95
    assert auroc["lira"] > 0.99
    # it subtracts the mean loss without the sample, which differs between samples by chance
    assert auroc["calibrated_loss"] > 0.9
    # these do not look at the label: a net is as sure, and as flat, around a wrong answer
    assert auroc[["curvature", "curvature_lr", "lira_csg"]].min() > 0.75
    assert table["balanced_accuracy"].xs("lira", level="attack").min() > 0.95
    assert by_heart.memorization()["memorization"].mean() > 0.7


def test_members_drawn_anew_are_at_chance(by_heart):
    """The same attacks and nets, but members that have nothing to do with the training."""
    setup = privacy.attack_setup(by_heart, augmentations=["identity"], **SETTING)
    anew = subset_masks(len(setup.members), setup.members.shape[1], 0.5, seed=99)
    scores = privacy.run_attacks(setup._replace(members=anew))
    for name, rows in scores.items():
        low, high = detection.auroc_interval(anew.ravel(), rows.ravel(), confidence=0.999)
        assert low < 0.5 < high, name


def test_nets_that_memorize_nothing_leak_nothing(noise):
    """The members' labels are drawn anew after each epoch: there is nothing to know by heart."""
    masks = subset_masks(N_NETS, 200, 0.5)
    seeds = np.arange(N_NETS)
    labels = noise.train.labels.repeat(N_NETS, 1)
    generator = torch.Generator().manual_seed(1)
    redraw = lambda: labels.random_(0, 10, generator=generator)  # noqa: E731
    ensemble = ModelEnsemble.build("mlp", noise, seeds)
    train_ensemble(ensemble, noise, masks, replace(LONG, lr=0.02), seeds, labels=labels,
                   after_epoch=redraw)  # fmt: skip
    logits = ensemble.predict(noise).numpy()[:, None]
    first, y, settings = N_NETS - 12, noise.train.labels.numpy(), {"labels": "redrawn"}
    nets_known = shadows.Shadows(masks[:first], logits[:first], y, settings)
    targets = [shadows.Target(logits[t], y, settings) for t in range(first, N_NETS)]
    setup = privacy.AttackSetup(targets, masks[first:], nets_known)
    for name, rows in privacy.run_attacks(setup).items():
        low, high = detection.auroc_interval(setup.members.ravel(), rows.ravel(), confidence=0.999)
        assert low < 0.5 < high, name


def test_a_net_that_knows_more_leaks_more(by_heart):
    table = privacy.evaluate_snapshots(
        by_heart, augmentations=["identity"], attacks={"lira": membership.lira}, **SETTING
    )
    assert list(table.index.names) == ["stop", "target", "attack"]
    auroc = table["auroc"].groupby(level="stop").mean()
    assert auroc[1] < 0.7 < auroc["last"]


def test_the_stage_is_set_from_one_sweep_and_no_net_plays_twice(by_heart):
    targets, members, known = privacy.attack_setup(by_heart, "peak", n_targets=3, n_shadows=24)
    assert np.array_equal(members, by_heart.masks[-3:])
    assert np.array_equal(known.masks, by_heart.masks[:24])
    assert np.array_equal(known.logits, by_heart.logits_at("peak")[:24])
    assert np.array_equal(targets[0].logits, by_heart.logits_at("peak")[-3])
    assert np.array_equal(targets[2].curvature, by_heart.arrays["curvature/peak"][-1])
    assert targets[0].settings["snapshot"] == known.settings["snapshot"] == "peak"
    assert targets[0].settings["weight_decay"] == 1e-4
    one = privacy.attack_setup(by_heart, augmentations=["left"], n_targets=1, n_shadows=24)
    assert np.array_equal(one.shadows.logits[:, 0], by_heart.logits_at("last")[:24, 1])
    early = privacy.attack_setup(by_heart, 1, n_targets=1, n_shadows=24)
    assert early.targets[0].curvature is None
    assert "curvature" not in privacy.run_attacks(early)


def test_shadows_of_another_stop_are_refused_unless_asked_for(by_heart):
    options = {"n_targets": 2, "n_shadows": 24, "augmentations": ["identity"]}
    here, there = (privacy.attack_setup(by_heart, stop, **options) for stop in ("peak", "last"))
    with pytest.raises(ValueError, match="snapshot is 'peak' in the target, 'last' in the shadows"):
        membership.lira(here.targets[0], there.shadows)
    posing = privacy.attack_setup(by_heart, "peak", shadow_snapshot="last", **options)
    assert np.array_equal(posing.shadows.logits, there.shadows.logits)
    assert np.array_equal(posing.targets[1].logits, here.targets[1].logits)
    membership.lira(posing.targets[0], posing.shadows)


def test_masks_that_leak_into_the_shadows_are_caught(by_heart):
    setup = privacy.attack_setup(by_heart, **SETTING)
    privacy.check_leak(setup.members, setup.shadows)  # independent ones pass
    for leaked, what in ((setup.members[3], "members"), (~setup.members[3], "non-members")):
        masks = setup.shadows.masks.copy()
        masks[5] = leaked
        planted = setup._replace(shadows=replace(setup.shadows, masks=masks))
        with pytest.raises(ValueError, match=f"shadow 5 .* exactly the {what} of target 3"):
            privacy.run_attacks(planted)
    rng = np.random.default_rng(0)
    known = setup.shadows.masks ^ (rng.random(setup.shadows.masks.shape) < 0.2)
    known = np.where(rng.random(known.shape) < 0.2, setup.members[1], known)  # a little, each
    planted = setup._replace(shadows=replace(setup.shadows, masks=known))
    with pytest.raises(ValueError, match=r"the shadows know target 1: .* membership \(\+0"):
        privacy.run_attacks(planted)


def test_a_target_among_the_shadows_is_caught(by_heart):
    setup = privacy.attack_setup(by_heart, n_targets=2, n_shadows=24)
    mixed = replace(setup.shadows, logits=by_heart.logits_at("last")[-24:])
    with pytest.raises(ValueError, match="exactly like shadow 22: it is one of its own shadows"):
        privacy.run_attacks(setup._replace(shadows=mixed))


def test_measures_say_what_the_samples_can_resolve():
    """Five thousand others show 1e-3 and 1e-2, not 1e-4; the first thousand members come first."""
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


def test_pooled_targets_are_judged_as_one_and_resolve_more():
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


def test_one_sweep_serves_memorization_and_the_c_score_too(by_heart):
    table = by_heart.memorization()
    assert np.array_equal(by_heart.c_score(), table["out_accuracy"], equal_nan=True)
    other = replace(by_heart, masks=~by_heart.masks)
    both = subsets.c_score([by_heart, other])
    assert both.to_numpy() == pytest.approx((table.out_accuracy + table.in_accuracy) / 2)
    never_out = by_heart.masks.copy()
    never_out[:, 0] = True
    assert np.isnan(subsets.c_score([by_heart, replace(by_heart, masks=never_out)]).iloc[0])
    with pytest.raises(ValueError, match="found 0 sweeps"):
        subsets.c_score([])
    with pytest.raises(ValueError, match="of the same samples"):
        subsets.c_score([by_heart, replace(by_heart, index=by_heart.index + 1)])


def test_held_out_predictions_are_those_of_nets_without_the_sample(by_heart):
    pairs = by_heart.held_out("peak")
    assert len(pairs.sample) == (~by_heart.masks).sum() == 44 * 100
    k, logits = 0, by_heart.logits_at("peak")
    for m, mask in enumerate(by_heart.masks):
        for i in np.flatnonzero(~mask):
            assert (pairs.sample[k], pairs.y_true[k]) == (i, by_heart.y_true[i])
            assert np.array_equal(pairs.logits[k], logits[m, 0, i])
            k += 1
    some = by_heart.held_out("peak", models=[3, 5])
    assert np.array_equal(some.logits, np.r_[pairs.logits[300:400], pairs.logits[500:600]])


def test_a_sweep_asked_otherwise_is_another_piece(noise, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    short = {"n_models": 2, "config": TrainConfig(epochs=2), "n_jobs": 1}
    first = ml.subset_sweep("mlp", noise, **short)
    other = ml.subset_sweep("mlp", noise, queries=Queries(("last", 1)), **short)
    assert np.array_equal(first.logits, other.logits)
    assert len(list(store.Store().folder.glob("sweep-*"))) == 2
    with pytest.raises(ValueError, match=r"nothing was asked at 1; there is: \('last',\)"):
        first.logits_at(1)
    again = ml.subset_sweep("mlp", noise, **(short | {"config": TrainConfig(epochs=2, seed=7)}))
    assert np.array_equal(first.logits, again.logits)  # the config's seed is not used


def test_a_stage_that_cannot_be_set_is_named(by_heart):
    with pytest.raises(ValueError, match="40 targets and 8 shadows of a sweep of 44 nets"):
        privacy.attack_setup(by_heart, n_targets=40, n_shadows=8)
    with pytest.raises(ValueError, match="nothing was asked at 'best_val'"):
        privacy.attack_setup(by_heart, "best_val", **SETTING)
    with pytest.raises(
        ValueError, match=r"augmentations \['flip'\] were not asked at 'last'; .* identity"
    ):
        privacy.attack_setup(by_heart, augmentations=["flip"], **SETTING)
    with pytest.raises(
        ValueError, match=r"augmentations \['left'\] were not asked at 1; .* identity"
    ):
        privacy.attack_setup(by_heart, 1, augmentations=["identity", "left"], **SETTING)
    with pytest.raises(ValueError, match="4 targets and 3 shadows"):
        privacy.attack_setup(by_heart, n_targets=4, n_shadows=3)


def test_shadows_asked_in_other_views_are_refused(by_heart):
    here, there = (
        privacy.attack_setup(by_heart, augmentations=[v], **SETTING) for v in ("identity", "left")
    )
    with pytest.raises(
        ValueError, match=r"augmentations is \('identity',\) in the target, \('left',\)"
    ):
        membership.lira(here.targets[0], there.shadows)


def test_scores_and_edges_that_do_not_fit_are_named():
    members, scores = np.eye(2, 4, dtype=bool), np.zeros((3, 4))
    with pytest.raises(ValueError, match=r"members have shape \(2, 4\), scores .*\(3, 4\)"):
        privacy.evaluate_attacks(members, {"attack": scores})
    with pytest.raises(ValueError, match="two or more that rise"):
        privacy.auroc_by(np.zeros(4), members, scores[:2], np.array([1.0, 0.0]))


def test_a_rate_that_one_false_alarm_makes_can_be_shown():
    """A thousand others show 1e-3, with one false alarm; 999 do not."""
    for n_others, shown in ((1000, True), (999, False)):
        member = np.r_[np.ones(10, bool), np.zeros(n_others, bool)][None]
        score = np.r_[np.full(10, 0.5), 1.0, np.zeros(n_others - 1)][None]
        rate = privacy.evaluate_attacks(member, {"attack": score})["tpr_at_0.001"].item()
        assert rate == 1 if shown else np.isnan(rate)


def test_values_on_an_edge_fall_to_its_right():
    values = np.array([0.0, 0.5, 0.5, 0.5, 1.0, 1.0])
    members = np.array([[1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]], dtype=bool)
    table = privacy.auroc_by(values, members, members.astype(float), np.array([0, 0.5, 1]))
    assert table["n_samples"].tolist() == [1, 5]


@pytest.mark.parametrize("change", [{"seed": 1}, {"n_models": 3}, {"keep": 0.5}])
def test_what_shapes_a_sweep_is_in_its_key(noise, tmp_path, monkeypatch, change):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    setting = {"n_models": 2, "config": TrainConfig(epochs=1), "n_jobs": 1}
    first = ml.subset_sweep("mlp", noise, **setting)
    other = ml.subset_sweep("mlp", noise, **(setting | change))
    assert len(list(store.Store().folder.glob("sweep-*"))) == 2
    assert not np.array_equal(first.logits, other.logits)


def test_a_sweep_with_stops_does_not_depend_on_its_processes(noise, tmp_path, monkeypatch):
    monkeypatch.setattr(subsets, "CPU_ENSEMBLE_SIZE", 2)
    queries = Queries(("peak", "best_val", "last", 1), ("identity", "left"), 1)
    found = []
    for n in (1, 2):
        monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / str(n)))
        setting = {"n_models": 4, "config": TrainConfig(epochs=3), "queries": queries}
        found.append(ml.subset_sweep("mlp_bn", noise, n_jobs=n, **setting).arrays)
    assert found[0].keys() == found[1].keys()
    for name, array in found[0].items():
        assert np.array_equal(array, found[1][name], equal_nan=True), name
