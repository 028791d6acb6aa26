"""Folders of labelled images: the files of each class, and what was passed over."""

import os
from pathlib import Path
from typing import NamedTuple

from memlens.data.folders import class_folders, image_names, some_of

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
