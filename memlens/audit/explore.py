"""Explore the samples of a run in JupyterLab: two scores, the images, and their curves."""

import base64
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from memlens.evaluation import explorer
from memlens.storage import files
from memlens.training.runs import Run

CURVES = {"loss": "loss", "grad_l2": "input gradient (L2)"}  # signals that are shown by epoch
LABEL, NOISE = "class", "label noise"  # groups that every run has; noise if labels were changed


class Explorer:
    """An interactive scatter plot of two scores, as `explore` returns it.

    JupyterLab shows it below a cell. ``figure()`` is a static picture of it, which notebooks store
    as well, for viewers that run no scripts.

    Attributes
    ----------
    points : explorer.Points
    x, y, color : str
        The columns that are shown first.
    title : str
    """

    def __init__(self, points: explorer.Points, x: str, y: str, color: str, title: str) -> None:
        points.check_columns(x, y, color)
        self.points, self.x, self.y, self.color, self.title = points, x, y, color, title

    def __repr__(self) -> str:
        n = len(self.points.index)
        return f"Explorer({self.title}: {n:,} samples, {self.y} by {self.x}, colour: {self.color})"

    @cached_property
    def page(self) -> str:
        """The page, HTML: one document that needs no network connection."""
        return explorer.page(self.points, self.x, self.y, self.color, self.title)

    def save(self, path: str | Path) -> Path:
        """Write the page, atomically, and return its path; any browser opens it.

        Raises
        ------
        OSError
            If the file cannot be written; an existing one is unchanged.
        """
        path = Path(path)
        files.write_atomic(path, self.page.encode())
        return path

    def figure(self) -> Figure:
        """Draw the scatter plot, and the images with the highest and the lowest y."""
        return explorer.static_figure(self.points, self.x, self.y, self.color)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Return what a notebook stores: the explorer, and its picture for other viewers."""
        picture = explorer.png(self.figure())
        html = explorer.cell(self.page, picture, self.title)
        encoded = base64.b64encode(picture).decode()  # as notebooks store images
        return {"text/html": html, "image/png": encoded, "text/plain": repr(self)}


def explore(
    run: Run,
    truth: pd.DataFrame | pd.Series | None = None,
    *,
    extra: pd.DataFrame | pd.Series | None = None,
    x: str | None = None,
    y: str | None = None,
    color: str = LABEL,
    samples: Sequence[int] | None = None,
    n_max: int = 2_000,
    seed: int = 0,
) -> Explorer:
    """Explore the training samples of a run: hover, brush, see images and training curves.

    >>> import memlens as ml
    >>> data = ml.load("digits").subset(100)
    >>> ml.explore(ml.train("mlp", data, ml.TrainConfig(epochs=2)), y="csl")
    Explorer(digits: 100 samples, csl by csg, colour: class)

    Parameters
    ----------
    run : Run
    truth : DataFrame or Series, optional
        Memorization, as `memlens.memorization` returns it; becomes the score "memorization".
    extra : DataFrame or Series, optional
        More columns. Numbers are scores for the axes; text, booleans and categories, such as
        suggested labels, are groups for the colour. The index holds original indices, as that of
        ``run.scores``; samples that it lacks have no value.
    x, y : str, optional
        The scores that are shown first: by default "csg", and "memorization" or else "csl".
    color : str
        What the colour shows first: "class", "label noise" (if labels were changed), or a column of
        ``extra``.
    samples : sequence of int, optional
        Original indices of the samples to show, such as ``run.scores["csg"].nlargest(500).index``.
        By default all, or ``n_max`` of them at random.
    n_max : int
        Samples at most, if ``samples`` is None: 2,000 small images make about 1.3 MB.
    seed : int
        Of this choice.

    Returns
    -------
    Explorer
        JupyterLab shows it; ``.save("page.html")`` writes it as a page.

    Raises
    ------
    ValueError
        If a column is unknown or there twice, if an index has other samples than the run, or if
        there are no samples or curves.
    """
    train, original = run.data.train, run.scores.index
    scores, groups = run.scores, _groups(run)
    for name, table in (("truth", _truth(truth)), ("extra", extra)):
        if table is not None:
            table = _aligned(name, table, original)
            numeric = table.select_dtypes("number")
            scores = _joined(name, scores, numeric)
            groups = _joined(name, groups, table.drop(columns=numeric.columns))
    chosen = _chosen(original, samples, n_max, seed)
    curves = {
        title: run.trace[signal][:, chosen] for signal, title in CURVES.items()
        if signal in run.trace and np.isfinite(run.trace[signal]).any()
    }  # fmt: skip
    points = explorer.Points(
        images=train.images[torch.as_tensor(chosen)],
        index=original.to_numpy()[chosen],
        scores=scores.iloc[chosen],
        groups=groups.iloc[chosen],
        curves=curves,
        pixel_max=run.data.pixel_max,
    )
    x = x or "csg"
    y = y or ("memorization" if "memorization" in scores else "csl")
    return Explorer(points, x, y, color, run.data.name)


def _groups(run: Run) -> pd.DataFrame:
    """Return the class of every sample and, if labels were changed, which and from what."""
    train, names = run.data.train, list(run.data.class_names)
    named = [f"{i}: {name}" if names.count(name) > 1 else name for i, name in enumerate(names)]
    table = pd.DataFrame(index=run.scores.index)
    table[LABEL] = pd.Categorical.from_codes(train.labels.numpy(), named)
    if train.is_noisy.any():
        noise = ["label as it was", "label changed"]
        table[NOISE] = pd.Categorical.from_codes(train.is_noisy.long().numpy(), noise)
        table["class before"] = pd.Categorical.from_codes(train.clean_labels.numpy(), named)
    return table


def _truth(truth: pd.DataFrame | pd.Series | None) -> pd.DataFrame | None:
    if isinstance(truth, pd.DataFrame):
        if "memorization" not in truth:
            raise ValueError(f"truth has no column 'memorization', only {', '.join(truth)}")
        return truth[["memorization"]]
    return None if truth is None else truth.to_frame("memorization")


def _aligned(name: str, table: pd.DataFrame | pd.Series, original: pd.Index) -> pd.DataFrame:
    """Return a table in the order of the run's samples; samples that it lacks have no value."""
    table = table.to_frame(table.name or name) if isinstance(table, pd.Series) else table
    unknown = ~table.index.isin(original)
    if table.index.has_duplicates or unknown.any() or table.empty:
        found = f"{unknown.sum()} of its {len(table)} rows are no samples of the run"
        raise ValueError(
            f"the index of {name} must hold original indices, each once: {found}, which has "
            f"{len(original)}; pass a table with index=run.scores.index"
        )
    return table.rename(columns=str).reindex(original)


def _joined(name: str, table: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    if twice := [column for column in more if column in table]:
        raise ValueError(f"{name} has columns that are there already: {', '.join(twice)}; rename")
    return pd.concat([table, more], axis=1)


def _chosen(original: pd.Index, samples: Sequence[int] | None, n_max: int, seed: int) -> np.ndarray:
    """Return the sorted positions of the samples to show."""
    if samples is not None:
        positions = original.get_indexer(pd.Index(samples))
        if (positions < 0).any():
            missing = np.asarray(samples)[positions < 0]
            raise ValueError(f"{len(missing)} samples are not in the run, such as {missing[0]}")
        return np.unique(positions)
    if n_max < 1:
        raise ValueError(f"n_max is {n_max}; expected 1 or more")
    if len(original) <= n_max:
        return np.arange(len(original))
    return np.sort(np.random.default_rng(seed).choice(len(original), n_max, replace=False))
