"""Brings a port's values into the reference's shape, whatever axes and order the port writes them in.

A leading axis of 1, heads before tokens, ggml's reversed axes, flat heads, ids in any integer type: all of that is a
choice of the port's, and none of it an error. It is undone before anything is compared, so that a wrong value is
measured, located and explained in any layout.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from verify.stages import IDS, WEIGHTS, Array, stage_of

LAST_TOKEN = "of the last token only"
LAST_ROW = ("lm_head.out", "mtp.logits")  # an engine computes these of the last token only


def arrangements(shape: tuple[int, ...], m: Array) -> Iterator[tuple[Array, str]]:
    """m in a shape that has as many entries, in each order of its axes."""
    yield m.reshape(shape), f"another shape, {m.shape}"
    x = m.squeeze()
    for order in itertools.permutations(range(x.ndim)) if 1 < x.ndim <= 4 else ():
        if order != tuple(range(x.ndim)):
            yield x.transpose(order).reshape(shape), f"axes in another order, {m.shape}"


def difference(stage: str, r: Array, m: Array) -> float:
    """How unlike two arrays of one shape are. A token's experts may come in any order."""
    if stage in (IDS, WEIGHTS):
        r = np.sort(r, axis=-1)
        m = np.sort(m, axis=-1)
    if stage == IDS:
        return float(np.mean(r != m))
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.sum(np.square(np.nan_to_num(m) - r, dtype=np.float64)))


def canonical(key: str, r: Array, m: Array) -> tuple[Array, Array, str]:
    """The reference's values and mine, in one shape if there is a way; and what that took, "" for nothing.

    Of an output's logits, mine may be those of the last token alone: then these are what is compared.
    """
    stage = stage_of(key)
    if stage == IDS and m.dtype.kind in "fiu":
        m = m.astype(np.int64)
    if m.shape == r.shape or not m.size:
        return r, m, ""
    if key in LAST_ROW and len(r) > 1 and m.size == r[-1:].size:
        return r[-1:], m.reshape(r[-1:].shape), LAST_TOKEN
    if m.size != r.size:
        return r, m, ""
    best, note = min(arrangements(r.shape, m), key=lambda found: difference(stage, r, found[0]))
    return r, best, note


def canonical_step(ref: dict[str, Array], mine: dict[str, Array]) -> tuple[dict, dict, dict[str, str]]:
    """The same for all keys of a step that both have: the reference's values, mine, and notes by key."""
    theirs, ours, notes = dict(ref), dict(mine), {}
    for key in ref.keys() & mine.keys():
        theirs[key], ours[key], note = canonical(key, ref[key], mine[key])
        if note:
            notes[key] = note
    return theirs, ours, notes
