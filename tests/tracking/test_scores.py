"""Scores against a trace worked out by hand, published behaviours, TracIn against GraNd."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hand_made import SCORES, TRACE

import memlens as ml
from memlens.tracking import scores, signals
from memlens.tracking.peaks import Peak
from memlens.tracking.traces import Trace
from memlens.tracking.weightgrads import weight_gradient_norm
from memlens.training.config import MeasureConfig, TrainConfig

# not rising from the first to the third; the loss of the third never moves
FLAT = ["vog_class", "vog_last5_class", "variability", "lt_iqr"]


@pytest.fixture(scope="module")
def frame():
    return scores.score_frame(TRACE, Peak(1, 3), np.array([7, 8, 9]))


@pytest.mark.parametrize("name", sorted(scores.CATALOGUE))
def test_score_by_hand(frame, name):
    """A score in the catalogue without an oracle in `hand_made` fails."""
    assert frame[name].to_numpy() == pytest.approx(SCORES[name], abs=1e-6)
    assert frame[name].dtype == np.float64


def test_higher_means_more_memorized_in_every_column(frame):
    rising = frame.drop(columns=FLAT)
    assert (rising.loc[9] > rising.loc[7]).all()


def test_the_frame_carries_the_original_index(frame):
    assert frame.index.tolist() == [7, 8, 9]
    assert frame.index.name == "index"
    assert list(frame) == list(scores.CATALOGUE)


def test_columns_appear_only_where_their_signals_were_measured():
    bare = Trace({k: TRACE[k] for k in ("loss", "grad_l2", "grad_l1", "margin", "el2n")})
    columns = set(scores.score_frame(bare, Peak(1, 3), np.arange(3)))
    post_hoc = {name for name, score in scores.CATALOGUE.items() if score.post_hoc_only}
    assert columns == set(scores.CATALOGUE) - post_hoc
    assert {"csg", "in_confidence_max"} <= columns
    assert {"curvature", "vog", "grand", "tracin"} <= post_hoc


def test_without_a_peak_the_columns_that_end_there_are_left_out(frame):
    found = scores.score_frame(TRACE, None, np.array([7, 8, 9]))
    expected = frame.drop(columns=["sgal", "early_csg"])
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_scaling_the_gradient_scales_csg_by_its_square():
    doubled = Trace(dict(TRACE) | {"grad_l2": 2 * TRACE.grad_l2})
    assert scores.csg(doubled) == pytest.approx(4 * scores.csg(TRACE))
    assert scores.csg_plain(doubled) == pytest.approx(2 * scores.csg_plain(TRACE))
    share = scores.learning_time_share
    assert share(doubled) == pytest.approx(share(TRACE))
    assert scores.learning_time(doubled, 40.0).tolist() == [0, 1, 4]
    assert scores.learning_time(TRACE, 10.0).tolist() == [0, 1, 4]


# Gradient norms of a sample; the means of their squares so far; the first t at 4, and for good.
PASSAGES = {
    "at once": ([2, 0, 2], [4, 2, 2.67], 0, 0),
    "rises first, but begins low": ([1, 5, 5], [1, 13, 17], 0, 3),
    "falls slowly": ([3, 2, 1, 1, 1], [9, 6.5, 4.67, 3.75, 3.2], 3, 3),
    "low in one epoch, but not on average": ([5, 0, 5, 0], [25, 12.5, 16.7, 12.5], 4, 4),
    "passes, and comes back": ([4, 0, 0, 0, 9], [16, 8, 5.3, 4, 19.4], 3, 5),
    "leaves, and comes back": ([2, 4, 0, 0, 0], [4, 10, 6.67, 5, 4], 0, 4),
}


@pytest.mark.parametrize("case", PASSAGES)
def test_learning_time_is_the_first_passage_of_the_threshold(case):
    norms, means, first, for_good = PASSAGES[case]
    trace = Trace({"grad_l2": np.array(norms, dtype=np.float32)[:, None]})
    so_far = [np.mean(np.square(norms[: t + 1])) for t in range(len(norms))]
    assert so_far == pytest.approx(means, abs=0.05)
    assert scores.learning_time(trace, threshold=4.0) == [first]
    assert scores.learning_time(trace, threshold=4.0, for_good=True) == [for_good]


def test_a_sample_that_never_passes_gets_what_is_asked_for():
    trace = Trace({"grad_l2": np.full((3, 2), 2.0)})
    assert scores.learning_time(trace, 3.9).tolist() == [3, 3]
    assert scores.learning_time(trace, 3.9, never_learned=100).tolist() == [100, 100]
    assert scores.learning_time(trace, 4.0).tolist() == [0, 0]


def test_cartography_and_the_range_of_the_loss_against_a_slow_loop():
    rng = np.random.default_rng(0)
    trace = Trace({"loss": rng.exponential(1.0, (11, 7)).astype(np.float32)})
    for i in range(7):
        losses = sorted(float(x) for x in trace.loss[:, i])
        p = [math.exp(-x) for x in losses]
        mean = sum(p) / 11
        assert scores.confidence(trace)[i] == pytest.approx(1 - mean)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in p) / 11)
        assert scores.variability(trace)[i] == pytest.approx(deviation)
        middle = (losses[7] + losses[8]) / 2 - (losses[2] + losses[3]) / 2  # ranks 7.5 and 2.5
        assert scores.lt_iqr(trace)[i] == pytest.approx(middle)


def test_large_gradients_do_not_overflow():
    big = np.full((300, 1), 1e19, dtype=np.float32)
    trace = Trace({"grad_l2": big, "weight_grad": big}, lr=np.ones(300))
    assert scores.csg(trace) == pytest.approx([3e40])
    assert scores.tracin(trace) == pytest.approx([3e40])


def test_a_sample_never_learned_gets_the_documented_value():
    """The value is T, the number of epochs, unless the argument overrides it."""
    margin = np.array([[-1, 1], [0, -1], [-3, 1], [-1, 1], [-1, -1]], dtype=np.float32)
    trace = Trace({"margin": margin})
    values = {"T": 5.0, "1": 1.0}
    documented = {n: s for n, s in scores.CATALOGUE.items() if s.never_learned != "-"}
    assert set(documented) == {"forgetting", "first_correct", "last_wrong", "share_wrong"}
    for name, score in documented.items():
        never, learned = score.function(trace)
        assert never == values[score.never_learned], name
        assert learned == {"forgetting": 2, "last_wrong": 5, "share_wrong": 0.4}.get(name, 0)
    for name in ("forgetting", "first_correct"):
        for never in (0.0, 1000.0, math.inf):
            found = documented[name].function(trace, never_learned=never)
            assert found.tolist() == [never, documented[name].function(trace)[1]]


def test_in_confidence_against_the_softmax():
    """Both forms match the logits, even for very large ones."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=generator, dtype=torch.float64) * 5
    logits[0], y = torch.tensor([90.0, 0, 0, 0]), torch.arange(50) % 4
    logits[1] = torch.tensor([90.0, 0, 0, 0])  # sure, and wrong
    trace = Trace({
        "loss": signals.loss(logits, y).numpy()[None].astype(np.float32),
        "margin": signals.margin(logits, y).numpy()[None].astype(np.float32),
    })  # fmt: skip
    p = logits.softmax(1)
    of_label = 1 - p.gather(1, y[:, None])[:, 0]
    assert scores.in_confidence(trace) == pytest.approx(of_label.numpy(), rel=1e-4, abs=1e-5)
    largest = 1 - p.amax(1).numpy()
    assert scores.in_confidence_max(trace) == pytest.approx(largest, rel=1e-4, abs=1e-5)
    assert scores.in_confidence_max(trace)[1] == pytest.approx(0, abs=1e-6)
    assert scores.in_confidence(trace)[1] == pytest.approx(1)
    assert (scores.in_confidence_max(trace) >= 0).all()


def test_class_normalised_by_class():
    values = np.array([1.0, 10.0, 3.0, 30.0, 5.0, 7.0])
    y_true = np.array([0, 1, 0, 1, 0, 2])  # the last one is alone in its class
    spread = math.sqrt(8 / 3)
    found = scores.class_normalised(values, y_true)
    assert found == pytest.approx([-2 / spread, -1, 0, 1, 2 / spread, 0])
    shifted = values + 100 * y_true  # what a class has in common is gone
    assert scores.class_normalised(shifted, y_true) == pytest.approx(found)
    assert scores.class_normalised(np.ones(4), np.array([0, 0, 1, 1])).tolist() == [0] * 4


def test_grand_and_el2n_are_those_of_the_early_epoch():
    rows = np.arange(15.0, dtype=np.float32)[:, None]
    trace = Trace({"weight_grad": rows, "el2n": rows})
    assert scores.grand(trace) == scores.early_el2n(trace) == [10]
    assert scores.grand(trace.until(6)) == scores.early_el2n(trace.until(6)) == [5]
    gaps = rows.copy()
    gaps[np.arange(15) % 4 != 0] = np.nan  # 0, 4, 8, 12: the last one by the early epoch
    assert scores.grand(Trace({"weight_grad": gaps})) == [8]


def test_unmeasured_signals_are_reported():
    with pytest.raises(ValueError, match=r"none of 4 epochs was measured: lower `every`"):
        scores.vog(Trace({"vog": np.full((4, 3), np.nan)}))
    bare = Trace({"vog": np.ones((4, 3)), "weight_grad": np.ones((4, 3))})
    with pytest.raises(ValueError, match=r"y_true has shape \(\); expected \(3,\): pass y_true"):
        scores.vog_class(bare)
    with pytest.raises(ValueError, match=r"no learning rates: pass lr to Trace"):
        scores.tracin(bare)


@pytest.mark.parametrize("model", ["mlp", "small_cnn_bn"])
def test_tracin_of_one_epoch_with_rate_one_is_grand_squared(tiny, model):
    """On a real training; at any other rate it is the rate times that."""
    measure = MeasureConfig(posthoc=True, weight_gradients=True)
    for lr in (1.0, 0.01):
        config = TrainConfig(epochs=1, batch_size=16, lr=lr, milestones=())
        run = ml.train(model, tiny, config, measure)
        frame, net = run.posthoc_scores, run.snapshot("last")
        assert frame["tracin"].to_numpy() == pytest.approx(lr * frame["grand"] ** 2, rel=1e-5)
        norm = weight_gradient_norm(net, tiny.normalise(tiny.train.images), tiny.train.labels)
        square = lr * norm.detach().double().numpy() ** 2
        assert frame["tracin"].to_numpy() == pytest.approx(square, rel=1e-3, abs=1e-8)
        assert (frame["tracin_last_layer"] <= frame["tracin"] * (1 + 1e-5)).all()


def test_tracin_takes_the_rates_of_the_run(tiny):
    config = TrainConfig(epochs=5, batch_size=16)
    run = ml.train("mlp", tiny, config, MeasureConfig(posthoc=True, weight_gradients=True))
    rates = np.array([config.lr_at(epoch) for epoch in range(5)])
    assert len(set(rates)) == 3
    squares = run.posthoc_trace.weight_grad.astype(np.float64) ** 2
    assert run.posthoc_scores["tracin"].to_numpy() == pytest.approx(rates @ squares, rel=1e-6)


def test_the_margin_under_the_curve_of_a_flipped_sample_is_negative(flipped):
    _, frame, is_flip = flipped
    area = -frame["aum"].to_numpy()
    assert (area[is_flip] < 0).mean() > 0.8
    assert (area[~is_flip] > 0).mean() > 0.9
