"""A report of result files: its sections and highlights, and its Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gyrfalcon.console.format import counted
from gyrfalcon.measure.speed.cases import averages
from gyrfalcon.report.mmlu import by_exam, interval, mmlu_tables, pair_words, pairs, percent
from gyrfalcon.report.runs import Results
from gyrfalcon.report.speed import speed_tables
from gyrfalcon.report.tables import (
    HOLDS,
    NOTHING,
    Table,
    perplexity_tables,
    precision_tables,
    run_table,
    verdict,
)

TITLE = "measured with gyrfalcon"
MOST_NAMED = 3  # models or machines in the title


@dataclass(frozen=True, slots=True)
class Highlight:
    """One result as a single figure."""

    what: str
    run: str
    value: str
    detail: str
    good: bool | None = None  # None: nothing to be good or bad at


@dataclass(frozen=True, slots=True)
class Section:
    """The tables of one measurement."""

    name: str  # the kind of result, or "runs"
    title: str
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The content of a report; the page adds plots. `title` names the models, `about` machines and
    dates.
    """

    title: str
    about: str
    highlights: tuple[Highlight, ...]
    sections: tuple[Section, ...]


def make_report(results: Results, beside_guide: bool) -> Report:
    """Builds the sections that have results. `beside_guide`: with the guide's own figures."""
    tables = {
        ("precision", "Precision"): precision_tables(results.precision)
        if results.precision
        else [],
        ("mmlu", "Exams"): mmlu_tables(results.mmlu, beside_guide),
        ("speed", "Speed"): speed_tables(results.speed, beside_guide),
        ("perplexity", "Perplexity"): perplexity_tables(results.perplexity),
        ("runs", "Runs"): [run_table(results)],
    }
    heads = list(results.heads)
    days = sorted({head.date[:10] for head in heads})
    return Report(
        title=f"{_some([head.name for head in heads])}: {TITLE}",
        about=f"{_some([head.machine for head in heads])}; {' to '.join(dict.fromkeys((days[0], days[-1])))}",
        highlights=(
            *_gates(results),
            *_scores(results),
            *_comparisons(results),
            *_rates(results),
            *_perplexities(results),
        ),
        sections=tuple(Section(*names, tuple(some)) for names, some in tables.items() if some),
    )


def _gates(results: Results) -> list[Highlight]:
    return [
        Highlight(
            "Precision gate",
            run.label,
            verdict(run.found),
            f"against {run.found.reference}",
            verdict(run.found) == HOLDS,
        )
        for run in results.precision
    ]


def _some(names: Sequence[str]) -> str:
    """Each name once, and not all of many."""
    found = list(dict.fromkeys(names))
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return ", ".join(found[:MOST_NAMED]) + more


def _scores(results: Results) -> list[Highlight]:
    return [
        Highlight(
            heading,
            run.label,
            f"{percent(run.found.all)} %",
            f"{interval(run.found.all)}, {run.found.all.right} of {run.found.all.total} right",
        )
        for heading, group in by_exam(results.mmlu).items()
        for run in group
    ]


def _comparisons(results: Results) -> list[Highlight]:
    return [
        Highlight(
            f"McNemar's exact test, {heading}",
            f"{first} beside {second}",
            f"p = {found.all.p:.4f}",
            pair_words(found),
        )
        for heading, group in by_exam(results.mmlu).items()
        for first, second, found in pairs(group)
    ]


def _rates(results: Results) -> list[Highlight]:
    found = []
    for run in results.speed:
        means = averages(run.found.rows)
        rate = means.get("mean_tokens_per_second")
        value = NOTHING if rate is None else f"{rate:.2f} tokens/s"
        cases = counted(round(means["cases"]), "case")
        detail = f"mean of {cases}, batch {run.found.batch}"
        if rate is not None:
            detail += f", first token after {means['first_token_ms']:.1f} ms"
        found.append(Highlight("Speed", run.label, value, detail))
    return found


def _perplexities(results: Results) -> list[Highlight]:
    return [
        Highlight(
            "Perplexity",
            run.label,
            f"{run.found.perplexity:.3f}",
            f"{run.found.bits_per_byte:.4f} bits per byte of {run.found.file}",
        )
        for run in results.perplexity
    ]


def markdown(report: Report) -> str:
    """The report without plots."""
    lines = [f"# {_cell(report.title)}", "", _cell(report.about), ""]
    for one in report.highlights:
        lines.append(
            f"- **{one.what}: {_cell(one.value)}** ({_cell(one.run)}; {_cell(one.detail)})"
        )
    for section in report.sections:
        lines += ["", f"## {section.title}"]
        for table in section.tables:
            lines += ["", f"### {_cell(table.title)}", *_table(table)]
    return "\n".join(lines) + "\n"


def _table(table: Table) -> list[str]:
    lines = []
    if table.rows:
        rules = ["---" if n < table.num_labels else "---:" for n in range(len(table.headings))]
        lines += ["", _row(table.headings), f"| {' | '.join(rules)} |", *map(_row, table.rows)]
    return [*lines, "", _cell(table.note)] if table.note else lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """Text that Markdown shows unchanged, on one line."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", line)
