"""A callback for Lightning: ``Trainer(callbacks=[LightningRecorder(n_samples)])``."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from memlens.tracking.counting import CountingRecorder
from memlens.tracking.hooks import RecorderHooks
from memlens.tracking.processes import world_size
from memlens.tracking.resuming import check_new, kept, take_up
from memlens.tracking.stopping import PeakStop

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "LightningRecorder needs lightning: pip install 'lightning>=2.6,<3'"
    ) from error


def index_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    """Positions and labels of a batch ``(index, x, y)`` or ``{"index": ..., "labels": ...}``.

    Raises
    ------
    ValueError
        If the batch holds no index.
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
        f"the batch holds no index and labels ({kind}): wrap the training set with ml.with_index "
        "so that it is (index, x, y), or give LightningRecorder an `unpack` function"
    )


class LightningRecorder(Callback):
    """Records every training epoch of a Lightning trainer; validation is not recorded.

    The data loader's data set is wrapped with ``ml.with_index``, and `training_step` unpacks
    ``index, x, y``. Accumulation, mixed precision and several processes need nothing else: what the
    loss is multiplied by is measured (see `RecorderHooks`). Make a new one for each training.

    From a checkpoint within an epoch Lightning goes on with the batch of that number, while its
    loader begins anew: what is read first is visited twice in that epoch, and counted so.

    Parameters
    ----------
    n_samples : int
        Size of the training set.
    stop : PeakStop, optional
        Ends the training at a peak. The weights at the peak are in ``stop.best_state``.
    module : str, optional
        Name of the submodule that `training_step` calls with images, as "net"; by default the
        Lightning module itself, ``self(x)``.
    unpack : callable, optional
        From a batch to (index, y); by default `index_and_labels`.
    loss_scale : float, optional
        See `RecorderHooks`.

    Attributes
    ----------
    recorder : CountingRecorder; of several processes each holds its share, until ``recorder.gathered()``
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
        self.recorder, self.stop = CountingRecorder(n_samples), stop
        self.module, self.unpack, self.loss_scale = module, unpack, loss_scale
        self._watched: RecorderHooks | None = None
        self._batch: Any = None
        self._ended = False  # before the epoch that has begun, which is then not recorded

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the net."""
        check_new(self.recorder, trainer.global_step)
        self._remove()
        net = pl_module.get_submodule(self.module) if self.module else pl_module
        self._watched = RecorderHooks(net, self.recorder, loss_scale=self.loss_scale)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch until its backward pass."""
        if batch_idx == 0:  # a checkpoint of an epoch's last step resumes with the next epoch
            self._ended = self._close(trainer, pl_module)  # Lightning makes one more step
        self._watched.reset()  # of a step that was skipped
        self._batch = batch

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the step."""
        if self._ended:
            return
        index, y = self.unpack(self._batch)
        self._watched.update(index, y)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the epoch, and stop if the peak is called."""
        self._close(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the net as it was."""
        self._remove()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the net as it was."""
        self._remove()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: all epochs, and the one that has begun."""
        return kept(self.recorder, self.stop, world_size())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        ValueError
            With several processes, or of several: a checkpoint holds the share of one. If a stop is
            wanted and the checkpoint has none.
        """
        if world_size() > 1:
            raise ValueError(
                "a checkpoint holds the recorded share of one process of several: resume without "
                "LightningRecorder, or train in one process"
            )
        take_up(state_dict, self.recorder, self.stop, world_size())

    def _close(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Close an epoch that has begun; whether the peak is called."""
        if not self.recorder.in_epoch:
            return False
        self._watched.end_epoch()
        called = bool(self.stop) and self.stop.update(pl_module, self.recorder)
        trainer.should_stop |= called
        return called

    def _remove(self) -> None:
        if self._watched:
            self._watched.remove()
        self._watched = self._batch = None
