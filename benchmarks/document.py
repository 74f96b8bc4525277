"""Runs the programs in a document, and writes what they print below them.

    python benchmarks/document.py docs/finetune.md            writes the document anew
    python benchmarks/document.py docs/finetune.md --check    only runs it, and fails where a program fails

A program is a block that begins with ```python; what it prints is in the block ```text that follows it. A block that
begins with ```python data is put before every program. Each runs in a process of its own, in the repository's folder.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = re.compile(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
DATA = re.compile(r"^```python data\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def programs(text: str) -> list[str]:
    """The document's programs, each with the data before it."""
    data = "".join(DATA.findall(text))
    return [f"{data}\n{code}" for code, _ in PROGRAM.findall(text)]


def run(program: str) -> str:
    """What a program prints on standard output. Raises RuntimeError with what it says of its failure."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=ROOT, env=environment)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return result.stdout


def renewed(text: str, outputs: list[str]) -> str:
    """The document with these outputs in place of its own."""
    left = iter(outputs)

    def replace(found: re.Match) -> str:
        return f"```python\n{found[1]}```\n\n```text\n{next(left).rstrip()}\n```\n"

    return PROGRAM.sub(replace, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    text = args.document.read_text(encoding="utf-8")
    outputs = []
    for program in programs(text):
        outputs.append(run(program))
        print(outputs[-1], end="", flush=True)
    if not args.check:
        args.document.write_text(renewed(text, outputs), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
