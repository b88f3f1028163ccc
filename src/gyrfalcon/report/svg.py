"""The style of a report's plots: SVG elements for one page. Colours are the page's CSS variables,
so that they follow light and dark; text stays text, in the page's font. Needs the extra `report`.
"""

import io
import re
import warnings
from contextlib import AbstractContextManager

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from gyrfalcon.console.plot_style import plot_style
from gyrfalcon.report.page import Plot

MOST_LETTERS = 58  # in a line as wide as a plot
WIDTH = 3.8  # inches: readable on a phone, two beside each other on a screen
MARKERS = "osD^vP"  # of the series, in their order
INK, FAINT, SURFACE = "#000001", "#000002", "#000003"
SERIES = tuple(f"#0001{n:02x}" for n in range(6))
HEAT = tuple(f"#0002{n:02x}" for n in range(7))
HEAT_INK = ("#000301", "#000302")  # of the lower and the upper half of HEAT
VARIABLES = {  # what each colour that is drawn with becomes
    INK: "ink",
    FAINT: "faint",
    SURFACE: "surface",
    **{colour: f"series-{n}" for n, colour in enumerate(SERIES)},
    **{colour: f"heat-{n}" for n, colour in enumerate(HEAT)},
    HEAT_INK[0]: "heat-ink-low",
    HEAT_INK[1]: "heat-ink-high",
}


def style() -> AbstractContextManager[None]:
    """The style context to create and draw figures in."""
    sizes: dict[RcKeyType, object] = {
        "axes.labelsize": 8.5,
        "legend.fontsize": 8,
        "lines.markersize": 4,
    }
    return plot_style(INK, FAINT, sizes)


def plot(title: str, caption: str, figure: Figure, name: str = "") -> Plot:
    """The figure as SVG; its name, or else its title, keeps its ids unique."""
    return Plot(title, caption, _svg(figure, re.sub(r"\W+", "-", name or title)))


def canvas(height: float) -> tuple[Figure, Axes]:
    """A figure of one plot, `height` inches high; created inside style()."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def legend(axes: Axes) -> None:
    """Above the axes, where it covers nothing; a single series needs none. Short names share lines."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        columns = max(1, MOST_LETTERS // (max(map(len, labels)) + 6))
        figure = axes.get_figure()
        assert isinstance(figure, Figure)
        figure.legend(
            handles, labels, loc="outside upper left", ncols=columns, borderpad=0, markerscale=1.4
        )


def _svg(figure: Figure, name: str) -> str:
    """An element as wide as its container, its ids beginning with `name`."""
    file = io.StringIO()
    with warnings.catch_warnings():
        # Text is drawn by the browser, whose fonts have more glyphs than those it is measured with.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    head, body = text[text.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    body = re.sub(r"<style.*?</style>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    return f"<svg {box[0]}>{body}"
