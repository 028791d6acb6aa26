"""Devices, precision, layout and compilation."""

import shutil
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from precision import measured
from torch import nn

import memlens as ml
from memlens.models import registry
from memlens.tracking.recorder import Recorder
from memlens.training import devices
from memlens.training.batches import Batches
from memlens.training.config import OPTIMIZERS, MeasureConfig, TrainConfig
from memlens.training.devices import Engine
from memlens.training.loop import train, train_step

CUDA = torch.cuda.is_available()
COMPILER = shutil.which("g++") or shutil.which("clang++")


def test_auto_is_a_gpu_where_there_is_one():
    assert devices.resolve("auto").type == ("cuda" if CUDA else "cpu")
    assert devices.resolve("cpu") == torch.device("cpu")
    engine = TrainConfig(
        device="auto", precision="auto", channels_last=None, compiled=None
    ).engine()
    assert (engine.bfloat16, engine.channels_last, engine.compiled) == (CUDA,) * 3
    assert TrainConfig().engine() == Engine(torch.device("cpu"), False, False, False)
    asked = TrainConfig(precision="bfloat16", channels_last=True, compiled=True).engine()
    assert asked == Engine(torch.device("cpu"), True, True, True)


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"device is 'cuda:99', but torch finds \d+ GPUs here"):
        devices.resolve("cuda:99")
    with pytest.raises(ValueError, match=r"unknown device 'mps'; use 'cpu', 'cuda'"):
        devices.resolve("mps")
    with pytest.raises(ValueError, match=r"unknown device 'gpu'; use 'cpu', 'cuda'"):
        ml.train("mlp", ml.load("digits"), TrainConfig(device="gpu"))
    with pytest.raises(ValueError, match=r"unknown precision 'half'; known: float32, bfloat16"):
        TrainConfig(precision="half")


PARTS = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)


def test_float32_is_exact_inside_and_as_before_outside():
    before = [part.fp32_precision for part in PARTS]
    with pytest.raises(KeyError), devices.exact_float32():
        assert [part.fp32_precision for part in PARTS] == ["ieee"] * 3
        raise KeyError
    assert [part.fp32_precision for part in PARTS] == before
    assert before[1] == "tf32"  # else this proves nothing


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", ["ieee", "tf32"])
def test_float32_is_exact_whatever_the_caller_has_set(part, value):
    before, part.fp32_precision = part.fp32_precision, value
    try:
        with devices.exact_float32():
            assert [p.fp32_precision for p in PARTS] == ["ieee"] * 3
        assert part.fp32_precision == value
    finally:
        part.fp32_precision = before


def test_what_auto_means_is_part_of_a_key(monkeypatch, tiny):
    job = ml.Job("mlp", tiny, TrainConfig(device="auto", precision="auto", compiled=None))
    here = job.key
    monkeypatch.setattr(devices, "resolve", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    old_gpu = job.key
    assert not job.config.engine().bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert job.config.engine().bfloat16
    assert len({here, old_gpu, job.key}) == 3


def test_a_container_may_have_less_than_its_machine(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    assert devices.free_memory(cpu) == 3_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert 3_000_000 < devices.free_memory(cpu) <= devices.total_memory(cpu)


def test_bytes_of_a_sample_are_its_layers_outputs():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).train()
    x = torch.zeros(1, 3, 2, 2)
    mean = net[2].running_mean.clone()
    assert devices.bytes_per_sample(net, x) == 4 * (12 + 12 + 5 + 5 + 3)
    assert net.training
    assert torch.equal(net[2].running_mean, mean)
    assert not any(layer._forward_hooks for layer in net)


def test_rows_fit_the_budget_and_are_at_least_one(monkeypatch):
    net, x = nn.Linear(10, 10), torch.zeros(1, 10)
    assert devices.rows_at_once(net, x) == devices.EVAL_ROWS
    monkeypatch.setattr(devices, "CPU_BYTES", 7 * 80 + 1)
    assert devices.rows_at_once(net, x) == 7
    monkeypatch.setattr(devices, "CPU_BYTES", 1)
    assert devices.rows_at_once(net, x) == 1


def test_memory_is_told_in_bytes():
    cpu = torch.device("cpu")
    assert 1e8 < devices.free_memory(cpu) <= devices.total_memory(cpu)


def smooth_cnn(n_classes, in_shape, widths=(16, 32)):
    """Without kinks: next to the one of a ReLU the last bit decides, for all empty pixels alike."""
    layers, channels = [], in_shape[0]
    for out in widths:
        layers += [nn.Conv2d(channels, out, 3, 1 + (out > 16), 1, bias=False), nn.BatchNorm2d(out)]
        layers += [nn.GELU()]
        channels = out
    last = nn.Linear(channels, n_classes)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


def one_layer(n_classes, in_shape):
    """Half as long to compile."""
    return smooth_cnn(n_classes, in_shape, (32,))


def one_step(engine, n=256, model=smooth_cnn):
    """Signals, gradients and inputs of one step of training on digits."""
    data = ml.load("digits")
    data = replace(data, train=data.train[torch.arange(n)])
    net = engine.place(registry.build(model, 10, data.in_shape, seed=0)).train()
    optimizer = OPTIMIZERS["sgd"](net.parameters(), TrainConfig())
    recorder = Recorder(n)
    batches = Batches(data, TrainConfig(batch_size=n), engine)
    ((index, x, y),) = batches.of_epoch([torch.arange(n)], 0, 0)
    train_step(engine.forward(net), optimizer, x, y, recorder=recorder, index=index)
    recorder.end_epoch()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in net.parameters())
    return recorder.trace, gradient, x


EXACT = 1e-4  # of a norm: float32 sums of 2^14 values in another order
ROUNDED = 4 * 2**-8  # of a norm: a few roundings to eight bits
# the same, rounded again after each image: as many steps of half a last bit, of either sign
WALKED = 2**-9 * 256**0.5
ENGINES = {
    "channels last": (Engine(channels_last=True), EXACT),
    "bfloat16": (Engine(bfloat16=True), ROUNDED),
    "compiled": (Engine(compiled=True), EXACT),
    "all three": (Engine(bfloat16=True, channels_last=True, compiled=True), ROUNDED),
}


@pytest.mark.parametrize("case", ENGINES)
@pytest.mark.slow
def test_a_step_is_the_plain_float32_step(case):
    engine, bound = ENGINES[case]
    if engine.compiled and not COMPILER:
        pytest.skip("torch.compile needs a C++ compiler")
    summed = bound if bound == EXACT or devices.sums_in_float32(engine.device) else WALKED
    model = one_layer if engine.compiled else smooth_cnn
    plain, gradient, _ = one_step(Engine(), model=model)
    trace, found, x = one_step(engine, model=model)
    assert x.is_contiguous(memory_format=engine.memory_format)
    assert float((found - gradient).norm() / gradient.norm()) < summed
    for name in plain:
        if name == "predicted":  # classes: of near ties a rounded step may predict another one
            assert trace[name].dtype == np.int16
            continue
        error = np.linalg.norm(trace[name] - plain[name]) / np.linalg.norm(plain[name])
        assert error < bound, name
        assert trace[name].dtype == np.float32
    if engine.bfloat16:  # or nothing was rounded, and the test shows nothing
        assert float((found - gradient).norm() / gradient.norm()) > 10 * EXACT


@pytest.mark.parametrize("able", [True, False])
def test_sums_in_bfloat16_are_warned_of(monkeypatch, able):
    monkeypatch.setattr(devices, "sums_in_float32", lambda _: able)
    warned = nullcontext() if able else pytest.warns(UserWarning, match="precision='float32' is")
    with warned:
        Engine(bfloat16=True).forward(nn.Linear(2, 2))
    Engine().forward(nn.Linear(2, 2))


def test_who_sums_in_float32_is_known():
    """A larger batch is not further off, unless every image of it rounds the sum."""
    exact, found = (one_step(engine, 1024)[1] for engine in (Engine(), Engine(bfloat16=True)))
    near = float((found - exact).norm() / exact.norm()) < ROUNDED
    assert near == devices.sums_in_float32(torch.device("cpu"))


@pytest.mark.slow
def test_scores_measured_in_bfloat16_rank_as_those_in_float32():
    """Twenty epochs; at every step both precisions measure the same weights."""
    for name, alike in measured(ml.load("digits"), TrainConfig(epochs=20)).items():
        assert 0.995 <= alike < 1, name


def test_a_training_in_bfloat16_learns_as_one_in_float32():
    data = ml.load("digits")
    exact, low = (
        train("small_cnn_bn", data, TrainConfig(epochs=6, precision=p))
        for p in ("float32", "bfloat16")
    )
    accuracy = [run.history["val_accuracy"].iloc[-1] for run in (exact, low)]
    assert min(accuracy) > 0.9
    assert abs(accuracy[0] - accuracy[1]) < 0.03
    assert low.trace.loss.dtype == np.float32
    assert all(w.dtype == torch.float32 for w in low.snapshot("last").parameters())


@pytest.mark.parametrize("model", sorted(set(registry.MODELS) - set(registry.SMALL)))
@pytest.mark.slow
def test_a_large_net_is_one_graph_and_the_next_net_needs_no_new_one(model, traced):
    """A profile trains hundreds of them in one process."""
    graphs = traced("eager")
    engine = Engine(bfloat16=True, channels_last=True, compiled=True)
    side = 64 if model == "resnet50" else 32
    for seed in range(2):
        net = engine.place(registry.build(model, 3, (3, side, side), seed=seed)).train()
        with engine.tuned():
            forward = engine.forward(net)
            x = torch.zeros(2, 3, side, side).contiguous(memory_format=engine.memory_format)
            forward(x.requires_grad_()).sum().backward()
    assert graphs() == 1  # one more for the last batch, as the next test shows of a small net


@pytest.mark.parametrize(("sam_rho", "n_graphs"), [(0.0, 2), (0.05, 4)])
def test_what_is_measured_after_an_epoch_needs_no_new_graph(tiny, traced, sam_rho, n_graphs):
    """It looks at the net in another mode, and through hooks; SAM looks twice, once from afar."""
    graphs = traced("eager")
    everything = MeasureConfig(True, 1, weight_gradients=True, logit_gradients=True)
    config, found = TrainConfig(epochs=3, batch_size=25, compiled=True, sam_rho=sam_rho), []
    train("small_cnn_bn", tiny, config, everything, watch=lambda row: found.append(graphs()))
    assert found == [n_graphs] * 3


@pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler")
def test_many_nets_in_one_process_are_all_compiled():
    """Beyond torch's own limit of eight graphs for one function."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    engine = Engine(compiled=True)
    with engine.tuned(), torch._dynamo.config.patch(suppress_errors=False), torch.no_grad():
        for width in range(2, 13):
            engine.forward(nn.Linear(width, 2))(torch.zeros(3, width))
    assert counters["stats"]["unique_graphs"] == 11
