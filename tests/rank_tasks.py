"""What `test_ranks` lets two processes of ``torchrun`` do; each keeps what it found in a folder."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import memlens as ml
from memlens import __main__
from memlens.data.samples import Dataset
from memlens.experiments import launch
from memlens.storage import checkpoints, inventory, store
from memlens.storage.checkpoints import TrainingCheckpoint
from memlens.training.config import MeasureConfig, TrainConfig
from memlens.training.distributed import process_group, train_in_group

# 101 samples in batches of 20: the last has one, so that the second process has none of it.
UNEVEN = TrainConfig(epochs=4, batch_size=20, augment="crop", sam_rho=0.05)
STOPPED = TrainConfig(epochs=40, batch_size=33, lr=0.3, stop="input_gradient", patience=2)
REFUSED = {
    "batch_norm": ("mlp_bn", TrainConfig(epochs=1), MeasureConfig()),
    "posthoc": ("mlp", TrainConfig(epochs=1), MeasureConfig(posthoc=True)),
    "large": ("mlp", TrainConfig(epochs=1, batch_size=200), MeasureConfig()),
    "small": ("mlp", TrainConfig(epochs=1, batch_size=1), MeasureConfig()),
}


def few() -> Dataset:
    """The first 101 digits, and as many to validate on."""
    data = ml.load("digits")
    some = torch.arange(101)
    return replace(data, train=data.train[some], test=data.test[some])


def talking() -> list[str]:
    """Names of the threads by which processes talk, where the system (Linux) tells them."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def refuse_to_fork(event: str, arguments: tuple) -> None:
    """Fail where a process is forked, as an audit hook.

    The copy may wait for ever for a lock that a thread of the group held at that moment.
    """
    if event in ("os.fork", "os.forkpty"):
        raise AssertionError("a process with threads was forked")


def main(folder: Path) -> None:
    data, checkpoints.SECONDS, checkpoints.SHARE = few(), 0.0, 1e9
    with process_group(UNEVEN) as group:
        found = {}
        assert talking() or not Path("/proc").exists()

        def keep(name, run):
            found.update({f"{name}/{key}": values for key, values in run.arrays.items()})

        checkpoint, earlier = (
            TrainingCheckpoint(folder / "a.checkpoint"),
            folder / "earlier" / "a.checkpoint",
        )
        earlier.parent.mkdir(exist_ok=True)  # a checkpoint is sealed with its name

        def watch(row):
            if row["epoch"] == 3:
                shutil.copy(checkpoint.path, earlier)  # of three epochs: the fourth is not yet kept

        keep(
            "uneven",
            train_in_group(group, "mlp", data, UNEVEN, checkpoint=checkpoint, watch=watch),
        )
        if group.rank == 0:
            assert len(TrainingCheckpoint(earlier).load()["history"]) == 3
        keep(
            "resumed",
            train_in_group(group, "mlp", data, UNEVEN, checkpoint=TrainingCheckpoint(earlier)),
        )
        keep("stopped", train_in_group(group, "small_cnn", data, STOPPED))
        for name, (model, config, measure) in REFUSED.items():
            try:
                train_in_group(group, model, data, config, measure)
            except ValueError as error:
                found[f"refused/{name}"] = np.array(str(error))
        np.savez(folder / f"{group.rank}.npz", **found)
        group.own_statistics = True
        job = ml.Job("mlp_bn", data, TrainConfig(epochs=2, batch_size=40))
        once, again = (launch._train_together(job, group, store.Store()) for _ in range(2))
        assert (once is None) == (again is None) == (group.rank == 1)
        if once:
            (entry,) = inventory.entries(store.cache_dir())
            assert entry.what.endswith(", 2 epochs, 2 processes") and entry.seconds > 0
            assert np.array_equal(once.trace.loss, again.trace.loss)  # found, and not trained again
    assert not talking()  # they may abort a process that ends


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.addaudithook(refuse_to_fork)
    main(Path(sys.argv[1]))
    sys.exit(__main__.main(sys.argv[2:]))  # a command line, in processes that have all they need
