"""Qwen3-Next's forward pass in NumPy: float64, one sequence, one token at a time.

It settles what a faster implementation should compute: verify/ compares others with it, value by value. A layer that
mixes tokens is a loop over tokens with an explicit state: keys and values for attention, a window of inputs for the
convolution, a matrix per head for the delta rule. No batch, padding, chunked form or generation. Weights are read layer
by layer, an expert's only when a token is routed to it, and widened to float64.

    python reference_recurrent.py --model DIR --tokens 5,17,3 --top 5

Glossary (name here, symbol, source)
    T, H, D           tokens; heads; width of an attention head. Arrays are (T, H, width)
    K, V, r           key width, value width, and value heads per key head, of the delta rule
    S                 its state, (K, V) per head: the transpose of S_t in Gated DeltaNet, arXiv 2412.06464, Eq. 10
    alpha = e^g       decay, alpha_t in Eq. 10; g = -exp(A_log) softplus(a + dt_bias) as in Mamba-2, arXiv 2405.21060
    beta, z           write strength, beta_t in Eq. 10; output gate before its SiLU, Section 3.4
    gate              output gate of attention, before its sigmoid: Gated Attention, arXiv 2505.06708, Section 2.2
    inv_freq          theta_i = theta^(-2i/d): RoPE, arXiv 2104.09864, Section 3.2; d is the rotated width, not D
    ramp, factor      1 - gamma, and s: YaRN, arXiv 2309.00071, Section 3.2; attention_factor is sqrt(1/t), Section 3.4
    E, top_k          experts, and how many a token takes: arXiv 1701.06538; the shared expert: DeepSeekMoE, 2401.06066
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from pathlib import Path

import numpy as np

Array = np.ndarray
Values = dict[str, Array]
Ids = list[int] | Array
Header = dict[str, tuple[str, tuple[int, ...], int]]  # {name: (dtype, shape, offset of its first byte in the file)}
LAYER_TYPES = ("linear_attention", "full_attention")
# What a value of config.json has to be: below these, and above 0, or 0 as well
COUNTS = {"num_hidden_layers": 10**4, "original_max_position_embeddings": 10**9}  # other integers: 10**6, too
AT_LEAST_0 = ("num_experts", "mscale", "mscale_all_dim")
FLAGS = ("tie_word_embeddings", "norm_topk_prob", "truncate")
LISTS = ("layer_types", "mlp_only_layers")
NUMBERS = ("rms_norm_eps", "rope_theta", "partial_rotary_factor", "factor", "beta_fast", "beta_slow")
NUMBERS += ("attention_factor", "mscale", "mscale_all_dim")
STORED = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}

# ---- Config ---------------------------------------------------------------------------------------------------------


class Config:
    """The fields of config.json that decide the forward pass, from either dialect; the rest is ignored.

    The two dialects have RoPE's fields and full_attention_interval at the top level, or rope_parameters and
    layer_types. Raises ValueError, naming the key, for what is missing, mistyped, contradictory or not supported.
    """

    def __init__(self, fields: dict):
        nested = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
        if not isinstance(nested, dict):
            raise ValueError(f"config.json: rope_parameters or rope_scaling is {nested!r:.99}, expected an object")
        fields = {**fields, **nested}
        rope_type = fields.get("rope_type", fields.get("type", "default"))

        def get(key: str, default: object = None) -> object:
            value = default if fields.get(key) is None else fields[key]
            if value is None:
                raise ValueError(f"config.json: {key} is missing")
            check_value(key, value)
            return value

        supported = {"model_type": ["qwen3_next"], "hidden_act": ["silu"], "rope_type": ["default", "yarn"]}
        for key, found in {**fields, "rope_type": rope_type}.items():
            if key in supported and found not in supported[key]:
                raise ValueError(f"config.json: {key} is {found!r:.99}, expected {' or '.join(supported[key])}")
        self.vocab_size = get("vocab_size")
        self.rms_norm_eps = get("rms_norm_eps", 1e-6)
        self.tie_word_embeddings = get("tie_word_embeddings", False)
        self.num_heads, self.num_kv_heads = get("num_attention_heads"), get("num_key_value_heads")
        self.head_dim = get("head_dim")

        layers = range(get("num_hidden_layers"))
        interval = get("full_attention_interval", 4)
        types = get("layer_types", [LAYER_TYPES[(i + 1) % interval == 0] for i in layers])
        if len(types) != len(layers) or not all(name in LAYER_TYPES for name in types):
            expected = f"expected {len(layers)} names out of {LAYER_TYPES}"
            raise ValueError(f"config.json: layer_types is {types!r:.99}, {expected}")
        self.is_full_attention = [name == "full_attention" for name in types]
        if "linear_attention" in types:
            self.key_heads, self.value_heads = get("linear_num_key_heads"), get("linear_num_value_heads")
            self.K, self.V = get("linear_key_head_dim"), get("linear_value_head_dim")
        self.num_experts = get("num_experts")
        step, dense = get("decoder_sparse_step", 1), get("mlp_only_layers", [])
        self.is_moe = [self.num_experts > 0 and i not in dense and (i + 1) % step == 0 for i in layers]
        if self.num_experts > 0:
            self.top_k = get("num_experts_per_tok")
            self.norm_topk_prob = get("norm_topk_prob", True)

        yarn = None
        if rope_type == "yarn":
            usual = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "factor": None}
            yarn = {key: get(key, default) for key, default in usual.items()}
            both = get("mscale", 0), get("mscale_all_dim", 0)
            above, below = (1 + 0.1 * math.log(yarn["factor"]) * scale for scale in (both if all(both) else (1, 0)))
            yarn["attention_factor"] = get("attention_factor", above / below)
            yarn["original"] = get("original_max_position_embeddings", fields.get("max_position_embeddings"))
        groups = [("num_attention_heads", self.num_heads, self.num_kv_heads)]
        if "linear_attention" in types:
            groups += [("linear_num_value_heads", self.value_heads, self.key_heads)]
        for key, heads, shared in groups:
            if heads % shared:
                raise ValueError(f"config.json: {key} is {heads}, expected a multiple of {shared}")
        if self.num_experts > 0 and self.top_k > self.num_experts:
            raise ValueError(f"config.json: num_experts_per_tok is {self.top_k}, num_experts only {self.num_experts}")
        width = int(self.head_dim * get("partial_rotary_factor", 0.25))
        if width not in range(2, self.head_dim + 1, 2):
            raise ValueError(f"config.json: partial_rotary_factor turns {width} of {self.head_dim} dimensions")
        self.inv_freq, self.rope_scale = rope_frequencies(width, get("rope_theta"), yarn)


def check_value(key: str, value: object):
    """Raises ValueError, naming the key, for a value of another kind, or one that would exhaust the memory."""
    if key in FLAGS:
        right, expected = isinstance(value, bool), "true or false"
    elif key in LISTS:
        right, expected = isinstance(value, list), "a list"
    elif isinstance(value, bool):
        right, expected = False, "a number"
    else:
        low = 0 if key in AT_LEAST_0 else 1e-30 if key in NUMBERS else 1
        high = 1e18 if key in NUMBERS else COUNTS.get(key, 10**6)
        right = isinstance(value, (int, float) if key in NUMBERS else int) and low <= value < high
        expected = f"{'a number' if key in NUMBERS else 'an integer'} from {low:g} to {high:g}"
    if not right:
        raise ValueError(f"config.json: {key} is {value!r:.99}, expected {expected}")


# ---- Checkpoint -----------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict:
    """The JSON object in a file. Raises FileNotFoundError, or ValueError naming the file."""
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"found {type(found).__name__}")
        return found
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON object: {error}") from None


def read_header(path: Path) -> Header:
    """What a safetensors file holds: 8 bytes with the length of the header, the header in JSON, the tensors' bytes."""
    size, tensors = path.stat().st_size, {}
    try:
        with path.open("rb") as file:
            data = 8 + int.from_bytes(file.read(8), "little")  # where the tensors' bytes begin
            header = json.loads(file.read(min(data, size) - 8))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            if not all(type(n) is int and 0 <= n < 2**48 for n in (*shape, start, stop)):
                raise ValueError(f"{name!r} has a shape or offsets that are no sizes: {entry!r:.99}")
            if dtype in STORED and math.prod(shape) * STORED[dtype].itemsize != stop - start:
                raise ValueError(f"{name!r} has shape, type and offsets that do not fit together: {entry!r}")
            if start < 0 or data + stop > size:
                raise ValueError(f"{name!r} is not within the file: {entry!r}")
            tensors[name] = (dtype, shape, data + start)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None
    return tensors


def is_file_name(name: object) -> bool:
    """Whether this is the name of a file in the same folder."""
    return isinstance(name, str) and "\0" not in name and Path(name).name == name != ""


def find_tensors(folder: Path) -> dict[str, Path]:
    """Which file each tensor is in: model.safetensors, or the shard that model.safetensors.index.json names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if index.is_file() and not single.is_file():
        shard_of = read_json(index).get("weight_map")
        if not isinstance(shard_of, dict) or not all(map(is_file_name, shard_of.values())):
            raise ValueError(f"{index}: no weight_map from tensors to files of its folder")
        return {name: folder / shard for name, shard in shard_of.items()}
    return dict.fromkeys(read_header(single), single)


# ---- Components -----------------------------------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), written so that no exponential overflows."""
    return np.exp(-np.logaddexp(0, -x))


def silu(x: Array) -> Array:
    """x sigmoid(x)."""
    return x * sigmoid(x)


def softmax(x: Array) -> Array:
    """Softmax over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rms_norm(x: Array, w: Array, eps: float) -> Array:
    """Zero-centred RMSNorm over the last axis (arXiv 1910.07467), scaled by 1 + w. x (..., D), w (D,)."""
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * (1 + w)


def gated_rms_norm(x: Array, z: Array, w: Array, eps: float) -> Array:
    """The norm after the delta rule: scaled by w itself, then multiplied by SiLU(z). x, z (..., V), w (V,)."""
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * w * silu(z)


def l2_norm(x: Array) -> Array:
    """x (..., K) with length 1; the 1e-6 is fixed, it is not rms_norm_eps."""
    return x / np.sqrt(np.sum(x**2, -1, keepdims=True) + 1e-6)


def rope_frequencies(width: int, theta: float, yarn: dict | None = None) -> tuple[Array, float]:
    """Angle per position of each of the width / 2 turned pairs, and the factor on cos and sin.

    yarn: None, or factor, original (length), beta_fast, beta_slow, attention_factor and truncate. YaRN (Section 3.2)
    keeps what turns more than beta_fast times within the original length and divides what turns less than
    beta_slow times by factor. Its ramp is linear in the number of turns; the published code's, used here, in the index.
    """
    i = np.arange(width // 2)
    inv_freq = theta ** (-2 * i / width)  # (width / 2,)
    if yarn is None:
        return inv_freq, 1.0

    def index_that_turns(times: float) -> float:  # solves original theta^(-2i / width) = 2 pi times
        turns = yarn["original"] / (2 * math.pi * times)
        return width * math.log(turns) / (2 * math.log(theta))

    low, high = index_that_turns(yarn["beta_fast"]), index_that_turns(yarn["beta_slow"])
    if yarn["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = np.clip((i - low) / (high - low if high != low else 0.001), 0, 1)
    return inv_freq * (1 - ramp) + inv_freq / yarn["factor"] * ramp, yarn["attention_factor"]


def rope(x: Array, position: int, inv_freq: Array, scale: float = 1.0) -> Array:
    """Turn the pairs (i, i + n) of the first 2n entries by position * inv_freq[i]; the rest stays. x (H, D)."""
    n = len(inv_freq)
    cos, sin = scale * np.cos(position * inv_freq), scale * np.sin(position * inv_freq)  # (n,)
    first, second, rest = x[:, :n], x[:, n : 2 * n], x[:, 2 * n :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=1)


def attend(q: Array, keys: Array, values: Array) -> Array:
    """One token's attention to the t tokens so far. q (H, D); keys, values (t, KV heads, D) -> (H, D)."""
    queries_per_kv = len(q) // keys.shape[1]
    out = np.empty_like(q)
    for h in range(len(q)):
        kv = h // queries_per_kv
        weights = softmax(keys[:, kv] @ q[h] * q.shape[1] ** -0.5)  # (t,)
        out[h] = weights @ values[:, kv]
    return out


def split_by_key_head(x: Array, heads: int, widths: list[int]) -> list[Array]:
    """Cut rows laid out as heads x [part | part | ...]. x (T, heads * sum(widths)) -> a (T, heads, width) per part."""
    return np.split(x.reshape(len(x), heads, sum(widths)), np.cumsum(widths)[:-1], axis=2)


def causal_conv(x: Array, weight: Array, window: Array | None = None) -> tuple[Array, Array]:
    """Depthwise causal convolution, then SiLU. x (T, C), weight (C, W), its last tap on the current token.

    window (W - 1, C): the inputs (before SiLU) that precede x, zeros if None. Returns the output and the next window.
    """
    channels, taps = weight.shape
    window = np.zeros((taps - 1, channels)) if window is None else window
    out = np.empty_like(x)
    for t in range(len(x)):
        window = np.concatenate([window, x[t : t + 1]])  # (W, C), oldest first
        out[t] = silu(np.sum(window * weight.T, axis=0))
        window = window[1:]
    return out, window


def gated_delta_rule(
    q: Array, k: Array, v: Array, g: Array, beta: Array, state: Array | None = None
) -> tuple[Array, Array]:
    """The gated delta rule (arXiv 2412.06464, Eq. 10), a token at a time, all heads side by side.

        S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,  out_t = S_t^T q_t   (S is the paper's S^T)

    q, k (T, H, K), normalised and scaled; v (T, H, V); g = log alpha and beta (T, H); state (H, K, V), zeros if None.
    Returns out (T, H, V) and the last state, float64; changes no argument. ValueError when shapes disagree.
    """
    q, k, v, g, beta = (np.asarray(x, np.float64) for x in (q, k, v, g, beta))
    T, H, K, V = *k.shape, v.shape[-1]
    S = np.zeros((H, K, V)) if state is None else np.array(state, np.float64)
    found = [x.shape for x in (q, v, g, beta, S)]
    if found != [(T, H, K), (T, H, V), (T, H), (T, H), (H, K, V)]:
        raise ValueError(f"shapes of q, v, g, beta, state are {found}, which do not fit k of shape {k.shape}")
    out = np.empty((T, H, V))
    for t in range(T):
        S = np.exp(g[t])[:, None, None] * S  # decay, before the error is taken
        recall = np.einsum("hkv,hk->hv", S, k[t])  # what the state holds for this key
        delta = beta[t][:, None] * (v[t] - recall)  # (H, V)
        S = S + np.einsum("hk,hv->hkv", k[t], delta)  # write
        out[t] = np.einsum("hkv,hk->hv", S, q[t])  # read the state just written
    return out, S


def router(p: Array, top_k: int) -> Array:
    """The likeliest experts of each token. p (T, E), softmax over all E experts before the choice -> (T, top_k)."""
    return np.argsort(-p, axis=1, kind="stable")[:, :top_k]


def expert_weights(p: Array, chosen: Array, normalise: bool) -> Array:
    """The weights (T, top_k) of the chosen experts; normalise (norm_topk_prob) makes them sum to 1."""
    weight = np.take_along_axis(p, chosen, axis=1)
    return weight / weight.sum(1, keepdims=True) if normalise else weight


def swiglu(x: Array, gate: Array, up: Array, down: Array) -> Array:
    """One expert or dense MLP (arXiv 2002.05202). x (T, hidden); gate, up (inner, hidden); down (hidden, inner)."""
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


# ---- The model ------------------------------------------------------------------------------------------------------


class Reference:
    """Qwen3-Next over one sequence. Holds no weights: each method reads what it needs, by name, and drops it."""

    def __init__(self, config: Config, tensors: dict[str, Path]):
        self.config, self.tensors = config, tensors
        self.header = functools.cache(read_header)  # of a file, once a tensor of it is needed
        self.found, self.forced, self.ends = {}, {}, []  # see `trace`

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Reference:
        """Read config.json and the tensors' names; the values stay on disk until they are needed.

        Raises FileNotFoundError for a missing file, ValueError for one that is wrong, KeyError for a missing tensor.
        """
        return cls(Config(read_json(Path(path) / "config.json")), find_tensors(Path(path)))

    def read(self, name: str, index: object = ...) -> Array:
        """A tensor, or the part that `index` selects (only that part is read from the file), as float64."""
        path = self.tensors.get(name)
        if path is None or name not in self.header(path):
            raise KeyError(f"{path or 'the checkpoint'} has no tensor {name}")
        dtype, shape, offset = self.header(path)[name]
        if dtype not in STORED:
            raise ValueError(f"{path}: {name} has type {dtype}, expected one of {', '.join(STORED)}")
        found = np.array(np.memmap(path, STORED[dtype], "r", offset, shape)[index])
        if dtype == "BF16":  # the upper half of a float32
            found = (found.astype(np.uint32) << 16).view(np.float32)
        return found.astype(np.float64)

    def logits(self, token_ids: Ids) -> Array:
        """Next-token logits after each token: (T,) ids -> (T, vocab) float64. ValueError for bad ids."""
        return self.head("lm_head.out", self.hidden(token_ids))

    def mtp_logits(self, token_ids: Ids) -> Array:
        """Multi-token prediction (arXiv 2412.19437, Section 2.2): (T,) ids -> (T - 1, vocab) float64.

        Row i predicts token i + 2, from the hidden state of token i and the embedding of token i + 1. ValueError for
        fewer than 2 tokens, KeyError where the checkpoint has no mtp.* tensors.
        """
        if np.size(token_ids) < 2:
            raise ValueError(f"multi-token prediction needs at least 2 tokens, found {token_ids!r}")
        return self.head("mtp.logits", self.mtp_hidden(self.hidden(token_ids)[:-1], token_ids[1:]))

    def trace(
        self, ids: Ids, ends: list[int] = (), forced: Values | None = None, layers: range | None = None, drafts: int = 0
    ) -> Values:
        """Every intermediate value of a pass over (T,) ids, under the keys that verify.trace records.

        ends: after how many tokens states are recorded, stacked (default: after all). forced: values to go on with in
        place of those computed, by key. layers: only these; unless they begin with layer 0, forced has the output of
        the one before. drafts: how many of the last tokens are MTP's own, which then sees its own hidden states.
        """
        run = Reference(self.config, self.tensors)
        run.forced, run.ends = forced or {}, [*ends] or [len(ids)]
        h = run.hidden(ids, layers)
        if layers is None or len(layers) == len(self.config.is_moe):
            run.head("lm_head.out", h)
            if "mtp.fc.weight" in self.tensors and len(ids) > 1:
                n = len(ids) - 1 - drafts  # how many of the model's hidden states MTP gets
                m = run.mtp_hidden(h[:n], ids[1 : n + 1])
                for i in range(drafts):
                    m = run.mtp_hidden(np.concatenate([h[:n], m[n - 1 :]]), ids[1 : n + 2 + i])
                run.head("mtp.logits", m)
        return run.found

    def tap(self, key: str, x: Array) -> Array:
        """Records a value; what is computed from it goes on with it, or with the one that is forced."""
        self.found[key] = x
        return self.forced.get(key, x)

    def mtp_hidden(self, h: Array, next_ids: Ids) -> Array:
        """MTP's hidden states (T, hidden), from the model's (T, hidden) and the (T,) tokens after each."""
        e = self.norm("mtp.pre_fc_norm_embedding", self.read("model.embed_tokens.weight", np.asarray(next_ids)))
        h = self.norm("mtp.pre_fc_norm_hidden", h)
        x = self.linear("mtp.fc", np.concatenate([e, h], axis=1))
        x = self.layer("mtp.layers.0.", x, full_attention=True, moe=self.config.num_experts > 0)
        return self.norm("mtp.norm", x)

    def head(self, key: str, x: Array) -> Array:
        """The output projection. x (T, hidden) -> (T, vocab)."""
        untied = "lm_head.weight" in self.tensors or not self.config.tie_word_embeddings
        name = "lm_head.weight" if untied else "model.embed_tokens.weight"
        parts = [slice(i, i + 4096) for i in range(0, self.config.vocab_size, 4096)]  # the whole takes much memory
        return self.tap(key, np.concatenate([x @ self.read(name, rows).T for rows in parts], axis=1))

    def hidden(self, token_ids: Ids, layers: range | None = None) -> Array:
        """The hidden states after the final norm: (T,) ids -> (T, hidden); or those after the last of `layers`."""
        ids, c = np.asarray(token_ids), self.config
        layers = range(len(c.is_moe)) if layers is None else layers
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise ValueError(f"token ids should be a non-empty list of integers, found {token_ids!r}")
        if ids.min() < 0 or ids.max() >= c.vocab_size:
            raise ValueError(f"token ids span {ids.min()} to {ids.max()}, vocab_size is {c.vocab_size}")
        if layers.start == 0:
            x = self.tap("model.embed_tokens.out", self.read("model.embed_tokens.weight", ids))  # (T, hidden)
        else:
            x = self.forced[f"model.layers.{layers.start - 1}.out"]
        for i in layers:
            x = self.layer(f"model.layers.{i}.", x, c.is_full_attention[i], c.is_moe[i])
        return self.norm("model.norm", x) if layers.stop == len(c.is_moe) else x

    def layer(self, prefix: str, x: Array, full_attention: bool, moe: bool) -> Array:
        """One layer: the token mixer, then the MLP, each after a norm and added to its input. x (T, hidden)."""
        y = self.norm(prefix + "input_layernorm", x)
        if full_attention:
            x = x + self.gated_attention(prefix + "self_attn.", y)
        else:
            x = x + self.gated_delta_net(prefix + "linear_attn.", y)
        y = self.norm(prefix + "post_attention_layernorm", x)
        x = x + (self.moe(prefix + "mlp.", y) if moe else self.mlp(prefix + "mlp.", y))
        return self.tap(prefix + "out", x)

    def linear(self, name: str, x: Array) -> Array:
        """x W^T, plus the bias where the checkpoint has one. x (T, in) -> (T, out)."""
        y = x @ self.read(name + ".weight").T
        if name + ".bias" in self.tensors:
            y = y + self.read(name + ".bias")
        return self.tap(name + ".out", y)

    def norm(self, name: str, x: Array) -> Array:
        """`rms_norm` with the weight of this name. x (..., D)."""
        return self.tap(name + ".out", rms_norm(x, self.read(name + ".weight"), self.config.rms_norm_eps))

    def gated_attention(self, prefix: str, x: Array) -> Array:
        """Softmax attention with a sigmoid gate on its output (arXiv 2505.06708). x (T, hidden) -> (T, hidden)."""
        c, T, D = self.config, len(x), self.config.head_dim
        query_and_gate = self.linear(prefix + "q_proj", x).reshape(T, c.num_heads, 2 * D)
        k = self.linear(prefix + "k_proj", x).reshape(T, c.num_kv_heads, D)
        v = self.linear(prefix + "v_proj", x).reshape(T, c.num_kv_heads, D)
        q = self.tap(prefix + "q", query_and_gate[..., :D])  # (T, H, D): split inside each head
        gate = self.tap(prefix + "gate", query_and_gate[..., D:])
        q, k = self.norm(prefix + "q_norm", q), self.norm(prefix + "k_norm", k)
        q = self.tap(prefix + "q_rope", np.stack([rope(q[t], t, c.inv_freq, c.rope_scale) for t in range(T)]))
        k = self.tap(prefix + "k_rope", np.stack([rope(k[t], t, c.inv_freq, c.rope_scale) for t in range(T)]))
        out = np.stack([attend(q[t], k[: t + 1], v[: t + 1]) for t in range(T)])  # no token sees the ones after it
        out = self.tap(prefix + "attn_out", out)
        return self.linear(prefix + "o_proj", (out * sigmoid(gate)).reshape(T, -1))

    def gated_delta_net(self, prefix: str, x: Array) -> Array:
        """Gated DeltaNet (arXiv 2412.06464, Section 3.4). x (T, hidden) -> (T, hidden)."""
        c, T, K, V = self.config, len(x), self.config.K, self.config.V
        key_heads, heads = c.key_heads, c.value_heads
        r = heads // key_heads
        ends = self.ends or [T]
        qkvz, ba = self.linear(prefix + "in_proj_qkvz", x), self.linear(prefix + "in_proj_ba", x)
        q, k, v, z = split_by_key_head(qkvz, key_heads, [K, K, r * V, r * V])
        q = self.tap(prefix + "q", q)  # (T, key heads, K)
        k = self.tap(prefix + "k", k)
        v = self.tap(prefix + "v", v.reshape(T, heads, V))
        z = self.tap(prefix + "z", z.reshape(T, heads, V))
        b, a = split_by_key_head(ba, key_heads, [r, r])
        b = self.tap(prefix + "b", b.reshape(T, heads))
        a = self.tap(prefix + "a", a.reshape(T, heads))

        qkv = np.concatenate([part.reshape(T, -1) for part in (q, k, v)], axis=1)  # [all q | all k | all v]
        weight = self.read(prefix + "conv1d.weight")[:, 0]  # (C, W)
        history = np.pad(qkv, [(weight.shape[1] - 1, 0), (0, 0)])  # (W - 1 + T, C)
        qkv = self.tap(prefix + "conv_out", causal_conv(qkv, weight)[0])
        q, k, v = np.split(qkv, [key_heads * K, 2 * key_heads * K], axis=1)
        v = self.tap(prefix + "v_conv", v.reshape(T, heads, V))
        q = l2_norm(q.reshape(T, key_heads, K)) * K**-0.5
        k = l2_norm(k.reshape(T, key_heads, K))
        q = self.tap(prefix + "q_l2norm", q.repeat(r, axis=1))  # (T, H, K): value heads g r .. g r + r - 1 share
        k = self.tap(prefix + "k_l2norm", k.repeat(r, axis=1))  # key head g

        A = np.exp(self.read(prefix + "A_log"))  # (H,)
        g = self.tap(prefix + "g", -A * np.logaddexp(0, a + self.read(prefix + "dt_bias")))  # logaddexp(0, x): softplus
        beta = self.tap(prefix + "beta", sigmoid(b))
        out, state, states = np.empty((T, heads, V)), None, []
        for start, end in zip([0, *ends], ends):
            rows = slice(start, end)
            out[rows], state = gated_delta_rule(q[rows], k[rows], v[rows], g[rows], beta[rows], state)
            states.append(state)
            state = self.forced.get(prefix + "state", states)[len(states) - 1]
        out = self.tap(prefix + "delta_out", out)  # (T, H, V)
        self.tap(prefix + "state", np.stack(states))  # (ends, H, K, V)
        self.tap(prefix + "conv_state", np.stack([history[end:][: weight.shape[1] - 1].T for end in ends]))
        out = gated_rms_norm(out, z, self.read(prefix + "norm.weight"), c.rms_norm_eps)
        return self.linear(prefix + "out_proj", self.tap(prefix + "norm.out", out).reshape(T, -1))

    def mlp(self, prefix: str, x: Array) -> Array:
        """A dense SwiGLU, or the shared expert. x (T, hidden) -> (T, hidden)."""
        gate, up = self.linear(prefix + "gate_proj", x), self.linear(prefix + "up_proj", x)
        return self.linear(prefix + "down_proj", silu(gate) * up)

    def expert(self, prefix: str, e: int, x: Array) -> Array:
        """Expert e, stored alone or as slice e of the fused tensors. x (T, hidden) -> (T, hidden)."""
        if prefix + "gate_up_proj" not in self.tensors:
            return swiglu(x, *(self.read(f"{prefix}{e}.{part}_proj.weight") for part in ("gate", "up", "down")))
        gate, up = np.split(self.read(prefix + "gate_up_proj", e), 2)  # (inner, hidden), gate first
        return swiglu(x, gate, up, self.read(prefix + "down_proj", e))

    def moe(self, prefix: str, x: Array) -> Array:
        """The chosen experts by their weights, and the shared expert by a sigmoid of its own. x (T, hidden)."""
        c = self.config
        p = self.tap(prefix + "router_probs", softmax(self.linear(prefix + "gate", x)))  # (T, E)
        ranked = np.pad(np.sort(p, axis=1)[:, ::-1], [(0, 0), (0, 1)])  # and 0 after the last
        self.tap(prefix + "margin", ranked[:, c.top_k - 1] - ranked[:, c.top_k])
        chosen = self.tap(prefix + "topk_ids", router(p, c.top_k))
        weight = self.tap(prefix + "topk_weights", expert_weights(p, chosen, c.norm_topk_prob))
        out = np.zeros_like(x)
        for e in np.unique(chosen):
            tokens, slot = np.nonzero(chosen == e)
            out[tokens] += weight[tokens, slot, None] * self.expert(prefix + "experts.", e, x[tokens])
        out = self.tap(prefix + "experts.out", out)
        out = out + sigmoid(self.linear(prefix + "shared_expert_gate", x)) * self.mlp(prefix + "shared_expert.", x)
        return self.tap(prefix + "out", out)


# ---- Command line ---------------------------------------------------------------------------------------------------


def token_list(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> int:
    """Print the most likely next tokens. Returns 0, or 1 after one line on stderr; argparse exits 2 for bad usage."""
    parser = argparse.ArgumentParser(description="The most likely next tokens: id and log-probability, one per line.")
    parser.add_argument("--model", required=True, help="folder with config.json and *.safetensors")
    parser.add_argument("--tokens", required=True, type=token_list, help="token ids, such as 5,17,3")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="how many to print (default 5)")
    args = parser.parse_args()
    if args.top < 1:
        parser.error(f"--top should be at least 1, found {args.top}")
    try:
        last = Reference.from_pretrained(args.model).logits(args.tokens)[-1]  # (vocab,)
    except (OSError, ValueError, KeyError, MemoryError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        print("error:", " ".join(str(message).split()), file=sys.stderr)
        return 1
    log_p = last - np.logaddexp.reduce(last)
    for token in np.argsort(-log_p, kind="stable")[: args.top]:
        print(token, f"{log_p[token]:.6f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
