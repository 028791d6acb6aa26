"""A trace of three samples and four epochs, and every score of it, worked out by hand."""

import math

import numpy as np

from memlens.tracking.traces import Trace

NAN = [np.nan] * 3
# Four epochs of three samples: learned at once, learned then forgotten once, never learned.
RIGHT = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 0]], dtype=bool)
LOSS = np.array([[0.2, 1.0, 2.0], [0.1, 0.5, 2.0], [0.1, 0.9, 2.0], [0.0, 0.3, 2.0]])
SIGNALS = {
    "loss": LOSS,
    "grad_l2": [[1, 4, 5], [1, 2, 5], [0, 2, 5], [0, 2, 5]],
    "grad_l1": [[2, 4, 6], [2, 4, 6], [0, 4, 6], [0, 4, 6]],
    "margin": np.where(RIGHT, 2.0, -1.0),
    "el2n": LOSS / 2,
    "probability_margin": [[1, 1, 0], [2, 1, -1], [3, 1, -1], [4, 2, -3]],
    # Measured in every second epoch, like all that costs a pass of its own.
    "curvature_norm": [[1, 2, 3], NAN, [3, 4, 5], NAN],
    "curvature_squared": [[2, 4, 10], NAN, [10, 18, 30], NAN],
    "vog": [[0, 0, 0], NAN, [1, 3, 7], NAN],
    "vog_last": [NAN, NAN, NAN, [2, 8, 9]],
    "weight_grad": [[1, 2, 5], NAN, [0, 1, 4], NAN],
    "weight_grad_last": [[1, 1, 3], NAN, [0, 1, 2], NAN],
}
TRACE = Trace(
    {name: np.array(rows, dtype=np.float32) for name, rows in SIGNALS.items()},
    lr=np.array([1.0, 1.0, 0.1, 0.1]),
    y_true=np.array([4, 4, 6]),  # the first two share their class, the third is alone
)

SCORES = {
    "csg": [2, 28, 100],
    "csg_plain": [2, 10, 20],
    "loss_sensitivity": [1, 4, 6],
    "csl": [0.4, 2.7, 8],
    "forgetting": [0, 1, 4],
    "first_correct": [0, 1, 4],
    "last_wrong": [0, 3, 4],
    "share_wrong": [0, 0.5, 1],
    # running means 1 1 .67 .5 | 4 3 2.67 2.5 | 5 5 5 5; grand mean 2.94
    "learning_time_share": [0, 0.5, 1],
    "confidence": [1 - np.exp(-LOSS[:, i]).mean() for i in range(3)],
    "variability": [np.exp(-LOSS[:, i]).std() for i in range(3)],
    "lt_iqr": [0.125 - 0.075, 0.925 - 0.45, 0],
    "average_probability_margin": [-4, -2, 3],
    "aum": [-2, -0.5, 1],
    "el2n": [0, 0.15, 1],
    "final_loss": [0, 0.3, 2],
    "in_confidence": [0, 1 - math.exp(-0.3), 1 - math.exp(-2)],
    # the first two are right; the third's margin of -1 puts another class e times as high
    "in_confidence_max": [0, 1 - math.exp(-0.3), 1 - math.exp(-1)],
    "sgal": [0.3, 1.5, 4],
    "early_csg": [2, 20, 50],
    "curvature": [6, 11, 20],
    "curvature_norm": [2, 3, 4],
    "curvature_last": [10, 18, 30],
    "vog": [1, 3, 7],
    "vog_last5": [2, 8, 9],
    "vog_class": [-1, 1, 0],
    "vog_last5_class": [-1, 1, 0],
    "grand": [0, 1, 4],
    "tracin": [1, 4.1, 26.6],
    "tracin_last_layer": [1, 1.1, 9.4],
}


def title_of(ax):
    """The title of axes, wherever the style in force puts it."""
    return "".join(ax.get_title(place) for place in ("left", "center", "right"))
