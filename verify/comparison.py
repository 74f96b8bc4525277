"""One pass over all values that two traces share: which of them differ, which come first, and why that may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from verify.canonical import LAST_TOKEN, canonical_step
from verify.causes import HINTS, Context, Lookup, explain
from verify.floors import Noise
from verify.measures import by_signature, decibels, kl_divergence, match_layout, relative_error, rms, usual_sizes
from verify.reference import step_after
from verify.rotary import further
from verify.stages import IDS, LAYER, PROBS, Array, Trace, axes_of, forward_order, is_per_token, stage_of

STAGES_OF_OPERATIONS = {  # (operation, output) -> the stage of the model that it is
    ("norm", "out"): "input_layernorm.out",
    ("gated_norm", "out"): "linear_attn.norm.out",
    ("l2_norm", "out"): "linear_attn.k_l2norm",
    ("rope", "out"): "self_attn.q_rope",
    ("conv", "out"): "linear_attn.conv_out",
    ("conv", "window_out"): "linear_attn.conv_state",
    ("delta_rule", "out"): "linear_attn.delta_out",
    ("delta_rule", "state_out"): "linear_attn.state",
}

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
    layout: str = ""  # what it took to bring mine into the reference's shape
    reordered: bool = False  # whether its entries are in another order, too
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
    other experts; apart: those of them that go on with other values; layouts: (step, key) -> mine's values in the
    reference's layout, where that is another. own: step -> keys of mine that the reference went on with, in isolated
    mode: errors of other values are passed on.
    """

    def __init__(self, ref: Trace, mine: Trace, noise: Noise, config: dict, own: dict[str, set[str]] | None = None):
        self.rows: list[Row] = []
        self.ties: dict[tuple[str, str], list[int]] = {}
        self.apart: dict[tuple[str, str], list[int]] = {}
        self.layouts: dict[tuple[str, str], Array] = {}
        self.wrong: dict[tuple[str, str], tuple[Array, Array]] = {}  # what was compared, where it differs
        self.cut: dict[tuple[str, str], str] = {}  # where it is not all that there is, and why
        self.reference = ref.steps
        self.tokens = ref.tokens
        self.noise = noise
        self.own = own
        self.config = config
        self.sizes = usual_sizes({step: x for step, x in ref.steps.items() if "op" not in ref.tokens.get(step, {})})
        self.tainted: int | None = None  # after a tie: tokens from this one on have seen the other choice ...
        self.tie_order: tuple = ()  # ... in what comes after this place in the forward order
        for step in ref.steps:
            if step in mine.steps:
                fed = ref.tokens.get(step, {})
                self.noise.have = self.own.get(step, set()) if self.own is not None else None
                theirs, ours, notes = canonical_step(ref.steps[step], mine.steps[step])
                self.layouts |= {(step, key): ours[key] for key in notes}
                self.noise.position = len(fed.get("before") or ()) + len(fed.get("tokens") or ())
                self.compare_step(step, fed, sort_choices(theirs), sort_choices(ours), notes)
        self.first = self.find_first()

    def compare_step(self, step: str, fed: dict, ref: dict[str, Array], mine: dict[str, Array], notes: dict[str, str]):
        """Compares the keys that both have, in forward order. fed: what the step was fed; notes: what it took to bring
        a key of mine into the reference's shape.
        """
        before = len(fed.get("before") or ())
        if not before:
            self.tainted = None
        tied: dict[str, list[int]] = {}  # layer -> tokens with another choice
        same: set[str] = set()  # of these layers, those whose output it does not change: the experts are copies
        heads: dict[str, Array] = {}  # layer -> the order of its value heads
        for key in sorted(ref.keys() & mine.keys(), key=forward_order):
            stage = stage_of(key)
            if stage == "mlp.margin" or key in fed.get("inputs", ()):  # the first explains ties, the others are given
                continue
            r = ref[key]
            m = mine[key]
            if fed.get("packed") and stage == "linear_attn.g":  # an empty memory may decay as it likes
                r = r[1:]
                m = m[1:]
            row = Row(step, key, tuple(r.shape), "ok", allowed=self.noise.allowed(key), layout=notes.get(key, ""))
            if "op" in fed:
                row.allowed = fed["tolerance"].get(self.noise.dtype, row.allowed)
            layer = key.removesuffix("out" if stage == "layer.out" else stage)
            self.settle(step, before, {name: rows for name, rows in tied.items() if name not in {layer, *same}})
            if self.tainted is not None and forward_order(key) > self.tie_order:
                if not is_per_token(key) or self.tainted <= before or row.layout == LAST_TOKEN:
                    continue
                r = r[: self.tainted - before]
                m = m[: self.tainted - before]
                row.note = self.cut[step, key] = f"compared up to token {self.tainted - 1}"
            if stage == IDS:
                self.compare_choices(row, r, m, ref, mine)
                tied[layer] = self.ties.get((step, key), [])
            else:
                self.compare_values(row, r, m, heads.get(layer))
                if row.verdict in ("differs", "shape") and tied.get(layer) and is_per_token(key) and len(r) == len(m):
                    row.verdict = "ok"  # of the tokens that have other experts, these values may be others, too
                    r = np.delete(r, tied[layer], axis=0)
                    m = np.delete(m, tied[layer], axis=0)
                    self.compare_values(row, r, m, heads.get(layer))
                elif stage in ("mlp.out", "layer.out") and row.verdict in ("ok", "layout"):
                    same.add(layer)
                if row.verdict == "layout" and "value heads" in row.note and layer not in heads:
                    heads[layer] = by_signature(r, m, axes_of(stage).index("value_head"))
                if row.verdict == "differs":
                    self.wrong[step, key] = r, m
                    self.explain_row(row, self.reference)
            self.rows.append(row)
        self.settle(step, before, {name: rows for name, rows in tied.items() if name not in same})

    def settle(self, step: str, before: int, tied: dict[str, list[int]]):
        """Notes that a layer has gone on with another choice of experts. tied: layer -> tokens that have it."""
        for layer, rows in tied.items():
            if not rows:
                continue
            self.apart[step, layer + IDS] = rows
            if self.tainted is None:
                self.tainted = before + min(rows)
                self.tie_order = forward_order(layer + "out")

    def compare_values(self, row: Row, r: Array, m: Array, heads: Array | None):
        """Decides for one key; a layout that makes the two agree is noted."""
        scale = self.sizes.get(row.key, 0.0)
        if r.shape != m.shape or 0 in row.shape:
            wrong_shape(row, r, m)
            return
        measure(row, r, m, scale)
        if row.relative <= row.allowed:
            row.verdict = "layout" if row.layout else "ok"
            row.note = "; ".join(filter(None, [row.note, row.layout]))
            return
        found = match_layout(stage_of(row.key), r, m, row.allowed, heads) or self.counted_from_one(row, r, m)
        if found:
            x, words = found
            row.note = "; ".join(filter(None, [row.layout, words]))
            row.reordered = True
            self.layouts[row.step, row.key] = x
            row.verdict = "layout"
            measure(row, r, x, scale)
        else:
            row.verdict = "differs"

    def counted_from_one(self, row: Row, r: Array, m: Array) -> tuple[Array, str] | None:
        """MTP's queries or keys if mine counts its positions from 1: RoPE is relative, and only they show it."""
        if not row.key.startswith("mtp.") or not row.key.endswith("_rope") or r.ndim != 3:
            return None
        try:
            x = further(m, self.config, -1)
        except KeyError:
            return None
        return (x, "MTP's positions are counted from 1") if relative_error(r, x) <= row.allowed else None

    def explain_row(self, row: Row, reference: dict[str, dict[str, Array]]):
        """Fills in what can be seen of an error, and its likely causes. reference: its values by step and key."""
        stage = stage_of(row.key)
        layer = row.key.removesuffix("out" if stage == "layer.out" else stage)

        def at(step: str) -> Lookup:
            return lambda name: reference[step][layer + ("out" if name == "layer.out" else name)]

        r, m = self.wrong[row.step, row.key]
        context = context_of(row.step, self.tokens, reference, at)
        stage = STAGES_OF_OPERATIONS.get((self.tokens.get(row.step, {}).get("op"), row.key), stage)
        config = {**self.config, **self.tokens.get(row.step, {}).get("parameters", {})}
        seen, causes = explain(stage, r, m, row.allowed, at(row.step), config, context)
        row.note = "; ".join([note for note in (row.layout, self.cut.get((row.step, row.key), "")) if note] + seen)
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
        """The first that is wrong. Another order of entries is legal if what follows in its layer agrees."""
        first = next((row for row in self.rows if row.verdict in ("differs", "shape")), None)
        match = LAYER.fullmatch(first.key) if first else None
        if match is None:
            return first
        layer = first.key[: match.start(3)]
        for row in self.rows:
            if row is first:
                break
            if row.reordered and row.step == first.step and row.key.startswith(layer):
                row.verdict = "differs"
                row.causes = row.causes or first.causes
                return row
        return first


def context_of(
    step: str, tokens: dict[str, dict], reference: dict[str, dict[str, Array]], at: Callable[[str], Lookup]
) -> Context:
    """What came before a step, as far as the reference's values show it. at: a step's values of the layer at hand."""
    fed = tokens.get(step, {})
    before = fed.get("before") or []
    context = Context(start=len(before), packed=fed.get("packed", 0) > 0)
    past = step_after(tokens, reference, before) if before else None
    if fed.get("tokens"):
        context.before = at(past) if past else None
        return context
    for name, other in tokens.items():
        if name == step:
            break
        end = other["before"] + other["tokens"]
        inside = "drafts" not in other and len(other["before"]) <= len(before) < len(end)
        if inside and name in reference and end[: len(before)] == before:
            earlier = step_after(tokens, reference, other["before"]) if other["before"] else None
            context.undone = at(name)
            context.before_undone = at(earlier) if earlier else None
            context.kept = len(before) - len(other["before"])
    return context


def wrong_shape(row: Row, r: Array, m: Array):
    """The verdict on values that no layout can bring together."""
    row.verdict = "shape"
    row.note = f"has shape {m.shape}, expected {r.shape}" if r.shape != m.shape else f"has no values, {m.shape}"


def gap(p: Array, r: Array, m: Array) -> float:
    """How far apart the probabilities are of the experts that only r has and of those that only m has."""
    lost = set(r.tolist()) - set(m.tolist())
    won = set(m.tolist()) - set(r.tolist())
    if not lost or len(lost) != len(won):
        return math.inf
    return max(p[list(lost)]) - min(p[list(won)])
