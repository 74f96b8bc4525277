"""The pictures of multi-token prediction: what drafts see, which are accepted, what undoing costs, when they pay."""

import figures
import torch
from matplotlib import pyplot

MTP = figures.ORANGE
LOOKS = {
    "accepted": ({"facecolor": figures.GREEN, "edgecolor": figures.GREEN}, "white"),
    "rejected": ({"facecolor": "white", "edgecolor": figures.RED, "linestyle": "--"}, figures.RED),
    "model's own": ({"facecolor": figures.SKY, "edgecolor": figures.SKY}, "black"),
}
DRAFTS = ((figures.BLUE, "-", "o"), (figures.ORANGE, "--", "^"), (figures.GREEN, "-.", "s"))  # 1, 2 and 3 of them


def count(n):
    return f"{n} draft{'s' * (n > 1)}"


def inputs(words):
    """Tokens, the model's hidden states, and what MTP makes of both."""
    axes = figures.axes(width=9.0, height=3.3)

    def box(x, y, text, color):
        look = {"boxstyle": "round", "facecolor": color, "edgecolor": "grey"}
        axes.text(x, y, text, ha="center", va="center", bbox=look)

    def arrow(start, end, color):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": color, "shrinkA": 13, "shrinkB": 13})

    for i, word in enumerate(words):
        box(i, 0, f"$t_{i}$ {word}", "white")
        if i < len(words) - 2:
            box(i, 1, f"$h_{i}$ → $t_{i + 1}$", figures.SKY)
            box(i + 0.5, 2, f"$m_{i}$ → $t_{i + 2}$ {words[i + 2]}", MTP)
            arrow((i, 0), (i, 1), figures.BLACK)
            arrow((i, 1), (i + 0.5, 2), figures.BLUE)
            arrow((i + 1, 0), (i + 0.5, 2), figures.RED)
    axes.set(xlim=(-0.6, len(words) - 0.5), ylim=(-0.4, 2.4), xlabel="position", xticks=[], yticks=[0, 1, 2])
    axes.set_yticklabels(["tokens", "model", "MTP"])
    figures.show(
        "Three rows of boxes: tokens, the model's hidden states h, each of which predicts the next token, and MTP's m. "
        "Each m has an arrow from a hidden state and one from the token after it, and predicts the one after that."
    )


def passes(rows, text_of):
    """A row for each pass: drafts that were accepted, the model's own token, and the drafts that were rejected."""
    axes = figures.axes(width=7, height=0.28 * len(rows) + 0.6)
    for row, (drafts, accepted, token) in enumerate(rows):
        cells = [(t, "accepted" if i < accepted else "rejected") for i, t in enumerate(drafts)]
        cells.insert(accepted, (token, "model's own"))
        x = 0
        for t, kind in cells:
            text, (look, color) = text_of(t).replace("\n", "\\n").replace(" ", "·"), LOOKS[kind]
            width = 0.9 * len(text) + 1
            axes.add_patch(pyplot.Rectangle((x, row - 0.38), width, 0.76, linewidth=1.5, **look))
            axes.text(x + width / 2, row, text, ha="center", va="center", family="monospace", fontsize=9, color=color)
            x += width + 0.4
    handles = [pyplot.Rectangle((0, 0), 1, 1, **look) for look, _ in LOOKS.values()]
    axes.legend(handles, LOOKS, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set(xlim=(0, 40), ylim=(len(rows) - 0.4, -0.6), xticks=[], xlabel="tokens of the pass ( · : a space)")
    axes.set(ylabel="pass of the model", yticks=range(0, len(rows), 5), yticklabels=range(1, len(rows) + 1, 5))
    figures.show(
        "A row of boxes for each pass of the model: drafts that were accepted in green, the model's own token in light "
        "blue, rejected drafts dashed. First drafts are mostly accepted, later ones less often."
    )


def overlap(p, q):
    """p and q over the tokens: what both have, what is drawn after a rejection, what is drafted and rejected."""
    axes = figures.axes(width=6, height=2.8)
    both, rest, tokens = torch.minimum(p, q), (p - q).clamp(min=0), range(len(p))
    axes.bar(tokens, both, color=figures.GREEN, label="min(p, q): drafted, accepted")
    axes.bar(tokens, rest, bottom=both, color=figures.SKY, label="p - q: drawn after a rejection")
    outline = {"fill": False, "edgecolor": figures.RED, "linestyle": "--", "label": "q - p: drafted, rejected"}
    above = (q > p).nonzero()[:, 0]
    axes.bar(above, (q - p)[above], bottom=both[above], **outline)
    axes.set(xlabel="token", ylabel="probability", xticks=tokens)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figures.show(
        "Stacked bars over the tokens: green where p and q overlap; on top either the part of p above q, filled, or "
        "the part of q above p, dashed."
    )


def frequencies(found, p, error):
    """found: rule -> frequency of each token, drawn minus p, with a band of three standard errors."""
    axes, tokens = figures.axes(width=6, height=2.8), range(len(p))
    axes.fill_between(tokens, -3 * error, 3 * error, color="lightgrey", label="± 3 standard errors")
    for (name, frequency), marker, color in zip(found.items(), "o^s", (figures.GREEN, figures.ORANGE, figures.RED)):
        axes.plot(tokens, frequency - p, marker, color=color, label=name)
    axes.set(xlabel="token", ylabel="frequency - p", xticks=tokens)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figures.show(
        "Frequency minus p for each token under three rules. Sampling.verify stays in the narrow band; the two "
        "others are far outside it."
    )


def undoing(curves):
    """curves (heads, tokens undone): relative errors of the state."""
    axes = figures.axes(width=5.5, height=2.9)
    places = range(1, curves.shape[1] + 1)
    axes.semilogy(places, curves.clamp(max=1e9).T, color=figures.DELTA, linewidth=0.5)
    axes.plot([], [], color=figures.DELTA, label=f"a head ({len(curves)} lines)")
    axes.axhline(1, color=figures.RED, linestyle="--", label="error as large as the state")
    axes.set(
        xlabel="tokens undone", ylabel="relative error of the state", xticks=[1, *range(4, curves.shape[1] + 1, 4)]
    )
    axes.set(ylim=(1e-8, 2e9))  # larger errors lie on the upper edge
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figures.show(
        "The error of the state against the number of tokens undone, a line for each head, on a logarithmic scale. "
        "Many lines cross the dashed one."
    )


def acceptance(rows, shares, overall):
    """shares (roles, kinds of drafts); overall: kind -> its share of all."""
    axes = figures.axes(width=6.4, height=0.3 * len(rows) + 0.8)
    for i, ((name, share), color) in enumerate(zip(overall.items(), (MTP, "gray", figures.SKY))):
        places = torch.arange(len(rows)) + (i - 1) * 0.27
        axes.barh(places, shares[:, i], height=0.25, color=color, label=f"{name}: {share:.0%} of all")
    axes.set(yticks=range(len(rows)), yticklabels=rows, xlim=(0, 1))
    axes.set(xlabel="share of drafts that are accepted", ylabel="role of the drafted token (count)")
    axes.invert_yaxis()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figures.show(
        "Three bars for each role of a token: the share of drafts accepted from MTP, from a bigram table, and from "
        "MTP when sampled."
    )


def gains(a, predicted, measured):
    """predicted: n -> speed-ups at each a; measured: n -> (a, lowest, median, highest speed-up)."""
    axes = figures.axes(width=6, height=3.3)
    for (n, curve), (color, style, marker) in zip(predicted.items(), DRAFTS):
        axes.plot(a, curve, style, color=color, label=f"{count(n)}, formula")
        at, low, middle, high = measured[n]
        spread = [[middle - low], [high - middle]]
        axes.errorbar(at, middle, spread, fmt=marker, color=color, markersize=8, label=f"{count(n)}, measured")
    axes.axhline(1, color=figures.BLACK, linewidth=1)
    axes.set(xlabel="a, probability that a draft is accepted", ylabel="speed-up over no drafts", xlim=(0, 1))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figures.show(
        "Speed-up against the probability a that a draft is accepted: rising lines of the formula for 1, 2 and 3 "
        "drafts, and a measured point with a bar for each."
    )


def weights_read(m, lines):
    """lines: name -> weights read for m tokens, one token = 1."""
    axes = figures.axes(width=5.4, height=3.0)
    looks = [("gray", "-", ""), (figures.BLUE, "--", "s"), (figures.ORANGE, "--", "^"), (figures.EXPERTS, "-", "o")]
    looks += [(figures.PINK, ":", "v"), (figures.BLACK, ":", "")]
    for (name, numbers), (color, style, marker) in zip(lines.items(), looks):
        axes.plot(m, numbers, style, marker=marker, color=color, label=name)
    axes.set(xlabel="tokens in the pass", ylabel="weights read, one token = 1", xticks=m.tolist(), ylim=(0, None))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figures.show(
        "Weights read against the tokens in a pass. Dense is level; a random router of 10 of 512 nearly doubles with "
        "two tokens; neighbours in tiny/ lie between."
    )


def dense_and_sparse(a, lines):
    """lines: n -> (speed-ups of a dense model, of the sparse one)."""
    axes = figures.axes(width=6, height=3.2)
    for (n, (dense, sparse)), (color, style, _) in zip(lines.items(), DRAFTS):
        axes.plot(a, dense, style, color=color, linewidth=1, label=f"{count(n)}, were it dense")
        axes.plot(a, sparse, style, color=color, linewidth=3, label=f"{count(n)}, 10 of 512")
    axes.axhline(1, color=figures.BLACK, linewidth=1)
    axes.set(xlabel="a, probability that a draft is accepted", ylabel="speed-up over no drafts", xlim=(0, 1))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figures.show(
        "Estimated speed-ups of the 80B against a, for 1, 2 and 3 drafts: thin lines for a dense model, thick ones "
        "for 10 of 512 experts, far below."
    )
