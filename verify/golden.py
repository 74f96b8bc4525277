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
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
from reference_recurrent import Reference  # noqa: E402
from verify.measures import relative_error  # noqa: E402
from verify.reference import run_reference  # noqa: E402
from verify.scenarios import random_tokens, steps_of  # noqa: E402
from verify.stages import read_trace, stage_of, write_trace  # noqa: E402

VERSION = 1
NOT_IN_THIS_VERSION = ["linear_attn.v_conv"]  # stages that came later; a new version takes them up
BASE = {
    "model_type": "qwen3_next",
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "full_attention_interval": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "attention_bias": False,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 10,
    "linear_value_head_dim": 7,
    "linear_conv_kernel_dim": 4,
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 9,
    "shared_expert_intermediate_size": 11,
    "intermediate_size": 20,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
MODELS = {  # name: what differs from BASE, and whether there is an MTP layer
    "odd": ({}, True),
    "dense": (
        {
            "num_experts": 0,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 3,
            "linear_conv_kernel_dim": 3,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        },
        False,
    ),
    "mixed": (
        {
            "layer_types": ["full_attention", "linear_attention", "full_attention", "linear_attention"],
            "decoder_sparse_step": 2,
            "norm_topk_prob": False,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_conv_kernel_dim": 2,
            "num_key_value_heads": 1,
        },
        True,
    ),
}
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
            "layers.0.self_attn.q_rope",
            "layers.1.linear_attn.g",
            *STATES[:1],
        ],
        "pieces": ["layers.1.linear_attn.state", "layers.7.out"],
        "padded": ["layers.1.linear_attn.state", "layers.7.out"],
        "speculation": ["mtp.fc", "mtp.norm", "layers.1.linear_attn.state", "layers.7.out"],
    },
}


def weights(fields: dict, mtp: bool, seed: int) -> dict[str, np.ndarray]:
    """A checkpoint's tensors, float32 that bfloat16 can hold, large enough that every term shows."""
    c, rng, shapes = fields, np.random.default_rng(seed), {}
    D, H, dim, kv = c["hidden_size"], c["num_attention_heads"], c["head_dim"], c["num_key_value_heads"]
    keys, values = (c[f"linear_num_{x}_heads"] * c[f"linear_{x}_head_dim"] for x in ("key", "value"))
    heads, interval = c["linear_num_value_heads"], c["full_attention_interval"]
    kinds = c.get("layer_types") or ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(4)]
    sparse = [c["num_experts"] > 0 and (i + 1) % c["decoder_sparse_step"] == 0 for i in range(4)]
    layers = [(f"model.layers.{i}.", kind, moe) for i, (kind, moe) in enumerate(zip(kinds, sparse))]
    layers += [("mtp.layers.0.", "full_attention", c["num_experts"] > 0)] * mtp
    shapes["model.embed_tokens.weight"] = (c["vocab_size"], D)
    for p, kind, moe in layers:
        shapes |= {p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,)}
        if kind == "full_attention":
            widths = {"q": (2 * H * dim, D), "k": (kv * dim, D), "v": (kv * dim, D), "o": (D, H * dim)}
            shapes |= {f"{p}self_attn.{x}_proj.weight": shape for x, shape in widths.items()}
            shapes |= {f"{p}self_attn.{x}_norm.weight": (dim,) for x in "qk"}
            if c["attention_bias"]:
                shapes |= {f"{p}self_attn.{x}_proj.bias": shape[:1] for x, shape in widths.items()}
        else:
            a, channels = p + "linear_attn.", 2 * keys + values
            shapes |= {a + "in_proj_qkvz.weight": (channels + values, D), a + "in_proj_ba.weight": (2 * heads, D)}
            shapes |= {
                a + "conv1d.weight": (channels, 1, c["linear_conv_kernel_dim"]),
                a + "out_proj.weight": (D, values),
            }
            shapes |= {a + "A_log": (heads,), a + "dt_bias": (heads,), a + "norm.weight": (c["linear_value_head_dim"],)}
        names = {p + "mlp.": c["intermediate_size"]}
        if moe:
            names = {f"{p}mlp.experts.{e}.": c["moe_intermediate_size"] for e in range(c["num_experts"])}
            names[p + "mlp.shared_expert."] = c["shared_expert_intermediate_size"]
            shapes |= {p + "mlp.gate.weight": (c["num_experts"], D), p + "mlp.shared_expert_gate.weight": (1, D)}
        for name, inner in names.items():
            shapes |= {name + "gate_proj.weight": (inner, D), name + "up_proj.weight": (inner, D)}
            shapes[name + "down_proj.weight"] = (D, inner)
    shapes["model.norm.weight"] = (D,)
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (c["vocab_size"], D)
    if mtp:
        shapes |= {f"mtp.{x}.weight": (D,) for x in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")}
        shapes["mtp.fc.weight"] = (D, 2 * D)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        x = rng.standard_normal(shape)
        if name.endswith("A_log"):
            x = x - 1  # decays from 0.3 to 0.98 a token
        elif len(shape) == 1:
            x = 0.4 * x + name.endswith("linear_attn.norm.weight")
        elif not name.endswith(("embed_tokens.weight", "conv1d.weight")):
            x = x / np.sqrt(shape[-1])
        bits = x.astype(np.float32).view(np.uint32)
        tensors[name] = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # bfloat16, to nearest even
    return tensors


def write_model(name: str, folder: Path):
    """Writes one of MODELS as a checkpoint."""
    changes, mtp = MODELS[name]
    fields = {**BASE, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    header, data = {}, b""
    for key, x in weights(fields, mtp, seed=sorted(MODELS).index(name)).items():
        header[key] = {"dtype": "BF16", "shape": x.shape, "data_offsets": (len(data), len(data) + x.nbytes)}
        data += x.astype("<u2").tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


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
