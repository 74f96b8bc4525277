"""What the notebooks' pictures share: colours that colour-blind readers tell apart, and a page that stays white.

`figures.setup()` sets matplotlib up. BLUE, ORANGE ... are those of Okabe and Ito (2008); `figures.axes` makes a figure.
`figures.expect` says whether a finding about trained weights came out.
"""

import matplotlib
from matplotlib import pyplot

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
SEQUENTIAL, DIVERGING = "cividis", "PuOr"  # colour maps: amounts, and amounts on both sides of zero


def setup():
    """White pictures, readable on light and dark pages, small enough for a repository."""
    matplotlib.rcParams.update(
        {
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.dpi": 80,
            "savefig.dpi": 80,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": matplotlib.cycler(color=COLORS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 11,
            "image.cmap": SEQUENTIAL,
            "legend.frameon": False,
        }
    )


def axes(*shape: int, width: float = 4.2, height: float = 3.0, **options):
    """A figure of rows x columns axes, each width x height inches: one axes object, or an array of them."""
    rows, columns = (*shape, 1, 1)[:2] if len(shape) != 1 else (1, shape[0])
    return pyplot.subplots(rows, columns, figsize=(width * columns, height * rows), **options)[1]


def expect(claim: str, holds: bool):
    """Prints a finding about trained weights, and whether it came out. Other weights may differ, so nothing fails."""
    print("as expected:" if holds else "other than expected:", claim)
