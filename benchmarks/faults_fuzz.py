"""Random bad inputs to the public functions of many modules, under one oracle.

A call returns, or raises an error with a name and a message, within its time; and it leaves no half
of a file.
"""

import argparse
import contextlib
import io
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import memlens as ml
from memlens import __main__
from memlens.attacks import shadows
from memlens.audit import duplicates, findings
from memlens.audit.audit_data import load_audit_data
from memlens.data import folders, samples
from memlens.ensembles import subsets
from memlens.evaluation import calibration, detection, metrics
from memlens.experiments import paper
from memlens.models import registry
from memlens.storage import store
from memlens.storage.checkpoints import TrainingCheckpoint
from memlens.tracking import peaks, scores

NAMED = (
    ValueError, TypeError, FileNotFoundError, MemoryError, IndexError, KeyError, OSError,
    FloatingPointError, argparse.ArgumentTypeError,
)  # fmt: skip
SECONDS = 20  # of one call
MOST = 300  # a number of bins, samples, resamples: large ones only take longer

numbers = st.one_of(
    st.floats(), st.integers(-3, MOST), st.booleans(), st.sampled_from([np.nan, np.inf, -np.inf]),
)  # fmt: skip
scalars = st.one_of(numbers, st.none(), st.text(max_size=8), st.just(()), st.just(b"\0"))
counts = st.one_of(st.integers(-3, MOST), scalars)
dtypes = st.sampled_from(["float64", "float32", "int64", "uint8", "bool", "complex64", "str"])
shapes = st.lists(st.integers(0, 6), max_size=4).map(tuple)
lists = st.one_of(
    st.lists(numbers, max_size=8), st.lists(scalars, max_size=5), st.lists(st.integers(0, 2))
)


@st.composite
def arrays(draw: Callable) -> np.ndarray:
    """An array of any shape and type, some of its values bad."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    values = rng.normal(scale=draw(st.sampled_from([0.0, 1.0, 1e30])), size=draw(shapes))
    if values.size and draw(st.booleans()):
        values.flat[0] = draw(st.sampled_from([np.nan, np.inf, -1.0]))
    with np.errstate(all="ignore"):
        return values.astype(draw(dtypes))


def _series(values: list) -> pd.Series:
    return pd.Series(values, dtype=object if not values else None)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(values if values.dtype.kind in "fiub" else np.zeros(values.shape))


vectors = st.one_of(lists, arrays(), lists.map(_series), scalars)
frames = st.one_of(
    st.dictionaries(st.sampled_from(["aum", "csl", "label", "p_label"]), lists.map(_series)).map(
        lambda columns: pd.DataFrame(columns)
    ),
    vectors,
)
tensors = st.one_of(arrays().map(_tensor), arrays(), scalars)
settings_of = lambda names, value=scalars: st.dictionaries(st.sampled_from(names), value)  # noqa: E731


class Call(NamedTuple):
    """A function by name, and what makes its arguments; a folder comes first if it works in one."""

    name: str
    function: Callable[..., object]
    arguments: st.SearchStrategy[tuple]
    in_folder: bool = False


def _tuples(*parts: st.SearchStrategy) -> st.SearchStrategy[tuple]:
    return st.tuples(*parts)


def _keywords(function: Callable) -> Callable:
    return lambda given: function(**given)


def _samples(images: Any, labels: Any, index: Any) -> object:
    return samples.Samples(images, labels, index, labels)


def _trace_score(which: int, values: Any, y: Any) -> object:
    trace = ml.Trace(dict.fromkeys(("loss", "margin", "grad_l2", "p_y"), values), y_true=y)
    functions = (scores.csg, scores.csl, scores.aum, scores.forgetting, scores.learning_time_share)
    return functions[which](trace)


def _record(n: Any, batch: tuple, watched: bool) -> object:
    index, x, logits, y = batch
    recorder = ml.Recorder(n)
    if watched and torch.is_tensor(x) and x.is_floating_point():
        x = recorder.watch(x)
        x.sum().backward()
    recorder.update(index, x, logits, y)
    return recorder.end_epoch()


def _own(folder: Path, kind: str, content: bytes, text: str, size: Any) -> object:
    """Rubbish as an .npz, a table, or pictures in class folders."""
    if kind == "folder":
        for k in range(24):
            place = folder / "in" / f"class{k % 2}" / f"{k}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content[k:])
    else:
        (folder / "in").mkdir()
        place = folder / "in" / f"own.{kind}"
        place.write_bytes(content) if kind == "npz" else place.write_text(text)
    return load_audit_data(folder / "in" if kind == "folder" else place, size=size)


def _own_arrays(folder: Path, x: np.ndarray, y: np.ndarray) -> object:
    np.savez(folder / "own.npz", x=x, y=y)
    return load_audit_data(folder / "own.npz")


def _piece(folder: Path, parts: list[bytes]) -> object:
    (folder / "run-1").mkdir()
    for name, content in zip((store.ARRAYS, store.CONFIG, store.SUMS), parts):
        (folder / "run-1" / name).write_bytes(content)
    found = store.Store(folder).get("run-1")
    if found is not None:
        raise AssertionError("rubbish was taken for a artifact")
    return found


def _put(folder: Path, arrays: dict, meta: Any) -> object:
    cache = store.Store(folder)
    cache.put("run-1", store.Artifact(arrays, meta))
    return cache.get("run-1")


def _draft(folder: Path, content: bytes) -> object:
    (folder / "a.checkpoint").write_bytes(content)
    return TrainingCheckpoint(folder / "a.checkpoint").load()


def _command(words: list[str]) -> object:
    """The parser says no by SystemExit, with a message on stderr."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return __main__.build_parser().parse_args(words)
    except SystemExit as end:
        if not said.getvalue():
            raise AssertionError("the parser ended without a word") from end
        return None


_two, _rows = _tuples(vectors, vectors), st.binary(max_size=300)
_words = st.sampled_from(
    ["audit", "cache", "catalogue", "claims", "reproduce", "clear", "--kind", "--older-than", "-p",
     "--size", "--yes", "--epochs", "x", "-1", "nan", "a=1", "=", "--folder", "--help", "\0"],
)  # fmt: skip
_words = st.one_of(_words, st.text(max_size=6))
_quick = {"n_resamples": 20}
CALLS = [
    *(Call(f"metrics.{f.__name__}", f, _two)
      for f in (metrics.cosine, metrics.pearson, metrics.spearman, metrics.linear_fit)),
    Call("metrics.binned_mean", metrics.binned_mean, _tuples(vectors, vectors, counts)),
    Call("metrics.holm", metrics.holm, _tuples(vectors)),
    Call("metrics.compare", lambda s, t, k: metrics.compare(s, t, top_k=k, **_quick),
         _tuples(frames, vectors, counts)),
    Call("metrics.by_epoch", metrics.by_epoch, _two),
    Call("metrics.associations", lambda s, a: metrics.associations(s, a, **_quick),
         _tuples(vectors, frames)),
    *(Call(f"detection.{f.__name__}", f, _two)
      for f in (detection.auroc, detection.average_precision, detection.balanced_accuracy,
                detection.equal_error_accuracy, detection.auroc_interval,
                 detection.evaluate_detectors)),
    *(Call(f"detection.{f.__name__}", f, _tuples(vectors, vectors, scalars))
      for f in (detection.precision_at, detection.tpr_at_fpr, detection.fpr_at_tpr)),
    *(Call(f"calibration.{f.__name__}", f, _tuples(vectors, vectors, counts))
      for f in (calibration.ece, calibration.mce, calibration.msce, calibration.uce,
                calibration.reliability, calibration.calibration_errors)),
    Call("calibration.errors_by", calibration.errors_by, _tuples(vectors, vectors, vectors)),
    Call("calibration.softmax", calibration.softmax, _tuples(vectors)),
    Call("data.Samples", _samples, _tuples(tensors, tensors, tensors)),
    Call("data.from_arrays", samples.from_arrays,
         _tuples(scalars, _tuples(arrays(), arrays()), _tuples(arrays(), arrays()))),
    Call("data.subset", lambda n: ml.load("digits").subset(n), _tuples(counts)),
    Call("data.with_noise", lambda r: ml.load("digits").with_noise(r), _tuples(scalars)),
    Call("load", ml.load, _tuples(scalars)),
    Call("peaks.find_peak", lambda v, s: peaks.find_peak(v, **s),
         _tuples(vectors, settings_of(["patience", "min_rise"]))),
    Call("scores", _trace_score, _tuples(st.integers(0, 4), arrays(), st.none() | arrays())),
    Call("TrainConfig", _keywords(ml.TrainConfig), _tuples(settings_of(
        ["epochs", "batch_size", "lr", "momentum", "milestones", "seed", "optimizer"]))),
    Call("Measure", _keywords(ml.MeasureConfig), _tuples(settings_of(
        ["posthoc", "n_directions", "curvature_step", "every"]))),
    Call("Recorder", _record,
         _tuples(counts, _tuples(tensors, tensors, tensors, tensors), st.booleans())),
    Call("findings.suggest", findings.suggest, _tuples(frames)),
    Call("findings.precision", findings.precision, _tuples(frames, vectors, vectors)),
    Call("duplicates.groups", duplicates.groups, _tuples(frames)),
    Call("duplicates.find",
         lambda f: duplicates.find(ml.load("digits").subset(60).train, f), _tuples(tensors)),
    Call("models.build", registry.build,
         _tuples(scalars | st.sampled_from(["mlp", "small_cnn"]), st.integers(-2, 12) | scalars,
                 lists.map(tuple) | st.sampled_from([(1, 8, 8), (1, 2, 2), (0, 8, 8)]))),
    Call("subsets.subset_masks", subsets.subset_masks, _tuples(counts, counts, scalars)),
    Call("subsets.subset_memorization", subsets.subset_memorization, _tuples(arrays(), arrays())),
    Call("shadows.true_class_logit", shadows.true_class_logit, _tuples(arrays(), arrays())),
    Call("profiles.get_profile", ml.get_profile, _tuples(scalars)),
    Call("paper.table", paper.table, _tuples(scalars)),
    Call("paper.split_source", paper.split_source, _tuples(scalars)),
    Call("paper.verdict", paper.verdict, _tuples(vectors)),
    Call("folders.folder_dataset", lambda folder, n: folders.folder_dataset("x", folder / str(n)),
         _tuples(st.integers(0, 2)), in_folder=True),
    Call("audit_data.load_audit_data", _own, _tuples(
        st.sampled_from(["npz", "csv", "tsv", "folder"]),
        _rows | st.just(b"PK\x05\x06" + b"\0" * 18),
        st.text(max_size=60) | st.just("file,label\na.png,1\n"),
        st.none() | st.integers(-2, 70)), in_folder=True),
    Call("audit_data of arrays", _own_arrays, _tuples(arrays(), arrays()), in_folder=True),
    Call("store.get", _piece, _tuples(st.lists(_rows | st.sampled_from(
        [b"{}", b"[]", b"3", b'{"sha256": 1}', b'{"meta": {}}', b"["*9000]), max_size=3)),
        in_folder=True),
    Call("store.put", _put, _tuples(
        st.dictionaries(st.text(max_size=4), arrays(), max_size=2), scalars), in_folder=True),
    Call("store.fingerprint", store.fingerprint, _tuples(vectors)),
    Call("checkpoints.load", _draft, _tuples(_rows), in_folder=True),
    Call("command line", _command, _tuples(st.lists(_words, max_size=4))),
    Call("-p", __main__.parse_parameter, _tuples(st.text(max_size=9))),
]  # fmt: skip


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """TimeoutError inside after so many seconds, and never one of `NAMED`'s."""

    def late(*_: object) -> None:
        raise RuntimeError(f"hangs: not back after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def judge(call: Call, arguments: tuple) -> bool:
    """Make one call; whether it returned.

    Raises
    ------
    AssertionError
        If it fails without a name, without a word, or leaves half of a file.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of overflow and such: here only errors count
        given = (Path(folder), *arguments) if call.in_folder else arguments
        before = os.getcwd()
        os.chdir(folder)
        try:
            with deadline(SECONDS):
                call.function(*given)
            returned = True
        except NAMED as error:
            if not str(error).strip():
                raise AssertionError(f"{call.name}: {error!r} says nothing") from error
            returned = False
        except Exception as error:
            raise AssertionError(f"{call.name}{arguments!r}: {error!r}") from error
        finally:
            os.chdir(before)
        if halves := [p.name for p in Path(folder).rglob("*.part")]:
            raise AssertionError(f"{call.name}: left {halves}")
    return returned


def fuzz(n: int, calls: list[Call] = CALLS) -> dict[str, int]:
    """So many random calls; how many returned and raised, and of how many functions.

    Raises
    ------
    AssertionError
        At the first call that fails the oracle, made as small as can be.
    """
    tally, reached = {"returned": 0, "raised": 0}, set()
    one = st.sampled_from(calls).flatmap(lambda call: st.tuples(st.just(call), call.arguments))

    @settings(
        max_examples=n, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(one)
    def check(made: tuple[Call, tuple]) -> None:
        reached.add(made[0].name)
        tally["returned" if judge(*made) else "raised"] += 1

    check()
    return tally | {"functions": len(reached)}
