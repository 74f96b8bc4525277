"""Compares the speed of this tree with that of another commit: both in one process, the same checkpoint, taking turns.

    python benchmarks/against_commit.py --before REV [--folder DIR] [--only tiny small slice] [--turns 15]

    tiny     tiny/ in bfloat16: decoding after 64 tokens
    small    bench.py's small model, float32: prefill of 512 tokens, and decoding after them
    slice    bench.py's slice at the released width, bfloat16, in memory: decoding after 64 tokens; 5 GB in DIR, and
             twice as much memory. Only with --folder

A figure is the time before divided by the time now, above 1 where this tree is faster: the median over the turns, and
the quartiles. What is not committed counts as now.
"""

import argparse
import importlib.util
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
import bench  # noqa: E402


def export(rev: str, folder: Path):
    """The files of a commit."""
    archive = subprocess.run(["git", "-C", ROOT, "archive", rev], check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")


@contextmanager
def modules_from(tree: Path):
    """What is imported inside by name comes from that tree, and is forgotten afterwards."""

    def take_out() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.split(".")[0] in ("qwen3_next_checkpoints", "qwen3_5")]
        return {name: sys.modules.pop(name) for name in names}

    others = take_out()
    sys.path.insert(0, str(tree))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(tree))
        take_out()
        sys.modules.update(others)


def import_from(tree: Path, name: str) -> ModuleType:
    """A tree's qwen3_next.py under another name; dataclasses look it up in sys.modules."""
    spec = importlib.util.spec_from_file_location(name, tree / "qwen3_next.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def measure(model: torch.nn.Module, ids: torch.Tensor, tokens: int) -> dict[str, float]:
    """Seconds of a prompt (1, T + tokens) up to T, and of a token that is decoded after it."""
    T = ids.shape[1] - tokens
    cache = model.make_cache(1)

    def feed(part: torch.Tensor) -> Callable:
        return lambda: model(part, past_key_values=cache, logits_to_keep=1)

    prefill = bench.seconds(feed(ids[:, :T]))
    steps = [bench.seconds(feed(ids[:, i : i + 1])) for i in range(T, T + tokens)]
    return {f"prefill {T}": prefill, f"decode at {T}": statistics.median(steps)}


def compare(name: str, models: dict, T: int, args: argparse.Namespace, tasks: tuple[str, ...]):
    """Prints a line for each task."""
    gen, ratios = torch.Generator().manual_seed(0), {}
    for turn in range(args.turns + 1):
        ids = torch.randint(0, models["now"].config.vocab_size, (1, T + args.tokens), generator=gen)
        found = {side: measure(models[side], ids, args.tokens) for side in sorted(models, reverse=turn % 2 == 1)}
        if turn:  # the first is not counted
            for task, took in found["now"].items():
                ratios.setdefault(task, []).append(found["before"][task] / took)
    for task in ratios:
        if task.split()[0] in tasks:
            low, _, high = statistics.quantiles(ratios[task], n=4)
            print(f"{name:<6} {task:<14} {statistics.median(ratios[task]):>6.3f}  {low:.3f} to {high:.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, metavar="REV", help="the commit to compare with")
    parser.add_argument("--folder", type=Path, help="where bench.py's slice is, or will be")
    parser.add_argument("--only", nargs="+", choices=["tiny", "small", "slice"], help="(default: all that can be run)")
    parser.add_argument("--turns", type=int, default=15, help="that count, after one that does not; 2 or more")
    parser.add_argument("--tokens", type=int, default=16, help="decoded each turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    names = args.only or ["tiny", "small"] + ["slice"] * bool(args.folder)
    if "slice" in names and not args.folder:
        parser.error("slice needs --folder")
    if args.turns < 2:
        parser.error(f"--turns {args.turns}: expected 2 or more")
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        trees = {"before": Path(temporary) / "before", "now": ROOT}
        export(args.before, trees["before"])
        sides = {side: import_from(tree, f"qwen3_next_{side}") for side, tree in trees.items()}
        print(f"{'':<6} {'task':<14} {'before / now':>6}, quartiles")
        for name in names:
            folder = {"tiny": ROOT / "tiny", "small": Path(temporary) / "small"}.get(name) or args.folder / "slice"
            dtype = torch.float32 if name == "small" else torch.bfloat16
            if name != "tiny":
                {"small": bench.make_small, "slice": bench.make_slice}[name](folder)
            models = {}
            for side, tree in trees.items():
                with modules_from(tree):
                    cls = sides[side].Qwen3NextForCausalLM
                    models[side] = cls.from_pretrained(folder, dtype, **{"in_memory": True} if name == "slice" else {})
            tasks = ("prefill", "decode") if name == "small" else ("decode",)
            compare(name, models, bench.DECODE_AT if name == "small" else 64, args, tasks)


if __name__ == "__main__":
    main()
