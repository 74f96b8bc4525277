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
# # 2. The delta rule
#
# How can a layer remember a text without keeping its tokens? Three layers in four of Qwen3-Next keep one matrix per
# head instead, the *state*, and every token changes it a little. So a token costs the same at every position, but a
# matrix of fixed size can hold only so much. We will see how a sum of products becomes a memory, what goes wrong if we
# only add to it, and how decay and the delta rule repair the damage.
#
# Afterwards you can write the gated delta rule from memory and explain its five steps. You can say how many pairs of
# keys and values a state holds, and what decay and write strength do in a trained model. You need softmax attention and
# PyTorch, but nothing from [notebook 1](1_tour.ipynb). If you are short of time, take sections 1 to 3 and exercise 4.
# We compare everything with [`qwen3_next.py`](../qwen3_next.py).
#
# | | |
# |---|---|
# | [LA] | Transformers are RNNs, [arXiv 2006.16236](https://arxiv.org/abs/2006.16236): linear attention |
# | [FWP] | Linear Transformers Are Secretly Fast Weight Programmers, [arXiv 2102.11174](https://arxiv.org/abs/2102.11174): the delta rule as a layer |
# | [DN] | Parallelizing Linear Transformers with the Delta Rule, [arXiv 2406.06484](https://arxiv.org/abs/2406.06484) |
# | [GDN] | Gated Delta Networks, [arXiv 2412.06464](https://arxiv.org/abs/2412.06464): Eq. 10 is what we build |
# | [WH] | Widrow and Hoff, Adaptive Switching Circuits, 1960: the delta rule itself |

# %%
from start import root

# %%
import math

import corpus
import course
import figures
import torch
from course import same
from pictures import delta_rule as pictures

import reference_recurrent
import watch
from qwen3_next import (
    Qwen3NextForCausalLM,
    Qwen3NextTokenizer,
    chunk_gated_delta_rule,
    l2_normalise,
    recurrent_gated_delta_rule,
)
from verify.trace import recording

figures.setup()
random = torch.Generator().manual_seed(0)  # one source of random numbers for this notebook
pictures.two_memories()


# %% [markdown]
# The picture above shows how many numbers one head has to keep as the text grows, with attention and with a state. Keys
# and values have 128 numbers each, as in the Gated DeltaNet layers of Qwen3-Next-80B, the published model. We need two
# helpers. `normal` draws random numbers, and `unit` draws random directions. We use float64, so that two ways to
# compute the same thing agree to about 13 digits. `same` stops the notebook if two tensors differ.


# %%
def normal(*shape):
    """Random numbers in float64"""
    return torch.randn(shape, generator=random, dtype=torch.float64)


def unit(*shape):
    """Random directions: vectors of length 1"""
    return torch.nn.functional.normalize(normal(*shape), dim=-1)


# %% [markdown]
# Before we build such a memory, watch one work. `tiny/`, a small trained Qwen3-Next, reads a message and writes a
# story. A word is blue while the memory of one head can still return its value. Press play, then try the other three
# rules. Section 2 compares all four, and by the end of section 3 you will know what each of the five lines of code on
# the page is for. (The page appears when you run the cell. You also find it at [docs/watch](../docs/watch/index.html).)

# %%
tiny = root / "tiny"
lantern = "Tell me a story about a fox and a lantern."
watch.show(Qwen3NextForCausalLM.from_pretrained(tiny), Qwen3NextTokenizer.from_pretrained(tiny), lantern, seed=3)

# %% [markdown]
# ## 1. Attention without the softmax is a matrix
#
# Token $t$ has a query $q_t$ and a key $k_t$, vectors of $K$ numbers, and a value $v_t$ of $V$ numbers. Causal
# attention returns a weighted sum of the values so far. If we leave out the softmax, each weight is just the dot
# product of query and key:
#
# $$\mathrm{out}_t = \sum_{j \le t} (q_t \cdot k_j)\, v_j$$

# %%
T, K, V = 10, 4, 6  # K and V differ on purpose: a transposed state can't go unnoticed
q, k, v = normal(T, K), unit(T, K), normal(T, V)
by_attention = (q @ k.T).tril() @ v  # (T, T) weights, the future cut off, times (T, V)

# %% [markdown]
# The softmax stood between the product with the keys and the product with the values. Without it, we can multiply in a
# different order: $(q_t \cdot k_j)\, v_j = v_j\,(k_j^\top q_t) = (k_j v_j^\top)^\top q_t$. The query does not depend on
# $j$, so it comes out of the sum:
#
# $$\mathrm{out}_t = \Big(\underbrace{\sum_{j \le t} k_j v_j^\top}_{S_t,\; K \times V}\Big)^{\!\top} q_t,
# \qquad S_t = S_{t-1} + k_t v_t^\top$$
#
# The sum is the *state*. It has $K \times V$ numbers, however long the text is, so a token costs the same at every
# position. What is the price? We lose the softmax, which can single out one token of many. We also lose the list of
# past tokens, and with it the exact recall of any of them. This method is linear attention. In [LA], it also has a
# feature map, which keeps the weights positive, and a normaliser, which divides by the sum of the weights.

# %%
S, by_state = torch.zeros(K, V).double(), []
for q_t, k_t, v_t in zip(q, k, v):
    S = S + torch.outer(k_t, v_t)  # write: one product of key and value, (K, V)
    by_state.append(S.T @ q_t)  # read: (V,)
same(torch.stack(by_state), by_attention)
print(f"{T} tokens: a KV cache holds {T * (K + V)} numbers and grows; the state holds {K * V} and does not")

# %% [markdown]
# ## 2. A memory, on the whiteboard
#
# Think of $S$ as a whiteboard with pairs of keys and values on it. Ask with the key $k$, and it returns $S^\top k$.
# Write one pair into an empty state and ask with the same key. You get $(k v^\top)^\top k = |k|^2\, v$, which is $v$
# itself if the key has length 1. A read is linear in the key. So a key at 45° to $k$ returns $0.71\, v$, although
# nothing was ever written under it, and a key at right angles to $k$ returns zero. But only $K$ directions can be at
# right angles to each other. And what happens when a key gets a *new* value?
#
# Let the keys be objects and the values their owners. Tom has the ring, Nora has the cup, and Sam has the coin. Then
# Tom gives the ring to Mira: the ring gets a new value. The keys of the ring and the cup are at right angles. The coin
# is somewhat like the ring: their keys have cosine 0.6. Four rules write these four pairs, all with the same three
# lines of code. `alpha` is the share of the state that is kept. `erase` subtracts the value that the state already
# returns for this key:
#
# | rule | $S \leftarrow$ |
# |---|---|
# | linear attention | $S + k v^\top$ |
# | decay | $\alpha S + k v^\top$ |
# | delta rule | $S + k\,(v - S^\top k)^\top$ |
# | gated delta rule | $\alpha S + k\,(v - \alpha S^\top k)^\top$ |


# %%
def write(S, k, v, alpha, erase):
    """One pair into the state S (K, V), by one of the four rules"""
    S = alpha * S
    recalled = S.T @ k if erase else torch.zeros_like(v)  # (V,)
    return S + torch.outer(k, v - recalled)


ring, cup, spoon, other = torch.eye(4)
coin = 0.6 * ring + 0.8 * other  # all keys have length 1
tom, mira = torch.tensor([1.0, 1, 0, 0, 0, 0]), torch.tensor([0.0, 0, 0, 0, 1, 1])
nora, sam = torch.tensor([0.0, 0, 1, 0, 0, 0]), torch.tensor([0.0, 0, 0, 1, 0, 0])
writes = [("ring: Tom", ring, tom), ("cup: Nora", cup, nora), ("coin: Sam", coin, sam), ("ring: Mira", ring, mira)]
asked, truth = torch.stack([ring, cup, coin]), torch.stack([mira, nora, sam])  # (3, K), (3, V)
DECAY = 0.8  # the share that is kept at each write
rules = {"linear attention": (1.0, False), "decay alone": (DECAY, False)}
rules |= {"delta rule": (1.0, True), "gated delta rule": (DECAY, True)}

# %% [markdown]
# The picture has a row for each rule. From left to right, you see the state after each write, then the values that the
# three keys return, and last the right values. Purple is positive, orange negative, white zero. In a state, rows are
# key dimensions and columns are value dimensions. Compare the last two panels of each row.

# %%
states, returned = {}, {}
for rule, (alpha, erase) in rules.items():
    S, states[rule] = torch.zeros(4, 6), {}
    for name, key, value in writes:
        S = write(S, key, value, alpha, erase)
        states[rule][name] = S
    returned[rule] = asked @ S
errors = {rule: (found - truth).norm(dim=1) for rule, found in returned.items()}
pictures.whiteboard(states, returned, truth, asked=("ring", "cup", "coin"))

# %%
print("distance between what is returned and what is true, by key\n")
print(f"{'':18} {'ring (rewritten)':>16} {'cup':>6} {'coin':>6}")
for rule, (a, b, c) in errors.items():
    print(f"{rule:18} {a:16.2f} {b:6.2f} {c:6.2f}")
assert errors["delta rule"][0] < 1e-6 and errors["gated delta rule"][0] < 1e-6  # float32, a handful of roundings
assert errors["delta rule"][1] == 0 < errors["delta rule"][2]
plain, decayed = errors["linear attention"], errors["decay alone"]
course.finding("linear attention misses the ring by more than 1, decay by less", plain[0] > 1 and decayed[0] < plain[0])
course.finding("decay fades the cup by more than 0.1", decayed[1] > 0.1)
gain = errors["delta rule"] - errors["gated delta rule"]  # of decay next to the delta rule: ring, cup, coin
course.finding("next to the delta rule, decay costs the cup more than the coin gains", 0 < gain[2] < -gain[1])

# %% [markdown]
# Row by row, the picture shows this:
#
# - **Linear attention** never takes anything back. The ring returns Tom and Mira together, and a part of Sam.
# - **Decay** makes the old value fainter, and everything else with it. The cup fades as well, although nobody rewrote
#   it.
# - **The delta rule** first looks up what the state returns for this key, and then writes only the difference. The ring
#   returns Mira exactly. The cup, at right angles, is untouched. The coin's key points partly along the ring's, so the
#   last write disturbs the coin.
# - **The gated delta rule** decays first and then corrects. The last pair is exact, and pairs that nobody writes again
#   fade.
#
# Decay without the delta rule brings the ring and the coin closer to the truth, at the cup's expense. Decay with the
# delta rule fades the cup and barely helps the coin. Decay pays off when the subject changes ([GDN], section 3.1): the
# delta rule cleans up one key at a time, while a single token with a small $\alpha$ wipes the whole board. Here we
# write a spoon, with a key at right angles to the others, once with $\alpha = 1$ and once with $\alpha = 0.01$. Look at
# what is left of the other three values.

# %%
for alpha in (1.0, 0.01):
    S_next = write(S, spoon, tom, alpha, erase=True)  # writes a fifth pair into the last row's state
    lengths = (asked @ S_next).norm(dim=1).numpy().round(2)
    print(f"a spoon with alpha = {alpha}: ring, cup and coin return values of length", lengths)
assert (asked @ S_next).norm(dim=1).max() <= alpha * (asked @ S).norm(dim=1).max() + 1e-6

# %% [markdown]
# ## 3. The recurrence, term by term
#
# Now we go through the gated delta rule step by step, for one head, with a state that is not zero and $K \ne V$.
# Besides the query, the layer computes four things for every token: the key $k$, the value $v$, the *log decay*
# $g \le 0$ with $\alpha = e^{g}$, and the *write strength* $\beta$ between 0 and 1.

# %%
S0, k, v, q = normal(K, V), unit(K), normal(V), normal(K)
g, beta = torch.tensor(-0.3).double(), torch.tensor(0.7).double()

# %% [markdown]
# **Decay.** Everything becomes fainter by the same factor: $\;S \leftarrow e^{g} S$.

# %%
S = g.exp() * S0  # (K, V)
other = normal(K)
same(S.T @ other, g.exp() * (S0.T @ other))  # whichever key we ask with, the answer has shrunk alike

# %% [markdown]
# **Recall.** What does the state return for this key now? $\;r = S^\top k$. We ask after the decay and not before,
# because we are about to correct the faded state.

# %%
recalled = S.T @ k  # (V,)
same(recalled, sum(k[i] * S[i] for i in range(K)))  # the key weighs the rows of the state

# %% [markdown]
# **Delta.** How far is $r$ from the new value? We write only the share $\beta$ of the difference:
# $\;\delta = \beta\,(v - r)$.

# %%
delta = beta * (v - recalled)  # (V,)

# %% [markdown]
# **Write.** $\;S \leftarrow S + k\,\delta^\top$. If $|k| = 1$, this key now returns a blend of old and new,
# $(1-\beta)\,r + \beta v$. With $\beta = 1$, it returns the new value alone. Keys at right angles to $k$ return the
# same as before the write.

# %%
S = S + torch.outer(k, delta)  # (K, V)
same(S.T @ k, (1 - beta) * recalled + beta * v)
across = other - (other @ k) * k  # the part of another key that is at right angles to k
same(S.T @ across, g.exp() * (S0.T @ across))

# %% [markdown]
# **Read.** $\;\mathrm{out} = S^\top q$. We read after the write, so a token can see its own value.

# %%
out = S.T @ q  # (V,)

# %% [markdown]
# [GDN] puts all five steps into one line, Eq. 10. Its state is the transpose of ours. In our notation, the line is
#
# $$S_t = \alpha_t\,(I - \beta_t k_t k_t^\top)\,S_{t-1} + \beta_t\, k_t v_t^\top, \qquad \mathrm{out}_t = S_t^\top q_t$$

# %%
eq10 = g.exp() * (torch.eye(K) - beta * torch.outer(k, k)) @ S0 + beta * torch.outer(k, v)
same(S, eq10)
same(out, eq10.T @ q)


# %% [markdown]
# Here is the whole recurrence for batches of $B$ sequences and $H$ heads. Each head has a state of its own. Only the
# shapes are new.


# %%
def delta_rule(q, k, v, g, beta, S):
    """q, k (B, T, H, K); v (B, T, H, V); g, beta (B, T, H); S (B, H, K, V) -> out (B, T, H, V), the last S"""
    outputs = []
    for t in range(k.shape[1]):
        S = g[:, t, :, None, None].exp() * S  # decay
        recalled = torch.einsum("bhkv,bhk->bhv", S, k[:, t])  # recall
        delta = beta[:, t, :, None] * (v[:, t] - recalled)  # delta
        S = S + torch.einsum("bhk,bhv->bhkv", k[:, t], delta)  # write
        outputs.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]))  # read
    return torch.stack(outputs, dim=1), S


# %% [markdown]
# Is it right? We compare it in float64 with the project's function, and with the NumPy reference, which shares no code
# with either. The inputs are two sequences, three heads, 50 tokens, unequal widths, a state that is not zero, and
# strong and weak decays.

# %%
B, T, H, K, V = 2, 50, 3, 5, 7
q, k, v, start = normal(B, T, H, K), unit(B, T, H, K), normal(B, T, H, V), normal(B, H, K, V)
g, beta = -normal(B, T, H).square(), normal(B, T, H).sigmoid()
out, S = delta_rule(q, k, v, g, beta, start)

theirs = recurrent_gated_delta_rule(q, k, v, g=g, beta=beta, state=start)
same(out, theirs[0])
same(S, theirs[1])
for b in range(B):  # the reference takes one sequence at a time
    inputs = (x[b].numpy() for x in (q, k, v, g, beta, start))
    arbiter = reference_recurrent.gated_delta_rule(*inputs)
    same(out[b], torch.from_numpy(arbiter[0]))
    same(S[b], torch.from_numpy(arbiter[1]))
print(f"largest value of a state: {S.abs().max():.1f}; all three agree to 1e-12")

# %% [markdown]
# ## 4. A step of gradient descent, taken by every token
#
# The same five lines can also be seen as learning. We want the state to return $v$ for $k$. A loss measures how far the
# returned value is from $v$:
#
# $$L(S) = \tfrac12\, |S^\top k - v|^2, \qquad \nabla_S L = k\,(S^\top k - v)^\top$$
#
# One step of gradient descent with step size $\beta$ gives $S - \beta\, k\,(S^\top k - v)^\top$. This is the delta rule
# ([WH]; [DN], section 2.2). So the layer *learns* while it reads. $S$ holds the weights, each token is one training
# pair, $\beta$ is the learning rate, and the decay before the step is weight decay. Autograd agrees.

# %%
S0, k, v, g, beta = normal(5, 7), unit(5), normal(7), normal(1).square().neg(), torch.tensor(0.6).double()
S = (g.exp() * S0).requires_grad_()  # weight decay first
loss = (S.T @ k - v).square().sum() / 2
(gradient,) = torch.autograd.grad(loss, S)
stepped = (S - beta * gradient).detach()


def one_token(S, k, v, g, beta):
    """The project's recurrence for one token of one head: the state after it"""
    q, k, v = (x[None, None, None] for x in (k, k, v))  # (B, T, H, width), all 1 but the width
    return recurrent_gated_delta_rule(q, k, v, g=g.view(1, 1, 1), beta=beta.view(1, 1, 1), state=S[None, None])[1][0, 0]


same(stepped, one_token(S0, k, v, g, beta))

# %% [markdown]
# Linear attention is a gradient step as well, but on the loss $L(S) = -(S^\top k) \cdot v$. This loss asks for a value
# that points along $v$, the longer the better. It has no minimum, so old values are never taken back.

# %%
S = S0.clone().requires_grad_()
(gradient,) = torch.autograd.grad(-(S.T @ k) @ v, S)
same((S - gradient).detach(), S0 + torch.outer(k, v))

# %% [markdown]
# ## 5. Why keys have length 1
#
# Gradient descent diverges if the step is too long. When is it too long here? Write the same pair again and again. Each
# write turns the error $e = v - S^\top k$ into
#
# $$v - (S + \beta\, k\, e^\top)^\top k = e - \beta\,|k|^2\, e = (1 - \beta |k|^2)\, e$$
#
# With $|k| = 1$ and $\beta = 1$, the error is gone after one write. A shorter key undershoots and needs several writes.
# A longer key overshoots. Once $\beta|k|^2$ exceeds 1, the sign of the error flips at every write. Above 2, the error
# grows without end. In terms of section 4: if we move a column of $S$ by a distance $t$ along $k$, its entry of
# $S^\top k - v$ changes by $t\,|k|$. So the second derivative of the loss is $|k|^2$, its *curvature* along $k$, and
# $\beta |k|^2$ is step size times curvature.
#
# The picture shows the error after each write for five lengths of the key, on a logarithmic scale. Look for the length
# at which the error grows.


# %%
def errors_of_rewriting(length, beta=1.0, times=12):
    """|v - S^T k| / |v| before the first write and after each"""
    k, v, S, errors = length * unit(8), normal(8), torch.zeros(8, 8).double(), []
    for _ in range(times + 1):
        errors.append((v - S.T @ k).norm() / v.norm())
        S = one_token(S, k, v, g=torch.zeros(1).double(), beta=torch.tensor(beta, dtype=torch.float64))
    return torch.stack(errors)


errors = {length: errors_of_rewriting(length) for length in (0.5, 0.8, 1.2, 1.4, 1.5)}
for length, found in errors.items():
    expected = abs(1 - length**2) ** torch.arange(13).double()  # |1 - |k|^2|^n
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
assert errors_of_rewriting(1.0)[1] < 1e-12  # length 1: no error is left, and a log axis can't show 0
pictures.rewriting(errors)

# %% [markdown]
# The error grows only for the longest key, whose $|k|^2$ is above 2. In a text the keys differ, but the danger is the
# same. We write random pairs one after the other, with $\beta = 1$ and no decay, and vary only the length of the keys.
# Before a write adds its pair, it multiplies the state by $I - k k^\top$. That multiplies the part of each column along
# $k$ by $1 - |k|^2$. Up to $|k|^2 = 2$, this factor is at most 1 in size, so it cannot make that part grow. Above 2, it
# makes that part grow at every write.
#
# The next picture shows the size of the state as the text grows. Lines are medians of 8 seeds, and bands run from the
# smallest to the largest. Again, look for the length at which the state grows without end.

# %%
T, K, V, seeds = 400, 16, 16, 8
directions, values = unit(seeds, T, 1, K), normal(seeds, T, 1, V)  # (B, T, H, width), a sequence for each seed
nothing, full = torch.zeros(seeds, T, 1).double(), torch.ones(seeds, T, 1).double()
sizes = {}  # length -> (places, seeds)
for length in (0.7, 1.0, 1.3, 1.6):
    state, sizes[length] = None, []
    for part in range(0, T, 20):
        inputs = (x[:, part : part + 20] for x in (length * directions, length * directions, values))
        rest = {"g": nothing[:, :20], "beta": full[:, :20], "state": state}
        _, state = recurrent_gated_delta_rule(*inputs, **rest)
        sizes[length].append(state.flatten(1).norm(dim=1))
    sizes[length] = torch.stack(sizes[length])
    exploded = sizes[length][-1].median() > 1e4
    course.finding("the state explodes for the longest keys alone", exploded == (length > math.sqrt(2)))
pictures.state_sizes(range(20, T + 1, 20), sizes)

# %% [markdown]
# Beyond $|k|^2 = 2$ the state explodes. The layer therefore divides $k$ by its length, and $\beta$ is a sigmoid. Then
# $\beta |k|^2 < 1$, and no write overshoots. The layer also divides $q$ by its length and by $\sqrt K$. This has
# nothing to do with stability, since a read does not change the state. It keeps a long query from making a read large.
# Attention divides by $\sqrt K$ as well; here it is only a constant. The recurrence relies on all this being done
# before. One detail matters when you compare numbers: $10^{-6}$ is added to $|k|^2$ under the root, so that a zero
# vector stays zero.

# %%
x = normal(3, 5)
same(l2_normalise(x), x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt())
print("length of normalised keys:", l2_normalise(x).norm(dim=-1).numpy().round(7))

# %% [markdown]
# ## 6. What g and beta do
#
# $g$ is the log of the share of the state that one token keeps. After $n$ tokens, $e^{gn}$ is left, so half is left
# after
#
# $$n_{1/2} = \frac{\ln 2}{-g} \text{ tokens}$$
#
# $\beta$ is the share of the old value that a single write replaces by the new one. In the picture, the left panel
# shows how one pair fades for three values of $g$. The right panel shows how fast a pair is learned for three values of
# $\beta$.

# %%
k, v = unit(1, 1, 1, 8), normal(1, 1, 1, 8)  # one pair, then a hundred tokens that write nothing
kept = {}  # (half-life, g) -> share left after each token
for half_life in (1, 10, 50):
    g, share = torch.full((1, 1, 1), -math.log(2) / half_life, dtype=torch.float64), []
    state = torch.einsum("bthk,bthv->bhkv", k, v)
    for _ in range(100):
        read, state = recurrent_gated_delta_rule(k, k, v, g=g, beta=torch.zeros(1, 1, 1).double(), state=state)
        share.append((read.norm() / v.norm()).item())
    assert abs(share[half_life - 1] - 0.5) < 1e-9
    kept[half_life, g.item()] = share
errors = {beta: errors_of_rewriting(1.0, beta) for beta in (0.1, 0.5, 0.9)}
for beta, found in errors.items():
    same(found, (1 - beta) ** torch.arange(13).double())
pictures.fading_and_learning(kept, errors)

# %% [markdown]
# A layer computes $g$ and $\beta$ from each token, so every token can decide anew. What does a trained model do? We
# load `tiny/`, which was trained on texts such as stories, phone books and *accounts*. An account tells who has what,
# like the one printed below. The model reads twenty accounts. `recording` saves intermediate values by name during the
# forward pass. We use it to get $g$ and $\beta$ in all Gated DeltaNet layers, the layers that have a state.
#
# The picture below the account has one dot per head, the median over all tokens. The bar covers the middle 80 % of the
# tokens. A long bar means that a head decides token by token. On the left, look for long and short half-lives within
# one layer. On the right, look at the $\beta$ of the same heads. Do heads that forget at once write strongly or weakly?

# %%
model = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float32)
tokenizer = Qwen3NextTokenizer.from_pretrained(root / "tiny")
LAYERS = [i for i, kind in enumerate(model.config.layer_types) if kind == "linear_attention"]
source, g, beta = corpus.Corpus("held out", {"moves": 1.0}), [], []
for number in range(20):
    text = corpus.text_of(source.document(f"gates:{number}"))
    with torch.no_grad(), recording(model, ["*.linear_attn.g", "*.linear_attn.beta"]) as trace:
        model(torch.tensor([tokenizer.encode(text)]))
    g.append(torch.stack([trace[f"model.layers.{i}.linear_attn.g"] for i in LAYERS], dim=1))  # (T, layers, H)
    beta.append(torch.stack([trace[f"model.layers.{i}.linear_attn.beta"] for i in LAYERS], dim=1))
g, beta = torch.cat(g), torch.cat(beta)
print(text)

# %%
half_life = math.log(2) / -g
pictures.gates(LAYERS, half_life, beta)

# %% [markdown]
# A head with a half-life far below one token wipes its board at every step. A head with a half-life of hundreds of
# tokens keeps what the text has said so far. How strongly do these two kinds of heads write?

# %%
typical, strength = half_life.median(0).values, beta.median(0).values  # (layers, H)
short, long = typical < 1, typical > 50
for what, which in (("below 1 token", short), ("above 50 tokens", long)):
    wrote = f"; mean of their median beta {strength[which].mean():.2f}" if which.any() else ""
    print(f"half-life {what}: {which.sum()} of {which.numel()} heads{wrote}")
weaker = strength[short].mean() < strength[long].mean()
figures.expect("heads that forget at once write less than heads that remember", weaker)

# %% [markdown]
# In one training of `tiny/`, the heads that forget at once wrote weakly. The averages do not tell us what such heads
# are for. They need not be idle: a token reads after its own write, so even such a head can return the value that the
# token itself has just written.
#
# ## 7. How many pairs fit
#
# How much can one state hold? It has $K$ rows. We store $n$ random pairs, all vectors of length 1, and then ask for
# each of them. The error is the mean of $|S^\top k_i - v_i|^2 / |v_i|^2$. At 0, every value comes back exactly. At 1,
# the memory might as well have returned zero. There is no decay, and $\beta = 1$.
#
# **What do we expect of linear attention?** Asked with $k_i$, it returns $v_i$, plus $(k_i \cdot k_j)\, v_j$ for every
# other pair $j$. Random directions have $\mathbb E\,(k_i \cdot k_j)^2 = 1/K$, because the squared length of $k_j$,
# which is 1, is spread evenly over $K$ axes on average. So the error is $(n-1)/K$, a straight line from the start.
#
# **What do we expect of the delta rule, if each pair is written once?** With $\beta = 1$, pair $i$ is exact right after
# its own write, whatever came before. Only *later* writes disturb it. Each later write turns $S$ into
# $S' = (I - k k^\top) S + k v^\top$ with a random unit key $k$. How much harm does that do? The error of pair $i$ is
# $|S^\top k_i - v_i|^2 = |S^\top k_i|^2 - 2\,(S^\top k_i) \cdot v_i + 1$. So we need two averages:
# $x = \mathbb E |S^\top k_i|^2$, the squared length of the value returned for pair $i$, and
# $c = \mathbb E\, (S^\top k_i) \cdot v_i$, the part of that value that still points along $v_i$. A third average,
# $s = \mathbb E |S|^2$, the squared size of the whole state, feeds into $x$. A prime means *after one more write*:
#
# $$x' = x\Big(1 - \frac2K + \frac{2}{K(K+2)}\Big) + \frac{s}{K(K+2)} + \frac1K, \qquad c' = c\Big(1 - \frac1K\Big), \qquad
# s' = s\Big(1 - \frac1K\Big) + 1$$
#
# <details><summary>Where the three equations come from</summary>
#
# The pair now returns $S'^\top k_i = S^\top (I - k k^\top) k_i + (k \cdot k_i)\, v$. Let $M = S S^\top$. Then
# $x = k_i^\top M k_i$ and $s = \mathrm{tr}\, M$. Now square, and average over $k$ and $v$. Since $v$ has mean 0, the
# mixed terms average to 0. For symmetric $M$,
#
# $$\mathbb E\, k k^\top = \frac{I}{K}, \qquad
# \mathbb E\, k k^\top M k k^\top = \frac{2M + \mathrm{tr}(M)\, I}{K(K+2)}, \qquad
# x' = x - \frac{2x}{K} + \frac{2x + s}{K(K+2)} + \frac1K$$
#
# The equations for $c$ and $s$ need only the first of the three.
#
# </details>
#
# Just after its own write, a pair has $x = c = 1$, and its error $x - 2c + 1$ is 0.


# %%
def expected_error(n, K):
    """The delta rule's error for each of n random pairs written once, first to last, by the three equations above"""
    errors, s = [], 0.0
    for i in range(n):
        s = s * (1 - 1 / K) + 1  # pair i is written
        x, c, s_later = 1.0, 1.0, s
        for _ in range(n - 1 - i):  # and then the others
            x = x * (1 - 2 / K + 2 / (K * (K + 2))) + s_later / (K * (K + 2)) + 1 / K
            c, s_later = c * (1 - 1 / K), s_later * (1 - 1 / K) + 1
        errors.append(x - 2 * c + 1)
    return torch.tensor(errors).double()


# %%
def store(k, v, rule, times=1):
    """The state (B, K, V) after pairs k (B, n, K), v (B, n, V) were written in turn, `times` times over"""
    if rule == "linear attention":
        return k.mT @ v
    k, v = (x.repeat(1, times, 1)[:, :, None] for x in (k, v))  # (B, times * n, 1, width)
    still, full = torch.zeros(k.shape[:3]).double(), torch.ones(k.shape[:3]).double()
    return chunk_gated_delta_rule(k, k, v, g=still, beta=full)[1][:, 0]  # same as the recurrence, faster: notebook 4


def errors_of(S, k, v):
    """|S^T k - v|^2 / |v|^2 for each pair, (B, n)"""
    return (k @ S - v).square().sum(-1) / v.square().sum(-1)


# %% [markdown]
# We measure the error for three values of $K$, with 20 seeds each. We use random keys and, up to $n = K$, also keys at
# right angles. In the picture, points are the mean of the seeds, bars are their standard deviation, and the two lines
# are the expected errors. Look for a knee. Is there a number of pairs at which the error suddenly rises?

# %%
WIDTHS = (16, 32, 64)
loads, seeds = (0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0), 20
measured = {}  # (rule, keys, K) -> one row of 20 mean errors for each load
for K in WIDTHS:
    for load in loads:
        n = int(load * K)
        v = unit(seeds, n, 32)
        keys = {"random": unit(seeds, n, K)}
        if n <= K:
            keys["orthogonal"] = torch.linalg.qr(normal(seeds, K, K)).Q[:, :n]  # n rows at right angles
        for kind, k in keys.items():
            for rule in ("linear attention", "delta rule"):
                row = errors_of(store(k, v, rule), k, v).mean(1)
                measured.setdefault((rule, kind, K), []).append(row)
measured = {key: torch.stack(rows) for key, rows in measured.items()}  # (loads, seeds)

# %%
most = max(WIDTHS)
pictures.capacity(loads, measured, [expected_error(int(x * most), most).mean() for x in loads])

# %%
print(f"{'':>3} {'pairs / K':>9} {'linear':>8} {'(n-1)/K':>8} {'delta':>8} {'expected':>8}")
for K in WIDTHS:
    for place, load in enumerate(loads):
        n = int(load * K)
        plain, delta = (measured[rule, "random", K][place] for rule in ("linear attention", "delta rule"))
        expected = (n - 1) / K, expected_error(n, K).mean().item()
        share = n > K or 0.5 * expected[0] <= expected[1] <= 0.65 * expected[0]
        course.finding("up to n = K, the delta rule makes 50 to 65 % of linear attention's error", share)
        for rows, value in zip((plain, delta), expected):
            near = abs(rows.mean() - value) < 5 * rows.std() / seeds**0.5 + 0.01
            course.finding(f"K = {K}, {n} pairs: {rows.mean():.3f} is {value:.3f} within chance", near)
        if load in (0.25, 1.0, 2.0):
            print(f"{K:3} {load:9} {plain.mean():8.3f} {expected[0]:8.3f} {delta.mean():8.3f} {expected[1]:8.3f}")
for rule in ("linear attention", "delta rule"):
    assert measured[rule, "orthogonal", most].max() < 1e-20  # keys at right angles: both are exact up to n = K

# %% [markdown]
# Three things to see:
#
# - Apart from the 1 in $(n - 1) / K$, only $n / K$ counts, the number of pairs per *row*. The points of the three
#   values of $K$ nearly coincide. $V$ is 32 here, and no equation contains it. Exercise 2 tries other values.
# - With keys at right angles, neither rule makes any error. But there are at most $K$ such keys.
# - With random keys, there is **no knee**. Up to $n = K$, the delta rule with one write per pair makes 50 to 65 % of
#   linear attention's error. After that its curve flattens, and it reaches 1 a little below $n = 2K$. There, linear
#   attention is near 2. An error above 1 is worse than returning zero.
#
# Can a state hold $K$ pairs at all, then? Any $n \le K$ keys in general position are linearly independent, so *some*
# state returns all values exactly. One pass of gradient descent does not find that state. More passes come ever closer
# to it. The delta rule, repeated, is Kaczmarz' method (Angenäherte Auflösung von Systemen linearer Gleichungen, 1937)
# for solving $k_i^\top S = v_i^\top$.
#
# For the next picture, we repeat the writes up to 64 times. We also compute the best possible state, by least squares.
# Look at $n = K$, the vertical line.

# %%
K, passes = 32, {1: [], 4: [], 16: [], 64: [], "least squares": []}
for load in loads:
    k, v = unit(seeds, int(load * K), K), unit(seeds, int(load * K), 32)
    for times, rows in passes.items():
        S = torch.linalg.pinv(k) @ v if times == "least squares" else store(k, v, "delta rule", times)
        rows.append(errors_of(S, k, v).mean(1))
passes = {times: torch.stack(rows) for times, rows in passes.items()}  # (loads, seeds)
pictures.passes(loads, passes)

# %%
full = {times: rows[4].mean() for times, rows in passes.items()}  # as many pairs as rows
half = {times: rows[2].mean() for times, rows in passes.items()}
print("error at n = K/2, by number of passes:", {times: f"{x:.3f}" for times, x in half.items()})
course.finding("16 passes leave less than 0.01 there, one leaves more than 0.1", half[16] < 0.01 < 0.1 < half[1])
beyond = passes["least squares"][5].mean()
course.finding("least squares is exact up to n = K and not beyond", full["least squares"] < 1e-10 < 0.15 < beyond)

# %% [markdown]
# Now there is a knee, at $n = K$: the capacity is the number of *rows*. A $K \times V$ matrix can satisfy $K$
# independent equations for each column. With more pairs, even the best state has an error of $1 - K/n$. That is the
# share of a random $n$-vector's squared length that lies outside a $K$-dimensional subspace. The delta rule with
# $\beta = 1$ stays above this error, because its last write is always exact at the expense of the other pairs.
#
# The mean hides the most useful difference between the two rules. So we look at the error by *age*, with twice as many
# pairs as rows. The picture shows the mean of 200 seeds and its standard error. The newest pair is on the left, the
# oldest on the right.

# %%
K, n, seeds = 32, 64, 200
k, v = unit(seeds, n, K), unit(seeds, n, 32)
found = {rule: errors_of(store(k, v, rule), k, v) for rule in ("linear attention", "delta rule")}  # (seeds, n) each
expected = expected_error(n, K)
far = (found["delta rule"].mean(0) - expected).abs().max()
course.finding(f"the delta rule's error is as expected at every age, within 0.25: {far:.2f}", far < 0.25)
pictures.ages(found, expected)

# %% [markdown]
# When there are more pairs than rows, linear attention spoils every pair alike, even the newest. The delta rule keeps
# the recent pairs and forgets the oldest.
#
# The released 80B has 36 Gated DeltaNet layers with 32 heads each, and $K = V = 128$. So each head has room for some
# 128 independent pairs. The facts that do not fit are left to every fourth layer, which is attention and keeps
# everything.
#
# ## Exercises
#
# **1.** How could a layer *erase* the value of one key, without a new value and without changing the values of keys at
# right angles to it? And how could it erase everything? Check both with `one_token`.
#
# <details><summary>Solution</summary>
#
# Write $v = 0$ with $\beta = 1$: $S \leftarrow (I - k k^\top) S$. A large $-g$ erases everything. The token's own write
# comes after the decay, so it stays.
#
# ```python
# S, k, v, across = normal(5, 7), unit(5), normal(7), normal(5)
# one, none = torch.ones(1).double(), torch.zeros(1).double()
# erased = one_token(S, k, torch.zeros(7).double(), g=none, beta=one)
# across = across - (across @ k) * k
# same(erased.T @ k, torch.zeros(7).double())
# same(erased.T @ across, S.T @ across)
# same(one_token(S, k, v, g=-1e3 * one, beta=one), torch.outer(k, v))
# ```
#
# </details>
#
# **2.** In section 7, the expected errors do not depend on $V$. What is a larger $V$ good for, then, and what does it
# cost? First measure the delta rule's error at $n = K = 16$ for $V = 4$ and $V = 256$.
#
# <details><summary>Solution</summary>
#
# The columns of the state never interact. Column $c$ is a memory of $K$ numbers for entry $c$ of the values, and every
# column has the same keys. So more columns mean longer values, not more of them. The price is a larger state.
#
# ```python
# k, errors = unit(400, 16, 16), {}
# for width in (4, 256):
#     v = unit(400, 16, width)
#     errors[width] = errors_of(store(k, v, "delta rule"), k, v).mean(1)
#     print(f"V = {width:3}: {errors[width].mean():.3f}, standard error {errors[width].std() / 20:.3f}")
# assert abs(errors[4].mean() - errors[256].mean()) < 5 * errors[4].std() / 20
# ```
#
# </details>
#
# **3.** $\beta$ is a sigmoid, so it is below 1. Suppose a layer could have $\beta = 2$. What does a write of $v = 0$
# then do to the value of $k$? Use such writes to build a memory of one bit that tells whether it has seen an even or an
# odd number of ones. (Why this matters: [arXiv 2411.12537](https://arxiv.org/abs/2411.12537).)
#
# <details><summary>Solution</summary>
#
# $I - 2 k k^\top$ is a reflection. The value of the key changes its sign, and everything else stays. So each 1 becomes
# such a write, and each 0 becomes a write with $\beta = 0$. With $\beta \le 1$, no factor $1 - \beta$ is negative, and
# writes with this one key can't flip a sign back and forth.
#
# ```python
# bits = torch.tensor([1, 0, 1, 1, 0, 1, 1]).double()
# key = torch.tensor([1.0, 0.0]).double().expand(1, len(bits), 1, 2)
# state = torch.tensor([[1.0], [0.0]]).double()[None, None]  # (B, H, K, V)
# values = torch.zeros(1, len(bits), 1, 1).double()
# still = torch.zeros(1, len(bits), 1).double()
# out, _ = recurrent_gated_delta_rule(key, key, values, g=still, beta=2 * bits[None, :, None], state=state)
# assert torch.equal(out.flatten(), (-1.0) ** bits.cumsum(0))
# ```
#
# </details>
#
# **4. Fill in.** Write the gated delta rule for one token of one head from memory: decay, recall, delta, write, read.
# The test compares your function with `recurrent_gated_delta_rule`, and then asks it who has the ring.


# %%
def gated_write(S, q, k, v, g, beta):
    """S (K, V), q and k (K,), v (V,), g and beta numbers -> what is read (V,), and the new S (K, V)"""
    ...  # your part


def test_gated_write(attempt):
    S, q, k, v, g, beta = normal(5, 7), normal(5), unit(5), normal(7), -normal(1).square(), normal(1).sigmoid()
    batch = (x[None, None, None] for x in (q, k, v))
    out, state = recurrent_gated_delta_rule(*batch, g=g.view(1, 1, 1), beta=beta.view(1, 1, 1), state=S[None, None])
    mine = attempt(S, q, k, v, g, beta)
    same(mine[0], out[0, 0, 0])
    same(mine[1], state[0, 0])
    out, S = attempt(torch.outer(ring, tom), ring, ring, mira, torch.tensor(0.0), torch.tensor(1.0))
    assert torch.equal(out, mira), "the ring should be Mira's"


course.try_it(test_gated_write, gated_write)


# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def gated_write(S, q, k, v, g, beta):
#     S = g.exp() * S  # decay
#     recalled = S.T @ k  # recall
#     delta = beta * (v - recalled)  # delta
#     S = S + torch.outer(k, delta)  # write
#     return S.T @ q, S  # read, after the write
#
#
# test_gated_write(gated_write)
# ```
#
# </details>
#
# ## Five questions
#
# 1. Linear attention costs the same at every position. What makes that possible, and what is given up for it?
# 2. Two different values are written under one key, into an empty state, and nothing else is written. What does each of
#    the four rules return for this key? And for a second key, at 45° to the first?
# 3. Which of the five steps would you move so that a token could not see its own value? And where would you move the
#    recall, so that a faded memory is corrected as if it had not faded?
# 4. What do $|k|^2$, $\beta$ and their product have to do with curvature and step size? Above which value of the
#    product do repeated writes diverge?
# 5. With random keys, at how many pairs does linear attention reach an error of 1? At how many does the delta rule
#    after one pass? Where is its knee after many passes? What error do both rules make up to $n = K$ if the keys are at
#    right angles?
#
# <details><summary>Answers</summary>
#
# 1. Without the softmax, the sum over past tokens does not need the query, so it is one matrix. The softmax and the
#    list of tokens are given up, and exact recall with them.
# 2. The values are $v$, then $v'$. Linear attention returns $v + v'$, decay $\alpha v + v'$, and the other two $v'$
#    (with $\beta = 1$). The second key returns 0.71 times the same, because a read is linear in the key.
# 3. Move the read before the write, and the recall before the decay.
# 4. $|k|^2$ is the curvature along $k$, and $\beta$ is the step size. A write multiplies the error by
#    $1 - \beta |k|^2$, so the error grows once $\beta |k|^2$ exceeds 2.
# 5. Linear attention reaches 1 at $n = K + 1$, the delta rule a little below $2K$. The knee is at $n = K$. At right
#    angles, neither makes any error.
#
# </details>
#
# ## Three sentences to remember
#
# 1. Without the softmax, attention to all past tokens becomes one matrix of constant size, which every token writes to
#    and reads from.
# 2. Decay fades everything, and the delta rule corrects one key: it writes only the difference between the new value
#    and what the memory returns, which is a step of gradient descent.
# 3. A state holds about $K$ independent pairs, and when there are more, the delta rule keeps the recent ones and
#    forgets the oldest.
#
# Next: [2b_reading_a_state](2b_reading_a_state.ipynb) looks into the states of a trained model.
