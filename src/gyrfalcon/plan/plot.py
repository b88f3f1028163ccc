"""A plan as one picture: the memory of a rank, times over load, and tokens a second or cards over users.
Needs the extra `report`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gyrfalcon.console.plot_style import INK, picture
from gyrfalcon.plan.curves import Curve
from gyrfalcon.plan.memory import RankMemory

COLOURS = ("#1f6fd6", "#c2570c", "#3f7d20", "#7a8699")
SIZE = (9.6, 3.4)  # inches
GB = 1e9


@dataclass(frozen=True, slots=True)
class Panel:
    """A plot of curves."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    steps: bool = False  # a value holds from the one before


def draw(title: str, memory: RankMemory, panels: Sequence[Panel], suffix: str) -> bytes:
    """The picture as a file's content; suffix: .png or .svg."""

    def fill(figure: Figure) -> None:
        axes = figure.subplots(1, 1 + len(panels), width_ratios=[1, *[2] * len(panels)])
        _memory(axes[0], memory)
        for each, panel in zip(axes[1:], panels, strict=True):
            _panel(each, panel)

    return picture(title, SIZE, suffix, fill)


def _memory(axes: Axes, memory: RankMemory) -> None:
    """One bar, part on part, and the line of what there is."""
    axes.set_title("Memory of a rank")
    parts = {
        "runtime": memory.reserved,
        "weights": memory.weights,
        "workspace": memory.workspace,
        "cache": memory.cache,
    }
    base = 0.0
    for colour, (name, size) in zip(reversed(COLOURS), parts.items(), strict=True):
        axes.bar([0], [size / GB], bottom=base, color=colour, label=name, width=0.6)
        base += size / GB
    axes.axhline(memory.total / GB, color=INK, linewidth=1)
    axes.set_ylim(0, 1.25 * max(base, memory.total / GB))
    axes.set_xlim(-0.6, 0.6)
    axes.set_xticks([])
    axes.set_ylabel("GB")
    axes.legend(loc="upper left", ncols=2, fontsize=7)


def _panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title)
    for colour, curve in zip(COLOURS, panel.curves, strict=False):
        style = "steps-pre" if panel.steps else "default"
        axes.plot(curve.x, curve.y, color=colour, label=curve.label, drawstyle=style)
    if len(panel.curves) > 1:
        axes.legend(loc="best")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
