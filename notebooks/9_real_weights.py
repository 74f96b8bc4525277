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
# # 9. Real weights
#
# The released model is 163 GB in 41 files, and your machine probably has less memory than that. Can it run the model
# anyway, and how fast? This notebook finds out by looking at the contents of the files, and at the part of them that a
# token reads.
#
# Afterwards you can
#
# - read a safetensors file with ten lines of Python,
# - say how much memory and reading it takes to open a checkpoint, and how much of it a token reads,
# - name two layouts inside these tensors that break a port without any error message,
# - estimate how many tokens a second your own machine would generate,
# - quantise a matrix to FP8 in blocks, and say what the error depends on,
# - translate Qwen3.5's checkpoints into Qwen3-Next's.
#
# You need to know PyTorch and the parts of the model. Nothing is downloaded. The large checkpoint here has the released
# names, shapes and files, but its weights are holes that read as zeros. Everything that needs trained weights is tested
# on the small model in `tiny/`. For one lesson, take everything up to the two traps, and the speed of your own machine.
# FP8 and Qwen3.5 are homework.

# %%
from start import root

# %%
import ctypes
import json
import math
import mmap
import re
import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import checkpoints
import corpus
import course
import figures
import torch
from pictures import weights as pictures
from safetensors.torch import save_file

# %%
from qwen3_next import Experts, Qwen3NextConfig, Qwen3NextForCausalLM, Qwen3NextTokenizer, read_safetensors
from qwen3_next_checkpoints import qwen3_5
from qwen3_next_checkpoints.formats import dequantise
from qwen3_next_checkpoints.stats import counting
from verify.trace import recording

figures.setup()
scratch = tempfile.TemporaryDirectory()  # removed when the notebook's kernel ends
folder = Path(scratch.name)
LINUX = sys.platform == "linux"

layout = checkpoints.entries(checkpoints.INSTRUCT)  # name -> (dtype, shape) of each tensor of the released model
count = {name: math.prod(shape) for name, (_, shape) in layout.items()}
routed = 2 * sum(n for name, n in count.items() if ".experts." in name and not name.startswith("mtp.")) / 1e9  # GB
others = 2 * sum(count.values()) / 1e9 - routed
unread = 2 * (count["model.embed_tokens.weight"] + sum(n for name, n in count.items() if name.startswith("mtp."))) / 1e9
pictures.read_of_all(
    {"routed experts": routed, "all else": others}, {"routed experts": routed * 10 / 512, "all else": others - unread}
)

# %% [markdown]
# This is the whole notebook in one picture: the checkpoint is huge, and a token reads little of it.

# %% [markdown]
# ## The layout
#
# What is in a checkpoint? It is a folder with `config.json`, the weights in `.safetensors` files (*shards*), an index
# that lists the shard of each tensor, and the tokenizer. `tests/checkpoints.py` contains the released `config.json` and
# derives every tensor's name, dtype and shape from it. It was written from the published lists and shares no code with
# `qwen3_next.py`.

# %%
print(f"{len(layout):,} tensors, {sum(count.values()):,} numbers, all {' '.join({d for d, _ in layout.values()})}")
for name in islice(layout, 6):
    print(f"    {name:52}{layout[name][1]}")
assert len(layout) == 75_944 and sum(count.values()) == 81_324_862_720

# %% [markdown]
# The 75,944 names follow few patterns. We write `N` for the layer and `E` for the expert. 36 of the 48 layers have
# `linear_attn` (Gated DeltaNet), and 12 have `self_attn` (gated attention). `mtp` (multi-token prediction) has its own
# layer, which we leave out of the list.


# %%
def pattern(name: str) -> str:
    return re.sub(r"experts\.\d+", "experts.E", re.sub(r"layers\.\d+", "layers.N", name))


names = [name for name in layout if not name.startswith("mtp.")]
times, shape_of = Counter(map(pattern, names)), {pattern(name): layout[name][1] for name in names}
print(f"{'name':50}{'shape':>16}{'times':>8}{'GB':>9}")
for name, n in times.items():
    print(f"{name:50}{str(list(shape_of[name])):>16}{n:8,}{2 * n * math.prod(shape_of[name]) / 1e9:9.3f}")
print(f"and {len(layout) - len(names):,} of mtp")

# %% [markdown]
# Each of the three lines with `experts.E` counts 24,576 matrices, and together these hold 95 % of the bytes. One expert
# matrix is small: 2 MB. Everything below follows from this: the checkpoint is huge, its pieces are small, and a token
# needs few of them.
#
# Does the model in `qwen3_next.py` have these names and shapes? We build it on PyTorch's meta device, where tensors
# take no memory, and compare it with the list.

# %%
with torch.device("meta"):
    model = Qwen3NextForCausalLM(Qwen3NextConfig(**checkpoints.INSTRUCT, mtp_num_hidden_layers=1))
assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {n: s for n, (_, s) in layout.items()}

# %% [markdown]
# ## The format, by hand
#
# How does one read such a file without a library? A safetensors file has three parts (format description:
# huggingface.co/docs/safetensors):
#
# | bytes | content |
# |---|---|
# | 8 | $n$, the length of the header, little endian |
# | $n$ | the header, JSON: name → dtype, shape, `data_offsets` [first byte, one past the last] |
# | the rest | the numbers; offsets count from here |
#
# That is all. There is no code in the file and no compression, so a reader is short. `torch.frombuffer` interprets the
# bytes in place.


# %%
def read_by_hand(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The header, and the tensors, of a safetensors file."""
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + length]), {}
    dtypes = {"BF16": torch.bfloat16, "F32": torch.float32}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            tensors[name] = torch.frombuffer(data[start:end], dtype=dtypes[entry["dtype"]]).view(entry["shape"])
    return header, tensors


# %% [markdown]
# We check our reader on `tiny/`, against `read_safetensors`, which maps the file instead of copying it. The two must
# agree in every bit.

# %%
header, by_hand = read_by_hand(root / "tiny" / "model.safetensors")
mapped = read_safetensors(root / "tiny" / "model.safetensors")
assert by_hand.keys() == mapped.keys() and len(by_hand) > 100
assert all(torch.equal(by_hand[name], mapped[name]) for name in mapped)
name = next(name for name in mapped if name.endswith("linear_attn.conv1d.weight"))
print(len(by_hand), "tensors, for example", name, header[name])

# %% [markdown]
# To see where everything lies, we write a small file with three tensors of two dtypes. The picture shows the file to
# scale. Look at how much of it is header: with tensors as small as these, nearly half.

# %%
example = {"a": torch.arange(24.0).view(4, 6), "b": torch.ones(3, 5).bfloat16(), "c": torch.zeros(40).bfloat16()}
save_file(example, folder / "example.safetensors")
header, _ = read_by_hand(folder / "example.safetensors")
print(json.dumps(header, indent=1).replace("\n  ", " ").replace("\n }", " }"))

length = int.from_bytes((folder / "example.safetensors").read_bytes()[:8], "little")
parts = [("length", 0, 8), ("header", 8, 8 + length)]
parts += [(name, *(8 + length + i for i in entry["data_offsets"])) for name, entry in header.items()]
pictures.file([("8 bytes", *parts[0][1:]), *parts[1:]])

# %% [markdown]
# NumPy and plain C have no type for bfloat16. The conversion by hand is simple, because a bfloat16 is the upper half of
# a float32. We append 16 zero bits.

# %%
raw = mapped["model.embed_tokens.weight"][:3].contiguous().view(torch.int16)  # the bytes, as whole numbers
upper = raw.to(torch.int32) << 16
assert torch.equal(upper.view(torch.float32), mapped["model.embed_tokens.weight"][:3].float())

# %% [markdown]
# ## Opening without reading
#
# `read_by_hand` copies the file into memory. With 163 GB this won't work. `read_safetensors` uses `mmap` instead: the
# operating system reserves *addresses* for the file, and it reads a *page* (4 KiB on most systems) when the program
# first touches an address in it. A page that was only read can be dropped again at any time, because it is still on the
# disk.
#
# To see this at full size we need a file of full size. A file system with *sparse files* stores only what was written.
# The rest of the file is a hole that reads as zeros. So we write all 41 headers and the index, and leave 163 GB of
# holes. (On systems without sparse files, we take 4 layers and 16 experts.)

# %%
probe = folder / "probe"
with probe.open("wb") as file:
    file.truncate(2**30)
sparse = getattr(probe.stat(), "st_blocks", 2**30) * 512 < 2**20  # bytes that it takes on the disk
probe.unlink()
fields = checkpoints.INSTRUCT if sparse else {**checkpoints.INSTRUCT, "num_hidden_layers": 4, "num_experts": 16}
shards = checkpoints.write_sparse(folder / "80B", fields)
size = sum(file.stat().st_size for file in shards)
print(f"{len(shards)} shards, {size / 1e9:.1f} GB, of them on the disk less than 20 MB")
assert not sparse or (len(shards) == 41 and sum(file.stat().st_blocks * 512 for file in shards) < 20e6)

# %% [markdown]
# Now we open the checkpoint. What does this cost? Linux counts a process's memory in two ways that matter here.
# `RssAnon` is memory without a file behind it, so it can't be dropped. `RssFile` is the pages of mapped files that are
# in memory; they can be dropped. `VmSize` is not memory: it counts the addresses in use, which cost nothing.


# %%
def memory() -> dict[str, float]:
    """GiB of this process, by kind; nothing where there is no /proc."""
    text = Path("/proc/self/status").read_text() if LINUX else ""
    return {key: int(n) / 2**20 for key, n in re.findall(r"(VmSize|RssAnon|RssFile):\s+(\d+) kB", text)}


before, started = memory(), time.perf_counter()
model = Qwen3NextForCausalLM.from_pretrained(folder / "80B")
seconds, after = time.perf_counter() - started, memory()
print(f"opened {sum(p.numel() for p in model.parameters()):,} parameters in {seconds:.0f} s")
for key in after:
    print(f"    {key:8} {after[key] - before[key]:+8.2f} GiB")
assert all(after[key] - before[key] < 2 for key in after if key != "VmSize")

# %% [markdown]
# The figures vary from run to run, but the pattern does not: the addresses grow by the size of the checkpoint, and the
# memory by almost nothing. Only the headers were read:


# %%
def header_length(file: Path) -> int:
    with file.open("rb") as source:
        return 8 + int.from_bytes(source.read(8), "little")


read = sum(map(header_length, shards))
print(f"{read / 1e6:.1f} MB of {size / 1e9:.1f} GB: one byte in {size / read:,.0f}")

# %% [markdown]
# Each parameter of the model is a *view* of a mapped file. The addresses show it: two tensors of one shard lie exactly
# as far apart in memory as in the file, where the header gives their places.

# %%
found = checkpoints.read_header(shards[0])
parameters = dict(model.named_parameters())
one, two = "model.embed_tokens.weight", "model.layers.0.mlp.experts.7.up_proj.weight"
apart = found[two]["data_offsets"][0] - found[one]["data_offsets"][0]
assert parameters[two].data_ptr() - parameters[one].data_ptr() == apart != 0
print(f"{two} starts {apart:,} bytes after {one}, in the file and in memory")

# %% [markdown]
# The mapping is *private*. If a program writes to such a tensor, it gets a copy of the page, and the file does not
# change. We use this to give the router of layer 0 random weights. (With zeros, every expert would be as likely as any
# other.) Then we read the file again: it still has zeros.

# %%
torch.manual_seed(0)
router = model.model.layers[0].mlp.gate.weight  # (E, D)
with torch.no_grad():
    router.normal_()
again = read_safetensors(shards[0])["model.layers.0.mlp.gate.weight"]
assert router.abs().max() > 1 and again.abs().max() == 0

# %% [markdown]
# ## Only the chosen experts are read
#
# Does a token really read only its own experts? We send one token through the mixture of experts of layer 0, whose
# router chooses 10 of 512. On Linux, `mincore` reports which pages of a mapped file are in memory. So we can ask, for
# every expert, what share of it is in memory before and after.
#
# The picture below shows these shares after the token. Each cell is one expert. Count the bright cells.


# %%
def resident(tensor: torch.Tensor) -> float:
    """The share of a mapped tensor's pages that is in memory (Linux)."""
    start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    pages = -(-(tensor.data_ptr() + tensor.nbytes - start) // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * pages)()
    length = ctypes.c_size_t(pages * mmap.PAGESIZE)
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(start), length, found) == 0
    return sum(page & 1 for page in found) / pages


def experts_in_memory(mlp: torch.nn.Module) -> torch.Tensor:
    """The same of each expert of a layer, (E,)."""
    return torch.tensor([[resident(matrix) for matrix in expert.parameters()] for expert in mlp.experts]).mean(1)


# %%
mlp, x = model.model.layers[0].mlp, torch.randn(1, 1, fields["hidden_size"], dtype=torch.bfloat16)
seen = LINUX and experts_in_memory(mlp).mean() < 0.1  # some systems report every page as resident
stats = {"prefill_seconds": 0.0}  # the counter leaves the prompt out; this tells it that the prompt is over
with torch.no_grad(), counting(mlp, Experts, stats):
    chosen = mlp.gate(x).topk(mlp.k).indices.flatten().sort().values
    mlp(x)
print("chosen:", *chosen.tolist())
print(f"{stats['routed_bytes'] / 1e6:.1f} MB of experts read")
assert stats["routed_bytes"] == mlp.k * sum(p.nbytes for p in mlp.experts[0].parameters())

# %%
if seen:
    time.sleep(1)  # reading may still be under way
    share = experts_in_memory(mlp)
    pictures.in_memory(share)
    whole = set((share > 0.9).nonzero().flatten().tolist())
    assert set(chosen.tolist()) <= whole and len(whole) <= mlp.k + 2
    places = {name: entry["data_offsets"][0] for name, entry in found.items()}
    router_name = "model.layers.0.mlp.gate.weight"
    last = max((name for name in places if places[name] < places[router_name]), key=places.get)
    print("in the file, right before the router:", last)
else:
    print("this system does not say which pages are in memory")

# %% [markdown]
# The ten bright cells are the ten chosen experts. They were read whole, and nothing was read of the others. (One more
# cell may have a shade in between: the expert whose last matrix comes right before the router in the file. When the
# router is touched, the system also reads the pages around it.) For this result, `large.py` makes two requests to the
# system. `MADV_RANDOM` asks it to read no pages around an expert's page that is touched. `MADV_WILLNEED` asks it, for
# each chosen expert that is not in memory, to begin to read the whole expert now.
#
# Each expert has three matrices, with 2 bytes per number. Over 48 layers, the experts that one token reads amount to
#
# $$48 \cdot 10 \cdot 3 \cdot 512 \cdot 2048 \cdot 2\ \mathrm{bytes} = 3.02\ \mathrm{GB}.$$

# %%
del model, parameters, router, mlp
assert round(48 * 10 * 3 * 512 * 2048 * 2 / 1e9, 2) == 3.02

# %% [markdown]
# ## Two traps
#
# If names and shapes fit, do we read the numbers correctly? Not necessarily. Some tensors hold several parts, in an
# order that is easy to guess wrongly, and a wrong guess fits the shapes just as well.
#
# **`in_proj_qkvz`** of Gated DeltaNet makes queries $q$, keys $k$, values $v$ and the gate's input $z$ in one product.
# There are fewer key heads than value heads: $r$ value heads share a key head. The rows are grouped *by key head*:
#
# $$q_0\,|\,k_0\,|\,v_0 \ldots v_{r-1}\,|\,z_0 \ldots z_{r-1}\;\|\;q_1\,|\,k_1\,|\,v_r \ldots v_{2r-1}\,|\,z_r \ldots z_{2r-1}\;\|\;\ldots$$
#
# ($q_0$ are the $K$ rows of key head 0, $v_0$ the $V$ rows of value head 0.) One might expect all $q$, then all $k$,
# all $v$, all $z$, but this order is wrong. `in_proj_ba` is grouped in the same way. **`q_proj`** of gated attention
# makes each head's query and gate, and its rows are [query | gate] *within each head*.
#
# We write both layouts as lists: for each row of the matrix, its part and its head.


# %%
def rows_of_qkvz(G: int, r: int, K: int, V: int) -> list[str]:
    """Of each row of in_proj_qkvz the head it belongs to: q and k by key head (G in all), v and z by value head."""
    rows = []
    for g in range(G):
        heads = range(g * r, g * r + r)  # the value heads that share key head g
        rows += K * [f"q{g}"] + K * [f"k{g}"] + [f"v{h}" for h in heads for _ in range(V)]
        rows += [f"z{h}" for h in heads for _ in range(V)]
    return rows


def rows_of_q_proj(heads: int, d: int) -> list[str]:
    return [kind for h in range(heads) for kind in d * [f"q{h}"] + d * [f"g{h}"]]


# %% [markdown]
# First we check these lists on `tiny/`, where two value heads share a key head ($r = 2$), as in the released model.
# With our lists we pick numbers from the output of the projection, and compare them with the $q$, $k$, $v$, $z$ that
# the model used, as a trace recorded them. Both must be exactly equal, because nothing is computed in between.

# %%
tiny = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float32)
tokenizer = Qwen3NextTokenizer.from_pretrained(root / "tiny")
c = tiny.config
with torch.no_grad(), recording(tiny) as trace:
    tiny(tokenizer("Once upon a time there was a fox.", return_tensors="pt").input_ids)


def check(layer: str, projection: str, rows: list[str], parts: dict[str, str]):
    """Compares rows of a projection's output (T, rows) with what the model calls them, (T, heads, width) each."""
    out = trace[f"{layer}.{projection}.out"]
    for kind, name in parts.items():
        for head in range(trace[f"{layer}.{name}"].shape[1]):
            mine = out[:, [i for i, row in enumerate(rows) if row == f"{kind}{head}"]]
            assert torch.equal(mine, trace[f"{layer}.{name}"][:, head])


G, r = c.linear_num_key_heads, c.linear_num_value_heads // c.linear_num_key_heads
linear, full = (f"model.layers.{c.layer_types.index(f'{kind}_attention')}" for kind in ("linear", "full"))
rows = rows_of_qkvz(G, r, c.linear_key_head_dim, c.linear_value_head_dim)
check(f"{linear}.linear_attn", "in_proj_qkvz", rows, {x: x for x in "qkvz"})
check(f"{full}.self_attn", "q_proj", rows_of_q_proj(c.num_attention_heads, c.head_dim), {"q": "q", "g": "gate"})

# %% [markdown]
# The picture shows a case with few and narrow heads: two key heads, four value heads, $K = 2$, $V = 3$, and two query
# heads of four numbers, where `g0` is the gate of head 0. One cell is one row of the matrix. For each matrix, compare
# the upper strip, the rows as they are stored, with the lower one, the order that one might expect.

# %%
stored, query = rows_of_qkvz(2, 2, 2, 3), rows_of_q_proj(2, 4)  # G, r, K, V; heads, d
strips = {
    "in_proj_qkvz\nas stored": stored,
    "all q, all k, ...\n(wrong)": sorted(stored, key=lambda row: "qkvz".index(row[0])),
    "q_proj\nas stored": query,
    "all queries, all gates\n(wrong)": sorted(query, key=lambda row: "qg".index(row[0])),
}
pictures.strips(strips)

# %% [markdown]
# What does a wrong guess cost? Suppose that a port reads `in_proj_qkvz` as *flat*: all $q$, all $k$, all $v$, all $z$.
# Then it computes the same as this project would with the rows in a different order. So we rearrange the rows of
# `tiny/` and measure the loss on held-out text: nats per token, over twelve generated documents.


# %%
def deal(weight: torch.Tensor, wrong: list[str], right: list[str]) -> torch.Tensor:
    """The rows in such an order that a reader who expects `right` takes them for what they are in `wrong`."""
    places, taken = {}, Counter()
    for i, row in enumerate(wrong):
        places.setdefault(row, []).append(i)
    order = []
    for row in right:
        order.append(places[row][taken[row]])
        taken[row] += 1
    return weight[order]


def flat(rows: list[str], kinds: str) -> list[str]:
    return sorted(rows, key=lambda row: kinds.index(row[0]))


# %%
texts = list(islice(corpus.documents(seed=8, split="held out"), 12))


@torch.no_grad()
def loss(model: torch.nn.Module) -> float:
    """Mean over all tokens of the texts."""
    total, tokens = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        total, tokens = total + model(ids, labels=ids).loss.item() * (ids.shape[1] - 1), tokens + ids.shape[1] - 1
    return total / tokens


# %%
def misread(marks: list[str]) -> float:
    """The loss of tiny/ when these projections are taken for flat."""
    model = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float32)
    layouts = {
        "in_proj_qkvz": (rows_of_qkvz(G, r, c.linear_key_head_dim, c.linear_value_head_dim), "qkvz"),
        "in_proj_ba": ([f"{x}{h}" for g in range(G) for x in "ba" for h in range(g * r, g * r + r)], "ba"),
        "q_proj": (rows_of_q_proj(c.num_attention_heads, c.head_dim), "qg"),
    }
    for name, p in model.model.named_parameters():
        for mark in marks:
            if f".{mark}." in name:
                right, kinds = layouts[mark]
                p.data = deal(p.data, flat(right, kinds), right)
    return loss(model)


# %%
found = {"read as it is meant": misread([])}
found |= {f"{name} taken for flat": misread([name]) for name in ("in_proj_ba", "in_proj_qkvz", "q_proj")}
for what, nats in found.items():
    print(f"{what:30}{nats:6.2f} nats a token")
uniform = math.log(c.vocab_size)
print(f"{'all tokens equally likely':30}{uniform:6.2f}")
assert abs(found["read as it is meant"] - loss(tiny)) < 1e-6
mildest = min(list(found.values())[1:]) - found["read as it is meant"]
figures.expect(f"each wrong reading costs more than 0.02 nats: {mildest:.2f} and more", mildest > 0.02)

# %% [markdown]
# No shape is wrong and nothing raises an error, but each wrong reading damages the model, some more than others. The
# mildest one is the most dangerous, because a model that is a little worse still writes text. If you compare a port's
# values with a reference, one by one, you find all three. `verify/` does this.

# %% [markdown]
# ## FP8: 8 bits and a scale per block
#
# The same model is also released in FP8, with 82 GB. Most numbers then have 8 bits, in the format E4M3: a sign, 4 bits
# of exponent, 3 bits of mantissa. (Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433.) How good can
# so few bits be? There are only 256 bit patterns, so we can list all numbers.

# %%
numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
positive = numbers[(numbers >= 0) & ~numbers.isnan()].unique()
print(len(positive), "numbers from zero up:", *positive[:5].tolist(), "...", *positive[-3:].tolist())
assert positive[-1] == 448 and positive[1] == 2**-9

# %% [markdown]
# With 3 bits of mantissa, neighbours differ by an eighth at most. So rounding changes a number by up to a sixteenth,
# $2^{-4}$, as long as the number is between $2^{-6}$ and 448. Below $2^{-6}$ the spacing stays $2^{-9}$, and the
# relative error grows. Above 448 there are no numbers at all. The picture shows the relative error over the whole
# range. Look at where it leaves its plateau.

# %%
x = 2 ** torch.linspace(-13, math.log2(448), 3000)
error = (x.to(torch.float8_e4m3fn).float() - x).abs() / x
pictures.rounding(x, error)
assert error[x > 2**-6].max() <= 2**-4 and error[x < 2**-10].min() == 1

# %% [markdown]
# So we first have to bring a weight matrix into this range, by a scale. In the release, each block of 128 x 128 numbers
# has its own scale (as in DeepSeek-V3, arXiv 2412.19437, section 3.3). Let $s$ be the largest magnitude in a block,
# divided by 448. Then
#
# $$q = \mathrm{round}_{\mathrm{E4M3}}(w / s), \qquad w \approx q\, s .$$
#
# The scales are stored as `weight_scale_inv`, in float32. Blocks at the edges may be smaller. The release converts the
# large projections and the experts. The embedding, `lm_head`, routers, norms, convolutions and `in_proj_ba` stay in
# bfloat16.


# %%
def spread(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A value per block -> the same value at each number of the block."""
    return scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: shape[0], : shape[1]]


def quantise(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(M, N) -> 8-bit numbers (M, N), and scales (ceil(M / 128), ceil(N / 128))."""
    full = torch.nn.functional.pad(w, (0, -w.shape[1] % 128, 0, -w.shape[0] % 128))
    largest = full.abs().unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).amax((1, 3))
    scale = largest.clamp(min=1e-12) / 448
    return (w / spread(scale, w.shape)).to(torch.float8_e4m3fn), scale


# %% [markdown]
# We check the way back against `dequantise` in `formats.py`, exactly, on a matrix with partial blocks. We check our
# scales and 8-bit numbers against those that the tests compute block by block in a loop.

# %%
torch.manual_seed(0)
w = torch.randn(300, 200) * 2 ** torch.randint(-3, 4, (300, 1))
eight, scale = quantise(w)
assert scale.shape == (3, 2)
assert torch.equal(dequantise(eight, scale, torch.float32), eight.float() * spread(scale, w.shape))
theirs, _ = checkpoints.to_fp8({"model.layers.0.mlp.shared_expert.up_proj.weight": w})
assert torch.equal(theirs["model.layers.0.mlp.shared_expert.up_proj.weight_scale_inv"], scale)
assert torch.equal(theirs["model.layers.0.mlp.shared_expert.up_proj.weight"].float(), eight.float())
print(f"a scale costs {4 / 128**2:.2%} of the 8-bit numbers' bytes")

# %% [markdown]
# ### Why a scale per block?
#
# Would one scale for the whole matrix be enough? We try it on a matrix of 8 x 8 blocks of normally distributed numbers,
# in which each row of blocks is smaller than the one above by a factor of eight. We quantise it in E4M3 with a scale
# per block, and in E4M3 with one scale for all blocks. For comparison we also use INT8, the whole numbers from -127 to
# 127, with one scale for all blocks. The error of a block is $|w - \hat w| / |w|$, where $|\cdot|$ is the length of the
# block as a vector.
#
# The left plot shows this error against the size of a block's numbers. The two maps show the error block by block, for
# one scale in each of the two formats. Look at how far to the right the curves stay together.


# %%
def block_errors(w: torch.Tensor, approximation: torch.Tensor) -> torch.Tensor:
    def length(x: torch.Tensor) -> torch.Tensor:
        return x.square().unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).sum((1, 3)).sqrt()

    return length(w - approximation) / length(w)


def one_scale(w: torch.Tensor) -> torch.Tensor:
    """The matrix quantised with a single scale, and dequantised."""
    scale = w.abs().max() / 448
    return (w / scale).to(torch.float8_e4m3fn).float() * scale


torch.manual_seed(1)
sizes = 8.0 ** -torch.arange(8)
w = torch.randn(1024, 1024) * sizes.repeat_interleave(128)[:, None]
by_block, at_once = block_errors(w, dequantise(*quantise(w), torch.float32)), block_errors(w, one_scale(w))
step = w.abs().max() / 127
whole = block_errors(w, (w / step).round() * step)

# %%
found = {"E4M3, a scale per block": by_block, "E4M3, one scale": at_once, "INT8, one scale": whole}
for label, errors in found.items():
    print(f"{label:24}", *(f"{e:7.1%}" for e in errors.mean(1)))
pictures.scales(sizes, found)
lost = by_block.max() < 0.04 and at_once[-1].min() > 0.9 and whole[2].min() > 0.3
course.finding("a scale per block errs by less than 4 % everywhere, one scale loses the smallest blocks", lost)
alike = (at_once[:4] / by_block[:4] - 1).abs().max() < 0.1
course.finding("over a factor of 512 there is no difference between the two", alike)

# %% [markdown]
# One scale does better than one might think. For numbers some hundred times smaller than the largest, it makes no
# difference, and at a few thousand times hardly any. The reason is that E4M3 has an exponent for each number. INT8 has
# none, so it is the best where all numbers are of one size, and it loses from the first step. But numbers that fall
# below E4M3's smallest normal number lose digits, and soon everything. A scale per block makes the error the same
# everywhere, whatever the rest of the matrix is like: an outlier spoils no more than its own block.
#
# Do trained matrices need a scale per block? We measure both ways in `tiny/`, over every matrix that a release in FP8
# would convert.

# %%
matrices = {name: p.detach() for name, p in tiny.named_parameters() if checkpoints.in_fp8(name)}
error = {"a scale per block": [], "one scale for all": []}
for w in matrices.values():
    error["a scale per block"].append(((dequantise(*quantise(w), torch.float32) - w).norm() / w.norm()).item())
    error["one scale for all"].append(((one_scale(w) - w).norm() / w.norm()).item())
for way, found in error.items():
    found = torch.tensor(found)
    print(f"{way}: {found.median():.2%} (least {found.min():.2%}, most {found.max():.2%}) over {len(found)} matrices")

# %% [markdown]
# The two lines agree, because the numbers in different parts of these matrices are of one size. With a scale per block,
# nobody has to check whether they are.
#
# What does FP8 do to the model? We write `tiny/` as an FP8 checkpoint and load it. The loader keeps the routed experts
# in 8 bits and dequantises an expert when a token is routed to it. Everything else is dequantised when the file is
# opened.

# %%
eight = read_safetensors(root / "tiny" / "model.safetensors")
for name in matrices:
    eight[name], eight[f"{name}_scale_inv"] = quantise(eight[name].float())
checkpoints.write(folder / "fp8", json.loads((root / "tiny" / "config.json").read_text()), eight, fp8=True)
small = Qwen3NextForCausalLM.from_pretrained(folder / "fp8", dtype=torch.float32)
print(f"loss {loss(tiny):.4f} in bfloat16, {loss(small):.4f} in FP8")
kept = Counter(str(p.dtype).removeprefix("torch.") for p in small.parameters())
print("matrices and vectors by dtype:", dict(kept))
w = small.model.layers[0].mlp.experts[3].up_proj.dense(torch.float32)
assert torch.equal(w, dequantise(*quantise(matrices["model.layers.0.mlp.experts.3.up_proj.weight"]), torch.float32))
figures.expect("FP8 costs less than 0.05 nats a token", abs(loss(small) - loss(tiny)) < 0.05)

# %% [markdown]
# ## How fast on my machine?
#
# When a model writes one token after another, arithmetic hardly counts. The time goes into reading weights. A token
# reads
#
# - everything that is not a routed expert, $R$ GB, from memory, at $M$ GB/s,
# - its experts, $X$ GB: a share $c$ of them from memory, the rest from the disk, at $D$ GB/s.
#
# $$t = \frac{R}{M} + X \left( \frac{c}{M} + \frac{1 - c}{D} \right) \text{ seconds}, \qquad
# c \approx \frac{\text{memory} - \text{all but experts}}{\text{all experts}} \text{ between 0 and 1}.$$
#
# The estimate of $c$ assumes that the experts in memory are a random choice. All sizes follow from the layout. A token
# reads only one row of the embedding, so the embedding takes memory but does not count in $R$. MTP is left out. From an
# FP8 checkpoint, the experts stay in 8 bits, and the rest is in bfloat16 once it is opened.


# %%
def is_expert(name: str) -> bool:
    return ".experts." in name


main = {name: n for name, n in count.items() if not name.startswith("mtp.")}
rest = 2 * sum(n for name, n in main.items() if not is_expert(name)) / 1e9  # GB
R = rest - 2 * count["model.embed_tokens.weight"] / 1e9
EXPERTS = {
    kind: width * sum(n for name, n in main.items() if is_expert(name)) / 1e9
    for kind, width in (("bfloat16", 2), ("FP8", 1))
}
CHOSEN = {kind: size * 10 / 512 for kind, size in EXPERTS.items()}
print(f"all but the experts: {rest:.2f} GB in memory, {R:.2f} GB read for each token")
for kind in CHOSEN:
    print(f"{kind:9} experts {EXPERTS[kind]:6.1f} GB, of which a token reads {CHOSEN[kind]:.2f} GB")


def tokens_per_second(kind: str, memory: float, M: float, D: float) -> float:
    """memory in GB; M and D, reading speeds of memory and disk, in GB/s."""
    c = min(max((memory - rest) / EXPERTS[kind], 0), 1)
    return 1 / (R / M + CHOSEN[kind] * (c / M + (1 - c) / D))


# %% [markdown]
# Now put in your own numbers. Rough ones will do: a laptop's memory reads at 30 to 100 GB/s, an NVMe disk at 2 to 7, a
# SATA disk at 0.5. The picture after that shows tokens a second against memory, for three disks. Look at how each curve
# rises on its way to the dotted line, where everything fits.

# %%
MEMORY, M, D = 32, 50, 3  # GB, GB/s, GB/s: yours
for kind in CHOSEN:
    print(f"{kind:9} {tokens_per_second(kind, MEMORY, M, D):5.2f} tokens a second")
assert round(tokens_per_second("bfloat16", 200, 30, 2), 1) == 4.2  # the figures in docs/weights.md
assert round(tokens_per_second("bfloat16", 24, 30, 2), 1) == 0.7
assert round(tokens_per_second("bfloat16", 64, 30, 2), 1) == 0.9

# %%
sizes = torch.arange(8, 193).tolist()
curves = {
    kind: {disk: [tokens_per_second(kind, m, 50, disk) for m in sizes] for disk in (0.5, 2, 7)} for kind in CHOSEN
}
pictures.speed(sizes, curves, {kind: EXPERTS[kind] + rest for kind in CHOSEN})

# %% [markdown]
# The curves rise slowly for most of their length, because with half of the experts in memory, half of the disk's time
# remains. The gain comes at the end. Left of the dotted line, the speed of the disk decides, and not the speed of the
# memory. FP8 helps twice: there is half as much to read, and twice the share is in memory.
#
# The formula leaves out the arithmetic. For FP8 experts on a CPU this is not small, since they are dequantised each
# time. Is the rest true? `benchmarks/real_width.py` timed four layers of the real width: with none of the experts in
# memory, so that all were read from a disk ($c = 0$), and with all of them in memory. These are its stored figures:

# %%
measured = json.loads((root / "benchmarks" / "results" / "real_width_cpu.json").read_text())
cold = next(row for row in measured["rows"] if row["kind"] == "cold" and row["way"] == "ours")
print(f"read for a token / experts it was routed to: {cold['read_to_routed']:.4f}")
print(f"experts over speed of the disk: {cold['routed_per_token'] / measured['disk_bytes_per_s']:.2f} s a token")
print(f"measured:                       {cold['seconds_per_token']:.2f} s a token")
print(f"all in memory:                  {1 / measured['warm']['tokens_per_s']:.2f} s a token")

# %% [markdown]
# The first line counts bytes: 1 means that nothing but the chosen experts was read. The second line is the disk's part
# of the formula alone. Compare it with the third: they hardly differ, because an expert is computed while the next ones
# are being read. The formula adds the two times, so it is a little too pessimistic.

# %% [markdown]
# ## Qwen3.5: other names for the same blocks
#
# Can the same code run Qwen3.5? Its text models are built of the same blocks, and the smallest, Qwen3.5-0.8B, is a file
# of 1.75 GB. But its checkpoints store the blocks differently. `qwen3_5.py` translates them, in three functions:
#
# | function | Qwen3.5 | Qwen3-Next |
# |---|---|---|
# | `translate_config` | the text model's fields under `text_config` | at the top |
# | | `rope_parameters`: {`rope_theta`, ...} | `rope_theta`, ... (both are read) |
# | | dense model: no `num_experts` | `num_experts` 0 |
# | `rename` | `model.language_model.X` | `model.X` |
# | | `model.visual.*` | left out |
# | | `mtp.*`, `lm_head.*` | the same |
# | `repack` | `in_proj_qkv`: all q, all k, all v | `in_proj_qkvz`, by key head |
# | | `in_proj_z` | |
# | | `in_proj_b`, `in_proj_a` | `in_proj_ba`, by key head |
# | (the loader itself) | `mlp.experts.gate_up_proj` (E, 2 I, D), gate first | `mlp.experts.E.gate_proj.weight`, `up_proj` |
# | | `mlp.experts.down_proj` (E, D, I) | `mlp.experts.E.down_proj.weight` |
#
# (E experts of inner width I; D is `hidden_size`.) In Qwen3.5's checkpoints, the flat order is the right one.
#
# We test the translation on a small random model in Qwen3.5's layout: the dense kind, with different numbers of key and
# value heads. Its config comes first.

# %%
rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
text = {
    "model_type": "qwen3_5_text",
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "intermediate_size": 40,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,  # r = 3 value heads to a key head
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 20,
    "rope_parameters": rope,
}
qwen3_5_config = {"model_type": "qwen3_5", "text_config": text, "tie_word_embeddings": True}
config = Qwen3NextConfig.from_dict(qwen3_5.translate_config(qwen3_5_config))
print(config.num_experts, config.rope_theta, config.layer_types)

# %% [markdown]
# Then we make random tensors with Qwen3.5's names. We take the names and shapes of the Qwen3-Next model, and replace
# the two packed projections by the four flat ones.

# %%
torch.manual_seed(2)
G, H, K, V = 2, 6, 12, 20  # key heads, value heads, their widths
flat_rows = {"in_proj_qkv": 2 * G * K + H * V, "in_proj_z": H * V, "in_proj_b": H, "in_proj_a": H}
tensors = {"model.visual.patch_embed.proj.weight": torch.randn(16, 12)}  # in place of the vision tower
for name, p in Qwen3NextForCausalLM(config).named_parameters():
    name = name.replace("model.", "model.language_model.", 1)
    if "in_proj_qkvz" in name:
        layer = name.removesuffix("in_proj_qkvz.weight")
        tensors |= {f"{layer}{part}.weight": 0.3 * torch.randn(rows, 48) for part, rows in flat_rows.items()}
    elif "in_proj_ba" not in name:
        tensors[name] = p.detach()
(folder / "qwen3.5").mkdir()
(folder / "qwen3.5" / "config.json").write_text(json.dumps(qwen3_5_config))
save_file(tensors, folder / "qwen3.5" / "model.safetensors")
print(*sorted(name for name in tensors if "layers.0" in name or "visual" in name), sep="\n")

# %% [markdown]
# `from_pretrained` sees the config's `model_type` and calls the three functions. Here we call `rename` and `repack`
# ourselves, and look at what changes in layer 0.

# %%
renamed = qwen3_5.rename(tensors)
repacked = qwen3_5.repack(renamed, config.to_dict())
for name in sorted(repacked.keys() - renamed.keys()):
    if "layers.0" in name:
        print("new: ", name, tuple(repacked[name].shape))
for name in sorted(renamed.keys() - repacked.keys()):
    if "layers.0" in name:
        print("gone:", name, tuple(renamed[name].shape))
shared = renamed.keys() & repacked.keys()
assert all(repacked[name] is renamed[name] for name in shared) and len(shared) > 20  # nothing else is copied

# %% [markdown]
# How do we know that the rows came out in the right order? We multiply a layer's input by the *flat* matrices, cut the
# results by plain slices, and compare them with the $q$, $k$, $v$, $z$, $b$, $a$ of the loaded model. The inputs and
# rows are the same, but a matrix product over rows in a different order may round differently. So we allow a tolerance,
# of the size of float32's rounding.

# %%
model = Qwen3NextForCausalLM.from_pretrained(folder / "qwen3.5")
with torch.no_grad(), recording(model) as trace:
    model(torch.randint(0, 97, (1, 100)))
layer = "model.layers.1"
x = trace[f"{layer}.input_layernorm.out"]  # (T, D)
q, k, v = (x @ renamed[f"{layer}.linear_attn.in_proj_qkv.weight"].T).split([G * K, G * K, H * V], dim=-1)
z, b, a = (x @ renamed[f"{layer}.linear_attn.in_proj_{part}.weight"].T for part in "zba")
for part, mine in {"q": q, "k": k, "v": v, "z": z, "b": b, "a": a}.items():
    theirs = trace[f"{layer}.linear_attn.{part}"].flatten(1)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert theirs.std() > 0.1
print("q, k, v, z, b and a agree, heads in order")

# %% [markdown]
# **The real one.** This command downloads 1.75 GB and runs Qwen3.5-0.8B. It was *not* run for this notebook, which
# downloads nothing, so no output is shown.
#
# ```bash
# python qwen3_next.py --model Qwen/Qwen3.5-0.8B --prompt "Why is the sky blue?" --stats
# ```
#
# The next command downloads 82 GB. It first checks whether the disk has room, and after the download it reads the
# weights as needed. It was not run either.
#
# ```bash
# python qwen3_next.py --model Qwen/Qwen3-Next-80B-A3B-Instruct-FP8 --prompt "Why is the sky blue?" --stats
# ```

# %% [markdown]
# ## Exercises
#
# **1. One tensor only.** Write a function that reads a single tensor of a safetensors file with `seek` and `read`,
# without a mapping. It returns the tensor and the number of bytes that it read. Try it on expert 7 of the large
# checkpoint's first layer.
#
# <details><summary>Solution</summary>
#
# ```python
# def read_one(path, name):
#     with path.open("rb") as source:
#         length = int.from_bytes(source.read(8), "little")
#         entry = json.loads(source.read(length))[name]
#         start, end = entry["data_offsets"]
#         source.seek(8 + length + start)
#         data = bytearray(source.read(end - start))
#     dtype = {"BF16": torch.bfloat16, "F32": torch.float32}[entry["dtype"]]
#     return torch.frombuffer(data, dtype=dtype).view(entry["shape"]), 8 + length + end - start
#
# name = "model.layers.0.mlp.experts.7.up_proj.weight"
# tensor, read = read_one(shards[0], name)
# assert tuple(tensor.shape) == layout[name][1] and read < 4e6
# name = "model.layers.1.mlp.gate.weight"
# assert torch.equal(read_one(root / "tiny" / "model.safetensors", name)[0], mapped[name])
# ```
#
# It reads some 2 MB of matrix and less than 1 MB of header, from a file of 4 GB.
#
# </details>
#
# **2. What would it take?** You have 64 GB of memory that reads at 50 GB/s, and you want 3 tokens a second from the 80B
# in bfloat16. How fast must the disk be? And how much memory would be enough with a disk of 7 GB/s?
#
# <details><summary>Solution</summary>
#
# Solve the formula for $D$, and for $c$:
#
# $$D = \frac{X (1 - c)}{t - R / M - X c / M}, \qquad c = \frac{R / M + X / D - t}{X / D - X / M}.$$
#
# ```python
# t, M, x = 1 / 3, 50, CHOSEN["bfloat16"]
# c = (64 - rest) / EXPERTS["bfloat16"]
# D = x * (1 - c) / (t - R / M - x * c / M)
# print(f"disk: {D:.1f} GB/s")
# assert abs(tokens_per_second("bfloat16", 64, M, D) - 3) < 1e-6
# c = (R / M + x / 7 - t) / (x / 7 - x / M)
# memory_needed = rest + c * EXPERTS["bfloat16"]
# print(f"memory: {memory_needed:.0f} GB")
# assert abs(tokens_per_second("bfloat16", memory_needed, M, 7) - 3) < 1e-6
# ```
#
# </details>
#
# **3. The way back.** Write the inverse of `repack` for one layer: from `in_proj_qkvz` to `in_proj_qkv` and
# `in_proj_z`. Test it on the small Qwen3.5 model.
#
# <details><summary>Solution</summary>
#
# Cut the rows by key head, cut each group into its four parts, and put the parts of all heads together.
#
# ```python
# def unpack(qkvz, G, H, K, V):
#     r = H // G
#     groups = qkvz.unflatten(0, (G, -1))  # (G, rows of a key head, D)
#     q, k, v, z = (part.flatten(0, 1) for part in groups.split([K, K, r * V, r * V], dim=1))
#     return torch.cat([q, k, v]), z
#
# layer = "model.layers.1.linear_attn"
# qkv, z = unpack(repacked[f"{layer}.in_proj_qkvz.weight"], G, H, K, V)
# assert torch.equal(qkv, renamed[f"{layer}.in_proj_qkv.weight"])
# assert torch.equal(z, renamed[f"{layer}.in_proj_z.weight"])
# ```
#
# </details>
#
# **4. Fill in.** Write the part of a loader that cuts the rows of `in_proj_qkvz` into $q$, $k$, $v$ and $z$, each with
# its heads in order. The rows are grouped by key head. If you get it wrong, only the values will tell you.


# %%
def split_qkvz(weight, G, r, K, V):
    """weight (G * (2 K + 2 r V), D) -> q (G, K, D), k (G, K, D), v (G * r, V, D), z (G * r, V, D)"""
    ...  # your part


def test_split_qkvz(attempt):
    for G, r, K, V in ((2, 2, 2, 3), (3, 1, 4, 5), (2, 3, 5, 2)):
        rows = rows_of_qkvz(G, r, K, V)
        weight = torch.arange(len(rows) * 2.0).view(-1, 2)  # a different number everywhere
        for kind, part in zip("qkvz", attempt(weight, G, r, K, V)):
            for head in range(len(part)):
                mine = weight[[i for i, row in enumerate(rows) if row == f"{kind}{head}"]]
                assert torch.equal(part[head], mine), f"{kind} of head {head} has other rows"


course.try_it(test_split_qkvz, split_qkvz)


# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def split_qkvz(weight, G, r, K, V):
#     groups = weight.unflatten(0, (G, -1))  # (G, rows of a key head, D)
#     q, k, v, z = groups.split([K, K, r * V, r * V], dim=1)
#     return q, k, v.reshape(G * r, V, -1), z.reshape(G * r, V, -1)
#
#
# test_split_qkvz(split_qkvz)
# ```
#
# </details>
#
# ## Sources
#
# Names, shapes and shards come from the published index and config.json of Qwen/Qwen3-Next-80B-A3B-Instruct and of its
# FP8 release. FP8 in blocks is described in DeepSeek-V3, arXiv 2412.19437, section 3.3, and the format in arXiv
# 2209.05433. For Qwen3.5 the source is transformers 5.24, models/qwen3_5 and models/qwen3_5_moe. `qwen3_5.py` is tested
# against it.
#
# ## Five questions
#
# 1. What is read when a checkpoint of 163 GB is opened by mapping it? What grows by its size, and what does not?
# 2. Which bytes of the 80B does one token read, and which does it leave alone?
# 3. Three projections can be read in the wrong order without any error message. Which of the wrong readings is the most
#    dangerous, and how do you find all three?
# 4. In E4M3, when is one scale for a whole matrix as good as a scale per block, and when not? Why does INT8 do worse?
# 5. Half of the experts fit in your memory. Why do you not get half of the full speed? And why does FP8 help twice?
#
# <details><summary>Answers</summary>
#
# 1. Only the headers are read, a few megabytes. The addresses in use grow by the size of the checkpoint. The memory
#    does not.
# 2. A token reads 10 of 512 routed experts in each layer, one row of the embedding, and all other weights except for
#    MTP. The other experts are not touched.
# 3. The mildest one, because a model that is a little worse still writes text. Compare the port's values with a
#    reference, one by one.
# 4. One scale is as good as long as all numbers are within a factor of a thousand of the largest, because E4M3 has an
#    exponent for each number. Smaller numbers lose digits, and soon everything. INT8 has no exponent, so it loses from
#    the first step. With a scale per block, an outlier spoils no more than its own block.
# 5. The disk takes nearly all of the time, and half of the experts still come from the disk for every token. So the
#    time is only halved, compared with no experts in memory. With FP8 there is half as much to read, and twice the
#    share is in memory.
#
# </details>
#
# ## Three sentences to remember
#
# 1. To open a mapped checkpoint, only its headers are read, and a token then reads the experts that it is routed to and
#    nothing of the others.
# 2. Names and shapes can fit while the rows are read in the wrong order, so compare values with a reference.
# 3. As long as the weights do not fit in memory, the speed of the disk decides how many tokens a second you get.
#
# Next: [10_prove_a_port.ipynb](10_prove_a_port.ipynb), on how to find out whether a port is right.
