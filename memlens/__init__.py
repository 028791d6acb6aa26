"""memlens: see what a network memorizes.

The rooms, from the ground up; each imports only from those above it:

files          written so that a kill leaves the old state or the new one
locks          one process at a time, however it ends
store          where finished work lies, by the hash of everything that shaped it
inventory      ``memlens cache``: what lies there, whether it is whole, and rid of it
drafts         unfinished work, kept so that an interruption costs seconds and not hours
data           ``Samples`` and ``Dataset``: images and labels that you can see and edit
folders        ``FolderImages``: a folder of images that memory cannot hold, decoded when asked for
imagesets      ``load``: digits, MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, checked; ImageNet
published      what others published about their samples: memorization, people's labels
architectures  the papers' nets: ResNet, SmallInception, VGG, DenseNet, MobileNet
vit            the papers' vision transformer
models         plain functions ``(n_classes, in_shape) -> nn.Module``
signals        per-sample quantities as pure functions: loss, gradients, margin, curvature
weightgrads    per-sample norms of the weight gradient, without the gradients themselves
traces         ``Trace``: the signals of every sample at every epoch, as arrays
visits         samples visited unequally: means over visits, over recorders and over processes
epochs         one epoch while it is being recorded
recorder       ``Recorder``: scatters signals by sample index while any loop trains
stopping       online detection of the peak of the weight norm or the mean input gradient
indexing       ``with_index``: a data set that says where each of its samples lies
watching       ``Watched``: hooks on a net, for loops that cannot be changed
resuming       what callbacks keep in a checkpoint, and which training may go on from it
integrations   callbacks for Lightning and the Hugging Face Trainer; imports neither until used
scores         every score as a pure function of a trace, with its metadata: the catalogue
handover       what a loop of your own hands over: its scores, sums over visits, label quality
devices        where and how a net computes: device, precision, memory layout, compilation
recipes        ``Recipe``, ``Measure``, the optimizers
feeds          batches on the device: gathered, cropped and flipped there, or read ahead
passes         what a finished net says about many samples, a part at a time
probes         what is measured after an epoch: signals post-hoc, curvature, gradients
checks         what a measure takes: finite vectors of one length, frames of them
metrics        similarity with bootstrap intervals, bins, fits, associations
plots          axes-level plots, one palette
runs           ``Run``: what one training leaves
forecast       how much memory a piece of work will take, said before it starts
ranks          one training on many devices: what the loop asks, of one process or of several
steps          one step of training: of a batch, or of a process's share of one
training       the one training loop, ``train``
workers        where a list of trainings is mapped: processes here, or a Dask cluster's workers
jobs           ``train_many``: trainings done once, side by side, and found again in the store
together       many small nets trained in one batched pass
answers        what nets trained together answer about every sample: at which stop, in which view
subsets        many models on random subsets: Feldman-Zhang memorization with standard errors
retrainings    the extra trainings that some scores need: folds, a second split, repeats
proxies        the scores that need more trainings: SAMIS, SSFT, confident learning, means of runs
costs          the catalogue of all scores, and what each of them costs
duplicates     planted pairs, and a finder of exact and near duplicates
calibration    reliability table, ECE, MCE, MSCE, UCE
detection      how well a score finds what was planted: AUROC, average precision, rates
shadows        what an attacker has: answers of a target, and of shadow nets
attacks        membership inference: was this sample trained on?
privacy        attacks staged from a sweep, and judged at low false positive rates
robustness     how far a sample is from the nearest one that the net gets wrong
margins        measured quantities beside thresholds, and how safely they lie on one side
paper          the printed tables, ours beside theirs, verdicts
ledger         all claims of all notebooks in one table, and the README's copy of it
charts         plots with names along an axis: heat maps, bars, forests, dots
profiles       which data set, nets and recipes a notebook runs with
page           what a notebook opens: its profile, figures, facts and claims
finished       executed notebooks as files, and which need not be run again
reproduce      the main job: papermill over the notebooks in order
pictures       image files of every mode, size and depth, and ``.npz``, as arrays of one shape
listings       which files of your own there are, and of which class
owndata        ``load_own``: a folder of class folders, a table of files and labels, an ``.npz``
readings       what scores suggest of a sample, with the evidence, and how often it is right
plans          what is trained for data of your own: net, recipe, folds
scoring        the trainings of a plan, and what they say of every sample
elements       pieces of an HTML page that needs nothing beside itself
report         that as one page which opens without a network
live           what a person sees while a net trains: a bar, or curves in a notebook
outputs        ``memlens score``: from a path to a folder of results, and back
launch         ``memlens train``: one training by a profile's recipe, on one device or on many

Names are loaded on first use, so ``import memlens`` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "load": "imagesets", "load_fz": "published", "Dataset": "data", "Samples": "data",
    "build": "models",
    "Recorder": "recorder", "Trace": "traces",
    "catalogue": "costs",
    "PeakDetector": "stopping", "PeakStop": "stopping", "Peak": "stopping",
    "with_index": "indexing", "Watched": "watching",
    "scores_of": "handover", "by_visits": "handover", "label_quality": "handover",
    "Run": "runs",
    "Recipe": "recipes", "Measure": "recipes", "train": "training",
    "Job": "jobs", "train_many": "jobs",
    "Questions": "answers", "Sweep": "subsets", "subset_sweep": "subsets",
    "extra_scores": "proxies", "every_score": "proxies",
    "compare": "metrics",
    "get_profile": "profiles",
    "open_page": "page",
    "load_own": "owndata", "score": "scoring", "load_scored": "outputs", "LivePlot": "live",
}  # fmt: skip
_ROOMS = (
    "files", "locks", "store", "inventory", "drafts", "data", "folders", "imagesets", "published",
    "architectures", "vit", "models", "signals", "weightgrads", "traces", "visits", "epochs",
    "recorder", "stopping", "indexing", "watching", "resuming", "integrations", "scores",
    "handover", "devices", "recipes", "feeds", "passes", "probes", "checks", "metrics", "plots",
    "runs", "forecast", "ranks", "steps", "training", "workers", "jobs", "together", "answers",
    "subsets", "retrainings", "proxies", "costs", "duplicates", "calibration", "detection",
    "shadows", "attacks", "privacy", "robustness", "margins", "paper", "ledger", "charts",
    "profiles", "page", "finished", "reproduce", "pictures", "listings", "owndata", "readings",
    "plans", "scoring", "elements", "report", "live", "outputs", "launch",
)  # fmt: skip

__all__ = [*_HOME, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"memlens.{_HOME[name]}"), name)
    elif name in _ROOMS:
        value = import_module(f"memlens.{name}")
    else:
        raise AttributeError(f"module 'memlens' has no attribute {name!r}; it has {__all__}")
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
