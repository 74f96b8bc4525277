"""Times decoding from the disk at the released model's width, and counts the bytes that it reads. Linux only.

    python benchmarks/real_width.py --folder DIR [--layers 4] [--experts 512] [--tokens 16] [--out FILE.json]

Makes a checkpoint in DIR, once: the released config with 4 layers (3 Gated DeltaNet, 1 attention), 512 experts, no MTP,
random bfloat16 weights, 14 GB. Then, each in a new process, with everything but the routed experts in memory:
cold: before each token, all experts are dropped from the page cache. Bytes read are what the system counts for the
process (read_bytes in /proc/self/io); `routed` is what the experts that the token was routed to take. Three ways:
    ours           experts are advised MADV_RANDOM, and chosen ones MADV_WILLNEED, as from_pretrained leaves them
    no read-ahead  without large.ReadAhead's hooks: page by page
    no advice      neither: the system's own read-ahead
once: the same, but dropped only before the first token: an expert that comes again is not read again.
warm: all in the page cache and touched before; with and without reading ahead take turns.
Last, opens the whole 80B layout (sparse files of the released shapes), in bfloat16 and in FP8.
The tokens are random, so that routing is spread. Believe the ratios, on an otherwise idle machine.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from checkpoints import INSTRUCT, entries, file_header, into_shards, write_json_files, write_sparse  # noqa: E402

import qwen3_next  # noqa: E402
from qwen3_next_checkpoints import large  # noqa: E402

CHUNK = 2**24  # elements drawn at a time
MADV_NORMAL, MADV_DONTNEED = 0, 4
WAYS = ("ours", "no read-ahead", "no advice")


def build(folder: Path, layers: int, experts: int):
    """The checkpoint, if the folder does not hold it already. The index is written last."""
    config = {**INSTRUCT, "num_hidden_layers": layers, "num_experts": experts}
    if (folder / "model.safetensors.index.json").exists():
        found = json.loads((folder / "config.json").read_text())
        if found != config:
            raise SystemExit(f"{folder}: holds another checkpoint; name another folder, or remove it")
        return
    folder.mkdir(parents=True, exist_ok=True)
    shards, gen, started = into_shards(entries(config, mtp=False)), torch.Generator().manual_seed(0), time.time()
    files = [folder / f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, tensors in zip(files, shards):
        start, places, _ = file_header(tensors)
        with file.open("wb") as out:
            out.write(start)
            for name in sorted(places, key=places.get):
                for chunk in draw(name, torch.Size(tensors[name][1]).numel(), gen):
                    out.write(chunk.to(torch.bfloat16).view(torch.uint8).numpy())
            out.flush()
            os.fsync(out.fileno())  # what is not on the disk yet can't be dropped from the page cache
        print(f"{file}: {file.stat().st_size / 1e9:.1f} GB, {time.time() - started:.0f} s", file=sys.stderr)
    write_json_files(folder, config, {name: file.name for file, part in zip(files, shards) for name in part}, False)


def draw(name: str, count: int, gen: torch.Generator) -> Iterator[torch.Tensor]:
    """New values for a parameter, chunk by chunk: small matrices, norms at rest, decays as a new model has them."""
    for start in range(0, count, CHUNK):
        n = min(CHUNK, count - start)
        if name.endswith("A_log"):
            yield torch.empty(n).uniform_(1, 16, generator=gen).log()
        elif name.endswith("dt_bias"):
            yield torch.full((n,), -4.6)  # softplus of it is 0.01
        elif "norm.weight" in name:
            yield torch.full((n,), float("linear_attn" in name))
        else:
            yield torch.empty(n).normal_(0, 0.02, generator=gen)


def io_counts() -> dict[str, int]:
    """What the system has counted for this process: bytes read from the disk, page faults with and without reading."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    counts = dict(line.split(":") for line in Path("/proc/self/io").read_text().splitlines())
    return {"bytes": int(counts["read_bytes"]), "major": usage.ru_majflt, "minor": usage.ru_minflt}


def experts_of(model: torch.nn.Module) -> list[qwen3_next.Experts]:
    return [module for module in model.modules() if isinstance(module, qwen3_next.Experts)]


def read_ahead_hooks(experts: list[qwen3_next.Experts]) -> list[tuple[torch.nn.Module, dict]]:
    """The modules that have hooks of large.ReadAhead, and these hooks."""
    found = []
    for module in (m for layer in experts for m in (layer, *layer)):
        hooks = module._forward_pre_hooks
        ours = {key: hook for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", 0), large.ReadAhead)}
        if ours:
            found.append((module, ours))
    return found


def set_read_ahead(hooks: list[tuple[torch.nn.Module, dict]], on: bool):
    """Puts the hooks on their modules, or takes them off."""
    for module, ours in hooks:
        for key, hook in ours.items():
            if on:
                module._forward_pre_hooks[key] = hook
            else:
                module._forward_pre_hooks.pop(key, None)


def drop(folder: Path, experts: list[qwen3_next.Experts]):
    """Takes the files out of the page cache, but for what else this process has mapped of them."""
    for module in experts:
        for p in module.parameters():
            large.advise(p, MADV_DONTNEED)  # mapped pages would stay
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as source:
            os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_whole(folder: Path) -> float:
    """Reads all files, so that they are in the page cache; bytes per second."""
    started, count = time.perf_counter(), 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as source:
            while part := source.read(2**23):
                count += len(part)
    return count / (time.perf_counter() - started)


def load(folder: Path, way: str) -> qwen3_next.Qwen3NextForCausalLM:
    model = qwen3_next.Qwen3NextForCausalLM.from_pretrained(folder)
    layers = experts_of(model)
    hooks = read_ahead_hooks(layers)
    assert len(hooks) == sum(1 + len(layer) for layer in layers), "not all experts are mapped"
    set_read_ahead(hooks, way == "ours")
    if way == "no advice":
        for layer in layers:
            for p in layer.parameters():
                large.advise(p, MADV_NORMAL)
    for name, p in model.named_parameters():
        if ".experts." not in name:
            p.view(torch.uint8).flatten()[::4096].sum().item()  # touches each page
    return model


class Decoder:
    """Feeds random tokens one by one, and knows the bytes of the experts that each one is routed to."""

    def __init__(self, model: qwen3_next.Qwen3NextForCausalLM, seed: int = 0):
        self.model, self.k = model, model.config.num_experts_per_tok
        self.gen, self.cache = torch.Generator().manual_seed(seed), model.make_cache(1)
        self.expert_bytes = large.bytes_each(experts_of(model)[0])

    @torch.no_grad()
    def step(self) -> tuple[float, set[tuple[int, int]]]:
        """One token: seconds, and the (layer, expert) pairs that it was routed to."""
        token = torch.randint(0, self.model.config.vocab_size, (1, 1), generator=self.gen)
        started = time.perf_counter()
        out = self.model(token, past_key_values=self.cache, output_router_logits=True)
        out.logits.argmax().item()
        seconds, routers = time.perf_counter() - started, enumerate(out.router_logits)
        return seconds, {(i, e) for i, logits in routers for e in logits[0].topk(self.k).indices.tolist()}


def from_disk(folder: Path, way: str, tokens: int, each: bool) -> dict:
    """Decodes with the experts on the disk: dropped before each token, or only before the first one."""
    model = load(folder, way)
    decoder, layers = Decoder(model), experts_of(model)
    decoder.step()  # not counted: libraries set themselves up
    rows, seen = [], set()
    for i in range(tokens):
        if each or i == 0:
            drop(folder, layers)
            seen = set()
        before = io_counts()
        seconds, chosen = decoder.step()
        counts = {key: x - before[key] for key, x in io_counts().items()}
        rows.append({"seconds": seconds, "routed": len(chosen - seen) * decoder.expert_bytes, **counts})
        seen |= chosen
    total = {key: sum(row[key] for row in rows) for key in rows[0]}
    mean = {f"{key}_per_token": x / tokens for key, x in total.items()}
    return {"tokens_per_s": 1 / mean["seconds_per_token"], **mean, "read_to_routed": total["bytes"] / total["routed"]}


def in_memory(folder: Path, tokens: int, rounds: int = 7) -> dict:
    """Decodes the same tokens again and again, with and without reading ahead in turns."""
    read_whole(folder)
    model = load(folder, "ours")
    hooks, times, read = read_ahead_hooks(experts_of(model)), {True: [], False: []}, 0
    for i in range(rounds + 1):
        for ahead in times:
            set_read_ahead(hooks, ahead)
            decoder, before = Decoder(model), io_counts()["bytes"]
            seconds = statistics.median(decoder.step()[0] for _ in range(tokens))
            if i > 0:  # the first touches the pages
                times[ahead].append(seconds)
                read += io_counts()["bytes"] - before
    ours, without = (statistics.median(found) for found in times.values())
    ratios = sorted(a / b for a, b in zip(*times.values()))
    rates = {"tokens_per_s": 1 / ours, "tokens_per_s_without_read_ahead": 1 / without, "bytes_read": read}
    return {**rates, "time_ratio": ours / without, "ratio_spread": [ratios[0], ratios[-1]]}


def opening(folder: Path) -> dict:
    """Opens a checkpoint: seconds, and memory afterwards, in bytes."""
    started = time.perf_counter()
    model = qwen3_next.Qwen3NextForCausalLM.from_pretrained(folder)
    seconds = time.perf_counter() - started
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = {key: int(status[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile")}
    return {"seconds": seconds, "parameters": sum(p.numel() for p in model.parameters()), **memory}


def in_new_process(task: str, *arguments: object) -> dict:
    """The result of one of the functions above."""
    command = [sys.executable, __file__, "--worker", json.dumps([task, torch.get_num_threads(), *map(str, arguments)])]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def worker(task: str, threads: int, folder: str, *arguments: str) -> dict:
    torch.set_num_threads(threads)
    if task == "from_disk":
        way, tokens, each = arguments
        return from_disk(Path(folder), way, int(tokens), each == "True")
    return in_memory(Path(folder), int(arguments[0])) if task == "in_memory" else opening(Path(folder))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or will be")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=16, help="counted tokens of each row; a quarter where it is slow")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(*json.loads(args.worker))))
        return
    if args.folder is None:
        parser.error("--folder is missing")
    torch.set_num_threads(args.threads)
    build(args.folder, args.layers, args.experts)
    drop(args.folder, [])
    disk = read_whole(args.folder)
    print(f"reading the files from beginning to end: {disk / 1e6:,.0f} MB/s\n")
    print(
        f"{'per token':<20} {'tokens/s':>8} {'MB read':>8} {'routed':>8} {'ratio':>6} {'major faults':>13} {'minor':>6}"
    )
    rows = []
    for kind, ways in (("cold", WAYS), ("once", ("ours",))):
        for way in ways:
            tokens = max(1, args.tokens // (1 if way == "ours" else 4))
            row = in_new_process("from_disk", args.folder, way, tokens, kind == "cold")
            rows.append({"kind": kind, "way": way, "tokens": tokens, **row})
            read, routed = row["bytes_per_token"] / 1e6, row["routed_per_token"] / 1e6
            print(f"{f'{kind}, {way}':<20} {row['tokens_per_s']:>8.2f} {read:>8.1f} {routed:>8.1f}", end=" ")
            faults = f"{row['major_per_token']:>13,.0f} {row['minor_per_token']:>6,.0f}"
            print(f"{row['read_to_routed']:>6.2f} {faults}", flush=True)
    warm = in_new_process("in_memory", args.folder, args.tokens)
    spread = " to ".join(f"{x:.3f}" for x in warm["ratio_spread"])
    print(
        f"\nwarm: {warm['tokens_per_s']:.2f} tokens/s, {warm['tokens_per_s_without_read_ahead']:.2f} without", end=" "
    )
    print(f"reading ahead: {warm['time_ratio']:.3f} of the time ({spread}); {warm['bytes_read']} bytes read\n")
    opened = {}
    for kind in ("bfloat16", "fp8"):
        with tempfile.TemporaryDirectory() as folder:
            write_sparse(Path(folder), fp8=kind == "fp8")
            row = opened[kind] = in_new_process("opening", folder)
        sizes = f"{row['RssAnon'] / 1e9:.2f} GB, and {row['RssFile'] / 1e9:.2f} GB of files that are mapped"
        print(f"80B in {kind}: opened in {row['seconds']:.1f} s; memory {sizes}")
    if args.out:
        machine = {"torch": torch.__version__, "machine": platform.machine(), "threads": args.threads}
        shape = {"layers": args.layers, "experts": args.experts, "disk_bytes_per_s": disk}
        report = {**machine, **shape, "rows": rows, "warm": warm, "opening_80b": opened}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
