"""A file of requests, one JSON object a line: prompt or input_len, and maybe output_len and arrival."""

from collections.abc import Sequence
from dataclasses import dataclass

from gyrfalcon.bounds import ONE_TOKEN_OR_MORE
from gyrfalcon.console.suggestion import did_you_mean
from gyrfalcon.errors import ConfigError, UsageError
from gyrfalcon.files.json_fields import Fields, parsed_json
from gyrfalcon.files.text import contents

NAMES = ("prompt", "input_len", "output_len", "arrival")
DO = "correct the line"
LATEST = 10_000_000.0  # seconds


@dataclass(frozen=True, slots=True)
class TraceLine:
    """A request of the file; either `prompt` or `input_len` is given."""

    prompt: str | None
    input_len: int | None
    output_len: int | None
    arrival: float | None  # seconds after the start


def read_trace(path: str) -> tuple[TraceLine, ...]:
    """The requests of a file, by arrival where they have one; UsageError for a line that is not one."""
    lines = contents(path).split(b"\n")
    trace = [
        _line(raw, f"line {number} of {path}") for number, raw in enumerate(lines, 1) if raw.strip()
    ]
    if not trace:
        raise UsageError(f"a JSON object on each line of {path}", "none", "write one")
    with_arrival = sum(line.arrival is not None for line in trace)
    if with_arrival not in (0, len(trace)):
        got = f"{with_arrival} of {len(trace)}"
        raise UsageError(f"an arrival on every line of {path} or on none", got, "complete them")
    return tuple(sorted(trace, key=lambda line: line.arrival or 0))


def has_arrivals(trace: Sequence[TraceLine]) -> bool:
    """Whether the file says when requests arrive."""
    return bool(trace) and trace[0].arrival is not None


def _line(raw: bytes, where: str) -> TraceLine:
    value = parsed_json(raw, where, DO)
    if not isinstance(value, dict):
        raise UsageError(f"a JSON object on {where}", type(value).__name__, DO)
    for name in value:
        if name not in NAMES:
            wanted = f"only {', '.join(NAMES)} on {where}"
            raise UsageError(
                wanted, name or "an empty name", did_you_mean(name, NAMES, "remove it")
            )
    fields = Fields(value, where)
    try:
        found = TraceLine(
            prompt=fields.take(str, "prompt"),
            input_len=fields.take(int, "input_len"),
            output_len=fields.take(int, "output_len"),
            arrival=fields.take(float, "arrival"),
        )
    except ConfigError as error:
        raise UsageError(error.wanted, error.got, error.do) from None
    _check(found, where)
    return found


def _check(line: TraceLine, where: str) -> None:
    if (line.prompt is None) == (line.input_len is None):
        got = "neither" if line.prompt is None else "both"
        raise UsageError(f"either prompt or input_len on {where}", got, DO)
    for name, length in (("input_len", line.input_len), ("output_len", line.output_len)):
        if length is not None and length not in ONE_TOKEN_OR_MORE:
            raise UsageError(f"{name} {ONE_TOKEN_OR_MORE.words} on {where}", str(length), DO)
    if line.arrival is not None and not 0 <= line.arrival <= LATEST:
        raise UsageError(
            f"an arrival from 0 to {LATEST:,.0f} s on {where}", f"{line.arrival:g}", DO
        )
