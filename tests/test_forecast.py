"""Memory is counted before it is needed."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

import memlens as ml
from memlens import devices, forecast, models, scores
from memlens.recipes import Measure, Recipe
from memlens.recorder import SIGNALS, Recorder, Trace
from memlens.stopping import Peak

FULL = Measure(posthoc=True, curvature_probes=10, weight_gradients=True, logit_gradients=True)


def test_scores_of_the_papers_scale_stay_below_a_gigabyte():
    assert forecast.of_scores(50_000, 300, Measure()) == 4 * 5 * 50_000 * 300
    assert forecast.of_scores(50_000, 300, FULL) < 1e9


def test_scores_are_counted_as_a_run_keeps_them(tiny):
    run = ml.train("mlp", tiny, Recipe(epochs=2, batch_size=30), FULL)
    kept = sum(v.nbytes for k, v in run.arrays.items() if k.startswith(("trace/", "posthoc/")))
    assert kept == forecast.of_scores(len(tiny.train), 2, FULL)


def test_a_whole_table_of_scores_is_made_within_a_gigabyte():
    """300 epochs of 50,000 samples: recorded, traced and scored."""
    tracemalloc.start()
    recorder, rng = Recorder(50_000), np.random.default_rng(0)
    row = torch.from_numpy(rng.random((len(SIGNALS), 50_000), dtype=np.float32))
    recorder.load_state_dict({"rows": row.expand(300, -1, -1)})
    trace = Trace({k: np.array(v) for k, v in recorder.trace.items()})
    frame = scores.score_frame(trace, Peak(100, 105), np.arange(50_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {"csg", "csl", "sgal", "learning_time", "aum"} <= set(frame)
    assert peak < 1e9


def test_parts_of_a_training_add_up(tiny):
    net = models.build("mlp", 3, (1, 8, 8))
    x = torch.zeros(1, 1, 8, 8)
    recipe = Recipe(epochs=10, batch_size=50)
    needs = forecast.of_training(net, x, tiny, recipe, Measure())
    n = sum(p.numel() for p in net.parameters())
    assert (
        needs["weights and their copies"] == 4 * n * 6
    )  # itself, its gradient, momentum, three kept
    assert needs["images"] == 60 * 64
    sample = devices.bytes_per_sample(net, x)
    assert needs["layers' outputs of a batch of 50"] == 2 * 50 * sample
    adam = forecast.of_training(net, x, tiny, replace(recipe, optimizer="adam"), FULL)
    assert adam["weights and their copies"] == 4 * n * 7
    assert sum(adam.values()) > sum(needs.values())


def test_what_does_not_fit_says_so_before_it_starts(tiny, monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda device: 10**6)
    with pytest.raises(MemoryError, match=r"training on 60 samples of digits needs about .* GB on"):
        ml.train("mlp", tiny, Recipe(epochs=2000, batch_size=50))
    monkeypatch.setattr(devices, "free_memory", lambda device: 1000)
    with pytest.raises(MemoryError, match=r"sweep of 4 nets .*ask at fewer stops"):
        ml.subset_sweep("mlp", replace(tiny), n_models=4, recipe=Recipe(epochs=1, seed=9), n_jobs=1)
    told = {"layers' outputs": int(9e9), "images": int(2e8), "crumbs": 5}
    with pytest.raises(MemoryError) as error:
        forecast.check(told, torch.device("cpu"), "this", "do that")
    assert str(error.value) == (
        "this needs about 9.2 GB on cpu, where 0.0 GB are free (layers' outputs 9.0, images 0.2); "
        "do that"
    )
