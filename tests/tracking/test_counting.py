"""Scores of loops with unequal visits, sums and means over visits, label quality."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from memlens.tracking import scores
from memlens.tracking.counting import CountingRecorder
from memlens.tracking.peaks import Peak
from memlens.tracking.recorder import Recorder
from memlens.tracking.traces import SIGNALS, Trace

N = 12


def recorded(epochs, kind, seed=0):
    """Record random logits: only the visits matter here."""
    recorder, generator = kind(N), torch.Generator().manual_seed(seed)
    for order in epochs:
        x = recorder.watch(torch.randn(len(order), 3, generator=generator))
        index = torch.tensor(order)
        F.cross_entropy(x, index % 3).backward()
        recorder.update(index, x, x, index % 3)
        recorder.end_epoch()
    return recorder


def random_trace(holes, n_epochs=6, seed=0):
    rng = np.random.default_rng(seed)
    rows = {name: rng.normal(size=(n_epochs, N)).astype(np.float32) for name in SIGNALS}
    for name in ("loss", "grad_l2", "grad_l1", "el2n"):
        rows[name] = np.abs(rows[name])
    gaps = rng.random((n_epochs, N)) < holes
    for array in rows.values():
        array[gaps] = np.nan
    return Trace(rows, visits=(~gaps).astype(np.int64))


def test_scores_of_a_complete_recorder_are_those_of_its_trace():
    recorder = recorded([range(N)] * 3, Recorder)
    found, plain = recorder.scores(Peak(1, 2)), recorder.scores()
    expected = scores.score_frame(recorder.trace, Peak(1, 2), np.arange(N))
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert list(plain.index) == list(range(N)) and plain.index.name == "index"
    assert set(found) - set(plain) == {"sgal", "early_csg"}
    assert not (found.sgal == found.csl).any()


def test_counted_single_visits_give_the_scores_of_the_plain_recorder():
    plain, counted = (recorded([range(N)] * 3, kind) for kind in (Recorder, CountingRecorder))
    found = counted.scores()
    pd.testing.assert_frame_equal(plain.scores(), found, rtol=1e-6)


def test_forgetting_counts_changes_between_visits():
    margin = np.array([[1, np.nan, -1], [np.nan, 1, np.nan], [-1, np.nan, np.nan], [1, -1, 1]])
    trace = Trace({"margin": margin}, visits=(~np.isnan(margin)).astype(np.int64))
    found = scores.score_frame(trace, Peak(3, None), np.arange(3)).forgetting
    assert found.tolist() == [1, 1, 0]
    # without filling, a gap counts as a wrong prediction
    assert scores.forgetting(Trace({"margin": margin[:, :1]})).tolist() == [1]
    assert scores.forgetting(Trace({"margin": margin[[0, 1, 3], :1]})).tolist() == [1]
    kept = Trace({"margin": margin[[0, 1, 3], :1]}, visits=trace.visits[[0, 1, 3], :1])
    assert scores.score_frame(kept, Peak(2, None), np.arange(1)).forgetting.tolist() == [0]


def test_a_sample_never_visited_has_no_score_and_changes_no_other():
    recorder = recorded([[0, 1, 2, 3], [2, 3, 4, 4], [0, 1, 5, 5]], CountingRecorder)
    found = recorder.scores()
    assert found.iloc[6:].isna().all().all()
    assert found.iloc[:6].notna().all().all()
    part = recorder.trace.of(np.arange(6))
    alone = scores.score_frame(part, None, np.arange(6))
    pd.testing.assert_frame_equal(found.iloc[:6], alone, check_names=False)


def test_a_share_that_is_not_merged_scores_its_visits():
    share = CountingRecorder(N)
    for order in ([0, 1, 2], [1, 2, 3]):
        x, index = share.watch(torch.randn(3, 3)), torch.tensor(order)
        F.cross_entropy(x, index % 3).backward()
        share.update(index, x, x, index % 3)
        share.end_epoch()
    found = share.scores()
    assert found.iloc[:4].notna().all().all() and found.iloc[4:].isna().all().all()
    alone = scores.score_frame(share.trace.of(np.arange(4)), None, np.arange(4))
    pd.testing.assert_frame_equal(found.iloc[:4], alone, check_names=False)


def test_a_sample_without_a_gradient_has_no_learning_time_and_changes_no_other():
    trace = random_trace(0.0)
    rows = dict(trace)
    for name in ("grad_l2", "grad_l1"):
        rows[name] = rows[name].copy()
        rows[name][:, 3] = np.nan  # every step that saw it overflowed
    found = scores.score_frame(Trace(rows, visits=trace.visits), Peak(5, None), np.arange(N))
    assert found.columns[found.loc[3].isna()].tolist() == [
        "csg", "csg_plain", "loss_sensitivity", "learning_time_share", "early_csg"
    ]  # fmt: skip
    rest = np.delete(np.arange(N), 3)
    alone = scores.score_frame(trace.of(rest), Peak(5, None), rest)
    pd.testing.assert_frame_equal(found.loc[rest], alone)
    nothing = Trace({"grad_l2": np.full((2, 3), np.nan)})
    assert np.isnan(scores.learning_time_share(nothing)).all()
    assert np.isnan(scores.learning_time(nothing, 1.0)).all()


def test_scores_that_end_at_the_peak_use_no_later_value():
    nan = np.nan
    loss = np.array([[1, nan, 2], [3, nan, nan], [nan, 9, 5]])
    trace = Trace({"loss": loss, "grad_l2": loss}, visits=(~np.isnan(loss)).astype(np.int64))
    found = scores.score_frame(trace, Peak(1, 2), np.arange(3))
    np.testing.assert_array_equal(found.sgal, [4, nan, 4])
    np.testing.assert_array_equal(found.early_csg, [10, nan, 8])
    np.testing.assert_array_equal(found.csl, [7, 27, 9])


def test_scores_of_one_process_of_several_raise_a_warning(monkeypatch):
    recorder = recorded([range(N)], CountingRecorder)
    monkeypatch.setattr("memlens.tracking.counting.world_size", lambda: 2)
    with pytest.warns(UserWarning, match=r"one process's share: call recorder.gathered\(\)"):
        recorder.scores()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CountingRecorder.merge(recorder).scores()


@pytest.mark.parametrize("holes", [0.0, 0.4])
def test_sums_and_means_are_over_visits(holes):
    trace = random_trace(holes)
    visits = trace.visits * np.random.default_rng(1).integers(1, 4, trace.visits.shape)
    trace = Trace(dict(trace), visits=visits)
    found = scores.visit_sums(trace)
    for sample in range(N):
        made = [(e, k) for e, k in enumerate(visits[:, sample]) if k]
        number = sum(k for _, k in made)
        csg = sum(k * float(trace.grad_l2[e, sample]) ** 2 for e, k in made)
        csl = sum(k * float(trace.loss[e, sample]) for e, k in made)
        norm = sum(k * float(trace.grad_l1[e, sample]) for e, k in made)
        row = found.loc[sample]
        assert row.visits == number
        sums = row[["csl_sum", "csg_sum", "loss_sensitivity_sum"]].tolist()
        means = row[["csl_mean", "csg_mean", "loss_sensitivity_mean"]].tolist()
        assert sums == pytest.approx([csl, csg, norm])
        assert means == pytest.approx([csl / number, csg / number, norm / number])


def test_with_one_visit_an_epoch_the_sums_are_the_scores():
    trace = random_trace(0.0)
    for each in (trace, Trace(dict(trace))):  # with and without counts
        found = scores.visit_sums(each)
        np.testing.assert_allclose(found.csl_sum, scores.csl(trace))
        np.testing.assert_allclose(found.csg_sum, scores.csg(trace))
        np.testing.assert_allclose(found.loss_sensitivity_mean, scores.loss_sensitivity(trace))
        assert (found.visits == 6).all()


def test_every_visit_within_an_epoch_counts_in_the_sum():
    recorder = recorded([[0, 0, 0, 1]], CountingRecorder)
    found = scores.visit_sums(recorder.trace)
    assert found.visits.tolist()[:3] == [3, 1, 0]
    assert found.csl_sum[0] == pytest.approx(3 * recorder.trace.loss[0, 0])
    assert found.csl_sum[2] == 0 and np.isnan(found.csl_mean[2])


def test_label_quality_is_accepted_by_cleanlab():
    rank = pytest.importorskip("cleanlab.rank")
    score = pd.Series([0.3, 8.0, 0.1, np.nan, 2.0, 0.3])
    quality = scores.label_quality(score)
    assert quality[3] != quality[3] and quality.drop(3).between(0, 1, inclusive="neither").all()
    assert quality[0] == quality[5]
    worst = rank.order_label_issues(
        label_issues_mask=np.ones(5, bool), labels=np.array([0, 1, 0, 1, 0]),
        pred_probs=np.full((5, 2), 0.5), rank_by="self_confidence",
    )  # fmt: skip
    assert len(worst) == 5
    assert quality.dropna().sort_values().index[:2].tolist() == [1, 4]
