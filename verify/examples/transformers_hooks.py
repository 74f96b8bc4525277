"""Traces transformers' Qwen3-Next under this project's keys: a hook on every module is nearly all of it.

python verify/examples/transformers_hooks.py MODEL ref.safetensors theirs.safetensors
python verify/compare.py ref.safetensors theirs.safetensors --dtype float32
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen3NextForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from verify.stages import read_trace  # noqa: E402

model_folder, reference, out = sys.argv[1:]
model = Qwen3NextForCausalLM.from_pretrained(model_folder, dtype=torch.float32, experts_implementation="eager")
trace = {}


def record(name, module, _, output):
    outputs = output if isinstance(output, tuple) else (output,)
    keys = [f"{name}.out"]
    if name.endswith("mlp.gate"):  # logits, weights, choice
        keys += [name.replace("gate", "topk_weights"), name.replace("gate", "topk_ids")]
    for key, x in zip(keys, outputs):
        if isinstance(x, torch.Tensor):
            trace[key] = x.detach().clone().squeeze(0)


for name, module in model.named_modules():
    module.register_forward_hook(lambda *args, name=name: record(name, *args))
with torch.no_grad():
    model(torch.tensor([read_trace(reference).tokens[""]["tokens"]]))
save_file({key: x.contiguous() for key, x in trace.items()}, out)
print(f"{out}: {len(trace)} tensors")
