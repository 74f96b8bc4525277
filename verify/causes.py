"""From a wrong value to the mistake that makes it.

Many mistakes are well known: key heads tiled instead of repeated, RoPE over the whole head, a gate in the wrong place.
`candidates` computes what each of them would have made of the reference's values. If that is exactly what the port has,
the cause is certain. Otherwise `facts` describes the error (a factor, a shift by one token, right up to some token),
and HINTS has what usually produces such an error at this stage.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

import numpy as np

from verify.measures import relative_error, rms
from verify.stages import IDS, PROBS, WEIGHTS, Array, axes_of

Lookup = Callable[[str], Array]  # the reference's value of a stage of the same layer; KeyError if there is none
Candidates = Iterator[tuple[str, Array]]  # a mistake in words, and the values it would give

# ---- The components with one thing wrong ----------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))


def recurrence(q: Array, k: Array, v: Array, g: Array, beta: Array, variant: str) -> Array:
    """The delta rule with one thing wrong, from a zero state: what `out` would be. Shapes as in delta_out."""
    S = np.zeros((*k.shape[1:], v.shape[-1]))
    out = []
    for t in range(len(k)):
        alpha = np.ones_like(g[t]) if variant == "no decay" else np.exp(g[t])
        alpha = alpha[:, None, None]
        decayed = alpha * S
        recall = np.einsum("hkv,hk->hv", S if variant == "decay after the error" else decayed, k[t])
        if variant == "no error":
            recall = np.zeros_like(recall)
        strength = beta[t][:, None]
        if variant == "no beta":
            delta = v[t] - recall
        elif variant == "beta on v alone":
            delta = strength * v[t] - recall
        else:
            delta = strength * (v[t] - recall)
        write = np.einsum("hk,hv->hkv", k[t], delta)
        S = alpha * (S + write) if variant == "decay after the write" else decayed + write
        read = decayed if variant == "read before the write" else S
        out.append(np.einsum("hkv,hk->hv", read, q[t]))
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


def attention(q: Array, k: Array, v: Array, variant: str) -> Array:
    """Softmax attention with one thing wrong. q (T, heads, dim), k and v (T, kv heads, dim)."""
    T, heads, dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    kv = np.arange(heads) % kv_heads if variant == "tiled" else np.arange(heads) // group
    scores = np.einsum("thd,shd->hts", q, k[:, kv])
    if variant != "no scale":
        scores = scores * dim**-0.5
    if variant != "not causal":
        scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hts,shd->thd", p / p.sum(-1, keepdims=True), v[:, kv])


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


def turned(x: Array, config: dict, variant: str) -> Array:
    """RoPE with one thing wrong. x (T, heads, head_dim)."""
    fields = {**config, **(config.get("rope_parameters") or {})}
    theta = fields["rope_theta"]
    D = x.shape[-1]
    R = int(D * fields.get("partial_rotary_factor", 0.25))
    if variant == "no rotation":
        return x
    if variant == "whole head":
        R = D
    exponent = -2 * np.arange(R // 2) / (D if variant == "exponent" else R)
    position = np.arange(len(x)) + (1 if variant == "off by one" else 0)
    angle = position[:, None, None] * theta**exponent
    if variant == "backwards":
        angle = -angle
    if variant == "last dims":
        return np.concatenate([x[..., :-R], rotate(x[..., -R:], angle)], -1)
    return np.concatenate([rotate(x[..., :R], angle, variant == "interleaved"), x[..., R:]], -1)


TURNS = {
    "whole head": "RoPE turns the whole head; only the first R = head_dim * partial_rotary_factor entries turn",
    "exponent": "RoPE's exponent divides by head_dim; it is -2i / R",
    "interleaved": "RoPE pairs (2i, 2i + 1); the pairs are (i, i + R/2)",
    "off by one": "RoPE's positions begin at 1",
    "no rotation": "RoPE is missing",
    "last dims": "RoPE turns the last R entries of the head; it turns the first",
    "backwards": "RoPE turns backwards: the sign of sin",
}

# ---- What each mistake would have made of a stage -------------------------------------------------------------------


def candidates(stage: str, at: Lookup, config: dict, first: bool) -> Candidates:
    """Well-known mistakes at a stage, each with the values it would give.

    first: whether the cache was empty before. A mistake inside attention or the recurrence can only be computed then.
    """
    kind, _, name = stage.partition(".")
    if kind == "linear_attn":
        yield from projection_mistakes(name, at)
        yield from delta_net_mistakes(name, at, first)
    elif kind == "self_attn":
        yield from attention_mistakes(name, at, config, first)
    elif kind == "mlp":
        yield from moe_mistakes(stage, at)
    elif stage == "layer.out":
        yield "the MLP's residual is missing", at("mlp.out")


def projection_mistakes(name: str, at: Lookup) -> Candidates:
    """The two projections of Gated DeltaNet cut in the wrong places."""
    if name in ("q", "k", "v", "z"):
        rows = at("linear_attn.in_proj_qkvz.out")
        shapes = [at(f"linear_attn.{part}").shape for part in "qkvz"]
        ends = np.cumsum([0, *(math.prod(shape[1:]) for shape in shapes)])
        n = "qkvz".index(name)
        flat = rows[:, ends[n] : ends[n + 1]].reshape(shapes[n])
        yield "in_proj_qkvz is read flat, all q | all k | all v | all z; its rows are grouped by key head", flat
        other = {"q": "k", "k": "q", "v": "z", "z": "v"}[name]
        pair = "q and k" if name in ("q", "k") else "v and z"
        yield f"{pair} are swapped", at(f"linear_attn.{other}")
    if name in ("b", "a"):
        rows = at("linear_attn.in_proj_ba.out")
        T, H = at("linear_attn.b").shape
        yield "b and a are swapped", at("linear_attn.a" if name == "b" else "linear_attn.b")
        flat = rows[:, :H] if name == "b" else rows[:, H:][:, :H]
        yield "in_proj_ba is read flat, all b | all a; its rows are grouped by key head", flat
        pairs = rows.reshape(T, H, 2)[..., 0 if name == "b" else 1]
        yield "in_proj_ba is read as pairs (b, a); within a key head all b come before all a", pairs


def delta_net_mistakes(name: str, at: Lookup, first: bool) -> Candidates:
    """What comes between Gated DeltaNet's projections and its norm."""
    if name == "v_conv":
        yield "v before the convolution", at("linear_attn.v")
    if name in ("q_l2norm", "k_l2norm"):
        yield from length_mistakes(name, at)
    if name == "g":
        yield "alpha = e^g instead of its log g", np.exp(at("linear_attn.g"))
        yield "the sign of g", -at("linear_attn.g")
    if name == "beta":
        yield "beta = b: the sigmoid is missing", at("linear_attn.b")
        yield "beta = 2 sigmoid(b)", 2 * at("linear_attn.beta")
        yield "beta from a, not from b", sigmoid(at("linear_attn.a"))
    if name == "delta_out" and first:
        q, k, g, beta = (at(f"linear_attn.{part}") for part in ("q_l2norm", "k_l2norm", "g", "beta"))
        T, H, V = at("linear_attn.delta_out").shape
        v = at("linear_attn.conv_out")[:, -H * V :].reshape(T, H, V)
        for variant, cause in RECURRENCES.items():
            yield cause, recurrence(q, k, v, g, beta, variant)


def length_mistakes(name: str, at: Lookup) -> Candidates:
    """q and k after their normalisation: which key head, which length, which scale."""
    x = at(f"linear_attn.{name}")
    K = x.shape[-1]
    is_q = name == "q_l2norm"
    r = at("linear_attn.v").shape[1] // at("linear_attn.k").shape[1]  # value heads for each key head
    tiled = np.tile(x[:, ::r], (1, r, 1))
    yield "key heads are tiled, 0 1 0 1; value head h belongs to key head h // r, 0 0 1 1", tiled
    yield "the scale K^-0.5 is missing, or on the other of q and k", x * K ** (0.5 if is_q else -0.5)
    if is_q:
        yield "scaled by K^-1, not by K^-0.5", x * K**-0.5
    conv = at("linear_attn.conv_out")
    width = math.prod(at("linear_attn.k").shape[1:])
    part = conv[:, :width] if is_q else conv[:, width : 2 * width]
    raw = part.reshape(len(x), -1, K).repeat(r, axis=1)
    scale = K**-0.5 if is_q else 1.0
    yield "not normalised to length 1", raw * scale
    yield "not normalised to length 1, nor scaled", raw
    by_rms = raw / np.sqrt(np.mean(raw**2, -1, keepdims=True) + 1e-6)
    yield "normalised by the RMS, not by the length", by_rms * scale


def attention_mistakes(name: str, at: Lookup, config: dict, first: bool) -> Candidates:
    """Gated attention: the cut of q_proj, the norms, RoPE, the softmax."""
    if name in ("q", "gate"):
        T, H, D = at(f"self_attn.{name}").shape
        rows = at("self_attn.q_proj.out")
        yield "query and gate are swapped", at("self_attn.gate" if name == "q" else "self_attn.q")
        half = rows[:, : H * D] if name == "q" else rows[:, H * D :]
        flat = half.reshape(T, H, D)
        yield "q_proj is cut into all queries | all gates; it is query | gate within each head", flat
        pairs = rows.reshape(T, H, D, 2)[..., 0 if name == "q" else 1]
        yield "q_proj is read as pairs (query, gate) of entries", pairs
    if name in ("q_rope", "k_rope") and first:
        x = at(f"self_attn.{name[0]}_norm.out")
        for variant, cause in TURNS.items():
            yield cause, turned(x, config, variant)
        yield "neither normalised nor turned by RoPE", before_norm(name[0], at, x.shape)
    if name in ("q_norm.out", "k_norm.out"):
        yield f"{name[0]}_norm is missing", before_norm(name[0], at, at(f"self_attn.{name}").shape)
    if name == "attn_out" and first:
        q = at("self_attn.q_rope")
        k = at("self_attn.k_rope")
        v = at("self_attn.v_proj.out").reshape(k.shape)
        gate = sigmoid(at("self_attn.gate"))
        yield "the scale head_dim^-0.5 is missing", attention(q, k, v, "no scale")
        yield "KV heads are tiled; query head h belongs to kv head h // group", attention(q, k, v, "tiled")
        yield "not causal", attention(q, k, v, "not causal")
        yield "attn_out is traced after its gate", at("self_attn.attn_out") * gate


def before_norm(name: str, at: Lookup, shape: tuple[int, ...]) -> Array:
    """Attention's queries or keys as they go into their norm."""
    return at("self_attn.q") if name == "q" else at("self_attn.k_proj.out").reshape(shape)


def moe_mistakes(stage: str, at: Lookup) -> Candidates:
    """The router, and the sum of routed and shared experts."""
    if stage == PROBS:
        yield "sigmoid instead of softmax", sigmoid(at("mlp.gate.out"))
    if stage == WEIGHTS:
        p = np.take_along_axis(at(PROBS), np.sort(at(IDS), 1), axis=1)
        yield "the chosen weights are not divided by their sum (norm_topk_prob)", p
        yield "all weights are equal", np.full_like(p, 1 / p.shape[1])
    if stage == "mlp.out":
        shared = at("mlp.shared_expert.down_proj.out")
        gate = at("mlp.shared_expert_gate.out")
        routed = at("mlp.experts.out")
        yield "the shared expert is missing", routed
        yield "the shared expert is not gated", routed + shared
        yield "the shared expert's gate lacks its sigmoid", routed + gate * shared
        yield "the gate is on the routed experts, too", at("mlp.out") - routed * (1 - sigmoid(gate))


# ---- What usually goes wrong where ----------------------------------------------------------------------------------

# Pattern of the stage -> (a name of `facts`, or "" for any error; what to look at)
HINTS: dict[str, list[tuple[str, str]]] = {
    r".*norm(_embedding|_hidden)?\.out": [
        ("channel", "the weight: the norms multiply by 1 + w, but the norm after the delta rule by w"),
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
    r"linear_attn\.v_conv": [("", "conv_out's last H V channels, after silu, cut into value heads")],
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
    """What can be seen of an error: name of the fact -> words. r is the reference's value, m the one that is wrong."""
    if not np.isfinite(m).all():
        return {"nan": f"{int((~np.isfinite(m)).sum())} entries are not finite"}
    if not m.any():
        return {"zero": "all entries are 0"}
    tight = max(10 * allowed, 0.02 * relative_error(r, m))
    factor = float(np.sum(r * m) / np.sum(r * r))
    if relative_error(m, factor * r) <= tight:
        return {"factor": f"all entries are {factor:.5g} times what they should be"}
    found = factor_of_each(stage, r, m, tight)
    if axes_of(stage)[:1] == ["token"] and len(r) > 2:
        further = relative_error(r[1:], m[:-1]) <= 10 * allowed
        back = relative_error(r[:-1], m[1:]) <= 10 * allowed
        if further or back:
            found["shift"] = "each token has another token's values, one further"
        errors = np.sqrt(np.mean(np.square(m - r), axis=tuple(range(1, r.ndim)))) / rms(r)
        bad = np.flatnonzero(errors > allowed)
        if len(bad) and bad[0] > 0:
            found["start"] = f"right up to token {bad[0] - 1}, wrong from token {bad[0]} on"
    return found


def factor_of_each(stage: str, r: Array, m: Array, tight: float) -> dict[str, str]:
    """Whether an error is a factor for each channel, head or token: the first of these that explains it."""
    heads = [axis for axis, name in enumerate(axes_of(stage)) if name.endswith("head")]
    for axis in (r.ndim - 1, *heads, 0):
        name = "token" if axis == 0 else "channel"
        if axis in heads:
            name = "head"
        if r.ndim < 2 or r.shape[axis] < 2:
            continue
        rest = tuple(i for i in range(r.ndim) if i != axis)
        with np.errstate(invalid="ignore", divide="ignore"):
            each = (r * m).sum(rest, keepdims=True) / (r * r).sum(rest, keepdims=True)
        each = np.nan_to_num(each)
        if relative_error(m, each * r) <= tight:
            return {name: f"a factor for each {name}, from {each.min():.4g} to {each.max():.4g}"}
    return {}


def explain(
    stage: str, r: Array, m: Array, allowed: float, at: Lookup, config: dict, first: bool
) -> tuple[list[str], list[str]]:
    """What can be seen of an error, and its likely causes, both in words.

    A mistake that gives exactly m is a cause that leaves no doubt; else up to three or so that fit what can be seen.
    """
    seen = facts(stage, r, m, allowed)
    causes = []
    try:
        for cause, x in candidates(stage, at, config, first):
            if x.shape != m.shape or not np.isfinite(m).all():
                continue
            if relative_error(m, x) < max(4 * allowed, 1e-5):
                causes.append(cause + " (this would give just these values)")
    except (KeyError, ValueError):  # a value or a config field that the traces do not have
        pass
    if not causes:
        causes = usual_causes(stage, seen)
    return list(seen.values()), causes


def usual_causes(stage: str, seen: dict[str, str]) -> list[str]:
    """The hints for a stage that fit what can be seen."""
    causes = []
    for pattern, hints in HINTS.items():
        if len(causes) < 3 and re.fullmatch(pattern, stage):
            causes += [cause for fact, cause in hints if not fact or fact in seen]
    return causes
