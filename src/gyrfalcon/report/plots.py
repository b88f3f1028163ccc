"""The plots of a report. Needs the extra `report`."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import ceil, floor, log10

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from gyrfalcon.console.format import counted
from gyrfalcon.measure.mmlu.score import Count
from gyrfalcon.measure.precision.gate import LIMITS
from gyrfalcon.measure.precision.result import Gate
from gyrfalcon.measure.speed.cases import OOM, Figures
from gyrfalcon.report.mmlu import IN_GUIDES_ORDER, by_exam
from gyrfalcon.report.page import Plot
from gyrfalcon.report.runs import ExamScore, Results, Run, Speed
from gyrfalcon.report.svg import (
    FAINT,
    HEAT,
    HEAT_INK,
    INK,
    MARKERS,
    SERIES,
    SURFACE,
    canvas,
    legend,
    plot,
    style,
)

CHANCE = 25.0  # percent, of four choices
FEWEST_MARKS = 3  # on an axis
FLOOR = 1e-16  # the smallest distance that float64 can tell from none


def plots(results: Results) -> dict[str, list[Plot]]:
    """The plots of each section that has some."""
    with style():
        return {
            "precision": [_cosine_plot(run) for run in results.precision if _has_cosines(run)],
            "mmlu": _exam_plots(results.mmlu),
            "speed": _speed_plots(results.speed),
        }


# ---- speed ----


def _speed_plots(runs: Sequence[Run[Speed]]) -> list[Plot]:
    runs = [run for run in runs if _measured(run)]
    if not runs:
        return []
    highest = max(figures.tokens_per_second for run in runs for _, figures in _measured(run))
    found = [_heat_plot(run, highest) for run in runs]
    found.append(_first_token_plot(runs))
    found += _gap_plot(runs)
    if any(figures.decode_percent_of_limit for run in runs for _, figures in _measured(run)):
        found += [_decode_limit_plot(runs), _prefill_limit_plot(runs)]
    return found


def _measured(run: Run[Speed]) -> list[tuple[tuple[int, int], Figures]]:
    """Input and output length and figures of the cases that fit into memory."""
    return [
        ((row.case.input_len, row.case.output_len), row.figures)
        for row in run.found.rows
        if row.figures is not None
    ]


def _heat_plot(run: Run[Speed], highest: float) -> Plot:
    """Tokens per second over both lengths, with the figure in every cell."""
    inputs = sorted({row.case.input_len for row in run.found.rows})
    outputs = sorted({row.case.output_len for row in run.found.rows})
    rates = {case: figures.tokens_per_second for case, figures in _measured(run)}
    grid = [[rates.get((one, other), np.nan) for other in outputs] for one in inputs]
    bounds = np.linspace(0, highest * (1 + 1e-9), len(HEAT) + 1)
    figure, axes = canvas(0.75 + 0.34 * len(inputs))
    axes.grid(visible=False)
    axes.pcolormesh(
        np.ma.masked_invalid(grid),
        cmap=ListedColormap(HEAT),
        norm=BoundaryNorm(bounds.tolist(), len(HEAT)),
        edgecolors=SURFACE,
        linewidth=2,
    )
    tried = {(row.case.input_len, row.case.output_len) for row in run.found.rows}
    for row, one in enumerate(inputs):
        for column, other in enumerate(outputs):
            rate = rates.get((one, other))
            if rate is not None:
                level = int(np.searchsorted(bounds, rate, side="right")) - 1
                ink = HEAT_INK[level > len(HEAT) // 2]
                axes.text(
                    column + 0.5, row + 0.5, _short(rate), ha="center", va="center", color=ink
                )
            elif (one, other) in tried:
                axes.text(column + 0.5, row + 0.5, OOM, ha="center", va="center")
    _name_cells(axes, inputs, outputs)
    return plot(
        f"Tokens per second: {run.label}",
        f"By input and output length, batch {run.found.batch}. Colour from 0 to the highest rate.",
        figure,
    )


def _name_cells(axes: Axes, inputs: Sequence[int], outputs: Sequence[int]) -> None:
    axes.set_yticks([n + 0.5 for n in range(len(inputs))], [str(n) for n in inputs])
    axes.set_xticks([n + 0.5 for n in range(len(outputs))], [str(n) for n in outputs])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("input tokens")
    axes.set_xlabel("output tokens")


def _first_token_plot(runs: Sequence[Run[Speed]]) -> Plot:
    curves = _curves(runs, "first_token_ms")
    figure, axes = canvas(2.7)
    _lines(axes, curves)
    axes.set_yscale("log")
    _mark_log(axes.yaxis, [ms for curve in curves.values() for ms in curve.values()])
    _mark_lengths(axes, curves)
    axes.set_ylabel("ms, log scale")
    return plot("Time to the first token", "Mean over the output lengths.", figure)


def _gap_plot(runs: Sequence[Run[Speed]]) -> list[Plot]:
    """The distribution of times between tokens; none where the files lack them."""
    names = _apart(runs)
    gaps = {
        names[run.label]: [
            gap for _, figures in _measured(run) for gap in figures.inter_token_ms or ()
        ]
        for run in runs
    }
    if not any(gaps.values()):
        return []
    shares = np.concatenate([np.linspace(0, 0.98, 197), np.linspace(0.981, 1, 20)])
    figure, axes = canvas(2.7)
    for colour, (label, times) in zip(cycle(SERIES), gaps.items(), strict=False):
        if times:
            axes.plot(np.quantile(times, shares), 100 * shares, color=colour, label=label)
    axes.set_xscale("log")
    _mark_log(axes.xaxis, [gap for times in gaps.values() for gap in times])
    axes.set_ylim(0, 101)
    axes.set_yticks([0, 25, 50, 75, 90, 100])
    axes.set_xlabel("ms between two tokens, log scale")
    axes.set_ylabel("% of tokens at most so late")
    legend(axes)
    return [
        plot(
            "Time between tokens",
            "All cases together; of each the first sequence in the repeat of median length.",
            figure,
        )
    ]


def _decode_limit_plot(runs: Sequence[Run[Speed]]) -> Plot:
    curves = _curves(runs, "decode_percent_of_limit")
    caption = (
        "Bytes that have to be read for a token over measured memory bandwidth; mean over outputs."
    )
    return _limit_plot("Decoding: percent of the memory bandwidth", caption, curves)


def _prefill_limit_plot(runs: Sequence[Run[Speed]]) -> Plot:
    curves = _curves(runs, "prefill_percent_of_limit")
    caption = "Operations of a prompt over the measured matrix peak; mean over outputs."
    return _limit_plot("Prefill: percent of the matrix peak", caption, curves)


def _limit_plot(title: str, caption: str, curves: Mapping[str, Mapping[int, float]]) -> Plot:
    figure, axes = canvas(2.7)
    _lines(axes, curves)
    axes.set_ylim(0, max(100, *(1.05 * y for curve in curves.values() for y in curve.values())))
    _mark_lengths(axes, curves)
    axes.set_ylabel("% of the limit")
    return plot(title, caption, figure)


def _curves(runs: Sequence[Run[Speed]], name: str) -> dict[str, dict[int, float]]:
    names = _apart(runs)
    return {names[run.label]: _by_input(run, name) for run in runs}


def _apart(runs: Sequence[Run[Speed]]) -> dict[str, str]:
    """The labels of runs in one plot: where they measured different cases, each says how many."""
    if len({run.found.measured for run in runs}) == 1:
        return {run.label: run.label for run in runs}
    return {run.label: f"{run.label}, {counted(len(run.found.measured), 'case')}" for run in runs}


def _by_input(run: Run[Speed], name: str) -> dict[int, float]:
    """A figure by input length: the mean over the output lengths that have it."""
    values: dict[int, list[float]] = {}
    for (input_len, _), figures in _measured(run):
        value = {
            "first_token_ms": figures.first_token_ms,
            "decode_percent_of_limit": figures.decode_percent_of_limit,
            "prefill_percent_of_limit": figures.prefill_percent_of_limit,
        }[name]
        if value is not None:
            values.setdefault(input_len, []).append(value)
    return {input_len: float(np.mean(some)) for input_len, some in sorted(values.items())}


def _lines(axes: Axes, curves: Mapping[str, Mapping[int, float]]) -> None:
    for colour, marker, (label, curve) in zip(
        cycle(SERIES), cycle(MARKERS), curves.items(), strict=False
    ):
        axes.plot(list(curve), list(curve.values()), color=colour, marker=marker, label=label)
    legend(axes)


def _mark_lengths(axes: Axes, curves: Mapping[str, Mapping[int, float]]) -> None:
    lengths = sorted({length for curve in curves.values() for length in curve})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.set_xlabel("input tokens")


# ---- MMLU ----


def _exam_plots(runs: Sequence[Run[ExamScore]]) -> list[Plot]:
    """Per exam: the categories, then the subjects of each category."""
    return [plot for heading, group in by_exam(runs).items() for plot in _exam_plot(heading, group)]


def _exam_plot(heading: str, runs: Sequence[Run[ExamScore]]) -> list[Plot]:
    by_run = {
        run.label: {
            **{name: run.found.categories[name] for name in IN_GUIDES_ORDER},
            "all": run.found.all,
        }
        for run in runs
    }
    found = [_dot_plot("Accuracy by category", heading, by_run)]
    for category in IN_GUIDES_ORDER:
        subjects = {run.label: run.found.subjects(category) for run in runs}
        if any(subjects.values()):
            found.append(_dot_plot(f"Accuracy by subject: {category}", heading, subjects))
    return found


def _dot_plot(title: str, heading: str, by_run: Mapping[str, Mapping[str, Count]]) -> Plot:
    """A dot with its 95 % interval for every name and run."""
    names = list(dict.fromkeys(name for counts in by_run.values() for name in counts))
    step = 0.64 / len(by_run)
    figure, axes = canvas(
        0.85 + len(names) * max(0.19, 0.11 * len(by_run)) + 0.15 * (len(by_run) > 1)
    )
    axes.grid(visible=False, axis="y")
    axes.axvline(CHANCE, color=FAINT, linestyle=(0, (4, 3)), linewidth=1)
    for number, (colour, marker, (label, counts)) in enumerate(
        zip(cycle(SERIES), cycle(MARKERS), by_run.items(), strict=False)
    ):
        shift = step * (number - (len(by_run) - 1) / 2)
        asked = [
            (names.index(name) + shift, count) for name, count in counts.items() if count.total
        ]
        middles = [100 * count.right / count.total for _, count in asked]
        ends = [tuple(100 * end for end in count.interval) for _, count in asked]
        errors = [[max(0.0, m - low) for m, (low, _) in zip(middles, ends, strict=True)]]
        errors.append([max(0.0, high - m) for m, (_, high) in zip(middles, ends, strict=True)])
        axes.errorbar(
            middles,
            [y for y, _ in asked],
            xerr=errors,
            fmt=marker,
            color=colour,
            elinewidth=1.2,
            label=label,
        )
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(-2, 102)  # all of the marks at 0 and 100
    axes.set_xlabel("% right")
    legend(axes)
    caption = f"{heading}. Bars: 95 % interval; dashed: chance."
    return plot(title, caption, figure, name=f"{heading} {title}")


# ---- precision ----


def _has_cosines(run: Run[Gate]) -> bool:
    return any(cosine is not None for curve in run.found.curves for cosine in curve.cosine)


def _cosine_plot(run: Run[Gate]) -> Plot:
    """Each position's distance of the cosine from 1, on a log scale, where a bad position stands
    out.
    """
    figure, axes = canvas(2.9)
    dots: dict[str, list[tuple[int, float]]] = {"prefill": [], "decode": []}
    for curve in run.found.curves:
        border = len(curve.cosine) - curve.num_decoded
        for position, cosine in enumerate(curve.cosine):
            if cosine is not None:
                phase = "prefill" if position < border else "decode"
                dots[phase].append((position, max(1 - cosine, FLOOR)))
    for number, (phase, points) in enumerate(dots.items()):
        if points:
            positions, values = zip(*points, strict=True)
            colour, marker = SERIES[number], MARKERS[number]
            axes.scatter(positions, values, 5, colour, marker=marker, lw=0, label=phase)
    shown = [value for points in dots.values() for _, value in points]
    limit = LIMITS.get(run.found.precision, {}).get("centred_cosine_p5")
    if limit is not None:
        label = "limit of 95 % of positions"
        axes.axhline(1 - limit, color=INK, linestyle=(0, (4, 3)), linewidth=1, label=label)
        shown.append(1 - limit)
    axes.set_yscale("log")
    _mark_log(axes.yaxis, shown)
    axes.set_xlabel("position in the prompt")
    axes.set_ylabel("1 − cosine, log scale")
    legend(axes)
    return plot(
        f"Cosine per position: {run.label}",
        "Of the logits less their mean; every dot is a token, lower is nearer to the reference.",
        figure,
    )


def _mark_log(axis: Axis, values: Sequence[float]) -> None:
    """Round numbers on a logarithmic axis: 1, 2, 5 where there are few decades, nearer ones where
    that would leave fewer than FEWEST_MARKS, and the axis long enough for them.
    """
    low, high = max(min(values), FLOOR), max(values)
    if high < 300 * low:
        decades = range(floor(log10(low)), ceil(log10(high)) + 1)
        ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
        ticks = [tick for tick in ticks if 0.9 * low <= tick <= 1.1 * high]
        if len(ticks) < FEWEST_MARKS:
            near = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(0.98 * low, 1.02 * high)
            ticks = [tick for tick in map(float, near) if tick > 0]
            axis.set_view_interval(min(low, ticks[0]), max(high, ticks[-1]))
        axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _short(value: float) -> str:
    """Three digits or a few more."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
