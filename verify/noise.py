"""Measures how far rounding alone moves each value, and writes verify/noise.json, by which compare.py decides.

    python verify/noise.py

For each dtype: this project's model, in that dtype, against reference_recurrent.py in float64 on the same weights (all
of them bfloat16's), with the same experts chosen. Over tiny/ and the models of golden.py, two inputs each, and all
scenarios. A floor is the largest relative RMS error that a stage had; "chained" ones, where errors of the layers before
add up, are divided by the root of the layer's number.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
from qwen3_next import Qwen3NextForCausalLM  # noqa: E402
from reference_recurrent import Reference  # noqa: E402
from verify import golden, scenarios  # noqa: E402
from verify.compare import (  # noqa: E402  # noqa: E402
    IDS,
    LAYER,
    Trace,
    relative_error,
    rerun,
    sort_choices,
    split_batches,
    split_tokens,
    stage_of,
    usual_sizes,
)

DTYPES, SEEDS = ("float64", "float32", "bfloat16", "float16"), (0, 1)


def errors(model, reference: Reference, seed: int, isolated: bool):
    """(stage, depth, relative error) of every value of every scenario."""
    ids = scenarios.random_tokens(model.config.vocab_size, seed)
    for scenario in scenarios.PASSES:
        tokens = scenarios.steps_of(scenario, ids, model.mtp is not None)
        tokens = {step: told for step, told in tokens.items() if "drafts" not in told}
        steps, _ = scenarios.run(model, tokens)
        mine = split_batches(Trace(steps, tokens, {}), tokens, "right").steps
        have = {s: {k: x for k, x in found.items() if isolated or stage_of(k) == IDS} for s, found in mine.items()}
        ref = rerun(reference, split_tokens(tokens), have)
        scale = usual_sizes(ref)
        for step, found in ref.items():
            found, own = sort_choices(found), sort_choices(mine[step])
            for key in found.keys() & own.keys():
                stage, match = stage_of(key), LAYER.fullmatch(key)
                if stage not in (IDS, "mlp.margin"):
                    yield stage, int(match[2]) + 1 if match else 1, relative_error(found[key], own[key], scale[key])


def main():
    floors = {dtype: {mode: defaultdict(float) for mode in ("chained", "isolated")} for dtype in DTYPES}
    with tempfile.TemporaryDirectory() as folder:
        for name in (*golden.MODELS, "tiny"):
            place = golden.checkpoint(name, Path(folder))
            reference = Reference.from_pretrained(place)
            for dtype in DTYPES:
                model = Qwen3NextForCausalLM.from_pretrained(place, dtype)
                for mode, seed in ((mode, seed) for mode in ("chained", "isolated") for seed in SEEDS):
                    found = floors[dtype][mode]
                    for stage, depth, error in errors(model, reference, seed, mode == "isolated"):
                        error = error / math.sqrt(depth) if mode == "chained" else error
                        found[stage] = max(found[stage], error)
    content = {
        "about": "largest relative RMS error by dtype, mode and stage; made by verify/noise.py",
        "floors": {
            dtype: {
                mode: {stage: float(f"{max(x, 1e-16):.2g}") for stage, x in sorted(found.items())}
                for mode, found in modes.items()
            }
            for dtype, modes in floors.items()
        },
    }
    (HERE / "noise.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
