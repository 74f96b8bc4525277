"""How far rounding alone may move a value: what was measured, for the dtype, the widths and the positions at hand.

noise.json has two kinds of figures. "floors" come from whole models (noise.py): by dtype and stage, the largest error
of a stage from sound inputs ("isolated"), or with what it inherits ("chained"). "sums" come from single operations
(noise_sums.py): how the error of a norm or of a product grows with its width when it is summed in the plainest way,
one term after the other. "state" is for a recurrent state that is kept in half precision.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from verify.stages import LAYER, CannotCompare, forward_order, stage_of

EPSILON = {  # of rounding once; float8: weights of 8 bits, computed with in bfloat16
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float8": 2.0**-8,
}
STATE_DTYPES = ("float32", "bfloat16", "float16")
DELTA, MIXED = "linear_attn.delta_out", ("linear_attn.out_proj.out", "self_attn.o_proj.out")
INPUTS = {  # stage -> the stages that it is computed from; "before": the output of the layer before
    "input_layernorm.out": ["before"],
    "linear_attn.in_proj_qkvz.out": ["input_layernorm.out"],
    "linear_attn.in_proj_ba.out": ["input_layernorm.out"],
    **{f"linear_attn.{name}": ["linear_attn.in_proj_qkvz.out"] for name in "qkvz"},
    **{f"linear_attn.{name}": ["linear_attn.in_proj_ba.out"] for name in "ba"},
    "linear_attn.conv_out": ["linear_attn.q", "linear_attn.k", "linear_attn.v"],
    "linear_attn.conv_state": ["linear_attn.q", "linear_attn.k", "linear_attn.v"],
    "linear_attn.v_conv": ["linear_attn.conv_out"],
    "linear_attn.q_l2norm": ["linear_attn.conv_out"],
    "linear_attn.k_l2norm": ["linear_attn.conv_out"],
    "linear_attn.g": ["linear_attn.a"],
    "linear_attn.beta": ["linear_attn.b"],
    **{
        f"linear_attn.{name}": [f"linear_attn.{part}" for part in ("q_l2norm", "k_l2norm", "v_conv", "g", "beta")]
        for name in ("delta_out", "state")
    },
    "linear_attn.norm.out": ["linear_attn.delta_out", "linear_attn.z"],
    "linear_attn.out_proj.out": ["linear_attn.norm.out"],
    **{f"self_attn.{name}_proj.out": ["input_layernorm.out"] for name in "qkv"},
    "self_attn.q": ["self_attn.q_proj.out"],
    "self_attn.gate": ["self_attn.q_proj.out"],
    "self_attn.q_norm.out": ["self_attn.q"],
    "self_attn.k_norm.out": ["self_attn.k_proj.out"],
    "self_attn.q_rope": ["self_attn.q_norm.out"],
    "self_attn.k_rope": ["self_attn.k_norm.out"],
    "self_attn.attn_out": ["self_attn.q_rope", "self_attn.k_rope", "self_attn.v_proj.out"],
    "self_attn.o_proj.out": ["self_attn.attn_out", "self_attn.gate"],
    "post_attention_layernorm.out": ["mixer", "before"],
    **{
        f"mlp.{name}.out": ["post_attention_layernorm.out"]
        for name in ("gate", "shared_expert_gate", "gate_proj", "up_proj")
        + ("shared_expert.gate_proj", "shared_expert.up_proj")
    },
    "mlp.router_probs": ["mlp.gate.out"],
    "mlp.topk_weights": ["mlp.router_probs"],
    "mlp.experts.out": ["post_attention_layernorm.out", "mlp.topk_weights"],
    "mlp.shared_expert.down_proj.out": ["mlp.shared_expert.gate_proj.out", "mlp.shared_expert.up_proj.out"],
    "mlp.down_proj.out": ["mlp.gate_proj.out", "mlp.up_proj.out"],
    "mlp.out": ["mlp.experts.out", "mlp.shared_expert_gate.out", "mlp.shared_expert.down_proj.out"],
    "layer.out": ["mlp", "mixer", "before"],
    "model.norm.out": ["before"],
    "lm_head.out": ["model.norm.out"],
    "mtp.fc.out": ["mtp.pre_fc_norm_embedding.out", "mtp.pre_fc_norm_hidden.out"],
    "mtp.pre_fc_norm_embedding.out": ["model.embed_tokens.out"],
    "mtp.pre_fc_norm_hidden.out": ["model.norm.out"],
    "mtp.norm.out": ["before"],
    "mtp.logits": ["mtp.norm.out"],
}


def widths_of(stage: str, config: dict) -> list[tuple[str, int]]:
    """The sums in a stage, of squares or of products, and how many terms they have. KeyError without the config's."""
    hidden = config["hidden_size"]
    if stage in ("self_attn.q_norm.out", "self_attn.k_norm.out"):
        return [("squares", config["head_dim"])]
    if stage == "linear_attn.norm.out":
        return [("squares", config["linear_value_head_dim"])]
    if stage.endswith("_l2norm"):
        return [("squares", config["linear_key_head_dim"])]
    if "norm" in stage:
        return [("squares", hidden)]
    if stage == "linear_attn.out_proj.out":
        return [("products", config["linear_num_value_heads"] * config["linear_value_head_dim"])]
    if stage in (DELTA, "linear_attn.state"):
        return [("products", config["linear_key_head_dim"])]
    if stage == "self_attn.o_proj.out":
        return [("products", config["num_attention_heads"] * config["head_dim"])]
    if stage == "self_attn.attn_out":
        return [("products", config["head_dim"])]
    if stage == "mtp.fc.out":
        return [("products", 2 * hidden)]
    if stage.endswith("down_proj.out") or stage in ("mlp.experts.out", "mlp.out"):
        names = ("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size")
        return [("products", max(hidden, *(config.get(name) or 0 for name in names)))]
    if stage.endswith("proj.out") or stage in ("linear_attn.in_proj_qkvz.out", "linear_attn.in_proj_ba.out"):
        return [("products", hidden)]
    if stage in ("lm_head.out", "mtp.logits", "mlp.gate.out", "mlp.shared_expert_gate.out"):
        return [("products", hidden)]
    return []


class Noise:
    """How large the relative RMS error of a value may be: 4 times what rounding was measured to do.

    config: config.json's content, for the widths. state_dtype: what the delta rule's state is kept in, as announced.
    position: the last one of the step at hand, as RoPE's angles are no better than float32. rounded: whether mine was
    written in its dtype, so that even what was computed in float32 has no more digits. have: the keys of which
    mine's own values go into what is compared, None for all; without them a stage inherits the errors before it.
    """

    def __init__(self, path: Path, dtype: str, mode: str, config: dict | None = None, state_dtype: str = "float32"):
        for name, found, known in (("dtype", dtype, EPSILON), ("state_dtype", state_dtype, STATE_DTYPES)):
            if found not in known:
                raise CannotCompare(f"{name} is {found!r}, expected one of {', '.join(known)}")
        content = json.loads(path.read_bytes()) if path.is_file() else {}
        base = "bfloat16" if dtype == "float8" else dtype
        floors = content.get("floors", {}).get(base, {})
        self.dtype = dtype
        self.chained = mode == "chained"
        self.measured: dict[str, float] = floors.get(mode, {})
        self.inherited: dict[str, float] = floors.get("chained", {})
        self.default = max(self.measured.values(), default=10 * EPSILON[dtype])
        self.sums: dict[str, dict[str, float]] = content.get("sums", {}).get(dtype, {})
        self.usual_sums: dict[str, dict[str, float]] = content.get("sums", {}).get(base, {})
        self.state = content.get("state", {}).get(state_dtype, 0.0)
        self.config = config or {}
        self.position = 0
        self.rounded = True
        self.have: set[str] | None = None

    def allowed(self, key: str) -> float:
        """In a chain, errors of the layers before add up, as independent ones do: with the root of their number."""
        stage = stage_of(key)
        if self.chained:
            floor = self.measured.get(stage, self.default) * self.wider()
            floor = max(floor, self.own(stage)) * math.sqrt(depth_of(key))
            if self.follows(key, "linear_attention", DELTA):
                floor = max(floor, self.state * math.sqrt(depth_of(key)))
            if self.follows(key, "full_attention", "self_attn.q_rope"):
                floor += self.angle()
            return 4 * floor
        floor = max(self.measured.get(stage, self.default), self.own(stage))
        if self.rounded:  # what is only copied may still be rounded to be written
            floor = max(floor, EPSILON[self.dtype] / 2)
        if stage in (DELTA, "linear_attn.state", "linear_attn.norm.out"):
            floor = max(floor, self.state)
        if stage.endswith("_rope"):
            floor += self.angle()
        if self.inherits(key):
            floor = max(floor, self.inherited.get(stage, self.default) * self.wider() * math.sqrt(depth_of(key)))
            floor = max(floor, self.state) + self.angle()
        return 4 * floor

    def own(self, stage: str) -> float:
        """What a stage's own sums were measured to do at this width, summed in the plainest way."""
        try:
            widths = widths_of(stage, self.config)
        except KeyError:
            return 0.0
        return max((at_width(self.sums.get(kind, {}), width) for kind, width in widths), default=0.0)

    def wider(self) -> float:
        """How much worse the widest sums of the model are than those that the floors were measured with."""
        hidden = self.config.get("hidden_size", 64)
        ratios = [1.0]
        for kind, measured in self.sums.items():
            usual = at_width(self.usual_sums.get(kind, {}), 64)
            if usual:
                ratios.append(at_width(measured, hidden) / usual)
        return max(ratios)

    def angle(self) -> float:
        """The error of float32's product of position and frequency, in radians."""
        return EPSILON["float64" if self.dtype == "float64" else "float32"] * self.position / 2

    def follows(self, key: str, kind: str, stage: str) -> bool:
        """Whether a key comes after a stage of the first layer of a kind."""
        types = self.config.get("layer_types") or []
        interval = self.config.get("full_attention_interval", 4)
        first = 0 if kind == "linear_attention" else interval - 1
        if types:
            first = types.index(kind) if kind in types else len(types)
        return key.startswith("mtp.") or forward_order(key) >= forward_order(f"model.layers.{first}.{stage}")

    def inherits(self, key: str) -> bool:
        """Whether some input of a value is not mine's own, so that it brings the errors before it along."""
        return self.have is not None and any(name not in self.have for name in inputs_of(key, self.have))


def at_width(measured: dict[str, float], width: int) -> float:
    """What was measured at the next width that is not smaller; at the largest, grown in proportion. 0 of nothing."""
    widths = sorted(int(name) for name in measured)
    for found in widths:
        if width <= found:
            return measured[str(found)]
    return measured[str(widths[-1])] * width / widths[-1] if widths else 0.0


def depth_of(key: str) -> int:
    """How many layers a value has gone through, its own included."""
    match = LAYER.fullmatch(key)
    return int(match[2]) + 1 if match else 1


def inputs_of(key: str, have: Iterable[str]) -> list[str]:
    """The keys that a value is computed from. Which mixer and which MLP a layer has shows in `have`."""
    match = LAYER.fullmatch(key)
    prefix = key[: match.start(3)] if match else ""
    found = []
    for name in INPUTS.get(stage_of(key), []):
        if name == "before":
            found.append(layer_before(key, have))
        elif name in ("mixer", "mlp"):
            kinds = MIXED if name == "mixer" else ("mlp.out", "mlp.down_proj.out")
            found.append(next((prefix + kind for kind in kinds if prefix + kind in have), prefix + kinds[0]))
        else:
            found.append(name if name.startswith(("model.", "mtp.", "lm_head")) else prefix + name)
    return found


def layer_before(key: str, have: Iterable[str]) -> str:
    """The key of what a layer, or a final norm, reads."""
    match = LAYER.fullmatch(key)
    if match and match[1] == "mtp":
        return "mtp.fc.out"
    if key == "mtp.norm.out":
        return "mtp.layers.0.out"
    layers = [depth_of(name) for name in have if LAYER.fullmatch(name) and name.startswith("model.")]
    number = int(match[2]) if match else max(layers, default=0)
    return f"model.layers.{number - 1}.out" if number else "model.embed_tokens.out"
