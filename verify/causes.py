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
from dataclasses import dataclass

import numpy as np

from verify.measures import relative_error, rms
from verify.mistakes import (
    RECURRENCES,
    TURNS,
    attention,
    fitted_decay,
    half_precision,
    normalised_like,
    recurrence,
    sigmoid,
    softplus,
    turned,
)
from verify.rotary import has_yarn, rotated_width
from verify.stages import IDS, PROBS, WEIGHTS, Array, axes_of

Lookup = Callable[[str], Array]  # the reference's value of a stage of the same layer; KeyError if there is none
Candidates = Iterator[tuple[str, Array]]  # a mistake in words, and the values it would give


@dataclass
class Context:
    """What came before a step. start: how many tokens; before: the reference's values at the end of the step before,
    None if there is none or it is not known; undone: of a step that takes tokens back, the pass that it undoes, the
    reference's values of it and of what came before it; kept: how many of that pass's tokens stay; packed: whether
    the sequence shares its row with others before it.
    """

    start: int = 0
    before: Lookup | None = None
    undone: Lookup | None = None
    before_undone: Lookup | None = None
    kept: int = 0
    packed: bool = False


# ---- What each mistake would have made of a stage -------------------------------------------------------------------


def candidates(stage: str, at: Lookup, config: dict, context: Context) -> Candidates:
    """Well-known mistakes at a stage, each with the values it would give."""
    kind, _, name = stage.partition(".")
    if kind == "linear_attn":
        yield from projection_mistakes(name, at)
        yield from delta_net_mistakes(name, at, config, context)
    elif kind == "self_attn":
        yield from attention_mistakes(name, at, config, context)
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


def delta_net_mistakes(name: str, at: Lookup, config: dict, context: Context) -> Candidates:
    """What comes between Gated DeltaNet's projections and its norm."""
    if name == "v_conv":
        yield "v before the convolution", at("linear_attn.v")
    if name in ("q_l2norm", "k_l2norm"):
        yield from length_mistakes(name, at, config)
    if name == "g":
        yield "alpha = e^g instead of its log g", np.exp(at("linear_attn.g"))
        yield "the sign of g", -at("linear_attn.g")
        yield from decay_mistakes(at("linear_attn.g"), at("linear_attn.a"))
    if name == "beta":
        yield "beta = b: the sigmoid is missing", at("linear_attn.b")
        yield "beta = 2 sigmoid(b)", 2 * at("linear_attn.beta")
        yield "beta from a, not from b", sigmoid(at("linear_attn.a"))
    if name == "state" and context.undone:
        yield from rollback_mistakes(context)
    elif name in ("delta_out", "state"):
        yield from state_mistakes(name, at, context)


def decay_mistakes(g: Array, a: Array) -> Candidates:
    """g with dt_bias or A_log in the wrong place. They are weights, which a trace shows only by what they do."""
    fitted = fitted_decay(g, a)
    if fitted is None:
        return
    A, bias = fitted
    yield "dt_bias is missing: -exp(A_log) softplus(a + dt_bias)", -A * softplus(a)
    yield "dt_bias is outside softplus: -exp(A_log) softplus(a + dt_bias)", -A * (softplus(a) + bias)
    yield "A_log is missing, or not exponentiated: -exp(A_log) softplus(a + dt_bias)", -softplus(a + bias)
    yield "A_log itself, not its exponential", -np.abs(np.log(A)) * softplus(a + bias)
    yield "A_log itself, not its exponential", np.log(A) * softplus(a + bias)


def inputs_of_the_rule(at: Lookup) -> tuple[Array, ...]:
    """q, k, v, g and beta of a pass."""
    q, k, g, beta = (at(f"linear_attn.{part}") for part in ("q_l2norm", "k_l2norm", "g", "beta"))
    T, H, V = at("linear_attn.delta_out").shape
    return q, k, at("linear_attn.conv_out")[:, -H * V :].reshape(T, H, V), g, beta


def state_mistakes(name: str, at: Lookup, context: Context) -> Candidates:
    """The delta rule with one thing wrong, from the state that the step begins with."""
    state = None
    if context.start:
        if context.before is None:
            return
        state = context.before("linear_attn.state")
    which = 0 if name == "delta_out" else 1
    given = inputs_of_the_rule(at)
    square = given[1].shape[-1] == given[2].shape[-1]  # K = V: a state that is transposed fits
    if state is not None:
        yield "the state is not carried over between calls", recurrence(*given, "")[which]
        if square:
            cause = "the state is transposed from one call to the next: one writes (V, K), the other reads (K, V)"
            yield cause, recurrence(*given, "", state.swapaxes(-1, -2))[which]
        for dtype in ("bfloat16", "float16"):
            rounded = half_precision(state, dtype)
            yield RECURRENCES[dtype], recurrence(*given, "", rounded)[which]
    if name == "state":
        for dtype in ("bfloat16", "float16"):
            yield RECURRENCES[dtype], half_precision(at("linear_attn.state"), dtype)
    for variant, cause in RECURRENCES.items():
        if square or "transposed" not in variant:
            yield cause, recurrence(*given, variant, state)[which]


def rollback_mistakes(context: Context) -> Candidates:
    """The state after other numbers of the undone pass's tokens than were to be kept."""
    q, k, v, g, beta = inputs_of_the_rule(context.undone)
    state = context.before_undone("linear_attn.state") if context.before_undone else None
    for n in range(len(k) + 1):
        if n == context.kept:
            continue
        found = state if n == 0 else recurrence(q[:n], k[:n], v[:n], g[:n], beta[:n], "", state)[1]
        if found is None:
            found = np.zeros((*k.shape[1:], v.shape[-1]))
        if n == len(k):
            cause = "the state is not taken back at all"
        elif n == 0:
            cause = "the rollback loses the tokens that are kept: the state is that before the pass"
        else:
            further = "too far" if n < context.kept else "not far enough"
            cause = f"the rollback goes {abs(n - context.kept)} token {further}"
        yield cause, found


def length_mistakes(name: str, at: Lookup, config: dict) -> Candidates:
    """q and k after their normalisation: which key head, which length, which scale, which eps."""
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
    squared = np.sum(raw**2, -1, keepdims=True)
    length = np.sqrt(squared)
    yield "l2 norm without eps, or with max(|x|, eps); it is x / sqrt(|x|^2 + 1e-6)", raw / length * scale
    yield "l2 norm by |x| + eps; it is x / sqrt(|x|^2 + 1e-6)", raw / (length + 1e-6) * scale
    mean_eps = raw / np.sqrt(squared + K * 1e-6) * scale
    yield "l2 norm by an RMS norm with eps 1e-6: eps counts K times; it is x / sqrt(|x|^2 + 1e-6)", mean_eps
    other = config.get("rms_norm_eps", 1e-6)
    yield "rms_norm_eps in the l2 norm; its own eps is 1e-6, always", raw / np.sqrt(squared + other) * scale


def attention_mistakes(name: str, at: Lookup, config: dict, context: Context) -> Candidates:
    """Gated attention: the cut of q_proj, the norms, RoPE, the softmax."""
    if name in ("q", "gate"):
        yield "query and gate are swapped", at("self_attn.gate" if name == "q" else "self_attn.q")
        yield from cuts_of_q_proj(name, at)
    if name in ("q_rope", "k_rope"):
        x = at(f"self_attn.{name[0]}_norm.out")
        for variant, cause in TURNS.items():
            if variant != "begin anew" or context.start:
                yield cause, turned(x, config, variant, context.start)
        yield "neither normalised nor turned by RoPE", before_norm(name[0], at, x.shape)
    if name == "q_norm.out":
        q = at("self_attn.q")
        right = at("self_attn.q_norm.out")
        yield "query and gate are swapped", normalised_like(at("self_attn.gate"), q, right)
        for cause, cut in cuts_of_q_proj("q", at):
            yield cause, normalised_like(cut, q, right)
    if name in ("q_norm.out", "k_norm.out"):
        yield f"{name[0]}_norm is missing", before_norm(name[0], at, at(f"self_attn.{name}").shape)
    if name == "attn_out" and not context.start:
        q = at("self_attn.q_rope")
        k = at("self_attn.k_rope")
        v = at("self_attn.v_proj.out").reshape(k.shape)
        gate = sigmoid(at("self_attn.gate"))
        yield from scale_mistakes(q, k, v, config)
        yield "KV heads are tiled; query head h belongs to kv head h // group", attention(q, k, v, "tiled")
        yield "not causal", attention(q, k, v, "not causal")
        yield "attn_out is traced after its gate", at("self_attn.attn_out") * gate


def cuts_of_q_proj(name: str, at: Lookup) -> Candidates:
    """Queries, or gates, cut out of q_proj in the wrong places."""
    T, H, D = at(f"self_attn.{name}").shape
    rows = at("self_attn.q_proj.out")
    half = rows[:, : H * D] if name == "q" else rows[:, H * D :]
    yield "q_proj is cut into all queries | all gates; it is query | gate within each head", half.reshape(T, H, D)
    pairs = rows.reshape(T, H, D, 2)[..., 0 if name == "q" else 1]
    yield "q_proj is read as pairs (query, gate) of entries", pairs


def scale_mistakes(q: Array, k: Array, v: Array, config: dict) -> Candidates:
    """Attention with another scale of its scores."""
    heads, dim = q.shape[1:]
    yield "the scale head_dim^-0.5 is missing", attention(q, k, v, scale=1.0)
    yield "the scores are scaled by 1 / head_dim; it is head_dim^-0.5", attention(q, k, v, scale=1 / dim)
    hidden = config["hidden_size"] / heads
    cause = "the scale is (hidden_size / heads)^-0.5; it is head_dim^-0.5, and head_dim is a field of its own"
    if hidden != dim:
        yield cause, attention(q, k, v, scale=hidden**-0.5)
    width = rotated_width(config)
    if width != dim:
        yield "the scale is that of the rotated width; it is head_dim^-0.5", attention(q, k, v, scale=width**-0.5)


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
PACKED = "a packed sequence begins with zero state and window, and sees no other of its row"
HINTS: dict[str, list[tuple[str, str]]] = {
    r"linear_attn\.(conv_out|v_conv|[qk]_l2norm|delta_out|state|conv_state)|self_attn\.attn_out|layer\.out": [
        ("packed", PACKED)
    ],
    r".*norm(_embedding|_hidden)?\.out": [
        ("channel", "the weight: the norms multiply by 1 + w, but the norm after the delta rule by w"),
        ("factor", "eps: rms_norm_eps, inside the root"),
        ("token", "eps: rms_norm_eps, inside the root; or the mean is over the wrong axis"),
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
        ("nan", "e^(G_i) e^(-G_j) overflows where the decay is strong: take e^(G_i - G_j), j <= i, before exp"),
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
    r"self_attn\.[qk]_rope": [
        ("yarn", "YaRN: its ramp (floor, ceil, the bounds 0 and R - 1), the factor on slow pairs, m on cos and sin"),
        ("", "RoPE: which entries, which pairs, which positions (those of the cache count)"),
    ],
    r"accepted": [("", "a draft is accepted while u < p / q: not if u = p / q, always if p >= q, never if p = 0")],
    r"token": [
        ("", "the first token whose cumulative sum exceeds u: of max(p - q, 0) after a rejection, of p if that is 0")
    ],
    r"self_attn\.attn_out": [
        ("second", "the scale of the scores, head_dim^-0.5, or the mask; a single token's softmax shows neither"),
        ("start", "the cache's keys and values, or the mask over them"),
        ("continued", "the cache: which tokens' keys and values it holds (MTP's own, too, after a rollback)"),
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
    r".*(_proj|_qkvz|_ba|_gate|mlp\.gate|fc|lm_head|logits)(\.out)?": [
        ("", "the weight's layout (rows, transposed), its shard, or its dequantisation")
    ],
}


def facts(stage: str, r: Array, m: Array, allowed: float) -> dict[str, str]:
    """What can be seen of an error: name of the fact -> words. r is the reference's value, m the one that is wrong."""
    if not np.isfinite(m).all():
        return {"nan": overflow_in_words(r, m)}
    if not m.any():
        return {"zero": "all entries are 0"}
    tight = max(10 * allowed, 0.02 * relative_error(r, m))
    squared = float(np.sum(r * r))
    factor = float(np.sum(r * m)) / squared if squared else 0.0
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
            found["start" if bad[0] > 1 else "second"] = f"right up to token {bad[0] - 1}, wrong from token {bad[0]} on"
    return found


def overflow_in_words(r: Array, m: Array) -> str:
    """Which entries are not finite, and whether float16 could have held what they should be."""
    bad = ~np.isfinite(m)
    first = ", ".join(map(str, np.argwhere(bad)[0]))
    words = f"overflow: {int(bad.sum())} of {m.size} entries are not finite, the first at [{first}]"
    largest = float(np.abs(r).max())
    return words + (f"; they reach {largest:.3g}, and float16 only 65504" if largest > 65504 else "")


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
    stage: str, r: Array, m: Array, allowed: float, at: Lookup, config: dict, context: Context
) -> tuple[list[str], list[str]]:
    """What can be seen of an error, and its likely causes, both in words.

    A mistake that gives exactly m is a cause that leaves no doubt; else up to three or so that fit what can be seen.
    """
    seen = facts(stage, r, m, allowed)
    fitting: list[tuple[float, str]] = []
    try:
        for cause, x in candidates(stage, at, config, context):
            if x.shape != m.shape or not np.isfinite(m).all():
                continue
            error = relative_error(m, x)
            if error < max(4 * allowed, 1e-5) and error < 0.3 * relative_error(r, m):
                fitting.append((error, cause + " (this would give just these values)"))
    except (KeyError, ValueError, IndexError):  # a value or a config field that the traces do not have
        pass
    causes = [cause for _, cause in sorted(fitting)]
    if not causes:
        known = {"continued": context.start > 0, "packed": context.packed, "yarn": has_yarn(config)}
        causes = usual_causes(stage, {*seen, *(name for name, true in known.items() if true)})
    return list(seen.values()), causes


def usual_causes(stage: str, seen: set[str]) -> list[str]:
    """The hints for a stage that fit the facts, of the error and of the step."""
    causes = []
    if "nan" in seen:
        causes.append("overflow, of float16 or of an exponential: keep sums, squares and exponents in float32")
    for pattern, hints in HINTS.items():
        if len(causes) < 3 and re.fullmatch(pattern, stage):
            causes += [cause for fact, cause in hints if not fact or fact in seen]
    return causes
