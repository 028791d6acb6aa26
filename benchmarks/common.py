"""Shared by the benchmarks: interleaved timing, the machine's name, results as CSV."""

import math
import platform
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

import pandas as pd
import torch

RESULTS = Path(__file__).parent / "results"


def seconds_of(run: Callable[[], object]) -> float:
    """Return the seconds of a call, until the GPU has finished its work."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    until: float = math.inf,
) -> pd.DataFrame:
    """Seconds of every variant in every round, (rounds, n_variants).

    All variants run once a round, one after the other, so that a drift of the machine's speed
    meets them alike; ratios are taken within a round. No round starts after ``until``, on the clock
    of ``time.perf_counter``, but one is always counted.
    """
    rows = []
    while len(rows) < warmup + rounds:
        rows.append({name: seconds_of(run) for name, run in variants.items()})
        if len(rows) > warmup and time.perf_counter() > until:
            break
    return pd.DataFrame(rows[warmup:])


def ratios(seconds: pd.DataFrame, base: str) -> pd.DataFrame:
    """Median and quartiles of each variant's seconds over the base's, round by round."""
    relative = seconds.div(seconds[base], axis=0)
    table = relative.quantile([0.25, 0.5, 0.75]).T.set_axis(["q25", "median", "q75"], axis=1)
    return table.assign(seconds=seconds.median(), rounds=len(seconds)).rename_axis("variant")


def machine() -> dict[str, str]:
    """Processor, threads, GPU ("": none) and versions, as every result names them."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = f"{len(names)} x {names[0].split(':')[1].strip()}" if names else cpu
    return {
        "machine": cpu,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def save(name: str, table: pd.DataFrame) -> None:
    """Print the table and write it to ``results/<name>.csv`` with the machine it came from."""
    RESULTS.mkdir(exist_ok=True)
    table.assign(**machine()).to_csv(RESULTS / f"{name}.csv", float_format="%.4g")
    print(table.round(3).to_string(), file=sys.stdout)
