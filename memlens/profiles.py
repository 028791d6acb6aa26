"""Which data, nets and recipes the notebooks run with: one table, one row a profile."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from memlens.answers import Questions
from memlens.data import Dataset
from memlens.imagesets import load
from memlens.jobs import Job, train_many
from memlens.proxies import extra_scores
from memlens.recipes import Measure, Recipe
from memlens.retrainings import KINDS
from memlens.runs import CHECKPOINTS, Run
from memlens.subsets import Sweep, subset_sweep


@dataclass(frozen=True)
class Profile:
    """A data set, its nets and its recipes; the notebooks ask it for runs and for the truth.

    All work goes through the store, so that notebooks share it.
    """

    name: str
    dataset: str
    model: str  # the net of every main result
    other_model: str  # a second architecture
    batch_norm_model: str  # the first with batch norm, to see how samples touch each other
    recipe: Recipe
    sweep_recipe: Recipe
    sweep_models: int
    keep: float  # share of the samples that each net of the sweep is trained on
    noise_rates: tuple[float, ...]  # of the papers' mislabel tables
    optimizers: Mapping[str, Mapping[str, Any]]  # changes to the recipe, by optimizer
    questions: Questions  # what the nets that are attacked, and their shadows, are asked
    n_shadows: int = 128
    n_targets: int = 10
    measure: Measure = Measure(
        posthoc=True, curvature_probes=10, weight_gradients=True, logit_gradients=True
    )

    def load(self) -> Dataset:
        """The data set, without noise."""
        return load(self.dataset)

    def top_k(self, data: Dataset) -> int:
        """Size of the most memorized tenth, as the papers' 5k of 50k."""
        return len(data.train) // 10

    def job(
        self,
        data: Dataset,
        *,
        model: str | None = None,
        measure: Measure | None = None,
        **changes: Any,
    ) -> Job:
        """One training by the profile's recipe with the given changes (``seed``, ``lr`` ...)."""
        recipe = replace(self.recipe, **changes)
        return Job(model or self.model, data, recipe, measure or self.measure)

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
        return extra_scores(model, datasets, self.recipe, seeds=seeds, kinds=kinds)

    def sweep(self, data: Dataset, *, model: str | None = None, **changes: Any) -> Sweep:
        """The subset-trained nets that memorization is computed from."""
        settings = {"n_models": self.sweep_models, "keep": self.keep, "recipe": self.sweep_recipe}
        return subset_sweep(model or self.model, data, **(settings | changes))

    def half_sweep(self, data: Dataset, **changes: Any) -> Sweep:
        """Nets trained by the whole recipe on random halves: shadows and targets of attacks.

        Half the samples are members of a net. See `privacy.stage`.
        """
        settings = {"n_models": self.n_shadows + self.n_targets, "keep": 0.5}
        settings |= {"recipe": self.recipe, "questions": self.questions}
        return self.sweep(data, **(settings | changes))


PROFILES: dict[str, Profile] = {
    "digits": Profile(
        name="digits",
        dataset="digits",
        model="mlp",
        other_model="small_cnn",
        batch_norm_model="mlp_bn",
        recipe=Recipe(),
        sweep_recipe=Recipe(epochs=20),
        sweep_models=400,
        keep=0.7,
        noise_rates=(0.01, 0.02, 0.05, 0.10, 0.20, 0.25, 0.30),
        optimizers={
            "sgd": {},
            "adam": {"optimizer": "adam", "lr": 1e-3},
            "adamw": {"optimizer": "adamw", "lr": 1e-3},
            "adagrad": {"optimizer": "adagrad", "lr": 1e-2},
            "rmsprop": {"optimizer": "rmsprop", "lr": 1e-3, "momentum": 0.0},
        },
        questions=Questions(
            stops=(*CHECKPOINTS, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 36, 42, 48, 54),
            views=("identity", "left", "right"),  # a flipped digit is another sign
            curvature_draws=10,
        ),
    ),
}


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
