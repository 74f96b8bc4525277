"""Claim: however a product is made, by dtype, number of rows and processor, it is the same product; and compiled mixers
write the same text."""

import copy
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, VARIANTS, random_model, tokens
from test_against_transformers import pair

import qwen3_next
from qwen3_next import Qwen3NextForCausalLM, linear
from qwen3_next_checkpoints import compiling

HALF = [torch.bfloat16, torch.float16]
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


@pytest.fixture(params=["units", "no units"])
def processor(request, monkeypatch) -> bool:
    """A processor with units for half precision, or one without: whether it has them."""
    monkeypatch.setattr(qwen3_next, "SLOW_HALF", [] if request.param == "units" else HALF)
    monkeypatch.setattr(qwen3_next, "TILES", False)
    return request.param == "units"


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("W_shape", [(5, 7), (1, 40), (1030, 1024), (3000, 1024), (3, 2**20 + 8)])
@pytest.mark.parametrize("x_shape", [(), (1,), (5,), (2, 1), (2, 3), (1, 9), (0,)])
@torch.no_grad()
def test_a_product_is_rounded_once(processor, x_shape, W_shape, dtype):
    """Catches blocks that are left out, or joined in another order or along another axis; sums in half precision; and
    an axis of x that is lost."""
    gen = torch.Generator().manual_seed(len(x_shape))
    x = torch.randn(*x_shape, W_shape[1], generator=gen).to(dtype)
    W = (torch.randn(W_shape, generator=gen) / W_shape[1] ** 0.5).to(dtype)
    exact = x.double() @ W.double().t()
    y = linear(x, W)
    assert (y.dtype, y.shape) == (dtype, exact.shape)
    # half a unit in the last place, and the float32 sum of terms that cancel
    allowed = exact.abs() * torch.finfo(dtype).eps / 2 * 1.01 + 2e-5
    assert ((y.double() - exact).abs() <= allowed).all()


def way(monkeypatch, *arguments) -> str:
    """Which of its ways `linear` takes."""
    taken = []
    for name in ("widened", "single"):
        monkeypatch.setattr(qwen3_next, name, lambda x, W, name=name: taken.append(name))
    out = linear(*arguments)
    return taken[0] if taken else ("turned" if out.stride(-1) != 1 else "usual")


@pytest.mark.parametrize("rows, with_units, without", [(1, "single", "single"), (4, "usual", "usual")])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_few_rows(processor, monkeypatch, rows, with_units, without, dtype):
    """Catches a matrix that is widened for fewer rows than it takes to pay off."""
    x, W = torch.ones(rows, 8, dtype=dtype), torch.ones(16, 8, dtype=dtype)
    with torch.no_grad():
        assert way(monkeypatch, x, W) == (with_units if processor else without)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64], ids=str)
def test_five_rows(processor, monkeypatch, dtype):
    """Catches what is widened although it is float32, or has units, a bias or a gradient."""
    x, W = torch.ones(5, 8, dtype=dtype), torch.ones(16, 8, dtype=dtype)
    with torch.no_grad():
        slow = not processor and dtype in HALF
        assert way(monkeypatch, x, W) == way(monkeypatch, x[None], W) == ("widened" if slow else "usual")
        assert way(monkeypatch, x, W, W[:, 0]) == "usual"
    assert way(monkeypatch, x, W) == "usual"


@torch.no_grad()
def test_amx(monkeypatch):
    """Catches the way for tiles taken without them, for many rows, or instead of a single row's."""
    monkeypatch.setattr(qwen3_next, "SLOW_HALF", [])
    W = torch.ones(16, 8, dtype=torch.bfloat16)
    for amx in (True, False):
        monkeypatch.setattr(qwen3_next, "TILES", amx)
        ways = [way(monkeypatch, torch.ones(rows, 8, dtype=torch.bfloat16), W) for rows in (1, 7, 8)]
        assert ways == ["single", "turned" if amx else "usual", "usual"]


def test_the_emulated_kind():
    """Catches a processor that is taken for one with units, and a model that differs from transformers' on it: the
    variables make this one do without its wide registers, and the tests of test_against_transformers run in it."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("no x86 processor with AVX2")
    code = "import qwen3_next, torch; print(qwen3_next.SLOW_HALF, torch.backends.cpu.get_cpu_capability())"
    options = {"capture_output": True, "text": True, "cwd": ROOT, "env": {**os.environ, **AVX2}}
    result = subprocess.run([sys.executable, "-c", code], **options)
    assert result.stdout == "[torch.bfloat16, torch.float16] AVX2\n", result.stderr
    names = "test_logits[base] or test_logits[attention_bias] or test_cached_logits or no_further or greedy"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_against_transformers.py"]
    result = subprocess.run([*command, "-k", re.sub(r"\[(\w+)\]", r" and \1", names)], **options)
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout and "skipped" not in result.stdout


@pytest.mark.parametrize("name", ["base", "attention_bias", "all_dense", "kernel_2", "one_key_head"])
@torch.no_grad()
def test_bfloat16_without_units(processor, name):
    """Catches a layout that a later step reads wrongly, and sums that lose more than transformers' do."""
    ids, squares = tokens(2, 60), [0.0, 0.0]
    for seed in range(6):
        models = pair(seed=seed, **VARIANTS[name])
        exact = models[0](ids).logits
        for i, model in enumerate(models):
            squares[i] += (model.to(torch.bfloat16)(ids).logits.float() - exact).square().mean().item()
    ours, theirs = ((square / 6) ** 0.5 for square in squares)
    assert ours <= 1.1 * theirs, f"rms {ours:.4f} against {theirs:.4f}"


@torch.no_grad()
def test_widened_layers_agree_with_their_cache(processor):
    """Catches a window or state that a prompt, computed in float32, leaves to the tokens after it otherwise."""
    exact, ids = random_model(torch.float64), tokens(2, 60)
    model = copy.deepcopy(exact).to(torch.bfloat16)
    caches = exact.make_cache(2), model.make_cache(2)
    errors = []
    for piece in ids.split([40, 1, 1, 7, 11], dim=1):
        right, found = (m(piece, past_key_values=c).logits.double() for m, c in zip((exact, model), caches))
        errors.append(((found - right).square().mean() / right.square().mean()).sqrt().item())
    assert max(errors) < 2 * errors[0] < 0.3, errors


def test_gradients_do_not_depend_on_the_units(monkeypatch):
    """Catches widened matrices in training, where autograd would keep all of them."""
    ids, grads = tokens(2, 20), []
    for slow in ([], HALF):
        monkeypatch.setattr(qwen3_next, "SLOW_HALF", slow)
        monkeypatch.setattr(qwen3_next, "widened", lambda x, W: pytest.fail("widened in training"))
        model = random_model(torch.float16).float().to(torch.bfloat16).train()
        loss = model(ids, labels=ids).loss
        loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():  # the convolution is in float32 for the second: rounded otherwise
        error = (grad - grads[1][name]).float().norm() / grad.float().norm().clamp(min=1e-3)
        assert error < 0.1, f"{name}: {error:.3f}"


# ---- Compiled mixers ------------------------------------------------------------------------------------------------


@pytest.fixture
def compiled_calls(monkeypatch) -> list[int]:
    """Compiles with Dynamo alone, without a C++ compiler; the list gets the number of tokens of each compiled call."""
    calls = []

    def compile_(module: torch.nn.Module):
        inner = torch.compile(module._call_impl, backend="eager")
        module._compiled_call_impl = lambda x, *others: (calls.append(x.shape[1]), inner(x, *others))[1]

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    monkeypatch.setattr(torch, "compile", lambda f, torch_compile=torch.compile, **o: torch_compile(f, backend="eager"))
    return calls


@pytest.mark.parametrize("drafts", [0, 2])
def test_compiled_mixers_write_the_same_text(checkpoint, compiled_calls, drafts):
    """Catches a prompt that is compiled, tokens that are not, and a cache that a compiled mixer does not fill."""
    load = Qwen3NextForCausalLM.from_pretrained
    plain, model = (load(checkpoint, "float64", compile=compile_) for compile_ in (False, True))
    ids = tokens(1, 12)
    options = {"max_new_tokens": 12, "eos_token_id": None, "num_draft_tokens": drafts}
    assert model.generate(ids, **options).tolist() == plain.generate(ids, **options).tolist()
    assert set(compiled_calls) == {1}
    layers = model.config.num_hidden_layers
    assert drafts or len(compiled_calls) == 11 * (layers + 0), "each layer once for each token after the prompt's"


def test_a_copy_of_a_compiled_model_is_its_own(checkpoint, compiled_calls):
    """Catches a copy whose calls go to the mixers of the model that it was copied from."""
    model = Qwen3NextForCausalLM.from_pretrained(checkpoint, "float64", compile=True)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        assert twin(tokens(1, 1)).logits.abs().max() > 0.1


def test_by_the_compiler_itself(checkpoint):
    """Catches what Dynamo takes and PyTorch's code generator does not."""
    if not has_compiler():
        pytest.skip("no C++ compiler")
    load = Qwen3NextForCausalLM.from_pretrained
    plain, model = (load(checkpoint, "float64", compile=compile_) for compile_ in (False, True))
    options = {"max_new_tokens": 4, "eos_token_id": None}
    assert model.generate(tokens(1, 5), **options).tolist() == plain.generate(tokens(1, 5), **options).tolist()


def has_compiler() -> bool:
    command = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    try:
        return subprocess.run([command, "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def test_code_for_another_kind_is_not_taken(checkpoint, monkeypatch):
    """Catches numbers of code that was compiled for other registers: PyTorch's cache does not tell the kinds apart."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with pytest.raises(ValueError, match="compile: ATEN_CPU_CAPABILITY is 'avx2'.*expected TORCHINDUCTOR_CACHE_DIR"):
        Qwen3NextForCausalLM.from_pretrained(checkpoint, compile=True)


def test_without_a_compiler(checkpoint, monkeypatch):
    """Catches a traceback, or an answer that begins and then breaks off, where PyTorch finds no C++ compiler."""
    arguments = ("--model", str(checkpoint), "--prompt", "Hello", "--max-new-tokens", "3", "--compile")
    command = [sys.executable, str(ROOT / "qwen3_next.py"), *arguments]
    env = {**os.environ, "CXX": "/no/such/compiler", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 1
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not re.match(r"W\d{4} ", line)]  # PyTorch's own log
    assert len(lines) == 1
    line = lines[0]
    assert line.startswith("qwen3_next.py: compile: PyTorch can't compile on this machine: ")
    assert "compiler" in line.lower()


def test_the_option_reaches_the_model(checkpoint, monkeypatch, capsys):
    """Catches --compile that is parsed and dropped."""
    asked = []
    monkeypatch.setattr(compiling, "compile_mixers", lambda model, kind: asked.append((model, kind)))
    options = ["--model", str(checkpoint), "--prompt", "Hello", "--max-new-tokens", "1"]
    assert qwen3_next.main(options) == qwen3_next.main([*options, "--compile"]) == 0
    assert [kind for _, kind in asked] == [qwen3_next.DecoderLayer]
