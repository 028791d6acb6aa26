"""memlens: see what a network memorizes.

The subpackages, from the lowest layer to the highest. Each imports only from the lines above it;
subpackages on one line do not import each other:

storage, models, evaluation, tracking
data
training
ensembles
attacks, audit
experiments

storage      atomic files, locks, the cache of finished work, checkpoints of unfinished work
models       small networks, and the papers' networks
evaluation   similarity with intervals, detection, calibration, plots
tracking     ``Recorder``: per-sample signals of any training loop, and the scores
data         ``Dataset`` and ``Samples``: images, labels and original indices
training     ``train``: the training loop, its configuration, many trainings, many devices
ensembles    networks trained together: Feldman-Zhang memorization, scores of extra trainings
attacks      membership inference, and the distance to the decision boundary
audit        your own images: read them, score them, report suspected labels and duplicates; the
             explorer of any run
experiments  profiles, notebook reports, printed tables, claims, the headless run

Names are imported on first use, so that ``import memlens`` is fast.
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
    "PeakStop": "tracking.stopping",
    "Peak": "tracking.peaks",
    "with_index": "tracking.indexing", "RecorderHooks": "tracking.hooks",
    "LightningRecorder": "tracking.integrations", "TrainerRecorder": "tracking.integrations",
    "visit_sums": "tracking.scores", "label_quality": "tracking.scores",
    "Run": "training.runs",
    "TrainConfig": "training.config", "MeasureConfig": "training.config", "train": "training.loop",
    "Job": "training.jobs", "train_many": "training.jobs", "LivePlot": "training.progress",
    "Queries": "ensembles.queries", "subset_sweep": "ensembles.subsets",
    "memorization": "ensembles.truth",
    "extra_scores": "ensembles.proxies", "every_score": "ensembles.proxies",
    "catalogue": "ensembles.costs",
    "compare": "evaluation.metrics",
    "load_audit_data": "audit.audit_data", "run_audit": "audit.pipeline",
    "load_audit": "audit.outputs", "explore": "audit.explore",
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
    globals()[name] = value  # later uses do not call this function
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
