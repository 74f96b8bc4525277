"""Records what a qwen3_next model computes, value by value, and writes it to a file.

    python verify/trace.py --model tiny --prompt "Hello!" --out mine.safetensors
        the pass over the prompt, and MTP's pass over the same tokens
    python verify/trace.py --model tiny --prompt "Hello!" --out mine.safetensors --max-new-tokens 3
        after it three tokens more, each the likeliest: one step for each pass, "prefill", "decode 1", "decode 2", ...
    python verify/trace.py --model tiny --prompt "Hello!" --out mine.safetensors --max-new-tokens 8 --draft-tokens 2
        the same with MTP's drafts: "prefill", "draft 1.1", "draft 1.2", "verify 1", "rollback 1", "draft 2.1", ...

From Python, for anything that the model does:

    with recording(model, ["model.layers.3.*"]) as trace:
        model(ids)
    print(trace["model.layers.3.linear_attn.g"], trace.lines["model.layers.3.linear_attn.g"])

stages.py lists the keys and describes the file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
from verify.stages import is_batch, write_trace  # noqa: E402

# ---- Recording ------------------------------------------------------------------------------------------------------


class Recording(dict):
    """Values by key. Its `lines` has for each key the source line that computes the value, "qwen3_next.py:123"."""

    def __init__(self):
        super().__init__()
        self.lines: dict[str, str] = {}


@contextmanager
def recording(model, keys: Iterable[str] = ("*",), missing_ok: bool = False) -> Iterator[Recording]:
    """What a qwen3_next model computes in the meantime, by key. The dict is complete when the `with` block ends.

    keys: globs of the keys to record. "*" takes everything but what only the chunked form has, "*.chunk.*", which a
    glob has to name. Values are copies on the CPU, float32 or float64 (or int64), without a batch axis for a single
    sequence; in a batch, the values of padding mean nothing. What is computed twice is recorded the first time.

    Raises ValueError naming the globs that nothing fits, unless missing_ok.
    """
    keys = list(keys)
    module = sys.modules[type(model).__module__]
    trace = Recording()
    taps = module.Trace(*keys, "*.linear_attn.conv_out")
    with module.tracing(model, taps):
        yield trace
    added = dict(trace)  # by the caller
    trace.clear()
    for key, x in taps.items():
        record(trace, keys, key, x, taps.lines[key])
        if key.endswith("linear_attn.conv_out"):
            heads = (model.config.linear_num_value_heads, model.config.linear_value_head_dim)
            values = x[..., -heads[0] * heads[1] :].unflatten(-1, heads).clone()
            record(trace, keys, key.replace("conv_out", "v_conv"), values, taps.lines[key])
    trace.update(added)
    if not missing_ok:
        check_found(keys, trace)


def record(trace: Recording, keys: list[str], key: str, x, line: str):
    """Takes a value up if one of the globs asks for it."""
    if wanted(key, keys):
        trace[key] = x
        trace.lines[key] = line


def wanted(key: str, keys: Iterable[str]) -> bool:
    """Whether one of the globs fits a key; what only the chunked form has, "*.chunk.*", takes one that says "chunk"."""
    return any(fnmatchcase(key, glob) and (".chunk." not in key or "chunk" in glob) for glob in keys)


def check_found(keys: Iterable[str], found: Iterable[str]):
    """Raises ValueError naming the globs that none of the keys fits."""
    found = list(found)
    missing = [glob for glob in keys if not any(wanted(key, [glob]) for key in found)]
    if missing:
        raise ValueError(f"nothing was computed that fits {', '.join(missing)}; verify/stages.py lists the keys")


def copied(x):
    """A tensor as it is recorded: a copy on the CPU, not in half precision, without a batch axis for one sequence."""
    import torch

    x = x.detach()
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    x = x.cpu().clone()
    return x[0] if len(x) == 1 else x


# ---- Step by step ---------------------------------------------------------------------------------------------------


class Runner:
    """Feeds a model the steps that a trace's manifest describes, and records each.

    A step is {"tokens": the new ones, "before": those in the cache}, of a batch a list for each sequence. Without new
    tokens it takes back the last of those in the cache. With "drafts": n it is not the model that reads the tokens but
    MTP, and the last n of them are drafts of its own.
    """

    def __init__(self, model, keys: Iterable[str] = ("*",)):
        self.model = model
        self.keys = list(keys)
        self.lines: dict[str, str] = {}  # key -> source line, of all steps so far
        self.cache = None
        self.logits = None  # (B, T, vocab) of the last pass
        self.hidden = None  # (1, T, D) of all tokens in the cache, if they are of one sequence
        self.mtp_cache = None
        self.mtp_read = 0  # of its entries, those made from the model's own hidden states
        self.mtp_hidden = None  # (B, T, D), MTP's own in its last pass
        self.mtp_logits = None  # (B, T, vocab)

    def step(self, fed: dict) -> dict:
        """Runs one step. Returns its values by key."""
        import torch

        with torch.no_grad():
            if "drafts" in fed:
                return self.draft(fed["tokens"], fed["before"], fed["drafts"])
            if not fed["tokens"]:
                return self.take_back(fed["before"])
            if is_batch(fed["tokens"]):
                return self.read_batch(fed["tokens"], begin=not any(fed["before"]))
            return self.read(fed["tokens"], fed["before"])

    def read(self, tokens: list[int], before: list[int]) -> dict:
        """One pass over new tokens of one sequence; at its beginning, MTP's pass too."""
        import torch

        ids = torch.tensor([tokens], device=self.model.device)
        if not before:
            module = sys.modules[type(self.model).__module__]  # a changed copy of qwen3_next.py has classes of its own
            self.cache = self.model.make_cache(1)
            self.mtp_cache = module.Cache([module.KVCache()], torch.zeros_like(ids[:, 0]))
            self.mtp_read = 0
        self.cache.reversible = bool(before)
        hidden, trace = self.forward(ids, None)
        if before:
            self.hidden = torch.cat([self.hidden, hidden], dim=1)
            return trace
        self.hidden = hidden
        if self.model.mtp is not None and len(tokens) > 1:
            trace |= self.look_ahead(hidden[:, :-1], ids[:, 1:], None, self.mtp_cache)
            self.mtp_read = len(tokens) - 1
        return trace

    def read_batch(self, rows: list[list[int]], begin: bool) -> dict:
        """The same for several sequences, with padding on the right."""
        import torch

        longest = max(map(len, rows))
        device = self.model.device
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
        if begin:
            self.cache = self.model.make_cache(len(rows))
        hidden, trace = self.forward(ids, mask)
        if begin and self.model.mtp is not None and longest > 1:
            both_real = mask[:, 1:] * mask[:, :-1]
            trace |= self.look_ahead(hidden[:, :-1], ids[:, 1:], both_real, None)
        return trace

    def forward(self, ids, mask) -> tuple:
        """A recorded pass of the model: its hidden states (B, T, D), and the values."""
        with recording(self.model, self.keys, missing_ok=True) as trace:
            out = self.model(ids, mask, past_key_values=self.cache)
        self.lines |= trace.lines
        self.logits = out.logits
        return out.last_hidden_state, dict(trace)

    def look_ahead(self, hidden, following, mask, cache) -> dict:
        """A recorded pass of MTP, from hidden states (B, T, D) and the token after each (B, T)."""
        with recording(self.model, self.keys, missing_ok=True) as trace:
            embeds = self.model.model.embed_tokens(following)
            self.mtp_hidden = self.model.look_ahead(hidden, embeds, mask, None, cache)
            self.mtp_logits = self.model.lm_head(self.mtp_hidden)
            if wanted("mtp.logits", self.keys):
                trace["mtp.logits"] = copied(self.mtp_logits)
        found = {key: x for key, x in trace.items() if key.startswith("mtp.")}  # embedding and lm_head are the model's
        self.lines |= {key: line for key, line in trace.lines.items() if key in found}
        return found

    def draft(self, tokens: list[int], before: list[int], drafts: int) -> dict:
        """MTP reads the last token with the model's hidden state at the one before, or its own if that is a draft."""
        import torch

        if drafts:
            hidden = self.mtp_hidden[:, -1:]
        else:
            self.forget_drafts(before)
            hidden = self.hidden[:, len(before) - 1 : len(before)]
            self.mtp_read = len(before)
        following = torch.tensor([tokens[-1:]], device=self.model.device)
        return self.look_ahead(hidden, following, None, self.mtp_cache)

    def forget_drafts(self, before: list[int]):
        """Takes the drafts out of MTP's cache, and shows it what the model has read since."""
        import torch

        start = min(self.mtp_read, len(before) - 1)
        self.mtp_cache.rollback(self.mtp_cache.columns - start)
        following = before[start + 1 :]
        if following:
            embeds = self.model.model.embed_tokens(torch.tensor([following], device=self.model.device))
            self.model.look_ahead(self.hidden[:, start : len(before) - 1], embeds, None, None, self.mtp_cache)

    def take_back(self, before: list[int]) -> dict:
        """The last pass is undone but for the tokens in `before`. What there is to see are the states."""
        self.cache.rollback(self.hidden.shape[1] - len(before))
        self.hidden = self.hidden[:, : len(before)]
        found = {}
        for i, layer in enumerate(self.cache.layers):
            if hasattr(layer, "state"):
                prefix = f"model.layers.{i}.linear_attn."
                found[prefix + "state"] = copied(layer.state)
                found[prefix + "conv_state"] = copied(layer.window)
        return {key: x for key, x in found.items() if wanted(key, self.keys)}


def trace_generation(model, ids: list[int], keys: list[str], new_tokens: int, draft_tokens: int) -> tuple:
    """The steps of reading a prompt and going on with the likeliest tokens, which are read too.

    Returns steps (name -> key -> values), what each was fed, and the source lines. Raises ValueError for globs that
    nothing fits.
    """
    runner = Runner(model, keys)
    steps, tokens = {}, {}

    def run(step: str, fed: dict):
        tokens[step] = fed
        steps[step] = {key: x.numpy() for key, x in runner.step(fed).items()}

    run("prefill" if new_tokens else "", {"tokens": ids, "before": []})
    known = ids
    limit = len(ids) + new_tokens
    token = int(runner.logits[0, -1].argmax())
    number = 0
    while len(known) < limit:
        number += 1
        n = min(draft_tokens, limit - len(known) - 1)
        drafts: list[int] = []
        for i in range(n):
            run(f"draft {number}.{i + 1}", {"tokens": [token, *drafts], "before": known, "drafts": i})
            drafts.append(int(runner.mtp_logits[0, -1].argmax()))
        new = [token, *drafts]
        run(f"verify {number}" if drafts else f"decode {number}", {"tokens": new, "before": known})
        answers = runner.logits[0].argmax(-1).tolist()  # the likeliest token after each of the new ones
        accepted = 0
        while accepted < n and drafts[accepted] == answers[accepted]:
            accepted += 1
        known = known + new[: accepted + 1]
        token = answers[accepted]
        if accepted < n:
            run(f"rollback {number}", {"tokens": [], "before": known})
    check_found(keys, {key for trace in steps.values() for key in trace})
    return steps, tokens, runner.lines


# ---- Command line ---------------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="checkpoint folder")
    add("--prompt", required=True, metavar="TEXT", help="a user message (with --raw: a text as it is)")
    add("--out", type=Path, required=True, metavar="FILE", help="the file to write, safetensors")
    add("--raw", action="store_true", help="leave the chat template out")
    add("--keys", nargs="+", default=["*"], metavar="GLOB", help="such as 'model.layers.3.*'; '*.chunk.*'")
    add(
        "--dtype", default="auto", metavar="D", help="bfloat16, float16, float32 or float64 (default: the checkpoint's)"
    )
    add("--max-new-tokens", type=int, default=0, metavar="N", help="how many tokens to go on for (default: none)")
    add("--draft-tokens", type=int, default=0, metavar="N", help="how many MTP drafts for each pass of the model")
    args = parser.parse_args(arguments)
    if args.max_new_tokens < 0 or args.draft_tokens < 0:
        parser.error("--max-new-tokens and --draft-tokens should be 0 or more")
    if args.draft_tokens and not args.max_new_tokens:
        parser.error("--draft-tokens needs --max-new-tokens")
    return args


def run(args: argparse.Namespace):
    """Writes the trace that the options ask for."""
    from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer

    if not args.model.is_dir():
        raise FileNotFoundError(f"{args.model}: no such folder")
    tokenizer = Qwen3NextTokenizer.from_pretrained(args.model)
    text = args.prompt
    if tokenizer.chat_template and not args.raw:
        text = tokenizer.apply_chat_template([{"role": "user", "content": text}])
    ids = tokenizer.encode(text)
    if not ids:
        raise ValueError("the prompt is empty: there is nothing to read")
    model = Qwen3NextForCausalLM.from_pretrained(args.model, args.dtype)
    if args.draft_tokens and model.mtp is None:
        raise ValueError(f"--draft-tokens: {args.model} has no MTP layer")
    steps, tokens, lines = trace_generation(model, ids, args.keys, args.max_new_tokens, args.draft_tokens)
    dtype = str(model.dtype).removeprefix("torch.")
    write_trace(args.out, steps, tokens, producer="qwen3_next.py", dtype=dtype, folder=args.model, lines=lines)
    print(f"{args.out}: {sum(map(len, steps.values()))} tensors")


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 1 after one line on stderr; argparse exits with 2 for wrong usage."""
    args = parse_arguments(arguments)
    try:
        run(args)
        return 0
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        print("trace.py:", " ".join(str(message).split()), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
