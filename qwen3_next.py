# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "numpy>=1.26", "safetensors>=0.4.5", "tokenizers>=0.21", "jinja2>=3.1.6",
#                 "huggingface_hub>=1.0", "tqdm>=4.66"]
# ///
"""Qwen3-Next in one readable file: plain PyTorch, CPU or CUDA, from config.json to generated text.

Three in four layers are Gated DeltaNet. Their memory has a constant size, and a token costs the same at every position.
Every fourth layer is gated softmax attention. Each layer's MLP is a mixture of many small experts; a token uses a few.
Read from top to bottom: each part uses only what came before it. Parameter names are the checkpoint's.

    python qwen3_next.py --prompt "Once upon a time"              the small trained model in tiny/
    python qwen3_next.py --model DIR_OR_REPO --prompt "..."       a checkpoint folder, or a name on the hub

References
    [GDN]   Gated Delta Networks, arXiv 2412.06464        the recurrence (Eq. 10) and its chunked form
    [DN]    Parallelizing Linear Transformers with the Delta Rule, arXiv 2406.06484    the triangular (UT) solve
    [GA]    Gated Attention for Large Language Models, arXiv 2505.06708                the sigmoid output gate
    [RoPE]  RoFormer, arXiv 2104.09864;   [YaRN] arXiv 2309.00071                      positions, long contexts
    [MoE]   Switch Transformers, arXiv 2101.03961 (load balancing);  DeepSeekMoE, arXiv 2401.06066 (shared expert)
    [MTP]   DeepSeek-V3, arXiv 2412.19437, section 2.2;   [Spec] Speculative decoding, arXiv 2211.17192

Glossary: the name in the code, the symbol, where it comes from
    B, T, D      batch, tokens, width of the residual stream (hidden_size)
    H, K, V      value heads, key width, value width of one Gated DeltaNet head
    C, N         chunk length, number of chunks of the chunked form                    [GDN] section 3.3
    E            number of routed experts; each token uses num_experts_per_tok         [MoE]
    q, k, v      query, key, value; in Gated DeltaNet q and k have unit length, and q is scaled by K^-0.5
    S            state (K, V): the memory; S^T k is the value stored under key k       S_t, transposed in [GDN]
    g            log of the decay, <= 0; alpha = e^g is the share of the state kept    alpha_t [GDN] Eq. 10
    beta         write strength in (0, 1)                                              beta_t  [GDN] Eq. 10
    delta        beta * (v - S^T k): the correction that is written to the memory      u_t in [DN]
    G            cumulative sum of g inside a chunk; gamma = e^G                       gamma_r [GDN] Eq. 8
    z, b, a      inputs of the output gate, of beta, and of the decay

Not here: kernels, quantised arithmetic, serving many users. Where precision is raised, a comment says why.
"""

import argparse
import copy
import functools
import gc
import importlib
import json
import math
import mmap
import numbers
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Ctrl-C while PyTorch is imported should end the program without a traceback
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)

import tokenizers
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm


def one_line(message: Any) -> str:
    """The message on one line: a name or value that it quotes may contain line breaks and terminal escapes."""
    line = " ".join(str(message).splitlines())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def expect(right: Any, otherwise: str):
    """Raises ValueError with the message unless `right`."""
    if not right:
        raise ValueError(one_line(otherwise))


def expect_shape(name: str, x: Any, *shapes: tuple):
    """Raises ValueError unless the tensor x has one of the shapes."""
    if x.shape not in shapes:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected {' or '.join(map(str, dict.fromkeys(shapes)))}")


def expect_tensors(**given: Any):
    """Raises ValueError for an argument that is neither a tensor nor None."""
    for name, x in given.items():
        expect(isinstance(x, Tensor | None), f"{name} is a {type(x).__name__}, expected a tensor")


def expect_known(function: str, given: Iterable[str], known: Iterable[str]):
    """Raises TypeError, as Python does, for a keyword that a function does not have."""
    for name in given:
        if name not in known:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def sibling(name: str, purpose: str = "") -> Any:
    """A module of qwen3_next_checkpoints/. If it is missing: None, or ValueError if `purpose` says what needs it."""
    try:
        return importlib.import_module(f"qwen3_next_checkpoints.{name}")
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("qwen3_next_checkpoints"):  # a package that the module imports
            raise
        file = f"qwen3_next_checkpoints/{name}.py"
        expect(not purpose, f"{purpose} needs {file}, which comes with this file's repository")
        return None


def check(what: str, *found: Any):
    """Checks an input with qwen3_next_checkpoints/checks.py. Without that file, a bad input fails later."""
    if torch.compiler.is_compiling():  # the compiler accepts no import here
        return
    checks = sibling("checks")
    if checks:
        getattr(checks, f"check_{what}")(*found)


# ==== Config ==========================================================================================================


class Qwen3NextConfig(getattr(sibling("compat"), "Config", object)):
    """The fields of config.json; the numbers in the comments are those of the released 80B.

    Two dialects are read: the released one, and that of transformers 5, which has `rope_parameters` and `layer_types`.
    Unknown keys become attributes as well, and `to_dict` writes them back. Raises ValueError naming the field.
    """

    # fmt: off
    vocab_size: int = None                       # 151936    rows of the embedding; the tokenizer may use fewer
    hidden_size: int = None                      # 2048      D
    num_hidden_layers: int = None                # 48
    layer_types: list = None                     # each layer's kind, by name; None: follows full_attention_interval
    full_attention_interval: int = 4             # 4         every fourth layer is attention
    max_position_embeddings: int = 262144        # 262144    longest sequence seen in training
    rms_norm_eps: float = 1e-6                   # 1e-6
    hidden_act: str = "silu"                     # silu
    initializer_range: float = 0.02              # 0.02      standard deviation of new weights
    tie_word_embeddings: bool = False            # false     lm_head shares the embedding's weight
    num_attention_heads: int = None              # 16        query heads of an attention layer
    num_key_value_heads: int = None              # 2         key and value heads, each serving 8 query heads
    head_dim: int = None                         # 256
    attention_bias: bool = False                 # false     biases of the q, k, v and o projections
    attention_dropout: float = 0.0               # 0.0
    rope_theta: float = None                     # 10000000  base of the rotary frequencies
    partial_rotary_factor: float = 0.25          # 0.25      share of head_dim that is rotated
    rope_scaling: dict = None                    # null      or YaRN's fields
    linear_num_key_heads: int = None             # 16        key heads of a Gated DeltaNet layer
    linear_num_value_heads: int = None           # 32        H: value heads, each with its own state
    linear_key_head_dim: int = None              # 128       K
    linear_value_head_dim: int = None            # 128       V
    linear_conv_kernel_dim: int = 4              # 4         taps of the causal convolution
    num_experts: int = None                      # 512       E; 0: every layer has a dense MLP
    num_experts_per_tok: int = None              # 10
    moe_intermediate_size: int = None            # 512       inner width of one expert
    shared_expert_intermediate_size: int = None  # 512
    norm_topk_prob: bool = True                  # true      the chosen experts' weights sum to 1
    router_aux_loss_coef: float = 0.001          # 0.001     weight of the load-balancing loss
    output_router_logits: bool = False           # false     return router logits, and add that loss
    intermediate_size: int = None                # 5120      inner width of a dense layer's MLP
    mlp_only_layers: list = None                 # []        layers that stay dense
    decoder_sparse_step: int = 1                 # 1         every n-th layer is MoE
    mtp_num_hidden_layers: int = 0               # absent    1: build the MTP layer; on loading, the tensors decide
    mtp_loss_scaling_factor: float = 0.1         # absent    weight of its loss; Megatron's default
    # fmt: on

    def __init__(self, /, **fields: Any):  # a key may be called self
        fields = copy.deepcopy(fields)
        model_type = fields.pop("model_type", "qwen3_next")
        expect(model_type == "qwen3_next", f"config: model_type is {model_type!r:.99}, expected 'qwen3_next'")
        check("fields", Qwen3NextConfig, fields)
        rope = {**(fields.pop("rope_scaling", None) or {}), **(fields.pop("rope_parameters", None) or {})}
        kind = rope.get("rope_type", rope.get("type", "default"))
        expect(kind in ("default", "yarn"), f"config: rope_scaling has type {kind!r:.99}, expected 'yarn' or 'default'")
        fields |= {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        fields["rope_scaling"] = rope if kind == "yarn" else None
        for key in Qwen3NextConfig.__annotations__:  # in Python 3.14 only the class has them
            value = fields.pop(key, None)
            setattr(self, key, getattr(type(self), key) if value is None else value)  # null means absent
        self.__dict__.update(fields)
        if self.layer_types is None:
            kinds = ("linear_attention", "full_attention")
            interval = self.full_attention_interval or 1
            self.layer_types = [kinds[i % interval == 0] for i in range(1, (self.num_hidden_layers or 0) + 1)]
        self.mlp_only_layers = self.mlp_only_layers or []
        expect(self.hidden_act == "silu", f"config: hidden_act is {self.hidden_act!r:.99}, expected 'silu'")
        check("config", self)

    def is_moe(self, i: int) -> bool:
        """Whether layer i's MLP is a mixture of experts."""
        return self.num_experts > 0 and (i + 1) % self.decoder_sparse_step == 0 and i not in self.mlp_only_layers

    @classmethod
    def from_dict(cls, fields: dict) -> "Qwen3NextConfig":
        """A config from config.json's content, in either dialect."""
        return cls(**fields)

    def to_dict(self) -> dict:
        """config.json's content: the top-level keys that transformers and mlx-lm read, and all others passed in."""
        ours = Qwen3NextConfig.__annotations__
        fields = {key: value for key, value in vars(self).items() if value is not None or key not in ours}
        return copy.deepcopy({"model_type": "qwen3_next", **fields, "rope_scaling": self.rope_scaling})


# ==== Linear layers and norms =========================================================================================


HALF = {"bf16": torch.bfloat16, "fp16": torch.float16} if torch.backends.mkldnn.is_available() else {}
# The half precisions that this processor has no units for: it multiplies float32 several times faster
SLOW_HALF = [HALF[n] for n in HALF if not getattr(torch.ops.mkldnn, f"_is_mkldnn_{n}_supported")()]
TILES = torch.cpu._is_amx_tile_supported()  # asked once, here: torch.compile rejects the call in a full graph


def widened(x: Tensor, W: Tensor) -> Tensor:
    """x W^T, x (..., in), widening W to float32 a block of rows at a time: 4 MB stay in the cache until they are used.
    Computed as (W x^T)^T: there each core multiplies the rows that it has widened itself, not those of another core.
    """
    xT = x.flatten(0, -2).float().t()
    yT = torch.cat([(block.float() @ xT).to(x.dtype) for block in W.split(1 + 2**20 // W.shape[1])])
    return yT.t().unflatten(0, x.shape[:-1])


def single(x: Tensor, W: Tensor) -> Tensor:
    """x W^T for a single x, without oneDNN: in bfloat16 that is two to four times as fast. All threads share the
    switch: meanwhile, a product in another thread is rounded differently, but no worse.
    """
    onednn = torch.backends.mkldnn
    if torch.compiler.is_compiling() or not onednn.enabled or torch.backends.flags_frozen():
        return F.linear(x, W)
    onednn.enabled = False
    try:
        return F.linear(x, W)
    finally:
        onednn.enabled = True


def linear(x: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, x (..., in), W (out, in) -> (..., out), in the way that was fastest for dtype, number of rows and
    processor (docs/speed.md). Training does not widen, because autograd would keep the float32 blocks.
    """
    if x.is_cpu and bias is None and W.dtype.itemsize == 2:
        if x.numel() == W.shape[1]:
            return single(x, W)
        if x.numel() > 4 * W.shape[1] and W.dtype in SLOW_HALF and not torch.is_grad_enabled():
            return widened(x, W)
        if x.ndim == 2 and 2 * x.numel() < W.numel() and TILES:
            return (W @ x.t()).t()
    if x.ndim == 1 and bias is None:
        return torch.mv(W, x)
    return F.linear(x, W, bias)


class Linear(nn.Linear):
    """A projection, computed by `linear`."""

    def reset_parameters(self):
        """Leaves the weights unset: `init_weights` draws them, or they come from a checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def upcast(x: Tensor) -> Tensor:
    """float32 for sums and exponentials that bfloat16's 8 bits can't hold; float64 stays float64."""
    return x if x.dtype.itemsize > 2 else x.float()


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (1 + w) over the last axis, in float32: squares overflow float16, 1 + w rounds in
    bfloat16. w starts at 0, so that weight decay pulls the scale towards 1.
    """

    def __init__(self, dim: int, eps: float, start: float = 0.0):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 + upcast(self.weight)
        return F.rms_norm(upcast(x), scale.shape, scale, self.eps).to(x.dtype)


class GatedRMSNorm(RMSNorm):
    """x / rms(x) * w, then * silu(z): the norm after the delta rule. The scale is w, not 1 + w; all heads share it."""

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x = F.rms_norm(upcast(x), self.weight.shape, upcast(self.weight), self.eps)
        return (x * F.silu(upcast(z))).to(z.dtype)


# ==== Rotary position embedding =======================================================================================


def rope_frequencies(config: Qwen3NextConfig) -> tuple[Tensor, float]:
    """Radians per position of each rotated pair, (R/2,) float64, and the factor by which YaRN multiplies cos and sin.

    R = int(head_dim * partial_rotary_factor) dimensions are rotated, pair i by theta^(-2i/R). YaRN ([YaRN] section 3.2)
    keeps the frequency of a pair that turns more than beta_fast times in the original context, divides it by `factor`
    if the pair turns fewer than beta_slow times, and blends the two in between.
    """
    dim = int(config.head_dim * config.partial_rotary_factor)
    inv_freq = config.rope_theta ** -(torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
    yarn = config.rope_scaling
    if yarn is None:
        return inv_freq, 1.0
    original = yarn.get("original_max_position_embeddings") or config.max_position_embeddings
    turns = (yarn.get("beta_fast") or 32, yarn.get("beta_slow") or 1)  # low, high: the pairs that turn this often
    low, high = (dim * math.log(original / (n * 2 * math.pi)) / (2 * math.log(config.rope_theta)) for n in turns)
    if yarn.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    pairs = torch.arange(dim // 2, dtype=torch.float64, device="cpu")
    slow = ((pairs - low) / (high - low or 0.001)).clamp(0, 1)
    scales = [yarn.get("mscale") or 0, yarn.get("mscale_all_dim") or 0]
    above, below = (1 + 0.1 * math.log(yarn["factor"]) * scale for scale in (scales if all(scales) else (1, 0)))
    amplitude = yarn.get("attention_factor") or above / below
    return inv_freq * (1 - slow) + inv_freq / yarn["factor"] * slow, amplitude


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates dims (i, i + R/2) of x (B, T, H, head_dim), i < R/2, by cos, sin (B, T, 1, R/2); others pass through."""
    half = cos.shape[-1]
    x1, x2, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], dim=-1)


# ==== Cache and step ==================================================================================================


@dataclass
class Cache(getattr(sibling("caches"), "Cache", object)):
    """What a model remembers of B sequences. A forward pass changes it in place, so a backward pass can't span two."""

    layers: list  # a KVCache or DeltaNetCache each
    seq_len: Tensor  # (B,) int64: number of real tokens of each sequence
    columns: int = 0  # tokens fed to each sequence, padding included
    mask: Tensor | None = None  # (B, columns) bool, which of them were real; None: all
    reversible: bool = False  # set before a short pass whose tokens may have to be taken back
    complete: bool = True  # False during a pass, and for good if the pass is interrupted
    mtp: "Cache | None" = None  # the MTP layer's own cache, if MTP drafts
    mtp_start: int = 0  # `columns` when the MTP layer's cache was started

    def real(self) -> Tensor:
        """The mask, (B, columns) bool, also if all tokens are real."""
        if self.mask is not None:
            return self.mask
        return self.seq_len.new_ones(len(self.seq_len), self.columns, dtype=torch.bool)

    def rollback(self, tokens: int):
        """Forgets the last `tokens` tokens of the last pass, which must have been reversible and without padding.
        Raises ValueError, and changes nothing, if fewer tokens can be taken back.
        """
        keep = self.columns - tokens
        right = 0 <= tokens <= self.columns and (self.mask is None or self.mask[:, keep:].all())
        expect(right, f"rollback: {tokens} tokens, but the cache holds {self.columns}, and padding does not count")
        layers = [layer.without_last(tokens) for layer in self.layers] if tokens else self.layers
        self.complete = False
        self.layers = layers
        self.seq_len = self.seq_len - tokens
        self.columns = keep
        self.mask = None if self.mask is None else self.mask[:, :keep]
        self.complete = True

    def clone(self) -> "Cache":
        """An independent copy."""
        copies = []
        for part in (self, *self.layers):
            tensors = {name: x.clone() for name, x in vars(part).items() if isinstance(x, Tensor)}
            copies.append(replace(part, **tensors))
        return replace(copies[0], layers=copies[1:], mtp=self.mtp and self.mtp.clone())


def check_inputs(x: Tensor, mask: Tensor | None, positions: Tensor | None, cache: Cache | None) -> tuple:
    """Checks the inputs that come with B x T new tokens x. Returns segments (B, T) int64: the number of each token's
    sequence within its row, from 1, or 0 for padding; None if all are 1. And positions (B, T), or None to count them.

    To pack several sequences into a row, let positions restart, or let the mask count sequences: 1 1 1 2 2. Raises
    ValueError for inputs that do not fit the tokens or the cache, and for padding in the middle of a sequence.
    """
    expect_tensors(attention_mask=mask, position_ids=positions)
    check("cache", cache, Cache)
    B, T = x.shape[:2]
    columns = cache.columns if cache else 0
    if cache:
        expect(len(cache.seq_len) == B, f"the cache holds {len(cache.seq_len)} sequences, the input {B}")
        expect(cache.complete, "the cache is of no use: a pass that should have filled it was interrupted")
    if mask is None and positions is None:
        return None, None
    segments = x.new_ones(B, T, dtype=torch.long)
    if mask is not None:
        expect_shape("attention_mask", mask, (B, columns + T), (B, T))
        past, segments = mask[:, :-T].bool(), mask[:, -T:].long()
        right = torch.equal(segments.clamp(min=0).to(mask), mask[:, -T:])
        expect(right, "attention_mask holds other numbers than 0, 1, and 1, 2, 3 ... for packed sequences")
        same = past.numel() == 0 or torch.equal(past, cache.real().to(past.device))
        expect(same, "attention_mask differs from the one that the cache was filled with")
    real = segments > 0
    again = segments.diff(dim=1) != 0  # where a token belongs to a different sequence than the one before it
    if positions is not None:
        axes = positions if positions.ndim == 3 else positions[None]  # Qwen3.5's code has three, for images
        expect((axes == axes[:1]).all(), "position_ids differ between their axes, which only images need")
        expect_shape("position_ids", axes[0], (B, T), (1, T))
        positions = axes[0].expand(B, T)
        again = again | (positions.diff(dim=1) <= 0)
    starts = F.pad(real.long(), (1, 0)).diff(dim=1) > 0
    expect((starts.sum(1) < 2).all(), "attention_mask has holes; padding may be only at a sequence's ends")
    again = again & real[:, 1:] & real[:, :-1]
    expect(real.all() or not again.any(), "packed sequences can't have padding, but attention_mask hides tokens")
    segments = real * (1 + F.pad(again.cumsum(1), (1, 0)))
    return (None if (segments == 1).all() else segments), positions


def is_packed(segments: Tensor | None) -> bool:
    """Whether a row holds more than one sequence."""
    return segments is not None and bool((segments > 1).any())


class Step:
    """What all layers share in one forward pass. Sequences are left-aligned here: padding comes after the tokens."""

    def __init__(self, x: Tensor, lengths: Any, positions: Any, cache: Cache, rope: tuple, packed: Any = None):
        B, T, _ = x.shape
        self.lengths = lengths  # (B,) real tokens among the T new ones; None: all T
        self.starts = None  # (B, T) bool, where the second and later sequences of a row begin; None: one sequence a row
        self.reversible = cache.reversible  # whether tokens of this pass may have to be taken back
        self.slots = cache.columns + T  # cache slots in use after this pass
        position = cache.seq_len[:, None] + torch.arange(T, device=x.device)  # (B, T)
        self.index = (slice(None), slice(cache.columns, self.slots))  # where the new tokens are stored
        if cache.mask is not None:  # each sequence has a length of its own
            self.index = (torch.arange(B, device=x.device)[:, None], position)
        self.mask = None  # (B or 1, 1, T, slots), True where a query sees a key; None: plain causal, or a single token
        if self.slots > T > 1 or cache.mask is not None:
            rows = position[:1] if cache.mask is None else position  # without padding, all have the same length
            self.mask = torch.arange(self.slots, device=x.device) <= rows[:, None, :, None]
        if packed is not None:  # a token sees only its own sequence, in which positions start at 0
            index = torch.arange(T, device=x.device)
            self.mask = (packed[:, None, :, None] == packed[:, None, None]) & (index <= index[:, None])
            self.starts = F.pad(packed.diff(dim=1), (1, 0)) > 0
            position = index - (index * self.starts).cummax(1).values
        inv_freq, amplitude = rope
        angle = (position if positions is None else positions)[..., None, None] * inv_freq.to(upcast(x))
        self.cos = (angle.cos() * amplitude).to(x.dtype)  # (B, T, 1, R/2)
        self.sin = (angle.sin() * amplitude).to(x.dtype)


# ==== Gated attention =================================================================================================


@dataclass
class KVCache:
    """Keys (rotated) and values of an attention layer, (B, heads, capacity, head_dim): slot j has a sequence's token j.

    Because slot and position are one, padding needs no record: slots after a sequence's end are never seen, and the
    next tokens overwrite them. Buffers double when full, so that the copying per token does not grow with the sequence.
    """

    k: Tensor | None = None
    v: Tensor | None = None

    def update(self, k: Tensor, v: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Appends k, v (B, T, heads, head_dim) to each sequence; returns all so far, (B, heads, slots, head_dim)."""
        if self.k is None:
            self.k = self.v = k.transpose(1, 2)[:, :, :0]  # (B, heads, 0, head_dim)
        if self.k.shape[2] < step.slots:
            more = k.new_zeros(*self.k.shape[:2], step.slots + 64, self.k.shape[3])
            self.k, self.v = torch.cat([self.k, more], dim=2), torch.cat([self.v, more], dim=2)
        self.k.transpose(1, 2)[step.index] = k
        self.v.transpose(1, 2)[step.index] = v
        return self.k[:, :, : step.slots], self.v[:, :, : step.slots]

    def without_last(self, tokens: int) -> "KVCache":
        """Itself: slots after the end are not read, and the next tokens overwrite them."""
        return self


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k^T head_dim^-0.5) v, causal or masked. q (B, T, heads, head_dim), k, v (B, kv heads, .., head_dim)."""
    B, T, heads, head_dim = q.shape
    if T == 1:  # the queries that share a key head become its rows, so that no key has to be repeated for them
        y = F.scaled_dot_product_attention(q.reshape(B, k.shape[1], -1, head_dim), k, v, mask, dropout)
        return y.reshape(B, 1, heads, head_dim)
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, mask, dropout, mask is None, enable_gqa=True)
    return y.transpose(1, 2)


class GatedAttention(nn.Module):
    """Grouped-query softmax attention. A sigmoid gate scales each head's output ([GA], section 2.2)."""

    def __init__(self, config: Qwen3NextConfig):
        super().__init__()
        self.head_dim, self.dropout = config.head_dim, config.attention_dropout
        width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, 2 * width, bias=config.attention_bias)  # query and gate
        self.k_proj = Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.o_proj = Linear(width, config.hidden_size, bias=config.attention_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, step: Step, cache: KVCache | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        B, T, _ = x.shape
        # q_proj's rows are [query | gate] within each head, not all queries and then all gates
        q, gate = self.q_proj(x).view(B, T, -1, 2 * self.head_dim).chunk(2, dim=-1)  # (B, T, heads, head_dim) each
        k = self.k_proj(x).view(B, T, -1, self.head_dim)  # (B, T, kv heads, head_dim)
        v = self.v_proj(x).view(B, T, -1, self.head_dim)
        q_rope = apply_rope(self.q_norm(q), step.cos, step.sin)
        k_rope = apply_rope(self.k_norm(k), step.cos, step.sin)
        keys, values = cache.update(k_rope, v, step) if cache else (k_rope.transpose(1, 2), v.transpose(1, 2))
        attn_out = attend(q_rope, keys, values, step.mask, self.dropout if self.training else 0.0)
        return self.o_proj((attn_out * torch.sigmoid(gate)).flatten(2))


# ==== The gated delta rule ============================================================================================


def l2_normalise(x: Tensor) -> Tensor:
    """x / |x| over the last axis, in float32. With keys of length 1, beta = 1 replaces a key's value exactly."""
    x = upcast(x)
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def _delta_rule_inputs(q, k, v, g, beta, state) -> tuple:
    """Raises half precision to float32, checks the shapes, and moves heads before time: (B, H, T, ...)."""
    B, T, H, K = k.shape
    V = v.shape[-1]
    state = v.new_zeros(B, H, K, V) if state is None else state
    expect_shape("delta rule: q", q, (B, T, H, K))
    expect_shape("delta rule: v", v, (B, T, H, V))
    expect_shape("delta rule: g", g, (B, T, H))
    expect_shape("delta rule: beta", beta, (B, T, H))
    expect_shape("delta rule: state", state, (B, H, K, V))
    q, k, v, g, beta = (upcast(x).transpose(1, 2) for x in (q, k, v, g, beta))
    return q, k, v, g, beta, upcast(state)


def recurrent_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, *, g: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gated delta rule token by token, [GDN] Eq. 10: S <- alpha S, then S <- S + k beta (v - S^T k)^T, out = S^T q.

    Args: q, k (B, T, H, K), normalised and scaled; v (B, T, H, V); g <= 0 (log decay) and beta in [0, 1], (B, T, H);
    state (B, H, K, V) or None for zeros. No argument is changed; everything is differentiable.
    Returns: out (B, T, H, V) in v's dtype, and the state after the last token, float32 (float64 for float64 inputs).
    Raises: ValueError for shapes that do not fit together.
    """
    dtype = v.dtype
    q, k, v, g, beta, S = _delta_rule_inputs(q, k, v, g, beta, state)  # (B, H, T, ...), S (B, H, K, V)
    outputs = []
    for q_t, k_t, v_t, alpha, beta_t in zip(*(x.unbind(2) for x in (q, k, v, g.exp(), beta))):
        S = alpha[..., None, None] * S  # decay: forget a share of everything
        recalled = (k_t[..., None, :] @ S).squeeze(-2)  # recall: S^T k, what the memory holds under this key, (B, H, V)
        delta = beta_t[..., None] * (v_t - recalled)  # delta: how far that is from the new value, times beta
        S = S + k_t[..., :, None] * delta[..., None, :]  # write: now S^T k = (1 - beta) recalled + beta v, if |k| = 1
        outputs.append((q_t[..., None, :] @ S).squeeze(-2))  # read, after the write
    return torch.stack(outputs, dim=1).to(dtype), S


def chunk_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, *, g: Tensor, beta: Tensor, state: Tensor | None = None, chunk_size: int = 64
) -> tuple[Tensor, Tensor]:
    """The same function with matrix products, C = chunk_size tokens at a time: [GDN] section 3.3, [DN] section 3.2.

    Inside a chunk let G_i be the sum of g up to token i and S the state before the chunk. Unrolled, the recurrence is

        delta_i = beta_i (v_i - e^{G_i} S^T k_i - sum_{j<i} e^{G_i - G_j} (k_i . k_j) delta_j)
        out_i   = e^{G_i} S^T q_i + sum_{j<=i} e^{G_i - G_j} (q_i . k_j) delta_j
        S'      = e^{G_C} S + sum_j e^{G_C - G_j} k_j delta_j^T

    In the first line each delta depends on those before it: hence the loop over tokens. But it is linear in delta,
    (I + A) delta = beta (v - e^G S^T k) with A strictly lower triangular. One triangular solve for all chunks gives
    M = (I + A)^-1 diag(beta), and then delta = M (v - e^G S^T k). Only the terms with S stay in the loop over chunks.
    Arguments, results and errors are those of `recurrent_gated_delta_rule`.
    """
    dtype, T = v.dtype, v.shape[1]
    C = min(chunk_size, T)
    q, k, v, g, beta, S = _delta_rule_inputs(q, k, v, g, beta, state)

    # 0. Cut time into N chunks. The padding has beta = 0 and g = 0: it writes nothing and forgets nothing.
    def cut(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, -T % C)) if T % C else x
        return x.unflatten(2, (-1, C)).contiguous()  # (B, H, N, C, ...)

    q, k, v, beta, g = map(cut, (q, k, v, beta[..., None], g[..., None]))
    # 1. Decay between any two tokens of a chunk, e^{G_i - G_j} for j <= i. Each exponent is summed from the g between
    #    the two: a difference of cumulative sums would lose its digits after a strong decay, and be NaN after g = -inf.
    past = torch.ones(C, C, dtype=torch.bool, device=q.device).tril(-1)  # j < i
    between = torch.where(past, g, 0).cumsum(-2)  # G_i - G_j, (B, H, N, C, C)
    decay = between.exp().tril()
    gamma = g.cumsum(-2).exp()  # e^{G_i}, (B, H, N, C, 1)
    to_end = decay[..., -1, :, None]  # e^{G_C - G_i}
    # 2. M = (I + A)^-1 diag(beta), with A_ij = beta_i e^{G_i - G_j} (k_i . k_j) for j < i
    kT = k.transpose(-1, -2)
    A = beta * decay * (k @ kT)  # the solve reads the diagonal as 1 and all above it as 0: I + A
    M = torch.linalg.solve_triangular(A, beta.squeeze(-1).diag_embed(), upper=False, unitriangular=True)
    # 3. Reads of what the chunk itself writes, a token's own write included (j <= i)
    inner = decay * (q @ kT)  # (B, H, N, C, C)
    # 4. Chunk by chunk: recall, delta, read, write
    outputs = []
    chunks = (x.unbind(2) for x in (q, k, v, M, inner, gamma, to_end))
    for q_n, k_n, v_n, M_n, inner_n, gamma_n, to_end_n in zip(*chunks):
        delta = M_n @ (v_n - gamma_n * (k_n @ S))  # (B, H, C, V)
        outputs.append(gamma_n * (q_n @ S) + inner_n @ delta)
        S = gamma_n[..., -1:, :] * S + k_n.transpose(-1, -2) @ (to_end_n * delta)
    return torch.cat(outputs, dim=2)[:, :, :T].transpose(1, 2).to(dtype), S


# ==== Gated DeltaNet ==================================================================================================


class CausalConv(nn.Conv1d):
    """Depthwise causal convolution over time, no bias: y_t = sum_j weight_j x_{t - (kernel - 1) + j}."""

    def forward(
        self, x: Tensor, window: Tensor | None = None, lengths: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Args: x (B, T, channels); window (B, channels, kernel - 1), the inputs before x, None for zeros; lengths (B,)
        real tokens of x, None for all; starts (B, T), where packed sequences begin. Returns: y (B, T, channels), and
        the window after each sequence's last real token.
        """
        B, T, channels = x.shape
        before = self.weight.shape[-1] - 1  # weight (channels, 1, kernel)
        if starts is not None:  # zeros before each sequence, too
            place = torch.arange(T, device=x.device) + before * starts.cumsum(1)
            place = place[..., None].expand(B, T, channels)
            apart = x.new_zeros(B, int(place.max()) + 1, channels).scatter(1, place, x)
            y, window = self(apart)
            return y.gather(1, place), window
        window = x.new_zeros(B, channels, before) if window is None else window
        x = torch.cat([window.transpose(1, 2), x], dim=1)  # (B, kernel - 1 + T, channels)
        if T < 5:  # a few tokens, without the cost of setting up a convolution
            taps = x.unfold(1, before + 1, 1)  # (B, T, channels, kernel)
            y = (upcast(taps) * upcast(self.weight[:, 0])).sum(-1).to(x.dtype)
        else:  # as one row of an image, because a conv2d takes channels last; conv1d would transpose before and after
            dtype = torch.float32 if x.is_cpu and x.dtype in SLOW_HALF else x.dtype
            row = x[:, None].permute(0, 3, 1, 2).to(dtype)  # (B, channels, 1, kernel - 1 + T)
            y = F.conv2d(row, self.weight[:, :, None].to(dtype), groups=channels)[:, :, 0].transpose(1, 2).to(x.dtype)
        window = x[:, T:].clone()  # a slice alone would keep all of x in memory
        if lengths is not None:
            # x begins kernel - 1 early, so these are the last real inputs
            index = lengths[:, None] + torch.arange(before, device=x.device)  # (B, kernel - 1)
            window = x.take_along_dim(index[..., None], dim=1)
        return y, window.transpose(1, 2)


@dataclass
class DeltaNetCache:
    """A Gated DeltaNet layer's memory: the convolution's window and the state. Its size is the same at every position.

    The state sums up all tokens. A token can be cut out of a KV cache, but not out of a sum. So a reversible pass
    saves window and state before it, and what its few tokens write. A rollback starts there and writes those to keep.
    """

    window: Tensor | None = None  # (B, channels, kernel - 1), the convolution's last inputs; None: zeros
    state: Tensor | None = None  # (B, H, K, V), float32 or 64; None: zeros
    last: tuple | None = None  # of a reversible pass: window and state before, the conv's inputs, (q, k, v, g, beta)

    def without_last(self, tokens: int) -> "DeltaNetCache":
        """The cache without the last tokens of a reversible pass. Raises ValueError if that pass had fewer."""
        expect(self.last is not None, "the last pass can't be taken back: cache.reversible was not set")
        window, state, qkv, written = self.last
        keep = qkv.shape[1] - tokens
        expect(keep >= 0, f"the last pass had {qkv.shape[1]} tokens, not {tokens} tokens")
        window = torch.zeros_like(self.window) if window is None else window
        inputs = torch.cat([window, qkv.transpose(1, 2)], dim=-1)
        window = inputs[..., keep : keep + window.shape[-1]].clone()  # those just before token `keep`
        if keep:
            q, k, v, g, beta = (y[:, :keep] for y in written)
            state = recurrent_gated_delta_rule(q, k, v, g=g, beta=beta, state=state)[1]
        return DeltaNetCache(window, state)


class GatedDeltaNet(nn.Module):
    """Project, convolve, run the gated delta rule, normalise, gate ([GDN] section 3.4)."""

    delta_rule = "chunk"  # or "recurrent"; one or two tokens always take the recurrent form
    chunked = staticmethod(functools.partial(chunk_gated_delta_rule, chunk_size=32))  # 32 is faster than 64 on CPUs

    def __init__(self, config: Qwen3NextConfig):
        super().__init__()
        self.K, self.V = config.linear_key_head_dim, config.linear_value_head_dim
        self.key_heads, self.value_heads = config.linear_num_key_heads, config.linear_num_value_heads
        keys, values = self.key_heads * self.K, self.value_heads * self.V
        channels = 2 * keys + values
        self.widths = [2 * keys, values]
        self.in_proj_qkvz = Linear(config.hidden_size, channels + values, bias=False)
        self.in_proj_ba = Linear(config.hidden_size, 2 * self.value_heads, bias=False)
        self.conv1d = CausalConv(channels, channels, config.linear_conv_kernel_dim, groups=channels, bias=False)
        self.A_log = nn.Parameter(torch.zeros(self.value_heads))
        self.dt_bias = nn.Parameter(torch.ones(self.value_heads))  # both are drawn by `init_weights`
        self.norm = GatedRMSNorm(self.V, config.rms_norm_eps, start=1.0)
        self.out_proj = Linear(values, config.hidden_size, bias=False)

    def unpack(self, qkvz: Tensor, ba: Tensor) -> tuple[Tensor, ...]:
        """The two projections' outputs as qkv (B, T, channels): all q, all k, all v; z (B, T, H, V); b, a (B, T, H).

        The rows of both are grouped by key head, with the r = value heads / key heads that share it:

            in_proj_qkvz   q_0 | k_0 | v_0 .. v_{r-1} | z_0 .. z_{r-1}  ||  q_1 | k_1 | v_r .. v_{2r-1} | ...
            in_proj_ba     b_0 .. b_{r-1} | a_0 .. a_{r-1}              ||  b_r .. b_{2r-1} | ...
        """
        B, T, _ = qkvz.shape
        r = self.value_heads // self.key_heads
        groups = (self.key_heads, -1)
        q, k, v, z = qkvz.unflatten(-1, groups).split([self.K, self.K, r * self.V, r * self.V], dim=-1)
        b, a = ba.unflatten(-1, groups).split([r, r], dim=-1)
        v, z = v.reshape(B, T, -1, self.V), z.reshape(B, T, -1, self.V)
        b, a = b.flatten(2), a.flatten(2)
        return torch.cat([q.flatten(2), k.flatten(2), v.flatten(2)], dim=-1), z, b, a

    def forward(self, x: Tensor, step: Step, cache: DeltaNetCache | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        cache = cache or DeltaNetCache()
        qkv, z, b, a = self.unpack(self.in_proj_qkvz(x), self.in_proj_ba(x))
        mixed, conv_state = self.conv1d(qkv, cache.window, step.lengths, step.starts)
        conv_out = F.silu(mixed)
        qk, v = upcast(conv_out).split(self.widths, dim=-1)
        q_unit, k_unit = l2_normalise(qk.unflatten(-1, (2, -1, self.K))).unbind(2)  # (B, T, key heads, K) each
        r = self.value_heads // self.key_heads  # value heads i r to i r + r - 1 share key head i
        q_l2norm = (q_unit * self.K**-0.5).repeat_interleave(r, dim=2)  # (B, T, H, K)
        k_l2norm = k_unit.repeat_interleave(r, dim=2)
        v_conv = v.unflatten(-1, (-1, self.V))  # (B, T, H, V)
        # float32: in half precision a decay close to 1 would round to 1
        g = -upcast(self.A_log).exp() * F.softplus(upcast(a) + upcast(self.dt_bias))  # (B, T, H), log of the decay
        beta = upcast(b).sigmoid()
        if step.lengths is not None:  # padding neither forgets nor writes
            real = torch.arange(x.shape[1], device=x.device)[:, None] < step.lengths[:, None, None]  # (B, T, 1)
            g, beta = g * real, beta * real
        if step.starts is not None:  # a packed sequence begins with an empty memory: alpha = 0
            g = g.masked_fill(step.starts[..., None], -math.inf)
        one_by_one = x.shape[1] <= 2 or self.delta_rule == "recurrent"  # for 1 or 2 tokens a chunk is slower
        rule = recurrent_gated_delta_rule if one_by_one else self.chunked
        delta_out, state = rule(q_l2norm, k_l2norm, v_conv, g=g, beta=beta, state=cache.state)
        written = (q_l2norm, k_l2norm, v_conv, g, beta)
        cache.last = (cache.window, cache.state, qkv, written) if step.reversible else None
        cache.window, cache.state = conv_state, state
        return self.out_proj(self.norm(delta_out, z).flatten(2))


# ==== Mixture of experts ==============================================================================================


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). A dense layer's MLP, an expert, and the shared expert."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.ModuleList):
    """E small MLPs, with the checkpoint's names: 17.gate_proj.weight and so on. Each is called only if it is chosen."""

    grouped = None  # on a GPU, qwen3_next_checkpoints/grouped.py computes all chosen experts at once

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int):
        super().__init__(MLP(hidden_size, intermediate_size) for _ in range(num_experts))

    def forward(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """x (tokens, D), weights and experts (tokens, k) -> (tokens, D): each token's weighted sum of k experts."""
        if self.grouped and self.grouped.fits(x):
            return self.grouped(x, weights, experts)
        if len(x) == 1:  # nothing to sort
            row = x[0]
            outputs = [self[e](row) for e in experts[0].tolist()]
            return weights @ torch.stack(outputs)
        chosen, order = experts.flatten().sort(stable=True)  # all (token, choice) pairs, sorted by expert
        used, counts = chosen.unique_consecutive(return_counts=True)
        tokens = (order // experts.shape[1]).split(counts.tolist())  # each used expert's tokens
        outputs = [self[e](x.index_select(0, rows)) for e, rows in zip(used.tolist(), tokens)]
        # (tokens, k): for each token, its rows of outputs, to be weighted and summed
        place = order.argsort().view_as(experts)
        outputs = torch.cat(outputs)  # under autocast, in a different dtype than x
        return F.embedding_bag(place, outputs, per_sample_weights=weights.to(outputs.dtype), mode="sum")


class SparseMoeBlock(nn.Module):
    """Router, routed experts, and one shared expert that sees every token through a sigmoid gate."""

    def __init__(self, config: Qwen3NextConfig):
        super().__init__()
        self.k, self.normalise = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config.num_experts, config.hidden_size, config.moe_intermediate_size)
        self.shared_expert = MLP(config.hidden_size, config.shared_expert_intermediate_size)
        self.shared_expert_gate = Linear(config.hidden_size, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D) -> (B, T, D), and the router's logits (B, T, E)."""
        router_logits = self.gate(x)
        # softmax over all experts first, then the choice; in float32, since close probabilities decide it
        router_probs = upcast(router_logits).softmax(-1)
        chosen_probs, topk_ids = router_probs.topk(self.k, dim=-1)  # (B, T, k)
        topk_weights = chosen_probs
        if self.normalise:
            topk_weights = chosen_probs / chosen_probs.sum(-1, keepdim=True)
        flat = self.experts(x.flatten(0, 1), topk_weights.flatten(0, 1).to(x.dtype), topk_ids.flatten(0, 1))
        experts_out = flat.view_as(x)
        return experts_out + torch.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x), router_logits


def load_balancing_loss(router_logits: tuple, k: int, mask: Tensor | None = None) -> Tensor:
    """E * sum_e f_e p_e over the real tokens of all MoE layers pooled ([MoE] Eq. 4 to 6).
    f_e is the share of tokens that chose expert e, p_e its mean probability: a router that treats all alike gives k.
    router_logits: (B * T, E) for each layer; mask: (B, T), 0 at padding.
    """
    p = upcast(torch.cat(router_logits)).softmax(-1)  # (layers * B * T, E)
    if mask is not None:
        p = p[mask.flatten().repeat(len(router_logits)) > 0]
    chosen = torch.zeros_like(p).scatter(1, p.topk(k, dim=-1).indices, 1)
    return p.shape[-1] * (chosen.mean(0) * p.mean(0)).sum()


# ==== Block ===========================================================================================================


class DecoderLayer(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Qwen3NextConfig, layer_type: str, moe: bool):
        super().__init__()
        if layer_type == "full_attention":
            self.self_attn = GatedAttention(config)
        else:
            self.linear_attn = GatedDeltaNet(config)
        self.layer_type = layer_type
        self.mlp = SparseMoeBlock(config) if moe else MLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    @property
    def mixer(self) -> GatedAttention | GatedDeltaNet:
        return self.self_attn if self.layer_type == "full_attention" else self.linear_attn

    def forward(self, x: Tensor, step: Step, cache: KVCache | DeltaNetCache | None) -> tuple[Tensor, Tensor | None]:
        """x (B, T, D) -> (B, T, D), and the router's logits (B, T, E) of an MoE layer."""
        x = x + self.mixer(self.input_layernorm(x), step, cache)
        y = self.mlp(self.post_attention_layernorm(x))
        y, router_logits = y if isinstance(y, tuple) else (y, None)
        return x + y, router_logits


# ==== Model ===========================================================================================================


@dataclass
class ModelOutput(getattr(sibling("compat"), "Output", object)):
    """The results of a forward pass; None where not asked for."""

    loss: Tensor | None = None
    logits: Tensor | None = None  # (B, T or logits_to_keep, vocab_size)
    mtp_logits: Tensor | None = None  # (B, T - 1, vocab_size): row i predicts token i + 2
    start_logits: Tensor | None = None  # (B, T), from question answering
    end_logits: Tensor | None = None
    aux_loss: Tensor | None = None  # load-balancing loss, before its coefficient
    mtp_loss: Tensor | None = None  # MTP's cross-entropy, before its factor
    past_key_values: Cache | None = None
    last_hidden_state: Tensor | None = None  # (B, T, D), after the final norm
    hidden_states: tuple[Tensor, ...] | None = None  # embeddings, then each layer's output, the last one normed
    router_logits: tuple[Tensor, ...] | None = None  # (B * T, E) per MoE layer
    segments: Tensor | None = None  # (B, T) int64, number of each token's sequence within its row, from 1; 0: padding


class PreTrainedModel(nn.Module, getattr(sibling("compat"), "Model", object)):
    """The base of all models. "Loading and saving" below adds `from_pretrained` and `save_pretrained`."""

    backbone = "model."  # prefix of Qwen3NextModel's parameter names in this model
    head: str | None = None  # name of a linear layer that a causal checkpoint lacks

    def __init__(self, config: Qwen3NextConfig):
        super().__init__()
        self.config = config if isinstance(config, Qwen3NextConfig) else Qwen3NextConfig.from_dict(config.to_dict())
        self.generation_config: dict[str, Any] = {}  # defaults of `generate`, from generation_config.json

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def make_cache(self, batch_size: int) -> Cache:
        """An empty cache for `batch_size` sequences, to be passed as past_key_values."""
        kinds = {"full_attention": KVCache, "linear_attention": DeltaNetCache}
        return Cache([kinds[kind]() for kind in self.config.layer_types], torch.zeros(batch_size, dtype=torch.long))

    @torch.no_grad()
    def init_weights(self, module: nn.Module):
        """New weights. Decays as in the original Gated DeltaNet: with dt_bias = 1, a token would wipe the memory."""
        for name, p in module.named_parameters():
            if p.is_meta:  # a checkpoint will fill it, and drawing on meta would import half of PyTorch
                return
            if name.endswith("A_log"):
                p.uniform_(1, 16).log_()
            elif name.endswith("dt_bias"):  # softplus(dt_bias) = dt, log-uniform in [0.001, 0.1]
                dt = p.uniform_(math.log(0.001), math.log(0.1)).exp_()
                p.copy_(dt + torch.log(-torch.expm1(-dt)))
            elif name.endswith("bias"):
                p.zero_()
            elif p.ndim > 1:  # the norms have set their own
                p.normal_(0, self.config.initializer_range)


class Qwen3NextModel(PreTrainedModel):
    """Embedding, layers, final norm."""

    backbone = ""

    def __init__(self, config: Qwen3NextConfig):
        super().__init__(config)
        embedding = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(embedding, freeze=False)  # nn.Embedding() would draw weights
        kinds = enumerate(self.config.layer_types)  # `config` may be transformers', which lacks is_moe
        self.layers = nn.ModuleList(DecoderLayer(self.config, kind, self.config.is_moe(i)) for i, kind in kinds)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rope = rope_frequencies(self.config)  # no buffer: .to(bfloat16) would round it
        self.init_weights(self)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        output_router_logits: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput:
        """Reads T new tokens after those in `past_key_values`: prefill, continuation and decoding alike.
        Args: input_ids (B, T) int64, or inputs_embeds (B, T, D); attention_mask (B, T), or with a column for each token
        fed so far: 0 at padding, on either side; position_ids (B, T), by default counted in each sequence. For packed
        rows see `check_inputs`. use_cache makes a cache if none is given; by default not in training, nor for packed
        rows. Raises: ValueError for inputs that do not fit together, a mask with holes, a token outside the vocabulary.
        """
        check("outputs", output_attentions, return_dict)
        x = self.embed(input_ids, inputs_embeds)
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        segments, positions = check_inputs(x, attention_mask, position_ids, past_key_values)
        packed = is_packed(segments)
        if use_cache is None:
            use_cache = not self.training and not packed
        cache = past_key_values
        if use_cache and cache is None:
            cache = self.make_cache(len(x))
        expect(not packed or not cache, "packed sequences take no cache, but use_cache or past_key_values is set")
        collect = output_hidden_states or output_router_logits
        hidden_states, router_logits = self.run(x, self, segments, positions, cache, collect)
        out = ModelOutput(last_hidden_state=hidden_states[-1], past_key_values=cache, segments=segments)
        out.hidden_states = hidden_states if output_hidden_states else None
        out.router_logits = router_logits if output_router_logits else None
        return out

    def embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None = None) -> Tensor:
        """Token ids (B, T), or embeddings (B, T, D), which stay the same -> (B, T, D)."""
        expect((input_ids is None) != (inputs_embeds is None), "pass either input_ids or inputs_embeds")
        expect_tensors(input_ids=input_ids, inputs_embeds=inputs_embeds)
        try:
            x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        except IndexError:
            found = f"input_ids from {input_ids.min()} to {input_ids.max()}"
            raise ValueError(f"{found}, expected 0 to vocab_size - 1 = {self.config.vocab_size - 1}") from None
        right = x.ndim == 3 and 0 not in x.shape
        expect(right, f"the input, embedded, has shape {tuple(x.shape)}, expected (batch, tokens, D), none empty")
        return x

    def run(self, x: Tensor, stack: Any, segments: Any, positions: Any, cache: Any, collect: bool = False) -> tuple:
        """Runs x (B, T, D), with the results of `check_inputs`, through the layers and the norm of `stack`: the model
        itself, or its MTP module. Returns the hidden states, the last one normed, and router logits (B * T, E); without
        `collect`, only the last hidden state.
        """
        B, T, _ = x.shape
        cache = cache or Cache([None] * len(stack.layers), torch.zeros(B, dtype=torch.long, device=x.device))
        fits = len(cache.layers) == len(stack.layers)
        expect(fits, f"the cache has {len(cache.layers)} layers, but there are {len(stack.layers)}")
        cache.seq_len = cache.seq_len.to(x.device)
        packed = segments if is_packed(segments) else None
        lengths = None
        if segments is not None and packed is None:  # bring every sequence to the left, padding to the right
            expect(not cache.reversible, "a reversible pass takes no padding")
            order = segments.argsort(dim=1, descending=True, stable=True)  # (B, T)
            back = order.argsort(dim=1)[..., None]  # the inverse order, to undo it
            x = x.take_along_dim(order[..., None], dim=1)
            lengths = segments.sum(1)
            positions = None if positions is None else positions.gather(1, order)
        if x.is_cuda and not self.rope[0].is_cuda:  # once: the CPU waits for each copy to a GPU
            self.rope = (self.rope[0].to(x.device), self.rope[1])
        step = Step(x, lengths, positions, cache, self.rope, packed)
        limit = self.config.max_position_embeddings
        if cache.columns <= limit < step.slots:  # only when the limit is crossed
            warnings.warn(f"{step.slots} tokens are more than max_position_embeddings ({limit})", stacklevel=2)
        cache.complete = cache.reversible = False  # `step` has noted `reversible`, which is set for one pass
        hidden_states, router_logits = [], []
        for layer, memory in zip(stack.layers, cache.layers):
            if collect:
                hidden_states.append(x.to(step.cos.device))  # layers may be on several GPUs
            x, logits = layer(x, step, memory)
            if collect and logits is not None:
                router_logits.append(logits.to(step.cos.device))
        hidden_states.append(stack.norm(x))
        if lengths is not None or cache.mask is not None:
            new = x.new_ones(B, T) if segments is None else segments
            cache.mask = torch.cat([cache.real(), new > 0], dim=1)
        cache.seq_len = cache.seq_len + (T if lengths is None else lengths)
        cache.columns = step.slots
        cache.complete = True
        if lengths is not None:
            hidden_states = [x.take_along_dim(back, dim=1) for x in hidden_states]
            router_logits = [x.take_along_dim(back, dim=1) for x in router_logits]
        return tuple(hidden_states), tuple(x.flatten(0, 1) for x in router_logits)


# ==== Multi-token prediction ==========================================================================================


class MTP(nn.Module):
    """Looks one token further: from h_i, the hidden state *after* the model's final norm, and token i + 1, it predicts
    token i + 2 ([MTP] Eq. 21 to 23). Embedding and lm_head are the model's own.
    """

    def __init__(self, config: Qwen3NextConfig):
        super().__init__()
        D = config.hidden_size
        self.fc = Linear(2 * D, D, bias=False)
        self.pre_fc_norm_embedding = RMSNorm(D, config.rms_norm_eps)
        self.pre_fc_norm_hidden = RMSNorm(D, config.rms_norm_eps)
        self.layers = nn.ModuleList([DecoderLayer(config, "full_attention", moe=config.num_experts > 0)])
        self.norm = RMSNorm(D, config.rms_norm_eps)

    def forward(self, hidden: Tensor, next_embeds: Tensor) -> Tensor:
        """h_i and the embedding of token i + 1, (B, T, D) each -> the layer's input (B, T, D)."""
        return self.fc(torch.cat([self.pre_fc_norm_embedding(next_embeds), self.pre_fc_norm_hidden(hidden)], dim=-1))


# ==== Causal language model ===========================================================================================


def prediction_loss(logits: Tensor, labels: Tensor, ahead: int, segments: Tensor | None) -> Tensor:
    """Mean cross-entropy of logits, whose row i predicts labels[:, i + ahead]. Left out are labels of -100 and, by
    segments (B, T), padding and the step from one sequence of a row into the next. 0 if none are left.
    """
    targets = labels[:, ahead:]
    if segments is not None:
        apart = segments[:, :-ahead] != segments[:, ahead:]
        targets = targets.masked_fill(apart | (segments[:, ahead:] == 0), -100)
    rows = upcast(logits[:, : targets.shape[1]]).flatten(0, 1)
    sums = F.cross_entropy(rows, targets.flatten(), reduction="sum")
    return sums / (targets != -100).sum().clamp(min=1)


class Qwen3NextForCausalLM(PreTrainedModel):
    """The model, its output projection, and MTP if the config asks for it. "Generation" below adds `generate`."""

    def __init__(self, config: Qwen3NextConfig):
        super().__init__(config)
        self.model = Qwen3NextModel(self.config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mtp = MTP(self.config) if self.config.mtp_num_hidden_layers else None
        for part in (self.lm_head, self.mtp) if self.mtp else (self.lm_head,):
            self.init_weights(part)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
        output_router_logits: bool | None = None,
        output_mtp_logits: bool = False,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput:
        """Like `Qwen3NextModel.forward`, plus logits (B, T, vocab_size), or those of the last `logits_to_keep` if > 0.
        labels (B, T) int64 add a loss, the mean cross-entropy of predicting labels[:, 1:] without -100. To it,
        output_router_logits (default: the config's) and output_mtp_logits add their losses, times the config's factors.
        """
        expect(labels is None or not logits_to_keep, "labels need all logits, but logits_to_keep is set")
        x = self.model.embed(input_ids, inputs_embeds)
        inputs = (None, attention_mask, position_ids, past_key_values, x)  # None: x is embedded already
        use_cache = False if use_cache is None and labels is not None else use_cache
        out = self.model(*inputs, use_cache, output_hidden_states, output_router_logits, output_attentions, return_dict)
        segments = out.segments
        out.logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])  # 0 keeps all
        if labels is not None:
            out.loss = prediction_loss(out.logits, labels, 1, segments if is_packed(segments) else None)
        if out.router_logits:
            real = None if segments is None else segments > 0
            out.aux_loss = load_balancing_loss(out.router_logits, self.config.num_experts_per_tok, real)
            if labels is not None:
                out.loss = out.loss + self.config.router_aux_loss_coef * out.aux_loss
        if output_mtp_logits:
            expect(past_key_values is None, "output_mtp_logits takes whole sequences, not a continuation")
            expect(x.shape[1] > 1, "output_mtp_logits needs at least 2 tokens, found 1")
            pairs = None if segments is None else segments[:, :-1] * (segments[:, 1:] > 0)  # 0: one of them is padding
            positions = None if position_ids is None else position_ids[:, :-1]
            hidden = self.look_ahead(out.last_hidden_state[:, :-1], x[:, 1:], pairs, positions)
            out.mtp_logits = mtp_logits = self.lm_head(hidden)
            if labels is not None:
                out.mtp_loss = prediction_loss(mtp_logits, labels, 2, segments)
                out.loss = out.loss + self.config.mtp_loss_scaling_factor * out.mtp_loss
        return out

    def look_ahead(
        self, hidden: Tensor, embeds: Tensor, mask: Any = None, positions: Any = None, cache: Cache | None = None
    ) -> Tensor:
        """MTP's hidden states (B, T, D), for lm_head, from the model's hidden states, or MTP's own, and the embeddings
        of the tokens that follow. `cache` is MTP's, not the model's. Raises ValueError without MTP.
        """
        expect(self.mtp is not None, "the model has no MTP layer: its checkpoint has no mtp.* tensors")
        x = self.mtp(hidden, embeds)
        segments, positions = check_inputs(x, mask, positions, cache)
        return self.model.run(x, self.mtp, segments, positions, cache)[0][-1]


# ==== Other heads =====================================================================================================


class LinearHead(PreTrainedModel):
    """A backbone and a linear layer on its hidden states. Parameter names, losses and outputs follow transformers."""

    head, bias = "score", True

    def __init__(self, config: Qwen3NextConfig):
        super().__init__(config)
        self.num_labels = getattr(config, "num_labels", None) or len(getattr(config, "id2label", None) or range(2))
        check("labels", self.num_labels)
        outputs = 2 if self.head == "qa_outputs" else self.num_labels  # a span's start and end
        self.add_module(self.backbone[:-1], Qwen3NextModel(self.config))
        self.add_module(self.head, Linear(config.hidden_size, outputs, bias=self.bias))
        self.init_weights(self.get_submodule(self.head))
        self.dropout = nn.Dropout(0.0)

    def forward(self, *inputs: Any, labels: Tensor | None = None, **options: Any) -> ModelOutput:
        """Like the backbone, plus logits (B, T, outputs). labels (B, T) int64 add a mean cross-entropy without -100."""
        out = self.get_submodule(self.backbone[:-1])(*inputs, **{"use_cache": False, **options})
        out.logits = self.get_submodule(self.head)(self.dropout(out.last_hidden_state))
        if labels is not None:
            out.loss = F.cross_entropy(upcast(out.logits).flatten(0, 1), labels.flatten())
        return out


class Qwen3NextForSequenceClassification(LinearHead):
    """A label for a sequence, from its last real token."""

    bias = False

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, *inputs: Any, labels: Any = None, **options: Any
    ) -> ModelOutput:
        """logits (B, num_labels). labels: int64 (B,), float (B,) or (B, num_labels), by the config's problem_type."""
        out = super().forward(input_ids, attention_mask, *inputs, **options)
        B, T, _ = out.logits.shape
        expect(not is_packed(out.segments), "a label for a sequence: packed sequences can't be classified")
        real = attention_mask
        if real is None:  # then padding is recognised by its token
            pad = getattr(self.config, "pad_token_id", None)
            known = input_ids is not None and pad is not None
            expect(known or B == 1, "several sequences need an attention_mask, or a pad_token_id in config.json")
            real = input_ids != pad if known else out.logits.new_ones(B, T)
        last = (real[:, -T:].bool() * torch.arange(T, device=real.device)).argmax(1)
        out.logits = out.logits[torch.arange(B, device=last.device), last]
        if labels is not None:
            kind = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
            kind = getattr(self.config, "problem_type", None) or ("regression" if self.num_labels == 1 else kind)
            logits = upcast(out.logits)
            if kind == "regression":
                out.loss = F.mse_loss(logits.view_as(labels), upcast(labels))
            elif kind == "single_label_classification":
                out.loss = F.cross_entropy(logits, labels.flatten())
            elif kind == "multi_label_classification":
                out.loss = F.binary_cross_entropy_with_logits(logits, upcast(labels))
            expect(out.loss is not None, f"config: problem_type is {kind!r}, which is not known")
        return out


class Qwen3NextForTokenClassification(LinearHead):
    """A label for each token."""

    def __init__(self, config: Qwen3NextConfig):
        self.bias = getattr(config, "token_classification_bias", True)
        super().__init__(config)
        rates = (getattr(config, name, None) for name in ("classifier_dropout", "hidden_dropout"))
        self.dropout.p = next((rate for rate in rates if rate is not None), 0.1)


class Qwen3NextForQuestionAnswering(LinearHead):
    """The span of the input that answers a question."""

    backbone, head = "transformer.", "qa_outputs"

    def forward(
        self, *inputs: Any, start_positions: Tensor | None = None, end_positions: Tensor | None = None, **options: Any
    ) -> ModelOutput:
        """start_logits and end_logits (B, T). Positions (B,) int64 below T add their mean cross-entropy."""
        out = super().forward(*inputs, labels=None, **options)
        out.start_logits, out.end_logits = out.logits.unbind(-1)
        if start_positions is not None and end_positions is not None:
            T = out.logits.shape[1]
            pairs = ((out.start_logits, start_positions), (out.end_logits, end_positions))
            out.loss = sum(F.cross_entropy(upcast(x), y.flatten().clamp(0, T), ignore_index=T) for x, y in pairs) / 2
        return out


# ==== Loading and saving ==============================================================================================

FP8 = torch.float8_e4m3fn
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64, "F8_E4M3": FP8}
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")
NO_OPTIONS = ("trust_remote_code", "low_cpu_mem_usage", "use_safetensors", "use_fast")  # accepted, without effect
FIELDS = [*Qwen3NextConfig.__annotations__, "num_labels", "id2label", "label2id", "problem_type", "rope_parameters"]
FIELDS += ["classifier_dropout", "hidden_dropout", "token_classification_bias"]
FIELDS += ["bos_token_id", "eos_token_id", "pad_token_id"]
OTHER_FORMATS = re.compile(r"_scale_inv$|\.experts\.(gate_up|down)_proj")  # FP8 scales, and fused experts
BACKBONE = re.compile(r"^(model\.)?(transformer\.)?(?=(embed_tokens|layers|norm)\.)")  # each model's own prefix


def progress(steps: Any, action: str, unit: str) -> tqdm:
    """Iterates over the steps. On a terminal, a progress bar appears after two seconds."""
    return tqdm(steps, action, unit=unit, leave=False, delay=2, disable=None)


@contextmanager
def reading(path: str | Path, problem: str) -> Iterator[None]:
    """Turns any failure inside into one that names the file and the problem: FileNotFoundError, or else ValueError."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except BaseException as error:  # a parser may raise anything; tokenizers' PanicException isn't an Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(one_line(f"{path}: {problem} ({str(error) or type(error).__name__})")) from None


def read_text(path: str | Path) -> str:
    """A UTF-8 text file, or standard input for "-". Raises FileNotFoundError or ValueError naming the file."""
    expect(path != "-" or sys.stdin is not None, "-: standard input is closed")
    with reading(path, "not UTF-8 text"):
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode("utf-8")


def read_json(path: Path, missing: dict | None = None) -> dict:
    """The object in a JSON file; `missing`, if given, where there is no file. Raises the errors of `read_text`."""
    if missing is not None and not path.is_file():
        return missing
    with reading(path, "not JSON"):
        content = json.loads(read_text(path))
    expect(isinstance(content, dict), f"{path}: holds {type(content).__name__}, expected an object")
    return content


def find_checkpoint(path_or_repo: str | os.PathLike, options: dict, known: Iterable[str] = ()) -> Path:
    """A checkpoint's folder: a local one, or a downloaded hub repository (owner/name). Removes from `options` those of
    the hub and those without effect. Raises TypeError for an unknown one, FileNotFoundError if there is no such folder.
    """
    hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
    for name in NO_OPTIONS:
        options.pop(name, None)
    expect_known("from_pretrained", options, known)
    path = Path(path_or_repo)
    name = str(path_or_repo)
    if path.is_dir():
        check("links", path)
        return path
    if path.exists() or not re.fullmatch(r"[^\W_][^/]*/[^/]*", name):
        raise FileNotFoundError(f"{path}: no such folder, and not the name of a hub repository (owner/name)")
    return sibling("hub", f"{name}: no such folder; a name on the hub").download(name, **hub)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file as views of the mapped file: only the header is read now, a tensor when it is used.

    The format: 8 bytes header length, little endian; the header, JSON {name: {dtype, shape, data_offsets}}; the data.
    `safe_open` checks that they fit together; loading with it would touch every tensor. The mapping is private: writes
    never reach the file. On Linux a file may be larger than the memory. Raises ValueError naming the file.
    """
    mapping = {"access": mmap.ACCESS_COPY}
    if sys.platform == "linux":
        mapping = {"flags": mmap.MAP_PRIVATE | 0x4000, "prot": mmap.PROT_READ | mmap.PROT_WRITE}  # MAP_NORESERVE
    with reading(path, "not a whole safetensors file"), path.open("rb") as file:
        safe_open(path, "numpy")  # raises unless header and data fit
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        data = mmap.mmap(file.fileno(), 0, **mapping)
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        shape = entry["shape"]
        with reading(f"{path}: {name}", f"dtype {entry['dtype']} or shape {shape}, expected floating point numbers"):
            dtype = DTYPES[entry["dtype"]]
            place = {"count": math.prod(shape), "offset": 8 + length + entry["data_offsets"][0]}
            flat = torch.frombuffer(data, dtype=dtype, **place) if place["count"] else torch.empty(0, dtype=dtype)
            tensors[name] = flat.view(shape)
    return tensors


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder: model.safetensors, or the shards of model.safetensors.index.json."""
    single = folder / "model.safetensors"
    if single.is_file():  # preferred to shards, which are left from another save
        return read_safetensors(single)
    index = folder / "model.safetensors.index.json"
    check("weights", index)
    content = read_json(index)
    check("index", index, content)
    names = sorted(set(content["weight_map"].values()))
    shards = {name: read_safetensors(folder / name) for name in progress(names, "opening", "file")}
    check("shards", index, content, shards)
    return {name: tensor for shard in shards.values() for name, tensor in shard.items()}


def read_config(folder: Path, **fields: Any) -> tuple[Qwen3NextConfig, Any]:
    """A folder's config, with `fields` replaced, and the module for its family's tensors; None for Qwen3-Next."""
    check("kind", folder)
    path = folder / "config.json"
    content = read_json(path)
    family = None
    with reading(path, "can't be used"):
        if str(content.get("model_type")).startswith("qwen3_5"):
            family = sibling("qwen3_5", "a Qwen3.5 or 3.6 checkpoint")
            content = family.translate_config(content)
        if fields.keys() & {"rope_scaling", "rope_parameters"}:  # these replace the file's, in either dialect
            file = {**content, **(content.pop("rope_parameters", None) or {})}
            given = {**fields, **(fields.get("rope_scaling") or {}), **(fields.get("rope_parameters") or {})}
            kept = {key: file.get(key) for key in ("rope_theta", "partial_rotary_factor") if key not in given}
            content = {**{k: v for k, v in content.items() if not k.startswith(("rope_", "partial_rotary"))}, **kept}
        return Qwen3NextConfig.from_dict({**content, **fields}), family


def as_device(device_map: str | torch.device | dict) -> torch.device:
    """The device named. "auto" is the GPU if there is one; {"": device} is that device."""
    device_map = device_map.get("", device_map) if isinstance(device_map, dict) else device_map
    name = ("cuda" if torch.cuda.is_available() else "cpu") if str(device_map) == "auto" else device_map
    with reading(f"device {str(device_map)!r}", "can't be used"):
        return torch.empty(0, device=name).device


def read_weights(folder: Path, dtype: Any, fields: dict) -> tuple[Qwen3NextConfig, dict, torch.dtype]:
    """A folder's config, its tensors in the released layout, and the dtype; "auto": the config's, or the tensors'."""
    before = folder.stat()
    config, family = read_config(folder, **fields)
    tensors = read_checkpoint(folder)
    same = os.path.samestat(before, folder.stat())  # a save replaces the folder: never read a mixture of two
    expect(same, f"{folder}: was replaced by another save while it was read: read it again")
    formats = sibling("formats")
    if formats:  # fine-tuning tools' prefixes, MTP in a file of its own
        tensors = formats.usual(folder, tensors, read_safetensors)
    tensors = family.rename(tensors) if family else tensors
    mtp = any(name.startswith("mtp.") for name in tensors)  # the released config.json does not say
    config = Qwen3NextConfig(**{**config.to_dict(), "mtp_num_hidden_layers": int(mtp)})
    pair = [tensors[name] for name in ("lm_head.weight", "model.embed_tokens.weight") if name in tensors]
    if config.tie_word_embeddings and len(pair) == 2:  # the tensors decide, as in transformers
        config.tie_word_embeddings = torch.equal(*pair)
    if dtype == "auto":
        named = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
        dtype = named or next((t.dtype for t in tensors.values() if t.dtype != FP8), torch.bfloat16)
    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    right = found in DTYPES.values() and found != FP8
    expect(right, f"dtype is {dtype!r}, expected auto, bfloat16, float16, float32 or float64")
    with reading(folder, "can't be used"):
        if any(t.dtype == FP8 or OTHER_FORMATS.search(name) for name, t in tensors.items()):
            formats = sibling("formats", "a checkpoint with FP8 or fused experts")
            tensors = formats.plain(tensors, config.num_experts)
        if family:
            tensors = family.repack(tensors, config.to_dict(), functools.partial(formats.dequantise, dtype=found))
    return config, tensors, found


def build(cls: type, config: Qwen3NextConfig, tensors: dict, source: Path, delta_rule: str) -> tuple:
    """A folder's model on the meta device, its tensors by the model's names, and a new head if the folder lacks one."""
    names = {BACKBONE.sub(cls.backbone, name): name for name in tensors}
    check("names", source, tensors.keys() - names.values())
    tensors = {place: tensors[name] for place, name in names.items()}
    check("sizes", config, tensors, source)
    gc.disable()  # it would scan a hundred thousand new modules again and again
    try:
        with reading(source / "config.json", "can't be used"), torch.device("meta"):
            model = cls(config)
    finally:
        gc.enable()
    if cls.head and not any(name.startswith(f"{cls.head}.") for name in tensors):
        warnings.warn(f"{source}: no {cls.head}: its weights are new, and have to be trained", stacklevel=3)
        head = model.get_submodule(cls.head).to_empty(device="cpu")
        model.init_weights(head)
        tensors |= {f"{cls.head}.{name}": p.detach() for name, p in head.named_parameters()}
    want = {name: tuple(p.shape) for name, p in model.named_parameters()}
    others = {"lm_head", "mtp", "score", "qa_outputs"} - {name.partition(".")[0] for name in want}
    found = {name: tuple(t.shape) for name, t in tensors.items() if name.partition(".")[0] not in others}
    found = {name: size for name, size in found.items() if not name.endswith("_scale_inv")}
    check("tensors", want, found, source)
    expect(want == found, f"{source}: the tensors do not fit config.json")
    for module in model.modules():
        if isinstance(module, GatedDeltaNet):
            module.delta_rule = delta_rule
    model.generation_config = read_json(source / "generation_config.json", {})
    return model, tensors


# These become methods at the end of this part: they need the functions above; the classes do not.
@classmethod
def config_from_pretrained(cls, path_or_repo: str | os.PathLike, **fields: Any) -> Qwen3NextConfig:
    """The config of a checkpoint folder or hub repository, with `fields` replaced. Raises like a model's."""
    folder = find_checkpoint(path_or_repo, fields, FIELDS)
    return read_config(folder, **fields)[0]


@classmethod
def from_pretrained(
    cls,
    path_or_repo: str | os.PathLike,
    dtype: str | torch.dtype = "auto",
    device_map: str | torch.device = "cpu",
    delta_rule: str = "chunk",
    in_memory: bool = False,
    compile: bool = False,
    max_memory: dict | None = None,
    **fields: Any,
) -> PreTrainedModel:
    """A model with a checkpoint's weights, in evaluation mode.

    On the CPU and in the checkpoint's dtype, the weights stay in the mapped files, and are read when they are used.
    in_memory copies and aligns them, if there is room: loading takes longer, each token about a quarter less time.
    Args: path_or_repo, a folder or a hub name; dtype, "auto": the checkpoint's; device_map, "auto": as few GPUs as hold
    it, or if all are too small, the CPU for routed experts or everything; delta_rule, "chunk" or "recurrent", the form
    for more than two tokens; compile, to compile the mixers for decoding; max_memory, for "auto", limits by device,
    {0: "20GiB", "cpu": "60GiB"}; fields of config.json to replace (num_labels); revision, token, cache_dir,
    local_files_only for the hub. Raises FileNotFoundError or ValueError naming the file.
    """
    dtype = fields.pop("torch_dtype", dtype)  # the old name of dtype
    expect(delta_rule in ("chunk", "recurrent"), f"delta_rule is {delta_rule!r}, expected 'chunk' or 'recurrent'")
    device = as_device(device_map)
    large = sibling("large", "in_memory=True" if in_memory else "")
    dispatch = sibling("dispatch", "" if max_memory is None else "max_memory")
    folder = find_checkpoint(path_or_repo, fields, FIELDS)
    config, tensors, dtype = read_weights(folder, dtype, fields)
    model, tensors = build(cls, config, tensors, folder, delta_rule)
    places = dict.fromkeys(tensors, device)
    if dispatch:
        places = dispatch.dispatch(model, Experts, tensors, dtype, device, device_map, max_memory)
    if in_memory:
        large.expect_room(tensors, places)
    if any(tensor.dtype == FP8 for tensor in tensors.values()):
        tensors = sibling("formats").place(model, tensors, linear, places, in_memory, dtype)
    for name, p in progress([*model.named_parameters()], "loading", "tensor"):
        if p.is_meta:
            torch.utils.swap_tensors(p, nn.Parameter(tensors[name].to(places[name], dtype, copy=in_memory)))
    grouped = sibling("grouped") if {place.type for place in places.values()} == {"cuda"} else None
    if grouped:
        grouped.stack(model, Experts)
    if large:
        large.attach(model, Experts, tensors, folder)
    if compile:
        sibling("compiling", "compile=True").compile_mixers(model, DecoderLayer)
    return model.eval()


def save_pretrained(self: PreTrainedModel, path: str | os.PathLike, max_shard_size: int | str = "5GB"):
    """Writes a folder that transformers can load, by qwen3_next_checkpoints/saving.py. Raises ValueError, OSError."""
    sibling("saving", "save_pretrained").save(self, path, max_shard_size)


Qwen3NextConfig.from_pretrained = config_from_pretrained
PreTrainedModel.from_pretrained = from_pretrained
PreTrainedModel.save_pretrained = save_pretrained


# ==== Tokenizer and chat template =====================================================================================


CHAT_OPTIONS = ("return_tensors", "return_dict", "continue_final_message", "padding", "truncation", "max_length")
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Encoding(dict):
    """input_ids and attention_mask, by key or as attributes; `**encoding` passes both on."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)

    def to(self, device: str | torch.device) -> "Encoding":
        return Encoding({key: value.to(device) for key, value in self.items()})


class Qwen3NextTokenizer(getattr(sibling("compat"), "Tokenizer", object)):
    """tokenizer.json through the tokenizers library, and the chat template through Jinja's sandbox."""

    def __init__(self, backend: Any, config: dict, chat_template: str | None):
        self.backend = backend
        self.fields = dict(config)
        self.chat_template = chat_template
        with reading("tokenizer_config.json", "can't be used"):
            entries = (config.get("added_tokens_decoder") or {}).items()
            new = {int(n): entry for n, entry in entries if backend.token_to_id(entry["content"]) is None}
            backend.add_tokens([tokenizers.AddedToken(**entry) for entry in new.values()])  # some are defined only here
            special = {name: config[name] for name in SPECIAL_TOKENS if config.get(name)}
            self.special_tokens = {name: x["content"] if isinstance(x, dict) else x for name, x in special.items()}
            check("tokenizer", backend, new, self.special_tokens, chat_template)
            ids = {name: backend.token_to_id(token) for name, token in self.special_tokens.items()}
        self.eos_token_id = ids.get("eos_token")
        self.pad_token_id = ids.get("pad_token", self.eos_token_id or 0)
        backend.no_padding()
        backend.no_truncation()  # tokenizer.json may ask for either

    @classmethod
    def from_pretrained(cls, path_or_repo: str | os.PathLike, **options: Any) -> "Qwen3NextTokenizer":
        """Reads tokenizer.json and, if present, tokenizer_config.json and chat_template.jinja. Errors name the file."""
        folder = find_checkpoint(path_or_repo, options)
        check("tokenizer_files", folder)
        path = folder / "tokenizer.json"
        with reading(path, "not a tokenizer"):
            backend = tokenizers.Tokenizer.from_str(read_text(path))
        fields = read_json(folder / "tokenizer_config.json", {})
        jinja = folder / "chat_template.jinja"
        template = read_text(jinja) if jinja.is_file() else fields.get("chat_template")
        if isinstance(template, list):  # several templates, by name
            named = (t for t in template if isinstance(t, dict) and t.get("name") == "default")
            template = next(named, {}).get("template")
        return cls(backend, fields, template)

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    def __call__(
        self, text: Any, return_tensors: Any = None, padding: Any = False, padding_side: Any = None, **options: Any
    ) -> Encoding:
        """Ids and attention mask of one text or several: lists, or (B, T) tensors for "pt". options: `encode_all`'s."""
        expect(return_tensors in (None, "pt"), f"return_tensors is {return_tensors!r}, expected 'pt' or None")
        side = padding_side or self.fields.get("padding_side") or "right"
        check("padding", side, padding, options)
        texts = [text] if isinstance(text, str) else text
        fields = {"input_ids": "ids", "attention_mask": "attention_mask"}  # our name: a row's attribute
        with reading("tokenizer.json", "can't encode these texts"):
            rows = self.encode_all(texts, fields, **options) if options else self.backend.encode_batch(texts)
        longest = max((len(row.ids) for row in rows), default=0) if padding else 0
        longest = options["max_length"] if padding == "max_length" else longest
        for row in rows:  # one by one: the backend's own padding is a setting that all threads share
            row.pad(longest, direction=side, pad_id=self.pad_token_id)
        fields = {name: [getattr(row, source) for row in rows] for name, source in fields.items()}
        if return_tensors == "pt":
            expect(len({len(row.ids) for row in rows}) < 2, "texts of different lengths: a tensor needs padding=True")
            return Encoding({key: torch.tensor(value, dtype=torch.long) for key, value in fields.items()})
        return Encoding({key: value[0] if isinstance(text, str) else value for key, value in fields.items()})

    def encode(self, text: str, **options: Any) -> list[int]:
        """Token ids; a special token spelled out in the text becomes that token. options: as for a call."""
        return self(text, **options).input_ids

    def decode(self, ids: int | list[int] | Tensor, skip_special_tokens: bool = False) -> str:
        """Text of token ids."""
        ids = ids.tolist() if isinstance(ids, Tensor) else ids
        with reading("tokenizer.json", "can't decode these tokens"):
            return self.backend.decode([ids] if isinstance(ids, int) else list(ids), skip_special_tokens)

    def batch_decode(self, batch: Any, skip_special_tokens: bool = False) -> list[str]:
        """Texts of several sequences."""
        return [self.decode(ids, skip_special_tokens) for ids in batch]

    def apply_chat_template(
        self, messages: list, tools: Any = None, tokenize: bool = False, add_generation_prompt: Any = None, **kwargs
    ) -> Any:
        """The conversation as the checkpoint's own template writes it: text, or with `tokenize` token ids. By default,
        the prompt for an answer follows unless the last message is an answer. kwargs: the template's variables, such as
        enable_thinking, and the options of `chat` in compat.py. The template is a program from the checkpoint, so it
        runs in Jinja's sandbox and can't change its arguments. Raises ValueError without one, or if it fails.
        """
        from jinja2.sandbox import ImmutableSandboxedEnvironment as Sandbox

        check("messages", messages, tools, kwargs, self.chat_template)
        if kwargs.keys() & CHAT_OPTIONS or isinstance(messages[0], (list, tuple)):
            return self.chat(messages, tools, tokenize, add_generation_prompt, **kwargs)
        template = kwargs.pop("chat_template", None) or self.chat_template
        expect(isinstance(template, str), "the checkpoint has no chat template")
        template = re.sub(r"(\{%[-+]?\s*)(end)?generation\b", r"\1\2with", template)  # these tags are for training
        env = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        env.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
        env.globals.update(raise_exception=lambda message: expect(False, message), strftime_now=time.strftime)
        if add_generation_prompt is None:
            add_generation_prompt = messages[-1].get("role") != "assistant"
        kwargs |= {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:
            text = env.from_string(template).render({**self.special_tokens, **kwargs})
        except Exception as error:  # a template can fail like any program
            raise ValueError(f"chat template: {one_line(error)}") from None
        return self.encode(text) if tokenize else text


# ==== Sampling and speculation ========================================================================================

# The numeric options of `generate`, and the largest value of each
LIMITS = {"temperature": 1e9, "repetition_penalty": 1e9, "presence_penalty": 1e9, "top_p": 1.0, "min_p": 1.0}
LIMITS |= dict.fromkeys(("top_k", "min_new_tokens", "max_length", "max_new_tokens"), 10**9)
LIMITS |= {"num_draft_tokens": 2**16, "seed": 2**63 - 1}
# The options that change the logits before a token is chosen, and the value of each that changes nothing
PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "min_new_tokens": 0}
PENALTIES |= {"suppress_tokens": None, "bad_words_ids": None, "logits_processor": None}


@dataclass
class Sampling:
    """How the next token is chosen: the likeliest, or a random one of those left by top_k, then top_p, then min_p."""

    do_sample: bool = False
    temperature: float = 1.0  # 0: the likeliest token
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        expect(isinstance(self.do_sample, bool), f"do_sample is {self.do_sample!r:.99}, expected true or false")
        self.do_sample = self.do_sample and self.temperature > 1e-9  # divided by less, logits would overflow

    def probabilities(self, logits: Tensor) -> Tensor:
        """Next-token distribution (..., vocab), float32 or float64, of logits (..., vocab)."""
        logits = upcast(logits)
        if not self.do_sample:
            return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1)
        logits = logits / self.temperature
        if self.top_k:
            kth = logits.topk(min(self.top_k, logits.shape[-1])).values[..., -1:]
            logits = logits.masked_fill(logits < kth, -math.inf)
        if self.top_p < 1:  # the fewest likeliest tokens that together reach top_p, at least one
            p, order = logits.softmax(-1).sort(descending=True, stable=True)
            beyond = p.cumsum(-1) - p >= self.top_p
            beyond[..., 0] = False
            logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -math.inf)
        p = logits.softmax(-1)
        p = p.masked_fill(p < self.min_p * p.amax(-1, keepdim=True), 0)
        return p / p.sum(-1, keepdim=True)

    def draw(self, p: Tensor, generator: torch.Generator | None) -> Tensor:
        """A token for each distribution p (B, vocab): (B,)."""
        if not self.do_sample:
            return p.argmax(-1)
        with reading("the model", "its weights or config.json are damaged: probabilities that are no numbers"):
            return torch.multinomial(p, 1, generator=generator)[:, 0]

    def verify(self, p: Tensor, q: Tensor, drafts: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Speculative sampling, [Spec] Algorithm 1: the tokens that come out are distributed as p, whatever q is.

        A draft x is accepted with probability p(x) / q(x) if all before it are. One more token follows: drawn from
        max(p - q, 0), normalised, at the first draft that is rejected; from p if none is. Greedy decoding is the
        case of one-hot p and q: a draft is accepted if and only if it is the likeliest token.
        Args: p (B, n + 1, vocab), the model's distributions of n drafts and of the token after them; q (B, n, vocab),
        what the drafts (B, n) were drawn from. Returns: how many are accepted (B,), and the token after them (B,).
        """
        n = drafts.shape[1]
        if n == 0:
            return drafts.new_zeros(len(drafts)), self.draw(p[:, 0], generator)
        p_draft = p[:, :n].gather(2, drafts[..., None]).squeeze(-1)  # (B, n)
        q_draft = q.gather(2, drafts[..., None]).squeeze(-1)
        chance = torch.rand(p_draft.shape, dtype=p.dtype, device=p.device, generator=generator)
        accepted = (chance < p_draft / q_draft).long().cumprod(1).sum(1)
        rows = torch.arange(len(p), device=p.device)
        rest = torch.cat([(p[:, :n] - q).clamp(min=0), p[:, n:]], dim=1)[rows, accepted]  # (B, vocab)
        rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p[rows, accepted])  # p = q, but for rounding
        return accepted, self.draw(rest, generator)


# ==== Generation ======================================================================================================

PREFILL_WINDOW = 2048  # tokens per forward pass of a long prompt: bounds the memory of the chunked form


@dataclass
class Decoder:
    """Reads a prompt and continues it, in rounds of one pass of the model each: `prefill`, and then again and again

        tokens = next_tokens()    the drafts that the last pass accepts, and one more token
        keep(tokens)              as many of these as the caller takes; the cache forgets the other drafts
        advance(limit)            up to n new drafts by MTP, and a pass of the model over the last token and the drafts

    In between it keeps: out, the last pass's output; drafts, which that pass verifies, and q, their distributions;
    hidden, MTP's last state; last, the last token kept; mask, where that token is real; and in cache.mtp, MTP's keys
    and values, one entry per token. Drafts need a single sequence.
    """

    model: Qwen3NextForCausalLM
    cache: Cache
    rule: Sampling
    n: int = 0
    generator: torch.Generator | None = None
    penalties: Any = None  # `Penalties` of qwen3_next_checkpoints/penalties.py, applied to the logits

    def __post_init__(self):
        expect(not self.n or self.model.mtp, "num_draft_tokens needs an MTP layer: the checkpoint has no mtp.* tensors")
        self.drafted, self.accepted = [0] * self.n, [0] * self.n  # counts by position
        mtp, columns = self.cache.mtp, self.cache.columns
        in_step = mtp and mtp.complete and mtp.columns == columns - self.cache.mtp_start
        if self.n and not in_step:  # new, or not up to date after passes without drafts
            self.cache.mtp = Cache([KVCache()], torch.zeros_like(self.cache.seq_len))
            self.cache.mtp_start = columns

    def prefill(self, ids: Tensor, mask: Tensor | None):
        """Reads the part of the prompt (B, T) that the cache lacks, a window at a time."""
        B, T = ids.shape
        known = self.cache.columns
        expect(known < T, f"the cache holds {known} tokens, input_ids only {T}")
        mask = torch.ones_like(ids) if mask is None else mask
        segments, _ = check_inputs(ids[:, known:], mask, None, self.cache)
        expect_shape("attention_mask", mask, (B, T))
        expect(not is_packed(segments), "attention_mask counts several sequences in a row; generate continues one")
        real = mask[:, known:] > 0
        expect(real.any(dim=1).all(), "attention_mask leaves a sequence without new tokens")
        order = real.int().argsort(dim=1, stable=True)  # padding first: every prompt ends in the last column
        ids, real = ids[:, known:].gather(1, order), real.gather(1, order)
        for start in progress(range(0, T - known, PREFILL_WINDOW), "reading", "window"):
            now = slice(start, start + PREFILL_WINDOW)
            self.out = self.model(ids[:, now], real[:, now], past_key_values=self.cache, logits_to_keep=1)
            self.show_mtp(self.out.last_hidden_state, ids[:, start + 1 : now.stop + 1], real[:, now])
        self.cache.mask = None if self.cache.mask is None else mask > 0  # in the caller's order
        self.out.last_hidden_state = self.out.last_hidden_state[:, -1:]
        self.drafts, self.q = ids[:, :0].long(), None

    def next_tokens(self) -> Tensor:
        """The accepted drafts and the token after them, (B, 1 or more)."""
        n = self.drafts.shape[1]
        p = self.probabilities(self.out.logits, self.drafts)
        accepted, token = self.rule.verify(p, self.q, self.drafts, self.generator)
        count = int(accepted[0]) if n else 0
        for i in range(n):
            self.drafted[i] += 1
            self.accepted[i] += i < count
        return torch.cat([self.drafts[:, :count], token[:, None]], dim=1)

    def counts(self) -> dict[str, Any]:
        """The number of drafts, how many were accepted, and the share accepted at each position."""
        shares = [accepted / drafted for accepted, drafted in zip(self.accepted, self.drafted) if drafted]
        return {"drafted": sum(self.drafted), "accepted": sum(self.accepted), "acceptance_by_position": shares}

    def keep(self, tokens: Tensor, going: Tensor | None = None):
        """Continues after these tokens (B, m). The last is not in the cache yet: the next pass reads it. going (B,):
        False where the last one is padding, after a sequence's end.
        """
        drafts = self.drafts.shape[1]
        if drafts:  # the last pass read one token and the drafts; of these, the cache keeps m
            self.cache.rollback(drafts + 1 - tokens.shape[1])
        self.show_mtp(self.out.last_hidden_state, tokens)
        if self.penalties:
            self.penalties.add(tokens)
        self.last = tokens[:, -1:]
        self.mask = None if going is None or going.all() else going[:, None]

    def advance(self, limit: int):
        """Drafts, and runs the next pass. limit: how many tokens may still follow."""
        n = min(self.n, limit - 1)
        self.drafts, self.q = self.draft(n) if n > 0 else (self.last[:, :0], None)
        self.cache.reversible = n > 0
        self.out = self.model(torch.cat([self.last, self.drafts], dim=1), self.mask, past_key_values=self.cache)

    def show_mtp(self, hidden: Tensor, following: Tensor, mask: Tensor | None = None):
        """Gives MTP hidden states (1, T, D), the model's or its own, and the tokens (1, up to T) that follow each."""
        T = following.shape[1]
        if self.n and T:
            embeds = self.model.model.embed(following)
            mask = None if mask is None else mask[:, :T]
            self.hidden = self.model.look_ahead(hidden[:, :T], embeds, mask, None, self.cache.mtp)[:, -1:]

    def probabilities(self, logits: Tensor, drafts: Tensor) -> Tensor:
        """Distributions of the drafts and the token after them (B, n + 1, vocab); for logits (B, 1, ...), the last."""
        if self.penalties:
            logits = self.penalties.after_drafts(drafts, upcast(logits))
        return self.rule.probabilities(logits)

    def draft(self, n: int) -> tuple[Tensor, Tensor]:
        """n > 0 drafts (1, n), and the distributions they were drawn from (1, n, vocab). From the second on, MTP reads
        its own hidden state, because the model has none yet. Its cache entries for these are removed at the end: the
        next `show_mtp` writes them from the model's states.
        """
        columns = self.cache.mtp.columns
        drafts = self.last[:, :0]
        q = []
        try:
            for i in range(n):
                if i > 0:
                    self.show_mtp(self.hidden, drafts[:, -1:])
                q.append(self.probabilities(self.model.lm_head(self.hidden), drafts)[:, -1:])  # (1, 1, vocab)
                drafts = torch.cat([drafts, self.rule.draw(q[-1][:, 0], self.generator)[:, None]], dim=1)
        finally:
            self.cache.mtp.rollback(self.cache.mtp.columns - columns)
        return drafts, torch.cat(q, dim=1)


def end_tokens(model: Qwen3NextForCausalLM, eos_token_id: Any, pad_token_id: Any = None) -> tuple[list[int], int]:
    """The end tokens (for `...` those of generation_config.json and config.json), and the token to pad with."""
    usual = [model.generation_config.get("eos_token_id"), getattr(model.config, "eos_token_id", None)]
    eos = []
    for found in usual if eos_token_id is ... else [eos_token_id]:
        several = found if isinstance(found, (list, tuple)) else [found]
        eos += [token for token in several if token is not None and token not in eos]
    pad = next(n for n in (pad_token_id, model.generation_config.get("pad_token_id"), *eos, 0) if n is not None)
    right = all(isinstance(n, int) and abs(n) < 2**31 for n in (pad, *eos))
    expect(right, f"eos_token_id is {eos!r:.99}, pad_token_id {pad!r:.99}, expected numbers of tokens")
    return eos, pad


def read_options(defaults: dict, options: dict, T: int) -> tuple[Sampling, int, dict]:
    """How to choose tokens, how many to add to T, and which penalties to apply. Options given, and not None, take
    precedence over generation_config.json's. Giving a sampling option asks for sampling.
    """
    check("settings", defaults)
    known = {*Sampling.__annotations__, *PENALTIES, "max_new_tokens", "num_draft_tokens", "seed"}
    expect_known("generate", options, known)
    defaults, given = ({name: x for name, x in these.items() if x is not None} for these in (defaults, options))
    asked = {"do_sample": True} if given.keys() & {"temperature", "top_k", "top_p", "min_p"} else {}
    options = {**defaults, **asked, **given}
    for name, high in LIMITS.items():
        value = options.get(name, 0)
        kind = numbers.Integral if isinstance(high, int) else numbers.Real  # NumPy's included
        right = isinstance(value, kind) and not isinstance(value, bool) and 0 <= value <= high
        expect(right, f"{name} is {value!r:.99}, expected a number ({type(high).__name__}) from 0 to {high:.0f}")
    limit = options.get("max_new_tokens", max(options.get("max_length", T + 512) - T, 0))
    penalties = {name: options[name] for name, none in PENALTIES.items() if options.get(name, none) != none}
    return Sampling(**{name: options[name] for name in Sampling.__annotations__ if name in options}), limit, penalties


def as_callable(streamer: Any, prompt: Tensor) -> Callable[[Tensor], Any] | None:
    """A function of a new token (1,): from a function of its id, or a transformers streamer, given the prompt first."""
    if hasattr(streamer, "put"):
        streamer.put(prompt.cpu())
        return lambda token: streamer.put(token.cpu())
    return streamer and (lambda token: streamer(token.item()))


def stopping_rule(
    T: int,
    eos: list[int],
    stop_strings: str | list[str] | None,
    tokenizer: Any,
    stopping_criteria: Iterable[Callable] | None,
) -> Callable:
    """A function of ids (B, T + new): which end, (B,) bool, by an end token, a stop string or criterion(ids, None)."""
    stops = [stop_strings] if isinstance(stop_strings, str) else stop_strings or []
    longest = max((len(stop.encode()) for stop in stops), default=0)  # a string of n bytes lies within n tokens
    expect(not stops or tokenizer is not None, "stop_strings need the tokenizer")

    def stopped(ids: Tensor) -> Tensor:
        ended = sum((ids[:, -1] == end for end in eos), torch.zeros_like(ids[:, 0])) > 0  # copies no list to a GPU
        if stops:
            texts = tokenizer.batch_decode(ids[:, T:][:, -longest:])
            found = [any(stop in text for stop in stops) for text in texts]
            ended |= ended.new_tensor(found)
        for criterion in stopping_criteria or ():
            ended |= torch.as_tensor(criterion(ids, None), device=ids.device)
        return ended

    return stopped


@torch.no_grad()
def generate(
    self: Qwen3NextForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    max_new_tokens: int | None = None,
    eos_token_id: int | list[int] | None = ...,
    stop_strings: str | list[str] | None = None,
    tokenizer: Any = None,
    stopping_criteria: Iterable[Callable] | None = None,
    seed: int | None = None,
    num_draft_tokens: int = 0,
    past_key_values: Cache | None = None,
    streamer: Callable | None = None,
    stats: dict | None = None,
    **options: Any,
) -> Tensor:
    """Continues input_ids (B, T): returns (B, T + new), with padding after a sequence's end. Raises ValueError.
    Args: attention_mask (B, T), 0 at padding; eos_token_id, one or several, None for none; stop_strings, which end a
    sequence once the tokenizer decodes them; seed, to repeat the same samples; num_draft_tokens, MTP's drafts per pass;
    past_key_values, a cache with the first tokens of input_ids, at the end with all but the last; streamer, called with
    each token id; stats, a dict to fill with counts and seconds; options: pad_token_id, those of `Sampling` and of
    generation.py, PENALTIES. Drafts and streamers take one sequence. Defaults: generation_config.json's, 512 tokens.
    """
    check("cache", past_key_values, Cache)
    check("ids", input_ids, self.config.vocab_size)
    B, T = input_ids.shape
    started, stats = time.perf_counter(), {} if stats is None else stats
    eos, pad = end_tokens(self, eos_token_id, options.pop("pad_token_id", None))
    stopped = stopping_rule(T, eos, stop_strings, tokenizer, stopping_criteria)
    options |= {"max_new_tokens": max_new_tokens, "num_draft_tokens": num_draft_tokens, "seed": seed}
    rule, limit, penalties = read_options(self.generation_config, options, T)
    if penalties:
        penalties = sibling("penalties", ", ".join(penalties)).Penalties(input_ids, attention_mask, eos, **penalties)
    expect(B == 1 or not (streamer or num_draft_tokens), f"a streamer and num_draft_tokens take one sequence, not {B}")
    generator = None if seed is None else torch.Generator(input_ids.device).manual_seed(int(seed))
    show = as_callable(streamer, input_ids)
    decoder = Decoder(self, past_key_values or self.make_cache(B), rule, num_draft_tokens, generator, penalties)
    decoder.prefill(input_ids, attention_mask)
    prefilled = time.perf_counter()
    stats.update(prompt_tokens=int(decoder.cache.seq_len.sum()), prefill_seconds=prefilled - started)
    ids, done = input_ids, input_ids.new_zeros(B, dtype=torch.bool)
    while ids.shape[1] < T + limit and not done.all():
        if ids.shape[1] > T:
            decoder.advance(T + limit - ids.shape[1])
        before = ids.shape[1]
        going = ~done
        try:
            for token in decoder.next_tokens().unbind(1):
                ids = torch.cat([ids, token.masked_fill(done, pad)[:, None]], dim=1)
                if show:
                    show(token)
                done |= stopped(ids)
                if done.all():
                    break
        finally:  # also when the streamer raises, or on Ctrl-C
            decoder.keep(ids[:, before:], going)
    if hasattr(streamer, "end"):
        streamer.end()
    stats.update(new_tokens=ids.shape[1] - T, decode_seconds=time.perf_counter() - prefilled, **decoder.counts())
    return ids


Qwen3NextForCausalLM.generate = getattr(sibling("generation"), "extend", lambda plain, _: plain)(generate, read_options)


# ==== Command line ====================================================================================================


def add_options(parser: argparse.ArgumentParser):
    """The options that chat.py shares."""
    add = parser.add_argument
    tiny = Path(__file__).resolve().parent / "tiny"
    add("--system", metavar="TEXT", help="a system message before the first one")
    add("--model", default=tiny, metavar="DIR_OR_REPO", help="checkpoint folder or hub name (default: tiny/)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps ... (default: cuda if there is one)")
    add("--dtype", default="auto", help="bfloat16, float16, float32 or float64 (default: the checkpoint's)")
    add("--delta-rule", choices=["chunk", "recurrent"], default="chunk", help="form used for more than two tokens")
    add("--in-memory", action="store_true", help="copy all weights into memory first, for faster decoding on a CPU")
    add("--compile", action="store_true", help="compile the layers' mixers first: a slow start, then faster decoding")
    add("--max-new-tokens", type=int, default=512, help="longest answer (default: %(default)s)")
    add("--stop", dest="stop_strings", action="append", metavar="TEXT", help="end before this text; may be repeated")
    add("--greedy", dest="do_sample", action="store_const", const=False, help="take the likeliest token each time")
    add("--temperature", type=float, help="0: the likeliest token each time")
    add("--top-k", type=int, help="choose among so many of the likeliest tokens")
    add("--top-p", type=float, help="choose among the likeliest tokens that together have this probability")
    add("--min-p", type=float, help="leave out tokens below this share of the likeliest one's probability")
    add("--repetition-penalty", type=float, help="above 1: make tokens that occurred less likely")
    add("--seed", type=int, help="make sampling repeatable")
    add("--draft-tokens", dest="num_draft_tokens", type=int, default=0, metavar="N", help="MTP's drafts for each pass")
    add("--stats", action="store_true", help="print tokens, tokens per second and peak memory")


def load(args: argparse.Namespace, cls: type = Qwen3NextForCausalLM) -> tuple[Qwen3NextTokenizer, PreTrainedModel]:
    """The tokenizer and the model, a `cls`, that the options ask for."""
    check("texts", vars(args))
    tokenizer = Qwen3NextTokenizer.from_pretrained(args.model)
    options = (args.dtype, args.device, args.delta_rule, args.in_memory, args.compile)
    model = cls.from_pretrained(args.model, *options)
    check("vocabulary", args.model, len(tokenizer), model.config.vocab_size)
    if tokenizer.eos_token_id is not None:  # some checkpoints name the chat's end only here
        model.generation_config["eos_token_id"] = [*end_tokens(model, ...)[0], tokenizer.eos_token_id]
    large = sibling("large")
    if large and not args.in_memory:
        large.announce_slow_disk(model.model, Experts, model.config.num_experts_per_tok)
    return tokenizer, model


def generation_options(args: argparse.Namespace) -> dict:
    """The options of `generate` among these."""
    names = (*Sampling.__annotations__, *PENALTIES, "seed", "max_new_tokens", "stop_strings", "num_draft_tokens")
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def run(args: argparse.Namespace, cls: type = Qwen3NextForCausalLM):
    """Prints the text that follows the prompt, token by token; with --stop all at once, to cut off a stop string."""
    file = args.prompt_file or ("-" if args.prompt == "-" else None)
    text = read_text(file) if file else args.prompt
    tokenizer, model = load(args, cls)
    if not tokenizer.chat_template and not args.raw:
        print("qwen3_next.py: no chat template: the text is continued as with --raw", file=sys.stderr)
    elif not args.raw:
        system = [{"role": "system", "content": args.system}] if args.system else []
        text = tokenizer.apply_chat_template([*system, {"role": "user", "content": text}])
    ids = tokenizer.encode(text)
    expect(len(ids) > 0, "the prompt is empty: nothing to continue")
    row = torch.tensor([ids], device=model.device)
    stream = tokenizers.decoders.DecodeStream(skip_special_tokens=True)

    def show(token: int):
        print(stream.step(tokenizer.backend, token) or "", end="", flush=True)  # None inside a character

    with sibling("stats", "--stats").reporting(model, Experts) if args.stats else nullcontext({}) as stats:
        streamer = None if args.stop_strings else show
        out = model.generate(row, tokenizer=tokenizer, streamer=streamer, stats=stats, **generation_options(args))
        text = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True) if args.stop_strings else ""
        for stop in args.stop_strings or []:
            text = text[: text.find(stop)] if stop in text else text
        print(text, flush=True)


def exit_code(program: str, run: Callable, *arguments: Any) -> int:
    """Returns 0, 130 after Ctrl-C, or 1 after one line on standard error; argparse exits with 2 for wrong usage."""
    try:
        run(*arguments)
        return 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:  # tokenizers' PanicException isn't an Exception
        kind = "" if isinstance(error, (ValueError, OSError, KeyError)) else f"{type(error).__name__}: "
        print(f"{program}: {kind}{one_line(error)}", file=sys.stderr)
        return 1


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    about = "Generate text with Qwen3-Next. The text goes to standard output, all else to standard error."
    parser = argparse.ArgumentParser(prog="qwen3_next.py", description=about)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--prompt", metavar="TEXT", help="a user message (with --raw: a text to continue); -: from stdin")
    task.add_argument("--prompt-file", metavar="FILE", help="the same from a file")
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    add_options(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    return exit_code("qwen3_next.py", run, parse_arguments(arguments))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, on_interrupt)
    sys.exit(main())
