"""What is wrong with a checkpoint, found before it is read: fields that can't be right together, links that lead away.

Without this file nothing is answered differently; a wrong checkpoint fails later, and says less about why.
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


def warn_of_unread(settings: dict):
    """Warns, by name, of what a generation_config.json asks for and generate does not do."""
    usual = (None, False, 0, 1, 1.0)  # values that ask for nothing
    names = [name for name in settings if name in NOT_OBEYED | {"num_beams"} and settings[name] not in usual]
    if names:
        warnings.warn(f"generation_config.json: {', '.join(sorted(names))} not obeyed", stacklevel=4)


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
