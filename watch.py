"""A page that shows the memory of a Qwen3-Next model being written, word by word: one HTML file, no server.

    python watch.py --prompt "Tell me a story about a lost compass."       writes memory.html
    python watch.py --prompt "..." --model DIR --out FILE --max-new-tokens 150 --seed 3

In a notebook: `watch.show(model, tokenizer, "Tell me a story about a lost compass.")`

The file holds the values that the Gated DeltaNet layers compute from the text: q, k and v, decay and write strength. It
does not hold the states. The browser computes them with the five lines of the delta rule, so a reader can change the
rule and watch the effect on the memory. watch.html is the page without its data.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from torch import Tensor

import qwen3_next
from verify.trace import recording

HERE = Path(__file__).resolve().parent
BYTES = 3_900_000  # a page that would be larger gets fewer layers
RUNS = HERE / "notebooks" / "data" / "rules.json"  # of notebooks/experiments/rules.py
PLACE = "/* data */"  # in watch.html: the data goes there
NOTEBOOK = "2_delta_rule.ipynb#"
TIPS = {  # what a reader can point at: one sentence, and the section of a notebook to read on
    "word": (
        "The share of a word's value v that the memory returns when asked with the word's own key k: "
        "max(0, 1 − |Sᵀk − v|² / |v|²). A word counts as returned from a tenth on.",
        NOTEBOOK + "7.-How-many-pairs-fit",
    ),
    "S": (
        "S, the state, is a matrix of K × V numbers. Sᵀk is the value stored under key k.",
        NOTEBOOK + "2.-A-memory,-on-the-whiteboard",
    ),
    "k": (
        "k, the key, always has length 1. With a longer key, a single write would overshoot.",
        NOTEBOOK + "5.-Why-keys-have-length-1",
    ),
    "alpha": (
        "alpha = e^g, the decay: the share of the whole memory that is kept when this word comes.",
        NOTEBOOK + "6.-What-g-and-beta-do",
    ),
    "beta": (
        "beta, the write strength, between 0 and 1: the share of the difference that is written.",
        NOTEBOOK + "6.-What-g-and-beta-do",
    ),
    "recall": (
        "Recall, Sᵀk: the value that the memory holds under this word's key before the write.",
        NOTEBOOK + "3.-The-recurrence,-term-by-term",
    ),
    "value": (
        "v, the value that the memory should return for this word's key from now on.",
        NOTEBOOK + "3.-The-recurrence,-term-by-term",
    ),
    "delta": (
        "delta = beta (v − Sᵀk): the difference between value and recall, times beta. The word writes delta.",
        NOTEBOOK + "4.-A-step-of-gradient-descent,-taken-by-every-token",
    ),
    "read": (
        "Read, Sᵀq: the head's output. After the write, the memory is asked with the query q.",
        NOTEBOOK + "3.-The-recurrence,-term-by-term",
    ),
    "ring": (
        "Ring: alpha^10, the share of the memory that would be left after ten words with this word's decay. "
        "Disc: beta, the write strength of this word.",
        NOTEBOOK + "6.-What-g-and-beta-do",
    ),
    "rule": (
        "Without decay, alpha = 1. Without asking, delta = v: the value is added to whatever is stored under the key.",
        NOTEBOOK + "3.-The-recurrence,-term-by-term",
    ),
    "time": (
        "S depends only on the words up to this one: S_t = alpha S_(t−1) + k deltaᵀ.",
        NOTEBOOK + "3.-The-recurrence,-term-by-term",
    ),
    "trained": (
        "Each of the four models has learned keys, values, alpha and beta for its own rule, on the same texts: "
        "notebooks/experiments/rules.py.",
        NOTEBOOK + "7.-How-many-pairs-fit",
    ),
    "look": (
        "The attention weight, softmax(q · k / √d) over all words so far, times the mean of the head's output gate, "
        "sigmoid(gate).",
        "5_gated_attention.ipynb#6.-The-gate",
    ),
    "expert": (
        "Each layer has E small networks, its experts. A router chooses a few of them for each word.",
        "7_mixture_of_experts.ipynb#1.-The-router",
    ),
    "next": (
        "The model's probabilities for the next word: softmax of the logits, before sampling. The true probabilities "
        "are known as long as the grammar of the training texts could have written the text.",
        "train_tiny.ipynb#2.-The-floor-is-exact",
    ),
    "draft": (
        "A small extra layer, MTP, guesses the word after next while the model computes the next word. The model "
        "checks this draft in its next pass. If the draft is accepted, that pass yields two words instead of one.",
        "8_multi_token_prediction.ipynb#3.-Drafting-and-checking,-token-by-token",
    ),
}

VERDICTS = [  # on linear attention, decay only, the delta rule, the gated delta rule
    "Values pile up. Each is added, none is ever taken out, and the answer to any key is a mixture.",
    "The pile fades, so it stays small. But no word asks what is stored already, and new values drown the old ones.",
    "Each word asks first and writes only the difference, so a new value replaces the old one. But nothing ever fades.",
    "Qwen3-Next's rule. Each word sets alpha, the share of the memory to keep, and beta, the strength of its write.",
]
SHARED = (
    "similar words write their common part again and again. How much of this is only similarity? Asked with a wrong "
    "word's key each time, the memory still returns OTHERS values. Only the rest is memory of the particular word."
)
WHY = {  # why so many, or so few, values can be returned; the page puts numbers in place of the capitals
    "none": "",
    "mixed": "Why so few? Asked with a word's own key, the memory gives an answer TIMES as long as the word's value "
    "(the median). Everything written under keys of similar direction comes along, and the value drowns in it.",
    "kept": "Why so many? Nothing fades, and " + SHARED,
    "faded": "Why so many, if everything fades? A faded value is shorter but keeps its direction. At half its length "
    "it counts as 75 % returned. And " + SHARED,
    "cleared": "Why so few? This head's memory fades fast. Of its content ten words ago, LEFT remains. Other heads "
    "keep more: choose one below.",
    "replaced": "Why so few? Nothing fades, but the keys are similar, and new values replace old ones.",
}

# ---- The text -------------------------------------------------------------------------------------------------------


def prompt_ids(tokenizer: Any, prompt: str, raw: bool = False) -> list[int]:
    """The ids of a user's message, or with `raw` of the plain text. Raises ValueError if there are none."""
    if tokenizer.chat_template and not raw:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": prompt}])
    ids = tokenizer.encode(prompt)
    if not ids:
        raise ValueError("the prompt is empty: there is nothing to read")
    return ids


@torch.no_grad()
def answer(model: Any, ids: list[int], new_tokens: int, seed: int | None = None, **sampling: Any) -> tuple[list, dict]:
    """The answer that `model.generate` gives to a prompt, with one draft for each pass if the model has an MTP layer.

    Returns the ids of prompt and answer. For each place among them that has a draft, it also returns the draft, and
    whether the model accepted it. sampling: options of `generate`.
    """
    rule, _, penalties = qwen3_next.read_options(model.generation_config, sampling, 0)
    ends, _ = qwen3_next.end_tokens(model, ...)
    if penalties:
        kind = qwen3_next.sibling("penalties", ", ".join(penalties)).Penalties
        penalties = kind(torch.tensor([ids], device=model.device), None, ends, **penalties)
    generator = None if seed is None else torch.Generator(model.device).manual_seed(seed)
    drafts_a_pass = 0 if model.mtp is None else 1
    decoder = qwen3_next.Decoder(model, model.make_cache(1), rule, drafts_a_pass, generator, penalties)
    limit = len(ids) + new_tokens
    ids = list(ids)
    drafts: dict[int, tuple[int, bool]] = {}
    if new_tokens:
        decoder.prefill(torch.tensor([ids], device=model.device), None)
    while len(ids) < limit:
        new = decoder.next_tokens()[0].tolist()
        for draft in decoder.drafts[0].tolist():
            drafts[len(ids)] = (draft, len(new) > 1)
        if new[0] in ends:
            new = new[:1]
        ids += new
        if ids[-1] in ends:
            break
        decoder.keep(torch.tensor([new], device=model.device))
        if len(ids) < limit:
            decoder.advance(limit - len(ids))
    return ids, drafts


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """Each token's text. Where a character is spread over several tokens, the last one has it."""
    stream = tokenizers.decoders.DecodeStream(skip_special_tokens=False)
    return [stream.step(tokenizer.backend, token) or "" for token in ids]


# ---- What the layers compute ----------------------------------------------------------------------------------------


class Blob:
    """Arrays as text: the bytes of float32, most significant byte of all numbers first, compressed.

    Numbers that fit into bfloat16, as most do in a bfloat16 model, have their upper two bytes only.
    """

    def __init__(self):
        self.index: dict[str, dict] = {}  # name -> where it starts, bytes a number, shape
        self.bytes = bytearray()

    def add(self, name: str, x: Tensor):
        """Appends an array, rounded to float32."""
        bits = np.ascontiguousarray(x.float().numpy()).view(np.uint32)
        planes = 4 if (bits & 0xFFFF).any() else 2
        self.index[name] = {"start": len(self.bytes), "planes": planes, "shape": list(x.shape)}
        for plane in range(planes):
            self.bytes += (bits >> (24 - 8 * plane)).astype(np.uint8).tobytes()

    def text(self) -> str:
        """All of it in base64."""
        return base64.b64encode(zlib.compress(bytes(self.bytes), 9)).decode()


def spread(layers: list[int], size: float, limit: float) -> list[int]:
    """As many of the layers, evenly spread, as fit into a limit if each has this size; at least one."""
    count = max(1, min(len(layers), int(limit / size)))
    return [layers[i * len(layers) // count] for i in range(count)] if layers else []


def delta_layers(model: Any, tokens: int, asked: Iterable[int] | None) -> list[int]:
    """The Gated DeltaNet layers to show: those asked for, or all, or as many as a page can hold.

    Raises ValueError if one that is asked for is of another kind, or if there is none.
    """
    config = model.config
    known = [i for i, kind in enumerate(config.layer_types) if kind == "linear_attention"]
    qwen3_next.expect(len(known) > 0, "the model has no Gated DeltaNet layer, and so no memory to watch")
    if asked is not None:
        for i in asked:
            qwen3_next.expect(i in known, f"layer {i} is no Gated DeltaNet layer, expected some of {known}")
        return sorted(set(asked))
    keys = 2 * config.linear_num_key_heads * config.linear_key_head_dim
    values = config.linear_num_value_heads * config.linear_value_head_dim
    return spread(known, text_size(model, tokens * (keys + values)), 0.65 * BYTES)


def attention_layers(model: Any, tokens: int) -> list[int]:
    """The attention layers to show: all, or as many as a page can hold."""
    config = model.config
    known = [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
    width = (config.num_attention_heads + config.num_key_value_heads) * config.head_dim if known else 1
    return spread(known, text_size(model, tokens * width), 0.2 * BYTES)


def text_size(model: Any, numbers: int) -> float:
    """Bytes of what a model computes, in base64, before it is compressed."""
    return numbers * min(model.dtype.itemsize, 4) * 4 / 3


def best_head(trace: dict[str, Tensor], layers: list[int]) -> str:
    """The head to begin with, "layer.head". At the end, its state knows best which value belongs to which key.

    Values resemble each other, so a state also returns part of a word's value under a different word's key. The measure
    is how much more it returns under the word's own key.
    """
    found = []
    for i in layers:
        k, v, state = (trace[f"model.layers.{i}.linear_attn.{name}"] for name in ("k_l2norm", "v_conv", "state"))
        shares = []
        for keys in (k, k.roll(len(k) // 3, dims=0)):
            error = torch.einsum("thk,hkv->thv", keys, state) - v
            share = 1 - error.square().sum(-1) / v.square().sum(-1)
            shares.append(share.clamp(min=0).nan_to_num(0).mean(0))  # (H,)
        found += [(more, f"{i}.{h}") for h, more in enumerate((shares[0] - shares[1]).tolist())]
    return max(found)[1]


def layer_data(model: Any, ids: list[int], asked: Iterable[int] | None, blob: Blob) -> tuple[dict, Tensor]:
    """Reads a text in one pass and puts the values that the layers compute into the blob.

    Returns the layers and heads there are, and the probabilities of the next token (T, vocab).
    """
    config = model.config
    delta = delta_layers(model, len(ids), asked)
    attention = attention_layers(model, len(ids))
    sparse = [i for i in range(len(config.layer_types)) if config.num_experts and config.is_moe(i)]
    shown = {  # part of a layer -> which layers, values for the page, values that are needed here
        "linear_attn": (delta, ["conv_out", "g", "beta"], ["k_l2norm", "v_conv", "state"]),
        "self_attn": (attention, ["q_rope", "k_rope"], ["gate"]),
        "mlp": (sparse, ["topk_ids", "topk_weights"], []),
    }
    keys = [
        f"model.layers.{i}.{kind}.{name}"
        for kind, (layers, shipped, needed) in shown.items()
        for i in layers
        for name in shipped + needed
    ]
    with recording(model, keys) as trace, torch.no_grad():
        logits = model(torch.tensor([ids], device=model.device)).logits[0]
    for kind, (layers, shipped, _) in shown.items():
        for i in layers:
            for name in shipped:
                blob.add(f"{i}.{name}", trace[f"model.layers.{i}.{kind}.{name}"])
    for i in attention:
        gate = torch.sigmoid(trace[f"model.layers.{i}.self_attn.gate"])  # (T, heads, head_dim)
        blob.add(f"{i}.gate", gate.mean(-1))
    data = {
        "delta": {
            "layers": delta,
            "keyHeads": config.linear_num_key_heads,
            "heads": config.linear_num_value_heads,
            "K": config.linear_key_head_dim,
            "V": config.linear_value_head_dim,
        },
        "attention": {"layers": attention, "heads": config.num_attention_heads, "width": config.head_dim},
        "experts": {"layers": sparse, "count": config.num_experts or 0},
        "start": best_head(trace, delta),
    }
    return data, logits.float().softmax(-1).cpu()


def likeliest(tokenizer: Any, p: Tensor, ids: list[int], count: int = 6) -> list[list[list]]:
    """For each row of p (T, vocab), the texts and probabilities of the likeliest tokens.

    If the token that follows in ids (T) is not among them, it replaces the last one.
    """
    top = p.topk(min(count, p.shape[-1]), dim=-1).indices.tolist()
    for tokens, follows in zip(top, ids[1:]):
        if follows not in tokens:
            tokens[-1] = follows
    return [[[tokenizer.decode(n), round(row[n].item(), 4)] for n in tokens] for tokens, row in zip(top, p)]


def true_chances(tokenizer: Any, ids: list[int]) -> list[dict[str, float]] | None:
    """After each token the next one's true probabilities, text -> p, as long as the text is one of tiny/corpus.py's.

    None for the tokenizer of another model, which has not learned that corpus.
    """
    own = tokenizers.Tokenizer.from_file(str(HERE / "tiny" / "tokenizer.json"))
    if own.get_vocab() != tokenizer.backend.get_vocab():
        return None
    sys.path[:0] = [str(HERE / "tiny")]
    import corpus

    whole = corpus.Corpus(None)
    floor = corpus.Floor(corpus.GRAMMAR, whole.nodes, tokenizer.encode, whole.env)
    found = []
    for token in ids:
        if math.isinf(floor.step(token)[0]):
            break
        found.append({tokenizer.decode(other): round(p, 4) for other, p in floor.next_tokens().items()})
    return found


def six_writes(draws: int = 200, width: int = 8) -> list[list[float]]:
    """Six writes under random keys of length 1, by each of the four rules. The fourth key is the first one again.

    The result is how much of each value its key returns at the end, max(0, 1 - |S^T k - v|^2 / |v|^2), as the mean of
    all draws. No rule is favoured. Keys and values that a model has learned would favour the rule it learned with.
    """
    random = torch.Generator().manual_seed(0)
    k = torch.nn.functional.normalize(torch.randn(draws, 5, 1, width, generator=random), dim=-1)[:, [0, 1, 2, 0, 3, 4]]
    v = torch.randn(draws, 6, 1, width, generator=random)
    one = torch.ones(draws, 6, 1)
    shares = []
    for alpha, asks in ((1.0, False), (0.9, False), (1.0, True), (0.9, True)):  # the four rules
        if asks:
            _, state = qwen3_next.recurrent_gated_delta_rule(k, k, v, g=math.log(alpha) * one, beta=one)
            state = state[:, 0]
        else:  # each value is added, and fades with every write that comes after it
            left = alpha ** torch.arange(5, -1, -1)[:, None]
            state = torch.einsum("dtk,dtv->dkv", k[:, :, 0], left * v[:, :, 0])
        error = torch.einsum("dtk,dkv->dtv", k[:, :, 0], state) - v[:, :, 0]
        share = 1 - error.square().sum(-1) / v[:, :, 0].square().sum(-1)
        shares.append([round(x, 3) for x in share.clamp(min=0).mean(0).tolist()])
    return shares


def trained_rules(names: int = 16) -> list[list[float]]:
    """The share of right answers of small models, each trained with its own rule, as the mean over seeds.

    names: how many are in a text. There is a row for each of the four rules, and a column for each kind of text.
    notebooks/experiments/rules.py has trained the models.
    """
    runs = json.loads(RUNS.read_text(encoding="utf-8"))
    runs = [run for run in runs if run["what"] == "recall"]
    rules = ("linear attention", "decay only", "delta rule", "gated delta rule")

    def mean(rule: str, kind: str) -> float:
        shares = [run["accuracy"][kind][str(names)] for run in runs if run["rule"] == rule]
        return round(sum(shares) / len(shares), 3)

    return [[mean(rule, kind) for kind in ("once", "replaced", "new text")] for rule in rules]


def comparisons() -> list[dict]:
    """The two tables that compare the rules without the model's weights, so that none has an advantage."""
    writes = {
        "tip": "k",
        "title": "Six writes",
        "text": "under random keys of length 1. Key a comes twice, first with the value a₁, then with a₂. The decay, "
        "if any, is 0.9, the write strength 1. The numbers say how much of each value its key returns at the end, as "
        "the mean of 200 draws. The rules that ask first have replaced a₁ by a₂.",
        "heads": ["returned, in %", "a₁", "b", "c", "a₂", "d", "e"],
        "rows": six_writes(),
    }
    trained = {
        "tip": "trained",
        "title": "Four small models,",
        "text": "each trained with its own rule. A text gives each of 16 names a thing. The question: which thing "
        "came last with a given name? Once: each name comes once. Replaced: each name comes four times, each time with "
        "a random thing. New text: two other texts come first. Asking first helps to replace, decay helps to forget.",
        "heads": ["right, in %", "once", "replaced", "new text"],
        "rows": trained_rules(),
    }
    return [writes, trained]


# ---- The page -------------------------------------------------------------------------------------------------------


def page(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    raw: bool = False,
    max_new_tokens: int = 150,
    layers: Iterable[int] | None = None,
    notebooks: str = "notebooks",
    **options: Any,
) -> str:
    """The page as HTML.

    raw: the prompt is plain text, not a message; max_new_tokens: the longest answer, 0 for none; layers: numbers of
    Gated DeltaNet layers, None for all that fit; notebooks: the address of the folder with the notebooks, for links;
    options: seed, do_sample, temperature and the other sampling options of `generate`. Raises ValueError.
    """
    expected = f"max_new_tokens is {max_new_tokens!r}, expected 0 or more"
    qwen3_next.expect(isinstance(max_new_tokens, int) and max_new_tokens >= 0, expected)
    prompt_tokens = prompt_ids(tokenizer, prompt, raw)
    ids, drafts = answer(model, prompt_tokens, max_new_tokens, **options)
    blob = Blob()
    data, p = layer_data(model, ids, layers, blob)
    data |= {
        "tokens": pieces(tokenizer, ids),
        "answer": len(prompt_tokens),
        "drafts": {place: [tokenizer.decode(draft), accepted] for place, (draft, accepted) in drafts.items()},
        "drafting": model.mtp is not None,
        "next": likeliest(tokenizer, p, ids),
        "truth": true_chances(tokenizer, ids),
        "notebooks": notebooks,
        "tips": TIPS,
        "verdicts": VERDICTS,
        "why": WHY,
        "tables": comparisons(),
        "arrays": blob.index,
        "bytes": blob.text(),
    }
    return (HERE / "watch.html").read_text(encoding="utf-8").replace(PLACE, as_json(data))


def as_json(data: dict) -> str:
    """JSON that may be put between script tags."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def link_from(folder: Path) -> str:
    """The notebooks' folder, as a page in `folder` links to it."""
    return Path(os.path.relpath(HERE / "notebooks", folder)).as_posix()


def show(model: Any, tokenizer: Any, prompt: str, out: str = "memory.html", height: int = 900, **options: Any) -> Any:
    """Displays the page in a notebook. The page is a file next to the notebook, so that the notebook stays small.

    options: those of `page`. Returns an IFrame.
    """
    from IPython.display import IFrame

    folder = Path(out).resolve().parent
    Path(out).write_text(page(model, tokenizer, prompt, notebooks=link_from(folder), **options), encoding="utf-8")
    return IFrame(out, width="100%", height=height)


# ---- Command line ---------------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--prompt", required=True, metavar="TEXT", help="a user message (with --raw: a text as it is)")
    add("--model", default=HERE / "tiny", metavar="DIR_OR_REPO", help="checkpoint folder or hub name (default: tiny/)")
    add("--out", type=Path, default=Path("memory.html"), metavar="FILE", help="the page (default: %(default)s)")
    add("--max-new-tokens", type=int, default=150, metavar="N", help="longest answer (default: %(default)s); 0: none")
    add("--raw", action="store_true", help="leave the chat template out")
    add("--layers", type=int, nargs="+", metavar="N", help="Gated DeltaNet layers to show (default: all that fit)")
    add(
        "--dtype", default="auto", metavar="D", help="bfloat16, float16, float32 or float64 (default: the checkpoint's)"
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--greedy", action="store_true", help="take the likeliest token each time")
    choice.add_argument("--seed", type=int, metavar="N", help="make sampling repeatable")
    args = parser.parse_args(arguments)
    if args.max_new_tokens < 0:
        parser.error(f"--max-new-tokens is {args.max_new_tokens}, expected 0 or more")
    return args


def run(args: argparse.Namespace):
    """Writes the page that the options ask for."""
    if not args.out.resolve().parent.is_dir():
        raise FileNotFoundError(f"{args.out}: no such folder")
    usual = {"device": "auto", "delta_rule": "chunk", "in_memory": False, "compile": False}
    loading = argparse.Namespace(model=args.model, dtype=args.dtype, **usual)
    tokenizer, model = qwen3_next.load(loading)
    if not tokenizer.chat_template and not args.raw:
        print("watch.py: no chat template: the text is continued as with --raw", file=sys.stderr)
    sampling = {"do_sample": False} if args.greedy else {"seed": args.seed}
    options = {"raw": args.raw, "max_new_tokens": args.max_new_tokens, "layers": args.layers}
    notebooks = link_from(args.out.resolve().parent)
    html = page(model, tokenizer, args.prompt, notebooks=notebooks, **options, **sampling)
    args.out.write_text(html, encoding="utf-8")
    print(f"{args.out}: {len(html.encode()) / 1e6:.1f} MB")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    return qwen3_next.exit_code("watch.py", run, parse_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
