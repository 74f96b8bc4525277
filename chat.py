"""A conversation with a Qwen3-Next checkpoint in the terminal: one message a line, Ctrl-C stops an answer.

    python chat.py                                                    the small trained model in tiny/
    python chat.py --model DIR_OR_REPO --tools tools.json --template-arg enable_thinking=false

A message of several lines is pasted as it is, or written between two lines of three quotes. `/save NAME` writes the
conversation and its cache to NAME.json and NAME.safetensors, and `/load NAME` goes on from there, also another day.

The cache goes on from turn to turn, so that a long conversation is not read again for every answer. Answers go to
standard output, all else to standard error; `echo "Hello!" | python chat.py` answers once.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Ctrl-C while PyTorch is imported should end the program without a traceback
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)

import tokenizers
import torch

import qwen3_next
from qwen3_next_checkpoints.stats import reporting

# What apply_chat_template is told here; its other keywords, as add_generation_prompt, are variables like any other
OURS = ("self", "messages", "tokenize", *qwen3_next.CHAT_OPTIONS)
QUOTES = '"""'  # between two lines of these, a message may have several
PREFILL_WINDOW = 512  # tokens in a forward pass of a long prompt: few enough for the progress bar to move


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options: those of qwen3_next.py, and the chat template's variables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    qwen3_next.add_options(parser)
    parser.add_argument("--tools", metavar="FILE", help="a JSON list of tools for the chat template")
    parser.add_argument("--template-arg", action="append", default=[], metavar="KEY=JSON", help="a template variable")
    return parser.parse_args(arguments)


def template_variables(args: argparse.Namespace) -> dict[str, Any]:
    """What --tools and --template-arg say. Raises FileNotFoundError or ValueError naming the file or the option."""
    variables = {}
    if args.tools:
        text = qwen3_next.read_text(args.tools)
        with qwen3_next.reading(args.tools, "not JSON"):
            variables["tools"] = json.loads(text)
    for pair in args.template_arg:
        key, _, value = pair.partition("=")
        qwen3_next.expect(key not in OURS, f"--template-arg {key}: is set by this program, and no template's variable")
        with qwen3_next.reading(f"--template-arg {key}", "not JSON"):
            variables[key] = json.loads(value)
    return variables


class Printer:
    """Prints an answer as its tokens arrive: whole characters only, and nothing from a stop string on."""

    def __init__(self, tokenizer: qwen3_next.Qwen3NextTokenizer, stops: list[str] | None):
        self.backend = tokenizer.backend
        self.stream = tokenizers.decoders.DecodeStream(skip_special_tokens=True)
        self.stops = stops or []
        self.ids: list[int] = []
        self.text = ""
        self.shown = 0  # characters of it

    def __call__(self, token: int):
        self.ids.append(token)
        self.text += self.stream.step(self.backend, token) or ""  # None while a character is incomplete
        starts = [n for stop in self.stops for n in range(len(stop)) if self.text.endswith(stop[:n])]
        self.show(len(self.text) - max(starts, default=0))  # what may become a stop string waits

    def show(self, end: int):
        """Prints the text up to there, or up to the first stop string."""
        end = min([end, *(self.text.index(stop) for stop in self.stops if stop in self.text)])
        print(self.text[self.shown : end], end="", flush=True)
        self.shown = max(self.shown, end)

    def finish(self):
        """Prints what has waited, and ends the line."""
        self.show(len(self.text))
        print(flush=True)


def read_line(prompt: str = "> ") -> str | None:
    """A line, without its end, or a pasted text of several; None at the end of standard input. Raises ValueError."""
    qwen3_next.expect(sys.stdin is not None, "standard input is closed")
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        with suppress(ImportError):  # not on Windows
            import readline  # noqa: F401  input() then takes lines of any length and pastes of several, and has a history
    with qwen3_next.reading("standard input", "not UTF-8 text"):
        if terminal:
            try:
                line = input(prompt)
            except EOFError:
                return None
        else:
            print(prompt, end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
        line.encode("utf-8")  # in the C locale Python reads any byte
    return line if terminal or line else None


def ask() -> Iterator[str]:
    """The messages that are typed: a line each, or what is between two lines of three quotes."""
    while True:
        line = read_line()
        if line is None:
            return
        if line.strip() == QUOTES:
            line = "\n".join(until_quotes())
        if line.strip():
            yield line.strip()


def until_quotes() -> Iterator[str]:
    """The lines up to one of three quotes, or to the end."""
    while True:
        line = read_line(prompt="")
        if line is None or line.strip() == QUOTES:
            return
        yield line.removesuffix("\n")


class Conversation:
    """What has been said, and a cache that holds it. `ids` are the cache's tokens, and after an answer one more."""

    def __init__(self, tokenizer: Any, model: Any, variables: dict[str, Any], system: str | None):
        self.tokenizer, self.model, self.variables = tokenizer, model, variables
        self.messages = [{"role": "system", "content": system}] if system else []
        self.ids: list[int] = []
        self.cache = model.make_cache(1)
        self.kept: tuple | None = None  # ids and cache up to the last message but for what may still be left out
        self.drops_thoughts = self.leaves_out_thoughts()

    def render(self, **variables: Any) -> str:
        """The conversation as the template writes it."""
        return self.tokenizer.apply_chat_template(self.messages, **{**self.variables, **variables})

    def leaves_out_thoughts(self) -> bool:
        """Whether the template leaves out what was thought before earlier answers, as Qwen3's does."""
        answer = {"role": "assistant", "content": "<think>\nthought\n</think>\n\nsaid"}
        messages = [{"role": "user", "content": "a"}, answer, {"role": "user", "content": "b"}]
        try:
            text = self.tokenizer.apply_chat_template(messages, **self.variables)
        except ValueError:  # a template may refuse what it is given here
            return False
        return "said" in text and "thought" not in text

    def prompt(self) -> list[int]:
        """All tokens up to the answer that comes next. Of these the cache holds as many as can stay.

        What comes after an answer's beginning can't stay if the template leaves out its thoughts. So for such a
        template the cache is kept as it is before the answer, and the next turn begins there.
        """
        whole = self.render()
        if not whole.startswith(self.tokenizer.decode(self.ids)):
            self.go_back(whole)
        said = self.render(add_generation_prompt=False)
        known = self.tokenizer.decode(self.ids)
        if self.drops_thoughts and whole.startswith(said) and len(whole) > len(said) > len(known):
            self.ids = self.ids + self.tokenizer.encode(said[len(known) :])
            self.model.generate(self.row(self.ids), max_new_tokens=0, past_key_values=self.cache)
            self.kept = (self.ids, self.cache.clone())
            known = self.tokenizer.decode(self.ids)
        return self.ids + self.tokenizer.encode(whole[len(known) :])

    def go_back(self, whole: str):
        """To the cache that was kept, if what it holds is still the beginning, or else to the very beginning."""
        ids, cache = self.kept or ([], self.model.make_cache(1))
        if not whole.startswith(self.tokenizer.decode(ids)):
            ids, cache = [], self.model.make_cache(1)
        self.ids, self.cache = ids, cache.clone()

    def row(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self.model.device)

    def answer(self, message: str, options: dict, stops: list[str] | None, stats: dict):
        """Prints the answer to a message as it comes. After a KeyboardInterrupt, call `interrupted`."""
        self.messages.append({"role": "user", "content": message})
        self.printer = Printer(self.tokenizer, stops)
        started = time.perf_counter()
        ids = self.prompt()
        qwen3_next.expect(len(ids) > 0, "the message is empty: nothing to answer")
        read = time.perf_counter() - started
        options = {"past_key_values": self.cache, "tokenizer": self.tokenizer, "streamer": self.printer, **options}
        self.model.generate(self.row(ids), stats=stats, **options)
        stats["prefill_seconds"] += read
        self.ids = ids + self.printer.ids
        self.finish()

    def interrupted(self):
        """Keeps an answer as far as it came. A pass may have been broken off: the cache is no longer of use."""
        self.go_back(self.render())
        self.finish()

    def finish(self):
        """Ends the line, and adds the answer to the conversation."""
        self.printer.finish()
        answer = self.tokenizer.decode(self.printer.ids, skip_special_tokens=True)
        self.messages.append({"role": "assistant", "content": answer})

    def save(self, name: str) -> str:
        """Writes NAME.json and NAME.safetensors; returns what to tell the user. Raises OSError, ValueError."""
        ids, cache = self.kept or (self.ids, self.cache)
        content = {"messages": self.messages, "ids": ids, "model": fingerprint(self.model)}
        cache.save(f"{name}.safetensors")
        Path(f"{name}.json").write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
        size = os.path.getsize(f"{name}.safetensors") / 1e6
        return f"{name}.json and {name}.safetensors: {cache.columns} tokens, {size:.2f} MB"

    def load(self, name: str) -> str:
        """Goes on from what `save` wrote; returns what to tell the user. Raises OSError, ValueError naming the file."""
        content = qwen3_next.read_json(Path(f"{name}.json"))
        with qwen3_next.reading(f"{name}.json", "not a conversation that /save has written"):
            messages, ids, model = content["messages"], content["ids"], content["model"]
            qwen3_next.expect(all(isinstance(n, int) for n in ids), "ids are not all numbers")
            self.tokenizer.apply_chat_template(messages, **self.variables)
        other = f"{name}.json: was saved with another model than the one that is loaded"
        qwen3_next.expect(model == fingerprint(self.model), other)
        cache = type(self.cache).load(f"{name}.safetensors", self.model)
        fits = cache.columns in (len(ids), len(ids) - 1)
        qwen3_next.expect(fits, f"{name}.safetensors: holds {cache.columns} tokens, {name}.json {len(ids)}")
        self.messages, self.ids, self.cache = messages, ids, cache
        self.kept = (ids, cache.clone()) if self.drops_thoughts else None
        return f"{name}.json and {name}.safetensors: {len(messages)} messages, {cache.columns} tokens"


def fingerprint(model: Any) -> str:
    """What tells one model from another: its config, and a few of its weights."""
    config = json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode()
    weights = torch.cat([model.model.norm.weight, model.model.embed_tokens.weight[0], model.lm_head.weight[-1]])
    return hashlib.sha256(config + weights.detach().float().cpu().numpy().tobytes()).hexdigest()[:16]


def converse(args: argparse.Namespace, cls: type = qwen3_next.Qwen3NextForCausalLM):
    """Answers each message, with what was said before. cls: the model's class."""
    variables = template_variables(args)
    tokenizer, model = qwen3_next.load(args, cls)
    conversation = Conversation(tokenizer, model, variables, args.system)
    options = qwen3_next.generation_options(args)
    qwen3_next.PREFILL_WINDOW = PREFILL_WINDOW
    for text in ask():
        command, _, name = text.partition(" ")
        if command in ("/save", "/load") and name.strip():
            try:
                told = getattr(conversation, command[1:])(name.strip())
            except (OSError, ValueError) as error:  # the conversation goes on as it was
                told = str(error)
            print(f"{command}: {qwen3_next.one_line(told)}", file=sys.stderr)
            continue
        try:
            with reporting(model, qwen3_next.Experts) if args.stats else nullcontext({}) as stats:
                conversation.answer(text, options, args.stop_strings, stats)
        except KeyboardInterrupt:
            conversation.interrupted()


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    return qwen3_next.exit_code(Path(__file__).name, converse, parse_arguments(arguments))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, on_interrupt)
    sys.exit(main())
