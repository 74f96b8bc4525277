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
# # 6. Why a hybrid
#
# Qwen3-Next mixes two kinds of layer. Three in four are Gated DeltaNet, whose memory has a fixed size. The fourth is
# softmax attention, which keeps everything. Why not one kind alone? The answer decides what a long text costs, and
# which facts from it a model can still recall.
#
# This notebook answers by experiment. We train small models on a task that measures memory and nothing else. A text
# lists up to 256 facts, each a pair like a thing and its owner, and then asks for up to 64 of them. We predict how many
# facts a memory of fixed size holds, and then measure it. The next notebook, [6b](6b_two_memories.ipynb), takes a
# trained hybrid apart.
#
# After this notebook you can state what each kind of layer keeps and at what cost, and you can predict at how many
# facts a model without attention starts to fail. You need softmax attention, and the delta rule as in notebook
# [2](2_delta_rule.ipynb). For one lesson, take sections 1 to 5. Section 6 is homework.
#
# | | |
# |---|---|
# | [Zoology] | Zoology: measuring and improving recall in efficient language models, [arXiv 2312.04927](https://arxiv.org/abs/2312.04927): the task |
# | [Based] | Simple linear attention language models balance the recall-throughput tradeoff, [arXiv 2402.18668](https://arxiv.org/abs/2402.18668): recall against the size of the state |
# | [GDN] | Gated Delta Networks, [arXiv 2412.06464](https://arxiv.org/abs/2412.06464): the layer |

# %%
from start import root

# %%
import json
import math

import course
import figures
import recall
import torch
import torch.nn.functional as F
from pictures import hybrid as pictures

from qwen3_next import chunk_gated_delta_rule
from verify.trace import recording

figures.setup()
runs = json.loads((root / "notebooks" / "data" / "recall.json").read_text())  # made by notebooks/experiments/recall.py
recorded = [run for run in runs if run["what"] == "recall"]
shares = {}  # kind -> (seeds, sizes): the share of facts recalled
for kind in recall.KINDS:
    rows = [[run["accuracy"][str(n)] for n in recall.PAIRS] for run in recorded if run["kind"] == kind]
    shares[kind] = torch.tensor(rows)
pictures.answer(recall.PAIRS, shares)

# %% [markdown]
# This is the answer, before the reasons. The points are means over five seeds, and the bands show their range. Gated
# DeltaNet alone forgets. With one attention layer in four, the model recalls as much as with attention everywhere.

# %% [markdown]
# ## 1. Three models that differ only in their layers
#
# We write a model as a row of letters. L is a Gated DeltaNet layer, and F is gated attention (F for *full*). LLLF is
# Qwen3-Next's pattern, LLLL has no attention, and FFFF has nothing but attention. Width, MLPs and embedding are the
# same in all three. Three sizes describe an L layer: it has $H$ heads, and each head has a state of $K \times V$
# numbers, with one row for each dimension of its keys.

# %%
models = {kind: recall.make_model(kind, seed=0) for kind in recall.KINDS}
small = models["LLLL"].config
H, K, V = small.linear_num_value_heads, small.linear_key_head_dim, small.linear_value_head_dim
assert small.linear_num_key_heads == H  # otherwise heads would share keys
print(f"an L layer: {H} heads, state {K} x {V} each; keys have H K = {H * K} dimensions in all\n")
for kind, model in models.items():
    own = sum(p.numel() for p in model.model.layers.parameters())
    print(f"{kind}: {sum(p.numel() for p in model.parameters()):,} parameters, {own:,} of them in the layers")

# %% [markdown]
# What does each layer keep of $n$ tokens? An F layer keeps a key and a value of width $d$ for each of $H_{kv}$ heads
# and for *every token*. An L layer keeps its states, and also the last $c - 1$ inputs of its convolution, whose kernel
# has width $c$. Each of those inputs has $2 H_k K + H V$ numbers, where $H_k$ counts the key heads. In numbers, not
# bytes:
#
# $$\underbrace{2\, n\, H_{kv}\, d}_{\text{each F}} \qquad \underbrace{H K V + (c - 1)(2 H_k K + H V)}_{\text{each L}}$$


# %%
def expected_bytes(config, n, state=4, rest=4):
    """Bytes kept of n tokens: `state` for each number of a state, `rest` for any other (float32: 4)"""
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    K, V, window = config.linear_key_head_dim, config.linear_value_head_dim, config.linear_conv_kernel_dim - 1
    kept = {
        "full_attention": 2 * n * config.num_key_value_heads * config.head_dim * rest,
        "linear_attention": values * K * V * state + window * (2 * keys * K + values * V) * rest,
    }
    return sum(kept[layer] for layer in config.layer_types)


# %% [markdown]
# We check the formula against the tensors in real caches. (A key-value buffer is longer than it needs to be, so that it
# rarely has to grow. We count only the slots in use.)


# %%
@torch.no_grad()
def measured_bytes(model, n):
    """Bytes of the cache's tensors after n tokens"""
    cache = model.model(torch.arange(n)[None] % 7, use_cache=True).past_key_values
    parts = []
    for layer in cache.layers:
        parts += [layer.state, layer.window] if hasattr(layer, "state") else [layer.k[:, :, :n], layer.v[:, :, :n]]
    return sum(part.numel() * part.element_size() for part in parts)


print(f"{'tokens':>8}" + "".join(f"{kind:>12}" for kind in models))
for n in (1, 16, 128, 1024):
    found = [measured_bytes(model, n) for model in models.values()]
    assert found == [expected_bytes(model.config, n) for model in models.values()]
    print(f"{n:8}" + "".join(f"{number / 1024:8.1f} KiB" for number in found))

# %% [markdown]
# ## 2. A task that is all memory
#
# The task is *multi-query associative recall* [Zoology]. A text lists $n$ pairs of a key and a value. Then it names up
# to 64 of the keys again, in a different order, and the model has to give the value of each. Keys and values are single
# tokens, chosen at random, so nothing but the pair tells the answer. A model that names any of the values in the text
# is right one time in $n$. It gets that far without remembering which value belongs to which key. To do better, it has
# to keep pairs.

# %%
ids, targets = recall.batch(5, 1, torch.Generator().manual_seed(3))
read = [f"k{i}" if i < recall.KEYS else f"v{i - recall.KEYS}" for i in ids[0].tolist()]
listed = len(read) - targets.shape[1]  # tokens of the pairs, before the questions
print("text: ", "  ".join(" ".join(read[i : i + 2]) for i in range(0, listed, 2)))
print("asked:", "  ".join(read[listed:]))
print("right:", "  ".join(f"v{i - recall.KEYS}" for i in targets[0].tolist()))
print(f"\n{recall.KEYS} keys, {recall.VALUES} values; texts have 2 to {max(recall.PAIRS)} pairs and at most", end=" ")
print(f"{recall.QUERIES} questions; each kind of model is trained from {len(recall.SEEDS)} seeds.")

# %% [markdown]
# ## 3. The prediction, before looking
#
# What should each model be able to recall?
#
# **FFFF and LLLF.** One attention layer keeps all pairs. Using them takes two steps. The key's token and the value's
# token are neighbours, and they have to be joined before the value can be looked up by its key. With several layers
# there is room for both steps. So neither model should run out of memory.
#
# **LLLL.** A state of $K$ rows returns up to $K$ pairs without error if their keys are orthogonal, because its rank is
# at most $K$ (notebook 2, section 7). The $H$ heads of a layer can divide the pairs among themselves, which makes $HK$
# pairs. All four layers could divide them too, but they have other work as well. Let the *capacity* $C$ be the number
# of pairs that come back, however many the text lists. It should lie between the room of one layer and the room of all
# layers. Once the text lists more than $C$ pairs, the share of right answers falls:
#
# $$\text{share} = \min\Big(1, \frac{C}{n}\Big), \qquad H K \le C \le 4 H K$$
#
# Half of the answers are right at $n = 2C$. This is an estimate, not a law. The true capacity may be smaller: there are
# more keys than dimensions, so they can't all be orthogonal, and the model does not know which keys will come. It may
# also be larger: a returned value need not be exact, only closer to the right value than to any other.
#
# How much is lost if the keys are random and not learned? We take random unit keys and random value vectors, and write
# $n$ pairs once by the delta rule into all heads of one layer, or of four layers at once. For each key, we then name
# the value whose vectors are most like the vectors that the states return.


# %%
def untrained_memory(n, heads, K=K, V=V, seeds=8):
    """Share of n pairs that `heads` states K x V return after one pass of the delta rule; one number a seed"""
    random = torch.Generator().manual_seed(n)
    k = F.normalize(torch.randn(seeds, n, heads, K, generator=random), dim=-1)
    codes = F.normalize(torch.randn(recall.VALUES, heads, V, generator=random), dim=-1)  # each value's vectors
    value = torch.randint(recall.VALUES, (seeds, n), generator=random)
    g, beta = torch.zeros(seeds, n, heads), torch.ones(seeds, n, heads)  # forget nothing, write fully
    _, S = chunk_gated_delta_rule(k, k, codes[value], g=g, beta=beta)  # (seeds, heads, K, V)
    returned = torch.einsum("bhkv,bnhk->bnhv", S, k)
    likeness = torch.einsum("bnhv,chv->bnc", returned, codes)  # to each of the values
    return (likeness.argmax(-1) == value).float().mean(1)


LAYERS = len(recall.KINDS[0])
least, most = H * K, LAYERS * H * K  # capacity, pairs: one layer's, all layers'
untrained = {n: [untrained_memory(n, L * H).mean().item() for L in (1, LAYERS)] for n in recall.PAIRS}
print(f"estimate for LLLL: capacity {least} to {most} pairs; half is right at {2 * least} to {2 * most} pairs\n")
print("untrained memory of random keys, share returned:")
print(f"{'pairs':>12}" + "".join(f"{n:6}" for n in recall.PAIRS))
for column, name in enumerate(("one layer", "four layers")):
    print(f"{name:>12}" + "".join(f"{untrained[n][column]:6.0%}" for n in recall.PAIRS))

# %% [markdown]
# Random keys waste room. The heads of one layer together return fewer pairs than they have rows. Four layers return far
# fewer than four times as many pairs as one, because all heads forget the same pairs, the oldest. Training can arrange
# the keys and divide the work, so a trained model should do better.
#
# ## 4. One run, live
#
# We repeat the beginning of one of the stored runs: a hybrid, with the same seed and the same function, up to the first
# step at which the stored run was measured. On a different machine sums round differently, and the curve moves
# somewhat.


# %%
class Enough(Exception):
    """Ends a training run early"""


best_rate = {run["kind"]: run["rate"] for run in recorded}
stored = next(run for run in recorded if run["kind"] == "LLLF" and run["seed"] == 1)
until, live = stored["history"][0]["step"], []


def watch(entry):
    live.append(entry)
    if entry["step"] == until:
        raise Enough


try:
    model = recall.make_model("LLLF", stored["seed"])
    recall.train(model, stored["seed"], stored["rate"], stored["steps"], stored["most"], every=until // 5, show=watch)
except Enough:
    pass

# %%
print(f"{'share named right':18}" + "".join(f"{n:6}" for n in recall.PAIRS) + "  pairs")
for entry in live:
    print(f"{'step ' + str(entry['step']):18}" + "".join(f"{x:6.0%}" for x in entry["accuracy"].values()))
print(f"{'stored, step ' + str(until):18}" + "".join(f"{x:6.0%}" for x in stored["history"][0]["accuracy"].values()))
learned = live[-1]["accuracy"][4]
course.finding(
    f"of 4 pairs more than half is named right, where guessing gives a quarter: {learned:.0%}", learned > 0.5
)

# %% [markdown]
# At first the model learns which tokens are values, so that one answer in 64 is right. Then it learns that the answer
# is one of the values in the text, so that one in $n$ is right. It stays on this plateau for a while. Then, within a
# few dozen steps, it learns to look a value up. Everything depends on leaving the plateau, so the learning curves below
# matter as much as the results.

# %% [markdown]
# ## 5. The measured curves
#
# All stored runs come from `python notebooks/experiments/recall.py`. For each kind of model we tried four learning
# rates in shorter runs, on a seed that is not used again, and took the best. Then we trained each kind from five seeds.
# Texts start small and grow during the first half of training.
#
# The tuning runs are listed first. Then the picture shows the result: the share of values named right against the
# number of pairs in the text. Thin lines are single seeds and thick lines their mean. The lower panel shows the size of
# the cache after the pairs. Look for a line that drops. Does it drop inside the shaded estimate?

# %%
tuned = {(run["kind"], run["rate"]): run["accuracy"] for run in runs if run["what"] == "tune"}
for kind in models:
    print(f"{kind}, share right after tuning runs")
    for (_, rate), found in ((key, found) for key, found in tuned.items() if key[0] == kind):
        listed = "  ".join(f"{n} pairs {share:4.0%}" for n, share in found.items())
        print(f"   rate {rate:<6g} {listed}{'   taken' if rate == best_rate.get(kind) else ''}")

# %%
kept = {kind: [expected_bytes(m.config, 2 * n) / 1024 for n in recall.PAIRS] for kind, m in models.items()}  # KiB
pictures.with_prediction(recall.PAIRS, shares, untrained, least, most, kept)

# %% [markdown]
# Where does recall break down? We measure a *knee*: the number of pairs at which half of the answers are right. For
# each seed, we interpolate linearly in $\log n$ between the two measured sizes around it:


# %%
HALF = 0.5  # the share at which we look for the knee


def knee(x):
    """Pairs at which shares x (sizes,) fall below HALF; infinite if they never do"""
    for i, (n, more) in enumerate(zip(recall.PAIRS, recall.PAIRS[1:])):
        if x[i] >= HALF > x[i + 1]:
            return n * (more / n) ** ((x[i] - HALF) / (x[i] - x[i + 1])).item()
    return math.inf if x[0] >= HALF else 0.0


print(f"{HALF:.0%} is right at so many pairs, by seed (estimate for LLLL: {least / HALF:.0f} to {most / HALF:.0f})")
for kind, x in shares.items():
    found = sorted(knee(row) for row in x)
    told = ", ".join(f"over {recall.PAIRS[-1]}" if math.isinf(n) else f"{n:.0f}" for n in found)
    print(f"   {kind:24} {told}")
print("\nshare right, mean and standard deviation over seeds\n" + f"{'pairs':>27}", end="")
print("".join(f"{n:>12}" for n in recall.PAIRS))
for kind, x in shares.items():
    print(f"   {kind:24}" + "".join(f"{a:6.0%} ±{s:4.0%}" for a, s in zip(x.mean(0), x.std(0))))

# %%
split = [
    n for i, n in enumerate(recall.PAIRS) if (shares["LLLL"][:, i] < 0.5).all() and (shares["LLLF"][:, i] > 0.95).all()
]
count = min(len(shares["LLLL"]), len(shares["LLLF"]))
print(f"LLLL below 50 % and LLLF above 95 %, each of {count} seeds: at {split or 'no number of'} pairs")

# %% [markdown]
# The picture and the tables show three things:
#
# - **LLLL has a knee. LLLF and FFFF have none** up to the largest number of pairs measured. One attention layer in four
#   is enough.
# - **The knee lies** in the lower part of the estimated band. For two seeds it lies a little below the band.
# - **The costs differ.** LLLL's cache is a flat line. The caches of FFFF and LLLF rise in the same way, LLLF's at a
#   quarter of the height once the constant size of its states no longer counts. For texts with few pairs the states are
#   the larger memory.
#
# The seeds of LLLL do not agree, so we draw a second picture. It shows the number of pairs that come back: $n$ times
# the share. Look at the right end of each line: does it level off, and at which of the dashed lines?

# %%
pictures.returned(recall.PAIRS, shares["LLLL"], untrained, least, LAYERS)

# %%
returned = (shares["LLLL"] * torch.tensor(recall.PAIRS))[:, -2:].mean(1)  # at the two largest sizes
print("LLLL, pairs returned in units of H K, by seed:", ", ".join(f"{x / least:.1f}" for x in returned.sort().values))

# %% [markdown]
# Every seed levels off. However many pairs the text lists, about the same number comes back. That number is the
# capacity. Compare the levels with the dashed lines. Levels near whole multiples of $HK$ suggest that a model uses one
# layer, or two, for remembering, wastes few rows, and leaves the other layers to other work. But the levels may also be
# near the untrained memory of four layers. Then all layers would be remembering, with keys that training has not
# arranged. The picture can't distinguish the two, and the weights were not kept.
#
# The picture does show that the size of the states sets the scale, and that training does not make full use of it. Only
# the seed differed between these models, and yet they came to hold different numbers of pairs.
#
# ### Learning curves
#
# A model that has not learned a task tells us nothing about its capacity. So here is the whole course of every run.
# Look at the end of LLLL's curves: are they still rising? Then look at the start: how long does each kind stay on the
# plateau?

# %%
histories = {kind: (best_rate[kind], [run["history"] for run in recorded if run["kind"] == kind]) for kind in models}
pictures.learning(histories, [n for n in recall.PAIRS if n in (4, 16, 64, 256)])

# %% [markdown]
# If LLLL's curves were still rising at the end, more training might help. The learning rate falls to a fiftieth, so a
# flat end alone means little. But a curve that is flat long before the end, while smaller texts have been learned
# completely, has found its limit. At the start, every kind stays near zero, or near one in $n$, for a while, and leaves
# the plateau at its own time. A hybrid of this size can stay there for a long time. With the settings found by tuning,
# it did not.
#
# Now look back at the tuning runs. If the rate is too high, every kind stays on the plateau to the end, where one
# answer in four is right among four pairs. Which rates are too high differs from kind to kind. With a single, badly
# chosen rate for all, this experiment could have "shown" that only attention can recall, or that the hybrid can't. (The
# initial weights matter as much. These models initialise the convolution as PyTorch does, and scale the L layers'
# output projections to a tenth, as for `tiny/`; see "What it took to learn to look back" in its
# [README](../tiny/README.md).)
#
# ## 6. How long a new memory lasts
#
# How long does a new model remember, before any training? At every token the state fades by a factor
# $\alpha_t = e^{g_t}$, with
#
# $$g_t = -A\,\mathrm{softplus}(a_t + b)$$
#
# Here $a_t$ is computed from the token. $A$ (stored as `A_log`) and $b$ (`dt_bias`) are learned, one number per head
# each. In a new model $a_t \approx 0$, so $A$ and $b$ alone decide how long its memory lasts. $A$ is drawn uniformly
# between 1 and 16. $b$ can start in two ways. The original code of [GDN] draws $\mathrm{softplus}(b)$ between 0.001 and
# 0.1, uniformly in its logarithm. transformers sets $b = 1$. After $n$ tokens a share of $e^{n g}$ is left of the
# state.
#
# The left picture shows that share. Each line is a head of a new LLLL model, eight heads from each of five seeds. The
# right picture shows LLLL trained on texts with few pairs from either start, three seeds each, with everything else
# equal. Compare the two colours in each.

# %%
starts = {"original": "softplus(b) in [0.001, 0.1]", "ones": "b = 1"}
tokens, half_lives, fading, curves = torch.logspace(0, 8, 65, base=2), {}, {}, {}
for start in starts:
    layers = [layer for seed in recall.SEEDS for layer in recall.make_model("LLLL", seed, start).model.layers]
    nets = [layer.linear_attn for layer in layers]
    g = torch.cat([-net.A_log.exp() * F.softplus(net.dt_bias) for net in nets]).detach()  # (heads,), with a = 0
    half_lives[start], fading[start] = math.log(2) / -g, (tokens[:, None] * g).exp()
    began = [run for run in runs if run["what"] == "start" and run["dt_bias"] == start]
    curves[start] = [[(entry["step"], entry["accuracy"]["4"]) for entry in run["history"]] for run in began]
pictures.starts(tokens, fading, curves, starts)

# %% [markdown]
# The two starts differ in both pictures: in how long a new head remembers, and in how well the model then learns. Here
# are the numbers.

# %%
for start, values in half_lives.items():
    low, middle, high = values.quantile(torch.tensor([0.0, 0.5, 1.0]))
    print(f"{starts[start]:28} half-life of a head: {low:.2g} to {high:.3g} tokens, median {middle:.2g}")
for start in starts:
    final = [curve[-1][1] for curve in curves[start]]
    print(f"{starts[start]:28} after training, 4 pairs: " + ", ".join(f"{x:.0%}" for x in sorted(final)))

# %% [markdown]
# We assumed that $a_t \approx 0$ in a new model. How close is that? We trace one on the text of section 2. There $a_t$
# changes $g$ only by a factor near 1, while the two starts are orders of magnitude apart.

# %%
for start in starts:
    model = recall.make_model("LLLL", 0, start)
    with torch.no_grad(), recording(model, ["*.linear_attn.g"]) as seen:
        model(ids)
    for i, layer in enumerate(model.model.layers):
        expected = -layer.linear_attn.A_log.exp() * F.softplus(layer.linear_attn.dt_bias)  # (H,)
        found = seen[f"model.layers.{i}.linear_attn.g"]  # (T, H)
        assert (found / expected.detach()).log().abs().max() < math.log(5)
    print(f"{starts[start]:28} layer 0, g of five tokens:", found[:5, 0].numpy().round(3))

# %% [markdown]
# With $b = 1$ a head keeps next to nothing from one token to the next. A pair is gone from the state before it is asked
# for. And a pair that never reaches the loss causes no gradient that would make it last longer. So such a model learns
# only slowly to remember, if it learns to at all in this time. The original start gives a model some heads that forget
# soon and some that remember long. Those that remember long still hold a pair when its question comes, even before
# training.
#
# These runs have only a few hundred steps, and longer training may repair the worse start. If you load trained weights,
# none of this concerns you. If you train a new model, it does.
#
# ## Exercises
#
# **1.** In the released 80B, 12 of 48 layers are attention. At how many tokens do keys and values start to take more
# room than the states? How much would be kept of 262,144 tokens if all layers were attention, and how much if none
# were? (Keys, values and the convolution's window are in bfloat16, states in float32.)
#
# <details><summary>Solution</summary>
#
# `expected_bytes` needs only the config. For zero tokens it gives the size of what the L layers keep.
#
# ```python
# from qwen3_next import Qwen3NextConfig
#
# heads = {"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256}
# heads |= {"linear_num_key_heads": 16, "linear_num_value_heads": 32}
# heads |= {"linear_key_head_dim": 128, "linear_value_head_dim": 128}
# sizes = {"vocab_size": 151936, "hidden_size": 2048, "rope_theta": 1e7, "num_experts": 0, "intermediate_size": 5120}
# for kinds in ("LLLF" * 12, "F" * 48, "L" * 48):
#     layers = {"num_hidden_layers": 48, "layer_types": [recall.LAYERS[kind] for kind in kinds]}
#     config = Qwen3NextConfig(**heads, **sizes, **layers)
#     constant, much = (expected_bytes(config, n, rest=2) for n in (0, 262144))
#     a_token = expected_bytes(config, 1, rest=2) - constant
#     print(f"{kinds[:4]}: {constant / 1e6:5.1f} MB and {a_token:6,} bytes a token; 262,144 tokens: {much / 1e9:.2f} GB")
#     if kinds[:4] == "LLLF":
#         print(f"      keys and values take more from {constant / a_token:,.0f} tokens on")
#         assert 3000 < constant / a_token < 3300
# ```
#
# </details>
#
# **2.** A head may spend 512 numbers on a state of $8 \times 64$, $16 \times 32$, $32 \times 16$ or $64 \times 8$.
# Which shape returns the most pairs? Guess for 16 and 32 pairs, then measure with `untrained_memory`, two heads. Why is
# the best shape not the one with the most rows?
#
# <details><summary>Solution</summary>
#
# More rows mean less disturbance, because the error depends on $n / K$ alone (notebook 2, section 7). But the value has
# to be recognised among 64. The shorter its vector, the more another value's vector looks like it by chance, and the
# more a given error costs.
#
# ```python
# shapes = ((8, 64), (16, 32), (32, 16), (64, 8))
# kept = {shape: [untrained_memory(n, 2, *shape, seeds=16).mean().item() for n in (16, 32)] for shape in shapes}
# for (rows, columns), (few, many) in kept.items():
#     print(f"{rows:2} x {columns:2}: 16 pairs {few:.0%}, 32 pairs {many:.0%}")
# assert kept[16, 32][1] > kept[8, 64][1]
# ```
#
# </details>
#
# **3. Fill in.** Write the estimate of section 3 as a function: of $n$ pairs, a memory with a capacity of $C$ returns
# the share $\min(1, C / n)$, and the rest is guessed among the $n$ values of the text. A guess is right one time in
# $n$.


# %%
def recalled_share(n, capacity):
    """The share of n pairs that is named right, guesses included"""
    ...  # your part


def test_recalled_share(attempt):
    """Plays it out: pairs that are kept are right, and for the others a value of the text is drawn"""
    drawn = torch.Generator().manual_seed(5)
    for n, capacity in ((4, 16), (16, 16), (64, 16), (256, 16), (5, 0)):
        guesses = torch.randint(n, (2000, n), generator=drawn) == torch.arange(n)  # the right value is the pair's own
        right = (guesses | (torch.arange(n) < capacity)).double().mean().item()
        assert abs(attempt(n, capacity) - right) < 0.02, f"{n} pairs, capacity {capacity}: {right:.2f} is right"


course.try_it(test_recalled_share, recalled_share)


# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def recalled_share(n, capacity):
#     kept = min(1, capacity / n)
#     return kept + (1 - kept) / n
#
#
# test_recalled_share(recalled_share)
# ```
#
# </details>
#
# ## Five questions
#
# 1. What does an attention layer keep of $n$ tokens, and what does a Gated DeltaNet layer? Which of the two is the
#    larger memory for a short text?
# 2. How many pairs should four layers without attention return, and how do we arrive at that estimate? What share of
#    the answers is right when a text lists more pairs?
# 3. Why do the untrained states of four layers return far fewer than four times as many random pairs as those of one?
#    What can training do about it?
# 4. A model answers one time in $n$. What has it learned, and what not? Why is that no evidence about its capacity?
# 5. Two new models differ only in how their decays start. Why does the model that forgets at once learn so slowly to
#    remember?
#
# <details><summary>Answers</summary>
#
# 1. Attention keeps a key and a value of every token. Gated DeltaNet keeps its states and the last inputs of its
#    convolution, however long the text is. For a short text, the states and these inputs are the larger memory.
# 2. Between $HK$, the room of one layer, and $4HK$, the room of all four. We count one pair for each dimension of the
#    keys of each head. If a text lists $n$ pairs, more than the capacity $C$, the share is $C/n$. The number of pairs
#    that come back stays the same.
# 3. All heads forget the same pairs, the oldest. Training can arrange the keys, and divide the pairs among the heads.
# 4. It knows that the answer is one of the values in the text, but not which value belongs to which key. It may be on a
#    plateau that it would leave with more steps or a lower rate, so you first have to look at the learning curves.
# 5. A pair is gone from the state before it is asked for. It never reaches the loss, so no gradient makes it last
#    longer.
#
# </details>
#
# ## Three sentences to remember
#
# 1. A memory of fixed size returns at most about as many pairs as its keys have dimensions, while attention returns
#    them all and pays with memory for every token.
# 2. One attention layer in four was enough for recall in these experiments, with a quarter of the cache of attention
#    everywhere, apart from a constant.
# 3. How fast a new memory forgets decides whether it learns: a fact that is forgotten before the loss sees it gets no
#    gradient.
#
# Next: [6b_two_memories.ipynb](6b_two_memories.ipynb) takes a trained hybrid apart while it reads.
