"""Claim: a folder of another kind is named as what it is, and one that differs only in names or in extras is read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import SMALL, fuse_experts, to_fp8, write
from conftest import ROOT, random_model
from safetensors.torch import load_file, save_file

from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer

FILE = "model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    model = random_model(torch.float32, **SMALL, mtp_num_hidden_layers=1, intermediate_size=4)
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original[0], tmp_path / "model"))


def change_tensors(folder: Path, change):
    """New names or values of all tensors; change(name, tensor) gives both."""
    tensors = dict(change(name, t) for name, t in load_file(folder / FILE).items())
    (folder / FILE).unlink()
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / FILE)


def change_config(folder: Path, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def is_same(folder: Path, model) -> bool:
    found = dict(Qwen3NextForCausalLM.from_pretrained(folder).named_parameters())
    return all(torch.equal(found[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("prefix", ["base_model.model.", "model.language_model.", "language_model.", ""])
def test_prefixes_of_other_tools(original, folder, prefix):
    """Catches a fine-tuned checkpoint that is refused for a prefix that all of its tensors have."""

    change_tensors(folder, lambda name, t: (prefix + name, t))
    assert is_same(folder, original[1])


def test_a_prefix_of_some(folder):
    """Catches a prefix that is stripped although only some tensors have it, which may then replace others."""
    change_tensors(folder, lambda name, t: (f"base_model.model.{name}" if "layers.1" in name else name, t))
    with pytest.raises(ValueError, match="unexpected: base_model.model.model.layers.1"):
        Qwen3NextForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("indexed", [False, True])
def test_drafts_in_a_file_of_their_own(original, folder, indexed):
    """Catches mtp.safetensors beside the weights that is passed over, and then no drafts, or read twice."""
    tensors = load_file(folder / FILE)
    mtp = {name: t for name, t in tensors.items() if name.startswith("mtp.")}
    (folder / FILE).unlink()
    main = "weights.safetensors" if indexed else FILE
    save_file({name: t for name, t in tensors.items() if name not in mtp}, folder / main)
    save_file(mtp, folder / "mtp.safetensors")
    if indexed:
        places = {name: "mtp.safetensors" if name in mtp else main for name in tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert is_same(folder, original[1])
    original[1].save_pretrained(folder)
    assert is_same(folder, original[1])
    assert not (folder / "mtp.safetensors").exists()


@pytest.mark.parametrize("scale", ["input_scale", "activation_scale"])
def test_scales_of_activations(original, folder, scale):
    """Catches an FP8 checkpoint that is refused for scales that only quantised activations need."""
    config = json.loads((folder / "config.json").read_text())
    eight, _ = to_fp8(load_file(folder / FILE))
    more = {name.replace("weight_scale_inv", scale): torch.ones(1) for name in eight if name.endswith("_scale_inv")}
    for place, tensors in (("plain", eight), ("scaled", {**eight, **more})):
        write(folder.parent / place, config, tensors, fp8=True)
    models = [Qwen3NextForCausalLM.from_pretrained(folder.parent / place) for place in ("plain", "scaled")]
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(models[0](ids).logits, models[1](ids).logits)


def an_adapter(folder: Path):
    (folder / FILE).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "config.json").unlink()


def gguf(folder: Path):
    (folder / FILE).rename(folder / "model-Q4_K_M.gguf")


def mlx_in_bfloat16(folder: Path):
    change_tensors(folder, lambda name, t: (name, t.movedim(1, 2) if "conv1d" in name else t))


def mlx_experts(folder: Path):
    tensors = fuse_experts(load_file(folder / FILE))
    (folder / FILE).unlink()
    names = {name: name.replace(".experts.", ".switch_mlp.") for name in tensors}
    save_file({names[name]: t.contiguous() for name, t in tensors.items()}, folder / FILE)


def a_shard(folder: Path):
    (folder / FILE).rename(folder / "model-00003-of-00041.safetensors")


def quantised(method: str):
    return lambda folder: change_config(folder, quantization_config={"quant_method": method, "bits": 4})


KINDS = {
    "an adapter": (an_adapter, "an adapter, such as LoRA's"),
    "GGUF": (gguf, "a GGUF file; llama.cpp"),
    "MLX": (mlx_in_bfloat16, "converted by MLX"),
    "MLX's experts": (mlx_experts, "converted by MLX"),
    "MLX, quantised": (lambda f: change_config(f, quantization={"group_size": 64, "bits": 4}), "quantised by MLX"),
    "a shard": (a_shard, "1 of 41 shards, without model.safetensors.index.json"),
    "GPTQ": (quantised("gptq"), "config.json: quantization_config's quant_method is 'gptq'"),
    "AWQ": (quantised("awq"), "quant_method is 'awq'"),
    "bitsandbytes": (quantised("bitsandbytes"), "quant_method is 'bitsandbytes'"),
    "qwen4_exp": (lambda f: change_config(f, model_type="qwen4_exp"), "'qwen4_exp'; qwen3_next and qwen3_5 are read"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_named(folder, kind):
    """Catches "no such file" or a list of tensors in place of what the folder is and what to do."""
    change, named = KINDS[kind]
    change(folder)
    with pytest.raises(ValueError) as error:
        Qwen3NextForCausalLM.from_pretrained(folder)
    assert named in str(error.value)
    assert str(folder) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_tokenizer_of_two_files(tmp_path):
    """Catches "no such file" for the tokenizer of a checkpoint from before tokenizer.json."""
    shutil.copy(ROOT / "tiny" / "tokenizer_config.json", tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="has vocab.json and merges.txt, but no tokenizer.json"):
        Qwen3NextTokenizer.from_pretrained(tmp_path)
