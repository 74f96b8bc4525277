"""Golden vectors for one operation each: inputs, outputs and tolerances, in verify/golden/v2/ops/.

The outputs are those of reference_recurrent.py's functions in float64, the inputs float32. A file has a step for each
case. What it is fed says the operation, the keys of its inputs, its parameters, and how large the relative RMS error
may be by dtype. golden_v2.py writes and checks these files with the others. A file has the name of its operation,
except for those in OPERATION_OF.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import reference_recurrent as reference
from verify.rotary import frequencies

Array = np.ndarray
Values = dict[str, Array]
TOLERANCE = {"float64": 1e-6, "float32": 1e-5, "float16": 3e-3, "bfloat16": 2e-2}  # stored as float32
# float32's product of position and frequency is off by up to 2^-24 times the position, in radians
FAR = {**TOLERANCE, "float32": 1e-3}
ROPE = {"head_dim": 12, "partial_rotary_factor": 0.5, "rope_theta": 10000.0}
YARN = {**ROPE, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}}
# 32 pairs, of which the ramp takes in ten, and a context that is 32 times the original one
STRETCH = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
STRETCHED = {"head_dim": 128, "partial_rotary_factor": 0.5, "rope_theta": 1e6}
STRETCHED_TOLERANCE = {**TOLERANCE, "float32": 4e-3}  # for positions to 131,071


def norm(x: Array, w: Array, eps: float) -> Values:
    return {"out": reference.rms_norm(x, w, eps)}


def gated_norm(x: Array, z: Array, w: Array, eps: float) -> Values:
    return {"out": reference.gated_rms_norm(x, z, w, eps)}


def l2_norm(x: Array) -> Values:
    return {"out": reference.l2_norm(x)}


def rope(x: Array, positions: list[int], **config) -> Values:
    """x (T, heads, head_dim)."""
    angle, scale = frequencies(config)
    return {"out": np.stack([reference.rope(row, t, angle, scale) for row, t in zip(x, positions)])}


def conv(x: Array, weight: Array, window: Array) -> Values:
    """x (T, C), weight (C, 1, W), window (W - 1, C), oldest first."""
    out, window_out = reference.causal_conv(x, weight[:, 0], window)
    return {"out": out, "window_out": window_out}


def router(logits: Array, k: int, normalise: bool) -> Values:
    p = reference.softmax(logits)
    chosen = reference.router(p, k)
    weights = reference.expert_weights(p, chosen, normalise)
    return {"mlp.router_probs": p, "mlp.topk_ids": chosen, "mlp.topk_weights": weights}


def delta_rule(q: Array, k: Array, v: Array, g: Array, beta: Array, state: Array) -> Values:
    out, state_out = reference.gated_delta_rule(q, k, v, g, beta, state)
    return {"out": out, "state_out": state_out}


def verify(p: Array, q: Array, drafts: Array, uniforms: Array, uniform_next: Array) -> Values:
    """The rule of speculative sampling, for rows of drafts: p (B, n + 1, vocab), q (B, n, vocab), drafts (B, n)."""
    accepted, tokens = [], []
    for row in range(len(drafts)):
        n = 0
        while n < drafts.shape[1]:
            x = drafts[row, n]
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = p[row, n, x] / q[row, n, x]
            if not uniforms[row, n] < ratio:  # nor is it where both are 0
                break
            n += 1
        rest = p[row, n]
        if n < drafts.shape[1]:
            rest = np.maximum(p[row, n] - q[row, n], 0)
            rest = rest if rest.sum() > 0 else p[row, n]
        tokens.append(int(np.argmax(np.cumsum(rest / rest.sum()) > uniform_next[row])))
        accepted.append(n)
    return {"accepted": np.array(accepted), "token": np.array(tokens)}


OPERATIONS: dict[str, Callable[..., Values]] = {
    "norm": norm,
    "gated_norm": gated_norm,
    "l2_norm": l2_norm,
    "rope": rope,
    "conv": conv,
    "router": router,
    "delta_rule": delta_rule,
    "verify": verify,
}
OPERATION_OF = {"yarn": "rope", "acceptance": "verify"}  # file -> operation, where the names differ
FILES = (*OPERATIONS, *OPERATION_OF)


def unit(x: Array) -> Array:
    """x with length 1 over the last axis."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def delta_inputs(rng: np.random.Generator, T: int, H: int, K: int, V: int, decay: float) -> Values:
    """What the delta rule gets; decay: the size of g."""
    return {
        "q": unit(rng.standard_normal((T, H, K))) * K**-0.5,
        "k": unit(rng.standard_normal((T, H, K))),
        "v": rng.standard_normal((T, H, V)),
        "g": -decay * rng.exponential(size=(T, H)),
        "beta": rng.uniform(0, 1, (T, H)),
        "state": rng.standard_normal((H, K, V)),
    }


def draws(rng: np.random.Generator) -> Values:
    """Drafts of a model that is close to the other, and of one that is the same."""
    p = rng.dirichlet(np.ones(11), (6, 4))
    q = rng.dirichlet(np.ones(11), (6, 3)) * 0.3 + 0.7 * p[:, :3]
    q[5] = p[5, :3]
    drafts = np.array([[rng.choice(11, p=place / place.sum()) for place in row] for row in q])
    return {"p": p, "q": q, "drafts": drafts, "uniforms": rng.random((6, 3)), "uniform_next": rng.random(6)}


def greedy(rng: np.random.Generator) -> Values:
    """One-hot distributions: drafts that are the likeliest token, and that are not."""
    best = rng.integers(0, 11, (4, 4))
    drafts = best[:, :3].copy()
    drafts[1, 0] += 1
    drafts[2, 2] += 1
    drafts %= 11
    one_hot = np.eye(11)
    return {
        "p": one_hot[best],
        "q": one_hot[drafts],
        "drafts": drafts,
        "uniforms": rng.random((4, 3)),
        "uniform_next": rng.random(4),
    }


def stretched(x: Array) -> dict[str, tuple[Values, dict, dict]]:
    """YaRN with a long ramp and a large factor, and with each of its options. x (tokens, heads, 128)."""
    usual = {"positions": [0, 1, 300, 4095, 40000, 131071], **STRETCHED}
    options = {
        "stretched": {},
        "attention_factor": {"attention_factor": 0.8},
        "not truncated": {"truncate": False, "beta_fast": 20, "beta_slow": 2},
        "two scales": {"mscale": 0.8, "mscale_all_dim": 0.3},
        "one scale alone": {"mscale": 0.8},
    }
    cases = {name: {**usual, "rope_scaling": {**STRETCH, **more}} for name, more in options.items()}
    near = {**usual, "positions": [0, 1, 300, 1023, 4095, 8191], "rope_scaling": STRETCH}
    cases["the ramp ends after the last pair"] = {**near, "rope_theta": 100.0}
    near["rope_scaling"] = {**STRETCH, "original_max_position_embeddings": 1024}
    cases["the ramp ends at R - 1"] = {**near, "rope_theta": 10.0}
    return {name: ({"x": x}, parameters, STRETCHED_TOLERANCE) for name, parameters in cases.items()}


def edges() -> dict[str, tuple[Values, dict, dict]]:
    """Where the rule of speculative sampling turns over. All numbers are exact in any dtype."""
    p = [3 / 8, 1 / 8, 1 / 8, 3 / 8]
    q = [1 / 8, 1 / 2, 1 / 4, 1 / 8]  # p / q is 3, 1/4, 1/2, 3; max(p - q, 0) is 1/4, 0, 0, 1/4
    without_0 = [0, 1 / 2, 1 / 4, 1 / 4]
    without_1 = [1 / 2, 0, 1 / 4, 1 / 4]
    without_3 = [1 / 2, 1 / 4, 1 / 4, 0]
    uneven = [1 / 4, 1 / 2, 1 / 8, 1 / 8]
    below_1 = 255 / 256
    rows = {  # what is tested: p and q of two drafts, the drafts, their uniforms, p of the token after, its uniform
        "u = p / q is rejected": ((p, q), (p, p), (1, 0), (1 / 4, 0), p, 1 / 4),
        "u just below p / q is accepted": ((p, q), (p, p), (1, 0), (63 / 256, 0), p, 1 / 4),
        "p = q is accepted, whatever u": ((p, p), (q, q), (1, 3), (below_1, below_1), p, 7 / 16),
        "p > q is accepted, whatever u": ((p, q), (q, p), (0, 1), (below_1, below_1), p, below_1),
        "u = 0 is accepted": ((p, q), (p, q), (1, 2), (0, 0), p, 0),
        "p = 0 is rejected, even by u = 0": ((without_1, uneven), (p, p), (1, 0), (0, 0), p, 5 / 8),
        "q = 0 < p is accepted": ((p, without_3), (p, p), (3, 0), (below_1, 0), p, 15 / 16),
        "p = q = 0 is rejected, and p has the next token": ((without_3, without_3), (p, p), (3, 0), (0, 0), p, 5 / 8),
        "the second draft's u = p / q is rejected": ((p, p), (p, q), (0, 2), (below_1, 1 / 2), p, 1 / 4),
        "what follows a rejected draft is rejected": ((p, q), (p, p), (2, 0), (3 / 4, 0), p, 3 / 4),
        "a cumulative sum that is u is not enough": ((p, q), (p, p), (1, 0), (1 / 2, 0), p, 1 / 2),
        "u = 0 takes no token without probability": ((p, p), (p, p), (0, 3), (0, 0), without_0, 0),
    }
    found = {}
    for name, (first, second, drafts, uniforms, after, uniform_next) in rows.items():
        inputs = {
            "p": np.array([[first[0], second[0], after]]),
            "q": np.array([[first[1], second[1]]]),
            "drafts": np.array([drafts]),
            "uniforms": np.array([uniforms], np.float64),
            "uniform_next": np.array([uniform_next], np.float64),
        }
        found[name] = inputs, {}, TOLERANCE
    return found


def ops() -> dict[str, dict[str, tuple[Values, dict, dict]]]:
    """File -> case -> inputs, parameters, tolerances."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 48))
    wide = rng.standard_normal((3, 2048))
    heads = rng.standard_normal((5, 3, 7))
    gates, w = rng.standard_normal((5, 3, 7)), 1 + 0.4 * rng.standard_normal(7)
    small = np.concatenate([heads, 3e-4 * heads, 1e-2 * heads, 0 * heads[:1]])
    turned = rng.standard_normal((5, 4, 12))
    taps, window = rng.standard_normal((9, 1, 4)), rng.standard_normal((3, 9))
    logits = 2 * rng.standard_normal((6, 8))
    tied = logits.copy()
    tied[:, 5] = tied[:, 2]
    return {
        "norm": {
            "plain": ({"x": x, "w": 0.4 * rng.standard_normal(48)}, {"eps": 1e-6}, TOLERANCE),
            "weak": ({"x": 0.03 * x, "w": 0.4 * rng.standard_normal(48)}, {"eps": 1e-3}, TOLERANCE),
            "wide": ({"x": wide, "w": 0.4 * rng.standard_normal(2048)}, {"eps": 1e-6}, TOLERANCE),
        },
        "gated_norm": {"plain": ({"x": heads, "z": 2 * gates, "w": w}, {"eps": 1e-2}, TOLERANCE)},
        "l2_norm": {"near zero": ({"x": small}, {}, TOLERANCE)},
        "rope": {
            "near": ({"x": turned}, {"positions": [0, 1, 2, 63, 257], **ROPE}, TOLERANCE),
            "far": ({"x": turned}, {"positions": [4999, 5000, 5001, 7777, 8191], **ROPE}, FAR),
            "yarn": ({"x": turned}, {"positions": [0, 1, 300, 5000, 8191], **YARN}, FAR),
        },
        "conv": {
            "with a window": ({"x": rng.standard_normal((6, 9)), "weight": taps, "window": window}, {}, TOLERANCE),
            "one token": ({"x": rng.standard_normal((1, 9)), "weight": taps, "window": window}, {}, TOLERANCE),
        },
        "router": {
            "normalised": ({"logits": logits}, {"k": 3, "normalise": True}, TOLERANCE),
            "raw": ({"logits": logits}, {"k": 3, "normalise": False}, TOLERANCE),
            "ties": ({"logits": tied}, {"k": 3, "normalise": True}, TOLERANCE),
        },
        "delta_rule": {
            "one token": (delta_inputs(rng, 1, 2, 10, 7, 0.3), {}, TOLERANCE),
            "130 tokens": (delta_inputs(rng, 130, 2, 10, 7, 0.1), {}, TOLERANCE),
            "strong decay": (delta_inputs(rng, 70, 2, 8, 8, 20.0), {}, TOLERANCE),
        },
        "verify": {"sampled": (draws(rng), {}, TOLERANCE), "greedy": (greedy(rng), {}, TOLERANCE)},
        "yarn": stretched(np.random.default_rng(1).standard_normal((6, 1, 128))),
        "acceptance": edges(),
    }


def vectors() -> dict[str, tuple[dict[str, Values], dict[str, dict]]]:
    """File -> its steps, inputs and outputs as they are stored, and what each is fed."""
    found = {}
    for name, group in ops().items():
        operation = OPERATION_OF.get(name, name)
        steps, fed = {}, {}
        for case, (inputs, parameters, tolerance) in group.items():
            given = {key: x.astype(np.float32 if x.dtype.kind == "f" else np.int32) for key, x in inputs.items()}
            exact = {key: x.astype(np.float64) if x.dtype.kind == "f" else x for key, x in given.items()}
            out = OPERATIONS[operation](**exact, **parameters)
            steps[case] = given | {k: x.astype(np.float32 if x.dtype.kind == "f" else np.int32) for k, x in out.items()}
            about = {"op": operation, "inputs": list(given), "parameters": parameters, "tolerance": tolerance}
            fed[case] = {"tokens": [], "before": [], **about}
        found[name] = steps, fed
    return found
