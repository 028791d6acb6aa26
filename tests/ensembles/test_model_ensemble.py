"""ModelEnsemble trained in one batched pass, against the same nets trained one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import memlens as ml
from memlens.ensembles import model_ensemble
from memlens.ensembles.model_ensemble import ModelEnsemble, train_ensemble
from memlens.ensembles.subsets import subset_masks
from memlens.models import registry
from memlens.training import devices
from memlens.training.config import OPTIMIZERS, TrainConfig

SHORT = TrainConfig(epochs=5, batch_size=16, lr=0.1)
SEEDS = [11, 12, 13]
CLOSE = {"rtol": 1e-6, "atol": 1e-8}


def trained(model, data, masks, config, seeds, **options):
    ensemble = ModelEnsemble.build(model, data, seeds)
    train_ensemble(ensemble, data, masks, config, seeds, **options)
    return ensemble


def state_of(ensemble, i):
    return {
        name: value[i].detach() for name, value in (ensemble.weights | ensemble.buffers).items()
    }


def assert_same_state(found, expected):
    assert set(found) == set(expected)
    for name, value in found.items():
        assert torch.allclose(value.double(), expected[name].detach().double(), **CLOSE), name


@pytest.fixture
def masks():
    return subset_masks(3, 60, 0.7)  # 42 samples: the last batch is short


@pytest.mark.parametrize("model", sorted(registry.SMALL))
@pytest.mark.parametrize("sam_rho", [0.0, 0.05])
def test_nets_trained_together_equal_nets_trained_alone(double, masks, train_alone, model, sam_rho):
    """Weights, and batch norm's running statistics: each net has its own."""
    config = replace(SHORT, sam_rho=sam_rho)
    ensemble = trained(model, double, masks, config, SEEDS)
    for i, seed in enumerate(SEEDS):
        expected = train_alone(model, double, masks[i], config, seed).state_dict()
        assert_same_state(state_of(ensemble, i), expected)
    with pytest.raises(AssertionError):  # the comparison can fail
        assert_same_state(state_of(ensemble, 0), expected)


@pytest.mark.parametrize("augment", ["crop", "crop_flip"])
def test_crops_and_flips_are_those_of_a_training_alone(double, augment):
    config = replace(SHORT, epochs=2, augment=augment)
    ensemble = trained("small_cnn_bn", double, np.ones((3, 60), dtype=bool), config, SEEDS)
    for i, seed in enumerate(SEEDS):
        alone = ml.train("small_cnn_bn", double, replace(config, seed=seed)).snapshot("last")
        assert_same_state(state_of(ensemble, i), alone.state_dict())
    plain = trained("small_cnn_bn", double, np.ones((3, 60), dtype=bool), SHORT, SEEDS)
    with pytest.raises(AssertionError):
        assert_same_state(state_of(ensemble, 0), state_of(plain, 0))


@pytest.mark.parametrize("model", sorted(registry.SMALL))
def test_a_stack_of_one_is_a_net_like_any_other(double, masks, model):
    stack = trained(model, double, masks, SHORT, SEEDS)
    for i, seed in enumerate(SEEDS):
        alone = trained(model, double, masks[[i]], SHORT, [seed])
        assert_same_state(state_of(alone, 0), state_of(stack, i))
        assert torch.allclose(alone.predict(double)[0], stack.predict(double)[i], **CLOSE)
        shown = torch.stack([double.normalise(double.train.images[:5])] * 3)
        alone.base.eval(), stack.base.eval()  # or to look would move the running statistics
        assert torch.allclose(alone(shown[:1])[0], stack(shown)[i], **CLOSE)


def test_large_nets_go_one_by_one_and_small_ones_by_the_dozen(tiny, monkeypatch):
    assert model_ensemble.ensemble_size("resnet18", tiny, TrainConfig(), 50) == 1
    assert model_ensemble.ensemble_size("mlp", tiny, TrainConfig(), 50) == 50
    monkeypatch.setattr(devices, "resolve", lambda name: torch.device("cuda", 0))
    for gigabytes, least, most in ((80, 1000, 1000), (0.05, 20, 200), (0, 1, 1)):
        monkeypatch.setattr(devices, "free_memory", lambda _, gb=gigabytes: int(gb * 1e9))
        assert (
            least
            <= model_ensemble.ensemble_size("mlp", tiny, TrainConfig(device="cuda"), 50)
            <= most
        )


def test_images_of_a_folder_are_refused(tiny, masks):
    train = replace(tiny.train)
    object.__setattr__(train, "images", object())  # stands for a folder's
    data = replace(tiny)
    object.__setattr__(data, "train", train)
    with pytest.raises(TypeError, match="read from a folder: take a subset into memory"):
        train_ensemble(ModelEnsemble.build("mlp", tiny, SEEDS), data, masks, SHORT, SEEDS)


@pytest.mark.parametrize("changes", [
    {"precision": "bfloat16"}, {"channels_last": True},
    {"precision": "bfloat16", "channels_last": True},
])  # fmt: skip
@pytest.mark.parametrize("n_nets", [1, 3])
def test_a_fast_step_is_the_plain_one_within_its_precision(tiny, masks, changes, n_nets):
    """After one epoch of three steps, against how far the nets have come."""
    config = replace(SHORT, epochs=1, lr=0.01)
    start = ModelEnsemble.build("small_cnn_bn", tiny, SEEDS[:n_nets])
    plain = trained("small_cnn_bn", tiny, masks[:n_nets], config, SEEDS[:n_nets])
    fast = trained("small_cnn_bn", tiny, masks[:n_nets], replace(config, **changes), SEEDS[:n_nets])
    for name, value in plain.weights.items():
        moved = float((value - start.weights[name]).detach().norm())
        off = float((value - fast.weights[name]).detach().norm())
        assert off <= (0.1 if "precision" in changes else 0.01) * moved + 1e-6, name
    assert all(w.dtype == torch.float32 for w in fast.weights.values())


@pytest.mark.parametrize("n_nets", [1, 3])
@pytest.mark.slow
def test_compiled_nets_are_the_plain_ones_and_the_next_stack_needs_no_new_graph(
    double, masks, traced, n_nets
):
    """Traced as a GPU's are, vmap and all, in one graph; the kernels are torch's own."""
    graphs = traced("aot_eager")
    config = replace(SHORT, epochs=2, compiled=True)
    for seeds in (SEEDS, [21, 22, 23]):
        given = (double, masks[:n_nets], config, seeds[:n_nets])
        fast = trained("small_cnn_bn", *given)
        plain = trained("small_cnn_bn", *given[:2], replace(config, compiled=False), given[3])
        for i in range(n_nets):
            assert_same_state(state_of(fast, i), state_of(plain, i))
        assert graphs() == 2  # a whole batch, and the last one


def test_labels_can_be_each_nets_own(double, masks, train_alone):
    labels = torch.stack([(double.train.labels + shift) % 3 for shift in range(3)])
    ensemble = trained("mlp", double, masks, SHORT, SEEDS, labels=labels)
    for i, seed in enumerate(SEEDS):
        alone = train_alone("mlp", double, masks[i], SHORT, seed, labels=labels[i])
        assert_same_state(state_of(ensemble, i), alone.state_dict())


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_stopping_early_keeps_the_learning_rates_of_the_whole_recipe(
    double, masks, train_alone, epochs
):
    ensemble = trained("mlp", double, masks[:1], SHORT, SEEDS[:1], epochs=epochs)
    alone = train_alone("mlp", double, masks[0], SHORT, SEEDS[0], epochs=epochs)
    assert_same_state(state_of(ensemble, 0), alone.state_dict())


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_with_all_samples_it_is_train(double, optimizer):
    config = replace(SHORT, optimizer=optimizer, lr=SHORT.lr if optimizer == "sgd" else 1e-3)
    # Without batch norm: the biases before it have no gradient but rounding, which Adam blows up.
    ensemble = trained("mlp", double, np.ones((2, 60), dtype=bool), config, [4, 5])
    for i, seed in enumerate((4, 5)):
        run = ml.train("mlp", double, replace(config, seed=seed))
        assert_same_state(state_of(ensemble, i), run.snapshot("last").state_dict())


@pytest.mark.parametrize("model", ["mlp", "small_cnn_bn"])
def test_a_net_does_not_depend_on_its_company(double, masks, model):
    all_three = trained(model, double, masks, SHORT, SEEDS)
    for i in range(3):
        one = trained(model, double, masks[i : i + 1], SHORT, SEEDS[i : i + 1])
        assert_same_state(state_of(one, 0), state_of(all_three, i))


def test_fresh_nets_are_those_of_build(double):
    ensemble = ModelEnsemble.build("small_cnn_bn", double, np.array(SEEDS))
    assert len(ensemble) == 3
    for i, seed in enumerate(SEEDS):
        alone = registry.build("small_cnn_bn", 3, double.in_shape, seed=seed).state_dict()
        assert all(torch.equal(value, alone[name]) for name, value in state_of(ensemble, i).items())


def test_logits_are_those_of_each_net_in_eval_mode(double, masks, monkeypatch):
    ensemble = trained("small_cnn_bn", double, masks, SHORT, SEEDS)
    assert ensemble.base.training
    logits = ensemble.predict(double)
    assert ensemble.base.training
    assert not logits.requires_grad
    x = double.normalise(double.train.images)
    for i in range(3):
        alone = registry.build("small_cnn_bn", 3, double.in_shape)
        alone.load_state_dict(state_of(ensemble, i))
        assert torch.allclose(logits[i], alone.eval()(x), **CLOSE)
        member = ensemble.member(i)
        assert not member.training
        assert torch.allclose(logits[i], member(x), **CLOSE)
        assert torch.allclose(ensemble(x.expand(3, *x.shape))[i], logits[i], **CLOSE)
    monkeypatch.setattr(model_ensemble, "VALUES_ON_CPU", 3 * 64 * 7)  # seven samples a pass
    assert torch.allclose(ensemble.predict(double), logits, **CLOSE)


def test_looking_between_epochs_changes_nothing(double, masks):
    seen = []
    ensemble = ModelEnsemble.build("mlp_bn", double, SEEDS)
    look = lambda: seen.append(ensemble.predict(double))  # noqa: E731
    train_ensemble(ensemble, double, masks, SHORT, SEEDS, after_epoch=look)
    assert len(seen) == SHORT.epochs
    assert not torch.allclose(seen[0], seen[1])
    assert torch.equal(seen[-1], ensemble.predict(double))
    blind = trained("mlp_bn", double, masks, SHORT, SEEDS)
    assert all(torch.equal(value, blind.weights[name]) for name, value in ensemble.weights.items())


def test_a_look_that_leaves_eval_mode_behind_changes_nothing(double, masks):
    ensemble, looked = ModelEnsemble.build("mlp_bn", double, SEEDS), []
    look = lambda: looked.append(ensemble.member(0).training)  # noqa: E731
    train_ensemble(ensemble, double, masks, SHORT, SEEDS, after_epoch=look)
    assert looked == [False] * SHORT.epochs
    blind = trained("mlp_bn", double, masks, SHORT, SEEDS)
    assert_same_state(state_of(ensemble, 1), state_of(blind, 1))


def test_training_goes_on_from_where_the_nets_are(double, masks, train_alone):
    ensemble = trained("mlp_bn", double, masks, SHORT, SEEDS)
    assert not ensemble.member(0).training  # which must not stay so
    train_ensemble(ensemble, double, ~masks, SHORT, SEEDS)
    for i, seed in enumerate(SEEDS):
        net = train_alone("mlp_bn", double, masks[i], SHORT, seed)
        net = train_alone("mlp_bn", double, ~masks[i], SHORT, seed, net=net)
        assert_same_state(state_of(ensemble, i), net.state_dict())


def test_the_thread_setting_of_the_caller_is_restored(double, masks):
    before = torch.get_num_threads()
    trained("mlp", double, masks, replace(SHORT, epochs=1, threads=before + 1), SEEDS)
    assert torch.get_num_threads() == before


def test_bad_input_is_named(double, masks):
    uneven = masks.copy()
    uneven[1, np.flatnonzero(~masks[1])[0]] = True
    with pytest.raises(ValueError, match=r"networks have \[42, 43\] samples; group them"):
        trained("mlp", double, uneven, SHORT, SEEDS)
    with pytest.raises(ValueError, match=r"to the end; stop is 'weight_norm': set it to None"):
        trained("mlp", double, masks, replace(SHORT, stop="weight_norm"), SEEDS)
