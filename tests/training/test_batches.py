"""What a loop is fed. That no step of it waits for a GPU: `test_gpu`."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import memlens as ml
from memlens.data import folders
from memlens.data.samples import Augmentation, from_arrays
from memlens.training.batches import Batches, sequential_batches
from memlens.training.config import TrainConfig, mixed_seed
from memlens.training.devices import Engine
from memlens.training.loop import train

RECIPE = TrainConfig(batch_size=7, augment="crop_flip")


@pytest.fixture
def colour():
    rng = np.random.default_rng(0)
    images = lambda n: rng.integers(256, size=(n, 3, 16, 16), dtype=np.uint8)  # noqa: E731
    return from_arrays("colour", (images(20), np.arange(20) % 4), (images(8), np.arange(8) % 4))


def shown(data, i, augmentation, pad):
    """Sample ``i`` as a net sees it, one image, by hand: padded, cut, mirrored, normalised."""
    image = np.pad(data.train.images[i].numpy(), ((0, 0), (pad, pad), (pad, pad)))
    row, column, size = int(augmentation.rows[i]), int(augmentation.columns[i]), data.in_shape[-1]
    image = image[:, row : row + size, column : column + size]
    image = image[:, :, ::-1] if augmentation.mirrored[i] else image
    mean, std = (np.array(v)[:, None, None] for v in (data.mean, data.std))
    return (image / 255 - mean) / std


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_are_each_image_cropped_by_hand(colour, channels_last):
    engine = Engine(channels_last=channels_last)
    batches, order = Batches(colour, RECIPE, engine), torch.randperm(20)
    augmentation = Augmentation.draw(20, 2, True, mixed_seed(3, 5, 1))
    sizes = []
    for index, x, y in batches.of_epoch(order.split(7), seed=3, epoch=5):
        expected = np.stack([shown(colour, i, augmentation, 2) for i in index.tolist()])
        assert x.numpy() == pytest.approx(expected, abs=1e-5)
        assert x.is_contiguous(memory_format=engine.memory_format)
        assert torch.equal(y, colour.train.labels[index])
        sizes.append(len(index))
    assert sizes == [7, 7, 6]
    assert augmentation.mirrored.any() and not augmentation.mirrored.all()


def test_padding_is_black_not_the_mean(colour):
    white = replace(colour.train, images=torch.full_like(colour.train.images, 255))
    batches = Batches(replace(colour, train=white), RECIPE, Engine())
    x = torch.cat([x for _, x, _ in batches.of_epoch(torch.arange(20).split(7), 0, 0)])
    black = -torch.tensor(colour.mean) / torch.tensor(colour.std)
    assert x.amin((0, 2, 3)) == pytest.approx(black, abs=1e-5)


def test_nets_see_moves_of_their_own(colour):
    batches = Batches(colour, RECIPE, Engine())
    augmentation, index = (
        batches.augmentation([4, 9], epoch=1),
        torch.stack([torch.arange(5), torch.arange(5) + 3]),
    )
    x = batches.inputs(index, augmentation)
    for net, seed in enumerate((4, 9)):
        alone = Batches(colour, RECIPE, Engine()).augmentation([seed], epoch=1)
        assert torch.equal(x[net], batches.inputs(index[net], alone))
    assert not torch.equal(x[0, 3], x[1, 0])  # the same sample, moved otherwise


def test_ready_inputs_are_those_made_batch_by_batch(colour, monkeypatch):
    plain = replace(RECIPE, augment="none")
    ready = [
        x for _, x, _ in Batches(colour, plain, Engine()).of_epoch(torch.arange(20).split(7), 0, 0)
    ]
    monkeypatch.setattr("memlens.training.batches.READY_BYTES", 0)
    made = [
        x for _, x, _ in Batches(colour, plain, Engine()).of_epoch(torch.arange(20).split(7), 0, 0)
    ]
    assert all(map(torch.equal, ready, made))


def test_in_order_visits_every_sample_once(colour):
    parts = list(sequential_batches(colour.train, 6, torch.device("cpu")))
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
@pytest.mark.slow
def test_a_training_from_a_folder_is_that_from_memory(colour, tmp_path, augment):
    folder_of(colour, tmp_path)
    streamed = folders.folder_dataset("folder", tmp_path, size=16, resize=16)
    parts = {
        part: replace(getattr(streamed, part), images=getattr(streamed, part).images[:])
        for part in ("train", "test")
    }
    measure = ml.MeasureConfig(posthoc=True, n_directions=2, logit_gradients=True)
    config = TrainConfig(epochs=2, batch_size=8, augment=augment)
    runs = [
        train("small_cnn_bn", d, config, measure) for d in (streamed, replace(streamed, **parts))
    ]
    for name in runs[0].arrays:
        if name != "history/seconds":
            assert np.array_equal(*(run.arrays[name] for run in runs), equal_nan=True), name
