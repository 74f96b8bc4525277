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
# # 1. A tour of Qwen3-Next
#
# Where are the 80 billion parameters of Qwen3-Next, and what does one token cost? The answers decide how much memory
# the model needs and how fast it can run. A token uses only about three billion of the parameters, and in most layers a
# memory of constant size replaces attention.
#
# After this notebook you know
#
# 1. the parts of the model and their order,
# 2. where the parameters are, and which of them a token uses,
# 3. what each layer of a small trained Qwen3-Next adds to the answer to one prompt,
# 4. what a token costs in memory, bytes read and arithmetic as the context grows, compared with a dense transformer.
#
# You need to know PyTorch and the attention of a transformer. In this notebook, the parts of the model are boxes with a
# size and a cost. The later notebooks open the boxes. All code comes from this repository's `qwen3_next.py`. You need
# no GPU and no download. For one lesson, take the first three sections, and from the fourth the parts on memory and on
# bytes. The parts on arithmetic and on the clock are homework.

# %%
from start import root

# %%
import json
import random

import course
import figures
import torch
from pictures import tour as pictures
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qwen3_next import Qwen3NextConfig, Qwen3NextForCausalLM, Qwen3NextTokenizer
from verify.trace import recording

figures.setup()

# %% [markdown]
# ## The model in one picture
#
# How large is each part? The checkpoint's `config.json` tells us. Below are the fields of the released
# Qwen3-Next-80B-A3B that set the shapes. In `qwen3_next.py`, comments next to the fields of `Qwen3NextConfig` give the
# same numbers. Only the last line is ours: the checkpoint also has a multi-token-prediction (MTP) layer, which the
# released file does not mention. That layer drafts tokens, and the model runs without it.

# %%
config = Qwen3NextConfig(
    vocab_size=151936,
    hidden_size=2048,
    num_hidden_layers=48,
    rope_theta=10_000_000,
    full_attention_interval=4,
    num_attention_heads=16,
    num_key_value_heads=2,
    head_dim=256,
    linear_num_key_heads=16,
    linear_num_value_heads=32,
    linear_key_head_dim=128,
    linear_value_head_dim=128,
    linear_conv_kernel_dim=4,
    num_experts=512,
    num_experts_per_tok=10,
    moe_intermediate_size=512,
    shared_expert_intermediate_size=512,
    mtp_num_hidden_layers=1,
)

# %% [markdown]
# With `full_attention_interval=4`, layer $i$ is attention if $i + 1$ is a multiple of 4. So 12 of the 48 layers are
# **gated attention**: softmax attention whose output is scaled by a sigmoid. The other 36 are **Gated DeltaNet**. In a
# Gated DeltaNet layer, each head keeps one matrix, its *state*. Every token removes a little from the state and adds a
# little to it.
#
# Each layer has two halves of the same form. Let $x$ be the *residual stream*, a vector of `hidden_size` numbers per
# token. Then each layer computes
#
# $$x \leftarrow x + \mathrm{mixer}(\mathrm{norm}(x)), \qquad x \leftarrow x + \mathrm{MoE}(\mathrm{norm}(x)).$$
#
# The mixer is Gated DeltaNet or attention. It moves information between tokens. The MoE, a *mixture of experts*, works
# on each token separately. For each token, a *router* chooses 10 of 512 small MLPs, the *experts*. One more MLP, the
# *shared expert*, sees every token.
#
# The next cell draws the model from the config: at the top all layers in a row, in the middle the inside of one layer,
# and at the bottom the legend. Follow the black line from left to right.

# %%
pictures.model(config)

# %% [markdown]
# That line is the residual stream. Every layer adds to it, and nothing else connects the layers.

# %% [markdown]
# ## Where the 80 billion parameters are
#
# To count the parameters, we build the whole model on PyTorch's *meta* device. Tensors there have a shape but no
# numbers, so 80 billion parameters take no memory. Names and shapes are those of the checkpoint.

# %%
with torch.device("meta"):
    big = Qwen3NextForCausalLM(config)

total = sum(p.numel() for p in big.parameters())
without_mtp = sum(p.numel() for name, p in big.named_parameters() if not name.startswith("mtp."))
print(f"{total:>15,} parameters\n{without_mtp:>15,} without the MTP layer")
released = (total, len(dict(big.named_parameters()))) == (81_324_862_720, 75_944)
course.finding("as many as the released checkpoint has in its 75,944 tensors: 81,324,862,720", released)

# %% [markdown]
# So the "80B" of the name is 79.7 billion, without MTP. Next, we assign each parameter to a part by its name. The order
# of the list matters. The MTP layer has attention and experts of its own, and all of their parameters must count as
# MTP.

# %%
PARTS = {  # what a parameter's name contains -> the part it belongs to; the first that fits counts
    "mtp.": "MTP",
    "norm": "norms",
    "embed_tokens": "embedding",
    "lm_head": "lm_head",
    "linear_attn": "Gated DeltaNet",
    "self_attn": "gated attention",
    ".experts.": "routed experts",
    "shared_expert": "shared experts",
    "mlp.gate.": "routers",
}
stored = dict.fromkeys(PARTS.values(), 0)
for name, p in big.named_parameters():
    stored[next(part for mark, part in PARTS.items() if mark in name)] += p.numel()
assert sum(stored.values()) == total

# %% [markdown]
# How many of these parameters does one token use? It uses $10 / 512$ of the routed experts in each layer, and one row
# of the embedding, 2,048 numbers. It uses nothing of MTP, as long as the model does not draft. It uses everything else
# in full.
#
# We print both counts and then draw them: the stored parameters on the left, the used ones on the right. Compare the
# order of the parts on the two sides.

# %%
share = dict.fromkeys(stored, 1.0)
share["routed experts"] = config.num_experts_per_tok / config.num_experts
share["embedding"] = 1 / config.vocab_size
share["MTP"] = 0.0
used = {part: round(stored[part] * share[part]) for part in stored}

print(f"{'':16}{'stored':>16}{'used by a token':>18}")
for part in sorted(stored, key=stored.get, reverse=True):
    print(f"{part:16}{stored[part]:16,}{used[part]:18,}")
print(f"{'all':16}{total:16,}{sum(used.values()):18,}")

# %%
pictures.parameters(stored, used)

# %% [markdown]
# On the left, nearly all parameters belong to the routed experts. On the right, where the scale is fifty times finer,
# the routed experts make up less than half, and the Gated DeltaNet layers come second. The embedding is a look-up of
# one row, so its bar disappears. `lm_head` has the same size, but every token multiplies all of it.
#
# The name also says "A3B", three billion active parameters. Does that include `lm_head`? We print the sum with and
# without it.

# %%
active = sum(used.values())
active_without_head = active - used["lm_head"]
print(f"with lm_head    {active:,}\nwithout lm_head {active_without_head:,}")
print(f"of the stored parameters, MTP left out: {active / without_mtp:.1%}")
course.finding(
    "3.5 billion with lm_head and 3.2 without", 3.5e9 < active < 3.6e9 and 3.2e9 < active_without_head < 3.3e9
)
most = stored["routed experts"] / total > 0.9 and used["routed experts"] / active < 0.5
course.finding("routed experts are more than 90 % of what is stored, and less than half of what is used", most)

# %% [markdown]
# ## One prompt, layer by layer
#
# So far we have only counted. What does each layer do to a text? To see that, we need trained weights. The repository
# has a small trained Qwen3-Next in `tiny/`, with every part of the large model. It has learnt to tell stories and to
# answer questions, for example about phone books. Like the large model, it has three Gated DeltaNet layers for each
# attention layer. Its config gives the order:

# %%
tiny = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float32)
tokenizer = Qwen3NextTokenizer.from_pretrained(root / "tiny")
kinds = [figures.LABEL[kind] for kind in tiny.config.layer_types]
print(f"{sum(p.numel() for p in tiny.parameters()):,} parameters", *enumerate(kinds), sep="\n")
assert kinds.count("Gated DeltaNet") == 3 * kinds.count("gated attention")  # whatever you changed above: a file

# %% [markdown]
# The prompt is a phone book and a question, and we append the right answer. A causal model predicts every token from
# the tokens before it. So one forward pass shows how the model predicts each token of the answer.

# %%
NAMES = "Tom Anna Ben Nora Sam Lily Max Clara".split()


def phone_book(seed: int) -> tuple[str, str]:
    """A phone book of eight entries with a question, and the answer."""
    draw = random.Random(seed)
    book = {name: f"{draw.randrange(10**4):04}" for name in draw.sample(NAMES, len(NAMES))}
    entries, name = "\n".join(f"- {name}: {number}" for name, number in book.items()), draw.choice(NAMES)
    question = f"Phone book:\n{entries}\n\nWhat is the number of {name}?"
    return tokenizer.apply_chat_template([{"role": "user", "content": question}]), f"- {name}: {book[name]}"


prompt, answer = phone_book(seed=0)
ids = tokenizer(prompt + answer, return_tensors="pt").input_ids  # (1, T)
print(prompt + answer)

# %% [markdown]
# `recording` keeps every intermediate value that the model computes. Each value has a key: either the checkpoint's name
# of a module followed by `.out`, or the name of a local variable in `qwen3_next.py`. For a single sequence, the
# recorded values have no batch axis.

# %%
with torch.no_grad(), recording(tiny) as trace:
    logits = tiny(ids).logits[0]  # (T, vocabulary)
print(len(trace), "values, among them")
attention = tiny.config.layer_types.index("full_attention")  # the first such layer
for key in ("model.embed_tokens.out", f"model.layers.{attention}.self_attn.o_proj.out", "model.layers.0.mlp.out"):
    print(f"    {key:40}{tuple(trace[key].shape)}")

# %% [markdown]
# ### The stream is a sum
#
# Every layer only adds to the stream. So after layer $l$, the stream is the embedding plus everything that the mixers
# and MoEs have added so far:
#
# $$x_l = x_{\mathrm{emb}} + \sum_{i \le l} (\mathrm{mixer}_i + \mathrm{MoE}_i).$$
#
# A mixer ends with a projection, `o_proj` or `out_proj`, and adds the output of that projection. After every layer, we
# compare our sum with the layer's own output. We allow for the rounding of float32, because we add the same numbers in
# a different order.

# %%
stream, mixers, moes = [trace["model.embed_tokens.out"]], [], []  # each (T, D)
for i, kind in enumerate(tiny.config.layer_types):
    last = "self_attn.o_proj" if kind == "full_attention" else "linear_attn.out_proj"
    mixers.append(trace[f"model.layers.{i}.{last}.out"])
    moes.append(trace[f"model.layers.{i}.mlp.out"])
    stream.append(trace[f"model.layers.{i}.out"])
    torch.testing.assert_close(stream[0] + sum(mixers) + sum(moes), stream[-1], rtol=1e-4, atol=1e-4)
    assert (stream[-1] - stream[-2]).norm() > 1e-3 * stream[-2].norm()  # every layer adds something

# %% [markdown]
# How much does each layer add? The picture shows the length of each update, divided by the length of the stream that it
# is added to. Each mark is the median over the tokens of the prompt, and the scale is logarithmic. Look for marks above
# the grey line at 1, and for marks near the bottom.

# %%
middle = [x + y for x, y in zip(stream, mixers)]  # the stream between a layer's two halves
ratio = {
    "mixer": [(y.norm(dim=-1) / x.norm(dim=-1)).median().item() for x, y in zip(stream, mixers)],
    "MoE": [(y.norm(dim=-1) / x.norm(dim=-1)).median().item() for x, y in zip(middle, moes)],
}
pictures.updates(tiny.config.layer_types, ratio)

# %% [markdown]
# A mark above the line is an update that is longer than the stream it is added to. Such a layer writes the stream
# rather than correcting it. A mark near the bottom is an update that hardly changes the stream. (A short update can
# still matter: it may point in a direction that nothing else uses.)

# %% [markdown]
# ### What each layer would say next
#
# The model ends with a norm and `lm_head`, which turn the last stream into logits. What if we applied them earlier? The
# *logit lens* (nostalgebraist, "interpreting GPT: the logit lens", 2020) applies both to the stream after an earlier
# layer:
#
# $$p_l = \mathrm{softmax}(\mathrm{lm\_head}(\mathrm{norm}(x_l))).$$
#
# The result is what the model would predict if the remaining layers added nothing. After the last layer, it must be the
# model's own prediction. We check that.


# %%
@torch.no_grad()
def lens(x: torch.Tensor) -> torch.Tensor:
    """A stream (T, D) -> probabilities of the next token (T, vocabulary)."""
    return tiny.lm_head(tiny.model.norm(x)).softmax(-1)


torch.testing.assert_close(lens(stream[-1]), logits.softmax(-1), rtol=1e-4, atol=1e-5)
assert (lens(stream[1]) - lens(stream[-1])).abs().max() > 1e-3  # and an earlier layer predicts something else

# %% [markdown]
# The next picture is a grid. Each column is a position near the end of the text, labelled with the token that the model
# has just read. Each row is a layer. A cell shows the most likely next token, and its colour is the probability of that
# token. A red frame means that this token really comes next. Look at the four columns that predict the digits. In which
# row does the right number appear?


# %%
def shown(token: int) -> str:
    """A token as a short label: visible blanks and line breaks, special tokens without their brackets."""
    return tokenizer.decode(token).replace(" ", "␣").replace("\n", "↵").replace("<|", "").replace("|>", "")[:9]


first = ids.shape[1] - len(tokenizer.encode(answer)) - 3  # three tokens before the answer
columns = range(first, ids.shape[1])
best = [lens(x)[first:].max(-1) for x in stream]  # of each row: probabilities and tokens, (columns,) each
comes = [
    [ids[0, first + x + 1 : first + x + 2].tolist() == [token] for x, token in enumerate(row.indices.tolist())]
    for row in best
]
labels = [[shown(token) for token in row.indices.tolist()] for row in best]
read = [shown(ids[0, t].item()) for t in columns]
rows = ["embedding", *(f"{i} {kind}" for i, kind in enumerate(kinds))]
pictures.lens_grid([row.values.tolist() for row in best], labels, comes, read, rows)

# %% [markdown]
# - The row "embedding" mostly repeats the token that was read. `tiny/` uses one matrix for embedding and `lm_head`, so
#   a token's own row of that matrix fits best.
# - The digits have to be looked up in the book. They are wrong in the first rows, and right once a layer has looked
#   them up.
# - The blank after the colon can be predicted without the book: the tokens just before it are enough.
#
# One prompt can mislead. So we repeat the measurement for twenty random books and follow the probability of the right
# token through the layers. The picture has one line for the four digits and one for the blank before them. The bands
# run from the lower to the upper quartile of the books. Compare how the two lines rise.


# %%
def right_by_layer(seed: int) -> torch.Tensor:
    """Probability of the right token, (layers + 1, 5): for the blank of the answer and its four digits."""
    ids = tokenizer("".join(phone_book(seed)), return_tensors="pt").input_ids
    with torch.no_grad(), recording(tiny) as trace:
        tiny(ids)
    keys = ["model.embed_tokens.out", *(f"model.layers.{i}.out" for i in range(len(kinds)))]
    return torch.stack([lens(trace[key])[range(-6, -1), ids[0, -5:]] for key in keys])


assert [tokenizer.decode(t) for t in ids[0, -5:].tolist()] == [" ", *answer[-4:]]  # five tokens, as we assume
found = torch.stack([right_by_layer(seed) for seed in range(20)])  # (books, layers + 1, 5)

# %%
pictures.right_by_layer(found, tiny.config.layer_types)

digits = found[..., 1:].mean(dim=(0, 2))  # (layers + 1,)
rise = (digits[1:] - digits[:-1]).argmax().item()
print(f"digits: {digits[0]:.0%} after the embedding, {digits[-1]:.0%} after the last layer")
print(f"the largest step up is layer {rise}, {kinds[rise]}: {digits[rise]:.0%} to {digits[rise + 1]:.0%}")
found_it = digits[0] < 0.2 and digits[-1] > 0.7
figures.expect("it finds what it can't guess, from below 20 % after the embedding to above 70 % at last", found_it)

# %% [markdown]
# The printed lines name the layer with the largest step for the digits, which have to be looked up. An attention layer
# can take such a step, because it still has every earlier token and can look at any one of them. A Gated DeltaNet layer
# has only what its state has kept. The blank follows from nearby tokens. Even so, in one training of `tiny/`, it became
# readable only one layer after the digits. A lens shows where an answer becomes *readable*, not where it is made:
# earlier layers may have prepared it in a form that `lm_head` can't read. Exercise 3 asks the sharper question, which
# layers the answer depends on.

# %% [markdown]
# ## What a token costs
#
# We compare Qwen3-Next-80B-A3B with Qwen3-32B, a dense transformer of the same family. In Qwen3-32B, every layer is
# attention, and one MLP takes the place of the experts. The sizes come from its config.json. We build it from our own
# classes, in which attention has an output gate. Qwen3-32B has no such gate, so we subtract the gate's parameters.

# %%
dense = Qwen3NextConfig(
    vocab_size=151936,
    hidden_size=5120,
    num_hidden_layers=64,
    full_attention_interval=1,  # every layer is attention
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    rope_theta=1_000_000,
    num_experts=0,  # every MLP is dense
    intermediate_size=25600,
)
with torch.device("meta"):
    stored_dense = sum(p.numel() for p in Qwen3NextForCausalLM(dense).parameters())
stored_dense -= dense.num_hidden_layers * dense.hidden_size * dense.num_attention_heads * dense.head_dim  # the gate
used_dense = stored_dense - dense.vocab_size * dense.hidden_size  # all but the embedding
print(f"Qwen3-32B: {stored_dense:,} parameters, {used_dense:,} used by a token")
assert round(stored_dense / 1e9, 1) == 32.8  # its model card's figure

# %% [markdown]
# ### Memory: the cache
#
# To continue a text, a layer has to keep something about the earlier tokens. How much is that? An attention layer keeps
# a key and a value of each token, in bfloat16 (2 bytes a number). With $H_{kv}$ key and value heads of $d$ numbers, a
# context of $n$ tokens takes
#
# $$\mathrm{bytes}_{\mathrm{attention}}(n) = 2 \cdot H_{kv} \cdot d \cdot 2 \cdot n .$$
#
# A Gated DeltaNet layer keeps two things. One is a state of $K \times V$ numbers for each of its $H$ heads, in float32
# (4 bytes). The other is the last three inputs of its convolution over 4 tokens, for all channels, in bfloat16. Neither
# depends on the length of the context:
#
# $$\mathrm{bytes}_{\mathrm{DeltaNet}} = H \cdot K \cdot V \cdot 4 + 3 \cdot \mathrm{channels} \cdot 2 .$$


# %%
def cache_bytes(c: Qwen3NextConfig, n: int) -> dict[str, int]:
    """Bytes that a model in bfloat16 keeps of n tokens: what grows, and what does not."""
    attention = c.layer_types.count("full_attention")
    growing = attention * 2 * c.num_key_value_heads * c.head_dim * 2 * n
    if attention == c.num_hidden_layers:
        return {"growing": growing, "constant": 0}
    state = c.linear_num_value_heads * c.linear_key_head_dim * c.linear_value_head_dim * 4
    channels = 2 * c.linear_num_key_heads * c.linear_key_head_dim + c.linear_num_value_heads * c.linear_value_head_dim
    constant = (c.num_hidden_layers - attention) * (state + (c.linear_conv_kernel_dim - 1) * channels * 2)
    return {"growing": growing, "constant": constant}


# %% [markdown]
# Does the code really keep this much? We count the bytes in `tiny/`. It has fewer key heads than query heads, and fewer
# key heads than states, so a wrong factor would show. The buffers of attention have spare room for later tokens, so we
# count only the slots in use.

# %%
small = Qwen3NextForCausalLM.from_pretrained(root / "tiny")  # bfloat16
torch.manual_seed(0)
cache, fed = small.make_cache(batch_size=1), 0
for n in (1, 50, 200, 800):
    with torch.no_grad():
        small(torch.randint(0, 2000, (1, n - fed)), past_key_values=cache)
    fed = n
    kept = {"growing": 0, "constant": 0}
    for layer, kind in zip(cache.layers, small.config.layer_types):
        if kind == "full_attention":
            kept["growing"] += sum(x[:, :, : cache.columns].nbytes for x in (layer.k, layer.v))
        else:
            kept["constant"] += layer.state.nbytes + layer.window.nbytes
    assert kept == cache_bytes(small.config, n)
    print(f"{n:4} tokens: {kept['growing']:>9,} bytes growing, {kept['constant']:,} constant")

# %% [markdown]
# Now we apply the same function to the two large models:

# %%
KIB, MIB, GIB = 2**10, 2**20, 2**30
per_token, per_token_dense = (cache_bytes(c, 1)["growing"] for c in (config, dense))
constant = cache_bytes(config, 0)["constant"]
print(f"Qwen3-Next  {per_token / KIB:.0f} KiB a token and {constant / MIB:.1f} MiB")
print(f"Qwen3-32B   {per_token_dense / KIB:.0f} KiB a token")
equal = constant / (per_token_dense - per_token)
print(f"equal at {equal:.0f} tokens")
for n in (1_024, 32_768, 262_144):
    ours, theirs = (sum(cache_bytes(c, n).values()) for c in (config, dense))
    print(f"{n:8,} tokens: {ours / GIB:6.2f} GiB against {theirs / GIB:6.2f} GiB, {theirs / ours:.1f} times")
course.finding("24 and 256 KiB a token", per_token == 24 * KIB and per_token_dense == 256 * KIB)
course.finding(
    "of the constant, 72 MiB are states, and less than 2 MiB the convolutions'", 72 * MIB < constant < 74 * MIB
)

# %% [markdown]
# The constant part is not small. It takes as much memory as some three hundred tokens of the dense model's cache, and
# for shorter texts Qwen3-Next needs more memory. Its cache also grows, because a quarter of the layers are attention.
# And Gated DeltaNet does not explain the whole saving: the attention layers also have only two key and value heads.
#
# ### Bytes read for a token
#
# To make the next token of a single text, a processor has to read every weight in use, at 2 bytes each, and the whole
# cache. It also writes the state back. For one sequence, these bytes decide the speed.

# %%
WEIGHTS = {"ours": 2 * (active - used["embedding"]), "dense": 2 * used_dense}
CONFIGS = {"ours": config, "dense": dense}


def decode_bytes(model: str, n: int) -> float:
    """Bytes read and written to make one token after n others: weights, keys and values, state twice."""
    cache = cache_bytes(CONFIGS[model], n)
    return WEIGHTS[model] + cache["growing"] + 2 * cache["constant"]


for n in (0, 32_768, 262_144):
    ours, theirs = decode_bytes("ours", n) / 1e9, decode_bytes("dense", n) / 1e9
    print(f"{n:8,} tokens: {ours:5.1f} GB against {theirs:5.1f} GB, {theirs / ours:.1f} times")
course.finding("7.1 GB of weights are read for a token", 7.05e9 < WEIGHTS["ours"] < 7.15e9)

# %% [markdown]
# ### Arithmetic
#
# For one token, a matrix of $M \times N$ weights takes $M N$ multiplications and as many additions. That is 2 FLOPs a
# weight. Two more costs have nothing to do with weights.
#
# - Attention compares a query with $n$ keys and sums $n$ values. Each of these two steps takes $2 n d$ FLOPs for each
#   of $H_q$ query heads, so a layer takes $4\, n\, d\, H_q$.
# - The delta rule forgets, recalls, writes and reads, over a state of $K V$ numbers. These four steps take
#   $1 + 2 + 2 + 2 = 7$ FLOPs a number, so a layer takes $7\, H K V$, for any $n$.
#
# We leave out norms, activations, softmax and the router's choice. They take a few FLOPs for each of a few thousand
# numbers, or for each of the $n$ scores.


# %%
def attention_flops(c: Qwen3NextConfig, n: int) -> int:
    """Of one token that sees n: all layers' products with keys and values."""
    return c.layer_types.count("full_attention") * 4 * n * c.head_dim * c.num_attention_heads


def delta_flops(c: Qwen3NextConfig, per_number: int = 7) -> int:
    """Of one token: all layers' work on their states."""
    layers = c.layer_types.count("linear_attention")
    return layers and layers * per_number * c.linear_num_value_heads * c.linear_key_head_dim * c.linear_value_head_dim


# %% [markdown]
# Are these formulas right? PyTorch can count the FLOPs of its matrix products while they run. It counts products only.
# So of the delta rule it counts the recall and the read, 4 of the 7 FLOPs a number, and it does not count the
# convolution. It does count the sum over a token's chosen experts, which our formulas leave out: in each layer, a
# product of $k$ weights with $k$ vectors of $D$ numbers. Once we adjust our formulas for these differences, the two
# counts must be equal.

# %%
# PyTorch's list lacks the product of a matrix and a vector
ALSO = {torch.ops.aten.mv: lambda matrix, vector, out_shape=None, **_: 2 * matrix[0] * matrix[1]}
c = small.config
matrices = {name: p.numel() for name, p in small.named_parameters() if p.ndim == 2 and not name.startswith("mtp.")}
weights = sum(n * (c.num_experts_per_tok / c.num_experts if ".experts." in name else 1) for name, n in matrices.items())
for n in (1, 100, 1000):
    cache = small.make_cache(batch_size=1)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # attention as products that can be counted
        if n > 1:
            small(torch.randint(0, 2000, (1, n - 1)), past_key_values=cache)
        with FlopCounterMode(display=False, custom_mapping=ALSO) as counter:
            small(torch.tensor([[5]]), past_key_values=cache)
    experts = c.num_hidden_layers * 2 * c.num_experts_per_tok * c.hidden_size
    derived = 2 * weights + attention_flops(c, n) + delta_flops(c, per_number=4) + experts
    print(f"{n:5} tokens: counted {counter.get_total_flops():,}, derived {derived:,.0f}")
    assert counter.get_total_flops() == derived

# %% [markdown]
# (In `tiny/`, one matrix is both embedding and `lm_head`. It counts once, as `lm_head`.)
#
# The formulas are right, so we apply them to the large models. At what context does attention take as many FLOPs as
# everything else? The next cell prints the answer.
#
# Then three plots show memory, bytes read and FLOPs against the context. All axes are logarithmic. A dot in the third
# plot marks the context at which attention takes half of the FLOPs. Look at where each line is flat and where it begins
# to rise.

# %%
FLOPS = {model: WEIGHTS[model] + delta_flops(c) for model, c in CONFIGS.items()}  # 2 FLOPs a weight, like 2 bytes


def flops(model: str, n: int) -> float:
    """FLOPs to make one token that sees n."""
    return FLOPS[model] + attention_flops(CONFIGS[model], n)


crossing = {model: FLOPS[model] / attention_flops(c, 1) for model, c in CONFIGS.items()}
for model in CONFIGS:
    print(
        f"{model:6} {FLOPS[model] / 1e9:5.1f} GFLOPs a token without attention; equal at {crossing[model]:,.0f} tokens"
    )
print(f"of ours the delta rule is {delta_flops(config) / FLOPS['ours']:.1%}")
for n in (1, 2**15, 2**18):
    print(f"{n:8,} tokens: {flops('dense', n) / flops('ours', n):.1f} times as many FLOPs in the dense model")
alike = 36_000 < crossing["ours"] < 38_000 and 30_000 < crossing["dense"] < 31_000
course.finding("attention takes half of the FLOPs from 37,000 tokens on in ours, from 30,500 in the dense model", alike)


# %%
def curves_of(model: str) -> tuple:
    """Functions of the context: the cache in GiB, GB read for a token, GFLOPs for a token."""
    cache = lambda n: sum(cache_bytes(CONFIGS[model], n).values()) / GIB  # noqa: E731
    return cache, lambda n: decode_bytes(model, n) / 1e9, lambda n: flops(model, n) / 1e9


curves = {"Qwen3-32B": curves_of("dense"), "Qwen3-Next-80B-A3B": curves_of("ours")}
pictures.costs(curves, dict(zip(curves, (crossing["dense"], crossing["ours"]))))

# %% [markdown]
# - Memory: the flat part of Qwen3-Next's line comes from the states. Beyond a few thousand tokens, both lines rise
#   alike, an order of magnitude apart.
# - Bytes read and FLOPs: the lines are flat as long as the weights dominate, and then they rise. The two dots are at
#   about the same context. The hybrid does not delay the point where attention dominates, because everything else
#   became cheaper as well.

# %% [markdown]
# ### Compared with the clock
#
# Counting FLOPs predicts speed, but it does not measure it. The Qwen team reports more than ten times the throughput of
# Qwen3-32B beyond 32K tokens of context (Qwen3-Next blog post, 2025). What can we measure ourselves?
# `benchmarks/against_dense.py` times a few layers of each model at full width on a CPU, one text at a time. If its
# result file is there, the next cell prints the measured ratios next to the computed ones. For a prompt of $n$ tokens,
# we compute the ratio of the FLOPs,
#
# $$\sum_{i=1}^{n} \mathrm{flops}(i) = n\, \mathrm{flops}(0) + \tfrac{1}{2} n (n + 1)\, \mathrm{attention\_flops}(1)$$
#
# (minus $n - 1$ uses of `lm_head`, which a prompt needs only once). For a decoded token, we compute the ratio of the
# bytes.


# %%
def prompt_flops(model: str, n: int) -> float:
    c = CONFIGS[model]
    head = 2 * c.vocab_size * c.hidden_size
    return n * flops(model, 0) + n * (n + 1) / 2 * attention_flops(c, 1) - (n - 1) * head


file = root / "benchmarks" / "results" / "against_dense_cpu.json"
measured = json.loads(file.read_text())["rows"] if file.is_file() else []
contexts = [row["context"] for row in measured] or [4096, 16384, 32768]
print(f"{'':>8}  {'prompt':^20}  {'decoding':^20}\n{'context':>8}  " + 2 * f"{'computed':>10}{'measured':>10}  ")
for i, n in enumerate(contexts):
    computed = [f("dense", n) / f("ours", n) for f in (prompt_flops, decode_bytes)]
    clock = [f"{measured[i][key]:.1f}" if measured else "-" for key in ("prefill_ratio", "decode_ratio")]
    print(f"{n:8,}  " + "  ".join(f"{x:10.1f}{y:>10}" for x, y in zip(computed, clock)))
if not measured:
    print("no measured figures here: python benchmarks/against_dense.py --folder DIR --out", file.relative_to(root))

# %% [markdown]
# For prompts, the measured gain is smaller than the computed one. A FLOP in a small matrix takes longer than a FLOP in
# a large one. The benchmark reads a prompt in windows of 2,048 tokens. Of such a window, an expert sees about 40
# tokens, while the dense MLP sees all of them. On a CPU, with one text at a time, this costs much of what sparsity
# saves. The measured ratios still grow with the context.

# %% [markdown]
# ## Exercises
#
# **1. A different mixture of layers.** How many bytes does the cache of the 80B take at 262,144 tokens if every second
# layer is attention? What if every layer is, or every twelfth? First check that `full_attention_interval=4` gives the
# size printed above.
#
# <details><summary>Solution</summary>
#
# The config computes `layer_types` from the interval, so only that field changes. With an interval of 1, there is no
# state.
#
# ```python
# fields = {key: x for key, x in config.to_dict().items() if key not in ("layer_types", "full_attention_interval")}
# sizes = {}
# for interval in (1, 2, 4, 12):
#     c = Qwen3NextConfig(**fields, full_attention_interval=interval)
#     sizes[interval] = sum(cache_bytes(c, 262_144).values()) / GIB
#     print(f"every {interval}: {c.layer_types.count('full_attention')} attention layers, {sizes[interval]:.2f} GiB")
# assert sizes[4] == sum(cache_bytes(config, 262_144).values()) / GIB
# assert sizes[1] == 24.0  # 48 layers of 2 KiB a token
# assert sizes[12] < sizes[4] < sizes[2] < sizes[1] < 64
# ```
#
# Even with attention everywhere, the cache is well below the dense model's 64 GiB. The 80B has fewer layers, and fewer
# key and value heads.
# </details>
#
# **2. Many texts at once.** A server makes one token for each of $B$ texts in one pass, and reads each weight once for
# all of them. But different tokens choose different experts. Suppose that every token chose its 10 of 512 at random.
# How many experts would a layer have to read for $B$ tokens? How many bytes *per text* would both models then read,
# with short contexts, at $B$ = 1, 8, 64 and 512?
#
# <details><summary>Solution</summary>
#
# An expert is not read if none of the $B$ tokens chooses it. The probability of that is $(1 - 10/512)^B$, so
# $512\,(1 - (1 - 10/512)^B)$ experts are read on average. All other weights are shared.
#
# ```python
# expert_bytes = 2 * used["routed experts"] / 10  # of one expert in each layer
# def per_text(model, B):
#     if model == "dense":
#         return WEIGHTS["dense"] / B
#     read = 512 * (1 - (1 - 10 / 512) ** B)
#     return (WEIGHTS["ours"] + (read - 10) * expert_bytes) / B
# for B in (1, 8, 64, 512):
#     print(f"{B:4}: {per_text('ours', B) / 1e9:6.2f} GB against {per_text('dense', B) / 1e9:6.2f} GB")
# assert per_text("dense", 1) > 8 * per_text("ours", 1)
# assert per_text("dense", 64) < per_text("ours", 64)
# ```
#
# For one text, the sparse model reads a ninth of the bytes. For many texts with short contexts, it reads *more* than
# the dense one, because it has more weights. It still saves arithmetic. At long contexts, it also saves cache, which no
# two texts share. (Real routers choose less evenly, so somewhat fewer experts are read.)
# </details>
#
# **3. Where is the number looked up?** The lens showed where the digits become readable. Now turn off the mixer of one
# layer at a time (let it add zeros). Measure the probability of the right digits after the last layer, over a few phone
# books. Which layers does the answer depend on?
#
# <details><summary>Solution</summary>
#
# A forward hook that returns something replaces a module's output.
#
# ```python
# def right(seeds=range(5)):
#     return torch.stack([right_by_layer(seed)[-1, 1:] for seed in seeds]).mean().item()
# whole, without = right(), []
# for layer in tiny.model.layers:
#     hook = layer.mixer.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
#     without.append(right())
#     hook.remove()
# print(f"whole model {whole:.0%}")
# for i, p in enumerate(without):
#     print(f"without mixer {i} ({kinds[i]}): {p:.0%}")
# assert right() == whole  # the hooks are gone
# worst = without.index(min(without))
# figures.expect(f"without its mixer {worst} it loses more than half of what it had", without[worst] < whole / 2)
# ```
#
# More than one layer is needed. One layer prepares what is to be looked up, and another looks it up. Sometimes a third
# layer only keeps the stream in the form that later layers expect. Turning off a layer also harms every layer after it,
# so this experiment, like the lens, is evidence and not proof.
# </details>
#
# **4. Fill in.** How many parameters does one layer of gated attention have? Compute the number from the config alone.
# `q_proj` makes a query *and* a gate for each query head, and the norms of queries and keys have `head_dim` numbers
# each. Write the function, and run the cell until it says green.


# %%
def attention_parameters(c: Qwen3NextConfig) -> int:
    """The number of parameters of a layer's self_attn."""
    ...  # your part


def test_attention_parameters(attempt):
    for model in (big, tiny):
        first = model.config.layer_types.index("full_attention")
        counted = sum(p.numel() for p in model.model.layers[first].self_attn.parameters())
        assert attempt(model.config) == counted, f"expected {counted:,}, found {attempt(model.config)}"


course.try_it(test_attention_parameters, attention_parameters)


# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def attention_parameters(c: Qwen3NextConfig) -> int:
#     D, d = c.hidden_size, c.head_dim
#     query_and_gate = 2 * c.num_attention_heads * d * D
#     key_and_value = 2 * c.num_key_value_heads * d * D
#     output = D * c.num_attention_heads * d
#     return query_and_gate + key_and_value + output + 2 * d
#
#
# test_attention_parameters(attention_parameters)
# ```
#
# </details>
#
# ## Sources
#
# - Gated Delta Networks, arXiv 2412.06464, and its section 3.4 for mixing with attention
# - Gated Attention for Large Language Models, arXiv 2505.06708
# - Switch Transformers, arXiv 2101.03961, and DeepSeekMoE, arXiv 2401.06066, for the mixture of experts
# - DeepSeek-V3, arXiv 2412.19437, section 2.2, for MTP
# - Sizes: config.json and model cards of Qwen/Qwen3-Next-80B-A3B-Instruct and Qwen/Qwen3-32B
#
# ## Five questions
#
# 1. Where are nearly all of the 80 billion parameters, and how many parameters does one token use? Why do the embedding
#    and `lm_head`, which have the same size, count so differently?
# 2. What connects one layer with the next? How can you find out what the model would predict if it ended after an early
#    layer? What does this not tell you?
# 3. For the phone book, one layer made most of the digits right. Which kind of layer was it, and why that kind? Why
#    does the blank before the digits not need such a layer?
# 4. Which part of Qwen3-Next's cache grows with the text, and which does not? For which texts does the dense model need
#    less memory? Is Gated DeltaNet the only reason why the cache is ten times smaller for long texts?
# 5. Does the hybrid shift the context at which attention takes half of the FLOPs? Why is a prompt's measured gain over
#    the dense model smaller than the computed one?
#
# <details><summary>Answers</summary>
#
# 1. Nearly all of them belong to the routed experts. A token uses 10 of the 512 in each layer. In total it uses a
#    little over 3.5 billion parameters, with `lm_head`. The embedding is a look-up of one row, while every token
#    multiplies all of `lm_head`.
# 2. The residual stream, and nothing else. You apply the final norm and `lm_head` to the stream after that layer. This
#    shows where an answer becomes readable, not where it is made.
# 3. An attention layer. It still has every earlier token and can look at any one of them, while a Gated DeltaNet layer
#    has only what its state has kept. The blank follows from the tokens just before it.
# 4. The keys and values of the 12 attention layers grow. The states and the convolutions' windows do not. The dense
#    model needs less for texts of up to some three hundred tokens. Gated DeltaNet is not the only reason: the attention
#    layers also have only two key and value heads.
# 5. Hardly, because everything else became cheaper as well. A FLOP in a small matrix takes longer than one in a large
#    matrix, and each expert sees only a few tokens of a window, while a dense MLP sees all of them.
#
# </details>
#
# ## Three sentences to remember
#
# 1. Nearly all of the 80 billion parameters are routed experts, and a token uses 10 of 512 of them in each layer, so
#    only about three billion parameters are active.
# 2. Every layer only adds to the residual stream: first its mixer, which moves information between tokens, then its
#    experts, which work on each token separately.
# 3. Three layers in four keep a state of constant size, so a long text takes far less memory than in a dense
#    transformer, even though attention dominates the cost in the end.
#
# Next: [2_delta_rule](2_delta_rule.ipynb), the memory inside a Gated DeltaNet layer.
