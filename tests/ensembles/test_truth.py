"""The ground truth: shipped where it belongs, and leaving samples out one at a time."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import memlens as ml
from memlens.__main__ import main
from memlens.ensembles import subsets, truth
from memlens.training.config import TrainConfig

SHORT = TrainConfig(epochs=2, batch_size=16)


@pytest.fixture
def shipped(double, tmp_path, monkeypatch):
    """A shipped file for the small data set, of a sweep of six networks."""
    monkeypatch.setattr(truth, "FOLDER", tmp_path)
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(truth, "N_NETWORKS", 3)
    paths = truth.write_truth(
        "mlp", double, SHORT, tmp_path, n_models=6, n_jobs=1, log=lambda text: None
    )
    return paths[0]


def test_shipped_memorization_is_returned_for_its_data_and_settings(shipped, double, monkeypatch):
    sweep = ml.subset_sweep("mlp", double, n_models=6, config=SHORT, n_jobs=1)

    def refuse(*args, **kwargs):
        raise AssertionError("a sweep was trained")

    monkeypatch.setattr(truth, "subset_sweep", refuse)
    table = truth.memorization(double, "mlp", SHORT)
    expected = sweep.memorization()
    assert np.allclose(table[expected.columns], expected, atol=1e-6, equal_nan=True)
    assert table.index.tolist() == double.train.index.tolist()
    assert np.allclose(
        table["first_half"], sweep.memorization(3).memorization, atol=1e-6, equal_nan=True
    )
    truth.memorization(double, "mlp", replace(SHORT, seed=5))  # the seed does not matter


@pytest.mark.parametrize(
    "changes",
    [{"model": "mlp_bn"}, {"config": replace(SHORT, epochs=3)}, {"keep": 0.6}, {"labels": True}],
    ids=lambda changes: next(iter(changes)),
)
def test_another_training_or_other_labels_get_a_sweep_of_their_own(shipped, double, changes):
    changes = dict(changes)
    if changes.pop("labels", False):
        labels = double.train.labels.clone()
        labels[0] = (labels[0] + 1) % double.n_classes
        double = replace(double, train=replace(double.train, labels=labels))
    settings = {"model": "mlp", "config": SHORT, "n_models": 4, "n_jobs": 1} | changes
    table = truth.memorization(double, **settings)
    assert "first_half" not in table
    assert (table.n_in + table.n_out == 4).all()


def test_a_damaged_or_edited_file_is_refused_by_name(shipped, double):
    whole = shipped.read_text()
    for text in (whole[:-20], whole.replace("0.", "1.", 3), "index,memorization\n0,1\n", ""):
        shipped.write_text(text)
        with pytest.raises(ValueError, match=rf"{shipped.name} is damaged or was edited"):
            truth.memorization(double, "mlp", SHORT)


def test_leaving_one_out_equals_networks_trained_alone(double, train_alone, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    config = replace(SHORT, epochs=4)
    table = truth.leave_one_out("mlp", double, [7, 30], config=config, n_models=3, n_jobs=1)
    x, y = double.normalise(double.train.images), double.train.labels

    def accuracy(position, left_out):
        mask = np.ones(len(y), dtype=bool)
        if left_out is not None:
            mask[left_out] = False
        group = 0 if left_out is None else left_out + 1
        nets = (train_alone("mlp", double, mask, config, (group << 20) + m) for m in range(3))
        return np.mean([(net(x[[position]]).argmax(1) == y[position]).item() for net in nets])

    for row, position in enumerate([7, 30]):
        assert table.in_accuracy.iloc[row] == pytest.approx(accuracy(position, None))
        assert table.out_accuracy.iloc[row] == pytest.approx(accuracy(position, position))
    assert table.index.tolist() == double.train.index[[7, 30]].tolist()
    with pytest.raises(IndexError, match=r"positions \[999\] are outside"):
        truth.leave_one_out("mlp", double, [999], config=config, n_models=3, n_jobs=1)


def test_the_subset_estimator_on_ridge_regression_agrees_with_its_hat_matrix():
    """Leaving one out has a closed form there, for every pair of a left-out sample and another."""
    rng = np.random.default_rng(0)
    n, d, penalty = 40, 6, 0.5
    x = np.column_stack([np.ones(n), rng.normal(size=(n, d - 1))])
    y = 0.5 + 0.05 * x[:, 1:] @ rng.normal(size=d - 1) + 0.05 * rng.normal(size=n)

    def predictions(rows):
        inner = x[rows].T @ x[rows] + penalty * np.eye(d)
        return x @ np.linalg.solve(inner, x[rows].T @ y[rows])

    masks = ~np.eye(n, dtype=bool)  # each subset leaves out one sample
    table = subsets.subset_memorization(masks, np.stack([predictions(rows) for rows in masks]))

    hat = x @ np.linalg.solve(x.T @ x + penalty * np.eye(d), x.T)
    fitted, leverage = hat @ y, np.diag(hat)
    # (i, j): the prediction for sample i without sample j
    without = fitted[:, None] - hat * ((y - fitted) / (1 - leverage))
    with_it = (without.sum(1) - np.diag(without)) / (n - 1)
    assert table.memorization.to_numpy() == pytest.approx(with_it - np.diag(without), abs=1e-10)
    assert np.abs(table.memorization).max() > 0.01  # the comparison can fail


def test_positions_are_spread_over_the_range_and_differ():
    values = ml.memorization(ml.load("fashion_small"))["memorization"]
    positions = truth.spread_positions(values, 20)
    assert len(set(positions)) == 20
    chosen = np.sort(values.to_numpy()[positions])
    assert np.abs(chosen - np.linspace(values.min(), values.max(), 20)).max() < 0.05


def test_the_command_writes_both_files_and_resumes(double, tmp_path, monkeypatch, capsys):
    from memlens.experiments import profiles

    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / "cache"))
    profile = replace(profiles.get_profile("digits"), name="tiny", sweep_config=SHORT)
    monkeypatch.setitem(profiles.PROFILES, "tiny", profile)
    monkeypatch.setattr(profiles.Profile, "load", lambda self: double)
    monkeypatch.setattr(truth, "N_NETWORKS", 2)
    monkeypatch.setattr(truth, "N_LEFT_OUT", 2)
    command = ["truth", "--profile", "tiny", "--networks", "4", "--out", str(tmp_path), "--jobs"]
    assert main([*command, "1"]) == 2
    assert "minutes. Pass --yes" in capsys.readouterr().err
    assert main([*command, "1", "--yes"]) == 0
    files = sorted(tmp_path.glob("*.csv"))
    assert [f.name for f in files] == [
        f"{double.name}_leave_one_out.csv",
        f"{double.name}_memorization.csv",
    ]
    before = [f.read_bytes() for f in files]
    monkeypatch.setattr(truth, "train_chunk", None)
    monkeypatch.setattr(subsets, "train_chunk", None)  # everything comes from the cache
    assert main([*command, "1", "--yes"]) == 0
    assert [f.read_bytes() for f in files] == before


# ---------------------------------------------------------------- the shipped values


def test_the_shipped_truth_of_the_clothes_is_consistent():
    data = ml.load("fashion_small")
    table = ml.memorization(data)
    assert table.index.tolist() == data.train.index.tolist()
    assert (table.n_in + table.n_out >= 2_000).all()
    difference = table.in_accuracy - table.out_accuracy
    assert table.memorization.to_numpy() == pytest.approx(difference.to_numpy(), abs=2e-6)
    variance = table.in_accuracy * (1 - table.in_accuracy) / table.n_in
    variance += table.out_accuracy * (1 - table.out_accuracy) / table.n_out
    assert table.standard_error.to_numpy() == pytest.approx(np.sqrt(variance), abs=2e-6)
    assert table.first_half.corr(table.second_half) >= 0.98


def test_leaving_one_out_agrees_on_average_and_at_both_ends_only():
    """What the share of 70 % changes: a subset lacks other samples as well, at random.

    On average that changes little. A sample in the middle of the range is then right or wrong with
    other chances: there the two differ by more than their joint errors.
    """
    data = ml.load("fashion_small")
    left_out = truth.shipped_leave_one_out(data)
    table = ml.memorization(data).loc[left_out.index]
    difference = table.memorization - left_out.memorization
    error = np.hypot(table.standard_error, left_out.standard_error)
    assert len(left_out) == 20 and (left_out.n_in == 60).all() and (left_out.n_out == 60).all()
    assert abs(difference.mean()) < 0.1
    assert np.corrcoef(table.memorization, left_out.memorization)[0, 1] > 0.7
    ends = (table.memorization < 0.1) | (table.memorization > 0.9)
    assert (difference.abs() < 3 * error + 1e-9)[ends].all()
    assert (difference.abs() > 3 * error)[~ends].mean() > 0.4


def test_the_ceiling_is_that_of_spearman_and_brown():
    halves = pd.DataFrame({"first_half": [0.0, 1.0, 0.0, 1.0], "second_half": [0.0, 1.0, 1.0, 1.0]})
    r = halves["first_half"].corr(halves["second_half"])
    assert truth.ceiling(halves) == pytest.approx(np.sqrt(2 * r / (1 + r)))
    assert truth.ceiling(halves.assign(second_half=1 - halves["first_half"])) == 0
    assert np.isnan(truth.ceiling(halves.drop(columns="first_half")))


def test_the_ceiling_is_what_a_score_without_error_reaches():
    rng = np.random.default_rng(0)
    perfect = rng.normal(size=20_000)
    first, second = (perfect + rng.normal(size=20_000) for _ in range(2))
    table = pd.DataFrame({"first_half": first, "second_half": second})
    reached = np.corrcoef(perfect, (first + second) / 2)[0, 1]
    assert truth.ceiling(table) == pytest.approx(reached, abs=0.01)
