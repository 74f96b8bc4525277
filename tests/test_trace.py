"""Claim: a recording holds what one model computes in one thread, and leaves everything else as it was."""

import sys
import threading

import pytest
import torch
from conftest import ROOT, random_model, tokens

from qwen3_next import recurrent_gated_delta_rule

sys.path.insert(0, str(ROOT))
from verify import scenarios  # noqa: E402
from verify.trace import LOCALS, RENAMED, recording  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return random_model(torch.float64, mtp_num_hidden_layers=1)


def pass_of(model, ids):
    with torch.no_grad():
        return model(ids, output_mtp_logits=True)


def recorded(model, ids, keys=("*",)) -> dict:
    with recording(model, keys) as trace:
        pass_of(model, ids)
    return trace


def same(a: dict, b: dict):
    assert a.keys() == b.keys()
    assert all(torch.equal(x, b[key]) for key, x in a.items())


def test_every_local_variable_is_there(model):
    """Catches a variable of the model that was renamed, and whose key is then missing from every trace."""
    names = {key.rpartition(".")[2] for key in recorded(model, tokens(1, 70))}
    wanted = {RENAMED.get(name, name).rpartition(".")[2] for line in LOCALS.values() for name in line.split()}
    assert wanted <= names, wanted - names
    chunks = recorded(model, tokens(1, 70), ["*.chunk.*"])
    stages = {key.rpartition(".")[2] for key in chunks}
    assert stages == {"A", "M", "u", "w", "state"}


def test_other_models_and_threads_stay_out(model):
    """Catches one recorder for all: values of another model, or of another thread's pass, under this model's keys."""
    other = random_model(torch.float64, seed=5, mtp_num_hidden_layers=1)
    ids, others = tokens(1, 40), tokens(1, 40, seed=1)
    alone, alone_too = recorded(model, ids), recorded(other, others)
    traces, stop = {}, threading.Event()

    def elsewhere():
        count = 0
        while not stop.is_set() or count < 3:
            pass_of(model, others)  # the same model, without a recording
            traces[count] = recorded(other, others)
            count += 1

    thread = threading.Thread(target=elsewhere)
    thread.start()
    for _ in range(10):
        with recording(model) as trace:
            pass_of(other, others)
            pass_of(model, ids)
            pass_of(other, ids)
        same(trace, alone)
    stop.set()
    thread.join()
    for trace in traces.values():
        same(trace, alone_too)


def test_a_second_recording_is_refused_and_the_profiler_put_back(model):
    """Catches a recording inside another, which would end it, and a profiler of the user's that is lost."""
    calls = []

    def profiler(frame, event, arg):
        calls.append(event)

    sys.setprofile(profiler)
    try:
        with recording(model, ["lm_head.out"]) as trace:
            with pytest.raises(ValueError, match="under way"), recording(model):
                pass
            pass_of(model, tokens(1, 5))
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
    assert "lm_head.out" in trace
    with pytest.raises(ZeroDivisionError), recording(model):
        raise ZeroDivisionError
    assert sys.getprofile() is None


def test_a_compiled_module_is_recorded(model):
    """Catches a compiled pass, whose frames have no locals, that is recorded in part without a word."""
    ids = tokens(1, 20)
    expected = recorded(model, ids)
    compiled = random_model(torch.float64, mtp_num_hidden_layers=1)
    for layer in compiled.model.layers:
        layer.mlp.compile(backend="eager")
    pass_of(compiled, ids)
    same(recorded(compiled, ids), expected)


def test_values_are_copies_and_globs_choose():
    """Catches views that a later step changes, and keys nobody asked for."""
    model, ids = random_model(torch.float32), tokens(1, 20)
    cache = model.make_cache(1)
    with recording(model, ["*.linear_attn.state", "*.k_rope"]) as first:
        model(ids, past_key_values=cache)
    before = {key: x.clone() for key, x in first.items()}
    model(ids, past_key_values=cache)
    assert all(torch.equal(x, before[key]) for key, x in first.items())
    assert first.keys() == before.keys()
    assert {key.rpartition(".")[2] for key in first} == {"state", "k_rope"}
    assert first.lines.keys() == first.keys()


def test_a_glob_that_fits_nothing_is_named():
    """Catches a misspelt key that yields an empty trace without a word, and an error though one of the steps has it."""
    model, ids = random_model(torch.float32), tokens(1, 20)
    with pytest.raises(ValueError, match=r"fits \*\.v_cnov;"), recording(model, ["*.v_conv", "*.v_cnov"]):
        model(ids)
    with recording(model, ["*.v_cnov"], missing_ok=True) as found:
        model(ids)
    assert not found
    fed = {
        "start": {"tokens": [5], "before": []},
        "two": {"tokens": [1, 2], "before": [5]},
        "back": {"tokens": [], "before": [5, 1]},
    }
    steps, _ = scenarios.run(model, fed, ["lm_head.out"])
    assert [list(found) for found in steps.values()] == [["lm_head.out"], ["lm_head.out"], []]
    with pytest.raises(ValueError, match="nothing"):
        scenarios.run(model, fed, ["lm_head.out", "nothing"])


def test_what_is_recorded_outside_of_a_pass():
    """Catches a recorder that sees only the model's own call: MTP and the head, each on its own."""
    model, ids = random_model(torch.float64, mtp_num_hidden_layers=1), tokens(1, 9)
    out = model(ids, output_mtp_logits=True)
    embeds = model.model.embed_tokens(ids[:, 1:])
    with torch.no_grad(), recording(model, ["mtp.norm.out", "lm_head.out"]) as found:
        drafted = model.look_ahead(out.last_hidden_state[:, :-1], embeds)
        model.lm_head(drafted)
    assert torch.equal(found["mtp.norm.out"], drafted[0])
    assert torch.equal(found["lm_head.out"], out.mtp_logits[0])


def test_recording_changes_nothing():
    """Catches a recorder that alters what it records, and hooks that stay."""
    model, ids = random_model(torch.float64, mtp_num_hidden_layers=1), tokens(2, 70)
    plain = model(ids, output_mtp_logits=True)
    with recording(model):
        traced = model(ids, output_mtp_logits=True)
    assert torch.equal(plain.logits, traced.logits)
    assert torch.equal(plain.mtp_logits, traced.mtp_logits)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ZeroDivisionError), recording(model):
        raise ZeroDivisionError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_state_is_rebuilt_from_v_conv():
    """Catches v_conv before the convolution, or before its silu: the delta rule over it gives the recorded state."""
    model, ids = random_model(torch.float64), tokens(1, 30)
    with recording(model, ["model.layers.0.linear_attn.*"]) as found:
        model(ids)
    at = {key.removeprefix("model.layers.0.linear_attn."): x for key, x in found.items()}
    rule = {name: at[name][None] for name in ("g", "beta")}
    for name, right in (("v_conv", True), ("v", False)):
        out, state = recurrent_gated_delta_rule(at["q_l2norm"][None], at["k_l2norm"][None], at[name][None], **rule)
        assert torch.allclose(state[0], at["state"], atol=1e-12) == right
        assert torch.allclose(out[0], at["delta_out"], atol=1e-12) == right
    assert list(at).index("v_conv") == list(at).index("conv_out") + 1


def test_chunked_intermediates():
    """Catches chunk.* values that are not the ones of the equations: M, u and w give the deltas and the next state."""
    model, ids = random_model(torch.float64), tokens(1, 150)
    with recording(model, ["model.layers.0.*"]) as found:
        model(ids)
    assert not any("chunk" in key for key in found)
    with recording(model, ["model.layers.0.linear_attn.*", "model.layers.0.linear_attn.chunk.*"]) as chunks:
        model(ids)
    at = {key.removeprefix("model.layers.0.linear_attn."): x for key, x in chunks.items()}
    A, M = at["chunk.A"], at["chunk.M"]
    H, N, C, _ = A.shape
    padded = torch.cat([at["beta"], at["beta"].new_zeros(N * C - 150, H)]).T.reshape(H, N, C)
    assert torch.allclose((torch.eye(C) + A) @ M, torch.diag_embed(padded), atol=1e-12)
    k = torch.cat([at["k_l2norm"], at["k_l2norm"].new_zeros(N * C - 150, H, at["k_l2norm"].shape[-1])])
    k = k.permute(1, 0, 2).reshape(H, N, C, -1)
    g = torch.cat([at["g"], at["g"].new_zeros(N * C - 150, H)]).T.reshape(H, N, C)
    G = g.cumsum(-1)
    delta = at["chunk.u"][:, 0] - at["chunk.w"][:, 0] @ at["chunk.0.state"]
    state = (k[:, 0] * (G[:, 0, -1:] - G[:, 0]).exp()[..., None]).transpose(1, 2) @ delta
    assert torch.allclose(state, at["chunk.1.state"], atol=1e-12)
