"""Claim: `python qwen3_next.py` prints the text alone, streams it whole, and answers any user error with one line."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

import qwen3_next
from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer
from qwen3_next_checkpoints import large


def run(*arguments, cwd=ROOT, **kwargs):
    command = [sys.executable, str(ROOT / "qwen3_next.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=cwd, **kwargs)


def test_a_first_answer():
    """Catches a default model, template or sampling that yields no story."""
    result = run("--prompt", "Once upon a time", "--seed", 0)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert len(result.stdout.split()) >= 60
    assert result.stdout.startswith("Once upon a time")
    assert "<|" not in result.stdout
    assert "\ufffd" not in result.stdout


def test_the_sample_in_the_readme():
    """Catches a first screen that shows what its command does not print: float32 rounds alike on all processors."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"python qwen3_next.py (--prompt .*)\n", text)[1]
    shown = " ".join(line.removeprefix("> ") for line in text.splitlines() if line.startswith("> "))
    result = run(*shlex.split(command))
    assert result.returncode == 0, result.stderr
    assert " ".join(result.stdout.split()) == shown


def test_from_another_folder_with_statistics(tmp_path):
    """Catches a default model looked for in the working directory, and statistics among the text."""
    result = run("--prompt", "Tell me a story.", "--greedy", "--stats", "--max-new-tokens", 20, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == ["prompt", "answer", "routed experts", "peak memory"]
    assert lines[0].startswith("prompt: ")
    assert "20 tokens" in lines[1]
    assert "tokens/s" not in result.stdout


def test_text_is_that_of_generate(tiny):
    """Catches streaming that loses or repeats pieces, and --raw that still goes through the template."""
    tokenizer, model = Qwen3NextTokenizer.from_pretrained(tiny), Qwen3NextForCausalLM.from_pretrained(tiny)
    for raw in (True, False):
        text = "One cold morning"
        if not raw:
            text = tokenizer.apply_chat_template([{"role": "user", "content": text}])
        inputs = tokenizer([text], return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs.input_ids.shape[1] :]
        result = run("--prompt", "One cold morning", "--greedy", "--max-new-tokens", 40, *(["--raw"] if raw else []))
        assert result.stdout == tokenizer.decode(ids, skip_special_tokens=True) + "\n"


@pytest.mark.parametrize("rule", ["chunk", "recurrent"])
def test_options_reach_the_model(checkpoint, rule):
    """Catches an option that is parsed and dropped."""
    result = run(
        *("--model", checkpoint, "--prompt", "Hello", "--dtype", "float64", "--device", "cpu", "--delta-rule", rule),
        *("--temperature", 0.9, "--top-k", 50, "--top-p", 0.9, "--seed", 3, "--max-new-tokens", 8, "--stats"),
    )
    assert result.returncode == 0, result.stderr
    tokenizer = Qwen3NextTokenizer.from_pretrained(checkpoint)
    model = Qwen3NextForCausalLM.from_pretrained(checkpoint, dtype="float64", delta_rule=rule)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
    inputs = tokenizer([text], return_tensors="pt")
    options = {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "seed": 3, "do_sample": True}
    ids = model.generate(**inputs, max_new_tokens=8, **options)[0, inputs.input_ids.shape[1] :]
    found = result.stdout.removesuffix("\n")
    assert tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd").startswith(found.rstrip("\ufffd"))


def test_in_memory_reaches_the_model(tiny, monkeypatch, capsys):
    """Catches --in-memory that changes the text, or is parsed and dropped: without memory it has to give up."""
    options = ["--prompt", "One cold morning", "--greedy", "--max-new-tokens", "12", "--device", "cpu"]
    assert qwen3_next.main(options) == qwen3_next.main([*options, "--in-memory"]) == 0
    mapped, copied = capsys.readouterr().out.splitlines()
    assert mapped == copied
    monkeypatch.setattr(large, "free_memory", lambda: 0)
    assert qwen3_next.main([*options, "--in-memory"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "qwen3_next.py: in_memory: 0.0 GB of weights, but 0.0 GB of memory are free\n")


def test_prompts_from_files_and_standard_input(tmp_path):
    """Catches a file that is cut, stripped or decoded differently from the command line."""
    text, options = "Tell me a story about\n\na fox.", ("--greedy", "--max-new-tokens", 12)
    expected = run("--prompt", text, *options).stdout
    (tmp_path / "prompt.txt").write_bytes(text.encode())
    assert run("--prompt-file", tmp_path / "prompt.txt", *options).stdout == expected
    assert run("--prompt", "-", *options, input=text).stdout == expected


def test_drafts(checkpoint):
    """Catches --draft-tokens that changes the text, and statistics that count something else."""
    fixed = ("--model", checkpoint, "--prompt", "Hello", "--dtype", "float64", "--greedy", "--max-new-tokens", 20)
    plain, drafted = run(*fixed), run(*fixed, "--draft-tokens", 3, "--stats")
    assert plain.stdout == drafted.stdout
    line = next(line for line in drafted.stderr.splitlines() if line.startswith("drafts:"))
    total, accepted, shares = re.fullmatch(r"drafts: (\d+), (\d+) accepted; by position (.*)", line).groups()
    assert int(total) > 20
    assert int(accepted) <= int(total)
    assert shares.count("%") == 3
    none = run("--prompt", "Hello", "--draft-tokens", 1, "--model", checkpoint.parent)
    assert (none.returncode, len(none.stderr.splitlines())) == (1, 1)


def test_stop_strings_across_token_borders(tiny):
    """Catches a stop string missed because it spans tokens, and text printed from it or held back for nothing."""
    free = run("--prompt", "Once upon a time", "--greedy", "--max-new-tokens", 60).stdout.rstrip("\n")
    stop = free[60:75]
    tokenizer = Qwen3NextTokenizer.from_pretrained(tiny)
    assert len(tokenizer.encode(stop)) > 1
    options = ("--prompt", "Once upon a time", "--greedy", "--max-new-tokens", 60)
    assert run(*options, "--stop", stop, "--stop", "@@@").stdout == free[: free.index(stop)] + "\n"
    assert run(*options, "--stop", free[-6:] + "?!").stdout == free + "\n"


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        ([], 2, "--prompt"),
        (["--prompt", "a", "--prompt-file", "b"], 2, "--prompt-file"),
        (["--prompt-file", "no-such-file"], 1, "no-such-file"),
        (["--prompt-file", str(ROOT / "tiny" / "model.safetensors")], 1, "not UTF-8"),
        (["--prompt"], 2, "--prompt"),
        (["--prompt", "a", "--top-k", "x"], 2, "--top-k"),
        (["--prompt", "a", "--delta-rule", "fast"], 2, "--delta-rule"),
        (["--prompt", "a", "--model", "/nowhere"], 1, "/nowhere"),
        (["--prompt", "a", "--model", "no-such-folder"], 1, "no-such-folder"),
        (["--prompt", "a", "--dtype", "int8"], 1, "int8"),
        (["--prompt", "a", "--device", "abacus"], 1, "abacus"),
        (["--prompt", "a", "--top-p", "2"], 1, "top_p"),
        (["--prompt", "a", "--temperature", "-1"], 1, "temperature"),
        (["--prompt", "a", "--max-new-tokens", "-1"], 1, "max_new_tokens"),
        (["--prompt", "", "--raw"], 1, "the prompt is empty"),
    ],
)
def test_user_errors(arguments, code, named):
    """Catches a traceback, text on standard output, or a message that does not name the option."""
    result = run(*arguments)
    assert result.returncode == code
    assert result.stdout == ""
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    if code == 1:
        assert len(result.stderr.splitlines()) == 1


def test_a_hub_name_that_can_not_be_reached():
    """Catches a library's traceback in place of one line."""
    result = run("--prompt", "a", "--model", "nobody/no-such-model")
    assert result.returncode == 1
    assert "nobody/no-such-model" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_broken_checkpoints(checkpoint, tmp_path):
    """Catches a checkpoint whose config or tokenizer does not fit its weights."""
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    for change, named in (
        ({"vocab_size": 500}, "embed_tokens"),
        ({"model_type": "llama"}, "config.json"),
        ({"num_hidden_layers": 3}, "layers"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, "layer_types": None, **change}))
        result = run("--prompt", "a", "--model", tmp_path)
        assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
        assert named in result.stderr


def test_output_closed_early():
    """Catches a traceback when the reader leaves, as `| head -1` does."""
    command = f'"{sys.executable}" "{ROOT / "qwen3_next.py"}" --prompt "Tell me a story." | head -c 5'
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr
