"""Times the whole model, transformers and llama.cpp: the same weights and tokens, taking turns in one run.

    python benchmarks/bench.py --folder DIR [--isa native avx2] [--only small slice mapped tiny ...] [--out FILE.json]
    python benchmarks/bench.py --redraw FILE.json

DIR takes the checkpoints, made from a seed (5 GB; 10 with llama.cpp). Workloads, and what each is about:
    small      8 layers, hidden 256, 4 of 16 experts, 17 M parameters, float32: calling the parts
    slice      the released width, 4 layers (3 Gated DeltaNet, 1 attention), 10 of 128 experts, bfloat16: the arithmetic
    mapped     the slice, its weights left in the mapped files, as by default; compared with the same in memory, and
               llama.cpp, which maps its file, too
    bits       the slice, in bfloat16 here, in 8 and in 4 bits in llama.cpp: what 16 bits cost
    tiny       tiny/ in bfloat16, and how long the command line takes to its first text (first_token.py)
    contexts   ours alone, the slice: prefill to 32K tokens, its memory, and how long each layer takes to decode there
    forms      the delta rule one by one and in chunks of three lengths, over T
    drafts     tiny/ with drafts of its MTP layer (speculation.py)

Prefill takes a prompt in one call and makes logits for its last token; decoding feeds one token a call, after 512. The
tokens are random, so that routing is spread. A figure is the median of --runs turns; ratios are of the same turn.
But for "mapped", all weights are in memory (in_memory=True here, use_mmap=False in llama.cpp).
The machine's own limits are measured between the turns: the rate of large matrix products in the workload's dtype, or
in float32 if the processor has no units for that dtype, and how fast memory is read. A decoded token reads `bytes`
(active weights, state twice, keys and values), a prefilled one takes `flops` (two for each active weight of a matrix);
"of limit" is that by the limit.

Two kinds of processor: "native" is this machine as it is. "avx2" is a child process in which PyTorch, oneDNN and MKL do
without AVX512, bfloat16 units and AMX, as on most desktops and laptops; its results go to FILE_avx2.json. What takes
longer than --longest seconds is measured once, and left out of the other turns.

llama.cpp takes part if llama-cpp-python is installed, built for this machine, and its source is at hand to convert the
checkpoint with. No variable keeps it from using AVX512: for the other kind it needs a build of its own.
    CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python gguf
    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON" pip install --no-deps \\
        --no-binary llama-cpp-python --target AVX2 llama-cpp-python
    pip download --no-deps --no-binary :all: llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    python benchmarks/bench.py --folder DIR --isa native avx2 --llama-cpp-avx2 AVX2 \\
        --llama-cpp-source llama_cpp_python-*/vendor/llama.cpp
"""

import argparse
import functools
import gc
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
import delta_rule  # noqa: E402
import first_token  # noqa: E402
import other_runtimes  # noqa: E402
import real_width  # noqa: E402
import speculation  # noqa: E402

import qwen3_next as q  # noqa: E402

SMALL = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rope_theta": 10000.0,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "max_position_embeddings": 32768,
}
DECODE_AT = 512  # tokens before those that are decoded
# What has a large processor do as a small one does: for PyTorch's own loops, oneDNN and MKL
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
QUANTISED = ("Q8_0", "Q4_0")  # llama.cpp's names for blocks of 32 weights in 8 and 4 bits with a scale
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)


# ---- Workloads ------------------------------------------------------------------------------------------------------


def make_small(folder: Path):
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        q.Qwen3NextForCausalLM(q.Qwen3NextConfig(**SMALL)).save_pretrained(folder)


def make_slice(folder: Path):
    real_width.build(folder, layers=4, experts=128)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # invented, but converters ask for one
        shutil.copy(ROOT / "tiny" / name, folder / name)


def work_of(model: q.Qwen3NextForCausalLM, context: int) -> tuple[int, int]:
    """Bytes that one decoded token reads and writes after `context` others, and operations of one prefilled token."""
    config, bytes_, weights = model.config, 0, 0
    for name, p in model.named_parameters():
        if name.startswith("mtp.") or "embed_tokens" in name and not config.tie_word_embeddings:
            continue
        share = config.num_experts_per_tok / config.num_experts if ".experts." in name else 1.0
        bytes_ += p.nbytes * share
        weights += p.numel() * share * (p.ndim == 2 and "lm_head" not in name and "embed_tokens" not in name)
    state = config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim * 4  # float32
    for layer in model.model.layers:
        if hasattr(layer, "linear_attn"):
            bytes_ += 2 * state
        else:
            width = config.num_key_value_heads * config.head_dim
            bytes_ += 2 * context * width * next(layer.parameters()).itemsize
    return int(bytes_), int(2 * weights)


# ---- Systems: each starts anew, and then takes tokens --------------------------------------------------------------


class Ours:
    def __init__(self, folder: Path, device: str, in_memory: bool, compile: bool = False):
        options = {"device_map": device, "in_memory": in_memory, "compile": compile}
        self.model = q.Qwen3NextForCausalLM.from_pretrained(folder, **options)

    def start(self):
        self.cache = self.model.make_cache(1)

    def feed(self, ids: torch.Tensor):
        self.model(ids, past_key_values=self.cache, logits_to_keep=1)


class Transformers:
    def __init__(self, folder: Path, device: str):
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="sdpa")
        self.model = model.to(device).eval()

    def start(self):
        self.cache = None

    def feed(self, ids: torch.Tensor):
        self.cache = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).past_key_values


class LlamaCpp:
    def __init__(self, gguf: Path, device: str, in_memory: bool):
        from llama_cpp import Llama

        threads = torch.get_num_threads()
        sizes = {"n_ctx": 4096, "n_batch": 2048, "n_ubatch": 2048, "n_threads": threads, "n_threads_batch": threads}
        options = {"n_gpu_layers": 0 if device == "cpu" else -1, "use_mmap": not in_memory, "verbose": False}
        self.model = Llama(str(gguf), **sizes, **options)

    def start(self):
        self.model.reset()

    def feed(self, ids: torch.Tensor):
        self.model.eval(ids[0].tolist())


def quantised(gguf: Path, kind: str) -> Path:
    """The same in fewer bits, made by llama.cpp."""
    path = gguf.with_name(f"model-{kind}.gguf")
    if path.is_file():
        return path
    code = f"""
import ctypes, llama_cpp, sys
options = llama_cpp.llama_model_quantize_default_params()
options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_{kind}
files = {str(gguf)!r}.encode(), {f"{path}.tmp"!r}.encode()
sys.exit(llama_cpp.llama_model_quantize(*files, ctypes.byref(options)))
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    Path(f"{path}.tmp").rename(path)
    return path


# ---- Measuring ------------------------------------------------------------------------------------------------------


def seconds(work: Callable, device: str = "cpu") -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


class Limits:
    """What the machine can do: bytes read a second, operations of a large matrix product; the best that was seen."""

    def __init__(self, dtype: torch.dtype, device: str):
        self.device, self.read, self.products = device, 0.0, 0.0
        self.memory = torch.ones(2**28, device=device)  # 1 GiB
        self.dtype = torch.float32 if device == "cpu" and dtype in q.SLOW_HALF else dtype
        self.a, self.b = (torch.randn(4096, 4096, device=device).to(self.dtype) for _ in range(2))

    def measure(self):
        self.read = max(self.read, self.memory.nbytes / seconds(self.memory.sum, self.device))
        self.products = max(self.products, 2 * 4096**3 / seconds(lambda: self.a @ self.b, self.device))


@torch.no_grad()
def measure(system: Ours | Transformers | LlamaCpp, ids: torch.Tensor, T: int, device: str) -> dict[str, float]:
    """Seconds by task: T tokens of ids in one call, and, if T is DECODE_AT, the median of those after them."""
    system.start()
    found = {f"prefill {T}": seconds(lambda: system.feed(ids[:, :T]), device)}
    if T == DECODE_AT:
        system.feed(ids[:, T : T + 1])
        steps = [ids[:, i : i + 1] for i in range(T + 1, ids.shape[1])]
        found[f"decode at {T}"] = statistics.median(seconds(lambda x=step: system.feed(x), device) for step in steps)
    return found


def take_turns(systems: dict, args: argparse.Namespace, limits: Limits) -> dict:
    """Seconds by task, system and turn, turn 0 included. Who takes too long for a prompt is left out of later turns."""
    gen, times, left_out = torch.Generator().manual_seed(0), {}, []
    vocab = systems["ours"].model.config.vocab_size
    for run in range(args.runs + 1):
        limits.measure()
        for T in args.prompts:
            ids = torch.randint(0, vocab, (1, T + args.tokens + 1), generator=gen).to(args.device)
            for name in list(systems) if run % 2 else reversed(list(systems)):
                if (f"prefill {T}", name) in left_out:
                    continue
                found = measure(systems[name], ids, T, args.device)
                for task, x in found.items():
                    times.setdefault(task, {}).setdefault(name, {})[run] = x
                if found[f"prefill {T}"] > args.longest and name != "ours":
                    left_out.append((f"prefill {T}", name))
    return times


def compare_with_others(name: str, folder: Path, args: argparse.Namespace) -> dict:
    """One workload: loads all systems, takes turns, prints a table."""
    systems, loading, mapped = {}, {}, name == "mapped"
    kinds = {"ours": lambda: Ours(folder, args.device, not mapped)}
    if name == "small":
        kinds["compiled"] = lambda: Ours(folder, args.device, True, compile=True)
    if mapped:
        kinds["in memory"] = lambda: Ours(folder, args.device, True)
    elif name != "bits":
        kinds["transformers"] = lambda: Transformers(folder, args.device)
    if args.llama_cpp_source and name in ("slice", "mapped", "bits"):
        gguf = other_runtimes.to_gguf(folder, args.llama_cpp_source, folder / "model.gguf", "bf16")
        if name != "bits":
            kinds["llama.cpp"] = lambda: LlamaCpp(gguf, args.device, not mapped)
        for kind in QUANTISED if name == "bits" else ():
            kinds[f"llama.cpp {kind}"] = lambda k=kind: LlamaCpp(quantised(gguf, k), args.device, True)
    for kind, load in kinds.items():
        loading[kind] = seconds(lambda k=kind, make=load: systems.update({k: make()}))
    model = systems["ours"].model
    limits = Limits(model.dtype, args.device)
    bytes_, flops = work_of(model, DECODE_AT)
    times = take_turns(systems, args, limits)
    rows = []
    dtype = str(model.dtype).removeprefix("torch.")
    multiplied = str(limits.dtype).removeprefix("torch.")
    print(f"\n{name}, {dtype}: {bytes_ / 1e6:,.1f} MB a decoded token, {flops / 1e6:,.1f} MFLOP a prefilled one")
    print(f"limits: {limits.read / 1e9:.1f} GB/s read, {limits.products / 1e9:,.0f} GFLOP/s of {multiplied} products")
    print(f"{'task':<15} {'system':<14} {'tokens/s':>9}  {'spread':<19} {'of limit':>8}  ours to it (spread)")
    for task, found in times.items():
        for system, turns in found.items():
            counted = {turn: x for turn, x in turns.items() if turn}
            if not counted:
                once = f"left out: the first turn took {turns[0]:.2f} s, {turns[0] / found['ours'][0]:.2f} times ours"
                print(f"{task:<15} {system:<14} {once}")
                continue
            n = int(task.split()[1]) if task.startswith("prefill") else 1
            rate = [n / x for x in counted.values()]
            share = flops * n / limits.products if n > 1 else bytes_ / limits.read
            ratios = sorted(theirs / found["ours"][turn] for turn, theirs in counted.items())
            row = {
                "task": task,
                "system": system,
                "tokens_per_s": statistics.median(rate),
                "spread": [min(rate), max(rate)],
                "of_limit": share * statistics.median(rate) / n,
                "ours_to_it": statistics.median(ratios),
                "ours_to_it_spread": [ratios[0], ratios[-1]],
            }
            rows.append(row)
            spread = f"{min(rate):,.1f} to {max(rate):,.1f}"
            ratio = f"{row['ours_to_it']:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})" if system != "ours" else ""
            print(
                f"{task:<15} {system:<14} {row['tokens_per_s']:>9,.1f}  {spread:<19} {row['of_limit']:>8.0%}  {ratio}"
            )
    print("loading:", ", ".join(f"{kind} {x:.2f} s" for kind, x in loading.items()), flush=True)
    limits = {"read_bytes_per_s": limits.read, "flops_per_s": limits.products, "products": multiplied}
    result = {"dtype": dtype, "bytes": bytes_, "flops": flops, "limits": limits, "load_s": loading, "rows": rows}
    result["first_turn_s"] = {task: {system: x[0] for system, x in found.items()} for task, found in times.items()}
    systems.clear()
    gc.collect()
    return result


# ---- Long contexts --------------------------------------------------------------------------------------------------


@contextmanager
def peak_memory(device: str):
    """Fills a dict with the most memory above that at the start: on a CPU what is not mapped from files (Linux)."""
    found, stop, status = {}, threading.Event(), Path("/proc/self/status")

    def now() -> int:
        if device != "cpu":
            return torch.cuda.max_memory_allocated()
        return 1024 * int(status.read_text().partition("RssAnon:")[2].split()[0])

    def watch():
        while not stop.wait(0.01):
            found["bytes"] = max(found["bytes"], now() - before)

    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    before = now()
    found["bytes"] = 0
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        found["bytes"] = max(found["bytes"], now() - before)


@contextmanager
def layer_times(model: q.Qwen3NextForCausalLM, device: str):
    """Fills a dict with the seconds that each pass spends in each layer's mixer."""
    found, handles = {i: [] for i in range(len(model.model.layers))}, []

    def sync():
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    for i, layer in enumerate(model.model.layers):
        handles.append(layer.mixer.register_forward_pre_hook(lambda *_, i=i: found[i].append(-sync())))
        handles.append(layer.mixer.register_forward_hook(lambda *_, i=i: found[i].append(found[i].pop() + sync())))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def contexts(folder: Path, args: argparse.Namespace) -> dict:
    """Prefill to 32K tokens in windows, and decoding on the way."""
    model = q.Qwen3NextForCausalLM.from_pretrained(folder, device_map=args.device, in_memory=True)
    gen, window, longest = torch.Generator().manual_seed(0), q.PREFILL_WINDOW, max(args.contexts)
    ids = torch.randint(0, model.config.vocab_size, (1, longest), generator=gen).to(args.device)
    model(ids[:, :window], logits_to_keep=1)  # not counted
    kinds = {"Gated DeltaNet": [], "attention": []}
    for i, layer in enumerate(model.model.layers):
        kinds["attention" if hasattr(layer, "self_attn") else "Gated DeltaNet"].append(i)
    decoding, prefill, peaks, saved = [], [], {}, {}
    for last in (min(4096, longest), longest):
        cache, stops = model.make_cache(1), sorted({*range(0, longest, window), *args.contexts, last})
        with peak_memory(args.device) as memory:
            for start, stop in zip(stops, stops[1:]):
                if stop > last:
                    break
                part = ids[:, start:stop]
                took = seconds(lambda p=part, c=cache: model(p, past_key_values=c, logits_to_keep=1), args.device)
                if last == longest:
                    prefill.append((start, stop, took))
                    if stop in args.contexts:
                        saved[stop] = cache.clone()
        kv = sum(x.nbytes for layer in cache.layers if isinstance(layer, q.KVCache) for x in (layer.k, layer.v))
        clones = sum(x.nbytes for c in saved.values() for y in c.layers for x in vars(y).values() if torch.is_tensor(x))
        peaks[last] = memory["bytes"] - kv - clones
    for turn in range(args.runs + 1):  # all contexts take turns, so that a slow minute falls on all of them
        for context, cache in saved.items():
            cache = cache.clone()
            with layer_times(model, args.device) as found:
                for i in range(args.tokens):
                    model(ids[:, i : i + 1], past_key_values=cache)
            if turn:
                each = {kind: [x for i in layers for x in found[i][1:]] for kind, layers in kinds.items()}
                decoding.append({"context": context} | {kind: statistics.median(x) for kind, x in each.items()})
    rows = []
    print(
        "\ncontexts, the slice\n"
        + f"{'context':>8} {'Gated DeltaNet':>15} {'attention':>10}  ms a decoded token and layer"
    )
    for context in saved:
        row = {k: statistics.median(d[k] for d in decoding if d["context"] == context) for k in kinds}
        rows.append({"context": context} | row)
        print(f"{context:>8} {row['Gated DeltaNet'] * 1e3:>15.3f} {row['attention'] * 1e3:>10.3f}")
    full = [(start, stop, took) for start, stop, took in prefill if stop - start == window]
    middle = torch.tensor([(start + stop) / 2 for start, stop, _ in full], dtype=torch.float64)
    each = torch.tensor([took / (stop - start) for start, stop, took in full], dtype=torch.float64)
    b, a = torch.linalg.lstsq(torch.stack([middle, torch.ones_like(middle)], 1), each[:, None]).solution[:, 0].tolist()
    print(f"prefill: {a * 1e3:.3f} ms a token and {b * 1e9:.2f} ns for each token before it (windows of {window})")
    (short, low), (long, high) = list(peaks.items())[0], list(peaks.items())[-1]
    print(
        f"peak memory without weights, keys and values: {low / 2**20:,.0f} MiB at {short}, "
        f"{high / 2**20:,.0f} MiB at {long}: {high / low:.2f} times",
        flush=True,
    )
    fit = {"s_per_token": a, "s_per_token_and_token_before": b}
    return {"decode_s_by_layer": rows, "prefill_windows": prefill, "prefill_fit": fit, "peak_bytes": peaks}


@torch.no_grad()
def forms(args: argparse.Namespace) -> dict:
    """Both forms of the delta rule, the second by length of its chunks, float32, released head sizes, taking turns."""
    rules = {"recurrent": q.recurrent_gated_delta_rule}
    for C in (16, 32, 64):
        rules[f"chunks of {C}"] = functools.partial(q.chunk_gated_delta_rule, chunk_size=C)
    rows = []
    print(f"\nforms, ms at {delta_rule.VALUE_HEADS} heads of {delta_rule.HEAD_DIM}")
    print(f"{'T':>6}", *(f"{name:>12}" for name in rules))
    for T in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048):
        inputs = [x.to(args.device) for x in delta_rule.make_inputs(T, False)]
        turns = [
            {
                name: seconds(lambda r=rule, x=inputs: delta_rule.ours(r)(*x), args.device)
                for name, rule in rules.items()
            }
            for _ in range(args.runs + 1)
        ][1:]
        row = {name: statistics.median(turn[name] for turn in turns) for name in rules}
        rows.append({"T": T} | row)
        print(f"{T:>6}", *(f"{row[name] * 1e3:>12.2f}" for name in rules), flush=True)
    return {"rows": rows}


def tiny(args: argparse.Namespace) -> dict:
    """tiny/ compared with transformers; and the command line's first text beyond `import torch`."""
    result = compare_with_others("tiny", ROOT / "tiny", args)
    result["first_text"] = first_token.measure(args.runs)
    return result


def drafts(args: argparse.Namespace) -> dict:
    """Acceptance and gain of MTP on tiny/."""
    model, tokenizer = (kind.from_pretrained(ROOT / "tiny") for kind in (q.Qwen3NextForCausalLM, q.Qwen3NextTokenizer))
    print("\ndrafts, tiny/")
    rows = speculation.measure(model, tokenizer, len(speculation.WORDS), args.runs)
    speculation.show(rows)
    return {"rows": rows}


# ---- Pictures -------------------------------------------------------------------------------------------------------


def plot(report: dict, path: Path):
    """What was measured, as PNGs of four panels at most: PATH for the systems compared, and next to it PATH with
    `_lengths` for what depends on the length of a text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def panels(count: int):
        """So many axes, two in a row, for a page 840 pixels wide."""
        rows = math.ceil(count / 2)
        figure, axes = pyplot.subplots(rows, 2, figsize=(8.7, 3.2 * rows), squeeze=False, layout="constrained")
        for axis in axes.flat[count:]:
            axis.remove()
        return figure, list(axes.flat)

    pyplot.rcParams.update({"font.size": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9})
    colors = {"ours": "#0072B2", "in memory": "#56B4E9", "transformers": "#E69F00", "llama.cpp": "#009E73"}
    colors |= {"compiled": "#56B4E9"}
    shown = [name for name in ("small", "slice", "mapped", "tiny") if name in report]
    if shown:
        figure, axes = panels(len(shown))
        for axis, name in zip(axes, shown):
            bars_of_limit(axis, name, report[name], colors)
        figure.savefig(path, dpi=160)
    lengths = 2 * ("contexts" in report) + ("forms" in report)
    if lengths:
        figure, axes = panels(lengths)
        if "contexts" in report:
            by_context(axes.pop(0), axes.pop(0), report["contexts"])
        if "forms" in report:
            axis, rows = axes.pop(0), report["forms"]["rows"]
            chunked = "chunked" if "chunked" in rows[0] else "chunks of 32"  # its name in earlier reports
            for name, color in (("recurrent", "#D55E00"), (chunked, "#0072B2")):
                axis.plot([r["T"] for r in rows], [1e3 * r[name] for r in rows], "o-", color=color, label=name)
            axis.set(title="the delta rule", xlabel="T, tokens", ylabel="ms", xscale="log", yscale="log")
            axis.legend()
        figure.savefig(path.with_stem(f"{path.stem}_lengths"), dpi=160)


def bars_of_limit(axis, name: str, found: dict, colors: dict):
    """A bar for each task and system, in per cent of what the machine allows."""
    rows = [row for row in found["rows"] if row["system"] in colors]  # fewer bits have another limit
    tasks, systems = list(dict.fromkeys(r["task"] for r in rows)), list(dict.fromkeys(r["system"] for r in rows))
    for n, system in enumerate(systems):
        mine = [r for r in rows if r["system"] == system]
        place = [tasks.index(r["task"]) + 0.8 * n / len(systems) for r in mine]
        shares = [100 * r["of_limit"] for r in mine]
        axis.bar(place, shares, 0.75 / len(systems), label=system, color=colors[system])
    middle = 0.4 * (1 - 1 / len(systems))
    axis.set_xticks([i + middle for i in range(len(tasks))], [t.replace(" ", "\n", 1) for t in tasks])
    axis.set(title=f"{name}, {found['dtype']}", ylabel="per cent of the machine's limit")
    axis.margins(y=0.35)  # room for the legend
    axis.legend()


def by_context(decode, prefill, found: dict):
    """Decoding by layer, and prefill, against the tokens before."""
    for kind, color in (("Gated DeltaNet", "#0072B2"), ("attention", "#D55E00")):
        rows = found["decode_s_by_layer"]
        decode.plot([r["context"] for r in rows], [1e3 * r[kind] for r in rows], "o-", color=color, label=kind)
    decode.set(title="decoding, one layer", xlabel="tokens before", ylabel="ms a token", xscale="log", ylim=0)
    decode.legend()
    fit, windows = found["prefill_fit"], [w for w in found["prefill_windows"] if w[1] - w[0] == q.PREFILL_WINDOW]
    middle = [(start + stop) / 2 for start, stop, _ in windows]
    measured = [1e3 * took / (stop - start) for start, stop, took in windows]
    line = [1e3 * (fit["s_per_token"] + fit["s_per_token_and_token_before"] * x) for x in middle]
    prefill.plot(middle, measured, "o", color="#0072B2", label="measured")
    prefill.plot(middle, line, color="#0072B2", label="a + b T")
    prefill.set(title="prefill of the slice", xlabel="tokens before", ylabel="ms a token", ylim=0)
    prefill.legend()


def cpu_name() -> str:
    """As Linux names it, and what PyTorch uses of it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{(names or [platform.processor()])[0]}, {torch.backends.cpu.get_cpu_capability()}"


def run_as_avx2(args: argparse.Namespace):
    """The same command in a child that does without what is wider than AVX2."""
    command = [sys.executable, *sys.argv, "--isa", "native"]  # of an option given twice, the last counts
    if args.out:
        command += ["--out", str(args.out.with_stem(f"{args.out.stem}_avx2"))]
    if args.llama_cpp_source and not args.llama_cpp_avx2:
        print("\navx2: llama.cpp is left out, as --llama-cpp-avx2 names no build without AVX512", flush=True)
        command += ["--llama-cpp-source", ""]
    path = [str(args.llama_cpp_avx2 or ""), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, **AVX2, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    with tempfile.TemporaryDirectory() as cache:  # PyTorch would take code compiled for the other kind from its own
        subprocess.run(command, check=True, env={**env, "TORCHINDUCTOR_CACHE_DIR": cache})


def run(args: argparse.Namespace):
    """Measures in this process, and writes the figures."""
    torch.set_num_threads(args.threads)
    packages = ["torch", "transformers"] + ["llama-cpp-python"] * bool(args.llama_cpp_source)
    report = {"machine": platform.machine(), "device": args.device, "threads": args.threads, "runs": args.runs}
    report["cpu"] = cpu_name()
    report["versions"] = {name: version(name) for name in packages}
    if args.device != "cpu":
        report["device_name"] = torch.cuda.get_device_name()
    before = f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f} before the start"
    print(f"{report['cpu']}, {before}", report["versions"], flush=True)
    args.folder.mkdir(parents=True, exist_ok=True)
    small, slice_ = args.folder / "small", args.folder / "slice"
    tasks = {
        "small": lambda: (make_small(small), compare_with_others("small", small, args))[1],
        "slice": lambda: (make_slice(slice_), compare_with_others("slice", slice_, args))[1],
        "mapped": lambda: (make_slice(slice_), compare_with_others("mapped", slice_, args))[1],
        "tiny": lambda: tiny(args),
        "bits": lambda: (make_slice(slice_), compare_with_others("bits", slice_, args))[1],
        "contexts": lambda: (make_slice(slice_), contexts(slice_, args))[1],
        "forms": lambda: forms(args),
        "drafts": lambda: drafts(args),
    }
    for name in args.only:
        report[name] = tasks[name]()
        if args.out:  # after each workload: a run that is broken off keeps what it has
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.out:
        plot(report, args.out.with_suffix(".png"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["small", "slice", "mapped", "bits", "tiny", "contexts", "forms", "drafts"]
    parser.add_argument("--folder", type=Path, help="for the checkpoints")
    parser.add_argument("--redraw", type=Path, metavar="FILE.json", help="draw these figures again, measuring nothing")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="what to measure (default: all)")
    parser.add_argument("--isa", nargs="+", choices=["native", "avx2"], default=["native"], help="kinds of processor")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=5, help="turns that count, after one that does not")
    parser.add_argument("--tokens", type=int, default=16, help="tokens decoded a turn")
    parser.add_argument("--prompts", type=int, nargs="+", default=[DECODE_AT, 2048], help="lengths to prefill")
    parser.add_argument("--longest", type=float, default=60, help="seconds that a prompt may take another system")
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS, help="tokens before decoding")
    parser.add_argument("--llama-cpp-source", type=str, metavar="DIR", help="llama.cpp's source, to convert with")
    parser.add_argument("--llama-cpp-avx2", type=Path, metavar="DIR", help="llama-cpp-python built without AVX512")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, and PNGs next to it")
    args = parser.parse_args()
    if args.redraw:
        plot(json.loads(args.redraw.read_text(encoding="utf-8")), args.redraw.with_suffix(".png"))
        return
    if args.folder is None:
        parser.error("no --folder for the checkpoints, expected one unless --redraw is given")
    args.llama_cpp_source = Path(args.llama_cpp_source) if args.llama_cpp_source else None  # "": none, see run_as_avx2
    if "avx2" in args.isa and args.device != "cpu":
        parser.error(f"--isa avx2 is about a CPU, but --device is {args.device}")
    if "native" in args.isa:
        run(args)
        gc.collect()
    if "avx2" in args.isa:
        run_as_avx2(args)


if __name__ == "__main__":
    main()
