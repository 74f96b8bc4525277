"""Runs reference_recurrent.py for the kit, and writes traces of it.

    python verify/reference.py --model DIR --tokens 5,17,3 --trace ref.safetensors
        every value of one pass over these tokens
    python verify/reference.py --model DIR --like mine.safetensors --trace ref.safetensors
        the tokens, steps and keys of another implementation's trace; the names of the other keys are noted
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
    is_batch,
    is_per_token,
    join_batches,
    read_trace,
    split_tokens,
    stage_of,
    write_trace,
)

Steps = dict[str, dict[str, Array]]  # name of a step -> key -> values
Tokens = dict[str, dict]  # name of a step -> what it was fed: "tokens" and "before", see stages.py
NOT_PASSES = {"layers", "gradients", "op"}  # steps that are no pass of the whole model have one of these
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


def check_tokens(tokens: object, path: Path):
    """Raises CannotCompare for a manifest that does not say, of each step, which tokens it was fed and after which."""

    def is_ids(ids: object) -> bool:
        return isinstance(ids, list) and all(type(n) is int for n in ids)

    def is_fed(fed: object) -> bool:
        if not isinstance(fed, dict) or type(fed.get("drafts", 0)) is not int:
            return False
        new = fed.get("tokens")
        before = fed.get("before")
        if is_ids(new) and is_ids(before):
            return 0 <= fed.get("drafts", 0) < max(len(new), 1)
        lists = isinstance(new, list) and isinstance(before, list) and len(new) == len(before)  # a batch
        return lists and all(map(is_ids, [*new, *before]))

    wrong = tokens if not isinstance(tokens, dict) else next((s for s in tokens if not is_fed(tokens[s])), None)
    if wrong is not None:
        raise CannotCompare(f"{path}: its manifest's steps: {wrong!r:.99} has no lists of ids in tokens and before")


# ---- Steps ----------------------------------------------------------------------------------------------------------


def run_reference(reference, tokens: Tokens, given: Steps | None = None) -> Steps:
    """What the reference computes in each step. given: values that steps for single layers begin with.

    It has no gradients: those steps are left out.
    """
    given = given or {}
    whole = {step: fed for step, fed in tokens.items() if not NOT_PASSES & fed.keys()}
    found: Steps = {}
    for chain in chains(split_tokens(whole)):
        found |= run_chain(reference, chain)
    steps = join_batches(found, whole)
    for step, fed in tokens.items():
        if "op" in fed:
            steps[step] = run_operation(fed, given[step])
        if "layers" in fed:
            like = Trace({"": {key: x.astype(np.float64) for key, x in given.get(step, {}).items()}}, {}, {})
            steps[step] = run_layers(reference, {"": fed}, like, range(*fed["layers"])) | given.get(step, {})
        if "drafts" in fed:
            found = reference.trace(fed["before"] + fed["tokens"], drafts=fed["drafts"])
            steps[step] = {key: x[-1:] for key, x in found.items() if key.startswith("mtp.")}
    return {step: steps[step] for step in tokens if step in steps}


def run_operation(fed: dict, given: dict[str, Array]) -> dict[str, Array]:
    """One operation alone: its inputs, and what comes out."""
    from verify.ops import OPERATIONS

    exact = {key: x.astype(np.float64) if x.dtype.kind == "f" else x for key, x in given.items()}
    return given | OPERATIONS[fed["op"]](**exact, **fed["parameters"])


def chains(tokens: Tokens) -> list[Tokens]:
    """Steps in groups: in each, every step goes on where the one before it ended, so that one pass has them all."""
    found: list[Tokens] = []
    for step, fed in tokens.items():
        if "drafts" in fed or not (fed["before"] or fed["tokens"]):
            continue
        for chain in found:
            last = list(chain.values())[-1]
            if fed["before"] and fed["before"] == last["before"] + last["tokens"]:
                chain[step] = fed
                break
        else:
            found.append({step: fed})
    return found


def run_chain(reference, chain: Tokens) -> Steps:
    """The values of steps that go on where the one before ended, from a single pass."""
    ends = [len(fed["before"]) + len(fed["tokens"]) for fed in chain.values()]
    last = list(chain.values())[-1]
    values = reference.trace(last["before"] + last["tokens"], ends)
    steps: Steps = {}
    for n, (step, fed) in enumerate(chain.items()):
        start, end = len(fed["before"]), ends[n]
        steps[step] = {}
        for key, x in values.items():
            if key.startswith("mtp."):
                if start == 0 and end > 1:
                    steps[step][key] = x[: end - 1]
            elif not is_per_token(key):
                steps[step][key] = x[n]
            elif end > start:
                steps[step][key] = x[start:end]
    return steps


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
        if (NOT_PASSES | {"drafts"}) & fed.keys() or places is None or not (before or new):
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
    ids = tokens[step]["before"] + tokens[step]["tokens"]
    forced = {}
    for key in keys:
        if key.startswith("mtp."):
            if not tokens[step]["before"]:
                forced[key] = have[step][key]
        elif is_per_token(key):
            if all(row < len(have[name][key]) for name, row in places):
                forced[key] = np.stack([have[name][key][row] for name, row in places])
        elif stage_of(key) == "linear_attn.state":
            names = [step_after(tokens, have, ids[:end]) for end in ends]
            if all(name is not None and key in have[name] for name in names):
                forced[key] = np.stack([have[name][key] for name in names])
    return forced


def step_after(tokens: Tokens, have: Steps, ids: list[int]) -> str | None:
    """The step after which a cache holds just these tokens; None if there is none, or nothing of it is known."""
    steps = [step for step, fed in tokens.items() if step in have and "drafts" not in fed]
    return next((step for step in steps if tokens[step]["before"] + tokens[step]["tokens"] == ids), None)


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
    check_tokens(tokens, args.like)
    if not tokens:
        raise ValueError(f"{args.like}: does not say what it was fed: --tokens has to")
    if args.layers is None:
        given = {}
        if like:  # what single layers and operations begin with
            inputs = {step: fed["inputs"] for step, fed in tokens.items() if "inputs" in fed}
            given = {step: {key: like.steps[step][key] for key in keys} for step, keys in inputs.items()}
        steps = run_reference(reference, tokens, given)
    else:
        steps = {"": run_layers(reference, tokens, like, args.layers)}
        tokens = {"": {**tokens[""], "layers": [args.layers.start, args.layers.stop]}}
    more = {}
    if like:
        steps, more["left_out"] = keys_like(steps, like, tokens)
    about = {"producer": "reference_recurrent.py", "dtype": "float64", "folder": args.model, "more": more}
    write_trace(args.trace, steps, tokens, **about)


def keys_like(steps: Steps, like: Trace, tokens: Tokens) -> tuple[Steps, dict[str, list[str]]]:
    """The values that another trace has, too; and by step the keys of the others, so that nobody forgets them."""
    kept: Steps = {}
    left_out = {}
    for step, found in steps.items():
        theirs = like.steps.get(step, {})
        kept[step] = {key: x for key, x in found.items() if key in theirs}
        others = [key for key in found if key not in theirs]
        new = tokens[step]["tokens"]
        names = [f"{step}[{b}]" for b in range(len(new))] if is_batch(new) else [step]
        left_out |= {name: others for name in names if others}
    return kept, left_out


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    return exit_code("reference.py", run, parse_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
