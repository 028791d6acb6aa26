"""What needs a GPU, on one that is only imagined: where its tensors are, and what waits for it.

In a process of its own, as it takes torch's place for a backend for good.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


def test_what_needs_a_gpu_works_on_one_that_is_imagined():
    command = [sys.executable, "-m", "pytest", "-p", "imagined_gpu", "-q"]
    command += [str(HERE / name) for name in ("imagined_tasks.py", "test_gpu.py")]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout
