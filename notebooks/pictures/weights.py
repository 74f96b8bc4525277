"""The pictures of real weights: a file's parts, which experts are in memory, two layouts, FP8, and speed."""

import figures
from matplotlib import pyplot

PART = dict(zip("qkvzg", (figures.SKY, figures.ORANGE, figures.GREEN, figures.PINK, figures.YELLOW)))


def read_of_all(parts, read):
    """parts: name -> GB in the files; read: name -> GB read for a token. Areas to scale."""
    axis = figures.axes(width=8.6, height=1.6)
    total, x = sum(parts.values()), 0.0
    colors = {"routed experts": figures.EXPERTS, "all else": figures.PLAIN}
    for name, size in parts.items():
        axis.barh(0, size, left=x, height=0.9, color=figures.tint(colors[name], 0.3))
        axis.barh(0, read[name], left=x, height=0.9, color=colors[name])
        if size > total / 5:
            axis.text(x + size / 2, 0, f"{name}, {size:.0f} GB", ha="center", va="center")
        else:
            axis.text(x + size / 2, 0.52, f"{name}, {size:.0f} GB", ha="right", va="bottom")
        x += size
    axis.set(yticks=[], ylim=(-0.5, 0.8), xlabel=f"GB; dark: what one token reads, {sum(read.values()):.1f} GB")
    axis.spines.left.set_visible(False)
    figures.show(
        "A bar of the checkpoint's gigabytes. Nearly all are routed experts, of which a token reads a thin slice; of "
        "the small rest it reads about half."
    )


def file(parts):
    """parts: (name, first byte, one past the last) of a safetensors file."""
    axis = figures.axes(width=8.6, height=1.4)
    colors = (figures.SKY, figures.ORANGE, figures.BLUE, figures.GREEN, figures.PINK)
    for (name, start, end), color in zip(parts, colors):
        axis.barh(0, end - start, left=start, color=color, edgecolor="white", height=0.8)
        axis.text((start + end) / 2, 0.5, name, ha="center", va="bottom")
    axis.set(yticks=[], ylim=(-0.5, 1), xlabel="byte in the file")
    axis.spines.left.set_visible(False)
    figures.show(
        "A bar of the bytes of a small safetensors file: 8 bytes of length, the header, and the tensors a, b and c "
        "one after the other."
    )


def in_memory(share, columns=32):
    """share (E,): of each expert's pages, how many are in memory."""
    axis = figures.axes(width=7.4, height=3.4)
    image = axis.imshow(share.view(-1, min(columns, len(share))), vmin=0, vmax=1, aspect="auto")
    axis.set(xlabel=f"expert, modulo {columns}", ylabel=f"expert // {columns}")
    pyplot.colorbar(image, label="share of its pages in memory", ax=axis)
    figures.show(
        "A grid of all experts of a layer, coloured by the share of their pages in memory: ten are bright, the "
        "others dark."
    )


def strips(rows_by_name):
    """A cell for each row of a matrix, labelled and coloured by what it belongs to."""
    axis = figures.axes(width=8.6, height=0.7 * len(rows_by_name) + 0.4)
    longest = max(map(len, rows_by_name.values()))
    for y, rows in enumerate(rows_by_name.values()):
        for x, row in enumerate(rows):
            axis.add_patch(pyplot.Rectangle((x, -y), 1, 0.7, facecolor=PART[row[0]], edgecolor="white"))
            if longest <= 40:  # more labels do not fit
                axis.text(x + 0.47, 0.35 - y, row, ha="center", va="center", size=9)
    axis.set_yticks([0.35 - y for y in range(len(rows_by_name))], rows_by_name)
    axis.set(xlim=(0, longest), ylim=(0.9 - len(rows_by_name), 0.8), xlabel="row of the matrix")
    axis.spines.left.set_visible(False)
    figures.show(
        "Four strips of coloured cells, a cell for each row: in_proj_qkvz as stored, by key head, and as one might "
        "think; q_proj as stored, query and gate in each head, and as one might think."
    )


def rounding(x, error):
    """The relative error of E4M3 over its range."""
    axis = figures.axes(width=7.4, height=2.8)
    axis.plot(x, error, color=figures.BLUE, lw=0.8)
    axis.axvline(2**-6, color="#888888", ls=":")
    axis.text(2**-5.8, 0.7, "smallest normal number, $2^{-6}$", transform=axis.get_xaxis_transform())
    axis.set(xscale="log", xlabel="number", ylabel="relative error of E4M3")
    axis.set_xticks([2.0**i for i in range(-12, 9, 4)], [f"$2^{{{i}}}$" for i in range(-12, 9, 4)])
    axis.minorticks_off()
    figures.show(
        "The relative error of E4M3 against the number: level saw teeth below a sixteenth down to the smallest "
        "normal number, then rising to 1."
    )


def scales(sizes, found):
    """found: way to quantise -> relative errors (block rows, block columns)."""
    curves, left, right = figures.axes(3, width=3.05, height=3.2)
    looks = (("s-", figures.BLUE), ("o-", figures.RED), ("^--", figures.BLACK))
    for (name, errors), (mark, color) in zip(found.items(), looks):
        curves.plot(sizes, errors.mean(1), mark, color=color, label=name)
    for axis, (name, errors) in zip((left, right), [*found.items()][1:]):  # the first is the same everywhere
        image = axis.imshow(errors, vmin=0, vmax=1)
        for row, mean in enumerate(errors.mean(1).tolist()):  # a number, since small ones look alike
            color = "white" if mean < 0.5 else "black"
            axis.text((errors.shape[1] - 1) / 2, row, f"{mean:.1%}", ha="center", va="center", fontsize=9, color=color)
        axis.set(title=name, xlabel="block column", ylabel="block row")
    pyplot.colorbar(image, ax=right, label="relative error of the block")
    curves.set(xscale="log", xlabel="size of the block's numbers,\nrelative to the largest", ylabel="relative error")
    curves.set_xlim(curves.get_xlim()[::-1])  # as the rows, the largest first
    curves.legend(loc="lower center", bbox_to_anchor=(0.5, 1))
    figures.show(
        "Left: relative errors against the size of a block's numbers; with a scale per block the error is level, "
        "with one scale it soon rises to 1. Right: both formats with one scale, block by block, with each row's mean."
    )


def speed(memory, curves, fits):
    """curves: kind -> disk's GB/s -> tokens a second at each memory; fits: kind -> GB at which all is in memory."""
    panels = figures.axes(2, width=4.4, height=3.3, sharey=True)
    for axis, (kind, lines) in zip(panels, curves.items()):
        for (disk, numbers), color in zip(lines.items(), (figures.RED, figures.ORANGE, figures.BLUE)):
            axis.plot(memory, numbers, color=color, label=f"disk {disk} GB/s")
        axis.axvline(fits[kind], color="#888888", ls=":")
        axis.text(fits[kind] - 2, 0.12, "all fits", rotation=90, ha="right", va="bottom", color="#555555")
        axis.set(title=kind, xlabel="memory, GB", yscale="log")
    panels[0].set(ylabel="tokens a second\n(memory at 50 GB/s)")
    panels[0].set_yticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
    panels[0].minorticks_off()
    panels[0].legend()
    figures.show(
        "Tokens a second against memory, on a logarithmic scale, for three disks, in bfloat16 and in FP8. The curves "
        "rise slowly and shoot up where everything fits into memory."
    )
