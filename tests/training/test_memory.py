"""Memory is counted before it is needed."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import memlens as ml
from memlens.models import registry
from memlens.training import devices, memory
from memlens.training.config import MeasureConfig, TrainConfig

FULL = MeasureConfig(posthoc=True, n_directions=10, weight_gradients=True, logit_gradients=True)


def test_scores_of_the_papers_scale_stay_near_a_gigabyte():
    assert memory.of_scores(50_000, 300, MeasureConfig()) == (4 * 5 + 2) * 50_000 * 300
    assert memory.of_scores(50_000, 300, FULL) < 1.1e9


def test_scores_are_counted_as_a_run_keeps_them(tiny):
    run = ml.train("mlp", tiny, TrainConfig(epochs=2, batch_size=30), FULL)
    kept = sum(v.nbytes for k, v in run.arrays.items() if k.startswith(("trace/", "posthoc/")))
    assert kept == memory.of_scores(len(tiny.train), 2, FULL)


SCRIPT = """
import re, sys
from pathlib import Path
import numpy as np, torch
import memlens as ml
from memlens.storage import store
from memlens.storage.checkpoints import TrainingCheckpoint
from memlens.tracking import scores
from memlens.tracking.recorder import SIGNALS, Recorder
from memlens.tracking.peaks import Peak

def peak():  # of this program alone: what getrusage tells, a child has from its parent
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])

before = peak()
recorder = Recorder(50_000)
row = lambda: torch.rand(len(SIGNALS), 50_000)
predicted = [torch.zeros(50_000, dtype=torch.int16) for _ in range(300)]
recorder.load_state_dict({"rows": [row() for _ in range(300)], "predicted": predicted})
if sys.argv[1] == "score":
    frame = scores.score_frame(recorder.trace, Peak(100, 105), np.arange(50_000))
    assert {"csg", "csl", "sgal", "learning_time_share", "aum"} <= set(frame)
else:
    TrainingCheckpoint.of(store.Store(), "job").save(recorder.state_dict())
print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
@pytest.mark.parametrize("work", ["score", "save"])
@pytest.mark.slow
def test_300_epochs_of_50_000_samples_take_less_than_a_gigabyte(tmp_path, work):
    """As the system counts it: rows, trace and every score; or all rows and a checkpoint."""
    environment = {**os.environ, "MEMLENS_CACHE": str(tmp_path)}
    call = [sys.executable, "-c", SCRIPT, work]
    taken = int(subprocess.run(call, env=environment, capture_output=True, check=True).stdout)
    assert 4 * 5 * 50_000 * 300 < taken < 1e9


def test_parts_of_a_training_add_up(tiny):
    net = registry.build("mlp", 3, (1, 8, 8))
    x = torch.zeros(1, 1, 8, 8)
    config = TrainConfig(epochs=10, batch_size=50)
    needs = memory.of_training(net, x, tiny, config, MeasureConfig())
    n = sum(p.numel() for p in net.parameters())
    # itself, its gradient, momentum, and those at five stops
    assert needs["weights and their copies"] == 4 * n * 8
    assert needs["images"] == 4 * 60 * 64  # made ready once; as they are, they are there already
    cropped = replace(config, augment="crop")
    assert memory.of_training(net, x, tiny, cropped, MeasureConfig())["images"] == 0
    sample = devices.bytes_per_sample(net, x)
    assert needs["layers' outputs of a batch of 50"] == int(1.25 * 50 * sample)
    low = memory.of_training(net, x, tiny, replace(config, precision="bfloat16"), MeasureConfig())
    assert low["layers' outputs of a batch of 50"] == int(1.25 * 50 * sample / 2)
    adam = memory.of_training(net, x, tiny, replace(config, optimizer="adam"), FULL)
    assert adam["weights and their copies"] == 4 * n * (9 + 5)  # VoG keeps the last five
    rows = devices.EVAL_ROWS
    assert adam[f"layers' outputs of {rows} samples after an epoch"] == int(1.25 * rows * sample)
    assert "layers' outputs of a batch of 50" not in adam  # the two take turns


def test_what_does_not_fit_says_so_before_it_starts(tiny, monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda device: 10**6)
    with pytest.raises(MemoryError, match=r"training on 60 samples of digits needs about .* GB on"):
        ml.train("mlp", tiny, TrainConfig(epochs=2000, batch_size=50))
    monkeypatch.setattr(devices, "free_memory", lambda device: 1000)
    with pytest.raises(MemoryError, match=r"sweep of 4 networks .*use fewer snapshots"):
        ml.subset_sweep(
            "mlp", replace(tiny), n_models=4, config=TrainConfig(epochs=1, seed=9), n_jobs=1
        )
    told = {"layers' outputs": int(9e9), "images": int(2e8), "crumbs": 5}
    with pytest.raises(MemoryError) as error:
        memory.require_memory(told, torch.device("cpu"), "this", "do that")
    assert str(error.value) == (
        "this needs about 9.2 GB on cpu, where 0.0 GB are free (layers' outputs 9.0, images 0.2); "
        "do that"
    )
