"""Claim: speculative decoding changes the speed and nothing else: neither tokens nor distribution nor cache."""

import pytest
import torch
from conftest import random_model, tokens

from qwen3_next import Qwen3NextTokenizer, Sampling, recurrent_gated_delta_rule

# Few tokens, so that drafts of an untrained MTP layer are accepted about as often as not
FEW = {"vocab_size": 3, "mtp_num_hidden_layers": 1}


@pytest.fixture(scope="module")
def model():
    return random_model(**FEW)


def prompt(length, seed=0):
    return tokens(1, length, seed=seed) % 3


def assert_same_cache(found, expected, atol=1e-12):
    """The passes differ in how many rows a product has, so the last bits may, too."""
    assert (found.columns, found.seq_len.tolist()) == (expected.columns, expected.seq_len.tolist())
    n = expected.columns
    for a, b in zip(found.layers, expected.layers, strict=True):
        pairs = [(a.window, b.window), (a.state, b.state)] if hasattr(a, "state") else [(a.k, b.k), (a.v, b.v)]
        for x, y in pairs if hasattr(a, "state") else [(x[:, :, :n], y[:, :, :n]) for x, y in pairs]:
            torch.testing.assert_close(x, y, rtol=0, atol=atol)


@pytest.mark.parametrize(("n", "options"), [*((n, {}) for n in range(1, 6)), (3, {"repetition_penalty": 1.5})])
def test_greedy_tokens_and_cache_are_those_of_plain_decoding(model, n, options):
    """Catches a wrong rollback, position or verification row, drafts past the limit, and a cache that keeps drafts."""
    accepted = set()
    for length in (1, 2, 3, 5, 17, 70):
        for new in (1, 2, 3, 4, 7, 25):
            ids, stats = prompt(length, seed=length), {}
            plain, drafting = model.make_cache(1), model.make_cache(1)
            fixed = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, **options}
            expected = model.generate(ids, past_key_values=plain, **fixed)
            found = model.generate(ids, past_key_values=drafting, num_draft_tokens=n, stats=stats, **fixed)
            assert found.tolist() == expected.tolist(), (length, new)
            assert_same_cache(drafting, plain)
            assert stats["new_tokens"] == new
            assert len(stats["acceptance_by_position"]) == min(
                n, max(new - 2, 0)
            )  # one is drawn from the prompt's logits, one verified last
            accepted.add(stats["accepted"])
    assert max(accepted) > 5, "no draft was ever accepted: this shows nothing"


@pytest.mark.parametrize("keep", [0, 1, 2, 4, 5])
@torch.no_grad()
def test_rollback_restores_the_cache(keep):
    """Catches a conv window or a state after the wrong token; bit for bit where the same products are computed."""
    model = random_model()
    ids, drafted = tokens(2, 20), tokens(2, 5, seed=1)
    cache = model.make_cache(2)
    model(ids, past_key_values=cache)
    expected = cache.clone()
    cache.reversible = True
    model(drafted, past_key_values=cache)
    cache.rollback(5 - keep)
    if keep == 0:
        assert_same_cache(cache, expected, atol=0)
    for i in range(keep):
        model(drafted[:, i : i + 1], past_key_values=expected)
    assert_same_cache(cache, expected)
    more = tokens(2, 3, seed=2)
    a, b = (model(more, past_key_values=c).logits for c in (cache, expected))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@torch.no_grad()
def test_rollback_is_exact_where_the_arithmetic_is_the_same():
    """Catches a state that was rebuilt from rounded or renormalised inputs: the same recurrence, the same bits."""
    model = random_model(full_attention_interval=9)
    model.model.layers[0].linear_attn.delta_rule = "recurrent"
    layer, x = model.model.layers[0].linear_attn, torch.randn(1, 6, 48, dtype=torch.float64)
    caches = [layer.make_cache(1), layer.make_cache(1)]
    outer = model.make_cache(1)
    outer.reversible = True
    step = model.model._step(x, None, None, outer)
    layer(x, step, caches[0])
    caches[0].rollback(2)
    q, k, v, g, beta = (y[:, :4] for y in caches[0].last[3])
    _, state = recurrent_gated_delta_rule(q, k, v, g=g, beta=beta)
    assert torch.equal(caches[0].state, state)


def test_only_a_reversible_pass_can_be_taken_back(model):
    """Catches a rollback that silently leaves the drafts in the state."""
    cache = model.make_cache(1)
    with torch.no_grad():
        model(prompt(4), past_key_values=cache)
    with pytest.raises(ValueError, match="reversible"):
        cache.rollback(1)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_acceptance_rule_is_exact(n):
    """Catches a draft kept too often, a remainder not renormalised, and a token drawn at the wrong position."""
    generator, draws, vocab = torch.Generator().manual_seed(0), 100_000, 5
    rule = Sampling(do_sample=True)
    p = torch.rand(n + 1, vocab, generator=generator, dtype=torch.float64) ** 3
    q = torch.rand(n, vocab, generator=generator, dtype=torch.float64) ** 3
    p[0, 1] = q[0, 2] = 0  # never right; never drafted
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    drafts = torch.multinomial(q, draws, replacement=True, generator=generator).T  # (draws, n)
    accepted, token = rule.verify(p.expand(draws, -1, -1), q.expand(draws, -1, -1), drafts, generator)
    for i in range(n + 1):  # the token at position i, of the rounds that came that far, is distributed as p_i
        reached = accepted >= i
        out = torch.where(accepted == i, token, drafts[:, min(i, n - 1)])[reached]
        found, m = out.bincount(minlength=vocab) / len(out), len(out)
        assert ((found - p[i]).abs() <= 5 * (p[i] * (1 - p[i]) / m).sqrt()).all(), (i, found, p[i])
    overlap = torch.minimum(p[:n], q).sum(-1)  # the probability that a draft stands
    rate = (accepted >= 1).double().mean()
    assert abs(rate - overlap[0]) < 5 * (overlap[0] * (1 - overlap[0]) / draws) ** 0.5


@pytest.mark.parametrize(
    "options", [{"temperature": 1.3}, {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.4}, {"top_k": 2}]
)
@torch.no_grad()
def test_sampled_texts_are_distributed_as_the_models(options):
    """Catches drafts and verification that see different options or seen tokens: all texts of three tokens, counted."""
    model = random_model(layer_types=["linear_attention", "full_attention"], num_hidden_layers=2, num_experts=0, **FEW)
    draws, ids, rule = 2000, prompt(3, seed=4), Sampling(do_sample=True, **options)
    expected = {}
    texts = torch.cartesian_prod(*[torch.arange(3)] * 3)
    for text in texts:
        whole, chance = torch.cat([ids, text[None]], dim=1), 1.0
        logits = model(whole).logits[0]
        for i, token in enumerate(text):
            seen = torch.zeros(1, 3, dtype=torch.bool)
            seen[0, whole[0, : 3 + i]] = True
            chance *= rule.probabilities(logits[None, 2 + i], seen)[0, token].item()
        expected[tuple(text.tolist())] = chance
    assert sum(expected.values()) == pytest.approx(1)
    torch.manual_seed(0)
    counts, stats = dict.fromkeys(expected, 0), {}
    for _ in range(draws):
        out = model.generate(ids, max_new_tokens=3, num_draft_tokens=2, eos_token_id=None, stats=stats, **options)
        counts[tuple(out[0, 3:].tolist())] += 1
    for text, chance in expected.items():
        assert abs(counts[text] / draws - chance) <= 5 * (chance * (1 - chance) / draws) ** 0.5 + 1e-9, text


@pytest.mark.parametrize("n", [2, 5])
def test_end_tokens_within_a_draft(model, n):
    """Catches tokens returned or streamed after the end, and a cache that holds them."""
    ended = 0
    for seed in range(8):
        for eos in (0, [1, 2]):
            ids, streamed, caches = prompt(4, seed), [], [model.make_cache(1), model.make_cache(1)]
            fixed = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": eos}
            expected = model.generate(ids, past_key_values=caches[0], **fixed)
            options = {"num_draft_tokens": n, "streamer": streamed.append, "past_key_values": caches[1]}
            assert model.generate(ids, **fixed, **options).tolist() == expected.tolist()
            assert streamed == expected[0, 4:].tolist()
            assert_same_cache(caches[1], caches[0])
            ended += 1 < len(streamed) < 12
    assert ended > 2


def test_stop_strings_within_a_draft(tiny):
    """Catches a stop string that is looked for behind whole drafts only."""
    tokenizer = Qwen3NextTokenizer.from_pretrained(tiny)
    model = random_model(vocab_size=len(tokenizer), mtp_num_hidden_layers=1)
    ids = torch.tensor([tokenizer.encode("Once upon a time")])
    fixed = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "tokenizer": tokenizer}
    text = tokenizer.decode(model.generate(ids, **fixed)[0, ids.shape[1] :])
    stop = text[len(text) // 2 :][:3]
    expected = model.generate(ids, stop_strings=[stop], **fixed)
    assert model.generate(ids, stop_strings=[stop], num_draft_tokens=4, **fixed).tolist() == expected.tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_prompt(model, side):
    """Catches padding that the MTP layer takes for tokens."""
    ids = prompt(9)
    padded, mask = torch.zeros(1, 14, dtype=torch.long), torch.zeros(1, 14, dtype=torch.long)
    span = slice(5, 14) if side == "left" else slice(0, 9)
    padded[0, span], mask[0, span] = ids[0], 1
    fixed = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "num_draft_tokens": 3}
    stats, alone = {}, {}
    expected = model.generate(ids, stats=alone, **fixed)[0, 9:].tolist()
    assert model.generate(padded, mask, stats=stats, **fixed)[0, 14:].tolist() == expected
    assert stats["accepted"] == alone["accepted"]  # the same drafts


def test_prompts_read_in_windows_and_turns_draft_the_same(model, monkeypatch):
    """Catches MTP entries lost between windows or turns: the text would be right, the drafts worse."""
    ids, fixed = prompt(50), {"do_sample": False, "eos_token_id": None, "num_draft_tokens": 3}
    whole, windows, cache = {}, {}, model.make_cache(1)
    expected = model.generate(ids, max_new_tokens=30, stats=whole, past_key_values=cache, **fixed)
    mtp = cache.mtp.clone()
    monkeypatch.setattr("qwen3_next.PREFILL_WINDOW", 16)
    cache = model.make_cache(1)
    assert torch.equal(model.generate(ids, max_new_tokens=30, stats=windows, past_key_values=cache, **fixed), expected)
    assert windows["accepted"] == whole["accepted"]
    assert_same_cache(cache.mtp, mtp)
    turns = model.make_cache(1)
    part = model.generate(ids, max_new_tokens=11, past_key_values=turns, **fixed)
    assert turns.mtp.columns == turns.columns
    assert torch.equal(model.generate(part, max_new_tokens=19, past_key_values=turns, **fixed), expected)
    assert_same_cache(turns.mtp, mtp)
    model.generate(expected, max_new_tokens=5, past_key_values=turns, **{**fixed, "num_draft_tokens": 0})
    more = model.generate(expected, max_new_tokens=15, **{**fixed, "num_draft_tokens": 0})
    found = model.generate(more[:, :85], max_new_tokens=10, past_key_values=turns, **fixed)  # MTP starts anew
    assert torch.equal(found, more)


@torch.no_grad()
def test_drafts_are_those_of_whole_sequences(model):
    """Catches drafts made from stale entries: the first draft of each round is what `output_mtp_logits` predicts."""
    seen = []
    original = Sampling.verify

    def spy(self, p, q, drafts, generator):
        seen.append(drafts.tolist()[0])
        return original(self, p, q, drafts, generator)

    Sampling.verify = spy
    try:
        out = model.generate(prompt(6), max_new_tokens=24, do_sample=False, eos_token_id=None, num_draft_tokens=2)
    finally:
        Sampling.verify = original
    predicted = model(out, output_mtp_logits=True).mtp_logits[0].argmax(-1).tolist()
    position = 7  # of the first draft: six tokens of prompt, one drawn from its logits
    for drafts in seen[1:-1]:
        assert drafts[0] == predicted[position - 2]
        stand = 0
        while stand < len(drafts) and drafts[stand] == out[0, position + stand]:
            stand += 1
        position += stand + 1
