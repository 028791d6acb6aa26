"""The papers' CIFAR-100 on a processor, compared with the published memorization.

    python benchmarks/published.py

Two cores, 70 minutes; an interrupted call goes on. With a small CNN in place of ResNet-18, and
fewer epochs: how close scores come to the memorization that Feldman and Zhang publish (CSG Table
1), how well those of the step find 10 % flipped labels (CSG Table 4), and where the weight norm
peaks. By the papers' config, with crops and flips, and without them; curvature, the other post-hoc
scores and those of held-out nets by the papers' config only.
"""

import sys
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from common import save
from gpu_science import NOISE, TABLE_1, TABLE_4, first_minimum

import memlens as ml
from memlens.ensembles import proxies
from memlens.evaluation import detection, metrics, plots
from memlens.experiments import paper
from memlens.experiments.notebook import NotebookReport
from memlens.experiments.profiles import Profile
from memlens.models import registry
from memlens.training import devices

NET, SCALE = "strided_cnn", 0.3  # 60 of 200 epochs
CURVED = ml.MeasureConfig(posthoc=True, n_directions=10, every=10)
AUGMENTS = {"crops and flips": "crop_flip", "as they are": "none"}


def laptop(profile: Profile) -> Profile:
    """The profile as a processor trains it fastest, a training on each core."""
    # Twice as fast where a processor has kernels for it: `precision.py` shows the scores the same.
    fast = devices.sums_in_float32(torch.device("cpu"))
    precision = "bfloat16" if fast else "float32"
    config = replace(profile.config, device="cpu", threads=1, channels_last=True, compiled=False)
    return replace(profile, model=NET, config=replace(config, precision=precision))


def trained(profile: Profile, data: ml.Dataset) -> dict[tuple[str, float], ml.Run]:
    """The runs, by what is done to the images and the share of flipped labels."""
    jobs = {
        (images, rate): profile.job(
            data.with_noise(rate),
            measure=CURVED if (images, rate) == ("crops and flips", 0) else ml.MeasureConfig(),
            augment=augment,
        )
        for images, augment in AUGMENTS.items()
        for rate in (0.0, NOISE)
    }
    return dict(zip(jobs, ml.train_many([*jobs.values()]), strict=True))


def judged(run: ml.Run, noisy: ml.Run, extra: pd.DataFrame, truth: pd.Series) -> pd.DataFrame:
    """Similarity with the truth and AUROC of flips, a row a score, beside what is printed."""
    whole = run.posthoc_trace is not None
    scores = proxies.every_score(run, extra) if whole else run.scores
    printed = paper.printed_similarity(scores, TABLE_1)
    table = metrics.compare(scores, truth, printed=printed, n_resamples=200)
    flipped = noisy.data.train.is_noisy.numpy()
    area = {name: detection.auroc(flipped, score) for name, score in noisy.scores.items()}
    theirs = paper.printed(table.index, TABLE_4, dataset="cifar100", noise=NOISE)["mean"]
    later = run.posthoc_scores[list(run.scores)] if whole else pd.DataFrame()
    twins = {name: metrics.pearson(score, truth) for name, score in later.items()}
    return table.assign(
        auroc=pd.Series(area), printed_auroc=theirs, posthoc_pearson=pd.Series(twins, dtype=float)
    )


def draw(page: NotebookReport, tables: pd.DataFrame) -> None:
    """Both judgements of every score, by the papers' config; ticks: without crops and flips."""
    ours, plain = (tables.loc[images] for images in AUGMENTS)
    order = ours["pearson"].sort_values(ascending=False).index
    plain = plain.reindex(order)
    panels = {"pearson": "Pearson with published memorization", "auroc": "AUROC of flipped labels"}
    fig, axes = plt.subplots(1, 2, figsize=plots.listsize(len(order) + 2, 2))
    for ax, (measure, text) in zip(axes, panels.items(), strict=True):
        shown = ours.loc[order].assign(mean=ours[measure])[["mean", f"printed_{measure}"]]
        plots.bars(ax, shown, printed=f"printed_{measure}")
        look = {"marker": "|", "color": "black", "zorder": 5, "label": "no crops and flips"}
        ax.scatter(plain[measure], range(len(order)), **look)
        left = min(0.0, 1.1 * tables[measure].min()) if measure == "pearson" else 0.5
        ax.set(xlabel=text, xlim=(left, 1.05))
    axes[1].set_yticklabels([])
    axes[0].get_legend().remove()
    keys = axes[1].get_legend_handles_labels()
    axes[1].legend(*keys, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    best = plots.label_of(order[0])
    caption = (
        f"{best[0].upper()}{best[1:]} is closest to the published memorization of CIFAR-100. "
        "One training, in-step; curvature after every tenth epoch; label quality and confident "
        f"learning of three held-out folds; flips: {NOISE:.0%} of the labels. Diamonds: printed "
        "(CSG Tables 1 and 4, Inception and ResNet-18); upright ticks: without crops and flips."
    )
    page.save(plots.Drawing(fig, tables), "similarity", caption)


def facts(run: ml.Run) -> dict[str, float]:
    """Of one training: how far it came, and its peak beside the validation loss, from epoch 0."""
    history = run.history
    called = run.peak.detected_epoch
    return {
        "train accuracy": history["train_accuracy"].iloc[-1],
        "validation accuracy": history["val_accuracy"].iloc[-1],
        "peak of the weight norm": run.peak.peak_epoch,
        "peak called after epoch": np.nan if called is None else called,
        "first minimum of the validation loss": first_minimum(history["val_loss"].to_numpy()),
        "lowest validation loss": int(history["val_loss"].argmin()),
        "seconds an epoch": history["seconds"].median(),
        "epochs": len(history),
    }


def main() -> int:
    start = time.perf_counter()
    plots.apply_style()
    page = NotebookReport("published", "cifar100", SCALE)
    whole, epochs = ml.get_profile("cifar100").config.epochs, page.profile.config.epochs
    data = page.profile.load()
    # Before the work, so that a file that is missing is told at once.
    truth = page.profile.memorization(data)["memorization"]
    profile = laptop(page.profile)
    runs = trained(profile, data)
    (extra,) = profile.extra_scores([data], seeds=[0], kinds=["folds"])
    net = registry.build(NET, data.n_classes, data.in_shape)
    weights = sum(p.numel() for p in net.parameters())
    cuts = f"{epochs} of {whole} epochs", f"a CNN of {weights:,} weights in place of ResNet-18"
    page.profile = replace(page.profile, reductions=cuts)
    tables = {
        images: judged(*(runs[images, rate] for rate in (0.0, NOISE)), extra, truth)
        for images in AUGMENTS
    }
    tables = pd.concat(tables, names=["images"])
    draw(page, tables)
    told = {images: facts(runs[images, 0.0]) for images in AUGMENTS}
    told = pd.DataFrame(told).unstack().rename_axis(["images", "measure"]).rename("value")
    kept = ["cosine", "pearson", "spearman", "auroc", "posthoc_pearson"]
    long = tables[kept].rename_axis(columns="measure").stack().dropna().rename("value")
    long = long.reset_index()
    long["measure"] = long.pop("score") + ", " + long["measure"]
    rows = pd.concat([long, told.reset_index()], ignore_index=True)
    save("published", rows.set_index(["images", "measure"]))
    print(f"{(time.perf_counter() - start) / 60:.0f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
