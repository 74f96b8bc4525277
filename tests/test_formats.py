"""Claim: FP8 and fused checkpoints mean what they say, experts stay mapped, and each part goes to the right device."""

import mmap
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpoints import fuse_experts, in_fp8, to_fp8, write
from conftest import random_model, tokens
from torch.overrides import TorchFunctionMode

import qwen3_next
from qwen3_next import Experts, Qwen3NextForCausalLM
from qwen3_next_checkpoints import dispatch, large

FP8 = torch.float8_e4m3fn
# Every matrix that FP8 converts has several blocks of 128 x 128, with smaller ones at both edges.
SIZES = {
    "hidden_size": 160,
    "head_dim": 32,
    "linear_key_head_dim": 24,
    "linear_value_head_dim": 40,
    "moe_intermediate_size": 136,
    "shared_expert_intermediate_size": 200,
    "mtp_num_hidden_layers": 1,
}
SCALES = [torch.float32, torch.bfloat16]
# Where in memory a weight begins decides how a product of one row is summed: in standard deviations of the logits.
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.1}


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-3):
    """Equal but for the order of sums: in standard deviations of what is expected."""
    error = (found - expected).abs().max() / expected.std()
    assert error < tolerance, f"{error:.2g} standard deviations"


def uneven(model: Qwen3NextForCausalLM) -> Qwen3NextForCausalLM:
    """Gives each block of 128 x 128 another size, so that a scale on the wrong block shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if in_fp8(name):
                for rows in p.split(128):
                    for block in rows.split(128, dim=1):
                        block *= 2 ** (2 * torch.rand((), generator=generator) - 1)
    return model


def fp8_folder(folder, scales: torch.dtype = torch.float32, edit=None, **fields):
    """A random model as an FP8 checkpoint, and the same model dequantised in float32."""
    model = uneven(random_model(torch.float32, **{**SIZES, **fields}))
    eight, plain = to_fp8(dict(model.named_parameters()), scales)
    model.load_state_dict(plain)
    if edit:
        edit(eight)
    config = {**model.config.to_dict(), "torch_dtype": "float32"}
    write(folder, config, {name: tensor.detach() for name, tensor in eight.items()}, shards=3, fp8=True)
    return model


@pytest.mark.parametrize("scales", SCALES)
@torch.no_grad()
def test_fp8_is_the_dequantised_model(tmp_path, scales):
    """Catches scales that are inverted, transposed or on the wrong block, edges that are cut, and MTP left out."""
    plain, ids = fp8_folder(tmp_path, scales), tokens(2, 40)
    model = Qwen3NextForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    found, expected = (m(ids, output_mtp_logits=True) for m in (model, plain))
    same(found.logits, expected.logits)
    same(found.mtp_logits, expected.mtp_logits)
    cache = model.make_cache(2)
    steps = [model(part, past_key_values=cache).logits for part in (ids[:, :31], *ids[:, 31:].split(1, dim=1))]
    same(torch.cat(steps, dim=1), expected.logits)
    answers = [
        m.generate(ids[:1], max_new_tokens=20, num_draft_tokens=n) for m, n in ((plain, 0), (model, 0), (model, 2))
    ]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_experts_stay_in_8_bits(tmp_path, dtype):
    """Catches experts that take four times the memory, or a matrix left in 8 bits where nothing dequantises it."""
    fp8_folder(tmp_path)
    model = Qwen3NextForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    for name, p in model.named_parameters():
        assert p.dtype == (FP8 if ".experts." in name else getattr(torch, dtype)), name
    scales = dict(model.named_buffers())
    assert scales.keys() == {f"{name}_scale_inv" for name, _ in model.named_parameters() if ".experts." in name}
    assert {s.dtype for s in scales.values()} == {torch.float32}
    assert {name.removesuffix("_scale_inv") for name in scales} <= {*mapped(model, tmp_path)}


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_another_dtype_ends_fp8(tmp_path, scales, dtype):
    """Catches .double() or .to(bfloat16) that casts the 8 bits and forgets their scale, now or when it is saved."""
    plain, ids = fp8_folder(tmp_path / "8", scales).to(dtype), tokens(2, 40)
    model = Qwen3NextForCausalLM.from_pretrained(tmp_path / "8").to(dtype)
    weights, expected = dict(plain.named_parameters()), plain(ids).logits
    assert {p.dtype for p in model.parameters()} == {dtype}
    model.save_pretrained(tmp_path / "saved")
    for found in (model, Qwen3NextForCausalLM.from_pretrained(tmp_path / "saved")):
        assert all(torch.equal(p, weights[name]) for name, p in found.named_parameters())
        same(found(ids).logits, expected, ROUNDING[dtype])
    assert not dict(model.named_buffers())


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_saved_dequantised(tmp_path, dtype, scales):
    """Catches a saved folder that lacks the scales, or names FP8 in its config."""
    fp8_folder(tmp_path / "8", scales)
    model = Qwen3NextForCausalLM.from_pretrained(tmp_path / "8", dtype=dtype)
    model.save_pretrained(tmp_path / "saved", max_shard_size="500KB")
    again, ids = Qwen3NextForCausalLM.from_pretrained(tmp_path / "saved"), tokens(2, 40)
    assert {p.dtype for p in again.parameters()} == {getattr(torch, dtype)}
    assert "quantization_config" not in (tmp_path / "saved" / "config.json").read_text()
    assert torch.equal(again(ids).logits, model(ids).logits)


@torch.no_grad()
def test_saved_in_another_dtype(tmp_path):
    """Catches the old dtype left in config.json: transformers 5 calls it dtype, and before it was torch_dtype."""
    plain = random_model(torch.float32)
    tensors = {name: p.to(torch.bfloat16) for name, p in plain.named_parameters()}
    write(tmp_path / "16", {**plain.config.to_dict(), "dtype": "bfloat16"}, tensors)
    Qwen3NextForCausalLM.from_pretrained(tmp_path / "16", dtype="float32").save_pretrained(tmp_path / "32")
    assert Qwen3NextForCausalLM.from_pretrained(tmp_path / "32").dtype == torch.float32


PROJECTION = "model.layers.0.linear_attn.out_proj.weight"
EXPERT = "model.layers.2.mlp.experts.5.down_proj.weight"


@pytest.mark.parametrize("name", [PROJECTION, EXPERT])
def test_fp8_that_does_not_fit_is_refused(tmp_path, name):
    """Catches scales that are broadcast, or 8 bits that are taken for the weights themselves."""
    scale = f"{name}_scale_inv"

    def refused(edit, match: str):
        with pytest.raises(ValueError, match=match):
            fp8_folder(tmp_path, edit=edit)
            Qwen3NextForCausalLM.from_pretrained(tmp_path)

    for shape in ((1, 1), (2, 3), (4,)):
        refused(lambda t, shape=shape: t.update({scale: torch.ones(shape)}), re.escape(f"{scale} has shape"))
    refused(lambda t: t.pop(name), re.escape(scale))
    refused(lambda t: t.pop(scale), rf"without a weight_scale_inv: {re.escape(name)} \(1 in all\)")
    refused(lambda t: t.update({name: torch.ones(t[name].shape)}), re.escape(scale))
    refused(lambda t: t.update({"model.layers.0.mlp.gate.weight_scale_inv": torch.ones(1, 2)}), "mlp.gate.weight_scale")


def mapped(model, folder) -> list[str]:
    """The parameters whose memory lies in a mapping of one of the folder's checkpoint files."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("only Linux tells which files are mapped where")
    spans = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            if str(folder) in line and ".safetensors" in line:
                spans.append([int(end, 16) for end in line.split()[0].split("-")])
    inside = [(name, p.data_ptr()) for name, p in model.named_parameters()]
    return [name for name, place in inside if any(start <= place < end for start, end in spans)]


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("suffix", ["", ".weight"])
@torch.no_grad()
def test_fused_experts(tmp_path, suffix, shards):
    """Catches up taken for gate, experts that are mixed up or transposed, and fused experts that are copied."""
    plain = random_model(torch.float32, **SIZES)
    fused = fuse_experts({name: p.detach() for name, p in plain.named_parameters()}, suffix)
    write(tmp_path, plain.config.to_dict(), fused, shards)
    model, ids = Qwen3NextForCausalLM.from_pretrained(tmp_path), tokens(2, 40)
    found, expected = (m(ids, output_mtp_logits=True) for m in (model, plain))
    weights = dict(plain.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    same(found.logits, expected.logits, ROUNDING[torch.float32])
    same(found.mtp_logits, expected.mtp_logits, ROUNDING[torch.float32])
    assert len(mapped(model, tmp_path)) == len([*model.parameters()])


@pytest.mark.parametrize("suffix", ["", ".weight"])
@torch.no_grad()
def test_fused_experts_in_fp8(tmp_path, suffix):
    """Catches fused scales that are split elsewhere than the matrices they belong to."""
    sizes = {**SIZES, "moe_intermediate_size": 256}  # to be fused, gate has to end with a block
    model = uneven(random_model(torch.float32, **sizes))
    eight, plain = to_fp8({name: p.detach() for name, p in model.named_parameters()})
    model.load_state_dict(plain)
    write(tmp_path, {**model.config.to_dict(), "torch_dtype": "float32"}, fuse_experts(eight, suffix), fp8=True)
    found, ids = Qwen3NextForCausalLM.from_pretrained(tmp_path), tokens(2, 40)
    same(found(ids).logits, model(ids).logits)


def test_a_checkpoint_without_mtp(tmp_path):
    """Catches Qwen3-Coder-Next, which has no mtp.* tensors: refused, or drafting with weights that are not there."""
    model, ids = random_model(torch.float32, rope_theta=5000000), tokens(1, 20)
    config = {**model.config.to_dict(), "mtp_num_hidden_layers": None, "layer_types": None}
    write(tmp_path, config, {name: p.detach() for name, p in model.named_parameters()})
    again = Qwen3NextForCausalLM.from_pretrained(tmp_path)
    assert again.mtp is None
    same(again(ids).logits, model(ids).logits, ROUNDING[torch.float32])
    assert again.generate(ids, max_new_tokens=3).shape == (1, 23)
    with pytest.raises(ValueError, match=r"^num_draft_tokens .*no mtp\.\* tensors$"):
        again.generate(ids, max_new_tokens=3, num_draft_tokens=1)


GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def pretend_gpu(monkeypatch, free: float):
    """A GPU that "auto" finds, with this many bytes free."""
    monkeypatch.setattr(qwen3_next, "as_device", lambda device_map: GPU if device_map == "auto" else device_map)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.parametrize(
    ("free", "expected", "told"),
    [
        (10.01e9, [GPU, GPU], ""),
        (
            9.99e9,
            [CPU, GPU],
            "room for 9.0 GB on cuda:0: 8.0 GB of routed experts stay on cpu, .* all else .1.0 GB. goes to cuda:0",
        ),
        (1.12e9, [CPU, GPU], "room for 1.0 GB on cuda:0: 8.0 GB of routed experts stay on cpu, .* goes to cuda:0"),
        (1.11e9, [CPU, CPU], "room for 1.0 GB on cuda:0: 8.0 GB of routed experts stay on cpu, .* goes to cpu"),
    ],
    ids=["all", "all but experts", "hardly all but experts", "nothing"],
)
def test_placement(monkeypatch, capsys, free, expected, told):
    """Catches a GPU that runs out of memory, one that is left idle, and 8 bits or the dtype asked for counted wrong."""
    sizes = {
        ("model.layers.0.mlp.experts.0.up_proj.weight", FP8): 4e9,  # kept as they are
        ("model.layers.0.mlp.experts.1.up_proj.weight", torch.float32): 2e9,  # cast to bfloat16: 4 GB
        ("model.layers.0.mlp.shared_expert.up_proj.weight", torch.bfloat16): 0.5e9,
    }
    tensors = {name: torch.empty(int(n), dtype=dtype, device="meta") for (name, dtype), n in sizes.items()}
    pretend_gpu(monkeypatch, free)
    options = (torch.nn.Module(), Experts, tensors, torch.bfloat16)
    places = dispatch.dispatch(*options, GPU, "auto", None)
    assert places == dict(zip(tensors, [expected[0], *expected], strict=True))
    printed = capsys.readouterr()
    assert re.search(told, printed.err)
    assert printed.err.count("\n") == (told != "")
    assert printed.out == ""
    assert set(dispatch.dispatch(*options, CPU, "auto", None).values()) == {CPU}
    assert capsys.readouterr().err == ""


def test_a_device_that_is_named_is_not_second_guessed(tmp_path, monkeypatch):
    """Catches experts left on the CPU, or a look at a GPU's memory, where the user has said where the model goes."""
    random_model(torch.float32).save_pretrained(tmp_path)
    monkeypatch.setattr(dispatch, "find_room", lambda *_: pytest.fail("asked"))
    assert Qwen3NextForCausalLM.from_pretrained(tmp_path, device_map="cpu").device == CPU


class TwoDevices(TorchFunctionMode):
    """A GPU made up from the CPU's memory: each storage has a device, moving copies, and mixing is an error.

    moves: shape, source and target of every tensor that went from one device to the other.
    """

    def __init__(self):
        super().__init__()
        self.place, self.moves = {}, []

    def device_of(self, x: torch.Tensor) -> torch.device:
        return self.place.get(x.untyped_storage().data_ptr(), CPU)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, values = dict(kwargs or {}), []

        def collect(value):
            if isinstance(value, list | tuple):
                for part in value:
                    collect(part)
            else:
                values.append(value)

        collect([args, *kwargs.values()])
        tensors = [value for value in values if isinstance(value, torch.Tensor) and not value.is_meta]
        if function == torch.Tensor.device.__get__:
            return self.device_of(args[0]) if tensors else function(*args)
        target = next((value for value in values if isinstance(value, torch.device)), None)
        if function is torch.Tensor.to and tensors:
            source = self.device_of(args[0])
            target = target or (self.device_of(args[1]) if len(tensors) == 2 else source)
            out = function(*(CPU if isinstance(a, torch.device) else a for a in args), **kwargs)
            if target != source:
                self.moves.append((tuple(out.shape), source, target))
                out = out.clone()
            elif out is args[0]:
                return out
        else:
            sources = {self.device_of(x) for x in tensors if x.ndim > 0 and x.numel() > 0}
            if len(sources) > 1:
                raise RuntimeError(f"{function.__name__}: tensors on {sources}")
            if target == GPU:
                kwargs = {key: CPU if key == "device" else value for key, value in kwargs.items()}
            target = target or next(iter(sources), CPU)
            out = function(*args, **kwargs)
        for x in out if isinstance(out, list | tuple) else [out]:
            if isinstance(x, torch.Tensor) and not x.is_meta and x.numel() > 0:
                self.place[x.untyped_storage().data_ptr()] = target
        return out


@torch.no_grad()
def test_experts_are_computed_where_they_are(tmp_path, monkeypatch, capsys):
    """Catches experts that travel to the GPU, and anything else that is moved, or mixed, between the two.

    There is no GPU here: this counts moves between two halves of the CPU's memory, and shows that no operation gets
    tensors of both. It does not show that CUDA's own results, streams or pinned memory are right, nor how fast it is.
    """
    plain = random_model(torch.float32, mtp_num_hidden_layers=1)
    plain.save_pretrained(tmp_path)
    sizes = {True: 0, False: 0}
    for name, p in plain.named_parameters():
        sizes[".experts." in name] += p.nbytes
    pretend_gpu(monkeypatch, 1.2 * sizes[False])
    ids, D, k, layers = tokens(1, 33), 48, 3, 5
    expected = plain(ids).logits
    with TwoDevices() as devices:
        model = Qwen3NextForCausalLM.from_pretrained(tmp_path, device_map="auto")
        assert "routed experts stay on cpu" in capsys.readouterr().err
        for name, p in model.named_parameters():
            assert devices.device_of(p) == (CPU if ".experts." in name else GPU), name
        assert len(devices.moves) == len([name for name, _ in model.named_parameters() if ".experts." not in name])
        there, cache = ids.to(GPU), model.make_cache(1)
        for part in (there[:, :20], there[:, 20:21], there[:, 21:]):
            devices.moves.clear()
            logits = model(part, past_key_values=cache).logits
            T = part.shape[1]
            frequencies, back, lengths = ((2,), CPU, GPU), ((T, D), CPU, GPU), ((1,), CPU, GPU)
            x, weights, experts = ((T, D), GPU, CPU), ((T, k), GPU, CPU), ((T, k), GPU, CPU)
            first = [lengths] * (cache.columns == 20)  # a new cache does not know yet where it will be used
            assert devices.moves == [*first, frequencies, *[x, weights, experts, back] * layers]
        same(logits.to(CPU), expected[:, 21:])
        devices.moves.clear()
        answer = model.generate(there, max_new_tokens=12, num_draft_tokens=1)
        passes = {33, 32, 2, 1}  # tokens: the prompt, MTP's part of it, a token with its draft, or without
        assert {shape for shape, _, _ in devices.moves} <= {
            (1,),
            (2,),
            *((T, width) for T in passes for width in (D, k)),
        }
    assert torch.equal(answer, plain.generate(ids, max_new_tokens=12))
    pretend_gpu(monkeypatch, 1.2 * sum(sizes.values()))
    with TwoDevices() as devices:
        model = Qwen3NextForCausalLM.from_pretrained(tmp_path, device_map="auto")
        assert {devices.device_of(p) for p in model.parameters()} == {GPU}
        assert not any(module._forward_pre_hooks for module in model.modules())
        there = ids.to(GPU)
        devices.moves.clear()
        logits = model(there, use_cache=False).logits
        assert devices.moves == [frequencies]
        same(logits.to(CPU), expected)
    assert capsys.readouterr().err == ""


@pytest.fixture
def advice(monkeypatch):
    """What the operating system is told: (first address, bytes, advice)."""
    calls = []
    monkeypatch.setattr(large, "ADVISED", 0)  # these matrices are small

    def madvise(start, size, advice):
        calls.append((start.value, size.value, advice))

    def mincore(start, size, resident):
        resident._obj.value = start.value in in_memory
        return 0

    in_memory = set()  # pages
    monkeypatch.setattr(large, "LIBC", SimpleNamespace(madvise=madvise, mincore=mincore, in_memory=in_memory))
    return calls


def touched(calls: list, model: Qwen3NextForCausalLM) -> set[str]:
    """The expert matrices that calls name as a whole, from the beginning of their first page to their end."""
    page, names = mmap.PAGESIZE, {}
    for name, p in model.named_parameters():
        if ".experts." in name:
            start = p.data_ptr() // page * page
            names[start, p.data_ptr() + p.nbytes - start] = name
    return {names[start, size] for start, size, _ in calls}


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="no madvise on this system")
@pytest.mark.parametrize("kind", ["as saved", "fused", "fp8"])
@torch.no_grad()
def test_only_chosen_experts_are_read_ahead(tmp_path, advice, kind):
    """Catches experts that are read from the disk though no token was sent there, or each a page at a time."""
    experts = {"num_experts": 48, "moe_intermediate_size": 136}  # many more than are asked for at first, and used
    if kind == "fp8":
        fp8_folder(tmp_path, **experts)
    else:
        plain = random_model(torch.float32, mtp_num_hidden_layers=1, **experts)
        tensors = {name: p.detach() for name, p in plain.named_parameters()}
        write(tmp_path, plain.config.to_dict(), fuse_experts(tensors) if kind == "fused" else tensors)
    model = Qwen3NextForCausalLM.from_pretrained(tmp_path)
    assert {call[2] for call in advice} == {mmap.MADV_RANDOM}
    assert touched(advice, model) == {name for name, _ in model.named_parameters() if ".experts." in name}
    cache, ids = model.make_cache(1), tokens(1, 20)
    for part in (ids[:, :1], ids[:, 1:]):
        advice.clear()
        out = model(part, past_key_values=cache, output_router_logits=True)
        chosen = {
            f"model.layers.{i}.mlp.experts.{e}.{name}.weight"
            for i, logits in enumerate(out.router_logits)
            for e in logits.topk(3).indices.flatten().tolist()
            for name in ("gate_proj", "up_proj", "down_proj")
        }
        assert touched(advice, model) == chosen
        assert 3 * 5 * 3 <= len(chosen) < 48 * 5 * 3
        assert len(advice) == len(chosen), "each once"
        assert {call[2] for call in advice} == {mmap.MADV_WILLNEED}


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="no madvise on this system")
@pytest.mark.parametrize("whose", ["ours", "another's"])
@torch.no_grad()
def test_what_is_in_memory_is_not_read_ahead(tmp_path, advice, monkeypatch, whose):
    """Catches slow system calls for what is there, and trust in mincore for others' files: it calls those resident."""
    random_model(torch.float32, moe_intermediate_size=136).save_pretrained(tmp_path)  # matrices of several pages
    if whose == "another's":
        monkeypatch.setattr(large.os, "access", lambda path, mode: False)
    model = Qwen3NextForCausalLM.from_pretrained(tmp_path)
    experts = {name: p for name, p in model.named_parameters() if ".experts." in name}
    known = {name: p for name, p in experts.items() if ".up_proj." in name}

    def pages(which: dict, part: float) -> set[int]:
        return {(p.data_ptr() + int(part * (p.nbytes - 1))) // mmap.PAGESIZE * mmap.PAGESIZE for p in which.values()}

    large.LIBC.in_memory |= pages(known, 0.5) | pages(experts, 0) | pages(experts, 1)  # edges: from neighbours
    advice.clear()
    model(tokens(1, 20))
    asked = touched(advice, model)
    assert asked & known.keys() == (known.keys() if whose == "another's" else set())
    assert asked - known.keys() == experts.keys() - known.keys(), "the others are read all the same"


@pytest.mark.parametrize("kind", ["as saved", "fp8"])
@torch.no_grad()
def test_copies_are_not_read_ahead(tmp_path, advice, kind):
    """Catches system calls for experts in memory, where they cost time and do nothing."""
    if kind == "fp8":
        fp8_folder(tmp_path)
    else:
        random_model(torch.float32).save_pretrained(tmp_path)
        model = Qwen3NextForCausalLM.from_pretrained(tmp_path, dtype="bfloat16")
        assert not mapped(model, tmp_path)
        model(tokens(1, 6))
        assert advice == []
    model = Qwen3NextForCausalLM.from_pretrained(tmp_path).double()
    advice.clear()
    model(tokens(1, 6))
    assert advice == []


@pytest.mark.parametrize("kind", ["as saved", "another dtype", "fp8"])
@torch.no_grad()
def test_in_memory_is_the_same_model(tmp_path, advice, kind):
    """Catches tensors that stay in the file, or off a cache line's start, and advice to the system about them."""
    if kind == "fp8":
        fp8_folder(tmp_path)
    else:
        random_model(torch.float32, mtp_num_hidden_layers=1).save_pretrained(tmp_path)
    dtype = "bfloat16" if kind == "another dtype" else "auto"
    expected = {
        name: p.clone() for name, p in Qwen3NextForCausalLM.from_pretrained(tmp_path, dtype).state_dict().items()
    }
    advice.clear()
    model = Qwen3NextForCausalLM.from_pretrained(tmp_path, dtype, in_memory=True)
    for file in tmp_path.glob("*.safetensors"):  # in place: what is mapped would change with it
        with file.open("r+b") as opened:
            opened.write(bytes(file.stat().st_size))
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name
        assert tensor.data_ptr() % 64 == 0, name
    assert model(tokens(1, 20)).logits.isfinite().all()
    assert advice == [], "and nothing is read ahead"


def test_in_memory_needs_the_memory(tmp_path, monkeypatch):
    """Catches a process that the system kills half-way, instead of a line that says what is missing."""
    model = random_model(torch.float32)
    model.save_pretrained(tmp_path)
    size = sum(p.nbytes for p in model.parameters())
    monkeypatch.setattr(large, "free_memory", lambda: size - 1)
    with pytest.raises(ValueError, match="in_memory: 0.0 GB of weights, but 0.0 GB of memory are free"):
        Qwen3NextForCausalLM.from_pretrained(tmp_path, in_memory=True)
    assert Qwen3NextForCausalLM.from_pretrained(tmp_path), "mapped, it opens all the same"
