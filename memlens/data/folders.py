"""Image folders that need not fit in memory: files are listed at once and decoded on access.

`FolderImages` takes the place of the image tensor in `Samples`. Subsets, label noise and cache keys
never decode an image; indexing and `FolderImages.stream` do.
"""

import copy
import hashlib
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from joblib import cpu_count
from PIL import Image
from torch import Tensor

from memlens.data.samples import Dataset, Samples

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training pixels
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
PARTS = (("train",), ("val", "test"))  # the first that exists: ImageNet's test/ has no labels
AHEAD = 2  # batches that a stream decodes ahead of the one in use

Which = int | slice | Sequence[int] | Sequence[bool] | np.ndarray | Tensor


class FolderImages:
    """Image files as one lazy uint8 array (n, 3, size, size) in RGB.

    ``images[which]`` decodes: an int gives (3, size, size); a slice, positions or a mask give
    (m, 3, size, size). The shorter side is resized to ``resize`` (bilinear, antialiased) and the
    centre is cropped. The pixels equal those of torchvision's ``Resize`` and ``CenterCrop``.

    Parameters
    ----------
    folder : Path
    names : iterable of str
        Files relative to the folder, in order.
    size, resize : int
        Sides in pixels of the crop, and of the image's shorter side before it.

    Raises
    ------
    ValueError
        If ``size`` is below 1 or above ``resize``; on indexing, if a file cannot be decoded.
    FileNotFoundError
        On indexing and in `fingerprint`, if a file does not exist.
    IndexError
        If a position is out of range, or an index has more than one dimension.
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
        # Bytes in an array: ImageNet's 1.28 million names take 41 MB, a list of strings 113 MB.
        self._names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)
        self._hash: str | None = None

    @property
    def shape(self) -> torch.Size:
        """(n, 3, size, size)."""
        return torch.Size((len(self), 3, self.size, self.size))

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"FolderImages({tuple(self.shape)} of {self.folder}, shorter side {self.resize})"

    def is_floating_point(self) -> bool:
        """Return False, as a uint8 Tensor does."""
        return False

    def __getitem__(self, which: Which) -> Tensor:
        names = self._pick(which)
        images = np.empty((names.size, 3, self.size, self.size), np.uint8)
        self._decode(names.flat, images)
        return torch.from_numpy(images if names.ndim else images[0])

    def subset(self, which: Which) -> "FolderImages":
        """Return the images of a slice, mask or positions without decoding them.

        Raises
        ------
        IndexError
            As on indexing, and for an int.
        """
        names = self._pick(which)
        if names.ndim == 0:
            raise IndexError(f"subset({which}) is a single image; use subset([{which}])")
        part = copy.copy(self)
        part._names, part._hash = names, None
        return part

    def path(self, position: int) -> Path:
        """Return the file of one image."""
        return self.folder / os.fsdecode(self._names[position])

    def fingerprint(self) -> str:
        """Return a hash (16 hex digits) of names, file sizes, size and resize, not of pixels."""
        if self._hash is None:
            digest = hashlib.sha256(f"{self.size} {self.resize}".encode())
            for name in self._names:
                n_bytes = os.stat(os.path.join(self.folder, os.fsdecode(name))).st_size
                digest.update(b"%b\0%d\0" % (name, n_bytes))  # file names have no zero byte
            self._hash = digest.hexdigest()[:16]
        return self._hash

    def stream(self, batches: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """Decode batch after batch ahead of time, in one thread per core.

        The processes of a ``torchrun`` share the cores. The threads end with the last batch, with
        an error, and when the generator is closed or deleted.

        Parameters
        ----------
        batches : iterable of Tensor (m,), int64 positions
            Read ahead by two batches.

        Yields
        ------
        Tensor (m, 3, size, size), uint8
            In the order of ``batches``; in pinned memory if there is a CUDA device.

        Raises
        ------
        ValueError
            If a file cannot be decoded; the message has its path.
        FileNotFoundError
            If a file does not exist.
        """
        # Threads, and no processes: a process that is forked while others of its threads (of a
        # process group, CUDA or OpenMP) hold a lock waits for it for ever, and one that is started
        # anew imports torch first. Pillow decodes without the interpreter's lock.
        Image.init()  # its formats: while one thread loads them, others may not find theirs
        n, pinned = _n_threads(), torch.cuda.is_available()
        pool, ahead = ThreadPoolExecutor(n, thread_name_prefix="reader"), deque()
        try:
            for which in batches:
                ahead.append(self._begin(pool, n, which, pinned))
                if len(ahead) > AHEAD:
                    yield _finished(*ahead.popleft())
            while ahead:
                yield _finished(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(
        self, pool: ThreadPoolExecutor, n_parts: int, which: Tensor, pinned: bool
    ) -> tuple[Tensor, list[Future[None]]]:
        """Start to decode a batch in parts; return its images and the work on them."""
        names = self._pick(which)
        shape = (names.size, 3, self.size, self.size)
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        parts = zip(np.array_split(names, n_parts), np.array_split(images.numpy(), n_parts))
        return images, [pool.submit(self._decode, *part) for part in parts]

    def _decode(self, names: Iterable[bytes], images: np.ndarray) -> None:
        """Decode files into an array (m, 3, size, size) uint8."""
        for name, image in zip(names, images, strict=True):
            image[:] = _centre(_rgb(self.folder / os.fsdecode(name)), self.size, self.resize)

    def _pick(self, which: Which) -> np.ndarray:
        """Return the names of the chosen files, (m,) or ()."""
        names = np.asarray(self._names[_plain_index(which)])
        if names.ndim > 1:
            raise IndexError("index images by an int, a slice, a mask (n,) or positions (m,)")
        return names


def _n_threads() -> int:
    return max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _finished(images: Tensor, parts: list[Future[None]]) -> Tensor:
    """Return images when all of their parts are decoded; raise the first error in their order."""
    for part in parts:
        part.result()
    return images


def _plain_index(which: Any) -> Any:
    """Convert an index to one of NumPy."""
    if isinstance(which, Tensor):
        return which.cpu().numpy()
    if isinstance(which, Sequence):
        return np.asarray(which, dtype=None if len(which) else np.int64)
    return which


def _rgb(path: Path) -> Image.Image:
    with open(path, "rb") as file:  # an OSError of opening has the path in its message
        try:
            return Image.open(file).convert("RGB")
        except MemoryError:
            raise
        except Exception as error:  # on a damaged file, PIL can raise almost anything
            raise ValueError(
                f"{path} cannot be decoded ({error}); replace it with a good copy, or remove it "
                "(the indices of later images then change)"
            ) from error


def _centre(image: Image.Image, size: int, resize: int) -> np.ndarray:
    """Resize an image and crop its centre: (3, size, size) uint8."""
    short = min(image.size)
    width, height = (int(resize * side / short) for side in image.size)
    # PIL's bilinear filter is antialiased
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def folder_dataset(name: str, root: str | Path, *, size: int = 224, resize: int = 256) -> Dataset:
    """Make a data set of ``root/train/<class>/*`` and ``root/val/<class>/*`` (or ``root/test``).

    Classes are the sorted folder names of train. Samples have the order of torchvision's
    ``ImageFolder`` (class, folder, file name), and ``index`` is the position in it. Hidden files
    and files without the extension of an image are skipped. Images are `FolderImages`; ``mean``
    and ``std`` are those of ImageNet.

    Parameters
    ----------
    name : str
    root : path
    size, resize : int
        As of `FolderImages`.

    Raises
    ------
    FileNotFoundError
        If the root or one of its parts does not exist.
    ValueError
        If a part has no class folders or no images, a class of train has no images, or a class of
        the other part is missing in train.
    """
    places = _parts(Path(root).expanduser())
    class_names, tested = map(class_folders, places)
    if unknown := sorted(set(tested) - set(class_names)):
        raise ValueError(
            f"{places[1]} has classes that {places[0]} lacks: {some_of(unknown)}; give the class "
            "folders the same names in both, or remove these"
        )
    train, test = (_samples(place, class_names, size, resize) for place in places)
    counts = torch.bincount(train.labels, minlength=len(class_names)).tolist()
    if empty := [c for c, n in zip(class_names, counts) if not n]:
        raise ValueError(
            f"{places[0]} has classes without an image: {some_of(empty)}; add images to their "
            f"folders ({', '.join(EXTENSIONS)}), or remove them"
        )
    if not len(test):
        raise ValueError(f"{places[1]} has class folders but no image; add images")
    return Dataset(name, train, test, class_names, 255.0, MEAN, STD)


def _parts(root: Path) -> tuple[Path, Path]:
    """Return the folders of train and test."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; pass the one with train/ and val/")
    train, test = ([root / p for p in names if (root / p).is_dir()] for names in PARTS)
    if not (train and test):
        raise FileNotFoundError(
            f"{root} has no folder {'val or test' if train else 'train'}; pass a folder with "
            f"train/<class>/ and val/<class>/ (this one has: {some_of(sorted(os.listdir(root)))})"
        )
    return train[0], test[0]


def class_folders(place: Path) -> tuple[str, ...]:
    """Return the sorted names of the folders in a folder, without hidden ones.

    Raises
    ------
    ValueError
        If there are none.
    """
    with os.scandir(place) as entries:
        folders = (entry.name for entry in entries if entry.is_dir())
        names = tuple(sorted(name for name in folders if not name.startswith(".")))
    if not names:
        raise ValueError(
            f"{place} has no class folders; move each image into a folder named after its class "
            "(for ImageNet's val/, which has no class folders, use a valprep script)"
        )
    return names


def _samples(place: Path, class_names: tuple[str, ...], size: int, resize: int) -> Samples:
    names = [image_names(place, c) for c in class_names]
    labels = torch.arange(len(names)).repeat_interleave(torch.tensor([len(n) for n in names]))
    images = FolderImages(place, chain.from_iterable(names), size=size, resize=resize)
    return Samples(images, labels, torch.arange(len(labels)), labels.clone())


def image_names(place: Path, class_name: str, others: list[str] | None = None) -> list[str]:
    """List the images of a class, relative to ``place``; [] if the class has no folder there.

    Files without the extension of an image are appended to ``others``; hidden files are skipped.
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
    """Yield every folder below with its files, following links except into a parent folder."""
    above: dict[str, set[tuple[int, int]]] = {}
    for folder, below, files in os.walk(top, onerror=_fail, followlinks=True):
        visited = above.setdefault(folder, {_identity(folder), _identity(os.path.dirname(top))})
        for name in list(below):
            inner = os.path.join(folder, name)
            if _identity(inner) in visited:  # a link to a parent: an endless loop
                below.remove(name)
            else:
                above[inner] = visited | {_identity(inner)}
        yield folder, files


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _fail(error: OSError) -> NoReturn:
    raise error  # os.walk skips a folder that it may not read unless `onerror` raises


def some_of(names: Sequence[str]) -> str:
    """Join the first five names and the number of the others, for a message."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "nothing") + more
