"""What nets trained together answer at their snapshots, against the same nets trained alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import memlens as ml
from memlens.ensembles import model_ensemble, queries
from memlens.ensembles.model_ensemble import ModelEnsemble
from memlens.ensembles.queries import AUGMENTATIONS, Queries, train_and_query
from memlens.ensembles.subsets import subset_masks
from memlens.tracking import peaks, signals
from memlens.training.config import TrainConfig
from memlens.training.posthoc import predict

# a strong decay, so that the weight norm peaks on the way
RECIPE = TrainConfig(epochs=14, batch_size=16, lr=0.2, weight_decay=0.1, patience=2)
SEEDS = [11, 12, 13]
STOPS = ("weight_norm", "best_val", "last", 1, 5)
CLOSE = {"rtol": 1e-6, "atol": 1e-8}


def asked(model, data, queries, config=RECIPE):
    masks = subset_masks(3, len(data.train), 0.7)
    ensemble = ModelEnsemble.build(model, data, SEEDS)
    return train_and_query(ensemble, data, masks, config, SEEDS, queries)


def test_a_view_moves_pixels_and_nothing_else():
    images = torch.arange(1, 13).view(1, 1, 3, 4).to(torch.uint8)
    rows = {name: view(images)[0, 0].tolist() for name, view in AUGMENTATIONS.items()}
    assert rows["identity"] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert rows["flip"] == [[4, 3, 2, 1], [8, 7, 6, 5], [12, 11, 10, 9]]
    assert rows["left"] == [[2, 3, 4, 0], [6, 7, 8, 0], [10, 11, 12, 0]]
    assert rows["right"] == [[0, 1, 2, 3], [0, 5, 6, 7], [0, 9, 10, 11]]
    assert rows["up"] == [[5, 6, 7, 8], [9, 10, 11, 12], [0, 0, 0, 0]]
    assert rows["down"] == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize("model", ["mlp", "mlp_bn"])
def test_each_net_is_asked_where_it_would_have_stopped_alone(double, train_alone, model):
    """The textbook loop, with the snapshots found afterwards from its own curves."""
    queries = Queries(STOPS, ("identity", "left"))
    found = asked(model, double, queries)
    masks = subset_masks(3, 60, 0.7)
    epochs = {}
    for m, seed in enumerate(SEEDS):
        curves, states = {"norm": [], "loss": [], "accuracy": []}, []

        def look(net, epoch, curves=curves, states=states):
            net.eval()
            with torch.no_grad():
                logits = net(double.normalise(double.test.images))
            net.train()
            flat = torch.cat([p.detach().flatten() for p in net.parameters()])
            curves["norm"].append(flat.norm().item())
            curves["loss"].append(F.cross_entropy(logits, double.test.labels).item())
            right = logits.argmax(1) == double.test.labels
            curves["accuracy"].append(right.double().mean().item())
            states.append({k: v.clone() for k, v in net.state_dict().items()})

        net = train_alone(model, double, masks[m], RECIPE, seed, each=look)
        peak = peaks.find_peak(curves["norm"], patience=RECIPE.patience).peak_epoch
        ends = {"weight_norm": peak, "best_val": int(np.argmin(curves["loss"]))}
        ends |= {"last": 13, 1: 0, 5: 4}
        epochs[m] = ends
        for stop, epoch in ends.items():
            assert found[f"epochs/{stop}"][m] == epoch + 1
            net.load_state_dict(states[epoch])
            for v, view in enumerate(
                queries.augmentations if isinstance(stop, str) else ["identity"]
            ):
                x = double.normalise(AUGMENTATIONS[view](double.train.images))
                with torch.no_grad():
                    expected = net(x).numpy()
                assert np.allclose(found[f"logits/{stop}"][m, v], expected, **CLOSE), (stop, view)
        assert np.allclose(found["weight_norm"][m], curves["norm"], rtol=1e-6)
        assert np.allclose(found["val_loss"][m], curves["loss"], rtol=1e-6)
        assert np.allclose(found["val_accuracy"][m], curves["accuracy"], rtol=1e-6)
    assert found["logits/1"].shape[1] == 1  # after a number of epochs: the first view only
    assert (
        len({ends["weight_norm"] for ends in epochs.values()} - {13}) > 1
    )  # the comparison can fail
    assert model == "mlp_bn" or len({ends["best_val"] for ends in epochs.values()}) > 1


# Wrong labels and a strong decay, so that every stop comes before the last epoch.
NOISY = replace(RECIPE, epochs=30, lr=0.1, weight_decay=0.03)


@pytest.mark.parametrize("model", ["mlp", "mlp_bn"])
def test_each_net_has_the_stops_that_it_has_alone(double, model):
    data, masks = double.with_noise(0.4), subset_masks(3, 60, 0.7)
    found = asked(model, data, Queries(peaks.STOPS), NOISY)
    early = set()
    for m, seed in enumerate(SEEDS):
        alone = replace(data, train=data.train[torch.as_tensor(masks[m])])
        run = ml.train(model, alone, replace(NOISY, seed=seed))
        for curve in ("input_gradient", "label_changes", "weight_norm", "val_loss"):
            assert found[curve][m] == pytest.approx(run.history[curve], rel=1e-5, nan_ok=True)
        for stop, epoch in run.stops["epoch"].items():
            assert found[f"epochs/{stop}"][m] == epoch + 1, stop
            logits = predict(run.snapshot(stop).double(), data, data.train)
            assert np.allclose(found[f"logits/{stop}"][m, 0], logits, rtol=1e-4, atol=1e-5), stop
        early |= {(m, epoch) for epoch in run.stops["epoch"]}
    assert len(early) >= 10  # of fifteen; else one stop could be taken for another


def test_what_a_step_computes_is_recorded_only_where_it_is_asked_for(tiny):
    assert "label_changes" not in asked("mlp", tiny, Queries(("weight_norm", "best_val")))
    for stop in ("input_gradient", "label_wave"):
        found = asked("mlp", tiny, Queries((stop,)))
        assert {"input_gradient", "label_changes"} <= set(found)


@pytest.mark.parametrize("model", ["mlp", "mlp_bn"])  # in turn, and in one pass
def test_asking_on_the_way_does_not_change_the_training(tiny, model):
    quiet = asked(model, tiny, Queries())
    loud = asked(model, tiny, Queries(("last", *peaks.CURVES, 3), ("identity", "up"), 2))
    assert np.array_equal(quiet["logits/last"][:, 0], loud["logits/last"][:, 0])
    assert set(quiet) == {"logits/last", "epochs/last"}
    assert quiet["epochs/last"].tolist() == [14, 14, 14]


def test_curvature_is_asked_at_the_named_stops_of_each_net_alone(tiny):
    found = asked("mlp", tiny, Queries(("last", 2), n_directions=3))
    assert "curvature/2" not in found
    masks, ensemble = subset_masks(3, 60, 0.7), ModelEnsemble.build("mlp", tiny, SEEDS)
    model_ensemble.train_ensemble(ensemble, tiny, masks, RECIPE, SEEDS)
    x = tiny.normalise(tiny.train.images).double()
    for m in range(3):
        net = ensemble.member(m).double()
        alone = signals.zero_order_curvature(net, x, tiny.train.labels, n_directions=3)
        assert found["curvature/last"][m] == pytest.approx(alone.numpy(), rel=1e-6, abs=1e-9)
        net.float()


def test_curvature_does_not_depend_on_how_many_samples_go_at_once(tiny, monkeypatch):
    ensemble = ModelEnsemble.build("mlp_bn", tiny, SEEDS)
    whole = queries.curvature_of(ensemble, tiny, 2)
    monkeypatch.setattr(model_ensemble, "VALUES_ON_CPU", 3 * 64 * 7)  # seven samples a pass
    assert torch.allclose(queries.curvature_of(ensemble, tiny, 2), whole, rtol=1e-5, atol=1e-9)
    assert ensemble.base.training  # as it was
    assert all(w.dtype == torch.float32 for w in ensemble.weights.values())


def test_without_test_samples_there_is_a_peak_but_no_validation(tiny):
    none = replace(tiny, test=tiny.test[torch.arange(0)])
    found = asked("mlp", none, Queries(("weight_norm", "last")))
    assert np.isnan(found["val_loss"]).all()
    assert np.array_equal(
        found["logits/weight_norm"], asked("mlp", tiny, Queries(STOPS))["logits/weight_norm"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshots": ()}, r"snapshots are \(\): pass a tuple of one or more"),
        ({"snapshots": ("last", "last")}, "each once"),
        ({"snapshots": "last"}, "snapshots are 'last': pass a tuple"),
        ({"augmentations": "identity"}, "augmentations are 'identity': pass a tuple"),
        ({"snapshots": ("last", 1.5)}, r"snapshots \[1.5\] .* are neither names nor whole numbers"),
        ({"snapshots": (True,)}, r"snapshots \[True\]"),
        ({"snapshots": (None,)}, r"snapshots \[None\]"),
        ({"snapshots": (np.int64(1),)}, r"pass int\(...\)"),
        ({"n_directions": 2.5}, r"n_directions 2.5 are neither"),
        (
            {"snapshots": ("peek",)},
            r"unknown: peek; snapshots are input_gradient, .*, last, a number",
        ),
        ({"augmentations": ("identity", "tilt")}, r"unknown: tilt; .*augmentations identity, flip"),
        ({"snapshots": (0,)}, r"snapshots \[0\].* expected 1 epoch or more"),
        ({"n_directions": -1}, "no negative number of directions"),
    ],
)
def test_questions_that_make_no_sense_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Queries(**options)


def test_a_stop_beyond_the_training_is_named(tiny):
    with pytest.raises(ValueError, match=r"snapshots after \[15\] epochs; the config has 14"):
        asked("mlp", tiny, Queries((15,)))


@pytest.mark.parametrize("queries", [Queries(), Queries(("weight_norm", "last"))])
def test_nets_that_diverge_are_named(tiny, queries):
    message = r"\d of 3 networks .* diverged by epoch .* is number"
    with pytest.raises(FloatingPointError, match=message):
        asked("mlp", tiny, queries, replace(RECIPE, lr=1e12))


def test_the_peak_is_called_with_the_patience_of_the_recipe(tiny, monkeypatch):
    """A norm that rises again: patience 2 calls the first peak, patience 5 the second."""
    norms = iter([1, 3, 2, 2.5, 2.6, 4, 3, 3, 3, 3, 3, 3, 3, 3] * 2)
    monkeypatch.setattr(
        ModelEnsemble, "weight_norms", lambda ensemble: torch.full((len(ensemble),), next(norms))
    )
    found = [
        asked("mlp", tiny, Queries(("weight_norm",)), replace(RECIPE, patience=p)) for p in (2, 5)
    ]
    assert [f["epochs/weight_norm"].tolist() for f in found] == [[2, 2, 2], [6, 6, 6]]


def test_the_weights_kept_are_copies(tiny):
    """Asked at a peak that lies before the end, the answers differ from those at the end."""
    found = asked("mlp", tiny, Queries(("weight_norm", "last")))
    early = found["epochs/weight_norm"] < 14
    assert early.any()
    same = (found["logits/weight_norm"] == found["logits/last"]).all(axis=(1, 2, 3))
    assert not same[early].any()
