"""Claim: other runtimes load tiny/ as it lies there, and compute what this project computes."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from qwen3_next import Qwen3NextTokenizer

sys.path.insert(0, str(ROOT / "benchmarks"))
import other_runtimes as others  # noqa: E402

LIMIT = 1e-3  # standard deviations of our logits; in float32 they are about 1e-5 apart, one wrong term 1e-2 or more


@pytest.fixture(scope="module")
def ids(tiny):
    return others.text_of(Qwen3NextTokenizer.from_pretrained(tiny), 400)


@pytest.fixture(scope="module")
def float32(tiny, tmp_path_factory):
    return others.float32_copy(tiny, tmp_path_factory.mktemp("copies") / "float32")


@pytest.fixture(scope="module")
def reference(tiny):
    return others.ours(tiny, "float32")


def within_the_limit(row: dict):
    assert row["whole"] < LIMIT, row
    assert row["in pieces"] < LIMIT, row
    assert row["argmax"] == 1.0, row


def test_the_layout_is_one_that_all_load(tiny):
    """Catches a tiny model of shapes that the released one does not have, and that a runtime has no code for."""
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    interval, layers = config["full_attention_interval"], config["num_hidden_layers"]
    kinds = ["full_attention" if (i + 1) % interval == 0 else "linear_attention" for i in range(layers)]
    assert config.get("layer_types", kinds) == kinds, "mlx-lm counts layers by the interval"
    assert (interval, layers % interval) == (4, 0)
    assert config["linear_key_head_dim"] == config["linear_value_head_dim"], "llama.cpp has one width for both"
    assert config["linear_value_head_dim"] % 32 == 0, "vLLM's kernels for CPUs take no other"
    assert config["intermediate_size"] > 0, "mlx-lm asks for it, though no layer is dense"
    assert config["num_experts"] > config["num_experts_per_tok"]


def test_mlx_lm(tiny, float32, reference, ids, monkeypatch):
    """Catches a config key, a tensor or a state that mlx-lm reads differently, and a folder that it does not load.

    The logits are of a copy in float32: mlx-lm adds 1 to the norms' weights in the dtype they have in the folder.
    """
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")  # compiling needs a C++ compiler
    utils = pytest.importorskip("mlx_lm.utils")
    model, theirs = utils.load(str(tiny))
    assert str(model.model.embed_tokens.weight.dtype) == "mlx.core.bfloat16"
    mine, chat = Qwen3NextTokenizer.from_pretrained(tiny), [{"role": "user", "content": others.PROMPTS[0]}]
    text = mine.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == text
    assert theirs.encode(text) == mine.encode(text)
    within_the_limit(others.compare(others.mlx_lm(float32), reference, ids))


def test_transformers(tiny, reference, ids):
    """Catches a config key, a tensor or a state that transformers reads differently, and another tokenizer class."""
    from transformers import AutoTokenizer

    text = Qwen3NextTokenizer.from_pretrained(tiny).decode(ids.tolist())
    assert AutoTokenizer.from_pretrained(tiny).encode(text) == ids.tolist()
    within_the_limit(others.compare(others.transformers(tiny, "float32"), reference, ids))


def test_transformers_in_bfloat16(tiny, ids):
    """Catches a weight that is read in another precision than it was written in."""
    mine, theirs = others.ours(tiny, "bfloat16")([ids]), others.transformers(tiny, "bfloat16")([ids])
    assert (mine.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.95


def test_llama_cpp(tiny, reference, ids, tmp_path):
    """Catches a folder that llama.cpp's script does not convert, and the wrong pre-tokenizer for it.

    Runs where llama-cpp-python is installed, and LLAMA_CPP_SOURCE is the folder vendor/llama.cpp of its source.
    """
    pytest.importorskip("llama_cpp")
    source = os.environ.get("LLAMA_CPP_SOURCE")
    if source is None:
        pytest.skip("LLAMA_CPP_SOURCE, the folder of llama.cpp's source, is not set: it has the script that converts")
    gguf = others.to_gguf(tiny, Path(source), tmp_path / "tiny.gguf", "f32")
    text = Qwen3NextTokenizer.from_pretrained(tiny).decode(ids.tolist())
    assert others.llama_cpp_tokens(gguf, text) == ids.tolist()
    within_the_limit(others.compare(others.llama_cpp(gguf), reference, ids))


def test_pieces_are_the_text(ids):
    """Catches a comparison in pieces that leaves out a part of the text, or has but one piece."""
    pieces = others.pieces_of(ids)
    assert torch.equal(torch.cat(pieces), ids)
    assert len(pieces) == len(others.PIECES) + 1


def test_a_conversion_that_fails_says_why(tiny, tmp_path):
    """Catches a conversion that is silent about what went wrong, or leaves half a file."""
    (tmp_path / "gguf-py").mkdir()
    (tmp_path / "convert_hf_to_gguf.py").write_text("raise SystemExit('no such tokenizer')")
    (tmp_path / "conversion").mkdir()
    (tmp_path / "conversion" / "base.py").write_text("class TextModel: pass")
    with pytest.raises(RuntimeError, match=r"did not convert .*tiny: no such tokenizer"):
        others.to_gguf(tiny, tmp_path, tmp_path / "tiny.gguf", "f32")
    assert not (tmp_path / "tiny.gguf").exists()
