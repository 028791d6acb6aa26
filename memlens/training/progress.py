"""What a person sees while a net trains: a bar with the time left, or curves in a notebook."""

import sys
import time
from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from tqdm import tqdm

from memlens.evaluation import plots
from memlens.training.loop import Watch, told

PATIENT = 30.0  # seconds between two states of a bar in a log, where each is a line of its own
SHARE = 0.1  # of the time that drawing may take


def looked_at() -> bool:
    """Whether this is a notebook's kernel, where a figure can be shown and shown anew."""
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")


class Progress:
    """One bar for several trainings of up to ``n_epochs`` each: `pipeline.run_audit` takes it as watch.

    It says loss, mean input gradient and weight norm of the last epoch, and the time left. A
    training that stops early, or was done before, takes its share of the bar at once.
    """

    def __init__(self, n_epochs: int) -> None:
        self.n_epochs, self._bar = n_epochs, None

    def __call__(self, what: str, number: int, n: int) -> Watch:
        """The watcher of one training."""
        before = (number - 1) * self.n_epochs

        def watch(row: Mapping[str, float]) -> None:
            if self._bar is None:
                interval = 0.5 if sys.stderr.isatty() else PATIENT
                self._bar = tqdm(
                    total=n * self.n_epochs, initial=before, unit="epoch", mininterval=interval
                )
            self._bar.set_description(f"{what} ({number} of {n})", refresh=False)
            self._bar.set_postfix(told(row), refresh=False)
            self._bar.update(before + int(row["epoch"]) + 1 - self._bar.n)

        return watch

    def close(self) -> None:
        """The work is done: leave the bar as it is."""
        if self._bar is not None:
            self._bar.update(self._bar.total - self._bar.n)
            self._bar.close()


class LivePlot:
    """Curves that grow with the training, in a notebook; elsewhere one line of text an epoch.

    >>> watch = LivePlot()
    >>> watch({"epoch": 0, "train_loss": 2.3, "input_gradient": 0.25, "weight_norm": 11.0})
    epoch 0: loss 2.3, gradient 0.25, weight norm 11

    Pass it as ``train(..., watch=LivePlot())``, and see the end of the training by ``run.plot()``.
    """

    def __init__(self) -> None:
        self._rows: list[Mapping[str, float]] = []
        self._display, self._next = None, 0.0

    def __call__(self, row: Mapping[str, float]) -> None:
        """Take in an epoch."""
        self._rows.append(dict(row))
        if not looked_at():
            parts = ", ".join(f"{name} {value}" for name, value in told(row).items())
            print(f"epoch {row['epoch']}: {parts}", flush=True)
        elif time.perf_counter() >= self._next:
            start = time.perf_counter()
            self._draw()
            end = time.perf_counter()
            self._next = end + (end - start) / SHARE

    def _draw(self) -> None:
        from IPython.display import display

        figure = plots.training_figure(pd.DataFrame(self._rows))
        if self._display is None:
            self._display = display(figure, display_id=True)
        else:
            self._display.update(figure)
        plt.close(figure)
