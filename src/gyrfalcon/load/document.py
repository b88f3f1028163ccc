"""A run as JSON: what was asked, the figures, and a row for each request. Keys and prompts are not in it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from gyrfalcon import __version__
from gyrfalcon.load.figures import Figures, latencies_of, output_len
from gyrfalcon.load.plan import Load
from gyrfalcon.load.run import Outcome, Run

FORMAT = "gyrfalcon-load"
VERSION = 1


def document(
    url: str, model: str, load: Load, command: Sequence[str], run: Run, figures: Figures
) -> dict[str, object]:
    """The whole result; times are in seconds after the start, those named _ms in milliseconds."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "gyrfalcon": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "url": url,
        "model": model,
        "settings": {**settings(load), "command": list(command)},
        "interrupted": run.interrupted,
        "result": asdict(figures),
        "requests": [_row(outcome, run.start) for outcome in run.outcomes],
    }


def settings(load: Load) -> dict[str, object]:
    """What was asked for."""
    return {
        "rate": load.rate,
        "arrivals": load.arrivals,
        "concurrency": load.concurrency,
        "requests": load.requests,
        "duration": load.duration,
        "input_lens": str(load.input_lens),
        "output_lens": str(load.output_lens),
        "trace_lines": len(load.trace),
        "seed": load.seed,
    }


def _row(outcome: Outcome, start: float) -> Mapping[str, object]:
    row: dict[str, object] = {
        "due": outcome.due,
        "sent": outcome.sent,
        "end": outcome.end,
        "asked_input_len": outcome.input_len,
        "asked_output_len": outcome.output_len,
        "input_len": outcome.answer.input_len,
        "cached_len": outcome.answer.cached_len,
        "output_len": output_len(outcome),
        "finish_reason": outcome.answer.finish_reason,
        "error": None if outcome.failure is None else str(outcome.failure),
    }
    if outcome.is_finished:
        found = latencies_of(outcome, start)
        row |= {"first_token_ms": found.ttft, "end_to_end_ms": found.e2e}
        row |= {"inter_token_p99_ms": found.itl, "time_per_token_ms": found.tpot}
    return row
