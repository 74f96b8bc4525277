"""Claim: recurrence and chunked form are one function in exact arithmetic, and the code computes that function."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from test_delta_rule import make_inputs

from qwen3_next import chunk_gated_delta_rule, recurrent_gated_delta_rule
from reference_recurrent import gated_delta_rule

ZERO = Fraction(0)


def dot(a, b):
    return sum((x * y for x, y in zip(a, b)), ZERO)


def recurrence(q, k, v, alpha, beta, S):
    """One head over Fractions: the definition, [GDN] Eq. 10. S is a list of K rows of V."""
    outputs = []
    for t in range(len(k)):
        S = [[alpha[t] * s for s in row] for row in S]
        recalled = [dot(k[t], column) for column in zip(*S)]
        delta = [beta[t] * (x - y) for x, y in zip(v[t], recalled)]
        S = [[s + key * d for s, d in zip(row, delta)] for key, row in zip(k[t], S)]
        outputs.append([dot(q[t], column) for column in zip(*S)])
    return outputs, S


def chunked(q, k, v, alpha, beta, S, C):
    """The same by the numbered steps of `chunk_gated_delta_rule`, with products of decays in place of exponentials."""
    outputs = []
    for start in range(0, len(k), C):
        span = range(start, min(start + C, len(k)))

        def decay(i, j):  # from after token j to after token i
            return math.prod((alpha[t] for t in range(j + 1, i + 1)), start=Fraction(1))

        deltas = []
        for i in span:  # forward substitution
            old = [decay(i, start - 1) * dot(k[i], column) for column in zip(*S)]
            inner = [decay(i, j) * dot(k[i], k[j]) for j in range(start, i)]
            new = [dot(inner, column) for column in zip(*deltas)] if deltas else [ZERO] * len(v[i])
            deltas.append([beta[i] * (x - y - z) for x, y, z in zip(v[i], old, new)])
        for i in span:
            old = [decay(i, start - 1) * dot(q[i], column) for column in zip(*S)]
            inner = [decay(i, j) * dot(q[i], k[j]) for j in range(start, i + 1)]
            outputs.append([x + dot(inner, column) for x, column in zip(old, zip(*deltas))])
        last = span[-1]
        S = [
            [decay(last, start - 1) * s + sum(decay(last, j) * k[j][a] * deltas[j - start][b] for j in span)
             for b, s in enumerate(row)]
            for a, row in enumerate(S)
        ]  # fmt: skip
    return outputs, S


def rationals(T, K=2, V=3, seed=0, denominator=4):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return np.vectorize(lambda n: Fraction(int(n), denominator), otypes=[object])(rng.integers(-4, 5, shape))

    beta = [Fraction(int(n), 2) for n in rng.integers(0, 3, T)]
    return draw(T, K), draw(T, K), draw(T, V), beta, draw(K, V)


@pytest.mark.parametrize("C", [1, 2, 3, 5])
def test_the_algebra_is_exact(C):
    """Catches a chunked form that only approximates: the difference is exactly 0."""
    q, k, v, beta, S = rationals(7)
    alpha = [Fraction(n, 7) for n in (7, 3, 1, 5, 6, 2, 4)]
    expected, found = recurrence(q, k, v, alpha, beta, S.tolist()), chunked(q, k, v, alpha, beta, S.tolist(), C)
    assert expected[0] == found[0]
    assert expected[1] == found[1]


@pytest.mark.parametrize("name", ["recurrent", "chunked", "numpy"])
def test_the_code_is_exact_where_float64_is(name):
    """Catches a wrong term in the code itself: with halves and quarters, and no decay, float64 makes no error."""
    q, k, v, beta, S = rationals(7, denominator=2)
    expected, state = recurrence(q, k, v, [Fraction(1)] * 7, beta, S.tolist())
    q, k, v, beta, S = (np.array(x, dtype=float) for x in (q, k, v, beta, S))
    if name == "numpy":
        out, new = gated_delta_rule(q[:, None], k[:, None], v[:, None], np.zeros((7, 1)), beta[:, None], S[None])
        out, new = out[:, 0], new[0]
    else:
        q, k, v, beta = (torch.from_numpy(x)[None, :, None] for x in (q, k, v, beta))
        arguments = {"g": torch.zeros_like(beta), "beta": beta, "state": torch.from_numpy(S)[None, None]}
        if name == "recurrent":
            out, new = recurrent_gated_delta_rule(q, k, v, **arguments)
        else:
            out, new = chunk_gated_delta_rule(q, k, v, **arguments, chunk_size=3)
        out, new = out[0, :, 0], new[0, 0]
    assert [[Fraction(float(x)) for x in row] for row in out] == expected
    assert [[Fraction(float(x)) for x in row] for row in new] == state


@pytest.mark.parametrize("decay", ["none", "mild", "extreme"])
@pytest.mark.parametrize("keys", ["random", "repeated"])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("C", [4, 64])
@pytest.mark.parametrize("length", ["1", "C - 1", "C", "C + 1", "3 * C + 5"])
def test_three_implementations(length, C, state, keys, decay):
    """Catches an error in any one of the recurrence, the chunked form and NumPy's loop."""
    T = eval(length, {"C": C})
    inputs = make_inputs(T, decay, keys, state)
    q, k, v, g, beta, s = inputs
    ours = recurrent_gated_delta_rule(q, k, v, g=g, beta=beta, state=s)
    fast = chunk_gated_delta_rule(q, k, v, g=g, beta=beta, state=s, chunk_size=C)
    for b in range(len(q)):
        arrays = [None if x is None else x[b].numpy() for x in inputs]
        for a, c, reference in zip(ours, fast, gated_delta_rule(*arrays)):
            torch.testing.assert_close(a[b], torch.from_numpy(reference), rtol=0, atol=1e-12)
            torch.testing.assert_close(c[b], torch.from_numpy(reference), rtol=0, atol=1e-12)
