"""When two values count as equal: the measure of their difference, and the layouts that a program may have chosen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from verify.floors import EPSILON, Noise  # noqa: F401, as both belong to the measure
from verify.stages import ROWS, VALUE_HEADS, Array, axes_of

STATES = ("linear_attn.state", "state_out")  # the stage, and the output of its operation

# ---- Difference -----------------------------------------------------------------------------------------------------


def rms(x: Array) -> float:
    """Root of the mean square, 0 of nothing."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def relative_error(r: Array, m: Array, scale: float = 0.0) -> float:
    """RMS of the difference over the RMS of the reference r, or over `scale` if that is more: the root of NMSE."""
    if not r.size:
        return 0.0
    scale = max(rms(r), scale)
    error = rms(m - r)
    if scale > 0:
        return error / scale
    return 0.0 if error == 0 else math.inf


def decibels(relative: float) -> float:
    """A relative error in dB: -inf of none, inf of one without bounds."""
    if relative == 0:
        return -math.inf
    return 20 * math.log10(relative)


def kl_divergence(r: Array, m: Array) -> float:
    """Mean over tokens of KL(softmax(r) || softmax(m)), in nats."""
    log_r = r - np.logaddexp.reduce(r, axis=-1, keepdims=True)
    log_m = m - np.logaddexp.reduce(m, axis=-1, keepdims=True)
    return float(np.mean(np.sum(np.exp(log_r) * (log_r - log_m), axis=-1)))


def usual_sizes(steps: dict[str, dict[str, Array]]) -> dict[str, float]:
    """A key's largest RMS over all steps: in a single step of one token it may by chance be near 0."""
    found: dict[str, float] = {}
    for arrays in steps.values():
        for key, x in arrays.items():
            found[key] = max(found.get(key, 0.0), rms(x))
    return found


# ---- Layout ---------------------------------------------------------------------------------------------------------


def by_signature(r: Array, m: Array, axis: int) -> Array | None:
    """The order p of m's slices along an axis in which they may be r's: m.take(p) ~ r.

    Each slice gets a number, the sum of its entries with random weights, and slices of the same rank are matched. None
    if sizes differ, or slices are so small that some order always fits.
    """
    if r.shape != m.shape or r.size < 6 * r.shape[axis]:
        return None
    weights = np.random.default_rng(0).standard_normal(r.size // r.shape[axis])

    def order(x: Array) -> Array:
        slices = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
        return np.argsort(slices @ weights, kind="stable")

    p = np.empty(r.shape[axis], np.intp)
    p[order(r)] = order(m)
    return p


def layouts(stage: str, r: Array, m: Array, heads: Array | None) -> Iterator[tuple[Array, str]]:
    """m, in r's shape already, in the layouts that a program may have chosen, each with what that takes in words.

    heads: the order of the value heads that other values of the layer have.
    """
    if m.shape != r.shape or not m.size or not np.isfinite(m).all():
        return
    for a, b in itertools.combinations(range(m.ndim), 2):
        if m.shape[a] == m.shape[b]:
            turned = stage in STATES and (a, b) == (m.ndim - 2, m.ndim - 1)
            words = "the state is transposed, (V, K); it is (K, V)" if turned else f"axes {a} and {b} swapped"
            yield np.swapaxes(m, a, b), words
    axes = axes_of(stage)
    key_heads_repeat = stage.endswith("_l2norm")  # so that their order can only be that of other values
    if stage in VALUE_HEADS and (heads is not None or not key_heads_repeat):
        axis = axes.index("value_head")
        order = heads if heads is not None else by_signature(r, m, axis)
        if order is not None:
            yield m.take(order, axis), f"value heads in another order: {', '.join(map(str, np.argsort(order)))}"
    if stage in ROWS:
        axis = axes.index("row" if "row" in axes else "channel")
        order = by_signature(r, m, axis)
        if order is not None:
            yield m.take(order, axis), f"{axes[axis]}s in another order"
    if stage == "linear_attn.q_l2norm":
        yield m * m.shape[-1] ** -0.5, "not yet scaled by K^-0.5"


def match_layout(stage: str, r: Array, m: Array, allowed: float, heads: Array | None) -> tuple[Array, str] | None:
    """m brought to r's layout, and what that took; None if no layout makes them agree."""
    for x, words in layouts(stage, r, m, heads):
        if relative_error(r, x) <= allowed:
            return x, words
    return None
