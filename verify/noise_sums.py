"""Measures what single operations lose to rounding, by width; writes "sums" and "state" into verify/noise.json.

    python verify/noise_sums.py

A norm and a product are computed at widths from 64 to 4096, with sums of one term after the other and with pairwise
ones, in float32, and in float32 between half-precision inputs and outputs. "float8" are weights of 8 bits (e4m3, a
scale for each 128), dequantised to bfloat16: the reference has the exact products of value and scale. What is stored is
the largest relative RMS error of a token.

"state" is the error of the delta rule's state and output when the state is rounded to half precision after each token.
Needs NumPy only.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
from verify.measures import relative_error  # noqa: E402
from verify.random_models import bfloat16  # noqa: E402

Array = np.ndarray
WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
DTYPES = ("float32", "bfloat16", "float16", "float8")
TOKENS, OUTPUTS = 24, 64


def rounded(x: Array, dtype: str) -> Array:
    """The nearest numbers of a dtype, as float32."""
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    if dtype in ("bfloat16", "float8"):
        return (bfloat16(x).astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


def float8(x: Array) -> Array:
    """The nearest numbers of e4m3: 4 significant bits, at most 448."""
    mantissa, exponent = np.frexp(np.clip(x, -448, 448))
    exponent = np.maximum(exponent, -5)  # below 2^-6 they are evenly spaced
    mantissa = np.clip(x, -448, 448) / np.exp2(exponent)
    return np.round(mantissa * 16) / 16 * np.exp2(exponent)


def total(terms: Array, sequential: bool) -> Array:
    """float32's sum over the last axis."""
    if sequential:
        return np.add.accumulate(terms.astype(np.float32), axis=-1, dtype=np.float32)[..., -1]
    return terms.astype(np.float32).sum(-1, dtype=np.float32)  # NumPy's sum is pairwise


def worst(expected: Array, found: Array) -> float:
    """The largest error of a token."""
    return max(relative_error(r, m) for r, m in zip(expected, found))


def norm_error(width: int, dtype: str, sequential: bool, rng: np.random.Generator) -> float:
    """Of x / sqrt(mean(x^2) + eps) * (1 + w), for tokens with and without a few large channels."""
    x = rng.standard_normal((TOKENS, width))
    x[: TOKENS // 2, :3] *= 50
    x = rounded(x, dtype)
    w = rounded(0.3 * rng.standard_normal(width), dtype)
    exact = x.astype(np.float64)
    expected = exact / np.sqrt(np.mean(exact**2, -1, keepdims=True) + 1e-6) * (1 + w.astype(np.float64))
    mean = total(x * x, sequential)[:, None] / np.float32(width)
    found = x / np.sqrt(mean + np.float32(1e-6)) * (np.float32(1) + w)
    return worst(expected, rounded(found, dtype))


def product_error(width: int, dtype: str, sequential: bool, rng: np.random.Generator) -> float:
    """Of W x."""
    x = rounded(rng.standard_normal((TOKENS, width)), dtype)
    W = rng.standard_normal((OUTPUTS, width)) / math.sqrt(width)
    exact = W = rounded(W, dtype)
    if dtype == "float8":
        blocks = W.astype(np.float64).reshape(OUTPUTS, -1, min(width, 128))
        scale = np.abs(blocks).max(-1, keepdims=True) / 448
        exact = (float8(blocks / scale) * scale.astype(np.float32)).reshape(W.shape)
        W = rounded(exact, "bfloat16")
    expected = x.astype(np.float64) @ exact.astype(np.float64).T
    found = np.stack([total(token * W, sequential) for token in x])
    return worst(expected, rounded(found, dtype))


def state_error(dtype: str, rng: np.random.Generator) -> float:
    """Of the state and the outputs over 300 tokens, for decays from 0.4 to 0.999 a token."""
    errors = []
    for K, decay in ((16, 0.4), (16, 0.98), (64, 0.9), (64, 0.999)):
        exact = np.zeros((K, K))
        kept = np.zeros((K, K), np.float32)
        outputs: tuple[list, list] = ([], [])
        for _ in range(300):
            k, q, v = rng.standard_normal((3, K))
            k, q = k / np.linalg.norm(k), q / np.linalg.norm(q)
            beta = rng.uniform(0.1, 0.9)
            exact = decay * exact
            exact = exact + beta * np.outer(k, v - k @ exact)
            new = decay * kept.astype(np.float64)
            kept = rounded(new + beta * np.outer(k, v - k @ new), dtype)
            outputs[0].append(q @ exact)
            outputs[1].append(q @ kept)
        errors += [relative_error(exact, kept), relative_error(*(np.stack(rows) for rows in outputs))]
    return max(errors)


def main():
    rng = np.random.default_rng(0)
    sums: dict[str, dict[str, dict[str, float]]] = {}
    for dtype in DTYPES:
        sums[dtype] = {}
        for kind, measure in (("squares", norm_error), ("products", product_error)):
            found = {}
            for width in WIDTHS:
                errors = [measure(width, dtype, sequential, rng) for sequential in (True, False)]
                found[str(width)] = float(f"{max(errors):.2g}")
            sums[dtype][kind] = found
    state = {dtype: float(f"{state_error(dtype, rng):.2g}") for dtype in ("bfloat16", "float16")}
    path = HERE / "noise.json"
    content = json.loads(path.read_bytes()) | {"sums": sums, "state": state}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
