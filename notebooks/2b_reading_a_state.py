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
# # 2b. Reading a trained state
#
# What is in the states of a trained model? A state is a matrix of thousands of numbers, and looking at it tells us
# nothing. [Notebook 2](2_delta_rule.ipynb) showed how pairs are written into a state and how many it holds. Here we ask
# what a trained model writes there. While it reads that Tom gave the ring to Mira and that Nora put the cup in the
# barn, do its states hold where everything is?
#
# Afterwards you can read a state with a linear probe, and say what such a probe proves and what it does not prove. You
# need the delta rule and linear regression. The method is from Alain and Bengio, Understanding intermediate layers
# using linear classifier probes, [arXiv 1610.01644](https://arxiv.org/abs/1610.01644). The notebook takes half a
# lesson.

# %%
from start import root

# %%
import itertools

import corpus
import course
import figures
import torch
from pictures import probes as pictures

from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer

figures.setup()
random = torch.Generator().manual_seed(0)  # one source of random numbers for this notebook
model = Qwen3NextForCausalLM.from_pretrained(root / "tiny", dtype=torch.float32)
tokenizer = Qwen3NextTokenizer.from_pretrained(root / "tiny")
LAYERS = [i for i, kind in enumerate(model.config.layer_types) if kind == "linear_attention"]

# %% [markdown]
# Here is a state of `tiny/`, a small trained Qwen3-Next: one head of a middle layer, after each of four short
# sentences. Purple is positive, orange is negative. Who has the ring? The answer may well be in there, but we can't see
# it.

# %%
TOLD = ["Tom has a ring.", " Nora has a cup.", " Tom gave the ring to Mira.", " Nora put the cup in the barn."]
cache, after_each = model.make_cache(1), []
with torch.no_grad():
    for sentence in TOLD:
        model(torch.tensor([tokenizer.encode(sentence)]), past_key_values=cache)
        after_each.append(cache.layers[LAYERS[len(LAYERS) // 2]].state[0, 0].clone())  # (K, V)
pictures.states_after(TOLD, after_each)

# %% [markdown]
# ## 1. Accounts of who moved what
#
# In training, `tiny/` has read many *accounts*, short texts about who moved what, each with questions about where a
# thing is at the end. Do its states keep track of every thing? We test that with a *linear probe*, a linear map from
# the numbers of a state to the answer to "where is the ring now". We fit the probe on some accounts and test it on
# others.
#
# `tiny/corpus.py` writes the accounts. We restrict it to six names, six places and three things, so that each answer
# occurs often enough.

# %%
corpus.NAMES = ["Mira", "Tom", "Sam", "Nora", "Rosa", "Leo"]
corpus.PLACE_ROWS = {place: corpus.PLACE_ROWS[place] for place in ("barn", "pond", "mill", "cave", "beach", "school")}
corpus.THING_ROWS = {thing: corpus.THING_ROWS[thing] for thing in ("ring", "cup", "book")}
ANSWERS, THINGS = corpus.NAMES + list(corpus.PLACE_ROWS), list(corpus.THING_ROWS)
MOVES = 9
source = corpus.Corpus(None, {"moves": 1.0}, things=3, moves=MOVES)


# %%
def account(seed):
    """Sentences, each as token ids and {thing: where it is after this sentence}; the questions are left out"""
    sentences, where = [], {}
    for sentence in corpus.text_of(source.document(seed)).split("\n\n")[0].split(".")[:-1]:
        words = sentence.split()
        if words[1] in ("has", "took", "found"):  # Tom has a ring. Tom found the ring by the pond.
            where = where | {next(word for word in words if word in THINGS): words[0]}
        elif words[1] in ("gave", "put", "left", "lost"):  # Tom gave the ring to Nora. Tom put the ring in the barn.
            where = where | {words[3]: words[-1]}
        sentences.append((tokenizer.encode(sentence + "."), where))
    return sentences


for ids, where in account("shown")[:8]:
    print(f"{tokenizer.decode(ids).split('user')[-1].strip():45} {', '.join(f'{a}: {b}' for a, b in where.items())}")

# %% [markdown]
# All accounts go through the model together, one sentence of each at a time, with a cache. After each sentence,
# `cache.layers[i].state` holds the states of layer $i$: $H$ heads of $K \times V$, thousands of numbers. Shorter
# sentences are padded on the right, and padding leaves a state as it is.
#
# We do the same with a model of the same shape that was **never trained**, because a random network also keeps traces
# of its input.

# %%
BEFORE = 1 + len(THINGS)  # sentences that set the scene; then every thing is somewhere


@torch.no_grad()
def states_of(model, texts, layers, skip):
    """{layer: (texts, pieces, H * K * V)}: states after each piece (token ids) of each text, but for the first few"""
    cache, states = model.make_cache(len(texts)), {i: [] for i in layers}
    for number, rows in enumerate(zip(*texts, strict=True)):
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        model.model(ids, attention_mask=real, past_key_values=cache)
        for i in layers if number >= skip else ():
            states[i].append(cache.layers[i].state.flatten(1).clone())
    return {i: torch.stack(parts, dim=1) for i, parts in states.items()}


# %%
ACCOUNTS = 240
accounts = [account(f"probe:{number}") for number in range(ACCOUNTS)]
torch.manual_seed(0)
untrained = Qwen3NextForCausalLM(model.config)
texts = [[ids for ids, _ in one] for one in accounts]  # a sentence is a piece
states = {name: states_of(m, texts, LAYERS, BEFORE - 1) for name, m in (("trained", model), ("untrained", untrained))}
H, K, V = (getattr(model.config, f"linear_{x}") for x in ("num_value_heads", "key_head_dim", "value_head_dim"))
print(f"the state of a layer: {H} heads of {K} x {V}, {states['trained'][LAYERS[0]].shape[-1]:,} numbers")

# %% [markdown]
# **The probe.** The rows of $X$ are states, centred and scaled. The rows of $Y$ are the answers, with a 1 for the right
# one of twelve and 0 for the others. Ridge regression chooses $W$ to make $|XW - Y|^2 + \lambda |W|^2$ small. There are
# fewer rows than columns, so we solve it in its dual form, with the Gram matrix $XX^\top$:
#
# $$\text{belief for a new state } x: \qquad x W = x X^\top (X X^\top + \lambda I)^{-1}\, Y$$
#
# The answer with the highest belief counts. $\lambda$ is fixed beforehand and not tuned. The accounts are divided into
# four folds, which take turns as the test set. So no account is on both sides of a fit. This matters because the states
# of one account resemble each other. (Only centring and scaling, which see no answers, use all rows.) The spread is the
# standard deviation over the folds. A second probe gets the same states with *shuffled* answers ("shuffled labels" in
# the picture), and it reaches only about chance.
#
# The picture below shows the share of right answers for each layer. Compare the trained model with the untrained one,
# and both with the shuffled labels.

# %%
truth = torch.tensor(
    [[[ANSWERS.index(where[thing]) for thing in THINGS] for _, where in one[BEFORE - 1 :]] for one in accounts]
)  # (accounts, 1 + MOVES, things)
fold = (torch.arange(len(accounts)) % 4).repeat_interleave(1 + MOVES)  # of each row
labels = truth.flatten(0, 1)  # (rows, things)
shuffled = labels[torch.randperm(len(labels), generator=random)]
targets = torch.nn.functional.one_hot(torch.cat([labels, shuffled], dim=1), len(ANSWERS)).float()


# %%
def gram_of(X):
    """Products of all rows of X (rows, numbers), each number first centred and scaled over all of them"""
    X = (X - X.mean(0)) / (X.std(0) + 1e-9) / X.shape[1] ** 0.5
    return X @ X.T  # (rows, rows)


def probe(gram, Y, train, ridge=0.01):
    """Beliefs for all rows of a probe fitted to Y (rows, targets, answers) on the rows `train`"""
    known, middle = Y[train].flatten(1), Y[train].flatten(1).mean(0)
    weights = torch.linalg.solve(gram[train][:, train] + ridge * torch.eye(len(known)), known - middle)
    return (gram[:, train] @ weights + middle).unflatten(1, Y.shape[1:])


# %%
right = {}  # (model, layer) -> whether each row's answer was right, when its fold was the test, for things and shuffled
for name, by_layer in states.items():
    for i in LAYERS:
        gram, guess = gram_of(by_layer[i].flatten(0, 1)), torch.cat([labels, shuffled], dim=1)
        for part in range(4):
            test = fold == part
            guess[test] = probe(gram, targets, ~test)[test].argmax(-1)
        right[name, i] = (guess == labels.repeat(1, 2)).float()


# %%
def by_fold(right):
    """The share of right answers, (folds,)"""
    return torch.stack([right[fold == part].mean() for part in range(4)])


columns = {"trained": (0, 3), "untrained": (0, 3), "shuffled labels": (3, 6)}
scores = {}  # label -> (layers, folds)
for label, (start, stop) in columns.items():
    name = "untrained" if label == "untrained" else "trained"
    scores[label] = torch.stack([by_fold(right[name, i][:, start:stop]) for i in LAYERS])
    print(f"{label:16}", "  ".join(f"{i}: {x.mean():.2f} ± {x.std():.2f}" for i, x in zip(LAYERS, scores[label])))
pictures.by_layer(LAYERS, scores)

# %%
best = {name: max(LAYERS, key=lambda i: right[name, i][:, :3].mean()) for name in states}
for name, i in best.items():
    print(f"{name}: most is read from layer {i}, {right[name, i][:, :3].mean():.0%}")
best_right = right["trained", best["trained"]]
figures.expect(f"more than 60 % of the answers: {best_right[:, :3].mean():.0%}", best_right[:, :3].mean() > 0.6)
nothing = best_right[:, 3:].mean()
course.finding(f"with shuffled labels less than 25 % is right: {nothing:.0%}", nothing < 0.25)

# %% [markdown]
# A linear probe reads far more from a state than the shuffled labels allow. But look at the untrained model before you
# conclude anything. Where the untrained model comes close, the probe's success says nothing about training. A random
# projection of the last few words into thousands of numbers *is* a memory of them, and the probe learns to read it.
#
# So we sort the answers by how long ago the thing was last moved, and read each model at its own best layer. In the
# next picture, look at the right end, where the last move is far back.

# %%
age = torch.zeros_like(truth)  # sentences since this thing was last moved
for row, one in zip(age, accounts):  # at first, since its introduction
    row[0] = torch.tensor([len(THINGS) - 1 - list(one[BEFORE - 1][1]).index(thing) for thing in THINGS])
for number in range(1, 1 + MOVES):
    age[:, number] = torch.where(truth[:, number] == truth[:, number - 1], age[:, number - 1] + 1, 0)
groups = [age.flatten(0, 1) == a for a in range(5)] + [age.flatten(0, 1) >= 5]  # (rows, things) each


def by_age(right):
    """The share of right answers in each group of ages, one for each fold: (groups, folds)"""
    return torch.tensor([[right[fold == f][group[fold == f]].mean() for f in range(4)] for group in groups])


shares = {name: by_age(right[name, i][:, :3]) for name, i in best.items()}
shares["shuffled labels"] = by_age(best_right[:, 3:])
pictures.by_age(shares, best)

# %%
for name in shares:
    ages = ", ".join(f"{x.mean():.0%} ± {x.std():.0%}" for x in shares[name][[0, 1, -1]])
    print(f"{name:15} just moved, one and at least five sentences ago: {ages}")
just, old = shares["trained"][[0, -1]].mean(1)
figures.expect(f"just after a move more than 70 %: {just:.0%}", just > 0.7)
figures.expect("what is old is read better from the trained states", old > shares["untrained"][-1].mean())

# %% [markdown]
# ### One account, token by token
#
# What does the state say about the ring after *every token*? A probe for that must be fitted on states in the middle of
# sentences. So we cut each sentence into two pieces at a random place, and fit the probe to the states after both
# pieces. At which word does a sentence settle where its thing is? Usually at the last word, before the full stop. But
# *Tom found the ring by the pond* settles it at *ring*: Tom has it.


# %%
def settled(ids):
    """After how many of a sentence's tokens it is settled where its thing is"""
    names = [tokenizer.decode([token]).strip() for token in ids]
    return next(n for n, name in enumerate(names, 1) if name in THINGS) if "found" in names else len(ids) - 1


cut, now = [], []  # pieces of each account, and where the ring is after each
places = torch.Generator().manual_seed(1)
for one in accounts:
    pieces, answers = [], []
    for (ids, after), (_, before) in zip(one, [(None, {}), *one]):
        at = 1 + int(torch.rand(1, generator=places) * (len(ids) - 1))  # 1 to len(ids) - 1
        pieces += [ids[:at], ids[at:]]
        answers += [after if at >= settled(ids) else before, after]
    cut.append(pieces)
    now.append([ANSWERS.index(where["ring"]) for where in answers[2 * BEFORE :]])
X = states_of(model, cut, [layer := best["trained"]], 2 * BEFORE)[layer].flatten(0, 1)  # (rows, H * K * V)
Y = torch.nn.functional.one_hot(torch.tensor(now).flatten(), len(ANSWERS)).float()[:, None]  # (rows, 1, answers)

# %% [markdown]
# Now the model reads an account that the probe has not seen, one token at a time.

# %%
drawn = account("drawn:0")
tokens = [token for ids, _ in drawn for token in ids]
believed = states_of(model, [[[token] for token in tokens]], [layer], 0)[layer][0]  # (tokens, H * K * V)
train = torch.arange(len(X) + len(tokens)) < len(X)
Y_all = torch.cat([Y, torch.zeros(len(tokens), 1, len(ANSWERS))])
belief = probe(gram_of(torch.cat([X, believed])), Y_all, train)[~train, 0]  # (tokens, answers)

is_at = []  # the truth at each token
for (ids, after), (_, before) in zip(drawn, [(None, {}), *drawn]):
    known = settled(ids) - 1  # the first token after which the state can know
    is_at += [before.get("ring")] * known + [after.get("ring")] * (len(ids) - known)
first = sum(len(ids) for ids, _ in drawn[:BEFORE])  # leave out who is friends with whom, and who has what
names = [tokenizer.decode([token]).strip() for token in tokens]

# %% [markdown]
# In the picture, columns are tokens and rows are the twelve answers. The brighter a cell, the stronger the belief. The
# red line is the truth. Watch where the belief follows the truth, and whether it stays there while the text goes on
# about other things.

# %%
pictures.account(belief[first:], names[first:], ANSWERS, is_at[first:])

# %%
hits = [ANSWERS[belief[n].argmax()] == is_at[n] for n in range(first, len(tokens))]
print(f"the strongest belief is right at {sum(hits)} of {len(hits)} tokens of this account, by what is true:")
for place, stretch in itertools.groupby(zip(is_at[first:], hits), key=lambda pair: pair[0]):
    right_here = [hit for _, hit in stretch]
    print(f"{place} {sum(right_here)} of {len(right_here)}", end="; ")

# %% [markdown]
# Chance is about 1 in 12. In one training of `tiny/`, the belief followed the truth from move to move, and kept it
# while the text went on about other things. Yours may differ.
#
# What does this show, and what does it not show? The states hold where things are, in a form that a linear map can
# read. If the trained model's line in the picture by age (blue) falls later than the untrained model's (orange), then
# the trained states hold the facts for longer. For the last sentence or two, random states may do as well. But a probe
# that succeeds does not show that the model itself reads this from the states: `tiny/` also has attention layers, which
# can look up the sentences. And a probe that failed would show only that the answer is not there in a linear form.
#
# ## Exercises
#
# **1. Fewer accounts.** How much of the probe's success depends on the number of accounts that it was fitted on? Take
# the first 10, the first 30, the first 90 and all accounts. Fit the probe on those in three folds, and test it on the
# fourth fold.
#
# <details><summary>Solution</summary>
#
# ```python
# gram = gram_of(states["trained"][best["trained"]].flatten(0, 1))
# row = torch.arange(len(fold)) // (1 + MOVES)  # the account of each row
# for count in (10, 30, 90, len(accounts)):
#     train = (fold != 0) & (row < count)
#     guess = probe(gram, targets, train)[fold == 0].argmax(-1)
#     share = (guess[:, :3] == labels[fold == 0]).float().mean()
#     print(f"{train.sum():5} rows of up to {count} accounts: {share:.0%} right")
# ```
#
# A probe of thousands of numbers needs many rows. As long as the share still rises, the last figure is only a lower
# bound of what the states hold.
#
# </details>
#
# **2. One head alone.** Does one head of the best layer hold where the things are, or do the heads share the work? Fit
# a probe to the state of each head separately.
#
# <details><summary>Solution</summary>
#
# ```python
# whole = states["trained"][best["trained"]].flatten(0, 1).unflatten(1, (H, -1))  # (rows, H, K * V)
# alone = []
# for head in range(H):
#     guess = probe(gram_of(whole[:, head]), targets, fold != 0)[fold == 0].argmax(-1)
#     alone.append((guess[:, :3] == labels[fold == 0]).float().mean().item())
# print("each head alone:", ", ".join(f"{share:.0%}" for share in alone))
# figures.expect("no head knows as much as all of them together", max(alone) < scores["trained"].max())
# ```
#
# Heads with a long half-life can hold old sentences, and the others only recent ones.
#
# </details>
#
# **3. Fill in.** The probe above solves ridge regression in its dual form, with the Gram matrix. Write the textbook
# form, in which $W = (X^\top X + \lambda I)^{-1} X^\top Y$. It would be slow for as many columns as a state has, but
# the beliefs must be the same.


# %%
def ridge_belief(X, Y, x, ridge):
    """X (rows, numbers), Y (rows, answers), x (new rows, numbers) -> beliefs (new rows, answers)"""
    ...  # your part


def test_ridge_belief(attempt):
    X, Y, x = torch.randn(3, 12, 5, generator=random, dtype=torch.float64)
    dual = x @ X.T @ torch.linalg.solve(X @ X.T + 0.1 * torch.eye(12).double(), Y)
    torch.testing.assert_close(attempt(X, Y, x, 0.1), dual)


course.try_it(test_ridge_belief, ridge_belief)


# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def ridge_belief(X, Y, x, ridge):
#     W = torch.linalg.solve(X.T @ X + ridge * torch.eye(X.shape[1]).to(X), X.T @ Y)  # (numbers, answers)
#     return x @ W
#
#
# test_ridge_belief(ridge_belief)
# ```
#
# </details>
#
# ## Four questions
#
# 1. What is a linear probe? How do we know that its success is not due to the many numbers of a state alone?
# 2. A probe reads many answers from the states of an untrained model as well. Why? For which questions does training
#    make a difference?
# 3. Why is no account used both to fit a probe and to test it?
# 4. A probe reads from the states of a layer who has the ring. Does this show that the model uses these states to
#    answer? What would we know if the probe had failed?
#
# <details><summary>Answers</summary>
#
# 1. It is a linear map from the numbers of a state to the answers, fitted on some texts and tested on others. A probe
#    that is fitted to the same states with shuffled answers reaches only about chance.
# 2. A random projection of the last few words into thousands of numbers is a memory of them. Training makes a
#    difference for things whose last move is some sentences back.
# 3. The states of one account resemble each other, so a probe could recognise the account instead of reading the fact.
# 4. No. The model may get the answer in a different way: its attention layers can find the sentence again. If the probe
#    had failed, we would know only that the fact is not there in a form that a linear map can read.
#
# </details>
#
# ## Three sentences to remember
#
# 1. A linear probe tests whether a state holds a fact in a form that a linear map can read.
# 2. A random network remembers the last few words as well. So what training has added shows only for older facts, and
#    only in comparison with an untrained model.
# 3. A probe that reads a fact does not show that the model uses the fact.
#
# Next: [3_gated_deltanet](3_gated_deltanet.ipynb) builds the layer around this memory.
