"""The tables of speed: the guide's means, ratios to baselines, every case."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gyrfalcon.console.format import counted
from gyrfalcon.measure.speed.baseline import (
    GUIDE_CASES,
    PUBLISHED,
    Baseline,
    compare,
    differences,
    guide_for,
)
from gyrfalcon.measure.speed.cases import OOM, Case, Row, averages
from gyrfalcon.report.runs import Run, Speed
from gyrfalcon.report.tables import NOTHING, Table

Runs = Sequence[Run[Speed]]

TIMES = {
    "response_ms": "ResponseTime(ms)",
    "first_token_ms": "FirstTokenTime(ms)",
    "time_per_token_ms": "TimePerTokens(ms)",
}
RATES = {
    "mean_tokens_per_second": "TokensPerSecond",
    "tokens_per_second_of_mean_ms": "1000 ÷ mean ms",
}


def speed_tables(runs: Runs, beside_guide: bool) -> list[Table]:
    """The guide's means, the speed-up over each baseline, and every case. A table of means has only
    runs that measured the same cases.
    """
    if not runs:
        return []
    guide = _published(runs) if beside_guide else ()
    groups: dict[frozenset[Case], list[Run[Speed]]] = {}
    for run in runs:
        groups.setdefault(run.found.measured, []).append(run)
    means = [
        _mean_table(cases, group, guide if cases == GUIDE_CASES else ())
        for cases, group in groups.items()
    ]
    if guide and GUIDE_CASES not in groups:
        means.append(_mean_table(GUIDE_CASES, (), guide))
    return [*_apart(means), *_ratio_table(runs, guide), *map(_case_table, runs)]


def _published(runs: Runs) -> tuple[Baseline, ...]:
    """The published figures that any of the runs can be compared with, each once."""
    wanted = {one for run in runs if not run.head.is_baseline for one in _for_run(run)}
    return tuple(one for one in PUBLISHED if one.name in wanted)


def _for_run(run: Run[Speed]) -> set[str]:
    return {one.name for one in guide_for(run.head.model_kind)}


def _mean_table(cases: frozenset[Case], runs: Runs, guide: Sequence[Baseline]) -> Table:
    note = (
        "TokensPerSecond is the mean of the cases' rates; 1000 ÷ mean ms is the rate of the mean"
        " TimePerTokens, which is lower where cases differ. Both are of one sequence."
    )
    if not runs:
        note += " No run here has measured all of these cases: none is comparable with them."
    rows = [_mean_row(run, guide) for run in runs]
    suffix = "" if runs else ", comparable with no run here"
    rows += [_row_of_means(one.name + suffix, str(len(GUIDE_CASES)), one.averages) for one in guide]
    headings = ("run", "cases", *RATES.values(), *TIMES.values())
    return Table(f"Means over {_told(cases)}", headings, tuple(rows), note=note)


def _told(cases: frozenset[Case]) -> str:
    """Which cases: how many, their batch, their lengths."""
    if not cases:
        return "no case"
    ends = [
        f"{name} {min(lengths)} to {max(lengths)}"
        for name, lengths in {
            "input": {case.input_len for case in cases},
            "output": {case.output_len for case in cases},
        }.items()
    ]
    [batch] = {case.batch for case in cases}
    return f"{counted(len(cases), 'case')}, batch {batch}, {', '.join(ends)}"


def _apart(tables: Sequence[Table]) -> list[Table]:
    """Numbers tables of other cases that would have the same title."""
    titles = [table.title for table in tables]
    return [
        replace(table, title=f"{table.title} (set {titles[: n + 1].count(table.title)})")
        if titles.count(table.title) > 1
        else table
        for n, table in enumerate(tables)
    ]


def _mean_row(run: Run[Speed], guide: Sequence[Baseline]) -> tuple[str, ...]:
    found = averages(run.found.rows)
    failed = f" ({found[OOM]:.0f} {OOM})" if found[OOM] else ""
    models = sorted({one.model for one in guide} - {run.head.model_kind})
    other = f" ({run.head.model_kind}, not {' or '.join(models)})" if models else ""
    return _row_of_means(run.label + other, f"{found['cases']:.0f}{failed}", found)


def _row_of_means(name: str, cases: str, found: Mapping[str, float]) -> tuple[str, ...]:
    values = (found.get(key) for key in (*RATES, *TIMES))
    return (name, cases, *(NOTHING if value is None else f"{value:.2f}" for value in values))


def _ratio_table(runs: Runs, guide: Sequence[Baseline]) -> list[Table]:
    """One table; none without baselines."""
    rows = [
        _ratio_row(run, baseline)
        for run in runs
        if not run.head.is_baseline
        for baseline in _baselines(run, runs, guide)
    ]
    if not rows:
        return []
    headings = ("run", "baseline", "cases", *RATES.values(), *TIMES.values())
    note = (
        "Above 1: this run is faster. Of two runs the cases that both have measured count; of"
        f" published figures only means over the guide's {len(GUIDE_CASES)} cases are known."
    )
    return [Table("Times as fast as the baseline", headings, tuple(rows), num_labels=2, note=note)]


def _baselines(run: Run[Speed], runs: Runs, guide: Sequence[Baseline]) -> list[Baseline]:
    """What a run is compared with: the baselines of its batch, the figures of its model."""
    found = [
        Baseline(
            other.label, other.head.model_kind, {}, {row.case: row for row in other.found.rows}
        )
        for other in runs
        if other.head.is_baseline and other.found.batch == run.found.batch
    ]
    [batch] = {case.batch for case in GUIDE_CASES}
    if run.found.batch == batch:
        found += [one for one in guide if one.name in _for_run(run)]
    return found


def _ratio_row(run: Run[Speed], baseline: Baseline) -> tuple[str, ...]:
    found = compare(run.found.rows, baseline, run.head.model_kind)
    ratios = found["averages"]
    assert isinstance(ratios, dict)
    warnings = differences(run.found.rows, baseline, run.head.model_kind)
    mark = f"; NOT COMPARABLE: {'; '.join(warnings)}" if warnings else ""
    cases = f"{found['cases']} to {found['baseline_cases']}"
    values = (ratios.get(key) for key in (*RATES, *TIMES))
    return (
        run.label,
        baseline.name + mark,
        cases,
        *(NOTHING if value is None else f"{value:.3f}" for value in values),
    )


def _case_table(run: Run[Speed]) -> Table:
    times = ("first token ms", "response ms", "ms per token", "tokens/s")
    gaps = ("p50 ms", "p90 ms", "p99 ms")
    headings = ("input", "output", *times, *gaps, "memory GB", "decode %", "prefill %")
    rows = tuple(map(_case_row, run.found.rows))
    title = f"Every case of {run.label}, batch {run.found.batch}"
    return Table(title, headings, rows, num_labels=0, note=limits_note(run.found), folded=True)


def _case_row(row: Row) -> tuple[str, ...]:
    figures = row.figures
    lengths = (str(row.case.input_len), str(row.case.output_len))
    if figures is None:
        return lengths + (OOM,) * 4 + (NOTHING,) * 6
    memory = f"{max(figures.peak_memory_bytes) / 1e9:.2f}" if figures.peak_memory_bytes else NOTHING
    limits = (figures.decode_percent_of_limit, figures.prefill_percent_of_limit)
    return (
        *lengths,
        f"{figures.first_token_ms:.2f}",
        f"{figures.response_ms:.2f}",
        f"{figures.time_per_token_ms:.3f}",
        f"{figures.tokens_per_second:.2f}",
        f"{figures.inter_token_p50_ms:.3f}",
        f"{figures.inter_token_p90_ms:.3f}",
        f"{figures.inter_token_p99_ms:.3f}",
        memory,
        *(NOTHING if value is None else f"{value:.1f}" for value in limits),
    )


def limits_note(found: Speed) -> str:
    """The limits that percentages refer to; empty where none were measured."""
    if found.limits is None:
        return ""
    bandwidth = found.limits.bandwidth_bytes_per_second / 1e9
    peak = found.limits.matrix_flops_per_second / 1e12
    by = f", that of {found.limits.instruction}" if found.limits.instruction else ""
    return (
        f"Percent of the limit: decoding of {bandwidth:.1f} GB/s memory bandwidth, prefill of a matrix"
        f" peak of {peak:.3g} TFLOP/s{by}, both measured on the machine."
    )
