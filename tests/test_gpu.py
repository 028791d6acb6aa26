"""On a GPU nothing waits, and the numbers are those of the CPU. Without one: skipped, counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memlens as ml
from memlens.data.samples import from_arrays
from memlens.models import registry
from memlens.tracking import signals
from memlens.tracking.counting import CountingRecorder
from memlens.tracking.hooks import RecorderHooks, scale_from_loss
from memlens.tracking.recorder import Recorder
from memlens.training.batches import Batches
from memlens.training.config import OPTIMIZERS, MeasureConfig, TrainConfig
from memlens.training.loop import train, train_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

FAST = {"device": "cuda", "precision": "bfloat16", "channels_last": True, "compiled": False}
EVERYTHING = MeasureConfig(
    posthoc=True, n_directions=2, weight_gradients=True, logit_gradients=True
)


@pytest.fixture(scope="module")
def colour():
    rng = np.random.default_rng(0)
    images = lambda n: rng.integers(256, size=(n, 3, 32, 32), dtype=np.uint8)  # noqa: E731
    return from_arrays("noise", (images(256), np.arange(256) % 4), (images(64), np.arange(64) % 4))


@pytest.mark.parametrize(
    ("changes", "rho"),
    [({}, 0.0), ({}, 0.05), ({"precision": "float32"}, 0.05), ({"compiled": True}, 0.0)],
)
def test_no_step_of_an_epoch_waits_for_the_device(colour, changes, rho):
    config = TrainConfig(batch_size=64, augment="crop_flip", **(FAST | changes))
    engine = config.engine()
    net = engine.place(registry.build("resnet18", 4, colour.in_shape)).train()
    forward, batches = engine.forward(net), Batches(colour, config, engine)
    optimizer, recorder = OPTIMIZERS["sgd"](net.parameters(), config), Recorder(256, flush_bytes=1)
    for epoch in range(2):  # the first one compiles
        fed = batches.of_epoch(torch.randperm(256).split(64), 0, epoch)
        first = next(fed)  # what is drawn for the epoch comes over before its first batch
        torch.cuda.set_sync_debug_mode("error" if epoch else "default")
        try:
            for index, x, y in [first, *fed]:
                train_step(forward, optimizer, x, y, recorder=recorder, index=index, sam_rho=rho)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert {t.device for t in (*first, *recorder._tensors())} == {engine.device}
        recorder.end_epoch()
    assert np.isfinite(recorder.trace.loss).all()
    assert (recorder.trace.loss.mean(1) > 0).all()


@pytest.mark.parametrize("hooks", [False, True])
@pytest.mark.parametrize("kind", [Recorder, CountingRecorder])
@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("labels_at", ["cpu", "cuda"])
def test_no_step_of_a_loop_of_ones_own_waits_wherever_index_and_labels_lie(
    hooks, kind, place, labels_at
):
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4)).cuda()
    images, labels = torch.randn(256, 3, 4, 4, device="cuda"), torch.arange(256, device="cuda") % 4
    recorder, scale = kind(256, flush_bytes=0), torch.tensor(0.25, device=place)
    watched = RecorderHooks(net, recorder) if hooks else None
    factor = scale.to("cuda")
    for epoch in range(2):  # the first one loads kernels
        batches = [
            (part.to(place), images[part], labels[part], labels[part].to(labels_at))
            for part in torch.arange(256).split(64)
        ]
        torch.cuda.set_sync_debug_mode("error" if epoch else "default")
        try:
            for index, x, y, given in batches:
                x = x if hooks else recorder.watch(x)
                logits = net(x)
                (F.cross_entropy(logits, y) * factor).backward()
                if hooks:
                    watched.update(index, given)
                else:
                    recorder.update(index, x, logits, given, loss_scale=scale)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert {t.device for t in recorder._tensors()} == {images.device}
        (watched or recorder).end_epoch()
    assert recorder.trace.loss[1] == pytest.approx(recorder.trace.loss[0], rel=1e-4)
    assert recorder.trace.grad_l2[1] == pytest.approx(recorder.trace.grad_l2[0], rel=1e-4)
    assert (recorder.trace.visits == 1).all()


@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_reading_the_scale_off_the_loss_does_not_wait_either(place):
    logits, y = torch.randn(6, 3, device="cuda"), torch.arange(6, device="cuda") % 3
    loss, items = 4 * F.cross_entropy(logits, y), torch.tensor(3).to(place)
    torch.cuda.set_sync_debug_mode("error")
    try:
        scale, *_ = scale_from_loss(logits, y, loss, items)
        two, *_ = scale_from_loss(logits, y, loss / 2, items)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (scale.item(), two.item()) == (6.0, 2.0)  # a sum is nearest to 4, b over items is 2


def test_the_numbers_are_those_of_the_cpu(tiny):
    config = TrainConfig(epochs=3, batch_size=20)
    runs = [train("small_cnn_bn", tiny, replace(config, device=device), EVERYTHING)
            for device in ("cpu", "cuda")]  # fmt: skip
    for name in runs[0].arrays:
        if name.startswith(("trace/", "posthoc/")) and "curvature" not in name:
            found = [run.arrays[name] for run in runs]
            assert found[1] == pytest.approx(found[0], rel=1e-2, abs=1e-3, nan_ok=True), name
    assert runs[0].meta == runs[1].meta


def test_curvature_keeps_all_bits_of_float32(colour):
    """TF32 rounds to ten bits: curvature, a thousandth of a difference, is off by a fifth then."""
    net = registry.build("resnet18", 4, colour.in_shape).eval().to("cuda")
    x, y = (t[:32].to("cuda") for t in (colour.train.images, colour.train.labels))
    x = colour.normalise(x)
    with TrainConfig(**FAST).engine().tuned():
        found = signals.curvature(net, x, y, n_directions=4).norm
        exact = signals.curvature(net.double(), x.double(), y, n_directions=4).norm
    assert found.cpu().numpy() == pytest.approx(exact.cpu().numpy(), rel=0.02)


def test_nets_train_together_and_one_by_one(colour, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    digits = ml.load("digits")
    configs = [TrainConfig(epochs=5, device=device) for device in ("cpu", "cuda")]
    sweeps = [ml.subset_sweep("mlp", digits, n_models=8, config=r, n_jobs=1) for r in configs]
    right = [sweep.correct.mean() for sweep in sweeps]
    assert right[0] == pytest.approx(right[1], abs=0.01)
    config = TrainConfig(epochs=2, batch_size=64, augment="crop_flip", **FAST)
    large = ml.subset_sweep("small_inception", colour, n_models=2, config=config)
    assert np.isfinite(large.logits_at("last")).all()


def test_an_interrupted_training_goes_on_there(tiny, tmp_path):
    from mortal import Killed, Mortal

    config = TrainConfig(epochs=5, batch_size=20, device="cuda")
    with pytest.raises(Killed):
        train("mlp", tiny, config, EVERYTHING, checkpoint=Mortal(tmp_path / "d.checkpoint", 2))
    resumed = train(
        "mlp", tiny, config, EVERYTHING, checkpoint=Mortal(tmp_path / "d.checkpoint", 99)
    )
    whole = train("mlp", tiny, config, EVERYTHING)
    assert resumed.meta["stops"] == whole.meta["stops"]
    assert resumed.trace.loss == pytest.approx(whole.trace.loss, rel=1e-3, abs=1e-5)
    assert next(resumed.snapshot("last").parameters()).device.type == "cpu"
