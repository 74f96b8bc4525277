"""Golden vectors, version 2: every level, for the four models of cases.py, whose files are shipped with them.

    python verify/golden_v2.py --check           computes everything again and compares with verify/golden/v2/
    python verify/golden_v2.py --add             writes what is not there yet; files that are there stay as they are

Vectors of one version never change: what a port agreed with once, it has to agree with for ever. A version may grow.

Everything but the gradients is what reference_recurrent.py computes in float64, stored as float32. The gradients are
qwen3_next.py's in float64. --check compares them with the reference's own loss: with its change along a random
direction of each parameter.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
from reference_recurrent import Reference  # noqa: E402
from verify import ops  # noqa: E402
from verify.cases import CASES, MODELS, write_model  # noqa: E402
from verify.golden import differences, sha256  # noqa: E402
from verify.reference import run_reference  # noqa: E402
from verify.stages import read_trace, stage_of, write_trace  # noqa: E402

GOLDEN = HERE / "golden" / "v2"
PRODUCER = "reference_recurrent.py, golden vectors version 2"
Steps = dict[str, dict[str, np.ndarray]]


def folder_of(model: str) -> Path:
    """The checkpoint that is shipped."""
    return GOLDEN / "models" / model


def stored(x: np.ndarray) -> np.ndarray:
    """As a file holds it: float32, or int32."""
    return x.astype(np.float32 if x.dtype.kind == "f" else np.int32)


def vectors(name: str) -> tuple[Steps, dict[str, dict]]:
    """A case's steps, thinned, as they are stored; and what each was fed. Gradients are left out."""
    case = CASES[name]
    reference = Reference.from_pretrained(folder_of(case.model))
    fed = case.fed(reference.config.vocab_size)
    width = reference.read("model.norm.weight").size
    steps = run_reference(reference, fed, case.given(width))
    kept = {}
    for step, found in steps.items():
        inputs = fed[step].get("inputs", [])
        keys = [key for key in found if key in inputs or case.kept(step, key) and stage_of(key) != "mlp.margin"]
        kept[step] = {key: stored(found[key]) for key in keys}
    return kept, fed


# ---- Gradients ------------------------------------------------------------------------------------------------------


class Moved(Reference):
    """The reference with one weight, or the embedded tokens, moved along a direction."""

    move: tuple[str, np.ndarray] | None = None

    def read(self, name: str, index: object = ...) -> np.ndarray:
        x = super().read(name, index)
        return x + self.move[1][index] if self.move and self.move[0] == name else x

    def tap(self, key: str, x: np.ndarray) -> np.ndarray:
        x = super().tap(key, x)
        return x + self.move[1] if self.move and self.move[0] == key else x


def loss(reference: Reference, ids: list[int]) -> float:
    """The mean cross-entropy of each next token."""
    logits = reference.logits(ids)[:-1]
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return -float(np.mean(log_p[np.arange(len(ids) - 1), ids[1:]]))


def gradients(name: str) -> dict[str, np.ndarray]:
    """By automatic differentiation, of qwen3_next.py in float64."""
    from qwen3_next import Qwen3NextForCausalLM
    from verify.scenarios import run_gradients

    case = CASES[name]
    model = Qwen3NextForCausalLM.from_pretrained(folder_of(case.model), "float64")
    return run_gradients(model, case.fed(model.config.vocab_size)["gradients"]["tokens"])


def wrong_gradients(name: str, found: dict[str, np.ndarray], step: float = 1e-5) -> list[str]:
    """The keys whose values are not the slope of the reference's loss along a random direction."""
    case = CASES[name]
    reference = Moved.from_pretrained(folder_of(case.model))
    ids = case.fed(reference.config.vocab_size)["gradients"]["tokens"]
    rng = np.random.default_rng(0)
    wrong = []
    for key, gradient in found.items():
        direction = rng.standard_normal(gradient.shape)
        losses = []
        for sign in (1, -1):
            reference.move = key.removesuffix(".grad"), sign * step * direction
            losses.append(loss(reference, ids))
        slope = (losses[0] - losses[1]) / (2 * step)
        expected = float(np.sum(gradient * direction))
        size = float(np.sqrt(np.sum(np.square(gradient, dtype=np.float64)))) + 1e-6  # a usual slope
        if abs(slope - expected) > 1e-4 * size:
            wrong.append(f"{name}: {key}: the loss changes by {slope:.6g}, the gradient says {expected:.6g}")
    return wrong


# ---- Command line ---------------------------------------------------------------------------------------------------


def check() -> list[str]:
    """What differs from the stored files: values, keys, whole files, or the sums of the checkpoints."""
    sums = (GOLDEN / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    wrong = [line for line in sums_of_files() if line not in sums]
    unused = {path.stem for path in GOLDEN.glob("*.safetensors")} - CASES.keys()
    for name in CASES:
        path = GOLDEN / f"{name}.safetensors"
        steps, fed = vectors(name)
        if "gradients" in fed:
            wrong += wrong_gradients(name, read_trace(path).steps["gradients"])
        else:
            wrong += differences(path, steps)
    for name, (steps, _) in ops.vectors().items():
        wrong += differences(GOLDEN / "ops" / f"{name}.safetensors", steps)
    return wrong + [f"{name} is stored, but was not computed" for name in sorted(unused)]


def sums_of_files() -> list[str]:
    """The lines of SHA256SUMS."""
    paths = sorted([*GOLDEN.rglob("*.safetensors"), *GOLDEN.rglob("config.json")])
    return [f"{sha256(path)}  {path.relative_to(GOLDEN).as_posix()}" for path in paths]


def add():
    """Writes the checkpoints and vectors that are not there yet, and the sums of all."""
    (GOLDEN / "ops").mkdir(parents=True, exist_ok=True)
    for name, (steps, fed) in ops.vectors().items():
        path = GOLDEN / "ops" / f"{name}.safetensors"
        if not path.exists():
            write_trace(path, steps, fed, producer=PRODUCER, dtype="float64", folder=None)
    for model in MODELS:
        if not folder_of(model).exists():
            write_model(model, folder_of(model))
    for name, case in CASES.items():
        path = GOLDEN / f"{name}.safetensors"
        if path.exists():
            continue
        steps, fed = vectors(name)
        if "gradients" in fed:
            steps["gradients"] = {key: stored(x) for key, x in gradients(name).items()}
        write_trace(path, steps, fed, producer=PRODUCER, dtype="float64", folder=folder_of(case.model))
    (GOLDEN / "SHA256SUMS").write_text("\n".join(sums_of_files()) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--check", action="store_true")
    task.add_argument("--add", action="store_true")
    args = parser.parse_args()
    if args.add:
        add()
        return 0
    wrong = check()
    print(*(wrong or ["all as stored"]), sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
