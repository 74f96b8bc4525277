"""The levels of conformance: to which of them a value belongs, and how much of each a port has shown.

A level is complete when every value that the reference has of it was compared and agrees. What is not there is not
right: a port that writes one key has shown one key.

    op         one operation alone: a norm, RoPE, the delta rule from a state
    layer      one layer alone, from its input
    prefill    a pass over a prompt
    decode     what continues a cache: tokens one by one, or a few at a time
    padded     several sequences in a batch: padding, a slot that another sequence takes, one that is taken out and back
    mtp        multi-token prediction: its pass over a prompt, and drafts
    rollback   tokens are taken back; and all that follows, drafts included
    packed     several sequences in one row
    gradients  of the loss, for every parameter
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from verify.stages import Trace, forward_order, is_batch, stage_of

LEVELS = ("op", "layer", "prefill", "decode", "padded", "mtp", "rollback", "packed", "gradients")
Place = tuple[str, str]  # a step and a key


def level_of_step(step: str, tokens: dict[str, dict]) -> str:
    """The level of what a step feeds; `tokens` has the steps before it, too."""
    fed = tokens.get(step, {})
    new = fed.get("tokens", [0])
    if "op" in fed:
        return "op"
    if "layers" in fed:
        return "layer"
    if "starts" in fed:
        return "packed"
    if is_batch(new):
        return "padded"
    if taken_back(step, tokens):
        return "rollback"
    if "drafts" in fed:
        return "mtp"
    return "decode" if fed.get("before") else "prefill"


def taken_back(step: str, tokens: dict[str, dict]) -> bool:
    """Whether this step, or one before it that it continues, takes tokens back: feeds none, and keeps fewer."""
    if not tokens.get(step, {}).get("before"):
        return False
    earlier = [name for name in tokens if name == step or is_before(name, step, tokens)]
    return any(not tokens[name]["tokens"] for name in earlier)


def is_before(name: str, step: str, tokens: dict[str, dict]) -> bool:
    """Whether a step of the same sequence comes before another: since the sequence began."""
    names = list(tokens)
    begin = max((i for i in range(names.index(step) + 1) if not tokens[names[i]].get("before")), default=0)
    return begin <= names.index(name) < names.index(step) and not is_batch(tokens[name].get("tokens", []))


def level_of(step: str, key: str, tokens: dict[str, dict]) -> str:
    """The level of a value. tokens: what each step was fed, batches not yet split."""
    if key.endswith(".grad"):
        return "gradients"
    level = level_of_step(plain_step(step), tokens)
    return "mtp" if key.startswith("mtp.") and level in ("prefill", "decode") else level


def plain_step(step: str) -> str:
    """A step's name without the number of the sequence, which `split_batches` appends: "padded" of "padded[2]"."""
    return re.sub(r"\[\d+\]$", "", step)


@dataclass
class Level:
    """How much of a level was compared. missing: what mine lacks; left_out: what it has, but could not be compared."""

    name: str
    compared: int = 0
    of: int = 0
    missing: list[Place] = field(default_factory=list)
    left_out: list[Place] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.compared == self.of


def reference_places(ref: Trace) -> list[Place]:
    """Every value that the reference computes: those in the trace, and those that --like left out of it."""
    places = [(step, key) for step, found in ref.steps.items() for key in sorted(found, key=forward_order)]
    for step, keys in ref.manifest.get("left_out", {}).items():
        places += [(step, key) for key in keys]
    given = {step: fed["inputs"] for step, fed in ref.tokens.items() if "inputs" in fed}
    places = [(step, key) for step, key in places if key not in given.get(step, ())]
    return [(step, key) for step, key in places if stage_of(key) != "mlp.margin"]  # it explains, and is not compared


def count_levels(
    ref: Trace, mine: Trace, compared: Iterable[Place], tokens: dict[str, dict], keys: Iterable[str] = ("*",)
) -> list[Level]:
    """The levels that the reference has, in order.

    ref and mine are split by sequence; tokens are those of the steps before the split; keys are globs of what to ask
    for, of a port that does not show everything.
    """
    compared = set(compared)
    levels = {name: Level(name) for name in LEVELS}
    for step, key in reference_places(ref):
        if not any(fnmatchcase(key, glob) for glob in keys):
            continue
        level = levels[level_of(step, key, tokens)]
        level.of += 1
        if (step, key) in compared:
            level.compared += 1
        elif key in mine.steps.get(step, {}):
            level.left_out.append((step, key))
        else:
            level.missing.append((step, key))
    return [level for level in levels.values() if level.of]


def missing_steps(levels: Iterable[Level], mine: Trace) -> list[str]:
    """The steps of which mine has nothing, in the reference's order."""
    steps = dict.fromkeys(plain_step(step) for level in levels for step, _ in level.missing)
    have = {plain_step(step) for step, found in mine.steps.items() if found}
    return [step for step in steps if step not in have]
