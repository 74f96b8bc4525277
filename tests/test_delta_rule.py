"""Claim: the recurrence and the chunked form of the gated delta rule are one function."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers.models.qwen3_next import modeling_qwen3_next as transformers_model

from qwen3_next import chunk_gated_delta_rule, recurrent_gated_delta_rule

B, H, K, V = 2, 3, 5, 7


def make_inputs(T: int, decay: str = "mild", keys: str = "random", state: bool = True, seed: int = 0) -> list:
    """q, k, v, g, beta, state in float64, with decays from none to e^-40 a step."""
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=gen, dtype=torch.float64)

    q = F.normalize(normal(B, T, H, K), dim=-1)
    k = F.normalize(normal(B, 1 if keys == "repeated" else T, H, K).expand(B, T, H, K), dim=-1)
    g = {"none": 0.0, "mild": -0.1, "mixed": -1.0, "extreme": -40.0}[decay] * normal(B, T, H).abs()
    beta = torch.ones(B, T, H, dtype=torch.float64) if keys == "repeated" else normal(B, T, H).sigmoid()
    return [q, k, normal(B, T, H, V), g, beta, normal(B, H, K, V) if state else None]


def call(function, inputs, **kwargs):
    q, k, v, g, beta, state = inputs
    return function(q, k, v, g=g, beta=beta, state=state, **kwargs)


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("decay", ["none", "mild", "mixed", "extreme"])
@pytest.mark.parametrize("keys", ["random", "repeated"])
@pytest.mark.parametrize(("T", "C"), [(1, 4), (3, 4), (4, 4), (5, 4), (17, 4), (63, 64), (64, 64), (65, 64), (197, 64)])
def test_chunked_equals_recurrent(T, C, keys, decay, state):
    """Catches a wrong in-chunk mask (the state stays right), a wrong cross-chunk decay (one chunk stays right), an exp
    that overflows above the diagonal, an inverse by repeated squaring (which repeated keys with beta = 1 blow up)."""
    inputs = make_inputs(T, decay, keys, state)
    for ours, reference in zip(
        call(chunk_gated_delta_rule, inputs, chunk_size=C), call(recurrent_gated_delta_rule, inputs)
    ):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)  # values of order 1, ~200 roundings


@pytest.mark.parametrize("strong", [-300.0, -1e4, -1e6, -math.inf])
@pytest.mark.parametrize("places", [[0], [5], [5, 6, 70], [31, 32], [99]])
def test_a_strong_decay_costs_no_digits(places, strong):
    """Catches decays taken as differences of a cumulative sum: what follows a reset in its chunk loses its digits,
    and after g = -inf it is NaN."""
    inputs = make_inputs(100, "mild")
    inputs[3][:, places] = strong
    exact = call(recurrent_gated_delta_rule, inputs)
    for function, kwargs in ((chunk_gated_delta_rule, {"chunk_size": 32}), (recurrent_gated_delta_rule, {})):
        for x, expected in zip(call(function, [x.float() for x in inputs], **kwargs), exact):
            assert (x - expected).norm() < 5e-7 * expected.norm()


def test_after_a_reset_nothing_is_left():
    """Catches a state that comes through g = -inf, forwards or in the gradient, and a gradient that is NaN."""
    inputs = [x.requires_grad_() for x in make_inputs(40, "mild")]
    reset = torch.zeros(40, dtype=torch.bool)
    reset[[0, 17]] = True
    q, k, v, g, beta, state = inputs
    for function, kwargs in ((chunk_gated_delta_rule, {"chunk_size": 16}), (recurrent_gated_delta_rule, {})):
        out, new = function(q, k, v, g=g.masked_fill(reset[:, None], -math.inf), beta=beta, state=state, **kwargs)
        parts = [
            function(*(x[:, s] for x in (q, k, v)), g=g[:, s], beta=beta[:, s], **kwargs)
            for s in (slice(17), slice(17, 40))
        ]
        weight = torch.arange(out.numel(), dtype=out.dtype).view_as(out).sin()
        whole = torch.autograd.grad((out * weight).sum() + new.square().sum(), inputs, retain_graph=True)
        alone = (torch.cat([part[0] for part in parts], dim=1) * weight).sum() + parts[1][1].square().sum()
        expected = torch.autograd.grad(alone, inputs, allow_unused=True)
        assert not whole[5].any() and expected[5] is None
        for ours, theirs in zip(whole[:3] + whole[4:5], expected[:3] + expected[4:5]):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(whole[3], expected[3].masked_fill(reset[:, None], 0), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("decay", ["mild", "mixed"])
@pytest.mark.parametrize("keys", ["random", "repeated"])
@pytest.mark.parametrize("T", [3, 13, 32])
def test_gradients_agree(T, keys, decay):
    """Catches a detached term, and the gradient of a solve whose diagonal is taken for free."""
    gradients = []
    for function, kwargs in ((chunk_gated_delta_rule, {"chunk_size": 8}), (recurrent_gated_delta_rule, {})):
        inputs = [x.clone().requires_grad_() for x in make_inputs(T, decay, keys)]
        out, state = call(function, inputs, **kwargs)
        weight = torch.arange(out.numel(), dtype=out.dtype).view_as(out).sin()
        ((out * weight).sum() + state.square().sum()).backward()
        gradients.append([x.grad for x in inputs])
    for ours, reference in zip(*gradients):
        torch.testing.assert_close(ours, reference, rtol=1e-11, atol=1e-11)


def test_gradients_are_those_of_finite_differences():
    """Catches two forms that agree on a wrong gradient."""
    inputs = [x.clone().requires_grad_() for x in make_inputs(6, "mixed")]
    assert torch.autograd.gradcheck(lambda *xs: call(chunk_gated_delta_rule, xs, chunk_size=4), inputs)
    assert torch.autograd.gradcheck(lambda *xs: call(recurrent_gated_delta_rule, xs), inputs)


@pytest.mark.parametrize("function", [chunk_gated_delta_rule, recurrent_gated_delta_rule])
def test_one_step_by_hand(function):
    """Catches the error term computed before the decay, a read before the write, and K and V swapped in the state."""
    k, q = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 2.0])
    v, state = torch.tensor([3.0, 4.0, 5.0]), torch.tensor([[2.0, 4.0, 6.0], [1.0, 1.0, 1.0]])
    out, new = function(
        q.view(1, 1, 1, 2),
        k.view(1, 1, 1, 2),
        v.view(1, 1, 1, 3),
        g=torch.tensor(0.5).log().view(1, 1, 1),
        beta=torch.tensor(0.25).view(1, 1, 1),
        state=state.view(1, 1, 2, 3),
    )
    # decayed [[1, 2, 3], [.5, .5, .5]]; recalled [1, 2, 3]; delta .25 * [2, 2, 2]; row 0 gains [.5, .5, .5]
    torch.testing.assert_close(new[0, 0], torch.tensor([[1.5, 2.5, 3.5], [0.5, 0.5, 0.5]]))
    torch.testing.assert_close(out[0, 0, 0], torch.tensor([1.75, 2.25, 2.75]))


@pytest.mark.parametrize("function", [chunk_gated_delta_rule, recurrent_gated_delta_rule])
def test_arguments_are_left_alone_and_pieces_continue(function):
    """Catches an in-place state update that reaches the caller, and a state that does not continue."""
    inputs = make_inputs(150, "mild")
    before = [x.clone() for x in inputs]
    out, state = call(function, inputs)
    for x, old in zip(inputs, before):
        assert torch.equal(x, old)
    pieces, carried = [], inputs[5]
    for span in (slice(0, 70), slice(70, 71), slice(71, 150)):
        piece, carried = call(function, [*(x[:, span] for x in inputs[:5]), carried])
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), out, rtol=0, atol=1e-12)
    torch.testing.assert_close(carried, state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("state", [False, True])
def test_equals_transformers_functions(state):
    """Catches an error that both of our forms share."""
    q, k, v, g, beta, s = (None if x is None else x.float() for x in make_inputs(150, "mixed", state=state))
    for ours, theirs in (
        (chunk_gated_delta_rule, transformers_model.torch_chunk_gated_delta_rule),
        (recurrent_gated_delta_rule, transformers_model.torch_recurrent_gated_delta_rule),
    ):
        out, new = ours(q * K**-0.5, k, v, g=g, beta=beta, state=s)
        expected = theirs(q, k, v, g=g, beta=beta, initial_state=s, output_final_state=True)
        torch.testing.assert_close(out, expected[0], rtol=0, atol=2e-6)  # float32, values of order 1
        torch.testing.assert_close(new, expected[1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("function", [chunk_gated_delta_rule, recurrent_gated_delta_rule])
def test_dtypes(function, dtype):
    """Catches a state kept in half precision, or float64 that passes through float32."""
    inputs = [x.to(dtype) for x in make_inputs(9)]
    out, state = call(function, inputs)
    assert out.dtype == dtype
    assert state.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("function", [chunk_gated_delta_rule, recurrent_gated_delta_rule])
@pytest.mark.parametrize("position", [0, 2, 3, 4, 5])
def test_misshapen_inputs_are_refused(function, position):
    """Catches shapes that broadcast silently: one key head where value heads are expected, swapped state axes."""
    inputs = make_inputs(4)
    axis = 2 if position < 5 else 1
    inputs[position] = inputs[position].narrow(axis, 0, 1)
    with pytest.raises(ValueError, match=["q", "k", "v", "g", "beta", "state"][position] + " has shape"):
        call(function, inputs)
