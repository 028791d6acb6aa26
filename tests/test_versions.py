"""Finished work is found again by a version number, and the number is raised when results change.

Each kind of finished work is done once in miniature and compared with the values stored here. When
this fails after a change that was meant to change results, raise the version named in the message
and store the new values under it; old results are then never taken for new ones.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

import memlens as ml
from memlens.ensembles import grid, retrainings, subsets
from memlens.models import registry
from memlens.training import jobs
from memlens.training.config import MeasureConfig, TrainConfig

THREE_EPOCHS = TrainConfig(epochs=3, lr=0.1, weight_decay=1e-4)
MEASURED = MeasureConfig(posthoc=True, n_directions=2, weight_gradients=True, logit_gradients=True)
# Other processors move these by less than a thousandth.
GOLDEN = {
    ("jobs.RUN_VERSION", 2): {
        "csg": 1.493364, "csl": 5.366907, "aum": -0.192793, "post-hoc csl": 6.726878,
        "curvature_norm": 2.909865, "vog": 0.003911897, "grand": 2.000786,
        "tracin": 0.1702178,
        "weight_norm": 12.42074, "val_loss": 2.213380,
    },
    ("subsets.SWEEP_VERSION", 2): {"logits": 0.05378777, "samples in all nets": 560},
    ("retrainings.RETRAINING_VERSION", 3): {
        "folds logits": 0.05821941, "folds p_label": 0.1019956, "samis sgd": 0.04898303,
        "samis sam": 0.04838945, "repeats el2n": 0.9459224, "repeats weight_grad": 1.752701,
    },
    ("grid.GRID_VERSION", 1): {
        "input_gradient": 1.503202, "weight_norm": 13.21519, "val_loss": 2.152148,
    },
}  # fmt: skip
LOGITS = {"mlp": 0.04468257, "mlp_bn": 0.04468235, "small_cnn": 0.07048004,
          "small_cnn_bn": 0.07105855, "narrow_mlp": 0.05198481,
          "narrow_mlp_bn": 0.05198484}  # fmt: skip


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    return ml.load("digits").subset(200)


def same(name, number, found):
    """Compare with the stored values; say what to do where they differ."""
    assert (name, number) in GOLDEN, f"store the values of {name} = {number} here: {found}"
    stored = GOLDEN[name, number]
    assert found == pytest.approx(stored, rel=1e-3), f"results changed: raise {name}"


def measured(job):
    (run,) = ml.train_many([job], n_jobs=1)
    later = run.posthoc_scores[["curvature_norm", "vog", "grand", "tracin"]].mean()
    last = run.history.iloc[-1][["weight_norm", "val_loss"]]
    found = {**run.scores[["csg", "csl", "aum"]].mean(), **later, **last}
    return found | {"post-hoc csl": run.posthoc_scores["csl"].mean()}


def test_runs_give_what_their_version_gave(data):
    job = ml.Job("small_cnn_bn", data, THREE_EPOCHS, MEASURED)
    same("jobs.RUN_VERSION", jobs.RUN_VERSION, measured(job))


def test_sweeps_give_what_their_version_gave(data):
    sweep = ml.subset_sweep("mlp", data, n_models=4, config=THREE_EPOCHS, n_jobs=1)
    found = {"logits": np.abs(sweep.logits).mean(), "samples in all nets": sweep.masks.sum()}
    same("subsets.SWEEP_VERSION", subsets.SWEEP_VERSION, found)


def test_retrainings_give_what_their_version_gave(data):
    found = {}
    for kind, names in (("folds", ["logits", "p_label"]), ("samis", ["sgd", "sam"]),
                        ("repeats", ["el2n", "weight_grad"])):  # fmt: skip
        (left,) = retrainings.retrain(kind, "mlp", [data], THREE_EPOCHS, seeds=[0], n_jobs=1)
        found |= {f"{kind} {name}": np.abs(left[name]).mean() for name in names}
    same("retrainings.RETRAINING_VERSION", retrainings.RETRAINING_VERSION, found)


@pytest.mark.parametrize("name", sorted(registry.SMALL))
def test_nets_give_what_they_gave(name):
    """A changed net changes every run, sweep and retraining: raise all three versions."""
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    net = registry.build(name, 10, (3, 32, 32), seed=0).eval()
    assert net(images).abs().mean().item() == pytest.approx(LOGITS[name], rel=1e-3)


def test_grids_give_what_their_version_gave(data):
    axes = {"lrs": [0.05, 0.1], "weight_decays": [0.0, 1e-2], "seeds": [0]}
    curves = grid.train_grid("narrow_mlp_bn", data, THREE_EPOCHS, n_jobs=1, **axes).curves
    names = ("input_gradient", "weight_norm", "val_loss")
    same("grid.GRID_VERSION", grid.GRID_VERSION, {name: curves[name].mean() for name in names})


def test_a_changed_result_is_noticed(data):
    """Planted: a learning rate that is one per cent higher."""
    job = ml.Job("small_cnn_bn", data, replace(THREE_EPOCHS, lr=1.01 * THREE_EPOCHS.lr), MEASURED)
    with pytest.raises(AssertionError, match=r"raise jobs\.RUN_VERSION"):
        same("jobs.RUN_VERSION", jobs.RUN_VERSION, measured(job))
    with pytest.raises(AssertionError, match="store the values"):
        same("jobs.RUN_VERSION", -1, {"csg": 1.0})


def test_the_version_is_part_of_the_key(data, monkeypatch):
    job = ml.Job("mlp", data, THREE_EPOCHS)
    before = job.key
    monkeypatch.setattr(jobs, "RUN_VERSION", -1)
    assert job.key != before
