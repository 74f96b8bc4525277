"""mlx-lm's Qwen3-Next as a port under test, in float32: prompts, continuations and batches, with its own caches.

    python verify/conform.py --level prefill decode padded --keys lm_head.out "*.linear_attn.state" "*.conv_state" \
        --cmd "python verify/examples/mlx_port.py --model {model} --like {trace} --trace {out}"

It writes the logits, and the states as the cache holds them. A batch is made as in mlx-lm's server: each sequence has
its caches, which are merged, padded on the right and taken apart again. mlx-lm has no MTP and takes no tokens back. It
reads full_attention_interval, not layer_types: a model with another order of layers ends in an error.
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


def read(rows: list[list[int]], caches: list[list]) -> tuple[np.ndarray, list[list]]:
    """Each row after what its caches hold -> logits (rows, longest, vocab), and the caches after it."""
    if len(rows) == 1:
        return np.array(model(mx.array(rows), cache=caches[0])), caches
    lengths = [len(row) for row in rows]
    padding = [max(lengths) - length for length in lengths]
    layers = [of_layer[0].merge(of_layer) for of_layer in zip(*caches)]
    for layer in layers:
        layer.prepare(lengths=lengths, right_padding=padding)
    logits = model(mx.array([row + [0] * n for row, n in zip(rows, padding)]), cache=layers)
    for layer in layers:
        layer.finalize()
    return np.array(logits), [[layer.extract(row) for layer in layers] for row in range(len(rows))]


def states(caches: list) -> dict[str, np.ndarray]:
    """The states and windows of one sequence."""
    found = {}
    for i, (layer, memory) in enumerate(zip(model.layers, caches)):
        if layer.is_linear:
            window, state = memory.cache
            found[f"model.layers.{i}.linear_attn.conv_state"] = np.array(window)[0].T  # (taps, channels) there
            found[f"model.layers.{i}.linear_attn.state"] = np.array(state)[0].swapaxes(-1, -2)  # (V, K) there
    return found


like = read_trace(args.like)
steps: dict = {}
slots: dict[int, list] = {}
for step, fed in like.tokens.items():
    if {"layers", "starts", "op", "gradients"} & fed.keys() or not fed["tokens"]:
        break
    if "drafts" in fed:
        continue
    batch = is_batch(fed["tokens"])
    rows, before = (fed["tokens"], fed["before"]) if batch else ([fed["tokens"]], [fed["before"]])
    named = list(fed.get("slots", range(len(rows))))
    for slot, past in zip(named, before):
        if not past:
            slots[slot] = make_prompt_cache(model)
    logits, caches = read(rows, [slots[slot] for slot in named])
    slots |= dict(zip(named, caches))
    found = [states(one) for one in caches]
    steps[step] = {"lm_head.out": logits if batch else logits[0]}
    steps[step] |= {key: np.stack([one[key] for one in found]) if batch else x for key, x in found[0].items()}
write_trace(args.trace, steps, like.tokens, producer="mlx-lm", dtype="float32", folder=args.model)
