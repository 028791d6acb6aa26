"""A GPU that is only imagined: pytest's plugin under which code for one runs on any machine.

    pytest -p imagined_gpu tests/test_gpu.py

A tensor there holds its values on the CPU, where they are computed with. What a GPU refuses is
refused: tensors of two places in one operation, a view by NumPy. What makes the host wait for it is
found by ``torch.cuda.set_sync_debug_mode``: copies, sizes that depend on values, values that are
looked at. Convolutions in float32 round their inputs to ten bits (TF32) unless that is off, and
autocast rounds those of products to bfloat16. Networks are not compiled. What else a kernel would
do, and how fast, is not imitated.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data._utils import pin_memory

NAME = "imagined"
GPU = torch.device("privateuseone", 0)  # which torch calls by our name after `install`
MEMORY = 16 << 30  # bytes
LOOKS = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique", "equal")
INDEXES = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
CONVOLUTIONS = ("convolution", "convolution_backward")
# What autocast gives to tensor cores.
PRODUCTS = {torch.conv2d, F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm}
MAKERS = {torch.tensor, torch.as_tensor}  # which torch does behind the back of a mode

waited: Counter[str] = Counter()  # what made the host wait, and how often
debug = SimpleNamespace(mode="default")


class OnGPU(Tensor):
    """A tensor on the GPU; ``held`` are its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGPU":
        """A tensor like ``held``, elsewhere."""
        self = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=GPU,
        )  # fmt: skip
        self.held = held
        return self

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> "OnGPU":
        return OnGPU(inner["held"])

    def __reduce_ex__(self, protocol: int) -> Any:
        """Pickled as a tensor of the CPU, as torch.load gives it with map_location."""
        return self.held.__reduce_ex__(protocol)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """What it wraps: a module whose weights are converted then takes the new ones whole."""
        return ["held"], None

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None):
        """Compute as a GPU would, or refuse to."""
        return _computed(operation, args, kwargs or {})


def wait(reason: str) -> None:
    """The host waits for the GPU: counted, and refused where ``set_sync_debug_mode`` says so."""
    waited[reason] += 1
    if debug.mode == "error":
        raise RuntimeError(f"called a synchronizing CUDA operation: {reason}")


def by_mask(index: Any) -> bool:
    """Whether an index is by a mask, so that the size of the result depends on its values."""
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in index)


def _computed(operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    ours = [isinstance(t, OnGPU) for t in tensors]
    stays = any(ours)
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]).type == NAME
    name = operation.overloadpacket.__name__
    if name == "copy_":
        stays = isinstance(args[0], OnGPU)
        copies, late = len(set(ours)) > 1, any(args[2:]) or kwargs.get("non_blocking")
    elif name == "_to_copy":
        copies, late = ours[0] != stays, kwargs.get("non_blocking")
    else:
        copies = late = False
        _check_places(name, args, tensors)
        if any(ours) and name in LOOKS:
            wait(name)
    if copies and not late:
        wait(f"{name} to {'the GPU' if stays else 'the CPU'}")
    values, options = tree_map(_held, (args, kwargs))
    if name in CONVOLUTIONS and torch.backends.cudnn.conv.fp32_precision != "ieee":
        values = tree_map(_to_ten_bits, values)
    if options.get("device") is not None:
        options["device"] = torch.device("cpu")
    out = operation(*values, **options)
    if not stays:
        return out
    out = tree_map(_lifted, out)
    own = args and isinstance(args[0], OnGPU)  # else there is nothing that it could be a view of
    return return_and_correct_aliasing(operation, args, kwargs, out) if own else out


def _check_places(name: str, args: tuple, tensors: list[Tensor]) -> None:
    """All on the GPU, but for numbers, and for an index, which torch takes over to the GPU."""
    if name in INDEXES:
        index = [i for i in args[1] if i is not None]
        if isinstance(args[0], OnGPU) and not all(isinstance(i, OnGPU) for i in index):
            wait(f"{name} by an index on the CPU")
        if any(isinstance(i, OnGPU) for i in index) and by_mask(index):
            wait(f"{name} by a mask")
        index = [id(i) for i in index] if isinstance(args[0], OnGPU) else []
        tensors = [t for t in tensors if id(t) not in index]
    apart = [t for t in tensors if t.ndim and not isinstance(t, OnGPU)]  # numbers may be apart
    if apart and any(isinstance(t, OnGPU) for t in tensors):
        found = [(tuple(t.shape), t.device.type) for t in tensors]
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {found}")


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnGPU) else value


def _to_ten_bits(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    bits = value.clone(memory_format=torch.preserve_format).view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def _lifted(value: Any) -> Any:
    return OnGPU(value) if isinstance(value, Tensor) else value


class _Operations(TorchDispatchMode):
    """Makes tensors there: of a size, or of one of the CPU."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        device = (kwargs or {}).get("device")
        there = device is not None and torch.device(device).type == NAME
        if there or any(issubclass(t, OnGPU) for t in types):
            return _computed(operation, args, kwargs or {})
        return operation(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """Reads ``cuda`` as the imagined GPU, and rounds under autocast."""

    def __torch_function__(
        self, call: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], OnGPU):
            if call in (Tensor.numpy, Tensor.__array__):
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            if call in (Tensor.__repr__, Tensor.__format__):
                return repr(args[0].held)
            if call is Tensor.tolist:
                wait("tolist")
                return args[0].held.tolist()
        if call is Tensor.cuda:
            call, args = Tensor.to, (args[0], GPU)
        if call is not torch.device:
            args, kwargs = tree_map(_read, (args, kwargs))
        if call in MAKERS and kwargs.get("device") is not None:
            return call(*args, **(kwargs | {"device": None})).to(kwargs["device"])
        if call in PRODUCTS and torch.is_autocast_enabled(NAME):
            args, kwargs = tree_map(_rounded, (args, kwargs))
        return call(*args, **kwargs)


def _read(value: Any) -> Any:
    if isinstance(value, torch.device):
        return GPU if value.type in ("cuda", NAME) else value
    return GPU if isinstance(value, str) and re.fullmatch(r"cuda(:\d+)?", value) else value


def _rounded(value: Any) -> Any:
    narrow = isinstance(value, OnGPU) and value.dtype == torch.float32
    return value.bfloat16() if narrow else value


class _Generator(torch.Generator):
    """Draws on the CPU, wherever it is said to be."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        return super().__new__(cls, "cpu")


class _Hooks(backend_registration._DummyPrivateUse1Hook):
    def has_primary_context(self, index: int) -> bool:
        return False  # so that autograd keeps no streams


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: Any) -> Tensor:  # of fork_rng, which older torch asks of cuda
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any) -> None:
        pass


def install() -> None:
    """Register it, for good: a process that has done so is of no other use."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module(), _Hooks())
    kept = torch.library.Library("_", "IMPL")
    kept.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    install.kept = kept  # what it registers goes with it
    answers = {
        "is_available": True,
        "device_count": 1,
        "is_bf16_supported": True,
        "get_device_name": NAME,
        "get_device_properties": SimpleNamespace(total_memory=MEMORY, name=NAME),
        "mem_get_info": (MEMORY, MEMORY),
        "memory_reserved": 0,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "get_rng_state": torch.zeros(1, dtype=torch.uint8),
    }
    silent = ("set_device", "synchronize", "empty_cache", "set_rng_state", "_lazy_init",
              "reset_peak_memory_stats")  # fmt: skip
    for name, answer in (answers | dict.fromkeys(silent)).items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.set_sync_debug_mode = lambda mode: setattr(debug, "mode", mode)
    torch.Generator = _Generator
    torch.compile = lambda net, **_: net
    pin_memory.pin_memory = lambda batch, *_: batch
    from memlens.models import registry
    from memlens.training import devices

    # A plan keeps its device by name: by ours, which the real function does not know.
    real = devices.resolve
    devices.resolve = lambda name: _read(real("cuda" if name == str(GPU) else name))
    large = set(registry.MODELS) - set(registry.SMALL)
    # A processor takes minutes for a large net; where its tensors are is no other question.
    registry.MODELS.update(dict.fromkeys(large, registry.MODELS["small_cnn_bn"]))


@contextmanager
def imagined() -> Iterator[None]:
    """Inside, the GPU is there."""
    with _Calls(), _Operations():
        yield


def pytest_configure(config: pytest.Config) -> None:
    """Before tests are collected, which are skipped where there is no GPU."""
    install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Fixtures make tensors, too."""
    with imagined():
        return (yield)
