"""Runs reference_recurrent.py for the kit, and writes traces of it.

    python verify/reference.py --model DIR --tokens 5,17,3 --trace ref.safetensors
        every value of one pass over these tokens
    python verify/reference.py --model DIR --like mine.safetensors --trace ref.safetensors
        the tokens, steps and keys of another implementation's trace
    python verify/reference.py --model DIR --like mine.safetensors --trace ref.safetensors --layers 2:4
        layers 2 and 3 only, from what mine has as the output of layer 1

The reference computes whole sequences and has no cache. A step of a trace that continues from a cache is therefore the
end of a pass over everything since the beginning. With `--layers A:B` only the files of a large checkpoint that hold
those layers need to be there. A file without a manifest does not say its tokens: give both --like and --tokens then.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
from verify.stages import (  # noqa: E402
    IDS,
    Array,
    CannotCompare,
    Trace,
    exit_code,
    is_per_token,
    join_batches,
    read_trace,
    split_tokens,
    stage_of,
    write_trace,
)

Steps = dict[str, dict[str, Array]]  # name of a step -> key -> values
Tokens = dict[str, dict]  # name of a step -> what it was fed: "tokens" and "before", see stages.py
Place = tuple[str, int]  # where a token's values are: the name of its step, and the row in it


def load_reference(model: Path):
    """reference_recurrent.py's Reference of a checkpoint. Raises CannotCompare."""
    try:
        from reference_recurrent import Reference
    except ImportError:
        raise CannotCompare(f"reference_recurrent.py has to be in {HERE.parent}, next to {HERE.name}/") from None
    try:
        return Reference.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise CannotCompare(f"{model}: {error}") from None
    except KeyError as error:
        raise CannotCompare(f"{model}: {error.args[0]}") from None


# ---- Steps ----------------------------------------------------------------------------------------------------------


def run_reference(reference, tokens: Tokens) -> Steps:
    """What the reference computes in each step."""
    steps = join_batches(rerun(reference, split_tokens(tokens), {}), tokens)
    for step, fed in tokens.items():
        if "drafts" in fed:
            found = reference.trace(fed["before"] + fed["tokens"], drafts=fed["drafts"])
            steps[step] = {key: x[-1:] for key, x in found.items() if key.startswith("mtp.")}
    return {step: steps[step] for step in tokens}


def rerun(reference, tokens: Tokens, have: Steps) -> Steps:
    """What the reference makes of each step when it goes on with the values of `have` in place of its own.

    A step continues an earlier one as far as its "before" goes, which a rollback shortens. Drafts are left out.
    """
    results: Steps = {}
    past: list[tuple[list[Place], list[int]]] = [([], [])]  # of each step: where all tokens so far are, and their ids
    for step, fed in tokens.items():
        before = fed["before"]
        new = fed["tokens"]
        places = next((places for places, ids in reversed(past) if ids[: len(before)] == before), None)
        if "drafts" in fed or places is None or not (before or new):
            continue
        places = places[: len(before)] + [(step, row) for row in range(len(new))]
        past.append((places, before + new))
        ends = ends_of_steps(places)
        forced = values_to_force(tokens, have, step, places, ends)
        found = reference.trace(before + new, ends, forced)
        for key in forced:
            if stage_of(key) == IDS:
                sort_choice(found, key, forced[key])
        results[step] = {}
        for key, x in found.items():
            if key.startswith("mtp."):
                if not before:
                    results[step][key] = x
            elif not is_per_token(key):
                results[step][key] = x[-1]
            elif new:
                results[step][key] = x[-len(new) :]
    return results


def ends_of_steps(places: list[Place]) -> list[int]:
    """After how many tokens each of the steps ends that a sequence was fed in."""
    names = [step for step, _ in places]
    return [i + 1 for i in range(len(names)) if i + 1 == len(names) or names[i] != names[i + 1]]


def values_to_force(tokens: Tokens, have: Steps, step: str, places: list[Place], ends: list[int]) -> dict[str, Array]:
    """The values of `have` for all tokens of a sequence, and the states after each of its steps, if they are there.

    Only what every one of these steps has: else the reference would go on with its own values for some of the tokens.
    """
    source = step if tokens[step]["tokens"] else places[-1][0]  # a rollback has no rows of its own
    keys = set(have.get(source, {}))
    for name, _ in places:
        keys &= set(have.get(name, {}))
    step_that_ends_at = {len(tokens[s]["before"]) + len(tokens[s]["tokens"]): s for s in have if s in tokens}
    forced = {}
    for key in keys:
        if key.startswith("mtp."):
            if not tokens[step]["before"]:
                forced[key] = have[step][key]
        elif is_per_token(key):
            if all(row < len(have[name][key]) for name, row in places):
                forced[key] = np.stack([have[name][key][row] for name, row in places])
        elif stage_of(key) == "linear_attn.state":
            names = [step_that_ends_at.get(end) for end in ends]
            if all(name is not None and key in have[name] for name in names):
                forced[key] = np.stack([have[name][key] for name in names])
    return forced


def sort_choice(found: dict[str, Array], key: str, forced: Array):
    """Puts the reference's choice of experts in the order of their numbers, and likewise the weights.

    The weights are those of the forced choice, with which the reference has gone on; what it would have chosen itself
    stays in `found`, to be compared.
    """
    weights = key.replace("topk_ids", "topk_weights")
    order = np.argsort(forced, axis=-1, kind="stable")
    found[weights] = np.take_along_axis(found[weights], order, -1)
    found[key] = np.sort(found[key], axis=-1)


def run_layers(reference, tokens: Tokens, like: Trace | None, layers: range) -> dict[str, Array]:
    """Some layers of a trace of one step. Those from A > 0 on begin with the output of layer A - 1 in `like`."""
    if list(tokens) != [""]:
        raise ValueError(f"--layers takes a trace of one step, found {', '.join(tokens)}")
    if layers.stop > len(reference.config.is_moe):
        raise ValueError(f"--layers {layers.start}:{layers.stop}: the model has {len(reference.config.is_moe)}")
    forced = {}
    if layers.start > 0:
        before = f"model.layers.{layers.start - 1}.out"
        if like is None or before not in like.steps.get("", {}):
            raise ValueError(f"--layers from {layers.start} on need {before} in the file of --like")
        forced[before] = like.steps[""][before]
    found = reference.trace(tokens[""]["tokens"], forced=forced, layers=layers)
    return {key: x if is_per_token(key) else x[-1] for key, x in found.items()}


# ---- Command line ---------------------------------------------------------------------------------------------------


def token_list(text: str) -> list[int]:
    """Integers from their text, separated by commas."""
    return [int(part) for part in text.split(",")]


def layer_range(text: str) -> range:
    """Layers from their text: "0:4" for the first four."""
    start, stop = text.split(":")
    if not 0 <= int(start) < int(stop):
        raise ValueError(text)
    return range(int(start), int(stop))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="folder with config.json and *.safetensors")
    add("--tokens", type=token_list, help="token ids, such as 5,17,3")
    add("--like", type=Path, metavar="FILE", help="a trace whose tokens, steps and keys to use")
    add("--trace", type=Path, metavar="FILE", required=True, help="the file to write")
    add("--layers", type=layer_range, metavar="A:B", help="layers A to B - 1 only (from A > 0: of --like)")
    args = parser.parse_args(arguments)
    if args.tokens is None and args.like is None:
        parser.error("one of --tokens and --like is needed")
    return args


def run(args: argparse.Namespace):
    """Writes the trace that the options ask for."""
    reference = load_reference(args.model)
    like = read_trace(args.like) if args.like else None
    tokens = {"": {"tokens": args.tokens, "before": []}} if args.tokens is not None else like.tokens
    if not tokens:
        raise ValueError(f"{args.like}: does not say what it was fed: --tokens has to")
    if args.layers is None:
        steps = run_reference(reference, tokens)
    else:
        steps = {"": run_layers(reference, tokens, like, args.layers)}
    if like:
        steps = {s: {k: x for k, x in found.items() if k in like.steps.get(s, {})} for s, found in steps.items()}
    write_trace(args.trace, steps, tokens, producer="reference_recurrent.py", dtype="float64", folder=args.model)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    return exit_code("reference.py", run, parse_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
