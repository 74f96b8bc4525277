"""Claim: both dialects of config.json are read, and a config that can't be right is refused by name."""

import copy

import pytest
from conftest import BASE, YARN
from transformers import Qwen3NextConfig as TheirConfig

from qwen3_next import Qwen3NextConfig, rope_frequencies

RELEASED = {  # Qwen/Qwen3-Next-80B-A3B-Instruct
    "architectures": ["Qwen3NextForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "model_type": "qwen3_next",
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def test_the_released_config():
    """Catches a field read under another name, a layer off by one, or a key that does not survive."""
    config = Qwen3NextConfig.from_dict(RELEASED)
    assert [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"] == list(range(3, 48, 4))
    assert all(config.is_moe(i) for i in range(48))
    assert config.eos_token_id == 151645
    for key, value in RELEASED.items():
        assert config.to_dict()[key] == value, key


@pytest.mark.parametrize("fields", [{}, {"rope_scaling": YARN}, {"layer_types": ["full_attention"] * 5}])
def test_transformers_dialect(fields):
    """Catches a default (rope_theta 10000!) that stands in for a value nested in rope_parameters."""
    fields = {**BASE, "rope_theta": 5000000.0, "partial_rotary_factor": 0.5, **fields}
    theirs = TheirConfig(**copy.deepcopy(fields)).to_dict()  # it writes into the dicts it is given
    assert "rope_theta" not in theirs
    ours, direct = Qwen3NextConfig.from_dict(theirs), Qwen3NextConfig(**fields)
    for key in ("rope_theta", "partial_rotary_factor", "layer_types"):
        assert getattr(ours, key) == getattr(direct, key), key
    assert rope_frequencies(ours)[0].tolist() == rope_frequencies(direct)[0].tolist()
    assert rope_frequencies(ours)[1] == rope_frequencies(direct)[1]


@pytest.mark.parametrize("fields", [{}, {"rope_scaling": YARN}, {"layer_types": ["full_attention"] * 5}])
def test_transformers_reads_ours(fields):
    """Catches a written config that transformers reads as another model."""
    ours = Qwen3NextConfig(**{**BASE, **fields, "rope_theta": 123456.0})
    theirs = TheirConfig(**ours.to_dict())
    assert theirs.rope_parameters["rope_theta"] == 123456.0
    assert theirs.rope_parameters["partial_rotary_factor"] == 0.25
    assert theirs.layer_types == ours.layer_types
    assert theirs.rope_parameters["rope_type"] == ("yarn" if "rope_scaling" in fields else "default")


def test_yarn_of_the_model_card():
    """Catches the correction range or the attention factor of the published 1M-token setting."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262144}
    plain = rope_frequencies(Qwen3NextConfig(**{**RELEASED}))[0]
    scaled, factor = rope_frequencies(Qwen3NextConfig(**{**RELEASED, "rope_scaling": yarn}))
    assert factor == pytest.approx(1.138629, abs=1e-6)
    ratio = (plain / scaled).tolist()
    assert ratio[:15] == [1.0] * 15  # low = 14
    assert ratio[22:] == pytest.approx([4.0] * 10)  # high = 22
    assert all(1 < a < b < 4 for a, b in zip(ratio[15:21], ratio[16:22]))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"rope_theta": None}, "rope_theta"),
        ({"num_experts": None}, "num_experts"),
        ({"hidden_size": "48"}, "hidden_size"),
        ({"hidden_size": 48.0}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"head_dim": -16}, "head_dim"),
        ({"num_attention_heads": 5}, "num_attention_heads.*num_key_value_heads"),
        ({"linear_num_value_heads": 5}, "linear_num_value_heads.*linear_num_key_heads"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok.*num_experts"),
        ({"layer_types": ["full_attention"]}, "layer_types.*num_hidden_layers"),
        ({"layer_types": ["sliding_attention"] * 5}, "sliding_attention"),
        ({"full_attention_interval": 0, "layer_types": ["full_attention"] * 5}, "full_attention_interval"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step"),
        ({"partial_rotary_factor": 0.2}, "partial_rotary_factor.*head_dim"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor.*head_dim"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "llama3"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor"),
        ({"rope_parameters": {"rope_theta": 7.0}}, "rope_theta.*rope_parameters"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}, "rope_scaling": YARN}, "rope_scaling and rope_p"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "qwen3_moe"}, "model_type"),
        ({"mlp_only_layers": [5]}, "mlp_only_layers"),
        ({"mlp_only_layers": [1], "intermediate_size": None}, "intermediate_size"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size"),
    ],
)
def test_contradictions_are_named(fields, named):
    """Catches a config that would build another model, or fail later with a message about tensors."""
    with pytest.raises(ValueError, match=named):
        Qwen3NextConfig(**{**BASE, **fields})


def test_what_no_layer_uses_is_not_asked_for():
    """Catches dense or attention-only configs that have to invent expert or delta-rule fields."""
    unused = ("num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size")
    Qwen3NextConfig(**{**{k: v for k, v in BASE.items() if k not in unused}, "num_experts": 0})
    unused = [key for key in BASE if key.startswith("linear_")]
    Qwen3NextConfig(**{**{k: v for k, v in BASE.items() if k not in unused}, "full_attention_interval": 1})


def test_unknown_keys_pass_through_and_nothing_is_shared():
    """Catches a key that is dropped, or a list that the config shares with the caller."""
    fields = {**BASE, "my_key": {"a": [1]}, "mlp_only_layers": [1]}
    config = Qwen3NextConfig(**fields)
    fields["mlp_only_layers"].append(2)
    written = config.to_dict()
    written["mlp_only_layers"].append(3)
    assert config.mlp_only_layers == [1]
    assert config.my_key == written["my_key"] == {"a": [1]}
    assert Qwen3NextConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
