"""Was this sample trained on? Attacks that answer it: membership inference.

An attack is a function ``(target, shadows) -> (n_samples,)``, float64, higher = more likely a
member. The target is one net's answers about every sample, without a word on which samples it was
trained on; the shadows are the answers of nets trained like it on subsets that are known.

Most look at one number a view: the log odds of the label, phi = log p_y - log(1 - p_y), worked out
in float64 from the logits, where a softmax would have rounded p to 1. The loss is log(1 + e^-phi).
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import log_ndtr, logsumexp

Variance = Literal["fixed", "per_sample"]
_LEAST_SPREAD = 1e-30  # a standard deviation of 0 would divide
_LEAST_CURVATURE = 1e-12  # below it, float64 differences are rounding; ours
_LOG_2_PI = float(np.log(2 * np.pi))


def true_class_logit(logits: np.ndarray, y_true: np.ndarray) -> np.ndarray:
    """Log odds of the label, phi = log p_y - log(1 - p_y), float64, (..., n_samples).

    Of logits (..., n_samples, n_classes). The confidence of Carlini et al. (2022, Sec. VI), without
    the rounding of a softmax.
    """
    logits = np.asarray(logits, dtype=np.float64)
    own = np.arange(logits.shape[-1]) == np.asarray(y_true)[:, None]
    true = np.where(own, logits, 0).sum(axis=-1)
    return true - logsumexp(np.where(own, -np.inf, logits), axis=-1)


def _loss(phi: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, -phi)


def _check_answers(
    logits: np.ndarray, y_true: np.ndarray, curvature: np.ndarray | None, n_axes: int
) -> None:
    if logits.ndim != n_axes or logits.shape[-2:-1] != np.shape(y_true) or not logits.size:
        raise ValueError(
            f"logits have shape {logits.shape} for y_true {np.shape(y_true)}: expected "
            f"{'(n_models, ' if n_axes == 4 else '('}n_views, n_samples, n_classes)"
        )
    if not np.isfinite(logits).all():
        raise ValueError("logits hold NaN or infinite values: did the training diverge?")
    asked = (*logits.shape[:-3], logits.shape[-2])
    if curvature is not None and np.shape(curvature) != asked:
        raise ValueError(f"curvature has shape {np.shape(curvature)}: expected {asked}")


@dataclass(frozen=True)
class Target:
    """What one net answers about every sample; nothing here says which it was trained on.

    Attributes
    ----------
    logits : ndarray (n_views, n_samples, n_classes), finite
    y_true : ndarray (n_samples,), int64
    origin : mapping, how the net was trained and stopped
    curvature : ndarray (n_samples,), 0 or more, or None: `signals.zero_order_curvature`
    """

    logits: np.ndarray
    y_true: np.ndarray
    origin: Mapping[str, object]
    curvature: np.ndarray | None = None

    def __post_init__(self) -> None:
        _check_answers(self.logits, self.y_true, self.curvature, 3)

    @cached_property
    def phi(self) -> np.ndarray:
        """True-class logit of each view, (n_views, n_samples), float64."""
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
    logits : ndarray (n_models, n_views, n_samples, n_classes), finite
    y_true : ndarray (n_samples,), int64
    origin : mapping, how the nets were trained and stopped; a target's must be the same
    curvature : ndarray (n_models, n_samples), 0 or more, or None

    Raises
    ------
    ValueError
        If shapes do not fit, or a sample has fewer than two nets with it, or without it.
    """

    masks: np.ndarray
    logits: np.ndarray
    y_true: np.ndarray
    origin: Mapping[str, object]
    curvature: np.ndarray | None = None
    _known: dict[Hashable, Normals] = field(default_factory=dict, repr=False, compare=False)

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
        """True-class logit of each view, (n_models, n_views, n_samples), float64."""
        return true_class_logit(self.logits, self.y_true)

    def normals(
        self, name: str, values: Callable[[], np.ndarray], variance: str, *, centre: str
    ) -> Normals:
        """Normal distributions of values (n_models, n_views, n_samples); worked out once a name."""
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
    values : ndarray (n_models, n_views, n_samples)
    masks : ndarray (n_models, n_samples), bool
    variance : "fixed" or "per_sample"
        A standard deviation of each sample's own; or one for all, from the deviations from each
        sample's centre: a few nets a sample estimate a centre well and a spread badly.
    centre : "median" or "mean"

    Returns
    -------
    Normals
        Means and standard deviations (divisor: the count), broadcastable to (n_views, n_samples).
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


def _log_density(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    std = std + _LEAST_SPREAD
    return -(((x - mean) / std) ** 2 + _LOG_2_PI) / 2 - np.log(std)


def check_pair(target: Target, shadows: Shadows) -> None:
    """Refuse shadows that say nothing about the target, or too much.

    Raises
    ------
    ValueError
        If the shadows were trained or stopped otherwise than the target, or asked about other
        samples or views; or if the target is one of its own shadows, so that its members are known.
    """
    keys = [*target.origin, *(key for key in shadows.origin if key not in target.origin)]
    differ = [
        f"{key} is {target.origin.get(key)!r} in the target, {shadows.origin.get(key)!r} in the "
        "shadows"
        for key in keys
        if target.origin.get(key) != shadows.origin.get(key)
    ]
    if differ:
        raise ValueError(
            f"the shadows were not trained like the target: {'; '.join(differ)}; train shadows by "
            "the target's recipe, and stop them by its rule"
        )
    if target.logits.shape != shadows.logits.shape[1:]:
        raise ValueError(
            f"the target's logits have shape {target.logits.shape}, a shadow's "
            f"{shadows.logits.shape[1:]}: ask both about the same samples in the same views"
        )
    if not np.array_equal(target.y_true, shadows.y_true):
        raise ValueError("target and shadows have different labels: ask both about one data set")
    same = (shadows.logits == target.logits).all(axis=(1, 2, 3))
    if same.any():
        raise ValueError(
            f"the target answers exactly like shadow {same.argmax()}: it is one of its own "
            "shadows, whose members are known; leave it out"
        )


def lira(target: Target, shadows: Shadows, *, variance: Variance = "fixed") -> np.ndarray:
    """Likelihood ratio attack, online (Carlini et al. 2022, Algorithm 1), (n_samples,).

    log N(phi; with) - log N(phi; without), meaned over views after the logarithm; the centres are
    medians. ``variance`` as in `fit_normals`; fixed is the better one up to about 64 shadows. The
    public code takes its fixed spread over all samples at once, differences between samples
    included, and for both sides from the nets with the sample.
    """
    check_pair(target, shadows)
    known = shadows.normals("phi", lambda: shadows.phi, variance, centre="median")
    inside = _log_density(target.phi, known.mean_in, known.std_in)
    return (inside - _log_density(target.phi, known.mean_out, known.std_out)).mean(axis=0)


def lira_offline(
    target: Target, shadows: Shadows, *, variance: Variance = "fixed", two_sided: bool = False
) -> np.ndarray:
    """Likelihood ratio attack from the nets without a sample alone, (n_samples,).

    How far phi lies above what nets without the sample give: -log P(Z > phi), meaned over views
    (Carlini et al. 2022, Sec. VI-B, a one-sided test). ``two_sided`` takes -log N(phi; without), as
    the public code does: phi far below counts, too.
    """
    check_pair(target, shadows)
    known = shadows.normals("phi", lambda: shadows.phi, variance, centre="median")
    if two_sided:
        return -_log_density(target.phi, known.mean_out, known.std_out).mean(axis=0)
    above = (target.phi - known.mean_out) / (known.std_out + _LEAST_SPREAD)
    return -log_ndtr(-above).mean(axis=0)


def lira_csg(target: Target, shadows: Shadows) -> np.ndarray:
    """The likelihood ratio as the CSG authors' code takes it, to compare with their Table 3 and 9.

    The logit of the *largest* probability, whatever the label; a mean and a variance a sample, the
    variance in the place of a standard deviation; likelihoods added over the views, not multiplied.
    Returned as the logarithm of the ratio, (n_samples,), which orders alike.
    """
    check_pair(target, shadows)
    known = shadows.normals("top", lambda: _top_logit(shadows.logits), "per_sample", centre="mean")
    top = _top_logit(target.logits)
    inside = _log_density(top, known.mean_in, known.std_in**2)
    outside = _log_density(top, known.mean_out, known.std_out**2)
    return logsumexp(inside, axis=0) - logsumexp(outside, axis=0)


def _top_logit(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, dtype=np.float64)
    ordered = np.sort(logits, axis=-1)
    return ordered[..., -1] - logsumexp(ordered[..., :-1], axis=-1)


def yeom(target: Target, shadows: Shadows) -> np.ndarray:
    """-loss (Yeom et al. 2018), (n_samples,): no shadow is asked. First view."""
    check_pair(target, shadows)
    return -_loss(target.phi[0])


def calibrated_loss(target: Target, shadows: Shadows) -> np.ndarray:
    """-(loss - mean loss of the nets without the sample) (Watson et al. 2022). First view."""
    check_pair(target, shadows)
    known = _losses(shadows)
    return -(_loss(target.phi[0]) - known.mean_out[0])


def mast(target: Target, shadows: Shadows) -> np.ndarray:
    """-(loss - midpoint of the mean losses with and without) (Sablayrolles et al. 2019, MAST).

    First view, (n_samples,).
    """
    check_pair(target, shadows)
    known = _losses(shadows)
    return -(_loss(target.phi[0]) - (known.mean_in[0] + known.mean_out[0]) / 2)


def _losses(shadows: Shadows) -> Normals:
    return shadows.normals("loss", lambda: _loss(shadows.phi), "fixed", centre="mean")


def curvature_nll(target: Target, shadows: Shadows) -> np.ndarray:
    """Curvature attack, NLL form (Ravikumar et al. 2024, Curvature Clues), (n_samples,).

    How much better the log of the zero-order curvature fits the nets with the sample than those
    without it: a difference of two negative log-likelihoods with the spread of the nets with it in
    both. The public code gives the variance in the place of the standard deviation; this does not.
    """
    value, known = _curvatures(target, shadows)
    inside = _log_density(value, known.mean_in, known.std_in)
    return inside - _log_density(value, known.mean_out, known.std_in)


def curvature_lr(target: Target, shadows: Shadows) -> np.ndarray:
    """Curvature attack, likelihood-ratio form, (n_samples,): each side with its own spread.

    Returned as the logarithm of the ratio, which orders alike; otherwise as `curvature_nll`.
    """
    value, known = _curvatures(target, shadows)
    inside = _log_density(value, known.mean_in, known.std_in)
    return inside - _log_density(value, known.mean_out, known.std_out)


def _curvatures(target: Target, shadows: Shadows) -> tuple[np.ndarray, Normals]:
    check_pair(target, shadows)
    if target.curvature is None or shadows.curvature is None:
        raise ValueError(
            "no curvature was asked of the target or the shadows: sweep with "
            "Questions(curvature_draws=10)"
        )
    values = lambda: _log_curvature(shadows.curvature)[:, None]  # noqa: E731
    known = shadows.normals("curvature", values, "per_sample", centre="mean")
    return _log_curvature(target.curvature), Normals(*(part[0] for part in known))


def _log_curvature(curvature: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(curvature, _LEAST_CURVATURE))


Attack = Callable[[Target, Shadows], np.ndarray]
ATTACKS: dict[str, Attack] = {
    "lira": lira,
    "lira_offline": lira_offline,
    "lira_csg": lira_csg,
    "curvature": curvature_nll,
    "curvature_lr": curvature_lr,
    "mast": mast,
    "calibrated_loss": calibrated_loss,
    "yeom": yeom,
}
