"""The state of one training, between its epochs: what is built, saved, resumed and returned."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from memlens.data.samples import Dataset
from memlens.models import registry
from memlens.tracking.peaks import StopRules
from memlens.tracking.recorder import Recorder
from memlens.training import devices
from memlens.training.batches import Batches
from memlens.training.config import MeasureConfig, TrainConfig
from memlens.training.devices import Engine
from memlens.training.memory import check_memory
from memlens.training.posthoc import PosthocEvaluator
from memlens.training.runs import Run


class TrainingState:
    """Network, optimizer, recorder, history and snapshots of one training."""

    n_processes = 1  # that share each batch

    def __init__(
        self,
        model: str | registry.Builder,
        data: Dataset,
        config: TrainConfig,
        measure: MeasureConfig,
        engine: Engine,
        record: bool = True,
    ) -> None:
        if len(data.train) < config.batch_size:
            raise ValueError(
                f"{len(data.train)} training samples are fewer than a batch of "
                f"{config.batch_size}; lower batch_size in the TrainConfig"
            )
        self.model, self.data, self.config, self.engine = model, data, config, engine
        self.recorder: Recorder | None = None
        self.set_up(registry.build(model, data.n_classes, data.in_shape, seed=config.seed), record)
        one = torch.zeros(1, *data.in_shape, device=engine.device)
        check_memory(self.net, one, data, config, measure, n_processes=self.n_processes)
        self.rows = devices.rows_at_once(self.net, one)
        self.batches = Batches(data, config, engine)
        self.optimizer = config.build_optimizer(self.net.parameters())
        self.posthoc: PosthocEvaluator | None = None
        if measure.posthoc:
            self.posthoc = PosthocEvaluator(data, measure, config.seed, self.rows)
        self.stops = StopRules(config.patience)
        self.history: list[dict[str, float]] = []
        self.snapshots: dict[str, dict[str, Tensor]] = {}  # weights at each stop

    def set_up(self, net: nn.Module, record: bool) -> None:
        """Move the network to its device, and create its recorder."""
        raise NotImplementedError

    @property
    def finished(self) -> bool:
        """True if no epoch is left, or if the stop of the configuration is detected."""
        return len(self.history) >= self.config.epochs or self.stops.detected(self.config.stop)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next epochs depend on, as tensors and plain values."""
        parts = {"net": self.net, "optimizer": self.optimizer}
        parts |= {"recorder": self.recorder, "posthoc": self.posthoc}
        state = {name: part.state_dict() for name, part in parts.items() if part is not None}
        return state | {"history": self.history, "snapshots": self.snapshots}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises
        ------
        ValueError
            If the checkpoint was saved with another ``record`` or ``MeasureConfig.posthoc``.
        """
        for name, option in (("recorder", "record"), ("posthoc", "MeasureConfig.posthoc")):
            if (getattr(self, name) is None) != (name not in state):
                raise ValueError(
                    f"the checkpoint was saved with {option}={name in state}: resume with the same "
                    "option, or remove the checkpoint"
                )
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.recorder:
            self.recorder.load_state_dict(state["recorder"])
        if self.posthoc:
            self.posthoc.load_state_dict(state["posthoc"])
        self.history, self.snapshots = list(state["history"]), dict(state["snapshots"])
        for row in self.history:  # a detector is what it has seen
            self.stops.update(row)

    def result(self) -> Run:
        """Return the finished run."""
        self.snapshots["last"] = self.net.state_dict()
        history = pd.DataFrame(self.history)
        arrays = {f"history/{name}": history[name].to_numpy() for name in history}
        if self.recorder:
            arrays |= {f"trace/{name}": rows for name, rows in self.recorder.trace.items()}
        else:  # a run without scores still has a trace of the right shape
            shape = len(history), len(self.data.train)
            arrays["trace/loss"] = np.full(shape, np.nan, np.float32)
        if self.posthoc:
            rows = self.posthoc.finish(self.net)
            arrays |= {f"posthoc/{name}": values for name, values in rows.items()}
        for name, weights in self.snapshots.items():
            arrays |= {f"snapshot/{name}/{k}": v.cpu().numpy() for k, v in weights.items()}
        meta = {"stops": {name: tuple(peak) for name, peak in self.stops.peaks.items()}}
        return Run(self.model, self.data, arrays, meta)
