"""A cache on disk, and some of its sequences: what `Cache` inherits where this file lies next to qwen3_next.py.

A folder of prompts that begin alike needs its beginning read once: `cache.save(path)`, and later, in another process,
`Cache.load(path, model)` and `model.generate(ids, past_key_values=cache)`.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qwen3_next_checkpoints import expect

FORMAT = "qwen3_next cache 1"


class Cache:
    """The methods of a cache that no forward pass needs."""

    def get_seq_length(self) -> int:
        """How many tokens each sequence has been fed, padding included: transformers' name of `columns`."""
        return self.columns

    def select(self, rows: Any) -> "Cache":
        """A new cache of some of the sequences: numbers of rows, in any order and repeated at will, or (B,) bool."""
        rows = torch.as_tensor(rows, device=self.seq_len.device)

        def chosen(part: Any) -> Any:
            tensors = {name: x[rows.to(x.device)] for name, x in vars(part).items() if isinstance(x, Tensor)}
            return replace(part, **tensors, **({"last": None} if hasattr(part, "last") else {}))

        mtp = self.mtp and self.mtp.select(rows)
        return replace(chosen(self), layers=[chosen(layer) for layer in self.layers], mtp=mtp)

    def nbytes(self) -> int:
        """Bytes that `save` writes, without the header."""
        return sum(x.nbytes for x in tensors_of(self).values())

    def save(self, path: str | os.PathLike):
        """Writes a safetensors file, or leaves what was there. Raises ValueError for a cache of no use, OSError."""
        expect(self.complete, "the cache is of no use: a pass that should have filled it was interrupted")
        kinds = [type(layer).__name__ for layer in self.layers]
        about = {"format": FORMAT, "layers": kinds, "columns": self.columns, "mtp_start": self.mtp_start}
        about["mtp_columns"] = self.mtp.columns if self.mtp and self.mtp.complete else None
        path = Path(path)
        written = path.with_name(f"{path.name}.saving")
        try:
            save_file(tensors_of(self), written, metadata={"cache": json.dumps(about)})
            os.replace(written, path)
        finally:
            written.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike, model: Any) -> "Cache":
        """The cache in a file, for a model of the same config and dtype; that the weights are the same is up to you.

        Raises FileNotFoundError, or ValueError for a file that is no cache, or a cache of another kind of model.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("cache", "{}"))
                tensors = {name: file.get_tensor(name).to(model.device) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
        expect(about.get("format") == FORMAT, f"{path}: not a cache: its format is {about.get('format')!r:.99}")
        cache = model.make_cache(len(tensors.get("seq_len", ())))
        kinds = [type(layer).__name__ for layer in cache.layers]
        expect(about["layers"] == kinds, f"{path}: the cache of {len(about['layers'])} other layers than the model's")
        check_tensors(path, tensors, about, model)
        if about["mtp_columns"] is not None:
            kind = vars(sys.modules[cls.__module__])["KVCache"]
            cache.mtp = fill(cls([kind()], cache.seq_len), tensors, "mtp.", about["mtp_columns"])
        cache.mtp_start = about["mtp_start"]
        return fill(cache, tensors, "", about["columns"])


def tensors_of(cache: Any) -> dict[str, Tensor]:
    """What there is to save: of keys and values, no more than the slots in use."""
    tensors = {"seq_len": cache.seq_len}
    if cache.mask is not None:
        tensors["mask"] = cache.mask
    for i, layer in enumerate(cache.layers):
        for name, x in vars(layer).items():
            if isinstance(x, Tensor):
                tensors[f"layers.{i}.{name}"] = x[:, :, : cache.columns] if name in ("k", "v") else x
    if cache.mtp and cache.mtp.complete:
        tensors |= {f"mtp.{name}": x for name, x in tensors_of(cache.mtp).items()}
    return {name: x.detach().contiguous() for name, x in tensors.items()}


def fill(cache: Any, tensors: dict[str, Tensor], prefix: str, columns: int) -> Any:
    """A new cache with these tensors."""
    cache.columns = columns
    cache.seq_len = tensors[f"{prefix}seq_len"]
    cache.mask = tensors.get(f"{prefix}mask")
    for i, layer in enumerate(cache.layers):
        for name in ("k", "v", "window", "state"):
            if f"{prefix}layers.{i}.{name}" in tensors:
                setattr(layer, name, tensors[f"{prefix}layers.{i}.{name}"])
    return cache


def check_tensors(path: Any, tensors: dict[str, Tensor], about: dict, model: Any):
    """Raises ValueError for the first tensor whose shape or dtype is not that of this model's caches, or that lacks."""
    config = model.config
    keys, K = config.linear_num_key_heads or 0, config.linear_key_head_dim or 0
    heads, V = config.linear_num_value_heads or 0, config.linear_value_head_dim or 0
    state = torch.float64 if model.dtype == torch.float64 else torch.float32
    parts = {"": (about["layers"], about["columns"])}
    if about["mtp_columns"] is not None:
        parts["mtp."] = (["KVCache"], about["mtp_columns"])
    B = len(tensors["seq_len"])
    want = {}
    for prefix, (layers, columns) in parts.items():
        want[f"{prefix}seq_len"] = ((B,), torch.long)
        if f"{prefix}mask" in tensors:
            want[f"{prefix}mask"] = ((B, columns), torch.bool)
        for i, kind in enumerate(layers if columns else ()):
            place = f"{prefix}layers.{i}"
            if kind == "KVCache":
                size = (B, config.num_key_value_heads, columns, config.head_dim)
                want |= {f"{place}.k": (size, model.dtype), f"{place}.v": (size, model.dtype)}
            else:
                channels = 2 * keys * K + heads * V
                want[f"{place}.window"] = ((B, channels, config.linear_conv_kernel_dim - 1), model.dtype)
                want[f"{place}.state"] = ((B, heads, K, V), state)
    for name, (size, dtype) in want.items():
        found = tensors.get(name)
        what = "missing" if found is None else f"{tuple(found.shape)} in {found.dtype}"
        right = found is not None and tuple(found.shape) == size and found.dtype == dtype
        expect(right, f"{path}: {name} is {what}, the model's has {size} in {dtype}")
    extra = sorted(tensors.keys() - want)
    expect(not extra, f"{path}: holds {extra[0] if extra else ''}, which no cache of this model has")
