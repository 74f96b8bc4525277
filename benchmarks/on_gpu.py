"""What only a GPU can show, in one command of at most eight minutes: is it right there, how many kernels, how fast.

    python benchmarks/on_gpu.py                  writes benchmarks/results/on_gpu.json
    python benchmarks/on_gpu.py --device cpu     the same code without a GPU, on a smaller model: nothing is learned

    operations   those whose support on CUDA depends on the dtype, each tried by itself; and, in a process of its own,
                 what a token outside the vocabulary does
    features     passes and ways to generate on the GPU, compared with the same model on the CPU in float32, in standard
                 deviations of the logits; in bfloat16 next to what the CPU's own bfloat16 differs by
    a token      kernels (by PyTorch's profiler), and the lines of ours where the CPU waits for the GPU, of one decoded
                 token: with each expert called by itself, and with all of a layer in two products
    speed        four layers at the released width with all 512 experts: tokens a second, and the share that is of what
                 reading the weights alone would take at the bandwidth measured in the same run

Ends with 1 if a feature differs by more than rounding explains. The figures of one run are one sample.
"""

import argparse
import collections
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from conftest import random_model  # noqa: E402
from ranks import results  # noqa: E402

from qwen3_next import Experts, Qwen3NextConfig, Qwen3NextForCausalLM  # noqa: E402
from qwen3_next_checkpoints import grouped  # noqa: E402

# The released numbers of heads, in a small width
SMALL = {"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 16, "partial_rotary_factor": 0.5}
SMALL |= {"linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 16}
SMALL |= {"linear_value_head_dim": 16, "num_experts": 64, "num_experts_per_tok": 10, "moe_intermediate_size": 32}
SMALL |= {"hidden_size": 64, "num_hidden_layers": 4, "mtp_num_hidden_layers": 1}
WIDE = {"vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 4, "head_dim": 256, "rope_theta": 1e7}
WIDE |= {"num_attention_heads": 16, "num_key_value_heads": 2, "linear_num_key_heads": 16, "linear_num_value_heads": 32}
WIDE |= {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "num_experts": 512, "num_experts_per_tok": 10}
WIDE |= {"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512}
ON_CPU = {"hidden_size": 128, "vocab_size": 512, "num_experts": 32, "moe_intermediate_size": 32, "head_dim": 32}
OUTSIDE = """
import sys; sys.path[:0] = {path!r}
import torch
from conftest import random_model
model = random_model(torch.float32).to({device!r})
print(model(torch.tensor([[97]], device={device!r})).logits.sum().item())
"""


# ---- Operations -----------------------------------------------------------------------------------------------------


def operations(device: str, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Operations of the model whose support depends on device and dtype, by name."""

    def new(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    q, k = new(2, 16, 8, 64), new(2, 2, 8, 64)
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool, device=device).tril()
    ends = torch.tensor([3, 3, 8], device=device, dtype=torch.int32)
    square = new(3, 32, 32, dtype=torch.float32)
    place = torch.arange(8, device=device).view(4, 2)
    taps = new(64, 1, 1, 4)
    row = new(2, 1, 19, 64).permute(0, 3, 1, 2)  # channels last
    found = {
        "attention, causal, enable_gqa": lambda: F.scaled_dot_product_attention(
            q, k, k, is_causal=True, enable_gqa=True
        ),
        "attention, mask, enable_gqa": lambda: F.scaled_dot_product_attention(q, k, k, mask, enable_gqa=True),
        "embedding_bag with weights": lambda: F.embedding_bag(
            place, new(8, 64), per_sample_weights=new(4, 2), mode="sum"
        ),
        "depthwise conv2d, channels last": lambda: F.conv2d(row, taps, groups=64),
        "rms_norm": lambda: F.rms_norm(q, (64,), q[0, 0, 0]),
        "solve_triangular": lambda: torch.linalg.solve_triangular(square, square, upper=False, unitriangular=True),
        "multinomial": lambda: torch.multinomial(new(4, 64, dtype=torch.float32).softmax(-1), 1),
        "isin": lambda: torch.isin(place[0], place[1]),
    }
    if hasattr(F, "grouped_mm"):
        found["grouped_mm"] = lambda: F.grouped_mm(new(8, 64), new(3, 32, 64).mT, offs=ends)
    return found


def try_operations(device: str) -> dict[str, str]:
    """For each operation and dtype "ok", or the first line of the error."""
    outcome = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        for name, operation in operations(device, dtype).items():
            try:
                right = all(x.isfinite().all() for x in [operation()])
                outcome[f"{name}, {dtype}"] = "ok" if right else "not finite"
            except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
                outcome[f"{name}, {dtype}"] = str(error).splitlines()[0]
    return outcome


def outside_the_vocabulary(device: str) -> str:
    """The last line of what a pass with such a token says. On CUDA, no other pass is possible in that process then."""
    code = OUTSIDE.format(path=[str(ROOT), str(ROOT / "tests")], device=device)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    return (result.stderr or result.stdout).strip().splitlines()[-1]


# ---- Features -------------------------------------------------------------------------------------------------------


def difference(x: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of logits, in their standard deviations; of tokens, the share that differs."""
    if not x.is_floating_point():
        return (x != expected).float().mean().item()
    return ((x - expected).abs().max() / expected.std()).item()


def small_model(dtype: torch.dtype) -> Qwen3NextForCausalLM:
    """Random weights so small that a rounding does not grow from layer to layer."""
    model = random_model(torch.float32, **SMALL)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2 and "embed" not in name:
                p *= 0.3
    return model.to(dtype)


def try_features(device: str) -> dict[str, dict[str, float]]:
    """How far every kind of pass is from the CPU's in float32, and how far the CPU's own bfloat16 is."""
    models = {name: small_model(torch.float32) for name in ("expected", "float32")}
    models |= {name: small_model(torch.bfloat16) for name in ("bfloat16", "CPU bfloat16")}
    for name in ("float32", "bfloat16"):
        models[name].to(device)
    found = {}
    for name, model in models.items():
        found[name] = {key: x.double() if x.is_floating_point() else x for key, x in results(model).items()}
        if name in ("float32", "bfloat16"):
            grouped.stack(model, Experts)
            more = results(model)
            found[f"{name}, grouped"] = {key: x.double() if x.is_floating_point() else x for key, x in more.items()}
    expected = found.pop("expected")
    keys = [key for key in expected if not key.startswith("sampled")]  # a GPU draws other numbers from the same seed
    return {name: {key: difference(these[key], expected[key]) for key in keys} for name, these in found.items()}


def judge(features: dict[str, dict[str, float]]) -> list[str]:
    """What rounding does not explain: in float32 more than a thousandth, in bfloat16 three times the CPU's own."""
    wrong = []
    for name, found in features.items():
        for key in ("forward", "padded", "packed", "cached", "MTP"):
            limit = 1e-3 if name.startswith("float32") else 3 * features["CPU bfloat16"][key]
            if not found[key] <= limit:  # NaN, too
                wrong.append(f"{name}, {key}: {found[key]:.1e}, expected at most {limit:.1e}")
    return wrong


# ---- A token, and speed ---------------------------------------------------------------------------------------------


def wide_model(device: str) -> Qwen3NextForCausalLM:
    """Four layers of random weights, made on the device."""
    little = device == "cpu" or torch.cuda.mem_get_info(device)[0] < 2e10  # bytes: the weights alone are 14 GB
    fields = WIDE | (ON_CPU if little else {})
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        try:
            return Qwen3NextForCausalLM(Qwen3NextConfig(**fields)).eval()
        finally:
            torch.set_default_dtype(torch.float32)


@contextmanager
def waits(device: str) -> Iterator[collections.Counter]:
    """The lines at which the CPU waits for the GPU, as PyTorch's own debug mode finds them."""
    lines: collections.Counter = collections.Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device != "cpu":
            torch.cuda.set_sync_debug_mode("warn")
        yield lines
        if device != "cpu":
            torch.cuda.set_sync_debug_mode("default")
    lines.update(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))


@torch.no_grad()
def a_token(model: Qwen3NextForCausalLM, device: str) -> dict[str, Any]:
    """Kernels and waits of one decoded token."""
    ids = torch.zeros(1, 64, dtype=torch.long, device=device)
    cache = model.make_cache(1)
    model(ids, past_key_values=cache)
    model(ids[:, :1], past_key_values=cache)
    with waits(device) as lines:
        model(ids[:, :1], past_key_values=cache)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device != "cpu" else []
    with torch.profiler.profile(activities=kinds) as profile:
        model(ids[:, :1], past_key_values=cache)
        synchronise(device)
    on_gpu = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return {"kernels": len(on_gpu), "waits": dict(lines)}


def synchronise(device: str):
    if device != "cpu":
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], device: str, times: int = 5) -> float:
    """The median, after one run that does not count."""
    run()
    measured = []
    for _ in range(times):
        synchronise(device)
        started = time.perf_counter()
        run()
        synchronise(device)
        measured.append(time.perf_counter() - started)
    return sorted(measured)[times // 2]


@torch.no_grad()
def speed(model: Qwen3NextForCausalLM, device: str, bandwidth: float) -> dict[str, float]:
    """Tokens a second in reading 2,048 tokens and in decoding after them, and decoding's share of the bandwidth."""
    T = 2048 if device != "cpu" else 128
    ids = torch.randint(0, model.config.vocab_size, (1, T), device=device)
    cache = model.make_cache(1)
    model(ids, past_key_values=cache, logits_to_keep=1)
    passes = 20

    def decode():
        for _ in range(passes):
            model(ids[:, :1], past_key_values=cache)

    prefill = seconds(lambda: model(ids, use_cache=False, logits_to_keep=1), device)
    token = seconds(decode, device) / passes
    experts = sum(p.nbytes for name, p in model.named_parameters() if ".experts." in name)
    others = sum(p.nbytes for name, p in model.named_parameters() if ".experts." not in name and "embed" not in name)
    read = others + experts * model.config.num_experts_per_tok / model.config.num_experts
    share = read / token / bandwidth
    return {"prefill": T / prefill, "decode": 1 / token, "bytes a token": read, "share of the bandwidth": share}


def measure_bandwidth(device: str) -> float:
    """Bytes a second that a sum reads."""
    x = torch.ones(2**28 if device != "cpu" else 2**22, device=device)
    return x.nbytes / seconds(lambda: x.sum(), device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 ..., or cpu, to see that this script runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "on_gpu.json")
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(
            f"--device {args.device}: PyTorch {torch.__version__} sees no GPU; --device cpu runs the script without one"
        )
    started = time.perf_counter()
    report: dict[str, Any] = {"device": args.device, "torch": torch.__version__}
    if args.device != "cpu":
        report["device"] = torch.cuda.get_device_name(args.device)
        report["capability"] = torch.cuda.get_device_capability(args.device)

    def add(name: str, content: Any):
        report[name] = content
        print(f"{name} ({time.perf_counter() - started:.0f} s): {json.dumps(content, indent=2)}", flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")  # what there is, if it breaks off

    add("operations", try_operations(args.device))
    add("a token outside the vocabulary", outside_the_vocabulary(args.device))
    add("features", try_features(args.device))
    add("too far from the CPU", judge(report["features"]))
    model = wide_model(args.device)
    bandwidth = measure_bandwidth(args.device)
    add("bandwidth", bandwidth)
    for name in ("each expert by itself", "grouped"):
        if name == "grouped":
            grouped.stack(model, Experts)
        add(f"a token, {name}", a_token(model, args.device))
        add(f"speed, {name}", speed(model, args.device, bandwidth))
    return 1 if report["too far from the CPU"] else 0


if __name__ == "__main__":
    sys.exit(main())
