"""Callbacks for frameworks: the scores of the plain loop, and an unchanged training."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from foreign_loops import (
    EPOCHS,
    SIZE,
    N,
    X,
    Y,
    assert_same,
    global_batches,
    plain,
    run_processes,
)  # fmt: skip
from torch.utils.data import TensorDataset, WeightedRandomSampler

from memlens.tracking.indexing import with_index
from memlens.tracking.stopping import PeakStop

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"patience": 1, "min_rise": 0.0}


@pytest.mark.parametrize(
    ("module", "needs"), [("lightning", "lightning"), ("huggingface", "transformers")]
)
@pytest.mark.slow
def test_a_framework_is_imported_when_used_and_its_absence_is_reported(module, needs):
    code = f"""
import sys
import memlens as ml
assert {{"lightning", "transformers", "accelerate"}}.isdisjoint(sys.modules)
dir(ml), ml.tracking, ml.with_index, ml.RecorderHooks
assert {{"lightning", "transformers", "accelerate"}}.isdisjoint(sys.modules)
sys.modules[{needs!r}] = None
try:
    from memlens.tracking.integrations.{module} import Callback
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert f"needs {needs}" in run.stdout and "pip install" in run.stdout, run.stderr


def test_an_unknown_callback_is_refused():
    from memlens.tracking import integrations

    with pytest.raises(AttributeError, match="no attribute 'KerasRecorder'"):
        _ = integrations.KerasRecorder
    assert dir(integrations) == ["LightningRecorder", "TrainerRecorder"]


def best_weights(stop, net):
    """Return True if the kept weights are those of a plain loop that ends at the peak."""
    expected = plain(epochs=stop.peak.peak_epoch + 1)[1].state_dict()
    names = [name for name in stop.best_state if name.endswith("3.weight")]
    return torch.allclose(stop.best_state[names[0]], expected["3.weight"], atol=1e-6)


# ---------------------------------------------------------------------------- Lightning


@pytest.fixture
def lightning():
    pytest.importorskip("lightning")
    import lightning_task

    return lightning_task


@pytest.mark.parametrize("module", [None, "net"])
def test_lightning_gives_the_scores_of_the_plain_loop(lightning, module):
    callback = lightning.LightningRecorder(N, module=module)
    lightning.fit(callback)
    assert_same(callback.recorder, plain()[0])


def test_recording_does_not_change_lightnings_training(lightning):
    nets = [lightning.Classifier(), lightning.Classifier()]
    lightning.fit([], nets[0])
    lightning.fit(net=nets[1])
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)
    assert not nets[1]._forward_hooks and not nets[1]._forward_pre_hooks


def test_validation_and_the_sanity_check_are_not_recorded(lightning):
    callback = lightning.fit(validate=lightning.loader(), num_sanity_val_steps=2)
    assert_same(callback.recorder, plain()[0])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_lightnings_accumulation_is_divided_out(lightning, reduction):
    net = lightning.Classifier(reduction)
    if reduction == "sum":  # a loss of sums, with a rate that makes the same steps of full batches
        net.configure_optimizers = lambda: torch.optim.SGD(net.parameters(), 0.2 / SIZE)
    callback = lightning.fit(net=net, accumulate_grad_batches=2, limit_train_batches=4)
    from foreign_loops import in_order

    expected, _ = plain(in_order()[:4], accumulate=2, divisor=2)
    assert_same(callback.recorder, expected)


def test_lightnings_loss_scaler_is_divided_out(lightning):
    from lightning.pytorch.plugins import MixedPrecision

    for precision, low in (("16-mixed", torch.float16), ("bf16-mixed", torch.bfloat16)):
        scalers = [None, None]
        if low == torch.float16:
            scalers = [torch.amp.GradScaler("cpu", 2.0**10, growth_interval=3) for _ in range(2)]
        plugin = MixedPrecision(precision, "cpu", scalers[0])
        found = lightning.fit(plugins=[plugin]).recorder
        # the factor of the loss is read off a gradient that was rounded once
        rounding = torch.finfo(low).eps
        assert_same(found, plain(low=low, scaler=scalers[1])[0], rtol=rounding)


@pytest.mark.slow
def test_lightning_compiles_the_module(lightning):
    torch.compiler.reset()
    net = torch.compile(lightning.Classifier(), backend="aot_eager")
    assert_same(lightning.fit(net=net).recorder, plain()[0])


def test_lightnings_manual_optimization_is_recorded(lightning):
    class Manual(lightning.Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    assert_same(lightning.fit(net=Manual()).recorder, plain()[0])


def test_lightning_takes_weighted_samplers(lightning):
    sampler = WeightedRandomSampler(torch.arange(N) % 3, N)
    recorder = lightning.fit(train=lightning.loader(sampler=sampler)).recorder
    assert recorder.visits.sum(1).tolist() == [N] * EPOCHS
    assert not recorder.visits[:, ::3].any()


@pytest.mark.parametrize("curve", ["weight_norm", "input_gradient"])
def test_lightning_stops_at_the_peak(lightning, curve):
    values = [1.0, 2.0, 1.5, 9.0]
    stop = PeakStop(curve, **QUICK)
    stop._detector.update = fake(stop._detector.update, values)
    callback = lightning.LightningRecorder(N, stop=stop)
    lightning.fit(callback, max_epochs=20)
    assert stop.peak == (1, 2) and callback.recorder.n_epochs == 3
    assert best_weights(stop, lightning)


def fake(update, values):
    """Replace the curve by these values."""
    curve = iter(values)
    return lambda _: update(next(curve))


@pytest.mark.parametrize("steps", [None, 5, 2])
@pytest.mark.parametrize("validate", [False, True])
def test_lightning_resumes_from_a_checkpoint(lightning, tmp_path, validate, steps):
    from lightning.pytorch.callbacks import ModelCheckpoint

    def fit(epochs, ckpt_path=None):
        callback = lightning.LightningRecorder(N, stop=PeakStop(patience=9))
        saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=steps)
        lightning.fit(
            [callback, saver], max_epochs=epochs, ckpt_path=ckpt_path, enable_checkpointing=True,
            validate=lightning.loader() if validate else None,
        )  # fmt: skip
        return callback

    fit(2)
    saved = tmp_path / f"step={steps or 5}.ckpt"  # five steps are an epoch, two are within it
    callback = fit(EPOCHS, saved)
    assert len(callback.stop.values) == EPOCHS
    if steps == 2:  # Lightning resumes at the third step, but its loader at the first batch
        visits = callback.recorder.visits
        assert visits[0].tolist() == [2] * 2 * SIZE + [1] * SIZE + [0] * (N - 3 * SIZE)
        assert visits[1:].unique().tolist() == [1]
    else:
        assert_same(callback.recorder, plain()[0])


def test_a_peak_detected_as_lightning_resumes_adds_no_epoch(lightning, tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    def fit(values, **how):
        stop = PeakStop(**QUICK)
        callback = lightning.LightningRecorder(N, stop=stop)
        stop.update = lambda net, recorder: bool(values) and values.pop(0)
        saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=5)
        lightning.fit([callback, saver], enable_checkpointing=True, max_epochs=4, **how)
        return callback

    fit([])
    callback = fit([True], ckpt_path=tmp_path / "step=10.ckpt")
    assert callback.recorder.n_epochs == 2 and not callback.recorder.in_epoch


def test_a_lightning_callback_is_for_one_training(lightning, tmp_path):
    callback = lightning.fit(max_epochs=1)
    with pytest.raises(ValueError, match=r"holds 1 epochs .* new callback for each training"):
        lightning.fit(callback)
    state = callback.state_dict()
    again = lightning.LightningRecorder(N, stop=PeakStop())
    with pytest.raises(ValueError, match=r"written without a PeakStop"):
        again.load_state_dict(state)
    with pytest.raises(ValueError, match=r"recorded by 2 processes, this training has 1"):
        again.load_state_dict(state | {"world_size": 2})
    assert again.recorder.n_epochs == 0


def test_layers_before_the_hooked_submodule_are_trained(lightning):
    class Stemmed(lightning.Classifier):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.net(self.stem(x))

    with pytest.raises(ValueError, match=r"or on the whole network"):
        lightning.fit(lightning.LightningRecorder(N, module="net"), net=Stemmed())
    net = Stemmed()
    before = net.stem.weight.clone()
    assert lightning.fit(net=net).recorder.n_epochs == EPOCHS
    assert not torch.equal(net.stem.weight, before)


def test_unusable_lightning_batches_losses_and_modules_are_refused(lightning):
    bare = torch.utils.data.DataLoader(TensorDataset(X, Y), SIZE)
    with pytest.raises(ValueError, match=r"no index and labels \(list of 2\): wrap .*with_index"):
        net = lightning.Classifier()
        net.training_step = lambda batch, batch_idx: net(batch[0]).sum()
        lightning.fit(net=net, train=bare)
    assert not net._forward_hooks
    net = lightning.Classifier(smoothing=0.3)
    with pytest.raises(ValueError, match=r"differs by \d+% from that of the cross-entropy"):
        lightning.fit(net=net, max_epochs=30)
    callback = lightning.LightningRecorder(N, module="net.0")
    with pytest.raises(ValueError, match=r"returned \(8, 4, 4, 4\); expected logits"):
        lightning.fit(callback)


def test_batches_may_be_dicts(lightning):
    from memlens.tracking.integrations.lightning import index_and_labels

    assert index_and_labels({"index": 1, "label": 2}) == (1, 2)
    with pytest.raises(ValueError, match=r"no index and labels \(\['x'\]\)"):
        index_and_labels({"x": 1})
    with pytest.raises(ValueError, match="list of 3"):
        index_and_labels([X, Y, Y])


@pytest.mark.slow
def test_lightning_in_two_processes_records_what_one_does(lightning, tmp_path):
    gathered, results = run_processes("lightning", tmp_path)
    expected, _ = plain(global_batches())
    for recorder, result in zip(gathered, results, strict=True):
        assert_same(recorder, expected)
        assert result["share"] == [(N + 1) // 2] * EPOCHS


# ---------------------------------------------------------------------------- Hugging Face


@pytest.fixture
def huggingface():
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    import huggingface_task

    return huggingface_task


@pytest.mark.parametrize("workers", [0, 2])
def test_the_trainer_gives_the_scores_of_the_plain_loop(huggingface, tmp_path, workers):
    callback = huggingface.TrainerRecorder(N)
    huggingface.fit(tmp_path, callback, dataloader_num_workers=workers)
    assert_same(callback.recorder, plain()[0])


def test_recording_does_not_change_the_trainers_training(huggingface, tmp_path):
    from transformers import TrainerCallback

    nets = [huggingface.Classifier(), huggingface.Classifier()]
    train = huggingface.Dicts()
    huggingface.fit(tmp_path, TrainerCallback(), nets[0], train)
    huggingface.fit(tmp_path, net=nets[1])
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)
    assert not nets[1]._forward_hooks and not nets[1]._forward_pre_hooks


@pytest.mark.parametrize("accumulate", [2, 3])
@pytest.mark.parametrize("counting", [False, True])
def test_the_trainers_accumulation_is_divided_out(huggingface, tmp_path, accumulate, counting):
    net = huggingface.Counting() if counting else huggingface.Classifier()
    callback = huggingface.fit(tmp_path, net=net, gradient_accumulation_steps=accumulate)
    assert_same(callback.recorder, plain(accumulate=accumulate, by_items=counting)[0])


def test_evaluation_is_not_recorded_with_or_without_an_index(huggingface, tmp_path):
    for validate in (huggingface.Dicts(), with_index(huggingface.Dicts())):
        callback = huggingface.fit(tmp_path, validate=validate, eval_strategy="epoch")
        assert_same(callback.recorder, plain()[0])


def test_the_trainer_in_bfloat16_gives_what_a_plain_loop_in_bfloat16_gives(huggingface, tmp_path):
    callback = huggingface.fit(tmp_path, bf16=True)
    assert_same(callback.recorder, plain(low=torch.bfloat16)[0])


@pytest.mark.slow
def test_a_net_of_transformers_is_recorded_in_any_precision(huggingface, tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    class Logits(torch.nn.Module):  # the net as a plain loop calls it
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x).logits

    def build():
        torch.manual_seed(0)
        return ViTForImageClassification(
            ViTConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                image_size=6, patch_size=2, num_channels=1, num_labels=4,
            )
        )  # fmt: skip

    for low in (None, torch.bfloat16):
        callback = huggingface.TrainerRecorder(N, input="pixel_values")
        settings = {"gradient_accumulation_steps": 3, "bf16": low is not None}
        huggingface.fit(tmp_path, callback, build(), **settings)
        net = Logits(build()).train()
        expected, _ = plain(net=net, low=low, accumulate=3, by_items=True)
        assert_same(callback.recorder, expected)


@pytest.mark.slow
def test_the_trainer_compiles_the_net(huggingface, tmp_path):
    torch.compiler.reset()
    callback = huggingface.fit(tmp_path, torch_compile=True, torch_compile_backend="aot_eager")
    assert_same(callback.recorder, plain()[0])


def test_the_trainer_stops_at_the_peak(huggingface, tmp_path):
    stop = PeakStop(**QUICK)
    stop._detector.update = fake(stop._detector.update, [1.0, 2.0, 1.5, 9.0])
    callback = huggingface.TrainerRecorder(N, stop=stop, input="pixel_values")
    huggingface.fit(tmp_path, callback, num_train_epochs=20)
    assert stop.peak == (1, 2) and callback.recorder.n_epochs == 3
    assert best_weights(stop, huggingface)


@pytest.mark.parametrize(
    ("settings", "step"),
    [({"save_strategy": "epoch"}, 5), ({"save_strategy": "steps", "save_steps": 3}, 3),
     ({"save_strategy": "steps", "save_steps": 5}, 5)],
)  # fmt: skip
@pytest.mark.slow
def test_the_trainer_resumes_from_a_checkpoint(huggingface, tmp_path, settings, step):
    callback = huggingface.TrainerRecorder(N, stop=PeakStop(patience=9))
    huggingface.fit(tmp_path, callback, num_train_epochs=2, **settings)
    checkpoint = tmp_path / f"checkpoint-{step}"
    callback = huggingface.TrainerRecorder(N, stop=PeakStop(patience=9))
    huggingface.fit(tmp_path, callback, resume=str(checkpoint), **settings)
    assert_same(callback.recorder, plain()[0])
    assert len(callback.stop.values) == EPOCHS
    (checkpoint / "memlens_recorder_0.pt").unlink()
    with pytest.raises(ValueError, match=rf"resumes from step {step}, but .* does not exist"):
        huggingface.fit(tmp_path, resume=str(checkpoint), **settings)


def test_a_peak_detected_as_the_trainer_resumes_adds_no_epoch(huggingface, tmp_path):
    def fit(values, **how):
        stop = PeakStop(**QUICK)
        callback = huggingface.TrainerRecorder(N, stop=stop)
        stop.update = lambda net, recorder: bool(values) and values.pop(0)
        return huggingface.fit(
            tmp_path, callback, num_train_epochs=4, save_strategy="steps", save_steps=5, **how
        )

    fit([])
    callback = fit([True], resume=str(tmp_path / "checkpoint-10"))
    assert callback.recorder.n_epochs == 2 and not callback.recorder.in_epoch


def test_a_trainers_callback_is_for_one_training(huggingface, tmp_path):
    callback = huggingface.fit(tmp_path, num_train_epochs=2, save_strategy="epoch")
    with pytest.raises(ValueError, match=r"holds 2 epochs .* new callback for each training"):
        huggingface.fit(tmp_path, callback)
    checkpoint = tmp_path / "checkpoint-5"
    with pytest.raises(ValueError, match=r"written without a PeakStop"):
        again = huggingface.TrainerRecorder(N, stop=PeakStop())
        huggingface.fit(tmp_path, again, resume=str(checkpoint))
    path = checkpoint / "memlens_recorder_0.pt"
    torch.save(torch.load(path) | {"world_size": 2}, path)
    with pytest.raises(ValueError, match=r"recorded by 2 processes, this training has 1"):
        huggingface.fit(tmp_path, resume=str(checkpoint))


def test_the_next_training_removes_the_hooks_of_an_interrupted_one(huggingface, tmp_path):
    from transformers import TrainerCallback

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise KeyboardInterrupt

    net, callback = huggingface.Classifier(), huggingface.TrainerRecorder(N)
    with pytest.raises(KeyboardInterrupt):
        huggingface.fit(tmp_path, [callback, Interrupt()], net)
    assert net._forward_hooks
    assert huggingface.fit(tmp_path, net=net).recorder.n_epochs == EPOCHS
    assert not net._forward_hooks and not net._forward_pre_hooks


def test_a_training_that_ends_within_an_epoch_keeps_its_steps(huggingface, tmp_path):
    callback = huggingface.fit(tmp_path, max_steps=7)
    assert callback.recorder.visits.sum(1).tolist() == [N, 2 * SIZE]


def test_a_missing_index_or_missing_labels_are_refused(huggingface, tmp_path):
    message = r"ml.with_index, and set remove_unused_columns=False"
    with pytest.raises(ValueError, match=message):
        huggingface.fit(tmp_path, train=huggingface.Dicts())
    with pytest.raises(ValueError, match=message):
        huggingface.fit(tmp_path, remove_unused_columns=True)
    net = huggingface.Classifier()
    net.config = SimpleNamespace(problem_type=None)
    with pytest.raises(ValueError, match=r"leave label_smoothing_factor at 0"):
        huggingface.fit(tmp_path, net=net, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match=r"compute_loss_func, which removes the labels"):
        loss = lambda out, labels, **_: torch.nn.functional.cross_entropy(out["logits"], labels)  # noqa: E731
        huggingface.fit(tmp_path, net=huggingface.Classifier(), loss=loss)


@pytest.mark.slow
def test_the_trainer_in_two_processes_records_what_one_does(huggingface, tmp_path):
    gathered, results = run_processes("huggingface", tmp_path)
    order = torch.cat([torch.arange(N), torch.arange(11)])  # accelerate fills up from the start
    expected, _ = plain(order.split(2 * SIZE))
    for recorder, result in zip(gathered, results, strict=True):
        assert_same(recorder, expected)
        assert result["share"] == [3 * SIZE] * EPOCHS
