"""Scores against a trace worked out by hand, and the completeness of the catalogue."""

import math

import numpy as np
import pytest

from memlens import scores
from memlens.recorder import Trace
from memlens.stopping import Peak

# Four epochs of three samples: learned at once, learned then forgotten once, never learned.
RIGHT = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 0]], dtype=bool)
LOSS = np.array([[0.2, 1.0, 2.0], [0.1, 0.5, 2.0], [0.1, 0.9, 2.0], [0.0, 0.3, 2.0]])
TRACE = Trace({
    "loss": LOSS.astype(np.float32),
    "grad_l2": np.array([[1, 4, 5], [1, 2, 5], [0, 2, 5], [0, 2, 5]], dtype=np.float32),
    "grad_l1": np.array([[2, 4, 6], [2, 4, 6], [0, 4, 6], [0, 4, 6]], dtype=np.float32),
    "margin": np.where(RIGHT, 2.0, -1.0).astype(np.float32),
    "el2n": LOSS.astype(np.float32) / 2,
    "curvature": np.array([[1, 2, 3], [3, 4, 5], [np.nan] * 3, [np.nan] * 3], dtype=np.float32),
    "curvature_squared": np.ones((4, 3), dtype=np.float32),
})  # fmt: skip

BY_HAND = {
    "csg": [2, 28, 100],
    "csg_plain": [2, 10, 20],
    "loss_sensitivity": [1, 4, 6],
    "csl": [0.4, 2.7, 8],
    "forgetting": [0, 1, 4],
    "first_correct": [0, 1, 4],
    "last_wrong": [0, 3, 4],
    # running means 1 1 .67 .5 | 4 3 2.67 2.5 | 5 5 5 5; grand mean 2.94
    "learning_time": [0, 0.5, 1],
    "aum": [-2, -0.5, 1],
    "el2n": [0, 0.15, 1],
    "final_loss": [0, 0.3, 2],
    "in_confidence": [0, 1 - math.exp(-0.3), 1 - math.exp(-2)],
    "sgal": [0.3, 1.5, 4],
    "early_csg": [2, 20, 50],
    "curvature": [2, 3, 4],
    "curvature_squared": [1, 1, 1],
}


@pytest.fixture(scope="module")
def frame():
    return scores.score_frame(TRACE, Peak(1, 3), np.array([7, 8, 9]))


@pytest.mark.parametrize("name", sorted(scores.CATALOGUE))
def test_score_by_hand(frame, name):
    """A score in the catalogue that is not in BY_HAND fails here: no score without an oracle."""
    assert frame[name].to_numpy() == pytest.approx(BY_HAND[name], abs=1e-6)


def test_higher_means_more_memorized_in_every_column(frame):
    constant = "curvature_squared"
    assert (frame.drop(columns=constant).loc[9] > frame.drop(columns=constant).loc[7]).all()


def test_the_frame_carries_the_original_index(frame):
    assert frame.index.tolist() == [7, 8, 9]
    assert frame.index.name == "index"


def test_curvature_columns_appear_only_where_it_was_measured():
    bare = Trace({k: TRACE[k] for k in ("loss", "grad_l2", "grad_l1", "margin", "el2n")})
    columns = scores.score_frame(bare, Peak(1, 3), np.arange(3)).columns
    assert "csg" in columns
    assert "curvature" not in columns


def test_scaling_the_gradient_scales_csg_by_its_square():
    doubled = Trace(dict(TRACE) | {"grad_l2": 2 * TRACE.grad_l2})
    assert scores.csg(doubled) == pytest.approx(4 * scores.csg(TRACE))
    assert scores.csg_plain(doubled) == pytest.approx(2 * scores.csg_plain(TRACE))
    assert scores.learning_time(doubled) == pytest.approx(scores.learning_time(TRACE))


def test_large_gradients_do_not_overflow():
    big = Trace({"grad_l2": np.full((300, 1), 1e19, dtype=np.float32)})
    assert scores.csg(big) == pytest.approx([3e40])


def test_every_score_has_all_its_metadata():
    table = scores.catalogue()
    assert list(table.index) == list(scores.CATALOGUE)
    assert (table.map(len) > 0).all().all()
    assert set(table["direction"]) == {"higher = more memorized"}
    assert table.loc["curvature", "measured"].startswith("post-hoc")
    assert all(score.function.__doc__ for score in scores.CATALOGUE.values())
