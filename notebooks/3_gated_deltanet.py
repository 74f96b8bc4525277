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
# # 3. The Gated DeltaNet layer
#
# *Tom has a ring. Nora has a cup. Tom gave the ring to Mira.* A memory that is written by the delta rule can follow
# this text, as [notebook 2](2_delta_rule.ipynb) shows, if we give it a key for the ring and a value for the ring's
# owner. But a layer gets no keys and no values. It gets one row of numbers a token. Where do the key, the value, the
# query, the decay and the write strength come from? And what are the convolution, the SiLU, the norm and the gate for?
#
# We build the layer part by part. For each part, we first give its reason and then a few lines of code, which we
# compare with [`qwen3_next.py`](../qwen3_next.py). We also compare the whole layer with a second implementation, in
# NumPy, that shares no code with `qwen3_next.py`. Then we take the parts away again, one at a time, from a trained
# model, and measure what breaks. At the end we look at the layer's relatives, from linear attention to Kimi Delta
# Attention. They differ from the layer in one line.
#
# You need notebook 2, up to its section 6. For one lesson, take sections 1 to 5 and 7, the table of section 9, and the
# table and the comparison of section 10. The rest is homework.
#
# | | |
# |---|---|
# | [GDN] | Gated Delta Networks, [arXiv 2412.06464](https://arxiv.org/abs/2412.06464): the layer is in section 3.4 |
# | [M2] | Mamba-2, [arXiv 2405.21060](https://arxiv.org/abs/2405.21060): where this form of the decay comes from |
# | [DN] | DeltaNet, [arXiv 2406.06484](https://arxiv.org/abs/2406.06484): convolution, SiLU and unit keys around a delta rule |
# | [KDA] | Kimi Linear, [arXiv 2510.26692](https://arxiv.org/abs/2510.26692): a decay for each row of the memory |

# %%
from start import root

# %%
import functools
import math
from contextlib import contextmanager

import corpus
import course
import figures
import torch
import torch.nn.functional as F
from course import same
from pictures import gated_deltanet as pictures

import reference_recurrent
from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer, chunk_gated_delta_rule
from verify.trace import recording

figures.setup()

# %% [markdown]
# ## 1. The layer, and a text to watch
#
# We use `tiny/`, a small Qwen3-Next that was trained on texts such as stories, phone books and *accounts* of who has
# what. We load it in float64. Then two ways to compute the same thing agree to about 12 digits, and no mistake can pass
# for rounding.
#
# The picture is the plan of this notebook. Follow the arrows. On the left, the layer decides how much to keep and how
# much to write. In the middle, queries, keys and values are prepared. On the right, `z` bypasses the memory and is
# multiplied with the result at the end.

# %%
model = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float64)
tokenizer = Qwen3NextTokenizer.from_pretrained(root / "tiny")
config = model.config
LAYERS = [i for i, kind in enumerate(config.layer_types) if kind == "linear_attention"]
LAYER = LAYERS[-1]  # the one that we build; try another
pictures.layer(config)

# %% [markdown]
# The model reads a text about a ring and a cup. `recording` saves every value that the layer computes, by name. Our
# only input is `x`, the output of the norm before the layer. Everything else we compute ourselves, and then compare
# with the recorded values. `same` stops the notebook if two arrays differ, and `course.apart` returns their relative
# error.

# %%
TEXT = (
    "Mira, Tom and Nora are friends. Tom has a ring. Nora has a cup. Tom gave the ring to Mira. "
    "Nora put the cup in the barn.\n\nWho has the ring now?"
)
ids = tokenizer.encode(tokenizer.apply_chat_template([{"role": "user", "content": TEXT}]))
with torch.no_grad(), recording(model) as trace:
    model(torch.tensor([ids]))
prefix = f"model.layers.{LAYER}."
x = trace[prefix + "input_layernorm.out"][None]  # (B, T, D): one sequence
inside = prefix + "linear_attn."
seen = {name.removeprefix(inside): value[None] for name, value in trace.items() if name.startswith(inside)}
for name, value in {"x": x, **seen}.items():
    print(f"{name:18} {tuple(value.shape)}")

# %%
layer = model.get_submodule(prefix + "linear_attn")  # a GatedDeltaNet
W = {name: weight.detach() for name, weight in layer.named_parameters()}
B, T, D = x.shape
KEY_HEADS, H = config.linear_num_key_heads, config.linear_num_value_heads
K, V = config.linear_key_head_dim, config.linear_value_head_dim
r = H // KEY_HEADS  # value heads that share a key head
print(f"{sum(weight.numel() for weight in W.values()):,} parameters:")
for name, weight in W.items():
    print(f"{name:20} {str(tuple(weight.shape)):14} {weight.numel():8,}")

# %% [markdown]
# ## 2. Two projections, and how their rows are ordered
#
# A token has to provide six things: a key to write under ($k$), a value to write ($v$), a query to read with ($q$), how
# much to forget ($a$), how strongly to write ($b$), and how much of the answer to let out ($z$). Each of the six is a
# linear map of $x$. Four of them, $q$, $k$, $v$ and $z$, are vectors and come from one matrix, `in_proj_qkvz`, because
# one large product is faster than four smaller ones. The other two, $a$ and $b$, are single numbers for each head and
# come from `in_proj_ba`.
#
# There are fewer key heads than value heads. Each value head has a memory of its own, but it shares its keys and
# queries with the $r - 1$ other value heads of its group. In grouped-query attention, several queries share one key and
# value. Here, several values share one key and query. Keys are addresses, and several memories can use the same address
# for different contents.
#
# How are the rows of the matrix ordered? **Group by group.** Each key head comes together with the value heads that
# share it:
#
# $$W_{qkvz}\, x = [\,\underbrace{q_0 \mid k_0 \mid v_0 \dots v_{r-1} \mid z_0 \dots z_{r-1}}_{\text{key head } 0}
# \;\mid\; \underbrace{q_1 \mid k_1 \mid v_r \dots v_{2r-1} \mid z_r \dots z_{2r-1}}_{\text{key head } 1} \mid \dots]$$
#
# Why in this order? When the layer is spread over several devices, each device gets some of the groups. In this order,
# its share is one block of rows. To unpack, we reshape to groups first, and then cut inside each group.


# %%
def unpack(qkvz, ba):
    """Both projections' outputs (B, T, ...) -> q, k (B, T, KEY_HEADS, K), v, z (B, T, H, V), b, a (B, T, H)"""
    q, k, v, z = qkvz.unflatten(-1, (KEY_HEADS, -1)).split([K, K, r * V, r * V], dim=-1)
    b, a = ba.unflatten(-1, (KEY_HEADS, -1)).split([r, r], dim=-1)
    v, z = (part.flatten(2).unflatten(-1, (H, V)) for part in (v, z))
    return q, k, v, z, b.flatten(2), a.flatten(2)


qkvz, ba = x @ W["in_proj_qkvz.weight"].T, x @ W["in_proj_ba.weight"].T
q, k, v, z, b, a = unpack(qkvz, ba)
for name, ours in {"q": q, "k": k, "v": v, "z": z, "b": b, "a": a}.items():
    same(ours, seen[name])

# %% [markdown]
# It is easy to take this order for "all q, all k, all v, all z". Then every shape is right, nothing fails, and the
# model still writes something. Compare the two bars of the picture. Which block is at the same place in both?

# %%
parts = qkvz.split([KEY_HEADS * K, KEY_HEADS * K, H * V, H * V], dim=-1)
for name, wrong, right in zip("qkvz", parts, (q, k, v, z)):
    print(f"{name} cut in the wrong place: relative error {course.apart(wrong.reshape(right.shape), right):.2f}")
pictures.rows_of_projection(KEY_HEADS, r, K, V)

# %% [markdown]
# ## 3. A convolution, because a token alone is a poor key
#
# In *Tom gave the ring to Mira*, the token *Mira* should be written under the key of the ring. But $k$ at *Mira* is a
# linear map of $x$ at *Mira*, and the ring was two tokens earlier. The layer could look back through its memory, but it
# needs the key before it reads the memory. An earlier layer could have brought the ring along, but before the first
# layer there is none. So $q$, $k$ and $v$ first get a look at their neighbours. Let $u_t$ be one of the three as it
# leaves the projection. Each of its channels $c$ becomes a weighted sum over the token itself and the three before it:
#
# $$y_t[c] = \sum_{j=0}^{3} w_j[c]\; u_{t-3+j}[c]$$
#
# The four weights of a channel are called its *taps*. The sum is *causal*, since no token looks ahead, and *depthwise*,
# since channels do not mix. That makes the convolution cheap: four multiplications a channel. All channels of $q$, $k$
# and $v$ go through it, while $z$, $a$ and $b$ do not.


# %%
def convolve(u, w):
    """u (B, T, channels), w (channels, taps) -> (B, T, channels): each token with the taps - 1 before it"""
    taps = w.shape[1]
    padded = F.pad(u, (0, 0, taps - 1, 0))  # zeros before the first token
    return sum(w[:, j] * padded[:, j : j + u.shape[1]] for j in range(taps))


qkv = torch.cat([part.flatten(2) for part in (q, k, v)], dim=-1)  # (B, T, channels): all q, all k, all v
w = W["conv1d.weight"][:, 0]  # (channels, taps), the last tap is the token's own
mixed = convolve(qkv, w)
same(F.silu(mixed), seen["conv_out"])  # SiLU comes in section 4

# %% [markdown]
# Which of the four tokens does a trained layer look at? The picture shows each tap's share of the weights, averaged
# over the layers. If neighbours did not matter, only the token itself would have a bar.

# %%
shares = {name: [] for name in "qkv"}
for i in LAYERS:
    weight = model.model.layers[i].linear_attn.conv1d.weight.detach()[:, 0].abs()
    for name, part in zip("qkv", weight.split([KEY_HEADS * K, KEY_HEADS * K, H * V])):
        shares[name].append(part.sum(0) / part.sum())
pictures.taps({name: torch.stack(rows) for name, rows in shares.items()})

# %% [markdown]
# ### The window
#
# When the model writes an answer, tokens come one at a time. Then the convolution needs the three inputs before the new
# one, and the cache has to keep them. They are called the *window*. So this layer remembers two things, the state and
# the window. In the state, everything since the beginning is mixed. The window holds exactly the last three tokens, as
# the convolution's *inputs*, before the sum and before SiLU. We cut the text in two and show that nothing is lost.

# %%
cut = T // 2
window = qkv[:, cut - w.shape[1] + 1 : cut]  # (B, taps - 1, channels)
second = convolve(torch.cat([window, qkv[:, cut:]], dim=1), w)[:, window.shape[1] :]
same(second, mixed[:, cut:])
same(qkv[:, T - w.shape[1] + 1 :].mT, seen["conv_state"])  # what the module keeps after the last token
forgotten = convolve(qkv[:, cut:], w)[:, 0]  # as if nothing had come before
print(f"the window: {window[0].numel():,} numbers; the state: {H * K * V:,}")
print(f"without its window, the token after the cut is wrong by {course.apart(forgotten, mixed[:, cut]):.0%}")

# %% [markdown]
# ## 4. SiLU, and keys of length 1
#
# Up to here everything is linear in $x$. The next step is SiLU, $\mathrm{SiLU}(y) = y\,\sigma(y)$, entry by entry. It
# lets large positive entries pass and keeps negative ones above $-0.28$. The factor $\sigma(y)$ is larger for positive
# entries than for negative ones. So the share of a key's squared length that is in its positive entries can only rise.
# Do two keys also come closer to right angles, so that a write under one hardly changes what the other returns? We
# measure both below.
#
# After that, $q$ and $k$ are divided by their lengths. Notebook 2 (section 5) shows why: if $\beta |k|^2$ exceeds 2,
# repeated writes make the state explode. A constant $10^{-6}$ under the root keeps a vector of zeros from being divided
# by zero. The query is also divided by $\sqrt K$, as in attention.


# %%
def unit(x):
    """x (..., K) with length 1"""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6) ** -0.5


q, k, v = F.silu(mixed).split([KEY_HEADS * K, KEY_HEADS * K, H * V], dim=-1)
v = v.unflatten(-1, (H, V))
q, k = (unit(part.unflatten(-1, (KEY_HEADS, K))) for part in (q, k))
q, k = (part.repeat_interleave(r, dim=2) for part in (q, k))  # value heads j r .. j r + r - 1 share key head j
q = q * K**-0.5
same(q, seen["q_l2norm"])
same(k, seen["k_l2norm"])
same(v, seen["v_conv"])


# %%
def positive(keys):
    """The share of all keys' squared length that is in positive entries"""
    return (keys.clamp(min=0).square().sum() / keys.square().sum()).item()


def cosine(keys):
    """The mean cosine of two tokens' keys, (T, heads, K), in the same head"""
    keys = unit(keys).transpose(0, 1)  # (heads, T, K)
    return (keys @ keys.mT)[:, ~torch.eye(T, dtype=torch.bool)].mean().item()


raw = mixed[0].split([KEY_HEADS * K, KEY_HEADS * K, H * V], dim=-1)[1].unflatten(-1, (KEY_HEADS, K))
for when, some in {"before": raw, "after": F.silu(raw)}.items():
    print(f"{when} SiLU, {positive(some):.0%} of the keys' squared length is positive; mean cosine {cosine(some):.2f}")
assert all(positive(F.silu(key)) >= positive(key) for key in raw.flatten(0, 1))
figures.expect("keys stay far from right angles, with a mean cosine above 0.1", cosine(F.silu(raw)) > 0.1)

# %% [markdown]
# So SiLU does not bring keys to right angles, and a write under one key still disturbs the others. These numbers do not
# tell us what SiLU is good for. Section 9 shows that this model relies on it.
#
# Here is a second mistake that leaves every shape right. `repeat_interleave` gives the heads 0 0 1 1, and `repeat`
# gives 0 1 0 1. With `repeat`, some value heads write under the key of a different group. A test model with a single
# key head would not show this mistake, because with one key head both calls do the same.

# %%
tiled = k[:, :, ::r].repeat(1, 1, r, 1)
print(f"key heads repeated as 0 1 0 1: relative error of the keys {course.apart(tiled, k):.2f}")

# %% [markdown]
# ## 5. How much to write, and how much to keep
#
# **The write strength** is easy. $\beta = \sigma(b)$ lies between 0 and 1, one number for each head. One token may
# write nearly nothing, and the next one nearly its whole value.
#
# **The decay** $\alpha$ also has to lie between 0 and 1. But a head with a long memory needs an $\alpha$ close to 1:
# 0.999 for a half-life of 700 tokens, 0.9999 for one of 7,000. So the layer works with the logarithm of $\alpha$, in
# the form of [M2]:
#
# $$g = -\underbrace{e^{\mathtt{A\_log}}}_{A > 0} \cdot \underbrace{\mathrm{softplus}(a + \mathtt{dt\_bias})}_{\Delta > 0},
# \qquad \alpha = e^{g} = e^{-A \Delta}$$
#
# Read it as physics. A quantity that decays at rate $A$ has shrunk to $e^{-A\Delta}$ after a time $\Delta$. Each head
# has its own rate $A$, and each token decides for how long the clock runs: perhaps hardly at all for a comma, and for
# very long when a new story begins. Softplus, $\ln(1 + e^y)$, is a smooth way to make a number positive. The layer
# stores the logarithm of $A$, `A_log`. So $A$ stays positive whatever training does, and a training step multiplies it
# by a factor.
#
# Is this form so different from a sigmoid? No: $-\mathrm{softplus}(y) = \ln \sigma(-y)$, so
# $\alpha = \sigma(-a - \mathtt{dt\_bias})^A$. Two things are new. The power $A$ gives each head a time scale, and the
# sigmoid itself is never computed, only its logarithm.


# %%
def decay(a, A_log, dt_bias):
    """g, the log of the decay, (B, T, H), never above 0"""
    return -A_log.exp() * F.softplus(a + dt_bias)


g, beta = decay(a, W["A_log"], W["dt_bias"]), b.sigmoid()
same(g, seen["g"])
same(beta, seen["beta"])
same(g.exp(), (-a - W["dt_bias"]).sigmoid() ** W["A_log"].exp())
half_life = math.log(2) / -g[0]  # (T, H)
for head, times in enumerate(half_life.T):
    A, low, high = W["A_log"][head].exp(), times.min(), times.max()
    print(f"head {head}: A = {A:5.2f}, half-lives from {low:.2g} to {high:,.0f} tokens")

# %% [markdown]
# ### Why the decay is computed in float32
#
# The weights of the released model are bfloat16, and most products are computed in bfloat16. The decay is not. bfloat16
# has 8 significant bits, so the last number before 1 is $1 - 2^{-8} = 0.996$. An $\alpha$ of 0.999 would be rounded to
# 1, and a head that should forget slowly would never forget at all. The logarithm $g$ would survive, because near 0
# bfloat16 has the same relative precision as anywhere. But in the end $\alpha$ multiplies the state, and 0.999 times an
# entry in bfloat16 is rounded back to that entry. So the state is float32 as well. (Our small model learned from short
# texts, and asks for few such decays. Exercise 2 counts them.) In the picture, the left panel shows $\alpha$ for three
# rates $A$. The right panel shows which half-lives bfloat16 leaves.

# %%
steps = torch.linspace(-8, 3, 100, dtype=torch.float64)
rates = {f"{A}": (steps, decay(steps, torch.tensor(A).double().log(), 0.0).exp()) for A in (1, 4, 16)}
wanted = torch.logspace(0, 4, 400, dtype=torch.float64)
alpha = 2 ** (-1 / wanted)
got = {}
for name, dtype in {"float32": torch.float32, "bfloat16": torch.bfloat16}.items():
    got[name] = -math.log(2) / alpha.to(dtype).double().log()
pictures.decays(rates, wanted, got)
longest = math.log(2) / -math.log1p(-(2**-9))  # halfway between 1 and the number before it
assert torch.equal(got["bfloat16"].isinf(), wanted > longest)
assert ((got["float32"] / wanted - 1).abs() < 1e-3).all()
entries = torch.linspace(-1, 1, 200).bfloat16()
assert torch.equal(0.999 * entries, entries)  # a state in bfloat16 would not fade at all

# %% [markdown]
# Training starts with $A$ between 1 and 16 and with $\Delta$ between 0.001 and 0.1 (`init_weights`), so with half-lives
# from half a token to 700 tokens. The bias is drawn so that $\mathrm{softplus}(\mathtt{dt\_bias})$ is this $\Delta$.
# transformers' own initialisation sets `dt_bias` to 1 instead. That is a $\Delta$ of 1.3, and in most heads a single
# token would wipe the memory.
#
# ### What the layer decides
#
# Here are both decisions, $\alpha$ and $\beta$, for every token of our text and every head. Columns are tokens. Look
# for heads that keep everything and heads that keep nothing. Then look for tokens that write in most heads.

# %%
tokens = [tokenizer.decode([token]).strip() or "␣" for token in ids]
pictures.decisions(tokens, g[0].exp(), beta[0])

# %% [markdown]
# ## 6. The delta rule, once more
#
# Now we have the rule's five inputs: $q$, $k$, $v$, $g$ and $\beta$. The rest is notebook 2: decay, recall, delta,
# write, read.


# %%
def delta_rule(q, k, v, *, g, beta):
    """q, k (B, T, H, K), v (B, T, H, V), g, beta (B, T, H) -> out (B, T, H, V), the last state (B, H, K, V)"""
    S, outputs = v.new_zeros(len(k), H, K, V), []
    for t in range(k.shape[1]):
        S = g[:, t, :, None, None].exp() * S
        recalled = torch.einsum("bhkv,bhk->bhv", S, k[:, t])
        delta = beta[:, t, :, None] * (v[:, t] - recalled)
        S = S + torch.einsum("bhk,bhv->bhkv", k[:, t], delta)
        outputs.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
    return torch.stack(outputs, dim=1), S


read, S = delta_rule(q, k, v, g=g, beta=beta)
same(read, seen["delta_out"])
same(S, seen["state"])
arbiter = reference_recurrent.gated_delta_rule(*(part[0].numpy() for part in (q, k, v, g, beta)))
same(read[0], torch.from_numpy(arbiter[0]))

# %% [markdown]
# ## 7. Norm, gate, and the way out
#
# A memory can return an answer of any size. A fresh memory returns little, a full one a lot, and a head with slow decay
# more than one with fast decay. But the next layers expect numbers of a familiar size. So each head's answer is divided
# by its root mean square, and scaled by $w$, a vector that all heads share. This norm is *not* zero-centred: its $w$
# starts at 1 and is used as it is, while every other norm of the model scales by $1 + w$.
#
# Now all heads are equally loud, even a head that found nothing. That calls for a gate, and this is the use of $z$. The
# gate is computed from the token, not from the memory, and decides entry by entry how much to let out:
#
# $$o = W_o\,\big[\, w \odot \frac{y^h}{\mathrm{rms}(y^h)} \odot \mathrm{SiLU}(z^h) \,\big]_{h = 1 \dots H}$$
#
# The gate is a SiLU, not a sigmoid as in gated attention. It can also flip a sign and make an entry larger.


# %%
def rms_norm(y, w):
    """y (..., V) divided by its root mean square, times w (V,)"""
    return y * (y.square().mean(-1, keepdim=True) + config.rms_norm_eps) ** -0.5 * w


gated = rms_norm(read, W["norm.weight"]) * F.silu(z)  # (B, T, H, V)
same(gated, seen["norm.out"], atol=1e-10)
out = gated.flatten(2) @ W["out_proj.weight"].T  # (B, T, D)
same(out, seen["out_proj.out"], atol=1e-10)
sizes = read.square().mean(-1).sqrt()[0]  # (T, H)
print("size of what is read, smallest and largest over the text, by head:")
for head, size in enumerate(sizes.T):
    print(f"head {head}: {size.min():.1e} to {size.max():.1e}")

# %% [markdown]
# ## 8. The whole layer, in one function
#
# Here is all of it. Each part is an argument, so that we can exchange it later.


# %%
def gated_delta_net(
    x, W, convolve=convolve, silu=F.silu, unit=unit, decay=decay, strength=torch.sigmoid,
    rule=chunk_gated_delta_rule, norm=rms_norm, gate=F.silu,
):  # fmt: skip
    """The layer: x (B, T, D) -> (B, T, D). W: its parameters, by name"""
    q, k, v, z, b, a = unpack(x @ W["in_proj_qkvz.weight"].T, x @ W["in_proj_ba.weight"].T)
    qkv = torch.cat([part.flatten(2) for part in (q, k, v)], dim=-1)
    qkv = silu(convolve(qkv, W["conv1d.weight"][:, 0]))
    q, k, v = qkv.split([KEY_HEADS * K, KEY_HEADS * K, H * V], dim=-1)
    q, k = (unit(part.unflatten(-1, (KEY_HEADS, K))).repeat_interleave(r, dim=2) for part in (q, k))
    g, beta = decay(a, W["A_log"], W["dt_bias"]), strength(b)
    y, _ = rule(q * K**-0.5, k, v.unflatten(-1, (H, V)), g=g, beta=beta)
    return (norm(y, W["norm.weight"]) * gate(z)).flatten(2) @ W["out_proj.weight"].T


# %% [markdown]
# As the rule we take the project's chunked one here, which is faster than our loop ([notebook 4](4_chunked_form.ipynb)
# derives it). Is the layer right? We compare it with [`reference_recurrent.py`](../reference_recurrent.py), the same
# model in NumPy, token by token. This reference reads the weights from the file itself.

# %%
arbiter = reference_recurrent.Reference.from_pretrained(root / "tiny")
theirs = torch.from_numpy(arbiter.gated_delta_net(prefix + "linear_attn.", x[0].numpy()))
same(gated_delta_net(x, W)[0], theirs, atol=1e-10)
same(gated_delta_net(x, W, rule=delta_rule), out, atol=1e-10)


# %% [markdown]
# Now we put our layer in the place of all Gated DeltaNet layers of the model. The logits have to stay the same.


# %%
@contextmanager
def with_our_layer(**other):
    """The model with `gated_delta_net` in the place of all its Gated DeltaNet layers"""
    modules = [model.model.layers[i].linear_attn for i in LAYERS]
    for module in modules:
        weights = {name: weight.detach() for name, weight in module.named_parameters()}
        ours = functools.partial(gated_delta_net, W=weights, **other)
        module.forward = lambda x, step, cache, ours=ours: ours(x)
    try:
        yield model
    finally:
        for module in modules:
            del module.forward


with torch.no_grad():
    expected = model(torch.tensor([ids]), use_cache=False).logits
    with with_our_layer():
        same(model(torch.tensor([ids]), use_cache=False).logits, expected, atol=1e-9)
print(f"{len(LAYERS)} layers exchanged, and the logits are the same; the answer begins with", end=" ")
print(repr(tokenizer.decode(expected[0, -1].argmax().view(1))))

# %% [markdown]
# ## 9. What breaks without it
#
# Does a layer need all this? We leave out one part at a time, in all layers at once, and let the model read held-out
# text of three kinds. Which part do you expect to matter most? Decide before you run the cells.
#
# To leave out recall, we need a different rule. *Without recall*, the memory adds where it should replace,
# $S \leftarrow \alpha S + \beta\, k v^\top$. No write then depends on earlier writes. So all tokens can be computed by
# one product, masked and decayed, as in section 1 of notebook 2.


# %%
def add_only(q, k, v, *, g, beta):
    """S <- alpha S + beta k v^T, for all tokens at once; the same signature as the delta rule"""
    G = g.cumsum(1).transpose(1, 2)  # (B, H, T)
    past = (G[..., :, None] - G[..., None, :]).tril().exp().tril()  # e^{G_t - G_s} for s <= t
    weights = torch.einsum("bthk,bshk->bhts", q, k) * past
    return torch.einsum("bhts,bshv->bthv", weights, beta[..., None] * v), None


WITHOUT = {
    "nothing": {},
    "convolution": {"convolve": lambda u, w: u * w[:, -1]},  # the token's own tap alone
    "SiLU after it": {"silu": lambda x: x},
    "length 1": {"unit": lambda x: x},
    "decay": {"decay": lambda a, A_log, dt_bias: torch.zeros_like(a)},
    "write strength": {"strength": torch.ones_like},
    "recall": {"rule": add_only},
    "norm": {"norm": lambda y, w: y * w},
    "output gate": {"gate": torch.ones_like},
}


# %% [markdown]
# We measure the mean loss in nats a token (0 is perfect, and $\ln$ of the vocabulary's size is guessing). The digits of
# a phone book are random, so no model can guess them at first reading. But when a question asks for one of the numbers,
# the answer is certain. So we also print how many tokens of the answers are the model's first choice.

# %%
DOCUMENTS = 4  # of each kind
KINDS = {"stories": ("story", {}), "accounts": ("moves", {}), "phone books": ("book", {"entries": 6})}


def documents(kind, settings):
    """Held-out documents: the token ids of each (1, T), and which of them are answers (T,)"""
    source, found = corpus.Corpus("held out", {kind: 1.0}, **settings), []
    for number in range(DOCUMENTS):
        ids, roles = zip(*course.ids_and_roles(source.document(f"without:{number}"), tokenizer.encode))
        found.append((torch.tensor([ids]), torch.tensor([role == "answer" for role in roles])))
    return found


texts = {name: documents(*kind) for name, kind in KINDS.items()}


# %%
@torch.no_grad()
def measure(**other):
    """{kind of text: mean loss}, and the share of answers that are the first choice, with parts exchanged"""
    losses, right = {}, []
    with with_our_layer(**other):
        for name, rows in texts.items():
            surprise = []
            for ids, is_answer in rows:
                logits = model(ids, use_cache=False).logits[0, :-1]
                surprise.append(F.cross_entropy(logits, ids[0, 1:], reduction="none"))
                right.append((logits.argmax(-1) == ids[0, 1:])[is_answer[1:]])
            losses[name] = torch.cat(surprise).mean().item()
    return losses, torch.cat(right).double().mean().item()


measured = {part: measure(**other) for part, other in WITHOUT.items()}

# %%
print(f"{'without':16}" + "".join(f"{kind:>14}" for kind in KINDS) + "       right answers")
for part, (losses, right) in measured.items():
    print(f"{part:16}" + "".join(f"{loss:14.2f}" for loss in losses.values()) + f"{right:20.0%}")

# %% [markdown]
# The picture shows by how much each loss rises, on a logarithmic scale. A rise below 0.004 has no bar. Compare stories
# with the other two kinds of text. In which kind does this layer matter most?

# %%
losses = {part: found[0] for part, found in measured.items()}
pictures.ablations(losses)
base, right = losses.pop("nothing"), {part: share for part, (_, share) in measured.items()}
worse = {part: {kind: loss - base[kind] for kind, loss in kinds.items()} for part, kinds in losses.items()}
rise = {part: sum(kinds.values()) for part, kinds in worse.items()}
rise = {part: value if math.isfinite(value) else math.inf for part, value in rise.items()}
print("from what hurts most to what hurts least:", ", ".join(sorted(rise, key=rise.get, reverse=True)))
figures.expect("every part is missed", min(rise.values()) > 0)
figures.expect("the convolution is missed more than recall", rise["convolution"] > rise["recall"])
most = sum(kinds["stories"] == max(kinds.values()) for kinds in worse.values())
figures.expect("stories suffer most without most of the parts", most > len(worse) / 2)
figures.expect("without recall, nine in ten right answers stay right", right["recall"] > 0.9 * right["nothing"])

# %% [markdown]
# In one training of `tiny/`, stories suffered most in nearly every row. The surprise was recall: without it, nearly all
# answers stayed right. What is the delta rule good for, then? Every fourth layer of this model is attention, which can
# look an answer up in the text. [Notebook 6b](6b_two_memories.ipynb) lets the model read a text and then takes away one
# of its two memories. There, keys and values alone answered phone books and stories, and only accounts got worse
# without the states.
#
# So be careful with the conclusion. These weights were trained *with* every part, and the numbers say how much this
# model relies on each part. A model trained without a part learns to do without it, and loses much less. To measure
# that loss, models have to be trained anew. [GDN] does so in its appendix, and [notebook 6](6_why_hybrid.ipynb) does so
# for whole layers. Three things are true for any weights. Without keys of length 1, writes can overshoot, and the state
# may explode. Without the norm, the size of an answer depends on how full the memory is. And without decay, only the
# delta rule ever takes anything back.
#
# ## 10. Relatives: one line, five models
#
# Linear attention is from 2020, and its descendants differ from it in the line that writes to the state. Here these
# lines are in our notation, in which $S$ has a row for each key dimension. The third column says what each token
# decides:
#
# | model | $S \leftarrow$ | a token decides | paper |
# |---|---|---|---|
# | linear attention | $S + k v^\top$ | nothing | [2006.16236](https://arxiv.org/abs/2006.16236) |
# | Mamba-2 | $\alpha S + k v^\top$ | how much is kept | [2405.21060](https://arxiv.org/abs/2405.21060) |
# | DeltaNet | $S + \beta k\,(v - S^\top k)^\top$ | how much is written | [2102.11174](https://arxiv.org/abs/2102.11174), [2406.06484](https://arxiv.org/abs/2406.06484) |
# | Gated DeltaNet | $\alpha S + \beta k\,(v - \alpha S^\top k)^\top$ | both | [2412.06464](https://arxiv.org/abs/2412.06464) |
# | Kimi Delta Attention | $\alpha \odot S + \beta k\,(v - (\alpha \odot S)^\top k)^\top$ | both, with an $\alpha$ for each row of $S$ | [2510.26692](https://arxiv.org/abs/2510.26692) |
#
# Mamba-2 comes from a different family, state space models, and uses other names: its $B$ is our $k$, its $C$ is our
# $q$, and its $x$ is our $v$. Its $\Delta$ also scales the value that is written. The form $e^{-A\Delta}$ of section 5
# is its legacy. In Kimi Delta Attention, $\alpha$ is a vector with one number for each row of the state, so that a head
# can keep some features of its keys and forget others.
#
# One function covers all five:


# %%
def write(S, k, v, alpha=1.0, beta=1.0, recall=True):
    """One pair into S (K, V), by any of the five rules. alpha: one number, or (K,), one for each row"""
    S = torch.as_tensor(alpha, dtype=S.dtype).reshape(-1, 1) * S
    recalled = S.T @ k if recall else torch.zeros_like(v)
    return S + torch.outer(k, beta * (v - recalled))


# %% [markdown]
# All five get the same six pairs. A key is a thing, and a value is a person. Each person is one axis, so that we can
# read an answer directly. The keys are nearly at right angles, but not quite. The ring is written twice, because Tom
# gave it to Mira.

# %%
PAIRS = [("ring", "Tom"), ("cup", "Nora"), ("coin", "Sam"), ("ring", "Mira"), ("drum", "Leo"), ("book", "Rosa")]
holder = dict(PAIRS)  # who has it in the end
things, people = list(holder), list(dict.fromkeys(person for _, person in PAIRS))
N, P = len(things) + 1, len(people)  # rows and columns of the memory: room for all
noise = torch.randn(N - 1, N, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
keys = dict(zip(things, unit(torch.eye(N - 1, N) + 0.07 * noise)))
values = dict(zip(people, torch.eye(P).double()))
asked, truth = torch.stack([*keys.values()]), torch.stack([values[person] for person in holder.values()])

# %%
fading = torch.ones(N).double()
fading[2] = 0.5  # only the third row, the coin's, fades
RULES = {
    "linear attention": {"recall": False},
    "Mamba-2": {"alpha": 0.8, "recall": False},
    "DeltaNet": {},
    "Gated DeltaNet": {"alpha": 0.8},
    "Kimi Delta Attention": {"alpha": fading},
}
answers = {}
for rule, options in RULES.items():
    S = torch.zeros(N, P).double()
    for thing, person in PAIRS:
        S = write(S, keys[thing], values[person], **options)
    answers[rule] = asked @ S  # (things, people)

# %% [markdown]
# In the picture, each panel is one memory, asked for all five things. Each row should have one dark cell, in the frame.
# Look at the ring first, then at the cup and the coin, which were written early.

# %%
pictures.six_pairs(answers, things, people, [people.index(person) for person in holder.values()])
distance = {rule: (found - truth).norm(dim=1) for rule, found in answers.items()}
print(f"{'distance to the truth':21}" + "".join(f"{thing:>7}" for thing in things))
for rule, errors in distance.items():
    print(f"{rule:21}" + "".join(f"{error:7.2f}" for error in errors))
course.finding("DeltaNet is the best of the five", min(distance, key=lambda rule: distance[rule].mean()) == "DeltaNet")

# %% [markdown]
# - **Linear attention** gives the ring to Tom *and* Mira.
# - **Mamba-2** makes Tom fainter, and with him everything old, whether it is still true or not.
# - **DeltaNet** replaces Tom by Mira, and keeps the rest. There is room for all pairs, so nothing has to be forgotten,
#   and DeltaNet is the best of the five.
# - **Gated DeltaNet** also replaces Tom by Mira, and lets all rows fade alike. Here the fading only does harm.
# - **Kimi Delta Attention** lets one row fade and keeps the others. The coin is forgotten, the cup is not.
#
# When does forgetting help? When there are more pairs than the memory has room for. We write 64 random pairs into 32
# rows, and ask for the newest eight.

# %%
newest = {1.0: [], 0.98: [], 0.8: []}  # alpha -> the error |S^T k - v|^2 for each seed
for seed in range(100):
    source = torch.Generator().manual_seed(seed)
    many_keys, many_values = unit(torch.randn(2, 64, 32, generator=source, dtype=torch.float64))
    for alpha, errors in newest.items():
        S = torch.zeros(32, 32).double()
        for key, value in zip(many_keys, many_values):
            S = write(S, key, value, alpha)
        errors.append((many_keys[-8:] @ S - many_values[-8:]).square().sum(1).mean())
newest = {alpha: torch.stack(errors) for alpha, errors in newest.items()}
for alpha, errors in newest.items():
    print(f"alpha = {alpha}: error of the newest {errors.mean():.3f}, standard error {errors.std() / 10:.3f}")
gain = newest[1.0] - newest[0.98]  # the same pairs
helps, harms = gain.mean() > 5 * gain.std() / 10, newest[0.8].mean() > 1.5 * newest[1.0].mean()
course.finding("the newest pairs gain by a decay of 0.98 and lose by one of 0.8", helps and harms)

# %% [markdown]
# A little decay helps here, and a lot of decay harms. So it is good that each token can decide how much is kept.
#
# Are these really the published rules? We compare DeltaNet and Gated DeltaNet with the NumPy reference, linear
# attention and Mamba-2 with masked attention, and Kimi Delta Attention with the matrix form of [KDA],
# $(I - \beta k k^\top)\,\mathrm{Diag}(\alpha)\,S + \beta k v^\top$.

# %%
K6, V6 = torch.stack([keys[thing] for thing, _ in PAIRS]), torch.stack([values[person] for _, person in PAIRS])
ages = torch.arange(len(PAIRS) - 1, -1, -1).double()  # how many pairs came later
for rule in ("linear attention", "Mamba-2"):
    alpha = RULES[rule].get("alpha", 1.0)
    same(answers[rule], (asked @ K6.T * alpha**ages) @ V6)
for rule in ("DeltaNet", "Gated DeltaNet"):
    alpha = torch.full((len(PAIRS), 1), RULES[rule].get("alpha", 1.0), dtype=torch.float64)
    inputs = (K6[:, None], K6[:, None], V6[:, None], alpha.log(), torch.ones_like(alpha))  # one head
    _, state = reference_recurrent.gated_delta_rule(*(part.numpy() for part in inputs))
    same(answers[rule], asked @ torch.from_numpy(state[0]))
S = torch.zeros(N, P).double()
for key, value in zip(K6, V6):
    S = (torch.eye(N) - torch.outer(key, key)) @ torch.diag(fading) @ S + torch.outer(key, value)
same(answers["Kimi Delta Attention"], asked @ S)

# %% [markdown]
# ## Exercises
#
# **1. Fill in.** While a model writes, the convolution gets one token at a time. Complete the function so that the test
# turns green.


# %%
def convolve_one(window, u, w):
    """window (B, taps - 1, channels), u (B, channels), w (channels, taps) -> y (B, channels), the next window"""
    ...  # your lines


def test_convolve_one(convolve_one):
    window, outputs = torch.zeros(B, w.shape[1] - 1, qkv.shape[2]).double(), []
    for t in range(T):
        y, window = convolve_one(window, qkv[:, t], w)
        outputs.append(y)
    same(torch.stack(outputs, dim=1), mixed)


course.try_it(test_convolve_one, convolve_one)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The taps see the window and the new token. Without the oldest row, these are the next window.
#
# ```python
# def convolve_one(window, u, w):
#     seen = torch.cat([window, u[:, None]], dim=1)  # (B, taps, channels)
#     return (seen * w.T).sum(1), seen[:, 1:]
#
# test_convolve_one(convolve_one)
# ```
#
# </details>
#
# **2. Measure.** How many of this model's decays would be 1 in bfloat16, and by how much would the loss rise? Change
# `decay`, and use `measure`.
#
# <details><summary>Solution</summary>
#
# Round $\alpha$, not $g$: near 0, bfloat16 has the same relative precision as anywhere. How much the loss rises depends
# on how many heads of your model want to forget slowly. In documents of 150 tokens, slow forgetting hardly matters, so
# expect little. In a text of 100,000 tokens it would.
#
# ```python
# def rounded(a, A_log, dt_bias):
#     return decay(a, A_log, dt_bias).exp().bfloat16().double().log()
#
# share = (rounded(a, W["A_log"], W["dt_bias"]) == 0).double().mean()
# print(f"layer {LAYER}: {share:.0%} of the decays would be 1")
# found, right = measure(decay=rounded)
# for kind, loss in found.items():
#     print(f"{kind:12} {loss - measured['nothing'][0][kind]:+.4f} nats")
# ```
#
# </details>
#
# **3. Explain.** Multiply the query by 7, and then, instead, the value by 7. What happens to the layer's output, and
# why? When would the result be different?
#
# <details><summary>Solution</summary>
#
# A read is linear in $q$, and the norm divides its size out again. So the length of a query does not matter, and
# neither does the factor $K^{-1/2}$. The same is true for the values: the state is linear in all of them, so all reads
# grow alike. Only the small constant in the norm makes a difference, when a read is not much larger than the root of
# that constant, 0.001. Section 7 printed the sizes of the reads. At some tokens they are that small, and there a factor
# of 7 changes the output. (If the value of only *one* token grew, the output would change, because the other values
# would weigh less.)
#
# ```python
# def louder(q, k, v, q_scale, v_scale, **rest):
#     return chunk_gated_delta_rule(q_scale * q, k, v_scale * v, **rest)
#
# for scales in ((7, 1), (1, 7)):
#     changed = functools.partial(louder, q_scale=scales[0], v_scale=scales[1])
#     print(scales, f"relative change of the output {course.apart(gated_delta_net(x, W, rule=changed), out):.1e}")
# y, _ = delta_rule(7 * q, k, v, g=g, beta=beta)
# exact = lambda y: y / y.square().mean(-1, keepdim=True).sqrt()  # a norm without the constant
# same(exact(y), exact(read))
# ```
#
# </details>
#
# ## Four questions
#
# 1. The rows of `in_proj_qkvz` are grouped by key head. What goes wrong if you cut them as all q, all k, all v, all z?
#    Why can a test on shapes miss this mistake?
# 2. Which two things does the layer have to remember from one token to the next? For which of them can you say how old
#    its content is?
# 3. In $\alpha = e^{-A\,\mathrm{softplus}(a + \mathtt{dt\_bias})}$, what belongs to the head, and what does the token
#    decide? Why is $\alpha$ not computed in bfloat16?
# 4. Which two of the five relatives can both replace the value of a key and let pairs fade that are never written
#    again? What does the younger of the two add?
#
# <details><summary>Answers</summary>
#
# 1. Most rows of q, k, v and z are taken for something else. All shapes are the same for both orders, and with a single
#    key head both orders are the same.
# 2. The state of each value head, and the window, the last three inputs of the convolution. You can say it for the
#    window, which holds exactly the last three tokens. In the state, everything since the beginning is mixed.
# 3. The rate $A$ and the bias belong to the head. The token's $a$ decides how long the clock runs. A long memory needs
#    an $\alpha$ close to 1. In bfloat16 everything above 0.998 is rounded to 1, so such a head would never forget. An
#    exact $g$ alone would not help. If the state were bfloat16, 0.999 times an entry would be rounded back to that
#    entry.
# 4. Gated DeltaNet and Kimi Delta Attention. With $\beta = 1$ and keys of length 1, nothing of the old value is left
#    under this key. Kimi Delta Attention has a decay for each row of the state, not one for all rows.
#
# </details>
#
# ## Three sentences to remember
#
# 1. Projections and a short convolution turn each token into a key, a value and a query, and into two decisions, how
#    much to keep and how much to write.
# 2. The decay is computed in float32 and as a logarithm, because a head that remembers long needs an $\alpha$ close to
#    1, and bfloat16 would round it to 1.
# 3. The read is normalised, so its size says nothing, and the gate chooses which parts of it to pass on.
#
# Next: [4_chunked_form](4_chunked_form.ipynb), the same recurrence as products of matrices.
