"""The pictures of what a linear probe reads from states."""

import math

import figures
import torch

LOOK = {"trained": figures.DELTA, "untrained": figures.ORANGE, "shuffled labels": "gray"}


def states_after(sentences, states):
    """One head's state (K, V) after each sentence."""
    most = torch.stack(states).abs().quantile(0.995)  # a few numbers are larger, and would leave the others pale
    axes = figures.axes(1, len(states), width=2.25, height=2.6, sharey=True)
    for ax, sentence, state in zip(axes, sentences, states):
        image = ax.imshow(state, cmap=figures.DIVERGING, vmin=-most, vmax=most)
        ax.set_title(sentence.strip().replace(" to ", "\nto ").replace(" in ", "\nin "), fontsize=9)
        ax.set(xlabel="value dim", xticks=[], yticks=[])
    axes[0].set_ylabel("key dim")
    axes[0].figure.colorbar(image, ax=list(axes), fraction=0.03, extend="both")
    figures.show(
        "Heat maps of one head's state after each of four sentences: patterns of numbers without a visible meaning."
    )


def by_layer(layers, scores):
    """scores: what the probe was given -> share of right answers, (layers, folds)."""
    ax = figures.axes(width=5.4, height=3)
    for label, found in scores.items():
        look = {"fmt": "o-", "color": LOOK[label], "label": label, "capsize": 3}
        ax.errorbar(range(len(layers)), found.mean(1), found.std(1), **look)
    ax.set_xticks(range(len(layers)), layers)
    ax.set(xlabel="layer whose state is read", ylabel="share of right answers", ylim=(0, 1.03))
    ax.legend()
    figures.show(
        "The share of right answers of a linear probe against the layer, for trained states, untrained states and "
        "shuffled labels, which stay near chance."
    )


def by_age(shares, best):
    """shares: what the probe was given -> share right, (ages, folds); best: the layer of each model."""
    ax = figures.axes(width=5.4, height=3)
    for name, share in shares.items():
        label = name + (f", layer {best[name]}" if name in best else "")
        ax.errorbar(range(len(share)), share.mean(1), share.std(1), fmt="o-", color=LOOK[name], capsize=3, label=label)
    ax.set_xticks(range(len(share)), [*range(len(share) - 1), f"{len(share) - 1} or more"])
    ax.set(xlabel="sentences since the thing was last moved", ylabel="share of right answers", ylim=(0, 1.03))
    ax.legend()
    figures.show(
        "The share of right answers against the number of sentences since the thing was last moved, for the trained "
        "model, the untrained one and shuffled labels."
    )


def account(belief, names, answers, is_at, lines=2):
    """The probe's belief (tokens, answers) at each token, and the truth, over several lines."""
    each = -(-len(names) // lines)
    axes = figures.axes(lines, 1, width=9, height=2.9)
    truth = [answers.index(where) if where else math.nan for where in is_at]
    for line, ax in enumerate(axes):
        part = slice(line * each, (line + 1) * each)
        shown = belief[part].T.clamp(0, 1)
        image = ax.imshow(shown, aspect="auto", vmin=0, vmax=1, cmap=figures.SEQUENTIAL)
        ax.step(range(shown.shape[1]), truth[part], where="mid", color=figures.RED, linewidth=2)
        ax.set_xticks(range(shown.shape[1]), names[part], rotation=90)
        ax.set_yticks(range(len(answers)), answers)
        ax.set(ylabel="where the ring is", xlim=(-0.5, each - 0.5))
    axes[-1].set_xlabel("token just read (red line: the truth)")
    axes[0].figure.colorbar(image, ax=list(axes), label="belief of the probe", fraction=0.02)
    figures.show(
        "Heat maps over the tokens of an account: the probe's belief in each of the possible holders and places of "
        "the ring, with a red line for the truth."
    )
