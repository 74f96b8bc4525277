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
# # 10. Prove a port
#
# You have rewritten Qwen3-Next for a new framework or a new chip, and it writes fluent text. Is the port right? The
# text cannot tell you. One port of this model wrote plausible text with its value heads in the wrong order ([llama.cpp,
# pull request 21732](https://github.com/ggml-org/llama.cpp/pull/21732)).
#
# This notebook shows why text and perplexity cannot answer the question. It then gives you a method that can: compare
# the values inside the forward pass, stage by stage, with a slow implementation that is simple enough to trust.
# Afterwards you can find a wrong line in a port from two files of tensors and tell an error from rounding. You can also
# say which checks are worth making, and in which order.
#
# You need to know attention and PyTorch, and the names of Qwen3-Next's parts: gated attention, Gated DeltaNet (a memory
# with a decay `g` and a write strength `beta`), and a mixture of experts with a router. You do not need their
# mathematics. For one lesson, take sections 1 to 5 and the table of section 9. The rest is homework.

# %%
from start import root

# %%
import json
import math
import random
import tempfile
import textwrap
import warnings
from pathlib import Path

import corpus
import course
import figures
import numpy as np
import torch
from pictures import port as pictures

# %%
import qwen3_next
from qwen3_next import Qwen3NextTokenizer
from reference_recurrent import Reference
from verify import compare, measures, mutations, scenarios, stages
from verify.reference import run_reference
from verify.trace import recording

figures.setup()
warnings.filterwarnings("ignore", "IProgress not found")  # a notebook needs no progress bars
tokenizer = Qwen3NextTokenizer.from_pretrained(root / "tiny")
pictures.method()

# %% [markdown]
# This is where we are going. We will not ask *is the text good?* We will ask *which value is the first wrong one?*
#
# ## 1. Spot the bug
#
# Can you see a bug in the text that a model writes? `tiny/` is a small trained model that tells stories. We make six
# broken copies of it. Each has the same weights and the same code, except for one replaced line of
# [`qwen3_next.py`](../qwen3_next.py). Porters make mistakes of all six kinds. Five of the six are on the lists with
# which [`verify/mutations.py`](../verify/mutations.py) tests the tools below.

# %%
source = (root / "qwen3_next.py").read_text(encoding="utf-8")
blind = {
    one["name"]: (one["old"], one["new"]) for one in json.loads((root / "verify/mutations_blind.json").read_bytes())
}
known = {name: lines[:2] for name, lines in mutations.MUTATIONS.items()} | blind
shared = "self.shared_expert(x), router_logits"
gelu = "self.shared_expert.down_proj(F.gelu(self.shared_expert.gate_proj(x)) * self.shared_expert.up_proj(x))"
BUGS = {  # what is wrong: (a line of qwen3_next.py, what it becomes)
    "chosen experts' weights not divided by their sum": known["chosen weights not normalised"],
    "decay by |A_log| instead of e^A_log": known["A_log instead of its exponential"],
    "in_proj_ba's rows read in the wrong order": known["b and a read flat"],
    "q_norm and k_norm after RoPE instead of before": known[
        "q_norm and k_norm applied after the rotation instead of before"
    ],
    "GELU instead of SiLU in the shared expert": (shared, f"{gelu}, router_logits"),
    "token by token, the error taken before the decay": known["decay after the error"],
}

# %% [markdown]
# Two right models join the six broken ones. One computes in float32, the other in bfloat16.

# %%
folder = Path(tempfile.mkdtemp())


def broken(name: str, bugs: dict = BUGS):
    """qwen3_next.py as a module of its own, with one line replaced."""
    old, new = bugs[name]
    assert source.count(old) == 1, name
    return mutations.load(source.replace(old, new), [*bugs].index(name), folder)


def model_of(module, dtype: str = "float32"):
    return module.Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype)


modules = {"right, float32": qwen3_next, "right, bfloat16": qwen3_next, **{name: broken(name) for name in BUGS}}
models = {
    name: model_of(module, name.split()[-1] if "right" in name else "float32") for name, module in modules.items()
}

# %% [markdown]
# A model is usually judged by its perplexity on a text $t_1 \dots t_n$ that it has not seen:
#
# $$\mathrm{ppl} = \exp\Big(-\frac{1}{n-1}\sum_{i=2}^{n} \log p(t_i \mid t_1 \dots t_{i-1})\Big).$$
#
# Lower is better. `tiny/corpus.py` writes as many such texts as we like. We take 16 documents whose pairs of a name and
# a thing never occurred in training.


# %%
def documents(label: str, count: int = 16) -> list[list[int]]:
    source = corpus.Corpus("held out")
    return [tokenizer.encode(corpus.text_of(source.document(f"{label}:{n}"))) for n in range(count)]


@torch.no_grad()
def perplexity(model, texts: list[list[int]]) -> float:
    rows = [torch.tensor([ids]) for ids in texts]  # (1, T) each
    nats = sum(model(row, labels=row).loss.item() * (row.shape[1] - 1) for row in rows)  # loss: mean over T - 1 tokens
    return math.exp(nats / sum(row.shape[1] - 1 for row in rows))


texts = documents("port")
perplexities = {name: perplexity(model, texts) for name, model in models.items()}

# %% [markdown]
# Here are eight samples, one from each model, in random order. Each model was asked for a story and cut off after 64
# tokens. Each sample has its own seed. Otherwise equal beginnings could give a model away.
#
# **Which two are right? Write your guess down before you go on.** (You know the six mistakes. Can you match them to the
# samples?)

# %%
order = list(models)
random.Random(4).shuffle(order)
prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Tell me a story."}])
inputs = tokenizer([prompt], return_tensors="pt").input_ids  # (1, T)
for seed, (letter, name) in enumerate(zip(pictures.LETTERS, order)):
    out = models[name].generate(inputs, max_new_tokens=64, seed=seed)[0, inputs.shape[1] :]
    text = " ".join(tokenizer.decode(out.tolist(), skip_special_tokens=True).split())
    print(textwrap.fill(f"{letter}   {text} ...", 110, subsequent_indent="    "), "\n")

# %% [markdown]
# Would the perplexities help? Here they are without the letters, sorted by size:

# %%
print(*sorted(f"{number:.2f}" for number in perplexities.values()))

# %% [markdown]
# Which two of these numbers belong to the right models? You cannot tell unless you have measured a right model before.
# Now the answer.

# %%
right = perplexities["right, float32"]
for letter, name in zip(pictures.LETTERS, order):
    print(f"{letter}   {perplexities[name]:.3f}   {perplexities[name] / right - 1:+7.2%}   {name}")
quiet = all(right * 0.98 < ppl < right * 1.5 for ppl in perplexities.values())
figures.expect("no perplexity would ring a bell: at most 2 % lower and 50 % higher than the right one", quiet)

# %% [markdown]
# The texts look alike. Even the right models make slips, because `tiny/` is small. The perplexities do differ. But to
# read anything from them, you must already have the right number, for this very text, to at least three digits. Without
# this number you can only compare with an estimate, and perplexity changes more from text to text than most bugs change
# it.
#
# The next picture shows the eight perplexities, and the right model's perplexities on six other sets of 16 documents.
# Circles are right models, crosses are wrong ones, and the band is the right model's range over the other texts.
# Compare the width of the band with the distances between circles and crosses.

# %%
others = [perplexity(models["right, float32"], documents(f"others {n}")) for n in range(6)]
pictures.perplexities([perplexities[name] for name in order], order, others)
print(f"the right model on other texts: {min(others):.3f} to {max(others):.3f}")
gelu_costs = abs(perplexities["GELU instead of SiLU in the shared expert"] - right)
figures.expect("other texts change it by more than a wrong activation does", max(others) - min(others) > gelu_costs)

# %% [markdown]
# If a cross is closer to the circles than the band is wide, it could be the right model on a different text. *At best,
# perplexity shows that something is wrong. It does not show what, or where.*
#
# One of the broken copies even has the right perplexity to the last digit. Its mistake is in the token-by-token form of
# the delta rule, which generation uses. Perplexity is computed in one pass over the whole text, and this pass uses the
# chunked form, which takes many tokens at once. So no text of any length would show this mistake.

# %%
decode_only = perplexities["token by token, the error taken before the decay"]
print(f"right: {right!r}, decode-only bug: {decode_only!r}")
assert decode_only == right

# %% [markdown]
# ## 2. Traces
#
# If the text is not enough, we look at all the values on the way to it. `recording` fills a dict with a copy of every
# named intermediate value. We call this dict a *trace*. Each key is the module's path in the checkpoint, followed by
# the stage. Your port has to provide such a trace: it writes these values, in float32, under these names (or with an
# alias file that renames them).
#
# We take the bug in the router. The router chooses the `num_experts_per_tok` most probable experts. It should then
# divide their probabilities by the sum of these probabilities (`norm_topk_prob` in the config), and this copy forgets
# to. We trace the first 96 tokens of a held-out document, which are three chunks for the delta rule's chunked form.

# %%
ids = documents("trace", 1)[0][:96]
config = json.loads((root / "tiny/config.json").read_bytes())
tokens = {"": {"tokens": ids, "before": []}}  # one step without a name: 96 new tokens after an empty cache


@torch.no_grad()
def traced(model) -> stages.Trace:
    with recording(model) as trace:
        model(torch.tensor([ids]), output_mtp_logits=True)
    return stages.Trace({"": {key: stages.widened(x.numpy()) for key, x in trace.items()}}, tokens, {"config": config})


BUG = "chosen experts' weights not divided by their sum"
mine = traced(models[BUG])
values = mine.steps[""]
print(f"{len(values)} keys; those of layer 1:")
for key in sorted((key for key in values if key.startswith("model.layers.1.")), key=stages.forward_order):
    print(f"    {key:50} {values[key].shape!s:14} {stages.STAGES[stages.stage_of(key)][0]}")

# %% [markdown]
# The other side is the reference, [`reference_recurrent.py`](../reference_recurrent.py). It computes the same pass
# straight from the equations, in NumPy, in float64, one token at a time. It shares no code with `qwen3_next.py`. It is
# slow because it is simple: it has no batch, no chunks, no cache, and nothing clever. Its method `trace` returns the
# same keys.

# %%
reference = Reference.from_pretrained(root / "tiny")
found = reference.trace(ids)  # states are stacked, one for each place asked for: here only the end
found = {key: x[-1] if key.endswith("state") else x for key, x in found.items()}
ref = stages.Trace({"": found}, tokens, {"config": config})
assert ref.steps[""].keys() == values.keys()
print(f"reference: {len(ref.steps[''])} keys, {ref.steps['']['lm_head.out'].dtype}")

# %% [markdown]
# How far apart are two tensors? Let $r$ be the reference's values under one key, and $m$ my port's values. The relative
# error is
#
# $$e = \sqrt{\frac{\sum_i (m_i - r_i)^2}{\sum_i r_i^2}}.$$
#
# The relative error has no unit. $10^{-7}$ is float32 rounding, $10^{-2}$ is bfloat16 rounding after a few layers, and
# 1 means that nothing fits. (The largest absolute error has no such scale, and the cosine hides a wrong factor.)


# %%
def relative_error(r: np.ndarray, m: np.ndarray) -> float:
    return math.sqrt(((m - r) ** 2).sum() / (r**2).sum())


right_float32 = traced(models["right, float32"])
for name, trace in {"right, float32": right_float32, BUG: mine}.items():
    r, m = ref.steps[""]["lm_head.out"], trace.steps[""]["lm_head.out"]  # logits (T, vocab)
    assert math.isclose(relative_error(r, m), measures.relative_error(r, m))
    print(f"{relative_error(r, m):9.2e}   {name}: logits")

# %% [markdown]
# So even the logits separate right from wrong. The two errors are several orders of magnitude apart, while the
# difference in perplexity alone says nothing. But where is the mistake?
#
# ## 3. The first wrong value
#
# [`verify/compare.py`](../verify/compare.py) walks through all keys in the order in which they are computed. How much
# error should it allow? For each stage and dtype, `verify/noise.json` has the largest error that rounding alone caused
# in a right model, measured against the reference. A key may have four times this error, times the square root of the
# number of layers up to it. On the command line:
#
# ```bash
# python verify/trace.py --model tiny --prompt "Hello!" --out mine.safetensors
# python verify/reference.py --model tiny --like mine.safetensors --trace ref.safetensors
# python verify/compare.py ref.safetensors mine.safetensors
# ```
#
# Here we call it as a function. It prints the same lines as the command. Each line has a key, its shape, the ratio of
# the two root mean squares, $e^2$ in decibels (-20 dB is $e = 0.1$), the cosine, the largest error of any entry, the
# allowed error in decibels, the verdict, and a note on the kind of error.


# %%
def report(done: compare.Comparison, rows: int = 8):
    wrong = [row for row in done.rows if row.verdict != "ok"]
    if done.first is None:
        print(f"agree: {len(done.rows)} keys, of them {len(wrong)} with a tie or in another layout\n")
        return
    compare.print_rows(wrong[:rows], every=True)
    print(f"({len(wrong)} of {len(done.rows)} keys are not ok)")
    first = done.first
    print(f"first: {first.name}  at {first.worst}; relative error {first.relative:.3g}, allowed {first.allowed:.3g}")
    print(f"should be: {stages.STAGES[stages.stage_of(first.key)][1]}")
    print(*[f"seen: {first.note}"] * bool(first.note), *(f"likely: {cause}" for cause in first.causes), sep="\n")


report(compare.compare(ref, right_float32, dtype="float32"))
report(chained := compare.compare(ref, mine, dtype="float32"))
assert chained.first.key == "model.layers.0.mlp.topk_weights"

# %% [markdown]
# That is the bug. The key is `topk_weights` of the first layer, and the likely cause is the mistake we put in. "This
# would give just these values" is meant literally. For each well-known mistake, the kit applies the mistake to the
# reference's own values and compares the result with my values. We can do this by hand:

# %%
prefix = "model.layers.0.mlp."
p, chosen = (ref.steps[""][prefix + name] for name in ("router_probs", "topk_ids"))  # (T, E) and (T, k)
forgotten = np.take_along_axis(p, chosen, axis=1)  # the chosen experts' probabilities as they are, (T, k)
weights, order_of = values[prefix + "topk_weights"], values[prefix + "topk_ids"].argsort(1)
same_order = np.take_along_axis(forgotten, chosen.argsort(1), 1), np.take_along_axis(weights, order_of, 1)
print(f"against the cause: {relative_error(*same_order):.1e}")
print(f"sums of mine: {weights.sum(1).min():.3f} to {weights.sum(1).max():.3f}; they should be 1")
assert relative_error(*same_order) < 1e-5  # float32: 6e-8 for a rounding, and a few layers' worth of them

# %% [markdown]
# ## 4. Chained and isolated
#
# Nearly every key after the bug is wrong as well, because it was computed from wrong values. How do we find out whether
# there is a second bug? Let $f_s$ be the function that stage $s$ computes. The reference computes
# $x_s = f_s(x_{\lt s})$, and the port computes $\hat x_s = \hat f_s(\hat x_{\lt s})$. There are two comparisons:
#
# - **chained** compares $\hat x_s$ with $x_s$. Each side continues with its own values, so the error is that of this
#   stage *and* of all stages before it. This is the error that the user gets, but only the first wrong key can be
#   blamed.
# - **isolated** compares $\hat x_s$ with $f_s(\hat x_{\lt s})$. The reference runs again, and every stage of it reads
#   the port's values. The error is the part that this stage alone has added, so each wrong stage is named separately.

# %%
isolated = compare.compare(ref, mine, dtype="float32", isolated=True, reference=reference)
report(isolated)
wrong = {stages.stage_of(row.key) for row in isolated.rows if row.verdict != "ok"}
assert wrong == {"mlp.topk_weights"}  # one stage, in each layer

# %% [markdown]
# The isolated comparison blames one stage, once in each layer, and clears the rest of the port.
#
# In float32, the isolated comparison is convenient. In bfloat16, you cannot do without it. A bfloat16 number has 8
# significant bits, so each operation leaves a relative error of up to $2^{-8}$. After a few layers, the chained errors
# of a right model are about a hundredth.
#
# The next picture shows the same two models in bfloat16, at all keys in forward order: chained above, isolated below.
# Blue circles are the right model, red diamonds are the broken one, and black dashes are the allowed error. In each
# plot, look for the place where red leaves blue.

# %%
traces = {name: traced(model_of(modules[name], "bfloat16")) for name in ("right, bfloat16", BUG)}
done = {
    (name, mode): compare.compare(ref, trace, dtype="bfloat16", isolated=mode == "isolated", reference=reference)
    for name, trace in traces.items()
    for mode in ("chained", "isolated")
}


pictures.two_ways(done, BUG)

# %% [markdown]
# The upper plot is chained. After the first norm, the right model's error is that of one bfloat16 rounding. Then it
# drifts upwards, because each layer adds its own error. After the bug, the broken model's error is higher at all keys
# alike. Is that alarming? The allowed error must be generous here, since rounding alone has gone that far in other
# models and on other texts. So a broken model can stay below it. (Here this one did: the next lines say that it
# agrees.)
#
# The lower plot is isolated, and nothing drifts. Each stage is measured from the port's own inputs, so the last layer
# is no worse than the first. The bug sticks out by orders of magnitude, at one stage of each layer. (Values that are
# computed in float32 even in a bfloat16 model lie far below the rest. Stages that only rearrange their input have no
# error at all and are not drawn.)

# %%
for (name, mode), one in done.items():
    first = "agrees" if one.first is None else one.first.key
    print(f"{mode:9}  {'right ' if 'right' in name else 'broken'}  {first}")
assert done["right, bfloat16", "chained"].first is None and done["right, bfloat16", "isolated"].first is None
assert done[BUG, "isolated"].first.key == "model.layers.0.mlp.topk_weights"

# %% [markdown]
# So the rule is: *first chained in float32, then isolated in the dtype of your hardware*. If the port cannot run in
# float32, only the isolated comparison is sharp enough.
#
# ## 5. The eight samples again
#
# Can the comparison tell the right samples among A to H from the wrong ones? One bug shows only in decoding, so we
# trace a prompt and then three more tokens one by one, as generation does. `scenarios.run` feeds these steps to a model
# and carries the cache from step to step. `run_reference` does the same with the reference.

# %%
steps = {"prefill": (0, 64), "decode 1": (64, 65), "decode 2": (65, 66), "decode 3": (66, 67)}
steps = {name: {"tokens": ids[a:b], "before": ids[:a]} for name, (a, b) in steps.items()}
ref_steps = stages.Trace(run_reference(reference, steps), steps, {"config": config})


def verdict(name: str) -> compare.Comparison:
    found, _ = scenarios.run(models[name], steps)
    mine = stages.split_batches(stages.Trace(found, steps, {}), steps, "right")  # float64, one sequence a step
    return compare.compare(ref_steps, mine, dtype=str(models[name].dtype).removeprefix("torch."), reference=reference)


verdicts = {name: verdict(name) for name in order}


def excess(done: compare.Comparison) -> float:
    """The largest error in units of what is allowed: up to 1 is rounding."""
    return max(row.relative / row.allowed for row in done.rows if "topk_ids" not in row.key)


for letter, (name, one) in zip(pictures.LETTERS, verdicts.items()):
    print(f"{letter}  {name}\n      {'agrees' if one.first is None else one.first.name}")
    print(*[f"      {cause}\n" for cause in (one.first.causes[:1] if one.first else [])], sep="", end="")

# %% [markdown]
# Each key names the place where the line was replaced. The cause comes from a list of known mistakes. If it "would give
# just these values", it is certain. Otherwise it is only a mistake that is common at this stage, and may be the wrong
# one.
#
# The picture compares the two methods on the eight samples. On the left is the perplexity, and on the right the largest
# error as a multiple of the allowed error. Does a gap separate the circles (right) from the crosses (wrong)?

# %%
pictures.two_methods([perplexities[name] for name in order], [excess(verdicts[name]) for name in order], order)
for name, one in verdicts.items():
    assert (excess(one) <= 1) == ("right" in name) and (one.first is None) == ("right" in name), name

# %% [markdown]
# On the left, you see the answer only if you know it already. On the right, a wide gap separates circles from crosses.
# You can draw the line at 1 without knowing the right text, and each cross comes with the name of a stage. *Compare
# tensors, not texts.*
#
# ## 6. Against transformers
#
# Does this work for other implementations? It works for any. In PyTorch, a forward hook on every module is nearly all
# it takes (as in [`verify/examples/transformers_hooks.py`](../verify/examples/transformers_hooks.py)). Hooks do not see
# the steps between modules, such as the delta rule itself. So fewer keys are shared, and an error between two modules
# shows only at the next module's output. `verify/aliases/transformers.json` maps transformers' names to ours.

# %%
try:
    import transformers
except ImportError:
    transformers = None
    print("transformers is not installed: pip install transformers, to run this section")
theirs, aliases = {}, json.loads((root / "verify/aliases/transformers.json").read_bytes())


def record(name: str, output):
    outputs = output if isinstance(output, tuple) else (output,)
    keys = [f"{name}.out"]
    if name.endswith("mlp.gate"):  # the router returns its logits, the weights and the choice
        keys += [name.replace("gate", "topk_weights"), name.replace("gate", "topk_ids")]
    for key, x in zip(keys, outputs):
        for ours, _ in stages.rename(key, aliases) if isinstance(x, torch.Tensor) else []:
            theirs[ours] = stages.widened(x.detach().squeeze(0).numpy())


# %%
if transformers:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    their_model = transformers.Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float32)
    for name, module in their_model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: record(name, output))
    with torch.no_grad():
        their_model(torch.tensor([ids]))

# %%
if transformers:
    theirs_done = compare.compare(ref, stages.Trace({"": theirs}, tokens, {}), dtype="float32", reference=reference)
    report(theirs_done)
    logits = next(row for row in theirs_done.rows if row.key == "lm_head.out")
    print(f"logits: relative error {logits.relative:.1e}, allowed {logits.allowed:.1e}")
    assert logits.relative <= logits.allowed

# %% [markdown]
# Three implementations that share no code agree up to rounding: this project's chunked PyTorch, transformers' chunked
# PyTorch, and a loop over tokens in NumPy. One caution: a port also agrees with an implementation that makes the same
# mistake ([MaxText, pull request 2672](https://github.com/AI-Hypercomputer/maxtext/pull/2672) is such a case). The less
# two implementations have in common, the more their agreement is worth.
#
# ## 7. Ties
#
# Does rounding always stay small? In one place it does not. The router takes the $k$ most probable experts, and this
# choice is a discontinuous function. If the last expert chosen and the first one left out have nearly the same
# probability, rounding may swap them. Then a different expert computes this token. So we look at the margin,
#
# $$\text{margin} = p_{(k)} - p_{(k+1)},$$
#
# where $p_{(j)}$ is the $j$-th largest of the router's probabilities for a token. The margin is a key of the traces.
# How small does it get, and how much does rounding move a probability?
#
# For each value on the horizontal axis of the picture, the curve gives the share of all choices (tokens times layers)
# with a smaller margin. Dashed lines show how far rounding moves a probability, and points are choices that came out
# differently. At what height does the curve cross the dashed lines?

# %%
layers = range(config["num_hidden_layers"])
margins = np.concatenate([ref.steps[""][f"model.layers.{i}.mlp.margin"] for i in layers])  # (layers * T,)


def moved(trace: stages.Trace) -> tuple[np.ndarray, np.ndarray]:
    """For each choice: how far a probability has moved at most, and whether other experts were chosen."""
    far, other = [], []
    for i in layers:
        (p, q), (r, m) = (
            [t.steps[""][f"model.layers.{i}.mlp.{key}"] for t in (ref, trace)] for key in ("router_probs", "topk_ids")
        )
        far.append(np.abs(q - p).max(1))
        other.append((np.sort(r, 1) != np.sort(m, 1)).any(1))
    return np.concatenate(far), np.concatenate(other)


# %%
rounding = {"float32": moved(right_float32), "bfloat16": moved(traces["right, bfloat16"])}
for name, (far, other) in rounding.items():
    print(f"{name}: {other.sum()} of {len(other)} choices differ; a probability moves by {np.median(far):.1e} (median)")
    assert (margins[other] <= 2 * far[other]).all()  # never where the margin was safe: one may fall and the other rise
pictures.margins(margins, rounding)

# %% [markdown]
# The height of the crossing is the share of choices with a margin smaller than the changes that rounding makes. In
# float32 hardly any choice is in danger. In bfloat16 a good many are, and a few come out differently (points). The
# assertion says that these are ties: the margin of each is at most twice the largest change of this token's
# probabilities. (Twice, because one of the two probabilities may have risen and the other fallen by that much.) A port
# that chooses wrongly would break the assertion.
#
# What does a tie do? With a different expert, the mixture's output for this token is off by more than rounding, and a
# comparison that ignores ties would call the port wrong. But a tie is nobody's mistake. The right question is whether
# the rest follows *from the choice that my port made*. So we give the reference my port's choice and run it again.

# %%
mine16 = traces["right, bfloat16"].steps[""]
keys = [f"model.layers.{i}.mlp.topk_ids" for i in layers]
again = reference.trace(ids, forced={key: mine16[key] for key in keys})
flipped = np.split(moved(traces["right, bfloat16"])[1], len(layers))  # (T,) bool for each layer
errors = []
for key, tied in zip(keys, flipped):
    out = key.replace("topk_ids", "experts.out")  # (T, D)
    for t in np.flatnonzero(tied):
        errors.append([relative_error(values[out][t], mine16[out][t]) for values in (ref.steps[""], again)])
        print(f"{key}, token {t:2}: error of experts.out {errors[-1][0]:.3f}, with mine's choice {errors[-1][1]:.3f}")
own, forced = np.array(errors).reshape(-1, 2).T
print(f"{len(errors)} tokens got another expert at some layer")
course.finding("with my port's choice, less than half of the error is left", forced.sum() <= own.sum() / 2)

# %% [markdown]
# `compare.py` does this automatically if it is given the reference. It decides from the probabilities whether a
# different choice is a tie. If so, it forces my choice on the reference and goes on. Without the reference, it compares
# a sequence only up to the tie, since attention and the DeltaNet states carry a token's values to all later tokens. A
# different choice at a margin too wide for rounding remains an error.

# %%
ties = [row for row in done["right, bfloat16", "chained"].rows if row.verdict == "tie"]
print(*(f"{row.key}: {row.note}" for row in ties), sep="\n")
figures.expect("among 96 tokens there is a tie in bfloat16", bool(ties))
assert done["right, bfloat16", "chained"].first is None

# %% [markdown]
# ## 8. Which check sees which bug
#
# A check proves only the values that it looks at. So which checks do we need? We try six checks on eleven bugs, the six
# from above and five more:
#
# - perplexity (does it move by more than a percent?),
# - a prompt of 32 tokens,
# - a prompt of 96 tokens,
# - a prompt of 64 tokens, then three tokens one by one,
# - a padded batch, then one more token for each sequence,
# - the layer for multi-token prediction (MTP), which drafts the token after next.
#
# All but perplexity compare tensors in float32. Here a chunk of the delta rule has 32 tokens. The picture is a table of
# bugs and checks. Read it by columns: what does each check miss?

# %%
MORE = BUGS | {
    "no decay of the state from chunk to chunk": known["cross-chunk decay dropped"],
    "convolution's window one token too early": known["convolution window ends one token too early"],
    "positions begin at 0 in each call": known["positions begin anew in each call"],
    "padding makes the state forget": known["padding decays the state"],
    "MTP's pair in the wrong order": known["MTP's pair in the other order"],
}
CHECKS = ["perplexity", "prompt of 32", "prompt of 96", "decode", "padded batch", "MTP"]
feeds = {f"prompt of {n}": {"prefill": {"tokens": ids[:n], "before": []}} for n in (32, 96)}
feeds |= {"decode": steps, "padded batch": scenarios.steps_of("padded", ids, mtp=True)}
refs = {check: run_reference(reference, feed) for check, feed in feeds.items()}


# %%
def seen_by(name: str) -> list[bool]:
    module = modules.get(name) or broken(name, MORE)
    model, wrong = models.get(name) or model_of(module), {}
    for check, feed in feeds.items():
        pair = (stages.Trace(found, feed, {"config": config}) for found in (refs[check], scenarios.run(model, feed)[0]))
        done = compare.compare(*(stages.split_batches(one, feed, "right") for one in pair), dtype="float32")
        wrong[check] = [row.key for row in done.rows if row.verdict in ("differs", "shape")]
    plain = [any(not key.startswith("mtp.") for key in wrong[check]) for check in feeds]
    off = abs(perplexity(model, texts[:12]) / few - 1) > 0.01
    return [off, *plain, any(key.startswith("mtp.") for key in wrong["prompt of 96"])]


few = perplexity(models["right, float32"], texts[:12])
seen = {name: seen_by(name) for name in MORE}

# %%
pictures.seen(seen, CHECKS)

# %%
claims = {
    "each bug is seen by some comparison of tensors": all(any(found[1:]) for found in seen.values()),
    "not each by perplexity": sum(found[0] for found in seen.values()) < len(seen),
    "one chunk has no chunk before it": seen["no decay of the state from chunk to chunk"][1:3] == [False, True],
    "generation alone uses a cache": seen["positions begin at 0 in each call"][:4] == [False, False, False, True],
    "a wrong window shows in the state that a prompt leaves": seen["convolution's window one token too early"][2],
}
for claim, holds in claims.items():
    course.finding(claim, holds)

# %% [markdown]
# Perplexity misses every bug that shows only with a cache, padding or MTP, and every small one. A prompt of one chunk
# never crosses from one chunk to the next. No prompt reads a cache, but it shows a wrong convolution window that it
# *leaves* there, since states are compared as well. Decoding never sees padding. The MTP layer shows mistakes in the
# hidden states that it is given, and its own bug shows nowhere else. No check is enough alone, and each takes seconds.
#
# ## 9. A checklist
#
# | step | compare | with | what it proves | what it does not |
# |---|---|---|---|---|
# | 1. tokens | ids of the same text, chat template included | exact | both are fed the same | |
# | 2. one operation | the delta rule alone: output *and* state; 65 tokens or more, K unlike V, a state that is not zero | float32 | chunking, decay, mask | its inputs |
# | 3. one layer of each kind | all keys of a DeltaNet and of an attention layer, on real weights | float32, chained | layout of the weights, heads, norms, gates | cache, depth |
# | 4. a whole prompt | all keys, on several chunks | float32, chained | the forward pass | anything with a cache |
# | 5. the same in your dtype | all keys | isolated | no stage loses precision it should keep | |
# | 6. decode | a prompt, then tokens one by one; then in pieces | float32, states included | convolution window, state, positions | padding |
# | 7. padding | sequences of unequal length, left and right, then one more token each | float32 | nothing leaks into the state | |
# | 8. MTP | drafts, and the rollback of a rejected one | float32 | what goes into the layer; the rollback | |
# | 9. text, perplexity | the right number, on the same text | | that 1 to 8 were complete, perhaps | |
# | 10. speed | | | | |
#
# Three rules go with the checklist. Feed ids, not text. Choose shapes that forgive nothing: different numbers of key
# and value heads, different widths K and V, and lengths that are not multiples of the chunk. With equal numbers,
# careless code happens to be right. Keep the traces, and repeat the comparison after each optimisation, because that is
# when bugs come in.

# %% [markdown]
# ## Exercises
#
# **1. A bug that is no bug.** The model takes a softmax over all experts, then the $k$ largest, and divides these by
# their sum. A port takes the $k$ largest router *logits* instead, and then a softmax over these $k$ alone. Which keys
# can differ? Prove your answer with an equation, then put the change in and let the kit decide.
#
# <details><summary>Solution</summary>
#
# Softmax keeps the order, so the choice is the same. With $p_e = e^{l_e} / Z$, dividing by the sum over the chosen set
# $C$ gives $\frac{e^{l_e} / Z}{\sum_{j \in C} e^{l_j} / Z} = \frac{e^{l_e}}{\sum_{j \in C} e^{l_j}}$. $Z$ cancels, and
# the softmax over $C$ is left. No weight differs, as long as `norm_topk_prob` is true. `router_probs` would differ in a
# port that writes the smaller softmax under this name. With `norm_topk_prob` false, the change would be a bug.
#
# ```python
# other = {
#     "softmax after the choice": (
#         "topk_weights = chosen_probs / chosen_probs.sum(-1, keepdim=True)",
#         "topk_weights = upcast(router_logits).gather(-1, topk_ids).softmax(-1)",
#     )
# }
# done = compare.compare(ref, traced(model_of(broken("softmax after the choice", other))), dtype="float32")
# report(done)
# assert done.first is None
# ```
#
# </details>
#
# **2. How much does a norm forgive?** A port forgets to bring the delta rule's query to length 1. Find the first wrong
# key, the error at the logits, and the perplexity. Why is this bug so harmless? Would the same bug in the delta rule's
# key be harmless?
#
# <details><summary>Solution</summary>
#
# The output $S^\top q$ is linear in $q$. So a wrong length of $q$ is a factor for each token and head. The norm after
# the delta rule, $o / \mathrm{rms}(o)$, removes such a factor, except for its epsilon. At the stage where the kit
# stops, the error is of the order of 1, and little of it is left at the logits. The delta rule's keys are a different
# matter. They decide where a value is written, and $|k| = 1$ is what keeps the memory from growing without bound.
#
# ```python
# old = "q_l2norm = (q_unit *"
# bugs = {"query not normalised": (old, "q_l2norm = (qk.unflatten(-1, (2, -1, self.K))[:, :, 0] *")}
# model = model_of(broken("query not normalised", bugs))
# report(done := compare.compare(ref, traced(model), dtype="float32"), rows=3)
# logits = next(row.relative for row in done.rows if row.key == "lm_head.out")
# print(f"at the logits {logits:.3f}, perplexity {perplexity(model, texts):.3f} instead of {right:.3f}")
# assert done.first.key.endswith("q_l2norm")
# figures.expect("at the logits less than a third of the error is left", logits < done.first.relative / 3)
# ```
#
# </details>
#
# **3. Rounding where it hurts.** Half precision is fine for most values, but `qwen3_next.py` keeps `g`, the log of the
# decay, in float32, and a comment there says why. Round `g` to bfloat16 in an otherwise right bfloat16 model. Do the
# chained comparison and perplexity notice? Does the isolated comparison? Then take a decay of 0.999 for each of 1,000
# tokens. How far does the product move when the decay is rounded to bfloat16?
#
# <details><summary>Solution</summary>
#
# In the chained comparison, the new error drowns in all the other rounding errors. In the isolated comparison, it is
# alone. On `tiny/` it does little harm, because the texts are short. A decay of 0.999 itself (not its log) becomes 1 in
# bfloat16, where numbers just below 1 are $2^{-8}$ apart. So after 1,000 tokens the state is kept whole, but only 0.37
# of it should be left.
#
# ```python
# line = "g = -upcast(self.A_log).exp() * F.softplus(upcast(a) + upcast(self.dt_bias))"
# bugs = {"g in bfloat16": (line, line.replace("g = ", "g = (") + ").bfloat16().float()")}
# module = broken("g in bfloat16", bugs)
# rounded = traced(model_of(module, "bfloat16"))
# first = {}
# for mode in ("chained", "isolated"):
#     done = compare.compare(ref, rounded, dtype="bfloat16", isolated=mode == "isolated", reference=reference)
#     first[mode] = done.first and done.first.key
# print(first, f"perplexity {perplexity(model_of(module), texts):.4f} instead of {right:.4f}")
# linear = models["right, float32"].config.layer_types.index("linear_attention")  # the first such layer
# assert first["isolated"] == f"model.layers.{linear}.linear_attn.g"
# figures.expect("chained, it goes unnoticed", first["chained"] is None)
# decay = torch.tensor(0.999)
# print(f"{decay**1000:.3f} and {decay.bfloat16().float() ** 1000:.3f}")
# ```
#
# </details>
#
# **4. Fill in.** Write the heart of `compare.py`: a function that takes two traces and returns the first key in forward
# order whose relative error is above the allowed one, or None. A value that is not a number (NaN) counts as wrong.


# %%
def first_wrong(theirs, mine, allowed):
    """theirs, mine: key -> array, theirs in forward order -> the first key with an error above `allowed`, or None"""
    ...  # your part


def test_first_wrong(attempt):
    whole = ref.steps[""]
    keys = [key for key in sorted(whole, key=stages.forward_order) if "topk_ids" not in key and np.any(whole[key])]
    theirs = {key: whole[key] for key in keys}
    assert attempt(theirs, theirs, 1e-4) is None, "a trace agrees with itself"
    place = keys.index("model.layers.1.mlp.router_probs")
    off = {key: theirs[key] * (1.01 if n >= place else 1) for n, key in enumerate(keys)}
    assert attempt(theirs, off, 1e-4) == keys[place], f"expected {keys[place]}, found {attempt(theirs, off, 1e-4)}"
    assert attempt(theirs, off | {keys[3]: theirs[keys[3]] * np.nan}, 1e-4) == keys[3], "nan is wrong"


course.try_it(test_first_wrong, first_wrong)


# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def first_wrong(theirs, mine, allowed):
#     for key, r in theirs.items():
#         if not relative_error(r, mine[key]) <= allowed:  # nan <= x is False
#             return key
#     return None
#
#
# test_first_wrong(first_wrong)
# ```
#
# </details>
#
# ## Five questions
#
# 1. Name two reasons why perplexity is a poor proof of a port. How can it be right to the last digit although the port
#    is wrong?
# 2. What does the chained comparison show, and what does the isolated one show? Which of them do you use in float32,
#    and which in bfloat16?
# 3. In bfloat16, your port chooses a different expert than the reference. How do you tell a tie from an error, and how
#    does the comparison go on after a tie?
# 4. Which check finds a state that does not decay from chunk to chunk? Positions that begin at 0 in each call? A state
#    that forgets because of padding? The two inputs of MTP in the wrong order?
# 5. Why should the reference share no code with the port? And which shapes do you choose for your own tests?
#
# <details><summary>Answers</summary>
#
# 1. You must know the right number for this very text, and perplexity changes more from text to text than most bugs
#    change it. It is also computed in one pass, so it never uses the cache or the token-by-token form. A mistake there
#    leaves it unchanged.
# 2. In the chained comparison, each side goes on with its own values. The error is that of all stages so far, and only
#    the first wrong key can be blamed. In the isolated comparison, the reference gets the port's values, and each wrong
#    stage shows separately. First use chained, in float32. Use isolated in bfloat16, where the chained errors of a
#    right model are already large.
# 3. By the margin. At a tie, it is at most twice the amount by which rounding moved the probabilities. The reference is
#    then given my port's choice and runs again. A different choice at a larger margin is an error.
# 4. In this order: a prompt of several chunks, decoding, a padded batch, and the MTP layer's own values.
# 5. If both make the same mistake, they agree. Choose unequal numbers of key and value heads, different widths K and V,
#    and lengths that are not multiples of the chunk. With equal numbers, careless code happens to be right.
#
# </details>
#
# ## Three sentences to remember
#
# 1. Fluent text and a good perplexity do not prove a port, because many bugs change them less than a different text
#    would.
# 2. Compare the values inside the forward pass, in forward order, with a simple implementation that shares no code with
#    yours, and the first wrong value names the stage to blame.
# 3. Compare chained in float32 and isolated in your own dtype, and test prompts, decoding, padding and MTP, because
#    each check sees only the bugs on its own path.
#
# Next: [train_tiny.ipynb](train_tiny.ipynb) shows where the small model of these notebooks comes from.
