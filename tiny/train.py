"""Trains the model in this folder from nothing: corpus, tokenizer, weights.

    python tiny/train.py                     train, write checkpoints to tiny/run/, resume from there if interrupted
    python tiny/train.py --size micro        train the small sibling in tiny/micro/
    python tiny/train.py --out DIR           put the finished model elsewhere

The text comes from corpus.py and a seed; the forward pass and the loss are qwen3_next.py's own: cross-entropy, the
load-balancing loss, and after 28 % of the steps that of the MTP layer. Muon for the matrices, AdamW for the rest;
warm-up and a cosine, three times. CPU, in two processes that average their gradients, or CUDA when there is one.
"""

import argparse
import bisect
import functools
import itertools
import json
import math
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import tokenizers
import torch
import torch.distributed as dist
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import corpus  # noqa: E402

from qwen3_next import Qwen3NextConfig, Qwen3NextForCausalLM, Qwen3NextTokenizer  # noqa: E402
from qwen3_next_checkpoints import saving  # noqa: E402

TINY = {
    "vocab_size": 2048,
    "hidden_size": 192,
    "num_hidden_layers": 8,
    "full_attention_interval": 4,  # three Gated DeltaNet layers, then one of attention, as in the big model
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.25,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "intermediate_size": 512,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "router_aux_loss_coef": 0.05,
    "mtp_num_hidden_layers": 1,
    "mtp_loss_scaling_factor": 0.3,
}
MICRO = TINY | {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "partial_rotary_factor": 0.5,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
# Config, folder, steps, and the share of them after which the MTP layer's loss joins in
SIZES = {"tiny": (TINY, HERE, 5600, 0.28), "micro": (MICRO, HERE / "micro", 2000, 0.13)}
CURRICULUM = 1 / 2  # of the steps; in the rest comes again what was hard
ROUNDS = (0.0, 1.0, 1.5, 1 / CURRICULUM)  # how much of it is done when each round begins, and when the last one ends
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# How Qwen's tokenizer cuts text before BPE: contractions, words with their leading space, digits, punctuation.
PRETOKENISE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def write_whole(path: Path, write: Callable[[Path], object]):
    """Has `write` write a file in a folder of its own, and puts it in its place when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        write(Path(place) / path.name)
        os.replace(Path(place) / path.name, path)


def write_json(path: Path, content: dict):
    """A JSON file, or none if that fails."""
    write_whole(path, lambda new: new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8"))


def train_tokenizer(folder: Path, seed: int, documents: int = 8_000):
    """Byte-level BPE over the corpus; writes tokenizer.json and tokenizer_config.json."""
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": TINY["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    pre = tokenizers.pre_tokenizers
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.normalizer = tokenizers.normalizers.NFC()
    split = pre.Split(tokenizers.Regex(PRETOKENISE), behavior="isolated")
    backend.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=TINY["vocab_size"] - len(SPECIAL_TOKENS),
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    source = corpus.Corpus("train")
    texts = (corpus.text_of(source.document(f"{seed} tokenizer:{number}")) for number in range(documents))
    marks = re.compile(r"<\|\w+\|>")
    backend.train_from_iterator(itertools.chain.from_iterable(map(marks.split, texts)), trainer)
    backend.add_special_tokens(SPECIAL_TOKENS)
    write_json(folder / "tokenizer_config.json", settings)
    write_whole(folder / "tokenizer.json", lambda path: backend.save(str(path)))  # the last: with it, all is there


# Roles of words that nobody can know, and of those that can always be known by looking back. Of the others, those that
# are not of the template have been told before, and are often known.
NEW = " (new)"
UNKNOWABLE = (NEW, " (asked)")
COPIED, TEMPLATE = ("answer", "name (copied)", "pronoun"), "template"
# What --without can leave out: the documents without questions, the mask on the loss, the short rows, the new words
# (without them, such names and things come in a newcomer's documents only), the order of the layers
# (without it, each attention layer stands before its three Gated DeltaNet layers), Muon, and the quiet start.
PARTS = ["bare", "mask", "short", "words", "order", "muon", "quiet"]


# The phases of the training: how much of the curriculum is done when each ends, and the shares of the corpus' kinds
# of documents. Beyond 1 are the rounds after the curriculum. None: from EARLY at a fifth of the curriculum towards
# LATER at three fifths.
EARLY = {"chat": 0.33, "moves": 0.16, "handed on": 0.12, "book": 0.17, "who": 0.12, "inline": 0.1}
LATER = {"story": 0.05, "chat": 0.36, "moves": 0.19, "handed on": 0.06, "book": 0.08, "small talk": 0.01, "who": 0.11,
         "free": 0.14}  # fmt: skip
PHASES = {
    "look back": (0.08, {"moves": 0.2, "handed on": 0.3, "book": 0.5}),
    "who is who": (0.2, {"moves": 0.1, "handed on": 0.2, "book": 0.1, "who": 0.6}),
    "questions": (0.357, None),
    "accounts": (0.6, {"chat": 0.3, "moves": 0.28, "handed on": 0.14, "book": 0.08, "who": 0.1, "inline": 0.1}),
    "between": (0.607, None),
    "few moves": (0.69, {"moves": 0.45, "handed on": 0.25, "who": 0.15, "inline": 0.15}),
    "mixed": (0.8, None),
    "all": (1.0, corpus.SHARES),
    "again": (1.25, {"chat": 0.3, "moves": 0.1, "handed on": 0.08, "book": 0.03, "who": 0.1, "free": 0.39}),
    "all again": (1.5, corpus.SHARES),
    "new words": (1.75, {"chat": 0.2, "moves": 0.17, "handed on": 0.15, "book": 0.03, "who": 0.1, "inline": 0.1,
                         "free": 0.25}),
    "at last": (math.inf, corpus.SHARES),
}  # fmt: skip
NARROW = ("look back", "who is who", "few moves")  # short rows, and little in the loss but what has been told before


class Stage(NamedTuple):
    """What training sees at one time: tokens a row; the shares of the corpus' kinds of documents and settings of these;
    the shares of the unknowable tokens, of the template's and of those told before that count in the loss; and whether
    of words told before all tokens but the first count anyway, since by then it is known which word it is."""

    length: int
    shares: dict[str, float]
    settings: dict[str, object]
    unknowable: float
    template: float
    told: float
    pieces: bool = False


def curriculum(progress: float, length: int, without: frozenset[str] = frozenset()) -> Stage:
    """The stage by how much of the curriculum is done and the final length of a row; `without` some of its parts.

    What must be taught above all is to look back, and little of the loss is about that: most of it is about what nobody
    can know, as a new name or the digits of a phone book, and learning from that is noise. So nine in ten of these
    tokens are left out of the loss, in the beginning most others, too. The first documents can only be predicted by
    looking back: phone books with few entries, told again and again, and accounts that say after moves where things
    are; then meetings, which tell over and over what animal someone is, and what the day and the things were like. The
    rows of these two phases are short, so that nothing else is in sight. Among the accounts are from the start such in
    which things only change hands, since to find who has one then is what was learned worst. Then come questions, soon
    some in a newcomer's words; then accounts above all, for a while with few moves and alone; then all kinds, as the
    corpus has them. That is the curriculum. Two rounds follow it. The first (progress 1 to 1.5) has what the model
    answers worst, a newcomer's words and questions for yes or no. In the second, half of the names, things, kinds and
    places in accounts and meetings are new words, from long lists or made up, and three in ten names in phone books.
    Most of these are several tokens, so that a copy takes one after the other; all but a word's first token count. Both
    rounds end with all kinds, as the corpus has them.
    """
    phase, shares = next((name, shares) for name, (end, shares) in PHASES.items() if progress < end)
    masked, narrow, few = "mask" not in without, phase in NARROW, phase == "few moves"
    rest = max(0.0, 1.0 - 2.5 * (progress - 0.2))
    blend = {kind: rest * EARLY.get(kind, 0.0) + (1 - rest) * share for kind, share in LATER.items()}
    new, whole = phase == "new words" and "words" not in without, shares is corpus.SHARES
    again = phase in ("again", "new words")
    bare = {"accounts": 0.6, "between": 0.2, "mixed": 0.4}.get(phase, 1.0 if narrow else max(0.0, 0.7 - progress))
    settings = {
        "bare": 0.0 if "bare" in without else bare,
        "tell": 0.8 if phase == "look back" else 0.5,
        "news": progress >= 0.357,
        "rounds": {"look back": 4, "who is who": 2}.get(phase, 1),
        "most entries": min(corpus.ENTRIES, 3 + int(progress * 60)),
        "most guests": min(corpus.GUESTS, 2 + int(progress * 8)),
        "most moves": 3 if few else min(corpus.MOVES, 2 + int(progress * 30)),
        "single questions": min(0.5, 0.1 + 0.4 * progress),
    }
    if new:
        settings |= {"new words": 0.5, "new words in books": 0.3}
    if again:
        settings["yes or no"] = 0.5
    if not whole:
        settings["questions a story"] = 8 if progress < 0.4 else 6
    return Stage(
        length // 4 if narrow and "short" not in without else length // 2 if progress < 0.3 else length,
        shares or blend,
        settings,
        unknowable=1.0 if not masked or whole else 0.02 if few else 0.1 if progress < 0.5 or again else 0.3,
        template=1.0 if not masked else 0.05 if few else 0.3 if again else min(1.0, 0.05 + 4 * progress**2),
        told=0.05 if narrow and masked else 1.0,
        pieces=new,
    )


class Rows:
    """Rows of token ids and labels, each from the start of a document, as a function of a seed and the step."""

    def __init__(
        self,
        tokenizer: Qwen3NextTokenizer,
        seed: object,
        length: int,
        steps: int,
        split: str = "train",
        without: frozenset[str] = frozenset(),
    ):
        self.encode = functools.cache(tokenizer.encode)
        self.seed, self.length, self.steps, self.split, self.without = seed, length, steps, split, without

    def batch(self, step: int, part: int, batch: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """One part of a step's tokens: `batch` times `length` of them, ids and labels, each (rows, tokens).

        Labels are -100 where the loss leaves them out.
        """
        stage = curriculum(step / self.steps / CURRICULUM, self.length, self.without)
        count = batch * self.length // stage.length
        numbers = range(part * count, (part + 1) * count)
        ids, labels = zip(*(self.row(f"{self.seed}:{step}:{number}", stage) for number in numbers), strict=True)
        return torch.tensor(ids, device=device), torch.tensor(labels, device=device)

    def row(self, seed: str, stage: Stage) -> tuple[list[int], list[int]]:
        """Documents until the row is full."""
        source = corpus.Corpus(self.split, stage.shares, **stage.settings)
        chance, ids, labels, number = random.Random(seed), [], [], 0
        while len(ids) < stage.length:
            for unit in source.document(f"{seed}:{number}"):
                known = 1.0 if unit.role in COPIED else stage.template if unit.role == TEMPLATE else stage.told
                kept = stage.unknowable if unit.role.endswith(UNKNOWABLE) else known
                for part, share in ((unit.marks, stage.template), (unit.word, kept)):
                    tokens = self.encode(part)
                    ids += tokens
                    labels += tokens if chance.random() < share else [-100] * len(tokens)
                if stage.pieces and unit.role != TEMPLATE and not unit.role.endswith(NEW):
                    labels[len(labels) - len(tokens) + 1 :] = tokens[1:]
            number += 1
        return ids[: stage.length], labels[: stage.length]


def learning_rate(step: int, steps: int, peak: float, warmup: int = 50) -> float:
    """Linear warm-up, then half a cosine to a twentieth of the peak, in each round; half as much after the first."""
    begins = [round(CURRICULUM * steps * progress) for progress in ROUNDS]
    number = bisect.bisect_right(begins[:-1], step)
    begin, end = begins[number - 1], begins[number]
    step -= begin
    steps = end - begin
    if number > 1:
        peak /= 2
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))))


@torch.no_grad()
def quiet_start(model: Qwen3NextForCausalLM):
    """Two changes to how a new model's Gated DeltaNet layers start; README.md tells what they are part of.

    The convolution starts as PyTorch's own does, as in the original code: with 0.02 the values are so small that the
    gated norm's epsilon swallows them. And the layers' outputs start at a tenth: the gated norm makes them unit noise
    whatever the memory holds, which hides from the attention layers which token is which.
    """
    for layer in model.model.layers:
        if hasattr(layer, "linear_attn"):
            layer.linear_attn.conv1d.reset_parameters()
            layer.linear_attn.out_proj.weight *= 0.1


class StackedMuon(torch.optim.Muon):
    """Muon with all matrices of one shape as one stack, since hundreds of experts each take a few small products.

    Always with Nesterov momentum and "match_rms_adamw", whatever nesterov and adjust_lr_fn ask for.
    """

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            rate, momentum, (a, b, c) = group["lr"], group["momentum"], group["ns_coefficients"]
            trained = [p for p in group["params"] if p.grad is not None]  # MTP's have none before its loss joins
            for shape in dict.fromkeys(p.shape for p in trained):
                matrices = [p for p in trained if p.shape == shape]
                grads = [p.grad for p in matrices]
                means = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in matrices]
                torch._foreach_lerp_(means, grads, 1 - momentum)
                x = torch.stack(torch._foreach_lerp(grads, means, momentum)).bfloat16()  # (matrices, rows, columns)
                x = x.mT if shape[0] > shape[1] else x
                x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
                for _ in range(group["ns_steps"]):  # Newton-Schulz: makes all singular values nearly 1
                    gram = x @ x.mT
                    x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
                x = x.mT if shape[0] > shape[1] else x
                torch._foreach_mul_(matrices, 1 - rate * group["weight_decay"])
                step = -0.2 * math.sqrt(max(shape)) * rate  # as large as AdamW's
                torch._foreach_add_(matrices, list(x.float().unbind()), alpha=step)


def make_optimizers(model: Qwen3NextForCausalLM, rate: float, muon: bool = True) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers; AdamW for the rest: embedding, routers, gates, norms, decay."""
    plain = ("embed_tokens", "mlp.gate.", "shared_expert_gate")
    named = dict(model.named_parameters())
    matrices = {name: p for name, p in named.items() if p.ndim == 2 and not any(part in name for part in plain)}
    others = [p for name, p in named.items() if name not in matrices]
    if muon:
        first = StackedMuon(matrices.values(), lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    else:
        first = torch.optim.AdamW(matrices.values(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    return [first, torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)]


def flat_gradient(model: Qwen3NextForCausalLM) -> torch.Tensor:
    """All gradients as one tensor, of which each parameter's is a view: to be averaged and cleared in one go."""
    flat = torch.zeros(sum(p.numel() for p in model.parameters()), device=model.device)
    for p, part in zip(model.parameters(), flat.split([p.numel() for p in model.parameters()]), strict=True):
        p.grad = part.view_as(p)
    return flat


@torch.no_grad()
def held_out_loss(model: Qwen3NextForCausalLM, tokenizer: Qwen3NextTokenizer, rows: int = 16) -> float:
    """Mean cross-entropy in nats per token over documents with pairs that training never has."""
    ids, _ = Rows(tokenizer, "held out", 512, 1, "held out").batch(1, 0, rows, model.device)
    losses = [model(row[None], labels=row[None], output_router_logits=False).loss.item() for row in ids]
    return sum(losses) / len(losses)


@torch.no_grad()
def found(model: Qwen3NextForCausalLM, ids: list[int], answers: Iterable[Iterable[int]]) -> list[bool]:
    """For each answer, by its tokens' places in ids, whether each of them is the likeliest after those before it."""
    best = model(torch.tensor([ids], device=model.device)).logits[0].argmax(-1).tolist()
    return [all(best[i - 1] == ids[i] for i in answer) for answer in answers]


def accuracy(model: Qwen3NextForCausalLM, tokenizer: Qwen3NextTokenizer, documents: int = 8, **settings) -> float:
    """The share of a document kind's answers of which every word is predicted right, one document a row.

    The kind is settings["kind"], or what the other settings are about.
    """
    kinds = {"entries": "book", "moves": "moves", "guests": "who"}
    kind = settings.pop("kind", None) or next((kinds[name] for name in settings if name in kinds), "chat")
    source, right = corpus.Corpus("held out", {kind: 1.0}, **settings), []
    for number in range(documents):
        ids, spans = [], []
        for unit in source.document(f"accuracy:{number}"):
            before = len(ids) + len(marks := tokenizer.encode(unit.marks))
            ids += marks + tokenizer.encode(unit.word)
            if unit.role == "answer":
                follows = spans and spans[-1].stop == before
                spans[-1:] = [range(spans[-1].start, len(ids))] if follows else [*spans[-1:], range(before, len(ids))]
        right += found(model, ids, spans)
    return sum(right) / len(right)


def yes_or_no(model: Qwen3NextForCausalLM, tokenizer: Qwen3NextTokenizer, kind: str, documents: int = 40) -> float:
    """The share of replies with yes or no that are right, in documents of this kind, where most questions ask for it.

    Right is a reply of which every word that answers is the likeliest: those of the fact, and the yes or no after it.
    """
    source, right = corpus.Corpus("held out", {kind: 1.0}, **{"yes or no": 0.8}), []
    for number in range(documents):
        ids, answers, replies = [], [], []  # answers: the places of those words since the message began
        for unit in source.document(f"yes or no:{number}"):
            ids += tokenizer.encode(unit.marks)
            begin = len(ids)
            ids += tokenizer.encode(unit.word)
            if unit.word == "<|im_start|>":
                answers = []
            if unit.role == "answer":
                answers += range(begin, len(ids))
                if unit.word in (" yes", " no"):
                    replies.append(answers)
        right += found(model, ids, replies)
    return sum(right) / max(len(right), 1)


def plot(history: list[tuple[int, int, float, float]], path: Path):
    """The loss curve as a PNG: rows of step, tokens, loss and MTP loss. A line is a mean over a hundredth of the steps,
    since single steps differ by the documents they happen to see; the band is what four in five of those steps had."""
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    from matplotlib import pyplot

    _, tokens, losses, mtp = (np.array(column) for column in zip(*history, strict=True))
    window = -(-len(tokens) // 100)
    millions = tokens[window - 1 :] / 1e6
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for values, color, label in ((losses, "#0072B2", "next token"), (mtp, "#E69F00", "token after the next (MTP)")):
        near = np.lib.stride_tricks.sliding_window_view(values, window)  # (places, window)
        low, high = np.quantile(near, (0.1, 0.9), axis=1)
        axes.fill_between(millions, low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(millions, near.mean(1), color=color, label=label)
    title = f"mean of {window} steps, and the band of four in five" if window > 1 else None
    figure.legend(title=title, loc="outside lower center", ncols=2)
    axes.set(xlabel="tokens trained on (millions)", ylabel="cross-entropy (nats per token)", title="Training loss")
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    write_whole(path, functools.partial(figure.savefig, dpi=160))


def train(rank: int, args: argparse.Namespace, meeting: str = ""):
    """One process of the training. Every process computes its part of each batch; the first one reports and saves."""
    if args.processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=args.processes)
        torch.set_num_threads(1)
    tokenizer = Qwen3NextTokenizer.from_pretrained(args.run)
    end, im_end = (tokenizer.backend.token_to_id(token) for token in ("<|endoftext|>", "<|im_end|>"))
    torch.manual_seed(args.seed)
    config = Qwen3NextConfig(**SIZES[args.size][0], bos_token_id=end, eos_token_id=im_end)
    if "order" in args.without:
        config.layer_types = config.layer_types[::-1]  # attention first
    model = Qwen3NextForCausalLM(config).to(args.device)
    if "quiet" not in args.without:
        quiet_start(model)
    optimizers, gradient = make_optimizers(model, args.rate, "muon" not in args.without), flat_gradient(model)
    first, spent, history = 0, 0.0, []
    checkpoint = args.run / "checkpoint.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=args.device)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, spent, history = (state[key] for key in ("step", "spent", "history"))

    source = Rows(tokenizer, args.seed, args.length, args.steps, without=frozenset(args.without))
    last, share = min(args.steps, args.stop_after or args.steps), args.batch // args.processes
    bar = tqdm(range(first, last), initial=first, total=args.steps, unit="step", dynamic_ncols=True, disable=rank > 0)
    model.train()
    for step in bar:
        started = time.perf_counter()
        ids, labels = source.batch(step, rank, share, args.device)
        out = model(ids, labels=labels, output_router_logits=True, output_mtp_logits=step >= args.mtp_from * args.steps)
        gradient.zero_()
        out.loss.backward()
        if args.processes > 1:
            dist.all_reduce(gradient)
            gradient /= args.processes
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.rate)
            optimizer.step()
        mtp_loss = out.mtp_loss.item() if out.mtp_loss is not None else math.nan
        extra = 0 if math.isnan(mtp_loss) else config.mtp_loss_scaling_factor * mtp_loss
        loss = out.loss.item() - config.router_aux_loss_coef * out.aux_loss.item() - extra
        history.append((step, (step + 1) * args.batch * args.length, loss, mtp_loss))
        spent += time.perf_counter() - started
        bar.set_postfix(loss=f"{loss:.3f}")
        if rank == 0 and ((step + 1) % 100 == 0 or step + 1 == last):
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
            state |= {"step": step + 1, "spent": spent, "history": history}
            write_whole(checkpoint, functools.partial(torch.save, state))
            recent = [row[2] for row in history[-100:]]
            tqdm.write(f"step {step + 1}: loss {sum(recent) / len(recent):.4f}, {spent / 60:.1f} minutes")
        if args.curve and rank == 0 and (step + 1) % args.curve == 0:
            model.eval()
            books = [f"{n} {accuracy(model, tokenizer, entries=n):.0%}" for n in (2, 4, 8, 16, 32)]
            moves = [f"{n} {accuracy(model, tokenizer, 16, moves=n):.0%}" for n in (1, 2, 4, 8)]
            who = accuracy(model, tokenizer, 16, guests=4)
            told = accuracy(model, tokenizer, 32, **{"questions a story": 4})
            handed = accuracy(model, tokenizer, 16, kind="handed on", things=3)
            free = accuracy(model, tokenizer, 32, kind="free")
            yes = [f"{kind} {yes_or_no(model, tokenizer, kind):.0%}" for kind in ("chat", "moves", "free")]
            tqdm.write(
                f"  entries: {', '.join(books)}; moves: {', '.join(moves)}; handed on: {handed:.0%}; who: {who:.0%}; "
                f"stories: {told:.0%}; free: {free:.0%}; Yes or No: {', '.join(yes)}"
            )
            model.train()
    if last < args.steps or rank > 0:
        return

    model.eval()
    print(f"held-out loss {held_out_loss(model, tokenizer):.4f} nats per token, {spent / 60:.1f} minutes")
    model.generation_config = {
        "bos_token_id": end,
        "eos_token_id": [im_end, end],
        "pad_token_id": end,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
    }
    tokenizer_files = {name: (args.run / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    saving.save(model.to(torch.bfloat16), args.out, "5GB", tokenizer_files)
    plot(history, args.out / "loss.png")


def difference(args: argparse.Namespace) -> str:
    """How these options differ from those that the run in --run was started with, which a new one notes first."""
    names = ("size", "steps", "batch", "length", "rate", "seed", "without")
    settings = {name: getattr(args, name) for name in names} | {"without": sorted(args.without)}
    path = args.run / "settings.json"
    if not path.is_file():
        write_json(path, settings)
    noted = json.loads(path.read_text(encoding="utf-8"))
    return ", ".join(f"{name} was {noted.get(name)}, now {x}" for name, x in settings.items() if noted.get(name) != x)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, with what follows from others filled in. Ends with a line if they are not those of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--steps", type=int, help="of --batch rows each (default: 5600, for micro 2000)")
    parser.add_argument("--batch", type=int, default=8, help="rows a step, over all processes")
    parser.add_argument("--length", type=int, default=512, help="tokens a row")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-after", type=int, metavar="N", help="stop at step N, to go on with the same command")
    parser.add_argument("--curve", type=int, metavar="N", help="print recall by entries and moves every N steps")
    parser.add_argument(
        "--without", nargs="*", default=[], choices=PARTS, metavar="PART", help=f"leave out: {', '.join(PARTS)}"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, help="default: 2 on a CPU, else 1")
    parser.add_argument("--run", type=Path, help="folder of the checkpoint to resume from (default: OUT/run)")
    parser.add_argument("--out", type=Path, help="folder of the finished model (default: tiny/ or tiny/micro/)")
    args = parser.parse_args(arguments)
    _, folder, steps, args.mtp_from = SIZES[args.size]
    args.out, args.steps = args.out or folder, args.steps or steps
    args.run = args.run or args.out / "run"
    args.processes = args.processes or (2 if args.device == "cpu" else 1)
    if args.batch % args.processes:
        parser.error(f"--batch {args.batch} does not divide by --processes {args.processes}")

    changed = difference(args)
    if changed:
        parser.error(f"{args.run} holds another run: {changed}; name another folder by --run")
    return args


def main(arguments: list[str] | None = None):
    args = parse_arguments(arguments)
    if not (args.run / "tokenizer.json").is_file():
        train_tokenizer(args.run, args.seed)
    if args.processes == 1:
        train(0, args)
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        torch.multiprocessing.start_processes(train, (args, meeting), args.processes, start_method="spawn")


if __name__ == "__main__":
    main()
