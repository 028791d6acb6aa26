"""A data set that says where each of its samples lies: `with_index`."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset, IterableDataset

KEY = "index"  # of the position in an item that is a dict, and of the net's argument


def with_index(dataset: Dataset) -> "Indexed":
    """The data set with each sample's position: ``(index, *item)``, or a dict with "index" added.

    >>> ds = with_index([("a", 0), ("b", 1)])
    >>> ds[1]
    (1, 'b', 1)

    It goes through a DataLoader with any sampler and any number of workers; positions are those of
    the data set that was wrapped. Wrap last: positions of a `Subset` are those in the subset.

    Raises
    ------
    TypeError
        If it has no length and positions (an IterableDataset), or an item is no tuple, list or
        dict.
    ValueError
        If it is wrapped already, or its dicts have a key "index".
    """
    return Indexed(dataset)


class Indexed(Dataset):
    """A data set whose items hold their position; made by `with_index`.

    Whatever else the wrapped one has (``classes``, ``targets``) can be asked of this one.
    """

    def __init__(self, dataset: Dataset) -> None:
        if isinstance(dataset, Indexed):
            raise ValueError("the data set gives its index already: wrap it once")
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
        position = self._place(position)
        return _labelled(position, self.dataset[position])

    def __getitems__(self, positions: Sequence[int]) -> list[tuple | dict]:
        """Many items at once, as the wrapped data set gives them at once where it can."""
        positions = [self._place(position) for position in positions]
        if callable(getattr(self.dataset, "__getitems__", None)):
            items = self.dataset.__getitems__(positions)
        else:
            items = [self.dataset[position] for position in positions]
        return [_labelled(*pair) for pair in zip(positions, items, strict=True)]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # asked for while it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def _place(self, position: int) -> int:
        place, size = int(position), len(self)
        if not -size <= place < size:
            raise IndexError(f"position {place} in a data set of {size}")
        return place + size if place < 0 else place


def _labelled(position: int, item: Any) -> tuple | dict:
    if isinstance(item, Mapping):
        if KEY in item:
            raise ValueError(f'the items have a key "{KEY}" already: rename it')
        return {KEY: position, **item}
    if isinstance(item, tuple | list):
        return (position, *item)
    raise TypeError(f"an item is a {type(item).__name__}; expected a tuple, a list or a dict")
