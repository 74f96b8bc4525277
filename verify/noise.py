"""Measures how far rounding alone moves each value, and writes verify/noise.json, by which compare.py decides.

    python verify/noise.py

For each dtype, this project's model in that dtype is compared with reference_recurrent.py in float64: the same weights
(all of them bfloat16's), the same experts chosen, over tiny/ and the models of golden.py, four inputs each, and all
scenarios. What is stored of a stage, its floor, is the largest relative RMS error that it had. The "chained" ones, to
which the errors of the layers before add up, are divided by the root of the layer's number. These models are narrow:
what wider sums lose is measured by noise_sums.py, and stays in the file.
"""

from __future__ import annotations

import itertools
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
from verify.compare import sort_choices  # noqa: E402
from verify.measures import relative_error, usual_sizes  # noqa: E402
from verify.reference import rerun  # noqa: E402
from verify.stages import IDS, LAYER, Trace, split_batches, split_tokens, stage_of  # noqa: E402

DTYPES = ("float64", "float32", "bfloat16", "float16")
MODES = ("chained", "isolated")
SEEDS = (0, 1, 2, 3)


def errors(model, reference: Reference, seed: int, isolated: bool):
    """(stage, depth, relative error) of every value of every scenario."""
    ids = scenarios.random_tokens(model.config.vocab_size, seed)
    for scenario in scenarios.PASSES:
        tokens = scenarios.steps_of(scenario, ids, model.mtp is not None)
        tokens = {step: fed for step, fed in tokens.items() if "drafts" not in fed}
        steps, _ = scenarios.run(model, tokens)
        mine = split_batches(Trace(steps, tokens, {}), tokens, "right").steps
        have = {s: {k: x for k, x in found.items() if isolated or stage_of(k) == IDS} for s, found in mine.items()}
        ref = rerun(reference, split_tokens(tokens), have)
        sizes = usual_sizes(ref)
        for step in ref:
            theirs = sort_choices(ref[step])
            ours = sort_choices(mine[step])
            for key in theirs.keys() & ours.keys():
                stage = stage_of(key)
                match = LAYER.fullmatch(key)
                if stage not in (IDS, "mlp.margin"):
                    depth = int(match[2]) + 1 if match else 1
                    yield stage, depth, relative_error(theirs[key], ours[key], sizes[key])


def main():
    floors = {dtype: {mode: defaultdict(float) for mode in MODES} for dtype in DTYPES}
    with tempfile.TemporaryDirectory() as folder:
        for name in (*golden.MODELS, "tiny"):
            place = golden.checkpoint(name, Path(folder))
            reference = Reference.from_pretrained(place)
            for dtype, mode, seed in itertools.product(DTYPES, MODES, SEEDS):
                model = Qwen3NextForCausalLM.from_pretrained(place, dtype)
                found = floors[dtype][mode]
                for stage, depth, error in errors(model, reference, seed, mode == "isolated"):
                    if mode == "chained":
                        error = error / math.sqrt(depth)
                    found[stage] = max(found[stage], error)
    rounded = {
        dtype: {
            mode: {stage: float(f"{max(x, 1e-16):.2g}") for stage, x in sorted(found.items())}
            for mode, found in modes.items()
        }
        for dtype, modes in floors.items()
    }
    about = "largest relative RMS error by dtype, mode and stage; made by verify/noise.py"
    content = json.loads((HERE / "noise.json").read_bytes()) | {"about": about, "floors": rounded}
    (HERE / "noise.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
