"""FP8 matrices and fused experts, read as the released bfloat16 checkpoint's tensors.

FP8      X.weight is float8_e4m3fn, X.weight_scale_inv has a scale for each block of 128 x 128 (arXiv 2412.19437,
         section 3.3). All but the experts is dequantised when the model is loaded, after all shapes have been compared;
         experts stay in 8 bits until they are routed to.
fused    experts.gate_up_proj (E, 2 I, D), gate before up, and experts.down_proj (E, D, I): read as views of each
         expert's own matrices, so that nothing is copied.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from qwen3_next_checkpoints import expect

FP8 = torch.float8_e4m3fn
PREFIXES = ("base_model.model.", "model.language_model.", "language_model.")
ACTIVATIONS = (".input_scale", ".activation_scale")
FUSED = re.compile(r"(.+\.experts)\.(gate_up_proj|down_proj)(?:\.weight)?(_scale_inv)?")


def some(names: list[str]) -> str:
    """The first ten names and a count, for messages."""
    return f"{', '.join(sorted(names)[:10])}{', ...' if len(names) > 10 else ''} ({len(names)} in all)"


def dequantise(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """An FP8 matrix (M, N), each block of 128 x 128 times its scale, (ceil(M / 128), ceil(N / 128)) in all.

    In float32: half precision would round the scale.
    """
    wide = scale if scale.dtype == torch.float64 else scale.float()
    columns = wide.repeat_interleave(128, dim=1)[:, : weight.shape[1]]  # (row blocks, N)
    return torch.cat([rows.float().mul_(s) for rows, s in zip(weight.split(128), columns)]).to(dtype)


def usual(folder: Path, tensors: dict[str, Tensor], read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """A folder's tensors without a prefix that all of them have from a tool for fine-tuning, without the scales that
    some FP8 checkpoints have for activations (here these are not rounded), and with those of mtp.safetensors, which
    `read` reads, if MTP is not among them.

    Raises ValueError for what MLX has converted: its norms hold 1 + w, its convolutions have other axes.
    """
    mlx = [f"{name} {tuple(t.shape)}" for name, t in tensors.items() if is_by_mlx(name, t)]
    expect(not mlx, f"{folder}: {some(mlx)}: converted by MLX, whose norms hold 1 + w; mlx-lm runs it")
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
    if any(t.dtype == FP8 for t in tensors.values()):
        tensors = {name: t for name, t in tensors.items() if not name.endswith(ACTIVATIONS)}
    more = folder / "mtp.safetensors"
    if more.is_file() and not any(name.startswith("mtp.") for name in tensors):
        tensors = {**tensors, **read(more)}
    return tensors


def is_by_mlx(name: str, tensor: Tensor) -> bool:
    """Whether only MLX has a tensor of this name or shape."""
    turned = name.endswith("conv1d.weight") and tensor.ndim == 3 and tensor.shape[1] > 1 == tensor.shape[2]
    return turned or ".switch_mlp." in name or name.endswith((".biases", ".scales"))


def plain(tensors: dict[str, Tensor], num_experts: int) -> dict[str, Tensor]:
    """A new dict under the released names, with fused experts split. FP8 stays as it is, next to its scales.

    Nothing is copied. Raises ValueError, naming the tensor, for scales and matrices that do not belong together, and
    for another number of experts.
    """
    tensors = split_fused(tensors, num_experts)
    bare = [name for name, t in tensors.items() if t.dtype == FP8 and f"{name}_scale_inv" not in tensors]
    expect(not bare, f"FP8 without a weight_scale_inv: {some(bare)}")
    scales = [name for name in tensors if name.endswith("_scale_inv")]
    for scale_name in scales:
        name = scale_name.removesuffix("_scale_inv")
        scale = tensors[scale_name]
        weight = tensors.get(name)
        right = weight is not None and weight.dtype == FP8 and weight.ndim == 2 and weight.numel() > 0
        expect(right, f"{scale_name} has no FP8 matrix {name} to scale")
        found = tuple(scale.shape)
        blocks = tuple(math.ceil(n / 128) for n in weight.shape)
        expect(found == blocks, f"{scale_name} has shape {found}, expected {blocks}: blocks of 128 x 128")
    return tensors


def split_fused(tensors: dict[str, Tensor], num_experts: int) -> dict[str, Tensor]:
    """A new dict, with fused experts as views of each expert's own matrices."""
    split = {}
    for name, tensor in tensors.items():
        fused = FUSED.fullmatch(name)
        if not fused:
            split[name] = tensor
            continue
        prefix, kind, scale = fused.groups(default="")
        parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
        right = tensor.ndim == 3 and tensor.numel() > 0 and tensor.shape[1] % len(parts) == 0
        expect(right, f"{name} has shape {tuple(tensor.shape)}, expected (experts, rows, columns)")
        known = tensor.shape[0] == num_experts  # a million views take a gigabyte
        expect(known, f"{name} has {tensor.shape[0]} experts, but config.json's num_experts is {num_experts}")
        for e, matrix in enumerate(tensor.unbind()):
            names = [f"{prefix}.{e}.{part}.weight{scale}" for part in parts]
            twice = [new for new in names if new in tensors]
            expect(not twice, f"{name}: experts are there twice, fused and {some(twice)}")
            split.update(zip(names, matrix.chunk(len(parts))))
    return split


def place(
    model: nn.Module,
    tensors: dict[str, Tensor],
    product: Callable[[Tensor, Tensor], Tensor],
    places: dict[str, torch.device],
    copy: bool,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Puts an FP8Linear in the place of each of the experts' projections whose matrix is in 8 bits, on the device that
    `places` has for the matrix. Returns the tensors with all other such matrices dequantised.
    """
    modules = dict(model.named_modules())
    wide = {}
    eight = [name for name, tensor in tensors.items() if tensor.dtype == FP8]
    for name in tqdm(eight, "dequantising", unit="tensor", leave=False, delay=2, disable=None):
        pair = (tensors[name], tensors[f"{name}_scale_inv"])
        if ".experts." in name:
            parent, _, key = name.removesuffix(".weight").rpartition(".")
            weight, scale = (tensor.to(places[name], copy=copy) for tensor in pair)
            setattr(modules[parent], key, FP8Linear(weight, scale, product))
        else:
            wide[name] = dequantise(*pair, dtype)
    return {**tensors, **wide}


class FP8Linear(nn.Module):
    """An expert's projection in 8 bits, dequantised each time it is called. `.to(dtype)` ends that."""

    def __init__(self, weight: Tensor, scale: Tensor, product: Callable[[Tensor, Tensor], Tensor]):
        """weight (out, in) float8_e4m3fn; scale, its weight_scale_inv; product(x, W), what x W^T is made by."""
        super().__init__()
        self.product = product
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("weight_scale_inv", scale)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight, dequantised if it is in 8 bits."""
        if self.weight.dtype != FP8:
            return self.weight
        return dequantise(self.weight, self.weight_scale_inv, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.dense(x.dtype))

    def _apply(self, fn, recurse=True):
        dtype = fn(self.weight.data[:0]).dtype
        if self.weight.dtype == FP8 and dtype != FP8:  # a cast alone would forget the scale
            self.weight.data = dequantise(self.weight.data, self._buffers.pop("weight_scale_inv"), dtype)
            self.weight.requires_grad_()
        return super()._apply(fn, recurse)
