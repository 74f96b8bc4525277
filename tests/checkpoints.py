"""Checkpoints in the layouts that were published, made from shapes alone or from a small model. A helper, not a test.

The facts are those of the released config.json and tensor lists; nothing here comes from qwen3_next.py.
"""

import json
import math
import re
import struct
from pathlib import Path

import torch
from torch import Tensor

# config.json of Qwen3-Next-80B-A3B-Instruct. It has no layer_types, and does not say that the checkpoint has MTP.
INSTRUCT = {
    "architectures": ["Qwen3NextForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "model_type": "qwen3_next",
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# As small as a model with every part can be
SMALL = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "full_attention_interval": 2, "head_dim": 8}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 1, "linear_num_key_heads": 1, "linear_num_value_heads": 2}
SMALL |= {"linear_key_head_dim": 4, "linear_value_head_dim": 6, "num_experts": 2, "num_experts_per_tok": 1}
SMALL |= {"moe_intermediate_size": 4, "shared_expert_intermediate_size": 4, "partial_rotary_factor": 0.5}
FP8_CONFIG = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1}
SHARD_BYTES = 4_000_000_000


def shapes(config: dict, mtp: bool = True) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, for a config in which every layer is MoE and attention comes by the interval."""
    D, E, V, head_dim = (config[key] for key in ("hidden_size", "num_experts", "linear_value_head_dim", "head_dim"))
    value_heads, key_heads = (config[f"linear_num_{kind}_heads"] for kind in ("value", "key"))
    value_dim, key_dim = value_heads * V, key_heads * config["linear_key_head_dim"]
    query_dim, kv_dim = (config[f"num_{kind}_heads"] * head_dim for kind in ("attention", "key_value"))
    attention = {
        "q_proj.weight": (2 * query_dim, D),  # and the gate
        "k_proj.weight": (kv_dim, D),
        "v_proj.weight": (kv_dim, D),
        "o_proj.weight": (D, query_dim),
        "q_norm.weight": (head_dim,),
        "k_norm.weight": (head_dim,),
    }
    delta_net = {
        "A_log": (value_heads,),
        "dt_bias": (value_heads,),
        "conv1d.weight": (2 * key_dim + value_dim, 1, config["linear_conv_kernel_dim"]),
        "in_proj_qkvz.weight": (2 * key_dim + 2 * value_dim, D),
        "in_proj_ba.weight": (2 * value_heads, D),
        "norm.weight": (V,),
        "out_proj.weight": (D, value_dim),
    }

    def mlp(inner: int) -> dict[str, tuple[int, int]]:
        return {"gate_proj.weight": (inner, D), "up_proj.weight": (inner, D), "down_proj.weight": (D, inner)}

    def layer(prefix: str, full_attention: bool) -> dict[str, tuple[int, ...]]:
        name, mixer = ("self_attn", attention) if full_attention else ("linear_attn", delta_net)
        parts = {"": {"input_layernorm.weight": (D,), "post_attention_layernorm.weight": (D,)}, f"{name}.": mixer}
        parts["mlp."] = {"gate.weight": (E, D), "shared_expert_gate.weight": (1, D)}
        parts["mlp.shared_expert."] = mlp(config["shared_expert_intermediate_size"])
        parts |= {f"mlp.experts.{e}.": mlp(config["moe_intermediate_size"]) for e in range(E)}
        return {f"{prefix}{part}{key}": shape for part, found in parts.items() for key, shape in found.items()}

    found = {"model.embed_tokens.weight": (config["vocab_size"], D)}
    for i in range(config["num_hidden_layers"]):
        found |= layer(f"model.layers.{i}.", (i + 1) % config["full_attention_interval"] == 0)
    found |= {"model.norm.weight": (D,), "lm_head.weight": (config["vocab_size"], D)}
    if mtp:
        norms = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
        found |= {"mtp.fc.weight": (D, 2 * D), **{f"mtp.{norm}.weight": (D,) for norm in norms}}
        found |= layer("mtp.layers.0.", True)
    return found


def in_fp8(name: str) -> bool:
    """Whether the FP8 release converts a tensor: the projections, but for in_proj_ba, routers, mtp.fc and lm_head."""
    kinds = "in_proj_qkvz|out_proj|[qkvo]_proj|gate_proj|up_proj|down_proj"
    return re.fullmatch(rf".+\.({kinds})\.weight", name) is not None


def blocks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many blocks of 128 x 128 cover a matrix."""
    return tuple(math.ceil(n / 128) for n in shape)


def entries(config: dict, fp8: bool = False, mtp: bool = True) -> dict[str, tuple[str, tuple[int, ...]]]:
    """safetensors' dtype and shape of every tensor of a release, in bfloat16 or FP8, layer by layer."""
    found = {}
    for name, shape in shapes(config, mtp).items():
        found[name] = ("F8_E4M3" if fp8 and in_fp8(name) else "BF16", shape)
        if fp8 and in_fp8(name):
            found[f"{name}_scale_inv"] = ("F32", blocks(shape))
    return found


def file_header(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, int], int]:
    """The start of a file that holds these tensors, as safetensors writes it; where each one begins; the file's size.

    safetensors orders the tensors by the size of their dtype, the widest first, and then by name.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (-BYTES[item[1][0]], item[0])):
        start, end = end, end + BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    places = {name: first + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}
    return struct.pack("<Q", len(text)) + text, places, first + end


def into_shards(tensors: dict[str, tuple[str, tuple[int, ...]]], limit: int = SHARD_BYTES) -> list[dict]:
    """The tensors shard by shard, in their order, with all of MTP in the last one."""
    shards, used = [{}], 0
    for name in [name for name in tensors if not name.startswith("mtp.")]:
        size = BYTES[tensors[name][0]] * math.prod(tensors[name][1])
        if used and used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = tensors[name]
        used += size
    mtp = {name: entry for name, entry in tensors.items() if name.startswith("mtp.")}
    return [*shards, mtp] if mtp else shards


def write_sparse(folder: Path, config: dict = INSTRUCT, fp8: bool = False, mtp: bool = True) -> list[Path]:
    """A whole checkpoint folder whose weights are holes: they read as zeros and take no space on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = into_shards(entries(config, fp8, mtp))
    files = [folder / f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, tensors in zip(files, shards):
        start, _, size = file_header(tensors)
        with file.open("wb") as out:
            out.write(start)
            out.truncate(size)
    write_json_files(folder, config, {name: file.name for file, tensors in zip(files, shards) for name in tensors}, fp8)
    return files


def write_json_files(folder: Path, config: dict, shard_of: dict[str, str] | None, fp8: bool):
    """config.json, and the index of several shards."""
    config = {**config, "quantization_config": FP8_CONFIG} if fp8 else config
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if shard_of is not None:
        index = {"metadata": {}, "weight_map": shard_of}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def read_header(file: Path) -> dict[str, dict]:
    """What a safetensors file says of its tensors."""
    with file.open("rb") as source:
        (length,) = struct.unpack("<Q", source.read(8))
        header = json.loads(source.read(length))
    header.pop("__metadata__", None)
    return header


def write(folder: Path, config: dict, tensors: dict[str, Tensor], shards: int = 1, fp8: bool = False) -> list[Path]:
    """A checkpoint folder with these tensors, dealt out to `shards` files."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    names, files = [*tensors], [folder / "model.safetensors"]
    if shards > 1:
        files = [folder / f"model-{i:05}-of-{shards:05}.safetensors" for i in range(1, shards + 1)]
    for i, file in enumerate(files):
        save_file({name: tensors[name].contiguous() for name in names[i::shards]}, file, metadata={"format": "pt"})
    shard_of = {name: files[i % shards].name for i, name in enumerate(names)} if shards > 1 else None
    write_json_files(folder, config, shard_of, fp8)
    return files


def block_of(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """One value for each block of 128 x 128 -> the same value at each of the block's elements."""
    row, column = (torch.arange(n) // 128 for n in shape)
    return values[row][:, column]


def to_fp8(tensors: dict[str, Tensor], scale_dtype: torch.dtype = torch.float32) -> tuple[dict, dict]:
    """The tensors as an FP8 release would have them, and in float32 what they then stand for.

    Each block of 128 x 128, those at the edges may be smaller, is divided by absmax / 448, float8_e4m3's largest.
    """
    eight, plain = {}, {}
    for name, tensor in tensors.items():
        if not in_fp8(name):
            eight[name], plain[name] = tensor, tensor.float()
            continue
        rows, columns = blocks(tensor.shape)
        scale = torch.empty(rows, columns, dtype=scale_dtype)
        for i in range(rows):
            for j in range(columns):
                block = tensor[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)]
                scale[i, j] = block.abs().max().clamp(min=1e-12) / 448
        wide = block_of(scale.float(), tensor.shape)
        eight[name] = (tensor.float() / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
        eight[f"{name}_scale_inv"] = scale
        plain[name] = eight[name].float() * wide
    return eight, plain


def fuse_experts(tensors: dict[str, Tensor], suffix: str = "") -> dict[str, Tensor]:
    """The tensors with each layer's experts in two: gate_up_proj (E, 2 I, D), gate first, and down_proj (E, D, I).

    Scales likewise, after the suffix: ".weight" or nothing.
    """
    fused, layers = {}, {}
    for name, tensor in tensors.items():
        if found := re.fullmatch(r"(.+\.experts)\.(\d+)\.(\w+_proj)\.weight(_scale_inv)?", name):
            prefix, e, kind, scale = found.groups(default="")
            layers.setdefault((prefix, scale), {}).setdefault(kind, {})[int(e)] = tensor
        else:
            fused[name] = tensor
    for (prefix, scale), kinds in layers.items():
        stacked = {kind: torch.stack([found[e] for e in range(len(found))]) for kind, found in kinds.items()}
        gate_up = torch.cat([stacked["gate_proj"], stacked["up_proj"]], dim=1)
        fused |= {f"{prefix}.gate_up_proj{suffix}{scale}": gate_up}
        fused |= {f"{prefix}.down_proj{suffix}{scale}": stacked["down_proj"]}
    return fused
