"""Image folders that do not fit in memory: listed at once, decoded when they are asked for.

`FolderImages` stands where a tensor of images stands in `Samples`. Choosing samples, label noise
and cache keys never decode an image; indexing and `FolderImages.stream` do.
"""

import copy
import hashlib
import os
from array import array
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from joblib import cpu_count
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from memlens.data.samples import Dataset, Samples

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as published for ImageNet
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
PARTS = (("train",), ("val", "test"))  # the first that is there: ImageNet's test/ has no labels

Which = int | slice | Sequence[int] | Sequence[bool] | np.ndarray | Tensor


class FolderImages:
    """Image files as one lazy uint8 array (n, 3, size, size) in RGB.

    ``images[which]`` decodes: an int gives (3, size, size); a slice, positions or a mask give
    (m, 3, size, size). The shorter side is resized to ``resize`` (bilinear, antialiased) and the
    centre cut out, bit for bit as torchvision's ``Resize`` and ``CenterCrop`` do.

    Parameters
    ----------
    folder : Path
    names : iterable of str
        Files, relative to the folder, in their order.
    size, resize : int
        Sides in pixels of the cut, and of the image's shorter side before it.

    Raises
    ------
    ValueError
        If ``size`` is below 1 or above ``resize``; on indexing, if a file cannot be decoded.
    FileNotFoundError
        On indexing and in `fingerprint`, if a file is gone.
    IndexError
        On positions out of range, or an index of more than one dimension.
    """

    ndim = 4
    dtype = torch.uint8
    device = torch.device("cpu")

    def __init__(
        self, folder: Path, names: Iterable[str], *, size: int = 224, resize: int = 256
    ) -> None:
        if not 1 <= size <= resize:
            raise ValueError(f"size is {size}, resize {resize}; expected 1 <= size <= resize")
        self.folder, self.size, self.resize = Path(folder).absolute(), size, resize
        # One run of bytes and where each name ends: half of a list's memory, and none that a forked
        # worker would copy page by page by counting references.
        packed, ends = bytearray(), array("q", [0])
        for name in names:
            packed += os.fsencode(name)
            ends.append(len(packed))
        self._names, self._ends = bytes(packed), np.array(ends)
        self._chosen = np.arange(len(ends) - 1)
        self._hash: str | None = None

    @property
    def shape(self) -> torch.Size:
        """(n, 3, size, size)."""
        return torch.Size((len(self), 3, self.size, self.size))

    def __len__(self) -> int:
        return len(self._chosen)

    def __repr__(self) -> str:
        return f"FolderImages({tuple(self.shape)} of {self.folder}, shorter side {self.resize})"

    def is_floating_point(self) -> bool:
        """False: uint8, as of a Tensor."""
        return False

    def __getitem__(self, which: Which) -> Tensor:
        chosen = self._pick(which)
        images = np.empty((chosen.size, 3, self.size, self.size), np.uint8)
        for image, i in zip(images, chosen.flat):
            image[:] = _centre(_rgb(self._file(i)), self.size, self.resize)
        return torch.from_numpy(images if chosen.ndim else images[0])

    def subset(self, which: Which) -> "FolderImages":
        """The chosen images (slice, mask or positions; IndexError for an int), not decoded."""
        chosen = self._pick(which)
        if chosen.ndim == 0:
            raise IndexError(f"subset({which}) is a single image; use subset([{which}])")
        part = copy.copy(self)
        part._chosen, part._hash = chosen, None
        return part

    def path(self, position: int) -> Path:
        """The file of one image."""
        return self._file(self._chosen[position])

    def fingerprint(self) -> str:
        """Hash (16 hex digits) of relative names, file sizes, size and resize; not of pixels."""
        if self._hash is None:
            digest = hashlib.sha256(f"{self.size} {self.resize}".encode())
            for name in map(self._name, self._chosen):
                n_bytes = os.stat(os.path.join(self.folder, os.fsdecode(name))).st_size
                digest.update(b"%b\0%d\0" % (name, n_bytes))  # no name holds a zero byte
            self._hash = digest.hexdigest()[:16]
        return self._hash

    def stream(
        self, batches: Iterable[Tensor], *, workers: int | None = None
    ) -> Generator[Tensor, None, None]:
        """The images of one batch after another, decoded ahead by other processes.

        Parameters
        ----------
        batches : iterable of Tensor (m,), int64 positions
            Read ahead of what is yielded, two batches a worker.
        workers : int, optional
            Processes that decode, by default one a core, which the processes of a ``torchrun``
            share; 0: none but this one. They end with the last batch, with an error, and when the
            stream is dropped or closed.

        Yields
        ------
        Tensor (m, 3, size, size), uint8
            In the order of ``batches``; in pinned memory where there is CUDA.

        Raises
        ------
        ValueError
            If ``workers`` is negative, or a file cannot be decoded; the message has its path.
        """
        if workers is None:
            workers = max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        if workers < 0:
            raise ValueError(f"workers is {workers}; expected 0 (decode in this process) or more")
        loader = DataLoader(
            self,
            batch_size=None,  # each "sample" is a whole batch
            sampler=map(_plain_index, batches),
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else the loader draws a seed from the global one
        )
        return _closing(loader)

    def _pick(self, which: Which) -> np.ndarray:
        """The chosen files' numbers, (m,) or (), int64."""
        chosen = np.asarray(self._chosen[_plain_index(which)])
        if chosen.ndim > 1:
            raise IndexError("images are chosen by an int, a slice, a mask (n,) or positions (m,)")
        return chosen

    def _name(self, i: int) -> bytes:
        return self._names[self._ends[i] : self._ends[i + 1]]

    def _file(self, i: int) -> Path:
        return self.folder / os.fsdecode(self._name(i))


def _plain_index(which: Any) -> Any:
    """``which`` as numpy indexes with it; also cheaper than a tensor to send to a process."""
    if isinstance(which, Tensor):
        return which.cpu().numpy()
    if isinstance(which, Sequence):
        return np.asarray(which, dtype=None if len(which) else np.int64)
    return which


def _closing(loader: DataLoader) -> Generator[Tensor, None, None]:
    batches: Any = iter(loader)
    try:
        yield from batches
    finally:
        if loader.num_workers:  # dropping it is not enough: an error's traceback may hold it
            batches._shutdown_workers()


def _rgb(path: Path) -> Image.Image:
    with open(path, "rb") as file:  # a file that is gone or closed to us is named by its error
        try:
            return Image.open(file).convert("RGB")
        except MemoryError:
            raise
        except Exception as error:  # a damaged file makes PIL raise nearly anything
            raise ValueError(
                f"{path} cannot be decoded ({error}); put a good copy in its place, or remove it: "
                "later images then get other indices"
            ) from error


def _centre(image: Image.Image, size: int, resize: int) -> np.ndarray:
    """Centre of the resized image, (3, size, size) uint8."""
    short = min(image.size)
    width, height = (int(resize * side / short) for side in image.size)
    # PIL's bilinear filter widens when it shrinks: it is antialiased
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def folder_dataset(name: str, root: str | Path, *, size: int = 224, resize: int = 256) -> Dataset:
    """A data set of ``root/train/<class>/*`` and ``root/val/<class>/*`` (or ``root/test``).

    Classes are the sorted folder names of train; samples are in the order of torchvision's
    ``ImageFolder`` (class, folder, file name), and ``index`` counts in it. Hidden files, and those
    that are no images by their extension, are passed over. Images are `FolderImages`; ``mean`` and
    ``std`` ImageNet's.

    Raises
    ------
    FileNotFoundError
        If the root or one of its parts is not there.
    ValueError
        If a part has no class folders or no images, a class of train has none, or train lacks a
        class of the other part.
    """
    places = _parts(Path(root).expanduser())
    class_names, tested = map(class_folders, places)
    if unknown := sorted(set(tested) - set(class_names)):
        raise ValueError(
            f"{places[1]} has classes that {places[0]} lacks: {some_of(unknown)}; name the class "
            "folders alike in both, or remove these"
        )
    train, test = (_samples(place, class_names, size, resize) for place in places)
    counts = torch.bincount(train.labels, minlength=len(class_names)).tolist()
    if empty := [c for c, n in zip(class_names, counts) if not n]:
        raise ValueError(
            f"{places[0]} has classes without an image: {some_of(empty)}; fill their folders "
            f"({', '.join(EXTENSIONS)}), or remove them"
        )
    if not len(test):
        raise ValueError(f"{places[1]} has class folders but no image; fill them")
    return Dataset(name, train, test, class_names, 255.0, MEAN, STD)


def _parts(root: Path) -> tuple[Path, Path]:
    """The folders of train and test."""
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}; pass the one with train/ and val/")
    train, test = ([root / p for p in names if (root / p).is_dir()] for names in PARTS)
    if not (train and test):
        raise FileNotFoundError(
            f"{root} has no folder {'val or test' if train else 'train'}; pass the one that holds "
            f"train/<class>/ and val/<class>/ (this one holds: {some_of(sorted(os.listdir(root)))})"
        )
    return train[0], test[0]


def class_folders(place: Path) -> tuple[str, ...]:
    """The sorted names of the folders in a folder, hidden ones apart; ValueError if none."""
    with os.scandir(place) as entries:
        found = (entry.name for entry in entries if entry.is_dir())
        names = tuple(sorted(name for name in found if not name.startswith(".")))
    if not names:
        raise ValueError(
            f"{place} has no class folders; move each image into a folder named by its class (of "
            "ImageNet's val/, whose images lie flat, the usual valprep step does that)"
        )
    return names


def _samples(place: Path, class_names: tuple[str, ...], size: int, resize: int) -> Samples:
    found = [image_names(place, c) for c in class_names]
    counts = torch.tensor([len(names) for names in found])
    labels = torch.arange(len(found)).repeat_interleave(counts)
    images = FolderImages(place, chain.from_iterable(found), size=size, resize=resize)
    return Samples(images, labels, torch.arange(len(labels)), labels.clone())


def image_names(place: Path, class_name: str, others: list[str] | None = None) -> list[str]:
    """Images of a class, relative to ``place``; none where the class has no folder there.

    Files that are no images by their extension go into ``others``, hidden ones nowhere.
    """
    if not (place / class_name).is_dir():
        return []
    names = []
    for folder, files in sorted(_walk(place / class_name)):
        prefix = Path(folder).relative_to(place).as_posix()
        files = [f for f in sorted(files) if not f.startswith(".")]
        names += [f"{prefix}/{f}" for f in files if f.lower().endswith(EXTENSIONS)]
        if others is not None:
            others += [f"{prefix}/{f}" for f in files if not f.lower().endswith(EXTENSIONS)]
    return names


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder below with its files, links followed, but none into a folder above it."""
    above: dict[str, set[tuple[int, int]]] = {}
    for folder, below, files in os.walk(top, onerror=_fail, followlinks=True):
        known = above.setdefault(folder, {_identity(folder), _identity(os.path.dirname(top))})
        for name in list(below):
            inner = os.path.join(folder, name)
            if _identity(inner) in known:  # a link back up: it would be walked for ever
                below.remove(name)
            else:
                above[inner] = known | {_identity(inner)}
        yield folder, files


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _fail(error: OSError) -> NoReturn:
    raise error  # os.walk passes over a folder that it may not read unless told not to


def some_of(names: Sequence[str]) -> str:
    """The first five names and how many more there are, for a message."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "nothing") + more
