"""Profiles: the data, networks and configurations of the notebooks, one row per profile.

`Profile.scaled` returns a first look: fewer epochs, fewer networks in a sweep and, optionally,
fewer samples. Its reductions are listed in `Profile.reductions`, and every figure states them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from memlens.data.imagesets import load
from memlens.data.published import load_fz, order_is_certain
from memlens.data.samples import Dataset
from memlens.ensembles.proxies import extra_scores
from memlens.ensembles.queries import Queries
from memlens.ensembles.retrainings import KINDS
from memlens.ensembles.subsets import Sweep, subset_sweep
from memlens.ensembles.truth import memorization
from memlens.tracking.peaks import STOPS
from memlens.training.config import MeasureConfig, TrainConfig
from memlens.training.jobs import Job, train_many
from memlens.training.runs import Run


@dataclass(frozen=True)
class Profile:
    """A data set with its networks and configurations, and methods that train them.

    All results are cached, so that notebooks share them.

    Examples
    --------
    >>> import memlens as ml
    >>> profile = ml.get_profile("fashion_small")
    >>> profile.model, profile.config.epochs
    ('mlp', 60)
    >>> profile.scaled(0.1).reductions
    ('6 of 60 epochs', '44 of 400 networks', '2 of 10 curvature directions')
    """

    name: str
    dataset: str
    model: str  # the network of the main results
    other_model: str  # a second architecture
    batch_norm_model: str  # with batch norm, through which samples affect each other
    config: TrainConfig
    sweep_config: TrainConfig
    sweep_models: int
    keep: float  # share of the samples that each network of the sweep is trained on
    noise_rates: tuple[float, ...]  # as in the papers' mislabel tables
    optimizers: Mapping[str, Mapping[str, Any]]  # changes to the config, by optimizer
    queries: Queries  # of the attacked networks and their shadows
    sweep_model: str | None = None  # the network of the memorization sweep; None: ``model``
    published: bool = False  # True: memorization is published, no sweep is trained
    n_shadows: int = 64  # as in the papers
    n_targets: int = 8
    measure: MeasureConfig = MeasureConfig(
        posthoc=True, n_directions=10, weight_gradients=True, logit_gradients=True
    )
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # changes, by name
    n_samples: int | None = None  # training samples to use; None: all
    reductions: tuple[str, ...] = ()  # of a first look, as text; empty: the whole profile

    def scaled(self, scale: float = 1.0, n_samples: int | None = None) -> "Profile":
        """Return a first look: fewer epochs and networks by the factor ``scale``, fewer samples.

        Parameters
        ----------
        scale : float in (0, 1]
            Factor for the epochs of all configurations, the networks of all sweeps and the random
            directions of curvature; the minima are `MIN_EPOCHS`, `MIN_NETWORKS` and
            `MIN_DIRECTIONS`. The learning rate drops at the same shares of the epochs.
        n_samples : int, optional
            Training samples to use, the same share of every class; at most as many test samples. By
            default all. The batch size is reduced if an epoch would otherwise have fewer than
            `MIN_STEPS` steps, in which networks hardly learn.

        Returns
        -------
        Profile
            With its ``reductions`` listed.

        Raises
        ------
        ValueError
            If the scale is not in (0, 1], or n_samples is below 1.
        """
        if not 0 < scale <= 1:
            raise ValueError(f"scale is {scale}; expected a share in (0, 1], e.g. 0.1 for a tenth")
        if n_samples is not None and n_samples < 1:
            raise ValueError(f"n_samples is {n_samples}; expected one or more, or None for all")
        config = _reduced(self.config, scale, n_samples)
        share = config.epochs / self.config.epochs
        snapshots = (s if isinstance(s, str) else round(s * share) for s in self.queries.snapshots)
        snapshots = dict.fromkeys(s if isinstance(s, str) else max(1, s) for s in snapshots)
        reduced = replace(
            self,
            config=config,
            sweep_config=_reduced(self.sweep_config, scale, n_samples),
            queries=replace(
                self.queries,
                snapshots=tuple(snapshots),
                n_directions=_scaled(self.queries.n_directions, scale, MIN_DIRECTIONS),
            ),
            measure=replace(
                self.measure,
                every=_scaled(self.measure.every, scale, 1),
                n_directions=_scaled(self.measure.n_directions, scale, MIN_DIRECTIONS),
            ),
            n_samples=n_samples,
            **{k: _scaled(getattr(self, k), scale, least) for k, least in MIN_NETWORKS.items()},
        )
        return replace(reduced, reductions=(*self.reductions, *_reductions(self, reduced)))

    def load(self, root: Path | None = None, *, per_class: int = 1) -> Dataset:
        """Return the data set, without label noise; of a first look only its samples.

        If memorization is published by position, samples whose position in the original order is
        uncertain are left out (82 of 50,000 in CIFAR-100), so that every sample has a ground truth.

        Parameters
        ----------
        root : Path, optional
            As in `imagesets.load`.
        per_class : int
            Required number of training samples of each class.

        Raises
        ------
        ValueError
            If a class has fewer than ``per_class`` training samples.
        """
        data = load(self.dataset, root=root)
        if self.published:
            certain = torch.from_numpy(order_is_certain(data))
            data = replace(data, train=data.train[certain])
        data = data if self.n_samples is None else data.subset(self.n_samples)
        smallest = int(torch.bincount(data.train.labels, minlength=data.n_classes).min())
        if smallest < per_class:
            raise ValueError(
                f"a class of {data.name} has {smallest} training samples; {per_class} are needed: "
                f"set n_samples to {per_class * data.n_classes} or more, or to 0 for all"
            )
        return data

    def memorization(self, data: Dataset) -> pd.DataFrame:
        """Return the ground truth of each training sample: published, shipped or from a sweep.

        Returns
        -------
        DataFrame
            As of `subsets.subset_memorization`, higher = more memorized. For published scores all
            columns but ``memorization`` are NaN.
        """
        if not self.published:
            model = self.sweep_model or self.model
            settings = {"keep": self.keep, "n_models": self.sweep_models}
            return memorization(data, model, self.sweep_config, **settings)
        scores = load_fz(data)
        unknown = ("standard_error", "n_in", "n_out", "in_accuracy", "out_accuracy")
        return scores.to_frame().assign(**dict.fromkeys(unknown, math.nan))

    def top_k(self, data: Dataset) -> int:
        """Return a tenth of the training samples, as the papers' 5k of 50k."""
        return len(data.train) // 10

    def job(
        self,
        data: Dataset,
        *,
        model: str | None = None,
        measure: MeasureConfig | None = None,
        **changes: Any,
    ) -> Job:
        """Return a training job with the profile's config and changes to it, such as ``seed=1``."""
        config = replace(self.config, **changes)
        return Job(model or self.model, data, config, measure or self.measure)

    def runs(self, data: Dataset, *, seeds: int = 3, **changes: Any) -> list[Run]:
        """Train with seeds 0 to ``seeds - 1``; other arguments as in `job`."""
        return train_many([self.job(data, seed=s, **changes) for s in range(seeds)])

    def extra_scores(
        self,
        datasets: Sequence[Dataset],
        *,
        seeds: Sequence[int],
        kinds: Sequence[str] = tuple(KINDS),
        model: str | None = None,
    ) -> list[pd.DataFrame]:
        """Return the scores of extra trainings for each data set; see `proxies.extra_scores`."""
        model = model or self.model
        return extra_scores(model, datasets, self.config, seeds=seeds, kinds=kinds)

    def sweep(self, data: Dataset, *, model: str | None = None, **changes: Any) -> Sweep:
        """Train the networks on random subsets from which memorization is computed."""
        settings = {"n_models": self.sweep_models, "keep": self.keep, "config": self.sweep_config}
        return subset_sweep(model or self.sweep_model or self.model, data, **(settings | changes))

    def half_sweep(self, data: Dataset, **changes: Any) -> Sweep:
        """Train networks on random halves with the whole config: shadows and targets of attacks.

        Half of the samples are members of each network. See `privacy.attack_setup`.
        """
        settings = {"n_models": self.n_shadows + self.n_targets, "keep": 0.5}
        settings |= {"config": self.config, "queries": self.queries, "model": self.model}
        return self.sweep(data, **(settings | changes))


def _scaled(number: int, scale: float, minimum: int) -> int:
    return max(min(minimum, number), round(number * scale))


def _reduced(config: TrainConfig, scale: float, n_samples: int | None) -> TrainConfig:
    size = config.batch_size
    if n_samples is not None:
        size = min(size, n_samples, max(MIN_BATCH, n_samples // MIN_STEPS))
    return replace(config, epochs=_scaled(config.epochs, scale, MIN_EPOCHS), batch_size=size)


def _reductions(whole: Profile, reduced: Profile) -> list[str]:
    """List the differences between a first look and its whole profile, as text."""
    pairs = {
        "epochs": (reduced.config.epochs, whole.config.epochs),
        "networks": (reduced.sweep_models, whole.sweep_models),
        "curvature directions": (reduced.measure.n_directions, whole.measure.n_directions),
    }
    texts = [f"{a} of {b} {name}" for name, (a, b) in pairs.items() if a < b]
    if reduced.n_samples:
        training = (reduced.config.batch_size, whole.config.batch_size)
        sweep = (reduced.sweep_config.batch_size, whole.sweep_config.batch_size)
        sizes = [str(a) for a, b in (training, sweep) if a < b]
        batches = f" in batches of {' and '.join(dict.fromkeys(sizes))}" if sizes else ""
        texts.append(f"{reduced.n_samples:,} samples{batches}")
    return texts


# Minima of a first look.
MIN_EPOCHS = 6  # the curves of fewer epochs have no shape
# Every one of 60,000 samples needs a network of the sweep that was trained without it, and two
# shadows trained with it and two without: random subsets fail with a probability of 1 in 100.
MIN_NETWORKS = {"sweep_models": 44, "n_shadows": 32, "n_targets": 3}
MIN_DIRECTIONS = 2  # of curvature: ten take most of the time of a training on a CPU
MIN_BATCH, MIN_STEPS = 16, 25  # samples in a batch, and batches in an epoch
NOISE_RATES = (0.01, 0.02, 0.04, 0.05, 0.06, 0.08, 0.10, 0.20, 0.25, 0.30)
OPTIMIZER_CHANGES: Mapping[str, Mapping[str, Any]] = {
    "sgd": {},
    "adam": {"optimizer": "adam", "lr": 1e-3},
    "adamw": {"optimizer": "adamw", "lr": 1e-3},
    "adagrad": {"optimizer": "adagrad", "lr": 1e-2},
    "rmsprop": {"optimizer": "rmsprop", "lr": 1e-3, "momentum": 0.0},
}
# Post-hoc signals every fourth epoch, as in the curvature paper on ImageNet: with 10 random
# directions, measuring one epoch costs as much as training several.
SPARSE = replace(Profile.measure, every=4)
FAST = {"device": "auto", "precision": "auto", "channels_last": None, "compiled": None}  # on a GPU
# Curvature paper, appendix C: no augmentation, 200 epochs, rates cut at epochs 80 and 160.
PAPERS = {"lr": 0.1, "weight_decay": 1e-4}
GREY = TrainConfig(**PAPERS, epochs=200, batch_size=128, milestones=(0.4, 0.8), **FAST)
# The authors' train.py: 200 epochs, rates cut at 60 and 80 % of them, crops and flips.
COLOUR = TrainConfig(
    **PAPERS, epochs=200, batch_size=128, augment="crop_flip", threads=None, **FAST
)

DIGITS = TrainConfig(**PAPERS)
# Networks of equal length, close together at first, where most of the training happens.
EPOCHS_OF_60 = (2, 4, 7, 10, 14, 20, 30, 42)


def _small(name: str, config: TrainConfig, queries: Queries, **changes: Any) -> Profile:
    """Return a profile of a small data set, with networks that a CPU trains in seconds.

    The sweep trains as long as the scored run: memorization of other trainings is another one.
    """
    return Profile(
        name=name,
        dataset=name,
        model="mlp",
        other_model="small_cnn",
        batch_norm_model="mlp_bn",
        config=config,
        sweep_config=config,
        sweep_models=400,
        keep=0.7,
        noise_rates=NOISE_RATES,
        optimizers=OPTIMIZER_CHANGES,
        queries=queries,
        **changes,
    )


PROFILES: dict[str, Profile] = {
    # The configuration with the highest held-out accuracy of those that fit the training samples:
    # `benchmarks/recipe.py` has what was tried. With strong decay the weight norm peaks well before
    # the learning rate drops, as the papers' stop needs it. The paper's attack takes 10 directions
    # of curvature; in float64 each adds a sixth to the half sweep's time, and four instead of one
    # raise the attack's AUROC from 0.67 to 0.70 (LiRA: 0.76).
    "fashion_small": _small(
        "fashion_small",
        TrainConfig(),
        Queries((*STOPS, *EPOCHS_OF_60), ("identity", "flip"), n_directions=2),
        measure=SPARSE,
        variants={"strong_decay": {"weight_decay": 2e-3}},
    ),
    "digits": _small(  # not flipped: a flipped digit is another symbol
        "digits",
        DIGITS,
        Queries((*STOPS, *EPOCHS_OF_60), ("identity", "left", "right"), n_directions=10),
    ),
}


def _grey(name: str) -> Profile:
    """Return a profile of grey images, with a small network as in the curvature paper."""
    return Profile(
        name=name,
        dataset=name,
        model="small_cnn_bn",
        other_model="resnet18",
        batch_norm_model="mlp_bn",
        config=GREY,
        sweep_config=replace(GREY, epochs=30),
        sweep_models=400,
        keep=0.7,
        noise_rates=NOISE_RATES,
        optimizers=OPTIMIZER_CHANGES,
        queries=Queries(
            snapshots=(*STOPS, 2, 5, 10, 20, 40, 80, 120, 160),
            augmentations=("identity", "left", "right"),
            n_directions=10,
        ),
        measure=SPARSE,
    )


def _colour(name: str, **changes: Any) -> Profile:
    """Return a CIFAR profile: the papers' ResNet-18; Feldman and Zhang's SmallInception."""
    return Profile(
        name=name,
        dataset=name,
        model="resnet18",
        other_model="small_inception",
        batch_norm_model="small_cnn_bn",
        config=COLOUR,
        sweep_config=replace(COLOUR, epochs=40, batch_size=512),
        sweep_models=200,
        sweep_model="small_inception",
        keep=0.7,
        noise_rates=NOISE_RATES,
        optimizers=OPTIMIZER_CHANGES,
        queries=Queries(
            snapshots=(*STOPS, 10, 40), augmentations=("identity", "flip"), n_directions=10
        ),
        n_targets=3,
        measure=SPARSE,
        **changes,
    )


# ResNet-50 as in the CSG paper on ImageNet: 200 epochs, learning rate cut at 60 and 80 % of them,
# 0.1 for a batch of 256 and in proportion for others. The crops differ: of a padded image here, of
# random size and shape in the paper.
IMAGENET = replace(COLOUR, batch_size=256)

PROFILES |= {name: _grey(name) for name in ("mnist", "fashion_mnist")}
PROFILES |= {"cifar10": _colour("cifar10"), "cifar100": _colour("cifar100", published=True)}
PROFILES["imagenet"] = replace(
    _colour("imagenet"),
    model="resnet50",
    other_model="resnet18",
    config=IMAGENET,
    sweep_config=IMAGENET,
    sweep_models=2_000,  # ResNet-50, as in Feldman and Zhang
    sweep_model="resnet50",
)


def get_profile(name: str) -> Profile:
    """Return a profile by its name, see `PROFILES`.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists the known names.

    Examples
    --------
    >>> import memlens as ml
    >>> ml.get_profile("digits").dataset
    'digits'
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; known: {', '.join(PROFILES)}")
    return PROFILES[name]
