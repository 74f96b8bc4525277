"""Compares two traces of Qwen3-Next's forward pass and names the first value that is wrong.

    python verify/compare.py ref.safetensors mine.safetensors
        chained: each value as it came out of mine's own run
    python verify/compare.py ref.safetensors mine.safetensors --isolated --model DIR
        isolated: each value against what the reference makes of mine's own inputs to it

Prints, in forward order: key, shape, ratio of the RMS, NMSE in dB, cosine, largest error, and KL for logits. NMSE
decides: a key passes if its relative RMS error (the root of NMSE) is at most 4 times the noise of its stage, which is
the largest error that rounding alone was measured to cause there (noise.json). Tensors that are flattened, transposed
or have their heads in another order are recognised. That is legal if everything that belongs together is ordered so.

Where the router finds two experts so close that noise may choose, the other choice is a tie, not an error. With --model
the reference goes on with mine's choice, so that what follows can be compared; without it, the comparison ends at that
token.

A file is .safetensors or .npz, with a manifest (stages.py) or just tensors under our keys; --alias FILE renames other
names. Exit code: 0 all agree, 1 some differ, 2 nothing to compare. Needs NumPy and safetensors. To use it elsewhere,
copy the folder verify/ (and for --model reference_recurrent.py, to stay next to the folder). Without noise.json every
stage is allowed 40 times the dtype's rounding.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
from verify.causes import HINTS, explain  # noqa: E402
from verify.measures import (  # noqa: E402
    EPSILON,
    Noise,
    by_signature,
    decibels,
    kl_divergence,
    match_layout,
    relative_error,
    rms,
    usual_sizes,
)
from verify.reference import load_reference, rerun  # noqa: E402
from verify.stages import (  # noqa: E402
    IDS,
    LAYER,
    PROBS,
    STAGES,
    Array,
    CannotCompare,
    Trace,
    axes_of,
    forward_order,
    is_per_token,
    read_trace,
    split_batches,
    stage_of,
)

# ---- Rows -----------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """How one key compares."""

    step: str
    key: str
    shape: tuple[int, ...]
    verdict: str  # ok, differs, tie, layout, shape
    rms_ratio: float = math.nan
    nmse_db: float = math.nan
    cosine: float = math.nan
    largest: float = math.nan
    relative: float = math.nan
    allowed: float = math.nan
    kl: float | None = None
    worst: str = ""  # where the largest error is
    note: str = ""
    causes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.step}/{self.key}" if self.step else self.key


def measure(row: Row, r: Array, m: Array, scale: float):
    """Fills in a row's figures. scale: the size to which the error is compared if r itself is smaller."""
    if not r.size:
        row.relative = 0.0
        row.nmse_db = -math.inf
        return
    finite = np.isfinite(m)
    row.relative = relative_error(r, m, scale) if finite.all() else math.inf
    row.nmse_db = decibels(row.relative)
    rms_r = rms(r)
    rms_m = rms(m)
    if rms_r:
        row.rms_ratio = rms_m / rms_r
    if rms_r and rms_m:
        row.cosine = float(np.sum(r * m) / (r.size * rms_r * rms_m))
    error = np.abs(np.where(finite, m, np.inf) - r)
    index = np.unravel_index(int(error.argmax()), error.shape)
    row.largest = float(error[index])
    axes = axes_of(stage_of(row.key))
    if len(axes) != r.ndim:
        axes = [f"axis {i}" for i in range(r.ndim)]
    row.worst = ", ".join(f"{axis.replace('_', ' ')} {i}" for axis, i in zip(axes, index))
    if row.key in ("lm_head.out", "mtp.logits") and finite.all():
        row.kl = kl_divergence(r, m)


# ---- Comparison -----------------------------------------------------------------------------------------------------


def sort_choices(arrays: dict[str, Array]) -> dict[str, Array]:
    """The same with each token's experts in the order of their numbers, and their weights likewise."""
    arrays = dict(arrays)
    for key in [key for key in arrays if stage_of(key) == IDS]:
        order = np.argsort(arrays[key], axis=-1, kind="stable")
        weights = key.replace("topk_ids", "topk_weights")
        arrays[key] = np.take_along_axis(arrays[key], order, -1)
        if weights in arrays and arrays[weights].shape == order.shape:
            arrays[weights] = np.take_along_axis(arrays[weights], order, -1)
    return arrays


class Comparison:
    """One pass over all shared keys.

    rows: the results; first: the first row that is wrong; ties: (step, key) -> tokens for which noise may have chosen
    other experts; layouts: (step, key) -> mine's values in the reference's layout, where that is another.
    """

    def __init__(self, ref: Trace, mine: Trace, noise: Noise, config: dict):
        self.rows: list[Row] = []
        self.ties: dict[tuple[str, str], list[int]] = {}
        self.layouts: dict[tuple[str, str], Array] = {}
        self.noise = noise
        self.config = config
        self.sizes = usual_sizes(ref.steps)
        self.tainted: int | None = None  # after a tie: tokens from this one on have seen the other choice ...
        self.tie_order: tuple = ()  # ... in what comes after this place in the forward order
        for step in ref.steps:
            if step in mine.steps:
                before = len(ref.tokens.get(step, {}).get("before") or ())
                self.compare_step(step, before, sort_choices(ref.steps[step]), sort_choices(mine.steps[step]))
        self.first = self.find_first()

    def compare_step(self, step: str, before: int, ref: dict[str, Array], mine: dict[str, Array]):
        """Compares the keys that both have, in forward order. before: how many tokens were in the cache."""
        if not before:
            self.tainted = None
        tied: dict[str, list[int]] = {}  # layer -> tokens with another choice
        heads: dict[str, Array] = {}  # layer -> the order of its value heads
        for key in sorted(ref.keys() & mine.keys(), key=forward_order):
            stage = stage_of(key)
            if stage == "mlp.margin":  # it explains ties; the probabilities themselves are compared
                continue
            r = ref[key]
            m = mine[key]
            row = Row(step, key, tuple(r.shape), "ok", allowed=self.noise.allowed(key))
            if self.tainted is not None and forward_order(key) > self.tie_order:
                if not is_per_token(key) or self.tainted <= before:
                    continue
                r = r[: self.tainted - before]
                m = m[: self.tainted - before]
                row.note = f"compared up to token {self.tainted - 1}"
            layer = key.removesuffix("out" if stage == "layer.out" else stage)
            if stage == IDS:
                self.compare_choices(row, r, m, ref, mine)
                tied[layer] = self.ties.get((step, key), [])
            else:
                if tied.get(layer) and stage.startswith("mlp.") and is_per_token(key) and len(r) == len(m):
                    r = np.delete(r, tied[layer], axis=0)
                    m = np.delete(m, tied[layer], axis=0)
                self.compare_values(row, r, m, heads.get(layer))
                if row.verdict == "layout" and "value heads" in row.note and layer not in heads:
                    heads[layer] = by_signature(r, m, axes_of(stage).index("value_head"))
                if row.verdict == "differs":
                    self.explain_row(row, r, m, ref, layer, first=not before)
            self.rows.append(row)
            if tied.get(layer) and stage == "layer.out" and self.tainted is None:
                self.tainted = before + min(tied[layer])
                self.tie_order = forward_order(key)

    def compare_values(self, row: Row, r: Array, m: Array, heads: Array | None):
        """Decides for one key; a layout that makes the two agree is noted."""
        scale = self.sizes.get(row.key, 0.0)
        if r.shape == m.shape:
            measure(row, r, m, scale)
            if row.relative <= row.allowed:
                return
        found = match_layout(stage_of(row.key), r, m, row.allowed, heads)
        if found:
            x, row.note = found
            self.layouts[row.step, row.key] = x
            row.verdict = "layout"
            measure(row, r, x, scale)
        elif r.shape == m.shape:
            row.verdict = "differs"
        else:
            wrong_shape(row, r, m)

    def explain_row(self, row: Row, r: Array, m: Array, ref: dict[str, Array], layer: str, first: bool):
        """Fills in what can be seen of an error, and its likely causes."""

        def at(stage: str) -> Array:
            return ref[layer + ("out" if stage == "layer.out" else stage)]

        seen, causes = explain(stage_of(row.key), r, m, row.allowed, at, self.config, first)
        notes = [row.note, *seen] if row.note else seen
        row.note = "; ".join(notes)
        row.causes = causes

    def compare_choices(self, row: Row, r: Array, m: Array, ref: dict[str, Array], mine: dict[str, Array]):
        """Chosen experts: where they differ, a tie if the probabilities are so close that noise may decide."""
        if r.shape != m.shape:
            wrong_shape(row, r, m)
            return
        different = np.flatnonzero((r != m).any(-1)).tolist()
        row.relative = len(different) / max(len(r), 1)
        row.largest = float(len(different))
        if not different:
            return
        row.note = f"{len(different)} of {len(r)} tokens choose other experts"
        key = row.key.replace(IDS, PROBS)
        p = ref.get(key)
        if p is None:
            wrong = different
        else:
            noise = self.noise_of_probabilities(row, p, mine.get(key))
            wrong = [t for t in different if gap(p[t], r[t], m[t]) > 2 * noise[t]]
        if wrong:
            row.verdict = "differs"
            row.worst = f"token {wrong[0]}"
            row.causes = [cause for _, cause in HINTS[r"mlp\.topk_(ids|weights)"]]
        else:
            row.verdict = "tie"
            self.ties[row.step, row.key] = different

    def noise_of_probabilities(self, row: Row, p: Array, q: Array | None) -> Array:
        """How far noise has moved each token's probabilities: as seen if mine's are right, or as usual otherwise.

        row: that of the choice; p: the reference's probabilities; q: mine's.
        """
        name = row.name.replace(IDS, PROBS)
        right = any(other.name == name and other.verdict in ("ok", "layout") for other in self.rows)
        if right and q.shape == p.shape:
            return np.abs(q - p).max(-1)
        usual = 3 * self.noise.allowed(row.key.replace(IDS, PROBS))
        return usual * np.array([rms(token) for token in p])

    def find_first(self) -> Row | None:
        """The first that is wrong. Another layout is legal if what follows in its layer agrees."""
        first = next((row for row in self.rows if row.verdict in ("differs", "shape")), None)
        match = LAYER.fullmatch(first.key) if first else None
        if match is None:
            return first
        layer = first.key[: match.start(3)]
        for row in self.rows:
            if row is first:
                break
            if row.verdict == "layout" and row.step == first.step and row.key.startswith(layer):
                row.verdict = "differs"
                row.causes = row.causes or first.causes
                return row
        return first


def wrong_shape(row: Row, r: Array, m: Array):
    """The verdict on values that no layout can bring together."""
    row.verdict = "shape"
    row.note = f"has shape {m.shape}, expected {r.shape}"


def gap(p: Array, r: Array, m: Array) -> float:
    """How far apart the probabilities are of the experts that only r has and of those that only m has."""
    lost = set(r.tolist()) - set(m.tolist())
    won = set(m.tolist()) - set(r.tolist())
    if not lost or len(lost) != len(won):
        return math.inf
    return max(p[list(lost)]) - min(p[list(won)])


def compare(
    ref: Trace,
    mine: Trace,
    *,
    dtype: str,
    isolated: bool = False,
    reference=None,
    noise_file: Path = HERE / "noise.json",
) -> Comparison:
    """Compares two traces whose batches are split. Raises CannotCompare.

    reference: reference_recurrent.Reference of the same checkpoint, for isolated values and for what follows a tie.
    """
    config = ref.manifest.get("config") or mine.manifest.get("config") or {}
    noise = Noise(noise_file, dtype, "isolated" if isolated else "chained")
    if not any(ref.steps[step].keys() & mine.steps.get(step, {}).keys() for step in ref.steps):
        raise CannotCompare("the two traces share no key")
    done = Comparison(ref, mine, noise, config)
    if reference is None:
        return done
    if isolated:
        own = rerun(reference, tokens_of(ref), fitting(ref, mine, done.layouts))
        return Comparison(Trace(own, ref.tokens, ref.manifest), mine, noise, config)
    return follow_ties(done, ref, mine, reference)


def tokens_of(trace: Trace) -> dict[str, dict]:
    """What the steps of a trace were fed, those left out for which it does not say."""
    return {step: trace.tokens[step] for step in trace.steps if "tokens" in trace.tokens.get(step, {})}


def fitting(ref: Trace, mine: Trace, layouts: dict) -> dict[str, dict[str, Array]]:
    """Mine's values in the reference's layout: what the reference can go on with."""
    found = {}
    for step, arrays in mine.steps.items():
        found[step] = {}
        for key, x in arrays.items():
            x = layouts.get((step, key), x)
            if key in ref.steps.get(step, {}) and x.shape == ref.steps[step][key].shape:
                found[step][key] = x
    return found


def follow_ties(done: Comparison, ref: Trace, mine: Trace, reference) -> Comparison:
    """The comparison again, with mine's choice of experts wherever it is a tie; that may lead to ties further on."""
    tokens = tokens_of(ref)
    choices = {step: {key: x.copy() for key, x in ref.steps[step].items() if stage_of(key) == IDS} for step in tokens}
    tied: dict[tuple[str, str], list[int]] = {}
    while True:
        fresh = {place: rows for place, rows in done.ties.items() if rows != tied.get(place)}
        if not fresh:
            break
        tied |= fresh
        for (step, key), rows in fresh.items():
            choices[step][key][rows] = mine.steps[step][key][rows]
        keys = {key for _, key in tied}
        forced = {step: {key: x for key, x in found.items() if key in keys} for step, found in choices.items()}
        own = rerun(reference, tokens, forced)
        for step, found in own.items():
            found |= {key: np.sort(x, axis=-1) for key, x in forced[step].items()}
        ref = Trace({**ref.steps, **own}, ref.tokens, ref.manifest)
        done = Comparison(ref, mine, done.noise, done.config)
    for row in done.rows:
        if (row.step, row.key) in tied and row.verdict == "ok":
            row.verdict = "tie"
            row.note = f"{len(tied[row.step, row.key])} tokens choose otherwise, as noise may"
    return done


# ---- Command line ---------------------------------------------------------------------------------------------------


def print_rows(rows: list[Row], every: bool):
    """The table, of all rows or of those that are not ok."""
    width = max([len(row.name) for row in rows] + [10])
    head = f"{'shape':16} {'rms':>8} {'NMSE dB':>8} {'cosine':>9} {'largest':>9} {'allowed':>8}"
    print(f"{'key':{width}}  {head}  verdict")
    for row in rows:
        if not every and row.verdict == "ok":
            continue
        figures = f"{row.rms_ratio:8.4f} {row.nmse_db:8.1f} {row.cosine:9.6f} {row.largest:9.2e}"
        kl = f"  KL {row.kl:.2e}" if row.kl is not None else ""
        note = f"  {row.note}" if row.note else ""
        allowed = decibels(row.allowed)
        print(f"{row.name:{width}}  {row.shape!s:16} {figures} {allowed:8.1f}  {row.verdict}{kl}{note}")


def print_result(done: Comparison, missing: list[str], every: bool):
    """The table, then all that agrees or the first that does not."""
    print_rows(done.rows, every)
    if missing:
        more = " ..." if len(missing) > 8 else ""
        print(f"not compared: {', '.join(missing[:8])}{more} ({len(missing)} keys of mine)")
    first = done.first
    if first is None:
        verdicts = [row.verdict for row in done.rows]
        kinds = {"layout": "in another layout", "tie": "with ties of experts"}
        counts = [f"{verdicts.count(kind)} {words}" for kind, words in kinds.items() if kind in verdicts]
        print(f"agree: {len(done.rows)} keys{' (' + ', '.join(counts) + ')' if counts else ''}")
        return
    figures = f"relative error {first.relative:.3g}, allowed {first.allowed:.3g}"
    print(f"first: {first.name}  at {first.worst or 'its shape'}; {figures}")
    stage = stage_of(first.key)
    if stage in STAGES:
        print(f"should be: {STAGES[stage][1]}")
    if first.note:
        print(f"seen: {first.note}")
    for cause in first.causes:
        print(f"likely: {cause}")


def print_json(done: Comparison, missing: list[str]):
    """All of it as one JSON object."""
    found = {
        "agree": done.first is None,
        "first": done.first.name if done.first else None,
        "causes": done.first.causes if done.first else [],
        "rows": [asdict(row) | {"name": row.name} for row in done.rows],
        "not compared": missing,
    }
    print(json.dumps(found, default=str))


def check_same_run(ref: Trace, mine: Trace):
    """Step 0: raises CannotCompare if the two saw other tokens, or are of other checkpoints."""
    for step in ref.tokens.keys() & mine.tokens.keys():
        if ref.tokens[step] != mine.tokens[step]:
            found = f"{ref.tokens[step]} and {mine.tokens[step]}"
            raise CannotCompare(f"step {step!r}: the two have other tokens: {found}")
    hashes = [trace.manifest.get("config_sha256") for trace in (ref, mine)]
    if None not in hashes and hashes[0] != hashes[1]:
        raise CannotCompare("the two were made with other config.json contents")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("ref", type=Path, help="trace of the reference")
    add("mine", type=Path, help="trace of the implementation under test")
    add("--isolated", action="store_true", help="separate the error of each stage from what it inherits; needs --model")
    add("--model", type=Path, metavar="DIR", help="the checkpoint, to run reference_recurrent.py on")
    add("--dtype", choices=EPSILON, help="what mine computed in (default: its manifest's, or float32)")
    add("--alias", type=Path, metavar="FILE", help="JSON list that renames mine's names (verify/aliases)")
    add("--padding", choices=["right", "left"], default="right", help="of mine's batches")
    add("--noise", type=Path, default=HERE / "noise.json", metavar="FILE")
    add("--all", action="store_true", help="print every key, not only those that are not ok")
    add("--json", action="store_true", help="print everything as JSON instead")
    return parser.parse_args(arguments)


def compare_files(args: argparse.Namespace) -> tuple[Comparison, list[str]]:
    """The comparison that the options ask for, and the keys of mine that it left out. Raises CannotCompare."""
    if args.isolated and not args.model:
        raise CannotCompare("--isolated needs --model")
    try:
        aliases = json.loads(args.alias.read_bytes()) if args.alias else []
    except (OSError, ValueError) as error:
        raise CannotCompare(f"{args.alias}: {error}") from None
    ref = read_trace(args.ref)
    mine = read_trace(args.mine, aliases)
    check_same_run(ref, mine)
    dtype = args.dtype or mine.manifest.get("dtype", "float32")
    mine = split_batches(mine, ref.tokens, args.padding)
    ref = split_batches(ref, ref.tokens, "right")
    reference = load_reference(args.model) if args.model else None
    done = compare(ref, mine, dtype=dtype, isolated=args.isolated, reference=reference, noise_file=args.noise)
    keys = {key for arrays in mine.steps.values() for key in arrays}
    missing = sorted(keys - {row.key for row in done.rows})
    return done, [key for key in missing if not key.endswith(".margin")]


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: all agree, 1: some differ, 2: nothing to compare, after one line on stderr."""
    args = parse_arguments(arguments)
    try:
        done, missing = compare_files(args)
    except CannotCompare as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    if args.json:
        print_json(done, missing)
    else:
        print_result(done, missing, args.all)
    return 0 if done.first is None else 1


if __name__ == "__main__":
    sys.exit(main())
