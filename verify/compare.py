"""Compares two traces of Qwen3-Next's forward pass and names the first value that is wrong.

    python verify/compare.py ref.safetensors mine.safetensors              each value, each on its own run's inputs
    python verify/compare.py ref.safetensors mine.safetensors --isolated --model DIR
                                        each value against what the reference makes of mine's own inputs to it

Prints, in forward order: key, shape, RMS ratio, NMSE in dB, cosine, largest error, and KL for logits. NMSE decides: a
key passes if its relative RMS error is within 4 times the noise of its stage in the dtype (noise.json, measured). Where
two experts are so close that noise may choose, another choice is a tie; what follows is compared with mine's choice
(with --model, which needs reference_recurrent.py), or up to that token. Tensors that are flattened, transposed or have
their heads in another order are recognised, and legal if all that belongs together is so.

A file is .safetensors or .npz, with a manifest (trace.py) or just tensors under our keys; --alias FILE renames others'.
Exit code: 0 all agree, 1 some differ, 2 nothing to compare. Needs NumPy and safetensors: copy it alone if you like
(noise.json beside it; without, every stage is allowed 40 times the dtype's rounding).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

Array = np.ndarray
FORMAT, HERE = "qwen3-next-trace/1", Path(__file__).resolve().parent
EPSILON = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
LAYER = re.compile(r"(model|mtp)\.layers\.(\d+)\.(.+)")

# ---- Stages ---------------------------------------------------------------------------------------------------------

RMS_NORM, SHARED = (
    "x / rms(x) * (1 + w), over the last axis, in float32",
    "of the shared expert, which sees every token",
)
STAGES: dict[str, tuple[str, str]] = {  # in forward order: axes, equation
    "model.embed_tokens.out": ("token channel", "E[token]"),
    "mtp.pre_fc_norm_embedding.out": ("token channel", RMS_NORM + ", of the embedding of the next token"),
    "mtp.pre_fc_norm_hidden.out": ("token channel", RMS_NORM + ", of model.norm.out, or mtp.norm.out behind a draft"),
    "mtp.fc.out": ("token channel", "W [embedding | hidden]"),
    "input_layernorm.out": ("token channel", RMS_NORM),
    "linear_attn.in_proj_qkvz.out": ("token row", "W x; rows of each key head together: q | k | v of its heads | z"),
    "linear_attn.in_proj_ba.out": ("token row", "W x; rows of each key head together: b | a"),
    "linear_attn.q": ("token key_head key_dim", "from in_proj_qkvz"),
    "linear_attn.k": ("token key_head key_dim", "from in_proj_qkvz"),
    "linear_attn.v": ("token value_head value_dim", "from in_proj_qkvz"),
    "linear_attn.z": ("token value_head value_dim", "from in_proj_qkvz"),
    "linear_attn.b": ("token value_head", "from in_proj_ba"),
    "linear_attn.a": ("token value_head", "from in_proj_ba"),
    "linear_attn.conv_out": (
        "token channel",
        "silu(sum_j w_j x_{t - kernel + 1 + j}); channels: all q | all k | all v",
    ),
    "linear_attn.q_l2norm": (
        "token value_head key_dim",
        "q / sqrt(|q|^2 + 1e-6) * K^-0.5; value head h: key head h // r",
    ),
    "linear_attn.k_l2norm": ("token value_head key_dim", "k / sqrt(|k|^2 + 1e-6); value head h: key head h // r"),
    "linear_attn.g": ("token value_head", "-exp(A_log) softplus(a + dt_bias), the log of the decay"),
    "linear_attn.beta": ("token value_head", "sigmoid(b)"),
    "linear_attn.chunk.A": ("value_head chunk row column", "beta_i e^(G_i - G_j) k_i . k_j, j < i"),
    "linear_attn.chunk.M": ("value_head chunk row column", "(I + A)^-1 diag(beta)"),
    "linear_attn.chunk.u": ("value_head chunk row value_dim", "M v"),
    "linear_attn.chunk.w": ("value_head chunk row key_dim", "M (e^G k)"),
    "linear_attn.chunk.state": ("value_head key_dim value_dim", "S before the chunk"),
    "linear_attn.delta_out": ("token value_head value_dim", "S <- e^g S; S <- S + k beta (v - S^T k)^T; out = S^T q"),
    "linear_attn.state": ("value_head key_dim value_dim", "S after the last token"),
    "linear_attn.conv_state": ("channel tap", "the convolution's last kernel - 1 inputs, before silu"),
    "linear_attn.norm.out": ("token value_head value_dim", "o / rms(o) * w * silu(z): w itself, norm before gate"),
    "linear_attn.out_proj.out": ("token channel", "W norm.out"),
    "self_attn.q_proj.out": ("token row", "W x; rows of each head together: query | gate"),
    "self_attn.k_proj.out": ("token row", "W x"),
    "self_attn.v_proj.out": ("token row", "W x"),
    "self_attn.q": ("token head head_dim", "first half of each head of q_proj"),
    "self_attn.gate": ("token head head_dim", "second half of each head of q_proj"),
    "self_attn.q_norm.out": ("token head head_dim", RMS_NORM),
    "self_attn.k_norm.out": ("token kv_head head_dim", RMS_NORM),
    "self_attn.q_rope": (
        "token head head_dim",
        "pairs (i, i + R/2), i < R/2, turned by t theta^(-2i/R); the rest as it is",
    ),
    "self_attn.k_rope": ("token kv_head head_dim", "as q_rope"),
    "self_attn.attn_out": ("token head head_dim", "softmax(q . k head_dim^-0.5) v, causal; head h: kv head h // group"),
    "self_attn.o_proj.out": ("token channel", "W (attn_out * sigmoid(gate))"),
    "post_attention_layernorm.out": ("token channel", RMS_NORM + ", of x + the mixer's output"),
    "mlp.gate.out": ("token expert", "router logits, W x"),
    "mlp.router_probs": ("token expert", "softmax over all experts, in float32"),
    "mlp.margin": ("token", "probability of the last expert chosen, less that of the next"),
    "mlp.topk_ids": ("token choice", "the likeliest num_experts_per_tok experts"),
    "mlp.topk_weights": ("token choice", "their probabilities, divided by their sum (norm_topk_prob)"),
    "mlp.experts.out": ("token channel", "sum_e weight_e down_e(silu(gate_e x) * up_e x)"),
    "mlp.shared_expert_gate.out": ("token one", "w . x"),
    "mlp.shared_expert.gate_proj.out": ("token inner", "W x, " + SHARED),
    "mlp.shared_expert.up_proj.out": ("token inner", "W x, " + SHARED),
    "mlp.shared_expert.down_proj.out": ("token channel", "W (silu(gate) * up), " + SHARED),
    "mlp.out": ("token channel", "experts.out + sigmoid(shared_expert_gate) * shared_expert"),
    "mlp.gate_proj.out": ("token inner", "W x"),
    "mlp.up_proj.out": ("token inner", "W x"),
    "mlp.down_proj.out": ("token channel", "W (silu(gate) * up)"),
    "layer.out": ("token channel", "x + the mixer's output + the MLP's"),
    "model.norm.out": ("token channel", RMS_NORM),
    "lm_head.out": ("token vocabulary", "logits, W x"),
    "mtp.norm.out": ("token channel", RMS_NORM),
    "mtp.logits": ("token vocabulary", "lm_head of mtp.norm.out: row i is about token i + 2"),
}
RANK = {stage: number for number, stage in enumerate(STAGES)}
IDS, WEIGHTS, PROBS = "mlp.topk_ids", "mlp.topk_weights", "mlp.router_probs"
# Each head's own, so that an order of the value heads is one of all of these
VALUE_HEADS = [stage for stage, (axes, _) in STAGES.items() if "value_head" in axes and ".chunk." not in stage]
ROWS = ("linear_attn.in_proj_qkvz.out", "linear_attn.in_proj_ba.out", "linear_attn.conv_out", "linear_attn.conv_state")


def stage_of(key: str) -> str:
    """A key without its layer, "linear_attn.g" of "model.layers.3.linear_attn.g"; a layer's own output: "layer.out"."""
    match = LAYER.fullmatch(key)
    stage = match[3] if match else key
    return "layer.out" if match and stage == "out" else re.sub(r"chunk\.\d+\.", "chunk.", stage)


def is_per_token(key: str) -> bool:
    """Whether a key's values have a row for each token, and are no state."""
    return STAGES.get(stage_of(key), ("token",))[0].startswith("token")


def forward_order(key: str) -> tuple:
    """Sorts keys as they are computed: embedding, layers, head, then MTP."""
    match, rank = LAYER.fullmatch(key), RANK.get(stage_of(key), len(RANK))
    section = 1 if match else 0 if key == "model.embed_tokens.out" else 2
    if key.startswith("mtp."):
        section = 4 if match else 3 if ".pre_fc" in key or ".fc." in key else 5
    return section, int(match[2]) if match else 0, rank, key


def rms(x: Array) -> float:
    """Root of the mean square, 0 of nothing."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def usual_sizes(steps: dict[str, dict[str, Array]]) -> dict[str, float]:
    """A key's largest RMS over all steps: one token's value may by chance be near 0."""
    found: dict[str, float] = {}
    for arrays in steps.values():
        for key, x in arrays.items():
            found[key] = max(found.get(key, 0.0), rms(x))
    return found


# ---- Files ----------------------------------------------------------------------------------------------------------


class CannotCompare(ValueError):
    """What makes a comparison impossible, in one line."""


@dataclass
class Trace:
    """One file: name of a step -> key -> values; tokens of each step; its manifest, {} without one."""

    steps: dict[str, dict[str, Array]]
    tokens: dict[str, dict]
    manifest: dict


def read_arrays(path: Path) -> tuple[dict[str, Array], dict]:
    """A file's tensors, and its metadata."""
    try:
        if path.suffix == ".npz":
            with np.load(path) as file:
                return {name: file[name] for name in file.files}, {}
        from safetensors import deserialize

        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "BOOL": "?"}
        arrays = {}
        for name, entry in deserialize(data):
            if entry["dtype"] not in kinds:
                raise ValueError(f"{name} has dtype {entry['dtype']}, expected one of {', '.join(kinds)}")
            x = np.frombuffer(entry["data"], kinds[entry["dtype"]]).reshape(entry["shape"])
            arrays[name] = (x.astype(np.uint32) << 16).view(np.float32) if entry["dtype"] == "BF16" else x
        return arrays, header.get("__metadata__") or {}
    except Exception as error:  # whatever the libraries raise for a file that is not what it should be
        raise CannotCompare(f"{path}: {' '.join(str(error).split())}") from None


def rename(name: str, aliases: list[dict]) -> list[tuple[str, dict]]:
    """The keys that an alias file has for a name, each with the entry; a name that fits none stays, "" drops it.

    An entry: {"name": regular expression, "key": template or several, "transpose": order of the axes, if another}.
    """
    for entry in aliases:
        if match := re.fullmatch(entry["name"], name):
            keys = entry["key"] if isinstance(entry["key"], list) else [entry["key"]]
            return [(match.expand(key), entry) for key in keys if key]
    return [(name, {})]


def widened(x: Array) -> Array:
    """Numbers with a fraction in float64."""
    return x if x.dtype.kind in "iub" else x.astype(np.float64)


def read_trace(path: str | Path, aliases: list[dict] = ()) -> Trace:
    """A trace file. Batches become a step for each sequence, "padded[0]". Raises CannotCompare."""
    arrays, metadata = read_arrays(path := Path(path))
    try:
        manifest = json.loads(metadata.get("manifest", "{}"))
    except ValueError:
        raise CannotCompare(f"{path}: its manifest is not JSON") from None
    if metadata.get("format", FORMAT) != FORMAT:
        raise CannotCompare(f"{path}: format is {metadata['format']!r}, expected {FORMAT!r}")
    steps: dict[str, dict[str, Array]] = {}
    for name, x in arrays.items():
        step, _, key = name.rpartition("/")
        for ours, entry in rename(key, aliases):
            x = x.transpose(entry["transpose"]) if "transpose" in entry else x
            steps.setdefault(step, {})[ours] = widened(x)
    told = manifest.get("steps", {})
    ordered = {step: steps[step] for step in [*told, *steps] if step in steps}  # a file's own order is by name
    return Trace(ordered, told, manifest)


def split_batches(trace: Trace, tokens: dict[str, dict], padding: str) -> Trace:
    """The same, widened, with a step for each sequence of a batch, without its padding. tokens: the reference's."""
    steps = {}
    for step, arrays in trace.steps.items():
        batch = tokens.get(step, {"tokens": []})["tokens"]
        if not batch or not isinstance(batch[0], list):
            steps[step] = {key: widened(x) for key, x in arrays.items()}
            continue
        width = max(map(len, batch))
        for b, ids in enumerate(batch):
            part = steps[f"{step}[{b}]"] = {}
            for key, x in arrays.items():
                if x.ndim and len(x) == len(batch):
                    start, rows = 0 if padding == "right" else width - len(ids), len(ids) - key.startswith("mtp.")
                    part[key] = widened(x[b, start : start + rows] if is_per_token(key) else x[b])
    return Trace(steps, split_tokens(tokens), trace.manifest)


def split_tokens(tokens: dict[str, dict]) -> dict[str, dict]:
    """Steps and their tokens, with a step for each sequence of a batch."""
    found = {}
    for step, told in tokens.items():
        if told["tokens"] and isinstance(told["tokens"][0], list):
            pairs = enumerate(zip(told["tokens"], told["before"]))
            found |= {f"{step}[{b}]": {"tokens": new, "before": before} for b, (new, before) in pairs}
        else:
            found[step] = told
    return found


def join_batches(steps: dict[str, dict[str, Array]], tokens: dict[str, dict]) -> dict[str, dict[str, Array]]:
    """The sequences of a batch as one step again, 0 behind each one's end."""
    joined = {}
    for step, told in tokens.items():
        if step in steps:
            joined[step] = steps[step]
        elif f"{step}[0]" in steps:
            parts = [steps[f"{step}[{b}]"] for b in range(len(told["tokens"]))]
            longest = {key: max(len(part[key]) for part in parts) for key in parts[0]}
            pad = {key: [(0, 0)] * (parts[0][key].ndim - 1) for key in parts[0]}
            joined[step] = {
                key: np.stack([np.pad(part[key], [(0, n - len(part[key])), *pad[key]]) for part in parts])
                for key, n in longest.items()
            }
    return joined


# ---- Measures -------------------------------------------------------------------------------------------------------


def relative_error(r: Array, m: Array, scale: float = 0.0) -> float:
    """RMS of the difference over the RMS of the reference, or over `scale` if that is more: the square root of NMSE."""
    if not r.size:
        return 0.0
    scale, error = max(rms(r), scale), rms(m - r)
    return error / scale if scale > 0 else (0.0 if error == 0 else math.inf)


def kl_divergence(r: Array, m: Array) -> float:
    """Mean over tokens of KL(softmax(r) || softmax(m)), in nats."""
    log_r, log_m = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (r, m))
    return float(np.mean(np.sum(np.exp(log_r) * (log_r - log_m), axis=-1)))


@dataclass
class Row:
    """How one key compares."""

    step: str
    key: str
    shape: tuple[int, ...]
    verdict: str  # ok, differs, tie, layout, shape
    rms_ratio: float = math.nan
    nmse_db: float = math.nan
    cosine: float = math.nan
    largest: float = math.nan
    relative: float = math.nan
    allowed: float = math.nan
    kl: float | None = None
    worst: str = ""
    note: str = ""
    causes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.step}/{self.key}" if self.step else self.key


def measure(row: Row, r: Array, m: Array, scale: float):
    """Fills in a row's figures."""
    if not r.size:
        row.relative, row.nmse_db = 0.0, -math.inf
        return
    rms_r, rms_m = rms(r), rms(m)
    row.relative = relative_error(r, m, scale) if np.isfinite(m).all() else math.inf
    row.nmse_db = (
        20 * math.log10(row.relative) if 0 < row.relative < math.inf else math.copysign(math.inf, row.relative - 1)
    )
    row.rms_ratio = rms_m / rms_r if rms_r else math.nan
    row.cosine = float(np.sum(r * m) / (r.size * rms_r * rms_m)) if rms_r and rms_m else math.nan
    error = np.abs(np.where(np.isfinite(m), m, np.inf) - r)
    index = np.unravel_index(int(error.argmax()), error.shape)
    row.largest = float(error[index])
    axes = STAGES.get(stage_of(row.key), ("",))[0].split()
    axes = axes if len(axes) == r.ndim else [f"axis {i}" for i in range(r.ndim)]
    row.worst = ", ".join(f"{axis.replace('_', ' ')} {i}" for axis, i in zip(axes, index))
    if row.key in ("lm_head.out", "mtp.logits") and np.isfinite(m).all():
        row.kl = kl_divergence(r, m)


class Noise:
    """How large the relative RMS error of a stage may be: 4 times what was measured for the dtype."""

    def __init__(self, path: Path, dtype: str, mode: str):
        if dtype not in EPSILON:
            raise CannotCompare(f"dtype is {dtype!r}, expected one of {', '.join(EPSILON)}")
        self.floor, self.default, self.chained = {}, 10 * EPSILON[dtype], mode == "chained"
        if path.is_file():
            self.floor = json.loads(path.read_bytes())["floors"].get(dtype, {}).get(mode, {})

    def allowed(self, key: str) -> float:
        """In a chain, errors of the layers before add up, as independent ones do: with the root of their number."""
        match = LAYER.fullmatch(key)
        depth = int(match[2]) + 1 if match and self.chained else 1
        return 4 * self.floor.get(stage_of(key), max(self.floor.values(), default=self.default)) * math.sqrt(depth)


# ---- Layout ---------------------------------------------------------------------------------------------------------


def by_signature(r: Array, m: Array, axis: int) -> Array | None:
    """An order p of m's slices along an axis with which they may be r's: m.take(p) ~ r.

    None if sizes differ, or slices are so small that some order always fits.
    """
    if r.shape != m.shape or r.size < 6 * r.shape[axis]:
        return None
    weights = np.random.default_rng(0).standard_normal(r.size // r.shape[axis])
    order = [np.argsort(np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) @ weights, kind="stable") for x in (r, m)]
    p = np.empty_like(order[0])
    p[order[0]] = order[1]
    return p


def match_layout(stage: str, r: Array, m: Array, allowed: float, heads: Array | None) -> tuple[Array, str] | None:
    """m brought to r's layout, and what that took; None if no layout makes them agree.

    heads: the order of the value heads that other values of the layer have.
    """
    axes = STAGES.get(stage, ("",))[0].split()

    def agrees(x: Array) -> bool:
        return x.shape == r.shape and relative_error(r, x) <= allowed

    if m.size == r.size and m.shape != r.shape:
        if agrees(x := m.reshape(r.shape)):
            return x, f"another shape, {m.shape}"
        for order in itertools.permutations(range(m.ndim)) if m.ndim <= 4 else ():
            x = m.transpose(order)
            if x.size == r.size and agrees(x := x.reshape(r.shape)):
                return x, f"axes in another order, {m.shape}"
    if m.shape != r.shape or not m.size or not np.isfinite(m).all():
        return None
    for a, b in itertools.combinations(range(m.ndim), 2):
        if m.shape[a] == m.shape[b] and agrees(x := np.swapaxes(m, a, b)):
            return x, f"axes {a} and {b} swapped"
    if "value_head" in axes and stage in VALUE_HEADS:
        axis = axes.index("value_head")
        order = heads if heads is not None else by_signature(r, m, axis)
        alone = not stage.endswith("_l2norm") or heads is not None  # key heads repeat: their order is that of others
        if alone and order is not None and agrees(x := m.take(order, axis)):
            return x, f"value heads in another order: {', '.join(map(str, np.argsort(order)))}"
    if stage in ROWS:
        axis = axes.index("row" if "row" in axes else "channel")
        order = by_signature(r, m, axis)
        if order is not None and agrees(x := m.take(order, axis)):
            return x, f"{axes[axis]}s in another order"
    if stage == "linear_attn.q_l2norm" and agrees(x := m * m.shape[-1] ** -0.5):
        return x, "not yet scaled by K^-0.5"
    return None


# ---- Causes ---------------------------------------------------------------------------------------------------------


def recurrence(q: Array, k: Array, v: Array, g: Array, beta: Array, variant: str) -> Array:
    """The delta rule with one thing wrong, from a zero state: what `out` would be. Shapes as in delta_out."""
    S, out = np.zeros((*k.shape[1:], v.shape[-1])), []
    for t in range(len(k)):
        decayed = S * (1.0 if variant == "no decay" else np.exp(g[t])[:, None, None])
        recall = np.einsum("hkv,hk->hv", S if variant == "decay after the error" else decayed, k[t])
        recall = 0 * recall if variant == "no error" else recall
        delta = v[t] - recall if variant == "no beta" else beta[t][:, None] * (v[t] - recall)
        delta = beta[t][:, None] * v[t] - recall if variant == "beta on v alone" else delta
        old, S = S, decayed + np.einsum("hk,hv->hkv", k[t], delta)
        if variant == "decay after the write":
            S = np.exp(g[t])[:, None, None] * (old + np.einsum("hk,hv->hkv", k[t], delta))
        out.append(np.einsum("hkv,hk->hv", decayed if variant == "read before the write" else S, q[t]))
    return np.stack(out)


RECURRENCES = {
    "decay after the error": "the error v - S^T k is taken before the decay; the state decays first",
    "decay after the write": "the state decays after the write",
    "read before the write": "out is read before the write",
    "no decay": "the state does not decay",
    "no error": "beta v is written, not beta (v - S^T k): plain linear attention",
    "no beta": "beta is missing",
    "beta on v alone": "beta multiplies v, not v - S^T k",
}


def attention(q: Array, k: Array, v: Array, variant: str = "") -> Array:
    """Softmax attention with one thing wrong. q (T, heads, dim), k and v (T, kv heads, dim)."""
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    kv = np.arange(heads) % k.shape[1] if variant == "tiled" else np.arange(heads) // group
    scores = np.einsum("thd,shd->hts", q, k[:, kv]) * (1.0 if variant == "no scale" else q.shape[-1] ** -0.5)
    if variant != "not causal":
        scores = np.where(np.tril(np.ones((len(q), len(q)), bool)), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hts,shd->thd", p / p.sum(-1, keepdims=True), v[:, kv])


def turned(x: Array, config: dict, variant: str) -> Array:
    """RoPE with one thing wrong. x (T, heads, head_dim)."""
    rope = {**config, **(config.get("rope_parameters") or {})}
    width = int(x.shape[-1] * rope.get("partial_rotary_factor", 0.25))
    width = x.shape[-1] if variant == "whole head" else width
    i = np.arange(width // 2)
    inv_freq = rope["rope_theta"] ** (-2 * i / (x.shape[-1] if variant == "exponent" else width))
    angle = (np.arange(len(x)) + (variant == "off by one"))[:, None, None] * inv_freq
    if variant == "no rotation":
        return x
    if variant == "last dims":
        return np.concatenate(
            [
                x[..., :-width],
                turned(x[..., -width:], {**rope, "rope_parameters": None, "partial_rotary_factor": 1}, ""),
            ],
            -1,
        )
    a, b = (
        (x[..., :width:2], x[..., 1:width:2])
        if variant == "interleaved"
        else (x[..., : width // 2], x[..., width // 2 : width])
    )
    cos, sin = np.cos(angle), np.sin(angle) * (-1 if variant == "backwards" else 1)
    new = np.stack([a * cos - b * sin, b * cos + a * sin], -1 if variant == "interleaved" else -2)
    return np.concatenate([new.reshape(*x.shape[:-1], width), x[..., width:]], -1)


TURNS = {
    "whole head": "RoPE turns the whole head; only the first R = head_dim * partial_rotary_factor entries turn",
    "exponent": "RoPE's exponent divides by head_dim; it is -2i / R",
    "interleaved": "RoPE pairs (2i, 2i + 1); the pairs are (i, i + R/2)",
    "off by one": "RoPE's positions begin at 1",
    "no rotation": "RoPE is missing",
    "last dims": "RoPE turns the last R entries of the head; it turns the first",
    "backwards": "RoPE turns backwards: the sign of sin",
}


def candidates(stage: str, at: Callable[[str], Array], config: dict, first: bool) -> Iterator[tuple[str, Array]]:
    """What well-known mistakes would have made of a stage: name and values.

    at: the reference's value of another stage of the same layer, KeyError if there is none; first: whether the cache
    was empty before.
    """
    kind, _, name = stage.partition(".")
    if kind == "linear_attn" and name in "qkvz":
        rows, shapes = at("linear_attn.in_proj_qkvz.out"), [at(f"linear_attn.{x}").shape for x in "qkvz"]
        widths = np.cumsum([0, *(math.prod(shape[1:]) for shape in shapes)])
        n = "qkvz".index(name)
        yield (
            "in_proj_qkvz is read flat, all q | all k | all v | all z; its rows are grouped by key head",
            rows[:, widths[n] : widths[n + 1]].reshape(shapes[n]),
        )
        if name in "vz":
            yield "v and z are swapped", at(f"linear_attn.{'z' if name == 'v' else 'v'}")
        if name in "qk":
            yield "q and k are swapped", at(f"linear_attn.{'k' if name == 'q' else 'q'}")
    if kind == "linear_attn" and name in "ba":
        rows, (T, H) = at("linear_attn.in_proj_ba.out"), at("linear_attn.b").shape
        yield "b and a are swapped", at(f"linear_attn.{'a' if name == 'b' else 'b'}")
        yield (
            "in_proj_ba is read flat, all b | all a; its rows are grouped by key head",
            rows[:, H * (name == "a") :][:, :H],
        )
        yield (
            "in_proj_ba is read as pairs (b, a); within a key head all b come before all a",
            rows.reshape(T, H, 2)[..., int(name == "a")],
        )
    if name in ("q_l2norm", "k_l2norm"):
        x, r = at(stage), at("linear_attn.v").shape[1] // at("linear_attn.k").shape[1]
        single = x[:, ::r]
        yield (
            "key heads are tiled, 0 1 0 1; value head h belongs to key head h // r, 0 0 1 1",
            np.tile(single, (1, r, 1)),
        )
        yield (
            "the scale K^-0.5 is missing, or on the other of q and k",
            x * x.shape[-1] ** (0.5 if name[0] == "q" else -0.5),
        )
        if name[0] == "q":
            yield "scaled by K^-1, not by K^-0.5", x * x.shape[-1] ** -0.5
        conv, keys = at("linear_attn.conv_out"), math.prod(at("linear_attn.k").shape[1:])
        raw = conv[:, keys * (name[0] == "k") :][:, :keys].reshape(len(x), -1, x.shape[-1]).repeat(r, axis=1)
        yield "not normalised to length 1", raw * (x.shape[-1] ** -0.5 if name[0] == "q" else 1.0)
        yield "not normalised to length 1, nor scaled", raw
        mean = raw / np.sqrt(np.mean(raw**2, -1, keepdims=True) + 1e-6)
        yield "normalised by the RMS, not by the length", mean * (x.shape[-1] ** -0.5 if name[0] == "q" else 1.0)
    if stage == "linear_attn.g":
        yield "alpha = e^g instead of its log g", np.exp(at(stage))
        yield "the sign of g", -at(stage)
    if stage == "linear_attn.beta":
        yield "beta = b: the sigmoid is missing", at("linear_attn.b")
        yield "beta = 2 sigmoid(b)", 2 * at(stage)
        yield "beta from a, not from b", 1 / (1 + np.exp(-at("linear_attn.a")))
    if stage == "linear_attn.delta_out" and first:
        q, k, g, beta = (at(f"linear_attn.{x}") for x in ("q_l2norm", "k_l2norm", "g", "beta"))
        T, H, V = at(stage).shape
        v = at("linear_attn.conv_out")[:, -H * V :].reshape(T, H, V)
        for variant, cause in RECURRENCES.items():
            yield cause, recurrence(q, k, v, g, beta, variant)
    if stage in ("self_attn.q", "self_attn.gate"):
        T, H, D = at(stage).shape
        rows = at("self_attn.q_proj.out")
        yield "query and gate are swapped", at("self_attn.gate" if stage == "self_attn.q" else "self_attn.q")
        halves = rows[:, : H * D] if stage == "self_attn.q" else rows[:, H * D :]
        yield "q_proj is cut into all queries | all gates; it is query | gate within each head", halves.reshape(T, H, D)
        even = rows.reshape(T, H, D, 2)[..., int(stage != "self_attn.q")]
        yield "q_proj is read as pairs (query, gate) of entries", even
    if stage in ("self_attn.q_rope", "self_attn.k_rope") and first:
        x = at(f"self_attn.{stage[10]}_norm.out")
        for variant, cause in TURNS.items():
            yield cause, turned(x, config, variant)
        yield (
            "neither normalised nor turned by RoPE",
            at("self_attn.q") if (stage[10] == "q") else at("self_attn.k_proj.out").reshape(x.shape),
        )
    if stage in ("self_attn.q_norm.out", "self_attn.k_norm.out"):
        raw = at("self_attn.q") if stage[10] == "q" else at("self_attn.k_proj.out").reshape(at(stage).shape)
        yield f"{stage[10]}_norm is missing", raw
    if stage == "self_attn.attn_out" and first:
        q, k = at("self_attn.q_rope"), at("self_attn.k_rope")
        v, gate = at("self_attn.v_proj.out").reshape(k.shape), 1 / (1 + np.exp(-at("self_attn.gate")))
        yield "the scale head_dim^-0.5 is missing", attention(q, k, v, "no scale")
        yield "KV heads are tiled; query head h belongs to kv head h // group", attention(q, k, v, "tiled")
        yield "not causal", attention(q, k, v, "not causal")
        yield "attn_out is traced after its gate", at(stage) * gate
    if stage == PROBS:
        yield "sigmoid instead of softmax", 1 / (1 + np.exp(-at("mlp.gate.out")))
    if stage == WEIGHTS:
        p = np.take_along_axis(at(PROBS), np.sort(at(IDS), 1), axis=1)
        yield "the chosen weights are not divided by their sum (norm_topk_prob)", p
        yield "all weights are equal", np.full_like(p, 1 / p.shape[1])
    if stage == "mlp.out":
        shared, gate = at("mlp.shared_expert.down_proj.out"), at("mlp.shared_expert_gate.out")
        yield "the shared expert is missing", at("mlp.experts.out")
        yield "the shared expert is not gated", at("mlp.experts.out") + shared
        yield "the shared expert's gate lacks its sigmoid", at("mlp.experts.out") + gate * shared
        yield (
            "the gate is on the routed experts, too",
            at(stage) - at("mlp.experts.out") * (1 - 1 / (1 + np.exp(-gate))),
        )
    if stage == "layer.out":
        yield "the MLP's residual is missing", at("mlp.out")


HINTS = {  # stage -> causes, by what can be seen: (a fact, or "" for any; the cause)
    r".*norm(_embedding|_hidden)?\.out": [
        ("channel", "the weight: the norms multiply by 1 + w, the one behind the delta rule by w"),
        ("token", "the mean is over the wrong axis, or eps is in the wrong place"),
    ],
    r"linear_attn\.norm\.out": [
        ("", "norm before the gate, silu(z) not sigmoid(z), w itself not 1 + w, RMS over one head's V entries")
    ],
    r"post_attention_layernorm\.out": [("", "the residual stream: x + the mixer's output")],
    r"input_layernorm\.out": [("channel", "the norms multiply by 1 + w, not by w")],
    r"mtp\.pre_fc_norm_hidden\.out": [("", "the hidden state that goes in is the one after the model's final norm")],
    r"mtp\.pre_fc_norm_embedding\.out": [
        ("shift", "the embedding is that of the next token"),
        ("", "the norms' weights"),
    ],
    r"mtp\.fc\.out": [("", "the order of the pair: embedding first, then hidden")],
    r"mtp\.(norm\.out|logits)": [("", "MTP has a final norm of its own, mtp.norm, and the model's lm_head")],
    r"linear_attn\.conv_out": [
        ("start", "the window between calls: the last kernel - 1 inputs, before silu"),
        ("shift", "the convolution is causal: the last tap is on the current token"),
        (
            "",
            "taps in reverse, silu missing, channels not in the order all q | all k | all v, or no padding on the left",
        ),
    ],
    r"linear_attn\.(delta_out|state)": [
        ("start", "the state between chunks or calls: its decay across the chunk, e^(G_C) and e^(G_C - G_j)"),
        ("", "the chunked form: mask, decay, solve; or the state's layout, (K, V)"),
    ],
    r"linear_attn\.conv_state": [("", "the window: the last kernel - 1 inputs of real tokens, before silu")],
    r"linear_attn\.g": [
        ("head", "A_log and dt_bias: -exp(A_log) softplus(a + dt_bias)"),
        ("", "softplus, dt_bias, exp(A_log)"),
    ],
    r"linear_attn\.beta": [("", "sigmoid(b); padding has beta = 0 and g = 0")],
    r"linear_attn\.(q|k)_l2norm": [("", "x / sqrt(sum x^2 + 1e-6), then q * K^-0.5")],
    r"self_attn\.[qk]_rope": [("", "RoPE: which entries, which pairs, which positions (those of the cache count)")],
    r"self_attn\.attn_out": [
        ("start", "the cache's keys and values, or the mask over them"),
        ("", "mask, scale, KV heads"),
    ],
    r"self_attn\.o_proj\.out": [("", "the output gate: attn_out * sigmoid(gate), before o_proj")],
    r"mlp\.router_probs": [("", "softmax over all experts comes before the choice")],
    r"mlp\.topk_(ids|weights)": [
        ("", "softmax over all experts, then the choice, then the division by the chosen sum")
    ],
    r"mlp\.experts\.out": [
        ("", "gate and up swapped, silu on the wrong one, weights or tokens assigned to the wrong expert")
    ],
    r"mlp\.(shared_expert\.)?down_proj\.out": [("", "silu(gate) * up: swapped")],
    r"mlp\.out": [("", "experts + sigmoid(shared_expert_gate) * shared_expert")],
    r"layer\.out": [("", "both residual additions")],
    r"model\.embed_tokens\.out": [("factor", "embeddings are not scaled"), ("", "token ids, or rows of another table")],
    r"lm_head\.out": [("", "tied or untied weights; the final norm")],
    r".*\.out": [("", "the weight's layout (rows, transposed), its shard, or its dequantisation")],
}


def facts(stage: str, r: Array, m: Array, allowed: float) -> dict[str, str]:
    """What can be seen of an error: name of the fact -> words."""
    axes, found = STAGES.get(stage, ("",))[0].split(), {}
    if not np.isfinite(m).all():
        return {"nan": f"{int((~np.isfinite(m)).sum())} entries are not finite"}
    if not m.any():
        return {"zero": "all entries are 0"}
    tight = max(10 * allowed, 0.02 * relative_error(r, m))

    def explains(x: Array) -> bool:
        return relative_error(m, x) <= tight

    factor = float(np.sum(r * m) / np.sum(r * r))
    if explains(factor * r):
        found["factor"] = f"all entries are {factor:.5g} times what they should be"
        return found
    names = {-1: "channel"} | ({axes.index(a): "head" for a in axes if a.endswith("head")}) | {0: "token"}
    for axis, name in names.items():
        rest = tuple(i for i in range(r.ndim) if i != axis % r.ndim)
        with np.errstate(invalid="ignore", divide="ignore"):
            each = np.nan_to_num((r * m).sum(rest, keepdims=True) / (r * r).sum(rest, keepdims=True))
        if r.ndim > 1 and r.shape[axis] > 1 and explains(each * r):
            found[name] = f"a factor for each {name}, from {each.min():.4g} to {each.max():.4g}"
            break
    if axes[:1] == ["token"] and len(r) > 2:
        if relative_error(r[1:], m[:-1]) <= 10 * allowed or relative_error(r[:-1], m[1:]) <= 10 * allowed:
            found["shift"] = "each token has another token's values, one further"
        rows = np.sqrt(np.mean(np.square(m - r), axis=tuple(range(1, r.ndim)))) / rms(r)
        bad = np.flatnonzero(rows > allowed)
        if len(bad) and bad[0] > 0:
            found["start"] = f"right up to token {bad[0] - 1}, wrong from token {bad[0]} on"
    return found


def explain(row: Row, r: Array, m: Array, at: Callable[[str], Array], config: dict, first: bool):
    """Fills in a row's likely causes: mistakes that give exactly mine's values, or those that fit what can be seen."""
    stage = stage_of(row.key)
    seen = facts(stage, r, m, row.allowed)
    try:
        for cause, x in candidates(stage, at, config, first):
            if x.shape == m.shape and np.isfinite(m).all() and relative_error(m, x) < max(4 * row.allowed, 1e-5):
                row.causes.append(cause + " (this would give just these values)")
    except (KeyError, ValueError):  # a value or a config field that the traces do not have
        pass
    row.note = "; ".join([*filter(None, [row.note]), *seen.values()])
    if not row.causes:
        for pattern, hints in HINTS.items():
            if re.fullmatch(pattern, stage) and len(row.causes) < 3:
                row.causes += [cause for fact, cause in hints if not fact or fact in seen]


# ---- Comparison -----------------------------------------------------------------------------------------------------


def sort_choices(arrays: dict[str, Array]) -> dict[str, Array]:
    """The same with each token's experts in the order of their numbers, and their weights likewise."""
    arrays = dict(arrays)
    for key in [key for key in arrays if stage_of(key) == IDS]:
        order = np.argsort(arrays[key], axis=-1, kind="stable")
        weights = key.replace("topk_ids", "topk_weights")
        arrays[key] = np.take_along_axis(arrays[key], order, -1)
        if weights in arrays and arrays[weights].shape == order.shape:
            arrays[weights] = np.take_along_axis(arrays[weights], order, -1)
    return arrays


class Comparison:
    """One pass over all shared keys. rows: the results; ties: (step, key) -> tokens whose other choice noise may have
    made; first: the first row that is wrong.
    """

    def __init__(self, ref: Trace, mine: Trace, noise: Noise, config: dict):
        self.rows: list[Row] = []
        self.ties: dict[tuple[str, str], list[int]] = {}
        self.noise, self.config, self.scale = noise, config, usual_sizes(ref.steps)
        self.tainted: int | None = None  # since a tie: tokens from this one on have seen the other choice
        self.layouts: dict[tuple[str, str], Array] = {}
        for step in ref.steps:
            if step in mine.steps:
                self.compare_step(
                    step, sort_choices(ref.steps[step]), sort_choices(mine.steps[step]), ref.tokens.get(step, {})
                )
        self.first = self.find_first()

    def compare_step(self, step: str, ref: dict[str, Array], mine: dict[str, Array], tokens: dict):
        before = len(tokens.get("before") or ())
        if not before:
            self.tainted = None
        tied: dict[str, list[int]] = {}  # of the layer at hand
        heads: dict[str, Array] = {}
        for key in sorted(ref.keys() & mine.keys(), key=forward_order):
            if stage_of(key) == "mlp.margin":  # tells of ties; the probabilities are compared themselves
                continue
            stage, r, m = stage_of(key), ref[key], mine[key]
            prefix = key.removesuffix(stage) if stage != "layer.out" else key.removesuffix("out")
            row = Row(step, key, tuple(r.shape), "ok", allowed=self.noise.allowed(key))
            per_token = is_per_token(key)
            if self.tainted is not None and forward_order(key) > self.tie_key:
                if not per_token or self.tainted <= before:
                    continue
                r, m = r[: self.tainted - before], m[: self.tainted - before]
                row.note = f"compared up to token {self.tainted - 1}"
            if stage == IDS:
                self.compare_choices(row, r, m, ref, mine, prefix)
                tied[prefix] = self.ties.get((step, key), [])
            else:
                if tied.get(prefix) and stage.startswith("mlp.") and per_token and len(r) == len(m):
                    r, m = (np.delete(x, tied[prefix], axis=0) for x in (r, m))
                self.compare_values(row, stage, r, m, heads.get(prefix))
                if row.verdict == "layout" and "value heads" in row.note and prefix not in heads:
                    axis = STAGES[stage][0].split().index("value_head")
                    heads[prefix] = by_signature(r, m, axis)
                if row.verdict == "differs":
                    explain(
                        row,
                        r,
                        m,
                        lambda s, p=prefix: ref[p + ("out" if s == "layer.out" else s)],
                        self.config,
                        not before,
                    )
            self.rows.append(row)
            if tied.get(prefix) and stage == "layer.out" and self.tainted is None:
                self.tainted, self.tie_key = before + min(tied[prefix]), forward_order(key)

    def compare_values(self, row: Row, stage: str, r: Array, m: Array, heads: Array | None):
        scale, same = self.scale.get(row.key, 0.0), r.shape == m.shape
        if same:
            measure(row, r, m, scale)
            if row.relative <= row.allowed:
                return
        if found := match_layout(stage, r, m, row.allowed, heads):
            self.layouts[row.step, row.key], row.note = found
            row.verdict = "layout"
            measure(row, r, found[0], scale)
        elif same:
            row.verdict = "differs"
        else:
            row.verdict, row.note = "shape", f"has shape {m.shape}, expected {r.shape}"

    def compare_choices(self, row: Row, r: Array, m: Array, ref: dict, mine: dict, prefix: str):
        """Chosen experts: where they differ, a tie if the probabilities are so close that noise may decide."""
        if r.shape != m.shape:
            row.verdict, row.note = "shape", f"has shape {m.shape}, expected {r.shape}"
            return
        different = np.flatnonzero((r != m).any(-1))
        row.relative, row.largest = (len(different) / max(len(r), 1), float(len(different)))
        row.note = f"{len(different)} of {len(r)} tokens choose other experts" if len(different) else row.note
        if not len(different):
            return
        p, q, noise = ref.get(prefix + PROBS), mine.get(prefix + PROBS), self.noise.allowed(prefix + PROBS)
        seen = any(one.name == row.name.replace(IDS, PROBS) and one.verdict in ("ok", "layout") for one in self.rows)
        seen = seen and q.shape == p.shape
        wrong = list(different) if p is None else []
        for t in different if p is not None else ():
            # what noise has done to this token's probabilities
            error = np.abs(q[t] - p[t]).max() if seen else 3 * noise * rms(p[t])
            lost, won = set(r[t].tolist()) - set(m[t].tolist()), set(m[t].tolist()) - set(r[t].tolist())
            gap = max(p[t, list(lost)]) - min(p[t, list(won)]) if lost and len(lost) == len(won) else math.inf
            if gap > 2 * error:
                wrong.append(t)
        if wrong:
            row.verdict, row.worst = "differs", f"token {wrong[0]}"
            row.causes = [cause for _, cause in HINTS[r"mlp\.topk_(ids|weights)"]]
        else:
            row.verdict = "tie"
            self.ties[row.step, row.key] = different.tolist()

    def find_first(self) -> Row | None:
        """The first that is wrong. Another layout is legal if what follows in its layer agrees."""
        first = next((row for row in self.rows if row.verdict in ("differs", "shape")), None)
        layer = LAYER.fullmatch(first.key) if first else None
        for row in self.rows if layer else ():
            if row is first:
                break
            if row.verdict == "layout" and row.step == first.step and row.key.startswith(first.key[: layer.start(3)]):
                row.verdict, row.causes = "differs", row.causes or first.causes
                return row
        return first


def rerun(reference, tokens: dict[str, dict], have: dict[str, dict[str, Array]]) -> dict[str, dict[str, Array]]:
    """What the reference makes of each step when it goes on with the values of `have` in place of its own.

    A step continues the rows of the steps before it as far as its "before" says, which a rollback shortens.
    """
    results, past = {}, [([], [])]  # of each step so far, the rows of its whole sequence, and their tokens
    for step, told in tokens.items():
        before, new = told["before"], told["tokens"]
        rows = next((rows for rows, known in reversed(past) if known[: len(before)] == before), None)
        if "drafts" in told or rows is None or not (before or new):
            continue
        rows, known = rows[: len(before)] + [(step, i) for i in range(len(new))], before + new
        past.append((rows, known))
        keys = set(have.get(step if new else rows[-1][0], {}))
        keys = {key for key in keys if not (before and key.startswith("mtp."))}
        for name, _ in rows:
            keys &= set(have.get(name, {}))
        forced, ends = {}, [i + 1 for i in range(len(rows)) if i + 1 == len(rows) or rows[i][0] != rows[i + 1][0]]
        at = {len(tokens[name]["before"]) + len(tokens[name]["tokens"]): name for name in have if name in tokens}
        for key in keys:
            if is_per_token(key):
                if key.startswith("mtp."):
                    forced[key] = have[step][key]
                elif all(i < len(have[name][key]) for name, i in rows):
                    forced[key] = np.stack([have[name][key][i] for name, i in rows])
            elif stage_of(key) == "linear_attn.state" and all(end in at and key in have[at[end]] for end in ends):
                forced[key] = np.stack([have[at[end]][key] for end in ends])
        found = reference.trace(known, ends, forced)
        for key in [key for key in forced if stage_of(key) == IDS]:  # the weights are those of the forced choice
            weights, order = key.replace("topk_ids", "topk_weights"), np.argsort(forced[key], axis=-1, kind="stable")
            found[weights] = np.take_along_axis(found[weights], order, -1)
            found[key] = np.sort(found[key], axis=-1)
        n = len(new)
        results[step] = {}
        for key, x in found.items():
            if key.startswith("mtp.") and before:
                continue
            if not is_per_token(key):
                results[step][key] = x[-1]
            elif n:
                results[step][key] = x if key.startswith("mtp.") else x[-n:]
    return results


def load_reference(model: Path):
    """reference_recurrent.py's Reference, from beside this file or the folder above."""
    sys.path[:0] = [str(HERE.parent), str(HERE)]
    try:
        from reference_recurrent import Reference
    except ImportError:
        raise CannotCompare(f"--model needs reference_recurrent.py in {HERE.parent} or {HERE}") from None
    try:
        return Reference.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        raise CannotCompare(f"{model}: {error}") from None


def compare(
    ref: Trace,
    mine: Trace,
    *,
    dtype: str,
    isolated: bool = False,
    reference=None,
    noise_file: Path = HERE / "noise.json",
) -> Comparison:
    """Compares two traces whose batches are split. Raises CannotCompare.

    reference: reference_recurrent.Reference of the same checkpoint, for isolated values and for what follows a tie.
    """
    config = ref.manifest.get("config") or mine.manifest.get("config") or {}
    noise = Noise(noise_file, dtype, "isolated" if isolated else "chained")
    if not any(ref.steps[step].keys() & mine.steps.get(step, {}).keys() for step in ref.steps):
        raise CannotCompare("the two traces share no key")
    done = Comparison(ref, mine, noise, config)
    if reference is None:
        return done
    tokens = {step: ref.tokens[step] for step in ref.steps if "tokens" in ref.tokens.get(step, {})}
    if isolated:
        have = {
            step: {key: done.layouts.get((step, key), x) for key, x in mine.steps[step].items()} for step in mine.steps
        }
        fits = {
            s: {k: x for k, x in v.items() if k in ref.steps.get(s, {}) and x.shape == ref.steps[s][k].shape}
            for s, v in have.items()
        }
        own = rerun(reference, tokens, fits)
        return Comparison(Trace(own, ref.tokens, ref.manifest), mine, noise, config)
    choices = {s: {k: x for k, x in ref.steps[s].items() if stage_of(k) == IDS} for s in tokens}
    choices = {step: {key: x.copy() for key, x in found.items()} for step, found in choices.items()}
    tied: dict[tuple[str, str], list[int]] = {}
    # Mine's choice there, and what the reference makes of it; that may tie anew, further on
    while fresh := {place: rows for place, rows in done.ties.items() if rows != tied.get(place)}:
        tied |= fresh
        for (step, key), rows in fresh.items():
            choices[step][key][rows] = mine.steps[step][key][rows]
        keys = {key for _, key in tied}
        forced = {step: {key: x for key, x in found.items() if key in keys} for step, found in choices.items()}
        own = rerun(reference, tokens, forced)
        for step, found in own.items():
            found |= {key: np.sort(x, axis=-1) for key, x in forced[step].items()}
        ref = Trace({**ref.steps, **own}, ref.tokens, ref.manifest)
        done = Comparison(ref, mine, noise, config)
    for row in done.rows:
        if (row.step, row.key) in tied and row.verdict == "ok":
            row.verdict, row.note = "tie", f"{len(tied[row.step, row.key])} tokens choose otherwise, as noise may"
    return done


# ---- Command line ---------------------------------------------------------------------------------------------------


def print_rows(rows: list[Row], every: bool):
    """The table."""
    width = max([len(row.name) for row in rows] + [10])
    print(
        f"{'key':{width}}  {'shape':16} {'rms':>8} {'NMSE dB':>8} {'cosine':>9} {'largest':>9} {'allowed':>8}  verdict"
    )
    for row in rows:
        if every or row.verdict != "ok":
            figures = f"{row.rms_ratio:8.4f} {row.nmse_db:8.1f} {row.cosine:9.6f} {row.largest:9.2e}"
            allowed = 20 * math.log10(row.allowed)
            kl = f"  KL {row.kl:.2e}" if row.kl is not None else ""
            note = f"  {row.note}" if row.note else ""
            print(f"{row.name:{width}}  {row.shape!s:16} {figures} {allowed:8.1f}  {row.verdict}{kl}{note}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ref", type=Path, help="trace of the reference")
    parser.add_argument("mine", type=Path, help="trace of the implementation under test")
    parser.add_argument("--isolated", action="store_true", help="tell added from inherited error; needs --model")
    parser.add_argument("--model", type=Path, metavar="DIR", help="the checkpoint, to run reference_recurrent.py on")
    parser.add_argument("--dtype", choices=EPSILON, help="what mine computed in (default: its manifest's, or float32)")
    parser.add_argument(
        "--alias", type=Path, metavar="FILE", help="JSON list that renames mine's names (verify/aliases)"
    )
    parser.add_argument("--padding", choices=["right", "left"], default="right", help="of mine's batches")
    parser.add_argument("--noise", type=Path, default=HERE / "noise.json", metavar="FILE")
    parser.add_argument("--all", action="store_true", help="print every key, not only those that are not ok")
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead")
    args = parser.parse_args(arguments)
    try:
        if args.isolated and not args.model:
            raise CannotCompare("--isolated needs --model")
        try:
            aliases = json.loads(args.alias.read_bytes()) if args.alias else []
        except (OSError, ValueError) as error:
            raise CannotCompare(f"{args.alias}: {error}") from None
        ref, mine = read_trace(args.ref), read_trace(args.mine, aliases)
        for step in ref.tokens.keys() & mine.tokens.keys():  # step 0
            if ref.tokens[step] != mine.tokens[step]:
                raise CannotCompare(
                    f"step {step!r}: the two have other tokens: {ref.tokens[step]} and {mine.tokens[step]}"
                )
        hashes = [trace.manifest.get("config_sha256") for trace in (ref, mine)]
        if None not in hashes and hashes[0] != hashes[1]:
            raise CannotCompare("the two were made with other config.json contents")
        dtype = args.dtype or mine.manifest.get("dtype", "float32")
        mine = split_batches(mine, ref.tokens, args.padding)
        ref = split_batches(ref, ref.tokens, "right")
        reference = load_reference(args.model) if args.model else None
        done = compare(ref, mine, dtype=dtype, isolated=args.isolated, reference=reference, noise_file=args.noise)
    except CannotCompare as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    first, count = done.first, len(done.rows)
    missing = sorted({k for s in mine.steps for k in mine.steps[s]} - {row.key for row in done.rows})
    missing = [key for key in missing if not key.endswith(".margin")]
    if args.json:
        rows = [asdict(row) | {"name": row.name} for row in done.rows]
        print(
            json.dumps(
                {
                    "agree": first is None,
                    "first": first and first.name,
                    "causes": first.causes if first else [],
                    "rows": rows,
                    "not compared": missing,
                },
                default=str,
            )
        )
        return int(first is not None)
    print_rows(done.rows, args.all)
    if missing:
        print(
            f"not compared: {', '.join(missing[:8])}{' ...' if len(missing) > 8 else ''} ({len(missing)} keys of mine)"
        )
    if first is None:
        layouts = sum(row.verdict == "layout" for row in done.rows)
        ties = sum(row.verdict == "tie" for row in done.rows)
        more = [f"{layouts} in another layout"] * bool(layouts) + [f"{ties} with ties of experts"] * bool(ties)
        print(f"agree: {count} keys{' (' + ', '.join(more) + ')' if more else ''}")
        return 0
    figures = f"relative error {first.relative:.3g}, allowed {first.allowed:.3g}"
    print(f"first: {first.name}  at {first.worst or 'its shape'}; {figures}")
    equation = STAGES.get(stage_of(first.key), ("", ""))[1]
    if equation:
        print(f"should be: {equation}")
    if first.note:
        print(f"seen: {first.note}")
    for cause in first.causes:
        print(f"likely: {cause}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
