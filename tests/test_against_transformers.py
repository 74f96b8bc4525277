"""Claim: with the same weights the model computes what transformers does: logits, losses, gradients, cached or not."""

import copy

import pytest
import torch
from conftest import BASE, VARIANTS, random_model, tokens
from transformers import Qwen3NextConfig as TheirConfig
from transformers import Qwen3NextForCausalLM as TheirModel


def their_model(ours: torch.nn.Module, **fields) -> TheirModel:
    """transformers' model with our weights; it stacks the experts' matrices into two tensors a layer."""
    fields = copy.deepcopy({**BASE, **fields})  # it writes into the dicts it is given
    theirs = TheirModel(TheirConfig(**fields)).to(ours.dtype).eval()
    state = {}
    for key, value in ours.state_dict().items():
        layer, found, rest = key.partition(".mlp.experts.")
        if not found:
            state[key] = value
        elif rest.endswith("down_proj.weight"):
            state.setdefault(layer + found + "down_proj", []).append(value)
        elif rest.endswith("up_proj.weight"):
            gate = ours.state_dict()[key.replace("up_proj", "gate_proj")]
            state.setdefault(layer + found + "gate_up_proj", []).append(torch.cat([gate, value]))
    theirs.load_state_dict({k: torch.stack(v) if isinstance(v, list) else v for k, v in state.items()})
    return theirs


def pair(**fields):
    ours = random_model(torch.float32, **fields)
    return ours, their_model(ours, **fields)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_logits(name):
    """Catches any term of the forward pass that is wrong, missing or in another order: 200 tokens are four chunks."""
    ours, theirs = pair(**VARIANTS[name])
    ids = tokens(2, 200)
    expected = theirs(ids, use_cache=False).logits
    assert expected.std() > 0.5
    error = (ours(ids).logits - expected).abs().max() / expected.std()
    assert error < 1e-3, f"largest difference {error:.1e} standard deviations"


@pytest.mark.parametrize("split", [(200,), (7, 1, 64, 1, 1, 65, 61), (1,) * 200, (64, 64, 72), (199, 1)])
@torch.no_grad()
def test_cached_logits(split):
    """Catches a convolution window, state, key or position that does not carry over between calls."""
    ours, theirs = pair()
    ids = tokens(2, 200)
    expected, cache = theirs(ids, use_cache=False).logits, ours.make_cache(2)
    logits = torch.cat([ours(piece, past_key_values=cache).logits for piece in ids.split(split, dim=1)], dim=1)
    assert (logits - expected).abs().max() / expected.std() < 1e-3


@pytest.mark.parametrize("name", ["base", "decoder_sparse_step", "raw_topk_weights", "attention_bias", "yarn"])
def test_losses_and_every_gradient(name):
    """Catches a label shift, a balance loss over the wrong tokens or choices, and a path cut off from its gradient."""
    fields = {**VARIANTS[name], "router_aux_loss_coef": 0.3}
    ours, theirs = pair(**fields)
    ids = tokens(2, 70)
    labels = ids.masked_fill(tokens(2, 70, seed=1) < 20, -100)
    results = [model(ids, labels=labels, output_router_logits=True) for model in (ours, theirs)]
    for ours_value, theirs_value in zip(*([r.loss, r.aux_loss, *r.router_logits] for r in results)):
        torch.testing.assert_close(ours_value, theirs_value, rtol=2e-4, atol=2e-4)
    for result in results:
        result.loss.backward()
    expected = dict(theirs.named_parameters())
    for key, p in ours.named_parameters():
        layer, found, rest = key.partition(".mlp.experts.")
        if found:
            e, kind, _ = rest.split(".")
            stacked = expected[layer + found + ("down_proj" if kind == "down_proj" else "gate_up_proj")].grad[int(e)]
            half = stacked.shape[0] // 2
            their_grad = {"down_proj": stacked, "gate_proj": stacked[:half], "up_proj": stacked[half:]}[kind]
            grad = torch.zeros_like(p) if p.grad is None else p.grad  # an expert that no token chose
        else:
            grad, their_grad = p.grad, expected[key].grad
        scale = their_grad.abs().max().clamp(min=1e-4)
        assert ((grad - their_grad).abs().max() / scale) < 5e-3, key


@torch.no_grad()
def test_balance_loss_leaves_out_padding():
    """Catches padding that counts as tokens in the load-balancing loss."""
    ours, theirs = pair()
    ids, mask = tokens(2, 40), torch.ones(2, 40, dtype=torch.long)
    mask[0, :15] = 0
    a, b = (model(ids, attention_mask=mask, output_router_logits=True).aux_loss for model in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    kept = ours(ids, attention_mask=mask, output_router_logits=True, logits_to_keep=1).aux_loss
    torch.testing.assert_close(kept, a)


@torch.no_grad()
def test_hidden_states():
    """Catches hidden states that are shifted by a layer, or a last one without the final norm."""
    ours, theirs = pair()
    ids = tokens(1, 30)
    a, b = (model(ids, output_hidden_states=True).hidden_states for model in (ours, theirs))
    assert len(a) == len(b) == BASE["num_hidden_layers"] + 1
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_bfloat16_is_no_further_from_float32_than_theirs():
    """Catches a norm, softmax, decay or state that is computed in half precision."""
    ids, squares = tokens(4, 150), [0.0, 0.0]
    for seed in range(8):  # one model's errors differ by a tenth either way
        models = pair(seed=seed)
        exact = models[0](ids).logits
        for i, model in enumerate(models):
            squares[i] += (model.to(torch.bfloat16)(ids).logits.float() - exact).square().mean().item()
    ours, theirs = ((square / 8) ** 0.5 for square in squares)
    assert ours <= 1.05 * theirs, f"rms {ours:.4f} against {theirs:.4f}"


@torch.no_grad()
def test_greedy_tokens():
    """Catches generation that feeds, counts or stops differently."""
    ours, theirs = pair()
    ids = tokens(1, 9)
    a = ours.generate(ids, max_new_tokens=40, do_sample=False)
    b = theirs.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0)
    assert a.tolist() == b.tolist()
