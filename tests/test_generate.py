"""Claim: generation samples from the distribution its options describe, stops where it should, repeats with a seed."""

import pytest
import torch
from conftest import random_model, tokens
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import qwen3_next
from qwen3_next import Sampling, read_options
from qwen3_next_checkpoints.penalties import Penalties


@pytest.fixture(scope="module")
def model():
    return random_model()


@torch.no_grad()
def test_greedy_is_the_argmax_of_full_passes(model):
    """Catches a decode loop whose cache, positions or kept logits drift from the plain forward pass."""
    ids = tokens(3, 11)
    expected = ids
    for _ in range(30):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(ids, max_new_tokens=30, do_sample=False, eos_token_id=None), expected)


@torch.no_grad()
def test_long_prompts_are_read_in_windows(model, monkeypatch):
    """Catches a window that starts anew, or overlaps the one before."""
    ids = tokens(2, 50)
    mask = torch.ones(2, 50, dtype=torch.long)
    mask[0, :19] = 0
    expected = model.generate(ids, mask, max_new_tokens=8, eos_token_id=None)
    monkeypatch.setattr(qwen3_next, "PREFILL_WINDOW", 16)
    assert torch.equal(model.generate(ids, mask, max_new_tokens=8, eos_token_id=None), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_batches_continue_as_each_alone(model, side):
    """Catches generation that goes on from a pad."""
    rows = [tokens(1, n, seed=n) for n in (5, 12, 8)]
    ids, mask = torch.zeros(3, 12, dtype=torch.long), torch.zeros(3, 12, dtype=torch.long)
    for i, row in enumerate(rows):
        span = slice(12 - row.shape[1], 12) if side == "left" else slice(0, row.shape[1])
        ids[i, span], mask[i, span] = row[0], 1
    batch = model.generate(ids, mask, max_new_tokens=10, eos_token_id=None)
    for i, row in enumerate(rows):
        alone = model.generate(row, max_new_tokens=10, eos_token_id=None)
        assert batch[i, 12:].tolist() == alone[0, row.shape[1] :].tolist()


OPTIONS = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_k": 500},
    {"top_p": 0.8},
    {"top_p": 0.0},
    {"min_p": 0.1},
    {"repetition_penalty": 1.7},
    {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_distribution_is_that_of_transformers(options):
    """Catches a filter that keeps a token too many or too few, or filters in another order."""
    logits, ids = 3 * torch.randn(4, 50, generator=torch.Generator().manual_seed(0)), tokens(4, 6) % 50
    processors = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    chain = LogitsProcessorList([kind(options[name]) for name, kind in processors.items() if name in options])
    expected = chain(ids, logits.clone()).softmax(-1)
    rule, _, penalties = read_options({"do_sample": True}, options, 6)
    penalised = Penalties(ids[:, :2], None, [], **penalties)(ids, logits)
    torch.testing.assert_close(rule.probabilities(penalised), expected)


def test_samples_follow_the_distribution():
    """Catches sampling from other probabilities than those computed."""
    rule, n = Sampling(do_sample=True, temperature=0.9, top_k=6), 40_000
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(1)).expand(n, -1)
    p = rule.probabilities(logits[:1])[0]
    drawn = rule.draw(rule.probabilities(logits), torch.Generator().manual_seed(2))
    found = drawn.bincount(minlength=12) / n
    assert ((found - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()  # five standard errors


def test_seeds(model):
    """Catches a seed that is ignored, or that fixes what should vary."""
    ids = tokens(1, 5)

    def sample(seed):
        return model.generate(ids, max_new_tokens=20, do_sample=True, eos_token_id=None, seed=seed).tolist()

    assert sample(1) == sample(1) != sample(2)
    torch.manual_seed(0)
    first = sample(None)
    assert first != sample(None)
    torch.manual_seed(0)
    assert sample(None) == first


def test_end_tokens(model):
    """Catches an end token that is not the last, a second end token that is overlooked, and a sequence that goes on."""
    ids = tokens(2, 6)
    free = model.generate(ids, max_new_tokens=25, eos_token_id=None)[:, 6:]
    first, second = free[0, 3].item(), free[1, 9].item()
    out = model.generate(ids, max_new_tokens=25, eos_token_id=[first, second])[:, 6:]
    for row, plain in zip(out.tolist(), free.tolist()):
        end = min(plain.index(token) for token in (first, second) if token in plain)
        assert row[: end + 1] == plain[: end + 1]
        assert set(row[end + 1 :]) <= {first}  # padded with the first end token
    assert out.shape[1] <= 10


def test_streamer_and_stats(model):
    """Catches a token that is streamed twice, late or never, and counts that include padding."""
    seen, stats = [], {}
    out = model.generate(tokens(1, 6), max_new_tokens=9, eos_token_id=None, streamer=seen.append, stats=stats)
    assert out[0, 6:].tolist() == seen
    assert (stats["prompt_tokens"], stats["new_tokens"]) == (6, 9)
    assert stats["prefill_seconds"] > 0 < stats["decode_seconds"]
    assert model.generate(tokens(1, 6), max_new_tokens=0).shape == (1, 6)


def test_defaults_come_from_generation_config():
    """Catches published sampling settings that are ignored, and an argument that does not override them."""
    model = random_model()
    ids = tokens(1, 6)
    greedy = model.generate(ids, max_new_tokens=12, eos_token_id=None)
    model.generation_config = {"do_sample": True, "temperature": 5.0, "eos_token_id": greedy[0, 8].item()}
    assert model.generate(ids, max_new_tokens=12, do_sample=False).shape[1] <= 9
    sampled = model.generate(ids, max_new_tokens=12, eos_token_id=None, seed=0)
    assert sampled.shape[1] == 18
    assert not torch.equal(sampled, greedy)
    assert torch.equal(model.generate(ids, max_new_tokens=12, eos_token_id=None, temperature=0), greedy)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": "a"}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"streamer": print}, "streamer"),
        ({"attention_mask": torch.zeros(2, 6)}, "attention_mask"),
    ],
)
def test_bad_options_are_named(model, options, named):
    """Catches an option outside its range that would sample from something else."""
    with pytest.raises(ValueError, match=named):
        model.generate(tokens(2, 6), **{"max_new_tokens": 2, **options})


class Letters:
    """A tokenizer whose token n is the n-th of 97 characters, so that texts and ids can be compared by eye."""

    def batch_decode(self, ids):
        return ["".join(chr(33 + n) for n in row) for row in ids.tolist()]


def test_stop_strings(model):
    """Catches a stop string found only inside one token, found in the prompt, or looked for in one row alone."""
    ids = tokens(2, 6)
    free = model.generate(ids, max_new_tokens=30, eos_token_id=None)
    texts = Letters().batch_decode(free[:, 6:])
    stops = [texts[0][4:7], texts[1][9:13], Letters().batch_decode(ids)[0][2:5]]
    out = model.generate(ids, max_new_tokens=30, eos_token_id=None, stop_strings=stops, tokenizer=Letters())
    ends = [min(text.index(stop) + len(stop) for stop in stops if stop in text) for text in texts]
    assert out.shape[1] == 6 + max(ends)
    for row, text, end in zip(Letters().batch_decode(out[:, 6:]), texts, ends):
        assert row[:end] == text[:end]
        assert set(row[end:]) <= {chr(33)}
    with pytest.raises(ValueError, match="tokenizer"):
        model.generate(ids, max_new_tokens=3, stop_strings=["a"])


def test_a_cache_that_holds_the_beginning(model):
    """Catches a conversation that reads its past twice, or at the wrong position."""
    ids, cache = tokens(1, 9), model.make_cache(1)
    once = model.generate(ids, max_new_tokens=10, eos_token_id=None, past_key_values=cache)
    assert cache.columns == 18  # the last token has not been fed
    longer = torch.cat([once, tokens(1, 4, seed=1)], dim=1)
    on = model.generate(longer, max_new_tokens=10, eos_token_id=None, past_key_values=cache)
    assert torch.equal(on, model.generate(longer, max_new_tokens=10, eos_token_id=None))
    with pytest.raises(ValueError, match="the cache holds"):
        model.generate(ids, max_new_tokens=1, past_key_values=cache)


def test_repetition_penalty_leaves_out_padding(model):
    """Catches pads that count as tokens the sequence holds."""
    row = tokens(1, 6)
    padded, mask = torch.cat([torch.arange(97)[None], row], dim=1), torch.tensor([[0] * 97 + [1] * 6])
    options = {"max_new_tokens": 12, "repetition_penalty": 3.0, "eos_token_id": None}
    expected = model.generate(row, **options)[:, 6:]
    assert torch.equal(model.generate(padded, mask, **options)[:, 103:], expected)
    assert expected[0].unique().numel() > 8  # it does penalise


def test_repetition_penalty_of_frequent_tokens(model):
    """Catches a count of occurrences that overflows: a token that stands in the prompt 200 times is penalised, too."""
    ids = torch.full((1, 200), 7)
    model.lm_head.weight.data, old = model.lm_head.weight.data.clone(), model.lm_head.weight.data
    try:
        hidden = model.model(ids).last_hidden_state[0, -1]
        model.lm_head.weight.data[7] = 5 * hidden / hidden.norm()  # by far the likeliest next token
        assert model.generate(ids, max_new_tokens=1, eos_token_id=None)[0, -1] == 7
        assert model.generate(ids, max_new_tokens=1, eos_token_id=None, repetition_penalty=50.0)[0, -1] != 7
    finally:
        model.lm_head.weight.data = old


def test_narrow_ids_and_a_null_pad_token(model):
    """Catches a crash on int32 ids, boolean masks, or a pad_token_id that generation_config.json sets to null."""
    ids = tokens(2, 9)
    fixed = {"max_new_tokens": 5, "do_sample": False, "repetition_penalty": 1.2}
    expected = model.generate(ids, eos_token_id=None, **fixed)
    mask = torch.ones(2, 9, dtype=torch.bool)
    assert torch.equal(model.generate(ids.int(), mask, eos_token_id=None, **fixed), expected)
    model.generation_config = {"pad_token_id": None}
    try:
        assert torch.equal(model.generate(ids, eos_token_id=None, **fixed), expected)
    finally:
        model.generation_config = {}
