"""Claim: a recording holds what one model computes in one thread, and leaves everything else as it was."""

import sys
import threading

import pytest
import torch
from conftest import ROOT, random_model, tokens

sys.path.insert(0, str(ROOT))
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


def test_v_conv_is_what_the_delta_rule_gets(model):
    """Catches v before the convolution under this name: a state rebuilt from it is wrong by 64 to 288 %."""
    trace = recorded(model, tokens(1, 70), ["model.layers.0.linear_attn.*"])
    at = {key.rpartition(".")[2]: x for key, x in trace.items()}
    S = torch.zeros_like(at["state"])
    for k, v, g, beta in zip(at["k_l2norm"], at["v_conv"], at["g"], at["beta"]):
        S = g.exp()[:, None, None] * S
        delta = beta[:, None] * (v - (k[:, None] @ S)[:, 0])
        S = S + k[:, :, None] * delta[:, None]
    torch.testing.assert_close(S, at["state"], rtol=0, atol=1e-12)
    assert (at["v"] - at["v_conv"]).abs().max() > 0.1


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


def test_recording_changes_nothing(model):
    """Catches a recorder that alters what it records, and hooks left on the modules."""
    ids = tokens(2, 70)
    plain = pass_of(model, ids)
    with recording(model):
        traced = pass_of(model, ids)
    assert torch.equal(plain.logits, traced.logits)
    assert torch.equal(plain.mtp_logits, traced.mtp_logits)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_compiled_module_is_recorded(model):
    """Catches a compiled pass, whose frames have no locals, that is recorded in part without a word."""
    ids = tokens(1, 20)
    expected = recorded(model, ids)
    compiled = random_model(torch.float64, mtp_num_hidden_layers=1)
    for layer in compiled.model.layers:
        layer.mlp.compile(backend="eager")
    pass_of(compiled, ids)
    same(recorded(compiled, ids), expected)
