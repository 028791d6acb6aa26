"""Which data, nets and configs the notebooks run with: one table, one row a profile.

`Profile.scaled` makes a first look of a profile: fewer epochs, fewer nets in a sweep, and, if asked
for, fewer samples. What it left out it says itself (`Profile.cuts`), and every figure repeats it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from memlens.training.config import MeasureConfig, TrainConfig
from memlens.training.jobs import Job, train_many
from memlens.training.runs import SNAPSHOTS, Run


@dataclass(frozen=True)
class Profile:
    """A data set, its nets and its configs; the notebooks ask it for runs and for the truth.

    All work goes through the store, so that notebooks share it.
    """

    name: str
    dataset: str
    model: str  # the net of every main result
    other_model: str  # a second architecture
    batch_norm_model: str  # the first with batch norm, to see how samples touch each other
    config: TrainConfig
    sweep_config: TrainConfig
    sweep_models: int
    keep: float  # share of the samples that each net of the sweep is trained on
    noise_rates: tuple[float, ...]  # of the papers' mislabel tables
    optimizers: Mapping[str, Mapping[str, Any]]  # changes to the config, by optimizer
    queries: Queries  # what the nets that are attacked, and their shadows, are asked
    sweep_model: str | None = None  # the net of the sweep behind memorization; None: ``model``
    published: bool = False  # whether memorization is published, and no sweep has to be trained
    n_shadows: int = 128
    n_targets: int = 10
    measure: MeasureConfig = MeasureConfig(
        posthoc=True, n_directions=10, weight_gradients=True, logit_gradients=True
    )
    n_samples: int | None = None  # training samples to take; None: all
    cuts: tuple[str, ...] = ()  # what a first look leaves out, in words; nothing: the whole profile

    def scaled(self, scale: float = 1.0, n_samples: int | None = None) -> "Profile":
        """A first look: fewer epochs and nets, by the factor ``scale``, and fewer samples.

        Parameters
        ----------
        scale : float in (0, 1]
            Of the epochs of all configs and of the nets of all sweeps; learning rates fall at the
            same shares of the epochs. No less than `LEAST_EPOCHS` epochs and `LEAST_NETS` nets.
            And of the random directions of every curvature, no less than `LEAST_DIRECTIONS`.
        n_samples : int, optional
            Training samples to take, the same share of every class; of the test samples as many,
            where there are more. By default all. Batches shrink where few samples would otherwise
            leave an epoch less than `LEAST_STEPS` steps: nets would hardly learn.

        Raises
        ------
        ValueError
            If the scale is not in (0, 1], or there are no samples.
        """
        if not 0 < scale <= 1:
            raise ValueError(f"scale is {scale}; expected a share in (0, 1], e.g. 0.1 for a tenth")
        if n_samples is not None and n_samples < 1:
            raise ValueError(f"n_samples is {n_samples}; expected one or more, or None for all")
        config = _first_look(self.config, scale, n_samples)
        share = config.epochs / self.config.epochs
        snapshots = (s if isinstance(s, str) else round(s * share) for s in self.queries.snapshots)
        snapshots = dict.fromkeys(s if isinstance(s, str) else max(1, s) for s in snapshots)
        less = replace(
            self,
            config=config,
            sweep_config=_first_look(self.sweep_config, scale, n_samples),
            queries=replace(
                self.queries,
                snapshots=tuple(snapshots),
                n_directions=_less(self.queries.n_directions, scale, LEAST_DIRECTIONS),
            ),
            measure=replace(
                self.measure,
                every=_less(self.measure.every, scale, 1),
                n_directions=_less(self.measure.n_directions, scale, LEAST_DIRECTIONS),
            ),
            n_samples=n_samples,
            **{k: _less(getattr(self, k), scale, least) for k, least in LEAST_NETS.items()},
        )
        return replace(less, cuts=(*self.cuts, *_cuts(self, less)))

    def load(self, root: Path | None = None, *, per_class: int = 1) -> Dataset:
        """The data set, without noise; the samples of a first look only; ``root`` as of `load`.

        Where memorization is published by position, samples whose place in the original order is
        not sure are left out (82 of 50,000 in CIFAR-100), so that every sample has a truth.

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
                f"a class of {data.name} has {smallest} training samples, and {per_class} are "
                f"needed: set n_samples to {per_class * data.n_classes} or more, or to 0 for all"
            )
        return data

    def memorization(self, data: Dataset) -> pd.DataFrame:
        """Ground truth of each training sample: published where it is, else from a sweep.

        As `subsets.memorization` gives it; of published scores only ``memorization`` is known, the
        other columns are NaN.
        """
        if not self.published:
            return self.sweep(data).memorization()
        scores = load_fz(data)
        unknown = ("standard_error", "n_in", "n_out", "in_accuracy", "out_accuracy")
        return scores.to_frame().assign(**dict.fromkeys(unknown, math.nan))

    def top_k(self, data: Dataset) -> int:
        """Size of the most memorized tenth, as the papers' 5k of 50k."""
        return len(data.train) // 10

    def job(
        self,
        data: Dataset,
        *,
        model: str | None = None,
        measure: MeasureConfig | None = None,
        **changes: Any,
    ) -> Job:
        """One training by the profile's config with the given changes (``seed``, ``lr`` ...)."""
        config = replace(self.config, **changes)
        return Job(model or self.model, data, config, measure or self.measure)

    def runs(self, data: Dataset, *, seeds: int = 3, **changes: Any) -> list[Run]:
        """The same training from ``seeds`` seeds; other arguments as in `job`."""
        return train_many([self.job(data, seed=s, **changes) for s in range(seeds)])

    def extra_scores(
        self,
        datasets: Sequence[Dataset],
        *,
        seeds: Sequence[int],
        kinds: Sequence[str] = tuple(KINDS),
        model: str | None = None,
    ) -> list[pd.DataFrame]:
        """The scores that need more trainings, for each data set; see `proxies.extra_scores`."""
        model = model or self.model
        return extra_scores(model, datasets, self.config, seeds=seeds, kinds=kinds)

    def sweep(self, data: Dataset, *, model: str | None = None, **changes: Any) -> Sweep:
        """The subset-trained nets that memorization is computed from."""
        settings = {"n_models": self.sweep_models, "keep": self.keep, "config": self.sweep_config}
        return subset_sweep(model or self.sweep_model or self.model, data, **(settings | changes))

    def half_sweep(self, data: Dataset, **changes: Any) -> Sweep:
        """ModelEnsemble trained by the whole config on random halves: shadows and targets of attacks.

        Half the samples are members of a net. See `privacy.stage`.
        """
        settings = {"n_models": self.n_shadows + self.n_targets, "keep": 0.5}
        settings |= {"config": self.config, "queries": self.queries, "model": self.model}
        return self.sweep(data, **(settings | changes))


def _less(whole: int, scale: float, least: int) -> int:
    return max(min(least, whole), round(whole * scale))


def _first_look(config: TrainConfig, scale: float, n_samples: int | None) -> TrainConfig:
    size = config.batch_size
    if n_samples is not None:
        size = min(size, n_samples, max(LEAST_BATCH, n_samples // LEAST_STEPS))
    return replace(config, epochs=_less(config.epochs, scale, LEAST_EPOCHS), batch_size=size)


def _cuts(whole: Profile, less: Profile) -> list[str]:
    """What a first look leaves out, in words."""
    pairs = {
        "epochs": (less.config.epochs, whole.config.epochs),
        "nets": (less.sweep_models, whole.sweep_models),
        "curvature probes": (less.measure.n_directions, whole.measure.n_directions),
    }
    cuts = [f"{a} of {b} {name}" for name, (a, b) in pairs.items() if a < b]
    if less.n_samples:
        batches = (less.config.batch_size, whole.config.batch_size)
        swept = (less.sweep_config.batch_size, whole.sweep_config.batch_size)
        smaller = [str(a) for a, b in (batches, swept) if a < b]
        told = f" in batches of {' and '.join(dict.fromkeys(smaller))}" if smaller else ""
        cuts.append(f"{less.n_samples:,} samples{told}")
    return cuts


LEAST_EPOCHS = 6  # of a first look: fewer show nothing that has a shape
# Of 60,000 samples, none may be in all nets of a sweep, and each has to have two shadows with it
# and two without: so many random subsets do that but once in a hundred.
LEAST_NETS = {"sweep_models": 44, "n_shadows": 32, "n_targets": 3}
LEAST_DIRECTIONS = 2  # of curvature: ten of them take most of the time of a run on a processor
LEAST_BATCH, LEAST_STEPS = 16, 25  # of a first look's batches, and an epoch of them
NOISE_RATES = (0.01, 0.02, 0.05, 0.10, 0.20, 0.25, 0.30)
OPTIMIZER_CHANGES: Mapping[str, Mapping[str, Any]] = {
    "sgd": {},
    "adam": {"optimizer": "adam", "lr": 1e-3},
    "adamw": {"optimizer": "adamw", "lr": 1e-3},
    "adagrad": {"optimizer": "adagrad", "lr": 1e-2},
    "rmsprop": {"optimizer": "rmsprop", "lr": 1e-3, "momentum": 0.0},
}
# Gradients by input and weights once in four epochs, as the curvature paper does on ImageNet: at
# n = 10 probes an epoch of them costs several of training.
SPARSE = replace(Profile.measure, every=4)
FAST = {"device": "auto", "precision": "auto", "channels_last": None, "compiled": None}  # on a GPU
# Curvature paper, appendix C: no augmentation, 200 epochs, rates cut at epochs 80 and 160.
GREY = TrainConfig(epochs=200, batch_size=128, milestones=(0.4, 0.8), **FAST)
# The authors' train.py: 200 epochs, rates cut at 60 and 80 % of them, crops and flips.
COLOUR = TrainConfig(epochs=200, batch_size=128, augment="crop_flip", threads=None, **FAST)

PROFILES: dict[str, Profile] = {
    "digits": Profile(
        name="digits",
        dataset="digits",
        model="mlp",
        other_model="small_cnn",
        batch_norm_model="mlp_bn",
        config=TrainConfig(),
        sweep_config=TrainConfig(epochs=20),
        sweep_models=400,
        keep=0.7,
        noise_rates=NOISE_RATES,
        optimizers=OPTIMIZER_CHANGES,
        queries=Queries(
            snapshots=(
                *SNAPSHOTS,
                1,
                2,
                3,
                4,
                6,
                8,
                10,
                12,
                14,
                16,
                20,
                24,
                28,
                32,
                36,
                42,
                48,
                54,
            ),
            augmentations=("identity", "left", "right"),  # a flipped digit is another sign
            n_directions=10,
        ),
    ),
}


def _grey(name: str) -> Profile:
    """Grey images: the main net is a small one, as the curvature paper's downscaled ResNet."""
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
            snapshots=(*SNAPSHOTS, 2, 5, 10, 20, 40, 80, 120, 160),
            augmentations=("identity", "left", "right"),
            n_directions=10,
        ),
        n_shadows=64,
        measure=SPARSE,
    )


def _colour(name: str, **changes: Any) -> Profile:
    """CIFAR: the papers' ResNet-18; a sweep of Feldman and Zhang's net, SmallInception."""
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
            snapshots=(*SNAPSHOTS, 10, 40), augmentations=("identity", "flip"), n_directions=10
        ),
        n_shadows=64,  # as the papers
        n_targets=3,
        measure=SPARSE,
        **changes,
    )


# ResNet-50 as the CSG paper trains it on ImageNet: 200 epochs, rates cut at 60 and 80 % of them,
# 0.1 for a batch of 256 and in proportion for others. But crops are of a padded image here, not of
# random size and shape.
IMAGENET = TrainConfig(epochs=200, batch_size=256, augment="crop_flip", threads=None, **FAST)

PROFILES |= {name: _grey(name) for name in ("mnist", "fashion_mnist")}
PROFILES |= {"cifar10": _colour("cifar10"), "cifar100": _colour("cifar100", published=True)}
PROFILES["imagenet"] = replace(
    _colour("imagenet"),
    model="resnet50",
    other_model="resnet18",
    config=IMAGENET,
    sweep_config=IMAGENET,
    sweep_models=2_000,  # as Feldman and Zhang, who trained ResNet-50
    sweep_model="resnet50",
)


def get_profile(name: str) -> Profile:
    """A profile by name.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists the known ones.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; known: {', '.join(PROFILES)}")
    return PROFILES[name]
