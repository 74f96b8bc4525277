"""Models and inputs that several tests share."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a download
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # models this small gain nothing from more, and lose a lot on a busy machine

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qwen3_next import Qwen3NextConfig, Qwen3NextForCausalLM  # noqa: E402

# Unequal everything: 6 query heads on 2, 6 value heads on 2, K != V, expert and shared widths apart.
BASE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 5,
    "full_attention_interval": 4,
    "max_position_embeddings": 512,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.25,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 20,
    "linear_conv_kernel_dim": 4,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 20,
    "intermediate_size": 40,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS = {
    "base": {},
    "decoder_sparse_step": {"decoder_sparse_step": 2},
    "mlp_only_layers": {"mlp_only_layers": [0, 3]},
    "raw_topk_weights": {"norm_topk_prob": False},
    "attention_bias": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "any_order": {"layer_types": [f"{kind}_attention" for kind in ("full", "linear", "full", "full", "linear")]},
    "all_linear": {"full_attention_interval": 9},
    "all_attention": {"full_attention_interval": 1},
    "all_dense": {"num_experts": 0},
    "kernel_2": {"linear_conv_kernel_dim": 2},
    "kernel_3": {"linear_conv_kernel_dim": 3},
    "equal_heads": {"linear_num_value_heads": 2, "num_key_value_heads": 6},
    "one_key_head": {"linear_num_key_heads": 1, "num_key_value_heads": 1},
    "wide_keys": {"linear_key_head_dim": 24, "linear_value_head_dim": 8},
    "half_rotary": {"partial_rotary_factor": 0.5},
    "full_rotary": {"partial_rotary_factor": 1.0},
    "yarn": {"rope_scaling": YARN, "partial_rotary_factor": 0.5},
}


def randomise(model: torch.nn.Module, seed: int = 0, logit_std: float = 1.5):
    """Weights so large that every term shows: norms away from their resting value, gates away from 1/2."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if name.endswith(("A_log", "dt_bias")):
                continue  # the spread of decays that a new model has
            if p.ndim == 1:
                p += (0.3 * noise).to(p)
            else:
                fan_in = 4 if "conv1d" in name else p.shape[-1]
                std = logit_std if "lm_head" in name or "embed_tokens" in name else 1.6
                p.copy_(std * noise / fan_in**0.5)
    return model


def random_model(dtype: torch.dtype = torch.float64, seed: int = 0, **fields) -> Qwen3NextForCausalLM:
    torch.manual_seed(seed)
    model = Qwen3NextForCausalLM(Qwen3NextConfig(**{**BASE, **fields}))
    return randomise(model.to(dtype), seed).eval()


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, BASE["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def tiny() -> Path:
    return ROOT / "tiny"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A random model with tiny/'s tokenizer, as a folder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = random_model(torch.bfloat16, vocab_size=2048, mtp_num_hidden_layers=1)
    model.generation_config = {"eos_token_id": [3, 5], "pad_token_id": 0, "do_sample": False}
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((ROOT / "tiny" / name).read_bytes())
    return folder
