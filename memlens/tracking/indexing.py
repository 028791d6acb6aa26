"""Data sets that return the index of each sample: `with_index`."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset, IterableDataset

KEY = "index"  # in an item that is a dict, and of the network's keyword argument


def with_index(dataset: Dataset) -> "IndexedDataset":
    """Return the data set with each sample's index: ``(index, *item)``, or a dict with "index".

    >>> with_index([("a", 0), ("b", 1)])[1]
    (1, 'b', 1)

    A DataLoader may use any sampler and any number of workers. The index is the position in the
    data set that is wrapped, so wrap last: for a `Subset` it is the position in the subset.

    Raises
    ------
    TypeError
        If the data set has no length or positions (an IterableDataset), or an item is no tuple,
        list or dict.
    ValueError
        If the data set is wrapped already, or its dicts have a key "index".
    """
    return IndexedDataset(dataset)


class IndexedDataset(Dataset):
    """A data set whose items contain their index; made by `with_index`.

    Other attributes (``classes``, ``targets``) are those of the wrapped data set.
    """

    def __init__(self, dataset: Dataset) -> None:
        if isinstance(dataset, IndexedDataset):
            raise ValueError("the data set returns its index already: wrap it once")
        sized = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if isinstance(dataset, IterableDataset) or not sized:
            raise TypeError(
                f"{type(dataset).__name__} has no positions: scores need a map-style data set, "
                "with __len__ and __getitem__"
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> tuple | dict:
        index = self._index(position)
        return _with_index(index, self.dataset[index])

    def __getitems__(self, positions: Sequence[int]) -> list[tuple | dict]:
        """Return several items, fetched together if the wrapped data set supports it."""
        indices = [self._index(position) for position in positions]
        if callable(getattr(self.dataset, "__getitems__", None)):
            items = self.dataset.__getitems__(indices)
        else:
            items = [self.dataset[index] for index in indices]
        return [_with_index(*pair) for pair in zip(indices, items, strict=True)]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # before unpickling has set `dataset`
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def _index(self, position: int) -> int:
        index, size = int(position), len(self)
        if not -size <= index < size:
            raise IndexError(f"position {index} in a data set of {size}")
        return index + size if index < 0 else index


def _with_index(index: int, item: Any) -> tuple | dict:
    if isinstance(item, Mapping):
        if KEY in item:
            raise ValueError(f'the items have a key "{KEY}" already: rename it')
        return {KEY: index, **item}
    if isinstance(item, tuple | list):
        return (index, *item)
    raise TypeError(f"an item is a {type(item).__name__}; expected a tuple, a list or a dict")
