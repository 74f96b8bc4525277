"""Claim: the PyTorch model and an independent NumPy one, token by token in float64, compute the same numbers."""

import ast
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import BASE, ROOT, VARIANTS, YARN, random_model, tokens
from safetensors.torch import load_file, save_file
from transformers import Qwen3NextForCausalLM as TheirModel

import qwen3_next as q
import reference_recurrent as reference
from reference_recurrent import Reference

LIMIT = 1e-9  # standard deviations of the logits; two right float64 programs differ by about 1e-13


def difference(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float((ours - torch.from_numpy(theirs)).abs().max() / theirs.std())


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, tmp_path_factory):
    """A random model in float64, and the reference that reads it from its folder in shards."""
    folder, model = tmp_path_factory.mktemp(request.param), random_model(**VARIANTS[request.param])
    model.save_pretrained(folder, max_shard_size="200KB")
    return model, Reference.from_pretrained(folder)


@torch.no_grad()
def test_every_variant(variant):
    """Catches any wrong term, and anything that drops to float32: 150 tokens are three chunks."""
    model, arbiter = variant
    ids = tokens(1, 150)
    expected = arbiter.logits(ids[0].tolist())
    assert expected.std() > 0.5
    assert difference(model(ids).logits[0], expected) < LIMIT


@torch.no_grad()
def test_every_variant_padded_and_cached(variant):
    """Catches padding or a cache that is right in one kind of layer only: both sides padded, in pieces, then on."""
    model, arbiter = variant
    rows, width = [(0, 9), (4, 20), (7, 17)], 24
    ids, mask = tokens(3, width), torch.zeros(3, width, dtype=torch.long)
    for row, (start, length) in enumerate(rows):
        mask[row, start : start + length] = 1
    cache, more = model.make_cache(3), tokens(3, 5, seed=1)
    spans = [slice(0, 6), slice(6, 7), slice(7, width)]
    logits = [model(ids[:, s], attention_mask=mask[:, s], past_key_values=cache).logits for s in spans]
    logits += [model(piece, past_key_values=cache).logits for piece in more.split([3, 1, 1], dim=1)]
    logits = torch.cat(logits, dim=1)
    for row, (start, length) in enumerate(rows):
        alone = [*ids[row, start : start + length].tolist(), *more[row].tolist()]
        found = torch.cat([logits[row, start : start + length], logits[row, width:]])
        assert difference(found, arbiter.logits(alone)) < LIMIT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@torch.no_grad()
def test_other_dtypes_on_disk(tmp_path, dtype):
    """Catches weights widened wrongly: both sides compute in float64 from the same rounded numbers."""
    random_model(dtype).save_pretrained(tmp_path)
    ids, model = tokens(1, 40), q.Qwen3NextForCausalLM.from_pretrained(tmp_path, dtype="float64")
    assert difference(model(ids).logits[0], Reference.from_pretrained(tmp_path).logits(ids[0].tolist())) < LIMIT


@pytest.mark.parametrize("fields", [{}, {"rope_scaling": YARN, "partial_rotary_factor": 0.5}])
@torch.no_grad()
def test_what_transformers_saves(tmp_path, fields):
    """Catches its config dialect read differently by our two readers."""
    random_model(torch.float32, **fields).save_pretrained(tmp_path / "ours")
    TheirModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert "rope_parameters" in json.loads((tmp_path / "theirs" / "config.json").read_text())
    ids = tokens(1, 40)[0].tolist()
    arbiters = [Reference.from_pretrained(tmp_path / name) for name in ("ours", "theirs")]
    assert np.array_equal(*(arbiter.logits(ids) for arbiter in arbiters))


def test_fused_experts(tmp_path):
    """Catches gate and up rows swapped where a file carries an MoE layer's experts as two tensors."""
    random_model(torch.float32).save_pretrained(tmp_path)
    ids = tokens(1, 20)[0].tolist()
    expected = Reference.from_pretrained(tmp_path).logits(ids)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in range(BASE["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.mlp.experts."
        gate, up, down = (
            torch.stack([tensors.pop(f"{prefix}{e}.{kind}_proj.weight") for e in range(BASE["num_experts"])])
            for kind in ("gate", "up", "down")
        )
        tensors[prefix + "gate_up_proj"], tensors[prefix + "down_proj"] = torch.cat([gate, up], dim=1), down
    save_file(tensors, tmp_path / "model.safetensors")
    assert np.array_equal(Reference.from_pretrained(tmp_path).logits(ids), expected)


GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def assert_same(ours: torch.Tensor, theirs: np.ndarray, atol: float = 1e-13):
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=atol)


def test_norms():
    """Catches w for 1 + w, eps inside or outside the root, and the gate applied before the norm."""
    x, z, w = normal(5, 12), normal(5, 12), normal(12)
    for kind, arguments in ((q.RMSNorm, (x,)), (q.GatedRMSNorm, (x, z))):
        norm = kind(12, 1e-2).double()
        norm.weight.data = w
        expected = reference.rms_norm if kind is q.RMSNorm else reference.gated_rms_norm
        assert_same(norm(*arguments).detach(), expected(*(y.numpy() for y in (*arguments, w)), 1e-2))
    assert_same(q.l2_normalise(x), reference.l2_norm(x.numpy()))


@pytest.mark.parametrize("yarn", [None, YARN, {**YARN, "attention_factor": 1.3, "truncate": False, "beta_fast": 8}])
def test_rope(yarn):
    """Catches pairs (2i, 2i + 1) for (i, i + R/2), frequencies over head_dim for R, and YaRN's ramp the wrong way."""
    config = q.Qwen3NextConfig(**{**BASE, "rope_scaling": yarn, "head_dim": 32, "partial_rotary_factor": 0.5})
    inv_freq, factor = q.rope_frequencies(config)
    expected = reference.Config(config.to_dict())
    assert_same(inv_freq, expected.inv_freq, 1e-15)
    assert factor == pytest.approx(expected.rope_scale, rel=1e-15)
    x = normal(1, 40, 3, 32)
    angle = torch.arange(40.0, dtype=torch.float64)[None, :, None, None] * inv_freq
    turned = q.apply_rope(x, angle.cos() * factor, angle.sin() * factor)
    rows = [reference.rope(row, t, expected.inv_freq, expected.rope_scale) for t, row in enumerate(x[0].numpy())]
    assert_same(turned[0], np.stack(rows))


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_convolution(kernel):
    """Catches taps in reverse, a window after the activation, and a window of the wrong tokens."""
    x, weight, window = normal(1, 9, 6), normal(6, 1, kernel), normal(1, 6, kernel - 1)
    conv = q.CausalConv(6, 6, kernel, groups=6, bias=False)
    conv.weight = torch.nn.Parameter(weight, requires_grad=False)
    y, new = conv(x, window)
    expected, state = reference.causal_conv(x[0].numpy(), weight[:, 0].numpy(), window[0].T.numpy())
    assert_same(F.silu(y)[0], expected)
    assert_same(new[0].T, state)


@pytest.mark.parametrize("normalise", [True, False])
def test_router(normalise):
    """Catches the choice before the softmax, or weights normalised when they should not be."""
    config = q.Qwen3NextConfig(**{**BASE, "norm_topk_prob": normalise})
    block, x = q.SparseMoeBlock(config).double(), normal(1, 30, 48)
    for p in block.parameters():
        p.data = normal(*p.shape) / 7
    p = reference.softmax(x[0].numpy() @ block.gate.weight.detach().numpy().T)
    chosen = reference.router(p, 3)
    weights = reference.expert_weights(p, chosen, normalise)
    expected = np.zeros((30, 48))
    for e in range(8):
        gate, up, down = (block.experts[e].get_submodule(f"{kind}_proj").weight for kind in ("gate", "up", "down"))
        out = reference.swiglu(x[0].numpy(), *(w.detach().numpy() for w in (gate, up, down)))
        expected += (weights * (chosen == e)).sum(1, keepdims=True) * out
    shared = block.shared_expert
    matrices = [m.weight.detach().numpy() for m in (shared.gate_proj, shared.up_proj, shared.down_proj)]
    gate = reference.sigmoid(x[0].numpy() @ block.shared_expert_gate.weight.detach().numpy().T)
    assert_same(block(x)[0][0].detach(), expected + gate * reference.swiglu(x[0].numpy(), *matrices))


def test_command_line(tmp_path):
    """Catches log-probabilities that are not those of the model, and a traceback for a bad folder, token or option."""
    random_model(torch.bfloat16).save_pretrained(tmp_path)
    command = [sys.executable, str(ROOT / "reference_recurrent.py"), "--tokens", "5,17,3"]
    result = subprocess.run([*command, "--model", str(tmp_path), "--top", "3"], capture_output=True, text=True)
    model = q.Qwen3NextForCausalLM.from_pretrained(tmp_path, dtype="float64")
    with torch.no_grad():
        top = model(torch.tensor([[5, 17, 3]])).logits[0, -1].log_softmax(-1).topk(3)
    found = [re.fullmatch(r"(\d+) (-[\d.]+)", line).groups() for line in result.stdout.splitlines()]
    assert [int(token) for token, _ in found] == top.indices.tolist()
    assert [float(p) for _, p in found] == pytest.approx(top.values.tolist(), abs=1e-6)
    for arguments, named in (
        (["--model", str(tmp_path), "--tokens", "5,97"], "vocab_size"),
        (["--model", str(tmp_path / "none")], "config.json"),
    ):
        result = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
        assert named in result.stderr
    for arguments, named in (
        ([], "--tokens"),
        (["--tokens", "5,x"], "5,x"),
        (["--tokens", "5", "--top", "0"], "--top"),
    ):
        result = subprocess.run([*command[:2], "--model", str(tmp_path), *arguments], capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (2, "")
        assert named in result.stderr


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_file_that_ends_early(tmp_path, cut):
    """Catches a truncated download that is computed with, or that ends in a traceback."""
    random_model(torch.bfloat16).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file"):
        Reference.from_pretrained(tmp_path)


def test_an_index_that_promises_too_much(tmp_path):
    """Catches a missing tensor, or a missing file, that is reported without its name."""
    random_model(torch.float32).save_pretrained(tmp_path, max_shard_size="50KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    files = sorted(set(index["weight_map"].values()))
    name = "model.embed_tokens.weight"
    index["weight_map"][name] = next(file for file in files if file != index["weight_map"][name])
    path.write_text(json.dumps(index))
    with pytest.raises(KeyError, match=f"{index['weight_map'][name]} has no tensor {name}"):
        Reference.from_pretrained(tmp_path).logits([1, 2])
    (tmp_path / index["weight_map"][name]).unlink()
    with pytest.raises(FileNotFoundError, match=index["weight_map"][name]):
        Reference.from_pretrained(tmp_path).logits([1, 2])


ODD = [None, True, 0, -1, 3, 0.5, float("inf"), float("nan"), 10**30, 99_999_998, "a", "", [], [0], [[]], {}, {"a": 1}]
FIELDS = BASE | {
    "rms_norm_eps": 1e-6,
    "layer_types": ["linear_attention"] * 4 + ["full_attention"],
    "mlp_only_layers": [],
}
FIELDS |= {"norm_topk_prob": True, "tie_word_embeddings": False, "decoder_sparse_step": 1, "rope_scaling": YARN}
FIELDS |= {"model_type": "qwen3_next", "hidden_act": "silu", "rope_parameters": None}


@pytest.mark.parametrize(
    "key", [*FIELDS, *(f"rope_scaling.{key}" for key in (*YARN, "beta_fast", "truncate", "mscale"))]
)
def test_every_odd_value_of_the_config(key):
    """Catches a TypeError, a ZeroDivisionError or gigabytes for a mistyped value, and a message without its key."""
    for value in ODD:
        nested, _, name = key.rpartition(".")
        fields = {**FIELDS, nested: {**YARN, name: value}} if nested else {**FIELDS, key: value}
        try:
            config = reference.Config(fields)
        except ValueError as error:
            assert str(error).startswith("config.json: "), error
            assert len(str(error).splitlines()) == 1
            assert len(str(error)) < 300
        else:
            assert len(config.inv_freq) < 10**6


def test_an_index_that_leads_elsewhere(tmp_path):
    """Catches an index that is no index, or names a file of another folder."""
    random_model().save_pretrained(tmp_path / "model", max_shard_size="200KB")
    index = tmp_path / "model" / "model.safetensors.index.json"
    for content in ({}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../b.safetensors"}}):
        index.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="index.json: no weight_map"):
            Reference.from_pretrained(tmp_path / "model")


def test_it_shares_nothing_with_what_it_judges():
    """Catches a reference that imports torch or any other file of the project, even inside a function."""
    imported = set()
    for node in ast.walk(ast.parse((ROOT / "reference_recurrent.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy"}
    check = "import sys, reference_recurrent; assert not {'torch', 'qwen3_next'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
