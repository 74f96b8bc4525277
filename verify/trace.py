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
import ast
import functools
import linecache
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
from verify.stages import exit_code, forward_order, is_batch, write_trace  # noqa: E402

# ---- Recording ------------------------------------------------------------------------------------------------------

LOCALS = {  # function -> the local variables that are values: their names are those of the keys
    "GatedAttention.forward": "q gate q_rope k_rope attn_out",
    "GatedDeltaNet.unpack": "q k v z b a",
    "GatedDeltaNet.forward": "conv_out q_l2norm k_l2norm v_conv g beta delta_out state conv_state",
    "SparseMoeBlock.forward": "router_probs topk_ids topk_weights experts_out",
    "Qwen3NextForCausalLM.forward": "mtp_logits",
}
RENAMED = {"experts_out": "experts.out", "mtp_logits": "mtp.logits"}
INSIDE = ("Experts", "CausalConv")  # modules without a key of their own: the values around them show what they do


class Recording(dict):
    """Values by key. Its `lines` has for each key the source line that computes the value, "qwen3_next.py:123"."""

    def __init__(self):
        super().__init__()
        self.lines: dict[str, str] = {}


class Recorder:
    """Fills a recording with what one model computes in one thread.

    It is that thread's profiler: Python calls `event` whenever a function returns, and the local variables of the
    model's functions are the values. So the model needs no code for it. What a loop overwrites, the states between the
    chunks, is computed again from the locals that are left.
    """

    def __init__(self, model, keys: list[str], trace: Recording):
        self.keys = keys
        self.trace = trace
        self.names = {module: name.replace("_orig_mod.", "") for name, module in model.named_modules()}
        self.watched: dict = {}  # code of a function -> the locals to record
        self.file = ""  # that defines the model
        self.last = None  # the last output: a module that ends in another one returns the same tensor
        for kind in {type(module) for module in self.names}:
            for function in (kind.forward, getattr(kind, "unpack", None)):
                if hasattr(function, "__code__"):
                    self.watched[function.__code__] = LOCALS.get(function.__qualname__, "").split()
            if kind.__name__ == "GatedDeltaNet":
                self.file = kind.forward.__code__.co_filename
                self.watched[kind.forward.__globals__["chunk_gated_delta_rule"].__code__] = []
            if kind.__name__ in ("GatedAttention", "DecoderLayer"):
                self.file = kind.forward.__code__.co_filename

    def event(self, frame, event: str, result):
        """A function of the model has returned: its locals, and what follows from them, are recorded."""
        if event != "return" or result is None or frame.f_code not in self.watched:
            return
        here = frame.f_locals
        code = frame.f_code
        module = here["self"] if "self" in here else frame.f_back.f_locals.get("self")  # the delta rule is a function
        if module not in self.names:  # another model's
            return
        for name in self.watched[code]:
            if here.get(name) is not None:
                self.record(module, RENAMED.get(name, name), here[name], line_of(code, name))
        if "topk_ids" in here:
            chosen = here["router_probs"].gather(-1, here["topk_ids"])
            others = here["router_probs"].scatter(-1, here["topk_ids"], 0)
            margin = chosen[..., -1] - others.amax(-1)  # the last one chosen, less the next
            self.record(module, "margin", margin, line_of(code, "topk_ids"))
        if "self" not in here:
            self.record_chunks(module, here, code)
        elif code.co_name == "forward":
            self.record_output(module, result, frame.f_back)

    def record_output(self, module, result, caller):
        """A module's output, under its name and "out". Its line is the one of the model's file that called it."""
        out = result[0] if isinstance(result, tuple) else result
        inside = type(module).__name__ in INSIDE or ".experts." in self.names[module]
        if inside or out is self.last or not hasattr(out, "detach"):
            return
        self.last = out
        while caller and caller.f_code.co_filename != self.file:
            caller = caller.f_back
        line = f"{Path(self.file).name}:{caller.f_lineno}" if caller else "called from outside"
        self.record(module, "out", out, line)

    def record_chunks(self, module, here: dict, code):
        """The chunked form's own values: A, its solve M, u and w, of which delta is u - w S, and each chunk's S."""
        import torch

        if not any("chunk" in glob for glob in self.keys):
            return
        k, v, M, gamma, to_end = (here[name] for name in ("k", "v", "M", "gamma", "to_end"))  # (B, H, N, C, ...)
        self.record(module, "chunk.A", here["A"].tril(-1), line_of(code, "A"))
        self.record(module, "chunk.M", M, line_of(code, "M"))
        self.record(module, "chunk.u", M @ v, line_of(code, "M"))
        self.record(module, "chunk.w", M @ (gamma * k), line_of(code, "M"))
        S = torch.zeros_like(here["S"]) if here["state"] is None else here["state"].to(here["S"].dtype)
        for n in range(k.shape[2]):
            self.record(module, f"chunk.{n}.state", S, line_of(code, "S"))
            delta = M[:, :, n] @ (v[:, :, n] - gamma[:, :, n] * (k[:, :, n] @ S))
            S = gamma[:, :, n, -1:, :] * S + k[:, :, n].transpose(-1, -2) @ (to_end[:, :, n] * delta)

    def record(self, module, name: str, x, line: str):
        """A value, the first time that it is computed, if a glob asks for it."""
        key = name if name == "mtp.logits" else f"{self.names[module]}.{name}".lstrip(".")
        if key not in self.trace and wanted(key, self.keys):
            self.trace[key] = copied(x)
            self.trace.lines[key] = line


@functools.cache
def assignments(file: str) -> list[tuple[str, int]]:
    """The names that a file's functions assign, and the line of each assignment."""
    tree = ast.parse("".join(linecache.getlines(file)))
    stores = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return [(node.id, node.lineno) for node in stores]


@functools.cache
def line_of(code, name: str) -> str:
    """The line of a function that assigns a local variable, the last one if there are several: "qwen3_next.py:123"."""
    first = code.co_firstlineno
    end = max(line for _, _, line in code.co_lines() if line)
    lines = [line for found, line in assignments(code.co_filename) if found == name and first <= line <= end]
    return f"{Path(code.co_filename).name}:{max(lines, default=first)}"


@contextmanager
def recording(model, keys: Iterable[str] = ("*",), missing_ok: bool = False) -> Iterator[Recording]:
    """What a qwen3_next model computes in the meantime, by key. The dict is complete when the `with` block ends.

    keys: globs of the keys to record. "*" takes everything but what only the chunked form has, "*.chunk.*", which a
    glob has to name. Values are copies on the CPU, float32 or float64 (or int64), without a batch axis for a single
    sequence; in a batch, the values of padding mean nothing. What is computed twice is recorded the first time. Another
    model, or another thread, is not recorded and not disturbed; what torch.compile has compiled runs as it is written.

    Raises ValueError inside another recording of the same thread, and, unless missing_ok, naming the globs that
    nothing fits.
    """
    keys = [keys] if isinstance(keys, str) else list(keys)
    before = sys.getprofile()
    if isinstance(getattr(before, "__self__", None), Recorder):
        raise ValueError("a recording is under way in this thread: end it first, or ask it for more keys")
    trace = Recording()
    recorder = Recorder(model, keys, trace)
    with uncompiled():
        sys.setprofile(recorder.event)
        try:
            yield trace
        finally:
            sys.setprofile(before)
    ordered = {key: trace[key] for key in sorted(trace, key=forward_order)}  # a function's locals come when it is done
    trace.clear()
    trace.update(ordered)
    if not missing_ok:
        check_found(keys, trace)


def uncompiled():
    """A context in which torch.compile's results stand aside: their frames have no locals to read."""
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled, and importing it takes seconds
        return nullcontext()
    import torch

    return torch.compiler.set_stance("force_eager")


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
        lines = {**trace.lines, "mtp.logits": line_of(type(self.model).forward.__code__, "mtp_logits")}
        self.lines |= {key: lines[key] for key in found}
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
    """The command line."""
    return exit_code("trace.py", run, parse_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
