"""Reproduces the published headline: over 10 times the throughput of Qwen3-32B beyond 32K tokens of context.

    python benchmarks/against_dense.py --folder DIR [--contexts 4096 16384 32768] [--out FILE.json]

Neither model fits this kind of machine whole, so slices at full width are timed, and layers counted. In DIR, from a
seed: Qwen3-Next with 4 of its 48 layers (3 Gated DeltaNet, 1 attention), all 512 experts, 14 GB, run by qwen3_next.py;
and Qwen3-32B with 2 of its 64 layers, 5 GB, run by transformers. Both bfloat16, random weights and tokens.
Both read the same prompt in windows of 2,048 tokens, taking turns window by window, and at each context decode a few
tokens, turn by turn. Each layer is timed by itself. The whole is put together as

    Qwen3-Next   36 times a Gated DeltaNet layer + 12 times an attention layer + lm_head     (medians of the slice's)
    Qwen3-32B    64 times a layer + lm_head

with lm_head once a prompt, or once a token decoded. What this leaves out: embedding and final norm, batches, several
devices, and whether the weights fit into memory at all (163 against 66 GB).
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
import real_width  # noqa: E402

import qwen3_next as q  # noqa: E402

DENSE = {  # Qwen/Qwen3-32B's config.json, but for the number of layers
    "vocab_size": 151936,
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "num_hidden_layers": 2,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40960,
}
WINDOW = q.PREFILL_WINDOW
LAYERS = {"ours": {"Gated DeltaNet": 36, "attention": 12}, "dense": {"layer": 64}}


class Slice:
    """A model whose layers and lm_head are timed: after a call, `took` has the seconds of each kind, a list."""

    def __init__(self, model: torch.nn.Module, kinds: list[str]):
        self.model, self.took = model, {}
        for module, kind in [*zip(model.model.layers, kinds), (model.lm_head, "lm_head")]:
            module.register_forward_pre_hook(
                lambda *_, k=kind: self.took.setdefault(k, []).append(-time.perf_counter())
            )
            module.register_forward_hook(
                lambda *_, k=kind: self.took[k].append(self.took[k].pop() + time.perf_counter())
            )

    @torch.no_grad()
    def __call__(self, ids: torch.Tensor) -> dict[str, float]:
        """Feeds tokens (1, T); seconds of a layer of each kind."""
        self.took.clear()
        self.feed(ids)
        return {kind: statistics.median(times) for kind, times in self.took.items()}


class Ours(Slice):
    def __init__(self, folder: Path):
        real_width.build(folder, layers=4, experts=512)
        model = q.Qwen3NextForCausalLM.from_pretrained(folder, in_memory=True)  # as the other is
        super().__init__(
            model, ["attention" if "full" in kind else "Gated DeltaNet" for kind in model.config.layer_types]
        )
        self.cache = model.make_cache(1)

    def feed(self, ids: torch.Tensor):
        self.model(ids, past_key_values=self.cache, logits_to_keep=1)

    def forget(self, cache: q.Cache):
        self.cache = cache

    def remember(self) -> q.Cache:
        return self.cache.clone()


class Dense(Slice):
    def __init__(self):
        import transformers

        transformers.logging.set_verbosity_error()
        torch.manual_seed(0)
        config = transformers.Qwen3Config(**DENSE, attn_implementation="sdpa", dtype="bfloat16")
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        super().__init__(model, ["layer"] * DENSE["num_hidden_layers"])
        self.cache = None

    def feed(self, ids: torch.Tensor):
        self.cache = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).past_key_values

    def remember(self) -> int:
        return self.cache.get_seq_length()

    def forget(self, length: int):
        self.cache.crop(length - self.cache.get_seq_length())  # a negative number: so many are taken away


def whole(name: str, times: dict[str, float]) -> float:
    """Seconds of all layers of the whole model, lm_head apart."""
    return sum(count * times[kind] for kind, count in LAYERS[name].items())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where our slice is, or will be")
    parser.add_argument("--contexts", type=int, nargs="+", default=[4096, 16384, 32768], help=f"multiples of {WINDOW}")
    parser.add_argument("--tokens", type=int, default=8, help="decoded at each context")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the figures as JSON, and a PNG next to it")
    args = parser.parse_args()
    if any(n % WINDOW or n <= 0 for n in args.contexts):
        parser.error(f"--contexts {args.contexts}: expected multiples of {WINDOW}")
    torch.set_num_threads(args.threads)
    slices = {"ours": Ours(args.folder), "dense": Dense()}
    gen, total, rows = torch.Generator().manual_seed(0), dict.fromkeys(slices, 0.0), []
    ids = torch.randint(0, DENSE["vocab_size"], (1, max(args.contexts) + args.tokens), generator=gen)
    for system in slices.values():  # not counted: pages are touched, libraries set themselves up
        system(ids[:, :WINDOW])
    slices["ours"].forget(slices["ours"].model.make_cache(1))
    slices["dense"].cache = None
    names = list(slices)
    print(f"{'context':>8}  {'prefill, tokens/s':<26} {'decoding, tokens/s':<26}")
    print(f"{'':>8}  {'ours':>8} {'dense':>8} {'ratio':>7}   {'ours':>8} {'dense':>8} {'ratio':>7}")
    for start in range(0, max(args.contexts), WINDOW):
        for name in names:
            times = slices[name](ids[:, start : start + WINDOW])
            total[name] += whole(name, times)
        names.reverse()
        if (context := start + WINDOW) in args.contexts:
            kept, found = {name: s.remember() for name, s in slices.items()}, {name: [] for name in slices}
            for i in range(args.tokens + 1):
                for name, system in slices.items():
                    found[name].append(system(ids[:, context + i - 1 : context + i]))
            for name, system in slices.items():
                system.forget(kept[name])
            steps = {n: [whole(n, t) + t["lm_head"] for t in found[n][1:]] for n in slices}
            decode = {name: 1 / statistics.median(each) for name, each in steps.items()}
            ratios = sorted(b / a for a, b in zip(steps["ours"], steps["dense"]))
            prefill = {n: context / (total[n] + statistics.median(t["lm_head"] for t in found[n])) for n in slices}
            layers = {n: {k: statistics.median(t[k] for t in found[n][1:]) for k in found[n][0]} for n in slices}
            row = {"context": context, "prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode}
            row |= {"prefill_ratio": prefill["ours"] / prefill["dense"], "decode_ratio": statistics.median(ratios)}
            row["decode_ratio_spread"] = [ratios[0], ratios[-1]]
            rows.append(row | {"decode_s_by_layer": layers})
            print(
                f"{context:>8}  {prefill['ours']:>8.2f} {prefill['dense']:>8.2f} {row['prefill_ratio']:>7.2f}",
                end="   ",
            )
            print(f"{decode['ours']:>8.2f} {decode['dense']:>8.2f} {row['decode_ratio']:>7.2f}", flush=True)
    if args.out:
        machine = {"torch": torch.__version__, "machine": platform.machine(), "threads": args.threads}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**machine, "rows": rows}, indent=2) + "\n", encoding="utf-8")
        plot(rows, args.out.with_suffix(".png"))


def plot(rows: list[dict], path: Path):
    """Ratios over context, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3.6), layout="constrained")
    context = [row["context"] / 1024 for row in rows]
    axis.plot(context, [row["prefill_ratio"] for row in rows], "o-", color="#0072B2", label="reading a prompt")
    axis.plot(context, [row["decode_ratio"] for row in rows], "s-", color="#D55E00", label="decoding")
    axis.axhline(10, color="#888888", linestyle=":", label="published: 10 beyond 32K")
    axis.set(xlabel="context, thousands of tokens (1,024)", ylabel="times as fast as Qwen3-32B", ylim=0)
    axis.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
