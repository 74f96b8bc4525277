"""vLLM's Qwen3-Next as a port under test, on a CPU in bfloat16: its logits and its modules' outputs, of one sequence.

    python verify/engines.py vLLM --python VLLM/bin/python

vLLM gives the logits of a prompt with its logprobs, in their raw form. What continues it is forced, a token at a time,
by a logits processor; outputs come from hooks. The delta rule's state is kept in float32, which is not vLLM's default.
Its kernels for a CPU want bfloat16, an attention head of 32 entries or more, and value heads of more than 32: `mixed`
with wider heads, as engines.py makes it. It is one sequence. vLLM has MTP and takes tokens back, but shows neither.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import torch

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
import vllm  # noqa: E402
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from verify.stages import is_batch, read_trace, rename, write_trace  # noqa: E402

ALIASES = json.loads((Path(__file__).resolve().parents[1] / "aliases" / "vllm.json").read_bytes())
NOT_HERE = {"op", "layers", "starts", "gradients"}
LAYER = re.compile(r"model\.layers\.\d+")


class Forced(AdapterLogitsProcessor):
    """Lets a request go on with the tokens that it names as "forced", whatever is likely."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params):
        forced = params.extra_args["forced"]

        def only(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            allowed = torch.full_like(logits, -torch.inf)
            allowed[forced[len(output_ids)]] = 0
            return allowed

        return only


def hooked(model: torch.nn.Module, outputs: dict[str, list[np.ndarray]]):
    """Records the outputs of a model's modules under our keys, call after call."""

    def recorder(key: str, whole: bool):
        def record(module, args, output):
            parts = output if isinstance(output, tuple) else (output,)
            x = sum(part.double() for part in parts) if whole else parts[0].double()
            outputs.setdefault(key, []).append(x.numpy().copy())

        return record

    for name, module in model.named_modules():
        if LAYER.fullmatch(name):
            module.register_forward_hook(recorder(f"{name}.out", True))  # its output and the residual, not yet added
        else:
            for key, entry in rename(name, ALIASES):
                if entry:
                    module.register_forward_hook(recorder(key, False))


def sequence_of(tokens: dict[str, dict]) -> tuple[list[int], int, dict[str, slice]]:
    """All tokens of the one sequence, how many of them are its prompt, and by step, which of them it feeds.

    Ends where tokens are taken back, which vLLM does not let others do.
    """
    whole: list[int] = []
    prompt = 0
    places = {}
    for step, fed in tokens.items():
        if NOT_HERE & fed.keys() or "drafts" in fed:
            continue
        if is_batch(fed["tokens"]) or not fed["tokens"] or (whole and not fed["before"]):
            break
        prompt = prompt or len(fed["tokens"])
        places[step] = slice(len(whole), len(whole) + len(fed["tokens"]))
        whole += fed["tokens"]
    return whole, prompt, places


def read(model: vllm.LLM, tokens: list[int], prompt: int) -> np.ndarray:
    """The logits after each token, (T, vocab)."""
    settings = vllm.SamplingParams(
        temperature=0,
        max_tokens=len(tokens) - prompt + 1,
        prompt_logprobs=-1,
        logprobs=-1,
        ignore_eos=True,
        detokenize=False,
        extra_args={"forced": [*tokens[prompt:], 0]},
    )
    (out,) = model.generate([{"prompt_token_ids": tokens[:prompt]}], settings, use_tqdm=False)
    rows = [*out.prompt_logprobs[1:], *out.outputs[0].logprobs]
    return np.array([[row[token].logprob for token in sorted(row)] for row in rows], np.float32)


def main():
    parser = argparse.ArgumentParser()
    for option in ("--model", "--like", "--trace"):
        parser.add_argument(option, type=Path, required=True)
    args = parser.parse_args()
    like = read_trace(args.like)
    tokens, prompt, places = sequence_of(like.tokens)
    model = vllm.LLM(
        str(args.model),
        dtype="bfloat16",
        hf_overrides={"architectures": ["Qwen3NextForCausalLM"]},  # which the golden models' config does not say
        skip_tokenizer_init=True,
        max_model_len=512,
        max_num_seqs=4,
        enable_prefix_caching=False,
        enforce_eager=True,
        mamba_ssm_cache_dtype="float32",
        max_logprobs=-1,
        logprobs_mode="raw_logits",
        logits_processors=[Forced],
    )
    outputs: dict[str, list[np.ndarray]] = {}
    model.apply_model(lambda module: hooked(module, outputs))
    found = {"lm_head.out": read(model, tokens, prompt)}
    lengths = [len(x) for x in outputs["model.embed_tokens.out"]]  # tokens a call
    for key, calls in outputs.items():
        found[key] = np.concatenate([x.reshape(length, -1) for x, length in zip(calls, lengths)])
    steps = {step: {key: x[place] for key, x in found.items()} for step, place in places.items()}
    about = {"producer": f"vLLM {vllm.__version__}", "dtype": "bfloat16", "folder": args.model}
    write_trace(args.trace, steps, like.tokens, **about)


if __name__ == "__main__":
    main()
