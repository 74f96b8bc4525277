"""Times the command line from its start to the first piece of text, with tiny/, and `import torch` alone.

    python benchmarks/first_token.py [--runs 7] [--out FILE.json]

Each run starts two new Python processes, one after the other: one that imports torch and leaves, and the command line.
The difference is what this project adds: its imports, opening the checkpoint, the template, the prompt, one token.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def seconds(*command: str) -> float:
    """From the start of the process to its first byte on standard output."""
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE) as process:
        process.stdout.read(1)
        taken = time.perf_counter() - started
        process.stdout.read()
    return taken


def measure(runs: int) -> dict:
    """Medians of the seconds that `import torch` takes, those to the first text, and the difference."""
    answer = (str(ROOT / "qwen3_next.py"), "--prompt", "Once upon a time", "--greedy", "--max-new-tokens", "4")
    pairs = [(seconds("-c", "import torch; print()"), seconds(*answer)) for _ in range(runs + 1)][1:]
    torch_alone, first_token = (statistics.median(column) for column in zip(*pairs))
    beyond = statistics.median(b - a for a, b in pairs)
    print(f"import torch {torch_alone:.2f} s, first text after {first_token:.2f} s: {beyond:.2f} s beyond it (medians)")
    return {"import_torch_s": torch_alone, "first_text_s": first_token, "beyond_s": beyond, "runs": runs}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    args = parser.parse_args()
    report = measure(args.runs)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
