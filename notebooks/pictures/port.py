"""The pictures of proving a port: perplexities, errors stage by stage, ties, and what each check sees."""

import figures
import numpy as np

RIGHT, WRONG = figures.BLUE, figures.RED
LETTERS = "ABCDEFGH"


def method():
    """The idea: compare the values of every stage, in forward order."""
    names = ("embedding", "norm", "q, k, v", "g, beta", "delta rule", "router", "experts", "logits")
    axis = figures.axes(width=8.6, height=1.9)
    for i, name in enumerate(names):
        right = i < 5
        color = RIGHT if right else WRONG
        for y, label in ((1, name), (0, "=" if right else "≠")):
            look = {"boxstyle": "round", "facecolor": figures.tint(color, 0.25), "edgecolor": color}
            axis.text(i, y, label, ha="center", va="center", bbox=look, fontsize=9 if y else 12)
        if i:
            axis.annotate("", (i - 0.38, 1), (i - 0.62, 1), arrowprops={"arrowstyle": "->", "color": "#444444"})
    axis.text(5, -0.75, "the first wrong value: here is the bug", ha="center", va="center", color=WRONG)
    axis.annotate("", (5, -0.25), (5, -0.6), arrowprops={"arrowstyle": "->", "color": WRONG})
    axis.set_yticks([1, 0], ["stages", "port and\nreference"])
    axis.set(xlim=(-0.6, len(names) - 0.4), ylim=(-1, 1.5), xticks=[])
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    figures.show(
        "A row of stages from the embedding to the logits. Under each a sign: port and reference agree up to the "
        "delta rule, and differ from the router on. The first difference names the bug."
    )


def dots(axes, numbers, names):
    """One point for each sample, a circle if it is right."""
    for row, (number, name) in enumerate(zip(numbers, names)):
        right = "right" in name
        axes.scatter(number, row, color=RIGHT if right else WRONG, marker="o" if right else "X", s=50, zorder=2)


def perplexities(numbers, names, others):
    """Of the samples, and of the right model on other texts."""
    axes = figures.axes(width=6.4, height=3.2)
    dots(axes, numbers, names)
    below = len(names) + 0.2
    axes.scatter(others, [below] * len(others), color=RIGHT, marker="|", s=120)
    labels = [f"{letter}  {name}" for letter, name in zip(LETTERS, names)]
    axes.set_yticks([*range(len(names)), below], [*labels, "right, other texts"])
    axes.axvspan(min(others), max(others), color=figures.SKY, alpha=0.25, linewidth=0)
    axes.set(xlabel="perplexity", ylim=(below + 0.6, -0.6))
    axes.grid(axis="x", alpha=0.3)
    figures.show(
        "The perplexity of each of the eight samples, circles for right models and crosses for wrong ones: four crosses "
        "are where the circles are. A band shows the range of the right model on other texts, and is wide."
    )


def two_ways(done, bug):
    """Errors at all keys in forward order, chained above and isolated below, of a right and a broken model."""
    for axes, mode in zip(figures.axes(2, 1, width=8.8, height=3.1), ("chained", "isolated")):
        looks = ((bug, "broken", WRONG, "D"), ("right, bfloat16", "right", RIGHT, "o"))
        for name, label, color, marker in looks:
            rows = [
                one for one in done[name, mode].rows if not one.key.startswith("mtp.") and "topk_ids" not in one.key
            ]
            errors = [row.relative for row in rows]
            axes.scatter(range(len(rows)), errors, s=12, color=color, marker=marker, label=label)
        allowed = [row.allowed for row in rows]
        axes.scatter(range(len(rows)), allowed, s=14, color=figures.BLACK, marker="_", linewidths=0.8, label="allowed")
        starts = [i for i, row in enumerate(rows) if row.key.endswith("input_layernorm.out")]
        for start in starts:
            axes.axvline(start - 0.5, color="0.85", zorder=0)
        axes.set(yscale="log", ylabel="relative error", title=f"{mode}, bfloat16", ylim=(1e-9, 5))
        axes.set_xticks(starts, [f"layer {n}" for n in range(len(starts))], ha="left")
        if mode == "chained":
            axes.legend(ncols=3, loc="lower right")
        else:
            place = [row.key for row in rows].index("model.layers.0.mlp.topk_weights")
            axes.text(place + 2, 0.3, "topk_weights")
            axes.set_xlabel("keys in forward order")
    figures.show(
        "Relative errors of all keys in forward order. Above, chained: the broken model's errors lie somewhat higher "
        "than the right one's from the first layer on. Below, isolated: only one stage of each layer sticks out, by "
        "orders of magnitude."
    )


def two_methods(perplexity, excess, names):
    """Perplexity, and the largest error in units of what is allowed, for the samples."""
    left, right = figures.axes(2, width=4.4, height=3.1, sharey=True)
    dots(left, perplexity, names)
    left.set_yticks(range(len(names)), LETTERS[: len(names)])
    left.set(xlabel="perplexity of held-out text", ylabel="sample", ylim=(len(names) - 0.4, -0.6))
    dots(right, excess, names)
    right.axvline(1, color=figures.BLACK, lw=0.7)
    right.set(xlabel="largest error of any value / what is allowed", xscale="log")
    figures.show(
        "Left: perplexities of the eight samples, circles and crosses mixed. Right: the largest error in units of "
        "what is allowed; circles lie left of 1 and crosses far to the right."
    )


def margins(values, found):
    """The distribution of the router's margins; found: dtype -> how far rounding moves, and where choices differ."""
    axes = figures.axes(width=7, height=3.3)
    share = np.arange(1, len(values) + 1) / len(values)
    axes.plot(np.sort(values), share, color=figures.BLACK, label="choices with a margin below this")
    rank = np.empty(len(values))
    rank[values.argsort()] = share
    for (name, (far, other)), color in zip(found.items(), (figures.GREEN, figures.ORANGE)):
        axes.axvline(np.median(far), color=color, ls="--", label=f"{name} moves a probability by (median)")
        if other.any():
            axes.scatter(values[other], rank[other], color=color, zorder=3, label=f"{name} chose another expert")
    axes.set(xscale="log", xlabel="probability", ylabel="share of all choices")
    axes.legend(loc="upper left", bbox_to_anchor=(0.07, 1))  # clear of the line of float32
    figures.show(
        "A rising curve: the share of choices with a margin below a probability. Dashed lines mark how far rounding "
        "moves a probability, far to the left for float32, further right for bfloat16, where points mark choices "
        "that came out differently."
    )


def seen(table, checks):
    """A table of bugs and checks."""
    axes = figures.axes(width=6.4, height=0.32 * len(table) + 0.7)
    axes.imshow(np.array(list(table.values()), float), cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    for row, found in enumerate(table.values()):
        for column, yes in enumerate(found):
            word, color = ("seen", "white") if yes else ("-", "0.4")
            axes.text(column, row, word, ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(checks)), [check.replace(" ", "\n", 1) for check in checks])
    axes.set_yticks(range(len(table)), list(table))
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    figures.show(
        "A table of eleven bugs and six checks: which check sees which bug. No column is full; each bug is seen by "
        "some comparison of tensors, and several not by perplexity."
    )
