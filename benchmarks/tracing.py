"""What recording a model's values costs while it is on. While it is off it costs nothing: the model has no code for it.

python benchmarks/tracing.py                      prints, and writes benchmarks/results/tracing.json
python benchmarks/tracing.py --slice DIR          also the reference over 64 tokens of each layer of that checkpoint

tiny/ reads 512 random tokens with and without `recording`, in turn. Believe the ratio, on an otherwise idle machine.
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from qwen3_next import Qwen3NextForCausalLM  # noqa: E402
from reference_recurrent import Reference  # noqa: E402
from verify.scenarios import random_tokens  # noqa: E402
from verify.trace import recording  # noqa: E402

TOKENS = 512


@torch.no_grad()
def measure(runs: int) -> dict:
    """Seconds of one pass over a prompt with and without recording, and their ratio."""
    model = Qwen3NextForCausalLM.from_pretrained(ROOT / "tiny")
    ids = torch.tensor([random_tokens(model.config.vocab_size, 0, TOKENS)])
    times = {"recorded": [], "plain": []}
    values = 0
    for _ in range(runs + 1):
        for name in times:
            begun = time.perf_counter()
            with recording(model) if name == "recorded" else nullcontext({}) as trace:
                model(ids, output_mtp_logits=True)
            times[name].append(time.perf_counter() - begun)
            values = max(values, len(trace))
    times = {name: each[1:] for name, each in times.items()}  # the first turn is not counted
    ratios = [a / b for a, b in zip(*times.values())]
    return {
        "tokens": TOKENS,
        "values": values,
        "seconds": {name: statistics.median(each) for name, each in times.items()},
        "ratio, recorded to plain": {
            "median": statistics.median(ratios),
            "quartiles": statistics.quantiles(ratios, n=4)[::2],
        },
    }


def measure_reference(folder: Path) -> dict:
    """Seconds of the reference over 64 tokens, without and with the last layer, and the memory that it takes."""
    reference = Reference.from_pretrained(folder)
    layers = range(len(reference.config.is_moe))
    ids = random_tokens(reference.config.vocab_size, 0, 64)
    seconds = []
    for part in (layers[:-1], layers):
        begun = time.perf_counter()
        reference.trace(ids, layers=part)
        seconds.append(time.perf_counter() - begun)
    return {
        f"layers 0 to {len(layers) - 2}, seconds": seconds[0],
        "all and lm_head, seconds": seconds[1],
        "peak memory, GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slice", type=Path, metavar="DIR", help="a checkpoint of the released width")
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    found = {
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "a prompt of tiny/": measure(args.runs),
    }
    if args.slice:
        found["reference, 64 tokens"] = measure_reference(args.slice)
    text = json.dumps(found, indent=1)
    print(text)
    (ROOT / "benchmarks" / "results" / "tracing.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
