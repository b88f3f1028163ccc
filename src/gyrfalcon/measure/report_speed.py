"""The tables of speed: the guide's means, ratios to baselines, every case."""

from collections.abc import Mapping, Sequence

from gyrfalcon.measure.baseline import GUIDE_CASES, GUIDE_FIGURES, Baseline, compare
from gyrfalcon.measure.report_runs import Run, Speed
from gyrfalcon.measure.report_tables import NOTHING, Table
from gyrfalcon.measure.timing import OOM, Row, averages

GUIDE_BATCH = 1
TIMES = {
    "response_ms": "ResponseTime(ms)",
    "first_token_ms": "FirstTokenTime(ms)",
    "time_per_token_ms": "TimePerTokens(ms)",
}
RATES = {
    "mean_tokens_per_second": "TokensPerSecond",
    "tokens_per_second_of_mean_ms": "1000 ÷ mean ms",
}


def speed_tables(runs: Sequence[Run[Speed]], beside_guide: bool) -> list[Table]:
    """The guide's means, how many times as fast as each baseline, and every case."""
    if not runs:
        return []
    guide = GUIDE_FIGURES if beside_guide else ()
    rows = [_mean_row(run) for run in runs]
    rows += [
        _row_of_means(one.name, str(GUIDE_BATCH), str(GUIDE_CASES), one.averages) for one in guide
    ]
    means = Table(
        "Means over all cases",
        ("run", "batch", "cases", *RATES.values(), *TIMES.values()),
        tuple(rows),
        note="TokensPerSecond is the mean of the cases' rates; 1000 ÷ mean ms is the rate of the mean"
        " TimePerTokens, which is lower where cases differ. Both are of one sequence.",
    )
    return [means, *_ratio_table(runs, guide), *map(_case_table, runs)]


def _mean_row(run: Run[Speed]) -> tuple[str, ...]:
    found = averages(run.found.rows)
    failed = f" ({found[OOM]:.0f} {OOM})" if found[OOM] else ""
    cases = f"{found['cases']:.0f}{failed}"
    return _row_of_means(run.label, str(run.found.batch), cases, found)


def _row_of_means(name: str, batch: str, cases: str, found: Mapping[str, float]) -> tuple[str, ...]:
    values = (found.get(key) for key in (*RATES, *TIMES))
    return (name, batch, cases, *(NOTHING if value is None else f"{value:.2f}" for value in values))


def _ratio_table(runs: Sequence[Run[Speed]], guide: Sequence[Baseline]) -> list[Table]:
    """One table, or none without baselines."""
    others = [
        (run.found.batch, Baseline(run.label, {}, {row.case: row for row in run.found.rows}))
        for run in runs
        if run.head.is_baseline
    ] + [(GUIDE_BATCH, one) for one in guide]
    rows = [
        _ratio_row(run, baseline)
        for run in runs
        for batch, baseline in others
        if not run.head.is_baseline and batch == run.found.batch
    ]
    if not rows:
        return []
    headings = ("run", "baseline", "cases", *RATES.values(), *TIMES.values())
    note = (
        "Above 1: this run is faster. Of two runs the cases that both have measured count; of the"
        " guide only means over its 36 cases are known, so compare the same 36 with them."
    )
    return [Table("Times as fast as the baseline", headings, tuple(rows), num_labels=2, note=note)]


def _ratio_row(run: Run[Speed], baseline: Baseline) -> tuple[str, ...]:
    found = compare(run.found.rows, baseline)
    ratios = found["averages"]
    assert isinstance(ratios, dict)
    cases = f"{found['cases']} to {found['baseline_cases']}"
    values = (ratios.get(key) for key in (*RATES, *TIMES))
    return (
        run.label,
        baseline.name,
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
    """The limits that percentages are of; empty where none were measured."""
    if found.limits is None:
        return ""
    bandwidth = found.limits.bandwidth_bytes_per_second / 1e9
    peak = found.limits.matrix_flops_per_second / 1e12
    return (
        f"Percent of the limit: decoding of {bandwidth:.1f} GB/s memory bandwidth, prefill of a matrix"
        f" peak of {peak:.3g} TFLOP/s, both measured on the machine."
    )
