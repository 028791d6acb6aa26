"""A callback for the Hugging Face Trainer: ``Trainer(..., callbacks=[TrainerRecorder(n)])``."""

from pathlib import Path
from typing import Any

import torch

from memlens.tracking.counting import CountingRecorder
from memlens.tracking.hooks import RecorderHooks
from memlens.tracking.resuming import check_new, kept, take_up
from memlens.tracking.stopping import PeakStop

try:
    import accelerate  # noqa: F401  the Trainer needs it
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        "TrainerRecorder needs transformers and accelerate: "
        "pip install 'transformers>=5,<6' 'accelerate>=1,<2'"
    ) from error


class TrainerRecorder(TrainerCallback):
    """Records every training epoch of a `Trainer`; evaluation is not recorded.

    The training set, of dicts, is wrapped with ``ml.with_index``, and the arguments have
    ``remove_unused_columns=False``, or the Trainer drops the index; the net does not see it.
    What the loss is multiplied by is measured (see `RecorderHooks`): the Trainer divides it by the number
    of accumulated batches, or the net by ``num_items_in_batch``, depending on the net. Make a new
    one for each training.

    Parameters
    ----------
    n_samples : int
        Size of the training set.
    stop : PeakStop, optional
        Ends the training at a peak. The weights at the peak are in ``stop.best_state``.
    input : str, optional
        Argument of the net whose gradient is recorded, as "pixel_values"; by default the first
        tensor of floats.
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
        input: str | None = None,
        loss_scale: float | None = None,
    ) -> None:
        self.recorder, self.stop = CountingRecorder(n_samples), stop
        self.input, self.loss_scale = input, loss_scale
        self._watched: RecorderHooks | None = None
        self._ended = False  # before the epoch that has begun, which is then not recorded

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch the net; go on from the checkpoint that the Trainer goes on from."""
        if args.n_gpu > 1:
            raise ValueError(
                f"one process drives {args.n_gpu} GPUs: start one for each, with torchrun"
            )
        check_new(self.recorder, state.global_step)
        self._watched = RecorderHooks(
            kwargs["model"], self.recorder, input=self.input, loss_scale=self.loss_scale
        )
        if state.global_step:
            self._load(args, state)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close an epoch whose last step was in a checkpoint, and its end was not."""
        self._ended = False
        if self.recorder.in_epoch and float(state.epoch).is_integer():
            self.on_epoch_end(args, state, control, **kwargs)
            self._ended = control.should_training_stop  # the Trainer makes one more step

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record a batch whose gradients are accumulated."""
        self._update()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the batch that a step of the optimizer follows."""
        self._update()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the epoch, and stop if the peak is called."""
        if not self.recorder.in_epoch:
            return
        self._watched.end_epoch()
        if self.stop and self.stop.update(kwargs["model"], self.recorder):
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the net as it was."""
        self._watched.remove()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep what is recorded beside the Trainer's checkpoint, each process its share."""
        torch.save(kept(self.recorder, self.stop, args.world_size), self._path(args, state))

    def _update(self) -> None:
        if self._ended:
            return self._watched.reset()
        if self._watched.index is None:
            raise ValueError(
                "the batch holds no index: wrap the training set with ml.with_index, and set "
                "remove_unused_columns=False in TrainingArguments"
            )
        if self._watched.y is None:
            raise ValueError(
                "the net was given no labels: the training set's dicts need `labels`, "
                "label_smoothing_factor has to be 0, and compute_loss_func takes them away: a loss "
                "of your own goes into the net, or into compute_loss of a Trainer of your own"
            )
        self._watched.update()

    def _path(self, args: TrainingArguments, state: TrainerState) -> Path:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        return folder / f"memlens_recorder_{args.process_index}.pt"

    def _load(self, args: TrainingArguments, state: TrainerState) -> None:
        path = self._path(args, state)
        if not path.exists():
            raise ValueError(
                f"the training goes on from step {state.global_step}, but {path} is not there: "
                "resume from a checkpoint that was written with this callback, or without it"
            )
        state = torch.load(path, weights_only=True)
        take_up(state, self.recorder, self.stop, args.world_size)
