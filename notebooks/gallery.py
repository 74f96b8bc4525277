"""Draws the README's pictures: the architecture, who has the ring under four rules, and what recall a state allows.

    python notebooks/gallery.py     writes architecture.svg, ring.svg and recall.svg to notebooks/gallery/, and
                                    attention.svg, which notebook 5 shows

The layers are those of the released config, the states come from reference_recurrent.py's delta rule, and the recall is
that of the models that experiments/recall.py trains. A picture is drawn for the width at which it is shown, so that its
smallest text has 9 points there (tests/test_notebooks.py).
"""

import json
import math
import sys
from html import escape
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
from reference_recurrent import gated_delta_rule  # noqa: E402

# The colours of the kinds of layer, as in figures.py, which this file does without: it needs no matplotlib
DELTA, ATTENTION, EXPERTS, HYBRID, PLAIN = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"
TEXT = 13  # the smallest text, in the drawing's units: 9 points where 900 of them are shown on a page 840 pixels wide


# ---- The architecture -----------------------------------------------------------------------------------------------


class Drawing:
    """An SVG of boxes, lines and texts."""

    def __init__(self, width: int, height: int):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0 L8 4 L0 8 z" fill="#333"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]

    def text(
        self, x: float, y: float, text: str, size: int = TEXT, color: str = "#222", anchor: str = "middle", **style
    ):
        extra = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in style.items())
        where = f'x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}"{extra}'
        self.parts.append(f"<text {where}>{escape(text)}</text>")

    def box(self, x: float, y: float, w: float, h: float, label: str, color: str, size: int = TEXT):
        """A box with a label of one line or several."""
        shape = f'x="{x}" y="{y}" width="{w}" height="{h}" rx="5"'
        self.parts.append(f'<rect {shape} fill="{color}" fill-opacity="0.13" stroke="{color}" stroke-width="1.5"/>')
        lines = label.split("\n")
        for i, line in enumerate(lines):
            self.text(x + w / 2, y + h / 2 + size * (0.36 + 1.2 * (i - (len(lines) - 1) / 2)), line, size)

    def arrow(self, *points: tuple[float, float]):
        way = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(f'<polyline points="{way}" fill="none" stroke="#333" marker-end="url(#tip)"/>')

    def plus(self, x: float, y: float):
        self.parts.append(f'<circle cx="{x}" cy="{y}" r="9" fill="white" stroke="#333"/>')
        self.text(x, y + 5, "+", 16)

    def line(self, points: list[tuple[float, float]], color: str, width: float = 1, **style):
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        extra = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in style.items())
        self.parts.append(f'<polyline points="{way}" fill="none" stroke="{color}" stroke-width="{width}"{extra}/>')

    def band(self, points: list[tuple[float, float]], color: str):
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polygon points="{way}" fill="{color}" fill-opacity="0.2"/>')

    def bar(self, x: float, y: float, w: float, h: float, color: str):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="{color}"/>')

    def key(self, x: float, y: float, text: str, color: str):
        """An entry of a legend."""
        self.bar(x, y - 10, 14, 11, color)
        self.text(x + 22, y, text, anchor="start")

    def save(self, path: Path):
        path.write_text("\n".join([*self.parts, "</svg>\n"]), encoding="utf-8")


def architecture(path: Path):
    """Left the 48 layers, then one layer, then what is inside its mixer and its mixture of experts."""
    d = Drawing(880, 640)
    d.text(78, 28, "Qwen3-Next-80B", 15, font_weight="bold")
    d.box(13, 556, 130, 32, "embedding", PLAIN)
    for i in range(48):  # layer 0 at the bottom
        color = ATTENTION if (i + 1) % 4 == 0 else DELTA
        d.parts.append(f'<rect x="33" y="{531 - 9.2 * i}" width="90" height="7" rx="2" fill="{color}"/>')
    d.box(13, 46, 130, 32, "norm, lm_head", PLAIN)
    d.text(78, 610, "36 Gated DeltaNet", TEXT, DELTA)
    d.text(78, 628, "12 gated attention", TEXT, ATTENTION)
    x = 235
    d.text(x, 28, "a layer", 15, font_weight="bold")
    d.arrow((x, 600), (x, 538))
    d.box(x - 55, 504, 110, 32, "RMSNorm", PLAIN)
    d.arrow((x, 504), (x, 452))
    d.box(x - 62, 378, 124, 72, "Gated DeltaNet\nor gated\nattention", DELTA)
    d.arrow((x, 378), (x, 344))
    d.plus(x, 333)
    d.arrow((x, 565), (x + 80, 565), (x + 80, 333), (x + 11, 333))
    d.arrow((x, 323), (x, 258))
    d.box(x - 55, 224, 110, 32, "RMSNorm", PLAIN)
    d.arrow((x, 224), (x, 172))
    d.box(x - 62, 118, 124, 52, "mixture of\n512 experts", EXPERTS)
    d.arrow((x, 118), (x, 84))
    d.plus(x, 73)
    d.arrow((x, 290), (x + 80, 290), (x + 80, 73), (x + 11, 73))
    d.arrow((x, 63), (x, 42))
    delta_net(d, 345)
    attention(d, 525)
    experts(d, 705)
    d.save(path)


def attention_alone(path: Path):
    """Gated attention, from the projections to the output."""
    d = Drawing(240, 640)
    attention(d, 35)
    d.save(path)


def delta_net(d: Drawing, x: float):
    """From the projection at the bottom to the one at the top."""
    d.text(x + 82, 28, "Gated DeltaNet", 15, DELTA, font_weight="bold")
    d.box(x, 544, 165, 56, "projections to\nq, k, v, z, b, a: 16 key,\n32 value heads", DELTA)
    d.box(x, 468, 106, 46, "convolution\nover 4, SiLU", DELTA)
    d.box(x, 398, 106, 40, "q, k: length 1", DELTA)
    d.box(x, 246, 165, 120, "S ← e^g S\nδ = β (v − Sᵀk)\nS ← S + k δᵀ\nout = Sᵀq", DELTA, 15)
    d.box(x, 172, 165, 42, "RMSNorm · SiLU(z)", DELTA)
    d.box(x, 100, 165, 42, "projection", DELTA)
    for y, to in ((544, 516), (468, 440), (398, 368)):
        d.arrow((x + 53, y), (x + 53, to))
    d.arrow((x + 136, 544), (x + 136, 368))
    d.text(x + 130, 452, "g, β", TEXT, anchor="end")
    d.arrow((x + 82, 246), (x + 82, 216))
    d.arrow((x + 82, 172), (x + 82, 144))
    d.text(x + 82, 60, "its memory: one state of", TEXT, DELTA)
    d.text(x + 82, 78, "128 × 128 a head, always", TEXT, DELTA)


def attention(d: Drawing, x: float):
    """From the projection at the bottom to the one at the top."""
    d.text(x + 82, 28, "gated attention", 15, ATTENTION, font_weight="bold")
    d.box(x, 544, 165, 56, "projections to\nq, gate, k, v: 16 query,\n2 key heads of 256", ATTENTION)
    d.box(x, 464, 106, 46, "RMSNorm\nof q and k", ATTENTION)
    d.box(x, 372, 106, 58, "rotation of\na quarter of\neach head", ATTENTION)
    d.box(x, 290, 106, 48, "softmax\nattention", ATTENTION)
    d.box(x, 172, 165, 42, "· sigmoid(gate)", ATTENTION)
    d.box(x, 100, 165, 42, "projection", ATTENTION)
    for y, to in ((544, 512), (464, 432), (372, 340), (290, 216)):
        d.arrow((x + 53, y), (x + 53, to))
    d.arrow((x + 136, 544), (x + 136, 216))
    d.text(x + 142, 252, "gate", TEXT, anchor="start")
    d.arrow((x + 82, 172), (x + 82, 144))
    d.text(x + 82, 60, "its memory: 2 KiB for", TEXT, ATTENTION)
    d.text(x + 82, 78, "each token of the text", TEXT, ATTENTION)


def experts(d: Drawing, x: float):
    """The router, the experts that it chooses, and the one that all tokens use."""
    d.text(x + 82, 28, "mixture of experts", 15, EXPERTS, font_weight="bold")
    d.box(x, 544, 110, 56, "router: the\nbest 10 of\n512 experts", EXPERTS)
    for i, label in enumerate(("expert 7", "expert 23", "expert 310", "...")):
        d.box(x, 438 - 48 * i, 104, 38, label, EXPERTS)
    d.box(x + 110, 294, 56, 182, "shared\nexpert,\nwith\na gate\nof its\nown", EXPERTS)
    d.arrow((x + 53, 544), (x + 53, 478))
    d.arrow((x + 140, 600), (x + 140, 478))
    d.box(x, 172, 165, 42, "weighted sum", EXPERTS)
    d.arrow((x + 53, 294), (x + 53, 216))
    d.arrow((x + 140, 294), (x + 140, 216))
    d.text(x + 82, 118, "each: 512 wide inside,", TEXT)
    d.text(x + 82, 136, "down(SiLU(gate x) · up x)", TEXT)
    d.text(x + 82, 60, "of 80 billion weights,", TEXT, EXPERTS)
    d.text(x + 82, 78, "a token uses 3 billion", TEXT, EXPERTS)


# ---- Who has the ring? -----------------------------------------------------------------------------------------------

HALF = 410  # units, and pixels: half of the README's width, where each of the two pictures is shown
RULES = {"linear\nattention": (1.0, 0.0), "with\ndecay": (0.8, 0.0), "delta\nrule": (1.0, 1.0)}
RULES |= {"gated\ndelta rule": (0.8, 1.0)}


def answers() -> dict[str, np.ndarray]:
    """What four memories return for ring and cup, (2, 4), by whom: Tom has the ring, Nora the cup, and Sam a coin that
    is somewhat like a ring; then Tom gives the ring to Mira."""
    ring, cup, like, _ = np.eye(4)
    keys = np.stack([ring, cup, 0.6 * ring + 0.8 * like, ring])
    values, found = np.eye(4), {}  # Tom, Nora, Sam, Mira
    for name, (alpha, erase) in RULES.items():
        S = np.zeros((4, 4))
        for k, v in zip(keys, values):
            if erase:  # one token of one head
                one = (x[None, None] for x in (k, k, v))
                S = gated_delta_rule(*one, np.full((1, 1), math.log(alpha)), np.ones((1, 1)), S[None])[1][0]
            else:
                S = alpha * S + np.outer(k, v)
        found[name] = np.stack([ring, cup]) @ S
    return found


def ring(path: Path):
    """Bars of what each memory returns for the ring and for the cup."""
    d = Drawing(HALF, 380)
    people = {"Mira, who has it now": (3, DELTA), "Tom, who had it before": (0, "#E69F00")}
    people |= {"Sam, who has the coin": (2, "#BBBBBB")}
    left, right, unit, width = 96, 290, 140, 90  # where the bars begin, and how long one is
    d.text(left, 26, "Who has the ring?", 14, anchor="start", font_weight="bold")
    d.text(right, 26, "The cup?", 14, anchor="start", font_weight="bold")
    for row, (name, returned) in enumerate(answers().items()):
        y = 44 + 66 * row
        for n, line in enumerate(name.split("\n")):
            d.text(left - 8, y + 22 + 16 * n, line, anchor="end")
        for n, (person, color) in enumerate(people.values()):
            d.bar(left, y + 17 * n, unit * returned[0, person], 14, color)
        d.bar(right, y + 17, width * returned[1, 1], 14, EXPERTS)
    for x in (left + unit, right + width):
        d.line([(x, 36), (x, 304)], PLAIN, 1, stroke_dasharray="3 3")
        d.text(x, 320, "1")
    for n, (text, (_, color)) in enumerate(people.items()):
        d.key(left, 338 + 17 * n, text, color)
    d.key(right, 338, "Nora", EXPERTS)
    d.save(path)


# ---- Recall ----------------------------------------------------------------------------------------------------------

KINDS = {
    "FFFF": (ATTENTION, "attention alone"),
    "LLLF": (HYBRID, "hybrid: one attention layer in four"),
    "LLLL": (DELTA, "Gated DeltaNet alone"),
}


def recall(path: Path):
    """Recall by number of facts, a line for each kind of model: the mean over seeds, and its range."""
    runs = json.loads((HERE / "data" / "recall.json").read_text(encoding="utf-8"))
    d = Drawing(HALF, 380)
    left, right, top, bottom = 52, 396, 40, 276

    def at(n: float, share: float) -> tuple[float, float]:
        """Where so many facts and such a share lie: 4 to 256, on a logarithmic axis, and 0 to 1."""
        return left + (right - left) * math.log2(n / 4) / 6, bottom - (bottom - top) * share

    d.text(left - 40, 26, "facts recalled", anchor="start")
    for share in (0, 0.5, 1):
        d.text(left - 8, at(4, share)[1] + 4, f"{share:.0%}", anchor="end")
        d.line([at(4, share), at(256, share)], "#DDDDDD")
    for kind, (color, _) in KINDS.items():
        found = [run["accuracy"] for run in runs if run["what"] == "recall" and run["kind"] == kind]
        sizes, shares = [int(n) for n in found[0]], np.array([[*one.values()] for one in found])  # (seeds, sizes)
        low, high = ([at(n, x) for n, x in zip(sizes, edge)] for edge in (shares.min(0), shares.max(0)))
        d.band(low + high[::-1], color)
        means = [at(n, x) for n, x in zip(sizes, shares.mean(0))]
        d.line(means, color, 7 if kind == "FFFF" else 2)  # the others' lines cover it, so it is wider
        for x, y in means:
            d.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>')
    for n in sizes:
        d.text(at(n, 0)[0], bottom + 20, str(n))
    d.text((left + right) / 2, bottom + 40, "facts in the text")
    for n, (color, label) in enumerate(KINDS.values()):
        d.key(left + 40, 336 + 17 * n, label, color)
    d.save(path)


if __name__ == "__main__":
    (HERE / "gallery").mkdir(exist_ok=True)
    architecture(HERE / "gallery" / "architecture.svg")
    attention_alone(HERE / "gallery" / "attention.svg")
    ring(HERE / "gallery" / "ring.svg")
    recall(HERE / "gallery" / "recall.svg")
