"""Claim: device_map="auto" finds room for a model on several GPUs of one process, and everything works over them.

No GPU is used: the devices are those of fake_cuda.py, which compute on the CPU and refuse tensors of two devices.
"""

import itertools
import random

import pytest
import torch
from checkpoints import to_fp8, write
from conftest import random_model, tokens
from fake_cuda import CAN_BE_FAKED, FakeCuda
from ranks import results
from test_cuda import EVEN, per_token

import qwen3_next
from qwen3_next import Cache, Qwen3NextForCausalLM, Qwen3NextForQuestionAnswering
from qwen3_next_checkpoints import dispatch

pytestmark = pytest.mark.skipif(not CAN_BE_FAKED, reason="fake_cuda.py knows PyTorch's files on Linux and macOS")
GPUS = [torch.device("cuda", n) for n in range(3)]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model in float32, and its size in bytes: experts, and all else."""
    folder = tmp_path_factory.mktemp("dispatch")
    random_model(torch.float32, **EVEN).save_pretrained(folder)
    return folder


def size_of(model: torch.nn.Module, experts: bool | None = None) -> int:
    """Bytes of all parameters, or of the routed experts' or all others alone."""
    return sum(p.nbytes for name, p in model.named_parameters() if experts in (None, ".experts." in name))


# ---- What is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "dtype", "limit"), [(2, "float32", 1e-3), (3, "float64", 1e-9)])
def test_every_feature(folder, count, dtype, limit):
    """Catches an x, a mask, angles or a cache that stay on the GPU before, and a copy of the step that is another's."""
    one = Qwen3NextForCausalLM.from_pretrained(folder, dtype)
    with FakeCuda(*[int(size_of(one) * {2: 0.8, 3: 0.5}[count])] * count):
        model = Qwen3NextForCausalLM.from_pretrained(folder, dtype, "auto")
        assert {p.device for p in model.parameters()} == set(GPUS[:count])
        for part in [*model.model.layers, model.mtp]:
            assert len({p.device for p in part.parameters()}) == 1
        assert (model.model.layers[0].mlp.experts.grouped is None) == (dtype == "float64")
        found = results(model)
    for key, x in results(one).items():
        if x.is_floating_point():
            assert (found[key] - x).abs().max() < limit, key
        else:
            assert torch.equal(found[key], x), key


@torch.no_grad()
def test_what_a_pass_can_return(folder):
    """Catches hidden states and router logits that are left on several devices: they can't be padded back or pooled."""
    ids = tokens(2, 20)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    options = {"output_hidden_states": True, "output_router_logits": True, "output_mtp_logits": True}
    one = Qwen3NextForCausalLM.from_pretrained(folder)
    expected = one(ids, mask, labels=ids, **options)
    with FakeCuda(*[int(0.8 * size_of(one))] * 2):
        model = Qwen3NextForCausalLM.from_pretrained(folder, device_map="auto")
        assert len({p.device for p in model.parameters()}) == 2
        there = ids.to(model.device)
        found = model(there, mask.to(model.device), labels=there, **options)
        states = [*found.hidden_states, *found.router_logits]
        assert {x.device for x in states} == {model.device}
        found = [x.cpu() for x in [found.loss, found.aux_loss, found.mtp_loss, *states]]
    real = [mask[..., None] * x for x in expected.hidden_states]
    found[3 : 3 + len(real)] = [mask[..., None] * x for x in found[3 : 3 + len(real)]]
    rows = mask.flatten()[:, None]
    found[3 + len(real) :] = [rows * x for x in found[3 + len(real) :]]
    want = [expected.loss, expected.aux_loss, expected.mtp_loss, *real, *(rows * x for x in expected.router_logits)]
    torch.testing.assert_close(found, want, rtol=0, atol=1e-3)


@torch.no_grad()
def test_caches(folder, tmp_path):
    """Catches a cache that is loaded to one GPU, rows chosen by numbers on another, and a model that has moved on."""
    ids = tokens(2, 24)
    one = Qwen3NextForCausalLM.from_pretrained(folder)
    whole = one(ids).logits[:, 20:]
    with FakeCuda(*[int(0.8 * size_of(one))] * 2):
        model = Qwen3NextForCausalLM.from_pretrained(folder, device_map="auto")
        there = ids.to(model.device)
        cache = model(there[:, :20]).past_key_values
        assert {x.device for layer in cache.layers for x in vars(layer).values() if x is not None} == set(GPUS[:2])
        cache.save(tmp_path / "cache")
        loaded = Cache.load(tmp_path / "cache", model)
        turned = cache.select([1, 0])
        for state, rows in ((cache.clone(), [0, 1]), (loaded, [0, 1]), (turned, [1, 0])):
            logits = model(ids[rows, 20:].to(model.device), past_key_values=state).logits.cpu()
            torch.testing.assert_close(logits, whole[rows], rtol=0, atol=1e-3)
        answers = model.generate(there[:1], max_new_tokens=5, do_sample=True, seed=1, num_return_sequences=3)
        assert answers.shape == (3, 29)
        model.to("cpu")  # the hooks go by where a layer is
        logits = model(ids[:, 20:], past_key_values=cache).logits
    torch.testing.assert_close(logits, whole, rtol=0, atol=1e-3)


@torch.no_grad()
def test_a_head(tmp_path):
    """Catches a backbone of another name, whose layers are then taken for what is in no layer."""
    plain = Qwen3NextForQuestionAnswering(random_model(torch.float32).config)
    plain.save_pretrained(tmp_path)
    plain.eval()
    with FakeCuda(*[int(0.7 * size_of(plain))] * 2):
        model = Qwen3NextForQuestionAnswering.from_pretrained(tmp_path, device_map="auto")
        assert model.hf_device_map["transformer.layers.4"] == 1
        found = model(tokens(2, 20).to(model.device)).start_logits.cpu()
    torch.testing.assert_close(found, plain(tokens(2, 20)).start_logits, rtol=0, atol=1e-3)


@torch.no_grad()
def test_fp8(tmp_path):
    """Catches experts in 8 bits that are all on one GPU, and their scales elsewhere."""
    plain = random_model(torch.bfloat16, hidden_size=128, moe_intermediate_size=136)
    write(tmp_path, plain.config.to_dict(), to_fp8({name: p.detach() for name, p in plain.named_parameters()})[0])
    one = Qwen3NextForCausalLM.from_pretrained(tmp_path)
    with FakeCuda(*[int(0.8 * size_of(one))] * 2):
        model = Qwen3NextForCausalLM.from_pretrained(tmp_path, device_map="auto")
        for layer, number in ((model.model.layers[0], 0), (model.model.layers[-1], 1)):
            projection = layer.mlp.experts[0].up_proj
            assert projection.weight.dtype == torch.float8_e4m3fn
            assert projection.weight.device == projection.weight_scale_inv.device == GPUS[number]
        found = model(tokens(1, 20).to(model.device)).logits.cpu()
    torch.testing.assert_close(found, one(tokens(1, 20)).logits, rtol=0, atol=0.1)


def test_a_border_costs_no_wait(folder):
    """Catches a copy between two GPUs by way of the CPU, or a step that is copied for each layer."""
    size = size_of(Qwen3NextForCausalLM.from_pretrained(folder))
    counts = []
    for free in ([2**40], [int(0.8 * size)] * 2):
        with FakeCuda(*free):
            model = Qwen3NextForCausalLM.from_pretrained(folder, device_map="auto")
        counts.append(per_token(model))
    (waits, kernels), (more, total) = counts
    assert len({p.device for p in model.parameters()}) == 2
    assert more == waits
    # x, cos and sin go over once; then x comes back
    assert total == kernels + 4


@pytest.mark.parametrize("count", [1, 2])
def test_the_command_line(tiny, capsys, count):
    """Catches --device auto, the default, that does not get over the border."""
    options = ["--prompt", "Once upon a time", "--greedy", "--max-new-tokens", "5", "--dtype", "float32"]
    assert qwen3_next.main([*options, "--device", "cpu"]) == 0
    expected = capsys.readouterr()
    size = size_of(Qwen3NextForCausalLM.from_pretrained(tiny, "float32"))
    used = []
    with FakeCuda(*[int(1.3 * size / count)] * count), pytest.MonkeyPatch.context() as patch:
        plain = qwen3_next.load
        patch.setattr(qwen3_next, "load", lambda *given: used.append(plain(*given)) or used[-1])
        assert qwen3_next.main(options) == 0
    assert capsys.readouterr() == expected
    assert {p.device for p in used[0][1].parameters()} == set(GPUS[:count])


# ---- What goes where -------------------------------------------------------------------------------------------------


def shares(parts: list[int], rooms: list[float], places: tuple) -> list[float]:
    """How full each room is."""
    used = [0] * len(rooms)
    for size, place in zip(parts, places):
        used[place] += size
    return [n / room for n, room in zip(used, rooms)]


def test_as_few_as_it_takes_and_all_as_full():
    """Catches layers out of order, a GPU over its room, one more than it takes, and one left empty next to a full one.
    Compared with all ways to cut a row of six parts.
    """
    draw = random.Random(0)
    seen = set()
    for _ in range(200):
        parts = [draw.randint(1, 20) for _ in range(6)]
        rooms = [draw.randint(1, 40) for _ in range(3)]
        names = ["lm_head.weight", *(f"model.layers.{i}.linear_attn.A_log" for i in range(5))]
        sizes = dict(draw.sample([*zip(names, parts)], 6))
        cuts = {n: list(itertools.combinations_with_replacement(range(n), 6)) for n in (1, 2, 3)}
        ways = {n: [max(shares(parts, rooms, way)) for way in cuts[n]] for n in cuts}
        enough = [n for n in ways if min(ways[n]) <= 1]
        found = dispatch.spread(sizes, GPUS, dict(zip(GPUS, rooms)).get)
        seen.add(enough[0] if enough else None)
        if not enough:
            assert found is None
            continue
        places = tuple(found[name].index for name in names)
        assert places in cuts[enough[0]]
        fullest = max(shares(parts, rooms, places))
        assert fullest <= 1
        assert fullest <= min(ways[enough[0]]) + 0.01  # in steps of one per cent
    assert seen == {None, 1, 2, 3}


def test_one_is_enough(folder):
    """Catches a model that is spread although it fits on one GPU, and hooks that cost time for nothing."""
    size = size_of(Qwen3NextForCausalLM.from_pretrained(folder))
    with FakeCuda(int(size / 0.9) + 1, 10 * size), pytest.MonkeyPatch.context() as patch:
        asked = []
        plain = torch.cuda.mem_get_info
        patch.setattr("torch.cuda.mem_get_info", lambda device: asked.append(device) or plain(device))
        model = Qwen3NextForCausalLM.from_pretrained(folder, device_map="auto")
    assert asked == GPUS[:1]  # to ask takes memory
    assert {p.device for p in model.parameters()} == {GPUS[0]}
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not hasattr(model, "hf_device_map")
    with FakeCuda(*[int(size / 0.9) - 1] * 2):
        model = Qwen3NextForCausalLM.from_pretrained(folder, device_map="auto")
    assert {p.device for p in model.parameters()} == set(GPUS[:2])


def test_the_map(folder):
    """Catches a map that says something else than where the weights are, or names no modules of the model."""
    with FakeCuda(*[int(0.8 * size_of(Qwen3NextForCausalLM.from_pretrained(folder)))] * 2):
        model = Qwen3NextForCausalLM.from_pretrained(folder, device_map="auto")
    layers = {f"model.layers.{i}" for i in range(5)}
    assert model.hf_device_map.keys() == {"model.embed_tokens", "model.norm", "lm_head", "mtp", *layers}
    for name, number in model.hf_device_map.items():
        assert {p.device for p in model.get_submodule(name).parameters()} == {GPUS[number]}, name


@pytest.mark.parametrize(("share", "rest"), [(0.565, {"cuda:0"}), (0.4, {"cuda:0", "cuda:1"}), (0.1, {"cpu"})])
def test_experts_stay_on_the_cpu(folder, capsys, share, rest):
    """Catches GPUs that are left empty, or run over, when all of them together are too small."""
    one = Qwen3NextForCausalLM.from_pretrained(folder)
    free = int(share * 2 * size_of(one, experts=False))
    assert 2 * 0.9 * free < size_of(one)
    ids = tokens(1, 9)
    expected = one.generate(ids, max_new_tokens=3, num_draft_tokens=1)
    with FakeCuda(free, free):
        model = Qwen3NextForCausalLM.from_pretrained(folder, device_map="auto")
        places = {name: str(p.device) for name, p in model.named_parameters()}
        assert {place for name, place in places.items() if ".experts." not in name} == rest
        assert {place for name, place in places.items() if ".experts." in name} == {"cpu"}
        found = model.generate(ids.to(model.device), max_new_tokens=3, num_draft_tokens=1).cpu()
    assert torch.equal(found, expected)
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"room for {0.9 * free / 1e9:.1f} GB on cuda:0, " in message
    assert message.endswith(f"goes to {', '.join(sorted(rest))}\n")
    if len(rest) == 2:
        assert model.hf_device_map["model.layers.4"] == 1
        assert model.hf_device_map["model.layers.4.mlp.experts"] == "cpu"
        assert model.hf_device_map["mtp.layers.0.mlp.experts"] == "cpu"


# ---- max_memory ------------------------------------------------------------------------------------------------------


def test_max_memory_is_obeyed(folder):
    """Catches a GPU that gets more than it may, or anything although it is not named, and units mixed up."""
    size = size_of(Qwen3NextForCausalLM.from_pretrained(folder))
    kib = -(-size // 1024)
    for limits, used in (
        ({0: size - 1, 2: size}, {0, 2}),
        ({2: size, 1: 0}, {2}),
        ({0: f"{0.7 * kib:.0f}KiB", 1: f"{0.7 * size / 1000:.3f} KB", "cpu": 0}, {0, 1}),
        ({1: f"{kib} KiB"}, {1}),
        ({0: 10.0**12}, {0}),
        ({"cpu": "1GiB"}, {"cpu"}),
        ({}, {"cpu"}),
    ):
        with FakeCuda(*[10**9] * 3):
            model = Qwen3NextForCausalLM.from_pretrained(folder, device_map="auto", max_memory=limits)
        found = {}
        for p in model.parameters():
            place = p.device.index if p.is_cuda else "cpu"
            found[place] = found.get(place, 0) + p.nbytes
        assert found.keys() == used, limits
        for place, n in found.items():
            assert n <= dispatch.in_bytes(place, limits.get(place, size)), limits
    for text, size in (("20GiB", 20 * 2**30), ("1.5 GB", 15e8), ("7MiB", 7 * 2**20), ("3B", 3)):
        assert dispatch.in_bytes(0, text) == size


def test_free_memory_is_a_limit_all_the_same(folder):
    """Catches a limit that is believed although another program has taken the memory."""
    size = size_of(Qwen3NextForCausalLM.from_pretrained(folder))
    with FakeCuda(*[int(0.8 * size)] * 2):
        model = Qwen3NextForCausalLM.from_pretrained(folder, device_map="auto", max_memory={0: "1TiB", 1: "1TiB"})
    assert {p.device for p in model.parameters()} == set(GPUS[:2])


@pytest.mark.parametrize(
    ("device_map", "limits", "message"),
    [
        ("cuda", {0: "1GiB"}, "max_memory goes with device_map='auto', found 'cuda'"),
        ("auto", {2: "1GiB"}, r"max_memory names 2, expected \[0, 1, 'cpu'\]"),
        ("auto", {"cuda:0": "1GiB"}, r"max_memory names 'cuda:0', expected \[0, 1, 'cpu'\]"),
        ("auto", {True: "1GiB"}, "max_memory names True"),
        ("auto", {"disk": "1GiB"}, "max_memory names 'disk'"),
        ("auto", "1GiB", "max_memory is a str, expected a dict"),
        ("auto", {0: "1 giga"}, r"max_memory\[0\] is '1 giga', expected bytes, as a number or like '20GiB' or '20GB'"),
        ("auto", {0: -1}, r"max_memory\[0\] is -1"),
        ("auto", {0: float("nan")}, r"max_memory\[0\] is nan"),
        ("auto", {0: None}, r"max_memory\[0\] is None"),
        ("auto", {0: 1000, "cpu": 1000}, "max_memory: 0.0 GB of weights are left for the CPU, expected at most 0.0"),
        ("auto", {"cpu": 1000}, "max_memory: 0.0 GB of weights are left for the CPU, expected at most 0.0"),
    ],
)
def test_max_memory_is_refused(folder, device_map, limits, message):
    """Catches a limit that is passed over without a word."""
    with FakeCuda(10**9, 10**9), pytest.raises(ValueError, match=message) as error:
        Qwen3NextForCausalLM.from_pretrained(folder, device_map=device_map, max_memory=limits)
    assert len(str(error.value).splitlines()) == 1


def test_without_a_gpu(folder):
    """Catches a number that is taken where there is no GPU."""
    with pytest.raises(ValueError, match=r"max_memory names 0, expected \['cpu'\]"):
        Qwen3NextForCausalLM.from_pretrained(folder, device_map="auto", max_memory={0: "1GiB"})
    model = Qwen3NextForCausalLM.from_pretrained(folder, device_map="auto", max_memory={"cpu": "1GiB"})
    assert model.device == CPU
