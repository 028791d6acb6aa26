"""The papers' Fashion-MNIST on a processor: 10,000 images, a small CNN.

    python benchmarks/clothes.py

Two cores, at most 15 minutes: how well the in-step scores find flipped labels, and whether images
with a high score are darker and lower in contrast, as CSG Fig. 5 and curvature Fig. 4 show. The
figures go to ``figures/fashion_mnist/`` beside those of the notebooks, the time to ``results/``.
"""

import sys
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from common import save

import memlens as ml
from memlens.evaluation import detection, metrics, plots
from memlens.experiments import paper
from memlens.experiments.notebook import NotebookReport

N_SAMPLES, SCALE, N_SEEDS, RATES = 10_000, 0.1, 3, (0.05, 0.10, 0.20, 0.30)
SCORES = ["csg", "early_csg", "csl", "sgal", "loss_sensitivity", "aum", "learning_time_share",
          "first_correct", "forgetting", "in_confidence"]  # fmt: skip
TONE = {"brightness": "mean of the pixels", "contrast": "their standard deviation"}


def tone_of(data: ml.Dataset) -> pd.DataFrame:
    """Brightness and contrast of each training image, in [0, 1]."""
    x = data.train.images.numpy().reshape(len(data.train), -1) / data.pixel_max
    parts = {"brightness": x.mean(1), "contrast": x.std(1)}
    return pd.DataFrame(parts, index=data.train.index.numpy())


def draw_noise(page: NotebookReport, noisy: dict, runs: dict) -> pd.DataFrame:
    """AUROC of each score at each noise rate, and a figure of it; (n_scores, n_rates)."""
    judged = {}
    for key, noise in noisy.items():
        scores = runs[key].scores
        truth = noise.train.is_noisy.numpy()
        judged[key] = {name: detection.auroc(truth, scores[name]) for name in SCORES}
    table = pd.DataFrame(judged)
    mean = table.T.groupby(level=0).mean().T.set_axis([f"{r:.0%}" for r in RATES], axis=1)
    spread = table.T.groupby(level=0).std().T.set_axis(mean.columns, axis=1)
    mean = mean.sort_values(mean.columns[-1], ascending=False)
    printed = paper.printed(mean.index, "csg_table4_mislabel_auroc", dataset="cifar10", noise=0.1)
    drawn = mean.assign(printed=printed["mean"])
    fig, ax = plt.subplots(figsize=plots.listsize(len(drawn) + 2))
    plots.heatmap(ax, drawn, limits=(0.5, 1), digits=3)
    leader = plots.label_of(mean.index[0])
    called = sum(run.peak.detected_epoch is not None for run in runs.values())
    caption = (
        f"AUROC for flipped labels of clothes, by their share; mean of {N_SEEDS} seeds, "
        f"spread up to {spread.max(axis=None):.3f}. At {RATES[-1]:.0%} {leader} finds most. Last "
        f"column: ResNet-18 on CIFAR-10, 10 % (CSG Table 4). The weight norm peaks in {called} of "
        f"{len(runs)} trainings; where it does not, SGAL is CSL and early CSG is CSG."
    )
    page.save(plots.Drawing(fig, drawn), "noise", caption)
    return mean


def tone_tests(data: ml.Dataset, csg: pd.Series, tone: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of CSG with tone, over all classes and within each."""
    labels, tests = data.train.labels.numpy(), {"all": metrics.associations(csg, tone)}
    for c, name in enumerate(data.class_names):
        own = labels == c
        tests[name] = metrics.associations(csg[own], tone[own])
    return pd.concat(tests, names=["class"])


def draw_tone(
    page: NotebookReport, data: ml.Dataset, csg: pd.Series, tone: pd.DataFrame
) -> pd.DataFrame:
    """Lowest and highest tenth by CSG: their tone, and how it goes with CSG class by class."""
    tests = tone_tests(data, csg, tone)
    rank = csg.rank(pct=True).to_numpy()
    fig, axes = plt.subplots(1, 3, figsize=plots.figsize(3, 1, 1.25), width_ratios=(1, 1, 1.4))
    ends = {"lowest tenth": rank <= 0.1, "highest tenth": rank > 0.9}
    for ax, (name, text) in zip(axes, TONE.items(), strict=False):
        edges = np.histogram_bin_edges(tone[name], bins=30)
        for (end, mask), look in zip(ends.items(), (plots.INK, plots.MARKED), strict=True):
            ax.hist(tone[name][mask], edges, histtype="step", color=look, label=end, linewidth=1.3)
        ax.set(xlabel=f"{name}\n({text})", ylabel="images" if ax is axes[0] else "")
        ax.set_ylim(top=1.3 * ax.get_ylim()[1])  # room for the key
    axes[0].legend(title="CSG", loc="upper right")
    effect = tests["spearman"].unstack(sort=False)[list(TONE)]
    plots.dots(axes[2], effect)
    axes[2].set_xlabel("Spearman of CSG with\nbrightness or contrast")
    pooled = tests.loc["all"]
    told = ", ".join(f"{k} {pooled.spearman[k]:.2f}" for k in TONE)
    dark = (effect.drop("all")["brightness"] < 0).sum()
    caption = (
        f"Clothes with the highest CSG against those with the lowest. Spearman over all: {told}; "
        f"within classes darker is higher in {dark} of {data.n_classes}. Mean of {N_SEEDS} seeds. "
        "CSG Fig. 5, curvature Fig. 4."
    )
    page.save(plots.Drawing(fig, tests), "tone", caption)
    return tests


def draw_ends(page: NotebookReport, data: ml.Dataset, csg: pd.Series) -> None:
    """The four lowest and the four highest CSG of each class, as pictures."""
    labels, rows, shown = data.train.labels.numpy(), [], []
    for highest in (False, True):
        order = csg.sort_values(ascending=not highest)
        own = [order.index[labels[csg.index.get_indexer(order.index)] == c][:4]
               for c in range(data.n_classes)]  # fmt: skip
        for place in range(4):
            shown += [names[place] for names in own]
            rows.append("highest" if highest else "lowest")
    images = data.train.images[csg.index.get_indexer(shown)]
    fig = plt.figure(figsize=plots.figsize(data.n_classes, 8, 1.1))
    titles = [*data.class_names, *[""] * (len(images) - data.n_classes)]
    plots.image_grid(fig, images, rows=rows, columns=data.n_classes, titles=titles)
    table = pd.DataFrame({"index": shown, "csg": csg[shown].to_numpy(),
                          "row": np.repeat(rows, data.n_classes)})  # fmt: skip
    caption = (
        "The four lowest (plain) and the four highest CSG (dark, cut short, unusual or of another "
        f"class) of each class; mean of {N_SEEDS} seeds. CSG Fig. 1a, 1b, 5."
    )
    page.save(plots.Drawing(fig, table), "ends", caption)


def main() -> int:
    start = time.perf_counter()
    plots.apply_style()
    page = NotebookReport("clothes", "fashion_mnist", SCALE, N_SAMPLES)
    profile, quick = page.profile, ml.MeasureConfig()
    data = profile.load()
    noisy = {(r, s): data.with_noise(r, seed=s) for r in RATES for s in range(N_SEEDS)}
    jobs = {key: profile.job(d, seed=key[1], measure=quick) for key, d in noisy.items()}
    clean = [profile.job(data, seed=s, measure=quick) for s in range(N_SEEDS)]
    done = ml.train_many([*jobs.values(), *clean])
    runs = dict(zip(jobs, done, strict=False))
    auroc = draw_noise(page, noisy, runs)
    csg = metrics.mean_over([run.scores for run in done[len(jobs) :]]).mean["csg"]
    tests = draw_tone(page, data, csg, tone_of(data))
    draw_ends(page, data, csg)
    pooled = tests.loc["all", "spearman"]
    minutes = (time.perf_counter() - start) / 60
    found = {
        "minutes": minutes,
        "trainings": len(done),
        "epochs": profile.config.epochs,
        "n_samples": len(data.train),
        "accuracy": np.mean([run.history["val_accuracy"].iloc[-1] for run in done[len(jobs) :]]),
        **{f"auroc {name} at 10 %": auroc.loc[name, "10%"] for name in ("csg", "csl", "aum")},
        **{f"spearman of csg with {name}": pooled[name] for name in TONE},
    }
    save("clothes", pd.Series(found, name="value").rename_axis("measure").to_frame())
    print("in time" if minutes < 15 else "slower than 15 minutes")
    return int(minutes >= 15)


if __name__ == "__main__":
    sys.exit(main())
