"""The pictures of the delta rule: the whiteboard, long and short keys, decay and write strength, and capacity."""

import figures
import torch

RULE = {"linear attention": figures.ORANGE, "delta rule": figures.DELTA}
ERROR = "error, |Sᵀk - v|² / |v|²"


def two_memories(K=128, V=128):
    """What one head keeps of a text: keys and values of all tokens, or one state."""
    axis = figures.axes(width=6.4, height=2.6)
    tokens = range(1, 161)
    axis.plot(tokens, [n * (K + V) / 1e3 for n in tokens], color=figures.ATTENTION)
    axis.plot(tokens, [K * V / 1e3 for _ in tokens], color=figures.DELTA)
    axis.text(
        112, 112 * (K + V) / 1e3, "attention: a key and\na value of each token ", color=figures.ATTENTION, ha="right"
    )
    axis.text(159, K * V / 1e3 - 1, f"one state of {K} x {V}", color=figures.DELTA, ha="right", va="top")
    axis.set(xlabel="tokens read", ylabel="numbers kept, thousands", ylim=(0, None))
    figures.show(
        "Numbers that one head keeps, against the tokens read: a rising line for attention, a level one for a state, "
        "which the first crosses after a few dozen tokens."
    )


def whiteboard(states, returned, truth, asked):
    """A row for each rule: the state after each write, what the keys return, and what they should."""
    names = next(iter(states.values())).keys()
    axes = figures.axes(len(states), len(names) + 2, width=1.53, height=1.2)
    for number, (row, (rule, written)) in enumerate(zip(axes, states.items())):
        panels = [(name, S) for name, S in written.items()]
        panels += [("returned", returned[rule]), ("true", truth)]
        for column, (ax, (title, picture)) in enumerate(zip(row, panels)):
            ax.imshow(picture, cmap=figures.DIVERGING, vmin=-2, vmax=2)
            ax.set_xticks([])
            ax.set_yticks(*((range(len(asked)), asked) if column >= len(names) else ([], [])))
            ax.spines[["top", "right"]].set_visible(True)
            if number == 0:
                ax.set_title(title)
            if number == len(axes) - 1:
                ax.set_xlabel("value dim")
        row[0].set_ylabel(rule.replace(" ", "\n", 1) + "\n(key dim)", fontsize=9)
    figures.show(
        "A row of small heat maps for each of four rules: the state after each of four writes, then what ring, "
        "cup and coin return and what they should. Only under the delta rules does the ring return Mira alone."
    )


def rewriting(errors):
    """errors: length of the key -> error before and after each write."""
    ax = figures.axes(width=5, height=2.8)
    for (length, found), color in zip(errors.items(), figures.COLORS):
        ax.semilogy(found, "o-", color=color, markersize=4, label=f"|k| = {length}")
    ax.set(xlabel="times the same pair was written", ylabel="error, |v - Sᵀk| / |v|", ylim=(1e-9, 100))
    ax.legend(ncols=2, loc="lower left")
    figures.show(
        "Errors on a logarithmic scale against the number of writes, a line for each length of the key. They fall for "
        "the shorter keys and grow for the longest."
    )


def state_sizes(tokens, sizes):
    """sizes: length of the keys -> sizes of the state, (places, seeds)."""
    ax = figures.axes(width=5, height=2.8)
    for (length, found), color in zip(sizes.items(), figures.COLORS):
        low, middle, high = found.quantile(torch.tensor([0.0, 0.5, 1.0]).double(), dim=1)
        ax.semilogy(tokens, middle, color=color, label=f"|k| = {length}")
        ax.fill_between(tokens, low, high, color=color, alpha=0.2)
    ax.set(xlabel="tokens", ylabel="size of the state, |S|")
    ax.legend()
    figures.show(
        "The size of the state on a logarithmic scale against tokens, a line for each length of the keys. It explodes "
        "for the longest keys alone."
    )


def fading_and_learning(kept, errors):
    """kept: (half-life, g) -> share left after each token; errors: beta -> error after each write."""
    left, right = figures.axes(1, 2, width=3.6, height=2.6)
    for ((half_life, g), share), color in zip(kept.items(), figures.COLORS):
        left.plot(range(1, len(share) + 1), share, color=color, label=f"{half_life} (g = {g:.3f})")
    left.set(xlabel="tokens since the write", ylabel="share that is left", ylim=(0, 1.02))
    left.legend(title="half-life, tokens")
    for (beta, error), color in zip(errors.items(), figures.COLORS):
        right.plot(error, "o-", color=color, markersize=3, label=f"beta = {beta}")
    right.set(xlabel="times the same pair was written", ylabel="error, |v - Sᵀk| / |v|", ylim=(0, 1.02))
    right.legend()
    figures.show(
        "Left: the share of a pair that is left, falling with the tokens since, for three half-lives. Right: the error "
        "of a pair, falling with the number of writes, for three write strengths."
    )


def gates(layers, half_life, beta):
    """half_life, beta (tokens, layers, heads): a dot for each head's median, bars from 10 to 90 %."""
    left, right = figures.axes(1, 2, width=4.4, height=3.0)
    heads = beta.shape[2]
    for ax, values in ((left, half_life), (right, beta)):
        low, middle, high = values.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=0)  # (layers, heads) each
        for head in range(heads):
            place = torch.arange(len(layers)) + 0.7 / heads * (head - (heads - 1) / 2)
            spread = torch.stack([middle - low, high - middle])[:, :, head]
            color = figures.COLORS[head % len(figures.COLORS)]
            ax.errorbar(place, middle[:, head], spread, fmt="o", markersize=4, color=color, label=f"head {head}")
        ax.set_xticks(range(len(layers)), layers)
        ax.set_xlabel("layer")
    left.set(yscale="log", ylabel="half-life, tokens")
    right.set(ylabel="beta", ylim=(0, 1))
    if heads <= figures.ENTRIES:
        right.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1), columnspacing=1, handletextpad=0.2)
    figures.show(
        "For every head of every Gated DeltaNet layer a dot with a bar: on the left its half-life in tokens, on a "
        "logarithmic scale, on the right its write strength beta."
    )


def capacity(loads, measured, expected):
    """measured: (rule, keys, K) -> errors (loads, seeds); expected: the delta rule's error at each load."""
    ax = figures.axes(width=6.2, height=3.8)
    widths = sorted({K for *_, K in measured})
    for rule, color in RULE.items():
        for K, marker in zip(widths, "os^Dv"):
            rows = measured[rule, "random", K]
            ax.errorbar(loads, rows.mean(1), rows.std(1), fmt=marker, color=color, markersize=5)
        right_angles = measured[rule, "orthogonal", widths[-1]]
        ax.plot(loads[: len(right_angles)], right_angles.mean(1), "x", color=color)
    ax.plot(loads, loads, color=figures.ORANGE, linewidth=1)  # (n - 1) / K, up to 1 / K
    ax.plot(loads, expected, color=figures.DELTA, linewidth=1)
    ax.text(loads[-1], loads[-1] + 0.3, "linear attention\nline: (n - 1) / K ", color=figures.ORANGE, ha="right")
    ax.text(loads[-1], expected[-1] - 0.2, "delta rule\nline: expected ", color=figures.DELTA, ha="right", va="top")
    for K, marker in zip(widths, "os^Dv"):
        ax.plot([], [], marker, color="black", label=f"random keys, K = {K}")
    ax.plot([], [], "x", color="black", label="keys at right angles")
    ax.axhline(1, color="gray", linewidth=1, linestyle=":", label="as if nothing were returned")
    ax.set(xlabel="pairs stored / K", ylabel=ERROR, ylim=(-0.05, 2.8))
    ax.legend(loc="upper left")
    figures.show(
        "The error against the number of pairs per row of the state. Linear attention's rises in a straight line from "
        "the start, the delta rule's about half as fast and then bends. Keys at right angles give no error up to one."
    )


def passes(loads, found):
    """found: times written, or least squares -> errors (loads, seeds)."""
    ax = figures.axes(width=5.4, height=3.2)
    for (times, rows), color in zip(found.items(), (figures.SKY, figures.GREEN, figures.PINK, figures.BLUE, "black")):
        label = times if times == "least squares" else f"written {times} x"
        ax.errorbar(loads, rows.mean(1), rows.std(1), fmt="o-", markersize=4, color=color, label=label)
    ax.plot(loads, [max(0, 1 - 1 / x) for x in loads], color="gray", linestyle=":", label="1 - K / pairs")
    ax.axvline(1, color="gray", linewidth=1)
    ax.text(1.01, ax.get_ylim()[1], "as many pairs as rows", va="top", fontsize=9)
    ax.set(xlabel="pairs stored / K", ylabel=ERROR)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figures.show(
        "The error against the number of pairs per row, a line for each number of passes. With more passes the curves "
        "approach that of least squares, which is zero up to one pair a row and rises then."
    )


def ages(found, expected):
    """found: rule -> errors (seeds, pairs), the oldest pair first; expected (pairs,): the delta rule's."""
    ax, age = figures.axes(width=5.4, height=2.8), torch.arange(len(expected) - 1, -1, -1)
    for rule, rows in found.items():
        ax.errorbar(age, rows.mean(0), rows.std(0) / len(rows) ** 0.5, color=RULE[rule], label=rule)
    ax.plot(age, expected, color="black", linestyle=":", label="delta rule, expected")
    ax.axhline(1, color="gray", linewidth=1, linestyle=":")
    ax.set(xlabel="pairs written since", ylabel=ERROR, ylim=(0, 2.9))
    ax.legend(ncols=3, columnspacing=1)
    figures.show(
        "The error of a pair against the number of pairs written after it. Linear attention's is level and high, the "
        "delta rule's rises from zero for the newest pair."
    )
