"""Claim: what can't be obeyed is refused in one line that names it; Python's own errors and libraries' panics, too."""

import io
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, random_model, tokens

import chat
import qwen3_next
from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer, main

sys.path.insert(0, str(ROOT))
from verify import score  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return random_model(torch.float32)


def refused(capsys, call, *arguments) -> str:
    """The one line on standard error of a command line that has to fail, without text on standard output."""
    assert call([str(argument) for argument in arguments]) == 1
    out, err = capsys.readouterr()
    err = err.removeprefix("> ")
    assert (out, len(err.splitlines())) == ("", 1), err
    assert "Traceback" not in err
    return err


class Input(io.TextIOWrapper):
    """Standard input that holds these bytes, read as strictly as Python does in UTF-8, or as in the C locale."""

    def __init__(self, data: bytes, errors: str = "strict"):
        super().__init__(io.BytesIO(data), "utf-8", errors)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_bytes_that_are_not_utf8(tiny, monkeypatch, capsys, errors):
    """Catches a UnicodeError, or a TypeError of the tokenizers library, for a byte of another encoding."""
    few = ("--model", tiny, "--max-new-tokens", 1)
    assert "--prompt: not UTF-8" in refused(capsys, main, "--prompt", "caf\udce9", *few)
    assert "--system: not UTF-8" in refused(capsys, main, "--prompt", "a", "--system", "caf\udce9", *few)
    for call, options in ((main, ("--prompt", "-")), (chat.main, ())):
        monkeypatch.setattr("sys.stdin", Input(b"caf\xe9\n", errors))
        assert "utf-8" in refused(capsys, call, *options, *few).lower()
        monkeypatch.setattr("sys.stdin", None)  # closed, by <&-
        assert "standard input is closed" in refused(capsys, call, *options, *few)


@pytest.mark.parametrize("pair", ["messages=[]", "self=1", "tokenize=true", "return_dict=true"])
def test_variables_that_are_no_templates(tiny, monkeypatch, capsys, pair):
    """Catches a TypeError for an argument that is given twice, and ids where a text is expected."""
    monkeypatch.setattr("sys.stdin", Input(b"Hello!\n"))
    name = pair.partition("=")[0]
    assert f"--template-arg {name}" in refused(capsys, chat.main, "--model", tiny, "--template-arg", pair)


OPTIONS = [("--draft-tokens", 10**30, "num_draft_tokens"), ("--draft-tokens", 10**9, "num_draft_tokens")]
OPTIONS += [("--max-new-tokens", 10**30, "max_new_tokens"), ("--seed", 10**30, "seed"), ("--seed", -1, "seed")]
OPTIONS += [("--top-k", 10**30, "top_k"), ("--device", "hpu", "hpu"), ("--device", "cpu:99x", "cpu:99x")]


@pytest.mark.parametrize(("option", "value", "named"), OPTIONS)
def test_numbers_out_of_bounds(tiny, capsys, option, value, named):
    """Catches an OverflowError, gigabytes for a list of counts, and a device that PyTorch knows but does not have."""
    assert named in refused(capsys, main, "--prompt", "a", "--model", tiny, option, value)


def panic(name: str) -> type:
    """A class like that of a panic in Rust, which is no Exception."""
    return type(name, (BaseException,), {})


@pytest.mark.parametrize("error", [panic("PanicException"), RuntimeError, ZeroDivisionError, TypeError])
def test_failures_of_the_tokenizer(tiny, monkeypatch, capsys, error):
    """Catches a panic of the tokenizers library, which `except Exception` lets through, when it encodes or decodes."""
    tokenizer = Qwen3NextTokenizer.from_pretrained(tiny)

    class Backend:
        def fail(self, *_):
            raise error("the\nmatter")

        encode = decode = encode_batch = fail

    tokenizer.backend = Backend()
    for call in (lambda: tokenizer.encode("a"), lambda: tokenizer(["a"]), lambda: tokenizer.decode([1])):
        with pytest.raises(ValueError, match=r"^tokenizer.json: can't (en|de)code .*the matter"):
            call()

    class Stream:
        def step(self, *_):
            raise error("in the stream")

    monkeypatch.setattr("tokenizers.decoders.DecodeStream", lambda **_: Stream())
    assert "in the stream" in refused(capsys, main, "--prompt", "a", "--model", tiny)


def test_what_is_no_text(tiny):
    """Catches a TypeError of the tokenizers library for bytes, numbers and half characters."""
    tokenizer = Qwen3NextTokenizer.from_pretrained(tiny)
    for text in (b"a", 1, None, "\ud800"):
        with pytest.raises(ValueError, match="tokenizer.json: can't encode"):
            tokenizer.encode(text)
        with pytest.raises(ValueError, match="tokenizer.json: can't encode"):
            tokenizer([text])
    with pytest.raises(ValueError, match="tokenizer.json: can't decode"):
        tokenizer.decode([-1])


def test_arguments_that_are_no_tensors(model):
    """Catches Python's own "not enough values to unpack" or "has no attribute" for ids and masks of another kind."""
    ids = tokens(1, 4)
    lists = ids.tolist()
    with pytest.raises(ValueError, match=r"input_ids has shape \(4,\), expected \(batch, tokens\)"):
        model.generate(ids[0])
    for call in (model, model.generate, model.model):
        with pytest.raises(ValueError, match="input_ids is a list, expected a tensor"):
            call(lists)
        with pytest.raises(ValueError, match="attention_mask is a list, expected a tensor"):
            call(ids, attention_mask=[[1, 1, 1, 1]])
    with pytest.raises(ValueError, match="position_ids is a ndarray, expected a tensor"):
        model(ids, position_ids=np.arange(4)[None])
    with pytest.raises(ValueError, match=r"shape \(4, 48\)"):
        model(ids[0])


def test_numbers_of_numpy(model):
    """Catches counts and settings that are refused, or another text, because NumPy's numbers are not Python's."""
    ids = tokens(1, 4)
    plain = {"max_new_tokens": 6, "seed": 3, "top_k": 20, "temperature": 0.5, "top_p": 0.75}
    numpy = {"max_new_tokens": np.int64(6), "seed": np.uint32(3), "top_k": np.int32(20), "top_p": np.float32(0.75)}
    expected = model.generate(ids, eos_token_id=None, **plain)
    assert torch.equal(model.generate(ids, eos_token_id=None, temperature=np.float64(0.5), **numpy), expected)


def test_a_streamer_of_transformers(tiny, capsys):
    """Catches a TextStreamer that can't be called, does not see the prompt, or keeps the last word to itself."""
    from transformers import TextStreamer

    tokenizer, model = Qwen3NextTokenizer.from_pretrained(tiny), Qwen3NextForCausalLM.from_pretrained(tiny)
    ids = tokenizer(["Once upon a time"], return_tensors="pt").input_ids
    for skip in (False, True):
        out = model.generate(ids, max_new_tokens=9, streamer=TextStreamer(tokenizer, skip_prompt=skip))
        text = tokenizer.decode(out[0, ids.shape[1] if skip else 0 :])
        assert capsys.readouterr().out == text + "\n"


@pytest.mark.parametrize("text", ["\u0958", "\u00e9", "a"])
def test_a_text_with_nothing_to_predict(tiny, tmp_path, capsys, text):
    """Catches a ZeroDivisionError for one character, and fewer than no bits a byte: parts of it are no characters."""
    (tmp_path / "text").write_text(text, encoding="utf-8")
    arguments = [str(tmp_path / "text"), "--model", str(tiny)]
    code = score.main(arguments)
    out, err = capsys.readouterr()
    if code:
        assert err.startswith(f"score.py: {tmp_path / 'text'}: ")
        assert len(err.splitlines()) == 1
    else:
        assert float(out.split(", ")[-1].split()[0]) > 0


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
@pytest.mark.parametrize("file", ["qwen3_next.py", "chat.py"])
def test_an_interrupt_while_importing(file):
    """Catches the traceback of a Ctrl-C that comes while PyTorch is imported, which takes seconds."""

    def heed():  # a job that a shell has put into the background ignores Ctrl-C, and so would we
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [sys.executable, "-X", "importtime", str(ROOT / file), *(["--prompt", "a"] if file[0] == "q" else [])]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with subprocess.Popen(command, preexec_fn=heed, text=True, **pipes) as process:
        for line in process.stderr:  # a line for each module that has been imported
            if "torch." in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.wait() in (-signal.SIGINT, 130)
    assert "Traceback" not in rest
    assert "KeyboardInterrupt" not in rest


def test_terminal_escapes_are_escaped(tmp_path, capsys):
    """Catches a name in a file that clears the terminal, or writes a line of its own, when it is quoted."""
    name = "\x1b[2J"
    with pytest.raises(ValueError) as error:
        qwen3_next.expect(False, f"{name}\u202e\nand \u00e9")
    assert str(error.value) == "\\x1b[2J\\u202e and \u00e9"
    folder = tmp_path / name
    assert "\\x1b[2J" in refused(capsys, main, "--prompt", "a", "--model", folder)


def test_a_stop_string_without_letters(tiny, capsys):
    """Catches an error that names nothing: every text holds this one from the beginning."""
    options = ["--model", str(tiny), "--device", "cpu", "--prompt", "Hello!", "--max-new-tokens", "3", "--stop", ""]
    assert main(options) == 0
    assert capsys.readouterr() == ("\n", "")
