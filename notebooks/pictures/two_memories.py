"""The pictures of a trained hybrid taken apart: with less of either memory, with one alone, and in long texts."""

import figures
import torch

TASK = dict(zip(("phone books", "accounts", "stories"), (figures.BLACK, figures.GREEN, figures.ORANGE)))


def caches(layer_types):
    """What is kept of a text by the layers of a model: a growing row, or one square."""
    axis = figures.axes(width=8.6, height=0.34 * len(layer_types) + 0.5)
    for i, kind in enumerate(layer_types):
        color = figures.KIND[kind]
        cells = range(40) if kind == "full_attention" else (0,)
        for cell in cells:
            axis.barh(-i, 0.8, left=cell, height=0.7, color=figures.tint(color, 0.5), edgecolor=color, linewidth=0.6)
        if kind == "linear_attention":
            axis.text(1.2, -i, "one state, however long the text", va="center", fontsize=9)
    axis.set_yticks(
        [-i for i in range(len(layer_types))], [f"{i} {figures.LABEL[k]}" for i, k in enumerate(layer_types)]
    )
    axis.set(xlabel="tokens read", xlim=(-0.3, 40.3))
    axis.spines.left.set_visible(False)
    axis.tick_params(axis="y", length=0)
    figures.show(
        "A row for each layer of tiny/. Attention layers have a cell for each token read, Gated DeltaNet layers have a "
        "single one, their state."
    )


def less(widths, found):
    """found: (part, task) -> shares (widths + all, documents)."""
    titles = {"attention": "attention sees the last W tokens", "state": "states cleared every W tokens"}
    for ax, part in zip(figures.axes(1, 2, width=4.4, height=3.2, sharey=True), titles):
        for (task, color), marker in zip(TASK.items(), "os^"):
            rows = found[part, task]
            error = rows.std(1) / rows.shape[1] ** 0.5
            look = {"fmt": marker + "-", "color": color, "capsize": 3, "label": task}
            ax.errorbar(range(len(rows)), rows.mean(1), error, **look)
        ax.set_xticks(range(len(widths) + 1), [*widths, "all"])
        ax.set(title=titles[part], xlabel="W, tokens", ylim=(-0.03, 1.03))
        if part == "attention":
            ax.set_ylabel("share of replies right")
        else:
            ax.legend(loc="lower right")
    figures.show(
        "The share of replies right against W, in two panels: attention that sees the last W tokens, and states that "
        "are cleared every W tokens. A line for phone books, one for accounts and one for stories."
    )


def alone(arms, moved):
    """moved: task -> (documents, arms, right or bits)."""
    panels = figures.axes(1, 2, width=4.5, height=3.6, sharey=True)
    for ax, measure in zip(panels, (0, 1)):
        for place, (task, color) in enumerate(TASK.items()):
            values = moved[task][:, :, measure]  # (documents, arms)
            error = values.std(0) / len(values) ** 0.5
            at = torch.arange(len(arms)) + 0.27 * (place - 1)
            ax.barh(at, values.mean(0), 0.25, xerr=error, color=color, label=task, error_kw={"linewidth": 1})
        ax.set(xlabel=("share of replies right", "bits an answer")[measure])
    panels[0].set_yticks(range(len(arms)), arms)
    panels[0].invert_yaxis()
    handles, labels = panels[1].get_legend_handles_labels()
    panels[1].figure.legend(handles, labels, loc="outside upper center", ncols=3)
    figures.show(
        "Bars for five ways to move memories: both, keys and values, states, neither, and keys and values with another "
        "document's states. Left the share of replies right, right the bits that an answer costs, for three tasks."
    )


def far(lengths, arms, found):
    """found (books, lengths, arms): whether the number was right."""
    ax = figures.axes(width=5.8, height=3.0)
    for arm, (name, color) in enumerate(zip(arms, (figures.BLACK, figures.DELTA, figures.ATTENTION))):
        x = found[:, :, arm]
        error = x.std(0) / len(x) ** 0.5
        places = torch.arange(len(lengths)) + 0.05 * (arm - 1)
        ax.errorbar(places, x.mean(0), error, fmt="o-", color=color, capsize=3, label=name)
    ax.set_xticks(range(len(lengths)), lengths)
    ax.set(xlabel="tokens in all, book to question", ylabel="share of numbers right", ylim=(-0.03, 1.06))
    ax.legend(loc="lower left")
    figures.show(
        "The share of numbers right against the length of the text, a line for all memories as they are, one for the "
        "states of the book alone, and one for its keys alone."
    )
