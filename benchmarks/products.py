"""Times the ways in which x W^T can be made in half precision on a CPU, by number of rows of x.

    python benchmarks/products.py [--isa avx2] [--dtype float16] [--out FILE.json]

    linear      F.linear, PyTorch's usual way
    turned      (W x^T)^T
    plain       F.linear without oneDNN
    whole       W widened to float32 as a whole, then x W^T
    blocks      W widened a block of rows at a time, then (W x^T)^T: `widened` in qwen3_next.py

Each way multiplies with many matrices in turn, 128 MB or more of them, so that none is in the cache. A figure is the
lower quartile of the times: the machine may be busy. With --isa avx2 the processor does without what is wider, as
in bench.py.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
import bench  # noqa: E402

import qwen3_next as q  # noqa: E402

SHAPES = ((512, 2048), (2048, 512), (12288, 2048))  # of an expert, up and down; of in_proj_qkvz
ROWS = (1, 2, 4, 8, 16, 40, 160, 512)


def plain(x: Tensor, W: Tensor) -> Tensor:
    with torch.backends.mkldnn.flags(enabled=False):
        return F.linear(x, W)


def whole(x: Tensor, W: Tensor) -> Tensor:
    return F.linear(x.float(), W.float()).to(x.dtype)


WAYS = {"linear": F.linear, "turned": lambda x, W: (W @ x.t()).t(), "plain": plain, "whole": whole, "blocks": q.widened}


def microseconds(way: Callable, x: Tensor, matrices: list[Tensor], budget: float) -> float:
    """One product, the lower quartile of as many as take `budget` seconds, three at least."""
    way(x, matrices[0])
    times = []
    ends = time.perf_counter() + budget
    while len(times) < 3 or time.perf_counter() < ends:
        W = matrices[len(times) % len(matrices)]
        times.append(bench.seconds(lambda W=W: way(x, W)))
    return 1e6 * sorted(times)[len(times) // 4]


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", choices=["native", "avx2"], default="native")
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budget", type=float, default=0.1, metavar="SECONDS", help="for each figure")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    args = parser.parse_args()
    if args.isa == "avx2":
        command = [sys.executable, *sys.argv, "--isa", "native"]
        sys.exit(subprocess.run(command, env={**os.environ, **bench.AVX2}).returncode)
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    units = "without" if dtype in q.SLOW_HALF else "with"
    print(f"{bench.cpu_name()}, {units} units for {args.dtype}, load {os.getloadavg()[0]:.2f}; microseconds")
    rows = []
    for shape in SHAPES:
        count = max(1, 2**27 // (2 * shape[0] * shape[1]))
        matrices = [torch.randn(shape).to(dtype) for _ in range(count)]
        print(f"{shape[0]:>6} x {shape[1]:<5}", *(f"{name:>9}" for name in WAYS))
        for n in ROWS:
            x = torch.randn(n, shape[1]).to(dtype)
            found = {name: microseconds(way, x, matrices, args.budget) for name, way in WAYS.items()}
            rows.append({"shape": shape, "rows": n} | found)
            print(f"{n:>9} rows", *(f"{found[name]:>9,.0f}" for name in WAYS), flush=True)
    if args.out:
        report = {"cpu": bench.cpu_name(), "dtype": args.dtype, "units": units == "with", "threads": args.threads}
        args.out.write_text(json.dumps({**report, "microseconds": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
