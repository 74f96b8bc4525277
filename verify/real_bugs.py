"""What the kit finds in a released transformers: runs the installed version through the scenarios, names first keys.

    pip install transformers==4.57.1 && python verify/real_bugs.py --json 4.57.1.json

On the random models of golden.py, float32, through transformers' own PyTorch code: a prompt and three tokens from the
cache, a continuation in three pieces, and a padded batch and one more token for each sequence, padding on either side.
Prints the first value that is not the reference's, or "agrees".
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
from reference_recurrent import Reference  # noqa: E402
from verify import compare, golden, scenarios  # noqa: E402
from verify.reference import run_reference  # noqa: E402
from verify.stages import Trace, is_batch, split_batches  # noqa: E402

SCENARIOS = {"decode": "right", "pieces": "right", "padded, right": "right", "padded, left": "left"}


def hooked(model, trace: dict, shape: tuple[int, int]) -> list:
    """Hooks that record every module's output under our keys; (rows, ...) becomes (batch, token, ...)."""
    import torch

    def record(name: str, output):
        outputs = output if isinstance(output, tuple) else (output,)
        keys = [f"{name}.out"]
        if name.endswith("mlp.gate"):  # logits, weights, choice, in transformers 5
            keys += [name.replace("gate", "topk_weights"), name.replace("gate", "topk_ids")]
        for key, x in zip(keys, outputs):
            if isinstance(x, torch.Tensor) and x.ndim > 1:
                tokens = shape[0] * shape[1]
                if x.ndim == 2 and x.shape[0] % tokens == 0:
                    heads = (x.shape[0] // tokens,) if x.shape[0] > tokens else ()
                    x = x.reshape(*shape, *heads, *x.shape[1:])
                trace[key] = x.detach().double().numpy() if x.is_floating_point() else x.numpy()

    names = [(name, module) for name, module in model.named_modules() if name]
    return [m.register_forward_hook(lambda mod, args, out, name=name: record(name, out)) for name, m in names]


def run(model, tokens: dict[str, dict], padding: str) -> dict[str, dict[str, np.ndarray]]:
    """transformers' model through the steps of a scenario, with its own cache."""
    import torch

    steps = {}
    cache = mask = None
    for step, fed in tokens.items():
        batch = is_batch(fed["tokens"])
        rows = fed["tokens"] if batch else [fed["tokens"]]
        width = max(map(len, rows))
        ids = torch.tensor([padded(row, width, padding) for row in rows])
        real = torch.tensor([padded([1] * len(row), width, padding) for row in rows])
        mask = real if mask is None else torch.cat([mask, real], 1)
        given = {}
        if len(rows) > 1:
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            given = {"attention_mask": mask, "position_ids": positions[:, -width:]}
        trace: dict[str, np.ndarray] = {}
        hooks = hooked(model, trace, tuple(ids.shape))
        with torch.no_grad():
            out = model(ids, past_key_values=cache, use_cache=True, **given)
        for hook in hooks:
            hook.remove()
        cache = out.past_key_values
        steps[step] = {key: x if batch else x[0] for key, x in trace.items() if x.shape[:1] == (len(rows),)}
    return steps


def padded(row: list[int], width: int, side: str) -> list[int]:
    """A row with zeros up to a width, on the left or on the right."""
    zeros = [0] * (width - len(row))
    return zeros + row if side == "left" else row + zeros


def describe(done: compare.Comparison) -> str:
    """The first wrong key, how wrong it is and how wrong the logits are."""
    if done.first is None:
        return "agrees"
    wrong = [row for row in done.rows if row.verdict == "differs"]
    logits = max((row.relative for row in wrong if row.key == "lm_head.out"), default=0.0)
    found = f"{done.first.name} (relative error {done.first.relative:.2g}; at the logits {logits:.2g})"
    other = [row.name for row in wrong if not row.key.endswith("mlp.gate.out")]
    return found + (f", then {other[0]}" if done.first.key.endswith("mlp.gate.out") and other else "")


def main():
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in golden.MODELS:
            golden.write_model(name, place := Path(folder) / name)
            reference = Reference.from_pretrained(place)
            more = {"experts_implementation": "eager"} if transformers.__version__ >= "5" else {}
            model = transformers.Qwen3NextForCausalLM.from_pretrained(place, dtype=torch.float32, **more).eval()
            ids = scenarios.random_tokens(reference.config.vocab_size, 0)
            for scenario, padding in SCENARIOS.items():
                tokens = scenarios.steps_of(scenario.partition(",")[0], ids, False)
                ref = Trace(run_reference(reference, tokens), tokens, {})
                try:
                    steps = run(model, tokens, padding)
                    mine = split_batches(Trace(steps, tokens, {}), tokens, padding)
                    ref = split_batches(ref, tokens, "right")
                    done = compare.compare(ref, mine, dtype="float32", reference=reference)
                    found = describe(done)
                except Exception as error:
                    found = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
                results[f"{name}: {scenario}"] = found
                print(transformers.__version__, name, scenario, found, sep=" | ")
    if args.json:
        content = {"transformers": transformers.__version__, "torch": torch.__version__, "first": results}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
