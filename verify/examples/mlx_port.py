"""mlx-lm's Qwen3-Next as a port under test, in float32: prompts and continuations, with its own cache.

    python verify/conform.py --level prefill decode --keys lm_head.out "*.linear_attn.state" "*.conv_state" \
        --cmd "python verify/examples/mlx_port.py --model {model} --like {trace} --trace {out}"

It writes the logits, and the states as the cache holds them. mlx-lm has no MTP and takes no tokens back. It reads
full_attention_interval, not layer_types: a model with another order of layers is not for it, and ends in an error.
The checkpoint is widened to float32 first; with --as-stored it is not, and mlx-lm adds the norms' 1 in bfloat16.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

parser = argparse.ArgumentParser()
for option in ("--model", "--like", "--trace"):
    parser.add_argument(option, type=Path, required=True)
parser.add_argument("--as-stored", action="store_true")
args = parser.parse_args()
config = json.loads((args.model / "config.json").read_bytes())
kinds = config.get("layer_types") or []
if any(
    (kind == "full_attention") != ((i + 1) % config["full_attention_interval"] == 0) for i, kind in enumerate(kinds)
):
    sys.exit("mlx-lm takes layers in the order of full_attention_interval only")

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from mlx_lm.models.cache import make_prompt_cache  # noqa: E402
from mlx_lm.utils import load_model  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from verify.stages import is_batch, read_trace, write_trace  # noqa: E402

with tempfile.TemporaryDirectory() as folder:
    place = args.model
    if not args.as_stored:
        place = Path(folder)
        (place / "config.json").write_bytes((args.model / "config.json").read_bytes())
        weights = mx.load(str(args.model / "model.safetensors"))
        mx.save_safetensors(str(place / "model.safetensors"), {k: x.astype(mx.float32) for k, x in weights.items()})
    model, _ = load_model(place, strict=False)
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
like = read_trace(args.like)
steps: dict = {}
cache = None
for step, fed in like.tokens.items():
    if {"layers", "starts", "op", "gradients"} & fed.keys() or is_batch(fed["tokens"]) or not fed["tokens"]:
        break
    if "drafts" in fed:
        continue
    if not fed["before"]:
        cache = make_prompt_cache(model)
    logits = model(mx.array([fed["tokens"]]), cache=cache)
    found = {"lm_head.out": np.array(logits)[0]}
    for i, (layer, memory) in enumerate(zip(model.layers, cache)):
        if layer.is_linear:
            window, state = memory.cache if hasattr(memory, "cache") else memory.state
            found[f"model.layers.{i}.linear_attn.conv_state"] = np.array(window)[0].T  # (taps, channels) there
            found[f"model.layers.{i}.linear_attn.state"] = np.array(state)[0].swapaxes(-1, -2)  # (V, K) there
    steps[step] = found
write_trace(args.trace, steps, like.tokens, producer="mlx-lm", dtype="float32", folder=args.model)
