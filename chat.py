"""A conversation with a Qwen3-Next checkpoint in the terminal: one message a line, Ctrl-C stops an answer.

    python chat.py                                                    the small trained model in tiny/
    python chat.py --model DIR_OR_REPO --tools tools.json --template-arg enable_thinking=false

The cache goes on from turn to turn, so that a long conversation is not read again for every answer. Answers go to
standard output, all else to standard error; `echo "Hello!" | python chat.py` answers once.
"""

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Ctrl-C while PyTorch is imported should end the program without a traceback
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)

import tokenizers
import torch

import qwen3_next
from qwen3_next_checkpoints.stats import reporting

# What apply_chat_template is told here; its other keywords, as add_generation_prompt, are variables like any other
OURS = ("self", "messages", "tokenize", "return_tensors", "return_dict")


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


def ask() -> Iterator[str]:
    """The messages that are typed, a line each."""
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        qwen3_next.expect(sys.stdin is not None, "standard input is closed")
        with qwen3_next.reading("standard input", "not UTF-8 text"):
            line = sys.stdin.readline()
            line.encode("utf-8")  # in the C locale Python reads any byte
        if not line:
            return
        if line.strip():
            yield line.strip()


def converse(args: argparse.Namespace):
    """Answers each message, with what was said before."""
    variables = template_variables(args)
    tokenizer, model = qwen3_next.load(args)
    messages = [{"role": "system", "content": args.system}] if args.system else []
    ids: list[int] = []  # what the cache holds, and the last token
    cache = model.make_cache(1)
    for text in ask():
        messages.append({"role": "user", "content": text})
        whole = tokenizer.apply_chat_template(messages, **variables)
        known = tokenizer.decode(ids)
        if not whole.startswith(known):  # some templates leave out what was thought in earlier turns: read anew
            known = ""
            ids = []
            cache = model.make_cache(1)
        ids = ids + tokenizer.encode(whole[len(known) :])
        qwen3_next.expect(len(ids) > 0, "the message is empty: nothing to answer")
        show = Printer(tokenizer, args.stop_strings)
        options = {"past_key_values": cache, "tokenizer": tokenizer, "streamer": show}
        row = torch.tensor([ids], device=model.device)
        try:
            with reporting(model, qwen3_next.Experts) if args.stats else nullcontext() as stats:
                model.generate(row, stats=stats, **options, **qwen3_next.generation_options(args))
                show.finish()
        except KeyboardInterrupt:  # perhaps in the middle of a pass: the cache is no longer of use
            cache = model.make_cache(1)
            show.finish()
        ids = ids + show.ids
        messages.append({"role": "assistant", "content": tokenizer.decode(show.ids, skip_special_tokens=True)})


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    return qwen3_next.exit_code(Path(__file__).name, converse, parse_arguments(arguments))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, on_interrupt)
    sys.exit(main())
