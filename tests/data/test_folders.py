"""Folders of images: order, decoding, streams, and what never decodes."""

import io
import multiprocessing
import os
import pickle
import shutil
import threading
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import memlens as ml
from memlens.data import folders, imagesets
from memlens.data.folders import FolderImages, folder_dataset
from memlens.storage import store

REFERENCE = transforms.Compose(
    [transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()]
)
SHAPES = {  # width, height, mode, ending; the sides that round differently are odd
    "cat": [(300, 200, "RGB", "JPEG"), (57, 91, "L", "png"), (224, 224, "RGB", "PNG")],
    "dog": [(333, 501, "P", "png"), (256, 256, "RGB", "jpg"), (301, 257, "CMYK", "JPEG")],
    "owl": [(40, 300, "RGBA", "png"), (1, 1, "1", "png"), (640, 427, "L", "jpeg")],
}


def picture(width, height, mode, seed):
    rng = np.random.default_rng(seed)
    small = rng.integers(256, size=(max(1, height // 9), max(1, width // 9), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height)).convert(mode)


def plant(root, part="val"):
    """A tree of three classes, the names written so that their order is not the writing's."""
    for p, n in (("train", 3), (part, 2)):
        for c in reversed(SHAPES):
            (root / p / c).mkdir(parents=True)
            for i, (width, height, mode, ending) in enumerate(SHAPES[c][:n]):
                name = f"{'Zbé'[i]} {c}_{10 - i}.{ending}"
                picture(width, height, mode, [p == "train", i, ord(c[0])]).save(root / p / c / name)
            (root / p / c / "notes.txt").write_text("no image")
        (root / p / "loose.png").write_bytes(b"no class")
    return root


@pytest.fixture
def root(tmp_path):
    return plant(tmp_path / "pets")


@pytest.fixture
def pets(root):
    return folder_dataset("pets", root)


@pytest.fixture
def undecoded(monkeypatch):
    """Whoever decodes an image fails."""

    def fail(path):
        raise AssertionError(f"{path} was decoded")

    monkeypatch.setattr(folders, "_rgb", fail)


def reference(root, part):
    return ImageFolder(root / part, transform=REFERENCE)


# -------------------------------------------------------------------- order, labels and pixels


def test_the_order_is_torchvisions(pets, root):
    for part, samples in (("train", pets.train), ("val", pets.test)):
        expected = reference(root, part).samples
        found = [str(samples.images.path(i)) for i in range(len(samples))]
        assert found == [path for path, _ in expected]
        assert samples.labels.tolist() == samples.clean_labels.tolist() == [y for _, y in expected]
        assert samples.index.tolist() == list(range(len(expected)))
    assert pets.class_names == ("cat", "dog", "owl")
    assert (len(pets.train), len(pets.test), pets.in_shape) == (9, 6, (3, 224, 224))
    assert (pets.name, pets.pixel_max, pets.mean) == ("pets", 255.0, (0.485, 0.456, 0.406))


def test_images_in_folders_below_the_class_come_where_torchvision_has_them(root):
    for below in ("c", "a", "f", "a/b", "B", "e", "a/B", "d"):  # no order of creation is theirs
        (root / "train" / "dog" / below).mkdir()
        picture(30, 40, "RGB", 0).save(root / "train" / "dog" / below / "0.png")
    images = folder_dataset("pets", root).train.images
    found = [str(images.path(i)) for i in range(len(images))]
    assert found == [path for path, _ in reference(root, "train").samples]
    assert len(found) == 17


def test_pixels_are_torchvisions_bit_for_bit(pets, root):
    for part, images in (("train", pets.train.images), ("val", pets.test.images)):
        expected = torch.stack([x for x, _ in reference(root, part)])
        assert torch.equal(images[:], expected)
        assert torch.equal(images[1], expected[1])
    assert len({x.numpy().tobytes() for x in pets.train.images}) == 9  # it is no constant


def test_another_size_is_cut_from_another_resize(root):
    images = folder_dataset("pets", root, size=31, resize=48).train.images
    steps = [transforms.Resize(48), transforms.CenterCrop(31), transforms.PILToTensor()]
    expected = ImageFolder(root / "train", transform=transforms.Compose(steps))
    assert torch.equal(images[:], torch.stack([x for x, _ in expected]))
    assert images.shape == (9, 3, 31, 31)
    with pytest.raises(ValueError, match=r"size is 49, resize 48; expected 1 <= size <= resize"):
        folder_dataset("pets", root, size=49, resize=48)


def test_it_stands_where_a_tensor_stands(pets):
    lazy = pets.train.images
    images = lazy[:]
    for part in ("shape", "ndim", "dtype", "device"):
        assert getattr(lazy, part) == getattr(images, part)
    assert lazy.is_floating_point() is False and len(lazy) == 9
    mask = pets.train.labels == 1
    for which in (3, -1, np.int64(2), torch.tensor(4), slice(1, 7, 2), mask, [0, -2, 0], []):
        assert torch.equal(lazy[which], images[which])
        if np.ndim(which):
            assert torch.equal(lazy.subset(which)[:], images[which])
    assert torch.equal(lazy[mask.numpy()], images[mask])
    assert torch.equal(lazy[torch.tensor([5, 2])], images[[5, 2]])
    assert torch.equal(lazy.subset(slice(2, 8)).subset([4, 0])[1], images[2])
    assert torch.equal(pickle.loads(pickle.dumps(lazy.subset(mask)))[:], images[mask])
    lazy[0].zero_()  # what was given out can be edited
    assert torch.equal(lazy[0], images[0]) and images[0].any()


def test_bad_indices_are_refused(pets):
    images = pets.train.images
    for which in (9, [0, 9], torch.ones(8, dtype=torch.bool), [[0], [1]], [0.5], None, "cat"):
        with pytest.raises(IndexError):
            images[which]
        with pytest.raises(IndexError):
            images.subset(which)
    with pytest.raises(IndexError, match=r"subset\(3\) is a single image; use subset\(\[3\]\)"):
        images.subset(3)


# ------------------------------------------------------------------------ what does not decode


def test_subsets_noise_and_keys_decode_nothing(root, undecoded):
    pets = folder_dataset("pets", root)
    chosen = pets.train[torch.tensor([5, 1])]
    assert isinstance(chosen.images, FolderImages) and chosen.index.tolist() == [5, 1]
    part = pets.subset(6).with_noise(0.5)
    assert torch.bincount(part.train.clean_labels).tolist() == [2, 2, 2]
    assert part.train.images.shape == (6, 3, 224, 224)
    assert pets.with_noise(0.5).train.is_noisy.sum() == 4
    assert store.fingerprint(pets) != store.fingerprint(pets.with_noise(0.5))
    assert repr(pets.train) == "Samples(9 images (3, 224, 224) uint8)" and pickle.dumps(pets)
    with pytest.raises(AssertionError, match="was decoded"):  # the trap is set
        chosen.images[0]


def test_names_need_not_be_text(tmp_path):
    name = os.fsdecode(b"\xff\n.png")
    images = FolderImages(tmp_path, ["a.png", name, "b.png"])
    assert [images.path(i).name for i in (1, -1)] == [name, "b.png"]


def test_a_subset_shows_the_images_of_its_index(pets):
    part = pets.subset(4).train
    assert torch.equal(part.images[:], pets.train.images[part.index])


def test_the_fingerprint_knows_names_sizes_and_order(pets, root, tmp_path):
    def of(place=root, **sizes):
        return store.fingerprint(folder_dataset("pets", place, **sizes))

    first = of()
    assert first == of() == store.fingerprint(pets)
    shutil.copytree(root, tmp_path / "elsewhere")
    assert of(tmp_path / "elsewhere") == first
    assert len({first, of(size=200), of(resize=300)}) == 3
    images = pets.train.images
    prints = {images.subset(w).fingerprint() for w in ([0, 1], [1, 0], [0], slice(None))}
    assert len(prints) == 4 and images.fingerprint() in prints
    path = images.path(0)
    path.rename(path.with_name("another" + path.suffix))
    renamed = of()
    with open(path.with_name("another" + path.suffix), "ab") as file:
        file.write(b"\0")
    assert len({first, renamed, of()}) == 3


# -------------------------------------------------------------------------------------- streams


BATCHES = [[3, 1], [8, 0, 0, 5], [], [2], [7, 6, 4]]


def index_batches():
    return (torch.tensor(b, dtype=torch.int64) for b in BATCHES)


def readers():
    """Threads of streams."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.setattr(folders, "_n_threads", lambda: 2)


@pytest.mark.usefixtures("two_threads")
def test_a_stream_is_direct_indexing_in_order(pets):
    images = pets.train.images.subset(slice(None, None, -1))
    state = torch.get_rng_state()
    found = list(images.stream(index_batches()))
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(x) for x in found] == [2, 4, 0, 1, 3]
    for x, batch in zip(found, BATCHES):
        assert x.dtype == torch.uint8 and x.shape[1:] == (3, 224, 224)
        assert torch.equal(x, images[batch])
    assert readers() == []


@pytest.mark.usefixtures("two_threads")
def test_a_stream_that_is_left_early_ends_its_threads(pets):
    images, many = pets.train.images, [torch.tensor([0])] * 50
    for x in images.stream(many):
        assert len(x) == 1 and len(readers()) == 2
        break
    assert readers() == []
    stream = images.stream(many)
    next(stream)
    assert len(readers()) == 2  # they live while the stream does
    stream.close()
    assert readers() == []
    with pytest.raises(KeyError) as error:
        for _ in images.stream(many):
            raise KeyError("consumer")
    assert readers() == [] and error.value.__traceback__
    images.stream(many)  # never begun
    assert readers() == []


@pytest.mark.usefixtures("two_threads")
def test_a_damaged_file_in_a_stream_is_named_and_ends_the_threads(pets):
    path = pets.train.images.path(4)
    for later in (path, pets.train.images.path(5)):  # the first in the order is named
        later.write_bytes(later.read_bytes()[:-200])
    stream = pets.train.images.stream(torch.arange(9).split(2))
    assert len(next(stream)) == 2
    with pytest.raises(ValueError, match="cannot be decoded") as error:
        list(stream)
    assert str(path) in str(error.value)
    assert readers() == []  # though the traceback holds the stream


@pytest.mark.usefixtures("two_threads")
def test_a_stream_starts_no_process(pets, monkeypatch):
    """A forked one may wait for ever for a lock that another thread held, as those of gloo do."""

    def fail(*args):
        raise AssertionError("a process was started")

    monkeypatch.setattr(os, "fork", fail)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", fail)
    assert sum(map(len, pets.train.images.stream(index_batches()))) == 10
    with pytest.raises(AssertionError, match="was started"):  # the trap is set
        list(DataLoader(pets.train.images, num_workers=1))


@pytest.mark.usefixtures("two_threads")
def test_a_stream_reads_only_two_batches_ahead(pets):
    """Memory is that of three batches, however many there are."""
    asked = []
    many = (asked.append(i) or torch.tensor([i % 9]) for i in range(1000))
    stream = pets.train.images.stream(many)
    for done in range(1, 6):
        next(stream)
        assert len(asked) == done + 2
    stream.close()


@pytest.mark.usefixtures("two_threads")
def test_an_interrupted_stream_decodes_no_more(pets, monkeypatch):
    """What is in work is finished, what waits is dropped."""
    begun, go_on = [], threading.Event()

    def waiting(path):
        begun.append(path)
        assert go_on.wait(60)
        return picture(30, 40, "RGB", 0)

    def interrupted(part):
        go_on.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "_rgb", waiting)
    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(pets.train.images.stream([torch.tensor([0, 1])] * 50))
    assert readers() == [] and len(begun) <= 6


@pytest.mark.usefixtures("two_threads")
def test_pillow_loads_its_formats_before_the_threads_start(pets, monkeypatch):
    """While one thread loads them, another can miss the format of its file."""
    order, decode = [], folders._rgb
    monkeypatch.setattr(Image, "init", lambda: order.append("formats"))
    monkeypatch.setattr(folders, "_rgb", lambda path: order.append("image") or decode(path))
    assert len(next(pets.train.images.stream([torch.tensor([0])]))) == 1
    assert order == ["formats", "image"]


# ------------------------------------------------------------------------------- damaged files


def test_a_file_that_cannot_be_decoded_is_named(pets):
    images, whole = pets.train.images, io.BytesIO()
    picture(300, 200, "RGB", 0).save(whole, "JPEG")
    whole = whole.getvalue()
    png = images.path(8).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no image", png[: len(png) // 2]):
        images.path(2).write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"cannot be decoded \(.*replace it with a good copy"
        ) as error:
            images[[0, 2]]
        assert str(images.path(2)) in str(error.value)
        images[[0, 1]]
    images.path(2).unlink()
    for look in (lambda: images[2], images.fingerprint):
        with pytest.raises(FileNotFoundError, match=images.path(2).name):
            look()


# --------------------------------------------------------------------------------- bad folders


def flat_val(root):
    for path in list((root / "val").glob("*/*")):
        path.rename(root / "val" / f"{path.parent.name} {path.name}")
    for path in (root / "val").iterdir():
        if path.is_dir():
            path.rmdir()


def emptied(place):
    for path in place.rglob("*.*"):
        if path.suffix != ".txt":
            path.unlink()


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (shutil.rmtree, FileNotFoundError, r"pets is not a folder; pass the one with train/"),
        (lambda r: shutil.rmtree(r / "train"), FileNotFoundError,
         r"pets has no folder train; pass .*train/<class>/ .*has: val\)"),
        (lambda r: shutil.rmtree(r / "val"), FileNotFoundError,
         r"has no folder val or test; .*has: train\)"),
        (flat_val, ValueError, r"val has no class folders; move each image .*valprep"),
        (lambda r: emptied(r / "train" / "dog"), ValueError,
         r"train has classes without an image: dog; add images to .* \(\.jpg, .*or remove"),
        (lambda r: (r / "train" / "eel").mkdir(), ValueError, "classes without an image: eel;"),
        (lambda r: (r / "train" / "owl").rename(r / "train" / "bat"), ValueError,
         r"val has classes that .*train lacks: owl; give the class folders the same names"),
        (lambda r: emptied(r / "val"), ValueError, "val has class folders but no image"),
    ],
)  # fmt: skip
def test_a_folder_of_another_layout_is_refused(root, harm, error, message):
    harm(root)
    with pytest.raises(error, match=message):
        folder_dataset("pets", root)


def test_a_folder_that_may_not_be_read_is_no_empty_class(root, monkeypatch):
    scandir = os.scandir

    def refuse(place):
        if str(place).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="dog"):
        folder_dataset("pets", root)


def test_a_long_list_of_classes_is_cut(root):
    for i in range(9):
        (root / "val" / f"x{i}").mkdir()
    with pytest.raises(ValueError, match=r"lacks: x0, x1, x2, x3, x4 and 4 more;"):
        folder_dataset("pets", root)


def test_a_class_may_be_missing_from_the_test_part(root):
    whole = folder_dataset("pets", root).test.images[:]
    shutil.rmtree(root / "val" / "cat")
    test = folder_dataset("pets", root).test
    assert test.labels.tolist() == [1, 1, 2, 2]
    assert torch.equal(test.images[:], whole[2:])


def test_test_stands_for_val_only_where_there_is_no_val(tmp_path):
    tested = folder_dataset("pets", str(plant(tmp_path / "a", "test")))
    assert len(tested.test) == 6
    both = plant(tmp_path / "b")
    (both / "test").mkdir()  # as ImageNet's own, without classes
    assert folder_dataset("pets", both).test.images.folder == both / "val"


# ------------------------------------------------------------------------------------- imagenet


def test_imagenet_is_a_folder_in_the_data_folder_or_elsewhere(root, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLENS_DATA", str(tmp_path / "data"))
    with pytest.raises(
        FileNotFoundError, match=r"data.imagenet is not a folder; pass .*root=\.\.\.\)"
    ):
        ml.load("imagenet")
    found = ml.load("imagenet", root=root)  # three classes: no copy of all of ImageNet
    assert found.name == "imagenet" and len(found.train) == 9
    plant(tmp_path / "data" / "imagenet")
    assert len(ml.load("imagenet").train) == 9
    with pytest.raises(ValueError, match="only imagenet takes a root, not digits"):
        ml.load("digits", root=root)
    with pytest.raises(ValueError, match=r"unknown data set 'x'; known: .*digits, .*imagenet, mn"):
        ml.load("x", root=root)


def test_another_number_of_images_than_imagenets_is_warned_of(tmp_path, monkeypatch):
    for part in ("train", "val"):
        for c in range(1000):
            (tmp_path / part / f"n{c:04}").mkdir(parents=True)
            (tmp_path / part / f"n{c:04}" / "0.JPEG").touch()
    expected = "has 1,000 training and 1,000 test images, ImageNet 1,281,167 and 50,000"
    with pytest.warns(UserWarning, match=expected) as caught:
        ml.load("imagenet", root=tmp_path)
    assert caught[0].filename == __file__
    monkeypatch.setattr(imagesets, "IMAGENET_COUNTS", (1000, 1000))
    ml.load("imagenet", root=tmp_path)
