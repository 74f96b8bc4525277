"""CUDA devices without a GPU: tensors with their data on the CPU, which call themselves cuda:0. A helper, not a test.

Within `with FakeCuda() as cuda:`, device="cuda" makes such tensors; with several numbers, `FakeCuda(10**9, 10**9)`,
there are as many devices with so many bytes free. As on GPUs, an operation on tensors of two devices is refused. What
would cost time there is counted by the line of ours that asked for it, "qwen3_next.py:123":

    cuda.kernels    operations that compute. Views and empty memory are none; attention and an RMS norm are one each, as
                    on CUDA. An operation may be several kernels there, so these are the least that there can be
    cuda.waits      where the CPU has to wait for a GPU: .item(), .tolist(), bool(tensor), copies between the two, and
                    operations whose result has as many elements as the values say. A copy from GPU to GPU is none

Gradients are not computed there: PyTorch's autograd looks for a real device. Nor can it show which operations CUDA has
in which dtype, nor what time anything takes: benchmarks/on_gpu.py does.
"""

import ctypes
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # PyTorch imports it late, and then looks at torch.Generator
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

ROOT = Path(__file__).resolve().parent.parent
EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh"}
SIZED_BY_VALUES = {
    "nonzero",
    "unique_consecutive",
    "_unique2",
    "masked_select",
    "bincount",
    "equal",
    "repeat_interleave",
}
COPIES = {"_to_copy", "copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # a GPU's tensor, also by indices on the CPU
ONE_KERNEL = {F.scaled_dot_product_attention, F.rms_norm}

# PyTorch's table of what tells it a kind of device's current one: first the CPU's, then CUDA's
GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
HOW_TO_FIND_IT = {"linux": "libc10.so", "darwin": "libc10.dylib"}
CAN_BE_FAKED = sys.platform in HOW_TO_FIND_IT


@contextmanager
def any_device_is_current() -> Iterator[None]:
    """A PyTorch without CUDA has nothing to ask for the current device, one with CUDA asks a real GPU. Meanwhile both
    ask what stands for the CPU, to which it is all the same.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / HOW_TO_FIND_IT[sys.platform]))
    guards = (ctypes.c_void_p * 2).in_dll(library, GUARDS)
    before = guards[1]
    guards[1] = guards[0]
    try:
        yield
    finally:
        guards[1] = before


class CudaTensor(torch.Tensor):
    """A tensor without data of its own: its `there` has the data. `place` is the device that it is on."""

    @staticmethod
    def __new__(cls, there: torch.Tensor, place: torch.device):
        layout = {"strides": there.stride(), "storage_offset": there.storage_offset(), "dtype": there.dtype}
        new = torch.Tensor._make_wrapper_subclass(cls, there.shape, device=place, **layout)
        new.there, new.place = there, place
        return new

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        raise AssertionError(f"{op} on a tensor of FakeCuda after its end")

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else repr(self)

    def __repr__(self) -> str:
        return f"{self.there!r} on {self.place}"

    __torch_function__ = torch._C._disabled_torch_function_impl


def data(x: Any) -> Any:
    """The same with the tensors that hold the data."""
    return tree_map_only(CudaTensor, lambda tensor: tensor.there, x)


def wrapped(x: Any, place: torch.device) -> Any:
    """The same with all tensors on that GPU."""
    return tree_map_only(torch.Tensor, lambda y: y if isinstance(y, CudaTensor) else CudaTensor(y, place), x)


def is_cuda(device: Any) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


def gpu(device: Any) -> torch.device:
    """The GPU meant: the first, if no number is given."""
    return torch.device("cuda", torch.device(device).index or 0)


def expect_together(what: Any, tensors: list[torch.Tensor]):
    """Raises AssertionError for tensors on two devices, as PyTorch does; a single number may be on the CPU."""
    places = {str(x.place) if isinstance(x, CudaTensor) else "the CPU" for x in tensors if x.is_cuda or x.ndim > 0}
    assert len(places) == 1, f"{what}: tensors on {' and on '.join(sorted(places, key=str.lower))}"


class FakeCuda(TorchDispatchMode):
    """The devices, for as long as the context lasts. free_memory: bytes that each says are free."""

    def __init__(self, *free_memory: int):
        super().__init__()
        free = free_memory or (2**40,)
        self.kernels: Counter = Counter()
        self.waits: Counter = Counter()
        self.others = [
            any_device_is_current(),
            Intercept(self),
            mock.patch("torch._has_compatible_shallow_copy_type", lambda x, y: False),  # .to() makes new parameters
            mock.patch("torch.cuda.is_available", lambda: True),
            mock.patch("torch.cuda.device_count", lambda: len(free)),
            mock.patch("torch.cuda._lazy_init", lambda: None),
            mock.patch("torch.cuda.mem_get_info", lambda device: (free[gpu(device).index], free[gpu(device).index])),
            mock.patch("torch.Generator", lambda device="cpu", new=torch.Generator: new()),
        ]

    def __enter__(self) -> "FakeCuda":
        for other in self.others:
            other.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any):
        super().__exit__(*error)
        for other in reversed(self.others):
            other.__exit__(*error)

    def count(self, what: Counter):
        """Adds one to the line of ours that is being executed."""
        frame = sys._getframe(1)
        while frame and os.path.dirname(frame.f_code.co_filename) not in PLACES:
            frame = frame.f_back
        what[f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else "elsewhere"] += 1

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [x for x in tensors if isinstance(x, CudaTensor)]
        device = kwargs.get("device")
        if op is torch.ops.prim.device.default and there:
            return there[0].place
        if not there and not is_cuda(device):
            return op(*args, **kwargs)
        name = op.overloadpacket.__name__
        indices = list(tree_iter(args[1])) if name in INDEXING else []
        sent = [x for x in indices if isinstance(x, torch.Tensor) and not x.is_cuda]
        place = gpu(device) if is_cuda(device) else there[0].place
        by_mask = name == "index" and any(x.dtype == torch.bool for x in tensors[1:])
        waits = sent or by_mask or name in SIZED_BY_VALUES or name == "_local_scalar_dense"
        if name in COPIES:
            waits = len(there) < len(tensors) or (device is not None and not is_cuda(device))
        elif there:
            expect_together(op, [x for x in tensors if not any(x is index for index in sent)])
        if waits:
            self.count(self.waits)
        if not op.is_view and name not in EMPTY and name != "_local_scalar_dense":
            self.count(self.kernels)
        if device is not None:
            kwargs["device"] = "cpu"
        out = op(*data(args), **data(kwargs))
        if device is not None and not is_cuda(device):
            return out
        same = {id(data(x)): x for x in tensors}  # what an operation changes in place stays the tensor that it was
        return tree_map_only(torch.Tensor, lambda x: same.get(id(x)) if id(x) in same else CudaTensor(x, place), out)


PLACES = {str(ROOT), str(ROOT / "qwen3_next_checkpoints")}


class Intercept(TorchFunctionMode):
    """Keeps PyTorch from looking for a real device: what is asked of one is asked of the CPU, and then wrapped."""

    def __init__(self, mode: FakeCuda):
        super().__init__()
        self.mode = mode

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_gpu = [x for x in tensors if isinstance(x, CudaTensor)]
        if function in (torch.Tensor.data_ptr, torch.Tensor.untyped_storage) and on_gpu:
            return function(args[0].there)
        if function is torch.Tensor.tolist and on_gpu:
            self.mode.count(self.mode.waits)
            return args[0].there.tolist()
        if function in ONE_KERNEL and on_gpu:
            expect_together(function.__name__, tensors)
            self.mode.count(self.mode.kernels)
            return wrapped(function(*data(args), **data(kwargs)), on_gpu[0].place)
        if function is torch.Tensor.new_tensor and on_gpu:  # from a list of the CPU's
            self.mode.count(self.mode.waits)
            return wrapped(torch.tensor(args[1], **{"dtype": args[0].dtype, **kwargs}), args[0].place)
        asked = []
        if function is torch.Tensor.to:
            asked = [device for device in (*args[1:2], kwargs.get("device")) if is_cuda(device)]
        if asked:
            dtypes = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.dtype)]
            copy = kwargs.get("copy", args[4] if len(args) > 4 else False)
            moved = function(args[0], *(dtypes or [args[0].dtype]), copy=copy)
            if on_gpu and moved.place == gpu(asked[0]):
                return moved
            self.mode.count(self.mode.kernels if on_gpu else self.mode.waits)
            alone = data(moved).detach().clone() if on_gpu else moved.detach()
            return CudaTensor(alone, gpu(asked[0])).requires_grad_(moved.requires_grad)
        if is_cuda(kwargs.get("device")) and not on_gpu:
            made = function(*args, **{**kwargs, "device": "cpu"})
            self.mode.count(self.mode.waits if function in (torch.tensor, torch.as_tensor) else self.mode.kernels)
            return wrapped(made, gpu(kwargs["device"]))
        return function(*args, **kwargs)
