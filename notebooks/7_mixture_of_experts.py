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
# # 7. A mixture of experts
#
# How can a model store 80 billion weights and use only 3 billion of them for a token? In the released Qwen3-Next, which
# we call *the 80B*, the MLP of every layer is cut into many small ones, the *experts*. A *router* chooses a few experts
# for each token, and one more, the *shared expert*, serves every token. This saves time: reading weights is most of the
# cost of generating a token, and a weight that is not used need not be read.
#
# After this notebook you can write the layer from its equations. You can say what the load-balancing loss balances, and
# what it does not. You can measure what experts specialise in without being fooled by the estimate, and you know when
# sparsity saves time. You need to know PyTorch and the MLP of a transformer. We build the layer step by step on a small
# trained model, and compare every step with [`qwen3_next.py`](../qwen3_next.py). For one lesson, take sections 1 to 4,
# and of section 5 the table and what came out. Sections 6 and 7 are a second lesson.
#
# | | |
# |---|---|
# | [Switch] | Switch Transformers, [arXiv 2101.03961](https://arxiv.org/abs/2101.03961): the balancing loss |
# | [Sparse] | Outrageously Large Neural Networks, [arXiv 1701.06538](https://arxiv.org/abs/1701.06538): top-k gating |
# | [Shared] | DeepSeekMoE, [arXiv 2401.06066](https://arxiv.org/abs/2401.06066): small experts, and a shared one |
# | [V3] | DeepSeek-V3, [arXiv 2412.19437](https://arxiv.org/abs/2412.19437): balancing without a loss (exercise 3) |

# %%
from start import root

# %%
import functools
import json
import math
import statistics

import balance  # notebooks/experiments/balance.py
import corpus
import course
import figures
import torch
import torch.nn.functional as F
from pictures import experts as pictures

from qwen3_next import Experts, Qwen3NextForCausalLM, Qwen3NextTokenizer, load_balancing_loss
from qwen3_next_checkpoints.stats import counting
from verify.trace import recording

figures.setup()
normal = torch.Generator().manual_seed(0)  # one source of random numbers for this notebook
pictures.overview()

# %% [markdown]
# ## The layer, and a model to watch
#
# Let $x_t$ be the input of the layer at token $t$, a vector of width $D$. (In the code it is a row of `x`, and $W x_t$
# is a row of `x @ W.T`.) There are $E$ experts. Each is a small MLP with its own three matrices and inner width $I$,
# and a token uses $k$ of them. $W_r$ is the router's matrix, and the vector $u$ belongs to the gate of the shared
# expert. We write $\odot$ for the product entry by entry and $\sigma$ for the sigmoid. The layer computes
#
# $$\begin{aligned}
# z_t &= W_r\, x_t \qquad p_t = \mathrm{softmax}(z_t) \in \mathbb{R}^E && \text{(router: logits, probabilities)}\\
# S_t &= \text{the } k \text{ experts with the largest } p_{te}, \qquad
#   w_{te} = \frac{p_{te}}{\sum_{j \in S_t} p_{tj}} && \text{(choice, weights)}\\
# y_t &= \sum_{e \in S_t} w_{te}\, \mathrm{MLP}_e(x_t) \;+\; \sigma(u \cdot x_t)\, \mathrm{MLP}_{shared}(x_t)
#   && \text{(weighted sum, shared expert)}\\
# \mathrm{MLP}(x) &= W_{down}\big(\mathrm{silu}(W_{gate}\, x) \odot W_{up}\, x\big) && \text{(SwiGLU)}
# \end{aligned}$$
#
# The model is `tiny/`, trained on generated stories, phone books and accounts of who moved what. We load it in float64,
# where two ways to compute the same thing agree to about 13 digits, so no mistake can pass for rounding. We run a
# held-out story through it once, and `trace` records every intermediate value. What the text says about `tiny/` was
# found with the weights in the repository. If you train it anew, the figures change; the findings should not.


# %%
model = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float64)
tokenizer = Qwen3NextTokenizer.from_pretrained(root / "tiny")
encode = functools.cache(tokenizer.encode)

LAYER = 5  # which layer we take apart
story = course.ids_and_roles(corpus.Corpus("held out", {"story": 1.0}).document("experts"), encode)[:120]
texts = [tokenizer.decode([token]) for token, _ in story]
with torch.no_grad(), recording(model) as trace:
    model(torch.tensor([[token for token, _ in story]]))
prefix = f"model.layers.{LAYER}."
block = model.get_submodule(prefix + "mlp")  # a SparseMoeBlock
x = trace[prefix + "post_attention_layernorm.out"]  # (T, D): all that the block sees
seen = {key.removeprefix(prefix + "mlp."): value for key, value in trace.items() if key.startswith(prefix + "mlp.")}
del seen["margin"]  # how close the choice was: for verify/
(T, D), E, k, inner = x.shape, model.config.num_experts, block.k, model.config.moe_intermediate_size
print("".join(texts[:60]), "...\n")
for name, value in {"x": x, **seen}.items():
    print(f"{name:24} {tuple(value.shape)}")
print(f"\nE = {E} experts of inner width I = {inner}, k = {k} of them a token")

# %% [markdown]
# ## 1. The router
#
# How does the router choose? We do one token by hand. We compute the logits, take a softmax over **all** experts, pick
# the $k$ largest probabilities, and divide them by their sum (`norm_topk_prob` in the config).

# %%
W = {name: p.detach() for name, p in block.named_parameters()}


def same(ours, theirs, atol=1e-11):
    """Fails unless both agree: float64 leaves about 1e-13 after a few hundred additions of numbers up to 100."""
    course.same(ours, theirs, atol)


t = next(i for i, (_, role) in enumerate(story) if role == "name (new)")
z = W["gate.weight"] @ x[t]  # (E,)
p = z.exp() / z.exp().sum()  # (E,)
chosen = p.argsort(descending=True)[:k]  # (k,)
w = p[chosen] / p[chosen].sum()  # (k,)
for e, weight in zip(chosen.tolist(), w.tolist()):
    print(f"expert {e:2}: logit {z[e]:6.3f}, probability {p[e]:.3f}, weight {weight:.3f}")
same(p, seen["router_probs"][t])
assert torch.equal(chosen, seen["topk_ids"][t])
same(w, seen["topk_weights"][t])

# %% [markdown]
# Now we do all tokens at once. The picture shows the router's probabilities for three tokens of different roles. The
# coloured bars are the chosen experts. The number above each panel is the probability that they have together: look at
# how far it is from 100 %.

# %%
z = x @ W["gate.weight"].T  # (T, E)
p = z.softmax(-1)
top, chosen = p.topk(k, dim=-1)  # (T, k) each
w = top / top.sum(-1, keepdim=True)
same(p, seen["router_probs"])
assert torch.equal(chosen, seen["topk_ids"])
same(w, seen["topk_weights"])

places = [next(i for i, (_, role) in enumerate(story) if role == r) for r in ("template", "name (new)", "thing (new)")]
titles = [f"“{texts[i].strip()}” ({story[i][1]})\nchosen: {top[i].sum():.0%} in all" for i in places]
pictures.choices(p[places], chosen[places].tolist(), titles, E)

# %% [markdown]
# Experts that were not chosen often have a good part of the probability. So it matters whether we divide the chosen
# probabilities by their sum.
#
# ### Before or after the choice?
#
# Could we choose first, and then take the softmax of the chosen logits only? Yes. If we divide the weights by their
# sum, both ways give the same weights, because the softmax's denominator $Z_t = \sum_j e^{z_{tj}}$ cancels.
#
# $$\frac{p_{te}}{\sum_{j \in S_t} p_{tj}} = \frac{e^{z_{te}} / Z_t}{\sum_{j \in S_t} e^{z_{tj}} / Z_t}
# = \mathrm{softmax}_{j \in S_t}(z_t)_e$$

# %%
same(z.gather(-1, chosen).softmax(-1), w)

# %% [markdown]
# The two ways differ when `norm_topk_prob` is false, which is the default in transformers' Qwen2-MoE. The weights are
# then the $p_{te}$ themselves, and they sum to the chosen experts' share of the probability. If the router is
# undecided, this share is small, and so is the experts' output. A softmax after the choice always sums to 1 and can't
# express this. We set the block's switch to see both.


# %%
def routed(block):
    """The block's sum over routed experts, (T, D), and the weights it took, (T, k)"""
    with torch.no_grad():
        values = {}
        hook = block.experts.register_forward_hook(lambda _, args, out: values.update(weights=args[1], out=out))
        block(x[None])
        hook.remove()
    return values["out"], values["weights"]


normalised, _ = routed(block)
block.normalise = False
plain, weights = routed(block)
block.normalise = True
same(weights, top)
same(plain, top.sum(-1, keepdim=True) * normalised)  # the same direction, shorter
mass = top.sum(-1)
print(f"sum of the chosen probabilities: {mass.min():.2f} to {mass.max():.2f}, mean {mass.mean():.2f}")
smaller = f"without the division, the experts' output is more than 10 % smaller: {1 - mass.mean():.0%} on average"
figures.expect(smaller, mass.mean() < 0.9)

# %% [markdown]
# ### Why the softmax is in float32
#
# Here everything is in float64. In a bfloat16 model, `qwen3_next.py` takes the router's softmax in float32. Why? The
# choice compares numbers that are close together. bfloat16 keeps 8 bits, so neighbouring numbers are 0.4 to 0.8 %
# apart. Many of 512 probabilities then become equal, and the choice between two equal ones is arbitrary. The logits
# come from a bfloat16 product and are already rounded. The softmax should not round again. We count how often that
# would change the choice, with random logits and 10 experts of 512:

# %%
logits = torch.randn(4096, 512, generator=normal).bfloat16()


def sets(p, k=10):
    """Which experts are among the k largest, (tokens, experts) of True and False"""
    return torch.zeros(p.shape, dtype=torch.bool).scatter(-1, p.topk(k, dim=-1).indices, True)


other = (sets(logits.softmax(-1)) != sets(logits.float().softmax(-1))).any(-1).float().mean()
print(f"softmax in bfloat16: {other:.1%} of the tokens get another set of experts than in float32")
course.finding("more than 0.2 % of the tokens", other > 0.002)

# %% [markdown]
# ## 2. The experts
#
# An expert is three matrices. The most direct way to write the weighted sum is a loop over all tokens and their chosen
# experts. It is also the slowest way, because each of the $T k$ steps multiplies matrices by a single vector.


# %%
def expert(e, rows):
    """rows (n, D) -> (n, D)"""
    gate, up, down = (W[f"experts.{e}.{name}.weight"] for name in ("gate_proj", "up_proj", "down_proj"))
    return (F.silu(rows @ gate.T) * (rows @ up.T)) @ down.T


y = torch.zeros(T, D, dtype=torch.float64)
for t in range(T):
    for weight, e in zip(w[t], chosen[t].tolist()):
        y[t] += weight * expert(e, x[t : t + 1])[0]
same(y, seen["experts.out"])
same(y, normalised)

# %% [markdown]
# It is better to sort the $T k$ pairs of a token and a chosen expert, so that each expert's rows lie together. The
# expert then multiplies all its rows in one go, and afterwards we sort the results back. This is called the *dispatch*.

# %%
flat = chosen.flatten()  # (T * k,): pair i belongs to token i // k
order = flat.argsort(stable=True)  # pairs, expert by expert
counts = flat.bincount(minlength=E).tolist()
pieces = x[order // k].split(counts)  # E tensors of (count, D)
outputs = torch.cat([expert(e, rows) for e, rows in enumerate(pieces)])  # (T * k, D), still sorted
back = torch.empty_like(order)
back[order] = torch.arange(T * k)  # the inverse of the sorting
y = (w[..., None] * outputs[back].view(T, k, D)).sum(1)
same(y, seen["experts.out"])
print(f"matrix products: {3 * T * k} in the loop, {3 * sum(c > 0 for c in counts)} after sorting")

# %% [markdown]
# The picture shows this sort for the first 10 tokens. The upper row has the pairs in their original order, $k$ for each
# token, and the lower row has them sorted. The colour is the expert, and the number is the token. Look at how each
# colour becomes one block: these rows go through their expert together.

# %%
pictures.dispatch(flat[: 10 * k], k, E)

# %% [markdown]
# There is another way to see the layer. All experts together are one MLP of inner width $E I$, whose inner values fall
# into $E$ blocks of $I$. The router picks $k$ blocks, weights them, and sets all others to zero. So a mixture of
# experts is a wide MLP, and each token uses a part of it.

# %%
gate, up = (torch.cat([W[f"experts.{e}.{name}.weight"] for e in range(E)]) for name in ("gate_proj", "up_proj"))
down = torch.cat([W[f"experts.{e}.down_proj.weight"] for e in range(E)], dim=1)  # (D, E * I)
hidden = F.silu(x @ gate.T) * (x @ up.T)  # (T, E * I)
mask = torch.zeros(T, E, dtype=torch.float64).scatter(-1, chosen, w)  # weights, 0 where not chosen
same((hidden * mask.repeat_interleave(inner, dim=-1)) @ down.T, seen["experts.out"])

# %% [markdown]
# ## 3. The shared expert
#
# Some knowledge is useful for every token, and every expert would have to learn it again. [Shared] (section 3.2) gives
# this knowledge its own place: an expert that every token uses, without a choice by the router. In Qwen3-Next, a
# sigmoid of one dot product decides how much of the shared expert a token gets. With the shared expert, the layer is
# complete.

# %%
shared_gate, shared_up, shared_down = (W[f"shared_expert.{name}_proj.weight"] for name in ("gate", "up", "down"))
shared = (F.silu(x @ shared_gate.T) * (x @ shared_up.T)) @ shared_down.T  # (T, D)
openness = torch.sigmoid(x @ W["shared_expert_gate.weight"].T)  # (T, 1)
same(y + openness * shared, block(x[None])[0][0].detach())
print(f"gate: {openness.min():.2f} to {openness.max():.2f}, mean {openness.mean():.2f}")

# %% [markdown]
# How open is this gate, and for which tokens? The corpus knows every token's *role*: a word of the template, a name
# mentioned for the first time or again, a digit of a phone book, part of an answer. We run the model, now in float32,
# over held-out documents. For every token we keep the router's logits and the gates of all layers, and the input of one
# layer. The rest of the notebook uses these values as well.
#
# The picture shows the mean of the gate, with a row for each role and a column for each layer. Look down a column, then
# along a row.

# %%
small = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float32)
L = small.config.num_hidden_layers
DOCUMENTS = 60
source, kept = corpus.Corpus("held out"), []
for number in range(DOCUMENTS):
    pairs = course.ids_and_roles(source.document(f"experts:{number}"), encode)
    keys = ["*.mlp.shared_expert_gate.out", f"layers.{LAYER}.post_attention_layernorm.out"]
    with torch.no_grad(), recording(small.model, keys) as trace:
        out = small.model(torch.tensor([[token for token, _ in pairs]]), output_router_logits=True)
    gates = torch.stack([trace[f"layers.{i}.mlp.shared_expert_gate.out"][:, 0].sigmoid() for i in range(L)])
    inputs = trace[f"layers.{LAYER}.post_attention_layernorm.out"]
    kept.append((pairs, torch.stack(out.router_logits), gates, inputs))

# %%
router_logits = torch.cat([logits for _, logits, _, _ in kept], dim=1)  # (L, N, E)
gates = torch.cat([gates for _, _, gates, _ in kept], dim=1)  # (L, N)
inputs = torch.cat([inputs for *_, inputs in kept])  # (N, D)
tokens = torch.tensor([token for pairs, *_ in kept for token, _ in pairs])  # (N,)
roles = [role for pairs, *_ in kept for _, role in pairs]
names = sorted({role for role in roles if roles.count(role) >= 50})
N = len(tokens)
picked = sets(router_logits, k).float()  # (L, N, E): 1 where chosen
print(f"{N:,} tokens of {len(kept)} documents; {len(tokens.unique()):,} different tokens, {len(set(roles))} roles")

# %%
of_role = {name: torch.tensor([role == name for role in roles]) for name in names}
mean = torch.stack([gates[:, mask].mean(1) for mask in of_role.values()])  # (roles, L)
rows = [f"{name} ({of_role[name].sum()})" for name in names]
alt = "A heat map of the mean openness of the shared expert's gate: rows are roles of tokens, columns are layers."
pictures.by_role(mean, rows, "layer", "mean openness of the gate", alt)
within = torch.stack([gates[:, mask].std(1) for mask in of_role.values()]).mean()
print(f"standard deviation of the gate: {within:.2f} within a role, {gates.std(1).mean():.2f} in all")

# %% [markdown]
# The values change down a column, so the gate depends on the token and is not just a constant. They change along a row,
# so the layers use it differently. For most roles and layers the gate is less than half open, and for some it is more.
# Tokens of the same role differ as well: the last line shows that much of the spread remains within a role.
#
# ## 4. Load
#
# Do all experts get their share of the work? The *load* of an expert is its share of all choices, times the number of
# experts, so a load of 1 is even. In the next picture each thin line is a layer, with its experts sorted by load, the
# busiest first. The thick line is different: it *pools* the layers. All experts with the same number, one from each
# layer, are counted as if they were one expert. Compare how steeply the lines fall.

# %%
load = picked.mean(1) / k * E  # (L, E)
pooled = load.mean(0)  # (E,)
pictures.loads(load)
ranges = f"{load.min():.2f} to {load.max():.2f}; pooled by number: {pooled.min():.2f} to {pooled.max():.2f}"
print("loads within one layer:", ranges)

# %% [markdown]
# Within one layer, the loads are far from even. Pooled by number, they are nearly even: compare the two printed ranges.
# This is no accident. The loss asks for exactly this, as we will see.
#
# ### The balancing loss
#
# Nothing in the language loss asks for even loads. Worse, an expert that is chosen more often learns more, which makes
# it more attractive ([Sparse], section 4). So [Switch] (Eq. 4 to 6) adds a loss. Let $f_e$ be the share of the $n$
# tokens that chose expert $e$, and $P_e$ the mean probability of $e$ over all $n$ tokens:
#
# $$f_e = \frac1n \sum_t [e \in S_t], \qquad P_e = \frac1n \sum_t p_{te}, \qquad
# \mathcal{L}_{bal} = E \sum_e f_e\, P_e$$
#
# The $f_e$ come from a choice and have no gradient. The $P_e$ have one. With $k$ choices per token, the $f_e$ sum to
# $k$. Two values of the loss are worth knowing:
#
# - even: $f_e = k/E$ and $P_e = 1/E$, so $\mathcal{L} = E \cdot E \cdot \frac kE \cdot \frac1E = k$.
# - collapse: all tokens choose the same $k$ experts and give them all of the probability. For these experts $f_e = 1$,
#   and their $P_e$ sum to one, so $\mathcal{L} = E$.


# %%
def balancing_loss(logits, k):
    """logits (n, E)"""
    p = logits.softmax(-1)
    f = sets(p, k).to(p).mean(0)  # (E,)
    return p.shape[-1] * (f * p.mean(0)).sum()


turns = torch.arange(10 * E)[:, None] + torch.arange(k)  # token t takes experts t, t + 1 ... in turn
even = torch.zeros(10 * E, E, dtype=torch.float64).scatter(1, turns % E, 50.0)  # logits: 50 or 0, e^-50 is negligible
collapsed = even[:1].expand(10 * E, E)
for name, logits, value in (("even", even, k), ("collapse", collapsed, E)):
    print(f"{name:9} {balancing_loss(logits, k):.6f}")
    same(balancing_loss(logits, k), torch.tensor(float(value), dtype=torch.float64))
    same(load_balancing_loss([logits], k), balancing_loss(logits, k))

# %% [markdown]
# Note that the even router above is very sure of its choice for each token. Balance asks for even means over the
# tokens, not for an undecided router.
#
# The function in `qwen3_next.py` takes the logits of all layers, and a mask for padding. We check ours against it on
# the logits of `tiny/`, with a random mask.

# %%
real = torch.rand(N, generator=normal) < 0.8  # which tokens count
rows = router_logits.double()
same(load_balancing_loss(list(rows), k, real[None]), balancing_loss(rows[:, real].flatten(0, 1), k))
same(load_balancing_loss([rows[LAYER]], k), balancing_loss(rows[LAYER], k))

# %% [markdown]
# ### What its gradient does
#
# How does this loss change the router? The derivative of a softmax is
# $\partial p_{te} / \partial z_{tj} = p_{te}\,([e = j] - p_{tj})$. So
#
# $$\frac{\partial \mathcal{L}_{bal}}{\partial z_{tj}} = \frac En\, p_{tj}\, \Big(f_j - \sum_e f_e\, p_{te}\Big)$$
#
# In words: compare the load of expert $j$ with the mean load of the experts that this token likes. (The mean is
# weighted by the token's probabilities.) If $j$ is busier, the token's logit for $j$ is pushed down. If $j$ is less
# busy, it is pushed up. It does not matter whether this token chose $j$, only how many tokens did. The factor $p_{tj}$
# sets the strength of the push: if the token gives $j$ almost no probability, the push is tiny.

# %%
one = rows[LAYER].clone().requires_grad_()
load_balancing_loss([one], k).backward()
p, f = one.detach().softmax(-1), sets(one.detach(), k).double().mean(0)
gradient = E / N * p * (f - (p * f).sum(-1, keepdim=True))
same(gradient, one.grad, atol=1e-15)  # entries are about E / N * p: 1e-4

# %% [markdown]
# To watch the loss at work, we return to the layer of section 1, with its inputs and its trained router. We let only
# this gradient change the router's weight $W_r$. No language loss pulls back. The left picture shows one point for each
# expert: the gradient of its logit at the start, summed over the tokens, against its load. Look at where the gradient
# changes sign. The right picture shows the loads step by step.

# %%
some = inputs[:: max(1, N // 2000)].double()  # about 2,000 tokens
W_r = W["gate.weight"].clone().requires_grad_()
paths = []
for _ in range(101):
    logits = some @ W_r.T  # (n, E)
    paths.append(sets(logits, k).double().mean(0) * E / k)
    (slope,) = torch.autograd.grad(balancing_loss(logits, k), W_r)
    with torch.no_grad():
        W_r -= 0.05 * slope
paths = torch.stack(paths)  # (steps, E)
print(f"load of the busiest expert: {paths[0].max():.2f} at the start, {paths[-1].max():.2f} at the end")
print(f"of the least busy one: {paths[0].min():.2f} and {paths[-1].min():.2f}")
figures.expect("the spread of the loads shrinks by more than 30 %", paths[-1].std() < 0.7 * paths[0].std())

# %%
pictures.balancing(f * E / k, gradient.sum(0), paths)

# %% [markdown]
# For a busy expert the gradient is positive, so a step of gradient descent makes its logit smaller. For the others it
# is negative. The sign changes at a load above 1, not at 1. Experts are busy because tokens like them, so the mean load
# of the experts that a token likes is more than 1. With no language loss to pull back, the router evens out the loads.
#
# ### Balanced over what?
#
# `tiny/` was trained with this loss. Why are its loads still so uneven? It depends on *which tokens* the mean is taken
# over. [Switch] (section 2.2) adds one loss for each layer. `qwen3_next.py` first puts the tokens of all layers into
# one pool, like the function in transformers whose values it reproduces. Expert 3 of layer 0 and expert 3 of layer 7
# are different MLPs, but the pool counts them as one. Here is the smallest example: two layers, two experts, $k = 1$.
# Each layer has collapsed, but onto a different expert.

# %%
first = torch.tensor([[50.0, 0.0]]).double().expand(8, 2)
second = first.flip(-1)
print(f"each layer alone: {load_balancing_loss([first], 1):.2f}, {load_balancing_loss([second], 1):.2f}")
print(f"pooled:           {load_balancing_loss([first, second], 1):.2f}")
same(load_balancing_loss([first, second], 1), torch.tensor(1.0).double())  # k, as if the loads were even

# %% [markdown]
# Each layer alone has the worst possible loss, and the pooled loss sees nothing wrong. Now `tiny/`:

# %%
alone = [load_balancing_loss([logits], k).item() for logits in router_logits]
together = load_balancing_loss(list(router_logits), k).item()
print("loss of each layer:", " ".join(f"{value:.2f}" for value in alone), f" mean {statistics.mean(alone):.2f}")
print(f"pooled: {together:.2f} (even: {k}, collapse: {E})")
print("loads within one layer:", ranges)
wide, narrow = load.max() - load.min(), pooled.max() - pooled.min()
figures.expect("within a layer loads spread more than three times as far as in the pool", wide > 3 * narrow)
figures.expect("the pooled loss is lower than the mean of the layers' own", together < statistics.mean(alone))

# %% [markdown]
# Training has brought the pooled loss near its even value. The layers' own losses are higher: each layer prefers some
# of the expert numbers, and together the layers use all numbers evenly.
#
# ## 5. An experiment: what balancing costs and gains
#
# Does the choice of loss matter? [`experiments/balance.py`](experiments/balance.py) trains small models (4 layers of
# width 64, 16 experts a layer, 2 per token) for 240 steps of 1,024 tokens from the same corpus, in three ways:
#
# - **none**: no balancing.
# - **pooled**: the loss of `qwen3_next.py`, times 0.05.
# - **layer**: the same loss for each layer alone, averaged, times 0.05.
#
# Each way is run with five seeds. A seed decides the starting weights and the text, so with the same seed all three
# ways start alike and read the same text. We measure the loads and the language loss on held-out text, without the
# balancing term.


# %%
def measures(entry):
    """What one entry of a run's history says, as numbers"""
    load = torch.tensor(entry["load"])  # (layers, experts)
    return {
        "busiest expert of a layer": load.amax(1).mean().item(),
        "idle experts": (load < 0.05).sum().item(),
        "effective number of experts": torch.special.entr(load / load.shape[1]).sum(1).exp().mean().item(),
        "busiest expert number in the pool": load.mean(0).max().item(),
        "held-out loss": entry["loss"],
    }


runs = json.loads(balance.RESULT.read_text(encoding="utf-8"))
steps = [entry["step"] for entry in runs[0]["history"]]
curves = {}  # by kind and measure: (seeds, steps)
for kind in balance.KINDS:
    each = [[measures(entry) for entry in run["history"]] for run in runs if run["kind"] == kind]
    curves[kind] = {name: torch.tensor([[m[name] for m in run] for run in each]) for name in each[0][0]}
    assert len(each) == 5 and [entry["step"] for entry in runs[-1]["history"]] == steps

# %% [markdown]
# We need two definitions. An *idle* expert has less than a twentieth of its even share. All layers together have 64
# experts. The *effective number* of experts is the exponential of the entropy of a layer's loads: 16 when they are
# even, 1 when one expert gets every token.
#
# The first two plots show means over layers, and the third counts the idle experts of all layers. The last one looks at
# the pool: it counts experts with the same number as one. Lines are means over the seeds, and bands reach from the
# lowest seed to the highest. Look at which of the three ways makes the layers even, and which makes only the pool even.

# %%
units = {
    "busiest expert of a layer": "load (1: even)",
    "effective number of experts": "experts of 16",
    "idle experts": "idle experts of 64",
    "busiest expert number in the pool": "load (1: even)",
}
pictures.three_ways(steps, curves, units)

# %%
print(f"{'at the end, mean ± standard deviation of 5 seeds':50}" + "".join(f"{kind:>16}" for kind in balance.KINDS))
for name in curves["none"]:
    ends = [curves[kind][name][:, -1].double() for kind in balance.KINDS]
    print(f"{name:50}" + "".join(f"{end.mean():9.3f} ±{end.std():6.3f}" for end in ends))
print()
for kind in ("pooled", "layer"):
    gap = (curves[kind]["held-out loss"] - curves["none"]["held-out loss"])[:, -1]
    each = " ".join(f"{value:+.3f}" for value in gap)
    print(f"held-out loss, {kind} minus none, by seed: {each}")
    print(f"    mean {gap.mean():+.3f} ± {gap.std() / 5**0.5:.3f} (standard error)")
final = {kind: {name: curve[:, -1].double().mean() for name, curve in curves[kind].items()} for kind in balance.KINDS}
assert final["layer"]["busiest expert of a layer"] < final["none"]["busiest expert of a layer"]
busiest = "busiest expert number in the pool"
assert final["pooled"][busiest] < final["none"][busiest]

# %% [markdown]
# What came out:
#
# - Without balancing, the loads are uneven within 20 steps, before the model has learned much. Later they become *more*
#   even, although nothing asks for it, and most idle experts come back. In a run this short nothing collapses.
# - The pooled loss balances the pool, which is all that it measures. Within a layer it helps much less, and some
#   experts stay idle.
# - The loss of each layer alone makes every layer even, and leaves no expert idle.
# - The language loss is the same in all three, within the differences between seeds. At this size and length, balance
#   neither costs nor gains anything that five seeds could show. Even loads serve another purpose: if each expert is on
#   its own machine, all machines wait for the busiest one.

# %% [markdown]
# ## 6. What do experts specialise in?
#
# We return to the layer of section 1. The picture shows, for the tokens of each role, the share that chooses each
# expert. Look at whether the rows differ.

# %%
table = torch.stack([picked[LAYER][mask].mean(0) for mask in of_role.values()])  # (roles, E)
rows = [f"{name} ({of_role[name].sum()})" for name in names]
alt = "A heat map of the share of tokens that choose each expert: rows are roles of tokens, columns are experts."
pictures.by_role(100 * table, rows, f"expert of layer {LAYER}", "tokens that choose it (%)", alt, most=100)

# %% [markdown]
# The rows differ, and it is tempting to give experts names: one for numbers, say, or one for pronouns. But digits are
# also just ten tokens. Does an expert respond to the role, or simply to the token itself? The picture can't decide this
# question, so let us measure.
#
# Let $X$ be something that we know about a token, such as its role or its *identity* (which token of the vocabulary it
# is). Let $e$ be one of its $k$ experts, picked at random. The *mutual information*
#
# $$I(e; X) = \sum_{X, e} p(X, e)\, \log_2 \frac{p(X, e)}{p(X)\, p(e)} = H(e) + H(X) - H(X, e)$$
#
# is the number of bits that we learn about the expert from knowing $X$. Here $H$ is the entropy. If $e$ and $X$ are
# independent, $I$ is 0. It can't reach $H(e)$: even if we know the whole set $S_t$, we do not know which of the $k$ was
# picked, and that leaves $\log_2 k$ bits. So no $X$ can give more than $H(e) - \log_2 k$.


# %%
def entropy(counts):
    """Bits"""
    p = counts.flatten().double() / counts.sum()
    return -(p * p.clamp(min=1e-300).log2()).sum().item()


def information(X, picked):
    """Bits that X (N,), whole numbers, reveals about one of the experts picked (N, E): the plug-in estimate"""
    counts = torch.zeros(int(X.max()) + 1, picked.shape[1]).index_add(0, X, picked)  # of each pair (X, e)
    return entropy(counts.sum(0)) + entropy(counts.sum(1)) - entropy(counts)


index = torch.randint(E, (5000,), generator=normal)  # a made-up X that determines all experts: X, X + 1 ...
made_up = torch.zeros(5000, E).scatter(1, (index[:, None] + torch.arange(k)) % E, 1.0)
ceiling = entropy(made_up.sum(0)) - math.log2(k)
print(f"an X that determines all experts: {information(index, made_up):.4f} bits, the most possible {ceiling:.4f}")
same(information(index, made_up), ceiling, atol=1e-6)

# %% [markdown]
# Here is the trap. The estimate counts pairs of $X$ and $e$. If $X$ has many values and each occurs in few tokens,
# chance alone looks like information. A token that occurs once seems to determine its experts completely. How much of
# the estimate is chance? We compute a shuffled baseline: we exchange the values of $X$ between tokens at random, so
# that they say nothing about the experts any more, and estimate again.


# %%
def shuffled(X, groups=None):
    """X with its values exchanged at random, between tokens of the same group if groups (N,) are given"""
    mixed = torch.randperm(len(X), generator=normal)
    if groups is None:
        return X[mixed]
    out, order = torch.empty_like(X), groups.argsort(stable=True)
    out[order] = X[mixed[groups[mixed].argsort(stable=True)]]  # both sides sorted by group
    return out


def pair(X, Y):
    """One number for each pair of values"""
    return torch.unique(X * (Y.max() + 1) + Y, return_inverse=True)[1]


# %%
all_roles = sorted(set(roles))
role = torch.tensor([all_roles.index(r) for r in roles])
token = torch.unique(tokens, return_inverse=True)[1]
ends = torch.tensor([len(pairs) for pairs, *_ in kept]).cumsum(0) - 1  # the last token of each document
following = torch.cat([role[1:], role[:1]])  # the role of the token that comes next
following[ends] = len(all_roles)  # the end of a document
check = shuffled(role, token)
assert (check != role).any() and torch.equal(pair(token, check).bincount(), pair(token, role).bincount())
raw, noise = information(token, picked[0]), information(shuffled(token), picked[0])
print(f"layer 0, token identity: {raw:.3f} bits, of which {noise:.3f} also appear after shuffling")

# %% [markdown]
# In every layer we ask how much three things say about an expert: the token's **role**, the **next role** (the role of
# the token that follows, which the model has to predict), and the token's **identity**. From each estimate we subtract
# the mean of 10 shuffles. The standard deviation over the shuffles shows how far chance can move the result.

# %%
KNOWN = {"identity": token, "role": role, "next role": following}
most = [entropy(layer.sum(0)) - math.log2(k) for layer in picked]
told, noise = {}, {}
for name, X in KNOWN.items():
    chance = torch.tensor([[information(shuffled(X), layer) for _ in range(10)] for layer in picked])  # (L, 10)
    told[name] = torch.tensor([information(X, layer) for layer in picked]) - chance.mean(1)
    noise[name] = (chance.mean(1), chance.std(1))
print("layer   possible" + "".join(f"{name:>12}{'(shuffled ± sd)':>20}" for name in KNOWN))
for i in range(L):
    row = f"{i:5}{most[i]:11.3f}"
    for name in KNOWN:
        mean, deviation = (part[i] for part in noise[name])
        row += f"{told[name][i]:12.3f}{f'({mean:.4f} ± {deviation:.4f})':>20}"
    print(row)
surely = all((told[name] > 5 * noise[name][1]).all() for name in KNOWN)
figures.expect("all three reveal more than chance, in every layer", surely)
ratio = told["identity"].mean() / told["role"].mean()
figures.expect(f"identity reveals more than twice as much as role: {ratio:.1f} times", ratio > 2)

# %% [markdown]
# Identity gives far more bits than role. But identity nearly determines the role: "the" is never a digit. So does the
# role add anything *beyond* identity? The answer is the conditional mutual information
#
# $$I(e; Y \mid X) = I(e; (X, Y)) - I(e; X)$$
#
# with $X$ the identity and $Y$ the role. It can't be more than $H(Y \mid X)$, the bits of the role that are still open
# once the token is known. The baseline must keep all that identity says, so we shuffle roles only among equal tokens.
#
# In the picture, the left panel shows how much each of the three says about an expert. The right panel shows how much
# the two roles add beyond identity. Note the different scales.

# %%
beyond, spread = {}, {}
for name in ("role", "next role"):
    Y = KNOWN[name]
    real = torch.tensor([information(pair(token, Y), layer) for layer in picked])
    mixed = [pair(token, shuffled(Y, token)) for _ in range(10)]
    chance = torch.tensor([[information(m, layer) for m in mixed] for layer in picked])  # (L, 10)
    beyond[name], spread[name] = real - chance.mean(1), chance.std(1)
    left_open = entropy(pair(token, Y).bincount()) - entropy(token.bincount())
    print(f"{name}: {entropy(Y.bincount()):.2f} bits, of which {left_open:.2f} are open once the token is known")
    print("  added beyond identity: " + " ".join(f"{b:.3f}±{s:.3f}" for b, s in zip(beyond[name], spread[name])))
left_over = beyond["role"].mean() / told["identity"].mean()
figures.expect(f"what the role adds is less than a fifth of what identity reveals: {left_over:.0%}", left_over < 0.2)

# %%
pictures.information(most, told, {name: deviation for name, (_, deviation) in noise.items()}, beyond, spread)

# %% [markdown]
# What came out:
#
# - The token's identity gives most by far: about half of the largest possible value in the first layers, and less
#   later.
# - The role alone gives little, and most of that is identity in disguise. Beyond identity (on the right) it adds only a
#   small part of the bits that are still open.
# - Beyond identity, the role of the *next* token gives more than the role of the token itself, and more in later
#   layers. To some extent, the routers of late layers choose by what comes next.
#
# So the experts of `tiny/` serve, above all, certain entries of the vocabulary, in whatever role these occur. They are
# not experts for names or for answers. The error bars are smaller than the marks, but they show only how much the
# shuffles vary; other documents would move the figures more. And the measure shows which tokens an expert gets, not
# what it does with them.

# %% [markdown]
# ## 7. Why sparsity changes the cost
#
# Why cut the MLP into pieces at all? A processor computes far faster than it reads from memory. When the model
# generates one token, every weight in use is read once, for one multiplication and one addition. So reading determines
# the time, and a weight that is not read costs nothing. These are the bytes of the 80B in bfloat16:

# %%
E80, k80, layers, width, expert_width = 512, 10, 48, 2048, 512  # the released config.json
each = 3 * width * expert_width * 2  # bytes of one expert
print(f"one expert: {each / 1e6:.1f} MB")
print(f"all routed experts: {layers * E80 * each / 1e9:.0f} GB")
print(f"read for one token: {layers * k80 * each / 1e9:.2f} GB of them, or {k80 / E80:.1%},", end=" ")
print(f"and {layers * each / 1e9:.2f} GB of shared experts")

# %% [markdown]
# At two bytes a weight, a token uses 1.7 billion weights of experts, with the shared ones. The rest of its 3 billion is
# outside the experts, most of it in Gated DeltaNet and attention.
#
# ### Several tokens at once
#
# A prompt passes several tokens through the layer together, and so does a batch of users. So do *drafts* (notebook 8):
# guesses at the next tokens, which a cheap extra layer makes and the model checks in one pass. In all three cases,
# every expert that *any* of the tokens chose must be read, but only once. How many experts are that? Suppose all
# choices were equally likely and independent. Then a token leaves an expert out with probability $1 - k/E$, and $T$
# tokens touch
#
# $$\mathbb{E}[\text{experts}] = E\,\big(1 - (1 - k/E)^T\big)$$
#
# different experts on average. We check the formula with random draws. We also check the program's own counter of bytes
# read (its option `--stats`): it must count an expert once, however many of three tokens chose it.


# %%
def touched(T, E, k):
    return E * (1 - (1 - k / E) ** T)


for n in (1, 3, 16, 256):
    drawn = torch.rand(200, n, E80, generator=normal).topk(k80, dim=-1).indices.flatten(1)  # 200 times n tokens
    mean = torch.zeros(200, E80).scatter(1, drawn, 1.0).sum(1).mean().item()
    print(f"T = {n:3}: {mean:6.1f} of 512 drawn, {touched(n, E80, k80):6.1f} by the formula", end=", ")
    print(f"{touched(n, E80, k80) / E80:6.1%} of the bytes, {touched(n, E80, k80) / n:5.2f} experts a token")
    assert abs(mean / touched(n, E80, k80) - 1) < 0.02

stats = {"prefill_seconds": 0.0}  # the counter leaves the prompt out; this tells it that the prompt is over
with torch.no_grad(), counting(model, Experts, stats):
    block(x[None, :3])  # three tokens
assert stats["routed_bytes"] == len(chosen[:3].unique()) * 3 * D * inner * 8  # float64: 8 bytes

# %% [markdown]
# One token reads 2 % of the experts' bytes, and 256 tokens read nearly all of them. Three tokens, one new and two
# drafted, read almost three times as much as one. A dense MLP is read once for all three. So checking drafts is nearly
# free in a dense model, but far from free in a sparse one ([notebook 8](8_multi_token_prediction.ipynb), section 8).
#
# But real tokens do not choose at random. In `tiny/` we count the experts of $T$ tokens that follow each other in a
# document, and of $T$ tokens taken from anywhere. The left picture shows the formula for the 80B. The right one shows
# the counts in `tiny/`, with the formula for its 16 experts as a dotted line. Look at how far the counts stay below the
# formula.


# %%
def distinct(picked, T):
    """Mean number of different experts in windows of T rows; picked (L, n, E) -> (windows,), mean over the layers"""
    total = F.pad(picked.cumsum(1), (0, 0, 1, 0))  # (L, n + 1, E)
    return (total[:, T:] - total[:, :-T] > 0).sum(-1).double().mean(0)


lengths = [len(pairs) for pairs, *_ in kept]
T_values = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]
anywhere = picked[:, torch.randperm(N, generator=normal)]
real = [torch.cat([distinct(part, n) for part in picked.split(lengths, dim=1)]).mean() for n in T_values]
mixed = [distinct(anywhere, n).mean() for n in T_values]
assert abs(real[0] - k) < 1e-9
figures.expect("neighbours share more experts than strangers", all(r < m for r, m in zip(real[1:], mixed[1:])))

# %%
marked = {1: ("one token", "s"), 3: ("one and 2 drafts", "^"), 256: ("prompt of 256", "D")}
formula = [touched(n, E, k) for n in T_values]
pictures.experts_read(lambda n: 100 * touched(n, E80, k80) / E80, marked, T_values, formula, mixed, real, E)

# %% [markdown]
# On the right, tokens from anywhere stay below the formula, because some experts are busier than others. Tokens that
# follow each other stay lower still, because neighbours are alike. Both effects save reading, and the less even the
# loads are, the more they save. A processor that reads from one memory gains nothing from even loads. Even loads matter
# when experts are on different machines, and all wait for the busiest one.
#
# ### Arithmetic intensity
#
# When does reading stop being the limit? $T$ tokens take $2$ FLOPs for each weight of each expert they use:
# $2 \cdot Tk$ times the weights of one expert. They read $2$ bytes for each weight of each expert touched. The ratio,
# FLOPs per byte, is the *arithmetic intensity*. Here it equals the mean number of tokens for each expert that is read:
#
# $$\text{intensity} = \frac{T k}{E\,(1 - (1 - k/E)^T)} \qquad \text{dense MLP: } T$$
#
# Take a processor that can do $F$ FLOPs and read $B$ bytes in a second. It waits for memory while the intensity is
# below $F/B$. `benchmarks/bench.py` measured both limits on one machine, and we take them from its file of results. The
# time per token is then at least the larger of bytes$/B$ and FLOPs$/F$, divided by $T$.
#
# The picture compares the 80B's routed experts with two dense MLPs. One has as many weights as a token *uses* (10
# experts' worth), and the other as many as the layer *stores*. Follow the green line from left to right: which of the
# dense lines is it near?

# %%
bench = json.loads((root / "benchmarks" / "results" / "bench_cpu.json").read_text(encoding="utf-8"))
limits = bench["slice"]["limits"]
B, FLOPS = limits["read_bytes_per_s"], limits["flops_per_s"]


def token_time(T, experts_read, experts_used):
    """Seconds a token and layer, at least: so many experts read for T tokens, each of which uses so many"""
    return max(experts_read * each / B, T * experts_used * each / FLOPS) / T  # 2 bytes, and 2 FLOPs, a weight


n = [2**i for i in range(14)]
times = {
    "dense, as much as is stored": [1e6 * token_time(T, E80, E80) for T in n],
    "dense, as much as is used": [1e6 * token_time(T, k80, k80) for T in n],
    f"{k80} of {E80} experts": [1e6 * token_time(T, touched(T, E80, k80), k80) for T in n],
}
pictures.token_times(n, times)

# %%
balance_point = FLOPS / B
experts_at = next(T for T in range(1, 10**5) if T * k80 / touched(T, E80, k80) >= balance_point)
print(f"{B / 1e9:.1f} GB/s, {FLOPS / 1e12:.2f} TFLOP/s: {balance_point:.0f} FLOPs a byte")
print(f"memory is the limit up to {balance_point:.0f} tokens in a dense MLP, up to {experts_at} with experts")
for T in (1, 256, 2048):
    print(f"T = {T:4}: an expert that is read serves {T * k80 / touched(T, E80, k80):4.1f} tokens, a dense MLP {T}")

# %% [markdown]
# The green line shows what sparsity does to the time.
#
# - At one token it lies on the line of the small MLP, 50 times cheaper than a dense layer with the same number of
#   weights.
# - Then it stays nearly flat, while both dense lines fall. More tokens do not share the reading, because they bring
#   their own experts. Decoding for a few users falls into this range, and so do drafts.
# - It falls once most experts are read anyway. A prompt of a few hundred tokens is on this part of the line. When all
#   experts are read, the intensity is $k/E$ of a dense layer's. To keep the processor busy, the layer then needs
#   $E/k \approx 51$ times as many tokens as a dense one, as printed above. Only a prompt of that length reaches the
#   lowest point of the line.
#
# These times are limits: a real run can't be faster than they say, but it can be slower. `benchmarks/bench.py` compares
# them with measured times, and [docs/speed.md](../docs/speed.md) has the figures.
#
# ## Exercises
#
# **1. Below even.** The balancing loss is $k$ when everything is even. Is that its smallest value? Find a router for
# two experts and $k = 1$ with a smaller loss, or show that there is none.
#
# <details><summary>Solution</summary>
#
# If $f$ and $P$ are ordered alike, Chebyshev's inequality for sums gives $E \sum_e f_e P_e \ge k$. But they need not be
# ordered alike, because $f$ counts choices while $P$ holds means of probabilities. Let three tokens choose expert 0 by
# a narrow margin, and one token choose expert 1 with near certainty. Then expert 0 has more choices and less
# probability.
#
# ```python
# p = torch.tensor([[0.51, 0.49]] * 3 + [[0.01, 0.99]], dtype=torch.float64)
# value = load_balancing_loss([p.log()], 1)
# f, P = sets(p, 1).double().mean(0), p.mean(0)
# print(f"f {f.tolist()}, P {[round(v, 3) for v in P.tolist()]}, loss {value:.3f}")
# assert value < 1 and f[0] > f[1] and P[0] < P[1]
# ```
#
# So $k$ is not the minimum, and the loss does not measure a distance from balance. But its *gradient* points the right
# way: it pushes down the experts that are chosen often.
# </details>
#
# **2. From below.** Does the shuffled baseline subtract the right amount? Estimate $I(e; X)$ from below instead, so
# that nothing has to be corrected. Learn $q(e \mid X)$ from every other document, and use it to code the experts of the
# remaining documents. Each expert costs $-\log_2 q(e \mid X)$ bits. How much less is that than $H(e)$? Why is this a
# lower bound?
#
# <details><summary>Solution</summary>
#
# No code is shorter than the entropy. Whatever $q$ is, the mean cost is at least $H(e \mid X)$ of the coded documents.
# So what we save, $H(e)$ minus the mean cost, is at most their $I(e; X)$. A value of $X$ that hardly ever occurs in the
# learning half must not make the cost explode, so we add 5 counts to every value, spread like $q(e)$.
#
# ```python
# half = torch.tensor([i % 2 == 0 for i, n in enumerate(lengths) for _ in range(n)])
# def saved(X, picked):
#     counts = torch.zeros(int(X.max()) + 1, E).index_add(0, X[half], picked[half]).double()
#     q = counts.sum(0) / counts.sum()
#     given = (counts + 5 * q) / (counts.sum(1, keepdim=True) + 5)  # (values of X, E)
#     coded = picked[~half]
#     cost = -(given.clamp(min=1e-9).log2()[X[~half]] * coded).sum() / coded.sum()
#     return entropy(coded.sum(0)) - cost.item()
# for i in (0, L // 2, L - 1):
#     for name, X in (("identity", token), ("role", role)):
#         low, high = saved(X, picked[i]), information(X[~half], picked[i][~half])
#         chance = statistics.mean(information(shuffled(X[~half]), picked[i][~half]) for _ in range(10))
#         print(f"layer {i}, {name:8}: at least {low:.3f}, shuffled subtracted {high - chance:.3f}, raw {high:.3f}")
#         assert low < high  # a lower bound, and an estimate that is biased upwards
#     more = saved(token, picked[i]) > saved(role, picked[i])
#     figures.expect(f"layer {i}: identity saves more than role", more)
# ```
#
# For role, which has few values, the shuffle subtracts little. For identity it subtracts much: the code is bad at words
# that it has hardly seen, and the raw estimate takes each of them at face value. The corrected figure mostly lies
# between the other two. See whether identity gives more than role by all three.
# </details>
#
# **3. Balance without a loss.** [V3] (section 2.1.2) adds a number $b_e$ to each expert's score, but only for the
# choice: the weights are still computed from the scores without it. After each batch, $b_e$ goes down by a fixed step
# if the expert had more than its even share, and up if it had less. Build this for the layer of section 1, with `some`
# as the batch and the trained router left as it is. Does it balance? What do tokens give up?
#
# <details><summary>Solution</summary>
#
# ```python
# p = (some @ W["gate.weight"].T).softmax(-1)
# b = torch.zeros(E, dtype=torch.float64)
# for _ in range(1000):
#     f = sets(p + b, k).double().mean(0)
#     b -= 0.001 * (f - k / E).sign()
# mine, free = sets(p + b, k), sets(p, k)
# load_now = mine.double().mean(0) * E / k
# print(f"load {load_now.min():.2f} to {load_now.max():.2f}, was {free.double().mean(0).min() * E / k:.2f} to",
#       f"{free.double().mean(0).max() * E / k:.2f}")
# print(f"tokens with another set: {(mine != free).any(-1).double().mean():.0%};",
#       f"probability of the chosen: {(p * mine).sum(-1).mean():.2f}, was {(p * free).sum(-1).mean():.2f}")
# evened = load_now.std() / (free.double().mean(0) * E / k).std()
# figures.expect(f"less than 30 % of the unevenness is left: {evened:.0%}", evened < 0.3)
# assert (p * mine).sum(-1).mean() <= (p * free).sum(-1).mean()  # the largest are the largest
# ```
#
# It balances, and it needs no gradient, so nothing competes with the language loss. (V3's scores are sigmoids and ours
# are softmax probabilities, but the idea is the same.) The price is that tokens get experts that their router finds
# less suitable. In training, router and experts adapt to that. Here, after training, the model would get worse.
# </details>
#
# **4. Fill in.** Write the router from memory: from logits to the $k$ chosen experts and their weights. Watch which
# experts the softmax runs over, and what the weights must sum to.


# %%
def route(logits, k):
    """logits (T, E) -> weights (T, k), which sum to 1, and the experts chosen (T, k), the likeliest first"""
    ...  # your part


def test_route(attempt):
    weights, experts = attempt(x @ W["gate.weight"].T, k)
    assert torch.equal(experts, seen["topk_ids"]), "other experts than the block's"
    same(weights, seen["topk_weights"])


course.try_it(test_route, route)


# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def route(logits, k):
#     top, experts = logits.softmax(-1).topk(k, dim=-1)
#     return top / top.sum(-1, keepdim=True), experts
#
#
# test_route(route)
# ```
#
# </details>
#
# ## Sources
#
# The papers are in the table at the top. Sizes and `norm_topk_prob` come from config.json of
# Qwen/Qwen3-Next-80B-A3B-Instruct. The pooled loss is `load_balancing_loss_func` in transformers 5.24,
# models/qwen3_next. The bound by bytes and FLOPs is the roofline model (Williams, Waterman and Patterson,
# Communications of the ACM 52, 2009).
#
# ## Five questions
#
# 1. We can take the softmax over all experts and then choose, or choose first and then take the softmax of the chosen
#    logits. When do both ways give the same weights? When they do not, what does the first way tell the layer that the
#    second can't?
# 2. A token did not choose expert $j$. Can the balancing loss still change its logit for $j$? What decides whether the
#    logit goes up or down?
# 3. The balancing loss, pooled over all layers, is at its even value. What do you know about the loads within one
#    layer? In the experiment, what did the pooled loss do to these loads, and what did balance do to the language loss?
# 4. The estimate of how much a token's identity says about its experts is too high. Where does the excess come from,
#    and how do we measure it? Once it is subtracted, do the experts of `tiny/` go by the role or by the identity?
# 5. Three tokens, one new and two drafted, pass through the layer together. Why does that cost hardly more than one
#    token in a dense MLP, and almost three times as much here? Which of the two still waits for memory at 256 tokens?
#
# <details><summary>Answers</summary>
#
# 1. They are the same if the weights of the chosen experts are divided by their sum, since the softmax's denominator
#    cancels. Without this division, the weights of the first way sum to the chosen experts' share of the probability.
#    So an undecided router makes the experts' output small. The weights of the second way always sum to 1.
# 2. Yes. Every probability has a gradient, chosen or not. The load of $j$ is compared with the mean load of the experts
#    that this token likes: if $j$ is busier, the logit goes down, if it is less busy, up. The push is in proportion to
#    the probability that the token gives to $j$.
# 3. Nothing: each layer may have collapsed onto an expert with a different number. In the experiment, the pooled loss
#    made the pool even and helped much less within a layer, where some experts stayed idle. The language loss was the
#    same with and without balance, within the differences between seeds.
# 4. A token that occurs once seems to determine its experts, so a variable with many rare values looks informative by
#    chance. We shuffle its values among the tokens and estimate again: the result is the part that comes from chance.
#    The experts go by the identity. The role alone says little, and hardly anything beyond identity.
# 5. When few tokens pass, reading the weights determines the time. A dense MLP is read once for all three. Here, each
#    token brings its own experts, and three tokens hardly share any. At 256 tokens, the experts still wait for memory:
#    each expert that is read serves 5 tokens, far below the FLOPs a processor can do per byte. The dense MLP does not
#    wait.
#
# </details>
#
# ## Three sentences to remember
#
# 1. A mixture of experts is a wide MLP, and the router lets each token use a small part of it.
# 2. The balancing loss evens out only the pool that its mean is taken over, so a loss that is pooled over layers can
#    leave every layer uneven.
# 3. As long as memory is the limit, you pay for the experts that are read and not for the tokens: in the 80B one token
#    reads 2 % of the experts' weights, and a few hundred tokens together read nearly all of them.
#
# Next: [8_multi_token_prediction.ipynb](8_multi_token_prediction.ipynb) drafts several tokens and lets the model verify
# them in one pass.
