"""The figures of a run for people: a table of latencies, then a line for each other thing."""

from collections.abc import Sequence

from gyrfalcon.console.format import counted
from gyrfalcon.load.figures import EVENTS, Figures, Generator, Goodput, Spread, Tokens

HEADINGS = ("ms", "p50", "p90", "p99", "mean", "max")
MOST_ERRORS = 8  # shown
MOST_LATE_MS = 10.0
MOST_CPU_SHARE = 0.8


def describe(title: str, figures: Figures) -> str:
    """The whole report; the title says what was asked of which server."""
    spreads = {
        "first token": figures.first_token_ms,
        "between tokens": figures.inter_token_ms,
        "per token": figures.time_per_token_ms,
        "end to end": figures.end_to_end_ms,
        "refusal": figures.refusal_ms,
    }
    rows = [(name, *_cells(found)) for name, found in spreads.items() if found is not None]
    return "\n".join(
        [
            title,
            *(_table([HEADINGS, *rows]) if rows else ()),
            *_line("requests", _requests(figures)),
            *_line("rate", _rates(figures)),
            *_line("tokens/s", _tokens(figures.tokens)),
            *([] if figures.goodput is None else _line("goodput", _goodput(figures.goodput))),
            *_errors(figures),
            *_line("generator", _generator(figures.generator)),
        ]
    )


def warnings(figures: Figures) -> list[str]:
    """What keeps the figures from being the server's alone."""
    own, found = figures.generator, list[str]()
    if own.cpu_share > MOST_CPU_SHARE:
        found.append(
            f"this process took {own.cpu_share:.0%} of a core: it may be the bottleneck, not the server"
        )
    if own.late_ms is not None and own.late_ms.p99 > MOST_LATE_MS:
        found.append(
            f"requests were sent late (p99 {own.late_ms.p99:.1f} ms): this process or machine is too busy"
        )
    if figures.finished and figures.tokens.counted_by == EVENTS:
        found.append("the server gave no usage: an event counts as one token, inputs are unknown")
    return found


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]


def _cells(found: Spread) -> tuple[str, ...]:
    return tuple(
        f"{value:.2f}" for value in (found.p50, found.p90, found.p99, found.mean, found.max)
    )


def _line(name: str, text: str) -> list[str]:
    return [f"{name:<10} {text}"]


def _requests(figures: Figures) -> str:
    text = f"{figures.sent} sent, {figures.finished} finished, {figures.refused} refused, "
    text += f"{figures.failed} failed"
    if figures.unfinished:
        text += f", {figures.unfinished} unfinished"
    return f"{text}; {figures.seconds:.2f} s"


def _rates(figures: Figures) -> str:
    asked, sent = figures.asked_per_second, figures.sent_per_second
    parts = [] if asked is None else [f"asked {asked:.2f}/s"]
    parts += [] if sent is None else [f"sent {sent:.2f}/s"]
    return ", ".join([*parts, f"finished {figures.finished_per_second:.2f}/s"])


def _tokens(tokens: Tokens) -> str:
    parts = []
    if tokens.input_per_second is not None:
        cached = f" ({tokens.cached} of {tokens.input} cached)" if tokens.cached is not None else ""
        parts.append(f"in {tokens.input_per_second:.1f}{cached}")
    return ", ".join(
        [*parts, f"out {tokens.output_per_second:.1f}; counted by {tokens.counted_by}"]
    )


def _goodput(goodput: Goodput) -> str:
    limits = ", ".join(f"{name} {limit:g} ms" for name, limit in goodput.limits.items())
    return f"{goodput.per_second:.2f}/s; {goodput.count} requests, {goodput.share:.1%}, within {limits}"


def _errors(figures: Figures) -> list[str]:
    lines = []
    for error in figures.errors[:MOST_ERRORS]:
        kind = error.kind if error.status is None else f"HTTP {error.status}"
        reason = f": {error.reason}" if error.reason else ""
        lines += _line("error", f"{error.count} × {kind}{reason}")
    rest = len(figures.errors) - MOST_ERRORS
    if rest > 0:
        lines += _line("error", f"{counted(rest, 'more reason')}; --json has all")
    return lines


def _generator(own: Generator) -> str:
    text = f"{own.cpu_share:.1%} of a core"
    if own.cpu_us_per_token is not None:
        text = f"{own.cpu_us_per_token:.0f} µs of CPU a token, {text}"
    if own.late_ms is not None:
        text += f"; sent {own.late_ms.p50:.2f} ms (p99 {own.late_ms.p99:.2f}) after due"
    return text
