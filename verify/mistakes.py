"""The components of Qwen3-Next with one thing wrong: what a well-known mistake would have made of sound inputs."""

from __future__ import annotations

import numpy as np

from verify.rotary import frequencies, rope_fields, rotate, rotated_width
from verify.stages import Array

# ---- The components with one thing wrong ----------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))


def softplus(x: Array) -> Array:
    """log(1 + e^x)."""
    return np.logaddexp(0, x)


def half_precision(x: Array, dtype: str) -> Array:
    """The nearest numbers of bfloat16 or float16, in float64."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float64)
    bits = np.asarray(x, np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def recurrence(
    q: Array, k: Array, v: Array, g: Array, beta: Array, variant: str, state: Array | None = None
) -> tuple[Array, Array]:
    """The delta rule with one thing wrong: what delta_out and the last state would be. Shapes as there.

    state: the one before the first token, zeros if None.
    """
    S = np.zeros((*k.shape[1:], v.shape[-1])) if state is None else state
    chunk = int(variant.split()[-1]) if variant.startswith("forgets every") else 0
    out = []
    for t in range(len(k)):
        if chunk and t and t % chunk == 0:
            S = np.zeros_like(S)
        alpha = np.ones_like(g[t]) if variant == "no decay" else np.exp(g[t])
        alpha = alpha[:, None, None]
        decayed = alpha * S
        recalled_from = S if variant == "decay after the error" else decayed
        if variant == "recall transposed":
            recalled_from = recalled_from.swapaxes(-1, -2)
        recall = np.einsum("hkv,hk->hv", recalled_from, k[t])
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
        if variant == "read transposed":
            read = read.swapaxes(-1, -2)
        out.append(np.einsum("hkv,hk->hv", read, q[t]))
        if variant in ("bfloat16", "float16"):
            S = half_precision(S, variant)
    return np.stack(out), S


RECURRENCES = {
    "decay after the error": "the error v - S^T k is taken before the decay; the state decays first",
    "decay after the write": "the state decays after the write",
    "read before the write": "out is read before the write",
    "no decay": "the state does not decay",
    "no error": "beta v is written, not beta (v - S^T k): plain linear attention",
    "no beta": "beta is missing",
    "beta on v alone": "beta multiplies v, not v - S^T k",
    "read transposed": "the state is read transposed: out = S q; it is S^T q, S (K, V)",
    "recall transposed": "the state is transposed in the error: v - S k; it is v - S^T k, S (K, V)",
    "bfloat16": "the state is kept in bfloat16; if that is meant, announce it: --state-dtype bfloat16",
    "float16": "the state is kept in float16; if that is meant, announce it: --state-dtype float16",
    "forgets every 32": "the state is dropped between chunks of 32 tokens",
    "forgets every 64": "the state is dropped between chunks of 64 tokens",
    "forgets every 128": "the state is dropped between chunks of 128 tokens",
    "forgets every 256": "the state is dropped between chunks of 256 tokens",
}


def attention(q: Array, k: Array, v: Array, variant: str = "", scale: float | None = None) -> Array:
    """Softmax attention with one thing wrong. q (T, heads, dim), k and v (T, kv heads, dim)."""
    T, heads, dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    kv = np.arange(heads) % kv_heads if variant == "tiled" else np.arange(heads) // group
    scores = np.einsum("thd,shd->hts", q, k[:, kv]) * (dim**-0.5 if scale is None else scale)
    if variant != "not causal":
        scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hts,shd->thd", p / p.sum(-1, keepdims=True), v[:, kv])


def turned(x: Array, config: dict, variant: str, start: int = 0) -> Array:
    """RoPE with one thing wrong. x (T, heads, head_dim); start: the first token's position."""
    D = x.shape[-1]
    R = rotated_width(config)
    frequency, scale = frequencies(config)
    if variant == "no rotation":
        return x
    if variant == "whole head":
        R = D
        frequency, scale = frequencies(config, D)
    if variant == "exponent":
        frequency = rope_fields(config)["rope_theta"] ** (-2 * np.arange(R // 2) / D)
    if variant == "no YaRN":
        frequency = rope_fields(config)["rope_theta"] ** (-2 * np.arange(R // 2) / R)
    if variant == "no factor":
        scale = 1.0
    position = np.arange(start, start + len(x)).astype(np.float64)
    if variant == "off by one":
        position = position + 1
    if variant == "begin anew":
        position = position - start
    if variant in ("bfloat16", "float16"):
        position = half_precision(position, variant)
    angle = position[:, None, None] * frequency
    if variant == "backwards":
        angle = -angle
    if variant == "last dims":
        return np.concatenate([x[..., :-R], scale * rotate(x[..., -R:], angle)], -1)
    return np.concatenate([scale * rotate(x[..., :R], angle, variant == "interleaved"), x[..., R:]], -1)


TURNS = {
    "whole head": "RoPE turns the whole head; only the first R = head_dim * partial_rotary_factor entries turn",
    "exponent": "RoPE's exponent divides by head_dim; it is -2i / R",
    "interleaved": "RoPE pairs (2i, 2i + 1); the pairs are (i, i + R/2)",
    "off by one": "RoPE's positions begin at 1",
    "begin anew": "positions begin anew in each call; those of the cache count",
    "no rotation": "RoPE is missing",
    "last dims": "RoPE turns the last R entries of the head; it turns the first",
    "backwards": "RoPE turns backwards: the sign of sin",
    "bfloat16": "RoPE's positions are kept in bfloat16, which has no odd numbers above 256",
    "float16": "RoPE's positions are kept in float16, which has no odd numbers above 2048",
    "no factor": "YaRN's attention_factor on cos and sin is missing",
    "no YaRN": "YaRN's frequencies are missing: plain RoPE",
}

# ---- Weights that a trace does not show -----------------------------------------------------------------------------


def fitted_decay(g: Array, a: Array) -> tuple[Array, Array] | None:
    """exp(A_log) and dt_bias of each head, from what they do: g = -exp(A_log) softplus(a + dt_bias), both (T, H).

    For the right dt_bias, g / softplus(a + dt_bias) is the same for all tokens: found by golden-section search, from a
    coarse grid. None for fewer than three tokens.
    """
    if len(g) < 3:
        return None

    def spread(bias: Array) -> Array:
        logs = np.log(np.maximum(-g, 1e-300)) - np.log(np.maximum(softplus(a + bias), 1e-300))
        return logs.var(0)

    grid = np.linspace(-12, 12, 241)
    best = grid[np.argmin([spread(np.full(g.shape[1], bias)) for bias in grid], axis=0)]
    low, high = best - 0.1, best + 0.1
    ratio = (5**0.5 - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        closer = spread(left) < spread(right)
        low, high = np.where(closer, low, left), np.where(closer, right, high)
    bias = (low + high) / 2
    return np.exp(np.log(-g).mean(0) - np.log(softplus(a + bias)).mean(0)), bias


def normalised_like(x: Array, example_in: Array, example_out: Array) -> Array:
    """x through the RMS norm whose weight shows in an example. All (T, heads, dim)."""
    unit = example_in / np.sqrt(np.mean(example_in**2, -1, keepdims=True) + 1e-6)
    scale = np.sum(unit * example_out, (0, 1)) / np.sum(unit * unit, (0, 1))
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * scale
