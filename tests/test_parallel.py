"""Claim: parallel.py gives with several processes what qwen3_next.py gives with one, and ends as a whole."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from checkpoints import INSTRUCT, shapes, to_fp8, write
from conftest import BASE, ROOT, random_model
from ranks import results

import parallel
import qwen3_next
from qwen3_next import Qwen3NextConfig, Qwen3NextForCausalLM

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torchrun and gloo, and processes by /proc")
# The released numbers of heads, in a small width
HEADS = {
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "partial_rotary_factor": 0.5,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 6,
    "num_experts": 64,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 4,
    "mtp_num_hidden_layers": 1,
}
# Fewer key heads than ranks, biases, a dense layer, and lengths that four does not divide
UNEVEN = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "attention_bias": True,
    "tie_word_embeddings": True,
    "mlp_only_layers": [1],
    "shared_expert_intermediate_size": 18,
    "intermediate_size": 42,
    "num_experts": 5,
    "mtp_num_hidden_layers": 1,
}


def torchrun(*arguments: object, ranks: int = 2, **options) -> subprocess.CompletedProcess:
    """A program of ours by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"capture_output": True, "text": True, "encoding": "utf-8", "cwd": ROOT, "env": environment, **options}
    return subprocess.run([*command, *map(str, arguments)], timeout=300, **options)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Path:
    """A folder of models, and of what four ranks and two made of them."""
    folder = tmp_path_factory.mktemp("parallel")
    random_model(**HEADS).save_pretrained(folder / "heads")
    random_model(**UNEVEN).save_pretrained(folder / "uneven")
    model = random_model(torch.bfloat16, mtp_num_hidden_layers=1, linear_num_value_heads=8, num_attention_heads=8)
    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    (folder / "fp8").mkdir()
    write(folder / "fp8", model.config.to_dict(), to_fp8(tensors)[0])
    (folder / "tiny").symlink_to(ROOT / "tiny")
    result = torchrun("tests/ranks.py", folder, ranks=4)
    assert result.returncode == 0, result.stderr
    return folder


@functools.cache
def by_one_process(folder: Path) -> dict[str, torch.Tensor]:
    """What one process makes of a model."""
    return results(Qwen3NextForCausalLM.from_pretrained(folder, "float64"))


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", ["heads", "uneven", "fp8", "tiny"])
def test_several_processes_compute_what_one_does(found, name, ranks):
    """Catches a head in a wrong place, a bias that is added on every rank, a part that is not summed or summed twice,
    a state or a cache cut in another way than the weights, and ranks that choose different tokens."""
    expected = by_one_process(found / name)
    together = torch.load(found / f"{name}-{ranks}.pt")
    for key, x in expected.items():
        if x.is_floating_point():
            assert (together[key] - x).abs().max() < 1e-9 * max(1, x.std()), key
        else:
            assert torch.equal(together[key], x), key


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_holds_its_part_alone(found, ranks):
    """Catches weights that every rank copies as a whole: then more ranks would not make room for a larger model."""
    config = Qwen3NextConfig.from_pretrained(found / "heads")
    model = Qwen3NextForCausalLM(config).double()
    everywhere = ("embed_tokens", "norm", "mlp.gate.", "shared_expert_gate", "mtp.fc")
    copied = sum(p.nbytes for name, p in model.named_parameters() if any(word in name for word in everywhere))
    cut = sum(p.nbytes for p in model.parameters()) - copied
    # Of 2 key and value heads, four ranks hold a copy of one each; the vocabulary of 97 is filled up to 98 and 100 rows
    more = 8 * 48 * (2 * 2 * 8 * 2 * (ranks // 4) + (-97 % ranks))
    assert sum(torch.load(found / f"heads-{ranks}.pt")["bytes"]) == ranks * copied + cut + more


@pytest.mark.parametrize(("ranks", "expected"), [(2, 80.0), (4, 40.4), (8, 20.6), (16, 10.7)])
def test_the_80b_by_ranks(ranks, expected):
    """Catches figures in docs/scale.md that are not those of the code."""
    config = Qwen3NextConfig(**INSTRUCT)
    size = dict.fromkeys(range(ranks), 0)
    for name, shape in shapes(INSTRUCT, mtp=False).items():
        expert = re.search(r"experts\.(\d+)", name)
        for rank in [int(expert[1]) % ranks] if expert else size:
            share = parallel.Share(config, rank, ranks)
            assert share.holds(name)
            size[rank] += 2 * share.part(name, torch.empty(shape, device="meta")).numel()
    assert len(set(size.values())) == 1
    assert round(size[0] / 1e9, 1) == expected
    assert f"| {ranks} | {expected} |" in (ROOT / "docs" / "scale.md").read_text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 2}, "4 processes can't share .* full_attention .* 6 heads"),
        ({"num_attention_heads": 12, "num_key_value_heads": 3}, "12 heads on 3 key heads"),
        ({"linear_num_value_heads": 6}, "linear_attention layer equally: 6 heads on 2"),
        ({"num_experts": 3}, "4 processes, but only 3 experts"),
    ],
)
def test_what_can_not_be_divided_is_refused(fields, message):
    """Catches heads that are lost or computed twice without a word."""
    even = {"linear_num_value_heads": 8, "num_attention_heads": 8}
    with pytest.raises(ValueError, match=message):
        parallel.Share(Qwen3NextConfig(**{**BASE, **even, **fields}), 0, 4)


@pytest.mark.parametrize("name", ["cuda:1", "mps"])
def test_one_device_for_all_is_refused(name):
    """Catches processes that all take the same device."""
    with pytest.raises(ValueError, match=f"--device {name}: expected cpu, cuda or auto"):
        parallel.own_device(name)


def test_a_conversation(tiny):
    """Catches an input that only one rank gets to see, and an answer that is printed twice."""
    options = ["--greedy", "--max-new-tokens", 30, "--dtype", "float32", "--system", "Be brief."]
    questions = "Tell me a story about a fox.\nHello, été!\n"
    alone = [sys.executable, str(ROOT / "chat.py"), *map(str, options)]
    expected = subprocess.run(alone, input=questions, capture_output=True, text=True, encoding="utf-8", cwd=ROOT)
    result = torchrun("parallel.py", "--chat", *options, input=questions)
    assert expected.returncode == 0
    assert (result.returncode, result.stdout) == (0, expected.stdout), result.stderr


def test_a_mistake_is_said_once(tmp_path):
    """Catches a line for each process, or a traceback."""
    result = torchrun("parallel.py", "--model", tmp_path / "none", "--prompt", "Hello!")
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("parallel.py:")]
    assert lines == [
        f"parallel.py: {tmp_path / 'none'}: no such folder, and not the name of a hub repository (owner/name)"
    ]
    assert 'parallel.py", line' not in result.stderr


def test_without_torchrun():
    """Catches a wait for processes that nobody started."""
    command = [sys.executable, "parallel.py", "--prompt", "Hello!"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith("parallel.py: start it by torchrun")


def rank_of(process: Path) -> str | None:
    """The rank of a process that torchrun started."""
    try:
        found = re.search(rb"(?:^|\0)RANK=(\d+)", (process / "environ").read_bytes())
        parent = re.search(r"PPid:\s+(\d+)", (process / "status").read_text())[1]
    except OSError:
        return None
    return f"{parent}:{found[1].decode()}" if found else None


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """tiny/, which ends by no token that it writes."""
    folder = shutil.copytree(ROOT / "tiny", tmp_path_factory.mktemp("endless") / "tiny")
    never = qwen3_next.Qwen3NextTokenizer.from_pretrained(folder).backend.token_to_id("\u0100")  # the byte 0
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        content |= {"eos_token": "\u0100"} if name.startswith("tokenizer") else {"eos_token_id": never}
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("end", ["kill a rank", "interrupt"])
def test_all_end_together(end, endless):
    """Catches processes that wait for one that is no more, and go on using the memory of their device."""
    options = ["--model", str(endless), "--prompt", "Hello!", "--raw", "--max-new-tokens", "100000000", "--seed", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["parallel.py", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True) as process:
        process.stdout.read(10)  # both are generating
        ranks = {rank_of(path): int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}
        ours = [ranks[f"{process.pid}:{rank}"] for rank in (0, 1)]
        started = time.monotonic()
        if end == "interrupt":
            process.send_signal(signal.SIGINT)
        else:
            os.kill(ours[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=10)
        assert time.monotonic() - started < 10
    assert process.returncode != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in ours)
    assert len([line for line in errors.splitlines() if line.startswith("parallel.py:")]) <= 1, errors
