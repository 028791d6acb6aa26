"""Show the progress of a training: a bar with the time left, or curves in a notebook."""

import sys
import time
from collections.abc import Callable, Mapping

import pandas as pd
from tqdm import tqdm

Watch = Callable[[Mapping[str, float]], None]  # called with each epoch's row of the history

PATIENT = 30.0  # seconds between two states of a bar in a log, where each is a line of its own
SHARE = 0.1  # of the time that drawing may take
SUMMARY = {"loss": "train_loss", "gradient": "input_gradient", "weight norm": "weight_norm"}


def epoch_summary(row: Mapping[str, float]) -> dict[str, str]:
    """Return loss, mean input gradient and weight norm of an epoch as text.

    >>> epoch_summary({"epoch": 0, "train_loss": 2.3026, "weight_norm": 11.0})
    {'loss': '2.3', 'weight norm': '11'}
    """
    return {name: f"{row[column]:.3g}" for name, column in SUMMARY.items() if column in row}


def epoch_bar(total: int, *, done: int, hidden: bool) -> tqdm:
    """Return a progress bar of epochs; it appears after 5 s, and only on a terminal."""
    return tqdm(total=total, initial=done, unit="epoch", leave=False, delay=5,
                disable=hidden or None)  # fmt: skip


def advance(bar: tqdm, row: Mapping[str, float]) -> None:
    """Advance a bar by one epoch."""
    bar.set_postfix(epoch_summary(row), refresh=False)
    bar.update()


def in_notebook() -> bool:
    """Return whether this is a notebook's kernel, where a figure can be shown and updated."""
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")


class Progress:
    """One progress bar for several trainings of up to ``n_epochs`` each.

    It shows loss, mean input gradient and weight norm of the last epoch, and the time left. A
    training that stops early, or was finished before, completes its share of the bar at once.
    """

    def __init__(self, n_epochs: int) -> None:
        self.n_epochs, self._bar = n_epochs, None

    def __call__(self, what: str, number: int, n: int) -> Watch:
        """Return the function to pass as ``watch`` to training ``number`` of ``n``."""
        before = (number - 1) * self.n_epochs

        def watch(row: Mapping[str, float]) -> None:
            if self._bar is None:
                interval = 0.5 if sys.stderr.isatty() else PATIENT
                self._bar = tqdm(
                    total=n * self.n_epochs, initial=before, unit="epoch", mininterval=interval
                )
            self._bar.set_description(f"{what} ({number} of {n})", refresh=False)
            self._bar.set_postfix(epoch_summary(row), refresh=False)
            self._bar.update(before + int(row["epoch"]) + 1 - self._bar.n)

        return watch

    def close(self) -> None:
        """Complete the bar, and leave it on the screen."""
        if self._bar is not None:
            self._bar.update(self._bar.total - self._bar.n)
            self._bar.close()


class LivePlot:
    """Curves that grow during training in a notebook; elsewhere one line of text an epoch.

    Pass it as ``train(..., watch=LivePlot())``; plot the finished training with ``run.plot()``.

    >>> watch = LivePlot()
    >>> watch({"epoch": 0, "train_loss": 2.3, "input_gradient": 0.25, "weight_norm": 11.0})
    epoch 0: loss 2.3, gradient 0.25, weight norm 11
    """

    def __init__(self) -> None:
        self._rows: list[Mapping[str, float]] = []
        self._display, self._next = None, 0.0

    def __call__(self, row: Mapping[str, float]) -> None:
        """Draw or print an epoch."""
        self._rows.append(dict(row))
        if not in_notebook():
            parts = ", ".join(f"{name} {value}" for name, value in epoch_summary(row).items())
            print(f"epoch {row['epoch']}: {parts}", flush=True)
        elif time.perf_counter() >= self._next:
            start = time.perf_counter()
            self._draw()
            end = time.perf_counter()
            self._next = end + (end - start) / SHARE

    def _draw(self) -> None:
        import matplotlib.pyplot as plt
        from IPython.display import display

        from memlens.evaluation import plots

        figure = plots.training_figure(pd.DataFrame(self._rows))
        if self._display is None:
            self._display = display(figure, display_id=True)
        else:
            self._display.update(figure)
        plt.close(figure)
