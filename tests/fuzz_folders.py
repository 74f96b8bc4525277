"""Changes checkpoint folders at random and runs the command line on each: it has to answer, or to refuse in one line.

    python tests/fuzz_folders.py [--cases 10000] [--seed N] [--only CASE]

One to three changes of a folder's tensor headers, index, configs, tokenizer, template or files, starting from one file,
shards, FP8 and fused experts. A refusal has to be one line, which names a file or a key and is no error of Python's;
it may take ten seconds of computing and 400 MiB of memory more than a good folder. Ends with 1 if one does not.
"""

import argparse
import contextlib
import io
import json
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import tokenizers
import torch
from checkpoints import SMALL, fuse_experts, to_fp8, write
from conftest import random_model

from qwen3_next import Qwen3NextConfig, main

WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{%- for m in messages %}{% if m.role == 'user' %}{{- '<|im_start|>' + m.role + '\\n' + m.content | trim }}"
    "{% else %}{{ m | tojson(indent=2) }}{% endif %}{{ '<|im_end|>\\n' }}{%- endfor %}"
    "{% set ns = namespace(n=0) %}{% if tools %}{{ raise_exception('no tools') }}{% endif %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
GENERATION = {"eos_token_id": [257], "pad_token_id": 0, "do_sample": True, "temperature": 0.7, "top_k": 20}
GENERATION |= {"top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.1, "max_new_tokens": 2, "suppress_tokens": [3]}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1}
ODD = [None, True, 0, 1, -1, 3, 0.5, -0.5, 1e308, 1e-308, float("inf"), float("nan"), 2**31, 2**63, 10**9, 10**30]
ODD += ["", "a", "a\nb", "\u001b[2J", "\ud800", "\0", "x" * 300, "../x", "yarn", [], [0], [None], ["a"], [[]], {}]
ODD += [{"a": 1}, 99_999_998, 10**6, "F64", "F8_E4M3", "I64", "model.safetensors", "config.json", [2**70], [1e9]]
LETTERS = list("{}[]()%|'\"<>.,:-+*/\\ \n0189azAZ\0\u00e9\u20ac\U0001f98a")
JSON = ["config.json", "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
LAYOUTS = ("one file", "shards", "FP8", "fused")
PROGRAM = "qwen3_next.py: "


def make_tokenizer(folder: Path):
    """A small tokenizer of the usual kind, with its template."""
    pre = tokenizers.pre_tokenizers
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.normalizer = tokenizers.normalizers.NFC()
    split = pre.Split(tokenizers.Regex(r"\p{N}| ?\p{L}+|\s+|[^\s\p{L}]+"), behavior="isolated")
    backend.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["the fox and the lantern, the hen and the ant"] * 9, trainer)
    backend.add_special_tokens(WORDS)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": WORDS[2], "pad_token": WORDS[0], "model_max_length": 512}
    number = backend.token_to_id(WORDS[2])
    settings["added_tokens_decoder"] = {str(number): {"content": WORDS[2], "special": True, "lstrip": False}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def make_folders(place: Path) -> list[Path]:
    """The same model in each of the layouts."""
    fields = {"vocab_size": 300, "rope_scaling": YARN, "mtp_num_hidden_layers": 1, "intermediate_size": 4}
    model = random_model(torch.float32, **{**SMALL, **fields})
    model.generation_config = GENERATION
    folders = [place / name for name in LAYOUTS]
    for folder, size in zip(folders, ("5GB", 20_000, "5GB", "5GB")):
        model.save_pretrained(folder, max_shard_size=size)
        make_tokenizer(folder)
    config = json.loads((folders[0] / "config.json").read_text())
    tensors = dict(model.state_dict())
    write(folders[2], config, to_fp8(tensors)[0], fp8=True)
    write(folders[3], config, fuse_experts(tensors))
    return folders


def places(node: object, path: tuple = ()) -> list[tuple]:
    """The path of every value in a JSON tree, but for long lists only of a few."""
    found = [path]
    items = list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ())
    for key, value in items[:40] + items[-5:]:
        found += places(value, (*path, key))
    return found


def change_tree(tree: object, rng: random.Random):
    """Replaces, deletes, renames or nudges one value of a JSON tree, in place."""
    paths = [path for path in places(tree) if path]
    if not paths:
        return
    *path, last = rng.choice(paths)
    node = tree
    for key in path:
        node = node[key]
    action = rng.choice(["replace", "replace", "nudge", "delete", "rename", "double"])
    value = node[last]
    if action == "delete":
        del node[last]
    elif action == "rename" and isinstance(node, dict):
        del node[last]
        node[rng.choice([*node, "", "a\nb", "self", "__metadata__", "\u001b[2J", last + "x"])] = value
    elif action == "double" and isinstance(node, list):
        node.insert(rng.randrange(len(node) + 1), value)
    elif action == "nudge" and type(value) in (int, float):
        node[last] = value + rng.choice([-9, -1, 1, 2, 100])
    elif action == "nudge" and isinstance(value, str):
        node[last] = change_text(value, rng)
    else:
        node[last] = rng.choice(ODD)


def change_text(text: str, rng: random.Random) -> str:
    """Deletes, doubles or replaces a piece of a text."""
    start = rng.randrange(len(text) + 1)
    end = min(len(text), start + rng.choice([0, 1, 1, 2, 5, 20]))
    piece = rng.choice(["", "".join(rng.choices(LETTERS, k=rng.randint(1, 3))), text[start:end] * 2])
    return text[:start] + piece + text[end:]


def to_bytes(tree: object) -> bytes:
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def change_json(file: Path, rng: random.Random):
    """One value of a JSON file, or some of its text."""
    data = file.read_bytes()
    if rng.random() < 0.15:
        put(file, change_text(data.decode("utf-8", "replace"), rng).encode("utf-8", "surrogatepass"))
        return
    tree = json.loads(data)
    change_tree(tree, rng)
    put(file, to_bytes(tree))


def change_header(file: Path, rng: random.Random):
    """What a safetensors file says of its tensors, its length, or some bytes."""
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.2:
        put(file, data[: rng.randrange(len(data))] + bytes(rng.choice([0, 0, 1, 9])))
        return
    header = json.loads(data[8 : 8 + length])
    tensors = [key for key in header if key != "__metadata__"]
    kind = rng.choice(["tree", "swap", "more"])
    if kind == "tree":
        change_tree(header, rng)
    elif kind == "swap":
        one, other = rng.sample(tensors, 2)
        header[one], header[other] = header[other], header[one]
    else:  # another tensor, large in count but not in bytes
        shape = rng.choice([[10**6, 1, 0], [2**30, 0], [4], [1, 4], [4, 1, 1], [0], []])
        size = 4 * (0 if 0 in shape else 4 if shape else 1)
        name = rng.choice([*tensors, "a", "model.layers.0.mlp.experts.gate_up_proj", "mtp.a", "model.layers.9.a"])
        name += rng.choice(["", "_scale_inv", ".x"])
        start = len(data) - 8 - length
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, start + size]}
        data += bytes(size)
    text = to_bytes(header)
    put(file, struct.pack("<Q", len(text)) + text + data[8 + length :])


def put(file: Path, data: bytes):
    """A new file: the old one is a link to the original's, and may be mapped."""
    file.unlink()
    file.write_bytes(data)


def change_files(folder: Path, rng: random.Random):
    """Removes a file, cuts it, swaps two, or puts a folder or a link in its place."""
    file = rng.choice(sorted(folder.iterdir()))
    action = rng.choice(["remove", "cut", "swap", "folder", "link", "dangling"])
    if file.is_dir():
        return
    if action == "cut":
        put(file, file.read_bytes()[: rng.randrange(file.stat().st_size + 1)])
    elif action == "swap":
        other = rng.choice(sorted(folder.iterdir()))
        if other.is_file():
            one, two = file.read_bytes(), other.read_bytes()
            put(file, two)
            put(other, one)
    else:
        file.unlink()
        if action == "folder":
            file.mkdir()
        elif action != "remove":
            file.symlink_to("/etc/hostname" if action == "link" else "nowhere")


def change(folder: Path, rng: random.Random):
    """One random change of a folder; none if an earlier one has made it impossible."""
    kind = rng.choice(["json", "json", "json", "header", "header", "index", "template", "files"])
    names = {"json": rng.choice(JSON), "index": "model.safetensors.index.json", "template": "chat_template.jinja"}
    weights = sorted(folder.glob("*.safetensors"))
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error):
        if kind == "header":
            change_header(rng.choice(weights), rng)
        elif kind == "files":
            change_files(folder, rng)
        elif kind == "template":
            put(folder / names[kind], change_text((folder / names[kind]).read_text(), rng).encode("utf-8", "replace"))
        else:
            change_json(folder / names[kind], rng)


class TooLong(BaseException):
    """A case that takes more than ten seconds of computing."""


def run(folder: Path) -> tuple[int, str]:
    """The command line's exit code and what it wrote to standard error."""
    out, err = io.StringIO(), io.StringIO()

    def stop(*_):
        raise TooLong

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, 10)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(["--prompt", "the fox", "--model", str(folder), "--max-new-tokens", "2", "--seed", "1"])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return code, err.getvalue()


FILES = re.compile(r"[\w-]+\.(json|safetensors|jinja)|chat template|template: ")
OPTIONS = (*Qwen3NextConfig.__annotations__, *GENERATION, "dtype", "prompt is empty")


def fault(folder: Path, code: int, err: str) -> str:
    """What is wrong with an answer; "" if nothing is."""
    if code == 0:
        return ""
    lines = err.splitlines()
    if code != 1 or len(lines) != 1 or not lines[0].startswith(PROGRAM):
        return f"exit code {code}, {len(lines)} lines"
    message = lines[0].removeprefix(PROGRAM)
    if re.match(r"[A-Z]\w+: ", message) and "Warning" not in message:
        return "an error of Python's or a library's"
    named = str(folder) in message or FILES.search(message) or any(name in message for name in OPTIONS)
    return "" if named and message.isprintable() else "names no file and no key"


def fuzz(cases: range, place: Path, report=print) -> tuple[Counter, list[str]]:
    """Runs these cases: how many were answered or refused, and what was wrong with which. Each is its number's."""
    folders = make_folders(place)
    counts: Counter = Counter()
    wrong = []
    for folder in folders:
        assert run(folder) == (0, ""), folder
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    for number in cases:
        rng = random.Random(number)
        work = place / "work"
        shutil.copytree(rng.choice(folders), work, copy_function=lambda old, new: Path(new).hardlink_to(old))
        for _ in range(rng.choice([1, 1, 2, 3])):
            change(work, rng)
        try:
            code, err = run(work)
            problem = fault(work, code, err)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            code, err, problem = -1, repr(error), "a traceback"
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        if more > 400 * 1024:
            problem = problem or f"{more / 1024:.0f} MiB"
            peak += more
        counts["answered" if code == 0 else "refused"] += 1
        if problem:
            wrong.append(f"case {number}: {problem}: {err[:300]!r}")
            report(wrong[-1])
        if number % 500 == 499:
            report(f"{number + 1} cases after {time.monotonic() - started:.0f} s: {dict(counts)}, {len(wrong)} wrong")
        shutil.rmtree(work)
    counts["MiB above a good folder"] = round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024)
    return counts, wrong


def command_line() -> int:
    """Prints the counts, and every case that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, metavar="CASE", help="a single case")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = range(args.seed, args.seed + args.cases) if args.only is None else range(args.only, args.only + 1)
    with tempfile.TemporaryDirectory() as place:
        counts, wrong = fuzz(cases, Path(place), lambda line: print(line, flush=True))
    print(dict(counts), f"{len(wrong)} wrong")
    return min(len(wrong), 1)


if __name__ == "__main__":
    sys.exit(command_line())
