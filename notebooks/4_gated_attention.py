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
# # 4. Gated attention
#
# One layer in four of Qwen3-Next is softmax attention: the layer that can look up anything said before, at the price of
# keeping all of it. It differs from the attention of the textbook in five places: the projection of the query makes a
# *gate* as well; queries and keys are *normalised*; only a quarter of each head is *rotated*; many query heads *share*
# few key and value heads; and the gate scales what each head returns.
#
# Afterwards you can write the layer from its equations, say what each of the five is for, and name the mistakes that
# keep every shape right. You need softmax attention and PyTorch. We build the layer beside
# [`qwen3_next.py`](../qwen3_next.py), on a small trained model, and compare after every step.
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
# The repository's folder: this one, one above, or freshly cloned (on Colab: put its address here first)
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = os.environ.get("REPOSITORY", "")
root = next((p for p in (Path.cwd(), *Path.cwd().parents) if (p / "qwen3_next.py").is_file()), Path("repository"))
if not root.is_dir():
    subprocess.run(["git", "clone", "--depth=1", REPOSITORY, str(root)], check=True)
sys.path[:0] = [str(root), str(root / "notebooks"), str(root / "tiny")]

# %%
import math
import tempfile

import corpus
import figures
import torch
import torch.nn.functional as F
from matplotlib import pyplot

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

# %% [markdown]
# ## The layer, and a model to watch
#
# Let $x_t$ be the input of the layer at position $t$, a row of width $D$. There are $H$ query heads and $H_{kv}$ key
# and value heads of width $d$. With $h' = \lfloor h\,H_{kv}/H \rfloor$, the key and value head that query head $h$
# reads, and $\odot$ for the product entry by entry, the layer computes
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
# The model is `tiny/`, trained on generated stories, phone books and accounts. We load it in float64: two ways to
# compute one thing then agree to about 13 digits, and a mistake can't pass for rounding.

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
# A held-out phone book, with a question and its answer, goes through the model once, and `trace` records every
# intermediate value. We take the last of the attention layers. All that it sees is `x`, the output of the norm before
# it; all that it makes stands below, by name.


# %%
def ids_and_roles(document):
    """Token ids, and what each token is in the document: a list of pairs"""
    parts = [part for unit in document for part in ((unit.marks, "template"), (unit.word, unit.role))]
    return [(token, role) for text, role in parts for token in tokenizer.encode(text)]


document = corpus.Corpus("held out", {"book": 1.0}, entries=5).document("attention:0")
ids = [token for token, _ in ids_and_roles(document)]
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
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def apart(ours, theirs):
    """The relative error, to show how wrong a wrong way is."""
    return ((ours - theirs).norm() / theirs.norm()).item()


# %% [markdown]
# ## 1. One projection, two jobs
#
# $W_q$ has $2Hd$ rows and makes the query and the gate of all heads. Its rows lie **head by head**: $d$ rows of query,
# then $d$ rows of gate, then the next head:
#
# $$W_q x = [\, q^1 \mid g^1 \mid q^2 \mid g^2 \mid \dots \mid q^H \mid g^H \,]$$
#
# So the split comes *inside* each head: reshape to $(T, H, 2d)$ first, then halve.

# %%
qg = x @ W["q_proj.weight"].T  # (T, H * 2d)
q, gate = qg.view(T, H, 2 * d).chunk(2, dim=-1)  # (T, H, d) each
same(q, seen["q"])
same(gate, seen["gate"])

# %% [markdown]
# The trap: cutting all of it in the middle, "first all queries, then all gates", gives two tensors of the same shapes.
# Nothing fails, and the model still writes something. The picture shows which rows the wrong way takes for what.

# %%
wrong_q, wrong_gate = (half.reshape(T, H, d) for half in qg.chunk(2, dim=-1))
print(f"relative error of the query {apart(wrong_q, q):.2f}, of the gate {apart(wrong_gate, gate):.2f}")
assert apart(wrong_q, q) > 0.5 and apart(wrong_gate, gate) > 0.5

axes = figures.axes(1, 1, width=8.5, height=1.9)
colors = {"q": figures.SKY, "g": figures.ORANGE}
layouts = {
    "right": [f"{kind}{h}" for h in range(1, H + 1) for kind in "qg"],
    "wrong": [f"{kind}{h}" for kind in "qg" for h in range(1, H + 1)],
}
for row, blocks in enumerate(layouts.values()):
    for i, block in enumerate(blocks):
        axes.barh(-row, d, left=i * d, height=0.75, color=colors[block[0]], edgecolor="white", linewidth=2)
        axes.text((i + 0.5) * d, -row, block, ha="center", va="center")
axes.set(yticks=[0, -1], yticklabels=layouts, xlabel="row of q_proj.weight (q: query, g: gate, by head)")
axes.set(xticks=range(0, 2 * H * d + 1, d), xlim=(0, 2 * H * d))
pyplot.show()

# %% [markdown]
# With one head both ways agree, and a test with one head would miss it. That is why the small models in this
# repository's tests have unequal numbers of everything.
#
# ## 2. Normalised queries and keys
#
# Each head's query and key is divided by its root mean square, and scaled entry by entry ([QKN]; one $w$ for queries
# and one for keys, shared by all heads):
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
# Why? A vector divided by its root mean square has length $\sqrt d$ at most. By Cauchy and Schwarz a logit is then
# bounded, whatever the activations and the weights of the projections do (the rotation that follows keeps lengths):
#
# $$\frac{|\hat q \cdot \hat k|}{\sqrt d} \;\le\; \frac{|\hat q|\,|\hat k|}{\sqrt d} \;\le\;
# \sqrt d\,\max_i|1 + w^q_i|\,\max_i|1 + w^k_i|$$
#
# Without the norm a logit grows with the *square* of the activations. We multiply the layer's input by $c$ and watch
# the largest logit, and how many tokens a query really attends to, $\exp$ of the entropy of its weights.


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
assert max(largest["with norm"]) < 1.01 * min(largest["with norm"])  # but for epsilon, c cancels out
assert largest["without"][-1] / largest["without"][0] > 0.99e8  # (1000 / 0.1)^2

# %%
left, right = figures.axes(1, 2, width=4.6)
for name, style in {"without": "-", "with norm": "--"}.items():
    left.loglog(scales, largest[name], style, label=name)
    right.semilogx(scales, attended[name], style, label=name)
left.axhline(bound, color=figures.BLACK, linewidth=1)
left.text(scales[-1], bound * 1.4, "bound", ha="right")
left.axhline(65504, color=figures.RED, linestyle=":", linewidth=1)
left.text(scales[0], 65504 * 1.5, "largest float16", color=figures.RED)
left.set(xlabel="c, factor on the layer's input", ylabel="largest |logit|")
right.set(xlabel="c, factor on the layer's input", ylabel="tokens attended to", ylim=(0, None))
right.legend()
pyplot.show()

# %% [markdown]
# Left: without the norm a factor of 10 in the activations is one of 100 in the logits, and float16 overflows. Right:
# long before that, each query has only one token left. A softmax so sharp passes almost no gradient, so that training
# can't repair it. With the norm neither moves.
#
# The norm does not forbid sharp attention: the bound depends on $w$, which is learned. It makes the model state its
# sharpness in one place, per dimension.
#
# Why $1 + w$ and not $w$? $w$ starts at 0, and weight decay pulls it back to 0, so the scale to 1, its neutral value. A
# plain $w$ would be pulled to 0 and the head with it. (The Qwen team's announcement of Qwen3-Next gives as the reason
# that some norm weights of Qwen3 grew very large, which decay on $w$ prevents.) Decay alone, no gradient:

# %%
for name, start in {"1 + w": 0.5, "w": 1.5}.items():
    w = torch.nn.Parameter(torch.tensor([start]))
    optimizer = torch.optim.AdamW([w], lr=0.01, weight_decay=0.1)
    for _ in range(5000):
        w.grad = torch.zeros(1)
        optimizer.step()
    print(f"scale = {name:5}  1.5 at the start, {w.item() + (name == '1 + w'):.2f} after 5000 steps of decay")

plain = norm(q, W["q_norm.weight"] - 1)  # who forgets the 1 computes this
print(f"\ntiny/: 1 + w is {(1 + W['q_norm.weight']).min():.2f} to {(1 + W['q_norm.weight']).max():.2f} for queries;")
print(f"without the 1 the query has a relative error of {apart(plain, q_normed):.2f}")

# %% [markdown]
# ## 3. A quarter of each head turns
#
# Attention sees a set; positions have to be put into queries and keys. [RoPE] turns pairs of entries by an angle
# proportional to the position $t$. Here only the first $R = d/4$ entries are turned, entry $i$ together with entry
# $i + R/2$:
#
# $$\begin{pmatrix} \hat q_i \\ \hat q_{i + R/2} \end{pmatrix} =
# \begin{pmatrix} \cos t\omega_i & -\sin t\omega_i \\ \sin t\omega_i & \cos t\omega_i \end{pmatrix}
# \begin{pmatrix} q_i \\ q_{i + R/2} \end{pmatrix},
# \qquad \omega_i = \theta^{-2i/R}, \quad i = 0 \dots R/2 - 1$$
#
# A turned pair is one complex number times $e^{\mathrm{i} t\omega_i}$, which is how we write it; `apply_rope` writes
# out real and imaginary part. Three mistakes keep all shapes: dividing by $d$ for $R$ in the exponent, pairing
# neighbours $(2i, 2i+1)$, and turning all $d$ entries.

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
assert torch.equal(q_rope[..., R:], q_normed[..., R:])  # the other three quarters: bit for bit as they were

# %% [markdown]
# Left, the cosine of the angle by which each entry of a head of `tiny/` is turned at each position: the first pairs
# turn fast, the last ones hardly, and everything from entry $R$ on is 1, not turned at all. The entries of a pair are
# $R/2$ apart and have the same row. Right, the same in the released model, with its 32 pairs and $\theta = 10^7$: how
# often a pair turns until position 262,144, the longest context in training. From the fastest to the slowest pair that
# is a ratio of millions.

# %%
left, right = figures.axes(1, 2, width=4.6, height=3.3)
angles = torch.cat([omega, omega, torch.zeros(d - R)])[:, None] * torch.arange(128)  # (d, positions)
image = left.imshow(angles.cos(), aspect="auto", cmap=figures.DIVERGING, vmin=-1, vmax=1, interpolation="nearest")
left.axhline(R - 0.5, color=figures.BLACK, linewidth=1)
left.text(64, (R + d) / 2, "not turned", ha="center", va="center", color="white")
left.set(xlabel="position t (tokens)", ylabel="entry of the head", yticks=[0, R // 2, R, d - 1])
left.figure.colorbar(image, ax=left, label="cos of the angle")
large = rope_frequencies(released)[0]  # (32,)
right.semilogy(range(len(large)), released.max_position_embeddings * large / (2 * math.pi), "o", markersize=4)
right.axhline(1, color=figures.BLACK, linewidth=1)
right.text(0, 1.3, "one turn", va="bottom")
right.set(xlabel="pair i of the 80B", ylabel="turns in 262,144 tokens")
pyplot.show()

# %% [markdown]
# What this buys: let $q$ and $k$ be a query at position $t$ and a key at position $j$, after their norms. Turning $q$
# by $t\omega$ and $k$ by $j\omega$ leaves a product that depends on $t - j$ alone,
#
# $$\hat q \cdot \hat k = \sum_{i < R/2} \mathrm{Re}\big(\bar z^k_i\, z^q_i\, e^{\mathrm{i}(t - j)\omega_i}\big)
# + \sum_{i \ge R} q_i k_i$$
#
# with $z_i$ the pair $i$ as a complex number, and the bar its conjugate. To check it, the same $q$ and the same $k$
# stand at every position: their matrix of products must be constant along each diagonal, and the same 1000 positions
# further on. The second sum does not know the position: what those entries match, they match anywhere.

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

axes = figures.axes(1, 1, width=7.5, height=2.6)
axes.plot(turned[:, 0], label="first sum: the turned entries")
axes.plot(unturned.expand(96), "--", label="second sum: the others")
axes.set(xlabel="distance t - j (tokens)", ylabel="part of the product")
axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
pyplot.show()

# %% [markdown]
# ## 4. YaRN: a longer context than in training
#
# The slow pairs of the released model never finish a turn in training (the right picture above, below the line). In a
# context four times as long they would reach angles that the model has never seen. Dividing *all* frequencies by 4
# would blur the fast pairs, which tell neighbours apart. [YaRN] (section 3.2) treats each pair by the number of turns
# it makes in the original context of $L$ tokens: pairs with more than $\beta_{fast} = 32$ turns keep their frequency,
# those with fewer than $\beta_{slow} = 1$ have it divided by the factor $s$, and between the two it blends linearly.
# Solving "pair $i$ makes $n$ turns", $L\,\theta^{-2i/R} = 2\pi n$, for $i$:
#
# $$i(n) = \frac{R \ln (L / 2\pi n)}{2 \ln \theta}, \qquad
# r_i = \mathrm{clip}\Big(\frac{i - \lfloor i(32) \rfloor}{\lceil i(1) \rceil - \lfloor i(32) \rfloor},\, 0,\, 1\Big),
# \qquad \omega'_i = (1 - r_i)\,\omega_i + r_i\,\omega_i / s$$
#
# Below, the model card's own setting for one million tokens. `reference_recurrent.py` is the project's second
# implementation, in NumPy, which shares no code with the first.

# %%
yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262144}
longer = Qwen3NextConfig(**{**released.to_dict(), "rope_scaling": yarn})
L, theta, s, R80 = 262144, released.rope_theta, 4.0, 64


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
left, right = figures.axes(1, 2, width=4.6)
zone = {"keep": r == 0, "blend": (r > 0) & (r < 1), "divided": r == 1}
pairs = torch.arange(R80 // 2)
for (name, which), color, marker in zip(zone.items(), (figures.BLUE, figures.ORANGE, figures.GREEN), "os^"):
    left.plot(pairs[which], (stretched / large)[which], marker, color=color, label=name)
    right.semilogy(pairs[which], (s * L * stretched / (2 * math.pi))[which], marker, color=color, label=name)
right.semilogy(pairs, L * large / (2 * math.pi), color=figures.BLACK, linewidth=1, label="in training")
left.set(xlabel="pair i", ylabel="frequency: with YaRN / without", ylim=(0, 1.1))
left.legend(loc="lower left")
right.set(xlabel="pair i", ylabel="turns in the whole context")
right.legend(loc="lower left")
pyplot.show()

# %% [markdown]
# Left, the three zones. Right, how often each pair turns in the whole context: in training (262,144 tokens, black) and
# with YaRN (1,048,576 tokens, points). The divided pairs lie on the line: they see no angle that training has not seen.
# The pairs that keep turn four times as often, but those had seen every angle many times.
#
# YaRN also multiplies cosine and sine by $0.1 \ln s + 1$ (section 3.4), to sharpen attention over more tokens. Queries
# and keys both have it, so the products carry its square. In a model that turns all of each head this is one
# temperature. Here it is not: only the part of the product that comes from turned entries grows.

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
# While a model writes, each attention layer keeps the keys and values of all tokens. Their number of bytes per token,
# in bfloat16, is $2 \cdot 2 \cdot H_{kv}\,d$ in each attention layer. Grouped queries ([GQA]) make $H_{kv}$ small: in
# the released model 16 query heads read 2 key and value heads. The other saving is that three layers in four are not
# attention.

# %%
_, layers, _, H80, H80_kv, d80, _ = facts(released)
count = released.layer_types.count("full_attention")
variants = {
    f"{layers} layers, {H80} KV heads": (layers, H80),
    f"{count} layers, {H80} KV heads": (count, H80),
    f"{count} layers, {H80_kv} KV heads (the 80B)": (count, H80_kv),
}
gigabytes = {name: 2 * 2 * n * heads * d80 * 262144 / 1e9 for name, (n, heads) in variants.items()}
axes = figures.axes(1, 1, width=7.5, height=1.9)
bars = axes.barh(list(gigabytes), gigabytes.values(), color=[figures.ORANGE, figures.SKY, figures.BLUE])
axes.bar_label(bars, fmt="{:.1f} GB", padding=3)
axes.invert_yaxis()
axes.set(xlabel="keys and values of 262,144 tokens in bfloat16 (GB)", xlim=(0, 240))
assert math.isclose(gigabytes[f"{count} layers, {H80} KV heads"], 8 * [*gigabytes.values()][-1])

# %% [markdown]
# In the equations, query head $h$ reads key head $\lfloor h H_{kv}/H \rfloor$: the first $H/H_{kv}$ query heads share
# the first key head. That is `repeat_interleave` (0 0 1 1). `repeat` would tile them (0 1 0 1); with one key head, or
# as many as query heads, both agree, so that a test with equal numbers does not see it. PyTorch's own function does the
# right thing with `enable_gqa=True`, and copies nothing.


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
assert apart(tiled, y) > 0.3

# %% [markdown]
# What does the layer look at? We search all attention heads of `tiny/` for the one that finds the number: while the
# answer is written, how much attention falls on the same digit in the book. The picture shows that head: a row for each
# token from which a digit of the answer is predicted, a column for each token of the book.

# %%
texts = [tokenizer.decode([i]).replace("\n", "\\n") for i in ids]
end = ids.index(tokenizer.encode("\n\n")[0])  # the book ends here
colon = max(i for i, text in enumerate(texts) if text == ":")  # behind the name in the answer
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
axes = figures.axes(1, 1, width=9.0, height=2.2)
image = axes.imshow(p_found[rows, :end], aspect="auto", vmin=0, vmax=1, interpolation="nearest")
axes.set_xticks(range(end), [text.strip() or "␣" for text in texts[:end]], rotation=90, fontsize=8, family="monospace")
axes.set_yticks(range(4), [f"{texts[i].strip() or '␣'} → {texts[i + 1]}" for i in rows])
axes.set(xlabel="token of the book (␣: a space)", ylabel="at → predicted")
axes.figure.colorbar(image, ax=axes, label="attention")
pyplot.show()

# %% [markdown]
# ## 6. The gate
#
# The last step multiplies each head's output, entry by entry, with a number between 0 and 1 that the token at the query
# decides alone ([GA], section 2.2; of the places for a gate they tried, this was the best):
#
# $$o_t = W_o\,[\,\sigma(g_t^h) \odot y_t^h\,]_{h = 1 \dots H}$$
#
# With it the layer is complete.

# %%
out = (gate.sigmoid() * y).flatten(1) @ W["o_proj.weight"].T  # (T, D)
same(out, seen["o_proj.out"])
print(f"without the gate: relative error {apart(y.flatten(1) @ W['o_proj.weight'].T, out):.2f}")

# %% [markdown]
# ### A head that has nothing to say
#
# Why a gate? Softmax weights are positive and sum to 1, so a head returns a weighted mean of values. A mean can't leave
# the convex hull of what it averages. If there is a direction $u$ in which every value has at least length 1, then so
# has the output, whatever query and keys are:
#
# $$u \cdot y = \sum_j a_j\,(u \cdot v_j) \;\ge\; \sum_j a_j = 1$$
#
# We construct such values and try 10,000 random sets of weights, from even to sharp. The output of least length is not
# small. A gate makes it as small as it likes, at once, for any number of tokens.

# %%
values = torch.randn(64, 16, generator=normal, dtype=torch.float64)
values[:, 0] = 1 + values[:, 0].abs()  # u = the first axis
temperature = torch.logspace(-1, 1.5, 10_000, dtype=torch.float64)[:, None]
many = (temperature * torch.randn(10_000, 64, generator=normal, dtype=torch.float64)).softmax(-1)  # (10000, 64)
returned = many @ values  # (10000, 16)
assert returned[:, 0].min() >= 1
silent = torch.tensor(-8.0).sigmoid() * returned
print(f"shortest of 10,000 outputs: {returned.norm(dim=-1).min():.2f}")
print(f"longest behind a gate of σ(-8): {silent.norm(dim=-1).max():.4f}")
assert silent.norm(dim=-1).max() < 0.01

# %% [markdown]
# Models without a gate find another way: they make some token's value nearly zero and attend to it when they have
# nothing to say. This is an *attention sink*, mostly the first token, which every query can see ([Sink]). With a sink
# whose logit is $z$ above that of $n$ other tokens, the rest still gets
#
# $$1 - a_{sink} = \frac{n}{n + e^{z}}$$
#
# so the sink has to stand out more the longer the text is: $z$ grows with $\ln n$. (By section 2, $z$ is $2\sqrt d$ at
# most while $w = 0$: from $-\sqrt d$ to $\sqrt d$.)

# %%
axes = figures.axes(1, 1, width=8.0, height=2.9)
z = torch.linspace(0, 32, 200, dtype=torch.float64)
for n, style in zip((100, 10_000, 262_144), ("-", "--", "-.")):
    axes.semilogy(z, n / (n + z.exp()), style, label=f"a sink, {n:,} other tokens")
    check = torch.cat([torch.tensor([9.0]), torch.zeros(n)]).double().softmax(0)[1:].sum()
    same(check, torch.tensor(n / (n + math.exp(9.0)), dtype=torch.float64))
axes.semilogy(z, (-z).sigmoid(), color=figures.BLACK, linewidth=1, label="a gate of σ(-z), any number")
axes.axvline(2 * math.sqrt(256), color=figures.RED, linestyle=":", label="most that QK norm allows (w = 0, d = 256)")
axes.set(xlabel="logit of the sink above the others, or of the gate, z", ylabel="share that is left")
axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
pyplot.show()

# %% [markdown]
# ### An experiment: does training find the sink?
#
# One `GatedAttention` layer with one head learns to answer or to be silent. Every token has a key (a random direction)
# and a value (one of eight). One token in four asks for an earlier token's key and must return its value; all others
# must return zero. We train it with the gate, and with the gate's rows of `q_proj` held at zero, where it is a constant
# σ(0) = ½ that `o_proj` can undo. And we give it, or not, an empty token at the start, which could be a sink.

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
    """A GatedAttention on x (B, T, D) alone, behind an empty cache"""
    empty = Cache([], torch.zeros(len(x), dtype=torch.long))
    return layer(x, Step(x, None, None, empty, rope_frequencies(toy)))


def learn(gated, empty_start, seed, steps=350):
    torch.manual_seed(seed)
    source, layer = torch.Generator().manual_seed(seed), GatedAttention(toy)
    for weight in [p for p in layer.parameters() if p.ndim > 1]:
        torch.nn.init.kaiming_uniform_(weight, math.sqrt(5))  # as nn.Linear begins
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
    late = torch.arange(LENGTH) >= 8  # so that there are others to attend to
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
# What to see in the table (medians of three seeds, ± half their range; an error of 1 is that of returning nothing when
# asked):
#
# - Without gate and without an empty start the head can't do both: it answers badly.
# - Without gate but with an empty start it learns both, and the silent tokens put nearly all their attention on the
#   first token: a sink, found by training, since it is the only way out.
# - With the gate it learns both without any sink.
# - With both, it learns a sink all the same. The gate makes a sink unnecessary; it does not forbid it. One lookup
#   task in one head says nothing about which of the two a large model ends up with. [GA] measured that: in their 15B
#   mixture-of-experts model 46.7 % of the attention, averaged, fell on the first token, and 4.8 % with the gate
#   (Figure 2).

# %%
r = {arm: found.median(0).values for arm, found in results.items()}
no_way, sink, gate_only = r[False, False], r[False, True], r[True, False]
assert no_way[0] > 10 * sink[0] and no_way[0] > 10 * gate_only[0]  # error of those that ask
assert sink[3] > 0.9 and gate_only[3] < 0.3  # attention of silent tokens on the first
assert gate_only[4] > 2 * gate_only[5]  # the gate tells them apart

# %% [markdown]
# ### The gates of `tiny/`
#
# Held-out documents of four kinds go through `tiny/`. The corpus knows each token's role: a name told for the first
# time, "name (new)"; digits of an answer, "answer"; what follows from the words before, "template". For every head we
# average $\sigma(g)$ over its $d$ entries and over tokens of one role: once by the role of the token at which the gate
# stands, once by that of the *next* token, the one that is to be predicted there. Numbers stand where the mean is above
# 0.6.

# %%
fast = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float32)  # enough for averages
source = corpus.Corpus("held out", {"chat": 2.0, "moves": 1.0, "book": 1.0, "who": 1.0})
openings, roles, sink = [], [], []
for number in range(40):
    pairs = ids_and_roles(source.document(f"gates:{number}"))
    with torch.no_grad(), recording(fast, ["*.self_attn.*"]) as one:
        fast(torch.tensor([[token for token, _ in pairs]]))
    openings.append(torch.stack([parts(one, i, "gate")[0].sigmoid() for i in ATTENTION], dim=1))
    first = [attention(*parts(one, i, "q_rope", "k_rope"))[:, 20:, 0] for i in ATTENTION]  # for later
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
left, right = figures.axes(1, 2, width=4.6, height=3.9, sharey=True)
for axes, table, title in zip((left, right), tables, ("role of this token", "role of the next token")):
    image = axes.imshow(table, aspect="auto", vmin=0, vmax=1, interpolation="nearest")
    for i, j in (table > 0.6).nonzero().tolist():
        axes.text(j, i, f"{table[i, j]:.1f}", ha="center", va="center", fontsize=9)
    axes.set(title=title, xlabel="layer.head", yticks=range(len(kept)), yticklabels=kept)
    axes.set_xticks(range(table.shape[1]), [f"{i}.{h}" for i in ATTENTION for h in range(H)])
right.figure.colorbar(image, ax=right, label="mean opening of the gate")
pyplot.show()

# %% [markdown]
# Two questions to the picture: does a gate depend on what its token is? And does it open where the layer is needed,
# where the next token has to be looked up? To know of such a need, the layer must stand behind others: the gates of a
# model's very first layer would know nothing but the token at which they stand. In the columns of the last attention
# layer on the right, compare the rows of what was told already (name, name (copied), thing, answer) with those of what
# is new, which nobody can look up.
#
# How sparse are the gates? [GA] found a mean of 0.116 in their model (Table 4), most gates nearly shut.

# %%
for n, i in enumerate(ATTENTION):
    shut = "  ".join(f"{share:.0%}" for share in (openings[:, n] < 0.1).float().mean((0, 2)))
    print(f"layer {i}: mean gate {openings[:, n].mean():.2f}; share below 0.1, by head: {shut}")

groups = {
    "told already": ("name", "name (copied)", "thing", "answer"),
    "new": ("name (new)", "thing (new)", "kind (new)"),
}
of_last = openings[:, -1].mean((1, 2))  # (tokens,)
before = {name: of_last[[role in group for role in following]].mean() for name, group in groups.items()}
print(f"layer {ATTENTION[-1]}: " + ", ".join(f"before what is {name} {mean:.2f}" for name, mean in before.items()))
figures.expect("its gates open more before what can be looked up", before["told already"] > before["new"] + 0.05)

# %% [markdown]
# In one training of `tiny/` the gates were not sparse: their means were near one half, where they started, and few
# entries were below 0.1. They told roles apart, but were not shut by default. The published figure is from a model of
# 15 billion parameters, trained on hundreds of billions of tokens; one 2,000 times smaller, trained for two hours, need
# not show it.
#
# And does `tiny/` have a sink? The share of attention that falls on the first token, `<|im_start|>` or the first word
# of a story, from token 20 on, beside what attending evenly would give.

# %%
even = torch.cat([1 / torch.arange(21, 21 + z.shape[-1]) for z in sink]).mean()
print(f"even attention: {even:.1%}")
shares = torch.cat(sink, dim=-1).mean(-1)  # (layers, H)
for i, row in zip(ATTENTION, shares):
    print(f"layer {i}: " + "  ".join(f"{share:.1%}" for share in row) + "  (by head)")
figures.expect(f"no head spends 30 % there: the most is {shares.max():.0%}", shares.max() < 0.3)

# %% [markdown]
# [GA] report half of all attention for a model without gates. Shares far below that are no sink at the first token, and
# agree with what they report with a gate. But they are no evidence that the gate is the reason: there is no `tiny/`
# without gates to compare with, and a model this small might have no sink either way.
#
# ## 7. All of it
#
# The layer in one function, from the pieces above, for any config. It must agree with `GatedAttention` and with the
# NumPy reference on something less convenient than `tiny/`: random weights, 6 query heads on 2, $Hd \ne D$, biases,
# norm weights away from 0, YaRN.


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
for name, p in module.named_parameters():  # large enough that every term shows
    p.data = torch.randn(p.shape, generator=normal, dtype=torch.float64) * (0.3 if "norm" in name else 0.4)
x = torch.randn(1, 37, 40, generator=normal, dtype=torch.float64)
ours = gated_attention(x[0], {name: p.detach() for name, p in module.named_parameters()}, odd)


# %%
def step(x, past):
    """What a layer is told about a pass over x (B, T, D) behind `past` tokens: positions, slots of the cache, mask"""
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
# What keeps every shape and is wrong all the same:
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
# **1.** [GA] also tried one gate per head in place of one per entry. How many parameters would that save in the 80B,
# in all attention layers together, and what share of `q_proj` is that?
#
# <details><summary>Solution</summary>
#
# The gate's part of `q_proj` has $Hd$ rows of $D$; with one gate per head it has $H$.
#
# ```python
# count, _, D80, H80, _, d80, _ = facts(released)
# saved = count * (H80 * d80 - H80) * D80
# share = (H80 * d80 - H80) / (2 * H80 * d80)
# print(f"{saved:,} parameters, {share:.1%} of q_proj, {saved / 81_324_862_720:.2%} of the model")
# assert saved == 100_270_080
# ```
#
# Half of `q_proj`, but a tenth of a percent of the model. Both kinds removed the sink in the paper; gates per entry
# had the lower loss.
#
# </details>
#
# **2.** Another framework turns neighbouring entries, $(2i, 2i + 1)$. Make it compute the same attention by changing
# the weights once, when they are loaded. Which tensors have to change, and which must not?
#
# <details><summary>Solution</summary>
#
# Queries and keys only meet in their product, so both may have their entries in another order, if it is the same for
# both. Put entry $i$ at $2i$ and entry $i + R/2$ at $2i + 1$: in the query rows of `q_proj`, the rows of `k_proj`, and
# $w$ of both norms. The gate's rows, `v_proj` and `o_proj` stay: values are never turned, and the gate has to fit them.
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
# **3.** Could one save $w^k$ by multiplying it into $w^q$: scale queries by $(1 + w^q)(1 + w^k)$ and keys by 1?
# For which entries is it exact, and for which not?
#
# <details><summary>Solution</summary>
#
# For an entry that is not turned, the product is $(1 + w^q_i)\,q_i\,(1 + w^k_i)\,k_i$: only the product of the two
# scales counts, so one suffices. A turned pair mixes its two entries before the product; there the scales may be moved
# only if both entries of the pair have the same one, for then they commute with the rotation.
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
