"""Measures the model in this folder on held-out text and writes the figures into README.md next to it.

    python tiny/card.py                  measure and write
    python tiny/card.py --print          measure and print only

Documents come from the split that training never sees: pairs of name and thing, and of name and number, held out of
training. What the corpus itself knows (grammar.py) is the floor: no model can lose less on its text.
"""

import argparse
import collections
import functools
import itertools
import math
import re
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "benchmarks")]
import corpus  # noqa: E402
import speculation  # noqa: E402
import train  # noqa: E402

from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer  # noqa: E402

BITS = 1 / math.log(2)
OPEN = {"yes or no": 0.0}  # no questions that ask for Yes or No
PROMPTS = ["Once upon a time", "Tell me a story about a fox and a lantern."]
ASKED = [
    ("stories", "chat"),
    ("meetings", "who"),
    ("accounts", "moves"),
    ("accounts in which things only change hands", "handed on"),
    ("a newcomer's words", "free"),
]
ROLES = {  # "(new)": the first time that it is told
    "template": "fixed by the words just before",
    "free choice": "where the generator picks one of several wordings",
    "name (new)": "who takes part",
    "name (asked)": "in a phone book: whose number is asked for",
    "name (copied)": "the same name, in the answer",
    "name": "any other mention: which of those known",
    "pronoun": "he or she, which the name tells",
    "kind (new)": "what somebody is: fox, girl, baker",
    "kind": "the same, told again",
    "thing (new)": "lantern, kite",
    "thing": "",
    "adjective (new)": "what a thing is like",
    "adjective": "",
    "place (new)": "where somebody goes or something lies",
    "place": "",
    "detail (new)": "weather, food, what a single plot has",
    "detail": "",
    "number (new)": "digits of a phone book",
    "answer": "what answers a question: digits, names, places, whole sentences about a story, yes or no",
}


def table(head: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


class Card:
    """The model under test and what is measured of it."""

    def __init__(self, folder: Path, documents: int):
        self.tokenizer = Qwen3NextTokenizer.from_pretrained(folder)
        self.model = Qwen3NextForCausalLM.from_pretrained(folder)
        self.exact = Qwen3NextForCausalLM.from_pretrained(folder, dtype="float32")
        self.encode = functools.cache(self.tokenizer.encode)
        self.folder, self.documents = folder, documents

    def size(self) -> str:
        """Parameters, bytes, and the widths and order of the layers."""
        c = self.model.config
        order = "".join("D" if kind == "linear_attention" else "A" for kind in c.layer_types)
        return (
            f"{sum(p.numel() for p in self.model.parameters()):,} parameters in "
            f"{(self.folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB; {len(order)} layers, {order} "
            f"(D: Gated DeltaNet, A: attention); K = {c.linear_key_head_dim}, V = {c.linear_value_head_dim}."
        )

    def ids_and_roles(self, units: list[corpus.Unit]) -> tuple[list[int], list[str]]:
        """A document's token ids, and the role of each."""
        ids, roles = [], []
        for unit in units:
            marks, word = self.encode(unit.marks), self.encode(unit.word)
            ids += marks + word
            roles += ["template"] * len(marks) + [unit.role] * len(word)
        return ids, roles

    def bigrams(self, documents: int = 4000) -> dict[int, int]:
        """The most frequent next token after each, in training documents: the simplest draft there is."""
        counts, source = collections.defaultdict(collections.Counter), corpus.Corpus()
        for number in range(documents):
            ids, _ = self.ids_and_roles(source.document(f"bigrams:{number}"))
            for one, following in itertools.pairwise(ids):
                counts[one][following] += 1
        return {one: following.most_common(1)[0][0] for one, following in counts.items()}

    @torch.no_grad()
    def by_role(self) -> tuple[str, str, str]:
        """Excess bits by role; accepted first drafts by role, MTP's and the bigrams'; expert load."""
        source, whole, bigrams = corpus.Corpus("held out"), corpus.Corpus(None), self.bigrams()
        found = collections.defaultdict(lambda: collections.Counter())
        load = torch.zeros(self.model.config.num_hidden_layers, self.model.config.num_experts)
        for number in tqdm(range(self.documents), desc="documents", disable=None):
            units = source.document(f"card:{number}")
            rows = whole.floor(units, self.encode)
            ids = torch.tensor([[token for token, *_ in rows]])
            out = self.exact(ids, output_router_logits=True, output_mtp_logits=True)
            logs = out.logits[0].log_softmax(-1)
            best, draft = out.logits[0].argmax(-1).tolist(), out.mtp_logits[0].argmax(-1).tolist()
            chosen = [layer.topk(self.model.config.num_experts_per_tok).indices for layer in out.router_logits]
            load += torch.stack([indices.flatten().bincount(minlength=load.shape[1]) for indices in chosen])
            for i in range(1, len(rows)):
                token, role, surprise, entropy = rows[i]
                tally = found[role]
                tally.update(tokens=1, floor=surprise, entropy=entropy, loss=-logs[i - 1, token].item())
                if i >= 2:  # the draft for token i is made at token i - 2 with token i - 1 known
                    overlap = torch.minimum(logs[i - 1].exp(), out.mtp_logits[0, i - 2].softmax(-1)).sum().item()
                    bigram = bigrams.get(rows[i - 1][0]) == best[i - 1]
                    tally.update(drafts=1, mtp=draft[i - 2] == best[i - 1], overlap=overlap, bigram=bigram)
        total = sum(found.values(), collections.Counter())
        excess, drafts = [], []
        for name, tally in [(role, found[role]) for role in ROLES] + [("all", total)]:
            n, d = tally["tokens"], tally["drafts"]
            loss, floor = (BITS * tally[key] / n for key in ("loss", "floor"))
            bits = (f"{abs(floor):.3f}", f"{loss:.3f}", f"{loss - floor:.3f}")  # rounding may leave a floor of -0.000
            excess.append([name, n, *bits, ROLES.get(name, "")])
            drafts.append([name, *(f"{tally[key] / d:.0%}" for key in ("mtp", "overlap", "bigram"))])
        share = load / load.sum(1, keepdim=True) * load.shape[1]
        loads = [[i, *(f"{f(row):.2f}" for f in (torch.min, torch.median, torch.max))] for i, row in enumerate(share)]
        return (
            table(["role", "tokens", "floor, bits", "model, bits", "excess, bits", "what it is"], excess),
            table(["role", "MTP", "MTP, sampled", "bigram"], drafts),
            table(["layer", "least used", "median", "most used"], loads),
        )

    def answers(self, document: list[corpus.Unit], between: list[int] = ()) -> list[bool]:
        """For each answer whether all its words are predicted right; `between`: tokens before the last user turn."""
        ids, roles = self.ids_and_roles(document)
        if between:
            turn = self.tokenizer.backend.token_to_id("<|im_start|>")
            cut = max(i for i, (token, following) in enumerate(itertools.pairwise(ids)) if token == turn) - 1
            cut = max(i for i in range(cut) if ids[i] == turn)
            ids, roles = ids[:cut] + list(between) + ids[cut:], roles[:cut] + ["template"] * len(between) + roles[cut:]
        groups = itertools.groupby(range(1, len(ids)), key=lambda i: roles[i] == "answer")
        return train.found(self.exact, ids, [list(group) for answer, group in groups if answer])

    def questions(self, documents: int, kind: str = "", **settings) -> float:
        """The share of right answers in documents of one kind; without one, of that which the settings are about."""
        kind = kind or ("book" if "entries" in settings else "moves" if "moves" in settings else "chat")
        source = corpus.Corpus("held out", {kind: 1.0}, **settings)
        found = [right for n in range(documents) for right in self.answers(source.document(f"questions:{n}"))]
        return sum(found) / len(found)

    def yes_or_no(self, documents: int, kind: str) -> float:
        """The share of replies that are right, the fact and the yes or no, in documents that mostly ask for these."""
        return train.yes_or_no(self.exact, self.tokenizer, kind, documents)

    def far(self, entries: int, length: int, documents: int = 12) -> float:
        """The share of numbers found when stories stand between the book and the last question, `length` in all."""
        books, chats = (
            corpus.Corpus("held out", {"book": 1.0}, entries=entries),
            corpus.Corpus("held out", {"chat": 1.0}),
        )
        newline, found = self.encode("\n"), []
        for n in range(documents):
            document = books.document(f"far:{n}")
            room, between = length - len(self.ids_and_roles(document)[0]), []
            for chat in itertools.count():
                more = self.ids_and_roles(chats.document(f"far:{n}:{chat}"))[0][:-1] + newline
                if len(between) + len(more) > room:
                    break
                between += more
            found.append(self.answers(document, between)[-1])
        return sum(found) / len(found)

    def samples(self, count: int) -> str:
        """Texts with the checkpoint's own settings, seeds 0, 1, 2 and so on; in float32, alike on most machines."""
        asked = [*PROMPTS, *["Tell me a story."] * (count - len(PROMPTS))]
        parts = []
        for seed, prompt in enumerate(asked):
            text = self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}])
            ids = self.tokenizer([text], return_tensors="pt").input_ids
            made = self.exact.generate(ids, max_new_tokens=400, seed=seed)[0, ids.shape[1] :]
            told = self.tokenizer.decode(made.tolist(), skip_special_tokens=True)
            quoted = "\n".join(f"> {line}".rstrip() for line in told.strip().splitlines())
            parts.append(f"**{prompt}** (`--seed {seed}`)\n\n{quoted}")
        return "\n\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", dest="only_print", help="leave README.md as it is")
    parser.add_argument("--model", type=Path, default=HERE)
    parser.add_argument("--documents", type=int, default=200, help="for the tables by role (default: %(default)s)")
    args = parser.parse_args()
    begun, card = time.perf_counter(), Card(args.model, args.documents)
    excess, drafts, load = card.by_role()
    moves = [
        [n, *(f"{card.questions(40, moves=n, things=things, **OPEN):.0%}" for things in (2, 3))]
        for n in (1, 2, 3, 4, 6, 8, 12, 16)
    ]
    books = [[n, f"{card.questions(24, entries=n):.0%}"] for n in (2, 4, 8, 16, 24, 32, 48, 64, 96)]
    far = [[n, *(f"{card.far(n, length):.0%}" for length in (512, 1024, 2048, 4096))] for n in (4, 16)]
    asked = [
        [name, f"{card.questions(150, kind, **OPEN):.0%}", f"{card.yes_or_no(150, kind):.0%}"] for name, kind in ASKED
    ]
    speed = [
        [
            row["drafts"],
            f"{row['tokens_per_s']:.0f}",
            f"{row['ratio']:.2f}",
            ", ".join(f"{s:.0%}" for s in row["stood"]),
        ]
        for row in speculation.measure(card.model, card.tokenizer, 6, 2)
    ]
    sections = {
        "size": card.size(),
        "excess": excess,
        "questions": table(["questions in", "other questions: right", "yes or no: right"], asked)
        + "\n\nIn accounts, by the number of moves, without questions for yes or no:\n\n"
        + table(["moves", "two things", "three things"], moves),
        "books": table(["entries in the book", "numbers right"], books),
        "far": table(["entries in the book", "512", "1K", "2K", "4K"], far),
        "load": load,
        "drafts": drafts,
        "speed": table(["drafts a step", "tokens/s", "compared with none", "accepted, by position"], speed),
        "samples": card.samples(10),
    }
    minutes = (time.perf_counter() - begun) / 60
    readme = HERE / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, body in sections.items():
        print(f"\n## {name}\n\n{body}")
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not args.only_print and not pattern.search(text):
            raise ValueError(f"{readme}: no section <!-- {name} --> ... <!-- /{name} -->")
        text = pattern.sub(lambda match, body=body: f"{match[1]}\n{body}\n\n{match[2]}", text)
    if not args.only_print:
        readme.write_text(text, encoding="utf-8")
    print(f"\n{minutes:.1f} minutes")


if __name__ == "__main__":
    main()
