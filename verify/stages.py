"""The names of Qwen3-Next's intermediate values, and the file that carries them from one program to another.

STAGES is the table of everything that the kit compares, in the order of the forward pass. For each stage it has the
axes and the equation. The full name of a value, its key, is the checkpoint's path of the module and then the stage, as
in "model.layers.3.linear_attn.g".

A trace is a safetensors file with a tensor for each key. If it holds several passes (steps), the step's name comes
first: "decode 1/model.layers.3.linear_attn.g". Its metadata has "format" and "manifest", a JSON object:

    producer   the program that wrote the file
    dtype      what the forward pass computed in, such as "bfloat16"; the values are stored as float32 or float64
    config     config.json's content, and config_sha256, its hash (keys sorted, no spaces)
    steps      name -> {"tokens": the new ones, "before": those in the cache already}; of a batch, a list per sequence;
               and "drafts": n, "slots": [..], "starts": [..], "layers": [A, B], "inputs": keys; see SPEC.md
    order      all keys in the order they were computed
    stages     stage -> {"axes": names, "equation": text, "line": the source line that computes it}
    left_out   step -> keys that the reference computed and left out, because the file it was to be like lacks them

The values of a single sequence have no batch axis. In a batch they are (batch, token, ...), each sequence begins at
token 0, and what follows its last token means nothing.

Needs NumPy and safetensors, nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import deserialize
from safetensors.numpy import save_file

Array = np.ndarray
FORMAT = "qwen3-next-trace/1"

# ---- The table ------------------------------------------------------------------------------------------------------

RMS_NORM = "x / rms(x) * (1 + w), over the last axis, in float32"
SHARED = "of the shared expert, which sees every token"
STAGES: dict[str, tuple[str, str]] = {  # stage: axes, equation
    "model.embed_tokens.out": ("token channel", "E[token]"),
    "mtp.pre_fc_norm_embedding.out": ("token channel", RMS_NORM + ", of the embedding of the next token"),
    "mtp.pre_fc_norm_hidden.out": ("token channel", RMS_NORM + ", of model.norm.out, or after a draft mtp.norm.out"),
    "mtp.fc.out": ("token channel", "W [embedding | hidden]"),
    "input_layernorm.out": ("token channel", RMS_NORM),
    "linear_attn.in_proj_qkvz.out": ("token row", "W x; rows of each key head together: q | k | v of its heads | z"),
    "linear_attn.in_proj_ba.out": ("token row", "W x; rows of each key head together: b | a"),
    "linear_attn.q": ("token key_head key_dim", "from in_proj_qkvz"),
    "linear_attn.k": ("token key_head key_dim", "from in_proj_qkvz"),
    "linear_attn.v": ("token value_head value_dim", "from in_proj_qkvz, before the convolution"),
    "linear_attn.z": ("token value_head value_dim", "from in_proj_qkvz"),
    "linear_attn.b": ("token value_head", "from in_proj_ba"),
    "linear_attn.a": ("token value_head", "from in_proj_ba"),
    "linear_attn.conv_out": (
        "token channel",
        "silu(sum_j w_j x_{t - kernel + 1 + j}); channels: all q | all k | all v",
    ),
    "linear_attn.v_conv": (
        "token value_head value_dim",
        "the last H V channels of conv_out, cut into heads: the v that the delta rule gets",
    ),
    "linear_attn.q_l2norm": (
        "token value_head key_dim",
        "q / sqrt(|q|^2 + 1e-6) * K^-0.5; value head h: key head h // r",
    ),
    "linear_attn.k_l2norm": ("token value_head key_dim", "k / sqrt(|k|^2 + 1e-6); value head h: key head h // r"),
    "linear_attn.g": ("token value_head", "-exp(A_log) softplus(a + dt_bias), the log of the decay"),
    "linear_attn.beta": ("token value_head", "sigmoid(b)"),
    "linear_attn.chunk.A": ("value_head chunk row column", "beta_i e^(G_i - G_j) k_i . k_j, j < i"),
    "linear_attn.chunk.M": ("value_head chunk row column", "(I + A)^-1 diag(beta)"),
    "linear_attn.chunk.u": ("value_head chunk row value_dim", "M v"),
    "linear_attn.chunk.w": ("value_head chunk row key_dim", "M (e^G k)"),
    "linear_attn.chunk.state": ("value_head key_dim value_dim", "S before the chunk"),
    "linear_attn.delta_out": ("token value_head value_dim", "S <- e^g S; S <- S + k beta (v - S^T k)^T; out = S^T q"),
    "linear_attn.state": ("value_head key_dim value_dim", "S after the last token"),
    "linear_attn.conv_state": ("channel tap", "the convolution's last kernel - 1 inputs, before silu"),
    "linear_attn.norm.out": ("token value_head value_dim", "o / rms(o) * w * silu(z): w itself, norm before gate"),
    "linear_attn.out_proj.out": ("token channel", "W norm.out"),
    "self_attn.q_proj.out": ("token row", "W x; rows of each head together: query | gate"),
    "self_attn.k_proj.out": ("token row", "W x"),
    "self_attn.v_proj.out": ("token row", "W x"),
    "self_attn.q": ("token head head_dim", "first half of each head of q_proj"),
    "self_attn.gate": ("token head head_dim", "second half of each head of q_proj"),
    "self_attn.q_norm.out": ("token head head_dim", RMS_NORM),
    "self_attn.k_norm.out": ("token kv_head head_dim", RMS_NORM),
    "self_attn.q_rope": (
        "token head head_dim",
        "pairs (i, i + R/2), i < R/2, turned by t theta^(-2i/R); the rest as it is",
    ),
    "self_attn.k_rope": ("token kv_head head_dim", "as q_rope"),
    "self_attn.attn_out": ("token head head_dim", "softmax(q . k head_dim^-0.5) v, causal; head h: kv head h // group"),
    "self_attn.o_proj.out": ("token channel", "W (attn_out * sigmoid(gate))"),
    "post_attention_layernorm.out": ("token channel", RMS_NORM + ", of x + the mixer's output"),
    "mlp.gate.out": ("token expert", "router logits, W x"),
    "mlp.router_probs": ("token expert", "softmax over all experts, in float32"),
    "mlp.margin": ("token", "probability of the last expert chosen, less that of the next"),
    "mlp.topk_ids": ("token choice", "the likeliest num_experts_per_tok experts"),
    "mlp.topk_weights": ("token choice", "their probabilities, divided by their sum (norm_topk_prob)"),
    "mlp.experts.out": ("token channel", "sum_e weight_e down_e(silu(gate_e x) * up_e x)"),
    "mlp.shared_expert_gate.out": ("token one", "w . x"),
    "mlp.shared_expert.gate_proj.out": ("token inner", "W x, " + SHARED),
    "mlp.shared_expert.up_proj.out": ("token inner", "W x, " + SHARED),
    "mlp.shared_expert.down_proj.out": ("token channel", "W (silu(gate) * up), " + SHARED),
    "mlp.out": ("token channel", "experts.out + sigmoid(shared_expert_gate) * shared_expert"),
    "mlp.gate_proj.out": ("token inner", "W x"),
    "mlp.up_proj.out": ("token inner", "W x"),
    "mlp.down_proj.out": ("token channel", "W (silu(gate) * up)"),
    "layer.out": ("token channel", "x + the mixer's output + the MLP's"),
    "model.norm.out": ("token channel", RMS_NORM),
    "lm_head.out": ("token vocabulary", "logits, W x"),
    "mtp.norm.out": ("token channel", RMS_NORM),
    "mtp.logits": ("token vocabulary", "lm_head of mtp.norm.out: row i is about token i + 2"),
}
RANK = {stage: number for number, stage in enumerate(STAGES)}
LAYER = re.compile(r"(model|mtp)\.layers\.(\d+)\.(.+)")
IDS = "mlp.topk_ids"
WEIGHTS = "mlp.topk_weights"
PROBS = "mlp.router_probs"
# Where each value head has values of its own: a program that orders the heads differently does so in all of these
VALUE_HEADS = [stage for stage, (axes, _) in STAGES.items() if "value_head" in axes and ".chunk." not in stage]
# Flat rows and channels, which a program may keep in an order of its own
ROWS = ("linear_attn.in_proj_qkvz.out", "linear_attn.in_proj_ba.out", "linear_attn.conv_out", "linear_attn.conv_state")


def stage_of(key: str) -> str:
    """A key without its layer: "linear_attn.g" of "model.layers.3.linear_attn.g"; "layer.out" of a layer's output."""
    match = LAYER.fullmatch(key)
    if match is None:
        return re.sub(r"chunk\.\d+\.", "chunk.", key)
    if match[3] == "out":
        return "layer.out"
    return re.sub(r"chunk\.\d+\.", "chunk.", match[3])


def axes_of(stage: str) -> list[str]:
    """The names of a stage's axes; none for a stage that the table does not have."""
    return STAGES[stage][0].split() if stage in STAGES else []


def is_per_token(key: str) -> bool:
    """Whether a key's values have a row for each token. States do not; a stage that the table lacks is taken to."""
    axes = axes_of(stage_of(key))
    return not axes or axes[0] == "token"


def forward_order(key: str) -> tuple:
    """Sorts keys as they are computed: embedding, layers, final norm and head; then MTP's, likewise."""
    match = LAYER.fullmatch(key)
    layer = int(match[2]) if match else 0
    of_mtp = key.startswith("mtp.")
    if match:
        section = 4 if of_mtp else 1
    elif of_mtp:
        section = 3 if ".pre_fc" in key or ".fc." in key else 5
    else:
        section = 0 if key == "model.embed_tokens.out" else 2
    return section, layer, RANK.get(stage_of(key), len(RANK)), key


# ---- Reading --------------------------------------------------------------------------------------------------------


LARGEST = 2**35  # bytes that an archive may unpack to
MANIFEST = {"producer": str, "dtype": str, "config": dict, "steps": dict, "order": list, "stages": dict}
MANIFEST |= {"left_out": dict}


class CannotCompare(ValueError):
    """Why a file or a pair of files is of no use, in one line."""


class NothingShared(CannotCompare):
    """Two traces without a key that both have."""


@dataclass
class Trace:
    """One file: name of a step -> key -> values; what each step was fed; the manifest, {} without one."""

    steps: dict[str, dict[str, Array]]
    tokens: dict[str, dict]
    manifest: dict


def read_safetensors(path: Path) -> tuple[dict[str, Array], dict]:
    """A safetensors file's tensors and metadata; bfloat16, which NumPy lacks, becomes float32."""
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"}
    kinds |= {f"{sign.upper()}{8 * size}": f"<{sign}{size}" for sign in "iu" for size in (1, 2, 4, 8)}
    data = path.read_bytes()
    header_size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + header_size]).get("__metadata__") or {}
    arrays = {}
    for name, entry in deserialize(data):
        kind = entry["dtype"]
        if kind not in kinds:
            raise ValueError(f"{name} has dtype {kind}, expected one of {', '.join(kinds)}")
        x = np.frombuffer(entry["data"], kinds[kind]).reshape(entry["shape"])
        if kind == "BF16":  # the upper half of a float32
            x = (x.astype(np.uint32) << 16).view(np.float32)
        arrays[name] = x
    return arrays, metadata


def read_npz(path: Path) -> tuple[dict[str, Array], dict]:
    """The same of a NumPy archive, which has no metadata. A few megabytes of it may unpack to any size."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > LARGEST:
        raise ValueError(f"unpacks to {size / 1e9:.1f} GB, expected at most {LARGEST / 1e9:.1f} GB")
    with np.load(path) as file:
        return {name: file[name] for name in file.files}, {}


def read_arrays(path: Path) -> tuple[dict[str, Array], dict]:
    """The tensors of a .safetensors or .npz file, and its metadata. Raises CannotCompare."""
    try:
        arrays, metadata = read_npz(path) if path.suffix == ".npz" else read_safetensors(path)
        for name, x in arrays.items():
            if x.dtype.kind not in "fiub":
                raise ValueError(f"{name} holds {x.dtype}, expected real numbers")
        return arrays, metadata
    except Exception as error:  # whatever the libraries raise for a file that is not what it should be
        raise CannotCompare(f"{path}: {' '.join(str(error).split())}") from None


def rename(name: str, aliases: list[dict]) -> list[tuple[str, dict]]:
    """The keys that an alias file has for a name, each with its entry; a name that fits no entry stays as it is.

    An entry: {"name": regular expression, "key": template or several ("" drops the value), "transpose": order of the
    axes, if it is another}.
    """
    for entry in aliases:
        match = re.fullmatch(entry["name"], name)
        if match:
            keys = entry["key"] if isinstance(entry["key"], list) else [entry["key"]]
            return [(match.expand(key), entry) for key in keys if key]
    return [(name, {})]


def widened(x: Array) -> Array:
    """Numbers with a fraction in float64; integers as they are."""
    return x if x.dtype.kind in "iub" else x.astype(np.float64)


def read_trace(path: str | Path, aliases: list[dict] = ()) -> Trace:
    """A trace file, under our keys. Raises CannotCompare."""
    path = Path(path)
    arrays, metadata = read_arrays(path)
    if metadata.get("format", FORMAT) != FORMAT:
        raise CannotCompare(f"{path}: format is {metadata['format']!r}, expected {FORMAT!r}")
    try:
        manifest = json.loads(metadata.get("manifest", "{}"))
    except ValueError:
        raise CannotCompare(f"{path}: its manifest is not JSON") from None
    if not isinstance(manifest, dict):
        raise CannotCompare(f"{path}: its manifest is {manifest!r:.99}, expected an object")
    for field, kind in MANIFEST.items():
        found = manifest.get(field, kind())
        if not isinstance(found, kind):
            raise CannotCompare(f"{path}: its manifest's {field} is {found!r:.99}, expected {kind.__name__}")
    steps: dict[str, dict[str, Array]] = {}
    for name, x in arrays.items():
        step, _, key = name.rpartition("/")
        for ours, entry in rename(key, aliases):
            turned = x.transpose(entry["transpose"]) if "transpose" in entry else x
            steps.setdefault(step, {})[ours] = widened(turned)
    tokens = manifest.get("steps", {})
    in_order = [*tokens, *steps]  # the file itself sorts by name
    return Trace({step: steps[step] for step in in_order if step in steps}, tokens, manifest)


# ---- Batches --------------------------------------------------------------------------------------------------------


def is_batch(tokens: list) -> bool:
    """Whether a step's tokens are those of several sequences, a list for each."""
    return bool(tokens) and isinstance(tokens[0], list)


def split_batches(trace: Trace, tokens: dict[str, dict], padding: str) -> Trace:
    """The same, widened, with a step for each sequence of a batch or a packed row, "padded[0]", without its padding.

    tokens: the reference's; padding: the side on which this trace has it, "right" or "left".
    """
    steps = {}
    for step, arrays in trace.steps.items():
        batch = tokens[step]["tokens"] if step in tokens else []
        if "starts" in tokens.get(step, {}):
            for b, (start, end) in enumerate(packed(tokens[step])):
                steps[f"{step}[{b}]"] = one_packed(arrays, start, end, len(batch))
        elif is_batch(batch):
            for b in range(len(batch)):
                steps[f"{step}[{b}]"] = one_sequence(arrays, batch, b, padding)
        else:
            steps[step] = {key: widened(x) for key, x in arrays.items()}
    return Trace(steps, split_tokens(tokens), trace.manifest)


def one_sequence(arrays: dict[str, Array], batch: list[list[int]], b: int, padding: str) -> dict[str, Array]:
    """The values of sequence b of a batch, without its padding."""
    found = {}
    length = len(batch[b])
    longest = max(map(len, batch))
    start = 0 if padding == "right" else longest - length
    for key, x in arrays.items():
        if not x.ndim or len(x) != len(batch):
            continue
        if key == "lm_head.out" and x.size == len(batch) * x.shape[-1] and x.ndim < 4:  # the last token's alone
            found[key] = widened(x[b].reshape(1, -1))
            continue
        rows = length - 1 if key.startswith("mtp.") else length  # MTP has a row for each pair of neighbours
        found[key] = widened(x[b, start : start + rows] if is_per_token(key) else x[b])
    return found


def packed(fed: dict) -> list[tuple[int, int]]:
    """Where each sequence of a packed row begins and ends."""
    starts = fed["starts"]
    return list(zip(starts, [*starts[1:], len(fed["tokens"])]))


def one_packed(arrays: dict[str, Array], start: int, end: int, length: int) -> dict[str, Array]:
    """The values of one sequence of a packed row. The states are those of the last one."""
    found = {}
    for key, x in arrays.items():
        if key.startswith("mtp."):  # a row for each pair of neighbours; those of two sequences mean nothing
            if end - start > 1:
                found[key] = widened(x[start : end - 1])
        elif is_per_token(key):
            found[key] = widened(x[start:end])
        elif end == length:
            found[key] = widened(x)
    return found


def split_tokens(tokens: dict[str, dict]) -> dict[str, dict]:
    """What each step was fed, with a step for each sequence of a batch or a packed row."""
    found = {}
    for step, fed in tokens.items():
        if "starts" in fed:
            for b, (start, end) in enumerate(packed(fed)):
                found[f"{step}[{b}]"] = {"tokens": fed["tokens"][start:end], "before": [], "packed": b}
            continue
        if not is_batch(fed["tokens"]):
            found[step] = fed
            continue
        for b, (new, before) in enumerate(zip(fed["tokens"], fed["before"])):
            found[f"{step}[{b}]"] = {"tokens": new, "before": before}
    return found


def join_batches(steps: dict[str, dict[str, Array]], tokens: dict[str, dict]) -> dict[str, dict[str, Array]]:
    """The sequences of a batch, or of a packed row, as one step again."""
    joined = {}
    for step, fed in tokens.items():
        if step in steps:
            joined[step] = steps[step]
        elif "starts" in fed:
            joined[step] = one_row([steps[f"{step}[{b}]"] for b in range(len(fed["starts"]))])
        elif f"{step}[0]" in steps:
            parts = [steps[f"{step}[{b}]"] for b in range(len(fed["tokens"]))]
            shared = [key for key in parts[0] if all(key in part for part in parts)]
            joined[step] = {key: stacked([part[key] for part in parts]) for key in shared}
    return joined


def one_row(parts: list[dict[str, Array]]) -> dict[str, Array]:
    """Sequences as a packed row: their tokens' values in turn, and the states of the last one.

    MTP has a row for each pair of neighbours; for those of two sequences it is zeros.
    """
    row = {}
    last = parts[-1]
    for key in dict.fromkeys(key for part in parts for key in part):
        arrays = [part[key] for part in parts if key in part]
        if key.startswith("mtp."):
            width = arrays[0].shape[1:]
            between = np.zeros((1, *width), arrays[0].dtype)
            arrays = [x for part in parts for x in (part.get(key, between[:0]), between)][:-1]
        row[key] = np.concatenate(arrays) if is_per_token(key) else last[key]
    return row


def stacked(arrays: list[Array]) -> Array:
    """Arrays of different lengths as one, with zeros after the end of each."""
    longest = max(map(len, arrays))
    padded = [np.pad(x, [(0, longest - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in arrays]
    return np.stack(padded)


# ---- Writing --------------------------------------------------------------------------------------------------------


def config_hash(config: dict) -> str:
    """SHA-256 of config.json's content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_trace(
    path: str | Path,
    steps: dict[str, dict[str, Array]],
    tokens: dict[str, dict[str, list]],
    *,
    producer: str,
    dtype: str,
    folder: str | Path | None,
    lines: dict[str, str] | None = None,
    more: dict | None = None,
):
    """Writes a trace file, or nothing if that fails.

    Args: steps, name -> {key: values}, with "" as the name of an only step; tokens, name -> {"tokens", "before"};
    folder, the checkpoint's, for its config.json, or None; lines, key -> source line; more, for the manifest. Raises
    OSError.
    """
    lines = lines or {}
    arrays, stages = {}, {}
    for step, trace in steps.items():
        for key, x in trace.items():
            arrays[f"{step}/{key}" if step else key] = np.ascontiguousarray(x)
            stage = stage_of(key)
            equation = STAGES[stage][1] if stage in STAGES else ""
            stages[stage] = {"axes": axes_of(stage), "equation": equation, "line": lines.get(key, "")}
    config = json.loads((Path(folder) / "config.json").read_bytes()) if folder else None
    manifest = {
        "producer": producer,
        "dtype": dtype,
        **({"config": config, "config_sha256": config_hash(config)} if folder else {}),
        "steps": tokens,
        "order": list(arrays),
        "stages": stages,
        **(more or {}),
    }
    try:
        with tempfile.TemporaryDirectory(prefix=".trace-", dir=Path(path).parent) as folder:  # nobody else's file
            whole = Path(folder) / "trace.safetensors"
            save_file(arrays, whole, {"format": FORMAT, "manifest": json.dumps(manifest)})
            os.replace(whole, path)
    except Exception as error:  # whatever the library or the operating system raises
        raise OSError(f"{path}: the trace was not written ({error})") from error


# ---- Command lines --------------------------------------------------------------------------------------------------


def exit_code(program: str, run: Callable, *arguments) -> int:
    """Runs a command line: 0, or 1 after one line on stderr; argparse exits with 2 for wrong usage."""
    try:
        run(*arguments)
        return 0
    except (ValueError, OSError, KeyError, MemoryError, RuntimeError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"{program}:", " ".join(str(message).split()), file=sys.stderr)
        return 1
