"""The pictures of the tour: the whole model, its parameters, what each layer adds, and what a token costs."""

import figures
import torch
from matplotlib import pyplot

COLOR = {**figures.KIND, "MoE": figures.EXPERTS, "other": "#999999"}
PART = {
    "Gated DeltaNet": figures.DELTA,
    "gated attention": figures.ATTENTION,
    "routed experts": figures.EXPERTS,
    "shared experts": figures.EXPERTS,
    "routers": figures.EXPERTS,
}


def box(axis, x, y, width, height, kind="other", text="", size=10, **options):
    """A coloured rectangle with its lower left corner at (x, y), and a text in the middle."""
    look = {"facecolor": figures.tint(COLOR[kind], 0.4), "edgecolor": COLOR[kind], "lw": 1}
    axis.add_patch(pyplot.Rectangle((x, y), width, height, **look))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", size=size, **options)


def arrow(axis, *points):
    """A line through points, below all boxes, with an arrow head at its end."""
    axis.plot(*zip(*points), color="#444444", lw=1.2, zorder=0)
    style = {"arrowstyle": "-|>", "color": "#444444", "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", points[-1], points[-2], arrowprops=style, zorder=0)


def stack(axis, config):
    """All layers, in a row."""
    n, step = config.num_hidden_layers, 84 / config.num_hidden_layers
    axis.text(55, 64, f"{n} layers, {config.vocab_size:,} tokens, {config.hidden_size:,} numbers a token", ha="center")
    arrow(axis, (2, 58), (108, 58))  # the residual stream
    box(axis, 4, 53, 5, 10, text="embedding", size=9, rotation=90)
    box(axis, 97, 53, 3, 10, text="norm", size=9, rotation=90)
    box(axis, 101.5, 53, 4, 10, text="lm_head", size=9, rotation=90)
    axis.text(9.5, 52, "layer", ha="center", va="top", size=9)
    numbered = [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
    numbered = numbered[:: -(-len(numbered) // 16)]  # no more than fit
    for i, kind in enumerate(config.layer_types):
        box(axis, 11 + i * step, 54, 0.75 * step, 8, kind)
        if i in numbered:
            axis.text(11 + (i + 0.4) * step, 52, str(i), ha="center", va="top", size=9)
    middle = 11 + (n // 2 - 0.6) * step  # one layer, enlarged below
    axis.fill([middle - 1, middle + 1, 106, 4], [49, 49, 44, 44], color="#E4E4E4", lw=0, zorder=-2)


def layer(axis):
    """The inside of one layer."""
    axis.add_patch(pyplot.Rectangle((4, 21), 102, 23, facecolor="#F4F4F4", edgecolor="#E4E4E4", zorder=-1))
    arrow(axis, (2, 30), (108, 30))
    for x in (12, 62):
        box(axis, x, 27, 9, 6, text="norm")
    box(axis, 26, 30, 19, 5.5, "linear_attention", "Gated DeltaNet")
    box(axis, 26, 24.5, 19, 5.5, "full_attention", "gated attention")
    axis.text(35.5, 22.7, "one of the two", ha="center", va="center", size=9)
    box(axis, 76, 26, 16, 8, "MoE", "MoE")
    for start, end in ((8, 50), (58, 97)):
        arrow(axis, (start, 30), (start, 39), (end, 39), (end, 32))
        axis.plot([end], [30], "o", ms=17, mfc="white", mec="#444444")
        axis.text(end, 30, "+", ha="center", va="center", size=13)
        axis.text((start + end) / 2, 40, "residual: the stream itself goes round", ha="center", size=9)


def legend(axis, c):
    """What the colours mean."""
    texts = {
        "linear_attention": f"Gated DeltaNet\n{c.linear_num_value_heads} states of {c.linear_key_head_dim} x "
        f"{c.linear_value_head_dim}\nconvolution over {c.linear_conv_kernel_dim} tokens\nconstant memory",
        "full_attention": f"gated attention\n{c.num_attention_heads} query heads on {c.num_key_value_heads} key heads\n"
        f"of {c.head_dim} numbers\nmemory grows with each token",
        "MoE": f"mixture of experts\nrouter: {c.num_experts_per_tok} of {c.num_experts} experts\n"
        f"and one shared expert,\neach {c.moe_intermediate_size} wide inside",
    }
    for i, (kind, text) in enumerate(texts.items()):
        box(axis, 4 + 35 * i, 2, 32, 14, kind, text)


def model(config):
    """The row of all layers, one layer, and the legend."""
    axis = figures.axes(width=9.4, height=5.8)
    axis.set(xlim=(0, 110), ylim=(0, 66))
    axis.axis("off")
    stack(axis, config)
    layer(axis)
    legend(axis, config)
    figures.show(
        "Top: a row of all layers between the embedding and the final norm and lm_head, coloured by kind. Middle: one "
        "layer, a norm and a mixer, then a norm and a mixture of experts, each added to the residual stream that goes "
        "round it. Bottom: what the three colours mean."
    )


def parameters(stored, used):
    """Bars of the parameters in the checkpoint, and of those that a token uses."""
    order = sorted(stored, key=stored.get)
    left, right = figures.axes(2, width=4.5, height=3.4, sharey=True)
    for axis, numbers in ((left, stored), (right, used)):
        bars = axis.barh(order, [numbers[part] / 1e9 for part in order])
        for bar, part in zip(bars, order):
            bar.set_color(PART.get(part, "#999999"))
        small = {part: "0" if numbers[part] == 0 else "< 0.001" for part in order if numbers[part] < 1e6}
        axis.bar_label(bars, [small.get(part, f"{numbers[part] / 1e9:.3f}") for part in order], padding=3, size=9)
        axis.margins(x=0.2)
    left.set(xlabel="parameters stored, billions", title="in the checkpoint")
    right.set(xlabel="parameters used by a token, billions", title="used by a token")
    figures.show(
        "Two bar charts of parameters by part. In the checkpoint the routed experts dwarf all else. Used by a token, "
        "on a finer scale, the parts are of similar size."
    )


def updates(layer_types, ratio):
    """The length of each layer's updates, relative to the stream."""
    axis = figures.axes(width=6.8, height=3.0)
    axis.axhline(1, color="#BBBBBB", lw=1)
    for kind, label in figures.LABEL.items():
        chosen = [i for i, other in enumerate(layer_types) if other == kind]
        heights = [ratio["mixer"][i] for i in chosen]
        axis.plot([i - 0.1 for i in chosen], heights, "s", ms=9, color=COLOR[kind], label=label)
    places = range(len(layer_types))
    axis.plot([i + 0.1 for i in places], ratio["MoE"], "o", ms=9, color=COLOR["MoE"], label="mixture of experts")
    axis.set(xlabel="layer", ylabel="length of update /\nlength of stream", yscale="log", xticks=places)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figures.show(
        "For each layer, a square for the mixer's update and a circle for that of the experts, on a logarithmic scale "
        "of the update's length relative to the stream's. A grey line marks 1."
    )


def lens_grid(probabilities, labels, right, read, rows):
    """A row for each layer, a column for each position: the likeliest token, framed where it comes next."""
    axis = figures.axes(width=9.4, height=4.6)
    image = axis.imshow(probabilities, vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(labels):
        for x, label in enumerate(row):
            color = "black" if probabilities[y][x] > 0.5 else "white"
            axis.text(x, y, label, ha="center", va="center", size=9, color=color)
            if right[y][x]:
                frame = {"fill": False, "edgecolor": figures.RED, "lw": 2}
                axis.add_patch(pyplot.Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, **frame))
    axis.set_xticks(range(len(read)), read)
    axis.set_yticks(range(len(rows)), rows)
    axis.xaxis.tick_top()
    axis.set(xlabel="token read", ylabel="stream after layer")
    axis.xaxis.set_label_position("top")
    pyplot.colorbar(image, label="probability of the token shown", ax=axis)
    figures.show(
        "A grid of tokens: columns are the last positions of the text, rows the embedding and the layers. Each cell "
        "has the likeliest next token and is coloured by its probability. A red frame marks the token that comes next."
    )


def right_by_layer(found, layer_types):
    """The probability of the right token after each layer, median and quartiles of the books."""
    axis = figures.axes(width=6.8, height=3.2)
    rows = {"the blank before them": (found[..., 0], figures.ORANGE), "digits": (found[..., 1:].mean(-1), "black")}
    for label, (p, color) in rows.items():
        low, mid, high = p.quantile(torch.tensor([0.25, 0.5, 0.75]), dim=0)
        axis.plot(mid, "o-", color=color, label=label)
        axis.fill_between(range(len(mid)), low, high, color=color, alpha=0.2, lw=0)
    short = {"linear_attention": "GDN", "full_attention": "attn"}
    ticks = ["emb.", *(f"{i}\n{short[kind]}" for i, kind in enumerate(layer_types))]
    axis.set_xticks(range(len(ticks)), ticks)
    axis.set(xlabel="stream after layer (GDN: Gated DeltaNet)", ylabel="probability of\nthe right token")
    axis.set_ylim(-0.03, 1.03)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figures.show(
        "Two lines over the layers, with bands from quartile to quartile: the probability of the right token for the "
        "blank before the digits, and for the digits."
    )


def costs(curves, crossings):
    """Memory, reading and arithmetic against the context. curves: name -> three lists over the contexts."""
    n = [2**i for i in range(8, 21)]
    panels = figures.axes(3, width=3.1, height=3.2)
    colors = dict(zip(curves, (figures.ATTENTION, figures.HYBRID)))  # a dense transformer, and a hybrid
    for name, measures in curves.items():
        for axis, measure in zip(panels, measures):
            axis.plot(n, [measure(i) for i in n], color=colors[name], label=name)
        panels[2].plot(crossings[name], measures[2](crossings[name]), "o", color=colors[name])
    titles = ("memory of one text", "reading, one text", "arithmetic")
    labels = ("cache, GiB", "bytes for a token, GB", "GFLOPs for a token")
    for axis, title, label in zip(panels, titles, labels):
        axis.set(xscale="log", yscale="log", xlabel="context, tokens", title=title, ylabel=label)
        axis.set_xticks([2**8, 2**12, 2**16, 2**20], ["256", "4K", "64K", "1M"])
        axis.minorticks_off()
    panels[0].legend()
    figures.show(
        "Three logarithmic plots against the context, each with a line for Qwen3-32B and one for Qwen3-Next: the "
        "cache, the bytes read for a token, and its FLOPs. All lines are flat at first and rise later."
    )
