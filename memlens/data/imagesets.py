"""Data sets by name: the shipped ones, the papers' image sets, ImageNet.

"digits" comes with scikit-learn, "fashion_small" with this package. Another image set is read from
``<name>.npz`` in the data folder (``MEMLENS_DATA``), or downloaded there through torchvision.
Scores and published memorization are joined by position, so the order of a file matters as much as
its pixels: both are compared with the specification in `SETS`, and a file that differs is refused.
For the images of CIFAR-10 the specification has no more than their mean.
"""

import hashlib
import warnings
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from memlens.data.folders import folder_dataset
from memlens.data.samples import Dataset, from_arrays, load_digits
from memlens.storage import store
from memlens.storage.store import Arrays

PARTS = ("train", "test")
MEAN_TOLERANCE = 5e-4  # of means in [0, 1]: the published ones have four digits
N_COMPARED = 10  # images compared in each part; a shuffled file passes only by chance


@dataclass(frozen=True)
class ImageSetSpec:
    """Known properties of an image set, with which every file of it is compared.

    Attributes
    ----------
    torchvision : str
        The class in ``torchvision.datasets`` that downloads the set.
    shape : tuple
        Of an image: (height, width) or (height, width, 3).
    counts : pair
        Samples of each class in train and in test; one number if it is the same for all classes.
    first : pair
        The first eight labels of train and of test.
    labels_sha256 : pair or None
        Of all labels as uint8, 16 hex digits, of train and test; None if unknown.
    mean : tuple
        Of the training pixels in [0, 1], one per channel.
    class_names : tuple of str
    images_sha256 : pair or None
        Of all pixels in C order, 16 hex digits, of train and test; None if unknown.
    image_means : pair or None
        The `image_means` of train and test; None if unknown.
    """

    torchvision: str
    shape: tuple[int, ...]
    counts: tuple[tuple[int, ...] | int, tuple[int, ...] | int]
    first: tuple[tuple[int, ...], tuple[int, ...]]
    labels_sha256: tuple[str, str] | None
    mean: tuple[float, ...]
    class_names: tuple[str, ...]
    images_sha256: tuple[str, str] | None = None
    image_means: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# First labels, counts, checksums and image means of MNIST, Fashion-MNIST and CIFAR-100 were
# computed from copies in the original order. For 82 training and 23 test images of that CIFAR-100
# (beavers, shrews, skunks) only the class is certain: a checksum of its images would refuse the
# true order, so ten images in certain positions are compared instead. First labels, counts and
# means of CIFAR-10 are those found in print; its images cannot be compared with their labels.
SETS: dict[str, ImageSetSpec] = {
    "mnist": ImageSetSpec(
        "MNIST", (28, 28),
        ((5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
         (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)),
        ((5, 0, 4, 1, 9, 2, 1, 3), (7, 2, 1, 0, 4, 1, 4, 9)),
        ("1feba77c54802fa5", "ddeff807876a9661"), (0.1307,), tuple("0123456789"),
        images_sha256=("741c988805d008ac", "6d87418db22cc802"),
    ),
    "fashion_mnist": ImageSetSpec(
        "FashionMNIST", (28, 28), (6000, 1000),
        ((9, 0, 0, 3, 0, 2, 7, 2), (9, 2, 1, 1, 6, 1, 4, 6)),
        ("657fbd221bfc9f41", "3d0e6c6ea990b53b"), (0.2860,),
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
         "Ankle boot"),
        images_sha256=("2e487a6c89124f78", "c867c93ff9536059"),
    ),
    "cifar10": ImageSetSpec(
        "CIFAR10", (32, 32, 3), (5000, 1000),
        ((6, 9, 9, 4, 1, 1, 2, 7), (3, 8, 8, 0, 6, 6, 1, 6)), None, (0.4914, 0.4822, 0.4465),
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "cifar100": ImageSetSpec(
        "CIFAR100", (32, 32, 3), (500, 100),
        ((19, 29, 0, 11, 1, 86, 90, 28), (49, 33, 72, 51, 71, 92, 15, 14)),
        ("9f11b9f97aad759b", "4dad7d09c7c97d33"), (0.5071, 0.4865, 0.4409),
        _words("""apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge
        bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach
        couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
        kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
        mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
        plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew
        skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
        telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf
        woman worm"""),
        image_means=((.6587, .4600, .3812, .3263, .6340, .5615, .8215, .5447, .4427, .8140),
                     (.8646, .4003, .4468, .3160, .5795, .4064, .4974, .2385, .3109, .5317)),
    ),
}  # fmt: skip
# The first 200 images of each class of both parts of Fashion-MNIST (`first_of_each_class`), in the
# package: MIT licence, Copyright 2017 Zalando SE. `python -m tools.fashion_small` writes the file.
FASHION_SMALL, PER_CLASS = Path(__file__).with_name("fashion_small.npz"), 200
FASHION_SMALL_SPEC = replace(
    SETS["fashion_mnist"],
    counts=(PER_CLASS, PER_CLASS),
    labels_sha256=("da01741fd7f7b6c4", "b2095bc797d1201e"),
    mean=(0.28645,),
    images_sha256=("6c59094797e4bc9e", "96315b1732ab731e"),
)
FASHION_SMALL_INDEX_SHA256 = ("76b879664db697f0", "10acaa3c71905646")  # of uint16
IMAGENET_COUNTS = (1_281_167, 50_000)  # of the 1,000 classes of ILSVRC 2012, train and validation


def load(name: str, *, root: str | Path | None = None) -> Dataset:
    """Load a data set by name, in its original order.

    "fashion_small" and "digits" need no download. "fashion_small" has the first 200 images of each
    class of the training and of the test part of Fashion-MNIST, with their indices there.

    Image sets are standardised: the network's input has mean 0 and standard deviation 1 in each
    channel of the training images. Digits are not. The images of "imagenet" are decoded on access
    (`memlens.data.folders`); it warns if 1,000 classes have not the images of ILSVRC 2012.

    Parameters
    ----------
    name : str
        "fashion_small", "digits", "mnist", "fashion_mnist", "cifar10", "cifar100" or "imagenet".
    root : path, optional
        For "imagenet" only: the folder with ``train/<class>/`` and ``val/<class>/``; by default
        ``imagenet`` in the data folder.

    Raises
    ------
    ValueError
        If the name is unknown, or a file differs from the set's specification.
    FileNotFoundError
        If the file does not exist and the set cannot be downloaded; the message has the expected
        path.

    Examples
    --------
    >>> import memlens as ml
    >>> len(ml.load("fashion_small").train)
    2000
    >>> ml.load("digits")
    Dataset(digits: 1,437 training samples, 360 test samples, 10 classes, images (1, 8, 8) uint8)
    """
    if name == "imagenet":
        return _imagenet(store.data_dir() / name if root is None else Path(root))
    known = sorted(["digits", "fashion_small", *SETS, "imagenet"])
    if name not in known:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(known)}")
    if root is not None:
        raise ValueError(
            f"only imagenet takes a root, not {name}; set MEMLENS_DATA to change the data folder"
        )
    if name == "digits":
        return load_digits()
    if name == "fashion_small":
        return _fashion_small()
    path, spec = store.data_dir() / f"{name}.npz", SETS[name]
    if path.exists():
        arrays, source = read_npz(path), str(path)
    else:
        arrays, source = download(name, path), f"the download of {name}"
    check_images(arrays, spec, source)
    parts = [(as_images(arrays[f"x_{part}"]), arrays[f"y_{part}"]) for part in PARTS]
    return from_arrays(name, *parts, class_names=spec.class_names)


def _fashion_small() -> Dataset:
    arrays = read_npz(FASHION_SMALL)
    check_images(arrays, FASHION_SMALL_SPEC, str(FASHION_SMALL))
    for part, expected in zip(PARTS, FASHION_SMALL_INDEX_SHA256):
        if _sha(arrays[f"index_{part}"]) != expected:
            raise ValueError(f"{FASHION_SMALL}: index_{part} differs; install memlens again")
    parts = [(as_images(arrays[f"x_{part}"]), arrays[f"y_{part}"]) for part in PARTS]
    data = from_arrays("fashion_small", *parts, class_names=FASHION_SMALL_SPEC.class_names)
    train, test = (torch.from_numpy(arrays[f"index_{part}"].astype(np.int64)) for part in PARTS)
    return replace(
        data, train=replace(data.train, index=train), test=replace(data.test, index=test)
    )


def first_of_each_class(arrays: Arrays, n: int) -> Arrays:
    """Select the first samples of each class of an image set, in the original order.

    Parameters
    ----------
    arrays : dict of ndarray
        x_train, y_train, x_test and y_test, as `read_npz` returns them.
    n : int
        Samples of each class and part.

    Returns
    -------
    dict of ndarray
        The same arrays of the selected samples (labels as uint8), and index_train and index_test
        (uint16), their positions in the set.
    """
    selected: Arrays = {}
    for part in PARTS:
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        index = np.sort(np.concatenate([np.flatnonzero(y == c)[:n] for c in np.unique(y)]))
        selected[f"x_{part}"], selected[f"y_{part}"] = x[index], y[index].astype(np.uint8)
        selected[f"index_{part}"] = index.astype(np.uint16)
    return selected


def _imagenet(root: Path) -> Dataset:
    try:
        data = folder_dataset("imagenet", root)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}: load('imagenet', root=...). It is not downloaded: its terms require that "
            "each user requests a copy from image-net.org"
        ) from error
    found = len(data.train), len(data.test)
    if data.n_classes == 1000 and found != IMAGENET_COUNTS:
        warnings.warn(
            "{} has {:,} training and {:,} test images, ImageNet {:,} and {:,}: the indices differ "
            "from those of the full set".format(root, *found, *IMAGENET_COUNTS),
            stacklevel=3,
        )
    return data


def as_images(x: np.ndarray) -> np.ndarray:
    """Convert (n, height, width) or (n, height, width, 3) to (n, channels, height, width)."""
    return x[:, None] if x.ndim == 3 else np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def read_npz(path: Path) -> Arrays:
    """Read the arrays x_train, y_train, x_test, y_test of an image set; nothing is unpickled.

    Raises
    ------
    ValueError
        If one of the arrays is missing, or as `plain_arrays`.
    """
    arrays = plain_arrays(path)
    needed = [f"{kind}_{part}" for part in PARTS for kind in "xy"]
    if missing := [name for name in needed if name not in arrays]:
        raise ValueError(f"{path} has no {', '.join(missing)}; it has: {', '.join(arrays)}")
    return arrays


def plain_arrays(path: Path, only: str | None = None) -> Arrays:
    """Read all arrays of an .npz, or only the named one, if any; nothing is unpickled.

    Raises
    ------
    ValueError
        If the file is truncated, is not an .npz, or holds Python objects.
    """
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if only in (None, name)}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): it is damaged, or not an .npz of plain arrays; "
            "replace it with a good copy"
        ) from error


def download(name: str, path: Path) -> Arrays:
    """Download an image set into the data folder with torchvision, and return its arrays.

    Raises
    ------
    ImportError
        If torchvision is not installed.
    FileNotFoundError
        If the download fails; the message has the expected path and arrays.
    """
    try:
        from torchvision import datasets  # takes a second
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{name} is not at {path}, and its download needs torchvision: pip install "
            "'memlens[notebooks]', or put a file there"
        ) from error
    kind, arrays = getattr(datasets, SETS[name].torchvision), {}
    try:
        for part in PARTS:
            found = kind(root=str(path.parent), train=part == "train", download=True)
            arrays |= {f"x_{part}": np.asarray(found.data), f"y_{part}": np.asarray(found.targets)}
    except (OSError, RuntimeError) as error:  # no network, a bad checksum, no space
        raise FileNotFoundError(
            f"{name} is not at {path}, and cannot be downloaded ({error}); put a file there with "
            "the arrays x_train, y_train, x_test, y_test (uint8 images, labels, original order), "
            "or set MEMLENS_DATA to a folder that has one"
        ) from error
    return arrays


def check_images(arrays: Arrays, spec: ImageSetSpec, source: str) -> None:
    """Compare images and labels with a specification.

    Raises
    ------
    ValueError
        If they differ; the message has the source, the found and the expected values.
    """
    for i, part in enumerate(PARTS):
        problem = _problem(arrays[f"x_{part}"], arrays[f"y_{part}"], spec, i)
        if problem:
            raise ValueError(
                f"{source}, {part} part: {problem}. The set is another one, changed or in another "
                "order, so scores cannot be joined to its images: replace it with the original"
            )


def _problem(x: np.ndarray, y: np.ndarray, spec: ImageSetSpec, part: int) -> str:
    """Describe the first difference of a part (0: train, 1: test); "" if there is none."""
    n = int(np.broadcast_to(spec.counts[part], len(spec.class_names)).sum())
    if x.dtype != np.uint8 or x.shape != (n, *spec.shape):
        return f"images are {x.dtype} {x.shape}, expected uint8 {(n, *spec.shape)}"
    return _label_problem(y, spec, part) or _image_problem(x, spec, part)


def _label_problem(y: np.ndarray, spec: ImageSetSpec, part: int) -> str:
    n_classes = len(spec.class_names)
    counts = np.broadcast_to(spec.counts[part], n_classes)
    if y.shape != (counts.sum(),) or y.dtype.kind not in "iu":
        return f"labels are {y.dtype} {y.shape}, expected integers ({counts.sum()},)"
    if y.min() < 0 or y.max() >= n_classes:
        return f"labels range from {y.min()} to {y.max()}, expected 0 to {n_classes - 1}"
    if not np.array_equal(found := np.bincount(y, minlength=n_classes), counts):
        return f"classes have {found.tolist()} samples, expected {counts.tolist()}"
    if tuple(y[: len(spec.first[part])].tolist()) != spec.first[part]:
        return f"the first labels are {y[:8].tolist()}, expected {list(spec.first[part])}"
    if spec.labels_sha256 and _sha(y.astype(np.uint8)) != spec.labels_sha256[part]:
        return "the labels' checksum differs"
    return ""


def _image_problem(x: np.ndarray, spec: ImageSetSpec, part: int) -> str:
    mean = x.reshape(len(x), -1, len(spec.mean)).mean(axis=(0, 1)) / 255
    if part == 0 and np.abs(mean - spec.mean).max() > MEAN_TOLERANCE:
        return f"the mean of the pixels is {mean.round(4).tolist()}, expected {list(spec.mean)}"
    if spec.image_means:
        compared = np.arange(0, len(x), len(x) // N_COMPARED)[:N_COMPARED]
        wrong = np.abs(image_means(x) - spec.image_means[part]) > MEAN_TOLERANCE
        if wrong.any():
            return f"the images at {compared[wrong].tolist()} differ from the original ones"
    if spec.images_sha256 and _sha(x) != spec.images_sha256[part]:
        return "the images' checksum differs"
    return ""


def image_means(x: np.ndarray) -> np.ndarray:
    """Average channel 0 over the upper half of evenly spaced images: (``N_COMPARED``,) in [0, 1].

    The half and the channel also detect rotated images and swapped channels.
    """
    some = x[:: len(x) // N_COMPARED][:N_COMPARED, : x.shape[1] // 2]
    return (some if some.ndim == 3 else some[..., 0]).mean(axis=(1, 2)) / 255


def _sha(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values)).hexdigest()[:16]
