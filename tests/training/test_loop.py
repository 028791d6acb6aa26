"""The loop: same seed same bits, recording leaves the weights alone, snapshots, jobs."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import memlens as ml
from memlens.models import registry
from memlens.storage.checkpoints import TrainingCheckpoint
from memlens.storage.store import Store
from memlens.tracking import signals
from memlens.tracking.peaks import STOPS, LabelWave
from memlens.training.config import OPTIMIZERS, MeasureConfig, TrainConfig
from memlens.training.jobs import Job, train_many
from memlens.training.loop import shuffled, train
from memlens.training.posthoc import predict

SHORT = TrainConfig(epochs=4, batch_size=16, lr=0.1, weight_decay=1e-4)


@pytest.fixture(scope="module")
def small():
    """The first 101 digits: an odd number, so that the last batch is short."""
    data = ml.load("digits")
    few = torch.arange(101)
    return replace(data, train=data.train[few], test=data.test[few])


@pytest.fixture(scope="module")
def run(small):
    return train("mlp", small, SHORT, MeasureConfig(posthoc=True, n_directions=2, every=2))


def weights(run, name="last"):
    return list(run.snapshot(name).state_dict().values())


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


ALL = MeasureConfig(posthoc=True, n_directions=1, weight_gradients=True, logit_gradients=True)


def plain_loop(data, config):
    """The oracle: the same training written without any of memlens's loop."""
    net = registry.build("mlp", data.n_classes, data.in_shape, seed=config.seed)
    optimizer = torch.optim.SGD(
        net.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [int(m * config.epochs) for m in config.milestones], config.gamma
    )
    for epoch in range(config.epochs):
        for i in shuffled(len(data.train), config.seed, epoch).split(config.batch_size):
            optimizer.zero_grad()
            x = data.train.images[i].float() / data.pixel_max
            F.cross_entropy(net(x), data.train.labels[i]).backward()
            optimizer.step()
        scheduler.step()
    return net


def test_the_loop_is_the_textbook_loop(small, run):
    expected = plain_loop(small, SHORT).state_dict().values()
    for ours, theirs in zip(weights(run), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_sharpness_aware_training_is_the_textbook_loop(double, train_alone):
    """In float64: the ascent is along a direction, which rounding turns most where it is short."""
    config = TrainConfig(epochs=5, batch_size=16, sam_rho=0.05)
    for model in ("mlp", "small_cnn_bn"):
        run = train(model, double, config)
        alone = train_alone(model, double, np.ones(60, dtype=bool), config, 0)
        for ours, theirs in zip(weights(run), alone.state_dict().values(), strict=True):
            assert torch.allclose(ours.double(), theirs.double(), rtol=1e-6, atol=1e-8)
    plain = train("mlp", double, replace(config, sam_rho=0.0))
    assert not torch.allclose(weights(plain)[0], weights(train("mlp", double, config))[0])


def test_sharpness_aware_training_records_the_weights_as_they_were(small):
    """One batch an epoch: the first visit is of the initial weights, with and without the ascent;
    and recording changes nothing.
    """
    config = replace(SHORT, epochs=2, batch_size=101, sam_rho=0.5)
    sam, plain = (train("mlp", small, replace(config, sam_rho=rho)) for rho in (0.5, 0.0))
    for name in sam.trace:
        assert np.array_equal(sam.trace[name][0], plain.trace[name][0]), name
        assert not np.array_equal(sam.trace[name][1], plain.trace[name][1]), name
    assert same(weights(sam), weights(train("mlp", small, config, record=False)))


def test_same_seed_same_bits_twice_in_a_row(small, run):
    again = train("mlp", small, SHORT, MeasureConfig(posthoc=True, n_directions=2, every=2))
    assert same(weights(run), weights(again))
    assert run.scores.equals(again.scores)
    assert run.posthoc_scores.equals(again.posthoc_scores)
    other = train("mlp", small, replace(SHORT, seed=1))
    assert not same(weights(run), weights(other))


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("model", ["mlp", "mlp_bn"])
def test_recording_and_measuring_leave_the_weights_bit_identical(small, optimizer, model):
    config = replace(SHORT, optimizer=optimizer, lr=1e-3, augment="crop_flip", epochs=2)
    bare = train(model, small, config, record=False)
    full = train(model, small, config, ALL)
    assert same(weights(bare), weights(full))


def test_the_thread_setting_of_the_caller_is_restored(small):
    before = torch.get_num_threads()
    train("mlp", small, replace(SHORT, epochs=1, threads=before + 1))
    assert torch.get_num_threads() == before


def test_in_step_scores_are_those_before_the_update(small):
    whole_batch = replace(SHORT, epochs=1, batch_size=101)
    found = train("mlp", small, whole_batch).trace
    net = registry.build("mlp", 10, small.in_shape, seed=0)
    x, y = small.normalise(small.train.images), small.train.labels
    norms = signals.gradient_norms(signals.input_gradient(net, x, y))
    assert found.grad_l2[0] == pytest.approx(norms.l2.numpy(), rel=1e-4)
    assert found.loss[0] == pytest.approx(signals.loss(net(x), y).detach().numpy(), rel=1e-5)


def test_posthoc_scores_are_those_of_the_net_after_the_epoch(small, run):
    net, x, y = run.snapshot("last"), small.normalise(small.train.images), small.train.labels
    norms = signals.gradient_norms(signals.input_gradient(net, x, y))
    assert run.posthoc_trace.grad_l2[-1] == pytest.approx(norms.l2.numpy(), rel=1e-4)
    assert run.posthoc_trace.loss[-1] == pytest.approx(
        signals.loss(net(x), y).detach().numpy(), rel=1e-4, abs=1e-6
    )


def test_batch_norm_running_statistics_do_not_see_the_measurement(small):
    measured = train("mlp_bn", small, SHORT, ALL)
    bare = train("mlp_bn", small, SHORT)
    assert same(weights(measured), weights(bare))


def test_curvature_is_measured_every_other_epoch(run):
    measured = np.isfinite(run.posthoc_trace.curvature_norm).all(1)
    assert measured.tolist() == [True, False, True, False]
    assert np.isfinite(run.posthoc_scores["curvature"]).all()


def test_history_says_what_happened(small, run):
    history = run.history
    assert history.epoch.tolist() == [0, 1, 2, 3]
    assert history.lr.tolist() == pytest.approx([0.1, 0.1, 0.01, 0.001])
    last = run.snapshot("last")
    logits = predict(last, small, small.test.images)
    loss = F.cross_entropy(logits, small.test.labels).item()
    assert history.val_loss.iloc[-1] == pytest.approx(loss, rel=1e-5)
    flat = torch.cat([p.flatten() for p in last.parameters()])
    assert history.weight_norm.iloc[-1] == pytest.approx(flat.norm().item(), rel=1e-5)
    assert history.input_gradient.to_numpy() == pytest.approx(run.trace.grad_l2.mean(1), rel=1e-5)
    assert history.train_accuracy.to_numpy() == pytest.approx(run.trace.correct.mean(1))


def test_checkpoints_are_the_nets_of_their_epochs(small):
    run = train("mlp", small, replace(SHORT, epochs=12))
    assert list(run.stops.index) == list(STOPS)
    for name in STOPS:
        epoch, net = run.snapshot_epoch(name), run.snapshot(name)
        row = run.history.iloc[epoch]
        assert signals.weight_norm(net).item() == pytest.approx(row.weight_norm, rel=1e-6)
    assert run.snapshot_epoch("best_val") == run.history.val_loss.idxmin()
    assert run.snapshot_epoch("weight_norm") == run.peak.peak_epoch
    assert run.stops["epoch"].to_dict() == {name: run.snapshot_epoch(name) for name in STOPS}
    with pytest.raises(ValueError, match=r"unknown stop 'best'; this run has input_gradient, wei"):
        run.snapshot("best")
    with pytest.raises(ValueError, match=r"device is 'cuda:99'"):
        run.snapshot("last", device="cuda:99")


def test_stop_really_stops_at_the_peak_and_scores_the_same(small):
    config = replace(SHORT, epochs=40, weight_decay=3e-2, patience=3)
    whole = train("mlp", small, config)
    stopped = train("mlp", small, replace(config, stop="weight_norm"))
    detected = whole.peak.detected_epoch
    assert detected is not None
    assert len(stopped.history) == detected + 1
    for name in ("sgal", "early_csg"):
        assert stopped.scores[name].equals(whole.scores[name])
    assert same(weights(stopped, "weight_norm"), weights(whole, "weight_norm"))


# Label noise, so that each stop comes before the last epoch.
LONG = TrainConfig(epochs=50, batch_size=20, lr=0.1, weight_decay=3e-2, patience=3)


@pytest.fixture(scope="module")
def noisy(small):
    return small.with_noise(0.4)


@pytest.fixture(scope="module")
def long_run(noisy):
    return train("mlp", noisy, LONG)


@pytest.mark.parametrize("stop", [stop for stop in STOPS if stop != "last"])
def test_a_training_stops_where_the_whole_one_says(noisy, long_run, stop):
    row = long_run.stops.loc[stop]
    stopped = train("mlp", noisy, replace(LONG, stop=stop))
    first = row if stop != "best_val" else stopped.stops.loc[stop]  # a later loss may be lower
    assert len(stopped.history) == first.trained == first.detected + 1 < 50
    assert stopped.history["train_loss"].equals(long_run.history["train_loss"][: first.trained])
    if stop != "best_val":
        assert same(weights(stopped, stop), weights(long_run, stop))
        pd.testing.assert_frame_equal(stopped.scores_at(stop), long_run.scores_at(stop))


def test_the_last_epoch_is_a_stop_by_name(small):
    assert replace(SHORT, stop="last") == SHORT
    run = train("mlp", small, replace(SHORT, epochs=2, stop="last"))
    assert run.stops.loc["last"].tolist() == [1, 1, 2]
    whole = run.scores.drop(columns=["sgal", "early_csg"])
    assert run.scores_at("last")[list(whole)].equals(whole)


def test_changes_of_labels_are_counted_from_the_predictions(noisy, long_run):
    predicted = long_run.trace.predicted
    assert predicted.dtype == np.int16 and predicted.shape == (50, len(noisy.train))
    expected = (predicted[1:] != predicted[:-1]).sum(1)
    changes = long_run.history["label_changes"]
    assert np.isnan(changes[0]) and changes[1:].tolist() == expected.tolist()
    right = predicted == noisy.train.labels.numpy()
    assert np.array_equal(right, long_run.trace.correct)  # no ties here
    wave = LabelWave()
    for value in changes:
        wave.update(value)
    assert long_run.stops.loc["label_wave", ["epoch", "detected"]].tolist() == list(wave.peak)


def test_scores_at_a_stop_are_those_of_the_epochs_up_to_it(noisy, long_run):
    trace = long_run.trace
    assert len({*long_run.stops["epoch"]}) == 5  # else one stop could be taken for another
    for stop, epoch in long_run.stops["epoch"].items():
        frame, until = long_run.scores_at(stop), epoch + 1
        assert frame["csl"].to_numpy() == pytest.approx(trace.loss[:until].sum(0), rel=1e-5)
        squares = (trace.grad_l2[:until].astype(float) ** 2).sum(0)
        assert frame["csg"].to_numpy() == pytest.approx(squares, rel=1e-5)
        assert frame["sgal"].equals(frame["csl"].rename("sgal"))
        assert frame["early_csg"].equals(frame["csg"].rename("early_csg"))
    at_peak = long_run.scores_at("input_gradient")
    assert at_peak["sgal"].equals(long_run.scores["sgal"])
    with pytest.raises(ValueError, match=r"unknown stop 'loss'; this run has input_gradient, weig"):
        long_run.scores_at("loss")


def test_post_hoc_scores_at_a_stop_leave_out_what_was_measured_later(small):
    measure = MeasureConfig(posthoc=True, logit_gradients=True, weight_gradients=True)
    config = replace(SHORT, epochs=8, weight_decay=0.1, patience=2)
    run = train("mlp", small, config, measure)
    assert run.stops.loc["weight_norm", "epoch"] < 7
    early = run.scores_at("weight_norm", posthoc=True)
    assert set(run.posthoc_scores) - set(early) == {"vog_last5", "vog_last5_class"}
    stop = run.stops.loc["weight_norm", "epoch"] + 1
    shorter = np.asarray(run.posthoc_trace.vog[stop - 1], float)
    assert early["vog"].to_numpy() == pytest.approx(shorter)


def test_order_is_a_function_of_seed_and_epoch():
    torch.manual_seed(99)
    first = shuffled(50, 1, 2)
    torch.manual_seed(5)
    assert torch.equal(first, shuffled(50, 1, 2))
    orders = {tuple(shuffled(50, s, e).tolist()) for s in range(4) for e in range(4)}
    assert len(orders) == 16


def test_without_posthoc_there_are_no_posthoc_scores(small):
    run = train("mlp", small, replace(SHORT, epochs=1))
    with pytest.raises(ValueError, match=r"train with MeasureConfig\(posthoc=True\)"):
        _ = run.posthoc_scores


BAD = [
    ({"optimizer": "sdg"}, r"unknown optimizer 'sdg'; known: sgd, adam"),
    ({"augment": "flip"}, r"unknown augment 'flip'; known: none, crop"),
    (
        {"stop": "loss"},
        r"unknown stop 'loss'; expected None or one of .*'label_wave', 'best_val', 'last'",
    ),
    ({"epochs": 0}, r"epochs=0, .* at least one epoch"),
    ({"lr": 0.0}, r"lr=0.0: expected"),
    ({"lr": math.nan}, r"lr=nan: expected"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_recipes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


def test_fewer_samples_than_a_batch_are_refused(small):
    with pytest.raises(ValueError, match=r"101 training samples are fewer than a batch of 128"):
        train("mlp", small, replace(SHORT, batch_size=128))


@pytest.mark.parametrize(
    ("saved", "resumed", "message"),
    [
        ({"record": False}, {}, "saved with record=False: resume with the same option"),
        ({}, {"record": False}, "saved with record=True"),
        ({}, {"measure": MeasureConfig(posthoc=True)}, "saved with MeasureConfig.posthoc=False"),
    ],
)
def test_a_checkpoint_of_other_options_is_refused(small, tmp_path, saved, resumed, message):
    class Stopped(Exception):
        pass

    def stop(row):
        if row["epoch"] == 1:
            raise Stopped

    checkpoint = TrainingCheckpoint(tmp_path / "a.checkpoint")
    checkpoint.is_due = lambda: True
    with pytest.raises(Stopped):
        train("mlp", small, SHORT, checkpoint=checkpoint, watch=stop, **saved)
    with pytest.raises(ValueError, match=message):
        train("mlp", small, SHORT, checkpoint=checkpoint, **resumed)


def test_divergence_is_reported(small):
    with pytest.raises(FloatingPointError, match=r"lower the learning rate"):
        train("mlp", small, replace(SHORT, lr=1e12))


def test_a_run_gives_its_traces_rates_and_labels(small, run):
    for trace in (run.trace, run.posthoc_trace):
        assert trace.lr.tolist() == run.history.lr.tolist()
        assert np.array_equal(trace.y_true, small.train.labels.numpy())


def test_jobs_are_done_once_and_found_again(small, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    jobs = [Job("mlp", small, replace(SHORT, seed=s)) for s in (0, 1, 0)]
    first = train_many(jobs, n_jobs=1)
    assert first[0].scores.equals(first[2].scores)
    assert not first[0].scores.equals(first[1].scores)
    assert len(list(tmp_path.glob("run-*"))) == 2
    monkeypatch.setattr("memlens.training.jobs.train", lambda *_: pytest.fail("trained again"))
    again = train_many(jobs)
    assert all(a.scores.equals(b.scores) for a, b in zip(first, again, strict=True))
    assert same(weights(first[1]), weights(again[1]))


@pytest.mark.slow
def test_jobs_side_by_side_give_the_same_bits(small, tmp_path, monkeypatch):
    jobs = [Job("mlp", small, replace(SHORT, seed=s)) for s in range(2)]
    results = []
    # The third time the workers are those of the second, and must not write to its cache.
    for time, n in enumerate((1, 2, 2)):
        monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / str(time)))
        results.append(train_many(jobs, n_jobs=n))
    for one, *others in zip(*results, strict=True):
        assert all(one.scores.equals(other.scores) for other in others)


def test_a_damaged_piece_is_computed_again(small, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    job = Job("mlp", small, SHORT)
    first = train_many([job])[0]
    path = tmp_path / job.key / "arrays.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="damaged"):
        again = train_many([job])[0]
    assert again.scores.equals(first.scores)
    assert Store().get(job.key) is not None


def test_everything_that_shapes_a_run_is_in_its_key(small):
    job = Job("mlp", small, SHORT)
    keys = {
        job.key,
        replace(job, model="mlp_bn").key,
        replace(job, config=replace(SHORT, seed=1)).key,
        replace(job, config=replace(SHORT, sam_rho=0.1)).key,
        replace(job, measure=MeasureConfig(posthoc=True)).key,
        replace(job, measure=MeasureConfig(posthoc=True, logit_gradients=True)).key,
        replace(job, data=small.with_noise(0.1)).key,
        replace(job, data=replace(small, std=(0.5,))).key,
    }
    assert len(keys) == 8


def test_predict_is_in_eval_mode_and_gives_the_mode_back(small):
    net = registry.build("mlp_bn", 10, small.in_shape).train()
    one = predict(net, small, small.test.images[:1])
    assert net.training
    assert torch.allclose(one, predict(net, small, small.test.images)[:1], atol=1e-5)
    assert torch.allclose(one, predict(net, small, small.test, rows=7)[:1], atol=1e-5)
