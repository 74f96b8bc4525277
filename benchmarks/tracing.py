"""What tracing costs: when it is off, against a copy of the file without its taps; and when it is on.

python benchmarks/tracing.py                      prints, and writes benchmarks/results/tracing.json
python benchmarks/tracing.py --slice DIR          also the reference over 64 tokens of each layer of that checkpoint
"""

import argparse
import ast
import importlib.util
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import qwen3_next  # noqa: E402
from reference_recurrent import Reference  # noqa: E402
from verify.scenarios import random_tokens  # noqa: E402


class WithoutTaps(ast.NodeTransformer):
    """Removes calls of tap; what a call assigns on the way stays."""

    def visit_Expr(self, node: ast.Expr):
        calls = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        if not all(isinstance(c, ast.Call) and getattr(c.func, "id", "") == "tap" for c in calls):
            return node
        kept = [c.args[1] for c in calls if isinstance(c.args[1], ast.NamedExpr)]
        return [ast.Assign([ast.Name(x.target.id, ast.Store())], x.value) for x in kept] or ast.Pass()


def without_taps():
    """qwen3_next.py as a module without its taps."""
    tree = WithoutTaps().visit(ast.parse((ROOT / "qwen3_next.py").read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "without_taps.py"
        path.write_text(ast.unparse(ast.fix_missing_locations(tree)), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    return module


@torch.no_grad()
def seconds_a_token(model, ids: list[int], tokens: int = 60) -> float:
    """Decoding greedily from a cache."""
    cache, row = model.make_cache(1), torch.tensor([ids])
    token = model(row, past_key_values=cache).logits[:, -1:].argmax(-1)
    begun = time.perf_counter()
    for _ in range(tokens):
        token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
    return (time.perf_counter() - begun) / tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slice", type=Path, metavar="DIR", help="a checkpoint of the released width")
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    modules = {"with taps": qwen3_next, "without": without_taps()}
    models = {name: module.Qwen3NextForCausalLM.from_pretrained(ROOT / "tiny") for name, module in modules.items()}
    ids = random_tokens(2048, 0, 512)
    times = {name: [] for name in models}
    for _ in range(args.runs):  # in turn
        for name, model in models.items():
            times[name].append(seconds_a_token(model, ids[:32]))
    ratios = [a / b for a, b in zip(*times.values())]
    found = {
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "seconds a token": {name: statistics.median(values) for name, values in times.items()},
        "ratio, with taps to without": {
            "median": statistics.median(ratios),
            "quartiles": statistics.quantiles(ratios, n=4)[::2],
        },
    }
    begun = time.perf_counter()
    with torch.no_grad():
        models["with taps"](torch.tensor([ids]), trace=(trace := {}), output_mtp_logits=True)
    found["trace of 512 tokens"] = {"seconds": time.perf_counter() - begun, "values": len(trace)}
    if args.slice:
        reference = Reference.from_pretrained(args.slice)
        layers = range(len(reference.config.is_moe))
        begun = time.perf_counter()
        reference.trace(random_tokens(reference.config.vocab_size, 0, 64), layers=layers[:-1])
        others = time.perf_counter() - begun
        begun = time.perf_counter()
        reference.trace(random_tokens(reference.config.vocab_size, 0, 64), layers=layers)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        found["reference, 64 tokens"] = {
            f"layers 0 to {len(layers) - 2}, seconds": others,
            "all and lm_head, seconds": time.perf_counter() - begun,
            "peak memory, GiB": peak,
        }
    print(json.dumps(found, indent=1))
    (ROOT / "benchmarks" / "results" / "tracing.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
