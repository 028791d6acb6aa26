"""Membership inference attacks: score whether a network was trained on a sample.

An attack is a function ``(target, shadows) -> (n_samples,)``, float64, higher = more likely a
member. Most use the log odds of the label, phi; the loss is log(1 + e^-phi). An attack raises
`shadows.TooFewShadows` if it is not defined for so few networks with a sample, or without it.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy import stats
from scipy.special import expit, log_ndtr, softmax

from memlens.attacks.shadows import Normals, Shadows, Target, TooFewShadows, check_pair

Variance = Literal["fixed", "per_sample"]
_MIN_STD = 1e-30  # avoids a division by 0
_MIN_PROBABILITY = 1e-300  # likewise
_MIN_CURVATURE = 1e-10  # ours: rounding of a float64 loss, over 4 h^2 with h = 1e-3
_CSG_EPSILON = 1e-22  # of the CSG authors' code
_LOG_2_PI = float(np.log(2 * np.pi))


def _loss(phi: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, -phi)


def _log_density(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    std = std + _MIN_STD
    return -(((x - mean) / std) ** 2 + _LOG_2_PI) / 2 - np.log(std)


def lira(target: Target, shadows: Shadows, *, variance: Variance = "fixed") -> np.ndarray:
    """Return the online likelihood ratio attack (Carlini et al. 2022, Algorithm 1), (n_samples,).

    log N(phi; with) - log N(phi; without), mean of the logarithms over augmentations; the centres
    are medians. ``variance`` as in `fit_normals`; "fixed" is better up to about 64 shadows. The
    fixed spread of the public code differs: it includes the differences between samples, and both
    sides use that of the networks with the sample.
    """
    check_pair(target, shadows)
    shadows.require(2, 2)
    fits = shadows.normals("phi", lambda: shadows.phi, variance, centre="median")
    inside = _log_density(target.phi, fits.mean_in, fits.std_in)
    return (inside - _log_density(target.phi, fits.mean_out, fits.std_out)).mean(axis=0)


def lira_offline(target: Target, shadows: Shadows, *, two_sided: bool = False) -> np.ndarray:
    """Return the likelihood ratio attack that uses only networks without the sample, (n_samples,).

    -log P(Z > phi), mean over augmentations: a one-sided test against the networks without the
    sample (Carlini et al. 2022, Sec. VI-B). ``two_sided`` gives -log N(phi; without), as the public
    code does, which is also high for phi far below.
    """
    check_pair(target, shadows)
    shadows.require(0, 2)
    fits = shadows.normals("phi", lambda: shadows.phi, "fixed", centre="median")
    if two_sided:
        return -_log_density(target.phi, fits.mean_out, fits.std_out).mean(axis=0)
    above = (target.phi - fits.mean_out) / (fits.std_out + _MIN_STD)
    return -log_ndtr(-above).mean(axis=0)


def lira_csg(target: Target, shadows: Shadows) -> np.ndarray:
    """Return the likelihood ratio of the CSG authors' code, for comparison with Tables 3 and 9.

    It is based on the logit of the *largest* probability, whatever the label, from a float32
    softmax: where that rounds to 1, the logit jumps from 17 to 51. Mean and variance are those of a
    sample, and the variance is used as the standard deviation. Likelihoods are summed over
    augmentations, not multiplied. Returns their ratio, (n_samples,), 0 or more; scores that
    underflow are tied.
    """
    check_pair(target, shadows)
    shadows.require(2, 2)
    fits = shadows.normals("top", lambda: _top_logit(shadows.logits), "per_sample", centre="mean")
    top = _top_logit(target.logits)
    inside = np.exp(_log_density(top, fits.mean_in, fits.std_in**2)).sum(axis=0)
    outside = np.exp(_log_density(top, fits.mean_out, fits.std_out**2)).sum(axis=0)
    return inside / (outside + _CSG_EPSILON)


def _top_logit(logits: np.ndarray) -> np.ndarray:
    top = softmax(np.asarray(logits, dtype=np.float32), axis=-1).max(axis=-1).astype(np.float64)
    return np.log(top / (1 - top + _CSG_EPSILON) + _CSG_EPSILON)


def yeom(target: Target, shadows: Shadows) -> np.ndarray:
    """Return -loss (Yeom et al. 2018), (n_samples,), first augmentation; shadows are not used."""
    check_pair(target, shadows)
    return -_loss(target.phi[0])


def calibrated_loss(target: Target, shadows: Shadows) -> np.ndarray:
    """Return -(loss - mean loss of networks without the sample) (Watson et al. 2022), (n_samples,).

    First augmentation.
    """
    check_pair(target, shadows)
    shadows.require(0, 1)
    fits = _losses(shadows)
    return -(_loss(target.phi[0]) - fits.mean_out[0])


def mast(target: Target, shadows: Shadows) -> np.ndarray:
    """Return -(loss - midpoint of the mean losses with and without the sample), (n_samples,).

    MAST (Sablayrolles et al. 2019), first augmentation.
    """
    check_pair(target, shadows)
    shadows.require(1, 1)
    fits = _losses(shadows)
    return -(_loss(target.phi[0]) - (fits.mean_in[0] + fits.mean_out[0]) / 2)


def _losses(shadows: Shadows) -> Normals:
    return shadows.normals("loss", lambda: _loss(shadows.phi), "fixed", centre="mean")


def curvature_nll(target: Target, shadows: Shadows) -> np.ndarray:
    """Return the NLL form of the curvature attack, (n_samples,).

    Ravikumar et al. 2024, Curvature Clues: the log-likelihood of the log zero-order curvature under
    the networks with the sample, minus that under the networks without it, both with the spread of
    the networks with it. The public code uses the variance as the standard deviation; this function
    does not.
    """
    value, fits = _curvatures(target, shadows)
    inside = _log_density(value, fits.mean_in, fits.std_in)
    return inside - _log_density(value, fits.mean_out, fits.std_in)


def curvature_lr(target: Target, shadows: Shadows) -> np.ndarray:
    """Return the likelihood-ratio form of the curvature attack, (n_samples,).

    As `curvature_nll`, but with a separate spread for each side. The logarithm of the ratio is
    returned, which has the same order.
    """
    value, fits = _curvatures(target, shadows)
    inside = _log_density(value, fits.mean_in, fits.std_in)
    return inside - _log_density(value, fits.mean_out, fits.std_out)


def _curvatures(target: Target, shadows: Shadows) -> tuple[np.ndarray, Normals]:
    check_pair(target, shadows)
    if target.curvature is None or shadows.curvature is None:
        raise ValueError(
            "the target or the shadows have no curvature: run the sweep with "
            "Queries(n_directions=10)"
        )
    shadows.require(2, 2)
    values = lambda: _log_curvature(shadows.curvature)[:, None]  # noqa: E731
    fits = shadows.normals("curvature", values, "per_sample", centre="mean")
    return _log_curvature(target.curvature), Normals(*(part[0] for part in fits))


def _log_curvature(curvature: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(curvature, _MIN_CURVATURE))


def rmia(target: Target, shadows: Shadows, *, gamma: float = 1.0) -> np.ndarray:
    """Return the robust membership inference attack, online (Zarifzadeh et al. 2024), (n_samples,).

    The share of population samples z, in [0, 1], for which (p(x | target) / p(x)) / (p(z | target)
    / p(z)) is at least ``gamma``; p is the probability of the label. p(x) is the mean of its means
    over the networks with the sample and without it. In each target the order is that of
    p(x | target) / p(x); with ``gamma`` above 1, low ratios are tied at 0.

    The population here is the attacked samples themselves, where the paper draws others; they only
    set the scale on which targets are compared. Mean of the shares over augmentations.
    """
    check_pair(target, shadows)
    shadows.require(1, 1)
    fits = _probabilities(shadows)
    return _share_of_population(target, (fits.mean_in + fits.mean_out) / 2, gamma)


def rmia_offline(
    target: Target, shadows: Shadows, *, gamma: float = 1.0, slope: float = 0.3
) -> np.ndarray:
    """Return `rmia` from networks without the sample only, (n_samples,); one is enough.

    The mean with the sample is approximated as ``slope`` x (mean without it) + 1 - ``slope``: a
    probability without the sample of 1 stays 1. ``slope`` is a of the authors' code, where 0.3 is
    the default.
    """
    check_pair(target, shadows)
    shadows.require(0, 1)
    without = _probabilities(shadows).mean_out
    return _share_of_population(target, (without + slope * without + 1 - slope) / 2, gamma)


def _probabilities(shadows: Shadows) -> Normals:
    return shadows.normals("probability", lambda: expit(shadows.phi), "fixed", centre="mean")


def _share_of_population(target: Target, marginal: np.ndarray, gamma: float) -> np.ndarray:
    ratios = expit(target.phi) / np.maximum(marginal, _MIN_PROBABILITY)
    shares = [np.sort(row).searchsorted(row / gamma, "right") / len(row) for row in ratios]
    return np.mean(shares, axis=0)


def bavaria(target: Target, shadows: Shadows, *, prior_networks: float = 8.0) -> np.ndarray:
    """Return a likelihood ratio with a prior on each sample's variance, (n_samples,).

    As BaVarIA (arXiv 2603.11799, Student's t): the variance of a sample's phi has an inverse-gamma
    prior, centred on the variance within samples that all samples of the side share, with the
    weight of ``prior_networks`` networks; its mean has a flat prior. The predictive distribution of
    n networks is then Student's t with ``prior_networks`` + n - 1 degrees of freedom. With few
    networks it is close to `lira` with one spread for all samples, with many to `lira` with a
    spread per sample. Log ratio, mean over augmentations.

    Hyperparameters are ours: 8 networks, and the flat prior on the mean.
    """
    check_pair(target, shadows)
    shadows.require(1, 1)
    fits = shadows.normals("phi", lambda: shadows.phi, "per_sample", centre="mean")
    n_in, n_out = shadows.masks.sum(0), (~shadows.masks).sum(0)
    inside = _log_predictive(target.phi, fits.mean_in, fits.std_in, n_in, prior_networks)
    outside = _log_predictive(target.phi, fits.mean_out, fits.std_out, n_out, prior_networks)
    return (inside - outside).mean(axis=0)


def _log_predictive(
    x: np.ndarray, mean: np.ndarray, std: np.ndarray, count: np.ndarray, prior: float
) -> np.ndarray:
    squares = count * std**2  # (n_augmentations, n_samples)
    freedom = len(x) * (count - 1).sum()
    if not freedom:
        raise TooFewShadows("one network a side: no sample has a variance; train more")
    variance = (prior * squares.sum() / freedom + squares) / (prior + count - 1)
    scale = np.sqrt(variance * (1 + 1 / count)) + _MIN_STD
    return stats.t.logpdf(x, prior + count - 1, mean, scale)


MembershipAttack = Callable[[Target, Shadows], np.ndarray]
ATTACKS: dict[str, MembershipAttack] = {
    "lira": lira,
    "lira_offline": lira_offline,
    "lira_csg": lira_csg,
    "bavaria": bavaria,
    "rmia": rmia,
    "rmia_offline": rmia_offline,
    "curvature": curvature_nll,
    "curvature_lr": curvature_lr,
    "mast": mast,
    "calibrated_loss": calibrated_loss,
    "yeom": yeom,
}
NEED_CURVATURE = (curvature_nll, curvature_lr)
