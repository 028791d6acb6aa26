"""Plots in one style.

The functions of `style`, `series` and `tables` are at axes level: each takes axes and a table, and
returns the axes. The other modules draw whole figures, one module a notebook: each function takes
arrays or tables, and returns a `Drawing`.

No function shows or closes a figure, or modifies its input. Where the plotted values are computed,
a second function returns them as a table (`bands`, `binned`, `counts`, `roc_points`), so that the
same table is drawn and saved as the figure's CSV file. Each colour is doubled by a marker, a hatch
or a line style.
"""

from memlens.evaluation.plots.series import (
    CURVES,
    bands,
    binned,
    binned_scatter,
    counts,
    curves,
    histogram,
    mark_epoch,
    reliability_diagram,
    roc,
    roc_points,
    training_figure,
)
from memlens.evaluation.plots.style import (
    CHANCE,
    COLUMN,
    FILL,
    FULL,
    GAP,
    INK,
    LETTER,
    LINE,
    MARKED,
    PALETTE,
    STOP_NAMES,
    STYLE,
    Drawing,
    apply_style,
    figsize,
    footnote,
    label_of,
    panels,
    shortened,
    style_of,
    styled,
)
from memlens.evaluation.plots.tables import (
    bars,
    common_limits,
    dots,
    forest,
    heatmap,
    image_grid,
    largest_rows,
    listsize,
)

__all__ = [
    "CHANCE", "COLUMN", "CURVES", "Drawing", "FILL", "FULL", "GAP", "INK", "LETTER", "LINE",
    "MARKED", "PALETTE", "STOP_NAMES", "STYLE", "apply_style", "bands", "bars", "binned",
    "binned_scatter", "common_limits", "counts", "curves", "dots", "figsize", "footnote",
    "forest", "heatmap", "histogram", "image_grid", "label_of", "largest_rows", "listsize",
    "mark_epoch", "panels", "reliability_diagram", "roc", "roc_points", "shortened", "style_of",
    "styled", "training_figure",
]  # fmt: skip
