"""The steps of a simulated engine: the real scheduler decides what each computes, a prediction how long it
takes. As in the engine's own loop, a step is taken after the last one or, overlapped, launched before that
one's tokens are read.
"""

from dataclasses import dataclass

from gyrfalcon.engine.scheduler import Scheduler
from gyrfalcon.plan.step_load import StepLoad, StepTimes, decoding_load
from gyrfalcon.request import Chunk, Token

GENERATED = Token(0)  # every generated token
FILL = [GENERATED.id]
MOST_ALIKE = 1024  # calls that are foreseen at once


@dataclass(slots=True)
class Call:
    """A call of the engine's step.

    chunks: what is committed when it returns; none where it only launches a step.
    ends: when it returns and, after it, further calls that are alike: the same sequences decode in each.
    launched: when the step that it, and each of those, launches has been computed; none where no step is
        under way at its end.
    """

    chunks: list[Chunk]
    ends: list[float]
    launched: list[float]


@dataclass(slots=True)
class _InFlight:
    """A launched step."""

    chunks: list[Chunk]
    end: float


class Steps:
    """Takes a scheduler's steps. Whatever happens at the end of a call is done by its caller."""

    def __init__(self, scheduler: Scheduler, times: StepTimes, overlap: bool) -> None:
        self._scheduler = scheduler
        self._times = times
        self._overlap = overlap
        self._in_flight: _InFlight | None = None

    def begin(self, prompt_tokens: int, now: float) -> Call | None:
        """The call that begins now, with at most `prompt_tokens` of prompts; None where there is nothing to
        compute. (What the engine computes at once, because not all of it samples, is launched here and read
        by a second call: nothing can follow on it, so all times are the same.)
        """
        if self._in_flight is not None:
            return self._follow(self._in_flight, now)
        chunks = self._scheduler.next_chunks(prompt_tokens)
        if not chunks:
            return None
        end = now + self._times.seconds(load_of_chunks(chunks))
        if not self._overlap:
            return Call(chunks, [end], [])
        self._in_flight = _InFlight(chunks, end)
        return Call([], [now], [end])

    def commit(self, call: Call) -> list[Chunk]:
        """Ends a call; returns what of it was committed: sequences that ended meanwhile are left out."""
        chunks = call.chunks
        if self._overlap:
            chunks = [chunk for chunk in chunks if chunk.sequence.finish_reason is None]
        results = [GENERATED if chunk.samples else None for chunk in chunks]
        self._scheduler.commit(chunks, results)
        return chunks

    def repeat(self, call: Call, until: float) -> None:
        """Adds to a call in which sequences only decode, each of them not for the first time, the ends of
        those that follow on it, as long as nothing arrives: up to the first that may end a sequence, needs
        a block that is not free, or begins at `until` or later.
        """
        last = self._last(call)
        num_alike = self._num_alike(call, last)
        if not num_alike:
            return
        count, context = len(last), sum(chunk.stop for chunk in last)
        end = call.launched[0] if self._overlap else call.ends[0]
        for number in range(1, num_alike + 1):
            if call.ends[-1] >= until:
                return
            seconds = self._times.seconds(decoding_load(count, context + number * count))
            if self._overlap:
                call.ends.append(end)
                call.launched.append(end + seconds)
            else:
                call.ends.append(end + seconds)
            end += seconds

    def skip(self, call: Call, num_calls: int) -> list[int]:
        """Goes on to the call that comes `num_calls` after this one, as repeat() foresaw; returns how many
        blocks are taken by each of those.
        """
        last = self._last(call)
        taken = [0] * num_calls
        for number, place in self._growth(last, num_calls):
            chunk = last[place]
            grown = self._scheduler.allocator.grow(chunk.sequence.blocks, chunk.stop + number)
            assert grown, "no block is free"
            taken[number - 1] += 1
        new = FILL * num_calls
        for chunk in last:
            chunk.sequence.tokens += new
            chunk.sequence.num_computed += num_calls
        for chunk in (*call.chunks, *last) if self._overlap else last:
            chunk.start += num_calls
            chunk.stop += num_calls
        del call.ends[:num_calls]
        if self._in_flight is not None:
            del call.launched[:num_calls]
            self._in_flight.end = call.launched[0]
        return taken

    def _follow(self, done: _InFlight, now: float) -> Call:
        """Launches the step after one that is under way, unless that has to be read first."""
        chunks = self._scheduler.next_after(done.chunks)
        computed = max(now, done.end)
        if not chunks:
            self._in_flight = None
            return Call(done.chunks, [computed], [])
        end = computed + self._times.seconds(load_of_chunks(chunks))
        self._in_flight = _InFlight(chunks, end)
        return Call(done.chunks, [computed], [end])

    def _last(self, call: Call) -> list[Chunk]:
        """What was launched last."""
        return call.chunks if self._in_flight is None else self._in_flight.chunks

    def _num_alike(self, call: Call, last: list[Chunk]) -> int:
        """How many calls like this one follow on it, by the lengths of sequences and the free blocks."""
        running = len(self._scheduler.running)
        if not len(call.chunks) == len(last) == self._scheduler.num_decoding == running:
            return 0
        if self._overlap and self._in_flight is None:
            return 0
        most = min(MOST_ALIKE, *(one.sequence.max_len - one.stop - 1 for one in last))
        num_free = self._scheduler.allocator.num_free
        growth = self._growth(last, most)
        return growth[num_free][0] - 1 if len(growth) > num_free else most

    def _growth(self, chunks: list[Chunk], num_calls: int) -> list[tuple[int, int]]:
        """Which of the next calls, counted from 1, take a block for which chunk, in order."""
        size = self._scheduler.allocator.block_size
        found: list[tuple[int, int]] = []
        for place, chunk in enumerate(chunks):
            first = len(chunk.sequence.blocks) * size + 1 - chunk.stop
            found += [(number, place) for number in range(first, num_calls + 1, size)]
        found.sort()
        return found


def load_of_chunks(chunks: list[Chunk]) -> StepLoad:
    """What a step with these chunks computes."""
    prompt_tokens = decoding = context = attended = 0
    for chunk in chunks:
        start, stop = chunk.start, chunk.stop
        context += stop
        if stop == start + 1 and start >= chunk.sequence.prompt_len:
            decoding += 1
            attended += stop
        else:
            prompt_tokens += stop - start
            attended += (start + 1 + stop) * (stop - start) // 2
    return StepLoad(prompt_tokens, decoding, context, attended)
