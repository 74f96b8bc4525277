"""Traces of more than a prompt: continuing from a cache, padding, rolling back, gradients.

    python verify/scenarios.py --model tiny --out traces/                     this project's, in the checkpoint's dtype
    python verify/scenarios.py --model tiny --out traces/ --scenario padded --dtype float32
    python verify/scenarios.py --model tiny --out traces/ref --reference        reference_recurrent.py's

writes traces/decode.safetensors and so on. What each step was fed stands in its file's manifest, so another
implementation can be fed the same. The tokens come from the seed.

    decode       65 tokens (a chunk of 64 and one more), then three more, one by one
    pieces       17 tokens, then 2, then 30
    padded       sequences of 21, 34 and 3 tokens in one batch, then one more token for each
    speculation  24 tokens; MTP drafts twice; a pass over three tokens; the last one is taken back; another token
    gradients    of all parameters and of the embeddings, for the mean cross-entropy of 20 tokens (not with --reference)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
from verify.compare import join_batches, rerun, split_tokens  # noqa: E402
from verify.trace import write_trace  # noqa: E402

Steps, Tokens = dict[str, dict[str, np.ndarray]], dict[str, dict]
PASSES = ["decode", "pieces", "padded", "speculation"]
SCENARIOS = [*PASSES, "gradients"]


def random_tokens(vocab_size: int, seed: int, count: int = 100) -> list[int]:
    """Token ids, from a seed."""
    return np.random.default_rng(seed).integers(0, vocab_size, count).tolist()


def steps_of(scenario: str, ids: list[int], mtp: bool) -> Tokens:
    """What a scenario feeds, step by step: {"tokens", "before"}; of a batch, lists."""
    if scenario == "decode":
        ends = [65, 66, 67, 68]
        names = ["prefill", "decode 1", "decode 2", "decode 3"]
    elif scenario == "pieces":
        ends, names = [17, 19, 49], ["piece 1", "piece 2", "piece 3"]
    elif scenario == "gradients":
        ends, names = [20], ["gradients"]
    elif scenario == "padded":
        rows = [ids[:21], ids[21:55], ids[55:58]]
        return {
            "padded": {"tokens": rows, "before": [[], [], []]},
            "padded decode": {"tokens": [[token] for token in ids[58:61]], "before": rows},
        }
    else:
        prompt, (t, draft, wrong, other) = ids[:24], ids[24:28]
        steps = {"prefill": {"tokens": prompt, "before": []}}
        if mtp:
            steps["draft 1"] = {"tokens": [t], "before": prompt, "drafts": 0}
            steps["draft 2"] = {"tokens": [t, draft], "before": prompt, "drafts": 1}
        steps["verify"] = {"tokens": [t, draft, wrong], "before": prompt}
        steps["rollback"] = {"tokens": [], "before": [*prompt, t, draft]}
        steps["next"] = {"tokens": [other], "before": [*prompt, t, draft]}
        return steps
    starts = [0, *ends]
    return {n: {"tokens": ids[a:b], "before": ids[:a]} for n, a, b in zip(names, starts, ends)}


class Runner:
    """A qwen3_next model and what it carries from step to step. module: its module, which may be a changed copy."""

    def __init__(self, model, module):
        import torch

        self.model, self.module, self.cache, self.fed = model, module, None, []
        empty = torch.zeros(1, dtype=torch.long, device=model.device)
        self.mtp_cache = module.Cache([module.KVCache()], empty)
        self.hidden = self.drafted = None  # of the last token: the model's, and MTP's own

    def step(self, told: dict, trace):
        """One step; fills the trace."""
        import torch

        new, device = told["tokens"], self.model.device
        batch = bool(new) and isinstance(new[0], list)
        rows = new if batch else [new]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        if "drafts" in told:
            self.look_ahead(self.drafted if told["drafts"] else self.hidden, ids[:, -1:], None, self.mtp_cache, trace)
            return
        if not new:  # the pass before is taken back in part: what there is to see are the states
            self.cache.rollback(len(self.fed) - len(told["before"]))
            for i, layer in enumerate(self.cache.layers):
                if hasattr(layer, "state"):
                    prefix = f"model.layers.{i}.linear_attn."
                    trace[prefix + "state"] = self.module.upcast(layer.state)[0].clone()
                    trace[prefix + "conv_state"] = self.module.upcast(layer.window)[0].clone()
            return
        first = not any(told["before"])
        if first:
            self.cache = self.model.make_cache(len(rows))
        self.cache.reversible = not batch and 1 < width < 8
        out = self.model(ids, mask if batch else None, past_key_values=self.cache, trace=trace)
        self.hidden, self.fed = out.last_hidden_state[:, -1:], [*told["before"], *new]
        if first and width > 1 and self.model.mtp is not None:
            pairs = mask[:, 1:] * mask[:, :-1] if batch else None
            kept = None if batch else self.mtp_cache
            self.look_ahead(out.last_hidden_state[:, :-1], ids[:, 1:], pairs, kept, trace)

    def look_ahead(self, hidden, ids, pairs, cache, trace):
        """MTP's part, into the same trace."""
        model = self.model
        with self.module.tracing(model, found := self.module.Trace(*trace.globs)):
            self.drafted = model.look_ahead(hidden, model.model.embed(ids), pairs, None, cache)
            self.module.tap("mtp.logits", model.lm_head(self.drafted))
        trace.update((key, x) for key, x in found.items() if key.startswith("mtp."))


def run(model, tokens: Tokens, globs: tuple[str, ...] = ("*",), module=None) -> tuple[Steps, dict[str, str]]:
    """What a qwen3_next model computes, step by step, and the lines that do. module: its module, if it is a copy."""
    import torch

    module = module or sys.modules["qwen3_next"]
    steps, lines, runner = {}, {}, Runner(model, module)
    for step, told in tokens.items():
        trace = module.Trace(*globs)
        with torch.no_grad():
            runner.step(told, trace)
        steps[step] = {key: x.cpu().numpy() for key, x in trace.items()}
        lines |= trace.lines
    return steps, lines


def run_gradients(model, ids: list[int]) -> dict[str, np.ndarray]:
    """Gradients by name of the parameter, and that of the embeddings, for the loss of predicting each next token."""
    import torch

    row = torch.tensor([ids], device=model.device)
    model.requires_grad_(True).zero_grad()
    embeds = model.model.embed_tokens(row)
    embeds.retain_grad()
    model(inputs_embeds=embeds, labels=row, output_router_logits=False).loss.backward()
    found = {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None}
    found["model.embed_tokens.out.grad"] = embeds.grad[0]
    return {
        key: x.cpu().to(torch.float64 if x.dtype == torch.float64 else torch.float32).numpy()
        for key, x in found.items()
    }


def run_reference(reference, tokens: Tokens) -> Steps:
    """The same steps from reference_recurrent.Reference."""
    steps = join_batches(rerun(reference, split_tokens(tokens), {}), tokens)
    for step, told in tokens.items():
        if "drafts" in told:
            found = reference.trace(told["before"] + told["tokens"], drafts=told["drafts"])
            steps[step] = {key: x[-1:] for key, x in found.items() if key.startswith("mtp.")}
    return {step: steps[step] for step in tokens}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "tiny", metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=SCENARIOS)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--keys", nargs="+", default=["*"], metavar="GLOB", help="'*.chunk.*' for the chunked form's own"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the tokens (default: 0)")
    parser.add_argument("--reference", action="store_true", help="reference_recurrent.py instead, float64")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.reference:
        from reference_recurrent import Reference

        model = Reference.from_pretrained(args.model)
        mtp, dtype, producer = "mtp.fc.weight" in model.tensors, "float64", "reference_recurrent.py"
    else:
        from qwen3_next import Qwen3NextForCausalLM

        model = Qwen3NextForCausalLM.from_pretrained(args.model, args.dtype)
        mtp, dtype, producer = model.mtp is not None, str(model.dtype).removeprefix("torch."), "qwen3_next.py"
    ids = random_tokens(model.config.vocab_size, args.seed)
    for scenario in args.scenario:
        tokens, lines = steps_of(scenario, ids, mtp), {}
        if args.reference and scenario == "gradients":
            continue
        if args.reference:
            steps = run_reference(model, tokens)
        elif scenario == "gradients":
            steps = {scenario: run_gradients(model, ids[:20])}
        else:
            steps, lines = run(model, tokens, tuple(args.keys))
        path = args.out / f"{scenario}.safetensors"
        write_trace(path, steps, tokens, producer=producer, dtype=dtype, folder=args.model, lines=lines)
        print(f"{path}: {sum(map(len, steps.values()))} tensors")


if __name__ == "__main__":
    main()
