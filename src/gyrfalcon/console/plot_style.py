"""What all plots have in common: light axes and grid, text that stays text in an SVG; and what those in files
of their own have. Needs the extra `report`.
"""

import io
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

INK, FAINT = "#1b2430", "#c3cbd6"  # of a picture that is a file of its own
DPI = 150  # of a PNG
TITLES: Mapping[RcKeyType, object] = {
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
}


def picture(
    title: str, size: tuple[float, float], suffix: str, fill: Callable[[Figure], object]
) -> bytes:
    """What `fill` draws on a figure, as the content of a file; size in inches, suffix .png or .svg."""
    with plot_style(INK, FAINT, TITLES):
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(title, fontsize=9.5, x=0.01, ha="left")
        fill(figure)
        file, kind = io.BytesIO(), suffix.removeprefix(".")
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, dpi=DPI, metadata=metadata)
    return file.getvalue()


def plot_style(
    ink: str, faint: str, own: Mapping[RcKeyType, object]
) -> AbstractContextManager[None]:
    """The context in which figures are made and saved: `ink` is the colour of text, `faint` that of axes
    and grid, `own` matplotlib's settings beside the shared ones.
    """
    return mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "gyrfalcon",
            "text.parse_math": False,
            "font.size": 8.5,
            "legend.frameon": False,
            "axes.edgecolor": faint,
            "axes.labelcolor": ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": faint,
            "grid.linewidth": 0.5,
            "grid.alpha": 0.6,
            "text.color": ink,
            "xtick.color": faint,
            "ytick.color": faint,
            "xtick.labelcolor": ink,
            "ytick.labelcolor": ink,
            "lines.linewidth": 1.6,
            **own,
        }
    )
