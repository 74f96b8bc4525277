"""The pictures of why a hybrid: recall of models of three kinds, their learning curves, and how a memory begins."""

import figures
import torch
from matplotlib import pyplot

# L: Gated DeltaNet, F: gated attention, so that a model of both has a colour of its own
KIND = {
    "LLLF": (figures.HYBRID, "o", "hybrid, LLLF"),
    "LLLL": (figures.DELTA, "^", "Gated DeltaNet alone, LLLL"),
    "FFFF": (figures.ATTENTION, "s", "attention alone, FFFF"),
}
START = {"original": figures.DELTA, "ones": figures.ORANGE}


def log_axis(ax, sizes):
    """Logarithmic, with these numbers and no others."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()


def recall(sizes, shares):
    """shares: kind -> (seeds, sizes) of values named right: the mean, and the range of the seeds."""
    axes = figures.axes(width=6.4, height=3.4)
    for kind, wide in (("FFFF", 3.5), ("LLLF", 1.5), ("LLLL", 1.5)):  # the hybrid lies on attention alone
        color, marker, label = KIND[kind]
        curves = 100 * shares[kind]
        look = {"linewidth": wide, "markersize": 4 + 2 * wide if kind == "FFFF" else 5}
        axes.plot(sizes, curves.mean(0), marker=marker, color=color, label=label, **look)
        axes.fill_between(sizes, curves.amin(0), curves.amax(0), color=color, alpha=0.2, linewidth=0)
    log_axis(axes, sizes)
    axes.set(xlabel="facts in the text", ylabel="facts recalled (%)", ylim=(0, 103))
    axes.legend(loc="lower left")
    return axes


def answer(sizes, shares):
    """The result, at the beginning."""
    recall(sizes, shares)
    figures.show(
        "The share of facts recalled against their number in the text. Attention alone and the hybrid recall nearly "
        "all of 256, Gated DeltaNet alone falls to a small share."
    )


def with_prediction(sizes, shares, untrained, least, most, kept):
    """Seeds, means, untrained memories and the estimate, and below them what the cache holds."""
    ax, below = pyplot.subplots(2, 1, figsize=(7.4, 5.4), sharex=True, gridspec_kw={"height_ratios": [2.2, 1]})[1]
    for kind in ("FFFF", "LLLF", "LLLL"):
        color, marker, label = KIND[kind]
        ax.plot(sizes, shares[kind].mT, color=color, linewidth=0.7, alpha=0.5)
        ax.plot(sizes, shares[kind].mean(0), marker=marker, color=color, linewidth=2, label=label)
        below.plot(sizes, kept[kind], marker=marker, color=color, linewidth=1.2)
    for column, (style, name) in enumerate(((":", "one layer"), ("-.", "four layers"))):
        ax.plot(sizes, [untrained[n][column] for n in sizes], style, color="gray", label=f"untrained memory, {name}")
    n = torch.logspace(1, 8, 100, base=2)  # pairs
    low, high = ((capacity / n).clamp(max=1) for capacity in (least, most))
    ax.fill_between(n, low, high, color=figures.DELTA, alpha=0.15, linewidth=0, label="estimate for LLLL")
    ax.set(ylabel="share of values named right", ylim=(0, 1.03), xlim=(sizes[0] * 0.9, sizes[-1] * 1.1))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    log_axis(below, sizes)
    below.set(xlabel="pairs in the text", ylabel="cache after\nthe pairs, KiB", yscale="log")
    below.set_yticks([10, 100, 1000], [10, 100, 1000])
    below.minorticks_off()
    figures.show(
        "Above: the share of values named right against the number of pairs, means and single seeds. Only Gated "
        "DeltaNet alone falls, in the lower part of the shaded estimate. Below: the cache, level for Gated DeltaNet "
        "alone and rising for the two others."
    )


def returned(sizes, shares, untrained, each, layers):
    """Pairs that come back, n times the share, by seed; dashed: multiples of what one layer holds."""
    ax = figures.axes(width=5.8, height=3.2)
    for row in shares:
        ax.plot(sizes, row * torch.tensor(sizes), "o-", color=figures.DELTA, markersize=4)
    for count in range(1, layers + 1):
        ax.axhline(count * each, color="gray", linewidth=1, linestyle="--")
        look = {"color": "gray", "va": "center", "transform": ax.get_yaxis_transform()}
        ax.text(1.02, count * each, f"{count} H K", **look)
    for column, (style, name) in enumerate(((":", "one layer"), ("-.", "four layers"))):
        numbers = [n * untrained[n][column] for n in sizes]
        ax.plot(sizes, numbers, style, color=figures.BLACK, label=f"untrained, {name}")
    ax.plot([], [], "o-", color=figures.DELTA, markersize=4, label="trained, a line for each seed")
    ax.set(xlabel="pairs in the text", ylabel="pairs returned", ylim=(0, 1.08 * layers * each))
    log_axis(ax, sizes)
    ax.legend(loc="upper left", bbox_to_anchor=(1.16, 1))
    figures.show(
        "Pairs returned against pairs in the text, a line for each seed. Every line levels off, at different heights; "
        "dashed lines mark one to four times what one layer's keys allow."
    )


def learning(runs, sizes):
    """runs: kind -> (rate, histories)."""
    panels = figures.axes(1, 3, width=3.1, height=3.0, sharey=True)
    for ax, (kind, (rate, histories)) in zip(panels, runs.items()):
        for n, color in zip(sizes, (figures.SKY, figures.GREEN, figures.ORANGE, figures.BLACK)):
            for history in histories:
                steps = [entry["step"] for entry in history]
                ax.plot(steps, [entry["accuracy"][str(n)] for entry in history], color=color, linewidth=0.8)
            ax.plot([], [], color=color, label=f"{n} pairs")
        ax.set(title=f"{kind}, rate {rate:g}", xlabel="steps", ylim=(0, 1.03))
    panels[0].set_ylabel("share named right")
    panels[-1].legend()
    figures.show(
        "Learning curves in three panels, for the hybrid, Gated DeltaNet alone and attention alone: the share named "
        "right against steps for four numbers of pairs, a line for each seed."
    )


def starts(tokens, fading, curves, labels):
    """fading: start -> (tokens, heads) share left; curves: start -> lists of (step, share) for each run."""
    left, right = figures.axes(1, 2, width=4.3, height=3.2)
    for start, color in START.items():
        left.plot(tokens, fading[start], color=color, linewidth=0.7, alpha=0.6)
        for curve in curves[start]:
            right.plot(*zip(*curve), color=color, linewidth=1)
        right.plot([], [], color=color, label=labels[start])
    left.set(xlabel="tokens since", ylabel="share of the state left (a line: a head)", ylim=(0, 1.02), xscale="log")
    left.set_xticks([1, 4, 16, 64, 256], [1, 4, 16, 64, 256])
    left.minorticks_off()
    right.axhline(0.25, color="gray", linestyle=":", label="any of the four")
    right.set(xlabel="steps", ylabel="share named right, 4 pairs", ylim=(0, 1.03))
    right.legend()
    figures.show(
        "Left: the share of the state that is left against the tokens since, a line for each head. With b = 1 all is "
        "gone after a token, with the original start some heads keep it for a hundred. Right: learning curves of both."
    )
