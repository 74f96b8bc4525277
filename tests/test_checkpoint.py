"""Claim: checkpoints are read without copies, written whole, and every file that does not fit is refused by name."""

import json
import re
import struct

import pytest
import torch
from conftest import VARIANTS, random_model, tokens
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Qwen3NextForCausalLM as TheirModel

from qwen3_next import Qwen3NextConfig, Qwen3NextForCausalLM, read_safetensors


@pytest.mark.parametrize("shard_size", ["5GB", 60_000])
@pytest.mark.parametrize("name", ["base", "tied", "all_dense", "yarn"])
@torch.no_grad()
def test_round_trip_and_transformers(tmp_path, name, shard_size):
    """Catches a tensor that is lost, renamed or cast on the way, and a folder that transformers reads differently."""
    model = random_model(torch.float32, **VARIANTS[name])
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size != "5GB")
    again, theirs = Qwen3NextForCausalLM.from_pretrained(tmp_path), TheirModel.from_pretrained(tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    ids = tokens(2, 50)
    expected = model(ids).logits
    assert torch.equal(again(ids).logits, expected)
    assert (theirs(ids).logits - expected).abs().max() / expected.std() < 1e-3
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("name", ["base", "tied", "yarn", "attention_bias", "raw_topk_weights", "mlp_only_layers"])
@torch.no_grad()
def test_mlx_lm_loads_it(tmp_path, monkeypatch, name):
    """Catches a config key or a tensor that mlx-lm reads differently (it knows no layer_types and no dense model)."""
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")  # compiling needs a C++ compiler
    mx, utils = pytest.importorskip("mlx.core"), pytest.importorskip("mlx_lm.utils")
    model, ids = random_model(torch.float32, **VARIANTS[name]), tokens(2, 50)
    model.save_pretrained(tmp_path, max_shard_size=60_000)
    theirs, _ = utils.load_model(tmp_path)
    logits, expected = torch.tensor(theirs(mx.array(ids.numpy())).tolist()), model(ids).logits
    assert (logits - expected).abs().max() / expected.std() < 1e-3


@torch.no_grad()
def test_what_transformers_saves_is_read(tmp_path):
    """Catches its config dialect, its shards, or its names."""
    source = tmp_path / "ours"
    random_model(torch.float32).save_pretrained(source)
    theirs = TheirModel.from_pretrained(source)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    ours = Qwen3NextForCausalLM.from_pretrained(tmp_path / "theirs")
    ids = tokens(1, 50)
    assert (theirs(ids).logits - ours(ids).logits).abs().max() / ours(ids).logits.std() < 1e-3


@pytest.mark.parametrize("size", [None, 0, -1, float("nan"), "abc", "", "0GB", "-1GB", "5GiB", b"5GB"])
def test_sizes_that_are_none(tmp_path, size):
    """Catches a file for each of 75,000 tensors, or one for all, where the size of a shard was mistyped."""
    with pytest.raises(ValueError, match=f"^max_shard_size is {re.escape(repr(size))}, expected bytes"):
        random_model().save_pretrained(tmp_path / "new", max_shard_size=size)
    assert not (tmp_path / "new").exists()


def test_a_second_save_replaces_the_first(tmp_path):
    """Catches old shards or an old index that are read in place of the new weights."""
    random_model(seed=0).save_pretrained(tmp_path, max_shard_size="60KB")
    model = random_model(seed=1)
    model.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors*"))) == 1
    again = Qwen3NextForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_failed_save_leaves_the_old_files(tmp_path, monkeypatch):
    """Catches a folder that is half old and half new after a full disk."""
    random_model(seed=0).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", fail)
    with pytest.raises(OSError, match="No space left"):
        random_model(seed=1).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_tensors_are_views_of_the_file(checkpoint):
    """Catches a loader that copies, and a mapping through which training would write to the checkpoint."""
    file = checkpoint / "model.safetensors"
    before = file.read_bytes()
    tensors = read_safetensors(file)
    storages = {t.untyped_storage().data_ptr() - t.storage_offset() * t.element_size() for t in tensors.values()}
    span = max(t.data_ptr() + t.nbytes for t in tensors.values()) - min(t.data_ptr() for t in tensors.values())
    assert span < len(before), "the tensors do not lie in one mapping"
    assert storages
    model = Qwen3NextForCausalLM.from_pretrained(checkpoint)
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert file.read_bytes() == before


@pytest.mark.parametrize("dtype", ["float32", "float64", torch.float16, "auto"])
def test_dtypes(checkpoint, dtype):
    """Catches a dtype that is ignored, or only partly applied."""
    model = Qwen3NextForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    expected = {"float32": torch.float32, "float64": torch.float64, "auto": torch.bfloat16}.get(dtype, dtype)
    assert {p.dtype for p in model.parameters()} == {expected}
    assert model.dtype == expected
    assert model(tokens(1, 5)).logits.dtype == expected


def test_read_safetensors_agrees_with_the_library(tmp_path):
    """Catches wrong offsets, dtypes or shapes, scalars and empty tensors."""
    tensors = {
        "a": torch.randn(3, 4).to(torch.bfloat16),
        "b": torch.randn(5, dtype=torch.float64),
        "c": torch.zeros(0, 7),
        "d": torch.tensor(2.5, dtype=torch.float16),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_safetensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in load_file(tmp_path / "x.safetensors").items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def edit_tensors(folder, change):
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as source:
        tensors = {key: source.get_tensor(key) for key in source.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, file)


@pytest.fixture
def folder(tmp_path):
    random_model(torch.float32).save_pretrained(tmp_path)
    return tmp_path


def test_missing_unexpected_and_misshapen_tensors(folder):
    """Catches a checkpoint that loads in part, as strict=False does."""

    def change(tensors):
        del tensors["model.norm.weight"]
        for e in range(8):
            for kind in ("gate_proj", "up_proj"):
                del tensors[f"model.layers.1.mlp.experts.{e}.{kind}.weight"]
        tensors["model.layers.9.extra"] = torch.zeros(1)
        tensors["model.layers.0.mlp.gate.weight"] = torch.zeros(9, 48)

    edit_tensors(folder, change)
    with pytest.raises(ValueError) as error:
        Qwen3NextForCausalLM.from_pretrained(folder)
    message = str(error.value)
    assert "missing: " in message
    assert "(17 in all)" in message
    assert message.count("experts.") == 10  # the first ten names
    assert "unexpected: model.layers.9.extra (1 in all)" in message
    assert "model.layers.0.mlp.gate.weight (9, 48) instead of (8, 48)" in message


def test_an_incomplete_mtp_layer_is_refused(folder):
    """Catches drafts from a layer that was loaded in part."""
    edit_tensors(folder, lambda tensors: tensors.update({"mtp.fc.weight": torch.zeros(48, 96)}))
    with pytest.raises(ValueError, match=r"missing: mtp\.layers\.0\."):
        Qwen3NextForCausalLM.from_pretrained(folder)


def rewrite_header(file, change):
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_files_that_lie(folder):
    """Catches an interpreter that crashes, or tensors that are read from the wrong place."""
    file = folder / "model.safetensors"
    good = file.read_bytes()

    def refused(match, error=ValueError):
        with pytest.raises(error, match=match):
            Qwen3NextForCausalLM.from_pretrained(folder)

    file.write_bytes(good[:-100])
    refused("model.safetensors: not a whole safetensors file .*not fully covered")
    file.write_bytes(good + b"\0")
    refused("model.safetensors: not a whole safetensors file .*not fully covered")
    file.write_bytes(b"")
    refused("not a whole safetensors file")
    file.write_bytes(struct.pack("<Q", 2**62) + good[8:])
    refused("model.safetensors: not a whole safetensors file .*header")
    file.write_bytes(good[:8] + b"\xff" * 20 + good[28:])
    refused("not a whole safetensors file")
    lies = [("data_offsets", [0, 4]), ("data_offsets", [0]), ("data_offsets", ["a", "b"]), ("data_offsets", [0.5, 4])]
    lies += [("shape", [3, 3]), ("shape", 3), ("shape", ["a"]), ("dtype", "I8"), ("dtype", ["F32"])]
    for field, value in lies:
        file.write_bytes(good)
        rewrite_header(file, lambda h, field=field, value=value: h["model.norm.weight"].update({field: value}))
        refused("model.safetensors: .*(model.norm.weight|not a whole safetensors file)")
    file.write_bytes(good)
    rewrite_header(file, lambda h: h["model.norm.weight"].pop("shape"))
    refused("not a whole safetensors file")
    file.unlink()
    refused("model.safetensors", FileNotFoundError)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}')
    refused("b.safetensors", FileNotFoundError)
    (folder / "config.json").write_text("{")
    refused("config.json: not JSON")
    (folder / "config.json").unlink()
    refused("config.json: no such file", FileNotFoundError)


def test_load_state_dict_knows_the_experts():
    """Catches the experts' dotted names, which nn.Module takes for unexpected keys."""
    model, other = random_model(seed=0), random_model(seed=1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens(1, 9)).logits, other(tokens(1, 9)).logits)
    state = {**model.state_dict(), "model.layers.0.mlp.experts.99.up_proj.weight": torch.zeros(1)}
    with pytest.raises(RuntimeError, match="experts.99.up_proj"):
        other.load_state_dict(state)
    state = {key: value for key, value in model.state_dict().items() if "experts.3.up_proj" not in key}
    with pytest.raises(RuntimeError, match=r"Missing key.*experts.3.up_proj"):
        other.load_state_dict(state)


def test_new_models_start_as_gated_deltanet_did():
    """Catches transformers' dt_bias = 1, with which the memory is wiped at every token."""
    torch.manual_seed(0)
    model = Qwen3NextForCausalLM(Qwen3NextConfig(**{**random_model().config.to_dict(), "linear_num_value_heads": 600}))
    layer = model.model.layers[0].linear_attn
    dt, a = torch.nn.functional.softplus(layer.dt_bias), layer.A_log.exp()
    assert 0.001 <= dt.min() < 0.002
    assert 0.05 < dt.max() <= 0.1 + 1e-6
    assert 0.005 < dt.median() < 0.02  # log-uniform
    assert 1 <= a.min() < 2
    assert 15 < a.max() <= 16
    assert layer.norm.weight.eq(1).all()
    assert model.model.norm.weight.eq(0).all()
    assert 0.019 < model.lm_head.weight.std() < 0.021
