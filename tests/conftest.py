"""What every test shares: a cache and a figures folder of its own, so the checkout stays clean."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

SCRATCH = pytest.StashKey[Path]()

# the same examples on every run and machine; trainings make the time of one example uneven
settings.register_profile("memlens", deadline=None, derandomize=True, database=None)
settings.load_profile("memlens")


def pytest_configure(config: pytest.Config) -> None:
    """Redirect what memlens writes. Kernels that nbval starts inherit it, so that the notebooks
    share one cache with each other, and none with yesterday's code.
    """
    scratch = Path(tempfile.mkdtemp(prefix="memlens-tests-"))
    config.stash[SCRATCH] = scratch
    os.environ["MEMLENS_CACHE"] = str(scratch / "cache")
    os.environ["MEMLENS_FIGURES"] = str(scratch / "figures")
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # no kernel of the user's in place of ours
    os.environ.pop("JUPYTER_PATH", None)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what was redirected."""
    shutil.rmtree(config.stash.get(SCRATCH, None) or "", ignore_errors=True)


def pytest_collection_finish() -> None:
    """One thread: the nets of the unit tests are so small that a second one only costs."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
