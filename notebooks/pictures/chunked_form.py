"""The pictures of the chunked form: its matrices, and what it costs in operations, time and digits."""

import figures
import torch
from matplotlib import pyplot

LOOP, CHUNKED = figures.ORANGE, figures.DELTA


def loop_and_chunks(tokens=32, C=8):
    """How many steps follow each other: one a token, or one a chunk."""
    axis = figures.axes(width=8.6, height=1.7)
    for row, (size, color) in enumerate(((1, LOOP), (C, CHUNKED))):
        for start in range(0, tokens, size):
            look = {"facecolor": figures.tint(color, 0.4), "edgecolor": color}
            axis.add_patch(pyplot.Rectangle((start + 0.06, -row), size - 0.12, 0.62, **look))
            if size > 1:
                label = f"{size} tokens at once"
                axis.text(start + size / 2, 0.31 - row, label, ha="center", va="center", fontsize=9)
    axis.set(xlim=(0, tokens), ylim=(-1.15, 0.85), xlabel="token of the text")
    axis.set_yticks([0.31, -0.69], [f"recurrence:\n{tokens} steps", f"chunks of {C}:\n{tokens // C} steps"])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figures.show(
        "Two rows over the tokens of a text. Above, the recurrence: a small box for each token, one step after the "
        "other. Below, the chunked form: a wide box for each chunk of tokens, and few steps."
    )


def four_matrices(matrices):
    """The matrices (C, C) of one chunk, with their numbers."""
    axes = figures.axes(len(matrices), width=2.35, height=2.7)
    for ax, (name, matrix) in zip(axes, matrices.items()):
        ax.imshow(matrix, cmap=figures.DIVERGING, vmin=-1.5, vmax=1.5)
        C = len(matrix)
        for i in range(C) if C <= 5 else ():  # more numbers than that do not fit
            for j in range(i + 1):
                color = "white" if abs(matrix[i, j]) > 0.8 else "black"
                ax.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", fontsize=9, color=color)
        ax.set(title=name, xticks=range(C), yticks=range(C), xlabel="token that wrote, j")
        ax.spines[["top", "right"]].set_visible(True)
    axes[0].set_ylabel("token, i")
    figures.show(
        "Heat maps of four lower triangular matrices of one chunk: decay, A, M and inner. The diagonal of A is zero, "
        "and M has beta on its diagonal and mostly negative numbers below."
    )


def stripes(matrices):
    """M (C, C) for several kinds of keys."""
    axes = figures.axes(len(matrices), width=2.9, height=3.1)
    for ax, (name, matrix) in zip(axes, matrices.items()):
        image = ax.imshow(matrix, cmap=figures.DIVERGING, vmin=-1, vmax=1)
        ax.set(title=name, xlabel="token that wrote, j")
    axes[0].set_ylabel("token, i")
    axes[0].figure.colorbar(image, ax=list(axes), label="M", fraction=0.02)
    figures.show(
        "Heat maps of M for three kinds of keys. One key again and again: a stripe right below the diagonal. Eight "
        "keys in turn: a stripe eight tokens below. Random keys: faint noise everywhere below."
    )


def costs(sizes, operations, loop, modelled, fastest, spread, one_by_one):
    """Operations, modelled cost and measured time against the chunk size."""
    left, centre, right = figures.axes(1, 3, width=3.1, height=3.2)
    left.loglog(sizes, operations / 1e3, "o-", markersize=4, color=CHUNKED, label="chunked")
    circle = {"markersize": 10, "fillstyle": "none"}
    left.plot(sizes[operations.argmin()], operations.min() / 1e3, "o", color=CHUNKED, **circle)
    left.axhline(loop / 1e3, color=LOOP, label="recurrence")
    left.set(ylabel="thousand operations a token and head")
    left.set_yticks([100, 200, 500], [100, 200, 500])
    for (R, cost), color in zip(modelled.items(), figures.COLORS[2:]):
        cost = cost / cost[0]
        centre.loglog(sizes, cost, "o-", markersize=4, color=color, label=f"R = {R}")
        centre.plot(sizes[cost.argmin()], cost.min(), "o", color=color, **circle)
    centre.set(ylabel="modelled cost a token, C = 1: 1")
    right.errorbar(sizes, fastest, [0 * spread, spread], fmt="o-", markersize=4, color=CHUNKED, label="chunked")
    right.axhspan(one_by_one[0], one_by_one.median(), color=LOOP, alpha=0.4, label="recurrence")
    right.set(xscale="log", yscale="log", ylabel="seconds for 1,024 tokens")
    right.set_ylim(bottom=fastest.min() / 3)  # room for the legend
    for ax, place in ((left, "upper left"), (centre, "lower left"), (right, "lower left")):
        ax.set_xlabel("chunk size C, tokens")
        ax.legend(loc=place)
        ax.set_xticks(sizes[::3], sizes[::3])
        ax.tick_params(axis="x", which="minor", bottom=False)
    left.minorticks_off()
    figures.show(
        "Three logarithmic plots against the chunk size. Operations grow with it. The modelled cost has a minimum "
        "that moves to larger chunks as R grows. The measured time falls and rises again, mostly below the recurrence."
    )


def by_length(lengths, times):
    """times: name -> (fastest, median) milliseconds at each length."""
    ax = figures.axes(width=6.5, height=3.4)
    for (name, (best, median)), color in zip(times.items(), (LOOP, CHUNKED)):
        ax.errorbar(lengths, best, [0 * best, median - best], fmt="o-", color=color, label=name, capsize=2)
    ax.set(xscale="log", yscale="log", xlabel="tokens in one call, T", ylabel="milliseconds")
    ax.set_xticks(lengths, lengths)
    ax.minorticks_off()
    ax.legend()
    figures.show(
        "Milliseconds against the number of tokens, on logarithmic scales, for the recurrence and for the chunked "
        "form. The recurrence is faster for one token, the chunked form for many."
    )


def digits(lengths, found):
    """found: (form, dtype) -> relative errors (lengths, seeds)."""
    ax = figures.axes(width=7, height=3.6)
    styles = {torch.float64: ":", torch.float32: "-", torch.bfloat16: "--"}
    for (name, dtype), rows in found.items():
        color = LOOP if name == "recurrence" else CHUNKED
        shift = 1.0 if name == "chunked" else 1.06  # side by side where they would cover each other
        look = {"fmt": "o", "linestyle": styles[dtype], "color": color}
        label = f"{name}, {str(dtype).removeprefix('torch.')}"
        ax.errorbar([T * shift for T in lengths], rows.mean(1), rows.std(1), label=label, **look)
    ax.set(xscale="log", yscale="log", xlabel="tokens, T", ylabel="relative error of the outputs", ylim=(1e-17, 1))
    ax.set_xticks(lengths, lengths)
    ax.minorticks_off()
    ax.legend(ncols=2, loc="center", bbox_to_anchor=(0.5, 0.38))
    figures.show(
        "Relative errors on a logarithmic scale against the number of tokens, for both forms in bfloat16 and float32 "
        "and for the chunked one in float64. In each dtype the two forms lie close together."
    )


def by_chunk_size(sizes, found):
    """found: mean cosine of two keys -> errors of the chunked form (sizes, seeds), and of the recurrence (seeds,)."""
    ax = figures.axes(width=7, height=3.4)
    for (cosine, (rows, plain)), color in zip(found.items(), (figures.BLUE, figures.GREEN, figures.RED)):
        look = {"fmt": "o-", "color": color, "label": f"chunked, cosine {cosine}"}
        ax.errorbar(sizes, rows.mean(1) * 1e7, rows.std(1) * 1e7, **look)
        ax.axhline(plain.mean() * 1e7, color=color, linestyle="--", linewidth=1)
    ax.plot([], [], "--", color="gray", linewidth=1, label="recurrence, same colours")
    ax.set(xscale="log", xlabel="chunk size C, tokens", ylabel="relative error in float32, 1e-7")
    ax.set_ylim(0)
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()
    ax.legend()
    figures.show(
        "Errors in float32 against the chunk size for three similarities of the keys, each with a dashed line for the "
        "recurrence. The more alike the keys and the larger the chunk, the larger the error, within a few times."
    )
