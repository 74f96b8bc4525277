"""Changes a number in a notebook, as a curious reader would, and runs every cell that depends on it.

    python notebooks/curiosity.py                     all changes of the table below: about an hour on two cores
    python notebooks/curiosity.py 2_delta_rule ...    those of some notebooks

A notebook survives a change if no cell fails. What it says about the numbers may no longer be so: the cells then print
that a finding came out otherwise (figures.expect). Only what holds for any number is asserted. Meant to run weekly, not
with the tests. tests/test_notebooks.py checks that the table fits the notebooks.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jupytext

HERE = Path(__file__).resolve().parent
SECONDS = 1500  # for one change
MUTATING = {"append", "extend", "update", "add", "setdefault", "insert", "pop", "clear", "register_forward_hook"}

# notebook, without its number -> changes: (what stands in one of its code cells, and there only; what takes its place)
CHANGES = {
    "tour": [
        ("full_attention_interval=4", "full_attention_interval=2"),
        ("num_experts_per_tok=10", "num_experts_per_tok=4"),
        ("phone_book(seed=0)", "phone_book(seed=5)"),
    ],
    "delta_rule": [
        ("T, K, V = 10, 4, 6", "T, K, V = 20, 16, 8"),
        ("DECAY = 0.8", "DECAY = 0.95"),
        ("B, T, H, K, V = 2, 50, 3, 5, 7", "B, T, H, K, V = 1, 80, 2, 16, 4"),
        ("WIDTHS = (16, 32, 64)", "WIDTHS = (8, 16, 32)"),
    ],
    "reading_a_state": [("MOVES = 9", "MOVES = 5"), ("ACCOUNTS = 240", "ACCOUNTS = 120")],
    "gated_deltanet": [
        ("LAYER = LAYERS[-1]", "LAYER = LAYERS[0]"),
        ("DOCUMENTS = 4", "DOCUMENTS = 2"),
        ('"Gated DeltaNet": {"alpha": 0.8}', '"Gated DeltaNet": {"alpha": 0.95}'),
    ],
    "chunked_form": [
        ("C, K, V = 4, 5, 6", "C, K, V = 7, 8, 3"),
        ("CHUNK = 16", "CHUNK = 32"),
        ("K, V, T = 128, 128, 512", "K, V, T = 64, 32, 256"),
    ],
    "gated_attention": [
        ("entries=5", "entries=9"),
        ("KEY, VALUE, LENGTH = 16, 8, 24", "KEY, VALUE, LENGTH = 12, 6, 16"),
    ],
    "why_hybrid": [("recall.batch(5, 1", "recall.batch(8, 1"), ("HALF = 0.5", "HALF = 0.8")],
    "two_memories": [
        ("WIDTHS = (16, 32, 64, 128, 256)", "WIDTHS = (8, 24, 100)"),
        ("LENGTHS, BOOKS = (512, 1024, 2048), 16", "LENGTHS, BOOKS = (600, 900), 5"),
    ],
    "mixture_of_experts": [("LAYER = 5", "LAYER = 2"), ("DOCUMENTS = 60", "DOCUMENTS = 25")],
    "multi_token_prediction": [
        ("VOCABULARY = 6", "VOCABULARY = 9"),
        ("E, k, most = 512, 10, 4", "E, k, most = 128, 8, 6"),
    ],
    "real_weights": [
        ("MEMORY, M, D = 32, 50, 3", "MEMORY, M, D = 200, 30, 2"),
        ("rows_of_qkvz(2, 2, 2, 3)", "rows_of_qkvz(3, 1, 3, 2)"),
    ],
    "prove_a_port": [
        ("random.Random(4)", "random.Random(9)"),
        ('documents("trace", 1)[0][:96]', 'documents("trace", 1)[0][:70]'),
    ],
    "train_tiny": [
        ("STEPS, LENGTH, ROWS, RATE = 700, 96, 5, 8e-3", "STEPS, LENGTH, ROWS, RATE = 200, 64, 4, 4e-3"),
        ("DOCUMENTS = 60", "DOCUMENTS = 25"),
    ],
}  # fmt: skip


def title(path: Path) -> str:
    """A notebook's name without its number: 2b_reading_a_state -> reading_a_state."""
    return re.sub(r"^\d+[a-z]?_", "", path.stem)


def code_cells(path: Path) -> list[str]:
    return [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code"]


def place_of(old: str, cells: list[str]) -> int:
    """The number of the cell that holds the text. Raises ValueError unless there is exactly one such place."""
    found = [number for number, cell in enumerate(cells) for _ in range(cell.count(old))]
    if len(found) != 1:
        raise ValueError(f"{old!r} occurs {len(found)} times in the code cells, expected once")
    return found[0]


def names_of(cell: str) -> tuple[set[str], set[str]]:
    """The names that a cell reads, and those that it sets or changes."""
    reads, writes = set(), set()
    for node in ast.walk(ast.parse(cell)):
        if isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Del):  # no cell is needed because it deletes a name
                (reads if isinstance(node.ctx, ast.Load) else writes).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            writes.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            writes.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, (ast.Attribute, ast.Subscript)):
            base = node
            while isinstance(base, (ast.Attribute, ast.Subscript)):
                base = base.value
            changes = isinstance(node.ctx, ast.Store) or getattr(node, "attr", "") in MUTATING
            if changes and isinstance(base, ast.Name):
                writes.add(base.id)
    return reads, writes


def needed(cells: list[str], changed: int) -> list[int]:
    """The cells to run, in order: those that depend on the changed one, and those that these depend on."""
    names = [names_of(cell) for cell in cells]
    tainted, affected = set(names[changed][1]), {changed}
    for number in range(changed + 1, len(cells)):
        reads, writes = names[number]
        if reads & tainted:
            affected.add(number)
            tainted |= writes
        else:
            tainted -= writes - reads  # set anew, from other things
    wanted, keep = set(), set()
    for number in reversed(range(len(cells))):
        reads, writes = names[number]
        if number in affected or writes & wanted:
            keep.add(number)
            wanted |= reads
    return sorted(keep)


def run(path: Path, old: str, new: str) -> int:
    """Runs the cells of a notebook that a change concerns, in this process. Returns how many."""
    import matplotlib

    matplotlib.use("agg")
    warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
    cells = code_cells(path)
    changed = place_of(old, cells)
    cells[changed] = cells[changed].replace(old, new)
    os.chdir(HERE)
    sys.path.insert(0, str(HERE.parent))
    module = type(sys)("__main__")
    sys.modules["__main__"] = module  # where dataclasses and pickles look for what a cell defines
    chosen = sorted({0, *needed(cells, changed)})  # the first one finds the folders to import from
    for number in chosen:
        exec(compile(cells[number], f"{path.stem}, code cell {number}", "exec"), module.__dict__)
    return len(chosen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="such as 2_delta_rule (default: all)")
    parser.add_argument(
        "--one", type=int, metavar="N", help="run only change N of the one notebook named, and show its output"
    )
    args = parser.parse_args()
    import build

    known = {path.stem: path for path in build.sources() if title(path) in CHANGES}
    unknown = [name for name in args.names if name not in known]
    if unknown:
        parser.error(f"no changes for {unknown[0]!r}, expected some of {', '.join(known)}")
    if args.one is not None:
        path = known[args.names[0]]
        print(run(path, *CHANGES[title(path)][args.one]), "cells")
        return 0
    failed = 0
    for name in args.names or known:
        for number, (old, new) in enumerate(CHANGES[title(known[name])]):
            started = time.perf_counter()
            command = [sys.executable, __file__, name, "--one", str(number)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
                problem = done.stderr.strip() if done.returncode else ""
            except subprocess.TimeoutExpired:
                problem = f"took more than {SECONDS} s"
            failed += bool(problem)
            verdict = "FAILED" if problem else f"survives, {done.stdout.split()[-2]} cells"
            print(f"{name}: {old} -> {new}: {verdict}, {time.perf_counter() - started:.0f} s", flush=True)
            if problem:
                print(problem[-1500:], flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
