"""The angles of RoPE, from config.json: YaRN and its factor on cos and sin included.

reference_recurrent.py has its own; this is for where it does not lie next to verify/, and a test holds the two equal.
"""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def rope_fields(config: dict) -> dict:
    """What config.json says of RoPE, in either of its dialects."""
    return {**config, **(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}


def rotated_width(config: dict) -> int:
    """R, how many of a head's entries turn."""
    return int(config["head_dim"] * rope_fields(config).get("partial_rotary_factor", 0.25))


def has_yarn(config: dict) -> bool:
    """Whether config.json asks for YaRN, by either name of the field."""
    fields = rope_fields(config)
    return fields.get("rope_type", fields.get("type", "default")) == "yarn"


def frequencies(config: dict, width: int | None = None) -> tuple[Array, float]:
    """Radians per position of each pair, (R/2,), and the factor on cos and sin. KeyError for what config lacks."""
    fields = rope_fields(config)
    width = rotated_width(config) if width is None else width
    theta = fields["rope_theta"]
    i = np.arange(width // 2)
    plain = theta ** (-2 * i / width)
    if not has_yarn(config):
        return plain, 1.0
    original = fields.get("original_max_position_embeddings") or fields["max_position_embeddings"]

    def index(turns: float) -> float:
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = index(fields.get("beta_fast") or 32), index(fields.get("beta_slow") or 1)
    if fields.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = np.clip((i - low) / (high - low or 0.001), 0, 1)
    scales = [fields.get("mscale") or 0, fields.get("mscale_all_dim") or 0]
    above, below = (1 + 0.1 * math.log(fields["factor"]) * x for x in (scales if all(scales) else (1, 0)))
    scale = fields.get("attention_factor") or above / below
    return plain * (1 - ramp) + plain / fields["factor"] * ramp, scale


def rotate(x: Array, angle: Array, interleaved: bool = False) -> Array:
    """Turns the pairs (i, i + n) of 2 n entries by their angles, or the pairs (2i, 2i + 1). x (T, heads, 2 n)."""
    n = x.shape[-1] // 2
    cos = np.cos(angle)
    sin = np.sin(angle)
    if interleaved:
        a = x[..., 0::2]
        b = x[..., 1::2]
        return np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)
    a = x[..., :n]
    b = x[..., n:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def further(x: Array, config: dict, positions: int) -> Array:
    """Queries or keys that are turned already, as if they were so many positions further. x (T, heads, head_dim)."""
    angle, _ = frequencies(config)
    R = 2 * len(angle)
    return np.concatenate([rotate(x[..., :R], positions * angle), x[..., R:]], -1)
