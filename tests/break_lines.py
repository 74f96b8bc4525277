"""Shows that the tests can fail: breaks qwen3_next.py in one place at a time, in a copy, and lists what catches it.

    python tests/break_lines.py [--only WORD]

Each break is a mistake that a port has made or might make. Ends with 1 if one of them is caught by no test.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What is wrong; the line's part; what to put there; the test files to try, in this order
BREAKS = [
    ("decay left out", "g.exp(), beta)", "g.exp() * 0 + 1, beta)", "delta_rule"),
    (
        "reads the state before the write",
        "q_t[..., None, :] @ S",
        "q_t[..., None, :] @ (S - k_t[..., :, None] * delta[..., None, :])",
        "delta_rule",
    ),
    ("cross-chunk decay dropped", "S = gamma_n[..., -1:, :] * S +", "S = S +", "delta_rule"),
    ("chunk sees its future", "inner = decay * (q @ kT)", "inner = q @ kT", "delta_rule"),
    ("writes not decayed to the chunk's end", "(to_end_n * delta)", "delta", "delta_rule"),
    ("norm without 1 +", "1 + upcast(self.weight)", "upcast(self.weight)", "reference"),
    ("sigmoid for SiLU after the delta rule", "F.silu(upcast(z))", "torch.sigmoid(upcast(z))", "reference"),
    (
        "query and gate as halves",
        "view(B, T, -1, 2 * self.head_dim).chunk(2, dim=-1)",
        "view(B, T, 2, -1, self.head_dim).unbind(2)",
        "reference",
    ),
    ("rotary frequencies over head_dim", 'device="cpu") / dim)', 'device="cpu") / config.head_dim)', "reference"),
    (
        "key heads tiled",
        "k_l2norm = k_unit.repeat_interleave(r, dim=2)",
        "k_l2norm = k_unit.repeat(1, 1, r, 1)",
        "reference",
    ),
    ("query not scaled", "* self.K**-0.5", "", "reference"),
    ("top-k weights not renormalised", "if self.normalise:", "if False:", "reference"),
    ("shared expert without its gate", "torch.sigmoid(self.shared_expert_gate(x)) * ", "", "reference"),
    ("window of the padded end", "index = lengths[:, None] +", "index = lengths[:, None] * 0 + T +", "reference cache"),
    ("padding forgets and writes", "g, beta = g * real, beta * real", "pass", "reference cache"),
    (
        "positions count padding",
        "position = cache.seq_len[:, None] +",
        "position = (cache.seq_len * 0 + cache.columns)[:, None] +",
        "cache",
    ),
    (
        "MTP: hidden before embedding",
        "self.pre_fc_norm_embedding(next_embeds), self.pre_fc_norm_hidden(hidden)",
        "self.pre_fc_norm_hidden(hidden), self.pre_fc_norm_embedding(next_embeds)",
        "mtp",
    ),
    (
        "MTP: loss shifted by one",
        "prediction_loss(mtp_logits, labels, 2,",
        "prediction_loss(mtp_logits, labels, 1,",
        "mtp",
    ),
    (
        "rollback keeps a token too many",
        "keep = qkv.shape[1] - tokens",
        "keep = qkv.shape[1] - tokens + 1",
        "speculation",
    ),
    ("drafts accepted too often", "cumprod(1).sum(1)", "cumprod(1).sum(1).clamp(min=1)", "speculation"),
    ("remainder not taken from p", "(p[:, :n] - q).clamp(min=0)", "p[:, :n]", "speculation"),
    (
        "decays as differences of sums",
        "torch.where(past, g, 0).cumsum(-2)",
        "g.cumsum(-2) - g.cumsum(-2).mT",
        "delta_rule",
    ),
    ("state goes on in a packed row", "g.masked_fill(step.starts[..., None], -math.inf)", "g", "sequences"),
    ("taps reach over a packed border", "before * starts.cumsum(1)", "0 * starts.cumsum(1)", "sequences"),
    ("keys seen over a packed border", "packed[:, None, :, None] == packed[:, None, None]", "True", "sequences"),
    ("labels over a packed border", "1, segments if is_packed(segments) else None", "1, None", "sequences"),
    (
        "MTP's labels over a packed border",
        "apart | (segments[:, ahead:] == 0)",
        "segments[:, ahead:] == 0",
        "sequences",
    ),
    (
        "ended rows go on in the cache",
        "self.mask = None if going is None or going.all() else going[:, None]",
        "self.mask = None",
        "sequences",
    ),
    ("the past mask is not looked at", "same = past.numel() == 0 or", "same = True or", "sequences"),
    ("config believed over lm_head", "config.tie_word_embeddings = torch.equal(*pair)", "pass", "options"),
    (
        "old shards before the single file",
        "if single.is_file():",
        "if not list(folder.glob('*.index.json')):",
        "options",
    ),
    ("bans escape drafts", "after_drafts(drafts,", "after_drafts(0 * drafts,", "options"),
    ("only the first block is widened", "for block in W.split(1 +", "for block in W[:1].split(1 +", "products"),
    ("widened in training", " and not torch.is_grad_enabled()", "", "products"),
    ("widened where there are units", "W.dtype in SLOW_HALF and ", "", "products"),
    ("a single row without its own way", "if x.numel() == W.shape[1]:", "if False:", "products"),
    ("pads on the left", '.get("padding_side") or "right"', '.get("padding_side") or "left"', "compat"),
    ("transformers' cache taken for none", 'check("cache", cache, Cache)', "pass", "compat"),
    ("criteria are not asked", "ended |= torch.as_tensor(crit", "torch.as_tensor(crit", "generation_options"),
    ("a given pad is overlooked", "for n in (pad_token_id, model", "for n in (model", "generation_options"),
    ("another prompt after the last answer", '.get("role") != "assistant"', '.get("role") != "nobody"', "compat"),
    ("attentions that are not there", 'check("outputs", output_attentions, return_dict)', "pass", "compat"),
    (
        "hidden states left on their GPU",
        "hidden_states.append(x.to(step.cos.device))",
        "hidden_states.append(x)",
        "dispatch",
    ),
    ("max_memory passed over", "device_map, max_memory)", "device_map, None)", "dispatch"),
    ("an import in a compiled step", "if torch.compiler.is_compiling():  #", "if False:  #", "cuda"),
    ("pools the last column", "last = (real[:, -T:].bool() *", "last = (real[:, -T:].bool() * 0 +", "heads"),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="breaks whose description holds this")
    args = parser.parse_args()
    source, survivors = (ROOT / "qwen3_next.py").read_text(encoding="utf-8"), 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "run", "*.egg-info"))
        for what, old, new, tests in BREAKS:
            if args.only not in what:
                continue
            if source.count(old) != 1:
                raise SystemExit(f"{what}: {old!r} occurs {source.count(old)} times in qwen3_next.py, expected once")
            (copy / "qwen3_next.py").write_text(source.replace(old, new), encoding="utf-8")
            files = [f"tests/test_{name}.py" for name in tests.split()]
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
            result = subprocess.run(command, cwd=copy, capture_output=True, text=True)
            failed = [line.split()[1] for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            survivors += not failed
            print(f"{what:<45} {failed[0] if failed else 'NOT CAUGHT'}", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
