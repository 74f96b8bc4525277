"""Claim: a checkpoint file that lies is answered with one line that names the file or the key, never with a crash.

Tables first: one lie each. Then properties: files changed at random; QWEN3_NEXT_CASES=10000 asks for more cases.
"""

import copy
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import fuzz_folders
import pytest
import torch
from checkpoints import INSTRUCT, write_sparse
from conftest import ROOT, random_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.torch import save_file

from qwen3_next import (
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    Qwen3NextForSequenceClassification,
    Qwen3NextTokenizer,
    main,
    read_safetensors,
)

CASES = int(os.environ.get("QWEN3_NEXT_CASES", 0))
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1}
YARN |= {"attention_factor": 1.1, "truncate": True}
SMALL = {"vocab_size": 2048, "hidden_size": 8, "num_hidden_layers": 2, "full_attention_interval": 2, "head_dim": 8}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 1, "linear_num_key_heads": 1, "linear_num_value_heads": 2}
SMALL |= {"linear_key_head_dim": 4, "linear_value_head_dim": 6, "num_experts": 2, "num_experts_per_tok": 1}
SMALL |= {"moe_intermediate_size": 4, "shared_expert_intermediate_size": 4, "partial_rotary_factor": 0.5}
SMALL |= {"rope_scaling": YARN, "mtp_num_hidden_layers": 1, "eos_token_id": 2047}
GENERATION = {"eos_token_id": [2047], "pad_token_id": 0, "do_sample": True, "temperature": 0.7, "top_k": 20}
GENERATION |= {"top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.1, "max_new_tokens": 2}


def some_cases(ci: int):
    """Settings of a property: `ci` cases, always the same; with QWEN3_NEXT_CASES as many new ones."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    fixed = {"deadline": None, "database": None, "suppress_health_check": quiet}
    return settings(max_examples=CASES or ci, derandomize=not CASES, **fixed)


def answer(call, *named):
    """What a call returns, or the message of the exception that it may raise, within a second of computing."""
    started, result, message = time.process_time(), None, None
    try:
        result = call()
    except (ValueError, OSError, KeyError) as error:
        message = str(error.args[0] if isinstance(error, KeyError) else error)
        assert message.strip(), "an empty message"
        assert len(message.splitlines()) == 1, f"several lines: {message!r}"
        assert any(str(name) in message for name in named), f"names none of {named}: {message!r}"
    assert time.process_time() - started < 1, message
    return result, message


def refused(call, *named):
    """The message of the exception that a call has to raise."""
    result, message = answer(call, *named)
    assert message is not None, f"accepted: {result!r}"
    return message


def write(file: Path, content):
    """A new file: the old one may be mapped, and would crash its readers if it became shorter."""
    text = content if isinstance(content, (bytes, str)) else dump(content)
    file.unlink(missing_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The same small model in one file, and in shards."""
    model = random_model(torch.float32, **SMALL)
    model.generation_config = GENERATION
    folders = [tmp_path_factory.mktemp(name) for name in ("whole", "shards")]
    for folder, size in zip(folders, ("5GB", 10_000)):
        model.save_pretrained(folder, max_shard_size=size)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(ROOT / "tiny" / name, folder)
    assert len(list(folders[1].glob("*.safetensors"))) > 3
    return folders


@pytest.fixture(scope="module")
def folder_to_change(originals, tmp_path_factory):
    """Copies for the properties, which put back what they have changed."""
    folder = tmp_path_factory.mktemp("changed")
    return [Path(shutil.copytree(source, folder / source.name)) for source in originals]


@pytest.fixture
def whole(originals, tmp_path):
    return Path(shutil.copytree(originals[0], tmp_path / "whole"))


@pytest.fixture
def shards(originals, tmp_path):
    return Path(shutil.copytree(originals[1], tmp_path / "shards"))


def load(folder):
    return Qwen3NextForCausalLM.from_pretrained(folder)


def use(folder, cls=Qwen3NextForCausalLM):
    """Loads a folder and runs what it describes: a lie may show only then."""
    model = cls.from_pretrained(folder)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        model(ids, labels=ids if cls is Qwen3NextForCausalLM else torch.tensor([0]))
    if cls is Qwen3NextForCausalLM:
        model.generate(ids, max_new_tokens=1)
    return True


def talk(folder):
    """Loads a tokenizer and uses it."""
    tokenizer = Qwen3NextTokenizer.from_pretrained(folder)
    ids = tokenizer(["a fox", "a"], return_tensors="pt", padding=True).input_ids
    tokenizer.batch_decode(ids, skip_special_tokens=True)
    return tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])


# ---- JSON in pieces --------------------------------------------------------------------------------------------------


class Pairs(list):
    """A JSON object as (key, value) pairs, so that a key may be there twice."""


class Raw(str):
    """JSON text as it is."""


def parse(text):
    return json.loads(text, object_pairs_hook=Pairs)


def dump(node) -> str:
    if isinstance(node, Raw):
        return node
    if isinstance(node, dict):
        node = Pairs(node.items())
    if isinstance(node, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {dump(value)}" for key, value in node) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(map(dump, node)) + "]"
    return json.dumps(node)


def nested(depth: int) -> Raw:
    return Raw("[" * depth + "]" * depth)


INF, HUGE = float("inf"), 10**400
ODD = [None, True, False, 0, 1, -1, 3, 0.5, -0.5, 1e308, 1e-308, INF, -INF, float("nan"), 2**31, 2**63, 2**64, 10**9]
ODD += [HUGE, -HUGE, "", "a", "a\nb", "a\u2028b", "\ud800", "\0", "x" * 300, "../x", "yarn"]
ODD += [[], [0], [None], ["a"], [[]], [2**70], {}, {"a": 1}, {"a\nb": []}, nested(100), nested(900), nested(50_000)]
KINDS = ["F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "f32"]


def places(node, path=()):
    """The path of every value in a JSON tree."""
    yield path
    if isinstance(node, list):
        for i, item in enumerate(node):
            yield from places(item[1] if isinstance(node, Pairs) else item, (*path, i))


def edit(draw, tree, odd=ODD):
    """A tree with one random change: a value replaced, deleted, doubled, swapped or shifted, or a key renamed."""
    tree = copy.deepcopy(tree)
    paths = [path for path in places(tree) if path]
    if not paths:
        return tree
    *path, last = draw(st.sampled_from(paths))
    node = tree
    for i in path:
        node = node[i][1] if isinstance(node, Pairs) else node[i]
    action = draw(st.sampled_from(["replace", "replace", "nudge", "delete", "double", "swap", "rename"]))
    key, value = node[last] if isinstance(node, Pairs) else (None, node[last])
    other = draw(st.integers(0, len(node) - 1))
    if action == "delete":
        del node[last]
    elif action == "double":
        node.insert(other, node[last])
    elif action == "swap" and isinstance(node, Pairs):
        (a, x), (b, y) = node[last], node[other]
        node[last], node[other] = (a, y), (b, x)
    elif action == "swap":
        node[last], node[other] = node[other], node[last]
    elif action == "rename" and key is not None:
        node[last] = (
            draw(st.sampled_from([*(k for k, _ in node), "", "a\nb", "self", "\ud800", "__metadata__"])),
            value,
        )
    else:
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        nudge = action == "nudge" and numeric
        value = value + draw(st.integers(-9, 9)) if nudge else draw(st.sampled_from(odd))
        node[last] = value if key is None else (key, value)
    return tree


# ---- safetensors -----------------------------------------------------------------------------------------------------

FILE = "model.safetensors"


def split(data: bytes):
    length = struct.unpack("<Q", data[:8])[0]
    return parse(data[8 : 8 + length]), data[8 + length :]


def join(header, data: bytes) -> bytes:
    text = (header if isinstance(header, str) else dump(header)).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


X, Y = entry(), entry(offsets=(8, 16))
HEADERS = {  # each with 16 bytes of data
    "overlap": {"x": entry(offsets=(0, 8)), "y": entry(offsets=(4, 12)), "z": entry(shape=(1,), offsets=(12, 16))},
    "same place twice": {"x": X, "y": X, "z": Y},
    "gap": {"x": entry(shape=(1,), offsets=(0, 4)), "y": Y},
    "gap at the start": {"x": entry(offsets=(8, 16))},
    "past the end": {"x": X, "y": entry(shape=(4,), offsets=(8, 24))},
    "backwards": {"x": entry(offsets=(8, 0)), "y": Y},
    "negative": {"x": entry(offsets=(-8, 0)), "y": X, "z": Y},
    "boolean": {"x": entry(offsets=(False, 8)), "y": Y},
    "fraction": {"x": entry(offsets=(0.0, 8)), "y": Y},
    "text": {"x": entry(offsets=("0", "8")), "y": Y},
    "three offsets": {"x": entry(offsets=(0, 8, 8)), "y": Y},
    "huge offset": {"x": X, "y": entry(offsets=(8, 2**64 + 16))},
    "huge shape": {"x": X, "y": entry(shape=(2**62, 2**62), offsets=(8, 16))},
    "huge empty shape": {"x": X, "y": Y, "z": entry(shape=(0, 2**63), offsets=(16, 16))},
    "negative shape": {"x": X, "y": entry(shape=(-1, -2), offsets=(8, 16))},
    "shape is a number": {"x": X, "y": {**Y, "shape": 2}},
    "boolean shape": {"x": X, "y": entry(shape=(True, 2), offsets=(8, 16))},
    "wrong dtype": {"x": X, "y": entry("F64", (2,), (8, 16))},
    "integers": {"x": X, "y": entry("I32", (2,), (8, 16))},
    "dtype is no text": {"x": X, "y": entry(7, (2,), (8, 16))},
    "dtype in lower case": {"x": X, "y": entry("f32", (2,), (8, 16))},
    "a list": [X, Y],
    "an entry is null": {"x": X, "y": None},
    "an entry is empty": {"x": X, "y": {}},
    "metadata is no object": {"__metadata__": 1, "x": X, "y": Y},
    "metadata holds a number": {"__metadata__": {"format": 1}, "x": X, "y": Y},
    "metadata holds an object": {"__metadata__": {"format": {}}, "x": X, "y": Y},
    "a name twice, in two places": Pairs([("x", X), ("x", Y)]),
    "a field twice": {"x": X, "y": Pairs([*Y.items(), ("shape", [2])])},
    "a name with a line break": {"x\ny": entry("I32"), "y": Y},
    "half a character": Raw(dump({"x\ud800": X, "y": Y})),
    "not a number": Raw(dump({"x": X, "y": {**Y, "a": float("nan")}})),
    "starts with a mark": Raw("\ufeff" + dump({"x": X, "y": Y})),
    "cut": Raw(dump({"x": X, "y": Y})[:-1]),
    "deep": {"x": X, "y": {**Y, "a": nested(50_000)}},
    "empty": Raw(""),
}


@pytest.mark.parametrize("lie", HEADERS)
def test_headers(tmp_path, lie):
    """Catches tensors read from the wrong place or with the wrong shape, and a crash for a senseless header."""
    write(tmp_path / FILE, join({"x": X, "y": Y}, bytes(16)))
    assert read_safetensors(tmp_path / FILE).keys() == {"x", "y"}
    write(tmp_path / FILE, join(HEADERS[lie], bytes(16)))
    refused(lambda: read_safetensors(tmp_path / FILE), FILE)


@pytest.mark.parametrize("length", [0, 1, 7, 2**20, 100_000_001, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, "+1", "-1"])
def test_header_lengths(tmp_path, length):
    """Catches a header that is taken to be as long as it says, which would be read into memory first."""
    good = join({"x": X, "y": Y}, bytes(16))
    length = struct.unpack("<Q", good[:8])[0] + int(length) if isinstance(length, str) else length
    write(tmp_path / FILE, struct.pack("<Q", length) + good[8:])
    refused(lambda: read_safetensors(tmp_path / FILE), FILE)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, -17, -16, -1])
def test_truncated_files(tmp_path, size):
    """Catches a read past the end of the mapping, which kills the interpreter."""
    write(tmp_path / FILE, join({"x": X, "y": Y}, bytes(16))[:size])
    refused(lambda: read_safetensors(tmp_path / FILE), FILE)


def library(file: Path):
    """The safetensors library's opinion of a file: its tensors as (dtype, shape, bytes), or None if it refuses it."""
    try:
        with safe_open(file, "np"):
            return {name: (x["dtype"], x["shape"], bytes(x["data"])) for name, x in deserialize(file.read_bytes())}
    except (SafetensorError, ValueError, OverflowError):  # of a shape that no index can hold
        return None


def compare(file: Path):
    """What the library refuses is refused; what it reads is read, or refused by name for its dtype or size."""
    theirs = library(file)
    ours, message = answer(lambda: read_safetensors(file), FILE)
    if theirs is None:
        assert ours is None, "the library refuses this"
    elif ours is None:
        known = {dtype for dtype, _, _ in theirs.values()} <= {"BF16", "F16", "F32", "F64", "F8_E4M3"}
        assert not known or "twice" in message or "shape" in message, message
    else:
        assert ours.keys() == theirs.keys()
        for name, (_, shape, data) in theirs.items():
            assert list(ours[name].shape) == shape
            assert bytes(ours[name].flatten().view(torch.uint8).tolist()) == data


@pytest.fixture(scope="module")
def file_to_change(tmp_path_factory):
    file = tmp_path_factory.mktemp("headers") / FILE
    tensors = {"a.weight": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "c": torch.tensor(2.0).double()}
    save_file({**tensors, "d": torch.zeros(0, 7)}, file, metadata={"format": "pt"})
    return file, file.read_bytes()


@pytest.mark.parametrize("header", [Pairs([("x", X), ("x", X), ("y", Y)]), Raw(" " + dump({"x": X, "y": Y}))])
def test_harmless_headers(tmp_path, header):
    """Catches a difference from the library where it is lenient: a name twice for one place, a blank before the {."""
    write(tmp_path / FILE, join(header, bytes(16)))
    compare(tmp_path / FILE)


@some_cases(300)
@given(st.data())
def test_changed_headers(file_to_change, data):
    """Catches a header that the safetensors library refuses and we read, and one that we read differently."""
    file, good = file_to_change
    header, tensors = split(good)
    for _ in range(data.draw(st.integers(1, 3))):
        header = edit(data.draw, header, ODD + KINDS)
    write(file, join(header, tensors))
    compare(file)


@some_cases(300)
@given(st.data())
def test_changed_bytes(file_to_change, data):
    """Catches a crash, or a wrong tensor, after bytes of the length or of the header have flipped."""
    file, good = file_to_change
    changed, length = bytearray(good), 8 + struct.unpack("<Q", good[:8])[0]
    if data.draw(st.booleans()):
        changed[:8] = struct.pack("<Q", data.draw(st.integers(0, 2 * length) | st.integers(0, 2**64 - 1)))
    for _ in range(data.draw(st.integers(0, 4))):
        changed[data.draw(st.integers(8, length - 1))] = data.draw(st.sampled_from(b'{}[],:"-0123456789aF \0\xff'))
    write(file, bytes(changed[: data.draw(st.sampled_from([None, None, length, length + 8, -1]))]))
    compare(file)


# ---- tensors and shards ----------------------------------------------------------------------------------------------


def edit_header(file: Path, change):
    header, data = split(file.read_bytes())
    header = {name: dict(entry) for name, entry in header}
    write(file, join(change(header) or header, data))


def edit_tensors(file: Path, change):
    with safe_open(file, "pt") as source:
        tensors = {key: source.get_tensor(key) for key in source.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


def replace_tensor(name, make):
    return lambda folder: edit_tensors(folder / FILE, lambda t: t.update({name: make(t.get(name))}))


NORM, GATE, EXPERTS = "model.norm.weight", "model.layers.0.mlp.gate.weight", "model.layers.0.mlp.experts"
UP = f"{EXPERTS}.0.up_proj.weight"
FP8 = torch.float8_e4m3fn
TENSORS = {
    "missing": (lambda folder: edit_tensors(folder / FILE, lambda t: t.pop(NORM)), NORM),
    "extra": (replace_tensor("model.layers.0.extra", lambda _: torch.zeros(2)), "model.layers.0.extra"),
    "a line break in its name": (replace_tensor("model.a\nb", lambda _: torch.zeros(2)), "unexpected: "),
    "misshapen": (replace_tensor(GATE, lambda t: t.T.contiguous()), GATE),
    "a scalar": (replace_tensor(NORM, lambda _: torch.tensor(1.0)), NORM),
    "empty": (replace_tensor(NORM, lambda _: torch.zeros(0)), NORM),
    "integers": (replace_tensor(NORM, lambda t: t.long()), NORM),
    "another layer": (replace_tensor("model.layers.2.mlp.gate.weight", lambda _: torch.zeros(2, 8)), "layers.2"),
    "another expert": (replace_tensor(f"{EXPERTS}.2.up_proj.weight", lambda _: torch.zeros(4, 8)), "experts.2"),
    "one tensor under two names": (replace_tensor("norm.weight", lambda _: torch.zeros(8)), "norm.weight"),
    "fused experts beside others": (
        replace_tensor(f"{EXPERTS}.down_proj", lambda _: torch.zeros(2, 8, 4)),
        "down_proj",
    ),
    "fused experts of odd rows": (replace_tensor(f"{EXPERTS}.gate_up_proj", lambda _: torch.zeros(2, 7, 8)), "gate_up"),
    "fused experts without rows": (
        replace_tensor(f"{EXPERTS}.gate_up_proj", lambda _: torch.zeros(2, 0, 8)),
        "gate_up",
    ),
    "billions of fused experts": (replace_tensor(f"{EXPERTS}.down_proj", lambda _: torch.zeros(10**9, 0, 8)), "down_p"),
    "FP8 without scales": (replace_tensor(UP, lambda t: t.to(FP8)), UP),
    "FP8 norm": (replace_tensor(NORM, lambda t: t.to(FP8)), NORM),
    "scales without FP8": (replace_tensor(f"{UP}_scale_inv", lambda _: torch.ones(1, 1)), UP),
    "scales of nothing": (replace_tensor("a_scale_inv", lambda _: torch.ones(1, 1)), "a_scale_inv"),
}


@pytest.mark.parametrize("lie", TENSORS)
def test_tensors(whole, lie):
    """Catches a model that is loaded in part, or from another one's tensors."""
    change, named = TENSORS[lie]
    change(whole)
    assert named in refused(lambda: load(whole), whole)


@pytest.mark.parametrize("shape", [(2, 3), (0, 8), (1,)])
def test_scales_that_do_not_fit(whole, shape):
    """Catches FP8 blocks multiplied with other blocks' scales, and a crash for matrices without rows."""
    name = "model.layers.1.self_attn.o_proj.weight"
    rows = torch.zeros(0, 8) if 0 in shape else torch.zeros(8, 16)
    scales = torch.ones(0, 1) if 0 in shape else torch.ones(shape)
    edit_tensors(whole / FILE, lambda t: t.update({name: rows.to(FP8), f"{name}_scale_inv": scales}))
    refused(lambda: load(whole), name)


INDEX = "model.safetensors.index.json"


def index(change):
    def lie(folder):
        content = json.loads((folder / INDEX).read_text())
        content = change(content["weight_map"]) or content
        write(folder / INDEX, content)

    return lie


def elsewhere(name, make=lambda folder, file: str(file)):
    """Moves the first shard, and lets the index name its new place."""

    def lie(folder):
        first = sorted(folder.glob("model-*"))[0]
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        first.replace(file)
        new = make(folder, file)
        index(lambda m: m.update({key: new for key, old in m.items() if old == first.name}))(folder)

    return lie


def first_shard(change):
    return lambda folder: change(sorted(folder.glob("model-*"))[0])


def instead(target):
    """A link in place of the first shard."""

    def lie(folder):
        shard = sorted(folder.glob("model-*"))[0]
        file = folder / target
        file.parent.mkdir(parents=True, exist_ok=True)
        if "nothing" in target:
            shard.unlink()
        else:
            shard.replace(file)
        shard.symlink_to(shard if "loop" in target else os.path.relpath(file, folder))

    return lie


def two_shards_hold_it(folder):
    one, two, *_ = sorted(folder.glob("model-*"))
    name = next(key for key, _ in split(one.read_bytes())[0] if key != "__metadata__")
    edit_tensors(two, lambda t: t.update({name: torch.zeros(2)}))


def shards_swapped(folder):
    one, two, *_ = sorted(folder.glob("model-*"))
    one.replace(folder / "x")
    two.replace(one)
    (folder / "x").replace(two)


def pickled(folder):
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    torch.save({}, folder / "pytorch_model.bin")


def a_folder_in_place_of(name):
    def lie(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return lie


SHARDS = {
    "truncated": (first_shard(lambda file: write(file, file.read_bytes()[:-9])), "model-00001"),
    "missing": (first_shard(lambda file: file.unlink()), "model-00001"),
    "last one missing": (lambda folder: sorted(folder.glob("model-*"))[-1].unlink(), INDEX),
    "a folder": (first_shard(lambda file: (file.unlink(), file.mkdir())), "model-00001"),
    "a tensor in two": (two_shards_hold_it, "model-00002"),
    "a tensor that the index lacks": (index(lambda m: m.pop(NORM) and None), NORM),
    "a tensor that no shard has": (index(lambda m: m.update(a=m[NORM])), INDEX),
    "a tensor in another shard": (index(lambda m: m.update({NORM: m["lm_head.weight"]})), INDEX),
    "shards swapped": (shards_swapped, "model-00001"),
    "outside": (elsewhere("../x.safetensors", lambda *_: "../x.safetensors"), "x.safetensors"),
    "outside, absolute": (elsewhere("../x.safetensors", lambda _, file: str(file.resolve())), "x.safetensors"),
    "outside, by a roundabout way": (
        elsewhere("../x.safetensors", lambda f, _: f"../{f.name}/../x.safetensors"),
        "x.s",
    ),
    "in a subfolder": (elsewhere("sub/x.safetensors", lambda *_: "sub/x.safetensors"), "x.safetensors"),
    "not there": (index(lambda m: m.update({NORM: "nowhere.safetensors"})), "nowhere.safetensors"),
    "the folder itself": (index(lambda m: m.update({NORM: "."})), INDEX),
    "no name": (index(lambda m: m.update({NORM: ""})), INDEX),
    "a zero byte": (index(lambda m: m.update({NORM: "a\0b"})), INDEX),
    "half a character": (index(lambda m: m.update({NORM: "a\ud800"})), INDEX),
    "a line break": (index(lambda m: m.update({NORM: "a\nb"})), INDEX),
    "far too long": (index(lambda m: m.update({NORM: "a" * 5000})), ""),
    "config.json as a shard": (index(lambda m: m.update({NORM: "config.json"})), "config.json"),
    "the index as a shard": (index(lambda m: m.update({NORM: INDEX})), INDEX),
    "a link out": (instead("../x.safetensors"), "model-00001"),
    "a link out, into blobs": (instead("../../blobs/abc"), "model-00001"),
    "a link into a subfolder": (instead("blobs/abc"), "model-00001"),
    "a dangling link": (instead("nothing"), "model-00001"),
    "a link to itself": (instead("nothing-loop"), "model-00001"),
    "no weight_map": (lambda folder: write(folder / INDEX, {"metadata": {}}), INDEX),
    "an empty weight_map": (index(lambda m: m.clear()), "weight_map"),
    "weight_map is a list": (lambda folder: write(folder / INDEX, {"weight_map": ["a"]}), INDEX),
    "weight_map holds numbers": (index(lambda m: m.update({NORM: 1})), INDEX),
    "weight_map holds lists": (index(lambda m: m.update({NORM: ["a"]})), INDEX),
    "index is a list": (lambda folder: write(folder / INDEX, []), INDEX),
    "index is not JSON": (lambda folder: write(folder / INDEX, b"{]"), INDEX),
    "index is not UTF-8": (lambda folder: write(folder / INDEX, b'{"\xff": 1}'), INDEX),
    "index is deep": (lambda folder: write(folder / INDEX, nested(10**5)), INDEX),
    "index is a folder": (a_folder_in_place_of(INDEX), INDEX),
    "only a pickle": (pickled, "pytorch_model.bin"),
}


@pytest.mark.parametrize("lie", SHARDS)
def test_shards(shards, lie):
    """Catches a file that is read from outside the folder, one that is overlooked, and a tensor of unclear origin."""
    change, named = SHARDS[lie]
    change(shards)
    assert named in refused(lambda: load(shards), shards)


def test_links_of_the_hub_cache(originals, tmp_path):
    """Catches a loader that refuses the hub's own cache, where files are links into ../../blobs, or a link past it."""
    snapshot, blobs = tmp_path / "models--o--n/snapshots/abc", tmp_path / "models--o--n/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in originals[1].iterdir():
        shutil.copy(file, blobs / f"hash-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash-{file.name}")
    assert use(snapshot)
    assert talk(snapshot)
    for name in ("model-00001-of-00007.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
        file = next(snapshot.glob(f"{name[:11]}*"))
        outside, link = tmp_path / "models--o--n" / "elsewhere" / file.name, file.readlink()
        outside.parent.mkdir(exist_ok=True)
        shutil.copy(file, outside)
        file.unlink()
        file.symlink_to(outside)
        refused(lambda: use(snapshot) and talk(snapshot), file)
        file.unlink()
        file.symlink_to(link)


@some_cases(200)
@given(st.data())
def test_changed_indexes(folder_to_change, data):
    """Catches an exception of another kind, or several lines, for an index that makes no sense."""
    folder = folder_to_change[1]
    good = (folder / INDEX).read_bytes()
    tree = parse(good)
    for _ in range(data.draw(st.integers(1, 3))):
        tree = edit(data.draw, tree, [*ODD, *(file.name for file in folder.iterdir())])
    try:
        write(folder / INDEX, tree)
        answer(lambda: load(folder), folder)
    finally:
        write(folder / INDEX, good)


# ---- config.json and its siblings ------------------------------------------------------------------------------------


JSON = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
NOT_JSON = {"nothing": b"", "open": b"{", "text": b"Hello", "list": b"[]", "null": b"null", "number": b"1"}
NOT_JSON |= {"deep": nested(10**5), "deep inside": Raw('{"a": ' + nested(10**5) + "}"), "zeros": bytes(99)}
NOT_JSON |= {
    "not UTF-8": b'{"a": "\xff"}',
    "huge number": b'{"a": ' + b"9" * 5000 + b"}",
    "UTF-16": "{}".encode("utf-16"),
}


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("lie", NOT_JSON)
def test_not_json(whole, name, lie):
    """Catches a parser's message without the file's name, and a stack that overflows."""
    write(whole / name, NOT_JSON[lie])
    refused(lambda: (load(whole), talk(whole)), whole / name)


@pytest.mark.parametrize("name", [*JSON, FILE, "chat_template.jinja"])
def test_folders_and_dangling_links_in_place_of_files(whole, name):
    """Catches a file that can't be read and is passed over as if it were not there."""
    a_folder_in_place_of(name)(whole)
    refused(lambda: (load(whole), talk(whole)), whole / name)
    (whole / name).rmdir()
    (whole / name).symlink_to("nowhere")
    refused(lambda: (load(whole), talk(whole)), whole / name)


@contextmanager
def without_roots_rights(folder: Path):
    """Root may read everything: within this, it is nobody, and the folders down to `folder` are open."""
    if os.getuid() != 0:
        yield
        return
    above = {up: up.stat().st_mode for up in (folder, *folder.parents) if up.stat().st_mode & 0o055 != 0o055}
    try:
        for up, mode in above.items():
            up.chmod(mode | 0o055)
        os.seteuid(65534)
        yield
    finally:
        os.seteuid(0)
        for up, mode in above.items():
            up.chmod(mode)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has other rights")
@pytest.mark.parametrize("name", [*JSON, FILE])
def test_files_that_may_not_be_read(whole, name):
    """Catches a traceback, or a message that does not name the file."""
    for file in whole.iterdir():
        file.chmod(0 if file.name == name else 0o644)
    with without_roots_rights(whole):
        refused(lambda: (load(whole), talk(whole)), whole / name)


KEYS = [
    *Qwen3NextConfig.__annotations__,
    "model_type",
    "rope_parameters",
    "quantization_config",
    "torch_dtype",
    "dtype",
]
KEYS += ["eos_token_id", "num_labels", "id2label", "self", "to_dict", "_check", "__annotations__", "__dict__", ""]
ROPE = {"rope_theta": 10000.0, "partial_rotary_factor": 0.5, **YARN}
CONFIG_PATHS = [(key,) for key in KEYS]
CONFIG_PATHS += [(group, key) for group in ("rope_scaling", "rope_parameters") for key in [*ROPE, "type", "unknown"]]
CONFIG_PATHS += [("quantization_config", key) for key in ("quant_method", "weight_block_size", "unknown")]
CONFIG_NAMES = ["config.json", *filter(None, KEYS), "generation_config.json"]


def with_value(content: dict, path: tuple, value) -> dict:
    """The same content with one value replaced, or a key added."""
    content, group = dict(content), path[0]
    if len(path) == 1:
        return {**content, group: value}
    start = {"rope_scaling": YARN, "rope_parameters": ROPE, "quantization_config": {"quant_method": "fp8"}}[group]
    if group == "rope_parameters":
        content = {key: x for key, x in content.items() if key not in ("rope_scaling", *ROPE)}
    return {**content, group: {**start, path[1]: value}}


@pytest.mark.parametrize("path", CONFIG_PATHS, ids=".".join)
def test_every_odd_value_of_every_key_of_config(folder_to_change, path):
    """Catches another exception than ValueError, a hang, or gigabytes for a key of the wrong type or size."""
    folder = folder_to_change[0]
    good = (folder / "config.json").read_bytes()
    heads = path[0] in ("num_labels", "id2label", "dtype", "torch_dtype")
    classes = [Qwen3NextForCausalLM, *([Qwen3NextForSequenceClassification] if heads else [])]
    try:
        for value in ODD:
            write(folder / "config.json", with_value(json.loads(good), path, value))
            for cls in classes:
                try:
                    answer(partial(use, folder, cls), *CONFIG_NAMES)
                except Exception as error:
                    raise AssertionError(f"{path} = {dump(value)[:50]}: {type(error).__name__}: {error}") from error
    finally:
        write(folder / "config.json", good)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_every_odd_value_of_every_other_key(folder_to_change, name):
    """Catches a TypeError, or a silent choice, for a key of the wrong type."""
    folder, wrong = folder_to_change[0], []
    good = (folder / name).read_bytes()
    content = json.loads(good)
    more = [] if name.startswith("gen") else ["bos_token", "unk_token"]
    paths = [(key,) for key in [*content, *more, "self", "unknown"]]
    try:
        for (key,) in paths:
            values = [
                *ODD,
                {"content": 1},
                {"content": "a"},
                [{}],
                [{"name": "default"}],
                [{"name": [], "template": 1}],
            ]
            for value in [*values, [{"name": "default", "template": 1}]]:
                write(folder / name, {**content, key: value})
                call = partial(use if name.startswith("gen") else talk, folder)
                try:
                    answer(call, name, key, "chat template")
                except Exception as error:
                    wrong.append(f"{key} = {dump(value)[:50]}: {type(error).__name__}: {error}")
    finally:
        write(folder / name, good)
    assert not wrong, "\n".join(wrong)


@some_cases(200)
@given(st.data())
def test_changed_configs(folder_to_change, data):
    """Catches what two or more wrong keys do together."""
    folder = folder_to_change[0]
    good = (folder / "config.json").read_bytes()
    tree = json.loads(good)
    for _ in range(data.draw(st.integers(1, 3))):
        tree = with_value(tree, data.draw(st.sampled_from(CONFIG_PATHS)), data.draw(st.sampled_from(ODD)))
    tree = parse(dump(tree)) if "[[[[" not in dump(tree) else Pairs(tree.items())
    if data.draw(st.booleans()):
        tree = edit(data.draw, tree)
    try:
        write(folder / "config.json", tree)
        answer(partial(use, folder), *CONFIG_NAMES)
    finally:
        write(folder / "config.json", good)


@some_cases(100)
@given(st.data())
def test_changed_tokenizers(folder_to_change, data):
    """Catches a panic of the tokenizers library, and its exceptions when a tokenizer fails at work."""
    folder = folder_to_change[0]
    name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"]))
    good = (folder / name).read_bytes()
    tree = parse(good)
    if name == "tokenizer.json":  # the words would hide the rest
        model = dict(tree)["model"]
        words = dict(model)
        del words["vocab"][400:], words["merges"][100:]
    for _ in range(data.draw(st.integers(1, 3))):
        tree = edit(data.draw, tree)
    try:
        write(folder / name, tree)
        answer(lambda: talk(folder), name, "chat template")
    finally:
        write(folder / name, good)


def test_tokens_beyond_the_embedding(whole, capsys):
    """Catches an IndexError for a tokenizer with more tokens than rows, or with few tokens and large ids."""
    tokenizer = json.loads((whole / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    for change in ({f"new{i}": 3000 + i for i in range(9)}, {"a": 5000}):
        tokenizer["model"]["vocab"] = {**words, **change}
        write(whole / "tokenizer.json", tokenizer)
        assert main(["--prompt", "a a a", "--raw", "--model", str(whole), "--max-new-tokens", "1"]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


TEMPLATES = ["{{ raise_exception('no\nway') }}", "{% for", "{{ nothing.at.all }}", "{{ 1 / 0 }}", "{% include 'x' %}"]
TEMPLATES += ["{{ 'a' * 10**15 }}", "{{ raise_exception() }}", "{{ [1] | map('x') | list }}", b"\xff"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates(whole, template):
    """Catches a Jinja exception, or several lines of one."""
    write(whole / "chat_template.jinja", template)
    refused(lambda: talk(whole), "chat template", "chat_template.jinja")


# ---- large numbers, full disks, the command line ---------------------------------------------------------------------

LIMITED = """
import resource, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import torch
from qwen3_next import Qwen3NextForCausalLM, Qwen3NextConfig
"""

ABSURD = """
import json, pathlib
folder = pathlib.Path({folder!r})
good = json.loads((folder / "config.json").read_text())
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for key in [*Qwen3NextConfig.__annotations__]:
    if Qwen3NextConfig.__annotations__[key] not in (int, float):
        continue
    for value in (100, 1000, 10**5, 10**6, 10**7, 10**9, 10**12, 2**63, 10**30):
        for more in ({{}}, {{"layer_types": None}}, {{"mlp_only_layers": [0, 1], "intermediate_size": 8}}):
            (folder / "config.json").write_text(json.dumps({{**good, **more, key: value}}))
            started = time.process_time()
            try:
                Qwen3NextForCausalLM.from_pretrained(folder)
            except ValueError as error:
                assert len(str(error).splitlines()) == 1, error
                assert "config.json" in str(error), error
            spent = time.process_time() - started
            assert spent < 1, (key, value, spent)
print("done")
"""

FULL = """
import pathlib
from conftest import random_model
folder = pathlib.Path({folder!r})
before = {{file.name: file.read_bytes() for file in folder.iterdir()}}
model = random_model(torch.float32, seed=1, vocab_size=97)
for shard_size, limit in (("5GB", 50_000), ("5GB", 0), (30_000, 20_000), (30_000, 40_000), ("5GB", 300)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        model.save_pretrained(folder, max_shard_size=shard_size)
    except OSError as error:
        message = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert str(folder) in message and len(message.splitlines()) == 1, message
    assert {{file.name: file.read_bytes() for file in folder.iterdir()}} == before, sorted(folder.iterdir())
model.save_pretrained(folder)
print("done")
"""


MEMORY = """
folder = {folder!r}
from conftest import random_model
random_model(torch.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Qwen3NextForCausalLM.from_pretrained(folder)
except ValueError as error:
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert more < 150, f"{{more:.0f}} MiB"
    assert {named!r} in str(error), error
    print("done")
"""


def fp8_of_another_shape(folder):
    """300 million weights in 8 bits, as holes that take no disk, and a config that does not fit them."""
    config = {**INSTRUCT, "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 8}
    shutil.rmtree(folder)
    write_sparse(folder, config, fp8=True)
    configured(num_attention_heads=8)(folder)


SIZES = {
    "a million stray experts": (
        replace_tensor("a.experts.gate_up_proj", lambda _: torch.zeros(10**6, 2, 1)),
        "a.experts",
    ),
    "a million experts": (replace_tensor(f"{EXPERTS}.gate_up_proj", lambda _: torch.zeros(10**6, 2, 1)), "num_experts"),
    "wide heads": (lambda folder: configured(head_dim=99_999_998)(folder), "head_dim"),
    "FP8": (fp8_of_another_shape, "q_proj"),
}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize("lie", SIZES)
def test_sizes_that_are_believed(whole, lie):
    """Catches gigabytes for what config.json or a shape claims, before they have been compared with each other."""
    change, named = SIZES[lie]
    change(whole)
    code = (LIMITED + MEMORY).format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(whole), named=named)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


def test_some_hundreds_of_changed_folders(tmp_path):
    """Catches a traceback, a hang, or a refusal that names nothing; tests/fuzz_folders.py runs ten thousand."""
    counts, wrong = fuzz_folders.fuzz(range(CASES or 300), tmp_path, lambda line: None)
    assert not wrong, "\n".join(wrong)
    assert counts["refused"] > counts["answered"] > 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's limits")
@pytest.mark.parametrize("script", ["ABSURD", "FULL"])
def test_large_numbers_and_full_disks(whole, script):
    """Catches a config that eats all memory, and a full disk that leaves a folder half old and half new."""
    fields = {"root": str(ROOT), "tests": str(ROOT / "tests"), "folder": str(whole)}
    code = (LIMITED + globals()[script]).format(**fields)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


def test_a_folder_where_a_file_should_be_written(whole):
    """Catches new weights beside the old config.json, after a save that says that nothing was saved."""
    before = (whole / FILE).read_bytes()
    a_folder_in_place_of("config.json")(whole)
    refused(lambda: random_model(seed=1).save_pretrained(whole), "config.json")
    assert (whole / FILE).read_bytes() == before
    assert not list(whole.glob("*.tmp"))


def configured(**fields):
    def lie(folder):
        write(folder / "config.json", {**json.loads((folder / "config.json").read_text()), **fields})

    return lie


COMMANDS = {
    "truncated": (lambda folder: write(folder / FILE, (folder / FILE).read_bytes()[:-9]), FILE),
    "no weights": (lambda folder: (folder / FILE).unlink(), FILE),
    "only a pickle": (pickled, "pytorch_model.bin"),
    "a line break in a name": TENSORS["a line break in its name"],
    "another model": (configured(model_type="llama"), "model_type"),
    "another quantisation": (configured(quantization_config={"quant_method": "awq"}), "quant_method"),
    "quantisation is a list": (configured(quantization_config=[1]), "quantization_config"),
    "another layer count": (configured(num_hidden_layers=3, layer_types=None), "config.json"),
    "another expert count": (configured(num_experts=3), "config.json"),
    "a billion layers": (configured(num_hidden_layers=10**9, layer_types=None), "num_hidden_layers"),
    "a billion experts": (configured(num_experts=10**9), "num_experts"),
    "infinity": (configured(rope_theta=INF), "rope_theta"),
    "deep": (configured(unknown=nested(10**5)), "config.json"),
    "a method's name": (configured(to_dict=1), "to_dict"),
    "end token is text": (
        lambda folder: write(folder / "generation_config.json", {"eos_token_id": "a"}),
        "eos_token_id",
    ),
    "pad token is text": (
        lambda folder: write(folder / "generation_config.json", {"pad_token_id": "a"}),
        "pad_token_id",
    ),
    "token is a number": (lambda folder: write(folder / "tokenizer_config.json", {"eos_token": 5}), "eos_token"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    "a template that refuses": (
        lambda f: write(f / "chat_template.jinja", "{{ raise_exception('no') }}"),
        "template: no",
    ),
}


@pytest.mark.parametrize("lie", COMMANDS)
def test_command_line(whole, capsys, lie):
    """Catches a traceback, several lines, text on standard output, or another exit code than 1."""
    change, named = COMMANDS[lie]
    change(whole)
    assert main(["--prompt", "a", "--model", str(whole), "--max-new-tokens", "1"]) == 1
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1), (out, err)
    assert named in err


def test_in_a_process_of_its_own(whole):
    """Catches an exception that only Python's own end turns into a traceback, and a signal that ends it."""
    command = [sys.executable, str(ROOT / "qwen3_next.py"), "--prompt", "a", "--model", str(whole)]
    for change, _ in (COMMANDS["truncated"], COMMANDS["deep"]):
        change(whole)
        result = subprocess.run(command, capture_output=True, text=True)
        assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1), result.stderr
