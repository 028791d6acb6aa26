"""Predictions of a target network, and of shadow networks whose training subsets are known.

An attack sees the target's predictions for every sample, but not its members. The shadows are
networks trained like the target on known subsets. Most attacks compare the log odds of the label,
phi = log p_y - log(1 - p_y), computed in float64 from the logits: a softmax would round p to 1.
"""

import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp


def true_class_logit(logits: np.ndarray, y_true: np.ndarray) -> np.ndarray:
    """Return the log odds of the label, log p_y - log(1 - p_y), (..., n_samples), float64.

    ``logits`` are (..., n_samples, n_classes). It is the confidence of Carlini et al. (2022,
    Sec. VI), without the rounding of a softmax.
    """
    logits = np.asarray(logits, dtype=np.float64)
    is_label = np.arange(logits.shape[-1]) == np.asarray(y_true)[:, None]
    label = np.where(is_label, logits, 0).sum(axis=-1)
    return label - logsumexp(np.where(is_label, -np.inf, logits), axis=-1)


def _check_predictions(
    logits: np.ndarray, y_true: np.ndarray, curvature: np.ndarray | None, n_axes: int
) -> None:
    if logits.ndim != n_axes or logits.shape[-2:-1] != np.shape(y_true) or not logits.size:
        raise ValueError(
            f"logits have shape {logits.shape} for y_true {np.shape(y_true)}: expected "
            f"{'(n_models, ' if n_axes == 4 else '('}n_augmentations, n_samples, n_classes)"
        )
    if not np.isfinite(logits).all():
        raise ValueError("logits contain NaN or infinite values: did the training diverge?")
    labels, n_classes = np.asarray(y_true), logits.shape[-1]
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(
            f"y_true is {labels.dtype} from {labels.min()} to {labels.max()}: expected integer "
            f"labels from 0 to {n_classes - 1}, one for each column of the logits"
        )
    expected = (*logits.shape[:-3], logits.shape[-2])
    if curvature is not None and np.shape(curvature) != expected:
        raise ValueError(f"curvature has shape {np.shape(curvature)}: expected {expected}")


@dataclass(frozen=True)
class Target:
    """Predictions of one network for every sample, without its membership.

    Attributes
    ----------
    logits : ndarray (n_augmentations, n_samples, n_classes), finite
    y_true : ndarray (n_samples,), int64
    settings : mapping
        Training settings, snapshot and queries of the network.
    curvature : ndarray (n_samples,), 0 or more, or None
        From `signals.zero_order_curvature`.

    Raises
    ------
    ValueError
        If shapes do not match, logits are not finite, or labels are not classes.
    """

    logits: np.ndarray
    y_true: np.ndarray
    settings: Mapping[str, object]
    curvature: np.ndarray | None = None

    def __post_init__(self) -> None:
        _check_predictions(self.logits, self.y_true, self.curvature, 3)

    @cached_property
    def phi(self) -> np.ndarray:
        """Log odds of the label, (n_augmentations, n_samples), float64."""
        return true_class_logit(self.logits, self.y_true)


class TooFewShadows(ValueError):
    """An attack is not defined for so few shadows."""


class Normals(NamedTuple):
    """Two normal distributions per sample: of networks trained with it, and without it."""

    mean_in: np.ndarray
    std_in: np.ndarray
    mean_out: np.ndarray
    std_out: np.ndarray


@dataclass(frozen=True)
class Shadows:
    """Predictions of networks trained like the target, and their training subsets.

    Attributes
    ----------
    masks : ndarray (n_models, n_samples), bool
        True where the network was trained on the sample.
    logits : ndarray (n_models, n_augmentations, n_samples, n_classes), finite
    y_true : ndarray (n_samples,), int64
    settings : mapping
        Training settings, snapshot and queries; must equal those of the target.
    curvature : ndarray (n_models, n_samples), 0 or more, or None

    Raises
    ------
    ValueError
        As `Target`, and if the masks do not match.
    """

    masks: np.ndarray
    logits: np.ndarray
    y_true: np.ndarray
    settings: Mapping[str, object]
    curvature: np.ndarray | None = None
    # Not an argument, so that `replace` with other logits does not reuse these fits.
    _fits: dict[Hashable, Normals] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        _check_predictions(self.logits, self.y_true, self.curvature, 4)
        expected = self.logits.shape[0], self.logits.shape[2]
        if self.masks.shape != expected or self.masks.dtype != bool:
            raise ValueError(
                f"masks are {self.masks.dtype} {self.masks.shape}: expected bool {expected}"
            )

    def require(self, n_in: int, n_out: int) -> None:
        """Refuse an attack that is not defined for so few networks.

        Raises
        ------
        TooFewShadows
            If fewer than ``n_in`` networks were trained with a sample, or ``n_out`` without it.
        """
        few = (self.masks.sum(0) < n_in) | ((~self.masks).sum(0) < n_out)
        if few.any():
            raise TooFewShadows(
                f"{few.sum()} samples, the first at {few.argmax()}, have fewer than {n_in} shadows "
                f"with them or {n_out} without them among {len(self.masks)}: train more"
            )

    @cached_property
    def phi(self) -> np.ndarray:
        """Log odds of the label, (n_models, n_augmentations, n_samples), float64."""
        return true_class_logit(self.logits, self.y_true)

    def normals(
        self, name: str, values: Callable[[], np.ndarray], variance: str, *, centre: str
    ) -> Normals:
        """Return `fit_normals` of values (n_models, n_augmentations, n_samples), fitted once.

        ``name`` identifies the values, which are computed on the first call only.
        """
        key = name, variance, centre
        if key not in self._fits:
            self._fits[key] = fit_normals(values(), self.masks, variance, centre=centre)
        return self._fits[key]


def fit_normals(
    values: np.ndarray, masks: np.ndarray, variance: str = "fixed", *, centre: str = "median"
) -> Normals:
    """Fit two normal distributions per augmentation and sample: networks with it, and without it.

    Parameters
    ----------
    values : ndarray (n_models, n_augmentations, n_samples)
    masks : ndarray (n_models, n_samples), bool
        True where the network was trained on the sample.
    variance : "fixed" or "per_sample"
        One standard deviation for all samples, from the deviations from each sample's centre; or
        one per sample. A few networks per sample estimate a centre well and a spread badly.
    centre : "median" or "mean"

    Returns
    -------
    Normals
        Means and standard deviations (divided by the count, not the count - 1), broadcastable to
        (n_augmentations, n_samples). NaN where no network was trained with a sample, or without it.

    Raises
    ------
    ValueError
        If ``variance`` is unknown.
    """
    if variance not in ("fixed", "per_sample"):
        raise ValueError(f'variance is {variance!r}: expected "fixed" or "per_sample"')
    fits = []
    for chosen in (masks, ~masks):
        chosen = np.broadcast_to(chosen[:, None], values.shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # no network on this side: NaN
            mean = _centre(values, chosen, centre)
            if variance == "fixed":
                std = np.sqrt(((values - mean) ** 2).mean(where=chosen))
            else:
                std = values.std(axis=0, where=chosen)
        fits += [mean, std]
    return Normals(*fits)


def _centre(values: np.ndarray, chosen: np.ndarray, centre: str) -> np.ndarray:
    if centre == "mean":
        return values.mean(axis=0, where=chosen)
    return np.nanmedian(np.where(chosen, values, np.nan), axis=0)


def paired_references(shadows: Shadows, n_references: int) -> Shadows:
    """Return the shadows of an attacker who trained few networks, in pairs on complementary halves.

    Half of ``n_references`` networks, rounded down, were then trained with each sample, and the
    others without it. They are chosen sample by sample, the first of each side, because random
    halves leave some samples with one side only: one "network" of the result combines predictions
    of several. One reference alone was trained without the sample (an offline attack).

    Raises
    ------
    TooFewShadows
        If fewer than one are asked for, or if a sample has fewer networks on a side.
    """
    if n_references < 1:
        raise TooFewShadows(f"{n_references} references: an attack needs one or more")
    n_in = n_references // 2
    shadows.require(n_in, n_references - n_in)
    # Sorting puts the networks of one side first, in their order.
    with_it = np.argsort(~shadows.masks, axis=0, kind="stable")[:n_in]
    without = np.argsort(shadows.masks, axis=0, kind="stable")[: n_references - n_in]
    chosen = np.concatenate([with_it, without])  # (n_references, n_samples)
    logits = np.take_along_axis(shadows.logits, chosen[:, None, :, None], axis=0)
    curvature = shadows.curvature
    if curvature is not None:
        curvature = np.take_along_axis(curvature, chosen, axis=0)
    masks = np.take_along_axis(shadows.masks, chosen, axis=0)
    return Shadows(masks, logits, shadows.y_true, shadows.settings, curvature)


def check_pair(target: Target, shadows: Shadows) -> None:
    """Refuse shadows that are not comparable with the target, or that include it.

    Raises
    ------
    ValueError
        If settings, samples or augmentations of target and shadows differ; or if the target is one
        of the shadows, so that its members are known.
    """
    keys = [*target.settings, *(key for key in shadows.settings if key not in target.settings)]
    differ = [
        f"{key} is {target.settings.get(key)!r} in the target, {shadows.settings.get(key)!r} in "
        "the shadows"
        for key in keys
        if target.settings.get(key) != shadows.settings.get(key)
    ]
    if differ:
        raise ValueError(
            f"the shadows were not trained like the target: {'; '.join(differ)}; use shadows with "
            "the target's config, snapshot and queries"
        )
    if target.logits.shape != shadows.logits.shape[1:]:
        raise ValueError(
            f"the target's logits have shape {target.logits.shape}, a shadow's "
            f"{shadows.logits.shape[1:]}: use the same samples and the same augmentations for both"
        )
    if not np.array_equal(target.y_true, shadows.y_true):
        raise ValueError("target and shadows have different labels: use one data set for both")
    same = (shadows.logits == target.logits).all(axis=(1, 2, 3))
    if same.any():
        raise ValueError(
            f"the target's predictions are those of shadow {same.argmax()}: the target is one of "
            "its own shadows, whose members are known; leave it out"
        )
