"""What a net leaks: its attacks staged from one sweep, and judged at low false positive rates.

    setup = privacy.stage(sweep, "peak", n_targets=5, n_shadows=64)
    privacy.evaluate_attacks(setup.members, privacy.run_attacks(setup))

All nets of a half-subset sweep are alike, so that some can be targets and others their shadows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from memlens.attacks.membership import ATTACKS, NEED_CURVATURE, MembershipAttack
from memlens.attacks.shadows import Shadows, Target
from memlens.ensembles.queries import Snapshot
from memlens.ensembles.subsets import Sweep
from memlens.evaluation import detection, metrics

N_SHADOWS = 64  # as the CSG paper, A.1
FPRS = (1e-4, 1e-3, 1e-2)  # of CSG Table 9
_LEAK = 6.0  # standard errors; independent masks reach it once in 10^9


class AttackSetup(NamedTuple):
    """Targets, their members (n_targets, n_samples) bool, and the shadows to attack them with."""

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
    """Take the first nets of a sweep as shadows and the last as targets, all stopped by one rule.

    Parameters
    ----------
    sweep : Sweep
        Of a share of 0.5, usually: half the samples are members.
    snapshot : str or int
        Where the nets were asked, one of ``sweep.queries.snapshots``.
    augmentations : sequence of str, optional
        Those of the augmentations that the attacks may use; by default all that were asked.
    shadow_snapshot : str or int, optional
        Shadows of another snapshot, passed off as the target's: what a careless attacker would do, and
        the only way past the check that they are alike.

    Raises
    ------
    ValueError
        If the sweep has fewer nets, or was not asked there or so.
    """
    n_nets = len(sweep.masks)
    if n_targets < 1 or n_shadows < 4 or n_targets + n_shadows > n_nets:
        raise ValueError(
            f"{n_targets} targets and {n_shadows} shadows of a sweep of {n_nets} nets: ask for at "
            "least one target, four shadows, and no net twice"
        )
    logits, curvature = _answers(sweep, snapshot, augmentations)
    shown = tuple(
        sweep.queries.augmentations_at(snapshot) if augmentations is None else augmentations
    )
    asked = {
        "snapshot": snapshot,
        "augmentations": shown,
        "n_directions": sweep.queries.n_directions,
    }
    settings, first = dict(sweep.settings) | asked, n_nets - n_targets
    targets = [
        Target(logits[t], sweep.y_true, settings, curvature[t]) for t in range(first, n_nets)
    ]
    if shadow_snapshot is not None:
        logits, curvature = _answers(sweep, shadow_snapshot, augmentations)
    known = curvature[:n_shadows] if isinstance(curvature, np.ndarray) else None
    shadows = Shadows(sweep.masks[:n_shadows], logits[:n_shadows], sweep.y_true, settings, known)
    return AttackSetup(targets, sweep.masks[first:], shadows)


def _answers(
    sweep: Sweep, snapshot: Snapshot, augmentations: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray | list[None]]:
    logits, asked = sweep.logits_at(snapshot), sweep.queries.augmentations_at(snapshot)
    if augmentations is not None:
        if unknown := [view for view in augmentations if view not in asked]:
            raise ValueError(
                f"augmentations {unknown} were not asked at {snapshot!r}; there are: {', '.join(asked)}"
            )
        logits = logits[:, [asked.index(view) for view in augmentations]]
    return logits, sweep.arrays.get(f"curvature/{snapshot}", [None] * len(logits))


def check_leak(members: np.ndarray, shadows: Shadows) -> None:
    """Refuse shadows whose subsets were not drawn independently of the targets' members.

    A target's own subset, or its complement, among the shadows tells the members by how many
    shadows a sample has.

    Raises
    ------
    ValueError
        If a mask is a target's or its complement, or if the share of shadows that hold a sample
        tells a target's members better than chance, by more than 6 standard errors.
    """
    share = shadows.masks.mean(axis=0)
    for number, member in enumerate(members):
        for name, mask in (("members", member), ("non-members", ~member)):
            if (same := (shadows.masks == mask).all(axis=1)).any():
                raise ValueError(
                    f"shadow {same.argmax()} was trained on exactly the {name} of target {number}"
                )
        if np.ptp(share) and 0 < member.sum() < member.size:
            likeness = np.corrcoef(share, member)[0, 1]
            if abs(likeness) * np.sqrt(member.size) > _LEAK:
                raise ValueError(
                    f"the shadows know target {number}: the share of them that hold a sample "
                    f"correlates with its membership ({likeness:+.2f}); draw their subsets anew"
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
    """Scores of each attack on each target, (n_targets, n_samples), higher = member.

    Parameters
    ----------
    setup : AttackSetup
    attacks : mapping of functions, optional
        `ATTACKS` by default, without the curvature attacks where no curvature was asked.

    Raises
    ------
    ValueError
        If the shadows know a target's members; see `check_leak`.
    """
    targets, members, shadows = setup
    check_leak(members, shadows)
    if attacks is None:
        bent = all(asked.curvature is not None for asked in (shadows, *targets))
        attacks = {k: f for k, f in ATTACKS.items() if bent or f not in NEED_CURVATURE}
    return {
        name: np.stack([one(target, shadows) for target in targets])
        for name, one in attacks.items()
    }


def evaluate_attacks(
    members: np.ndarray, scores: Mapping[str, np.ndarray], *, pooled: bool = False
) -> pd.DataFrame:
    """What each attack finds of each target.

    Parameters
    ----------
    members : ndarray (n_targets, n_samples), bool
    scores : mapping of ndarray (n_targets, n_samples), as `run_attacks` returns them
    pooled : bool
        Judge all targets as one, called "all": with more non-members lower rates can be shown. One
        threshold then serves all targets, which suits scores on one scale, as likelihood ratios
        are. A sample counts once for each target: an interval has to draw samples, not pairs.

    Returns
    -------
    DataFrame, index (target, attack)
        auroc, balanced_accuracy (of the best threshold) and equal_error_accuracy (of the threshold
        the papers take), all in [0, 1], 0.5 = no leak;
        tpr_at_0.0001 and so on, the share of members found at such a false positive rate, NaN where
        the target has too few non-members to show it; tpr_at_0, found before the first false
        positive; finest_fpr, the lowest rate above 0 that the non-members can show.

    Raises
    ------
    ValueError
        If scores and members do not have one shape.
    """
    if wrong := {k: rows.shape for k, rows in scores.items() if rows.shape != members.shape}:
        raise ValueError(f"members have shape {members.shape}, scores {wrong}: pass one shape")
    frames = {
        target: pd.DataFrame({attack: rows[target] for attack, rows in scores.items()})
        for target in range(len(members))
    }
    known = dict(enumerate(members))
    if pooled:
        frames = {"all": pd.concat(frames, ignore_index=True)}
        known = {"all": members.ravel()}
    tables = {k: detection.evaluate_detectors(known[k], frames[k], metrics=METRICS) for k in frames}
    return pd.concat(tables, names=["target", "attack"])


def evaluate_snapshots(
    sweep: Sweep,
    snapshots: tuple[Snapshot, ...] | None = None,
    *,
    attacks: Mapping[str, MembershipAttack] | None = None,
    **options: object,
) -> pd.DataFrame:
    """MembershipAttack a sweep's targets at each snapshot: `stage`, `run_attacks` and `evaluate_attacks` in one.

    Returns
    -------
    DataFrame, index (stop, target, attack), columns as in `evaluate_attacks`
    """
    tables = {}
    for snapshot in sweep.queries.snapshots if snapshots is None else snapshots:
        setup = attack_setup(sweep, snapshot, **options)
        tables[snapshot] = evaluate_attacks(setup.members, run_attacks(setup, attacks))
    return pd.concat(tables, names=["stop"])


def auroc_by(
    values: np.ndarray, members: np.ndarray, scores: np.ndarray, edges: np.ndarray
) -> pd.DataFrame:
    """How well an attack does among samples alike, such as those of one range of memorization.

    Parameters
    ----------
    values : ndarray (n_samples,)
        What samples are grouped by.
    members, scores : ndarray (n_targets, n_samples)
        Pooled over targets, whose scores have to be comparable, as likelihood ratios are.
    edges : ndarray (n_bins + 1,), rising
        Bins are [left, right), the last closed; samples outside are left out.

    Returns
    -------
    DataFrame, a row a bin with both members and others: left, right, value (mean), n_samples,
    auroc, auroc_low, auroc_high (95 %: see `detection.auroc_interval`; the same sample in several
    targets counts each time, so that a bin of few, unequal samples gets too narrow bounds)

    Raises
    ------
    ValueError
        If the edges do not rise.
    """
    if len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"edges are {edges}: pass two or more that rise")
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
