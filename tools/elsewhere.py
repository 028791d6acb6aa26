"""Run all notebooks as other machines would, and measure how safe each check is.

``make test-elsewhere`` runs every notebook from an empty cache under other instruction sets and
thread counts, compares the checked outputs with the stored ones, and writes
``figures/fashion_small/margins.csv``: how far each check and each part of a claim lies from its
threshold, in units of its spread over seeds and over these machines. It takes three times as long
as all notebooks take without vector instructions.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from memlens.experiments import margins
from memlens.experiments.notebook import ENFORCED_PROFILE
from memlens.storage import store

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "elsewhere"
PROBE = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"


def machine(aten: str, onednn: str, mkl: str, openblas: str, threads: int) -> dict[str, str]:
    """Return the environment that keeps each library to an older instruction set."""
    counts = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)
    )
    return {
        "ATEN_CPU_CAPABILITY": aten,
        "ONEDNN_MAX_CPU_ISA": onednn,
        "MKL_ENABLE_INSTRUCTIONS": mkl,
        "OPENBLAS_CORETYPE": openblas,
        **counts,
    }


MACHINES = {
    "sse": machine("default", "SSE41", "SSE4_2", "Nehalem", threads=1),
    "avx": machine("default", "AVX", "AVX", "Sandybridge", threads=3),
    "avx2": machine("avx2", "AVX2", "AVX2", "Haswell", threads=2),
}


def run(name: str, notebooks: Path, keep_cache: bool) -> bool:
    """Compare every notebook's checked outputs on one imitated machine; True if all are equal."""
    scratch = WORK / name
    if scratch.exists() and not keep_cache:
        shutil.rmtree(scratch)
    environment = {**os.environ, **MACHINES[name], "MEMLENS_TEST_SCRATCH": str(scratch)}
    probe = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True
    )
    asked = MACHINES[name]["ATEN_CPU_CAPABILITY"].upper()
    capability = probe.stdout.split()[0]
    if capability.replace("NO AVX", "DEFAULT") != asked:
        raise SystemExit(f"{name}: torch runs with {capability}, not with {asked}")
    print(f"\n{name}: {' '.join(f'{k}={v}' for k, v in MACHINES[name].items())}", flush=True)
    command = [
        sys.executable, "-m", "pytest", str(notebooks), "--nbval-lax", "--nbval-current-env",
        "--color=no", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"),
    ]  # fmt: skip
    return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode == 0


def checks_in(folder: Path) -> pd.DataFrame:
    """Read the checks that the notebooks of one machine left."""
    files = sorted(folder.glob("[0-9]*_checks.csv"))
    if not files:
        raise SystemExit(f"no checks in {folder}: run `make notebooks` first")
    return pd.concat([pd.read_csv(f).assign(notebook=f.name[:2]) for f in files])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all outputs are equal and every check is safe."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--keep-cache", action="store_true",
        help="start from what an earlier call trained: after a change of texts only",
    )  # fmt: skip
    parser.add_argument(
        "--machines", nargs="*", choices=MACHINES, default=list(MACHINES),
        help="none: write the margins over seeds, of the stored outputs alone",
    )  # fmt: skip
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks")
    given = parser.parse_args(arguments)
    passed = {name: run(name, given.notebooks, given.keep_cache) for name in given.machines}
    stored = store.figures_dir(ENFORCED_PROFILE)
    tables = {"stored": checks_in(stored)}
    folders = {name: WORK / name / "figures" / ENFORCED_PROFILE for name in given.machines}
    tables |= {name: checks_in(folder) for name, folder in folders.items()}
    joined = margins.over_machines(tables)
    text = joined.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    store.write_atomic(stored / "margins.csv", text.encode())
    return report(joined, passed)


def report(joined: pd.DataFrame, passed: Mapping[str, bool]) -> int:
    """Print what is too close and which machines differ; 0 if nothing is and none does."""
    checks = joined[joined["kind"] == "check"]
    close = checks[~(checks["margin"] >= margins.MIN_MARGIN)]
    print(f"\n{len(checks)} checks, {len(close)} closer than {margins.MIN_MARGIN:g} spreads")
    if len(close):
        print(
            close[["notebook", "name", "measured", "margin", "n_machines"]].to_string(index=False)
        )
    for name, equal in passed.items():
        print(f"{name}: {'checked outputs as stored' if equal else 'OTHER checked outputs'}")
    return int(len(close) > 0 or not all(passed.values()))


if __name__ == "__main__":
    sys.exit(main())
