"""memlens: see what a network memorizes.

The subpackages, from the ground up. Each imports only from those above it, and those of one line
do not import each other:

storage, models, evaluation, tracking
data
training
ensembles
attacks, audit
experiments

storage      files that survive kills, locks, the store of finished work
models       small nets, and the papers' own
evaluation   similarity with intervals, detection, calibration, plots
tracking     ``Recorder``: what happens to every sample while any loop trains, and its scores
data         ``Samples`` and ``Dataset``: images and labels that you can see and edit
training     ``train``: the one training loop, its configuration, many trainings, many devices
ensembles    many nets trained together: Feldman-Zhang memorization, scores of more trainings
attacks      membership inference, and the distance to the decision boundary
audit        your own data: read it, score it, report what looks wrong
experiments  profiles, the notebooks' page, printed tables, claims, the headless run

Names are loaded on first use, so ``import memlens`` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "load": "data.imagesets", "from_arrays": "data.samples", "load_fz": "data.published",
    "Dataset": "data.samples", "Samples": "data.samples",
    "build": "models.registry",
    "Recorder": "tracking.recorder", "CountingRecorder": "tracking.counting",
    "Trace": "tracking.traces",
    "PeakDetector": "tracking.stopping", "PeakStop": "tracking.stopping",
    "Peak": "tracking.stopping",
    "with_index": "tracking.indexing", "RecorderHooks": "tracking.hooks",
    "LightningRecorder": "tracking.integrations", "TrainerRecorder": "tracking.integrations",
    "visit_sums": "tracking.scores", "label_quality": "tracking.scores",
    "Run": "training.runs",
    "TrainConfig": "training.config", "MeasureConfig": "training.config", "train": "training.loop",
    "Job": "training.jobs", "train_many": "training.jobs", "LivePlot": "training.progress",
    "Queries": "ensembles.queries", "subset_sweep": "ensembles.subsets",
    "extra_scores": "ensembles.proxies", "every_score": "ensembles.proxies",
    "catalogue": "ensembles.costs",
    "compare": "evaluation.metrics",
    "load_audit_data": "audit.audit_data", "run_audit": "audit.pipeline",
    "load_audit": "audit.outputs",
    "get_profile": "experiments.profiles", "open_report": "experiments.notebook",
}  # fmt: skip
_SUBPACKAGES = (
    "storage", "models", "evaluation", "tracking", "data", "training", "ensembles", "attacks",
    "audit", "experiments",
)  # fmt: skip

__all__ = [*_HOME, *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"memlens.{_HOME[name]}"), name)
    elif name in _SUBPACKAGES:
        value = import_module(f"memlens.{name}")
    else:
        raise AttributeError(f"module 'memlens' has no attribute {name!r}; it has {__all__}")
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
