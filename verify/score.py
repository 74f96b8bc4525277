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
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer  # noqa: E402


@torch.no_grad()
def score(model: Qwen3NextForCausalLM, ids: Tensor, window: int = 512) -> float:
    """Nats that a model needs for a text: the sum of -log p(token | all tokens before it), the first token left out.

    ids (1, T), T > 1. The text goes through the model `window` tokens at a time, each window continuing from the cache
    of those before. The result is that of a single pass, but the logits in memory are those of one window.
    """
    cache = model.make_cache(1)
    starts = range(0, ids.shape[1] - 1, window)
    total = 0.0
    for start in tqdm(starts, "scoring", unit="window", leave=False, delay=2, disable=None):
        logits = model(ids[:, start : start + window], past_key_values=cache).logits[0]
        following = ids[0, start + 1 : start + window + 1]  # the last window has one token less that follows
        logits = logits[: len(following)]
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        total += F.cross_entropy(logits, following, reduction="sum").item()
    return total


def read_text(path: Path) -> str:
    """A UTF-8 text file. Raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None


def run(args: argparse.Namespace):
    """Prints the score of a file."""
    text = read_text(args.file)
    tokenizer = Qwen3NextTokenizer.from_pretrained(args.model)
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise ValueError(f"{args.file}: {len(ids)} tokens, expected at least 2")
    model = Qwen3NextForCausalLM.from_pretrained(args.model, args.dtype, args.device, args.delta_rule)
    nats = score(model, torch.tensor([ids], device=model.device))
    size = len(text.encode())
    predicted = size - len(tokenizer.decode(ids[:1]).encode())  # bytes
    perplexity = math.exp(nats / (len(ids) - 1))
    bits = nats / math.log(2) / predicted
    counts = f"{len(ids)} tokens, {size} bytes"
    print(f"{counts}: perplexity {perplexity:.4f}, {bits:.4f} bits per byte (first token given)")


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 1 after one line on stderr; argparse exits with 2 for wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="a text in UTF-8")
    add("--model", required=True, metavar="DIR", help="checkpoint folder")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps ... (default: cuda if there is one)")
    add("--dtype", default="auto", help="bfloat16, float16, float32 or float64 (default: the checkpoint's)")
    add("--delta-rule", choices=["chunk", "recurrent"], default="chunk", help="form used for more than one token")
    args = parser.parse_args(arguments)
    try:
        run(args)
        return 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        print("score.py:", " ".join(str(message).split()), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
