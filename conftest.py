"""Every test run has a cache and a figures folder of its own, so that the checkout stays clean.

It lies here for the notebooks, too, when they are tested alone.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

SCRATCH = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Redirect what memlens writes.

    Kernels that nbval starts inherit it, so that the notebooks share one cache with each other, and
    none with yesterday's code. MEMLENS_TEST_SCRATCH names a folder that is kept.
    """
    kept = os.environ.get("MEMLENS_TEST_SCRATCH")
    scratch = Path(kept or tempfile.mkdtemp(prefix="memlens-tests-"))
    if not kept:
        config.stash[SCRATCH] = scratch  # to be removed
    os.environ["MEMLENS_CACHE"] = str(scratch / "cache")
    os.environ["MEMLENS_FIGURES"] = str(scratch / "figures")
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # no kernel of the user's in place of ours
    os.environ.pop("JUPYTER_PATH", None)
    # Threads that wait by spinning slow each other many times down where others work, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    )


def pytest_report_header() -> str:
    """Say where what notebooks draw goes: not to the figures of the checkout."""
    return f"figures: {os.environ['MEMLENS_FIGURES']}"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what was redirected."""
    shutil.rmtree(config.stash.get(SCRATCH, None) or "", ignore_errors=True)
