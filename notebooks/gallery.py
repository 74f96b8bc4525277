"""Draws the README's pictures: the architecture, the delta rule at the whiteboard, and what recall a state allows.

    python notebooks/gallery.py          writes architecture.svg, whiteboard.gif and recall.svg to notebooks/gallery/

Everything in them follows from qwen3_next.py: the layers from the released config, the states from its delta rule. The
recall is that of the models that experiments/recall.py trains.
"""

import json
import sys
from html import escape
from pathlib import Path

import torch
from matplotlib import pyplot
from matplotlib.animation import FuncAnimation, PillowWriter

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import figures  # noqa: E402

from qwen3_next import recurrent_gated_delta_rule  # noqa: E402

DELTA, ATTENTION, EXPERTS, PLAIN = figures.BLUE, figures.RED, figures.GREEN, "#555555"


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

    def text(self, x: float, y: float, text: str, size: int = 13, color: str = "#222", anchor: str = "middle", **style):
        extra = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in style.items())
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'
        )

    def box(self, x: float, y: float, w: float, h: float, label: str, color: str, size: int = 13):
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

    def save(self, path: Path):
        path.write_text("\n".join([*self.parts, "</svg>\n"]), encoding="utf-8")


def architecture(path: Path):
    """Left the 48 layers, then one layer, then what is inside its mixer and its mixture of experts."""
    d = Drawing(1000, 560)
    d.text(105, 30, "Qwen3-Next-80B-A3B", 15, font_weight="bold")
    d.box(30, 505, 150, 30, "embedding", PLAIN)
    for i in range(48):  # layer 0 at the bottom
        color = ATTENTION if (i + 1) % 4 == 0 else DELTA
        d.parts.append(f'<rect x="55" y="{483 - 8.4 * i}" width="100" height="6.4" rx="2" fill="{color}"/>')
    d.box(30, 45, 150, 30, "norm, lm_head", PLAIN)
    d.text(105, 553, "36 layers of Gated DeltaNet,", 11, DELTA)
    d.text(24, 290, "12 of gated attention", 11, ATTENTION, transform="rotate(-90 24 290)")
    x = 290
    d.text(x, 30, "a layer", 15, font_weight="bold")
    d.arrow((x, 535), (x, 482))
    d.box(x - 60, 450, 120, 30, "RMSNorm", PLAIN)
    d.arrow((x, 450), (x, 412))
    d.box(x - 70, 340, 140, 70, "Gated DeltaNet\nor gated attention", DELTA)
    d.arrow((x, 340), (x, 311))
    d.plus(x, 300)
    d.arrow((x, 505), (x + 95, 505), (x + 95, 300), (x + 11, 300))
    d.arrow((x, 290), (x, 232))
    d.box(x - 60, 200, 120, 30, "RMSNorm", PLAIN)
    d.arrow((x, 200), (x, 162))
    d.box(x - 70, 110, 140, 50, "mixture of\n512 experts", EXPERTS)
    d.arrow((x, 110), (x, 81))
    d.plus(x, 70)
    d.arrow((x, 262), (x + 95, 262), (x + 95, 70), (x + 11, 70))
    d.arrow((x, 60), (x, 40))
    delta_net(d, 400)
    attention(d, 610)
    experts(d, 820)
    d.save(path)


def delta_net(d: Drawing, x: float):
    """From the projection at the bottom to the one at the top."""
    d.text(x + 85, 30, "Gated DeltaNet", 15, DELTA, font_weight="bold")
    d.box(x, 480, 170, 40, "projections: q k v z, b a\n16 key, 32 value heads", DELTA, 11)
    d.box(x, 415, 110, 40, "convolution over\n4 tokens, SiLU", DELTA, 11)
    d.box(x, 350, 110, 40, "q, k: length 1", DELTA, 11)
    d.box(x, 215, 170, 110, "S ← e^g S\ndelta = beta (v − Sᵀk)\nS ← S + k deltaᵀ\nout = Sᵀq", DELTA, 12)
    d.box(x, 150, 170, 40, "RMSNorm · SiLU(z)", DELTA, 12)
    d.box(x, 85, 170, 40, "projection", DELTA, 12)
    for y, to in ((480, 456), (415, 391), (350, 326)):
        d.arrow((x + 55, y), (x + 55, to))
    d.arrow((x + 140, 480), (x + 140, 326))
    d.text(x + 144, 400, "g, beta", 11, anchor="start")
    d.arrow((x + 85, 215), (x + 85, 191))
    d.arrow((x + 85, 150), (x + 85, 126))
    d.text(x + 85, 65, "memory: 128 × 128 a head, always", 11, DELTA)


def attention(d: Drawing, x: float):
    d.text(x + 85, 30, "gated attention", 15, ATTENTION, font_weight="bold")
    d.box(x, 480, 170, 40, "projections: q gate, k, v\n16 query, 2 KV heads of 256", ATTENTION, 11)
    d.box(x, 400, 110, 40, "RMSNorm of q, k", ATTENTION, 11)
    d.box(x, 320, 110, 40, "RoPE on a quarter\nof each head", ATTENTION, 11)
    d.box(x, 240, 110, 40, "softmax attention", ATTENTION, 11)
    d.box(x, 150, 170, 40, "· sigmoid(gate)", ATTENTION, 12)
    d.box(x, 85, 170, 40, "projection", ATTENTION, 12)
    for y, to in ((480, 441), (400, 361), (320, 281), (240, 191)):
        d.arrow((x + 55, y), (x + 55, to))
    d.arrow((x + 140, 480), (x + 140, 191))
    d.text(x + 144, 335, "gate", 11, anchor="start")
    d.arrow((x + 85, 150), (x + 85, 126))
    d.text(x + 85, 65, "memory: 2 KiB a token and layer", 11, ATTENTION)


def experts(d: Drawing, x: float):
    d.text(x + 85, 30, "mixture of experts", 15, EXPERTS, font_weight="bold")
    d.box(x, 480, 110, 40, "router: softmax,\nthe best 10 of 512", EXPERTS, 11)
    for i, label in enumerate(("expert 7", "expert 23", "expert 310", "...")):
        d.box(x, 385 - 45 * i, 110, 34, label, EXPERTS, 11)
    d.box(x + 120, 250, 50, 169, "shared\nexpert,\nwith a\ngate of\nits own", EXPERTS, 11)
    d.arrow((x + 55, 480), (x + 55, 421))
    d.arrow((x + 145, 535), (x + 145, 421))
    d.box(x, 150, 170, 40, "weighted sum", EXPERTS, 12)
    d.arrow((x + 55, 250), (x + 55, 191))
    d.arrow((x + 145, 250), (x + 145, 191))
    d.text(x + 85, 107, "each: 512 wide,", 11)
    d.text(x + 85, 123, "down(SiLU(gate x) · up x)", 11)
    d.text(x + 85, 65, "3 of 80 billion weights a token", 11, EXPERTS)


# ---- The whiteboard -------------------------------------------------------------------------------------------------


def whiteboard(path: Path):
    """Six pairs, one key of them written anew, into four memories: the states, and what each key gives back."""
    K, V, names = 6, 6, ["a", "b", "c", "a again", "d", "e"]
    gen = torch.Generator().manual_seed(4)
    keys = torch.nn.functional.normalize(torch.eye(K)[:5] + 0.2 * torch.randn(5, K, generator=gen), dim=-1)
    order = [0, 1, 2, 0, 3, 4]
    values = 2.4 * torch.nn.functional.normalize(torch.randn(6, V, generator=gen), dim=-1)
    rules = {
        "linear attention": (1.0, False),
        "with decay": (0.8, False),
        "delta rule": (1.0, True),
        "gated delta rule": (0.9, True),
    }
    states: dict[str, list[torch.Tensor]] = {}
    for name, (alpha, delta) in rules.items():
        S, states[name] = torch.zeros(K, V), []
        for key, v in zip(order, values):
            k = keys[key]
            if delta:  # the file's own function, one token at a time
                one = (k[None, None, None], k[None, None, None], v[None, None, None])
                g, beta = torch.full((1, 1, 1), alpha).log(), torch.ones(1, 1, 1)
                S = recurrent_gated_delta_rule(*one, g=g, beta=beta, state=S[None, None])[1][0, 0]
            else:
                S = alpha * S + torch.outer(k, v)
            states[name].append(S)
    figures.setup()
    pyplot.rcParams["figure.constrained_layout.use"] = False
    figure, axes = pyplot.subplots(2, 4, figsize=(9.6, 4.7), gridspec_kw={"height_ratios": [3, 2]})
    figure.subplots_adjust(left=0.07, right=0.99, bottom=0.11, top=0.82, hspace=0.42, wspace=0.18)

    def draw(frame: int):
        n = min(frame, 5)
        figure.suptitle(f"write {n + 1} of 6: key {names[n]}", fontsize=13)
        for (name, found), (top, low) in zip(states.items(), axes.T):
            top.clear(), low.clear()
            top.imshow(found[n], cmap=figures.DIVERGING, vmin=-2.5, vmax=2.5)
            top.set(title=name, xticks=[], yticks=[])
            latest = dict(zip(order[: n + 1], values))  # a key's last value is the true one
            errors = [((keys[key] @ found[n] - v).norm() / v.norm()).item() for key, v in latest.items()]
            low.bar(["abcde"[key] for key in latest], errors, color=figures.BLUE)
            low.set(ylim=(0, 2), xlim=(-0.6, 4.6))
        axes[0, 0].set_ylabel("state S (keys × values)")
        axes[1, 0].set_ylabel("error of Sᵀk")

    animation = FuncAnimation(figure, draw, frames=[*range(6), 5, 5])
    animation.save(path, writer=PillowWriter(fps=0.8), dpi=80)
    pyplot.close(figure)


# ---- Recall ----------------------------------------------------------------------------------------------------------


def recall(path: Path):
    """Recall by number of pairs, a line for each kind of model: the mean over seeds, and its range."""
    runs = json.loads((HERE / "data" / "recall.json").read_text(encoding="utf-8"))
    about = {"FFFF": (figures.ORANGE, "s"), "LLLF": (figures.BLUE, "o"), "LLLL": (figures.GREEN, "^")}
    figures.setup()
    axes = figures.axes(width=6.4, height=3.4)
    for kind, (color, marker) in about.items():
        found = [run["accuracy"] for run in runs if run["what"] == "recall" and run["kind"] == kind]
        pairs = [int(n) for n in found[0]]
        curves = 100 * torch.tensor([[*one.values()] for one in found])  # (seeds, sizes)
        axes.plot(pairs, curves.mean(0), marker=marker, color=color, label=kind)
        axes.fill_between(pairs, curves.amin(0), curves.amax(0), color=color, alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(pairs, pairs)
    axes.set(xlabel="pairs of key and value in the text", ylabel="values recalled (%)", ylim=(0, 103))
    axes.legend(title="layers (L: Gated DeltaNet, F: attention)")
    pyplot.rcParams["svg.hashsalt"] = ""  # the same file each time
    pyplot.savefig(path, metadata={"Date": None})
    pyplot.close()


if __name__ == "__main__":
    (HERE / "gallery").mkdir(exist_ok=True)
    architecture(HERE / "gallery" / "architecture.svg")
    whiteboard(HERE / "gallery" / "whiteboard.gif")
    recall(HERE / "gallery" / "recall.svg")
