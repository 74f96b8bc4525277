"""Claim: each sequence of a batch is as if it were alone: padded, packed, cached, ended early; or it is refused."""

import pytest
import torch
from conftest import random_model, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

SLOW = settings(max_examples=25, deadline=None)
WITHIN = {"rtol": 0, "atol": 1e-9}


@pytest.fixture(scope="module")
def model():
    return random_model(mtp_num_hidden_layers=1, num_hidden_layers=4)


def counted(lengths: list[int]) -> torch.Tensor:
    """Positions of sequences packed into a row, (1, T)."""
    return torch.cat([torch.arange(n) for n in lengths])[None]


def numbers(lengths: list[int]) -> torch.Tensor:
    """The mask that counts them, 1 1 1 2 2, (1, T)."""
    return torch.repeat_interleave(torch.arange(len(lengths)) + 1, torch.tensor(lengths))[None]


lengths_of_rows = st.lists(st.integers(1, 40), min_size=2, max_size=5)


@SLOW
@given(
    lengths=lengths_of_rows, seed=st.integers(0, 99), rule=st.sampled_from(["chunk", "recurrent"]), how=st.booleans()
)
@torch.no_grad()
def test_packed_sequences_are_as_if_alone(model, lengths, seed, rule, how):
    """Catches a state, a tap of the convolution, a key or a position that comes from the sequence before."""
    for layer in model.model.layers:
        if hasattr(layer, "linear_attn"):
            layer.linear_attn.delta_rule = rule
    rows = [lengths, lengths[::-1]]  # two rows, packed in another way each
    ids = tokens(2, sum(lengths), seed=seed)
    if how:
        out = model(ids, position_ids=torch.cat([counted(row) for row in rows]), output_mtp_logits=True)
    else:
        out = model(ids, torch.cat([numbers(row) for row in rows]), output_mtp_logits=True)
    assert out.past_key_values is None
    for row, sizes in enumerate(rows):
        ends = torch.tensor(sizes).cumsum(0).tolist()
        for n, end in zip(sizes, ends):
            alone = model(ids[row : row + 1, end - n : end], output_mtp_logits=n > 1)
            torch.testing.assert_close(out.logits[row, end - n : end], alone.logits[0], **WITHIN)
            if n > 1:
                torch.testing.assert_close(out.mtp_logits[row, end - n : end - 1], alone.mtp_logits[0], **WITHIN)


@SLOW
@given(lengths=st.lists(st.integers(3, 40), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_losses_and_gradients_of_packed_sequences(model, lengths, seed):
    """Catches a label predicted across a border, and a gradient that flows back through one."""
    ids = tokens(1, sum(lengths), seed=seed)
    options = {"output_mtp_logits": True, "output_router_logits": False}
    parameters = [p for p in model.parameters() if p.requires_grad]
    packed = model(ids, position_ids=counted(lengths), labels=ids, **options)
    found = torch.autograd.grad(packed.loss, parameters, allow_unused=True)
    loss = mtp = 0
    for piece in ids.split(lengths, dim=1):
        alone, n = model(piece, labels=piece, **options), piece.shape[1]
        factor = model.config.mtp_loss_scaling_factor
        loss = loss + (alone.loss - factor * alone.mtp_loss) * (n - 1) / (sum(lengths) - len(lengths))
        mtp = mtp + alone.mtp_loss * (n - 2) / (sum(lengths) - 2 * len(lengths))
    total = loss + model.config.mtp_loss_scaling_factor * mtp
    torch.testing.assert_close(packed.loss, total, **WITHIN)
    for ours, theirs in zip(found, torch.autograd.grad(total, parameters, allow_unused=True)):
        if ours is not None or theirs is not None:  # an expert that nobody chose has none
            zero = torch.zeros_like(theirs if ours is None else ours)
            a, b = (zero if x is None else x for x in (ours, theirs))
            torch.testing.assert_close(a, b, **WITHIN)


@SLOW
@given(
    spans=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 38), max_size=3),
    whole=st.booleans(),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_any_padding_in_any_pieces(model, spans, cuts, whole, seed):
    """Catches pads that leak, and pieces that forget, wherever the cuts fall."""
    T = max(start + length for start, length in spans)
    mask = torch.zeros(len(spans), T, dtype=torch.long)
    for row, (start, length) in enumerate(spans):
        mask[row, start : start + length] = 1
    ids, cache, pieces = tokens(len(spans), T, seed=seed), model.make_cache(len(spans)), []
    edges = [0, *sorted({cut for cut in cuts if cut < T}), T]
    for start, end in zip(edges, edges[1:]):
        given_mask = mask[:, :end] if whole else mask[:, start:end]
        pieces.append(model(ids[:, start:end], given_mask, past_key_values=cache).logits)
    logits = torch.cat(pieces, dim=1)
    assert cache.seq_len.tolist() == [length for _, length in spans]
    for row, (start, length) in enumerate(spans):
        alone = model(ids[row : row + 1, start : start + length]).logits[0]
        torch.testing.assert_close(logits[row, start : start + length], alone, **WITHIN)


@SLOW
@given(
    lengths=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    side=st.sampled_from(["left", "right"]),
    ends=st.sets(st.integers(0, 96), min_size=10, max_size=60),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_a_batch_goes_on_after_early_ends(model, lengths, side, ends, seed):
    """Catches what was sampled after a sequence's end and stays in the cache as if it had been said."""
    T, B = max(lengths), len(lengths)
    ids, mask = tokens(B, T, seed=seed), torch.zeros(B, T, dtype=torch.long)
    for row, n in enumerate(lengths):
        mask[row, T - n :] = 1
        mask[row] = mask[row] if side == "left" else mask[row].flip(0)
    cache = model.make_cache(B)
    options = {"max_new_tokens": 6, "do_sample": False}
    out = model.generate(ids, mask, eos_token_id=sorted(ends), past_key_values=cache, **options)
    new = out[:, T:]
    ended = torch.isin(new, torch.tensor(sorted(ends)))
    real = (ended.cumsum(1) - ended.long() == 0).long()  # up to a sequence's first end, that included
    full = torch.cat([mask, real, torch.ones(B, 3, dtype=torch.long)], dim=1)
    more = torch.cat([out, tokens(B, 3, seed=seed + 1)], dim=1)
    expected = [
        model.generate(more[row][full[row] > 0][None], eos_token_id=None, **options)[0, -6:] for row in range(B)
    ]
    went_on = model.generate(more, full, eos_token_id=None, past_key_values=cache, **options)
    assert went_on[:, -6:].tolist() == [row.tolist() for row in expected]
    if not full.all():
        with pytest.raises(ValueError, match="differs from the one"):
            model.generate(torch.cat([went_on, more[:, -1:]], 1), past_key_values=cache, **options)


@torch.no_grad()
def test_what_does_not_fit_is_refused(model):
    """Catches inputs that are broadcast, cut or counted as something else without a word."""
    ids = tokens(2, 8)
    ones = torch.ones_like(ids)

    def after(mask=None):
        cache = model.make_cache(2)
        model(ids, mask, past_key_values=cache)
        return cache

    def changed(x, row, column, value):
        x = x.clone()
        x[row, column] = value
        return x

    left = changed(ones, 0, slice(0, 2), 0)
    cases = {
        "has shape (1, 1), expected (2, 8) or (1, 8)": {"position_ids": torch.zeros(1, 1, dtype=torch.long)},
        "has shape (2, 9)": {"position_ids": torch.zeros(2, 9, dtype=torch.long)},
        "differ between their axes": {"position_ids": torch.arange(24).view(3, 1, 8)},
        "other numbers than": {"attention_mask": changed(ones, 0, 1, -1)},
        "other numbers": {"attention_mask": ones * 0.5},
        "has holes": {"attention_mask": changed(ones, 0, 3, 0)},
        "has shape (2, 7)": {"attention_mask": ones[:, 1:]},
        "can't have padding": {"attention_mask": changed(changed(ones, 1, slice(4, 8), 2), 0, 0, 0)},
        "packed sequences take no cache": {
            "attention_mask": changed(ones, 1, slice(4, 8), 2),
            "past_key_values": after(),
        },
        "take no cache, but use_cache": {"attention_mask": changed(ones, 1, slice(4, 8), 2), "use_cache": True},
        "differs from the one": {"attention_mask": torch.cat([left, ones], 1), "past_key_values": after()},
        "differs from the": {"attention_mask": torch.cat([left.flip(1), ones], 1), "past_key_values": after(left)},
    }
    for message, options in cases.items():
        with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
            model(ids, **options)
    short = model.make_cache(2)
    short.layers.pop()
    with pytest.raises(ValueError, match="the cache has 3 layers, but there are 4"):
        model(ids, past_key_values=short)
    for message, mask in {
        r"has shape \(2, 7\)": ones[:, 1:],
        "has holes": changed(ones, 0, 3, 0),
        "several sequences in a row": changed(ones, 1, slice(4, 8), 2),
        "without new tokens": changed(ones, 0, slice(0, 8), 0),
    }.items():
        with pytest.raises(ValueError, match=message):
            model.generate(ids, mask, max_new_tokens=1)


@torch.no_grad()
def test_equal_axes_of_positions_are_one(model):
    """Catches a crash, or other positions, for the three equal axes that Qwen3.5's code passes."""
    ids = tokens(2, 8)
    positions = torch.arange(8).expand(3, 1, 8)
    torch.testing.assert_close(model(ids, position_ids=positions).logits, model(ids).logits, rtol=0, atol=0)


@torch.no_grad()
def test_a_rollback_that_fails_changes_nothing(model, monkeypatch):
    """Catches negative and repeated rollbacks, and one that is interrupted and leaves half of the layers changed."""
    ids = tokens(1, 8)
    cache = model.make_cache(1)
    model(ids[:, :4], past_key_values=cache)
    cache.reversible = True
    model(ids[:, 4:], past_key_values=cache)
    before = cache.clone()
    for tokens_back in (-1, 5, 9):
        with pytest.raises(ValueError, match="tokens"):
            cache.rollback(tokens_back)
    calls = []

    def interrupted(self, tokens):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, tokens)

    import qwen3_next

    original = qwen3_next.DeltaNetCache.without_last
    monkeypatch.setattr(qwen3_next.DeltaNetCache, "without_last", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.rollback(2)
    monkeypatch.undo()
    for ours, theirs in zip(cache.layers, before.layers):
        for name, x in vars(theirs).items():
            assert not isinstance(x, torch.Tensor) or torch.equal(getattr(ours, name), x)
    cache.rollback(2)
    with pytest.raises(ValueError, match="reversible"):
        cache.rollback(1)
    expected = model(ids[:, :6], use_cache=True).past_key_values
    a, b = (model(ids[:, 6:], past_key_values=c).logits for c in (cache, expected))
    torch.testing.assert_close(a, b, **WITHIN)


def test_a_cache_comes_by_itself_but_not_in_training(model):
    """Catches the usual loop, `out = model(new, past_key_values=past)`, that runs without context."""
    ids = tokens(1, 6)
    with torch.no_grad():
        past, pieces = None, []
        for token in ids.split(1, dim=1):
            out = model(token, past_key_values=past)
            past = out.past_key_values
            pieces.append(out.logits)
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids, use_cache=False).logits, **WITHIN)
        assert model(ids, use_cache=False).past_key_values is None
        assert model(ids, labels=ids).past_key_values is None
        assert model.model(ids).past_key_values is not None
    model.train()
    try:
        assert model(ids).past_key_values is None
        cache = model.make_cache(1)
        assert model(ids, past_key_values=cache, use_cache=False).past_key_values is cache
        assert cache.columns == 6
    finally:
        model.eval()
