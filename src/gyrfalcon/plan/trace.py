"""The requests of a simulation and when they arrive: from a file of JSON lines, read as the clock gets there,
or drawn at random.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Protocol

from gyrfalcon.bounds import ONE_TOKEN_OR_MORE, REQUEST, shown
from gyrfalcon.console.suggestion import did_you_mean
from gyrfalcon.errors import ConfigError, UsageError
from gyrfalcon.files.json_fields import Fields, parsed_json
from gyrfalcon.load.lengths import Lengths

NEEDED = ("arrival_s", "prompt_tokens", "output_tokens")
NAMES = (*NEEDED, "prefix_ids", "priority", "deadline")
DO = "correct the line"
LATEST = 1e9  # seconds
LONGEST = 10**9  # tokens: no limit
MOST_LINE_BYTES = 1 << 24
# Of a prompt that one of `prefix_ids` stands for, unless the caller says otherwise.
PAGE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request: its arrival in seconds after the start, and its lengths in tokens.

    prefix_ids: names of the pages that its prompt begins with; prompts whose first names are equal begin with
        the same tokens.
    deadline: seconds after its arrival at which it is given up; None: never.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_ids: tuple[int, ...] = ()
    priority: int = 0
    deadline: float | None = None

    def prompt_ids(self, number: int, page_tokens: int) -> tuple[int, ...]:
        """Token ids of its prompt as request `number` of the trace: equal exactly where pages are equal. All
        are above 0, so that 0 can stand for what is generated.
        """
        ids: list[int] = []
        for page in self.prefix_ids:
            ids += [2 * page + 2] * page_tokens
        own = 2 * number + 1
        return tuple(ids[: self.prompt_tokens] + [own] * (self.prompt_tokens - len(ids)))


class Trace(Protocol):
    """Requests in the order of their arrival; iterating again gives the same ones."""

    def __iter__(self) -> Iterator[TraceRequest]: ...


@dataclass(frozen=True, slots=True)
class TraceSize:
    """What a trace amounts to."""

    num_requests: int
    last_arrival: float


@dataclass(frozen=True, slots=True)
class TraceFile:
    """A file of requests, an object on each line that is not blank. It is never held as a whole.

    page_tokens: the tokens that one of `prefix_ids` stands for.
    """

    path: str
    page_tokens: int = PAGE_TOKENS

    def __iter__(self) -> Iterator[TraceRequest]:
        """The requests; UsageError for a line that is not one."""
        return (request for _, request in self._with_places())

    def check(self, max_len: int) -> TraceSize:
        """Reads the whole file once, so that it cannot fail later; UsageError with the number of the first
        line that is wrong, or has more than `max_len` tokens.
        """
        count, last = 0, 0.0
        with open(self.path, "rb") as stream:
            if not stream.seekable():
                wanted = "a trace in a file, which is read twice"
                raise UsageError(wanted, self.path, "save it to a file first")
        for where, request in self._with_places():
            count, last = count + 1, request.arrival_s
            length = request.prompt_tokens + request.output_tokens
            if length > max_len:
                wanted = f"at most {max_len} tokens, prompt and output, on {where}"
                raise UsageError(wanted, str(length), "shorten the request or raise `context`")
        if not count:
            raise UsageError(f"a JSON object on each line of {self.path}", "none", "write one")
        return TraceSize(count, last)

    def _with_places(self) -> Iterator[tuple[str, TraceRequest]]:
        """Each request, and where it stands for an error message."""
        before = 0.0
        with open(self.path, "rb") as stream:
            for number, raw in enumerate(iter(lambda: stream.readline(MOST_LINE_BYTES), b""), 1):
                if raw.strip():
                    where = f"line {number} of {self.path}"
                    request = _request(raw, where, self.page_tokens)
                    _check_order(request, before, where)
                    before = request.arrival_s
                    yield where, request


@dataclass(frozen=True, slots=True)
class PoissonTrace:
    """Independent arrivals at a mean rate, a second. They and the lengths are what `gyrfalcon load` sends
    with the same rate, lengths and seed; what would be longer than `max_len`, prompt and output, is cut.
    """

    rate: float
    input_lens: Lengths
    output_lens: Lengths
    num_requests: int
    seed: int
    max_len: int = LONGEST

    def __iter__(self) -> Iterator[TraceRequest]:
        return islice(self._endless(), self.num_requests)

    def _endless(self) -> Iterator[TraceRequest]:
        arrivals, lengths = Random(f"{self.seed} arrivals"), Random(f"{self.seed} lengths")
        now = 0.0
        while True:
            now += arrivals.expovariate(self.rate)
            prompt_tokens = min(self.input_lens.draw(lengths), self.max_len - 1)
            output_tokens = min(self.output_lens.draw(lengths), self.max_len - prompt_tokens)
            yield TraceRequest(now, prompt_tokens, output_tokens)


def _request(raw: bytes, where: str, page_tokens: int) -> TraceRequest:
    value = parsed_json(raw, where, DO)
    if not isinstance(value, dict):
        raise UsageError(f"a JSON object on {where}", type(value).__name__, DO)
    for name in value:
        if name not in NAMES:
            wanted = f"only {', '.join(NAMES)} on {where}"
            raise UsageError(
                wanted, name or "an empty name", did_you_mean(name, NAMES, "remove it")
            )
    for name in NEEDED:
        if value.get(name) is None:
            raise UsageError(f"{name} on {where}", "none", DO)
    fields = Fields(value, where)
    try:
        found = TraceRequest(
            arrival_s=fields.need(float, "arrival_s"),
            prompt_tokens=fields.need(int, "prompt_tokens"),
            output_tokens=fields.need(int, "output_tokens"),
            prefix_ids=_prefix_ids(value.get("prefix_ids"), where),
            priority=fields.take(int, "priority") or 0,
            deadline=fields.take(float, "deadline"),
        )
    except ConfigError as error:
        raise UsageError(error.wanted, error.got, error.do) from None
    _check(found, where, page_tokens)
    return found


def _prefix_ids(value: object, where: str) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(one) is int and one >= 0 for one in value):
        wanted = f"a list of whole numbers of 0 or more for prefix_ids on {where}"
        raise UsageError(wanted, shown(value), DO)
    return tuple(value)


def _check(request: TraceRequest, where: str, page_tokens: int) -> None:
    lengths = ("prompt_tokens", request.prompt_tokens), ("output_tokens", request.output_tokens)
    for name, length in lengths:
        if length not in ONE_TOKEN_OR_MORE:
            raise UsageError(f"{name} {ONE_TOKEN_OR_MORE.words} on {where}", str(length), DO)
    if request.priority not in REQUEST["priority"]:
        wanted = f"a priority {REQUEST['priority'].words} on {where}"
        raise UsageError(wanted, str(request.priority), DO)
    if request.deadline is not None and request.deadline not in REQUEST["timeout"]:
        wanted = f"a deadline {REQUEST['timeout'].words} s after its arrival on {where}"
        raise UsageError(wanted, f"{request.deadline:g}", DO)
    most = -(-request.prompt_tokens // page_tokens)
    if len(request.prefix_ids) > most:
        wanted = f"at most {most} prefix_ids on {where}, whose prompt has this many pages"
        got = f"{len(request.prefix_ids)}, of {page_tokens} tokens each"
        raise UsageError(wanted, got, "correct the line or `page_tokens`")


def _check_order(request: TraceRequest, before: float, where: str) -> None:
    if not 0 <= request.arrival_s <= LATEST:
        wanted = f"an arrival_s from 0 to {LATEST:,.0f} on {where}"
        raise UsageError(wanted, f"{request.arrival_s:g}", DO)
    if request.arrival_s < before:
        wanted = f"an arrival_s of {before:g} or more on {where}, as on the line before"
        raise UsageError(wanted, f"{request.arrival_s:g}", "sort the lines by arrival_s")
