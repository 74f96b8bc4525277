"""Claim: every parameter is where PyTorch and the libraries on top of it look for it, the experts' included."""

import pytest
import torch
from accelerate import cpu_offload
from conftest import random_model, tokens
from peft import LoraConfig, get_peft_model
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.func import functional_call, grad

EXPERT = "model.layers.1.mlp.experts.3.up_proj"


@pytest.fixture
def model():
    return random_model(mtp_num_hidden_layers=1)


def test_every_name_leads_to_its_parameter(model):
    """Catches names with dots in them that no module answers to: "Experts has no attribute `0`"."""
    for name, p in model.named_parameters():
        assert model.get_parameter(name) is p, name
    state = get_model_state_dict(model)
    assert state.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(state[name], p) for name, p in model.named_parameters())


def test_functional_calls_and_gradients(model):
    """Catches parameters that a functional call can't replace, and gradients that miss them."""
    ids = tokens(2, 40)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    weights[f"{EXPERT}.weight"] *= 1.5
    found = functional_call(model, weights, (ids,)).logits
    assert (found - model(ids).logits).abs().max() > 1e-3

    def loss(weights):
        return functional_call(model, weights, (ids,), {"labels": ids, "output_mtp_logits": True}).loss

    gradients = grad(loss)(weights)
    model.load_state_dict(weights)
    model(ids, labels=ids, output_mtp_logits=True).loss.backward()
    for name, p in model.named_parameters():
        expected = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(gradients[name], expected, rtol=0, atol=1e-12)
    assert gradients[f"{EXPERT}.weight"].abs().max() > 0


@torch.no_grad()
def test_weights_that_come_when_a_module_is_called(model):
    """Catches a weight that is read by another module than its own: accelerate's hooks bring it for its own only."""
    ids = tokens(1, 20)
    logits, mtp_logits = model(ids).logits, model(ids, output_mtp_logits=True).mtp_logits
    text = model.generate(ids, max_new_tokens=6, num_draft_tokens=2)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert torch.equal(model(ids).logits, logits)
    assert torch.equal(model(ids, output_mtp_logits=True).mtp_logits, mtp_logits)
    assert torch.equal(model.generate(ids, max_new_tokens=6, num_draft_tokens=2), text)


def test_an_adapter_on_one_expert(model):
    """Catches an adapter that is attached and never called, or refused: experts have to be modules, and be called."""
    ids = tokens(1, 40)
    plain = model(ids, output_router_logits=True)
    chosen = (plain.router_logits[1].topk(3).indices == 3).any(-1)  # the tokens that go to this expert
    adapted = get_peft_model(model, LoraConfig(target_modules=[EXPERT], r=2, init_lora_weights=False))
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trained) == 2 and all(EXPERT in name for name in trained)
    logits = adapted(ids).logits[0]
    first = chosen.nonzero()[0].item()
    assert torch.equal(logits[:first], plain.logits[0, :first])
    assert (logits[first] - plain.logits[0, first]).abs().max() > 1e-3
    adapted(ids, labels=ids).loss.backward()
    assert all(adapted.get_parameter(name).grad.abs().max() > 0 for name in trained)
    with adapted.disable_adapter():
        assert torch.equal(adapted(ids).logits, plain.logits)
