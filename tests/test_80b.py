"""Claim: the released 80B checkpoint opens in little memory and at once, and generates on a machine it does not fit on.

The checkpoint here has the names, shapes, dtypes and shards of the released one, but its weights are holes in sparse
files: they read as zeros, through the same page faults as real ones. A token needs about 7 GB of them.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import read_header, write_sparse
from conftest import ROOT

NEEDED = 10e9  # bytes of memory
MIB, GIB = 2**20, 2**30


@pytest.fixture(scope="module", params=["bfloat16", "fp8"])
def released(request, tmp_path_factory) -> tuple[str, Path]:
    """The kind of release, and its folder, with tiny/'s tokenizer: fewer tokens than the embedding has rows."""
    folder = tmp_path_factory.mktemp(request.param)
    probe = folder / "probe"
    with probe.open("wb") as file:
        file.truncate(GIB)
    blocks = getattr(probe.stat(), "st_blocks", None)  # of 512 bytes; not on Windows
    probe.unlink()
    if blocks is None or blocks * 512 > MIB:
        pytest.skip("the file system of the temporary folder has no sparse files: this needs 163 GB of them")
    write_sparse(folder, fp8=request.param == "fp8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "tiny" / name, folder)
    yield request.param, folder
    shutil.rmtree(folder)  # and with it what the page cache holds of it


def python(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=ROOT)


def test_the_layout_is_the_released_one(released):
    """Catches a mistake in the layout itself, with which the other tests here would prove less than they say."""
    kind, folder = released
    files = sorted(folder.glob("*.safetensors"))
    headers = [read_header(file) for file in files]
    entries = {name: entry for header in headers for name, entry in header.items() if "scale_inv" not in name}
    sizes = {name: math.prod(entry["shape"]) for name, entry in entries.items()}
    assert len(entries) == 75_944
    assert sum(sizes.values()) == 81_324_862_720
    assert sum(size for name, size in sizes.items() if not name.startswith("mtp.")) == 79_674_391_296
    assert len([name for name in sizes if name.startswith("mtp.")]) == 1_553
    assert all(name.startswith("mtp.") for name in headers[-1])
    assert not any(name.startswith("mtp.") for header in headers[:-1] for name in header)
    if kind == "bfloat16":
        assert len(files) == 41
        assert sum(e["data_offsets"][1] - e["data_offsets"][0] for e in entries.values()) == 162_649_725_440
    else:
        eight = {name for name, entry in entries.items() if entry["dtype"] == "F8_E4M3"}
        assert {f"{name}_scale_inv" for name in eight} == {n for header in headers for n in header if "scale_inv" in n}
        kinds = {name.removesuffix(".weight").rpartition(".")[2] for name in entries.keys() - eight}
        assert kinds & {"lm_head", "embed_tokens", "gate", "shared_expert_gate", "A_log", "dt_bias", "conv1d"}
        assert kinds & {"in_proj_ba", "fc", "norm"}
        assert not kinds & {"in_proj_qkvz", "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "up_proj", "down_proj"}
    assert sum(file.stat().st_blocks * 512 for file in files) < 100e6, "the weights were written to the disk"


OPENING = """
import json, sys, time
import torch, safetensors
from qwen3_next import Qwen3NextForCausalLM

def numbers():
    found = {}
    for name in ("status", "io"):
        with open(f"/proc/self/{name}") as file:
            found |= dict(line.split(":", 1) for line in file)
    units = {"RssAnon": 1024, "RssFile": 1024, "rchar": 1}
    return {key: int(found[key].split()[0]) * unit for key, unit in units.items()}

before, started = numbers(), time.perf_counter()
model = Qwen3NextForCausalLM.from_pretrained(sys.argv[1])
seconds, after = time.perf_counter() - started, numbers()
grown = {f"{key} grown": after[key] - before[key] for key in after}
print(json.dumps({"seconds": seconds, "RssAnon": after["RssAnon"], **grown}))
"""


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what a process has read and mapped")
def test_opening_reads_the_headers_alone(released):
    """Catches weights that are copied, or touched, when the checkpoint is opened.

    Of the FP8 release, all but the experts is read and dequantised at once: 1.7 GB that become 3.4 GB of bfloat16.
    """
    kind, folder = released
    result = python("-c", OPENING, folder)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    print(kind, {key: f"{x:.1f} s" if key == "seconds" else f"{x / GIB:.3f} GiB" for key, x in found.items()})
    headers, files = 0, [folder / "model.safetensors.index.json", *folder.glob("*.safetensors")]
    for file in files[1:]:
        with file.open("rb") as source:
            headers += int.from_bytes(source.read(8), "little")
    dequantised = sum(
        math.prod(entry["shape"])
        for file in files[1:]
        for name, entry in read_header(file).items()
        if entry["dtype"] == "F8_E4M3" and ".experts." not in name
    )
    assert (dequantised > 1.7e9) == (kind == "fp8")
    assert found["RssAnon"] < 2 * GIB + 2 * dequantised
    assert found["RssFile grown"] < 64 * MIB + dequantised
    assert found["rchar grown"] < 8 * MIB + headers + files[0].stat().st_size  # and a module that is imported late


def memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


@pytest.mark.skipif(memory() < NEEDED, reason=f"{memory() / 1e9:.1f} GB of memory; a token reads 7 GB")
@pytest.mark.parametrize("drafts", [0, 1])
def test_the_command_line_generates(released, drafts):
    """Catches a model of this size that opens and then does not run, a tokenizer that is refused because the embedding
    has more rows than it has tokens, and MTP's layer in the last shard that is not found.

    All logits are 0: the likeliest token is the first, and so each draft stands.
    """
    kind, folder = released
    options = ("--prompt", "Once", "--raw", "--max-new-tokens", 2 + drafts, "--draft-tokens", drafts, "--stats")
    result = python(ROOT / "qwen3_next.py", "--model", folder, *options)
    print(kind, *result.stderr.splitlines(), sep="; ")
    assert result.returncode == 0, result.stderr
    lines = dict(line.split(": ", 1) for line in result.stderr.splitlines())
    assert lines["answer"].startswith(f"{2 + drafts} tokens")
    assert lines.get("drafts") == ("1, 1 accepted; by position 100.0%" if drafts else None)
