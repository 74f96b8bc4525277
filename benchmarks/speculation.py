"""Times generation with tiny/ plain and with 1 to 4 drafted tokens a pass, and counts which drafts were kept.

    python benchmarks/speculation.py [--stories 6] [--runs 3] [--model DIR] [--out FILE.json]

Each story is asked for by an animal and a thing, and sampled with the checkpoint's own settings and one
seed. Plain and drafted generation take turns; a row has the median of tokens per second over stories and runs, and its
ratio to plain. Believe the ratios, on an otherwise idle machine.
"""

import argparse
import json
import platform
import statistics
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer  # noqa: E402

WORDS = [
    "fox and a lantern",
    "hen and a kite",
    "bear and a boat",
    "mouse and a drum",
    "owl and a map",
    "goat and a bell",
]


def measure(model: Qwen3NextForCausalLM, tokenizer: Qwen3NextTokenizer, stories: int, runs: int) -> list[dict]:
    """For 0 to 4 drafted tokens a pass: tokens per second, ratio to plain, share that was kept by position."""
    rates, counts = {n: [] for n in range(5)}, {n: [0] * n for n in range(5)}
    for run in range(runs + 1):  # the first is not counted
        for i in range(stories):
            messages = [{"role": "user", "content": f"Tell me a story about a {WORDS[i % len(WORDS)]}."}]
            inputs = tokenizer([tokenizer.apply_chat_template(messages)], return_tensors="pt")
            for n in rates:
                stats = {}
                model.generate(**inputs, max_new_tokens=160, num_draft_tokens=n, seed=run, stats=stats)
                if run > 0:
                    rates[n].append((stats["new_tokens"] - 1) / stats["decode_seconds"])
                    shares = stats["acceptance_by_position"]
                    counts[n] = [total + share for total, share in zip(counts[n], shares)]
    plain, rows = statistics.median(rates[0]), []
    for n, found in rates.items():
        rate, shares = statistics.median(found), [total / len(found) for total in counts[n]]
        rows.append({"drafts": n, "tokens_per_s": rate, "ratio": rate / plain, "stood": shares})
    return rows


def show(rows: list[dict]):
    print(f"{'drafts':>6} {'tokens/s':>9} {'ratio':>6}  share that was kept, by position")
    for row in rows:
        shares = ", ".join(f"{share:.0%}" for share in row["stood"])
        print(f"{row['drafts']:>6} {row['tokens_per_s']:>9.1f} {row['ratio']:>6.2f}  {shares}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, default=len(WORDS), help="how many")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", type=Path, default=ROOT / "tiny")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer, model = (kind.from_pretrained(args.model) for kind in (Qwen3NextTokenizer, Qwen3NextForCausalLM))
    rows = measure(model, tokenizer, args.stories, args.runs)
    show(rows)
    if args.out:
        machine = {"torch": torch.__version__, "machine": platform.machine(), "threads": args.threads}
        report = {**machine, "stories": args.stories, "runs": args.runs, "rows": rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
