"""Which device each weight goes to with device_map="auto", and hooks that bring there what it is multiplied with.

A model goes to one GPU if it fits there, or to as few as it takes: whole layers, in their order, and to each GPU the
same share of what it has free. The embedding, the last norm, the heads and MTP are together on one of them, where a
pass begins and ends and tokens are chosen. In between x goes from GPU to GPU, and with it a copy of what the layers of
a pass share; a layer's cache is where the layer is. One GPU computes at a time: that makes room, but not speed.

If all GPUs together are too small, the routed experts stay on the CPU, and are computed there: moving a token's x costs
less than moving them. If even the rest is too large, all of it stays there.
"""

import copy
import functools
import itertools
import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qwen3_next_checkpoints import expect

CPU = torch.device("cpu")
LAYER = re.compile(r"(?:(?:model|transformer)\.)?layers\.(\d+)\.")
MODULE = re.compile(r"(?:(?:model|transformer)\.)?(?:layers\.\d+|\w+)")  # what goes to one device as a whole
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i?))?B")


def dispatch(
    model: nn.Module,
    kind: type,
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
    device_map: Any,
    max_memory: dict | None,
) -> dict[str, torch.device]:
    """The device of each tensor: `device`, or with device_map="auto" where there is room. Puts hooks on the model's
    Experts (`kind`) and layers where they are needed.

    max_memory: bytes, or a text such as "20GiB", by a GPU's number and "cpu". GPUs that it does not name are not used.
    Raises ValueError for a max_memory that says something else, or that the weights exceed.
    """
    if str(device_map) != "auto":
        expect(max_memory is None, f"max_memory goes with device_map='auto', found {str(device_map)!r:.99}")
        return dict.fromkeys(tensors, device)
    gpus, room, limit = find_room(device, max_memory)
    sizes = {}
    for name, tensor in tensors.items():
        kept = tensor.dtype.itemsize == 1 and ".experts." in name  # in 8 bits; all else is dequantised
        sizes[name] = tensor.numel() * (tensor.dtype if kept else dtype).itemsize
    places = spread(sizes, gpus, room)
    if places is None:
        rest = {name: size for name, size in sizes.items() if ".experts." not in name}
        places = {**dict.fromkeys(sizes, CPU), **(spread(rest, gpus, room) or {})}
        if gpus:
            announce(sizes, places, {gpu: room(gpu) for gpu in gpus})
    on_cpu = sum(size for name, size in sizes.items() if places[name] == CPU)
    allowed = f"{on_cpu / 1e9:.1f} GB of weights are left for the CPU, expected at most {limit / 1e9:.1f}"
    expect(on_cpu <= limit, f"max_memory: {allowed}")
    attach(model, kind, places)
    return places


def find_room(device: torch.device, max_memory: dict | None) -> tuple[list, Callable, float]:
    """The GPUs that may be used, `device` first; a function of one of them, the bytes that may be used there, a tenth
    of its free memory being left for caches and activations; and the bytes that may be used on the CPU.
    """
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    numbers = [device.index, *(n for n in range(count) if n != device.index)] if device.type == "cuda" else []
    limits = {**dict.fromkeys(numbers, math.inf), "cpu": math.inf}
    if max_memory is not None:
        limits = {"cpu": math.inf}
        expect(isinstance(max_memory, dict), f"max_memory is a {type(max_memory).__name__}, expected a dict")
        for place, size in max_memory.items():
            known = [*sorted(numbers), "cpu"]
            expect(place in known and not isinstance(place, bool), f"max_memory names {place!r:.99}, expected {known}")
            limits[place] = in_bytes(place, size)

    @functools.cache
    def room(gpu: torch.device) -> float:  # a function, because to ask a GPU takes some of its memory
        return min(0.9 * torch.cuda.mem_get_info(gpu)[0], limits[gpu.index])

    return [torch.device("cuda", number) for number in numbers if number in limits], room, limits["cpu"]


def in_bytes(place: int | str, size: Any) -> float:
    """A size of max_memory: a number of bytes, or a text with a unit."""
    found = SIZE.fullmatch(size) if isinstance(size, str) else None
    if found:
        size = float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2] or " ")
    right = isinstance(size, (int, float)) and not isinstance(size, bool) and size >= 0
    expect(right, f"max_memory[{place!r}] is {size!r:.99}, expected bytes, as a number or like '20GiB' or '20GB'")
    return size


def spread(sizes: dict[str, int], gpus: list[torch.device], room: Callable) -> dict[str, torch.device] | None:
    """The GPU of each tensor, as few in their order as it takes; None if all have not enough room."""
    parts: Counter = Counter()
    for name, size in sizes.items():
        parts[layer_of(name)] += size
    numbers = sorted(parts)  # -1, what is in no layer, comes first
    for count, percent in itertools.product(range(1, len(gpus) + 1), range(1, 101)):
        found = fill([parts[number] for number in numbers], [room(gpu) * percent / 100 for gpu in gpus[:count]])
        if found is not None:
            place = dict(zip(numbers, found))
            return {name: gpus[place[layer_of(name)]] for name in sizes}
    return None


def layer_of(name: str) -> int:
    """The number of the model's layer that a tensor is in; -1 for all others, MTP's included."""
    found = LAYER.match(name)
    return int(found[1]) if found else -1


def fill(sizes: list[int], rooms: list[float]) -> list[int] | None:
    """The number of the room that each size goes to, in order, each room being filled before the next one is begun;
    None if they don't fit.
    """
    places = []
    room = 0
    used = 0
    for size in sizes:
        while room < len(rooms) and used + size > rooms[room]:
            room += 1
            used = 0
        places.append(room)
        used += size
    return places if room < len(rooms) else None


def announce(sizes: dict[str, int], places: dict[str, torch.device], free: dict[torch.device, float]):
    """Says on stderr what stays on the CPU although there are GPUs. free: the bytes that may be used there."""
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    rest = sum(sizes.values()) - experts
    used = {str(place): None for name, place in places.items() if ".experts." not in name}
    found = ", ".join(f"{size / 1e9:.1f} GB on {gpu}" for gpu, size in free.items())
    routed = f"{experts / 1e9:.1f} GB of routed experts stay on {CPU}, and are computed there"
    print(f"room for {found}: {routed}; all else ({rest / 1e9:.1f} GB) goes to {', '.join(used)}", file=sys.stderr)


# ---- Hooks -----------------------------------------------------------------------------------------------------------


def attach(model: nn.Module, kind: type, places: dict[str, torch.device]):
    """Puts the hooks on the model. With several GPUs, model.hf_device_map has the number of each module's, or "cpu"."""
    gpus = {place for place in places.values() if place != CPU}
    if gpus and CPU in places.values():
        for experts in model.modules():
            if isinstance(experts, kind):
                compute_on_cpu(experts)
    if len(gpus) > 1:
        backbone = model.get_submodule(model.backbone.rstrip("."))
        for layer in backbone.layers:
            layer.register_forward_pre_hook(arrive)
        backbone.layers[-1].register_forward_hook(functools.partial(leave, backbone.norm))
        model.hf_device_map = {}  # transformers' name: by it, Trainer knows that it should not move the model
        for name, place in places.items():
            part = MODULE.match(name)[0] if place != CPU else f"{name.partition('.experts.')[0]}.experts"
            model.hf_device_map[part] = "cpu" if place == CPU else place.index


def compute_on_cpu(experts: nn.ModuleList):
    """Has x come to where the experts are, and their sum go back."""
    origin = []

    def come(_, inputs: tuple) -> tuple:
        origin.append(inputs[0].device)
        return moved(inputs, CPU)

    def go_back(_, inputs: tuple, out: Tensor) -> Tensor:
        return out.to(origin.pop())

    experts.register_forward_pre_hook(come)
    experts.register_forward_hook(go_back)


def arrive(layer: nn.Module, inputs: tuple) -> tuple:
    """Before a layer: has x, the pass's step and the layer's cache come to where the layer is."""
    x, step, cache = inputs
    device = layer.input_layernorm.weight.device
    if cache is not None:  # it is elsewhere if it was loaded, or if the model has been moved
        vars(cache).update({name: moved(value, device) for name, value in vars(cache).items()})
    return x.to(device), step_on(step, device), cache


def leave(norm: nn.Module, layer: nn.Module, inputs: tuple, out: tuple) -> tuple:
    """After the last layer: has x come to where the norm that follows is."""
    x, router_logits = out
    return x.to(norm.weight.device), router_logits


def step_on(step: Any, device: torch.device) -> Any:
    """A pass's step on a device, to which it is copied once a pass."""
    if step.cos.device == device:
        return step
    copies = vars(step).setdefault("copies", {})
    if device not in copies:
        there = copy.copy(step)
        there.__dict__ = {name: moved(value, device) for name, value in vars(step).items() if name != "copies"}
        copies[device] = there
    return copies[device]


def moved(x: Any, device: torch.device) -> Any:
    """A tensor, or each in a tuple of tuples, on a device; anything else as it is."""
    if isinstance(x, Tensor):
        return x.to(device)
    return tuple(moved(y, device) for y in x) if isinstance(x, tuple) else x
