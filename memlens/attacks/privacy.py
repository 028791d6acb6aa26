"""Set up, run and evaluate membership inference attacks from one sweep.

    setup = privacy.attack_setup(sweep, "input_gradient", n_targets=5, n_shadows=64)
    privacy.evaluate_attacks(setup.members, privacy.run_attacks(setup))

All networks of a sweep have the same training settings, so some can be targets and others their
shadows. With ``keep=0.5``, half of the samples are members of each target.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from memlens.attacks.membership import ATTACKS, NEED_CURVATURE, MembershipAttack, lira
from memlens.attacks.shadows import Shadows, Target, TooFewShadows, paired_references
from memlens.ensembles.queries import Snapshot
from memlens.ensembles.subsets import Sweep
from memlens.evaluation import detection, metrics

N_SHADOWS = 64  # as the CSG paper, A.1
REFERENCES = (1, 2, 4, 16, 64)
FPRS = (1e-4, 1e-3, 1e-2)  # of CSG Table 9
_LEAK_ERRORS = 6.0  # standard errors; independent masks reach it once in 10^9


class AttackSetup(NamedTuple):
    """Targets, their members (n_targets, n_samples) bool, and the shadows of the attacks."""

    targets: list[Target]
    members: np.ndarray
    shadows: Shadows


def attack_setup(
    sweep: Sweep,
    snapshot: Snapshot = "last",
    *,
    n_targets: int = 5,
    n_shadows: int = N_SHADOWS,
    augmentations: Sequence[str] | None = None,
    shadow_snapshot: Snapshot | None = None,
) -> AttackSetup:
    """Use the first networks of a sweep as shadows and the last as targets.

    Parameters
    ----------
    sweep : Sweep
        Usually with a share of 0.5: half of the samples are members.
    snapshot : str or int
        Snapshot of the predictions, one of ``sweep.queries.snapshots``.
    n_targets, n_shadows : int
        Numbers of networks; no network is both.
    augmentations : sequence of str, optional
        Augmentations that the attacks use; by default all of the sweep's.
    shadow_snapshot : str or int, optional
        Use shadows of another snapshot but label them as the target's, to simulate a careless
        attacker. Without it, attacks refuse shadows of another snapshot.

    Raises
    ------
    ValueError
        If the sweep has fewer networks, or lacks the snapshot or an augmentation.
    """
    n_models = len(sweep.masks)
    if n_targets < 1 or n_shadows < 4 or n_targets + n_shadows > n_models:
        raise ValueError(
            f"{n_targets} targets and {n_shadows} shadows of a sweep of {n_models} networks: "
            "expected at least one target and four shadows, and no more than the sweep has"
        )
    logits, curvature = _predictions(sweep, snapshot, augmentations)
    used = sweep.queries.augmentations_at(snapshot) if augmentations is None else augmentations
    queries = {
        "snapshot": snapshot,
        "augmentations": tuple(used),
        "n_directions": sweep.queries.n_directions,
    }
    settings, first = dict(sweep.settings) | queries, n_models - n_targets
    targets = [
        Target(logits[t], sweep.y_true, settings, curvature[t]) for t in range(first, n_models)
    ]
    if shadow_snapshot is not None:
        logits, curvature = _predictions(sweep, shadow_snapshot, augmentations)
    of_shadows = curvature[:n_shadows] if isinstance(curvature, np.ndarray) else None
    masks = sweep.masks[:n_shadows]
    shadows = Shadows(masks, logits[:n_shadows], sweep.y_true, settings, of_shadows)
    return AttackSetup(targets, sweep.masks[first:], shadows)


def _predictions(
    sweep: Sweep, snapshot: Snapshot, augmentations: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray | list[None]]:
    logits, available = sweep.logits_at(snapshot), sweep.queries.augmentations_at(snapshot)
    if augmentations is not None:
        if missing := [name for name in augmentations if name not in available]:
            raise ValueError(
                f"no predictions with augmentations {missing} at snapshot {snapshot!r}; "
                f"available: {', '.join(available)}"
            )
        logits = logits[:, [available.index(name) for name in augmentations]]
    return logits, sweep.arrays.get(f"curvature/{snapshot}", [None] * len(logits))


def check_leak(members: np.ndarray, shadows: Shadows) -> None:
    """Refuse shadows whose subsets depend on the targets' members.

    If a target's subset, or its complement, is among the shadows' subsets, the number of shadows
    trained on a sample reveals its membership.

    Raises
    ------
    ValueError
        If a subset of the shadows equals the members of a target or their complement, or if the
        share of shadows trained on a sample correlates with membership by more than 6 standard
        errors.
    """
    share = shadows.masks.mean(axis=0)
    for number, member in enumerate(members):
        for name, mask in (("members", member), ("non-members", ~member)):
            if (same := (shadows.masks == mask).all(axis=1)).any():
                raise ValueError(
                    f"shadow {same.argmax()} was trained on exactly the {name} of target {number}; "
                    "draw its subset independently"
                )
        if np.ptp(share) and 0 < member.sum() < member.size:
            correlation = np.corrcoef(share, member)[0, 1]
            if abs(correlation) * np.sqrt(member.size) > _LEAK_ERRORS:
                raise ValueError(
                    f"the shadows leak the members of target {number}: the share of shadows "
                    f"trained on a sample correlates with its membership ({correlation:+.2f}); "
                    "draw their subsets independently"
                )


def _tpr_at(fpr: float) -> Callable[[np.ndarray, np.ndarray], float]:
    def tpr(member: np.ndarray, y_score: np.ndarray) -> float:
        n_others = int((np.asarray(member) == 0).sum())
        return detection.tpr_at_fpr(member, y_score, fpr) if fpr * n_others >= 1 else np.nan

    return tpr


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "auroc": detection.auroc,
    "balanced_accuracy": detection.balanced_accuracy,
    "equal_error_accuracy": detection.equal_error_accuracy,
    **{f"tpr_at_{fpr:g}": _tpr_at(fpr) for fpr in FPRS},
    "tpr_at_0": lambda member, y_score: detection.tpr_at_fpr(member, y_score, 0.0),
    "finest_fpr": lambda member, _: 1 / float((np.asarray(member) == 0).sum()),
}


def run_attacks(
    setup: AttackSetup, attacks: Mapping[str, MembershipAttack] | None = None
) -> dict[str, np.ndarray]:
    """Return the scores of each attack, (n_targets, n_samples), higher = more likely a member.

    Parameters
    ----------
    setup : AttackSetup
    attacks : mapping of functions, optional
        By default `ATTACKS`, without the curvature attacks if the sweep has no curvature.

    Raises
    ------
    ValueError
        If the shadows reveal a target's members (`check_leak`), or do not match a target
        (`shadows.check_pair`).
    """
    check_leak(setup.members, setup.shadows)
    return {
        name: np.stack([attack(target, setup.shadows) for target in setup.targets])
        for name, attack in _usable(setup, attacks).items()
    }


def _usable(
    setup: AttackSetup, attacks: Mapping[str, MembershipAttack] | None
) -> Mapping[str, MembershipAttack]:
    if attacks is not None:
        return attacks
    has_curvature = all(part.curvature is not None for part in (setup.shadows, *setup.targets))
    return {k: f for k, f in ATTACKS.items() if has_curvature or f not in NEED_CURVATURE}


def evaluate_attacks(
    members: np.ndarray, scores: Mapping[str, np.ndarray], *, pooled: bool = False
) -> pd.DataFrame:
    """Evaluate the scores of attacks on each target.

    Parameters
    ----------
    members : ndarray (n_targets, n_samples), bool
    scores : mapping of ndarray (n_targets, n_samples)
        As `run_attacks` returns them.
    pooled : bool
        Evaluate all targets as one, called "all": more non-members resolve lower false positive
        rates. One threshold then applies to all targets, which is appropriate for scores on one
        scale, such as likelihood ratios. A sample counts once per target, so a confidence interval
        has to resample samples, not pairs.

    Returns
    -------
    DataFrame, index (target, attack)
        auroc, balanced_accuracy (at the best threshold) and equal_error_accuracy (at the threshold
        of the papers), in [0, 1], 0.5 = no leak; tpr_at_0.0001 and so on, the true positive rate at
        this false positive rate, NaN if the target has too few non-members to resolve it; tpr_at_0,
        before the first false positive; finest_fpr, the lowest false positive rate above 0 that the
        non-members resolve.

    Raises
    ------
    ValueError
        If the shapes of scores and members differ.
    """
    if wrong := {k: rows.shape for k, rows in scores.items() if rows.shape != members.shape}:
        raise ValueError(f"members have shape {members.shape}, scores {wrong}: expected one shape")
    frames = {
        target: pd.DataFrame({attack: rows[target] for attack, rows in scores.items()})
        for target in range(len(members))
    }
    truth = dict(enumerate(members))
    if pooled:
        frames = {"all": pd.concat(frames, ignore_index=True)}
        truth = {"all": members.ravel()}
    tables = {k: detection.evaluate_detectors(truth[k], frames[k], metrics=METRICS) for k in frames}
    return pd.concat(tables, names=["target", "attack"])


def evaluate_snapshots(
    sweep: Sweep,
    snapshots: tuple[Snapshot, ...] | None = None,
    *,
    attacks: Mapping[str, MembershipAttack] | None = None,
    **options: object,
) -> pd.DataFrame:
    """Attack the targets of a sweep at each snapshot (default: all), and evaluate the attacks.

    ``attacks`` as in `run_attacks`, ``options`` as in `attack_setup`.

    Returns
    -------
    DataFrame, index (snapshot, target, attack), columns as in `evaluate_attacks`
    """
    tables = {}
    for snapshot in sweep.queries.snapshots if snapshots is None else snapshots:
        setup = attack_setup(sweep, snapshot, **options)
        tables[snapshot] = evaluate_attacks(setup.members, run_attacks(setup, attacks))
    return pd.concat(tables, names=["snapshot"])


def leak_and_accuracy(
    sweep: Sweep,
    snapshots: Sequence[Snapshot] | None = None,
    *,
    attack: MembershipAttack = lira,
    **options: object,
) -> pd.DataFrame:
    """Return what each snapshot costs and leaks: the trade between accuracy and privacy.

    Parameters
    ----------
    sweep : Sweep
    snapshots : sequence of str or int, optional
        By default all of the sweep's.
    attack : function
    **options
        As in `attack_setup`.

    Returns
    -------
    DataFrame, index (snapshot, target)
        epochs of the target; accuracy on the samples that it was not trained on (first
        augmentation); auroc of the attack.
    """
    tables = {}
    for snapshot in sweep.queries.snapshots if snapshots is None else snapshots:
        setup = attack_setup(sweep, snapshot, **options)
        leak = evaluate_attacks(setup.members, run_attacks(setup, {"": attack}))["auroc"]
        predicted = np.stack([target.logits[0].argmax(axis=1) for target in setup.targets])
        right = predicted == sweep.y_true
        columns = {
            "epochs": sweep.arrays[f"epochs/{snapshot}"][-len(setup.targets) :],
            "accuracy": right.mean(axis=1, where=~setup.members),
            "auroc": leak.to_numpy(),
        }
        tables[snapshot] = pd.DataFrame(columns).rename_axis("target")
    return pd.concat(tables, names=["snapshot"])


def evaluate_references(
    setup: AttackSetup,
    sizes: Sequence[int] = REFERENCES,
    *,
    attacks: Mapping[str, MembershipAttack] | None = None,
) -> pd.DataFrame:
    """Evaluate attackers who trained few networks: the strength of an attack against its cost.

    Parameters
    ----------
    setup : AttackSetup
    sizes : sequence of int
        Numbers of reference networks. As many as the setup has are used as they are; fewer are
        those of `shadows.paired_references`.
    attacks : mapping of functions, optional
        As in `run_attacks`.

    Returns
    -------
    DataFrame, index (n_references, target, attack), columns as in `evaluate_attacks`
        Without the attacks that are not defined for so few networks, and without the sizes for
        which a sample has too few shadows on a side.

    Raises
    ------
    ValueError
        If a size is above the number of shadows; see also `run_attacks`.
    """
    tables = {}
    for size in sizes:
        if size > len(setup.shadows.masks):
            raise ValueError(f"{size} references of {len(setup.shadows.masks)} shadows: train more")
        with suppress(TooFewShadows):
            whole = size == len(setup.shadows.masks)
            few = setup if whole else setup._replace(shadows=paired_references(setup.shadows, size))
            tables[size] = evaluate_attacks(setup.members, _defined(few, attacks))
    return pd.concat(tables, names=["n_references"])


def _defined(
    setup: AttackSetup, attacks: Mapping[str, MembershipAttack] | None
) -> dict[str, np.ndarray]:
    """Return the scores of the attacks that are defined for these shadows."""
    scores = {}
    for name, attack in _usable(setup, attacks).items():
        with suppress(TooFewShadows):
            scores |= run_attacks(setup, {name: attack})
    return scores


def found_members(members: np.ndarray, scores: np.ndarray, fpr: float = 1e-3) -> np.ndarray:
    """Return the members that an attack finds at a false positive rate, as bool.

    Parameters
    ----------
    members, scores : ndarray (n_targets, n_samples)
        One threshold applies to all targets, so the scores must be on one scale.
    fpr : float in [0, 1]
        Highest share of all non-members above the threshold.

    Returns
    -------
    ndarray (n_targets, n_samples), bool
        False for non-members.
    """
    others = np.sort(scores[~members])[::-1]
    allowed = int(fpr * others.size + 1e-9)  # 0.001 * 1000 < 1
    if allowed >= others.size:
        return members.copy()
    return members & (scores > others[allowed])


def precision_of_scores(
    scores: pd.DataFrame,
    members: np.ndarray,
    found: np.ndarray,
    fractions: Sequence[float] = (0.01, 0.05, 0.1),
) -> pd.DataFrame:
    """Evaluate how well scores of another training name the members that an attack finds.

    The measure of LT-IQR (arXiv 2411.05743): the share of found ones among the members with the
    highest scores, mean over targets.

    Parameters
    ----------
    scores : DataFrame (n_samples, n_scores)
        Finite; higher = more memorized. Of a training on all samples, for example.
    members, found : ndarray (n_targets, n_samples), bool
        Members of each target, and those that the attack finds (`found_members`).
    fractions : sequence of float
        Shares of the members.

    Returns
    -------
    DataFrame, index "score"
        precision_at_0.01 and so on, in [0, 1]; by chance the share of members that are found. NaN
        if no target has both found and other members.
    """
    precisions = {
        f"precision_at_{fraction:g}": partial(detection.precision_at, fraction=fraction)
        for fraction in fractions
    }
    tables = [
        detection.evaluate_detectors(hits[member], scores[member], metrics=precisions)
        for member, hits in zip(members, found, strict=True)
        if 0 < hits.sum() < member.sum()
    ]
    if not tables:
        return pd.DataFrame(np.nan, scores.columns.rename("score"), [*precisions])
    return sum(tables) / len(tables)


def auroc_by(
    values: np.ndarray, members: np.ndarray, scores: np.ndarray, edges: np.ndarray
) -> pd.DataFrame:
    """Return the AUROC of an attack in bins of samples, such as ranges of memorization.

    Parameters
    ----------
    values : ndarray (n_samples,)
        Values that are binned.
    members, scores : ndarray (n_targets, n_samples)
        Pooled over targets, so the scores must be on one scale, as likelihood ratios are.
    edges : ndarray (n_bins + 1,), increasing
        Bins are [left, right), the last closed; samples outside are left out.

    Returns
    -------
    DataFrame, one row per bin with both members and non-members
        left, right, value (mean), n_samples, auroc, auroc_low, auroc_high (95 %, from
        `detection.auroc_interval`, which counts a sample once per target: in a bin of few, unequal
        samples the interval is too narrow).

    Raises
    ------
    ValueError
        If the edges do not increase.
    """
    if len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"edges are {edges}: expected two or more, increasing")
    bins, rows = metrics.bins_of(values, edges), []
    for b in range(len(edges) - 1):
        chosen = bins == b
        member, score = members[:, chosen].ravel(), scores[:, chosen].ravel()
        if 0 < member.sum() < member.size:
            low, high = detection.auroc_interval(member, score)
            row = {"left": edges[b], "right": edges[b + 1], "value": values[chosen].mean()}
            row |= {"n_samples": chosen.sum(), "auroc": detection.auroc(member, score)}
            rows.append(row | {"auroc_low": low, "auroc_high": high})
    return pd.DataFrame(rows)
