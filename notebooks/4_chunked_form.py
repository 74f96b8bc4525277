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
# # 4. The chunked form
#
# How can a loop over tokens become a few large matrix products? The gated delta rule takes five small products for each
# token, so a prompt of 2,000 tokens takes 2,000 turns of the loop. But hardware is made for a few large products. So we
# rewrite the loop as matrix products, for some tens of tokens at a time, without changing the result.
#
# After this notebook you can derive the chunked form on paper. You can explain why it needs a triangular solve, where
# careless code overflows, and when to use which form. You need to know [2_delta_rule](2_delta_rule.ipynb). The steps
# are numbered 0 to 4 as in `chunk_gated_delta_rule` of [`qwen3_next.py`](../qwen3_next.py). For one lesson, take the
# steps in the order of this notebook. The sections on overflow and on costs are homework.
#
# | | |
# |---|---|
# | [GDN] | Gated Delta Networks, [arXiv 2412.06464](https://arxiv.org/abs/2412.06464), section 3.3: the chunked form with decay |
# | [DN] | Parallelizing Linear Transformers with the Delta Rule, [arXiv 2406.06484](https://arxiv.org/abs/2406.06484), section 3.2: the triangular solve (UT transform) |

# %%
from start import root

# %%
import itertools
import math
import sys
import time

import corpus
import course
import figures
import torch
import torch.nn.functional as F
from course import same
from pictures import chunked_form as pictures
from torch.utils.flop_counter import FlopCounterMode

from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer, chunk_gated_delta_rule, recurrent_gated_delta_rule
from verify.trace import recording

figures.setup()
random = torch.Generator().manual_seed(0)  # one source of random numbers for this notebook


def normal(*shape):
    """Random numbers in float64: two ways to compute one thing then agree to about 13 digits"""
    return torch.randn(shape, generator=random, dtype=torch.float64)


pictures.loop_and_chunks()

# %% [markdown]
# ## Why: the same work, in many steps or in few
#
# Does it matter how the work is divided? One head of the released model has $K = V = 128$. We read a state $S$ with
# 1,024 queries, first as 1,024 products of a row with a matrix, then as one product of two matrices. Both ways do the
# same operations.


# %%
def race(*functions, rounds=7):
    """Seconds that each function takes, (functions, rounds), fastest first; they take turns, to share what disturbs"""
    taken = []
    for _ in range(1 + rounds):
        for function in functions:
            started = time.perf_counter()
            function()
            taken.append(time.perf_counter() - started)
    return torch.tensor(taken).view(1 + rounds, -1)[1:].sort(dim=0).values.T  # the first round warms up


S, queries = torch.randn(128, 128, generator=random), torch.randn(1024, 128, generator=random)
one_by_one, at_once = race(lambda: [row @ S for row in queries], lambda: queries @ S)[:, 0].tolist()
print(f"row by row {one_by_one * 1e3:.1f} ms, at once {at_once * 1e3:.2f} ms here; both vary from run to run")

# %% [markdown]
# So we want to take many tokens at once. The obstacle is that every token reads a state that the token before it has
# just changed:
#
# $$S_t = e^{g_t} S_{t-1} + k_t \delta_t^\top, \qquad \delta_t = \beta_t\,\big(v_t - e^{g_t} S_{t-1}^\top k_t\big), \qquad
# \mathrm{out}_t = S_t^\top q_t$$
#
# We take $C$ tokens, a *chunk*, and ask what all of them compute together, given the state $S$ before the chunk. We
# begin with $C = 4$ and one head, so that we can look at every matrix. Rows are tokens. The loop below records the
# values that we will compare with.

# %%
C, K, V = 4, 5, 6
q, v, S = normal(C, K), normal(C, V), normal(K, V)  # a state that is not zero
k = F.normalize(normal(C, K) + 1, dim=-1)  # somewhat alike, so that they are in one another's way
g, beta = -0.5 * normal(C, 1).abs(), (normal(C, 1) + 1).sigmoid()  # (C, 1): a column, so that it scales rows

state, states, deltas, outputs = S, [], [], []
for t in range(C):
    faded = g[t].exp() * state
    deltas.append(beta[t] * (v[t] - faded.T @ k[t]))
    state = faded + torch.outer(k[t], deltas[-1])
    states.append(state)
    outputs.append(state.T @ q[t])
deltas, outputs = torch.stack(deltas), torch.stack(outputs)  # (C, V)

theirs = recurrent_gated_delta_rule(
    *(x[None, :, None] for x in (q, k, v)), g=g[None], beta=beta[None], state=S[None, None]
)
same(outputs, theirs[0][0, :, 0])
same(state, theirs[1][0, 0])

# %% [markdown]
# ## Step 1. Decay between any two tokens
#
# Substitute the first equation into itself until only $S$, the state before the chunk, is left. The write of token $j$
# is faded by every decay after it. Let $G_i = g_1 + \dots + g_i$ be the sum of the log decays in the chunk up to token
# $i$. By then, the write of token $j$ has faded by $e^{G_i - G_j}$:
#
# $$S_i = e^{G_i} S + \sum_{j \le i} e^{G_i - G_j}\, k_j \delta_j^\top$$
#
# The code calls $e^{G_i}$ `gamma`. It calls the matrix of $e^{G_i - G_j}$ `decay`. This matrix is zero where $j > i$.
# (`qwen3_next.py` sums each exponent from the $g$ between the two tokens. After a strong decay, the difference of two
# sums would lose digits.)

# %%
G = g.cumsum(0)  # (C, 1)
future = torch.ones(C, C, dtype=torch.bool).triu(1)  # j > i
decay = (G - G.T).masked_fill(future, -math.inf).exp()  # (C, C); why the mask comes before exp is shown further down
gamma = G.exp()  # (C, 1)
for i in range(C):
    same(states[i], gamma[i] * S + sum(decay[i, j] * torch.outer(k[j], deltas[j]) for j in range(i + 1)))

# %% [markdown]
# ## Step 2. The deltas, all at once
#
# The deltas are still unknown, because each needs the state just before it. But we have that state as a sum. If we fade
# it by $e^{g_i}$ and ask with $k_i$, it returns $e^{G_i} S^\top k_i$ and a share of every earlier delta. So
#
# $$\delta_i = \beta_i \Big( v_i - e^{G_i} S^\top k_i - \sum_{j < i} e^{G_i - G_j}\, (k_i \cdot k_j)\, \delta_j \Big)$$
#
# The only state in this equation is the one before the chunk. Each delta is a known part minus earlier deltas times
# coefficients. The coefficients come from $\beta$, $g$ and keys, which the layer computes from the tokens and never
# from the state. So this is a *linear system*. We collect the coefficients in a matrix $A$ (not key A of notebook 2):
#
# $$A_{ij} = \beta_i\, e^{G_i - G_j}\, (k_i \cdot k_j) \quad \text{for } j < i, \text{ else } 0$$
#
# $A_{ij}$ says how much delta $j$ disturbs token $i$. It is large if the keys are alike, if little has faded since, and
# if token $i$ writes strongly.

# %%
A = (beta * decay * (k @ k.T)).tril(-1)  # (C, C), strictly lower triangular
same(deltas + A @ deltas, beta * (v - gamma * (k @ S)))  # (C, V)

# %% [markdown]
# The equations read $S^\top k_i$, a column. The code reads rows, $(S^\top k_i)^\top = k_i^\top S$. Let $\Delta$,
# $\mathbf V$, $\mathbf K$ and $\mathbf Q$ be matrices with the chunk's deltas, values, keys and queries as rows. (They
# are bold, and $V$ and $K$ are still widths.) All reads together are $\mathbf K S$, $C \times V$. With diagonal
# matrices of $\beta$ and $\gamma$, the system is
#
# $$(I + A)\, \Delta = \mathrm{diag}(\beta)\, \big(\mathbf V - \mathrm{diag}(\gamma)\, \mathbf K S\big)
# \qquad\Longrightarrow\qquad
# \Delta = \underbrace{(I + A)^{-1}\, \mathrm{diag}(\beta)}_{M}\, \big(\mathbf V - \mathrm{diag}(\gamma)\, \mathbf K S\big)$$
#
# $I + A$ is lower triangular with ones on its diagonal, because no token depends on a later one. Such a system always
# has exactly one solution. We solve it from the top, since row $i$ needs only the rows above it. Here it is by hand:

# %%
solved, right_side = [], beta * (v - gamma * (k @ S))
for i in range(C):  # forward substitution
    solved.append(right_side[i] - sum(A[i, j] * solved[j] for j in range(i)))
same(torch.stack(solved), deltas)

# %% [markdown]
# This is a loop over tokens again. But its coefficients are scalars, it never touches the state, and libraries do it in
# one call. Also, $M$ depends only on keys, decays and strengths, not on $S$ or the values. So we can compute it
# *before* the state is known, for all chunks of a text at the same time. [DN] calls this the UT transform. With
# `unitriangular=True`, the call ignores the diagonal of its matrix and takes it as ones. So we pass $A$, and it solves
# with $I + A$. Further down, we do not even clear the diagonal of $A$.

# %%
M = torch.linalg.solve_triangular(A, beta.squeeze(-1).diag_embed(), upper=False, unitriangular=True)  # (C, C)
same(M @ (v - gamma * (k @ S)), deltas)
assert torch.equal(M, M.tril())  # causal: delta i depends on tokens up to i

# %% [markdown]
# ## Step 3. Reads of what the chunk itself writes
#
# Now we read $S_i$, written as a sum, with $q_i$. The token's own write counts, so $j \le i$:
#
# $$\mathrm{out}_i = e^{G_i} S^\top q_i + \sum_{j \le i} \underbrace{e^{G_i - G_j}\, (q_i \cdot k_j)}_{\text{inner}_{ij}}\, \delta_j$$
#
# The second part is causal attention without softmax, but with a decay, and with deltas in place of values.

# %%
inner = decay * (q @ k.T)  # (C, C), lower triangular with its diagonal
same(gamma * (q @ S) + inner @ deltas, outputs)

# %% [markdown]
# ## Step 4. The state after the chunk
#
# This is the same sum at $i = C$. The code calls $e^{G_C - G_j}$ `to_end`:
#
# $$S' = e^{G_C} S + \sum_j e^{G_C - G_j}\, k_j \delta_j^\top$$

# %%
to_end = (G[-1:] - G).exp()  # (C, 1)
same(gamma[-1] * S + k.T @ (to_end * deltas), state)

# %% [markdown]
# Here are the four matrices of our chunk. Each row belongs to the token that reads, and each column to the token that
# wrote. Purple is positive, orange is negative. Look at $M$, on its diagonal and below it.

# %%
pictures.four_matrices({"decay": decay, "A": A, "M": M, "inner": inner})

# %% [markdown]
# The diagonal of $M$ is $\beta$. Below it are corrections for earlier writes, and corrections of those corrections. To
# see them better, we take larger chunks, $C = 32$, with $\beta = 0.9$ and without decay. The three pictures show $M$
# for three kinds of keys. Look for stripes below the diagonal.


# %%
def chunk_matrix(k, g, beta):
    """M for one chunk: k (C, K), g and beta (C, 1)"""
    G = g.cumsum(0)
    decay = (G - G.T).masked_fill(torch.ones(len(k), len(k), dtype=torch.bool).triu(1), -math.inf).exp()
    A = beta * decay * (k @ k.T)
    return torch.linalg.solve_triangular(A, beta.squeeze(-1).diag_embed(), upper=False, unitriangular=True)


directions = {"one key again and again": F.normalize(normal(1, 64), dim=-1).expand(32, -1)}
directions["eight keys in turn"] = torch.linalg.qr(normal(64, 8)).Q.T.repeat(4, 1)
directions["random keys, K = 64"] = F.normalize(normal(32, 64), dim=-1)
rest = torch.zeros(32, 1).double(), torch.full((32, 1), 0.9).double()  # g, beta
pictures.stripes({name: chunk_matrix(key, *rest) for name, key in directions.items()})

# %% [markdown]
# With one key again and again, a token subtracts nearly all of what the token before it wrote. It subtracts little of
# earlier writes, because the token before it has already taken them back. With eight keys in turn, the same happens
# eight tokens apart. With random keys, all tokens disturb one another a little.
#
# ## Step 0. Cut time into chunks
#
# Now we take a whole text, $N$ chunks of $C$ tokens. Steps 1 to 3 do not need the state, so they run for all chunks at
# once. Only step 4 is a loop, with $N = T / C$ turns. If $T$ is not a multiple of $C$, we pad the last chunk with
# tokens of $\beta = 0$ and $g = 0$. They write nothing and forget nothing, so the last state is right. Their outputs
# are cut off.


# %%
def chunked(q, k, v, g, beta, S, C):
    """q, k (T, K); v (T, V); g, beta (T, 1); S (K, V) -> out (T, V), the last S. One sequence, one head"""
    T = len(q)
    # 0. Cut time into N chunks
    q, k, v, g, beta = (F.pad(x, (0, 0, 0, -T % C)).unflatten(0, (-1, C)) for x in (q, k, v, g, beta))  # (N, C, ...)
    # 1. Decay between any two tokens
    G = g.cumsum(1)  # (N, C, 1)
    decay = (G - G.mT).masked_fill(torch.ones(C, C, dtype=torch.bool).triu(1), -math.inf).exp()  # (N, C, C)
    gamma, to_end = G.exp(), (G[:, -1:] - G).exp()
    # 2. M, which makes deltas
    A = beta * decay * (k @ k.mT)
    M = torch.linalg.solve_triangular(A, beta.squeeze(-1).diag_embed(), upper=False, unitriangular=True)
    # 3. Reads of what the chunk itself writes
    inner = decay * (q @ k.mT)
    # 4. Chunk after chunk
    outputs = []
    for n in range(len(q)):
        delta = M[n] @ (v[n] - gamma[n] * (k[n] @ S))  # (C, V)
        outputs.append(gamma[n] * (q[n] @ S) + inner[n] @ delta)
        S = gamma[n, -1] * S + k[n].T @ (to_end[n] * delta)
    return torch.cat(outputs)[:T], S


# %% [markdown]
# Is it right? We check in float64, for many lengths and chunk sizes, from a state that is not zero. We need several
# chunks to see every mistake. A wrong decay from chunk to chunk leaves the first chunk right, and a wrong mask in a
# chunk can leave the state right.

# %%
K, V = 5, 7


def make_inputs(T, B=1, H=1, decay=1.0, K=K, V=V):
    """q, k (B, T, H, K), v (B, T, H, V), g, beta (B, T, H), and a state"""
    q, k = F.normalize(normal(B, T, H, K), dim=-1) * K**-0.5, F.normalize(normal(B, T, H, K), dim=-1)
    g, beta = -decay * normal(B, T, H).square(), normal(B, T, H).sigmoid()
    return {"q": q, "k": k, "v": normal(B, T, H, V), "g": g, "beta": beta, "state": normal(B, H, K, V)}


for T in (1, 3, 4, 5, 37, 64, 130):
    for size in (1, 4, 16, 64):
        x = make_inputs(T)
        ours = chunked(*(x[name][0, :, 0] for name in "qkv"), x["g"][0], x["beta"][0], x["state"][0, 0], size)
        for theirs in (recurrent_gated_delta_rule(**x), chunk_gated_delta_rule(**x, chunk_size=size)):
            same(ours[0], theirs[0][0, :, 0])
            same(ours[1], theirs[1][0, 0])
print("chunked, chunk_gated_delta_rule and the recurrence agree")

# %% [markdown]
# `chunk_gated_delta_rule` does the same for all sequences and heads at once. Its tensors are $(B, H, N, C, \dots)$. We
# compare its $M$ with ours, chunk by chunk. But $M$ is a local variable, so how do we get it? When a function returns,
# Python shows its variables to a profiler. `verify/trace.py` records a whole model in this way.

# %%
CHUNK = 16
x, seen = make_inputs(70, B=2, H=3), {}


def keep(frame, event, result):
    """Copies the local variables of the chunked form when it returns"""
    if event == "return" and frame.f_code is chunk_gated_delta_rule.__code__:
        seen.update(frame.f_locals)


sys.setprofile(keep)
out, state = chunk_gated_delta_rule(**x, chunk_size=CHUNK)
sys.setprofile(None)
print({name: tuple(seen[name].shape) for name in ("A", "M", "inner", "gamma")})
for b in range(2):
    for h in range(3):
        for n in range(70 // CHUNK):  # the chunk after these is padded
            part = (b, slice(CHUNK * n, CHUNK * (n + 1)), h)
            k, g, beta = x["k"][part], x["g"][part][:, None], x["beta"][part][:, None]
            same(seen["M"][b, h, n], chunk_matrix(k, g, beta))
same(out, recurrent_gated_delta_rule(**x)[0])

# %% [markdown]
# The gradients of all six inputs agree as well:

# %%
x = make_inputs(45, B=2, H=3)
weight, gradients = normal(2, 45, 3, V), []
for form in (recurrent_gated_delta_rule, chunk_gated_delta_rule):
    leaves = {name: value.clone().requires_grad_() for name, value in x.items()}
    out, state = form(**leaves, **({"chunk_size": CHUNK} if form is chunk_gated_delta_rule else {}))
    ((out * weight).sum() + state.square().sum()).backward()
    gradients.append({name: leaf.grad for name, leaf in leaves.items()})
for name in x:
    same(gradients[0][name], gradients[1][name], atol=1e-11)  # sums of up to 45 x 35 products
    assert gradients[0][name].abs().max() > 0.1

# %% [markdown]
# ## What overflows: mask before exp
#
# Above the diagonal of `decay`, where $j > i$, the exponent $G_i - G_j$ is a *positive* number: minus the sum of the
# log decays in between. We don't need its exponential, which may be larger than the largest float32, about $e^{88.7}$.
# If we multiply it by zero afterwards, $\infty \cdot 0$ is not a number, and one such entry spoils the chunk.

# %%
g = torch.full((64, 1), -2.0)  # a decay of e^-2 a token: strong, but not absurd
G = g.cumsum(0)
future = torch.ones(64, 64, dtype=torch.bool).triu(1)
masked_before = (G - G.T).masked_fill(future, -math.inf).exp()
masked_after = (G - G.T).exp() * ~future
print(f"largest exponent: {(G - G.T).max():.0f}; not a number: {masked_before.isnan().sum()} entries")
print(f"with the mask after exp: {masked_after.isnan().sum()} of {masked_after.numel()} entries")
assert not masked_before.isnan().any() and masked_after.isnan().any()

# %% [markdown]
# A second shortcut is tempting. We split the factor, scale the queries by one part and the keys by the other, and no
# longer need the $C \times C$ matrix `decay`. On paper the result is the same:
#
# $$e^{G_i - G_j}\, (q_i \cdot k_j) = (e^{G_i} q_i) \cdot (e^{-G_j} k_j)$$
#
# But $e^{-G_j}$ grows without bound, and $e^{G_i}$ vanishes.

# %%
q, k = (F.normalize(torch.randn(64, 16, generator=random), dim=-1) for _ in range(2))
right = (masked_before.double() * (q.double() @ k.double().T)).float()
split = ((G.exp() * q) @ ((-G).exp() * k).T).tril()
ok = split.isfinite().all(1)
print(f"e^-G ends in {(-G).exp()[-1].item()}, e^G in {G.exp()[-1].item()}")
print(f"rows of 'inner' that are finite: {ok.sum()} of {len(ok)}")
assert ok[:10].all() and not ok.all() and right.isfinite().all()

# %% [markdown]
# Does a trained model come near this limit? We let `tiny/` read its own kind of text, and print the smallest sum of $g$
# that each head reaches over 64 tokens, the function's default $C$. We also count the heads that overflow, for 64 and
# for 32, the model's $C$. If the sum is below $-88.7$, the factor $e^{-G_j}$ overflows at the last token of the chunk.
# With the mask after exp, the largest exponent sums one token less.

# %%
model = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float32)
tokenizer = Qwen3NextTokenizer.from_pretrained(root / "tiny")
source, smallest = corpus.Corpus("held out"), {}  # (C, layer) -> (H,)
for number in range(20):
    ids = tokenizer.encode(corpus.text_of(source.document(f"decay:{number}")))
    with torch.no_grad(), recording(model, ["*.linear_attn.g"]) as trace:
        model(torch.tensor([ids]))
    for C, (name, g) in itertools.product((64, 32), trace.items()):
        if len(g) >= C:
            sums = g.unfold(0, C, 1).sum(-1).min(0).values  # (H,): the smallest sum over C tokens in a row
            smallest[C, name] = torch.minimum(smallest.get((C, name), sums), sums)
for (C, name), sums in smallest.items():
    if C == 64:
        print(f"layer {name.split('.')[2]}:", "  ".join(f"{x:8.1f}" for x in sums))
for C in (64, 32):
    beyond = torch.cat([sums for (size, _), sums in smallest.items() if size == C]) < -88.7
    print(f"C = {C}: the factor would overflow in {beyond.sum()} of {len(beyond)} heads")

# %% [markdown]
# ## What it costs: operations
#
# How much arithmetic does each form need? We count multiplications and additions for one token of one head.
#
# | | recurrence | chunked |
# |---|---|---|
# | decay of the state ($KV$), recall, write and read ($2KV$ each) | $7KV$ | $6KV$, and $KV / C$ |
# | $\mathbf K \mathbf K^\top$ and $\mathbf Q \mathbf K^\top$ | | $4CK$ |
# | $M$ and inner times $C \times V$ | | $4CV$ |
# | the solve, $C$ right sides | | $C^2$ |
#
# Per token, fading the state once per chunk costs $KV/C$, and the products within the chunk cost $4C(K + V)$. Their sum
# is smallest at $C = \sqrt{KV / (4K + 4V)}$, a chunk of a few tokens. The solve is small there. PyTorch counts the
# matrix products for us:

# %%
K, V, T = 128, 128, 512  # a head of the released model


def operations(C):
    """Multiplications and additions a token and head; None: the recurrence"""
    return 7 * K * V if C is None else 6 * K * V + K * V / C + 4 * C * (K + V) + C**2


x = make_inputs(T, H=2, K=K, V=V)
for C in (1, 16, 64):
    with FlopCounterMode(display=False) as counter:
        chunk_gated_delta_rule(**x, chunk_size=C)
    assert counter.get_total_flops() == 2 * T * (6 * K * V + 4 * C * (K + V))  # 2 heads; all but solve and decay
    print(f"C = {C:3}: {operations(C):9,.0f} operations a token and head")
with FlopCounterMode(display=False) as counter:
    recurrent_gated_delta_rule(**x)
assert counter.get_total_flops() == 2 * T * 4 * K * V  # recall and read; decay and write are not matrix products
print(f"recurrence: {operations(None):6,} operations")

# %% [markdown]
# By arithmetic alone, chunks should be tiny, and they would gain next to nothing. So what does a larger chunk save? It
# saves *trips* to the state. Step 4 reads the state's $KV$ numbers three times, to recall, to read and to fade, and
# writes them once. In the chunked form, this happens once per chunk instead of once per token. Each turn of the loop
# also has a fixed cost, the start of its few products. Let a machine do $R$ operations while it moves one number, and
# let $F$ be the fixed cost, as a count of numbers moved in the same time. A token then costs
#
# $$\frac{\mathrm{operations}(C)}{R} + \frac{4KV + F}{C}$$
#
# The minimum moves to larger chunks if the machine computes fast compared with its memory, or if it starts products
# slowly.
#
# The next picture shows the operations on the left, this cost with $F = 0$ in the middle, and on the right the time
# measured here, for 4 heads, 1,024 tokens and float32. Circles mark minima. On the right, points are the fastest of
# seven runs, and bars and band reach to the median. Compare the shapes of the middle and right panels.

# %%
sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
count = torch.tensor([operations(C) for C in sizes])
smallest_count, formula = sizes[count.argmin()], math.sqrt(K * V / (4 * K + 4 * V))
assert smallest_count / 2 <= formula <= 2 * smallest_count  # sizes are powers of two, and the solve is left out
print(f"fewest operations at C = {smallest_count}, by the formula at {formula:.1f}")
traffic = 4 * K * V / torch.tensor(sizes)  # numbers of the state that are moved per token
modelled = {R: count / R + traffic for R in (4, 32, 256)}

x = {name: value.float() for name, value in make_inputs(1024, H=4, K=K, V=V).items()}
calls = [lambda C=C: chunk_gated_delta_rule(**x, chunk_size=C) for C in sizes]
*measured, one_by_one = race(*calls, lambda: recurrent_gated_delta_rule(**x))  # (rounds,) each
measured = torch.stack(measured)
fastest, spread = measured[:, 0], measured.median(1).values - measured[:, 0]

# %%
pictures.costs(sizes, count, operations(None), modelled, fastest, spread, one_by_one)

# %%
gain = one_by_one[0] / fastest.min()
print(f"here and now: fastest at C = {sizes[fastest.argmin()]}, {gain:.1f} times as fast as the recurrence")
course.finding("the chunked form is faster at its best size", gain > 1)
x = {name: value.float() for name, value in make_inputs(1024, H=4, K=16, V=16).items()}
short = race(lambda: recurrent_gated_delta_rule(**x), lambda: chunk_gated_delta_rule(**x, chunk_size=32), rounds=3)
print(f"with K = V = 16, C = 32: {short[0, 0] / short[1, 0]:.1f} times as fast")

# %% [markdown]
# Times vary with the machine, but the shape stays. Very small chunks are the recurrence with extra work, and very large
# ones spend their time on $C \times C$ matrices. The right panel has the shape of the middle one. That is no proof that
# trips to the state are the reason, because the fixed cost $F$ makes the same shape. The last line printed above
# repeats the race with $K = V = 16$. States of that size fit into any cache, so the gain there comes from less fixed
# cost, not from less traffic. The function's default is $C = 64$. The model uses 32, which is the faster of the two on
# CPUs.
#
# How does the time depend on the length of the text? In the next picture, points are the fastest of 21 runs, or of 7
# for 256 tokens and more. Bars reach to the median. Look at where the two lines cross.

# %%
lengths = (1, 2, 4, 8, 16, 64, 256, 1024)
both = []
for T in lengths:
    x = {key: value.float() for key, value in make_inputs(T, H=4, K=K, V=V).items()}
    chunks = lambda x=x: chunk_gated_delta_rule(**x, chunk_size=32)  # noqa: E731
    both.append(race(lambda x=x: recurrent_gated_delta_rule(**x), chunks, rounds=21 if T < 256 else 7))

# %%
times = {}  # name -> fastest and median, milliseconds
for number, name in enumerate(("recurrence", "chunked, C = 32")):
    best = torch.stack([taken[number, 0] for taken in both]) * 1e3
    times[name] = best, torch.stack([taken[number].median() for taken in both]) * 1e3
pictures.by_length(lengths, times)

# %%
ratio = [(times[0, 0] / times[1, 0]).item() for times in both]
print("recurrence / chunked:", ", ".join(f"T = {T}: {r:.2f}" for T, r in zip(lengths, ratio)))
course.finding("the gain at the longest text is more than twice that at one token", ratio[0] < ratio[-1] / 2)

# %% [markdown]
# Every step of generation has one token, and for one token the recurrence wins. Padding is not the reason, since no
# chunk is longer than the text. But a single token has no other token to share its trip to the state, and steps 1 to 3
# are extra work. So the layer uses the chunked form for a prompt and the recurrence for one or two tokens
# (`GatedDeltaNet.forward`, `one_by_one`). In training, every text is read like a prompt.
#
# ## What it costs: digits
#
# The two forms add different sums in a different order, so they round differently. Does either lose digits? We take the
# recurrence in float64 as the truth. We measure the relative error of the outputs in float32, and with inputs in
# bfloat16, which both functions convert to float32 at once. Five seeds run as a batch. In the picture, look at whether
# the two colours separate.


# %%
def error(result, truth):
    """Relative RMS error of each sequence's outputs, (B,)"""
    return (result.double() - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)


lengths, seeds, found = (16, 64, 256, 1024), 5, {}
for T in lengths:
    x = make_inputs(T, B=seeds, decay=0.02, K=64, V=64)
    truth = recurrent_gated_delta_rule(**x)[0]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        rounded = {key: value.to(dtype) for key, value in x.items()}
        for name, form in (("recurrence", recurrent_gated_delta_rule), ("chunked", chunk_gated_delta_rule)):
            if (name, dtype) != ("recurrence", torch.float64):  # which is the truth
                found.setdefault((name, dtype), []).append(error(form(**rounded)[0], truth))

# %%
found = {key: torch.stack(rows) for key, rows in found.items()}  # (lengths, seeds)
pictures.digits(lengths, found)

# %%
most = {
    dtype: max(found[name, dtype].max() for name in ("recurrence", "chunked"))
    for dtype in (torch.float32, torch.bfloat16)
}
few = most[torch.float32] < 1e-5 and most[torch.bfloat16] < 0.05
course.finding("errors of less than 1e-5 in float32 and 0.05 in bfloat16", few)
ratios = found["chunked", torch.bfloat16].mean(1) / found["recurrence", torch.bfloat16].mean(1)
course.finding("in bfloat16 the two forms err alike, within 10 %", all(0.9 < r < 1.1 for r in ratios))
for decay in (0.02, 0.0):
    errors = []
    for T in (16, 1024):
        x = make_inputs(T, B=seeds, decay=decay, K=64, V=64)
        x32 = {key: value.float() for key, value in x.items()}
        errors.append(error(chunk_gated_delta_rule(**x32)[0], chunk_gated_delta_rule(**x)[0]).mean())
    print(f"mean g {0 - decay}: at 1,024 tokens {errors[1] / errors[0]:.1f} times the float32 error at 16 tokens")
    course.finding("that is less than four times", errors[1] < 4 * errors[0])

# %% [markdown]
# With bfloat16, the curves of the two forms coincide. The error comes from rounding the inputs and the outputs to 8
# significant bits, and neither form adds to it. In float32, both are near the limit of the format, and the error grows
# slowly with the length. Without decay ($g = 0$) it grows only a little faster, because overwriting also takes back old
# errors.
#
# Does the chunk size matter? And what if the keys are alike, so that the solve has something to do? In the next picture
# the keys share a common part, so that the mean cosine of two keys is up to 0.99. Bars are the standard deviation over
# five seeds, and dashed lines are the recurrence on the same inputs. Compare each line with the dashed one of its
# colour.

# %%
sizes, T, found = (1, 4, 16, 64, 256), 512, {}
for cosine in (0.0, 0.9, 0.99):
    x = make_inputs(T, B=seeds, decay=0.02, K=64, V=64)
    common = F.normalize(normal(64), dim=-1)
    x["k"] = F.normalize(cosine**0.5 * common + (1 - cosine) ** 0.5 * x["k"], dim=-1)
    truth, x32 = recurrent_gated_delta_rule(**x)[0], {key: value.float() for key, value in x.items()}
    rows = torch.stack([error(chunk_gated_delta_rule(**x32, chunk_size=C)[0], truth) for C in sizes])
    found[cosine] = rows, error(recurrent_gated_delta_rule(**x32)[0], truth)
worst = {cosine: (rows.mean(1) / plain.mean()).max().item() for cosine, (rows, plain) in found.items()}
pictures.by_chunk_size(sizes, found)
for cosine, ratio in worst.items():
    print(f"cosine {cosine}: the error at the worst chunk size is {ratio:.1f} times the recurrence's")
    course.finding("that is less than 20 times", ratio < 20)

# %% [markdown]
# The effect is small: similar keys and large chunks cost a fraction of a digit. We owe this to the triangular solve.
# Exercise 2 tries a shortcut to $(I + A)^{-1}$ and shows how it fails.
#
# ## Exercises
#
# **1.** [DN] (without decay, $\gamma = 1$), [GDN] and most kernels keep two products instead of $M$: `u`
# $= M \mathbf V$ and `w` $= M\,\mathrm{diag}(\gamma) \mathbf K$. Write $\Delta$ with them. What do we gain, and what
# has to be stored?
#
# <details><summary>Solution</summary>
#
# $\Delta$ = `u` - `w` $S$. To make the deltas, the loop over chunks then needs one product with the state, $C \times K$
# times $K \times V$, and none with $M$. Both `u` and `w` can be computed for all chunks at once. Per chunk, we store
# $C(K + V)$ numbers instead of the $C^2$ of $M$, which is more unless $C > K + V$.
#
# ```python
# q, k, v, S = normal(4, 5), F.normalize(normal(4, 5), dim=-1), normal(4, 6), normal(5, 6)
# g, beta = -0.5 * normal(4, 1).abs(), normal(4, 1).sigmoid()
# gamma, M = g.cumsum(0).exp(), chunk_matrix(k, g, beta)
# u, w = M @ v, M @ (gamma * k)  # (C, V), (C, K)
# same(u - w @ S, M @ (v - gamma * (k @ S)))
# ```
#
# </details>
#
# **2.** $A$ is strictly lower triangular, so $A^C = 0$, and
# $(I + A)^{-1} = \sum_n (-A)^n = (I - A)(I + A^2)(I + A^4) \cdots$. For $C = 64$ these are six factors, or ten products
# of full matrices. Try it in float32, once with random keys, and once with one key again and again and $\beta = 1$.
#
# <details><summary>Solution</summary>
#
# With one key, $A$ has ones everywhere below its diagonal. Its powers hold binomial coefficients, up to $10^{18}$. They
# cancel in the end, because the inverse has no entries but 1, -1 and 0. But float32 has 7 digits. The solve never forms
# such a number.
#
# ```python
# def by_doubling(A):
#     inverse, power = torch.eye(len(A), dtype=A.dtype) - A, A
#     for _ in range(5):
#         power = power @ power
#         inverse = inverse + inverse @ power
#     return inverse
#
# errors = {}
# for name, keys in {"random": normal(64, 64), "one key": normal(1, 64).expand(64, -1)}.items():
#     keys = F.normalize(keys, dim=-1)
#     A = (keys @ keys.T).tril(-1)
#     truth = torch.linalg.solve_triangular(A, torch.eye(64).double(), upper=False, unitriangular=True)
#     solve = torch.linalg.solve_triangular(A.float(), torch.eye(64), upper=False, unitriangular=True)
#     errors[name] = [(x.double() - truth).abs().max().item() for x in (by_doubling(A.float()), solve)]
#     print(f"{name:8} doubling {errors[name][0]:.0e}, solve {errors[name][1]:.0e}")
# assert errors["random"][0] < 1e-4 and errors["one key"][0] > 1e3 and errors["one key"][1] < 1e-3
# ```
#
# </details>
#
# **3.** Someone repairs the mask after exp with `torch.where(future, 0, (G - G.T).exp())`. There is no product, so
# there is no $\infty \cdot 0$. The values are right. What about the gradient of $g$?
#
# <details><summary>Solution</summary>
#
# `where` sends a zero to the branch that was not taken, and the derivative of exp there is $\infty$. That gives
# $0 \cdot \infty$ again, now in the backward pass. If we mask with $-\infty$ before exp, the derivative is
# $e^{-\infty} = 0$.
#
# ```python
# future = torch.ones(64, 64, dtype=torch.bool).triu(1)
#
# def gradient(decay):
#     g = torch.full((64, 1), -2.0, requires_grad=True)
#     decay(g.cumsum(0)).sum().backward()
#     return g.grad
#
# repaired = gradient(lambda G: torch.where(future, 0.0, (G - G.T).exp()))
# masked = gradient(lambda G: (G - G.T).masked_fill(future, -math.inf).exp())
# assert repaired.isnan().any() and masked.isfinite().all()
# ```
#
# </details>
#
# **4. Fill in.** Write steps 2 to 4 for one chunk from memory, given `decay`, `gamma` and `to_end` of step 1. You need
# one triangular solve and no loop.


# %%
def chunk_step(q, k, v, beta, decay, gamma, to_end, S):
    """One chunk: q, k (C, K), v (C, V), beta, gamma, to_end (C, 1), decay (C, C), S (K, V) -> out (C, V), the new S"""
    ...  # your part


def test_chunk_step(attempt):
    x = make_inputs(9)
    q, k, v = (x[name][0, :, 0] for name in "qkv")
    G = x["g"][0].cumsum(0)  # (C, 1)
    decay = (G - G.T).masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -math.inf).exp()
    mine = attempt(q, k, v, x["beta"][0], decay, G.exp(), (G[-1:] - G).exp(), x["state"][0, 0])
    out, state = recurrent_gated_delta_rule(**x)
    same(mine[0], out[0, :, 0])
    same(mine[1], state[0, 0])


course.try_it(test_chunk_step, chunk_step)


# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def chunk_step(q, k, v, beta, decay, gamma, to_end, S):
#     A = beta * decay * (k @ k.T)  # the solve takes the diagonal as ones
#     right_side = beta * (v - gamma * (k @ S))
#     delta = torch.linalg.solve_triangular(A, right_side, upper=False, unitriangular=True)
#     out = gamma * (q @ S) + (decay * (q @ k.T)) @ delta
#     return out, gamma[-1] * S + k.T @ (to_end * delta)
#
#
# test_chunk_step(chunk_step)
# ```
#
# </details>
#
# ## Five questions
#
# 1. Which property of the recurrence makes the deltas of a chunk the solution of a *linear* system, and which makes the
#    system triangular?
# 2. What in steps 1 to 3 depends on the state before the chunk? Why does the answer matter for speed?
# 3. Where would an error hide if we compared only the outputs of the first chunk? And if we compared only the last
#    state?
# 4. Why does the code never take the exponential of a positive number, and which two shortcuts would take one?
# 5. When is the recurrence the better form, and what grows without bound if $C$ is made ever larger?
#
# <details><summary>Answers</summary>
#
# 1. Writes and reads are affine in $S$, with coefficients that depend on the tokens alone. And no token depends on a
#    later one.
# 2. Nothing does, so they run for all chunks at once. Only step 4 goes chunk after chunk.
# 3. With the first chunk alone, it would hide in the step from chunk to chunk. With the last state alone, it would hide
#    in the parts that make only the outputs: inner, its mask, the read.
# 4. Every exponent is a sum of $g \le 0$ over the tokens in between. The two shortcuts are the mask after exp and the
#    split factor.
# 5. It is better for one token or a few. As $C$ grows, so do the operations per token, $4C(K + V) + C^2$, and the
#    memory per token for $C \times C$ matrices.
#
# </details>
#
# ## Three sentences to remember
#
# 1. Inside a chunk, the deltas solve a triangular linear system whose coefficients come from the tokens and not from
#    the state.
# 2. So nearly all of the work becomes large products for all chunks at once, and only the state passes from chunk to
#    chunk in a loop.
# 3. Both forms give the same result up to rounding, and the layer uses the chunked form for a prompt and the recurrence
#    for a single token.
#
# Next: [5_gated_attention](5_gated_attention.ipynb), the layer that keeps every token.
