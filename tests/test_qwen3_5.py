"""Claim: Qwen3.5's text checkpoints, dense and MoE, compute here what they compute in transformers."""

import copy
import json
import re

import pytest
import torch
from conftest import YARN, random_model, randomise, tokens
from safetensors.torch import save_file
from transformers.models import qwen3_5 as dense
from transformers.models import qwen3_5_moe as moe

from qwen3_next import Qwen3NextConfig, Qwen3NextForCausalLM
from qwen3_next_checkpoints.qwen3_5 import MODEL_TYPES, rename, repack, translate_config

ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
TEXT = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 5,
    "max_position_embeddings": 512,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 20,
    "rope_parameters": {**ROPE, "mrope_interleaved": True, "mrope_section": [2, 1, 1]},
}
MLP = {
    "qwen3_5": {"intermediate_size": 40},
    "qwen3_5_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 20,
    },
}
VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 48}
CLASSES = {
    "qwen3_5": (dense.Qwen3_5Config, dense.Qwen3_5ForConditionalGeneration),
    "qwen3_5_moe": (moe.Qwen3_5MoeConfig, moe.Qwen3_5MoeForConditionalGeneration),
    "qwen3_5_text": (dense.Qwen3_5TextConfig, dense.Qwen3_5ForCausalLM),
    "qwen3_5_moe_text": (moe.Qwen3_5MoeTextConfig, moe.Qwen3_5MoeForCausalLM),
}
VARIANTS = {
    "base": {},
    "equal_heads": {"linear_num_key_heads": 3, "linear_num_value_heads": 3},
    "one_key_head": {"linear_num_key_heads": 1, "linear_num_value_heads": 3},
    "wide_keys": {"linear_key_head_dim": 24, "linear_value_head_dim": 8},
    "tied": {"tie_word_embeddings": True},
    "any_order": {"layer_types": [f"{kind}_attention" for kind in ("full", "linear", "full", "full", "linear")]},
    "all_attention": {"layer_types": ["full_attention"] * 5},
    "attention_bias": {"attention_bias": True},
    "kernel_3": {"linear_conv_kernel_dim": 3},
    "yarn": {"rope_parameters": {**TEXT["rope_parameters"], **YARN}},
}


def their_model(kind: str, **fields) -> torch.nn.Module:
    """transformers' Qwen3.5 with large random weights, spread decays, and a vision tower if the kind has one."""
    torch.manual_seed(0)
    text = copy.deepcopy({**TEXT, **MLP[kind.removesuffix("_text")], **fields})  # they write into what they are given
    make_config, make_model = CLASSES[kind]
    if kind.endswith("_text"):
        config = make_config(**text)
    else:
        tied = text.get("tie_word_embeddings", False)
        config = make_config(text_config=text, vision_config={**VISION}, tie_word_embeddings=tied)
    model = randomise(make_model(config).float().eval())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("A_log"):
                p.uniform_(1, 16).log_()
            elif name.endswith("dt_bias"):  # theirs are all 1, with which nothing is remembered; here 0.001 to 0.1
                p.uniform_(-7, -2.3)
    return model


def write(folder, config: dict, tensors: dict):
    """A checkpoint folder. A_log and the gated norm are in float32 anyway."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: x.detach().clone().contiguous() for name, x in tensors.items()}, folder / "model.safetensors")
    return folder


def release(folder, model):
    """Their model's own names and tensors, which are the released ones: fused experts, a visual tower."""
    tensors = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    config = model.config.to_dict()
    if "text_config" in config:
        assert any(name.startswith("model.visual.") for name in tensors)
        assert "model.language_model.norm.weight" in tensors
    assert "moe" not in config["model_type"] or any(name.endswith("mlp.experts.gate_up_proj") for name in tensors)
    return write(folder, config, tensors)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference in standard deviations of the logits."""
    assert expected.std() > 0.5
    worst = ((found - expected).abs().max() / expected.std()).item()
    print(f"largest difference: {worst:.1e} standard deviations")
    return worst


@pytest.mark.parametrize("kind", MLP)
@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_logits(tmp_path, kind, name):
    """Catches rows that are dealt to the wrong key head, b for a, q for k, gate for up, another norm, a lost key."""
    theirs = their_model(kind, **VARIANTS[name])
    ours = Qwen3NextForCausalLM.from_pretrained(release(tmp_path / "a", theirs))
    assert ours.dtype == torch.float32
    ids = tokens(2, 200)
    expected = theirs(input_ids=ids).logits
    assert error(ours(ids).logits, expected) < 1e-3


@pytest.mark.parametrize("kind", ["qwen3_5_text", "qwen3_5_moe_text"])
@pytest.mark.parametrize("saved", [True, False], ids=["their save_pretrained", "bare names"])
@torch.no_grad()
def test_text_only_checkpoints(tmp_path, kind, saved):
    """Catches a flat config, names without language_model, and the separate experts that transformers saves."""
    theirs = their_model(kind)
    if saved:
        theirs.save_pretrained(tmp_path / "a")
    else:
        release(tmp_path / "a", theirs)
    ours = Qwen3NextForCausalLM.from_pretrained(tmp_path / "a")
    ids = tokens(1, 100)
    assert error(ours(ids).logits, theirs(input_ids=ids).logits) < 1e-3


@pytest.mark.parametrize("kind", MLP)
@torch.no_grad()
def test_cached_logits(tmp_path, kind):
    """Catches channels of the convolution's window, or states, in another order than the weights."""
    theirs = their_model(kind)
    ours = Qwen3NextForCausalLM.from_pretrained(release(tmp_path / "a", theirs))
    ids, cache = tokens(2, 70), ours.make_cache(2)
    expected = theirs(input_ids=ids).logits
    pieces = [ours(piece, past_key_values=cache).logits for piece in ids.split([7] + [1] * 63, dim=1)]
    assert error(torch.cat(pieces, dim=1), expected) < 1e-3
    theirs_cached, state = [], None
    for piece in ids.split(1, dim=1):
        out = theirs(input_ids=piece, past_key_values=state, use_cache=True)
        theirs_cached, state = [*theirs_cached, out.logits], out.past_key_values
    assert error(torch.cat(pieces, dim=1), torch.cat(theirs_cached, dim=1)) < 1e-3


@pytest.mark.parametrize("kind", MLP)
@torch.no_grad()
def test_what_was_read_is_saved_as_qwen3_next(tmp_path, kind):
    """Catches a config that still says Qwen3.5, or vision keys, above weights that no longer are."""
    model = Qwen3NextForCausalLM.from_pretrained(release(tmp_path / "a", their_model(kind)))
    model.save_pretrained(tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["model_type"] == "qwen3_next"
    assert config["architectures"] == ["Qwen3NextForCausalLM"]
    assert not [key for key in config if re.search("vision|video|image|mrope|text_config", key)]
    again = Qwen3NextForCausalLM.from_pretrained(tmp_path / "b")
    assert torch.equal(again(tokens(1, 70)).logits, model(tokens(1, 70)).logits)


def unpacked(model: Qwen3NextForCausalLM) -> dict[str, torch.Tensor]:
    """A Qwen3-Next model's tensors as Qwen3.5 has them, row by row, by the drawing in GatedDeltaNet.unpack."""
    c, tensors = model.config, {}
    G, r = c.linear_num_key_heads, c.linear_num_value_heads // c.linear_num_key_heads
    K, V = c.linear_key_head_dim, c.linear_value_head_dim
    width = 2 * K + 2 * r * V
    starts = {"q": 0, "k": K, "v": 2 * K, "z": 2 * K + r * V}
    sizes = {"q": K, "k": K, "v": r * V, "z": r * V}
    rows = {x: [g * width + starts[x] + i for g in range(G) for i in range(sizes[x])] for x in "qkvz"}
    rows |= {x: [g * 2 * r + s * r + i for g in range(G) for i in range(r)] for s, x in enumerate("ba")}
    for name, x in model.state_dict().items():
        new = re.sub("^model", "model.language_model", name)
        if "in_proj_qkvz" in name:
            tensors[new.replace("qkvz", "qkv")] = x[rows["q"] + rows["k"] + rows["v"]]
            tensors[new.replace("qkvz", "z")] = x[rows["z"]]
        elif "in_proj_ba" in name:
            tensors |= {new.replace("_ba", f"_{part}"): x[rows[part]] for part in "ba"}
        else:
            tensors[new] = x
    for i in range(c.num_hidden_layers if c.num_experts else 0):  # the model's experts are fused, MTP's are not
        prefix = f"model.language_model.layers.{i}.mlp.experts."
        parts = {
            kind: torch.stack([tensors.pop(f"{prefix}{e}.{kind}_proj.weight") for e in range(c.num_experts)])
            for kind in ("gate", "up", "down")
        }
        tensors[prefix + "gate_up_proj"] = torch.cat([parts["gate"], parts["up"]], dim=1)
        tensors[prefix + "down_proj"] = parts["down"]
    if c.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


@pytest.mark.parametrize("kind", MLP)
@pytest.mark.parametrize("name", ["base", "equal_heads", "tied"])
@torch.no_grad()
def test_mtp_and_released_dtypes(tmp_path, kind, name):
    """Catches mtp.* tensors that are renamed or dropped, and a bit that changes on the way, in bfloat16 with A_log and
    the gated norm in float32 as released."""
    fields = {**TEXT, **MLP[kind], **VARIANTS[name], "mtp_num_hidden_layers": 1}
    rope = {key: value for key, value in fields.pop("rope_parameters").items() if "mrope" not in key}
    fields = {"num_experts": 0, **fields}
    ours = random_model(torch.bfloat16, **fields, rope_scaling=None, **{k: rope[k] for k in rope if k != "rope_type"})
    wide = ("A_log", "linear_attn.norm.weight")
    tensors = {name: x.float() if name.endswith(wide) else x for name, x in unpacked(ours).items()}
    tensors["model.visual.merger.norm.weight"] = torch.zeros(16, dtype=torch.bfloat16)
    experts = "mtp.layers.0.mlp.experts.7.down_proj.weight"
    assert (experts if kind == "qwen3_5_moe" else "mtp.layers.0.mlp.down_proj.weight") in tensors
    text = {**TEXT, **MLP[kind], **VARIANTS[name], "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False}
    text |= {"model_type": f"{kind}_text", "dtype": "bfloat16", "full_attention_interval": 4}
    config = {"model_type": kind, "text_config": text, "tie_word_embeddings": name == "tied", "vision_config": VISION}
    again = Qwen3NextForCausalLM.from_pretrained(write(tmp_path / "a", config, tensors))
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    expected, found = dict(ours.named_parameters()), dict(again.named_parameters())
    assert found.keys() == expected.keys()
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []
    ids = tokens(2, 90)
    a, b = (model.float()(ids, output_mtp_logits=True) for model in (ours, again))
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(a.mtp_logits, b.mtp_logits)


@pytest.mark.parametrize("kind", MLP)
@torch.no_grad()
def test_fp8(tmp_path, kind):
    """Catches rows that are regrouped before their blocks are scaled, a scale that keeps its old name, and a
    quantization_config at the top level that is not seen."""
    theirs = their_model(kind)
    tensors, config = dict(theirs.state_dict()), theirs.config.to_dict()
    wide = {
        name: x for name, x in tensors.items() if re.search(r"language_model.*(in_proj_(qkv|z)|[qkvo]_proj)\.w", name)
    }
    assert any(len(x) > 128 for name, x in wide.items() if "in_proj_qkv" in name), "one block is no test"
    for name, x in wide.items():
        blocks = -(-len(x) // 128)
        scale = torch.tensor([[0.01 * 3**i] for i in range(blocks)])
        rows = scale.repeat_interleave(128, dim=0)[: len(x)]
        tensors[name] = (x / rows).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
        theirs.get_parameter(name).copy_(tensors[name].float() * rows)
    config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    ours = Qwen3NextForCausalLM.from_pretrained(write(tmp_path / "a", config, tensors), dtype="float32")
    ids = tokens(1, 100)
    assert error(ours(ids).logits, theirs(input_ids=ids).logits) < 1e-3


# ---- The config ------------------------------------------------------------------------------------------------------

SMALL = {  # Qwen3.5-0.8B's config.json, without the parts of its vision tower
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "image_token_id": 248056,
    "model_type": "qwen3_5",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "eos_token_id": 248044,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "initializer_range": 0.02,
        "intermediate_size": 3584,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 6,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 16,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 262144,
        "mlp_only_layers": [],
        "model_type": "qwen3_5_text",
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "num_attention_heads": 8,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": 248320,
    },
    "tie_word_embeddings": True,
    "video_token_id": 248057,
    "vision_config": {"depth": 12, "hidden_size": 768, "model_type": "qwen3_5"},
    "vision_end_token_id": 248054,
    "vision_start_token_id": 248053,
}
LARGE = copy.deepcopy(SMALL)  # as of Qwen3.5-35B-A3B
LARGE |= {"model_type": "qwen3_5_moe", "architectures": ["Qwen3_5MoeForConditionalGeneration"]}
LARGE |= {"tie_word_embeddings": False, "quantization_config": {"quant_method": "fp8"}}
LARGE["text_config"] |= {"model_type": "qwen3_5_moe_text", "hidden_size": 2048, "num_hidden_layers": 40}
LARGE["text_config"] |= {"layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 10}
LARGE["text_config"] |= {"num_attention_heads": 16, "linear_num_value_heads": 32, "tie_word_embeddings": False}
LARGE["text_config"] |= {"num_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 512}
LARGE["text_config"] |= {"shared_expert_intermediate_size": 512, "partial_rotary_factor": 0.25}
del LARGE["text_config"]["intermediate_size"], LARGE["text_config"]["mlp_only_layers"]


def edited(config: dict, top: dict | None = None, **text) -> dict:
    """A copy with other fields; ... takes one away."""
    new = copy.deepcopy(config)
    for fields, changes in ((new, top or {}), (new["text_config"], text)):
        fields.update(changes)
        for key in [key for key, value in fields.items() if value is ...]:
            del fields[key]
    return new


def test_released_configs():
    """Catches a key that is not found under text_config, or read with Qwen3-Next's default instead."""
    before = copy.deepcopy((SMALL, LARGE))
    fields = [translate_config(x) for x in (SMALL, LARGE)]
    assert before == (SMALL, LARGE), "the input was changed"
    assert all(x["model_type"] == "qwen3_next" for x in fields)
    small, large = (Qwen3NextConfig(**x) for x in fields)
    assert (small.num_experts, small.intermediate_size, small.tie_word_embeddings) == (0, 3584, True)
    assert (large.num_experts, large.num_experts_per_tok, large.tie_word_embeddings) == (256, 8, False)
    assert (large.norm_topk_prob, large.moe_intermediate_size, large.quantization_config["quant_method"]) == (
        True,
        512,
        "fp8",
    )
    for config in (small, large):
        assert (config.rope_theta, config.partial_rotary_factor, config.rope_scaling) == (1e7, 0.25, None)
        assert (config.head_dim, config.num_key_value_heads, config.linear_num_key_heads) == (256, 2, 16)
        assert (config.eos_token_id, config.torch_dtype, config.mtp_num_hidden_layers) == (248044, "bfloat16", 1)
        assert config.layer_types == (["linear_attention"] * 3 + ["full_attention"]) * (config.num_hidden_layers // 4)
    with torch.device("meta"):
        model = Qwen3NextForCausalLM(small)
    count = {part: sum(p.numel() for p in module.parameters()) for part, module in model.named_children()}
    assert (count["model"], count["mtp"]) == (752_393_024, 20_452_864)
    assert sorted(MODEL_TYPES) == sorted(CLASSES)


def test_where_keys_may_stand():
    """Catches a flat config, and a key at the top level that goes unread or loses against text_config's."""
    flat = {**SMALL["text_config"], "architectures": ["Qwen3_5ForCausalLM"], "transformers_version": "5.24.0"}
    nested = translate_config(SMALL)
    assert translate_config(flat) == {**nested, "transformers_version": "5.24.0"}
    assert translate_config({**flat, "model_type": "qwen3_5"}) == translate_config(flat)
    for top, text, expected in [
        ({"tie_word_embeddings": ...}, {}, True),
        ({"tie_word_embeddings": False}, {}, False),  # as transformers has it: the whole model's wins
        ({}, {"tie_word_embeddings": ...}, True),
        ({}, {"tie_word_embeddings": False}, True),
        ({"tie_word_embeddings": None}, {"tie_word_embeddings": True}, True),
    ]:
        assert translate_config(edited(SMALL, top, **text))["tie_word_embeddings"] is expected
    for top, text, expected in [
        ({"torch_dtype": "float16"}, {}, "float16"),
        ({"dtype": "float16"}, {}, "float16"),
        ({"dtype": "float16", "torch_dtype": "float32"}, {}, "float16"),
        ({}, {"dtype": ..., "torch_dtype": "float16"}, "float16"),
        ({"dtype": None}, {}, "bfloat16"),
    ]:
        new = translate_config(edited(SMALL, top, **text))
        assert (new["torch_dtype"], "dtype" in new) == (expected, False)
    ids = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 4}
    new = translate_config(edited(SMALL, ids, eos_token_id=None))
    assert {key: new[key] for key in ids} == ids
    assert translate_config(edited(SMALL, ids))["eos_token_id"] == 248044
    new = translate_config(edited(LARGE, {"quantization_config": ...}, quantization_config={"quant_method": "fp8"}))
    assert new["quantization_config"] == {"quant_method": "fp8"}
    assert translate_config(edited(SMALL, {"id2label": {"0": "a"}}))["id2label"] == {"0": "a"}


def test_rope_and_layers_in_every_dialect():
    """Catches YaRN that is dropped with the image axes, and layers that are only given by their interval."""
    yarn = {**SMALL["text_config"]["rope_parameters"], **YARN}
    assert Qwen3NextConfig(**translate_config(edited(SMALL, rope_parameters=yarn))).rope_scaling == YARN
    old = {"rope_parameters": ..., "rope_theta": 5e6, "partial_rotary_factor": 0.5}
    old["rope_scaling"] = {"type": "default", "mrope_section": [11, 11, 10]}
    config = Qwen3NextConfig(**translate_config(edited(SMALL, **old)))
    assert (config.rope_theta, config.partial_rotary_factor, config.rope_scaling) == (5e6, 0.5, None)
    config = Qwen3NextConfig(**translate_config(edited(SMALL, layer_types=..., full_attention_interval=3)))
    assert config.layer_types == (["linear_attention"] * 2 + ["full_attention"]) * 8


@pytest.mark.parametrize(
    "key, value, config",
    [
        ("attn_output_gate", False, SMALL),
        ("output_gate_type", "sigmoid", SMALL),
        ("mtp_use_dedicated_embeddings", True, SMALL),
        ("num_experts", 4, SMALL),
        ("norm_topk_prob", False, LARGE),
        ("decoder_sparse_step", 2, LARGE),
        ("mlp_only_layers", [0], LARGE),
        ("model_type", "qwen4_exp_text", SMALL),
        ("model_type", "qwen3_next", SMALL),
        ("hidden_act", "gelu", SMALL),
        ("mtp_num_hidden_layers", 2, SMALL),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, SMALL),
        ("rope_parameters", [1], SMALL),
        *[(key, ..., SMALL) for key in ("hidden_size", "head_dim", "vocab_size", "linear_num_value_heads")],
        *[(key, ..., SMALL) for key in ("intermediate_size", "num_key_value_heads")],
        *[(key, ..., LARGE) for key in ("num_experts", "num_experts_per_tok", "moe_intermediate_size")],
    ],
)
def test_what_would_be_another_model_is_refused(key, value, config):
    """Catches logits of a model that the config does not describe, and a default for a key that has none."""
    named = "rope_scaling" if key == "rope_parameters" else key
    with pytest.raises(ValueError, match=f"config: {named}.*(expected|exceeds)"):
        Qwen3NextConfig(**translate_config(edited(config, **{key: value})))


def test_harmless_values_of_the_same_keys():
    """Catches a refusal of what Qwen3.6 and 3.8 say, or of a null."""
    same = {"output_gate_type": "swish", "attn_output_gate": None, "norm_topk_prob": True, "decoder_sparse_step": 1}
    expected = translate_config(LARGE)
    assert translate_config(edited(LARGE, **same)) == expected
    assert not expected.keys() & {"output_gate_type", "attn_output_gate", "mtp_use_dedicated_embeddings"}
    assert translate_config(edited(SMALL, num_experts=0)) == translate_config(SMALL)


def test_no_rope_theta_is_refused():
    """Catches transformers' default of 10000 in the place of a missing key."""
    with pytest.raises(ValueError, match="config: rope_theta"):
        Qwen3NextConfig(**translate_config(edited(SMALL, rope_parameters=...)))
    with pytest.raises(ValueError, match="config: text_config is"):
        translate_config({**SMALL, "text_config": [1]})


# ---- Names and shapes ------------------------------------------------------------------------------------------------


def test_rename():
    """Catches a name that is left as it was, one that merely looks alike, and values that are touched."""
    value = object()
    names = {
        "model.language_model.layers.0.linear_attn.in_proj_qkv.weight": "model.layers.0.linear_attn.in_proj_qkv.weight",
        "model.language_model.layers.0.mlp.experts.gate_up_proj": "model.layers.0.mlp.experts.gate_up_proj",
        "model.language_model.norm.weight": "model.norm.weight",
        "model.embed_tokens.weight": "model.embed_tokens.weight",
        "lm_head.weight": "lm_head.weight",
        "mtp.fc.weight": "mtp.fc.weight",
        "mtp.layers.0.mlp.experts.0.up_proj.weight_scale_inv": "mtp.layers.0.mlp.experts.0.up_proj.weight_scale_inv",
        "language_model.model.norm.weight": "language_model.model.norm.weight",  # MLX's: 1 + w, refused by the loader
        "score.weight": "score.weight",
        "draft.model.language_model.norm.weight": "draft.model.language_model.norm.weight",
    }
    found = rename({**dict.fromkeys(names, value), "model.visual.blocks.0.x": value, "visual.y": value})
    assert list(found) == list(names.values())
    assert all(x is value for x in found.values())
    with pytest.raises(ValueError, match=r"model\.norm\.weight: there twice"):
        rename({"model.norm.weight": value, "model.language_model.norm.weight": value})


def test_repack_refuses_by_name():
    """Catches a projection that is lost, or dealt out by a config that is not its own."""
    fields = translate_config({"model_type": "qwen3_5_text", **TEXT, **MLP["qwen3_5"]})
    prefix = "model.layers.0.linear_attn.in_proj_"
    good = {f"{prefix}{part}.weight": torch.randn(n, 48) for part, n in {"qkv": 168, "z": 120, "b": 6, "a": 6}.items()}
    good["model.norm.weight"] = torch.zeros(48)
    names = list(good)
    packed = repack(good, fields)
    assert list(good) == names, "the input was changed"
    shapes = {name: tuple(x.shape) for name, x in packed.items()}
    assert shapes == {"model.norm.weight": (48,), f"{prefix}qkvz.weight": (288, 48), f"{prefix}ba.weight": (12, 48)}
    assert packed["model.norm.weight"] is good["model.norm.weight"]
    for name in names[:4]:
        with pytest.raises(ValueError, match=re.escape(f"{name}: missing")):
            repack({key: x for key, x in good.items() if key != name}, fields)
        for wrong in (good[name][:-1], good[name][:, :-1], good[name][0], good[name][None]):
            with pytest.raises(ValueError, match=re.escape(f"{name}: shape {tuple(wrong.shape)}, expected")):
                repack({**good, name: wrong}, fields)
    with pytest.raises(ValueError, match=r"in_proj_qkv\.weight: shape \(168, 48\), expected \(192, 48\)"):
        repack(good, {**fields, "linear_num_key_heads": 3})
    only = {"model.norm.weight": good["model.norm.weight"]}
    assert repack(only, {"layer_types": ["full_attention"]}) == only
