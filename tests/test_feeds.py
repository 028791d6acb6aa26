"""What a loop is fed, and that no step waits for the device."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import memlens as ml
from memlens import feeds, models, signals
from memlens.data import Moves, from_arrays
from memlens.devices import Engine
from memlens.epochs import Epoch
from memlens.feeds import Feed, in_order
from memlens.recipes import OPTIMIZERS, Recipe, mixed_seed
from memlens.recorder import Recorder
from memlens.steps import train_step
from memlens.training import train
from memlens.watching import Watched, from_loss

RECIPE = Recipe(batch_size=7, augment="crop_flip")


@pytest.fixture
def colour():
    rng = np.random.default_rng(0)
    images = lambda n: rng.integers(256, size=(n, 3, 16, 16), dtype=np.uint8)  # noqa: E731
    return from_arrays("colour", (images(20), np.arange(20) % 4), (images(8), np.arange(8) % 4))


def shown(data, i, moves, pad):
    """Sample ``i`` as a net sees it, one image, by hand: padded, cut, mirrored, normalised."""
    image = np.pad(data.train.images[i].numpy(), ((0, 0), (pad, pad), (pad, pad)))
    row, column, size = int(moves.rows[i]), int(moves.columns[i]), data.in_shape[-1]
    image = image[:, row : row + size, column : column + size]
    image = image[:, :, ::-1] if moves.mirrored[i] else image
    mean, std = (np.array(v)[:, None, None] for v in (data.mean, data.std))
    return (image / 255 - mean) / std


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_are_each_image_cropped_by_hand(colour, channels_last):
    engine = Engine(channels_last=channels_last)
    feed, order = Feed(colour, RECIPE, engine), torch.randperm(20)
    moves = Moves.draw(20, 2, True, mixed_seed(3, 5, 1))
    sizes = []
    for index, x, y in feed.batches(order, seed=3, epoch=5):
        expected = np.stack([shown(colour, i, moves, 2) for i in index.tolist()])
        assert x.numpy() == pytest.approx(expected, abs=1e-5)
        assert x.is_contiguous(memory_format=engine.memory_format)
        assert torch.equal(y, colour.train.labels[index])
        sizes.append(len(index))
    assert sizes == [7, 7, 6]
    assert moves.mirrored.any() and not moves.mirrored.all()


def test_padding_is_black_not_the_mean(colour):
    white = replace(colour.train, images=torch.full_like(colour.train.images, 255))
    feed = Feed(replace(colour, train=white), RECIPE, Engine())
    x = torch.cat([x for _, x, _ in feed.batches(torch.arange(20), 0, 0)])
    black = -torch.tensor(colour.mean) / torch.tensor(colour.std)
    assert x.amin((0, 2, 3)) == pytest.approx(black, abs=1e-5)


def test_nets_see_moves_of_their_own(colour):
    feed = Feed(colour, RECIPE, Engine())
    moves, index = feed.moves([4, 9], epoch=1), torch.stack([torch.arange(5), torch.arange(5) + 3])
    x = feed.inputs(index, moves)
    for net, seed in enumerate((4, 9)):
        alone = Feed(colour, RECIPE, Engine()).moves([seed], epoch=1)
        assert torch.equal(x[net], feed.inputs(index[net], alone))
    assert not torch.equal(x[0, 3], x[1, 0])  # the same sample, moved otherwise


def test_ready_inputs_are_those_made_batch_by_batch(colour, monkeypatch):
    plain = replace(RECIPE, augment="none")
    ready = [x for _, x, _ in Feed(colour, plain, Engine()).batches(torch.arange(20), 0, 0)]
    monkeypatch.setattr(feeds, "READY_BYTES", 0)
    made = [x for _, x, _ in Feed(colour, plain, Engine()).batches(torch.arange(20), 0, 0)]
    assert all(map(torch.equal, ready, made))


def test_in_order_visits_every_sample_once(colour):
    parts = list(in_order(colour.train, 6, torch.device("cpu")))
    assert [len(y) for _, y in parts] == [6, 6, 6, 2]
    assert torch.equal(torch.cat([images for images, _ in parts]), colour.train.images)


def folder_of(data, root):
    """The data as a folder of PNG files, which keep every pixel."""
    from PIL import Image

    for part in ("train", "val"):
        samples = data.train if part == "train" else data.test
        for i, (image, y) in enumerate(zip(samples.images, samples.labels.tolist(), strict=True)):
            place = root / part / f"class{y}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{i:03}.png")


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_a_training_from_a_folder_is_that_from_memory(colour, tmp_path, augment):
    folder_of(colour, tmp_path)
    streamed = ml.folders.folder_dataset("folder", tmp_path, size=16, resize=16)
    parts = {
        part: replace(getattr(streamed, part), images=getattr(streamed, part).images[:])
        for part in ("train", "test")
    }
    measure = ml.Measure(posthoc=True, curvature_probes=2, logit_gradients=True)
    recipe = Recipe(epochs=2, batch_size=8, augment=augment)
    runs = [
        train("small_cnn_bn", d, recipe, measure) for d in (streamed, replace(streamed, **parts))
    ]
    for name in runs[0].arrays:
        if name != "history/seconds":
            assert np.array_equal(*(run.arrays[name] for run in runs), equal_nan=True), name


class NoWaiting(TorchDispatchMode):
    """Fails on what makes the host wait for a GPU: values that are looked at, sizes of results."""

    WAITS = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.WAITS or by_mask:
            raise AssertionError(f"{function} waits for the device")
        return function(*args, **(kwargs or {}))


def steps(data, engine, monkeypatch):
    net = engine.place(models.build("small_cnn_bn", 4, data.in_shape)).train()
    optimizer, recorder = OPTIMIZERS["sgd"](net.parameters(), RECIPE), Recorder(20, flush_bytes=1)
    # On a CPU indices are checked at once, which costs nothing there and would be seen here.
    monkeypatch.setattr(Epoch, "check_bounds", lambda self: None)
    batches = Feed(data, RECIPE, engine).batches(torch.arange(20), 0, 0)
    first = next(batches)  # what is drawn for the epoch comes over before its first batch
    return net, optimizer, recorder, [first], batches


@pytest.mark.parametrize("bfloat16", [False, True])
def test_no_step_waits_for_the_device(colour, monkeypatch, bfloat16):
    engine = Engine(bfloat16=bfloat16, channels_last=True)
    net, optimizer, recorder, first, rest = steps(colour, engine, monkeypatch)
    with NoWaiting():
        for part in (first, rest):
            for index, x, y in part:
                train_step(engine.forward(net), optimizer, x, y, recorder, index, 0.05)
    assert recorder.end_epoch()["loss"] > 0


def test_waiting_is_noticed():
    x = torch.tensor([1.0, 2.0])
    for wait in (lambda: x.sum().item(), lambda: x[x > 1], lambda: torch.bincount(x.long())):
        with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
            wait()


def test_everything_of_a_step_is_on_the_device(colour):
    """On a pretended GPU: a tensor left on the CPU would not meet those on it."""
    device = torch.device("cuda", 0)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        feed, recorder = Feed(colour, RECIPE, Engine(device, channels_last=True)), Recorder(20)
        weight = fake.from_tensor(torch.randn(4, 3 * 16 * 16)).to(device)
        for index, x, y in feed.batches(torch.arange(20), 0, 0):
            assert {t.device for t in (index, x, y)} == {device}
            logits = x.flatten(1) @ weight.T
            assert signals.loss(logits, y).device == device
            x.grad = torch.ones_like(x)
            recorder.update(index, x, logits, y)
        recorder._epoch.flush()
        assert recorder._epoch._values.device == device


@pytest.mark.parametrize("visits", ["once", "any"])
def test_no_step_of_a_foreign_loop_waits_for_the_device(colour, monkeypatch, visits):
    net = models.build("small_cnn_bn", 4, colour.in_shape)
    recorder = Recorder(20, flush_bytes=1, visits=visits)
    monkeypatch.setattr(Epoch, "check_bounds", lambda self: None)
    x, y, scale = colour.train.images.float(), colour.train.labels, torch.tensor(0.5)
    with Watched(net, recorder) as watched, NoWaiting():
        for index in torch.arange(20).split(8):
            (F.cross_entropy(net(x[index]), y[index]) * scale).backward()
            watched.update(index, y[index])
    assert watched.end_epoch()["loss"] > 0
    with NoWaiting():
        batch = recorder.watch(x)
        logits = net(batch)
        (F.cross_entropy(logits, y) * scale).backward()
        recorder.update(torch.arange(20), batch, logits, y, loss_scale=scale)
    assert recorder.end_epoch()["loss"] > 0


def test_reading_the_scale_off_the_loss_does_not_wait_either():
    logits, y = torch.randn(6, 3), torch.arange(6) % 3
    with NoWaiting():
        from_loss(logits, y, torch.tensor(2.0), torch.tensor(6))
