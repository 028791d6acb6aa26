"""Listing of image files and their classes, before any file is opened."""

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
SPLITS = {"train", "training", "val", "valid", "validation", "test"}  # folders that are no classes


class Listing(NamedTuple):
    """Files with their class names, and the skipped files as (file, reason)."""

    names: list[str]
    labels: list[str]
    skipped: list[tuple[str, str]]


def list_folder(root: Path, exclude: Path | None) -> Listing:
    """List all image files in the class folders, sorted by class and name.

    ``exclude`` is a folder that is no class although it may be in ``root``.
    """
    results = exclude and exclude.resolve()
    classes = [name for name in class_folders(root) if (root / name).resolve() != results]
    if not classes:
        raise ValueError(
            f"{root} has no class folders; move the images of each class to a folder of its name"
        )
    lower = {name.lower() for name in classes}
    if len(lower & SPLITS) > 1 or lower <= SPLITS:
        raise ValueError(
            f"{root} has the folders {some_of(classes)}, which are splits of a data set, not "
            f"classes; pass one of them, such as {root / classes[0]}"
        )
    names, labels, skipped = [], [], []
    for name in sorted(set(os.listdir(root)) - set(classes)):
        if not name.startswith(".") and (root / name).resolve() != results:
            skipped.append((name, "not in a class folder"))
    for label in classes:
        others: list[str] = []
        images = image_names(root, label, others)
        skipped += [(name, "not an image by its extension") for name in others]
        if not images:
            skipped.append((f"{label}/", "a class folder without images: the class is left out"))
        names += images
        labels += [label] * len(images)
    return Listing(names, labels, skipped)


def list_table(path: Path) -> Listing:
    """List the rows of a table that name an existing file and a class."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with warnings.catch_warnings():  # a trailing separator in every row is harmless
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
    names, labels, skipped = [], [], []
    for name, label in zip(*(table[column].str.strip() for column in columns)):
        if not label:
            skipped.append((name, "no label in its row"))
        elif not name or not _is_file(path.parent / name):
            skipped.append((name, "no such file"))
        else:
            names.append(name)
            labels.append(label)
    return Listing(names, labels, skipped)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file system allows
        return False


def _column(path: Path, table: pd.DataFrame, known: Sequence[str]) -> str:
    by_name = {str(column).strip().lower(): column for column in table}
    for name in known:
        if name in by_name:
            return by_name[name]
    separator = "tabs" if path.suffix.lower() == ".tsv" else "commas"
    raise ValueError(
        f"{path} has the columns {some_of([*map(str, table)])}; expected one named "
        f"{', '.join(known)}: rename one in its first row, and separate columns by {separator}"
    )
