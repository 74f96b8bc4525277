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
# # 5. Why a hybrid
#
# Qwen3-Next mixes two kinds of layer. Three in four are Gated DeltaNet, whose memory has a fixed size. The fourth is
# softmax attention, which keeps everything. Why not one kind alone? The answer decides what a long text costs, and
# which facts from it a model can still recall.
#
# This notebook answers by experiment. First we train small models on a task that measures memory and nothing else. We
# predict how much a memory of fixed size holds, and then measure it. After that we take a trained model apart while it
# reads: less attention, less state, one memory without the other.
#
# After this notebook you can say what each kind of layer keeps and what that costs. You can predict at how many facts a
# model without attention starts to fail. And you know what an intervention on a trained model shows, and what it does
# not. You need softmax attention, and the delta rule as in notebook [2](2_delta_rule.ipynb).
#
# | | |
# |---|---|
# | [Zoology] | Zoology: measuring and improving recall in efficient language models, [arXiv 2312.04927](https://arxiv.org/abs/2312.04927): the task |
# | [Based] | Simple linear attention language models balance the recall-throughput tradeoff, [arXiv 2402.18668](https://arxiv.org/abs/2402.18668): recall against the size of the state |
# | [GDN] | Gated Delta Networks, [arXiv 2412.06464](https://arxiv.org/abs/2412.06464): the layer |

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
sys.path[:0] = [str(root), str(root / "notebooks"), str(root / "notebooks" / "experiments"), str(root / "tiny")]

# %%
import copy
import itertools
import json
import math
import re
from dataclasses import replace

import corpus
import figures
import recall
import torch
import torch.nn.functional as F
from matplotlib import pyplot

from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer, chunk_gated_delta_rule
from verify.trace import recording

figures.setup()
runs = json.loads((root / "notebooks" / "data" / "recall.json").read_text())  # made by notebooks/experiments/recall.py
NAMES = {"LLLF": "LLLF, hybrid", "LLLL": "LLLL, delta rule only", "FFFF": "FFFF, attention only"}
COLORS = {"LLLF": figures.BLUE, "LLLL": figures.ORANGE, "FFFF": figures.GREEN}

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
# and for *every token*. An L layer keeps its states, and also the last $c - 1$ inputs of its convolution. Each of those
# inputs has $2 H_k K + H V$ numbers, where $H_k$ counts the key heads. In numbers, not bytes:
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
# The task is *multi-query associative recall* [Zoology]. A text lists $n$ pairs of a key and a value. Then it names
# some of the keys again, in another order, and the model has to give each one's value. Keys and values are single
# tokens, chosen at random, so there is nothing to guess: a model that answers right has kept the pair. Naming any of
# the values in the text is right one time in $n$. A model gets that much without remembering which value belongs to
# which key.

# %%
ids, targets = recall.batch(5, 1, torch.Generator().manual_seed(3))
read = [f"k{i}" if i < recall.KEYS else f"v{i - recall.KEYS}" for i in ids[0].tolist()]
print("text: ", "  ".join(" ".join(read[i : i + 2]) for i in range(0, 10, 2)))
print("asked:", "  ".join(read[10:]))
print("right:", "  ".join(f"v{i - recall.KEYS}" for i in targets[0].tolist()))
print(f"\n{recall.KEYS} keys, {recall.VALUES} values; texts have 2 to {max(recall.PAIRS)} pairs and at most", end=" ")
print(f"{recall.QUERIES} questions; each kind of model is trained from {len(recall.SEEDS)} seeds.")

# %% [markdown]
# ## 3. The prediction, before looking
#
# What should each model be able to recall?
#
# **FFFF and LLLF.** One attention layer keeps all pairs. It takes two steps to use them. The key's token and the
# value's token are neighbours, and they have to be joined before one can be looked up by the other. With several layers
# that is no obstacle. So neither model should run out of room.
#
# **LLLL.** A state of $K$ rows returns up to $K$ pairs without error if their keys are orthogonal, because its rank is
# $K$ (notebook 2, section 7). The $H$ heads of a layer can divide the pairs among themselves, which makes $HK$ pairs.
# All four layers could divide them too, but they have other work as well. Let the *capacity* $C$ be the number of pairs
# that come back, however many the text lists. It should lie between what one layer holds and what all layers hold. Once
# the text lists more, the share that is right falls:
#
# $$\text{share} = \min\Big(1, \frac{C}{n}\Big), \qquad H K \le C \le 4 H K$$
#
# Half is right at $n = 2C$. This is an estimate, not a law. The truth may be less: there are more keys than dimensions,
# so they can't all be orthogonal, and the model does not know which keys will come. It may also be more: what comes
# back need not be exact, only closer to the right value than to any other.
#
# How much does it cost if nobody arranges the keys? We take random unit keys and random value vectors, and write $n$
# pairs once by the delta rule into all heads of one layer, or of four layers at once. Then we name the value whose
# vectors are most like what the states return.


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
# Random keys waste room. The heads of one layer together return fewer pairs than they have rows. Four layers return
# hardly more than one, because all heads forget the same pairs, the oldest. Training can arrange the keys and divide
# the work, so it should do better than that.
#
# ## 4. One run, live
#
# We repeat the beginning of one of the stored runs: a hybrid, with the same seed and the same function, up to the first
# step at which the stored run was measured. On another machine sums round differently, and the curve moves a little.


# %%
class Enough(Exception):
    """Ends a training run early"""


recorded = [run for run in runs if run["what"] == "recall"]
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
assert live[-1]["accuracy"][4] > 0.5  # naming any of the four values would give a quarter

# %% [markdown]
# At first the model finds out which tokens are values, so that one answer in 64 is right. Then it finds out that the
# answer is one of the values in the text, so that one in $n$ is right, and there it stays for a while. Then, within a
# few dozen steps, it learns to look one up. Everything depends on leaving that plateau. That is why the learning curves
# below matter as much as the results.

# %% [markdown]
# ## 5. The measured curves
#
# All stored runs come from `python notebooks/experiments/recall.py`. For each kind of model we tried three learning
# rates, on a seed that is not used again, and took the best. Then we trained each kind from five seeds to the end of
# its schedule. Texts start small and grow during the first half of training.
#
# After the tuning runs comes the result: the share of values named right against the number of pairs in the text. Thin
# lines are single seeds and thick lines their mean, on the left axis. Dashed lines, on the right axis, show what the
# cache holds after the pairs. Look for a line that drops, and for whether it drops inside the shaded estimate.

# %%
tuned = {(run["kind"], run["rate"]): run["accuracy"] for run in runs if run["what"] == "tune"}
for kind in models:
    print(f"{kind}, share right after tuning runs")
    for (_, rate), found in ((key, found) for key, found in tuned.items() if key[0] == kind):
        shares = "  ".join(f"{n} pairs {share:4.0%}" for n, share in found.items())
        print(f"   rate {rate:<6g} {shares}{'   taken' if rate == best_rate.get(kind) else ''}")

# %%
shares = {}  # kind -> (seeds, sizes)
for kind in models:
    rows = [[run["accuracy"][str(n)] for n in recall.PAIRS] for run in recorded if run["kind"] == kind]
    shares[kind] = torch.tensor(rows)
ax, WIDTH = figures.axes(width=7.2, height=4.2), {"LLLF": 2, "LLLL": 2.5, "FFFF": 5}
for kind, x in sorted(shares.items(), key=lambda pair: -WIDTH[pair[0]]):  # the thickest line goes below the others
    ax.plot(recall.PAIRS, x.mT, color=COLORS[kind], linewidth=0.8, alpha=0.5)
    ax.plot(recall.PAIRS, x.mean(0), "o-", color=COLORS[kind], linewidth=WIDTH[kind], label=NAMES[kind])
for column, style in ((0, ":"), (1, "-.")):
    label = f"untrained memory, {'one layer' if column == 0 else 'four layers'}"
    ax.plot(recall.PAIRS, [untrained[n][column] for n in recall.PAIRS], style, color="gray", label=label)
sizes = torch.logspace(2, 8, 100, base=2)  # pairs
low, high = ((capacity / sizes).clamp(max=1) for capacity in (least, most))
ax.fill_between(sizes, low, high, color=figures.ORANGE, alpha=0.15, linewidth=0, label="estimate for LLLL")
ax.set(xlabel="pairs in the text", ylabel="share of values named right", ylim=(0, 1.03), xscale="log")
ax.set_xticks(recall.PAIRS, recall.PAIRS)
ax.minorticks_off()
kept = ax.twinx()
kept.spines["right"].set_visible(True)
for kind, model in models.items():
    sizes = [expected_bytes(model.config, 2 * n) / 1024 for n in recall.PAIRS]
    kept.plot(recall.PAIRS, sizes, "--", color=COLORS[kind], linewidth=1.2)
kept.set(ylabel="dashed: cache after the pairs, KiB", yscale="log")
kept.set_yticks([10, 30, 100, 300, 1000], [10, 30, 100, 300, 1000])
kept.minorticks_off()
ax.figure.legend(loc="outside upper center", ncols=2, fontsize=9)
pyplot.show()

# %% [markdown]
# Where does recall break down? We measure a *knee*: the number of pairs at which half is answered right. For each seed,
# we interpolate linearly in $\log n$ between the two measured sizes around it:


# %%
def knee(x, at=0.5):
    """Pairs at which shares x (sizes,) fall below `at`; infinite if they never do"""
    for i, (n, more) in enumerate(zip(recall.PAIRS, recall.PAIRS[1:])):
        if x[i] >= at > x[i + 1]:
            return n * (more / n) ** ((x[i] - at) / (x[i] - x[i + 1])).item()
    return math.inf if x[0] >= at else 0.0


print(f"half is right at so many pairs, by seed (estimate for LLLL: {2 * least} to {2 * most})")
for kind, x in shares.items():
    found = sorted(knee(row) for row in x)
    told = ", ".join(f"over {recall.PAIRS[-1]}" if math.isinf(n) else f"{n:.0f}" for n in found)
    print(f"   {NAMES[kind]:24} {told}")
print("\nshare right, mean and standard deviation over seeds\n" + f"{'pairs':>27}", end="")
print("".join(f"{n:>12}" for n in recall.PAIRS))
for kind, x in shares.items():
    print(f"   {NAMES[kind]:24}" + "".join(f"{a:6.0%} ±{s:4.0%}" for a, s in zip(x.mean(0), x.std(0))))

# %%
split = [
    n for i, n in enumerate(recall.PAIRS) if (shares["LLLL"][:, i] < 0.5).all() and (shares["LLLF"][:, i] > 0.95).all()
]
count = min(len(shares["LLLL"]), len(shares["LLLF"]))
print(f"LLLL below 50 % and LLLF above 95 %, each of {count} seeds: at {split or 'no number of'} pairs")

# %% [markdown]
# What the picture and the tables show:
#
# - **LLLL has a knee. LLLF and FFFF have none** up to the largest size measured. One attention layer in four is enough.
# - **Where the knee lies**: in the estimated band, in its lower part.
# - **What each costs**: LLLL's cache is a flat line. FFFF's and LLLF's rise in the same way, LLLF's at a quarter of the
#   height once the constant of its states no longer counts. For texts with few pairs the states are the larger memory.
#
# The seeds of LLLL do not agree, and that is worth a second picture. It shows the number of pairs that come back: $n$
# times the share. Look at the right end of each line: does it level off, and at which of the dashed lines?

# %%
ax = figures.axes(width=5.6, height=3.2)
for row in shares["LLLL"]:
    ax.plot(recall.PAIRS, row * torch.tensor(recall.PAIRS), "o-", color=figures.ORANGE, markersize=4)
for layers in range(1, LAYERS + 1):
    ax.axhline(layers * H * K, color="gray", linewidth=1, linestyle="--")
    ax.text(1.02, layers * H * K, f"{layers} H K", color="gray", va="center", transform=ax.get_yaxis_transform())
for column, style in ((0, ":"), (1, "-.")):
    label = f"untrained, {'one layer' if column == 0 else 'four layers'}"
    ax.plot(recall.PAIRS, [n * untrained[n][column] for n in recall.PAIRS], style, color=figures.BLACK, label=label)
ax.set(xlabel="pairs in the text", ylabel="pairs returned, by seed", xscale="log", ylim=(0, 1.08 * most))
ax.set_xticks(recall.PAIRS, recall.PAIRS)
ax.minorticks_off()
ax.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 0.71))
pyplot.show()

# %%
returned = (shares["LLLL"] * torch.tensor(recall.PAIRS))[:, -2:].mean(1)  # at the two largest sizes
print("LLLL, pairs returned in units of H K, by seed:", ", ".join(f"{x / least:.1f}" for x in returned.sort().values))

# %% [markdown]
# Every seed levels off. However many pairs the text lists, about the same number comes back, and that number is the
# capacity. Compare the levels with the dashed lines. Levels near whole multiples of $HK$ suggest that a model uses one
# layer, or two, for remembering, wastes few rows, and leaves the other layers to other work. But the levels may also be
# near the untrained memory of four layers. Then all layers would be remembering, with keys that nobody has arranged.
# The picture can't distinguish the two, and the weights were not kept.
#
# The picture does show that the size of the states sets the scale, and that training does not make full use of it. Only
# the seed differed between these models, and yet they came to hold different numbers of pairs.
#
# ### Learning curves
#
# A model that has not learned a task says nothing about what it could hold. So here is the whole course of every run.
# Look at the end of LLLL's curves: are they still rising? Then look at the start: how long does each kind stay on the
# plateau?

# %%
sizes = [n for n in recall.PAIRS if n in (4, 16, 64, 256)]
for ax, kind in zip(figures.axes(1, 3, width=3.6, height=3.0, sharey=True), models):
    for run in (run for run in recorded if run["kind"] == kind):
        for n, color in zip(sizes, (figures.SKY, figures.BLUE, figures.RED, figures.BLACK)):
            steps = [entry["step"] for entry in run["history"]]
            curve = [entry["accuracy"][str(n)] for entry in run["history"]]
            ax.plot(steps, curve, color=color, linewidth=1, label=f"{n} pairs" if run["seed"] == 0 else None)
    ax.set(title=f"{NAMES[kind]}, rate {best_rate.get(kind, 0):g}", xlabel="steps", ylim=(0, 1.03))
    ax.title.set_fontsize(10)
    if kind == recall.KINDS[0]:
        ax.set_ylabel("share named right")
    if kind == recall.KINDS[-1]:
        ax.legend(fontsize=9)
pyplot.show()

# %% [markdown]
# If LLLL's curves were still rising at the end, more training might help. The rate falls to a fiftieth, so a flat end
# by itself means little. But a curve that is flat long before the end, while smaller texts have been learned
# completely, has found its limit. At the start, every kind stays near zero, or near one in $n$, for a while, and leaves
# at its own time. A hybrid of this size can stay there for long; with the settings found by tuning, it did not.
#
# Now look back at the tuning runs. If the rate is too high, every kind stays on the plateau to the end, with one in
# four right among four pairs. Which rates are too high differs from kind to kind. With a single rate for all, chosen
# unluckily, this experiment could have "shown" that attention alone can recall, or that the hybrid can't. (The initial
# weights matter as much. These models initialise the convolution as PyTorch does, and scale the L layers' output
# projections to a tenth, as for `tiny/`; see "What it took to learn to look back" in its [README](../tiny/README.md).)
#
# ## 6. How long a new memory lasts
#
# How long does a model keep something before it has learned anything? At every token the state fades by a factor
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
left, right = figures.axes(1, 2, width=4.6, height=3.2)
starts = {"original": (figures.BLUE, "softplus(b) in [0.001, 0.1]"), "ones": (figures.RED, "b = 1")}
tokens, half_lives = torch.logspace(0, 8, 65, base=2), {}
for start, (color, _) in starts.items():
    g = []
    for seed in recall.SEEDS:
        for layer in recall.make_model("LLLL", seed, start).model.layers:
            net = layer.linear_attn
            g.append(-net.A_log.exp() * F.softplus(net.dt_bias))  # (H,), with a = 0
    g = torch.cat(g).detach()
    half_lives[start] = math.log(2) / -g
    left.plot(tokens, (tokens[:, None] * g).exp(), color=color, linewidth=0.7, alpha=0.6)
left.set(xlabel="tokens since", ylabel="share of the state that is left", ylim=(0, 1.02), xscale="log")
left.set_xticks([1, 4, 16, 64, 256], [1, 4, 16, 64, 256])
left.minorticks_off()
began = [run for run in runs if run["what"] == "start"]
for start, (color, label) in starts.items():
    for run in (run for run in began if run["dt_bias"] == start):
        curve = [(entry["step"], entry["accuracy"]["4"]) for entry in run["history"]]
        right.plot(*zip(*curve), color=color, linewidth=1, label=label if run["seed"] == 0 else None)
right.axhline(0.25, color="gray", linestyle=":", label="any of the four")
right.set(xlabel="steps", ylabel="share named right, 4 pairs", ylim=(0, 1.03))
right.legend(fontsize=9)
pyplot.show()

# %% [markdown]
# The two starts differ in both pictures, in how long a new head remembers and in what training makes of it. Here are
# the numbers.

# %%
for start, values in half_lives.items():
    low, middle, high = values.quantile(torch.tensor([0.0, 0.5, 1.0]))
    print(f"{starts[start][1]:28} half-life of a head: {low:.2g} to {high:.3g} tokens, median {middle:.2g}")
for start in starts:
    final = [run["accuracy"]["4"] for run in began if run["dt_bias"] == start]
    print(f"{starts[start][1]:28} after training, 4 pairs: " + ", ".join(f"{x:.0%}" for x in sorted(final)))

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
    print(f"{starts[start][1]:28} layer 0, g of five tokens:", found[:5, 0].numpy().round(3))

# %% [markdown]
# With $b = 1$ a head keeps next to nothing from one token to the next. What a pair wrote is gone before it is asked
# for. And what never reaches the loss gets no gradient that would make it last longer. So such a model learns to keep
# things slowly, if it learns it at all in this time. The original start gives each layer some heads that forget soon
# and some that remember long. The second kind still holds a pair when its question comes, before any training.
#
# These runs have only a few hundred steps, and longer training may repair the worse start. If you load trained weights,
# none of this concerns you. If you train a new model, it does.
#
# ## 7. A trained hybrid with less of either
#
# What does a trained hybrid do when it loses some of its memory? We take `tiny/`, this repository's trained model, with
# eight layers in an order that the next cell prints. We retrain nothing. We only take something away while it reads:
#
# - **attention**: all F layers see only the last $W$ tokens.
# - **state**: the states of all L layers are set to zero every $W$ tokens, so that a token finds between 0 and $W$
#   tokens in them.
#
# An intervention puts a model where training has never put it. If the model still answers, it did not need what we took
# away. If it fails, it *depends* on that. But perhaps another model could have learned to do without it. An
# intervention can't rule that out.

# %%
tiny = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float32)
tokenizer = Qwen3NextTokenizer.from_pretrained(root / "tiny")
KIND = tiny.config.layer_types
L_LAYERS = [i for i, kind in enumerate(KIND) if kind == "linear_attention"]
F_LAYERS = [i for i, kind in enumerate(KIND) if kind == "full_attention"]
print("tiny/:", "".join("F" if i in F_LAYERS else "L" for i in range(len(KIND))))


def limit_attention(model, W):
    """From now on, attention sees the last W tokens only; returns what takes this back"""

    def before(module, inputs):
        x, step, *rest = inputs  # x (B, T, D) holds the last T of step.slots tokens
        key = torch.arange(step.slots)
        query = key[-x.shape[1] :, None]
        step = copy.copy(step)
        step.mask = ((key <= query) & (key > query - W))[None, None]  # (1, 1, T, S)
        return (x, step, *rest)

    return [model.model.layers[i].self_attn.register_forward_pre_hook(before) for i in F_LAYERS]


@torch.no_grad()
def read_with_less(model, ids, attention=None, state=None, **options):
    """Logits (B, T, vocabulary) when attention sees `attention` tokens and states are cleared every `state` tokens"""
    hooks = limit_attention(model, attention) if attention else []
    cache, logits = model.make_cache(len(ids)), []
    for part in ids.split(state or ids.shape[1], dim=1):
        for i in L_LAYERS:
            cache.layers[i].state = None  # empty
        logits.append(model(part, past_key_values=cache, **options).logits)
    for hook in hooks:
        hook.remove()
    return torch.cat(logits, dim=1)


# %% [markdown]
# Are the cuts made where they should be? We check twice in float64. With $W$ as long as the text, nothing may change.
# With a smaller $W$, we compare attention with the softmax written out under a mask. And we compare the cleared state
# with another way to get it: *one* pass over the whole text in which the delta rule runs over blocks of $W$ tokens,
# each from an empty state.


# %%
def in_blocks(q, k, v, *, g, beta, state, W=16):
    """The delta rule over blocks of W tokens that know nothing of one another; T must be a multiple of W"""
    parts = [x.unflatten(1, (-1, W)).flatten(0, 1) for x in (q, k, v, g, beta)]  # (B * T / W, W, ...)
    out, state = chunk_gated_delta_rule(*parts[:3], g=parts[3], beta=parts[4])
    return out.unflatten(0, (len(q), -1)).flatten(1, 2), state.unflatten(0, (len(q), -1))[:, -1]


exact = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float64)
text = corpus.text_of(corpus.Corpus("held out", {"book": 1.0}, entries=5).document("less:0"))
ids = torch.tensor([tokenizer.encode(text)[:96]])
with torch.no_grad():
    whole = exact(ids).logits
    torch.testing.assert_close(read_with_less(exact, ids, 96, 96), whole, rtol=0, atol=1e-9)
    cleared = read_with_less(exact, ids, state=16)
    for i in L_LAYERS:
        exact.model.layers[i].linear_attn.chunked = in_blocks
    torch.testing.assert_close(exact(ids).logits, cleared, rtol=0, atol=1e-9)
    for i in L_LAYERS:
        del exact.model.layers[i].linear_attn.chunked  # back to the class's own
assert (cleared[:, :16] - whole[:, :16]).abs().max() < 1e-9 < 1e-4 < (cleared[:, 16:] - whole[:, 16:]).abs().max()

# %%
with recording(exact) as seen:
    read_with_less(exact, ids, attention=16)
distance = torch.arange(96)[:, None] - torch.arange(96)  # query, key
for i in F_LAYERS:
    q, k, v, out = (seen[f"model.layers.{i}.self_attn.{x}"] for x in ("q_rope", "k_rope", "v_proj.out", "attn_out"))
    r = q.shape[1] // k.shape[1]  # query heads that share a key head
    k, v = k.repeat_interleave(r, dim=1), v.view_as(k).repeat_interleave(r, dim=1)  # (T, heads, width)
    logits = torch.einsum("thd,shd->hts", q, k) * q.shape[-1] ** -0.5
    weights = logits.masked_fill((distance < 0) | (distance >= 16), -math.inf).softmax(-1)
    torch.testing.assert_close(torch.einsum("hts,shd->thd", weights, v), out, rtol=0, atol=1e-9)
print("the cuts are where they should be")

# %% [markdown]
# We use three tasks, all held out from training. **Phone books** have 16 entries, and then a dozen numbers are asked
# for, one at a time. **Accounts** report eight moves of two things, and then ask where they are. **Stories** come with
# four questions. Here is one of each:

# %%
SOURCES = {
    "phone books": corpus.Corpus("held out", {"book": 1.0}, entries=16, **{"single questions": 1.0}),
    "accounts": corpus.Corpus("held out", {"moves": 1.0}, moves=8, things=2),
    "stories": corpus.Corpus("held out", {"chat": 1.0}, **{"questions a story": 3}),
}
COUNT = {"phone books": 12, "accounts": 48, "stories": 24}
END, USER = tokenizer.encode("<|im_end|>")[0], tokenizer.encode("<|im_start|>user\n")
BREAKS = {i for i in range(tiny.config.vocab_size) if "\n\n" in tokenizer.decode([i])}  # they end in a blank line


def document(source, seed):
    """Token ids, and for each reply that has any the places of the words that answer"""
    ids, answers = [], []
    for unit in source.document(seed):
        for part, role in ((unit.marks, "template"), (unit.word, unit.role)):
            tokens = tokenizer.encode(part)
            answers += range(len(ids), len(ids) + len(tokens)) if role == "answer" else ()
            ids += tokens
    return ids, [list(reply) for _, reply in itertools.groupby(answers, key=lambda i: ids[:i].count(END))]


def documents(task):
    """As many as COUNT says, if the text and the first question stand in the first message and the second answers"""
    kept, number = [], 0
    while len(kept) < COUNT[task]:
        ids, replies = document(SOURCES[task], f"hybrid:{number}")
        number += 1
        if replies and ids[: replies[0][0]].count(END) == 1 and BREAKS.intersection(ids[: ids.index(END)]):
            kept.append((ids, replies))
    return kept


read = {task: documents(task) for task in SOURCES}
for task, rows in read.items():
    ids, replies = rows[0]
    print(f"--- {task}: {len(rows)} documents, {sum(len(r) for _, r in rows)} replies\n")
    print(tokenizer.decode(ids[: ids.index(END, replies[0][0])]), "\n")

# %% [markdown]
# When is a reply right? Each word that answers (the digits, the name, the place) must be the likeliest one, given
# everything before it. The corpus marks these words, and the model's card counts in the same way. We run documents in
# batches, padded on the right to one length. The padding changes nothing for the tokens before it.
#
# The picture shows what is left of each task as $W$ shrinks. Points are means over documents, bars are standard errors.
# Read each line from right to left, and compare the two panels.


# %%
def right_replies(rows, **less):
    """One share a document of replies that are right"""
    longest = max(len(ids) for ids, _ in rows)
    batch = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    best = read_with_less(tiny, batch, **less).argmax(-1).tolist()
    shares = []
    for b, (ids, replies) in enumerate(rows):
        found = [all(best[b][i - 1] == ids[i] for i in reply) for reply in replies]
        shares.append(sum(found) / len(found))
    return torch.tensor(shares)


WIDTHS = (16, 32, 64, 128, 256)
plain = {task: right_replies(rows) for task, rows in read.items()}
less = {
    (part, task, W): right_replies(rows, **{part: W})
    for part in ("attention", "state")
    for task, rows in read.items()
    for W in WIDTHS
}

# %%
TASK_COLORS = dict(zip(read, (figures.BLUE, figures.GREEN, figures.RED)))
titles = {"attention": "attention sees the last W tokens", "state": "states cleared every W tokens"}
for ax, part in zip(figures.axes(1, 2, width=4.6, height=3.2, sharey=True), titles):
    for (task, color), marker in zip(TASK_COLORS.items(), "os^"):
        rows = torch.stack([less[part, task, W] for W in WIDTHS] + [plain[task]])  # (widths, documents)
        error = rows.std(1) / rows.shape[1] ** 0.5
        ax.errorbar(range(len(rows)), rows.mean(1), error, fmt=marker + "-", color=color, capsize=3, label=task)
    ax.set_xticks(range(len(WIDTHS) + 1), [*WIDTHS, "all"])
    ax.set(title=titles[part], xlabel="W, tokens", ylim=(-0.03, 1.03))
    ax.title.set_fontsize(11)
    if part == "attention":
        ax.set_ylabel("share of replies right")
    else:
        ax.legend(fontsize=9, loc="lower right")
pyplot.show()

# %%
print("share of replies right, ± standard error over documents\n")
print(f"{'':24}" + "".join(f"{W:>12}" for W in (*WIDTHS, "all")))
for part in titles:
    for task in read:
        rows = [less[part, task, W] for W in WIDTHS] + [plain[task]]
        told = "".join(f"{x.mean():6.0%} ±{x.std() / len(x) ** 0.5:4.0%}" for x in rows)
        print(f"{part + ', ' + task:24}{told}")
for task in read:
    left = less["attention", task, 16].mean() / plain[task].mean()
    figures.expect(f"{task}: attention to 16 tokens leaves less than 75 % of what was right: {left:.0%}", left < 0.75)
left, kept = (less[part, "phone books", 16].mean() for part in titles)
figures.expect(f"of numbers it leaves less than 10 %, cleared states more: {left:.0%}, {kept:.0%}", left < 0.1 < kept)

# %% [markdown]
# What one training of `tiny/` showed; yours may differ:
#
# - **Attention fetches.** Phone books followed the attention window. A number was found if its entry was in sight, and
#   otherwise hardly ever. The states did not step in. Stories and accounts fell as well. (Accounts are short, so the
#   wider windows cut nothing.)
# - **States work at short range.** Even when the states were emptied every 16 tokens, which is two entries of a phone
#   book, most replies stayed right, and stories hardly noticed. With 128 tokens at a time, next to nothing was lost.
#
# LLLL has shown that states *can* carry facts far. When attention carries them, the states are not needed for that. But
# what a model can do without is one thing, and what it relies on when it has both is another. The next section ends
# with an experiment on the second.
#
# ## 8. One memory without the other
#
# A cache is all that the model has of what it has read: the keys and values of the F layers, and the states of the L
# layers. So we can let the model read a text, *move* only a part of its cache into a fresh one, and ask there. `mixed`
# takes the keys and values of one cache and the states of another. (The last three inputs of the convolution move with
# the state. The position is counted by the keys and values, because a state knows no positions.)


# %%
def mixed(attention, state):
    """A cache with the keys and values of the one and the states of the other"""
    cache, other = attention.clone(), state.clone()
    return replace(cache, layers=[(other if i in L_LAYERS else cache).layers[i] for i in range(len(KIND))])


@torch.no_grad()
def after(model, ids):
    """The cache after ids, a list"""
    cache = model.make_cache(1)
    if ids:
        model.model(torch.tensor([ids]), past_key_values=cache)
    return cache


@torch.no_grad()
def ask(model, cache, ids, **options):
    """Log-probabilities (T, vocabulary) of what follows each of ids, after a cache, which is kept as it is"""
    return model(torch.tensor([ids]), past_key_values=cache.clone(), **options).logits[0].log_softmax(-1)


def text_and_question(ids, replies):
    """A document's text; its first question with the reply; where in this the words that answer stand"""
    cut = max(i for i in range(ids.index(END)) if ids[i] in BREAKS) + 1
    return ids[:cut], ids[cut : replies[0][-1] + 1], [i - cut for i in replies[0]]


# %% [markdown]
# We check this in float64, too. With both memories moved, the model must answer as if nothing had happened. With
# neither, it must answer as if it had read nothing.

# %%
told, question, _ = text_and_question(*read["stories"][0])
full, empty = after(exact, told), after(exact, [])
with torch.no_grad():
    whole, alone = (exact(torch.tensor([x])).logits[0].log_softmax(-1) for x in (told + question, question))
torch.testing.assert_close(ask(exact, mixed(full, full), question), whole[len(told) :], rtol=0, atol=1e-9)
torch.testing.assert_close(ask(exact, mixed(empty, empty), question), alone, rtol=0, atol=1e-9)
assert (ask(exact, mixed(empty, full), question) - alone).abs().max() > 1e-4  # states alone have an effect

# %% [markdown]
# We measure the share of right replies, and also the bits that the answer costs: $-\log_2 p$, summed over its words.
# The bits show what a memory contributes even when it is not enough for a right reply. We add one control: the right
# keys and values with the states of *another* document. It shows whether the contents of the states count.
#
# In the picture, compare "keys and values" with "both", and "states" with "neither". On the right, shorter bars are
# better.

# %%
ARMS = ("both", "keys and values", "states", "neither", "keys and values,\nanother's states")
moved = {}  # task -> (documents, arms, right or bits)
for task, rows in read.items():
    parts = [text_and_question(*row) for row in rows]
    caches, rows = [after(tiny, told) for told, _, _ in parts], []
    for number, ((_, question, reply), cache) in enumerate(zip(parts, caches)):
        fresh, other = after(tiny, []), caches[number - 1]
        pairs = ((cache, cache), (cache, fresh), (fresh, cache), (fresh, fresh), (cache, other))
        logs = [ask(tiny, mixed(*pair), question) for pair in pairs]
        right = [all(log[i - 1].argmax() == question[i] for i in reply) for log in logs]
        bits = [-sum(log[i - 1, question[i]].item() for i in reply) / math.log(2) for log in logs]
        rows.append(list(zip(right, bits)))
    moved[task] = torch.tensor(rows)

# %%
for ax, measure in zip(figures.axes(1, 2, width=5, height=3.6, sharey=True), (0, 1)):
    for place, (task, color) in enumerate(TASK_COLORS.items()):
        values = moved[task][:, :, measure]  # (documents, arms)
        error = values.std(0) / len(values) ** 0.5
        at = torch.arange(len(ARMS)) + 0.27 * (place - 1)
        ax.barh(at, values.mean(0), 0.25, xerr=error, color=color, label=task, error_kw={"linewidth": 1})
    ax.set(xlabel=("share of replies right", "bits an answer")[measure])
ax.figure.axes[0].set_yticks(range(len(ARMS)), ARMS)
ax.figure.axes[0].invert_yaxis()
ax.legend(fontsize=9, loc="upper right")
pyplot.show()

# %%
print("moved into the fresh cache: share of replies right ± standard error, and bits an answer\n")
for task, x in moved.items():
    print(f"{task} ({len(x)} documents)")
    for arm, name in enumerate(ARMS):
        right, bits = x[:, arm].T
        print(f"   {name.replace(chr(10), ' '):34}{right.mean():5.0%} ±{right.std() / len(x) ** 0.5:4.0%}", end="")
        print(f"{bits.mean():8.2f} ±{bits.std() / len(x) ** 0.5:5.2f} bits")
for task, x in moved.items():
    share, bits = x.mean(0).T  # (arms,) each
    figures.expect(f"{task}: keys and values alone answer more than states alone", share[1] > share[2])
    figures.expect(f"{task}: states alone make the answer cheaper than nothing does", bits[2] < bits[3])

# %% [markdown]
# What one training of `tiny/` showed; yours may differ:
#
# - **Keys and values alone** answered phone books and stories as if nothing were missing. Accounts got worse.
# - **States alone** answered hardly anything beyond what "neither" did. They made the answer a few bits cheaper, most
#   in accounts, but that was not enough.
# - **Another document's states** were no better than none. So for accounts, it was the contents that counted.
#
# Compare the phone books with section 7. There, we emptied the states *while the model read the book*. Here, we took
# them away *after* it had read it. If emptying them costs many numbers and removing them hardly any, the states have
# done their work during reading. The keys and values of an F layer are computed from what the L layers below it have
# put together: digits with the name they belong to. That is the division of labour that section 3 counted on. L layers
# join neighbours, F layers look up, and the result of the joining is in the keys and values.
#
# ### When they contradict each other
#
# Now the sharpest test: let the two memories disagree. From a document we make a second version in which two answers
# have changed places throughout the text. In a phone book, these are two numbers. In an account, they are the name of
# the one who has the thing and the name of another character. The model reads both versions. Then we ask the question
# with the keys and values of one version and the states of the other, both ways. Each memory is complete, and they
# contradict each other. Which of the two answers does the model find more likely?


# %%
def exchanged(text, one, other):
    """The text with two words in each other's place"""
    places = {one: other, other: one}
    return re.sub(r"\w+", lambda word: places.get(word[0], word[0]), text)


def two_versions(task, ids, replies):
    """The caches of both, the question, and the answers that are right by the first and by the second; or None"""
    told, question, reply = text_and_question(ids, replies)
    text, right = tokenizer.decode(told), tokenizer.decode(question[reply[0] :])
    pattern = r": (\d+)" if task == "phone books" else r"user\n(\w+), (\w+) and (\w+) are friends"
    choices = re.findall(pattern, text)
    choices = choices if task == "phone books" else choices[0]
    if right.strip() not in choices:  # nobody has the thing
        return None
    other = next(x for x in choices if x != right.strip())
    second = tokenizer.encode(exchanged(text, right.strip(), other))
    answers = question[reply[0] :], tokenizer.encode(right.replace(right.strip(), other))  # with the space before
    return after(tiny, told), after(tiny, second), question[: reply[0]], answers


def prefers_first(cache, question, answers):
    """Whether the first answer is the likelier one"""
    likely = []
    for answer in answers:
        logs = ask(tiny, cache, question + answer)[len(question) - 1 :]
        likely.append(sum(logs[i, word] for i, word in enumerate(answer)))
    return (likely[0] > likely[1]).item()


# %%
disputed = {}  # task -> (documents, arms) whether the first version's answer is preferred
for task in ("phone books", "accounts"):
    versions = [found for found in (two_versions(task, *row) for row in read[task]) if found]
    rows = []
    for first, second, question, answers in versions:
        pairs = ((first, first), (second, second), (first, second), (second, first))  # keys and values, states
        rows.append([prefers_first(mixed(*pair), question, answers) for pair in pairs])
    disputed[task] = torch.tensor(rows)
believed = {}  # task -> share that goes with the keys and values, one for each document
for task, x in disputed.items():
    believed[task] = (x[:, 2].float() + 1 - x[:, 3].float()) / 2
    agreed = (x[:, 0].float() + 1 - x[:, 1].float()) / 2
    error = believed[task].std() / len(x) ** 0.5
    print(f"{task} ({len(x)}): both memories of one version: its answer is preferred in {agreed.mean():.0%}")
    print(
        f"   contradicting: the keys and values' answer {believed[task].mean():.0%} ±{error:.0%}, the states' the rest"
    )
figures.expect("a number is taken from keys and values: in more than 80 %", believed["phone books"].mean() > 0.8)
figures.expect("who has a thing is taken from the states: in more than 55 %", believed["accounts"].mean() < 0.45)

# %% [markdown]
# A model that trusted only one of its memories would side with that one each time. One training of `tiny/` did not.
# When it was asked for a **number**, it went with its keys and values: a fact that is written in one place is looked up
# there. When it was asked **who has the thing now**, it mostly went with its states. That is surprising, because in the
# test above states alone answered nothing, while keys and values alone answered a good part. Check above what your
# model does.
#
# Read this with care, because the model does not read its two memories independently. What attention looks for depends
# on what the L layers return, and both names are among its keys. So this shows which memory decides, and not that a
# fact is kept there alone. A likely story is that the states choose the person and attention supplies the name. This is
# one small model and two tasks. Still, the result is what the word hybrid promises: two memories, each used for what it
# is good at.
#
# ## 9. Further than it was trained
#
# What happens to the two memories in a text longer than any in training? `tiny/` was trained on rows of 512 tokens. Its
# card reports phone books with stories between the book and the last question, up to a given total length:

# %%
card = (root / "tiny" / "README.md").read_text(encoding="utf-8")
print(card.split("<!-- far -->")[1].split("<!-- /far -->")[0].strip())

# %% [markdown]
# The states have to carry a few numbers through thousands of tokens about other things. They are the natural suspects.
# But we can separate the two memories. We take books of eight entries at three lengths, and ask with
#
# - **all**: both memories as they are after the book and the stories.
# - **states of the book**: all keys and values, but the states as they were *before* the stories.
# - **keys of the book**: the states as they are after the stories, but only the keys and values of the book. The
#   question keeps its true distance from the book, by `position_ids`.
#
# In the picture, look at the lengths beyond 512. If numbers get lost there, which of the two exchanges brings them
# back?

# %%
far = corpus.Corpus("held out", {"book": 1.0}, entries=8, **{"single questions": 1.0})
chats = corpus.Corpus("held out", {"chat": 1.0})
LENGTHS, BOOKS = (512, 1024, 2048), 16


def book_and_stories(number):
    """Ids of a book with all questions but the last; the last, as above; ids of enough stories"""
    ids, replies = document(far, f"far:{number}")
    cut = max(i for i in range(len(ids)) if ids[i : i + len(USER)] == USER)
    stories, story = [], 0
    while len(stories) < max(LENGTHS):
        stories += document(chats, f"far:{number}:{story}")[0][:-1] + tokenizer.encode("\n")
        story += 1
    return ids[:cut], ids[cut : replies[-1][-1] + 1], [i - cut for i in replies[-1]], stories


book, question, reply, stories = book_and_stories(0)
print(tokenizer.decode(book[-40:]), "...", tokenizer.decode(question), sep="\n")


# %%
def is_right(cache, question, reply, gap=0):
    """Whether the reply is, when the question follows `gap` positions after the cache"""
    position = cache.seq_len[:, None] + gap + torch.arange(len(question))
    log = ask(tiny, cache, question, position_ids=position)
    return all(log[i - 1].argmax() == question[i] for i in reply)


FAR_ARMS = ("all", "states of the book", "keys of the book")
found = torch.zeros(BOOKS, len(LENGTHS), len(FAR_ARMS))
gaps = (0, 512, 1024, 2048, 3072)
by_gap = torch.zeros(BOOKS, len(gaps))  # no text in between, only a gap in the positions
for number in range(BOOKS):
    book, question, reply, stories = book_and_stories(number)
    near = after(tiny, book)
    by_gap[number] = torch.tensor([is_right(near, question, reply, gap) for gap in gaps]).float()
    for column, length in enumerate(LENGTHS):
        room = length - len(book) - len(question)
        full = after(tiny, book + stories[:room])
        arms = ((full, 0), (mixed(full, near), 0), (mixed(near, full), room))
        found[number, column] = torch.tensor([is_right(cache, question, reply, gap) for cache, gap in arms]).float()

# %%
ax = figures.axes(width=5.6, height=3.0)
for arm, (name, color) in enumerate(zip(FAR_ARMS, (figures.BLACK, figures.ORANGE, figures.GREEN))):
    x = found[:, :, arm]
    error = x.std(0) / BOOKS**0.5
    ax.errorbar(torch.arange(3) + 0.05 * (arm - 1), x.mean(0), error, fmt="o-", color=color, capsize=3, label=name)
ax.set_xticks(range(3), LENGTHS)
ax.set(xlabel="tokens in all, book to question", ylabel="share of numbers right", ylim=(-0.03, 1.06))
ax.legend(fontsize=9, loc="lower left")
pyplot.show()

# %%
print(f"share of numbers right, {BOOKS} books of eight entries\n")
print(f"{'tokens':24}" + "".join(f"{n:12}" for n in LENGTHS))
for arm, name in enumerate(FAR_ARMS):
    x = found[:, :, arm]
    print(f"{name:24}" + "".join(f"{a:7.0%} ±{s:3.0%}" for a, s in zip(x.mean(0), x.std(0) / BOOKS**0.5)))
print(f"\n{'positions left empty':24}" + "".join(f"{n:7}" for n in gaps))
print(f"{'':24}" + "".join(f"{x:7.0%}" for x in by_gap.mean(0)))
mean = found.mean(0)[1:].mean(0)  # beyond the training length
print()
figures.expect(f"beyond the training length fewer than 85 % are found with all: {mean[0]:.0%}", mean[0] < 0.85)
figures.expect(f"with the keys of the book alone at least 10 points more: {mean[2]:.0%}", mean[2] > mean[0] + 0.1)

# %% [markdown]
# In one training of `tiny/` the states were not to blame. Check whether that holds for yours. With only the keys and
# values of the book, at their true distance, the model found the numbers nearly as well as in a short text, although
# its states had been through all of the stories. It was **attention** that failed beyond the training length. The book
# drowned among thousands of keys that the model was never trained to ignore. Fresh states helped somewhat, because what
# the F layers ask for is computed from what the L layers return.
#
# The distance itself was not to blame either. In the last two lines of the table nothing lies between book and
# question. Only the positions are further apart, and the numbers were found. (A quarter of each head is rotated; the
# rest knows no positions.)
#
# So in long texts, such a hybrid fails exactly where its strength is. Nothing in the layer gives a longer reach for
# free. It takes training on long texts.
#
# ## The two kinds of layer compared
#
# | | Gated DeltaNet | attention |
# |---|---|---|
# | keeps of $n$ tokens | states of $H K V$ numbers, whatever $n$ | $2 n H_{kv} d$ numbers |
# | pairs it can return | at most about as many as its keys have dimensions | all |
# | used in `tiny/` for | joining neighbours; what changes | looking up what is written in one place |
# | what goes wrong | pairs disturb one another | the cost; too much other text, beyond the lengths of training |
#
# One attention layer in four is enough for recall, and it keeps the cache at a quarter of that of attention everywhere,
# plus a constant. That is the argument for the hybrid, as far as models this small can make it. They are too small to
# show what other strengths a hybrid has, or which share of attention is best. At 8 billion parameters, with Mamba-2
# instead of Gated DeltaNet, [arXiv 2406.07887](https://arxiv.org/abs/2406.07887) reports the same picture: without
# attention a model falls short at looking up phone numbers and at copying, and with a few attention layers it does not.
#
# ## Exercises
#
# **1.** In the released 80B, 12 of 48 layers are attention. At how many tokens do keys and values start to take more
# room than the states? What would be kept of 262,144 tokens if all layers were attention, and what if none were? (Keys,
# values and the convolution's window are in bfloat16, states in float32.)
#
# <details><summary>Solution</summary>
#
# `expected_bytes` needs only the config. For zero tokens it gives what the L layers keep.
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
# Which one returns most pairs? Guess for 16 and 32 pairs, then measure with `untrained_memory`, two heads. Why is the
# best one not the one with the most rows?
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
# **3.** Section 8 shows how often the states decide in accounts. Does that take all of them together, or does one
# suffice? Let the states of *one* L layer contradict everything else, and see how often the answer changes. (`versions`
# still holds the accounts from section 8.)
#
# <details><summary>Solution</summary>
#
# A cache is a list of layers. We put one layer of the second version's cache into a copy of the first's.
#
# ```python
# changed = {}
# for i in L_LAYERS:
#     votes = []
#     for first, second, question, answers in versions:
#         cache = first.clone()
#         cache.layers[i] = second.clone().layers[i]
#         votes.append(prefers_first(cache, question, answers))
#     changed[i] = 1 - sum(votes) / len(votes)
#     print(f"layer {i} contradicts: the second version's answer is preferred in {changed[i]:.0%}")
# none = 1 - disputed["accounts"][:, 0].float().mean().item()
# together = 1 - disputed["accounts"][:, 2].float().mean().item()
# print(f"none contradicts: {none:.0%}; all of them: {together:.0%}")
# figures.expect("no layer alone turns as many answers as all of them", max(changed.values()) < together)
# ```
#
# If no single layer turns the answer as often as all together do, the fact of who has what is spread over several
# layers.
#
# </details>
#
# ## Three sentences to remember
#
# 1. A memory of fixed size returns at most about as many pairs as its keys have dimensions, while attention returns
#    them all and pays for every token.
# 2. One attention layer in four was enough for recall in these experiments, with a quarter of the cache that grows with
#    the text.
# 3. An intervention shows what a trained model depends on, not what another model could have learned to do without.
#
# Next: [6_mixture_of_experts.ipynb](6_mixture_of_experts.ipynb) turns to the other half of every layer, the MLP.
