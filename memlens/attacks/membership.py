"""Was this sample trained on? Attacks that answer it: membership inference.

An attack is a function ``(target, shadows) -> (n_samples,)``, float64, higher = more likely a
member. Most look at the log odds of the label, phi; the loss is log(1 + e^-phi).
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy.special import log_ndtr, softmax

from memlens.attacks.shadows import Normals, Shadows, Target, check_pair

Variance = Literal["fixed", "per_sample"]
_LEAST_SPREAD = 1e-30  # a standard deviation of 0 would divide
_LEAST_CURVATURE = 1e-10  # one rounding of a float64 loss, over 4 h^2 with h = 1e-3; ours
_LEAST_OF_CSG = 1e-22  # added here and there in the CSG authors' code
_LOG_2_PI = float(np.log(2 * np.pi))


def _loss(phi: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, -phi)


def _log_density(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    std = std + _LEAST_SPREAD
    return -(((x - mean) / std) ** 2 + _LOG_2_PI) / 2 - np.log(std)


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

    The logit of the *largest* probability, whatever the label, from a float32 softmax: where that
    rounds to 1, the logit jumps from 17 to 51. A mean and a variance a sample, the variance in the
    place of a standard deviation; likelihoods added over the views, not multiplied; their ratio,
    (n_samples,), 0 or more, in which what underflows is tied.
    """
    check_pair(target, shadows)
    known = shadows.normals("top", lambda: _top_logit(shadows.logits), "per_sample", centre="mean")
    top = _top_logit(target.logits)
    inside = np.exp(_log_density(top, known.mean_in, known.std_in**2)).sum(axis=0)
    outside = np.exp(_log_density(top, known.mean_out, known.std_out**2)).sum(axis=0)
    return inside / (outside + _LEAST_OF_CSG)


def _top_logit(logits: np.ndarray) -> np.ndarray:
    top = softmax(np.asarray(logits, dtype=np.float32), axis=-1).max(axis=-1).astype(np.float64)
    return np.log(top / (1 - top + _LEAST_OF_CSG) + _LEAST_OF_CSG)


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
            "Queries(n_directions=10)"
        )
    values = lambda: _log_curvature(shadows.curvature)[:, None]  # noqa: E731
    known = shadows.normals("curvature", values, "per_sample", centre="mean")
    return _log_curvature(target.curvature), Normals(*(part[0] for part in known))


def _log_curvature(curvature: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(curvature, _LEAST_CURVATURE))


MembershipAttack = Callable[[Target, Shadows], np.ndarray]
ATTACKS: dict[str, MembershipAttack] = {
    "lira": lira,
    "lira_offline": lira_offline,
    "lira_csg": lira_csg,
    "curvature": curvature_nll,
    "curvature_lr": curvature_lr,
    "mast": mast,
    "calibrated_loss": calibrated_loss,
    "yeom": yeom,
}
NEED_CURVATURE = (curvature_nll, curvature_lr)
