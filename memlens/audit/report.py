"""The report on your own data: one page that opens anywhere, without a network.

Everything is in it, pictures and plots as data, the style sheet inline; it holds no script. A
section is a function from a `AuditResult` to HTML; what a person wrote (file and class names) is escaped
on its way in.
"""

from collections.abc import Callable
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from memlens.audit import elements, findings
from memlens.audit.pipeline import PLANTED, AuditResult
from memlens.evaluation import metrics, plots
from memlens.storage import store
from memlens.tracking.scores import CATALOGUE

PER_CLASS = 8  # suspicious images shown of a class
MOST_CLASSES = 100  # classes that get a row of pictures: of more the page would be too heavy
SHOWN = 48  # pairs of duplicates, and rare images, that are shown
TOP = 0.1  # share of the samples that has "high scores"
TELLING = 0.1  # rank correlation from which it is said that two things go together
NEAR_DROP = 2  # epochs between a fall of the learning rate and a peak that it makes
PLOTTED = ("csg", "csl", "aum", "loss_sensitivity")


def write_report(scored: AuditResult, path: Path) -> None:
    """Write the page; a reader sees the old one or the new one, never a part.

    Raises
    ------
    OSError
        If the file cannot be written; an old one is intact.
    """
    store.write_atomic(path, page(scored).encode())


def page(scored: AuditResult) -> str:
    """The whole page, HTML."""
    style = Path(__file__).with_name("report.css").read_text()
    with plots.styled():
        found = [(name, title, section(scored)) for name, (title, section) in SECTIONS.items()]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, body in found if body)
    parts = "".join(
        f'<section id="{name}"><h2>{title}</h2>{body}</section>'
        for name, title, body in found
        if body
    )
    name = escape(scored.own.name)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'  # else a browser asks a server for one
        f"<title>{name}: what a network memorizes</title><style>{style}</style></head><body>"
        f"<h1>{name}: what a network memorizes of it</h1>{summary(scored)}<nav>{links}</nav>{parts}"
        "</body></html>"
    )


def summary(scored: AuditResult) -> str:
    """What was found, in five numbers."""
    table, pairs = scored.table, scored.pairs
    n = len(table)
    count = {r: int(table["reading"].str.contains(r, regex=False).sum()) for r in findings.READINGS}
    conflicts = int(pairs["conflict"].sum())
    cards = {
        "labels to look at": (count["mislabelled?"], _precision_in_short(scored)),
        "pairs of duplicates": (len(pairs), f"{conflicts:,} under two labels"),
        "rare or hard": (count["rare?"], "memorized under a label that seems right, or few"),
        "easy": (f"{count['easy'] / n:.0%}", "of all images"),
        "left out": (len(scored.own.passed_over), "files, with the reason below"),
    }
    told = "".join(
        f'<div class="card"><b>{number if isinstance(number, str) else f"{number:,}"}</b>{name}'
        f'<div class="soft">{note}</div></div>'
        for name, (number, note) in cards.items()
    )
    data = scored.own.data
    size = f"{data.in_shape[2]} x {data.in_shape[1]}"
    grey = "grey" if data.in_shape[0] == 1 else "colour"
    return (
        f"<p>{n:,} images in {data.n_classes:,} classes, {size} pixels, {grey}. Every reading "
        "below is a suggestion to look, with its evidence; <code>scores.csv</code> has all images "
        f'and all scores.</p><div class="cards">{told}</div>'
    )


def _precision_in_short(scored: AuditResult) -> str:
    if scored.calibration is None or not scored.calibration["suggested"].iloc[-1]:
        return "how many of them are wrong was not measured: see --calibrate"
    last = scored.calibration.iloc[-1]
    return f"with planted flips {last.precision:.0%} to {last.at_most:.0%} of such are wrong"


def labels_section(scored: AuditResult) -> str:
    """The most suspicious images of each class, with their label and what unseen nets say."""
    suspects = scored.suspects
    if suspects.empty:
        return (
            "<p>No label is suspicious: of no image do nets that never saw it hold another class "
            f"for {findings.ODDS:g} times as likely as its label.</p>" + _calibration(scored)
        )
    by_class = suspects.groupby("label", sort=False)
    body = [
        f"<p>ModelEnsemble that never saw an image hold another class for at least {findings.ODDS:g} times "
        "as likely as <span class='was'>its label</span>, and the net that trained on it preferred "
        f"another one on average. The {PER_CLASS} most suspicious of each class, the class with "
        "the most suggestions first; <code>scores.csv</code> has all.</p>",
        _calibration(scored),
    ]
    order = by_class.size().sort_values(ascending=False, kind="stable")
    for label in order.index[:MOST_CLASSES]:
        own = by_class.get_group(label)
        of = int(own["class_size"].iloc[0])
        body.append(f"<h3>{escape(label)}: {len(own):,} of {of:,}</h3>")
        body.append(_tiles(scored, own.head(PER_CLASS), _suspect))
    if len(order) > MOST_CLASSES:
        body.append(
            f"<p class='soft'>{len(order) - MOST_CLASSES:,} more classes in scores.csv.</p>"
        )
    return "".join(body)


def _suspect(row: pd.Series) -> str:
    return (
        f'<span class="was">{escape(row["label"])}</span> {row["p_label"]:.2f}<br>'
        f'<span class="says">{escape(row["predicted_label"])}?</span> {row["p_predicted"]:.2f}'
    )


def _calibration(scored: AuditResult) -> str:
    if scored.calibration is None:
        return (
            "<p><b>How many of them are really wrong is not known.</b> It depends on the data: run "
            "<code>memlens audit --calibrate</code>, which plants wrong labels in a copy of your "
            "data and counts how many of its suggestions are among them.</p>"
        )
    rows = scored.calibration
    table = pd.DataFrame({
        "of the list, from its top": rows["share"].map("{:.0%}".format),
        "suggestions": rows["suggested"], "planted among them": rows["planted"],
        "suggested without the flips, too": rows["known"],
        "wrong at least": rows["precision"].map("{:.0%}".format),
        "95 % interval of it": [f"{a:.0%} to {b:.0%}" for a, b in zip(rows["low"], rows["high"])],
        "wrong at most": rows["at_most"].map("{:.0%}".format),
        "found of all planted": rows["recall"].map("{:.0%}".format),
    })  # fmt: skip
    return (
        f"<p>Measured on a copy of your data with {PLANTED:.0%} of the labels flipped at random. "
        "The planted are wrong for certain. What is suggested without the flips, too, is your list "
        "below: it may be right or wrong, which gives a least and a most. Where fewer of your "
        "labels are wrong than were planted, or wrong in harder ways (one breed of dog for "
        f"another), precision is lower.</p>{elements.table(table)}"
    )


def duplicates_section(scored: AuditResult) -> str:
    """Pairs of the same or nearly the same picture."""
    pairs = scored.pairs
    if pairs.empty:
        return f"<p>No two images have the same pixels.{_near(scored)}</p>"
    exact, conflicts = int(pairs["exact"].sum()), int(pairs["conflict"].sum())
    tiles = []
    for row in pairs.head(SHOWN).itertuples():
        images = "".join(_image(scored, r, f) for r, f in (
            (row.row_a, row.file_a), (row.row_b, row.file_b)))  # fmt: skip
        names = [scored.own.data.class_names[c] for c in (row.label_a, row.label_b)]
        labels = escape(names[0])
        if row.conflict:
            labels = " / ".join(f'<span class="was">{escape(c)}</span>' for c in names)
        kind = "the same pixels" if row.exact else f"similarity {row.similarity:.4f}"
        tiles.append(
            f'<figure class="tile"><div>{images}</div>{labels}'
            f'<br>{kind}<br><span class="file">{escape(row.file_a)}<br>{escape(row.file_b)}</span>'
            "</figure>"
        )
    return (
        f"<p>{exact:,} pairs have the same pixels.{_near(scored)}"
        + (" Those under two labels come first: one of the two may be wrong." if conflicts else "")
        + f'{_of_all(len(pairs))}</p><div class="grid pair">{"".join(tiles)}</div>'
    )


def _near(scored: AuditResult) -> str:
    """What is to be said of near duplicates, which are not always looked for."""
    n = len(scored.own)
    if not scored.near:
        return f" Near duplicates were not looked for: {n:,} images of this size are too many."
    if n < 100:
        return f" Near duplicates were not looked for: of {n} images too little can be told."
    found = int((~scored.pairs["exact"]).sum())
    return f" {found:,} pairs are much closer to each other than their surroundings are."


def memorized_section(scored: AuditResult) -> str:
    """What is memorized without looking mislabelled, and what that means for privacy."""
    table = scored.table
    share = (table["memorization"] >= findings.MEMORIZED).mean()
    rare = table[table["reading"].str.contains("rare?", regex=False)]
    rare = rare[rare["memorization"] >= findings.MEMORIZED]
    rare = rare.sort_values("memorization", ascending=False, kind="stable")
    show = lambda row: (  # noqa: E731
        f"{escape(row['label'])}<br>{row['memorization']:+.2f} by training on it"
    )
    return (
        "<p>How much more likely a net finds an image's label for having trained on it: one net "
        f"with it against one without, so a rough estimate. It is {findings.MEMORIZED} or more for "
        f"{share:.1%} of the images. <b>These leak most</b>: the more a net's confidence in an "
        "image rests on having seen it, the easier it is to tell that it was in the training set. "
        "How easy is not measured here (for the handwritten digits of memlens, an attack is right "
        "about nearly every image above 0.7, and hardly better than chance at 0). The pictures "
        "are those whose label seems right: rare views and hard cases, "
        f"worth keeping and worth more of their kind.{_of_all(len(rare))}</p>"
        + _tiles(scored, rare.head(SHOWN), show)
    )


def common_section(scored: AuditResult) -> str:
    """What images with high scores have in common: tone, and class."""
    csg, data = scored.run.scores["csg"], scored.own.data
    tone = tone_of(scored)
    found = metrics.associations(csg, tone, n_resamples=200)
    strong = found[found["spearman"].abs() >= TELLING]
    told = [
        f"{'higher' if row.spearman > 0 else 'lower'} {name} (rank correlation "
        f"{row.spearman:+.2f}, "
        f"{row.low:+.2f} to {row.high:+.2f})"
        for name, row in strong.iterrows()
    ]
    text = "Images with a high CSG have " + ", ".join(told) + "." if told else (
        "CSG goes with neither brightness nor contrast nor colour to speak of."
    )  # fmt: skip
    high = csg.rank(pct=True).to_numpy() > 1 - TOP
    names = np.array(data.class_names, dtype=object)[data.train.labels.numpy()]
    share = pd.Series(names[high]).value_counts() / pd.Series(names).value_counts()
    share = share.fillna(0.0).sort_values(ascending=False, kind="stable").head(20)
    told = (
        f"<p>How much of each class is in the highest tenth by CSG; {TOP:.0%} if the class played "
        f"no role. The first {len(share)} of {data.n_classes:,} classes.</p>"
    )
    return f"<p>{text}</p>{told}{elements.bars(share)}"


def tone_of(scored: AuditResult) -> pd.DataFrame:
    """Brightness, contrast and, of colour images, colourfulness of each image, in [0, 1]."""
    images, white = scored.own.data.train.images, scored.own.data.pixel_max
    rows: dict[str, list[np.ndarray]] = {"brightness": [], "contrast": [], "colourfulness": []}
    for part in images.split(1024):
        x = part.float() / white
        grey = x.mean(1).flatten(1)
        rows["brightness"].append(grey.mean(1).numpy())
        rows["contrast"].append(grey.std(1, correction=0).numpy())
        rows["colourfulness"].append((x.amax(1) - x.amin(1)).flatten(1).mean(1).numpy())
    columns = {name: np.concatenate(parts) for name, parts in rows.items()}
    if images.shape[1] == 1:
        del columns["colourfulness"]
    return pd.DataFrame(columns, index=scored.table.index)


def stopping_section(scored: AuditResult) -> str:
    """The training curves, the peak, and when the held-out loss was lowest."""
    run, peak = scored.run, scored.run.peak
    n = len(run.history)
    if peak.detected_epoch is None:
        told = f"No peak of the weight norm was called in {n} epochs, the most that were planned."
    else:
        told = (
            f"The weight norm peaked after epoch {peak.peak_epoch} (from 0), which was called "
            f"after epoch {peak.detected_epoch}; training stopped there. No validation set is "
            "needed."
        )
        drops = scored.plan.config.drops
        if near := [drop for drop in drops if abs(drop - peak.peak_epoch) <= NEAR_DROP]:
            told += (
                f" But the learning rate falls at epoch {near[0]}, and the norm follows it: this "
                "peak says when the plan slows down, and little about your images."
            )
    if scored.histories:
        lowest = [int(history["val_loss"].argmin()) for history in scored.histories]
        accuracy = np.mean([history["val_accuracy"].iloc[-1] for history in scored.histories])
        told += (
            f" In the trainings that left a fold out, the loss on it was lowest after epoch "
            f"{', '.join(map(str, lowest))}, and {accuracy:.1%} of its labels are predicted at the "
            "end (wrong labels count as errors here)."
        )
    history = run.history.assign(val_loss=_mean_held_out_loss(scored, n))
    called = {k: p.peak_epoch for k, p in run.peaks.items() if p.detected_epoch is not None}
    caption = "The training on all images; val loss: the mean of the trainings without a fold."
    return f"<p>{told}</p>{elements.plot(plots.training_figure(history, called), caption)}"


def _mean_held_out_loss(scored: AuditResult, n: int) -> np.ndarray:
    """As long as all of those trainings went on, (n,); NaN after."""
    rows = [history["val_loss"].reindex(range(n)).to_numpy() for history in scored.histories]
    return np.mean(rows, axis=0)


def scores_section(scored: AuditResult) -> str:
    """How the scores are distributed, the suggested labels marked."""
    marked = findings.mislabelled(scored.table).to_numpy()
    figure, axes = plt.subplots(2, 2, figsize=plots.figsize(2, 2), layout="constrained")
    for ax, name in zip(axes.flat, PLOTTED, strict=True):
        values = scored.run.scores[name]
        plots.histogram(ax, plots.counts(values, marked), marked_label="label to look at")
        ax.set_xlabel(plots.label_of(name) + (", negated" if name == "aum" else ""))
    caption = "Higher means more memorized, or more suspicious. Counts are logarithmic."
    return elements.plot(figure, caption)


def method_section(scored: AuditResult) -> str:
    """How each number was made."""
    plan, run = scored.plan, scored.run
    config = plan.config
    trained = sum(map(len, (run.history, *scored.histories)))
    told = (
        f"<p>Net <code>{plan.model}</code>, {config.optimizer.upper()} with learning rate "
        f"{config.lr:g}, momentum {config.momentum:g}, weight decay {config.weight_decay:g}, batch "
        f"{config.batch_size}, at most {config.epochs} epochs, on {config.device}, seed "
        f"{config.seed}. One training on all images gives the scores, {plan.n_folds} on all but a "
        f"fold give what is said of an image by nets that never saw it: {trained} epochs in all. "
        "Classes with fewer images than folds are in every training, and get no such answer.</p>"
    )
    notes = "".join(f"<p>{escape(note)}.</p>" for note in scored.own.notes)
    rows = pd.DataFrame(
        [{"score": name, "formula": CATALOGUE[name].formula, "source": CATALOGUE[name].source,
          "variant": CATALOGUE[name].variant} for name in run.scores]
    )  # fmt: skip
    legend = (
        "<p class='soft'>g: gradient of an image's loss by its pixels; t: epochs; z: logits; y: "
        "the label. In all of them higher means more memorized or more suspicious.</p>"
    )
    details = f"<details><summary>Every score</summary>{elements.table(rows)}{legend}</details>"
    return told + notes + details


def passed_section(scored: AuditResult) -> str:
    """What was not scored, and why."""
    passed = scored.own.passed_over
    if passed.empty:
        return ""
    counted = passed["reason"].value_counts().rename_axis("reason").reset_index(name="files")
    shown = passed.head(200)
    more = (
        f"<p class='soft'>The first {len(shown)} of {len(passed):,}; passed_over.csv has all.</p>"
    )
    return (
        elements.table(counted)
        + f"<details><summary>Which ones</summary>{elements.table(shown)}"
        + (more if len(passed) > len(shown) else "")
        + "</details>"
    )


SECTIONS: dict[str, tuple[str, Callable[[AuditResult], str]]] = {
    "labels": ("Which labels may be wrong?", labels_section),
    "duplicates": ("Which images are duplicates?", duplicates_section),
    "memorized": ("What is memorized, and would leak?", memorized_section),
    "common": ("What do high scores have in common?", common_section),
    "stopping": ("When should the training have stopped?", stopping_section),
    "scores": ("How are the scores distributed?", scores_section),
    "passed": ("What was left out?", passed_section),
    "method": ("How was each number made?", method_section),
}


def _tiles(scored: AuditResult, rows: pd.DataFrame, describe: Callable[[pd.Series], str]) -> str:
    """A grid of pictures, each with what ``describe`` says of its row, and its file."""
    positions = scored.table.index.get_indexer(rows.index)
    tiles = [
        f'<figure class="tile" title="{escape(row["evidence"])}">'
        f"{_image(scored, position, row['file'])}{describe(row)}"
        f'<br><span class="file">{escape(row["file"])}</span></figure>'
        for position, (_, row) in zip(positions, rows.iterrows())
    ]
    return f'<div class="grid">{"".join(tiles)}</div>'


def _image(scored: AuditResult, row: int, name: str) -> str:
    pixels = scored.own.data.train.images[row].numpy() * (255 / scored.own.data.pixel_max)
    return elements.picture(pixels.round().clip(0, 255).astype(np.uint8), name)


def _of_all(n: int) -> str:
    return f" The first {SHOWN} of {n:,} are shown." if n > SHOWN else ""
