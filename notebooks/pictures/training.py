"""The pictures of how tiny/ was trained: its text and what each token costs, the curriculum, and the floor."""

import math

import figures
import numpy as np
from matplotlib import pyplot

GROUPS = {
    "follows from the words before": "0.5",
    "one of several ways to say it": figures.BLACK,
    "new: nobody can know it": figures.RED,
    "known before: which one is open": figures.BLUE,
    "an answer: follows from the text before": figures.GREEN,
}


def color(role: str) -> str:
    """A role's colour."""
    for number, fits in enumerate((role == "template", role == "free choice", role.endswith((" (new)", " (asked)")))):
        if fits:
            return [*GROUPS.values()][number]
    return figures.GREEN if role in ("answer", "name (copied)", "pronoun") else figures.BLUE


def groups():
    """The five colours of roles."""
    axes = figures.axes(width=9, height=0.6)
    for number, (name, shade) in enumerate(GROUPS.items()):
        axes.text(number % 3 * 3.2, -(number // 3), name, color=shade)
    axes.set(xlim=(0, 9), ylim=(-1.4, 0.6))
    axes.axis("off")
    figures.show("The five groups of roles, each in its colour: " + "; ".join(GROUPS) + ".")


def document(kind: str, pieces: list[tuple[str, str, float]], width: int = 84):
    """A text in the colours of its roles, with a bar under each token: (text, role, bits), half a line is 10 bits."""
    places, x, y = [], 0, 0
    for piece, role, bits in pieces:
        text = piece.strip("\n")
        if x + len(text) > width and text.startswith(" "):  # no line begins with a full stop
            x, y, text = 0, y + 1, text.lstrip()
        places.append((x, y, text, color(role), bits))
        x, y = (0, y + 1) if "\n" in piece else (x + len(text), y)
    height = places[-1][1] + 0.9  # in lines
    axes = pyplot.figure(figsize=(9, 0.45 * height), layout="none").add_axes((0, 0, 1, 1))
    size = 72 * 9 / (width + 2) / 0.602  # points, so that `width` characters fill 9 inches
    for x, y, text, shade, bits in places:
        axes.text(x, y, text, family="monospace", fontsize=size, color=shade, va="center")
        axes.bar(x + len(text) / 2, -bits / 20, len(text) - 0.3, y + 0.62, color=shade)
    axes.set(xlim=(-1, width + 1), ylim=(height - 0.4, -0.5))
    axes.axis("off")
    figures.show(
        f"A document of the kind {kind}, each word in the colour of its group, with a bar of its entropy below: grey "
        "words have hardly any, red ones the most."
    )


def counted(p, share, n):
    """Shares counted against exact probabilities, with two standard deviations."""
    axes = figures.axes(width=4.8, height=3.6)
    axes.errorbar(p, share, 2 * np.sqrt(p * (1 - p) / n), fmt="o", ms=3, lw=0.8, color=figures.BLUE)
    axes.plot([p.min(), 1], [p.min(), 1], color=figures.BLACK, lw=0.8)
    axes.set(
        xscale="log", yscale="log", xlabel="probability by the sum over all paths", ylabel="share among those counted"
    )
    figures.show(
        "Points with bars along the diagonal of two logarithmic axes: the share counted against the exact probability."
    )


def floor(bits, roles):
    """bits: role -> surprise of each token."""
    axes = figures.axes(width=7.4, height=0.24 * len(roles) + 0.7)
    for role in roles:
        spread = 2 * bits[role].std() / len(bits[role]) ** 0.5
        axes.barh(role, bits[role].mean(), xerr=spread, color=color(role), ecolor="0.3")
    axes.set(xlabel="floor, bits per token (± 2 standard errors)", xlim=(0, None))
    figures.show(
        "Bars of the floor in bits per token, by role. Templates and answers cost nothing, new names and things the "
        "most."
    )


def curriculum(progress, stages, kinds):
    """Which documents are shown as training goes on, and what of them counts. kinds: label -> the corpus' kinds."""
    above, below = figures.axes(2, 1, width=6.6, height=2.6, sharex=True)
    totals = [sum(stage.shares.values()) for stage in stages]
    shares = [
        [sum(stage.shares.get(kind, 0) for kind in some) / total for stage, total in zip(stages, totals)]
        for some in kinds.values()
    ]
    above.stackplot(progress, shares, labels=kinds, colors=figures.COLORS, alpha=0.8)
    above.set(ylabel="share of documents", xlim=(0, 1), ylim=(0, 1))
    above.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    lines = {
        "grey: from the words before": ([stage.template for stage in stages], "0.5", "-"),
        "red: new": ([stage.unknowable for stage in stages], figures.RED, "-"),
        "blue: known before": ([stage.told for stage in stages], figures.BLUE, "-"),
        "length of a row / 512": ([stage.length / 512 for stage in stages], figures.BLACK, ":"),
    }
    for label, (numbers, shade, style) in lines.items():
        below.plot(progress, numbers, style, color=shade, label=label)
    below.axhline(1.02, color=figures.GREEN, label="green: answers")
    below.set(xlabel="share of the training done", ylabel="share that counts")
    below.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figures.show(
        "Above, stacked areas: the share of each kind of document as training goes on. Below, lines: the share of "
        "grey, red and blue tokens that counts, rising in the end, and the length of a row."
    )


def live(thousands, smooth, window, per_step, nats, right):
    """The loss, and digits predicted right. right: entries -> share at each point."""
    left, other = figures.axes(2, width=4.4, height=3.2)
    left.plot((np.arange(len(smooth)) + window) * per_step / 1e3, smooth, color=figures.BLUE, label="all that counts")
    left.plot(thousands, nats, color=figures.GREEN, marker="o", ms=3, label="digits asked for, 2 entries")
    left.axhline(math.log(10), color=figures.BLACK, lw=0.8, ls=":")
    left.text(thousands[-1], math.log(10) * 1.05, "guessing a digit", ha="right")
    left.set(xlabel="tokens trained on (thousands)", ylabel="nats per token", ylim=(0, None))
    left.legend()
    for (n, share), shade, marker in zip(right.items(), (figures.GREEN, figures.ORANGE), "os"):
        other.plot(thousands, 100 * share, color=shade, marker=marker, ms=3, label=f"{n} entries")
        other.axhline(100 / n + 10 * (1 - 1 / n), color=shade, lw=0.8, ls="--")
    other.plot([], [], "--", color="gray", lw=0.8, label="some number of the book")
    other.axhline(10, color=figures.BLACK, lw=0.8, ls=":", label="guessing")
    other.set(xlabel="tokens trained on (thousands)", ylabel="digits asked for: right (%)", ylim=(0, 103))
    other.legend(loc="upper left")
    figures.show(
        "Left: the loss falls, and the digits' cost falls below that of guessing. Right: the share of digits "
        "predicted right, with dashed lines for taking some number of the book."
    )


def card(millions, percent, columns, panels):
    """The answers right in the course of the training. panels: title -> names of columns."""
    styles = [(figures.BLUE, "o"), (figures.ORANGE, "s"), (figures.GREEN, "D"), (figures.RED, "^")]
    axes = figures.axes(len(panels), width=3.05, height=3.1, sharey=True)
    for ax, (title, names) in zip(axes, panels.items()):
        for (shade, marker), name in zip(styles, names):
            ax.plot(millions, percent[:, columns.index(name)], color=shade, marker=marker, ms=4, label=name)
        ax.set(title=title, xlabel="tokens trained on (millions)", ylim=(0, 103))
        ax.legend(loc="lower right")
    axes[0].set_ylabel("answered right (%)")
    figures.show(
        "Three plots of the share of answers right against the tokens trained on: phone books, accounts, and "
        "meetings and stories, a line for each kind of question."
    )


def excess(means, costs, ranked):
    """What the best model pays by role, and what tiny/ pays on top."""
    left, right = figures.axes(2, width=4.5, height=0.24 * len(ranked) + 0.7, sharey=True)
    low = np.array([max(means[role][0], 0) for role in ranked])
    extra = np.array([means[role][1] - means[role][0] for role in ranked])
    error = [2 * (costs[role][:, 1] - costs[role][:, 0]).std() / len(costs[role]) ** 0.5 for role in ranked]
    left.barh(ranked, low, color="0.75", label="floor")
    left.barh(ranked, extra, left=low, color=figures.ORANGE, label="excess")
    left.set(xlabel="bits per token")
    left.legend(loc="lower right")
    right.barh(ranked, extra, xerr=error, color=figures.ORANGE, ecolor="0.3")
    right.axvline(0, color=figures.BLACK, lw=0.8)
    right.set(xlabel="excess, bits per token (± 2 std. errors)")
    figures.show(
        "Bars by role. Left: the floor in grey and tiny/'s excess in orange. Right: the excess alone with its "
        "uncertainty, smallest at the bottom."
    )
