"""Claim: verify/score.py's perplexity is that of one pass over the whole text, and user errors end in one line."""

import math
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, random_model, tokens

from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer

sys.path.insert(0, str(ROOT))
from verify.score import score  # noqa: E402


def run(*arguments):
    command = [sys.executable, "verify/score.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=ROOT)


def test_score(tmp_path, tiny):
    """Catches a perplexity over the wrong tokens, or one that depends on how the text is cut into windows."""
    tokenizer, model = Qwen3NextTokenizer.from_pretrained(tiny), Qwen3NextForCausalLM.from_pretrained(tiny, "float32")
    text = "Once upon a time there was a fox named Pip. " * 60
    (tmp_path / "text.txt").write_text(text)
    ids = torch.tensor([tokenizer.encode(text)])
    assert ids.shape[1] > 600
    with torch.no_grad():
        nats = model(ids, labels=ids).loss.item()
    result = run("--model", tiny, tmp_path / "text.txt", "--dtype", "float32")
    found = re.fullmatch(r"(\d+) tokens, (\d+) bytes: perplexity ([\d.]+), ([\d.]+) bits per byte .*\n", result.stdout)
    assert (int(found[1]), int(found[2])) == (ids.shape[1], len(text))
    assert float(found[3]) == pytest.approx(math.exp(nats), rel=1e-4)
    bits = nats * (ids.shape[1] - 1) / math.log(2) / (len(text) - len(tokenizer.decode(ids[0, :1])))
    assert float(found[4]) == pytest.approx(bits, rel=1e-3)


@pytest.mark.parametrize("count", [2, 3, 9, 10, 11])
@pytest.mark.parametrize("window", [1, 3, 512])
def test_windows(count, window):
    """Catches a token that is counted twice or not at all where two windows meet, and at the end."""
    model, ids = random_model(torch.float64), tokens(1, count)
    with torch.no_grad():
        nats = model(ids, labels=ids).loss.item() * (count - 1)
    assert score(model, ids, window) == pytest.approx(nats, rel=1e-10)


def test_options_reach_the_model(tmp_path, tiny):
    """Catches --dtype, --device or --delta-rule that is parsed and dropped."""
    (tmp_path / "text.txt").write_text("Once upon a time there was a fox named Pip, who lived near a stream.")
    model = Qwen3NextForCausalLM.from_pretrained(tiny, "bfloat16", delta_rule="recurrent")
    ids = Qwen3NextTokenizer.from_pretrained(tiny).encode((tmp_path / "text.txt").read_text())
    expected = math.exp(score(model, torch.tensor([ids])) / (len(ids) - 1))
    options = ("--dtype", "bfloat16", "--device", "cpu", "--delta-rule", "recurrent")
    assert f"perplexity {expected:.4f}," in run("--model", tiny, tmp_path / "text.txt", *options).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--model", "tiny"], 2, "FILE"),
        (["README.md"], 2, "--model"),
        (["--model", "tiny", "README.md", "--delta-rule", "fast"], 2, "--delta-rule"),
        (["--model", "tiny", "no-such-file"], 1, "no-such-file"),
        (["--model", "tiny", "tiny/model.safetensors"], 1, "not UTF-8"),
        (["--model", "tiny", "README.md", "--dtype", "int8"], 1, "int8"),
        (["--model", "tiny", "README.md", "--device", "abacus"], 1, "abacus"),
        (["--model", "no-such-folder", "README.md"], 1, "no-such-folder"),
    ],
)
def test_user_errors(arguments, code, named):
    """Catches a traceback, text on standard output, or a message that does not name the option or file."""
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    if code == 1:
        assert len(result.stderr.splitlines()) == 1


def test_a_text_of_one_token(tmp_path, tiny):
    """Catches a division by 0 where nothing is predicted."""
    (tmp_path / "a.txt").write_text("a")
    result = run("--model", tiny, tmp_path / "a.txt")
    assert (result.returncode, result.stdout) == (1, "")
    assert "1 tokens, expected at least 2" in result.stderr
