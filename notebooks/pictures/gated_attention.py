"""The pictures of gated attention: rows of q_proj, logits, rotation, YaRN, the cache, a lookup, sinks and gates."""

import math

import figures
import torch

QUERY, GATE = figures.tint(figures.ATTENTION, 0.5), figures.tint(figures.YELLOW, 0.8)


def rows_of_q_proj(H, d):
    """The rows of q_proj as they are, and as one might think."""
    layouts = {
        "right": [f"{kind}{h}" for h in range(1, H + 1) for kind in "qg"],
        "wrong": [f"{kind}{h}" for kind in "qg" for h in range(1, H + 1)],
    }
    axes = figures.axes(width=8.5, height=1.7)
    for row, blocks in enumerate(layouts.values()):
        for i, block in enumerate(blocks):
            color = QUERY if block[0] == "q" else GATE
            axes.barh(-row, d, left=i * d, height=0.75, color=color, edgecolor="white", linewidth=2)
            axes.text((i + 0.5) * d, -row, block, ha="center", va="center")
    axes.set(yticks=[0, -1], yticklabels=layouts, xlabel="row of q_proj.weight (q: query, g: gate, by head)")
    axes.set(xticks=range(0, 2 * H * d + 1, d), xlim=(0, 2 * H * d))
    figures.show(
        "Two bars of blocks along the rows of q_proj. As they are: query and gate of head 1, query and gate of head 2, "
        "and so on. Wrong: first all queries, then all gates."
    )


def growth_of_logits(scales, largest, attended, bound):
    """largest, attended: with and without the norm -> a number for each scale of the input."""
    left, right = figures.axes(1, 2, width=4.4)
    for (name, numbers), style in zip(largest.items(), ("-", "--")):
        left.loglog(scales, numbers, style, color=figures.ATTENTION, label=name)
        right.semilogx(scales, attended[name], style, color=figures.ATTENTION, label=name)
    left.axhline(bound, color=figures.BLACK, linewidth=1)
    left.text(scales[-1], bound * 1.4, "bound", ha="right")
    left.axhline(65504, color="gray", linestyle=":", linewidth=1)
    left.text(scales[0], 65504 * 1.5, "largest float16", color="gray")
    left.set(xlabel="c, factor on the layer's input", ylabel="largest |logit|")
    right.set(xlabel="c, factor on the layer's input", ylabel="tokens attended to", ylim=(0, None))
    right.legend()
    figures.show(
        "Left: the largest logit against the scale of the input. Without the norm it rises past the largest float16, "
        "with the norm it stays below a bound. Right: the tokens attended to fall to one without the norm."
    )


def turns(omega, R, d, large, context):
    """The cosine of every entry's angle at each position, and the turns of the 80B's pairs in its context."""
    left, right = figures.axes(1, 2, width=4.4, height=3.2)
    angles = torch.cat([omega, omega, torch.zeros(d - R)])[:, None] * torch.arange(128)  # (d, positions)
    look = {"aspect": "auto", "cmap": figures.DIVERGING, "vmin": -1, "vmax": 1, "interpolation": "nearest"}
    image = left.imshow(angles.cos(), **look)
    left.axhline(R - 0.5, color="white", linewidth=1.5)
    left.text(64, (R + d) / 2, "not turned", ha="center", va="center", color="white")
    left.set(xlabel="position t (tokens)", ylabel="entry of the head", yticks=[0, R // 2, R, d - 1])
    left.figure.colorbar(image, ax=left, label="cos of the angle")
    right.semilogy(range(len(large)), context * large / (2 * math.pi), "o", markersize=4, color=figures.ATTENTION)
    right.axhline(1, color=figures.BLACK, linewidth=1)
    right.text(0, 1.3, "one turn", va="bottom")
    right.set(xlabel="pair i of the 80B", ylabel=f"turns in {context:,} tokens")
    figures.show(
        "Left: a heat map of cosines, entries of a head by positions. The first entries of each half of the turned "
        "part oscillate fast, the others slowly, and three quarters do not change. Right: turns of each pair, falling "
        "from tens of thousands to less than one."
    )


def by_distance(turned, unturned):
    """The two parts of a product, against the distance."""
    axes = figures.axes(width=6, height=2.5)
    axes.plot(turned, color=figures.ATTENTION, label="first sum: the turned entries")
    axes.plot(unturned.expand(len(turned)), "--", color=figures.BLACK, label="second sum: the others")
    axes.set(xlabel="distance t - j (tokens)", ylabel="part of the product")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figures.show(
        "Two lines against the distance of query and key: the turned entries' part varies, the others' is level."
    )


def yarn(r, ratio, turned, trained):
    """r: how far each pair is divided; ratio of its frequencies; turns with YaRN and in training."""
    left, right = figures.axes(1, 2, width=4.4)
    zones = {"keep": r == 0, "blend": (r > 0) & (r < 1), "divided": r == 1}
    pairs = torch.arange(len(r))
    for (name, which), color, marker in zip(zones.items(), (figures.BLUE, figures.ORANGE, figures.GREEN), "os^"):
        left.plot(pairs[which], ratio[which], marker, color=color, label=name)
        right.semilogy(pairs[which], turned[which], marker, color=color, label=name)
    right.semilogy(pairs, trained, color=figures.BLACK, linewidth=1, label="in training")
    left.set(xlabel="pair i", ylabel="frequency: with YaRN / without", ylim=(0, 1.1))
    left.legend(loc="lower left")
    right.set(xlabel="pair i", ylabel="turns in the whole context")
    right.legend(loc="lower left")
    figures.show(
        "Left: the ratio of frequencies with and without YaRN, 1 for the first pairs, falling in the middle, a "
        "fraction for the last. Right: turns in the whole context; those of the divided pairs lie on training's line."
    )


def caches(gigabytes):
    """Bars of the cache, one for each variant."""
    axes = figures.axes(width=6.8, height=1.8)
    bars = axes.barh(list(gigabytes), gigabytes.values(), color=figures.ATTENTION)
    axes.bar_label(bars, fmt="{:.1f} GB", padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="keys and values of 262,144 tokens in bfloat16 (GB)")
    axes.margins(x=0.15)
    figures.show(
        "Three bars of gigabytes: attention in all layers with all heads, in a quarter of the layers, and with "
        "shared key heads."
    )


def lookup(attention, columns, rows):
    """Where a head looks, (rows, columns), as it writes an answer digit by digit: two halves, to be read."""
    half = -(-len(columns) // 2)
    panels = figures.axes(2, 1, width=9, height=1.9)
    for axes, part in zip(panels, (slice(0, half), slice(half, None))):
        shown = attention[:, part]
        image = axes.imshow(shown, aspect="auto", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks(range(shown.shape[1]), columns[part], rotation=90, family="monospace")
        axes.set_yticks(range(len(rows)), rows)
        axes.set(ylabel="at → predicted", xlim=(-0.5, half - 0.5))
    panels[1].set_xlabel("token of the book (␣: a space)")
    panels[0].figure.colorbar(image, ax=list(panels), label="attention")
    figures.show(
        "Heat maps of attention: a row for each digit to be predicted, columns are the tokens of the phone book. If "
        "the head finds the number, the bright cells form a diagonal over its four digits."
    )


def sinks(most):
    """What is left to the other tokens when one rises above them, in texts of three lengths, and under a gate."""
    axes = figures.axes(width=6, height=2.9)
    z = torch.linspace(0, 32, 200, dtype=torch.float64)
    for n, style in zip((100, 10_000, 262_144), ("-", "--", "-.")):
        axes.semilogy(z, n / (n + z.exp()), style, color=figures.ATTENTION, label=f"a sink, {n:,} other tokens")
    axes.semilogy(z, (-z).sigmoid(), color=figures.BLACK, linewidth=1, label="a gate of σ(-z), any number")
    axes.axvline(most, color="gray", linestyle=":", label="most that QK norm\nallows (w = 0, d = 256)")
    axes.set(xlabel="logit of the sink above the others, or of the gate, z", ylabel="share that is left")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figures.show(
        "The share that is left against z, on a logarithmic scale. The gate's line falls from the start; the sinks' "
        "lines stay level first, the longer the more other tokens there are."
    )


def openings(tables, roles, columns):
    """Two heat maps (roles, heads) of the gates' mean opening."""
    panels = figures.axes(1, 2, width=4.5, height=4.4, sharey=True)
    for axes, (title, table) in zip(panels, tables.items()):
        image = axes.imshow(table, aspect="auto", vmin=0, vmax=1, interpolation="nearest")
        for i, j in (table > 0.6).nonzero().tolist():
            axes.text(j, i, f"{table[i, j]:.1f}", ha="center", va="center", fontsize=9)
        axes.set(title=title, xlabel="layer.head", yticks=range(len(roles)), yticklabels=roles)
        axes.set_xticks(range(len(columns)), columns)
    panels[1].figure.colorbar(image, ax=panels[1], label="mean opening of the gate")
    figures.show(
        "Two heat maps of the mean opening of the gates: rows are roles of tokens, columns are heads. The left one "
        "goes by the token's own role, the right one by that of the next token."
    )
