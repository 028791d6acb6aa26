"""A callback for Lightning: ``Trainer(callbacks=[LightningRecorder(n_samples)])``."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from memlens.tracking.counting import world_size
from memlens.tracking.integrations import RecorderCallback
from memlens.tracking.stopping import PeakStop

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "LightningRecorder needs lightning: pip install 'memlens[lightning]'"
    ) from error


def index_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    """Return index and labels of a batch ``(index, x, y)`` or ``{"index": ..., "labels": ...}``.

    Raises
    ------
    ValueError
        If the batch has another form.
    """
    if isinstance(batch, Mapping) and "index" in batch:
        names = [name for name in ("labels", "label", "y") if name in batch]
        if names:
            return batch["index"], batch[names[0]]
    elif isinstance(batch, tuple | list) and len(batch) == 3:
        index, _, y = batch
        if isinstance(index, Tensor) and not index.is_floating_point() and index.ndim == 1:
            return index, y
    kind = list(batch) if isinstance(batch, Mapping) else f"{type(batch).__name__} of {len(batch)}"
    raise ValueError(
        f"the batch has no index and labels ({kind}): wrap the training set with ml.with_index "
        "so that it is (index, x, y), or give LightningRecorder an `unpack` function"
    )


class LightningRecorder(RecorderCallback, Callback):
    """Callback that records every training epoch of a Lightning trainer.

    Wrap the data set of the training loader with ``ml.with_index``, and unpack ``index, x, y`` in
    ``training_step``. Accumulated gradients, mixed precision and several processes need nothing
    else, because `RecorderHooks` measures the scale of the loss. Validation is not recorded. Make a
    new callback for each training.

    When Lightning resumes within an epoch, it continues the count of batches but starts the loader
    from the beginning: samples that are read twice in that epoch are counted twice.

    >>> callback = ml.LightningRecorder(len(dataset), stop=ml.PeakStop())  # doctest: +SKIP
    >>> Trainer(callbacks=[callback]).fit(module, loader)  # doctest: +SKIP
    >>> callback.recorder.scores(callback.stop.peak)  # doctest: +SKIP

    ``examples/lightning_loop.py`` is the whole program.

    Parameters
    ----------
    n_samples : int
        Size of the training set.
    stop : PeakStop, optional
        Ends the training at a peak; ``stop.best_state`` has the weights at the peak.
    module : str, optional
        Name of the submodule that ``training_step`` calls with images, such as "net"; by default
        the Lightning module itself, ``self(x)``.
    unpack : callable, optional
        From a batch to (index, y); by default `index_and_labels`.
    loss_scale : float, optional
        See `RecorderHooks`.

    Attributes
    ----------
    recorder : CountingRecorder
        With several processes, this one's share; ``recorder.gathered()`` merges the shares.
    stop : PeakStop or None
    """

    def __init__(
        self,
        n_samples: int,
        *,
        stop: PeakStop | None = None,
        module: str | None = None,
        unpack: Callable[[Any], tuple[Tensor, Tensor]] = index_and_labels,
        loss_scale: float | None = None,
    ) -> None:
        super().__init__(n_samples, stop, loss_scale)
        self.module, self.unpack = module, unpack
        self._batch: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register the hooks."""
        network = pl_module.get_submodule(self.module) if self.module else pl_module
        self._attach(network, trainer.global_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch until its backward pass."""
        if batch_idx == 0:
            # A checkpoint of an epoch's last step resumes with the next epoch, before the end of
            # the last one was recorded. Lightning takes one more step before it stops.
            self._stopped = self._end_epoch(trainer, pl_module)
        self._hooks.reset()  # drop a step whose backward pass was skipped
        self._batch = batch

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the step."""
        if not self._stopped:
            self._hooks.update(*self.unpack(self._batch))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the epoch, and stop the training if the peak is detected."""
        self._end_epoch(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the hooks."""
        self._detach()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove the hooks."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """Return everything recorded so far, for Lightning's checkpoint."""
        return self._checkpoint()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises
        ------
        ValueError
            If there are several processes: the checkpoint has the share of one. If the checkpoint
            was written by several processes, or without the stop that is used now.
        """
        if world_size() > 1:
            raise ValueError(
                "a checkpoint has the recorded share of one process of several: resume without "
                "LightningRecorder, or train in one process"
            )
        self._resume(state_dict)

    def _end_epoch(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        detected = self._close_epoch(pl_module)
        trainer.should_stop |= detected
        return detected

    def _detach(self) -> None:
        super()._detach()
        self._batch = None
