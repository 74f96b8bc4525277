"""What is wrong with a checkpoint, found before it is used: fields that can't be right together, links that lead away.

Without this file a right checkpoint is read all the same; a wrong one fails later, and says less about why.
"""

import os
import warnings
from pathlib import Path
from typing import Any

NOT_OBEYED = {"min_length", "no_repeat_ngram_size", "length_penalty", "typical_p", "penalty_alpha", "epsilon_cutoff"}
NOT_OBEYED |= {"eta_cutoff", "forced_eos_token_id", "sequence_bias", "guidance_scale", "encoder_no_repeat_ngram_size"}


def expect(right: bool, otherwise: str):
    """Raises ValueError with the message, on one line, unless `right`."""
    if not right:
        raise ValueError(" ".join(otherwise.splitlines()))


def check_link(path: Path):
    """Raises ValueError for a file of a checkpoint that is a folder, or a link to nowhere or to somewhere else."""
    if not path.is_file():
        expect(not os.path.lexists(path), f"{path}: not a file, or a link to nowhere")
        return
    home = path.parent.resolve()
    target = path.resolve()
    blobs = [up / "blobs" for up in home.parents[1:3] if home.parent.name == "snapshots"]  # where the hub's links lead
    inside = target.parent == home or any(map(target.is_relative_to, blobs))
    expect(inside, f"{path}: leads out of the folder, to {target}")


def check_settings(settings: dict):
    """Warns, by name, of what a generation_config.json asks for and generate does not do."""
    usual = (None, False, 0, 1, 1.0)  # values that ask for nothing
    names = [name for name in settings if name in NOT_OBEYED | {"num_beams"} and settings[name] not in usual]
    if names:
        warnings.warn(f"generation_config.json: {', '.join(sorted(names))} not obeyed", stacklevel=5)


def check_index(index: Path, content: dict):
    """Raises ValueError for a model.safetensors.index.json without a map from tensors to files, FileNotFoundError if it
    names a file that is not next to it.
    """
    shard_of = content.get("weight_map")
    right = isinstance(shard_of, dict) and shard_of and all(isinstance(name, str) for name in shard_of.values())
    expect(right, f"{index}: no weight_map from tensor names to files")
    for name in sorted(set(shard_of.values())):
        path = index.parent / name
        plain = name != "" and path.name == name
        if plain:
            check_link(path)
        if not plain or not path.is_file():
            raise FileNotFoundError(f"{index}: names {name!r}, which is not in the folder")


def check_count(config: Any, tensors: int, source: Path):
    """Raises ValueError for layers and experts that so few tensors can't be, before modules are made for them."""
    moe = sum(map(config.is_moe, range(config.num_hidden_layers))) + config.mtp_num_hidden_layers
    few = config.num_hidden_layers + 3 * config.num_experts * moe
    expect(few <= tensors, f"{source}: {tensors} tensors, but config.json's layers and experts need {few}")


def check_fields(config: type, fields: dict):
    """Raises ValueError for the first field that has not the type or bounds of `config`'s annotations and defaults, or
    that rope_scaling and rope_parameters, which mean the same, say differently.
    """
    scaling = fields.get("rope_scaling") or {}
    nested = fields.get("rope_parameters") or {}
    right = type(scaling) is type(nested) is dict and (scaling == nested or {} in (scaling, nested))
    expect(right, f"config: rope_scaling and rope_parameters are {scaling} and {nested}, expected equal objects")
    nested = {**scaling, **nested}
    for key in ("rope_theta", "partial_rotary_factor"):
        value = nested.get(key)
        found = fields.get(key)
        right = value is None or found in (None, value)
        expect(right, f"config: {key} is {found!r:.99}, but rope_parameters has {value!r:.99}")
    for key, value in {**fields, **nested, "rope_scaling": nested}.items():
        kind = config.__annotations__.get(key)
        if kind is None:
            expect(not hasattr(config, key), f"config: {key} can't be a key")
        elif value is not None:
            kinds = (int, float) if kind is float else kind
            right = isinstance(value, kinds) and isinstance(value, bool) == (kind is bool)  # True is an int, too
            if right and kind in (int, float):  # refuses NaN, and sizes that would exhaust the memory
                right = 0 <= value < (1e4 if key == "num_hidden_layers" else 1e8 if kind is int else 1e18)
            expect(right, f"config: {key} is {value!r:.99}, expected {kind.__name__} in bounds")


def check_config(config: Any):
    """Raises ValueError for the first field that can't be right, or that a layer needs and does not find."""

    def check(name: str, right: bool, expected: str):
        expect(right, f"config: {name} is {getattr(config, name)!r:.99}, expected {expected}")

    def need(names: str):
        for name in names.split():
            check(name, (getattr(config, name) or 0) > 0, "a number above 0")

    need("vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim rms_norm_eps")
    need("rope_theta partial_rotary_factor max_position_embeddings full_attention_interval decoder_sparse_step")
    layers = range(config.num_hidden_layers)
    kinds = {"linear_attention", "full_attention"}
    named = len(config.layer_types) == len(layers) and all(kind in kinds for kind in map(str, config.layer_types))
    check("layer_types", named, f"{' or '.join(sorted(kinds))} for each of num_hidden_layers ({len(layers)})")
    if "linear_attention" in config.layer_types:
        need(" ".join(key for key in type(config).__annotations__ if key.startswith("linear_")))
        shared = config.linear_num_value_heads % config.linear_num_key_heads == 0
        check("linear_num_value_heads", shared, f"a multiple of linear_num_key_heads ({config.linear_num_key_heads})")
    shared = config.num_attention_heads % config.num_key_value_heads == 0
    check("num_attention_heads", shared, f"a multiple of num_key_value_heads ({config.num_key_value_heads})")
    check("num_experts", config.num_experts is not None, "a number (0: dense layers only)")
    check("mtp_num_hidden_layers", config.mtp_num_hidden_layers in (0, 1), "0 or 1")
    check("mlp_only_layers", all(i in layers for i in config.mlp_only_layers), f"layers from 0 to {len(layers) - 1}")
    moe = [config.is_moe(i) for i in layers] + [config.num_experts > 0] * config.mtp_num_hidden_layers
    if any(moe):
        need("num_experts_per_tok moe_intermediate_size shared_expert_intermediate_size")
        check(
            "num_experts_per_tok",
            config.num_experts_per_tok <= config.num_experts,
            f"at most num_experts ({config.num_experts})",
        )
    if not all(moe):
        need("intermediate_size")
    turned = int(config.head_dim * config.partial_rotary_factor)
    even = turned in range(2, config.head_dim + 1, 2)
    check("partial_rotary_factor", even, f"an even share of head_dim, not {turned}")
    if config.rope_scaling:
        names = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor")
        numbers = [config.rope_scaling[name] for name in names if config.rope_scaling.get(name) is not None]
        right = all(isinstance(n, (int, float)) and 0 < n < 1e8 for n in numbers)
        check("rope_scaling", right and config.rope_scaling.get("factor", 0) >= 1, "numbers above 0, factor at least 1")
        check("rope_theta", config.rope_theta > 1, "more than 1 for YaRN")
