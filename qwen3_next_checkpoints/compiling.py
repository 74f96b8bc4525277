"""Compiled mixers, for decoding: what `compile=True` and --compile do.

PyTorch compiles each layer's mixer, Gated DeltaNet or attention, when it first gets a single token. That takes half a
minute or more; afterwards a token costs fewer calls. Longer inputs, such as a prompt, are not compiled: the loops of
the delta rule would be unrolled, which takes minutes, and their time goes to large products, which stay what they are.
The experts are not compiled either: which of them run depends on the token.
"""

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def compile_mixers(model: nn.Module, kind: type):
    """Has PyTorch compile the `mixer` of each layer. kind: the class of the layers. Raises ValueError if it can't."""
    kind_of_cpu = os.environ.get("ATEN_CPU_CAPABILITY")
    if kind_of_cpu and "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # PyTorch's cache has one place for all kinds
        found = f"ATEN_CPU_CAPABILITY is {kind_of_cpu!r:.99}, so that code compiled for another kind would be taken"
        raise ValueError(f"compile: {found}; expected TORCHINDUCTOR_CACHE_DIR to name a folder for this kind alone")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error says as much
            torch.compile(torch.neg)(torch.ones(2, device=next(model.parameters()).device))
    except Exception as error:  # each backend raises its own
        problem = str(error).strip().partition("\n")[0]
        raise ValueError(f"compile: PyTorch can't compile on this machine: {problem}") from None
    for layer in model.modules():
        if isinstance(layer, kind):
            layer.mixer.compile()
            # `compile` has put here what a call runs. A copy of the module does without it, like any compiled module's.
            layer.mixer._compiled_call_impl = for_one_token(layer.mixer._compiled_call_impl, layer.mixer)


def for_one_token(compiled: Callable, mixer: nn.Module) -> Callable:
    """Calls what is compiled if x is (B, 1, D), and else the mixer as it is."""

    def call(x: Tensor, *others: Any) -> Tensor:
        chosen = compiled if x.shape[1] == 1 else mixer._call_impl
        return chosen(x, *others)

    return call
