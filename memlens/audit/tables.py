"""Tables of files and labels."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from memlens.audit.listings import Listing
from memlens.data.folders import some_of

FILE_COLUMNS = ("file", "path", "filepath", "file_path", "filename", "file_name", "image",
                "image_path")  # fmt: skip
LABEL_COLUMNS = ("label", "class", "class_name", "target", "category", "y")


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
