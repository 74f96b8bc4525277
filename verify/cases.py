"""Golden vectors, version 2: the models, what each is fed, and which values are kept.

    ddda   layers D D D A, K = V, 4 value heads a key head, 4 query heads a KV head; keys and queries of one head near
           zero; rms_norm_eps 1e-3; an expert that no token takes, and two experts that are the same, so that they tie
    addd   layers A D D D, K unlike V, groups of 1; dense MLPs, YaRN, positions from 5,000 on; no MTP
    pair   layers D A, groups of 2; tied embeddings, biases, raw weights of the chosen experts, a kernel of 2
    mixed  layers D D D A, K = V, groups of 3; only layer 1 and MTP have experts, by decoder_sparse_step and
           mlp_only_layers; whole heads turn, by YaRN that stretches 64 tokens to 512; sizes that kernels of released
           engines take

Each model is small enough to be shipped. A case is a file of golden vectors: the steps of one run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from verify.random_models import BASE, weights, write_checkpoint
from verify.scenarios import pieces_of, random_tokens

Array = np.ndarray
MODELS = {  # name: what differs from BASE, whether there is an MTP layer, and the seed of its weights
    "ddda": (
        {
            "vocab_size": 67,
            "hidden_size": 32,
            "rms_norm_eps": 1e-3,
            "max_position_embeddings": 8192,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "partial_rotary_factor": 0.25,
            "rope_theta": 1e6,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 8,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "num_experts": 9,
            "num_experts_per_tok": 2,
        },
        True,
        20,
    ),
    "addd": (
        {
            "layer_types": ["full_attention", "linear_attention", "linear_attention", "linear_attention"],
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "linear_num_value_heads": 3,
            "linear_value_head_dim": 6,
            "linear_conv_kernel_dim": 3,
            "num_experts": 0,
        },
        False,
        21,
    ),
    "pair": (
        {
            "vocab_size": 59,
            "hidden_size": 28,
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "tie_word_embeddings": True,
            "attention_bias": True,
            "norm_topk_prob": False,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 12,
            "linear_value_head_dim": 8,
            "linear_conv_kernel_dim": 2,
            "num_experts": 4,
            "num_experts_per_tok": 1,
        },
        True,
        22,
    ),
    "mixed": (
        {
            "vocab_size": 64,
            "hidden_size": 32,
            "rms_norm_eps": 1e-6,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "rope_theta": 1000.0,
            "partial_rotary_factor": 1.0,
            "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 3,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "intermediate_size": 64,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "decoder_sparse_step": 2,  # layers 1 and 3 have experts ..
            "mlp_only_layers": [3],  # .. but layer 3 does not
        },
        True,
        23,
    ),
}
UNUSED, TWINS = 5, (2, 7)  # ddda's experts: one that no token takes, and two that are the same

# ---- Models ---------------------------------------------------------------------------------------------------------


def write_model(name: str, folder: Path):
    """Writes one of MODELS as a checkpoint. Golden vectors belong to the files that are shipped, not to this code."""
    changes, mtp, seed = MODELS[name]
    fields = {**BASE, **changes}
    if mtp:
        fields["mtp_num_hidden_layers"] = 1
    tensors = weights(fields, mtp, seed)
    if name == "ddda":
        tensors["model.embed_tokens.weight"] *= 0.05  # so small that rms_norm_eps shows
        for prefix in (f"model.layers.{i}." for i in range(3)):
            weaken_keys(tensors[prefix + "linear_attn.conv1d.weight"], heads=2, K=16)
        for prefix in [f"model.layers.{i}." for i in range(4)] + ["mtp.layers.0."]:
            set_experts(tensors, prefix)
        keep_a_channel(tensors)
    write_checkpoint(folder, fields, tensors)


def weaken_keys(taps: Array, heads: int, K: int):
    """The queries and keys of the last key head get a squared length of about 1e-6, as l2 norm's eps."""
    last = slice((heads - 1) * K, heads * K)
    taps[:, 0][: heads * K][last] *= 2.0**-11
    taps[:, 0][heads * K : 2 * heads * K][last] *= 2.0**-11


def set_experts(tensors: dict[str, Array], prefix: str):
    """One expert that the constant channel 0 keeps from being chosen, and one that is a copy of another."""
    gate = tensors[prefix + "mlp.gate.weight"]
    gate[:, 0] = 0
    gate[UNUSED] = 0
    gate[UNUSED, 0] = -100
    first, second = TWINS
    gate[second] = gate[first]
    for part in ("gate_proj", "up_proj", "down_proj"):
        name = prefix + "mlp.experts.{}." + part + ".weight"
        tensors[name.format(second)] = tensors[name.format(first)].copy()


def keep_a_channel(tensors: dict[str, Array]):
    """Channel 0 of the residual stream is the same positive number everywhere, as no layer adds to it."""
    tensors["model.embed_tokens.weight"][:, 0] = 1
    for name, x in tensors.items():
        if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "mtp.fc.weight")):
            x[0] = 0
        if name.endswith("layernorm.weight"):
            x[0] = 0
    tensors["mtp.fc.weight"][0, 0] = 1  # MTP's input: the embedding's channel


# ---- Steps ----------------------------------------------------------------------------------------------------------


def in_slots(ids: list[int]) -> dict[str, dict]:
    """A batch, one more token; then a new sequence in slot 0; then slot 1 is left out, and comes back."""
    rows = [ids[:21], ids[21:55], ids[55:58]]
    more = iter(ids[58:])
    steps = {"batch": {"tokens": rows, "before": [[], [], []]}}

    def go_on(step: str, known: dict[int, list[int]], new: dict[int, int]) -> dict[int, list[int]]:
        tokens = {slot: [next(more) for _ in range(count)] for slot, count in new.items()}
        steps[step] = {"tokens": list(tokens.values()), "before": [known[slot] for slot in new], "slots": list(new)}
        return {**known, **{slot: known[slot] + tokens[slot] for slot in new}}

    known = dict(enumerate(rows))
    known = go_on("one more", known, {0: 1, 1: 1, 2: 1})
    known = go_on("slot 0 reused", {**known, 0: []}, {0: 9, 1: 1, 2: 2})
    known = go_on("slot 1 out", known, {0: 1, 2: 1})
    go_on("slot 1 back", known, {0: 1, 1: 2, 2: 1})
    return steps


def drafts_and_rollbacks(ids: list[int]) -> dict[str, dict]:
    """Drafts, a pass over them, one taken back, a token more; drafts again; a pass of which all drafts are taken back;
    and a draft, which sees what MTP remembers.
    """
    prompt, (a, b, c, d, e, f, g, h, i) = ids[:24], ids[24:33]
    one = [*prompt, a, b]
    two = [*one, d]
    three = [*two, e]
    return {
        "prefill": {"tokens": prompt, "before": []},
        "draft 1.1": {"tokens": [a], "before": prompt, "drafts": 0},
        "draft 1.2": {"tokens": [a, b], "before": prompt, "drafts": 1},
        "verify 1": {"tokens": [a, b, c], "before": prompt},
        "rollback 1": {"tokens": [], "before": one},
        "next 1": {"tokens": [d], "before": one},
        "draft 2.1": {"tokens": [e], "before": two, "drafts": 0},
        "draft 2.2": {"tokens": [e, f], "before": two, "drafts": 1},
        "draft 2.3": {"tokens": [e, f, g], "before": two, "drafts": 2},
        "verify 2": {"tokens": [e, f, g, h], "before": two},
        "rollback 2": {"tokens": [], "before": three},
        "draft 3.1": {"tokens": [i], "before": three, "drafts": 0},
        "next 2": {"tokens": [i], "before": three},
    }


def one_row(ids: list[int]) -> dict[str, dict]:
    """Four sequences packed into one row, of 70 tokens, 1, 2 and 37."""
    return {"packed": {"tokens": ids[:110], "before": [], "starts": [0, 70, 71, 73]}}


def single_layers(last: int) -> Callable[[list[int]], dict[str, dict]]:
    """The first layer, from the tokens, and the last, from an input that is given."""

    def steps(ids: list[int]) -> dict[str, dict]:
        given = f"model.layers.{last - 1}.out"
        return {
            "layer 0": {"tokens": ids[:66], "before": [], "layers": [0, 1]},
            f"layer {last}": {"tokens": ids[:66], "before": [], "layers": [last, last + 1], "inputs": [given]},
        }

    return steps


def pieces(ends: dict[str, int]) -> Callable[[list[int]], dict[str, dict]]:
    """One sequence in pieces."""
    return lambda ids: pieces_of(ids, ends)


def gradients(ids: list[int]) -> dict[str, dict]:
    """Those of the mean cross-entropy of each next token, over 20 tokens."""
    return {"gradients": {"tokens": ids[:20], "before": [], "gradients": True}}


# ---- Cases ----------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One file. keep: parts of the names of what is kept; keep_in: step -> parts, where a step keeps others."""

    model: str
    steps: Callable[[list[int]], dict[str, dict]]
    keep: list[str]
    keep_in: dict[str, list[str]]

    def fed(self, vocab_size: int) -> dict[str, dict]:
        """What each step is fed."""
        return self.steps(random_tokens(vocab_size, 0, 5100))

    def given(self, hidden_size: int) -> dict[str, dict[str, Array]]:
        """What steps for single layers begin with."""
        rng = np.random.default_rng(0)
        fed = self.fed(1)
        return {
            step: {key: rng.standard_normal((len(one["tokens"]), hidden_size)).astype(np.float32)}
            for step, one in fed.items()
            for key in one.get("inputs", [])
        }

    def kept(self, step: str, key: str) -> bool:
        return any(part in key for part in self.keep_in.get(step, self.keep))


STATES = ["linear_attn.state", "conv_state"]
ENDS = ["model.norm.out", "lm_head.out"]
DELTA = ["_l2norm", ".g", "beta", "delta_out", "linear_attn.norm.out"]
ATTENTION = ["q_norm.out", "q_rope", "k_rope", "attn_out", "o_proj.out"]
ROUTING = ["router_probs", "topk", "experts.out", "mlp.out"]
LAYERS = [f".layers.{i}.out" for i in range(4)]
CASES = {
    "ddda-decode": Case(
        "ddda",
        pieces({"prefill": 300, "decode 1": 301, "decode 2": 302, "decode 3": 303}),
        [*DELTA, *ATTENTION, *ROUTING, *STATES, *LAYERS, *ENDS, "input_layernorm", "mtp."],
        {
            "prefill": ["layers.0.linear_attn.k_l2norm", "layers.0.linear_attn.g", "layers.0.linear_attn.delta_out"]
            + ["q_rope", "k_rope", "router_probs", "topk", *STATES, *LAYERS, *ENDS, "mtp.fc", "mtp.norm", "mtp.logits"]
        },
    ),
    "ddda-layer": Case(
        "ddda", single_layers(3), ["layers.0.", "layers.2.out", "self_attn", "layers.3.mlp", *LAYERS], {}
    ),
    "ddda-batch": Case("ddda", in_slots, [*STATES, "delta_out", "attn_out", *LAYERS, *ENDS], {}),
    "ddda-rollback": Case("ddda", drafts_and_rollbacks, ["mtp.", *STATES, "attn_out", *LAYERS, *ENDS], {}),
    "ddda-packed": Case(
        "ddda", one_row, [*STATES, "delta_out", "attn_out", *LAYERS, *ENDS, "mtp.norm", "mtp.logits"], {}
    ),
    "addd-decode": Case(
        "addd",
        pieces({"prefill": 5000, "piece 2": 5040, "decode 1": 5041}),
        [*DELTA, *ATTENTION, *STATES, *LAYERS, *ENDS],
        {"prefill": STATES},
    ),
    "addd-pieces": Case(
        "addd",
        pieces({"piece 1": 130, "piece 2": 132, "piece 3": 300}),
        [*STATES, "layers.1.linear_attn.delta_out", "q_rope", "attn_out", *LAYERS, *ENDS],
        {},
    ),
    "addd-batch": Case("addd", in_slots, [*STATES, "attn_out", *LAYERS, *ENDS], {}),
    "pair-decode": Case(
        "pair",
        pieces({"prefill": 66, "decode 1": 67, "decode 2": 68}),
        [*DELTA, *ATTENTION, *ROUTING, *STATES, *LAYERS, *ENDS, "mtp."],
        {},
    ),
    "pair-rollback": Case("pair", drafts_and_rollbacks, ["mtp.", *STATES, *LAYERS, *ENDS], {}),
    "pair-gradients": Case("pair", gradients, [".grad"], {}),
    "mixed-decode": Case(
        "mixed",
        pieces({"prefill": 100, "piece 2": 104, "decode 1": 105}),
        [*ROUTING, *STATES, "q_rope", "k_rope", "attn_out", "mlp.down_proj", *LAYERS, *ENDS, "mtp."],
        {"prefill": [*ROUTING, *STATES, "q_rope", "k_rope", *LAYERS, *ENDS, "mtp.norm", "mtp.logits"]},
    ),
}
