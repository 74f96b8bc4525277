"""Claim: qwen3_next.py runs alone in a folder, says which sibling it lacks, and is installed with all that it needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import to_fp8, write
from conftest import ROOT, random_model
from test_house import PACKAGE, SIBLINGS, tomllib
from test_qwen3_5 import release, their_model

ALONE = f"""
import sys
sys.modules["{PACKAGE}"] = None  # not even from an installation
import qwen3_next
assert qwen3_next.__file__.startswith({{folder!r}})
"""

EVERYTHING = """
import torch
import qwen3_next as q
path = {checkpoint!r}
tokenizer, model = q.Qwen3NextTokenizer.from_pretrained(path), q.Qwen3NextForCausalLM.from_pretrained(path)
messages = [{{"role": "user", "content": "Tell me a story."}}]
ids = tokenizer([tokenizer.apply_chat_template(messages)], return_tensors="pt").input_ids
fixed = {{"max_new_tokens": 20, "do_sample": False}}
other = q.Qwen3NextForCausalLM.from_pretrained(path, "float64", delta_rule="recurrent", device_map="auto")
plain = other.generate(ids, **fixed)
assert torch.equal(plain, other.generate(ids, num_draft_tokens=2, **fixed))
assert tokenizer.decode(model.generate(ids, **fixed)[0])
model.float()(ids, labels=ids, output_router_logits=True, output_mtp_logits=True).loss.backward()
for head in (q.Qwen3NextForSequenceClassification, q.Qwen3NextForTokenClassification, q.Qwen3NextForQuestionAnswering):
    head(model.config)(ids)
print("done")
"""


def python(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    """Python in a folder, without this repository on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=folder, env=environment)


@pytest.fixture
def alone(tmp_path) -> Path:
    """A folder with nothing but the file."""
    folder = tmp_path / "alone"
    folder.mkdir()
    shutil.copy(ROOT / "qwen3_next.py", folder)
    return folder


@pytest.mark.parametrize("name", ["tiny", "sharded"])
def test_everything_runs_alone(alone, checkpoint, tmp_path, name):
    """Catches a component, a head, a draft or a format of the released checkpoint that needs another file."""
    path = ROOT / "tiny"
    if name == "sharded":  # bfloat16, in several files with an index, experts one by one: the released layout
        path = tmp_path / "sharded"
        random_model(torch.bfloat16, vocab_size=2048, mtp_num_hidden_layers=1).save_pretrained(path, "500KB")
        for file in checkpoint.glob("tokenizer*"):
            shutil.copy(file, path)
        shutil.copy(ROOT / "tiny" / "tokenizer_config.json", path)
    code = ALONE.format(folder=str(alone)) + EVERYTHING.format(checkpoint=str(path))
    result = python(alone, "-c", code)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


def test_the_command_line_runs_alone(alone):
    """Catches an option of --prompt that is there only next to the other files."""
    options = ["--model", str(ROOT / "tiny"), "--prompt", "Once upon a time", "--dtype", "float32", "--greedy"]
    options += ["--max-new-tokens", "20", "--stop", "there", "--draft-tokens", "1"]
    code = ALONE.format(folder=str(alone)) + f"sys.exit(qwen3_next.main({options!r}))"
    result = python(alone, "-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    expected = python(ROOT, ROOT / "qwen3_next.py", *options)
    assert result.stdout == expected.stdout
    assert result.stdout.startswith("Once upon a time")


def fp8(folder: Path):
    model = random_model(torch.float32, hidden_size=128)
    eight, _ = to_fp8({name: p.detach() for name, p in model.named_parameters()})
    write(folder, model.config.to_dict(), eight, fp8=True)


def qwen3_5(folder: Path):
    release(folder, their_model("qwen3_5"))


CALLS = {
    "compiling": (None, "q.Qwen3NextForCausalLM.from_pretrained({tiny!r}, compile=True)"),
    "formats": (fp8, "q.Qwen3NextForCausalLM.from_pretrained(path)"),
    "qwen3_5": (qwen3_5, "q.Qwen3NextForCausalLM.from_pretrained(path)"),
    "large": (None, "q.Qwen3NextForCausalLM.from_pretrained({tiny!r}, in_memory=True)"),
    "dispatch": (
        None,
        "q.Qwen3NextForCausalLM.from_pretrained({tiny!r}, device_map='auto', max_memory={{'cpu': '1GiB'}})",
    ),
    "hub": (None, "q.find_checkpoint('some-owner/some.name', {{}})"),
    "penalties": (
        None,
        "q.Qwen3NextForCausalLM.from_pretrained({tiny!r}).generate(q.torch.ones(1, 2), min_new_tokens=9)",
    ),
    "stats": (None, "q.sibling('stats', '--stats')"),  # as the command line asks for it
    "saving": (None, "q.Qwen3NextForCausalLM.from_pretrained({tiny!r}).save_pretrained(path)"),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_missing_is_named(alone, tmp_path, name):
    """Catches an ImportError, or a checkpoint that is read wrongly, where the file is alone."""
    # without checks, nothing is answered differently; without the others, Python names what is not there
    assert CALLS.keys() == set(SIBLINGS) - {"checks", "caches", "compat", "generation", "grouped"}
    make, call = CALLS[name]
    if make:
        make(tmp_path / "checkpoint")
    path = tmp_path / "checkpoint"
    code = f"q, path = qwen3_next, {str(path)!r}\ntry:\n    {call.format(tiny=str(ROOT / 'tiny'))}\n"
    code += "except ValueError as error:\n    print(error)\n"
    result = python(alone, "-c", ALONE.format(folder=str(alone)) + code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"needs {PACKAGE}/{name}.py, which comes with this file's repository)\n") or (
        result.stdout.endswith(f"needs {PACKAGE}/{name}.py, which comes with this file's repository\n")
    )
    assert len(result.stdout.splitlines()) == 1
    assert name != "saving" or not path.exists()


@pytest.mark.parametrize("make", [fp8, qwen3_5])
def test_what_is_installed_is_enough(tmp_path, make):
    """Catches a wheel that lacks a module: pyproject.toml's list of files, in a folder of its own."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folder = tmp_path / "installed"
    folder.mkdir()
    for name in settings["py-modules"]:
        shutil.copy(ROOT / f"{name}.py", folder)
    for name in settings["packages"]:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert {path.name for path in folder.iterdir()} == {"qwen3_next.py", "reference_recurrent.py", PACKAGE}
    make(tmp_path / "checkpoint")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "tiny" / name, tmp_path / "checkpoint")
    code = "import sys, qwen3_next, qwen3_next_checkpoints.large as large\n"
    code += f"assert large.__file__.startswith({str(folder)!r})\nprint(len(qwen3_next.Qwen3NextForCausalLM"
    code += f".from_pretrained({str(tmp_path / 'checkpoint')!r}).generate(qwen3_next.torch.tensor([[1, 2, 3]]))[0]))"
    result = python(folder, "-c", code)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 3
