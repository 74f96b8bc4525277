"""More weights than memory: experts that stay on disk, and what to expect of them. All of it by hooks on the model's
Experts, a list of modules that is called with (x, weights, experts): (tokens, D), (tokens, k), (tokens, k).

Weights that are mapped from a file are read when they are touched, and a page fault in the middle of a matrix reads
far more or far less than it. So experts' pages are read only when asked for, and a chosen expert is asked for as a
whole, before its turn.
"""

import ctypes
import math
import mmap
import os
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

LIBC = ctypes.CDLL(None) if hasattr(mmap, "MADV_WILLNEED") else None  # for madvise and mincore; not on Windows
ADVISED = 2**18  # bytes of a matrix from which advice pays: it takes microseconds, too
AHEAD = 17  # experts that are being read while one is computed


def free_memory() -> float:
    """Bytes of memory that are free, or would be when asked for; infinity where the system does not say."""
    info = Path("/proc/meminfo")
    return 1024 * int(re.search(r"MemAvailable: +(\d+)", info.read_text())[1]) if info.is_file() else math.inf


def expect_room(tensors: dict[str, Tensor], places: dict[str, torch.device]):
    """Raises ValueError if in_memory asks for copies that the CPU's memory can't hold. places: each tensor's device."""
    size = sum(t.nbytes for name, t in tensors.items() if places[name].type == "cpu")
    free = free_memory()
    if size > free:
        room = f"{size / 1e9:.1f} GB of weights, but {free / 1e9:.1f} GB of memory are free"
        raise ValueError(f"in_memory: {room}")


def advise(tensor: Tensor, advice: int):
    """Tells the operating system how the pages of a mapped tensor will be read."""
    start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(tensor.data_ptr() + tensor.nbytes - start), advice)


def is_resident(tensor: Tensor) -> bool:
    """Whether the page in the middle of a mapped tensor (its ends may be a neighbour's, too) is in memory."""
    page = (tensor.data_ptr() + tensor.nbytes // 2) // mmap.PAGESIZE * mmap.PAGESIZE
    resident = ctypes.c_ubyte()
    failed = LIBC.mincore(ctypes.c_void_p(page), ctypes.c_size_t(1), ctypes.byref(resident))
    return not failed and bool(resident.value & 1)


class ReadAhead:
    """Begins to read the experts that a pass has chosen, a few ahead of the one that is computed."""

    def __init__(self, experts: nn.ModuleList, ours: bool):
        """ours: whether we may write the files. Of others' files mincore says that all is in memory."""
        self.ours = ours
        self.address = next(experts.parameters()).data_ptr()
        self.coming: Iterator[nn.Module] = iter(())
        experts.register_forward_pre_hook(self.begin)
        for expert in experts:
            expert.register_forward_pre_hook(self.next)
        for p in experts.parameters():
            advise(p, mmap.MADV_RANDOM)  # read no page but the one touched

    def begin(self, experts: nn.ModuleList, inputs: tuple):
        chosen = inputs[2].flatten().tolist()
        if len(inputs[0]) > 1:  # the order in which Experts calls them
            chosen = sorted(set(chosen))
        if next(experts.parameters()).data_ptr() != self.address:  # copied since: there is nothing to read
            chosen = []
        self.coming = iter([experts[e] for e in chosen])
        for expert in islice(self.coming, AHEAD - 1):
            self.read(expert)

    def next(self, *_):
        for expert in islice(self.coming, 1):
            self.read(expert)

    def read(self, expert: nn.Module):
        for p in expert.parameters():
            if not (self.ours and is_resident(p)):
                advise(p, mmap.MADV_WILLNEED)


def attach(model: nn.Module, kind: type, tensors: dict[str, Tensor], folder: Path):
    """Puts the hooks on all Experts (`kind`) of a model.

    tensors: those that were read from the folder's files; what was copied from them is not read ahead.
    """
    mapped = {t.data_ptr() for t in tensors.values()}
    ours = all(os.access(file, os.W_OK) for file in folder.glob("*.safetensors"))
    for experts in modules_of(model, kind):
        first = next(experts.parameters())
        if LIBC and first.data_ptr() in mapped and first.nbytes >= ADVISED:
            ReadAhead(experts, ours)


def modules_of(model: nn.Module, kind: type) -> list[nn.Module]:
    """The modules of a kind."""
    return [module for module in model.modules() if isinstance(module, kind)]


def bytes_each(experts: nn.ModuleList) -> int:
    """Bytes of one expert's matrices."""
    return sum(p.nbytes for p in experts[0].parameters())


def announce_slow_disk(model: nn.Module, kind: type, top_k: int):
    """Says on stderr what to expect of weights that are mapped from disk and exceed the memory that is free (Linux),
    and shows the layers that a pass has come through, on a terminal, when it takes more than two seconds.
    """
    size = sum(p.nbytes for p in model.parameters() if p.is_cpu)
    free = free_memory()
    if size <= free:
        return
    needed = top_k * sum(map(bytes_each, modules_of(model, kind)))
    print(f"{size / 1e9:.1f} GB of weights, {free / 1e9:.1f} GB of memory free:", end=" ", file=sys.stderr)
    print(f"each token needs {needed / 1e9:.2f} GB of experts, from disk where not in memory", file=sys.stderr)
    bars = []

    def begin(*_):
        bars.append(tqdm(None, "reading", len(model.layers), unit="layer", leave=False, delay=2, disable=None))

    def count(*_):
        bars[-1].update()

    def end(*_):
        bars.pop().close()

    model.register_forward_pre_hook(begin)
    model.register_forward_hook(end, always_call=True)
    for layer in model.layers:
        layer.register_forward_hook(count)
