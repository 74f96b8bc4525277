"""Qwen3.5 and Qwen3.6 text checkpoints, dense and mixture of experts, read as Qwen3-Next.

Their decoder is built of the same blocks, down to the norms (x * (1 + w), and plain w after the delta rule), the
order of heads in the convolution, and the MTP layer. What differs is how a checkpoint writes it down:

    config.json     the text model's fields stand under text_config, rope_parameters also holds the axes of images
    names           model.language_model.X for model.X, model.visual.* beside it; mtp.* and lm_head.* as they are
    Gated DeltaNet  in_proj_qkv, in_proj_z, in_proj_b and in_proj_a for in_proj_qkvz and in_proj_ba, not by key head
    MLP             one dense MLP a layer, or only mixtures of experts; MTP's follows suit

qwen3_next.py imports this file when a config asks for it, and then calls `translate_config`, `rename`, `repack`.
Facts from transformers 5.24 (models/qwen3_5, models/qwen3_5_moe), against which the logits are tested.

Not here: images and video, and what MLX has converted (language_model.model.X: its norms hold 1 + w, its
convolutions other axes; the names are left alone, so that the loader refuses them).
"""

import copy
import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from qwen3_next_checkpoints import expect

T = TypeVar("T")
MODEL_TYPES = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")

# What the blocks compute, where a key could ask for something else. Absent is the first value, in transformers too.
FIXED = {
    "attn_output_gate": (True,),  # the attention's output is gated, by a sigmoid
    "output_gate_type": ("silu", "swish"),  # two names of the gate after the delta rule
    "mtp_use_dedicated_embeddings": (False,),  # MTP shares the model's embedding
    "norm_topk_prob": (True,),
    "decoder_sparse_step": (1,),  # with experts, every layer has them
    "mlp_only_layers": ([],),
}
UNKNOWN_TO_QWEN3_NEXT = ("attn_output_gate", "output_gate_type", "mtp_use_dedicated_embeddings", "vision_config")
UNKNOWN_TO_QWEN3_NEXT += ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
UNKNOWN_TO_QWEN3_NEXT += ("architectures", "dtype")


def translate_config(fields: dict[str, Any]) -> dict[str, Any]:
    """config.json's content as Qwen3-Next's fields; `fields` stays as it was.

    What text_config says goes before the top level, except for the keys that describe the checkpoint as a whole:
    transformers' Qwen3_5ForConditionalGeneration takes those from the top.
    Raises ValueError, naming the key, for what Qwen3-Next's blocks don't compute. That all which they need is there,
    and fits together, is for Qwen3NextConfig to check.
    """
    top = copy.deepcopy(fields)
    text = top.pop("text_config", None) or {}
    expect(isinstance(text, dict), f"config: text_config is {text!r}, expected an object")
    kind = text.get("model_type") or top.get("model_type")
    expect(kind in MODEL_TYPES, f"config: model_type is {kind!r}, expected one of {', '.join(MODEL_TYPES)}")
    whole = {key: top.get(key) for key in ("tie_word_embeddings", "quantization_config")}
    whole["torch_dtype"] = top.get("dtype") or top.get("torch_dtype") or text.get("dtype")  # save_pretrained's name
    new = {key: value for source in (top, text, whole) for key, value in source.items() if value is not None}
    fixed = copy.deepcopy(FIXED) | ({} if "moe" in kind else {"num_experts": (0,)})  # a dense config need not say so
    for key, allowed in fixed.items():
        found = new.setdefault(key, allowed[0])
        expect(found in allowed, f"config: {key} is {found!r}, expected {' or '.join(map(repr, allowed))}")
    for key in UNKNOWN_TO_QWEN3_NEXT:
        new.pop(key, None)
    for rope in (new.get("rope_parameters"), new.get("rope_scaling")):
        if isinstance(rope, dict):  # time, height and width of an image; a text's three positions are one
            rope.pop("mrope_section", None)
            rope.pop("mrope_interleaved", None)
    return {**new, "model_type": "qwen3_next"}


def rename(tensors: dict[str, T]) -> dict[str, T]:
    """Qwen3-Next's names, without the vision tower. Raises ValueError for two tensors that would share one."""
    renamed = {}
    for name, value in tensors.items():
        if name.startswith(("model.visual.", "visual.")):
            continue
        new = re.sub(r"^model\.language_model\.", "model.", name)
        expect(new not in renamed, f"{new}: there twice, with and without language_model in its name")
        renamed[new] = value
    return renamed


def by_key_head(heads: int, *parts: Tensor) -> Tensor:
    """Each part's rows dealt out to the key heads, and each head's rows of all parts put together."""
    return torch.cat([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 1)


def repack(
    tensors: dict[str, Tensor], fields: dict[str, Any], dense: Callable[[Tensor, Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """A new dict with Qwen3-Next's projections of Gated DeltaNet, the only tensors that are copied.

    Their rows, for G key heads, each shared by r value heads (q_0 is K rows, v_0 is V rows, b_0 is one):

        in_proj_qkv    q_0 .. q_{G-1} | k_0 .. k_{G-1} | v_0 .. v_{Gr-1}
        in_proj_z      z_0 .. z_{Gr-1}
     -> in_proj_qkvz   q_0 | k_0 | v_0 .. v_{r-1} | z_0 .. z_{r-1}  ||  q_1 | k_1 | v_r .. v_{2r-1} | ...

        in_proj_b      b_0 .. b_{Gr-1}
        in_proj_a      a_0 .. a_{Gr-1}
     -> in_proj_ba     b_0 .. b_{r-1} | a_0 .. a_{r-1}  ||  b_r .. b_{2r-1} | ...

    Args: tensors by their new names; fields, Qwen3-Next's; dense(weight, scale), what dequantises a matrix in 8 bits,
    whose blocks don't follow the heads.
    Raises ValueError, naming the tensor, for one that lacks its partner or has another shape than the config says.
    """
    tensors, names = dict(tensors), ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
    suffixes = tuple(f".linear_attn.{name}.weight" for name in names)
    for layer in sorted({name.rpartition(".in_proj_")[0] for name in tensors if name.endswith(suffixes)}):
        D, G, H = (fields[key] for key in ("hidden_size", "linear_num_key_heads", "linear_num_value_heads"))
        keys, values = G * fields["linear_key_head_dim"], H * fields["linear_value_head_dim"]
        parts = []
        for name, rows in zip(names, (2 * keys + values, values, H, H)):
            part = tensors.pop(f"{layer}.{name}.weight", None)
            expect(part is not None, f"{layer}.{name}.weight: missing, although others of its layer are there")
            found, size = tuple(part.shape), (rows, D)
            expect(found == size, f"{layer}.{name}.weight: shape {found}, expected {size} by config.json")
            scale = tensors.pop(f"{layer}.{name}.weight_scale_inv", None)
            parts.append(part if scale is None else dense(part, scale))
        qkv, z, b, a = parts
        tensors[f"{layer}.in_proj_qkvz.weight"] = by_key_head(G, *qkv.split([keys, keys, values]), z)
        tensors[f"{layer}.in_proj_ba.weight"] = by_key_head(G, b, a)
    return tensors
