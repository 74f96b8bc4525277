"""Bugs that only golden vectors of version 2 show, one at a time, in a copy of qwen3_next.py: is each one located?

    python verify/mutations_v2.py                runs all, writes verify/mutations_v2.md
    python verify/mutations_v2.py --only NAME

Each runs in float32 on one case. It is located if compare.py names the key that is meant first, and its cause is right
if it is among the first two that are named. For each there is an unchanged run of the same case, a control.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT)]
from verify import compare, golden_v2, scenarios  # noqa: E402
from verify.conform import model_of  # noqa: E402
from verify.mutations import HALVES, load  # noqa: E402
from verify.reference import load_reference  # noqa: E402
from verify.stages import Trace, read_trace, split_batches  # noqa: E402

LENGTH = "return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)"
SCORES = "mask, dropout, mask is None, enable_gqa=True)"
KEPT = "cache.window, cache.state = conv_state, state\n"
SOFTPLUS = "F.softplus(upcast(a) + upcast(self.dt_bias))"
K_UNIT = r"prefill/model\.layers\.0\.linear_attn\.[qk]_l2norm"
DECAY = r"prefill/model\.layers\.0\.linear_attn\.g"
SECOND = r"packed\[1\]/model\.layers\.0\.linear_attn\.delta_out"
SCALED = r"layer 3/model\.layers\.3\.self_attn\.attn_out"
RESUMED = r"decode 1/model\.layers\.0\.linear_attn\.delta_out"
# name: (line of qwen3_next.py, what it becomes, the case, the key that is wrong first, words of the cause)
MUTATIONS: dict[str, tuple[str, str, str, str, str]] = {
    "l2 norm without eps": (LENGTH, LENGTH.replace(" + 1e-6", ""), "ddda-decode", K_UNIT, "without eps"),
    "l2 norm by max(length, eps)": (
        LENGTH,
        "return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6)",
        "ddda-decode",
        K_UNIT,
        r"max\(",
    ),
    "rms_norm_eps in the l2 norm": (LENGTH, LENGTH.replace("1e-6", "1e-3"), "ddda-decode", K_UNIT, "rms_norm_eps"),
    "the norms' eps fixed at 1e-6": (
        "F.rms_norm(upcast(x), scale.shape, scale, self.eps)",
        "F.rms_norm(upcast(x), scale.shape, scale, 1e-6)",
        "ddda-layer",
        r"layer 0/model\.layers\.0\.input_layernorm\.out",
        "rms_norm_eps",
    ),
    "positions kept in bfloat16": (
        "(position if positions is None else positions)[..., None, None]",
        "(position if positions is None else positions).bfloat16()[..., None, None]",
        "ddda-decode",
        r"prefill/model\.layers\.3\.self_attn\.q_rope",
        "bfloat16",
    ),
    "state dropped between chunks of 128": (
        "        delta = M_n @ (v_n - gamma_n * (k_n @ S))",
        "        S = S * bool(len(outputs) % 4)\n        delta = M_n @ (v_n - gamma_n * (k_n @ S))",
        "ddda-decode",
        r"prefill/model\.layers\.0\.linear_attn\.delta_out",
        "chunks of 128",
    ),
    "state kept in bfloat16": (
        KEPT,
        KEPT.replace(", state\n", ", state.bfloat16().float()\n"),
        "ddda-decode",
        RESUMED,
        "kept in bfloat16",
    ),
    "state kept in float16": (
        KEPT,
        KEPT.replace(", state\n", ", state.half().float()\n"),
        "ddda-decode",
        RESUMED,
        "kept in float16",
    ),
    "state transposed from call to call": (
        KEPT,
        KEPT.replace(", state\n", ", state.transpose(-1, -2)\n"),
        "ddda-decode",
        RESUMED,
        "transposed from one call to the next",
    ),
    "YaRN's ramp bounded by R / 2 - 1": (
        "low, high = max(low, 0), min(high, dim - 1)",
        "low, high = max(low, 0), min(high, dim // 2 - 1)",
        "ops/yarn",
        "the ramp ends after the last pair/out",
        "bounds 0 and R - 1",
    ),
    "YaRN's ramp without its bound": (
        "low, high = max(low, 0), min(high, dim - 1)",
        "low = max(low, 0)",
        "ops/yarn",
        "the ramp ends at R - 1/out",
        "bounds 0 and R - 1",
    ),
    "YaRN's mscale taken alone": (
        "(scales if all(scales) else (1, 0))",
        "(scales if any(scales) else (1, 0))",
        "ops/yarn",
        "one scale alone/out",
        "m on cos and sin",
    ),
    "a draft accepted where u = p / q": (
        "accepted = (chance < p_draft / q_draft)",
        "accepted = (chance <= p_draft / q_draft)",
        "ops/acceptance",
        "u = p / q is rejected/accepted",
        "not if u = p / q",
    ),
    "no draft accepted where q = 0": (
        "accepted = (chance < p_draft / q_draft)",
        "accepted = (chance < (p_draft / q_draft).nan_to_num(posinf=0.0))",
        "ops/acceptance",
        "q = 0 < p is accepted/accepted",
        "always if p >= q",
    ),
    "dt_bias missing": (SOFTPLUS, "F.softplus(upcast(a))", "ddda-decode", DECAY, "dt_bias is missing"),
    "dt_bias outside softplus": (
        SOFTPLUS,
        "(F.softplus(upcast(a)) + upcast(self.dt_bias))",
        "ddda-decode",
        DECAY,
        "outside softplus",
    ),
    "scale from hidden size and heads": (
        SCORES,
        SCORES.replace(")", ", scale=(32 / 8) ** -0.5)"),
        "ddda-layer",
        SCALED,
        "hidden_size / heads",
    ),
    "scores scaled by 1 / head_dim": (
        SCORES,
        SCORES.replace(")", ", scale=1 / head_dim)"),
        "ddda-layer",
        SCALED,
        "1 / head_dim",
    ),
    "attention_factor missing": (
        '/ yarn["factor"] * slow, amplitude',
        '/ yarn["factor"] * slow, 1.0',
        "addd-pieces",
        r"piece 1/model\.layers\.0\.self_attn\.q_rope",
        "attention_factor",
    ),
    "query and gate as halves": (
        "q, gate = self.q_proj(x).view(B, T, -1, 2 * self.head_dim).chunk(2, dim=-1)",
        HALVES,
        "pair-decode",
        r"prefill/model\.layers\.1\.self_attn\.(gate|q_norm\.out)",
        "within each head",
    ),
    "e^G times e^-G": (
        "decay = between.exp().tril()",
        "decay = (g.cumsum(-2).exp() * (-g.cumsum(-2)).exp().transpose(-1, -2)).tril()",
        "ops/delta_rule",
        r"strong decay/(out|state_out)",
        r"e\^\(G_i - G_j\)",
    ),
    "rollback one token too far": (
        "keep = qkv.shape[1] - tokens\n",
        "keep = max(qkv.shape[1] - tokens - 1, 0)\n",
        "ddda-rollback",
        r"rollback 1/model\.layers\.0\.linear_attn\.state",
        "1 token too far",
    ),
    "MTP's cache lost at a rollback": (
        "layers = [layer.without_last(tokens) for layer in self.layers] if tokens else self.layers",
        "layers = [layer.without_last(tokens) for layer in self.layers] if tokens else self.layers\n"
        "        layers = [KVCache()] if tokens and len(layers) == 1 else layers",
        "ddda-rollback",
        r"draft 2\.1/mtp\.layers\.0\.self_attn\.attn_out",
        "MTP's own",
    ),
    "packed: the memory is not emptied": (
        "g = g.masked_fill(step.starts[..., None], -math.inf)",
        "g = g + 0",
        "ddda-packed",
        SECOND,
        "packed",
    ),
    "packed: the convolution looks across": (
        "if starts is not None:  # zeros before each sequence, too",
        "if False:",
        "ddda-packed",
        SECOND,
        "packed",
    ),
    "packed: attention looks across": (
        "(packed[:, None, :, None] == packed[:, None, None]) & (index <= index[:, None])",
        "(index <= index[:, None])[None, None]",
        "ddda-packed",
        r"packed\[1\]/model\.layers\.3\.self_attn\.attn_out",
        "packed",
    ),
}


def first_wrong(module, case: str):
    """compare.py's first wrong row of a case, None if there is none."""
    ref = read_trace(golden_v2.GOLDEN / f"{case}.safetensors")
    model = module.Qwen3NextForCausalLM.from_pretrained(model_of(case), "float32")
    given = {step: {key: ref.steps[step][key] for key in fed.get("inputs", [])} for step, fed in ref.tokens.items()}
    steps, _ = scenarios.run(model, ref.tokens, given=given)
    split = [split_batches(one, ref.tokens, "right") for one in (ref, Trace(steps, ref.tokens, {}))]
    reference = None if case.startswith("ops/") else load_reference(model_of(case))
    return compare.compare(*split, dtype="float32", reference=reference).first


def judged(name: str, module) -> tuple[str, bool, bool, list[str]]:
    """The key that is named for a bug, whether it is the right one, whether the cause is, and the causes."""
    _, _, case, expected, meant = MUTATIONS[name]
    row = first_wrong(module, case)
    if row is None:
        return "none", False, False, []
    located = re.fullmatch(expected, row.name) is not None
    return row.name, located, re.search(meant, " ".join(row.causes[:2])) is not None, row.causes


def mutated(name: str, number: int, folder: Path):
    """qwen3_next.py's module with a bug. Raises ValueError if its line is not there."""
    source = (ROOT / "qwen3_next.py").read_text(encoding="utf-8")
    old, new = MUTATIONS[name][:2]
    if source.count(old) != 1:
        raise ValueError(f"{name}: its line occurs {source.count(old)} times in qwen3_next.py")
    return load(source.replace(old, new), 1000 + number, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", choices=MUTATIONS)
    args = parser.parse_args()
    import qwen3_next

    rows = []
    counts = {"located": 0, "right": 0}
    names = [args.only] if args.only else list(MUTATIONS)
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            key, located, right, causes = judged(name, mutated(name, number, Path(folder)))
            counts["located"] += located
            counts["right"] += right
            rows.append(f"| {name} | `{key}`{'' if located else ' (wrong)'} | {'right' if right else 'wrong'} |")
            print(rows[-1], *causes, sep="\n    ", flush=True)
        cases = sorted({MUTATIONS[name][2] for name in names})
        alarms = [case for case in cases if first_wrong(qwen3_next, case) is not None]
    n = len(names)
    summary = f"{counts['located']} of {n} located, the right cause for {counts['right']}; "
    summary += f"{len(alarms)} false alarms in {len(cases)} unchanged runs"
    print(summary)
    if not args.only:
        about = "Made by `python verify/mutations_v2.py`: float32, the cases of `golden/v2/`. A cause counts if it is "
        about += "among the first two that are named."
        head = ["# What golden vectors of version 2 find", about, summary[0].upper() + summary[1:] + "."]
        table = ["| bug | first key named | cause |", "|---|---|---|", *rows]
        text = "\n\n".join([*head, "\n".join(table)]) + "\n"
        (HERE / "mutations_v2.md").write_text(text, encoding="utf-8")
    return int(counts["located"] < n or bool(alarms))


if __name__ == "__main__":
    sys.exit(main())
