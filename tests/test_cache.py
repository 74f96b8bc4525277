"""Claim: one forward pass for prefill, continuation and decoding; padding on either side changes nothing."""

import pytest
import torch
from conftest import random_model, tokens

ROWS = [(0, 30), (4, 20), (7, 27)]  # first column and number of tokens of each sequence, in 34 columns
T = 34


@pytest.fixture(scope="module")
def model():
    return random_model()


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.zeros(len(ROWS), T, dtype=torch.long)
    for row, (start, length) in enumerate(ROWS):
        mask[row, start : start + length] = 1
    return tokens(len(ROWS), T), mask


def check_alone(model, ids, mask, logits, atol=1e-11):
    for row, (start, length) in enumerate(ROWS):
        span = slice(start, start + length)
        alone = model(ids[row : row + 1, span]).logits[0]
        torch.testing.assert_close(logits[row, span], alone, rtol=0, atol=atol)


@pytest.mark.parametrize("split", [(130,), (1,) * 130, (3, 64, 1, 62), (129, 1)])
@pytest.mark.parametrize("delta_rule", ["chunk", "recurrent"])
@torch.no_grad()
def test_any_split_gives_the_same_logits(model, split, delta_rule):
    """Catches state that is lost, rounded or miscounted between calls; in float64, so nothing may drop to float32."""
    for layer in model.model.layers:
        if hasattr(layer, "linear_attn"):
            layer.linear_attn.delta_rule = delta_rule
    ids = tokens(2, 130)
    full, cache = model(ids).logits, model.make_cache(2)
    pieces = [model(piece, past_key_values=cache).logits for piece in ids.split(split, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), full, rtol=0, atol=1e-11)
    assert cache.seq_len.tolist() == [130, 130]


@torch.no_grad()
def test_padding_on_either_side(model):
    """Catches pads that leak through the convolution, the decay or attention, and positions that count them."""
    ids, mask = padded_batch()
    check_alone(model, ids, mask, model(ids, attention_mask=mask).logits)


@pytest.mark.parametrize("split", [(10, 24), (1,) * T, (5, 1, 1, 27)])
@pytest.mark.parametrize("whole_mask", [False, True])
@torch.no_grad()
def test_padding_in_pieces_then_on(model, split, whole_mask):
    """Catches right padding that reaches the state, pads fed one at a time, continuation at a wrong position."""
    ids, mask = padded_batch()
    cache, pieces, end = model.make_cache(len(ROWS)), [], 0
    for width in split:
        start, end = end, end + width
        new_mask = mask[:, :end] if whole_mask else mask[:, start:end]
        pieces.append(model(ids[:, start:end], attention_mask=new_mask, past_key_values=cache).logits)
    check_alone(model, ids, mask, torch.cat(pieces, dim=1))
    assert cache.seq_len.tolist() == [length for _, length in ROWS]
    more = tokens(len(ROWS), 6, seed=1)
    pieces = [model(piece, past_key_values=cache).logits for piece in more.split([4, 1, 1], dim=1)]
    for row, (start, length) in enumerate(ROWS):
        alone = torch.cat([ids[row, start : start + length], more[row]])[None]
        expected = model(alone).logits[0, -6:]
        torch.testing.assert_close(torch.cat(pieces, dim=1)[row], expected, rtol=0, atol=1e-11)


@torch.no_grad()
def test_outputs_stay_where_the_inputs_were(model):
    """Catches hidden states or router logits of a padded batch in the model's inner order."""
    ids, mask = padded_batch()
    out = model(ids, attention_mask=mask, output_hidden_states=True, output_router_logits=True)
    start, length = ROWS[2]
    alone = model(ids[2:, start : start + length], output_hidden_states=True, output_router_logits=True)
    for batch, single in zip(out.hidden_states, alone.hidden_states):
        torch.testing.assert_close(batch[2, start : start + length], single[0], rtol=0, atol=1e-11)
    for batch, single in zip(out.router_logits, alone.router_logits):
        batch = batch.view(len(ROWS), T, -1)
        torch.testing.assert_close(batch[2, start : start + length], single, rtol=0, atol=1e-11)


@torch.no_grad()
def test_positions_given_by_hand(model):
    """Catches position_ids that are ignored, or that do not follow their tokens in a padded batch."""
    ids, mask = padded_batch()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    torch.testing.assert_close(
        model(ids, attention_mask=mask, position_ids=positions).logits[2, 7:],
        model(ids, attention_mask=mask).logits[2, 7:],
        rtol=0,
        atol=1e-11,
    )
    shifted = model(ids[:1], position_ids=torch.arange(T)[None] * 3).logits
    assert (shifted - model(ids[:1]).logits).abs().max() > 0.1


@torch.no_grad()
def test_clone_is_independent(model):
    """Catches a clone that shares a buffer which decoding overwrites."""
    ids, more = tokens(2, 40), tokens(2, 5, seed=1)
    cache = model.make_cache(2)
    model(ids, past_key_values=cache)
    copy = cache.clone()
    expected = model(more, past_key_values=cache).logits
    model(tokens(2, 50, seed=2), past_key_values=cache)
    assert copy.seq_len.tolist() == [40, 40]
    torch.testing.assert_close(model(more, past_key_values=copy).logits, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_embeddings_and_kept_logits(model):
    """Catches inputs_embeds or logits_to_keep that take another path."""
    ids = tokens(2, 20)
    full = model(ids).logits
    embeds = model.model.embed_tokens(ids)
    torch.testing.assert_close(model(inputs_embeds=embeds, logits_to_keep=3).logits, full[:, -3:], rtol=0, atol=1e-12)


def test_bad_inputs_are_refused(model):
    """Catches inputs that would be answered wrongly in silence."""
    ids, cache = tokens(2, 8), model.make_cache(2)
    holes = torch.tensor([[1, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
    for message, call in {
        "holes": lambda: model(ids, attention_mask=holes),
        "attention_mask has shape": lambda: model(ids, attention_mask=torch.ones(2, 9)),
        "either input_ids or inputs_embeds": lambda: model(),
        "the cache holds 2 sequences, the input 1": lambda: model(ids[:1], past_key_values=cache),
        "vocab_size": lambda: model(ids + 97),
        "none empty": lambda: model(ids[:, :0]),
        "logits_to_keep": lambda: model(ids, labels=ids, logits_to_keep=1),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    model(ids, past_key_values=cache)
    with pytest.raises(ValueError, match="differs from the one"):
        model(ids, attention_mask=torch.cat([torch.zeros(2, 8), torch.ones(2, 8)], dim=1), past_key_values=cache)


@torch.no_grad()
def test_past_the_longest_trained_position_warns_once():
    """Catches a crash, silence, or a warning for every token."""
    model = random_model(max_position_embeddings=16)
    with pytest.warns(UserWarning, match="max_position_embeddings") as record:
        cache = model.make_cache(1)
        model(tokens(1, 17), past_key_values=cache)
        model(tokens(1, 1), past_key_values=cache)
    assert len(record) == 1
