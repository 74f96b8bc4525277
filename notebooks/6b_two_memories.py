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
# # 6b. Two memories, one model
#
# A hybrid has two memories: the keys and values of its attention layers, and the states of its Gated DeltaNet layers.
# Which of them does it use, and for what? The notebook before, [6_why_hybrid](6_why_hybrid.ipynb), measured what each
# can hold. Here we take a trained model apart while it reads. We leave it less attention or less state, then one memory
# without the other, and at last two memories that contradict each other. If the keys say that Tom has the ring and the
# states say that Mira has it, which memory does the model believe?
#
# After this notebook you know what an intervention on a trained model can show, and what it can't. You need softmax
# attention, and the delta rule as in notebook [2](2_delta_rule.ipynb). For one lesson, take sections 1 and 2. Section 3
# is homework.

# %%
from start import root

# %%
import copy
import itertools
import math
import re
from dataclasses import replace

import corpus
import course
import figures
import torch
from pictures import two_memories as pictures

from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer, chunk_gated_delta_rule
from verify.trace import recording

figures.setup()
tiny = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float32)
tokenizer = Qwen3NextTokenizer.from_pretrained(root / "tiny")
KIND = tiny.config.layer_types
L_LAYERS = [i for i, kind in enumerate(KIND) if kind == "linear_attention"]
F_LAYERS = [i for i, kind in enumerate(KIND) if kind == "full_attention"]
pictures.caches(KIND)

# %% [markdown]
# The picture shows what `tiny/` keeps of 40 tokens. As in notebook 6, we call a Gated DeltaNet layer an L layer, and an
# attention layer an F layer (F for *full*).
#
# ## 1. A trained hybrid with less of either memory
#
# What does a trained hybrid do when it loses some of its memory? We take `tiny/`, this repository's trained model. We
# retrain nothing. We only take something away while it reads:
#
# - **attention**: all F layers see only the last $W$ tokens.
# - **state**: the states of all L layers are set to zero every $W$ tokens, so that a token finds between 0 and $W$
#   tokens in them.
#
# An intervention puts a model where training has never put it. If the model still answers, it did not need the part
# that we took away. If it fails, it *depends* on that part. But perhaps a different model could have learned to do
# without it. An intervention can't rule that out.


# %%
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


# %%
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
# Do we cut in the right places? We check in float64. With $W$ as long as the text, nothing may change. With a smaller
# $W$, we compare attention with the softmax written out under a mask. And we compare the cleared states with a second
# way to compute them: *one* pass over the whole text in which the delta rule runs over blocks of $W$ tokens, each from
# an empty state.


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
# We use three tasks. All their documents are held out from training. **Phone books** have 16 entries, and then a dozen
# numbers are asked for, one at a time. **Accounts** report eight moves of two things, and then ask where the things
# are. **Stories** come with four questions. Here is one of each:

# %%
SOURCES = {
    "phone books": corpus.Corpus("held out", {"book": 1.0}, entries=16, **{"single questions": 1.0}),
    "accounts": corpus.Corpus("held out", {"moves": 1.0}, moves=8, things=2),
    "stories": corpus.Corpus("held out", {"chat": 1.0}, **{"questions a story": 3}),
}
COUNT = {"phone books": 12, "accounts": 48, "stories": 24}

# %%
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


# %%
read = {task: documents(task) for task in SOURCES}
for task, rows in read.items():
    ids, replies = rows[0]
    print(f"--- {task}: {len(rows)} documents, {sum(len(r) for _, r in rows)} replies\n")
    print(tokenizer.decode(ids[: ids.index(END, replies[0][0])]), "\n")

# %% [markdown]
# When is a reply right? Each word that answers (the digits, the name, the place) must be the likeliest one, given the
# true text before it. The corpus marks these words, and the model's card counts in the same way. We run documents in
# batches, padded on the right to one length. The padding changes nothing for the tokens before it.
#
# The picture shows how many replies of each task are still right as $W$ shrinks. Points are means over documents, bars
# are standard errors. Read each line from right to left, and compare the two panels.


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
rows = {(part, task): [less[part, task, W] for W in WIDTHS] + [plain[task]] for part, task, _ in less}
pictures.less(WIDTHS, {key: torch.stack(found) for key, found in rows.items()})

# %%
print("share of replies right, ± standard error over documents\n")
print(f"{'':24}" + "".join(f"{W:>12}" for W in (*WIDTHS, "all")))
for part in ("attention", "state"):
    for task in read:
        rows = [less[part, task, W] for W in WIDTHS] + [plain[task]]
        told = "".join(f"{x.mean():6.0%} ±{x.std() / len(x) ** 0.5:4.0%}" for x in rows)
        print(f"{part + ', ' + task:24}{told}")
for task in read:
    left = less["attention", task, WIDTHS[0]].mean() / plain[task].mean()
    figures.expect(
        f"{task}: attention to {WIDTHS[0]} tokens leaves less than 75 % of what was right: {left:.0%}", left < 0.75
    )
left, kept = (less[part, "phone books", WIDTHS[0]].mean() for part in ("attention", "state"))
figures.expect(f"of numbers it leaves less than 10 %, cleared states more: {left:.0%}, {kept:.0%}", left < 0.1 < kept)

# %% [markdown]
# One training of `tiny/` showed the following. Yours may differ:
#
# - **Attention fetches.** Phone books followed the attention window. A number was found if its entry was in the window,
#   and otherwise hardly ever. The states did not replace attention. Stories and accounts fell as well. (Accounts are
#   short, so the wider windows cut nothing.)
# - **States work at short range.** Even when the states were emptied every 16 tokens, which is two entries of a phone
#   book, about half of the numbers were still found, and most of the replies in the other tasks stayed right. When they
#   were emptied every 128 tokens, little was lost.
#
# The model LLLL of notebook 6 has shown that states *can* carry facts far. When attention carries the facts, the states
# are not needed for that. But a model with both memories may rely on one that it could do without. The next section
# ends with an experiment on this.
#
# ## 2. One memory without the other
#
# The cache is all that the model keeps of a text: the keys and values of the F layers, and the states of the L layers.
# So we can let the model read a text, *move* only a part of its cache into a fresh one, and ask a question there.
# `mixed` takes the keys and values of one cache and the states of another. (The last three inputs of the convolution
# move with the state. The count of tokens moves with the keys and values, because a state knows no positions.)


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
# We check this in float64 as well. With both memories moved, the model must answer as if nothing had happened. With
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
# We measure the share of right replies, and also the bits that the answer costs: $-\log_2 p$, summed over the words of
# the answer. The bits show what a memory contributes even when it is not enough for a right reply. We add one control:
# the right keys and values with the states of *another* document. It shows whether the contents of the states matter.
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
pictures.alone(ARMS, moved)

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
# One training of `tiny/` showed the following. Yours may differ:
#
# - **Keys and values alone** gave about as many right replies on phone books and stories as both memories. On accounts
#   they gave fewer.
# - **States alone** found no number, and in stories gave no more right replies than "neither" did. In accounts they
#   gave more, nearly as many as keys and values alone.
# - **Another document's states** gave no more right replies in accounts than fresh states. So there, the contents of
#   the states mattered.
#
# Compare the phone books with section 1. There, we emptied the states *while the model read the book*. Here, we took
# them away *after* it had read it. If emptying the states costs many numbers and removing them hardly any, they have
# done their work during reading. The keys and values of an F layer are computed from the output of the L layers below
# it, which have joined the digits with their name. Notebook 6, section 3, counted on this division of labour. L layers
# join neighbours, F layers look up, and the result of the joining is in the keys and values.
#
# ### When they contradict each other
#
# Now the sharpest test: let the two memories disagree. From a document we make a second version in which two answers
# have changed places throughout the text. In a phone book, these are two numbers. In an account, they are the name of
# the character who has the thing and the name of a different one. The model reads both versions. Then we ask the
# question with the keys and values of one version and the states of the other, both ways. Each memory is complete, and
# they contradict each other. Which of the two answers does the model find more likely?


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


# %%
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
# there. When it was asked **who has the thing now**, it mostly went with its states. Yet in the test before, states
# alone answered no more questions on accounts than keys and values alone. So whether one memory is enough, and which
# memory decides when there are two, are different questions. Check above what your model does.
#
# Read this with care, because the model does not read its two memories independently. The queries of attention depend
# on the output of the L layers, and both names are among its keys. So the experiment shows which memory decides. It
# does not show that the fact is kept in that memory alone. A plausible explanation is that the states choose the person
# and attention supplies the name. This is one small model and two tasks. Still, the result is what the word hybrid
# promises: two memories, each used for its strengths.
#
# ## 3. Further than it was trained
#
# What happens to the two memories in a text longer than any in training? `tiny/` was trained on rows of 512 tokens. Its
# card reports how many numbers it finds when stories stand between the phone book and the last question, up to a given
# total length:

# %%
card = (root / "tiny" / "README.md").read_text(encoding="utf-8")
print(card.split("<!-- far -->")[1].split("<!-- /far -->")[0].strip())

# %% [markdown]
# There are two suspects. Attention has to find the book among the keys of all the stories, and the states have read all
# the stories since the book. We can separate the two memories. We take books of eight entries, continue them with
# stories to three lengths, and ask with
#
# - **all**: both memories as they are after the book and the stories.
# - **states of the book**: all keys and values, but the states as they were *before* the stories.
# - **keys of the book**: the states as they are after the stories, but only the keys and values of the book. The
#   question keeps its true distance from the book, by `position_ids`.
#
# In the picture, look at the lengths beyond 512. If numbers are lost there, which of the two exchanges brings them
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
pictures.far(LENGTHS, FAR_ARMS, found)

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
figures.expect(f"with the states of the book at least 30 points more: {mean[1]:.0%}", mean[1] > mean[0] + 0.3)
figures.expect(f"with the keys of the book alone at least 10 points more: {mean[2]:.0%}", mean[2] > mean[0] + 0.1)

# %% [markdown]
# In one training of `tiny/` the **states** failed beyond the training length. Check whether the same is true for yours.
# With the states as they were right after the book, every number was found again, among all the keys of the stories. So
# the keys and values were still good. But the queries of the F layers are computed from the output of the L layers, and
# those had read more text than any row in training. With only the keys and values of the book, the model found most of
# the numbers as well. A query that is a little wrong still finds its answer if there are few keys.
#
# The distance itself was not to blame either. In the last two lines of the table nothing lies between book and
# question. Only the positions are further apart, and the numbers were found. (A quarter of each head is rotated. The
# rest knows no positions.)
#
# So a state costs the same at every length, but that does not mean that it works at every length. For a longer reach,
# the model has to be trained on long texts.
#
# ## The two kinds of layer compared
#
# | | Gated DeltaNet | attention |
# |---|---|---|
# | keeps of $n$ tokens | states of $H K V$ numbers, whatever $n$ | $2 n H_{kv} d$ numbers |
# | pairs it can return | at most about as many as its keys have dimensions | all |
# | used in `tiny/` for | joining neighbours, following changes | looking up facts that are written in one place |
# | what goes wrong | pairs disturb one another; too much other text, beyond the lengths of training | the cost |
#
# One attention layer in four is enough for recall, and the cache is then a quarter of the cache of attention
# everywhere, plus a constant. This is the argument for the hybrid, as far as models this small can make it. They are
# too small to show what other strengths a hybrid has, or which share of attention is best. At 8 billion parameters,
# with Mamba-2 instead of Gated DeltaNet, [arXiv 2406.07887](https://arxiv.org/abs/2406.07887) reports the same picture:
# without attention a model falls short at looking up phone numbers and at copying, and with a few attention layers it
# does not.
#
# ## Exercises
#
# **1.** Section 2 shows how often the states decide in accounts. Does it take the states of all layers together, or are
# those of one layer enough? Let the states of *one* L layer contradict everything else, and see how often the answer
# changes. (`versions` still holds the accounts from section 2.)
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
# If no single layer turns the answer as often as all together do, the fact is spread over several layers.
#
# </details>
#
# **2.** How fast do the states recover? Clear them once, in the middle of an account, and go on. How many replies stay
# right, compared with clearing the states every 64 tokens?
#
# <details><summary>Solution</summary>
#
# `read_with_less` clears the states at the beginning of each part, so with parts of half the text it clears them once
# on the way.
#
# ```python
# once = []
# for ids, replies in read["accounts"]:
#     best = read_with_less(tiny, torch.tensor([ids]), state=-(-len(ids) // 2)).argmax(-1)[0]
#     once.append(sum(all(best[i - 1] == ids[i] for i in reply) for reply in replies) / len(replies))
# share, often = sum(once) / len(once), right_replies(read["accounts"], state=64).mean()
# print(f"cleared once {share:.0%}, every 64 tokens {often:.0%}, never {plain['accounts'].mean():.0%}")
# ```
#
# </details>
#
# **3. Fill in.** `mixed` exchanges one kind of memory in all layers at once. Write a finer function. It returns the
# first cache, but with the named layers taken from the second. Neither of the two caches may change.


# %%
def mixed_by_layer(first, second, layers):
    """A cache with the layers named of `second`, and all others of `first`"""
    ...  # your part


def test_mixed_by_layer(attempt):
    _, question, reply = text_and_question(*read["accounts"][0])
    one, other = (after(tiny, text_and_question(*read["accounts"][n])[0]) for n in (0, 1))
    whole, states = ask(tiny, one, question), ask(tiny, mixed(one, other), question)
    assert torch.equal(ask(tiny, attempt(one, other, []), question), whole), "no layer named: the first cache"
    assert torch.equal(ask(tiny, attempt(one, other, L_LAYERS), question), states), "all L layers: as mixed does it"
    assert not torch.equal(ask(tiny, attempt(one, other, L_LAYERS[:1]), question), whole), "one layer should show"
    assert torch.equal(ask(tiny, one, question), whole), "the first cache was changed"


course.try_it(test_mixed_by_layer, mixed_by_layer)


# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def mixed_by_layer(first, second, layers):
#     cache, other = first.clone(), second.clone()
#     return replace(cache, layers=[(other if i in layers else cache).layers[i] for i in range(len(KIND))])
#
#
# test_mixed_by_layer(mixed_by_layer)
# ```
#
# </details>
#
# ## Four questions
#
# 1. What does it show if a model still answers without a memory, and what if it fails? What can such a test not show?
# 2. Removing the states *after* a phone book was read costs hardly anything. Clearing them *while* it was read cost
#    half of the numbers. How do the two results fit together?
# 3. The two memories contradict each other. Which one does `tiny/` believe about a phone book, and which one about an
#    account? Why does that not prove that the fact is kept in that memory alone?
# 4. Beyond the lengths of training, numbers are lost. Which two exchanges test which memory is to blame, and what was
#    the result?
#
# <details><summary>Answers</summary>
#
# 1. If it answers, it did not need that memory here. If it fails, it depends on that memory. Such a test can't show
#    whether a different model could have learned to do without it.
# 2. The states do their work during reading: L layers join each number with its name, and the result goes into the keys
#    and values of the F layers. Afterwards, those keys and values are enough.
# 3. It believes the keys and values about a phone book, and mostly the states about an account. The queries of
#    attention depend on the output of the L layers, and both names are among its keys.
# 4. The states of the book with all keys and values, and the states after the stories with the keys and values of the
#    book alone. With the states of the book, every number came back. So the keys and values were still good, and the
#    states had failed.
#
# </details>
#
# ## Three sentences to remember
#
# 1. Attention looks up facts that are written in one place, and the states join neighbours and follow changes.
# 2. Beyond the lengths of training the states failed, and attention with them, because its queries are computed from
#    the output of the L layers.
# 3. An intervention shows what a trained model depends on, not what a different model could have learned to do without.
#
# Next: [7_mixture_of_experts.ipynb](7_mixture_of_experts.ipynb) turns to the other half of every layer, the MLP.
