"""From the outcomes of a run to its figures: percentiles, rates, goodput, errors, and what the generator
itself took. Latencies are those of finished requests, in milliseconds, from when a request was due.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from gyrfalcon.load.run import Outcome, Run

T = TypeVar("T")

USAGE, EVENTS, BOTH = "usage", "events", "usage and events"


@dataclass(frozen=True, slots=True)
class Latencies:
    """Figures of one finished request, in milliseconds."""

    ttft: float
    itl: float | None  # None: fewer than two tokens
    tpot: float | None
    e2e: float
    gaps: tuple[float, ...]  # between its events

    def keeps(self, limits: Mapping[str, float]) -> bool:
        """Whether none of the limits is exceeded; what it has no figure for is kept."""
        own = {"ttft": self.ttft, "itl": self.itl, "tpot": self.tpot, "e2e": self.e2e}
        values = [(own[name], limit) for name, limit in limits.items()]
        return all(value is None or value <= limit for value, limit in values)


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution, in milliseconds."""

    p50: float
    p90: float
    p99: float
    mean: float
    max: float


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """Requests that failed alike."""

    kind: str
    status: int | None
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Goodput:
    """Finished requests that keep all limits (milliseconds), of all that were sent."""

    limits: Mapping[str, float]
    count: int
    share: float
    per_second: float


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of the finished requests; None: the server gave no usage."""

    input: int | None
    cached: int | None
    output: int
    counted_by: str  # USAGE, EVENTS or BOTH: where the output's number is from
    input_per_second: float | None
    output_per_second: float


@dataclass(frozen=True, slots=True)
class Generator:
    """What this process did itself."""

    late_ms: Spread | None  # from when requests were due to when they were sent
    cpu_seconds: float
    cpu_share: float  # of one core
    cpu_us_per_token: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of a run."""

    seconds: float
    sent: int
    finished: int
    refused: int  # HTTP 429 and 503
    failed: int  # with any other error
    unfinished: int  # when the run was interrupted
    asked_per_second: float | None
    sent_per_second: float | None
    finished_per_second: float
    first_token_ms: Spread | None
    inter_token_ms: Spread | None
    time_per_token_ms: Spread | None
    end_to_end_ms: Spread | None
    refusal_ms: Spread | None
    tokens: Tokens
    goodput: Goodput | None
    errors: tuple[ErrorCount, ...]
    generator: Generator


def figures_of(run: Run, asked_per_second: float | None, limits: Mapping[str, float]) -> Figures:
    """The figures of a run; `limits` of goodput in milliseconds, {} for none."""
    outcomes = run.outcomes
    finished = [one for one in outcomes if one.is_finished]
    failures = [one for one in outcomes if one.failure is not None]
    refused = [one for one in failures if one.failure is not None and one.failure.is_refusal]
    latencies = [latencies_of(one, run.start) for one in finished]
    return Figures(
        seconds=run.seconds,
        sent=len(outcomes),
        finished=len(finished),
        refused=len(refused),
        failed=len(failures) - len(refused),
        unfinished=len(outcomes) - len(finished) - len(failures),
        asked_per_second=asked_per_second,
        sent_per_second=_sent_rate(outcomes),
        finished_per_second=_rate(len(finished), run.seconds),
        first_token_ms=spread(one.ttft for one in latencies),
        inter_token_ms=spread(gap for one in latencies for gap in one.gaps),
        time_per_token_ms=spread(_present(one.tpot for one in latencies)),
        end_to_end_ms=spread(one.e2e for one in latencies),
        refusal_ms=spread(1000 * (one.end - one.due) for one in refused if one.end is not None),
        tokens=_tokens(finished, run.seconds),
        goodput=_goodput(latencies, limits, run) if limits else None,
        errors=_errors(failures),
        generator=_generator(run),
    )


def latencies_of(outcome: Outcome, start: float) -> Latencies:
    """The latencies of a finished request of a run that began at `start`.

    An answer without any text has its end as its first token.
    """
    assert outcome.end is not None
    times = np.asarray(outcome.answer.token_times) - start
    first = float(times[0]) if len(times) else outcome.end
    gaps = 1000 * np.diff(times)
    num_tokens = output_len(outcome)
    return Latencies(
        ttft=1000 * (first - outcome.due),
        itl=float(np.percentile(gaps, 99)) if len(gaps) else None,
        tpot=float(gaps.sum()) / (num_tokens - 1) if len(gaps) and num_tokens > 1 else None,
        e2e=1000 * (outcome.end - outcome.due),
        gaps=tuple(gaps.tolist()),
    )


def output_len(outcome: Outcome) -> int:
    """The tokens of an answer: of its usage, else its events."""
    counted = outcome.answer.output_len
    return len(outcome.answer.token_times) if counted is None else counted


def spread(values: Iterable[float]) -> Spread | None:
    """The distribution of some values; None of none."""
    found = np.fromiter(values, np.float64)
    if not len(found):
        return None
    p50, p90, p99 = np.percentile(found, [50, 90, 99]).tolist()
    return Spread(p50, p90, p99, float(found.mean()), float(found.max()))


def _present(values: Iterable[T | None]) -> Iterable[T]:
    return (value for value in values if value is not None)


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _sent_rate(outcomes: Sequence[Outcome]) -> float | None:
    """Requests a second from the first to the last that was sent."""
    if len(outcomes) < 2 or outcomes[-1].sent <= outcomes[0].sent:
        return None
    return (len(outcomes) - 1) / (outcomes[-1].sent - outcomes[0].sent)


def _tokens(finished: Sequence[Outcome], seconds: float) -> Tokens:
    answers = [one.answer for one in finished]
    inputs = list(_present(answer.input_len for answer in answers))
    cached = list(_present(answer.cached_len for answer in answers))
    by_usage = sum(answer.output_len is not None for answer in answers)
    output = sum(map(output_len, finished))
    return Tokens(
        input=sum(inputs) if inputs else None,
        cached=sum(cached) if cached else None,
        output=output,
        counted_by=EVENTS if not by_usage else USAGE if by_usage == len(answers) else BOTH,
        input_per_second=_rate(sum(inputs), seconds) if inputs else None,
        output_per_second=_rate(output, seconds),
    )


def _goodput(latencies: Sequence[Latencies], limits: Mapping[str, float], run: Run) -> Goodput:
    good = sum(one.keeps(limits) for one in latencies)
    sent = len(run.outcomes)
    return Goodput(limits, good, good / sent if sent else 0.0, _rate(good, run.seconds))


def _errors(failures: Sequence[Outcome]) -> tuple[ErrorCount, ...]:
    """The most frequent first."""
    counts = Counter(
        (one.failure.kind, one.failure.status, one.failure.reason)
        for one in failures
        if one.failure is not None
    )
    return tuple(ErrorCount(*error, count) for error, count in counts.most_common())


def _generator(run: Run) -> Generator:
    num_events = sum(len(one.answer.token_times) for one in run.outcomes)
    return Generator(
        late_ms=spread(1000 * (one.sent - one.due) for one in run.outcomes),
        cpu_seconds=run.cpu_seconds,
        cpu_share=run.cpu_seconds / run.seconds if run.seconds > 0 else 0.0,
        cpu_us_per_token=1e6 * run.cpu_seconds / num_events if num_events else None,
    )
