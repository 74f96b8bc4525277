"""Small random models: shapes that convenient code gets wrong, weights so large that every term shows.

Their weights come from NumPy's PCG64 with a fixed seed, rounded to bfloat16. MODELS are those of the golden vectors'
version 1, which anyone can make again; those of version 2 are in cases.py, and their files are shipped.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

BASE = {
    "model_type": "qwen3_next",
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "full_attention_interval": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "attention_bias": False,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 10,
    "linear_value_head_dim": 7,
    "linear_conv_kernel_dim": 4,
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 9,
    "shared_expert_intermediate_size": 11,
    "intermediate_size": 20,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
MODELS = {  # name: what differs from BASE, and whether there is an MTP layer
    "odd": ({}, True),
    "dense": (
        {
            "num_experts": 0,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 3,
            "linear_conv_kernel_dim": 3,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        },
        False,
    ),
    "mixed": (
        {
            "layer_types": ["full_attention", "linear_attention", "full_attention", "linear_attention"],
            "decoder_sparse_step": 2,
            "norm_topk_prob": False,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_conv_kernel_dim": 2,
            "num_key_value_heads": 1,
        },
        True,
    ),
}


def weights(fields: dict, mtp: bool, seed: int) -> dict[str, np.ndarray]:
    """A checkpoint's tensors, large enough that every term shows."""
    c, rng, shapes = fields, np.random.default_rng(seed), {}
    D, H, dim, kv = c["hidden_size"], c["num_attention_heads"], c["head_dim"], c["num_key_value_heads"]
    keys, values = (c[f"linear_num_{x}_heads"] * c[f"linear_{x}_head_dim"] for x in ("key", "value"))
    heads, interval = c["linear_num_value_heads"], c["full_attention_interval"]
    numbers = range(c["num_hidden_layers"])
    kinds = c.get("layer_types") or ["linear_attention" if (i + 1) % interval else "full_attention" for i in numbers]
    dense = c["mlp_only_layers"]
    sparse = [c["num_experts"] > 0 and i not in dense and (i + 1) % c["decoder_sparse_step"] == 0 for i in numbers]
    layers = [(f"model.layers.{i}.", kind, moe) for i, (kind, moe) in enumerate(zip(kinds, sparse))]
    layers += [("mtp.layers.0.", "full_attention", c["num_experts"] > 0)] * mtp
    shapes["model.embed_tokens.weight"] = (c["vocab_size"], D)
    for p, kind, moe in layers:
        shapes |= {p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,)}
        if kind == "full_attention":
            widths = {"q": (2 * H * dim, D), "k": (kv * dim, D), "v": (kv * dim, D), "o": (D, H * dim)}
            shapes |= {f"{p}self_attn.{x}_proj.weight": shape for x, shape in widths.items()}
            shapes |= {f"{p}self_attn.{x}_norm.weight": (dim,) for x in "qk"}
            if c["attention_bias"]:
                shapes |= {f"{p}self_attn.{x}_proj.bias": shape[:1] for x, shape in widths.items()}
        else:
            a, channels = p + "linear_attn.", 2 * keys + values
            shapes |= {a + "in_proj_qkvz.weight": (channels + values, D), a + "in_proj_ba.weight": (2 * heads, D)}
            shapes |= {
                a + "conv1d.weight": (channels, 1, c["linear_conv_kernel_dim"]),
                a + "out_proj.weight": (D, values),
            }
            shapes |= {a + "A_log": (heads,), a + "dt_bias": (heads,), a + "norm.weight": (c["linear_value_head_dim"],)}
        names = {p + "mlp.": c["intermediate_size"]}
        if moe:
            names = {f"{p}mlp.experts.{e}.": c["moe_intermediate_size"] for e in range(c["num_experts"])}
            names[p + "mlp.shared_expert."] = c["shared_expert_intermediate_size"]
            shapes |= {p + "mlp.gate.weight": (c["num_experts"], D), p + "mlp.shared_expert_gate.weight": (1, D)}
        for name, inner in names.items():
            shapes |= {name + "gate_proj.weight": (inner, D), name + "up_proj.weight": (inner, D)}
            shapes[name + "down_proj.weight"] = (D, inner)
    shapes["model.norm.weight"] = (D,)
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (c["vocab_size"], D)
    if mtp:
        shapes |= {f"mtp.{x}.weight": (D,) for x in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")}
        shapes["mtp.fc.weight"] = (D, 2 * D)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        x = rng.standard_normal(shape)
        if name.endswith("A_log"):
            x = x - 1  # decays from 0.3 to 0.98 a token
        elif len(shape) == 1:
            x = 0.4 * x + name.endswith("linear_attn.norm.weight")
        elif not name.endswith(("embed_tokens.weight", "conv1d.weight")):
            x = x / np.sqrt(shape[-1])
        tensors[name] = x
    return tensors


def bfloat16(x: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16 numbers, ties to even, as uint16."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def write_model(name: str, folder: Path):
    """Writes one of MODELS as a checkpoint."""
    changes, mtp = MODELS[name]
    fields = {**BASE, **changes}
    write_checkpoint(folder, fields, weights(fields, mtp, seed=sorted(MODELS).index(name)))


def write_checkpoint(folder: Path, fields: dict, tensors: dict[str, np.ndarray]):
    """Writes config.json and model.safetensors, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    header, data = {}, b""
    for key, x in tensors.items():
        bits = bfloat16(x).astype("<u2").tobytes()
        header[key] = {"dtype": "BF16", "shape": x.shape, "data_offsets": (len(data), len(data) + len(bits))}
        data += bits
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
