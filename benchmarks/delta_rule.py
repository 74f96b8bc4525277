"""Times the gated delta rule and transformers' own PyTorch functions, at the released head sizes.

    python benchmarks/delta_rule.py [--runs 7] [--threads 2] [--out FILE.json]

16 key heads and 32 value heads of 128, float32, batch 1; both sides start from raw q and k, so that repeating the key
heads, l2-normalising and scaling count for both. The two sides alternate in one run; the table has medians, and the
ratio of the medians. Believe the ratios, on an otherwise idle machine, and not the seconds.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers.models.qwen3_next import modeling_qwen3_next as transformers_model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from qwen3_next import chunk_gated_delta_rule, l2_normalise, recurrent_gated_delta_rule  # noqa: E402

KEY_HEADS, VALUE_HEADS, HEAD_DIM = 16, 32, 128


def make_inputs(T: int, grad: bool) -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    shapes = [(1, T, KEY_HEADS, HEAD_DIM)] * 2 + [(1, T, VALUE_HEADS, HEAD_DIM), (1, T, VALUE_HEADS)]
    q, k, v, g = (torch.randn(shape, generator=gen) for shape in shapes)
    beta = torch.rand(1, T, VALUE_HEADS, generator=gen)
    return [x.requires_grad_(grad) for x in (q, k, v, -g.abs(), beta)]


def ours(function):
    def run(q, k, v, g, beta):
        q, k = (l2_normalise(x).repeat_interleave(VALUE_HEADS // KEY_HEADS, dim=2) for x in (q, k))
        return function(q * HEAD_DIM**-0.5, k, v, g=g, beta=beta)

    return run


def theirs(function):
    def run(q, k, v, g, beta):
        return function(q, k, v, g=g, beta=beta, output_final_state=True, use_qk_l2norm_in_kernel=True)

    return run


def seconds(function, inputs: list[torch.Tensor], backward: bool) -> float:
    started = time.perf_counter()
    out, state = function(*inputs)
    if backward:
        (out.sum() + state.sum()).backward()
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each side, after one that is not counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chunk = ours(chunk_gated_delta_rule), theirs(transformers_model.torch_chunk_gated_delta_rule)
    recurrent = ours(recurrent_gated_delta_rule), theirs(transformers_model.torch_recurrent_gated_delta_rule)
    print(
        f"{'form':<10} {'T':>5} {'pass':<18} {'ours s':>8} {'theirs s':>9} {'ratio':>6}  spread of the ratio per pair"
    )
    rows = []
    for name, pair, T, backward in [
        ("chunked", chunk, 2048, False),
        ("chunked", chunk, 256, True),
        ("recurrent", recurrent, 2048, False),
        ("recurrent", recurrent, 256, True),
    ]:
        inputs = make_inputs(T, backward)
        with torch.set_grad_enabled(backward):
            times = [[seconds(f, inputs, backward) for f in pair] for _ in range(args.runs + 1)][1:]
        a, b = (statistics.median(column) for column in zip(*times))
        ratios = sorted(x / y for x, y in times)
        label = "forward + backward" if backward else "forward"
        print(f"{name:<10} {T:>5} {label:<18} {a:>8.3f} {b:>9.3f} {a / b:>6.2f}  {ratios[0]:.2f} to {ratios[-1]:.2f}")
        rows.append({"form": name, "T": T, "pass": label, "ours_s": a, "transformers_s": b, "ratio": a / b})
    if args.out:
        import transformers

        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "machine": platform.machine()}
        report = {**versions, "threads": args.threads, "runs": args.runs, "rows": rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
