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
# # 5. Gated attention
#
# Three layers in four of Qwen3-Next compress the past into a memory of fixed size. The fourth is softmax attention. It
# can look up every earlier token, and the price is that it keeps them all. What does this layer compute, and why does
# it differ from textbook attention in five places? Each of the five can go wrong without changing a shape, so a broken
# port may still write fluent text.
#
# The five are these. The query projection also produces a *gate*. Queries and keys are *normalised*. Only a quarter of
# each head is *rotated*. Many query heads *share* a few key and value heads. And the gate scales each head's output.
#
# After this notebook you can write the layer from its equations, explain the purpose of each of the five, and name the
# mistakes that keep every shape right. You need softmax attention and PyTorch. We build the layer step by step on a
# small trained model, and compare every step with [`qwen3_next.py`](../qwen3_next.py). For one lesson, take sections 1
# to 3, section 5, and section 6 up to its experiment. The rest is homework.
#
# | | |
# |---|---|
# | [GA] | Gated Attention for Large Language Models, [arXiv 2505.06708](https://arxiv.org/abs/2505.06708) |
# | [GQA] | Grouped-query attention, [arXiv 2305.13245](https://arxiv.org/abs/2305.13245) |
# | [QKN] | Query-key normalisation, [arXiv 2010.04245](https://arxiv.org/abs/2010.04245) |
# | [RoPE] | Rotary positions, [arXiv 2104.09864](https://arxiv.org/abs/2104.09864) |
# | [YaRN] | Longer contexts, [arXiv 2309.00071](https://arxiv.org/abs/2309.00071) |
# | [Sink] | Attention sinks, [arXiv 2309.17453](https://arxiv.org/abs/2309.17453) |

# %%
from start import root

# %%
import math
import tempfile

import corpus
import course
import figures
import torch
import torch.nn.functional as F
from course import apart
from pictures import gated_attention as pictures

# %%
import reference_recurrent
from qwen3_next import (
    Cache,
    GatedAttention,
    KVCache,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    Qwen3NextTokenizer,
    Step,
    rope_frequencies,
)
from verify.trace import recording

figures.setup()
normal = torch.Generator().manual_seed(0)  # one source of random numbers for this notebook
drawn = "Gated attention from bottom to top: projections to q, gate, k and v; RMSNorm of q and k; rotation; softmax"
figures.drawing("attention", f"{drawn} attention; the product with the sigmoid of the gate; a projection.")

# %% [markdown]
# ## The layer, and a model to watch
#
# Let $x_t$ be the input of the layer at position $t$, a row of width $D$. There are $H$ query heads and $H_{kv}$ key
# and value heads, all of width $d$. Query head $h$ reads the key and value head $h' = \lfloor h\,H_{kv}/H \rfloor$, and
# $\odot$ is the product entry by entry. The layer computes
#
# $$\begin{aligned}
# q_t^h,\; g_t^h &= W_q^h x_t \qquad k_t^{h'} = W_k^{h'} x_t \qquad v_t^{h'} = W_v^{h'} x_t && \text{(project)}\\
# \hat q_t^h &= R_t\,\mathrm{norm}_q(q_t^h) \qquad \hat k_t^{h'} = R_t\,\mathrm{norm}_k(k_t^{h'})
#   && \text{(normalise, rotate by position)}\\
# y_t^h &= \sum_{j \le t} a_{tj}^h\, v_j^{h'}, \qquad
#   a_{tj}^h = \mathrm{softmax}_{j \le t}\big(\hat q_t^h \cdot \hat k_j^{h'} / \sqrt d\big) && \text{(attend)}\\
# o_t &= W_o\,\big[\, \sigma(g_t^1) \odot y_t^1,\; \dots,\; \sigma(g_t^H) \odot y_t^H \,\big]
#   && \text{(gate, project back)}
# \end{aligned}$$
#
# The model is `tiny/`, trained on generated stories, phone books and accounts of things that people move about. We load
# it in float64. Two ways to compute the same thing then agree to about 13 digits, and no mistake can pass for rounding.

# %%
model = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float64)
tokenizer = Qwen3NextTokenizer.from_pretrained(root / "tiny")
tiny = model.config
shared = {"vocab_size": 151936, "hidden_size": 2048, "num_experts": 512, "num_experts_per_tok": 10}
widths = {"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512}
linear = {f"linear_{n}": v for n, v in [("num_key_heads", 16), ("num_value_heads", 32)]}
linear |= {"linear_key_head_dim": 128, "linear_value_head_dim": 128}
heads = {"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "rope_theta": 1e7}
released = Qwen3NextConfig(num_hidden_layers=48, **shared, **widths, **linear, **heads)  # the 80B, as a config only


def facts(config):
    count = config.layer_types.count("full_attention")
    H, H_kv, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    return count, config.num_hidden_layers, config.hidden_size, H, H_kv, d, int(d * config.partial_rotary_factor)


names = ["attention layers", "layers", "D", "H, query heads", "H_kv, key and value heads", "d", "R, rotated dimensions"]
for name, small, large in zip(names, facts(tiny), facts(released)):
    print(f"{name:28} tiny/ {small:5}    80B {large:6}")

# %% [markdown]
# We run one held-out phone book, with a question and its answer, through the model, and `trace` records every
# intermediate value. We take the last attention layer. Its only input is `x`, the output of the norm before it. The
# list below names everything that it computes from `x`.


# %%
document = corpus.Corpus("held out", {"book": 1.0}, entries=5).document("attention:0")
ids = [token for token, _ in course.ids_and_roles(document, tokenizer.encode)]
ids = ids[: ids.index(tokenizer.encode("<|im_end|>")[0], ids.index(tokenizer.encode("assistant")[0])) + 1]
with torch.no_grad(), recording(model) as trace:
    model(torch.tensor([ids]))

ATTENTION = [i for i, kind in enumerate(tiny.layer_types) if kind == "full_attention"]
prefix = f"model.layers.{ATTENTION[-1]}."
layer = model.get_submodule(prefix + "self_attn")  # a GatedAttention
x = trace[prefix + "input_layernorm.out"]  # (T, D)
seen = {k.removeprefix(prefix + "self_attn."): v for k, v in trace.items() if k.startswith(prefix + "self_attn.")}
print(tokenizer.decode(ids), "\n")
for name, value in {"x": x, **seen}.items():
    print(f"{name:12} {tuple(value.shape)}")

# %%
T, D = x.shape
H, H_kv, d = tiny.num_attention_heads, tiny.num_key_value_heads, tiny.head_dim
W = {name: p.detach() for name, p in layer.named_parameters()}


def same(ours, theirs, atol=1e-11):
    """Fails unless both agree: float64 leaves about 1e-13 after a few hundred additions of numbers up to 100."""
    course.same(ours, theirs, atol)


# %% [markdown]
# ## 1. One projection, two jobs
#
# $W_q$ has $2Hd$ rows and produces both the query and the gate of every head. How are its rows ordered? **Head by
# head**: $d$ rows of query, then $d$ rows of gate, then the next head:
#
# $$W_q x = [\, q^1 \mid g^1 \mid q^2 \mid g^2 \mid \dots \mid q^H \mid g^H \,]$$
#
# So we must split *inside* each head. We reshape to $(T, H, 2d)$ first, and then cut in half.

# %%
qg = x @ W["q_proj.weight"].T  # (T, H * 2d)
q, gate = qg.view(T, H, 2 * d).chunk(2, dim=-1)  # (T, H, d) each
same(q, seen["q"])
same(gate, seen["gate"])

# %% [markdown]
# Here is the trap. Suppose we cut the whole output in the middle, "first all queries, then all gates". We get two
# tensors of the same shapes. Nothing fails, and the model still writes something. The picture shows the rows of $W_q$.
# The upper bar shows the right reading, the lower bar the wrong one. Look at which rows the wrong reading takes for
# queries.

# %%
wrong_q, wrong_gate = (half.reshape(T, H, d) for half in qg.chunk(2, dim=-1))
print(f"relative error of the query {apart(wrong_q, q):.2f}, of the gate {apart(wrong_gate, gate):.2f}")
course.finding("both are more than half wrong", apart(wrong_q, q) > 0.5 and apart(wrong_gate, gate) > 0.5)

pictures.rows_of_q_proj(H, d)

# %% [markdown]
# Only the first and the last block agree. In between, the wrong reading mixes up heads, and even takes gates for
# queries.
#
# With a single head both readings agree, so a test with one head would miss the mistake. That is why the small models
# in this repository's tests have unequal numbers of everything.
#
# ## 2. Normalised queries and keys
#
# We divide each head's query and key by its root mean square, and then scale it entry by entry ([QKN]). There is one
# $w$ for queries and one for keys, and all heads share them:
#
# $$\mathrm{norm}(q)_i = \frac{q_i}{\sqrt{\frac1d \sum_j q_j^2 + \epsilon}}\,(1 + w_i)$$


# %%
def norm(q, w):
    """q (..., d), w (d,)"""
    return q * (q.square().mean(-1, keepdim=True) + tiny.rms_norm_eps) ** -0.5 * (1 + w)


k = (x @ W["k_proj.weight"].T).view(T, H_kv, d)
v = (x @ W["v_proj.weight"].T).view(T, H_kv, d)
q_normed, k_normed = norm(q, W["q_norm.weight"]), norm(k, W["k_norm.weight"])
same(q_normed, seen["q_norm.out"])
same(k_normed, seen["k_norm.out"])

# %% [markdown]
# Why do this? A vector divided by its root mean square has length $\sqrt d$ at most. By the Cauchy-Schwarz inequality,
# every logit is then bounded, however large the activations and the projection weights are. (The rotation that follows
# keeps lengths.)
#
# $$\frac{|\hat q \cdot \hat k|}{\sqrt d} \;\le\; \frac{|\hat q|\,|\hat k|}{\sqrt d} \;\le\;
# \sqrt d\,\max_i|1 + w^q_i|\,\max_i|1 + w^k_i|$$
#
# Without the norm, a logit grows with the *square* of the activations. To see this, we multiply the layer's input by
# $c$. The left picture shows the largest logit. The right picture shows how many tokens a query really attends to,
# measured by $\exp$ of the entropy of its attention weights.


# %%
def logits(q, k):
    """q (T, H, d), k (T, H_kv, d) -> (H, T, T), scaled; the future not masked yet"""
    return torch.einsum("thd,shd->hts", q, k.repeat_interleave(H // H_kv, dim=1)) * d**-0.5


future = torch.ones(T, T, dtype=torch.bool).triu(1)
scales = torch.logspace(-1, 3, 17, dtype=torch.float64)
largest, attended = {"without": [], "with norm": []}, {"without": [], "with norm": []}
for c in scales:
    pairs = {"without": (c * q, c * k), "with norm": (norm(c * q, W["q_norm.weight"]), norm(c * k, W["k_norm.weight"]))}
    for name, (a, b) in pairs.items():
        z = logits(a, b)
        p = z.masked_fill(future, -math.inf).softmax(-1)[:, T // 2 :]  # (H, T/2, T)
        largest[name].append(z.abs().max().item())
        attended[name].append(torch.special.entr(p).sum(-1).exp().mean().item())
bound = math.sqrt(d) * ((1 + W["q_norm.weight"]).abs().max() * (1 + W["k_norm.weight"]).abs().max()).item()
assert max(largest["with norm"]) < bound
assert max(largest["with norm"]) < 1.01 * min(largest["with norm"])  # c cancels out, except for epsilon
assert largest["without"][-1] / largest["without"][0] > 0.99e8  # (1000 / 0.1)^2

# %%
pictures.growth_of_logits(scales, largest, attended, bound)

# %% [markdown]
# On the left, activations 10 times as large give logits 100 times as large without the norm, until they are too large
# for float16. On the right, the harm comes long before that: each query attends to a single token. Such a sharp softmax
# passes almost no gradient, so training can't repair it. With the norm, neither curve moves.
#
# The norm does not forbid sharp attention, because the bound depends on $w$, which is learned. But the sharpness is now
# set in one place, by $w$, dimension by dimension.
#
# Why $1 + w$ and not $w$? $w$ starts at 0, and weight decay pulls it back to 0. That pulls the scale to 1, its neutral
# value. Decay on a plain $w$ would pull the scale to 0, and all logits with it, so that the head would attend to all
# tokens evenly. (The Qwen team's announcement of Qwen3-Next gives this reason: some norm weights of Qwen3 grew very
# large, and decay on $w$ prevents that.) Here is weight decay alone, with no gradient:

# %%
for name, start in {"1 + w": 0.5, "w": 1.5}.items():
    w = torch.nn.Parameter(torch.tensor([start]))
    optimizer = torch.optim.AdamW([w], lr=0.01, weight_decay=0.1)
    for _ in range(5000):
        w.grad = torch.zeros(1)
        optimizer.step()
    print(f"scale = {name:5}  1.5 at the start, {w.item() + (name == '1 + w'):.2f} after 5000 steps of decay")

plain = norm(q, W["q_norm.weight"] - 1)  # what you compute if you forget the 1
print(f"\ntiny/: 1 + w is {(1 + W['q_norm.weight']).min():.2f} to {(1 + W['q_norm.weight']).max():.2f} for queries;")
print(f"without the 1 the query has a relative error of {apart(plain, q_normed):.2f}")

# %% [markdown]
# ## 3. A quarter of each head turns
#
# Attention sees a set of tokens, without their order. So queries and keys have to carry the positions. [RoPE] turns
# pairs of entries by an angle proportional to the position $t$. Here only the first $R = d/4$ entries turn, entry $i$
# together with entry $i + R/2$:
#
# $$\begin{pmatrix} \hat q_i \\ \hat q_{i + R/2} \end{pmatrix} =
# \begin{pmatrix} \cos t\omega_i & -\sin t\omega_i \\ \sin t\omega_i & \cos t\omega_i \end{pmatrix}
# \begin{pmatrix} q_i \\ q_{i + R/2} \end{pmatrix},
# \qquad \omega_i = \theta^{-2i/R}, \quad i = 0 \dots R/2 - 1$$
#
# If we read a pair as one complex number, turning multiplies it by $e^{\mathrm{i} t\omega_i}$. That is how we write it
# here. `apply_rope` in `qwen3_next.py` writes out the real and the imaginary part. Three mistakes keep all shapes
# right: dividing by $d$ instead of $R$ in the exponent, pairing neighbours $(2i, 2i+1)$, and turning all $d$ entries.

# %%
R = int(d * tiny.partial_rotary_factor)
omega = tiny.rope_theta ** (-2 * torch.arange(R // 2, dtype=torch.float64) / R)  # (R/2,) radians per position
same(omega, rope_frequencies(tiny)[0], atol=1e-15)


def rotate(q, positions, omega, factor=1.0):
    """q (T, heads, d), positions (T,): turns the first 2 len(omega) entries of each head"""
    half = len(omega)
    angle = positions[:, None, None] * omega  # (T, 1, R/2)
    z = torch.complex(q[..., :half], q[..., half : 2 * half]) * torch.polar(torch.full_like(angle, factor), angle)
    return torch.cat([z.real, z.imag, q[..., 2 * half :]], dim=-1)


positions = torch.arange(T, dtype=torch.float64)
q_rope, k_rope = rotate(q_normed, positions, omega), rotate(k_normed, positions, omega)
same(q_rope, seen["q_rope"])
same(k_rope, seen["k_rope"])
assert torch.equal(q_rope[..., R:], q_normed[..., R:])  # the other three quarters are unchanged, bit for bit

# %% [markdown]
# The next picture shows how fast each pair turns.
#
# On the left, each row is one entry of a head of `tiny/`, each column a position, and the colour is the cosine of the
# angle. The first pairs turn fast and the last ones hardly at all. Below the white line the cosine is always 1, because
# the entries there do not turn. The two entries of a pair lie $R/2$ apart and have the same row.
#
# The right panel is for the released model, with its 32 pairs and $\theta = 10^7$. It shows how often each pair turns
# within 262,144 tokens, the longest context in training. Compare the fastest pair with the slowest: the ratio of their
# turns is in the millions.

# %%
large = rope_frequencies(released)[0]  # (32,)
pictures.turns(omega, R, d, large, released.max_position_embeddings)

# %% [markdown]
# What do we gain by the rotation? Let $q$ be a query at position $t$ and $k$ a key at position $j$, both after their
# norms. We turn $q$ by $t\omega$ and $k$ by $j\omega$. Their product then depends on $t - j$ alone:
#
# $$\hat q \cdot \hat k = \sum_{i < R/2} \mathrm{Re}\big(\bar z^k_i\, z^q_i\, e^{\mathrm{i}(t - j)\omega_i}\big) +
# \sum_{i \ge R} q_i k_i$$
#
# Here $z_i$ is pair $i$ as a complex number, and the bar is its conjugate. To check this, we put the same $q$ and the
# same $k$ at every position. Their matrix of products must be constant along each diagonal, and it must be the same
# 1000 positions later.
#
# The second sum does not depend on the positions. A match in those entries counts the same at any distance. The picture
# shows both sums for one query and one key. Look at which of them changes with the distance.

# %%
one_q, one_k = (torch.randn(1, 1, d, generator=normal, dtype=torch.float64).expand(96, 1, d) for _ in range(2))
place = torch.arange(96, dtype=torch.float64)
products = [
    torch.einsum("thd,shd->ts", rotate(one_q, place + shift, omega), rotate(one_k, place + shift, omega))
    for shift in (0, 1000)
]
same(products[0][1:, 1:], products[0][:-1, :-1])  # one step down and one to the right: the same
same(products[1], products[0])
unturned = (one_q[0, 0, R:] * one_k[0, 0, R:]).sum()
turned = products[0] - unturned
assert turned[:, 0].std() > 0.1  # the first sum does depend on the distance

pictures.by_distance(turned[:, 0], unturned)

# %% [markdown]
# ## 4. YaRN: a longer context than in training
#
# How can a model read a text longer than any it was trained on? The slow pairs of the released model never finish one
# turn in training. (In the picture of turns above, they are below the line.) In a context four times as long, they
# would reach angles that the model has never seen. Dividing *all* frequencies by 4 would blur the fast pairs, which
# distinguish neighbours.
#
# [YaRN] (section 3.2) treats each pair by the number of turns it makes in the original context of $L$ tokens. Pairs
# with more than $\beta_{fast} = 32$ turns keep their frequency. The frequency of pairs with fewer than
# $\beta_{slow} = 1$ turns is divided by the factor $s$. In between, YaRN blends linearly. Which pair makes $n$ turns?
# We solve $L\,\theta^{-2i/R} = 2\pi n$ for $i$:
#
# $$i(n) = \frac{R \ln (L / 2\pi n)}{2 \ln \theta}, \qquad
# r_i = \mathrm{clip}\Big(\frac{i - \lfloor i(32) \rfloor}{\lceil i(1) \rceil - \lfloor i(32) \rfloor},\, 0,\, 1\Big),
# \qquad \omega'_i = (1 - r_i)\,\omega_i + r_i\,\omega_i / s$$
#
# We use the model card's own setting for one million tokens. We also compare with `reference_recurrent.py`, the
# project's second implementation. It is in NumPy and shares no code with the first. The picture shows, pair by pair,
# how YaRN changes the frequency (left) and the turns in the whole context (right).

# %%
yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262144}
longer = Qwen3NextConfig(**{**released.to_dict(), "rope_scaling": yarn})
L, theta, s, R80 = yarn["original_max_position_embeddings"], released.rope_theta, yarn["factor"], 64


def pair_that_turns(n):
    return R80 * math.log(L / (2 * math.pi * n)) / (2 * math.log(theta))


low, high = math.floor(pair_that_turns(32)), math.ceil(pair_that_turns(1))
r = ((torch.arange(R80 // 2) - low) / (high - low)).clamp(0, 1).double()
stretched = (1 - r) * large + r * large / s
factor = 0.1 * math.log(s) + 1
same(stretched, rope_frequencies(longer)[0], atol=1e-15)
same(stretched, torch.from_numpy(reference_recurrent.Config(longer.to_dict()).inv_freq), atol=1e-15)
assert math.isclose(factor, rope_frequencies(longer)[1], rel_tol=1e-15)
print(f"pairs 0 to {low} keep, {low + 1} to {high - 1} blend, {high} to {R80 // 2 - 1} are divided by {s:.0f}")

# %%
pictures.yarn(r, stretched / large, s * L * stretched / (2 * math.pi), L * large / (2 * math.pi))

# %% [markdown]
# The left picture has three zones: pairs that keep their frequency, blended pairs, and divided pairs. In the right one,
# the black line shows training (262,144 tokens), and the points show YaRN (1,048,576 tokens). The divided pairs lie on
# the line, so they reach no angle that training has not reached. The pairs that keep their frequency turn four times as
# often as in training, but those had already seen every angle many times.
#
# YaRN also multiplies cosine and sine by $0.1 \ln s + 1$ (section 3.4), to keep attention sharp over more tokens.
# Queries and keys both carry this factor, so their product carries its square. In a model that turns whole heads, this
# is the same as one temperature for the softmax. Here it is not, because only the turned entries' part of the product
# grows.

# %%
q0, k0 = (torch.randn(1, 1, 256, generator=normal, dtype=torch.float64) for _ in range(2))
there, here = torch.tensor([900_000.0]).double(), torch.tensor([300_000.0]).double()
with_factor = (rotate(q0, there, stretched, factor) * rotate(k0, here, stretched, factor))[0, 0]
without = (rotate(q0, there, stretched) * rotate(k0, here, stretched))[0, 0]
same(with_factor[:R80].sum(), factor**2 * without[:R80].sum())
assert torch.equal(with_factor[R80:], without[R80:])
print(f"factor {factor:.4f}; turned entries' part of the product times {factor**2:.4f}, the others' times 1")

# %% [markdown]
# ## 5. Many queries, few keys
#
# While a model writes, each attention layer keeps the keys and values of all tokens. How much is that? In bfloat16,
# each attention layer keeps $2 \cdot 2 \cdot H_{kv}\,d$ bytes per token. Grouped queries ([GQA]) make $H_{kv}$ small:
# in the released model, 16 query heads read 2 key and value heads. There is a second saving: three layers in four are
# not attention. The bars below apply first the second saving and then both.

# %%
_, layers, _, H80, H80_kv, d80, _ = facts(released)
count = released.layer_types.count("full_attention")
variants = {
    f"{layers} layers, {H80} KV heads": (layers, H80),
    f"{count} layers, {H80} KV heads": (count, H80),
    f"{count} layers, {H80_kv} KV heads (the 80B)": (count, H80_kv),
}
gigabytes = {name: 2 * 2 * n * heads * d80 * 262144 / 1e9 for name, (n, heads) in variants.items()}
pictures.caches(gigabytes)
assert math.isclose(gigabytes[f"{count} layers, {H80} KV heads"], 8 * [*gigabytes.values()][-1])

# %% [markdown]
# Fewer attention layers divide the cache by four, and shared heads divide the rest by eight.
#
# Which key head does a query head read? In the equations, query head $h$ reads key head $\lfloor h H_{kv}/H \rfloor$,
# so the first $H/H_{kv}$ query heads share the first key head. That is `repeat_interleave` (0 0 1 1). `repeat` would
# tile them (0 1 0 1). The two agree when there is one key head, and when there are as many key heads as query heads, so
# a test with equal numbers does not see the difference. PyTorch's own function does the right thing with
# `enable_gqa=True`.


# %%
def attention(q, k):
    """The weights (H, T, T) of queries (T, H, d) and keys (T, H_kv, d), each over its own past"""
    future = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    return logits(q, k).masked_fill(future, -math.inf).softmax(-1)


p = attention(q_rope, k_rope)
y = torch.einsum("hts,shd->thd", p, v.repeat_interleave(H // H_kv, dim=1))  # (T, H, d)
same(y, seen["attn_out"])

by_head = (z.transpose(0, 1)[None] for z in (q_rope, k_rope, v))  # (1, heads, T, d)
fused = F.scaled_dot_product_attention(*by_head, is_causal=True, enable_gqa=True)[0].transpose(0, 1)
same(y, fused)

tiled = torch.einsum("thd,shd->hts", q_rope, k_rope.repeat(1, H // H_kv, 1)) * d**-0.5
tiled = torch.einsum("hts,shd->thd", tiled.masked_fill(future, -math.inf).softmax(-1), v.repeat(1, H // H_kv, 1))
print(f"heads tiled: relative error {apart(tiled, y):.2f}")
course.finding("that is more than 0.3", apart(tiled, y) > 0.3)

# %% [markdown]
# Where does the layer look? We search all attention heads of `tiny/` for the one that finds the number. As the answer
# is written, digit by digit, how much of a head's attention falls on the same digit in the book? We take the head with
# the largest share.
#
# The picture shows that head's attention. Each row is a token from which the model predicts one digit of the answer,
# and each column is a token of the book. Look for a bright diagonal.

# %%
texts = [tokenizer.decode([i]).replace("\n", "\\n") for i in ids]
end = ids.index(tokenizer.encode("\n\n")[0])  # the book ends here
colon = max(i for i, text in enumerate(texts) if text == ":")  # after the name in the answer
rows = range(colon + 1, colon + 5)  # predicting the four digits
start = next(i for i in range(end) if texts[i] == texts[colon - 1])  # the name in the book
found = [start + 3 + i for i in range(4)]  # its four digits
assert [ids[i] for i in found] == [ids[i + 1] for i in rows]


def parts(trace, number, *names):
    return [trace[f"model.layers.{number}.self_attn.{name}"] for name in names]


ps = [attention(*parts(trace, i, "q_rope", "k_rope")) for i in ATTENTION]
share = torch.stack([p[:, rows, found].mean(1) for p in ps])  # (attention layers, H)
best_layer, best_head = divmod(share.argmax().item(), H)
p_found = ps[best_layer][best_head]
opening = parts(trace, ATTENTION[best_layer], "gate")[0][:, best_head].sigmoid().mean(-1)  # (T,)
print(f"layer {ATTENTION[best_layer]}, head {best_head}: {share.max():.0%} of its attention falls on the right digit;")
print(f"its gate is {opening[rows].mean():.2f} open there, {opening.mean():.2f} on average over the document")
figures.expect("some head finds the number: more than half of its attention is on the right digit", share.max() > 0.5)

# %%
columns = [text.strip() or "␣" for text in texts[:end]]
pictures.lookup(p_found[rows, :end], columns, [f"{texts[i].strip() or '␣'} → {texts[i + 1]}" for i in rows])

# %% [markdown]
# If the line printed above begins with "as expected", you see the head move along the digits of the right entry as the
# answer advances.
#
# ## 6. The gate
#
# The last step multiplies each head's output, entry by entry, by numbers between 0 and 1. These numbers depend only on
# the token that asks ([GA], section 2.2). Of all the places for a gate that the authors tried, this was the best:
#
# $$o_t = W_o\,[\,\sigma(g_t^h) \odot y_t^h\,]_{h = 1 \dots H}$$
#
# With the gate, the layer is complete.

# %%
out = (gate.sigmoid() * y).flatten(1) @ W["o_proj.weight"].T  # (T, D)
same(out, seen["o_proj.out"])
print(f"without the gate: relative error {apart(y.flatten(1) @ W['o_proj.weight'].T, out):.2f}")

# %% [markdown]
# ### A head that has nothing to say
#
# Why does attention need a gate? Softmax weights are positive and sum to 1, so a head returns a weighted mean of
# values. A mean can't leave the convex hull of the values that it averages. Suppose there is a direction $u$ in which
# every value has a component of at least 1. Then the output has one of at least 1 as well, whatever the query and the
# keys are:
#
# $$u \cdot y = \sum_j a_j\,(u \cdot v_j) \;\ge\; \sum_j a_j = 1$$
#
# So such a head can't be silent. We construct values like these and try 10,000 random sets of weights, from even to
# sharp. Even the shortest output is not small. A gate can make it as small as needed, and the number of tokens does not
# matter.

# %%
values = torch.randn(64, 16, generator=normal, dtype=torch.float64)
values[:, 0] = 1 + values[:, 0].abs()  # u = the first axis
temperature = torch.logspace(-1, 1.5, 10_000, dtype=torch.float64)[:, None]
many = (temperature * torch.randn(10_000, 64, generator=normal, dtype=torch.float64)).softmax(-1)  # (10000, 64)
returned = many @ values  # (10000, 16)
assert returned[:, 0].min() >= 1
silent = torch.tensor(-8.0).sigmoid() * returned
print(f"shortest of 10,000 outputs: {returned.norm(dim=-1).min():.2f}")
print(f"longest after a gate of σ(-8): {silent.norm(dim=-1).max():.4f}")
assert silent.norm(dim=-1).max() < 0.01

# %% [markdown]
# Models without a gate find another way out. They make the value of some token nearly zero, and attend to that token
# when they have nothing to say. Such a token is an *attention sink*. Mostly it is the first token, which every query
# can see ([Sink]). Suppose the sink's logit is $z$ above that of $n$ other tokens. The others still get
#
# $$1 - a_{sink} = \frac{n}{n + e^{z}}$$
#
# So the longer the text is, the further the sink has to rise above the rest: $z$ grows with $\ln n$. (By section 2, a
# logit lies between $-\sqrt d$ and $\sqrt d$ while $w = 0$, so $z$ is $2\sqrt d$ at most.) The picture compares sinks
# in texts of three lengths with a gate. Look at where each curve begins to fall.

# %%
for n in (100, 10_000, 262_144):
    check = torch.cat([torch.tensor([9.0]), torch.zeros(n)]).double().softmax(0)[1:].sum()
    same(check, torch.tensor(n / (n + math.exp(9.0)), dtype=torch.float64))
pictures.sinks(2 * math.sqrt(256))

# %% [markdown]
# ### An experiment: does training find the sink?
#
# The gate's curve falls at once, for any number of tokens. A sink needs a larger logit in a longer text. Does training
# find these two ways out?
#
# One `GatedAttention` layer with one head learns to answer at some tokens and to be silent at all others. Every token
# has a key (a random direction) and a value (one of eight). One token in four asks for the key of an earlier token and
# must return its value. All others must return zero. We train the layer with and without the gate. To train without it,
# we hold its rows of `q_proj` at zero. The gate is then the constant σ(0) = ½, which `o_proj` can undo. Each of the two
# is trained with and without an empty token at the start, which could serve as a sink.

# %%
KEY, VALUE, LENGTH = 16, 8, 24
toy = Qwen3NextConfig(
    vocab_size=2, hidden_size=48, num_hidden_layers=1, layer_types=["full_attention"], num_attention_heads=1,
    num_key_value_heads=1, head_dim=32, rope_theta=1e4, num_experts=0, intermediate_size=8,
)  # fmt: skip


def ask_or_be_silent(B, empty_start, source):
    """x (B, LENGTH, 48), which tokens ask (B, LENGTH), and what should come out (B, LENGTH, VALUE)"""
    keys = F.normalize(torch.randn(B, LENGTH, KEY, generator=source), dim=-1)
    values = F.one_hot(torch.randint(VALUE, (B, LENGTH), generator=source), VALUE).float()
    asks = torch.rand(B, LENGTH, generator=source) < 0.25
    asks[:, :2] = False
    earlier = 1 + (torch.rand(B, LENGTH, generator=source) * (torch.arange(LENGTH) - 1).clamp(min=0)).long()
    rows = torch.arange(B)[:, None]
    asked, target = keys[rows, earlier] * asks[..., None], values[rows, earlier] * asks[..., None]
    mark = torch.where(asks, 1.0, -1.0)[..., None]
    x = F.pad(torch.cat([keys, values, asked, mark], dim=-1), (0, 48 - 2 * KEY - VALUE - 1))
    if empty_start:
        x[:, 0], x[:, 0, -1] = 0, 1  # nothing but a flag
    return 4 * x, asks, target


# %%
def run(layer, x):
    """A GatedAttention on x (B, T, D) alone, after an empty cache"""
    empty = Cache([], torch.zeros(len(x), dtype=torch.long))
    return layer(x, Step(x, None, None, empty, rope_frequencies(toy)))


# %%
def learn(gated, empty_start, seed, steps=350):
    torch.manual_seed(seed)
    source, layer = torch.Generator().manual_seed(seed), GatedAttention(toy)
    for weight in [p for p in layer.parameters() if p.ndim > 1]:
        torch.nn.init.kaiming_uniform_(weight, math.sqrt(5))  # as nn.Linear initialises it
    if not gated:
        is_query = torch.arange(2 * toy.head_dim)[:, None] < toy.head_dim
        layer.q_proj.weight.data *= is_query
        layer.q_proj.weight.register_hook(lambda gradient: gradient * is_query)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        x, asks, target = ask_or_be_silent(32, empty_start, source)
        loss = (run(layer, x)[..., :VALUE] - target).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return layer, source


# %%
def examine(layer, empty_start, source):
    """Squared error and attention on the first token, of tokens that ask and of silent ones, and the mean gates"""
    x, asks, target = ask_or_be_silent(256, empty_start, source)
    with torch.no_grad(), recording(layer) as found:
        error = (run(layer, x)[..., :VALUE] - target).square().sum(-1)
    z = torch.einsum("bthd,bshd->bts", found["q_rope"], found["k_rope"]) * toy.head_dim**-0.5
    first = z.masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -math.inf).softmax(-1)[..., 0]
    late = torch.arange(LENGTH) >= LENGTH // 3  # late enough to have other tokens to attend to
    opening, asking, silent = found["gate"][:, :, 0].sigmoid().mean(-1), asks & late, ~asks & late
    return [z[which].mean().item() for z in (error, first, opening) for which in (asking, silent)]


results = {}
for arm in [(gated, empty) for gated in (False, True) for empty in (False, True)]:
    trained = [learn(*arm, seed) for seed in range(3)]
    results[arm] = torch.tensor([examine(layer, arm[1], source) for layer, source in trained])  # (seeds, 6)
print("                          squared error         first token's share     gate")
print("gate   empty start        asking      silent    asking      silent      asking  silent")
for (gated, empty), r in results.items():
    low, mid, high = r.min(0).values, r.median(0).values, r.max(0).values
    cells = [f"{mid[i]:.3f} ±{(high[i] - low[i]) / 2:.3f}" for i in range(4)] + [f"{mid[i]:.2f}" for i in (4, 5)]
    print(f"{'yes' if gated else 'no':6} {'yes' if empty else 'no':14}", "  ".join(cells))

# %% [markdown]
# The table shows medians of three seeds, ± half their range. A head that returns nothing when asked has an error of 1.
#
# - With neither a gate nor an empty start, the head can't both answer and be silent: it answers badly.
# - Without a gate but with an empty start, it learns both. The silent tokens put nearly all their attention on the
#   first token. Training has found a sink, because a sink is the only way out.
# - With the gate, it learns both without any sink.
# - With the gate and the empty start, it learns a sink all the same. The gate makes a sink unnecessary, but does not
#   forbid it. One lookup task in one head does not tell us which of the two a large model ends up with. [GA] measured
#   this in their 15B mixture-of-experts model: on average 46.7 % of the attention fell on the first token without the
#   gate, and 4.8 % with it (Figure 2).

# %%
r = {arm: found.median(0).values for arm, found in results.items()}
no_way, sink, gate_only = r[False, False], r[False, True], r[True, False]
claim = f"with neither, the error is more than ten times as large: {no_way[0]:.3f}, {sink[0]:.3f}, {gate_only[0]:.3f}"
course.finding(claim, no_way[0] > 10 * sink[0] and no_way[0] > 10 * gate_only[0])
claim = f"silent tokens spend over 90 % on a sink, under 30 % with the gate alone: {sink[3]:.0%}, {gate_only[3]:.0%}"
course.finding(claim, sink[3] > 0.9 and gate_only[3] < 0.3)
claim = f"the gate opens more than twice as far for tokens that ask: {gate_only[4]:.2f}, {gate_only[5]:.2f}"
course.finding(claim, gate_only[4] > 2 * gate_only[5])

# %% [markdown]
# ### The gates of `tiny/`
#
# What do the gates of a trained model do? We run held-out documents of four kinds through `tiny/`. The corpus knows
# each token's role. "name (new)" is a name mentioned for the first time, "answer" is a digit or word that answers a
# question, and "template" is a token that follows from the words before it.
#
# For every head we average $\sigma(g)$ over its $d$ entries and over the tokens of one role. The left picture groups by
# the role of the token that the gate belongs to. The right one groups by the role of the *next* token, which the model
# is about to predict. Means above 0.6 are written into their cells. Look down each column: do some roles open the gate
# more than others?

# %%
fast = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float32)  # enough for averages
source = corpus.Corpus("held out", {"chat": 2.0, "moves": 1.0, "book": 1.0, "who": 1.0})
openings, roles, sink = [], [], []
for number in range(40):
    pairs = course.ids_and_roles(source.document(f"gates:{number}"), tokenizer.encode)
    with torch.no_grad(), recording(fast, ["*.self_attn.*"]) as one:
        fast(torch.tensor([[token for token, _ in pairs]]))
    openings.append(torch.stack([parts(one, i, "gate")[0].sigmoid() for i in ATTENTION], dim=1))
    first = [attention(*parts(one, i, "q_rope", "k_rope"))[:, 20:, 0] for i in ATTENTION]  # used below
    sink.append(torch.stack(first))  # (layers, H, T - 20)
    roles += [role for _, role in pairs]
openings = torch.cat(openings)  # (tokens, layers, H, d)
following = [*roles[1:], "template"]
print(f"{len(roles):,} tokens in 40 documents")

# %%
kept = [role for role in dict.fromkeys(roles) if roles.count(role) >= 40]
kept.sort(key=lambda role: (role != "template", role))
by_head = openings.mean(-1).flatten(1)  # (tokens, layers * H)
tables = []
for who in (roles, following):
    index = torch.tensor([kept.index(role) if role in kept else -1 for role in who])
    tables.append(torch.stack([by_head[index == i].mean(0) for i in range(len(kept))]))  # (roles, layers * H)
tables = dict(zip(("role of this token", "role of the next token"), tables))
pictures.openings(tables, kept, [f"{i}.{h}" for i in ATTENTION for h in range(H)])

# %% [markdown]
# If a column changes from role to role, that head's gate depends on the role of its token. Does it also open where the
# layer is needed, that is, where the next token has to be looked up? A gate can depend on such a need only if there are
# layers before its own. In the very first layer of a model, a gate would depend on nothing but its own token. So look
# on the right, at the columns of the last attention layer. Compare the rows of words that the text has already
# mentioned (name, name (copied), thing, answer) with the rows of new words, which can't be looked up.
#
# How sparse are the gates? [GA] found a mean of 0.116 in their model (Table 4): most gates were nearly shut.

# %%
for n, i in enumerate(ATTENTION):
    shut = "  ".join(f"{share:.0%}" for share in (openings[:, n] < 0.1).float().mean((0, 2)))
    print(f"layer {i}: mean gate {openings[:, n].mean():.2f}; share below 0.1, by head: {shut}")

groups = {
    "known already": ("name", "name (copied)", "thing", "answer"),
    "new": ("name (new)", "thing (new)", "kind (new)"),
}
of_last = openings[:, -1].mean((1, 2))  # (tokens,)
before = {name: of_last[[role in group for role in following]].mean() for name, group in groups.items()}
print(f"layer {ATTENTION[-1]}: " + ", ".join(f"before what is {name} {mean:.2f}" for name, mean in before.items()))
figures.expect("its gates open more before what can be looked up", before["known already"] > before["new"] + 0.05)

# %% [markdown]
# In one training of `tiny/` the gates were not sparse. Their means were near one half, where they started, and few
# entries were below 0.1. They distinguished roles, but were not shut by default, and they opened only a little more
# before words that could be looked up. The published figure comes from a model of 15 billion parameters, trained on
# hundreds of billions of tokens. A model 2,000 times smaller, trained for a few hours, need not show the same.
#
# Does `tiny/` have a sink? The first token is `<|im_start|>`, or the first word of a story. We measure the share of
# attention that falls on it, for queries starting at token 20, and compare it with the share that even attention would
# give it.

# %%
even = torch.cat([1 / torch.arange(21, 21 + z.shape[-1]) for z in sink]).mean()
print(f"even attention: {even:.1%}")
shares = torch.cat(sink, dim=-1).mean(-1)  # (layers, H)
for i, row in zip(ATTENTION, shares):
    print(f"layer {i}: " + "  ".join(f"{share:.1%}" for share in row) + "  (by head)")
figures.expect(f"no head spends 30 % there: the most is {shares.max():.0%}", shares.max() < 0.3)

# %% [markdown]
# [GA] report about half of all attention on the first token for a model without gates. If the shares above are far
# below that, the first token is no sink, just as [GA] report for a model with gates. But we can't conclude that the
# gate is the reason. There is no `tiny/` without gates to compare with, and a model this small might have no sink
# either way.
#
# ## 7. All of it
#
# Now we put the whole layer into one function, from the pieces above, for any config. It must agree with
# `GatedAttention` and with the NumPy reference in a harder case than `tiny/`: random weights, 6 query heads on 2 key
# and value heads, $Hd \ne D$, biases, norm weights away from 0, and YaRN.


# %%
def gated_attention(x, W, config):
    """x (T, D), W the layer's parameters by name -> (T, D)"""
    d, (omega, factor) = config.head_dim, rope_frequencies(config)
    project = {n: F.linear(x, W[f"{n}_proj.weight"], W.get(f"{n}_proj.bias")) for n in "qkv"}
    q, gate = project["q"].view(len(x), -1, 2 * d).chunk(2, dim=-1)  # (T, H, d) each
    k, v = (project[n].view(len(x), -1, d) for n in "kv")  # (T, H_kv, d)
    positions = torch.arange(len(x), dtype=torch.float64)
    q = rotate(norm(q, W["q_norm.weight"]), positions, omega, factor)
    k = rotate(norm(k, W["k_norm.weight"]), positions, omega, factor)
    r = q.shape[1] // k.shape[1]
    z = torch.einsum("thd,shd->hts", q, k.repeat_interleave(r, dim=1)) * d**-0.5
    p = z.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -math.inf).softmax(-1)  # (H, T, T)
    y = torch.einsum("hts,shd->thd", p, v.repeat_interleave(r, dim=1))  # (T, H, d)
    return F.linear((gate.sigmoid() * y).flatten(1), W["o_proj.weight"], W.get("o_proj.bias"))


# %%
odd = Qwen3NextConfig(
    vocab_size=50, hidden_size=40, num_hidden_layers=1, layer_types=["full_attention"], num_attention_heads=6,
    num_key_value_heads=2, head_dim=24, rope_theta=1e4, partial_rotary_factor=0.5, attention_bias=True,
    num_experts=0, intermediate_size=8, max_position_embeddings=256,
    rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
)  # fmt: skip
small = Qwen3NextForCausalLM(odd).double()
module = small.model.layers[0].self_attn
for name, p in module.named_parameters():  # large enough to make every term visible
    p.data = torch.randn(p.shape, generator=normal, dtype=torch.float64) * (0.3 if "norm" in name else 0.4)
x = torch.randn(1, 37, 40, generator=normal, dtype=torch.float64)
ours = gated_attention(x[0], {name: p.detach() for name, p in module.named_parameters()}, odd)


# %%
def step(x, past):
    """What a layer needs for a pass over x (B, T, D) after `past` tokens: positions, slots of the cache, mask"""
    return Step(x, None, None, Cache([], torch.tensor([past]), columns=past), small.model.rope)


with torch.no_grad():
    whole = module(x, step(x, 0))[0]  # all at once
    memory, pieces = KVCache(), zip(x.split([20, 1, 16], dim=1), (0, 20, 21))
    pieces = torch.cat([module(part, step(part, past), memory) for part, past in pieces], dim=1)[0]
with tempfile.TemporaryDirectory() as folder:
    small.save_pretrained(folder)
    reference = reference_recurrent.Reference.from_pretrained(folder)
    theirs = torch.tensor(reference.gated_attention("model.layers.0.self_attn.", x[0].numpy()))
for other in (whole, pieces, theirs):
    same(ours, other)
print("GatedAttention, in one and in three pieces, and the NumPy reference compute the same")

# %% [markdown]
# These are the mistakes that keep every shape right:
#
# | step | right | wrong |
# |---|---|---|
# | `q_proj` | query and gate inside each head | all queries, then all gates |
# | QK norm | $1 + w$, over each head's $d$ entries, before the rotation | $w$; over all heads at once; after it |
# | rotation | pairs $(i, i + R/2)$, exponent over $R$, the first $R$ entries | $(2i, 2i + 1)$; over $d$; all of them |
# | heads | query head $h$ reads $\lfloor h H_{kv}/H \rfloor$ | $h \bmod H_{kv}$ |
# | gate | sigmoid, on the output, before $W_o$ | SiLU; after $W_o$; forgotten |
#
# ## Exercises
#
# **1.** [GA] also tried one gate per head instead of one per entry. How many parameters would that save in the 80B, in
# all attention layers together? What share of `q_proj` is that?
#
# <details><summary>Solution</summary>
#
# The gate's part of `q_proj` has $Hd$ rows of width $D$. With one gate per head it has $H$ rows.
#
# ```python
# count, _, D80, H80, _, d80, _ = facts(released)
# saved = count * (H80 * d80 - H80) * D80
# share = (H80 * d80 - H80) / (2 * H80 * d80)
# print(f"{saved:,} parameters, {share:.1%} of q_proj, {saved / 81_324_862_720:.2%} of the model")
# assert saved == 100_270_080
# ```
#
# That is half of `q_proj`, but a tenth of a percent of the model. In the paper both kinds of gate removed the sink, and
# gates per entry had the lower loss.
#
# </details>
#
# **2.** A different framework turns neighbouring entries, $(2i, 2i + 1)$. Make it compute the same attention by
# changing the weights once, when they are loaded. Which tensors have to change, and which must not?
#
# <details><summary>Solution</summary>
#
# Queries and keys only meet in their product. So we may reorder their entries, as long as we reorder both in the same
# way. We move entry $i$ to $2i$ and entry $i + R/2$ to $2i + 1$. This changes the query rows of `q_proj`, the rows of
# `k_proj`, and $w$ of both norms. The gate's rows, `v_proj` and `o_proj` stay as they are, because values are never
# turned, and the gate has to fit the values.
#
# ```python
# order = torch.arange(d)  # new entry -> old entry
# order[0:R:2], order[1:R:2] = torch.arange(R // 2), torch.arange(R // 2) + R // 2
#
# def rotate_neighbours(q):
#     z = torch.view_as_complex(q[..., :R].unflatten(-1, (-1, 2)).contiguous())
#     z = z * torch.polar(torch.ones(1).double(), positions[:, None, None] * omega)
#     return torch.cat([torch.view_as_real(z).flatten(-2), q[..., R:]], dim=-1)
#
# rows = W["q_proj.weight"].view(H, 2, d, D).clone()  # head, query or gate, entry
# rows[:, 0] = rows[:, 0][:, order]
# x = trace[prefix + "input_layernorm.out"]
# new_q, new_gate = (x @ rows.view(-1, D).T).view(T, H, 2 * d).chunk(2, dim=-1)
# new_k = (x @ W["k_proj.weight"].view(H_kv, d, D)[:, order].reshape(-1, D).T).view(T, H_kv, d)
# turned_q = rotate_neighbours(norm(new_q, W["q_norm.weight"][order]))
# turned_k = rotate_neighbours(norm(new_k, W["k_norm.weight"][order]))
# same(logits(turned_q, turned_k), logits(q_rope, k_rope))
# assert torch.equal(new_gate, gate)
# ```
#
# </details>
#
# **3.** Could we do without $w^k$? We would scale queries by $(1 + w^q)(1 + w^k)$, and keys not at all. For which
# entries is this exact, and for which is it not?
#
# <details><summary>Solution</summary>
#
# For an entry that is not turned, the product is $(1 + w^q_i)\,q_i\,(1 + w^k_i)\,k_i$. Only the product of the two
# scales counts, so one scale is enough. A turned pair mixes its two entries before the product. There, we may move the
# scales only if both entries of the pair have the same one, because then they commute with the rotation.
#
# ```python
# both = (1 + W["q_norm.weight"]) * (1 + W["k_norm.weight"]) - 1
# one_q = rotate(norm(q, both), positions, omega)
# one_k = rotate(norm(k, torch.zeros(d).double()), positions, omega)
# same(torch.einsum("thd,shd->hts", one_q[..., R:], one_k[..., R:].repeat_interleave(H // H_kv, 1)),
#      torch.einsum("thd,shd->hts", q_rope[..., R:], k_rope[..., R:].repeat_interleave(H // H_kv, 1)))
# print(f"turned entries: relative error {apart(logits(one_q, one_k), logits(q_rope, k_rope)):.2f} of the logits")
# ```
#
# </details>
#
# **4. Fill in.** Write one head of gated attention for the last token of a text, from its query, its gate, and the keys
# and values of all tokens. The query and the keys are normalised and rotated already. The test compares your result
# with the layer's own values in the trace.


# %%
def one_head(q, gate, k, v):
    """q, gate (d,) of the last token; k, v (T, d) of all tokens -> what the head passes to o_proj, (d,)"""
    ...  # your part


def test_one_head(attempt):
    out = (seen["gate"].sigmoid() * seen["attn_out"])[-1]  # (H, d), before o_proj
    for h in range(H):
        shared_by = h // (H // H_kv)
        mine = attempt(q_rope[-1, h], gate[-1, h], k_rope[:, shared_by], v[:, shared_by])
        same(mine, out[h])


course.try_it(test_one_head, one_head)


# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def one_head(q, gate, k, v):
#     weights = (k @ q * len(q) ** -0.5).softmax(0)  # (T,): the last token may look at all
#     return gate.sigmoid() * (weights @ v)
#
#
# test_one_head(one_head)
# ```
#
# </details>
#
# ## Five questions
#
# 1. In which order are the rows of `q_proj`? Which number of heads hides a wrong cut? Which numbers of key heads hide
#    that query heads were tiled over the key heads instead of grouped?
# 2. What do the norms of queries and keys bound, and what happens to a softmax without them? Why is the scale $1 + w$?
# 3. Which entries of a head does the rotation turn, and on what does their part of a product depend? What are the other
#    entries good for?
# 4. Which pairs does YaRN leave alone, and which does it slow down? Why not slow down all of them?
# 5. Why can a softmax head without a gate not be silent? Which two ways out are there, and which did training find when
#    it had both?
#
# <details><summary>Answers</summary>
#
# 1. Head by head: the rows of a head's query, then those of its gate. A single head hides the wrong cut. A single key
#    head hides the tiling, and so do as many key heads as query heads.
# 2. They bound every logit, whatever the activations are. Without them logits grow with the square of the activations,
#    until each query attends to a single token. Weight decay pulls $w$ to 0, and so the scale to 1, its neutral value.
# 3. The first quarter, entry $i$ together with entry $i + R/2$. Their part of the product depends on the distance
#    alone. A match in the other entries counts the same at any distance.
# 4. Fast pairs, with more than 32 turns in the original context, keep their frequency: they have seen every angle, and
#    they distinguish neighbours. Pairs with less than one turn are divided by the factor, so that they see no new
#    angle. Dividing all of them would blur the fast ones.
# 5. It returns a mean of values, and a mean can't leave their convex hull. Either it attends to a sink, a token whose
#    value is nearly zero, or its gate closes. With both, training found a sink all the same: the gate makes a sink
#    unnecessary, but does not forbid it.
#
# </details>
#
# ## Three sentences to remember
#
# 1. Normalised queries and keys bound every logit, and a rotation of a quarter of each head makes that part of the
#    product depend on distance alone.
# 2. Softmax attention must return a mean of values, so a head that has nothing to say needs either a sink or a gate.
# 3. The split of `q_proj`, the pairing of rotated entries and the sharing of key heads can all be wrong while every
#    shape is right, so compare values, not shapes.
#
# Next: [6_why_hybrid.ipynb](6_why_hybrid.ipynb) asks why Qwen3-Next needs this layer at all, and why one in four is
# enough.
