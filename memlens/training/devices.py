"""Device, precision, memory layout and compilation of a training.

A `TrainConfig` holds the request, and `Engine` what it means on this machine, so that the loops are
the same everywhere. bfloat16 is used in the forward and backward passes of training only: weights,
their gradients, losses, sums and everything measured after an epoch stay in float32.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PRECISIONS = ("float32", "bfloat16", "auto")
EVAL_ROWS = 4096  # samples in one pass after an epoch, if their layers' outputs fit
GPU_SHARE = 0.1  # of a GPU's memory for the layers' outputs of such a pass
CGROUP = Path("/sys/fs/cgroup")
GRAPHS = 128  # most graphs to compile in one process
CPU_BYTES = 1 << 25  # the same on a CPU, the size of its caches; 1 << 30 took twice as long


def resolve(name: str) -> torch.device:
    """Return the device of that name; "auto" is a GPU where there is one.

    Raises
    ------
    ValueError
        If there is no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    known = re.fullmatch(r"cpu|cuda(:\d+)?", name)
    if not known:
        raise ValueError(f"unknown device {name!r}; use 'cpu', 'cuda', 'cuda:1' or 'auto'")
    device = torch.device(name)
    if is_gpu(device):
        n = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= n:
            raise ValueError(
                f"device is {name!r}, but torch finds {n} GPUs here; use 'cpu', or 'auto' for a "
                "GPU where there is one"
            )
        return torch.device("cuda", device.index or 0)  # with a number, so that names compare
    return device


def is_gpu(device: torch.device) -> bool:
    """Return whether it is a GPU, which is used through ``torch.cuda``."""
    return device.type != "cpu"


def sums_in_float32(device: torch.device) -> bool:
    """Return whether convolutions in bfloat16, and their weight gradients, sum in float32.

    On a GPU they do. On a CPU those of oneDNN do, which need AVX-512 or better; torch's own, used
    otherwise, round the sum to bfloat16 after every image.
    """
    if is_gpu(device):
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@dataclass(frozen=True)
class Engine:
    """Device, precision, memory layout and compilation on this machine.

    Attributes
    ----------
    device : torch.device
    bfloat16 : bool
        Whether training passes use bfloat16 where torch considers it safe.
    channels_last : bool
        Whether images are stored pixel by pixel, the fast layout for tensor cores.
    compiled : bool
        Whether forward and backward pass are compiled.
    """

    device: torch.device = torch.device("cpu")
    bfloat16: bool = False
    channels_last: bool = False
    compiled: bool = False

    @classmethod
    def of(
        cls, device: str, precision: str, channels_last: bool | None, compiled: bool | None
    ) -> "Engine":
        """Resolve the settings of a `TrainConfig`: "auto" and None choose what is fast on a GPU.

        Raises
        ------
        ValueError
            If there is no such device.
        """
        place = resolve(device)
        fast = is_gpu(place)
        able = fast and torch.cuda.is_bf16_supported(including_emulation=False)
        return cls(
            place,
            precision == "bfloat16" or (precision == "auto" and able),
            fast if channels_last is None else channels_last,
            fast if compiled is None else compiled,
        )

    @property
    def key(self) -> list[str | bool]:
        """Part of a cache key: the settings that shape a result."""
        return [self.device.type, self.bfloat16, self.channels_last, self.compiled]

    @property
    def memory_format(self) -> torch.memory_format:
        """Layout of images and of the weights of convolutions."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def place(self, net: nn.Module) -> nn.Module:
        """Move a network to the device and layout, and return it."""
        net.to(self.device)
        return net.to(memory_format=torch.channels_last) if self.channels_last else net

    def forward(self, net: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return the network's forward pass for training; its logits are float32.

        Warns if bfloat16 is requested and the device would sum in it (`sums_in_float32`).
        """
        # Only the last batch has another shape: two graphs are faster than one for any size.
        fast = torch.compile(net, dynamic=False) if self.compiled else net
        if not self.bfloat16:
            return fast
        if not sums_in_float32(self.device):
            warnings.warn(
                "torch has no bfloat16 convolutions for this processor, and sums their weight "
                "gradients in bfloat16, image by image: they are off by 2 % in a batch of 256, and "
                "by more in a larger one; precision='float32' is exact, and faster here",
                stacklevel=3,
            )

        def in_bfloat16(*inputs: Any) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16):
                return fast(*inputs).float()

        return in_bfloat16

    @contextmanager
    def tuned(self) -> Iterator[None]:
        """Choose kernels by trial on a GPU inside, and keep float32 exact (`exact_float32`)."""
        with exact_float32(), torch.random.fork_rng(self._gpus()), self._many_graphs():
            before = torch.backends.cudnn.benchmark
            torch.backends.cudnn.benchmark = is_gpu(self.device)
            try:
                yield
            finally:
                torch.backends.cudnn.benchmark = before

    def _many_graphs(self) -> AbstractContextManager:
        # torch counts all compiled networks as one function, and after eight graphs (two for each
        # network and batch size) continues uncompiled without a warning.
        if not self.compiled:
            return nullcontext()
        import torch._dynamo  # takes a second, which other trainings are spared

        return torch._dynamo.config.patch(recompile_limit=GRAPHS)

    def _gpus(self) -> list[int]:
        return [self.device.index or 0] if is_gpu(self.device) else []


@contextmanager
def thread_count(n: int | None) -> Iterator[None]:
    """Let torch compute with ``n`` threads inside; None leaves their number as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 products on a GPU in full precision inside.

    By default, convolutions on a GPU round their inputs to ten bits (TF32). Curvature is made of
    small differences of gradients, which that rounding would hide.
    """
    # The older `allow_tf32` raises an error on reading once a caller has used these.
    parts = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "ieee"
    try:
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = value


@torch.no_grad()
def bytes_per_sample(net: nn.Module, x: Tensor) -> int:
    """Return the bytes of all layers' outputs for one sample ``x`` (1, ...)."""
    found = [x.nbytes]
    layers = [m for m in net.modules() if not any(m.children())]

    def note(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            found.append(output.nbytes)

    hooks = [layer.register_forward_hook(note) for layer in layers]
    was_training = net.training
    try:
        net.eval()(x)
    finally:
        net.train(was_training)
        for hook in hooks:
            hook.remove()
    return sum(found)


def rows_at_once(net: nn.Module, x: Tensor) -> int:
    """Return how many samples like ``x`` (1, ...) fit into one pass with gradients."""
    budget = GPU_SHARE * total_memory(x.device) if is_gpu(x.device) else CPU_BYTES
    return int(max(1, min(EVAL_ROWS, budget // bytes_per_sample(net, x))))


def rows_of(net: nn.Module, in_shape: tuple[int, ...]) -> int:
    """Return `rows_at_once` of samples of that shape, on the network's device."""
    device = next(net.parameters()).device
    return rows_at_once(net, torch.zeros(1, *in_shape, device=device))


def total_memory(device: torch.device) -> int:
    """Return the bytes of memory of a device."""
    if is_gpu(device):
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that are free on a device, or can be freed at once."""
    if is_gpu(device):
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        with open("/proc/meminfo") as lines:
            kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        free = int(kilobytes) * 1024
    except (OSError, StopIteration):  # not Linux
        free = total_memory(device)
    try:  # a container may have less than its machine
        limit, used = ((CGROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        return min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):  # no container, or no limit: "max"
        return free
