"""How fast an answer came, and what it took: what --stats prints."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def counting(model: nn.Module, kind: type, stats: dict) -> Iterator[None]:
    """Within it, stats["routed_bytes"] counts the bytes of routed experts that a model reads after the prompt, which
    ends when `generate` has put stats["prefill_seconds"] there. kind: the class of a layer's experts.
    """
    stats["routed_bytes"] = 0

    def count(experts: nn.ModuleList, inputs: tuple):
        if "prefill_seconds" in stats:
            used = len(inputs[2].unique())  # inputs: x, weights, and the numbers of the chosen experts
            stats["routed_bytes"] += used * sum(p.nbytes for p in experts[0].parameters())

    hooks = [module.register_forward_pre_hook(count) for module in model.modules() if isinstance(module, kind)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def reporting(model: Any, kind: type) -> Iterator[dict]:
    """A dict for `generate`'s statistics, which are printed on standard error at the end. kind: as in `counting`."""
    stats: dict[str, Any] = {}
    with counting(model.model, kind, stats):
        yield stats
    read = stats["prompt_tokens"]
    new = stats["new_tokens"]
    passes = max(new - 1, 0)  # the first new token comes with the prompt
    lines = [f"prompt: {read} tokens, {read / stats['prefill_seconds']:,.1f} tokens/s"]
    lines.append(f"answer: {new} tokens, {passes / stats['decode_seconds']:,.1f} tokens/s")
    lines.append(f"routed experts: {stats['routed_bytes'] / max(passes, 1) / 1e6:,.1f} MB read per token")
    if stats["drafted"]:
        shares = ", ".join(f"{share:.1%}" for share in stats["acceptance_by_position"])
        lines.append(f"drafts: {stats['drafted']}, {stats['accepted']} accepted; by position {shares}")
    print(*lines, f"peak memory: {peak_memory(model)}", sep="\n", file=sys.stderr)


def peak_memory(model: nn.Module) -> str:
    """The peak memory of the process, and on the GPUs that the model is on."""
    memory = "not known on this system"
    if sys.platform != "win32":
        import resource  # Unix only

        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB on Linux
        memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:,.0f} MiB"
    for device in sorted({p.device for p in model.parameters() if p.is_cuda}, key=str):
        memory += f", {torch.cuda.max_memory_allocated(device) / 2**20:,.0f} MiB on {device}"
    return memory
