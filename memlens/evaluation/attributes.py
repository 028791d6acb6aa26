"""Attributes of images, and what goes with a high score inside each class.

An attribute is a number read off the pixels, without any network. Classes differ in their
attributes and in their scores, so a relation over all samples can come from the classes alone: the
functions here rank and test inside each class.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from memlens.evaluation import metrics

ALL = "all"  # the row of all samples in a table of classes
POOLED, IN_CLASS = "all, pooled", "all, ranks in class"


class Ends(NamedTuple):
    """What belongs to the lowest scores, and what to the highest: two tables of one shape."""

    lowest: pd.DataFrame
    highest: pd.DataFrame


def image_attributes(images: ArrayLike, labels: pd.Series, pixel_max: float) -> pd.DataFrame:
    """Return attributes of images, all but `class_distance` in [0, 1].

    Parameters
    ----------
    images : array (n_samples, 1 or 3, height, width)
        Pixels from 0 (black) to ``pixel_max`` (white). Grey images have a black background.
    labels : Series (n_samples,)
        Their index is that of the result.
    pixel_max : float

    Returns
    -------
    DataFrame (n_samples, n_attributes)
        brightness: the mean pixel. contrast: the standard deviation of the pixels. Of grey images
        area, the share of pixels that are not black, and tone, the mean of those pixels, so that
        brightness = area * tone. Of colour images saturation: the mean over pixels of the largest
        channel minus the smallest. class_distance: the Euclidean distance to the mean image of the
        class, with pixels in [0, 1].

    Raises
    ------
    ValueError
        If the shapes do not fit, or a pixel is outside [0, pixel_max].

    Examples
    --------
    >>> half_white = np.array([[[[0, 4], [4, 0]]]])
    >>> image_attributes(half_white, pd.Series([3]), 4).round(2).iloc[0].to_dict()
    {'brightness': 0.5, 'contrast': 0.5, 'area': 0.5, 'tone': 1.0, 'class_distance': 0.0}
    """
    pixels = _pixels(images, pixel_max)
    if len(pixels) != len(labels):
        raise ValueError(f"found {len(pixels)} images and {len(labels)} labels")
    grey = pixels.mean(axis=1)  # (n, h, w)
    table = {"brightness": grey.mean(axis=(1, 2)), "contrast": grey.std(axis=(1, 2))}
    if pixels.shape[1] == 1:
        area = (grey > 0).mean(axis=(1, 2))
        # a black image has no area, and tone 0
        table |= {"area": area, "tone": table["brightness"] / np.maximum(area, 1e-9)}
    else:
        table["saturation"] = np.ptp(pixels, axis=1).mean(axis=(1, 2))
    to_means, classes = _distances(pixels, labels)
    own = np.searchsorted(classes, labels)
    table["class_distance"] = to_means[np.arange(len(own)), own]
    return pd.DataFrame(table, index=labels.index)


def nearest_means(images: ArrayLike, labels: pd.Series, pixel_max: float) -> pd.DataFrame:
    """Return for each sample which other class's mean image is nearest to it.

    Parameters as in `image_attributes`; at least two classes.

    Returns
    -------
    DataFrame (n_samples,)
        label; rival, the class whose mean is the nearest of all other classes; pair, both as text
        in alphabetical order; ambiguous, True if the rival's mean is nearer than that of the
        sample's own class. The sample itself counts in the mean of its own class.

    Examples
    --------
    >>> dots = np.array([0, 1, 9, 8, 7]).reshape(5, 1, 1, 1)
    >>> labels = pd.Series(["low", "low", "high", "high", "low"])
    >>> table = nearest_means(dots, labels, 9)
    >>> table.loc[4].to_dict()
    {'label': 'low', 'rival': 'high', 'pair': 'high / low', 'ambiguous': True}
    """
    distance, classes = _distances(_pixels(images, pixel_max), labels)
    own = np.searchsorted(classes, labels)
    rows = np.arange(len(own))
    to_own = distance[rows, own]
    distance[rows, own] = np.inf
    rival = classes[distance.argmin(axis=1)]
    pair = [" / ".join(sorted(map(str, both))) for both in zip(labels, rival, strict=True)]
    ambiguous = distance.min(axis=1) < to_own
    table = {"label": labels, "rival": rival, "pair": pair, "ambiguous": ambiguous}
    return pd.DataFrame(table, index=labels.index)


def extremes(score: pd.Series, labels: pd.Series, k: int) -> Ends:
    """Return the k samples of each class with the lowest, and with the highest score.

    Of equal scores those in the first rows are taken.

    Parameters
    ----------
    score : Series (n_samples,)
    labels : Series (n_samples,)
        Of the same index.
    k : int
        At most the size of the smallest class.

    Returns
    -------
    Ends
        Two tables (n_classes, k) of indices of samples, column 0 the most extreme.

    Raises
    ------
    ValueError
        If k is below 1 or a class has fewer samples.

    Examples
    --------
    >>> score = pd.Series([0.3, 0.1, 0.2, 0.9], index=[10, 11, 12, 13])
    >>> extremes(score, pd.Series(0, score.index), 2).highest.to_numpy().tolist()
    [[13, 10]]
    """
    smallest = int(labels.value_counts().min())
    if not 1 <= k <= smallest:
        raise ValueError(f"k is {k}; expected 1 to {smallest}, the size of the smallest class")
    rising = score.groupby(labels, sort=True).apply(_sorted_index, ascending=True)
    falling = score.groupby(labels, sort=True).apply(_sorted_index, ascending=False)
    return Ends(*(
        pd.DataFrame([row[:k] for row in rows], index=rows.index) for rows in (rising, falling)
    ))  # fmt: skip


def _sorted_index(score: pd.Series, ascending: bool) -> list:
    return score.sort_values(ascending=ascending, kind="stable").index.tolist()


def rank_in_class(values: pd.Series | pd.DataFrame, labels: pd.Series) -> pd.Series | pd.DataFrame:
    """Return the rank of each value among its class, in (0, 1]; ties share their mean rank.

    Differences between classes have no part in such ranks.

    Examples
    --------
    >>> rank_in_class(pd.Series([5, 7, 1, 2]), pd.Series([0, 0, 1, 1])).tolist()
    [0.5, 1.0, 0.5, 1.0]
    """
    return values.groupby(labels).rank(pct=True)


def means_of_ends(
    values: pd.Series | pd.DataFrame,
    score: pd.Series,
    labels: pd.Series | None = None,
    share: float = 0.1,
) -> Ends:
    """Return the mean of values over the samples with the lowest, and with the highest score.

    Parameters
    ----------
    values : Series or DataFrame (n_samples, n_values)
    score : Series (n_samples,)
    labels : Series (n_samples,), optional
        Also the means inside each class, where the ends are those of the class.
    share : float
        Of the samples, or of a class, at each end; one sample at least.

    Returns
    -------
    Ends
        Two tables with the row `ALL` and, with labels, a row for each class.

    Examples
    --------
    >>> score = pd.Series(range(10))
    >>> float(means_of_ends(score**2, score, share=0.2).highest.loc["all", 0])
    72.5
    """
    values = pd.DataFrame(values)
    ends = []
    for ascending in (True, False):
        whole = _end(score, share, ascending)
        rows = {ALL: values.loc[whole].mean()}
        for name, part in [] if labels is None else score.groupby(labels):
            rows[name] = values.loc[_end(part, share, ascending)].mean()
        ends.append(pd.DataFrame(rows).T)
    return Ends(*ends)


def _end(score: pd.Series, share: float, ascending: bool) -> list:
    return _sorted_index(score, ascending)[: max(1, round(share * len(score)))]


def association_tests(
    score: pd.Series, attributes: pd.DataFrame, labels: pd.Series
) -> pd.DataFrame:
    """Test the rank correlation of each attribute with a score, pooled and inside each class.

    Parameters
    ----------
    score : Series (n_samples,)
    attributes : DataFrame (n_samples, n_attributes)
    labels : Series (n_samples,)
        Classes of fewer than three samples are left out.

    Returns
    -------
    DataFrame, index samples and attribute
        spearman (effect size, [-1, 1]), p_value (as in `metrics.associations`) and p_holm. Samples
        are `POOLED`, `IN_CLASS` (score and attributes replaced by `rank_in_class`) and each class.
        The correction of the classes is over all attributes of all classes, that of the two others
        over the attributes.
    """
    ranks = (rank_in_class(part, labels) for part in (score, attributes))
    whole = {POOLED: _tests(score, attributes), IN_CLASS: _tests(*ranks)}
    classes = {
        name: _tests(score[rows], attributes.loc[rows])
        for name, rows in attributes.groupby(labels).groups.items()
        if len(rows) > 2
    }
    by_class = pd.concat(classes, names=["samples"])
    by_class["p_holm"] = metrics.holm(by_class["p_value"])
    return pd.concat([pd.concat(whole, names=["samples"]), by_class])


def _tests(score: pd.Series, attributes: pd.DataFrame) -> pd.DataFrame:
    tests = metrics.associations(score, attributes, n_resamples=1)  # no interval
    return tests[["spearman", "p_value", "p_holm"]]


def _pixels(images: ArrayLike, pixel_max: float) -> np.ndarray:
    """Return images as float32 in [0, 1], (n, channels, h, w)."""
    pixels = np.asarray(images, dtype=np.float32) / np.float32(pixel_max)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {pixels.shape}: expected (n, 1 or 3, h, w)")
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(
            f"pixels go from {pixels.min() * pixel_max:g} to {pixels.max() * pixel_max:g}; "
            f"expected 0 to pixel_max = {pixel_max:g}"
        )
    return pixels


def _distances(pixels: np.ndarray, labels: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return distances (n_samples, n_classes) to the mean image of each class, and the classes."""
    flat, of_class = pixels.reshape(len(pixels), -1), labels.to_numpy()
    classes = np.unique(of_class)
    means = (flat[of_class == name].mean(axis=0, dtype=np.float64) for name in classes)
    return np.stack([np.linalg.norm(flat - mean, axis=1) for mean in means], axis=1), classes
