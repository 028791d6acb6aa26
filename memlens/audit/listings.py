"""Which files of your own there are, and of which class: nothing is opened yet."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from memlens.data.folders import class_folders, image_names, some_of

FILE_COLUMNS = ("file", "path", "filepath", "file_path", "filename", "file_name", "image",
                "image_path")  # fmt: skip
LABEL_COLUMNS = ("label", "class", "class_name", "target", "category", "y")
PARTS = {"train", "training", "val", "valid", "validation", "test"}  # of a root, not classes


class Listed(NamedTuple):
    """Files and the names of their classes before anything is opened; what was passed over."""

    names: list[str]
    labels: list[str]
    passed: list[tuple[str, str]]


def list_folder(root: Path, beside: Path | None) -> Listed:
    """All image files below the class folders, class by class, sorted."""
    results = beside and beside.resolve()
    found = [name for name in class_folders(root) if (root / name).resolve() != results]
    if not found:
        raise ValueError(
            f"{root} has no class folders; move each image into one named by its class"
        )
    if len({name.lower() for name in found} & PARTS) > 1 or {n.lower() for n in found} <= PARTS:
        raise ValueError(
            f"{root} holds {some_of(found)}: parts of a data set, not classes; pass one of them, "
            f"such as {root / found[0]}"
        )
    names, labels, passed = [], [], []
    for name in sorted(set(os.listdir(root)) - set(found)):
        if not name.startswith(".") and (root / name).resolve() != results:
            passed.append((name, "lies in no class folder"))
    for label in found:
        others: list[str] = []
        own = image_names(root, label, others)
        passed += [(name, "no image by its extension") for name in others]
        if not own:
            passed.append((f"{label}/", "a class folder without an image: the class is left out"))
        names += own
        labels += [label] * len(own)
    return Listed(names, labels, passed)


def list_table(path: Path) -> Listed:
    """The rows of a table that name a file and a class."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with warnings.catch_warnings():  # of a separator too many in every row, which is no loss
            warnings.simplefilter("ignore", pd.errors.ParserWarning)
            table = pd.read_csv(
                path, sep=separator, dtype=str, keep_default_na=False, index_col=False,
                encoding="utf-8-sig",
            )  # fmt: skip
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(
            f"{path} cannot be read as a table ({error}); save it as UTF-8 with a header"
        ) from error
    columns = [_column(path, table, known) for known in (FILE_COLUMNS, LABEL_COLUMNS)]
    names, labels, passed = [], [], []
    for name, label in zip(*(table[column].str.strip() for column in columns)):
        if not label:
            passed.append((name, "no label in its row"))
        elif not name or not _is_file(path.parent / name):
            passed.append((name, "there is no such file"))
        else:
            names.append(name)
            labels.append(label)
    return Listed(names, labels, passed)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file system takes
        return False


def _column(path: Path, table: pd.DataFrame, known: Sequence[str]) -> str:
    by_name = {str(column).strip().lower(): column for column in table}
    for name in known:
        if name in by_name:
            return by_name[name]
    raise ValueError(
        f"{path} has the columns {some_of([*map(str, table)])}, none of them one of "
        f"{', '.join(known)}; name its first row so, and separate columns by "
        f"{'tabs' if path.suffix.lower() == '.tsv' else 'commas'}"
    )
