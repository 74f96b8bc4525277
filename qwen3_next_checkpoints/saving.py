"""A model as a checkpoint folder: safetensors, in shards with an index if they need several, and config.json."""

import json
import os
import re
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory as split
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm


def save(model: nn.Module, path: str | os.PathLike, max_shard_size: int | str):
    """Writes the weights, config.json and generation_config.json of a model that has `config`, `generation_config`.

    max_shard_size: bytes, or a string such as "500MB". What is kept in 8 bits is written dequantised. Files get their
    names when all are complete, so that a failure, an OSError, leaves what was there before.
    """
    size = max_shard_size  # by 0 or less, each tensor would get a file of its own
    right = size > 0 if isinstance(size, (int, float)) else re.fullmatch(r"(?=.*[1-9])\d+(\.\d*)?[KMGT]B", str(size))
    if not right:
        raise ValueError(f"max_shard_size is {size!r}, expected bytes, or like '5GB'")
    sizes = {
        name: p.numel() * max(p.itemsize, model.dtype.itemsize if p.itemsize == 1 else 0)
        for name, p in model.named_parameters()
    }
    shards = split(sizes, get_storage_size=int, filename_pattern="model{suffix}.safetensors", max_shard_size=size)
    config = {"architectures": [type(model).__name__], **model.config.to_dict()}
    config["torch_dtype"] = str(model.dtype).removeprefix("torch.")
    texts = {"config.json": {key: x for key, x in config.items() if key not in ("quantization_config", "dtype")}}
    if model.generation_config:
        texts["generation_config.json"] = model.generation_config
    if shards.is_sharded:
        texts["model.safetensors.index.json"] = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    new = {name: folder / f"{name}.tmp" for name in (*shards.filename_to_tensors, *texts)}
    try:
        for name in new:
            if (folder / name).is_dir():
                raise ValueError(f"{name} is a folder")
        files = shards.filename_to_tensors.items()
        for name, keys in tqdm(files, "saving", unit="file", leave=False, delay=2, disable=None):
            save_file({key: full_weight(model, key) for key in keys}, new[name], metadata={"format": "pt"})
        for name, content in texts.items():
            new[name].write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for name, file in new.items():
            file.replace(folder / name)
    except Exception as error:  # the disk is full, or whatever the library or the operating system raises
        raise OSError(f"{folder}: nothing was saved ({error})") from error
    finally:
        for file in new.values():
            file.unlink(missing_ok=True)
    for file in folder.glob("model*.safetensors*"):  # an earlier save's shards or index would be read instead
        if file.name not in new:
            file.unlink()


def full_weight(model: nn.Module, name: str) -> Tensor:
    """A parameter as it is saved: contiguous, and dequantised if it is kept in 8 bits."""
    owner = model.get_submodule(name.rpartition(".")[0])
    p = model.get_parameter(name)
    if p.dtype == torch.float8_e4m3fn:
        p = owner.dense(model.dtype)
    return p.detach().contiguous()
