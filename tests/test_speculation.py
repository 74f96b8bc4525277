"""Claim: speculative decoding changes the speed and nothing else: neither tokens nor distribution nor cache."""

import pytest
import torch
from conftest import random_model, tokens

import qwen3_next
from qwen3_next import Cache, KVCache, Sampling, read_options
from qwen3_next_checkpoints.penalties import Penalties

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
    for length in (1, 2, 3, 17, 70):
        for new in (1, 2, 3, 7, 20):
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
    assert max(accepted) > 2, "hardly a draft was accepted: this shows nothing"


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
def test_rollback_of_the_first_pass():
    """Catches a cache whose first pass can't be taken back, because nothing was in it before."""
    model, ids = random_model(), tokens(2, 6)
    cache, expected = model.make_cache(2), model.make_cache(2)
    cache.reversible = True
    model(ids, past_key_values=cache)
    cache.rollback(4)
    model(ids[:, :2], past_key_values=expected)
    assert_same_cache(cache, expected)


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 5])
@torch.no_grad()
def test_rollback_is_exact_where_the_arithmetic_is_the_same(keep, monkeypatch):
    """Catches what is stored rounded or stored wrongly: from what conv and delta rule were given, the same bits."""
    model = random_model(layer_types=["linear_attention"] * 5)
    for layer in model.model.layers:
        layer.linear_attn.delta_rule = "recurrent"
    conv, rule, given = qwen3_next.CausalConv.forward, qwen3_next.recurrent_gated_delta_rule, []

    def spy_conv(self, x, window, *rest):
        given.append((x, window))
        return conv(self, x, window, *rest)

    def spy_rule(*inputs, state, **gates):
        given[-1] += (inputs, gates, state)
        return rule(*inputs, state=state, **gates)

    cache = model.make_cache(1)
    model(tokens(1, 7), past_key_values=cache)
    cache.reversible = True
    with monkeypatch.context() as patch:
        patch.setattr(qwen3_next.CausalConv, "forward", spy_conv)
        patch.setattr(qwen3_next, "recurrent_gated_delta_rule", spy_rule)
        model(tokens(1, 6, seed=1), past_key_values=cache)
    cache.rollback(6 - keep)
    assert len(given) == 5
    for layer, (x, window, inputs, gates, state) in zip(cache.layers, given, strict=True):
        inputs, gates = [y[:, :keep] for y in inputs], {name: y[:, :keep] for name, y in gates.items()}
        assert torch.equal(layer.state, rule(*inputs, state=state, **gates)[1])
        assert torch.equal(layer.window, torch.cat([window, x[:, :keep].mT], dim=-1)[..., -3:])


@torch.no_grad()
def test_only_what_was_reversible_is_taken_back_and_once(model):
    """Catches a rollback that silently leaves drafts in the state, or goes back further than it can."""
    cache = model.make_cache(1)
    model(prompt(4), past_key_values=cache)
    with pytest.raises(ValueError, match="reversible"):
        cache.rollback(1)
    cache.reversible = True
    model(prompt(4), past_key_values=cache)
    with pytest.raises(ValueError, match="5 tokens"):
        cache.rollback(5)
    cache.rollback(1)
    with pytest.raises(ValueError, match="reversible"):
        cache.rollback(1)
    assert cache.columns == 7
    assert not cache.reversible  # it holds for one pass: a long one would keep all its inputs


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
    """Catches drafts and verification with other options, seen tokens or rows: all texts of four tokens, counted."""
    small = {"hidden_size": 16, "head_dim": 8, "num_experts": 0, "num_hidden_layers": 2}
    model = random_model(layer_types=["linear_attention", "full_attention"], **small, **FEW)
    draws, ids = 1200, prompt(3, seed=4)
    rule, _, penalties = read_options({"do_sample": True}, options, 3)
    texts = torch.cartesian_prod(*[torch.arange(3)] * 4)  # (81, 4)
    whole, expected = torch.cat([ids.expand(81, -1), texts], dim=1), torch.ones(81, dtype=torch.float64)
    logits = model(whole).logits
    penalise = Penalties(whole[:, :3], None, [], **penalties)
    for i in range(4):
        processed = penalise(whole[:, : 3 + i], logits[:, 2 + i])
        expected *= rule.probabilities(processed).gather(1, texts[:, i : i + 1])[:, 0]
    assert expected.sum().item() == pytest.approx(1)
    torch.manual_seed(0)
    counts, stats = torch.zeros(81), {}
    for _ in range(draws):
        out = model.generate(ids, max_new_tokens=4, num_draft_tokens=2, eos_token_id=None, stats=stats, **options)
        counts[int(out[0, 3:] @ torch.tensor([27, 9, 3, 1]))] += 1
    assert len(stats["acceptance_by_position"]) <= 2
    common = expected * draws > 5  # where the approximation by a normal distribution holds
    assert counts[expected < 1e-12].sum() == 0
    chi_squared = ((counts - expected * draws) ** 2 / (expected * draws))[common].sum().item()
    n = int(common.sum())
    assert abs(chi_squared - n) < 5 * (2 * n) ** 0.5, chi_squared  # its mean is n, its variance 2 n


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


class Letters:
    """A tokenizer of three letters."""

    def batch_decode(self, batch):
        return ["".join("abc"[token] for token in ids) for ids in batch]


@pytest.mark.parametrize("stop", ["ba", "cc", "cab"])
def test_stop_strings_within_a_draft(model, stop):
    """Catches a stop string that is looked for after whole drafts only."""
    inside = 0
    for seed in range(16):
        ids, caches, stats = prompt(4, seed), [model.make_cache(1), model.make_cache(1)], {}
        fixed = {"max_new_tokens": 14, "do_sample": False, "eos_token_id": None, "tokenizer": Letters()}
        expected = model.generate(ids, stop_strings=[stop], past_key_values=caches[0], **fixed)
        options = {"num_draft_tokens": 4, "past_key_values": caches[1], "stats": stats}
        assert model.generate(ids, stop_strings=[stop], **options, **fixed).tolist() == expected.tolist()
        assert_same_cache(caches[1], caches[0])
        inside += expected.shape[1] < 18 and stats["accepted"] > 0
    assert inside > 1


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
def test_drafts_and_statistics_are_those_computed_anew(model, monkeypatch):
    """Catches drafts made from stale entries or another hidden state, and statistics that count something else."""
    seen, original, stats = [], Sampling.verify, {}

    def spy(self, p, q, drafts, generator):
        seen.append(drafts.tolist()[0])
        return original(self, p, q, drafts, generator)

    monkeypatch.setattr(Sampling, "verify", spy)
    fixed = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "num_draft_tokens": 3, "stats": stats}
    out = model.generate(prompt(6, seed=3), **fixed)
    hidden, embeds = model.model(out).last_hidden_state, model.model.embed_tokens(out)
    position, drafted, accepted = 7, [0] * 3, [0] * 3  # the first draft's: six tokens of prompt, one from its logits
    for drafts in seen[1:]:
        own, expected = Cache([KVCache()], torch.zeros(1, dtype=torch.long)), []
        ahead = model.look_ahead(hidden[:, : position - 1], embeds[:, 1:position], cache=own)[:, -1:]
        while len(expected) < len(drafts):
            expected.append(model.lm_head(ahead)[0, 0].argmax().item())
            ahead = model.look_ahead(ahead, model.model.embed_tokens(torch.tensor([expected[-1:]])), cache=own)
        assert drafts == expected
        stand = 0
        while stand < len(drafts) and drafts[stand] == out[0, position + stand]:
            stand += 1
        for i in range(len(drafts)):
            drafted[i], accepted[i] = drafted[i] + 1, accepted[i] + (i < stand)
        position += stand + 1
    assert (stats["drafted"], stats["accepted"]) == (sum(drafted), sum(accepted))
    assert stats["acceptance_by_position"] == [a / d for a, d in zip(accepted, drafted)]
    assert 0 < accepted[2] < drafted[2]


def test_turns_without_drafts_do_not_spoil_later_ones(model):
    """Catches an MTP cache that is thrown away at every turn once it has fallen behind."""
    cache, ids, fixed = model.make_cache(1), prompt(20), {"do_sample": False, "eos_token_id": None}
    for n, kept in ((2, True), (0, False), (2, False), (2, True)):
        before = cache.mtp
        ids = model.generate(ids, max_new_tokens=10, past_key_values=cache, num_draft_tokens=n, **fixed)
        assert n == 0 or before is None or (cache.mtp is before) == kept


def test_an_interrupted_pass_is_taken_back(model, monkeypatch):
    """Catches drafts left in the cache after Ctrl-C: the next turn would go on from tokens that were never shown."""
    ids, cache, calls, original = prompt(6), model.make_cache(1), [], Sampling.verify
    fixed = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **fixed)

    def interrupt(self, *arguments):
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Sampling, "verify", interrupt)
    shown = []
    with pytest.raises(KeyboardInterrupt):
        model.generate(ids, past_key_values=cache, num_draft_tokens=3, streamer=shown.append, **fixed)
    assert len(shown) > 3
    assert cache.columns == 6 + len(shown) - 1  # all but the last one shown
    ids, more = expected[:, : 6 + len(shown)], {**fixed, "max_new_tokens": 5}
    assert torch.equal(model.generate(ids, past_key_values=cache, **more), expected[:, : ids.shape[1] + 5])


def test_an_interrupted_pass_leaves_a_cache_that_is_refused(model, monkeypatch):
    """Catches layers of different ages in one cache, which would go on without a word."""
    cache = model.make_cache(1)
    monkeypatch.setattr(model.model.layers[3], "forward", None)  # fails half-way
    with pytest.raises(TypeError):
        model(prompt(4), past_key_values=cache)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="interrupted"):
        model(prompt(4), past_key_values=cache)
