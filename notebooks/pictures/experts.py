"""The pictures of the mixture of experts: the router, the dispatch, loads, what experts are told by, and the cost."""

import figures
import torch
from matplotlib import pyplot

INFORMATION = {"identity": (figures.BLACK, "o"), "role": (figures.ORANGE, "s"), "next role": (figures.PINK, "^")}


def overview(experts=512, chosen=10):
    """All experts of a layer of the 80B, and those that one token uses."""
    axis = figures.axes(width=8.6, height=2.5)
    columns = 64
    used = torch.rand(experts, generator=torch.Generator().manual_seed(1)).topk(chosen).indices.tolist()
    for e in range(experts):
        color = figures.EXPERTS if e in used else figures.tint(figures.EXPERTS, 0.15)
        axis.add_patch(pyplot.Rectangle((e % columns, -(e // columns)), 0.8, 0.8, color=color))
    axis.add_patch(pyplot.Rectangle((columns + 1.5, -7), 2.8, 7.8, color=figures.tint(figures.EXPERTS, 0.6)))
    axis.text(columns + 2.9, -3.1, "shared expert", rotation=90, ha="center", va="center", fontsize=9)
    axis.text(0, 1.4, f"{experts} experts of one layer; a token uses {chosen} of them, and the shared one", fontsize=10)
    axis.set(xlim=(-0.5, columns + 5), ylim=(-7.5, 2.6))
    axis.axis("off")
    figures.show(
        "A field of 512 small squares, one for each expert of a layer, ten of them dark; next to it a tall box, the "
        "shared expert."
    )


def choices(probabilities, chosen, titles, E):
    """Bars of the router's probabilities for a few tokens, the chosen experts coloured."""
    panels = figures.axes(1, len(titles), width=3.1, height=2.5, sharey=True)
    for axis, p, picked, title in zip(panels, probabilities, chosen, titles):
        axis.bar(range(E), p, color=[figures.EXPERTS if e in picked else "#BBBBBB" for e in range(E)])
        axis.axhline(1 / E, color=figures.BLACK, linewidth=1, linestyle=":")
        axis.set(xlabel="expert", title=title, xticks=range(0, E, 4))
    panels[0].set(ylabel="probability (dotted: 1/E)")
    figures.show(
        "Three bar charts of the router's probabilities over the experts, one for each token. A few bars are "
        "coloured: the chosen experts."
    )


def dispatch(few, k, E):
    """Pairs of token and choice, as they come and sorted by expert; few (pairs,): the expert of each."""
    axis = figures.axes(width=9, height=1.7)
    for row, pairs in enumerate((torch.arange(len(few)), few.argsort(stable=True))):
        colours = pyplot.get_cmap(figures.SEQUENTIAL)(few[pairs].numpy() / (E - 1))
        axis.bar(range(len(few)), 0.8, bottom=-row - 0.4, width=1.0, color=colours, edgecolor="white", linewidth=0.5)
        for i, pair in enumerate(pairs.tolist()):
            color = "white" if few[pair] < E * 0.55 else "black"
            axis.text(i, -row, pair // k, ha="center", va="center", fontsize=9, color=color)
    for end in few.bincount(minlength=E).cumsum(0)[:-1].tolist():
        axis.plot([end - 0.5, end - 0.5], [-1.48, -0.52], color=figures.BLACK, linewidth=1.5)  # the next expert's piece
    axis.set(yticks=[0, -1], yticklabels=["as they come", "sorted"], xlim=(-0.5, len(few) - 0.5))
    axis.set(xlabel="pair of token and choice")
    bar = pyplot.cm.ScalarMappable(pyplot.Normalize(0, E - 1), figures.SEQUENTIAL)
    axis.figure.colorbar(bar, ax=axis, label="expert", ticks=[0, E - 1], pad=0.01)
    figures.show(
        "Two rows of numbered cells, coloured by expert. Above, in the order of the tokens, the colours are mixed; "
        "below, sorted by expert, each colour is one piece."
    )


def by_role(table, rows, xlabel, label, alt, most=1.0, xticks=None):
    """A heat map with a row for each role."""
    axis = figures.axes(width=6.4, height=0.26 * len(rows) + 0.9)
    image = axis.imshow(table, vmin=0, vmax=most, aspect="auto", interpolation="nearest")
    axis.set_yticks(range(len(rows)), rows)
    axis.set(xlabel=xlabel, ylabel="role (tokens)", xticks=range(table.shape[1]) if xticks is None else xticks)
    axis.figure.colorbar(image, ax=axis, label=label)
    figures.show(alt)


def loads(load):
    """load (layers, experts): each layer's experts, sorted, as lines; and those of all layers with the same number."""
    L, E = load.shape
    axis = figures.axes(width=6.4, height=3.2)
    ranked = load.sort(-1, descending=True).values
    for layer in ranked:
        axis.plot(range(1, E + 1), layer, color=figures.EXPERTS, linewidth=0.9, alpha=0.7)
    axis.plot([], [], color=figures.EXPERTS, label=f"a layer ({L} lines)")
    pooled = load.mean(0).sort(descending=True).values
    axis.plot(range(1, E + 1), pooled, color=figures.BLACK, linewidth=2, label="pooled by number")
    axis.axhline(1, color="gray", linewidth=1, linestyle=":", label="even")
    axis.set(xlabel="expert, by rank", ylabel="load (1: even)", ylim=(0, None))
    axis.legend()
    figures.show(
        "Loads of the experts by rank, the busiest first: a line for each layer, falling steeply, and a thick line for "
        "the experts of all layers counted together by number, which is nearly level."
    )


def balancing(load, gradient, paths):
    """The gradient of each expert's logit against its load, and loads step by step."""
    left, right = figures.axes(1, 2, width=4.2, height=2.8)
    left.axhline(0, color=figures.BLACK, linewidth=1)
    left.plot(load, gradient, "o", color=figures.EXPERTS)
    left.set(xlabel="load of the expert (1: even)", ylabel="gradient of its logit, summed")
    right.plot(paths, color=figures.EXPERTS, linewidth=1)
    right.axhline(1, color=figures.BLACK, linewidth=1, linestyle=":")
    right.set(xlabel="step", ylabel="load (a line for each expert)", ylim=(0, None))
    figures.show(
        "Left: the gradient of each expert's logit against its load, negative for low loads and positive for high "
        "ones. Right: the loads of all experts, a line each, converging towards 1."
    )


def three_ways(steps, curves, units):
    """curves: kind -> measure -> (seeds, steps)."""
    styles = {"none": (figures.RED, "-"), "pooled": (figures.ORANGE, "--"), "layer": (figures.BLUE, "-.")}
    grid = figures.axes(2, 2, width=4.0, height=2.4)
    for axis, (name, label) in zip(grid.flat, units.items()):
        for kind, (color, style) in styles.items():
            seeds = curves[kind][name].double()  # (seeds, steps)
            axis.fill_between(steps, seeds.amin(0), seeds.amax(0), color=color, alpha=0.2, linewidth=0)
            axis.plot(steps, seeds.mean(0), style, color=color, label=kind)
        axis.set(xlabel="step", ylabel=label, title=name, ylim=(0, None))
    grid[0, 1].legend(loc="lower right")
    figures.show(
        "Four plots over the steps of training, with a line and a band for no loss, the pooled loss and the loss by "
        "layer. Only the loss by layer makes the layers even; the pooled one makes the pool even."
    )


def information(most, told, noise, beyond, spread):
    """Bits about an expert, by layer: what each thing reveals, and what it adds beyond identity."""
    left, right = figures.axes(1, 2, width=4.2, height=3.0)
    layers = range(len(most))
    left.plot(layers, most, color="gray", linestyle=":", label="the most possible")
    for name, (color, marker) in INFORMATION.items():
        left.errorbar(layers, told[name], noise[name], marker=marker, color=color, label=name)
        if name in beyond:
            right.errorbar(layers, beyond[name], spread[name], marker=marker, color=color, label=name)
    left.set(xlabel="layer", ylabel="bits about an expert", ylim=(0, 1.3 * max(most)))
    right.set(xlabel="layer", ylabel="bits beyond the token's identity", ylim=(0, None))
    left.legend(ncol=2, loc="upper center")
    right.legend()
    figures.show(
        "Left: bits about an expert by layer, for the token's identity, its role and the next role, below a dotted "
        "line of the most possible. Right: what role and next role add beyond identity, on a finer scale."
    )


def experts_read(share, marked, T_values, formula, anywhere, neighbours, E):
    """Experts' bytes of the 80B against tokens together, and counts in tiny/."""
    left, right = figures.axes(1, 2, width=4.3, height=2.9)
    n = [2**i for i in range(12)]
    left.semilogx(n, [share(i) for i in n], "o-", base=2, markersize=4, color=figures.EXPERTS)
    for i, (name, mark) in marked.items():
        left.plot(i, share(i), mark, markersize=9, color=figures.BLACK, label=f"{name}: {share(i):.0f} %")
    left.legend(loc="upper left")
    left.set(xlabel="tokens together, T", ylabel="experts' bytes read (%, the 80B)", ylim=(0, 105))
    right.plot(T_values, formula, ":", color=figures.BLACK, label="even choices (formula)")
    right.plot(T_values, anywhere, "s--", color=figures.ORANGE, label="tokens from anywhere")
    right.plot(T_values, neighbours, "o-", color=figures.EXPERTS, label="tokens that follow each other")
    right.set(xlabel="tokens together, T", ylabel=f"different experts of {E} (tiny/)", ylim=(0, E + 1))
    right.legend(loc="lower right")
    figures.show(
        "Left: the share of the 80B's expert bytes read against the tokens taken together, from 2 % for one token to "
        "nearly all for 256. Right: different experts in tiny/; neighbours touch fewer than tokens from anywhere."
    )


def token_times(n, times):
    """times: name -> microseconds a token and layer at each n."""
    axis = figures.axes(width=7, height=3.3)
    looks = ((figures.BLACK, ":"), ("gray", "--"), (figures.EXPERTS, "-"))
    for (name, found), (color, style) in zip(times.items(), looks):
        axis.loglog(n, found, style, color=color, label=name)
    axis.set(xlabel="tokens together, T", ylabel="time of a token, at least (µs a layer)", title="bfloat16, one layer")
    axis.legend()
    figures.show(
        "The least time of a token against the tokens taken together, on logarithmic scales. The experts' line starts "
        "on that of a small dense layer, stays level while both dense lines fall, and joins the small one again."
    )
