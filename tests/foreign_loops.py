"""The task that every framework trains, and the plain loop to compare with.

As a script it is one process of several: ``foreign_loops.py KIND FOLDER``, started by
`run_processes`.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # before a process group, or it keeps a reference to the group
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from memlens.tracking.counting import CountingRecorder
from memlens.tracking.indexing import with_index
from memlens.tracking.stopping import PeakStop
from memlens.tracking.traces import SIGNALS

N, SIZE, EPOCHS, CLASSES, RATE = 37, 8, 3, 4, 0.2
ROOT = Path(__file__).resolve().parents[1]
X = torch.randn(N, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(CLASSES, (N,), generator=torch.Generator().manual_seed(1))


def dataset():
    return with_index(TensorDataset(X, Y))


class Dicts(torch.utils.data.Dataset):
    """The same samples as dicts, for a `Trainer`."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return {"pixel_values": X[i], "labels": int(Y[i])}


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4)
    )


def in_order():
    return list(torch.arange(N).split(SIZE))


def plain(
    batches=None,
    *,
    epochs=EPOCHS,
    accumulate=1,
    divisor=None,
    by_items=False,
    kind=CountingRecorder,
    net=None,
    low=None,
    scaler=None,
):
    """Return recorder and network of a minimal loop.

    Accumulated losses are divided by their number, by ``divisor``, or weighted by their samples.
    ``low`` is a dtype for autocast, ``scaler`` a GradScaler.
    """
    net, recorder = net or build(), kind(N)
    optimizer = torch.optim.SGD(net.parameters(), RATE)
    batches = in_order() if batches is None else batches
    for _ in range(epochs):
        for start in range(0, len(batches), accumulate):
            group = batches[start : start + accumulate]
            optimizer.zero_grad()
            for index in group:
                factor = 1 / (divisor or len(group))
                if by_items:
                    factor = len(index) / sum(map(len, group))
                x = recorder.watch(X[index])
                with torch.autocast("cpu", low, enabled=low is not None):
                    logits = net(x)
                    loss = F.cross_entropy(logits, Y[index]) * factor
                if scaler:
                    loss, factor = scaler.scale(loss), scaler.scale(torch.tensor(float(factor)))
                loss.backward()
                recorder.update(index, x, logits, Y[index], loss_scale=factor)
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
        recorder.end_epoch()
    return recorder, net


def assert_same(found, expected, rtol=2e-5, atol=2e-6):
    """Compare signals up to float32 rounding, and visits exactly."""
    assert found.n_epochs == expected.n_epochs
    assert found.trace.visits.tolist() == expected.trace.visits.tolist()
    assert found.trace.predicted.tolist() == expected.trace.predicted.tolist()
    for name in SIGNALS:
        np.testing.assert_allclose(
            found.trace[name], expected.trace[name], rtol=rtol, atol=atol, err_msg=name
        )


def run_processes(kind, folder, n=2, seconds=170):
    """Run ``n`` processes; return the gathered recorder and the saved dict of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0",
    }  # fmt: skip
    command = [sys.executable, __file__, kind, str(folder)]
    processes = [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(n)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, outputs, strict=True):
        assert process.returncode == 0, text[-3000:]
    results = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(n)]
    gathered = []
    for result in results:
        recorder = CountingRecorder(N)
        recorder.load_state_dict(result["recorder"])
        gathered.append(recorder)
    return gathered, results


def global_batches(n=2):
    """Return the samples of each step of `run_processes`: all ranks, including the padding."""
    order = torch.cat([torch.arange(N), torch.arange(-N % n)])
    parts = [order[rank::n].split(SIZE) for rank in range(n)]
    return [torch.cat(step) for step in zip(*parts, strict=True)]


def save(folder, rank, recorder, share, *stops):
    values = [stop.values for stop in stops]
    state = {"recorder": recorder.state_dict(), "share": share, "values": values}
    torch.save(state, Path(folder) / f"{rank}.pt")


def ddp_process(folder):
    torch.distributed.init_process_group("gloo")
    net = nn.parallel.DistributedDataParallel(build())
    data = dataset()
    loader = DataLoader(data, SIZE, sampler=DistributedSampler(data, shuffle=False))
    recorder, stop, norm = CountingRecorder(N), PeakStop("input_gradient"), PeakStop()
    wave = PeakStop("label_wave")
    optimizer = torch.optim.SGD(net.parameters(), RATE)
    for _ in range(EPOCHS):
        for index, x, y in loader:
            x = recorder.watch(x)
            logits = net(x)
            optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()
            optimizer.step()
            recorder.update(index, x, logits, y)
        recorder.end_epoch()
        stop.update(net, recorder)
        wave.update(net, recorder)
        rank = torch.distributed.get_rank()
        with torch.no_grad():  # as if sums had another order
            net.module[0].bias *= 1 + 1e-3 * rank
        norm.update(net, recorder)
        with torch.no_grad():
            net.module[0].bias /= 1 + 1e-3 * rank
    assert list(stop.best_state) == list(build().state_dict())  # without the wrapper's prefix
    share = recorder.visits.sum(1).tolist()
    whole = recorder.gathered()
    assert whole.merged and whole.gathered() is whole  # and not added up once more
    save(folder, rank, whole, share, stop, norm, wave)


def lightning_process(folder):
    import lightning_task

    rank = int(os.environ["RANK"])
    sampler = DistributedSampler(dataset(), 2, rank, shuffle=False)  # Lightning's own shuffles
    callback = lightning_task.fit(
        devices=2, strategy="ddp", default_root_dir=folder, use_distributed_sampler=False,
        train=lightning_task.loader(sampler=sampler),
    )  # fmt: skip
    share = callback.recorder.visits.sum(1).tolist()
    save(folder, rank, callback.recorder.gathered(), share)


def huggingface_process(folder):
    import huggingface_task

    callback = huggingface_task.fit(folder)
    share = callback.recorder.visits.sum(1).tolist()
    save(folder, int(os.environ["RANK"]), callback.recorder.gathered(), share)


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[f"{sys.argv[1]}_process"](sys.argv[2])
    # Neither framework destroys its gloo group, whose threads can abort the interpreter at exit.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
