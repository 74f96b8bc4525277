# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 8. Multi-token prediction and speculative decoding
#
# Can a model write several tokens per pass without changing what it writes? If it can, generation gets faster and the
# text loses nothing. This notebook shows how Qwen3-Next does it, why the distribution of its text stays exactly the
# same, and when it pays.
#
# Qwen3-Next has one extra layer. It is trained to predict not the next token but the one after it. While the model
# writes, this layer *drafts* tokens, and the model then checks several drafts in one pass.
#
# Afterwards you can say what the extra layer sees and how it is trained. You can prove and test the rule by which
# drafts are accepted, and undo tokens in a layer whose memory is a sum. You can estimate when all this is worth its
# cost. You need to know autoregressive language models and the key-value cache. About Gated DeltaNet you need to know
# only that it keeps a state instead of such a cache. We build everything step by step and check it against
# [`qwen3_next.py`](../qwen3_next.py). For one lesson, take sections 1, 3, 4 and 5. How the layer is trained (section
# 2), and when drafts are accepted and pay (sections 6 to 8), are homework.
#
# | | |
# |---|---|
# | [MTP] | DeepSeek-V3, section 2.2, [arXiv 2412.19437](https://arxiv.org/abs/2412.19437) |
# | [Spec] | Fast inference by speculative decoding, [arXiv 2211.17192](https://arxiv.org/abs/2211.17192) |
# | [GDN] | Gated Delta Networks, [arXiv 2412.06464](https://arxiv.org/abs/2412.06464) |

# %%
from start import root

# %%
import collections
import functools
import itertools
import statistics
import time

import corpus
import course
import figures
import torch
import torch.nn.functional as F
from pictures import drafts as pictures

import qwen3_next
import reference_recurrent
from qwen3_next import Cache, Decoder, Qwen3NextForCausalLM, Qwen3NextTokenizer, Sampling, Step
from verify.trace import recording

figures.setup()
_ = torch.set_grad_enabled(False)  # nothing is trained here

# %%
tokenizer = Qwen3NextTokenizer.from_pretrained(root / "tiny")
encode = functools.cache(tokenizer.encode)
model = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float64)  # for checks that must be exact
fast = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float32)  # for long counts


def same(ours, theirs, atol=1e-11):
    """Fails unless both agree: in float64, sums of a few hundred numbers up to 100 differ by about 1e-13."""
    course.same(ours, theirs, atol)


# %% [markdown]
# ## 1. What the extra layer sees
#
# How can a layer guess two tokens ahead? It sees what the model knows so far, and also the token that came next. Let
# $t_0 \dots t_{T-1}$ be the tokens, $e_i$ the embedding of $t_i$, and $h_i$ the model's hidden state at position $i$,
# *after* its final norm. Through `lm_head`, $h_i$ predicts $t_{i+1}$. The MTP layer (multi-token prediction) takes
# $h_i$ and the embedding of $t_{i+1}$, and predicts the token after that, $t_{i+2}$ ([MTP] Eq. 21 to 23):
#
# $$x_i = M\,[\,\mathrm{norm}_e(e_{i+1});\; \mathrm{norm}_h(h_i)\,], \qquad
# m_i = \mathrm{norm}\big(\mathrm{Layer}(x_0 \dots x_i)\big), \qquad
# P(t_{i+2}) = \mathrm{softmax}(W_{lm}\, m_i)$$
#
# The matrix $M$ (`fc`) joins the two vectors and maps $2D \to D$. Here the embedding comes first; the paper puts the
# hidden state first. `Layer` is one layer of gated attention and experts with its own weights. The embedding and
# $W_{lm}$ are shared with the model.
#
# The picture shows the inputs of each prediction. Pick an orange box and follow its two arrows back.

# %%
pictures.inputs(["Tom", "took", "the", "ring", "and", "left"])

# %% [markdown]
# The model reads the tokens (black arrows). MTP reads the model's hidden state (blue) and the embedding of the next
# token (red). (In the rows of the model and of MTP, a box also sees everything to its left.) Now we compute the
# predictions by hand for a held-out story, all positions at once, and compare them with the model's own `mtp_logits`:


# %%
def norm(x, module):
    """x / rms(x) * (1 + w)"""
    return x * (x.square().mean(-1, keepdim=True) + module.eps) ** -0.5 * (1 + module.weight)


def step(x):
    """What a layer needs to know beside x: positions from 0, no cache"""
    return Step(x, None, None, Cache([], torch.zeros(1, dtype=torch.long)), model.model.rope)


def mtp_logits(hidden, embedded):
    """hidden h_i, embedded e_{i+1}, (1, T - 1, D) each -> logits of t_{i+2}, (1, T - 1, vocabulary)"""
    mtp = model.mtp
    both = [norm(embedded, mtp.pre_fc_norm_embedding), norm(hidden, mtp.pre_fc_norm_hidden)]
    x = torch.cat(both, dim=-1) @ mtp.fc.weight.T  # (1, T - 1, D)
    x, _ = mtp.layers[0](x, step(x), None)
    return norm(x, mtp.norm) @ model.lm_head.weight.T


# %%
story = course.ids_and_roles(corpus.Corpus("held out", {"chat": 1.0}).document("mtp:0"), encode)
ids = torch.tensor([[token for token, _ in story]])  # (1, T)
with recording(model) as trace:
    out = model(ids, output_mtp_logits=True)
h, e = out.last_hidden_state, model.model.embed_tokens(ids)  # (1, T, D) each
same(mtp_logits(h[:, :-1], e[:, 1:]), out.mtp_logits)

reference = reference_recurrent.Reference.from_pretrained(root / "tiny")  # NumPy, token by token, no shared code
same(out.mtp_logits[0, :11], torch.from_numpy(reference.mtp_logits(ids[0, :12].numpy())))

# %% [markdown]
# Which mistakes leave all shapes right? We try three: the hidden state from *before* the final norm, the two halves in
# the other order, and the embedding of $t_i$ in place of $t_{i+1}$. For each we measure, on this story, the
# cross-entropy of $t_{i+2}$, and how often the likeliest token is right.

# %%
last = trace[f"model.layers.{model.config.num_hidden_layers - 1}.out"][None]  # (1, T, D), before the final norm
fc = model.mtp.fc.weight
ways = {
    "right": (h[:, :-1], e[:, 1:], fc),
    "before the final norm": (last[:, :-1], e[:, 1:], fc),
    "[hidden, embedding]": (h[:, :-1], e[:, 1:], fc.roll(fc.shape[0], dims=1)),
    "embedding of t_i": (h[:, :-1], e[:, :-1], fc),
}
losses = {}
for name, (hidden, embedded, weight) in ways.items():
    model.mtp.fc.weight = torch.nn.Parameter(weight)
    logits = mtp_logits(hidden, embedded)[0, :-1]  # row i is about token i + 2
    losses[name] = F.cross_entropy(logits, ids[0, 2:]).item()
    print(f"{name:24} {losses[name]:6.2f} nats   right: {(logits.argmax(-1) == ids[0, 2:]).double().mean():.0%}")
model.mtp.fc.weight = torch.nn.Parameter(fc)
gap = min(losses["[hidden, embedding]"], losses["embedding of t_i"]) - losses["right"]
figures.expect(f"each of the last two mistakes costs more than a nat: {gap:.2f} and more", gap > 1)

# %% [markdown]
# The first mistake is the quiet one. `pre_fc_norm_hidden` normalises its input anyway, so the scale does not matter.
# Only the factors $1 + w$ of the final norm are missing, which differ between dimensions. On this story the printed
# figures hardly show it. Even where drafts do get worse, the model's check hides the mistake, and all you notice is
# less speed.
#
# ## 2. The loss: shifted by two
#
# How is the MTP layer trained? It has its own loss, with labels shifted by two instead of one:
#
# $$\mathcal L_{MTP} = -\frac{1}{T - 2} \sum_{i=0}^{T-3} \log P(t_{i+2} \mid h_i, t_{i+1}), \qquad
# \mathcal L = \mathcal L_{main} + \lambda\,\mathcal L_{MTP}$$
#
# ([MTP] Eq. 24 and 25, for one extra token.) Labels of -100 do not count, and neither do positions where $t_i$ or
# $t_{i+2}$ is padding. We check this on a batch of two documents of unequal length, with some labels left out:

# %%
batch = [ids[0, :50], ids[0, 40:73]]
padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)  # (2, 50), the second padded on the right
mask = torch.tensor([[1] * 50, [1] * 33 + [0] * 17])
labels = padded.masked_fill(mask == 0, -100)
labels[0, 10:15] = -100
two = model(padded, mask, labels=labels, output_mtp_logits=True)

log_p = two.mtp_logits[:, :-1].log_softmax(-1)  # (2, T - 2, vocabulary)
wanted = labels[:, 2:]  # row i of the logits, the label of token i + 2
counts = (wanted != -100) & (mask[:, 2:] * mask[:, :-2] == 1)
by_hand = -log_p.gather(-1, wanted.clamp(min=0)[..., None])[..., 0][counts].mean()
same(by_hand, two.mtp_loss)

main = F.cross_entropy(two.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
weight = model.config.mtp_loss_scaling_factor  # lambda
same(main + weight * by_hand, two.loss)
by_one = F.cross_entropy(two.mtp_logits[:, :-1].flatten(0, 1), labels[:, 1:-1].flatten())
print(f"λ = {weight}; next token {main:.2f} nats, the one after it {by_hand:.2f}; shifted by one only: {by_one:.1f}")
figures.expect("with labels shifted by one only, the loss is more than a nat higher", by_one > by_hand + 1)

# %% [markdown]
# ## 3. Drafting and checking, token by token
#
# Why can drafts save time at all? Suppose that a pass mostly waits for weights to be read from memory. The weights are
# read once for all tokens of the pass, so additional tokens cost little more. We let MTP guess $n$ tokens, run the
# model over all of them, and keep those that the model would have written itself:
#
# 1. MTP drafts one token. Its inputs are $h$ of the last position that the model has read, and the newest token. For
#    the second draft the model has no hidden state yet, so MTP uses its own, $m$, instead.
# 2. One pass of the model over the newest token and the $n$ drafts gives $n + 1$ predictions.
# 3. From left to right, drafts are accepted as long as they agree with these predictions. After the last accepted
#    draft, the model's own prediction is the next token. So even if all drafts are rejected, the pass yields one token.
#
# We write this without any cache, so that nothing is hidden. Decoding is greedy: it takes the likeliest token each
# time.


# %%
def draft(known, n):
    """known (1, T) tokens, the last of which the model has not read -> n drafts (1, n)"""
    hidden, drafts = model.model(known[:, :-1]).last_hidden_state, known[:, :0]  # (1, T - 1, D)
    for _ in range(n):
        following = torch.cat([known[:, 1:], drafts], dim=1)  # the token after each hidden state
        ahead = model.look_ahead(hidden, model.model.embed_tokens(following))[:, -1:]
        drafts = torch.cat([drafts, model.lm_head(ahead).argmax(-1)], dim=1)
        hidden = torch.cat([hidden, ahead], dim=1)  # MTP's own, since the model's is not known yet
    return drafts


def check(known, drafts):
    """How many drafts are accepted, and the token after those"""
    n = drafts.shape[1]
    best = model(torch.cat([known, drafts], dim=1)).logits[0, -(n + 1) :].argmax(-1)  # (n + 1,)
    stand = int((drafts[0] == best[:n]).long().cumprod(0).sum())
    return stand, best[stand]


# %%
prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Tell me a story about a fox and a lantern."}])
prompt = tokenizer([prompt], return_tensors="pt").input_ids
NEW, DRAFTS = 40, 3  # tokens to write, and drafts a pass
known, left, passes = prompt, NEW, []
while left > 0:
    drafts = draft(known, min(DRAFTS, left - 1) if passes else 0)  # the first token comes with the prompt's pass
    stand, token = check(known, drafts)
    known = torch.cat([known, drafts[:, :stand], token.view(1, 1)], dim=1)
    passes.append((drafts[0].tolist(), stand, token.item()))
    left -= stand + 1

# %% [markdown]
# If we did this right, we get the same text as from plain decoding. We also get the same drafts as `generate`, which
# uses caches.
#
# In the picture below the check, each row is a pass. Green boxes are accepted drafts, dashed boxes are rejected drafts,
# and light blue boxes are the model's own tokens.

# %%
options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
assert torch.equal(known, model.generate(prompt, **options))
assert torch.equal(known, model.generate(prompt, num_draft_tokens=DRAFTS, stats=(stats := {}), **options))
tried = [sum(len(drafts) > i for drafts, *_ in passes) for i in range(DRAFTS)]
stood = [sum(stand > i for _, stand, _ in passes) for i in range(DRAFTS)]
assert stats["acceptance_by_position"] == [s / t for s, t in zip(stood, tried)]
shares = ", ".join(f"{s} of {t}" for s, t in zip(stood, tried))
print(f"{NEW} tokens in {len(passes)} passes; accepted, by position: {shares}")
by_place = [s / t for s, t in zip(stood, tried)]
more = by_place[0] > max([0.5, *by_place[1:]])
figures.expect("more than half of the first drafts are accepted, of later ones fewer", more)


# %%
pictures.passes(passes, lambda token: tokenizer.decode([token]))

# %% [markdown]
# Read the filled boxes row by row and leave out the dashed ones: this is the text. Each row took one pass of the model.
# The model's own token is drawn in its place in the text: after the accepted drafts, in place of the first rejected
# one. First drafts are mostly accepted. Second and third drafts are accepted much less often, because the layer was
# trained on the model's hidden states and never on its own.
#
# ## 4. Sampling: the rule that changes nothing
#
# When tokens are sampled, there is no single right token. When should a draft be accepted? Let $p$ be the model's
# distribution of the next token, and $q$ the distribution that the draft $x$ was drawn from. The rule of [Spec]
# (Algorithm 1) accepts the draft with probability $\min(1, p(x)/q(x))$. If the draft is rejected, the rule draws a new
# token from the part of $p$ that lies above $q$:
#
# $$r(x) = \frac{\max(p(x) - q(x),\, 0)}{\sum_y \max(p(y) - q(y),\, 0)}$$
#
# The token that comes out is then distributed as $p$, whatever $q$ is. To see this, add up the two ways in which a
# token $x$ can come out:
#
# $$\underbrace{q(x)\min\Big(1, \frac{p(x)}{q(x)}\Big)}_{\text{drafted, accepted}} +
# \underbrace{\Big(1 - \sum_y \min(p(y), q(y))\Big)\, r(x)}_{\text{rejected, drawn again}}
# = \min(p(x), q(x)) + \max(p(x) - q(x), 0) = p(x)$$
#
# The first equality is true because $1 - \sum_y \min(p, q) = \sum_y \max(p - q, 0)$. It also follows that a draft is
# accepted with probability $\alpha = \sum_y \min(p, q)$.
#
# The picture shows $p$ and $q$ over six tokens. Look at the parts on top of the green part, where $p$ and $q$ overlap.

# %%
VOCABULARY = 6
source = torch.Generator().manual_seed(0)
p, q = (torch.rand(2, VOCABULARY, generator=source, dtype=torch.float64) ** 2).unbind(0)
p[0], q[1] = 0, 0  # token 0 is never right, token 1 is never drafted
p, q = p / p.sum(), q / q.sum()
overlap, rest = torch.minimum(p, q), (p - q).clamp(min=0)
same(rest.sum(), 1 - overlap.sum())
p_of_4, q_of_4 = p, q  # for exercise 4

pictures.overlap(p, q)

# %% [markdown]
# The filled part of each bar is $p$. Green and dashed together are $q$. The rule moves the dashed probability to the
# blue parts.
#
# Now we run 200,000 rounds of `Sampling.verify`, and of two wrong rules that look reasonable. One accepts the draft if
# it is the model's likeliest token, and otherwise draws from $p$. The other accepts with the right probability, but
# draws the new token from $p$ and not from $r$. The picture shows how far each token's frequency is from $p$. Look for
# points outside the grey band.

# %%
ROUNDS = 200_000
drafts = torch.multinomial(q, ROUNDS, replacement=True, generator=source)  # (ROUNDS,)
afresh = torch.multinomial(p, ROUNDS, replacement=True, generator=source)
model_p = p.expand(ROUNDS, 2, -1)  # of the draft, and of the token after it
stand, token = Sampling(do_sample=True).verify(model_p, q.expand(ROUNDS, 1, -1), drafts[:, None], source)
luck = torch.rand(ROUNDS, generator=source, dtype=torch.float64)
rules = {
    "Sampling.verify": torch.where(stand == 1, drafts, token),
    "accepted if likeliest": torch.where(drafts == p.argmax(), drafts, afresh),
    "drawn from p, not r": torch.where(luck < p[drafts] / q[drafts], drafts, afresh),
}

# %%
error = (p * (1 - p) / ROUNDS).sqrt()  # standard deviation of a frequency
found = {name: result.bincount(minlength=VOCABULARY) / ROUNDS for name, result in rules.items()}
for name, frequency in found.items():
    print(f"{name:22} frequency - p:", "  ".join(f"{x:+.4f}" for x in frequency - p))
print(f"{'one standard error':22}               ", "  ".join(f" {x:.4f}" for x in error))
assert ((found["Sampling.verify"] - p).abs() <= 5 * error).all()  # 5: a false alarm in a million
for name in ("accepted if likeliest", "drawn from p, not r"):
    course.finding(f"{name}: off by more than 20 standard errors", ((found[name] - p).abs() > 20 * error).any())
rate = (stand == 1).double().mean()
print(f"drafts that were accepted: {rate:.4f}, expected {overlap.sum():.4f}")
assert (rate - overlap.sum()).abs() < 5 * (overlap.sum() * (1 - overlap.sum()) / ROUNDS).sqrt()

# %%
pictures.frequencies(found, p, error)

# %% [markdown]
# The right rule stays within the band, which is hardly wider than its line. The two wrong rules are far outside, and
# more rounds would not bring them back.
#
# With several drafts, the rule is applied from left to right. Everything after the first rejected draft is dropped,
# because it was drafted after a token that is not in the text. So in the rounds that get as far as the second token,
# this token must follow *its* own $p$. Greedy decoding is the same rule, with all of $p$ and all of $q$ on one token
# each. We test both.

# %%
n = 2
p2, q2 = (torch.rand(2, n + 1, VOCABULARY, generator=source, dtype=torch.float64) ** 2).unbind(0)
p2, q2 = p2 / p2.sum(-1, keepdim=True), (q2 / q2.sum(-1, keepdim=True))[:n]
drafts = torch.multinomial(q2, ROUNDS, replacement=True, generator=source).T  # (ROUNDS, n)
stand, token = Sampling(do_sample=True).verify(p2.expand(ROUNDS, -1, -1), q2.expand(ROUNDS, -1, -1), drafts, source)
for i in range(n + 1):
    reached = stand >= i
    result = torch.where(stand == i, token, drafts[:, min(i, n - 1)])[reached]
    frequency = result.bincount(minlength=VOCABULARY) / len(result)
    apart = ((frequency - p2[i]) / (p2[i] * (1 - p2[i]) / len(result)).sqrt()).abs().max()
    print(f"token {i + 1}: {len(result):7,} rounds, largest deviation {apart:.1f} standard errors")
    assert apart <= 5

sharp_p = F.one_hot(torch.tensor([[2, 4, 1]]), VOCABULARY).double()
sharp_q = F.one_hot(torch.tensor([[2, 3]]), VOCABULARY).double()
stand, token = Sampling(do_sample=False).verify(sharp_p, sharp_q, torch.tensor([[2, 3]]), None)
assert (stand.item(), token.item()) == (1, 4)  # 2 is the likeliest: accepted; 3 is not 4: rejected

# %% [markdown]
# ## 5. Taking tokens back
#
# The pass over the drafts has changed the caches. How do we take the rejected drafts out again? In attention they do no
# harm: keys and values lie in slots, one for each position, and the next tokens overwrite those of the drafts. A Gated
# DeltaNet layer keeps a state $S$ instead. Every token decays it, corrects it and adds to it ([GDN] Eq. 10; $\alpha_t$
# is the decay, $\beta_t$ the write strength, $k_t$ a key of length 1):
#
# $$S_t = \alpha_t (I - \beta_t k_t k_t^\top)\, S_{t-1} + \beta_t k_t v_t^\top$$
#
# A token can't simply be cut off from this sum. One could solve the equation for $S_{t-1}$:
#
# $$S_{t-1} = \frac{1}{\alpha_t} \Big(I + \frac{\beta_t}{1 - \beta_t} k_t k_t^\top\Big) \big(S_t - \beta_t k_t v_t^\top\big)$$
#
# But a token with $\alpha_t$ near 0 has *forgotten* the old state, and a token with $\beta_t$ near 1 has *overwritten*
# the value stored under its key. In both cases the division blows up the rounding error. To see how much, we take
# $k, v, \alpha, \beta$ of all Gated DeltaNet layers of `tiny/` on the story, write the state in float32, and undo its
# last tokens by the formula. In the picture each line is one head. On the dashed line the error is as large as the
# state.


# %%
def write(S, k, v, alpha, beta):
    """S (H, K, V); k (H, K, 1), v (H, 1, V); alpha, beta (H, 1, 1)"""
    S = alpha * S
    return S + beta * k @ (v - k.mT @ S)


def undo(S, k, v, alpha, beta):
    S = S - beta * k @ v
    return (S + beta / (1 - beta) * k @ (k.mT @ S)) / alpha


def of_layer(i):
    """What layer i writes, token by token, float32, from the trace of the story"""
    get, heads = (lambda key: trace[f"model.layers.{i}.linear_attn.{key}"].float()), model.config.linear_num_value_heads
    v = get("conv_out")[:, -heads * model.config.linear_value_head_dim :].unflatten(1, (heads, 1, -1))
    return list(zip(get("k_l2norm")[..., None], v, get("g").exp()[..., None, None], get("beta")[..., None, None]))


# %%
linear, curves = [i for i, kind in enumerate(model.config.layer_types) if kind == "linear_attention"], []
for i in linear:
    rows, S = of_layer(i), torch.zeros(*trace[f"model.layers.{i}.linear_attn.state"].shape)
    states = [S] + [S := write(S, *row) for row in rows]
    torch.testing.assert_close(S, trace[f"model.layers.{i}.linear_attn.state"].float(), rtol=1e-4, atol=1e-4)
    undone = [S := undo(S, *row) for row in rows[:-17:-1]]
    true = states[-2:-18:-1]
    curves += torch.stack([(a - b).norm(dim=(1, 2)) / b.norm(dim=(1, 2)) for a, b in zip(undone, true)], dim=1)
curves = torch.stack(curves).nan_to_num(1e9)  # (layers * H, 16)

# %%
pictures.undoing(curves)
lost = (curves[:, 3] > 1).double().mean()
after_16 = (curves[:, -1] > 1).double().mean()
print(f"{len(curves)} heads; after 4 tokens {lost:.0%} have lost their state, after 16 tokens {after_16:.0%}")
figures.expect("after 16 tokens some head has lost its state", (curves[:, -1] > 1).any())

# %% [markdown]
# Each line that crosses the dashed one is a head that lost its state, and one lost head is enough to spoil the text.
# Below the picture, the first share says how many heads are lost when 4 tokens are undone, about as many as a pass
# drafts. So the state has to be *kept*, and there are two ways to do it. We can keep one state for each drafted
# position, which takes $KV$ numbers per head and token. Or we can keep the state from before the pass, and what the few
# tokens of the pass wrote: $q, k, v, \alpha, \beta$. This takes $2K + V + 2$ numbers per head and token, and the
# accepted tokens have to be written again. `DeltaNetCache.without_last` does the second. If all drafts are accepted, it
# has nothing to do.

# %%
layers, heads, K, V = 36, 32, 128, 128  # Gated DeltaNet in the 80B
print(f"80B, float32: a state {4 * layers * heads * K * V / 2**20:.0f} MiB; "
      f"what a token wrote {4 * layers * heads * (2 * K + V + 2) / 2**20:.1f} MiB")  # fmt: skip

cache, past = model.make_cache(1), ids[:, :60]
model(past, past_key_values=cache)
before = cache.clone()
cache.reversible = True
model(ids[:, 60:65], past_key_values=cache)  # five drafts
kept, layer = cache.layers[linear[0]], before.layers[linear[0]]
_, state, _, (q_, k_, v_, g_, beta_) = kept.last  # window, state, the convolution's inputs, what was written
assert torch.equal(state, layer.state) and v_.shape[1] == 5
again = qwen3_next.recurrent_gated_delta_rule(
    q_[:, :2], k_[:, :2], v_[:, :2], g=g_[:, :2], beta=beta_[:, :2], state=state
)[1]
cache.rollback(3)  # two of five are accepted
assert torch.equal(cache.layers[linear[0]].state, again)  # the same numbers by the same operations: bit for bit

# %% [markdown]
# The convolution before the delta rule remembers its last three inputs. A rollback finds the right three among the
# inputs before and during the pass.
#
# One test counts more than the others. After a rollback, *every* layer's cache must be what it would be if the rejected
# tokens had never been read, and so must every value computed from it. We test this for any number of accepted tokens,
# in float64, with a state that is not zero. The bits need not be equal, because a pass over five tokens adds up in a
# different order than passes over one. If no token is accepted, nothing is computed, and the result must be exact.


# %%
def contents(cache):
    """All that a cache holds, as one list of tensors"""
    n = cache.columns
    of = [(x.window, x.state) if hasattr(x, "state") else (x.k[:, :, :n], x.v[:, :, :n]) for x in cache.layers]
    return [tensor for pair in of for tensor in pair]


def differ(one, other):
    return max((a - b).abs().max().item() for a, b in zip(contents(one), contents(other)))


# %%
following = ids[:, 100:103]
for stand in range(6):
    never, rolled, wrong = before.clone(), before.clone(), before.clone()
    for i in range(stand):
        model(ids[:, 60 + i : 61 + i], past_key_values=never)
    for cache in (rolled, wrong):
        cache.reversible = True
        model(ids[:, 60:65], past_key_values=cache)
    rolled.rollback(5 - stand)
    wrong.seq_len, wrong.columns = rolled.seq_len, rolled.columns  # slots are taken back, the states are not
    gap = differ(rolled, never)
    assert gap <= (0 if stand == 0 else 1e-11)
    a, b, c = (model(following, past_key_values=cache).logits for cache in (never, rolled, wrong))
    same(b, a)
    assert stand == 5 or (c - a).abs().max() > 1e-6
    print(f"{stand} of 5 accepted: caches differ by {gap:.0e}, the next logits by {(b - a).abs().max():.0e};", end=" ")
    print(f"without rollback of the states by {(c - a).abs().max():.1f}")

# %% [markdown]
# The last column shows a mistake: keys and values are taken back, but the states still have the drafts in them. The
# text stays fluent, but it is a different text: greedy decoding with drafts no longer writes the same as without them.
# This comparison is the test to run on any implementation.
#
# ## 6. Which drafts are accepted
#
# Which tokens are easy to draft? The corpus of `tiny/` knows each token's role, so we can count by role, on held-out
# documents. The picture has three bars for each role. Orange shows how often MTP's likeliest draft is the token that
# the model itself finds likeliest. Grey shows the same for the simplest draft there is, a *bigram*: the most frequent
# successor of the token before, counted on training documents. Light blue is the probability that a draft is accepted
# when both are sampled at temperature 1, $\sum \min(p, q)$. Compare orange with grey first.

# %%
training, successors = corpus.Corpus(), collections.defaultdict(collections.Counter)
for number in range(500):
    tokens = [token for token, _ in course.ids_and_roles(training.document(f"bigrams:{number}"), encode)]
    for one, following in itertools.pairwise(tokens):
        successors[one][following] += 1
bigram = torch.full((model.config.vocab_size,), -1)
for one, counts in successors.items():
    bigram[one] = counts.most_common(1)[0][0]

# %%
held_out, rows = corpus.Corpus("held out"), collections.defaultdict(list)
for number in range(50):
    pairs = course.ids_and_roles(held_out.document(f"drafts:{number}"), encode)
    tokens = torch.tensor([[token for token, _ in pairs]])
    result = fast(tokens, output_mtp_logits=True)
    p, q = result.logits[0, 1:-1].softmax(-1), result.mtp_logits[0, :-1].softmax(-1)  # of tokens 2 to T - 1
    best = p.argmax(-1)
    hits = [q.argmax(-1) == best, bigram[tokens[0, 1:-1]] == best, torch.minimum(p, q).sum(-1)]
    for (_, role), *values in zip(pairs[2:], *(x.tolist() for x in hits)):
        rows[role].append(values)

# %%
kept = sorted((role for role in rows if len(rows[role]) >= 40), key=lambda role: (role != "template", role))
shares = torch.tensor([torch.tensor(rows[role], dtype=torch.float64).mean(0).tolist() for role in kept])  # (roles, 3)
everything = torch.tensor([values for role in rows.values() for values in role], dtype=torch.float64).mean(0)
overall = dict(zip(("MTP", "bigram", "MTP, sampled"), everything.tolist()))
pictures.acceptance([f"{role} ({len(rows[role])})" for role in kept], shares, overall)
good = everything[0] > max(0.7, everything[1] + 0.2)
figures.expect("more than 70 % of MTP's drafts are accepted, and far more than of the bigram's", good)

# %% [markdown]
# The template follows from the last few words, and MTP drafts it well. Names and things that were mentioned before are
# also mostly drafted right. A bigram cannot do that at all, but MTP has the model's hidden state, and its own
# attention. Answers are a little harder, because even the model finds them only by looking far back.
#
# New names and new digits show the difference between orange and light blue. Nobody can guess them. So the model and
# MTP both have nearly even distributions, and their likeliest tokens rarely agree. But sampled drafts are accepted as
# often as the *distributions* agree.
#
# ## 7. When does it pay?
#
# Drafts cost time, and so does the wider pass that checks them. When do they save more than they cost? Let a pass over
# one token cost 1, a pass over $n + 1$ tokens $c_n$, and a draft $d$. Let draft $i$ be accepted with probability $a$ if
# all drafts before it were accepted, with the same $a$ for every draft. A pass then yields the accepted drafts and one
# more token:
#
# $$E_n = 1 + a + a^2 + \dots + a^n = \frac{1 - a^{n+1}}{1 - a}, \qquad \text{speed-up} = \frac{E_n}{c_n + n d}$$
#
# ([Spec] Theorem 3.8 has $c_n = 1$: verification at no extra cost.) One draft pays if $a > c_1 + d - 1$.
#
# We measure $c_n$ and $d$ for `tiny/` on a CPU. The passes take turns, and we take medians. We measure processor time
# of one thread, because other programs disturb it less than elapsed time. **These figures differ between machines and
# runs.**

# %%
torch.set_num_threads(1)
context, extra = ids[:, :100], [ids[:, 100 : 101 + n] for n in range(4)]
cache, drafter, taken = fast.make_cache(1), fast.make_cache(1), collections.defaultdict(list)
fast(context, past_key_values=cache)
decoder = Decoder(fast, drafter, Sampling(), 1, None)
decoder.prefill(context, torch.ones_like(context))
decoder.keep(context[:, :1])  # some token, so that MTP can draft what follows it

for name in [*range(4), "draft"] * 42:
    cache.reversible = True
    started = time.process_time()
    if name == "draft":
        decoder.show_mtp(decoder.hidden, context[:, :1])
        decoder.draft(1)
    else:
        fast(extra[name], past_key_values=cache)
    taken[name].append(time.process_time() - started)
    drafter.mtp.rollback(1) if name == "draft" else cache.rollback(name + 1)
medians = {name: statistics.median(times[2:]) for name, times in taken.items()}  # the first two warm up
c, d = [medians[n] / medians[0] for n in range(4)], medians["draft"] / medians[0]
print(f"a pass over one token {1000 * medians[0]:.1f} ms; d = {d:.2f};", *(f"c_{n} = {c[n]:.2f}" for n in (1, 2, 3)))

# %% [markdown]
# Now we time whole generations, with the checkpoint's own sampling settings: four stories, two rounds, and before them
# one story that only warms up. 0 to 3 drafts take turns, and each time is compared with the time without drafts in the
# same turn. We report the median of these ratios, and their range shows how far to trust it.

# %%
ASKED, LENGTH = ["fox and a lantern", "hen and a kite", "bear and a boat", "owl and a map"], 56
rule = qwen3_next.read_options(fast.generation_config, {}, 0)[0]


def timed(what, n, seed):
    """Seconds for LENGTH tokens of a story with n drafts, the tokens after the first, and (accepted, drafted)"""
    text = tokenizer.apply_chat_template([{"role": "user", "content": f"Tell me a story about a {what}."}])
    start, length = tokenizer([text], return_tensors="pt").input_ids, 0
    decoder = Decoder(fast, fast.make_cache(1), rule, n, torch.Generator().manual_seed(seed))
    decoder.prefill(start, torch.ones_like(start))
    started = time.process_time()
    while length < LENGTH:
        if length:
            decoder.advance(LENGTH - length)
        kept = decoder.next_tokens()
        decoder.keep(kept)
        length += kept.shape[1]
    return time.process_time() - started, length - 1, torch.tensor([decoder.accepted, decoder.drafted])


# %%
rates, stood = collections.defaultdict(list), {n: torch.zeros(2, 3) for n in range(4)}
for turn, what in [(-1, ASKED[0]), *itertools.product(range(2), ASKED)]:
    for n in range(4) if turn % 2 else range(3, -1, -1):  # forwards and backwards
        seconds, tokens, counts = timed(what, n, seed=turn + 1)
        if turn >= 0:
            rates[n].append(tokens / seconds)
            stood[n][:, :n] += counts
ratios = {n: sorted(rate / plain for rate, plain in zip(rates[n], rates[0])) for n in range(4)}
for n, gains in ratios.items():
    shares = ", ".join(f"{a / b:.0%}" for a, b in stood[n][:, :n].T)
    print(f"{n} drafts: {statistics.median(rates[n]):4.0f} tokens/s, ratio {statistics.median(gains):.2f}", end=" ")
    print(f"({gains[0]:.2f} to {gains[-1]:.2f}); accepted, by position: {shares or '-'}")

# %% [markdown]
# The picture puts both measurements together. The lines are the formula with the measured $c_n$ and $d$, against $a$.
# The points are the measured speed-ups with their ranges. Each point is placed at the $a$ for which $E_n$ is the number
# of tokens per pass that we counted. Look at how far each point is from its line.


# %%
def tokens_per_pass(a, n):
    return sum(a**i for i in range(n + 1))


def common(n):
    """The a with which n drafts would yield as many tokens per pass as were found"""
    found, low, high = 1 + (stood[n][0] / stood[n][1, 0]).sum().item(), 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens_per_pass(middle, n) < found else (low, middle)
    return low


# %%
a = torch.linspace(0, 1, 101)
predicted = {n: tokens_per_pass(a, n) / (c[n] + n * d) for n in (1, 2, 3)}
measured = {n: (common(n), ratios[n][0], statistics.median(ratios[n]), ratios[n][-1]) for n in (1, 2, 3)}
pictures.gains(a, predicted, measured)

# %% [markdown]
# The closer the points are to their lines, the more of the cost the formula explains. The formula leaves out sampling,
# rollback, and Python between the passes. `tiny/` does not wait for memory. It waits for many small operations, and its
# $c_1$ is far above 1, because two tokens go through more experts, and through two steps of the recurrence. So the gain
# is small, and where the ranges overlap, nothing is decided. Later drafts are accepted less often, so the points of 2
# and 3 drafts lie further left. A third draft costs $d$ and a wider pass, and it rarely yields a token.
#
# ## 8. Why a sparse mixture of experts gains less
#
# Where memory is the bottleneck, the cost of a pass is the bytes that it reads. A dense model reads all its weights,
# for one token or for four: $c_n = 1$. In a mixture of experts, each token chooses $k$ of $E$ experts, and more tokens
# need more *different* experts. If the choices were random, $m$ tokens would need
#
# $$\mathbb E[\text{distinct}] = E\,\Big(1 - \big(1 - \tfrac kE\big)^m\Big)$$
#
# of them, because one token leaves an expert out with probability $1 - k/E$. With 10 of 512 experts, this is hardly
# less than $mk$.
#
# We count the different experts for a random router, and for neighbouring tokens of real text in `tiny/`. Do neighbours
# choose the same experts more often than by chance? In the picture, compare the green line (neighbours) with the pink
# one (the same tokens shuffled) and the orange one (a random router of the same size).

# %%
E, k, most = 512, 10, 4


def expected(E, k, m):
    return E * (1 - (1 - k / E) ** m)


scores = torch.rand(4000, most, E, generator=source)  # 4,000 runs of 4 tokens
chosen = scores.topk(k, dim=-1).indices.flatten(1)  # (4000, most * k)
simulated = [torch.tensor([len(set(row[: m * k])) for row in chosen.tolist()]).double() for m in range(1, most + 1)]
for m, counts in enumerate(simulated, 1):  # the mean of 4,000, within five of its standard errors
    assert abs(counts.mean() - expected(E, k, m)) <= 5 * counts.std() / 4000**0.5 + 1e-9

# %%
choices = [value for key, value in trace.items() if key.startswith("model.layers.") and key.endswith("topk_ids")]
choices = torch.stack(choices).tolist()  # (layers, T, k)
tiny_E, tiny_k = model.config.num_experts, model.config.num_experts_per_tok


def count(layers, m):
    """Mean number of distinct experts of m tokens that follow each other, over places and layers"""
    places = range(len(layers[0]) - most)
    return statistics.mean(len({e for token in layer[i : i + m] for e in token}) for layer in layers for i in places)


touched = [count(choices, m) for m in range(1, most + 1)]
order = torch.randperm(ids.shape[1], generator=source).tolist()
strangers = [count([[layer[i] for i in order] for layer in choices], m) for m in range(1, most + 1)]
assert touched[0] == tiny_k and all(x < y for x, y in itertools.pairwise(touched))

# %%
m = torch.arange(1, most + 1)
lines = {
    "no expert shared": m,
    f"random router, {k} of {E}": [x.mean() / k for x in simulated],
    f"random router, {tiny_k} of {tiny_E}": expected(tiny_E, tiny_k, m) / tiny_k,
    "tiny/, neighbouring tokens": torch.tensor(touched) / tiny_k,
    "tiny/, the same tokens shuffled": torch.tensor(strangers) / tiny_k,
    "dense": torch.ones(most),
}
pictures.weights_read(m, lines)

# %% [markdown]
# The shuffled tokens of `tiny/` touch fewer experts than those of a random router, because the experts of `tiny/` are
# not evenly loaded. Neighbours touch even fewer. The difference shows what neighbouring tokens have in common.
#
# What does this mean for the released model, the 80B? We estimate it by bytes alone, in bfloat16. A token reads 7.1 GB,
# of which 3.02 GB are routed experts (the table of checkpoints in [docs/weights.md](../docs/weights.md), derived from
# the tensors' shapes). The MTP layer reads `fc`, its own attention, 11 experts with the shared one, and `lm_head`. Then
# $c_n = (7.1 - 3.02 + 3.02 \cdot \text{distinct}_{n+1}/k)/7.1$.
#
# The picture compares this model (thick lines) with a dense one that reads as many bytes for one token (thin lines).

# %%
D, inner, vocabulary = 2048, 512, 151936  # of the 80B, with 10 of 512 experts
d80 = 2 * (vocabulary * D + 2 * D * D + (8192 + 512 + 512) * D + 4096 * D + 11 * 3 * inner * D) / 7.1e9
c80 = [(7.1 - 3.02 + 3.02 * expected(512, 10, n + 1) / 10) / 7.1 for n in range(4)]
print(f"80B by bytes: d = {d80:.2f};", ", ".join(f"c_{n} = {c80[n]:.2f}" for n in (1, 2, 3)))
lines = {n: [tokens_per_pass(a, n) / (cost + n * d80) for cost in (1, c80[n])] for n in (1, 2, 3)}
pictures.dense_and_sparse(a, lines)

# %% [markdown]
# The thick lines stay far below the thin ones: additional experts eat up much of the gain. This is an estimate by
# bytes, for one user and a random router. Neighbouring tokens of real text may share more experts. With many users in
# one batch, most experts are read anyway, and drafts add hardly any reading. But then the arithmetic counts.
#
# ## Exercises
#
# **1.** By the estimate above, at which $a$ does *one* draft begin to pay on the 80B? Which number of drafts is best at
# $a = 0.6$, $0.8$ and $0.95$?
#
# <details><summary>Solution</summary>
#
# One draft pays if $1 + a > c_1 + d$.
#
# ```python
# print(f"one draft pays from a = {c80[1] + d80 - 1:.2f}")
# for a_ in (0.6, 0.8, 0.95):
#     gains = [tokens_per_pass(a_, n) / (c80[n] + n * d80) for n in range(4)]
#     print(a_, "best:", max(range(4), key=gains.__getitem__), [f"{x:.2f}" for x in gains])
# assert abs(tokens_per_pass(c80[1] + d80 - 1, 1) / (c80[1] + d80) - 1) < 1e-12
# ```
#
# </details>
#
# **2.** A lazy drafter draws every token with the same probability, $q = 1/V$. Is the text still distributed as the
# model's? How often is a draft accepted, for $p$ of section 4? And which single token should a drafter always propose
# (with all of $q$ on this token) to have most drafts accepted?
#
# <details><summary>Solution</summary>
#
# Yes, because the proof used nothing about $q$. Drafts are accepted with probability $\sum \min(p, 1/V)$. With all of
# $q$ on one token $x$, this is $p(x)$, so the drafter should propose the likeliest token.
#
# ```python
# p_ = found["Sampling.verify"]  # close to p of section 4
# even = torch.full((1, VOCABULARY), 1 / VOCABULARY, dtype=torch.float64)
# drafts = torch.randint(VOCABULARY, (ROUNDS, 1), generator=source)
# stand, token = Sampling(do_sample=True).verify(p_.expand(ROUNDS, 2, -1), even.expand(ROUNDS, 1, -1), drafts, source)
# result = torch.where(stand == 1, drafts[:, 0], token).bincount(minlength=VOCABULARY) / ROUNDS
# assert ((result - p_).abs() <= 5 * (p_ * (1 - p_) / ROUNDS).sqrt()).all()
# print(f"accepted: {(stand == 1).double().mean():.3f}, expected {torch.minimum(p_, even[0]).sum():.3f}")
# print(f"always {p_.argmax()}: {p_.max():.3f} of the drafts are accepted")
# ```
#
# </details>
#
# **3.** MTP has its own key-value cache. Entries that were made while drafting come from MTP's own hidden states.
# `Decoder.draft` removes them even for drafts that are accepted later, and `Decoder.show_mtp` computes them again from
# the model's hidden states. Why, if the tokens are the same? Measure how far apart the two hidden states are.
#
# <details><summary>Solution</summary>
#
# The entry of a position is computed from $[e_{i+1}; h_i]$. While MTP drafts, $h_i$ is not known, so $m_{i-1}$ takes
# its place. This is a different vector, and the layer was not trained on it. If such entries stayed in the cache, all
# later drafts would see them. The text would still be right, but the drafts would be worse.
#
# ```python
# m_ = model.look_ahead(h[:, :-1], e[:, 1:])  # row i: in place of the model's hidden state i + 1
# likeness = F.cosine_similarity(m_[0, :-1], h[0, 1:-1], dim=-1)
# print(f"cosine of MTP's and the model's hidden state, same position: median {likeness.median():.2f}")
# figures.expect("they differ: the median is below 0.99", likeness.median() < 0.99)
# ```
#
# </details>
#
# **4. Fill in.** Write the rule of section 4 for a single draft. `u` decides whether the draft is accepted, and `pick`
# draws a token from a distribution. The test runs the rule 20,000 times.


# %%
def accept_or_redraw(p, q, draft, u, pick):
    """p, q (VOCABULARY,), draft a token drawn from q, u in [0, 1), pick(distribution) -> token: the token to write"""
    ...  # your part


def test_accept_or_redraw(attempt):
    times, written = 20_000, torch.zeros(VOCABULARY)
    pick = lambda r: torch.multinomial(r / r.sum(), 1, generator=source).item()  # noqa: E731
    drafts, luck = torch.multinomial(q_of_4, times, replacement=True, generator=source), torch.rand(times).tolist()
    for draft, u in zip(drafts.tolist(), luck):
        written[attempt(p_of_4, q_of_4, draft, u, pick)] += 1
    error = (p_of_4 * (1 - p_of_4) / times).sqrt()
    assert ((written / times - p_of_4).abs() <= 5 * error + 1e-12).all(), "the tokens are not distributed as p"


course.try_it(test_accept_or_redraw, accept_or_redraw)


# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def accept_or_redraw(p, q, draft, u, pick):
#     if u < p[draft] / q[draft]:
#         return draft
#     return pick((p - q).clamp(min=0))
#
#
# test_accept_or_redraw(accept_or_redraw)
# ```
#
# </details>
#
# ## Five questions
#
# 1. Which two inputs does the MTP layer have at position $i$, and which token does it predict? Which mistake of section
#    1 is the quiet one, and where would you notice it?
# 2. How likely is it that a draft is accepted? If it is rejected, from which distribution do we draw, and why not
#    simply from $p$?
# 3. Why can't a Gated DeltaNet layer compute its earlier state from its present one? What does the code keep instead?
# 4. An implementation takes back keys and values, but not the states. What do you see, and which test finds it?
# 5. When does one draft pay? Why does a wider pass cost more in a sparse mixture of experts than in a dense model?
#
# <details><summary>Answers</summary>
#
# 1. The model's hidden state $h_i$ after its final norm, and the embedding of $t_{i+1}$. It predicts $t_{i+2}$. The
#    quiet mistake is the hidden state from before the final norm. The text stays right, but drafts may get a little
#    worse. Then you notice less speed, and nothing else.
# 2. A draft $x$ is accepted with probability $\min(1, p(x)/q(x))$, which is $\sum \min(p, q)$ on average. If it is
#    rejected, we draw from the part of $p$ that lies above $q$. The overlap of $p$ and $q$ has had its share already,
#    when drafts were accepted. A draw from $p$ would give the overlap more.
# 3. A token with a decay near 0 has forgotten the old state, and a token with a write strength near 1 has overwritten a
#    value. The formula then divides by a small number, and the rounding error grows. The code keeps the state from
#    before the pass and what each token wrote, and writes the accepted tokens again.
# 4. The text is fluent, but it is not the right text. To find the mistake, check that greedy decoding writes exactly
#    the same with drafts as without them. Or compare every cache after a rollback with one that has never read the
#    rejected tokens.
# 5. It pays if its acceptance $a$ is above $c_1 + d - 1$. A dense model reads all weights once, for one token or for
#    four. In a sparse mixture, each additional token needs its own experts, which have to be read as well.
#
# </details>
#
# ## Three sentences to remember
#
# 1. MTP predicts the token after the next from the model's hidden state, after its final norm, and the embedding of the
#    next token.
# 2. If drafts are accepted with probability $\min(1, p/q)$, rejected ones are replaced by a draw from the part of $p$
#    above $q$, and every state forgets them, the text is distributed exactly as without drafts.
# 3. Drafts pay where several tokens cost little more than one, and a sparse mixture of experts gains less because more
#    tokens need more experts.
#
# Next: [9_real_weights.ipynb](9_real_weights.ipynb), on what a checkpoint holds and how fast your machine can run it.
