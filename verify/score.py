"""How well a checkpoint predicts a text: perplexity and bits per byte.

    python verify/score.py --model tiny story.txt
    1234 tokens, 5678 bytes: perplexity 4.3210, 0.9876 bits per byte (first token given)

The first thing to compare after porting; but a port can have a plausible perplexity and be wrong (README.md).
Perplexity is per token, so that it can only be compared between models with the same tokenizer. Bits per byte can be
compared between all. Both leave out the first token, which nothing predicts.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer, exit_code, progress, read_text, upcast  # noqa: E402


@torch.no_grad()
def score(model: Qwen3NextForCausalLM, ids: Tensor, window: int = 512) -> float:
    """Nats that a model needs for a text: the sum of -log p(token | all tokens before it), the first token left out.

    ids (1, T), T > 1. The text goes through the model `window` tokens at a time, each window continuing from the cache
    of those before. The result is that of a single pass, but the logits in memory are those of one window.
    """
    cache = model.make_cache(1)
    starts = range(0, ids.shape[1] - 1, window)
    total = 0.0
    for start in progress(starts, "scoring", "window"):
        logits = model(ids[:, start : start + window], past_key_values=cache).logits[0]
        following = ids[0, start + 1 : start + window + 1]  # the last window has one token less that follows
        total += F.cross_entropy(upcast(logits[: len(following)]), following, reduction="sum").item()
    return total


def bytes_of(tokenizer: Qwen3NextTokenizer, token: int) -> int:
    """How many bytes of a text a token is. A part of a character has no text of its own, but a sign for each byte."""
    text = tokenizer.decode([token])
    return len(tokenizer.backend.id_to_token(token)) if "\ufffd" in text else len(text.encode())


def run(args: argparse.Namespace):
    """Prints the score of a file."""
    text = read_text(args.file)
    tokenizer = Qwen3NextTokenizer.from_pretrained(args.model)
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise ValueError(f"{args.file}: {len(ids)} tokens, expected at least 2")
    size = len(text.encode())
    predicted = size - bytes_of(tokenizer, ids[0])
    if predicted < 1:
        raise ValueError(f"{args.file}: {size} bytes, and the first token has them all: nothing is left to predict")
    model = Qwen3NextForCausalLM.from_pretrained(args.model, args.dtype, args.device, args.delta_rule)
    nats = score(model, torch.tensor([ids], device=model.device))
    perplexity = math.exp(nats / (len(ids) - 1))
    bits = nats / math.log(2) / predicted
    counts = f"{len(ids)} tokens, {size} bytes"
    print(f"{counts}: perplexity {perplexity:.4f}, {bits:.4f} bits per byte (first token given)")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="a text in UTF-8")
    add("--model", required=True, metavar="DIR", help="checkpoint folder")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps ... (default: cuda if there is one)")
    add("--dtype", default="auto", help="bfloat16, float16, float32 or float64 (default: the checkpoint's)")
    add("--delta-rule", choices=["chunk", "recurrent"], default="chunk", help="form used for more than one token")
    return exit_code("score.py", run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
