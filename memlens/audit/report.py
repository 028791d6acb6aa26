"""The report of an audit: one HTML page that opens without a network connection.

Images, plots and the style sheet are inside the page; it has no script. This module computes what
the template ``report.html.j2`` shows. The template escapes names of files and classes.
"""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from memlens.audit import findings
from memlens.audit.pipeline import PLANTED, AuditResult
from memlens.evaluation import metrics, pages, plots
from memlens.storage import store
from memlens.tracking.scores import CATALOGUE

SECTIONS = {
    "labels": "Suspected labels",
    "duplicates": "Duplicates",
    "memorized": "Memorized images and privacy",
    "traits": "Common traits of high scores",
    "stopping": "Training and stopping",
    "scores": "Distribution of the scores",
    "skipped": "Skipped files",
    "method": "Method",
}
PER_CLASS = 8  # suspicious images shown of a class
MAX_CLASSES = 100  # classes with images: more would make the page too large
MAX_SHOWN = 48  # pairs of duplicates, and rare images, that are shown
MAX_ROWS = 200  # skipped files that are listed
TOP = 0.1  # share of the samples with "high scores"
MIN_CORRELATION = 0.1  # absolute rank correlation from which a trait is mentioned
NEAR_DROP = 2  # epochs between a drop of the learning rate and a peak that it causes
PLOTTED = ("csg", "csl", "aum", "loss_sensitivity")
DPI = 200  # of plots: sharp on screens with two dots a pixel
PICTURE_SIZE = 96  # pixels, at most, of the longer side of an image
PLOT_SCALE = (
    110  # pixels on the screen per inch of a plot, so that its text is as large as the page's
)

_TEMPLATES = pages.templates(Path(__file__).parent)
_TEMPLATES.filters["f"] = format
_TEMPLATES.tests["numeric"] = pd.api.types.is_numeric_dtype


def write_report(result: AuditResult, path: Path) -> None:
    """Write the page, atomically.

    Raises
    ------
    OSError
        If the file cannot be written; an existing one is unchanged.
    """
    store.write_atomic(path, page(result).encode())


def page(result: AuditResult) -> str:
    """Return the page, HTML."""
    audit_data, config = result.audit_data, result.config
    skipped = audit_data.skipped
    shown = {name: SECTIONS[name] for name in SECTIONS if name != "skipped" or len(skipped)}
    with plots.styled():
        drawn = {"training_plot": _training_plot(result), "scores_plot": _scores_plot(result)}
    return _TEMPLATES.get_template("report.html.j2").render(
        name=audit_data.name,
        sections=shown,
        table_of_scores=result.table,
        classes=audit_data.dataset.class_names,
        shape=audit_data.dataset.in_shape,
        notes=audit_data.notes,
        skipped=skipped,
        skipped_reasons=_count_reasons(skipped),
        pairs=result.pairs,
        searched_near=result.searched_near,
        model=config.model,
        train_config=config.train_config,
        n_folds=config.n_folds,
        max_shown=MAX_SHOWN,
        max_rows=MAX_ROWS,
        cards=_cards(result),
        with_images=lambda rows: _with_images(result, rows),
        image_of=lambda row, name: _picture(result, row, name),
        formulas=_formulas(result),
        **_suspects(result),
        **_memorized(result),
        **_traits(result),
        **_stopping(result),
        **drawn,
    )


def _cards(result: AuditResult) -> list[tuple[str, str, str]]:
    """Return number, meaning and note of the summary at the top."""
    table, pairs = result.table, result.pairs
    has = {name: table["finding"].str.contains(name, regex=False) for name in findings.FINDINGS}
    precision = "precision was not measured: see --calibrate"
    if result.calibration is not None and result.calibration["suggested"].iloc[-1]:
        last = result.calibration.iloc[-1]
        precision = (
            f"{last.precision:.0%} to {last.at_most:.0%} wrong, measured with flipped labels"
        )
    conflicts, rare = (
        int(pairs["conflict"].sum()),
        "memorized with a label that seems right, or few",
    )
    return [
        (f"{has['mislabelled?'].sum():,}", "labels to review", precision),
        (f"{len(pairs):,}", "pairs of duplicates", f"{conflicts:,} with two labels"),
        (f"{has['rare?'].sum():,}", "rare or hard", rare),
        (f"{has['easy'].mean():.0%}", "easy", "of all images"),
        (f"{len(result.audit_data.skipped):,}", "skipped", "files, with the reason below"),
    ]


def _suspects(result: AuditResult) -> dict[str, Any]:
    """Return the suspects of each class, most frequent class first, and the measured precision."""
    groups = [*result.suspects.groupby("label", sort=False)]
    groups.sort(key=lambda group: -len(group[1]))
    rows, calibration = result.calibration, None
    if rows is not None:
        interval = [f"{low:.0%} to {high:.0%}" for low, high in zip(rows["low"], rows["high"])]
        calibration = pd.DataFrame(
            {
                "top of the list": rows["share"].map("{:.0%}".format),
                "suggestions": rows["suggested"],
                "flips among them": rows["planted"],
                "also suggested without flips": rows["already_suspect"],
                "wrong at least": rows["precision"].map("{:.0%}".format),
                "its 95 % interval": interval,
                "wrong at most": rows["at_most"].map("{:.0%}".format),
                "share of all flips": rows["recall"].map("{:.0%}".format),
            }
        )
    return {
        "suspects": groups[:MAX_CLASSES],
        "n_more_classes": len(groups) - MAX_CLASSES,
        "calibration": calibration,
        "per_class": PER_CLASS,
        "odds": findings.ODDS,
        "planted": PLANTED,
    }


def _memorized(result: AuditResult) -> dict[str, Any]:
    """Return the share of memorized images, and those whose label seems right."""
    table = result.table
    memorized = table["memorization"] >= findings.MEMORIZED
    rare = table[memorized & table["finding"].str.contains("rare?", regex=False)]
    return {
        "memorized_from": findings.MEMORIZED,
        "memorized_share": memorized.mean(),
        "rare": rare.sort_values("memorization", ascending=False, kind="stable"),
    }


def _traits(result: AuditResult) -> dict[str, Any]:
    """Return the tones and the classes of images with a high CSG."""
    csg, dataset = result.run.scores["csg"], result.audit_data.dataset
    tests = metrics.associations(csg, tone_of(result), n_resamples=200)
    strong = tests[tests["spearman"].abs() >= MIN_CORRELATION]
    high = csg.rank(pct=True).to_numpy() > 1 - TOP
    names = np.array(dataset.class_names, dtype=object)[dataset.train.labels.numpy()]
    share = pd.Series(names[high]).value_counts() / pd.Series(names).value_counts()
    share = share.fillna(0.0).sort_values(ascending=False, kind="stable").head(20)
    return {"traits": [*strong.iterrows()], "shares": share, "top": TOP}


def tone_of(result: AuditResult) -> pd.DataFrame:
    """Return brightness, contrast and, for colour images, colourfulness, all in [0, 1]."""
    images, white = result.audit_data.dataset.train.images, result.audit_data.dataset.pixel_max
    columns: dict[str, list[np.ndarray]] = {"brightness": [], "contrast": [], "colourfulness": []}
    for part in images.split(1024):
        x = part.float() / white
        grey = x.mean(1).flatten(1)
        columns["brightness"].append(grey.mean(1).numpy())
        columns["contrast"].append(grey.std(1, correction=0).numpy())
        columns["colourfulness"].append((x.amax(1) - x.amin(1)).flatten(1).mean(1).numpy())
    if images.shape[1] == 1:
        del columns["colourfulness"]
    tone = {name: np.concatenate(parts) for name, parts in columns.items()}
    return pd.DataFrame(tone, index=result.table.index)


def _stopping(result: AuditResult) -> dict[str, Any]:
    """Return where the training stopped, and where the held-out loss was lowest."""
    peak, drops = result.run.peak, result.config.train_config.drops
    near = [drop for drop in drops if peak.peak_epoch is not None
            and abs(drop - peak.peak_epoch) <= NEAR_DROP]  # fmt: skip
    accuracies = [history["val_accuracy"].iloc[-1] for history in result.histories]
    return {
        "peak": peak,
        "n_epochs": len(result.run.history),
        "near_drop": near[0] if near else None,
        "lowest_epochs": [int(history["val_loss"].argmin()) for history in result.histories],
        "accuracy": np.mean(accuracies) if accuracies else None,
        "n_trained_epochs": sum(map(len, (result.run.history, *result.histories))),
    }


def _training_plot(result: AuditResult) -> dict[str, Any]:
    epochs = range(len(result.run.history))
    losses = [history["val_loss"].reindex(epochs).to_numpy() for history in result.histories]
    # NaN where one of these trainings had stopped.
    history = result.run.history.assign(val_loss=np.mean(losses, axis=0))
    peaks = {name: peak.peak_epoch for name, peak in result.run.peaks.items()
             if peak.detected_epoch is not None}  # fmt: skip
    return _plot(plots.training_figure(history, peaks))


def _scores_plot(result: AuditResult) -> dict[str, Any]:
    """Draw the distribution of scores, with the suspected labels marked."""
    suspicious = findings.mislabelled(result.table).to_numpy()
    figure, axes = plt.subplots(2, 2, figsize=plots.figsize(2, 2), layout="constrained")
    for ax, name in zip(axes.flat, PLOTTED, strict=True):
        counts = plots.counts(result.run.scores[name], suspicious)
        plots.histogram(ax, counts, marked_label="label to review")
        ax.set_xlabel(plots.label_of(name) + (", negated" if name == "aum" else ""))
    return _plot(figure)


def _count_reasons(skipped: pd.DataFrame) -> pd.DataFrame:
    return skipped["reason"].value_counts().rename_axis("reason").reset_index(name="files")


def _formulas(result: AuditResult) -> pd.DataFrame:
    columns = ("formula", "source", "variant")
    rows = [
        {"score": name} | {column: getattr(CATALOGUE[name], column) for column in columns}
        for name in result.run.scores
    ]
    return pd.DataFrame(rows)


def _with_images(
    result: AuditResult, rows: pd.DataFrame
) -> Iterator[tuple[pd.Series, dict[str, str]]]:
    positions = result.table.index.get_indexer(rows.index)
    for position, (_, row) in zip(positions, rows.iterrows()):
        yield row, _picture(result, position, row["file"])


def _picture(result: AuditResult, row: int, name: str) -> dict[str, str]:
    """Return name and address of an image, made small enough for a page of many."""
    dataset = result.audit_data.dataset
    image = pages.picture(dataset.train.images[row], dataset.pixel_max, PICTURE_SIZE)
    return {"name": name, "address": pages.data_address(pages.encoded(image))}


def _plot(figure: Figure) -> dict[str, Any]:
    """Return width and address of a figure, and close it."""
    figure.set_layout_engine("constrained")
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    plt.close(figure)
    width = int(figure.get_figwidth() * PLOT_SCALE)
    return {"width": width, "address": pages.data_address(file.getvalue())}
