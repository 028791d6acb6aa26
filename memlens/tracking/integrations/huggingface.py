"""A callback for the Hugging Face Trainer: ``Trainer(..., callbacks=[TrainerRecorder(n)])``."""

from pathlib import Path
from typing import Any

import torch

from memlens.tracking.integrations import RecorderCallback
from memlens.tracking.stopping import PeakStop

try:
    import accelerate  # noqa: F401  the Trainer needs it
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        "TrainerRecorder needs transformers and accelerate: pip install 'memlens[huggingface]'"
    ) from error


class TrainerRecorder(RecorderCallback, TrainerCallback):
    """Callback that records every training epoch of a Hugging Face `Trainer`.

    Wrap the training set, whose items are dicts, with ``ml.with_index``, and set
    ``remove_unused_columns=False``, because the Trainer drops the index otherwise; the network
    does not receive it. The scale of the loss is measured by `RecorderHooks`: either the Trainer
    divides the loss by the number of accumulated batches, or the network divides it by
    ``num_items_in_batch``. Evaluation is not recorded. Make a new callback for each training.

    >>> callback = ml.TrainerRecorder(len(dataset), input="pixel_values")  # doctest: +SKIP
    >>> arguments = TrainingArguments(folder, remove_unused_columns=False)  # doctest: +SKIP
    >>> Trainer(model, arguments, train_dataset=ml.with_index(dataset),
    ...         callbacks=[callback]).train()  # doctest: +SKIP
    >>> callback.recorder.scores()  # doctest: +SKIP

    ``examples/huggingface_trainer.py`` is the whole program.

    Parameters
    ----------
    n_samples : int
        Size of the training set.
    stop : PeakStop, optional
        Ends the training at a peak; ``stop.best_state`` has the weights at the peak.
    input : str, optional
        Argument of the network whose gradient is recorded, such as "pixel_values"; by default the
        first floating-point tensor.
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
        input: str | None = None,
        loss_scale: float | None = None,
    ) -> None:
        super().__init__(n_samples, stop, loss_scale)
        self.input = input

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Register the hooks, and load the checkpoint from which the Trainer resumes."""
        if args.n_gpu > 1:
            raise ValueError(
                f"one process uses {args.n_gpu} GPUs: start one process per GPU, with torchrun"
            )
        self._attach(kwargs["model"], state.global_step, input=self.input)
        if state.global_step:
            self._load(args, state)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the previous epoch if the checkpoint was written after its last step."""
        resumed_at_end = self.recorder.in_epoch and float(state.epoch).is_integer()
        # The Trainer takes one more step before it stops.
        self._stopped = resumed_at_end and self._end_epoch(control, kwargs["model"])

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record a batch whose gradients are accumulated."""
        self._update()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the last batch before a step of the optimizer."""
        self._update()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the epoch, and stop the training if the peak is detected."""
        self._end_epoch(control, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the hooks."""
        self._detach()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save everything recorded so far in the Trainer's checkpoint, one file per process."""
        torch.save(self._checkpoint(), self._path(args, state))

    def _end_epoch(self, control: TrainerControl, model: torch.nn.Module) -> bool:
        detected = self._close_epoch(model)
        control.should_training_stop |= detected
        return detected

    def _update(self) -> None:
        if self._stopped:
            self._hooks.reset()
            return
        if self._hooks.index is None:
            raise ValueError(
                "the batch has no index: wrap the training set with ml.with_index, and set "
                "remove_unused_columns=False in TrainingArguments"
            )
        if self._hooks.y is None:
            raise ValueError(
                "the network was called without labels: the items of the training set need "
                "`labels`; leave label_smoothing_factor at 0, and replace compute_loss_func, which "
                "removes the labels, by a loss in the network or in Trainer.compute_loss"
            )
        self._hooks.update()

    def _load(self, args: TrainingArguments, state: TrainerState) -> None:
        path = self._path(args, state)
        if not path.exists():
            raise ValueError(
                f"the training resumes from step {state.global_step}, but {path} does not exist: "
                "resume from a checkpoint that was written with this callback, or without it"
            )
        self._resume(torch.load(path, weights_only=True))

    def _path(self, args: TrainingArguments, state: TrainerState) -> Path:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        return folder / f"memlens_recorder_{args.process_index}.pt"
