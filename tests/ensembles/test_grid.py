"""A grid of learning rates and weight decays, against trainings alone and by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import memlens as ml
from memlens.ensembles import grid
from memlens.ensembles.grid import Grid, epoch_curves, stop_map, train_grid
from memlens.tracking.peaks import CURVES
from memlens.training.config import TrainConfig

SHORT = TrainConfig(epochs=6, batch_size=16, lr=0.1, patience=2)
LRS, DECAYS, SEEDS = (0.05, 0.2), (0.0, 1e-2), (3, 4)
AXES = {"lrs": LRS, "weight_decays": DECAYS, "seeds": SEEDS}
NAMES = ["input_gradient", "label_changes", "weight_norm", "val_loss", "val_accuracy"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))


def hand_made(failed=(), **curves):
    """Two networks of three epochs; other curves are of a network that learns."""
    epochs = np.arange(3.0)
    given = {"input_gradient": [3 - epochs] * 2, "label_changes": [[np.nan, 5, 4]] * 2,
             "weight_norm": [5 + epochs] * 2, "val_loss": [[2.0, 1.0, 3.0]] * 2,
             "val_accuracy": [[0.5, 0.9, 0.8]] * 2}  # fmt: skip
    networks = pd.DataFrame({"lr": [0.1, 0.1], "weight_decay": [0.0, 0.0], "seed": [0, 1]})
    arrays = {name: np.array(rows, dtype=float) for name, rows in (given | curves).items()}
    return Grid(networks, arrays, n_classes=10, patience=1)


@pytest.mark.parametrize("model", ["narrow_mlp", "narrow_mlp_bn"])
def test_curves_are_those_of_trainings_alone(double, model):
    noisy = double.with_noise(0.2)
    found = train_grid(model, noisy, SHORT, n_jobs=1, **AXES)
    assert found.networks.shape == (8, 3)
    for i, place in enumerate(found.networks.itertuples(index=False)):
        config = replace(SHORT, **place._asdict())
        run = ml.train(model, noisy, config)
        for name in NAMES:
            expected = run.history[name].to_numpy()
            assert found.curves[name][i] == pytest.approx(expected, rel=1e-6, nan_ok=True), name
    ends = found.curves["weight_norm"][:, -1]
    assert len(np.unique(ends.round(6))) == 8  # no two networks are the same


def test_stops_are_those_of_trainings_alone(tiny):
    config = replace(SHORT, epochs=12)
    found, called = train_grid("mlp", tiny, config, n_jobs=1, **AXES), set()
    stops = found.stops()
    assert not stops["failed"].any()
    for i, place in enumerate(found.networks.itertuples(index=False)):
        run = ml.train("mlp", tiny, replace(config, **place._asdict()))
        for stop, row in run.stops.iterrows():
            exists = pd.notna(row["detected"]) or stop in ("best_val", "last")
            assert stops.loc[i, f"{stop}_epoch"] == pytest.approx(
                row["epoch"] if exists else np.nan, nan_ok=True
            )
            there = run.history["val_accuracy"][row["epoch"]]
            assert stops.loc[i, f"{stop}_accuracy"] == pytest.approx(
                there if exists else np.nan, nan_ok=True
            )
            called.add((stop, exists))
    assert {stop for stop, _ in called} == {*CURVES, "last"}
    assert ("input_gradient", True) in called


def test_the_number_of_processes_and_a_second_call_change_nothing(tiny, monkeypatch):
    monkeypatch.setattr(grid, "CPU_ENSEMBLE_SIZE", 3)
    found = train_grid("narrow_mlp_bn", tiny, SHORT, n_jobs=2, **AXES)
    monkeypatch.setattr(grid, "epoch_curves", lambda *_: pytest.fail("trained again"))
    again = train_grid("narrow_mlp_bn", tiny, SHORT, n_jobs=1, **AXES)
    for name, rows in found.curves.items():
        np.testing.assert_array_equal(rows, again.curves[name])
    assert not any("." in path.name[1:] for path in ml.storage.store.Store().folder.glob("grid-*"))


def test_another_axis_or_version_is_another_grid(tiny, monkeypatch):
    trained = []
    curves = {name: np.ones((1, 6)) for name in NAMES}
    monkeypatch.setattr(
        grid, "epoch_curves", lambda model, data, configs: (trained.append(configs), curves)[1]
    )
    one = {"lrs": [0.1], "weight_decays": [0.0], "seeds": [0], "n_jobs": 1}
    for change in ({}, {}, {"lrs": [0.2]}, {"weight_decays": [0.1]}, {"seeds": [1]}):
        train_grid("mlp", tiny, SHORT, **one | change)
    assert len(trained) == 4
    monkeypatch.setattr(grid, "GRID_VERSION", -1)
    train_grid("mlp", tiny, SHORT, **one)
    assert len(trained) == 5


@pytest.mark.parametrize("model", ["mlp", "mlp_bn"])
def test_a_rate_that_diverges_is_marked_and_the_others_stay(tiny, model):
    configs = [replace(SHORT, lr=lr) for lr in (0.05, 1e20, 0.2)]
    together = epoch_curves(model, tiny, configs)
    calm = epoch_curves(model, tiny, [configs[0], configs[0], configs[2]])
    networks = pd.DataFrame({"lr": [0.05, 1e20, 0.2], "weight_decay": 0.0, "seed": 0})
    found = Grid(networks, together, tiny.n_classes, 2)
    assert found.failed.tolist() == [False, True, False]
    for name, rows in together.items():
        np.testing.assert_array_equal(rows[[0, 2]], calm[name][[0, 2]])
    row = found.stops().iloc[1]
    assert row.filter(like="_epoch").isna().all()
    assert row.filter(like="_accuracy").isna().all()


def test_a_network_that_only_guesses_has_failed():
    guesses = [[0.1, 0.18, 0.1], [0.1, 0.20, 0.1]]  # a tenth of the way from 0.1 to 1 is 0.19
    assert hand_made(val_accuracy=guesses).failed.tolist() == [True, False]
    assert hand_made(val_loss=[[2, 1, np.inf], [2, 1, 3]]).failed.tolist() == [True, False]


def test_a_peak_that_is_not_called_is_nan_and_not_the_last_epoch():
    peaked = [[5.0, 6.0, 5.5], [5.0, 6.0, 7.0]]
    stops = hand_made(weight_norm=peaked).stops()
    assert stops["weight_norm_epoch"].tolist() == pytest.approx([1, np.nan], nan_ok=True)
    assert stops["weight_norm_accuracy"].tolist() == pytest.approx([0.9, np.nan], nan_ok=True)
    assert stops["best_val_epoch"].tolist() == [1, 1]
    assert stops["last_accuracy"].tolist() == [0.8, 0.8]


def test_cells_by_hand():
    """Three seeds in each of four cells: all called, one called, most failed, one failed."""
    nan = np.nan
    rows = [
        # lr, failed, best epoch, best, last, stop epoch, at the stop
        (0.1, False, 5, 0.80, 0.82, 7, 0.81), (0.1, False, 6, 0.80, 0.78, 3, 0.77),
        (0.1, False, 6, 0.80, 0.78, 7, 0.78), (0.2, False, 5, 0.8, 0.8, 5, 0.8),
        (0.2, False, 5, 0.8, 0.8, nan, nan), (0.2, False, 5, 0.8, 0.8, nan, nan),
        (0.4, True, nan, nan, nan, nan, nan), (0.4, True, nan, nan, nan, nan, nan),
        (0.4, False, 5, 0.8, 0.8, 5, 0.8), (0.3, True, nan, nan, nan, nan, nan),
        (0.3, False, 5, 0.8, 0.8, 9, 0.6), (0.3, False, 5, 0.8, 0.8, 9, 0.7),
    ]  # fmt: skip
    names = ["lr", "failed", "best_val_epoch", "best_val_accuracy", "last_accuracy",
             "weight_norm_epoch", "weight_norm_accuracy"]  # fmt: skip
    stops = pd.DataFrame(rows, columns=names).assign(weight_decay=0.0)
    cells = stop_map(stops, "weight_norm").set_index("lr")
    assert cells["state"].to_dict() == {
        0.1: "called", 0.2: "no peak", 0.3: "called", 0.4: "failed",
    }  # fmt: skip
    assert cells["distance"].to_dict() == pytest.approx(
        {0.1: 1, 0.2: nan, 0.3: 4, 0.4: nan}, nan_ok=True
    )
    assert cells["cost"].to_dict() == pytest.approx(
        {0.1: 0.02, 0.2: nan, 0.3: 0.15, 0.4: nan}, nan_ok=True
    )
    assert cells.loc[0.1, "cost_best_val"] == pytest.approx(0.04 / 3)
    assert cells.loc[0.1, "cost_last"] == pytest.approx((0.01 + 0.01 + 0.0) / 3)


def test_bad_axes_are_named(tiny):
    for name in AXES:
        with pytest.raises(ValueError, match=f"{name} are .*: pass one or more, each once"):
            train_grid("mlp", tiny, SHORT, **AXES | {name: []})
        with pytest.raises(ValueError, match=f"{name} are .*: pass one or more, each once"):
            train_grid("mlp", tiny, SHORT, **AXES | {name: [1, 1]})
    with pytest.raises(ValueError, match="learning rate above 0"):
        train_grid("mlp", tiny, SHORT, **AXES | {"lrs": [0.0]})
    with pytest.raises(ValueError, match="trains to the end"):
        train_grid("mlp", tiny, replace(SHORT, stop="weight_norm"), n_jobs=1, **AXES)
