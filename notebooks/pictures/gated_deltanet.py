"""The pictures of the Gated DeltaNet layer: its parts, its rows, its taps, its decays, and what breaks without a part."""

import math

import figures
import torch
from matplotlib import pyplot

STREAMS = {"q": figures.SKY, "k": figures.YELLOW, "v": figures.ORANGE, "z": figures.PINK}
GREY = "#999999"


# ---- The layer ------------------------------------------------------------------------------------------------------


def box(axis, x, y, width, text, height=0.62, share=0.35):
    """A box around a text; (x, y) is its middle."""
    look = {"facecolor": figures.tint(figures.DELTA, share), "edgecolor": figures.DELTA, "lw": 1.2}
    axis.add_patch(pyplot.Rectangle((x - width / 2, y - height / 2), width, height, **look))
    axis.text(x, y, text, ha="center", va="center", size=10 if share > 0.5 else 9)


def arrow(axis, *points, text=""):
    """A line through points with a head at its end, and a text next to its beginning."""
    axis.plot(*zip(*points), color="#444444", lw=1.1, zorder=0)
    style = {"arrowstyle": "-|>", "color": "#444444", "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", points[-1], points[-2], arrowprops=style, zorder=0)
    axis.text(points[0][0] + 0.08, points[0][1] - 0.14, text, ha="left", va="center", size=9)


def layer(config):
    """All parts of the layer, from the input at the top to the output at the bottom, with this config's widths."""
    key_heads, heads = config.linear_num_key_heads, config.linear_num_value_heads
    K, V, taps = config.linear_key_head_dim, config.linear_value_head_dim, config.linear_conv_kernel_dim
    axis = figures.axes(width=9.2, height=5.6)
    axis.set(xlim=(0, 9.2), ylim=(0.1, 7.3))
    axis.axis("off")
    axis.text(4.6, 7.1, f"x, {config.hidden_size} numbers a token", ha="center", size=10)
    arrow(axis, (4.6, 6.95), (4.6, 6.75), (1.4, 6.75), (1.4, 6.5))
    arrow(axis, (4.6, 6.75), (6.0, 6.75), (6.0, 6.5))
    box(axis, 1.4, 6.2, 2.4, "in_proj_ba")
    box(axis, 6.0, 6.2, 6.0, f"in_proj_qkvz: {key_heads} query and key heads, {heads} value heads")
    arrow(axis, (0.9, 5.88), (0.9, 4.12), text="a")
    arrow(axis, (2.1, 5.88), (2.1, 4.12), text="b")
    box(axis, 0.9, 3.8, 1.4, "decay α = e^g")
    box(axis, 2.1, 3.8, 0.9, "β = σ(b)")
    arrow(axis, (4.4, 5.88), (4.4, 5.32), text="q, k, v")
    box(axis, 4.5, 5.0, 3.0, f"convolution over {taps} tokens, SiLU")
    arrow(axis, (3.9, 4.68), (3.9, 4.12), text="q, k")
    box(axis, 3.9, 3.8, 1.8, "length 1; q / √K")
    arrow(axis, (5.5, 4.68), (5.5, 2.92), text="v")
    for x in (0.9, 2.1, 3.9):
        arrow(axis, (x, 3.48), (x, 2.92))
    box(axis, 3.1, 2.45, 5.8, f"the delta rule: {heads} memories S of {K} x {V} numbers", height=0.92, share=0.7)
    arrow(axis, (3.1, 1.99), (3.1, 1.82))
    arrow(axis, (8.0, 5.88), (8.0, 1.5), (6.0, 1.5), text="z")
    box(axis, 3.1, 1.5, 5.8, "gated norm: read / its size · w · SiLU(z)")
    arrow(axis, (3.1, 1.18), (3.1, 0.82))
    box(axis, 3.1, 0.5, 5.8, f"out_proj: back to {config.hidden_size} numbers")
    figures.show(
        "The layer from top to bottom. The input goes through two projections. The small one, on the left, gives a, for "
        "the decay, and b, for the write strength. From the large one, q, k and v pass a short convolution and SiLU, and "
        "q and k get length 1. All five meet in the delta rule and its memories. What is read is normalised and gated by "
        "z, which comes down on the right past the memories, and is projected back."
    )


def rows_of_projection(key_heads, r, K, V):
    """A bar of in_proj_qkvz's rows as they are, and one as a hasty reader cuts them."""
    right = []
    for i in range(key_heads):
        values = range(i * r, (i + 1) * r)
        right += [("q", i, K), ("k", i, K), *(("v", j, V) for j in values), *(("z", j, V) for j in values)]
    heads = {"q": key_heads, "k": key_heads, "v": key_heads * r, "z": key_heads * r}
    wrong = [(kind, i, V if kind in "vz" else K) for kind, count in heads.items() for i in range(count)]
    axis = figures.axes(width=9.0, height=1.9)
    for row, blocks in enumerate((right, wrong)):
        place = 0
        for kind, number, width in blocks:
            look = {"color": figures.tint(STREAMS[kind], 0.5), "edgecolor": "white", "linewidth": 2}
            axis.barh(-row, width, left=place, height=0.75, **look)
            axis.text(place + width / 2, -row, f"{kind}{number}", ha="center", va="center", size=10)
            place += width
    axis.set(yticks=[0, -1], yticklabels=["right", "wrong"], xlabel="row of in_proj_qkvz.weight", xlim=(0, place))
    figures.show(
        "Two bars of the projection's rows. In the upper one, the right one, each key head's q and k are followed by "
        "the v and z of the value heads that share it. In the lower one come all q, all k, all v, all z: only the first "
        "block is at the same place."
    )


def taps(shares):
    """The share of the weight that each tap of the convolution has. shares: {"q": (layers, taps), ...}."""
    axis = figures.axes(width=6.0, height=2.8)
    count = shares["q"].shape[1]
    for place, (name, share) in enumerate(shares.items()):
        x = torch.arange(count) + 0.27 * (place - 1)
        low, high = share.min(0).values, share.max(0).values
        middle = share.mean(0)
        bars = torch.stack([middle - low, high - middle])
        axis.bar(x, middle, 0.25, yerr=bars, color=figures.tint(STREAMS[name], 0.7), capsize=3, label=name)
    names = ["the token itself", "the one before", *(f"{n} before" for n in range(2, count))][::-1]
    axis.set_xticks(range(count), names)
    axis.axhline(1 / count, color=GREY, linestyle=":", label="all alike")
    axis.set(ylabel="share of |w|", ylim=(0, None))
    axis.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    figures.show(
        "Bars for each tap of the convolution, from the oldest token to the token itself, in three colours for the "
        "channels of q, k and v: the share of the weight on this token. Thin lines span the layers."
    )


# ---- Decay ----------------------------------------------------------------------------------------------------------


def decays(kept, wanted, got):
    """Left: the share kept by what the token says, a line a head kind. Right: the half-life that bfloat16 leaves."""
    left, right = figures.axes(2, width=4.5, height=3.0)
    for (label, (a, alpha)), color in zip(kept.items(), figures.COLORS):
        left.plot(a, alpha, color=color, label=label)
    left.set(xlabel="a + dt_bias", ylabel="α, share that is kept", ylim=(0, 1.02))
    left.legend(title="A = exp(A_log)", loc="lower left")
    for (label, half_life), style in zip(got.items(), ("-", "-", "--")):
        right.loglog(wanted, half_life.where(half_life.isfinite(), torch.nan), style, label=label)
    last = wanted[got["bfloat16"].isfinite()].max()
    right.axvline(last, color=GREY, linestyle=":")
    right.text(last * 1.15, 1.3, f"above {last:.0f}:\nα is 1", size=9)
    right.set(xlabel="half-life asked for, tokens", ylabel="half-life that α has, tokens")
    right.legend(loc="upper left")
    figures.show(
        "Left: three falling curves, the share that is kept against a + dt_bias, steeper for a larger A. Right: the "
        "half-life that a rounded alpha has against the one asked for, both logarithmic. For float32 it is the "
        "diagonal. For bfloat16 it becomes a staircase and ends, because alpha is rounded to 1."
    )


def decisions(tokens, alpha, beta):
    """What a layer decides at each token: alpha and beta, (tokens, heads) each, as two heat maps."""
    top, bottom = figures.axes(2, 1, width=9.2, height=2.0, sharex=True)
    for axis, values, name in ((top, alpha, "α"), (bottom, beta, "β")):
        image = axis.imshow(values.T, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axis.set_yticks(range(values.shape[1]))
        axis.set(ylabel="head")
        axis.figure.colorbar(image, ax=axis, label=f"{name}, {'kept' if name == 'α' else 'written'}", fraction=0.03)
    bottom.set_xticks(range(len(tokens)), tokens, rotation=90)
    figures.show(
        "Two heat maps with a column for each token of the text and a row for each head. Above: alpha, the share of the "
        "memory that the token keeps. Below: beta, how much of its value it writes. Bright is 1, dark is 0."
    )


# ---- Ablations ------------------------------------------------------------------------------------------------------


def ablations(losses, most=12.0):
    """For each part that is left out, how much the loss rises, by kind of text. losses: {part: {kind: nats}}."""
    whole, *parts = losses
    axis = figures.axes(width=7.6, height=0.4 * len(parts) + 1.2)
    kinds = list(losses[whole])
    for place, (kind, color) in enumerate(zip(kinds, (figures.SKY, figures.ORANGE, figures.PINK))):
        rises = [losses[part][kind] - losses[whole][kind] for part in parts]
        shown = [max(min(rise, most), 0.004) if math.isfinite(rise) else most for rise in rises]
        y = [row + 0.26 * (place - 1) for row in range(len(parts))]
        axis.barh(y, shown, 0.24, color=color, label=kind)
        for rise, height in zip(rises, y):
            if not math.isfinite(rise):
                axis.text(most * 0.9, height, "no number any more", ha="right", va="center", size=9, color="white")
    axis.set_yticks(range(len(parts)), [f"without {part}" for part in parts])
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="rise of the loss, nats a token", xlim=(0.004, most))
    axis.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.4, 1))
    figures.show(
        "Horizontal bars on a logarithmic scale, a group for each part of the layer and a colour for each kind of text: "
        "how much the loss rises without this part."
    )


# ---- Six pairs ------------------------------------------------------------------------------------------------------


def six_pairs(answers, things, people, truth):
    """For each rule, what each key returns, person by person. answers: {rule: (things, people)}; truth: person by thing."""
    panels = figures.axes(1, len(answers), width=9.4 / len(answers), height=2.6, sharey=True)
    for axis, (rule, found) in zip(panels, answers.items()):
        image = axis.imshow(found, cmap=figures.DIVERGING, vmin=-1.2, vmax=1.2)
        for row, person in enumerate(truth):
            frame = {"fill": False, "edgecolor": "black", "lw": 1.6}
            axis.add_patch(pyplot.Rectangle((person - 0.46, row - 0.46), 0.92, 0.92, **frame))
        axis.set_xticks(range(len(people)), people, rotation=90)
        axis.set_title(rule.replace(" ", "\n", 1))
    panels[0].set_yticks(range(len(things)), things)
    panels[0].figure.colorbar(image, ax=panels, label="returned", fraction=0.02)
    figures.show(
        "Five panels, one for each rule. Rows are things, columns people, and colour is how strongly the memory, asked "
        "for the thing, returns the person; a frame marks the person who has it. Linear attention and Mamba-2 return two "
        "people for the ring. The three delta rules return the last one alone. With decay older rows are fainter."
    )
