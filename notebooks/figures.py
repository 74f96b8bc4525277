"""What the notebooks' pictures share: colours, sizes, and how a picture is shown.

`figures.setup()` sets matplotlib up, `figures.axes` makes a figure, and `figures.show` shows it with a text for those
who can't see it. BLUE, ORANGE ... are the colours of Okabe and Ito (2008), which colour-blind readers tell apart.
DELTA, ATTENTION ... are the colours of the kinds of layer, here as in the README and on the page of watch.py.
`figures.expect` says whether a finding about trained weights came out.
"""

import base64
import io
import re
import warnings
from pathlib import Path

import matplotlib
import PIL.Image
from matplotlib import pyplot
from matplotlib.colors import to_rgb

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
COLORS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK, YELLOW)
DELTA, ATTENTION, EXPERTS, HYBRID, PLAIN = BLUE, RED, GREEN, PINK, "#555555"
KIND = {"linear_attention": DELTA, "full_attention": ATTENTION}  # by the config's layer_types
LABEL = {"linear_attention": "Gated DeltaNet", "full_attention": "gated attention"}
SEQUENTIAL, DIVERGING = "cividis", "PuOr"  # colour maps: amounts, and amounts on both sides of zero
POINTS, ENTRIES, WIDTH = 9, 8, 9.6  # the smallest text, the longest legend, the widest picture in inches
PIXELS = 96  # of the page, to an inch: a point is then what the page calls a point
GALLERY = Path(__file__).resolve().parent / "gallery"


def setup():
    """White pictures, readable on light and dark pages."""
    matplotlib.rcParams.update(
        {
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.dpi": PIXELS,
            "savefig.dpi": 160,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": matplotlib.cycler(color=COLORS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 10,
            "axes.titlesize": 10,
            "xtick.labelsize": POINTS,
            "ytick.labelsize": POINTS,
            "legend.fontsize": POINTS,
            "legend.title_fontsize": POINTS,
            "image.cmap": SEQUENTIAL,
            "legend.frameon": False,
        }
    )


def axes(*shape: int, width: float = 4.2, height: float = 3.0, **options):
    """A figure of rows x columns axes, each width x height inches: one axes object, or an array of them."""
    rows, columns = (*shape, 1, 1)[:2] if len(shape) != 1 else (1, shape[0])
    return pyplot.subplots(rows, columns, figsize=(width * columns, height * rows), **options)[1]


def tint(color: str, share: float = 0.25):
    """A light shade of a colour, on which black text can be read."""
    return tuple(1 - share * (1 - part) for part in to_rgb(color))


def faults(figure) -> list[str]:
    """What makes a figure hard to read: small text, a long legend, a heat map in one colour."""
    found = []
    for text in figure.findobj(matplotlib.text.Text):
        if text.get_visible() and text.get_text().strip() and text.get_fontsize() < POINTS:
            found.append(f"text {text.get_text()!r} of {text.get_fontsize():g} points, expected at least {POINTS}")
    for legend in figure.findobj(matplotlib.legend.Legend):
        if len(legend.get_texts()) > ENTRIES:
            found.append(f"a legend of {len(legend.get_texts())} entries, expected at most {ENTRIES}")
    scales: dict[tuple, list] = {}  # panels with one scale are one map
    for image in figure.findobj(matplotlib.image.AxesImage):
        data = image.get_array()
        if data.ndim == 2 and data.size > 1:
            scales.setdefault(image.get_clim(), []).extend([data.min(), data.max()])
    for (low, high), ends in scales.items():
        if max(ends) - min(ends) < 0.05 * (high - low):
            found.append(f"a heat map of {min(ends):g} to {max(ends):g} on a scale of {low:g} to {high:g}")
    return found


def in_few_colors(file: io.BytesIO) -> bytes:
    """A PNG with a palette of 64 colours, half as large: a notebook has ten pictures, and is to open quickly."""
    smaller = io.BytesIO()
    pixels = PIL.Image.open(file).convert("RGB")
    pixels.quantize(64, dither=PIL.Image.Dither.NONE).save(smaller, format="png", optimize=True)
    return smaller.getvalue()


def show(alt: str):
    """Shows the present figure and closes it. `alt` says in words what is to be seen, for those who can't see it.

    What is hard to read is warned of, so that no stored notebook has it (tests/test_notebooks.py allows no warnings).
    """
    from IPython.display import Image, display

    figure = pyplot.gcf()
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.08)
    picture = in_few_colors(file)
    width = int.from_bytes(picture[16:20], "big") / matplotlib.rcParams["savefig.dpi"]  # inches, from the PNG's header
    found = faults(figure)
    if width > WIDTH:
        found.append(f"{width:.1f} inches wide, expected at most {WIDTH}")
    for fault in found:
        warnings.warn(f"a picture is hard to read: {fault}", stacklevel=2)
    pyplot.close(figure)
    display(Image(picture, format="png", width=round(width * PIXELS), alt=alt))


def drawing(name: str, alt: str):
    """Shows gallery/NAME.svg, which notebooks/gallery.py draws."""
    from IPython.display import HTML, display

    svg = (GALLERY / f"{name}.svg").read_bytes()
    width = int(re.search(rb'viewBox="0 0 (\d+)', svg)[1])
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    display(HTML(f'<img src="{source}" width="{width}" alt="{alt}">'))


def expect(claim: str, holds: bool):
    """Prints a finding about trained weights, and whether it came out. Other weights may differ, so nothing fails."""
    print("as expected:" if holds else "other than expected:", claim)
