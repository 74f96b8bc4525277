"""Proof that the kit finds bugs: known mistakes, one at a time, in a copy of qwen3_next.py; does it name the right key?

    python verify/mutations.py                  runs all, writes verify/mutations.md
    python verify/mutations.py --only "tiled key heads"

Each runs on tiny/ in float32 through all scenarios, against reference_recurrent.py; "first" is compare.py's first key.
The ten under "blind" were written by a reader of the papers who had not seen compare.py (mutations_blind.json).
Controls are unchanged, with other tokens and either form of the delta rule, and must raise no alarm.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import re
import sys
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tiny")]
from reference_recurrent import Reference  # noqa: E402
from verify import compare, scenarios  # noqa: E402
from verify.measures import relative_error  # noqa: E402
from verify.reference import run_reference  # noqa: E402
from verify.stages import Trace, split_batches  # noqa: E402

HALVES = "q, gate = (y.view(B, T, -1, self.head_dim) for y in self.q_proj(x).chunk(2, dim=-1))"
FLAT = "q, k, v, z = (y.unflatten(-1, groups) for y in qkvz.split(2 * [self.widths[0] // 2] + 2 * self.widths[1:], -1))"
SPLIT = "q, k, v, z = qkvz.unflatten(-1, groups).split([self.K, self.K, r * self.V, r * self.V], dim=-1)"
ROTATED = "return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], dim=-1)"
PAIRS = (
    "x1, x2 = x[..., : 2 * half : 2], x[..., 1 : 2 * half : 2]\n"
    "    return torch.cat([torch.stack([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1).flatten(-2), rest], dim=-1)"
)
# name: (line of qwen3_next.py, what it becomes, the key that is wrong first, words of the cause that is meant)
MUTATIONS: dict[str, tuple[str, str, str, str]] = {
    "residual of the normed input": (
        "x = x + self.mixer(self.input_layernorm(x), step, cache)",
        "x = self.input_layernorm(x)\n        x = x + self.mixer(x, step, cache)",
        r"model\.layers\.0\.post_attention_layernorm\.out",
        "residual",
    ),
    "norm without 1 +": (
        "1 + upcast(self.weight)",
        "upcast(self.weight)",
        r"model\.layers\.0\.input_layernorm\.out",
        "1 + w",
    ),
    "query and gate as halves": (
        "q, gate = self.q_proj(x).view(B, T, -1, 2 * self.head_dim).chunk(2, dim=-1)",
        HALVES,
        r"model\.layers\.3\.self_attn\.q",
        "within each head",
    ),
    "query and gate swapped": (
        "q, gate = self.q_proj",
        "gate, q = self.q_proj",
        r"model\.layers\.3\.self_attn\.q",
        "swapped",
    ),
    "RoPE over the whole head": (
        "dim = int(config.head_dim * config.partial_rotary_factor)",
        "dim = config.head_dim",
        r"model\.layers\.3\.self_attn\.q_rope",
        "whole head",
    ),
    "RoPE pairs interleaved": (ROTATED, PAIRS, r"model\.layers\.3\.self_attn\.q_rope", "pairs"),
    "RoPE missing on keys": (
        "k_rope = apply_rope(self.k_norm(k), step.cos, step.sin)",
        "k_rope = self.k_norm(k)",
        r"model\.layers\.3\.self_attn\.k_rope",
        "RoPE is missing",
    ),
    "positions begin anew in each call": (
        "position = cache.seq_len[:, None] + torch.arange(T, device=x.device)",
        "position = 0 * cache.seq_len[:, None] + torch.arange(T, device=x.device)",
        r"decode 1/model\.layers\.3\.self_attn\.q_rope",
        "positions",
    ),
    "KV heads tiled": (
        "B, T, heads, head_dim = q.shape\n",
        "B, T, heads, head_dim = q.shape\n    k, v = (t.repeat(1, heads // t.shape[1], 1, 1) for t in (k, v))\n",
        r"model\.layers\.3\.self_attn\.attn_out",
        "tiled",
    ),
    "output gate missing": (
        "(attn_out * torch.sigmoid(gate)).flatten(2)",
        "attn_out.flatten(2)",
        r"model\.layers\.3\.self_attn\.o_proj\.out",
        "output gate",
    ),
    "output gate by SiLU": (
        "(attn_out * torch.sigmoid(gate)).flatten(2)",
        "(attn_out * F.silu(gate)).flatten(2)",
        r"model\.layers\.3\.self_attn\.o_proj\.out",
        "output gate",
    ),
    "qkvz read flat": (SPLIT, FLAT, r"model\.layers\.0\.linear_attn\.q", "read flat"),
    "b and a read flat": (
        "b, a = ba.unflatten(-1, groups).split([r, r], dim=-1)",
        "b, a = (y.unflatten(-1, groups) for y in ba.chunk(2, dim=-1))",
        r"model\.layers\.0\.linear_attn\.b",
        "read flat",
    ),
    "convolution's taps in reverse": (
        "F.conv2d(row, self.weight[:, :, None].to(dtype),",
        "F.conv2d(row, self.weight.flip(-1)[:, :, None].to(dtype),",
        r"model\.layers\.0\.linear_attn\.conv_out",
        "reverse",
    ),
    "convolution's window not kept": (
        "window = x[:, T:].clone()",
        "window = torch.zeros_like(x[:, T:])",
        r"model\.layers\.0\.linear_attn\.conv_state",
        "window",
    ),
    "window of the padded end": (
        "index = lengths[:, None] +",
        "index = lengths[:, None] * 0 + T +",
        r"padded\[\d\]/model\.layers\.0\.linear_attn\.conv_state",
        "real tokens",
    ),
    "padding decays the state": (
        "g, beta = g * real, beta * real",
        "beta = beta * real",
        r"padded\[\d\]/model\.layers\.0\.linear_attn\.state",
        "padding|state",
    ),
    "key heads tiled": (
        "k_l2norm = k_unit.repeat_interleave(r, dim=2)",
        "k_l2norm = k_unit.repeat(1, 1, r, 1)",
        r"model\.layers\.0\.linear_attn\.k_l2norm",
        "tiled",
    ),
    "query not scaled": (
        "q_l2norm = (q_unit * self.K**-0.5)",
        "q_l2norm = q_unit",
        r"model\.layers\.0\.linear_attn\.q_l2norm",
        "scale",
    ),
    "keys not normalised": (
        "r = self.value_heads // self.key_heads  # value heads i r",
        "k_unit = qk.unflatten(-1, (2, -1, self.K))[:, :, 1]; r = self.value_heads // self.key_heads  # i r",
        r"model\.layers\.0\.linear_attn\.k_l2norm",
        "not normalised",
    ),
    "A_log instead of its exponential": (
        "g = -upcast(self.A_log).exp() *",
        "g = -upcast(self.A_log).abs() *",
        r"model\.layers\.0\.linear_attn\.g",
        "A_log",
    ),
    "beta doubled": (
        "beta = upcast(b).sigmoid()",
        "beta = 2 * upcast(b).sigmoid()",
        r"model\.layers\.0\.linear_attn\.beta",
        "2 sigmoid",
    ),
    "decay after the error": (
        "recalled = (k_t[..., None, :] @ S).squeeze(-2)",
        "recalled = (k_t[..., None, :] @ (S / alpha[..., None, None])).squeeze(-2)",
        r"decode 1/model\.layers\.0\.linear_attn\.delta_out",
        "state",
    ),
    "read before the write": (
        "        S = S + k_t[..., :, None] * delta[..., None, :]",
        "        outputs.append((q_t[..., None, :] @ S).squeeze(-2))\n"
        "        S = S + k_t[..., :, None] * delta[..., None, :]\n        continue",
        r"decode 1/model\.layers\.0\.linear_attn\.delta_out",
        "state",
    ),
    "cross-chunk decay dropped": (
        "S = gamma_n[..., -1:, :] * S +",
        "S = S +",
        r"prefill/model\.layers\.0\.linear_attn\.(delta_out|state)",
        "chunk",
    ),
    "decay missing within a chunk": (
        "A = beta * decay * (k @ kT)",
        "A = beta * (k @ kT)",
        r"model\.layers\.0\.linear_attn\.delta_out",
        "chunk",
    ),
    "state not carried between calls": (
        "beta=beta, state=cache.state)\n",
        "beta=beta, state=None)\n",
        r"decode 1/model\.layers\.0\.linear_attn\.delta_out",
        "calls|state",
    ),
    "rollback forgets the state": (
        "        if keep:\n            q, k, v, g, beta",
        "        state = self.state\n        if keep:\n            q, k, v, g, beta",
        r"rollback/model\.layers\.0\.linear_attn\.state",
        "state",
    ),
    "norm after the delta rule with 1 +": (
        "shape, upcast(self.weight)",
        "shape, 1 + upcast(self.weight)",
        r"model\.layers\.0\.linear_attn\.norm\.out",
        "not 1 \\+ w|by w",
    ),
    "gate before the norm": (
        "        x = F.rms_norm(upcast(x), self.weight.shape, upcast(self.weight), self.eps)\n"
        "        return (x * F.silu(upcast(z))).to(z.dtype)",
        "        x = upcast(x) * F.silu(upcast(z))\n"
        "        return F.rms_norm(x, self.weight.shape, upcast(self.weight), self.eps).to(z.dtype)",
        r"model\.layers\.0\.linear_attn\.norm\.out",
        "norm before the gate",
    ),
    "chosen weights not normalised": (
        "if self.normalise:\n",
        "if False:\n",
        r"model\.layers\.0\.mlp\.topk_weights",
        "sum",
    ),
    "gate and up swapped": (
        "F.silu(self.gate_proj(x)) * self.up_proj(x)",
        "F.silu(self.up_proj(x)) * self.gate_proj(x)",
        r"model\.layers\.0\.mlp\.experts\.out",
        "gate and up",
    ),
    "shared expert not gated": (
        "torch.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x)",
        "self.shared_expert(x)",
        r"model\.layers\.0\.mlp\.out",
        "not gated",
    ),
    "MTP's pair in the other order": (
        "[self.pre_fc_norm_embedding(next_embeds), self.pre_fc_norm_hidden(hidden)]",
        "[self.pre_fc_norm_hidden(hidden), self.pre_fc_norm_embedding(next_embeds)]",
        r"(prefill|draft 1)/mtp\.fc\.out",
        "embedding first",
    ),
    "MTP without its final norm": (
        "self.mtp, segments, positions, cache)[0][-1]",
        "self.mtp, segments, positions, cache, collect=True)[0][-1] * 1.1",
        r"(prefill|draft 1)/mtp\.logits",
        "final norm",
    ),
}


def load(source: str, number: int, folder: Path):
    """qwen3_next.py's module with another source."""
    path = folder / f"mutated_{number}.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


class Bench:
    """The reference's traces of all scenarios, and what a module's model is measured by."""

    def __init__(self, model: Path, seed: int = 5):
        self.model, self.reference = model, Reference.from_pretrained(model)
        self.ids = scenarios.random_tokens(self.reference.config.vocab_size, seed)
        self.config = json.loads((model / "config.json").read_bytes())
        self.refs = {}
        for name in scenarios.PASSES:
            tokens = scenarios.steps_of(name, self.ids, True)
            steps = run_reference(self.reference, tokens)
            self.refs[name] = Trace(steps, tokens, {"config": self.config})
        import corpus

        from qwen3_next import Qwen3NextTokenizer

        encode = Qwen3NextTokenizer.from_pretrained(model).encode
        texts = (corpus.text_of(corpus.Corpus("held out").document(f"perplexity:{n}")) for n in range(8))
        self.text = [encode(text) for text in texts]

    def traces(self, module, dtype: str, delta_rule: str = "chunk"):
        """scenario, the reference's trace and the model's."""
        model = module.Qwen3NextForCausalLM.from_pretrained(self.model, dtype, delta_rule=delta_rule)
        for name, ref in self.refs.items():
            steps, _ = scenarios.run(model, ref.tokens)
            mine = split_batches(Trace(steps, ref.tokens, {}), ref.tokens, "right")
            yield name, split_batches(ref, ref.tokens, "right"), mine

    def first(self, module, dtype: str, isolated: bool = False, delta_rule: str = "chunk"):
        """compare.py's first wrong row over all scenarios, None if there is none."""
        for _, ref, mine in self.traces(module, dtype, delta_rule):
            done = compare.compare(ref, mine, dtype=dtype, isolated=isolated, reference=self.reference)
            if done.first is not None:
                return done.first
        return None

    def logit_errors(self, module, dtype: str) -> float:
        """Largest relative error at the logits."""
        worst = 0.0
        for _, ref, mine in self.traces(module, dtype):
            for step in ref.steps.keys() & mine.steps.keys():
                for key in ("lm_head.out", "mtp.logits"):
                    if key in ref.steps[step] and key in mine.steps[step]:
                        worst = max(worst, relative_error(ref.steps[step][key], mine.steps[step][key]))
        return worst

    @torch.no_grad()
    def perplexity(self, module) -> float:
        """Over held-out text."""
        model = module.Qwen3NextForCausalLM.from_pretrained(self.model, "float32")
        nats = sum(model(row := torch.tensor([ids]), labels=row).loss.item() * (len(ids) - 1) for ids in self.text)
        return math.exp(nats / sum(len(ids) - 1 for ids in self.text))


def plain_key(name: str) -> str:
    return re.sub(r"^(prefill|piece 1)/", "", name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME")
    parser.add_argument("--model", type=Path, default=ROOT / "tiny")
    args = parser.parse_args()
    source, bench = (ROOT / "qwen3_next.py").read_text(encoding="utf-8"), Bench(args.model)
    blind = {
        one["name"]: (one["old"], one["new"], one["expected"], one["cause"])
        for one in json.loads((HERE / "mutations_blind.json").read_bytes())
    }
    lines, found_all = [], True
    head = (
        "| bug | first key named | cause | error at the logits | perplexity | missed by bfloat16 logits |\n"
        "|---|---|---|--:|--:|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        clean = load(source, 0, Path(folder))
        sound = bench.logit_errors(clean, "bfloat16")
        usual = bench.perplexity(clean)
        number = 0
        for title, mutations in (("Known mistakes", MUTATIONS), ("Blind", blind)):
            located = 0
            rows = []
            chosen = {n: m for n, m in mutations.items() if args.only in (None, n)}
            for name, (old, new, expected, meant) in tqdm(chosen.items(), title, disable=None):
                if source.count(old) != 1:
                    raise ValueError(f"{name}: its line occurs {source.count(old)} times in qwen3_next.py")
                number += 1
                module = load(source.replace(old, new), number, Path(folder))
                row = bench.first(module, "float32")
                key = row.name if row else "none"
                right = bool(row) and re.fullmatch(expected, key if "/" in expected else plain_key(key)) is not None
                located += right
                cause = bool(row) and re.search(meant, " ".join([*row.causes[:2], row.note])) is not None
                missed = bench.logit_errors(module, "bfloat16") <= 2 * sound
                error, nats = bench.logit_errors(module, "float32"), bench.perplexity(module)
                figures = f"{error:.2g} | {nats:.3f} | {'yes' if missed else 'no'}"
                named = f"`{key}`{'' if right else ' (wrong)'} | {'right' if cause else 'wrong'}"
                rows.append(f"| {name} | {named} | {figures} |")
                if args.only:
                    print(rows[-1], *(row.causes if row else []), sep="\n")
            found_all &= located == len(chosen)
            lines += [f"## {title}: {located} of {len(chosen)} located\n", head, *rows, ""]
        if not args.only:
            alarms, controls = [], 0
            for dtype in ("float32", "bfloat16"):
                for seed in range(100, 105):
                    control = Bench(args.model, seed)
                    for isolated in (False, True):
                        row = control.first(clean, dtype, isolated, "recurrent" if seed % 2 else "chunk")
                        alarms += (
                            [f"{dtype}, seed {seed}, {'isolated' if isolated else 'chained'}: {row.name}"]
                            if row
                            else []
                        )
                    controls += 1
            lines += [
                f"## Clean controls: {len(alarms)} false alarms in {controls}, each chained and isolated\n",
                *alarms,
            ]
            intro = (
                "# What the kit finds\n\nMade by `python verify/mutations.py`: tiny/ in float32, all scenarios. "
                f"Unchanged, the perplexity of held-out text is {usual:.3f}, and bfloat16's largest relative error at "
                f"the logits {sound:.2g}; a bug is missed there if its error is not more than twice as large.\n"
            )
            (HERE / "mutations.md").write_text("\n".join([intro, *lines]).rstrip() + "\n", encoding="utf-8")
            return int(not found_all or bool(alarms))
    return 0


if __name__ == "__main__":
    sys.exit(main())
