"""The style of all figures: colours, sizes, names, footnotes, and grids of panels."""

import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

COLUMN, FULL = 3.4, 6.9  # inches: one column of a page, the whole width


LINE, LETTER = 0.12, 0.042  # inches: line height and letter width of a footnote


MARKED, CHANCE, INK, FILL, GAP = "#E69F00", "0.6", "0.25", "#9FB8CC", "#882255"


# Scores have Okabe and Ito's colours, everything else Tol's muted ones, so that a loss curve cannot
# be mistaken for a score. Variants of a score share its colour and differ in marker and line style.
PALETTE: dict[str, tuple[str, str, str]] = {
    "csg": ("#0072B2", "o", "-"), "early_csg": ("#0072B2", "p", "--"),
    "csg_plain": ("#0072B2", "h", ":"), "memorization": ("#000000", "D", "-"),
    "csl": ("#D55E00", "s", "-"), "sgal": ("#D55E00", "d", "--"),
    "final_loss": ("#D55E00", "H", ":"),
    "curvature": ("#009E73", "^", "-"), "curvature_norm": ("#009E73", "v", ":"),
    "loss_sensitivity": ("#56B4E9", "<", "-"), "learning_time_share": ("#56B4E9", ">", "--"),
    "first_correct": ("#56B4E9", "8", ":"), "last_wrong": ("#56B4E9", "*", "-."),
    "forgetting": ("#CC79A7", "X", "-"), "aum": ("#CC79A7", "P", "--"),
    "el2n": ("#CC79A7", "p", ":"), "in_confidence": ("#CC79A7", "d", "-."),
    "weight_norm": ("#332288", "o", "-"), "input_gradient": ("#117733", "s", "-"),
    "val_loss": ("#882255", "^", "-"), "train_loss": ("#999933", "v", "--"),
    "label_wave": ("#AA4499", "D", ":"), "best_val": ("#882255", "^", "-."),
    "last": ("#44AA99", "X", "--"),
    "lira": ("#CC6677", "o", "-"), "lira_offline": ("#CC6677", "D", ":"),
    "lira_csg": ("#CC6677", "X", "--"), "mast": ("#AA4499", "s", "-."),
    "calibrated_loss": ("#999933", "v", "--"), "yeom": ("#88CCEE", "<", "-"),
    "lira_per_sample": ("#CC6677", "v", ":"), "bavaria": ("#332288", "P", "-"),
    "rmia": ("#117733", "p", "-"), "rmia_offline": ("#117733", "h", ":"),
}  # fmt: skip


_OTHERS = (
    ("#332288", "o", "-"), ("#44AA99", "s", "--"), ("#882255", "^", "-."), ("#999933", "D", ":"),
    ("#CC6677", "v", "-"), ("#117733", "X", "--"), ("#AA4499", "P", "-."), ("#88CCEE", "<", ":"),
)  # fmt: skip


_SPELLINGS = [
    "CSG", "CSL", "SGAL", "AUM", "EL2N", "AUROC", "ECE", "MCE", "MSCE", "UCE", "MLP", "CNN",
    "SGD", "Adam", "AdamW", "Adagrad", "RMSProp", "Pearson", "Spearman", "VoG", "GraNd", "TracIn",
    "SAMIS", "SSFT", "LiRA", "MAST", "Yeom", "RMIA", "BaVarIA", "TPR", "FPR", "LT", "IQR",
]  # fmt: skip


STOP_NAMES = {  # of `peaks.STOPS`, in its order
    "input_gradient": "sample gradient", "weight_norm": "weight norm", "label_wave": "Label Wave",
    "best_val": "validation loss", "last": "last epoch",
}  # fmt: skip
STYLE = Path(__file__).parents[1] / "memlens.mplstyle"


class Drawing(NamedTuple):
    """A figure, and a table of exactly the numbers that it draws, unrounded."""

    figure: Figure
    data: pd.DataFrame


def apply_style() -> None:
    """Make the project's style, ``memlens.mplstyle``, matplotlib's default."""
    mpl.style.use(STYLE)


@contextmanager
def styled() -> Iterator[None]:
    """Use the project's style inside a ``with`` block."""
    # Leaving the context would also undo a backend that was loaded inside it, and a notebook would
    # then show no more figures: load the backend first.
    plt.draw_if_interactive()
    with mpl.style.context(STYLE):
        yield


def figsize(columns: int = 1, rows: int = 1, aspect: float = 0.62) -> tuple[float, float]:
    """Return (width, height) in inches for a grid of panels, each ``aspect`` times as high as wide.

    One column of panels gets the width of a text column, more columns the full page width.
    """
    width = COLUMN if columns == 1 else FULL
    return width, round(width / columns * aspect * rows, 3)


def footnote(figure: Figure, text: str) -> None:
    """Write a footnote in small print below the whole figure, which grows by its height."""
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(text, int(width / LETTER))
    added = LINE * len(lines)
    figure.set_size_inches(width, height := height + added)
    if engine := figure.get_layout_engine():
        engine.set(rect=(0, added / height, 1, 1 - added / height))
    for legend in figure.legends:  # the layout engine does not move legends of the whole figure
        legend.borderaxespad += 72 * added / legend.prop.get_size_in_points()
    figure.text(0.01, 0.2 * LINE / height, "\n".join(lines), size=5.5, color=INK, va="bottom")


def style_of(name: str, position: int = 0) -> dict[str, str]:
    """Return color, marker and linestyle of a series: from `PALETTE`, or else by its position."""
    style = PALETTE.get(name, _OTHERS[position % len(_OTHERS)])
    return dict(zip(("color", "marker", "linestyle"), style, strict=True))


def label_of(name: object) -> str:
    """Return the spelling of a name in figures: ``early_csg`` becomes ``early CSG``."""
    words = {word.lower(): word for word in _SPELLINGS}
    return " ".join(words.get(word, word) for word in str(name).split("_"))


def shortened(name: str, n_letters: int) -> str:
    """Cut a name to ``n_letters`` and escape each $, which would begin a formula."""
    short = name if len(name) <= n_letters else f"{name[: n_letters - 1]}…"
    return short.replace("$", r"\$")


def panels(
    axes: np.ndarray,
    draw: Callable[..., object],
    tables: Mapping[str, pd.DataFrame],
    **options: object,
) -> pd.DataFrame:
    """Draw one table per panel, titled by its name; return all tables as one, to save as CSV.

    ``draw(ax, table, **options)`` is a function of this module; there is one of ``axes`` for each
    table, in the same order. The first column, or index level, of the result is "panel".
    """
    for ax, (title, table) in zip(np.ravel(axes), tables.items(), strict=True):
        draw(ax, table, **options)
        ax.set_title(label_of(title))
    index = next(iter(tables.values())).index
    drawn = pd.concat(tables, names=["panel", *(name or "row" for name in index.names)])
    if isinstance(index, pd.RangeIndex) and index.name is None:  # mere row numbers
        drawn = drawn.reset_index("panel").reset_index(drop=True)
    return drawn
