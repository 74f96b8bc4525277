"""Compares two traces of Qwen3-Next's forward pass and names the first value that is wrong.

    python verify/compare.py ref.safetensors mine.safetensors
        chained: each value as it came out of mine's own run
    python verify/compare.py ref.safetensors mine.safetensors --isolated --model DIR
        isolated: each value against what the reference makes of mine's own inputs to it

Prints, in forward order: key, shape, ratio of the RMS, NMSE in dB, cosine, largest error, and KL for logits. NMSE
decides: a key passes if its relative RMS error (the root of NMSE) is at most 4 times the noise of its stage, which is
the largest error that rounding alone was measured to cause there (noise.json, floors.py). Shapes and the order of axes
are the port's choice (canonical.py), and so is the order of its heads, if everything that belongs together has it.

Where the router finds two experts so close that noise may choose, the other choice is a tie, not an error. With --model
the reference goes on with mine's choice, so that what follows can be compared; without it, the comparison ends at that
token.

Values are counted by level (levels.py): a level is complete when mine has every value that the reference has of it.
--level asks for some levels only, --keys for some values, of a port that does not show everything.

A file is .safetensors or .npz, with a manifest (stages.py) or just tensors under our keys; --alias FILE renames other
names. Exit code: 0 all that was asked for is there and agrees, 1 some differ, 2 nothing to compare, 3 what is there
agrees, but some is missing. Needs NumPy and safetensors. To use it elsewhere, copy the folder verify/ (and for --model
reference_recurrent.py, to stay next to the folder). Without noise.json every stage is allowed 40 times the dtype's
rounding.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
from verify.comparison import Comparison, Row, sort_choices  # noqa: E402, F401, for those who look at rows
from verify.floors import EPSILON, STATE_DTYPES, Noise  # noqa: E402
from verify.levels import LEVELS, Level, count_levels, level_of  # noqa: E402
from verify.noise_sums import rounded  # noqa: E402
from verify.reference import NOT_PASSES, chains, load_reference, rerun, run_chain  # noqa: E402
from verify.report import (  # noqa: E402
    CODES,
    as_json,
    print_result,
    print_rows,  # noqa: F401, for those who call compare() and print some of its rows
    verdict_of,
    write_json,
)
from verify.stages import IDS, Array, CannotCompare, NothingShared, Trace, read_trace, split_batches, stage_of  # noqa: E402

# ---- Comparing traces -----------------------------------------------------------------------------------------------


def compare(
    ref: Trace,
    mine: Trace,
    *,
    dtype: str,
    isolated: bool = False,
    reference=None,
    noise_file: Path = HERE / "noise.json",
    state_dtype: str = "float32",
) -> Comparison:
    """Compares two traces whose batches are split. Raises CannotCompare.

    reference: reference_recurrent.Reference of the same checkpoint, for isolated values and for what follows a tie.
    state_dtype: what mine keeps the delta rule's state in, if it announces another than float32 (or its own dtype).
    """
    config = ref.manifest.get("config") or mine.manifest.get("config") or {}
    if dtype == "float64" and (fits(ref, "float32") or fits(mine, "float32")):
        dtype = "float32"  # what is stored in float32 can't agree any better
    noise = Noise(noise_file, dtype, "isolated" if isolated else "chained", config, state_dtype)
    noise.rounded = dtype in ("float32", "float64") or fits(mine, dtype)
    if not any(ref.steps[step].keys() & mine.steps.get(step, {}).keys() for step in ref.steps):
        raise NothingShared("the two traces share no key")
    if isolated and reference is not None:
        return compare_isolated(ref, mine, noise, config, reference)
    done = Comparison(ref, mine, noise, config)
    if reference is None:
        return done
    done = follow_ties(done, ref, mine, reference)
    explain_fully(done, ref, reference)
    return done


def fits(trace: Trace, dtype: str) -> bool:
    """Whether all values with a fraction are numbers of this dtype, as of a port that writes what it computes in."""
    arrays = (x for found in trace.steps.values() for x in found.values() if x.dtype.kind == "f")
    return all(np.array_equal(x, rounded(x, dtype), equal_nan=True) for x in arrays)


def explain_fully(done: Comparison, ref: Trace, reference):
    """The first error's causes again, with all values that the reference has, where ref's file has only some."""
    first = done.first
    if first is None or (first.step, first.key) not in done.wrong or "drafts" in ref.tokens.get(first.step, {}):
        return
    whole = {step: dict(found) for step, found in ref.steps.items()}
    passes = {step: fed for step, fed in tokens_of(ref).items() if not NOT_PASSES & fed.keys()}
    for chain in chains(passes):
        for step, found in run_chain(reference, chain).items():
            whole[step] = found | whole.get(step, {})
    done.explain_row(first, whole)


def compare_isolated(ref: Trace, mine: Trace, noise: Noise, config: dict, reference) -> Comparison:
    """Each value against what the reference makes of mine's own inputs to it, whether ref itself has these or not."""
    known = {step: set(found) for step, found in ref.steps.items()}
    if any(mine.steps.get(step, {}).keys() - known[step] for step in known):
        whole = rerun(reference, tokens_of(ref), {})
        ref = Trace({step: whole.get(step, {}) | found for step, found in ref.steps.items()}, ref.tokens, ref.manifest)
    have = fitting(ref, mine, Comparison(ref, mine, noise, config).layouts)
    own = rerun(reference, tokens_of(ref), have)
    return Comparison(
        Trace(own, ref.tokens, ref.manifest), mine, noise, config, {step: set(found) for step, found in have.items()}
    )


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
        fresh = {place: rows for place, rows in done.apart.items() if rows != tied.get(place)}
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


def check_same_run(ref: Trace, mine: Trace):
    """Step 0: raises CannotCompare if the two saw other tokens, or are of other checkpoints."""
    for step in ref.tokens.keys() & mine.tokens.keys():
        both = ref.tokens[step], mine.tokens[step]
        if any(both[0][name] != both[1][name] for name in both[0].keys() & both[1].keys()):
            raise CannotCompare(f"step {step!r}: the two have other tokens: {both[0]} and {both[1]}")
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
    add("--state-dtype", choices=STATE_DTYPES, help="what it keeps the delta rule's state in (default: float32)")
    add("--alias", type=Path, metavar="FILE", help="JSON list that renames mine's names (verify/aliases)")
    add("--padding", choices=["right", "left"], default="right", help="of mine's batches")
    add("--noise", type=Path, default=HERE / "noise.json", metavar="FILE")
    add("--level", nargs="+", choices=LEVELS, metavar="L", help=f"these only: {', '.join(LEVELS)} (default: all)")
    add("--keys", nargs="+", default=["*"], metavar="GLOB", help="these only, such as lm_head.out '*.state'")
    add("--all", action="store_true", help="print every key, not only those that are not ok")
    add(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write everything as JSON, to a file or instead of the table",
    )
    return parser.parse_args(arguments)


def restrict(done: Comparison, tokens: dict[str, dict], wanted: Iterable[str], keys: Iterable[str]):
    """Leaves only the rows of some levels and keys. tokens: what the steps were fed, batches not yet split."""
    rows = [row for row in done.rows if any(fnmatchcase(row.key, glob) for glob in keys)]
    done.rows = [row for row in rows if level_of(row.step, row.key, tokens) in wanted]
    done.first = done.find_first()


def compare_files(args: argparse.Namespace) -> tuple[Comparison, list[Level], Trace, list[str]]:
    """The comparison that the options ask for, its levels, mine, and the keys of mine that the reference lacks.

    Raises CannotCompare.
    """
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
    state_dtype = args.state_dtype or mine.manifest.get("state_dtype", "float32")
    tokens = ref.tokens
    mine = split_batches(mine, tokens, args.padding)
    ref = split_batches(ref, tokens, "right")
    reference = load_reference(args.model) if args.model else None
    options = {"dtype": dtype, "isolated": args.isolated, "state_dtype": state_dtype, "noise_file": args.noise}
    done = compare(ref, mine, reference=reference, **options)
    wanted = args.level or LEVELS
    restrict(done, tokens, wanted, args.keys)
    levels = count_levels(ref, mine, [(row.step, row.key) for row in done.rows], tokens, args.keys)
    levels = [level for level in levels if level.name in wanted]
    if not any(level.compared for level in levels):
        asked = " ".join([*(args.level or []), *args.keys])
        raise CannotCompare(f"nothing to compare: the two share no key of {asked}")
    known = {key for found in ref.steps.values() for key in found}
    unknown = {key for found in mine.steps.values() for key in found} - known
    return done, levels, mine, sorted(unknown)


def main(arguments: list[str] | None = None) -> int:
    """Exit code as above; what can't be compared ends in one line on stderr."""
    args = parse_arguments(arguments)
    try:
        done, levels, mine, unknown = compare_files(args)
        if args.json:
            write_json(as_json(done, levels, mine, unknown), args.json)
    except (CannotCompare, OSError) as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"compare.py: {args.ref}, {args.mine}: a manifest can't be used ({why})", file=sys.stderr)
        return 2
    if args.json != "-":
        print_result(done, levels, mine, unknown, args.all)
    return CODES[verdict_of(done.first, levels)]


if __name__ == "__main__":
    sys.exit(main())
