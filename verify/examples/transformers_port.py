"""transformers' Qwen3-Next as a port under test, in float32: prompts, continuations and batches, with its own cache.

    python verify/conform.py --level prefill decode padded --keys lm_head.out "model.layers.?.out" "*_state" "*.state" \
        --cmd "python verify/examples/transformers_port.py --model {model} --like {trace} --trace {out}"

It has no MTP, takes no tokens back and cannot leave out a sequence of a batch: those steps are not written. Module
outputs come from hooks, the states from the cache.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from verify.real_bugs import hooked, padded  # noqa: E402
from verify.stages import is_batch, read_trace, rename, write_trace  # noqa: E402

ALIASES = json.loads((Path(__file__).resolve().parents[1] / "aliases" / "transformers.json").read_bytes())
NOT_HERE = {"drafts", "layers", "starts", "slots", "op", "gradients"}


def states(cache) -> dict:
    """The Gated DeltaNet layers' states and windows in transformers' cache, as far as this release has them."""
    found = {}
    if hasattr(cache, "recurrent_states"):  # before 5
        layers = list(zip(cache.recurrent_states, cache.conv_states))
    else:
        layers = [(getattr(one, "recurrent_states", None), getattr(one, "conv_states", None)) for one in cache.layers]
    for i, (state, window) in enumerate(layers):
        state, window = (x[0] if isinstance(x, (list, tuple)) else x for x in (state, window))
        if isinstance(state, torch.Tensor):
            found[f"model.layers.{i}.linear_attn.state"] = state.detach().double().numpy()
            found[f"model.layers.{i}.linear_attn.conv_state"] = window[..., 1:].detach().double().numpy()
    return found


def step_of(model, fed: dict, cache, mask) -> tuple[dict, object, object]:
    """One step's values by key, the cache and the mask after it."""
    batch = is_batch(fed["tokens"])
    rows = fed["tokens"] if batch else [fed["tokens"]]
    width = max(map(len, rows))
    ids = torch.tensor([padded(row, width, "right") for row in rows])
    real = torch.tensor([padded([1] * len(row), width, "right") for row in rows])
    mask = real if mask is None else torch.cat([mask, real], 1)
    given = {}
    if batch:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        given = {"attention_mask": mask, "position_ids": positions[:, -width:]}
    trace: dict = {}
    hooks = hooked(model, trace, tuple(ids.shape))
    with torch.no_grad():
        out = model(ids, past_key_values=cache, use_cache=True, **given)
    for hook in hooks:
        hook.remove()
    found = {}
    for name, x in {**trace, **states(out.past_key_values)}.items():
        for key, _ in rename(name, ALIASES):
            if x.shape[:1] == (len(rows),):
                found[key] = x if batch else x[0]
    return found, out.past_key_values, mask


parser = argparse.ArgumentParser()
for option in ("--model", "--like", "--trace"):
    parser.add_argument(option, type=Path, required=True)
args = parser.parse_args()
like = read_trace(args.like)
more = {"experts_implementation": "eager"} if transformers.__version__ >= "5" else {}
model = transformers.Qwen3NextForCausalLM.from_pretrained(args.model, dtype=torch.float32, **more).eval()
steps: dict = {}
cache = mask = None
for step, fed in like.tokens.items():
    if NOT_HERE & fed.keys() or not fed["tokens"]:
        if fed["tokens"] and "drafts" not in fed or not fed["tokens"]:
            break  # the cache can't follow from here on
        continue
    if not any(fed["before"]):
        cache = mask = None
    steps[step], cache, mask = step_of(model, fed, cache, mask)
write_trace(args.trace, steps, like.tokens, producer="transformers", dtype="float32", folder=args.model)
