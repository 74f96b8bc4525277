"""Traces mlx-lm's Qwen3-Next under this project's keys, by wrapping its modules' calls and its delta rule.

    python verify/examples/mlx_hooks.py MODEL ref.safetensors theirs.safetensors
    python verify/compare.py ref.safetensors theirs.safetensors --dtype float32

mlx-lm reads full_attention_interval, not layer_types: a model with another order of layers is not for it.
"""

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.models import qwen3_next
from mlx_lm.utils import load_model
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from verify.stages import read_trace  # noqa: E402

model_folder, reference, out = sys.argv[1:]
model, _ = load_model(Path(model_folder))
model.set_dtype(mx.float32)
names, trace, path = {id(module): name for name, module in model.named_modules()}, {}, []


def record(key, x):
    x = np.array(x.astype(mx.float32))
    trace[key] = x[0] if len(x) == 1 else x


def wrapped(call):
    def calling(self, *args, **kwargs):
        path.append(names.get(id(self), ""))
        result = call(self, *args, **kwargs)
        record(f"{path.pop()}.out", result)
        return result

    return calling


for kind in {type(module) for _, module in model.named_modules()} - {type(model)}:
    if "__call__" in vars(kind):
        kind.__call__ = wrapped(kind.__call__)
rule = qwen3_next.gated_delta_update


def traced_rule(q, k, v, a, b, *args, **kwargs):
    result = rule(q, k, v, a, b, *args, **kwargs)
    for name, x in {"a": a, "b": b, "delta_out": result[0], "state": result[1]}.items():
        record(f"{path[-1]}.{name}", x)
    return result


qwen3_next.gated_delta_update = traced_rule
model(mx.array([read_trace(reference).tokens[""]["tokens"]]))
save_file({key: np.ascontiguousarray(x) for key, x in trace.items()}, out)
print(f"{out}: {len(trace)} tensors")
