"""Trace files: every named intermediate of a forward pass, or of several in turn, and what they belong to.

A trace is a safetensors file. Its keys are a checkpoint's module path and a stage, "model.layers.3.linear_attn.g"; of
several passes, with the step's name in front, "decode 1/model.layers.3.linear_attn.g". compare.py lists the stages. Its
metadata has "format", and "manifest", a JSON object:

    format     "qwen3-next-trace/1"
    producer   the program that wrote it
    dtype      what the forward pass computed in, "bfloat16"; the values are float32 or float64
    config     config.json's content, and config_sha256 of it (keys sorted, no spaces)
    steps      name -> {"tokens": the new ones, "before": those in the cache}; of a batch, a list for each sequence
    order      all keys, as computed
    stages     stage -> {"axes": names, "equation", "line": what computes it}

A single sequence has no batch axis. In a batch, (batch, token, ...), each sequence begins at token 0; what stands
behind its end means nothing. NumPy and safetensors only; `trace_prompt` is given a model.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from verify.compare import FORMAT, STAGES, stage_of


def config_hash(config: dict) -> str:
    """SHA-256 of config.json's content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_trace(
    path: str | Path,
    steps: dict[str, dict[str, np.ndarray]],
    tokens: dict[str, dict[str, list]],
    *,
    producer: str,
    dtype: str,
    folder: str | Path,
    lines: dict[str, str] | None = None,
):
    """Writes a trace file, or nothing if that fails.

    Args: steps, name -> {key: values}, "" as the name of an only one; tokens, name -> {"tokens", "before"}; folder, the
    checkpoint's; lines, key -> source line. Raises OSError.
    """
    arrays = {f"{step}/{key}".lstrip("/"): x for step, trace in steps.items() for key, x in trace.items()}
    stages = {}
    for trace in steps.values():
        for key in trace:
            axes, equation = STAGES.get(stage_of(key), ("", ""))
            stages[stage_of(key)] = {"axes": axes.split(), "equation": equation, "line": (lines or {}).get(key, "")}
    config = json.loads((Path(folder) / "config.json").read_bytes())
    manifest = {
        "producer": producer,
        "dtype": dtype,
        "config": config,
        "config_sha256": config_hash(config),
        "steps": tokens,
        "order": list(arrays),
        "stages": stages,
    }
    temporary = Path(f"{path}.tmp")
    try:
        save_file(
            {key: np.ascontiguousarray(x) for key, x in arrays.items()},
            temporary,
            {"format": FORMAT, "manifest": json.dumps(manifest)},
        )
        os.replace(temporary, path)
    except Exception as error:  # whatever the library or the operating system raises
        raise OSError(f"{path}: the trace was not written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def trace_prompt(path: str | Path, model, ids: list[int], globs: list[str], folder: str | Path):
    """Writes the trace of one pass of a qwen3_next.Qwen3NextForCausalLM over a prompt, MTP's included."""
    import torch

    from qwen3_next import Trace, find_checkpoint

    trace = Trace(*globs)
    with torch.no_grad():
        row = torch.tensor([ids], device=model.device)
        model(row, trace=trace, output_mtp_logits=model.mtp is not None and len(ids) > 1)
    if not trace:
        raise ValueError(f"--trace-keys {' '.join(globs)}: no key fits")
    steps, tokens = {"": {key: x.numpy() for key, x in trace.items()}}, {"": {"tokens": ids, "before": []}}
    dtype = str(model.dtype).removeprefix("torch.")
    where = find_checkpoint(folder)
    write_trace(path, steps, tokens, producer="qwen3_next.py", dtype=dtype, folder=where, lines=trace.lines)
