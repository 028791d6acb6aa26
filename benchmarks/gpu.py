"""Measurements that need a GPU, in parts of a few minutes each: `results/gpu.csv`.

    python benchmarks/gpu.py PART [--minutes 9] [--out DIR] [--work DIR] [--tiny]

PART is speed, curvature, science, sweep, all of them, or list, which writes what was never run.
Every number goes to the table as it is found, in place of an earlier one from the same GPU. science
and sweep go on in the next call where the minutes of the last ran out. --tiny tries everything with
small nets and images on any machine; its rows say so, and go to a file only if --out is given.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import gpu_curvature
import gpu_science
import gpu_speed
import gpu_sweep
import torch
from common import RESULTS
from gpu_table import Bench, Table, say

from memlens.storage import store

PARTS = {
    "speed": gpu_speed,
    "curvature": gpu_curvature,
    "science": gpu_science,
    "sweep": gpu_sweep,
}
GOALS = [goal for part in PARTS.values() for goal in part.GOALS]
MINIATURE = "miniature: small_cnn_bn for all large nets, random images"


def _work_folder() -> Path:
    """Beside the cache, not in it: emptying the cache must not lose hours of a GPU."""
    cache = store.cache_dir()
    return cache.with_name(f"{cache.name}-gpu")


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments, and fill in defaults that depend on each other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=("list", *PARTS, "all"))
    parser.add_argument("--minutes", type=float, default=9.0, help="of a part, in this call")
    parser.add_argument("--out", type=Path, help="folder of gpu.csv")
    parser.add_argument("--work", type=Path, default=_work_folder())
    parser.add_argument("--tiny", action="store_true", help="in miniature, on any machine")
    asked = parser.parse_args(given)
    if asked.part != "list" and not asked.tiny and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --tiny tries the parts out without one")
    if asked.out is None and not asked.tiny:
        asked.out = RESULTS
    return asked


def main(given: Sequence[str] | None = None) -> int:
    """Run parts; 1 if a case of them failed."""
    asked = arguments(given)
    path = asked.out and asked.out / "gpu.csv"
    table = Table(path, GOALS, MINIATURE if asked.tiny else "")
    table.save()
    if asked.part == "list":
        say(table.frame().to_string(columns=["part", "case", "measure", "value", "note"]))
        return 0
    for name in PARTS if asked.part == "all" else [asked.part]:
        PARTS[name].run(Bench(table, asked.work, asked.minutes, asked.tiny))
    say(f"{path or 'nothing written: give --out to keep a miniature'}")
    return int(table.failed)


if __name__ == "__main__":
    raise SystemExit(main())
