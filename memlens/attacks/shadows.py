"""What an attacker has: answers of a target, and of shadow nets whose training sets are known.

The target is one net's answers about every sample, without a word on which samples it was trained
on; the shadows are the answers of nets trained like it on subsets that are known. Both are looked
at through the log odds of the label, phi = log p_y - log(1 - p_y), worked out in float64 from the
logits, where a softmax would have rounded p to 1.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp


def true_class_logit(logits: np.ndarray, y_true: np.ndarray) -> np.ndarray:
    """Log odds of the label, phi = log p_y - log(1 - p_y), float64, (..., n_samples).

    Of logits (..., n_samples, n_classes). The confidence of Carlini et al. (2022, Sec. VI), without
    the rounding of a softmax.
    """
    logits = np.asarray(logits, dtype=np.float64)
    own = np.arange(logits.shape[-1]) == np.asarray(y_true)[:, None]
    true = np.where(own, logits, 0).sum(axis=-1)
    return true - logsumexp(np.where(own, -np.inf, logits), axis=-1)


def _check_answers(
    logits: np.ndarray, y_true: np.ndarray, curvature: np.ndarray | None, n_axes: int
) -> None:
    if logits.ndim != n_axes or logits.shape[-2:-1] != np.shape(y_true) or not logits.size:
        raise ValueError(
            f"logits have shape {logits.shape} for y_true {np.shape(y_true)}: expected "
            f"{'(n_models, ' if n_axes == 4 else '('}n_augmentations, n_samples, n_classes)"
        )
    if not np.isfinite(logits).all():
        raise ValueError("logits hold NaN or infinite values: did the training diverge?")
    labels, n_classes = np.asarray(y_true), logits.shape[-1]
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(
            f"y_true is {labels.dtype} from {labels.min()} to {labels.max()}: expected whole "
            f"labels from 0 to {n_classes - 1}, one for each column of the logits"
        )
    asked = (*logits.shape[:-3], logits.shape[-2])
    if curvature is not None and np.shape(curvature) != asked:
        raise ValueError(f"curvature has shape {np.shape(curvature)}: expected {asked}")


@dataclass(frozen=True)
class Target:
    """What one net answers about every sample; nothing here says which it was trained on.

    Attributes
    ----------
    logits : ndarray (n_augmentations, n_samples, n_classes), finite
    y_true : ndarray (n_samples,), int64
    settings : mapping, how the net was trained and stopped
    curvature : ndarray (n_samples,), 0 or more, or None: `signals.zero_order_curvature`
    """

    logits: np.ndarray
    y_true: np.ndarray
    settings: Mapping[str, object]
    curvature: np.ndarray | None = None

    def __post_init__(self) -> None:
        _check_answers(self.logits, self.y_true, self.curvature, 3)

    @cached_property
    def phi(self) -> np.ndarray:
        """True-class logit of each view, (n_augmentations, n_samples), float64."""
        return true_class_logit(self.logits, self.y_true)


class Normals(NamedTuple):
    """A normal distribution a sample, of the nets with it and of those without it."""

    mean_in: np.ndarray
    std_in: np.ndarray
    mean_out: np.ndarray
    std_out: np.ndarray


@dataclass(frozen=True)
class Shadows:
    """What nets trained like the target answer, and which samples each of them was trained on.

    Attributes
    ----------
    masks : ndarray (n_models, n_samples), bool: trained on it?
    logits : ndarray (n_models, n_augmentations, n_samples, n_classes), finite
    y_true : ndarray (n_samples,), int64
    settings : mapping, how the nets were trained and stopped; a target's must be the same
    curvature : ndarray (n_models, n_samples), 0 or more, or None

    Raises
    ------
    ValueError
        If shapes do not fit, or a sample has fewer than two nets with it, or without it.
    """

    masks: np.ndarray
    logits: np.ndarray
    y_true: np.ndarray
    settings: Mapping[str, object]
    curvature: np.ndarray | None = None
    # not an argument, so that a copy with other answers starts without the fits of these
    _known: dict[Hashable, Normals] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        _check_answers(self.logits, self.y_true, self.curvature, 4)
        expected = self.logits.shape[0], self.logits.shape[2]
        if self.masks.shape != expected or self.masks.dtype != bool:
            raise ValueError(
                f"masks are {self.masks.dtype} {self.masks.shape}: expected bool {expected}"
            )
        few = np.minimum(self.masks.sum(0), (~self.masks).sum(0)) < 2
        if few.any():
            raise ValueError(
                f"{few.sum()} samples, the first at {few.argmax()}, have fewer than two shadows "
                f"with them or without them among {len(self.masks)}: train more"
            )

    @cached_property
    def phi(self) -> np.ndarray:
        """True-class logit of each view, (n_models, n_augmentations, n_samples), float64."""
        return true_class_logit(self.logits, self.y_true)

    def normals(
        self, name: str, values: Callable[[], np.ndarray], variance: str, *, centre: str
    ) -> Normals:
        """Normal distributions of values (n_models, n_augmentations, n_samples); worked out once a name."""
        key = name, variance, centre
        if key not in self._known:
            self._known[key] = fit_normals(values(), self.masks, variance, centre=centre)
        return self._known[key]


def fit_normals(
    values: np.ndarray, masks: np.ndarray, variance: str = "fixed", *, centre: str = "median"
) -> Normals:
    """A normal distribution a view and sample, of the nets with it, and of those without.

    Parameters
    ----------
    values : ndarray (n_models, n_augmentations, n_samples)
    masks : ndarray (n_models, n_samples), bool
    variance : "fixed" or "per_sample"
        A standard deviation of each sample's own; or one for all, from the deviations from each
        sample's centre: a few nets a sample estimate a centre well and a spread badly.
    centre : "median" or "mean"

    Returns
    -------
    Normals
        Means and standard deviations (divisor: the count), broadcastable to (n_augmentations, n_samples).
    """
    if variance not in ("fixed", "per_sample"):
        raise ValueError(f'variance is {variance!r}: pass "fixed" or "per_sample"')
    found = []
    for chosen in (masks, ~masks):
        chosen = np.broadcast_to(chosen[:, None], values.shape)
        mean = _centre(values, chosen, centre)
        if variance == "fixed":
            std = np.sqrt(((values - mean) ** 2).mean(where=chosen))
        else:
            std = values.std(axis=0, where=chosen)
        found += [mean, std]
    return Normals(*found)


def _centre(values: np.ndarray, chosen: np.ndarray, centre: str) -> np.ndarray:
    if centre == "mean":
        return values.mean(axis=0, where=chosen)
    # The others sort to the end, so that the middle of the chosen lies at their count's half.
    ordered = np.sort(np.where(chosen, values, np.inf), axis=0)
    n = chosen.sum(axis=0)[None]
    low, high = (np.take_along_axis(ordered, k, axis=0)[0] for k in ((n - 1) // 2, n // 2))
    return (low + high) / 2


def check_pair(target: Target, shadows: Shadows) -> None:
    """Refuse shadows that say nothing about the target, or too much.

    Raises
    ------
    ValueError
        If the shadows were trained or stopped otherwise than the target, or asked about other
        samples or augmentations; or if the target is one of its own shadows, so that its members are known.
    """
    keys = [*target.settings, *(key for key in shadows.settings if key not in target.settings)]
    differ = [
        f"{key} is {target.settings.get(key)!r} in the target, {shadows.settings.get(key)!r} in the "
        "shadows"
        for key in keys
        if target.settings.get(key) != shadows.settings.get(key)
    ]
    if differ:
        raise ValueError(
            f"the shadows were not trained like the target: {'; '.join(differ)}; train shadows by "
            "the target's config, and stop them by its rule"
        )
    if target.logits.shape != shadows.logits.shape[1:]:
        raise ValueError(
            f"the target's logits have shape {target.logits.shape}, a shadow's "
            f"{shadows.logits.shape[1:]}: ask both about the same samples in the same augmentations"
        )
    if not np.array_equal(target.y_true, shadows.y_true):
        raise ValueError("target and shadows have different labels: ask both about one data set")
    same = (shadows.logits == target.logits).all(axis=(1, 2, 3))
    if same.any():
        raise ValueError(
            f"the target answers exactly like shadow {same.argmax()}: it is one of its own "
            "shadows, whose members are known; leave it out"
        )
