"""What `test_imagined_gpu` runs on the imagined GPU, beside `test_gpu`: faults, and the whole work.

First, that what a GPU refuses or waits for is found at all.
"""

import warnings
from dataclasses import replace

import gpu
import gpu_speed
import imagined_gpu
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from gpu_table import tiny_images
from torch import nn

import memlens as ml
from memlens.attacks import robustness
from memlens.audit import duplicates, outputs
from memlens.experiments.profiles import PROFILES
from memlens.tracking import signals
from memlens.training import devices, posthoc
from memlens.training.posthoc import predict

GPU, HERE = "cuda", "cpu"


@pytest.mark.parametrize(
    "mixed",
    [
        lambda there, here: there + here,
        lambda there, here: here @ there,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: F.cross_entropy(there[None], here[:1].long()),
        lambda there, here: torch.where(here > 0, there, there),
        lambda there, here: here[there.long()],
        lambda there, here: there.index_put((here.long(),), here),
        lambda there, here: nn.Linear(3, 2)(there),
    ],
)
def test_tensors_of_two_places_do_not_meet(mixed):
    with pytest.raises(RuntimeError, match="same device|indices should be"):
        mixed(torch.ones(3, device=GPU), torch.ones(3))


def test_numbers_and_copies_meet_them_and_numpy_does_not():
    there, number = torch.ones(3, device=GPU), torch.tensor(2.0)
    assert (number * there + 1.0).tolist() == [3, 3, 3]
    assert there.cpu().numpy().tolist() == [1, 1, 1]
    assert there.copy_(torch.zeros(3)).sum().item() == 0
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(there)


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.sum().item(),
        lambda t: float(t[0]),
        lambda t: bool((t > 0).all()),
        lambda t: t.tolist(),
        lambda t: t.cpu(),
        lambda t: torch.ones(3).to(GPU),
        lambda t: t.copy_(torch.ones(3)),
        lambda t: t[t > 0],
        lambda t: t[torch.tensor([0, 1])],
        lambda t: t.nonzero(),
        lambda t: torch.bincount(t.long()),
        lambda t: torch.tensor([1.0], device=GPU),
    ],
)
def test_what_waits_is_found(wait):
    there = torch.ones(3, device=GPU)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            wait(there)
        torch.ones(3).to(GPU, non_blocking=True).mul_(2.0)[there.long()].masked_fill_(there > 0, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_views_gradients_and_precision_are_those_of_a_gpu():
    whole = torch.zeros(4, device=GPU)
    whole[1:3].fill_(1.0)
    assert whole.tolist() == [0, 1, 1, 0]
    net = nn.Conv2d(1, 1, 1, bias=False)
    net.weight.data.fill_(1 + 2**-12)  # which TF32 and bfloat16 round to 1
    net, x = net.to(GPU), torch.ones(1, 1, 1, 1, device=GPU, requires_grad=True)
    assert net(x).item() == 1.0
    with devices.exact_float32():
        assert net(x).item() == 1 + 2**-12
        assert net.double()(x.double()).item() == 1 + 2**-12
        net(x.double()).backward()
        assert x.grad.item() == 1 + 2**-12
        with torch.autocast(x.device.type, torch.bfloat16):
            assert net.float()(x).item() == 1.0
            assert net(x).dtype == torch.bfloat16


def profile(device):
    """The profile of clothes, short, on digits."""
    short = PROFILES["fashion_mnist"].scaled(0.02, 40)
    plain = {"device": device, "precision": "float32", "channels_last": False, "compiled": False}
    queries = replace(short.queries, snapshots=("last", "weight_norm", 2), n_directions=2)
    return replace(
        short, dataset="digits", other_model="mlp", sweep_models=6, n_shadows=6, n_targets=2,
        config=replace(short.config, epochs=3, **plain), queries=queries,
        sweep_config=replace(short.sweep_config, epochs=2, **plain),
    )  # fmt: skip


def all_of(profile):
    """Everything that the notebooks ask of a profile, by name."""
    data = profile.load().with_noise(0.1)
    run = profile.runs(data, seeds=1, sam_rho=0.05, stop="weight_norm")[0]
    found = {f"score {name}": values for name, values in run.scores.items()}
    found |= {f"post-hoc {name}": values for name, values in run.posthoc_scores.items()}
    found |= {f"memorization {name}": v for name, v in profile.memorization(data).items()}
    extra = profile.extra_scores([data], seeds=[0])[0]
    found |= {f"extra {name}": values for name, values in extra.items()}
    found |= {f"asked {name}": values for name, values in profile.half_sweep(data).arrays.items()}
    net = run.snapshot("last", device=profile.config.device)
    x, y = data.normalise(data.train.images[:40]), data.train.labels[:40]
    found["logits"] = predict(net, data, data.train)
    found["curvature"] = posthoc.evaluate_batched(
        lambda *given: signals.curvature(*given, n_directions=2).norm, net, x, y
    )
    found["distance"] = robustness.adversarial_distance(net, data, data.train[:40])
    found["features"] = duplicates.features(net, data, data.train.images[:40])
    found["pairs"] = duplicates.find(data.train[:40], found["features"])
    return found


def _numbers(values):
    values = values.cpu() if isinstance(values, torch.Tensor) else values
    return np.asarray(values, dtype=float)


def test_all_that_a_profile_is_asked_is_there_what_it_is_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path))
    monkeypatch.setenv("MEMLENS_JOBS", "1")  # processes take longer to start than so few nets
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nets that have learned nothing yet
        one, other = (all_of(profile(device)) for device in (HERE, GPU))
    assert one.keys() == other.keys()
    for name, values in other.items():
        found, wanted = (_numbers(of) for of in (values, one[name]))
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4, nan_ok=True), name


@pytest.mark.parametrize("model", [None, "mlp"])
def test_images_of_ones_own_are_scored_there(tmp_path, monkeypatch, model):
    from PIL import Image

    monkeypatch.setenv("MEMLENS_CACHE", str(tmp_path / "cache"))
    train = ml.load("digits").train
    for i in range(90):
        place = tmp_path / "images" / str(int(train.labels[i]) % 2)
        place.mkdir(parents=True, exist_ok=True)
        pixels = (train.images[i, 0].float() * 15).byte().repeat_interleave(4, 0)
        Image.fromarray(pixels.repeat_interleave(4, 1).numpy()).save(place / f"{i}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two epochs: no peak
        scored = outputs.audit_path(
            tmp_path / "images", tmp_path / "out", epochs=2, model=model, log=lambda _: None
        )
    assert len(scored.table) == 90
    assert scored.table["csl"].notna().all()


def test_a_pass_in_tf32_rounds_and_the_training_does_not():
    data, before = tiny_images(90), torch.backends.cudnn.conv.fp32_precision
    config = ml.TrainConfig(batch_size=32, device=GPU, precision="float32")
    loops = [
        gpu_speed.Loop("small_cnn_bn", data, config, False, kind) for kind in ("exact", "tf32")
    ]
    for loop in loops:
        loop()
    exact, rounded = (loop.probes.recorder.trace.loss for loop in loops)
    assert rounded == pytest.approx(exact, rel=0.01)
    assert (rounded != exact).mean() > 0.9
    weights = (loop.net.state_dict().values() for loop in loops)
    assert all(torch.equal(one.cpu(), other.cpu()) for one, other in zip(*weights, strict=True))
    assert torch.backends.cudnn.conv.fp32_precision == before != "ieee"


def test_the_benchmarks_of_a_gpu_run_there(tmp_path, monkeypatch):
    few = tiny_images(80)  # two of the larger batches: the second is to wait for nothing
    monkeypatch.setattr("gpu_table.tiny_images", lambda: few)
    call = ["all", "--tiny", "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    assert gpu.main(call) == 0
    table = pd.read_csv(tmp_path / "gpu.csv")
    tried = table[table["case"].str.startswith("tiny")].set_index(["part", "measure"])["value"]
    assert set(tried.index.levels[0]) == set(gpu.PARTS)
    waits = tried.xs("waits for the GPU in the steps of an epoch", level="measure")
    assert len(waits) == 2
    assert (waits.astype(float) == 0).all()
    assert imagined_gpu.waited  # at the ends of epochs
