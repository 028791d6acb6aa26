"""What the benchmarks share: interleaved timing, the machine's name, results as CSV."""

import platform
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

import pandas as pd
import torch

RESULTS = Path(__file__).parent / "results"


def interleaved(
    variants: Mapping[str, Callable[[], None]], rounds: int, warmup: int = 2
) -> pd.DataFrame:
    """Seconds of every variant in every round, (rounds, n_variants).

    All variants run once a round, one after the other, so that a drift of the machine's speed
    meets them alike; ratios are taken within a round.
    """
    rows = []
    for _ in range(warmup + rounds):
        row = {}
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            row[name] = time.perf_counter() - start
        rows.append(row)
    return pd.DataFrame(rows[warmup:])


def ratios(seconds: pd.DataFrame, base: str) -> pd.DataFrame:
    """Median and quartiles of each variant's seconds over the base's, round by round."""
    relative = seconds.div(seconds[base], axis=0)
    table = relative.quantile([0.25, 0.5, 0.75]).T.set_axis(["q25", "median", "q75"], axis=1)
    return table.assign(seconds=seconds.median(), rounds=len(seconds)).rename_axis("variant")


def machine() -> dict[str, str]:
    """Processor, threads and versions, as every result names them."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = f"{len(names)} x {names[0].split(':')[1].strip()}" if names else cpu
    return {
        "machine": cpu,
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def save(name: str, table: pd.DataFrame) -> None:
    """Print the table and write it to ``results/<name>.csv`` with the machine it came from."""
    RESULTS.mkdir(exist_ok=True)
    table.assign(**machine()).to_csv(RESULTS / f"{name}.csv", float_format="%.4g")
    print(table.round(3).to_string(), file=sys.stdout)
