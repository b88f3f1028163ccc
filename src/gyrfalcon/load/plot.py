"""A run as four plots in one picture: first tokens over time, latencies, inter-token times, and what was in
flight. Needs the extra `report`.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from gyrfalcon.console.format import counted
from gyrfalcon.console.plot_style import picture
from gyrfalcon.load.figures import latencies_of
from gyrfalcon.load.run import Outcome, Run

BLUE, ORANGE, RED = "#1f6fd6", "#c2570c", "#b3261e"
SIZE = (9.6, 6.4)  # inches
SHORTEST_MS = 0.01  # drawn: events that are read together have no time between them
SHARES = np.concatenate([np.linspace(0, 0.98, 197), np.linspace(0.981, 1, 20)])
POINTS = 400  # of what was in flight


def draw(title: str, run: Run, suffix: str) -> bytes:
    """The picture as a file's content; suffix: .png or .svg."""
    return picture(title, SIZE, suffix, partial(_fill, run))


def _fill(run: Run, figure: Figure) -> None:
    ((first, latency), (gaps, flight)) = figure.subplots(2, 2)
    finished = [one for one in run.outcomes if one.is_finished]
    found = [latencies_of(one, run.start) for one in finished]
    due = [one.due for one in finished]
    _first_tokens(first, due, [one.ttft for one in found], run.outcomes)
    _distribution(
        latency,
        "Latency",
        {"first token": [one.ttft for one in found], "end to end": [one.e2e for one in found]},
    )
    _distribution(gaps, "Time between tokens", {"": [gap for one in found for gap in one.gaps]})
    _in_flight(flight, run)


def _first_tokens(
    axes: Axes, due: Sequence[float], ttft: Sequence[float], outcomes: Sequence[Outcome]
) -> None:
    axes.set_title("Time to the first token")
    axes.scatter(due, ttft, s=9, color=BLUE, linewidths=0)
    failed = [one.due for one in outcomes if one.failure is not None]
    if failed:
        label = counted(len(failed), "error")
        [marks] = axes.plot(failed, [0] * len(failed), "x", color=RED, markersize=4, label=label)
        marks.set_clip_on(False)
        axes.legend(loc="best")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("s, when the request was due")
    axes.set_ylabel("ms")


def _distribution(axes: Axes, title: str, series: Mapping[str, Sequence[float]]) -> None:
    """The share of values up to each."""
    axes.set_title(title)
    for colour, (label, values) in zip((BLUE, ORANGE), series.items(), strict=False):
        if values:
            times = np.maximum(np.quantile(values, SHARES), SHORTEST_MS)
            axes.plot(times, 100 * SHARES, color=colour, label=label)
    if any(series.values()):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        if len(series) > 1:
            axes.legend(loc="lower right")
    axes.set_ylim(0, 101)
    axes.set_yticks([0, 25, 50, 75, 90, 100])
    axes.set_xlabel("ms, log scale")
    axes.set_ylabel("% at most this long")


def _in_flight(axes: Axes, run: Run) -> None:
    """How many requests were due and had not ended, over time."""
    axes.set_title("Requests in flight")
    times = np.linspace(0, run.seconds, POINTS)
    begun = np.sort([one.due for one in run.outcomes])
    ended = np.sort([run.seconds if one.end is None else one.end for one in run.outcomes])
    count = np.searchsorted(begun, times, "right") - np.searchsorted(ended, times, "right")
    axes.plot(times, count, color=BLUE, drawstyle="steps-post")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("s")
    axes.set_ylabel("requests")
