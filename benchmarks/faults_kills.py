"""Processes that are killed at random instants, and what their stores hold afterwards.

A server without threads has loaded everything, and forks a victim in a moment; the victim trains
until it is done or SIGKILL meets it. It keeps its checkpoint after every epoch, so that many of the
instants lie within a write.
"""

import contextlib
import hashlib
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from memlens.storage import inventory
from memlens.storage.store import Store

HERE = Path(__file__).resolve()


def training() -> None:
    """Two runs, one after the other: the first must outlive the kills of the second."""
    import memlens as ml

    data = ml.load("digits").subset(300)
    jobs = [ml.Job("small_cnn_bn", data, ml.TrainConfig(epochs=5, seed=seed)) for seed in (0, 1)]
    ml.train_many(jobs, n_jobs=1)


def sweep() -> None:
    """Twelve nets in chunks of three."""
    import memlens as ml
    from memlens.ensembles import subsets

    subsets.CPU_ENSEMBLE_SIZE = 3
    data = ml.load("digits").subset(300)
    ml.subset_sweep("mlp", data, n_models=12, config=ml.TrainConfig(epochs=8), n_jobs=1)


def retraining() -> None:
    """Folds of two labellings, six nets in chunks of two."""
    import memlens as ml
    from memlens.ensembles import retrainings

    retrainings.CPU_ENSEMBLE_SIZE = 2
    data = ml.load("digits").subset(300)
    asked = [data, data.with_noise(0.2)]
    retrainings.retrain("folds", "mlp", asked, ml.TrainConfig(epochs=8), seeds=[0, 1], n_jobs=1)


def parallel(n_jobs: int = 2) -> None:
    """Three runs and six nets in chunks of two, in two processes of joblib."""
    import memlens as ml
    from memlens.ensembles import subsets

    subsets.CPU_ENSEMBLE_SIZE = 2
    data = ml.load("digits").subset(300)
    jobs = [ml.Job("mlp", data, ml.TrainConfig(epochs=20, seed=s)) for s in range(3)]
    ml.train_many(jobs, n_jobs=n_jobs)
    ml.subset_sweep("mlp", data, n_models=6, config=ml.TrainConfig(epochs=20), n_jobs=n_jobs)


JOBS = {"training": training, "sweep": sweep, "retraining": retraining, "parallel": parallel}
# Whom a kill meets: who called, one of its processes, or all at once; alone, a caller is all there
# is. What a dead caller's processes have in hand they finish beside the next life.
WHOM = {"parallel": ("caller", "one of its processes", "all")}
# How a last life is led: in one process, as is advised after a kill, and soonest to start.
LAST = {"parallel": "parallel_alone"}


def serve() -> None:
    """Fork a victim a line ("job folder"), tell its number, reap it when told to."""
    import torch

    import memlens as ml
    from memlens.storage import checkpoints

    torch.set_num_threads(1)
    checkpoints.SECONDS, checkpoints.SHARE = 0.0, 1e9  # a checkpoint after every epoch
    ml.load("digits")
    print("ready", flush=True)
    for line in sys.stdin:
        job, folder = line.split(maxsplit=1)
        pid = os.fork()
        if not pid:
            os.setpgid(0, 0)
            os.environ["MEMLENS_CACHE"] = folder.strip()
            _be_victim(job)
        print(pid, flush=True)
        sys.stdin.readline()
        print(os.waitpid(pid, 0)[1], flush=True)


def _be_victim(job: str) -> None:
    try:
        (JOBS | {"parallel_alone": lambda: parallel(n_jobs=1)})[job]()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


class Victims:
    """The server, from the other side."""

    def __enter__(self) -> "Victims":
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
        }
        self.server = subprocess.Popen(
            [sys.executable, str(HERE)], env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.server.stdout.readline()  # ready
        self.groups: list[int] = []  # of processes, one a victim
        return self

    def __exit__(self, *_: object) -> None:
        self.end_orphans()
        self.server.communicate(timeout=60)

    def run(
        self, job: str, folder: Path, seconds: float | None = None, whom: str = "caller"
    ) -> bool:
        """Let a victim live so long; whether it was done before.

        Raises
        ------
        RuntimeError
            If it failed by itself: that is a fault. That it failed because one of its processes was
            killed is none.
        """
        print(job, folder, file=self.server.stdin, flush=True)
        pid = int(self.server.stdout.readline())
        one = None
        if seconds is not None:
            _wait(pid, seconds)
            one = _kill(pid, whom)
        print("reap", file=self.server.stdin, flush=True)
        status = int(self.server.stdout.readline())
        expected = (0, signal.SIGKILL, 1 << 8) if one else (0, signal.SIGKILL)
        if status not in expected:
            raise RuntimeError(f"the {job} in {folder} failed with status {status}")
        self.groups.append(pid)
        return status == 0

    def end_orphans(self) -> None:
        """Kill what processes of dead callers are still at work."""
        for group in self.groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self.groups = []


def _wait(pid: int, seconds: float) -> None:
    """Sleep so long, or until the process ends, where the system (Linux) tells it."""
    if not hasattr(os, "pidfd_open"):
        time.sleep(seconds)
        return
    handle = os.pidfd_open(pid)
    try:
        select.select([handle], [], [], seconds)
    finally:
        os.close(handle)


def _kill(pid: int, whom: str) -> bool:
    """Kill a victim, or part of it; whether it was one of its processes and not itself."""
    # Nobody else has the number: it is not reaped yet.
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if whom == "one of its processes" and (found := children.read_text().split()):
        os.kill(int(found[-1]), signal.SIGKILL)  # the last: the first keeps joblib's accounts
        return True
    (os.killpg if whom == "all" else os.kill)(pid, signal.SIGKILL)
    return False


def content(folder: Path) -> dict[str, str]:
    """The hash of all arrays of every finished artifact, without the times that were measured."""
    found = {}
    for entry in inventory.entries(folder):
        if entry.kind in ("part", "checkpoint", "damaged", "leftover"):
            continue
        digest = hashlib.sha256()
        for name, values in sorted(Store(folder).get(entry.name).arrays.items()):
            if name != "history/seconds":
                digest.update(f"{name} {values.dtype} {values.shape}".encode())
                digest.update(np.ascontiguousarray(values))
        found[entry.name] = digest.hexdigest()
    return found


def whole_names(folder: Path) -> set[str]:
    """Names of the artifacts and parts that are finished."""
    kinds = ("checkpoint", "damaged", "leftover")
    return {entry.name for entry in inventory.entries(folder) if entry.kind not in kinds}


def kills(
    job: str, n: int, work: Path, seed: int = 0, victims: Victims | None = None
) -> dict[str, int | float]:
    """Kill a job so often, going on with it each time, and again from nothing once it is done.

    Whom a kill meets (`WHOM`) takes turns. A server may be given, for several jobs one after the
    other.

    Returns
    -------
    dict
        kills; corrupt (damaged artifacts, parts and checkpoints, seen after each kill), lost
        (finished artifacts gone), finished (jobs that ended), differ (those of them with another
        bit than the undisturbed one), leftovers (at an end), seconds (of the shortest undisturbed
        life).
    """
    rng, counts = np.random.default_rng(seed), dict.fromkeys(("kills", "corrupt", "lost"), 0)
    counts |= {"finished": 0, "differ": 0, "leftovers": 0}
    kinds = WHOM.get(job, ("caller",))
    with contextlib.nullcontext(victims) if victims else Victims() as victims:
        start = time.perf_counter()
        victims.run(job, work / "whole")
        length, right = time.perf_counter() - start, content(work / "whole")
        seen, folder, lives = set(), work / "0", 0
        while not counts["finished"] or counts["kills"] < n or inventory.entries(folder):
            last, lives = counts["kills"] >= n, lives + 1
            spared = last or lives % 5 == 0  # else a busy machine would finish nothing
            whom = kinds[counts["kills"] % len(kinds)]
            start = time.perf_counter()
            life = LAST.get(job, job) if last else job
            done = victims.run(life, folder, None if spared else rng.uniform(0, length), whom)
            if spared:  # the first life may have been slow: that of a cold machine
                length = min(length, time.perf_counter() - start)
            counts["kills"] += not done
            counts["corrupt"] += len(inventory.verify(inventory.entries(folder)))
            counts["corrupt"] += sum(e.kind == "damaged" for e in inventory.entries(folder))
            names = whole_names(folder)
            lost = {name for name in seen - names if not _became_whole(name, names, right)}
            counts["lost"] += len(lost)
            seen = names
            if done:
                if (
                    job in WHOM
                ):  # what orphans left is tidied up by who looks for the artifacts next
                    victims.end_orphans()
                    victims.run(job, folder)
                counts["finished"] += 1
                counts["differ"] += content(folder) != right
                counts["leftovers"] += sum(
                    entry.kind in ("part", "checkpoint", "leftover")
                    for entry in inventory.entries(folder)
                )
                seen, folder = set(), work / str(counts["finished"])
            if last:
                break
    return counts | {"seconds": length}


def _became_whole(name: str, names: set[str], right: dict[str, str]) -> bool:
    """Return whether a part is gone because its artifact is finished."""
    return "." in name and (name.split(".")[0] in names or set(right) <= names)


if __name__ == "__main__":
    serve()
