"""A speed sweep for people: a table of its cases, averages, and ratios to a baseline."""

from collections.abc import Mapping, Sequence

from gyrfalcon.console.format import counted
from gyrfalcon.measure.roofline import MachineLimits
from gyrfalcon.measure.speed.cases import OOM, UNTIMED, Row, averages
from gyrfalcon.measure.speed.files import Sweep

HEADINGS = tuple(
    "batch|in|out|first ms|response ms|ms/token|tokens/s|p50 ms|p90 ms|p99 ms"
    "|memory GB|decode|prefill|of float32".split("|")
)
TIMES = {
    "response_ms": "response",
    "first_token_ms": "first token",
    "time_per_token_ms": "time per token",
}
RATES = {
    "tokens_per_second_of_mean_ms": "1000 / mean ms per token",
    "mean_tokens_per_second": "mean of the cases' rates",
}


def describe(sweep: Sweep) -> str:
    """The whole report of a sweep. Percentages are of the machine's limits."""
    ratios = [_ratios(comparison) for comparison in sweep.baselines]
    rows = sweep.in_order
    return "\n".join(
        [*_table(rows, sweep.limits), *_limits(sweep.limits), *_averages(rows), *ratios]
    )


def _ratios(comparison: Mapping[str, object]) -> str:
    """One baseline's line."""
    values = comparison["averages"]
    assert isinstance(values, dict)
    names = {**TIMES, **RATES}
    shown = ", ".join(f"{names[name]} {ratio:.3g}" for name, ratio in values.items())
    cases = f"{comparison['cases']:.0f} of ours, {comparison['baseline_cases']} of theirs"
    warnings = comparison["warnings"]
    assert isinstance(warnings, list)
    mark = f"NOT COMPARABLE ({'; '.join(warnings)}): " if warnings else ""
    return f"{mark}times as fast as {comparison['name']} (means over {cases}): {shown}"


def _table(rows: Sequence[Row], limits: MachineLimits | None) -> list[str]:
    of_float32 = None if limits is None else limits.of_float32
    columns = len(HEADINGS) - (of_float32 is None)
    lines = [line[:columns] for line in (HEADINGS, *(_cells(row, of_float32) for row in rows))]
    widths = [max(len(line[column]) for line in lines) for column in range(columns)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]


def _cells(row: Row, of_float32: float | None) -> tuple[str, ...]:
    case, figures = row.case, row.figures
    lengths = (str(case.batch), str(case.input_len), str(case.output_len))
    if figures is None:
        return lengths + (row.status,) * 4 + ("",) * (len(HEADINGS) - 7)
    return (
        *lengths,
        f"{figures.first_token_ms:.1f}",
        f"{figures.response_ms:.1f}",
        f"{figures.time_per_token_ms:.2f}",
        f"{figures.tokens_per_second:.2f}",
        f"{figures.inter_token_p50_ms:.2f}",
        f"{figures.inter_token_p90_ms:.2f}",
        f"{figures.inter_token_p99_ms:.2f}",
        f"{max(figures.peak_memory_bytes) / 1e9:.2f}" if figures.peak_memory_bytes else "",
        _percent(figures.decode_percent_of_limit),
        _percent(figures.prefill_percent_of_limit),
        _percent(_product(figures.prefill_percent_of_limit, of_float32)),
    )


def _product(percent: float | None, factor: float | None) -> float | None:
    return None if percent is None or factor is None else percent * factor


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} %"


def _limits(limits: MachineLimits | None) -> list[str]:
    if limits is None:
        return []
    bandwidth = f"{limits.bandwidth_bytes_per_second / 1e9:.1f} GB/s"
    peak = f"{limits.matrix_flops_per_second / 1e12:.3g} T"
    decode = f"decode: percent of the memory bandwidth, {bandwidth}; prefill: of"
    if limits.float32_flops_per_second is None:
        return [f"{decode} the matrix peak, {peak}FLOP/s; both measured here"]
    float32 = f"{limits.float32_flops_per_second / 1e12:.3g} TFLOP/s"
    return [
        f"{decode} {limits.instruction}'s peak, {peak}OP/s, and of float32 multiply-adds, {float32}; "
        "all measured here"
    ]


def _averages(rows: Sequence[Row]) -> list[str]:
    found = averages(rows)
    untimed = [row for row in rows if row.status == UNTIMED]
    if untimed:
        return [f"{counted(len(untimed), 'case')} computed, none timed: {untimed[0].reason}"]
    failed = f", {found[OOM]} out of memory" if found[OOM] else ""
    lines = [f"mean over {counted(round(found['cases']), 'case')}{failed}"]
    if not found["cases"]:
        return lines
    times = [f"{label} {found[name]:.2f} ms" for name, label in TIMES.items()]
    rates = [f"{found[name]:.2f} ({label})" for name, label in RATES.items()]
    return [f"{lines[0]}: {', '.join(times)}", f"tokens/s: {', '.join(rates)}"]
