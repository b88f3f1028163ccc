"""Which prompt is prefilled next: by priority, then preempted sequences first, then the shortest remainder,
with ageing. Knows nothing of cache blocks.
"""

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from dataclasses import dataclass, field
from math import inf

from gyrfalcon.request import Sequence

Turn = tuple[int, int, int, int]  # the smaller one is prefilled first


@dataclass(slots=True)
class _Line:
    """The unfinished prompts of one priority: those that wait, and those that are partially prefilled."""

    unfinished: OrderedDict[Sequence, None] = field(default_factory=OrderedDict)  # oldest first
    # May begin: (remainder, arrival, sequence), sorted.
    ready: list[tuple[int, int, Sequence]] = field(default_factory=list)
    remainders: dict[Sequence, int] = field(default_factory=dict)  # of those that are ready
    # Arrivals of who overtook the oldest, sorted.
    overtakers: list[int] = field(default_factory=list)
    # Preempted sequences, (arrival, sequence), sorted.
    preempted: list[tuple[int, Sequence]] = field(default_factory=list)
    recomputing: dict[Sequence, None] = field(default_factory=dict)  # preempted, and running again

    @property
    def is_empty(self) -> bool:
        return not (self.unfinished or self.preempted or self.recomputing)

    def num_overtaken(self, sequence: Sequence) -> int:
        """By how many an unfinished sequence was overtaken; no younger one was by more."""
        return len(self.overtakers) - bisect_right(self.overtakers, sequence.arrival)

    def make_ready(self, sequence: Sequence, remainder: int) -> None:
        self.remainders[sequence] = remainder
        insort(self.ready, (remainder, sequence.arrival, sequence))

    def make_unready(self, sequence: Sequence) -> None:
        remainder = self.remainders.pop(sequence, None)
        if remainder is not None:
            del self.ready[bisect_left(self.ready, (remainder, sequence.arrival, sequence))]

    def remove(self, sequence: Sequence) -> None:
        """Wherever it is, if it is there."""
        if sequence in self.unfinished:
            self.make_unready(sequence)
            del self.unfinished[sequence]
            oldest = next(iter(self.unfinished), None)
            first = None if oldest is None else bisect_right(self.overtakers, oldest.arrival)
            del self.overtakers[:first]
        elif sequence in self.recomputing:
            del self.recomputing[sequence]
        elif (entry := (sequence.arrival, sequence)) in self.preempted:
            self.preempted.remove(entry)


class PromptQueue:
    """Sequences whose prefill has not ended.

    A sequence overtakes another when it arrived later and begins before the other's prefill ends. By
    sequences of no lower priority value nobody is overtaken more than `most_overtaken` times. Proof:
    count who overtook each unfinished sequence of a priority. Who overtook a younger one arrived later
    than an older one as well, and began while that was unfinished: no count exceeds the oldest's.
    `first` lets nobody begin that would overtake an oldest one whose count is `most_overtaken`. One
    that was preempted is overtaken no more: until it has recomputed its tokens, nobody of the same or a
    higher value begins.
    """

    def __init__(self, most_overtaken: int) -> None:
        self._most_overtaken = most_overtaken
        self._lines: dict[int, _Line] = {}  # by priority, the lowest first; none is empty

    @property
    def least_priority(self) -> float:
        """Of those whose prefill has not ended."""
        return next(iter(self._lines), inf)

    def add(self, sequence: Sequence, remainder: int) -> None:
        """Takes in one that arrived after all others; `remainder`: tokens to compute."""
        line = self._line(sequence.priority)
        line.unfinished[sequence] = None
        line.make_ready(sequence, remainder)

    def put_back(self, sequence: Sequence) -> None:
        """Takes in one that was preempted."""
        self.leave(sequence)
        insort(self._line(sequence.priority).preempted, (sequence.arrival, sequence))

    def hold(self, sequence: Sequence) -> None:
        """It cannot begin for now; others may, until they have overtaken it often enough."""
        self._lines[sequence.priority].make_unready(sequence)

    def resume(self, sequence: Sequence, remainder: int) -> None:
        """It can begin again."""
        self._lines[sequence.priority].make_ready(sequence, remainder)

    def first(self) -> Sequence | None:
        """Who begins next; None where nobody may."""
        last_arrival: float = inf  # who arrived later would overtake once too often
        for line in self._lines.values():
            if line.preempted:
                return line.preempted[0][1]
            if line.recomputing:
                return None
            oldest = next(iter(line.unfinished))
            candidate = line.ready[0][2] if line.ready else None
            if line.num_overtaken(oldest) >= self._most_overtaken:
                last_arrival = min(last_arrival, oldest.arrival)
                candidate = oldest if oldest in line.remainders else candidate
            if candidate is not None:
                return candidate if candidate.arrival <= last_arrival else None
        return None

    def begin(self, sequence: Sequence) -> None:
        """It was admitted, and overtakes all that are older and of no higher priority value."""
        own = self._lines[sequence.priority]
        if sequence.num_preemptions:
            own.preempted.remove((sequence.arrival, sequence))
            own.recomputing[sequence] = None
            return
        own.make_unready(sequence)
        for priority, line in self._lines.items():
            if priority > sequence.priority:
                break
            oldest = next(iter(line.unfinished), sequence)
            if oldest.arrival < sequence.arrival:
                insort(line.overtakers, sequence.arrival)

    def leave(self, sequence: Sequence) -> None:
        """Its prefill has ended, or never will; nothing happens when it had left."""
        line = self._lines.get(sequence.priority)
        if line is not None:
            line.remove(sequence)
            if line.is_empty:
                del self._lines[sequence.priority]

    def turn(self, sequence: Sequence, remainder: int) -> Turn:
        """When an unfinished sequence with this many tokens to compute is prefilled: the least turn first."""
        if sequence.num_preemptions:
            return (sequence.priority, 0, 0, sequence.arrival)
        line = self._lines[sequence.priority]
        if line.num_overtaken(sequence) >= self._most_overtaken:
            return (sequence.priority, 1, 0, sequence.arrival)
        return (sequence.priority, 2, remainder, sequence.arrival)

    def _line(self, priority: int) -> _Line:
        if priority not in self._lines:
            self._lines[priority] = _Line()
            self._lines = dict(sorted(self._lines.items()))
        return self._lines[priority]
