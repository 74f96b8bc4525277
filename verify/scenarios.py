"""Traces of more than a prompt: continuing from a cache, padding, taking tokens back, gradients.

    python verify/scenarios.py --model tiny --out traces/                     this project's, in the checkpoint's dtype
    python verify/scenarios.py --model tiny --out traces/ --scenario padded --dtype float32
    python verify/scenarios.py --model tiny --out traces/ref --reference        reference_recurrent.py's

writes traces/decode.safetensors and so on. Each file's manifest says what each step was fed, so that another
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
from collections.abc import Iterable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
from verify.reference import Steps, Tokens, load_reference, run_reference  # noqa: E402
from verify.stages import Array, exit_code, write_trace  # noqa: E402
from verify.trace import check_found  # noqa: E402

PASSES = ["decode", "pieces", "padded", "speculation"]
SCENARIOS = [*PASSES, "gradients"]


def random_tokens(vocab_size: int, seed: int, count: int = 100) -> list[int]:
    """Token ids, from a seed."""
    return np.random.default_rng(seed).integers(0, vocab_size, count).tolist()


def steps_of(scenario: str, ids: list[int], mtp: bool) -> Tokens:
    """What a scenario feeds, step by step: {"tokens", "before"}; of a batch, lists. mtp: whether the model drafts."""
    if scenario == "decode":
        return pieces_of(ids, {"prefill": 65, "decode 1": 66, "decode 2": 67, "decode 3": 68})
    if scenario == "pieces":
        return pieces_of(ids, {"piece 1": 17, "piece 2": 19, "piece 3": 49})
    if scenario == "gradients":
        return pieces_of(ids, {"gradients": 20})
    if scenario == "padded":
        rows = [ids[:21], ids[21:55], ids[55:58]]
        return {
            "padded": {"tokens": rows, "before": [[], [], []]},
            "padded decode": {"tokens": [[token] for token in ids[58:61]], "before": rows},
        }
    prompt = ids[:24]
    token, draft, wrong, other = ids[24:28]
    steps = {"prefill": {"tokens": prompt, "before": []}}
    if mtp:
        steps["draft 1"] = {"tokens": [token], "before": prompt, "drafts": 0}
        steps["draft 2"] = {"tokens": [token, draft], "before": prompt, "drafts": 1}
    steps["verify"] = {"tokens": [token, draft, wrong], "before": prompt}
    steps["rollback"] = {"tokens": [], "before": [*prompt, token, draft]}
    steps["next"] = {"tokens": [other], "before": [*prompt, token, draft]}
    return steps


def pieces_of(ids: list[int], ends: dict[str, int]) -> Tokens:
    """One sequence fed in pieces. ends: name of a step -> how many tokens have been fed after it."""
    steps = {}
    start = 0
    for step, end in ends.items():
        steps[step] = {"tokens": ids[start:end], "before": ids[:start]}
        start = end
    return steps


def run(
    model, tokens: Tokens, keys: Iterable[str] = ("*",), given: Steps | None = None
) -> tuple[Steps, dict[str, str]]:
    """What a qwen3_next model computes, step by step, and by key the source lines that do.

    given: values that steps begin with, of those for single layers. Raises ValueError naming the globs of `keys` that
    nothing fits in any step.
    """
    from verify.feeding import Feeder

    keys = list(keys)
    runner = Feeder(model, keys)
    steps: Steps = {}
    for step, fed in tokens.items():
        if fed.get("gradients"):
            steps[step] = run_gradients(model, fed["tokens"])
            continue
        found = runner.step(fed, (given or {}).get(step))
        steps[step] = {key: x.numpy() for key, x in found.items()}
    check_found(keys, {key for found in steps.values() for key in found})
    return steps, runner.lines


def run_gradients(model, ids: list[int]) -> dict[str, Array]:
    """Gradients by name of the parameter, and that of the embeddings, for the loss of predicting each next token."""
    import torch

    row = torch.tensor([ids], device=model.device)
    model.requires_grad_(True).zero_grad()
    embeds = model.model.embed_tokens(row)
    embeds.retain_grad()
    model(inputs_embeds=embeds, labels=row, output_router_logits=False).loss.backward()
    found = {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None}
    found["model.embed_tokens.out.grad"] = embeds.grad[0]
    return {key: (x.float() if x.itemsize < 4 else x).cpu().numpy() for key, x in found.items()}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, default=ROOT / "tiny", metavar="DIR")
    add("--out", type=Path, required=True, metavar="DIR")
    add("--scenario", nargs="+", choices=SCENARIOS, default=SCENARIOS)
    add("--dtype", default="auto")
    add("--keys", nargs="+", default=["*"], metavar="GLOB", help="'*.chunk.*' for the chunked form's own")
    add("--seed", type=int, default=0, help="of the tokens (default: 0)")
    add("--reference", action="store_true", help="reference_recurrent.py instead, float64")
    return parser.parse_args(arguments)


def write_scenarios(args: argparse.Namespace):
    """Writes a trace of each scenario asked for."""
    args.out.mkdir(parents=True, exist_ok=True)
    if args.reference:
        model = load_reference(args.model)
        mtp = "mtp.fc.weight" in model.tensors
        about = {"producer": "reference_recurrent.py", "dtype": "float64"}
    else:
        from qwen3_next import Qwen3NextForCausalLM

        model = Qwen3NextForCausalLM.from_pretrained(args.model, args.dtype)
        mtp = model.mtp is not None
        about = {"producer": "qwen3_next.py", "dtype": str(model.dtype).removeprefix("torch.")}
    ids = random_tokens(model.config.vocab_size, args.seed)
    for scenario in args.scenario:
        tokens = steps_of(scenario, ids, mtp)
        lines: dict[str, str] = {}
        if scenario == "gradients":
            if args.reference:
                continue
            steps = {scenario: run_gradients(model, tokens[scenario]["tokens"])}
        elif args.reference:
            steps = run_reference(model, tokens)
        else:
            steps, lines = run(model, tokens, args.keys)
        path = args.out / f"{scenario}.safetensors"
        write_trace(path, steps, tokens, folder=args.model, lines=lines, **about)
        print(f"{path}: {sum(map(len, steps.values()))} tensors")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    return exit_code("scenarios.py", write_scenarios, parse_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
