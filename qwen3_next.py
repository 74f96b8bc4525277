# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "numpy>=1.26", "safetensors>=0.4.5", "tokenizers>=0.21", "jinja2>=3.1",
#                 "huggingface_hub>=0.26", "tqdm>=4.66"]
# ///
"""Qwen3-Next in one readable file: plain PyTorch, CPU or CUDA, from config.json to generated text.

Three of four layers are Gated DeltaNet, a memory of constant size that costs the same at every position; the fourth
is gated softmax attention. Every layer's MLP is a mixture of many small experts, of which a token uses a few.
Read from top to bottom: each part uses only what stands above it, and parameter names are the checkpoint's.

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
    E            number of routed experts, num_experts_per_tok of them per token       [MoE]
    q, k, v      query, key, value; in Gated DeltaNet q and k have unit length, and q is scaled by K^-0.5
    S            state (K, V): the memory; S^T k is the value stored under key k       S_t, transposed in [GDN]
    g            log of the decay, <= 0; alpha = e^g is the share of the state kept    alpha_t [GDN] Eq. 10
    beta         write strength in (0, 1)                                              beta_t  [GDN] Eq. 10
    delta        beta * (v - S^T k): what the memory lacks of v, and then gets         u_t in [DN]
    G            cumulative sum of g inside a chunk; gamma = e^G                       gamma_r [GDN] Eq. 8
    z, b, a      inputs of the output gate, of beta, and of the decay
    past         real tokens already in the cache, per sequence

Not here: kernels, quantised arithmetic, serving many users. Where precision is raised the code says why.
"""

import argparse
import copy
import ctypes
import functools
import json
import math
import mmap
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from tqdm import tqdm

# ==== Tracing =========================================================================================================

tracer: Callable[[str, Any], None] | None = None  # records the pass under way, if it is traced


def tap(name: str, x: Any):
    """Offers an intermediate value, or what computes it, to the trace under way; without one it costs nothing."""
    if tracer is not None:
        tracer(name, x)


class Trace(dict):
    """Values of one forward pass by key, for `model(..., trace=Trace("model.layers.3.*"))`: those that a glob fits.

    `trace={}` takes all, but for the chunked form's own, "*.chunk.*". A key is the checkpoint's path of a module and
    "out", for its output, or the name of a `tap` in its code. Values are copies on the CPU, float32 or 64 (or int64),
    without a batch axis for a single sequence; of a batch, padding has to stand on the right.
    """

    def __init__(self, *globs: str):
        self.globs = globs or ("*",)
        self.lines: dict[str, str] = {}  # key -> the line of this file that computes it


@contextmanager
def tracing(model: nn.Module, trace: dict) -> Iterator[None]:
    """Within it, `trace` records what the model computes."""
    global tracer
    names, path, globs = {module: name for name, module in model.named_modules()}, [""], getattr(trace, "globs", ("*",))
    expect(not trace, "trace: holds a pass already, expected an empty dict")
    last, lines = None, getattr(trace, "lines", {})

    def record(name: str, x: Any):
        key = f"{path[-1]}.{name}".lstrip(".")
        if key not in trace and any(fnmatchcase(key, g) and ("chunk" in g or ".chunk." not in key) for g in globs):
            x = (x() if callable(x) else x).detach()
            x = (upcast(x) if x.is_floating_point() else x).cpu().clone()
            trace[key] = x[0] if len(x) == 1 else x
            frame = sys._getframe(1)
            while frame and (frame.f_code.co_filename != __file__ or frame.f_code.co_name in ("tap", "leave")):
                frame = frame.f_back
            lines[key] = f"{Path(__file__).name}:{frame.f_lineno}" if frame else "called from outside"

    def leave(module: nn.Module, _: Any, out: Any):
        nonlocal last
        out = out[0] if isinstance(out, tuple) else out
        if isinstance(out, Tensor) and out is not last and not isinstance(module, Experts):  # a module may end in one
            record("out", last := out)
        path.pop()

    with ExitStack() as hooks:
        for module in names:
            hooks.callback(module.register_forward_pre_hook(lambda module, _: path.append(names[module])).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        tracer = record
        try:
            yield
        finally:
            tracer = None


# ==== Config ==========================================================================================================


def one_line(message: Any) -> str:
    """A message without line breaks, which the names and values that it quotes may have."""
    return " ".join(str(message).splitlines())


def expect(true: bool, otherwise: str):
    """Raises ValueError with the message, on one line, unless `true`."""
    if not true:
        raise ValueError(one_line(otherwise))


class Qwen3NextConfig:
    """The fields of config.json, checked when built; the numbers in the comments are those of the released 80B.

    Two dialects are read: the released one, and that of transformers 5, which has `rope_parameters` and `layer_types`.
    Other keys become attributes all the same, and are written back by `to_dict`.
    Raises ValueError, naming the fields, for what a layer needs and does not find, what is mistyped or contradictory.
    """

    # fmt: off
    vocab_size: int = None                       # 151936    rows of the embedding; the tokenizer may use fewer
    hidden_size: int = None                      # 2048      D
    num_hidden_layers: int = None                # 48
    layer_types: list = None                     # "linear_attention" or "full_attention" a layer; None: by the interval
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
    partial_rotary_factor: float = 0.25          # 0.25      share of head_dim that is turned
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
    mlp_only_layers: list = None                 # []        layers that are dense all the same
    decoder_sparse_step: int = 1                 # 1         every n-th layer is MoE

    mtp_num_hidden_layers: int = 0               # absent    1: build the MTP layer; a checkpoint's tensors decide
    mtp_loss_scaling_factor: float = 0.1         # absent    weight of its loss; Megatron's default
    # fmt: on

    def __init__(self, /, **fields: Any):  # a key may be called self
        fields = copy.deepcopy(fields)
        kind = fields.pop("model_type", "qwen3_next")
        expect(kind == "qwen3_next", f"config: model_type is {kind!r}, expected 'qwen3_next'")
        scaling, nested = (fields.pop(key, None) or {} for key in ("rope_scaling", "rope_parameters"))
        right = isinstance(scaling, dict) and isinstance(nested, dict) and scaling in ({}, nested or scaling)
        expect(right, f"config: rope_scaling and rope_parameters are {scaling} and {nested}, expected equal objects")
        fields["rope_scaling"] = rope = dict(nested or scaling)
        for key in rope.keys() & {"rope_theta", "partial_rotary_factor"}:
            old, fields[key] = fields.get(key), rope.pop(key)
            expect(old in (None, fields[key]), f"config: {key} is {old!r}, but rope_parameters has {fields[key]!r}")
        for key, kind in Qwen3NextConfig.__annotations__.items():  # of an instance, Python 3.14 has none
            value = fields.pop(key, None)
            value = getattr(type(self), key) if value is None else value  # absent and null alike
            kinds = (int, float) if kind is float else kind
            right = isinstance(value, kinds) and isinstance(value, bool) == (kind is bool)  # True is an int, too
            if right and kind in (int, float):  # neither NaN nor what would fill the memory with empty layers
                right = 0 <= value < {"num_hidden_layers": 1e4}.get(key, 1e8 if kind is int else 1e18)
            expect(value is None or right, f"config: {key} is {value!r:.99}, expected {kind.__name__} in bounds")
            setattr(self, key, value)
        clash = [key for key in fields if hasattr(type(self), key)]
        expect(not clash, f"config: {clash[:1]} can't be a key")
        self.__dict__.update(fields)
        self._check()

    def _check(self):
        """Raises ValueError for the first field that can't be right, and fills in those that follow from others."""

        def check(name: str, right: bool, expected: str):
            expect(right, f"config: {name} is {getattr(self, name)!r:.99}, expected {expected}")

        def need(names: str):
            for name in names.split():
                check(name, (getattr(self, name) or 0) > 0, "a number above 0")

        need("vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim rms_norm_eps")
        need("rope_theta partial_rotary_factor max_position_embeddings full_attention_interval decoder_sparse_step")
        n = self.num_key_value_heads
        check("num_attention_heads", self.num_attention_heads % n == 0, f"a multiple of num_key_value_heads ({n})")
        check("hidden_act", self.hidden_act == "silu", "'silu'")
        R, yarn, e = int(self.head_dim * self.partial_rotary_factor), self.rope_scaling, self.num_experts
        check("partial_rotary_factor", R in range(2, self.head_dim + 1, 2), f"an even share of head_dim, not {R}")
        kind = yarn.get("rope_type", yarn.get("type", "default"))
        check("rope_scaling", kind in ("default", "yarn"), "type 'yarn' or 'default'")
        if kind == "yarn":
            for key in ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"):
                n = yarn.get(key)
                right = n is None or (isinstance(n, (int, float)) and 0 < n < 1e8)
                expect(right, f"config: rope_scaling's {key} is {n!r:.99}, expected a number above 0")
            check("rope_scaling", (yarn.get("factor") or 0) >= 1, "a factor of at least 1")
            check("rope_theta", self.rope_theta > 1, "more than 1 for YaRN")
        self.rope_scaling = yarn if kind == "yarn" else None
        layers, kinds = range(self.num_hidden_layers), ("linear_attention", "full_attention")
        if self.layer_types is None:
            self.layer_types = [kinds[(i + 1) % self.full_attention_interval == 0] for i in layers]
        right = len(self.layer_types) == len(layers) and all(kind in kinds for kind in self.layer_types)
        check("layer_types", right, f"{' or '.join(kinds)} for each of num_hidden_layers ({len(layers)})")
        if "linear_attention" in self.layer_types:
            need(" ".join(key for key in Qwen3NextConfig.__annotations__ if key.startswith("linear_")))
            n, many = self.linear_num_key_heads, self.linear_num_value_heads
            check("linear_num_value_heads", many % n == 0, f"a multiple of linear_num_key_heads ({n})")
        self.mlp_only_layers = self.mlp_only_layers or []
        check("mlp_only_layers", all(i in layers for i in self.mlp_only_layers), f"layers from 0 to {len(layers) - 1}")
        check("num_experts", e is not None and e >= 0, "a number (0: dense layers only)")
        check("mtp_num_hidden_layers", self.mtp_num_hidden_layers in (0, 1), "0 or 1")
        moe = [self.is_moe(i) for i in layers] + [e > 0] * self.mtp_num_hidden_layers
        if any(moe):
            need("num_experts_per_tok moe_intermediate_size shared_expert_intermediate_size")
            check("num_experts_per_tok", self.num_experts_per_tok <= e, f"at most num_experts ({e})")
        if not all(moe):
            need("intermediate_size")

    def is_moe(self, i: int) -> bool:
        """Whether layer i's MLP is a mixture of experts."""
        return self.num_experts > 0 and (i + 1) % self.decoder_sparse_step == 0 and i not in self.mlp_only_layers

    @classmethod
    def from_dict(cls, fields: dict) -> "Qwen3NextConfig":
        """A config from config.json's content, in either dialect."""
        return cls(**fields)

    def to_dict(self) -> dict:
        """config.json's content: the top-level keys that transformers and mlx-lm read, and all that was passed in."""
        ours = Qwen3NextConfig.__annotations__
        fields = {key: x for key, x in vars(self).items() if x is not None or key not in ours}
        return copy.deepcopy({"model_type": "qwen3_next", **fields, "rope_scaling": self.rope_scaling})


# ==== Linear layers and norms =========================================================================================


def linear(x: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, x (..., in), W (out, in) -> (..., out).

    On a CPU, F.linear rearranges a W in half precision before it multiplies. A single x is therefore multiplied as a
    vector, which reads W up to a third faster, and an expert's rows, where x is smaller than half of W, as (W x^T)^T,
    up to twice as fast.
    """
    if x.ndim == 1 and bias is None:
        return torch.mv(W, x)
    if x.is_cpu and bias is None and W.dtype.itemsize == 2:
        if x.numel() == W.shape[1]:
            return torch.mv(W, x.flatten()).view(*x.shape[:-1], -1)
        if x.ndim == 2 and 2 * x.numel() < W.numel():
            return (W @ x.t()).t()
    return F.linear(x, W, bias)


class Linear(nn.Linear):
    """A module of it."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def upcast(x: Tensor) -> Tensor:
    """float32 for sums and exponentials that bfloat16's 8 bits can't hold; float64 stays float64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (1 + w) over the last axis, in float32: squares overflow float16, 1 + w rounds in
    bfloat16. w starts at 0, so that weight decay pulls the scale towards 1.
    """

    def __init__(self, dim: int, eps: float, start: float = 0.0):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(upcast(x), self.weight.shape, 1 + upcast(self.weight), self.eps).to(x.dtype)


class GatedRMSNorm(RMSNorm):
    """x / rms(x) * w, then * silu(z): the norm behind the delta rule. Plain w, one vector for all heads."""

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x = F.rms_norm(upcast(x), self.weight.shape, upcast(self.weight), self.eps)
        return (x * F.silu(upcast(z))).to(z.dtype)


# ==== Rotary position embedding =======================================================================================


def rope_frequencies(config: Qwen3NextConfig) -> tuple[Tensor, float]:
    """Radians per position of each turned pair, (R/2,) float64, and the factor YaRN puts on cos and sin.

    R = int(head_dim * partial_rotary_factor) dimensions are turned; pair i by theta^(-2i/R). YaRN ([YaRN] section 3.2)
    keeps the pairs that turn more than beta_fast times in the original context, divides the frequency of those that
    turn less than beta_slow times by `factor`, and blends linearly between.
    """
    dim = int(config.head_dim * config.partial_rotary_factor)
    inv_freq = config.rope_theta ** -(torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
    if (yarn := config.rope_scaling) is None:
        return inv_freq, 1.0
    original = yarn.get("original_max_position_embeddings") or config.max_position_embeddings
    turns = (yarn.get("beta_fast") or 32, yarn.get("beta_slow") or 1)  # and the pairs that turn as often:
    low, high = (dim * math.log(original / (n * 2 * math.pi)) / (2 * math.log(config.rope_theta)) for n in turns)
    if yarn.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = max(high - low, 0.001)  # low == high would divide by zero
    slow = ((torch.arange(dim // 2, dtype=torch.float64, device="cpu") - low) / width).clamp(0, 1)
    factor = yarn.get("attention_factor") or 0.1 * math.log(yarn["factor"]) + 1
    return inv_freq * (1 - slow) + inv_freq / yarn["factor"] * slow, factor


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns dims (i, i + R/2) of x (B, T, H, head_dim), i < R/2, by cos, sin (B, T, 1, R/2); the rest pass through."""
    half = cos.shape[-1]
    x1, x2, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], dim=-1)


# ==== Gated attention =================================================================================================


class Step:
    """What the layers of one forward pass share. Sequences are left-aligned here: padding comes after the tokens."""

    def __init__(self, x: Tensor, lengths: Tensor | None, positions: Tensor | None, cache: Any, rope: tuple):
        """x (B, T, D) behind what the model's cache holds; positions (B, T), None to count on; rope_frequencies."""
        (B, T, _), (inv_freq, factor) = x.shape, rope
        self.lengths = lengths  # (B,) real tokens among the T new ones; None: all T
        self.reversible = cache.reversible  # whether layers should be able to take tokens of this pass back
        self.slots = cache.columns + T  # S: cache slots in use after this pass
        self.mask = None  # (B or 1, 1, T, S), True where a query sees a key; None: every key up to the query's own
        position = cache.seq_len[:, None] + torch.arange(T, device=x.device)  # (B, T)
        self.index, rows = (slice(None), slice(cache.columns, self.slots)), position[:1]  # where tokens are stored
        if cache.padded:  # then each sequence has a length of its own
            self.index, rows = (torch.arange(B, device=x.device)[:, None], position), position
        if self.slots > T > 1 or cache.padded:
            self.mask = torch.arange(self.slots, device=x.device) <= rows[:, None, :, None]
        angle = (position if positions is None else positions)[..., None, None] * inv_freq.to(upcast(x))
        self.cos, self.sin = ((turn * factor).to(x.dtype) for turn in (angle.cos(), angle.sin()))  # (B, T, 1, R/2)


@dataclass
class KVCache:
    """Keys and values of one attention layer, (B, heads, capacity, head_dim): slot j holds a sequence's j-th token.

    Because slot and position are one, padding needs no record: what lies behind a sequence's end is never seen, and
    its next token overwrites it. Buffers double when full, so that copying does not grow with the sequence.
    """

    k: Tensor | None = None
    v: Tensor | None = None

    def update(self, k: Tensor, v: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Stores k, v (B, T, heads, head_dim) behind each past; returns the S slots so far, (B, heads, S, head_dim)."""
        if self.k is None:
            self.k = self.v = k.transpose(1, 2)[:, :, :0]  # (B, heads, 0, head_dim)
        if self.k.shape[2] < step.slots:
            more = k.new_zeros(*self.k.shape[:2], step.slots + 64, self.k.shape[3])
            self.k, self.v = torch.cat([self.k, more], dim=2), torch.cat([self.v, more], dim=2)
        self.k.transpose(1, 2)[step.index], self.v.transpose(1, 2)[step.index] = k, v
        return self.k[:, :, : step.slots], self.v[:, :, : step.slots]

    def rollback(self, tokens: int):
        """Nothing to do: the next tokens overwrite the slots of those taken back."""

    def clone(self) -> "KVCache":
        return KVCache(*(None if x is None else x.clone() for x in (self.k, self.v)))


class GatedAttention(nn.Module):
    """Grouped-query softmax attention whose output each head scales by a sigmoid gate ([GA], section 3)."""

    def __init__(self, config: Qwen3NextConfig):
        super().__init__()
        width, kv_width = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.head_dim, self.dropout = config.head_dim, config.attention_dropout
        self.q_proj = Linear(config.hidden_size, 2 * width, bias=config.attention_bias)  # query and gate
        self.k_proj = Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.o_proj = Linear(width, config.hidden_size, bias=config.attention_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def make_cache(self, batch_size: int) -> KVCache:
        return KVCache()

    def forward(self, x: Tensor, step: Step, cache: KVCache | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        B, T, _ = x.shape
        # q_proj's rows are [query | gate] within each head, not all queries and then all gates
        q, gate = self.q_proj(x).view(B, T, -1, 2 * self.head_dim).chunk(2, dim=-1)  # (B, T, heads, head_dim) each
        k = self.k_proj(x).view(B, T, -1, self.head_dim)  # (B, T, kv heads, head_dim)
        v = self.v_proj(x).view(B, T, -1, self.head_dim)
        tap("q", q), tap("gate", gate)
        tap("q_rope", q := apply_rope(self.q_norm(q), step.cos, step.sin))
        tap("k_rope", k := apply_rope(self.k_norm(k), step.cos, step.sin))
        k, v = cache.update(k, v, step) if cache else (k.transpose(1, 2), v.transpose(1, 2))  # (B, kv heads, S, dim)
        dropout, causal = self.dropout if self.training else 0.0, step.mask is None and T > 1
        # (B, heads, T, head_dim); of one token, the queries that share a key head as its rows: no key is repeated then
        q = q.transpose(1, 2) if T > 1 else q.view(B, k.shape[1], -1, self.head_dim)
        y = F.scaled_dot_product_attention(q, k, v, step.mask, dropout, causal, enable_gqa=True)
        tap("attn_out", y := y.transpose(1, 2) if T > 1 else y.view(B, 1, -1, self.head_dim))  # (B, T, heads, head_dim)
        return self.o_proj((y * torch.sigmoid(gate)).flatten(2))


# ==== The gated delta rule ============================================================================================


def l2_normalise(x: Tensor) -> Tensor:
    """x / |x| over the last axis, in float32: keys of length 1 make beta = 1 overwrite exactly what a key held."""
    x = upcast(x)
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def _delta_rule_inputs(q, k, v, g, beta, state) -> tuple[Tensor, ...]:
    """Raises half precision to float32, checks the shapes, and moves heads before time: (B, H, T, ...)."""
    q, k, v, g, beta = map(upcast, (q, k, v, g, beta))
    (B, T, H, K), V = k.shape, v.shape[-1]
    state = v.new_zeros(B, H, K, V) if state is None else upcast(state)
    shapes = {"q": (B, T, H, K), "v": (B, T, H, V), "g": (B, T, H), "beta": (B, T, H), "state": (B, H, K, V)}
    for (name, shape), x in zip(shapes.items(), (q, v, g, beta, state)):
        if x.shape != shape:
            raise ValueError(f"delta rule: {name} has shape {tuple(x.shape)}, expected {shape} beside {k.shape=}")
    return *(x.transpose(1, 2) for x in (q, k, v, g, beta)), state


def recurrent_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, *, g: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gated delta rule token by token, [GDN] Eq. 10: S <- alpha S, then S <- S + k beta (v - S^T k)^T, out = S^T q.

    Args: q, k (B, T, H, K), normalised and scaled; v (B, T, H, V); g <= 0 (log decay) and beta in [0, 1], (B, T, H);
    state (B, H, K, V) or None for zeros. No argument is changed; everything is differentiable.
    Returns: out (B, T, H, V) in v's dtype, and the state after the last token, float32 (float64 for float64 inputs).
    Raises: ValueError for shapes that do not fit together.
    """
    dtype, outputs = v.dtype, []
    q, k, v, g, beta, S = _delta_rule_inputs(q, k, v, g, beta, state)  # (B, H, T, ...), S (B, H, K, V)
    for q_t, k_t, v_t, alpha, beta_t in zip(*(x.unbind(2) for x in (q, k, v, g.exp(), beta))):
        S = alpha[..., None, None] * S  # decay: forget a share of everything
        recalled = (k_t[..., None, :] @ S).squeeze(-2)  # recall: S^T k, what the memory holds under this key, (B, H, V)
        delta = beta_t[..., None] * (v_t - recalled)  # delta: what it lacks of the new value
        S = S + k_t[..., :, None] * delta[..., None, :]  # write: S^T k is now (1 - beta) recalled + beta v
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

    The first line is linear in the deltas: one triangular solve for all chunks at once yields the matrix that makes
    them of what v exceeds the memory by, and only products with S are left for the loop over chunks.
    Arguments, results and errors as `recurrent_gated_delta_rule`.
    """
    dtype, T, C = v.dtype, v.shape[1], min(chunk_size, v.shape[1])
    q, k, v, g, beta, S = _delta_rule_inputs(q, k, v, g, beta, state)
    # 0. Cut time into N chunks. The padding has beta = 0 and g = 0: it writes nothing and forgets nothing.
    inputs = (q, k, v, beta[..., None], g[..., None])
    inputs = (F.pad(x, (0, 0, 0, -T % C)) if T % C else x for x in inputs)
    q, k, v, beta, g = (x.unflatten(2, (-1, C)).contiguous() for x in inputs)  # (B, H, N, C, ...)
    # 1. Decay between any two tokens of a chunk, e^{G_i - G_j} for j <= i. Masked before exp: above the diagonal
    #    G_i - G_j > 0 overflows, and so would e^{-G_j} as a factor of its own.
    G = g.cumsum(-2)  # (B, H, N, C, 1)
    future = torch.ones(C, C, dtype=torch.bool, device=q.device).triu(1)
    decay = (G - G.transpose(-1, -2)).masked_fill(future, -math.inf).exp()  # (B, H, N, C, C)
    gamma, to_end = G.exp(), (G[..., -1:, :] - G).exp()  # e^{G_i} and e^{G_C - G_i}, (B, H, N, C, 1)
    # 2. M = (I + A)^-1 diag(beta), A strictly lower triangular: A_ij = beta_i e^{G_i - G_j} (k_i . k_j)
    kT = k.transpose(-1, -2)
    A = beta * decay * (k @ kT)  # the solve reads only what is below the diagonal
    M = torch.linalg.solve_triangular(A, beta.squeeze(-1).diag_embed(), upper=False, unitriangular=True)
    tap("chunk.A", lambda: A.tril(-1)), tap("chunk.M", M)
    tap("chunk.u", lambda: M @ v), tap("chunk.w", lambda: M @ (gamma * k))  # delta is also u - w S
    # 3. Reads of what the chunk itself writes
    inner = decay * (q @ kT)  # (B, H, N, C, C)
    # 4. Chunk after chunk: recall, delta, read, write
    outputs, chunks = [], (x.unbind(2) for x in (q, k, v, M, inner, gamma, to_end))
    for n, (q_n, k_n, v_n, M_n, inner_n, gamma_n, to_end_n) in enumerate(zip(*chunks)):
        tap(f"chunk.{n}.state", S)
        delta = M_n @ (v_n - gamma_n * (k_n @ S))  # (B, H, C, V)
        outputs.append(gamma_n * (q_n @ S) + inner_n @ delta)
        S = gamma_n[..., -1:, :] * S + k_n.transpose(-1, -2) @ (to_end_n * delta)
    return torch.cat(outputs, dim=2)[:, :, :T].transpose(1, 2).to(dtype), S


# ==== Gated DeltaNet ==================================================================================================


def causal_conv(x: Tensor, weight: Tensor, window: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution over time, no bias: y_t = sum_j weight_j x_{t - (kernel - 1) + j}.

    Args: x (B, T, channels); weight (channels, 1, kernel); window (B, channels, kernel - 1), the inputs before x;
    lengths (B,) real tokens of x, None for all.
    Returns: y (B, T, channels), and the window after each sequence's last real token.
    """
    kernel = weight.shape[-1]
    x = torch.cat([window.transpose(1, 2), x], dim=1)  # (B, kernel - 1 + T, channels)
    if x.shape[1] < kernel + 4:  # one token or a few, without the cost of setting up a convolution
        y = (upcast(x.unfold(1, kernel, 1)) * upcast(weight[:, 0])).sum(-1).to(x.dtype)  # (B, T, channels, kernel)
    else:  # one row of a conv2d, because that takes channels last; conv1d would transpose before and after
        y = F.conv2d(x.unsqueeze(1).permute(0, 3, 1, 2), weight.unsqueeze(2), groups=x.shape[2])  # (B, channels, 1, T)
        y = y.squeeze(2).transpose(1, 2)
    if lengths is None:
        window = x[:, x.shape[1] - (kernel - 1) :].clone()  # a slice alone would keep all of x in memory
    else:
        index = lengths[:, None] + torch.arange(kernel - 1, device=x.device)  # (B, kernel - 1)
        window = x.take_along_dim(index[..., None], dim=1)
    return y, window.transpose(1, 2)


@dataclass
class DeltaNetCache:
    """What a Gated DeltaNet layer remembers, the same size at every position: convolution window and state.

    The state sums up all tokens, so that a token can't be cut from it as from a KV cache. A reversible pass therefore
    leaves what it started from and what its few tokens wrote, and taking tokens back means writing the others again.
    That costs nothing while all drafts are accepted; a state kept per position would cost K V floats a head each time.
    """

    window: Tensor  # (B, channels, kernel - 1), before silu
    state: Tensor  # (B, H, K, V), float32 or 64
    last: tuple | None = None  # window, convolution's inputs, state, and (q, k, v, g, beta), of that pass

    def rollback(self, tokens: int):
        expect(self.last is not None, "the last pass can't be taken back: cache.reversible was not set")
        window, x, state, inputs = self.last
        keep = x.shape[1] - tokens
        expect(keep >= 0, f"the last pass had {x.shape[1]} tokens, not {tokens} tokens")
        self.last = None
        self.window = torch.cat([window, x.transpose(1, 2)], -1)[..., keep : keep + window.shape[-1]].clone()
        q, k, v, g, beta = (y[:, :keep] for y in inputs)
        self.state = recurrent_gated_delta_rule(q, k, v, g=g, beta=beta, state=state)[1] if keep else state

    def clone(self) -> "DeltaNetCache":
        return DeltaNetCache(self.window.clone(), self.state.clone())


class GatedDeltaNet(nn.Module):
    """Project, convolve, run the gated delta rule, normalise, gate ([GDN] section 3.4)."""

    delta_rule = "chunk"  # or "recurrent", for more than one token
    chunked = staticmethod(functools.partial(chunk_gated_delta_rule, chunk_size=32))  # on CPUs faster than 64

    def __init__(self, config: Qwen3NextConfig):
        super().__init__()
        self.key_heads, self.K = config.linear_num_key_heads, config.linear_key_head_dim
        self.value_heads, self.V = config.linear_num_value_heads, config.linear_value_head_dim
        keys, values = self.key_heads * self.K, self.value_heads * self.V
        self.widths, channels = [keys, keys, values], 2 * keys + values
        self.in_proj_qkvz = Linear(config.hidden_size, channels + values, bias=False)
        self.in_proj_ba = Linear(config.hidden_size, 2 * self.value_heads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, config.linear_conv_kernel_dim, groups=channels, bias=False)
        self.A_log = nn.Parameter(torch.zeros(self.value_heads))
        self.dt_bias = nn.Parameter(torch.ones(self.value_heads))
        self.norm = GatedRMSNorm(self.V, config.rms_norm_eps, start=1.0)
        self.out_proj = Linear(values, config.hidden_size, bias=False)

    def make_cache(self, batch_size: int) -> DeltaNetCache:
        weight = self.conv1d.weight.detach()  # (channels, 1, kernel)
        state = upcast(weight).new_zeros(batch_size, self.value_heads, self.K, self.V)
        return DeltaNetCache(weight.new_zeros(batch_size, weight.shape[0], weight.shape[2] - 1), state)

    def unpack(self, qkvz: Tensor, ba: Tensor) -> tuple[Tensor, ...]:
        """The two projections' outputs as qkv (B, T, channels): all q, all k, all v; z (B, T, H, V); b, a (B, T, H).

        Their rows are grouped by key head, each followed by the r = value heads / key heads that share it:

            in_proj_qkvz   q_0 | k_0 | v_0 .. v_{r-1} | z_0 .. z_{r-1}  ||  q_1 | k_1 | v_r .. v_{2r-1} | ...
            in_proj_ba     b_0 .. b_{r-1} | a_0 .. a_{r-1}              ||  b_r .. b_{2r-1} | ...
        """
        r, groups = self.value_heads // self.key_heads, (self.key_heads, -1)
        q, k, v, z = qkvz.unflatten(-1, groups).split([self.K, self.K, r * self.V, r * self.V], dim=-1)
        b, a = ba.unflatten(-1, groups).split([r, r], dim=-1)
        v, z = (x.reshape(*x.shape[:2], -1, self.V) for x in (v, z))  # (B, T, H, V)
        b, a = b.flatten(2), a.flatten(2)
        tap("q", q), tap("k", k), tap("v", v), tap("z", z), tap("b", b), tap("a", a)
        return torch.cat([q.flatten(2), k.flatten(2), v.flatten(2)], dim=-1), z, b, a

    def forward(self, x: Tensor, step: Step, cache: DeltaNetCache | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        cache = cache or self.make_cache(len(x))
        qkv, z, b, a = self.unpack(self.in_proj_qkvz(x), self.in_proj_ba(x))
        before = cache.window, qkv, cache.state
        qkv, cache.window = causal_conv(qkv, self.conv1d.weight, cache.window, step.lengths)
        tap("conv_out", qkv := F.silu(qkv))
        q, k, v = upcast(qkv).split(self.widths, dim=-1)
        q, k, v = q.unflatten(-1, (-1, self.K)), k.unflatten(-1, (-1, self.K)), v.unflatten(-1, (-1, self.V))
        r = self.value_heads // self.key_heads  # value heads i r to i r + r - 1 share key head i
        q = (l2_normalise(q) * self.K**-0.5).repeat_interleave(r, dim=2)  # (B, T, H, K)
        k = l2_normalise(k).repeat_interleave(r, dim=2)
        # float32: in half precision a decay close to 1 would round to 1
        g = -upcast(self.A_log).exp() * F.softplus(upcast(a) + upcast(self.dt_bias))  # (B, T, H), log of the decay
        beta = upcast(b).sigmoid()
        if step.lengths is not None:  # padding neither forgets nor writes
            real = torch.arange(x.shape[1], device=x.device)[:, None] < step.lengths[:, None, None]  # (B, T, 1)
            g, beta = g * real, beta * real
        tap("q_l2norm", q), tap("k_l2norm", k), tap("g", g), tap("beta", beta)
        one_by_one = x.shape[1] <= 2 or self.delta_rule == "recurrent"  # up to 2, a chunk would take longer
        rule = recurrent_gated_delta_rule if one_by_one else self.chunked
        y, cache.state = rule(q, k, v, g=g, beta=beta, state=cache.state)
        tap("delta_out", y), tap("state", cache.state), tap("conv_state", cache.window)
        cache.last = (*before, (q, k, v, g, beta)) if step.reversible else None
        return self.out_proj(self.norm(y, z).flatten(2))


# ==== Mixture of experts ==============================================================================================


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). A dense layer's MLP, and the shared expert."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def dequantise(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """An FP8 matrix (M, N), each block of 128 x 128 times its scale, (ceil(M / 128), ceil(N / 128)) in all.

    In float32: half precision would round the scale. The blocks are those of [MTP], section 3.3.
    """
    scale = upcast(scale).repeat_interleave(128, dim=1)[:, : weight.shape[1]]  # (row blocks, N)
    return torch.cat([rows.float().mul_(s) for rows, s in zip(weight.split(128), scale)]).to(dtype)


class Experts(nn.Module):
    """E small SwiGLU MLPs as one flat dict of parameters, "17.gate_proj.weight" and so on, as the checkpoint has them.

    The released model has 73,728 such matrices: a module around each would take longer to build than to map. Matrices
    of an FP8 checkpoint stay in 8 bits, with a buffer "17.gate_proj.weight_scale_inv" beside each.
    """

    names = ("gate_proj", "up_proj", "down_proj")
    prefetch: Callable[[Tensor], Any] | None = None  # for experts mapped from disk: begins to read one, without waiting

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.num_experts, self.used = num_experts, 0  # used: experts that were read, summed over all passes
        for e in range(num_experts):
            for name in self.names:
                shape = (hidden_size, intermediate_size) if name == "down_proj" else (intermediate_size, hidden_size)
                # not register_parameter, which refuses dots; all else treats the key as any other
                self._parameters[f"{e}.{name}.weight"] = nn.Parameter(torch.empty(shape))

    def _load_from_state_dict(self, state, prefix, metadata, strict, missing, unexpected, errors):
        found = []  # a key with dots looks unexpected to nn.Module
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, found, errors)
        unexpected += [key for key in found if key[len(prefix) :] not in {**self._parameters, **self._buffers}]

    def _apply(self, fn, *args):
        place = self._parameters["0.up_proj.weight"].data_ptr()
        for key in [*self._buffers]:
            weight = self._parameters[key.removesuffix("_scale_inv")]
            if (dtype := fn(weight.data[:0]).dtype) != weight.dtype:  # no longer 8 bits: the scale goes in
                weight.data = dequantise(weight.data, self._buffers.pop(key), dtype)
        super()._apply(fn, *args)
        if self._parameters["0.up_proj.weight"].data_ptr() != place:  # a copy in memory is not read from disk
            self.prefetch = None
        return self

    @property
    def bytes_each(self) -> int:
        return sum(self._parameters[f"0.{name}.weight"].nbytes for name in self.names)

    def weight(self, e: int, name: str, dtype: torch.dtype) -> Tensor:
        """A matrix of expert e, dequantised if it is kept in 8 bits."""
        key = f"{e}.{name}.weight"
        weight, scale = self._parameters[key], self._buffers.get(f"{key}_scale_inv")
        return weight if scale is None else dequantise(weight, scale, dtype)

    def forward(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """x (tokens, D), weights and experts (tokens, k) -> (tokens, D): each token's weighted sum of k experts.

        Experts that lie on another device than x are computed there: moving x costs less than moving them.
        """
        device = x.device
        x, weights, experts = (t.to(self._parameters["0.up_proj.weight"].device) for t in (x, weights, experts))
        if one := len(x) == 1:  # nothing to sort
            groups = [(e, x[0]) for e in experts[0].tolist()]
        else:
            chosen, order = experts.flatten().sort(stable=True)  # all (token, choice) pairs, expert by expert
            used, counts = chosen.unique_consecutive(return_counts=True)
            tokens = (order // experts.shape[1]).split(counts.tolist())
            groups = [(e, x.index_select(0, rows)) for e, rows in zip(used.tolist(), tokens)]
        self.used += len(groups)
        coming, outputs = iter([e for e, _ in groups] if self.prefetch else []), []
        for i, (e, rows) in enumerate(groups):
            for ahead in islice(coming, 1 if i else 17):  # the disk is busy with what comes while one is computed
                for name in self.names:
                    self.prefetch(self._parameters[f"{ahead}.{name}.weight"])
            gate, up, down = (self.weight(e, name, x.dtype) for name in self.names)
            outputs.append(linear(F.silu(linear(rows, gate)) * linear(rows, up), down))
        if one:
            return (weights @ torch.stack(outputs)).to(device)
        place = order.argsort().view_as(experts)  # where in outputs a token's k are: looked up, weighted and summed
        return F.embedding_bag(place, torch.cat(outputs), per_sample_weights=weights, mode="sum").to(device)


def routed_bytes(model: nn.Module) -> int:
    """Bytes of routed experts' weights that the model has read so far, in all its passes."""
    return sum(module.used * module.bytes_each for module in model.modules() if isinstance(module, Experts))


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
        logits = self.gate(x)
        # softmax over all experts first, then the choice; in float32, since close probabilities decide it
        p = upcast(logits).softmax(-1)
        weights, experts = p.topk(self.k, dim=-1)  # (B, T, k)
        tap("margin", lambda: weights[..., -1] - p.scatter(-1, experts, 0).amax(-1))  # before the next one is chosen
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        tap("router_probs", p), tap("topk_ids", experts), tap("topk_weights", weights)
        y = self.experts(x.flatten(0, 1), weights.flatten(0, 1).to(x.dtype), experts.flatten(0, 1)).view_as(x)
        tap("experts.out", y)
        return y + torch.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x), logits


def load_balancing_loss(router_logits: list[Tensor], k: int, mask: Tensor | None = None) -> Tensor:
    """E * sum_e f_e p_e over the real tokens of all MoE layers pooled ([MoE] Eq. 4 to 6).

    f_e is the share of tokens that chose expert e among their k, p_e its mean probability: a router that treats all
    experts alike gives k. router_logits: (B * T, E) a layer; mask: (B, T), 0 at padding.
    """
    p = upcast(torch.cat(list(router_logits))).softmax(-1)  # (layers * B * T, E)
    weight = torch.ones_like(p[:, 0]) if mask is None else mask.flatten().repeat(len(router_logits)).to(p)
    f = torch.zeros_like(p).scatter(1, p.topk(k, dim=-1).indices, 1)
    f, p = ((weight[:, None] * x).sum(0) / weight.sum() for x in (f, p))
    return p.shape[-1] * (f * p).sum()


# ==== Block and cache =================================================================================================


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


@dataclass
class Cache:
    """Everything a model remembers of B sequences. Made by `model.make_cache`; every forward pass brings it forward.

    What it stores is overwritten in place, so backward through more than one cached forward pass fails.
    """

    layers: list
    seq_len: Tensor  # (B,) int64: each sequence's real tokens
    columns: int = 0  # tokens fed to each, padding included
    padded: bool = False  # whether there was any
    reversible: bool = False  # set before a short pass, lets some of its tokens be taken back
    complete: bool = True  # False inside a pass, and for good if that is interrupted
    mtp: "Cache | None" = None  # the MTP layer's own, if it drafts for this one
    mtp_start: int = 0  # `columns` when that one was empty

    def rollback(self, tokens: int):
        """Forgets the last `tokens` tokens of the last pass, which must have been reversible and without padding."""
        for layer in self.layers if tokens else ():
            layer.rollback(tokens)
        self.seq_len, self.columns = self.seq_len - tokens, self.columns - tokens

    def clone(self) -> "Cache":
        """An independent copy. The last pass can't be taken back in it."""
        layers, mtp = [layer.clone() for layer in self.layers], self.mtp and self.mtp.clone()
        return replace(self, layers=layers, seq_len=self.seq_len.clone(), mtp=mtp)


# ==== Model ===========================================================================================================


@dataclass
class ModelOutput:
    """What a forward pass returns; None where not asked for."""

    loss: Tensor | None = None
    logits: Tensor | None = None  # (B, T or logits_to_keep, vocab_size)
    mtp_logits: Tensor | None = None  # (B, T - 1, vocab_size): row i is about token i + 2
    start_logits: Tensor | None = None  # (B, T), of question answering
    end_logits: Tensor | None = None
    aux_loss: Tensor | None = None  # load-balancing loss, before its coefficient
    mtp_loss: Tensor | None = None  # MTP's cross-entropy, before its factor
    past_key_values: Cache | None = None
    last_hidden_state: Tensor | None = None  # (B, T, D), after the final norm
    hidden_states: tuple[Tensor, ...] | None = None  # embeddings, then each layer's output, the last one normed
    router_logits: tuple[Tensor, ...] | None = None  # (B * T, E) per MoE layer


class PreTrainedModel(nn.Module):
    """What all models share. `from_pretrained` and `save_pretrained` join it under "Loading and saving"."""

    backbone = "model."  # where Qwen3NextModel's parameters stand among this model's
    head: str | None = None  # a linear layer of its own, which a causal checkpoint lacks

    def __init__(self, config: Qwen3NextConfig):
        super().__init__()
        self.config = config
        self.generation_config: dict[str, Any] = {}  # defaults of `generate`, from generation_config.json

    def __call__(self, *args: Any, trace: dict | None = None, **kwargs: Any) -> ModelOutput:
        """`forward`, as any module's; trace: an empty dict, or `Trace`, to fill with what is computed on the way."""
        with nullcontext() if trace is None else tracing(self, trace):
            return super().__call__(*args, **kwargs)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def make_cache(self, batch_size: int) -> Cache:
        """An empty cache for `batch_size` sequences, to be passed as past_key_values."""
        layers = [layer.mixer.make_cache(batch_size) for layer in self.get_submodule(self.backbone[:-1]).layers]
        return Cache(layers, torch.zeros(batch_size, dtype=torch.long, device=self.device))

    @torch.no_grad()
    def init_weights(self, module: nn.Module):
        """New weights. The decays are spread as in the original Gated DeltaNet, from heads that keep nearly all of the
        state at each step to heads that keep a fifth; with dt_bias = 1 every token would wipe the memory.
        """
        if next(module.parameters()).is_meta:  # a checkpoint follows; and random numbers there import half of PyTorch
            return
        for name, p in module.named_parameters():
            if name.endswith("A_log"):
                p.uniform_(1, 16).log_()
            elif name.endswith("dt_bias"):  # softplus(dt_bias) = dt, log-uniform in [0.001, 0.1]
                dt = p.uniform_(math.log(0.001), math.log(0.1)).exp_()
                p.copy_(dt + torch.log(-torch.expm1(-dt)))
            elif name.endswith("bias"):
                p.zero_()
            elif p.ndim > 1:  # the norms have set themselves
                p.normal_(0, self.config.initializer_range)

    def tie_weights(self):
        """Makes one tensor of those that the config ties."""


class Qwen3NextModel(PreTrainedModel):
    """Embedding, layers, final norm."""

    backbone = ""

    def __init__(self, config: Qwen3NextConfig):
        super().__init__(config)
        embedding = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(embedding, freeze=False)
        kinds = enumerate(config.layer_types)
        self.layers = nn.ModuleList(DecoderLayer(config, kind, config.is_moe(i)) for i, kind in kinds)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rope = rope_frequencies(config)  # no buffer: .to(bfloat16) would round it
        self.warned = False
        self.init_weights(self)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
        output_router_logits: bool = False,
    ) -> ModelOutput:
        """Prefill, continuation and decoding alike: T new tokens behind whatever `past_key_values` holds.

        Args: input_ids (B, T) int64, or inputs_embeds (B, T, D); attention_mask (B, T), or with a column for each token
        fed so far: 0 at padding, on either side; position_ids (B, T), by default each sequence's own count.
        Raises: ValueError for inputs that do not fit together, a mask with holes, a token outside the vocabulary.
        """
        x, collect = self.embed(input_ids, inputs_embeds), output_hidden_states or output_router_logits
        cache = self.make_cache(len(x)) if use_cache and past_key_values is None else past_key_values
        hidden_states, router_logits = self.run(x, self, attention_mask, position_ids, cache, collect)
        out = ModelOutput(last_hidden_state=hidden_states[-1], past_key_values=cache)
        out.hidden_states = hidden_states if output_hidden_states else None
        out.router_logits = router_logits if output_router_logits else None
        return out

    def embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None = None) -> Tensor:
        """Token ids (B, T), or embeddings (B, T, D) as they are -> (B, T, D)."""
        expect((input_ids is None) != (inputs_embeds is None), "pass either input_ids or inputs_embeds")
        try:
            x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        except IndexError:
            span, limit = (input_ids.min().item(), input_ids.max().item()), self.config.vocab_size - 1
            raise ValueError(f"input_ids span {span}, expected 0 to vocab_size - 1 = {limit}") from None
        right = x.ndim == 3 and 0 not in x.shape
        expect(right, f"the input, embedded, has shape {tuple(x.shape)}, expected (batch, tokens, D), none empty")
        return x

    def run(
        self, x: Tensor, stack: nn.Module, mask: Any, position_ids: Any, cache: Cache | None, collect: bool = False
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """x (B, T, D) through the layers and the norm of `stack`: the model itself, or its MTP module.

        mask and position_ids as in `forward`. Returns hidden states, the last one normed, and router logits
        (B * T, E): those of all layers if `collect`, else the last hidden states alone.
        """
        (B, T, _), lengths, back = x.shape, None, None
        cache = cache or Cache([None] * len(stack.layers), torch.zeros(B, dtype=torch.long, device=x.device))
        mask = self._new_mask(mask, B, T, cache)
        if mask is not None:  # bring every sequence to the left, padding to the right
            order = mask.int().argsort(dim=1, descending=True, stable=True)  # (B, T)
            back = order.argsort(dim=1)[..., None]  # and afterwards to where it was
            x, lengths = x.take_along_dim(order[..., None], dim=1), mask.sum(1)
            position_ids = None if position_ids is None else position_ids.expand(B, T).gather(1, order)
        expect(lengths is None or not cache.reversible, "a reversible pass takes no padding")
        step, limit = Step(x, lengths, position_ids, cache, self.rope), self.config.max_position_embeddings
        if step.slots > limit and not self.warned:
            self.warned = True
            warnings.warn(f"{step.slots} tokens are more than max_position_embeddings ({limit})", stacklevel=2)
        cache.complete = cache.reversible = False
        hidden_states, router_logits = [], []
        for layer, memory in zip(stack.layers, cache.layers):
            hidden_states += [x] if collect else []
            x, logits = layer(x, step, memory)
            router_logits += [logits] if collect and logits is not None else []
        hidden_states.append(stack.norm(x))
        cache.seq_len = cache.seq_len + (T if lengths is None else lengths)
        cache.columns, cache.padded, cache.complete = step.slots, cache.padded or lengths is not None, True
        if back is not None:
            hidden_states = [x.take_along_dim(back, dim=1) for x in hidden_states]
            router_logits = [x.take_along_dim(back, dim=1) for x in router_logits]
        return tuple(hidden_states), tuple(x.flatten(0, 1) for x in router_logits)

    @staticmethod
    def _new_mask(mask: Tensor | None, B: int, T: int, cache: Cache) -> Tensor | None:
        """The attention mask of the T new tokens, (B, T) bool; None when all of them are real."""
        size, shapes = len(cache.seq_len), ((B, T), (B, cache.columns + T))
        expect(size == B, f"the cache holds {size} sequences, the input {B}")
        expect(cache.complete, "the cache is of no use: a pass that should have filled it was interrupted")
        if mask is None:
            return None
        found = tuple(mask.shape)
        expect(found in shapes, f"attention_mask has shape {found}, expected {shapes[0]} or {shapes[1]}")
        same = found == (B, T) or torch.equal(mask[:, :-T].bool().sum(1), cache.seq_len)
        expect(same, "attention_mask differs from the one that the cache was filled with")
        mask = mask[:, -T:].bool()
        starts = mask[:, 0].long() + (mask[:, 1:] & ~mask[:, :-1]).sum(1)
        expect(bool((starts < 2).all()), "attention_mask has holes; padding may stand only at a sequence's ends")
        return None if mask.all() else mask


# ==== Multi-token prediction ==========================================================================================


class MTP(nn.Module):
    """Looks one token further: h_i and the token that follows predict the one after that ([MTP] Eq. 21 to 23).

    h_i is the hidden state *after* the model's final norm. Here stand the projection of the pair and one gated
    attention layer; embedding and lm_head are the model's own.
    """

    def __init__(self, config: Qwen3NextConfig):
        super().__init__()
        D, eps = config.hidden_size, config.rms_norm_eps
        self.fc = Linear(2 * D, D, bias=False)
        self.pre_fc_norm_embedding = RMSNorm(D, eps)
        self.pre_fc_norm_hidden = RMSNorm(D, eps)
        self.layers = nn.ModuleList([DecoderLayer(config, "full_attention", moe=config.num_experts > 0)])
        self.norm = RMSNorm(D, eps)

    def forward(self, hidden: Tensor, next_embeds: Tensor) -> Tensor:
        """h_i and the embedding of token i + 1, (B, T, D) each -> the layer's input (B, T, D)."""
        return self.fc(torch.cat([self.pre_fc_norm_embedding(next_embeds), self.pre_fc_norm_hidden(hidden)], dim=-1))


# ==== Causal language model ===========================================================================================


class Qwen3NextForCausalLM(PreTrainedModel):
    """The model, its output projection, and MTP if the config asks for it. `generate` joins it under "Generation"."""

    def __init__(self, config: Qwen3NextConfig):
        super().__init__(config)
        self.model = Qwen3NextModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mtp = MTP(config) if config.mtp_num_hidden_layers else None
        self.init_weights(self.lm_head)
        if self.mtp:
            self.init_weights(self.mtp)
        self.tie_weights()

    def tie_weights(self):
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
        output_router_logits: bool | None = None,
        output_mtp_logits: bool = False,
    ) -> ModelOutput:
        """As `Qwen3NextModel.forward`, with logits (B, T, vocab_size), or the last `logits_to_keep` positions' if > 0.

        labels (B, T) int64 adds the mean cross-entropy of predicting labels[:, 1:], -100 left out; with
        output_router_logits (default: the config's) router_aux_loss_coef times the load-balancing loss; and with
        output_mtp_logits mtp_loss_scaling_factor times MTP's cross-entropy.
        """
        expect(labels is None or not logits_to_keep, "labels need all logits, but logits_to_keep is set")
        router = self.config.output_router_logits if output_router_logits is None else output_router_logits
        x, state = self.model.embed(input_ids, inputs_embeds), (attention_mask, position_ids, past_key_values)
        out = self.model(None, *state, x, use_cache, output_hidden_states, router)
        out.logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        mask = None if attention_mask is None else attention_mask[:, -x.shape[1] :]
        if labels is not None:
            out.loss = F.cross_entropy(upcast(out.logits[:, :-1]).flatten(0, 1), labels[:, 1:].flatten())
        if out.router_logits:
            out.aux_loss = load_balancing_loss(out.router_logits, self.config.num_experts_per_tok, mask)
            if labels is not None:
                out.loss = out.loss + self.config.router_aux_loss_coef * out.aux_loss
        if output_mtp_logits:
            expect(past_key_values is None, "output_mtp_logits takes whole sequences, not a continuation")
            expect(x.shape[1] > 1, "output_mtp_logits needs at least 2 tokens, found 1")
            pairs = None if mask is None else mask[:, 1:] * mask[:, :-1]  # where both tokens of a pair are real
            positions = None if position_ids is None else position_ids[:, :-1]
            out.mtp_logits = self.lm_head(self.look_ahead(out.last_hidden_state[:, :-1], x[:, 1:], pairs, positions))
            tap("mtp.logits", out.mtp_logits)
            if labels is not None:
                labels = labels[:, 2:]
                if mask is not None:  # both ends of the step have to be real
                    labels = labels.masked_fill(mask[:, 2:] * mask[:, :-2] == 0, -100)
                logits, count = upcast(out.mtp_logits[:, :-1]).flatten(0, 1), (labels != -100).sum().clamp(min=1)
                out.mtp_loss = F.cross_entropy(logits, labels.flatten(), reduction="sum") / count  # 0 without any label
                out.loss = out.loss + self.config.mtp_loss_scaling_factor * out.mtp_loss
        return out

    def look_ahead(
        self, hidden: Tensor, embeds: Tensor, mask: Any = None, positions: Any = None, cache: Cache | None = None
    ) -> Tensor:
        """MTP's hidden states (B, T, D), from the model's own, or MTP's at the token before, and the next embeddings.

        lm_head makes logits of them; their own attention cache is not the model's. Raises ValueError without MTP.
        """
        expect(self.mtp is not None, "the model has no MTP layer: its checkpoint has no mtp.* tensors")
        return self.model.run(self.mtp(hidden, embeds), self.mtp, mask, positions, cache)[0][-1]


# ==== Other heads =====================================================================================================


class LinearHead(PreTrainedModel):
    """A backbone and a linear layer on its hidden states. Parameter names, losses and outputs are transformers'."""

    head, bias = "score", True

    def __init__(self, config: Qwen3NextConfig):
        super().__init__(config)
        self.num_labels = getattr(config, "num_labels", None) or len(getattr(config, "id2label", None) or range(2))
        self.add_module(self.backbone[:-1], Qwen3NextModel(config))
        right = isinstance(self.num_labels, int) and 0 < self.num_labels < 1e6
        expect(right, f"config: num_labels is {self.num_labels!r:.99}, expected a number above 0")
        outputs = 2 if self.head == "qa_outputs" else self.num_labels  # a span's start and end
        self.add_module(self.head, Linear(config.hidden_size, outputs, bias=self.bias))
        self.init_weights(self.get_submodule(self.head))
        self.dropout = nn.Dropout(0.0)

    def forward(self, *inputs: Any, labels: Tensor | None = None, **options: Any) -> ModelOutput:
        """logits (B, T, outputs). labels (B, T) int64 add a mean cross-entropy, -100 left out. Else as the backbone."""
        out = self.get_submodule(self.backbone[:-1])(*inputs, **options)
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
        """logits (B, num_labels). labels (B,) int64: cross-entropy; (B,) or (B, num_labels) float: squared error if
        there is one label, else a yes or no for each; config.json's problem_type decides differently.
        """
        out = super().forward(input_ids, attention_mask, *inputs, **options)
        (B, T, n), real, pad = out.logits.shape, attention_mask, getattr(self.config, "pad_token_id", None)
        if real is None:  # then padding is told by its token
            known = input_ids is not None and pad is not None
            expect(known or B == 1, "several sequences need an attention_mask, or a pad_token_id in config.json")
            real = input_ids != pad if known else out.logits.new_ones(B, T)
        last = (real[:, -T:].bool() * torch.arange(T, device=real.device)).argmax(1)
        out.logits = out.logits[torch.arange(B, device=last.device), last]
        if labels is not None:
            kind = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
            kind = getattr(self.config, "problem_type", None) or ("regression" if n == 1 else kind)
            if kind == "regression":
                out.loss = F.mse_loss(upcast(out.logits).view_as(labels), upcast(labels))
            elif kind == "single_label_classification":
                out.loss = F.cross_entropy(upcast(out.logits), labels.flatten())
            else:
                expect(kind == "multi_label_classification", f"config: problem_type is {kind!r}, which is not known")
                out.loss = F.binary_cross_entropy_with_logits(upcast(out.logits), upcast(labels))
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
        """start_logits and end_logits (B, T). Positions (B,) int64 add their mean cross-entropy; beyond T: left out."""
        out = super().forward(*inputs, labels=None, **options)
        out.start_logits, out.end_logits = out.logits.unbind(-1)
        if start_positions is not None and end_positions is not None:
            T, pairs = out.logits.shape[1], ((out.start_logits, start_positions), (out.end_logits, end_positions))
            out.loss = sum(F.cross_entropy(upcast(x), y.flatten().clamp(0, T), ignore_index=T) for x, y in pairs) / 2
        return out


# ==== Loading and saving ==============================================================================================

FP8 = torch.float8_e4m3fn
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64, "F8_E4M3": FP8}
libc = ctypes.CDLL(None) if hasattr(mmap, "MADV_WILLNEED") else None  # for madvise and mincore; not on Windows
ADVISED = 2**18  # bytes of a matrix from which the system is told how it will be read: that takes microseconds, too
BACKBONE = re.compile(r"^(model\.)?(transformer\.)?(?=(embed_tokens|layers|norm)\.)")  # each model's own prefix


def some(names: Iterable[str]) -> str:
    """The first ten names and a count, for messages."""
    names = sorted(names)
    return f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''} ({len(names)} in all)"


def progress(steps: Any, action: str, unit: str, total: int | None = None) -> tqdm:
    """The steps of something, with a progress bar on a terminal once they have taken two seconds."""
    return tqdm(steps, action, total, unit=unit, leave=False, delay=2, disable=None)


def read_text(path: str | Path) -> str:
    """A UTF-8 text file, or standard input for "-". Raises FileNotFoundError or ValueError naming the file."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None


def read_json(source: Any, kind: type = dict, text: str | None = None) -> Any:
    """What a JSON file says, or a text from that source. Raises FileNotFoundError or ValueError naming the source."""
    text = read_text(source) if text is None else text
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not JSON ({error})") from None
    expect(isinstance(content, kind), f"{source}: holds {type(content).__name__}, expected {kind.__name__}")
    return content


def find_checkpoint(path_or_repo: str | os.PathLike) -> Path:
    """A checkpoint's folder: a local one, or a hub repository's (owner/name). Raises as `download` does."""
    path, name = Path(path_or_repo), str(path_or_repo)
    if path.is_dir():
        return path
    if path.exists() or name.count("/") != 1 or not name[0].isalnum():
        raise FileNotFoundError(f"{path}: no such folder, and not the name of a hub repository (owner/name)")
    return download(name)


@functools.cache  # the tokenizer asks, then the model
def download(repo: str) -> Path:
    """A hub repository's folder in the hub library's cache, after downloading the files that it lacks.

    Tells size, place and free space on stderr first; without a hub, the last known revision does. Raises ValueError if
    the disk is too full, FileNotFoundError if hub and cache fail or the download breaks off: files got so far stay.
    """
    from huggingface_hub import HfApi, constants, snapshot_download  # slower to import than all the rest
    from huggingface_hub.utils import RepositoryNotFoundError, disable_progress_bars

    home = Path(constants.HF_HUB_CACHE)
    folder = home / f"models--{repo.replace('/', '--')}"  # with refs/main, blobs/HASH, snapshots/REVISION/FILE
    try:
        info = HfApi().model_info(repo, files_metadata=True, timeout=10)
    except Exception as error:  # its own, its HTTP library's, the operating system's
        main = folder / "refs" / "main"
        snapshot = folder / "snapshots" / (main.read_text() if main.is_file() else "none")
        if (snapshot / "config.json").is_file():
            return snapshot
        unknown = isinstance(error, RepositoryNotFoundError)
        why = "the hub has none either, or a private one" if unknown else f"{type(error).__name__}: {error}"
        raise FileNotFoundError(f"{repo}: no such folder, no config.json of it in {home}, and {why}") from error
    snapshot, kinds = folder / "snapshots" / info.sha, (".json", ".jinja", ".txt", ".safetensors")
    files = [f for f in info.siblings if f.rfilename.endswith(kinds) and "/" not in f.rfilename]
    lacking = [f for f in files if not (snapshot / f.rfilename).exists()]
    if not lacking:
        return snapshot
    blobs = {folder / "blobs" / str(f.lfs.sha256 if f.lfs else f.blob_id): f.size or 0 for f in lacking}
    size = sum(size for blob, size in blobs.items() if not blob.exists())
    free = shutil.disk_usage(next(place for place in (home, *home.parents) if place.is_dir())).free
    room = f"{repo}: {size / 1e9:,.2f} GB to download to {home}, where {free / 1e9:,.2f} GB are free"
    expect(size <= free, f"{room}: too little (HF_HOME names another place)")
    print(room, file=sys.stderr)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        for weights in (False, True):  # last, so that a folder with the weights has all the rest
            names = [f.rfilename for f in files if f.rfilename.endswith(".safetensors") == weights]
            snapshot = Path(snapshot_download(repo, allow_patterns=names))
        return snapshot
    except Exception as error:
        raise FileNotFoundError(f"{repo}: the download failed, the files got so far are kept: {error}") from error


def find_file(folder: Path, name: str) -> Path | None:
    """A file of a checkpoint, None if there is none. Raises ValueError if it is a link to somewhere else."""
    path = folder / name
    if not path.is_file():
        expect(not os.path.lexists(path), f"{path}: not a file, or a link to nowhere")
        return None
    home, target = folder.resolve(), path.resolve()
    blobs = [up / "blobs" for up in home.parents[1:3] if home.parent.name == "snapshots"]  # where the hub's links lead
    inside = target.parent == home or any(map(target.is_relative_to, blobs))
    expect(inside, f"{path}: leads out of the folder, to {target}")
    return path


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file as views of the mapped file: nothing but the header is read before it is used.

    The format: 8 bytes header length, little endian; the header, JSON {name: {dtype, shape, data_offsets}}; the data.
    The library checks that these fit, but would touch each tensor. The mapping is private: writing to a tensor copies
    the page and never reaches the file; on Linux no memory is set aside for that, so a file may exceed the memory.
    Raises ValueError, naming the file, if it is not whole.
    """
    linux = {"flags": mmap.MAP_PRIVATE | 0x4000, "prot": mmap.PROT_READ | mmap.PROT_WRITE}  # 0x4000: MAP_NORESERVE
    try:
        with path.open("rb") as file:
            safe_open(path, "numpy")  # not first: what may not be read, it calls missing
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            data = mmap.mmap(file.fileno(), 0, **(linux if sys.platform == "linux" else {"access": mmap.ACCESS_COPY}))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({one_line(error)})") from None
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        dtype, shape, (start, _) = DTYPES.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
        expect(dtype is not None, f"{path}: {name} has dtype {entry['dtype']}, expected one of {', '.join(DTYPES)}")
        expect(all(n < 2**31 for n in shape), f"{path}: {name} has shape {shape}, expected numbers below 2^31")
        count, offset = math.prod(shape), 8 + length + start
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=offset) if count else torch.empty(0).to(dtype)
        tensors[name] = flat.view(shape)
    return tensors


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder: model.safetensors, or the shards of model.safetensors.index.json."""
    single, index = (find_file(folder, name) for name in ("model.safetensors", "model.safetensors.index.json"))
    if index is None:
        if single is None:
            others = [file.name for kind in ("bin", "pt", "pth", "gguf") for file in folder.glob(f"*.{kind}")]
            more = f", only what is not read here: {some(others)}" if others else ""
            raise FileNotFoundError(f"{folder}: neither model.safetensors nor model.safetensors.index.json{more}")
        return read_safetensors(single)
    shard_of, tensors = read_json(index).get("weight_map"), {}
    right = isinstance(shard_of, dict) and shard_of and all(isinstance(name, str) for name in shard_of.values())
    expect(right, f"{index}: no weight_map from tensor names to files")
    names = sorted(set(shard_of.values()))
    for name in names:
        if not name or Path(name).name != name or find_file(folder, name) is None:
            raise FileNotFoundError(f"{index}: names {name!r}, which is not in the folder")
    for name in progress(names, "opening", "file"):
        found = read_safetensors(file := folder / name)
        stray = [key for key in found if shard_of.get(key) != name]
        expect(not stray, f"{file}: holds what {index.name} does not place there: {some(stray)}")
        tensors.update(found)
    missing = shard_of.keys() - tensors.keys()
    expect(not missing, f"{index}: not in the files it names: {some(missing)}")
    return tensors


def split_fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with fused experts (E, 2 I, D), gate before up, and (E, D, I) as views of each expert's own."""
    split = {}
    for name, tensor in tensors.items():
        if fused := re.fullmatch(r"(.+\.experts)\.(gate_up_proj|down_proj)(?:\.weight)?(_scale_inv)?", name):
            prefix, kind, scale = fused[1], fused[2], fused[3] or ""
            names = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
            right = tensor.ndim == 3 and tensor.numel() > 0 and tensor.shape[1] % len(names) == 0
            expect(right, f"{name} has shape {tuple(tensor.shape)}, expected (experts, rows, columns)")
            for e, matrix in enumerate(tensor.unbind()):
                new = {f"{prefix}.{e}.{part}.weight{scale}": x for part, x in zip(names, matrix.chunk(len(names)))}
                expect(not new.keys() & tensors, f"{name}: experts are there twice, fused and {some(new)}")
                split.update(new)
        else:
            split[name] = tensor
    return split


def dequantise_all(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The same tensors, FP8 matrices dequantised; but experts keep their 8 bits and scales until they are routed to."""
    tensors, name_of = dict(tensors), {n: n.removesuffix("_scale_inv") for n in tensors if n.endswith("_scale_inv")}
    bare = [name for name, t in tensors.items() if t.dtype == FP8 and f"{name}_scale_inv" not in tensors]
    expect(not bare, f"FP8 without a weight_scale_inv: {some(bare)}")
    for scale_name, name in progress(name_of.items(), "dequantising", "tensor"):
        scale, weight = tensors[scale_name], tensors.get(name)
        right = weight is not None and weight.dtype == FP8 and weight.ndim == 2 and weight.numel() > 0
        expect(right, f"{scale_name} has no FP8 matrix {name} beside it")
        found, blocks = tuple(scale.shape), tuple(math.ceil(n / 128) for n in weight.shape)
        expect(found == blocks, f"{scale_name} has shape {found}, expected {blocks}: blocks of 128 x 128")
        if ".experts." not in name:
            tensors[name] = dequantise(weight, tensors.pop(scale_name), dtype)
    return tensors


def as_dtype(dtype: str | torch.dtype, config: Qwen3NextConfig, tensors: dict[str, Tensor]) -> torch.dtype:
    """The dtype meant; "auto" is the one that the config names, or else the tensors' own."""
    if dtype == "auto":
        named = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
        dtype = named or next((t.dtype for t in tensors.values() if t.dtype != FP8), torch.bfloat16)
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype).removeprefix("torch."), None)
    right = found in DTYPES.values() and found != FP8
    expect(right, f"dtype is {dtype!r}, expected auto, bfloat16, float16, float32 or float64")
    return found


def as_device(device_map: str | torch.device) -> torch.device:
    """The device meant; "auto" is the GPU if there is one."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if str(device_map) == "auto" else device_map
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # no such device, or not in this PyTorch
        raise ValueError(f"device {str(device_map)!r} can't be used: {str(error).partition('. ')[0]}") from None


def choose_devices(device_map: Any, tensors: dict[str, Tensor], dtype: torch.dtype) -> list[torch.device]:
    """The devices of the routed experts and of all else. "auto" leaves the experts, or all, on the CPU if the GPU is
    too small, and then says so; a tenth of its free memory is left for caches and activations.
    """
    device, cpu = as_device(device_map), torch.device("cpu")
    sizes = [0, 0]  # bytes of the routed experts, and of all else
    for name, tensor in tensors.items():
        sizes[".experts." not in name] += tensor.numel() * (tensor if tensor.dtype == FP8 else dtype).itemsize
    if str(device_map) != "auto" or device == cpu:
        return [device, device]
    free, (experts, rest) = torch.cuda.mem_get_info(device)[0], sizes
    devices = [device if size <= 0.9 * free else cpu for size in (experts + rest, rest)]
    if devices[0] == cpu:
        routed = f"{experts / 1e9:.1f} GB of routed experts stay on {devices[0]}, and are computed there"
        others = f"all else ({rest / 1e9:.1f} GB) goes to {devices[1]}"
        print(f"{free / 1e9:.1f} GB free on {device}: {routed}; {others}", file=sys.stderr)
    return devices


def advise(tensor: Tensor, advice: int):
    """Tells the operating system how the pages of a mapped tensor will be read."""
    start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(tensor.data_ptr() + tensor.nbytes - start), advice)


def read_ahead(tensor: Tensor):
    """Begins to read a mapped tensor, unless its middle (its ends may be a neighbour's, too) is in memory already."""
    page, resident = (tensor.data_ptr() + tensor.nbytes // 2) // mmap.PAGESIZE * mmap.PAGESIZE, ctypes.c_ubyte()
    if libc.mincore(ctypes.c_void_p(page), ctypes.c_size_t(1), ctypes.byref(resident)) or not resident.value & 1:
        advise(tensor, mmap.MADV_WILLNEED)


def free_memory() -> float:
    """Bytes of memory that are free, or would be when asked for; infinity where the system does not say."""
    info = Path("/proc/meminfo")
    return 1024 * int(re.search(r"MemAvailable: +(\d+)", info.read_text())[1]) if info.is_file() else math.inf


def assign_weights(
    model: PreTrainedModel, tensors: dict[str, Tensor], source: Path, devices: list, dtype: torch.dtype, in_memory: bool
):
    """Puts the tensors in place of the model's parameters, copying where dtype or device differ or `in_memory` says so.

    Other models' heads are left alone; the model's own, if the checkpoint has none, starts anew, with a warning.
    Raises ValueError listing what is missing, unexpected or misshapen.
    """
    if model.head and not any(name.startswith(model.head + ".") for name in tensors):
        warnings.warn(f"{source}: no {model.head}: its weights are new, and have to be trained", stacklevel=3)
        head = model.get_submodule(model.head).to_empty(device=devices[1]).to(dtype)
        model.init_weights(head)
        tensors = {**tensors, **{f"{model.head}.{name}": p.detach() for name, p in head.named_parameters()}}
    want = {name: tuple(p.shape) for name, p in model.named_parameters()}
    others = {"lm_head", "mtp", "score", "qa_outputs"} - {name.partition(".")[0] for name in want}
    found = {name: tuple(t.shape) for name, t in tensors.items() if name.partition(".")[0] not in others}
    wrong = [f"{name} {found[name]} instead of {size}" for name, size in want.items() if found.get(name, size) != size]
    extra = {name for name in found.keys() - want if name.removesuffix("_scale_inv") not in want}
    problems = {"missing": want.keys() - found, "unexpected": extra, "misshapen": wrong}
    listed = "; ".join(f"{kind}: {some(names)}" for kind, names in problems.items() if names)
    expect(not listed, f"{source}: the tensors do not fit config.json; {listed}")
    ours = all(os.access(file, os.W_OK) for file in source.glob("*.safetensors"))  # of others' files mincore tells lies
    if in_memory and devices[0].type == "cpu":
        size, free = sum(t.nbytes for t in tensors.values()), free_memory()
        room = f"in_memory: {size / 1e9:.1f} GB of weights, but {free / 1e9:.1f} GB of memory are free"
        expect(size <= free, room)
    for prefix, module in progress([*model.named_modules()], "loading", "module"):
        routed = isinstance(module, Experts)
        for name in [*module._parameters]:
            key, device = f"{prefix}.{name}", devices[0 if routed else 1]
            if (tensor := tensors.get(key)) is None:  # tied
                continue
            eight = tensor.dtype == FP8
            new = tensor.to(device, FP8 if eight else dtype, copy=in_memory)
            module._parameters[name] = nn.Parameter(new, requires_grad=not eight)
            if eight:
                module._buffers[f"{name}_scale_inv"] = tensors[f"{key}_scale_inv"].to(device, copy=in_memory)
            if routed and new is tensor and libc and new.nbytes >= ADVISED:
                advise(tensor, mmap.MADV_RANDOM)  # read no page but the one touched; and a chosen expert whole
                module.prefetch = read_ahead if ours else functools.partial(advise, advice=mmap.MADV_WILLNEED)


def read_config(folder: Path, **fields: Any) -> tuple[Qwen3NextConfig, Any]:
    """A folder's config, some fields replaced, and the module that knows its family's tensors; None: Qwen3-Next."""
    path, family = find_file(folder, "config.json") or folder / "config.json", None
    content = read_json(path)
    try:
        if str(content.get("model_type")).startswith("qwen3_5"):
            import qwen3_5 as family

            content = family.translate_config(content)
        quantised = content.get("quantization_config") or {}
        method = quantised.get("quant_method", "fp8") if isinstance(quantised, dict) else quantised
        expect(method == "fp8", f"quant_method is {method!r:.99}, expected 'fp8', or no quantization_config")
        return Qwen3NextConfig.from_dict({**content, **fields}), family
    except (ValueError, RecursionError) as error:  # of what is nested too deep to be copied
        raise ValueError(f"{path}: {error}") from None


@classmethod
def config_from_pretrained(cls, path_or_repo: str | os.PathLike) -> Qwen3NextConfig:
    """The config of a checkpoint folder or hub repository. Raises FileNotFoundError or ValueError naming the file."""
    return read_config(find_checkpoint(path_or_repo))[0]


@classmethod
def from_pretrained(
    cls,
    path_or_repo: str | os.PathLike,
    dtype: str | torch.dtype = "auto",
    device_map: str | torch.device = "cpu",
    delta_rule: str = "chunk",
    in_memory: bool = False,
    **fields: Any,
) -> PreTrainedModel:
    """A model with a checkpoint's weights, in evaluation mode.

    On the CPU and in the checkpoint's dtype the weights stay in the mapped files: the operating system reads what is
    used, and keeps what fits into memory. in_memory copies them all, if there is room, to multiples of 64 bytes,
    where files do not place them: that takes longer once, and a token about a quarter less.
    Args: path_or_repo, a folder or a hub name; dtype, "auto": the checkpoint's; device_map, "auto": the GPU if there is
    one, but routed experts, or all, on the CPU if it is too small; delta_rule, "chunk" or "recurrent", the form that
    runs over more than one token; fields, to replace those of config.json, such as num_labels.
    Raises FileNotFoundError or ValueError, naming the file and what is wrong with it.
    """
    expect(delta_rule in ("chunk", "recurrent"), f"delta_rule is {delta_rule!r}, expected 'chunk' or 'recurrent'")
    folder, _ = find_checkpoint(path_or_repo), as_device(device_map)
    (config, family), tensors = read_config(folder, **fields), read_checkpoint(folder)
    tensors = family.rename(tensors) if family else tensors
    mtp = any(name.startswith("mtp.") for name in tensors)  # the released config.json does not say
    config = Qwen3NextConfig(**{**config.to_dict(), "mtp_num_hidden_layers": int(mtp)})
    dtype = as_dtype(dtype, config, tensors)
    try:
        tensors = dequantise_all(split_fused(tensors), dtype)
        tensors = family.repack(tensors, config.to_dict()) if family else tensors
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    names = {BACKBONE.sub(cls.backbone, name): name for name in tensors}
    twice = tensors.keys() - names.values()
    expect(not twice, f"{folder}: there twice, with and without their prefix: {some(twice)}")
    tensors = {place: tensors[name] for place, name in names.items()}
    moe = sum(map(config.is_moe, range(config.num_hidden_layers))) + mtp
    few = config.num_hidden_layers + 3 * config.num_experts * moe
    expect(few <= len(tensors), f"{folder}: {len(tensors)} tensors, but config.json's layers and experts need {few}")
    try:
        with torch.device("meta"):  # shapes only: no memory, no random numbers
            model = cls(config)
    except (RuntimeError, TypeError, OverflowError) as error:  # sizes that PyTorch can't count
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    assign_weights(model, tensors, folder, choose_devices(device_map, tensors, dtype), dtype, in_memory)
    model.tie_weights()
    for module in model.modules():
        if isinstance(module, GatedDeltaNet):
            module.delta_rule = delta_rule
    if path := find_file(folder, "generation_config.json"):
        model.generation_config = read_json(path)
    return model.eval()


def save_pretrained(self: PreTrainedModel, path: str | os.PathLike, max_shard_size: int | str = "5GB"):
    """Writes the weights, in shards with an index if they need several, config.json and generation_config.json.

    max_shard_size: bytes, or a string such as "500MB". What is kept in 8 bits is written dequantised. Files get their
    names when all are complete, so that a failure, an OSError, leaves what was there before.
    """
    from huggingface_hub import split_state_dict_into_shards_factory as split

    size = max_shard_size  # by 0 or less, each tensor would get a file of its own
    right = size > 0 if isinstance(size, (int, float)) else re.fullmatch(r"(?=.*[1-9])\d+(\.\d*)?[KMGT]B", str(size))
    expect(right, f"max_shard_size is {size!r}, expected bytes, or like '5GB'")
    parameters, scales = dict(self.named_parameters()), dict(self.named_buffers())  # a tied weight comes once
    sizes = {name: p.numel() * (self.dtype if p.dtype == FP8 else p).itemsize for name, p in parameters.items()}
    pattern, dtype = "model{suffix}.safetensors", str(self.dtype).removeprefix("torch.")
    shards = split(sizes, get_storage_size=int, filename_pattern=pattern, max_shard_size=max_shard_size)
    config = {"architectures": [type(self).__name__], **self.config.to_dict(), "torch_dtype": dtype}
    texts = {"config.json": {k: x for k, x in config.items() if k not in ("quantization_config", "dtype")}}
    if self.generation_config:
        texts["generation_config.json"] = self.generation_config
    if shards.is_sharded:
        texts["model.safetensors.index.json"] = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    new = {name: folder / f"{name}.tmp" for name in (*shards.filename_to_tensors, *texts)}
    try:
        for name in new:
            expect(not (folder / name).is_dir(), f"{name} is a folder")
        for name, keys in progress(shards.filename_to_tensors.items(), "saving", "file"):
            full = {}
            for key in keys:
                p, scale = parameters[key].detach(), scales.get(f"{key}_scale_inv")
                full[key] = p.contiguous() if p.dtype != FP8 else dequantise(p, scale, self.dtype)
            save_file(full, new[name], metadata={"format": "pt"})
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


Qwen3NextConfig.from_pretrained = config_from_pretrained
PreTrainedModel.from_pretrained = from_pretrained
PreTrainedModel.save_pretrained = save_pretrained


# ==== Tokenizer and chat template =====================================================================================


class Encoding(dict):
    """input_ids and attention_mask, by key or as attributes; `**encoding` passes both on."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)

    def to(self, device: str | torch.device) -> "Encoding":
        return Encoding({key: value.to(device) for key, value in self.items()})


class Qwen3NextTokenizer:
    """tokenizer.json through the tokenizers library, and the chat template through Jinja's sandbox."""

    def __init__(self, backend: Any, config: dict, chat_template: str | None):
        self.backend, self.chat_template = backend, chat_template
        tokens = {name: config.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        self.special_tokens = {name: t.get("content") if isinstance(t, dict) else t for name, t in tokens.items() if t}
        right = isinstance(chat_template, (str, type(None)))
        expect(right, f"tokenizer_config.json: chat_template is {chat_template!r:.99}, expected a text")
        find = {}
        for name, token in self.special_tokens.items():
            find[name] = backend.token_to_id(token) if isinstance(token, str) and token.isprintable() else None
            expect(find[name] is not None, f"tokenizer_config.json: {name} {token!r:.99} is not in tokenizer.json")
        self.eos_token_id = find.get("eos_token")
        self.pad_token_id = find.get("pad_token", self.eos_token_id or 0)
        backend.no_padding()
        backend.no_truncation()  # tokenizer.json may ask for either

    @classmethod
    def from_pretrained(cls, path_or_repo: str | os.PathLike) -> "Qwen3NextTokenizer":
        """Reads tokenizer.json, tokenizer_config.json and chat_template.jinja, of which only the first has to be there.

        Raises FileNotFoundError or ValueError naming the file.
        """
        folder = find_checkpoint(path_or_repo)
        names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
        path, config, jinja = (find_file(folder, name) for name in names)
        text = read_text(path or folder / names[0])
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path}: not a tokenizer ({one_line(error)})") from None
        fields = read_json(config) if config else {}
        template = read_text(jinja) if jinja else fields.get("chat_template")
        if isinstance(template, list):  # several, by name
            named = (t for t in template if isinstance(t, dict) and t.get("name") == "default")
            template = next(named, {}).get("template")
        return cls(backend, fields, template)

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    def __call__(
        self, text: str | list, return_tensors: str | None = None, padding: bool = False, padding_side: str = "left"
    ) -> Encoding:
        """Token ids and attention mask of one text or several: lists, or (B, T) int64 tensors for "pt"."""
        expect(return_tensors in (None, "pt"), f"return_tensors is {return_tensors!r}, expected 'pt' or None")
        expect(padding_side in ("left", "right"), f"padding_side is {padding_side!r}, expected 'left' or 'right'")
        if padding:
            self.backend.enable_padding(direction=padding_side, pad_id=self.pad_token_id)
        rows = self.backend.encode_batch([text] if isinstance(text, str) else text)
        self.backend.no_padding()
        fields = {"input_ids": [row.ids for row in rows], "attention_mask": [row.attention_mask for row in rows]}
        if return_tensors == "pt":
            expect(len({len(row.ids) for row in rows}) < 2, "texts of different lengths: a tensor needs padding=True")
            return Encoding({key: torch.tensor(value, dtype=torch.long) for key, value in fields.items()})
        return Encoding({key: value[0] if isinstance(text, str) else value for key, value in fields.items()})

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens written out in the text become themselves."""
        return self.backend.encode(text).ids

    def decode(self, ids: int | list[int] | Tensor, skip_special_tokens: bool = False) -> str:
        """Text of token ids."""
        ids = ids.tolist() if isinstance(ids, Tensor) else ids
        return self.backend.decode([ids] if isinstance(ids, int) else list(ids), skip_special_tokens)

    def batch_decode(self, batch: Any, skip_special_tokens: bool = False) -> list[str]:
        """Texts of several sequences."""
        return [self.decode(ids, skip_special_tokens) for ids in batch]

    def apply_chat_template(
        self, messages: list, tools: Any = None, tokenize: bool = False, add_generation_prompt: bool = True, **kwargs
    ) -> str | list[int]:
        """The conversation as the checkpoint's own template writes it; kwargs (enable_thinking ...) are its variables.

        The template is a program from the checkpoint: it runs in Jinja's sandbox and can't change what it is given.
        Raises ValueError when there is no template, or for what the template itself refuses.
        """
        from jinja2.sandbox import ImmutableSandboxedEnvironment as Sandbox

        expect(self.chat_template is not None, "the checkpoint has no chat template")
        env = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        env.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
        env.globals.update(raise_exception=lambda message: expect(False, message), strftime_now=time.strftime)
        kwargs |= {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:
            text = env.from_string(self.chat_template).render(**self.special_tokens, **kwargs)
        except Exception as error:  # a template can fail like any program
            raise ValueError(f"chat template: {one_line(error)}") from None
        return self.encode(text) if tokenize else text


# ==== Sampling and generation =========================================================================================

PREFILL_WINDOW = 2048  # tokens per forward pass of a long prompt: bounds the memory of the chunked form


@dataclass
class Sampling:
    """How the next token is chosen: processors in transformers' order, then the likeliest token or a random one.

    Raises ValueError, naming the option, for a value outside its range.
    """

    do_sample: bool = False
    temperature: float = 1.0  # 0: the likeliest token
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        limits = {"temperature": 1e9, "top_k": 10**9, "top_p": 1.0, "min_p": 1.0, "repetition_penalty": 1e9}
        for name, high in limits.items():
            value = getattr(self, name)
            right = isinstance(value, (int, type(high))) and not isinstance(value, bool) and 0 <= value <= high
            expect(right, f"{name} is {value!r:.99}, expected a number ({type(high).__name__}) from 0 to {high:.0f}")
        expect(self.repetition_penalty > 1e-9, f"repetition_penalty is {self.repetition_penalty}, expected above 1e-9")
        expect(isinstance(self.do_sample, bool), f"do_sample is {self.do_sample!r:.99}, expected true or false")
        self.do_sample = self.do_sample and self.temperature > 1e-9  # by less, logits would overflow

    @classmethod
    def from_options(cls, defaults: dict, options: dict) -> "Sampling":
        """What is given and not None, else generation_config.json's; a sampling option that is given asks to sample."""
        known = {name: value for name, value in defaults.items() if name in cls.__annotations__ and value is not None}
        given = {name: value for name, value in options.items() if value is not None}
        asked = {"do_sample": True} if given.keys() & {"temperature", "top_k", "top_p", "min_p"} else {}
        return cls(**{**known, **asked, **given})

    def probabilities(self, logits: Tensor, seen: Tensor | None = None) -> Tensor:
        """Next-token distribution (..., vocab), float32 or float64, of logits (..., vocab).

        seen (..., vocab) bool: the tokens that the sequence holds already, for the repetition penalty.
        """
        logits = upcast(logits)
        if self.repetition_penalty != 1:
            penalised = torch.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
            logits = torch.where(seen, penalised, logits)
        if not self.do_sample:
            return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1)
        logits = logits / self.temperature
        if self.top_k:
            kth = logits.topk(min(self.top_k, logits.shape[-1])).values[..., -1:]
            logits = logits.masked_fill(logits < kth, -math.inf)
        if self.top_p < 1:  # the fewest of the likeliest tokens that together have top_p, at least one
            p, order = logits.softmax(-1).sort(descending=True, stable=True)
            beyond = p.cumsum(-1) - p >= self.top_p
            beyond[..., 0] = False
            logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -math.inf)
        p = logits.softmax(-1)
        p = p.masked_fill(p < self.min_p * p.amax(-1, keepdim=True), 0)
        return p / p.sum(-1, keepdim=True)

    def draw(self, p: Tensor, generator: torch.Generator | None) -> Tensor:
        """A token for each distribution p (B, vocab): (B,)."""
        return torch.multinomial(p, 1, generator=generator)[:, 0] if self.do_sample else p.argmax(-1)

    def verify(self, p: Tensor, q: Tensor | None, drafts: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Speculative sampling, [Spec] Algorithm 1: the tokens that come out are distributed as p, whatever q is.

        A draft x stands with probability p(x) / q(x) if all before it stand. The token after those is drawn from
        max(p - q, 0), normalised, where the first draft fell, and from p where none did. Greedy decoding is the case of
        one-hot p and q: a draft stands if and only if it is the likeliest token.
        Args: p (B, n + 1, vocab), the model's distributions of n drafted tokens and the one behind; q (B, n, vocab),
        those that the drafts (B, n) were drawn from. Returns: how many stand (B,), and the token after them (B,).
        """
        n, rows = drafts.shape[1], torch.arange(len(p), device=p.device)
        if n == 0:
            return torch.zeros_like(rows), self.draw(p[:, 0], generator)
        ratio = (p[:, :n].gather(2, drafts[..., None]) / q.gather(2, drafts[..., None])).squeeze(-1)  # (B, n)
        stands = torch.rand(ratio.shape, dtype=p.dtype, device=p.device, generator=generator) < ratio
        accepted = stands.long().cumprod(1).sum(1)
        rest = torch.cat([(p[:, :n] - q).clamp(min=0), p[:, n:]], dim=1)[rows, accepted]  # (B, vocab)
        rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p[rows, accepted])  # p = q, but for rounding
        return accepted, self.draw(rest, generator)


class Decoder:
    """Reads a prompt and yields what follows it; MTP drafts up to n tokens for each pass of the model.

    MTP's own keys and values lie in cache.mtp, one entry a token. Drafts take one sequence.
    """

    def __init__(self, model: Qwen3NextForCausalLM, cache: Cache, rule: Sampling, n: int, generator: Generator | None):
        expect(not n or model.mtp, "num_draft_tokens needs an MTP layer, but the checkpoint has no mtp.* tensors")
        self.model, self.cache, self.rule, self.n, self.generator = model, cache, rule, n, generator
        self.drafted, self.accepted = [0] * n, [0] * n  # counts by position
        self.seen: Tensor | None = None  # (B, vocab) bool: tokens that occur, where a repetition penalty asks for them
        mtp, columns = cache.mtp, cache.columns
        in_step = mtp is not None and mtp.complete and mtp.columns == columns - cache.mtp_start
        if n and not in_step:  # new, or left behind by passes without drafts
            cache.mtp, cache.mtp_start = Cache([KVCache()], torch.zeros_like(cache.seq_len)), columns

    def prefill(self, ids: Tensor, mask: Tensor) -> ModelOutput:
        """Reads what the cache lacks of the prompt, a window at a time: logits and hidden state of its last token."""
        T, layers = ids.shape[1], self.model.model.layers
        expect(self.cache.columns < T, f"the cache holds {self.cache.columns} tokens, input_ids only {T}")
        expect(bool(mask.any(dim=1).all()), "attention_mask leaves a sequence without tokens")
        order = mask.int().argsort(dim=1, stable=True)  # padding to the left, so that all end in one column
        ids, mask = ids.gather(1, order), mask.gather(1, order)
        if self.rule.repetition_penalty != 1:  # counted, since a pad may be a token that also occurs
            counts = torch.zeros(len(ids), self.model.config.vocab_size, dtype=torch.long, device=ids.device)
            self.seen = counts.scatter_add(1, ids.long(), mask.long()) > 0
        starts = range(self.cache.columns, T, PREFILL_WINDOW)
        with progress(None, "reading", "layer", len(starts) * len(layers)) as bar, ExitStack() as hooks:

            def count(*_: Any):
                bar.update()

            for layer in layers:
                hooks.callback(layer.register_forward_hook(count).remove)
            for start in starts:
                new = slice(start, start + PREFILL_WINDOW)
                out = self.model(ids[:, new], mask[:, new], past_key_values=self.cache, logits_to_keep=1)
                self.read(out.last_hidden_state, ids[:, start + 1 : new.stop + 1], mask[:, new])
        out.last_hidden_state = out.last_hidden_state[:, -1:]
        return out

    def read(self, hidden: Tensor, following: Tensor, mask: Tensor | None = None):
        """Shows MTP hidden states (1, T, D), of the model or its own, and the tokens (1, up to T) behind each."""
        if self.n and (T := following.shape[1]):
            embeds, mask = self.model.model.embed(following), None if mask is None else mask[:, :T]
            self.hidden = self.model.look_ahead(hidden[:, :T], embeds, mask, None, self.cache.mtp)[:, -1:]

    def probabilities(self, logits: Tensor, drafts: Tensor) -> Tensor:
        """Distributions (B, n + 1, vocab) of the first draft, of those behind each of the drafts (B, n)."""
        if self.seen is None:
            return self.rule.probabilities(logits)
        seen, drafted = self.seen[:, None], F.one_hot(drafts, self.seen.shape[1]).cumsum(1) > 0
        return self.rule.probabilities(logits, torch.cat([seen, seen | drafted], dim=1))

    def draft(self, n: int) -> tuple[Tensor, Tensor]:
        """n > 0 tokens (1, n), and the distributions they were drawn from (1, n, vocab).

        A draft is read with MTP's own hidden state, for want of the model's; the entries that this leaves are taken
        back afterwards, since the model's hidden states come with the next `read`.
        """
        mtp, drafts, q = self.cache.mtp, torch.empty(1, 0, dtype=torch.long, device=self.hidden.device), []
        columns = mtp.columns
        try:
            for i in range(n):
                if i > 0:
                    self.read(self.hidden, drafts[:, -1:])
                q.append(self.probabilities(self.model.lm_head(self.hidden), drafts)[:, -1:])  # (1, 1, vocab)
                drafts = torch.cat([drafts, self.rule.draw(q[-1][:, 0], self.generator)[:, None]], dim=1)
        finally:
            mtp.rollback(mtp.columns - columns)
        return drafts, torch.cat(q, dim=1)

    def decode(self, out: ModelOutput, limit: int) -> Iterator[Tensor]:
        """At most `limit` tokens (B,), one after the other, behind the pass `out`. What the caller has not taken from
        the last pass is taken back when it closes the iterator, so that the cache then holds all tokens but the last.
        """
        cache, drafts, q = self.cache, out.logits.new_empty(len(out.logits), 0, dtype=torch.long), None
        while limit > 0:
            n, taken, tokens = drafts.shape[1], 0, drafts
            try:
                accepted, token = self.rule.verify(self.probabilities(out.logits, drafts), q, drafts, self.generator)
                stand = int(accepted[0]) if n else 0
                for i in range(n):
                    self.drafted[i] += 1
                    self.accepted[i] += i < stand
                tokens = torch.cat([drafts[:, :stand], token[:, None]], dim=1)
                for token in tokens.unbind(1):
                    taken += 1
                    yield token
            finally:  # the caller may close us in the middle, and Ctrl-C may come at any time
                cache.rollback(n + 1 - taken if n else 0)
                tokens, limit = tokens[:, :taken], limit - taken
                self.read(out.last_hidden_state, tokens)
            if limit > 0:
                self.seen = None if self.seen is None else self.seen.scatter(1, tokens, True)
                n = min(self.n, limit - 1)
                drafts, q = self.draft(n) if n else (drafts[:, :0], None)
                cache.reversible = n > 0
                out = self.model(torch.cat([token[:, None], drafts], dim=1), past_key_values=cache)


def end_tokens(model: Qwen3NextForCausalLM, eos_token_id: Any) -> tuple[list[int], int]:
    """The end tokens meant, generation_config.json's or config.json's for ..., and the token to pad with."""
    usual = model.generation_config.get("eos_token_id", getattr(model.config, "eos_token_id", None))
    eos = usual if eos_token_id is ... else eos_token_id
    eos = [] if eos is None else list(eos) if isinstance(eos, (list, tuple)) else [eos]
    pad = next(n for n in (model.generation_config.get("pad_token_id"), *eos, 0) if n is not None)
    right = all(isinstance(n, int) and abs(n) < 2**31 for n in (pad, *eos))
    expect(right, f"eos_token_id is {eos!r:.99}, pad_token_id {pad!r:.99}, expected numbers of tokens")
    return eos, pad


@torch.no_grad()
def generate(
    self: Qwen3NextForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    max_new_tokens: int | None = None,
    eos_token_id: int | list[int] | None = ...,
    stop_strings: list[str] | None = None,
    tokenizer: Any = None,
    seed: int | None = None,
    num_draft_tokens: int = 0,
    past_key_values: Cache | None = None,
    streamer: Callable[[int], Any] | None = None,
    stats: dict | None = None,
    **sampling: Any,
) -> Tensor:
    """Continues input_ids (B, T): returns (B, T + new), with padding behind a sequence's end.

    Args: attention_mask (B, T), 0 at padding; eos_token_id, one end token or several, None for none; stop_strings, to
    end a sequence too, and the tokenizer that reads them; seed, to make sampling repeatable; num_draft_tokens, how many
    tokens MTP drafts for each pass of the model; past_key_values, a cache that holds the first tokens of input_ids,
    and in the end all but the last one returned; streamer, called with each token id; stats, a dict to fill:
    prompt_tokens, new_tokens, prefill_seconds, decode_seconds, drafted, accepted, acceptance_by_position, routed_bytes
    (of decoding). Drafts and a streamer take one sequence. Sampling options: do_sample, temperature, top_k, top_p,
    min_p, repetition_penalty. What is not given is generation_config.json's, or else 512 new tokens, the likeliest each
    time; but temperature, top_k, top_p or min_p, when given, mean do_sample=True. Raises ValueError for misfits.
    """
    (B, T), defaults, started = input_ids.shape, self.generation_config, time.perf_counter()
    rule = Sampling.from_options(defaults, sampling)
    eos, pad = end_tokens(self, eos_token_id)
    limit = max_new_tokens if max_new_tokens is not None else defaults.get("max_new_tokens", 512)
    for name, n in {"max_new_tokens": limit, "num_draft_tokens": num_draft_tokens}.items():
        expect(isinstance(n, int) and n >= 0, f"{name} is {n!r}, expected 0 or more")
    expect(B == 1 or not (streamer or num_draft_tokens), f"a streamer and num_draft_tokens take one sequence, not {B}")
    expect(not stop_strings or tokenizer is not None, "stop_strings need the tokenizer")
    mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    cache = self.make_cache(B) if past_key_values is None else past_key_values
    generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
    decoder = Decoder(self, cache, rule, num_draft_tokens, generator)
    out = decoder.prefill(input_ids, mask)
    prefilled, routed = time.perf_counter(), routed_bytes(self)
    ids, done = input_ids, torch.zeros(B, dtype=torch.bool, device=input_ids.device)
    with closing(decoder.decode(out, limit)) as tokens:
        for token in tokens:
            ids = torch.cat([ids, token.masked_fill(done, pad)[:, None]], dim=1)
            if streamer is not None:
                streamer(token.item())
            done |= torch.isin(token, token.new_tensor(eos))
            if stop_strings:  # a string of n bytes lies within n tokens
                texts = tokenizer.batch_decode(ids[:, T:][:, -max(len(stop.encode()) for stop in stop_strings) :])
                done |= torch.tensor([any(stop in text for stop in stop_strings) for text in texts], device=ids.device)
            if done.all():
                break
    if stats is not None:
        stats.update(prefill_seconds=prefilled - started, decode_seconds=time.perf_counter() - prefilled)
        stats.update(prompt_tokens=int(mask.sum()), new_tokens=ids.shape[1] - T)
        stats.update(drafted=sum(decoder.drafted), accepted=sum(decoder.accepted))
        stats["acceptance_by_position"] = [a / d for a, d in zip(decoder.accepted, decoder.drafted) if d]
        stats["routed_bytes"] = routed_bytes(self) - routed
    return ids


@torch.no_grad()
def score(model: Qwen3NextForCausalLM, ids: Tensor, window: int = 512) -> float:
    """Nats that the model needs for ids[:, 1:] after ids[:, :1], summed. ids (1, T)."""
    cache, total = model.make_cache(1), 0.0
    for start in progress(range(0, ids.shape[1] - 1, window), "scoring", "window"):
        logits = model(ids[:, start : start + window], past_key_values=cache).logits[0]
        targets = ids[0, start + 1 : start + window + 1]
        total += F.cross_entropy(upcast(logits[: len(targets)]), targets, reduction="sum").item()
    return total


Qwen3NextForCausalLM.generate = generate


# ==== Command line ====================================================================================================


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    about = "Generate text with Qwen3-Next. The text goes to standard output, all else to standard error."
    parser = argparse.ArgumentParser(prog="qwen3_next.py", description=about)
    task, tiny = parser.add_mutually_exclusive_group(required=True), Path(__file__).resolve().parent / "tiny"
    task.add_argument("--prompt", metavar="TEXT", help="a user message (with --raw: a text to continue); -: from stdin")
    task.add_argument("--prompt-file", metavar="FILE", help="the same from a file")
    task.add_argument("--chat", action="store_true", help="a conversation: one message a line, Ctrl-C stops an answer")
    task.add_argument("--score", metavar="FILE", help="perplexity and bits per byte of a text")
    add = parser.add_argument
    add("--raw", action="store_true", help="continue the text as it is, without the chat template")
    add("--system", metavar="TEXT", help="a system message before the first one")
    add("--tools", metavar="FILE", help="a JSON list of tools for the chat template")
    add("--template-arg", action="append", default=[], metavar="KEY=JSON", help="such as enable_thinking=false")
    add("--model", default=tiny, metavar="DIR_OR_REPO", help="checkpoint folder or hub name (default: tiny/)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps ... (default: cuda if there is one)")
    add("--dtype", default="auto", help="bfloat16, float16, float32 or float64 (default: the checkpoint's)")
    add("--delta-rule", choices=["chunk", "recurrent"], default="chunk", help="form used for more than one token")
    add("--in-memory", action="store_true", help="copy all weights into memory first, for faster decoding on a CPU")
    add("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer (default: %(default)s)")
    add("--stop", dest="stop_strings", action="append", metavar="TEXT", help="end before this text; may be repeated")
    add("--greedy", dest="do_sample", action="store_const", const=False, help="take the likeliest token each time")
    add("--temperature", type=float, metavar="X", help="0: the likeliest token each time")
    add("--top-k", type=int, metavar="N", help="choose among the N likeliest tokens")
    add("--top-p", type=float, metavar="X", help="choose among the likeliest tokens that together have probability X")
    add("--min-p", type=float, metavar="X", help="leave out tokens below X times the likeliest one's probability")
    add("--repetition-penalty", type=float, metavar="X", help="above 1: make tokens that occurred less likely")
    add("--seed", type=int, metavar="N", help="make sampling repeatable")
    drafts = "tokens that MTP drafts for each pass of the model"
    add("--draft-tokens", dest="num_draft_tokens", type=int, default=0, metavar="N", help=drafts)
    add("--trace", metavar="FILE", help="file for the prompt's intermediate values, safetensors (verify/README.md)")
    add("--trace-keys", nargs="+", default=["*"], metavar="GLOB", help="of these only, such as 'model.layers.3.*'")
    add("--stats", action="store_true", help="print tokens, tokens per second and peak memory")
    return parser.parse_args(arguments)


def warn_of_slow_disk(model: Qwen3NextForCausalLM):
    """Says on stderr what to expect of weights that are mapped from disk and exceed the memory that is free (Linux)."""
    size, free = sum(p.nbytes for p in model.parameters() if p.is_cpu), free_memory()
    if size > free:
        routed = sum(m.k * m.experts.bytes_each for m in model.model.modules() if isinstance(m, SparseMoeBlock))
        print(f"{size / 1e9:.1f} GB of weights, {free / 1e9:.1f} GB of memory free:", end=" ", file=sys.stderr)
        print(f"each token needs {routed / 1e9:.2f} GB of experts, from disk where not in memory", file=sys.stderr)


class Printer:
    """Prints an answer as its tokens arrive: whole characters only, and nothing from a stop string on."""

    def __init__(self, tokenizer: Qwen3NextTokenizer, stops: list[str] | None):
        self.backend, self.stream = tokenizer.backend, tokenizers.decoders.DecodeStream(skip_special_tokens=True)
        self.stops, self.held, self.ids, self.stopped = stops or [], "", [], False

    def __call__(self, token: int):
        self.ids.append(token)
        self.held += self.stream.step(self.backend, token) or ""  # None while a character is incomplete
        ends = [self.held.index(stop) for stop in self.stops if stop in self.held]
        starts = [n for stop in self.stops for n in range(len(stop)) if self.held.endswith(stop[:n])]
        cut = min(ends) if ends else len(self.held) - max(starts, default=0)  # what may become a stop string waits
        print("" if self.stopped else self.held[:cut], end="", flush=True)
        self.held, self.stopped = self.held[cut:], self.stopped or bool(ends)

    def finish(self):
        print("" if self.stopped else self.held, flush=True)


def report(stats: dict, device: torch.device):
    """Prints an answer's statistics, and the peak memory of the process and on the GPU if one is used."""
    new, count, memory = stats["new_tokens"], stats["prompt_tokens"], "not known on this system"
    lines = [f"prompt: {count} tokens, {count / stats['prefill_seconds']:,.1f} tokens/s"]
    lines += [f"answer: {new} tokens, {max(new - 1, 0) / stats['decode_seconds']:,.1f} tokens/s"]
    lines += [f"routed experts: {stats['routed_bytes'] / max(new - 1, 1) / 1e6:,.1f} MB read per token"]
    if stats["drafted"]:
        shares = ", ".join(f"{share:.1%}" for share in stats["acceptance_by_position"])
        lines += [f"drafts: {stats['drafted']}, {stats['accepted']} accepted; by position {shares}"]
    if sys.platform != "win32":
        import resource  # Unix only

        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB on Linux
        memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:,.0f} MiB"
    if device.type == "cuda":
        memory += f", {torch.cuda.max_memory_allocated(device) / 2**20:,.0f} MiB on {device}"
    print(*lines, f"peak memory: {memory}", sep="\n", file=sys.stderr)


def ask() -> Iterator[str]:
    """The messages that are typed, a line each."""
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return
        if line.strip():
            yield line.strip()


def converse(model: Qwen3NextForCausalLM, tokenizer: Any, render: Callable, texts: Iterable[str], args: Any):
    """Answers each text. The cache goes on from turn to turn while the template leaves earlier turns as they were."""
    names = (*Sampling.__annotations__, "seed", "max_new_tokens", "stop_strings", "num_draft_tokens")
    options = {name: getattr(args, name) for name in names}
    messages, ids, cache = [], [], model.make_cache(1)
    for text in texts:
        messages.append({"role": "user", "content": text})
        whole, old = render(messages), tokenizer.decode(ids)
        if not whole.startswith(old):
            old, ids, cache = "", [], model.make_cache(1)
        ids = ids + tokenizer.encode(whole[len(old) :])
        expect(len(ids) > 0, "the prompt is empty: nothing to continue")
        prompt, show, stats = torch.tensor([ids], device=model.device), Printer(tokenizer, args.stop_strings), {}
        try:
            model.generate(prompt, past_key_values=cache, tokenizer=tokenizer, streamer=show, stats=stats, **options)
        except KeyboardInterrupt:  # perhaps in the middle of a pass: the cache is no longer of use
            if not args.chat:
                raise
            cache = model.make_cache(1)
        show.finish()
        if args.stats and stats:
            report(stats, model.device)
        ids = ids + show.ids
        messages.append({"role": "assistant", "content": tokenizer.decode(show.ids, skip_special_tokens=True)})


def run(args: argparse.Namespace):
    """Loads the model and does what was asked for."""
    tokenizer = Qwen3NextTokenizer.from_pretrained(args.model)
    variables = {"tools": read_json(args.tools, object) if args.tools else None}
    for pair in args.template_arg:
        key, _, value = pair.partition("=")
        variables[key] = read_json(f"--template-arg {key}", object, value)

    def render(messages: list[dict]) -> str:
        if not args.chat and (args.raw or not tokenizer.chat_template):
            return messages[-1]["content"]
        system = [{"role": "system", "content": args.system}] if args.system else []
        return tokenizer.apply_chat_template(system + messages, **variables)

    if args.trace:
        expect(not args.chat and not args.score, "--trace goes with a prompt, not with --chat or --score")
        beside = Path(__file__).resolve().parent / "verify" / "trace.py"
        expect(beside.is_file(), f"--trace needs {beside}, which comes with this file's repository")
    file = args.prompt_file or args.score or ("-" if args.prompt == "-" else None)
    text = read_text(file) if file else args.prompt
    options = args.dtype, args.device, args.delta_rule, args.in_memory
    model = Qwen3NextForCausalLM.from_pretrained(args.model, *options)
    rows = model.config.vocab_size
    expect(len(tokenizer) <= rows, f"{args.model}: tokenizer.json has {len(tokenizer)} tokens, the embedding {rows}")
    if not args.in_memory:
        warn_of_slow_disk(model)
    if args.score:
        ids, size = tokenizer.encode(text), len(text.encode())
        expect(len(ids) > 1, f"{args.score}: {len(ids)} tokens, expected at least 2")
        nats = score(model, torch.tensor([ids], device=model.device))
        bits = nats / math.log(2) / (size - len(tokenizer.decode(ids[:1]).encode()))
        print(f"{len(ids)} tokens, {size} bytes: perplexity {math.exp(nats / (len(ids) - 1)):.4f}", end=", ")
        print(f"{bits:.4f} bits per byte (first token given)")
        return
    if args.trace:
        from verify.trace import trace_prompt

        ids = tokenizer.encode(render([{"role": "user", "content": text}]))
        trace_prompt(args.trace, model, ids, args.trace_keys, args.model)
    converse(model, tokenizer, render, ask() if args.chat else [text], args)


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 after one line on standard error; argparse exits with 2 for wrong usage."""
    args = parse_arguments(arguments)
    try:
        run(args)
        return 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"qwen3_next.py: {one_line(message)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
