"""Golden vectors: what reference_recurrent.py computes, in float64, for four small models; stored as float32.

    python verify/golden.py --models DIR         writes the three random checkpoints that the vectors belong to
    python verify/golden.py --check              computes everything again and compares with verify/golden/
    python verify/golden.py --write              for a new version only: vectors of one version never change

The fourth model is tiny/. The random ones have shapes that convenient code gets wrong: widths that are no powers of
two, one key head or three, K unlike V, an even or an odd kernel, tied embeddings, biases, YaRN, dense layers, layers in
another order. Their weights come from NumPy's PCG64 with a fixed seed, rounded to bfloat16; SHA256SUMS has the sums of
the checkpoints and of the vectors.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
from reference_recurrent import Reference  # noqa: E402
from verify.measures import relative_error  # noqa: E402
from verify.random_models import MODELS, write_model  # noqa: E402
from verify.reference import run_reference  # noqa: E402
from verify.scenarios import random_tokens, steps_of  # noqa: E402
from verify.stages import read_trace, stage_of, write_trace  # noqa: E402

VERSION = 1
NOT_IN_THIS_VERSION = ["linear_attn.v_conv"]  # stages that came later; a new version takes them up
STATES, ENDS = ["linear_attn.state", "conv_state", "delta_out"], ["layers.3.out", "model.norm.out", "lm_head.out"]
MIXERS = ["linear_attn.q_l2norm", "linear_attn.k_l2norm", ".g", "beta", "q_rope", "k_rope", "attn_out", "norm.out"]
ROUTING = ["router_probs", "topk", "mlp.out"]
KEEP = {  # model: scenario -> parts of the names of what is kept
    "odd": {
        "decode": [".layers.0.", ".layers.3.", "embed_tokens", "model.norm.out", "lm_head", "mtp."],
        "pieces": STATES[:2] + ENDS,
        "padded": [*STATES, *ENDS],
        "speculation": ["mtp.", *STATES[:2], *ENDS],
    },
    "dense": {"decode": [".layers.0.", *MIXERS, *STATES, *ENDS], "padded": [*STATES[:2], *ENDS]},
    "mixed": {
        "decode": [*MIXERS, *ROUTING, *STATES, *ENDS],
        "padded": [*STATES[:2], *ENDS],
        "speculation": ["mtp.", *ENDS],
    },
    "tiny": {
        "decode": [
            ".layers.0.out",
            ".layers.7.out",
            "layers.3.self_attn.q_rope",
            "layers.0.linear_attn.g",
            "layers.6.linear_attn.state",
        ],
        "pieces": ["layers.0.linear_attn.state", "layers.7.out"],
        "padded": ["layers.0.linear_attn.state", "layers.7.out"],
        "speculation": ["mtp.fc", "mtp.norm", "layers.0.linear_attn.state", "layers.7.out"],
    },
}


def checkpoint(name: str, folder: Path) -> Path:
    """Where a model is: tiny/, or one of MODELS, written into the folder."""
    if name == "tiny":
        return HERE.parent / "tiny"
    write_model(name, folder / name)
    return folder / name


def vectors(name: str, folder: Path) -> dict[str, tuple[dict, dict]]:
    """scenario -> its steps, thinned and in float32, and what each was fed."""
    reference = Reference.from_pretrained(folder)
    mtp = "mtp.fc.weight" in reference.tensors
    ids = random_tokens(reference.config.vocab_size, 0)
    found = {}
    for scenario, parts in KEEP[name].items():
        tokens = steps_of(scenario, ids, mtp)
        steps = run_reference(reference, tokens)
        for step, arrays in steps.items():
            last = step in ("decode 3", "next")
            steps[step] = {}
            for key, x in arrays.items():
                wanted = any(part in key for part in parts) or (last and key == "lm_head.out")
                if wanted and not key.endswith("margin") and stage_of(key) not in NOT_IN_THIS_VERSION:
                    steps[step][key] = x.astype(np.float32 if x.dtype == np.float64 else np.int32)
        found[scenario] = steps, tokens
    return found


def differences(path: Path, steps: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """Where a stored file and what was computed now differ, or one of them lacks a key."""
    stored = read_trace(path).steps
    wrong = []
    for step in sorted(stored.keys() | steps.keys()):
        old = stored.get(step, {})
        new = steps.get(step, {})
        for key in sorted(old.keys() | new.keys()):
            if key not in new:
                wrong.append(f"{path.name}: {step}/{key} is stored, but was not computed")
            elif key not in old:
                wrong.append(f"{path.name}: {step}/{key} was computed, but is not stored")
            elif relative_error(old[key].astype(float), new[key].astype(float)) > 1e-6:
                wrong.append(f"{path.name}: {step}/{key}")
    return wrong


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def all_vectors():
    """Each model's name and checkpoint, and its vectors as `vectors` has them."""
    with tempfile.TemporaryDirectory() as folder:
        for name in (*MODELS, "tiny"):
            place = checkpoint(name, Path(folder))
            yield name, place, vectors(name, place)


def check(golden: Path) -> list[str]:
    """What differs from the stored files: values, keys, whole files, or the sums of the checkpoints."""
    sums = (golden / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    unused = {path.name for path in golden.glob("*.safetensors")}
    wrong = []
    for name, place, scenarios in all_vectors():
        line = f"{sha256(place / 'model.safetensors')}  {name}/model.safetensors"
        if line not in sums:
            wrong.append(line)
        for scenario, (steps, _) in scenarios.items():
            path = golden / f"{name}-{scenario}.safetensors"
            wrong += differences(path, steps)
            unused.discard(path.name)
    return wrong + [f"{name} is stored, but was not computed" for name in sorted(unused)]


def write(golden: Path):
    """Writes the vectors, and the sums of checkpoints and vectors."""
    golden.mkdir(parents=True, exist_ok=True)
    producer = f"reference_recurrent.py, golden vectors version {VERSION}"
    sums = []
    for name, place, scenarios in all_vectors():
        sums.append(f"{sha256(place / 'model.safetensors')}  {name}/model.safetensors\n")
        for scenario, (steps, tokens) in scenarios.items():
            path = golden / f"{name}-{scenario}.safetensors"
            write_trace(path, steps, tokens, producer=producer, dtype="float64", folder=place)
            sums.append(f"{sha256(path)}  {path.name}\n")
    (golden / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--models", type=Path, metavar="DIR")
    task.add_argument("--check", action="store_true")
    task.add_argument("--write", action="store_true")
    args = parser.parse_args()
    golden = HERE / "golden" / f"v{VERSION}"
    if args.models:
        for name in MODELS:
            write_model(name, args.models / name)
            print(args.models / name)
        return 0
    if args.write:
        write(golden)
        return 0
    wrong = check(golden)
    print(*(wrong or ["all as stored"]), sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
