"""What the papers describe, measured on fashion_small with five seeds.

    python benchmarks/phenomena.py

* `results/similarity.csv`: cosine, Pearson and Spearman of every score with memorization, on all
  samples and on the most memorized tenth: mean over seeds, standard deviation over seeds, mean ends
  of the 95 % bootstrap intervals over samples; beside the values printed for CIFAR-100.
* `results/stops.csv`: for both configurations and shares of flipped labels, the epoch at which each
  of the five stops is taken, the test accuracy there, and how well CSL and CSG summed up to it find
  the flips (AUROC; without flips, their Pearson with memorization).
* `results/attacks.csv`: membership inference at the five stops.
* `results/sparse.csv`: what it changes to measure curvature and gradients in every fourth epoch:
  Spearman with the same score of every epoch, and Pearson of both with memorization.

Finished trainings are cached, so that an interrupted run goes on.
"""

from dataclasses import replace

import pandas as pd
from common import save

import memlens as ml
from memlens.attacks import privacy
from memlens.ensembles.proxies import every_score
from memlens.ensembles.queries import Queries
from memlens.evaluation import detection, metrics
from memlens.experiments import paper
from memlens.experiments.profiles import Profile
from memlens.tracking.peaks import STOPS
from memlens.tracking.scores import CATALOGUE
from memlens.training.jobs import train_many
from memlens.training.runs import Run

SEEDS = range(5)
NOISE_RATES = (0.0, 0.1, 0.2, 0.4)


def similarity(profile: Profile, data: ml.Dataset, truth: pd.Series) -> pd.DataFrame:
    runs = profile.runs(data, seeds=len(SEEDS))
    extra = profile.extra_scores([data] * len(SEEDS), seeds=SEEDS)
    frames = [every_score(run, more) for run, more in zip(runs, extra, strict=True)]
    whole = paper.printed_similarity(frames[0])
    top = paper.printed_similarity(frames[0], "csl_poster_similarity", top=True)
    parts = {"all": (None, whole), "top tenth": (profile.top_k(data), top)}
    tables = {}
    for part, (top_k, theirs) in parts.items():
        each = [ml.compare(frame, truth, top_k=top_k, printed=theirs) for frame in frames]
        mean = sum(each) / len(each)
        for name in ("cosine", "pearson", "spearman"):
            mean[f"{name}_std"] = pd.concat([table[name] for table in each], axis=1).std(axis=1)
        tables[part] = mean.sort_values("pearson", ascending=False)
    return pd.concat(tables, names=["samples"])


def stops(profile: Profile, data: ml.Dataset, truth: pd.Series) -> pd.DataFrame:
    variants = {"default": {}} | dict(profile.variants)
    names = [(variant, rate, seed) for variant in variants for rate in NOISE_RATES
             for seed in SEEDS]  # fmt: skip
    noisy = {(r, s): data.with_noise(r, seed=s) if r else data for r in NOISE_RATES for s in SEEDS}
    jobs = [
        profile.job(noisy[r, s], seed=s, measure=ml.MeasureConfig(), **variants[v])
        for v, r, s in names
    ]
    rows = []
    for (variant, rate, seed), run in zip(names, train_many(jobs), strict=True):
        for stop in STOPS:
            found = {"config": variant, "flipped": rate, "seed": seed, "stop": stop}
            rows.append(found | at_stop(run, stop, truth))
    return pd.DataFrame(rows)


def at_stop(run: Run, stop: str, truth: pd.Series) -> dict[str, float]:
    epoch, flips = int(run.stops.loc[stop, "epoch"]), run.data.train.is_noisy.numpy()
    scores = run.scores_at(stop)[["csl", "csg"]]
    if flips.any():
        found = {f"auroc_{name}": detection.auroc(flips, scores[name]) for name in scores}
    else:
        found = {f"pearson_{name}": metrics.pearson(scores[name], truth) for name in scores}
    return {
        "epoch": epoch,
        "trained": int(run.stops.loc[stop, "trained"]),
        "test_accuracy": run.history["val_accuracy"].iloc[epoch],
        "train_accuracy": run.history["train_accuracy"].iloc[epoch],
    } | found


def attacks(profile: Profile, data: ml.Dataset) -> pd.DataFrame:
    queries = Queries(STOPS, profile.queries.augmentations, n_directions=0)
    half = profile.half_sweep(data, queries=queries)
    table = privacy.evaluate_snapshots(half, n_targets=profile.n_targets)
    groups = table.groupby(level=["snapshot", "attack"], sort=False)
    columns = ["auroc", "balanced_accuracy", "tpr_at_0.01", "tpr_at_0.001"]
    return groups[[c for c in columns if c in table]].agg(["mean", "std"])


def sparse(profile: Profile, data: ml.Dataset, truth: pd.Series) -> pd.DataFrame:
    measures = [replace(profile.measure, every=every) for every in (1, profile.measure.every)]
    whole, some = train_many([profile.job(data, measure=measure) for measure in measures])
    needed = {name for name, score in CATALOGUE.items() if score.post_hoc_only}
    tables = [run.posthoc_scores[sorted(needed)] for run in (whole, some)]
    rows = {
        name: {
            "spearman_of_both": metrics.spearman(*(table[name] for table in tables)),
            "pearson_every_epoch": metrics.pearson(tables[0][name], truth),
            "pearson_sparse": metrics.pearson(tables[1][name], truth),
        }
        for name in tables[0]
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def main() -> None:
    profile = ml.get_profile("fashion_small")
    data = profile.load()
    truth = profile.memorization(data)["memorization"]
    frame = similarity(profile, data, truth)
    save("similarity", frame)
    rows = stops(profile, data, truth)
    groups = rows.groupby(["config", "flipped", "stop"], sort=False)
    epochs = ("epoch", "trained")
    values = [name for name in rows.columns[4:] if name not in epochs]
    summary = {name: ["median", "min", "max"] for name in epochs}
    save("stops", flat(groups.agg(summary | {name: ["mean", "std"] for name in values})))
    save("attacks", flat(attacks(profile, data)))
    save("sparse", sparse(profile, data, truth))


def flat(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_axis([" ".join(column) for column in table.columns], axis=1)


if __name__ == "__main__":
    main()
