"""A comparison in words, and as strict JSON: what differs first, what agrees, and what was not there to compare."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict

from verify.levels import Level, Place, missing_steps
from verify.measures import decibels
from verify.stages import STAGES, Trace, stage_of

SCHEMA = "qwen3-next-comparison/1"
CODES = {"complete": 0, "differs": 1, "nothing to compare": 2, "incomplete": 3}


def verdict_of(first, levels: list[Level]) -> str:
    """One of CODES. first: the first row that is wrong, or None."""
    if first is not None:
        return "differs"
    if not any(level.compared for level in levels):
        return "nothing to compare"
    return "complete" if all(level.complete for level in levels) else "incomplete"


def name_of(place: Place) -> str:
    """A step and a key as they are in a trace file."""
    step, key = place
    return f"{step}/{key}" if step else key


# ---- In words -------------------------------------------------------------------------------------------------------


def print_rows(rows: list, every: bool):
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


def print_result(done, levels: list[Level], mine: Trace, unknown: list[str], every: bool):
    """The table, and then all that agrees, or the first that does not. unknown: keys that the reference lacks."""
    print_rows(done.rows, every)
    if unknown:
        print(f"not compared: {some(unknown)} ({len(unknown)} keys of mine that the reference does not have)")
    if done.first is not None:
        print_first(done.first)
        return
    print_missing(levels, mine)
    counts = ", ".join(f"{level.name} {level.compared} of {level.of}" for level in levels)
    total = f"{sum(level.compared for level in levels)} of {sum(level.of for level in levels)} reference keys"
    verdicts = Counter(row.verdict for row in done.rows)
    kinds = {"layout": "in another layout", "tie": "with ties of experts"}
    notes = "".join(f", {verdicts[kind]} {words}" for kind, words in kinds.items() if verdicts[kind])
    if verdict_of(None, levels) == "complete":
        print(f"agree: {total}{notes} ({counts})")
    else:
        print(f"incomplete: what is there agrees, but it is only {total}{notes} ({counts})")


def print_missing(levels: list[Level], mine: Trace):
    """What of the reference was not compared."""
    steps = missing_steps(levels, mine)
    if steps:
        print(f"steps missing: {some(steps)}")
    missing = [name_of(place) for level in levels for place in level.missing if place[0] not in steps]
    if missing:
        print(f"keys missing: {some(missing)}")
    left_out = [name_of(place) for level in levels for place in level.left_out]
    if left_out:
        print(f"left out, after a tie of experts or because it is a draft: {some(left_out)}; --model may help")


def some(names: list[str], most: int = 8) -> str:
    """The first few of them."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def print_first(first):
    """The first wrong value, where it is worst, and what may be the mistake."""
    figures = f"relative error {first.relative:.3g}, allowed {first.allowed:.3g}"
    print(f"first: {first.name}  at {first.worst or 'its shape'}; {figures}")
    stage = stage_of(first.key)
    if stage in STAGES:
        print(f"should be: {STAGES[stage][1]}")
    if first.note:
        print(f"seen: {first.note}")
    for cause in first.causes:
        print(f"likely: {cause}")


# ---- As JSON --------------------------------------------------------------------------------------------------------


def as_json(done, levels: list[Level], mine: Trace, unknown: list[str]) -> dict:
    """All of it. JSON has no infinity and no NaN: they become null, as the dB of an error of 0 does."""
    first = done.first
    found = {
        "schema": SCHEMA,
        "verdict": verdict_of(first, levels),
        "agree": first is None,
        "first": first.name if first else None,
        "causes": first.causes if first else [],
        "counts": {
            "compared": sum(level.compared for level in levels),
            "reference": sum(level.of for level in levels),
            "verdicts": Counter(row.verdict for row in done.rows),
        },
        "levels": [level_as_json(level) for level in levels],
        "missing steps": missing_steps(levels, mine),
        "not compared": unknown,
        "rows": [asdict(row) | {"name": row.name} for row in done.rows],
    }
    return strict(found)


def level_as_json(level: Level) -> dict:
    """One level's counts, and the names of what was not compared."""
    return {
        "level": level.name,
        "complete": level.complete,
        "compared": level.compared,
        "reference": level.of,
        "missing": [name_of(place) for place in level.missing],
        "left out": [name_of(place) for place in level.left_out],
    }


def strict(x):
    """The same with plain numbers, and null for what JSON can't hold."""
    if isinstance(x, dict):
        return {str(key): strict(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [strict(value) for value in x]
    if isinstance(x, (bool, str)) or x is None:
        return x
    number = x.item() if hasattr(x, "item") else x
    return None if isinstance(number, float) and not math.isfinite(number) else number


def write_json(content: dict, place: str):
    """Writes JSON to a file, or to standard output for "-"."""
    text = json.dumps(content, allow_nan=False)
    if place == "-":
        print(text)
        return
    with open(place, "w", encoding="utf-8") as file:
        file.write(text + "\n")
